"""`plot_run`: the charts of a run as files."""

from __future__ import annotations

import csv

import pytest

from gps.errors import ConfigError, StoreError
from gps.gui import figures
from gps.gui.figures import plot_run
from gps.gui.run_reader import RunReader

pytest.importorskip("matplotlib")


@pytest.fixture
def quick(monkeypatch):
    """Files that only say that they were drawn: drawing itself is tested elsewhere."""
    drawn = []

    def draw(plot, path, *, log):
        drawn.append((plot, log))
        path.write_bytes(b"drawn")

    monkeypatch.setattr(figures, "draw", draw)
    return drawn


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_progress_and_inspector_with_their_numbers(run_path, tmp_path, quick):
    files = plot_run(run_path, tmp_path / "out", log=True)
    names = {str(f.relative_to(tmp_path / "out")) for f in files}
    assert {"progress/cost.png", "iteration_0003/condition_0/controller_gains.png",
            "iteration_0003/condition_0/dynamics_prediction.png"} <= names  # fmt: skip
    assert len(files) == len(names) == len(quick)
    assert all(f.exists() and f.with_suffix(".csv").exists() for f in files)
    assert all(log for _, log in quick)
    cost = table(tmp_path / "out" / "progress" / "cost.csv")
    rows = RunReader(run_path).rows
    assert [float(row["cost"]) for row in cost] == [row["cost_mean"] for row in rows]
    assert [float(row["low"]) for row in cost] == [row["cost_min"] for row in rows]
    assert [row["line"] for row in cost] == ["samples"] * 3


def test_the_chosen_iteration_condition_sample_and_step(run_path, tmp_path, quick):
    plot_run(run_path, tmp_path, iteration=1, condition=2, sample=4, t=9)
    folder = tmp_path / "iteration_0001" / "condition_2"
    rows = [r for r in table(folder / "trajectory_position.csv") if r["line"] == "position 0"]
    X = RunReader(run_path).rollout(1, 2, 4).X
    assert [float(row["position"]) for row in rows] == list(X[:, 0])
    assert (folder / "controller_at_step.png").exists()
    assert not any(log for _, log in quick)


@pytest.mark.parametrize(("choice", "n"), [({}, 2), ({"iteration": "last"}, 3)])
def test_the_best_iteration_is_plotted_by_default(best_run, tmp_path, quick, choice, n):
    files = plot_run(best_run, tmp_path / "out", **choice)
    folders = {f.parent.parent.name for f in files} - {"out"}
    assert folders == {f"iteration_000{n}"}
    titles = [plot.title for plot, _ in quick]
    assert "Cost of a rollout without noise; the best iteration is 2" in titles


def test_runs_are_compared_in_one_figure(run_path, other_path, tmp_path, quick):
    plot_run(run_path, tmp_path, compare=[other_path])
    cost = table(tmp_path / "progress" / "cost.csv")
    labels = list(dict.fromkeys(row["line"] for row in cost))
    assert labels == ["seed 0", "seed 1", "point_mass_policy: mean of 2 runs"]
    by = {label: [float(r["cost"]) for r in cost if r["line"] == label] for label in labels}
    mean = [(a + b) / 2 for a, b in zip(by["seed 0"], by["seed 1"], strict=False)]
    assert by[labels[2]] == pytest.approx(mean)
    assert len(mean) == 2


def test_files_are_real_figures(run_path, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "TOPICS", ("cost",))
    monkeypatch.setattr(figures, "progress", lambda runs: [])
    files = plot_run(run_path, tmp_path)
    assert [f.name for f in files] == ["cost_per_step.png", "cost_terms.png", "cost_term_sums.png"]
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files)


def test_a_run_that_has_only_begun(own_run, tmp_path, quick):
    for n in (1, 2, 3):
        (own_run / "iterations" / f"000{n}.h5").unlink()
    (own_run / "metrics.csv").unlink()
    files = plot_run(own_run, tmp_path / "out")  # the first controllers
    assert {f.parent.parent.name for f in files} == {"iteration_0000"}
    (own_run / "iterations" / "0000.h5").unlink()
    with pytest.raises(StoreError, match="nothing to plot yet"):
        plot_run(own_run, tmp_path / "out")


@pytest.mark.parametrize(
    ("choice", "error", "text"),
    [
        ({"iteration": "x"}, ConfigError, "iteration must be best, last or the number of a stored"),
        ({"iteration": 9}, StoreError, "iteration 9 is not stored; stored: 0, 1, 2, 3"),
        ({"condition": 4}, ConfigError, r"condition must be in 0\.\.3, got 4"),
        ({"condition": -1}, ConfigError, "condition must be"),
        ({"sample": 5}, ConfigError, r"sample must be in 0\.\.4, got 5"),
        ({"t": 80}, ConfigError, r"time step must be in 0\.\.79, got 80"),
        ({"compare": ["nowhere"]}, StoreError, "nowhere does not exist"),
    ],
)
def test_a_wrong_choice_is_one_line_and_writes_nothing(run_path, tmp_path, choice, error, text):
    with pytest.raises(error, match=text) as caught:
        plot_run(run_path, tmp_path / "out", **choice)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_one_line(run_path, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StoreError, match="cannot write"):
        plot_run(run_path, tmp_path / "out")
