"""The folder Playback: the selected rollouts over time."""

from __future__ import annotations

from typing import Any

from gps.errors import SimulationError
from gps.gui.panels.context import PageContext
from gps.gui.session import DEFAULT_DT
from gps.types import Array

_SPEEDS = ("0.1", "0.25", "0.5", "1", "2", "4")


class PlaybackPanel:
    """Plays the selected rollouts back, one per condition that is shown."""

    def __init__(self, context: PageContext) -> None:
        self._context = context
        gui, player = context.server.gui, context.player
        with gui.add_folder("Playback"):
            self._label = gui.add_html("")
            self._t = gui.add_slider("Time step", 0, 1, 1, 0)
            self._drive = gui.add_button_group("", ("Play", "Pause", "Previous", "Next"))
            self._speed = gui.add_dropdown("Speed", _SPEEDS, initial_value="1")
            self._loop = gui.add_checkbox("Loop", True)
        self._states: dict[int, Array] = {}  # (T, nx) of every slot of the scene
        self._loaded: Any = None  # what these belong to
        self._step = -1
        context.on_click(self._drive, lambda event: self._pressed(event.target.value))
        context.on_update(self._t, lambda: context.seek(int(self._t.value)))
        context.on_update(self._speed, lambda: setattr(player, "speed", float(self._speed.value)))
        context.on_update(self._loop, lambda: setattr(player, "loop", bool(self._loop.value)))

    def _pressed(self, name: str) -> None:
        player = self._context.player
        if name == "Play":
            player.play()
        else:
            player.pause()
            self._context.seek(player.step + {"Previous": -1, "Next": 1}.get(name, 0))

    def load(self) -> None:
        """Take the selected rollouts."""
        context, session = self._context, self._context.session
        s = session.selection
        files = session.run.iterations, context.file_time()
        key = (s.iteration, s.condition, s.sample, s.source, s.others, files, context.loaded)
        if self._loaded == key:
            return
        self._loaded = key
        self._states, labels = {}, []
        for slot, m in enumerate(session.conditions):
            try:
                rollout = session.rollout(m)
            except SimulationError as error:
                labels.append(str(error))
                continue
            if rollout is None:
                if slot == 0:
                    labels.append(f"there is no {s.source} to play back")
                continue
            self._states[slot] = rollout.X
            labels.append(rollout.label)
            if slot == 0:
                context.player.load(len(rollout.X), session.dt if context.loaded else DEFAULT_DT)
        context.text(self._label, "\n".join(labels), name="gps-rollout")

    def show(self) -> None:
        """The current time step in the scene and on the slider."""
        context, player = self._context, self._context.player
        self._step = t = player.step
        with context.server.atomic():
            for slot, X in self._states.items():
                context.scene.set_state(X[min(t, len(X) - 1)], slot)
        context.set_slider(self._t, 0, max(player.steps - 1, 1), t, visible=player.steps > 1)
        context.session.select(t=t)

    def play(self) -> None:
        """Show the step that is due, if it is another one."""
        if self._context.player.step != self._step:
            self.show()
