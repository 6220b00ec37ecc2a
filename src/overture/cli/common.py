"""What several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overture.errors import OvertureError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from overture.runs.config import RunConfig


def print_json(data: dict[str, Any]) -> None:
    """The one object on stdout that ``--json`` promises."""
    print(json.dumps(data, allow_nan=False))


def parse_numbers(text: str, option: str) -> tuple[int, ...]:
    """``0,1,4`` as ascending numbers without repetition."""
    try:
        return tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        raise UsageError(f"{option} {text}: give whole numbers such as 1,2,4") from None


def find_judge(run: Path) -> Path:
    """The judge of a run: beside it when a recipe has several runs, else in it."""
    judge = find_networks(run) / "judge.safetensors"
    if not judge.is_file():
        raise UsageError(f"{run}: holds no judge; give one with --network domain:FILE")
    return judge


def find_networks(run: Path) -> Path:
    """The folder of a run's networks and of the reference that it reports against."""
    own = run.resolve() / "networks"
    return own if own.is_dir() else own.parent.parent / "networks"


def model_hashes(path: str | Path, *kinds: str) -> dict[str, str]:
    """``tokenizer_hash`` and ``prior_hash``: which models a number is of."""
    from overture.training.checkpoint import find_model, read_metadata

    return {f"{kind}_hash": read_metadata(find_model(path, kind), kind)["weights_hash"] for kind in kinds}


def read_run_config(root: Path) -> RunConfig:
    """The resolved config of a run."""
    from overture.config import from_dict
    from overture.runs.config import RunConfig

    path = root / "config.json"
    try:
        return from_dict(RunConfig, json.loads(path.read_text()), str(path))
    except OSError as error:
        raise UsageError(f"{root}: not a run directory (no readable config.json)") from error
    except ValueError as error:
        raise OvertureError(f"{path}: damaged ({error})") from error


def choose_device(name: str) -> torch.device:
    """``auto`` is the accelerator if there is one."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device '{name}' cannot be used ({str(error).splitlines()[0]})") from error


def check_image_place(out: Path) -> None:
    """Refuse a place that :func:`save_images` has no format for, before the work."""
    if out.suffix not in (".png", ".npz", ""):
        raise UsageError(f"--out {out}: give a .png (one grid), an .npz (ADM style), or a folder")


def save_images(images: Tensor, labels: Tensor, out: Path, columns: int = 8) -> None:
    """uint8 ``[N, C, H, W]`` as one PNG grid, an ADM-style ``.npz`` (``arr_0`` NHWC, ``arr_1`` labels), or a folder."""
    import numpy as np

    from overture.runs.pictures import picture_grid

    check_image_place(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        picture_grid(images, min(columns, len(images))).save(out)
    elif out.suffix == ".npz":
        np.savez(out, arr_0=images.permute(0, 2, 3, 1).numpy(), arr_1=labels.numpy())
    else:
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            folder = out / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            picture_grid(image[None], 1, gap=0).save(folder / f"{number:06d}.png")
