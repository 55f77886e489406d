"""The numbers of the plots, against hand computations and against what the run itself stored."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gps.agents import PointMassConfig
from gps.algorithms.state import ConditionReport
from gps.control import kl, lqr
from gps.control.dual import DualConfig, minimise, minimise_per_step
from gps.control.pi2 import PI2Result
from gps.costs import ActionCost, EndpointMeasure, StateCost, SumCost, WeightedCost
from gps.errors import ConfigError, StoreError
from gps.gui.plots import (
    TOPICS,
    HeatMap,
    LinePlot,
    PlotContext,
    Table,
    inspect,
    progress,
    run_labels,
    topic_plots,
)
from gps.gui.plots.controllers import action_hessian, controller_plots, update_objective
from gps.gui.plots.dynamics import open_loop, prediction_errors
from gps.gui.plots.rollouts import cost_terms, entry_plots
from gps.gui.plots.search import search_plots
from gps.gui.run_reader import RunReader
from gps.gui.search_result import SearchResult
from gps.types import (
    Gaussian,
    Layout,
    LinearDynamics,
    LinearGaussianController,
    QuadraticCost,
    Rollouts,
)

close = np.testing.assert_allclose


@pytest.fixture(scope="module")
def run(run_path):
    return RunReader(run_path)


def named(found, name):
    (plot,) = [p for p in found if p.name == name]
    return plot


def topic(name, run, iteration, condition, sample=0, t=None, evaluation=None):
    return topic_plots(name, PlotContext(run, iteration, condition, sample, t, evaluation))


def line(plot, label):
    (found,) = [one for one in plot.lines if one.label == label]
    return found


def fake_run(
    rows=(), reports=None, seed=0, kind="a", name="task", label=None, updates=(), measure=None
):
    return SimpleNamespace(
        experiment=SimpleNamespace(measure=measure, agent=PointMassConfig()),
        rows=rows,
        seed=seed,
        kind=kind,
        name=name,
        label=label or f"run{seed}",
        path=Path("runs") / (label or f"run{seed}"),
        updates=updates,
        best=None,
        all_reports=lambda: reports or {},
    )


def rows_of(column, values, start=1):
    return tuple({"iteration": float(n), column: v} for n, v in enumerate(values, start))


# --- progress


def test_cost_with_the_range_of_the_samples():
    rows = (
        {"iteration": 1.0, "cost_mean": 5.0, "cost_min": 4.0, "cost_max": 9.0},
        {"iteration": 2.0, "cost_mean": 3.0, "cost_min": 1.0, "cost_max": 4.0},
    )
    plot = named(progress([fake_run(rows)]), "cost")
    (one,) = plot.lines
    close(one.x, [1, 2])
    close(one.y, [5, 3])
    close(one.low, [4, 1])
    close(one.high, [9, 4])


def test_columns_without_a_number_are_not_shown():
    nan = float("nan")
    rows = tuple(
        {"iteration": n, "local_success": 0.5, "policy_success": nan, "policy_loss": nan}
        for n in (1.0, 2.0)
    )
    found = progress([fake_run(rows)])
    assert [p.name for p in found] == ["success"]
    assert [one.label for one in found[0].lines] == ["local controllers"]


def test_runs_of_one_experiment_have_a_mean_over_their_common_iterations():
    runs = [
        fake_run(rows_of("cost_mean", [4.0, 2.0, 1.0]), seed=3),
        fake_run(rows_of("cost_mean", [8.0, 4.0]), seed=5),
        fake_run(rows_of("cost_mean", [6.0, float("nan"), 7.0]), seed=7),
    ]
    plot = named(progress(runs), "cost")
    labels = [one.label for one in plot.lines]
    assert labels == ["seed 3", "seed 5", "seed 7", "task: mean of 3 runs"]
    mean = plot.lines[-1]
    close(mean.x, [1])  # the second run has no third iteration, the third no second number
    close(mean.y, [6])
    close((mean.low, mean.high), [[4], [8]])


def test_runs_of_different_experiments_are_not_averaged():
    runs = [
        fake_run(rows_of("cost_mean", [4.0]), kind="a", label="first"),
        fake_run(rows_of("cost_mean", [8.0]), kind="b", label="second"),
    ]
    assert [one.label for one in named(progress(runs), "cost").lines] == ["first", "second"]


def test_labels_of_runs_differ(tmp_path):
    assert run_labels([fake_run(seed=1), fake_run(seed=2)]) == ("seed 1", "seed 2")
    twins = [fake_run(seed=1, label="x"), fake_run(seed=1, label="y")]
    assert run_labels(twins) == ("x", "y")
    for i, twin in enumerate(twins):
        twin.label, twin.path = "x", tmp_path / str(i) / "x"
    assert run_labels(twins) == ("0/x", "1/x")


def test_stages_are_stacked():
    rows = (
        {"iteration": 1.0, "seconds": 3.0, "seconds_a": 1.0, "seconds_b": 4.0},
        {"iteration": 2.0, "seconds": 2.0, "seconds_a": 2.0, "seconds_b": float("nan")},
    )
    plot = named(progress([fake_run(rows)]), "seconds")
    assert [one.label for one in plot.lines] == ["b", "a", "whole iteration (wall clock)"]
    b, a, wall = plot.lines
    close((b.low, b.high), [[0, 0], [4, 0]])
    close((a.low, a.high), [[4, 0], [5, 2]])
    close(a.y, a.high)
    close(wall.y, [3, 2])


def report(m, **values):
    numbers = dict.fromkeys(
        ("cost_mean", "cost_min", "cost_max", "expected_cost", "predicted_cost", "kl", "kl_max",
         "step_mult", "eta"), float("nan"),
    )  # fmt: skip
    return ConditionReport(condition=m, **{**numbers, **values})


def test_conditions_and_events():
    reports = {
        1: (report(0, cost_mean=1.0), report(1, cost_mean=2.0, event="back")),
        2: (report(0, cost_mean=3.0), report(1, cost_mean=4.0)),
    }
    found = progress([fake_run(reports=reports)])
    assert [p.name for p in found] == ["condition_cost", "events"]
    close(line(found[0], "condition 1").y, [2, 4])
    close(line(found[0], "condition 1").x, [1, 2])
    assert found[1].rows == (("1", "1", "back"),)


def test_updates_of_an_asynchronous_run():
    updates = tuple(
        {"update": k, "seconds": 0.5 * k, "condition": float(k % 2), "cost_mean": 10.0 - k}
        for k in range(1, 5)
    )
    plot = named(progress([fake_run(updates=updates)]), "updates_cost_mean")
    close(line(plot, "condition 0").x, [1.0, 2.0])
    close(line(plot, "condition 0").y, [8.0, 6.0])
    close(line(plot, "condition 1").x, [0.5, 1.5])


def test_memory_where_it_is_measured():
    found = progress([fake_run(rows_of("memory_driver", [100e6, 120e6]))])
    close(named(found, "memory").lines[0].y, [100, 120])


def test_a_distance_has_the_unit_of_the_measure():
    def label(*measures):
        rows = rows_of("policy_distance_mean", [0.3, 0.1])
        runs = [fake_run(rows, seed=i, measure=m) for i, m in enumerate(measures)]
        return named(progress(runs), "distance").y_label

    tip = EndpointMeasure(target=(0.0, 0.0, 0.0))
    angle = EndpointMeasure(entry="angle", target=(0.0,), point_size=1, unit="rad")
    assert label(tip) == label(tip, tip) == "distance (m)"
    assert label(angle) == "distance (rad)"
    assert label(tip, angle) == label(None) == "distance"


def test_distances_are_shown_where_the_experiment_cannot_be_read():
    """Of a run whose own modules are not on this machine."""

    class Foreign(SimpleNamespace):
        @property
        def experiment(self):
            raise StoreError("no module named robot")

    facts = vars(fake_run(rows_of("policy_distance_mean", [0.3, 0.1])))
    run = Foreign(**{name: value for name, value in facts.items() if name != "experiment"})
    assert named(progress([run]), "distance").y_label == "distance"


def test_progress_of_stored_runs(run, other_path):
    found = progress([run])
    assert {"cost", "condition_cost", "success", "distance", "kl", "eta", "seconds"} <= {
        p.name for p in found
    }
    close(line(named(found, "kl"), "KL").y, [row["kl_mean"] for row in run.rows])
    total = [
        sum(v for k, v in row.items() if k.startswith("seconds_")) for row in run.rows
    ]  # the top of the stack
    close(named(found, "seconds").lines[-2].high, total)
    both = progress([run, RunReader(other_path)])
    labels = [one.label for one in named(both, "success").lines]
    assert "seed 1, policy" in labels
    assert "point_mass_policy: mean of 2 runs, policy" in labels
    assert progress([]) == []


# --- everything that is shown has a sound form


def test_every_plot_is_sound(run):
    found = {"progress": progress([run]), **inspect(run, 2, 1, sample=3, t=20)}
    assert set(found) == {"progress", *TOPICS}
    for group, members in found.items():
        names = [p.name for p in members]
        assert len(set(names)) == len(names), group
        for plot in members:
            where = (group, plot.name)
            assert re.fullmatch(r"[A-Za-z0-9_.-]+", plot.name), where
            assert plot.title, where
            if isinstance(plot, LinePlot):
                assert plot.lines, where
                assert len({one.label for one in plot.lines}) == len(plot.lines), where
                for one in plot.lines:
                    for array in (one.x, one.y, one.low, one.high):
                        assert array is None or array.shape == one.x.shape, where
            elif isinstance(plot, HeatMap):
                assert plot.values.shape == (len(plot.rows), len(plot.x)), where
                assert len(set(plot.rows)) == len(plot.rows), where
            else:
                assert all(len(row) == len(plot.columns) for row in plot.rows), where
                assert all(isinstance(cell, str) for row in plot.rows for cell in row), where
            if not isinstance(plot, Table) and plot.x_label.startswith("time step"):
                assert plot.marker == 20, where


def test_without_a_step_there_is_no_marker_and_no_table_of_it(run):
    for plot in topic("controller", run, 2, 1):
        assert getattr(plot, "marker", None) is None
        assert plot.name != "at_step"


def test_what_is_not_there_is_not_shown(run):
    assert set(inspect(run, 0, 0)) == {"controller"}  # the start: controllers and nothing else
    assert inspect(run, 99, 0) == {}
    assert set(inspect(run, 1, 17)) == {"policy"}  # its training is that of all conditions
    assert topic("trajectory", run, 1, 0, sample=99) == []
    with pytest.raises(ConfigError, match="trajectory"):
        topic("trajectori", run, 1, 0)


# --- trajectory and cost


def test_another_rollout_is_shown_in_place_of_the_sample(run):
    other = run.evaluation(2, 1, "policy").rollouts
    plot = named(topic("trajectory", run, 2, 1, 3, evaluation=("policy", other)), "velocity")
    assert plot.title == "velocity: policy; mean and range of 5 samples"
    close(line(plot, "velocity 1").y, other.entry("velocity")[0, :, 1])
    r = run.rollouts(2, 1)
    close(line(plot, "velocity 1, mean and range").y, r.entry("velocity")[:, :, 1].mean(axis=0))
    actions = named(topic("trajectory", run, 2, 1, 3, evaluation=("policy", other)), "actions")
    close(line(actions, "action 0").y, other.U[0, :, 0])


def test_trajectory(run):
    r = run.rollouts(2, 1)
    plot = named(topic("trajectory", run, 2, 1, 3), "velocity")
    close(line(plot, "velocity 1").y, r.X[3, :, 3])
    spread = line(plot, "velocity 1, mean and range")
    close(spread.y, r.X[:, :, 3].mean(axis=0))
    close(spread.low, r.X[:, :, 3].min(axis=0))
    close(spread.high, r.X[:, :, 3].max(axis=0))
    plot = named(topic("trajectory", run, 2, 1, 3), "actions")
    close(line(plot, "action 0").y, r.U[3, :, 0])


def test_long_entries_are_spread_over_several_plots():
    context = PlotContext(SimpleNamespace(agent=SimpleNamespace(dt=0.1)), 1, 0)
    values, one = np.zeros((2, 3, 6)), np.ones((3, 6))
    labels = [f"q {i}" for i in range(6)]
    found = list(entry_plots(context, ("q", "position"), labels, "policy", one, values))
    assert {p.y_label for p in found} == {"position"}
    assert [p.name for p in found] == ["q_0-3", "q_4-5"]
    ends = "policy; mean and range of 2 samples"
    assert [p.title for p in found] == [f"q 0 to 3: {ends}", f"q 4 to 5: {ends}"]
    assert [float(one.y[0]) for one in found[1].lines] == [1, 0, 1, 0]
    assert [one.label for one in found[1].lines][::2] == ["q 4", "q 5"]


def test_actions_have_the_names_that_the_agent_gives_them(run, monkeypatch):
    agent = SimpleNamespace(action_names=("shoulder", "elbow"), dt=0.1)
    monkeypatch.setattr(RunReader, "agent", agent)
    r = run.rollouts(2, 1)
    close(line(named(topic("trajectory", run, 2, 1, 3), "actions"), "elbow").y, r.U[3, :, 1])
    found = topic("controller", run, 2, 1)
    assert named(found, "gains").rows[0].startswith("shoulder <- position 0")
    assert named(found, "correlation").rows == ("shoulder, elbow",)
    found = topic("policy", run, 2, 1)
    assert named(found, "action_1").y_label == "elbow"
    # an agent that has changed since
    monkeypatch.setattr(RunReader, "agent", SimpleNamespace(action_names=("grip",), dt=0.1))
    found = topic("controller", run, 2, 1)
    assert named(found, "correlation").rows == ("action 0, action 1",)


def test_sampled_and_expected_costs(run):
    found = topic("cost", run, 2, 1, 3)
    l = run.cost_samples(2, 1)  # noqa: E741
    plot = named(found, "per_step")
    close(line(plot, "samples, mean and range").y, l.mean(axis=0))
    close(line(plot, "samples, mean and range").high, l.max(axis=0))
    close(line(plot, "sample 3").y, l[3])
    reported = run.condition_reports(2)[1]
    after = line(plot, "expected of the controller after the update")
    close(after.y.sum(), reported.predicted_cost, rtol=1e-9)
    before = line(plot, "expected of the controller before the update")
    assert before.y.sum() != pytest.approx(after.y.sum(), rel=1e-3)
    # the model is fitted to samples of that controller: it expects about what was sampled
    assert before.y.sum() == pytest.approx(l.sum(axis=1).mean(), rel=0.1)


def test_terms_of_the_cost_add_up_to_the_stored_cost(run):
    found = topic("cost", run, 2, 1, 3)
    plot = named(found, "terms")
    assert [one.label for one in plot.lines] == [
        "ActionCost", "StateCost position", "StateCost velocity", "sum",
    ]  # fmt: skip
    close(line(plot, "sum").y, run.cost_samples(2, 1)[3], rtol=1e-9)
    r = run.rollouts(2, 1, 3)
    close(line(plot, "ActionCost").y, 0.5 * 0.03 * (r.U[0] ** 2).sum(axis=-1), rtol=1e-9)
    rows = {row[0]: float(row[1]) for row in named(found, "term_sums").rows}
    close(rows["sum"], run.cost_samples(2, 1)[3].sum(), rtol=1e-5)


def test_terms_of_nested_sums_carry_all_weights():
    X, U = np.ones((1, 3, 1)), 2 * np.ones((1, 3, 1))
    r = Rollouts(X, U, X, np.zeros_like(U), Layout((("x", 1),)))
    state = StateCost(entry="x", target=0.0, l2=1.0)
    inner = SumCost(terms=(WeightedCost(cost=state, weight=3.0), WeightedCost(cost=state)))
    cost = SumCost(
        terms=(WeightedCost(cost=inner, weight=2.0), WeightedCost(cost=ActionCost(weights=1.0)))
    )
    found = cost_terms(cost, r)
    assert [label for label, _ in found] == ["StateCost x #1", "StateCost x #2", "ActionCost"]
    close([v[0, 0] for _, v in found], [2 * 3 * 0.5, 2 * 0.5, 0.5 * 4])
    close(sum(v for _, v in found), cost.evaluate(r).l)
    assert [label for label, _ in cost_terms(state, r)] == ["StateCost x"]


# --- controller


def test_gains_exploration_and_the_numbers_of_one_step(run):
    found, c = topic("controller", run, 2, 1, t=20), run.controller(2, 1)
    gains = named(found, "gains")
    row = gains.rows.index("action 1 <- velocity 0")
    close(gains.values[row], c.K[:, 1, 2])
    close(line(named(found, "offset"), "action 1").y, c.k[:, 1])
    close(line(named(found, "exploration"), "action 1").y, np.sqrt(c.Sigma[:, 1, 1]))
    correlation = named(found, "correlation")
    assert correlation.rows == ("action 0, action 1",)
    close(correlation.values[0],
          c.Sigma[:, 0, 1] / np.sqrt(c.Sigma[:, 0, 0] * c.Sigma[:, 1, 1]))  # fmt: skip
    rows = {row[0]: [float(v) for v in row[1:]] for row in named(found, "at_step").rows}
    close(rows["gain of velocity 0"], c.K[20, :, 2], rtol=1e-5)
    close(rows["offset k"], c.k[20], rtol=1e-5)
    close(rows["standard deviation"], np.sqrt(np.diag(c.Sigma[20])), rtol=1e-5)
    close(rows["covariance with action 0"], c.Sigma[20, 0], rtol=1e-5)


def test_q_uu_by_hand():
    """Scalar, T = 2: Q_uu[1] = 5; V_xx[1] = 3 - 1 / 5; Q_uu[0] = 5 + b^2 V_xx[1]."""
    F = np.array([[[0.5, 2.0]]])
    dynamics = LinearDynamics(F, np.zeros((1, 1)), np.eye(1)[None])
    C = np.tile(np.array([[3.0, 1.0], [1.0, 5.0]]), (2, 1, 1))
    cost = QuadraticCost(C, np.zeros((2, 2)), np.zeros(2))
    close(action_hessian(dynamics, cost)[:, 0, 0], [5 + 4 * (3 - 1 / 5), 5])


def test_q_uu_with_the_kl_term_is_the_inverse_of_the_exploration(run):
    """The update's controller is optimal for that objective: Sigma = Q_uu^-1."""
    found = topic("controller", run, 2, 1)
    plot = named(found, "q_uu_kl")
    assert "p the linearised policy" in plot.title
    values = np.stack([one.y for one in plot.lines], axis=1)
    want = 1 / np.linalg.eigvalsh(run.controller(2, 1).Sigma)[:, ::-1]
    close(values, want, rtol=1e-6)
    plain = named(found, "q_uu")
    again = lqr.backward(run.dynamics(2, 1).dynamics, run.quadratic_cost(2, 1))
    close(
        np.stack([one.y for one in plain.lines], axis=1),
        np.linalg.eigvalsh(np.linalg.inv(again.Sigma)),
        rtol=1e-6,
    )


def with_search(run, **attributes):
    """The run as it would be with another search result."""
    names = ("quadratic_cost", "dynamics", "linearised", "sampled_controller")
    methods = {name: getattr(run, name) for name in names}
    return SimpleNamespace(**methods, search=lambda n, m: SearchResult(**attributes))


def test_an_objective_that_does_not_give_the_controller_is_not_believed(run):
    found = run.search(2, 1)
    right = with_search(run, eta=found.eta, controller=found.controller)
    assert update_objective(right, 2, 1) is not None
    wrong = with_search(run, eta=1.5 * found.eta, controller=found.controller)
    assert update_objective(wrong, 2, 1) is None
    per_step = with_search(run, eta=np.full(80, found.eta), controller=found.controller)
    assert update_objective(per_step, 2, 1) is None


def test_the_kl_may_be_measured_from_the_sampled_controller(run):
    fit, cost, before = run.dynamics(2, 1), run.quadratic_cost(2, 1), run.sampled_controller(2, 1)
    new = lqr.backward(fit.dynamics, kl.penalised(cost, before, 0.2))
    _, what = update_objective(with_search(run, eta=0.2, controller=new), 2, 1)
    assert "p the controller before the update" in what


def test_q_uu_that_is_not_positive_definite_is_reported(run):
    bad = QuadraticCost(-np.tile(np.eye(6), (80, 1, 1)), np.zeros((80, 6)), np.zeros(80))
    fake = SimpleNamespace(
        quadratic_cost=lambda n, m: bad,
        dynamics=run.dynamics,
        search=lambda n, m: None,
        controller=run.controller,
        layout=run.layout,
        agent=run.agent,
    )
    found = list(controller_plots(PlotContext(fake, 2, 1, t=3)))
    assert "not positive definite at t=79" in named(found, "q_uu").rows[0][0]
    assert not any("Q_uu" in row[0] for row in named(found, "at_step").rows)


# --- dynamics


def scalar_run(X):
    """States (N, T) of an agent with one state and no use for its action."""
    X = np.asarray(X, dtype=float)[:, :, None]
    return X, np.zeros_like(X)


def test_prediction_errors_by_hand():
    """x = 0, 1, 4, 9 under the model x' = 2 x + 1."""
    X, U = scalar_run([[0, 1, 4, 9]])
    dynamics = LinearDynamics(
        np.tile([[[2.0, 0.0]]], (3, 1, 1)), np.ones((3, 1)), np.zeros((3, 1, 1))
    )
    layout = Layout((("x", 1),))
    one = prediction_errors(dynamics, X, U, layout, 1)["x"]
    close(one.model, [0, 1, 0])  # 1, 3, 9 for 1, 4, 9
    close(one.persistence, [1, 3, 5])
    close(one.velocity, [np.nan, 2, 2])  # 2, 7 for 4, 9
    two = prediction_errors(dynamics, X, U, layout, 2)["x"]
    close(two.model, [1, 2])  # 0 -> 1 -> 3 for 4; 1 -> 3 -> 7 for 9
    close(two.persistence, [4, 8])
    close(two.velocity, [np.nan, 6])  # 1 + 2 * 1 for 9


def test_errors_are_root_mean_squares_over_samples_and_values():
    X = np.zeros((2, 3, 2))
    X[0, 1], X[1, 1] = (3.0, 4.0), (0.0, 1.0)
    U = np.zeros((2, 3, 1))
    still = LinearDynamics(np.tile(np.eye(2, 3), (2, 1, 1)), np.zeros((2, 2)), np.zeros((2, 2, 2)))
    e = prediction_errors(still, X, U, Layout((("a", 1), ("b", 1))), 1)
    close(e["a"].model[0], np.sqrt(9 / 2))
    close(e["b"].model[0], np.sqrt(17 / 2))
    both = prediction_errors(still, X, U, Layout((("ab", 2),)), 1)["ab"]
    close(both.model[0], np.sqrt(26 / 4))


def test_a_linear_agent_is_predicted_open_loop():
    rng = np.random.default_rng(3)
    T, nx, nu = 12, 3, 2
    F, f = 0.5 * rng.normal(size=(T - 1, nx, nx + nu)), rng.normal(size=(T - 1, nx))
    U, X = rng.normal(size=(4, T, nu)), np.zeros((4, T, nx))
    X[:, 0] = rng.normal(size=(4, nx))
    for t in range(T - 1):
        X[:, t + 1] = np.concatenate([X[:, t], U[:, t]], axis=1) @ F[t].T + f[t]
    dynamics = LinearDynamics(F, f, np.zeros((T - 1, nx, nx)))
    for h in (1, 5, 10):
        predicted = open_loop(dynamics, X, U, h)
        assert predicted.shape == (4, T - h, nx)
        close(predicted, X[:, h:], atol=1e-9)
    assert np.abs(open_loop(dynamics, X, U + 1e-3, 5) - X[:, 5:]).max() > 1e-5


def test_dynamics_plots_of_a_run(run):
    found = topic("dynamics", run, 2, 1)
    fit, r, later = run.dynamics(2, 1), run.rollouts(2, 1), run.rollouts(3, 1)
    table = named(found, "prediction")
    rows = {(row[0], row[1]): row[2:] for row in table.rows}
    error = open_loop(fit.dynamics, r.X, r.U, 5)[:, 1:, :2] - r.X[:, 6:, :2]
    close(float(rows["position", "5"][0]), np.sqrt((error**2).mean()), rtol=1e-5)
    model, still, drift, ratio, fresh = map(float, rows["velocity", "1"])
    close(ratio, model / min(still, drift), rtol=1e-4)
    error = open_loop(fit.dynamics, later.X, later.U, 1)[:, 1:, 2:] - later.X[:, 2:, 2:]
    close(fresh, np.sqrt((error**2).mean()), rtol=1e-5)
    plot = named(found, "relative_error_10")
    assert [one.label for one in plot.lines] == ["position", "velocity"]
    noise = named(found, "process_noise")
    close(10 ** noise.values[2], np.sqrt(fit.dynamics.W[:, 2, 2]), rtol=1e-9)
    before = named(topic("dynamics", run, 2, 1), "prediction").columns
    assert before[-1] == "model in iteration 3"
    last = named(topic("dynamics", run, 3, 1), "prediction")
    assert last.columns == before[:-1]  # there is no fourth iteration
    assert all(len(row) == len(last.columns) for row in last.rows)


def test_mixture_heaviest_first(run):
    found, mixture = topic("dynamics", run, 2, 1), run.prior(2, 1)
    weights = named(found, "mixture_weights").lines[0].y
    close(weights.sum(), 1.0)
    assert (np.diff(weights) <= 0).all()
    means = named(found, "mixture_means")
    assert means.rows[4:7] == ("action 0", "action 1", "next position 0")
    heaviest = int(mixture.log_weight.argmax())
    w = np.exp(mixture.log_weight)
    centre = w @ mixture.mean
    scaled = (mixture.mean[heaviest] - centre) / np.sqrt(w @ (mixture.mean - centre) ** 2)
    close(means.values[:, 0], scaled, rtol=1e-9)
    rows = {row[0]: row[1:] for row in named(found, "mixture").rows}
    close(float(rows["action 1"][0]), mixture.mean[heaviest, 5], rtol=1e-5)


# --- policy and dual


def test_policy_against_controller(run):
    found, r = topic("policy", run, 2, 1, 3), run.rollouts(2, 1)
    policy, controller = run.policy(2), run.controller(2, 1)
    plot = named(found, "action_1")
    close(line(plot, "policy").y, policy.mean(r.obs[3])[:, 1], rtol=1e-9)
    close(line(plot, "local controller").y, controller.mean_action(r.X)[3, :, 1], rtol=1e-9)
    close(line(plot, "sampled").y, r.U[3, :, 1])
    gap = policy.mean(r.obs) - controller.mean_action(r.X)
    close(line(named(found, "difference"), "action 0").y, np.sqrt((gap[:, :, 0] ** 2).mean(0)))
    gains = named(found, "linearised_gains")
    row = gains.rows.index("action 0 <- velocity 1")
    close(gains.values[row], run.linearised(2, 1).K[:, 0, 3])
    training = named(found, "training").lines[0]
    close(training.y, run.policy_loss(2))
    assert 0 < training.x[0] < training.x[-1] < 100


def test_search_of_the_dual_variable(run):
    found, result = topic("dual", run, 1, 1), run.search(1, 1)
    search = named(found, "search")
    trials = line(search, "trials")
    assert (np.diff(trials.x) >= 0).all()
    order = np.argsort(result.trace[:, 0])
    close(10**trials.x, result.trace[order, 0])
    close(trials.y, result.trace[order, 1])
    close(line(search, "bound").y, 0.5 * 80)
    close(10**search.marker, result.eta)
    assert len(named(found, "trials").rows) == len(result.trace)
    steps = named(found, "kl")
    close(line(steps, "KL").y, result.kl)
    close(line(steps, "bound of the mean").y, 0.5)
    close(line(steps, "mean KL").y, run.condition_reports(1)[1].kl)
    numbers = dict(named(found, "report").rows)
    close(float(numbers["predicted cost"]), run.condition_reports(1)[1].predicted_cost, rtol=1e-5)


@dataclass
class Half:
    """A search record of a user's algorithm."""

    pi2: PI2Result


def search_view(found):
    run = SimpleNamespace(
        condition_reports=lambda n: None,
        search=lambda n, m: SearchResult.of(found),
        algorithm_state=lambda n, m: None,
        controller=lambda n, m: None,
        agent=SimpleNamespace(dt=0.1),
    )
    return list(search_plots(PlotContext(run, 1, 0)))


def test_a_bound_per_step_shows_every_dual_variable():
    T = 4
    dynamics = LinearDynamics(
        np.tile([[[1.0, 0.5]]], (T - 1, 1, 1)), np.zeros((T - 1, 1)), np.full((T - 1, 1, 1), 0.01)
    )
    cost = QuadraticCost(np.tile(np.eye(2), (T, 1, 1)), np.ones((T, 2)), np.zeros(T))
    start = Gaussian(np.ones(1), np.eye(1))
    previous = LinearGaussianController(np.zeros((T, 1, 1)), np.zeros((T, 1)), np.ones((T, 1, 1)))
    result = minimise_per_step(dynamics, cost, start, previous, 0.1, DualConfig())
    found = search_view(result)
    assert [p.name for p in found] == ["search", "kl", "eta"]
    close(found[0].lines[0].y, result.trace)
    close(line(found[1], "bound of each step").y, 0.1)
    close(found[2].lines[0].y, result.eta)
    whole = minimise(dynamics, cost, start, previous, 0.1)
    assert [p.name for p in search_view(whole)] == ["search", "trials", "kl"]
    assert search_view(None) == []


def test_weights_and_temperatures_of_samples():
    T, N = 3, 2
    controller = LinearGaussianController(np.zeros((T, 1, 1)), np.zeros((T, 1)), np.ones((T, 1, 1)))
    weights = np.array([[0.5, 0.5], [0.2, 0.8], [1.0, 0.0]])
    result = PI2Result(controller, np.arange(1.0, 4.0), weights, np.zeros(T))
    found = search_view(Half(result))
    assert [p.name for p in found] == ["pi2_kl", "pi2_temperature", "pi2_weights"]
    assert found[2].rows == tuple(f"sample {i}" for i in range(N))
    close(found[2].values, weights.T)
    close(found[1].lines[0].y, [1, 2, 3])


def test_both_halves_of_an_update_and_what_its_model_does_not_explain():
    @dataclass
    class Explained:
        share: np.ndarray

    @dataclass
    class Model:
        kl: np.ndarray
        kl_max: np.ndarray

    @dataclass
    class Both:
        lqr: Model
        pi2: PI2Result
        explained: Explained
        unknown: str = "is left out"

    T = 3
    controller = LinearGaussianController(np.zeros((T, 1, 1)), np.zeros((T, 1)), np.ones((T, 1, 1)))
    pi2 = PI2Result(controller, np.ones(T), np.full((T, 2), 0.5), np.zeros(T))
    record = Both(Model(np.arange(3.0), np.full(T, 0.1)), pi2, Explained(np.array([0.2, 0.3, 0.4])))
    found = search_view(record)
    names = ["lqr_kl", "pi2_kl", "pi2_temperature", "pi2_weights", "unexplained"]
    assert [p.name for p in found] == names
    close(line(found[0], "bound of each step").y, 0.1)
    close(found[-1].lines[0].y, [0.2, 0.3, 0.4])
    assert found[0].title.startswith("Model-based half: KL")
