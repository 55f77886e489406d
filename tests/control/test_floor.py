"""Eigenvalues by rotations, and covariances raised to a floor, against numpy and a solver."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import optimize

from gps.control import DualConfig, _kernels, batch, kl_per_step, lqr, raised
from gps.control.dual import minimise
from gps.errors import ConfigError, ShapeError
from gps.linalg import eigh_jacobi
from gps.types import LinearDynamics, LinearGaussianController, QuadraticCost


def eigen(A):
    s, E = np.empty(len(A)), np.empty(A.shape)
    assert eigh_jacobi(A.copy(), s, E) == 0
    return s, E


@pytest.mark.parametrize("n", [1, 2, 3, 5, 9, 20])
@pytest.mark.parametrize("size", [1e-290, 1e-8, 1.0, 1e150, 1e290])
def test_eigenvalues_are_those_of_numpy(rng, n, size):
    for _ in range(20):
        A = rng.normal(size=(n, n))
        A = size * (A + A.T)
        s, E = eigen(A)
        assert_allclose(s, np.linalg.eigvalsh(A), atol=1e-14 * n * np.abs(A).max())
        assert_allclose(E @ E.T, np.eye(n), atol=1e-14 * n)
        assert_allclose((E * (s / size)) @ E.T, A / size, atol=1e-13 * n)
        assert_array_equal(s, np.sort(s))


def test_eigenvalues_of_special_matrices():
    for A in (np.zeros((3, 3)), np.eye(4), np.ones((4, 4)), np.diag([3.0, -1.0, 0.0])):
        s, E = eigen(A)
        assert_allclose(s, np.linalg.eigvalsh(A), atol=1e-15)
        assert_allclose((E * s) @ E.T, A, atol=1e-15)
    # graded: small eigenvalues to relative precision, where numpy has none left
    d = np.array([1e8, 1.0, 1e-8])
    A = d[:, None] * (0.5 * np.eye(3) + 0.5) * d
    s, _ = eigen(A)
    product = 0.5 * 1e16 * 0.5 * 2.0 / 1e16
    assert_allclose(s.prod(), product, rtol=1e-12)
    assert_allclose(1.0 / s[0], np.linalg.inv(0.5 * np.eye(3) + 0.5)[2, 2] * 1e16, rtol=1e-10)
    for bad in (np.nan, np.inf):
        A = np.eye(3)
        A[1, 0] = A[0, 1] = bad
        assert eigh_jacobi(A, np.empty(3), np.empty((3, 3))) == 1


def raise_all(chol, floor):
    out = chol.copy()
    assert _kernels.raise_covariance(out, floor) == (_kernels.OK, 0)
    return out


def factors(rng, n, nu, scale):
    chol = np.tril(rng.normal(size=(n, nu, nu)))
    chol[:, range(nu), range(nu)] = rng.uniform(0.2, 2.0, size=(n, nu))
    return chol * scale[:, None]


@pytest.mark.parametrize("nu", [1, 2, 3, 6])
def test_a_raised_covariance_is_above_the_floor_and_nothing_else_changes(rng, nu):
    floor = 10.0 ** rng.uniform(-3, 3, size=nu)
    chol = factors(rng, 40, nu, floor)
    out = raise_all(chol, floor)
    moved = 0
    for a, b in zip(chol, out, strict=True):
        A, B = (L @ L.T / np.outer(floor, floor) for L in (a, b))
        s, E = np.linalg.eigh(A)
        assert_allclose(B, (E * np.maximum(s, 1.0)) @ E.T, rtol=1e-9, atol=1e-11 * s[-1])
        assert_array_equal(b, np.tril(b))
        if s[0] > 1.0:
            assert_array_equal(a, b)
        moved += s[0] < 1.0
    assert moved > 0
    assert nu > 3 or moved < 40
    assert_allclose(raise_all(out, floor), out, rtol=1e-9, atol=1e-9 * floor.max())
    high, low = raise_all(chol, 1e-6 * floor), raise_all(chol, 1e6 * floor)
    assert_array_equal(high, chol)
    low /= 1e6 * floor[:, None]
    assert_allclose(low @ low.transpose(0, 2, 1), np.tile(np.eye(nu), (40, 1, 1)), atol=1e-10)


def test_raising_solves_the_problem_under_the_floor(rng):
    """tr(A Sigma) - h log|Sigma| over Sigma = D^2 + R R', against a general solver."""
    h, floor = 0.7, np.array([0.5, 2.0])
    for _ in range(5):
        root = rng.normal(size=(2, 2))
        A = root @ root.T + 0.05 * np.eye(2)

        def value(p, A=A):
            R = np.array([[p[0], 0.0], [p[1], p[2]]])
            Sigma = np.diag(floor**2) + R @ R.T
            return np.trace(A @ Sigma) - h * np.linalg.slogdet(Sigma)[1]

        best = min(
            (optimize.minimize(value, rng.normal(size=3), tol=1e-14) for _ in range(5)),
            key=lambda found: found.fun,
        )
        L = raise_all(np.linalg.cholesky(h * np.linalg.inv(A))[None], floor)[0]
        mine = np.trace(A @ L @ L.T) - h * np.linalg.slogdet(L @ L.T)[1]
        assert mine <= best.fun + 1e-9
        assert_allclose(mine, best.fun, rtol=1e-6)


def test_a_direction_below_the_floor_is_found_beside_a_wide_one():
    chol = np.diag([1e9, 0.1])[None]
    assert_allclose(raise_all(chol, np.ones(2))[0], np.diag([1e9, 1.0]), rtol=1e-12)


def test_what_overflows_is_told_with_its_step():
    chol = np.tile(np.eye(2), (3, 1, 1))
    chol[1] *= 1e200
    assert _kernels.raise_covariance(chol, np.full(2, 1e-20)) == (_kernels.NON_FINITE, 1)


# --- the floor in the C-step with one dual variable


def smallest_share(controller, floor):
    """Least eigenvalue of Sigma in units of the floor, over all steps."""
    scaled = controller.Sigma / np.outer(floor, floor)
    return np.linalg.eigvalsh(scaled).min()


@pytest.mark.parametrize("share", [0.5, 2.0])  # above and below the noise of `previous`
@pytest.mark.parametrize("kl_under", ["new", "previous"])
def test_minimise_keeps_the_floor_and_the_bound(problem, share, kl_under):
    dynamics, _, start, previous = problem
    floor = share * np.sqrt(np.einsum("tii->ti", previous.Sigma).mean(axis=0))
    config = DualConfig(kl_under=kl_under)
    found = minimise(*problem, 0.3, config, std_floor=floor)
    free = minimise(*problem, 0.3, config)
    assert smallest_share(free.controller, floor) < 0.99  # the floor has something to do
    assert smallest_share(found.controller, floor) >= 1 - 1e-9
    assert found.converged
    reference = raised(previous, floor)
    marginals = lqr.forward(dynamics, found.controller, start)
    assert_allclose(found.marginals.cov, marginals.cov, rtol=1e-9, atol=1e-12)
    at = marginals if kl_under == "new" else lqr.forward(dynamics, reference, start)
    kl = kl_per_step(found.controller, reference, at.mean, at.cov)
    assert_allclose(found.kl, kl, rtol=1e-9, atol=1e-12)
    assert kl.sum() == pytest.approx(0.3 * dynamics.T, rel=0.011)


def test_the_floor_against_a_general_solver(problem):
    """The Lagrangian of one step, over gains and all covariances above the floor."""
    _, cost, start, previous = problem
    nu, nx = previous.nu, previous.nx
    floor = np.array([0.7, 1.3])
    one = LinearDynamics(np.empty((0, nx, nx + nu)), np.empty((0, nx)), np.empty((0, nx, nx)))
    step = QuadraticCost(cost.C[:1], cost.c[:1], cost.c0[:1])
    old = LinearGaussianController(previous.K[:1], previous.k[:1], previous.chol[:1])
    found = minimise(one, step, start, old, 0.4, DualConfig(tol=1e-9), std_floor=floor)
    reference = raised(old, floor)

    def lagrangian(theta):
        K, k = theta[: nu * nx].reshape(1, nu, nx), theta[nu * nx : nu * nx + nu][None]
        extra = np.zeros((nu, nu))
        extra[np.tril_indices(nu)] = theta[nu * nx + nu :]
        Sigma = np.diag(floor**2) + extra @ extra.T  # any covariance above the floor
        new = LinearGaussianController(K, k, np.linalg.cholesky(Sigma)[None])
        m = lqr.forward(one, new, start)
        kl = kl_per_step(new, reference, m.mean, m.cov).sum()
        return lqr.expected_cost(step, m).sum() + found.eta * kl

    # from more noise than the floor: where `extra` is zero, so is its gradient
    begin = np.concatenate([old.K.ravel(), old.k.ravel(), [0.5, 0.1, 0.5]])
    best = optimize.minimize(lagrangian, begin, tol=1e-12)
    got = lqr.expected_cost(step, found.marginals).sum() + found.eta * found.kl.sum()
    assert got <= best.fun + 1e-7 * abs(best.fun)
    assert got == pytest.approx(best.fun, rel=1e-5)


def test_a_floor_below_all_noise_changes_nothing(problem):
    plain, floored = minimise(*problem, 0.3), minimise(*problem, 0.3, std_floor=1e-6)
    for name in ("K", "k", "chol"):
        np.testing.assert_array_equal(
            getattr(plain.controller, name), getattr(floored.controller, name)
        )
    assert raised(problem[3], 1e-6) is problem[3]
    assert raised(problem[3], None) is problem[3]
    assert raised(problem[3], ()) is problem[3]


@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1e6])
def test_the_unit_of_the_cost_does_not_matter(problem, scale):
    dynamics, cost, start, previous = problem
    other = QuadraticCost(scale * cost.C, scale * cost.c, scale * cost.c0)
    for kl_max in (1e-3, 0.3, 1e4):  # the last is inactive
        a = minimise(dynamics, cost, start, previous, kl_max, std_floor=0.2)
        b = minimise(dynamics, other, start, previous, kl_max, std_floor=0.2)
        assert_allclose(b.controller.K, a.controller.K, rtol=1e-8, atol=1e-10)
        assert_allclose(b.controller.k, a.controller.k, rtol=1e-8, atol=1e-10)
        assert_allclose(b.controller.chol, a.controller.chol, rtol=1e-8)
        assert b.eta == pytest.approx(scale * a.eta, rel=1e-8)
        assert len(a.trace) == len(b.trace)


@pytest.mark.parametrize(
    ("floor", "error"),
    [(0.0, ConfigError), ([1.0, np.nan], ConfigError), ([1.0, 1.0, 1.0], ShapeError)],
)
def test_floors_that_are_refused(problem, floor, error):
    for call in (
        lambda: minimise(*problem, 0.3, std_floor=floor),
        lambda: raised(problem[3], floor),
    ):
        with pytest.raises(error, match="std_floor"):
            call()


def test_a_batch_with_a_floor_is_the_single_searches(problem):
    dynamics, cost, start, previous = problem
    floor = np.array([0.9, 0.4])
    bounds = [0.05, 0.3, 2.0]
    many = batch.minimise(dynamics, cost, start, previous, bounds, std_floor=floor)
    for b, kl_max in enumerate(bounds):
        one = minimise(*problem, kl_max, std_floor=floor)
        np.testing.assert_array_equal(many.controller.chol[b], one.controller.chol)
        np.testing.assert_array_equal(many.controller.K[b], one.controller.K)
        assert many.eta[b] == one.eta
