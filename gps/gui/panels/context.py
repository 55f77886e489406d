"""What the panels of the page share: server, session, scene, playback, and the queue of actions."""

from __future__ import annotations

import html
import logging
import queue
import time
from collections.abc import Callable
from typing import Any

from gps.errors import GPSError
from gps.gui import charts
from gps.gui.playback import Player
from gps.gui.scene import SceneView
from gps.gui.session import DEFAULT_DT, Session

log = logging.getLogger(__name__)

NONE = "(none)"
"""The entry of a dropdown that selects nothing."""

Action = Callable[[], None]


class PageContext:
    """Shared by the panels. Whatever the user does is queued, and `run_actions` executes it.

    So neither the session nor the page is touched by two threads at once, and of a slider that is
    dragged only the last position counts.
    """

    def __init__(self, server: Any, session: Session, clock: Callable[[], float]) -> None:
        self.server, self.session = server, session
        self.scene = SceneView(server)
        self.player = Player(1, DEFAULT_DT, clock=clock)
        self.palette = charts.Palette()
        self.loaded = False
        """Whether the experiment and its model may be used: loading them takes seconds."""
        self.fault = ""
        """An error that stays on the page until the next command."""
        self.on_selection: tuple[Action, ...] = ()
        """What is updated when the selection, or the files that it is read from, have changed."""
        self.on_step: tuple[Action, ...] = ()
        """What is updated when another time step has been selected."""
        self._actions: queue.Queue[tuple[str, Action]] = queue.Queue()
        self._setting = False  # what we set ourselves is no action of the user's

    # widgets

    def set(self, handle: Any, **values: Any) -> None:
        """Set those properties of a widget that differ; nothing is sent for the others."""
        self._setting = True
        try:
            charts.set_changed(handle, **values)
        finally:
            self._setting = False

    def set_slider(self, handle: Any, low: int, high: int, value: int, *, visible: bool) -> None:
        """Set bounds and value, in this order: the value must fit."""
        self.set(handle, min=low, max=high, visible=visible)
        self.set(handle, value=value)

    def text(self, handle: Any, text: str, *, name: str = "", size: int = 12) -> None:
        """Set plain text, the lines below each other; name: its id in the document."""
        lines = "<br>".join(map(html.escape, text.splitlines()))
        style = f"font-size:{size}px;padding:2px 8px"
        content = f'<div style="{style}"{f" id={name!r}" if name else ""}>{lines}</div>'
        self.set(handle, content=content, visible=bool(text))

    def on_update(self, handle: Any, action: Action) -> None:
        """Queue an action for every change of a widget by the user."""
        key = f"widget {id(handle)}"

        @handle.on_update
        def _(_: Any) -> None:
            if not self._setting:
                self.put(action, key=key)

    def on_click(self, handle: Any, action: Callable[[Any], None]) -> None:
        """Queue an action for every click; it is called with viser's event."""

        @handle.on_click
        def _(event: Any) -> None:
            self.put(lambda: action(event))

    # actions

    def put(self, action: Action, *, key: str = "") -> None:
        """Queue an action, from any thread. key: it replaces those of the same key."""
        self._actions.put((key or f"action {time.monotonic_ns()}", action))

    def run_actions(self, timeout: float) -> None:
        """Execute what is queued; waits for the first action for `timeout` seconds."""
        due: dict[str, Action] = {}
        try:
            key, action = self._actions.get(timeout=max(timeout, 0.001))
            while True:
                due.pop(key, None)
                due[key] = action
                key, action = self._actions.get_nowait()
        except queue.Empty:
            pass
        for action in due.values():
            self.guard(action)

    def guard(self, action: Action) -> None:
        """Execute an action; an error is shown, and the page continues."""
        try:
            action()
        except GPSError as error:
            self.notify(str(error), failed=True)
        except Exception as error:
            log.warning("a fault of the page", exc_info=True)
            self.fault = f"a fault of the page, not of the run: {type(error).__name__}: {error}"

    def notify(self, text: str, *, failed: bool = False) -> None:
        """Show a message in all browsers for some seconds."""
        title, seconds = ("Not done", 12.0) if failed else ("Done", 4.0)
        colour: Any = "red" if failed else "green"
        for client in self.server.get_clients().values():
            client.add_notification(title, text, auto_close_seconds=seconds, color=colour)

    # selection

    def select(self, **values: Any) -> None:
        """Change the selection, and show it."""
        self.session.select(**values)
        self.show_selection()

    def show_selection(self) -> None:
        """Show the selection in all panels."""
        for show in self.on_selection:
            show()

    def seek(self, t: int) -> None:
        """Select a time step."""
        self.player.seek(t)
        for show in self.on_step:
            show()

    def file_time(self) -> int | None:
        """Time of change of the selected iteration's file in ns; None without a file."""
        path = self.session.run.folder.iteration_path(self.session.selection.iteration)
        try:
            return path.stat().st_mtime_ns
        except OSError:
            return None
