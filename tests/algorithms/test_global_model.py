"""Planning with the global model: it learns from single rollouts, doubts what it has not seen, and
leaves the same bytes behind wherever it runs."""

from dataclasses import dataclass, replace
from math import pi

import numpy as np
import pytest
from algorithm_problems import AGENT, COST, Reward, advance, begin, noise_free_cost, optimal_costs

import gps
from gps.agents import MujocoConfig, pendulum, pilco_cartpole
from gps.algorithms import (
    BADMMConfig,
    ExplorationConfig,
    GlobalModelConfig,
    MDGPSConfig,
    MDGPSPILQRConfig,
    PILQRTrajOptConfig,
    TrajOptConfig,
    global_model,
)
from gps.algorithms.global_model import Doubtful, _chosen
from gps.control import ILQRConfig, OpenLoopConfig, ilqr
from gps.costs import CostOf
from gps.dynamics import DynamicsConfig, GlobalDynamics, GlobalPriorConfig, Transitions, fit_global
from gps.errors import ConfigError
from gps.execution import Serial
from gps.parallel import Dask
from gps.pipeline import changes
from gps.pipeline.experiment import Experiment
from gps.pipeline.store import RunFolder
from gps.policies import MLPConfig
from gps.policies.linearise import LineariseConfig
from gps.policies.training import TrainingConfig
from gps.types import Layout, StateStructure

QUICK = {"starts": 1, "planner": ILQRConfig(iterations=20)}
POLICY = {
    "network": MLPConfig(hidden=(16,)),
    "training": TrainingConfig(steps=200),
    "linearise": LineariseConfig(method="jacobian"),
}
ONE_MODEL = DynamicsConfig(prior=GlobalPriorConfig())
PENDULUM = replace(pendulum(), conditions=pendulum().conditions[:1], T=60)


def swing_up(**options):
    base = gps.load("pendulum_unknown_model")
    return replace(base, **{"agent": PENDULUM, "iterations": 2, **options})


def point_mass(algorithm, iterations=2, samples=None):
    return Experiment(
        agent=AGENT,
        cost=COST,
        initial=OpenLoopConfig(variance=1.0),
        algorithm=algorithm,
        samples=samples or algorithm.min_samples,
        iterations=iterations,
    )


def test_a_linear_system_is_solved_after_one_rollout():
    """The LQR of the true dynamics is the judge; two conditions share one model."""
    config = GlobalModelConfig(caution=0.0, **QUICK)
    best = optimal_costs()
    *_, report = gps.run(point_mass(config, 1), seed=3)
    agent = AGENT.build()
    for m, condition in enumerate(report.state.conditions):
        cost = noise_free_cost(agent, condition.controller, m)
        assert cost == pytest.approx(best[m], rel=0.02)
        assert report.report.conditions[m].predicted_cost == pytest.approx(cost, rel=0.06)
    assert len(report.state.dynamics.transitions.X) == 2 * (AGENT.T - 1)


def test_the_pendulum_is_up_after_two_rollouts(tmp_path):
    reports = list(gps.run(swing_up(), seed=1, out=tmp_path / "run"))
    agent = PENDULUM.build()
    controller = reports[-1].state.conditions[0].controller
    found = agent.rollout(controller, 0, np.zeros((1, 60, 1)), np.zeros((1, agent.n_start)))
    assert abs(found.entry("joint_pos")[0, -1, 0] - pi) % (2 * pi) < 0.1
    assert abs(found.entry("joint_vel")[0, -1, 0]) < 0.5
    assert reports[-1].row["env_steps"] == 2 * 60
    stored = RunFolder.open(tmp_path / "run").read(2)
    (dynamics,), (rollout,) = stored.models["dynamics"], stored.rollouts
    fit = dynamics.fit.dynamics
    z = np.concatenate([rollout.X[0, :-1], rollout.U[0, :-1]], axis=1)
    off = np.einsum("txz,tz->tx", fit.F, z) + fit.f - rollout.X[0, 1:]
    assert np.abs(off).max() < 0.05  # the model along what it has seen


def test_an_agent_says_what_turns_and_what_integrates():
    assert pilco_cartpole().build().state_structure == StateStructure(
        (False, True, False, False), (2, 3, -1, -1)
    )
    limited = gps.load("arm_reach").agent.build()
    structure = limited.state_structure
    assert not any(structure.periodic)
    assert structure.velocity[:4] == (2, 3, -1, -1)
    assert set(structure.velocity[4:]) == {-1}


def test_doubt_costs_and_its_derivatives_are_those_of_differences():
    rng = np.random.default_rng(0)
    X, U = 0.3 * rng.standard_normal((40, 4)), 0.3 * rng.standard_normal((40, 2))
    after = X + 0.1 * np.tanh(X[:, [2, 3, 0, 1]]) + 0.1 * np.concatenate([0 * U, U], axis=1)
    unfitted = GlobalDynamics.unfitted(StateStructure.unknown(4), 2, 0.08)
    model = fit_global(unfitted, Transitions(X, U, after))
    plain = CostOf(COST, AGENT.build().layout, 2, AGENT.T)
    doubtful = Doubtful(plain, model, 3.0)
    x, u = rng.standard_normal((AGENT.T, 4)), rng.standard_normal((AGENT.T, 2))
    doubt = doubtful.values(x[None], u[None]) - plain.values(x[None], u[None])
    wanted = 3.0 * (model.variances(x, u) / model.process.Y.var(axis=0)).sum(axis=1)
    np.testing.assert_allclose(doubt[0], wanted, rtol=1e-6)
    near = doubtful.values(X[None, :25], U[None, :25]) - plain.values(X[None, :25], U[None, :25])
    assert doubt.mean() > 10 * near.mean()
    gradient, hessian = doubtful.derivatives(x, u)
    for i, h in enumerate(1e-5 * np.eye(6)):
        ends = (doubtful.values((x + s * h[:4])[None], (u + s * h[4:])[None])[0] for s in (1, -1))
        up, down = ends
        np.testing.assert_allclose(gradient[:, i], (up - down) / 2e-5, rtol=1e-3, atol=1e-4)
    extra = hessian - plain.derivatives(x, u)[1]
    assert np.linalg.eigvalsh(extra).min() > -1e-9
    assert np.abs(extra).max() > 0
    lost = x.copy()
    lost[3, 0] = np.nan
    both = np.stack([x, lost])
    values = doubtful.values(both, np.stack([u, u]))
    assert np.isfinite(values[0]).all()
    assert np.isinf(values[1]).all()


ARM = gps.load("arm_reach")
REACH = GlobalModelConfig(starts=0, planner=ILQRConfig(iterations=25))


@pytest.mark.slow
def test_end_points_are_computed_where_the_agent_can():
    """An arm brings its tip to a target, from four starts, after two rollouts of each."""
    known = replace(REACH, kinematics=ARM.agent)
    *_, last = gps.run(replace(ARM, samples=1, iterations=2, algorithm=known))
    assert last.row["local_success"] == 1.0
    assert last.row["local_distance_mean"] < 0.01
    assert last.state.dynamics.nx == 4
    controller = last.state.conditions[0].controller
    assert controller.nx == 10
    assert not controller.K[:, :, 4:].any()


def test_end_points_without_kinematics_are_refused():
    one = replace(ARM, samples=1, iterations=2, algorithm=REACH)
    with pytest.raises(ConfigError, match=r"GlobalModelConfig\.kinematics: a cost needs more than"):
        next(gps.run(one))
    other = replace(one, algorithm=replace(REACH, kinematics=PENDULUM))
    with pytest.raises(ConfigError, match="kinematics must be the configuration of an agent with"):
        other.validate()
    for wrong in ("arm.xml", ARM.agent.build(), type(PENDULUM)):
        with pytest.raises(ConfigError, match=r"kinematics must be the configuration of an agent,"):
            replace(REACH, kinematics=wrong)
    known = replace(one, algorithm=replace(REACH, kinematics=ARM.agent))
    assert not [n for n in changes.live_options(known) if "kinematics" in n]
    with pytest.raises(ConfigError, match="cannot change between iterations: the states that are"):
        changes.changed(known, {"algorithm.kinematics.T": "10"})


def test_a_part_of_a_state_keeps_what_is_known_of_it():
    whole = StateStructure((True, False, False), (2, -1, -1))
    assert whole.select(np.array([2, 0])) == StateStructure((False, True), (-1, 0))
    assert whole.select(np.array([0, 1])) == StateStructure((True, False), (-1, -1))
    assert list(Layout((("a", 2), ("b", 1), ("c", 2))).columns(("c", "a"))) == [3, 4, 0, 1]


def test_a_free_joint_is_moved_by_its_velocity_but_not_turned():
    text = (
        '<mujoco><worldbody><body><freejoint/><geom size=".1"/><site name="s"/></body></worldbody>'
        '<actuator><general site="s" gear="0 0 1 0 0 0"/></actuator></mujoco>'
    )
    structure = MujocoConfig(model=text, T=5).build().state_structure
    assert structure.velocity == (6, 7, 8, *(-1,) * 9)
    assert not any(structure.periodic)


@dataclass(frozen=True)
class Priced:
    """Of a plan, its cost."""

    cost: float


@pytest.mark.parametrize(
    ("known", "new", "wanted"),
    [
        ([1.0, 0.9], [0.85], 0.9),
        ([1.0, 0.9], [0.95, 0.7], 0.7),
        ([-1.0], [-1.05], -1.0),
        ([-1.0], [-1.2], -1.2),
        ([], [3.0, 2.0], 2.0),
        ([3.0], [], 3.0),
    ],
)
def test_a_plan_that_was_not_tried_has_to_be_clearly_cheaper(known, new, wanted):
    plans = [list(map(Priced, costs)) for costs in (known, new)]
    assert _chosen(*plans, 0.1).cost == wanted


def test_plans_begin_at_the_last_one_and_at_the_best(monkeypatch):
    """The best is known by its sampled cost; where the last is the best, it is one plan less."""
    began, real = [], ilqr.minimise

    def minimise(*args, controller, **kwargs):
        began.append(controller)
        return real(*args, controller=controller, **kwargs)

    monkeypatch.setattr(global_model.ilqr, "minimise", minimise)
    config = GlobalModelConfig(starts=1, planner=ILQRConfig(iterations=1))
    agent, state = begin(config)
    state, *_ = advance(config, agent, state, 1)
    assert [c is None for c in began] == [True] * 2
    began.clear()
    best = tuple(replace(c, sampled_cost=-1.0) for c in state.conditions)
    worse, *_ = advance(config, agent, replace(state, conditions=best), 1)
    first = best[0]
    for found, wanted in zip(began, (first.controller, first.previous, None), strict=False):
        assert (found is None) == (wanted is None)
        if found is not None:
            np.testing.assert_array_equal(found.k, wanted.k)
    assert len(began) == 6
    assert worse.conditions[0].previous is first.previous
    assert worse.conditions[0].sampled_cost == -1.0
    began.clear()
    beaten = tuple(replace(c, sampled_cost=1e9) for c in state.conditions)
    better, *_ = advance(config, agent, replace(state, conditions=beaten), 1)
    assert [c is None for c in began] == [False, True] * 2
    assert better.conditions[0].previous is state.conditions[0].controller
    assert better.conditions[0].sampled_cost == better.conditions[0].report.cost_mean


def test_the_model_is_kept_on_the_workers_with_the_rest():
    """Else its lineage grows with every iteration."""
    kept = []

    class Spy(Serial):
        def keep(self, tree):
            kept.append(tree)
            return tree

    (report,) = gps.run(point_mass(GlobalModelConfig(**QUICK), 1), executor=Spy())
    assert any(part is report.state.dynamics for part in kept[-1])


def test_noise_of_zero_is_refused():
    with pytest.raises(ConfigError, match=r"GlobalModelConfig\.exploration\.floor must be above 0"):
        GlobalModelConfig(exploration=ExplorationConfig(floor=0))


def test_without_a_plan_the_controller_stays():
    """A planner that has no first backward pass: one line says so, and the run goes on."""
    hopeless = ILQRConfig(iterations=2, initial=0.0, smallest=1e-20, largest=1e-19)
    agent, state = begin(GlobalModelConfig(planner=hopeless, starts=0))
    state = replace(state, costs=(Reward(),) * len(state.costs))
    after, *_ = advance(GlobalModelConfig(planner=hopeless, starts=0), agent, state, 1)
    for before, condition in zip(state.conditions, after.conditions, strict=True):
        assert condition.controller is before.controller
        assert condition.report.updated is False
        assert "no plan, the last controller stays" in condition.report.event


@pytest.mark.parametrize(
    "algorithm",
    [
        GlobalModelConfig(**QUICK),
        TrajOptConfig(dynamics=ONE_MODEL),
        MDGPSConfig(dynamics=ONE_MODEL, **POLICY),
        BADMMConfig(dynamics=ONE_MODEL, **POLICY),
        PILQRTrajOptConfig(dynamics=ONE_MODEL),
        MDGPSPILQRConfig(dynamics=ONE_MODEL),
    ],
    ids=lambda a: type(a).__name__,
)
def test_stored_and_resumed_runs_are_the_same_bytes(algorithm, tmp_path):
    for name in ("whole", "parts"):
        first = 3 if name == "whole" else 1
        for _ in gps.run(point_mass(algorithm, first), seed=2, out=tmp_path / name):
            pass
    for _ in gps.resume(tmp_path / "parts", iterations=3):
        pass
    for file in ("0001.h5", "0002.h5", "0003.h5"):
        one, other = ((tmp_path / n / "iterations" / file).read_bytes() for n in ("whole", "parts"))
        assert one == other, file
    dynamics = RunFolder.open(tmp_path / "whole").read(3).state.dynamics
    assert dynamics.parameters is not None
    assert len(dynamics.transitions.X) == 3 * algorithm.min_samples * 2 * (AGENT.T - 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plan", "prior"])
def test_workers_give_the_same_bytes(kind, tmp_path):
    algorithm = GlobalModelConfig(**QUICK)
    if kind == "prior":
        algorithm = MDGPSConfig(dynamics=ONE_MODEL, **POLICY)
    executor = Dask(workers=2)
    for name, ex in (("serial", None), ("dask", executor)):
        for _ in gps.run(point_mass(algorithm), seed=2, out=tmp_path / name, executor=ex):
            pass
    executor.close()
    for file in ("0001.h5", "0002.h5"):
        one, other = ((tmp_path / n / "iterations" / file).read_bytes() for n in ("serial", "dask"))
        assert one == other, file


def test_one_sample_is_enough_with_the_global_model_alone():
    """Said before the first rollout: by the dynamics, and by how the policy is linearised."""
    for algorithm in (
        TrajOptConfig(),
        MDGPSConfig(dynamics=ONE_MODEL),
        PILQRTrajOptConfig(dynamics=ONE_MODEL),
        MDGPSPILQRConfig(dynamics=ONE_MODEL, **POLICY),
    ):
        with pytest.raises(ConfigError, match=r"Experiment\.samples must be at least 2 for"):
            point_mass(algorithm, samples=1)
    point_mass(TrajOptConfig(dynamics=ONE_MODEL)).validate()
    point_mass(MDGPSConfig(dynamics=ONE_MODEL, **POLICY)).validate()
    with pytest.raises(ConfigError, match="cannot run asynchronously: its model is of the"):
        MDGPSConfig(dynamics=ONE_MODEL).check_asynchronous()


def test_a_policy_learns_from_single_rollouts():
    """Of each of two starts; by the mixture prior two samples are needed, and four iterations."""
    algorithm = MDGPSConfig(dynamics=ONE_MODEL, linearise=POLICY["linearise"])
    experiment = replace(point_mass(algorithm, 5), initial=OpenLoopConfig(variance=4.0))
    reports = list(gps.run(experiment, seed=3))
    # that one sample does not differ from itself is no want of noise
    assert {c.cause for r in reports for c in r.report.conditions} & {"noise", "flat cost"} == set()
    agent, best = AGENT.build(), optimal_costs()
    policy = reports[-1].state.policy.policy
    for m in range(2):
        assert noise_free_cost(agent, policy, m) < 1.2 * best[m]
