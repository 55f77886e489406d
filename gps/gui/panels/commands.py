"""The run's status, errors and command buttons, and the folders Options and Repeat."""

from __future__ import annotations

import html
from functools import partial
from typing import Any, Literal, NamedTuple

from gps.errors import ConfigError
from gps.gui.panels.context import NONE, PageContext
from gps.gui.run_monitor import status_line
from gps.pipeline.steering import Command, Status

FIRST_OPTIONS = ("algorithm.step.kl-max", "samples", "iterations", "algorithm.training.steps")
"""The options that come first in the list."""
_COLOURS = {
    "starting": "#666",
    "running": "#1a7f37",
    "pausing": "#9a6700",
    "paused": "#9a6700",
    "stopping": "#9a6700",
    "stopped": "#9a6700",
    "done": "#0550ae",
    "failed": "#cf222e",
    "not learning": "#9a6700",
}


class _Button(NamedTuple):
    kind: Literal["run", "pause", "step", "repeat", "stop", "resume"]
    label: str
    hint: str


_BUTTONS = (
    _Button("run", "Run", "continue without a stop"),
    _Button("pause", "Pause", "after the iteration, or after the rollouts: see Options"),
    _Button("step", "One iteration", "make one iteration, then pause"),
    _Button("repeat", "Repeat the last iteration",
            "with another seed or option, see Repeat; then pause"),
    _Button("stop", "Stop", "end the run after the current iteration is stored; it can be resumed"),
    _Button("resume", "Resume the run",
            "in a process of its own; the option iterations, if selected, is its total"),
)  # fmt: skip


class CommandPanel:
    """Status line, errors, command buttons, options, and how an iteration is repeated."""

    def __init__(self, context: PageContext) -> None:
        self._context = context
        gui = context.server.gui
        self._status = gui.add_html("")
        self._errors = gui.add_html("", visible=False)
        self._buttons = {
            button.kind: gui.add_button(button.label, hint=button.hint, visible=False)
            for button in _BUTTONS
        }
        with gui.add_folder("Options", expand_by_default=False):
            self._after = gui.add_dropdown("Pause after", ("iteration", "rollouts"))
            self._option = gui.add_dropdown("Option", (NONE,))
            self._help = gui.add_html("")
            self._value = gui.add_text("Value", "")
            self._apply = gui.add_button("Change from the next iteration on")
        with gui.add_folder("Repeat", expand_by_default=False):
            self._seed = gui.add_text("Seed", "", hint="of the random streams, from there on")
            self._with_option = gui.add_checkbox("With the option and value above", False)
        self._settings: tuple[str, dict[str, str]] = ("", {})  # option and settings that are shown
        for kind, button in self._buttons.items():
            context.on_click(button, partial(self._pressed, kind))
        context.on_click(self._apply, lambda _: self._change())
        context.on_update(self._option, self._show_option)

    # status

    def show(self) -> None:
        """Status, errors and the commands that the run takes now."""
        monitor = self._context.session.monitor
        status = monitor.status
        self._context.set(self._status, content=self._status_html(status))
        errors = self._context.session.errors() + [self._context.fault] * bool(self._context.fault)
        lines = "".join(f"<div>{html.escape(line)}</div>" for line in errors)
        content = (
            '<div id="gps-errors" style="padding:4px 8px;font-size:12px;color:#cf222e;'
            f'border-left:3px solid #cf222e;margin:0 8px">{lines}</div>'
        )
        self._context.set(self._errors, content=content, visible=bool(errors))
        kinds = status.commands if monitor.connected else ()
        for kind, button in self._buttons.items():
            shown = monitor.can_resume if kind == "resume" else kind in kinds
            disabled = shown and not _has_effect(kind, status)
            self._context.set(button, visible=shown, disabled=disabled)
        self._context.set(self._apply, disabled="change" not in kinds)

    def _status_html(self, status: Status) -> str:
        session = self._context.session
        name = html.escape(f"{session.run.name}, {session.run.label}")
        text = html.escape(status_line(status, session.monitor.connected))
        working = status.state in ("running", "pausing", "stopping")
        share = min(max(status.iteration - working, 0) / max(status.total, 1), 1.0)
        colour = _COLOURS[status.state]
        return (
            f'<div style="padding:4px 8px;font-size:13px"><b>{name}</b><br>'
            f'<span style="color:{colour}" id="gps-status">{text}</span>'
            f'<div style="font-size:12px" id="gps-best">{html.escape(session.monitor.progress)}'
            '</div><div style="background:#ddd;height:4px;margin-top:4px;border-radius:2px">'
            f'<div style="background:{colour};height:4px;width:{100 * share:.1f}%"></div></div>'
            "</div>"
        )

    # commands

    def _pressed(self, kind: Any, _: Any) -> None:
        monitor = self._context.session.monitor
        if kind == "resume":
            text = self._value.value if self._option.value == "iterations" else ""
            monitor.resume(int(text) if text.isdecimal() and int(text) > 0 else None)
            self._context.notify("the run is resumed in a process of its own")
        elif kind == "repeat":
            monitor.send(self._repeat())
        elif kind == "pause":
            monitor.send(Command(kind="pause", after=self._after.value))
        else:
            monitor.send(Command(kind=kind))
        self._context.fault = ""
        self.show()

    def _repeat(self) -> Command:
        seed = self._seed.value.strip()
        if seed and not seed.isdecimal():
            raise ConfigError(f"the seed of a repetition must be a whole number, got {seed!r}")
        options = self._chosen() if self._with_option.value else {}
        if not seed and not options:
            raise ConfigError(
                "the same iteration would result again; set another seed, or an option, under "
                "Repeat"
            )
        return Command(kind="repeat", seed=int(seed) if seed else None, options=options)

    def _chosen(self) -> dict[str, str]:
        """The option and the value that are entered."""
        if self._option.value == NONE:
            raise ConfigError("there is no option to change")
        return {self._option.value: self._value.value.strip()}

    def _change(self) -> None:
        options = self._chosen()
        self._context.session.monitor.send(Command(kind="change", options=options))
        ((name, value),) = options.items()
        self._context.notify(f"{name} becomes {value} from the next iteration on")

    # options

    def show_options(self) -> None:
        """The options that can change, once the experiment may be loaded."""
        if not self._context.loaded:
            return
        settings = self._context.session.monitor.settings
        first = [name for name in FIRST_OPTIONS if name in settings]
        names = (*first, *(name for name in settings if name not in first)) or (NONE,)
        self._context.set(self._option, options=names)
        if self._settings != (self._option.value, settings):
            self._show_option()

    def _show_option(self) -> None:
        monitor, name = self._context.session.monitor, self._option.value
        self._settings = name, monitor.settings
        self._context.set(self._value, value=self._settings[1].get(name, ""))
        self._context.text(self._help, monitor.describe(name), size=11)


def _has_effect(kind: str, status: Status) -> bool:
    """Whether a command would change anything now."""
    if kind == "run":
        return status.state in ("paused", "pausing")
    if kind == "pause":
        return status.state in ("starting", "running")
    if kind == "repeat":
        return status.iteration > 0 and status.state != "starting"
    return kind != "stop" or status.state != "stopping"
