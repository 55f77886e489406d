import math
import os
import subprocess
import sys

import numpy as np
import pytest

from gps import process_memory
from gps.algorithms.state import GPSState
from gps.execution import Serial
from gps.pipeline import runner, store

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
CHILD = """
import subprocess, sys, numpy as np
from gps import process_memory
held = np.ones(30_000_000)  # 240 MB
code = "from gps import process_memory; print(process_memory.peak())"
done = subprocess.run([sys.executable, "-c", code], capture_output=True)
print(process_memory.peak(), done.stdout)
del held
print(process_memory.peak())
"""


def test_the_peak_is_this_processes_own_and_stays():
    out = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    first, second = out.stdout.splitlines()
    held, child = first.split(" ", 1)
    child = float(child.strip("b'n\\"))
    assert 240e6 < float(held) < 600e6
    assert child < float(held) - 150e6  # it was started by one that held more
    # Linux counts pages in lots of up to 64 for every processor
    assert float(second) >= float(held) - 64 * os.sysconf("SC_PAGESIZE") * (os.cpu_count() or 1)


def test_a_system_that_does_not_tell(monkeypatch):
    monkeypatch.setattr(process_memory, "_STATUS", "/no/such/file")
    assert math.isnan(process_memory.peak())


def test_the_columns_are_not_part_of_an_iteration():
    row = runner.memory_row(Serial())
    assert row["memory_driver"] == pytest.approx(process_memory.peak(), rel=0.1)
    assert math.isnan(row["memory_worker"])
    snapshots = [
        store.Snapshot(GPSState(1, 0, (), ()), metrics={"cost_mean": 1.0, **more})
        for more in ({}, row, {k: 1.0 for k in row})
    ]
    first, *others = [store.encode(snapshot) for snapshot in snapshots]
    assert all(np.array_equal(first, other) for other in others)
