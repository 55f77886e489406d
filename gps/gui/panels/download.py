"""The folder Save: downloads of plots and of the whole page."""

from __future__ import annotations

import io
import threading
import zipfile
from typing import Any

import numpy as np

from gps.errors import ConfigError
from gps.gui import figures
from gps.gui.panels.context import NONE, PageContext
from gps.gui.panels.plots import PlotsPanel
from gps.gui.run_monitor import status_line


class DownloadPanel:
    """Sends figures to the browser that asks for them."""

    def __init__(self, context: PageContext) -> None:
        self._context = context
        self._plots: PlotsPanel | None = None
        gui = context.server.gui
        with gui.add_folder("Save", expand_by_default=False):
            page = gui.add_button("Page as PNG")
            archive = gui.add_button("All plots as PNG (zip)")
            self._plot = gui.add_dropdown("Plot", (NONE,))
            plot = gui.add_button("This plot as PNG")
        context.on_click(page, lambda event: self._page(event.client))
        context.on_click(archive, lambda event: self._archive(event.client))
        context.on_click(plot, lambda event: self._one(event.client))

    def show(self, plots: PlotsPanel) -> None:
        """The names of the plots that are shown."""
        self._plots = plots
        self._context.set(self._plot, options=tuple(plots.plots) or (NONE,))

    def _one(self, client: Any) -> None:
        plot = self._plots.plots.get(self._plot.value) if self._plots is not None else None
        if plot is None or self._plots is None:
            raise ConfigError("there is no plot to save yet")
        data = figures.draw(plot, log=self._plots.progress.log)
        _send(client, f"{self._plot.value}.png", data)

    def _archive(self, client: Any) -> None:
        session, data = self._context.session, io.BytesIO()
        log = self._plots is not None and self._plots.progress.log
        with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as archive:
            for plot in session.progress_plots():
                archive.writestr(f"progress/{plot.name}.png", figures.draw(plot, log=log))
            for topic, plots in session.all_condition_plots().items():
                for plot in plots:
                    archive.writestr(f"inspector/{topic}_{plot.name}.png", figures.draw(plot))
        _send(client, f"{session.run.name}_{session.run.label}_plots.zip", data.getvalue())

    def _page(self, client: Any) -> None:
        context, session = self._context, self._context.session
        title = (
            f"{session.run.name}, {status_line(session.monitor.status, session.monitor.connected)}"
        )
        plots = [] if self._plots is None else list(self._plots.plots.values())
        log = self._plots is not None and self._plots.progress.log

        def work() -> None:  # the image comes from the browser: the page's thread must not wait
            try:
                image = _connected(client).get_render(height=720, width=1280, timeout=60.0)
                image = np.ascontiguousarray(image[..., :3])
                whole = figures.page(plots, image, title=title, log=log)
                _send(client, f"{session.run.name}_{session.run.label}.png", whole)
            except Exception as error:
                text = f"no image of the page: {str(error) or type(error).__name__}"
                context.put(lambda: context.notify(text, failed=True))

        threading.Thread(target=work, name="gps-page", daemon=True).start()


def _connected(client: Any) -> Any:
    if client is None:
        raise ConfigError("the browser that asked is gone")
    return client


def _send(client: Any, name: str, data: bytes) -> None:
    _connected(client).send_file_download(name, data, save_immediately=True)
