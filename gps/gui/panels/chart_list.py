"""Charts below each other in a folder, with the numbers at a place that a click opens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gps.gui import charts
from gps.gui.panels.context import PageContext
from gps.gui.plots.types import LOG10, LinePlot, Plot, Table, index_axis


class ChartList:
    """The charts of one folder."""

    def __init__(self, context: PageContext, folder: Any) -> None:
        self._context, self._folder = context, folder
        self._charts: list[charts.Chart] = []
        self._group = ""
        self._open: dict[tuple[str, str], float] = {}  # by group and plot: place on the x axis
        self.plots: list[Plot] = []

    def show(self, plots: Sequence[Plot], *, group: str = "", log: bool = False) -> None:
        """Show these plots in place of those before; group: a plot's name is unique in its own."""
        self.plots, self._group = list(plots), group
        with self._context.server.atomic():
            while len(self._charts) < len(self.plots):
                new = charts.Chart(self._context.server, self._context.palette, self._folder)
                self._charts.append(new)
            for chart, plot in zip(self._charts, self.plots, strict=False):
                chart.show(plot, log=log)
            for chart in self._charts[len(self.plots) :]:
                chart.hide()
        self.show_numbers()

    def show_numbers(self) -> None:
        """Below each chart whose numbers are open, those at the selected place."""
        for chart, plot in zip(self._charts, self.plots, strict=False):
            text = ""
            if (self._group, plot.name) in self._open and not isinstance(plot, Table):
                place = self._place(plot, self._open[self._group, plot.name])
                text = (
                    '<div class="gps-numbers" style="max-height:240px;overflow:auto">'
                    f"{charts.table_html(numbers_at(plot, place))}</div>"
                )
            chart.note(text)

    def open(self, name: str, x: float) -> None:
        """Open the numbers of a plot."""
        self._open[self._group, name] = x
        self.show_numbers()

    def close(self) -> None:
        """Close all numbers."""
        self._open.clear()
        self.show_numbers()

    def click(self, key: str, x: float) -> Plot | None:
        """A click in a chart, by its key: opens its numbers at x, or closes those that are there.

        Returns the plot if they were opened.
        """
        pairs = zip(self._charts, self.plots, strict=False)
        for plot in (plot for chart, plot in pairs if key and chart.key == key):
            name = self._group, plot.name
            place = self._place(plot, self._open.get(name, x))
            if name in self._open and _label(plot, x) == _label(plot, place):
                del self._open[name]
                self.show_numbers()
                return None
            self.open(plot.name, x)
            return plot
        return None

    def is_open(self, name: str) -> bool:
        """Whether the numbers of a plot are open."""
        return (self._group, name) in self._open

    def _place(self, plot: Plot, x: float) -> float:
        """Where the numbers of a plot are taken that was clicked at x."""
        s = self._context.session.selection
        return {"time step": s.t, "iteration": s.iteration}.get(index_axis(plot), x)


def _label(plot: Plot, x: float) -> str:
    return numbers_at(plot, x).title


def numbers_at(plot: Plot, x: float) -> Table:
    """The numbers of a plot at the place nearest to x, as a table."""
    if isinstance(plot, Table):
        return plot
    rows: list[tuple[str, ...]] = []
    place, unit, banded = float("nan"), "", False
    if isinstance(plot, LinePlot):
        unit = plot.y_label
        banded = any(line.band is not None for line in plot.lines)
        for line in (line for line in plot.lines if len(line.x)):
            i = int(np.argmin(np.abs(line.x - x)))
            place, band = float(line.x[i]), ""
            if line.band is not None:
                low, high = line.band
                band = f"{low[i]:.6g} to {high[i]:.6g}"
            rows.append((line.label, f"{line.y[i]:.6g}", *((band,) if banded else ())))
    elif len(plot.x):
        unit = plot.unit
        i = int(np.argmin(np.abs(plot.x - x)))
        place = float(plot.x[i])
        column = plot.values[:, i]
        rows = [(name, f"{value:.6g}") for name, value in zip(plot.rows, column, strict=True)]
    columns = ("", "value" if unit in ("", "1") else unit, *(("range",) if banded else ()))
    label = plot.x_label
    if label.endswith(LOG10):
        label, place = label.removesuffix(LOG10), 10**place
    return Table("numbers", f"{label} = {place:.6g}", columns, tuple(rows))
