"""The torch module that an exported policy is traced from; imported late for torch's sake."""

from __future__ import annotations

import torch
from torch import nn

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
