"""Evaluation, agents per thread, and what is refused before or in the first iteration."""

import threading
from dataclasses import dataclass, replace

import numpy as np
import pytest
from distributed import Client, LocalCluster

import gps
from gps.agents.point_mass import PointMassConfig
from gps.algorithms import MDGPSConfig, StepConfig, mdgps, stages
from gps.control import HoldConfig
from gps.costs import StateCost
from gps.errors import ConfigError, ExperimentError, GPSError, NonFiniteError
from gps.parallel import Dask, Serial
from gps.pipeline.loader import load
from gps.pipeline.sampling import agent_of, evaluate_condition, rollout
from gps.policies import TrainingConfig
from gps.types import CostTerms, LinearGaussianController


@pytest.fixture(scope="module")
def trained():
    experiment = gps.load("point_mass_policy")
    algorithm = replace(experiment.algorithm, training=TrainingConfig(steps=200), replay=10)
    experiment = replace(experiment, algorithm=algorithm, iterations=2)
    return experiment, list(gps.run(experiment))


def test_several_evaluation_samples_start_apart_and_one_starts_at_the_condition(trained):
    experiment, reports = trained
    agent = replace(experiment.agent, start_position_std=0.1)
    policy = reports[-1].state.policy.policy
    start = agent_of(agent).start_state(1)
    rest = (agent, experiment.cost, experiment.measure, policy, 1)
    one = evaluate_condition(*rest, 1, 0).rollouts.X[0, 0]
    np.testing.assert_array_equal(one, start)
    three = evaluate_condition(*rest, 3, 0).rollouts.X[:, 0]
    assert len({row.tobytes() for row in three}) == 3
    assert np.all(np.abs(three - start)[:, :2] < 0.6)


def test_the_policy_is_trained_on_the_replay(trained):
    experiment, reports = trained
    config, state = experiment.algorithm.training, reports[-1].state
    assert state.conditions[0].replay.X.shape[0] == 10
    rollouts = list(reports[-1].rollouts)
    bare = [replace(c, replay=None) for c in state.conditions]
    rest = (config, True, 0, 1, 1)

    def pool(conditions):
        return [stages.targets(r, c) for r, c in zip(rollouts, conditions, strict=True)]

    with_replay = stages.train_policy(state.policy, pool(state.conditions), *rest)
    without = stages.train_policy(state.policy, pool(bare), *rest)
    obs = rollouts[0].obs[0]
    assert not np.array_equal(with_replay.policy.mean(obs), without.policy.mean(obs))
    # the first iteration's rollouts are those that only the replay holds
    where = reports[0].rollouts[0].obs[:, 0]
    np.testing.assert_array_equal(state.conditions[0].replay.obs[:5, 0], where)


def test_on_policy_the_policy_counts_as_sampled_and_no_setback_is_called(trained):
    experiment, reports = trained
    state, r = reports[-1].state, reports[-1]
    lucky = replace(state.conditions[0], sampled_cost=-1.0, cost_error=0.01)
    models = (r.report.models["cost"][0], r.report.models["dynamics"][0])
    lin = r.report.models["linearised"][0]
    config = experiment.algorithm
    off = mdgps._assess(lucky, r.rollouts[0], *models, lin, False, config)
    on = mdgps._assess(lucky, r.rollouts[0], *models, lin, True, config)
    assert on.expected_sampled == on.expected_cost
    assert off.expected_sampled != off.expected_cost
    assert off.rejected
    assert not on.rejected


@dataclass(frozen=True, kw_only=True)
class WatchedConfig(PointMassConfig):
    """A point mass that remembers which policies it was given."""

    def build(self):
        agent = super().build()
        plain, agent.given = agent.rollout, []

        def rollout(policy, *args, **kwargs):
            agent.given.append(policy)
            return plain(policy, *args, **kwargs)

        agent.rollout = rollout
        return agent


def test_an_agent_without_cameras_is_given_controllers_as_they_are():
    """A remote one runs them beside the robot, and nothing else."""
    experiment = load("point_mass").experiment
    config = WatchedConfig(T=12, starts=((1.0, 1.0),), force_limit=7.0)
    experiment = replace(experiment, agent=config, samples=3, iterations=1)
    *_, report = gps.run(experiment)
    controller = report.state.conditions[0].controller
    evaluate_condition(config, experiment.cost, None, controller, 0, 1, 0)
    given = agent_of(config).given
    assert len(given) == 3  # one batch, a noise-free rollout after it, and the one above
    assert {type(policy) for policy in given} == {LinearGaussianController}


def test_every_thread_simulates_with_an_agent_of_its_own():
    agent, found = PointMassConfig(), []
    thread = threading.Thread(target=lambda: found.append(agent_of(agent)))
    thread.start()
    thread.join()
    assert agent_of(agent) is agent_of(agent)
    assert found[0] is not agent_of(agent)


def test_workers_with_several_threads_give_the_serial_bytes():
    experiment = replace(gps.load("arm_reach"), samples=3)
    state = next(iter(gps.run(experiment, iterations=1))).state
    calls = [(experiment.agent, c, m, 3, 0, 1, 0) for m, c in enumerate(state.conditions)] * 4

    def results(executor):
        return executor.gather([executor.call(rollout, *call) for call in calls])

    expected = results(Serial())
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=4, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        got = results(Dask(client))
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_array_equal(a.X, b.X)
        np.testing.assert_array_equal(a.U, b.U)


@dataclass(frozen=True, kw_only=True)
class NaNCost(StateCost):
    def evaluate(self, rollouts):
        terms = super().evaluate(rollouts)
        return CostTerms(
            np.full_like(terms.l, np.nan), *(getattr(terms, n) for n in ("l_x", "l_u")),
            *(getattr(terms, n) for n in ("l_xx", "l_ux", "l_uu")),
        )  # fmt: skip


@pytest.mark.parametrize("name", ["point_mass", "point_mass_policy"])
def test_a_run_without_any_finite_cost_ends_with_an_error(name):
    cost = NaNCost(entry="position", target=0.0, weights=1.0, l2=1.0)
    with pytest.raises(NonFiniteError, match="every condition is NaN or infinite in iteration 1"):
        list(gps.run(replace(gps.load(name), cost=cost)))


def test_first_controllers_are_checked_with_the_rest():
    experiment = gps.load("point_mass")
    for initial, text in (
        (HoldConfig(position="position", velocity="velocity", gains=(1.0,)), "gains"),
        (HoldConfig(position="pos", velocity="velocity"), "unknown state entry 'pos'"),
    ):
        with pytest.raises(ConfigError, match=f"Experiment.initial.*{text}"):
            replace(experiment, initial=initial).validate()


def test_values_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="above 0 nats, got inf"):
        StepConfig(kl_max=float("inf"))
    with pytest.raises(ConfigError, match="2\\^63"):
        replace(gps.load("point_mass"), seed=10**20)
    with pytest.raises(ConfigError, match=r"gps\.load"):
        list(gps.run("point_mass"))
    assert MDGPSConfig().restart is None
    assert MDGPSConfig().replay == 16


@pytest.mark.parametrize(
    ("option", "value"), [("restart", "yes"), ("restart", 1), ("replay", -3), ("replay", 2.5)]
)
def test_options_of_the_policys_training_are_checked(option, value):
    experiment = gps.load("point_mass_policy")
    with pytest.raises(ConfigError, match=rf"MDGPSConfig\.{option} must be .*{value}"):
        replace(experiment.algorithm, **{option: value})


def test_a_file_that_exits_is_an_error_with_its_line(tmp_path):
    file = tmp_path / "leaves.py"
    file.write_text("import sys\n\nsys.exit(3)\n")
    with pytest.raises(ExperimentError, match=r"leaves\.py:3"):
        load(file)


def test_a_scheduler_without_workers_is_said():
    with (
        LocalCluster(n_workers=0, dashboard_address=None, host="127.0.0.1") as cluster,
        pytest.raises(GPSError, match="no worker has joined"),
    ):
        Dask(scheduler=cluster.scheduler_address, timeout=1.0)


def test_records_print_their_shapes(trained):
    _, reports = trained
    text = repr(reports[-1])
    assert len(text) < 3000
    assert "X=(5, 80, 4)" in repr(reports[-1].rollouts[0])
