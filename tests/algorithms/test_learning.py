"""All algorithms on an agent whose optimum is known, called as in a notebook."""

import math
from dataclasses import replace

import numpy as np
import pytest
from algorithm_problems import (
    AGENT,
    advance,
    begin,
    digest,
    noise_free_cost,
    optimal_costs,
    sample,
)

from gps.agents.point_mass import PointMassConfig
from gps.algorithms import (
    BADMMConfig,
    ConditionState,
    MDGPSConfig,
    MDGPSPILQRConfig,
    PI2TrajOptConfig,
    PIGPSConfig,
    PILQRTrajOptConfig,
    Report,
    StepConfig,
    TrajOptConfig,
    stages,
)
from gps.control import DualConfig, PI2Config, PILQRConfig, kl_per_step, lqr
from gps.errors import ConfigError
from gps.execution import Serial
from gps.policies import MLPConfig, TrainingConfig
from gps.types import LinearGaussianController, Rollouts

STEP = StepConfig(kl_max=0.5, max_mult=2.0)
EVEN = replace(STEP, max_mult=1.0)
MC = replace(STEP, rule="mc")
CLASSIC = replace(STEP, rule="classic")
SMALL = MDGPSConfig(
    network=MLPConfig(hidden=(24, 24)),
    training=TrainingConfig(steps=2000, final_rate=0.1),
    step=STEP,
    replay=10,
)
DISTURBED = replace(AGENT, start_position_std=0.05)
CONFIGS = {
    "trajopt": TrajOptConfig(step=STEP),
    "trajopt, mc": TrajOptConfig(step=MC),
    "mdgps": SMALL,
    "mdgps on-policy": replace(SMALL, sample_from="policy"),
    "mdgps on-policy, mc": replace(SMALL, sample_from="policy", step=MC),
    "mdgps, classic": replace(SMALL, step=CLASSIC),
    "mdgps on-policy, classic": replace(SMALL, sample_from="policy", step=CLASSIC),
}
NOISY = PILQRConfig(dual=DualConfig(entropy_weight=0.01))
POLICY = {"network": SMALL.network, "training": SMALL.training}
OTHERS = {  # these weigh samples or serve the policy as well: iterations, cost over the optimum
    "pi2": (PI2TrajOptConfig(pi2=PI2Config(kl_max=0.7)), 30, 1.35),
    "pigps": (PIGPSConfig(pi2=PI2Config(kl_max=0.7, damping=5.0), **POLICY), 16, 1.2),
    "pilqr": (PILQRTrajOptConfig(step=STEP), 10, 1.02),
    "mdgps-pilqr": (MDGPSPILQRConfig(step=EVEN, pilqr=NOISY, **POLICY), 10, 1.03),
    "badmm": (BADMMConfig(step=STEP, inner=2, **POLICY), 8, 1.03),
}
ALL = CONFIGS | {name: config for name, (config, _, _) in OTHERS.items()}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def config(request):
    return request.param


@pytest.fixture(params=ALL.values(), ids=ALL.keys())
def any_config(request):
    return request.param


@pytest.mark.parametrize("name", OTHERS)
def test_the_others_come_near_to_the_optimum(name):
    config, iterations, factor = OTHERS[name]
    agent, state = begin(config)
    first = [noise_free_cost(agent, c.controller, m) for m, c in enumerate(state.conditions)]
    state, _, _ = advance(config, agent, state, iterations, samples=20)
    best = optimal_costs()
    actors = [(state.policy or c).actor for c in state.conditions]
    cost = [noise_free_cost(agent, a, m) for m, a in enumerate(actors)]
    assert np.all(np.array(first) > 2 * best)
    assert np.all(cost <= factor * best)


def test_local_controllers_reach_the_optimum(config):
    agent, state = begin(config)
    first = [noise_free_cost(agent, c.controller, m) for m, c in enumerate(state.conditions)]
    state, _, _ = advance(config, agent, state, 8)
    best = optimal_costs()
    cost = [noise_free_cost(agent, c.controller, m) for m, c in enumerate(state.conditions)]
    assert np.all(np.array(first) > 2 * best)  # there is something to learn
    assert np.all(cost <= 1.02 * best)
    assert np.all(cost >= (1 - 1e-9) * best)


@pytest.mark.parametrize("name", ["mdgps", "mdgps on-policy", "mdgps on-policy, mc"])
def test_the_policy_learns_all_conditions(name):
    config = CONFIGS[name]
    agent, state = begin(config)
    untrained = [noise_free_cost(agent, state.policy.policy, m) for m in range(2)]
    state, reports, _ = advance(config, agent, state, 8)
    cost = [noise_free_cost(agent, state.policy.policy, m) for m in range(2)]
    best = optimal_costs()
    assert np.all(np.array(untrained) > 2 * best)
    assert np.all(cost <= 1.03 * best)
    assert np.isfinite([r.policy_loss for r in reports]).all()
    assert state.policy.policy.trained


def test_no_update_leaves_its_trust_region(config):
    """KL of the new controller from where the update started, under the fitted model."""
    agent, state = begin(config, agent=DISTURBED)
    updates = 0
    for _ in range(4):
        rollouts = sample(agent, config.sampling(state), state.iteration)
        new, report = config.iterate(state, rollouts)
        for m, (old, c) in enumerate(zip(state.conditions, new.conditions, strict=True)):
            seen = report.conditions[m]
            bound = config.step.kl_max * c.step_mult
            assert seen.kl_max == pytest.approx(bound)
            assert seen.kl <= 1.02 * bound
            if c.search is None:  # the guard kept an old controller
                assert seen.kl == 0.0
                assert seen.event
                assert digest(c.controller) in (digest(old.controller), digest(old.previous))
                continue
            updates += 1
            from_policy = "linearised" in report.models and not seen.event
            start = report.models["linearised"][m].controller if from_policy else old.controller
            model = report.models["dynamics"][m].fit
            where = lqr.forward(model.dynamics, c.controller, model.start)
            kl = kl_per_step(c.controller, start, where.mean, where.cov).mean()
            assert kl == pytest.approx(seen.kl, rel=1e-6, abs=1e-9)
        state = new
    assert updates >= 4


def test_an_iteration_is_a_pure_function(any_config):
    config = any_config
    agent, state = begin(config)
    state, _, _ = advance(config, agent, state, 1)
    rollouts = sample(agent, config.sampling(state), 1)
    before = digest((state, rollouts, config))
    one, first = config.iterate(state, rollouts)
    two, second = config.iterate(state, rollouts)
    assert digest((state, rollouts, config)) == before
    assert digest((one, first)) == digest((two, second))
    other, _ = config.iterate(state, sample(agent, config.sampling(state), 2))
    assert digest(other) != digest(one)  # the digest sees the numbers


def test_an_iteration_gives_plain_records(any_config):
    """Without an executor nothing has to be unwrapped, and nothing is kept elsewhere."""
    config = any_config
    agent, state = begin(config)
    rollouts = sample(agent, config.sampling(state), 0)
    new, report = config.iterate(state, rollouts)
    assert type(report) is Report
    assert (state.iteration, new.iteration, report.iteration) == (0, 1, 0)
    assert all(type(c) is ConditionState for c in new.conditions)
    assert all(type(c.controller) is LinearGaussianController for c in new.conditions)
    assert [c.report for c in new.conditions] == list(report.conditions)
    if "dynamics" in report.models:
        assert report.models["dynamics"][1].fit.dynamics.F.shape == (24, 4, 6)
    if config.trains_policy:
        assert new.policy.policy.mean(np.zeros((3, 4))).shape == (3, 2)
        assert report.models["linearised"][0].controller.T == 25
    else:
        assert new.policy is None
        assert np.isnan(report.policy_loss)
    for sources in (config.sampling(state), config.sampling(new)):
        assert all(type(r) is Rollouts for r in sample(agent, sources, 1))
    serial, _ = config.iterate(state, tuple(rollouts), Serial())
    assert digest(serial) == digest(new)


def test_what_is_sampled(any_config):
    config = any_config
    agent, state = begin(config)
    sources = [s.source for s in config.sampling(state)]  # images are not recorded
    assert sources == list(state.conditions)  # there is no policy yet
    new, _, _ = advance(config, agent, state, 1)
    on_policy = type(config) is MDGPSPILQRConfig or (
        getattr(config, "sample_from", "controllers") == "policy"
    )
    want = (new.policy,) * 2 if on_policy else new.conditions
    actors = [s.actor for s in config.sampling(new)]
    assert all(actor is source.actor for actor, source in zip(actors, want, strict=True))


def test_replay_keeps_the_newest_rollouts():
    agent, state = begin(SMALL)
    rollouts = []
    for _ in range(3):
        rollouts.append(sample(agent, SMALL.sampling(state), state.iteration))
        state, _ = SMALL.iterate(state, rollouts[-1])
    want = np.concatenate([r[1].X for r in rollouts])[-SMALL.replay :]
    np.testing.assert_array_equal(state.conditions[1].replay.X, want)
    fewer = replace(SMALL, replay=3)  # fewer than the rollouts of one iteration
    rollouts = sample(agent, SMALL.sampling(state), state.iteration)
    state, _ = fewer.iterate(state, rollouts)
    np.testing.assert_array_equal(state.conditions[1].replay.X, rollouts[1].X)


@pytest.mark.parametrize("name", ["mdgps", "pigps", "mdgps-pilqr", "badmm"])
def test_the_policy_is_trained_at_the_first_steps_only(name, monkeypatch):
    config, seen, fit = ALL[name], [], stages.fit_pooled

    def noted(start, data, *rest):
        seen.append(data)
        return fit(start, data, *rest)

    monkeypatch.setattr(stages, "fit_pooled", noted)
    config = replace(config, training=replace(config.training, steps=10))
    agent, state = begin(config)
    rollouts = sample(agent, config.sampling(state), 0)
    for share, steps in ((1.0, agent.T), (0.3, math.ceil(0.3 * agent.T))):
        seen.clear()
        replace(config, train_until=share).iterate(state, rollouts)
        assert seen
        for data in seen:
            for d, r in zip(data, rollouts, strict=True):
                np.testing.assert_array_equal(d.obs, r.obs[:, :steps].reshape(-1, r.obs.shape[2]))


def test_conditions_do_not_influence_each_other_without_a_policy():
    config = CONFIGS["trajopt"]
    agent, state = begin(config)
    alone = begin(config, agent=PointMassConfig(T=25, dt=0.08, starts=AGENT.starts[:1]))[1]
    for _ in range(2):
        rollouts = sample(agent, config.sampling(state), state.iteration)
        state, _ = config.iterate(state, rollouts)
        alone, _ = config.iterate(alone, rollouts[:1])
    assert digest(state.conditions[0]) == digest(alone.conditions[0])


def test_the_rule_of_sampled_costs_needs_samples_of_the_policy():
    with pytest.raises(ConfigError, match=r"'mc'.*needs sample_from='policy'"):
        MDGPSConfig(step=StepConfig(rule="mc"))
    with pytest.raises(ConfigError, match="sample_from must be 'controllers' or 'policy'"):
        MDGPSConfig(sample_from="both")


@pytest.mark.parametrize("sample_from", ["controllers", "policy"])
def test_the_classic_rule_compares_the_local_controllers(sample_from):
    """Costs of the last controller and of the new one, each under the models of its iteration."""
    step = StepConfig(kl_max=0.5, rule="classic", min_mult=1e-6, max_mult=1e6, growth=5.0)
    config = replace(SMALL, sample_from=sample_from, step=step)
    agent, state = begin(config)
    states, reports = [state], []
    for _ in range(3):
        state, report, _ = advance(config, agent, state, 1)
        states.append(state)
        reports.append(report[0])

    def expected(m, controller, models):
        fit = models["dynamics"][m].fit
        marginals = lqr.forward(fit.dynamics, controller, fit.start)
        return lqr.expected_cost(models["cost"][m].quadratic, marginals).sum()

    shares = []
    for m in range(2):
        old, new = (s.conditions[m].controller for s in states[1:3])
        before = expected(m, old, reports[1].models)
        predicted = before - expected(m, new, reports[1].models)
        actual = before - expected(m, new, reports[2].models)
        shares.append(min(max(actual / predicted, -4.0), 0.9))
    factor = 0.5 / (1 - np.mean(shares))
    mult = [s.conditions[0].step_mult for s in states[2:4]]
    assert mult[1] / mult[0] == pytest.approx(factor, rel=1e-9)
