"""Plots as PNG files, drawn by matplotlib without a display and without its global state."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gps.errors import ConfigError, StoreError
from gps.extras import needed_by
from gps.gui.plots import (
    TOPICS,
    HeatMap,
    LinePlot,
    Plot,
    PlotContext,
    Table,
    load_plots,
    progress,
    topic_plots,
)
from gps.gui.plots.user import TOPIC
from gps.gui.run_reader import RunReader
from gps.pipeline.progress import Choice
from gps.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (8.0, 4.2)
"""Width and height of a figure in inches."""
_DPI = 110
_LEGEND = 16  # entries of a legend
_ROWS = 40  # rows of a table that are drawn, and row labels of a heat map
_COLUMNS = 9  # columns of a table that are drawn
_STYLES = ("-", "--", ":", "-.")


def draw(
    plot: Plot,
    path: str | Path | None = None,
    *,
    log: bool = False,
    size: tuple[float, float] = SIZE,
) -> bytes:
    """A plot as PNG, also written to `path` where one is given.

    log: logarithmic axis where it makes sense for the plot and its values are above zero.
    size: width and height in inches; heat maps and tables grow with their rows. Raises ConfigError
    without matplotlib, StoreError when the file cannot be written.
    """
    figure = _figure((max(size[0], _width(plot)), max(size[1], _height(plot))))
    _paint(figure.subplots(), plot, log)
    return _png(figure, path)


def page(
    plots: Sequence[Plot],
    image: npt.NDArray[np.uint8] | None = None,
    *,
    title: str = "",
    log: bool = False,
    columns: int = 2,
) -> bytes:
    """Plots side by side in one PNG, below an image (height, width, 3) where one is given."""
    columns = max(1, min(columns, len(plots)))
    lines = [list(plots[i : i + columns]) for i in range(0, len(plots), columns)]
    heights = [max(SIZE[1], *map(_height, line)) for line in lines]
    width = SIZE[0] * columns
    if image is not None:
        heights.insert(0, min(width * image.shape[0] / image.shape[1], 7.0))
    if not heights:
        raise ConfigError("a page needs a plot or an image; give at least one")
    figure = _figure((width, sum(heights) + 0.4 * bool(title)))
    if title:
        figure.suptitle(title)
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)
    parts = list(parts[:, 0])
    if image is not None:
        axes = parts[0].subplots()
        axes.imshow(image)
        axes.set_axis_off()
        parts = parts[1:]
    for part, line in zip(parts, lines, strict=True):
        cells = part.subplots(1, columns, squeeze=False)[0]
        for axes, plot in zip(cells, line, strict=False):
            _paint(axes, plot, log)
        for axes in cells[len(line) :]:
            axes.set_axis_off()
    return _png(figure, None)


def numbers(plot: Plot) -> str:
    """The numbers of a plot as CSV.

    Lines: a row per point, with the line's label, x, y, and the ends of its band. Heat maps: a row
    per row, a column per value of x.
    """
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    if isinstance(plot, LinePlot):
        out.writerow(("line", plot.x_label, plot.y_label, "low", "high"))
        for line in plot.lines:
            edges = [
                [""] * len(line.x) if edge is None else map(_number, edge)
                for edge in (line.low, line.high)
            ]
            values = zip(map(_number, line.x), map(_number, line.y), *edges, strict=True)
            out.writerows((line.label, *row) for row in values)
    elif isinstance(plot, HeatMap):
        out.writerow((plot.unit or "row", *map(_number, plot.x)))
        rows = zip(plot.rows, plot.values, strict=True)
        out.writerows((name, *map(_number, values)) for name, values in rows)
    else:
        out.writerow(plot.columns)
        out.writerows(plot.rows)
    return text.getvalue()


def plot_run(
    path: str | Path,
    out: str | Path,
    *,
    iteration: int | Choice = "best",
    condition: int | None = None,
    sample: int = 0,
    t: int | None = None,
    compare: Sequence[str | Path] = (),
    plots: Sequence[str | Path] = (),
    log: bool = False,
) -> list[Path]:
    """Write the plots of a run as PNG, and their numbers as CSV next to them.

    `out/progress/NAME.png` shows the whole run, together with the runs in `compare`;
    `out/iteration_0012/condition_0/TOPIC_NAME.png` one condition of one iteration. iteration:
    `best` (see `gps.pipeline.progress`), `last` or a number. condition: None takes condition 0.
    sample, t: as for `plots.inspect`. plots: files with plots of the user's (see
    `gps.gui.load_plots`). log: logarithmic axes where they make sense. Returns the PNG files.

    Raises StoreError (no run, no such iteration, a file that cannot be written), ConfigError (no
    such condition or sample, another word for the iteration; matplotlib is missing; a plot of the
    user's that cannot be made, after all others have been written) and ExperimentError (a file of
    `plots` that cannot be executed).
    """
    _matplotlib()
    user = load_plots(*plots)
    run = RunReader(path)
    runs = [run, *map(RunReader, compare)]
    n = run.choose(iteration)
    m = 0 if condition is None else condition
    if n is not None:
        if not 0 <= m < run.conditions:
            raise ConfigError(f"condition must be in 0..{run.conditions - 1}, got {m}")
        if n > 0 and not 0 <= sample < run.samples(n):
            raise ConfigError(f"sample must be in 0..{run.samples(n) - 1}, got {sample}")
        controller = run.controller(n, m)
        if t is not None and controller is not None and not 0 <= t < controller.T:
            raise ConfigError(f"time step must be in 0..{controller.T - 1}, got {t}")
    out = Path(out)
    made = progress(runs)
    custom = user.progress(runs, taken=[plot.name for plot in made])
    failures = custom.failures
    files = [_write(plot, out / "progress", plot.name, log) for plot in [*made, *custom.plots]]
    if n is not None:
        folder = out / f"iteration_{n:04d}" / f"condition_{m}"
        context = PlotContext(run, n, m, sample, t)
        for name in TOPICS:
            for plot in topic_plots(name, context):
                files.append(_write(plot, folder, f"{name}_{plot.name}", log))
        custom = user.condition(context)
        failures += custom.failures
        files += [_write(plot, folder, f"{TOPIC}_{plot.name}", log) for plot in custom.plots]
    for failure in failures:
        failure.log()
    if failures:
        raise ConfigError("; ".join(failure.text for failure in failures))
    if not files:
        raise StoreError(f"{run.path} holds nothing to plot yet: no iteration is stored")
    return files


def _write(plot: Plot, folder: Path, name: str, log: bool) -> Path:
    path = folder / f"{name}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".csv").write_text(numbers(plot), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    draw(plot, path, log=log)
    return path


def _number(value: float) -> str:
    return repr(float(value))


# --- drawing


def _matplotlib() -> Any:
    with needed_by("a plot"):
        import matplotlib
        import matplotlib.figure
    return matplotlib


def _figure(size: tuple[float, float]) -> Figure:
    figure: Figure = _matplotlib().figure.Figure(figsize=size, dpi=_DPI, layout="constrained")
    return figure


def _png(figure: Figure, path: str | Path | None) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    data = buffer.getvalue()
    if path is not None:
        try:
            Path(path).write_bytes(data)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    return data


def _height(plot: Plot) -> float:
    """Inches that a plot needs, if it needs more than usual."""
    if isinstance(plot, HeatMap):
        return 1.4 + 0.17 * min(len(plot.rows), 60)
    if isinstance(plot, Table):
        return 0.9 + 0.22 * (min(len(plot.rows), _ROWS) + 1)
    return 0.0


def _width(plot: Plot) -> float:
    """Inches that a plot needs, if it needs more than usual."""
    return sum(_widths(plot)) + 0.5 if isinstance(plot, Table) else 0.0


def _paint(axes: Axes, plot: Plot, log: bool) -> None:
    axes.set_title(_wrapped(plot.title), fontsize=10)
    if isinstance(plot, LinePlot):
        _lines(axes, plot, log)
    elif isinstance(plot, HeatMap):
        _heat(axes, plot)
    else:
        _table(axes, plot)


def _wrapped(text: str, width: int = 84) -> str:
    return "\n".join(textwrap.wrap(text, width))


def _lines(axes: Axes, plot: LinePlot, log: bool) -> None:
    families = list(dict.fromkeys(line.label.split(",")[0] for line in plot.lines))
    colours = _colours(len(families))
    logarithmic = log and plot.log and _can_be_log(plot)
    count: dict[str, int] = {}
    for line in plot.lines:
        family = line.label.split(",")[0]
        colour = colours[families.index(family)]
        style = _STYLES[count.get(family, 0) % len(_STYLES)]
        count[family] = count.get(family, 0) + 1
        marker = "o" if len(line.x) <= 25 else None  # a single point makes no line
        # zeros are gaps on a logarithmic axis, not falls to its lower end
        y = np.where(line.y > 0, line.y, np.nan) if logarithmic else line.y
        axes.plot(line.x, y, style, color=colour, label=line.label, lw=1.4, marker=marker, ms=3)
        if line.band is not None:
            axes.fill_between(line.x, *line.band, color=colour, alpha=0.18, lw=0)
    if plot.marker is not None:
        axes.axvline(plot.marker, color="0.35", lw=0.8, ls=":")
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    axes.grid(alpha=0.25)
    _whole_ticks(axes, [line.x for line in plot.lines])
    if logarithmic:
        axes.set_yscale("log")
    _legend(axes)


def _whole_ticks(axes: Axes, xs: Sequence[Array]) -> None:
    """No half iterations, steps or components on the axis."""
    if all(np.array_equal(x, np.round(x)) for x in xs):
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _can_be_log(plot: LinePlot) -> bool:
    """Whether no value is below zero; zeros are left out of a logarithmic axis."""
    y = np.concatenate([line.y for line in plot.lines]) if plot.lines else np.zeros(1)
    y = y[np.isfinite(y)]
    return bool(y.size and (y >= 0).all() and (y > 0).any())


def _legend(axes: Axes) -> None:
    """Beside the data, not over them; a long one is cut, with a note."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2 and not any("," in label or " " in label for label in labels):
        return
    title = None
    if len(labels) > _LEGEND:
        title = f"{_LEGEND} of {len(labels)} lines"
        keep = np.unique(np.linspace(0, len(labels) - 1, _LEGEND).round().astype(int))
        handles, labels = [handles[i] for i in keep], [labels[i] for i in keep]
    labels = ["\n".join(_wrapped(label, 34).splitlines()) for label in labels]
    axes.legend(handles, labels, title=title, loc="upper left", bbox_to_anchor=(1.01, 1.0),
                borderaxespad=0.0, fontsize=8, title_fontsize=8, frameon=False)  # fmt: skip


def _colours(n: int) -> list[Any]:
    """Colours that differ; beyond ten they go through a scale."""
    maps = _matplotlib().colormaps
    if n <= 10:
        return [maps["tab10"](i) for i in range(n)]
    return [maps["turbo"](0.05 + 0.9 * i / (n - 1)) for i in range(n)]


def _heat(axes: Axes, plot: HeatMap) -> None:
    values = np.ma.masked_invalid(plot.values)
    low, high, extend, signed = _range(plot.values)
    step = float(plot.x[1] - plot.x[0]) if len(plot.x) > 1 else 1.0
    first, last = (float(plot.x[0]), float(plot.x[-1])) if len(plot.x) else (0.0, 0.0)
    image = axes.imshow(
        values,
        aspect="auto",
        interpolation="nearest",
        cmap="RdBu_r" if signed else "viridis",
        vmin=low,
        vmax=high,
        extent=(first - step / 2, last + step / 2, len(plot.rows) - 0.5, -0.5),
    )
    every = max(1, math.ceil(len(plot.rows) / _ROWS))
    ticks = range(0, len(plot.rows), every)
    axes.set_yticks(list(ticks), [plot.rows[i] for i in ticks], fontsize=7)
    if every > 1:
        axes.set_ylabel(f"one in {every} of {len(plot.rows)} rows is named", fontsize=8)
    elif plot.y_label:
        axes.set_ylabel(plot.y_label)
    if plot.marker is not None:
        axes.axvline(plot.marker, color="0.2", lw=0.8, ls=":")
    axes.set_xlabel(plot.x_label)
    _whole_ticks(axes, [plot.x])
    bar = axes.figure.colorbar(image, ax=axes, extend=extend, pad=0.01)
    bar.set_label(plot.unit, fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _range(values: Array) -> tuple[float, float, str, bool]:
    """Ends of the colours, which ends are cut, and whether zero is in the middle.

    Outliers would leave all else in one colour: where the last half per cent of the values takes
    more than a third of the range, it is cut.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0, "neither", False
    lowest, highest = float(finite.min()), float(finite.max())
    signed = lowest < 0 < highest
    if signed:
        high = float(np.percentile(np.abs(finite), 99.5))
        most = max(-lowest, highest)
        if high <= 0 or most < 1.5 * high:
            high = most
        low = -high
    else:
        low, high = (float(v) for v in np.percentile(finite, (0.5, 99.5)))
        if high <= low or highest - lowest < 1.5 * (high - low):
            low, high = lowest, highest if highest > lowest else lowest + 1.0
    over, under = highest > high, lowest < low
    extend = "both" if over and under else "max" if over else "min" if under else "neither"
    return low, high, extend, signed


def _cells(plot: Table) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the part of a table that is drawn."""
    wide = 150 if len(plot.columns) <= 4 else 44
    heads = ["\n".join(textwrap.wrap(column, 18)) for column in plot.columns[:_COLUMNS]]
    rows = [
        [textwrap.shorten(cell, wide, placeholder=" ...") for cell in row[:_COLUMNS]]
        for row in plot.rows[:_ROWS]
    ]
    return heads, rows or [[""] * len(heads)]


def _widths(plot: Table) -> list[float]:
    """Inches that each drawn column needs, about."""
    heads, rows = _cells(plot)
    letters = [
        max(*map(len, head.split("\n") or [""]), *(len(row[i]) for row in rows), 4)
        for i, head in enumerate(heads)
    ]
    return [0.067 * n + 0.2 for n in letters]


def _table(axes: Axes, plot: Table) -> None:
    axes.set_axis_off()
    heads, rows = _cells(plot)
    notes = []
    if len(plot.rows) > _ROWS:
        notes.append(f"{_ROWS} of {len(plot.rows)} rows")
    if len(plot.columns) > _COLUMNS:
        notes.append(f"{_COLUMNS} of {len(plot.columns)} columns")
    if notes:
        axes.set_title(f"{_wrapped(plot.title)}\n(shown: {', '.join(notes)})", fontsize=10)
    place = axes.get_subplotspec()
    columns = 1 if place is None else place.get_gridspec().ncols
    room = axes.figure.get_figure(root=True).get_figwidth() / columns - 0.4
    widths = _widths(plot)
    shrink = min(1.0, room / sum(widths))
    table = axes.table(cellText=rows, colLabels=heads, loc="upper center", cellLoc="left",
                       colLoc="left", colWidths=[w * shrink / room for w in widths])  # fmt: skip
    table.auto_set_font_size(False)
    table.set_fontsize(8 * shrink)
    tall = max(head.count("\n") for head in heads) + 1
    for (row, _), cell in table.get_celld().items():
        cell.set_linewidth(0.4)
        cell.set_edgecolor("0.8")
        cell.PAD = 0.03
        if row == 0:
            cell.set_facecolor("0.93")
            cell.set_height(cell.get_height() * tall)


__all__ = ["SIZE", "draw", "numbers", "page", "plot_run"]
