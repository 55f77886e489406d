"""Models (MJCF) and small recorded data."""

from __future__ import annotations

from pathlib import Path

from gps.errors import ConfigError, choices

__all__ = ["MODELS", "model_names", "model_path"]

MODELS = Path(__file__).parent / "models"


def model_names() -> tuple[str, ...]:
    """Names of the models that come with the toolkit, sorted."""
    return tuple(sorted(p.stem for p in MODELS.glob("*.xml")))


def model_path(model: str) -> Path:
    """The file of a named model, or of a path that ends in .xml; ConfigError if there is none."""
    if model in model_names():
        return MODELS / f"{model}.xml"
    path = Path(model).expanduser()
    if path.suffix == ".xml":
        if path.is_file():
            return path
        raise ConfigError(f"model file {model} does not exist")
    raise ConfigError(f"{choices('model', model, model_names())}; or give a path to an .xml file")
