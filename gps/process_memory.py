"""Peak resident memory of this process."""

from __future__ import annotations

import math
import re

_STATUS = "/proc/self/status"
_PEAK = re.compile(rb"VmHWM:\s*(\d+) kB")


def peak() -> float:
    """Peak resident memory of this process so far, in bytes; NaN on systems without Linux's /proc.

    getrusage is no substitute: for a child process it counts the memory of its parent too.
    """
    try:
        with open(_STATUS, "rb") as file:
            found = _PEAK.search(file.read())
    except OSError:
        return math.nan
    return 1024.0 * int(found[1]) if found else math.nan
