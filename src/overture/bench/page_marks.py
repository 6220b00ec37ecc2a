"""A suite's numbers in a page: the table between two marks, and single ones within the text. Nothing else is touched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from overture.bench.page_table import Cell
from overture.errors import OvertureError, UsageError, near
from overture.files import replacing

__all__ = ["write_page"]

END = "<!-- end -->"


def write_page(page: Path, name: str, text: str, table: Mapping[tuple[str, str], Cell]) -> bool:
    """Put ``text`` between ``<!-- bench NAME -->`` and ``<!-- end -->``, and the number of a run and a metric between
    ``<!-- = NAME RUN METRIC -->`` and ``<!-- . -->``; a page that has all of it already is left alone.

    A page has the table, or numbers, or both; returns whether it has the table.
    """
    try:
        old = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OvertureError(f"{page}: cannot read it ({getattr(error, 'strerror', None) or error})") from error
    new, numbers = _with_numbers(old, page, name, table)
    has_table = f"<!-- bench {name} -->" in old or not numbers
    if has_table:
        new = _with_table(new, page, name, text)
    if new != old:
        with replacing(page) as temporary:
            temporary.write_text(new, encoding="utf-8", newline="\n")
    return has_table


def _with_table(old: str, page: Path, name: str, text: str) -> str:
    begin = f"<!-- bench {name} -->"
    place = re.compile(rf"(?<={re.escape(begin)}\n).*?(?={re.escape(END)})", re.DOTALL)
    match = place.search(old)
    if match is None or old.count(f"{begin}\n") != 1 or "<!-- bench " in match[0]:
        raise UsageError(f"{page}: needs the line '{begin}' once, and the line '{END}' after it")
    return old[: match.start()] + text + old[match.end() :]


def _with_numbers(old: str, page: Path, name: str, table: Mapping[tuple[str, str], Cell]) -> tuple[str, int]:
    """With the numbers of this suite, and how many there are."""
    known = {f"{run} {metric}": cell.unbroken for (run, metric), cell in table.items()}

    def number(match: re.Match[str]) -> str:
        if match[2] not in known:
            raise UsageError(f"{page}: '{match[1]}' names no finished run and metric{near(match[2], known)}")
        return f"{match[1]}{known[match[2]]}<!-- . -->"

    begin = rf"<!-- = {re.escape(name)} (\S+ \S+) -->"
    new, count = re.subn(rf"({begin})(?:(?!<!--)[^\n])*<!-- \. -->", number, old)
    if count < len(re.findall(begin, old)):
        raise UsageError(
            f"{page}: a mark '<!-- = {name} ... -->' has no '<!-- . -->' behind its number, on the same line"
        )
    return new, count
