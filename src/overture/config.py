"""Configs are frozen dataclasses; this file turns them into JSON and back, and refuses what it does not know.

A field may be one of several components (``VectorConfig | LookupFreeConfig``). Such components carry a class variable
``kind``, which is written beside their fields and chooses the class when they are read back.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from overture.errors import OvertureError, UsageError, nearest

__all__ = ["differing_keys", "from_dict", "load_json", "option_names", "to_dict"]

C = TypeVar("C")


def to_dict(config: Any) -> Any:
    """A config as plain JSON values."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
        kind = getattr(config, "kind", None)
        return {"kind": kind, **fields} if isinstance(kind, str) and "kind" not in fields else fields
    if isinstance(config, list | tuple):
        return [to_dict(item) for item in config]
    if isinstance(config, dict):
        return {key: to_dict(value) for key, value in config.items()}
    return config


def from_dict(cls: type[C], data: Any, where: str = "config") -> C:
    """Build ``cls`` from plain values; an unknown key, a missing one or a wrong type is a one-line error."""
    if not isinstance(data, dict):
        raise UsageError(f"{where}: expected an object for {cls.__name__}, got {data!r}")
    hints = _hints(typing.cast(Any, cls))
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
    values = {}
    for key, value in data.items():
        if key == "kind" and key not in fields:
            continue
        if key not in fields:
            raise UsageError(f"{where}: unknown key '{key}'{nearest(key, fields)}")
        values[key] = _convert(hints[key], value, f"{where}.{key}")
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UsageError(f"{where}: '{name}' is missing")
    return cls(**values)


def load_json(cls: type[C], path: Path | str) -> C:
    """Read a config file written with :func:`to_dict`."""
    try:
        data = json.loads(Path(path).read_text())
    except OSError as error:
        raise OvertureError(f"{path}: cannot read the config ({error.strerror})") from error
    except ValueError as error:
        raise OvertureError(f"{path}: not valid JSON ({error})") from error
    return from_dict(cls, data, where=str(path))


def option_names(config: Any, prefix: str = "") -> list[str]:
    """Every dotted option of a config: ``prior.depth``, ``data.source``, ..."""
    names = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = f"{prefix}{field.name}"
        names.append(name)
        if dataclasses.is_dataclass(value):
            names += option_names(value, f"{name}.")
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for place, item in enumerate(value):
                names += option_names(item, f"{name}.{place}.")
    return names


def differing_keys(present: Any, wanted: Any, where: str = "") -> list[str]:
    """Dotted keys whose values differ, with both values."""
    if isinstance(present, dict) and isinstance(wanted, dict):
        keys = sorted(present.keys() | wanted.keys())
        parts = (differing_keys(present.get(k), wanted.get(k), f"{where}.{k}" if where else k) for k in keys)
        return [difference for part in parts for difference in part]
    if isinstance(present, list) and isinstance(wanted, list) and len(present) == len(wanted):
        parts = (differing_keys(a, b, f"{where}.{i}") for i, (a, b) in enumerate(zip(present, wanted, strict=True)))
        return [difference for part in parts for difference in part]
    return [] if present == wanted else [f"{where} was {present!r}, now {wanted!r}"]


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if origin is typing.Annotated:
        return _convert(arguments[0], value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise UsageError(f"{where}: {value!r} is not a valid choice{nearest(str(value), map(str, arguments))}")
        return value
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise UsageError(f"{where}: expected a list, got {value!r}")
        inner = (arguments[0],) * len(value) if origin is list or arguments[-1:] == (Ellipsis,) else arguments
        if len(inner) != len(value):
            raise UsageError(f"{where}: expected {len(inner)} values, got {len(value)}")
        items = [_convert(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(inner, value, strict=True))]
        return items if origin is list else tuple(items)
    if origin is dict:
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UsageError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def _convert_union(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    components = {c.kind: c for c in choices if dataclasses.is_dataclass(c) and hasattr(c, "kind")}
    if isinstance(value, dict) and components:
        kind = value.get("kind")
        if kind not in components:
            raise UsageError(f"{where}: unknown kind {kind!r}{nearest(str(kind), components)}")
        return from_dict(typing.cast(Any, components[kind]), value, where)
    errors = []
    for choice in choices:
        if choice is not type(None):
            try:
                return _convert(choice, value, where)
            except UsageError as error:
                errors.append(str(error))
    raise UsageError(errors[-1] if errors else f"{where}: {value!r} does not fit")
