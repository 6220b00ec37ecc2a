"""Sizes from a configuration as the Prologue release writes it (``config_resolved.json``).

Its names are not ours: ``num_classes`` counts the unconditional class, the "semantic" quantizer and encoder are the
prologue's, ``use_eos`` is the separator, ``concat`` means "patches, then learned queries". What our models cannot be
is refused, by name. The file of a tokenizer's own training may describe a joint prior that ours cannot be; that matters
only to who imports the prior.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from overture.errors import OvertureError
from overture.files import read_json
from overture.interop.releases import Release
from overture.nn.transformer import TransformerConfig
from overture.priors.model import PriorConfig
from overture.quantizers import QuantizerConfig, SoftConfig, VectorConfig
from overture.schedules import CodebookConfig
from overture.tokenizers.config import SegmentConfig, TokenizerConfig

__all__ = ["read_config"]

_TRANSFORMER = {
    "rope": True, "abs_pos": False, "norm_layer": "RMSNorm", "ffn_type": "geglu", "bos_zero_rope": False, "out_act": False,
}  # fmt: skip
_TOKENIZER = {**_TRANSFORMER, "causal": False}
_QUANTIZER = {"z_norm_type": "l2", "codebook_proj": "l2"}
_PRIOR = {
    **_TRANSFORMER, "causal": True, "conditional_injection": "llamagen", "context_type": "none",
    "rope_input_type": "l", "temperature": 1.0,
}  # fmt: skip
_POST = {"semantic_input_type": "encoder_output"}


def read_config(path: Path, *, prior: bool = True) -> tuple[Release, bool]:
    """The models of a configuration file, and whether they were trained in one stage (so that the prior lies beside
    the tokenizer and raw weights were published). Without ``prior``, what the file says about one is not read."""
    data = read_json(path, dict, "give the config of the release")
    top = _Section(path, "", data)
    one_stage = bool(data.get("continuous_training", False))
    return Release(_tokenizer(top), _prior(top) if prior and "ARModel" in data else None), one_stage


class _Section:
    """An object of the file; a missing or impossible value is told by its dotted name."""

    def __init__(self, path: Path, name: str, data: dict[str, Any]) -> None:
        self.path, self.name, self.data = path, name, data

    def section(self, key: str) -> _Section:
        value = self.data.get(key)
        if not isinstance(value, dict):
            raise OvertureError(f"{self.path}: {self.name}{key} is missing")
        return _Section(self.path, f"{self.name}{key}.", value)

    def number(self, key: str) -> float:
        value = self.data.get(key)
        fraction = re.fullmatch(r"(\d{1,9})(?:/([1-9]\d{0,8}))?", value) if isinstance(value, str) else None
        if fraction:
            return int(fraction[1]) / int(fraction[2] or 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e15:
            what = "is missing" if value is None else f"is {value!r}, expected a number"
            raise OvertureError(f"{self.path}: {self.name}{key} {what}")
        return float(value)

    def integer(self, key: str) -> int:
        value = self.number(key)
        if value != int(value):
            raise OvertureError(f"{self.path}: {self.name}{key} is {value}, expected a whole number")
        return int(value)

    def flag(self, key: str) -> bool:
        value = self.data.get(key, False)
        if not isinstance(value, bool):
            raise OvertureError(f"{self.path}: {self.name}{key} is {value!r}, expected true or false")
        return value

    def axes(self) -> tuple[int, int, int]:
        value = self.data.get("rope_axes_dim")
        if not isinstance(value, list) or len(value) != 3 or not all(isinstance(item, int) for item in value):
            raise OvertureError(f"{self.path}: {self.name}rope_axes_dim is {value!r}, expected three numbers")
        return value[0], value[1], value[2]

    def require(self, expected: dict[str, Any]) -> None:
        """Refuse values that would make another model than ours; keys that are left out are taken as expected."""
        for key, value in expected.items():
            if self.data.get(key, value) != value:
                raise OvertureError(
                    f"{self.path}: {self.name}{key} is {self.data[key]!r}; only {value!r} can be imported"
                )

    def transformer(self, expected: dict[str, Any]) -> TransformerConfig:
        self.require(expected)
        return TransformerConfig(
            self.integer("dim"),
            self.integer("layer_num"),
            self.integer("heads"),
            self.number("mlp_ratio"),
            self.integer("cond_dim"),
        )

    def quantizer(self) -> tuple[CodebookConfig, QuantizerConfig]:
        self.require(_QUANTIZER)
        kinds: dict[Any, QuantizerConfig] = {
            "VQ": VectorConfig(self.integer("z_dim"), commitment=self.number("vq_beta")),
            "ProbQ": SoftConfig(self.integer("z_dim"), temperature=self.number("temperature")),
        }
        kind = self.data.get("ste")
        if not isinstance(kind, str) or kind not in kinds:
            raise OvertureError(f"{self.path}: {self.name}ste is {kind!r}; only VQ and ProbQ can be imported")
        return CodebookConfig(k_max=self.integer("codebook_size")), kinds[kind]


def _tokenizer(top: _Section) -> TokenizerConfig:
    top.require({"ae_no_label": True, **({"share_semantic_codebook": False} if top.data.get("Prologue") else {})})
    encoder, decoder = top.section("Encoder"), top.section("Decoder")
    has_prologue = bool(top.data.get("Prologue"))
    has_post = has_prologue and not top.data.get("share_semantic_encoder", True)
    is_1d = not has_prologue and encoder.data.get("context_type") == "concat"
    codebook, quantizer = top.section("Quantizer").quantizer()
    queries = top.integer("z_len") if is_1d else 0
    segments = [SegmentConfig("visual", "queries" if is_1d else "patches", queries, codebook, quantizer)]
    if has_prologue:
        codebook, quantizer = top.section("SemanticQuantizer").quantizer()
        segments.insert(
            0,
            SegmentConfig(
                "prologue",
                "post" if has_post else "queries",
                top.integer("z_len"),
                codebook,
                quantizer,
                decoded=False,
                separator=bool(top.data.get("use_eos", False)),
            ),
        )
    with_queries = {"context_type": "concat", "rope_input_type": "l", "rope_ctx_type": "hw"}
    without_queries = {"context_type": "none", "rope_input_type": "hw"}
    encoder.require(with_queries if is_1d or (has_prologue and not has_post) else without_queries)
    decoder.require(
        {"context_type": "concat", "rope_input_type": "hw", "rope_ctx_type": "l"} if is_1d else without_queries
    )
    sections = [encoder, decoder]
    if has_post:
        top.require(_POST)
        sections.append(top.section("SemanticEncoder"))
        sections[-1].require(with_queries)
    for section in sections[1:]:
        section.require({"rope_axes_dim": encoder.data.get("rope_axes_dim")})
    grid = top.integer("image_size") // top.integer("patch_size")
    decoder.require({"max_seq_len": grid**2})
    return TokenizerConfig(
        image_size=top.integer("image_size"),
        channels=top.integer("num_channels"),
        patch_size=top.integer("patch_size"),
        num_classes=encoder.integer("cond_input_dim") - 1,
        encoder=encoder.transformer(_TOKENIZER),
        decoder=decoder.transformer(_TOKENIZER),
        rope_axes=encoder.axes(),
        theta_grid=_theta(sections, "hw", TokenizerConfig.theta_grid),
        theta_index=_theta(sections, "l", TokenizerConfig.theta_index),
        segments=tuple(segments),
        post_encoder=sections[2].transformer(_TOKENIZER) if has_post else None,
        encoder_columns=_columns(encoder, grid),
    )


def _columns(encoder: _Section, grid: int) -> int | None:
    """Columns that an encoder without queries counts its patches by: it takes ``max_seq_len`` for the patches of a
    square, and nothing but the positions depends on it (Post: 256 is written out where others refer to the image)."""
    if encoder.data.get("context_type") == "concat" or "max_seq_len" not in encoder.data:
        return None
    columns = math.isqrt(max(encoder.integer("max_seq_len"), 1))
    return None if columns == grid else columns


def _theta(sections: list[_Section], kind: str, default: float) -> float:
    """The one theta of all tokens with positions of a ``kind``."""
    found: dict[float, _Section] = {}
    for section in sections:
        parts = ["input", "ctx"] if section.data.get("context_type") == "concat" else ["input"]
        for part in parts:
            if section.data.get(f"rope_{part}_type") == kind:
                found[section.number("rope_theta" if part == "input" else "rope_ctx_theta")] = section
    if len(found) > 1:
        values = ", ".join(f"{theta:g} in {section.name[:-1]}" for theta, section in found.items())
        raise OvertureError(f"{sections[0].path}: several rope thetas for '{kind}' positions ({values})")
    return next(iter(found), default)


def _prior(top: _Section) -> PriorConfig:
    section = top.section("ARModel")
    size = section.transformer(_PRIOR)
    return PriorConfig(
        dim=size.dim,
        depth=size.depth,
        heads=size.heads,
        ratio=size.ratio,
        condition_dim=size.condition_dim,
        num_classes=section.integer("cond_input_dim") - 1,
        rope_axes=section.axes(),
        theta=section.number("rope_theta"),
        dropout=section.number("drop") if "drop" in section.data else 0.0,
        tied=section.flag("tied_embedding"),
    )
