"""A bound on the KL at every step, against duality and root finding by other code."""

import dataclasses
import logging

import numpy as np
import pytest
from control_problems import hard_problem, make_problem
from numpy.testing import assert_allclose, assert_array_equal
from scipy import optimize

from gps.control import DualConfig, batch, dual, kl_per_step, lqr
from gps.control.dual import minimise_per_step
from gps.errors import ConfigError, DualError, ShapeError
from gps.types import Gaussian, LinearDynamics, LinearGaussianController, QuadraticCost

EMPTY = LinearDynamics(np.zeros((0, 3, 5)), np.zeros((0, 3)), np.zeros((0, 3, 3)))


def raised(controller, floor):
    """Sigma >= diag(floor^2), by numpy."""
    if floor is None:
        return controller
    s, E = np.linalg.eigh(controller.Sigma / np.outer(floor, floor))
    Sigma = (E * np.maximum(s, 1.0)[:, None, :]) @ E.transpose(0, 2, 1) * np.outer(floor, floor)
    return dataclasses.replace(controller, chol=np.linalg.cholesky(Sigma))


def objective(problem, controller, weight):
    dynamics, cost, start, _ = problem
    m = lqr.forward(dynamics, controller, start)
    nu = controller.nu
    logdet = np.linalg.slogdet(controller.Sigma)[1] + nu * np.log(2 * np.pi * np.e)
    return lqr.expected_cost(cost, m).sum() - 0.5 * weight * logdet.sum(), m


def lagrangian(problem, bound, eta, weight, floor):
    """min of E[cost] - weight H + sum eta_t (KL_t - bound) over all controllers, and the best."""
    dynamics, cost, _, old = problem
    nx, P = dynamics.nx, old.precision
    G = np.concatenate([-old.K, np.tile(np.eye(old.nu), (old.T, 1, 1))], axis=2)
    R = G.transpose(0, 2, 1) @ P @ G
    r = -np.einsum("tji,tjk,tk->ti", G, P, old.k)
    assert nx + old.nu == R.shape[1]
    C = cost.C + eta[:, None, None] * R
    total = QuadraticCost(
        0.5 * (C + C.transpose(0, 2, 1)), cost.c + eta[:, None] * r, np.zeros(len(eta))
    )
    best = raised(lqr.backward(dynamics, total, eta + weight), floor)
    value, m = objective(problem, best, weight)
    return value + eta @ (kl_per_step(best, old, m.mean, m.cov) - bound), best


SEEDS = [3, 9, 10, 24, 33, 41, 56, 75, 91, 129, 132, 140, 176, 179, 243, 265, 273, 282, 292, 1028]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("floor", [None, 0.3])
def test_hard_problems_end_at_the_optimum(seed, entropy, floor):
    """No controller within the bounds is better than the least Lagrangian, whatever its eta."""
    problem, bound, weight = hard_problem(seed)
    dynamics, cost, start, previous = problem
    weight = weight if entropy else 0.0
    floor = None if floor is None else np.full(dynamics.nu, floor)
    found = minimise_per_step(*problem, bound, entropy_weight=weight, std_floor=floor)
    assert found.converged
    assert len(found.trace) < 60
    old = raised(previous, floor)
    problem = dynamics, cost, start, old
    value, m = objective(problem, found.controller, weight)
    kl = kl_per_step(found.controller, old, m.mean, m.cov)
    assert (kl <= 1.011 * bound).all()
    assert_allclose(found.kl, kl, rtol=1e-4)
    if floor is not None:
        least = np.linalg.eigvalsh(found.controller.Sigma / 0.09)[:, 0]
        assert least.min() > 1 - 1e-6
    below, best = lagrangian(problem, bound, found.eta, weight, floor)
    gap = value - below
    before = objective(problem, old, weight)[0]
    assert_allclose(gap, found.eta @ (bound - kl), rtol=1e-3, atol=1e-6 * abs(value))
    assert abs(gap) <= 0.011 * bound * found.eta[found.active].sum() + 1e-6 * abs(value)
    assert value < before
    size = np.abs(found.controller.K).max()
    assert_allclose(best.K, found.controller.K, rtol=1e-4, atol=1e-6 * size)


@pytest.mark.parametrize("seed", [3, 9, 41, 75, 129])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("floor", [None, 0.3])
def test_under_the_previous_states_every_step_is_a_root(seed, entropy, floor):
    """One step after the other by Brent's method, in numpy."""
    problem, bound, weight = hard_problem(seed)
    dynamics, cost, start, previous = problem
    weight = weight if entropy else 0.0
    floor = None if floor is None else np.full(dynamics.nu, floor)
    config = DualConfig(kl_under="previous", tol=1e-8)
    found = minimise_per_step(*problem, bound, config, None, weight, floor)
    assert found.converged
    assert len(found.trace) == 1
    old = raised(previous, floor)
    m = lqr.forward(dynamics, old, start)
    nx, T = dynamics.nx, dynamics.T
    V, v = np.zeros((nx, nx)), np.zeros(nx)
    for t in range(T - 1, -1, -1):
        Q, q = cost.C[t].copy(), cost.c[t].copy()
        if t < T - 1:
            Q += dynamics.F[t].T @ V @ dynamics.F[t]
            q += dynamics.F[t].T @ (v + V @ dynamics.f[t])
        Quu, Qux, P = Q[nx:, nx:], Q[nx:, :nx], old.precision[t]

        def step(x, Quu=Quu, Qux=Qux, q=q, P=P, t=t):
            M = np.linalg.inv(Quu / np.exp(x) + P)
            K = -M @ (Qux / np.exp(x) - P @ old.K[t])
            k = -M @ (q[nx:] / np.exp(x) - P @ old.k[t])
            chol = np.linalg.cholesky((1 + weight / np.exp(x)) * (M + M.T) / 2)
            return raised(LinearGaussianController(K[None], k[None], chol[None]), floor)

        def excess(x, t=t, step=step):
            one = dataclasses.replace(old, K=old.K[[t]], k=old.k[[t]], chol=old.chol[[t]])
            kl = kl_per_step(step(x), one, m.mean[[t], :nx], m.cov[[t], :nx, :nx])[0]
            return np.log(kl / bound)

        here = np.log(found.eta[t])
        if found.active[t]:
            root = optimize.brentq(excess, here - 3, here + 3, xtol=1e-13)
            assert abs(root - here) < 1e-6
        else:
            assert excess(here) < 0
        one = step(here)
        K, k = one.K[0], one.k[0]
        assert_allclose(found.controller.K[t], K, rtol=1e-6, atol=1e-8)
        V = Q[:nx, :nx] + K.T @ Quu @ K + Qux.T @ K + K.T @ Qux
        V = 0.5 * (V + V.T)
        v = q[:nx] + K.T @ q[nx:] + K.T @ Quu @ k + Qux.T @ k


@pytest.mark.parametrize("kl_under", ["new", "previous"])
@pytest.mark.parametrize("seed", [9, 24, 33, 1028])
def test_the_unit_of_the_cost_does_not_matter(seed, kl_under):
    (dynamics, cost, start, previous), bound, weight = hard_problem(seed)
    config = DualConfig(kl_under=kl_under)
    base = minimise_per_step(dynamics, cost, start, previous, bound, config, None, weight)
    for s in (1e-100, 1e-7, 0.3, 1e6, 1e100):
        scaled = QuadraticCost(s * cost.C, s * cost.c, s * cost.c0)
        found = minimise_per_step(
            dynamics, scaled, start, previous, bound, config, None, s * weight
        )
        assert found.converged
        assert len(found.trace) == len(base.trace)
        assert_allclose(found.eta, s * base.eta, rtol=1e-6)
        size = np.abs(base.controller.K).max()
        assert_allclose(found.controller.K, base.controller.K, rtol=1e-6, atol=1e-9 * size)
        assert_allclose(found.controller.Sigma, base.controller.Sigma, rtol=1e-6, atol=1e-12)


def test_the_floor_binds_at_one_step_as_a_general_solver_finds(rng):
    """T=1: E[cost] over k and Sigma = D^2 + R R', K fixed by certain states."""
    _, cost, start, previous = make_problem(rng, T=1, nx=3, nu=2)
    start = Gaussian(start.mean, np.zeros((3, 3)))
    C = np.array([[4.0, 1.0], [1.0, 20.0]])
    C_all = np.zeros((1, 5, 5))
    C_all[0, 3:, 3:] = C
    cost = QuadraticCost(C_all, np.concatenate([np.zeros((1, 3)), cost.c[:, 3:]], axis=1), cost.c0)
    floor, bound = np.array([0.6, 0.8]), 0.4
    found = minimise_per_step(
        EMPTY, cost, start, previous, bound, DualConfig(tol=1e-8), std_floor=floor
    )
    assert found.converged
    old = raised(previous, floor)
    x = start.mean
    before, P, S_old = old.K[0] @ x + old.k[0], old.precision[0], old.Sigma[0]

    def parts(p):
        R = np.array([[p[2], 0.0], [p[3], p[4]]])
        u, Sigma = before + p[:2], np.diag(floor**2) + R @ R.T
        kl = 0.5 * (
            np.linalg.slogdet(S_old)[1] - np.linalg.slogdet(Sigma)[1] - 2
            + np.trace(P @ Sigma) + p[:2] @ P @ p[:2]
        )  # fmt: skip
        return 0.5 * u @ C @ u + cost.c[0, 3:] @ u + 0.5 * np.trace(C @ Sigma), kl

    best = min(
        optimize.minimize(
            lambda p: parts(p)[0],
            np.concatenate([np.zeros(2), 0.1 + 0.3 * rng.random(3)]),
            constraints={"type": "ineq", "fun": lambda p: bound - parts(p)[1]},
            method="SLSQP",
            options={"ftol": 1e-13, "maxiter": 500},
        ).fun
        for _ in range(8)
    )
    mine = lqr.expected_cost(cost, found.marginals).sum() - cost.c0.sum()
    assert_allclose(mine, best, rtol=1e-6)
    least = np.linalg.eigvalsh(found.controller.Sigma[0] / np.outer(floor, floor))
    assert_allclose(least[0], 1.0, rtol=1e-8)  # it binds
    free = minimise_per_step(EMPTY, cost, start, previous, bound)
    assert np.linalg.eigvalsh(free.controller.Sigma[0] / np.outer(floor, floor))[0] < 0.9


def test_a_floor_that_does_not_bind_changes_nothing(problem):
    plain, low = (minimise_per_step(*problem, 0.3, std_floor=f) for f in (None, [1e-4, 1e-4]))
    assert_array_equal(plain.controller.chol, low.controller.chol)
    assert_array_equal(plain.eta, low.eta)
    for bad, error in (
        ([0.1], ShapeError),
        ([0.1, 0.0], ConfigError),
        ([1.0, np.nan], ConfigError),
    ):
        with pytest.raises(error, match="std_floor"):
            minimise_per_step(*problem, 0.3, std_floor=bad)


def test_batches_have_the_bytes_of_the_single_search():
    rng = np.random.default_rng(4)
    singles = [make_problem(rng) for _ in range(3)]
    kinds = batch.DynamicsBatch, batch.CostBatch, batch.GaussianBatch, batch.ControllerBatch
    stacked = [kind.stack(p[i] for p in singles) for i, kind in enumerate(kinds)]
    for options in ({}, {"std_floor": [0.4, 0.7]}, {"eta": 2.0}, {"entropy_weight": 0.3}):
        for under in ("new", "previous"):
            config = DualConfig(kl_under=under)
            found = batch.minimise_per_step(*stacked, 0.3, config, **options)
            for b, p in enumerate(singles):
                want = minimise_per_step(*p, 0.3, config, **options)
                for name in ("eta", "kl", "active", "trace"):
                    assert_array_equal(getattr(found[b], name), getattr(want, name))
                assert_array_equal(found[b].controller.chol, want.controller.chol)
                assert_array_equal(found[b].controller.K, want.controller.K)


@pytest.mark.parametrize("seed", [4, 50, 82, 153, 181, 208, 217, 249])
@pytest.mark.parametrize("kl_under", ["new", "previous"])
def test_where_numbers_do_not_suffice_the_bounds_still_hold(seed, kl_under, caplog):
    """States that grow by twenty orders: the best within the bounds, and never an error."""
    problem, bound, weight = hard_problem(seed)
    for w in (0.0, weight):
        caplog.clear()
        with caplog.at_level(logging.DEBUG, "gps.control.per_step"):
            found = minimise_per_step(
                *problem, bound, DualConfig(kl_under=kl_under), entropy_weight=w
            )
        dynamics, _, start, previous = problem
        under = found.controller if kl_under == "new" else previous
        m = lqr.forward(dynamics, under, start)
        kl = kl_per_step(found.controller, previous, m.mean, m.cov)
        assert (kl <= 1.011 * bound).all()
        assert np.isfinite(found.eta).all()
        assert found.converged or "did not converge" in caplog.text
        if kl_under == "new":
            value, before = (objective(problem, c, w)[0] for c in (found.controller, previous))
            assert value <= before


def test_the_previous_controller_comes_back_where_nothing_else_is_finite(problem, caplog):
    """Its states are certain and stay at 0; any other action is multiplied by 1e300."""
    dynamics, cost, start, previous = problem
    F = np.zeros_like(dynamics.F)
    F[:, :, 4:] = 1e160
    wild = LinearDynamics(F, 0 * dynamics.f, 0 * dynamics.W)
    still = Gaussian(np.zeros(4), np.zeros((4, 4)))
    thin = LinearGaussianController(0 * previous.K, 0 * previous.k, 1e-140 * previous.chol)
    with caplog.at_level(logging.DEBUG, "gps.control.per_step"):
        for bound in (1e-9, 0.3, 50.0):
            found = minimise_per_step(wild, cost, still, thin, bound)
            m = lqr.forward(wild, found.controller, still)
            assert (kl_per_step(found.controller, thin, m.mean, m.cov) <= 1.011 * bound).all()
    with pytest.raises(DualError, match=r"`previous` overflows at t=1, and so does"):
        minimise_per_step(wild, cost, start, previous, 0.1)


def test_a_warm_start_saves_sweeps_and_a_wrong_one_does_no_harm():
    for seed in (9, 24, 75, 1028):
        problem, bound, _ = hard_problem(seed)
        cold = minimise_per_step(*problem, bound)
        warm = minimise_per_step(*problem, bound, eta=cold.eta)
        assert len(warm.trace) == 1 < len(cold.trace)
        near = minimise_per_step(*problem, 1.1 * bound, eta=cold.eta)
        assert near.converged
        for eta in (1e-12, 1e12):
            other = minimise_per_step(*problem, bound, eta=eta)
            assert other.converged
            assert_allclose(
                lqr.expected_cost(problem[1], other.marginals).sum(),
                lqr.expected_cost(problem[1], cold.marginals).sum(),
                rtol=0.02,
            )


def test_few_sweeps_give_the_best_so_far():
    problem, bound, _ = hard_problem(140)
    costs = []
    for n in (1, 2, 4, 8, 30):
        found = minimise_per_step(*problem, bound, DualConfig(max_trials=n))
        assert (found.kl <= 1.01 * bound).all()
        assert len(found.trace) <= n
        costs.append(lqr.expected_cost(problem[1], found.marginals).sum())
    assert (np.diff(costs) <= 0.02 * np.abs(costs[:-1])).all()


def test_the_kl_of_later_steps_counts(problem):
    """`backward_per_step` under the new states is `lqr.backward` with the KL in the cost."""
    dynamics, cost, _, previous = problem
    eta, weight = np.linspace(0.5, 3.0, 12), 0.4
    _, want = lagrangian(problem, 0.1, eta, weight, None)
    c = dual.backward_per_step(dynamics, cost, previous, eta, weight, "new")
    assert_allclose(c.K, want.K, rtol=1e-8, atol=1e-10)
    assert_allclose(c.k, want.k, rtol=1e-8, atol=1e-10)
    assert_allclose(c.Sigma, want.Sigma, rtol=1e-8)
    other = dual.backward_per_step(dynamics, cost, previous, eta, weight)
    assert np.abs(other.K - c.K).max() > 1e-3
    with pytest.raises(ConfigError, match="kl_under must be"):
        dual.backward_per_step(dynamics, cost, previous, eta, weight, "old")
