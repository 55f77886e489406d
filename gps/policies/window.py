"""Policies with a window of the last observations as their memory: `WindowConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

import numpy as np

from gps.errors import ConfigError, ShapeError
from gps.fields import Range, readonly
from gps.policies.features import FeaturePolicy
from gps.policies.mlp import MLPConfig
from gps.policies.neural import NetworkPolicy, TorchNetwork
from gps.policies.policy import Network, Sizes
from gps.policies.training import TrainingConfig, TrainingData, TrainingResult
from gps.types import Array, Images

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class WindowConfig(Network):
    """A network of the last observations, the oldest first.

    The first observation also stands for those that are missing before it.
    """

    network: TorchNetwork = field(default_factory=MLPConfig)
    """The network of the window: a perceptron (MLPConfig) or a module of the user's (ModuleConfig),
    whose observation has `steps` times as many values."""
    steps: Annotated[int, Range(at_least=2, at_most=10_000)] = 4
    """Observations in the window, the newest one included."""

    has_memory: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        network = self.network
        plain = isinstance(network, TorchNetwork)
        if not plain or network.needs_images or network.has_memory:
            raise ConfigError(
                "WindowConfig.network must be a network of vectors without memory, MLPConfig() or "
                f"ModuleConfig(...), got {network!r}"
            )

    def initial_policy(self, sizes: Sizes, rng: np.random.Generator) -> WindowPolicy:
        """See `Network.initial_policy`."""
        self.check(sizes)
        window = Sizes(self.steps * sizes.no, sizes.nu)
        return WindowPolicy(head=NetworkPolicy.initial(self.network, window, rng), network=self)


@dataclass(frozen=True, eq=False)
class WindowPolicy(FeaturePolicy):
    """u ~ N(head([obs[t-steps+1]; ... obs[t]]), chol chol'); made by `initial_policy`."""

    network: WindowConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head.no % self.network.steps:
            raise ShapeError(
                f"WindowPolicy.head takes {self.head.no} values, which are not a window of "
                f"{self.network.steps} steps"
            )

    @property
    def no(self) -> int:
        """Size of one observation."""
        return self.head.no // self.network.steps

    @property
    def obs_entries(self) -> slice:
        """Those of the newest observation in the window."""
        return slice(-self.no, None)

    @cached_property
    def memory0(self) -> Array:
        """NaN: there is no observation yet, and the first one stands for it."""
        return readonly(np.full((self.network.steps - 1) * self.no, np.nan))

    def _rows(self, obs: Array, images: Images | None, memory: Array) -> tuple[Array, Array]:
        first = np.concatenate([obs] * (self.network.steps - 1), axis=-1)
        window = np.concatenate([np.where(np.isnan(memory), first, memory), obs], axis=-1)
        return self.head.mean(window), window[:, self.no :]

    def _along(self, obs: Array, images: Images | None) -> Array:
        return self.head.mean(self.windows(obs))

    def windows(self, obs: Array) -> Array:
        """Windows (..., T, steps no) along trajectories of observations (..., T, no)."""
        past, T = self.network.steps - 1, obs.shape[-2]
        first = np.repeat(obs[..., :1, :], past, axis=-2)
        padded = np.concatenate([first, obs], axis=-2)
        return np.concatenate([padded[..., i : i + T, :] for i in range(past + 1)], axis=-1)

    def fit(
        self, data: TrainingData, config: TrainingConfig, rng: np.random.Generator
    ) -> TrainingResult[Self]:
        """Train the network on the windows of all trajectories, as any other on observations."""
        windows = self.windows(data.trajectories).reshape(data.n, -1)
        given = replace(data, obs=windows, T=None, images=None, state=None, layout=None)
        result = self.head.fit(given, config, rng)
        return TrainingResult(replace(self, head=result.policy), result.trace, result.loss)

    def module(self) -> torch.nn.Module:
        """See `GlobalPolicy.module`."""
        from gps.policies import _modules

        return _modules.WindowNetwork(self.head.module(), self.network.steps).eval()
