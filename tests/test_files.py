"""Files: whole or not at all, on the disk before their name, with the user's rights; nothing left of the dead."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from overture import files
from overture.errors import OvertureError
from overture.files import (
    append_line,
    near_path,
    read_json,
    read_json_lines,
    read_record,
    remove_leftovers,
    replacing,
    write_json,
    write_record,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def broken_off(path: Path, failure: BaseException) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise failure


@pytest.fixture
def dead() -> int:
    """The number of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# -- writing ------------------------------------------------------------------------------------------------------------


def test_what_was_there_stays_until_the_new_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with replacing(path) as temporary:
        temporary.write_text("old")
    for failure in (KeyboardInterrupt(), ValueError("no"), MemoryError()):
        with pytest.raises(type(failure)):
            broken_off(path, failure)
        assert names(path.parent) == ["a.txt"]
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert (path.read_text(), names(path.parent)) == ("new", ["a.txt"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_failure_to_write_is_one_line_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    path = tmp_path / "a.txt"
    reason = "the disk is full; free some space" if number == errno.ENOSPC else "Permission denied"
    with pytest.raises(OvertureError, match=rf"a\.txt: cannot write it \({reason}"):
        broken_off(path, OSError(number, os.strerror(number)))
    assert names(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_content_is_on_the_disk_before_its_name_and_the_name_before_we_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut there is the old file or the new one: not a name without content."""
    order: list[str] = []
    replace, fsync = os.replace, os.fsync

    def synced(handle: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{handle}"))
        order.append(f"sync {place.name}")
        fsync(handle)

    def renamed(old: Path, new: Path) -> None:
        order.append(f"rename {new.name}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("content")
    assert order == ["sync a.txt", "rename a.txt", f"sync {tmp_path.name}"]
    order.clear()
    with replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "b.txt").write_text("content")
    assert order == ["sync b.txt", "sync folder", "rename folder", f"sync {tmp_path.name}"]


def test_a_folder_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    def write(text: str) -> None:
        with replacing(tmp_path / "step") as temporary:
            temporary.mkdir()
            (temporary / "a.txt").write_text(text)

    write("first")
    with pytest.raises(OvertureError, match="step: cannot write it"):
        write("second")
    assert (tmp_path / "step" / "a.txt").read_text() == "first"
    assert names(tmp_path) == ["step"]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_have_the_rights_that_the_user_gives(tmp_path: Path, mask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that a library writes for the owner alone."""
    monkeypatch.setattr(files, "_UMASK", mask)
    with replacing(tmp_path / "a") as temporary:
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    with replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        os.close(os.open(temporary / "b", os.O_CREAT | os.O_WRONLY, 0o600))
    for path in (tmp_path / "a", tmp_path / "folder" / "b"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_the_mask_is_that_of_the_process_and_stays_it() -> None:
    code = "import os; os.umask(0o027); from overture import files; print(files._UMASK, os.umask(0))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == [str(0o027)] * 2


# -- leftovers ----------------------------------------------------------------------------------------------------------


def test_what_the_dead_have_left_is_removed_and_what_the_living_write_is_not(tmp_path: Path, dead: int) -> None:
    here = files._HOST
    gone = [f".a.txt.{here}-{dead}.partial", f".a.txt.{dead}.partial", f".a.txt.{here}-{os.getpid()}.partial"]
    stays = [f".a.txt.{here}-{os.getppid()}.partial", ".a.txt.elsewhere-77.partial", f".b.txt.{here}-{dead}.partial"]
    for name in (*gone, *stays):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert names(tmp_path) == sorted([*stays, "a.txt"])
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([*stays[:2], "a.txt"])
    os.utime(tmp_path / stays[1], (0, 0))  # of another machine, and old
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([stays[0], "a.txt"])


def test_leftovers_of_names_with_brackets(tmp_path: Path, dead: int) -> None:
    (tmp_path / f".a[1].txt.{files._HOST}-{dead}.partial").touch()
    (tmp_path / f".a1.txt.{files._HOST}-{dead}.partial").touch()
    with replacing(tmp_path / "a[1].txt") as temporary:
        temporary.write_text("whole")
    assert names(tmp_path) == [f".a1.txt.{files._HOST}-{dead}.partial", "a[1].txt"]


def test_a_killed_writer_leaves_no_half_file(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from overture.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "a.txt"
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    assert not path.exists()
    assert len(names(tmp_path)) == 1
    write_json(path, {})
    assert names(tmp_path) == ["a.txt"]


# -- JSON ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "holds a list, expected a dict"),
        (b"3", "holds a int, expected a dict"),
    ],
)
def test_json_that_is_none_is_one_line(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(OvertureError, match=rf"a\.json: {told}.*; delete it") as caught:
        read_json(path, dict, "delete it")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    for read in (lambda path: read_json(path, dict), read_json_lines):
        with pytest.raises(OvertureError, match="cannot read it"):
            read(tmp_path)
    with pytest.raises(OvertureError, match="cannot read it"):
        read_json(tmp_path / "none.json", dict)
    assert read_json_lines(tmp_path / "none.jsonl") == []


def test_numbers_that_json_has_no_words_for_are_not_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    for value in (float("nan"), float("inf")):
        for write in (write_json, write_record, append_line):
            with pytest.raises(ValueError, match="JSON"):
                write(tmp_path / "a.json", {"a": value})
    assert read_json(tmp_path / "a.json", dict) == {"a": 1}


def test_records_tell_when_they_were_changed(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_record(path, {"fid": 3.5, "sizes": (1, 2), "é": {"b": None, "a": True}})
    assert read_record(path) == {"fid": 3.5, "sizes": [1, 2], "é": {"b": None, "a": True}}
    data = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(data.items()))))  # spaces and the order of keys say nothing
    assert read_record(path)["fid"] == 3.5
    for change in ({"fid": 2.5}, {"new": 0}, {"checksum": "0" * 16}, {"sizes": [2, 1]}):
        path.write_text(json.dumps({**data, **change}))
        with pytest.raises(
            OvertureError, match=r"results\.json: was changed since it was written; measure again .*checksum"
        ):
            read_record(path, "measure again")
    del data["checksum"]
    path.write_text(json.dumps({**data, "fid": 2.5}))  # meant, or of version 0.1.0
    assert read_record(path)["fid"] == 2.5


def test_a_line_that_was_broken_off_is_cut_and_the_others_kept(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.jsonl"
    for number in range(3):
        append_line(path, {"step": number})
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    assert read_json_lines(path) == [{"step": 0}, {"step": 1}]
    append_line(path, {"step": 9})
    assert read_json_lines(path) == [{"step": 0}, {"step": 1}, {"step": 9}]
    path.write_bytes(b'{"ste')  # the first line of all
    append_line(path, {"step": 0})
    assert read_json_lines(path) == [{"step": 0}]


@pytest.mark.parametrize(
    "line", ["{", "[1]", "3", "\xff", "[" * 100_000, '{"stage": "a"}', '{"stage": "a", "step": true}']
)
def test_lines_that_are_none_are_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"stage": "a", "step": 1}\n' + line + "\n", encoding="latin-1")
    with pytest.raises(OvertureError, match=r"a\.jsonl: damaged \(line 2.*repair or delete it") as caught:
        read_json_lines(path, stage=str, step=int)
    assert "\n" not in str(caught.value)


# -- hints --------------------------------------------------------------------------------------------------------------


def test_a_hint_only_where_a_name_is_near(tmp_path: Path) -> None:
    for name in ("photos", ".ssh", "runs/quickstart"):
        (tmp_path / name).mkdir(parents=True)
    assert near_path(tmp_path / "photo") == f" (did you mean '{tmp_path / 'photos'}'?)"
    assert near_path(tmp_path / "rusn" / "quickstart" / "vcq") == f" (did you mean '{tmp_path / 'runs'}'?)"
    for far in ("~", "ssh", ".shs", "pictures"):
        assert near_path(tmp_path / far) == ""
