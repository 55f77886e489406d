"""Cost of leaving a path that is given by way-points."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np

from gps.costs._kernels import pull_back
from gps.costs.base import SmoothDistance, TermBuffers, check_entry, check_length
from gps.costs.combine import InPlaceCost
from gps.costs.endpoint import Through, jacobian_of
from gps.errors import ConfigError
from gps.fields import Finite, Items, Whole
from gps.types import Array, Layout, Rollouts

Row = Annotated[tuple[Finite, ...], Items(some=True)]
Between = Literal["linear", "next"]


@dataclass(frozen=True, kw_only=True)
class WaypointCost(SmoothDistance, InPlaceCost):
    """Smooth distance from a target that moves from way-point to way-point, times a ramp.

    Way-point j belongs to step s_j and asks for `A_j v = y_j`, v a state entry or the whole of
    `z = [x; u]`. At step t the residual is `d = A(t) v - y(t)`, linear in v, where (A, y) move
    linearly from (A_j, y_j) at s_j to (A_j+1, y_j+1) at s_j+1, or jump (`between`). Before the
    first step and after the last the pair stays as it is there. With g and H the derivatives of
    `smooth_distance` in d: `l_v = A'g` and `l_vv = A'H A`, state-action blocks included.

    Source: cbfinn/gps cost_lin_wp.py is `between="next"` with `entry=None` and `y = -b`; a
    way-point at the fraction r of T has the step ceil(r T) - 1. Its derivatives leave out all
    blocks of A and of the Hessian that mix states and actions; these are kept here.
    """

    entry: str | None
    """Name of the state entry that follows the path; None: all states and actions, [x; u]."""

    steps: Annotated[tuple[Whole, ...], Items(some=True)]
    """Step s_j of every way-point, 0 .. T-1, rising."""

    targets: Annotated[tuple[Row, ...], Items(some=True)]
    """y_j: where each way-point lies, one row each, in the entry's unit (or that of A v)."""

    matrices: tuple[Annotated[tuple[Row, ...], Items(some=True)], ...] | None = None
    """A_j, one matrix a way-point, a row for each target value. None: the identity."""

    between: Between = "linear"
    """From way-point to way-point on straight lines, or at once to the next (step s_j included)."""

    exact: bool = False
    """True: exact Hessian of the distance, perhaps indefinite. False: Gauss-Newton, never so."""

    through: Through = "state"
    """Where derivatives of an entry go: on its own state columns, or through its Jacobian."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(b <= a for a, b in pairwise(self.steps)):
            raise ConfigError(f"WaypointCost.steps must rise from 0 or later, got {self.steps!r}")
        if len(self.targets) != len(self.steps):
            raise ConfigError(
                f"WaypointCost.targets has {len(self.targets)} way-points, steps has "
                f"{len(self.steps)}"
            )
        k = len(self.targets[0])
        if any(len(target) != k for target in self.targets):
            raise ConfigError(
                "WaypointCost.targets must hold one row of numbers for every way-point, all of one "
                f"size, got {self.targets!r}"
            )
        if self.matrices is not None:
            rows = {len(matrix) for matrix in self.matrices}
            columns = {len(row) for matrix in self.matrices for row in matrix}
            if len(rows) != 1 or len(columns) != 1:
                raise ConfigError(
                    "WaypointCost.matrices must hold one matrix (rows of numbers) for every "
                    f"way-point, all of one size, got {self.matrices!r}"
                )
            if len(self.matrices) != len(self.targets) or rows != {k}:
                raise ConfigError(
                    f"WaypointCost.matrices has {len(self.matrices)} matrices of {rows.pop()} "
                    f"rows; targets asks for {len(self.targets)} of {k}"
                )
        check_length("WaypointCost.weights", self.weights, k, "a way-point")
        if self.entry is None and self.through == "jacobian":
            raise ConfigError(
                "WaypointCost.through='jacobian' needs an entry; the whole of [x; u] has none"
            )

    def check(self, layout: Layout, nu: int, T: int) -> None:
        """Raise ConfigError unless entry, matrices, targets and steps fit the agent."""
        if self.entry is None:
            k, of = layout.size + nu, "[x; u]"
        else:
            k, of = (
                check_entry("WaypointCost.entry", self.entry, layout),
                f"state entry {self.entry!r}",
            )
        given = self.targets if self.matrices is None else self.matrices[0]
        field = "targets" if self.matrices is None else "matrices"
        if len(given[0]) != k:
            raise ConfigError(
                f"WaypointCost.{field} has {len(given[0])} values a row, {of} has {k}"
            )
        if self.steps[-1] >= T:
            raise ConfigError(
                f"WaypointCost.steps ends at step {self.steps[-1]}, the last of this agent is "
                f"{T - 1}"
            )

    def path(self, T: int) -> Array:
        """Target y at every step, (T, k)."""
        return self._at_steps(np.array(self.targets, dtype=np.float64), T)

    def _at_steps(self, values: Array, T: int) -> Array:
        """What is given at the way-points, (m, ...), at every step, (T, ...)."""
        s, t = np.array(self.steps), np.arange(T)
        after = np.minimum(np.searchsorted(s, t), len(s) - 1)
        if self.between == "next":
            return values[after]
        before = np.maximum(after - 1, 0)
        span = np.maximum(s[after] - s[before], 1)
        part = np.clip((t - s[before]) / span, 0.0, 1.0).reshape(-1, *[1] * (values.ndim - 1))
        return (1.0 - part) * values[before] + part * values[after]

    def _derivatives(
        self, rollouts: Rollouts, v: Array, weight: float
    ) -> tuple[Array, Array, Array]:
        """Weighted and ramped value (N, T), gradient and Hessian with respect to v."""
        y = self.path(rollouts.T)
        if self.matrices is None:
            return self.ramped_distance(v - y, weight, exact=self.exact)
        A = self._at_steps(np.array(self.matrices, dtype=np.float64), rollouts.T)
        d = np.einsum("tij,ntj->nti", A, v) - y
        value, gradient, hessian = self.ramped_distance(d, weight, exact=self.exact)
        gradient = np.einsum("tij,nti->ntj", A, gradient)
        hessian = A.transpose(0, 2, 1) @ hessian @ A
        return value, gradient, 0.5 * (hessian + hessian.swapaxes(-1, -2))

    def add(self, rollouts: Rollouts, weight: float, out: TermBuffers) -> None:
        """Add `weight` times this cost and its derivatives to `out`.

        Raises ConfigError if `through` is "jacobian" and the rollouts hold none for the entry.
        """
        self.check(rollouts.layout, rollouts.nu, rollouts.T)
        if self.entry is None:
            z, nx = np.concatenate((rollouts.X, rollouts.U), axis=2), rollouts.nx
            value, gradient, hessian = self._derivatives(rollouts, z, weight)
            out.l_x[...] += gradient[:, :, :nx]
            out.l_u[...] += gradient[:, :, nx:]
            out.l_xx[...] += hessian[:, :, :nx, :nx]
            out.l_ux[...] += hessian[:, :, nx:, :nx]
            out.l_uu[...] += hessian[:, :, nx:, nx:]
        else:
            value, gradient, hessian = self._derivatives(
                rollouts, rollouts.entry(self.entry), weight
            )
            if self.through == "state":
                own = rollouts.layout.slice(self.entry)
                out.l_x[:, :, own] += gradient
                out.l_xx[:, :, own, own] += hessian
            else:
                J = jacobian_of("WaypointCost", rollouts, self.entry)
                pull_back(J, np.ascontiguousarray(gradient), hessian, out.l_x, out.l_xx)
        out.l[...] += value
