"""Plots in the browser: lines by uPlot, heat maps by Plotly, tables as HTML, updated in place.

`uplot_options`, `plotly_figure` and `table_html` turn a plot into what is sent to the browser;
`Chart` keeps what it sent last, and sends nothing while that is the same.
"""

from __future__ import annotations

import colorsys
import html
import json
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from gps.gui.plots.types import HeatMap, Line, LinePlot, Plot, Table, index_axis
from gps.types import Array

_HUES = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"),
    *("#8c564b", "#e377c2", "#17becf", "#bcbd22", "#7f7f7f"),
)
_EDGE = "gps-edge"
STYLE = (
    f"<style>.u-legend .{_EDGE} {{ display: none }} .u-title {{ font-size: 13px }} "
    # values that come and go with the pointer must not move what is below
    ".u-legend .u-value { display: inline-block; min-width: 4.5em; text-align: left }</style>"
)
"""For the page, once: edges of bands and markers are series to uPlot, but none for a reader."""
_ASPECT = 1.6  # width over height


class Palette:
    """Colours by label: the same label has the same colour in every chart that shares the palette.

    What is numbered has its colour by its number, the rest as they come: the usual ten first, later
    ones hues that lie between.
    """

    def __init__(self) -> None:
        self._given: dict[str, str] = {}

    def __call__(self, label: str) -> str:
        """The colour of a label, as #rrggbb."""
        if found := re.match(r"(?:action|condition|sample|x) (\d+)$", label):
            return self._hue(int(found[1]))  # whatever was shown before
        if label not in self._given:
            self._given[label] = self._hue(len(self._given))
        return self._given[label]

    @staticmethod
    def _hue(i: int) -> str:
        return _HUES[i] if i < len(_HUES) else _between(i - len(_HUES))


def _between(i: int) -> str:
    """Hues by the golden ratio: none comes twice, and neighbours in time differ most."""
    hue, level = (0.07 + i * 0.6180339887) % 1.0, (0.45, 0.6, 0.35)[i % 3]
    return "#" + "".join(f"{round(255 * v):02x}" for v in colorsys.hls_to_rgb(hue, level, 0.65))


# --- lines ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LineData:
    """Columns over one common axis, the form of uPlot's data."""

    x: tuple[float, ...]
    """Ascending; that of the marker occurs twice."""
    columns: tuple[tuple[float | None, ...], ...]
    """One per line and two per band, upper edge first; None is a gap."""
    dropped: int
    """Values that a logarithmic axis cannot show."""


def line_data(plot: LinePlot, *, log: bool = False) -> LineData:
    """The lines of a plot on one axis that holds every x of every line.

    A line is interpolated where others have an x and it has none; before its first and after its
    last point it has gaps, and wherever it is NaN or infinite or, with `log`, not above zero.
    """
    grids = [np.asarray(line.x, float) for line in plot.lines]
    marks = [] if plot.marker is None else [float(plot.marker)] * 2
    every = np.concatenate([g[np.isfinite(g)] for g in grids]) if grids else np.empty(0)
    x = np.unique(every)
    if marks and np.isfinite(marks[0]) and len(x):
        x = np.sort(np.concatenate([x[x != marks[0]], marks]))
    columns, dropped = [], 0
    for line, grid in zip(plot.lines, grids, strict=True):
        for y in _band(line):
            column, lost = _on(x, grid, np.asarray(y, float), log=log)
            columns.append(column)
            dropped += lost
    return LineData(tuple(x.tolist()), tuple(columns), dropped)


def _band(line: Line) -> list[Array]:
    """Values of a line, and upper and lower edge of its band if it has one."""
    return [line.y, *(() if line.band is None else reversed(line.band))]


def _on(x: Array, grid: Array, y: Array, *, log: bool) -> tuple[tuple[float | None, ...], int]:
    """Values of one line at `x`, None for gaps, and the number that a logarithmic axis drops."""
    finite = np.isfinite(grid)
    order = np.argsort(grid[finite], kind="stable")
    grid, y = grid[finite][order], y[finite][order]
    dropped = np.isfinite(y) & (y <= 0) if log else np.zeros_like(y, bool)
    if not len(grid) or not len(x):
        return (None,) * len(x), int(dropped.sum())
    y = np.where(np.isfinite(y) & ~dropped, y, np.nan)  # NaN at either end of a segment is a gap
    values = np.interp(x, grid, y, left=np.nan, right=np.nan)
    return tuple(None if v != v else v for v in values.tolist()), int(dropped.sum())


@dataclass(frozen=True)
class UplotOptions:
    """uPlot's data, which change often, and its options."""

    data: tuple[tuple[float | None, ...], ...]
    options: dict[str, Any]


def uplot_options(plot: LinePlot, colour: Palette, *, log: bool = False) -> UplotOptions | None:
    """A plot for uPlot; None where it has nothing to draw.

    log: a logarithmic y axis, if one makes sense for the plot and a value is above zero.
    """
    log = log and plot.log
    data = line_data(plot, log=log)
    if log and not _anything(data):
        log, data = False, line_data(plot)
    if not _anything(data):
        return None
    series: list[dict[str, Any]] = [{"label": plot.x_label}]
    bands: list[dict[str, Any]] = []
    for line in plot.lines:
        hue, at = colour(line.label), len(series)
        series.append({"label": line.label, "stroke": hue, "width": 1.5, "scale": "y"})
        if line.band is not None:
            edge = {"stroke": "transparent", "scale": "y", "class": _EDGE, "points": _NO_POINTS}
            series += [{"label": f"{line.label}, {which}", **edge} for which in ("high", "low")]
            bands.append({"series": (at + 1, at + 2), "fill": f"{hue}2e"})
    columns = [data.x, *data.columns]
    scales: dict[str, Any] = {"x": {"time": False}, "y": {"distr": 3 if log else 1}}
    if data.x[0] < data.x[-1]:
        # given, since the page would keep its zoom, and sometimes takes the axis for shorter
        scales["x"]["range"] = (data.x[0], data.x[-1])
    if plot.marker is not None:
        columns.append(_marker(data.x, float(plot.marker)))
        mark = {"stroke": "#888", "width": 1, "dash": (4, 3), "points": _NO_POINTS}
        series.append({"label": "marker", "scale": "marker", "class": _EDGE, **mark})
        scales["marker"] = {"range": (0.0, 1.0), "auto": False}
    title = plot.title
    if data.dropped:
        values = "value" if data.dropped == 1 else "values"
        title += f" ({data.dropped} {values} not above 0 left out)"
    options = {
        "series": tuple(series),
        "bands": tuple(bands) or None,
        "scales": scales,
        "axes": (
            {"scale": "x", "label": plot.x_label, "size": 32, **_AXIS, **_ticks(plot)},
            {"scale": "y", "label": plot.y_label, "size": 62, **_AXIS},
        ),
        "title": title,
        "legend": {"show": True, "live": True},
        "cursor": {"focus": {"prox": 16}, "points": {"one": True}},
        "focus": {"alpha": 0.3},
        "padding": (8, 16, 0, 0),
    }
    return UplotOptions(tuple(columns), options)


_NO_POINTS = {"show": False}
_AXIS = {
    "labelSize": 16,
    "labelGap": 0,
    "labelFont": "11px sans-serif",
    "font": "10px sans-serif",
    "ticks": {"size": 4, "width": 1},
}


def _ticks(plot: LinePlot) -> dict[str, Any]:
    """Whole numbers on the axis of an index."""
    whole = {"incrs": tuple(k * 10**n for n in range(7) for k in (1, 2, 5))}
    return whole if index_axis(plot) else {}


def _anything(data: LineData) -> bool:
    return any(value is not None for column in data.columns for value in column)


def _marker(x: tuple[float, ...], place: float) -> tuple[float | None, ...]:
    """From the bottom to the top of a scale of its own, at the two columns of that place."""
    values: list[float | None] = [None] * len(x)
    if place in x:
        first = x.index(place)
        values[first : first + 2] = [0.0, 1.0]
    return tuple(values)


# --- heat maps and tables -------------------------------------------------------------------------


def plotly_figure(plot: HeatMap) -> dict[str, Any]:
    """A heat map as Plotly takes it: row, place and value appear where the pointer is."""
    unit = f" {plot.unit}" if plot.unit not in ("", "1") else ""
    values = np.asarray(plot.values, float)
    hover = f"%{{y}}<br>{_text(plot.x_label)}: %{{x}}<br>%{{z:.4g}}{_text(unit)}<extra></extra>"
    finite = values[np.isfinite(values)]
    signed = bool(finite.size and finite.min() < 0 < finite.max())
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": np.asarray(plot.x, float).tolist(),
        "y": [_text(row) for row in plot.rows],
        "z": [[v if np.isfinite(v) else None for v in row] for row in values.tolist()],
        "hovertemplate": hover,
        "hoverongaps": False,
        "colorscale": "RdBu" if signed else "Viridis",
        # below, where it takes no width from the steps
        "colorbar": {"orientation": "h", "thickness": 8, "len": 1.0}
        | {"y": 0.0, "yref": "container", "yanchor": "bottom"}
        | {"title": {"text": _text(plot.unit), "side": "right"}},
    }
    if signed:  # zero is white
        trace |= {"zmid": 0.0}
    lines = []
    if plot.marker is not None and np.isfinite(plot.marker):
        place = {"x0": float(plot.marker), "x1": float(plot.marker), "y0": 0, "y1": 1}
        line = {"color": "#888", "width": 1, "dash": "dash"}
        lines.append({"type": "line", "xref": "x", "yref": "paper", **place, "line": line})
    longest = max(map(len, plot.rows), default=0)
    left = 14 + 5 * min(longest, 44) + (16 if plot.y_label else 0)  # px; letters of 10 px
    layout = {
        "meta": plot.name,
        "title": {"text": _text(plot.title), "font": {"size": 13}},
        "xaxis": {"title": {"text": _text(plot.x_label)}},
        # the first row on top, and names that look like numbers stay names
        "yaxis": {"type": "category", "autorange": "reversed"}
        | {"title": {"text": _text(plot.y_label)}},
        # fixed: Plotly finds margins by drawing again and again, also when the plot is gone already
        "margin": {"l": left, "r": 10, "t": 34, "b": 66, "autoexpand": False},
        "font": {"size": 10, "color": "#888"},  # on a page that may be light or dark
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "shapes": lines,
    }
    # its buttons cover the title, and one of them sends the data to a service
    return {"data": [trace], "layout": layout, "config": {"displayModeBar": False}}


def _text(text: str) -> str:
    """Text for Plotly, which reads some tags."""
    return html.escape(text, quote=False)


def table_html(plot: Table) -> str:
    """A table as HTML; everything in it is text."""

    def cells(values: Sequence[str], tag: str) -> str:
        style = "padding:2px 8px 2px 0;text-align:left;vertical-align:top"
        return "".join(f'<{tag} style="{style}">{html.escape(v)}</{tag}>' for v in values)

    rows = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in plot.rows)
    return (
        '<div style="font-size:12px;overflow-x:auto;padding:4px 8px">'
        f"<b>{html.escape(plot.title)}</b>"
        f'<table style="border-collapse:collapse"><thead><tr>{cells(plot.columns, "th")}</tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _nothing(title: str) -> str:
    return (
        '<div style="font-size:12px;padding:4px 8px">'
        f"<b>{html.escape(title)}</b><br>nothing to show yet</div>"
    )


# --- in the browser -------------------------------------------------------------------------------


def prepare(server: Any) -> Any:
    """Send the style sheet of all charts; call it once, outside of any container."""
    return server.gui.add_html(STYLE, order=1e9)


class Chart:
    """One place in the GUI that shows a plot, or another one in its stead.

    container: the folder, tab or panel that it belongs to; None for the one that is current
    whenever another kind of plot is shown. The chart keeps its place among its neighbours. Charts
    that share a palette share their colours. Not to be used from several threads at once.

    Nothing is ever removed from the page, only hidden: the page applies what belongs together in
    one go, removals first, and complains of changes to what it has just removed.
    """

    def __init__(self, server: Any, palette: Palette | None = None, container: Any = None) -> None:
        self._server, self._container = server, container
        self._colour = palette if palette is not None else Palette()
        self._kind = ""
        self._sent: dict[str, Any] = {}
        self._handles: dict[str, Any] = {}
        self._note: Any = None

    def show(self, plot: Plot, *, log: bool = False) -> bool:
        """Show a plot; whether anything was sent to the browser.

        log: a logarithmic axis for lines, where it makes sense.
        """
        kind, content = self._content(plot, log)
        if kind == self._kind and content == self._sent[kind]:
            return False
        if kind not in self._handles:
            self._create(kind, content)
        elif content != self._sent[kind]:
            self._update(kind, content)
        if kind != self._kind:
            self.hide()
            self._handles[kind].visible = True
        self._kind, self._sent[kind] = kind, content
        return True

    def hide(self) -> None:
        """Take the chart off the page; showing something brings it back in its place."""
        if self._kind:
            self._handles[self._kind].visible = False
        self._kind = ""
        self.note("")

    def note(self, content: str) -> None:
        """Show this HTML below the chart; nothing if it is empty."""
        if self._note is None:
            if not content or not self._kind:
                return
            order = self._handles[self._kind].order + 0.5  # charts are a whole number apart
            with self._container if self._container is not None else nullcontext():
                self._note = self._server.gui.add_html("", order=order, visible=False)
        set_changed(self._note, content=content, visible=bool(content))

    @property
    def visible(self) -> bool:
        """Whether the chart is on the page."""
        return bool(self._kind)

    @property
    def key(self) -> str:
        """What a click in the chart is reported with; empty where no chart is shown."""
        if self._kind in ("lines", "point"):
            return str(self._handles[self._kind]._impl.uuid)
        sent: Any = self._sent.get(self._kind)
        return str(sent["layout"]["meta"]) if self._kind == "heat map" else ""

    def _content(self, plot: Plot, log: bool) -> tuple[str, Any]:
        if isinstance(plot, LinePlot):
            options = uplot_options(plot, self._colour, log=log)
            if options is not None:  # an axis that was made for one point does not grow
                return ("lines" if len(set(options.data[0])) > 1 else "point"), options
            return "text", _nothing(plot.title)
        if isinstance(plot, HeatMap):
            if np.size(plot.values):
                return "heat map", plotly_figure(plot)
            return "text", _nothing(plot.title)
        return "text", table_html(plot)

    def _create(self, kind: str, content: Any) -> None:
        """An element of another kind in the same place."""
        gui = self._server.gui
        order = next((handle.order for handle in self._handles.values()), None)
        with self._container if self._container is not None else nullcontext():
            if kind in ("lines", "point"):
                columns = tuple(np.array(c, dtype=float) for c in content.data)
                handle = gui.add_uplot(columns, aspect=_ASPECT, **content.options, order=order)
                self._send(handle, content.data)
            elif kind == "heat map":
                rows = len(content["data"][0]["y"])
                aspect = min(2.6, max(0.62, 0.3 + 0.012 * rows))  # height by width
                handle = gui.add_plotly(_Figure(content), aspect=aspect, order=order)
            else:
                handle = gui.add_html(content, order=order)
        self._handles[kind] = handle

    def _update(self, kind: str, content: Any) -> None:
        handle, sent = self._handles[kind], self._sent[kind]
        if kind in ("lines", "point"):
            for name, value in content.options.items():
                if sent.options[name] != value:
                    setattr(handle, name, value)
            if sent.data != content.data:
                self._send(handle, content.data)
        elif kind == "heat map":
            handle.figure = _Figure(content)
        else:
            handle.content = content

    def _send(self, handle: Any, data: tuple[tuple[float | None, ...], ...]) -> None:
        """Set the data. Arrays have no null, which is a gap to uPlot, while NaN is bridged."""
        if any(value is None for column in data for value in column):
            handle.data = [list(column) for column in data]
        else:
            handle.data = tuple(np.array(column, dtype=float) for column in data)


def set_changed(handle: Any, **values: Any) -> None:
    """Set those properties of a widget that differ; nothing is sent for the others."""
    for name, value in values.items():
        if getattr(handle, name) != value:
            setattr(handle, name, value)


class _Figure:
    """The interface of a figure that viser uses; plotly's own takes half a second to import."""

    def __init__(self, figure: dict[str, Any]) -> None:
        self._figure = figure

    def to_json(self) -> str:
        """The figure as JSON."""
        return json.dumps(self._figure)


__all__ = ["STYLE", "Chart", "LineData", "Palette", "UplotOptions", "line_data", "plotly_figure"]
__all__ += ["prepare", "set_changed", "table_html", "uplot_options"]
