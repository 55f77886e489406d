"""What an iteration file holds.

Layout, for readers that have h5py only (`trees` says how records are stored):

    attributes of /     schema "gps iteration", schema_version 2, iteration, gps_version,
                        identity (a hash of configuration and seed)
    /state              GPSState: all that the next iteration starts from; costs are configuration
    /rollouts/0 ...     Rollouts: X (N, T, nx), U (N, T, nu), obs (N, T, no), noise (N, T, nu)
    /models/cost/0 ...  per stage and condition what was fitted: cost, dynamics, linearised
    /metrics            the row of metrics.csv as attributes, without seconds and memory
    /report             Report

    h5py.File("0003.h5")["state/conditions/0/controller/K"][:]
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import h5py

from gps import __version__
from gps.pipeline import config_io, keeping
from gps.pipeline.provenance import SCHEMA_VERSION
from gps.pipeline.trees import TreeWriter
from gps.types import Record, Rollouts

if TYPE_CHECKING:
    from gps.algorithms.state import GPSState, Report
    from gps.pipeline.experiment import Experiment

SCHEMA = "gps iteration"
PARTS = ("state", "rollouts", "models", "metrics", "report")
_LIBVER = ("v110", "v110")  # fixed: another library version must not change the bytes
_MACHINE = ("seconds", "memory")  # columns that depend on the machine, not on the run


@dataclass(frozen=True, eq=False)
class Snapshot(Record):
    """Everything that is stored of one iteration."""

    state: GPSState
    """After the iteration; stored without `costs`, which are configuration."""
    rollouts: tuple[Rollouts, ...] = ()
    models: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Per stage one record per condition."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The row of metrics.csv; what starts with `seconds` or `memory` is left out of the file."""
    report: Report | None = None
    """Without `models`, which have their own place."""

    @classmethod
    def of_start(cls, state: GPSState) -> Snapshot:
        """The snapshot before the first iteration."""
        return cls(state=state)


def encode(
    snapshot: Snapshot, identity: str = "", has: Callable[[str], bool] | None = None
) -> bytes:
    """The iteration file of a snapshot, as bytes; identity: of its run, see `identity_of`; has:
    whether the run has a copy of a module, see `config_io.name_of`."""
    metrics = {k: float(v) for k, v in snapshot.metrics.items() if not k.startswith(_MACHINE)}
    report = snapshot.report
    values = {
        "state": replace(snapshot.state, costs=()),
        "rollouts": snapshot.rollouts,
        "models": snapshot.models,
        "metrics": metrics,
        "report": None if report is None else replace(report, models={}),
    }
    # in memory first: HDF5 does not survive a disk that fills up under an open file
    with h5py.File("gps", "w", driver="core", backing_store=False, libver=_LIBVER) as file:
        file.attrs["schema"] = SCHEMA
        file.attrs["schema_version"] = SCHEMA_VERSION
        file.attrs["iteration"] = snapshot.state.iteration
        file.attrs["identity"] = identity
        file.attrs["gps_version"] = __version__
        writer = TreeWriter(has)
        for part in PARTS:
            writer.tree(file.id, part, values[part], part)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def identity_of(experiment: Experiment) -> str:
    """The same for all runs whose iterations are the same: a hash of the configuration and seed.

    Of files that the run keeps their content counts, not where they lay.
    """
    plain = config_io.to_json(keeping.nameless(replace(experiment, iterations=1)))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
