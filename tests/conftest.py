"""How the tests are shared out when several processes run them: `pytest -n 2`."""

from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_ALONE = ("parallel", "gui", "pipeline", "test_cli.py")
"""Tests that start processes and look at clocks: one at a time, in one process."""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """What `-n` does if nothing else is said."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist, config.option.loadscopereorder = "loadgroup", False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that start processes first, as they take the longest; all others file by file."""
    groups = {item: _group(item.path.relative_to(_HERE)) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: groups[item] != "processes")


def _group(path: Path) -> str:
    return "processes" if path.parts[0] in _ALONE else str(path)
