"""Supervised training of the global policy on the actions of the improved local controllers.

Loss, in nats: 1/(2n) sum_i w_i (pi(o_i) - target_i)' P_i (pi(o_i) - target_i), with P_i the
precision of the controller that asks for target_i. `fit` is the whole training; `prepare`,
`minibatches`, `batch_gradient` and `adam_step` are its parts, for trainings that share the work.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt

from gps.errors import ConfigError, FitError, NonFiniteError, ShapeError
from gps.fields import readonly
from gps.policies import _kernels
from gps.policies.neural import (
    AdamState,
    GlobalPolicy,
    Network,
    NetworkPolicy,
    Normaliser,
    PlainLayout,
)
from gps.protocols import has_memory, needs_images
from gps.types import Array, Images, Layout, Record, freeze, freeze_images, optional, shape_of

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Indices = npt.NDArray[np.int64]
P = TypeVar("P", bound=NetworkPolicy)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a policy is trained: Adam on shuffled minibatches."""

    steps: int = 4000
    """Updates per training; at least 1."""
    batch_size: int = 25
    """Samples per update; at least 1."""
    learning_rate: float = 3e-3
    """Adam's step size at the start of a training, in units of the weights; above zero."""
    final_rate: float = 0.0
    """Step size at the end of a training, as a share of that at its start, reached along half a
    cosine; in [0, 1], 1 keeps it constant."""
    beta1: float = 0.9
    """Memory of the running mean of the gradient, in [0, 1)."""
    beta2: float = 0.999
    """Memory of the running mean of the squared gradient, in [0, 1)."""
    eps: float = 1e-8
    """Added to the root of the squared gradient, whose unit is set by precisions of mean 1."""
    weight_decay: float = 1e-3
    """Factor of 1/2 |weights|^2 in the loss, with actions in units of their spread and precisions
    of mean 1; not below 0."""
    weight_cap: float = 2.0
    """Largest sample weight, as a multiple of the median; at least 1, infinite for no cap."""
    entropy_weight: float = 0.0
    """Entropy bonus of the policy; 2 entropy_weight is added to the mean precision. Not below 0."""
    std_floor: float = 1e-3
    """Least deviation that an observation is divided by, in its own unit; above zero."""
    trace_points: int = 40
    """Points of the loss trace in the result; at least 1."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "trace_points"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(
                    f"TrainingConfig.{name} must be a whole number of at least 1, got {value!r}"
                )
        for name in ("learning_rate", "eps", "std_floor"):
            self._require(name, 0 < getattr(self, name) < np.inf, "above 0 and finite")
        for name in ("weight_decay", "entropy_weight"):
            self._require(name, 0 <= getattr(self, name) < np.inf, "at least 0 and finite")
        for name in ("beta1", "beta2"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        self._require("final_rate", 0 <= self.final_rate <= 1, "in [0, 1]")
        self._require("weight_cap", self.weight_cap >= 1, "at least 1")

    def _require(self, name: str, fine: bool, what: str) -> None:
        if not fine:
            raise ConfigError(f"TrainingConfig.{name} must be {what}, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class TrainingData(Record):
    """Samples of all conditions and steps, pooled: where, what action, how sure, how important."""

    obs: Array  # (n, no)
    target: Array  # (n, nu) mean action of the improved controller
    precision: Array  # (n, nu, nu) its inverse covariance, symmetric
    weight: Array  # (n,) not below 0, of any scale
    images: Images | None = None  # (n, height, width, channels), of a world with cameras
    state: Array | None = None  # (n, nx) given with the images, for training on a pose
    layout: Layout | None = None  # of the state
    T: int | None = optional()
    """Steps of a trajectory: the samples are whole ones, one after another. Needed to train a
    policy with memory; None where the order of the samples says nothing."""

    def __post_init__(self) -> None:
        (n, no), (_, nu) = shape_of(self, "obs", 2), shape_of(self, "target", 2)
        freeze(self, obs=(n, no), target=(n, nu), precision=(n, nu, nu), weight=(n,))
        freeze_images(self, "images", (n,))
        if self.state is not None:
            freeze(self, state=(n, shape_of(self, "state", 2)[1]))
        if self.T is not None and (self.T < 1 or n % self.T):
            raise ShapeError(f"TrainingData.T: {n} samples are no trajectories of {self.T} steps")

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


@dataclass(frozen=True, eq=False)
class Problem(Record):
    """What the optimiser sees: whitened observations, actions in units of their spread, weights
    and scale inside the precisions.

    The precisions of a run can grow by orders of magnitude. Their weighted mean is divided out
    (`scale`), so that the state of Adam, its eps and the weight decay keep their meaning from one
    training to the next, and from one robot to another. Losses times `scale` are in nats.
    """

    obs: Array  # (n, no) whitened
    target: Array  # (n, nu) (target - action_mean) / action_std
    precision: Array  # (n, nu, nu) of them, w_i P_i / scale, symmetric; mean of the diagonals 1
    scale: float
    normaliser: Normaliser

    def __post_init__(self) -> None:
        (n, no), (_, nu) = shape_of(self, "obs", 2), shape_of(self, "target", 2)
        freeze(self, obs=(n, no), target=(n, nu), precision=(n, nu, nu))

    def loss(self, action: Array) -> float:
        """Mean loss over all samples in nats; action (n, nu) holds the policy's means there."""
        d = (action - self.normaliser.action_mean) / self.normaliser.action_std - self.target
        return float(self.scale * 0.5 * np.einsum("ni,nij,nj->", d, self.precision, d) / len(d))


@dataclass(frozen=True, eq=False)
class TrainingResult(Record):
    """A trained policy, and how its loss went."""

    policy: GlobalPolicy
    trace: Array  # (points,) loss in nats, mean over the minibatches of equal stretches
    loss: float  # in nats, over all samples after the last step
    staleness: Array | None = None
    """(k,) Number of updates of staleness 0, 1, ...; None but for asynchronous training."""
    dropped: int = 0
    """Gradients that were too stale; asynchronous training only."""

    def __post_init__(self) -> None:
        freeze(self, trace=(*shape_of(self, "trace", 1),))
        if self.staleness is not None:
            freeze(self, staleness=(*shape_of(self, "staleness", 1),))


def fit(
    policy: Any, data: TrainingData, config: TrainingConfig, rng: np.random.Generator
) -> TrainingResult:
    """Train `policy` further on `data`; minibatches are drawn from `rng`.

    A policy with a method `fit` of its own is trained as that says. The training sets the
    normaliser (see `prepare`) and the covariance (`policy_variance`). The optimiser's state
    continues where the normaliser stays the same, and is reset where it changes. Raises ShapeError,
    NonFiniteError, FitError.
    """
    own = getattr(policy, "fit", None)
    if own is not None:
        result: TrainingResult = own(data, config, rng)
        return result
    policy, problem = prepare(policy, data, config)
    batches = minibatches(data.n, config.steps, config.batch_size, rng)
    return descended(policy, problem, data, gradient_of(policy.network, problem), batches, config)


def descended(
    policy: NetworkPolicy,
    problem: Problem,
    data: TrainingData,
    gradient: Gradient,
    batches: Indices,
    config: TrainingConfig,
) -> TrainingResult:
    """The policy after one Adam step for each row of `batches`; FitError.

    policy, problem: as from `prepare`. gradient: of the problem; says what a row's numbers mean.
    """
    theta, m, v = (flatten(a) for a in (policy.weights, policy.optimiser.m, policy.optimiser.v))
    plan = schedule(config, policy.optimiser.step)
    losses = gradient.train(theta, m, v, batches, plan, config)
    return finished(policy, problem, data, theta, m, v, losses, config)


def pooled(data: Sequence[TrainingData]) -> TrainingData:
    """The samples of several records, one after another; images only where all have them, and
    trajectories only where all have some of one length."""
    fields = ["obs", "target", "precision", "weight"]
    layout, T = None, data[0].T if len({d.T for d in data}) == 1 else None
    if all(d.images is not None and d.state is not None for d in data):
        fields += ["images", "state"]
        layout = data[0].layout if data else None
    parts = {f: np.concatenate([getattr(d, f) for d in data]) for f in fields}
    return TrainingData(**parts, layout=layout, T=T)


def finished(
    policy: NetworkPolicy,
    problem: Problem,
    data: TrainingData,
    theta: Array,
    m: Array,
    v: Array,
    losses: Array,
    config: TrainingConfig,
    staleness: Array | None = None,
    dropped: int = 0,
) -> TrainingResult:
    """The result of a training of `config.steps` updates; losses (steps,) lack the problem's scale.

    policy, problem: as from `prepare`; theta, m, v: the vectors after the last update. Raises
    FitError when the loss over all samples is not finite.
    """
    policy = updated(policy, theta, m, v, policy.optimiser.step + config.steps)
    loss = problem.loss(means_at(policy, data))
    if not np.isfinite(loss):
        raise diverged(config.steps, config)
    parts = np.array_split(losses * problem.scale, min(config.trace_points, config.steps))
    trace = np.array([part.mean() for part in parts])
    log.debug("policy: loss %.4g -> %.4g nats in %d steps", trace[0], loss, config.steps)
    return TrainingResult(
        policy=cast(GlobalPolicy, policy),
        trace=trace,
        loss=loss,
        staleness=staleness,
        dropped=dropped,
    )


def means_at(policy: Any, data: TrainingData) -> Array:
    """The policy's mean actions at the samples, (n, nu); ShapeError."""
    if has_memory(policy):
        mean: Array = policy.mean(data.trajectories)
        return mean.reshape(data.n, -1)
    images = (data.images,) if needs_images(policy) else ()
    actions: Array = policy.mean(data.obs, *images)
    return actions


def prepare(policy: P, data: TrainingData, config: TrainingConfig) -> tuple[P, Problem]:
    """The policy with normaliser and covariance for `data`, and the problem for the optimiser.

    The normaliser is that of the data; a policy that was trained before is rewritten for it
    (`NetworkPolicy.renormalised`), and computes what it did. The spread of the actions is that of
    the targets and of the noise around them, so it is above zero where all targets are one.
    """
    if data.obs.shape[1] != policy.no or data.target.shape[1] != policy.nu:
        raise ShapeError(
            f"the policy maps {policy.no} observations to {policy.nu} actions, the data have "
            f"{data.obs.shape[1]} and {data.target.shape[1]}"
        )
    _check_numbers(data)
    variance = policy_variance(data, config)
    normaliser = Normaliser(
        obs_mean=data.obs.mean(axis=0),
        obs_std=np.maximum(data.obs.std(axis=0), config.std_floor),
        action_mean=data.target.mean(axis=0),
        action_std=np.sqrt(data.target.var(axis=0) + variance),
    )
    given = normaliser._asdict()
    policy = policy.renormalised(normaliser) if policy.trained else replace(policy, **given)
    policy, normaliser = replace(policy, chol=np.diag(np.sqrt(variance))), policy.normaliser

    weight = capped_weights(data.weight, config.weight_cap)
    precision = weight[:, None, None] * (0.5 * (data.precision + data.precision.transpose(0, 2, 1)))
    precision *= np.outer(normaliser.action_std, normaliser.action_std)
    scale = float(np.einsum("nii->", precision) / (data.n * policy.nu))
    if not 0 < scale < np.inf:
        raise FitError(f"the mean precision of the targets must be above 0, got {scale:.3g}")
    return policy, Problem(
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


def policy_variance(data: TrainingData, config: TrainingConfig) -> Array:
    """Variance of each action, (nu,): 1 / diag(weighted mean of P + 2 entropy_weight I).

    Of all constant diagonal covariances it has the least mean KL divergence to the targets'.
    """
    weight = capped_weights(data.weight, config.weight_cap)
    diagonal = np.einsum("n,nii->i", weight, data.precision) / weight.sum()
    diagonal = diagonal + 2.0 * config.entropy_weight
    if not np.all((diagonal > 0) & (diagonal < np.inf)):
        worst = int(np.argmin(diagonal))
        raise FitError(f"mean precision of action {worst} is {diagonal[worst]:.3g}, not above 0")
    return 1.0 / diagonal


def minibatches(n: int, steps: int, batch_size: int, rng: np.random.Generator) -> Indices:
    """Rows of the samples of each step, (steps, batch_size): shuffled epochs, one after another.

    A batch may reach over the end of an epoch, so that no sample is left out.
    """
    total = steps * batch_size
    order = np.empty(total, dtype=np.int64)
    for start in range(0, total, n):
        part = order[start : start + n]
        part[:] = rng.permutation(n)[: part.size]
    return order.reshape(steps, batch_size)


def schedule(config: TrainingConfig, done: int) -> Array:
    """Rows (learning rate, 1 - beta1^s, root of 1 - beta2^s) of a training after `done` updates."""
    share = np.arange(config.steps) / max(config.steps - 1, 1)
    rate = config.final_rate + (1 - config.final_rate) * 0.5 * (1 + np.cos(np.pi * share))
    s = done + 1.0 + np.arange(config.steps)
    return np.stack(
        [config.learning_rate * rate, 1 - config.beta1**s, np.sqrt(1 - config.beta2**s)], axis=1
    )


def batch_gradient(
    network: Network, theta: Array, problem: Problem, batch: Indices
) -> tuple[float, Array]:
    """Mean loss of the samples in `batch` and its gradient, both without the problem's scale.

    theta: all weights in one vector (`flatten`); the gradient has its order. The gradient of a
    joined batch is the mean of the gradients of its equal parts.
    """
    no, nu = problem.obs.shape[1], problem.target.shape[1]
    theta, batch = np.array(theta, dtype=np.float64), np.array(batch, dtype=np.int64)
    if batch.ndim != 1 or not batch.size or batch.min() < 0 or batch.max() >= len(problem.obs):
        raise ShapeError(f"batch must hold rows of the {len(problem.obs)} samples, got {batch}")
    layout = network.plain_layout(no, nu)
    if layout is not None and theta.shape != (layout.n_weights,):
        raise ShapeError(f"theta must hold {layout.n_weights} weights, got shape {theta.shape}")
    grad = np.empty(theta.size)
    return gradient_of(network, problem)(theta, batch, grad), grad


def adam_step(
    theta: Array, m: Array, v: Array, grad: Array, row: Array, config: TrainingConfig
) -> None:
    """Change theta, m and v, writable vectors, by one Adam step; `row` is one of `schedule`."""
    if not theta.shape == m.shape == v.shape == grad.shape:
        shapes = (theta.shape, m.shape, v.shape, grad.shape)
        raise ShapeError(f"theta, m, v and grad must have one shape, got {shapes}")
    grad = np.array(grad, dtype=np.float64)
    _kernels.adam(
        theta, m, v, grad, row[0], row[1], row[2], config.beta1, config.beta2, config.eps,
        config.weight_decay,
    )  # fmt: skip


def flatten(arrays: Sequence[Array]) -> Array:
    """The arrays one after another in a new vector."""
    return np.concatenate([a.ravel() for a in arrays])


def unflatten(theta: Array, like: Sequence[Array]) -> tuple[Array, ...]:
    """The inverse of `flatten`: read-only arrays shaped as those of `like`."""
    ends = np.cumsum([a.size for a in like])
    if theta.shape != (ends[-1],):
        raise ShapeError(f"the weights fill a vector of {ends[-1]} values, got shape {theta.shape}")
    parts = np.split(theta, ends[:-1])
    return tuple(readonly(p.reshape(a.shape)) for p, a in zip(parts, like, strict=True))


def updated(policy: P, theta: Array, m: Array, v: Array, step: int) -> P:
    """The policy with weights and optimiser state from vectors (`flatten`)."""
    m_parts, v_parts = unflatten(m, policy.weights), unflatten(v, policy.weights)
    state = AdamState(m=m_parts, v=v_parts, step=step)
    return replace(policy, weights=unflatten(theta, policy.weights), optimiser=state)


def gradient_of(network: Network, problem: Problem) -> Gradient:
    """The gradient of minibatches of `problem`, by the kernels where they know the network."""
    sizes = problem.obs.shape[1], problem.target.shape[1]
    layout = network.plain_layout(*sizes)
    if layout is None:
        return TorchGradient(network.build(*sizes), problem)
    return _PlainGradient(layout, problem)


class Gradient(Protocol):
    """Loss and gradient of minibatches; nothing is checked. Not for two threads at once."""

    def __call__(self, theta: Array, batch: Indices, grad: Array) -> float:
        """Mean loss of the samples `batch` (B,), without the scale; its gradient into `grad`."""
        ...

    def train(
        self,
        theta: Array,
        m: Array,
        v: Array,
        batches: Indices,
        plan: Array,
        config: TrainingConfig,
    ) -> Array:
        """One Adam step for each row of `batches` (steps, B), with the row of `plan` (`schedule`).

        Changes theta, m and v in place; returns the losses (steps,). Raises FitError.
        """
        ...


class _PlainGradient:
    """By the kernels; a whole training is one call of them."""

    def __init__(self, layout: PlainLayout, problem: Problem) -> None:
        self.layout, self.problem = layout, problem
        self.sizes = np.array(layout.sizes, dtype=np.int64)
        self._space: tuple[int, Array, Array] | None = None

    def _workspace(self, batch_size: int) -> tuple[Array, Array]:
        """Buffers of `_kernels.gradient`, kept from call to call."""
        if self._space is None or self._space[0] != batch_size:
            acts = np.empty(batch_size * sum(self.layout.sizes))
            delta = np.empty((2, batch_size * max(self.layout.sizes)))
            self._space = batch_size, acts, delta
        return self._space[1:]

    def __call__(self, theta: Array, batch: Indices, grad: Array) -> float:
        acts, delta = self._workspace(batch.size)
        p = self.problem
        loss: float = _kernels.gradient(
            theta, self.sizes, self.layout.activation, p.obs, p.target, p.precision, batch, acts,
            delta, grad,
        )  # fmt: skip
        return loss

    def train(
        self,
        theta: Array,
        m: Array,
        v: Array,
        batches: Indices,
        plan: Array,
        config: TrainingConfig,
    ) -> Array:
        losses, grad = np.zeros(len(batches)), np.empty(theta.size)
        acts, delta = self._workspace(batches.shape[1])
        p = self.problem
        failed = _kernels.train(
            theta, m, v, self.sizes, self.layout.activation, p.obs, p.target, p.precision, batches,
            plan, config.beta1, config.beta2, config.eps, config.weight_decay, acts, delta, grad,
            losses,
        )  # fmt: skip
        if failed >= 0:
            raise diverged(failed, config)
        return losses


class TorchGradient:
    """For a network that is known only as a torch module: gradients by torch, steps by us."""

    def __init__(self, module: torch.nn.Module, problem: Problem) -> None:
        import torch

        self.module = module
        self.parameters = list(self.module.parameters())
        self.like = [p.detach().numpy().copy() for p in self.parameters]
        self.obs, self.target, self.precision = (
            torch.tensor(a) for a in (problem.obs, problem.target, problem.precision)
        )

    def rows(self, batch: Indices) -> Indices:
        """The samples (B',) of a minibatch."""
        return batch

    def means(self, rows: torch.Tensor) -> torch.Tensor:
        """The mean actions (B', nu) of those samples."""
        action: torch.Tensor = self.module(self.obs[rows])
        return action

    def __call__(self, theta: Array, batch: Indices, grad: Array) -> float:
        """See `Gradient`."""
        import torch

        from gps.policies import _modules

        with _modules.one_thread():
            _modules.set_parameters(self.module, unflatten(theta, self.like))
            rows = torch.from_numpy(self.rows(batch))
            d = self.means(rows) - self.target[rows]
            loss = 0.5 * torch.einsum("ni,nij,nj->", d, self.precision[rows], d) / len(rows)
            parts = torch.autograd.grad(loss, self.parameters)
        np.concatenate([p.numpy().ravel() for p in parts], out=grad)
        return float(loss.detach())

    def train(
        self,
        theta: Array,
        m: Array,
        v: Array,
        batches: Indices,
        plan: Array,
        config: TrainingConfig,
    ) -> Array:
        """See `Gradient`."""
        losses, grad = np.zeros(len(batches)), np.empty(theta.size)
        for s, batch in enumerate(batches):
            losses[s] = self(theta, batch, grad)
            if not np.isfinite(losses[s]):
                raise diverged(s, config)
            adam_step(theta, m, v, grad, plan[s], config)
        return losses


def _check_numbers(data: TrainingData) -> None:
    """NonFiniteError that names the first field and sample with NaN or infinity."""
    if not data.n:
        raise FitError("a policy cannot be trained on no samples")
    for name in ("obs", "target", "precision", "weight", "state"):
        array = getattr(data, name)
        if array is None:
            continue
        bad = ~np.isfinite(array.reshape(data.n, -1)).all(axis=1)
        if bad.any():
            raise NonFiniteError(
                f"TrainingData.{name} holds NaN or infinity in {bad.sum()} of {data.n} samples, "
                f"the first is sample {int(np.argmax(bad))}"
            )


def diverged(step: int, config: TrainingConfig) -> FitError:
    """The error of a training whose loss is NaN or infinite."""
    return FitError(
        f"the policy's loss is not finite after {step} of {config.steps} steps; lower "
        f"TrainingConfig.learning_rate (now {config.learning_rate:g}) or look at the targets"
    )
