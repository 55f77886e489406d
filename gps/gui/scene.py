"""The 3-D scene: agents side by side, paths, where a controller leads, and targets.

The first half is geometry and knows no viser. `SceneView` shows it, and `Player` tells the time
step that is due. Agents are known by what they have: `display(condition, test=)` gives the model
(see `gps.agents.Display`), a state entry `end_points` or `position` gives points; where both are
missing nothing is shown, and `Agent.note` says so.
"""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import mujoco
import numpy as np

from gps.errors import GPSError, ShapeError
from gps.types import Array, Layout

_PLACES = ("end_points", "position")
"""State entries that are places in the agent, three numbers a point, or two in a plane."""
_THINNEST = 1e-3
"""Half axis of an ellipsoid that is flat, as a share of its longest."""


# --- where things are -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PointMap:
    """Points that a state puts somewhere: end points, or the ends of the body."""

    nx: int
    """State size."""
    labels: tuple[str, ...]
    places: Callable[[Array], Array]
    """From states (S, nx) to places (S, P, 3), in m."""
    jacobian: Callable[[Array], Array]
    """d places / d x at one state (nx,), as (3 P, nx)."""

    def of(self, X: Array) -> Array:
        """Places (..., P, 3) of states (..., nx)."""
        X = np.asarray(X, dtype=np.float64)
        flat = self.places(X.reshape(-1, X.shape[-1]))
        return flat.reshape(*X.shape[:-1], len(self.labels), 3)


@dataclass(frozen=True, eq=False)
class AgentView:
    """One condition of an agent, as far as it can be shown."""

    display: Any = None
    """A `gps.agents.Display`, or None for an agent without a model."""
    points: PointMap | None = None
    start: Array | None = None
    """The state (nx,) that is shown first."""
    note: str = ""
    """Why something is not shown, in one line."""

    @property
    def middle(self) -> Array:
        """The middle of what there is to see, (3,) in m."""
        return np.zeros(3) if self.display is None else np.array(self.display.model.stat.center)

    @property
    def size(self) -> float:
        """How large that is, in m."""
        if self.display is not None:
            return float(self.display.model.stat.extent)
        if self.points is None or self.start is None:
            return 1.0
        return max(1.0, 2.0 * float(np.abs(self.points.of(self.start)).max()))


def agent_view_of(agent: Any, condition: int, *, test: bool = False) -> AgentView:
    """What there is to show of a condition of an agent."""
    make, layout = getattr(agent, "display", None), agent.layout
    display, note = None, ""
    if make is not None:
        try:
            display = make(condition, test=test)
        except GPSError as error:
            note = str(error)
    points = entry_points(layout)
    if points is None and display is not None:
        points = body_points(display, layout)
    if display is None and points is None:
        names = " or ".join(_PLACES)
        missing = f"nothing to show: the agent has no model, and its state no entry {names}"
        return AgentView(note=note or missing)
    if display is None:
        note = "this agent has no model to show; its points are shown"
    return AgentView(display, points, agent.start_state(condition, test=test), note)


def place_entry(layout: Layout) -> tuple[str, int] | None:
    """The state entry that holds places, and its coordinates per point; None without one."""
    for name in _PLACES:
        if name in layout.names:
            n = layout.length(name)
            if name == "position" and n == 2:
                return name, 2
            if n and n % 3 == 0:
                return name, 3
    return None


def entry_points(layout: Layout) -> PointMap | None:
    """The points that are entries of the state themselves."""
    found = place_entry(layout)
    if found is None:
        return None
    name, size = found
    where = layout.slice(name)
    count = layout.length(name) // size

    def places(X: Array) -> Array:
        return in_space(X[:, where].reshape(len(X), count, size))

    def jacobian(_: Array) -> Array:
        J = np.zeros((count, 3, layout.size))
        for i, column in enumerate(range(where.start, where.stop)):
            J[i // size, i % size, column] = 1.0
        return J.reshape(3 * count, -1)

    labels = tuple(f"{name} {i}" for i in range(count))
    return PointMap(layout.size, labels, places, jacobian)


def body_points(display: Any, layout: Layout) -> PointMap | None:
    """The sites of moving bodies, or the middle of the last shape of every limb's last body.

    Their Jacobian is by central differences along joint_pos; None where nothing moves.
    """
    model, data = display.model, display.data()
    moves = [b for b in range(1, model.nbody) if _moves(model, b)]
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

    def places(X: Array) -> Array:
        out = np.empty((len(X), len(chosen), 3))
        with lock:
            for x, row in zip(X, out, strict=True):
                display.set_state(data, x)
                for p, (live, i, _) in enumerate(chosen):
                    row[p] = live[i]
        return out

    def jacobian(x: Array) -> Array:
        where, h = layout.slice("joint_pos"), 1e-6
        n = where.stop - where.start
        X = np.tile(np.asarray(x, float), (2 * n, 1))
        X[:n, where] += h * np.eye(n)
        X[n:, where] -= h * np.eye(n)
        ends = places(X).reshape(2 * n, -1)
        J = np.zeros((3 * len(chosen), layout.size))
        J[:, where] = (ends[:n] - ends[n:]).T / (2 * h)
        return J

    return PointMap(layout.size, tuple(name for _, _, name in chosen), places, jacobian)


def _moves(model: mujoco.MjModel, body: int) -> bool:
    """Whether a joint lies between a body and the agent."""
    return bool(model.body_weldid[body] != 0)


def in_space(points: Array) -> Array:
    """Points (..., 2) in the plane z = 0, or (..., 3) as they are."""
    points = np.asarray(points, dtype=np.float64)
    if points.shape[-1] == 2:
        return np.concatenate((points, np.zeros((*points.shape[:-1], 1))), axis=-1)
    return points


@dataclass(frozen=True, eq=False)
class Ellipsoids:
    """Half axes and orientations of Gaussians in space."""

    centres: Array  # (n, 3) in m
    radii: Array  # (n, 3) in m, ascending
    wxyz: Array  # (n, 4) from the axes' frame to the world's


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
    axes[np.linalg.det(axes) < 0, :, 0] *= -1  # a rotation, and no mirror
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
    """Targets of places, and obstacles, that costs or measures hold in public attributes.

    A target belongs to an `entry` that is a place (see `place_entry`); sums hold parts. The same
    place is given once.
    """
    found = place_entry(layout)
    if found is None:
        return ()
    name, size = found
    count = layout.length(name)
    balls: dict[Ball, None] = {}
    for part in _parts(costs):
        if getattr(part, "entry", None) != name:
            continue
        rows = [getattr(part, "target", None), *(getattr(part, "targets", None) or ())]
        for row in rows if getattr(part, "matrices", None) is None else ():
            with suppress(TypeError, ValueError):
                for centre in in_space(np.broadcast_to(row, count).reshape(-1, size)):
                    balls[_ball(centre)] = None
        for *centre, radius in getattr(part, "avoid", None) or ():
            if len(centre) in (2, 3):
                balls[_ball(in_space(np.array(centre)), float(radius))] = None
    return tuple(b for b in balls if np.isfinite(b.centre).all())


def joint_targets_of(
    costs: Iterable[Any], agent_view: AgentView, layout: Layout
) -> tuple[Ball, ...]:
    """Where an agent's points are at the joint positions that costs or measures ask for.

    Only targets for all joints count: where some have no weight, the rest is anywhere. Nothing for
    an agent without a model.
    """
    entry = "joint_pos"
    if agent_view.display is None or agent_view.start is None or entry not in layout.names:
        return ()
    points, n = body_points(agent_view.display, layout), layout.length(entry)
    balls: dict[Ball, None] = {}
    for part in _parts(costs):
        if points is None or getattr(part, "entry", None) != entry:
            continue
        if not np.all(np.asarray(getattr(part, "weights", 1.0)) > 0):
            continue
        x = np.array(agent_view.start)
        try:
            x[layout.slice(entry)] = np.broadcast_to(part.target, n)
        except (AttributeError, TypeError, ValueError):
            continue
        for centre in points.of(x):
            balls[_ball(centre.round(9))] = None
    return tuple(b for b in balls if np.isfinite(b.centre).all())


def _ball(centre: Array, radius: float | None = None) -> Ball:
    x, y, z = map(float, centre)
    return Ball((x, y, z), radius)


def _parts(costs: Iterable[Any], depth: int = 8) -> Iterator[Any]:
    """Costs and all that they hold under the usual names."""
    for cost in costs:
        yield cost
        for name in ("cost", "terms", "costs", "parts") if depth else ():
            inner = getattr(cost, name, None)
            if inner is not None and not callable(inner):
                inner = inner if isinstance(inner, tuple | list) else (inner,)
                yield from _parts(inner, depth - 1)


# --- the time that is shown -----------------------------------------------------------------------


class Player:
    """Which time step is due, by a clock that is passed in.

    steps: of the rollout. dt: duration of a step in seconds. Position is kept in steps and is
    fractional in between, so that a change of speed or a pause loses nothing.
    """

    def __init__(
        self, steps: int, dt: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._steps, self._dt = max(1, int(steps)), float(dt)
        self._at, self._since = 0.0, clock()
        self._playing, self._speed, self._loop = False, 1.0, True

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self._steps

    @property
    def playing(self) -> bool:
        """Whether time goes on; false after the last step unless it loops."""
        self._catch_up()
        return self._playing

    @property
    def step(self) -> int:
        """The step to show, 0 to steps - 1."""
        self._catch_up()
        return min(int(self._at), self._steps - 1)

    @property
    def speed(self) -> float:
        """Simulated seconds per second."""
        return self._speed

    @speed.setter
    def speed(self, value: float) -> None:
        self._catch_up()
        self._speed = max(0.0, float(value))

    @property
    def loop(self) -> bool:
        """Whether the first step follows the last."""
        return self._loop

    @loop.setter
    def loop(self, value: bool) -> None:
        self._catch_up()
        self._loop = bool(value)

    def play(self) -> None:
        """Go on; from the start if the last step is shown."""
        self._catch_up()
        if int(self._at) >= self._steps - 1 and not self._playing:
            self._at = 0.0
        self._playing = True

    def pause(self) -> None:
        """Stay at the step that is shown."""
        self._catch_up()
        self._at, self._playing = float(self.step), False

    def scrub(self, step: int) -> None:
        """Go to a step, playing or not; steps that do not exist become the nearest."""
        self._catch_up()
        self._at = float(min(max(0, int(step)), self._steps - 1))

    def load(self, steps: int, dt: float) -> None:
        """Another rollout; the step stays where it can."""
        self._catch_up()
        self._steps, self._dt = max(1, int(steps)), float(dt)
        self._at = min(self._at, float(self._steps - 1))

    def _catch_up(self) -> None:
        now = self._clock()
        passed, self._since = now - self._since, now
        if not self._playing:
            return
        self._at += max(0.0, passed) * self._speed / self._dt
        if self._at >= self._steps:
            if self._loop:
                self._at = math.fmod(self._at, self._steps)
            else:
                self._at, self._playing = float(self._steps - 1), False


# --- in the browser -------------------------------------------------------------------------------

Colour = tuple[int, int, int] | str


@dataclass(eq=False)
class _Slot:
    """One condition on the page."""

    root: str
    frame: Any
    offset: tuple[float, float, float]
    agent_view: AgentView | None = None
    data: Any = None
    model: Any = None  # mjviser's scene
    spheres: list[Any] = field(default_factory=list)
    extras: dict[str, tuple[Any, list[Any]]] = field(default_factory=dict)


class SceneView:
    """Draws agents, paths, ellipsoids and targets on a viser server.

    Every condition has a slot of its own, a number; slots stand side by side along y. What is
    drawn twice with the same numbers is sent once. Any thread may call it.
    """

    def __init__(self, server: Any) -> None:
        self._server = server
        self._slots: dict[int, _Slot] = {}
        self._lock = threading.RLock()
        server.scene.set_up_direction("+z")
        server.scene.configure_default_lights(cast_shadow=False)
        self._floor: Any = None

    def show_agent(self, agent_view: AgentView, slot: int = 0, *, offset: float = 0.0) -> str:
        """Show an agent in a slot, moved by `offset` metres along y; returns its note.

        Paths and the like of the agent that was there before are removed.
        """
        with self._lock, self._server.atomic():
            old = self._slots.get(slot)
            if old is not None and old.agent_view is agent_view:
                old.frame.position = old.offset = (0.0, offset, 0.0)
                return agent_view.note
            self.clear(slot)
            root, place = f"/slot_{slot}", (0.0, offset, 0.0)
            frame = self._server.scene.add_frame(root, show_axes=False, position=place)
            new = self._slots[slot] = _Slot(root, frame, place, agent_view)
            if agent_view.display is not None:
                self._add_model(new, agent_view.display)
            elif agent_view.points is not None:
                for i, label in enumerate(agent_view.points.labels):
                    sphere = self._server.scene.add_icosphere(
                        f"{root}/point_{i}", radius=0.03 * agent_view.size, color=(70, 110, 200)
                    )
                    new.spheres.append((sphere, label))
            if agent_view.start is not None:
                self.set_state(agent_view.start, slot)
            self._place_floor()
            return agent_view.note

    def _add_model(self, slot: _Slot, display: Any) -> None:
        from mjviser import ViserMujocoScene  # 2 s to import: only where there is a model

        slot.data = display.data()
        under: Any = _Under(self._server, slot.root)
        # a copy: mjviser scales the model's own settings
        model = ViserMujocoScene(under, copy.copy(display.model), 1)
        model.camera_tracking_enabled = False
        slot.model = model

    def set_state(self, x: Array, slot: int = 0) -> None:
        """Put the agent of a slot where the state x (nx,) has it; nothing without an agent."""
        with self._lock:
            held = self._slots.get(slot)
            if held is None or held.agent_view is None:
                return
            if held.model is not None:
                held.agent_view.display.set_state(held.data, x)
                held.model.update_from_mjdata(held.data)
            elif held.agent_view.points is not None:
                with self._server.atomic():
                    for (sphere, _), at in zip(
                        held.spheres, held.agent_view.points.of(x), strict=True
                    ):
                        sphere.position = at

    def show_paths(
        self,
        paths: Array,
        slot: int = 0,
        *,
        name: str = "paths",
        colour: Colour = (120, 120, 120),
        thickness: float = 1.5,
    ) -> None:
        """Draw paths (n, T, 3) in m as lines of `thickness` pixels; NaN breaks a line."""
        paths = np.asarray(paths, dtype=np.float64)
        if paths.ndim != 3 or paths.shape[2] != 3:
            raise ShapeError(f"paths must have shape (n, T, 3), got {paths.shape}")

        def draw(root: str) -> list[Any]:
            ends = np.stack((paths[:, :-1], paths[:, 1:]), axis=2).reshape(-1, 2, 3)
            ends = ends[np.isfinite(ends).all(axis=(1, 2))].astype(np.float32)
            if not len(ends):
                return []
            line = self._server.scene.add_line_segments(
                f"{root}/{name}",
                ends,
                colors=rgb(colour),
                thickness=thickness,
                thickness_units="screen",
            )
            return [line]

        self._extra(slot, name, (paths, rgb(colour), thickness), draw)

    def show_ellipsoids(
        self,
        some: Ellipsoids,
        slot: int = 0,
        *,
        name: str = "ellipsoids",
        colour: Colour = (230, 140, 30),
        opacity: float = 0.25,
    ) -> None:
        """Draw ellipsoids, translucent."""

        def draw(root: str) -> list[Any]:
            n = len(some.centres)
            if not n:
                return []
            vertices, faces = _sphere()
            handle = self._server.scene.add_batched_meshes_simple(
                f"{root}/{name}",
                vertices,
                faces,
                batched_positions=some.centres,
                batched_wxyzs=some.wxyz,
                batched_scales=some.radii,
                batched_colors=np.tile(np.array(rgb(colour), np.uint8), (n, 1)),
                batched_opacities=np.full(n, opacity, np.float32),
                lod="off",
                cast_shadow=False,
                receive_shadow=False,
            )
            return [handle]

        self._extra(slot, name, (some.centres, some.radii, some.wxyz, rgb(colour), opacity), draw)

    def show_targets(self, balls: Sequence[Ball], slot: int = 0, *, name: str = "targets") -> None:
        """Draw targets as small green spheres and obstacles as translucent red ones."""

        def draw(root: str) -> list[Any]:
            agent_view = self._slots[slot].agent_view
            small = 0.015 * (1.0 if agent_view is None else agent_view.size)
            return [
                self._server.scene.add_icosphere(
                    f"{root}/{name}/{i}",
                    radius=small if ball.radius is None else ball.radius,
                    color=(40, 170, 80) if ball.radius is None else (200, 60, 60),
                    opacity=0.8 if ball.radius is None else 0.4,
                    position=ball.centre,
                    cast_shadow=False,
                )
                for i, ball in enumerate(balls)
            ]

        self._extra(slot, name, tuple(balls), draw)

    def show_label(self, text: str, slot: int = 0, *, name: str = "label") -> None:
        """Write a text above the agent of a slot; an empty one removes it."""

        def draw(root: str) -> list[Any]:
            agent_view = self._slots[slot].agent_view
            middle, size = (
                (np.zeros(3), 1.0) if agent_view is None else (agent_view.middle, agent_view.size)
            )
            above = tuple(map(float, middle + np.array([0.0, 0.0, 0.6 * size])))
            return [self._server.scene.add_label(f"{root}/{name}", text, position=above)]

        self._extra(slot, name, (text,) if text else None, draw)

    def hide(self, name: str, slot: int = 0) -> None:
        """Remove what was drawn under a name."""
        self._extra(slot, name, None, lambda _: [])

    def _extra(self, slot: int, name: str, content: Any, draw: Callable[[str], list[Any]]) -> None:
        """Draw something under a name in a slot in place of what was there, if it is not that."""
        with self._lock, self._server.atomic():
            held = self._slots.get(slot)
            if held is None:
                held = self._slots[slot] = _Slot(
                    f"/slot_{slot}",
                    self._server.scene.add_frame(f"/slot_{slot}", show_axes=False),
                    (0.0, 0.0, 0.0),
                )
            last, handles = held.extras.pop(name, (None, []))
            if content is not None and _same(last, content):
                held.extras[name] = last, handles
                return
            for handle in handles:
                handle.remove()
            if content is not None:
                held.extras[name] = content, draw(held.root)

    def look(self, slot: int | None = None) -> None:
        """Point the cameras of all browsers, and of those that come, at a slot, or at all."""
        with self._lock:
            chosen = [
                (np.array(held.offset) + held.agent_view.middle, held.agent_view.size)
                for key, held in self._slots.items()
                if held.agent_view is not None and slot in (None, key)
            ]
        if not chosen:
            return
        low = np.min([at - size / 2 for at, size in chosen], axis=0)
        high = np.max([at + size / 2 for at, size in chosen], axis=0)
        look_at = (low + high) / 2
        # panels lie over a third of the window or more; points may go farther than where they start
        far = 1.1 if all(held.model is not None for held in self._slots.values()) else 1.6
        position = look_at + far * float((high - low).max()) * np.array([0.95, -0.7, 0.5])
        clients = self._server.get_clients().values()
        for camera in (self._server.initial_camera, *(client.camera for client in clients)):
            camera.position, camera.look_at = tuple(position), tuple(look_at)

    def clear(self, slot: int | None = None) -> None:
        """Remove one slot, or all."""
        with self._lock, self._server.atomic():
            for key in [slot] if slot is not None else list(self._slots):
                held = self._slots.pop(key, None)
                if held is not None:
                    held.frame.remove()  # and all that is under it

    def _place_floor(self) -> None:
        """A grid for agents that have no model, and so no floor of their own."""
        wanted = any(s.agent_view is not None and s.model is None for s in self._slots.values())
        if wanted and self._floor is None:
            self._floor = self._server.scene.add_grid(
                "/floor", width=6.0, height=6.0, cell_size=0.5
            )
        elif not wanted and self._floor is not None:
            self._floor.remove()
            self._floor = None


class _Under:
    """A viser server as mjviser sees it: everything that it adds is put under a node of ours.

    mjviser has fixed names, so that without this a second model would replace the first.
    """

    def __init__(self, server: Any, root: str) -> None:
        self._server = server
        self.scene = _SceneUnder(server.scene, root)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)


class _SceneUnder:
    def __init__(self, scene: Any, root: str) -> None:
        self._scene, self._root = scene, root

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._scene, name)
        if not name.startswith("add_"):
            return method
        root = self._root
        return lambda place, *args, **options: method(f"{root}{place}", *args, **options)


def rgb(colour: Colour) -> tuple[int, int, int]:
    """A colour as three bytes; #rrggbb is taken too."""
    if isinstance(colour, str):
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        return red, green, blue
    return colour


def _sphere() -> tuple[Array, Array]:
    import trimesh

    mesh = trimesh.creation.icosphere(subdivisions=2, radius=1.0)
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


def _same(a: Any, b: Any) -> bool:
    """Whether two tuples of arrays and plain values are equal; NaN is itself."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.shape(a) == np.shape(b) and np.array_equal(a, b, equal_nan=True)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)
