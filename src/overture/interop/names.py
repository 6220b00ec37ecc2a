"""Our parameter names as the Prologue release writes them."""

from __future__ import annotations

import re

__all__ = ["NOT_WEIGHTS", "POSITION_MASK", "release_name"]

POSITION_MASK = "pos_select_mask"
"""A quantizer's buffer ``[positions, codes]`` of 0 and -inf: the codes that a position may use."""

NOT_WEIGHTS = re.compile(rf"(.*\.)?({POSITION_MASK}|codebook_size_per_pos|logit_mask|uncond_ar_labels)")
"""Buffers that follow from the sizes (two of them only in old files); they are no part of our files."""

_OWNERS = {
    "encoder.queries": "enc.learnable_query",
    "encoder.patches.": "enc.input_layer.",
    "encoder.transformer.": "enc.",
    "post_encoder.queries": "semantic_enc.learnable_query",
    "post_encoder.patches.": "semantic_enc.input_layer.",
    "post_encoder.transformer.": "semantic_enc.",
    "quantizers.visual.": "quantizer.",
    "quantizers.prologue.": "semantic_quantizer.",
    "decoder.queries": "dec.learnable_query",
    "decoder.inputs.visual.": "dec.input_layer.",
    "decoder.transformer.": "dec.",
    "decoder.head.": "dec.",
    "transformer.": "ar_model.",
    "head.": "ar_model.",
    "class_embedding.": "bos_emb.",
    "token_embedding.": "semantic_emb.",
}
_PARTS = {
    "condition.classes.": "cond_proj.0.",
    "condition.norm.": "cond_proj.1.",
    "blocks.": "layers.",
    "attention_norm.": "adaln_1.affine.",
    "attention_gate.": "gate1.",
    "attention.query_norm.": "attn1.q_norm.",
    "attention.key_norm.": "attn1.k_norm.",
    "attention.query.": "attn1.to_q.",
    "attention.key_value.": "attn1.to_kv.",
    "attention.output.": "attn1.proj.",
    "feed_forward_norm.": "adaln_mlp.affine.",
    "feed_forward_gate.": "gate_mlp.",
    "feed_forward.input.": "ffn.fc1.",
    "feed_forward.output.": "ffn.fc2.",
}
_ENDS = {
    ".norm.weight": ".out_norm.affine.weight",
    ".norm.bias": ".out_norm.affine.bias",
    ".projection.weight": ".out.weight",
    ".projection.bias": ".out.bias",
}
_QUANTIZER_ENDS = {
    ".codebook": ".embedding.weight",
    ".projection.weight": ".proj_in.weight",
    ".projection.bias": ".proj_in.bias",
}


def release_name(ours: str) -> str:
    """The release's name of our parameter ``ours`` (of a tokenizer or of a prior)."""
    owner = next(owner for owner in _OWNERS if ours.startswith(owner))
    rest = ours.removeprefix(owner)
    for part, theirs in _PARTS.items():
        rest = rest.replace(part, theirs)
    ends = _QUANTIZER_ENDS if owner.startswith("quantizers.") else _ENDS if owner.endswith("head.") else {}
    return _OWNERS[owner] + ends.get(f".{rest}", f".{rest}")[1:]
