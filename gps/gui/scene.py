"""The 3-D scene in the browser: agents side by side, paths, ellipsoids, targets and obstacles."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gps.errors import ShapeError
from gps.gui.geometry import AgentGeometry, Ball, Ellipsoids
from gps.protocols import VisualModel
from gps.types import Array

_Colour = tuple[int, int, int]  # red, green, blue


@dataclass(eq=False)
class _Slot:
    """One condition on the page."""

    root: str
    frame: Any
    offset: tuple[float, float, float]
    geometry: AgentGeometry
    data: Any = None
    model: Any = None  # mjviser's scene
    spheres: list[Any] = field(default_factory=list)
    extras: dict[str, tuple[Any, list[Any]]] = field(default_factory=dict)


class SceneView:
    """Draws agents, paths, ellipsoids and targets on a viser server.

    Every condition has a slot of its own, a number; slots stand side by side along y. What has not
    changed is not sent again. Any thread may call it.
    """

    def __init__(self, server: Any) -> None:
        self._server = server
        self._slots: dict[int, _Slot] = {}
        self._lock = threading.RLock()
        server.scene.set_up_direction("+z")
        server.scene.configure_default_lights(cast_shadow=False)
        self._floor: Any = None

    def show_agent(self, geometry: AgentGeometry, slot: int = 0, *, offset: float = 0.0) -> str:
        """Show an agent in a slot, moved by `offset` metres along y; returns its note.

        Paths and the like of the agent that was there before are removed.
        """
        with self._lock, self._server.atomic():
            old = self._slots.get(slot)
            if old is not None and old.geometry is geometry:
                old.frame.position = old.offset = (0.0, offset, 0.0)
                return geometry.note
            self.clear(slot)
            root, place = f"/slot_{slot}", (0.0, offset, 0.0)
            frame = self._server.scene.add_frame(root, show_axes=False, position=place)
            new = self._slots[slot] = _Slot(root, frame, place, geometry)
            if geometry.visual is not None:
                self._add_model(new, geometry.visual)
            elif geometry.points is not None:
                new.spheres = [
                    self._server.scene.add_icosphere(
                        f"{root}/point_{i}", radius=0.03 * geometry.extent, color=(70, 110, 200)
                    )
                    for i in range(len(geometry.points.labels))
                ]
            if geometry.start is not None:
                self.set_state(geometry.start, slot)
            self._place_floor()
            return geometry.note

    def _add_model(self, slot: _Slot, visual: VisualModel) -> None:
        from mjviser import ViserMujocoScene  # 2 s to import: only where there is a model

        slot.data = visual.data()
        under: Any = _Under(self._server, slot.root)
        # a copy: mjviser scales the model's own settings
        model = ViserMujocoScene(under, copy.copy(visual.model), 1)
        model.camera_tracking_enabled = False
        slot.model = model

    def set_state(self, x: Array, slot: int = 0) -> None:
        """Set the pose of the agent of a slot to that of the state x (nx,)."""
        with self._lock:
            held = self._slots.get(slot)
            if held is None:
                return
            if held.model is not None and held.geometry.visual is not None:
                held.geometry.visual.set_state(held.data, x)
                held.model.update_from_mjdata(held.data)
            elif held.geometry.points is not None:
                with self._server.atomic():
                    for sphere, at in zip(held.spheres, held.geometry.points.of(x), strict=True):
                        sphere.position = at

    def show_paths(
        self,
        paths: Array,
        slot: int = 0,
        *,
        name: str = "paths",
        colour: _Colour = (120, 120, 120),
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
                colors=colour,
                thickness=thickness,
                thickness_units="screen",
            )
            return [line]

        self._extra(slot, name, (paths, colour, thickness), draw)

    def show_ellipsoids(
        self,
        some: Ellipsoids,
        slot: int = 0,
        *,
        name: str = "ellipsoids",
        colour: _Colour = (230, 140, 30),
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
                batched_colors=np.tile(np.array(colour, np.uint8), (n, 1)),
                batched_opacities=np.full(n, opacity, np.float32),
                lod="off",
                cast_shadow=False,
                receive_shadow=False,
            )
            return [handle]

        self._extra(slot, name, (some.centres, some.radii, some.wxyz, colour, opacity), draw)

    def show_targets(self, balls: Sequence[Ball], slot: int = 0, *, name: str = "targets") -> None:
        """Draw targets as small green spheres and obstacles as translucent red ones."""

        def draw(root: str) -> list[Any]:
            small = 0.015 * self._slots[slot].geometry.extent
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
            geometry = self._slots[slot].geometry
            x, y, z = map(float, geometry.centre)
            above = (x, y, z + 0.6 * geometry.extent)
            return [self._server.scene.add_label(f"{root}/{name}", text, position=above)]

        self._extra(slot, name, (text,) if text else None, draw)

    def hide(self, name: str, slot: int = 0) -> None:
        """Remove what was drawn under a name."""
        self._extra(slot, name, None, lambda _: [])

    def _extra(self, slot: int, name: str, content: Any, draw: Callable[[str], list[Any]]) -> None:
        """Draw something under a name in a slot in place of what was there, if it is not that."""
        with self._lock, self._server.atomic():
            if slot not in self._slots:
                self.show_agent(AgentGeometry(), slot)
            held = self._slots[slot]
            last, handles = held.extras.pop(name, (None, []))
            if content is not None and _same(last, content):
                held.extras[name] = last, handles
                return
            for handle in handles:
                handle.remove()
            if content is not None:
                held.extras[name] = content, draw(held.root)

    def aim_cameras(self) -> None:
        """Aim the cameras of all browsers, and of those that connect later, at all agents."""
        with self._lock:
            boxes = [
                (np.array(held.offset) + held.geometry.centre, held.geometry.extent / 2)
                for held in self._slots.values()
            ]
        if not boxes:
            return
        low = np.min([at - half for at, half in boxes], axis=0)
        high = np.max([at + half for at, half in boxes], axis=0)
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
        wanted = any(s.model is None for s in self._slots.values())
        if wanted and self._floor is None:
            self._floor = self._server.scene.add_grid(
                "/floor", width=6.0, height=6.0, cell_size=0.5
            )
        elif not wanted and self._floor is not None:
            self._floor.remove()
            self._floor = None


class _Under:
    """A viser server for mjviser that puts everything it adds under a node of ours.

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
