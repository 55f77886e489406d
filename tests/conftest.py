"""How the tests are shared out when several processes run them: `pytest -n 2`."""

import signal
from pathlib import Path
from typing import Any

import pytest

_ALONE = (
    "parallel",
    "gui",
    "test_cli.py",
    *(
        f"pipeline/test_{name}.py"
        for name in (
            *("asynchronous", "steering", "disk", "memory_run"),
            *("runner", "siblings", "sampling", "vision_run"),
        )
    ),
)
"""Tests that start processes and look at clocks: one at a time, in one process. Folders and files
below tests/; a new one that starts processes belongs here."""


def pytest_configure() -> None:
    """What nohup and `&` ignore would be ignored by every process that a test starts."""
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that start processes come first, as they take the longest."""
    items.sort(key=lambda item: _group(item.nodeid) != "processes")


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
    place = Path(*Path(file).parts[1:]).as_posix()
    alone = any(place == name or place.startswith(f"{name}/") for name in _ALONE)
    return "processes" if alone else file
