"""The tables of a run as CSV, one row per iteration or update."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from gps.errors import StoreError
from gps.pipeline.files import reason, write_whole

log = logging.getLogger(__name__)

EVALUATION = ("condition", "cost", "distance", "success", "iteration")
"""Columns of the table of an evaluation; means over the samples of a condition."""


class Table:
    """A CSV file of numbers with a header; writing raises OSError, reading StoreError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] | None = None

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row; a column that is new is NaN in the rows before."""
        if self._columns is None:
            self._columns = self._header()
        if self._columns is None or not set(row) <= set(self._columns):
            self.write([*(self.rows() if self._columns else ()), row])
            return
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            file.write(_line([_cell(k, row.get(k, math.nan)) for k in self._columns]))

    def rows(self) -> list[dict[str, float]]:
        """All rows; a last line that was cut short is left out."""
        columns = self._header()
        if columns is None:
            return []
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"cannot read {self.path}: {reason(error)}") from error
        found = []
        for line in lines[1:]:
            cells = next(csv.reader([line]))
            try:
                if line.endswith("\n") and len(cells) == len(columns):
                    found.append(dict(zip(columns, map(float, cells), strict=True)))
            except ValueError:
                log.warning("%s: skipped a line without numbers: %s", self.path, line.strip())
        return found

    def write(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Replace the file by these rows, whole or not at all."""
        columns = list(dict.fromkeys(k for row in rows for k in row)) or ["iteration"]
        lines = [_line([_cell(k, r.get(k, math.nan)) for k in columns]) for r in rows]
        write_whole(self.path, (_line(columns) + "".join(lines)).encode())
        self._columns = columns

    def keep(self, rows: int) -> None:
        """Drop all but the first `rows` rows, if there is a file."""
        if self.path.exists():
            lines = self.path.read_bytes().splitlines(keepends=True)
            write_whole(self.path, b"".join(lines[: rows + 1]))

    def _header(self) -> list[str] | None:
        try:
            with open(self.path, encoding="utf-8", newline="") as file:
                line = file.readline()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"cannot read {self.path}: {reason(error)}") from error
        return next(csv.reader([line])) if line.endswith("\n") else None


def evaluated(path: Path) -> int | None:
    """The iteration that the table of an evaluation holds; None for any other file."""
    try:
        head, row = path.read_text(encoding="utf-8").splitlines()[:2]
    except (OSError, UnicodeDecodeError, ValueError):
        return None
    number = row.rpartition(",")[2] if tuple(head.split(",")) == EVALUATION else ""
    return int(number) if number.isdecimal() else None


def _cell(column: str, value: float) -> str:
    return repr(int(value)) if column == "iteration" or type(value) is int else repr(float(value))


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
