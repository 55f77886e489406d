"""Experiments and their runs: loading, the loop, the store.

`load(name or path)` gives an Experiment, `run` and `resume` yield an IterationReport for each
iteration, `run_asynchronous` and `resume_asynchronous` for each snapshot, `RunFolder` reads what a
run left behind, `evaluate` rolls out what it has learned, `export_policy` and `load_policy` take
its policy out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from gps.pipeline.asynchronous import (
        AsynchronousConfig,
        resume_asynchronous,
        run_asynchronous,
    )
    from gps.pipeline.checking import Check, check
    from gps.pipeline.evaluation import EvaluationReport, evaluate
    from gps.pipeline.experiment import Experiment
    from gps.pipeline.exporting import export_policy, load_policy
    from gps.pipeline.runner import IterationReport, resume, run
    from gps.pipeline.store import RunFolder

_HOME = {
    "AsynchronousConfig": "asynchronous",
    "Check": "checking",
    "EvaluationReport": "evaluation",
    "Experiment": "experiment",
    "IterationReport": "runner",
    "RunFolder": "store",
    "check": "checking",
    "evaluate": "evaluation",
    "export_policy": "exporting",
    "load_policy": "exporting",
    "resume": "runner",
    "resume_asynchronous": "asynchronous",
    "run": "runner",
    "run_asynchronous": "asynchronous",
}

__all__ = [
    "AsynchronousConfig",
    "Check",
    "EvaluationReport",
    "Experiment",
    "IterationReport",
    "RunFolder",
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


def load(name_or_path: str | Path) -> Experiment:
    """The experiment of that name, or of a hyperparams file anywhere; raises ExperimentError."""
    from gps.pipeline import loader

    return loader.load(name_or_path).experiment


def __getattr__(name: str) -> Any:
    """Import on first use: the loader alone needs neither torch nor h5py."""
    if name not in _HOME:
        raise AttributeError(f"module 'gps.pipeline' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"gps.pipeline.{_HOME[name]}"), name)
