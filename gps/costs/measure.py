"""How well a rollout ended, in units that mean something: distance and success."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt

from gps.costs.base import check_entry
from gps.errors import ConfigError
from gps.fields import Config, Count, Finite, Items, Positive, Whole
from gps.types import Array, Layout, Rollouts


@dataclass(frozen=True, kw_only=True)
class EndpointMeasure(Config):
    """Distance of points from their targets at the last step; no part of the cost.

    Where targets differ between conditions, `entry` can be what a sensor reports of the target,
    seen from the point, and `target` 0.
    """

    entry: str = "end_points"
    """Name of the state entry that holds the points' coordinates, point after point."""

    target: Annotated[tuple[Finite, ...], Items(some=True)]
    """Target coordinates, point after point, in the unit of the entry (metres in MuJoCo)."""

    point_size: Count = 3
    """Coordinates per point: 3 in space, 2 in the plane."""

    success_point: Whole = 0
    """Index of the point that determines success."""

    threshold: Positive = 0.06
    """Largest distance of that point from its target that counts as success."""

    avoid: tuple[tuple[Finite, ...], ...] = ()
    """Balls, each (centre, radius) in the entry's coordinates, that this point must not enter on
    the straight lines between its places at successive steps, or else there is no success."""

    unit: str | None = None
    """Unit of the distance, for axes and tables: `m`, `rad`, `m or rad`. By default that of the end
    points, m, and none for any other entry."""

    def __post_init__(self) -> None:
        super().__post_init__()
        points, rest = divmod(len(self.target), self.point_size)
        if rest:
            raise ConfigError(
                f"EndpointMeasure.point_size is {self.point_size}, which does not divide the "
                f"{len(self.target)} values of target into points"
            )
        if self.success_point >= points:
            raise ConfigError(
                f"EndpointMeasure.success_point must be in 0..{points - 1}, "
                f"got {self.success_point!r}"
            )
        for ball in self.avoid:
            if len(ball) != self.point_size + 1 or ball[-1] <= 0:
                raise ConfigError(
                    "EndpointMeasure.avoid must be a tuple of balls, each of "
                    f"{self.point_size + 1} finite numbers: the centre and a radius above 0, "
                    f"got {ball!r}"
                )

    @property
    def distance_label(self) -> str:
        """`distance`, with the unit where there is one."""
        unit = "m" if self.unit is None and self.entry == "end_points" else self.unit
        return f"distance ({unit})" if unit else "distance"

    def check(self, layout: Layout) -> None:
        """Raise ConfigError unless the entry exists and has as many values as the target."""
        k = check_entry("EndpointMeasure.entry", self.entry, layout)
        if k != len(self.target):
            raise ConfigError(
                f"EndpointMeasure.target has {len(self.target)} values, state entry "
                f"{self.entry!r} has {k}"
            )

    def evaluate(self, rollouts: Rollouts) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Distance of the point that is farthest off at step T-1, (N,), and success, (N,)."""
        self.check(rollouts.layout)
        d = rollouts.entry(self.entry)[:, -1] - np.asarray(self.target)
        distances = np.linalg.norm(d.reshape(rollouts.N, -1, self.point_size), axis=-1)
        success = distances[:, self.success_point] <= self.threshold
        first = self.success_point * self.point_size
        path = rollouts.entry(self.entry)[:, :, first : first + self.point_size]
        for *centre, radius in self.avoid:
            success &= _nearest(path - np.asarray(centre)) >= radius
        return np.max(distances, axis=-1), success


def _nearest(path: Array) -> Array:
    """Minimum distance from the origin of the lines through successive points (N, T, n): (N,)."""
    step = np.diff(path, axis=1, append=path[:, -1:])  # the last line is a point
    length = (step**2).sum(axis=-1)
    share = -(path * step).sum(axis=-1) / np.where(length > 0, length, 1.0)
    foot = path + np.clip(share, 0.0, 1.0)[..., None] * step
    nearest: Array = np.linalg.norm(foot, axis=-1).min(axis=1)
    return nearest
