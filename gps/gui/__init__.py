"""Visualisation of runs: `gps gui RUN` in the browser, `gps plot RUN` as files.

`RunReader` reads a stored run piece by piece, also while it is still being written. `progress` and
`inspect` make plots of it, as plain records; `plot_run` draws them into files::

    from gps.gui import RunReader, inspect
    run = RunReader("runs/peg_insertion/20260101-120000-seed0")
    plots = inspect(run, iteration=3, condition=0)["dynamics"]

None of these depends on an algorithm: what a run does not hold is not shown. `load_plots` adds a
user's own plots.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gps.gui.figures import draw, page, plot_run
    from gps.gui.plots import (
        HeatMap,
        Line,
        LinePlot,
        Plot,
        PlotContext,
        Table,
        inspect,
        load_plots,
        progress,
    )
    from gps.gui.run_reader import RunReader, Sample

__all__ = [
    "HeatMap",
    "Line",
    "LinePlot",
    "Plot",
    "PlotContext",
    "RunReader",
    "Sample",
    "Table",
    "draw",
    "inspect",
    "load_plots",
    "page",
    "plot_run",
    "progress",
]

_FOUND_IN = {
    "figures": ("draw", "page", "plot_run"),
    "plots": (
        *("HeatMap", "Line", "LinePlot", "Plot", "PlotContext", "Table"),
        *("inspect", "load_plots", "progress"),
    ),
    "run_reader": ("RunReader", "Sample"),
}


def __getattr__(name: str) -> Any:
    """Import on first use: the page is served before what reads runs is loaded."""
    for module, names in _FOUND_IN.items():
        if name in names:
            return getattr(import_module(f"gps.gui.{module}"), name)
    raise AttributeError(f"module 'gps.gui' has no attribute {name!r}")
