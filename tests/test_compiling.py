"""Kernels that have to be compiled are announced, once, and those found on disk are not."""

import logging
import os
import subprocess
import sys

import numba
import pytest

from gps.compiling import inlined, inner, kernel


def outer_and_inside(module):
    """Two functions, one of which calls the other, as if they were those of a package."""

    def inside(x):
        return x + 1

    inside.__module__ = module
    compiled = numba.njit(inside)

    def outside(x):
        return compiled(x) * 2

    outside.__module__ = module
    return numba.njit(outside)


@pytest.mark.parametrize(("module", "said"), [("gps.some_kernels", 1), ("elsewhere", 0)])
def test_the_first_call_is_announced(module, said, caplog):
    function = outer_and_inside(module)
    with caplog.at_level(logging.INFO, logger="gps.compiling"):
        for value in (1, 2, 3):
            assert function(value) == 2 * (value + 1)
    text = f"compiling {module}.outside once, about 1 s"
    assert [r.getMessage() for r in caplog.records] == [text] * said


def test_kernels_on_disk_are_not_announced(tmp_path):
    code = (
        "import logging, sys; logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n"
        "import numpy as np; from gps.linalg import half_logdet; print(half_logdet(np.eye(2)))"
    )
    run = [sys.executable, "-c", code]
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    texts = [
        subprocess.run(run, env=env, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert ["compiling gps.linalg.half_logdet once" in text for text in texts] == [True, False]
    assert all("0.0" in text for text in texts)


def test_kernels_hold_no_lock_and_inner_ones_work_inside():
    @inlined
    def one(x):
        return x + 1.0

    @inner
    def two(x):
        return one(x) * 2.0

    @kernel
    def three(x):
        return two(x) + one(x)

    assert three(1.0) == 6.0
    assert all(k.targetoptions["nogil"] for k in (one, two, three))
