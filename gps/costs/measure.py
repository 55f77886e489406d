"""How well a rollout ended, in units that mean something: distance and success."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gps.costs.base import check_entry, set_number, set_numbers
from gps.errors import ConfigError
from gps.types import Array, Layout, Rollouts


@dataclass(frozen=True, kw_only=True)
class EndpointMeasure:
    """Distance of points from their targets at the last step; no part of the cost."""

    entry: str = "end_points"
    """Name of the state entry that holds the points' coordinates, point after point."""

    target: tuple[float, ...]
    """Target coordinates, point after point, in the unit of the entry (metres in MuJoCo)."""

    point_size: int = 3
    """Coordinates per point: 3 in space, 2 in the plane."""

    success_point: int = 0
    """Index of the point that decides about success."""

    threshold: float = 0.06
    """Largest distance of that point from its target that counts as success; above zero."""

    def __post_init__(self) -> None:
        set_numbers(self, "target")
        set_number(self, "threshold", above=0.0)
        if not isinstance(self.target, tuple):
            raise ConfigError("EndpointMeasure.target must be a tuple of coordinates")
        if isinstance(self.point_size, bool) or not isinstance(self.point_size, int):
            raise ConfigError(
                f"EndpointMeasure.point_size must be an integer, got {self.point_size!r}"
            )
        if self.point_size < 1 or len(self.target) % self.point_size:
            raise ConfigError(
                f"EndpointMeasure.point_size is {self.point_size}, which does not divide the "
                f"{len(self.target)} values of target into points"
            )
        points = len(self.target) // self.point_size
        if self.success_point not in range(points):
            raise ConfigError(
                f"EndpointMeasure.success_point must be in 0..{points - 1}, "
                f"got {self.success_point!r}"
            )

    def check(self, layout: Layout) -> None:
        """Raise ConfigError unless the entry exists and has as many values as the target."""
        k = check_entry(self, layout)
        if k != len(self.target):
            raise ConfigError(
                f"EndpointMeasure.target has {len(self.target)} values, state entry "
                f"{self.entry!r} has {k}"
            )

    def evaluate(self, rollouts: Rollouts) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Distance of the point that is farthest off, (N,), and success, (N,), at step T-1."""
        self.check(rollouts.layout)
        d = rollouts.entry(self.entry)[:, -1] - np.asarray(self.target)
        distances = np.linalg.norm(d.reshape(rollouts.N, -1, self.point_size), axis=-1)
        success = distances[:, self.success_point] <= self.threshold
        return np.max(distances, axis=-1), success
