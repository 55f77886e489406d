"""Ctrl-C and its like while a run is shown."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Let Ctrl-C wait until the end of the block.

    Processes and threads that start inside never see it. A terminal sends it to all processes of
    the command, and workers that die of it would end the iteration that is to be finished.
    """
    if sys.platform == "win32":
        yield
        return
    # starting the tracker unblocks the signal again; so it must not be started by the first worker
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Interrupt:
    """The first Ctrl-C asks for a stop after the iteration, the second stops at once."""

    def __init__(
        self, what: str = "this iteration", on_request: Callable[[], None] = lambda: None
    ) -> None:
        self.requested = False
        self._what, self._on_request = what, on_request
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        # a batch system that ends a job sends SIGTERM, a terminal that is closed SIGHUP
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = vars(signal).get(name)
            if number is None or (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
                continue  # not on this system, or started with nohup
            with suppress(ValueError):  # not in the main thread: Ctrl-C does not arrive here
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._on_request()
        # print may be in the middle of a line of its own
        text = f"\nstopping after {self._what} is stored; Ctrl-C again stops at once\n"
        with suppress(OSError):  # the terminal may be closed
            os.write(2, text.encode())
