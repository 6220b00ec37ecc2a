"""Names of the hub: what they say, which file they mean, and that nothing else asks it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from overture.cli import main
from overture.errors import OvertureError, UsageError
from overture.hub import HubFolder, is_hub
from overture.model_files import find_model

COMMIT = "0123456789" * 4


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("hf:owner/name", HubFolder("owner/name")),
        ("hf:owner/name/", HubFolder("owner/name")),
        ("hf:owner/name@v1.2", HubFolder("owner/name", "v1.2")),
        ("hf:owner/name/runs/one", HubFolder("owner/name", None, "runs/one")),
        (f"hf:o-w.n_er/n.a-me@{COMMIT}/2d/", HubFolder("o-w.n_er/n.a-me", COMMIT, "2d")),
    ],
)
def test_names(text: str, folder: HubFolder) -> None:
    assert is_hub(text)
    assert HubFolder.parse(text) == folder
    assert str(folder) == text.rstrip("/")
    assert HubFolder.parse(str(folder)) == folder


@pytest.mark.parametrize(
    "text", ["hf:", "hf:owner", "hf:owner/", "hf:/name", "hf:owner/name@", "hf:own er/name", "hf: o/n"]
)
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="write hf:owner/name, hf:owner/name@revision or hf:owner/name/folder"):
        HubFolder.parse(text)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str | None]]:
    """What is asked of the hub, which has ``owner/name`` with a prior in it and a model in ``one``."""
    from huggingface_hub import errors

    missing = getattr(errors, "RemoteEntryNotFoundError", errors.EntryNotFoundError)  # as newer versions call it
    asked: list[tuple[str, str, str | None]] = []
    cache = tmp_path / "cache" / "snapshots" / COMMIT
    for name in ("prior", "one"):
        (cache / name).mkdir(parents=True)
        (cache / name / "model.safetensors").touch()

    def error(kind: Any, words: str) -> Exception:
        made: Exception = kind.__new__(kind)
        made.args = (words,)
        return made

    def download(repository: str, file: str, revision: str | None = None) -> str:
        asked.append((repository, file, revision))
        if repository != "owner/name":
            raise error(errors.RepositoryNotFoundError, "no such repository\n\nRead about it at ...")
        if not (cache / file).is_file():
            raise error(missing, "no such file")
        return str(cache / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return asked


def test_the_file_that_is_meant(hub: list[tuple[str, str, str | None]], tmp_path: Path) -> None:
    found = find_model("hf:owner/name@v1", "prior")
    assert found == tmp_path / "cache" / "snapshots" / COMMIT / "prior" / "model.safetensors"
    assert hub == [("owner/name", "prior/model.safetensors", "v1")]
    assert find_model("hf:owner/name/one", "tokenizer").parent.name == "one"
    assert [file for _, file, _ in hub[1:]] == ["one/tokenizer/model.safetensors", "one/model.safetensors"]
    assert str(HubFolder.parse("hf:owner/name@v1").pinned(found)) == f"hf:owner/name@{COMMIT}"
    assert str(HubFolder.parse("hf:owner/name/one").pinned(found)) == f"hf:owner/name@{COMMIT}/one"


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (
            "hf:owner/name",
            r"hf:owner/name: holds no tokenizer: neither model\.safetensors nor tokenizer/model\.safetensors",
        ),
        (
            "hf:owner/other@v1",
            r"hf:owner/other@v1: cannot be had from the hub \(no such repository, or a private one.*HF_TOKEN\)",
        ),
    ],
)
def test_what_the_hub_has_not_is_one_line(hub: list[tuple[str, str, str | None]], path: str, told: str) -> None:
    with pytest.raises(OvertureError, match=told) as caught:
        find_model(path, "tokenizer")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["rusn/quickstart/vcq", "rusn/vcq", "owner/name", "vcq", "hf"])
def test_a_path_that_is_mistyped_stays_on_the_machine(
    hub: list[tuple[str, str, str | None]],
    path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It would be sent away, and take minutes where there is no network."""
    (tmp_path / "runs" / "quickstart" / "vcq").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    commands = (
        ["generate", path],
        ["tokenize", path, "--data", "x", "--out", "y"],
        ["import", "prologue-release", path, "--out", "y"],
    )
    for words in commands:
        assert main(words) in (1, 2)
        assert "hf:owner/" in capsys.readouterr().err
    assert hub == []
    if path.startswith("rusn"):
        main(["generate", path])
        assert "did you mean 'runs'" in capsys.readouterr().err
