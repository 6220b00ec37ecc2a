"""A finished member: one JSON file, which is all that the tables need, and by which it is known to be finished."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overture.bench.readings import Value
from overture.bench.suite import Member, Suite
from overture.config import differences, from_dict, to_dict
from overture.data.base import same_fingerprint
from overture.errors import OvertureError, UsageError
from overture.files import json_hash, read_record, replacing, write_record
from overture.runs.config import RunConfig
from overture.runs.forms import DATA, Each, Maybe, check_form, number, text
from overture.training.hardware import processor_name, versions

__all__ = [
    "Finished",
    "add_values",
    "lacking",
    "member_file",
    "read_finished",
    "write_finished",
    "write_lines",
]


def protocol(value: Any) -> bool:
    """An object, or null where nothing is to be said."""
    return value is None or isinstance(value, dict)


FORM: dict[str, Any] = {
    "member": text, "run": text, "seed": number, "prior": number, "until": text, "readings": [text], "config": Each(lambda _: True),
    "added": Maybe([{"readings": [text], "processor": text, "torch": text, "device": text}]),
    "values": Each({"value": number, "unit": text, "protocol": Maybe(protocol)}), "models": Each(text), "processor": text, "torch": text, "device": text,
    "trained_with": Maybe(Each({"device": text, "processes": number, "torch": text})), "data": DATA, "tiny": lambda value: isinstance(value, bool),
}  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """What a member's file holds."""

    member: Member
    values: dict[str, Value]
    record: dict[str, Any]
    """All of the file."""
    lacks: tuple[str, ...] = ()
    """Readings of the suite that nobody has taken of it yet."""


def member_file(root: Path, member: str) -> Path:
    """Where a member's result lies in the folder of a suite."""
    return root / "members" / f"{member}.json"


def write_finished(path: Path, about: dict[str, Any], values: dict[str, Value]) -> None:
    """Write a member's file: what was declared, where it was made (``about``), and its values with their protocols."""
    write_record(path, {**about, **_machine(), "values": {name: value.to_dict() for name, value in values.items()}})


def add_values(
    path: Path, known: dict[str, Any], readings: tuple[str, ...], device: str, values: dict[str, Value]
) -> None:
    """Write a member's file anew with further readings and where they were taken; the rest stays as it was read."""
    found = {**known["values"], **{name: value.to_dict() for name, value in values.items()}}
    added = [*known.get("added", []), {"readings": list(readings), "device": device, **_machine()}]
    write_record(path, {**known, "readings": [*known["readings"], *readings], "added": added, "values": found})


def lacking(readings: Iterable[str], known: Mapping[str, Any]) -> tuple[str, ...]:
    """Which of these readings nobody has taken of a member, by what its file holds; all, where there is no file."""
    return tuple(name for name in readings if name not in known.get("readings", ()))


def _machine() -> dict[str, Any]:
    """What numbers are made with."""
    return {"processor": processor_name(), **versions()}


def read_finished(root: Path, suite: Suite) -> dict[str, Finished]:
    """The finished members of a suite by name; one that was declared otherwise is refused, with what differs."""
    found = {}
    for member in suite.members:
        path = member_file(root, member.name)
        if path.is_file():
            found[member.name] = _read(path, member, suite)
    _check_images(found)
    return found


def _check_images(finished: dict[str, Finished]) -> None:
    """Refuse members of one group that have seen different images: a source's name does not say which."""
    first: dict[str, Finished] = {}
    for each in finished.values():
        other = first.setdefault(each.member.group, each)
        for part in ("train", "held_out"):
            mine, theirs = (some.record["data"][part] for some in (each, other))
            if mine["images"] != theirs["images"] or not same_fingerprint(mine["fingerprint"], theirs["fingerprint"]):
                raise UsageError(
                    f"{each.member.name} was measured on other images than {other.member.name} ({part}: "
                    f"{mine['images']:,} with fingerprint {mine['fingerprint']}, {theirs['images']:,} with "
                    f"{theirs['fingerprint']}); delete the file of one of them in members/"
                )


def _read(path: Path, member: Member, suite: Suite) -> Finished:
    record = read_record(path, "delete it to measure again")
    try:
        check_form(record, FORM, "member")
        config = from_dict(RunConfig, record["config"], "config")  # a field that this version has added has its default
    except OvertureError as error:
        raise OvertureError(f"{path}: damaged ({error}); delete it to measure again") from error
    different = differences(config, member.config)
    if record["tiny"] != suite.is_tiny:
        different.append("it is a tiny one" if record["tiny"] else "it is no tiny one")
    if record["until"] != suite.until:
        different.append(f"until was {record['until']!r}, now {suite.until!r}")
    if different:
        raise UsageError(
            f"{path}: was measured with another config ({'; '.join(different[:3])}); give another --out, or delete it and "
            f"runs/{member.group}/{member.name} beside it to run it anew"
        )
    values = {name: Value(float(v["value"]), v["unit"], v.get("protocol")) for name, v in record["values"].items()}
    return Finished(member, values, record, lacking(suite.readings, record))


def write_lines(root: Path) -> None:
    """``results.jsonl``: one line a finished member, of every suite that has this folder."""
    with replacing(root / "results.jsonl") as temporary:
        records = (
            read_record(path, "delete it to measure again") for path in sorted((root / "members").glob("*.json"))
        )
        lines = (json.dumps(record, allow_nan=False) for record in records)
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def declared(member: Member, suite: Suite) -> dict[str, Any]:
    """What a member's file says of the member before it has run."""
    return {
        "member": member.name,
        "run": member.run,
        "seed": member.seed,
        "prior": member.prior,
        "tiny": suite.is_tiny,
        "readings": list(suite.readings),
        "until": suite.until,
        "config_hash": json_hash(to_dict(member.config, numbers=True)),
        "config": to_dict(member.config),
    }
