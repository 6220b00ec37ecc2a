"""What Windows and macOS do otherwise, as far as it can be tried on Linux: workers that are spawned, names, pipes."""

from __future__ import annotations

import ast
import errno
import functools
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from overture import files, pictures, progress
from overture.data.archives import FolderSource
from overture.data.base import ArraySource
from overture.data.stream import DataConfig, TrainingStream, evaluation_batches
from overture.data.tar_index import _make as read_index
from overture.errors import UsageError
from overture.pictures import picture_grid
from overture.processes import choose_device, placed, widest_float
from overture.progress import WireProgress, stop_requested, stoppable

SOURCE = Path(files.__file__).parent


def numbers(count: int) -> ArraySource:
    images = np.random.default_rng(1).integers(0, 256, (count, 6, 6), np.uint8)
    return ArraySource("numbers", images, np.arange(count) % 3, "abc")


def test_data_workers_that_are_spawned_read_the_same_batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Windows and macOS do not fork: a worker is a new interpreter, and gets its reader through a pipe."""
    for index, label in enumerate(numbers(6).labels):
        place = tmp_path / str(label) / f"{index}.png"
        place.parent.mkdir(exist_ok=True)
        picture_grid(torch.from_numpy(numbers(6).images[index])[None, None], 1, gap=0).save(place)
    source = FolderSource("numbers", tmp_path)
    here = [batch.images for batch in evaluation_batches(source, DataConfig(image_size=6, channels=1), 4)]
    monkeypatch.setattr(
        "overture.data.reading.DataLoader", functools.partial(DataLoader, multiprocessing_context="spawn")
    )
    config = DataConfig(image_size=6, channels=1, workers=1)
    there = [batch.images for batch in evaluation_batches(source, config, 4)]
    assert [len(batch) for batch in here] == [4, 2]
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_without_sigchld_workers_work_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("signal.SIGCHLD")
    stream = TrainingStream(numbers(8), DataConfig(image_size=6, workers=1), 8, seed=0).batches()
    assert len(next(stream).indices) == 8
    stream.close()


def test_tars_are_read_where_there_is_no_pread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place, picture = tmp_path / "it.tar", io.BytesIO()
    picture_grid(torch.from_numpy(numbers(1).images)[None], 1, gap=0).save(picture, format="PNG")
    with tarfile.open(place, "w") as tar:
        for name, content in (("a.png", picture.getvalue()), ("a.cls", b"7")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    index = read_index(place)
    monkeypatch.delattr("os.pread")
    again = read_index(place)
    assert (again.words, again.offsets.tolist()) == (index.words, index.offsets.tolist())
    assert again.words == ("7",)


MYPY = [
    "--platform",
    "PLATFORM",
    "--follow-imports",
    "skip",
    "--ignore-missing-imports",
    "--no-incremental",
    "--no-site-packages",
]


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_no_name_is_used_that_a_system_lacks(platform: str) -> None:
    """Of the standard library, by what its type stubs say of Windows and macOS."""
    telling = ("signal", "os", "fcntl", "resource", "pwd", "msvcrt", "select", "ctypes", "multiprocessing")
    wanted = [
        str(path)
        for path in SOURCE.rglob("*.py")
        if any(f"import {name}\n" in path.read_text(encoding="utf-8") for name in telling)
    ]
    words = [platform if word == "PLATFORM" else word for word in MYPY]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", os.devnull, *words, *wanted], capture_output=True, text=True
    )
    lacking = [line for line in done.stdout.splitlines() if "has no attribute" in line and "Module" in line]
    assert done.returncode in (0, 1), done.stderr
    assert lacking == []


def test_every_text_file_is_utf8() -> None:
    """Windows would take the language's own encoding."""
    plain = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _opens_text(node) and "encoding" not in {k.arg for k in node.keywords}:
                plain.append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    assert plain == []


def _opens_text(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    place = 0 if isinstance(call.func, ast.Attribute) else 1  # path.open(mode), open(path, mode)
    mode = call.args[place] if len(call.args) > place else None
    opened = isinstance(mode, ast.Constant) and isinstance(mode.value, str) and set(mode.value) <= set("rwax+t")
    return name in ("read_text", "write_text") or (name == "open" and opened)


def test_leftovers_are_judged_by_their_age_where_processes_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On Windows, signal 0 would be Ctrl-C to the process."""
    monkeypatch.setattr(files, "_WINDOWS", True)
    monkeypatch.setattr(files.os, "kill", lambda *_: pytest.fail("asked by a signal"))
    young, old = (tmp_path / f".model.{files._HOST}-{number}.partial" for number in (1, 2))
    for left in (young, old):
        left.mkdir()
    os.utime(old, (time.time() - 100_000,) * 2)
    with files.replacing(tmp_path / "model") as temporary:
        temporary.write_text("new", encoding="utf-8")
    assert young.exists()
    assert not old.exists()
    assert (tmp_path / "model").read_text(encoding="utf-8") == "new"


def test_class_folders_have_names_that_every_system_can_hold() -> None:
    assert pictures._folder_names(["shirt", "T-shirt/top", 'a:b?"', "end. "]) == [
        "shirt",
        "T-shirt-top",
        "a-b--",
        "end",
    ]
    for names in (["Cat", "cat"], ["con", "b"], ["Aux.x", "b"], ["..", "b"], ["a/b", "a:b"], ["", "b"]):
        folders = pictures._folder_names(names)
        assert [folder.split(" ")[0] for folder in folders] == ["0", "1"]


def test_a_pipe_that_is_closed_stops_politely_whatever_the_error_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def write(self, text: str) -> int:
            raise OSError(errno.EINVAL, "Invalid argument")  # as Windows calls it

        def flush(self) -> None: ...

    monkeypatch.setattr(progress._StopFlag, "raised", False)
    with stoppable():
        monkeypatch.setattr(sys, "stdout", Closed())
        WireProgress().say("hello")
        stopped = stop_requested()
        print(json.dumps("nobody hears this, and nothing breaks"))
    sys.stdout.close()
    assert stopped


def test_mps() -> None:
    if not torch.backends.mps.is_available():
        with pytest.raises(UsageError, match="device 'mps' cannot be used"):
            choose_device("mps")
    assert choose_device("auto").type in ("cpu", "cuda")  # nobody has tried MPS: it is taken when asked for
    assert widest_float(torch.device("mps")) == torch.float32
    assert widest_float(torch.device("cpu")) == torch.float64
    assert placed(torch.ones(2), torch.device("cpu")).sum() == 2
