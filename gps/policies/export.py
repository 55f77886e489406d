"""Policies as files that need torch only: `export_program` makes one, `load` reads it.

`gps.policies.onnx` makes files that need onnxruntime only; `load` reads them too.

The file is a PT2 archive of `torch.export`. Its program maps observations (B, no), float64 or
float32 and in the units of the agent, to the mean action (B, nu) and the action covariance
(nu, nu), both float64; the normaliser is inside, and B is free. The program of a policy with images
takes these, (B, height, width, channels), uint8, as well. That of a policy with memory takes the
memory, (B, size), and returns that of the next step as a third result; it begins with `memory0` of
the metadata, where null (NaN) stands for a missing observation. Everything else that a user of the
policy needs is in the archive's extra file `gps_policy.json`: also `control_limits`, to which its
user has to clip unless `clipped` is true and the program does. Where there is no gps:

    extra = {"gps_policy.json": ""}
    program = torch.export.load("policy.pt2", extra_files=extra).module()
    metadata = json.loads(extra["gps_policy.json"])
    mean, covariance = program(obs)  # every metadata["dt"] seconds

and with memory:

    memory = torch.tensor(numpy.array([metadata["memory0"]], dtype=float))  # at the beginning
    mean, covariance, memory = program(obs, memory)
"""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from pathlib import Path

from gps.errors import ConfigError, StoreError
from gps.policies import onnx
from gps.policies.exported import ExportedPolicy, check_export, examples, first_line, program_of
from gps.policies.metadata import METADATA_FILE, PolicyMetadata, metadata_json, read_metadata
from gps.policies.policy import GlobalPolicy


def export_program(policy: GlobalPolicy, metadata: PolicyMetadata) -> bytes:
    """The archive of a policy, to be written to a file that ends in .pt2.

    The archive is read back before it is returned, and its mean actions compared with the policy's
    for 1 and for 5 observations. Raises ConfigError where torch cannot export the network for any
    number of rows, or what it exports computes something else; ShapeError when the layout is not
    the policy's.
    """
    import torch

    module = program_of(policy, metadata)
    kind = type(policy.network).__name__
    inputs = tuple(map(torch.tensor, examples(metadata, 2)))  # of 1 row torch makes a constant
    batch = {0: torch.export.Dim("batch")}
    file = io.BytesIO()
    try:
        with warnings.catch_warnings():  # torch's own recurrent layers keep lists of their weights
            warnings.filterwarnings("ignore", message=".*were assigned during export")
            program = torch.export.export(
                module, inputs, dynamic_shapes=(batch,) * len(inputs), strict=False
            )
        torch.export.save(
            program, file, extra_files={METADATA_FILE: metadata_json(policy, metadata)}
        )
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:  # torch has no one class
        raise ConfigError(
            f"torch.export cannot trace the network {kind}: {first_line(error)}; it must take any "
            "number of rows and not branch on their values"
        ) from error
    file.seek(0)
    again = ExportedPolicy(torch.export.load(file).module(), metadata, policy.chol)
    check_export(policy, again)
    return file.getvalue()


def load(path: str | Path) -> ExportedPolicy:
    """A policy from a file that `export_program` or `export_onnx` (.onnx) made.

    torch or onnxruntime reads the file: load files only that come from where you trust. Raises
    StoreError; ConfigError for .onnx where onnxruntime is not installed.
    """
    path = Path(path)
    if path.is_dir():
        raise StoreError(f"{path} is a folder; gps.load_policy takes the folder of a run")
    if not path.is_file():
        raise StoreError(f"{path} does not exist")
    if path.suffix == ".onnx":
        return onnx.read(path)
    metadata, nu = _read_metadata(path)
    import torch

    try:
        program = torch.export.load(path)
        chol = program.state_dict["chol"].numpy()
        module = program.module()
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        text = first_line(error)
        raise StoreError(f"torch {torch.__version__} cannot read {path}: {text}") from error
    if chol.shape != (nu, nu):
        raise StoreError(f"{path} is damaged: its covariance has shape {chol.shape}, not {nu, nu}")
    return ExportedPolicy(module, metadata, chol)


def _read_metadata(path: Path) -> tuple[PolicyMetadata, int]:
    """Metadata and action size, after all checks without torch, whose own errors are long."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.split("/")[-1] == METADATA_FILE]
            if not names:
                raise StoreError(f"{path} was not written by gps: it has no {METADATA_FILE}")
            if (broken := archive.testzip()) is not None:
                raise StoreError(f"{path} is damaged: {broken} has a wrong checksum")
            values = json.loads(archive.read(names[0]))
    except zipfile.BadZipFile as error:
        raise StoreError(f"{path} is not an exported policy, or is truncated: {error}") from error
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    return read_metadata(path, values)
