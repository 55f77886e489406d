"""Policies as files that need onnxruntime only: `export_onnx` makes one, `gps.policies.load` reads.

The graph maps `obs` (batch, no), float64 in the units of the agent, to `mean` (batch, nu), the mean
action, and `covariance` (nu, nu), both float64; the normaliser is inside. A policy with images
has a second input `images` (batch, height, width, channels), uint8; one with memory an input
`memory` (batch, size), float64, and an output `next_memory`: see `gps.policies.export`. Everything
else that a user of the policy needs is JSON in the metadata of the model, under `gps_policy.json`.
Where there is neither gps nor torch:

    session = onnxruntime.InferenceSession("policy.onnx")
    mean, covariance = session.run(None, {"obs": obs})
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["gps_policy.json"])
    dt = metadata["dt"]

With `obs_dtype` "float32" in the metadata, `obs` is float32 and all the rest as before.

The network is computed in float64, convolutions (torch.nn.Conv2d) as matrix products. Where
onnxruntime has no float64 kernel for one of its functions (GELU and ELU among them), the network
alone, without normaliser, is float32: then `precision` in the metadata is "float32", and actions
agree to 1e-5 of the largest.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gps.errors import ConfigError, ShapeError, StoreError
from gps.extras import needed_by
from gps.fields import readonly
from gps.policies.exported import (
    SINGLE_TOLERANCE,
    TOLERANCE,
    ExportedPolicy,
    check_export,
    exact_module,
    examples,
    first_line,
)
from gps.policies.metadata import METADATA_FILE, PolicyMetadata, metadata_json, read_metadata
from gps.policies.policy import GlobalPolicy
from gps.types import Array

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_OPSET = 18
_LOUD = ("torch.onnx", "onnxscript", "onnx_ir")  # their reports are of no use to the user


def _need(name: str) -> Any:
    with needed_by("ONNX"):
        return import_module(name)


def _runtime() -> Any | None:
    try:
        return import_module("onnxruntime")
    except ImportError:
        return None


class OnnxPolicy(ExportedPolicy):
    """An exported policy that onnxruntime computes, on one thread."""

    def __init__(self, model: bytes, metadata: PolicyMetadata, chol: Array) -> None:
        self._model, self._metadata, self._session = model, metadata, _session(model)
        self._chol = readonly(chol)

    def __reduce__(self) -> tuple[object, ...]:
        return OnnxPolicy, (self._model, self._metadata, self._chol)

    def module(self) -> torch.nn.Module:
        """Raises ConfigError: the file holds a graph, not a torch module."""
        raise ConfigError("a policy from an .onnx file has no torch module; export a .pt2 for that")

    def _outputs(self, *inputs: np.ndarray) -> tuple[Array, ...]:
        """Mean (B, nu) and covariance (nu, nu), then the memory (B, size) of a policy with one."""
        names = _names(self._metadata)
        given = dict(zip(names, map(np.ascontiguousarray, inputs), strict=True))
        if self._metadata.single_obs:
            given["obs"] = given["obs"].astype(np.float32)
        try:
            return tuple(self._session.run(None, given))
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ConfigError(
                f"onnxruntime cannot compute the policy: {first_line(error)}"
            ) from error


def _names(metadata: PolicyMetadata) -> list[str]:
    """The inputs of the graph."""
    images = ["images"] if metadata.image_shape is not None else []
    return ["obs", *images, *(["memory"] if metadata.memory0 else [])]


def _session(model: bytes) -> Any:
    ort = _need("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def export_onnx(policy: GlobalPolicy, metadata: PolicyMetadata) -> bytes:
    """The ONNX model of a policy, to be written to a file that ends in .onnx.

    Where onnxruntime is installed, the model is read back before it is returned, and its mean
    actions compared with the policy's for 1 and for 5 observations. Raises ConfigError where the
    extra `onnx` is missing, where the network cannot be traced for any number of rows, has a
    function that ONNX has not, or computes something else; ShapeError when the layout is not the
    policy's.
    """
    metadata.check(policy)
    for name in ("onnx", "onnxscript"):
        _need(name)
    double = _convert(policy, metadata, single=False)
    if _runtime() is None:
        log.warning("onnxruntime is not installed: the exported policy has not been checked")
        return double
    try:
        again = OnnxPolicy(double, metadata, policy.chol)
    except Exception as error:  # onnxruntime's exceptions share no base class
        if "NOT_IMPLEMENTED" not in str(error):
            raise ConfigError(f"onnxruntime cannot read the model: {first_line(error)}") from error
        log.info("onnxruntime: %s; the network is exported in float32", first_line(error))
    else:
        check_export(policy, again, _tolerance(metadata))
        return double
    if metadata.image_shape is not None:
        raise ConfigError(
            f"onnxruntime has no float64 kernel for a function of {type(policy.network).__name__}; "
            "write a .pt2 file instead"
        )
    model = _convert(policy, metadata, single=True)
    try:
        again = OnnxPolicy(model, metadata, policy.chol)
    except Exception as error:
        raise ConfigError(
            f"onnxruntime cannot compute the network {type(policy.network).__name__}: "
            f"{first_line(error)}"
        ) from error
    check_export(policy, again, SINGLE_TOLERANCE)
    return model


def _tolerance(metadata: PolicyMetadata) -> float:
    """Of a check in float64: an observation in float32 is rounded before it gets there."""
    return SINGLE_TOLERANCE if metadata.single_obs else TOLERANCE


def _convert(policy: GlobalPolicy, metadata: PolicyMetadata, *, single: bool) -> bytes:
    """The model with its metadata, with the network in one of the two precisions."""
    import torch

    from gps.policies import _program

    module: Any = _program.without_convolutions(exact_module(policy))
    kind = _program.kind_of(policy.needs_images, policy.has_memory)
    if single and kind is _program.PolicyProgram:
        kind = _program.SinglePrecisionProgram
    program = kind(module, policy.chol, metadata.bounds).eval()
    # of 1 row torch makes a constant
    obs, *others = map(torch.tensor, examples(metadata, 2))
    inputs: tuple[Any, ...] = (obs.float() if metadata.single_obs else obs, *others)
    batch = {0: torch.export.Dim("batch")}
    try:
        with _quiet():
            shapes: Any = (batch,) * len(inputs)
            given: Any = program
            if metadata.memory0:
                # to plain arithmetic: onnxruntime's own recurrent functions are float32
                traced = torch.export.export(program, inputs, dynamic_shapes=shapes, strict=False)
                given, inputs, shapes = traced.run_decompositions(), (), None
            converted: Any = torch.onnx.export(
                given,
                inputs,
                dynamo=True,
                input_names=_names(metadata),
                output_names=["mean", "covariance", "next_memory"][: 2 + bool(metadata.memory0)],
                dynamic_shapes=shapes,
                opset_version=_OPSET,
                verbose=False,
            )
            model = converted.model_proto
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:  # torch has no one class
        cause: BaseException = error
        while cause.__cause__ is not None:  # the outermost one is advice of a page
            cause = cause.__cause__
        if isinstance(cause, ModuleNotFoundError):
            with needed_by("ONNX"):
                raise cause from error
        raise ConfigError(
            f"torch.onnx cannot convert the network {type(policy.network).__name__}: "
            f"{first_line(cause)}; it must take any number of rows, not branch on their values, "
            "and use functions that ONNX has"
        ) from error
    if model.graph.input[0].type.tensor_type.shape.dim[0].dim_value:
        raise ConfigError(
            f"torch.onnx converts the network {type(policy.network).__name__} for "
            f"{model.graph.input[0].type.tensor_type.shape.dim[0].dim_value} rows only; it must "
            "take any number of rows"
        )
    _without_sources(model)
    entry = model.metadata_props.add()
    entry.key = METADATA_FILE
    entry.value = metadata_json(
        policy,
        metadata,
        chol=policy.chol.tolist(),
        precision="float32" if single else "float64",
    )
    model.producer_name = "gps"
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _without_sources(model: Any) -> None:
    """Remove torch's notes of the files and lines that the nodes come from."""
    del model.metadata_props[:]
    graph = model.graph
    holders = [graph, *graph.node, *graph.input, *graph.output, *graph.value_info]
    for part in [*holders, *graph.initializer, *model.functions]:
        part.doc_string = ""
        del part.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _LOUD]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def read(path: Path) -> OnnxPolicy:
    """The policy in a file that `export_onnx` made; `gps.policies.load` comes here.

    Raises StoreError for a file that cannot be read or was not written by gps, ConfigError without
    onnxruntime.
    """
    _need("onnxruntime")
    try:
        model = path.read_bytes()
        meta = _session(model).get_modelmeta().custom_metadata_map
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise StoreError(f"onnxruntime cannot read {path}: {first_line(error)}") from error
    if METADATA_FILE not in meta:
        raise StoreError(f"{path} was not written by gps: its metadata lack {METADATA_FILE}")
    try:
        values = json.loads(meta[METADATA_FILE])
    except ValueError as error:
        raise StoreError(f"{path} is damaged: {METADATA_FILE}: {error}") from error
    metadata, nu = read_metadata(path, values)
    try:
        chol = np.array(values["chol"], dtype=np.float64)
        if chol.shape != (nu, nu):
            raise ShapeError(f"chol has shape {chol.shape}, not {nu, nu}")
        policy = OnnxPolicy(model, metadata, chol)
        mean, covariance, *_ = policy._outputs(*examples(metadata, 1))
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise StoreError(f"{path} is damaged: {first_line(error)}") from error
    same = covariance.shape == (nu, nu) and np.allclose(covariance, chol @ chol.T, rtol=1e-9)
    if mean.shape != (1, nu) or not same:
        raise StoreError(f"{path} is damaged: its graph and its {METADATA_FILE} do not agree")
    return policy
