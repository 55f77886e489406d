"""Cost of a state entry away from its target."""

from __future__ import annotations

from dataclasses import dataclass

from gps.costs.distance import DistanceCost


@dataclass(frozen=True, kw_only=True)
class StateCost(DistanceCost):
    """Smooth distance of a state entry (joint angles, velocities, ...) from its target."""
