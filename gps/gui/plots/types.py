"""Plots as plain records: numbers, labels and units, and no drawing.

The browser (`charts`) and matplotlib (`figures`) draw the same records; what makes them are the
generators in `training_progress` and `topics`, and those of a user (`user`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from gps.errors import ConfigError, ShapeError
from gps.fields import Shape
from gps.types import Array, Record

_FILE_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, eq=False)
class Line(Record):
    """One line of a plot, with a band around it where `low` and `high` are given.

    Lines whose labels agree up to the first comma belong together and share a colour.
    """

    label: str
    x: Annotated[Array, Shape("n")]
    y: Annotated[Array, Shape("n")]
    low: Annotated[Array, Shape("n")] | None = None
    high: Annotated[Array, Shape("n")] | None = None

    @property
    def band(self) -> tuple[Array, Array] | None:
        """Lower and upper edge of the band; None without one."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True, eq=False)
class _Titled(Record):
    """What every plot has; ConfigError for a name that cannot be that of a file."""

    name: str
    """Unique among the plots of its group: letters, digits and any of `_ . -`."""
    title: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.name, str) and _FILE_NAME.fullmatch(self.name)):
            raise ConfigError(
                f"{type(self).__name__}.name must consist of letters, digits, '_', '.' and '-', "
                f"got {self.name!r}"
            )


@dataclass(frozen=True, eq=False)
class LinePlot(_Titled):
    """Lines over a common axis."""

    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    log: bool = False
    """A logarithmic axis makes sense."""
    marker: float | None = None
    """Where a vertical line stands, for instance at the selected time step."""


@dataclass(frozen=True, eq=False)
class HeatMap(_Titled):
    """A matrix in colours: one row per name, one column per value of `x`."""

    x_label: str
    y_label: str
    x: Annotated[Array, Shape("n")]
    rows: tuple[str, ...]
    values: Annotated[Array, Shape("k n")]
    unit: str = ""
    marker: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.rows) != len(self.values):
            raise ShapeError(
                f"HeatMap.values must have a row for each of the {len(self.rows)} names, "
                f"got {len(self.values)}"
            )


@dataclass(frozen=True, eq=False)
class Table(_Titled):
    """Text in rows and columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ShapeError(
                    f"Table.rows must have {len(self.columns)} cells like its columns, "
                    f"got {len(row)}"
                )


Plot = LinePlot | HeatMap | Table

LOG10 = ", logarithm to base 10"
"""How the label of an x axis ends whose values are logarithms."""


def index_axis(plot: Plot) -> str:
    """The axis of a plot whose values are indices that can be selected: `time step` or `iteration`;
    empty for other axes."""
    label = "" if isinstance(plot, Table) else plot.x_label
    return next((name for name in ("time step", "iteration") if label.startswith(name)), "")


def file_name(text: str) -> str:
    """Text as the name of a plot."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_") or "unnamed"


def number_text(value: float) -> str:
    """A number in a table."""
    return f"{value:.6g}"


__all__ = ["LOG10", "HeatMap", "Line", "LinePlot", "Plot", "Table"]
__all__ += ["file_name", "index_axis", "number_text"]
