"""Whether an experiment can be sent to workers, and which of its fields cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from gps.errors import ConfigError
from gps.types import iter_fields


def check(experiment: Any) -> None:
    """ConfigError that names the innermost field which cannot be sent to another process."""
    import cloudpickle

    def fault(value: Any, where: str) -> tuple[str, Exception] | None:
        try:
            cloudpickle.dumps(value)
            return None
        except Exception as error:
            inner = (fault(item, f"{where}{name}") for name, item in _parts(value))
            return next((found for found in inner if found), (where, error))

    found = fault(experiment, type(experiment).__name__)
    if found:
        where, error = found
        raise ConfigError(
            f"{where} cannot be sent to a worker ({type(error).__name__}: {error}); make it there, "
            "in build() or when it is first used, or run in one process: --executor serial"
        ) from error


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if is_dataclass(value) and not isinstance(value, type):
        yield from ((f".{name}", item) for name, item in iter_fields(value))
    elif isinstance(value, tuple | list):
        yield from ((f"[{i}]", item) for i, item in enumerate(value))
    elif isinstance(value, Mapping):
        yield from ((f"[{key!r}]", item) for key, item in value.items())


__all__ = ["check"]
