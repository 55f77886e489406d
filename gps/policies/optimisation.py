"""Adam on minibatches: their rows, their gradients, the steps and the learning rate.

A training is `minibatches`, a `Gradient` and one Adam step for each row of `schedule`; the compiled
kernels do all of it in one call for a multi-layer perceptron. Trainings that share the work among
processes take the parts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from gps.errors import FitError, ShapeError
from gps.fields import readonly
from gps.policies import _kernels
from gps.policies.training import Problem, TrainingConfig
from gps.types import Array, Images, Record

if TYPE_CHECKING:
    import torch

Indices = npt.NDArray[np.int64]


class MLPLayout(NamedTuple):
    """What the compiled kernels need of a multi-layer perceptron."""

    widths: tuple[int, ...]
    """Widths of all layers, observation and action included."""
    activation: int
    """A code of `gps.policies._kernels`."""

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the weights and biases, (m, n) and (m,) for each layer."""
        return [s for n, m in pairwise(self.widths) for s in ((m, n), (m,))]

    @property
    def n_weights(self) -> int:
        """Length of the vector of all weights."""
        return sum((n + 1) * m for n, m in pairwise(self.widths))


@dataclass(frozen=True, eq=False)
class AdamState(Record):
    """State of the Adam optimiser, continued in the next training on the same data."""

    m: tuple[Array, ...]
    """Running mean of the gradient, shaped like the weights."""
    v: tuple[Array, ...]
    """Running mean of its square."""
    step: int = 0
    """Updates made so far."""

    def __post_init__(self) -> None:
        freeze_tuples(self, "m", "v")
        if [a.shape for a in self.m] != [a.shape for a in self.v]:
            raise ShapeError("AdamState.m and AdamState.v must have the same shapes")

    @classmethod
    def zero(cls, weights: Sequence[Array]) -> AdamState:
        """The state before the first update."""
        zeros = tuple(np.zeros(w.shape) for w in weights)
        return cls(m=zeros, v=zeros)


def freeze_tuples(record: object, *names: str) -> None:
    """Make fields of a frozen record that are sequences of arrays tuples of read-only arrays."""
    for name in names:
        object.__setattr__(record, name, tuple(readonly(a) for a in vars(record)[name]))


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


def diverged(step: int, config: TrainingConfig) -> FitError:
    """The error of a training whose loss is NaN or infinite."""
    return FitError(
        f"the policy's loss is not finite after {step} of {config.steps} steps; lower "
        f"TrainingConfig.learning_rate (now {config.learning_rate:g}) or look at the targets"
    )


class Gradient(ABC):
    """Loss and gradient of minibatches; nothing is checked. Not for two threads at once."""

    @abstractmethod
    def __call__(self, theta: Array, batch: Indices, grad: Array) -> float:
        """Mean loss of the samples `batch` (B,), without the scale; its gradient into `grad`."""

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
        losses, grad = np.zeros(len(batches)), np.empty(theta.size)
        for s, batch in enumerate(batches):
            losses[s] = self(theta, batch, grad)
            if not np.isfinite(losses[s]):
                raise diverged(s, config)
            adam_step(theta, m, v, grad, plan[s], config)
        return losses


class MLPGradient(Gradient):
    """By the compiled kernels; a whole training is one call of them."""

    def __init__(self, layout: MLPLayout, problem: Problem) -> None:
        self.layout, self.problem = layout, problem
        self.widths = np.array(layout.widths, dtype=np.int64)
        self._space: tuple[int, Array, Array] | None = None

    def _workspace(self, batch_size: int) -> tuple[Array, Array]:
        """Buffers of `_kernels.gradient`, kept from call to call."""
        if self._space is None or self._space[0] != batch_size:
            acts = np.empty(batch_size * sum(self.layout.widths))
            delta = np.empty((2, batch_size * max(self.layout.widths)))
            self._space = batch_size, acts, delta
        return self._space[1:]

    def __call__(self, theta: Array, batch: Indices, grad: Array) -> float:
        """See `Gradient`."""
        acts, delta = self._workspace(batch.size)
        p = self.problem
        loss: float = _kernels.gradient(
            theta, self.widths, self.layout.activation, p.obs, p.target, p.precision, batch, acts,
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
        """See `Gradient`."""
        losses, grad = np.zeros(len(batches)), np.empty(theta.size)
        acts, delta = self._workspace(batches.shape[1])
        p = self.problem
        failed = _kernels.train(
            theta, m, v, self.widths, self.layout.activation, p.obs, p.target, p.precision, batches,
            plan, config.beta1, config.beta2, config.eps, config.weight_decay, acts, delta, grad,
            losses,
        )  # fmt: skip
        if failed >= 0:
            raise diverged(failed, config)
        return losses


Outputs = Callable[["torch.nn.Module", "torch.Tensor", "torch.Tensor | None"], "torch.Tensor"]


class TorchGradient(Gradient):
    """Of any torch module, by torch.

    outputs: those of the module for whitened observations and images. T: with it a row of a
    minibatch is a whole trajectory of so many samples, given as (B, T, no).
    """

    def __init__(
        self,
        module: torch.nn.Module,
        outputs: Outputs,
        problem: Problem,
        images: Images | None = None,
        T: int | None = None,
    ) -> None:
        import torch

        self.module, self.outputs, self.images, self.T = module, outputs, images, T
        self.parameters = list(self.module.parameters())
        self.like = [p.detach().numpy().copy() for p in self.parameters]
        self.obs, self.target, self.precision = (
            torch.tensor(a) for a in (problem.obs, problem.target, problem.precision)
        )

    def _means(self, rows: torch.Tensor) -> torch.Tensor:
        """The mean actions of those samples."""
        import torch

        obs = self.obs[rows]
        images = None if self.images is None else torch.tensor(self.images[rows.numpy()])
        if self.T is not None:
            obs = obs.reshape(-1, self.T, obs.shape[1])
            images = None if images is None else images.reshape(-1, self.T, *images.shape[1:])
        return self.outputs(self.module, obs, images).reshape(len(rows), -1)

    def __call__(self, theta: Array, batch: Indices, grad: Array) -> float:
        """See `Gradient`."""
        import torch

        from gps.policies import _modules

        if self.T is not None:
            batch = (batch[:, None] * self.T + np.arange(self.T)).ravel()
        with _modules.one_thread():
            _modules.set_parameters(self.module, unflatten(theta, self.like))
            rows = torch.from_numpy(batch)
            d = self._means(rows) - self.target[rows]
            loss = 0.5 * torch.einsum("ni,nij,nj->", d, self.precision[rows], d) / len(rows)
            parts = torch.autograd.grad(loss, self.parameters)
        np.concatenate([p.numpy().ravel() for p in parts], out=grad)
        return float(loss.detach())
