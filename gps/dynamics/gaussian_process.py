"""Exact Gaussian-process regression with one length scale per input.

Every output has a process of its own, with mean zero on standardised data and the squared
exponential kernel with automatic relevance determination,

    k(z, z') = s^2 exp(-1/2 sum_d (z_d - z'_d)^2 / l_d^2),      y = f(z) + noise of variance v^2.

The hyperparameters l, s and v maximise the marginal likelihood times a weak prior (L-BFGS on their
logarithms), the posterior is exact. Sources: C. E. Rasmussen, C. K. I. Williams, Gaussian Processes
for Machine Learning, MIT Press 2006, chapters 2 and 5 (algorithm 2.1, equations 5.8 and 5.9); the
prior over length scales, which grow with the root of the number of inputs: C. Hvarfner, E. O.
Hellsten, L. Nardi, Vanilla Bayesian Optimization Performs Great in High Dimensions, ICML 2024.

Written here, on LAPACK, and not taken from gpytorch: a fit to a few hundred points, which a run
makes after every rollout, takes a fraction of the time that torch takes to be imported, the core
needs no torch, and the mean, the variance and their derivatives come from one kernel matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack
from scipy.optimize import minimize

from gps.errors import FitError, NonFiniteError, ShapeError
from gps.fields import Config, Count, Range, Shape
from gps.types import Array, Record

__all__ = ["GaussianProcess", "GaussianProcessConfig", "Hyperparameters", "Prediction", "fit"]

_JITTER = 1e-8  # share of the signal's variance that is added to the kernel's diagonal
_LENGTH_STD = math.sqrt(3.0)  # of the logarithm of a length scale, over its prior
_SIGNAL_STD = 1.0
_NOISE_MEAN, _NOISE_STD = math.log(0.02), 2.0


@dataclass(frozen=True, kw_only=True)
class GaussianProcessConfig(Config):
    """How the hyperparameters are searched for."""

    iterations: Count = 40
    """Of the search, for each output, at most."""
    search_points: Annotated[int, Range(at_least=2)] = 500
    """Points that the search uses at most, spread over all; the posterior is of all points."""
    noise_floor: Annotated[float, Range(above=0, below=1)] = 1e-3
    """Least standard deviation of the noise, as a share of the output's. Simulations without noise
    come down to it; with less, rounding would decide."""


@dataclass(frozen=True, eq=False)
class Hyperparameters(Record):
    """Of E processes over D inputs, in units of the standard deviations of inputs and outputs."""

    length: Annotated[Array, Shape("E D")]
    """Length scales."""
    signal: Annotated[Array, Shape("E")]
    """Standard deviation s of the function."""
    noise: Annotated[Array, Shape("E")]
    """Standard deviation v of the noise."""


@dataclass(frozen=True, eq=False)
class Prediction(Record):
    """Outputs at B points, with their derivatives by the D inputs, in the units of the data."""

    mean: Annotated[Array, Shape("B E")]
    variance: Annotated[Array, Shape("B E")]
    """Of the function, without the noise."""
    mean_slope: Annotated[Array, Shape("B E D")]
    variance_slope: Annotated[Array, Shape("B E D")]


@dataclass(frozen=True, eq=False)
class GaussianProcess(Record):
    """The posterior given n points: outputs Y (n, E) at inputs Z (n, D)."""

    Z: Annotated[Array, Shape("n D")]
    Y: Annotated[Array, Shape("n E")]
    parameters: Hyperparameters

    def __post_init__(self) -> None:
        super().__post_init__()
        E, D = self.parameters.length.shape
        if (self.Z.shape[1], self.Y.shape[1]) != (D, E):
            raise ShapeError(
                f"hyperparameters are of {E} outputs and {D} inputs, the points have "
                f"{self.Y.shape[1]} and {self.Z.shape[1]}"
            )

    @property
    def noise(self) -> Array:
        """Standard deviation of each output's noise, in its unit, (E,)."""
        return self.parameters.noise * self._scales[3]

    @cached_property
    def _scales(self) -> tuple[Array, Array, Array, Array]:
        """Means and standard deviations of inputs and of outputs."""
        return (*_standards(self.Z), *_standards(self.Y))

    @cached_property
    def _scaled(self) -> tuple[Array, Array]:
        """The inputs in length scales, (E, n, D), and half of their squares, (E, n)."""
        mean, std, _, _ = self._scales
        A = ((self.Z - mean) / std) / self.parameters.length[:, None, :]
        return A, 0.5 * (A * A).sum(axis=2)

    @cached_property
    def _factors(self) -> tuple[Array, ...]:
        """Lower Cholesky factor of each kernel matrix with noise, (n, n) in Fortran order."""
        A, half = self._scaled
        p = self.parameters
        return tuple(
            _factor(_kernel(A[e], half[e], A[e], half[e], s), s, v, e)
            for e, (s, v) in enumerate(zip(p.signal, p.noise, strict=True))
        )

    @cached_property
    def _weights(self) -> Array:
        """K^-1 y of the standardised outputs, (E, n)."""
        _, _, mean, std = self._scales
        y = (self.Y - mean) / std
        return np.stack([_solve(L, y[:, e]) for e, L in enumerate(self._factors)])

    def mean(self, Z: npt.ArrayLike) -> Array:
        """Expected outputs (B, E) at inputs (B, D)."""
        scaled = self._standardised(Z)
        out = np.empty((len(scaled), self.Y.shape[1]))
        for e, weights in enumerate(self._weights):
            _, k = self._near(scaled, e)
            out[:, e] = k @ weights
        _, _, mean, std = self._scales
        return out * std + mean

    def variance(self, Z: npt.ArrayLike) -> Array:
        """Variances (B, E) of the functions at inputs (B, D), without the noise."""
        scaled = self._standardised(Z)
        out = np.empty((len(scaled), self.Y.shape[1]))
        for e, L in enumerate(self._factors):
            _, k = self._near(scaled, e)
            half, _ = lapack.dtrtrs(L, k.T, lower=1)
            out[:, e] = self.parameters.signal[e] ** 2 - (half * half).sum(axis=0)
        return np.maximum(out, 0.0) * self._scales[3] ** 2

    def predict(self, Z: npt.ArrayLike) -> Prediction:
        """Mean, variance and their derivatives at inputs (B, D)."""
        scaled = self._standardised(Z)
        (B, D), E = scaled.shape, self.Y.shape[1]
        _, z_std, y_mean, y_std = self._scales
        mean, variance = np.empty((B, E)), np.empty((B, E))
        mean_slope, variance_slope = np.empty((B, E, D)), np.empty((B, E, D))
        A = self._scaled[0]
        for e, (L, weights) in enumerate(zip(self._factors, self._weights, strict=True)):
            z, k = self._near(scaled, e)
            solved = _solve(L, k.T).T
            mean[:, e] = k @ weights
            variance[:, e] = self.parameters.signal[e] ** 2 - (solved * k).sum(axis=1)
            per_unit = self.parameters.length[e] * z_std
            for slope, w in ((mean_slope, k * weights), (variance_slope, -2.0 * solved * k)):
                slope[:, e] = (w @ A[e] - w.sum(axis=1)[:, None] * z) / per_unit
        return Prediction(
            mean=mean * y_std + y_mean,
            variance=np.maximum(variance, 0.0) * y_std**2,
            mean_slope=mean_slope * y_std[:, None],
            variance_slope=variance_slope * y_std[:, None] ** 2,
        )

    def _standardised(self, Z: npt.ArrayLike) -> Array:
        points = np.asarray(Z, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != self.Z.shape[1]:
            raise ShapeError(f"inputs must be (B, {self.Z.shape[1]}), got {points.shape}")
        mean, std, _, _ = self._scales
        scaled: Array = (points - mean) / std
        return scaled

    def _near(self, scaled: Array, e: int) -> tuple[Array, Array]:
        """The inputs in length scales of output e, (B, D), and their kernel with the points."""
        A, half = self._scaled
        z = scaled / self.parameters.length[e]
        k = _kernel(z, 0.5 * (z * z).sum(axis=1), A[e], half[e], self.parameters.signal[e])
        return z, k


def fit(
    inputs: npt.ArrayLike,
    outputs: npt.ArrayLike,
    config: GaussianProcessConfig | None = None,
    start: Hyperparameters | None = None,
) -> GaussianProcess:
    """The processes of outputs (n, E) given inputs (n, D), n >= 2.

    start: where the search begins, such as the hyperparameters of fewer data. Nothing is drawn at
    random: the same data give the same bytes. Raises ShapeError, NonFiniteError, and FitError for
    fewer than two points.
    """
    config = config or GaussianProcessConfig()
    Z, Y = (np.array(v, dtype=np.float64) for v in (inputs, outputs))
    if Z.ndim != 2 or Y.ndim != 2 or len(Z) != len(Y):
        raise ShapeError(f"inputs and outputs must be (n, D) and (n, E), got {Z.shape}, {Y.shape}")
    for name, values in (("inputs", Z), ("outputs", Y)):
        if not np.isfinite(values).all():
            raise NonFiniteError(f"{name} of the Gaussian process are not finite")
    (n, D), E = Z.shape, Y.shape[1]
    if n < 2:
        raise FitError(f"a Gaussian process needs 2 points or more, got {n}")
    if start is not None and start.length.shape != (E, D):
        raise ShapeError(f"start must be of {E} outputs and {D} inputs, got {start.length.shape}")
    first = _first(D, E) if start is None else _joined(start)
    some = np.unique(np.linspace(0, n - 1, min(n, config.search_points)).round().astype(int))
    (z_mean, z_std), (y_mean, y_std) = _standards(Z), _standards(Y)
    z, y = ((Z - z_mean) / z_std)[some], ((Y - y_mean) / y_std)[some]
    found = [_search(z, y[:, e], first[e], config) for e in range(E)]
    best = np.exp(np.stack(found))
    parameters = Hyperparameters(length=best[:, :D], signal=best[:, D], noise=best[:, D + 1])
    return GaussianProcess(Z, Y, parameters)


# --- hyperparameters: the logarithms of l (D,), s and v of one output in one vector


def _first(D: int, E: int) -> Array:
    """Where a search without a start begins."""
    return np.tile(np.append(np.full(D, 0.5 * math.log(D)), [0.0, math.log(0.1)]), (E, 1))


def _joined(p: Hyperparameters) -> Array:
    return np.log(np.concatenate([p.length, p.signal[:, None], p.noise[:, None]], axis=1))


def _search(Z: Array, y: Array, first: Array, config: GaussianProcessConfig) -> Array:
    """The likeliest hyperparameters of one output, beginning at `first`."""
    D = Z.shape[1]
    lowest = math.log(config.noise_floor)
    bounds = [(-4.0, 9.0)] * D + [(-4.0, 4.0), (lowest, 1.0)]
    inside = np.clip(first, *np.array(bounds).T)
    options = {"maxiter": config.iterations, "maxcor": 20}
    result = minimize(
        _loss, inside, (Z, y), jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    found: Array = result.x
    return found


def _loss(theta: Array, Z: Array, y: Array) -> tuple[float, Array]:
    """Minus the logarithm of marginal likelihood times prior, and its gradient."""
    n, D = Z.shape
    length, s, v = np.exp(theta[:D]), math.exp(theta[D]), math.exp(theta[D + 1])
    A = Z / length
    half = 0.5 * (A * A).sum(axis=1)
    k = _kernel(A, half, A, half, s)
    try:
        L = _factor(k, s, v, 0)
    except FitError:
        return 1e12, np.zeros(D + 2)
    a = _solve(L, y)
    value = 0.5 * (y @ a) + np.log(L.diagonal()).sum() + 0.5 * n * math.log(2 * math.pi)
    inverse, _ = lapack.dpotri(L, lower=1)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    slope = inverse - np.outer(a, a)  # twice the derivative by K
    trace = float(slope.trace())
    slope *= k
    rows = slope.sum(axis=1)
    gradient = np.empty(D + 2)
    gradient[:D] = rows @ (A * A) - np.einsum("nd,nd->d", A, slope @ A)
    gradient[D] = rows.sum() + trace * _JITTER * s * s
    gradient[D + 1] = trace * v * v
    off = _standing(theta)
    return float(value + 0.5 * (off @ off)), gradient + off / _prior_std(D)


def _prior_std(D: int) -> Array:
    return np.append(np.full(D, _LENGTH_STD), [_SIGNAL_STD, _NOISE_STD])


def _standing(theta: Array) -> Array:
    """How many standard deviations hyperparameters are off the middle of their prior."""
    D = len(theta) - 2
    mean = np.append(np.full(D, math.sqrt(2.0) + 0.5 * math.log(D)), [0.0, _NOISE_MEAN])
    off: Array = (theta - mean) / _prior_std(D)
    return off


# --- linear algebra


def _standards(values: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each column; 1 for one that is constant but for rounding."""
    mean, std = values.mean(axis=0), values.std(axis=0)
    constant = std <= 1e-13 * np.abs(values).max(axis=0, initial=0.0)
    return mean, np.where(constant, 1.0, std)


def _kernel(a: Array, half_a: Array, b: Array, half_b: Array, s: float) -> Array:
    """s^2 exp(-1/2 |a_i - b_j|^2), (len(a), len(b)); half_a, half_b: half of the squared norms."""
    k = a @ b.T
    k -= half_a[:, None]
    k -= half_b
    np.minimum(k, 0.0, out=k)
    np.exp(k, out=k)
    k *= s * s
    return k


def _factor(k: Array, s: float, v: float, e: int) -> Array:
    """Lower Cholesky factor of k + noise; FitError names the output e."""
    K = np.array(k, order="F")
    K[np.diag_indices(len(K))] += v * v + _JITTER * s * s
    L, status = lapack.dpotrf(K, lower=1, overwrite_a=1)
    if status:
        raise FitError(f"the kernel matrix of output {e} has no factor; raise noise_floor")
    return L


def _solve(L: Array, b: Array) -> Array:
    """(L L')^-1 b, b (n,) or (n, B)."""
    solved, _ = lapack.dpotrs(L, b, lower=1)
    return solved
