"""The global policy as a time-varying linear-Gaussian controller near some rollouts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol, runtime_checkable

import numpy as np

from gps.distributions.gmm import entry_sizes
from gps.distributions.regression import (
    MixturePrior,
    MixturePriorConfig,
    fit_linear_gaussian,
    update_prior,
)
from gps.errors import (
    ConfigError,
    NonFiniteError,
    NotPositiveDefiniteError,
    ShapeError,
)
from gps.fields import Config, NonNegative, Shape, check_shapes, readonly
from gps.linalg import smallest_eigenvalue
from gps.policies.policy import Network
from gps.protocols import Agent, HasObservationNoise, needs_images
from gps.types import (
    Array,
    Images,
    Layout,
    LinearGaussianController,
    Record,
    Rollouts,
)


class LinearisablePolicy(Protocol):
    """A policy that `linearise` takes; one that needs images takes `mean(obs, images)`."""

    def mean(self, obs: Array) -> Array:
        """Mean actions (..., nu) for observations (..., no)."""
        ...

    @property
    def Sigma(self) -> Array:
        """Action covariance (nu, nu)."""
        ...


@runtime_checkable
class DifferentiablePolicy(Protocol):
    """A policy whose derivative is known, as method 'jacobian' needs it."""

    def jacobian(self, obs: Array) -> Array:
        """Derivatives of the mean actions by the observation, (..., nu, no), at (..., no)."""
        ...


@dataclass(frozen=True, kw_only=True)
class LineariseConfig(Config):
    """How the policy becomes a linear function of the state.

    'samples' works for every policy, and describes it as wide as the samples lie: kinks and
    saturation within the noise are averaged. 'jacobian' needs no spread of the samples and no
    prior: it is as exact with two samples as with twenty. In the runs of docs/stability.md both
    end alike, but for the pole, which keeps nearer to its target with 'jacobian'. Neither replaces
    exploration: trained on samples with little noise, the network itself has lost its slopes.
    """

    method: Literal["samples", "jacobian"] = "samples"
    """'samples': the policy's actions are regressed on the states of the samples. 'jacobian': the
    network's own derivative by the observation at the samples, carried over to the state; then all
    entries of the observation must be entries of the state, without noise on them."""
    ridge: NonNegative = 1e-3
    """'samples': added to the variance of every entry of the state, as a share of its variance over
    the rollouts."""
    standardise: bool = True
    """'samples': count `ridge` in these shares. False: in the squared units of the state; see also
    `prior.gmm.standardise`."""
    prior: MixturePriorConfig | None = field(default_factory=MixturePriorConfig)
    """'samples': mixture over [x; pi(o)] that regularises the regression where samples are few;
    None for plain regression."""

    @property
    def min_samples(self) -> int:
        """Rollouts that a linearisation needs."""
        return 2 if self.method == "samples" else 1


@dataclass(frozen=True, eq=False)
class PolicyPrior(MixturePrior):
    """A mixture prior over [x; pi(o)] with the observations of its rollouts.

    The policy changes from one linearisation to the next: with them, the actions in the history
    can be those of the policy at hand and not of its predecessors.
    """

    obs: Annotated[Array, Shape("S T no")]
    """Of the rollouts in `history`."""
    images: Annotated[Images, Shape("S T height width channels")] | None = None
    """Of a policy that needs them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_shapes(self)
        S, T, _ = self.history.shape
        if self.obs.shape[:2] != (S, T):
            raise ShapeError(
                f"PolicyPrior.obs must have shape ({S}, {T}, no), got {self.obs.shape}"
            )


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
    obs_layout: Layout | None = None,
) -> Linearised:
    """The policy as u ~ N(K x + k, Sigma) at every step, near the rollouts' states.

    Method 'samples' regresses pi(o) on x; Sigma is the regression's covariance and the policy's.
    `prior` is that of the previous rollouts of the condition, None at first; these rollouts are
    added to it. To linearise a changed policy on the same rollouts, start from the same prior.
    Method 'jacobian' needs `obs_layout`, the names of the observation's entries, and has no prior;
    see `_by_derivatives`.
    Raises FitError for a single sample, NonFiniteError, NotPositiveDefiniteError, ShapeError, and
    ConfigError where the derivative by the state is not known.
    Source: 'samples' as in cbfinn/gps policy_prior_gmm.py, which too applies the newest policy to
    all stored observations.
    """
    U = mean_actions(policy, rollouts.obs, rollouts.images)
    nu = policy.Sigma.shape[0]
    if U.shape[-1] != nu:
        raise ShapeError(f"the policy's covariance is for {nu} actions, its mean has {U.shape[-1]}")
    new: PolicyPrior | None = None
    if config.method == "jacobian":
        K, k, scatter = _by_derivatives(policy, rollouts, U, obs_layout)
    else:
        strength = 1.0
        if config.prior is not None:
            new = _updated(policy, rollouts, U, prior, config.prior, rng)
            strength = config.prior.strength
        fit = fit_linear_gaussian(
            *(rollouts.X, U, new),
            strength=strength,
            ridge=config.ridge,
            standardise=config.standardise,
            sizes=entry_sizes(rollouts.X, rollouts.layout),
        )
        K, k, scatter = fit.gain, fit.offset, fit.cov
    cov = scatter + policy.Sigma
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
    return Linearised(LinearGaussianController(K, k, chol), new)


def check_derivatives(network: Network, agent: Agent) -> None:
    """ConfigError where a policy of this network has no known derivative by the agent's state."""
    what = "LineariseConfig.method 'jacobian' needs the policy's derivative by the state"
    if network.needs_images or network.has_memory:
        raise ConfigError(
            f"{what}, which is not known for a {type(network).__name__}: it depends on more than "
            "the observation of the step; use 'samples'"
        )
    noisy = []
    if isinstance(agent, HasObservationNoise):
        noisy = [name for name in agent.noisy_entries if name in agent.obs_layout.names]
    unknown = [name for name in agent.obs_layout.names if name not in agent.layout.names]
    for names, why in ((unknown, "is not part of the state"), (noisy, "has noise (obs_noise)")):
        if names:
            raise ConfigError(f"{what}: observation entry {names[0]!r} {why}; use 'samples'")


def _by_derivatives(
    policy: LinearisablePolicy, rollouts: Rollouts, U: Array, obs_layout: Layout | None
) -> tuple[Array, Array, Array]:
    """K (T, nu, nx), k (T, nu) and the scatter about them (T, nu, nu), from derivatives.

    K is the mean over samples of d pi/d o times d o/d x. An entry of the observation is that of the
    state with its name; where `rollouts.jacobians` says how that one follows from others, the
    derivative goes to those, as the derivatives of costs do. k is the mean of pi(o) - K x, and the
    scatter the second moment over samples of pi(o) - K x - k.
    """
    if not isinstance(policy, DifferentiablePolicy) or obs_layout is None:
        known = isinstance(policy, DifferentiablePolicy)
        missing = "names of the observation's entries" if known else "derivative"
        raise ConfigError(
            f"LineariseConfig.method 'jacobian': no {missing} for {type(policy).__name__}; use "
            "'samples'"
        )
    slopes = policy.jacobian(rollouts.obs)
    for name, values in (("action", U), ("derivative", slopes), ("state", rollouts.X)):
        bad = np.argwhere(~np.isfinite(values).reshape(rollouts.N, rollouts.T, -1).all(axis=2))
        if len(bad):
            n, t = bad[0]
            raise NonFiniteError(f"the policy's {name} is not finite, first in sample {n} at t={t}")
    K = np.zeros((rollouts.T, U.shape[2], rollouts.nx))
    for name in obs_layout.names:
        if name not in rollouts.layout.names:
            raise ConfigError(
                "LineariseConfig.method 'jacobian': observation entry "
                f"{name!r} is not part of the state; use 'samples'"
            )
        slope = slopes[..., obs_layout.slice(name)]
        J = rollouts.jacobians.get(name)
        if J is None:
            K[..., rollouts.layout.slice(name)] += slope.mean(axis=0)
        else:
            K += np.matmul(slope, J).mean(axis=0)
    rest = U - np.einsum("tux,ntx->ntu", K, rollouts.X)
    k = rest.mean(axis=0)
    rest = rest - k
    return K, k, np.einsum("ntu,ntv->tuv", rest, rest) / rollouts.N


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
    sizes = np.append(entry_sizes(rollouts.X, rollouts.layout), np.zeros(U.shape[2]))
    new = update_prior(old, np.concatenate([rollouts.X, U], axis=2), config, rng, sizes=sizes)
    last = slice(-new.history.shape[0], None)
    return PolicyPrior(
        new.history, new.mixture, obs[last], None if images is None else images[last]
    )


def mean_actions(policy: LinearisablePolicy, obs: Array, images: Images | None) -> Array:
    """Mean actions (..., nu) at observations (..., no), with their images where it needs them."""
    if needs_images(policy):
        return policy.mean(obs, images)  # type: ignore[call-arg]
    return policy.mean(obs)


def joined_images(old: Images | None, new: Images | None) -> Images | None:
    """Images one after another; None unless both are there."""
    return None if old is None or new is None else np.concatenate([old, new])
