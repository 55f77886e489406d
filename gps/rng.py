"""Random streams addressed by what they are for, so that the order of work does not matter."""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """The generator of, say, ("noise", iteration, condition, sample).

    The same address always gives the same draws, on whichever worker and in whatever order.
    """
    key = (zlib.crc32(purpose.encode()), *index)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
