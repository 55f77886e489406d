"""What happens when a model or a controller is not to be trusted."""

import math
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
from algorithm_problems import (
    COST,
    HOLD,
    Reward,
    Unusable,
    advance,
    begin,
    digest,
    noise_free_cost,
    sample,
    unstable,
)

from gps.agents.point_mass import PointMassAgent, PointMassConfig
from gps.algorithms import (
    GuardConfig,
    MDGPSConfig,
    MDGPSPILQRConfig,
    PIGPSConfig,
    PolicyState,
    StepConfig,
    TrajOptConfig,
    stages,
)
from gps.control import DualConfig, dual, kl_per_step, lqr
from gps.execution import Serial
from gps.pipeline.experiment import Experiment
from gps.pipeline.runner import run
from gps.policies import MLPConfig, TrainingConfig, TrainingData, fit, initial_policy
from gps.rng import stream

TRAJOPT = TrajOptConfig(step=StepConfig(kl_max=1.0))
MDGPS = MDGPSConfig(
    step=StepConfig(kl_max=1.0),
    network=MLPConfig(hidden=(16,)),
    training=TrainingConfig(steps=1500),
    replay=10,
)


def with_condition(state, m, **changes):
    conditions = list(state.conditions)
    conditions[m] = replace(conditions[m], **changes)
    return replace(state, conditions=tuple(conditions))


def gaussian_entropy(controller):
    """Sum over steps of the entropy of the actions given the state, in nats."""
    return sum(0.5 * np.linalg.slogdet(2 * np.pi * np.e * Sigma)[1] for Sigma in controller.Sigma)


def same(a, b):
    return digest(a) == digest(b)


@pytest.mark.parametrize("config", [TRAJOPT, MDGPS], ids=["trajopt", "mdgps"])
def test_an_exploded_condition_goes_back_and_recovers(config):
    agent, start = begin(config)
    before, _, _ = advance(config, agent, start, 2)
    good = before.conditions[0].controller
    # the update went wrong: a controller that drives the mass away
    broken = with_condition(before, 0, controller=unstable(good), previous=good)
    after, report = config.iterate(broken, sample(agent, broken.conditions, 2))
    old, new = before.conditions[0], after.conditions[0]
    seen = report.conditions[0]
    assert seen.cost_mean > 100 * old.sampled_cost
    assert "back to an earlier controller" in seen.event
    assert f"{seen.cost_mean:.4g}" in seen.event
    assert same(new.controller, good)
    assert new.step_mult < old.step_mult
    for kept in ("dynamics_prior", "policy_prior", "replay", "sampled_cost", "cost_scale"):
        assert same(getattr(new, kept), getattr(old, kept)), kept
    if config is MDGPS:
        assert old.replay is not None
        assert old.policy_prior is not None
    # the other condition does not suffer
    assert report.conditions[1].event == ""
    assert not same(after.conditions[1].controller, before.conditions[1].controller)
    # and the run goes on
    final, reports, _ = advance(config, agent, after, 4)
    costs = [r.conditions[0].cost_mean for r in reports]
    assert costs[0] < 2 * old.sampled_cost
    assert noise_free_cost(agent, final.conditions[0].controller, 0) < noise_free_cost(
        agent, good, 0
    )
    assert not same(final.conditions[0].controller, good)


@pytest.mark.parametrize("config", [TRAJOPT, MDGPS], ids=["trajopt", "mdgps"])
def test_a_model_that_contradicts_the_samples_shrinks_the_step(config):
    agent, start = begin(config)
    before, _, _ = advance(config, agent, start, 2)
    # sampled with a good controller, while the state says that another one acted
    rollouts = sample(agent, before.conditions, 2)
    expected, _ = config.iterate(before, rollouts)
    wrong = unstable(before.conditions[0].controller, gain=4.0)
    astray = with_condition(before, 0, controller=wrong)
    after, report = config.iterate(astray, rollouts)
    event, sampled = report.conditions[0].event, report.conditions[0].cost_mean
    gap, expected_cost, sampled_cost = re.fullmatch(
        r"model error (\S+) times the cost scale \(expected cost (\S+), sampled (\S+)\): "
        "smaller step",
        event,
    ).groups()
    assert gap.startswith("+")
    assert float(sampled_cost) == pytest.approx(sampled, rel=1e-3)
    # all costs are positive here, so that the scale is the sampled cost
    assert float(gap) == pytest.approx(float(expected_cost) / sampled - 1, rel=1e-2)
    assert after.conditions[0].step_mult <= 0.5 * before.conditions[0].step_mult
    assert after.conditions[0].step_mult < expected.conditions[0].step_mult
    assert report.conditions[0].kl <= 1.02 * report.conditions[0].kl_max
    assert report.conditions[1].event == ""


def test_the_step_never_leaves_its_range():
    config = TrajOptConfig(step=StepConfig(kl_max=1.0, min_mult=0.3))
    agent, state = begin(config)
    state, _, _ = advance(config, agent, state, 2)
    good, updated = state.conditions[0].controller, state.conditions[0].search
    for _ in range(7):
        wrong = {"controller": unstable(good), "previous": good, "search": updated}
        broken = with_condition(state, 0, **wrong)
        state, report = config.iterate(broken, sample(agent, broken.conditions, 2))
        assert report.conditions[0].event
    assert state.conditions[0].step_mult == 0.3


@pytest.mark.parametrize("config", [TRAJOPT, MDGPS], ids=["trajopt", "mdgps"])
@pytest.mark.parametrize("value", [True, False], ids=["cost", "gradient"])
def test_a_cost_that_is_no_number_is_never_progress(config, value):
    agent, start = begin(config)
    before, _, _ = advance(config, agent, start, 2)
    rollouts = sample(agent, before.conditions, 2)
    edge = float(rollouts[0].X[:, :, 0].mean())
    lost = replace(before, costs=(Unusable(edge, value), COST))
    after, report = config.iterate(lost, rollouts)
    old, new = before.conditions[0], after.conditions[0]
    assert report.conditions[0].event
    assert math.isnan(report.conditions[0].cost_mean) == value
    # one of the two controllers that have been seen to work
    assert same(new.controller, old.previous if value else old.controller)
    assert new.step_mult < old.step_mult
    assert math.isfinite(new.sampled_cost)
    assert math.isfinite(new.cost_scale)
    assert report.conditions[1].event == ""
    assert math.isfinite(after.conditions[1].step_mult)
    # the next step is judged by nothing of this iteration
    final, reports, _ = advance(config, agent, replace(after, costs=(COST, COST)), 3)
    assert all(math.isfinite(c.cost_mean) for r in reports for c in r.conditions)
    assert final.conditions[0].step_mult > 0
    assert not same(final.conditions[0].controller, new.controller)


def test_an_indefinite_cost_keeps_the_controller_and_the_run_goes_on(caplog):
    caplog.set_level("DEBUG", "gps.algorithms")
    # no eta that the search may use makes Q_uu positive definite
    config = TrajOptConfig(step=StepConfig(kl_max=1.0), dual=DualConfig(eta_max=1e-3))
    agent, start = begin(config)
    state, first = start, start.conditions[0].controller
    state = replace(state, costs=(Reward(), COST))
    for _ in range(3):
        state, report = config.iterate(state, sample(agent, state.conditions, state.iteration))
        assert report.conditions[0].event.startswith("no update: ")
        assert report.conditions[0].cause == "curvature"
        assert "Q_uu is not positive definite at t=" in caplog.text  # for whoever writes searches
        assert "Q_uu" not in report.conditions[0].event
        assert report.conditions[0].kl == 0.0
        assert same(state.conditions[0].controller, first)
    assert state.iteration == 3


def test_a_search_without_result_keeps_the_controller_until_it_works_again():
    bad = TrajOptConfig(step=StepConfig(kl_max=0.01), dual=DualConfig(max_trials=1))
    agent, start = begin(TRAJOPT)
    before, _, _ = advance(TRAJOPT, agent, start, 1)
    before = with_condition(before, 0, eta=1e-6)  # far below the bound's
    after, reports, _ = advance(bad, agent, before, 1)
    assert "no update: no better controller is within" in reports[0].conditions[0].event
    assert reports[0].conditions[0].cause == "unknown"
    old, new = before.conditions[0], after.conditions[0]
    assert same(new.controller, old.controller)
    assert same(new.previous, old.controller)  # what was sampled is sound
    assert new.sampled_cost == reports[0].conditions[0].cost_mean
    final, reports, _ = advance(TRAJOPT, agent, after, 2)
    assert not any(c.event for r in reports for c in r.conditions)
    assert noise_free_cost(agent, final.conditions[0].controller, 0) < noise_free_cost(
        agent, old.controller, 0
    )


def test_an_update_that_raises_the_expected_cost_is_not_taken(monkeypatch):
    agent, start = begin(TRAJOPT)
    before, _, _ = advance(TRAJOPT, agent, start, 1)

    minimise = dual.minimise

    def worse(*args, **kwargs):  # a search that returns pushes to the far right
        result = minimise(*args, **kwargs)
        c = result.controller
        return replace(result, controller=replace(c, k=c.k + 5.0))

    monkeypatch.setattr(stages.dual, "minimise", worse)
    after, reports, _ = advance(TRAJOPT, agent, before, 1)
    for m in range(2):
        assert "no update: its expected cost" in reports[0].conditions[m].event
        assert same(after.conditions[m].controller, before.conditions[m].controller)


def test_an_entropy_weight_may_trade_cost_for_noise():
    config = replace(TRAJOPT, dual=DualConfig(entropy_weight=1e4))  # worth more than the cost
    agent, start = begin(TRAJOPT)
    before, _, _ = advance(TRAJOPT, agent, start, 1)
    after, reports, _ = advance(config, agent, before, 1)
    for m in range(2):
        assert not reports[0].conditions[m].event
        seen, model = reports[0].conditions[m], reports[0].models
        old, new = before.conditions[m].controller, after.conditions[m].controller
        # the objective falls, as it counts the noise, while the cost itself rises
        assert seen.predicted_cost < seen.expected_cost
        costs = [
            stages.total_expected_cost(c, model["cost"][m], model["dynamics"][m])
            for c in (old, new)
        ]
        assert costs[1] > costs[0]
        bonus = 1e4 * gaussian_entropy(old)
        assert seen.expected_cost == pytest.approx(costs[0] - bonus, rel=1e-9)
        assert np.linalg.det(new.Sigma).mean() > np.linalg.det(old.Sigma).mean()


def test_after_a_fall_back_a_setback_is_not_called_again():
    """The same controller again, compared with its own lucky sample, has nothing to take back."""
    agent, start = begin(TRAJOPT)
    state, _, _ = advance(TRAJOPT, agent, start, 2)
    before = state.conditions[0].sampled_cost - 5.0
    lucky = with_condition(state, 0, sampled_cost=before, cost_error=0.1)
    after, reports, _ = advance(TRAJOPT, agent, lucky, 1)
    assert "back to an earlier controller" in reports[0].conditions[0].event
    assert after.conditions[0].search is None
    _, reports, _ = advance(TRAJOPT, agent, after, 1)
    assert "back to an earlier controller" not in reports[0].conditions[0].event


@pytest.mark.parametrize("config", [TRAJOPT, MDGPS], ids=["trajopt", "mdgps"])
def test_a_controller_is_not_taken_back_for_the_luck_of_its_first_samples(config):
    """What goes back is sampled again: no update has made that worse, however it compares."""
    agent, start = begin(config)
    before, _, _ = advance(config, agent, start, 2)
    good = before.conditions[0].controller
    broken = with_condition(before, 0, controller=unstable(good), previous=good)
    lucky = {"sampled_cost": 1e-3, "cost_scale": 1e-3, "cost_error": 1e-4}
    back, report = config.iterate(broken, sample(agent, broken.conditions, 2))
    assert "back to an earlier controller" in report.conditions[0].event
    assert same(back.conditions[0].controller, good)
    back = with_condition(back, 0, **lucky)
    rollouts = sample(agent, back.conditions, 3)
    after, report = config.iterate(back, rollouts)
    seen, new = report.conditions[0], after.conditions[0]
    assert seen.cost_mean > 100 * lucky["sampled_cost"]  # far beyond GuardConfig.explosion
    assert seen.event == ""
    assert not same(new.controller, good)
    # and it is known from now on by what it costs
    assert new.sampled_cost == pytest.approx(seen.cost_mean)
    assert same(new.previous, good)


SAMPLED_BY = {
    "trajopt": (TRAJOPT, True),
    "mdgps": (MDGPS, True),
    "mdgps on-policy": (replace(MDGPS, sample_from="policy"), False),
    "pigps": (PIGPSConfig(network=MDGPS.network, training=MDGPS.training), False),
    "mdgps-pilqr": (MDGPSPILQRConfig(network=MDGPS.network, training=MDGPS.training), False),
}


@pytest.mark.parametrize("name", SAMPLED_BY)
def test_what_can_be_taken_back(name):
    """Of controllers every setback; of a policy that is sampled in every iteration explosions, and
    those after a fall-back as well, since it is trained anew."""
    config, controllers = SAMPLED_BY[name]
    agent, start = begin(config)
    before, _, _ = advance(config, agent, start, 2)
    rollouts = sample(agent, config.sampling(before), 2)
    cost = COST.evaluate(rollouts[0]).l.sum(axis=1).mean()

    def taken_back(best, **changes):
        known = {"sampled_cost": best, "cost_scale": best, "cost_error": 1e-6 * best}
        _, report = config.iterate(with_condition(before, 0, **known, **changes), rollouts)
        return "back to an earlier controller" in report.conditions[0].event

    assert taken_back(0.7 * cost) == controllers
    assert taken_back(0.01 * cost)
    assert taken_back(0.01 * cost, search=None) != controllers
    assert not taken_back(1.5 * cost)


# --- a policy that has gone astray


def pushing_away(rollouts, gain=6.0):
    """A policy that has learned to push the mass away where it was."""
    X = np.concatenate([r.X.reshape(-1, 4) for r in rollouts])
    data = TrainingData(
        obs=X,
        target=gain * X[:, :2],
        precision=np.tile(np.eye(2), (len(X), 1, 1)),
        weight=X[:, 0] ** 0,
    )
    policy = initial_policy(MLPConfig(hidden=(16,)), 4, 2, stream(0, "astray"))
    return fit(policy, data, TrainingConfig(steps=1500), stream(0, "fit")).policy


def test_an_update_leaves_a_policy_that_went_astray_alone():
    agent, start = begin(MDGPS)
    before, _, _ = advance(MDGPS, agent, start, 2)
    before = with_condition(
        with_condition(before, 0, policy_trial_in=None), 1, policy_trial_in=None
    )
    rollouts = sample(agent, before.conditions, 2)
    policy = pushing_away(rollouts)
    for m in range(2):
        limit = 3 * noise_free_cost(agent, before.conditions[m].controller, m)
        assert noise_free_cost(agent, policy, m) > limit
    astray = replace(before, policy=PolicyState(policy=policy))
    after, report = MDGPS.iterate(astray, rollouts)
    for m in range(2):
        old, new, seen = before.conditions[m], after.conditions[m], report.conditions[m]
        assert "linearised policy" in seen.event
        assert "update from the controller" in seen.event
        assert new.policy_trial_in == 2
        assert new.step_mult == old.step_mult  # what the policy has lost is not held against it
        # the bound holds around the sampled controller, under the fitted model
        model = report.models["dynamics"][m].fit
        where = lqr.forward(model.dynamics, new.controller, model.start)
        kl = kl_per_step(new.controller, old.controller, where.mean, where.cov).mean()
        assert 0 < kl <= 1.02 * seen.kl_max
        assert kl == pytest.approx(seen.kl, rel=1e-6)
        costs = [noise_free_cost(agent, c.controller, m) for c in (old, new)]
        assert costs[1] < costs[0]
    # the policy is drawn back by the next trainings
    final, _, _ = advance(MDGPS, agent, after, 2)
    for m in range(2):
        assert noise_free_cost(agent, final.policy.policy, m) < limit


def test_the_policy_is_sampled_after_so_many_updates_without_it():
    """Counted in a row: an update that starts from the policy begins again."""
    agent, start = begin(MDGPS)
    state, _, _ = advance(MDGPS, agent, start, 2)
    state = with_condition(state, 0, policy_trial_in=None)
    state = with_condition(state, 1, policy_trial_in=None)
    policy = PolicyState(policy=pushing_away(sample(agent, state.conditions, 2)))
    for it, left in enumerate([2, 1, None, 2, 1, 0]):
        astray = left is not None
        before = replace(state, policy=policy) if astray else state
        sources = MDGPS.sampling(before)
        for m, source in enumerate(sources):
            assert source.actor is before.conditions[m].controller
        state, report = MDGPS.iterate(before, sample(agent, sources, 2 + it))
        for c in report.conditions:
            assert ("linearised policy" in c.event) == astray
        assert [c.policy_trial_in for c in state.conditions] == [left] * 2
    assert [s.actor for s in MDGPS.sampling(state)] == [state.policy.policy] * 2


def with_trial(state, **policy):
    """As if the policy were to be sampled next from the first condition."""
    return with_condition(replace(state, **policy), 0, policy_trial_in=0)


def test_a_policy_that_does_better_than_the_controller_takes_its_place():
    agent, start = begin(MDGPS)
    before, _, _ = advance(MDGPS, agent, start, 4)
    # the condition is stuck: its best so far is the controller that a run begins with
    stuck = start.conditions[0].controller
    cost = noise_free_cost(agent, stuck, 0)
    known = {"sampled_cost": cost, "cost_scale": cost, "cost_error": 0.1}
    before = with_condition(with_trial(before), 0, controller=stuck, previous=stuck, **known)
    sources = MDGPS.sampling(before)
    assert sources[0].actor is before.policy.policy
    assert sources[1].actor is before.conditions[1].controller
    after, report = MDGPS.iterate(before, sample(agent, sources, 4))
    new, seen = after.conditions[0], report.conditions[0]
    assert seen.event == "the policy was sampled: update from it"
    assert new.policy_trial_in is None
    # how the policy does says nothing of the last update
    alone = with_condition(before, 1, expected_cost=math.nan)
    alone = with_condition(alone, 0, expected_cost=0.0, predicted_cost=-1.0)  # it kept nothing
    alone, _ = MDGPS.iterate(alone, sample(agent, sources, 4))
    assert [c.step_mult for c in alone.conditions] == [c.step_mult for c in before.conditions]
    assert seen.cost_mean < 0.8 * cost
    # the policy's linear form is what the guard goes back to, and what the bound is around
    linear = report.models["linearised"][0].controller
    assert same(new.previous, linear)
    assert new.sampled_cost == pytest.approx(seen.cost_mean)
    model = report.models["dynamics"][0].fit
    where = lqr.forward(model.dynamics, new.controller, model.start)
    kl = kl_per_step(new.controller, linear, where.mean, where.cov).mean()
    assert 0 < kl <= 1.02 * seen.kl_max
    assert noise_free_cost(agent, new.controller, 0) < 0.8 * cost
    assert report.conditions[1].event == ""


def test_a_policy_that_does_worse_is_taken_back():
    agent, start = begin(MDGPS)
    before, _, _ = advance(MDGPS, agent, start, 3)
    policy = PolicyState(policy=pushing_away(sample(agent, before.conditions, 2)))
    before = with_condition(with_trial(before, policy=policy), 0, search=None)  # back already once
    after, report = MDGPS.iterate(before, sample(agent, MDGPS.sampling(before), 3))
    old, new, seen = before.conditions[0], after.conditions[0], report.conditions[0]
    assert "back to an earlier controller" in seen.event
    assert same(new.controller, old.previous)
    assert same(new.previous, old.previous)
    assert new.sampled_cost == old.sampled_cost
    assert new.policy_trial_in is None  # and it is not sampled at once again


def test_what_the_policy_cost_is_not_put_down_to_the_controller():
    """A trial from which no update comes leaves what is known of the controllers as it was."""
    agent, start = begin(MDGPS)
    before, _, _ = advance(MDGPS, agent, start, 4)
    before = with_trial(with_condition(before, 0, sampled_cost=1e6, cost_scale=1e6, cost_error=1.0))
    rollouts = sample(agent, MDGPS.sampling(before), 4)
    edge = float(rollouts[0].X[:, :, 0].mean())  # beyond it, the cost has no gradient
    before = replace(before, costs=(Unusable(edge, False), COST))
    after, report = MDGPS.iterate(before, rollouts)
    old, new = before.conditions[0], after.conditions[0]
    assert report.conditions[0].event.startswith("no update")
    assert same(new.controller, old.controller)
    assert same(new.previous, old.previous)
    assert new.sampled_cost == 1e6
    assert new.policy_trial_in is None


def test_an_asynchronous_update_does_not_ask_for_a_trial():
    """Its conditions are sampled by their own controllers, whatever they are told."""
    agent, start = begin(MDGPS)
    state, _, _ = advance(MDGPS, agent, start, 2)
    rollouts = sample(agent, state.conditions, 2)
    policy = PolicyState(policy=pushing_away(rollouts))
    condition = replace(state.conditions[0], policy_trial_in=None)
    for it in range(4):
        update = MDGPS.update_condition(
            condition, rollouts[0], state.costs[0], policy, (0, 2 + it, 0), Serial()
        )
        condition = update.state
        assert "linearised policy" in condition.report.event
        assert condition.policy_trial_in is None
        rollouts = sample(agent, (condition, state.conditions[1]), 3 + it)


# --- whole runs


@dataclass(frozen=True, kw_only=True)
class CliffConfig(PointMassConfig):
    """Whoever crosses `edge` to the left is hit by a ball: as sudden as a contact."""

    edge: float = 0.3
    kick: float = 25.0

    def build(self, threads=1):
        return CliffAgent(self)


class CliffAgent(PointMassAgent):
    def step(self, x, u):
        y = super().step(x, u)
        over = (x[..., 0] >= self.config.edge) & (y[..., 0] < self.config.edge)
        y[..., 3] += np.where(over, self.config.kick, 0.0)
        return y


def conditions_of(event):
    """The numbers in `conditions 0-2, 5: ...`."""
    parts = event.partition(":")[0].split(" ", 1)[1].split(", ")
    ends = [[int(n) for n in part.split("-")] for part in parts]
    return {m for e in ends for m in range(e[0], e[-1] + 1)}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_run_over_a_cliff_recovers(seed):
    agent_config = CliffConfig(T=40, dt=0.05, starts=((1.0, 1.0), (1.0, -0.5)))
    experiment = Experiment(
        agent=agent_config,
        cost=COST,
        initial=HOLD,
        algorithm=TrajOptConfig(step=StepConfig(kl_max=3.0)),
        samples=5,
        iterations=12,
        seed=seed,
    )
    limit = GuardConfig().explosion
    explosions, last, sound = 0, None, {}
    for report in run(experiment):
        for m, c in enumerate(report.report.conditions):
            state = report.state.conditions[m]
            if last is not None and c.cost_mean - last[m].sampled_cost > limit * last[m].cost_scale:
                explosions += 1
                assert "back to an earlier controller" in c.event
                back = [e for e in report.events if "back to an earlier controller" in e]
                assert any(m in conditions_of(event) for event in back)
                assert same(state.controller, last[m].previous)
                assert (
                    state.step_mult < last[m].step_mult or state.step_mult == StepConfig().min_mult
                )
            else:
                sound.setdefault(m, []).append(c.cost_mean)
        last = report.state.conditions
    assert explosions >= 2  # the agent does what this test needs
    for m, costs in sound.items():
        assert len(costs) >= 6
        assert last[m].sampled_cost < costs[0]  # of the controller that is kept


# --- against what a setback is measured


def test_many_small_rises_do_not_pass():
    """A cost that creeps upwards, each time within its noise: back to the best controller."""
    agent, start = begin(TRAJOPT)
    state, _, _ = advance(TRAJOPT, agent, start, 4)
    best = state.conditions[0]
    for against in ("best", "last"):
        guard = replace(GuardConfig(), against=against)
        condition, rejected = best, []
        rollouts = sample(agent, state.conditions, state.iteration)[0]
        true = stages.expand_cost(COST, rollouts)
        scale = np.abs(true.l).sum(axis=1).mean()
        for k in range(1, 9):
            worse = replace(true, l=true.l + 0.015 * k * scale / true.l.shape[1])
            check = stages.assess_samples(condition, rollouts, worse, replace(guard, setback=1e-9))
            rejected.append(check.rejected)
            if not check.rejected:
                condition = stages._with_sampled(condition, check)
        assert any(rejected) == (against == "best"), against
        assert not rejected[0]


def test_a_better_controller_becomes_the_one_to_go_back_to():
    agent, start = begin(TRAJOPT)
    state = start
    least = [math.inf, math.inf]
    for _ in range(5):
        before = state
        state, reports, _ = advance(TRAJOPT, agent, state, 1)
        for m, c in enumerate(state.conditions):
            cost = reports[0].conditions[m].cost_mean
            if cost < least[m]:
                least[m] = cost
                assert same(c.previous, before.conditions[m].controller)
            assert c.sampled_cost == pytest.approx(least[m])
            assert c.last_cost == cost
