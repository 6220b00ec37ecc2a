"""What commands do with the files of :func:`good_files.make`, in their folder.

Every reader gives all that a user would see or go on with, as text: a change of any number changes the text.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from good_files import trainer_of

from overture.analysis.guidance_search import SettingLog
from overture.cli import build_parser
from overture.config import to_dict
from overture.data.sources import open_source
from overture.data.stream import DataConfig, TrainingStream
from overture.data.token_files import TokenFile, TokenStream
from overture.evaluation.image_sets import open_images
from overture.evaluation.networks import load_network
from overture.files import read_json
from overture.interop.release_config import read_config
from overture.model_files import read_tensors
from overture.pipeline import Pipeline
from overture.report import page
from overture.report.records import read_records
from overture.report.summary import missing_parts, summary
from overture.report.table import Footnotes, metric_groups, protocol_sentences
from overture.runs.directory import RunDirectory
from overture.runs.monitor import PriorMonitor
from overture.training.checkpoint import resume


def command(*words: str) -> str:
    """The status and the output of a command; its errors are raised as they are."""
    options = build_parser(words[0]).parse_args(words)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        status = options.run(options)
    return f"{status} {out.getvalue()}"


def digest(*parts: Any) -> str:
    """A hash of arrays, tensors, and what prints."""
    state = hashlib.sha256()
    for part in parts:
        part = part.detach() if isinstance(part, torch.Tensor) else part
        array = np.ascontiguousarray(part) if isinstance(part, np.ndarray | torch.Tensor) else None
        state.update(
            repr(part).encode("utf-8", "replace") if array is None else repr(array.dtype).encode() + array.tobytes()
        )
    return state.hexdigest()


def tokens(path: str) -> str:
    """Training on a token file, and its entropy."""
    file = TokenFile.open(path)
    batch = next(TokenStream(file, 4, 0).batches())
    sequence = file.layout.to_sequence(batch.ids)
    shown = command("entropy", path, "--json", "--rows", str(min(50, file.rows)))
    return digest(file.header, np.array(file.stored), file.labels, sequence, batch.labels) + shown


def images(spec: str) -> str:
    """Training on images, and measuring them."""
    source = open_source(spec)
    stream = TrainingStream(source, DataConfig(source=spec, image_size=16, channels=3), 2, 0)
    batch = next(stream.batches())
    seen = list(open_images(spec, 16).batches(np.arange(min(3, len(source))), 2)) if not spec.endswith(".npz") else []
    return digest(batch.images, batch.labels, *seen, source.fingerprint(), source.classes, source.notes)


def measured(samples: str) -> str:
    """The numbers of samples against the reference of the run, by its judge."""
    network, reference = "domain:run/networks/judge.safetensors", "run/networks/reference.npz"
    return command("evaluate", samples, "--reference", reference, "--network", network, "--json", "--device", "cpu")


def model(kind: str) -> str:
    """Pictures of both models, and the page."""
    pipe = Pipeline.load("run")
    used = {"tokenizer": pipe.tokenizer, "prior": pipe.prior}[kind].state_dict()
    return digest(pipe([1], seed=3), pipe.layout, *used.values()) + repr(RunDirectory("run").model_hashes(kind))


def judge() -> str:
    """What the judge says of images."""
    network: Any = load_network("domain:run/networks/judge.safetensors")
    outputs = network.outputs(torch.arange(2 * 28 * 28).reshape(2, 1, 28, 28).remainder(255).byte())
    return digest(outputs.features, outputs.logits, network.record, network.weights_hash, network.notes)


def state(folder: str) -> str:
    """A training that goes on from its checkpoint."""
    trainer = trainer_of(RunDirectory("state").read_config())
    resume(trainer, Path(folder))
    batch = next(TokenStream(RunDirectory("run").token_file("train"), 4, 0).batches(trainer.step % 1000))
    return digest(trainer.logged(trainer.train_batch(batch)), *_flat(trainer.state_dict()))


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [part for key in sorted(value, key=str) for part in (key, *_flat(value[key]))]
    return [part for item in value for part in _flat(item)] if isinstance(value, list | tuple) else [value]


def config() -> str:
    """The config of a run that goes on."""
    read = RunDirectory("run").read_config()
    return digest(to_dict(read), read.tokenizer.layout, read.evaluation.samplings)


def results() -> str:
    """The results of a run, beside another record."""
    return repr(RunDirectory("run").read_results().to_dict()) + command("compare", "run", "record.json", "--json")


def record() -> str:
    """A record of ``evaluate``, for people and for machines."""
    return command("compare", "record.json", "run/results.json") + command("compare", "record.json", "--json")


def report() -> str:
    """The page of a run."""
    command("report", "run")
    return Path("run/report.html").read_text(encoding="utf-8")


def words_of_page() -> str:
    """What a page says, without its figures."""
    records = read_records([RunDirectory("run")])
    notes = Footnotes()
    said = (
        summary(records),
        missing_parts(records),
        metric_groups(records, notes),
        protocol_sentences(records),
        notes.items,
    )
    return repr(
        (said, page.checkpoints(records), page.config_rows(records), page.commands(records), page.entries(records))
    )


def monitor() -> str:
    """What was measured while the prior trained."""
    return repr(PriorMonitor.known(SimpleNamespace(path=Path("run/watch-prior.jsonl"))))  # type: ignore[arg-type]


def search() -> str:
    """Settings of guidance that were tried already."""
    return repr(SettingLog(Path("search.jsonl"), {"network": "domain"})._known)


def release() -> str:
    """The config of a release, as the import reads it."""
    return repr(read_config(Path("release.json")))


def weights() -> str:
    """Weights of anyone's network."""
    return digest(*_flat(read_tensors(Path("network.pth"), "a network")))


def data() -> str:
    """A run that goes on with the same images."""
    parts = {name: _Images("images.npz", count) for name, count in (("train", 100), ("held_out", 20))}
    run = RunDirectory("run")
    classes = tuple(read_json(run.classes, list))
    run.write_or_check_data(SimpleNamespace(**parts, classes=classes))  # type: ignore[arg-type]
    return "the same images"


@dataclass(frozen=True)
class _Images:
    name: str
    count: int

    def __len__(self) -> int:
        return self.count

    def fingerprint(self) -> str:
        return "0" * 16


def class_names() -> str:
    """Samples of a class by its name."""
    from overture.cli.generate import parse_classes
    from overture.runs.class_names import class_names

    names = class_names("run", 10)
    return repr((names, parse_classes("all", names)))
