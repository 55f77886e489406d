"""The folder Selection: iteration, condition, sample, and what is played back."""

from __future__ import annotations

from functools import partial
from typing import Any

from gps.gui.panels.context import PageContext
from gps.gui.session import SOURCES


class SelectionPanel:
    """What is selected of the run."""

    def __init__(self, context: PageContext) -> None:
        self._context = context
        gui = context.server.gui
        with gui.add_folder("Selection"):
            self._newest = gui.add_checkbox("Newest iteration", True)
            self._iteration = gui.add_slider("Iteration", 1, 2, 1, 1)
            self._condition = gui.add_dropdown("Condition", ("0",))
            self._sample = gui.add_slider("Sample", 0, 1, 1, 0)
            self._source = gui.add_dropdown("Rollout", SOURCES)
            self._others = gui.add_text("Others", "", hint="other conditions to show: 1, 3, or all")
            self._aim = gui.add_button("Camera to the model")
        for handle, name, kind in (
            (self._newest, "newest", bool),
            (self._iteration, "iteration", int),
            (self._condition, "condition", int),
            (self._sample, "sample", int),
            (self._source, "source", str),
            (self._others, "others", str),
        ):
            context.on_update(handle, partial(self._select, handle, name, kind))
        context.on_click(self._aim, lambda _: context.scene.aim_cameras())

    def _select(self, handle: Any, name: str, kind: type) -> None:
        self._context.select(**{name: kind(handle.value)})

    def show(self) -> None:
        """The selection and its ranges."""
        context, run, s = self._context, self._context.session.run, self._context.session.selection
        numbers = [n for n in run.iterations if n > 0]
        last = numbers[-1] if numbers else 1
        context.set(self._newest, value=s.newest)
        context.set_slider(
            self._iteration, 1, max(last, 2), max(s.iteration, 1), visible=len(numbers) > 1
        )
        conditions = tuple(str(m) for m in range(max(run.conditions, 1)))
        context.set(self._condition, options=conditions)
        context.set(self._condition, value=str(s.condition))
        samples = run.samples(s.iteration) if s.iteration else 0
        visible = samples > 1 and s.source == "sample"
        context.set_slider(self._sample, 0, max(samples - 1, 1), s.sample, visible=visible)
        context.set(self._source, value=s.source)
        context.set(self._others, value=s.others, visible=len(conditions) > 1)
