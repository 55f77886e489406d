"""Recurrent networks of the user's as global policies: `RecurrentConfig`.

    class MyGRU(torch.nn.Module):
        def __init__(self, no, nu, hidden):
            super().__init__()
            self.cell, self.last = torch.nn.GRUCell(no, hidden), torch.nn.Linear(hidden, nu)
            self.register_buffer("hidden0", torch.zeros(hidden))  # before the first observation

        def forward(self, obs, hidden):  # (B, no) whitened, (B, nh) to (B, nu), (B, nh)
            hidden = self.cell(obs, hidden)
            return self.last(hidden), hidden

    network = RecurrentConfig(module=MyGRU, arguments=(("hidden", 16),))

The hidden state is one tensor of any size: [h; c] of an LSTM are joined and chunked. In training
all steps of a trajectory are computed one after another, and the gradient goes back through all of
them. A module may have a method for whole trajectories besides, which is faster where torch has one
call for them (`torch.nn.GRU`):

        def along(self, obs, hidden):  # (B, T, no), (B, nh) to the actions (B, T, nu)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from gps.errors import ConfigError, ShapeError
from gps.fields import readonly
from gps.policies import training
from gps.policies.memory import Remembering, along_time, checked
from gps.policies.module import Sizes, UserModule
from gps.policies.neural import NetworkPolicy
from gps.policies.training import Indices, Problem, TrainingConfig, TrainingData, TrainingResult
from gps.types import Array, Layout

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(UserModule):
    """A recurrent network that is a torch module of the user's; module(no, nu, **arguments).

    Its forward maps whitened observations (B, no) and hidden states (B, nh) to mean actions (B, nu)
    and the next hidden states (B, nh), float64. Its attribute `hidden0` (nh,) is the hidden state
    before the first observation: a buffer, or a parameter, which is learned. For the rest
    `ModuleConfig` says what a module may do and where it must be defined.
    """

    trajectories: int = 4
    """Trajectories per update of the training, in place of TrainingConfig.batch_size."""

    remembers: ClassVar[bool] = True
    """The policy has memory, and is trained on whole trajectories."""
    _given: ClassVar[tuple[str, ...]] = ("observations", "hidden states")

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.trajectories) is not int or self.trajectories < 1:
            raise ConfigError(
                "RecurrentConfig.trajectories must be a whole number of at least 1, got "
                f"{self.trajectories!r}"
            )

    def initial_policy(
        self,
        no: int,
        nu: int,
        image_shape: tuple[int, int, int] | None,
        layout: Layout | None,
        rng: np.random.Generator,
    ) -> RecurrentPolicy:
        """An untrained policy; see `gps.policies.initial_policy`."""
        return RecurrentPolicy.initial(self, no, nu, rng)

    def _inputs(
        self, network: torch.nn.Module, sizes: Sizes, obs: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        import torch

        hidden0: Any = getattr(network, "hidden0", None)
        if not isinstance(hidden0, torch.Tensor) or hidden0.dim() != 1 or not len(hidden0):
            got = "no such attribute" if hidden0 is None else f"a {type(hidden0).__name__}"
            if isinstance(hidden0, torch.Tensor):
                got = f"shape {tuple(hidden0.shape)}"
            raise ConfigError(
                f"{self._shown} must have hidden0, a buffer or parameter of shape (nh,): the "
                f"hidden state before the first observation; got {got}"
            )
        if not torch.isfinite(hidden0).all():
            raise ConfigError(f"{self._shown}: hidden0 is not finite")
        return obs, hidden0.expand(len(obs), -1)

    def _outputs(
        self, network: torch.nn.Module, sizes: Sizes, inputs: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        out = self._called(network, inputs)
        if not isinstance(out, tuple | list) or len(out) != 2:
            got = f"{len(out)} values" if isinstance(out, tuple | list) else type(out).__name__
            raise ConfigError(
                f"{self._shown}: forward must give two tensors, actions and hidden states, got "
                f"{got}"
            )
        rows = len(inputs[0])
        action = self._tensor(out[0], "actions", (rows, sizes[1]), inputs)
        hidden = self._tensor(out[1], "hidden states", (rows, inputs[1].shape[1]), inputs)
        return action, hidden

    def _seen(
        self, network: torch.nn.Module, sizes: Sizes, inputs: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """The actions of the second of two steps; ConfigError where no memory has a part in them,
        and where `along` is something else than step after step."""
        import torch

        obs, hidden0 = inputs
        first, hidden = self._outputs(network, sizes, (obs, hidden0))
        second, _ = self._outputs(network, sizes, (obs.flip(0), hidden))
        way = torch.autograd.grad(
            second.sum(), hidden, retain_graph=True, allow_unused=True
        ) if second.requires_grad and hidden.requires_grad else (None,)  # fmt: skip
        if way[0] is None:
            raise ConfigError(
                f"{self._shown}: the actions do not depend on the hidden state; a network without "
                "memory is named by ModuleConfig"
            )
        if hasattr(network, "along"):
            both = torch.stack([obs, obs.flip(0)], dim=1)
            try:
                out = cast(Any, network).along(both, hidden0)
            except Exception as error:  # the user's code
                raise ConfigError(
                    f"{self._shown}: along of observations {tuple(both.shape)} raised "
                    f"{type(error).__name__}: {' '.join(str(error).split())}"
                ) from error
            want = torch.stack([first, second], dim=1)
            same = isinstance(out, torch.Tensor) and out.shape == want.shape
            if not same or not torch.allclose(out, want, rtol=1e-9, atol=1e-9):
                raise ConfigError(
                    f"{self._shown}: along must give the actions (B, T, nu) of forward, step after "
                    "step, and gives others"
                )
        return second


@dataclass(frozen=True, eq=False)
class RecurrentPolicy(Remembering, NetworkPolicy):
    """z, hidden <- network((obs - obs_mean) / obs_std, hidden); u = action_mean + action_std z.

    Made by `initial_policy`.
    """

    @property
    def _config(self) -> RecurrentConfig:
        return cast(RecurrentConfig, self.network)

    @cached_property
    def _module(self) -> torch.nn.Module:
        return self.module()

    @cached_property
    def memory0(self) -> Array:
        """The hidden state before the first observation, (nh,)."""
        hidden0: Any = cast(Any, self._module).network.hidden0
        return readonly(hidden0.detach().numpy())

    def step(self, obs: Array, memory: Array) -> tuple[Array, Array]:
        """Mean actions (..., nu) and hidden states (..., nh) after observations (..., no)."""
        import torch

        from gps.policies import _modules

        obs, memory = checked(self, obs, memory)
        size = memory.shape[-1]
        lead = obs.shape[:-1]
        rows = torch.tensor(obs.reshape(-1, self.no)), torch.tensor(memory.reshape(-1, size))
        with _modules.one_thread(), torch.no_grad():
            mean, after = self._module(*rows)
        return mean.numpy().reshape(*lead, self.nu), after.numpy().reshape(*lead, size)

    def mean(self, obs: Array) -> Array:
        """Mean actions (..., T, nu) along trajectories of observations (..., T, no); ShapeError."""
        import torch

        from gps.policies import _modules

        obs = along_time(obs)
        if obs.shape[-1] != self.no:
            raise ShapeError(f"observations must have {self.no} values, got shape {obs.shape}")
        rows = torch.tensor(obs.reshape(-1, obs.shape[-2], self.no))
        with _modules.one_thread(), torch.no_grad():
            module = cast(_modules.WhitenedRecurrent, self._module)
            output = _along(module.network, module.whitened(rows))
            mean: Array = module.action(output).numpy()
        return mean.reshape(*obs.shape[:-1], self.nu)

    def fit(
        self, data: TrainingData, config: TrainingConfig, rng: np.random.Generator
    ) -> TrainingResult:
        """Train on whole trajectories, the gradient going back through time to their beginning."""
        n, T, _ = data.trajectories.shape
        data = replace(data, images=None, state=None, layout=None)
        policy, problem = training.prepare(self, data, config)
        size = min(self._config.trajectories, n)
        batches = training.minibatches(n, config.steps, size, rng)
        gradient = _ThroughTime(self.built(), problem, T)
        return training.descended(policy, problem, data, gradient, batches, config)

    def module(self) -> torch.nn.Module:
        """A torch module of its own: raw observation and hidden state to mean action and hidden."""
        from gps.policies import _modules

        return _modules.WhitenedRecurrent(self.built(), self.normaliser).eval()


class _ThroughTime(training.TorchGradient):
    """Minibatches of whole trajectories of T steps."""

    def __init__(self, module: torch.nn.Module, problem: Problem, T: int) -> None:
        super().__init__(module, problem)
        self.T = T

    def rows(self, batch: Indices) -> Indices:
        """The samples of the trajectories `batch`."""
        return (batch[:, None] * self.T + np.arange(self.T)).ravel()

    def means(self, rows: torch.Tensor) -> torch.Tensor:
        """The mean actions along the trajectories."""
        obs = self.obs[rows].reshape(-1, self.T, self.obs.shape[1])
        means: torch.Tensor = _along(self.module, obs)
        return means.reshape(len(rows), -1)


def _along(network: Any, obs: torch.Tensor) -> Any:
    """Actions (B, T, nu) of a network along whitened observations (B, T, no)."""
    import torch

    hidden = network.hidden0.expand(len(obs), -1)
    if hasattr(network, "along"):
        return network.along(obs, hidden)
    actions = []
    for t in range(obs.shape[1]):
        action, hidden = network(obs[:, t], hidden)
        actions.append(action)
    return torch.stack(actions, dim=1)
