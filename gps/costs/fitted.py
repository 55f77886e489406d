"""Minus the reward that an agent reports, with derivatives fitted to the samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np

from gps.costs.base import TermBuffers, check_entry
from gps.costs.combine import InPlaceCost
from gps.errors import ConfigError, NonFiniteError
from gps.fields import Config, Items, Positive, Range, Whole
from gps.types import Array, Layout, Rollouts

RIDGES = tuple(10.0**k for k in range(-4, 3))
"""What `ridge=None` chooses from."""

_QUADRATIC = 10.0  # penalty of a squared feature's coefficient relative to a linear one's
_SMALL = 1e-13  # eigenvalues below this, relative to the largest, are rounding
_SAME = 1e-9  # a feature that varies less, relative to its size, is constant
_ROUNDING = 1e-15  # or relative to the largest of all features, of which it may be a rounding error


@dataclass(frozen=True, kw_only=True)
class FittedRewardCost(Config, InPlaceCost):
    """`l[t] = -r[t+1]`, minus the reward of action u[t], which the state entry holds one step on.

    The last action's reward lies after the rollout, so `l[T-1] = 0`, and a rollout costs exactly
    minus the sum of its T-1 rewards. The reward as a function is unknown: derivatives come
    from a regression over all samples of the steps s with |s - t| <= window,

        min over b, g, c of  mean (y - b - g'v - sum_{i<=j} c_ij v_i v_j)^2
                             + ridge (|g|^2 + 10 |c|^2),   v_i = (z_i - mean z_i) / std z_i,

    with y = -r[s+1] and z = [x; u], which gives the Hessian H_ij = c_ij, H_ii = 2 c_ii. H then
    loses its negative eigenvalues; the gradient at step t's mean is that of the fit before this.
    Features that do not vary in the window have no derivatives, nor has the entry itself. The
    derivatives come from all samples that are evaluated together: a finite difference in one
    sample's state is blind to them. As step t reads the state of step t+1, the cost serves
    whole rollouts only, neither `gps.agents.as_gymnasium` nor `CostOf`.

    Source: the choice of the ridge is that of scikit-learn's RidgeCV, where whole rollouts are left
    out in place of single rows; the regression is the ordinary one.

    For the algorithms that fit a model of the cost around the samples. Those that compare samples
    (PI2) need its values only. With few samples the gradient is as noisy as they are few: a cost
    that is known should be written as one (`StateCost`, `torch_cost`).
    """

    entry: str = "reward"
    """State entry of length 1 with the reward received on arriving. The derivatives scale
    with it, and no unit of it matters."""

    features: Annotated[tuple[str, ...], Items(distinct=True)] | None = None
    """State entries that the reward may depend on; None for all but `entry`."""

    window: Whole = 2
    """Steps before and after a step whose samples take part in its fit."""

    degree: Annotated[int, Range(at_least=1, at_most=2)] = 2
    """2 fits gradient and Hessian; 1 fits the gradient alone, with a Hessian of zero. Degree 2 was
    clearly cheaper after ten iterations on Reacher-v5 and HalfCheetah-v5, with each of 3 seeds."""

    ridge: Positive | None = None
    """Penalty of the standardised coefficients. None: the value of `RIDGES` that best
    predicts whole rollouts which are left out, one for all steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.entry in (self.features or ()):
            raise ConfigError(
                f"FittedRewardCost.features must be without {self.entry!r}, got {self.features!r}"
            )

    def check(self, layout: Layout, nu: int, T: int) -> None:
        """Raise ConfigError unless the entry exists, has one value, and the features exist."""
        if check_entry("FittedRewardCost.entry", self.entry, layout) != 1:
            raise ConfigError(
                f"FittedRewardCost.entry: {self.entry!r} has {layout.length(self.entry)} values, "
                "a reward is one"
            )
        for name in self.features or ():
            check_entry("FittedRewardCost.features", name, layout)
        if T < 2:
            raise ConfigError(f"FittedRewardCost needs rollouts of 2 steps or more, got T={T}")

    def add(self, rollouts: Rollouts, weight: float, out: TermBuffers) -> None:
        """Add `weight` times this cost and its derivatives to `out`.

        Raises NonFiniteError where states, actions or rewards are not finite.
        """
        layout, nx, T = rollouts.layout, rollouts.nx, rollouts.T
        self.check(layout, rollouts.nu, T)
        Z = np.concatenate((rollouts.X, rollouts.U), axis=2)
        if not np.isfinite(Z).all():
            i, t = np.argwhere(~np.isfinite(Z))[0, :2]
            raise NonFiniteError(
                f"FittedRewardCost: sample {i} is NaN or infinite at t={t}; no reward can be fitted"
            )
        y = -rollouts.entry(self.entry)[:, 1:, 0]  # (N, T-1)
        out.l[:, :-1] += weight * y
        names = [n for n in layout.names if n != self.entry]
        used = [np.r_[layout.slice(n)] for n in (names if self.features is None else self.features)]
        columns = np.concatenate((*used, np.arange(nx, Z.shape[2]))).astype(np.intp)
        Z = Z[:, :-1, columns]
        fits = [_regression(Z, y, t, self.window, self.degree) for t in range(T - 1)]
        ridge = self.ridge
        if ridge is None:
            errors = [sum(fit.left_out(r) for fit in fits) for r in RIDGES]
            # the larger one of equals: nothing varies, or there is one rollout only
            ridge = RIDGES[::-1][int(np.argmin(errors[::-1]))]
        gradient, hessian = np.zeros(nx + rollouts.nu), np.zeros((nx + rollouts.nu,) * 2)
        for t, fit in enumerate(fits):
            mean = Z[:, t].mean(axis=0)
            g, H = fit.derivatives(ridge, mean)
            at = columns[fit.varies]
            hessian[...] = 0.0
            hessian[np.ix_(at, at)] = H
            out.l_xx[:, t] += weight * hessian[:nx, :nx]
            out.l_ux[:, t] += weight * hessian[nx:, :nx]
            out.l_uu[:, t] += weight * hessian[nx:, nx:]
            for i, z in enumerate(Z[:, t]):
                gradient[...] = 0.0
                gradient[at] = g + H @ (z - mean)[fit.varies]
                out.l_x[i, t] += weight * gradient[:nx]
                out.l_u[i, t] += weight * gradient[nx:]


class _Regression(NamedTuple):
    """One step's regression in the directions of its basis: any ridge is then quick."""

    varies: np.ndarray  # (n,) bool: the features that take part
    mean: Array  # (n,) of all features
    std: Array  # (k,) of those that vary
    basis: Array  # (M, P) penalised functions of v, without their means and over their penalties
    y: Array  # (M,) without its mean
    values: Array  # (r,) eigenvalues of basis basis' / M, above zero
    vectors: Array  # (M, r) and their eigenvectors
    N: int  # rollouts, whose rows lie together
    degree: int

    def left_out(self, ridge: float) -> float:
        """Mean squared error where every rollout is predicted from the others, over var(y).

        With the hat matrix A, a left-out block's residual is (I - A_bb)^-1 times its residual.
        """
        scale = float(self.y @ self.y)
        if scale == 0.0 or self.N == 1:
            return 0.0
        M, kept = len(self.y), self.values / (self.values + ridge)
        residual = self.y - self.vectors @ (kept * (self.vectors.T @ self.y))
        blocks = self.vectors.reshape(self.N, M // self.N, -1)
        # the mean is fitted too, without a penalty
        hat = (blocks * kept) @ blocks.transpose(0, 2, 1) + 1.0 / M
        errors = np.linalg.solve(np.eye(M // self.N) - hat, residual.reshape(self.N, -1, 1))
        return float(np.sum(errors**2)) / scale

    def derivatives(self, ridge: float, at: Array) -> tuple[Array, Array]:
        """Gradient (k,) at the point `at` (n,), and Hessian (k, k) without negative eigenvalues."""
        k, M = len(self.std), len(self.y)
        dual = self.vectors @ ((self.vectors.T @ self.y) / (M * (self.values + ridge)))
        b = self.basis.T @ dual
        g, H = b[:k], np.zeros((k, k))
        if self.degree == 2:
            H[np.triu_indices(k)] = b[k:] / np.sqrt(_QUADRATIC)
            H = H + H.T  # the second derivative of c_ij v_i v_j, which is 2 c_ii on the diagonal
            g = g + H @ ((at - self.mean)[self.varies] / self.std)
            values, vectors = np.linalg.eigh(H)
            H = (vectors * np.maximum(values, 0.0)) @ vectors.T
            H = (H + H.T) / 2
        return g / self.std, H / np.outer(self.std, self.std)


def _regression(Z: Array, y: Array, t: int, window: int, degree: int) -> _Regression:
    """The regression of step t: features (N, T-1, n), targets (N, T-1)."""
    steps = slice(max(t - window, 0), t + window + 1)
    N, S, n = Z[:, steps].shape
    rows, target = Z[:, steps].reshape(N * S, n), y[:, steps].reshape(N * S)
    mean, std = rows.mean(axis=0), rows.std(axis=0)
    size = np.abs(rows).max(axis=0)
    varies = std > np.maximum(_SAME * size, _ROUNDING * size.max(initial=0.0))
    v = (rows - mean)[:, varies] / std[varies]
    basis = v
    if degree == 2:
        i, j = np.triu_indices(v.shape[1])
        basis = np.concatenate((v, v[:, i] * v[:, j] / np.sqrt(_QUADRATIC)), axis=1)
    basis = basis - basis.mean(axis=0)
    M, P = basis.shape
    values, vectors = np.linalg.eigh((basis @ basis.T if M <= P else basis.T @ basis) / M)
    kept = values > _SMALL * max(values.max(initial=0.0), 1.0)
    values, vectors = values[kept], vectors[:, kept]
    if M > P:
        vectors = basis @ vectors / np.sqrt(M * values)
    y_mean = target.mean()
    # rounding of the mean must not look like a reward that varies
    flat = np.abs(target - y_mean).max() <= _SAME * max(abs(float(y_mean)), 1e-300)
    return _Regression(
        varies=varies,
        mean=mean,
        std=std[varies],
        basis=basis,
        y=np.zeros(M) if flat else target - y_mean,
        values=values,
        vectors=vectors,
        N=N,
        degree=degree,
    )
