"""The geometry of a scene: an agent's points, paths of them, ellipsoids, targets and obstacles.

An agent is drawn by its visual model (`gps.protocols.VisualModel`); without one the points of its
state entry `end_points` or `position` are drawn; without either nothing, and `AgentGeometry.note`
gives the reason.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any

import mujoco
import numpy as np

from gps.errors import GPSError, ShapeError
from gps.fields import Shape
from gps.protocols import (
    Agent,
    HasEntry,
    HasObstacles,
    HasTarget,
    HasWaypoints,
    VisualModel,
    visual_model_of,
)
from gps.types import Array, Layout, Record, iter_fields

_POSITIONS = ("end_points", "position")
"""State entries that are positions, three numbers a point, or two in a plane."""
_THINNEST = 1e-3
"""Half axis of an ellipsoid that is flat, as a share of its longest."""


@dataclass(frozen=True, eq=False)
class PointMap:
    """Points whose positions follow from the state: end points, or the ends of the body."""

    nx: int
    """State size."""
    labels: tuple[str, ...]
    positions: Callable[[Array], Array]
    """From states (S, nx) to positions (S, P, 3), in m."""
    jacobian: Callable[[Array], Array]
    """d positions / d x at one state (nx,), as (3 P, nx)."""

    def of(self, X: Array) -> Array:
        """Positions (..., P, 3) of states (..., nx)."""
        X = np.asarray(X, dtype=np.float64)
        flat = self.positions(X.reshape(-1, X.shape[-1]))
        return flat.reshape(*X.shape[:-1], len(self.labels), 3)


@dataclass(frozen=True, eq=False)
class AgentGeometry:
    """What can be drawn of one condition of an agent."""

    visual: VisualModel | None = None
    points: PointMap | None = None
    start: Array | None = None
    """The state (nx,) that is shown first."""
    note: str = ""
    """Why something is not shown, in one line."""

    @property
    def centre(self) -> Array:
        """Centre of the model, (3,) in m; the origin without one."""
        return np.zeros(3) if self.visual is None else np.array(self.visual.model.stat.center)

    @property
    def extent(self) -> float:
        """Size of the model, or of the region of the points, in m."""
        if self.visual is not None:
            return float(self.visual.model.stat.extent)
        if self.points is None or self.start is None:
            return 1.0
        return max(1.0, 2.0 * float(np.abs(self.points.of(self.start)).max()))


def agent_geometry(agent: Agent, condition: int, *, test: bool = False) -> AgentGeometry:
    """What can be drawn of a condition of an agent."""
    layout, visual, note = agent.layout, None, ""
    try:
        visual = visual_model_of(agent, condition, test=test)
    except GPSError as error:
        note = str(error)
    points = entry_points(layout)
    if points is None and visual is not None:
        points = body_points(visual, layout)
    if visual is None and points is None:
        names = " or ".join(_POSITIONS)
        missing = f"nothing to show: the agent has no model, and its state no entry {names}"
        return AgentGeometry(note=note or missing)
    if visual is None:
        note = "this agent has no model to show; its points are shown"
    return AgentGeometry(visual, points, agent.start_state(condition, test=test), note)


def position_entry(layout: Layout) -> tuple[str, int] | None:
    """The state entry that holds positions, and its coordinates per point; None without one."""
    for name in _POSITIONS:
        if name in layout.names:
            n = layout.length(name)
            if name == "position" and n == 2:
                return name, 2
            if n and n % 3 == 0:
                return name, 3
    return None


def entry_points(layout: Layout) -> PointMap | None:
    """The points that are entries of the state themselves."""
    found = position_entry(layout)
    if found is None:
        return None
    name, size = found
    columns = layout.slice(name)
    count = layout.length(name) // size

    def positions(X: Array) -> Array:
        return in_space(X[:, columns].reshape(len(X), count, size))

    def jacobian(_: Array) -> Array:
        J = np.zeros((count, 3, layout.size))
        for i, column in enumerate(range(columns.start, columns.stop)):
            J[i // size, i % size, column] = 1.0
        return J.reshape(3 * count, -1)

    labels = tuple(f"{name} {i}" for i in range(count))
    return PointMap(layout.size, labels, positions, jacobian)


def body_points(visual: VisualModel, layout: Layout) -> PointMap | None:
    """The sites of moving bodies, or the centre of the last geom of every limb's last body.

    Their Jacobian is by central differences along joint_pos; None where nothing moves.
    """
    model, data = visual.model, visual.data()
    moves = [b for b in range(1, model.nbody) if model.body_weldid[b] != 0]
    sites = [i for i in range(model.nsite) if model.site_bodyid[i] in moves]
    parents = {int(model.body_parentid[b]) for b in moves}
    tips = [b for b in moves if b not in parents]
    geoms = [max(g) for b in tips if (g := np.flatnonzero(model.geom_bodyid == b)).size]
    chosen = [(data.site_xpos, i, model.site(i).name or f"site {i}") for i in sites[:8]] or [
        (data.geom_xpos, int(g), model.body(model.geom_bodyid[g]).name or f"body {g}")
        for g in geoms[:8]
    ]
    if not chosen:
        return None
    lock = threading.Lock()  # one data, and callbacks of viser come in many threads

    def positions(X: Array) -> Array:
        out = np.empty((len(X), len(chosen), 3))
        with lock:
            for x, row in zip(X, out, strict=True):
                visual.set_state(data, x)
                for p, (live, i, _) in enumerate(chosen):
                    row[p] = live[i]
        return out

    def jacobian(x: Array) -> Array:
        where, h = layout.slice("joint_pos"), 1e-6
        n = where.stop - where.start
        X = np.tile(np.asarray(x, float), (2 * n, 1))
        X[:n, where] += h * np.eye(n)
        X[n:, where] -= h * np.eye(n)
        ends = positions(X).reshape(2 * n, -1)
        J = np.zeros((3 * len(chosen), layout.size))
        J[:, where] = (ends[:n] - ends[n:]).T / (2 * h)
        return J

    return PointMap(layout.size, tuple(name for _, _, name in chosen), positions, jacobian)


def in_space(points: Array) -> Array:
    """Points (..., 2) in the plane z = 0, or (..., 3) as they are."""
    points = np.asarray(points, dtype=np.float64)
    if points.shape[-1] == 2:
        return np.concatenate((points, np.zeros((*points.shape[:-1], 1))), axis=-1)
    return points


@dataclass(frozen=True, eq=False)
class Ellipsoids(Record):
    """Half axes and orientations of Gaussians in space."""

    centres: Annotated[Array, Shape("n 3")]
    """In m."""
    radii: Annotated[Array, Shape("n 3")]
    """In m, ascending."""
    wxyz: Annotated[Array, Shape("n 4")]
    """Quaternion from the axes' frame to the world frame."""


def ellipsoids(centres: Array, covs: Array, sigmas: float = 2.0) -> Ellipsoids:
    """The surfaces at `sigmas` standard deviations of Gaussians, centres (n, 3), covs (n, 3, 3).

    A covariance without extent in some direction gives a thin disc or needle. Those that are not
    finite, or nothing but a point, are left out. Raises ShapeError.
    """
    centres, covs = np.asarray(centres, float), np.asarray(covs, float)
    if centres.ndim != 2 or centres.shape[1] != 3 or covs.shape != (len(centres), 3, 3):
        raise ShapeError(
            f"ellipsoids need centres (n, 3) and covs (n, 3, 3), got {centres.shape}, {covs.shape}"
        )
    good = np.isfinite(centres).all(axis=1) & np.isfinite(covs).all(axis=(1, 2))
    centres, covs = centres[good], covs[good]
    values, axes = np.linalg.eigh((covs + covs.transpose(0, 2, 1)) / 2)
    radii = sigmas * np.sqrt(np.maximum(values, 0.0))
    real = radii[:, 2] > 1e-9
    centres, radii, axes = centres[real], radii[real], axes[real].copy()
    radii = np.maximum(radii, _THINNEST * radii[:, 2:])
    axes[np.linalg.det(axes) < 0, :, 0] *= -1  # a rotation, not a reflection
    wxyz = np.empty((len(axes), 4))
    for quaternion, matrix in zip(wxyz, axes, strict=True):
        mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(matrix).reshape(9))
    return Ellipsoids(centres, radii, wxyz)


def marginal_ellipsoids(
    points: PointMap, mean: Array, cov: Array, steps: Sequence[int], sigmas: float = 2.0
) -> Ellipsoids:
    """Where the points of a trajectory's distribution are at some steps; see `ellipsoids`.

    mean: (T, nz) or (T, nx). cov: (T, nz, nz) or (T, nx, nx). Steps that do not exist are left
    out. The map from state to points is taken as linear about the mean.
    """
    centres, covs = [], []
    for t in steps:
        if not 0 <= t < len(mean):
            continue
        nx = points.nx
        x, P = np.asarray(mean[t][:nx], float), np.asarray(cov[t][:nx, :nx], float)
        if not (np.isfinite(x).all() and np.isfinite(P).all()):
            continue
        J = points.jacobian(x)
        spread = J @ P @ J.T
        centres.append(points.of(x))
        n = len(points.labels)
        covs.append(np.stack([spread[3 * p : 3 * p + 3, 3 * p : 3 * p + 3] for p in range(n)]))
    if not centres:
        return Ellipsoids(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 4)))
    return ellipsoids(np.concatenate(centres), np.concatenate(covs), sigmas)


def mean_path(points: PointMap, mean: Array) -> Array:
    """Paths (P, T, 3) of the points along the means (T, nz) of a trajectory's distribution."""
    return np.ascontiguousarray(points.of(np.asarray(mean)[:, : points.nx]).transpose(1, 0, 2))


def sample_paths(points: PointMap, X: Array) -> Array:
    """Paths (N P, T, 3) of the points along states X (N, T, nx), sample after sample."""
    places = points.of(X).swapaxes(1, 2)
    return np.ascontiguousarray(places.reshape(-1, *places.shape[2:]))


@dataclass(frozen=True)
class Ball:
    """A target, of no size of its own, or an obstacle."""

    centre: tuple[float, float, float]  # m
    radius: float | None = None  # m; None for a target


def targets_of(costs: Iterable[Any], layout: Layout) -> tuple[Ball, ...]:
    """Targets that are positions, and obstacles, of costs and measures and of those inside them.

    See `HasTarget`, `HasWaypoints` and `HasObstacles` in `gps.protocols`. A target counts if its
    entry holds positions (see `position_entry`). The same one is given once.
    """
    found = position_entry(layout)
    if found is None:
        return ()
    name, size = found
    count = layout.length(name)
    balls: dict[Ball, None] = {}
    for part in _nested(costs):
        if not isinstance(part, HasEntry) or part.entry != name:
            continue
        rows = [part.target] if isinstance(part, HasTarget) else []
        if isinstance(part, HasWaypoints) and part.matrices is None:
            rows += part.targets or ()
        for row in rows:
            with suppress(TypeError, ValueError):
                for centre in in_space(np.broadcast_to(row, count).reshape(-1, size)):
                    balls[_ball(centre)] = None
        for *centre, radius in (part.avoid or ()) if isinstance(part, HasObstacles) else ():
            if len(centre) in (2, 3):
                balls[_ball(in_space(np.array(centre)), float(radius))] = None
    return tuple(b for b in balls if np.isfinite(b.centre).all())


def joint_targets_of(
    costs: Iterable[Any], geometry: AgentGeometry, layout: Layout
) -> tuple[Ball, ...]:
    """Positions of an agent's points at the joint positions that costs or measures have as target.

    Only targets of all joints count: with a weight of 0 a joint may be anywhere. Nothing for an
    agent without a model.
    """
    entry = "joint_pos"
    if geometry.visual is None or geometry.start is None or entry not in layout.names:
        return ()
    points = body_points(geometry.visual, layout)
    balls: dict[Ball, None] = {}
    for part in _nested(costs):
        if points is None or not isinstance(part, HasTarget) or part.entry != entry:
            continue
        weights = dict(iter_fields(part)).get("weights", 1.0)
        if not np.all(np.asarray(weights) > 0):
            continue
        x = np.array(geometry.start)
        try:
            x[layout.slice(entry)] = np.broadcast_to(part.target, layout.length(entry))
        except (TypeError, ValueError):
            continue
        for centre in points.of(x):
            balls[_ball(centre.round(9))] = None
    return tuple(b for b in balls if np.isfinite(b.centre).all())


def _ball(centre: Array, radius: float | None = None) -> Ball:
    x, y, z = map(float, centre)
    return Ball((x, y, z), radius)


def _nested(costs: Iterable[Any], depth: int = 8) -> Iterator[Any]:
    """Costs, and all configurations inside them."""
    for cost in costs:
        if not is_dataclass(cost) or isinstance(cost, type):
            continue
        yield cost
        for _, value in iter_fields(cost) if depth else ():
            yield from _nested(value if isinstance(value, tuple | list) else (value,), depth - 1)
