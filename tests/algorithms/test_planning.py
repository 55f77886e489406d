"""Planning with known dynamics: known optima, other solvers, plans that fail, agents refused."""

import hashlib
import logging
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import mujoco
import numpy as np
import pytest
from algorithm_problems import (
    AGENT,
    COST,
    Reward,
    Unusable,
    advance,
    begin,
    digest,
    noise_free_cost,
    optimal_costs,
)
from distributed import Client, LocalCluster

import gps
from gps.agents import Condition, PointMassConfig, arm_reach, cartpole, peg_insertion, pendulum
from gps.algorithms.planning import ILQRPlanningConfig, _Problem
from gps.control import HoldConfig, ilqr
from gps.control.ilqr import ILQRConfig
from gps.control.models import MujocoModel, NumpyModel
from gps.costs import ActionCost, CostOf, EndpointCost, StateCost, SumCost, WeightedCost
from gps.data import model_path
from gps.errors import ConfigError
from gps.parallel import Dask
from gps.pipeline import Experiment
from gps.pipeline.experiment import initial_state
from gps.pipeline.sampling import evaluate_condition
from gps.rng import stream
from gps.types import Layout

PENDULUM = replace(
    pendulum(), T=30, conditions=tuple(Condition(qpos=(a,)) for a in (0.0, 0.3, -0.2))
)
ASIDE = SumCost(  # as far out as the motor can hold it, and a little on
    terms=(
        WeightedCost(weight=0.1, cost=ActionCost(weights=1.0)),
        WeightedCost(cost=StateCost(entry="joint_pos", target=0.7, l2=1.0, final_multiplier=30.0)),
        WeightedCost(weight=0.1, cost=StateCost(entry="joint_vel", target=0.0, l2=1.0)),
    )
)
TIP = SumCost(
    terms=(
        WeightedCost(weight=0.01, cost=ActionCost(weights=1.0)),
        WeightedCost(cost=EndpointCost(target=(0.5, 0.0, 0.2), l2=1.0, log_weight=0.1)),
        WeightedCost(
            weight=0.05,
            cost=EndpointCost(
                entry="end_point_velocities", target=(0.0, 0.0, 0.0), l2=1.0, through="state"
            ),
        ),
        WeightedCost(weight=0.01, cost=StateCost(entry="joint_vel", target=0.0, l2=1.0)),
    )
)
ARM = replace(
    arm_reach(),
    T=25,
    state=("end_points", "joint_vel", "end_point_velocities", "joint_pos"),
    conditions=(
        Condition(),
        # the first offset changes the kinematics, the second one the dynamics as well
        Condition(body_offsets=(("base", (0.1, 0.0, 0.15)), ("lower", (0.0, 0.0, 0.15)))),
    ),
)


def experiment(agent_config, cost, iterations=6, samples=2, **kwargs):
    kwargs.setdefault("model", agent_config)
    kwargs.setdefault("steps_per_iteration", 4)
    return Experiment(
        agent=agent_config,
        cost=cost,
        initial=HoldConfig(model=False),
        algorithm=ILQRPlanningConfig(**kwargs),
        samples=samples,
        iterations=iterations,
    )


def last(e, **kwargs):
    return list(gps.run(e, **kwargs))[-1]


def started(e):
    """The state before the first iteration; what refuses a configuration."""
    return initial_state(e, e.validate())


# --- the plan


def test_a_linear_quadratic_problem_is_solved_at_once():
    """The LQR of the true dynamics is the judge."""
    config = ILQRPlanningConfig(model=AGENT, limits=False)
    agent, state = begin(config)
    state, reports, _ = advance(config, agent, state, 1)
    best = optimal_costs()
    for m, c in enumerate(state.conditions):
        assert noise_free_cost(agent, c.controller, m) == pytest.approx(best[m], rel=1e-6)
        report = reports[0].conditions[m]
        assert report.predicted_cost == pytest.approx(best[m], rel=1e-6)
        assert report.predicted_cost < 0.9 * report.expected_cost
        assert report.condition == m
    assert not np.allclose(best[0], best[1])


def test_the_plan_is_that_of_the_planner_alone():
    """In small steps through the run loop, and at once with a model made here, from no action."""
    report = last(experiment(PENDULUM, ASIDE))
    model = mujoco.MjModel.from_xml_path(str(model_path("pendulum")))
    model.opt.timestep = PENDULUM.dt / PENDULUM.substeps
    known = MujocoModel(model, substeps=PENDULUM.substeps)
    cost = CostOf(ASIDE, Layout((("joint_pos", 1), ("joint_vel", 1))), 1, PENDULUM.T)
    agent = PENDULUM.build()
    planned = []
    for m, condition in enumerate(PENDULUM.conditions):
        start = (*condition.qpos, 0.0)
        alone = ilqr.minimise(known, cost, start, np.zeros((30, 1)), limits=(-1.2, 1.2))
        assert alone.converged
        assert (np.abs(alone.U) == 1.2).any()
        result = report.report.conditions[m]
        assert result.predicted_cost == pytest.approx(alone.cost, rel=1e-6)
        controller = report.state.conditions[m].controller
        rolled = agent.rollout(controller, m, np.zeros((1, 30, 1)))
        np.testing.assert_allclose(rolled.X[0], alone.X, atol=1e-3)
        assert float(ASIDE.evaluate(rolled).l.sum()) == pytest.approx(alone.cost, rel=1e-6)
        planned.append(result.predicted_cost)
    assert np.ptp(planned) > 0.5  # every condition has a plan of its own


def test_the_last_plan_is_where_the_next_one_begins():
    reports = list(gps.run(experiment(PENDULUM, ASIDE, iterations=5, steps_per_iteration=2)))
    for before, after in pairwise(reports):
        for a, b in zip(before.report.conditions, after.report.conditions, strict=True):
            assert b.expected_cost == pytest.approx(a.predicted_cost, rel=1e-9)
            assert b.predicted_cost <= b.expected_cost * (1 + 1e-12)
    first, second = (r.report.conditions[0].predicted_cost for r in reports[:2])
    assert second < 0.999 * first
    # what converges says so once
    reports = list(gps.run(experiment(PENDULUM, ASIDE, iterations=8)))
    events = [r.report.conditions[1].event for r in reports]
    assert sum("has converged" in e for e in events) == 1
    assert np.isnan([r.row["kl_mean"] for r in reports]).all()  # there is no bound
    assert np.isfinite([r.row["cost_mean"] for r in reports]).all()


def test_limits_hold_in_the_plan_and_without_them_in_the_agent_only():
    agent_config = replace(AGENT, force_limit=1.5)
    free, held = (
        last(
            replace(
                experiment(
                    agent_config, COST, limits=limits, model=agent_config if limits else AGENT
                ),
                initial=HoldConfig(position="position", velocity="velocity"),
            )
        )
        for limits in (False, True)
    )
    best = optimal_costs()
    for m in range(2):
        promised = free.report.conditions[m].predicted_cost
        assert promised == pytest.approx(best[m], rel=1e-6)  # of an agent without limits
        kept = held.report.conditions[m].predicted_cost
        assert kept > promised * 1.01
    got = [free.row["local_cost_mean"], held.row["local_cost_mean"]]
    assert got[1] < got[0]
    assert got[1] == pytest.approx(
        np.mean([c.predicted_cost for c in held.report.conditions]), rel=1e-6
    )


def test_a_wrong_model_costs_what_it_is_wrong_by():
    costs = []
    for mass in (1.0, 1.5, 3.0):
        e = experiment(AGENT, COST, model=replace(AGENT, mass=mass), iterations=2)
        e = replace(e, initial=HoldConfig(position="position", velocity="velocity"))
        costs.append(last(e).row["local_cost_mean"])
    assert costs[0] == pytest.approx(optimal_costs().mean(), rel=1e-6)
    assert costs[0] < costs[1] < costs[2]


def test_exploration_is_the_noise_of_the_controller_and_changes_no_plan():
    small, large = (
        last(experiment(PENDULUM, ASIDE, iterations=2, exploration=s)) for s in (0.01, (0.2,))
    )
    for m in range(3):
        a, b = (r.state.conditions[m].controller for r in (small, large))
        assert a.K.tobytes() == b.K.tobytes()
        assert a.k.tobytes() == b.k.tobytes()
        np.testing.assert_array_equal(a.chol, np.full((30, 1, 1), 0.01))
        np.testing.assert_array_equal(b.chol, np.full((30, 1, 1), 0.2))
    spread = [float(r.rollouts[0].X[:, -1].std(axis=0).max()) for r in (small, large)]
    assert spread[1] > 5 * spread[0]


# --- states that hold end points


def test_the_cost_of_end_points_is_carried_to_the_joints():
    """Gradients against central differences of the values; Hessians are Gauss-Newton."""
    agent, rng = ARM.build(), stream(0, "states")
    known = _Problem.of(ILQRPlanningConfig(model=ARM), TIP, 1)
    S, U = rng.normal(size=(ARM.T, 4)), rng.normal(size=(ARM.T, 2))
    gradient, hessian = known.cost.derivatives(S, U)
    z, h = np.concatenate((S, U), axis=1), 1e-6
    for i, e in enumerate(h * np.eye(6)):
        above, below = (
            known.cost.values(x[None, :, :4], x[None, :, 4:])[0] for x in (z + e, z - e)
        )
        np.testing.assert_allclose(gradient[:, i], (above - below) / (2 * h), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(hessian, hessian.transpose(0, 2, 1), atol=1e-12)
    assert np.linalg.eigvalsh(hessian).min() > -1e-9
    rolled = agent.rollout(HELD.controller(agent), 1, np.zeros((1, ARM.T, 2)))
    values = known.cost.values(rolled.X[:, :, known.columns], rolled.U)
    np.testing.assert_allclose(values, TIP.evaluate(rolled).l, rtol=1e-9, atol=1e-9)


class HELD:
    """The first controllers of the arm."""

    @staticmethod
    def controller(agent):
        args = (agent.start_state(1), agent.layout, agent.nu, agent.T, agent.dt)
        return HoldConfig().controller(*args)


def test_a_condition_is_planned_on_its_own_model():
    report = last(experiment(ARM, TIP, iterations=3))
    planned = [c.predicted_cost for c in report.report.conditions]
    agent = ARM.build()
    for m, condition in enumerate(report.state.conditions):
        rolled = agent.rollout(condition.controller, m, np.zeros((1, ARM.T, 2)))
        assert float(TIP.evaluate(rolled).l.sum()) == pytest.approx(planned[m], rel=1e-6)
        rest = np.setdiff1d(np.arange(agent.layout.size), _own(agent))
        assert not condition.controller.K[:, :, rest].any()
        assert condition.controller.K[:, :, _own(agent)].any()
        assert planned[m] < 0.6 * report.report.conditions[m].cost_mean or m
    assert abs(planned[0] - planned[1]) > 0.1


def _own(agent):
    return np.r_[agent.layout.slice("joint_pos"), agent.layout.slice("joint_vel")]


def test_contacts_are_part_of_the_plan():
    """A peg goes down into its hole and touches it."""
    agent_config = replace(
        peg_insertion(n_test=0), T=60, conditions=peg_insertion().conditions[2:3]
    )
    e = gps.load("peg_insertion_local")
    e = replace(
        experiment(agent_config, e.cost), initial=e.initial, measure=e.measure, iterations=2
    )
    report = last(e)
    (rolled,) = ends(e, report)
    model = agent_config.build().model_of(0)
    data, touched = mujoco.MjData(model), 0
    for q in rolled.entry("joint_pos")[0]:
        data.qpos[:] = q
        mujoco.mj_forward(model, data)
        touched += data.ncon > 0
    assert touched > 2
    planned = report.report.conditions[0].predicted_cost
    assert report.row["local_cost_mean"] == pytest.approx(planned, rel=1e-3)
    assert report.row["local_success"] == 1.0


# --- plans that fail


def test_a_cost_that_is_no_number_keeps_the_controller():
    config = ILQRPlanningConfig(model=AGENT, limits=False)
    agent_config = replace(AGENT, starts=((1.0, 1.0), (-2.0, 0.5)))
    config = replace(config, model=agent_config)
    agent, state = begin(config, agent=agent_config, cost=Unusable(edge=-1.0))
    first = state.conditions
    state, reports, _ = advance(config, agent, state, 2)
    good, bad = reports[-1].conditions
    assert good.event == ""
    assert good.predicted_cost < good.cost_mean
    assert bad.event.startswith("no plan, the last controller stays: the cost of the first")
    assert np.isnan(bad.predicted_cost)
    assert state.conditions[1].controller is first[1].controller
    assert state.conditions[0].controller is not first[0].controller
    assert state.iteration == 2


def test_an_indefinite_cost_keeps_the_controller():
    config = ILQRPlanningConfig(model=AGENT, planner=ILQRConfig(largest=1.0))
    agent, state = begin(config, cost=Reward())
    first = state.conditions
    state, reports, _ = advance(config, agent, state, 1)
    for before, after, report in zip(first, state.conditions, reports[0].conditions, strict=True):
        assert "Q_uu is not positive definite" in report.event
        assert after.controller is before.controller
        assert np.isfinite(report.cost_mean)


@dataclass(frozen=True)
class Altered:
    """A point mass whose known model is changed by `how`."""

    how: str
    agent: PointMassConfig = AGENT

    def build(self):
        agent = self.agent.build()
        how = self.how

        class Agent(type(agent)):
            def known_model(self, condition: int, models: Any) -> Any:
                F = self.dynamics().F[0].copy()
                if how == "wrong way":
                    F[:, 4:] *= -1.0
                if how == "no numbers":
                    F[:] = np.nan
                n = 3 if how == "small" else 4
                return NumpyModel(
                    lambda x, u, t: self.step(x, u)[:, :n] if n == 4 else x,
                    n,
                    2,
                    lambda X, U, t: np.tile(F[:n, : n + 2], (len(X), 1, 1)),
                )

        agent.__class__ = Agent
        return agent


def test_derivatives_that_mislead_leave_the_plan_and_say_so():
    config = ILQRPlanningConfig(
        model=Altered("wrong way"), steps_per_iteration=60, planner=ILQRConfig(largest=1e3)
    )
    agent, state = begin(config)
    state, reports, _ = advance(config, agent, state, 1)
    for report in reports[0].conditions:
        assert "no step lowers it" in report.event
        assert report.predicted_cost == report.expected_cost
    assert np.isfinite(state.conditions[0].controller.K).all()


def test_derivatives_that_are_no_numbers_keep_the_controller():
    config = ILQRPlanningConfig(model=Altered("no numbers"))
    agent, state = begin(config)
    new, reports, _ = advance(config, agent, state, 1)
    assert "the model's Jacobians" in reports[0].conditions[0].event
    assert new.conditions[1].controller is state.conditions[1].controller


# --- what is refused


class Unknown:
    """An agent whose dynamics nobody knows."""

    def __init__(self, **hidden):
        self.hidden = hidden

    def build(self):
        agent = AGENT.build()

        class Agent(type(agent)):
            """Without what is hidden."""

        for name in self.hidden:
            setattr(Agent, name, None)
        agent.__class__ = Agent
        return agent


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (replace(AGENT, T=24), "number of steps T is 24, the experiment's agent has 25"),
        (replace(AGENT, dt=0.05), "step dt is 0.05"),
        (replace(AGENT, starts=AGENT.starts[:1]), "number of conditions is 1"),
        (replace(AGENT, starts=((1.0, 1.0), (1.0, 0.5))), "its condition 1 starts at"),
        (PENDULUM, "its state is .*joint_pos"),
        (Unknown(known_model=None), "the dynamics of Unknown are not known"),
        (Unknown(control_range=None), "has no control_range"),
        (Altered("small"), "must have the sizes 4 and 2, got 3 and 2"),
    ],
    ids=["T", "dt", "conditions", "start", "state", "unknown", "limits", "sizes"],
)
def test_a_model_that_does_not_fit_is_refused(model, match):
    with pytest.raises(ConfigError, match=match):
        begin(ILQRPlanningConfig(model=model))


def test_without_limits_no_range_is_needed():
    begin(ILQRPlanningConfig(model=Unknown(control_range=None), limits=False))


def test_states_that_a_plan_cannot_use_are_refused():
    agent_config = replace(PENDULUM, sites=("tip",), state=("joint_pos", "end_points"))
    e = experiment(agent_config, WeightedCost(cost=ActionCost(weights=1.0)).cost)
    e = replace(e, initial=HoldConfig(velocity="joint_pos"))
    with pytest.raises(
        ConfigError, match="needs joint_pos and joint_vel in the state, which holds"
    ):
        started(e)

    @dataclass(frozen=True)
    class NoKinematics:
        def build(self):
            agent = replace(PENDULUM, state=("joint_vel", "joint_pos")).build()

            class Agent(type(agent)):
                whole_states = None

            agent.__class__ = Agent
            return agent

    with pytest.raises(ConfigError, match="and no more, or a method whole_states"):
        started(experiment(NoKinematics(), ASIDE))


def test_first_controllers_that_look_at_end_points_are_refused():
    @dataclass(frozen=True)
    class Looks:
        def controller(self, x0, layout, nu, T, dt):
            held = HoldConfig().controller(x0, layout, nu, T, dt)
            K = held.K.copy()
            K[3, 0, layout.slice("end_points").start] = 1.0
            return replace(held, K=K)

    e = replace(experiment(ARM, TIP), initial=Looks())
    with pytest.raises(ConfigError, match="gains on joint_vel and joint_pos only"):
        started(e)


def test_a_cost_that_does_not_fit_is_refused_at_the_start():
    config = ILQRPlanningConfig(model=AGENT)
    with pytest.raises(ConfigError, match="did you mean 'position'"):
        begin(config, cost=StateCost(entry="positio", target=0.0, l2=1.0))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model": PointMassConfig}, r"model must be the configuration of an agent"),
        ({"model": 3}, r"model must be the configuration of an agent"),
        ({"planner": 3}, r"planner must be an ILQRConfig"),
        ({"steps_per_iteration": 0}, r"steps_per_iteration must be .* at least 1, got 0"),
        ({"steps_per_iteration": 1.5}, r"steps_per_iteration"),
        ({"limits": 1}, r"limits must be True or False"),
        ({"exploration": 0.0}, r"exploration must be a number above 0"),
        ({"exploration": (0.1, -1.0)}, r"exploration"),
        ({"exploration": float("inf")}, r"exploration"),
        ({"exploration": ()}, r"exploration"),
        ({"exploration": "much"}, r"exploration"),
    ],
    ids=str,
)
def test_settings_are_checked(change, match):
    with pytest.raises(ConfigError, match=match):
        ILQRPlanningConfig(**{"model": AGENT, **change})


def test_the_noise_has_one_value_per_action():
    with pytest.raises(ConfigError, match="exploration has 3 values, there are 2 actions"):
        begin(ILQRPlanningConfig(model=AGENT, exploration=(0.1, 0.2, 0.3)))


# --- the same bytes


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A run of three iterations and the hashes of its files."""
    out = tmp_path_factory.mktemp("planning") / "serial"
    e = experiment(PENDULUM, ASIDE, iterations=3, steps_per_iteration=2)
    for _ in gps.run(e, out=out):
        pass
    return e, hashes(out)


def hashes(folder):
    files = sorted((folder / "iterations").iterdir())
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_stopped_and_resumed(short, tmp_path):
    e, expected = short
    assert len(set(expected.values())) == 4
    reports = gps.run(e, out=tmp_path / "run")
    next(reports)
    reports.close()
    for _ in gps.resume(tmp_path / "run"):
        pass
    assert hashes(tmp_path / "run") == expected


def test_two_threads(short, tmp_path):
    e, expected = short
    cluster = LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.ERROR,
    )
    with cluster, Client(cluster, set_as_default=False) as client:
        ex = Dask(client)
        reports = list(gps.run(e, out=tmp_path / "run", executor=ex))
        ex.close()
    assert hashes(tmp_path / "run") == expected
    assert reports[-1].stage_seconds["plan"] > 0.0


@pytest.mark.slow
def test_two_workers(short, tmp_path):
    e, expected = short
    ex = Dask(workers=2, task_timeout=60)
    try:
        for _ in gps.run(e, out=tmp_path / "run", executor=ex):
            pass
    finally:
        ex.close()
    assert hashes(tmp_path / "run") == expected


def test_an_iteration_changes_nothing_that_it_is_given():
    config = ILQRPlanningConfig(model=AGENT)
    agent, state = begin(config)
    state, _, rollouts = advance(config, agent, state, 1)
    before = digest((state.conditions, rollouts))
    one, two = (config.iterate(state, rollouts) for _ in range(2))
    assert digest((state.conditions, rollouts)) == before
    assert digest(one) == digest(two)


# --- the experiments


def ends(e, report):
    """Final states of noise-free rollouts, one per condition."""
    return [
        evaluate_condition(e.agent, e.cost, e.measure, c.actor, m, 1, 0).rollouts
        for m, c in enumerate(report.state.conditions)
    ]


def test_the_cart_pole_is_swung_up_in_a_few_iterations():
    e = gps.load("cartpole_swingup")
    assert (e.agent, e.algorithm.model) == (cartpole(), cartpole())
    agent_config = replace(e.agent, conditions=e.agent.conditions[:2])
    e = replace(
        e, agent=agent_config, algorithm=replace(e.algorithm, model=agent_config), iterations=3
    )
    report = last(e)
    assert report.row["local_success"] == 1.0
    for rolled in ends(e, report):
        assert np.abs(rolled.U).max() <= 8.0
        assert np.abs(rolled.entry("joint_pos")[..., 0]).max() < 1.0  # on the rail
        assert np.abs(rolled.entry("joint_pos")[0, -10:, 1] - np.pi).max() < 0.35
        assert abs(rolled.entry("joint_vel")[0, -1, 1]) < 0.3


@pytest.mark.parametrize("seed", [0, 1])
def test_the_pendulum_learns_its_back_swing(seed):
    e = gps.load("pendulum_unknown")
    report = last(e, seed=seed)
    assert report.row["local_success"] == 1.0
    for rolled in ends(e, report):
        assert rolled.X[0, :, 0].min() < -0.5
        assert abs(rolled.X[0, -1, 1]) < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cartpole_swingup", "acrobot"])
def test_a_whole_run_ends_upright_and_still(name):
    e = gps.load(name)
    report = last(e)
    assert report.row["local_success"] == 1.0
    assert report.row["local_distance_max"] < 0.05
    for rolled in ends(e, report):
        assert np.abs(rolled.entry("joint_vel")[0, -1]).max() < 0.2
