"""Figures: the numbers arrive, labels can be read, and nothing needs a screen."""

from __future__ import annotations

import csv
import io
import subprocess
import sys

import numpy as np
import pytest

from gps.errors import ConfigError, StoreError
from gps.gui import figures
from gps.gui.plots import HeatMap, Line, LinePlot, Table

pytest.importorskip("matplotlib")

X = np.arange(5.0)
MARK = b"\x89PNG\r\n\x1a\n"


def lines(n=2, y=X + 1.0, **kwargs):
    made = tuple(Line(f"line {i}", X, y + i, y + i - 1, y + i + 1) for i in range(n))
    return LinePlot("cost", "Cost", "iteration", "cost", made, **kwargs)


HEAT = HeatMap("gains", "Gains", "t", "", X, ("a", "b"), np.arange(10.0).reshape(2, 5) - 4, "1")
TABLE = Table("table", "Numbers", ("name", "value"), (("a", "1"), ("b", "2")))


def axes_of(plot, log=False):
    figure = figures._figure(figures.SIZE)
    axes = figure.subplots()
    figures._paint(axes, plot, log)
    figure.canvas.draw()
    return axes


def size_of(png):
    assert png.startswith(MARK)
    return tuple(int.from_bytes(png[i : i + 4], "big") for i in (16, 20))


@pytest.mark.parametrize("plot", [lines(), HEAT, TABLE], ids=lambda p: p.name)
def test_a_plot_is_a_png(plot, tmp_path):
    png = figures.draw(plot, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes() == png
    assert size_of(png)[0] == round(figures.SIZE[0] * figures._DPI)
    wider = figures.draw(plot, size=(10.0, 5.0))
    assert size_of(wider)[0] == 10 * figures._DPI


def test_lines_bands_and_marker_are_drawn():
    axes = axes_of(lines(2, marker=3.0))
    drawn = {one.get_label(): one for one in axes.lines}
    np.testing.assert_array_equal(drawn["line 1"].get_ydata(), X + 2)
    assert len(axes.collections) == 2  # bands
    assert [one.get_xdata()[0] for one in axes.lines if len(one.get_xdata()) == 2] == [3.0]
    assert axes.get_xlabel() == "iteration"
    assert axes.get_title() == "Cost"
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_the_legend_is_beside_the_data():
    axes = axes_of(lines(3))
    legend, inside = axes.get_legend().get_window_extent(), axes.get_window_extent()
    assert legend.x0 >= inside.x1
    assert legend.x1 <= axes.figure.bbox.x1 + 1


def test_a_long_legend_is_cut_and_says_so():
    legend = axes_of(lines(200)).get_legend()
    assert len(legend.get_texts()) <= figures._LEGEND
    assert "of 200 lines" in legend.get_title().get_text()
    assert len(axes_of(lines(3)).get_legend().get_texts()) == 3


def test_lines_that_belong_together_share_a_colour():
    made = tuple(Line(label, X, X) for label in ("a", "a, mean", "b"))
    drawn = axes_of(LinePlot("p", "P", "t", "x", made)).lines
    assert drawn[0].get_color() == drawn[1].get_color() != drawn[2].get_color()
    assert drawn[0].get_linestyle() != drawn[1].get_linestyle()


@pytest.mark.parametrize(
    ("y", "possible", "log", "scale"),
    [
        (X + 1.0, True, True, "log"),
        (X + 1.0, True, False, "linear"),
        (X + 1.0, False, True, "linear"),
        (X - 2.0, True, True, "linear"),  # below zero: a logarithm would hide it
        (X, True, True, "log"),
        (0 * X, True, True, "linear"),
        (np.full(5, np.nan), True, True, "linear"),
    ],
)
def test_logarithmic_only_where_it_can_be(y, possible, log, scale):
    plot = LinePlot("p", "P", "t", "x", (Line("y", X, y),), log=possible)
    assert axes_of(plot, log).get_yscale() == scale


def test_zeros_are_gaps_on_a_logarithmic_axis():
    plot = LinePlot("p", "P", "t", "x", (Line("y", X, X),), log=True)
    np.testing.assert_array_equal(
        axes_of(plot, log=True).lines[0].get_ydata(), [np.nan, 1, 2, 3, 4]
    )
    np.testing.assert_array_equal(axes_of(plot, log=False).lines[0].get_ydata(), X)


def test_a_heat_map_has_its_rows_in_order_and_zero_in_the_middle():
    axes = axes_of(HEAT)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert axes.get_ylim() == (1.5, -0.5)  # the first row on top
    assert axes.get_xlim() == (-0.5, 4.5)
    (image,) = axes.images
    np.testing.assert_array_equal(image.get_array(), HEAT.values)
    low, high = image.get_clim()
    assert low == -high < 0


def test_a_few_outliers_do_not_take_all_colours():
    values = np.linspace(1.0, 2.0, 1000)
    assert figures._range(values) == (1.0, 2.0, "neither", False)
    values[0] = 1e6
    low, high, extend, signed = figures._range(values)
    assert 1.0 <= low < high < 2.1
    assert (extend, signed) == ("both", False)
    values = np.linspace(-1.0, 1.0, 1000)
    values[0] = -1e6
    low, high, extend, signed = figures._range(values)
    assert -1.1 < low == -high < 0
    assert (extend, signed) == ("both", True)
    assert figures._range(np.full(3, 7.0)) == (7.0, 8.0, "neither", False)
    assert figures._range(np.full(3, np.nan))[:2] == (0.0, 1.0)
    assert figures._range(np.array([-1.0, 3.0])) == (-3.0, 3.0, "neither", True)


def test_names_of_many_rows_are_thinned_out():
    rows = tuple(f"row {i}" for i in range(200))
    axes = axes_of(HeatMap("h", "H", "t", "", X, rows, np.ones((200, 5))))
    assert len(axes.get_yticklabels()) <= figures._ROWS
    assert "of 200 rows" in axes.get_ylabel()


def test_a_large_table_is_cut_and_says_so():
    rows = tuple((str(i),) * 30 for i in range(300))
    axes = axes_of(Table("t", "T", tuple(f"column {i}" for i in range(30)), rows))
    assert f"{figures._ROWS} of 300 rows, {figures._COLUMNS} of 30 columns" in axes.get_title()
    texts = [cell.get_text().get_text() for cell in axes.tables[0].get_celld().values()]
    assert "39" in texts
    assert "40" not in texts


def test_a_wide_table_stays_inside_its_figure():
    table = Table("t", "T", ("event", "what"), (("1", "word " * 29),))
    figure = figures._figure((figures._width(table), 3.0))
    axes = figure.subplots()
    figures._paint(axes, table, False)
    figure.canvas.draw()
    box = axes.tables[0].get_window_extent()
    assert figure.bbox.x0 - 1 <= box.x0
    assert box.x1 <= figure.bbox.x1 + 1
    for cell in axes.tables[0].get_celld().values():
        text = cell.get_text().get_window_extent()
        assert text.x1 <= box.x1 + 1


def test_a_page_has_all_plots_below_the_image():
    image = np.zeros((40, 80, 3), dtype=np.uint8)
    without = size_of(figures.page([lines(), HEAT, TABLE]))
    above = size_of(figures.page([lines(), HEAT, TABLE], image))
    assert above[0] == without[0] == round(2 * figures.SIZE[0] * figures._DPI)
    assert above[1] > without[1]
    alone = size_of(figures.page([], image, title="Scene"))
    assert alone[0] > alone[1]
    with pytest.raises(ConfigError, match="plot or an image"):
        figures.page([])


def read(plot):
    return list(csv.reader(io.StringIO(figures.numbers(plot))))


def test_numbers_of_lines():
    band = Line("a, b", np.array([1.0, 2.0]), np.array([0.1, np.nan]), np.zeros(2), np.ones(2))
    rows = read(LinePlot("p", "P", "t", "cost", (band, Line("c", X[:1], X[:1]))))
    assert rows[0] == ["line", "t", "cost", "low", "high"]
    assert rows[1] == ["a, b", "1.0", "0.1", "0.0", "1.0"]
    assert rows[2] == ["a, b", "2.0", "nan", "0.0", "1.0"]
    assert rows[3] == ["c", "0.0", "0.0", "", ""]


def test_numbers_of_heat_maps_and_tables():
    rows = read(HEAT)
    assert rows[0][1:] == ["0.0", "1.0", "2.0", "3.0", "4.0"]
    assert rows[2] == ["b", "1.0", "2.0", "3.0", "4.0", "5.0"]
    assert read(TABLE) == [["name", "value"], ["a", "1"], ["b", "2"]]


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(StoreError, match="cannot write"):
        figures.draw(lines(), tmp_path / "no" / "folder" / "plot.png")


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"guided-policy-search\[gui\]"):
        figures.draw(lines())


def test_importing_is_cheap_and_pyplot_is_left_alone():
    code = (
        "import sys, gps.gui\n"
        "assert not {'matplotlib', 'viser', 'plotly'} & set(sys.modules)\n"
        "gps.gui.draw(gps.gui.Table('t', 'T', ('a',), (('1',),)))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
