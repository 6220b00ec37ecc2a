"""Tiny 1D and Post releases, written and computed here without the package.

Tensors lie under the release's names, sizes in a config in its words, and what they mean is said once more by plain
functions over dictionaries of tensors: no module, no rotary table and no name of ours takes part.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from golden_names import GOLDEN

CLASSES, CONDITION, PATCH, GRID, HEAD, Z = 10, 16, 8, 4, 16, 6
AXES = (4, 4, 8)
SEPARATOR = 64 + 24

Tensors = dict[str, Tensor]
Places = list[tuple[float, float, float, float]]
"""Row, column, index and theta of every token."""


def resolved(name: str, encoder_length: int = 16) -> dict[str, Any]:
    """A config as the release resolves it for ``1d``, ``2d``, ``prologue``, ``post`` or ``onestage``, in the sizes of
    the golden data."""
    source = "2d" if name in ("1d", "2d") else "prologue"
    data: dict[str, Any] = json.loads((GOLDEN / source / "config_resolved.json").read_text())
    grid = {"context_type": "none", "rope_input_type": "hw", "rope_theta": 2000}
    queries = {
        "context_type": "concat", "rope_input_type": "l", "rope_ctx_type": "hw", "rope_theta": 10000,
        "rope_ctx_theta": 2000,
    }  # fmt: skip
    if name == "1d":
        data |= {"z_len": 7, "Prologue": False, "share_semantic_codebook": True, "share_semantic_encoder": True}
        data["Encoder"] |= {**queries, "max_seq_len": 7}
        data["Decoder"] |= {"context_type": "concat", "ctx_max_seq_len": 7}  # its positions are the defaults
        data["ARModel"] |= {"max_seq_len": 7}
    elif name == "post":
        data |= {"share_semantic_encoder": False, "semantic_dim": 48, "semantic_input_type": "encoder_output"}
        data["SemanticEncoder"] = {
            **data["Encoder"], **queries, "input_dim": 32, "output_dim": 48, "max_seq_len": 5, "dim": 48,
            "layer_num": 3, "heads": 3, "mlp_ratio": "11/4",
        }  # fmt: skip
        data["SemanticQuantizer"] |= {"dim": 48}
        data["Encoder"] |= {**grid, "max_seq_len": encoder_length}
        data["ARModel"] |= {"max_seq_len": 21, "rope_hybrid_l_len": 5, "ste_ar_embedding": True}
        data |= {"resume_ckpt_path": "ckpts/2d-tokenizer", "resume_enc": True, "resume_dec": True}
        data |= {"phases": "2600000:DO_PRIOR_ENC,DO_PRIOR_AR:1,1", "prior_visual_dropout": 0.5}
    elif name == "onestage":
        data |= {
            "continuous_training": True,
            "ema_reconstruction": False,
            "eval_only": True,
            "do_ar_eval_loader": False,
        }
        data |= {"phases": "1:DO_PRIOR_AR,1", "tokenizer_ckpt_path": "ckpts/prologue-onestage-joint", "grad_clip": 1.0}
        data |= {"semantic_cfg_schedule": "constant", "semantic_cfg_scale": 0.8, "semantic_temperature": 0.8}
    return data


def joint_training(data: dict[str, Any]) -> dict[str, Any]:
    """The same config as it is while the tokenizer trains: its prior is the small one, with tied embeddings."""
    small = {"dim": 64, "layer_num": 10, "heads": 4, "tied_embedding": True}
    return {**data, "ARModel": {**data["ARModel"], **small}}


def full_size(name: str, prior: tuple[int, int, int] = (768, 12, 12), *, large: bool = False) -> dict[str, Any]:
    """The config in the sizes that were released, with a prior of (channels, blocks, heads)."""
    data = resolved(name, 256)
    tokens = 256 if name in ("1d", "2d") else 16
    data |= {"image_size": 256, "patch_size": 16, "num_classes": 1001, "z_len": tokens, "x_len": 256, "dim": 768}
    for section in ("Encoder", "Decoder", "SemanticEncoder", "ARModel"):
        if section in data:
            data[section] |= {"cond_dim": 32, "cond_input_dim": 1001, "dim": 768, "layer_num": 12, "heads": 12}
            data[section] |= {"rope_axes_dim": [24, 20, 20] if section == "ARModel" else [20, 20, 24]}
    data["Encoder"] |= {"max_seq_len": 256 if name == "post" else tokens}
    data["Decoder"] |= {"max_seq_len": 256, "ctx_max_seq_len": tokens}
    data["Quantizer"] |= {"codebook_size": 4096 if large else 16384, "z_dim": 14, "dim": 768, "length": 256}
    if large:
        data["Decoder"] |= {"dim": 1024, "layer_num": 24, "heads": 16}
    if "SemanticQuantizer" in data:
        data["SemanticQuantizer"] |= {"codebook_size": 1024, "z_dim": 14, "dim": 768, "length": 16}
    if name == "post":
        data["SemanticEncoder"] |= {"input_dim": 768, "dim": 512, "layer_num": 10, "heads": 8, "max_seq_len": 16}
        data["SemanticQuantizer"] |= {"dim": 512}
    drop = 0.0 if name == "onestage" else 0.1
    data["ARModel"] |= dict(zip(("dim", "layer_num", "heads"), prior, strict=True))
    data["ARModel"] |= {"drop": drop, "emb_dropout": drop, "max_seq_len": 256 + (tokens if tokens == 16 else 0)}
    return data


# -- tensors ------------------------------------------------------------------------------------------------------------


def _transformer(
    prefix: str, dim: int, depth: int, hidden: int, *, inputs: int = 0, queries: int = 0, outputs: int = 0, bias: bool
) -> dict[str, tuple[int, ...]]:
    def linear(name: str, out: int, into: int, with_bias: bool) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if with_bias else {})

    shapes = linear("cond_proj.0", CONDITION, CLASSES + 1, True) | {"cond_proj.1.weight": (CONDITION,)}
    for block in range(depth):
        here = {"attn1.q_norm.weight": (HEAD,), "attn1.k_norm.weight": (HEAD,)}
        here |= linear("adaln_1.affine", dim, CONDITION, True) | linear("adaln_mlp.affine", dim, CONDITION, True)
        here |= linear("gate1", dim, CONDITION, bias) | linear("gate_mlp", dim, CONDITION, bias)
        here |= linear("attn1.to_q", dim, dim, False) | linear("attn1.to_kv", 2 * dim, dim, False)
        here |= linear("attn1.proj", dim, dim, bias)
        here |= linear("ffn.fc1", 2 * hidden, dim, bias) | linear("ffn.fc2", dim, hidden, bias)
        shapes |= {f"layers.{block}.{name}": shape for name, shape in here.items()}
    if inputs:
        shapes |= linear("input_layer", dim, inputs, True)
    if queries:
        shapes |= {"learnable_query": (1, queries, dim)}
    if outputs:
        shapes |= linear("out_norm.affine", dim, CONDITION, True) | linear("out", outputs, dim, bias)
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def _quantizer(prefix: str, dim: int, codes: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.proj_in.weight": (Z, dim),
        f"{prefix}.proj_in.bias": (Z,),
        f"{prefix}.embedding.weight": (codes, Z),
    }


def _draw(shapes: dict[str, tuple[int, ...]], masks: dict[str, tuple[int, int]], seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    return tensors | {f"{name}.pos_select_mask": torch.zeros(shape) for name, shape in masks.items()}


@dataclass(frozen=True)
class TinyRelease:
    """``1d`` or ``post``; raw and EMA weights differ."""

    name: str
    encoder_columns: int = GRID

    @cached_property
    def files(self) -> dict[str, Tensors]:
        """Contents by file, of the tokenizer and (``ar/``) of the prior."""
        pixels = PATCH * PATCH * 3
        queries = 7 if self.name == "1d" else 0
        encoder = _transformer("enc", 32, 2, 85, inputs=pixels, queries=queries, bias=True) | _quantizer(
            "quantizer", 32, 64
        )
        masks = {"quantizer": (16, 64)}  # one row for every patch, in 1D too
        if self.name == "post":
            encoder |= _transformer("semantic_enc", 48, 3, 132, inputs=32, queries=5, bias=True)
            encoder |= _quantizer("semantic_quantizer", 48, 24)
            masks |= {"semantic_quantizer": (5, 24)}
        patches = 16 if self.name == "1d" else 0
        decoder = _transformer("dec", 32, 2, 85, inputs=Z, queries=patches, outputs=pixels, bias=True)
        vocabulary = 64 if self.name == "1d" else SEPARATOR + 1
        prior = _transformer("ar_model", 32, 2, 88, outputs=vocabulary, bias=False)
        prior |= {"bos_emb.weight": (CLASSES + 1, 32), "semantic_emb.weight": (vocabulary, 32)}
        files = {"model": _draw(encoder, masks, 1), "model_1": _draw(decoder, {}, 2)}
        files |= {"model_2": _draw(encoder, masks, 3), "model_3": _draw(decoder, {}, 4)}
        unconditional = {"uncond_ar_labels": torch.eye(CLASSES + 1)[-1:]}
        files |= {"ar/model": _draw(prior, {}, 5) | unconditional, "ar/model_1": _draw(prior, {}, 6) | unconditional}
        return files

    def write(self, directory: Path) -> None:
        """``directory/tokenizer`` and ``directory/ar``, and what a training leaves beside the tokenizer."""
        for name, tensors in self.files.items():
            path = directory / (name if "/" in name else f"tokenizer/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, path.with_suffix(".safetensors"))
        beside = {"post": self.files["ar/model"], "1d": {"discriminator.main.0.weight": torch.zeros(2)}}
        save_file(beside[self.name], directory / "tokenizer/model_4.safetensors")

    # -- what they mean ---------------------------------------------------------------------------------------------------

    def encode(self, images: Tensor, file: str = "model_2") -> Tensor:
        """Token ids, each segment from 0."""
        t = self.files[file]
        x = _linear(t, "enc.input_layer", _patches(images))
        if self.name == "1d":
            x = torch.cat([x, t["enc.learnable_query"].expand(len(x), -1, -1)], dim=1)
            x = _run(t, "enc", x, 2, _on_grid(GRID) + _in_line(7))
            return _nearest(t, "quantizer", x[:, 16:])
        x = _run(t, "enc", x, 2, _on_grid(self.encoder_columns))
        visual = _nearest(t, "quantizer", x)
        x = _linear(t, "semantic_enc.input_layer", x)
        x = torch.cat([x, t["semantic_enc.learnable_query"].expand(len(x), -1, -1)], dim=1)
        x = _run(t, "semantic_enc", x, 3, _on_grid(GRID) + _in_line(5))
        return torch.cat([_nearest(t, "semantic_quantizer", x[:, 16:]), visual], dim=1)

    def decode(self, ids: Tensor, files: Sequence[str] = ("model_2", "model_3")) -> Tensor:
        """Images ``[B, 3, H, W]``."""
        codes = _unit(self.files[files[0]]["quantizer.embedding.weight"])
        t = self.files[files[1]]
        if self.name == "1d":
            x = _linear(t, "dec.input_layer", codes[ids])
            x = torch.cat([x, t["dec.learnable_query"].expand(len(x), -1, -1)], dim=1)
            x = _run(t, "dec", x, 2, _in_line(7) + _on_grid(GRID))[:, 7:]
        else:
            x = _run(t, "dec", _linear(t, "dec.input_layer", codes[ids[:, 5:]]), 2, _on_grid(GRID))
        return _image(_output(t, "dec", x))

    def sequence(self, ids: Tensor) -> Tensor:
        """Ids as the prior sees them."""
        if self.name == "1d":
            return ids
        separators = torch.full((len(ids), 1), SEPARATOR)
        return torch.cat([ids[:, :5] + 64, separators, ids[:, 5:]], dim=1)

    def logits(self, sequence: Tensor, classes: Tensor, file: str = "ar/model") -> Tensor:
        """The prior's logits at every position."""
        t = self.files[file]
        x = torch.cat([t["bos_emb.weight"][classes][:, None], t["semantic_emb.weight"][sequence[:, :-1]]], dim=1)
        places = [(float(index), 0.0, 0.0, 10000.0) for index in range(sequence.shape[1])]
        return _output(t, "ar_model", _run(t, "ar_model", x, 2, places, axes=(8, 4, 4), causal=True))

    def greedy(self, classes: Tensor) -> Tensor:
        """The likeliest allowed id at every position, one after the other."""
        segments = (
            [(0, 64, 7)] if self.name == "1d" else [(64, SEPARATOR, 5), (SEPARATOR, SEPARATOR + 1, 1), (0, 64, 16)]
        )
        sequence = torch.zeros(len(classes), 0, dtype=torch.long)
        for first, end, count in segments:
            for _ in range(count):
                seen = torch.cat([sequence, torch.zeros(len(classes), 1, dtype=torch.long)], dim=1)
                best = self.logits(seen, classes)[:, -1, first:end].argmax(dim=-1, keepdim=True) + first
                sequence = torch.cat([sequence, best], dim=1)
        return sequence


def _on_grid(columns: int) -> Places:
    return [(float(patch // columns), float(patch % columns), 0.0, 2000.0) for patch in range(GRID * GRID)]


def _in_line(count: int) -> Places:
    return [(0.0, 0.0, float(index), 10000.0) for index in range(count)]


def _patches(images: Tensor) -> Tensor:
    corners = [(PATCH * row, PATCH * column) for row in range(GRID) for column in range(GRID)]
    cut = [images[:, :, y : y + PATCH, x : x + PATCH].permute(0, 2, 3, 1).flatten(1) for y, x in corners]
    return torch.stack(cut, dim=1)


def _image(patches: Tensor) -> Tensor:
    squares = [patch.reshape(-1, PATCH, PATCH, 3).permute(0, 3, 1, 2) for patch in patches.unbind(1)]
    rows = [torch.cat(squares[GRID * row : GRID * (row + 1)], dim=3) for row in range(GRID)]
    return torch.cat(rows, dim=2)


def _linear(t: Tensors, name: str, x: Tensor) -> Tensor:
    return x @ t[f"{name}.weight"].T + t.get(f"{name}.bias", torch.zeros(()))


def _unit(x: Tensor) -> Tensor:
    return x / x.square().sum(dim=-1, keepdim=True).sqrt()


def _norm(x: Tensor, scale: Tensor) -> Tensor:
    return x / x.square().mean(dim=-1, keepdim=True).sqrt() * (1 + scale)


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _condition(t: Tensors, prefix: str) -> Tensor:
    unconditional = torch.eye(CLASSES + 1)[-1]
    return _gelu(_norm(_linear(t, f"{prefix}.cond_proj.0", unconditional), t[f"{prefix}.cond_proj.1.weight"]))


def _turn(x: Tensor, places: Places, axes: Sequence[int]) -> Tensor:
    """Rotate the channel pairs of ``[..., L, HEAD]``, pair by pair."""
    out, channel = x.clone(), 0
    for axis, size in enumerate(axes):
        for pair in range(size // 2):
            angle = torch.tensor([place[axis] * place[3] ** (-2 * pair / size) for place in places])
            even, odd = x[..., channel], x[..., channel + 1]
            out[..., channel] = even * angle.cos() - odd * angle.sin()
            out[..., channel + 1] = even * angle.sin() + odd * angle.cos()
            channel += 2
    return out


def _run(
    t: Tensors, prefix: str, x: Tensor, depth: int, places: Places, axes: Sequence[int] = AXES, causal: bool = False
) -> Tensor:
    condition = _condition(t, prefix)

    def heads(part: Tensor) -> Tensor:
        return torch.stack(part.split(HEAD, dim=-1), dim=1)

    for block in range(depth):
        name = f"{prefix}.layers.{block}"
        y = _norm(x, _linear(t, f"{name}.adaln_1.affine", condition))
        keys, values = _linear(t, f"{name}.attn1.to_kv", y).chunk(2, dim=-1)
        q = _turn(_norm(heads(_linear(t, f"{name}.attn1.to_q", y)), t[f"{name}.attn1.q_norm.weight"]), places, axes)
        k = _turn(_norm(heads(keys), t[f"{name}.attn1.k_norm.weight"]), places, axes)
        scores = q @ k.transpose(-1, -2) / math.sqrt(HEAD)
        if causal:
            scores = scores + torch.full(scores.shape[-2:], -math.inf).triu(1)
        mixed = torch.cat((scores.softmax(dim=-1) @ heads(values)).unbind(1), dim=-1)
        x = x + _linear(t, f"{name}.gate1", condition) * _linear(t, f"{name}.attn1.proj", mixed)
        y = _norm(x, _linear(t, f"{name}.adaln_mlp.affine", condition))
        plain, gate = _linear(t, f"{name}.ffn.fc1", y).chunk(2, dim=-1)
        x = x + _linear(t, f"{name}.gate_mlp", condition) * _linear(t, f"{name}.ffn.fc2", plain * _gelu(gate))
    return x


def _output(t: Tensors, prefix: str, x: Tensor) -> Tensor:
    x = _norm(x, _linear(t, f"{prefix}.out_norm.affine", _condition(t, prefix)))
    return _linear(t, f"{prefix}.out", x)


def _nearest(t: Tensors, name: str, x: Tensor) -> Tensor:
    return (_unit(_linear(t, f"{name}.proj_in", x)) @ _unit(t[f"{name}.embedding.weight"]).T).argmax(dim=-1)
