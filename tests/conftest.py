"""How the tests are shared out when several processes run them: `pytest -n 2`."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ALONE = (
    "parallel",
    "gui/test_browser.py",
    "gui/test_commands.py",
    "pipeline/test_asynchronous.py::test_on_dask",
    "pipeline/test_steering.py",
    "pipeline/test_disk.py",
    "pipeline/test_memory_run.py::test_stored_resumed_and_shared_the_same_bytes",
    "pipeline/test_runner.py::test_a_killed_run_resumes_to_the_same_bytes",
    "pipeline/test_sampling.py::test_workers_with_several_threads_give_the_serial_bytes",
    "pipeline/test_sampling.py::test_a_scheduler_without_workers_is_said",
    "pipeline/test_vision_run.py::test_two_processes_give_the_same_bytes",
    "test_cli.py",
)
"""Tests that start processes and look at clocks: one at a time, in one process. Folders, files and
functions below tests/; a new one that starts workers, or waits for what another process does,
belongs here. Whatever else starts a process (an example, say) only waits for its end."""

LONG = ("test_breadth.py", "test_examples.py", "control/test_batch.py", "test_readme.py")
"""Files that take long, which nobody should be left with at the end."""


def pytest_configure() -> None:
    """What nohup and `&` ignore would be ignored by every process that a test starts."""
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


_KERNELS = Path(__file__).parent.parent / "gps" / "control" / "__pycache__"
_COMPILE = "import sys, gps\nfor name in sys.argv[1:]: list(gps.run(gps.load(name), iterations=1))"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Compile once, before the test processes start: they would all compile the same kernels."""
    if any(_KERNELS.glob("*.nbi")):
        return
    print("compiling the kernels ...", flush=True)
    # those that two processes share are compiled twice, by both at the same time
    halves = ("point_mass", "point_mass_policy"), ("disc_cost", "cartpole_swingup")
    argv = [sys.executable, "-c", _COMPILE]
    for process in [subprocess.Popen([*argv, *half]) for half in halves]:
        process.wait()  # whether it went well, the tests will tell


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes the longest comes first."""
    groups = ("processes", *(f"tests/{name}" for name in LONG))
    order = {group: n for n, group in enumerate(groups)}
    items.sort(key=lambda item: order.get(_group(item.nodeid), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """All others go file by file to whoever has nothing to do."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    config.option.loadscopereorder = False
    return Scheduling(config, log)


def _group(nodeid: str) -> str:
    """`processes`, or the file of a test."""
    file = nodeid.partition("::")[0]
    place = nodeid.partition("/")[2].partition("[")[0]
    alone = any(place == name or place.startswith((f"{name}/", f"{name}::")) for name in ALONE)
    return "processes" if alone else file
