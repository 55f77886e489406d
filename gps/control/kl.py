"""Divergence between linear-Gaussian controllers, and the cost term that keeps them close."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from gps.control import _checks, _kernels
from gps.control.lqr import per_step
from gps.errors import ConfigError, NonFiniteError, ShapeError
from gps.fields import numbers, readonly
from gps.types import Array, LinearGaussianController, QuadraticCost

__all__ = ["kl_per_step", "penalised", "raised"]


def kl_per_step(
    new: LinearGaussianController, old: LinearGaussianController, mean: Array, cov: Array
) -> Array:
    """KL(new || old) of the action distributions, averaged over Gaussian states.

    With dK = K_old - K, dk = k_old - k, P = Sigma_old^-1 and the state marginal (m, S)::

        1/2 (log|Sigma_old| - log|Sigma| - nu + tr(P Sigma)
             + (dK m + dk)' P (dK m + dk) + tr(dK' P dK S))

    mean, cov: marginals of the states, (T, nx) and (T, nx, nx), or those of [x; u], whose state
    part is read. Under the marginals that `new` causes, the sum over t is the KL between the two
    trajectory distributions. Returns (T,) in nats, >= 0 up to rounding and not clipped, so that a
    sign error stays visible. Raises ShapeError, NonFiniteError (also on overflow, with the step),
    NotPositiveDefiniteError.
    Source: as in cbfinn/gps traj_opt_utils.py, which clips at 0.
    """
    _checks.kinds(new=new, old=old)
    T, nu, nx = new.K.shape
    _checks.controller("new", new, T, nu, nx)
    _checks.controller("old", old, T, nu, nx)
    mean, cov = numbers(mean, "mean"), numbers(cov, "cov")
    n = mean.shape[-1] if mean.ndim else 0
    if n not in (nx, nx + nu) or mean.shape != (T, n) or cov.shape != (T, n, n):
        raise ShapeError(
            f"mean and cov must have shapes {(T, nx)} and {(T, nx, nx)} "
            f"(or {nx + nu} for [x; u]), got {mean.shape} and {cov.shape}"
        )
    _checks.finite("mean", mean)
    _checks.finite("cov", cov)
    inv, half_logdet = factors(old, "old")
    kl = np.empty(T)
    _kernels.divergence(new.K, new.k, new.chol, old.K, old.k, inv, half_logdet, mean, cov, kl)
    t = _checks.not_finite(kl)
    if t >= 0:
        raise NonFiniteError(
            f"the KL overflows at t={t}; check the scale of the gains, of old.Sigma and of cov"
        )
    return kl


def penalised(
    cost: QuadraticCost,
    previous: LinearGaussianController,
    eta: float,
    entropy_weight: float = 0.0,
) -> QuadraticCost:
    """(cost + eta * (-log previous(u | x))) / (eta + entropy_weight).

    Under this cost `lqr.backward` gives the minimiser of E[cost] + eta KL(p || previous)
    - entropy_weight H(p), with H the entropy. With P = Sigma^-1 of `previous` the added term has
    the Hessian [[K'PK, -K'P], [-PK, P]], the gradient [K'Pk; -Pk] at z = 0 and the constant
    1/2 k'Pk + 1/2 log|2 pi Sigma|. eta in cost units per nat, above 0.

    Raises ConfigError (eta, entropy_weight), ShapeError, NonFiniteError, NotPositiveDefiniteError.
    """
    _checks.kinds(cost=cost, previous=previous)
    T, nu, nx = previous.K.shape
    _checks.controller("previous", previous, T, nu, nx)
    C = _checks.cost(cost, T, nx + nu)
    if np.ndim(eta) or np.ndim(entropy_weight):
        raise ConfigError("eta and entropy_weight must be numbers; see lqr.backward's temperature")
    per_step("eta", eta, 1)
    per_step("entropy_weight", entropy_weight, 1, zero=True)
    inv, half_logdet = factors(previous)
    R, r = penalty(previous, inv)
    with np.errstate(all="ignore"):  # what overflows is named below
        whitened = np.einsum("tij,tj->ti", inv, previous.k)
        r0 = 0.5 * (whitened**2).sum(axis=1) + half_logdet + 0.5 * nu * np.log(2 * np.pi)
        a, b = 1.0 / (eta + entropy_weight), eta / (eta + entropy_weight)
        H, h, h0 = a * C + b * R, a * cost.c + b * r, a * cost.c0 + b * r0
    for array in (H, h, h0):
        t = _checks.not_finite(array)
        if t >= 0:
            raise NonFiniteError(
                f"the penalised cost overflows at t={t} for eta {eta:.3g}; check the scale of the "
                "cost and of previous.Sigma"
            )
    return QuadraticCost(H, h, h0)


def factors(controller: LinearGaussianController, name: str = "previous") -> tuple[Array, Array]:
    """chol^-1 (T, nu, nu), read-only, and 1/2 log|Sigma| (T,)."""
    inv, half_logdet = np.empty_like(controller.chol), np.empty(controller.T)
    _kernels.invert_factors(controller.chol, inv, half_logdet)
    precise(name, inv)
    inv.setflags(write=False)
    half_logdet.setflags(write=False)
    return inv, half_logdet


def penalty(controller: LinearGaussianController, inv: Array) -> tuple[Array, Array]:
    """Hessian (T, nz, nz) and gradient (T, nz) at z = 0 of -log controller(u | x), read-only."""
    T, nu, nx = controller.K.shape
    R, r = np.empty((T, nx + nu, nx + nu)), np.empty((T, nx + nu))
    _kernels.relative_penalty(controller.K, controller.k, inv, R, r)
    precise("previous", R, r)
    R.setflags(write=False)
    r.setflags(write=False)
    return R, r


def precise(name: str, *arrays: Array) -> None:
    """NonFiniteError where what is made of a controller's precision overflows."""
    for array in arrays:
        t = _checks.not_finite(array)
        if t >= 0:
            raise NonFiniteError(
                f"the precision of {name} overflows at t={t}; its Sigma is too small, or its gains "
                "too large"
            )


def floor_of(std_floor: npt.ArrayLike | None, nu: int) -> Array | None:
    """Minimum standard deviations, scalar or (nu,), as (nu,) numbers; None for none.

    ConfigError, ShapeError.
    """
    if std_floor is None:
        return None
    floor = numbers(std_floor, "std_floor")
    if floor.shape not in ((), (nu,)):
        raise ShapeError(f"std_floor must be a number or have shape {(nu,)}, got {floor.shape}")
    if not (np.isfinite(floor) & (floor > 0)).all():
        raise ConfigError(f"std_floor must be finite and above 0, got {floor}")
    return np.array(np.broadcast_to(floor, (nu,)))


def raised(
    controller: LinearGaussianController, std_floor: npt.ArrayLike | None
) -> LinearGaussianController:
    """The controller with at least the noise of a floor: Sigma_t >= diag(std_floor^2).

    std_floor: standard deviations in the units of the actions, scalar or (nu,), above 0; None
    or empty for none. In units of the floor, eigenvalues of Sigma_t below 1 become 1: of all
    covariances above the floor the one with the least KL divergence from Sigma_t. Raises
    ConfigError, ShapeError, NonFiniteError (overflow, with the step).
    """
    if std_floor is None or np.size(std_floor) == 0:
        return controller
    floor = floor_of(std_floor, controller.nu)
    chol = controller.chol.copy()
    status, t = _kernels.raise_covariance(chol, floor)
    if status != _kernels.OK:
        raise NonFiniteError(
            f"Sigma in units of std_floor overflows at t={t}; std_floor is too small"
        )
    if (chol == controller.chol).all():
        return controller
    return replace(controller, chol=readonly(chol))
