"""Problems that the tests of this folder share."""

from pathlib import Path

import numpy as np
from numba import njit

from gps.types import Gaussian, LinearDynamics, LinearGaussianController, QuadraticCost

FIXTURES = Path(__file__).parent.parent / "fixtures"


def make_problem(rng, T=12, nx=4, nu=2):
    """A random well-posed problem and a controller to stay close to."""
    nz = nx + nu
    F = 0.6 * rng.normal(size=(T - 1, nx, nz))
    root = rng.normal(size=(T, nz, nz))
    noise = 0.2 * rng.normal(size=(T - 1, nx, nx))
    spread = 0.3 * rng.normal(size=(nx, nx))
    dynamics = LinearDynamics(F, rng.normal(size=(T - 1, nx)), noise @ noise.transpose(0, 2, 1))
    cost = QuadraticCost(
        root @ root.transpose(0, 2, 1) + 0.2 * np.eye(nz),
        rng.normal(size=(T, nz)),
        rng.normal(size=T),
    )
    start = Gaussian(rng.normal(size=nx), spread @ spread.T)
    return dynamics, cost, start, make_controller(rng, T, nx, nu)


def hard_problem(seed):
    """A problem whose states may grow by orders, a bound on the KL per step, an entropy weight.

    Spectral radius up to 1.1 of random A, previous gains from none to such that let states explode.
    """
    rng = np.random.default_rng(seed)
    T, nx, nu = int(rng.choice([10, 30, 100])), int(rng.integers(2, 9)), int(rng.integers(1, 4))
    radius, gain = rng.choice([0.9, 1.0, 1.05, 1.1]), rng.choice([0.0, 0.05, 0.3])
    bound = float(rng.choice([0.05, 0.3, 1.0, 3.0]))
    A = rng.normal(size=(T - 1, nx, nx)) / np.sqrt(nx)
    A *= radius / np.maximum(np.abs(np.linalg.eigvals(A)).max(axis=1)[:, None, None], 1e-9)
    F = np.concatenate([A, rng.normal(size=(T - 1, nx, nu))], axis=2)
    f, w = 0.3 * rng.normal(size=(T - 1, nx)), 0.2 * rng.normal(size=(T - 1, nx, nx))
    Q, _ = np.linalg.qr(rng.normal(size=(T, nx + nu, nx + nu)))
    C = (Q * 10.0 ** rng.uniform(-0.5, 0.5, size=(T, 1, nx + nu))) @ Q.transpose(0, 2, 1)
    C = 0.5 * (C + C.transpose(0, 2, 1))
    cost = QuadraticCost(C, rng.normal(size=(T, nx + nu)), rng.normal(size=T))
    s = 0.3 * rng.normal(size=(nx, nx))
    dynamics = LinearDynamics(F, f, w @ w.transpose(0, 2, 1))
    start = Gaussian(rng.normal(size=nx), s @ s.T)
    chol = np.tril(0.15 * rng.normal(size=(T, nu, nu)), -1)
    chol += np.eye(nu) * 0.5 * np.exp(0.3 * rng.normal(size=(T, 1, nu)))
    previous = LinearGaussianController(
        gain * rng.normal(size=(T, nu, nx)), gain * rng.normal(size=(T, nu)), chol
    )
    return (dynamics, cost, start, previous), bound, float(10 ** rng.uniform(-1, 1))


def make_controller(rng, T, nx, nu):
    chol = np.tril(0.3 * rng.normal(size=(T, nu, nu)), -1)
    chol += np.eye(nu) * rng.uniform(0.5, 1.5, size=(T, 1, nu))
    return LinearGaussianController(
        0.3 * rng.normal(size=(T, nu, nx)), 0.3 * rng.normal(size=(T, nu)), chol
    )


def transposed(stack):
    return stack.transpose(0, 2, 1)


def load(name):
    """Inputs of a recorded LQR problem as records, and the raw arrays."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        d = dict(file)
    dynamics = LinearDynamics(d["Fm"][:-1], d["fv"][:-1], d["dyn_covar"][:-1])
    cost = QuadraticCost(d["Cm"], d["cv"], d["cc"])
    start = Gaussian(d["x0mu"], d["x0sigma"])
    previous = LinearGaussianController(
        d["prev_K"], d["prev_k"], transposed(d["prev_chol_pol_covar"])
    )
    return d, dynamics, cost, start, previous


@njit
def cart_pole(x, u, t, out):
    """Cart position and pole angle (0 is up), 20 ms a step, semi-implicit Euler."""
    cart, pole, half, g, dt = 1.0, 0.1, 0.5, 9.81, 0.02
    s, c = np.sin(x[1]), np.cos(x[1])
    push = (u[0] + pole * half * x[3] ** 2 * s) / (cart + pole)
    turn = (g * s - c * push) / (half * (4.0 / 3.0 - pole * c * c / (cart + pole)))
    out[2] = x[2] + dt * (push - pole * half * turn * c / (cart + pole))
    out[3] = x[3] + dt * turn
    out[0] = x[0] + dt * out[2]
    out[1] = x[1] + dt * out[3]


@njit
def double_pendulum(x, u, t, out):
    """Two massless rods of 1 m with 1 kg at their ends, torques at both joints; the first angle is
    from hanging, the second relative to it. 20 ms a step, semi-implicit Euler."""
    g, dt = 9.81, 0.02
    a, b, da, db = x[0], x[0] + x[1], x[2], x[2] + x[3]
    c, s = np.cos(a - b), np.sin(a - b)
    r = u[0] - u[1] - s * db * db - 2.0 * g * np.sin(a)
    q = u[1] + s * da * da - g * np.sin(b)
    det = 2.0 - c * c
    dda, ddb = (r - c * q) / det, (2.0 * q - c * r) / det
    out[2] = x[2] + dt * dda
    out[3] = x[3] + dt * (ddb - dda)
    out[0] = x[0] + dt * out[2]
    out[1] = x[1] + dt * out[3]
