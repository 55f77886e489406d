"""The folder Selected condition: the plots of one topic."""

from __future__ import annotations

from typing import Any

from gps.gui.panels.chart_list import ChartList
from gps.gui.panels.context import NONE, PageContext
from gps.gui.plots.types import Plot, Table, index_axis


class ConditionPanel:
    """The results of the selected iteration for the selected condition."""

    def __init__(self, context: PageContext) -> None:
        self._context = context
        gui = context.server.gui
        self.folder: Any = gui.add_folder("Selected condition", visible=False)
        with self.folder:
            self._number = gui.add_dropdown(
                "Numbers of", (NONE,), hint=f"as a click in the chart; {NONE} closes all"
            )
            self._empty = gui.add_html("")
        self._charts = ChartList(context, self.folder)
        self._shown: Any = None  # the selection that is shown, and the time of its file
        context.on_update(self._number, self._show_numbers)

    @property
    def plots(self) -> list[Plot]:
        """Those that are shown."""
        return self._charts.plots

    def show(self) -> None:
        """The plots of the selection."""
        context, session = self._context, self._context.session
        key = (session.selection, context.file_time())
        if not self.folder.visible or self._shown == key:
            return
        self._shown = key
        self._charts.show(session.condition_plots(), group=session.selection.topic)
        names = tuple(plot.name for plot in self.plots if not isinstance(plot, Table))
        context.set(self._number, options=(*names, NONE))
        text = "this run stores nothing of this kind for the selected iteration"
        context.text(self._empty, "" if self.plots else text)

    def _show_numbers(self) -> None:
        """Open the numbers of the plot that was chosen, or close all of them."""
        if self._number.value == NONE:
            self._charts.close()
        else:
            self._charts.open(self._number.value, self._context.session.selection.t)

    def click(self, key: str, x: float) -> None:
        """A click in a chart: selects its time step, and opens its numbers there."""
        plot = self._charts.click(key, x)
        if plot is None:
            closed = not self._charts.is_open(self._number.value)
            if closed:
                self._context.set(self._number, value=NONE)
            return
        self._context.set(self._number, value=plot.name)
        if index_axis(plot) == "time step":
            self._context.player.pause()
            self._context.seek(round(x))
