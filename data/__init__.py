"""Models (MJCF) and small recorded data, and how models are found."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from gps.errors import ConfigError, choices

__all__ = ["MODELS", "located", "model_names", "model_path", "paths_from"]

MODELS = Path(__file__).parent / "models"
SUFFIXES = (".xml", ".mjb", ".urdf")
"""Endings of the files that MuJoCo reads, in small letters; capitals do as well."""

_folder: ContextVar[Path | None] = ContextVar("_folder", default=None)


def model_names() -> tuple[str, ...]:
    """Names of the models that come with the toolkit, sorted."""
    return tuple(sorted(p.stem for p in MODELS.glob("*.xml")))


@contextlib.contextmanager
def paths_from(folder: Path) -> Iterator[None]:
    """Relative paths of models count from this folder first, as in a hyperparams file there."""
    token = _folder.set(folder.absolute())
    try:
        yield
    finally:
        _folder.reset(token)


def located(model: str) -> str:
    """The text that names a model, a relative path made absolute: it means the same everywhere.

    A path counts from the folder of the hyperparams file that is being executed, then from the
    current one. What is in neither stays a path below the first, and is missing when it is read.
    """
    path = Path(model).expanduser()
    if model in model_names() or not _is_path(model) or path.is_absolute():
        return model if path.is_absolute() or not model.startswith("~") else str(path)
    here = _folder.get()
    places = [folder / path for folder in (here, Path.cwd()) if folder is not None]
    return os.path.normpath(next((p for p in places if p.is_file()), places[0]))


def _is_path(model: str) -> bool:
    """Whether a text looks like a path rather than a name."""
    separators = (os.sep, os.altsep or os.sep, "/")
    return Path(model).suffix.lower() in SUFFIXES or any(s in model for s in separators)


def model_path(model: str) -> Path:
    """The file of a named model, or of a path; ConfigError if there is none."""
    if model in model_names():
        return MODELS / f"{model}.xml"
    endings = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
    if not _is_path(model):
        raise ConfigError(
            f"{choices('model', model, model_names())}; or give a path to a file that ends in "
            f"{endings}"
        )
    path = Path(located(model))
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        where = f", looked in {path.parent}" if not path.is_dir() else ""
        raise ConfigError(f"{model}: {what}{where}; give a model file, or the name of a model")
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: the name of a model file must end in {endings}")
    return path
