import dataclasses
import logging
import pickle
import re

import numpy as np
import pytest
from control_problems import make_controller, make_problem
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import optimize

from gps.control import DualConfig, dual, kl_per_step, lqr, penalised
from gps.control.dual import _root, minimise, minimise_per_step
from gps.errors import ConfigError, DualError, GPSError, NonFiniteError, ShapeError
from gps.types import Gaussian, QuadraticCost


def solve(problem, eta):
    dynamics, cost, start, previous = problem
    c = lqr.backward(dynamics, penalised(cost, previous, eta))
    m = lqr.forward(dynamics, c, start)
    return c, m, kl_per_step(c, previous, m.mean, m.cov)


def test_kl_falls_and_cost_rises_with_eta(problem):
    etas = np.geomspace(1e-3, 1e4, 15)
    kls, costs = [], []
    for eta in etas:
        _, m, kl = solve(problem, eta)
        kls.append(kl.sum())
        costs.append(lqr.expected_cost(problem[1], m).sum())
    assert np.all(np.diff(kls) < 0)
    assert np.all(np.diff(costs) > 0)
    assert kls[-1] < 0.1 < 10 < kls[0]


@pytest.mark.parametrize("kl_max", [1e-6, 0.01, 0.5, 3.0])
@pytest.mark.parametrize("eta", [1e-8, 1.0, 1e9])
def test_reaches_the_bound(problem, kl_max, eta):
    found = minimise(*problem, kl_max, eta=eta)
    assert found.converged
    assert found.active
    assert abs(found.kl.sum() - 12 * kl_max) <= 0.01 * 12 * kl_max
    assert len(found.trace) < 25
    # the result is what its eta gives, and the trace ends with it
    c, m, kl = solve(problem, found.eta)
    assert_allclose(found.controller.K, c.K, rtol=1e-8, atol=1e-10)
    assert_allclose(found.controller.chol, c.chol, rtol=1e-8, atol=1e-10)
    assert_allclose(found.marginals.cov, m.cov, rtol=1e-7, atol=1e-9)
    assert_allclose(found.kl, kl, rtol=1e-6, atol=1e-12)
    assert_allclose(found.trace[-1], [found.eta, kl.sum()], rtol=1e-6)


def test_tight_tolerance_and_warm_start(problem):
    cold = minimise(*problem, 0.2, DualConfig(tol=1e-10))
    assert_allclose(cold.kl.sum(), 2.4, rtol=1e-10)
    warm = minimise(*problem, 0.2, DualConfig(tol=1e-10), eta=cold.eta)
    assert len(warm.trace) == 1 < len(cold.trace)


def test_beats_other_controllers_within_the_bound(rng, problem):
    dynamics, cost, start, previous = problem
    found = minimise(*problem, 0.3, DualConfig(tol=1e-6))
    best = lqr.expected_cost(cost, found.marginals).sum()
    tried = 0
    for size in np.geomspace(1e-4, 1e-1, 60):
        c = dataclasses.replace(
            found.controller,
            K=found.controller.K + size * rng.normal(size=(12, 2, 4)),
            k=found.controller.k + size * rng.normal(size=(12, 2)),
        )
        m = lqr.forward(dynamics, c, start)
        excess = kl_per_step(c, previous, m.mean, m.cov).sum() - found.kl.sum()
        # by duality every other controller pays at least -eta per nat beyond the bound
        assert lqr.expected_cost(cost, m).sum() >= best - found.eta * excess - 1e-9 * abs(best)
        tried += 1
    assert tried == 60


def test_inactive_constraint_ends_at_the_floor(problem):
    dynamics, cost, start, _ = problem
    optimum = lqr.backward(dynamics, cost)
    found = minimise(dynamics, cost, start, optimum, 1.0, DualConfig(entropy_weight=1.0))
    assert found.converged
    assert not found.active
    unit = max(np.abs(cost.C).max(), np.abs(cost.c).max())
    assert found.eta == pytest.approx(1e-16 * unit)
    assert len(found.trace) < 15
    assert_allclose(found.controller.K, optimum.K, rtol=1e-6, atol=1e-9)
    assert_allclose(found.controller.chol, optimum.chol, rtol=1e-6)
    loose = minimise(*problem, 1e6)
    assert not loose.active


@pytest.mark.parametrize("unit", [1e-3, 1e-6])
def test_the_unit_of_the_actions_does_not_end_the_search(problem, unit):
    """Tiny actions have coefficients that are many orders above those of the states."""
    dynamics, cost, start, previous = problem
    nx, nu = dynamics.nx, dynamics.nu
    S = np.concatenate([np.ones(nx), np.full(nu, 1 / unit)])
    other = (
        dataclasses.replace(dynamics, F=dynamics.F * S),
        QuadraticCost(cost.C * np.outer(S, S), cost.c * S, cost.c0),
        start,
        dataclasses.replace(
            previous, K=previous.K * unit, k=previous.k * unit, chol=previous.chol * unit
        ),
    )
    want, found = minimise(*problem, 0.3), minimise(*other, 0.3)
    assert found.converged
    assert found.active
    assert_allclose(found.controller.k, unit * want.controller.k, rtol=0.05, atol=0.02 * unit)


def test_a_floor_that_stops_the_search_is_no_inactive_constraint(problem):
    found = minimise(*problem, 0.5, DualConfig(eta_min=100.0))
    assert found.kl.sum() < 0.98 * 0.5 * problem[0].T
    assert found.active
    assert not found.converged
    assert "lower DualConfig.eta_min" in found.reason


def test_scaling_the_cost_scales_eta(problem):
    dynamics, cost, start, previous = problem
    base = minimise(*problem, 0.1, DualConfig(tol=1e-8))
    for s in (1e-30, 1e-12, 1e6, 1e40):
        scaled = QuadraticCost(s * cost.C, s * cost.c, s * cost.c0)
        found = minimise(dynamics, scaled, start, previous, 0.1, DualConfig(tol=1e-8))
        assert_allclose(found.eta, s * base.eta, rtol=1e-6)
        assert_allclose(found.controller.K, base.controller.K, rtol=1e-6, atol=1e-8)


def test_kl_penalty_per_step_is_a_cost_with_entropy(rng, problem):
    """E[l] + sum w_t KL_t(p || q) + eta KL(p || previous): no neighbour does better."""
    dynamics, cost, start, previous = problem
    q, w = make_controller(rng, 12, 4, 2), np.linspace(0.1, 2.0, 12)
    zero = QuadraticCost(0 * cost.C, 0 * cost.c, 0 * cost.c0)
    pull = penalised(zero, q, 1.0)
    total = QuadraticCost(cost.C + w[:, None, None] * pull.C, cost.c + w[:, None] * pull.c, cost.c0)
    found = minimise(dynamics, total, start, previous, 0.2, entropy_weight=w)
    assert found.converged

    def objective(c):
        m = lqr.forward(dynamics, c, start)
        near = kl_per_step(c, q, m.mean, m.cov) @ w
        near += found.eta * kl_per_step(c, previous, m.mean, m.cov).sum()
        return lqr.expected_cost(cost, m).sum() + near

    best = objective(found.controller)
    for name in ("K", "k", "chol"):
        base = getattr(found.controller, name)
        for _ in range(10):
            bump = 1e-3 * rng.normal(size=base.shape)
            bump = np.tril(bump) if name == "chol" else bump
            assert objective(dataclasses.replace(found.controller, **{name: base + bump})) > best


@pytest.mark.parametrize("t", [0, 6, 11])
def test_indefinite_step_raises_eta(problem, t):
    dynamics, cost, start, previous = problem
    C = cost.C.copy()
    C[t] -= 200 * np.eye(6)
    bad = dataclasses.replace(cost, C=C)
    found = minimise(dynamics, bad, start, previous, 0.1, eta=1e-3)
    assert np.isnan(found.trace[0, 1])
    assert found.converged
    assert found.eta > 1
    assert np.isfinite(found.controller.K).all()
    each = minimise_per_step(dynamics, bad, start, previous, 0.1, eta=1e-3)
    assert (each.kl <= 0.101).all()
    assert np.isfinite(each.controller.K).all()


@pytest.mark.parametrize("t", [0, 6, 11])
def test_at_the_ceiling_the_previous_controller_stays_and_the_log_names_the_step(
    problem, t, caplog
):
    dynamics, cost, start, previous = problem
    C = cost.C.copy()
    C[t, 4:, 4:] -= 1e5 * np.eye(2)
    bad = dataclasses.replace(cost, C=C)
    config = DualConfig(eta_min=1e-12, eta_max=1e-9)
    with caplog.at_level(logging.DEBUG, "gps.control.dual"):
        found = minimise(dynamics, bad, start, previous, 0.1, config)
    assert re.search(rf"at t={t} \(smallest eigenvalue -.*raise eta_max", caplog.text)
    assert not found.converged
    assert found.kl.sum() == 0.0
    for name in ("K", "k", "chol"):
        np.testing.assert_array_equal(getattr(found.controller, name), getattr(previous, name))
    marginals = lqr.forward(dynamics, previous, start)
    assert_allclose(found.marginals.cov, marginals.cov, rtol=1e-12)
    # the search per step needs no ceiling
    each = minimise_per_step(dynamics, bad, start, previous, 0.1, config)
    assert each.converged
    assert each.eta[t] > 1e4


@pytest.mark.parametrize("search", [minimise, minimise_per_step])
def test_explosion_is_a_named_error(problem, search):
    dynamics, cost, start, previous = problem
    wild = dataclasses.replace(dynamics, F=dynamics.F * 1e60)
    with pytest.raises(DualError, match=r"overflows at t=|positive definite at t="):
        search(wild, cost, start, previous, 0.1)


@pytest.mark.parametrize("search", [minimise, minimise_per_step])
def test_explosion_at_a_low_eta_raises_it(rng, search):
    """Far from the previous controller the one-step cost overflows, near it nothing does."""
    dynamics, _, start, previous = make_problem(rng, T=1)
    c = np.zeros((1, 6))
    c[0, 4:] = 1e160
    cost = QuadraticCost(np.zeros((1, 6, 6)), c, np.zeros(1))
    config = DualConfig(max_trials=200, eta_min=1e-170)
    found = search(dynamics, cost, start, previous, 0.1, config, eta=1.0)
    if search is minimise:
        assert np.isnan(found.trace[0, 1])
    assert found.converged
    assert found.eta > 1e150


@pytest.mark.parametrize("trials", [1, 2, 3])
def test_too_few_trials_give_the_best_feasible_or_the_previous_one(problem, trials, caplog):
    config = DualConfig(max_trials=trials, tol=1e-9)
    with caplog.at_level(logging.DEBUG, "gps.control.dual"):
        found = minimise(*problem, 0.05, config, eta=1e4)
    assert not found.converged
    assert found.kl.sum() <= 0.05 * 12
    assert "raise DualConfig.max_trials" in caplog.text
    assert len(found.trace) == trials
    assert found.eta == found.trace[found.trace[:, 1] <= 0.05 * 12, 0].min()
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "gps.control.dual"):
        stays = minimise(*problem, 1e-9, DualConfig(max_trials=1), eta=1e-3)
    assert "the previous controller stays" in caplog.text
    assert "max_trials" in caplog.text
    np.testing.assert_array_equal(stays.controller.K, problem[3].K)
    assert not stays.converged
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "gps.control.per_step"):
        each = minimise_per_step(*problem, 0.05, config, eta=1e4)
    assert not each.converged
    assert (each.kl <= 0.05 * (1 + 1e-9)).all()
    assert "raise DualConfig.max_trials" in caplog.text
    assert len(each.trace) == trials
    dynamics, cost, start, previous = problem
    before = lqr.expected_cost(cost, lqr.forward(dynamics, previous, start)).sum()
    assert lqr.expected_cost(cost, each.marginals).sum() < before


@pytest.mark.parametrize("kl_max", [1e-4, 0.05, 1.0])
@pytest.mark.parametrize("eta", [1e-6, 1.0, 1e6])
def test_per_step_reaches_every_bound(problem, kl_max, eta):
    bounds = kl_max * np.linspace(0.5, 2.0, 12)
    found = minimise_per_step(*problem, bounds, eta=eta)
    assert found.converged
    assert found.active.all()
    assert_allclose(found.kl, bounds, rtol=0.01)
    dynamics, cost, start, previous = problem
    c = dual.backward_per_step(dynamics, cost, previous, found.eta, kl_under="new")
    m = lqr.forward(dynamics, c, start)
    assert_allclose(found.controller.K, c.K, rtol=1e-12)
    assert_allclose(found.kl, kl_per_step(c, previous, m.mean, m.cov), rtol=1e-10)


def test_per_step_and_whole_agree_on_one_step(rng):
    problem = make_problem(rng, T=1)
    tight = DualConfig(tol=1e-9)
    whole, each = minimise(*problem, 0.1, tight), minimise_per_step(*problem, 0.1, tight)
    assert_allclose(each.eta[0], whole.eta, rtol=1e-6)
    assert_allclose(each.controller.K, whole.controller.K, rtol=1e-6)


def test_per_step_respects_inactive_constraints(problem):
    """Steps whose action costs nothing and changes nothing stay as they were; the rest converge."""
    dynamics, cost, start, previous = problem
    C, c, F = cost.C.copy(), cost.c.copy(), dynamics.F.copy()
    for t in (3, 11):
        C[t, 4:], C[t, :, 4:], c[t, 4:] = 0, 0, 0
    F[3, :, 4:] = 0
    found = minimise_per_step(
        dataclasses.replace(dynamics, F=F), QuadraticCost(C, c, cost.c0), start, previous, 0.1
    )
    assert found.converged
    np.testing.assert_array_equal(np.flatnonzero(~found.active), [3, 11])
    assert_allclose(found.kl[[3, 11]], 0, atol=1e-12)
    assert_allclose(found.kl[found.active], 0.1, rtol=0.01)
    assert len(found.trace) < 40


def test_per_step_increments_do_not_compound(problem):
    """A start that is too low at one step leaves the other steps' etas alone."""
    dynamics, cost, _, previous = problem
    C = cost.C.copy()
    C[0, 4:, 4:] -= 1e3 * np.eye(2)
    eta = np.full(12, 0.5)
    eta[0] = 1e6
    before = eta.copy()
    dual.backward_per_step(dynamics, dataclasses.replace(cost, C=C), previous, eta)
    np.testing.assert_array_equal(eta, before)
    eta[0] = 0.5
    with pytest.raises(GPSError, match="t=0"):
        dual.backward_per_step(dynamics, dataclasses.replace(cost, C=C), previous, eta)
    np.testing.assert_array_equal(eta, 0.5)


# --- whose states the KL is averaged over


def start_marginals(problem):
    dynamics, _, start, previous = problem
    m = lqr.forward(dynamics, previous, start)
    return m.mean, m.cov


@pytest.mark.parametrize("kl_max", [0.01, 0.5])
@pytest.mark.parametrize("eta", [1e-4, 1e4])
def test_kl_under_the_previous_controller(problem, kl_max, eta):
    """By `kl_per_step` with the marginals of the previous controller."""
    dynamics, cost, start, previous = problem
    config = DualConfig(kl_under="previous")
    found = minimise(*problem, kl_max, config, eta=eta)
    kl = kl_per_step(found.controller, previous, *start_marginals(problem))
    assert found.converged
    assert_allclose(found.kl, kl, rtol=1e-10)
    assert abs(kl.sum() - 12 * kl_max) <= 0.01 * 12 * kl_max
    # it is the controller that its eta gives, with marginals of its own
    c = lqr.backward(dynamics, penalised(cost, previous, found.eta))
    assert_allclose(found.controller.K, c.K, rtol=1e-8, atol=1e-10)
    own = lqr.forward(dynamics, found.controller, start)
    assert_allclose(found.marginals.cov, own.cov, rtol=1e-12, atol=1e-14)
    # and neither the default nor the same as under its own states
    plain = minimise(*problem, kl_max, eta=eta)
    assert abs(plain.eta / found.eta - 1) > 0.02
    other = kl_per_step(found.controller, previous, own.mean, own.cov).sum()
    assert abs(other / (12 * kl_max) - 1) > 0.02

    bounds = kl_max * np.linspace(0.5, 2.0, 12)
    each = minimise_per_step(*problem, bounds, config, eta=eta)
    kl = kl_per_step(each.controller, previous, *start_marginals(problem))
    assert each.converged
    assert_allclose(each.kl, kl, rtol=1e-10)
    assert_allclose(kl, bounds, rtol=0.01)
    c = dual.backward_per_step(dynamics, cost, previous, each.eta)
    assert_allclose(each.controller.K, c.K, rtol=1e-12)
    assert np.abs(minimise_per_step(*problem, bounds, eta=eta).eta / each.eta - 1).max() > 0.02


def test_under_the_previous_states_steps_do_not_disturb_each_other():
    """Earlier steps move no states that count, so that one pass solves them all."""
    for seed in range(8):
        problem = make_problem(np.random.default_rng(seed))
        found = minimise_per_step(*problem, 0.5, DualConfig(kl_under="previous", tol=1e-9))
        assert found.converged
        assert len(found.trace) == 1
        other = minimise_per_step(*problem, 0.5)
        assert other.converged
        assert 1 < len(other.trace) < 10

    dynamics, cost, _, previous = problem
    eta = found.eta.copy()
    eta[:4] *= 10.0
    c = dual.backward_per_step(dynamics, cost, previous, eta)
    kl = kl_per_step(c, previous, *start_marginals(problem))
    assert_allclose(kl[4:], found.kl[4:], rtol=1e-9)
    assert (kl[:4] < 0.2 * found.kl[:4]).all()


@pytest.mark.parametrize("search", [minimise, minimise_per_step])
def test_a_previous_controller_that_explodes_has_no_marginals(problem, search):
    dynamics, cost, start, previous = problem
    F = dynamics.F.copy()
    F[3] *= 1e200
    wild = dataclasses.replace(dynamics, F=F)
    with pytest.raises(NonFiniteError, match=r"`previous` overflow at t=4.*kl_under='new'"):
        search(wild, cost, start, previous, 0.1, DualConfig(kl_under="previous"))


# --- entropy: the Lagrangian minimised by a general solver


def tiny_lagrangian(problem, eta, weight):
    """E[cost] + sum_t eta_t KL_t - w_t H_t of (K, k, log-diagonal factor), by hand for nx = 1."""
    dynamics, cost, start, old = problem
    T, nu = old.T, old.nu
    tril = np.tril_indices(nu)

    def unpack(p):
        rows = p.reshape(T, -1)
        chol = np.zeros((T, nu, nu))
        chol[:, *tril] = rows[:, 2 * nu :]
        chol[:, range(nu), range(nu)] = np.exp(chol[:, range(nu), range(nu)])
        return rows[:, :nu], rows[:, nu : 2 * nu], chol

    def value(p):
        K, k, chol = unpack(p)
        m, S, total = start.mean[0], start.cov[0, 0], 0.0
        for t in range(T):
            Sigma, P = chol[t] @ chol[t].T, np.linalg.inv(old.Sigma[t])
            mean = np.concatenate(([m], K[t] * m + k[t]))
            G = np.vstack((np.ones((1, 1)), K[t][:, None]))
            cov = S * G @ G.T
            cov[1:, 1:] += Sigma
            C, c = cost.C[t], cost.c[t]
            total += 0.5 * np.trace(C @ (cov + np.outer(mean, mean))) + c @ mean
            logdet = np.linalg.slogdet(Sigma)[1]
            dK, dk = old.K[t][:, 0] - K[t], old.k[t] - k[t]
            kl = 0.5 * (
                np.linalg.slogdet(old.Sigma[t])[1] - logdet - nu + np.trace(P @ Sigma)
                + (dK * m + dk) @ P @ (dK * m + dk) + S * dK @ P @ dK
            )  # fmt: skip
            entropy = 0.5 * (logdet + nu * np.log(2 * np.pi * np.e))
            total += eta[t] * kl - weight[t] * entropy
            if t + 1 < T:
                F = dynamics.F[t, 0]
                m, S = F @ mean + dynamics.f[t, 0], F @ cov @ F + dynamics.W[t, 0, 0]
        return total

    first = np.concatenate([np.zeros((T, 2 * nu)), np.zeros((T, len(tril[0])))], axis=1).ravel()
    best = optimize.minimize(value, first, method="BFGS", options={"gtol": 1e-9, "maxiter": 5000})
    return unpack(best.x), best.fun


@pytest.mark.parametrize(("T", "nu"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("weight", [0.0, 0.6, np.array([2.0, 0.1])])
def test_the_entropy_weight_against_a_general_solver(T, nu, weight):
    problem = make_problem(np.random.default_rng(T + nu), T, 1, nu)
    w = np.broadcast_to(weight, 2)[:T]
    found = minimise(*problem, 0.1, DualConfig(tol=1e-9), entropy_weight=w)
    assert found.converged
    assert found.active
    assert_allclose(found.kl.sum(), 0.1 * T, rtol=1e-8)
    (K, k, chol), _ = tiny_lagrangian(problem, np.full(T, found.eta), w)
    assert_allclose(found.controller.K[:, :, 0], K, atol=2e-4)
    assert_allclose(found.controller.k, k, atol=2e-4)
    assert_allclose(found.controller.Sigma, chol @ chol.transpose(0, 2, 1), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("nu", [1, 2])
@pytest.mark.parametrize("kl_under", ["new", "previous"])
def test_the_entropy_weight_per_step_against_a_general_solver(nu, kl_under):
    """The last step is a problem of its own; of the first, the rest of the cost is the value."""
    w = np.array([0.3, 1.5])
    problem = make_problem(np.random.default_rng(nu), 2, 1, nu)
    dynamics, cost, start, old = problem
    config = DualConfig(tol=1e-6, kl_under=kl_under)
    found = minimise_per_step(*problem, [0.1, 0.7], config, entropy_weight=w)
    assert found.converged
    c = dual.backward_per_step(dynamics, cost, old, found.eta, w, kl_under)
    assert_allclose(found.controller.chol, c.chol, rtol=1e-12)
    if kl_under == "new":  # the whole
        (K, k, chol), _ = tiny_lagrangian(problem, found.eta, w)
        assert_allclose(found.controller.K[:, :, 0], K, atol=2e-4)
        assert_allclose(found.controller.k, k, atol=2e-4)
        assert_allclose(found.controller.Sigma, chol @ chol.transpose(0, 2, 1), rtol=2e-3)
        return
    # step 1 alone, from the states that step 0 leaves
    last = (
        dataclasses.replace(dynamics, F=dynamics.F[:0], f=dynamics.f[:0], W=dynamics.W[:0]),
        QuadraticCost(cost.C[1:], cost.c[1:], cost.c0[1:]),
        Gaussian(found.marginals.mean[1, :1], found.marginals.cov[1, :1, :1]),
        dataclasses.replace(old, K=old.K[1:], k=old.k[1:], chol=old.chol[1:]),
    )
    (K, k, chol), _ = tiny_lagrangian(last, found.eta[1:], w[1:])
    assert_allclose(found.controller.K[1:, :, 0], K, atol=2e-4)
    assert_allclose(found.controller.k[1:], k, atol=2e-4)
    assert_allclose(found.controller.Sigma[1:], chol @ chol.transpose(0, 2, 1), rtol=2e-3)
    # step 0, with step 1 as it was found: no weight on its KL, so that only its cost counts
    A, B = dynamics.F[0, :, :1], dynamics.F[0, :, 1:]
    K1, k1 = found.controller.K[1], found.controller.k[1]
    G, g = np.vstack((np.eye(1), K1)), np.concatenate(([0.0], k1))
    V_xx, V_x = G.T @ cost.C[1] @ G, G.T @ (cost.C[1] @ g + cost.c[1])
    AB = np.hstack((A, B))
    first = (
        last[0],
        QuadraticCost(
            (cost.C[0] + AB.T @ V_xx @ AB)[None],
            (cost.c[0] + AB.T @ (V_x + V_xx @ dynamics.f[0]))[None],
            np.zeros(1),
        ),
        start,
        dataclasses.replace(old, K=old.K[:1], k=old.k[:1], chol=old.chol[:1]),
    )
    (K, k, chol), _ = tiny_lagrangian(first, found.eta[:1], w[:1])
    assert_allclose(found.controller.K[:1, :, 0], K, atol=2e-4)
    assert_allclose(found.controller.k[:1], k, atol=2e-4)
    assert_allclose(found.controller.Sigma[:1], chol @ chol.transpose(0, 2, 1), rtol=2e-3)


def test_entropy_per_step_changes_noise_and_not_gains(problem):
    dynamics, cost, _, previous = problem
    eta, w = np.linspace(0.5, 3.0, 12), np.linspace(0.0, 2.0, 12)
    cold = dual.backward_per_step(dynamics, cost, previous, eta)
    warm = dual.backward_per_step(dynamics, cost, previous, eta, w)
    np.testing.assert_array_equal(warm.K, cold.K)
    np.testing.assert_array_equal(warm.k, cold.k)
    assert_allclose(warm.Sigma, (1 + w / eta)[:, None, None] * cold.Sigma, rtol=1e-12)
    plain = minimise_per_step(*problem, 0.1)
    noisy = minimise_per_step(*problem, 0.1, DualConfig(entropy_weight=1.0))
    assert noisy.converged
    assert_allclose(noisy.kl, 0.1, rtol=0.01)
    assert (np.linalg.det(noisy.controller.Sigma) > np.linalg.det(plain.controller.Sigma)).all()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tol": 0.0}, "tol"),
        ({"tol": 1.0}, "tol"),
        ({"tol": float("nan")}, "tol"),
        ({"eta_min": 0.0}, "eta_min"),
        ({"eta_min": 2.0, "eta_max": 1.0}, "eta_min"),
        ({"eta_max": float("inf")}, "eta_max"),
        ({"max_trials": 0}, "max_trials"),
        ({"max_trials": 2.5}, "max_trials"),
        ({"entropy_weight": -1.0}, "entropy_weight"),
        ({"kl_under": "old"}, "kl_under must be 'new' or 'previous', got 'old'"),
    ],
)
def test_bad_configurations_are_refused(options, text):
    with pytest.raises(ConfigError, match=text):
        DualConfig(**options)


def test_bad_arguments_are_refused(problem):
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ConfigError, match="kl_max must be"):
            minimise(*problem, bad)
        with pytest.raises(ConfigError, match="kl_max must be"):
            minimise_per_step(*problem, np.where(np.arange(12) == 4, bad, 1.0))
        with pytest.raises(ConfigError, match="eta must be"):
            minimise(*problem, 0.1, eta=bad)
    with pytest.raises(ShapeError, match="kl_max"):
        minimise_per_step(*problem, np.ones(11))
    with pytest.raises(ShapeError, match="entropy_weight"):
        minimise(*problem, 0.1, entropy_weight=np.ones(3))
    with pytest.raises(ShapeError, match="entropy_weight"):
        minimise_per_step(*problem, 0.1, entropy_weight=np.ones(3))
    for search in (minimise, minimise_per_step):
        with pytest.raises(ConfigError, match="entropy_weight must be finite and 0 or above"):
            search(*problem, 0.1, entropy_weight=-1.0)
        with pytest.raises(ConfigError, match="kl_max must be a number, got 'far'"):
            search(*problem, "far")


def test_results_survive_pickling(problem):
    for found in (minimise(*problem, 0.1), minimise_per_step(*problem, 0.1)):
        again = pickle.loads(pickle.dumps(found))
        np.testing.assert_array_equal(again.controller.K, found.controller.K)
        np.testing.assert_array_equal(again.active, found.active)
        assert not again.kl.flags.writeable


@pytest.mark.parametrize(
    ("fn", "end"),
    [
        (lambda x: 3.0 - x, "root"),
        (lambda x: 100 * np.exp(-x) - 1, "root"),
        (lambda x: np.inf if x < 2 else 2.5 - x, "root"),
        (lambda x: -1.0 - 0.01 * x, "floor"),
        (lambda x: np.inf, "ceiling"),
        (lambda x: 50.0 - x, "ceiling"),
        (lambda x: np.inf if x < 2 else -1.0, "interval"),
        (lambda x: 1.0 if x < 2 else -1e-9, "interval"),
    ],
)
@pytest.mark.parametrize("start", [-18.0, 0.0, 30.0])
def test_root_find_says_how_it_ended(fn, end, start):
    last = []

    def near(x):
        last.append(x)
        y = fn(x)
        return 0.0 if abs(y) < 1e-9 and end == "root" else y

    assert _root(near, start, -18.0, 36.0, 200) == end
    assert len(last) <= 100
    assert all(-18.0 <= x <= 36.0 for x in last)
    assert _root(near, start, -18.0, 36.0, 1) in (end, "trials")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    T=st.integers(1, 8),
    nx=st.integers(1, 5),
    nu=st.integers(1, 4),
    cost_scale=st.sampled_from([1e-200, 1e-30, 1e-6, 1.0, 1e6, 1e30, 1e200]),
    dynamics_scale=st.sampled_from([0.0, 1e-8, 1.0, 30.0, 1e12, 1e100]),
    spread=st.sampled_from([0.0, 3.0, 8.0]),
    shift=st.sampled_from([0.0, 0.5, 100.0]),
    kl_max=st.sampled_from([1e-8, 0.1, 50.0]),
)
def test_any_problem_gives_a_sound_answer_or_a_named_error(
    seed, T, nx, nu, cost_scale, dynamics_scale, spread, shift, kl_max
):
    """Ill-conditioned, indefinite, huge, tiny: the bound holds by an independent evaluation."""
    rng = np.random.default_rng(seed)
    dynamics, cost, start, previous = make_problem(rng, T, nx, nu)
    units = 10.0 ** rng.uniform(-spread / 2, spread / 2, size=nx + nu)
    C = cost_scale * (units[:, None] * cost.C * units - shift * np.eye(nx + nu))
    cost = QuadraticCost(0.5 * (C + C.transpose(0, 2, 1)), cost_scale * units * cost.c, cost.c0)
    dynamics = dataclasses.replace(dynamics, F=dynamics_scale * dynamics.F)
    start = Gaussian(start.mean, start.cov)
    named = []
    with np.errstate(all="ignore"):
        for search, slack in ((minimise, T * kl_max), (minimise_per_step, kl_max)):
            try:
                found = search(dynamics, cost, start, previous, kl_max)
            except GPSError as error:
                named.append(str(error))
                continue
            assert np.isfinite(found.controller.K).all()
            assert np.isfinite(found.marginals.cov).all()
            m = lqr.forward(dynamics, found.controller, start)
            kl = kl_per_step(found.controller, previous, m.mean, m.cov)
            assert_allclose(found.kl, kl, rtol=1e-6, atol=1e-6 * kl_max)
            worst = kl.sum() if search is minimise else kl.max()
            assert worst <= 1.011 * slack
            if found.converged and np.all(found.active):
                assert abs(found.kl.sum() / (T * kl_max) - 1) <= 0.011
    assert all("t=" in text or "nats" in text or "bound" in text for text in named)


@pytest.mark.parametrize("name", ["tol", "eta_min", "eta_max", "entropy_weight"])
@pytest.mark.parametrize("value", ["a", None, True])
def test_a_setting_that_is_no_number_is_named(name, value):
    with pytest.raises(ConfigError, match=f"DualConfig.{name} must be a number"):
        DualConfig(**{name: value})
    with pytest.raises(ConfigError, match="max_trials"):
        DualConfig(max_trials=value)
