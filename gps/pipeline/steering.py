"""Steering a run in progress: pause, one iteration, repeat, other options, stop.

`Steering` is the run's side: the loop asks it between iterations what to do. Commands come from any
thread of the same process by `send`, and from other processes by `steering_socket`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

from gps.errors import ConfigError, GPSError, NotLearningError, one_line
from gps.fields import Config, Range
from gps.pipeline import changes as live
from gps.pipeline.experiment import Experiment

log = logging.getLogger(__name__)

CommandKind = Literal["run", "pause", "step", "repeat", "change", "stop"]
KINDS: tuple[CommandKind, ...] = get_args(CommandKind)
NOT_LEARNING = "not learning"
"""The state of a run that was ended for that, and the beginning of the last line of its log."""
_TICK = 0.1  # seconds between looks at what else has happened, such as Ctrl-C


@dataclass(frozen=True, kw_only=True)
class Command(Config):
    """A command to a run."""

    kind: CommandKind
    """run: continue without a stop; pause: hold; step: one more iteration, then hold; repeat: rerun
    the last iteration, then hold; change: set options from the next iteration on; stop: end after
    the present iteration is stored."""
    after: Literal["iteration", "rollouts"] = "iteration"
    """Where a pause begins; a run that is held continues as far as that."""
    options: Mapping[str, str] = field(default_factory=dict)
    """change and repeat: options as on the command line, without dashes, to values as text."""
    seed: Annotated[int | None, Range(at_least=0, below=2**63)] = None
    """repeat: another seed of the random streams."""

    def __post_init__(self) -> None:
        super().__post_init__()
        plain = isinstance(self.options, Mapping) and all(
            isinstance(k, str) and isinstance(v, str) for k, v in self.options.items()
        )
        if not plain:
            raise ConfigError(f"Command.options must map text to text, got {self.options!r}")
        if self.options and self.kind not in ("change", "repeat"):
            raise ConfigError(f"Command.options are for change and repeat, not for {self.kind}")
        if self.kind == "change" and not self.options:
            raise ConfigError("Command.options must name at least one option to change")
        if self.seed is not None and self.kind != "repeat":
            raise ConfigError(f"Command.seed is for repeat, not for {self.kind}")
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))


@dataclass(frozen=True, kw_only=True)
class Status:
    """What a run is doing."""

    state: Literal[
        "starting", "running", "pausing", "paused", "stopping", "stopped", "done", "failed",
        "not learning",
    ]  # fmt: skip
    iteration: int = 0
    """The iteration being made, or the last one made when nothing is."""
    total: int = 0
    """Iterations in all; 0 if unknown."""
    doing: str = ""
    """The work at hand, in words."""
    elapsed: float = 0.0
    """Seconds since the iteration, or the pause, or the start began."""
    running_for: float = 0.0
    """Seconds since this process began with the run."""
    expected: float = math.nan
    """Seconds that the last iterations took, on average; NaN before the first."""
    remaining: float = math.nan
    """Seconds until the last iteration ends, if all take so long; NaN where that is unknown."""
    note: str = ""
    """The error that ended the run, why it does not learn, or what a pause waits for."""
    commands: tuple[str, ...] = KINDS
    """The kinds of commands that this run takes."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """The options that can change, with their present values as text."""

    @property
    def alive(self) -> bool:
        """Whether the run still takes commands."""
        return self.state not in ("stopped", "done", "failed", "not learning")


class Steering:
    """The queue of commands of one run, and its status; all methods may be called by any thread."""

    def __init__(self, *, pausable: bool = True) -> None:
        self._changed = threading.Condition()
        self._queue: deque[Command] = deque()
        self._hold: str | None = None  # where a pause is wanted: "iteration" or "rollouts"
        self._steps: int | None = None  # iterations until the next pause; None without one
        self._stop = False
        kinds: tuple[str, ...] = KINDS if pausable else ("stop",)
        self._status = Status(state="starting", commands=kinds)
        self._began = self._start = time.monotonic()
        self._over: float | None = None
        self._took: deque[float] = deque(maxlen=3)
        self._doing: Callable[[], str] = str
        self._experiment: Experiment | None = None
        self.note: Callable[[str], None] = lambda text: None
        """Takes a line for every command."""

    # for whoever steers

    def send(self, command: Command) -> None:
        """Hand in a command; ConfigError in one line for one that cannot be carried out.

        Returns at once: the run takes it up when it next asks.
        """
        with self._changed:
            status = self._status
            if not status.alive:
                raise ConfigError(f"the run has ended; {command.kind} comes too late")
            if command.kind not in status.commands:
                raise ConfigError(
                    f"this run does not take the command {command.kind}; it takes "
                    f"{', '.join(status.commands)}"
                )
            if command.kind == "repeat" and status.iteration < 1:
                raise ConfigError("there is no iteration to repeat yet")
            experiment = self._experiment
            if command.options and experiment is None:
                raise ConfigError("the run has not begun; change its options in a moment")
        if command.options and experiment is not None:
            live.changed(experiment, command.options)
        with self._changed:
            if command.kind == "stop":
                self._stop = True
            elif command.kind == "pause":
                self._hold, self._steps = command.after, None
            elif command.kind == "run":
                self._hold, self._steps = None, None
            elif command.kind == "step":
                self._hold, self._steps = None, 1
            else:
                self._queue.append(command)
            self._changed.notify_all()
        log.info("command: %s", _words(command))
        self.note(f"command: {_words(command)}")

    def ask_to_stop(self) -> None:
        """The same as the command stop; a signal handler may call it."""
        self._stop = True

    @property
    def stopping(self) -> bool:
        """Whether the run is to stop."""
        return self._stop

    @property
    def status(self) -> Status:
        """What the run is doing now."""
        with self._changed:
            status, began, doing = self._status, self._began, self._doing
            if self._stop and status.state in ("running", "paused", "pausing"):
                status = replace(status, state="stopping")
            elif self._hold is not None and status.state == "running":
                where = "the iteration" if self._hold == "iteration" else "the next rollouts"
                status = replace(status, state="pausing", note=f"after {where}")
        now = time.monotonic() if self._over is None else self._over
        status = replace(status, running_for=now - self._start)
        if status.state in ("starting", "paused"):
            status = replace(status, elapsed=now - began)
        elif status.state in ("running", "pausing", "stopping"):
            elapsed = now - began
            left = status.total - status.iteration
            remaining = max(status.expected - elapsed, 0.0) + left * status.expected
            status = replace(
                status,
                elapsed=elapsed,
                doing=doing() or status.doing,
                remaining=remaining if status.total else math.nan,
            )
        return status

    # for the run

    def prepare(self, experiment: Experiment, iteration: int) -> None:
        """The run is about to begin: workers load models and compiled kernels."""
        with self._changed:
            total = experiment.iterations
            self._update(iteration=iteration, total=total, doing="loading models and kernels")

    def begin(
        self,
        experiment: Experiment,
        iteration: int,
        doing: Callable[[], str] = str,
        total: int | None = None,
    ) -> None:
        """The run begins an iteration (its number from 1); doing: gives the work at hand; total: of
        iterations, 0 if unknown, None for the experiment's."""
        with self._changed:
            fresh = experiment is not self._experiment
            self._experiment, self._doing = experiment, doing
            self._began = time.monotonic()
            self._update(
                state="running",
                iteration=iteration,
                total=experiment.iterations if total is None else total,
                doing="rollouts",
                note="",
            )
            if fresh:
                self._update(settings=_settings(experiment))

    def finished(self, seconds: float) -> None:
        """The iteration is stored; it took so long."""
        with self._changed:
            self._took.append(seconds)
            self._update(expected=sum(self._took) / len(self._took), doing="", elapsed=0.0)
            if self._steps is not None:
                self._steps -= 1
                if self._steps <= 0:
                    self._hold, self._steps = "iteration", None

    def take(self, experiment: Experiment, done: int) -> Command | None:
        """The next command for the loop to carry out between iterations; blocks during a pause.

        done: iterations made. A change, a repeat or a stop; None for the next iteration, or for the
        end after the last.
        """
        with self._changed:
            if experiment is not self._experiment:
                self._experiment = experiment
                self._update(settings=_settings(experiment), total=experiment.iterations)
            while True:
                if self._stop:
                    return Command(kind="stop")
                if self._queue:
                    command = self._queue.popleft()
                    if command.kind == "repeat":
                        self._hold, self._steps = None, 1
                    return command
                over = done >= experiment.iterations
                beyond = over and (self._steps is not None or self._hold is not None)
                if self._hold != "iteration" and not beyond:
                    return None
                if beyond:  # a step, or rollouts, that there are not
                    self._hold, self._steps = "iteration", None
                if self._status.state != "paused":
                    self._began = time.monotonic()
                self._update(state="paused", iteration=done, doing="", note="")
                self._changed.wait(_TICK)

    def after_rollouts(self, wait: Callable[[], None]) -> bool:
        """Hold here if a pause after rollouts is wanted, once `wait` has returned.

        Returns whether to continue; if not, the run is to stop, and the rollouts are dropped.
        """
        if self._hold != "rollouts":
            return True
        wait()
        with self._changed:
            self._began, began = time.monotonic(), self._began
            while self._hold == "rollouts" and not self._stop:
                self._update(state="paused", doing="", note="after the rollouts")
                self._changed.wait(_TICK)
            self._update(state="running", note="")
            self._began = began
        return not self._stop

    def end(self, error: BaseException | None = None) -> None:
        """The run is over; error: what ended it, None if it was stopped or is done."""
        with self._changed:
            self._over = time.monotonic()
            if isinstance(error, NotLearningError):
                self._update(state="not learning", doing="", note=one_line(error))
            elif error is not None:
                self._update(state="failed", doing="", note=_cause(error))
            else:
                status = self._status
                whole = not status.total or status.iteration >= status.total
                early = self._stop and (not whole or "pause" not in status.commands)
                self._update(state="stopped" if early else "done", doing="", note="")
                if not early and "pause" not in status.commands:
                    self._update(total=status.iteration)  # of snapshots, which was a guess

    def _update(self, **values: Any) -> None:
        self._status = replace(self._status, **values)


def _settings(experiment: Experiment) -> dict[str, str]:
    return {name: live.text(s.value) for name, s in live.live_options(experiment).items()}


def _words(command: Command) -> str:
    change = str(live.Change(command.options, command.seed))
    where = " after the rollouts" if command.after == "rollouts" else ""
    return f"{command.kind}{where}{': ' if change else ''}{change}"


def _cause(error: BaseException) -> str:
    kind = "" if isinstance(error, GPSError) else f"{type(error).__name__}: "
    return f"{kind}{one_line(error)}"


__all__ = ["NOT_LEARNING", "Command", "Status", "Steering"]
