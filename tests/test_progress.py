"""Progress where there is no terminal: lines, not bars."""

from __future__ import annotations

import pytest

from overture.progress import LineBar, TerminalProgress, each_with_progress, progress_bar


def test_a_line_every_few_seconds_and_one_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    with LineBar("tokenizer", 100, "step", every=5.0, clock=lambda: now[0]) as bar:
        for step in range(40):
            now[0] += 0.5
            bar.set_postfix({"loss": f"{step}"})
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5  # of 20 seconds, and the last
    assert "\r" not in "".join(lines)
    assert lines[0].split() == ["tokenizer", "10%", "10/100", "steps,", "00:45", "left,", "loss=9"]
    assert "40/100" in lines[-1]


def test_log_files_hold_no_bars(capsys: pytest.CaptureFixture[str]) -> None:
    progress = TerminalProgress("uniform")
    progress.start("prior", 4, 1)
    progress.advance(3, loss=0.25)
    progress.say("saved")
    progress.finish()
    assert list(each_with_progress([1, 2, 3], "probe", "fit")) == [1, 2, 3]
    with progress_bar("reading", shown=False) as bar:
        bar.update(3)
    said = capsys.readouterr().err
    assert "\r" not in said
    assert [line.split()[0] for line in said.splitlines()] == ["uniform:", "uniform", "probe"]
    assert "4/4 steps" in said
    assert "loss=0.25" in said
