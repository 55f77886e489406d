"""What made a run: experiment.json, versions of packages, and the commit of a checkout."""

from __future__ import annotations

import json
import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from gps import __version__
from gps.errors import StoreError
from gps.pipeline.files import reason

SCHEMA_VERSION = 3
"""Of experiment.json and of iteration files."""
_PACKAGES = ("numpy", "scipy", "torch", "mujoco", "numba", "h5py", "dask", "distributed")
_ENVIRONMENTS = ("gymnasium", "gymnasium-robotics", "dm-control")


def read_facts(folder: Path) -> dict[str, Any]:
    """The contents of a run's experiment.json; StoreError when the folder holds no run that this
    gps reads."""
    path = folder / "experiment.json"
    if not path.is_file():
        what = "is not a run folder: it has no experiment.json"
        raise StoreError(f"{folder} {what if folder.exists() else 'does not exist'}")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {reason(error)}") from error
    if not isinstance(facts, dict) or facts.get("schema") != "gps experiment":
        raise StoreError(f"{path} was not written by gps")
    if facts.get("schema_version") != SCHEMA_VERSION:
        found = facts.get("versions")
        raise StoreError(
            other_version(folder, found.get("gps") if isinstance(found, dict) else None)
        )
    return facts


def other_version(path: Path, written: object) -> str:
    """That another version of gps has written a folder or file, and which one to install."""
    name = "another version of gps" if written is None else f"gps {written}"
    hint = "" if written is None else f": pip install guided-policy-search=={written}"
    return (
        f"{path} was written by {name}, which gps {__version__} does not read; use that "
        f"version{hint}"
    )


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on; of those with environments, which come
    from their packages in every run, if they are installed."""
    found = {"gps": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    for package in _ENVIRONMENTS:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
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
