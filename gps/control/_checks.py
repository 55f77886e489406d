"""What the kernels take for granted, checked once per call."""

from __future__ import annotations

import numpy as np

from gps.control import _kernels
from gps.errors import NonFiniteError, NotPositiveDefiniteError, ShapeError
from gps.linalg import smallest_eigenvalue
from gps.types import Array, Gaussian, LinearDynamics, LinearGaussianController, QuadraticCost

SYMMETRY_TOLERANCE = 1e-6
"""Largest asymmetry, relative to the largest entry, that is taken for rounding."""


def finite(name: str, array: Array) -> None:
    """NonFiniteError with the array's name and the first step t that holds NaN or infinity."""
    stacked = array.reshape(array.shape[0], -1) if array.size else array.reshape(0, 0)
    t = int(_kernels.scan_finite(stacked))
    if t >= 0:
        raise NonFiniteError(f"{name} is not finite at t={t}; check where it was computed")


def symmetric(name: str, array: Array) -> Array:
    """The stacked matrices, made exactly symmetric; ShapeError if they are not nearly so."""
    off, t = _kernels.scan_symmetry(array)
    if off > SYMMETRY_TOLERANCE:
        raise ShapeError(
            f"{name} is not symmetric at t={t}: |M - M'| is {off:.2g} of its largest entry; "
            "symmetrise it, or check the mixed derivatives"
        )
    if off == 0.0:
        return array
    array = np.ascontiguousarray(0.5 * (array + array.transpose(0, 2, 1)))
    array.setflags(write=False)
    return array


def dynamics(value: LinearDynamics) -> None:
    """Finite transitions and a covariance whose diagonal is not negative."""
    if value.nx < 1 or value.nu < 1:
        raise ShapeError(f"dynamics.F must have more columns than rows, got {value.F.shape[1:]}")
    for name in ("F", "f", "W"):
        finite(f"dynamics.{name}", getattr(value, name))


def noise(value: LinearDynamics) -> Array:
    """W, symmetric and with no negative variance."""
    W = symmetric("dynamics.W", value.W)
    if W.size and W.diagonal(axis1=1, axis2=2).min() < 0:
        t = int(W.diagonal(axis1=1, axis2=2).min(axis=1).argmin())
        raise NotPositiveDefiniteError(
            "dynamics.W", t=t, smallest=smallest_eigenvalue(W[t]), hint="a variance is below 0"
        )
    return W


def cost(value: QuadraticCost, T: int, nz: int) -> Array:
    """Finite cost of the right size; returns its symmetric Hessian."""
    if value.C.shape != (T, nz, nz):
        raise ShapeError(f"cost.C must have shape {(T, nz, nz)} (T, nz, nz), got {value.C.shape}")
    for name in ("C", "c", "c0"):
        finite(f"cost.{name}", getattr(value, name))
    return symmetric("cost.C", value.C)


def controller(name: str, value: LinearGaussianController, T: int, nu: int, nx: int) -> None:
    """Finite controller of the right size with lower factors of positive diagonal."""
    if value.K.shape != (T, nu, nx):
        raise ShapeError(f"{name}.K must have shape {(T, nu, nx)} (T, nu, nx), got {value.K.shape}")
    for field in ("K", "k", "chol"):
        finite(f"{name}.{field}", getattr(value, field))
    diagonal = value.chol.diagonal(axis1=1, axis2=2)
    if diagonal.min() <= 0:
        t = int(diagonal.min(axis=1).argmin())
        raise NotPositiveDefiniteError(
            f"{name}.Sigma", t=t, hint="the diagonal of its Cholesky factor must be above 0"
        )
    upper = value.chol[:, *np.triu_indices(nu, 1)]
    if upper.any():
        t = int(np.abs(upper).max(axis=1).argmax())
        raise ShapeError(f"{name}.chol[{t}] is not lower triangular; transpose an upper factor")


def start(value: Gaussian, nx: int) -> Array:
    """Finite start distribution of the right size; returns its symmetric covariance."""
    if value.mean.shape != (nx,):
        raise ShapeError(f"start.mean must have shape {(nx,)} (nx,), got {value.mean.shape}")
    finite("start.mean", value.mean[None])
    finite("start.cov", value.cov[None])
    cov = symmetric("start.cov", value.cov[None])[0]
    if cov.diagonal().min() < 0:
        raise NotPositiveDefiniteError(
            "start.cov", t=0, smallest=smallest_eigenvalue(cov), hint="a variance is below 0"
        )
    return cov
