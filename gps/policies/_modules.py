"""The torch side of the policies; imported late, because importing torch takes seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import nn

from gps.policies.training import Normaliser
from gps.types import Array

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "softplus": nn.Softplus}


def mlp(sizes: Sequence[int], activation: str) -> nn.Module:
    """Linear layers of the given widths with an activation between them; all parameters zero."""
    layers: list[nn.Module] = []
    for i, (n, m) in enumerate(pairwise(sizes)):
        if i:
            layers.append(_ACTIVATIONS[activation]())
        # torch would draw start values from its global generator
        linear = nn.utils.skip_init(nn.Linear, n, m, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.zero_()
            linear.bias.zero_()
        layers.append(linear)
    return nn.Sequential(*layers)


class WhitenedNetwork(nn.Module):
    """A network with its normaliser: raw observations, and whatever else it takes, to mean actions,
    and memory if it has one."""

    obs_mean: torch.Tensor
    obs_std: torch.Tensor
    action_mean: torch.Tensor
    action_std: torch.Tensor

    def __init__(self, network: nn.Module, normaliser: Normaliser) -> None:
        super().__init__()
        self.network = network
        for name, values in normaliser._asdict().items():
            self.register_buffer(name, torch.tensor(values))

    def whitened(self, obs: torch.Tensor) -> torch.Tensor:
        """The network's inputs for observations (..., no)."""
        return (obs - self.obs_mean) / self.obs_std

    def action(self, output: torch.Tensor) -> torch.Tensor:
        """Actions for outputs of the network (..., nu)."""
        return self.action_mean + self.action_std * output

    def forward(
        self, obs: torch.Tensor, *others: torch.Tensor
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Mean actions (..., nu) of raw observations (..., no), images and memory as they are."""
        wide = (x.to(torch.float64) if x.is_floating_point() else x for x in others)
        out = self.network(self.whitened(obs), *wide)
        if isinstance(out, tuple | list):
            return self.action(out[0]), out[1]
        return self.action(out)


class WindowNetwork(nn.Module):
    """obs (B, no), memory (B, (steps-1) no) -> mean action (B, nu), the memory of the next step.

    NaN in the memory stands for a missing observation: the present one is the first.
    """

    def __init__(self, head: nn.Module, steps: int) -> None:
        super().__init__()
        self.head, self.steps = head, steps

    def forward(self, obs: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean action and memory."""
        obs, memory = obs.to(torch.float64), memory.to(torch.float64)
        first = obs.repeat(1, self.steps - 1)
        window = torch.cat([torch.where(torch.isnan(memory), first, memory), obs], dim=1)
        return self.head(window), window[:, obs.shape[1] :]


class PoseRegressor(nn.Module):
    """The whitened pose (B, k) as a linear function of a module's features of images."""

    def __init__(self, network: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.network, self.layer = network, layer

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The pose."""
        pose: torch.Tensor = self.layer(self.network.features(images))  # type: ignore[operator]
        return pose


def set_parameters(module: nn.Module, weights: Sequence[Array]) -> None:
    """Copy the weights, in the order of `module.parameters()`, into the module."""
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), weights, strict=True):
            parameter.copy_(torch.tensor(value))


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, so that sums have one order; the old number is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
