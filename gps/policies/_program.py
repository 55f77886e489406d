"""The torch module that an exported policy is traced from; imported late for torch's sake."""

from __future__ import annotations

import torch
from torch import nn

from gps.policies._modules import WhitenedNetwork
from gps.policies.metadata import Bounds
from gps.types import Array


class PolicyProgram(nn.Module):
    """obs (B, no) -> mean action (B, nu) and covariance (nu, nu) of the policy, both float64.

    network: raw observations to mean actions, normaliser inside. A float32 observation is widened
    by the normaliser's float64 buffers, so one program takes both.
    """

    chol: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, network: nn.Module, chol: Array, limits: Bounds | None = None) -> None:
        super().__init__()
        self.network, self.clips = network, limits is not None
        self.register_buffer("chol", torch.tensor(chol))
        if limits is not None:
            self.register_buffer("low", torch.tensor(limits[0], dtype=torch.float64))
            self.register_buffer("high", torch.tensor(limits[1], dtype=torch.float64))

    def bounded(self, mean: torch.Tensor) -> torch.Tensor:
        """The mean action within the limits, where the program has some."""
        return torch.minimum(torch.maximum(mean, self.low), self.high) if self.clips else mean

    def outputs(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Mean and covariance of the action, and the memory of the next step if there is one."""
        out = self.network(*inputs)
        mean, *memory = out if isinstance(out, tuple) else (out,)
        return self.bounded(mean), self.chol @ self.chol.T, *memory

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Mean and covariance of the action."""
        return self.outputs(obs)


class ImageProgram(PolicyProgram):
    """obs (B, no) and images (B, H, W, C) uint8 -> mean action and covariance."""

    def forward(  # type: ignore[override]
        self, obs: torch.Tensor, images: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Mean and covariance of the action."""
        return self.outputs(obs, images)


class MemoryProgram(PolicyProgram):
    """obs (B, no) and memory (B, size) -> mean action, covariance, and the memory of the next step.

    network: raw observations and memory to mean actions and memory.
    """

    def forward(  # type: ignore[override]
        self, obs: torch.Tensor, memory: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Mean and covariance of the action, and the memory."""
        return self.outputs(obs, memory)


class ImageMemoryProgram(PolicyProgram):
    """The same with images: obs, images, memory -> mean action, covariance, memory."""

    def forward(  # type: ignore[override]
        self, obs: torch.Tensor, images: torch.Tensor, memory: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Mean and covariance of the action, and the memory."""
        return self.outputs(obs, images, memory)


def kind_of(needs_images: bool, has_memory: bool) -> type[PolicyProgram]:
    """The program of a policy: torch's exporters take names and number of inputs from `forward`."""
    if has_memory:
        return ImageMemoryProgram if needs_images else MemoryProgram
    return ImageProgram if needs_images else PolicyProgram


class SinglePrecisionProgram(PolicyProgram):
    """The same with the network in float32, for runtimes that lack float64 kernels.

    whitened: a network with its normaliser, of which it takes possession. Only what lies between
    normaliser and action is rounded; observation, mean and covariance stay float64.
    """

    network: WhitenedNetwork

    def __init__(
        self, whitened: WhitenedNetwork, chol: Array, limits: Bounds | None = None
    ) -> None:
        super().__init__(whitened, chol, limits)
        whitened.network.float()  # the normaliser stays float64

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Mean and covariance of the action."""
        white = self.network.whitened(obs).float()
        mean = self.network.action(self.network.network(white).double())
        return self.bounded(mean), self.chol @ self.chol.T


class GatheredConvolution(nn.Conv2d):
    """A torch.nn.Conv2d, zero padding, as matrix products: runtimes have no float64 convolution."""

    def _conv_forward(
        self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        (ky, kx), (sy, sx), (dy, dx) = self.kernel_size, self.stride, self.dilation
        x = nn.functional.pad(input, tuple(self._reversed_padding_repeated_twice))
        n, height, width = x.shape[1] // self.groups, *x.shape[2:]
        rows = torch.arange((height - dy * (ky - 1) - 1) // sy + 1) * sy
        columns = torch.arange((width - dx * (kx - 1) - 1) // sx + 1) * sx
        down = (dy * torch.arange(ky))[:, None] + rows  # (ky, rows)
        across = (dx * torch.arange(kx))[:, None] + columns  # (kx, columns)
        at = down[:, None, :, None] * width + across[None, :, None, :]
        size, parts = len(rows) * len(columns), []
        for group, w in zip(x.chunk(self.groups, 1), weight.chunk(self.groups, 0), strict=True):
            patches = group.flatten(2)[:, :, at.reshape(-1)].reshape(-1, n * ky * kx, size)
            parts.append(w.reshape(w.shape[0], -1) @ patches)
        out = torch.cat(parts, dim=1)
        if bias is not None:
            out = out + bias[:, None]
        return out.reshape(-1, self.out_channels, len(rows), len(columns))


def without_convolutions(module: nn.Module) -> nn.Module:
    """The module, of which this takes possession, with its convolutions as matrix products."""
    for child in module.modules():
        if type(child) is nn.Conv2d and child.padding_mode == "zeros":
            child.__class__ = GatheredConvolution  # code of the module may use its attributes
    return module
