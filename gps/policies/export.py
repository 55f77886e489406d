"""Policies as files that need torch only: `export_program` makes one, `load` reads it.

`gps.policies.onnx` makes files that need onnxruntime only; `load` reads them too.

The file is a PT2 archive of `torch.export`. Its program maps observations (B, no), float64 or
float32 and in the units of the world, to the mean action (B, nu) and the action covariance
(nu, nu), both float64; the normaliser is inside, and B is free. The program of a policy that sees
takes pictures (B, height, width, channels), uint8, as well. That of a policy with memory takes
what it remembers, (B, size), and gives what it remembers next as a third result; it begins with
`memory0` of the facts, where null (NaN) means that nothing has been seen. What else a user of the
policy has to know stands in the archive's extra file `gps_policy.json`: also `control_limits`, to
which whoever acts has to clip, unless `clipped` says that the program does. Where there is no gps:

    extra = {"gps_policy.json": ""}
    program = torch.export.load("policy.pt2", extra_files=extra).module()
    facts = json.loads(extra["gps_policy.json"])
    mean, covariance = program(obs)  # every facts["dt"] seconds

and with memory:

    memory = torch.tensor(numpy.array([facts["memory0"]], dtype=float))  # at the beginning
    mean, covariance, memory = program(obs, memory)
"""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gps.errors import ConfigError, ShapeError, StoreError
from gps.fields import readonly
from gps.policies.memory import begun, checked, mean_along, predict_step
from gps.policies.neural import GlobalPolicy, predicted
from gps.protocols import has_memory, needs_images
from gps.rng import stream
from gps.types import Array, Images, Layout

if TYPE_CHECKING:
    import torch

SCHEMA, SCHEMA_VERSION = "gps policy", 1
FACTS_FILE = "gps_policy.json"
"""Name of the extra file with the facts."""
SINGLE_TOLERANCE = 1e-5
"""Agreement of actions where a part of the network is float32, relative to their spread."""
TOLERANCE = 1e-9
"""Of a check in float64; what torch rounds differently is far below."""


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
    cameras: tuple[str, ...] = ()
    """Names of the cameras whose pictures stand one behind the other in the channels, three each;
    empty where that is not known."""
    memory0: tuple[float, ...] | None = None
    """What a policy with memory remembers before the first observation, NaN where nothing; None for
    a policy without memory."""

    limits: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Lowest and highest actions (nu,) that the world takes, infinite where it has no limit; None
    where that is not known."""
    clipped: bool = False
    """Whether the program's mean action is within the limits already. Otherwise who acts clips."""
    single_obs: bool = False
    """Whether an .onnx file takes float32 observations, and not float64."""

    def __post_init__(self) -> None:
        if self.clipped and self.limits is None:
            raise ConfigError("PolicyFacts.clipped needs the limits of the world, which has none")
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
        if self.cameras and (shape is None or shape[2] != 3 * len(self.cameras)):
            raise ConfigError(
                f"PolicyFacts.cameras must have a name for each 3 channels of image_shape {shape}, "
                f"got {self.cameras!r}"
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
    def of(cls, policy: GlobalPolicy, facts: PolicyFacts) -> ExportedPolicy:
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

    @property
    def has_memory(self) -> bool:
        """Whether the policy remembers: then `act` and `predict` take and give what it does."""
        return self._facts.memory0 is not None

    @property
    def memory0(self) -> Array:
        """What is remembered before the first observation, (size,); empty without memory."""
        return np.array(self._facts.memory0 or (), dtype=np.float64)

    def mean(self, obs: Array, images: Images | None = None) -> Array:
        """Mean actions (..., nu) for observations (..., no); raises ShapeError.

        images: (..., height, width, channels) uint8, of a policy that sees. With memory: along
        trajectories of observations (..., T, no), each from its beginning.
        """
        if self.has_memory:
            return mean_along(self, obs)
        obs = self._observations(obs)
        pictures = self._pictures(obs, images)
        rows = obs.reshape(-1, self.no)
        if len(rows) == 0:  # a network of the user's may not like it
            return np.zeros((*obs.shape[:-1], self.nu))
        return self._outputs(rows, *pictures)[0].reshape(*obs.shape[:-1], self.nu)

    def step(self, obs: Array, memory: Array) -> tuple[Array, Array]:
        """Mean actions (..., nu) and what is remembered next, (..., size); of a policy with memory.

        obs: (..., no). memory: (..., size), as the last step gave it, or `memory0`. ShapeError.
        """
        if not self.has_memory:
            raise ShapeError("this policy has no memory; ask for its mean action")
        obs, memory = checked(self, self._observations(obs), memory)
        lead, size = obs.shape[:-1], memory.shape[-1]
        rows = obs.reshape(-1, self.no)
        if len(rows) == 0:
            return np.zeros((*lead, self.nu)), memory
        mean, _, after = self._outputs(rows, memory.reshape(-1, size))
        return mean.reshape(*lead, self.nu), after.reshape(*lead, size)

    def _observations(self, obs: Array) -> Array:
        """As float64; ShapeError for another size."""
        obs = np.asarray(obs, dtype=np.float64)
        if obs.ndim == 0 or obs.shape[-1] != self.no:
            entries = ", ".join(f"{name} {n}" for name, n in self.obs_layout.entries)
            raise ShapeError(
                f"observations must have {self.no} values ({entries}), got shape {obs.shape}"
            )
        return obs

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

    def _outputs(self, *inputs: np.ndarray) -> tuple[Array, ...]:
        """All that the program gives for rows (B, ...) of its inputs, B >= 1."""
        import torch

        from gps.policies import _modules

        with _modules.one_thread(), torch.no_grad():
            return tuple(out.numpy() for out in self._module(*map(torch.tensor, inputs)))

    def act(
        self,
        x: Array,
        obs: Array,
        t: int,
        noise: Array,
        images: Images | None = None,
        *,
        memory: Array | None = None,
    ) -> Any:
        """Actions (N, nu) for observations (N, no) and unit-variance noise (N, nu).

        With memory (N, size): the actions and what is remembered next; see `gps.protocols.Policy`.
        """
        if not self.has_memory:
            return self.mean(obs, images) + noise @ self._chol.T
        mean, after = self.step(obs, begun(self, obs.shape[:-1]) if memory is None else memory)
        return mean + noise @ self._chol.T, after

    def predict(
        self,
        obs: Array,
        state: Array | None = None,
        episode_start: Array | bool | None = None,
        deterministic: bool = True,
        *,
        images: Images | None = None,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, Array | None]:
        """Action (..., nu) and None, as `NeuralPolicy.predict`; two arguments unused.

        With memory: action and state for the next call, as `gps.policies.memory.Remembering`. With
        `deterministic=False` the policy's noise is drawn from `rng`, which must be given.
        """
        if self.has_memory:
            return predict_step(self, obs, state, episode_start, deterministic, rng)
        return predicted(self.mean(obs, images), self._chol, deterministic, rng), None


def _traceable(policy: GlobalPolicy, facts: PolicyFacts) -> torch.nn.Module:
    """The module behind an export; ShapeError when the layout is not the policy's."""
    from gps.policies import _program

    check_facts(policy, facts)
    kind = _program.SeeingProgram if needs_images(policy) else _program.PolicyProgram
    if has_memory(policy):
        kind = _program.RememberingProgram
    return kind(exact_module(policy), policy.chol, clip_of(facts)).eval()


def exact_module(policy: GlobalPolicy) -> torch.nn.Module:
    """The policy's module in float64, also where it computes its convolutions in float32: rounded
    by two runtimes in two ways these would differ by a few millionths of the largest action."""
    return policy.module().double()


def clip_of(facts: PolicyFacts) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The limits that the program applies itself."""
    return facts.limits if facts.clipped else None


def check_facts(policy: GlobalPolicy, facts: PolicyFacts) -> None:
    """Raise ShapeError when layout or pictures are not the policy's."""
    if facts.obs_layout.size != policy.no:
        raise ShapeError(
            f"PolicyFacts.obs_layout describes {facts.obs_layout.size} values, the policy takes "
            f"{policy.no}"
        )
    shape = getattr(policy, "image_shape", None)
    if facts.image_shape != shape:
        raise ShapeError(f"PolicyFacts.image_shape must be {shape}, got {facts.image_shape}")
    for bound in facts.limits or ():
        if len(bound) != policy.nu:
            raise ShapeError(
                f"PolicyFacts.limits must have {policy.nu} values each, got {facts.limits}"
            )
    memory0 = memory_of(policy)
    if (memory0 is None) != (facts.memory0 is None) or not np.array_equal(
        memory0 or (), facts.memory0 or (), equal_nan=True
    ):
        raise ShapeError(f"PolicyFacts.memory0 must be {memory0}, got {facts.memory0}")


def memory_of(policy: object) -> tuple[float, ...] | None:
    """What belongs into `PolicyFacts.memory0`."""
    if not has_memory(policy):
        return None
    memory0: Array = policy.memory0  # type: ignore[attr-defined]
    return tuple(memory0.tolist())


def examples(facts: PolicyFacts, rows: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Inputs to trace and to try a program with: observations, and what else it takes.

    Observations (rows, no) are standard normal; memory is that of the beginning.
    """
    rng = stream(seed, "export")
    inputs: list[np.ndarray] = [rng.normal(size=(rows, facts.obs_layout.size))]
    if facts.image_shape is not None:
        shape = (rows, *facts.image_shape)
        inputs.append(rng.integers(0, 256, size=shape, dtype=np.uint8))
    if facts.memory0 is not None:
        inputs.append(np.tile(np.array(facts.memory0, dtype=np.float64), (rows, 1)))
    return tuple(inputs)


def export_program(policy: GlobalPolicy, facts: PolicyFacts) -> bytes:
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
        with warnings.catch_warnings():  # torch's own recurrent layers keep lists of their weights
            warnings.filterwarnings("ignore", message=".*were assigned during export")
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
    check_export(policy, again)
    return file.getvalue()


def check_export(policy: GlobalPolicy, again: ExportedPolicy, tolerance: float = TOLERANCE) -> None:
    """Compare mean actions of a policy and of its export, for 1 and for 5 observations.

    tolerance: relative to the spread of each action, whatever its unit and offset. A policy that
    computes its pictures in float32 is compared as it is in float64, which is what was exported,
    and its own actions to 1e-5. Raises ConfigError.
    """
    kind = type(policy.network).__name__
    obs, *images = examples(again.facts, 5)
    if again.has_memory:  # along trajectories of some steps
        obs, images = stream(0, "export", 1).normal(size=(5, 4, policy.no)), []
    obs = policy.obs_mean + policy.obs_std * obs
    for n in (5, 1):
        rows = [a[:n] for a in (obs, *images)]
        want = _within(policy.mean(*rows), again.facts)
        if n > 1:
            scale, rounding = _scales(want, policy)
        if getattr(policy.network, "single", False):
            rounded, want = want, _exact_mean(policy, again.facts, rows)
            if not np.allclose(rounded, want, rtol=0.0, atol=SINGLE_TOLERANCE * scale + rounding):
                raise ConfigError(f"the network {kind} is not itself in float64")
        try:
            have = again.mean(*rows)
        except (RuntimeError, AssertionError, ConfigError) as error:  # a guard of the program
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ConfigError(
                f"the exported network {kind} does not take {n} rows: {reason}"
            ) from error
        # a NaN in both is the policy's own affair
        near = np.isclose(have, want, rtol=0.0, atol=tolerance * scale + rounding, equal_nan=True)
        if not near.all():
            raise ConfigError(
                f"the exported network {kind} does not compute what the policy does (off by "
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


def _within(mean: Array, facts: PolicyFacts) -> Array:
    """Mean actions as a program with these facts gives them."""
    limits = clip_of(facts)
    return mean if limits is None else np.clip(mean, *map(np.array, limits))


def _exact_mean(policy: GlobalPolicy, facts: PolicyFacts, rows: Sequence[np.ndarray]) -> Array:
    """Mean actions of `exact_module`."""
    import torch

    from gps.policies import _modules

    with _modules.one_thread(), torch.no_grad():
        mean: Array = exact_module(policy)(*map(torch.tensor, rows)).numpy()
    return _within(mean, facts)


def facts_json(policy: GlobalPolicy, facts: PolicyFacts, **more: Any) -> str:
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
        values["images"] = {
            "dtype": "uint8",
            "axes": "batch, height (from the top), width (from the left), channels",
            "channels": "red, green, blue of each camera in turn",
            "cameras": list(facts.cameras),
        }
    if facts.memory0 is not None:
        values["memory0"] = [None if np.isnan(v) else v for v in facts.memory0]
    if facts.limits is not None:
        low, high = ([v if np.isfinite(v) else None for v in bound] for bound in facts.limits)
        values["control_limits"] = {"low": low, "high": high, "clipped": facts.clipped}
    if facts.single_obs:
        values["obs_dtype"] = "float32"
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


def _memory(values: Any) -> tuple[float, ...]:
    """What stands in the JSON, with NaN for null."""
    return tuple(np.array(values, dtype=np.float64).reshape(-1).tolist())


def _limits(values: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What stands in the JSON, with infinity for null."""
    low, high = (
        tuple(end if v is None else float(v) for v in values[name])
        for name, end in (("low", -np.inf), ("high", np.inf))
    )
    return low, high


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
            cameras=tuple(map(str, values.get("images", {}).get("cameras", ()))),
            memory0=_memory(values["memory0"]) if "memory0" in values else None,
            limits=_limits(values["control_limits"]) if "control_limits" in values else None,
            clipped=bool(values.get("control_limits", {}).get("clipped", False)),
            single_obs=values.get("obs_dtype") == "float32",
        )
        return facts, int(values["nu"])
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise StoreError(f"{path} is damaged: {FACTS_FILE}: {error}") from error
