"""A pytest plugin, `-p without_extras`: the core's tests where the extras' packages are missing.

A test file that imports one of them, or an agent that needs one, gets a stand-in and is skipped
where it uses it; the toolkit itself gets the ModuleNotFoundError, which skips a test only where
torch or MuJoCo are needed by their name: a cost in torch, a model of MuJoCo or torch.
"""

from __future__ import annotations

import builtins
import traceback
from pathlib import Path
from typing import Any

import pytest

from gps.extras import EXTRAS

TESTS = Path(__file__).parent
MAY_NEED = ("gps/costs/torch_cost.py", "gps/control/models.py")
MISSING = {*(name for names in EXTRAS.values() for name in names), "sklearn"}

_import = builtins.__import__
_tests_run: list[bool] = []


class _StandIn:
    """Takes everything while tests are collected, and skips the test that uses it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> _StandIn:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return self._used()

    def __call__(self, *args: Any, **kwargs: Any) -> _StandIn:
        return self._used()

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()

    def _used(self) -> _StandIn:
        if _tests_run:
            pytest.skip(f"{self._name} is not installed")
        return self


def _import_or_stand_in(name: str, globals: Any = None, *rest: Any, **more: Any) -> Any:
    try:
        return _import(name, globals, *rest, **more)
    except ImportError as error:  # also that of gps.extras, for agents that need one
        cause = _missing(error)
        missing = ("" if cause is None else cause.name or "").partition(".")[0]
        if missing in MISSING and TESTS in Path((globals or {}).get("__file__") or "/").parents:
            return _StandIn(missing)
        raise


builtins.__import__ = _import_or_stand_in


def pytest_runtest_setup() -> None:
    """Collected: what is used from now on is needed."""
    _tests_run.append(True)


def _missing(error: BaseException | None) -> ModuleNotFoundError | None:
    """What could not be imported, behind an error of `gps.extras` or of a test that met one."""
    while error is not None and not isinstance(error, ModuleNotFoundError):
        error = error.__cause__ or error.__context__
    return error


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Any:
    """Skip what needs torch or MuJoCo in the files that may need it, and in no other."""
    try:
        return (yield)
    except (ImportError, AssertionError) as error:
        missing = _missing(error)
        if missing is None:
            raise
        frames = traceback.extract_tb(missing.__traceback__)
        places = [frame.filename for frame in frames if frame.filename != __file__]
        if missing.name in ("torch", "mujoco") and any(p.endswith(MAY_NEED) for p in places):
            pytest.skip(f"{missing.name} is not installed")
        raise
