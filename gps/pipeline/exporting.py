"""The policy of a stored run: as a file that needs no gps, or as an object."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from gps import policies
from gps.errors import ConfigError, StoreError
from gps.fields import checked_arguments
from gps.pipeline import store
from gps.pipeline.files import AnyPath, write_whole
from gps.pipeline.progress import Iteration
from gps.policies.onnx import export_onnx
from gps.protocols import Agent, HasCameras, control_range_of

FORMATS = {".pt2": policies.export_program, ".onnx": export_onnx}
"""The exporter of a file, by its suffix."""


@checked_arguments
def export_policy(
    run: AnyPath,
    path: AnyPath,
    *,
    iteration: Iteration = "best",
    force: bool = False,
    clip: bool = False,
    float32: bool = False,
) -> Path:
    """Write the global policy of a stored run as a program that needs torch or onnxruntime only.

    run: its folder. path: a file that ends in .pt2 (for torch) or .onnx (for onnxruntime, and needs
    the extra `onnx`); it is written whole or not at all, and replaces one that exists only if
    `force`. iteration: `best` (see `gps.pipeline.progress`), `last` or a number. clip: the program
    clips its mean action to the limits of the agent, which are among the metadata in any case.
    float32: an .onnx file takes float32 observations (a .pt2 file takes both in any case). Returns
    the path; `gps.policies.export` and `gps.policies.onnx` say what is in the file. Raises
    StoreError where something cannot be read or written, ConfigError for another suffix or
    iteration, an iteration without a trained policy, or a network that torch cannot export, or
    without the extra.
    """
    path = Path(path)
    _require_writable(path, force)
    if float32 and path.suffix != ".onnx":
        raise ConfigError(f"{path}: only an .onnx file is made for float32; a .pt2 file takes both")
    policy, metadata = _stored(run, iteration)
    if clip and metadata.limits is None:
        raise ConfigError(f"{run}: the agent has no limits on its actions to clip to")
    metadata = replace(metadata, clipped=clip, single_obs=float32)
    if not policy.trained:
        raise ConfigError(
            f"{run}: the policy of iteration {metadata.iteration} has not been trained, its "
            "weights are random; export a later one"
        )
    data = FORMATS[path.suffix](policy, metadata)
    try:
        write_whole(path, data)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
    return path


@checked_arguments
def load_policy(path: AnyPath, iteration: Iteration = "best") -> policies.ExportedPolicy:
    """The policy of an exported file, or of a run folder at an iteration.

    iteration: `best` (see `gps.pipeline.progress`), `last` or a number. Raises StoreError, and
    ConfigError for another iteration, or where the run has no policy or a file is asked for an
    iteration.
    """
    if Path(path).is_dir():
        return policies.ExportedPolicy.of(*_stored(path, iteration))
    if iteration != "best":
        raise ConfigError(f"{path} holds one iteration; only of a run folder can one be chosen")
    return policies.load(path)


def _stored(
    run: str | Path, iteration: Iteration
) -> tuple[policies.GlobalPolicy, policies.PolicyMetadata]:
    folder = store.RunFolder.open(run)
    experiment = folder.experiment()
    n = folder.choose(iteration)
    state = folder.read_state(n)
    if state.policy is None:
        raise ConfigError(
            f"{folder.path} has no global policy: {experiment.name} trains local controllers only"
        )
    agent = experiment.validate()
    policy, config = state.policy.policy, experiment.agent
    cameras = tuple(config.cameras) if isinstance(config, HasCameras) else ()
    metadata = policies.PolicyMetadata.of(
        policy,
        obs_layout=agent.obs_layout,
        dt=agent.dt,
        experiment=experiment.name,
        iteration=n,
        seed=state.seed,
        cameras=cameras if policy.needs_images else (),
        limits=_limits(agent),
    )
    return policy, metadata


def _limits(agent: Agent) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Lowest and highest actions that the agent takes; None where it has or declares no limit."""
    bounds = control_range_of(agent)
    if bounds is None:
        return None
    low, high = bounds
    if not (np.isfinite(low).any() or np.isfinite(high).any()):
        return None
    return tuple(low.tolist()), tuple(high.tolist())


def _require_writable(path: Path, force: bool) -> None:
    """Refuse what would fail at the end, before the seconds that it takes to get there."""
    if path.suffix not in FORMATS:
        raise ConfigError(
            f"an exported policy is a file that ends in {' or '.join(FORMATS)}, got {path}"
        )
    if path.is_dir():
        raise StoreError(f"{path} is a folder; give the name of a file")
    if path.exists() and not force:
        raise StoreError(f"{path} exists; give another name, or replace it with --force")
    if not path.parent.is_dir():
        raise StoreError(f"cannot write {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise StoreError(f"cannot write {path}: no permission to write in {path.parent}")
