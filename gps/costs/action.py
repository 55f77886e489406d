"""Cost of large actions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gps.costs.base import TermBuffers, Weights, check_length
from gps.costs.combine import InPlaceCost
from gps.fields import Config
from gps.types import Layout, Rollouts


@dataclass(frozen=True, kw_only=True)
class ActionCost(Config, InPlaceCost):
    """`l = 1/2 sum_i w_i u_i^2` at every step.

    The action of step T-1 moves no recorded state, and yet it is charged: without its cost
    nothing would keep Q_uu positive definite there.
    """

    weights: Weights
    """Weight of each action, or one for all; cost per squared action unit."""

    def check(self, layout: Layout, nu: int, T: int) -> None:
        """Raise ConfigError unless there is one weight, or one for each of `nu` actions."""
        check_length("ActionCost.weights", self.weights, nu, "the action")

    def add(self, rollouts: Rollouts, weight: float, out: TermBuffers) -> None:
        """Add `weight` times this cost and its derivatives to `out`."""
        self.check(rollouts.layout, rollouts.nu, rollouts.T)
        w = np.broadcast_to(weight * np.asarray(self.weights), rollouts.nu)
        wu = w * rollouts.U
        out.l[...] += 0.5 * np.sum(wu * rollouts.U, axis=-1)
        out.l_u[...] += wu
        diagonal = np.arange(rollouts.nu)
        out.l_uu[:, :, diagonal, diagonal] += w
