"""Imports a directory of the Prologue release: its safetensors files become model files of ours.

A file's role is its number (docs/prologue.md, section 11): tokenizer ``model`` encoder and quantizers, ``model_1`` decoder,
``model_2`` and ``model_3`` their EMA; OneStage ``model_5`` prior, ``model_6`` its EMA; prior ``model``, ``model_1``
its EMA. The models that were trained together are numbered in their order, so what follows ``model_3`` differs between
tokenizers (Post has no discriminator, 1D and 2D no prior); no more than these are read. The pickles beside them are
never opened. No file is held in memory: see :mod:`overture.interop.streamed_copy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from overture.config import from_dict, to_dict
from overture.errors import OvertureError, UsageError, nearest
from overture.interop.locations import Location, open_location
from overture.interop.names import NOT_WEIGHTS, POSITION_MASK, release_name
from overture.interop.release_config import read_config
from overture.interop.releases import RELEASES, Release
from overture.interop.streamed_copy import StoredTensor, write_model
from overture.layout import Layout
from overture.model_files import read_metadata
from overture.tokenizers.config import TokenizerConfig

__all__ = ["Imported", "import_release"]

Role = tuple[str, ...]
"""The files that together hold one set of weights."""

_TOKENIZER = {"raw": ("model", "model_1"), "ema": ("model_2", "model_3")}
_ONE_STAGE = {"raw": ("model", "model_1"), "ema": ("model", "model_1")}
_ONE_STAGE_NOTE = (
    "one stage: raw weights are the published ones, so both roles hold them; the EMA of the release is left out"
)
_PRIOR = {"raw": ("model",), "ema": ("model_1",)}
_JOINT_PRIOR = {"raw": ("model_5",), "ema": ("model_6",)}

TIED = ("ar_model.out.weight", "semantic_emb.weight")
"""Where the output matrix is the table of embeddings, it may lie under either name."""


@dataclass(frozen=True)
class Imported:
    """One model file that was written: ``files`` of the release by role of the weights, ``parameters`` of a role."""

    kind: str
    path: Path
    files: dict[str, list[str]]
    parameters: int
    layout: Layout
    weights_hash: str


def import_release(source: str | Path, out: Path, config: Path | None = None) -> list[Imported]:
    """Write ``out/tokenizer/model.safetensors`` or ``out/prior/model.safetensors`` (or both) from a release directory.

    ``source`` is a directory or on the hub (``hf:Zyriix/prologue/2d-tokenizer``); its name says its sizes, unless they come
    from a ``config`` file of the release. With a tokenizer and its prior in one ``out``, ``out`` is used like a run.
    Missing, unexpected or misshapen tensors, damaged files and pickles raise :class:`OvertureError`.
    """
    location = open_location(source)
    release, one_stage = _what(location, config)
    done = []
    if release.has_tokenizer:
        done.append(_import_tokenizer(location, release.tokenizer, one_stage, out))
    if release.prior is not None:
        roles = _JOINT_PRIOR if release.has_tokenizer else _PRIOR
        done.append(_import_prior(location, release, roles, out))
    return done


def _what(location: Location, config: Path | None) -> tuple[Release, bool]:
    """What the directory holds, and whether it was trained in one stage."""
    if config is None:
        if location.name not in RELEASES:
            raise UsageError(
                f"{location}: no released directory is called '{location.name}'{nearest(location.name, RELEASES)}; "
                "other sizes need --config with the release's config_resolved.json"
            )
        release = RELEASES[location.name]
        return release, release.has_tokenizer and release.prior is not None
    if location.has("model") and any(name.startswith("ar_model.") for name in _contents(location.file("model"))):
        release, _ = read_config(config)
        if release.prior is None:
            raise OvertureError(f"{config}: ARModel is missing, and {location} holds a prior")
        return replace(release, has_tokenizer=False), False
    release, one_stage = read_config(config, prior=False)
    if not one_stage and location.name != "prologue-onestage-joint":
        return release, False
    release, _ = read_config(config)
    if release.prior is None:
        raise OvertureError(f"{config}: ARModel is missing, and {location} holds a prior beside its tokenizer")
    return release, True


def _import_tokenizer(location: Location, config: TokenizerConfig, one_stage: bool, out: Path) -> Imported:
    roles: Mapping[str, Role] = _ONE_STAGE if one_stage else _TOKENIZER
    if not one_stage and not location.has("model") and not location.has("model_1"):
        roles = {"ema": _TOKENIZER["ema"]}
    with torch.device("meta"):
        shapes = _shapes(config.build())
    weights = {role: _collect(location, files, shapes) for role, files in roles.items()}
    config = _with_sizes(config, [location.file(files[0]) for files in roles.values()])
    _check_neighbour(out / "prior" / "model.safetensors", "prior", config.layout)
    about: dict[str, Any] = {"config": to_dict(config), "source": {"release": location.pinned, "files": roles}}
    if one_stage:
        about["note"] = _ONE_STAGE_NOTE
    return _write(out, "tokenizer", weights, shapes, about, roles, config.layout)


def _import_prior(location: Location, release: Release, roles: Mapping[str, Role], out: Path) -> Imported:
    assert release.prior is not None
    if not location.has(roles["ema"][0]):
        roles = {"raw": roles["raw"]}
    layout = _check_neighbour(out / "tokenizer" / "model.safetensors", "tokenizer", release.tokenizer.layout)
    with torch.device("meta"):
        shapes = _shapes(release.prior.build(layout))
    weights = {role: _collect(location, files, shapes) for role, files in roles.items()}
    about = {
        "config": to_dict(release.prior),
        "layout": layout.to_dict(),
        "source": {"release": location.pinned, "files": roles},
    }
    return _write(out, "prior", weights, shapes, about, roles, layout)


def _write(
    out: Path,
    kind: str,
    weights: dict[str, dict[str, StoredTensor]],
    shapes: dict[str, tuple[int, ...]],
    about: dict[str, Any],
    roles: Mapping[str, Role],
    layout: Layout,
) -> Imported:
    path = out / kind / "model.safetensors"
    digest = write_model(path, kind, weights, shapes, about)
    files = {role: [f"{name}.safetensors" for name in names] for role, names in roles.items()}
    parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
    return Imported(kind, path, files, parameters, layout, digest)


def _check_neighbour(path: Path, kind: str, layout: Layout) -> Layout:
    """The layout to use beside a model that was imported before: its own where only it knows sizes per position."""
    if not path.is_file():
        return layout
    metadata = read_metadata(path, kind)
    if kind == "prior":
        other = Layout.from_dict(metadata["layout"])
    else:
        other = from_dict(TokenizerConfig, metadata["config"], where=f"{path}: config").layout
    same = [(s.name, len(s), s.codebook_size, s.separator) for s in layout.segments] == [
        (s.name, len(s), s.codebook_size, s.separator) for s in other.segments
    ]
    if not same or (kind == "prior" and layout != other):
        raise OvertureError(
            f"{path}: this {kind} has {other}, not {layout}; import models of one kind of tokens into one directory, "
            "the tokenizer first"
        )
    return other


def _shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _contents(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, by name; anything else is told by what it is."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            slices = {name: opened.get_slice(name) for name in names}
            return {n: StoredTensor(file, n, tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
    except (OSError, SafetensorError) as error:
        with file.open("rb") as raw:
            start = raw.read(9)
        if start[8:] != b"{" and (start[:4] == b"PK\x03\x04" or start[:1] == b"\x80"):
            raise OvertureError(f"{file}: is a pickle named .safetensors; it was not opened") from error
        reason = str(error).splitlines()[0]
        raise OvertureError(f"{file}: truncated or not a safetensors file ({reason}); download it again") from error


def _collect(location: Location, files: Role, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, StoredTensor]:
    """The tensors of ``files`` under our names, if they are exactly those that ``shapes`` expects."""
    paths = [location.file(name) for name in files]
    ours = {release_name(name): name for name in shapes}
    collected: dict[str, StoredTensor] = {}
    for number, path in enumerate(paths):
        here = {theirs: name for theirs, name in ours.items() if theirs.startswith("dec.") == (number == 1)}
        found = {name: tensor for name, tensor in _contents(path).items() if not NOT_WEIGHTS.fullmatch(name)}
        if TIED[0] not in here and TIED[1] in here:
            found = _one_of_two(found)
        wrong = [f"{name} is unexpected" for name in sorted(found.keys() - here.keys())]
        wrong += [f"{name} is missing" for name in sorted(here.keys() - found.keys())]
        for theirs in sorted(here.keys() & found.keys()):
            tensor, shape = found[theirs], shapes[here[theirs]]
            expected = (1, *shape) if theirs.endswith("learnable_query") else shape
            if tensor.shape != expected:
                wrong.append(f"{theirs} is {list(tensor.shape)}, expected {list(expected)}")
            elif not tensor.is_float:
                wrong.append(f"{theirs} is {tensor.dtype}, expected floating point numbers")
            collected[here[theirs]] = tensor
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise OvertureError(f"{path}: {'; '.join(wrong[:3])}{more}")
    return collected


def _one_of_two(found: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The output matrix that is the table of embeddings lies under either name, or equal under both: keep the table."""
    output, table = TIED
    if output not in found:
        return found
    kept = {name: tensor for name, tensor in found.items() if name != output}
    if table not in found:
        return {**kept, table: found[output]}
    if not torch.equal(found[output].load(), found[table].load()):
        raise OvertureError(f"{found[table].file}: {output} differs from {table}, though the config ties them")
    return kept


def _with_sizes(config: TokenizerConfig, files: list[Path]) -> TokenizerConfig:
    """The config with the codebook sizes of the stored position masks, where these do not allow everything."""
    contents = [_contents(file) for file in files]
    segments = []
    for entry, segment in zip(config.segments, config.layout.segments, strict=True):
        theirs = release_name(f"quantizers.{segment.name}.codebook").replace("embedding.weight", POSITION_MASK)
        masks = [tensors[theirs] for tensors in contents if theirs in tensors]
        found = [_prefix_sizes(mask, (len(segment), segment.codebook_size)) for mask in masks]
        for mask, sizes in zip(masks, found, strict=True):
            if sizes != found[0]:
                raise OvertureError(f"{mask.file}: {theirs} differs from the one in {masks[0].file.name}")
        if found and found[0] != segment.sizes:
            entry = replace(entry, codebook=replace(entry.codebook, schedule="explicit", explicit=found[0]))
        segments.append(entry)
    return replace(config, segments=tuple(segments))


def _prefix_sizes(stored: StoredTensor, shape: tuple[int, int]) -> tuple[int, ...]:
    """Codebook sizes of a mask ``[positions, codes]`` that allows the first codes (0) and forbids the rest (-inf).

    It may have rows to spare: 1D writes one for every patch, also where it has fewer tokens.
    """
    where = f"{stored.file}: {stored.name}"
    if len(stored.shape) != 2 or stored.shape[0] < shape[0] or stored.shape[1] != shape[1]:
        raise OvertureError(f"{where} is {list(stored.shape)}, expected {list(shape)}")
    mask: Tensor = stored.load()[: shape[0]]
    allowed = mask == 0
    sizes = allowed.sum(dim=1)
    is_prefix = torch.equal(allowed, torch.arange(shape[1]) < sizes[:, None])
    if not is_prefix or not torch.isneginf(mask[~allowed]).all() or int(sizes.min()) < 1 or int(sizes.max()) < shape[1]:
        raise OvertureError(f"{where} does not allow the first codes of every position, up to all; it has no layout")
    return tuple(sizes.tolist())
