"""Networks for the tests that only torch can evaluate, and data to train on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from gps.policies import MLPConfig, MLPLayout, Sizes, TorchNetwork, TrainingData
from gps.rng import stream
from gps.types import Array


@dataclass(frozen=True, kw_only=True)
class TorchMLP(MLPConfig):
    """The same network, but known to the toolkit as a torch module only."""

    def mlp_layout(self, sizes: Sizes) -> MLPLayout | None:
        return None


class _Gated(torch.nn.Module):
    def __init__(self, no: int, nu: int) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.zeros(nu, no, dtype=torch.float64))
        self.gate = torch.nn.Parameter(torch.zeros(nu, no, dtype=torch.float64))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return (obs @ self.gain.T) * torch.sigmoid(obs @ self.gate.T)


@dataclass(frozen=True)
class GatedNetwork(TorchNetwork):
    """A network that is not a multi-layer perceptron."""

    def build(self, sizes: Sizes) -> torch.nn.Module:
        return _Gated(sizes.no, sizes.nu)

    def initial_weights(self, sizes: Sizes, rng: np.random.Generator) -> tuple[Array, ...]:
        shape = (sizes.nu, sizes.no)
        return (rng.normal(size=shape) / sizes.no, rng.normal(size=shape) / sizes.no)


def in_other_units(data: TrainingData, unit: Array, offset: Array) -> TrainingData:
    """The same data where an action counts as offset + unit * action; unit, offset (nu,)."""
    precision = data.precision / np.outer(unit, unit)
    return replace(data, target=offset + unit * data.target, precision=precision)


def some_data(n: int = 120, no: int = 6, nu: int = 3, seed: int = 0) -> TrainingData:
    """Correlated observations far from zero, full precisions of different sizes, uneven weights."""
    rng = stream(seed, "data")
    obs = rng.normal(size=(n, no)) @ rng.normal(size=(no, no)) + 3.0
    target = np.sin(obs[:, :nu]) + 0.5 * obs[:, nu : 2 * nu]
    half = rng.normal(size=(n, nu, nu))
    precision = half @ half.transpose(0, 2, 1) + 0.1 * np.eye(nu)
    precision *= 10.0 ** rng.uniform(-1, 2, size=(n, 1, 1))
    return TrainingData(
        obs=obs, target=target, precision=precision, weight=rng.uniform(0.5, 4, size=n)
    )
