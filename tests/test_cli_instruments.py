"""Wrong use of the instruments' commands: one line, status 2 (or 1 for bad data), nothing written."""

from __future__ import annotations

import numpy as np
import pytest

from overture.cli import main


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["probe"], "give a RUN, or --train and --test"),
        (["probe", "nowhere", "--features", "pixels"], "give codes, ids or codes,ids"),
        (["probe", "nowhere", "--tokens", "1,two"], "give whole numbers"),
        (["probe", "nowhere"], "no file"),
        (["probe", "nowhere", "--plot", "probe.gif"], ".png, .svg, .pdf"),
        (["prefix", "nowhere"], "holds no judge"),
        (["prefix", "nowhere", "--images", "1"], "at least 2"),
        (["prefix", "nowhere", "--guidance", "2"], "add --conditional"),
        (["neighbours", "nowhere"], "holds no judge"),
        (["neighbours", "nowhere", "--samples", "0"], "at least 1"),
        (["attention", "nowhere"], "give --out"),
        (["attention", "nowhere", "--tokens", "0"], "at least 1"),
        (["attention", "nowhere", "--out", "map.bmp"], ".png, .svg, .pdf"),
        (["search-guidance", "nowhere"], "not a run directory"),
        (["search-guidance", "nowhere", "--batch-size", "0"], "at least 1"),
        (["reconstruct", "nowhere", "--data", "x", "--vgg-weights", "f"], "go with --lpips"),
        (["compare", "a.json", "a.json"], "named twice"),
    ],
)
def test_wrong_usage(words: list[str], text: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert text in error
    assert len(error.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_search_command_is_suggested(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["search-guidence"])
    assert "did you mean 'search-guidance'" in capsys.readouterr().err


def test_entropy_of_a_text_beside_tokens(tmp_path, capsys) -> None:
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(0, 4, (50, 7)))
    (tmp_path / "text.txt").write_text("All happy families are alike. " * 20)
    assert main(["entropy", str(tmp_path / "text.txt"), str(tmp_path / "tokens.npy"), "--json"]) == 0
    import json

    results = json.loads(capsys.readouterr().out)["results"]
    assert [result["positions"] for result in results] == [7, 7]
    assert results[0]["rows"] == 600 // 7


def test_probing_a_file_without_a_layout(tmp_path, capsys) -> None:
    np.savez(tmp_path / "a.npz", ids=np.zeros((30, 4), np.int64), labels=np.zeros(30, np.int64))
    place = str(tmp_path / "a.npz")
    assert main(["probe", "--train", place, "--test", place, "--features", "ids"]) == 1
    assert "holds no layout" in capsys.readouterr().err
