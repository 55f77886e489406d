"""The cost times a positive factor gives the same iterates, whatever the algorithm."""

from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from algorithm_problems import HOLD, sample, unstable

from gps.agents import Condition, PointMassConfig, pendulum
from gps.algorithms import (
    BADMMConfig,
    ConditionState,
    GuardConfig,
    MDGPSConfig,
    MDGPSPILQRConfig,
    PI2TrajOptConfig,
    PIGPSConfig,
    PILQRTrajOptConfig,
    StepConfig,
    TrajOptConfig,
    stages,
)
from gps.algorithms.badmm import Duals
from gps.algorithms.pilqr import PILQRState
from gps.algorithms.planning import ILQRPlanningConfig
from gps.algorithms.state import Proposal
from gps.control import HoldConfig, PI2Config
from gps.control.ilqr import ILQRConfig
from gps.costs import (
    ActionCost,
    FittedRewardCost,
    StateCost,
    SumCost,
    TorchCost,
    WeightedCost,
)
from gps.policies import MLPConfig, TrainingConfig
from gps.types import Layout

FACTORS = (1e-7, 1e-3, 1e6)
CLOSE = 1e-6
"""Relative to the largest entry of an array."""

AGENT = PointMassConfig(T=15, dt=0.1, starts=((1.0, 1.0), (1.0, -0.5)))
SMOOTH = SumCost(  # not quadratic, so that models and samples disagree a little
    terms=(
        WeightedCost(weight=0.02, cost=ActionCost(weights=1.0)),
        WeightedCost(
            cost=StateCost(
                entry="position", target=(0.0, 0.0), l1=0.5, l2=1.0, log_weight=0.1, alpha=0.1
            )
        ),
        WeightedCost(weight=0.05, cost=StateCost(entry="velocity", target=(0.0, 0.0), l2=1.0)),
    )
)
SWING = replace(pendulum(), T=25, conditions=tuple(Condition(qpos=(a,)) for a in (0.0, 0.3)))
ASIDE = SumCost(  # as far out as the motor can hold the pendulum, and a little on
    terms=(
        WeightedCost(weight=0.1, cost=ActionCost(weights=1.0)),
        WeightedCost(cost=StateCost(entry="joint_pos", target=0.7, l2=1.0, final_multiplier=30.0)),
        WeightedCost(weight=0.1, cost=StateCost(entry="joint_vel", target=0.0, l2=1.0)),
    )
)


def hills(x, u, t):
    """Neither quadratic nor convex."""
    return torch.log(0.1 + x[:2] @ x[:2]) + 0.05 * (x[2:] @ x[2:]) + 0.02 * (u @ u)


@dataclass(frozen=True)
class Recorded:
    """SMOOTH times a factor as what an agent reports: minus the reward, derivatives fitted."""

    factor: float

    def evaluate(self, rollouts):
        N, T, nx = rollouts.X.shape
        reward = np.zeros((N, T, 1))
        reward[:, 1:, 0] = -self.factor * SMOOTH.evaluate(rollouts).l[:, :-1]
        seen = replace(
            rollouts,
            X=np.concatenate((rollouts.X, reward), axis=2),
            layout=Layout((*rollouts.layout.entries, ("reward", 1))),
        )
        terms = FittedRewardCost(window=1).evaluate(seen)
        return replace(
            terms,
            l_x=terms.l_x[..., :nx],
            l_xx=terms.l_xx[..., :nx, :nx],
            l_ux=terms.l_ux[..., :nx],
        )

    def check(self, layout, nu, T):
        """Fits every point mass."""


# Small and short: thousands of steps with kinked units make a difference of 1e-13 in the cost one
# of 1e-8 in the policy, and some more trainings make that as large as the policy itself.
POLICY = {"network": MLPConfig(hidden=(12,)), "training": TrainingConfig(steps=300)}
ALGORITHMS = {
    "trajopt": TrajOptConfig(),
    "trajopt, mc": TrajOptConfig(step=StepConfig(rule="mc")),
    "mdgps": MDGPSConfig(**POLICY),
    "mdgps on-policy": MDGPSConfig(sample_from="policy", **POLICY),
    "mdgps on-policy, mc": MDGPSConfig(
        sample_from="policy", restart=False, step=StepConfig(rule="mc"), **POLICY
    ),
    "mdgps, classic": MDGPSConfig(step=StepConfig(rule="classic"), **POLICY),
    **{
        f"badmm, {rule}": BADMMConfig(weight_rule=rule, inner=2, **POLICY)
        for rule in ("fixed", "gradient", "change", "deviation")
    },
    "pi2": PI2TrajOptConfig(),
    "pi2, weighted": PI2TrajOptConfig(pi2=PI2Config(covariance="weighted")),
    "pigps": PIGPSConfig(**POLICY),
    "pigps, controllers": PIGPSConfig(sample_from="controllers", **POLICY),
    "pilqr": PILQRTrajOptConfig(),
    "mdgps-pilqr": MDGPSPILQRConfig(**POLICY),
    "planning": ILQRPlanningConfig(model=AGENT, limits=False, steps_per_iteration=2),
    "planning, limits": ILQRPlanningConfig(model=SWING, steps_per_iteration=6),
    "planning, action": ILQRPlanningConfig(
        model=SWING, steps_per_iteration=6, planner=ILQRConfig(regularise="action", initial=0.1)
    ),
    "trajopt, torch": TrajOptConfig(),
    "trajopt, fitted reward": TrajOptConfig(),
}


def times(factor, cost):
    return SumCost(terms=(WeightedCost(weight=factor, cost=cost),))


COSTS = {  # of a factor; SMOOTH or ASIDE with the factor as weight for all others
    "trajopt, torch": partial(times, cost=TorchCost(function=hills, hessian="positive")),
    "trajopt, fitted reward": Recorded,
}


def near(what, one, other, close=CLOSE):
    """Two arrays are alike, by the size of the first."""
    one, other = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    finite = np.isfinite(one)
    np.testing.assert_array_equal(finite, np.isfinite(other), err_msg=what)
    size = np.abs(one[finite]).max(initial=0.0)
    np.testing.assert_allclose(other, one, rtol=0, atol=close * size, err_msg=what)


def kind(event):
    """What the guard or the planner did, without its numbers."""
    return tuple(word for word in event.split() if word.isalpha())


def of_condition(c, unit):
    """One condition's part of an iteration, costs in units of `unit`: names and arrays."""
    r, own = c.report, c.algorithm_state
    for part in ("K", "k", "chol"):
        yield part, getattr(c.controller, part)
    yield "step", (c.step_mult, r.step_mult, r.kl, r.kl_max)
    yield "eta", np.array((c.eta, r.eta)) / unit
    yield "sampled costs", np.array((r.cost_mean, r.cost_min, r.cost_max)) / unit
    yield "expected costs", np.array((r.expected_cost, r.predicted_cost)) / unit
    yield "memory of costs", np.array((c.sampled_cost, c.cost_scale, c.cost_error)) / unit
    if isinstance(own, Duals):
        yield "multipliers", own.lam / unit
        yield "weights", own.weight / unit
    if isinstance(own, PILQRState):
        yield "steps", own.step_mult
        yield "eta of steps", own.eta / unit


@cache
def course(name, factor, spoilt=False, iterations=4, samples=6):
    """All iterations' numbers and events. spoilt: controllers that run away have been sampled in
    between."""
    config = ALGORITHMS[name]
    swing = getattr(config, "model", None) is SWING
    agent, hold = (SWING.build(), HoldConfig()) if swing else (AGENT.build(), HOLD)
    starts = range(agent.n_conditions)
    cost = COSTS.get(name, partial(times, cost=ASIDE if swing else SMOOTH))(factor)
    first = (
        hold.controller(agent.start_state(m), agent.layout, agent.nu, agent.T, agent.dt)
        for m in starts
    )
    state = config.start((cost,) * len(starts), tuple(first), agent, 0)
    found, events = [], []
    for n in range(iterations):
        if spoilt and n == 2:
            bad = (replace(c, controller=unstable(c.controller)) for c in state.conditions)
            state = replace(state, conditions=tuple(bad))
        rollouts = sample(agent, config.sampling(state), n, samples)
        state, _ = config.iterate(state, rollouts)
        for m, c in enumerate(state.conditions):
            events.append(kind(c.report.event))
            for what, value in of_condition(c, factor):
                found.append((f"iteration {n + 1}, condition {m}, {what}", value))
        if state.policy is not None:
            policy = state.policy.policy
            for j, value in enumerate((*policy.weights, policy.chol)):
                found.append((f"iteration {n + 1}, policy, array {j}", value))
    return tuple(found), tuple(events)


def compare(one, other):
    for (what, a), (_, b) in zip(one[0], other[0], strict=True):
        near(what, a, b)
    assert one[1] == other[1]


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_iterates(name, factor):
    compare(course(name, 1.0), course(name, factor))


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name", ["trajopt", "mdgps", "badmm, deviation", "pi2", "pilqr"])
def test_what_the_guard_takes_back(name, factor):
    expected = course(name, 1.0, spoilt=True)
    assert any("back" in event for event in expected[1])
    compare(expected, course(name, factor, spoilt=True))


@pytest.mark.parametrize("factor", [1.0, *FACTORS])
def test_what_may_rise_by_rounding(factor):
    """An update whose expected cost is above that of where it starts, by a share of the scale."""
    agent = AGENT.build()
    controller = HOLD.controller(agent.start_state(0), agent.layout, agent.nu, agent.T, agent.dt)
    condition = ConditionState(controller=controller, previous=controller, step_mult=1.0)
    noise = np.random.default_rng(0).standard_normal((5, agent.T, agent.nu))
    rollouts = agent.rollout(controller, 0, noise)
    cost = stages.expand_cost(times(factor, SMOOTH), rollouts)
    checked = stages.assess_samples(condition, rollouts, cost, GuardConfig())
    assert checked.cost_scale > 2 * factor
    other = replace(controller, k=controller.k + 1.0)
    for rise, kept in ((0.5e-6, True), (2e-6, False)):
        predicted = checked.expected_cost + rise * checked.cost_scale
        new = stages.accept_or_reject(
            *(condition, controller, lambda _, p=predicted: Proposal(other, predicted=p)),
            *(checked, 1.0, 1.0),
        )
        assert (new.controller is other) == kept


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_fitted_derivatives(factor):
    agent = AGENT.build()
    controller = HOLD.controller(agent.start_state(0), agent.layout, agent.nu, agent.T, agent.dt)
    noise = np.random.default_rng(0).standard_normal((5, agent.T, agent.nu))
    rollouts = agent.rollout(controller, 0, noise)
    one, other = Recorded(1.0).evaluate(rollouts), Recorded(factor).evaluate(rollouts)
    for part in ("l", "l_x", "l_u", "l_xx", "l_ux", "l_uu"):
        near(part, getattr(one, part), getattr(other, part) / factor)
    assert np.abs(one.l_xx).max() > 0.1
