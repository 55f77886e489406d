"""Whole short runs in other units of states, actions and cost give the same controllers."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from algorithm_problems import HOLD, sample
from rescaled import Agent, AgentConfig, Cost, Units, near
from test_cost_unit import AGENT, ALGORITHMS, ASIDE, SMOOTH, SWING, kind

from gps.algorithms import StepConfig, TrajOptConfig
from gps.control import HoldConfig
from gps.costs import ActionCost, StateCost

CLOSE = 1e-7
"""Of the largest entry. Other units round otherwise, by 1e-16; four iterations, each with a root
search for eta, a mixture and a network, make 1e-10 of it. A floor in some unit makes a tenth."""

UNITS = [
    *(pytest.param((seed, 2.0, 20), id=f"powers of two, {seed}") for seed in range(2)),
    *(pytest.param((seed, 10.0, 6), id=f"powers of ten, {seed}") for seed in range(2, 4)),
]
RUNS = [name for name in ALGORITHMS if name not in ("trajopt, torch", "trajopt, fitted reward")]


@cache
def course(name, drawn=None, iterations=4, samples=6):
    """All iterations' controllers, in our units, steps and events, and the policies' weights."""
    config = ALGORITHMS[name]
    swing = getattr(config, "model", None) is SWING
    given, hold, cost = (SWING, HoldConfig(), ASIDE) if swing else (AGENT, HOLD, SMOOTH)
    own = given.build()
    nx = own.layout.size
    units = Units.one(nx, own.nu) if drawn is None else Units.drawn(nx, own.nu, *drawn)
    units = units.within(own.layout)
    agent = Agent(own, units)
    if hasattr(config, "model"):
        noise = tuple(0.05 * units.u)
        config = replace(config, model=AgentConfig(given, units), exploration=noise)
    first = (
        units.controller(hold.controller(own.start_state(m), own.layout, own.nu, own.T, own.dt))
        for m in range(own.n_conditions)
    )
    costs = (Cost(cost, units),) * own.n_conditions
    state = config.start(costs, tuple(first), agent, 0)
    found, events = [], []
    for n in range(iterations):
        rollouts = sample(agent, config.sampling(state), n, samples)
        state, _ = config.iterate(state, rollouts)
        for m, c in enumerate(state.conditions):
            where = f"iteration {n + 1}, condition {m}"
            ours = units.back.controller(c.controller)
            found += [(f"{where}, {part}", getattr(ours, part)) for part in ("K", "k", "chol")]
            found.append((f"{where}, step", (c.step_mult, c.report.kl)))
            found.append((f"{where}, eta", np.array(c.eta) / units.cost))
            found.append((f"{where}, cost", c.report.cost_mean / units.cost))
            events.append(kind(c.report.event))
        if state.policy is not None:
            weights = enumerate(state.policy.policy.weights)
            found += [(f"iteration {n + 1}, layer {j}", w) for j, w in weights]
    return found, events


@pytest.mark.parametrize("drawn", UNITS)
@pytest.mark.parametrize("name", RUNS)
def test_runs(name, drawn):
    (one, events), (other, others) = course(name), course(name, drawn)
    assert events == others
    for (what, a), (_, b) in zip(one, other, strict=True):
        near(what, a, b, CLOSE)


def stage_agent(size):
    """A mass of 1 kg on a stage whose whole way is `size` metres, pushed by what that takes."""
    return replace(
        AGENT, T=25, starts=((size, 0.5 * size),), force_limit=10.0 * size, damping=0.5
    ).build()


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6])
def test_a_stage_that_goes_a_millimetre_or_a_micrometre(size):
    """A cost in metres, as its user would write it, and the default floors."""
    agent = stage_agent(size)
    cost = 1e-3 * ActionCost(weights=1.0) + StateCost(
        entry="position", target=(0.0, 0.0), l2=1.0, final_multiplier=10.0
    )
    first = replace(HOLD, variance=(0.5 * size) ** 2, stiffness=0.1)
    controller = first.controller(agent.start_state(0), agent.layout, agent.nu, agent.T, agent.dt)
    config = TrajOptConfig(step=StepConfig(kl_max=1.0))
    state = config.start((cost,), (controller,), agent, 0)
    for n in range(8):
        state, _ = config.iterate(state, sample(agent, config.sampling(state), n, 5))
    c = state.conditions[0].controller
    end = agent.rollout(c, 0, np.zeros((1, agent.T, agent.nu))).X[0, -1, :2]
    assert np.abs(end).max() < 0.03 * size
