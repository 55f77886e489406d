"""Guided policy search: local controllers by fitted dynamics and LQR, one neural policy for all.

`load` finds an experiment by name or path, `run` and `resume` yield a report after every iteration,
with every record of it reachable; `evaluate` rolls out what a stored run has learned,
`export_policy` and `load_policy` take its policy out; these need the extra `run`. The parts work
alone too: `gps.control`, `gps.dynamics`, `gps.costs` and `gps.distributions` with numpy, scipy and
numba only, `gps.policies`, `gps.agents`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gps.errors import GPSError
    from gps.pipeline import (
        AsynchronousConfig,
        Check,
        EvaluationReport,
        Experiment,
        IterationReport,
        check,
        evaluate,
        export_policy,
        load,
        load_policy,
        resume,
        resume_asynchronous,
        run,
        run_asynchronous,
    )

__version__ = "0.3.0"

__all__ = [
    "AsynchronousConfig",
    "Check",
    "EvaluationReport",
    "Experiment",
    "GPSError",
    "IterationReport",
    "__version__",
    "check",
    "evaluate",
    "export_policy",
    "load",
    "load_policy",
    "resume",
    "resume_asynchronous",
    "run",
    "run_asynchronous",
]


def __getattr__(name: str) -> Any:
    """Import on first use: the parts work without the packages that a run needs."""
    if name not in __all__:
        raise AttributeError(f"module 'gps' has no attribute {name!r}")
    from gps import errors, extras, pipeline

    if name == "GPSError":
        return errors.GPSError
    with extras.needed_by(f"gps.{name}"):
        return getattr(pipeline, name)
