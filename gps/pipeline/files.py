"""Files that are there whole or not at all, and errors of the disk in words."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from gps.fields import Kind

AnyPath = Annotated[str | Path, Kind("a path", (str, os.PathLike))]


def write_whole(path: Path, data: bytes) -> None:
    """Write a file next to its place, flush it to the disk and rename it; raises OSError."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def reason(error: BaseException) -> str:
    """An error in a few words, on one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
