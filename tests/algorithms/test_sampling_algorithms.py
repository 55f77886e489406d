"""PI2, PIGPS, PILQR and MDGPS-PILQR: what they start from, and what they remember."""

from dataclasses import replace

import numpy as np
import pytest
from algorithm_problems import advance, begin, digest, sample

from gps.algorithms import (
    MDGPSPILQRConfig,
    PI2TrajOptConfig,
    PIGPSConfig,
    PILQRTrajOptConfig,
    StepConfig,
)
from gps.control import DualConfig, PI2Config, kl_per_step, pilqr
from gps.control.pilqr import PILQRConfig
from gps.policies import MLPConfig, TrainingConfig

POLICY = {"network": MLPConfig(hidden=(16,)), "training": TrainingConfig(steps=1500)}
WIDE = StepConfig(kl_max=0.5, min_mult=0.1, max_mult=4.0)


def spoiled(state):
    """As if the last update had made everything much worse."""
    cheap = {"sampled_cost": 0.1, "cost_scale": 0.1, "cost_error": 0.0}
    return replace(state, conditions=tuple(replace(c, **cheap) for c in state.conditions))


def test_pi2_takes_shorter_steps_after_a_setback_and_recovers():
    config = PI2TrajOptConfig(pi2=PI2Config(kl_max=0.8))
    agent, state = begin(config)
    state, reports, _ = advance(config, agent, state, 1, samples=20)
    assert [c.kl_max for c in reports[0].conditions] == pytest.approx([0.8, 0.8])
    assert [c.kl for c in reports[0].conditions] == pytest.approx([0.8, 0.8], rel=1e-3)
    back, reports, _ = advance(config, agent, spoiled(state), 1, samples=20)
    for m, c in enumerate(back.conditions):
        assert "back to an earlier controller" in c.report.event
        assert digest(c.controller) == digest(state.conditions[m].previous)
        assert c.step_mult == config.guard.shrink
    updated = (c.search for c in state.conditions)  # as if there were an update to take back again
    again = tuple(replace(c, search=d) for c, d in zip(back.conditions, updated, strict=True))
    again = replace(back, conditions=again)
    twice, _, _ = advance(config, agent, spoiled(again), 1, samples=20)
    assert [c.step_mult for c in twice.conditions] == [config.guard.shrink**2] * 2
    nan = float("nan")
    known = tuple(replace(c, sampled_cost=nan, cost_scale=nan) for c in twice.conditions)
    twice = replace(twice, conditions=known)  # nothing to compare with: the next one is accepted
    for expected in (0.4, 0.8, 0.8):
        twice, reports, _ = advance(config, agent, twice, 1, samples=20)
        assert [c.kl_max for c in reports[0].conditions] == pytest.approx([expected] * 2)


def test_a_search_of_pilqr_that_falls_short_is_said(caplog):
    """As of every other algorithm; why, in the log for whoever looks for it."""
    few = PILQRConfig(dual=DualConfig(max_trials=1, kl_under="new"))
    config = PILQRTrajOptConfig(step=WIDE, pilqr=few)
    agent, state = begin(config)
    with caplog.at_level("DEBUG", "gps"):
        _, reports, _ = advance(config, agent, state, 1, samples=20)
    assert all("the update uses " in c.event for c in reports[0].conditions)
    said = [r for r in caplog.records if "raise DualConfig.max_trials" in r.getMessage()]
    assert {r.levelname for r in said} == {"DEBUG"}
    assert any(r.getMessage().startswith("condition 1: ") for r in said)


def test_pilqr_has_a_step_for_every_time_step():
    """By the residual's share of the cost, from the multipliers of the iteration before."""
    # bounds between which both decisions are met on the way
    settings = PILQRConfig(decrease=0.02, increase=0.004)
    config = PILQRTrajOptConfig(step=WIDE, pilqr=settings)
    agent, state = begin(config)
    mults, seen = np.ones(agent.T), []
    for _ in range(3):
        rollouts = sample(agent, config.sampling(state), state.iteration, 8)
        new, report = config.iterate(state, rollouts)
        for m in range(1):
            fit = report.models["dynamics"][m].fit
            cost = report.models["cost"][m]
            explained = pilqr.explain(
                fit.dynamics, cost.quadratic, state.conditions[m].controller,
                rollouts[m].X, rollouts[m].U, cost.l,
            )  # fmt: skip
            mults = pilqr.adjust_steps(mults, explained.share, 0.1, 4.0, settings)
            own = new.conditions[m].algorithm_state
            np.testing.assert_allclose(own.step_mult, mults)
            np.testing.assert_allclose(new.conditions[m].search.lqr.kl_max, 0.5 * mults)
            np.testing.assert_array_equal(own.eta, new.conditions[m].search.lqr.eta)
            assert report.conditions[m].kl_max == pytest.approx(0.5 * mults.mean())
        seen.append(mults)
        state = new
    assert len(np.unique(seen)) > 1  # the rule had something to say


def test_pilqr_shrinks_all_steps_after_a_setback():
    config = PILQRTrajOptConfig(step=WIDE)
    agent, state = begin(config)
    state, _, _ = advance(config, agent, state, 2, samples=8)
    before = state.conditions[0].algorithm_state
    back, _, _ = advance(config, agent, spoiled(state), 1, samples=8)
    after = back.conditions[0]
    assert "back to an earlier controller" in after.report.event
    np.testing.assert_allclose(
        after.algorithm_state.step_mult, np.maximum(0.5 * before.step_mult, 0.1)
    )
    np.testing.assert_array_equal(after.algorithm_state.eta, before.eta)


@pytest.mark.parametrize("on_policy", [True, False])
def test_pigps_improves_what_was_sampled(on_policy):
    """PI2 keeps the gains of what it starts from."""
    config = PIGPSConfig(sample_from="policy" if on_policy else "controllers", **POLICY)
    agent, state = begin(config)
    first = [c.controller for c in state.conditions]
    state, reports, _ = advance(config, agent, state, 1, samples=20)
    for m, c in enumerate(state.conditions):  # the initial controllers were sampled
        np.testing.assert_array_equal(c.controller.K, first[m].K)
    new, reports, _ = advance(config, agent, state, 1, samples=20)
    for m, c in enumerate(new.conditions):
        linearised = reports[0].models["linearised"][m].controller
        np.testing.assert_array_equal(c.controller.K, linearised.K)
        same = np.array_equal(linearised.K, state.conditions[m].controller.K)
        assert same is not on_policy


def test_mdgps_pilqr_stays_near_the_policy_that_was_sampled():
    narrow = StepConfig(kl_max=0.2, max_mult=1.0)
    config = MDGPSPILQRConfig(step=narrow, **POLICY)
    agent, state = begin(config)
    state, _, _ = advance(config, agent, state, 1, samples=10)
    new, reports, _ = advance(config, agent, state, 1, samples=10)
    for m, c in enumerate(new.conditions):
        step, linearised = c.search.lqr, reports[0].models["linearised"][m].controller
        kl = kl_per_step(step.controller, linearised, step.marginals.mean, step.marginals.cov)
        np.testing.assert_allclose(kl, step.kl, rtol=1e-6, atol=1e-9)
        own = kl_per_step(
            step.controller, state.conditions[m].controller, step.marginals.mean, step.marginals.cov
        )
        assert np.abs(own - step.kl).max() > 1e-3
