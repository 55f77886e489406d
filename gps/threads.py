"""One thread per task: with more, sums are split differently and the last bits change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)


def single_thread_environment() -> dict[str, str]:
    """Environment of a worker process; also the numba cache of this process, if one is set."""
    env = dict.fromkeys(THREAD_VARIABLES, "1")
    if "NUMBA_CACHE_DIR" in os.environ:
        env["NUMBA_CACHE_DIR"] = os.environ["NUMBA_CACHE_DIR"]
    return env


@contextmanager
def one_thread() -> Iterator[None]:
    """Pin BLAS and torch to one thread inside the block, and restore what was set before."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(before)
