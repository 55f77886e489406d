"""BADMM's own steps against recorded outputs and direct minimisation."""

import math
from dataclasses import replace

import numpy as np
import pytest
from algorithm_problems import FIXTURES, Reward, advance, begin, digest, sample
from scipy.optimize import minimize

from gps.algorithms import BADMMConfig, StepConfig, badmm
from gps.algorithms.badmm import Duals
from gps.algorithms.step_size import adjust_steps, improvement_ratio, new_multiplier
from gps.control import dual
from gps.control.dual import DualConfig
from gps.errors import ConfigError
from gps.policies import MLPConfig, TrainingConfig
from gps.types import Gaussian, LinearDynamics, LinearGaussianController, QuadraticCost

SMALL = BADMMConfig(
    network=MLPConfig(hidden=(16,)), training=TrainingConfig(steps=300), inner=2, dual_rate=0.1
)


@pytest.fixture(scope="module")
def recorded():
    """One recorded dual step: arrays, the new controller, the one the KL is of, the duals."""
    d = dict(np.load(FIXTURES / "badmm_dual_step.npz"))
    pair = [
        LinearGaussianController(
            d[f"{n}_K"], d[f"{n}_k"], d[f"{n}_chol_pol_covar"].transpose(0, 2, 1)
        )
        for n in ("traj", "curtraj")
    ]
    return d, *pair, Duals(d["lambda_k_in"], d["pol_wt_in"], d["prev_kl"])


# --- the recorded outputs


def test_the_dual_step(recorded):
    d, new, _, duals = recorded
    config = replace(SMALL, dual_rate=float(d["policy_dual_rate"]))
    lam = badmm.new_multipliers(d["X"], new, d["pol_mu"], duals, config)
    np.testing.assert_allclose(lam, d["lambda_k_out"], rtol=1e-9, atol=1e-12)
    assert np.abs(lam - d["lambda_k_in"]).max() > 1e-3


def test_the_kl_from_the_policy(recorded):
    d, _, sampled, _ = recorded
    near = badmm.kl_from_policy(d["X"], sampled, d["pol_mu"], np.diag(d["pol_sig_diag"]))
    np.testing.assert_allclose(near, d["kl_m"], rtol=1e-9, atol=1e-9)


def test_the_weights_by_deviation(recorded):
    d, _, _, duals = recorded
    config = replace(SMALL, weight_lower=1.0, weight_upper=0.5, weight_range=(1e-12, 1e12))
    w = badmm.new_weights(duals, d["kl_m"], config, 0)
    np.testing.assert_allclose(w, d["pol_wt_out"], rtol=1e-12)
    assert len(np.unique(w / d["pol_wt_in"])) == 3  # less, more, and as before


def test_the_step_rule():
    """Of the expected costs and the weighted KL together, as the reference has it."""
    d = np.load(FIXTURES / "step_rule_badmm.npz")
    total = {
        name: d[f"{name}_cost"].sum() + (d[f"{name}_kl"] * d["pol_wt"]).sum()
        for name in ("prev", "pred", "act")
    }
    predicted, actual = total["prev"] - total["pred"], total["prev"] - total["act"]
    config = StepConfig(min_mult=0.01, max_mult=float(d["step_mult_out"]), growth=5.0)
    mult = new_multiplier(float(d["step_mult_in"]), improvement_ratio(predicted, actual), config)
    assert mult == pytest.approx(float(d["step_mult_out"]))


# --- each step minimises what it should


def lagrangian(theta, cost, policy, duals, nx, nu):
    """E_p[l - lambda'u] + w KL(p || pi) of one step with a known state, less constants."""
    x, k, log_std = np.ones(nx), theta[:nu], theta[nu:]
    Sigma = np.diag(np.exp(2 * log_std))
    z = np.concatenate([x, k])
    C_uu = cost.C[0][nx:, nx:]
    l = 0.5 * z @ cost.C[0] @ z + cost.c[0] @ z + 0.5 * np.trace(C_uu @ Sigma)  # noqa: E741
    P = policy.precision[0]
    gap = k - (policy.K[0] @ x + policy.k[0])
    kl = 0.5 * (np.trace(P @ Sigma) - 2 * log_std.sum() + gap @ P @ gap)
    return l - duals.lam[0] @ k + duals.weight[0] * kl


def test_the_c_step_minimises_the_lagrangian():
    """One step, diagonal Hessians, a bound that does not bind, against a direct search."""
    rng = np.random.default_rng(0)
    nx, nu = 2, 2
    C = np.zeros((1, 4, 4))
    C[0, 2:, 2:] = np.diag([1.5, 0.7])
    C[0, :2, :2] = np.eye(2)
    cost = QuadraticCost(C, rng.normal(size=(1, 4)), np.zeros(1))
    policy = LinearGaussianController(
        rng.normal(size=(1, nu, nx)), rng.normal(size=(1, nu)), np.diag([0.5, 1.2])[None]
    )
    duals = Duals(rng.normal(size=(1, nu)), np.array([0.8]))
    empty = LinearDynamics(np.zeros((0, nx, 4)), np.zeros((0, nx)), np.zeros((0, nx, nx)))
    start = Gaussian(np.ones(nx), np.zeros((nx, nx)))
    objective, weight = badmm.surrogate(cost, policy, duals)
    far = replace(policy, K=0 * policy.K, k=0 * policy.k, chol=np.eye(2)[None])
    found = dual.minimise(
        empty, objective, start, far, 1e3, DualConfig(), entropy_weight=weight
    ).controller
    args = (cost, policy, duals, nx, nu)
    best = minimize(lagrangian, np.zeros(2 * nu), args=args, tol=1e-12).x
    np.testing.assert_allclose(found.mean_action(np.ones((1, nx)))[0], best[:nu], atol=1e-5)
    np.testing.assert_allclose(found.Sigma[0], np.diag(np.exp(2 * best[nu:])), atol=1e-5)


def test_the_s_steps_targets_minimise_the_lagrangian():
    rng = np.random.default_rng(0)
    agent, state = begin(SMALL)
    rollouts = sample(agent, SMALL.sampling(state), 0)[0]
    T = agent.T
    duals = Duals(rng.normal(size=(T, 2)), rng.uniform(0.1, 2.0, size=T))
    condition = state.conditions[0]
    data = badmm._targets(rollouts, condition, duals)
    u = data.target.reshape(-1, T, 2)
    gap = u - condition.controller.mean_action(rollouts.X)
    pull = np.einsum("tij,ntj->nti", condition.controller.precision, gap)
    np.testing.assert_allclose(duals.weight[:, None] * pull, -np.tile(duals.lam, (5, 1, 1)))
    np.testing.assert_array_equal(data.weight.reshape(5, T)[2], duals.weight)
    part, first = badmm._targets(rollouts, condition, duals, share=0.7), math.ceil(0.7 * T)
    np.testing.assert_array_equal(part.target.reshape(5, first, 2), u[:, :first])
    np.testing.assert_array_equal(part.weight.reshape(5, first)[2], duals.weight[:first])


def test_the_dual_step_draws_both_together():
    """Controllers and policy end nearer to each other than without duals and growing weights."""
    apart = {}
    for name, config in {
        "tied": replace(SMALL, weight=0.1, weight_rule="fixed", weight_step=0.5),
        "loose": replace(SMALL, weight=1e-5, weight_rule="fixed", weight_step=0.0, dual_rate=0.0),
    }.items():
        agent, state = begin(config)
        state, _, rollouts = advance(config, agent, state, 5)
        policy = state.policy.policy
        gaps = [
            np.abs(c.controller.mean_action(r.X) - policy.mean(r.obs)).mean()
            for c, r in zip(state.conditions, rollouts, strict=True)
        ]
        apart[name] = np.mean(gaps)
    assert apart["tied"] < 0.7 * apart["loose"]


# --- weight rules, memory, bad input


def test_weight_rules():
    T = 4
    near, old = np.array([1.0, 2.0, 0.7, 0.9]), np.array([1.0, 1.0, 1.0, 1.0])
    duals = Duals(np.zeros((T, 1)), np.full(T, 0.2), old)

    def weights(rule, **named):
        return badmm.new_weights(duals, near, replace(SMALL, weight_rule=rule, **named), 1)

    np.testing.assert_allclose(weights("fixed", weight_step=0.1), 0.3)
    np.testing.assert_allclose(weights("fixed", weight_step=(0.1, 0.4, 9.0)), 0.6)
    np.testing.assert_allclose(weights("gradient", weight_step=0.1), 0.2 + 0.1 * near)
    np.testing.assert_allclose(weights("change"), [0.4, 0.4, 0.1, 0.2])
    np.testing.assert_allclose(
        weights("change", weight=0.2, weight_range=(0.15, 0.3)), [0.3, 0.3, 0.15, 0.2]
    )
    first = replace(duals, kl=None)
    np.testing.assert_array_equal(
        badmm.new_weights(first, near, replace(SMALL, weight_rule="change"), 0), 0.2
    )


def test_duals_live_from_one_iteration_to_the_next():
    agent, state = begin(SMALL)
    one, _, _ = advance(SMALL, agent, state, 1)
    two, _, _ = advance(SMALL, agent, one, 1)
    first, second = one.conditions[0].algorithm_state, two.conditions[0].algorithm_state
    assert np.abs(first.lam).max() > 0
    assert first.kl is not None
    assert digest(first) != digest(second)
    # what is remembered is used: with other duals the same rollouts give another controller
    rollouts = sample(agent, SMALL.sampling(one), 1)
    fresh = replace(one, conditions=tuple(replace(c, algorithm_state=None) for c in one.conditions))
    a, b = (SMALL.iterate(s, rollouts)[0] for s in (one, fresh))
    assert digest(a.conditions[0].controller) != digest(b.conditions[0].controller)


def test_a_cost_without_minimum_keeps_the_controller_and_the_duals():
    agent, state = begin(SMALL, cost=Reward())
    new, report, _ = advance(replace(SMALL, dual=DualConfig(max_trials=1)), agent, state, 1)
    for m, c in enumerate(new.conditions):
        assert "no update" in report[0].conditions[m].event
        assert digest(c.controller) == digest(state.conditions[m].controller)
        assert type(c.algorithm_state) is Duals


def test_an_update_that_pays_for_agreement_leaves_the_step():
    agent, state = begin(SMALL)
    check = badmm.stages.assess_own(
        state.conditions[0],
        (rollouts := sample(agent, SMALL.sampling(state), 0)[0]),
        (cost := badmm.stages.expand_cost(state.costs[0], rollouts)),
        badmm.stages.fit_dynamics(rollouts, state.conditions[0], SMALL.dynamics, 0, 0),
        SMALL.guard,
        SMALL.step,
    )
    assert np.isfinite(cost.l).all()
    step = StepConfig(initial_mult=1.0, max_mult=3.0)
    dearer = replace(check, updated=True, predicts_improvement=False, improvement_ratio=-4.0)
    cheaper = replace(check, updated=True, predicts_improvement=True, improvement_ratio=0.9)
    rejected = replace(cheaper, rejected=True)
    mults = adjust_steps([dearer, cheaper, rejected], step, SMALL.guard, if_predicted=True)
    assert mults == [1.0, 2.0, 0.5]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"inner": 0}, "inner must be a whole number of at least 1, got 0"),
        ({"weight_rule": "wild"}, "weight_rule must be 'fixed', 'gradient', .*, got 'wild'"),
        ({"weight": 0.0}, "weight must be a number above 0"),
        ({"weight": 100.0}, "weight_range"),
        ({"weight_decrease": 1.5}, "weight_decrease must be a number above 0 and below 1"),
        ({"dual_rate": -1.0}, "dual_rate"),
        ({"weight_step": ()}, "weight_step"),
        ({"weight_step": float("nan")}, "weight_step"),
    ],
)
def test_bad_settings_are_named(change, match):
    with pytest.raises(ConfigError, match=match):
        BADMMConfig(**change)
