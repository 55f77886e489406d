"""What the kernels take for granted, checked once per call."""

from __future__ import annotations

import weakref
from functools import cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from gps.control import _kernels
from gps.errors import NonFiniteError, NotPositiveDefiniteError, ShapeError
from gps.fields import checked, numbers, readonly
from gps.linalg import smallest_eigenvalue
from gps.types import (
    Array,
    Gaussian,
    LinearDynamics,
    LinearGaussianController,
    Marginals,
    QuadraticCost,
    Record,
)

C = TypeVar("C")

SYMMETRY_TOLERANCE = 1e-6
"""Largest asymmetry, relative to the largest entry, that is taken for rounding."""

DEFINITE_TOLERANCE = 1e-8
"""How far below zero a covariance's eigenvalue may be, relative to its largest variance."""

# Covariances found good, while they live. A factorisation of every W is a tenth of a backward and
# forward pass, and the same model is asked about many times. By identity: the arrays are read-only.
_good: dict[int, weakref.ref[Array]] = {}


_CONTROLLER = LinearGaussianController, "gains K (T, nu, nx), k (T, nu) and chol (T, nu, nu)"
_KINDS: dict[str, tuple[type, str]] = {
    "dynamics": (LinearDynamics, "LinearDynamics.from_matrices(A, B, T=T) makes one"),
    "cost": (QuadraticCost, "QuadraticCost.from_matrices(Q, R, T=T) makes one"),
    "marginals": (Marginals, "gps.control.lqr.forward gives them"),
    **dict.fromkeys(("controller", "previous", "new", "old"), _CONTROLLER),
}


def kinds(**given: object) -> None:
    """ShapeError where an argument is not the record that its name asks for."""
    for name, value in given.items():
        require(name, value, *_KINDS[name])


def require(name: str, value: object, kind: type, how: str) -> None:
    """ShapeError where an argument is no record of the kind; how: to make one."""
    if not isinstance(value, kind):
        raise ShapeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}: {how}")


def same_steps(result: Record, controller: LinearGaussianController, kl: Array) -> None:
    """ShapeError unless what a result holds per step has the steps of its controller."""
    if len(kl) != controller.T:
        raise ShapeError(
            f"{type(result).__name__}.kl has {len(kl)} steps, its controller has {controller.T}"
        )


def config(kind: type[C], given: C | None) -> C:
    """The configuration, by default all defaults; ConfigError where it is one of another kind."""
    found: C = kind() if given is None else checked(given, kind, "config")
    return found


def finite(name: str, array: Array) -> None:
    """NonFiniteError with the array's name and the first step t that holds NaN or infinity."""
    t = not_finite(array)
    if t >= 0:
        raise NonFiniteError(f"{name} is not finite at t={t}; check where it was computed")


def not_finite(array: Array) -> int:
    """The first step t that holds NaN or infinity, or -1."""
    stacked = array.reshape(array.shape[0], -1) if array.size else array.reshape(0, 0)
    return int(_kernels.scan_finite(stacked))


def last_not_finite(*arrays: Array) -> int:
    """The last step t at which one of the arrays holds NaN or infinity, or -1."""
    bad = [~np.isfinite(a.reshape(len(a), -1)).all(axis=1) for a in arrays]
    steps = np.flatnonzero(np.any(bad, axis=0))
    return int(steps[-1]) if len(steps) else -1


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
    array = np.ascontiguousarray(0.5 * array + 0.5 * array.transpose(0, 2, 1))
    array.setflags(write=False)
    return array


def smallest(matrix: Array) -> float:
    """The smallest eigenvalue, for error messages; of entries near overflow too."""
    with np.errstate(all="ignore"):
        size = float(np.abs(matrix).max()) if matrix.size else 0.0
        if not 1e150 < size < np.inf:
            return smallest_eigenvalue(matrix)
        return size * smallest_eigenvalue(matrix / size)


def advice(hessians: Array, t: int, nu: int, otherwise: str) -> str:
    """What to try against an indefinite Q_uu at step t; hessians: of the cost, (T, nz, nz)."""
    with np.errstate(all="ignore"):
        least = np.array([smallest(H) for H in hessians])
        size = np.abs(hessians).max(axis=(1, 2))
    if np.all(least >= -1e-10 * size):
        if smallest(hessians[t][-nu:, -nu:]) <= 1e-10 * size[t]:
            last = t == len(hessians) - 1
            return (
                "the action has no cost of its own in some direction"
                + (", and the last action leads to no state: " if last else ": ")
                + "add action cost"
                + (" (with QuadraticCost.from_matrices: final=)" if last else "")
            )
        return (
            "the cost is convex, so that this is an effect of rounding: the dynamics may be "
            "unstable or badly scaled"
        )
    return otherwise


def covariance(name: str, array: Array) -> Array:
    """The stacked covariances, made exactly symmetric; an error if one is indefinite."""
    known = _good.get(id(array))
    if known is not None and known() is array:
        return array
    good = symmetric(name, array)
    diagonal = good.diagonal(axis1=1, axis2=2)
    if good.size and diagonal.min() < 0:
        t = int(diagonal.min(axis=1).argmin())
        raise NotPositiveDefiniteError(
            name, t=t, smallest=smallest(good[t]), hint="a variance is below 0"
        )
    t = int(_kernels.scan_semidefinite(good, DEFINITE_TOLERANCE))
    if t >= 0:
        raise NotPositiveDefiniteError(
            name,
            t=t,
            smallest=smallest(good[t]),
            hint="a covariance may be singular, but not indefinite; check its off-diagonal "
            "entries, or set its negative eigenvalues to 0",
        )
    if good is array and array.base is None:
        key = id(array)
        _good[key] = weakref.ref(array, lambda _: _good.pop(key, None))
    return good


def dynamics(value: LinearDynamics) -> None:
    """Finite transitions of states and actions."""
    if value.nx < 1 or value.nu < 1:
        raise ShapeError(f"dynamics.F must have more columns than rows, got {value.F.shape[1:]}")
    for name in ("F", "f", "W"):
        finite(f"dynamics.{name}", getattr(value, name))


def noise(value: LinearDynamics) -> Array:
    """W, symmetric and positive semi-definite."""
    return covariance("dynamics.W", value.W)


def cost(value: QuadraticCost, T: int, nz: int) -> Array:
    """Finite cost of the right size; returns its symmetric Hessian."""
    if value.C.shape != (T, nz, nz):
        raise ShapeError(f"cost.C must have shape {(T, nz, nz)} (T, nz, nz), got {value.C.shape}")
    for name in ("C", "c", "c0"):
        finite(f"cost.{name}", getattr(value, name))
    return symmetric("cost.C", value.C)


def controller(
    name: str, value: LinearGaussianController, T: int, nu: int, nx: int, *, noiseless: bool = False
) -> None:
    """Finite controller of the right size with lower factors of positive diagonal.

    noiseless: factors may be singular, as those of a deterministic controller are.
    """
    if value.K.shape != (T, nu, nx):
        raise ShapeError(f"{name}.K must have shape {(T, nu, nx)} (T, nu, nx), got {value.K.shape}")
    if not value.K.size:
        raise ShapeError(f"{name}.K must not be empty, got shape {value.K.shape} (T, nu, nx)")
    for field in ("K", "k", "chol"):
        finite(f"{name}.{field}", getattr(value, field))
    diagonal = value.chol.diagonal(axis1=1, axis2=2)
    if diagonal.min() <= 0 and not (noiseless and diagonal.min() == 0):
        t = int(diagonal.min(axis=1).argmin())
        raise NotPositiveDefiniteError(
            f"{name}.Sigma", t=t, hint="the diagonal of its Cholesky factor must be above 0"
        )
    upper = value.chol[:, *np.triu_indices(nu, 1)]
    if upper.any():
        t = int(np.abs(upper).max(axis=1).argmax())
        raise ShapeError(f"{name}.chol[{t}] is not lower triangular; transpose an upper factor")


def start(x0: Gaussian | npt.ArrayLike, nx: int) -> tuple[Array, Array]:
    """Mean and symmetric covariance of a finite start: a Gaussian, or an exactly known state."""
    if not isinstance(x0, Gaussian):
        return start_state(x0, nx), _known(nx)
    if x0.mean.shape != (nx,):
        raise ShapeError(f"x0.mean must have shape {(nx,)} (nx,), got {x0.mean.shape}")
    finite("x0.mean", x0.mean[None])
    finite("x0.cov", x0.cov[None])
    return x0.mean, covariance("x0.cov", x0.cov[None])[0]


def start_state(x0: Gaussian | npt.ArrayLike, nx: int) -> Array:
    """A finite start state (nx,); of a Gaussian its mean."""
    kind = f"x0 must be a Gaussian or a state of shape {(nx,)}"
    if x0 is None or (isinstance(x0, Record) and not isinstance(x0, Gaussian)):
        raise ShapeError(f"{kind}, got {type(x0).__name__}")
    value = numbers(x0.mean if isinstance(x0, Gaussian) else x0, "x0")
    if value.shape != (nx,):
        raise ShapeError(f"{kind}, got shape {value.shape}")
    finite("x0", value[None])
    return value


@cache
def _known(nx: int) -> Array:
    """The covariance of a state that is known exactly."""
    return readonly(np.zeros((nx, nx)))
