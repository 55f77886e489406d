"""What a page of the GUI is about: the run, what is selected of it, and what is told to it.

No browser and no viser: the view asks for plots, places and texts, and hands in what the user does.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gps.errors import ConfigError, GPSError, SimulationError, StoreError
from gps.gui import plots, scene
from gps.gui.plots import Plot
from gps.gui.records import RunReader
from gps.pipeline import changes as live
from gps.pipeline import progress
from gps.pipeline.steering import Command, Status
from gps.pipeline.steering_socket import Connection, connect
from gps.types import Array, Images

SOURCES = ("sample", "policy", "local controller")
"""What is replayed: a stored sample, or a noise-free rollout that is simulated when asked for."""
Source = Literal["sample", "policy", "local controller"]
BESIDE = 6
"""Conditions that are shown side by side at most."""
_RETRY = 1.0  # seconds between tries to reach the run
_LOG_LINES = 200


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is looked at; numbers that the run does not have are brought into its range."""

    iteration: int = 0
    """0 before the first."""
    newest: bool = True
    """Whether to go along with the run."""
    best: bool = False
    """Whether the iteration was selected as the best of a run at rest; should the run go on, the
    newest is."""
    condition: int = 0
    sample: int = 0
    t: int = 0
    source: Source = "sample"
    beside: str = ""
    """Other conditions to show: their numbers, as in `1, 3`, or `all`."""
    topic: str = plots.TOPICS[0]


@dataclass(frozen=True, eq=False)
class Replay:
    """One rollout to be replayed."""

    X: Array  # (T, nx)
    text: str
    """What it is, with its cost where that is known."""


class Session:
    """A run and what is selected of it. One thread at a time.

    iteration: what is selected at first; None for the best of a run at rest, and the newest of one
    that goes on. StoreError where it is not stored. clock: seconds; tests have their own.
    """

    def __init__(
        self,
        run: RunReader,
        compare: Sequence[RunReader] = (),
        *,
        iteration: int | progress.Choice | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run, self.compare = run, list(compare)
        self.selection = Selection()
        self._clock, self._tried = clock, -math.inf
        self._connection: Connection | None = None
        self._last: Status | None = None
        self._stored: tuple[Any, dict[str, str]] | None = None  # settings of a run at rest
        self._agent_views: dict[int, scene.AgentView] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._judge()
        self.select()
        self._open(iteration)

    # what the run does

    def poll(self) -> bool:
        """Look for what is new; whether the stored files are not what they were."""
        self._reach()
        fresh = self.run.refresh()
        for other in self.compare:
            fresh = other.refresh() or fresh
        if fresh:
            self._judge()
            self.select()
        if self.selection.best and (self.connected or self.writer()):
            self.select(newest=True)
        return fresh

    def _judge(self) -> None:
        reached = self.run.results
        self._best = progress.best_iteration(reached)
        self._course = [
            text for text in (progress.summary(reached), progress.standing(reached)) if text
        ]
        self._converged = progress.converged(reached)

    @property
    def course(self) -> str:
        """How far the run has come: its best iteration, and whether it has converged."""
        return "; ".join(self._course)

    def _open(self, iteration: int | progress.Choice | None) -> None:
        """Select what is looked at first."""
        automatic = iteration is None
        if iteration is None:
            iteration = "last" if self.writer() else "best"
        n = self.run.choose(iteration)
        if n and n != self.run.last:
            self.select(iteration=n, newest=False, best=automatic)

    def _reach(self) -> None:
        if self._connection is not None:
            self._last = self._connection.status or self._last
            if self._connection.open:
                return
            self._connection.close()
            self._connection = None
        if self._clock() - self._tried >= _RETRY:
            self._tried = self._clock()
            with suppress(StoreError):
                self._connection = connect(self.run.path)
                self._last = None

    @property
    def connected(self) -> bool:
        """Whether the run's process takes commands from here."""
        return self._connection is not None and self._connection.open

    @property
    def status(self) -> Status:
        """What the run is doing; of a run that nobody makes, what it was left as."""
        if self._connection is not None and self._last is not None:
            return self._last
        last = self.run.last or 0
        total = self._total()
        if self._last is not None and not self._last.alive:
            return replace(self._last, iteration=last, commands=())
        owner = self.writer()
        if owner:
            note = f"{owner} writes to it; it can be watched from here, but not steered"
            return Status(state="running", iteration=last, total=total, note=note, commands=())
        if self._failure():
            return Status(state="failed", iteration=last, total=total, commands=())
        early = self._converged or "asynchronous" in self.run.info
        if early and self._last_line()[1].endswith("the run is done"):
            total = last  # how many iterations or snapshots there are is known at the end only
        if last >= total > 0:
            note = self._took()
            return Status(state="done", iteration=last, total=total, note=note, commands=())
        note = f"{self._took()}; go on here or with: gps resume {self.run.path}"
        return Status(state="stopped", iteration=last, total=total, note=note, commands=())

    def writer(self) -> str:
        """The process that holds the run's lock, in words; empty when it is gone or this one."""
        try:
            lock = json.loads((self.run.path / "lock").read_text())
            pid, host = int(lock["pid"]), str(lock["host"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        if host != socket.gethostname():
            return f"process {pid} on {host}"
        return f"process {pid}" if Path(f"/proc/{pid}").exists() else ""

    @property
    def settings(self) -> dict[str, str]:
        """The options that can change between iterations, with their present values."""
        if self._connection is not None and self._last is not None and self._last.settings:
            return dict(self._last.settings)
        try:
            made, last = self.run.folder.changes(), self.run.last or 0
            key = (made.options(last + 1), last)
            if self._stored is None or self._stored[0] != key:
                experiment = made.apply(self.run.experiment, last + 1)
                found = {n: live.text(s.value) for n, s in live.live_options(experiment).items()}
                self._stored = key, found
            return dict(self._stored[1])
        except GPSError:
            return {}

    def _took(self) -> str:
        """How long the stored iterations took."""
        return f"its iterations took {duration(sum(r.get('seconds', 0.0) for r in self.run.rows))}"

    def _total(self) -> int:
        """Iterations that the run is to have; 0 if unknown. The experiment is not loaded for it."""
        try:
            last, info = self.run.last or 0, self.run.info
            changed = self.run.folder.changes().options(last + 1).get("iterations")
            return int(info["experiment"]["fields"]["iterations"] if changed is None else changed)
        except (GPSError, KeyError, TypeError, ValueError):
            return 0

    def describe(self, option: str) -> str:
        """What an option is, in the words of its documentation."""
        try:
            found = live.live_options(self.run.experiment).get(option)
        except GPSError:
            return ""
        return "" if found is None else found.help

    def send(self, command: Command) -> None:
        """Tell the run something; raises ConfigError, StoreError when nobody makes it."""
        if self._connection is None:
            raise StoreError(
                "no process makes this run now"
                + (f"; {self.writer()} writes to it" if self.writer() else "; go on with it first")
            )
        self._connection.send(command)

    @property
    def can_resume(self) -> bool:
        """Whether nobody makes the run, so that it can be gone on with."""
        return not self.connected and not self.writer() and self.run.last is not None

    def resume(self, iterations: int | None = None) -> None:
        """Go on with the run, in a process of its own that outlives the page.

        iterations: the total to reach; None takes the run's. Raises StoreError.
        """
        if not self.can_resume:
            raise StoreError("the run is being made already, or has no whole iteration")
        total = self._total() if iterations is None else iterations
        if total <= (self.run.last or 0):
            raise StoreError(
                f"the run has reached its {total} iterations; give a larger number to go on"
            )
        argv = [sys.executable, "-m", "gps.cli", "resume", str(self.run.path)]
        if iterations is not None:
            argv += ["--iterations", str(iterations)]
        self._child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self._last = None

    def resume_error(self) -> str:
        """Why a run that was resumed from here ended, in its own words; empty if all is well."""
        if self._child is None or self._child.poll() in (None, 0):
            return ""
        text = b"" if self._child.stderr is None else self._child.stderr.read()
        self._child = None
        lines = [line for line in text.decode(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "the process ended without a word"

    def log(self) -> list[str]:
        """The last lines of the run's log, oldest first."""
        try:
            with open(self.run.path / "log.txt", "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 2**16))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return []
        return lines[-_LOG_LINES:]

    def errors(self) -> list[str]:
        """What has gone wrong, a line each: it stays until the run goes on without it."""
        text = ""
        if self._last is not None and self._last.state == "failed":
            text = self._last.note
        elif not self.connected and not self.writer():
            text = self._failure()
        if text and self.run.iterations:
            text += f"; go on with: gps resume {self.run.path}"
        return [*self.run.problems, *([text] if text else [])]

    def _failure(self) -> str:
        """The error that ended the run, by the last line of its log; empty if none did."""
        level, text = self._last_line()
        return text if level == "error" else ""

    def _last_line(self) -> tuple[str, str]:
        """Level and text of the last line of the log; empty if there is none."""
        lines = self.log()
        _, level, text = (*lines[-1].split(" ", 2), "", "")[:3] if lines else ("", "", "")
        return level, text

    # what is selected

    def select(self, **values: Any) -> Selection:
        """Select something else; returns what is selected now. ConfigError for wrong conditions."""
        new = replace(self.selection, **values)
        self._beside(new.beside)
        numbers = [n for n in self.run.iterations if n > 0]
        if values.keys() & {"iteration", "newest"} and "best" not in values:
            new = replace(new, best=False)
        if "iteration" in values and "newest" not in values:
            new = replace(new, newest=bool(numbers) and new.iteration >= numbers[-1])
        if new.newest or not numbers:
            iteration = numbers[-1] if numbers else 0
        else:
            iteration = min(numbers, key=lambda n: (abs(n - new.iteration), n))
        samples = self.run.samples(iteration) if iteration else 0
        new = replace(
            new,
            iteration=iteration,
            condition=_clip(new.condition, self.run.conditions),
            sample=_clip(new.sample, samples),
        )
        self.selection = replace(new, t=_clip(new.t, self._steps(new)))
        return self.selection

    def _steps(self, s: Selection) -> int:
        rollout = self.run.rollout(s.iteration, s.condition, s.sample) if s.iteration else None
        return 0 if rollout is None else len(rollout.X)

    def shown(self) -> list[int]:
        """The conditions that are shown, the selected one first."""
        s = self.selection
        return [s.condition, *(m for m in self._beside(s.beside) if m != s.condition)][:BESIDE]

    def _beside(self, text: str) -> list[int]:
        count = self.run.conditions
        if text.strip().lower() == "all":
            return list(range(count))
        words = text.replace(",", " ").split()
        wrong = [w for w in words if not w.isdecimal() or int(w) >= count]
        if wrong:
            raise ConfigError(
                f"other conditions must be numbers from 0 to {count - 1}, or all, got {wrong[0]!r}"
            )
        return list(dict.fromkeys(map(int, words)))

    def agent_view(self, m: int) -> scene.AgentView:
        """What there is to see of a condition."""
        if m not in self._agent_views:
            try:
                self._agent_views[m] = scene.agent_view_of(self.run.agent, m)
            except GPSError as error:
                self._agent_views[m] = scene.AgentView(note=str(error))
        return self._agent_views[m]

    def replay(self, m: int) -> Replay | None:
        """The selected rollout of a condition; None where there is none. SimulationError."""
        s = self.selection
        if not s.iteration:
            return None
        if s.source == "sample":
            rollout = self.run.rollout(s.iteration, m, s.sample)
            cost = self.run.cost_samples(s.iteration, m)
            if rollout is None:
                return None
            shown = "" if cost is None else f", cost {cost[s.sample].sum():.5g}"
            text = f"condition {m}, sample {s.sample} of iteration {s.iteration}{shown}"
            return Replay(rollout.X, text)
        found = self._scored(m)
        if found is None:
            return None
        text = (
            f"condition {m}, {s.source} after iteration {s.iteration} without noise, "
            f"cost {found.cost[0]:.5g}"
        )
        return Replay(found.rollouts.X[0], text)

    def _scored(self, m: int) -> Any:
        """The noise-free rollout that is selected to be replayed; see `RunReader.score_rollout`."""
        s = self.selection
        who: Literal["policy", "local"] = "policy" if s.source == "policy" else "local"
        return self.run.score_rollout(s.iteration, m, who)

    @property
    def dt(self) -> float:
        """Seconds of a time step; loads the experiment."""
        try:
            return float(self.run.agent.dt)
        except GPSError:
            return 0.05

    def sample_paths(self, m: int) -> Array | None:
        """Paths (k, T, 3) of the end points of all samples, in m."""
        points, s = self.agent_view(m).points, self.selection
        rollouts = self.run.rollouts(s.iteration, m) if s.iteration and points else None
        return (
            None if rollouts is None or points is None else scene.sample_paths(points, rollouts.X)
        )

    def policy_paths(self, m: int) -> Array | None:
        """Paths (k, T, 3) of the policy's noise-free rollout after the iteration, in m."""
        points, s = self.agent_view(m).points, self.selection
        if not s.iteration or points is None:
            return None
        try:
            found = self.run.score_rollout(s.iteration, m, "policy")
        except SimulationError:
            return None
        return None if found is None else scene.sample_paths(points, found.rollouts.X)

    def plan(self, m: int) -> tuple[Array, scene.Ellipsoids] | None:
        """The improved controller's mean path (k, T, 3), and ellipsoids of two deviations."""
        points, s = self.agent_view(m).points, self.selection
        marginals = getattr(self.run.dual(s.iteration, m), "marginals", None)
        if not s.iteration or points is None or marginals is None:
            return None
        T = len(marginals.mean)
        steps = sorted({round(t) for t in np.linspace(0, T - 1, 12)})
        some = scene.marginal_ellipsoids(points, marginals.mean, marginals.cov, steps)
        return scene.mean_path(points, marginals.mean), some

    def targets(self, m: int) -> tuple[scene.Ball, ...]:
        """Targets and obstacles of the experiment's costs: as places, and as joint positions."""
        try:
            e = self.run.experiment
            held = [e.cost] if e.measure is None else [e.cost, e.measure]
            layout = self.run.layout
            return (
                *scene.targets_of(held, layout),
                *scene.joint_targets_of(held, self.agent_view(m), layout),
            )
        except GPSError:
            return ()

    def pictures(self) -> list[tuple[str, Images, Array | None]]:
        """What the cameras saw at the selected step: name, picture (height, width, 3), and the
        policy's feature points (k, 2) as column and row in pixels, where it has some."""
        s = self.selection
        frame = self.run.image(s.iteration, s.condition, s.sample, s.t) if s.iteration else None
        if frame is None:
            return []
        names = tuple(getattr(getattr(self.run.agent, "config", None), "cameras", ()) or ())
        points = feature_points(self.run.policy(s.iteration), frame)
        found = []
        for k in range(frame.shape[-1] // 3):
            name = names[k] if k < len(names) else f"camera {k}"
            found.append((str(name), frame[..., 3 * k : 3 * k + 3], points))
        return found

    # plots

    def progress(self) -> list[Plot]:
        """The course of the run, and of those that it is compared with.

        The selected iteration is marked where it is not the newest.
        """
        found, s = plots.progress([self.run, *self.compare]), self.selection
        if s.newest:
            return found
        return [
            replace(p, marker=float(s.iteration))
            if isinstance(p, plots.LinePlot) and plots.axis_of(p) == "iteration"
            else p
            for p in found
        ]

    def inspector(self) -> list[Plot]:
        """What the selected iteration found for the selected condition, of one topic."""
        s = self.selection
        if not s.iteration:
            return []
        shown = None
        if s.topic == "trajectory" and s.source != "sample":
            found = self._scored(s.condition)
            shown = None if found is None else (s.source, found.rollouts)
        return plots.topic(s.topic, self.run, s.iteration, s.condition, s.sample, s.t, shown)

    def relatives(self) -> list[Path]:
        """Other runs beside this one, which it can be compared with."""
        here = self.run.path.resolve()
        taken = {here, *(other.path.resolve() for other in self.compare)}
        try:
            found = sorted(p for p in here.parent.iterdir() if (p / "experiment.json").is_file())
        except OSError:
            return []
        return [p for p in found if p.resolve() not in taken]

    def add(self, path: Path) -> None:
        """Compare with another run; raises StoreError."""
        other = RunReader(path)
        other.refresh()
        self.compare.append(other)

    def close(self) -> None:
        """Hang up; the run goes on."""
        if self._connection is not None:
            self._connection.close()


def feature_points(policy: Any, frame: Images) -> Array | None:
    """The feature points (k, 2) that a policy sees in pictures, as column and row in pixels.

    A point lies between the middles of the outermost fields that the convolutions look at.
    """
    encoder = getattr(policy, "encoder", None)
    if encoder is None or tuple(getattr(encoder, "image_shape", ())) != frame.shape:
        return None
    field, stride, sizes = 1, 1, np.array([frame.shape[1], frame.shape[0]])
    for kernel, step in zip(encoder.config.kernels, encoder.config.strides, strict=True):
        field, stride = field + (kernel - 1) * stride, stride * step
        sizes = (sizes - kernel) // step + 1
    at = np.asarray(encoder.points(frame)).reshape(2, -1).T  # n times x, then n times y
    pixels: Array = (field - 1) / 2 + (at + 1) / 2 * (sizes - 1) * stride
    return pixels


def _clip(value: int, count: int) -> int:
    return max(0, min(int(value), count - 1))


def status_line(status: Status, connected: bool) -> str:
    """A status in one line, for people."""
    of = f" of {status.total}" if status.total else ""
    place = f"iteration {status.iteration}{of}"
    parts = [f"{status.state}, {place}"]
    if status.doing:
        parts.append(status.doing)
    if connected and status.state in ("running", "pausing", "stopping"):
        expected = "" if math.isnan(status.expected) else f" of about {status.expected:.1f} s"
        parts.append(f"{status.elapsed:.1f} s{expected}")
        if not math.isnan(status.remaining):
            parts.append(f"{duration(status.remaining)} left in all")
    elif connected and status.state in ("starting", "paused"):
        parts.append(f"for {duration(status.elapsed)}")
    if status.running_for:
        parts.append(f"{duration(status.running_for)} since the start")
    if status.note:
        parts.append(status.note)
    return "; ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as `12 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


__all__ = ["SOURCES", "Replay", "Selection", "Session", "feature_points", "status_line"]
