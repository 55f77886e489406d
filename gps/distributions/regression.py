"""Time-varying linear-Gaussian regression with a mixture model as prior.

Few samples per step cannot determine a linear model of dozens of inputs. The mixture, fitted to
the points of all steps and of earlier rollouts, says what such points look like in general. Near
each step it is worth `strength` samples: enough to settle the directions in which the step's own
samples do not vary, too little to outvote them where they do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import numpy.typing as npt

from gps.distributions import _kernels
from gps.distributions.gmm import GMMConfig, Mixture, fit, responsibilities, spread
from gps.distributions.niw import NIW, StepwiseNIW, prior_counts
from gps.errors import ConfigError, FitError, NonFiniteError, NotPositiveDefiniteError, ShapeError
from gps.fields import Config, Count, Positive, Range, Shape
from gps.types import Array, Record


@dataclass(frozen=True, kw_only=True)
class MixturePriorConfig(Config):
    """How many rollouts a mixture prior keeps, and what mixture is fitted to them."""

    max_samples: Annotated[int, Range(at_least=1, at_most=100_000)] = 20
    """Maximum number of rollouts kept, counting all that are pooled."""
    min_points_per_component: Count = 40
    """Points that justify one more component."""
    max_components: Annotated[int, Range(at_least=2, at_most=1000)] = 20
    """Maximum number of mixture components."""
    strength: Positive = 1.0
    """Samples that the prior is worth in the fit of one step."""
    gmm: GMMConfig = field(default_factory=GMMConfig)
    """The mixture fit."""


@dataclass(frozen=True, eq=False)
class MixturePrior(Record):
    """The points of the last rollouts and the mixture fitted to them."""

    history: Annotated[Array, Shape("S Tp D")]
    """Oldest rollout first."""
    mixture: Mixture

    def __post_init__(self) -> None:
        super().__post_init__()
        D = self.history.shape[2]
        if self.mixture.D != D:
            raise ShapeError(f"mixture is over points of size {self.mixture.D}, history has {D}")

    @property
    def n_points(self) -> int:
        """Points that the mixture was fitted to."""
        return self.history.shape[0] * self.history.shape[1]


@dataclass(frozen=True, eq=False)
class LinearGaussianFit(Record):
    """output[t] ~ N(gain[t] @ input[t] + offset[t], cov[t]), and the joint Gaussian behind it."""

    gain: Annotated[Array, Shape("Tp no ni")]
    offset: Annotated[Array, Shape("Tp no")]
    cov: Annotated[Array, Shape("Tp no no")]
    """Symmetric positive semi-definite."""
    mean: Annotated[Array, Shape("Tp ni+no")]
    """Sample means of [input; output]."""
    joint_cov: Annotated[Array, Shape("Tp ni+no ni+no")]
    """Posterior, with the ridge in the input block."""

    def predict(self, inputs: Array) -> Array:
        """Mean outputs (..., Tp, no) for inputs (..., Tp, ni)."""
        return np.einsum("toi,...ti->...to", self.gain, inputs) + self.offset


def n_components(n_points: int, config: MixturePriorConfig) -> int:
    """clip(n_points / min_points_per_component, 2, max_components)."""
    return max(2, min(config.max_components, n_points // config.min_points_per_component))


def update_prior(
    prior: MixturePrior | None,
    points: npt.ArrayLike,
    config: MixturePriorConfig,
    rng: np.random.Generator,
    *,
    replace_history: bool = False,
    sizes: Array | None = None,
) -> MixturePrior:
    """Add the points (N, Tp, D) of N rollouts and fit the mixture again.

    Keeps exactly the last `max_samples` rollouts, of whatever conditions they are; a caller that
    pools conditions sets `max_samples` for all of them together. EM starts from the previous
    mixture; more data may add components, by splitting. Only a first fit draws from rng.
    With `replace_history` the points are the whole new history and only the mixture is taken over:
    for points that change with time, like the present policy's actions in remembered states.
    sizes (D,): of the entries, by which rounding is told from movement; see `gmm.spread`.
    Raises FitError, NonFiniteError, ShapeError.
    """
    Y = np.asarray(points, dtype=np.float64)
    if Y.ndim != 3:
        raise ShapeError(f"points must be (N, Tp, D), got shape {Y.shape}")
    _check_finite(Y, "points")
    if prior is not None and not replace_history:
        if prior.history.shape[1:] != Y.shape[1:]:
            raise ShapeError(
                f"points of a rollout must be {prior.history.shape[1:]} as in the prior's history,"
                f" got {Y.shape[1:]}"
            )
        Y = np.concatenate([prior.history, Y])[-config.max_samples :]
        Y.setflags(write=False)  # the record takes it without a copy
    Y = Y[-config.max_samples :]
    flat = Y.reshape(-1, Y.shape[2])
    warm = None if prior is None else prior.mixture
    result = fit(flat, n_components(len(flat), config), config.gmm, rng, warm, sizes)
    return MixturePrior(Y, result.mixture)


def fit_linear_gaussian(
    inputs: npt.ArrayLike,
    outputs: npt.ArrayLike,
    prior: MixturePrior | NIW | StepwiseNIW | None,
    *,
    strength: float = 1.0,
    ridge: float = 1e-5,
    standardise: bool = True,
    sizes: Array | None = None,
) -> LinearGaussianFit:
    """Regress outputs (N, Tp, no) on inputs (N, Tp, ni), each step on its own.

    With y = [input; output], posterior covariance of a step
    P = (N S + Psi + N kappa0/(N + kappa0) (ybar - mu0)(ybar - mu0)') / (N + nu0), plus a ridge on
    the diagonal of the input block: a share `ridge` of each input's variance over all samples and
    steps (of an input that is constant, over a mixture prior's history), so that no unit matters,
    or, without `standardise`, `ridge` in each input's unit squared.
    gain = P_oi P_ii^-1, offset = ybar_o - gain ybar_i (the sample mean, not the posterior's, so
    that the model passes through the data), cov = P_oo - gain P_io. A mixture prior is worth
    `strength` samples: moments under the step's averaged responsibilities; an NIW prior is used as
    it is, at every step or with one for each; without prior P = S, that is, ridge regression. sizes
    (ni,): of the entries that the inputs are of; an input that varies by rounding only, in
    comparison, has no gain.
    Raises FitError for N = 1, which a StepwiseNIW alone allows, NonFiniteError,
    NotPositiveDefiniteError, ShapeError.
    """
    X, Z = np.asarray(inputs, dtype=np.float64), np.asarray(outputs, dtype=np.float64)
    if X.ndim != 3 or Z.ndim != 3 or X.shape[:2] != Z.shape[:2]:
        raise ShapeError(
            f"inputs and outputs must be (N, Tp, ni) and (N, Tp, no), got {X.shape}, {Z.shape}"
        )
    if not (0 <= ridge < np.inf and 0 < strength < np.inf):
        raise ConfigError(
            f"ridge must be at least 0 and strength above 0, got {ridge} and {strength}"
        )
    N, Tp, n_in = X.shape
    if N < 2 and not isinstance(prior, StepwiseNIW):
        raise FitError(f"a linear model of each step cannot be fitted to {N} sample; use 2 or more")
    _check_finite(X, "inputs")
    _check_finite(Z, "outputs")
    Y = np.concatenate([X, Z], axis=2)
    D = Y.shape[2]
    means, scales, weights, psi, kappa0, nu0 = _prior_arrays(prior, Y, strength)
    no = D - n_in
    added = np.full(n_in, ridge)
    if standardise:
        past = None
        if isinstance(prior, MixturePrior):
            past = prior.history[..., :n_in].reshape(-1, n_in)
        added = ridge * spread(X.reshape(-1, n_in), past, sizes) ** 2
    mean, joint = np.empty((Tp, D)), np.empty((Tp, D, D))
    gain, offset, W = np.empty((Tp, no, n_in)), np.empty((Tp, no)), np.empty((Tp, no, no))
    status = _kernels.regress(
        Y, n_in, weights, means, scales, psi, kappa0, nu0, added, mean, gain, offset, W, joint
    )
    if status:
        raise NotPositiveDefiniteError(
            "input covariance", t=status - 1, hint="raise the ridge or use a prior"
        )
    failed = np.zeros(Tp, dtype=np.bool_)
    _kernels.without_factor(W, failed)
    for t in np.flatnonzero(failed):  # singular, as with few samples and no prior: cut rounding
        values, vectors = np.linalg.eigh(W[t])
        half = vectors * np.sqrt(np.maximum(values, 0.0))
        W[t] = half @ half.T
    for array in (gain, offset, W, mean, joint):
        array.setflags(write=False)  # the record takes them without a copy
    return LinearGaussianFit(gain, offset, W, mean, joint)


def _prior_arrays(
    prior: MixturePrior | NIW | StepwiseNIW | None, Y: Array, strength: float
) -> tuple[Array, Array, Array, float, float, float]:
    """Any prior as (means, scales, weights per step, psi, kappa0, nu0) of the kernel."""
    N, Tp, D = Y.shape
    if prior is None:
        return np.zeros((1, D)), np.zeros((1, D, D)), np.zeros((Tp, 1)), 0.0, 0.0, 0.0
    size = prior.mixture.D if isinstance(prior, MixturePrior) else prior.mu0.shape[-1]
    if size != D:
        raise ShapeError(f"prior is over points of size {size}, inputs and outputs give {D}")
    if isinstance(prior, NIW):
        one = np.ones((Tp, 1))
        mu0, Psi = np.array(prior.mu0[None]), np.array(prior.Psi[None])
        return mu0, Psi, one, 1.0, float(prior.kappa0), float(prior.nu0)
    if isinstance(prior, StepwiseNIW):
        if len(prior.mu0) != Tp:
            raise ShapeError(f"prior is of {len(prior.mu0)} steps, inputs and outputs are of {Tp}")
        one_each = np.array(prior.mu0), np.array(prior.Psi), np.eye(Tp)
        return *one_each, 1.0, float(prior.kappa0), float(prior.nu0)
    mixture = prior.mixture
    weights = np.empty((Tp, mixture.J))
    resp = responsibilities(mixture, Y.reshape(-1, D))
    _kernels.average_weights(resp, N, Tp, weights)
    kappa0, nu0 = prior_counts(prior.n_points, D, strength)
    return np.array(mixture.mean), np.array(mixture.cov), weights, strength, kappa0, nu0


def _check_finite(values: Array, name: str) -> None:
    """NonFiniteError that names the first bad sample and step of (N, Tp, n) values."""
    if not np.all(np.isfinite(values)):
        sample, t, _ = np.argwhere(~np.isfinite(values))[0]
        raise NonFiniteError(f"{name} of sample {sample} at t={t} are not finite")
