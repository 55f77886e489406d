"""Dynamics and costs from the matrices of a textbook."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.linalg import solve_discrete_are

from gps.control import lqr
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
    free = np.stack([R] * 4 + [np.zeros((1, 1))])
    with pytest.raises(NotPositiveDefiniteError, match=r"t=4.*the last action leads to no state"):
        lqr.backward(d, QuadraticCost.from_matrices(Q, free))
    idle = LinearDynamics.from_matrices(A, np.zeros((2, 1)), T=5)
    free = np.stack([R, np.zeros((1, 1)), R, R, R])
    with pytest.raises(NotPositiveDefiniteError, match=r"t=1.*no cost of its own.*add action cost"):
        lqr.backward(idle, QuadraticCost.from_matrices(Q, free))
