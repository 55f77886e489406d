"""The panel on the left: plots, images and messages, one folder of them at a time."""

from __future__ import annotations

from gps.gui.chart_clicks import ChartClicks
from gps.gui.panels.condition import ConditionPanel
from gps.gui.panels.context import PageContext
from gps.gui.panels.images import ImagePanel
from gps.gui.panels.log import LogPanel
from gps.gui.panels.training_progress import ProgressPanel
from gps.gui.plots.types import Plot


class PlotsPanel:
    """Shows one folder: training progress, a topic of the condition, images or messages."""

    def __init__(self, context: PageContext) -> None:
        self._context = context
        gui = context.server.gui
        panel = gui.add_panel()
        # no tabs: a chart that is made in a hidden tab stays as narrow as its title
        with panel.add_tab("Plots"):
            pages = ("progress", *context.session.topics, "images", "log")
            self._page = gui.add_dropdown("Show", pages)
            self.progress = ProgressPanel(context)
            self.condition = ConditionPanel(context)
            self.images, self.log = ImagePanel(context), LogPanel(context)
            ChartClicks(context.server, lambda key, x: context.put(lambda: self._click(key, x)))
        panel.dock_left()
        panel.set_width(470)
        gui.main_panel.dock_right()
        context.on_update(self._page, self._turn)

    @property
    def plots(self) -> dict[str, Plot]:
        """The plots of the folder that is shown, by names for files."""
        plots = self.progress.plots if self.progress.folder.visible else self.condition.plots
        shown = self.progress.folder.visible or self.condition.folder.visible
        return {f"{self._page.value}_{p.name}": p for p in plots} if shown else {}

    def _turn(self) -> None:
        """Show another folder; only what is visible is computed."""
        page = self._page.value
        folders = {
            "progress": self.progress.folder,
            "images": self.images.folder,
            "log": self.log.folder,
        }
        if page not in folders:
            self._context.session.select(topic=page)
        visible = folders.get(page, self.condition.folder)
        for folder in (*folders.values(), self.condition.folder):
            self._context.set(folder, visible=folder is visible)
        self._context.show_selection()

    def _click(self, key: str, x: float) -> None:
        if self.progress.folder.visible:
            self.progress.click(key, x)
        else:
            self.condition.click(key, x)
