"""The folder Training progress: plots over the iterations, of other runs too."""

from __future__ import annotations

from typing import Any

from gps.gui.panels.chart_list import ChartList
from gps.gui.panels.context import NONE, PageContext
from gps.gui.plots.types import Plot, index_axis


class ProgressPanel:
    """Training progress of the run, and of other runs as baselines."""

    def __init__(self, context: PageContext) -> None:
        self._context = context
        gui = context.server.gui
        self.folder: Any = gui.add_folder("Training progress")
        with self.folder:
            self._log = gui.add_checkbox("Logarithmic axes", False)
            self._other = gui.add_dropdown("Compare with", (NONE,))
            self._compared = gui.add_html("", visible=False)
        self._charts = ChartList(context, self.folder)
        context.on_update(self._log, self.show)
        context.on_update(self._other, self._compare)

    @property
    def plots(self) -> list[Plot]:
        """Those that are shown."""
        return self._charts.plots

    @property
    def log(self) -> bool:
        """Whether logarithmic axes are shown."""
        return bool(self._log.value)

    def show(self) -> None:
        """The plots of the stored iterations."""
        if self.folder.visible:
            self._charts.show(self._context.session.progress_plots(), log=self.log)

    def click(self, key: str, x: float) -> None:
        """A click in a chart: selects its iteration, and opens its numbers there."""
        plot = self._charts.click(key, x)
        if plot is not None and index_axis(plot) == "iteration":
            self._context.select(iteration=round(x))

    def show_runs(self) -> None:
        """The runs that it can be compared with, and those that it is."""
        session = self._context.session
        names = tuple(path.name for path in session.comparable())
        self._context.set(self._other, options=(NONE, *names))
        runs = ", ".join(f"{run.name}, {run.label}" for run in session.compare)
        self._context.text(self._compared, f"compared with: {runs}" if runs else "")

    def _compare(self) -> None:
        name, session = self._other.value, self._context.session
        if name != NONE:
            session.add(session.run.path.resolve().parent / name)
            self.show_runs()
            self._context.set(self._other, value=NONE)
            self.show()
