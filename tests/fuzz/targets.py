"""What is fuzzed: a file, the changes to try on it, and who reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import array_mutators as arrays
import mutators
import picture_mutators as pictures
import readers
import tensor_mutators as tensors
from good_files import PICTURES
from mutators import Mutation


@dataclass(frozen=True)
class Target:
    """One file in the folder of :func:`good_files.make`, and who reads it."""

    name: str
    file: str
    read: Callable[[], str]
    """In that folder."""
    mutations: tuple[Mutation, ...]
    protected: bool = False
    """Whether a checksum covers all numbers: then a file that is accepted means what the good one means, unless its hashes
    were written anew. Otherwise whatever stands in the file is what it means."""
    every: int = 1
    """Tried in one round of so many: a page takes a second."""


def _page(name: str, file: str, own: tuple[Mutation, ...], protected: bool = False) -> Target:
    return Target(f"page: {name}", f"run/{file}", readers.report, own, protected, every=20)


def _state_file(name: str, own: tuple[Mutation, ...]) -> Target:
    return Target(f"state: {name}", f"state/step-00000100/{name}", lambda: readers.state("state"), own, protected=True)


def _picture(kind: str) -> Target:
    file = f"pictures/{kind}/a/0.{kind.split('.')[-1]}"
    own = pictures.PNG if kind.endswith("png") else pictures.PICTURE
    return Target(f"picture: {kind}", file, lambda: readers.images(f"pictures/{kind}"), own)


TARGETS = (
    Target(
        "tokens", "run/tokens/train.tokens", lambda: readers.tokens("run/tokens/train.tokens"), tensors.TOKENS, True
    ),
    Target("tokens of 0.1.0", "old/old.tokens", lambda: readers.tokens("old/old.tokens"), ()),
    Target("ids.npy", "ids.npy", lambda: readers.command("entropy", "ids.npy", "--json"), arrays.NPY),
    Target(
        "ids.npz", "ids.npz", lambda: readers.command("entropy", "ids.npz", "--json", "--per-class"), arrays.NPZ, True
    ),
    Target("text", "text.txt", lambda: readers.command("entropy", "text.txt", "--json", "--text-tokens", "8"), ()),
    Target("images.npz", "images.npz", lambda: readers.images("images.npz"), arrays.NPZ, True),
    Target("images.zip", "images.zip", lambda: readers.images("images.zip"), pictures.ZIP, True),
    *map(_picture, PICTURES),
    Target("samples.npz", "samples.npz", lambda: readers.measured("samples.npz"), arrays.NPZ, True),
    Target("samples.npy", "samples.npy", lambda: readers.measured("samples.npy"), arrays.NPY),
    Target("reference", "run/networks/reference.npz", lambda: readers.measured("samples.npy"), arrays.NPZ, True),
    Target("judge", "run/networks/judge.safetensors", readers.judge, tensors.MODEL, True),
    Target("tokenizer", "run/tokenizer/model.safetensors", lambda: readers.model("tokenizer"), tensors.MODEL, True),
    Target("prior", "run/prior/model.safetensors", lambda: readers.model("prior"), tensors.MODEL, True),
    _state_file("state.safetensors", tensors.TENSORS),
    _state_file("state.json", mutators.JSON),
    _state_file("hashes.json", mutators.JSON),
    Target("old state.json", "old/prior/step-00000100/state.json", lambda: readers.state("old/prior"), mutators.JSON),
    Target(
        "old state.safetensors",
        "old/prior/step-00000100/state.safetensors",
        lambda: readers.state("old/prior"),
        tensors.TENSORS,
    ),
    Target("config", "run/config.json", readers.config, mutators.RECORD, True),
    Target("results", "run/results.json", readers.results, mutators.RECORD, True),
    Target("record", "record.json", readers.record, mutators.RECORD, True),
    Target("data", "run/data.json", readers.data, mutators.RECORD, True),
    Target("classes", "run/classes.json", readers.class_names, mutators.JSON),
    Target("monitor", "run/watch-prior.jsonl", readers.monitor, mutators.LINES),
    Target("search", "search.jsonl", readers.search, mutators.LINES),
    Target("release", "release.json", readers.release, mutators.JSON),
    Target("weights", "network.pth", readers.weights, ()),
    Target("words of the config", "run/config.json", readers.words_of_page, mutators.RECORD, True),
    Target("words of the results", "run/results.json", readers.words_of_page, mutators.RECORD, True),
    Target("words of the metrics", "run/metrics.jsonl", readers.words_of_page, mutators.LINES),
    Target("words of an instrument", "run/instruments/probe.json", readers.words_of_page, mutators.JSON),
    _page("config", "config.json", mutators.RECORD, True),
    _page("results", "results.json", mutators.RECORD, True),
    _page("metrics", "metrics.jsonl", mutators.LINES),
    _page("strip", "samples/classes.png", pictures.PNG),
    _page("weights", "prior/model.safetensors", tensors.MODEL),
)
"""Everything that is fuzzed."""


def names_of(round_: int, only: str = "") -> list[str]:
    """The targets of a round, whose names hold ``only``."""
    return [target.name for target in TARGETS if only in target.name and round_ % target.every == 0]
