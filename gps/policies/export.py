"""Policies as files that need torch only: `export_program` makes one, `load` reads it.

`gps.policies.onnx` makes files that need onnxruntime only; `load` reads them too.

The file is a PT2 archive of `torch.export`. Its program maps observations (B, no), float64 or
float32 and in the units of the world, to the mean action (B, nu) and the action covariance
(nu, nu), both float64; the normaliser is inside, and B is free. The program of a policy that sees
takes pictures (B, height, width, channels), uint8, as well. What else a user of the policy has
to know stands in the archive's extra file `gps_policy.json`. Where there is no gps:

    extra = {"gps_policy.json": ""}
    program = torch.export.load("policy.pt2", extra_files=extra).module()
    mean, covariance = program(obs)
    dt = json.loads(extra["gps_policy.json"])["dt"]
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gps.errors import ConfigError, ShapeError, StoreError
from gps.policies.neural import NeuralPolicy, predicted
from gps.policies.visual import VisualPolicy
from gps.rng import stream
from gps.types import Array, Images, Layout, needs_images, readonly

if TYPE_CHECKING:
    import torch

SCHEMA, SCHEMA_VERSION = "gps policy", 1
FACTS_FILE = "gps_policy.json"
"""Name of the extra file with the facts."""
SINGLE_TOLERANCE = 1e-5
"""Agreement of actions where a part of the network is float32, relative to the largest."""
_TOLERANCE = 1e-9  # of a check; what torch rounds differently is far below


@dataclass(frozen=True, kw_only=True)
class PolicyFacts:
    """What belongs to a policy beside its program: how to feed it and where it comes from."""

    obs_layout: Layout
    """Named entries of the observation, in order."""
    dt: float
    """Duration of one step in seconds: how often the policy is to be asked."""
    experiment: str = ""
    """Name of the experiment that it was learned in."""
    iteration: int = 0
    """Iteration after which it was taken."""
    seed: int = 0
    """Seed of the run."""
    image_shape: tuple[int, int, int] | None = None
    """Height, width and channels of the pictures that belong to an observation; None without."""

    def __post_init__(self) -> None:
        if not 0 < self.dt < np.inf:
            raise ConfigError(f"PolicyFacts.dt must be above 0 s and finite, got {self.dt}")
        for name in ("iteration", "seed"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ConfigError(
                    f"PolicyFacts.{name} must be a whole number of at least 0, got {value!r}"
                )
        shape = self.image_shape
        if shape is not None and (len(shape) != 3 or not all(n > 0 for n in shape)):
            raise ConfigError(
                f"PolicyFacts.image_shape must be (height, width, channels), got {shape!r}"
            )


class ExportedPolicy:
    """u ~ N(mean(obs), chol chol'): a policy that came from `load`, with the facts about it.

    It acts like the policy that was exported, also in rollouts (`act`), and can not be trained.
    """

    def __init__(self, module: torch.nn.Module, facts: PolicyFacts, chol: Array) -> None:
        self._module = module
        self._facts = facts
        self._chol = readonly(chol)

    @classmethod
    def of(cls, policy: NeuralPolicy | VisualPolicy, facts: PolicyFacts) -> ExportedPolicy:
        """The same without a file in between; raises ShapeError when the layout does not fit."""
        return cls(_traceable(policy, facts), facts, policy.chol)

    def __repr__(self) -> str:
        facts = self._facts
        return (
            f"ExportedPolicy({facts.experiment!r}, iteration={facts.iteration}, "
            f"seed={facts.seed}, no={self.no}, nu={self.nu}, dt={facts.dt})"
        )

    @property
    def facts(self) -> PolicyFacts:
        """All facts in one record."""
        return self._facts

    @property
    def obs_layout(self) -> Layout:
        """Named entries of the observation, in order."""
        return self._facts.obs_layout

    @property
    def dt(self) -> float:
        """Duration of one step in seconds."""
        return self._facts.dt

    @property
    def experiment(self) -> str:
        """Name of the experiment."""
        return self._facts.experiment

    @property
    def iteration(self) -> int:
        """Iteration after which the policy was taken."""
        return self._facts.iteration

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self._facts.seed

    @property
    def no(self) -> int:
        """Observation size."""
        return self._facts.obs_layout.size

    @property
    def nu(self) -> int:
        """Action size."""
        return self._chol.shape[0]

    @property
    def chol(self) -> Array:
        """Lower Cholesky factor of the action covariance, (nu, nu)."""
        return self._chol

    @property
    def Sigma(self) -> Array:
        """Action covariance, (nu, nu), the same at every step and observation."""
        return self._chol @ self._chol.T

    def module(self) -> torch.nn.Module:
        """The program as a torch module: obs (B, no) to mean (B, nu) and covariance (nu, nu)."""
        return self._module

    @property
    def needs_images(self) -> bool:
        """Whether the policy sees: then `mean`, `act` and `predict` must be given pictures."""
        return self._facts.image_shape is not None

    def mean(self, obs: Array, images: Images | None = None) -> Array:
        """Mean actions (..., nu) for observations (..., no); raises ShapeError.

        images: (..., height, width, channels) uint8, of a policy that sees.
        """
        obs = np.asarray(obs, dtype=np.float64)
        if obs.ndim == 0 or obs.shape[-1] != self.no:
            entries = ", ".join(f"{name} {n}" for name, n in self.obs_layout.entries)
            raise ShapeError(
                f"observations must have {self.no} values ({entries}), got shape {obs.shape}"
            )
        pictures = self._pictures(obs, images)
        rows = obs.reshape(-1, self.no)
        if len(rows) == 0:  # a network of the user's may not like it
            return np.zeros((*obs.shape[:-1], self.nu))
        return self._rows(rows, *pictures).reshape(*obs.shape[:-1], self.nu)

    def _pictures(self, obs: Array, images: Images | None) -> tuple[Images, ...]:
        """The pictures in rows, (B, height, width, channels), or nothing."""
        shape = self._facts.image_shape
        if shape is None:
            return ()
        want = (*obs.shape[:-1], *shape)
        if images is None or images.dtype != np.uint8 or images.shape != want:
            got = "none" if images is None else f"{images.dtype} {images.shape}"
            raise ShapeError(f"this policy sees: images must be uint8 {want}, got {got}")
        return (images.reshape(-1, *shape),)

    def _rows(self, rows: Array, *images: Images) -> Array:
        """Mean actions (B, nu) for checked observations (B, no) and pictures, B >= 1."""
        import torch

        from gps.policies import _modules

        with _modules.one_thread(), torch.no_grad():
            inputs = [torch.tensor(rows), *map(torch.tensor, images)]
            mean: Array = self._module(*inputs)[0].numpy()
        return mean

    def act(
        self, x: Array, obs: Array, t: int, noise: Array, images: Images | None = None
    ) -> Array:
        """Actions (N, nu) for observations (N, no) and unit-variance noise (N, nu)."""
        return self.mean(obs, images) + noise @ self._chol.T

    def predict(
        self,
        obs: Array,
        state: object = None,
        episode_start: object = None,
        deterministic: bool = True,
        *,
        images: Images | None = None,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, None]:
        """Action (..., nu) and None, as `NeuralPolicy.predict`; two arguments unused.

        With `deterministic=False` the policy's noise is drawn from `rng`, which must be given.
        """
        return predicted(self.mean(obs, images), self._chol, deterministic, rng), None


def _traceable(policy: NeuralPolicy | VisualPolicy, facts: PolicyFacts) -> torch.nn.Module:
    """The module behind an export; ShapeError when the layout is not the policy's."""
    from gps.policies import _program

    check_facts(policy, facts)
    kind = _program.SeeingProgram if needs_images(policy) else _program.PolicyProgram
    return kind(policy.module(), policy.chol).eval()


def check_facts(policy: NeuralPolicy | VisualPolicy, facts: PolicyFacts) -> None:
    """Raise ShapeError when layout or pictures are not the policy's."""
    if facts.obs_layout.size != policy.no:
        raise ShapeError(
            f"PolicyFacts.obs_layout describes {facts.obs_layout.size} values, the policy takes "
            f"{policy.no}"
        )
    shape = getattr(policy, "image_shape", None)
    if facts.image_shape != shape:
        raise ShapeError(f"PolicyFacts.image_shape must be {shape}, got {facts.image_shape}")


def examples(facts: PolicyFacts, rows: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Inputs to trace and to try a program with: observations, and pictures where there are some.

    Observations (rows, no) are standard normal.
    """
    rng = stream(seed, "export")
    inputs: list[np.ndarray] = [rng.normal(size=(rows, facts.obs_layout.size))]
    if facts.image_shape is not None:
        shape = (rows, *facts.image_shape)
        inputs.append(rng.integers(0, 256, size=shape, dtype=np.uint8))
    return tuple(inputs)


def export_program(policy: NeuralPolicy | VisualPolicy, facts: PolicyFacts) -> bytes:
    """The archive of a policy, to be written to a file that ends in .pt2.

    The archive is read back before it is returned, and its mean actions compared with the policy's
    for 1 and for 5 observations. Raises ConfigError where torch cannot export the network for any
    number of rows, or what it exports computes something else; ShapeError when the layout is not
    the policy's.
    """
    import torch

    module = _traceable(policy, facts)
    kind = type(policy.network).__name__
    inputs = tuple(map(torch.tensor, examples(facts, 2)))  # of 1 row torch makes a constant
    batch = {0: torch.export.Dim("batch")}
    file = io.BytesIO()
    try:
        program = torch.export.export(
            module, inputs, dynamic_shapes=(batch,) * len(inputs), strict=False
        )
        torch.export.save(program, file, extra_files={FACTS_FILE: facts_json(policy, facts)})
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:  # torch has no one class
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(
            f"torch.export cannot trace the network {kind}: {reason.rstrip('.')}; it must take any "
            "number of rows and not branch on their values"
        ) from error
    file.seek(0)
    again = ExportedPolicy(torch.export.load(file).module(), facts, policy.chol)
    check_export(policy, again, SINGLE_TOLERANCE if facts.image_shape else _TOLERANCE)
    return file.getvalue()


def check_export(
    policy: NeuralPolicy | VisualPolicy, again: ExportedPolicy, tolerance: float = _TOLERANCE
) -> None:
    """Compare mean actions of a policy and of its export, for 1 and for 5 observations.

    tolerance: relative to the largest action, or to 1 if that is smaller. Raises ConfigError.
    """
    kind = type(policy.network).__name__
    obs, *images = examples(again.facts, 5)
    obs = policy.obs_mean + policy.obs_std * obs
    for n in (5, 1):
        rows = [a[:n] for a in (obs, *images)]
        want = policy.mean(*rows)
        try:
            have = again.mean(*rows)
        except (RuntimeError, AssertionError, ConfigError) as error:  # a guard of the program
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ConfigError(
                f"the exported network {kind} does not take {n} rows: {reason}"
            ) from error
        scale = np.abs(want).max(initial=1.0)
        # a NaN in both is the policy's own affair
        if not np.allclose(have, want, rtol=0.0, atol=tolerance * scale, equal_nan=True):
            raise ConfigError(
                f"the exported network {kind} does not compute what the policy does (off by "
                f"{np.abs(have - want).max():.3g} for {n} observations); all that its "
                "module depends on must be in its parameters and the network's configuration"
            )


def facts_json(policy: NeuralPolicy | VisualPolicy, facts: PolicyFacts, **more: Any) -> str:
    """The text of the extra file."""
    try:
        version = metadata.version("guided-policy-search")
    except metadata.PackageNotFoundError:
        version = "unknown"
    values = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "gps_version": version,
        "experiment": facts.experiment,
        "iteration": facts.iteration,
        "seed": facts.seed,
        "dt": facts.dt,
        "no": policy.no,
        "nu": policy.nu,
        "obs_layout": [[name, n] for name, n in facts.obs_layout.entries],
    }
    if facts.image_shape is not None:
        values["image_shape"] = list(facts.image_shape)
    return json.dumps(values | more, allow_nan=False)


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
        from gps.policies import onnx

        return onnx.read(path)
    facts, nu = _read_facts(path)
    import torch

    try:
        program = torch.export.load(path)
        chol = program.state_dict["chol"].numpy()
        module = program.module()
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise StoreError(f"torch {torch.__version__} cannot read {path}: {reason}") from error
    if chol.shape != (nu, nu):
        raise StoreError(f"{path} is damaged: its covariance has shape {chol.shape}, not {nu, nu}")
    return ExportedPolicy(module, facts, chol)


def _read_facts(path: Path) -> tuple[PolicyFacts, int]:
    """Facts and action size, after every check that needs no torch, whose own errors are long."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.split("/")[-1] == FACTS_FILE]
            if not names:
                raise StoreError(f"{path} was not written by gps: it has no {FACTS_FILE}")
            if (broken := archive.testzip()) is not None:
                raise StoreError(f"{path} is damaged: {broken} has a wrong checksum")
            values = json.loads(archive.read(names[0]))
    except zipfile.BadZipFile as error:
        raise StoreError(f"{path} is no exported policy, or is cut short: {error}") from error
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    return read_facts(path, values)


def read_facts(path: Path, values: Any) -> tuple[PolicyFacts, int]:
    """Facts and action size out of the decoded JSON; StoreError names the file."""
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise StoreError(f"{path} was not written by gps")
    if values.get("schema_version") != SCHEMA_VERSION:
        raise StoreError(
            f"{path} has schema version {values.get('schema_version')}, this gps reads "
            f"{SCHEMA_VERSION}; use gps {values.get('gps_version')}"
        )
    try:
        facts = PolicyFacts(
            obs_layout=Layout(tuple((str(name), int(n)) for name, n in values["obs_layout"])),
            dt=float(values["dt"]),
            experiment=str(values["experiment"]),
            iteration=values["iteration"],
            seed=values["seed"],
            image_shape=tuple(values["image_shape"]) if "image_shape" in values else None,
        )
        return facts, int(values["nu"])
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise StoreError(f"{path} is damaged: {FACTS_FILE}: {error}") from error
