"""Plots of runs as plain records, which the browser and matplotlib draw alike.

`progress` makes those of training progress, `inspect` those of one condition of one iteration, and
`load_plots` adds a user's own to them.
"""

from gps.gui.plots.context import PlotContext, names_of, spread_line, time_line
from gps.gui.plots.topics import TOPICS, inspect, topic_plots
from gps.gui.plots.training_progress import progress, run_labels
from gps.gui.plots.types import HeatMap, Line, LinePlot, Plot, Table
from gps.gui.plots.user import UserPlots, load_plots

__all__ = [
    "TOPICS",
    "HeatMap",
    "Line",
    "LinePlot",
    "Plot",
    "PlotContext",
    "Table",
    "UserPlots",
    "inspect",
    "load_plots",
    "names_of",
    "progress",
    "run_labels",
    "spread_line",
    "time_line",
    "topic_plots",
]
