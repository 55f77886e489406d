"""Finite-horizon linear-quadratic-Gaussian control.

The problem: dynamics x[t+1] ~ N(F[t] z + f[t], W[t]) with z = [x; u] for t = 0 .. T-2, and cost
1/2 z'C[t]z + c[t]'z + c0[t] for t = 0 .. T-1. A trajectory has T states and T actions: the last
action leads to no state, but is charged by the cost of its step. Everything is affine in absolute
states and actions: an expansion about a trajectory has to be rewritten about z = 0 first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gps.control import _checks, _kernels
from gps.errors import ConfigError, NonFiniteError, NotPositiveDefiniteError, ShapeError
from gps.types import (
    Array,
    Gaussian,
    LinearDynamics,
    LinearGaussianController,
    Marginals,
    QuadraticCost,
)

__all__ = ["backward", "expected_cost", "forward"]


def backward(
    dynamics: LinearDynamics, cost: QuadraticCost, temperature: float | Array = 1.0
) -> LinearGaussianController:
    """The controller that minimises the expected cost less temperature times entropy.

    For t = T-1 .. 0, with V = 0 after the last step::

        Q_zz = C + F' V_xx F            Q_z = c + F' (V_x + V_xx f)
        K = -Q_uu^-1 Q_ux               k = -Q_uu^-1 Q_u        Sigma = temperature Q_uu^-1
        V_xx = Q_xx + Q_xu K            V_x = Q_x + Q_xu k

    K and k are the LQR gains whatever the temperature, which sets the exploration alone: a scalar
    or (T,) values, in cost units per nat. The default of 1 is maximum-entropy LQR; 0 is plain LQR,
    a controller without noise, from which no KL can be measured. Returns K (T, nu, nx), k (T, nu)
    and the lower Cholesky factors of Sigma (T, nu, nu).

    A terminal cost needs no action cost: where the last step charges its action nothing (no entry
    of C and c that belongs to it), K and k are 0 there, and Sigma is that of the action's cost at
    the step before.

    Raises ShapeError (sizes, or a Hessian asymmetric beyond rounding), NonFiniteError, ConfigError
    (temperature), NotPositiveDefiniteError with t and the smallest eigenvalue of Q_uu.
    Source: the recursion of cbfinn/gps traj_opt_lqr_python.py (which normalises the cost by the
    temperature instead of scaling Sigma).
    """
    _checks.kinds(dynamics=dynamics, cost=cost)
    T, nx, nu = dynamics.T, dynamics.nx, dynamics.nu
    _checks.dynamics(dynamics)
    C = terminal(_checks.cost(cost, T, nx + nu), cost.c, nu)
    temperatures = per_step("temperature", temperature, T, zero=True)
    K, k, chol = np.empty((T, nu, nx)), np.empty((T, nu)), np.empty((T, nu, nu))
    Q_uu = np.empty((nu, nu))
    c = cost.c
    status, t = _kernels.backward(
        C, c, C, c, 0.0, temperatures, dynamics.F, dynamics.f, K, k, chol, Q_uu
    )  # fmt: skip
    if status == _kernels.NOT_POSITIVE_DEFINITE and np.isfinite(Q_uu).all():
        raise NotPositiveDefiniteError(
            "Q_uu",
            t=t,
            smallest=_checks.smallest(Q_uu),
            hint=_checks.advice(
                C,
                t,
                nu,
                "add action cost, or bound the KL to a previous controller (gps.control.dual)",
            ),
        )
    check_overflow(status, t, K, chol)
    return controller_of(K, k, chol)


def forward(
    dynamics: LinearDynamics,
    controller: LinearGaussianController,
    x0: Gaussian | npt.ArrayLike,
) -> Marginals:
    """Gaussian marginals of z = [x; u] along the trajectory.

    x0: distribution of x[0], or the state (nx,) itself. Returns

    mean (T, nz) and cov (T, nz, nz), with u = K x + k + noise of covariance Sigma::

        cov = [[S, S K'], [K S, K S K' + Sigma]]        S[t+1] = F cov F' + W

    Raises ShapeError, NonFiniteError (also when an unstable closed loop overflows, with the step),
    NotPositiveDefiniteError with the step and, for `dynamics.W` and `x0.cov`, the smallest
    eigenvalue: they may be singular, as the controller's Sigma, but no eigenvalue below -1e-8 times
    the largest variance.
    """
    _checks.kinds(dynamics=dynamics, controller=controller)
    T, nx, nu = dynamics.T, dynamics.nx, dynamics.nu
    _checks.dynamics(dynamics)
    _checks.controller("controller", controller, T, nu, nx, noiseless=True)
    W, (x0_mean, x0_cov) = _checks.noise(dynamics), _checks.start(x0, nx)
    mean, cov = np.empty((T, nx + nu)), np.empty((T, nx + nu, nx + nu))
    status, t = _kernels.forward(
        controller.K, controller.k, controller.chol, dynamics.F, dynamics.f, W,
        x0_mean, x0_cov, mean, cov,
    )  # fmt: skip
    if status == _kernels.OK and cov.diagonal(axis1=1, axis2=2).max() > 1e140:
        t = _checks.not_finite(cov)  # products off the diagonal can overflow first
        status = _kernels.NON_FINITE if t >= 0 else status
    if status != _kernels.OK:
        raise NonFiniteError(
            f"the trajectory marginals overflow at t={t}; the closed loop is unstable: check "
            "dynamics.F and the controller's gains, or shorten the horizon"
        )
    mean.setflags(write=False)
    cov.setflags(write=False)
    return Marginals(mean, cov)


def expected_cost(cost: QuadraticCost, marginals: Marginals) -> Array:
    """E[1/2 z'Cz + c'z + c0] per step under Gaussian marginals, (T,), in cost units.

    Equal to 1/2 tr(C cov) + 1/2 m'C m + c'm + c0. Raises ShapeError, NonFiniteError (also when the
    sum overflows, with the step).
    """
    _checks.kinds(cost=cost, marginals=marginals)
    T, nz = marginals.mean.shape
    C = _checks.cost(cost, T, nz)
    _checks.finite("marginals.mean", marginals.mean)
    _checks.finite("marginals.cov", marginals.cov)
    out = np.empty(T)
    _kernels.expected_cost(C, cost.c, cost.c0, marginals.mean, marginals.cov, out)
    t = _checks.not_finite(out)
    if t >= 0:
        raise NonFiniteError(
            f"the expected cost overflows at t={t}; check the scale of the cost and the marginals"
        )
    return out


def terminal(C: Array, c: Array, nu: int) -> Array:
    """The Hessians; where the last action is charged nothing, with the action cost of the step
    before, so that it has a minimum, at 0."""
    if C[-1, -1, -1] != 0.0 or len(C) < 2 or C[-1, -nu:].any() or c[-1, -nu:].any():
        return C
    C = C.copy()
    C[-1, -nu:, -nu:] = C[-2, -nu:, -nu:]
    C.setflags(write=False)
    return C


def per_step(name: str, value: float | Array, T: int, *, zero: bool = False) -> Array:
    """A scalar or (T,) values as a (T,) array, each above 0 (or not below, with `zero`)."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise ConfigError(f"{name} must be a number, got {value!r}")
    array = array.astype(np.float64)
    if array.shape not in ((), (T,)):
        raise ShapeError(f"{name} must be a number or have shape {(T,)}, got {array.shape}")
    good = np.isfinite(array) & ((array >= 0) if zero else (array > 0))
    if not good.all():
        limit = "0 or above" if zero else "above 0"
        raise ConfigError(f"{name} must be finite and {limit}, got {array[~good].flat[0]}")
    return np.broadcast_to(array, (T,)).copy()


def check_overflow(status: int, t: int, K: Array, chol: Array) -> None:
    """NonFiniteError if a backward pass became non-finite, with the step at which it did."""
    if status == _kernels.OK:
        t = _checks.last_not_finite(K, chol)
    if status != _kernels.OK or t >= 0:
        raise NonFiniteError(
            f"the value function overflows at t={t}; the dynamics may be unstable or badly scaled: "
            "check dynamics.F, and bring states, actions and cost to the order of 1"
        )


def controller_of(K: Array, k: Array, chol: Array) -> LinearGaussianController:
    """A record that takes over freshly computed arrays without copying them."""
    for array in (K, k, chol):
        array.setflags(write=False)
    return LinearGaussianController(K, k, chol)
