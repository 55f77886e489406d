"""Dynamics and costs from the matrices of a textbook."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.linalg import solve_discrete_are

from gps.control import batch, dual, lqr
from gps.errors import NotPositiveDefiniteError, ShapeError
from gps.types import LinearDynamics, QuadraticCost

A = np.array([[1.0, 0.1], [0.0, 1.0]])
B = np.array([[0.005], [0.1]])
Q, R = np.diag([1.0, 0.1]), np.array([[0.5]])


def test_dynamics_that_do_not_change():
    offset, noise = np.array([0.1, -0.2]), 0.01 * np.eye(2)
    d = LinearDynamics.from_matrices(A, B, offset, noise, T=5)
    assert (d.T, d.nx, d.nu) == (5, 2, 1)
    for t in range(4):
        assert_array_equal(d.A[t], A)
        assert_array_equal(d.B[t], B)
        assert_array_equal(d.f[t], offset)
        assert_array_equal(d.W[t], noise)
    plain = LinearDynamics.from_matrices(A, B, T=np.int64(5))
    assert_array_equal(plain.F, d.F)
    assert not plain.f.any()
    assert not plain.W.any()


def test_stacked_parts_say_how_many_steps():
    stacked = np.stack([A, 2 * A, 3 * A])
    d = LinearDynamics.from_matrices(stacked, B, offset=np.arange(6.0).reshape(3, 2))
    assert d.T == 4
    assert_array_equal(d.A, stacked)
    assert_array_equal(d.B, np.stack([B] * 3))
    assert_array_equal(d.f[2], [4.0, 5.0])


def test_gains_are_those_of_the_riccati_equation():
    """With the infinite horizon's value as the final weight every step has its gain."""
    P = solve_discrete_are(A, B, Q, R)
    K = -np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)
    d = LinearDynamics.from_matrices(A, B, T=30)
    found = lqr.backward(d, QuadraticCost.from_matrices(Q, R, final=P, T=30))
    assert_allclose(found.K[:-1], np.stack([K] * 29), rtol=1e-10)
    assert_array_equal(found.K[-1], np.zeros((1, 2)))  # leads to no state, and costs


@pytest.mark.parametrize("stacked", [False, True])
def test_the_cost_is_what_the_formula_says(stacked):
    rng = np.random.default_rng(0)
    T, nx, nu = 4, 3, 2
    lead = (T,) if stacked else ()
    Q, R = rng.normal(size=(*lead, nx, nx)), rng.normal(size=(*lead, nu, nu))
    Q, R = Q + np.swapaxes(Q, -1, -2), R + np.swapaxes(R, -1, -2)
    q, r = rng.normal(size=(*lead, nx)), rng.normal(size=(*lead, nu))
    N, ref = rng.normal(size=(*lead, nx, nu)), rng.normal(size=(*lead, nx))
    final = np.eye(nx)
    for last in (None, final):
        cost = QuadraticCost.from_matrices(Q, R, q, r, N, ref, last, T=T)
        for t in range(T):
            at = (t,) if stacked else ()
            x, u = rng.normal(size=nx), rng.normal(size=nu)
            z, e = np.concatenate([x, u]), x - ref[at]
            want = 0.5 * u @ R[at] @ u
            if last is not None and t == T - 1:
                want += 0.5 * e @ final @ e
            else:
                want += 0.5 * e @ Q[at] @ e + e @ N[at] @ u + q[at] @ e + r[at] @ u
            got = 0.5 * z @ cost.C[t] @ z + cost.c[t] @ z + cost.c0[t]
            assert got == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearDynamics.from_matrices(A, B), "T must be given"),
        (lambda: LinearDynamics.from_matrices(A, B, T=1), "T must be at least 2, got 1"),
        (lambda: LinearDynamics.from_matrices(A, B, T=2.5), "T must be a whole number, got 2.5"),
        (lambda: LinearDynamics.from_matrices(A, B.ravel(), T=5), "B must have 2 axes"),
        (lambda: LinearDynamics.from_matrices(A, B.T, T=5), r"B must have shape \(2, 2\)"),
        (lambda: LinearDynamics.from_matrices(A, B, noise=np.eye(3), T=5), "noise must have shape"),
        (
            lambda: LinearDynamics.from_matrices(np.stack([A] * 3), np.stack([B] * 4)),
            r"different numbers of steps \(A: 3, B: 4\)",
        ),
        (
            lambda: LinearDynamics.from_matrices(np.stack([A] * 3), B, T=5),
            r"different numbers of steps \(T: 4, A: 3\)",
        ),
        (lambda: QuadraticCost.from_matrices(Q, R), "T must be given"),
        (lambda: QuadraticCost.from_matrices(Q, R, final=np.eye(3), T=5), "final must have shape"),
        (lambda: QuadraticCost.from_matrices(Q, R, N=np.ones((1, 2)), T=5), "N must have shape"),
        (lambda: QuadraticCost.from_matrices(Q, R, q=1.0, T=5), "q must have 1 axes, or 2"),
    ],
)
def test_parts_that_do_not_fit_are_named(make, message):
    with pytest.raises(ShapeError, match=message):
        make()


def test_a_last_action_without_a_cost_is_said():
    """Nothing of that is an effect of rounding."""
    d = LinearDynamics.from_matrices(A, B, T=5)
    free = QuadraticCost.from_matrices(Q, np.stack([R] * 4 + [np.zeros((1, 1))]), r=[0.1])
    with pytest.raises(NotPositiveDefiniteError, match=r"t=4.*the last action leads to no state"):
        lqr.backward(d, free)  # r charges it by a slope, which has no minimum
    idle = LinearDynamics.from_matrices(A, np.zeros((2, 1)), T=5)
    free = np.stack([R, np.zeros((1, 1)), R, R, R])
    with pytest.raises(NotPositiveDefiniteError, match=r"t=1.*no cost of its own.*add action cost"):
        lqr.backward(idle, QuadraticCost.from_matrices(Q, free))


def test_a_terminal_cost_needs_no_action_cost():
    """The last action is free: the gains before it are those of a last action that costs."""
    d, T = LinearDynamics.from_matrices(A, B, T=8), 8
    charged = QuadraticCost.from_matrices(Q, R, final=9 * Q, T=T)
    C = charged.C.copy()
    C[-1, 2:] = 0.0
    free = QuadraticCost(C, charged.c, charged.c0)
    a, b = lqr.backward(d, charged), lqr.backward(d, free)
    assert_array_equal(a.K, b.K)
    assert_array_equal(a.k, b.k)
    assert_array_equal(b.K[-1], np.zeros((1, 2)))
    assert_allclose(b.Sigma[-1], np.linalg.inv(R))
    stacked = batch.CostBatch.stack([free, charged])
    both = batch.backward(d, stacked)
    assert_array_equal(both[0].K, b.K)
    step = dual.minimise(d, free, np.ones(2), b, 0.5)
    assert lqr.expected_cost(free, step.marginals).sum() < (
        lqr.expected_cost(free, lqr.forward(d, b, np.ones(2))).sum()
    )


def test_temperature_zero_is_plain_lqr():
    """Without noise the state is that of the gains alone, and its cost the value of the start."""
    d, x0 = LinearDynamics.from_matrices(A, B, T=12), np.array([1.0, -0.5])
    cost = QuadraticCost.from_matrices(Q, R, T=12)
    plain, noisy = lqr.backward(d, cost, temperature=0.0), lqr.backward(d, cost)
    assert_array_equal(plain.K, noisy.K)
    assert not plain.chol.any()
    along = lqr.forward(d, plain, x0)
    assert not along.cov.any()
    x, total = x0, 0.0
    for t in range(12):
        u = plain.K[t] @ x + plain.k[t]
        assert_allclose(along.mean[t], np.concatenate([x, u]), rtol=1e-12)
        total += 0.5 * (x @ Q @ x + u @ R @ u)
        x = A @ x + B @ u
    assert lqr.expected_cost(cost, along).sum() == pytest.approx(total)
    together = batch.backward(d, cost, temperature=0.0)
    assert not together[0].chol.any()
    with pytest.raises(NotPositiveDefiniteError, match=r"previous\.Sigma"):
        dual.minimise(d, cost, x0, plain, 1.0)
