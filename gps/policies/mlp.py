"""The multi-layer perceptron, which the compiled kernels compute."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np

from gps.fields import Positive, Range
from gps.policies import _kernels
from gps.policies.neural import TorchNetwork
from gps.policies.optimisation import MLPLayout
from gps.policies.policy import Sizes
from gps.types import Array

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class MLPConfig(TorchNetwork):
    """A multi-layer perceptron: linear layers with one kind of activation between them."""

    hidden: tuple[Annotated[int, Range(at_least=1, at_most=10_000)], ...] = (40, 40)
    """Widths of the hidden layers; empty for a linear policy."""
    activation: Literal["relu", "tanh", "softplus"] = "relu"
    """Function between the layers."""
    init_scale: Positive = 1.0
    """Standard deviation of the hidden layers' initial weights, in units of sqrt(2 / n_in)."""
    output_init_scale: Positive = 0.1
    """The same of the output layer, in units of sqrt(1 / n_in); small: first actions near 0."""

    def build(self, sizes: Sizes) -> torch.nn.Module:
        """The network in torch, with all parameters zero."""
        from gps.policies import _modules

        return _modules.mlp((sizes.no, *self.hidden, sizes.nu), self.activation)

    def initial_weights(self, sizes: Sizes, rng: np.random.Generator) -> tuple[Array, ...]:
        """Normal weights with standard deviations after He, biases 0."""
        scales = [self.init_scale * np.sqrt(2.0)] * len(self.hidden) + [self.output_init_scale]
        weights: list[Array] = []
        widths = (sizes.no, *self.hidden, sizes.nu)
        for (n, m), scale in zip(pairwise(widths), scales, strict=True):
            weights += [rng.normal(size=(m, n)) * (scale / np.sqrt(n)), np.zeros(m)]
        return tuple(weights)

    def mlp_layout(self, sizes: Sizes) -> MLPLayout | None:
        """Always there: this is the network that the kernels compute."""
        widths = (sizes.no, *self.hidden, sizes.nu)
        return MLPLayout(widths, _kernels.ACTIVATIONS[self.activation])
