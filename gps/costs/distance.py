"""What the costs on the distance of a state entry from a target have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np

from gps.costs.base import (
    InPlaceCost,
    RampKind,
    TermBuffers,
    check_entry,
    check_length,
    ramp,
    set_choice,
    set_number,
    set_numbers,
    smooth_distance,
)
from gps.errors import ConfigError
from gps.types import Array, Layout, Rollouts


@dataclass(frozen=True, kw_only=True)
class DistanceCost(InPlaceCost):
    """Smooth distance (see `smooth_distance`) of a state entry from its target, times a ramp."""

    entry: str
    """Name of the state entry."""

    target: tuple[float, ...] | float
    """Where the entry should be, in its own unit; one number stands for every component."""

    weights: tuple[float, ...] | float = 1.0
    """Weight w_i of each squared component, or one for all; not below zero."""

    l1: float = 0.0
    """Weight of sqrt(alpha + s), s = sum_i w_i d_i^2; 0 leaves the term out."""

    l2: float = 0.0
    """Weight of s/2; 0 leaves the term out."""

    log_weight: float = 0.0
    """Weight of log(alpha + s)/2, which asks for precision near the target; 0 leaves it out."""

    alpha: float = 1e-5
    """Rounds off the l1 and log terms at the target; unit of s, above zero."""

    ramp: RampKind = "constant"
    """Factor of the whole step cost over time: 1, (t+1)/T, its square, or the last step only."""

    final_multiplier: float = 1.0
    """Further factor of the last step's cost (of the cost, not of the weights inside the log)."""

    exact: bool = False
    """True: exact Hessian of the distance, perhaps indefinite. False: Gauss-Newton, never so."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(self.entry, str):
            raise ConfigError(f"{name}.entry must be the name of a state entry, got {self.entry!r}")
        set_numbers(self, "target")
        set_numbers(self, "weights", minimum=0.0)
        for field in ("l1", "l2", "log_weight", "final_multiplier"):
            set_number(self, field, minimum=0.0)
        set_number(self, "alpha", above=0.0)
        set_choice(self, "ramp", get_args(RampKind))
        if not isinstance(self.exact, bool):
            raise ConfigError(f"{name}.exact must be True or False, got {self.exact!r}")
        if self.l1 == self.l2 == self.log_weight == 0.0:
            raise ConfigError(f"{name}: one of l1, l2 and log_weight must be above zero")

    def check(self, layout: Layout, nu: int, T: int) -> None:
        """Raise ConfigError unless the entry exists and has as many values as the target."""
        k = check_entry(self, layout)
        for field in ("target", "weights"):
            check_length(self, field, k, f"state entry {self.entry!r}")

    def _distance(self, rollouts: Rollouts, weight: float) -> tuple[Array, Array, Array]:
        """Weighted and ramped value (N, T), gradient and Hessian with respect to the entry."""
        self.check(rollouts.layout, rollouts.nu, rollouts.T)
        value, gradient, hessian = smooth_distance(
            rollouts.entry(self.entry) - np.asarray(self.target),
            self.weights,
            l1=self.l1,
            l2=self.l2,
            alpha=self.alpha,
            log_weight=self.log_weight,
            exact=self.exact,
        )
        factor = weight * ramp(self.ramp, rollouts.T, self.final_multiplier)
        value *= factor
        gradient *= factor[:, None]
        hessian *= factor[:, None, None]
        return value, gradient, hessian

    def add(self, rollouts: Rollouts, weight: float, out: TermBuffers) -> None:
        """Add `weight` times this cost to `out`, derivatives on the entry's own columns."""
        value, gradient, hessian = self._distance(rollouts, weight)
        own = rollouts.layout.slice(self.entry)
        out.l[...] += value
        out.l_x[:, :, own] += gradient
        out.l_xx[:, :, own, own] += hessian
