"""The page: its panels, and the loop that keeps them up to date."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from gps.gui import charts
from gps.gui.panels.commands import CommandPanel
from gps.gui.panels.context import PageContext
from gps.gui.panels.download import DownloadPanel
from gps.gui.panels.playback import PlaybackPanel
from gps.gui.panels.plots import PlotsPanel
from gps.gui.panels.scene import ScenePanel
from gps.gui.panels.selection import SelectionPanel
from gps.gui.session import Session

LOADING_DELAY = 2.0
"""Seconds before the experiment and its model are loaded."""
_POLL = 0.25  # seconds between looks at the run
_FRAME = 1 / 30  # seconds between frames of a playback


class Page:
    """The page of a session. `step` has to be called again and again, by one thread.

    The experiment and its model are loaded `LOADING_DELAY` later than what can be read at once is
    shown: it takes a second or two of a processor, which a browser needs to draw the rest. All
    browsers show the same, since everything belongs to the server.
    """

    def __init__(
        self, server: Any, session: Session, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        server.gui.configure_theme(
            show_logo=False,
            show_share_button=False,
            control_width="large",
            brand_color=(5, 80, 174),
        )
        charts.prepare(server)
        self._clock, self._polled, self._due = clock, -math.inf, clock() + LOADING_DELAY
        self.context = context = PageContext(server, session, clock)
        self.commands = CommandPanel(context)
        self.selection = SelectionPanel(context)
        self.playback = PlaybackPanel(context)
        self.scene = ScenePanel(context)
        self.download = DownloadPanel(context)
        self.plots = PlotsPanel(context)
        step = (
            self.playback.show,
            self.plots.images.show,
            self.plots.condition.show,
            self._show_plot_names,
        )
        context.on_step = step
        context.on_selection = (
            self.selection.show,
            self.playback.load,
            self.scene.draw,
            self.plots.progress.show,
            *step,
            self.plots.log.show,
        )
        self._show_all()

    def step(self, timeout: float = _FRAME) -> None:
        """Execute what is due: the user's actions, the playback, and a look at the run."""
        context = self.context
        playing = context.player.playing
        context.run_actions(min(timeout, _FRAME if playing else _POLL))
        if not context.loaded and self._clock() >= self._due:
            context.guard(self._load_experiment)
        if playing or context.player.playing:
            context.guard(self._play)
        if self._clock() - self._polled >= _POLL:
            self._polled = self._clock()
            context.guard(self._poll)

    def _play(self) -> None:
        if self.context.player.playing:
            self.playback.play()
        else:
            for show in self.context.on_step:  # what is slower waits for the end of the playback
                show()

    def _poll(self) -> None:
        """Look for what has changed of the run."""
        session = self.context.session
        before = session.selection
        changed = session.poll()
        error = session.monitor.resume_error()
        if error:
            self.context.fault = f"gps resume ended: {error}"
        if changed:
            self._show_all()
            return
        self.commands.show()
        self.plots.log.show()
        if before != session.selection:
            self.context.show_selection()

    def _show_all(self) -> None:
        self.context.show_selection()
        self.commands.show_options()
        self.plots.progress.show_runs()
        self.commands.show()

    def _show_plot_names(self) -> None:
        self.download.show(self.plots)

    def _load_experiment(self) -> None:
        """Show what needs the experiment and its model."""
        self.context.loaded = True
        self.commands.show_options()
        self.playback.load()
        self.scene.draw()
        self.playback.show()
        self.context.scene.aim_cameras()
