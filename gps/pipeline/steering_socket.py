"""Steering a run from another process of the same user: that is how `gps gui` reaches it.

The run listens on a socket in a private folder, which `connect` finds by the run folder. A message
is one line of JSON. To the run: {"id": 1, "command": {"kind": "pause"}}; from it: the answer
{"id": 1, "error": null}, and {"status": {...}} whenever that has changed. The socket is readable
for its owner only. A peer that does not read is dropped: it never holds up the run.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import os
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from gps.errors import ConfigError, GPSError, StoreError, choices
from gps.pipeline.steering import KINDS, Command, Status, Steering

log = logging.getLogger(__name__)

_BEAT = 0.25  # seconds between messages of a status that changes all the time
_LONGEST = 2**16  # bytes of one message
_BACKLOG = 2**20  # bytes that a peer may leave unread
_SECONDS = 2.0  # that the end of a run waits for its peers at most


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


# --- the run's side ------------------------------------------------------------------------------


@contextmanager
def serving(steering: Steering, run: Path) -> Iterator[None]:
    """Listen for `connect` to the run in this folder; a warning in the log where that fails.

    At the end of the block the peers get the last status.
    """
    try:
        server = _Server(steering, run)
    except OSError as error:  # the run continues without
        log.warning("gps gui cannot steer this run: %s", error.strerror or error)
        yield
        return
    try:
        yield
    finally:
        server.close()


class _Server:
    """The thread that talks to the peers of a run, by an event loop of its own."""

    def __init__(self, steering: Steering, run: Path) -> None:
        self._steering, self._path = steering, socket_path(run)
        self._peers: dict[asyncio.StreamWriter, str] = {}  # and the last status they were sent
        with suppress(FileNotFoundError):
            self._path.unlink()  # of a process that was killed: the run's lock is ours
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(str(self._path))
        except OSError:
            self._listener.close()
            raise
        self._listener.listen(8)
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop, self._woken = self._runner.get_loop(), asyncio.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="gps-steering", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended = True
        with suppress(RuntimeError):  # the loop has ended by a fault
            self._loop.call_soon_threadsafe(self._woken.set)
        self._thread.join(timeout=_SECONDS)
        with suppress(OSError):
            self._path.unlink()

    def _work(self) -> None:
        try:
            with self._runner:
                self._runner.run(self._serve())
        except Exception:  # a fault here must not take the run along
            log.warning("gps gui has lost this run", exc_info=True)
        finally:
            self._listener.close()

    async def _serve(self) -> None:
        server = await asyncio.start_unix_server(self._peer, sock=self._listener, limit=_LONGEST)
        while not self._ended:
            with suppress(TimeoutError):  # without peers there is nothing to do but to wait for one
                await asyncio.wait_for(self._woken.wait(), _BEAT if self._peers else None)
            self._woken.clear()
            self._publish()
        server.close()
        for writer in list(self._peers):
            writer.close()
        with suppress(TimeoutError, OSError):
            closed = (writer.wait_closed() for writer in self._peers)
            await asyncio.wait_for(asyncio.gather(*closed), _SECONDS / 2)

    async def _peer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one peer until it goes; ValueError is a line that is too long."""
        self._peers[writer] = ""
        self._woken.set()
        with suppress(OSError, ValueError):
            self._publish()
            while line := await reader.readline():
                self._send(writer, json.dumps(self._answer(line)))
                self._publish()
        self._peers.pop(writer, None)
        writer.close()

    def _answer(self, line: bytes) -> dict[str, Any]:
        number = None
        try:
            message = json.loads(line)
            number = message.get("id")
            values = message["command"]
            known = {f.name for f in fields(Command)}
            if bad := [k for k in values if k not in known]:
                raise ConfigError(choices("entry of a command", str(bad[0]), sorted(known)))
            self._steering.send(Command(**values))
        except GPSError as wrong:
            return {"id": number, "error": str(wrong)}
        except (ValueError, KeyError, TypeError, AttributeError) as wrong:
            return {"id": number, "error": f"not a command: {wrong}"}
        return {"id": number, "error": None}

    def _publish(self) -> None:
        """Send the status to those who do not have it."""
        if not self._peers:
            return
        line = json.dumps({"status": _plain(self._steering.status)})
        for writer, last in list(self._peers.items()):
            if line != last:
                self._peers[writer] = line
                self._send(writer, line)

    def _send(self, writer: asyncio.StreamWriter, line: str) -> None:
        if writer.is_closing():
            return
        writer.write(f"{line}\n".encode())
        if writer.transport.get_write_buffer_size() > _BACKLOG:
            writer.transport.abort()


def _plain(status: Status) -> dict[str, Any]:
    values = asdict(replace(status, settings={})) | {"settings": dict(status.settings)}
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


# --- the other side ------------------------------------------------------------------------------


def connect(run: str | Path) -> Connection:
    """Reach the run that another process of this machine and user executes in a folder.

    Raises StoreError when there is none.
    """
    return Connection(Path(run))


class Connection:
    """The other side: a run in another process of this machine. Close it after use."""

    def __init__(self, run: Path) -> None:
        """Connect to the run in a folder; StoreError when none can be reached there."""
        self._changed = threading.Condition()
        self._status: Status | None = None
        self._answers: dict[int, str | None] = {}
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
        return self._status

    def send(self, command: Command, timeout: float = 10.0) -> None:
        """Hand in a command and wait for the answer; ConfigError if it is refused, StoreError if
        the run does not answer."""
        values = {f.name: vars(command)[f.name] for f in fields(command)}
        values["options"] = dict(command.options)
        with self._changed:
            self._count += 1
            number = self._count
            line = json.dumps({"id": number, "command": values}) + "\n"
            try:
                self._socket.sendall(line.encode())
            except OSError as error:
                raise StoreError("the run's process is gone") from error
            self._changed.wait_for(lambda: number in self._answers or not self._open, timeout)
            if number not in self._answers:
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
            self._thread.join(timeout=_SECONDS)

    def _read(self) -> None:
        with suppress(OSError), self._socket.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                with self._changed:
                    if "status" in message:
                        self._status = _status(message["status"])
                    else:
                        self._answers[message["id"]] = message["error"]
                    self._changed.notify_all()
        with self._changed:
            self._open = False
            self._changed.notify_all()


def _status(values: Mapping[str, Any]) -> Status:
    known = {f.name for f in fields(Status)}
    kept: dict[str, Any] = {
        k: math.nan if v is None else v for k, v in values.items() if k in known
    }
    kept["commands"] = tuple(kept.get("commands", KINDS))
    return Status(**kept)


__all__ = ["Connection", "connect", "serving", "socket_path"]
