"""What a run is doing, and commands to it: from its process where there is one, else its files."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from gps.errors import GPSError, StoreError
from gps.gui.run_reader import RunReader
from gps.pipeline import changes as live
from gps.pipeline import progress
from gps.pipeline.lock import Owner
from gps.pipeline.steering import NOT_LEARNING, Command, Status
from gps.pipeline.steering_socket import Connection, connect

_RETRY = 1.0  # seconds between attempts to connect
_LOG_LINES = 200


class RunMonitor:
    """Status, options, log and commands of a run. One thread at a time.

    clock: seconds; tests have their own.
    """

    def __init__(self, run: RunReader, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.run = run
        self._clock, self._tried = clock, -math.inf
        self._connection: Connection | None = None
        self._last: Status | None = None
        self._stored: tuple[Any, dict[str, str]] | None = None  # settings of a run at rest
        self._child: subprocess.Popen[bytes] | None = None
        self.evaluate_progress()

    def evaluate_progress(self) -> None:
        """Read the best iteration and convergence from the stored iterations."""
        results = self.run.results
        lines = (progress.summary(results), progress.standing(results))
        self._progress = "; ".join(line for line in lines if line)
        self._converged = progress.converged(results)

    @property
    def progress(self) -> str:
        """The training progress in one line: best iteration, convergence."""
        return self._progress

    def reconnect(self) -> None:
        """Take the newest status of the run's process, and connect to it where it has appeared."""
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

    def close(self) -> None:
        """Disconnect; the run continues."""
        if self._connection is not None:
            self._connection.close()

    # status

    @property
    def connected(self) -> bool:
        """Whether the run's process takes commands from here."""
        return self._connection is not None and self._connection.open

    @property
    def active(self) -> bool:
        """Whether some process is making the run."""
        return self.connected or bool(self.writer())

    @property
    def status(self) -> Status:
        """What the run is doing, or the state that it was left in."""
        if self._connection is not None and self._last is not None:
            return self._last
        last = self.run.last or 0
        if self._last is not None and not self._last.alive:
            return replace(self._last, iteration=last, commands=())
        at_rest = Status(state="stopped", iteration=last, total=self._total(), commands=())
        owner = self.writer()
        if owner:
            note = f"{owner} writes to it; it can be watched from here, but not steered"
            return replace(at_rest, state="running", note=note)
        if self._failure():
            return replace(at_rest, state="failed")
        text = self._last_line()[1]
        if text.startswith(f"{NOT_LEARNING}: "):
            return replace(at_rest, state="not learning", note=text.partition(": ")[2])
        if self._ended_early():
            at_rest = replace(at_rest, total=last)
        took = f"its iterations took {duration(sum(r.get('seconds', 0.0) for r in self.run.rows))}"
        if last >= at_rest.total > 0:
            return replace(at_rest, state="done", note=took)
        return replace(at_rest, note=f"{took}; resume here or with: gps resume {self.run.path}")

    def _ended_early(self) -> bool:
        """Whether the number of iterations, or of snapshots, was known at the end only."""
        early = self._converged or "asynchronous" in self.run.info
        return early and self._last_line()[1].endswith("the run is done")

    def writer(self) -> str:
        """The process that holds the run's lock, in words; empty when it is gone."""
        try:
            owner = Owner.read((self.run.path / "lock").read_bytes())
        except OSError:
            return ""
        gone = owner is None or not (owner.host or Path(f"/proc/{owner.pid}").exists())
        return "" if gone else str(owner)

    def _total(self) -> int:
        """Iterations that the run is to have; 0 if unknown. The experiment is not loaded for it."""
        try:
            last, info = self.run.last or 0, self.run.info
            changed = self.run.folder.changes().options(last + 1).get("iterations")
            return int(info["experiment"]["fields"]["iterations"] if changed is None else changed)
        except (GPSError, KeyError, TypeError, ValueError):
            return 0

    # options

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

    def describe(self, option: str) -> str:
        """The documentation of an option."""
        try:
            found = live.live_options(self.run.experiment).get(option)
        except GPSError:
            return ""
        return "" if found is None else found.help

    # commands

    def send(self, command: Command) -> None:
        """Send a command to the run; raises ConfigError, StoreError when no process makes it."""
        if self._connection is None:
            raise StoreError(
                "no process makes this run now"
                + (f"; {self.writer()} writes to it" if self.writer() else "; resume it first")
            )
        self._connection.send(command)

    @property
    def can_resume(self) -> bool:
        """Whether no process makes the run, and it has an iteration to resume from."""
        return not self.active and self.run.last is not None

    def resume(self, iterations: int | None = None) -> None:
        """Resume the run in a process of its own that outlives the page.

        iterations: the total to reach; None takes the run's. Raises StoreError.
        """
        if not self.can_resume:
            raise StoreError("the run is being made already, or has no whole iteration")
        total = self._total() if iterations is None else iterations
        if total <= (self.run.last or 0):
            raise StoreError(
                f"the run has reached its {total} iterations; give a larger number to resume it"
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
        """The last line of a resumed process that failed; empty if all is well."""
        if self._child is None or self._child.poll() in (None, 0):
            return ""
        text = b"" if self._child.stderr is None else self._child.stderr.read()
        self._child = None
        lines = [line for line in text.decode(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "the process ended without a message"

    # log and errors

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
        """Files that cannot be read, and the error that ended the run, a line each."""
        text = ""
        if self._last is not None and self._last.state == "failed":
            text = self._last.note
        elif not self.active:
            text = self._failure()
        if text and self.run.iterations:
            text += f"; resume with: gps resume {self.run.path}"
        return [*self.run.problems, *([text] if text else [])]

    def _failure(self) -> str:
        """The error that ended the run, by the last line of its log; empty if none did."""
        level, text = self._last_line()
        return text if level == "error" else ""

    def _last_line(self) -> tuple[str, str]:
        """Level and text of the last line of the log; empty if there is none."""
        lines = self.log()
        return log_parts(lines[-1])[1:] if lines else ("", "")


def log_parts(line: str) -> tuple[str, str, str]:
    """Time, level and text of a line of a run's log; empty where it has none."""
    time_, level, text = (*line.split(" ", 2), "", "")[:3]
    return time_, level, text


def status_line(status: Status, connected: bool) -> str:
    """A status in one line."""
    of = f" of {status.total}" if status.total else ""
    parts = [f"{status.state}, iteration {status.iteration}{of}"]
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


__all__ = ["RunMonitor", "duration", "log_parts", "status_line"]
