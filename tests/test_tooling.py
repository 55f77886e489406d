"""Lint, format and types of the whole repository."""

import os
import runpy
import subprocess
import sys
import zipfile
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


def test_mypy(tmp_path):
    """On an installed copy, where gps.agents, gps.hyperparams and gps.data are in their places."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    copied = ("gps", "agents", "hyperparams", "data", "setup.cfg", "pyproject.toml", "README.md")
    for name in (*copied, "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    argv = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", tmp_path]
    check("pip", *argv, source, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(target)
    out = check(
        *("mypy", "-p", "gps", "--config-file", ROOT / "setup.cfg"),
        *("--cache-dir", ROOT / ".mypy_cache", "--no-error-summary"),
        cwd=tmp_path,
        MYPYPATH=str(target),
    )
    assert out == ""


@pytest.mark.parametrize("name", ALONE)
def test_what_runs_alone_is_there(name):
    """A test that was renamed or moved must not leave the group without a word."""
    place, _, function = name.partition("::")
    path = ROOT / "tests" / place
    assert path.exists()
    assert not function or f"def {function}(" in path.read_text()
