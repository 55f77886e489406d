"""How much memory this process has held."""

from __future__ import annotations

import math
import re

_STATUS = "/proc/self/status"
_PEAK = re.compile(rb"VmHWM:\s*(\d+) kB")


def peak() -> float:
    """The most resident memory that this process has held so far, in bytes.

    NaN on systems without Linux's /proc. What getrusage gives is not asked: for a process that was
    started by another one it counts the memory of that one too.
    """
    try:
        with open(_STATUS, "rb") as file:
            found = _PEAK.search(file.read())
    except OSError:
        return math.nan
    return 1024.0 * int(found[1]) if found else math.nan
