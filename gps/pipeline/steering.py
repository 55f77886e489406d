"""Steering a run in progress: pause, one iteration, repeat, other options, stop.

`Steering` is the run's side: the loop asks it between iterations what to do. Commands come from any
thread of the same process by `send`, and from other processes of the same user through a socket in
a private folder, which `connect` finds by the run folder: that is how `gps gui` reaches a run.

A message is one line of JSON. To the run: {"id": 1, "command": {"kind": "pause"}}; from it: the
answer {"id": 1, "error": null}, and {"status": {...}} whenever that has changed. The socket is
readable for its owner only. A peer that does not read is dropped: it never holds up the run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import selectors
import socket
import stat
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from gps.errors import ConfigError, GPSError, StoreError, choices, one_line
from gps.fields import Config, Range
from gps.pipeline import changes as live
from gps.pipeline.experiment import Experiment

log = logging.getLogger(__name__)

KINDS = ("run", "pause", "step", "repeat", "change", "stop")
_TICK = 0.1  # seconds between looks at what else has happened: Ctrl-C, a lost peer
_BEAT = 0.25  # seconds between messages of a status that changes all the time
_LONGEST = 2**16  # bytes of one message
_BACKLOG = 2**20  # bytes that a peer may leave unread


@dataclass(frozen=True, kw_only=True)
class Command(Config):
    """A command to a run."""

    kind: Literal["run", "pause", "step", "repeat", "change", "stop"]
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
        "starting", "running", "pausing", "paused", "stopping", "stopped", "done", "failed"
    ]
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
    """The error that ended the run, or what a pause waits for."""
    commands: tuple[str, ...] = KINDS
    """The kinds of commands that this run takes."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """The options that can change, with their present values as text."""

    @property
    def alive(self) -> bool:
        """Whether the run still takes commands."""
        return self.state not in ("stopped", "done", "failed")


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
        self._note: Callable[[str], None] = lambda text: None
        self._server: _Server | None = None

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
        self._note(f"command: {_words(command)}")

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

    def end(self, error: BaseException | None = None, hint: str = "") -> None:
        """The run is over; error: what ended it, None if it was stopped or is done."""
        with self._changed:
            self._over = time.monotonic()
            if error is not None:
                self._update(state="failed", doing="", note=f"{_cause(error)}{hint}")
            else:
                status = self._status
                whole = not status.total or status.iteration >= status.total
                early = self._stop and (not whole or "pause" not in status.commands)
                self._update(state="stopped" if early else "done", doing="", note="")
                if not early and "pause" not in status.commands:
                    self._update(total=status.iteration)  # of snapshots, which was a guess

    def serve(self, run: Path, note: Callable[[str], None] = lambda text: None) -> None:
        """Listen for `connect` to the run in this folder; a warning in the log when that fails.

        note: takes a line for every command.
        """
        self._note = note
        if self._server is not None:
            return
        try:
            self._server = _Server(self, run)
        except OSError as error:  # the run continues without
            log.warning("gps gui cannot steer this run: %s", error.strerror or error)

    def close(self) -> None:
        """Tell the peers the last status and let them go."""
        if self._server is not None:
            self._server.close()
            self._server = None

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


# --- between processes ---------------------------------------------------------------------------


def socket_path(run: Path) -> Path:
    """Where the run in this folder listens: a name made from its path, in a private folder."""
    name = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:24]
    return _private_folder() / f"{name}.sock"


def _private_folder() -> Path:
    """A folder that only this user can enter; OSError if somebody else's is in its place."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    folder = base / f"gps-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise PermissionError(0, f"{folder} is not a folder of this user alone")
    return folder


class _Peer:
    """One connection of the server's."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = b""
        self.unsent = b""
        self.last_sent: str = ""


class _Server:
    """The thread that talks to the peers of a run."""

    def __init__(self, steering: Steering, run: Path) -> None:
        self._steering, self._path = steering, socket_path(run)
        with suppress(FileNotFoundError):
            self._path.unlink()  # of a process that was killed: the run's lock is ours
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        self._listener.listen(8)
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._bell, bell = socket.socketpair()  # wakes the thread when the run ends
        self._selector.register(bell, selectors.EVENT_READ)
        self._woken = bell
        self._peers: list[_Peer] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="gps-control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._bell.close()
        self._thread.join(timeout=2.0)
        with suppress(OSError):
            self._path.unlink()

    def _work(self) -> None:
        try:
            while not self._closing.is_set():
                # without peers there is nothing to do but to wait for one
                for key, _ in self._selector.select(_BEAT if self._peers else None):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.data is not None:
                        self._receive(key.data)
                if self._peers:
                    self._tell()
            self._tell()
        except Exception:  # a fault here must not take the run along
            log.warning("gps gui has lost this run", exc_info=True)
        finally:
            for peer in list(self._peers):
                self._drop(peer)
            self._selector.close()
            self._listener.close()
            self._woken.close()

    def _accept(self) -> None:
        with suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            peer = _Peer(connection)
            self._selector.register(connection, selectors.EVENT_READ, peer)
            self._peers.append(peer)

    def _receive(self, peer: _Peer) -> None:
        try:
            data = peer.connection.recv(_LONGEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        peer.received += data
        *lines, peer.received = peer.received.split(b"\n")
        if not data or len(peer.received) > _LONGEST:
            self._drop(peer)
            return
        for line in lines:
            self._answer(peer, line)

    def _answer(self, peer: _Peer, line: bytes) -> None:
        number = None
        try:
            message = json.loads(line)
            number = message.get("id")
            values = message["command"]
            known = {f.name for f in fields(Command)}
            if bad := [k for k in values if k not in known]:
                raise ConfigError(choices("entry of a command", str(bad[0]), sorted(known)))
            self._steering.send(Command(**values))
            error = None
        except GPSError as wrong:
            error = str(wrong)
        except (ValueError, KeyError, TypeError, AttributeError) as wrong:
            error = f"no command: {wrong}"
        self._put(peer, {"id": number, "error": error})

    def _tell(self) -> None:
        line = json.dumps({"status": _plain(self._steering.status)})
        for peer in list(self._peers):
            if line != peer.last_sent:
                peer.last_sent = line
                self._send(peer, line)
            elif peer.unsent:
                self._send(peer, "")

    def _put(self, peer: _Peer, message: Any) -> None:
        self._send(peer, json.dumps(message))

    def _send(self, peer: _Peer, line: str) -> None:
        peer.unsent += f"{line}\n".encode() if line else b""
        try:
            while peer.unsent:
                peer.unsent = peer.unsent[peer.connection.send(peer.unsent) :]
        except BlockingIOError:
            if len(peer.unsent) > _BACKLOG:
                self._drop(peer)
        except OSError:
            self._drop(peer)

    def _drop(self, peer: _Peer) -> None:
        if peer in self._peers:
            self._peers.remove(peer)
            with suppress(KeyError, ValueError):
                self._selector.unregister(peer.connection)
            peer.connection.close()


def _plain(status: Status) -> dict[str, Any]:
    values = asdict(replace(status, settings={})) | {"settings": dict(status.settings)}
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def _status(values: Mapping[str, Any]) -> Status:
    known = {f.name for f in fields(Status)}
    kept: dict[str, Any] = {
        k: math.nan if v is None else v for k, v in values.items() if k in known
    }
    kept["commands"] = tuple(kept.get("commands", KINDS))
    return Status(**kept)


class Connection:
    """The other side: a run in another process of this machine. Close it after use."""

    def __init__(self, run: Path) -> None:
        """Connect to the run in a folder; StoreError when none can be reached there."""
        self._lock = threading.Lock()
        self._status: Status | None = None
        self._answers: dict[int, str | None] = {}
        self._changed = threading.Condition(self._lock)
        self._count = 0
        self._open = True
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(str(socket_path(run)))
        except OSError as error:
            self._socket.close()
            raise StoreError(
                f"no process of this machine that can be reached is running {run}"
            ) from error
        self._thread = threading.Thread(target=self._read, name="gps-connection", daemon=True)
        self._thread.start()

    @property
    def open(self) -> bool:
        """Whether the run's process is still there."""
        return self._open

    @property
    def status(self) -> Status | None:
        """The last status heard of; None before the first."""
        with self._lock:
            return self._status

    def send(self, command: Command, timeout: float = 10.0) -> None:
        """Hand in a command and wait for the answer; ConfigError if it is refused, StoreError if
        the run does not answer."""
        values = {"kind": command.kind, "after": command.after}
        values |= {"options": dict(command.options), "seed": command.seed}  # type: ignore[dict-item]
        with self._changed:
            self._count += 1
            number = self._count
            line = json.dumps({"id": number, "command": values}) + "\n"
            try:
                self._socket.sendall(line.encode())
            except OSError as error:
                raise StoreError("the run's process is gone") from error
            there = self._changed.wait_for(
                lambda: number in self._answers or not self._open, timeout
            )
            if not there or number not in self._answers:
                raise StoreError("the run does not answer" if self._open else "the run has ended")
            error_text = self._answers.pop(number)
        if error_text is not None:
            raise ConfigError(error_text)

    def close(self) -> None:
        """Hang up; the run continues."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=2.0)

    def _read(self) -> None:
        received = b""
        while True:
            try:
                data = self._socket.recv(_LONGEST)
            except OSError:
                data = b""
            received += data
            *lines, received = received.split(b"\n")
            with self._changed:
                for line in lines:
                    message = json.loads(line)
                    if "status" in message:
                        self._status = _status(message["status"])
                    else:
                        self._answers[message["id"]] = message["error"]
                self._open = bool(data)
                self._changed.notify_all()
            if not data:
                return


def connect(run: str | Path) -> Connection:
    """Reach the run that another process of this machine and user executes in a folder.

    Raises StoreError when there is none.
    """
    return Connection(Path(run))


__all__ = ["Command", "Connection", "Status", "Steering", "connect", "socket_path"]
