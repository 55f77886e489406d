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

The hidden state is one tensor of any size: [h; c] of an LSTM are joined and chunked. Training is by
backpropagation through time, over whole trajectories. A module may have a method for these, which
is faster where torch has one call for them (`torch.nn.GRU`):

        def along(self, obs, hidden):  # (B, T, no), (B, nh) to the actions (B, T, nu)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, runtime_checkable

from gps.errors import ConfigError
from gps.fields import Range
from gps.policies.module import UserModule
from gps.policies.policy import Sizes
from gps.policies.training import TrainingConfig, TrainingData

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Along(Protocol):
    """A recurrent module with a method for whole trajectories."""

    def along(self, obs: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Actions (B, T, nu) for whitened observations (B, T, no) and hidden states (B, nh)."""
        ...


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(UserModule):
    """A recurrent network that is a torch module of the user's; module(no, nu, **arguments).

    Its forward maps whitened observations (B, no) and hidden states (B, nh) to mean actions (B, nu)
    and the next hidden states (B, nh), float64. Its attribute `hidden0` (nh,) is the hidden state
    before the first observation: a buffer, or a parameter, which is learned. For the rest
    `ModuleConfig` says what a module may do and where it must be defined.
    """

    trajectories: Annotated[int, Range(at_least=1, at_most=100_000)] = 4
    """Trajectories per update of the training, in place of TrainingConfig.batch_size."""

    has_memory: ClassVar[bool] = True
    _given = ("observations", "hidden states")
    _memory0_needed = (
        " must have hidden0, a buffer or parameter of shape (nh,): the hidden state before the "
        "first observation"
    )

    def initial_memory(self, network: torch.nn.Module) -> torch.Tensor:
        """The hidden state before the first observation, (nh,)."""
        hidden0: torch.Tensor = _hidden0(network)
        return hidden0

    def batches(self, data: TrainingData, config: TrainingConfig) -> tuple[int, int]:
        """Trajectories, and how many are in a batch."""
        n = len(data.trajectories)
        return n, min(self.trajectories, n)

    def outputs(
        self, network: torch.nn.Module, obs: torch.Tensor, images: torch.Tensor | None
    ) -> torch.Tensor:
        """Actions (B, T, nu) along whitened observations (B, T, no)."""
        if isinstance(network, Along):
            return network.along(obs, self.initial_memory(network).expand(len(obs), -1))
        return super().outputs(network, obs, images)

    def _checked(
        self, network: torch.nn.Module, sizes: Sizes, inputs: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """The actions of the second of two steps; ConfigError where they do not depend on the
        hidden state, and where `along` returns others."""
        import torch

        obs, hidden0 = inputs
        first, hidden = self._outputs(network, sizes, (obs, hidden0))
        second, _ = self._outputs(network, sizes, (obs.flip(0), hidden))
        slope = None
        if second.requires_grad and hidden.requires_grad:
            (slope,) = torch.autograd.grad(
                second.sum(), hidden, retain_graph=True, allow_unused=True
            )
        if slope is None:
            raise ConfigError(
                f"{self._shown}: the actions do not depend on the hidden state; a network without "
                "memory is named by ModuleConfig"
            )
        if isinstance(network, Along):
            both = torch.stack([obs, obs.flip(0)], dim=1)
            what = f"along of observations {tuple(both.shape)}"
            out: Any = self._call(what, network.along, both, hidden0)
            want = torch.stack([first, second], dim=1)
            same = isinstance(out, torch.Tensor) and out.shape == want.shape
            if not same or not torch.allclose(out, want, rtol=1e-9, atol=1e-9):
                raise ConfigError(
                    f"{self._shown}: along must return the actions (B, T, nu) of forward, step "
                    "after step, and returns others"
                )
        return second


def _hidden0(network: torch.nn.Module) -> Any:
    """The module's hidden state before the first observation, None where it has none."""
    tensors = {**dict(network.named_buffers()), **dict(network.named_parameters())}
    return tensors.get("hidden0")
