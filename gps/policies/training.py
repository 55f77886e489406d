"""What a policy is trained on, how, and with which result.

Loss, in nats: 1/(2n) sum_i w_i (pi(o_i) - target_i)' P_i (pi(o_i) - target_i), with P_i the
precision of the controller that asks for target_i. `NetworkPolicy.fit` is
the training, `gps.policies.optimisation` has its steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, NamedTuple, TypeVar

import numpy as np

from gps.errors import ConfigError, FitError, NonFiniteError, ShapeError
from gps.fields import Config, Fraction, NonNegative, Positive, Range, Shape
from gps.types import Array, Images, Layout, Record, optional

P = TypeVar("P")
Decay = Annotated[float, Range(at_least=0, below=1)]
"""Decay rate of a running mean."""
BatchSize = Annotated[int, Range(at_least=1, at_most=1_000_000)]
Steps = Annotated[int, Range(at_least=0, at_most=100_000_000)]
MAX_DRAWS = 10**9
"""Limit of steps times batch size: their rows are drawn before a training."""
POSE_FLOOR = 1e-6
"""Minimum standard deviation of what a pose is divided by; see `whitening_std`."""
ROUNDING = 1e-15
"""Values below this share of the largest beside them are what is left of sums of those."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Config):
    """How a policy is trained: Adam on shuffled minibatches."""

    steps: Annotated[int, Range(at_least=1, at_most=100_000_000)] = 4000
    """Updates per training."""
    batch_size: BatchSize = 25
    """Samples per update."""
    learning_rate: Positive = 3e-3
    """Adam's step size at the start of a training, in units of the weights."""
    final_rate: Fraction = 0.0
    """Step size at the end of a training, as a share of that at its start, reached along half a
    cosine; 1 keeps it constant."""
    beta1: Decay = 0.9
    """Decay rate of the running mean of the gradient."""
    beta2: Decay = 0.999
    """Decay rate of the running mean of the squared gradient."""
    eps: Positive = 1e-8
    """Added to the root of the squared gradient, whose unit is set by precisions of mean 1."""
    weight_decay: NonNegative = 1e-3
    """Factor of 1/2 |weights|^2 in the loss, with actions in units of their spread and precisions
    of mean 1."""
    weight_cap: Annotated[float, Range(at_least=1, finite=False)] = 2.0
    """Largest sample weight, as a multiple of the median; infinite for no cap."""
    entropy_weight: NonNegative = 0.0
    """Entropy bonus of the policy; 2 entropy_weight is added to the mean precision of every action,
    in the inverse of that action's unit squared: a choice of the user's about the policy's noise,
    and no number would do for all robots but 0."""
    std_floor: Positive = 1e-3
    """Minimum standard deviation that an entry of the observation is divided by, as a share of its
    largest absolute value in the training data, so that no unit matters."""
    trace_points: Annotated[int, Range(at_least=1, at_most=1_000_000)] = 40
    """Points of the loss trace in the result."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_draws(self, "steps", "batch_size")


def check_draws(config: object, steps: str, batch_size: str) -> None:
    """ConfigError where the minibatches of a training do not fit into memory."""
    total = vars(config)[steps] * vars(config)[batch_size]
    if total > MAX_DRAWS:
        raise ConfigError(
            f"{type(config).__name__}.{steps} times {batch_size} must be at most {MAX_DRAWS:.0e} "
            f"samples, got {total:.3g}"
        )


@dataclass(frozen=True, eq=False)
class TrainingData(Record):
    """Samples of all conditions and steps, pooled: observations, targets, precisions, weights."""

    obs: Annotated[Array, Shape("n no")]
    target: Annotated[Array, Shape("n nu")]
    """Mean action of the improved controller."""
    precision: Annotated[Array, Shape("n nu nu")]
    """Its inverse covariance, symmetric."""
    weight: Annotated[Array, Shape("n")]
    """Not below 0, of any scale."""
    images: Annotated[Images, Shape("n height width channels")] | None = None
    """The images that belong to the observations, of an agent with cameras."""
    state: Annotated[Array, Shape("n nx")] | None = None
    """Given with the images, for the regression of a pose."""
    layout: Layout | None = None
    """Of the state."""
    T: int | None = optional()
    """Steps of a trajectory: the samples are whole ones, one after another. Needed to train a
    policy with memory; None where the order of the samples has no meaning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.T is not None and (self.T < 1 or self.n % self.T):
            raise ShapeError(
                f"TrainingData.T: {self.n} samples are not trajectories of {self.T} steps"
            )

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.obs.shape[0]

    @property
    def trajectories(self) -> Array:
        """The observations by trajectory and step, (n / T, T, no); ShapeError without T."""
        if self.T is None:
            raise ShapeError("TrainingData.T must be given to train a policy with memory")
        return self.obs.reshape(-1, self.T, self.obs.shape[1])

    def entries(self, names: Sequence[str]) -> Array:
        """The named entries of the states, (n, k); ShapeError where there are none."""
        if self.state is None or self.layout is None:
            raise ShapeError("TrainingData.state and .layout must be given to train on a pose")
        return np.concatenate([self.state[:, self.layout.slice(name)] for name in names], axis=1)

    def check_finite(self) -> None:
        """NonFiniteError that names the first field and sample with NaN or infinity; FitError
        without samples."""
        if not self.n:
            raise FitError("a policy cannot be trained on no samples")
        arrays = {"obs": self.obs, "target": self.target, "precision": self.precision}
        arrays["weight"] = self.weight
        if self.state is not None:
            arrays["state"] = self.state
        for name, array in arrays.items():
            bad = ~np.isfinite(array.reshape(self.n, -1)).all(axis=1)
            if bad.any():
                raise NonFiniteError(
                    f"TrainingData.{name} holds NaN or infinity in {bad.sum()} of {self.n} "
                    f"samples, the first is sample {int(np.argmax(bad))}"
                )


class Normaliser(NamedTuple):
    """Of inputs and outputs: a network's input is (obs - obs_mean) / obs_std, and its output z is
    the action action_mean + action_std z."""

    obs_mean: Array  # (no,)
    obs_std: Array  # (no,)
    action_mean: Array  # (nu,)
    action_std: Array  # (nu,)


@dataclass(frozen=True, eq=False)
class Problem(Record):
    """What the optimiser is given: whitened observations, actions in units of their spread, weights
    and scale inside the precisions.

    The precisions of a run can grow by orders of magnitude. Their weighted mean is divided out
    (`scale`), so that the state of Adam, its eps and the weight decay keep their meaning from one
    training to the next, and from one robot to another. Losses times `scale` are in nats.
    """

    obs: Annotated[Array, Shape("n no")]
    """Whitened."""
    target: Annotated[Array, Shape("n nu")]
    """(target - action_mean) / action_std."""
    precision: Annotated[Array, Shape("n nu nu")]
    """Of these targets, w_i P_i / scale, symmetric; mean of the diagonals 1."""
    scale: float
    normaliser: Normaliser

    def loss(self, action: Array) -> float:
        """Mean loss over all samples in nats; action (n, nu) holds the policy's means there."""
        d = (action - self.normaliser.action_mean) / self.normaliser.action_std - self.target
        return float(self.scale * 0.5 * np.einsum("ni,nij,nj->", d, self.precision, d) / len(d))


@dataclass(frozen=True, eq=False)
class TrainingResult(Record, Generic[P]):
    """A trained policy and its training loss."""

    policy: P
    trace: Annotated[Array, Shape("points")]
    """Loss in nats, mean over the minibatches of equal intervals."""
    loss: float
    """In nats, over all samples after the last step."""
    staleness: Annotated[Array, Shape("k")] | None = None
    """Number of updates of staleness 0, 1, ...; None but for asynchronous training."""
    dropped: int = 0
    """Gradients that were too stale; asynchronous training only."""


def pooled(data: Sequence[TrainingData]) -> TrainingData:
    """The samples of several records, one after another; images only where all have them, and
    trajectories only where all have some of one length."""
    images, state, layout = None, None, None
    given = [(d.images, d.state) for d in data if d.images is not None and d.state is not None]
    if data and len(given) == len(data):
        images, state = (np.concatenate(parts) for parts in zip(*given, strict=True))
        layout = data[0].layout
    return TrainingData(
        obs=np.concatenate([d.obs for d in data]),
        target=np.concatenate([d.target for d in data]),
        precision=np.concatenate([d.precision for d in data]),
        weight=np.concatenate([d.weight for d in data]),
        images=images,
        state=state,
        layout=layout,
        T=data[0].T if len({d.T for d in data}) == 1 else None,
    )


def problem_of(data: TrainingData, normaliser: Normaliser, config: TrainingConfig) -> Problem:
    """The problem for the optimiser in these units; FitError."""
    weight = capped_weights(data.weight, config.weight_cap)
    precision = weight[:, None, None] * (0.5 * (data.precision + data.precision.transpose(0, 2, 1)))
    precision *= np.outer(normaliser.action_std, normaliser.action_std)
    scale = float(np.einsum("nii->", precision) / data.target.size)
    if not 0 < scale < np.inf:
        raise FitError(f"the mean precision of the targets must be above 0, got {scale:.3g}")
    return Problem(
        obs=(data.obs - normaliser.obs_mean) / normaliser.obs_std,
        target=(data.target - normaliser.action_mean) / normaliser.action_std,
        precision=precision / scale,
        scale=scale,
        normaliser=normaliser,
    )


def capped_weights(weight: Array, cap: float) -> Array:
    """Sample weights in units of their median, none above `cap`; the argument is not changed.

    The median is that of the weights above 1 % of the mean, as most weights may be about 0.
    Source: cbfinn/gps policy_opt_tf.py update, without its change of the caller's array.
    """
    if not weight.size or np.any(weight < 0) or not 0 < weight.mean() < np.inf:
        raise FitError("sample weights must not be below 0, and one at least must be above 0")
    share = weight / weight.mean()
    median = np.median(share[share > 1e-2])
    return np.minimum(share, cap * median) / median


def whitening_std(values: Array, floor: float) -> Array:
    """What each entry of values (n, k) is divided by to be of unit variance, (k,), above 0.

    Its standard deviation, but at least the share `floor` of its largest absolute value; 1 where
    all is 0, or rounding of the other entries.
    """
    size = np.abs(values).max(axis=0)
    std: Array = np.maximum(values.std(axis=0), floor * size)
    std[size <= ROUNDING * size.max(initial=0.0)] = 1.0
    return std


def policy_variance(data: TrainingData, config: TrainingConfig) -> Array:
    """Variance of each action, (nu,): 1 / diag(weighted mean of P + 2 entropy_weight I).

    Of all constant diagonal covariances it has the minimum mean KL divergence to the targets'.
    """
    weight = capped_weights(data.weight, config.weight_cap)
    diagonal = np.einsum("n,nii->i", weight, data.precision) / weight.sum()
    diagonal = diagonal + 2.0 * config.entropy_weight
    if not np.all((diagonal > 0) & (diagonal < np.inf)):
        worst = int(np.argmin(diagonal))
        raise FitError(f"mean precision of action {worst} is {diagonal[worst]:.3g}, not above 0")
    return 1.0 / diagonal
