"""Names of the released format to ours, enough for the golden data."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_TRANSFORMER = [
    (r"cond_proj\.0\.", "transformer.condition.classes."),
    (r"cond_proj\.1\.", "transformer.condition.norm."),
    (r"layers\.(\d+)\.adaln_1\.affine\.", r"transformer.blocks.\1.attention_norm."),
    (r"layers\.(\d+)\.adaln_mlp\.affine\.", r"transformer.blocks.\1.feed_forward_norm."),
    (r"layers\.(\d+)\.attn1\.to_q\.", r"transformer.blocks.\1.attention.query."),
    (r"layers\.(\d+)\.attn1\.to_kv\.", r"transformer.blocks.\1.attention.key_value."),
    (r"layers\.(\d+)\.attn1\.q_norm\.", r"transformer.blocks.\1.attention.query_norm."),
    (r"layers\.(\d+)\.attn1\.k_norm\.", r"transformer.blocks.\1.attention.key_norm."),
    (r"layers\.(\d+)\.attn1\.proj\.", r"transformer.blocks.\1.attention.output."),
    (r"layers\.(\d+)\.gate1\.", r"transformer.blocks.\1.attention_gate."),
    (r"layers\.(\d+)\.gate_mlp\.", r"transformer.blocks.\1.feed_forward_gate."),
    (r"layers\.(\d+)\.ffn\.fc1\.", r"transformer.blocks.\1.feed_forward.input."),
    (r"layers\.(\d+)\.ffn\.fc2\.", r"transformer.blocks.\1.feed_forward.output."),
    (r"out_norm\.affine\.", "head.norm."),
    (r"out\.", "head.projection."),
]
_RENAMES = [
    *[(rf"enc\.{old}", f"encoder.{new}") for old, new in _TRANSFORMER],
    (r"enc\.input_layer\.", "encoder.patches."),
    *[(rf"dec\.{old}", f"decoder.{new}") for old, new in _TRANSFORMER],
    (r"dec\.input_layer\.", "decoder.inputs.visual."),
    (r"semantic_quantizer\.embedding\.weight", "quantizers.prologue.codebook"),
    (r"semantic_quantizer\.proj_in\.", "quantizers.prologue.projection."),
    (r"quantizer\.embedding\.weight", "quantizers.visual.codebook"),
    (r"quantizer\.proj_in\.", "quantizers.visual.projection."),
    *[(rf"ar_model\.{old}", new) for old, new in _TRANSFORMER],
    (r"bos_emb\.", "class_embedding."),
    (r"semantic_emb\.", "token_embedding."),
]
_DROPPED = r".*pos_select_mask|uncond_ar_labels|logit_mask"


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under our names."""
    out = {}
    for name, tensor in tensors.items():
        if re.fullmatch(_DROPPED, name):
            continue
        if name == "enc.learnable_query":
            out["encoder.queries"] = tensor[0]
            continue
        for old, new in _RENAMES:
            if re.match(old, name):
                out[re.sub(f"^{old}", new, name)] = tensor
                break
        else:
            raise KeyError(name)
    return out
