"""Time-varying linear-Gaussian dynamics fitted to the rollouts of one condition."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from gps.distributions.gmm import entry_sizes, spread
from gps.distributions.niw import StepwiseNIW, prior_counts
from gps.distributions.regression import (
    LinearGaussianFit,
    MixturePrior,
    MixturePriorConfig,
    fit_linear_gaussian,
)
from gps.dynamics.global_model import GlobalDynamics, GlobalPriorConfig, step_priors
from gps.errors import FitError, NonFiniteError, ShapeError
from gps.fields import Config, NonNegative, Positive, Shape, readonly
from gps.types import Array, Gaussian, LinearDynamics, Record, Rollouts, optional


@dataclass(frozen=True, kw_only=True)
class DynamicsConfig(Config):
    """How dynamics are fitted."""

    ridge: NonNegative = 1e-5
    """Added to the variance of every state and action in the regression, as a share of its variance
    over the rollouts. Less is closer to the samples, more is steadier with few, and
    where contacts come and go."""
    standardise: bool = True
    """Count `ridge` and `x0_variance_floor` in these shares; of an entry that is constant now, of
    its variance in the prior's earlier rollouts. False: in the squared units of states and actions,
    for entries whose spread so far says little of what is to come; see also
    `prior.gmm.standardise`."""
    x0_variance_floor: Positive = 1e-6
    """Minimum variance of each entry of the start state, as a share of its variance over the
    rollouts, all their steps included."""
    x0_strength: NonNegative = 1.0
    """Samples that the start states of the prior's history are worth; 0 leaves them out, which is
    right for a prior that pools conditions with different starts."""
    prior: MixturePriorConfig | GlobalPriorConfig | None = field(default_factory=MixturePriorConfig)
    """The mixture prior of the condition, or the global model of all conditions, with which one
    sample is enough, or None for plain ridge regression."""

    @property
    def min_samples(self) -> int:
        """Rollouts of a condition that a fit needs."""
        return 1 if isinstance(self.prior, GlobalPriorConfig) else 2


@dataclass(frozen=True, eq=False)
class DynamicsFit(Record):
    """Fitted dynamics and the distribution of the start state."""

    dynamics: LinearDynamics
    start: Gaussian
    error_ratio: Annotated[Array, Shape("nx")] | None = optional()  # noqa: RUF009
    """Error of the prediction of each state entry, leave-one-out, over that of persistence,
    x[t+1] = x[t]: see `error_ratio`."""


def points(X: Array, U: Array) -> Array:
    """[x_t; u_t; x_t+1] of states (N, T, nx) and actions (N, T, nu): (N, T-1, 2 nx + nu)."""
    if X.ndim != 3 or U.ndim != 3 or X.shape[:2] != U.shape[:2]:
        raise ShapeError(f"X and U must be (N, T, nx) and (N, T, nu), got {X.shape}, {U.shape}")
    return np.concatenate([X[:, :-1], U[:, :-1], X[:, 1:]], axis=2)


def point_sizes(rollouts: Rollouts) -> Array:
    """Sizes of the entries in `points`, (2 nx + nu,); 0 for the actions, each of a unit of its own,
    of which no spread is rounding beside another."""
    sizes = entry_sizes(rollouts.X, rollouts.layout)
    return np.concatenate([sizes, np.zeros(rollouts.nu), sizes])


def fit(
    rollouts: Rollouts, prior: MixturePrior | GlobalDynamics | None, config: DynamicsConfig
) -> DynamicsFit:
    """Fit x[t+1] ~ N(F [x; u] + f, W) at each step to the rollouts of one condition, N >= 2 of them
    or, with a global model, one.

    `prior` is a mixture over `points`, or a global model; worth `config.prior.strength` samples (1
    if that is None).
    The start is the sample mean; its covariance is `start_covariance`.
    Raises FitError (one sample, one step), NonFiniteError, NotPositiveDefiniteError, ShapeError.
    """
    X, U = rollouts.X, rollouts.U
    N, T, nx = X.shape
    shared = prior if isinstance(prior, GlobalDynamics) else None
    mixture = prior if isinstance(prior, MixturePrior) else None
    if (N < 2 and shared is None) or T < 2:
        raise FitError(
            f"dynamics of condition {rollouts.condition} cannot be fitted to {N} sample(s) of {T}"
            " step(s); use 2 or more of each"
        )
    for name, values in (("states", X), ("actions", U)):
        if not np.all(np.isfinite(values)):
            i, t, _ = np.argwhere(~np.isfinite(values))[0]
            raise NonFiniteError(
                f"{name} of condition {rollouts.condition}, sample {i} at t={t} are not finite"
            )
    strength = 1.0 if config.prior is None else config.prior.strength
    inputs = np.concatenate([X[:, :-1], U[:, :-1]], axis=2)
    known: MixturePrior | StepwiseNIW | None = mixture
    ridge = config.ridge
    if shared is not None:
        # the ridge draws slopes to the model's, and not to zero
        scale_of = spread(inputs.reshape(-1, inputs.shape[2])) if config.standardise else 1.0
        least = np.broadcast_to(ridge * scale_of**2, inputs.shape[2:])
        known, ridge = step_priors(shared, X, U, least, strength), 0.0
    model = fit_linear_gaussian(
        *(inputs, X[:, 1:], known),
        strength=strength,
        ridge=ridge,
        standardise=config.standardise,
        sizes=point_sizes(rollouts)[: nx + U.shape[2]],
    )
    past = None if mixture is None else mixture.history[:, :, :nx]
    scale = None
    if config.standardise:
        scale = spread(X.reshape(-1, nx), None if past is None else past.reshape(-1, nx))
    x0_cov = start_covariance(X[:, 0], None if past is None else past[:, 0], config, scale)
    nu0 = 0.0 if shared is None else strength
    if mixture is not None:
        nu0 = prior_counts(mixture.n_points, 2 * nx + U.shape[2], strength)[1]
    return DynamicsFit(
        LinearDynamics(model.gain, model.offset, model.cov),
        Gaussian(X[:, 0].mean(axis=0), x0_cov),
        None if N < 2 else error_ratio(model, inputs, X, nu0),
    )


def error_ratio(model: LinearGaussianFit, inputs: Array, X: Array, nu0: float) -> Array:
    """Root mean square error of the predicted x[t+1], leave-one-out, over that of x[t], (nx,).

    A sample's residual under the fit without it is its residual under the whole fit over 1 - h,
    with the leverage h = 1/N + d' ((N + nu0) P_ii)^-1 d, d its input less the mean and P_ii the
    input block of the posterior covariance. That is exact for regression with a fixed prior whose
    mean is the samples'. Taken at 8 steps at most, spread over the rollout. NaN for an entry that
    never changes, infinite where the samples determine the fit (h = 1).
    inputs (N, T-1, nx+nu) and states X (N, T, nx) of the fit; nu0: the prior's count.
    """
    N, S, n = inputs.shape
    steps = np.unique(np.linspace(0, S - 1, min(S, 8)).round().astype(int))
    Z, x, after = inputs[:, steps], X[:, steps], X[:, steps + 1]
    P = (N + nu0) * model.joint_cov[steps, :n, :n]
    d = (Z - model.mean[steps, :n]).transpose(1, 2, 0)  # (steps, n, N)
    h = 1.0 / N + np.einsum("tin,tin->nt", d, np.linalg.solve(P, d))
    residual = after - (np.einsum("txz,ntz->ntx", model.gain[steps], Z) + model.offset[steps])
    with np.errstate(all="ignore"):
        error = residual / np.maximum(1.0 - h, 1e-12)[:, :, None]
        ratio = np.sqrt((error**2).mean(axis=(0, 1)) / ((after - x) ** 2).mean(axis=(0, 1)))
    return readonly(ratio)


def start_covariance(
    x0: Array, earlier: Array | None, config: DynamicsConfig, scale: Array | None = None
) -> Array:
    """(N V + s V_e + N s/(N + s) d d') / (N + s), variances floored on the diagonal.

    V and V_e are the diagonal variances of the start states x0 (N, nx) and of the earlier ones
    (S, nx), d the difference of their means, s = x0_strength: the normal-inverse-Wishart posterior.
    The floor is `x0_variance_floor` times the square of `scale` (nx,), each entry's spread; None
    for 1 in the units of the state.
    The public reference adds the prior's scatter without dividing it by a count.
    """
    N, s = len(x0), config.x0_strength if earlier is not None else 0.0
    cov = N * np.diag(x0.var(axis=0))
    if earlier is not None and s > 0:
        d = x0.mean(axis=0) - earlier.mean(axis=0)
        cov = cov + s * np.diag(earlier.var(axis=0)) + N * s / (N + s) * np.outer(d, d)
    cov = cov / (N + s)
    floor = config.x0_variance_floor * (1.0 if scale is None else scale**2)
    lack = np.maximum(floor - cov.diagonal(), 0.0)
    result: Array = cov + np.diag(lack)
    return result


def prediction_error(dynamics: LinearDynamics, rollouts: Rollouts) -> Array:
    """Root mean square over samples of x[t+1] - (F [x; u] + f), (T-1, nx)."""
    if rollouts.T != dynamics.T or rollouts.nx != dynamics.nx or rollouts.nu != dynamics.nu:
        raise ShapeError(
            f"dynamics of T={dynamics.T}, nx={dynamics.nx}, nu={dynamics.nu} do not match rollouts"
            f" of T={rollouts.T}, nx={rollouts.nx}, nu={rollouts.nu}"
        )
    Z = np.concatenate([rollouts.X[:, :-1], rollouts.U[:, :-1]], axis=2)
    error = rollouts.X[:, 1:] - (np.einsum("txz,ntz->ntx", dynamics.F, Z) + dynamics.f)
    result: Array = np.sqrt((error**2).mean(axis=0))
    return result
