"""The global policy seen as a time-varying linear-Gaussian controller near some rollouts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from gps.distributions.regression import (
    MixturePrior,
    MixturePriorConfig,
    fit_linear_gaussian,
    update_prior,
)
from gps.errors import ConfigError, NotPositiveDefiniteError, ShapeError
from gps.linalg import smallest_eigenvalue
from gps.types import (
    Array,
    Images,
    LinearGaussianController,
    Record,
    Rollouts,
    freeze,
    freeze_images,
    needs_images,
    readonly,
    shape_of,
)


class LinearisablePolicy(Protocol):
    """What `linearise` asks of a policy; one with `needs_images` takes `mean(obs, images)`."""

    def mean(self, obs: Array) -> Array:
        """Mean actions (..., nu) for observations (..., no)."""
        ...

    @property
    def Sigma(self) -> Array:
        """Action covariance (nu, nu)."""
        ...


@dataclass(frozen=True, kw_only=True)
class LineariseConfig:
    """How the policy is regressed on the state."""

    ridge: float = 1e-6
    """Added to the diagonal of the states' covariance, in their squared units; not below 0."""
    prior: MixturePriorConfig | None = field(default_factory=MixturePriorConfig)
    """Mixture over [x; pi(o)] that stands in where samples are few; None for plain regression."""

    def __post_init__(self) -> None:
        if not 0 <= self.ridge < np.inf:
            raise ConfigError(f"LineariseConfig.ridge must be at least 0, got {self.ridge}")


@dataclass(frozen=True, eq=False)
class PolicyPrior(MixturePrior):
    """A mixture prior over [x; pi(o)] that remembers the observations of its rollouts.

    The policy changes from one linearisation to the next: with them, the actions in the history
    can be those of the policy at hand and not of its predecessors.
    """

    obs: Array  # (S, T, no) of the rollouts in `history`
    images: Images | None = None  # (S, T, height, width, channels), of a policy that needs them

    def __post_init__(self) -> None:
        super().__post_init__()
        S, T, _ = self.history.shape
        freeze(self, obs=(S, T, shape_of(self, "obs", 3)[-1]))
        freeze_images(self, "images", (S, T))


@dataclass(frozen=True, eq=False)
class Linearised(Record):
    """A linearised policy, and the prior for the next linearisation."""

    controller: LinearGaussianController
    prior: PolicyPrior | None


def linearise(
    policy: LinearisablePolicy,
    rollouts: Rollouts,
    prior: PolicyPrior | None,
    config: LineariseConfig,
    rng: np.random.Generator,
) -> Linearised:
    """Regress pi(o) on x at every step: u ~ N(K x + k, regression covariance + policy covariance).

    `prior` is that of the previous rollouts of the condition, None at first; these rollouts are
    added to it. To linearise a changed policy on the same rollouts, start from the same prior.
    Raises FitError for a single sample, NonFiniteError, NotPositiveDefiniteError, ShapeError.
    Source: as in cbfinn/gps policy_prior_gmm.py, which too applies the newest policy to all
    remembered observations.
    """
    U = mean_actions(policy, rollouts.obs, rollouts.images)
    nu = policy.Sigma.shape[0]
    if U.shape[-1] != nu:
        raise ShapeError(f"the policy's covariance is for {nu} actions, its mean has {U.shape[-1]}")
    if config.prior is not None:
        prior = _updated(policy, rollouts, U, prior, config.prior, rng)
        strength = config.prior.strength
    else:
        prior, strength = None, 1.0
    fit = fit_linear_gaussian(rollouts.X, U, prior, strength=strength, ridge=config.ridge)
    cov = fit.cov + policy.Sigma
    try:
        chol = readonly(np.linalg.cholesky(cov))
    except np.linalg.LinAlgError:
        smallest = np.array([smallest_eigenvalue(S) for S in cov])
        t = int(np.argmin(smallest))
        raise NotPositiveDefiniteError(
            "covariance of the linearised policy",
            t=t,
            hint="the policy's own covariance should be above 0",
            smallest=float(smallest[t]),
        ) from None
    return Linearised(LinearGaussianController(fit.gain, fit.offset, chol), prior)


def _updated(
    policy: LinearisablePolicy,
    rollouts: Rollouts,
    U: Array,
    prior: PolicyPrior | None,
    config: MixturePriorConfig,
    rng: np.random.Generator,
) -> PolicyPrior:
    """The prior with the policy's present actions at its old rollouts, and with the new ones."""
    obs, old = rollouts.obs, None
    images = rollouts.images if needs_images(policy) else None
    if prior is not None:
        X_old = prior.history[:, :, : rollouts.nx]
        actions = mean_actions(policy, prior.obs, prior.images)
        old = MixturePrior(np.concatenate([X_old, actions], axis=2), prior.mixture)
        obs, images = np.concatenate([prior.obs, obs]), joined_images(prior.images, images)
    new = update_prior(old, np.concatenate([rollouts.X, U], axis=2), config, rng)
    last = slice(-new.history.shape[0], None)
    return PolicyPrior(
        new.history, new.mixture, obs[last], None if images is None else images[last]
    )


def mean_actions(policy: LinearisablePolicy, obs: Array, images: Images | None) -> Array:
    """Mean actions (..., nu) at observations (..., no), with their pictures where it needs them."""
    if needs_images(policy):
        return policy.mean(obs, images)  # type: ignore[call-arg]
    return policy.mean(obs)


def joined_images(old: Images | None, new: Images | None) -> Images | None:
    """Pictures one after another; None unless both are there."""
    return None if old is None or new is None else np.concatenate([old, new])
