"""Set-ups that are broken on purpose are told apart, and sound ones are left alone."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from algorithm_problems import AGENT, COST, HOLD, advance, begin

import gps
from gps.agents import MujocoConfig
from gps.algorithms import PI2TrajOptConfig, TrajOptConfig
from gps.algorithms.diagnosis import Figures, blind, clipped_share, figures, why
from gps.control import HoldConfig, OpenLoopConfig, PDConfig
from gps.costs import ActionCost, StateCost
from gps.dynamics import DynamicsConfig
from gps.errors import NonFiniteError, NotLearningError, SimulationError
from gps.pipeline import Experiment
from gps.types import CostTerms, Layout, LinearDynamics, QuadraticCost, Rollouts

# --- the figures ----------------------------------------------------------------------------------


def rollouts_of(X, U):
    """Rollouts with entries `a` and `b` of one value each."""
    layout = Layout((("a", 1), ("b", 1)))
    return Rollouts(X=X, U=U, obs=X, noise=np.zeros_like(U), layout=layout)


def plain_cost(T, x=(1.0, 0.0), u=0.1):
    """1/2 (x' diag(x) x + u u^2)."""
    C = np.diag([*x, u])
    return QuadraticCost(np.tile(C, (T, 1, 1)), np.zeros((T, 3)), np.zeros(T))


@pytest.fixture
def some(rng):
    """Costs and rollouts of a stable linear plant."""
    N, T = 6, 30
    X, U = np.zeros((N, T, 2)), rng.normal(size=(N, T, 1))
    X[:, 0] = 1 + 0.1 * rng.normal(size=(N, 2))
    for t in range(T - 1):
        X[:, t + 1, 0] = X[:, t, 0] + 0.1 * X[:, t, 1]
        X[:, t + 1, 1] = 0.9 * X[:, t, 1] + 0.1 * U[:, t, 0]
    l = 0.5 * X[:, :, 0] ** 2 + 0.05 * U[:, :, 0] ** 2  # noqa: E741
    return rollouts_of(X, U), l


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_the_share_of_clipped_actions_counts_both_ends_and_no_unlimited_actuator(some):
    r, l = some  # noqa: E741
    U = np.concatenate([np.clip(r.U, -0.5, 1.0), r.U], axis=2)
    r = Rollouts(X=r.X, U=U, obs=r.X, noise=np.zeros_like(U), layout=r.layout)
    cost = QuadraticCost(np.zeros((30, 4, 4)), np.zeros((30, 4)), np.zeros(30))
    limits = np.array([[-0.5, -np.inf], [1.0, np.inf]])
    found = figures(r, l, cost, limits, None).clipped
    at_ends = np.mean((U[..., 0] == -0.5) | (U[..., 0] == 1.0))
    assert 0.3 < at_ends < 0.6
    assert found[0] == pytest.approx(at_ends)
    assert np.isnan(found[1])
    # float32 misses an end by rounding, to either side
    ends = np.array([-0.1, 0.7])
    near = np.float64(np.float32(ends))
    assert (near != ends).all()
    U = np.concatenate([near, [0.2, 0.6999]])[None, :, None]
    assert clipped_share(U, *ends[:, None]) == 0.5


def test_a_mean_action_at_a_limit_is_told_from_noise_that_reaches_it(some, rng):
    """Steps count at which all samples are at one end, not those at which they are at both."""
    r, l = some  # noqa: E741
    limits, N, T = np.array([[-1.0], [1.0]]), 6, 30

    def found(U):
        r2 = Rollouts(X=r.X, U=U, obs=r.X, noise=np.zeros_like(U), layout=r.layout)
        return figures(r2, l, plain_cost(T), limits, None)

    low = np.full((N, T, 1), -1.0)
    both, partly = low.copy(), low.copy()
    both[: N // 2] = 1.0
    partly[0, :3] = 0.5
    some_high = low.copy()
    some_high[:, : T // 2] = 1.0
    for U, saturated in ((low, 1.0), (both, 0.0), (partly, 0.9), (some_high, 1.0)):
        assert found(U).saturated == pytest.approx([saturated])
    assert blind(found(low)).cause == blind(found(partly)).cause == "saturated"
    assert blind(found(both)).cause == "clipped"
    assert found(low).without_effect
    assert not any(found(U).without_effect for U in (both, partly))
    unlimited = figures(r, l, plain_cost(T), None, np.ones(1))
    assert np.isnan(unlimited.saturated).all()
    assert not unlimited.without_effect


def test_the_growth_is_that_of_the_worst_deviation_in_units_of_the_spread(some, rng):
    r, l = some  # noqa: E741
    std = r.X.std(axis=(0, 1))
    F = 1.5 * rng.normal(size=(29, 2, 3))
    dynamics = LinearDynamics(F, np.zeros((29, 2)), np.zeros((29, 2, 2)))
    controller = OpenLoopConfig().controller(np.zeros(2), r.layout, 1, 30, 0.1)
    controller = replace(controller, K=rng.normal(size=(30, 1, 2)))
    found = figures(r, l, plain_cost(30), None, None, controller, dynamics)
    for growth, K in ((found.growth, controller.K), (found.open_growth, 0 * controller.K)):
        out = np.eye(2) * std  # deviations of one standard deviation, followed step by step
        for t in range(29):
            out = (F[t, :, :2] + F[t, :, 2:] @ K[t]) @ out
        expected = np.linalg.svd(out / std[:, None], compute_uv=False)[0]
        assert expected > 1e3  # both are known
        assert growth == pytest.approx(expected, rel=1e-9)


def test_no_growth_overflows(some):
    r, l = some  # noqa: E741
    F = np.concatenate([1e40 * np.tile(np.eye(2), (29, 1, 1)), np.zeros((29, 2, 1))], axis=2)
    dynamics = LinearDynamics(F, np.zeros((29, 2)), np.zeros((29, 2, 2)))
    controller = OpenLoopConfig().controller(np.zeros(2), r.layout, 1, 30, 0.1)
    found = figures(r, l, plain_cost(30), None, None, controller, dynamics)
    assert found.growth > 1e300
    assert "without bound" in why(found).text


def test_figures_have_no_unit(some):
    """Entries, actions and cost in other units, from micro to mega, give the same figures."""
    r, l = some  # noqa: E741
    limits, scale = np.array([[-1.0], [1.0]]), np.array([2.0])
    one = figures(r, l, plain_cost(30), limits, scale)
    for sx, su, sl in ((1e-6, 1e6, 1e-7), (1e6, 1e-6, 1e9)):
        other = rollouts_of(r.X * [sx, 1 / sx], r.U * su)
        cost = plain_cost(30, x=(sl / sx**2, 0.0), u=0.1 * sl / su**2)
        two = figures(other, l * sl, cost, limits * su, scale * su)
        for name in ("clipped", "saturated", "action_spread", "spread", "cost_slope"):
            np.testing.assert_allclose(getattr(two, name), getattr(one, name), rtol=1e-9)
        assert two.cost_spread == pytest.approx(one.cost_spread, rel=1e-9)
        assert two.state_cost == pytest.approx(one.state_cost, rel=1e-9)


# --- set-ups ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flat:
    """A cost of 1, whatever happens; at states beyond `lost` none at all."""

    lost: float = np.inf

    def evaluate(self, r):
        N, T, nx, nu = r.N, r.T, r.nx, r.nu
        return CostTerms(
            l=np.where(r.X[:, :, 0] > self.lost, np.nan, 1.0),
            l_x=np.zeros((N, T, nx)),
            l_u=np.zeros((N, T, nu)),
            l_xx=np.zeros((N, T, nx, nx)),
            l_ux=np.zeros((N, T, nu, nx)),
            l_uu=np.zeros((N, T, nu, nu)),
        )

    def check(self, layout, nu, T):
        """Fits everything."""


@dataclass(frozen=True)
class Linear:
    """x' = A x + B u of position and velocity, and an entry that never changes."""

    A: tuple = ((1.0, 0.05), (0.0, 1.0))
    gain: float = 0.05
    T: int = 40
    dt: float = 0.05
    nu, n_start, n_conditions, n_test_conditions = 1, 0, 1, 0
    layout = obs_layout = Layout((("p", 1), ("v", 1), ("tag", 1)))

    def build(self):
        return self

    def start_state(self, condition, *, test=False):
        return np.array([1.0, 0.0, 3.0])

    def rollout(self, policy, condition, noise, start_noise=None, *, test=False):
        x, X, U = np.tile(self.start_state(condition), (len(noise), 1)), [], []
        for t in range(self.T):
            U.append(policy.act(x, x, t, noise[:, t]))
            X.append(x)
            x = x.copy()
            x[:, :2] = x[:, :2] @ np.transpose(self.A)
            x[:, 1] += self.gain * U[-1][:, 0]
        X, U = np.stack(X, axis=1), np.stack(U, axis=1)
        return Rollouts(X=X, U=U, obs=X, noise=noise, layout=self.layout, condition=condition)


@dataclass(frozen=True)
class Pendulum:
    """Without damping, and integrated by one semi-implicit Euler step: chaos where dt is long."""

    dt: float = 0.05
    T: int = 40
    nu, n_start, n_conditions, n_test_conditions = 1, 0, 1, 0
    layout = obs_layout = Layout((("q", 1), ("v", 1)))

    def build(self):
        return self

    def start_state(self, condition, *, test=False):
        return np.array([1.0, 0.0])

    def rollout(self, policy, condition, noise, start_noise=None, *, test=False):
        x, X, U = np.tile(self.start_state(condition), (len(noise), 1)), [], []
        for t in range(self.T):
            U.append(policy.act(x, x, t, noise[:, t]))
            X.append(x)
            v = x[:, 1] + self.dt * (U[-1][:, 0] - 10.0 * np.sin(x[:, 0]))
            x = np.stack([x[:, 0] + self.dt * v, v], axis=1)
        X, U = np.stack(X, axis=1), np.stack(U, axis=1)
        return Rollouts(X=X, U=U, obs=X, noise=noise, layout=self.layout, condition=condition)


ARM = """<mujoco><option gravity="0 0 0" timestep="0.01"/>
<default><joint damping="0.05" axis="0 0 1"/>
<geom type="capsule" size="0.02" density="600" contype="0" conaffinity="0"/></default>
<worldbody><body><joint name="j1"/><geom fromto="0 0 0 0.2 0 0"/>
<body pos="0.2 0 0"><joint name="j2"/><geom fromto="0 0 0 0.2 0 0"/>
<body pos="0.2 0 0"><joint name="j3"/><geom fromto="0 0 0 0.15 0 0"/></body></body></body>
</worldbody>
<actuator><motor joint="j1" gear="0.5" ctrlrange="-1 1" ctrllimited="true"/>
<motor joint="j2" gear="0.3" ctrlrange="-1 1" ctrllimited="true"/>
<motor joint="j3" gear="0.15" ctrlrange="-1 1" ctrllimited="true"/></actuator></mujoco>"""
MASS = Experiment(
    agent=replace(AGENT, force_limit=10.0),
    cost=COST,
    initial=HOLD,
    algorithm=TrajOptConfig(),
    iterations=4,
)
LINEAR = replace(
    MASS,
    agent=Linear(),
    cost=1.0 * StateCost(entry="p", target=0.0, l2=1.0) + 0.03 * ActionCost(weights=1.0),
    initial=OpenLoopConfig(),
)


@pytest.fixture
def arm(tmp_path):
    """A three-link arm whose joints do 10, 30 and 100 rad/s^2 at a full action."""
    (tmp_path / "arm.xml").write_text(ARM)
    agent = MujocoConfig(
        model=str(tmp_path / "arm.xml"), T=60, dt=0.05, qpos=(0.6, -0.8, -0.6), start_qpos_std=0.05
    )
    cost = 1.0 * StateCost(entry="joint_pos", target=0.0, l2=1.0) + 0.05 * ActionCost(weights=1.0)
    return replace(MASS, agent=agent, cost=cost, initial=HoldConfig(gains=(1.0, 1.0, 1.0)))


def causes_of(experiment, iterations=2):
    """What every condition of some iterations is said to suffer from."""
    found = set()
    try:
        for report in gps.run(experiment, iterations=iterations):
            found |= {c.cause for c in report.report.conditions}
    except NotLearningError:
        pass
    return found


@pytest.mark.parametrize(
    ("changes", "cause", "option"),
    [
        pytest.param({"agent": replace(MASS.agent, force_limit=0.01)}, "clipped", "initial"),
        pytest.param({"agent": replace(MASS.agent, dt=1e-5)}, "short", "agent.dt"),
        pytest.param({"initial": replace(HOLD, variance=1e-20)}, "noise", "initial"),
        pytest.param({"cost": Flat()}, "flat cost", "cost"),
        pytest.param(
            {"cost": ActionCost(weights=1.0) + 1e-9 * COST.terms[1].cost}, "weight", "weight"
        ),
        pytest.param(
            {"algorithm": TrajOptConfig(dynamics=DynamicsConfig(prior=None)), "samples": 2},
            "samples",
            "samples",
        ),
        pytest.param(
            {"cost": 1.0 * StateCost(entry="tag", target=0.0, l2=1.0), "agent": Linear()},
            "constant",
            "tag",
        ),
        pytest.param({"agent": Linear(A=((1.3, 0.05), (0.1, 1.2)))}, "unstable", "initial"),
        pytest.param({"agent": Linear(gain=1e-12)}, "short", "agent.dt"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_set_up_yields_its_cause_and_no_other(changes, cause, option):
    base = LINEAR if isinstance(changes.get("agent"), Linear) else MASS
    reports = list(gps.run(replace(base, **changes), iterations=2))
    for report in reports:
        for c in report.report.conditions:
            assert c.cause == cause
            assert option in c.advice
    # once in a run, for all conditions together
    said = [r.news for r in reports if r.news]
    assert len(said) == 1
    assert said[0].startswith("condition 0:" if base is LINEAR else "conditions 0-1:")
    assert said[0].count("condition") == 1


WEAK = """<mujoco><option timestep="0.01"/><worldbody><body><joint name="j" axis="0 1 0"
damping="0.1"/><geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.03" mass="1.2"/></body>
</worldbody><actuator><motor joint="j" ctrlrange="-0.01 0.01"/></actuator></mujoco>"""


def test_an_actuator_that_cannot_carry_its_link_is_named_and_ends_the_run(tmp_path):
    """Whatever its controller is, the link falls: an accepted update changes nothing."""
    (tmp_path / "weak.xml").write_text(WEAK)
    weak = replace(
        MASS,
        agent=MujocoConfig(model=str(tmp_path / "weak.xml"), T=40, dt=0.05),
        cost=1.0 * StateCost(entry="joint_pos", target=0.0, l2=1.0) + 1e-3 * ActionCost(weights=1),
        initial=OpenLoopConfig(mean=(-0.05,), variance=1e-6),
        iterations=9,
    )
    with pytest.raises(NotLearningError, match=r"no effective update.*cannot carry") as error:
        list(gps.run(weak))
    assert "widen the agent's control range" in str(error.value)
    assert "exploration" not in str(error.value)
    assert error.value.iterations == 3


def test_a_cost_in_other_units_is_no_fault():
    assert causes_of(replace(MASS, cost=1e-9 * COST), 4) == {None}


def test_a_constant_entry_that_nothing_depends_on_is_no_fault():
    reports = list(gps.run(LINEAR, iterations=2))
    assert {c.cause for r in reports for c in r.report.conditions} == {None}
    assert reports[0].report.conditions[0].figures.constant == ("tag",)
    assert reports[0].row["constant_entries"] == 1.0


def test_gains_that_are_too_high_are_blamed_on_the_initial_controller(arm):
    assert causes_of(arm) == {"stiff"}
    sound = replace(arm, initial=HoldConfig(gains=(10.0, 30.0, 100.0)))
    *_, last = gps.run(sound, iterations=3)
    assert [c.cause for c in last.report.conditions] == [None]
    assert last.row["updated"] == 1.0


def test_an_initial_controller_that_explodes_is_named():
    wild = PDConfig(
        position="position", velocity="velocity", position_gain=1e4, velocity_gain=1.0, variance=1.0
    )
    free = replace(MASS, agent=replace(AGENT, force_limit=None), initial=wild)
    with pytest.raises(SimulationError) as error:
        next(gps.run(free))
    assert any("initial" in note and "the steps shorter" in note for note in error.value.__notes__)


def test_steps_that_are_too_long_for_linear_dynamics_are_named():
    experiment = replace(
        MASS,
        agent=Pendulum(),
        cost=1.0 * StateCost(entry="q", target=0.0, l2=1.0),
        initial=OpenLoopConfig(),
        samples=8,
    )
    assert causes_of(experiment, 1) == {None}
    assert causes_of(replace(experiment, agent=Pendulum(dt=1.0)), 1) == {"dt"}


def test_a_cost_that_is_no_number_is_named():
    with pytest.raises(NonFiniteError, match="cost"):
        list(gps.run(replace(MASS, cost=Flat(lost=0.5))))
    # an algorithm that goes on all the same
    with pytest.raises(NotLearningError, match="the sampled cost is nan: check cost") as error:
        list(gps.run(replace(MASS, cost=Flat(lost=0.5), algorithm=PI2TrajOptConfig())))
    assert error.value.iterations == 3


@pytest.mark.parametrize(
    "name",
    [
        "point_mass",
        "arm_reach",
        "reacher",
        "half_cheetah",
        "obstacle_nav",
        pytest.param("door", marks=pytest.mark.slow),
    ],
)
def test_shipped_experiments_are_sound(name):
    experiment = gps.load(name)
    reports = list(gps.run(experiment, iterations=3))
    assert [r.news for r in reports] == [""] * 3
    assert all(r.row["updated"] == 1.0 for r in reports)


def test_nothing_is_said_where_nothing_is_known():
    assert why(None, "the reason").text == "the reason"
    agent, state = begin(TrajOptConfig())
    state, reports, _ = advance(TrajOptConfig(), agent, state, 1)
    assert isinstance(reports[0].conditions[0].figures, Figures)
    assert blind(reports[0].conditions[0].figures) is None


# --- an object at rest beside the robot


BESIDE_A_BOX = """
<mujoco><option timestep="0.004" integrator="implicitfast"/>
<worldbody><geom type="plane" size="1 1 .1"/>
<body pos="0 0 0.5"><joint name="arm" axis="0 1 0" damping="0.3"/>
<geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.02" mass="0.3"/></body>
<body pos="0 0 0.03"><freejoint/><geom type="box" size="0.015 0.015 0.03" mass="0.1"/></body>
</worldbody><actuator><motor joint="arm" gear="3" ctrlrange="-1 1"/></actuator></mujoco>
"""


def test_an_object_at_rest_does_not_spoil_the_fits(tmp_path):
    """It trembles by the rounding of its contacts, which is no input of anything."""
    model = tmp_path / "arm.xml"
    model.write_text(BESIDE_A_BOX)
    agent = MujocoConfig(model=str(model), T=50, dt=0.02)
    others = (0.0,) * 6
    cost = StateCost(entry="joint_pos", target=(0.3, *others), weights=(1.0, *others), l2=10.0)
    experiment = Experiment(
        agent=agent, cost=cost + ActionCost(weights=1e-3), initial=HoldConfig(), samples=5,
        algorithm=TrajOptConfig(), iterations=2,
    )  # fmt: skip
    for report in gps.run(experiment):
        (made,) = report.report.conditions
        X = report.rollouts[0].X
        box = X[..., 1:4].std(axis=(0, 1))
        assert (box > 0).any()
        assert box[:2].max() < 1e-10  # m
        assert np.isnan(made.figures.spread[1:3]).all()
        assert np.isfinite(made.figures.spread[0])
        assert made.updated
        assert not made.event
        assert made.figures.growth < 10
