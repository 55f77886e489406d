"""`gps.evaluate`: of a run folder, and of an experiment in memory."""

import csv
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

import gps
from gps.agents import RealTimeConfig
from gps.costs import WaypointCost
from gps.errors import ConfigError, SimulationError, StoreError
from gps.pipeline import sampling
from gps.pipeline.experiment import initial_state


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An experiment with a policy, its folder, and the last report."""
    experiment = gps.load("point_mass_policy")
    training = replace(experiment.algorithm.training, steps=50)
    experiment = replace(
        experiment,
        iterations=2,
        agent=replace(experiment.agent, T=12),
        algorithm=replace(experiment.algorithm, training=training),
    )
    out = tmp_path_factory.mktemp("runs") / "run"
    *_, last = gps.run(experiment, out=out)
    return experiment, out, last


def test_it_is_what_the_conditions_give_one_by_one(made):
    experiment, out, last = made
    report = gps.evaluate(out, iteration="last", samples=3, noise=True, seed=5)
    assert (report.iteration, report.test, report.table) == (2, False, None)
    assert report.best is report.policy
    actors = {"policy": [last.state.policy] * 4, "local": last.state.conditions}
    for who, sources in actors.items():
        judged = getattr(report, who)
        assert judged.cost.shape == (4, 3)
        for m, source in enumerate(sources):
            want = sampling.evaluate_condition(
                experiment.agent,
                experiment.cost,
                experiment.measure,
                source.actor,
                m,
                3,
                5,
                noise=True,
            )
            np.testing.assert_array_equal(judged.cost[m], want.cost)
            np.testing.assert_array_equal(judged.distance[m], want.distance)
            np.testing.assert_array_equal(judged.success[m], want.success)
            np.testing.assert_array_equal(judged.rollouts[m].X, want.rollouts.X)
    assert not np.array_equal(report.policy.cost, report.local.cost)


def test_the_policy_is_judged_over_the_steps_that_are_asked_for(made, tmp_path):
    experiment, _, _ = made
    longer = replace(experiment, evaluation_steps=30, iterations=1)
    (plain,) = gps.run(replace(experiment, iterations=1))
    (report,) = gps.run(longer, out=tmp_path / "run")
    rest = experiment.cost, experiment.measure, report.state.policy.actor
    agents = experiment.agent, replace(experiment.agent, T=30)
    short, long = (
        np.array([sampling.evaluate_condition(a, *rest, m, 1, 0).cost[0] for m in range(4)])
        for a in agents
    )
    assert report.row["policy_cost_mean"] == long.mean() != short.mean()
    assert plain.row["policy_cost_mean"] == short.mean()
    assert report.row["local_cost_mean"] == plain.row["local_cost_mean"]  # controllers end at T
    judged = gps.evaluate(tmp_path / "run")
    np.testing.assert_array_equal(judged.policy.cost[:, 0], long)
    assert judged.policy.rollouts[0].T == 30
    assert judged.local.rollouts[0].T == 12


def test_steps_to_judge_by_that_nothing_can_take_are_refused(made):
    experiment, _, _ = made
    with pytest.raises(ConfigError, match="evaluation_steps must be a whole number"):
        replace(experiment, evaluation_steps=0)
    slow = RealTimeConfig(agent=experiment.agent)
    with pytest.raises(ConfigError, match="evaluation_steps must be None: RealTimeConfig has no"):
        replace(experiment, agent=slow, evaluation_steps=30).validate()
    path = WaypointCost(entry="position", steps=(0, 11), targets=((1.0, 1.0), (0.0, 0.0)), l2=1.0)
    replace(experiment, cost=path, evaluation_steps=12).validate()
    with pytest.raises(ConfigError, match="evaluation_steps: the cost does not fit 11 steps"):
        replace(experiment, cost=path, evaluation_steps=11).validate()


def test_an_experiment_with_its_state_gives_what_its_folder_gives(made):
    experiment, out, last = made
    stored = gps.evaluate(out, iteration=2, test=True)
    in_memory = gps.evaluate(experiment, state=last.state, test=True)
    assert stored.local is in_memory.local is None
    assert len(stored.policy.cost) == 6
    np.testing.assert_array_equal(stored.policy.cost, in_memory.policy.cost)


def test_without_a_state_the_initial_controllers_are_evaluated(made):
    experiment, _, last = made
    report = gps.evaluate(experiment)
    want = initial_state(experiment, experiment.validate()).conditions
    assert report.iteration == 0
    np.testing.assert_array_equal(
        report.local.rollouts[1].U[0, 0],
        want[1].controller.k[0] + want[1].controller.K[0] @ report.local.rollouts[1].X[0, 0],
    )
    trained = gps.evaluate(experiment, state=last.state)
    assert trained.policy.cost.mean() < report.policy.cost.mean()


def test_a_table_is_written_only_if_asked_for(made):
    _, out, _ = made
    before = sorted(os.listdir(out))
    gps.evaluate(out)
    assert sorted(os.listdir(out)) == before
    report = gps.evaluate(out, iteration=1, samples=2, save=True)
    assert report.table == out / "evaluation_train_0001.csv"
    assert sorted(os.listdir(out)) == sorted([*before, report.table.name])
    with open(report.table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["cost"]) for row in rows] == report.policy.cost.mean(axis=1).tolist()
    assert {row["iteration"] for row in rows} == {"1"}
    report.table.unlink()


def test_tables_of_forgotten_iterations_go_with_them(made, tmp_path):
    _, out, _ = made
    run = tmp_path / "run"
    shutil.copytree(out, run)
    for iteration in (1, 2):
        gps.evaluate(run, iteration=iteration, save=True)
        gps.evaluate(run, iteration=iteration, test=True, save=True)
    best = gps.evaluate(run, save=True)
    assert best.iteration == 2
    (run / "evaluation_mine.csv").write_text("iteration\n2\n")
    assert [*gps.resume(run, start=1, iterations=1)] == []
    assert sorted(path.name for path in run.glob("*.csv")) == [
        *("evaluation_mine.csv", "evaluation_test_0001.csv", "evaluation_train_0001.csv"),
        "metrics.csv",
    ]


def test_a_condition_whose_simulation_fails_has_infinite_cost(made, monkeypatch, caplog):
    _, out, _ = made
    real = sampling.evaluate_condition

    def sometimes(agent, cost, measure, policy, condition, *args, **kwargs):
        if condition == 1:
            raise SimulationError(1, ())
        return real(agent, cost, measure, policy, condition, *args, **kwargs)

    monkeypatch.setattr(sampling, "evaluate_condition", sometimes)
    found = gps.evaluate(out, samples=2).policy
    assert np.isinf(found.cost).all(axis=1).tolist() == [False, True, False, False]
    assert np.isinf(found.distance[1]).all()
    assert found.success[1].tolist() == [0, 0]
    assert [r is None for r in found.rollouts] == [False, True, False, False]
    assert "condition 1: simulation failed" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be a whole number from 1 to 100000, got 0"),
        ({"samples": 2.5}, "samples must be a whole number"),
        ({"seed": -1}, "seed must be a whole number of at least 0 and below 2^63, got -1"),
        ({"iteration": "worst"}, "iteration must be best, last or the number"),
    ],
)
def test_wrong_arguments(made, options, message):
    with pytest.raises(ConfigError) as error:
        gps.evaluate(made[1], **options)
    assert message in str(error.value)


def test_what_does_not_go_together(made, tmp_path):
    experiment, out, last = made
    with pytest.raises(ConfigError, match="save needs a run folder"):
        gps.evaluate(experiment, save=True)
    with pytest.raises(ConfigError, match="iteration is for a run folder"):
        gps.evaluate(experiment, iteration=1)
    with pytest.raises(ConfigError, match="state is for an Experiment"):
        gps.evaluate(out, state=last.state)
    with pytest.raises(StoreError, match="iteration 9 is not stored"):
        gps.evaluate(out, iteration=9)
    with pytest.raises(ConfigError, match="trains no global policy"):
        gps.evaluate(gps.load("reacher"), state=replace(last.state, policy=None), test=True)
