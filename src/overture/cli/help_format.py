"""How help looks: usage in a line, one example, then words and options."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

__all__ = ["HelpFormatter"]

_OPTIONS = argparse.Action([], "options", nargs="?", metavar="options")


class HelpFormatter(argparse.HelpFormatter):
    """Argparse's, with three changes.

    Usage names the options that a command cannot do without and says ``[options]`` for the others, which follow below.
    Paragraphs of a description stay paragraphs, so that its first line may be an example. A whole number is called N.
    """

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[argparse._MutuallyExclusiveGroup],
        prefix: str | None = None,
    ) -> None:
        """Leave out of the usage what may be left out of the command."""
        if usage is not None:
            return super().add_usage(usage, actions, groups, prefix)
        named = [action for action in actions if action.required or not action.option_strings]
        super().add_usage(None, [*named, _OPTIONS], (), prefix)
        return None

    def add_argument(self, action: argparse.Action) -> None:
        """Of commands, a line for each and none for all of them."""
        lines = action._get_subactions() if isinstance(action, argparse._SubParsersAction) else [action]
        for line in lines:
            super().add_argument(line)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(fill(paragraph, width, indent) for paragraph in text.split("\n\n"))

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return "N" if action.type is int else super()._get_default_metavar_for_optional(action)
