"""The metadata of an exported policy, beside its program, and their form in a file: JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from gps import __version__
from gps.errors import ConfigError, ShapeError, StoreError
from gps.fields import Config, Count, Positive, Whole
from gps.policies.policy import BasePolicy
from gps.types import Layout

SCHEMA, SCHEMA_VERSION = "gps policy", 1
METADATA_FILE = "gps_policy.json"
"""Name of the extra file with the metadata."""

Bounds = tuple[tuple[float, ...], tuple[float, ...]]
"""Lowest and highest actions, (nu,) each, infinite where there is no limit."""


@dataclass(frozen=True, kw_only=True)
class PolicyMetadata(Config):
    """Inputs, outputs and origin of a policy; `of` fills in those that the policy itself has."""

    obs_layout: Layout
    """Named entries of the observation, in order."""
    dt: Positive
    """Duration of one step in seconds: the policy's sampling time."""
    experiment: str = ""
    """Name of the experiment that it was learned in."""
    iteration: Whole = 0
    """Iteration after which it was taken."""
    seed: Whole = 0
    """Seed of the run."""
    image_shape: tuple[Count, Count, Count] | None = None
    """Height, width and channels of the images that belong to an observation; None without."""
    cameras: tuple[str, ...] = ()
    """Names of the cameras in the order of the channels, three each; empty if unknown."""
    memory0: tuple[float | None, ...] = ()
    """Memory before the first observation, None for a missing observation (NaN in the array);
    empty for a policy without memory."""
    limits: Bounds | None = None
    """Lowest and highest actions (nu,) that the agent takes, infinite where it has no limit; None
    if unknown."""
    clipped: bool = False
    """Whether the program clips its mean action to the limits; otherwise its user has to."""
    single_obs: bool = False
    """Whether an .onnx file takes float32 observations, and not float64."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clipped and self.limits is None:
            raise ConfigError("PolicyMetadata.clipped needs limits, and this agent has none")
        shape = self.image_shape
        if self.cameras and (shape is None or shape[2] != 3 * len(self.cameras)):
            raise ConfigError(
                "PolicyMetadata.cameras must have a name for each 3 channels of image_shape "
                f"{shape}, got {self.cameras!r}"
            )

    @classmethod
    def of(cls, policy: BasePolicy, **values: Any) -> Self:
        """Those of a policy: `image_shape` and `memory0` are its own, the others are arguments."""
        return cls(image_shape=policy.image_shape, memory0=_memory0(policy), **values)

    @property
    def bounds(self) -> Bounds | None:
        """The limits that the program applies itself."""
        return self.limits if self.clipped else None

    def check(self, policy: BasePolicy) -> None:
        """ShapeError where these are not the metadata of the policy."""
        if self.obs_layout.size != policy.no:
            raise ShapeError(
                f"PolicyMetadata.obs_layout describes {self.obs_layout.size} values, the policy "
                f"takes {policy.no}"
            )
        if self.image_shape != policy.image_shape:
            raise ShapeError(
                f"PolicyMetadata.image_shape must be {policy.image_shape}, got {self.image_shape}"
            )
        for bound in self.limits or ():
            if len(bound) != policy.nu:
                raise ShapeError(
                    f"PolicyMetadata.limits must have {policy.nu} values each, got {self.limits}"
                )
        memory0 = _memory0(policy)
        if memory0 != self.memory0:
            raise ShapeError(f"PolicyMetadata.memory0 must be {memory0}, got {self.memory0}")


def _memory0(policy: BasePolicy) -> tuple[float | None, ...]:
    """The policy's initial memory, None for NaN."""
    return tuple(_null(v, np.isnan) for v in policy.memory0.tolist())


def _null(value: float | None, absent: Any) -> float | None:
    """None for a number that JSON does not have."""
    return None if value is None or absent(value) else value


def metadata_json(policy: BasePolicy, metadata: PolicyMetadata, **more: Any) -> str:
    """The text of the extra file."""
    values = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "gps_version": __version__,
        "experiment": metadata.experiment,
        "iteration": metadata.iteration,
        "seed": metadata.seed,
        "dt": metadata.dt,
        "no": policy.no,
        "nu": policy.nu,
        "obs_layout": [[name, n] for name, n in metadata.obs_layout.entries],
    }
    if metadata.image_shape is not None:
        values["image_shape"] = list(metadata.image_shape)
        values["images"] = {
            "dtype": "uint8",
            "axes": "batch, height (from the top), width (from the left), channels",
            "channels": "red, green, blue of each camera in turn",
            "cameras": list(metadata.cameras),
        }
    if metadata.memory0:
        values["memory0"] = list(metadata.memory0)
    if metadata.limits is not None:
        low, high = ([_null(v, np.isinf) for v in bound] for bound in metadata.limits)
        values["control_limits"] = {"low": low, "high": high, "clipped": metadata.clipped}
    if metadata.single_obs:
        values["obs_dtype"] = "float32"
    return json.dumps(values | more, allow_nan=False)


def _limits(values: Any) -> Bounds:
    """What stands in the JSON, with infinity for null."""
    low, high = (
        tuple(end if v is None else float(v) for v in values[name])
        for name, end in (("low", -np.inf), ("high", np.inf))
    )
    return low, high


def read_metadata(path: Path, values: Any) -> tuple[PolicyMetadata, int]:
    """Metadata and action size out of the decoded JSON; StoreError names the file."""
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise StoreError(f"{path} was not written by gps")
    if values.get("schema_version") != SCHEMA_VERSION:
        raise StoreError(
            f"{path} has schema version {values.get('schema_version')}, this gps reads "
            f"{SCHEMA_VERSION}; use gps {values.get('gps_version')}"
        )
    try:
        metadata = PolicyMetadata(
            obs_layout=Layout(tuple((str(name), int(n)) for name, n in values["obs_layout"])),
            dt=float(values["dt"]),
            experiment=str(values["experiment"]),
            iteration=values["iteration"],
            seed=values["seed"],
            image_shape=tuple(values["image_shape"]) if "image_shape" in values else None,
            cameras=tuple(map(str, values.get("images", {}).get("cameras", ()))),
            memory0=tuple(values.get("memory0", ())),
            limits=_limits(values["control_limits"]) if "control_limits" in values else None,
            clipped=bool(values.get("control_limits", {}).get("clipped", False)),
            single_obs=values.get("obs_dtype") == "float32",
        )
        return metadata, int(values["nu"])
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise StoreError(f"{path} is damaged: {METADATA_FILE}: {error}") from error
