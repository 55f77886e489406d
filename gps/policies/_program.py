"""The torch module that an exported policy is traced from; imported late for torch's sake."""

from __future__ import annotations

import torch
from torch import nn

from gps.policies._modules import WhitenedNetwork
from gps.types import Array


class PolicyProgram(nn.Module):
    """obs (B, no) -> mean action (B, nu) and covariance (nu, nu) of the policy, both float64.

    network: raw observations to mean actions, normaliser inside. A float32 observation is widened
    by the normaliser's float64 buffers, so one program takes both.
    """

    chol: torch.Tensor

    def __init__(self, network: nn.Module, chol: Array) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("chol", torch.tensor(chol))

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and covariance of the action."""
        return self.network(obs), self.chol @ self.chol.T


class SeeingProgram(PolicyProgram):
    """obs (B, no) and images (B, H, W, C) uint8 -> mean action and covariance."""

    def forward(  # type: ignore[override]
        self, obs: torch.Tensor, images: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and covariance of the action."""
        return self.network(obs, images), self.chol @ self.chol.T


class RememberingProgram(PolicyProgram):
    """obs (B, no) and memory (B, size) -> mean action, covariance, and the memory of the next step.

    network: raw observations and memory to mean actions and memory.
    """

    def forward(  # type: ignore[override]
        self, obs: torch.Tensor, memory: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean and covariance of the action, and the memory."""
        mean, after = self.network(obs, memory)
        return mean, self.chol @ self.chol.T, after


class SinglePrecisionProgram(nn.Module):
    """The same with the network in float32, for runtimes that lack float64 kernels.

    whitened: a network with its normaliser, of which it takes possession. Only what lies between
    normaliser and action is rounded; observation, mean and covariance stay float64.
    """

    obs_mean: torch.Tensor
    obs_std: torch.Tensor
    chol: torch.Tensor

    def __init__(self, whitened: WhitenedNetwork, chol: Array) -> None:
        super().__init__()
        self.network = whitened.network.float()
        self.register_buffer("obs_mean", whitened.obs_mean)
        self.register_buffer("obs_std", whitened.obs_std)
        self.register_buffer("chol", torch.tensor(chol))

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and covariance of the action."""
        whitened = (obs - self.obs_mean) / self.obs_std
        return self.network(whitened.float()).double(), self.chol @ self.chol.T
