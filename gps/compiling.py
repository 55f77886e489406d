"""How kernels are compiled, and that it is said when one is.

`kernel` decorates a function that numba compiles at its first call and keeps on disk; `inner` one
that only kernels call; `inlined` one that becomes a part of each caller, which spares a function
with many array arguments and one or two callers from being compiled, linked and optimised again at
every level of calls. All release the lock of the interpreter.

A kernel that has to be compiled logs that it is, on "gps.compiling" at level INFO; one that is
found on disk does not. Nothing of this runs when a compiled kernel is called.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

from numba import njit
from numba.core import event

__all__ = ["inlined", "inner", "kernel"]

log = logging.getLogger(__name__)

kernel: Any = partial(njit, cache=True, nogil=True, no_cfunc_wrapper=True)
inner: Any = partial(kernel, no_cpython_wrapper=True)
inlined: Any = partial(kernel, inline="always")

_SECONDS = {
    "trial": 5,
    "search": 8,
    "search_per_step": 9,
    "kalman_filter": 4,
    "smooth": 3,
    "update": 2,
}
"""About how long the larger kernels take, with those that they call; others about a second."""


class _Announcement(event.Listener):
    """Logs the compilations that a call from Python causes, not those of the kernels inside."""

    def __init__(self) -> None:
        self.depth, self.began = 0, 0.0

    def on_start(self, start: event.Event) -> None:
        """numba holds a lock: one compilation at a time."""
        self.depth += 1
        if self.depth == 1:
            self.began = time.perf_counter()
            function = start.data["dispatcher"].py_func
            if function.__module__.startswith("gps."):
                log.info(
                    "compiling %s.%s once, about %d s",
                    function.__module__,
                    function.__name__,
                    _SECONDS.get(function.__name__, 1),
                )

    def on_end(self, end: event.Event) -> None:
        """How long it took, for those who look closely."""
        self.depth -= 1
        if self.depth == 0:
            took = time.perf_counter() - self.began
            log.debug("compiled %s in %.1f s", end.data["dispatcher"].py_func.__name__, took)


event.register("numba:compile", _Announcement())
