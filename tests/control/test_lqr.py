import dataclasses

import numpy as np
import pytest
from control_problems import make_controller, make_problem, transposed
from numpy.testing import assert_allclose

from gps.control import _kernels, dual, kl, lqr
from gps.errors import ConfigError, NonFiniteError, NotPositiveDefiniteError, ShapeError
from gps.types import Gaussian, LinearDynamics, LinearGaussianController, QuadraticCost


def kkt(dynamics, cost, x0):
    """States and actions of the noise-free optimum from one dense linear system."""
    T, nx, nu = dynamics.T, dynamics.nx, dynamics.nu
    nz = nx + nu
    H, g = np.zeros((T * nz, T * nz)), cost.c.ravel()
    E, e = np.zeros((T * nx, T * nz)), np.zeros(T * nx)
    E[:nx, :nx], e[:nx] = np.eye(nx), x0
    for t in range(T):
        H[t * nz : (t + 1) * nz, t * nz : (t + 1) * nz] = cost.C[t]
        if t < T - 1:
            rows = slice((t + 1) * nx, (t + 2) * nx)
            E[rows, t * nz : (t + 1) * nz] = -dynamics.F[t]
            E[rows, (t + 1) * nz : (t + 1) * nz + nx] = np.eye(nx)
            e[rows] = dynamics.f[t]
    system = np.block([[H, E.T], [E, np.zeros((T * nx, T * nx))]])
    z = np.linalg.solve(system, np.concatenate([-g, e]))[: T * nz]
    return z.reshape(T, nz)


@pytest.mark.parametrize(
    ("T", "nx", "nu"), [(1, 3, 2), (2, 1, 1), (12, 4, 2), (9, 2, 5), (30, 9, 3)]
)
def test_gains_give_the_optimum_of_the_dense_system(rng, T, nx, nu):
    dynamics, cost, start, _ = make_problem(rng, T, nx, nu)
    c = lqr.backward(dynamics, cost)
    for x0 in (start.mean, start.mean + rng.normal(size=nx)):
        mean = lqr.forward(dynamics, c, Gaussian(x0, np.zeros((nx, nx)))).mean
        expected = kkt(dynamics, cost, x0)
        assert_allclose(mean, expected, rtol=1e-8, atol=1e-9 * np.abs(expected).max())


def test_covariance_is_the_temperature_times_the_inverse_curvature(problem):
    """Q_uu from second differences of the cost-to-go of the noise-free closed loop."""
    dynamics, cost, _, _ = problem
    T, nx, nu = dynamics.T, dynamics.nx, dynamics.nu
    heat = np.linspace(0.5, 3.0, T)
    c = lqr.backward(dynamics, cost, heat)
    assert_allclose(c.chol, np.tril(c.chol), atol=0)
    cold = LinearGaussianController(c.K, c.k, c.chol)

    def cost_to_go(t, u):
        total, x = 0.0, np.zeros(nx)
        for s in range(t, T):
            z = np.concatenate([x, u if s == t else cold.K[s] @ x + cold.k[s]])
            total += 0.5 * z @ cost.C[s] @ z + cost.c[s] @ z
            if s < T - 1:
                x = dynamics.F[s] @ z + dynamics.f[s]
        return total

    for t in (0, T // 2, T - 1):
        e = np.eye(nu)
        Q_uu = [
            [
                (
                    cost_to_go(t, a + b) - cost_to_go(t, a - b)
                    - cost_to_go(t, b - a) + cost_to_go(t, -a - b)
                ) / 4
                for b in e
            ]
            for a in e
        ]  # fmt: skip
        assert_allclose(c.Sigma[t], heat[t] * np.linalg.inv(Q_uu), rtol=1e-6)


def test_marginals_and_cost_agree_with_monte_carlo(rng, problem):
    dynamics, cost, start, controller = problem
    m = lqr.forward(dynamics, controller, start)
    n, T, nx = 40_000, dynamics.T, dynamics.nx
    x = start.mean + rng.normal(size=(n, nx)) @ np.linalg.cholesky(start.cov).T
    paid = np.empty((n, T))
    for t in range(T):
        u = controller.act(x, x, t, rng.normal(size=(n, dynamics.nu)))
        z = np.hstack([x, u])
        paid[:, t] = 0.5 * np.einsum("ni,ij,nj->n", z, cost.C[t], z) + z @ cost.c[t] + cost.c0[t]
        sd = np.sqrt(m.cov[t].diagonal())
        assert np.all(np.abs(z.mean(0) - m.mean[t]) < 5 * sd / np.sqrt(n))
        error = np.sqrt((m.cov[t] ** 2 + np.outer(sd**2, sd**2)) / (n - 1))
        assert np.all(np.abs(np.cov(z.T) - m.cov[t]) < 5 * error)
        if t < T - 1:
            root = np.linalg.cholesky(dynamics.W[t])
            x = z @ dynamics.F[t].T + dynamics.f[t] + rng.normal(size=(n, nx)) @ root.T
    expected = lqr.expected_cost(cost, m)
    assert np.all(np.abs(paid.mean(0) - expected) < 5 * paid.std(0) / np.sqrt(n))


def test_optimum_beats_its_neighbours(rng, problem):
    dynamics, cost, start, _ = problem
    best = lqr.backward(dynamics, cost)

    def total(c):
        return lqr.expected_cost(cost, lqr.forward(dynamics, c, start)).sum()

    for _ in range(10):
        bumped = dataclasses.replace(
            best,
            K=best.K + 1e-2 * rng.normal(size=best.K.shape),
            k=best.k + 1e-2 * rng.normal(size=best.k.shape),
        )
        assert total(bumped) > total(best)


@pytest.mark.parametrize("t", [0, 5, 11])
def test_indefinite_step_is_named(problem, t):
    dynamics, cost, _, _ = problem
    C = cost.C.copy()
    C[t, 4:, 4:] -= 1e4 * np.eye(2)
    with pytest.raises(NotPositiveDefiniteError, match=rf"Q_uu .* t={t} ") as error:
        lqr.backward(dynamics, dataclasses.replace(cost, C=C))
    assert error.value.t == t
    assert -1e4 < error.value.smallest < -5e3


@pytest.mark.parametrize("t", [0, 6, 10])
@pytest.mark.parametrize("name", ["F", "f", "W"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_dynamics_are_named(problem, name, t, value):
    dynamics, cost, start, controller = problem
    array = getattr(dynamics, name).copy()
    array[t].flat[0] = value
    bad = dataclasses.replace(dynamics, **{name: array})
    for call in (
        lambda: lqr.backward(bad, cost),
        lambda: lqr.forward(bad, controller, start),
        lambda: dual.minimise(bad, cost, start, controller, 1.0),
        lambda: dual.minimise_per_step(bad, cost, start, controller, 1.0),
    ):
        with pytest.raises(NonFiniteError, match=rf"dynamics\.{name} is not finite at t={t};"):
            call()


@pytest.mark.parametrize("name", ["C", "c", "c0"])
def test_bad_cost_is_named(problem, name):
    dynamics, cost, start, controller = problem
    array = getattr(cost, name).copy()
    array[3].flat[-1] = np.nan if name == "c0" else np.inf
    array = array if name != "c0" else np.where(np.arange(len(array)) == 3, np.nan, array)
    bad = dataclasses.replace(cost, **{name: array})
    for call in (
        lambda: lqr.backward(dynamics, bad),
        lambda: lqr.expected_cost(bad, lqr.forward(dynamics, controller, start)),
        lambda: dual.minimise(dynamics, bad, start, controller, 1.0),
    ):
        with pytest.raises(NonFiniteError, match=rf"cost\.{name} is not finite at t=3;"):
            call()


def test_bad_controllers_and_starts_are_named(problem):
    dynamics, cost, start, controller = problem
    upper = dataclasses.replace(controller, chol=transposed(controller.chol))
    negative = dataclasses.replace(
        controller, chol=controller.chol * np.where(np.arange(12) == 4, -1, 1)[:, None, None]
    )
    nan = dataclasses.replace(controller, k=np.full((12, 2), np.nan))
    cases = [
        (upper, start, ShapeError, "lower triangular"),
        (negative, start, NotPositiveDefiniteError, "t=4"),
        (nan, start, NonFiniteError, r"\.k is not finite at t=0"),
        (controller, Gaussian(np.zeros(3), np.eye(3)), ShapeError, r"x0\.mean"),
        (controller, Gaussian(np.full(4, np.inf), np.eye(4)), NonFiniteError, r"x0\.mean"),
        (controller, Gaussian(np.zeros(4), -np.eye(4)), NotPositiveDefiniteError, r"x0\.cov"),
        (controller, Gaussian(np.zeros(4), np.tri(4)), ShapeError, r"x0\.cov is not symmetric"),
    ]
    for c, s, kind, text in cases:
        with pytest.raises(kind, match=text):
            lqr.forward(dynamics, c, s)
        with pytest.raises(kind, match=text):
            dual.minimise(dynamics, cost, s, c, 1.0)
    negative = dataclasses.replace(dynamics, W=-dynamics.W)
    with pytest.raises(NotPositiveDefiniteError, match=r"dynamics\.W .* t="):
        lqr.forward(negative, controller, start)


def test_wrong_sizes_are_named(rng, problem):
    dynamics, cost, start, controller = problem
    short, narrow = make_problem(rng, T=11), make_problem(rng, nu=1)
    for other in (short, narrow):
        with pytest.raises(ShapeError, match=r"cost\.C must have shape"):
            lqr.backward(dynamics, other[1])
        with pytest.raises(ShapeError, match=r"controller\.K must have shape"):
            lqr.forward(dynamics, other[3], start)
        with pytest.raises(ShapeError, match=r"previous\.K must have shape"):
            dual.minimise(dynamics, cost, start, other[3], 1.0)
        with pytest.raises(ShapeError, match=r"cost\.C must have shape"):
            lqr.expected_cost(other[1], lqr.forward(dynamics, controller, start))
    with pytest.raises(ShapeError, match="more columns than rows"):
        lqr.backward(LinearDynamics(np.ones((2, 3, 3)), np.ones((2, 3)), np.ones((2, 3, 3))), cost)
    with pytest.raises(ShapeError, match="temperature"):
        lqr.backward(dynamics, cost, np.ones(3))
    for heat in (-1.0, np.nan):
        with pytest.raises(ConfigError, match="temperature must be finite and 0 or above"):
            lqr.backward(dynamics, cost, heat)


def test_asymmetric_hessian_is_refused_and_rounding_symmetrised(problem):
    dynamics, cost, _, _ = problem
    C = cost.C.copy()
    C[7, 0, 5] *= 1.01
    with pytest.raises(ShapeError, match=r"cost\.C is not symmetric at t=7"):
        lqr.backward(dynamics, dataclasses.replace(cost, C=C))
    C = cost.C.copy()
    C[7, 0, 5] += 1e-7
    C[7, 5, 0] -= 1e-7
    a = lqr.backward(dynamics, dataclasses.replace(cost, C=C))
    assert_allclose(a.K, lqr.backward(dynamics, cost).K, rtol=1e-12)


def test_overflow_is_an_error(problem):
    dynamics, cost, start, controller = problem
    wild = dataclasses.replace(dynamics, F=dynamics.F * 1e60)
    with pytest.raises(NonFiniteError, match="marginals overflow at t="):
        lqr.forward(wild, controller, start)
    with pytest.raises((NonFiniteError, NotPositiveDefiniteError)):
        lqr.backward(wild, cost)


def test_inputs_stay_as_they_are_and_results_are_read_only(problem):
    dynamics, cost, start, controller = problem
    before = [a.tobytes() for a in (dynamics.F, cost.C, cost.c, controller.K, start.cov)]
    found = dual.minimise(dynamics, cost, start, controller, 0.1)
    dual.minimise_per_step(dynamics, cost, start, controller, 0.1)
    after = [a.tobytes() for a in (dynamics.F, cost.C, cost.c, controller.K, start.cov)]
    assert before == after
    for array in (found.controller.K, found.marginals.cov, found.kl, found.trace):
        assert not array.flags.writeable


def test_kernels_compile_once_per_caller(rng):
    """Writable, strided and read-only inputs reach the kernels alike: two variants at most."""
    dynamics, cost, start, controller = make_problem(rng)
    strided = np.zeros((24, 6, 6))
    strided[::2] = cost.C
    for C in (cost.C, strided[::2], cost.C.copy(), np.asfortranarray(cost.C)):
        same = QuadraticCost(C, cost.c, cost.c0)
        c = lqr.backward(dynamics, same)
        m = lqr.forward(dynamics, c, start)
        kl.kl_per_step(c, controller, m.mean.copy(), m.cov)
        dual.minimise(dynamics, same, start, controller, 0.1)
        dual.minimise_per_step(dynamics, same, start, controller, 0.1)
    assert len(_kernels.backward.signatures) == 1
    assert len(_kernels.trial.signatures) <= 2  # with a floor under the noise, and without
    assert len(_kernels.forward.signatures) <= 2
    assert len(_kernels.divergence.signatures) <= 2


def test_make_controller_is_valid(rng):
    c = make_controller(rng, 5, 3, 2)
    assert_allclose(np.linalg.inv(c.Sigma), c.precision)


def test_an_indefinite_q_uu_by_rounding_alone_is_not_blamed_on_the_cost(rng):
    dynamics, cost, _, _ = make_problem(rng)
    wild = LinearDynamics(1e30 * dynamics.F, dynamics.f, dynamics.W)
    with pytest.raises(NotPositiveDefiniteError, match="effect of rounding"):
        lqr.backward(wild, cost)
