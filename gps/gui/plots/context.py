"""What a generator of plots takes: one condition of one iteration, with names for its axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from gps.errors import GPSError
from gps.gui.plots.types import HeatMap, Line, LinePlot
from gps.protocols import action_names_of
from gps.types import Array, Layout, Rollouts

if TYPE_CHECKING:
    from gps.gui.run_reader import RunReader


@dataclass(frozen=True, eq=False)
class PlotContext:
    """One condition of one iteration of a run, from which plots are made, and their labels."""

    run: RunReader
    iteration: int
    condition: int
    sample: int = 0
    """The sampled rollout that is shown on its own."""
    t: int | None = None
    """The selected time step, which plots mark; None for none."""
    evaluation: tuple[str, Rollouts] | None = None
    """Name and rollouts (N = 1) of a noise-free rollout that is shown in place of the sample."""

    @property
    def at(self) -> tuple[int, int]:
        """Iteration and condition, the arguments of the reader's methods."""
        return self.iteration, self.condition

    @cached_property
    def rollouts(self) -> Rollouts | None:
        """The samples, without images; None where there are none, or not so many as `sample`."""
        found = self.run.rollouts(*self.at)
        return found if found is not None and 0 <= self.sample < found.N else None

    @cached_property
    def time_label(self) -> str:
        """Label of a time axis."""
        try:
            return f"time step t ({self.run.agent.dt:g} s each)"
        except GPSError:  # an agent that cannot be built here: its records can still be read
            return "time step t"

    def state_names(self, nx: int) -> tuple[str, ...]:
        """A name for each of nx state values."""
        try:
            names = names_of(self.run.layout)
        except GPSError:
            names = ()
        return names if len(names) == nx else tuple(f"x {i}" for i in range(nx))

    def action_names(self, nu: int) -> tuple[str, ...]:
        """A name for each of nu actions."""
        try:
            names = action_names_of(self.run.agent)
        except GPSError:
            names = ()
        return names if len(names) == nu else tuple(f"action {i}" for i in range(nu))

    def time_plot(
        self, name: str, title: str, y_label: str, lines: Sequence[Line], *, log: bool = False
    ) -> LinePlot:
        """Lines over the time steps, the selected step marked."""
        marker = None if self.t is None else float(self.t)
        return LinePlot(name, title, self.time_label, y_label, tuple(lines), log, marker)

    def columns(
        self,
        name: str,
        title: str,
        y_label: str,
        values: Array,
        labels: Sequence[str],
        *,
        log: bool = False,
    ) -> LinePlot:
        """The columns of values (T, k) over the time steps."""
        lines = [time_line(label, y) for label, y in zip(labels, values.T, strict=True)]
        return self.time_plot(name, title, y_label, lines, log=log)

    def heat_map(
        self, name: str, title: str, values: Array, rows: Sequence[str], unit: str = ""
    ) -> HeatMap:
        """The rows of values (k, T) in colours over the time steps."""
        marker = None if self.t is None else float(self.t)
        x = np.arange(values.shape[1], dtype=float)
        return HeatMap(name, title, self.time_label, "", x, tuple(rows), values, unit, marker)


def time_line(label: str, y: Array, low: Array | None = None, high: Array | None = None) -> Line:
    """A line over the time steps 0, 1, ..."""
    return Line(label, np.arange(len(y), dtype=float), y, low, high)


def spread_line(label: str, values: Array) -> Line:
    """Mean and range over samples of values (N, T)."""
    return time_line(label, values.mean(0), values.min(0), values.max(0))


def names_of(layout: Layout) -> tuple[str, ...]:
    """A name for every value of a vector: `position 0`, `position 1`, ..., `height`."""
    return tuple(
        f"{name} {i}" if size > 1 else name for name, size in layout.entries for i in range(size)
    )


__all__ = ["PlotContext", "names_of", "spread_line", "time_line"]
