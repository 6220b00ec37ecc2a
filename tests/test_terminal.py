"""What a person meets in the terminal: help, examples, exit statuses, bars, output that any terminal can show."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from overture import cli
from overture.cli import COMMANDS, build_parser, main
from overture.errors import Interrupted
from overture.progress import TerminalProgress

ROOT = Path(__file__).parent.parent
LINES, COLUMNS = 40, 80
NOTHING_COMPUTED = {"completion", "app"}
"""Commands without ``--json``: a script, a server."""


def leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of all commands, ``import FORMAT`` and its like included."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield parser
    for action in below:
        for command in action.choices.values():
            yield from leaves(command)


LEAVES = {leaf.prog.removeprefix("overture "): leaf for leaf in leaves(build_parser(*COMMANDS))}


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))


def fits(text: str) -> bool:
    lines = text.splitlines()
    return len(lines) <= LINES and max(map(len, lines)) <= COLUMNS


def test_without_a_word_it_tells_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    ends = []
    for words in ([], ["--help"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        ends.append((end.value.code, capsys.readouterr().out))
    assert ends[0] == ends[1]
    assert "  run              a recipe" in ends[0][1]


@pytest.mark.parametrize("command", LEAVES)
def test_help_fits_a_screen_and_opens_with_an_example_that_parses(command: str) -> None:
    text = LEAVES[command].format_help()
    assert fits(text), text
    usage, example = text.split("\n\n")[:2]
    assert usage.startswith(f"usage: overture {command}")
    assert example.startswith(f"Example: overture {command} "), example
    words = shlex.split(example.removeprefix("Example: overture ").replace("\n", " ").partition(" > ")[0])
    _, unknown = build_parser(words[0]).parse_known_args(words)  # a wrong word ends the process
    assert unknown == []


def test_the_first_page_fits_a_screen_and_tells_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert fits(text), text
    assert all(re.search(rf"^  {command}  +\S", text, re.MULTILINE) for command in COMMANDS)
    for page in (text, (ROOT / "README.md").read_text(encoding="utf-8")):
        statuses = " ".join(page.split()).partition("exit status")[2][:120]
        assert all(word in statuses for word in ("0 done", "1 failed", "2 wrong usage", "130 interrupted")), statuses


@pytest.mark.parametrize("command", LEAVES)
def test_what_computes_answers_in_json(command: str) -> None:
    known = {option for action in LEAVES[command]._actions for option in action.option_strings}
    assert ("--json" in known) != (command in NOTHING_COMPUTED)


def test_exit_statuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "record.json").write_text("{")

    def stopped(words: list[str]) -> int:
        raise Interrupted("stopped")

    def struck(words: list[str]) -> int:
        raise KeyboardInterrupt

    assert main(["recipes"]) == 0
    assert main(["compare", str(tmp_path / "record.json")]) == 1
    assert main(["generate"]) == 2
    with pytest.raises(SystemExit) as end:
        main(["generate", "--seed", "many"])
    assert end.value.code == 2
    for ends in (stopped, struck):
        monkeypatch.setattr(cli, "_run", ends)
        assert main(["run"]) == 130
    assert capsys.readouterr().err.count("\n") == 5  # a line each


def in_a_shell(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "overture", *words], env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_output_needs_neither_colours_nor_unicode() -> None:
    done = in_a_shell("schedule", "geometric", "--positions", "8", PYTHONIOENCODING="ascii", FORCE_COLOR="1")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    code = "import overture.cli as c; c._run = lambda words: print('\\u2212 \\u00b1'); c.main([])"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "? ?\n")


# -- completion -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script for bash, made without torch."""
    code = "import sys; from overture.cli import main; main(['completion', 'bash']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    path = tmp_path_factory.mktemp("completion") / "overture.bash"
    path.write_text(done.stdout)
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("overture ge", {"generate"}),
        ("overture run quick", {"quickstart"}),
        ("overture train tok", {"tokenizer"}),
        ("overture generate --we", {"--weights"}),
        ("overture generate --weights ", {"raw", "ema"}),
        ("overture run quickstart --device ", {"auto", "cpu", "cuda", "mps"}),
        ("overture evaluate readme-of-this-test", {"readme-of-this-test.npz"}),
    ],
)
def test_bash_completes(typed: str, offered: set[str], script: Path, tmp_path: Path) -> None:
    (tmp_path / "readme-of-this-test.npz").touch()
    ask = f'source "{script}"; COMP_WORDS=({typed} ""); COMP_CWORD={len(typed.split(" ")) - 1}; '
    ask += "_shtab_overture; printf '%s\\n' \"${COMPREPLY[@]}\""
    if not typed.endswith(" "):
        ask = ask.replace(' "");', ");")
    done = subprocess.run(["bash", "--norc", "-c", ask], capture_output=True, text=True, cwd=tmp_path)
    assert {word.strip() for word in done.stdout.splitlines()} == offered, done.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_of_other_shells_are_read_by_them(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    script = tmp_path / f"overture.{shell}"
    script.write_text(capsys.readouterr().out)
    assert all(command in script.read_text() for command in COMMANDS)
    assert "Example:" not in script.read_text()  # a command is told in a line: what it does
    if shutil.which(shell):
        subprocess.run([shell, "--no-execute" if shell == "fish" else "-n", str(script)], check=True)


def test_an_unknown_shell_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["completion", "csh"])
    assert "bash" in capsys.readouterr().err


# -- bars -----------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """Remembers what is printed, as a terminal that holds what tqdm needs: rows, returns and steps up."""

    def isatty(self) -> bool:
        return True

    def rows(self) -> list[str]:
        rows, row, column = [""], 0, 0
        for sign in re.findall(r"\x1b\[A|.|\n|\r", self.getvalue(), re.DOTALL):
            if sign == "\n":
                row, column = row + 1, 0
                rows += [""] * (row + 1 - len(rows))
            elif sign == "\r":
                column = 0
            elif sign == "\x1b[A":
                row = max(0, row - 1)
            else:
                rows[row] = rows[row].ljust(column)[:column] + sign + rows[row][column + 1 :]
                column += 1
        return [row.rstrip() for row in rows]


def test_two_jobs_side_by_side_are_one_block_of_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    jobs = [TerminalProgress("uniform", 0), TerminalProgress("vcq", 1)]

    def now(*starts: str) -> None:
        for job in jobs:
            if job.bar is not None:
                job.bar.refresh()
        rows = [" ".join(row.split()) for row in terminal.rows() if row]
        assert len(rows) == len(starts), rows
        assert all(row.startswith(start) for row, start in zip(rows, starts, strict=True)), rows
        assert all(row.count("left") <= 1 for row in rows), rows  # nothing of an older row is left behind a shorter one

    for job in jobs:
        job.start("tokenizer", 10)
        job.advance(4, loss=0.25)
    now("uniform tokenizer 40%", "vcq tokenizer 40%")
    jobs[1].say("a word")
    now("vcq: a word", "uniform tokenizer 40%", "vcq tokenizer 40%")
    jobs[0].start("tokens", 4)
    jobs[0].advance(1)
    now("vcq: a word", "uniform tokenizer", "uniform tokens 25%", "vcq tokenizer 40%")
    jobs[0].finish()
    now("vcq: a word", "uniform tokenizer", "uniform tokens 25%", "vcq tokenizer 40%")
    jobs[1].finish()
    now("vcq: a word", "uniform tokenizer", "uniform tokens 25%")


def test_two_jobs_in_a_log_file_have_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [TerminalProgress("uniform", 0), TerminalProgress("vcq", 1)]
    for job in jobs:
        job.start("prior", 2)
    for job in jobs:
        job.advance(2)
        job.finish()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["uniform", "vcq"]


def test_json_is_one_object_and_all_of_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "ids.npy", np.arange(8).reshape(4, 2))
    for words in (["recipes"], ["schedule", "uniform", "--positions", "4"], ["entropy", str(tmp_path / "ids.npy")]):
        assert main([*words, "--json"]) == 0
        assert isinstance(json.loads(capsys.readouterr().out), dict)
