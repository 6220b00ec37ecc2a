"""Configs are frozen dataclasses; this file turns them into JSON and back, changes them, and refuses what it does not know.

A field may hold one of several components (a quantizer, a perceptual loss). Its type is then a base class with an open
list of ``components``: in JSON the component's name stands beside its fields as ``kind``, and on the command line the
name alone chooses it. A component of somebody else is called ``module:Class``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from overture.errors import UsageError, nearest
from overture.registry import OpenList, strangers_code

__all__ = ["changed", "components_of", "differences", "from_dict", "no_number", "option", "options", "to_dict"]

C = TypeVar("C")


def no_number(default: Any) -> Any:
    """A field that changes no number, such as how often to log: two configs that differ in it alone mean the same."""
    return dataclasses.field(default=default, metadata={"no_number": True})


def to_dict(config: Any, *, numbers: bool = False) -> Any:
    """A config as plain JSON values; of those that decide ``numbers`` alone, without the fields of :func:`no_number`."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        told = [field for field in dataclasses.fields(config) if not (numbers and field.metadata.get("no_number"))]
        fields = {field.name: to_dict(getattr(config, field.name), numbers=numbers) for field in told}
        components = components_of(type(config))
        return {"kind": components.name_of(type(config)), **fields} if components else fields
    if isinstance(config, list | tuple):
        return [to_dict(item, numbers=numbers) for item in config]
    if isinstance(config, dict):
        return {key: to_dict(value, numbers=numbers) for key, value in config.items()}
    return config


def differences(present: Any, wanted: Any) -> list[str]:
    """Dotted keys of two configs that decide numbers and differ, with both values."""
    return _differing(to_dict(present, numbers=True), to_dict(wanted, numbers=True), "")


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


def changed(config: C, changes: Mapping[str, Any]) -> C:
    """The config with some options changed, by dotted name: ``changed(run, {"prior.depth": 8, "seed": 1})``.

    Values are plain ones, components (``"tokenizer.segments.0.quantizer": LookupFreeConfig()``), or text as on the
    command line. All changes are made at once, so that only the result has to be valid.
    """
    return typing.cast(C, _changed(type(config), config, dict(changes), ""))


def options(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every dotted option of a config with the type and the value it has: ``prior.depth``, ``data.source``, ..."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        yield name, _hints(typing.cast(Any, type(config)))[field.name], value
        if dataclasses.is_dataclass(value):
            yield from options(value, f"{name}.")
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for place, item in enumerate(value):
                yield f"{name}.{place}", type(item), item
                yield from options(item, f"{name}.{place}.")


def _differing(present: Any, wanted: Any, where: str) -> list[str]:
    if isinstance(present, dict) and isinstance(wanted, dict):
        keys = sorted(present.keys() | wanted.keys())
        parts = (_differing(present.get(k), wanted.get(k), f"{where}.{k}" if where else k) for k in keys)
        return [difference for part in parts for difference in part]
    if isinstance(present, list) and isinstance(wanted, list) and len(present) == len(wanted):
        parts = (_differing(a, b, f"{where}.{i}") for i, (a, b) in enumerate(zip(present, wanted, strict=True)))
        return [difference for part in parts for difference in part]
    return [] if present == wanted else [f"{where} was {present!r}, now {wanted!r}"]


# -- one value ------------------------------------------------------------------------------------------------------


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def components_of(hint: Any) -> OpenList | None:
    """The open list of components of which a field of this type holds one, if it is such a type."""
    found = getattr(hint, "components", None)
    return found if isinstance(hint, type) and isinstance(found, OpenList) else None


def _convert(hint: Any, value: Any, where: str) -> Any:
    """A plain value (or a config that is one already) as the type ``hint`` wants it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    components = components_of(hint)
    if hint is Any or ((components or dataclasses.is_dataclass(hint)) and isinstance(value, hint)):
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where)
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
        if not isinstance(value, dict):
            raise UsageError(f"{where}: expected an object, got {value!r}")
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if components:
        return _component(components, value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:
            raise UsageError(f"{where}: expected a finite number, got {str(value)[:40]}")
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UsageError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def _convert_union(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    errors = []
    for choice in choices:
        if choice is not type(None):
            try:
                return _convert(choice, value, where)
            except UsageError as error:
                errors.append(str(error))
    raise UsageError(errors[-1] if errors else f"{where}: {value!r} does not fit")


def _component(components: OpenList, value: Any, where: str) -> Any:
    """A component from its name, or from its fields with the name as ``kind``."""
    data = {"kind": value} if isinstance(value, str) else value
    if not isinstance(data, dict) or not isinstance(data.get("kind"), str):
        raise UsageError(f"{where}: expected the kind of a {components.what}, got {value!r}")
    try:
        cls = components.get(data["kind"])
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    if any(field.name == "kind" for field in dataclasses.fields(cls)):
        raise UsageError(
            f"{where}: {data['kind']} has a field called kind, which is the word for its own name; rename it"
        )
    with strangers_code(f"{where}: {data['kind']}"):
        return from_dict(cls, data, where)


# -- changes --------------------------------------------------------------------------------------------------------


def _changed(hint: Any, value: Any, changes: dict[str, Any], where: str) -> Any:
    """``value`` with ``changes`` by dotted name below it; under the empty name, what replaces it whole."""
    if "" in changes:
        value = _convert(hint, _from_text(hint, changes.pop("")), option(where))
    if not changes:
        return value
    if value is None:  # an option of a part that is not there: the part's defaults are the start
        hint = next((choice for choice in typing.get_args(hint) if dataclasses.is_dataclass(choice)), None)
        if hint is None:
            raise UsageError(f"{option(where)}: has no part '{next(iter(changes))}'")
        value = hint()
    below: dict[str, dict[str, Any]] = {}
    for name, change in changes.items():
        head, _, rest = name.partition(".")
        below.setdefault(head, {})[rest] = change
    if isinstance(value, tuple):
        items = list(value)
        for head, inner in below.items():
            if not head.isdecimal() or int(head) >= len(items):
                raise UsageError(f"{option(where)}.{head}: there are {len(items)}, counted from 0")
            items[int(head)] = _changed(type(items[int(head)]), items[int(head)], inner, f"{where}.{head}")
        return tuple(items)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise UsageError(f"{option(where)}: has no part '{next(iter(below))}'")
    hints = _hints(type(value))
    replaced = {}
    for head, inner in below.items():
        place = f"{where}.{head}" if where else head
        if head not in hints:
            names = [option(name) for name, _, _ in options(value, f"{where}." if where else "")]
            raise UsageError(f"unknown option '{option(place)}'{nearest(option(place), names)}")
        replaced[head] = _changed(hints[head], getattr(value, head), inner, place)
    with strangers_code(where or type(value).__name__):
        return dataclasses.replace(value, **replaced)


def option(name: str) -> str:
    """A dotted name as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def _from_text(hint: Any, value: Any) -> Any:
    """What a text of the command line means where a ``hint`` is wanted; what is no text stays as it is."""
    if not isinstance(value, str) or hint is str:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value.lower() == "none" and type(None) in arguments:
            return None
        meant = [_from_text(choice, value) for choice in arguments if choice is not type(None)]
        return next((item for item in meant if not isinstance(item, str)), meant[0])
    if origin in (tuple, list):
        if value.lstrip().startswith("["):
            return _json(value)
        return [_from_text(arguments[0], word) for word in value.replace(",", " ").split()]
    if hint is bool:
        return {"true": True, "yes": True, "false": False, "no": False}.get(value.lower(), value)
    if hint in (int, float):
        try:
            return hint(value)
        except ValueError:
            return value
    if dataclasses.is_dataclass(hint) and value.lower() == "default":
        return {}
    return value


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
