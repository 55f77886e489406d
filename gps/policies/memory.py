"""Policies with memory: what they have in common, and those that see a window of observations.

What a policy remembers is one array, a row for each sample, that goes in and comes out of every
step; the policy itself keeps nothing:

    memory = np.tile(policy.memory0, (N, 1))
    mean, memory = policy.step(obs, memory)

Networks that carry a hidden state are in `gps.policies.recurrent`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import numpy as np

from gps.errors import ConfigError, GPSError, ShapeError
from gps.fields import readonly
from gps.policies import training
from gps.policies.neural import MLPConfig, Network, NeuralPolicy, PlainLayout, predicted
from gps.policies.training import TrainingConfig, TrainingData, TrainingResult
from gps.types import Array, Layout, Record

if TYPE_CHECKING:
    import torch


class Stepping(Protocol):
    """What is needed of a policy with memory to act and predict: one step."""

    @property
    def memory0(self) -> Array:
        """What is remembered before the first observation, (size,); NaN where that stands in."""
        ...

    @property
    def chol(self) -> Array:
        """Lower Cholesky factor of the action covariance, (nu, nu)."""
        ...

    def step(self, obs: Array, memory: Array) -> tuple[Array, Array]:
        """Mean actions (..., nu) and what is remembered next, (..., size); ShapeError.

        obs: (..., no). memory: (..., size), as the last step gave it, or `memory0` at first.
        """
        ...


def begun(policy: Stepping, lead: tuple[int, ...]) -> Array:
    """What is remembered at the beginning, (*lead, size)."""
    memory = np.empty((*lead, policy.memory0.size))
    memory[...] = policy.memory0
    return memory


def predict_step(
    policy: Stepping,
    obs: Array,
    state: Array | None,
    episode_start: Array | bool | None,
    deterministic: bool,
    rng: np.random.Generator | None,
) -> tuple[Array, Array]:
    """See `Remembering.predict`."""
    obs = np.asarray(obs, dtype=np.float64)
    memory = begun(policy, obs.shape[:-1])
    if state is not None:
        if np.shape(state) != memory.shape:
            raise ShapeError(
                f"the policy's state must have shape {memory.shape}, got {np.shape(state)}"
            )
        start = np.zeros(obs.shape[:-1], dtype=bool)
        start |= np.asarray(False if episode_start is None else episode_start, dtype=bool)
        memory = np.where(start[..., None], memory, state)
    mean, memory = policy.step(obs, memory)
    return predicted(mean, policy.chol, deterministic, rng), memory


def mean_along(policy: Stepping, obs: Array) -> Array:
    """Mean actions (..., T, nu) along trajectories of observations (..., T, no), step by step."""
    obs = along_time(obs)
    memory = begun(policy, obs.shape[:-2])
    means = []
    for t in range(obs.shape[-2]):
        mean, memory = policy.step(obs[..., t, :], memory)
        means.append(mean)
    return np.stack(means, axis=-2)


if TYPE_CHECKING:
    _Stepping = Stepping
else:  # at run time its properties would hide the fields of a policy
    _Stepping = object


class Remembering(_Stepping):
    """Base of policies with memory: acting and predicting, made of `step`."""

    has_memory: ClassVar[bool] = True

    def act(
        self, x: Array, obs: Array, t: int, noise: Array, *, memory: Array
    ) -> tuple[Array, Array]:
        """Actions (N, nu) and memory (N, size); see `Policy` and `acting` in `gps.protocols`."""
        mean, memory = self.step(obs, memory)
        return mean + noise @ self.chol.T, memory

    def predict(
        self,
        obs: Array,
        state: Array | None = None,
        episode_start: Array | bool | None = None,
        deterministic: bool = True,
        *,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, Array]:
        """Action (..., nu) and the state (..., size) for the next call, as Stable-Baselines3 does.

        state: None at the beginning of an episode. episode_start (...): where true, the state is
        that of a beginning whatever was given. With `deterministic=False` the policy's noise is
        drawn from `rng`, which must be given.
        """
        return predict_step(self, obs, state, episode_start, deterministic, rng)


def checked(policy: Any, obs: Array, memory: Array) -> tuple[Array, Array]:
    """Observations (..., no) and memory (..., size) as float64; ShapeError for other shapes."""
    obs, memory = np.asarray(obs, dtype=np.float64), np.asarray(memory, dtype=np.float64)
    size = policy.memory0.size
    if obs.shape[-1:] != (policy.no,) or memory.shape != (*obs.shape[:-1], size):
        raise ShapeError(
            f"a step takes observations (..., {policy.no}) and memory (..., {size}) of as many "
            f"rows, got shapes {obs.shape} and {memory.shape}"
        )
    return obs, memory


def along_time(obs: Array) -> Array:
    """Observations as float64; ShapeError unless they are trajectories, (..., T, no), T >= 1."""
    obs = np.asarray(obs, dtype=np.float64)
    if obs.ndim < 2 or obs.shape[-2] < 1:
        raise ShapeError(
            "a policy with memory takes whole trajectories of observations, (..., T, no); got "
            f"shape {obs.shape}. Step by step: predict(obs, state)"
        )
    return obs


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """A network that sees the last observations at once, the oldest first.

    Before there are so many, the first one stands in for what is missing.
    """

    network: Network = field(default_factory=MLPConfig)
    """The network of the window: a perceptron (MLPConfig) or a module of the user's (ModuleConfig),
    whose observation has steps times as many values."""
    steps: int = 4
    """Observations in the window, the newest one included; at least 2."""

    remembers: ClassVar[bool] = True
    """The policy has memory, and is trained on whole trajectories."""

    def __post_init__(self) -> None:
        if type(self.steps) is not int or self.steps < 2:
            raise ConfigError(
                f"WindowConfig.steps must be a whole number of at least 2, got {self.steps!r}"
            )
        plain = not isinstance(self.network, type) and hasattr(self.network, "plain_layout")
        if not plain or hasattr(self.network, "initial_policy"):
            raise ConfigError(
                "WindowConfig.network must be a network of vectors without memory, MLPConfig() or "
                f"ModuleConfig(...), got {self.network!r}"
            )

    def build(self, no: int, nu: int) -> torch.nn.Module:
        """The network of whitened windows (B, steps no)."""
        return self.network.build(self.steps * no, nu)

    def initial_weights(self, no: int, nu: int, rng: np.random.Generator) -> tuple[Array, ...]:
        """Not used: see `WindowConfig.initial_policy`."""
        raise GPSError("a WindowConfig makes its policy by initial_policy")

    def plain_layout(self, no: int, nu: int) -> PlainLayout | None:
        """That of the network inside."""
        return self.network.plain_layout(self.steps * no, nu)

    def initial_policy(
        self,
        no: int,
        nu: int,
        image_shape: tuple[int, int, int] | None,
        layout: Layout | None,
        rng: np.random.Generator,
    ) -> WindowPolicy:
        """An untrained policy; see `gps.policies.initial_policy`."""
        head = NeuralPolicy.initial(self.network, self.steps * no, nu, rng)
        return WindowPolicy(network=self, head=head)


@dataclass(frozen=True, eq=False)
class WindowPolicy(Remembering, Record):
    """u ~ N(head([obs[t-steps+1]; ... obs[t]]), chol chol'); made by `initial_policy`."""

    network: WindowConfig
    head: NeuralPolicy

    def __post_init__(self) -> None:
        if self.head.no % self.network.steps:
            raise ShapeError(
                f"WindowPolicy.head takes {self.head.no} values, which is no window of "
                f"{self.network.steps} steps"
            )

    @property
    def no(self) -> int:
        """Size of one observation."""
        return self.head.no // self.network.steps

    @property
    def nu(self) -> int:
        """Action size."""
        return self.head.nu

    @property
    def obs_mean(self) -> Array:
        """Mean of the newest observation in the window, (no,)."""
        return self.head.obs_mean[-self.no :]

    @property
    def obs_std(self) -> Array:
        """Its deviation, (no,)."""
        return self.head.obs_std[-self.no :]

    @property
    def chol(self) -> Array:
        """Lower Cholesky factor of the action covariance, (nu, nu)."""
        return self.head.chol

    @property
    def Sigma(self) -> Array:
        """Action covariance, (nu, nu), the same at every step and observation."""
        return self.head.Sigma

    @property
    def trained(self) -> bool:
        """Whether `fit` has updated the weights."""
        return self.head.trained

    @property
    def renormalises(self) -> bool:
        """Whether a further training takes the normaliser of its data."""
        return self.head.renormalises

    @cached_property
    def memory0(self) -> Array:
        """NaN: nothing has been seen, and the first observation stands in for it."""
        return readonly(np.full((self.network.steps - 1) * self.no, np.nan))

    def restarted(self, rng: np.random.Generator) -> WindowPolicy:
        """An untrained policy of the same network and sizes."""
        return replace(self, head=self.head.restarted(rng))

    def step(self, obs: Array, memory: Array) -> tuple[Array, Array]:
        """Mean actions (..., nu), and the last steps-1 observations, (..., (steps-1) no)."""
        obs, memory = checked(self, obs, memory)
        first = np.concatenate([obs] * (self.network.steps - 1), axis=-1)
        window = np.concatenate([np.where(np.isnan(memory), first, memory), obs], axis=-1)
        return self.head.mean(window), window[..., self.no :]

    def windows(self, obs: Array) -> Array:
        """Windows (..., T, steps no) along trajectories of observations (..., T, no)."""
        obs, past = along_time(obs), self.network.steps - 1
        first = np.repeat(obs[..., :1, :], past, axis=-2)
        padded = np.concatenate([first, obs], axis=-2)
        T = obs.shape[-2]
        return np.concatenate([padded[..., i : i + T, :] for i in range(past + 1)], axis=-1)

    def mean(self, obs: Array) -> Array:
        """Mean actions (..., T, nu) along trajectories of observations (..., T, no); ShapeError."""
        return self.head.mean(self.windows(obs))

    def fit(
        self, data: TrainingData, config: TrainingConfig, rng: np.random.Generator
    ) -> TrainingResult:
        """Train the network on the windows of all trajectories, as any other on observations."""
        windows = self.windows(data.trajectories).reshape(data.n, -1)
        seen = replace(data, obs=windows, T=None, images=None, state=None, layout=None)
        result = training.fit(self.head, seen, config, rng)
        return replace(result, policy=replace(self, head=cast(NeuralPolicy, result.policy)))

    def module(self) -> torch.nn.Module:
        """A torch module of its own: observation and memory to mean action and memory."""
        from gps.policies import _modules

        return _modules.WindowNetwork(self.head.module(), self.network.steps).eval()
