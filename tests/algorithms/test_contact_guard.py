"""Local controllers that run away on the peg agent, where contacts break every linear model."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from algorithm_problems import digest

import gps
from gps.agents import peg_insertion
from gps.algorithms import GuardConfig, StepConfig, TrajOptConfig
from gps.control.initial import HoldConfig
from gps.costs import ActionCost, EndpointCost, EndpointMeasure, SumCost, WeightedCost
from gps.pipeline import sampling
from gps.pipeline.experiment import Experiment, initial_state
from gps.types import LinearGaussianController

TARGET = (0.6, 0.0, -0.55, 0.6, 0.0, -0.25)  # peg tip and top at the bottom of the hole, in m
AGENT = peg_insertion(n_test=1)
NEAR = EndpointCost(target=TARGET, weights=1.0, l2=10.0, log_weight=0.1)
END = EndpointCost(
    target=TARGET, weights=1.0, l2=1.0, log_weight=1.0, ramp="final", final_multiplier=10.0
)
WILD = Experiment(
    agent=replace(AGENT, conditions=AGENT.conditions[:2]),
    # torques cost next to nothing: the gains grow until contacts make the arm flail
    cost=SumCost(
        terms=(
            WeightedCost(cost=ActionCost(weights=1e-3)),
            WeightedCost(cost=NEAR),
            WeightedCost(cost=END),
        )
    ),
    initial=HoldConfig(),
    measure=EndpointMeasure(target=TARGET),
    algorithm=TrajOptConfig(step=StepConfig(kl_max=50.0)),  # far too large steps
    samples=2,  # from far too few samples
    iterations=6,
)


@pytest.fixture(scope="module")
def runs():
    """All reports of each of three seeds."""
    return [list(gps.run(WILD, seed=seed)) for seed in (0, 1, 2)]


def noise_free_cost(controller, m):
    score = sampling.evaluate_condition(WILD.agent, WILD.cost, WILD.measure, controller, m, 1, 0)
    return float(score.cost[0])


def test_every_run_ends_with_finite_numbers_and_says_what_went_wrong(runs):
    for reports in runs:
        assert len(reports) == 6
        assert any(r.events for r in reports)
        for r in reports:
            for c, state in zip(r.report.conditions, r.state.conditions, strict=True):
                assert math.isfinite(c.cost_mean)
                assert math.isfinite(c.step_mult)
                for array in (state.controller.K, state.controller.k, state.controller.chol):
                    assert np.isfinite(array).all()


def test_every_explosion_is_taken_back(runs):
    limit = GuardConfig().explosion
    for reports in runs:
        for before, now in pairwise(reports):
            for m, old in enumerate(before.state.conditions):
                c, new = now.report.conditions[m], now.state.conditions[m]
                if c.cost_mean - old.sampled_cost > limit * old.cost_scale:
                    assert "back to an earlier controller" in c.event
                    assert digest(new.controller) == digest(old.previous)
                    assert new.step_mult < old.step_mult


def test_the_runs_do_not_end_worse_than_they_began(runs):
    agent = WILD.agent.build()
    start = initial_state(WILD, agent)
    first = [noise_free_cost(c.controller, m) for m, c in enumerate(start.conditions)]
    for reports in runs:
        costs = np.array([[c.cost_mean for c in r.report.conditions] for r in reports])
        assert costs.mean(axis=1).min() < 0.7 * costs[0].mean()  # something was learned
        last = reports[-1].state.conditions
        # the newest controller may be the next to run away; the one it came from may not
        known = [noise_free_cost(c.previous, m) for m, c in enumerate(last)]
        assert np.mean(known) < np.mean(first)


def test_a_run_away_arm_comes_back():
    """In the middle of learning, controllers are replaced by ones that throw the arm about."""
    experiment = replace(
        WILD, samples=4, algorithm=TrajOptConfig(step=StepConfig(kl_max=5.0)), iterations=3
    )
    *_, learned = gps.run(experiment, seed=1)
    before = learned.state.conditions
    wild = [
        LinearGaussianController(
            K=-30.0 * c.controller.K, k=-30.0 * c.controller.k, chol=c.controller.chol
        )
        for c in before
    ]
    state = replace(
        learned.state,
        conditions=tuple(
            replace(c, previous=c.controller, controller=w)
            for c, w in zip(before, wild, strict=True)
        ),
    )
    algorithm, costs = experiment.algorithm, []
    for _ in range(4):
        rollouts = [
            sampling.rollout(experiment.agent, source, m, 4, 0, state.iteration, 3)
            for m, source in enumerate(algorithm.sampling(state))
        ]
        state, report = algorithm.iterate(state, rollouts)
        costs.append([c.cost_mean for c in report.conditions])
        if len(costs) == 1:
            for m, c in enumerate(state.conditions):
                assert "back to an earlier controller" in report.conditions[m].event
                assert digest(c.controller) == digest(before[m].controller)
                assert digest(c.dynamics_prior) == digest(before[m].dynamics_prior)
    for m in range(2):
        assert costs[0][m] > before[m].sampled_cost + before[m].cost_scale
        for later in costs[1:]:
            assert later[m] < before[m].sampled_cost + before[m].cost_scale
