"""Policies that are programs: the parts of an export, and its comparison with the policy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from gps.errors import ConfigError
from gps.fields import readonly
from gps.policies.metadata import PolicyMetadata
from gps.policies.policy import BasePolicy, GlobalPolicy
from gps.rng import stream
from gps.types import Array, Images, Layout

if TYPE_CHECKING:
    import torch

SINGLE_TOLERANCE = 1e-5
"""Agreement of actions where a part of the network is float32, relative to their spread."""
TOLERANCE = 1e-9
"""Of a check in float64; the rounding of torch is far below."""


class ExportedPolicy(BasePolicy):
    """u ~ N(mean(obs), chol chol'): a policy from `load`, with its metadata.

    It acts like the policy that was exported, also in rollouts, and can not be trained.
    """

    def __init__(self, module: torch.nn.Module, metadata: PolicyMetadata, chol: Array) -> None:
        self._module = module
        self._metadata = metadata
        self._chol = readonly(chol)

    @classmethod
    def of(cls, policy: GlobalPolicy, metadata: PolicyMetadata) -> ExportedPolicy:
        """The same without a file in between; raises ShapeError when the layout does not fit."""
        return cls(program_of(policy, metadata), metadata, policy.chol)

    def __repr__(self) -> str:
        metadata = self._metadata
        return (
            f"ExportedPolicy({metadata.experiment!r}, iteration={metadata.iteration}, "
            f"seed={metadata.seed}, no={self.no}, nu={self.nu}, dt={metadata.dt})"
        )

    @property
    def metadata(self) -> PolicyMetadata:
        """All metadata in one record."""
        return self._metadata

    @property
    def obs_layout(self) -> Layout:
        """Named entries of the observation, in order."""
        return self._metadata.obs_layout

    @property
    def dt(self) -> float:
        """Duration of one step in seconds."""
        return self._metadata.dt

    @property
    def experiment(self) -> str:
        """Name of the experiment."""
        return self._metadata.experiment

    @property
    def iteration(self) -> int:
        """Iteration after which the policy was taken."""
        return self._metadata.iteration

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self._metadata.seed

    @property
    def no(self) -> int:
        """Observation size."""
        return self._metadata.obs_layout.size

    @property
    def nu(self) -> int:
        """Action size."""
        return self._chol.shape[0]

    @property
    def chol(self) -> Array:
        """Lower Cholesky factor of the action covariance, (nu, nu)."""
        return self._chol

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of the images that the policy needs; None if it needs none."""
        return self._metadata.image_shape

    @cached_property
    def memory0(self) -> Array:
        """Memory before the first observation, (size,); empty without memory."""
        return readonly(np.array(self._metadata.memory0, dtype=np.float64))

    def module(self) -> torch.nn.Module:
        """The program as a torch module: obs (B, no), images and memory where it takes them, to
        mean (B, nu), covariance (nu, nu), and memory where it has one."""
        return self._module

    def _rows(self, obs: Array, images: Images | None, memory: Array) -> tuple[Array, Array]:
        inputs: list[np.ndarray] = [obs] if images is None else [obs, images]
        if not self.has_memory:
            return self._outputs(*inputs)[0], memory
        mean, _, after = self._outputs(*inputs, memory)
        return mean, after

    @property
    def _entries(self) -> str:
        return f" ({', '.join(f'{name} {n}' for name, n in self.obs_layout.entries)})"

    def _outputs(self, *inputs: np.ndarray) -> tuple[Array, ...]:
        """All outputs of the program for rows (B, ...) of its inputs, B >= 1."""
        import torch

        from gps.policies import _modules

        with _modules.one_thread(), torch.no_grad():
            return tuple(out.numpy() for out in self._module(*map(torch.tensor, inputs)))


def program_of(policy: GlobalPolicy, metadata: PolicyMetadata) -> torch.nn.Module:
    """The module behind an export; ShapeError when the metadata are not the policy's."""
    from gps.policies import _program

    metadata.check(policy)
    kind = _program.kind_of(policy.needs_images, policy.has_memory)
    return kind(exact_module(policy), policy.chol, metadata.bounds).eval()


def exact_module(policy: GlobalPolicy) -> torch.nn.Module:
    """The policy's module in float64, also where it computes its convolutions in float32: rounded
    by two runtimes in two ways these would differ by a few millionths of the largest action."""
    return policy.module().double()


def first_line(error: BaseException) -> str:
    """The first line of a message: those of torch and onnxruntime are pages."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def examples(metadata: PolicyMetadata, rows: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Inputs to trace and to try a program with, in its order: observations, images, memory.

    Observations (rows, no) are standard normal; memory is that of the beginning.
    """
    rng = stream(seed, "export")
    inputs: list[np.ndarray] = [rng.normal(size=(rows, metadata.obs_layout.size))]
    if metadata.image_shape is not None:
        shape = (rows, *metadata.image_shape)
        inputs.append(rng.integers(0, 256, size=shape, dtype=np.uint8))
    if metadata.memory0:
        inputs.append(np.tile(np.array(metadata.memory0, dtype=np.float64), (rows, 1)))
    return tuple(inputs)


def check_export(policy: GlobalPolicy, again: ExportedPolicy, tolerance: float = TOLERANCE) -> None:
    """Compare mean actions of a policy and of its export, for 1 and for 5 observations.

    tolerance: relative to the spread of each action, whatever its unit and offset. A policy that
    computes its images in float32 is compared as it is in float64, which is what was exported,
    and its own actions to 1e-5. Raises ConfigError.
    """
    kind = type(policy.network).__name__
    obs, *images = examples(again.metadata, 5)
    if again.has_memory:  # along trajectories of some steps
        rng = stream(0, "export", 1)
        obs = rng.normal(size=(5, 4, policy.no))
        images = [rng.integers(0, 256, (5, 4, *a.shape[1:]), dtype=np.uint8) for a in images[:-1]]
    obs = policy.obs_mean + policy.obs_std * obs
    for n in (5, 1):
        rows = [a[:n] for a in (obs, *images)]
        want = _within(policy.mean(*rows), again.metadata)
        if n > 1:
            scale, rounding = _scales(want, policy)
        if policy.network.single_precision:
            rounded, want = want, _exact_mean(policy, again.metadata, rows)
            if not np.allclose(rounded, want, rtol=0.0, atol=SINGLE_TOLERANCE * scale + rounding):
                raise ConfigError(f"the network {kind} is not itself in float64")
        try:
            have = again.mean(*rows)
        except (RuntimeError, AssertionError, ConfigError) as error:  # a guard of the program
            text = first_line(error)
            raise ConfigError(
                f"the exported network {kind} does not take {n} rows: {text}"
            ) from error
        # a NaN in both is one of the policy
        near = np.isclose(have, want, rtol=0.0, atol=tolerance * scale + rounding, equal_nan=True)
        if not near.all():
            raise ConfigError(
                f"the exported network {kind} does not compute the policy's actions (off by "
                f"{np.abs(have - want).max():.3g} for {n} observations); all that its "
                "module depends on must be in its parameters and the network's configuration"
            )


def _scales(mean: Array, policy: GlobalPolicy) -> tuple[Array, Array]:
    """What errors of each action are measured by, (nu,): its spread over the means (..., nu), its
    noise where it is one constant; and what float64 rounds of it, (nu,)."""
    rows = np.nan_to_num(mean.reshape(-1, policy.nu))
    spread = np.ptp(rows, axis=0)
    scale = np.where(spread > 0, spread, np.sqrt(policy.Sigma.diagonal()))
    return scale, 1e-12 * np.abs(rows).max(axis=0)


def _within(mean: Array, metadata: PolicyMetadata) -> Array:
    """Mean actions as a program with these metadata computes them."""
    limits = metadata.bounds
    return mean if limits is None else np.clip(mean, *map(np.array, limits))


def _exact_mean(
    policy: GlobalPolicy, metadata: PolicyMetadata, rows: Sequence[np.ndarray]
) -> Array:
    """Mean actions of `exact_module`."""
    import torch

    from gps.policies import _modules

    with _modules.one_thread(), torch.no_grad():
        mean: Array = exact_module(policy)(*map(torch.tensor, rows)).numpy()
    return _within(mean, metadata)
