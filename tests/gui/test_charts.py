"""What is sent to the browser of a plot, and when."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from gps.gui.charts import (
    Chart,
    Palette,
    line_data,
    plotly_figure,
    prepare,
    table_html,
    uplot_options,
)
from gps.gui.plots.types import HeatMap, Line, LinePlot, Table, index_axis


def lines(*some, log=True, marker=None, title="Cost"):
    return LinePlot("cost", title, "iteration", "cost", tuple(some), log=log, marker=marker)


def line(label, x, y, low=None, high=None):
    given = (None if v is None else np.asarray(v, float) for v in (x, y, low, high))
    return Line(label, *given)


HEAT = HeatMap("K", "Gains <b>", "t", "row", np.arange(3.0), ("1", "<2>"), np.eye(3)[:2] - 0.5, "N")
TABLE = Table("t", "A & B", ("x<y", "b"), (("<script>alert(1)</script>", "{x}"),))


class Gui:
    """Keeps what would be sent to viser."""

    def __init__(self):
        self.handles, self.inside = [], None

    def _add(self, kind, props):
        order = props.pop("order", None)
        handle = Handle(kind, len(self.handles) if order is None else order, self.inside, props)
        self.handles.append(handle)
        return handle

    def add_uplot(self, data, **props):
        return self._add("uplot", {"data": data, **props})

    def add_plotly(self, figure, **props):
        return self._add("plotly", {"figure": figure, **props})

    def add_html(self, content, **props):
        return self._add("html", {"content": content, **props})


class Handle:
    def __init__(self, kind, order, inside, props):
        vars(self).update(props, kind=kind, order=order, inside=inside, removed=False, told=[])
        vars(self).setdefault("visible", True)
        vars(self)["_impl"] = SimpleNamespace(uuid=str(id(self)))

    def __setattr__(self, name, value):
        vars(self)[name] = value
        self.told.append(name)

    def remove(self):
        vars(self)["removed"] = True


@pytest.fixture
def server():
    return SimpleNamespace(gui=Gui())


def test_lines_of_different_grids_share_one_axis():
    a, b = line("a", [0, 2, 4], [0, 20, 40]), line("b", [1, 2, 3], [1, np.nan, 3])
    data = line_data(lines(a, b))
    assert data.x == (0, 1, 2, 3, 4)
    assert data.columns[0] == (0, 10, 20, 30, 40)  # drawn straight, so the value is the line's
    assert data.columns[1] == (None, 1, None, 3, None)
    assert data.dropped == 0


def test_a_line_does_not_reach_over_its_gap():
    a, b = line("a", [0, 1, 2, 3], [0, np.nan, np.inf, 3]), line("b", [0, 0.5, 2.5], [1, 1, 1])
    data = line_data(lines(a, b))
    assert data.x == (0, 0.5, 1, 2, 2.5, 3)
    assert data.columns[0] == (0, None, None, None, None, 3)


def test_random_lines_keep_their_points():
    rng = np.random.default_rng(0)
    for _ in range(50):
        some = [
            line(str(i), np.sort(rng.choice(20, n, replace=False)), rng.normal(size=n))
            for i, n in enumerate(rng.integers(1, 12, size=3))
        ]
        data = line_data(lines(*some, marker=float(rng.choice(20)) + 0.5 * rng.integers(2)))
        for each, column in zip(some, data.columns, strict=True):
            seen = dict(zip(data.x, column, strict=True))
            assert [seen[x] for x in each.x] == each.y.tolist()
            inner = [v for x, v in seen.items() if each.x[0] <= x <= each.x[-1]]
            assert None not in inner
            assert all(v is None for x, v in seen.items() if not each.x[0] <= x <= each.x[-1])


def test_a_logarithmic_axis_drops_what_it_cannot_show_and_says_so():
    plot = lines(line("a", range(4), [1, 0, -1, 2]))
    assert uplot_options(plot, Palette()).options["title"] == "Cost"
    options = uplot_options(plot, Palette(), log=True)
    assert options.data[1] == (1, None, None, 2)
    assert options.options["title"] == "Cost (2 values not above 0 left out)"
    assert options.options["scales"]["y"]["distr"] == 3
    unfit = lines(line("a", range(2), [1, 2]), log=False)
    assert uplot_options(unfit, Palette(), log=True).options["scales"]["y"]["distr"] == 1
    below = uplot_options(lines(line("a", range(2), [-1, -2])), Palette(), log=True)
    assert below.options["scales"]["y"]["distr"] == 1
    assert below.data[1] == (-1, -2)


def test_a_band_has_two_edges_that_the_legend_hides():
    plot = lines(line("a", [0, 1], [1, 1], [0, 0], [2, 3]), line("b", [0, 1], [5, 5]))
    options = uplot_options(plot, Palette())
    assert options.data[1:] == ((1, 1), (2, 3), (0, 0), (5, 5))
    assert options.options["bands"][0]["series"] == (2, 3)
    hidden = [s.get("class") for s in options.options["series"]]
    assert hidden == [None, None, "gps-edge", "gps-edge", None]
    assert len(options.options["series"]) == len(options.data)


@pytest.mark.parametrize("place", [0.0, 1.0, 0.5, 7.0])
def test_the_marker_is_upright(place):
    options = uplot_options(lines(line("a", [0, 1, 2], [1, 2, 4]), marker=place), Palette())
    x, values, mark = options.data
    where = [i for i, v in enumerate(mark) if v is not None]
    assert [x[i] for i in where] == [place, place]
    assert [mark[i] for i in where] == [0, 1]
    assert list(x) == sorted(x)
    assert [values[i] for i in where] == {0: [1, 1], 1: [2, 2], 0.5: [1.5, 1.5], 7: [None, None]}[
        place
    ]


def test_colours_are_distinct_and_go_by_label():
    colour = Palette()
    given = [colour(f"line {i}") for i in range(60)]
    assert len(set(given)) == 60
    assert all(len(c) == 7 and int(c[1:], 16) >= 0 for c in given)
    assert [colour(f"line {i}") for i in range(60)] == given
    a = uplot_options(lines(line("line 3", [0], [1])), colour).options["series"][1]
    assert a["stroke"] == given[3]


def test_a_heat_map_names_row_place_and_value():
    figure = plotly_figure(HEAT)
    (trace,) = figure["data"]
    assert trace["z"] == (np.eye(3)[:2] - 0.5).tolist()
    assert trace["y"] == ["1", "&lt;2&gt;"]
    assert trace["zmid"] == 0
    assert all(what in trace["hovertemplate"] for what in ("%{y}", "%{x}", "%{z:.4g} N"))
    assert figure["layout"]["yaxis"]["type"] == "category"
    assert figure["layout"]["shapes"] == []
    holes = HeatMap("K", "", "", "", np.arange(2.0), ("a",), np.array([[np.nan, 1]]), marker=1.0)
    figure = plotly_figure(holes)
    assert figure["data"][0]["z"] == [[None, 1]]
    assert figure["layout"]["shapes"][0]["x0"] == 1


def test_a_table_is_text():
    text = table_html(TABLE)
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "A &amp; B" in text
    assert "x&lt;y" in text


def test_nothing_is_sent_twice(server):
    chart = Chart(server)
    a = line("a", [0, 1], [1, 2])
    assert chart.show(lines(a))
    (handle,) = server.gui.handles
    handle.told.clear()
    assert not chart.show(lines(line("a", [0, 1], [1, 2])))  # equal, and another object
    assert handle.told == []
    assert chart.show(lines(line("a", [0, 1], [1, 3])))
    assert handle.told == ["data"]  # the chart is not built again
    assert chart.show(lines(line("a", [0, 1], [1, 3]), title="New"))
    assert handle.told == ["data", "title"]
    for plot in (HEAT, TABLE):
        assert chart.show(plot)
        count = len(server.gui.handles)
        server.gui.handles[-1].told.clear()
        assert not chart.show(plot)
        assert server.gui.handles[-1].told == []
        assert len(server.gui.handles) == count


def test_another_sort_of_plot_takes_the_place(server):
    class Folder:
        def __enter__(self):
            server.gui.inside = "folder"

        def __exit__(self, *_):
            server.gui.inside = None

    chart, other = Chart(server, container=Folder()), Chart(server)
    empty = lines(line("a", [0, 1], [np.nan, np.nan]))
    chart.show(empty)
    other.show(TABLE)
    assert server.gui.handles[0].kind == "html"
    assert "nothing to show yet" in server.gui.handles[0].content
    for plot, kind in ((lines(line("a", [0], [1])), "uplot"), (HEAT, "plotly"), (TABLE, "html")):
        assert chart.show(plot)
        shown = [h for h in server.gui.handles if h.visible and h is not server.gui.handles[1]]
        assert [(h.kind, h.order, h.inside) for h in shown] == [(kind, 0, "folder")]
    assert server.gui.handles[1].inside is None
    assert "nothing to show yet" not in server.gui.handles[0].content  # the same element again
    chart.hide()
    assert not chart.visible
    assert [h for h in server.gui.handles if h.visible] == [server.gui.handles[1]]
    assert chart.show(TABLE)
    assert chart.visible
    assert server.gui.handles[0].visible
    # the page complains of changes to what was removed: so nothing is
    assert not any(h.removed for h in server.gui.handles)


def test_a_note_stands_below_its_chart_and_goes_with_it(server):
    chart, other = Chart(server), Chart(server)
    chart.note("too early")
    assert server.gui.handles == []
    chart.show(HEAT)
    other.show(TABLE)
    chart.note("numbers")
    note = server.gui.handles[-1]
    first, second = (h.order for h in server.gui.handles[:2])
    assert first < note.order < second
    assert note.visible
    assert note.content == "numbers"
    note.told.clear()
    chart.note("numbers")
    assert note.told == []
    chart.hide()
    assert not note.visible


def test_a_chart_has_a_key_of_its_own(server):
    chart, same = Chart(server), Chart(server)
    assert chart.key == ""
    keys = []
    for plot in (lines(line("a", [0], [1])), lines(line("a", [0, 1], [1, 2]))):
        chart.show(plot)
        same.show(plot)
        keys += [chart.key, same.key]
    assert len(set(keys)) == 4
    assert all(keys)
    chart.show(HEAT)
    assert chart.key == plotly_figure(HEAT)["layout"]["meta"] == "K"
    for plot in (TABLE, lines()):
        chart.show(plot)
        assert chart.key == ""


def test_what_is_counted_has_whole_numbers_on_its_axis():
    for label, name in (
        ("iteration", "iteration"),
        ("time step t (0.05 s each)", "time step"),
        ("trial", ""),
    ):
        plot = replace(lines(line("a", [0, 1], [1, 2])), x_label=label)
        assert index_axis(plot) == name
        steps = uplot_options(plot, Palette()).options["axes"][0].get("incrs", (0.5,))
        assert all(step == int(step) for step in steps) == bool(name)
    assert index_axis(TABLE) == ""


def test_the_numbers_of_a_plot_at_a_place():
    pytest.importorskip("viser")
    from gps.gui.panels.chart_list import numbers_at

    plain = lines(line("a", [0, 1, 4], [1, 2, 3]), line("b", [], []))
    table = numbers_at(plain, 1.4)
    assert (table.title, table.columns) == ("iteration = 1", ("", "cost"))
    assert table.rows == (("a", "2"),)
    banded = lines(line("a", [0, 1], [1, 2], low=[0, 1.5], high=[2, 2.5]), line("b", [0], [7]))
    table = numbers_at(banded, 99)
    assert table.columns == ("", "cost", "range")
    assert table.rows == (("a", "2", "1.5 to 2.5"), ("b", "7", ""))
    table = numbers_at(HEAT, 2)
    assert (table.title, table.columns) == ("t = 2", ("", "N"))
    assert table.rows == (("1", "-0.5"), ("<2>", "-0.5"))
    assert numbers_at(replace(HEAT, unit="1"), 0).columns == ("", "value")
    search = replace(plain, x_label="eta (cost per nat), logarithm to base 10")
    assert numbers_at(search, 4).title == "eta (cost per nat) = 10000"


@pytest.mark.parametrize(
    ("text", "click"),
    [
        ('{"chart": "Cost", "x": 3.5, "at": 1}', ("Cost", 3.5)),
        ("", None),
        ("[]", None),
        ("3", None),
        ('{"chart": "Cost"}', None),
        ('{"chart": 3, "x": 1}', None),
        ('{"chart": "Cost", "x": "now"}', None),
        ('{"chart": "Cost", "x": [1]}', None),
        ('{"chart": "Cost", "x": NaN}', None),
        ('{"chart": "Cost", "x": 1e999}', None),
        ('{"chart": "Cost", "x": 1' + 400 * "0" + "}", None),
        (100_000 * "[", None),
    ],
)
def test_a_page_may_send_anything_as_a_click(text, click):
    pytest.importorskip("viser")
    from gps.gui.chart_clicks import parse_click

    assert parse_click(text) == click


def test_viser_sends_gaps_as_null():
    pytest.importorskip("viser")
    from gps.gui.server import SecureServer

    server = SecureServer(port=0)

    def sent():
        kept = server._websock_server._broadcast_buffer.message_from_id.values()
        return [m.as_serializable_dict([]) for m in list(kept)]

    try:
        prepare(server)
        chart = Chart(server)
        chart.show(lines(line("a", [0, 1, 2], [1, np.nan, 3])))
        chart.show(lines(line("a", [0, 1, 2], [1, np.nan, 4])))
        told = [m["updates"]["data"] for m in sent() if "data" in m.get("updates", {})]
        told += [m["props"]["data"] for m in sent() if m["type"] == "GuiUplotMessage"]
        chart.show(HEAT)
        chart.show(TABLE)
        kinds = {m["type"] for m in sent()}
        hidden = [m["updates"] for m in sent() if m.get("updates", {}).get("visible") is False]
    finally:
        server.stop()
    assert len(told) >= 2
    assert all(list(data[1]) == [1, None, 4] for data in told)
    assert "GuiHtmlMessage" in kinds
    assert "GuiPlotlyMessage" in kinds
    assert len(hidden) == 2  # the table has taken the place of the lines and the heat map


def test_the_range_of_the_axis_is_sent():
    def scale(*x):
        plot = lines(line("a", list(x), [1.0] * len(x)), line("b", [2], [1.0]))
        return uplot_options(plot, Palette()).options["scales"]["x"]

    assert scale(1, 4)["range"] == (1.0, 4.0)
    assert scale(-3, 0)["range"] == (-3.0, 2.0)
    assert "range" not in scale(2)  # one place has no extent


def test_heat_maps_have_margins_that_do_not_move():
    margin = plotly_figure(HEAT)["layout"]["margin"]
    assert margin["autoexpand"] is False
    long = replace(HEAT, rows=tuple(f"{row} and much more" for row in HEAT.rows))
    assert plotly_figure(long)["layout"]["margin"]["l"] == margin["l"] + 5 * len(" and much more")
