"""The folder Messages: the run's log."""

from __future__ import annotations

import html
from typing import Any

from gps.gui.panels.context import PageContext
from gps.gui.run_monitor import log_parts

_COLOURS = {"warning": "#9a6700", "error": "#cf222e"}


class LogPanel:
    """The last messages of the run."""

    def __init__(self, context: PageContext) -> None:
        self._context = context
        self.folder: Any = context.server.gui.add_folder("Messages, newest first", visible=False)
        with self.folder:
            self._text = context.server.gui.add_html("")

    def show(self) -> None:
        """The messages, newest first."""
        if not self.folder.visible:
            return
        rows = []
        for line in reversed(self._context.session.monitor.log()):
            stamp, level, text = log_parts(line)
            rows.append(
                f'<div style="color:{_COLOURS.get(level, "inherit")}"><span style="opacity:.6">'
                f"{html.escape(stamp[11:])}</span> {html.escape(text)}</div>"
            )
        body = "".join(rows) or "no messages yet"
        content = f'<div id="gps-log" style="font-size:12px;padding:4px 8px">{body}</div>'
        self._context.set(self._text, content=content)
