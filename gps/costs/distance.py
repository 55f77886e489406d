"""What the costs on the distance of a state entry from a target have in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gps.costs.base import Numbers, SmoothDistance, TermBuffers, check_entry, check_length
from gps.costs.combine import InPlaceCost
from gps.types import Array, Layout, Rollouts


@dataclass(frozen=True, kw_only=True)
class DistanceCost(SmoothDistance, InPlaceCost):
    """Smooth distance (see `smooth_distance`) of a state entry from its target, times a ramp."""

    entry: str
    """Name of the state entry."""

    target: Numbers
    """Where the entry should be, in its own unit; one number stands for every component."""

    exact: bool = False
    """True: exact Hessian of the distance, perhaps indefinite. False: Gauss-Newton, never so."""

    def check(self, layout: Layout, nu: int, T: int) -> None:
        """Raise ConfigError unless the entry exists and has as many values as the target."""
        name = type(self).__name__
        k, of = check_entry(f"{name}.entry", self.entry, layout), f"state entry {self.entry!r}"
        check_length(f"{name}.target", self.target, k, of)
        check_length(f"{name}.weights", self.weights, k, of)

    def _distance(self, rollouts: Rollouts, weight: float) -> tuple[Array, Array, Array]:
        """Weighted and ramped value (N, T), gradient and Hessian with respect to the entry."""
        self.check(rollouts.layout, rollouts.nu, rollouts.T)
        d = rollouts.entry(self.entry) - np.asarray(self.target)
        return self.ramped_distance(d, weight, exact=self.exact)

    def add(self, rollouts: Rollouts, weight: float, out: TermBuffers) -> None:
        """Add `weight` times this cost to `out`, derivatives on the entry's own columns."""
        value, gradient, hessian = self._distance(rollouts, weight)
        own = rollouts.layout.slice(self.entry)
        out.l[...] += value
        out.l_x[:, :, own] += gradient
        out.l_xx[:, :, own, own] += hessian
