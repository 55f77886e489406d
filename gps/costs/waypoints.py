"""Cost of leaving a path that is given by way-points."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

from gps.costs._kernels import pull_back
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
from gps.costs.endpoint import Through
from gps.errors import ConfigError, choices
from gps.types import Array, Layout, Rollouts

Between = Literal["linear", "next"]


@dataclass(frozen=True, kw_only=True)
class WaypointCost(InPlaceCost):
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

    steps: tuple[int, ...]
    """Step s_j of every way-point, 0 .. T-1, rising."""

    targets: tuple[tuple[float, ...], ...]
    """y_j: where each way-point lies, one row each, in the entry's unit (or that of A v)."""

    matrices: tuple[tuple[tuple[float, ...], ...], ...] | None = None
    """A_j, one matrix a way-point, a row for each target value. None: the identity."""

    between: Between = "linear"
    """From way-point to way-point on straight lines, or at once to the next (step s_j included)."""

    weights: tuple[float, ...] | float = 1.0
    """Weight w_i of each squared component of d, or one for all; not below zero."""

    l1: float = 0.0
    """Weight of sqrt(alpha + s), s = sum_i w_i d_i^2; 0 leaves the term out."""

    l2: float = 0.0
    """Weight of s/2; 0 leaves the term out."""

    log_weight: float = 0.0
    """Weight of log(alpha + s)/2, which asks for precision near the path; 0 leaves it out."""

    alpha: float = 1e-5
    """Rounds off the l1 and log terms on the path; unit of s, above zero."""

    ramp: RampKind = "constant"
    """Factor of the whole step cost over time: 1, (t+1)/T, its square, or the last step only."""

    final_multiplier: float = 1.0
    """Further factor of the last step's cost (of the cost, not of the weights inside the log)."""

    exact: bool = False
    """True: exact Hessian of the distance, perhaps indefinite. False: Gauss-Newton, never so."""

    through: Through = "state"
    """Where derivatives of an entry go: on its own state columns, or through its Jacobian."""

    def __post_init__(self) -> None:
        if self.entry is not None and not isinstance(self.entry, str):
            raise ConfigError(
                "WaypointCost.entry must be the name of a state entry, or None for states and "
                f"actions, got {self.entry!r}"
            )
        steps = _integers(self.steps)
        if any(b <= a for a, b in pairwise(steps)) or steps[0] < 0:
            raise ConfigError(f"WaypointCost.steps must rise from 0 or later, got {self.steps!r}")
        object.__setattr__(self, "steps", steps)
        targets = _numbers("targets", self.targets, 2)
        object.__setattr__(self, "targets", _tuples(targets))
        if len(targets) != len(steps):
            raise ConfigError(
                f"WaypointCost.targets has {len(targets)} way-points, steps has {len(steps)}"
            )
        if self.matrices is not None:
            matrices = _numbers("matrices", self.matrices, 3)
            if matrices.shape[:2] != targets.shape:
                raise ConfigError(
                    f"WaypointCost.matrices has {matrices.shape[0]} matrices of "
                    f"{matrices.shape[1]} rows; targets asks for {targets.shape[0]} of "
                    f"{targets.shape[1]}"
                )
            object.__setattr__(self, "matrices", _tuples(matrices))
        set_choice(self, "between", get_args(Between))
        set_distance(self)
        if isinstance(self.weights, tuple):
            check_length(self, "weights", targets.shape[1], "a way-point")
        set_choice(self, "through", get_args(Through))
        if self.entry is None and self.through == "jacobian":
            raise ConfigError(
                "WaypointCost.through='jacobian' needs an entry; the whole of [x; u] has none"
            )

    def check(self, layout: Layout, nu: int, T: int) -> None:
        """Raise ConfigError unless entry, matrices, targets and steps fit the agent."""
        if self.entry is None:
            k, of = layout.size + nu, "[x; u]"
        else:
            k, of = check_entry(self, layout), f"state entry {self.entry!r}"
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
        return self._at_steps(np.array(self.targets), T)

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

    def _terms(self, rollouts: Rollouts, v: Array, weight: float) -> tuple[Array, Array, Array]:
        """Weighted and ramped value (N, T), gradient and Hessian with respect to v."""
        T = rollouts.T
        A = None if self.matrices is None else self._at_steps(np.array(self.matrices), T)
        moved = v if A is None else np.einsum("tij,ntj->nti", A, v)
        value, gradient, hessian = smooth_distance(
            moved - self.path(T),
            self.weights,
            l1=self.l1,
            l2=self.l2,
            alpha=self.alpha,
            log_weight=self.log_weight,
            exact=self.exact,
        )
        factor = weight * ramp(self.ramp, T, self.final_multiplier)
        value *= factor
        gradient *= factor[:, None]
        hessian *= factor[:, None, None]
        if A is not None:
            gradient = np.einsum("tij,nti->ntj", A, gradient)
            hessian = A.transpose(0, 2, 1) @ hessian @ A
            hessian = 0.5 * (hessian + hessian.swapaxes(-1, -2))
        return value, gradient, hessian

    def add(self, rollouts: Rollouts, weight: float, out: TermBuffers) -> None:
        """Add `weight` times this cost and its derivatives to `out`.

        Raises ConfigError if `through` is "jacobian" and the rollouts hold none for the entry.
        """
        self.check(rollouts.layout, rollouts.nu, rollouts.T)
        if self.entry is None:
            z, nx = np.concatenate((rollouts.X, rollouts.U), axis=2), rollouts.nx
            value, gradient, hessian = self._terms(rollouts, z, weight)
            out.l_x[...] += gradient[:, :, :nx]
            out.l_u[...] += gradient[:, :, nx:]
            out.l_xx[...] += hessian[:, :, :nx, :nx]
            out.l_ux[...] += hessian[:, :, nx:, :nx]
            out.l_uu[...] += hessian[:, :, nx:, nx:]
        else:
            value, gradient, hessian = self._terms(rollouts, rollouts.entry(self.entry), weight)
            if self.through == "state":
                own = rollouts.layout.slice(self.entry)
                out.l_x[:, :, own] += gradient
                out.l_xx[:, :, own, own] += hessian
            else:
                J = jacobian_of(self, rollouts, self.entry)
                pull_back(J, np.ascontiguousarray(gradient), hessian, out.l_x, out.l_xx)
        out.l[...] += value


def set_distance(config: object) -> None:
    """Check the options of a smooth distance, and the ramp, of a config that has all of them."""
    name = type(config).__name__
    set_numbers(config, "weights", minimum=0.0)
    for field in ("l1", "l2", "log_weight", "final_multiplier"):
        set_number(config, field, minimum=0.0)
    set_number(config, "alpha", above=0.0)
    set_choice(config, "ramp", get_args(RampKind))
    exact = getattr(config, "exact", False)
    if not isinstance(exact, bool):
        raise ConfigError(f"{name}.exact must be True or False, got {exact!r}")
    if all(getattr(config, field) == 0.0 for field in ("l1", "l2", "log_weight")):
        raise ConfigError(f"{name}: one of l1, l2 and log_weight must be above zero")


def jacobian_of(config: object, rollouts: Rollouts, entry: str) -> Array:
    """The Jacobian of an entry, (N, T, size, nx); ConfigError with what the agent reports."""
    if entry not in rollouts.jacobians:
        name = type(config).__name__
        raise ConfigError(
            f"{name}.through is 'jacobian': {choices('Jacobian', entry, rollouts.jacobians)}; "
            "through='state' needs none"
        )
    return rollouts.jacobians[entry]


def _integers(steps: object) -> tuple[int, ...]:
    """The steps as a tuple; ConfigError unless they are one or more whole numbers."""
    array = np.asarray(steps) if isinstance(steps, tuple | list | np.ndarray) else np.array(None)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise ConfigError(f"WaypointCost.steps must be a tuple of whole numbers, got {steps!r}")
    return tuple(int(step) for step in array)


def _numbers(field: str, given: object, ndim: int) -> Array:
    """A field of nested tuples as an array of `ndim` axes; ConfigError if it is none."""
    kind = {2: "one row of numbers", 3: "one matrix (rows of numbers)"}[ndim]
    try:
        array = np.asarray(given)
    except ValueError:  # rows of unequal length
        array = np.array(None)
    if array.dtype.kind not in "iuf" or array.ndim != ndim or array.size == 0:
        raise ConfigError(
            f"WaypointCost.{field} must hold {kind} for every way-point, all of one size, "
            f"got {given!r}"
        )
    if not np.all(np.isfinite(array)):
        raise ConfigError(f"WaypointCost.{field} must be finite, got {given!r}")
    return array.astype(np.float64)


def _tuples(array: Array) -> tuple[object, ...]:
    """Nested tuples of floats."""
    return tuple(_tuples(row) if row.ndim else float(row) for row in array)
