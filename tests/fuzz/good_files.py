"""Good files of every kind: those of version 0.1.0, written again as this version writes them.

``make(place)`` fills a folder::

    run/                       a finished run, with networks, token files, pictures and what an instrument left
    state/step-00000100/       a checkpoint of a prior         old/    tokens and a checkpoint of version 0.1.0
    ids.npy ids.npz text.txt   anyone's tokens                 record.json  what evaluate writes
    images.npz images.zip samples.{npz,npy} pictures/KIND/     images
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from overture.analysis.guidance_search import Setting, SettingLog
from overture.cli import main
from overture.data.token_files import TokenFile, TokenWriter
from overture.files import read_record, write_json, write_record
from overture.model_files import read_metadata, read_weights, save_model
from overture.nn.classifier import load_classifier, save_classifier
from overture.pictures import save_picture
from overture.processes import Processes
from overture.runs.config import RunConfig
from overture.runs.directory import RunDirectory
from overture.training.checkpoint import resume, save_state
from overture.training.train_prior import PriorTrainer

OLD = Path(__file__).parents[1] / "files_of_0_1_0"
PICTURES = {
    "png": ("RGB", {}), "palette.png": ("P", {}), "alpha.png": ("RGBA", {}), "jpg": ("RGB", {}), "gif": ("P", {}),
    "bmp": ("RGB", {}), "tif": ("RGB", {"compression": "tiff_lzw"}), "webp": ("RGB", {}), "pgm": ("L", {}),
}  # fmt: skip
"""Kinds of image files, with mode and options."""


def make(place: Path) -> None:
    """All of them."""
    shutil.copytree(OLD / "done" / "prologue", place / "run")
    shutil.copytree(OLD / "done" / "networks", place / "run" / "networks")
    shutil.copytree(OLD / "half", place / "old")
    shutil.copy(OLD / "images.npz", place / "images.npz")
    shutil.move(place / "run" / "tokens" / "val.tokens", place / "run" / "tokens" / "held_out.tokens")
    shutil.copy(place / "run" / "tokens" / "held_out.tokens", place / "old" / "old.tokens")
    _models(place / "run")
    _tokens(place)
    _state(place)
    _pictures(place)
    _numbers(place)


def trainer_of(config: RunConfig) -> PriorTrainer:
    """The prior of a run in training."""
    layout = config.tokenizer.layout
    return PriorTrainer(config.prior, config.prior_training, layout, seed=config.seed, processes=Processes())


def _models(run: Path) -> None:
    for kind in ("tokenizer", "prior"):
        path = run / kind / "model.safetensors"
        own = ("format_version", "kind", "weights_hash", "metadata_hash")
        about = {key: value for key, value in read_metadata(path, kind).items() if key not in own}
        save_model(path, kind, {role: read_weights(path, role) for role in ("raw", "ema")}, about)
    classifier, record = load_classifier(run / "networks" / "judge.safetensors")
    save_classifier(classifier, record, run / "networks" / "judge.safetensors")


def _tokens(place: Path) -> None:
    for part in ("train", "held_out"):
        path = place / "run" / "tokens" / f"{part}.tokens"
        old = TokenFile.open(path)
        ids, labels = np.array(old.stored), old.labels
        writer = TokenWriter(path, old.header, block=32)
        for rows in writer.missing():
            writer.write(rows, ids[rows.start : rows.stop], labels[rows.start : rows.stop])
        writer.finish()
    np.save(place / "ids.npy", ids[:, 0].astype(np.int32))
    np.savez(place / "ids.npz", ids=ids[:, 0], labels=labels)
    (place / "text.txt").write_text("The first tokens of an image tell most of what it shows. " * 8)


def _state(place: Path) -> None:
    trainer = trainer_of(RunDirectory(place / "old").read_config())
    resume(trainer, place / "old" / "prior")
    save_state(place / "state", trainer.step, trainer.state_dict())
    shutil.copy(place / "old" / "config.json", place / "state" / "config.json")


def _pictures(place: Path) -> None:
    with np.load(place / "images.npz") as file:
        images = file["images"][:24]
    np.savez(place / "samples.npz", arr_0=images[..., None])
    np.save(place / "samples.npy", images)
    colour = np.stack([images, images[:, ::-1], 255 - images], axis=-1)
    for kind, (mode, how) in PICTURES.items():
        for label, name in enumerate("ab"):
            path = place / "pictures" / kind / name / f"{label}.{kind.split('.')[-1]}"
            path.parent.mkdir(parents=True)
            picture = Image.fromarray(colour[label]).convert(mode)
            if mode == "RGBA":
                picture.putalpha(Image.fromarray(images[label]))
            picture.save(path, **how)
    with zipfile.ZipFile(place / "images.zip", "w") as archive:
        for label, name in enumerate("ab"):
            archive.write(place / "pictures" / "png" / name / f"{label}.png", f"{name}/{label}.png")
    save_picture(torch.from_numpy(images[:, None]), 8, place / "run" / "samples" / "classes.png")


def _done(*words: str) -> None:
    """Run a command in silence."""
    said = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(said):
        status = main(words)
    if status:
        raise RuntimeError(said.getvalue())


def _numbers(place: Path) -> None:
    run = RunDirectory(place / "run")
    reference, network = str(run.reference), f"domain:{run.judge}"
    how = ["--network", network, "--json"]
    out = str(place / "record.json")
    _done("evaluate", str(place / "samples.npz"), "--make-reference", reference, "--keep-images", "12", *how)
    _done("evaluate", str(place / "samples.npy"), "--reference", reference, "--out", out, *how)
    record = read_record(place / "record.json")
    write_record(place / "record.json", {**record, "samples": "samples.npy", "reference": "run/networks/reference.npz"})
    write_record(run.config, json.loads(run.config.read_text()))
    run.write_results(run.read_results())
    parts = {
        name: {"source": "images.npz", "images": n, "fingerprint": "0" * 16}
        for name, n in (("train", 100), ("held_out", 20))
    }
    write_record(run.data, parts)
    log = SettingLog(place / "search.jsonl", {"network": "domain"})
    for scale in (1.0, 1.5, 2.0):
        log.add(Setting(scale, "constant"), 200, 3.25 * scale)
    shutil.copy(OLD.parent / "golden" / "prologue" / "config_resolved.json", place / "release.json")
    torch.save({"head.weight": torch.arange(12.0).reshape(3, 4), "head.bias": torch.ones(3)}, place / "network.pth")
    entry = {"title": "An instrument", "caption": "What it shows.", "figure": "probe.png"}
    run.instruments.mkdir()
    write_json(run.instruments / "probe.json", entry)
    shutil.copy(run.samples / "classes.png", run.instruments / "probe.png")
