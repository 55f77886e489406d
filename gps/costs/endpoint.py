"""Cost of end points (forward kinematics) away from their targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gps.costs._kernels import pull_back
from gps.costs.base import TermBuffers
from gps.costs.distance import DistanceCost
from gps.errors import ConfigError
from gps.types import Array, Rollouts

Through = Literal["jacobian", "state"]


@dataclass(frozen=True, kw_only=True)
class EndpointCost(DistanceCost):
    """Smooth distance of points on the body from their targets.

    The points are entries of the state and also functions of other entries (the joints). Their
    Jacobian J, as the agent reports it for the whole state, carries the derivatives over:
    `l_x = J'g`, `l_xx = J'H J`. The curvature of the kinematics is left out, with `exact` too.
    """

    entry: str = "end_points"
    """Name of the state entry that holds the points' coordinates, point after point."""

    through: Through = "jacobian"
    """Where derivatives go: on what the points depend on, or on the points' own state columns."""

    def add(self, rollouts: Rollouts, weight: float, out: TermBuffers) -> None:
        """Add `weight` times this cost and its derivatives to `out`.

        Raises ConfigError if `through` is "jacobian" and the rollouts hold none for the entry.
        """
        if self.through == "state":
            super().add(rollouts, weight, out)
            return
        value, gradient, hessian = self._distance(rollouts, weight)
        J = jacobian_of("EndpointCost", rollouts, self.entry)
        out.l[...] += value
        pull_back(J, gradient, hessian, out.l_x, out.l_xx)


def jacobian_of(cost: str, rollouts: Rollouts, entry: str) -> Array:
    """The Jacobian of an entry, (N, T, size, nx); ConfigError with what the agent reports."""
    if entry not in rollouts.jacobians:
        known = ", ".join(sorted(rollouts.jacobians)) or "none"
        raise ConfigError(
            f"{cost}.through is 'jacobian', but the agent reports no Jacobian of {entry!r} "
            f"(it reports: {known}); through='state' needs none"
        )
    return rollouts.jacobians[entry]
