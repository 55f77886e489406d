"""What made a run: versions of packages, and the commit of a checkout."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from gps import __version__

_PACKAGES = ("numpy", "scipy", "torch", "mujoco", "numba", "h5py", "dask", "distributed")


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on."""
    found = {"gps": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def git_commit(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that a folder lies in, and whether it was changed; None outside."""

    def git(*argv: str) -> str:
        command = ["git", "-C", str(folder), *argv]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        if not git("ls-files", "--error-unmatch", __file__):
            return None
        changed = bool(git("status", "--porcelain", "-uno"))
        return {"commit": git("rev-parse", "HEAD"), "changed": changed}
    except (OSError, subprocess.SubprocessError):
        return None
