"""Clicks in charts, which viser does not report.

A script in the page writes the key of the chart and the place on its x axis into a hidden text
field, and viser sends the content of a field to the server. viser keeps the line charts of the
page by their handles' identifiers; a heat map is known by the `meta` of its layout. The enlarged
copy of a line chart is kept nowhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from viser import _messages

_FIELD = "clicked"

SCRIPT = """
window.gpsClickField = "UUID";
if (!window.gpsClicks) {
  window.gpsClicks = true;
  let down = [0, 0];
  const send = (chart, x) => {
    const label = document.querySelector(`label[for="${window.gpsClickField}"]`);
    const field = label?.parentElement?.parentElement?.parentElement?.querySelector("input");
    if (!field || !Number.isFinite(x)) return;
    // React compares with the value that its own setter was given, and needs the event
    const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set;
    set.call(field, JSON.stringify({ chart, x, at: Date.now() }));
    field.dispatchEvent(new Event("input", { bubbles: true }));
  };
  document.addEventListener("mousedown", (event) => {
    down = [event.clientX, event.clientY];
    const map = event.target.closest?.(".js-plotly-plot");
    if (map && map.on && !map.gpsClicks) {
      map.gpsClicks = true;
      map.on("plotly_click", (e) => send(map.layout.meta, e.points[0].x));
    }
  }, true);
  document.addEventListener("click", (event) => {
    const over = event.target.closest?.(".u-over");
    const moved = Math.hypot(event.clientX - down[0], event.clientY - down[1]);
    if (!over || moved > 4) return; // a drag zooms
    for (const [uuid, { chart }] of Object.entries(window.__viserTestpoints?.uplots ?? {})) {
      if (chart.over === over) {
        send(uuid, chart.posToVal(event.clientX - over.getBoundingClientRect().left, "x"));
      }
    }
  }, true);
}
"""


class ChartClicks:
    """Calls `act(key of the chart, x)` for every click in a chart of the page; see `Chart.key`.

    The place on the x axis is in the units of that axis. Make it inside of the container of the
    charts. `act` is called on a thread of viser's.
    """

    def __init__(self, server: Any, act: Callable[[str, float], None]) -> None:
        field = server.gui.add_text(_FIELD, "")
        uuid = field._impl.uuid
        row = f'div:has(> div > div > * > label[for="{uuid}"])'
        server.gui.add_html(f"<style>{row} {{ display: none }}</style>")
        script = _messages.RunJavascriptMessage(source=SCRIPT.replace("UUID", uuid))
        server.gui._websock_interface.queue_message(script)

        @field.on_update
        def _(_: Any) -> None:
            click = parse_click(field.value)
            if click is not None:
                act(*click)


def parse_click(text: str) -> tuple[str, float] | None:
    """Key and place of a click, from what the page has sent; None for anything else."""
    try:
        found = json.loads(text)
        key, x = found["chart"], float(found["x"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return (key, x) if isinstance(key, str) and math.isfinite(x) else None


__all__ = ["ChartClicks", "parse_click"]
