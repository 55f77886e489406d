"""Lint, format and types of the whole repository."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALONE = runpy.run_path(str(ROOT / "tests" / "conftest.py"))["ALONE"]


def check(*argv, cwd=ROOT, **env):
    """Run a tool of this environment; its output is the failure's message."""
    result = subprocess.run(
        [sys.executable, "-m", *map(str, argv)],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        pytest.fail(f"{' '.join(map(str, argv))}\n{result.stdout}{result.stderr}", pytrace=False)
    return result.stdout


def test_ruff_check():
    check("ruff", "check", ".")


def test_ruff_format():
    check("ruff", "format", "--check", ".")


def test_mypy():
    assert check("mypy", "--no-error-summary") == ""


@pytest.mark.parametrize("name", ["agents", "hyperparams", "data"])
def test_mypy_finds_the_packages_that_lie_beside_gps(name):
    assert (ROOT / ".mypy" / "gps" / name).resolve() == ROOT / name
    assert f"gps.{name}" in (ROOT / "setup.cfg").read_text().partition("[mypy]")[2]


@pytest.mark.parametrize("name", ALONE)
def test_what_runs_alone_is_there(name):
    """A test that was renamed or moved must not leave the group without a word."""
    place, _, function = name.partition("::")
    path = ROOT / "tests" / place
    assert path.exists()
    assert not function or f"def {function}(" in path.read_text()
