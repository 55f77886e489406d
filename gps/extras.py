"""Packages that only parts of the toolkit need, the extras that install them, and what to say
where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from gps.errors import ConfigError

EXTRAS = {
    "run": (
        *("torch", "mujoco", "dask", "distributed", "h5py", "tyro", "rich", "PIL"),
        "tensorboard",
    ),
    "gui": ("viser", "mjviser", "websockets", "plotly", "matplotlib"),
    "gym": ("gymnasium",),
    "dm": ("dm_control",),
    "video": ("imageio", "imageio_ffmpeg"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
}
"""Names to import, by the extra of setup.cfg that brings them."""


class MissingPackageError(ConfigError, ImportError):
    """A part of the toolkit needs packages that are not installed; the message names the extra."""


def require(extra: str, what: str) -> None:
    """Raise MissingPackageError unless all packages of an extra are installed; imports none.

    what: the part that needs them, the subject of the message.
    """
    missing = [name for name in EXTRAS[extra] if find_spec(name) is None]
    if missing:
        raise _error(what, extra, missing)


@contextmanager
def needed_by(what: str) -> Iterator[None]:
    """A failed import of an extra's package inside the block becomes a MissingPackageError."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        for extra, names in EXTRAS.items():
            if name in names:
                raise _error(what, extra, [name]) from error
        raise


def _error(what: str, extra: str, missing: list[str]) -> MissingPackageError:
    verb = "is" if len(missing) == 1 else "are"
    return MissingPackageError(
        f"{what} needs the extra {extra!r} ({', '.join(missing)} {verb} not installed): "
        f"pip install 'guided-policy-search[{extra}]'"
    )
