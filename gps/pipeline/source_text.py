"""Python source as `ruff format` leaves it, at 88 columns and at 100: calls, tuples, sums.

Whatever fits into 88 columns stands in one line; the rest has one item a line and a comma after
the last one, which keeps it so at any width.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 88


@dataclass(frozen=True)
class Name:
    """Source that stands as it is: a name, an operator."""

    text: str


@dataclass(frozen=True)
class Argument:
    """One argument of a call, or one term of a sum."""

    value: Any
    keyword: str = ""
    above: str = ""
    """A comment in the lines above."""
    after: str = ""
    """A comment in the same line."""


@dataclass(frozen=True)
class Call:
    """`name(keyword=value, ...)`."""

    name: str
    arguments: tuple[Argument, ...] = ()
    split: bool = False
    """One argument a line, however short."""

    @classmethod
    def of(cls, name: str, /, **values: Any) -> Call:
        """A call with these values, those that are None left out."""
        given = {k: v for k, v in values.items() if v is not None}
        return cls(name, tuple(Argument(v, k) for k, v in given.items()))


@dataclass(frozen=True)
class Items:
    """A tuple with a comment for each of its items."""

    values: tuple[Any, ...]
    comments: tuple[str, ...]


def number(value: float, digits: int = 3) -> float:
    """The value with few digits, and no minus before a zero."""
    return float(f"{value:.{digits}g}") + 0.0


def comment(text: str, indent: int = 0) -> list[str]:
    """The lines of a comment; lines of the text stay apart."""
    lead = " " * indent + "# "
    lines: list[str] = []
    for line in text.splitlines():
        wide = textwrap.wrap(line, WIDTH, initial_indent=lead, subsequent_indent=lead)
        lines += wide or [lead.rstrip()]
    return lines


def assigned(name: str, value: Any) -> list[str]:
    """`name = value`."""
    return _put(value, f"{name} = ", "", 0)


def sum_of(name: str, terms: Sequence[Argument]) -> list[str]:
    """`name = (first + second ...)`, a term a line, each with its comment above."""
    lines = [f"{name} = ("]
    for i, term in enumerate(terms):
        lines += comment(term.above, 4)
        lines += _put(term.value, "    " + "+ " * (i > 0), "", 4)
    return [*lines, ")"]


def _inline(value: Any) -> str:
    """The value in one line."""
    if isinstance(value, Name):
        return value.text
    if isinstance(value, Items):
        return _inline(value.values)
    if isinstance(value, str):
        text = repr(value)
        return f'"{text[1:-1]}"' if text[0] == "'" and '"' not in value else text
    if isinstance(value, tuple):
        if len(value) > 3 and len(set(value)) == 1 and isinstance(value[0], int | float):
            return f"({value[0]!r},) * {len(value)}"
        return f"({', '.join(map(_inline, value))}{',' * (len(value) == 1)})"
    if isinstance(value, Call):
        parts = (
            f"{a.keyword}={_inline(a.value)}" if a.keyword else _inline(a.value)
            for a in value.arguments
        )
        return f"{value.name}({', '.join(parts)})"
    return repr(value)


def _whole(value: Any) -> bool:
    """Whether a value may stand in one line."""
    if not isinstance(value, Call):
        return True
    parts = value.arguments
    return not value.split and all(not (a.above or a.after) and _whole(a.value) for a in parts)


def _splits(value: Any) -> bool:
    """Whether a value may have an item a line; a tuple that is repeated is short, and may not."""
    if isinstance(value, Call):
        return bool(value.arguments)
    if isinstance(value, tuple):
        return len(value) > 0 and _inline(value)[-1] == ")"
    return isinstance(value, Items)


def _put(
    value: Any, before: str, end: str, indent: int, after: str = "", *, split: bool = False
) -> list[str]:
    """Lines of a value behind `before`, which has the indentation, and in front of `end`.

    split: an item a line, however short, where that is possible.
    """
    note = f"  # {after}" if after else ""
    line = f"{before}{_inline(value)}{end}"
    fits = len(line) <= WIDTH and not (split and _splits(value))
    if _whole(value) and (fits or not isinstance(value, Call | tuple | Items)):
        return _noted(line, after, indent)
    inner = indent + 4
    if isinstance(value, Call):
        lines = [f"{before}{value.name}({note}"]
        for a in value.arguments:
            lines += comment(a.above, inner)
            start = " " * inner + (f"{a.keyword}=" if a.keyword else "")
            lines += _put(a.value, start, ",", inner, a.after)
    else:
        lines = [f"{before}({note}"]
        lines += _items(value, inner)
    return [*lines, f"{' ' * indent}){end}"]


def _noted(line: str, after: str, indent: int) -> list[str]:
    """A line with a comment behind it, or above where there is no room."""
    if after and len(line) + len(after) + 4 > WIDTH:
        return [*comment(after, indent), line]
    return [f"{line}  # {after}" if after else line]


def _items(value: Any, indent: int) -> Iterator[str]:
    values = value.values if isinstance(value, Items) else value
    comments = value.comments if isinstance(value, Items) else ("",) * len(values)
    # the comma of a single item is no reason for a formatter to keep the lines, those within it are
    alone = len(values) == 1
    for item, note in zip(values, comments, strict=True):
        yield from _put(item, " " * indent, ",", indent, note, split=alone)
