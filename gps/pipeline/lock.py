"""Who writes to a run folder: at most one process at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gps.errors import StoreError
from gps.pipeline.files import reason

log = logging.getLogger(__name__)

_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class FolderLock:
    """A lock file held with flock(2), which the system releases when its process ends.

    The file holds the process that has it, for messages. On a file system without locks nothing is
    locked, with a warning.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def take(self) -> None:
        """Take the lock unless this object has it; StoreError when somebody else has, or where the
        file cannot be written."""
        while self._fd is None:
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise StoreError(f"cannot write {self.path}: {reason(error)}") from error
            try:
                if self._locked(fd):
                    self._sign(fd)
                    self._fd, fd = fd, -1
            except OSError as error:
                raise StoreError(f"cannot write {self.path}: {reason(error)}") from error
            finally:
                if fd >= 0:
                    os.close(fd)

    def _sign(self, fd: int) -> None:
        """Write into the locked file who has it; remove it where that fails."""
        owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        try:
            os.truncate(fd, 0)
            os.write(fd, owner.encode())
        except OSError:
            with suppress(OSError):
                self.path.unlink()
            raise

    def _locked(self, fd: int) -> bool:
        """Whether the open file is locked now and still the one in the folder; StoreError when
        another process has it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"{self.path.parent} is being written by "
                f"{Owner.read(os.pread(fd, 1000, 0)) or 'another process'}; wait for it, or stop it"
            ) from None
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            log.warning("%s: the file system has no locks; one writer at a time", self.path.parent)
        with suppress(FileNotFoundError):  # its last holder may have removed it just now
            return os.path.samestat(os.fstat(fd), os.stat(self.path))
        return False

    def release(self) -> None:
        """Remove the file and let go of the lock."""
        if self._fd is not None:
            with suppress(OSError):
                self.path.unlink()
            os.close(self._fd)
            self._fd = None


class Owner(NamedTuple):
    """The process that has signed a lock file."""

    pid: int
    host: str
    """Empty for this one."""

    @classmethod
    def read(cls, text: bytes) -> Owner | None:
        """That of a file's content; None where it holds none."""
        try:
            lock = json.loads(text)
            pid, host = int(lock["pid"]), str(lock["host"])
        except (ValueError, KeyError, TypeError):
            return None
        return cls(pid, "" if host == socket.gethostname() else host)

    def __str__(self) -> str:
        return f"process {self.pid}" + (f" on {self.host}" if self.host else "")
