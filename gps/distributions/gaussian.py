"""Densities, divergences and conditionals of Gaussians."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.linalg

from gps.errors import NotPositiveDefiniteError, ShapeError
from gps.linalg import smallest_eigenvalue
from gps.types import Array, Gaussian

_LOG_2PI = float(np.log(2 * np.pi))


def _factor(cov: Array, name: str) -> Array:
    """Lower Cholesky factor, or an error that gives the smallest eigenvalue."""
    try:
        return np.asarray(np.linalg.cholesky(cov), dtype=np.float64)
    except np.linalg.LinAlgError:
        raise NotPositiveDefiniteError(
            name,
            t=0,
            hint="a density needs full rank: add a variance floor",
            smallest=smallest_eigenvalue(cov),
        ) from None


def log_density(gaussian: Gaussian, points: npt.ArrayLike) -> Array:
    """log N(x; mean, cov) at points (..., n); returns (...) in nats."""
    Y = np.asarray(points, dtype=np.float64)
    n = gaussian.mean.size
    if Y.shape[-1] != n:
        raise ShapeError(f"points must have size {n}, got {Y.shape[-1]}")
    L = _factor(gaussian.cov, "cov")
    white = scipy.linalg.solve_triangular(L, (Y - gaussian.mean).reshape(-1, n).T, lower=True)
    value = -0.5 * (white**2).sum(axis=0) - np.log(L.diagonal()).sum() - 0.5 * n * _LOG_2PI
    return np.asarray(value).reshape(Y.shape[:-1])


def kl(new: Gaussian, old: Gaussian) -> float:
    """KL(new || old) in nats; not clipped at 0, so that a sign error stays visible."""
    if new.mean.shape != old.mean.shape:
        raise ShapeError(f"KL between Gaussians of size {new.mean.size} and {old.mean.size}")
    L, L_new = _factor(old.cov, "old.cov"), _factor(new.cov, "new.cov")
    ratio = scipy.linalg.solve_triangular(L, L_new, lower=True)
    shift = scipy.linalg.solve_triangular(L, new.mean - old.mean, lower=True)
    logdet = np.log(L.diagonal()).sum() - np.log(L_new.diagonal()).sum()
    return float(logdet + 0.5 * ((ratio**2).sum() + shift @ shift - new.mean.size))


def condition(joint: Gaussian, n_in: int) -> tuple[Array, Array, Array]:
    """Gain G, offset g, covariance W of y | z ~ N(G z + g, W), z the first n_in coordinates."""
    n = joint.mean.size
    if not 0 < n_in < n:
        raise ShapeError(f"n_in must lie between 1 and {n - 1}, got {n_in}")
    S_zz, S_zy, S_yy = joint.cov[:n_in, :n_in], joint.cov[:n_in, n_in:], joint.cov[n_in:, n_in:]
    L = _factor(S_zz, "covariance of the given coordinates")
    half = scipy.linalg.solve_triangular(L, S_zy, lower=True)
    gain = scipy.linalg.solve_triangular(L, half, lower=True, trans="T").T
    W = S_yy - half.T @ half
    return gain, joint.mean[n_in:] - gain @ joint.mean[:n_in], (W + W.T) / 2
