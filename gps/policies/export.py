"""Policies as files that need torch only: `export_program` makes one, `load` reads it.

The file is a PT2 archive of `torch.export`. Its program maps observations (B, no), float64 or
float32 and in the units of the world, to the mean action (B, nu) and the action covariance
(nu, nu), both float64; the normaliser is inside, and B is free. What else a user of the policy has
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
from gps.policies.neural import NeuralPolicy
from gps.rng import stream
from gps.types import Array, Layout, readonly

if TYPE_CHECKING:
    import torch

SCHEMA, SCHEMA_VERSION = "gps policy", 1
FACTS_FILE = "gps_policy.json"
"""Name of the extra file with the facts."""
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

    def __post_init__(self) -> None:
        if not 0 < self.dt < np.inf:
            raise ConfigError(f"PolicyFacts.dt must be above 0 s and finite, got {self.dt}")
        for name in ("iteration", "seed"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ConfigError(
                    f"PolicyFacts.{name} must be a whole number of at least 0, got {value!r}"
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
    def of(cls, policy: NeuralPolicy, facts: PolicyFacts) -> ExportedPolicy:
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

    def mean(self, obs: Array) -> Array:
        """Mean actions (..., nu) for observations (..., no); raises ShapeError."""
        import torch

        from gps.policies import _modules

        obs = np.asarray(obs, dtype=np.float64)
        if obs.ndim == 0 or obs.shape[-1] != self.no:
            entries = ", ".join(f"{name} {n}" for name, n in self.obs_layout.entries)
            raise ShapeError(
                f"observations must have {self.no} values ({entries}), got shape {obs.shape}"
            )
        rows = torch.tensor(obs.reshape(-1, self.no))
        if len(rows) == 0:  # a network of the user's may not like it
            return np.zeros((*obs.shape[:-1], self.nu))
        with _modules.one_thread(), torch.no_grad():
            mean: Array = self._module(rows)[0].numpy()
        return mean.reshape(*obs.shape[:-1], self.nu)

    def act(self, x: Array, obs: Array, t: int, noise: Array) -> Array:
        """Actions (N, nu) for observations (N, no) and unit-variance noise (N, nu)."""
        return self.mean(obs) + noise @ self._chol.T

    def predict(
        self,
        obs: Array,
        state: object = None,
        episode_start: object = None,
        deterministic: bool = True,
        *,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, None]:
        """Action (..., nu) and None, as `NeuralPolicy.predict`; two arguments unused.

        With `deterministic=False` the policy's noise is drawn from `rng`, which must be given.
        """
        action = self.mean(obs)
        if not deterministic:
            if rng is None:
                raise ConfigError("predict(deterministic=False) needs rng, the generator of noise")
            action = action + rng.normal(size=action.shape) @ self._chol.T
        return action, None


def _traceable(policy: NeuralPolicy, facts: PolicyFacts) -> torch.nn.Module:
    """The module behind an export; ShapeError when the layout is not the policy's."""
    from gps.policies import _program

    if facts.obs_layout.size != policy.no:
        raise ShapeError(
            f"PolicyFacts.obs_layout describes {facts.obs_layout.size} values, the policy takes "
            f"{policy.no}"
        )
    return _program.PolicyProgram(policy.module(), policy.chol).eval()


def export_program(policy: NeuralPolicy, facts: PolicyFacts) -> bytes:
    """The archive of a policy, to be written to a file that ends in .pt2.

    The archive is read back before it is returned, and its mean actions compared with the policy's
    for 1 and for 5 observations. Raises ConfigError where torch cannot export the network for any
    number of rows, or what it exports computes something else; ShapeError when the layout is not
    the policy's.
    """
    import torch

    module = _traceable(policy, facts)
    kind = type(policy.network).__name__
    example = torch.zeros(2, policy.no, dtype=torch.float64)  # of 1 row torch makes a constant
    file = io.BytesIO()
    try:
        program = torch.export.export(
            module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
        )
        torch.export.save(program, file, extra_files={FACTS_FILE: _to_json(policy, facts)})
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:  # torch has no one class
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(
            f"torch.export cannot trace the network {kind}: {reason.rstrip('.')}; it must take any "
            "number of rows and not branch on their values"
        ) from error
    file.seek(0)
    again = ExportedPolicy(torch.export.load(file).module(), facts, policy.chol)
    obs = policy.obs_mean + policy.obs_std * stream(0, "export").normal(size=(5, policy.no))
    for rows in (obs, obs[:1]):
        want = policy.mean(rows)
        try:
            have = again.mean(rows)
        except (RuntimeError, AssertionError) as error:  # a guard of the program
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ConfigError(
                f"the exported network {kind} does not take {len(rows)} rows: {reason}"
            ) from error
        scale = np.abs(want).max(initial=1.0)
        # a NaN in both is the policy's own affair
        if not np.allclose(have, want, rtol=0.0, atol=_TOLERANCE * scale, equal_nan=True):
            raise ConfigError(
                f"the exported network {kind} does not compute what the policy does (off by "
                f"{np.abs(have - want).max():.3g} for {len(rows)} observations); all that its "
                "module depends on must be in its parameters and the network's configuration"
            )
    return file.getvalue()


def _to_json(policy: NeuralPolicy, facts: PolicyFacts) -> str:
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
    return json.dumps(values, allow_nan=False)


def load(path: str | Path) -> ExportedPolicy:
    """A policy from a file that `export_program` made; raises StoreError.

    torch reads the archive: load files only that come from where you trust.
    """
    path = Path(path)
    if path.is_dir():
        raise StoreError(f"{path} is a folder; gps.load_policy takes the folder of a run")
    if not path.is_file():
        raise StoreError(f"{path} does not exist")
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
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise StoreError(f"{path} was not written by gps")
    if values.get("schema_version") != SCHEMA_VERSION:
        raise StoreError(
            f"{path} has schema version {values.get('schema_version')}, this gps reads "
            f"{SCHEMA_VERSION}; use gps {values.get('gps_version')}"
        )
    return _facts(path, values)


def _facts(path: Path, values: dict[str, Any]) -> tuple[PolicyFacts, int]:
    try:
        facts = PolicyFacts(
            obs_layout=Layout(tuple((str(name), int(n)) for name, n in values["obs_layout"])),
            dt=float(values["dt"]),
            experiment=str(values["experiment"]),
            iteration=values["iteration"],
            seed=values["seed"],
        )
        return facts, int(values["nu"])
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise StoreError(f"{path} is damaged: {FACTS_FILE}: {error}") from error
