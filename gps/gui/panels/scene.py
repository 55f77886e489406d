"""The folder Scene: what is drawn besides the agents."""

from __future__ import annotations

from gps.gui.panels.context import PageContext
from gps.types import Array


class ScenePanel:
    """Draws the conditions that are shown side by side, with paths, plans and targets."""

    def __init__(self, context: PageContext) -> None:
        self._context = context
        gui = context.server.gui
        with gui.add_folder("Scene", expand_by_default=False):
            self._samples = gui.add_checkbox("Paths of the samples", True)
            self._plan = gui.add_checkbox("Improved controller, 2 standard deviations", True)
            self._policy = gui.add_checkbox("Path of the policy", False)
            self._targets = gui.add_checkbox("Targets and obstacles", True)
        self._slots = 0
        for box in (self._samples, self._plan, self._policy, self._targets):
            context.on_update(box, self.draw)

    def draw(self) -> None:
        """Draw the selection, once the experiment may be loaded."""
        if not self._context.loaded:
            return
        session, scene = self._context.session, self._context.scene
        shown, before = session.conditions, self._slots
        extent = max((session.geometry(m).extent for m in shown), default=1.0)
        for slot in range(len(shown), before):
            scene.clear(slot)
        self._slots = len(shown)
        for slot, m in enumerate(shown):
            scene.show_agent(session.geometry(m), slot, offset=1.5 * extent * slot)
            scene.show_label(f"condition {m}" if len(shown) > 1 else "", slot)
            samples = session.sample_paths(m) if self._samples.value else None
            self._paths("samples", samples, slot, (130, 130, 130), 1.0)
            policy = session.policy_paths(m) if self._policy.value else None
            self._paths("policy", policy, slot, (30, 140, 70), 3.0)
            plan = session.plan(m) if self._plan.value else None
            self._paths("plan", None if plan is None else plan[0], slot, (230, 140, 30), 3.0)
            if plan is None:
                scene.hide("ellipsoids", slot)
            else:
                scene.show_ellipsoids(plan[1], slot)
            scene.show_targets(session.targets(m) if self._targets.value else (), slot)
        if before and len(shown) != before:
            scene.aim_cameras()

    def _paths(
        self,
        name: str,
        paths: Array | None,
        slot: int,
        colour: tuple[int, int, int],
        thickness: float,
    ) -> None:
        scene = self._context.scene
        if paths is None:
            scene.hide(name, slot)
        else:
            scene.show_paths(paths, slot, name=name, colour=colour, thickness=thickness)
