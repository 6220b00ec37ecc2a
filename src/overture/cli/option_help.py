"""``overture run RECIPE --help [WORD]``: the options of a recipe's config, by part."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

from overture.config import components_of, option, options

__all__ = ["describe_options", "describe_parts"]

WIDTH = 116


def describe_parts(config: Any) -> str:
    """Every part of a config and the names of its options, with the value where the recipe sets one, on a screen."""
    lines = []
    for name, part in parts(config):
        usual = {field.name: _default(field) for field in dataclasses.fields(part)}
        words = []
        for field in simple_fields(part):
            value = getattr(part, field.name)
            word = field.name.replace("_", "-")
            words.append(word if value == usual[field.name] else f"{word}={_shown(value).replace(' ', '_')}")
        if words:
            start = f"  {option(name) + '.' if name else '--':<33} "
            lines += textwrap.wrap(" ".join(words), WIDTH, initial_indent=start, subsequent_indent=" " * 36,
                                   break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return "\n".join(lines)


def describe_options(config: Any, word: str = "") -> str:
    """Every option with ``word`` in its name: value and type, under what its part is."""
    wanted, lines = word.lstrip("-").replace("_", "-").lower(), []
    hints = {name: hint for name, hint, _ in options(config)}
    for name, part in parts(config):
        found = []
        for field in simple_fields(part):
            full = f"{name}.{field.name}".lstrip(".")
            if wanted in option(full).lower():
                found.append(
                    f"  {option(full):<52}  {_shown(getattr(part, field.name)):<24}  {_type(hints[full])}".rstrip()
                )
        if found:
            about = inspect.cleandoc(type(part).__doc__ or "")
            lines += ["", f"{option(name) if name else type(part).__name__}", textwrap.indent(about, "  "), "", *found]
    return "\n".join(lines).lstrip("\n")


def parts(config: Any) -> Iterator[tuple[str, Any]]:
    """The config and every config in it, by dotted name."""
    yield "", config
    yield from ((name, value) for name, _, value in options(config) if dataclasses.is_dataclass(value))


def simple_fields(part: Any) -> list[dataclasses.Field[Any]]:
    """The fields of a config that hold a value; those that hold a config are parts, unless one may be chosen by name."""
    hints = typing.get_type_hints(type(part))
    return [
        field
        for field in dataclasses.fields(part)
        if not _holds_configs(getattr(part, field.name)) or components_of(hints[field.name]) is not None
    ]


def _holds_configs(value: Any) -> bool:
    items = value if isinstance(value, tuple) else (value,)
    return any(dataclasses.is_dataclass(item) for item in items)


def _default(field: dataclasses.Field[Any]) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _shown(value: Any) -> str:
    if dataclasses.is_dataclass(value) and (kinds := components_of(type(value))):
        return kinds.name_of(type(value))
    if isinstance(value, tuple):
        return ",".join(map(_shown, value)) or "(none)"
    return {"": "(empty)", None: "none"}.get(value, str(value).lower() if isinstance(value, bool) else str(value))


def _type(hint: Any) -> str:
    """A type in words: ``whole number``, ``a | b | c``, ``one of the kinds``."""
    if (kinds := components_of(hint)) is not None:
        return " | ".join([*kinds, "module:Class"])
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(choice) for choice in arguments)
    if origin in (tuple, list):
        return f"{_type(arguments[0])}, ..." if arguments[-1:] == (Ellipsis,) else ", ".join(map(_type, arguments))
    if dataclasses.is_dataclass(hint):
        return "default"
    names = {int: "whole number", float: "number", str: "text", bool: "on or off", type(None): "none"}
    return names.get(hint, "")
