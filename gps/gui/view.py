"""The page: controls, scene, charts, pictures and log on a viser server.

What the user does is put in a queue, and one thread, that of `step`, works it off: so neither the
session nor the page is touched by two threads at once, and of a slider that is dragged only the
last place counts. All browsers show the same, since everything belongs to the server.
"""

from __future__ import annotations

import html
import io
import logging
import math
import queue
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from gps.errors import ConfigError, GPSError, SimulationError
from gps.gui import charts, figures, plots
from gps.gui.clicks import Clicks
from gps.gui.scene import Player, SceneView
from gps.gui.session import SOURCES, Session, status_line
from gps.pipeline.steering import Command, Status
from gps.types import Array, Images

log = logging.getLogger(__name__)

PATIENCE = 2.0  # seconds before the experiment and its model are loaded
POLL = 0.25  # seconds between looks at the run
_STEP = 0.05  # seconds of a time step, until the agent says how long it takes
FRAME = 1 / 30  # seconds between pictures of a replay
PAGES = ("progress", *plots.TOPICS, "images", "log")
SPEEDS = ("0.1", "0.25", "0.5", "1", "2", "4")
USUAL = ("algorithm.step.kl-max", "samples", "iterations", "algorithm.training.steps")
"""The options that are offered first."""
_COLOURS = {
    "starting": "#666",
    "running": "#1a7f37",
    "pausing": "#9a6700",
    "paused": "#9a6700",
    "stopping": "#9a6700",
    "stopped": "#9a6700",
    "done": "#0550ae",
    "failed": "#cf222e",
}
_NONE = "(none)"
_BUTTONS = {
    "Run": "go on without a stop",
    "Pause": "hold after the iteration, or after the rollouts: see Options",
    "One iteration": "make one iteration, then hold",
    "Redo the last iteration": "with another seed or option, see Options; then hold",
    "Stop": "end the run after the iteration at hand is stored; it can be resumed",
    "Resume the run": "in a process of its own; the option iterations, if selected, is its total",
}
_KINDS = {
    "Run": "run",
    "Pause": "pause",
    "One iteration": "step",
    "Redo the last iteration": "repeat",
    "Stop": "stop",
}


class View:
    """The page of a session. `step` has to be called again and again, by one thread.

    The experiment and its model are loaded `PATIENCE` later than what can be read at once is shown:
    it takes a second or two of a processor, which a browser needs to draw the rest.
    """

    def __init__(
        self, server: Any, session: Session, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.server, self.session = server, session
        self._clock = clock
        self._todo: queue.Queue[tuple[str, Callable[[], None]]] = queue.Queue()
        self._setting = False  # a widget that we set ourselves is not the user's doing
        self._polled = -math.inf
        self._fault = ""
        self._shown: dict[str, Any] = {}
        self._player = Player(1, _STEP, clock=clock)
        self._states: dict[int, Array] = {}
        self._at = -1
        self._palette = charts.Palette()
        server.gui.configure_theme(
            show_logo=False,
            show_share_button=False,
            control_width="large",
            brand_color=(5, 80, 174),
        )
        charts.prepare(server)
        self.scene = SceneView(server)
        self._build_controls()
        self._build_panel()
        self._progress_plots: list[plots.Plot] = []
        self._inspector_plots: list[plots.Plot] = []
        # page and name of the plots that have their numbers below them, and where on the x axis
        self._open: dict[tuple[str, str], float] = {}
        self._loaded, self._due = False, clock() + PATIENCE
        self._read_all()

    def _load_experiment(self) -> None:
        """Show what needs the experiment and its model."""
        self._loaded = True
        self._show_option_names()
        self._load()
        self._draw_scene()
        self._show_frame(always=True)
        self.scene.look()

    # widgets

    def _build_controls(self) -> None:
        gui = self.server.gui
        self._status = gui.add_html("")
        self._errors = gui.add_html("", visible=False)
        self._buttons = {
            name: gui.add_button(name, hint=hint, visible=False) for name, hint in _BUTTONS.items()
        }
        with gui.add_folder("Options", expand_by_default=False):
            self._after = gui.add_dropdown("Pause after", ("iteration", "rollouts"))
            self._option = gui.add_dropdown("Option", (_NONE,))
            self._option_help = gui.add_html("")
            self._value = gui.add_text("Value", "")
            self._apply = gui.add_button("Change from the next iteration on")
        with gui.add_folder("Redo", expand_by_default=False):
            self._redo_seed = gui.add_text("Seed", "", hint="of the random streams, from there on")
            self._redo_option = gui.add_checkbox("With the option and value above", False)
        with gui.add_folder("Look at"):
            self._newest = gui.add_checkbox("Newest iteration", True)
            self._iteration = gui.add_slider("Iteration", 1, 2, 1, 1)
            self._condition = gui.add_dropdown("Condition", ("0",))
            self._sample = gui.add_slider("Sample", 0, 1, 1, 0)
            self._source = gui.add_dropdown("Replay", SOURCES)
            self._beside = gui.add_text("Beside it", "", hint="other conditions: 1, 3, or all")
            self._look = gui.add_button("Camera to the model")
        with gui.add_folder("Replay"):
            self._what = gui.add_html("")
            self._t = gui.add_slider("Time step", 0, 1, 1, 0)
            self._play = gui.add_button_group("", ("Play", "Hold", "Step back", "Step on"))
            self._speed = gui.add_dropdown("Speed", SPEEDS, initial_value="1")
            self._loop = gui.add_checkbox("Repeat", True)
        with gui.add_folder("In the scene", expand_by_default=False):
            self._show = {
                "samples": gui.add_checkbox("Paths of the samples", True),
                "plan": gui.add_checkbox("Improved controller, 2 deviations", True),
                "policy": gui.add_checkbox("Path of the policy", False),
                "targets": gui.add_checkbox("Targets and obstacles", True),
            }
        with gui.add_folder("Save", expand_by_default=False):
            self._save_page = gui.add_button("Page as PNG")
            self._save_plots = gui.add_button("All plots as PNG (zip)")
            self._plot = gui.add_dropdown("Plot", (_NONE,))
            self._save_plot = gui.add_button("This plot as PNG")
        self._wire()

    def _build_panel(self) -> None:
        gui = self.server.gui
        panel = gui.add_panel()
        # no tabs: a chart that is made in a hidden tab stays as narrow as its title
        with panel.add_tab("Plots"):
            self._page = gui.add_dropdown("Show", PAGES)
            self._boxes = {
                "progress": gui.add_folder("Course of the run"),
                "inspector": gui.add_folder("Selected condition", visible=False),
                "images": gui.add_folder("Cameras at the selected step", visible=False),
                "log": gui.add_folder("Messages, newest first", visible=False),
            }
            with self._boxes["progress"]:
                self._log_axes = gui.add_checkbox("Logarithmic axes", False)
                self._other = gui.add_dropdown("Compare with", (_NONE,))
                self._others = gui.add_html("", visible=False)
            with self._boxes["inspector"]:
                self._number = gui.add_dropdown(
                    "Numbers of", (_NONE,), hint=f"as a click in the chart; {_NONE} closes all"
                )
                self._no_plots = gui.add_html("")
            with self._boxes["images"]:
                self._no_pictures = gui.add_html("")
            with self._boxes["log"]:
                self._log_text = gui.add_html("")
            Clicks(
                self.server,
                lambda key, x: self._todo.put(("chart", partial(self._pick, key, x))),
            )
        panel.dock_left()
        panel.set_width(470)
        self.server.gui.main_panel.dock_right()
        self._progress: list[charts.Chart] = []
        self._inspector: list[charts.Chart] = []
        self._pictures: list[Any] = []
        self._on(self._log_axes, self._show_progress)
        self._on(self._other, self._compare)
        self._on(self._page, self._turn)
        self._on(self._number, self._show_numbers)

    def _wire(self) -> None:
        for name, button in self._buttons.items():
            self._click(button, partial(self._pressed, name))
        self._click(self._apply, lambda _: self._change())
        self._click(self._look, lambda _: self.scene.look())
        self._click(self._play, lambda event: self._drive(event.target.value))
        self._click(self._save_page, lambda event: self._download_page(event.client))
        self._click(self._save_plots, lambda event: self._download_plots(event.client))
        self._click(self._save_plot, lambda event: self._download_plot(event.client))
        self._on(self._option, self._show_option)
        self._on(self._newest, lambda: self._select(newest=self._newest.value))
        self._on(self._iteration, lambda: self._select(iteration=int(self._iteration.value)))
        self._on(self._condition, lambda: self._select(condition=int(self._condition.value)))
        self._on(self._sample, lambda: self._select(sample=int(self._sample.value)))
        self._on(self._source, lambda: self._select(source=self._source.value))
        self._on(self._beside, lambda: self._select(beside=self._beside.value))
        self._on(self._t, lambda: self._scrub(int(self._t.value)))
        self._on(self._speed, self._set_speed)
        self._on(self._loop, self._set_loop)
        for box in self._show.values():
            self._on(box, self._draw_scene)

    def _on(self, handle: Any, act: Callable[[], None]) -> None:
        """Let the user's changes of a widget do something."""
        key = f"widget {id(handle)}"

        @handle.on_update
        def _(_: Any) -> None:
            if not self._setting:
                self._todo.put((key, act))

    def _click(self, handle: Any, act: Callable[[Any], None]) -> None:
        """Let every click do something."""

        @handle.on_click
        def _(event: Any) -> None:
            self._todo.put((f"click {time.monotonic_ns()}", lambda: act(event)))

    @contextmanager
    def _ourselves(self) -> Iterator[None]:
        self._setting = True
        try:
            yield
        finally:
            self._setting = False

    def _set(self, handle: Any, **values: Any) -> None:
        """Set what differs of a widget's properties; nothing is sent otherwise."""
        with self._ourselves():
            for name, value in values.items():
                if getattr(handle, name) != value:
                    setattr(handle, name, value)

    # the loop

    def step(self, timeout: float = FRAME) -> None:
        """Do what is due: the user's doings, the replay, and a look at the run now and then."""
        playing = self._player.playing
        wait = min(timeout, FRAME) if playing else min(timeout, POLL)
        due: dict[str, Callable[[], None]] = {}
        try:
            key, act = self._todo.get(timeout=max(wait, 0.001))
            while True:
                due.pop(key, None)
                due[key] = act
                key, act = self._todo.get_nowait()
        except queue.Empty:
            pass
        for act in due.values():
            self._guarded(act)
        if not self._loaded and self._clock() >= self._due:
            self._guarded(self._load_experiment)
        if self._player.playing or playing:
            self._guarded(self._show_frame)
        if self._clock() - self._polled >= POLL:
            self._polled = self._clock()
            self._guarded(self._look_at_the_run)

    def _guarded(self, act: Callable[[], None]) -> None:
        """Do something; what goes wrong is shown, and the page goes on."""
        try:
            act()
        except GPSError as error:
            self._say(str(error), bad=True)
        except Exception as error:
            log.warning("a fault of the page", exc_info=True)
            self._fault = f"a fault of the page, not of the run: {type(error).__name__}: {error}"

    def _say(self, text: str, *, bad: bool = False) -> None:
        title, seconds = ("Not done", 12.0) if bad else ("Done", 4.0)
        colour: Any = "red" if bad else "green"
        for client in self.server.get_clients().values():
            client.add_notification(title, text, auto_close_seconds=seconds, color=colour)

    def _look_at_the_run(self) -> None:
        before = self.session.selection
        fresh = self.session.poll()
        gone = self.session.resume_error()
        if gone:
            self._fault = f"gps resume ended: {gone}"
        self._show_status()
        if fresh:
            self._read_all()
        elif before != self.session.selection:
            self._show_selection()

    def _read_all(self) -> None:
        self._show_status()
        self._show_selection()
        self._show_option_names()
        self._show_relatives()

    # status and commands

    def _show_status(self) -> None:
        session = self.session
        status = session.status
        text = html.escape(status_line(status, session.connected))
        course = html.escape(session.course)
        total = max(status.total, 1)
        done = status.iteration - (1 if status.state in ("running", "pausing", "stopping") else 0)
        part = 100 * min(max(done, 0) / total, 1.0)
        colour = _COLOURS[status.state]
        name = html.escape(f"{session.run.name}, {session.run.label}")
        self._set(
            self._status,
            content=(
                f'<div style="padding:4px 8px;font-size:13px"><b>{name}</b><br>'
                f'<span style="color:{colour}" id="gps-status">{text}</span>'
                f'<div style="font-size:12px" id="gps-best">{course}</div>'
                '<div style="background:#ddd;height:4px;margin-top:4px;border-radius:2px">'
                f'<div style="background:{colour};height:4px;width:{part:.1f}%"></div></div></div>'
            ),
        )
        errors = session.errors() + ([self._fault] if self._fault else [])
        lines = "".join(f"<div>{html.escape(line)}</div>" for line in errors)
        self._set(
            self._errors,
            content=(
                '<div id="gps-errors" style="padding:4px 8px;font-size:12px;color:#cf222e;'
                f'border-left:3px solid #cf222e;margin:0 8px">{lines}</div>'
            ),
            visible=bool(errors),
        )
        kinds = status.commands if session.connected else ()
        for name, button in self._buttons.items():
            there = _KINDS[name] in kinds if name in _KINDS else session.can_resume
            self._set(button, visible=there, disabled=there and not self._sensible(name, status))
        self._set(self._apply, disabled="change" not in kinds)
        self._show_log()

    @staticmethod
    def _sensible(name: str, status: Status) -> bool:
        """Whether a command would change anything now."""
        if name == "Run":
            return status.state in ("paused", "pausing")
        if name == "Pause":
            return status.state in ("starting", "running")
        if name == "Redo the last iteration":
            return status.iteration > 0 and status.state != "starting"
        return name != "Stop" or status.state != "stopping"

    def _show_log(self) -> None:
        if not self._looks_at("log"):
            return
        lines = self.session.log()
        if self._shown.get("log") == lines:
            return
        self._shown["log"] = lines
        marks = {"warning": "#9a6700", "error": "#cf222e"}
        rows = []
        for line in reversed(lines):
            stamp, level, text = (*line.split(" ", 2), "", "")[:3]
            colour = marks.get(level, "inherit")
            rows.append(
                f'<div style="color:{colour}"><span style="opacity:.6">{html.escape(stamp[11:])}'
                f"</span> {html.escape(text)}</div>"
            )
        body = "".join(rows) or "nothing to tell yet"
        self._log_text.content = (
            f'<div id="gps-log" style="font-size:12px;padding:4px 8px">{body}</div>'
        )

    def _pressed(self, name: str, _: Any) -> None:
        self._command(name)

    def _command(self, what: str) -> None:
        if what == "Resume the run":
            text = self._value.value if self._option.value == "iterations" else ""
            self.session.resume(int(text) if text.isdecimal() and int(text) > 0 else None)
            self._fault = ""
            self._say("the run goes on in a process of its own")
            return
        if what == "Redo the last iteration":
            seed = self._redo_seed.value.strip()
            if seed and not seed.isdecimal():
                raise ConfigError(f"the seed of a redo must be a whole number, got {seed!r}")
            options = self._asked() if self._redo_option.value else {}
            if not seed and not options:
                raise ConfigError(
                    "a redo gives the same iteration again; set another seed, or an option, under "
                    "Redo"
                )
            self.session.send(
                Command(kind="repeat", seed=int(seed) if seed else None, options=options)
            )
        elif what == "Pause":
            self.session.send(Command(kind="pause", after=self._after.value))
        else:
            kind: Any = _KINDS[what]
            self.session.send(Command(kind=kind))
        self._fault = ""
        self._show_status()

    def _asked(self) -> dict[str, str]:
        if self._option.value == _NONE:
            raise ConfigError("there is no option to change")
        return {self._option.value: self._value.value.strip()}

    def _change(self) -> None:
        options = self._asked()
        self.session.send(Command(kind="change", options=options))
        (name, value), *_ = options.items()
        self._say(f"{name} becomes {value} from the next iteration on")

    def _show_option_names(self) -> None:
        if not self._loaded:
            return
        found = self.session.settings
        first = [name for name in USUAL if name in found]
        names = (*first, *(name for name in found if name not in first)) or (_NONE,)
        if tuple(self._option.options) != names:
            self._set(self._option, options=names)
        if self._shown.get("option") != (self._option.value, self.session.settings):
            self._show_option()

    def _show_option(self) -> None:
        name = self._option.value
        self._shown["option"] = name, self.session.settings
        self._set(self._value, value=self.session.settings.get(name, ""))
        text = html.escape(self.session.describe(name))
        self._set(
            self._option_help,
            content=f'<div style="font-size:11px;padding:0 8px;opacity:.75">{text}</div>',
        )

    # selection

    def _select(self, **values: Any) -> None:
        self.session.select(**values)
        self._show_selection()

    def _show_selection(self) -> None:
        run, s = self.session.run, self.session.selection
        numbers = [n for n in run.iterations if n > 0]
        last = numbers[-1] if numbers else 1
        self._set(self._newest, value=s.newest)
        self._range(self._iteration, 1, max(last, 2), max(s.iteration, 1), len(numbers) > 1)
        conditions = tuple(str(m) for m in range(max(run.conditions, 1)))
        self._set(self._condition, options=conditions)
        self._set(self._condition, value=str(s.condition))
        samples = run.samples(s.iteration) if s.iteration else 0
        active = samples > 1 and s.source == "sample"
        self._range(self._sample, 0, max(samples - 1, 1), s.sample, active)
        self._set(self._source, value=s.source)
        self._set(self._beside, value=s.beside, visible=len(conditions) > 1)
        self._load()
        self._draw_scene()
        self._show_frame(always=True)
        self._show_progress()
        self._show_inspector()

    def _range(self, handle: Any, low: int, high: int, value: int, active: bool) -> None:
        """A slider's bounds and value, widened first so that the value always fits."""
        self._set(handle, min=low, max=high, visible=active)
        self._set(handle, value=value)

    def _load(self) -> None:
        """Take the selected rollouts for the replay."""
        s = self.session.selection
        stamps = tuple(self.session.run.iterations), self._stamp()
        key = (s.iteration, s.condition, s.sample, s.source, s.beside, stamps, self._loaded)
        if self._shown.get("replay") == key:
            return
        self._shown["replay"] = key
        self._states, texts = {}, []
        for slot, m in enumerate(self.session.shown()):
            try:
                replay = self.session.replay(m)
            except SimulationError as error:
                texts.append(str(error))
                continue
            if replay is None:
                if slot == 0:
                    texts.append(f"there is no {s.source} to replay")
                continue
            self._states[slot] = replay.X
            texts.append(replay.text)
            if slot == 0:
                dt = self.session.dt if self._loaded else _STEP
                self._player.load(len(replay.X), dt)
        lines = "<br>".join(map(html.escape, texts))
        self._set(
            self._what,
            content=f'<div style="font-size:12px;padding:2px 8px" id="gps-replay">{lines}</div>',
        )

    def _stamp(self) -> Any:
        path = self.session.run.folder.iteration_path(self.session.selection.iteration)
        try:
            return path.stat().st_mtime_ns
        except OSError:
            return None

    def _draw_scene(self) -> None:
        if not self._loaded:
            return
        session = self.session
        shown = session.shown()
        size = max((session.agent_view(m).size for m in shown), default=1.0)
        old = self._shown.get("slots", 0)
        for slot in range(len(shown), old):
            self.scene.clear(slot)
        self._shown["slots"] = len(shown)
        for slot, m in enumerate(shown):
            self.scene.show_agent(session.agent_view(m), slot, offset=1.5 * size * slot)
            self.scene.show_label(f"condition {m}" if len(shown) > 1 else "", slot)
            self._paths("samples", session.sample_paths, m, slot, (130, 130, 130), 1.0)
            self._paths("policy", session.policy_paths, m, slot, (30, 140, 70), 3.0)
            plan = session.plan(m) if self._show["plan"].value else None
            if plan is None:
                self.scene.hide("plan", slot)
                self.scene.hide("ellipsoids", slot)
            else:
                self.scene.show_paths(
                    plan[0], slot, name="plan", colour=(230, 140, 30), thickness=3
                )
                self.scene.show_ellipsoids(plan[1], slot)
            targets = session.targets(m) if self._show["targets"].value else ()
            self.scene.show_targets(targets, slot)
        if len(shown) != old and old:
            self.scene.look()

    def _paths(
        self,
        name: str,
        paths_of: Callable[[int], Array | None],
        m: int,
        slot: int,
        colour: tuple[int, int, int],
        thickness: float,
    ) -> None:
        paths = paths_of(m) if self._show[name].value else None
        if paths is None:
            self.scene.hide(name, slot)
        else:
            self.scene.show_paths(paths, slot, name=name, colour=colour, thickness=thickness)

    # replay

    def _drive(self, what: str) -> None:
        if what == "Play":
            self._player.play()
        else:
            self._player.pause()
            by = {"Step back": -1, "Step on": 1}.get(what, 0)
            self._scrub(self._player.step + by)

    def _scrub(self, t: int) -> None:
        self._player.scrub(t)
        self._show_frame(always=True)
        self._show_inspector()

    def _set_speed(self) -> None:
        self._player.speed = float(self._speed.value)

    def _set_loop(self) -> None:
        self._player.loop = bool(self._loop.value)

    def _show_frame(self, always: bool = False) -> None:
        t = self._player.step
        stopped = not self._player.playing
        if t == self._at and not always and not stopped:
            return
        self._at = t
        with self.server.atomic():
            for slot, X in self._states.items():
                self.scene.set_state(X[min(t, len(X) - 1)], slot)
        steps = max(self._player.steps - 1, 1)
        self._range(self._t, 0, steps, t, self._player.steps > 1)
        self.session.select(t=t)
        if stopped or always:  # what is slower waits for the replay to hold
            self._show_pictures()
            if stopped:
                self._show_inspector()

    # charts

    def _turn(self) -> None:
        """Show another page of the panel; only what is looked at is made."""
        page = self._page.value
        box = page if page in self._boxes else "inspector"
        if page in plots.TOPICS:
            self.session.select(topic=page)
        for name, folder in self._boxes.items():
            self._set(folder, visible=name == box)
        self._show_page()

    def _looks_at(self, box: str) -> bool:
        return bool(self._boxes[box].visible)

    def _show_page(self) -> None:
        self._show_progress()
        self._show_inspector()
        self._show_pictures()
        self._show_log()

    def _show_progress(self) -> None:
        if not self._looks_at("progress"):
            return
        self._progress_plots = self.session.progress()
        box, logarithmic = self._boxes["progress"], bool(self._log_axes.value)
        self._fill(self._progress, box, self._progress_plots, logarithmic)
        self._show_notes()
        self._show_plot_names()

    def _show_inspector(self) -> None:
        if not self._looks_at("inspector"):
            return
        key = (self.session.selection, self._stamp())
        if self._shown.get("inspector") == key:
            return
        self._shown["inspector"] = key
        self._inspector_plots = self.session.inspector()
        self._fill(self._inspector, self._boxes["inspector"], self._inspector_plots, False)
        names = tuple(p.name for p in self._inspector_plots if not isinstance(p, plots.Table))
        self._set(self._number, options=(*names, _NONE))
        text = "this run stores nothing of this kind for the selected iteration"
        self._set(
            self._no_plots,
            content=f'<div style="padding:4px 8px;font-size:12px">{text}</div>',
            visible=not self._inspector_plots,
        )
        self._show_notes()
        self._show_plot_names()

    def _fill(
        self, held: list[charts.Chart], box: Any, wanted: list[plots.Plot], logarithmic: bool
    ) -> None:
        with self.server.atomic():
            while len(held) < len(wanted):
                held.append(charts.Chart(self.server, self._palette, box))
            for chart, plot in zip(held, wanted, strict=False):
                chart.show(plot, log=logarithmic)
            for chart in held[len(wanted) :]:
                chart.hide()

    def _show_numbers(self) -> None:
        """Open the numbers of the plot that was chosen, or close all of them."""
        if self._number.value == _NONE:
            self._open.clear()
        else:
            self._open[self._page.value, self._number.value] = self.session.selection.t
        self._show_notes()

    def _pick(self, key: str, x: float) -> None:
        """A click in a chart: selects its iteration or time step, and opens the numbers there.

        Another one at the same place closes them.
        """
        inside = not self._looks_at("progress")
        held = self._inspector if inside else self._progress
        shown = self._inspector_plots if inside else self._progress_plots
        found = [p for chart, p in zip(held, shown, strict=False) if key and chart.key == key]
        if not found:
            return
        (plot,) = found
        axis, name = plots.axis_of(plot), (self._page.value, plot.name)
        place = self._place(plot, self._open.get(name, x))
        if name in self._open and numbers_at(plot, x).title == numbers_at(plot, place).title:
            del self._open[name]
            if inside:
                self._set(self._number, value=_NONE)
            self._show_notes()
            return
        self._open[name] = x
        if inside:
            self._set(self._number, value=plot.name)
        if axis == "time step":
            self._player.pause()
            self._scrub(round(x))
        elif axis == "iteration":
            self._select(iteration=round(x))
        self._show_notes()

    def _show_notes(self) -> None:
        """Below each chart that was clicked the numbers there; they go with what is selected."""
        page = self._page.value
        for held, shown in (
            (self._progress, self._progress_plots),
            (self._inspector, self._inspector_plots),
        ):
            for chart, plot in zip(held, shown, strict=False):
                text = ""
                if (page, plot.name) in self._open and not isinstance(plot, plots.Table):
                    place = self._place(plot, self._open[page, plot.name])
                    text = (
                        '<div class="gps-numbers" style="max-height:240px;overflow:auto">'
                        f"{charts.table_html(numbers_at(plot, place))}</div>"
                    )
                chart.note(text)

    def _place(self, plot: plots.Plot, x: float) -> float:
        """Where the numbers of a plot are taken that was clicked at x."""
        s = self.session.selection
        return {"time step": s.t, "iteration": s.iteration}.get(plots.axis_of(plot), x)

    def _all_plots(self) -> dict[str, plots.Plot]:
        """What is on the page that is shown, by names for files."""
        page = self._page.value
        if page == "progress":
            return {f"progress_{p.name}": p for p in self._progress_plots}
        if page in plots.TOPICS:
            return {f"{page}_{p.name}": p for p in self._inspector_plots}
        return {}

    def _show_plot_names(self) -> None:
        self._set(self._plot, options=tuple(self._all_plots()) or (_NONE,))

    # comparison

    def _show_relatives(self) -> None:
        names = tuple(p.name for p in self.session.relatives())
        self._set(self._other, options=(_NONE, *names))
        held = ", ".join(html.escape(f"{r.name}, {r.label}") for r in self.session.compare)
        text = f'<div style="font-size:12px;padding:2px 8px">beside it: {held}</div>'
        self._set(self._others, content=text, visible=bool(held))

    def _compare(self) -> None:
        name = self._other.value
        if name != _NONE:
            self.session.add(self.session.run.path.resolve().parent / name)
            self._show_relatives()
            self._set(self._other, value=_NONE)
            self._show_progress()

    # pictures

    def _show_pictures(self) -> None:
        if not self._looks_at("images"):
            return
        found = self.session.pictures()
        gui = self.server.gui
        text = "" if found else "this run stores no pictures: its agent has no cameras"
        self._set(
            self._no_pictures, content=f'<div style="padding:4px 8px;font-size:12px">{text}</div>'
        )
        for k, held in enumerate(self._pictures):
            self._set(held, visible=k < len(found))
        for k, (name, frame, points) in enumerate(found):
            picture = drawn(frame, points)
            seen = "" if points is None else f", {len(points)} feature points of the policy"
            label = f"{name}, step {self.session.selection.t}{seen}"
            if k < len(self._pictures):
                self._pictures[k].image = picture
                self._pictures[k].label = label
            else:
                with self._boxes["images"]:
                    self._pictures.append(gui.add_image(picture, label=label, format="png"))

    # saving

    def _download_plot(self, client: Any) -> None:
        plot = self._all_plots().get(self._plot.value)
        if plot is None:
            raise ConfigError("there is no plot to save yet")
        data = figures.draw(plot, log=bool(self._log_axes.value))
        _to(client).send_file_download(f"{self._plot.value}.png", data, save_immediately=True)

    def _download_plots(self, client: Any) -> None:
        data = io.BytesIO()
        s, run = self.session.selection, self.session.run
        with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as archive:
            for plot in self.session.progress():
                name, logarithmic = f"progress/{plot.name}.png", bool(self._log_axes.value)
                archive.writestr(name, figures.draw(plot, log=logarithmic))
            if s.iteration:
                topics = plots.inspect(run, s.iteration, s.condition, s.sample, s.t)
                for topic, found in topics.items():
                    for plot in found:
                        archive.writestr(f"inspector/{topic}_{plot.name}.png", figures.draw(plot))
        name = f"{run.name}_{run.label}_plots.zip"
        _to(client).send_file_download(name, data.getvalue(), save_immediately=True)

    def _download_page(self, client: Any) -> None:
        session = self.session
        title = status_line(session.status, session.connected)
        some = list(self._all_plots().values())
        name = f"{session.run.name}_{session.run.label}.png"
        logarithmic = bool(self._log_axes.value)

        def work() -> None:  # the picture comes from the browser: our thread must not wait for it
            try:
                picture = _to(client).get_render(height=720, width=1280, timeout=60.0)
                whole = figures.page(
                    some,
                    np.ascontiguousarray(picture[..., :3]),
                    title=f"{session.run.name}, {title}",
                    log=logarithmic,
                )
                _to(client).send_file_download(name, whole, save_immediately=True)
            except Exception as error:
                text = str(error) or type(error).__name__
                self._todo.put(
                    ("page", lambda: self._say(f"no picture of the page: {text}", bad=True))
                )

        threading.Thread(target=work, name="gps-page", daemon=True).start()


def _to(client: Any) -> Any:
    if client is None:
        raise ConfigError("the browser that asked is gone")
    return client


def numbers_at(plot: plots.Plot, t: float) -> plots.Table:
    """The numbers of a plot at the place nearest to `t`, as a table."""
    rows: list[tuple[str, ...]] = []
    place = float("nan")
    if isinstance(plot, plots.LinePlot):
        unit, banded = plot.y_label, False
        for line in plot.lines:
            if not len(line.x):
                continue
            i = int(np.argmin(np.abs(np.asarray(line.x) - t)))
            place, band = float(line.x[i]), ""
            if line.low is not None and line.high is not None:
                band, banded = f"{line.low[i]:.6g} to {line.high[i]:.6g}", True
            rows.append((line.label, f"{line.y[i]:.6g}", band))
        if not banded:
            rows = [row[:2] for row in rows]
    elif isinstance(plot, plots.HeatMap):
        unit, banded = plot.unit, False
        if len(plot.x):
            i = int(np.argmin(np.abs(np.asarray(plot.x) - t)))
            place = float(plot.x[i])
            column = plot.values[:, i]
            rows = [(name, f"{value:.6g}") for name, value in zip(plot.rows, column, strict=True)]
    else:
        return plot
    columns = ("", "value" if unit in ("", "1") else unit, *(("range",) if banded else ()))
    label = plot.x_label
    if label.endswith(plots.LOGARITHM):
        label, place = label.removesuffix(plots.LOGARITHM), 10**place
    return plots.Table("numbers", f"{label} = {place:.6g}", columns, tuple(rows))


def drawn(frame: Images, points: Array | None, scale: int = 6) -> npt.NDArray[np.uint8]:
    """A camera's picture, enlarged without smoothing, with a ring around every feature point."""
    big = np.ascontiguousarray(np.repeat(np.repeat(frame, scale, axis=0), scale, axis=1))
    if points is None:
        return big
    rows, columns = np.mgrid[: big.shape[0], : big.shape[1]]
    for x, y in points:
        cx, cy = (x + 0.5) * scale, (y + 0.5) * scale
        distance = np.hypot(columns + 0.5 - cx, rows + 0.5 - cy)
        big[np.abs(distance - 0.8 * scale) < 1.2] = (255, 255, 255)
        big[np.abs(distance - 0.5 * scale) < 1.2] = (220, 30, 30)
    return big


__all__ = ["View", "drawn", "numbers_at"]
