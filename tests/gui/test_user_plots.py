"""Plots of a user's own: from a file to the page and to PNG; errors in one line."""

from __future__ import annotations

import csv
import logging
import re
from pathlib import Path

import numpy as np
import pytest

from gps import cli
from gps.errors import ConfigError, ExperimentError
from gps.gui import PlotContext, RunReader, load_plots, plot_run
from gps.gui.session import Session

GOOD = """
import numpy as np
from gps.gui import Line, LinePlot, Table
from helper import TITLE

def total(runs):
    rows = runs[0].rows
    x, y = ([row[name] for row in rows] for name in ("iteration", "cost_mean"))
    yield LinePlot("total", TITLE, "iteration", "cost", (Line("all", x, np.cumsum(y)),))

def reach(context):
    if context.rollouts is not None:
        p = context.rollouts.entry("position")[context.sample]
        return [context.columns("reach", "Reach", "m", p, ["x", "y"])]
    return []

progress_plots = [total]
condition_plots = (reach,)
"""


def written(folder: Path, text: str, name: str = "mine.py") -> Path:
    (folder / "helper.py").write_text("TITLE = 'Cost so far'\n")
    path = folder / name
    path.write_text(text)
    return path


@pytest.fixture
def good(tmp_path):
    return written(tmp_path, GOOD)


def functions(*bodies: str) -> str:
    """A file with a function of each body."""
    made = "\n".join(f"def f{i}(context):\n    {body}\n" for i, body in enumerate(bodies))
    names = ", ".join(f"f{i}" for i in range(len(bodies)))
    head = "import sys\nfrom gps.gui import Line, LinePlot, Table\n"
    return f"{head}{made}\ncondition_plots = [{names}]\n"


FINE = "yield Table('fine', 'Fine', ('a',), (('1',),))"


def test_functions_get_the_run_and_the_condition(run_path, good):
    run, user = RunReader(run_path), load_plots(good)
    made = user.progress([run])
    assert made.failures == []
    (plot,) = made.plots
    assert (plot.name, plot.title) == ("total", "Cost so far")  # of the module beside the file
    np.testing.assert_allclose(plot.lines[0].y, np.cumsum([r["cost_mean"] for r in run.rows]))
    (plot,) = user.condition(PlotContext(run, 2, 1, sample=3, t=7)).plots
    np.testing.assert_array_equal(plot.lines[1].y, run.rollout(2, 1, 3).X[:, 1])
    assert (plot.marker, plot.x_label) == (7.0, "time step t (0.05 s each)")
    assert user.condition(PlotContext(run, 0, 0)).plots == []


def test_a_hyperparams_file_may_hold_plots(run_path, tmp_path):
    path = written(tmp_path, "import gps\nexperiment = gps.load('point_mass')\n" + GOOD)
    assert [p.name for p in load_plots(path).progress([RunReader(run_path)]).plots] == ["total"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, ExperimentError, "does not exist"),
        ("x = (", ExperimentError, r"mine\.py:1: syntax error"),
        ("x = 1\ny = 1 / 0", ExperimentError, r"mine\.py:2: ZeroDivisionError"),
        ("plots = []", ConfigError, "defines neither `progress_plots` nor `condition_plots`"),
        ("progress_plots = print", ConfigError, "`progress_plots` must be a list of functions"),
        ("condition_plots = ['f']", ConfigError, "`condition_plots` must be a list of functions"),
    ],
)
def test_a_file_that_does_not_load_is_refused(run_path, tmp_path, capsys, text, error, message):
    path = tmp_path / "mine.py" if text is None else written(tmp_path, text)
    with pytest.raises(error, match=message) as caught:
        load_plots(path)
    assert str(path) in str(caught.value)
    for argv in (
        ["plot", run_path, "--out", tmp_path / "out", "--plots", path],
        ["gui", run_path, "--port", 0, "--plots", path],
    ):
        assert cli.main(list(map(str, argv))) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("gps: error: ")
        assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", r"mine\.py:4: ZeroDivisionError: division by zero$"),
        ("sys.exit(3)", r"mine\.py:4: SystemExit: 3$"),
        ("pass", r"mine\.py: condition_plots\[0\]: it must yield or return plots, got NoneType$"),
        ("yield 'text'", "a plot must be a LinePlot, a HeatMap or a Table, got str$"),
        (FINE, r"there is a plot 'fine' already; give this one another name$"),
        ("yield Table('a/b', 'x', (), ())", r"mine\.py:4: Table\.name must consist of letters"),
        ("yield Line('l', [1, 2], [1])", r"mine\.py:4: Line\.y must have shape \(2,\), got \(1,\)"),
        ("yield Table('t', 'T', ('a', 'b'), (('1',),))", r"Table\.rows must have 2 cells"),
    ],
)
def test_a_function_that_fails_costs_its_own_plots_only(tmp_path, caplog, body, message):
    user = load_plots(written(tmp_path, functions(body, FINE)))
    made = user.condition(PlotContext(None, 1, 0))
    assert [plot.name for plot in made.plots] == ["fine"]
    (failure,) = made.failures
    assert "\n" not in failure.text
    assert re.search(message, failure.text)
    with caplog.at_level(logging.WARNING, logger="gps"):
        failure.log()
    wrong_code = "ZeroDivisionError" in message or "SystemExit" in message
    assert ("Traceback" in caplog.text) == wrong_code  # a GPSError says all there is to say


def test_a_name_of_the_toolkits_own_plots_is_taken(run_path, tmp_path):
    text = GOOD.replace('"total"', '"eta"')
    with pytest.raises(ConfigError, match="there is a plot 'eta' already"):
        plot_run(run_path, tmp_path / "out", plots=[written(tmp_path, text)])


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_plots_are_written_with_their_numbers(run_path, good, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    argv = ["plot", run_path, "--out", out, "--condition", 2, "--plots", good]
    assert cli.main(list(map(str, argv))) == 0
    assert (out / "progress" / "total.png").read_bytes().startswith(b"\x89PNG")
    rows = table(out / "progress" / "total.csv")
    assert float(rows[0]["cost"]) == RunReader(run_path).rows[0]["cost_mean"]
    rows = table(out / "iteration_0003" / "condition_2" / "custom_reach.csv")
    X = RunReader(run_path).rollout(3, 2, 0).X
    assert [float(row["m"]) for row in rows] == [*X[:, 0], *X[:, 1]]


def test_a_plot_that_fails_ends_the_command_after_all_others(
    run_path, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("gps.gui.figures.draw", lambda plot, path, log: path.write_bytes(b""))
    path, out = written(tmp_path, functions("return 1 / 0", FINE)), tmp_path / "out"
    assert cli.main(["plot", str(run_path), "--out", str(out), "--plots", str(path)]) == 2
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err
    assert "Traceback" in err  # logged
    assert err.splitlines()[-1] == f"gps: error: {path}:4: ZeroDivisionError: division by zero"
    folder = out / "iteration_0003" / "condition_0"
    assert (folder / "custom_fine.png").exists()
    assert (folder / "dual_report.png").exists()


def test_the_page_has_a_topic_for_them_and_goes_on_after_an_error(run_path, good, tmp_path, caplog):
    bad = written(tmp_path, functions("return 1 / 0", FINE), "bad.py")
    session = Session(RunReader(run_path), user=load_plots(good, bad))
    assert session.topics[-1] == "custom"
    assert "custom" not in Session(RunReader(run_path)).topics
    names = [plot.name for plot in session.progress_plots()]
    assert names[-1] == "total"
    assert session.errors() == []
    session.select(topic="custom", iteration=2)
    with caplog.at_level(logging.WARNING, logger="gps"):
        for _ in range(3):  # every look at the page makes the plots anew
            assert [plot.name for plot in session.condition_plots()] == ["reach", "fine"]
    assert session.errors() == [f"{bad}:4: ZeroDivisionError: division by zero"]
    assert caplog.text.count("Traceback") == 1
    assert [p.name for p in session.all_condition_plots()["custom"]] == ["reach", "fine"]
    marked = [p for p in session.progress_plots() if p.name == "total"]
    assert marked[0].marker == 2.0


def test_the_page_of_a_run_takes_the_same_files(tmp_path, capsys):
    argv = ["run", "point_mass", "--executor", "serial", "--out", str(tmp_path / "run")]
    argv += ["--plots", str(tmp_path / "mine.py")]
    assert cli.main(argv) == 2
    assert "--plots needs --gui" in capsys.readouterr().err
    assert cli.main([*argv, "--gui"]) == 2  # before the run begins
    assert "mine.py does not exist" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
