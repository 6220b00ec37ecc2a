"""The files of a run that a repository holds: models, config, results, class names, pictures and the card.

They lie there as in a run, so every command reads a repository, and a copy of it, like a run. Only safetensors, JSON,
text and PNG files of these names are written or fetched; whatever else a repository has stays where it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from overture.config import from_dict
from overture.elsewhere import MARK, checked, last_parts, names_in
from overture.errors import OvertureError, UsageError
from overture.files import copy_file, read_json, read_record, replacing, write_json, write_record
from overture.hub import HubFolder
from overture.layout import Layout
from overture.model_files import read_metadata, without_folders
from overture.report.records import Record, read_records
from overture.runs.directory import RunDirectory, runs_inside
from overture.saved_model import FILE
from overture.share.model_card import Card
from overture.tokenizers.config import TokenizerConfig
from overture.training.hardware import in_words, was_trained_with

__all__ = ["KINDS", "fetch_repository", "write_repository"]

KINDS = ("tokenizer", "prior")
PICTURES = ("samples/classes.png", "samples/reconstructions.png")
RECORDS = ("config.json", "results.json")
OTHERS = ("classes.json", "README.md", *PICTURES)


def write_repository(run: RunDirectory, folder: Path, repository: str, licence: str = "") -> Card:
    """Write into ``folder`` what of ``run`` goes into the repository called ``repository``; the card that is in it.

    Of every path of this machine in a config the last part is left. Results of other models are refused.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: is not empty; give another place")
    if not run.root.is_dir():
        raise UsageError(f"{run.root}: no such run")
    found = {kind: run.root / kind / FILE for kind in KINDS if (run.root / kind / FILE).is_file()}
    if not found:
        inside = runs_inside(run.root)
        hint = f"give one of its runs: {inside[0]}" if inside else "train it first"
        raise UsageError(f"{run.root}: holds neither tokenizer/{FILE} nor prior/{FILE}; {hint}")
    metadata = {kind: read_metadata(path, kind) for kind, path in found.items()}
    _check_results(run, metadata)
    for kind, path in found.items():
        copy_file(path, folder / kind / FILE)
        without_folders(folder / kind / FILE, kind)
    for name in RECORDS:
        if (run.root / name).is_file():
            write_record(folder / name, last_parts(read_record(run.root / name)))
    classes = read_json(run.classes, list) if run.classes.is_file() else metadata.get("prior", {}).get("classes")
    if classes:
        write_json(folder / "classes.json", classes)
    pictures = [name for name in PICTURES if (run.root / name).is_file()]
    for name in pictures:
        copy_file(run.root / name, folder / name)
    record = read_records([RunDirectory(folder)])[0]  # of what is there now, without the folders of this machine
    card = _card(repository, record, metadata, licence, pictures)
    with replacing(folder / "README.md") as place:
        place.write_text(str(card), encoding="utf-8")
    return card


def _check_results(run: RunDirectory, metadata: dict[str, dict[str, Any]]) -> None:
    results = run.read_results()
    for kind, about in metadata.items():
        measured = results.models.get(f"{kind}_hash")
        if measured not in (None, about["weights_hash"]):
            raise OvertureError(
                f"{run.results}: its numbers are of another {kind} ({measured}, the run has {about['weights_hash']}); "
                "measure again (the run's own command), or move it away"
            )


def _card(
    repository: str, record: Record, metadata: dict[str, dict[str, Any]], licence: str, pictures: list[str]
) -> Card:
    layout = _layout(metadata)
    needed = [kind for about in metadata.values() for kind in names_in(last_parts(about["config"]))]
    return Card(
        repository,
        record,
        {kind: about["weights_hash"] for kind, about in metadata.items()},
        str(layout),
        licence,
        list(dict.fromkeys(needed)),
        pictures,
        {kind: in_words(told) for kind, about in metadata.items() if (told := was_trained_with(about))},
    )


def _layout(metadata: dict[str, dict[str, Any]]) -> Layout:
    """Of the models; theirs have to be the same."""
    layouts = {}
    if "tokenizer" in metadata:
        layouts["tokenizer"] = from_dict(TokenizerConfig, metadata["tokenizer"]["config"], "tokenizer: config").layout
    if "prior" in metadata:
        layouts["prior"] = Layout.from_dict(metadata["prior"]["layout"])
    first = next(iter(layouts.values()))
    if any(layout != first for layout in layouts.values()):
        raise OvertureError(
            f"tokenizer ({layouts['tokenizer']}) and prior ({layouts['prior']}) have different layouts; push them apart"
        )
    return first


def fetch_repository(place: HubFolder, out: Path | None = None) -> tuple[HubFolder, dict[str, Path]]:
    """Fetch what a repository holds of a run, all of one commit, into the hub's cache, and copy it to ``out`` if given.

    The place with its commit, and the files by name. A repository without a model of ours is refused.
    """
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out}: is not empty; give another place")
    found: dict[str, Path] = {}
    for name in (*(f"{kind}/{FILE}" for kind in KINDS), FILE):
        if name == FILE and found:
            break
        if path := place.fetch(name):
            place = place.pinned(path)
            found[name] = path
    if not found:
        raise OvertureError(
            f"{place}: is no repository of Overture's (it holds none of tokenizer/{FILE}, prior/{FILE}, {FILE})"
        )
    for name, path in found.items():
        _read_any(path, name)
    for name in (*RECORDS, *OTHERS):
        if path := place.fetch(name):
            found[name] = path
    for name in RECORDS:
        if name in found:
            checked(found[name], read_record(found[name]))
    if "classes.json" in found:
        read_json(found["classes.json"], list)
    if out is not None:
        write_json(out / MARK, {"from": str(place)})
        for name, path in found.items():
            copy_file(path, out / name)
    return place, found


def _read_any(path: Path, name: str) -> dict[str, Any]:
    """The metadata of a model file called ``KIND/model.safetensors``, or of either kind; any other file is refused."""
    if name != FILE:
        return read_metadata(path, name.partition("/")[0])
    try:
        return read_metadata(path, KINDS[0])
    except UsageError:
        raise
    except OvertureError:
        return read_metadata(path, KINDS[1])
