"""Cost of whether a state entry lies inside a region; no derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from gps.costs.base import Numbers, RampKind, TermBuffers, check_entry, check_length, ramp
from gps.costs.combine import InPlaceCost
from gps.errors import ConfigError
from gps.fields import Config, Finite, Items, NonNegative, Positive
from gps.types import Array, Layout, Rollouts

Norm = Literal["l1", "l2"]


@dataclass(frozen=True, kw_only=True)
class BinaryRegionCost(Config, InPlaceCost):
    """`l = inside` where a state entry is in a region around its target, else `outside`.

    The region, border included, is a box, `|d_i| <= half_width_i` for every component of
    `d = entry - target`, or a ball, `|d| <= radius` in the norm asked for. All derivatives are
    zero: for optimisers that compare samples (PI2, the sampling part of PILQR), not for the LQR, to
    which it is zero. Where the entry is NaN, so is the cost.
    """

    entry: str
    """Name of the state entry."""

    target: Numbers
    """Centre of the region, in the entry's unit; one number stands for every component."""

    half_width: Annotated[Positive | tuple[Positive, ...], Items(some=True)] | None = None
    """Half the box's width along each component, or one for all. None: a ball."""

    radius: Positive | None = None
    """Radius of the ball in the entry's unit. None: a box."""

    norm: Norm = "l2"
    """Length that the radius bounds: l2, the root of the sum of d_i^2, or l1, the sum of |d_i|."""

    inside: Finite = 0.0
    """Cost of a step inside; below `outside` for a goal, above it for a place to avoid."""

    outside: Finite = 1.0
    """Cost of a step outside."""

    ramp: RampKind = "constant"
    """Factor of the step cost over time: 1, (t+1)/T, its square, or the last step only."""

    final_multiplier: NonNegative = 1.0
    """Further factor of the last step's cost."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.half_width is None) == (self.radius is None):
            raise ConfigError(
                "BinaryRegionCost: give half_width for a box or radius for a ball, one of the two; "
                f"got half_width={self.half_width!r} and radius={self.radius!r}"
            )
        if self.inside == self.outside:
            raise ConfigError(
                f"BinaryRegionCost.inside and .outside are both {self.inside:g}: the cost would "
                "not depend on the state"
            )

    def check(self, layout: Layout, nu: int, T: int) -> None:
        """Raise ConfigError unless the entry exists and has as many values as the region."""
        k, of = (
            check_entry("BinaryRegionCost.entry", self.entry, layout),
            f"state entry {self.entry!r}",
        )
        check_length("BinaryRegionCost.target", self.target, k, of)
        check_length("BinaryRegionCost.half_width", self.half_width, k, of)

    def _step_cost(self, entry: Array) -> Array:
        """`inside` or `outside` at every point of the entry, (N, T)."""
        d = np.abs(entry - np.asarray(self.target))
        if self.half_width is not None:
            within = np.all(d <= np.asarray(self.half_width), axis=-1)
        else:
            length = np.sum(d, axis=-1) if self.norm == "l1" else np.linalg.norm(d, axis=-1)
            within = length <= self.radius
        # a comparison with NaN is false: a broken rollout would count as one that is outside
        known = np.where(np.any(np.isnan(d), axis=-1), np.nan, self.outside)
        return np.where(within, self.inside, known)

    def add(self, rollouts: Rollouts, weight: float, out: TermBuffers) -> None:
        """Add `weight` times this cost to `out.l`; it has no derivatives to add."""
        self.check(rollouts.layout, rollouts.nu, rollouts.T)
        factor = weight * ramp(self.ramp, rollouts.T, self.final_multiplier)
        out.l[...] += factor * self._step_cost(rollouts.entry(self.entry))
