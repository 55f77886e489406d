import dataclasses

import numpy as np
import pytest
from control_problems import make_controller, transposed
from numpy.testing import assert_allclose

from gps.control import kl_per_step, lqr, penalised
from gps.errors import ConfigError, NonFiniteError, ShapeError


def log_density(c, t, x, u):
    r = np.linalg.solve(c.chol[t], (u - x @ c.K[t].T - c.k[t]).T)
    logdet = np.log(c.chol[t].diagonal()).sum()
    return -0.5 * (r**2).sum(0) - logdet - 0.5 * c.nu * np.log(2 * np.pi)


def test_agrees_with_monte_carlo(rng, problem):
    dynamics, _, start, old = problem
    new = make_controller(rng, old.T, old.nx, old.nu)
    m = lqr.forward(dynamics, new, start)
    kl = kl_per_step(new, old, m.mean[:, :4], m.cov[:, :4, :4])
    n = 40_000
    for t in range(old.T):
        root = np.linalg.cholesky(m.cov[t, :4, :4] + 1e-12 * np.eye(4))
        x = m.mean[t, :4] + rng.normal(size=(n, 4)) @ root.T
        u = new.act(x, x, t, rng.normal(size=(n, 2)))
        ratio = log_density(new, t, x, u) - log_density(old, t, x, u)
        assert abs(ratio.mean() - kl[t]) < 5 * ratio.std() / np.sqrt(n)
        assert kl[t] > 0.01


def test_of_a_controller_with_itself_is_zero(problem):
    dynamics, _, start, c = problem
    m = lqr.forward(dynamics, c, start)
    assert_allclose(kl_per_step(c, c, m.mean, m.cov), 0.0, atol=1e-13)
    moved = dataclasses.replace(c, k=c.k + 1e-3)
    assert kl_per_step(moved, c, m.mean, m.cov).min() > 1e-8


def test_whole_marginals_count_like_their_state_part(rng, problem):
    dynamics, _, start, old = problem
    new = make_controller(rng, old.T, old.nx, old.nu)
    m = lqr.forward(dynamics, new, start)
    whole = kl_per_step(new, old, m.mean, m.cov)
    np.testing.assert_array_equal(whole, kl_per_step(new, old, m.mean[:, :4], m.cov[:, :4, :4]))


def test_is_not_clipped(rng, problem):
    """With covariances that are none, the formula goes below zero, and so must the value."""
    _, _, _, old = problem
    new = make_controller(rng, old.T, old.nx, old.nu)
    kl = kl_per_step(new, old, np.zeros((12, 4)), -100 * np.tile(np.eye(4), (12, 1, 1)))
    assert kl.max() < 0


def test_bad_arguments_are_named(problem):
    dynamics, cost, start, c = problem
    m = lqr.forward(dynamics, c, start)
    with pytest.raises(ShapeError, match="mean and cov must have shapes"):
        kl_per_step(c, c, m.mean[:, :3], m.cov[:, :3, :3])
    with pytest.raises(ShapeError, match=r"old\.K must have shape"):
        kl_per_step(c, dataclasses.replace(c, K=c.K[:5], k=c.k[:5], chol=c.chol[:5]), m.mean, m.cov)
    with pytest.raises(ShapeError, match="transpose an upper factor"):
        kl_per_step(c, dataclasses.replace(c, chol=transposed(c.chol)), m.mean, m.cov)
    with pytest.raises(NonFiniteError, match="mean is not finite at t=2"):
        kl_per_step(c, c, np.where(np.arange(12)[:, None] == 2, np.nan, m.mean), m.cov)
    for eta in (0.0, -1.0, np.nan):
        with pytest.raises(ConfigError, match="eta must be"):
            penalised(cost, c, eta)
    with pytest.raises(ConfigError, match="entropy_weight"):
        penalised(cost, c, 1.0, -0.1)


def test_penalised_is_the_cost_with_minus_the_log_density(rng, problem):
    _, cost, _, previous = problem
    eta, weight = 0.7, 0.4
    mixed = penalised(cost, previous, eta, weight)
    for t in (0, 6, 11):
        z = rng.normal(size=6)
        plain = 0.5 * z @ cost.C[t] @ z + cost.c[t] @ z + cost.c0[t]
        pull = -log_density(previous, t, z[None, :4], z[None, 4:])[0]
        value = 0.5 * z @ mixed.C[t] @ z + mixed.c[t] @ z + mixed.c0[t]
        assert_allclose(value, (plain + eta * pull) / (eta + weight), rtol=1e-12)
