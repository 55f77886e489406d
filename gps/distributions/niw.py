"""The normal-inverse-Wishart prior over a Gaussian's mean and covariance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt

from gps.distributions import _kernels
from gps.distributions.gmm import Mixture, responsibilities
from gps.errors import FitError, ShapeError
from gps.fields import Shape
from gps.types import Array, Record


@dataclass(frozen=True, eq=False)
class NIW(Record):
    """Mean known to kappa0 samples about mu0, covariance to nu0 samples with scatter Psi."""

    mu0: Annotated[Array, Shape("D")]
    Psi: Annotated[Array, Shape("D D")]
    """Symmetric positive semi-definite; a scatter, not a covariance."""
    kappa0: float
    nu0: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kappa0 < 0 or self.nu0 < 0:
            raise FitError(f"NIW counts must not be negative, got {self.kappa0}, {self.nu0}")


@dataclass(frozen=True, eq=False)
class StepwiseNIW(Record):
    """A normal-inverse-Wishart prior for each of Tp steps."""

    mu0: Annotated[Array, Shape("Tp D")]
    Psi: Annotated[Array, Shape("Tp D D")]
    """Symmetric positive semi-definite; scatters, not covariances."""
    kappa0: float
    nu0: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kappa0 < 0 or self.nu0 < 0:
            raise FitError(f"NIW counts must not be negative, got {self.kappa0}, {self.nu0}")


def mixture_moments(mixture: Mixture, weights: npt.ArrayLike) -> tuple[Array, Array]:
    """Mean (D,) and covariance (D, D) of the mixture with other weights (J,)."""
    w = np.ascontiguousarray(weights, dtype=np.float64)
    if w.shape != (mixture.J,):
        raise ShapeError(f"weights must be ({mixture.J},), got {w.shape}")
    mu, S = np.empty(mixture.D), np.empty((mixture.D, mixture.D))
    # writable copies: numba would compile the kernel again for read-only arrays
    _kernels.mixture_moments(w.copy(), mixture.mean.copy(), mixture.cov.copy(), mu, S)
    return mu, S


def prior_counts(n_fitted: int, D: int, strength: float) -> tuple[float, float]:
    """kappa0 and nu0 of a mixture fitted to n_fitted points of size D, worth `strength` samples.

    nu0 = strength (n_fitted - 2 - D) / n_fitted as in the public reference, but 0 where that is
    negative (fewer points than coordinates), which would turn the posterior's sign.
    """
    return strength, strength * max(n_fitted - 2 - D, 0) / n_fitted


def mixture_prior(
    mixture: Mixture, points: npt.ArrayLike, n_fitted: int, strength: float = 1.0
) -> NIW:
    """The mixture near the points (N, D): its moments under their averaged responsibilities."""
    mu0, S0 = mixture_moments(mixture, responsibilities(mixture, points).mean(axis=0))
    kappa0, nu0 = prior_counts(n_fitted, mixture.D, strength)
    return NIW(mu0, strength * S0, kappa0, nu0)


def posterior_covariance(prior: NIW, points: npt.ArrayLike) -> Array:
    """(N S + Psi + N kappa0/(N + kappa0) (ybar - mu0)(ybar - mu0)') / (N + nu0), points (N, D).

    S is the sample covariance with divisor N.
    """
    Y = np.asarray(points, dtype=np.float64)
    N, mean = len(Y), Y.mean(axis=0)
    R, d = Y - mean, mean - prior.mu0
    scatter = R.T @ R + prior.Psi + N * prior.kappa0 / (N + prior.kappa0) * np.outer(d, d)
    result: Array = (scatter + scatter.T) / (2 * (N + prior.nu0))
    return result
