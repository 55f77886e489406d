"""Worlds simulated by MuJoCo: all samples of a condition step together in one `mujoco.batch`."""

from __future__ import annotations

import copy
import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from mujoco.batch import Batch
from mujoco.batch import SimulationError as BatchError

from gps.agents._kernels import apply, observe
from gps.agents.base import (
    Failures,
    Simulation,
    check_actions,
    check_condition,
    check_noise,
    check_start_noise,
    entry_indices,
    require,
    smooth_noise,
)
from gps.agents.rendering import render_states
from gps.data import model_path
from gps.errors import ConfigError, GPSError, ShapeError, SimulationError, choices
from gps.rng import stream
from gps.types import Array, Layout, LinearGaussianController, Policy, Rollouts

log = logging.getLogger(__name__)

ENTRIES = ("joint_pos", "joint_vel", "end_points", "end_point_velocities")
Vector3 = tuple[float, float, float]

_NONE, _VEL = int(mujoco.mjtStage.mjSTAGE_NONE), int(mujoco.mjtStage.mjSTAGE_VEL)
_WARNINGS = {
    int(mujoco.mjtWarning.mjWARN_INERTIA): "near-singular inertia matrix",
    int(mujoco.mjtWarning.mjWARN_CONTACTFULL): "contact list full",
    int(mujoco.mjtWarning.mjWARN_CNSTRFULL): "constraint list full",
    int(mujoco.mjtWarning.mjWARN_BADQPOS): "bad number in qpos",
    int(mujoco.mjtWarning.mjWARN_BADQVEL): "bad number in qvel",
    int(mujoco.mjtWarning.mjWARN_BADQACC): "bad number in qacc (unstable)",
    int(mujoco.mjtWarning.mjWARN_BADCTRL): "bad number in ctrl",
}
_KEPT_BATCHES = 4


@dataclass(frozen=True, kw_only=True)
class Condition:
    """How one start differs from the configuration."""

    qpos: tuple[float, ...] | None = None
    """Start joint positions in place of the configuration's, rad or m."""
    qpos_offset: tuple[float, ...] | None = None
    """Added to the start joint positions, rad or m."""
    body_offsets: tuple[tuple[str, Vector3], ...] = ()
    """Bodies moved from their place in the model: (name, (x, y, z)) in the parent's frame, in m."""

    def __post_init__(self) -> None:
        for field in ("qpos", "qpos_offset"):
            value = getattr(self, field)
            if value is not None:
                object.__setattr__(self, field, tuple(float(v) for v in value))
        both = self.qpos is not None and self.qpos_offset is not None
        require(not both, self, "qpos_offset", "None where qpos is given", self.qpos_offset)
        offsets = tuple((str(b), tuple(float(v) for v in p)) for b, p in self.body_offsets)
        good = all(len(p) == 3 and np.isfinite(p).all() for _, p in offsets)
        require(good, self, "body_offsets", "(body name, (x, y, z)) pairs", self.body_offsets)
        object.__setattr__(self, "body_offsets", offsets)


def random_conditions(
    count: int, *, body: str, half_width: float, seed: int, purpose: str = "test conditions"
) -> tuple[Condition, ...]:
    """Conditions with `body` shifted uniformly inside a horizontal square about its place.

    half_width: largest shift along x and along y, in m. The same seed gives the same conditions,
    and the first ones stay the same when `count` grows.
    """
    return tuple(
        Condition(body_offsets=((body, (float(x), float(y), 0.0)),))
        for x, y in (
            stream(seed, purpose, i).uniform(-half_width, half_width, size=2) for i in range(count)
        )
    )


@dataclass(frozen=True, kw_only=True)
class MujocoConfig:
    """A world made of a MuJoCo model with hinge and slide joints and one control per motor."""

    model: str
    """Name of a model in `gps.data`, or a path to an MJCF file that ends in .xml."""
    T: int = 100
    """Steps of one rollout."""
    dt: float = 0.05
    """Duration of one control step, in seconds; the controls are constant during a step."""
    substeps: int = 5
    """Simulator steps per control step; the simulator's time step is dt / substeps."""
    sites: tuple[str, ...] = ()
    """Sites of the model that are the end points, in order."""
    state: tuple[str, ...] = ("joint_pos", "joint_vel")
    """State entries: joint_pos (rad, m), joint_vel, end_points (m), end_point_velocities (m/s)."""
    obs: tuple[str, ...] | None = None
    """What the global policy sees, any of the same entries; None for the whole state."""
    qpos: tuple[float, ...] | None = None
    """Start joint positions, rad or m; None for the model's."""
    qvel: tuple[float, ...] | None = None
    """Start joint velocities, rad/s or m/s; None for rest."""
    conditions: tuple[Condition, ...] = (Condition(),)
    """Training conditions."""
    test_conditions: tuple[Condition, ...] = ()
    """Conditions kept for evaluation."""
    start_qpos_std: float | tuple[float, ...] = 0.0
    """Standard deviation of the start joint positions, rad or m: one for all joints or one each."""
    start_qvel_std: float | tuple[float, ...] = 0.0
    """Standard deviation of the start joint velocities, rad/s or m/s."""
    noise_sigma: float = 0.0
    """Width in steps of the Gaussian that smooths action noise over time; 0 leaves it white."""
    noise_renormalise: bool = True
    """Whether smoothed noise is scaled back to unit variance."""
    limit: float = 1e4
    """A sample with a position or velocity above this, in SI units, has failed."""

    def __post_init__(self) -> None:
        require(self.T >= 2, self, "T", "at least 2 steps", self.T)
        require(0 < self.dt < math.inf, self, "dt", "above 0 s", self.dt)
        require(self.substeps >= 1, self, "substeps", "1 or more", self.substeps)
        require(len(self.state) > 0, self, "state", "one entry or more", self.state)
        require(len(self.conditions) > 0, self, "conditions", "one or more", self.conditions)
        require(
            0 <= self.noise_sigma < math.inf, self, "noise_sigma", "0 or more", self.noise_sigma
        )
        require(self.limit > 0, self, "limit", "above 0", self.limit)
        for field in ("sites", "state", "obs", "conditions", "test_conditions"):
            value = getattr(self, field)
            require(not isinstance(value, str), self, field, "a tuple of names", value)
            if value is not None:
                object.__setattr__(self, field, tuple(value))
        for field in ("qpos", "qvel", "start_qpos_std", "start_qvel_std"):
            value = getattr(self, field)
            if value is not None and np.ndim(value):
                object.__setattr__(self, field, tuple(float(v) for v in value))
            good = value is None or bool(np.isfinite(value).all())
            require(good, self, field, "finite", value)
        for field in ("start_qpos_std", "start_qvel_std"):
            value = getattr(self, field)
            require(bool(np.all(np.asarray(value) >= 0)), self, field, "0 or more", value)
        for field in ("state", "obs"):
            names = getattr(self, field) or ()
            for name in names:
                if name not in ENTRIES:
                    raise ConfigError(f"MujocoConfig.{field}: {choices('entry', name, ENTRIES)}")
                needs_sites = name.startswith("end_point")
                require(bool(self.sites) or not needs_sites, self, "sites", f"named for {name}", ())
            require(len(set(names)) == len(names), self, field, "without repeated entries", names)

    def build(self, threads: int = 1) -> MujocoAgent:
        """Load the model and check the names and sizes; `threads` step the samples in parallel."""
        return MujocoAgent(self, threads)


class MujocoAgent:
    """Runs all samples of a rollout together, with one Python call per control step.

    Not to be used from several Python threads at once: the simulations are reused.
    """

    def __init__(self, config: MujocoConfig, threads: int = 1) -> None:
        self.config, self.threads = config, threads
        require(threads >= 1, config, "build(threads)", "1 or more", threads)
        path = model_path(config.model)
        try:
            model = mujoco.MjModel.from_xml_path(str(path))
        except ValueError as error:
            raise ConfigError(f"{path}: MuJoCo cannot load this model: {error}") from error
        if model.nq != model.nv or model.na or model.nmocap:
            raise ConfigError(
                f"{path}: only models with hinge and slide joints, without actuator activations "
                f"and mocap bodies can be used (nq={model.nq}, nv={model.nv}, na={model.na})"
            )
        model.opt.timestep = config.dt / config.substeps
        self.model = model
        nv, sites = model.nv, self._site_ids(config.sites)
        sizes = dict(zip(ENTRIES, (nv, nv, 3 * len(sites), 3 * len(sites)), strict=True))
        everything = Layout(tuple(sizes.items()))
        self._layout = everything.select(config.state)
        self._obs_layout = everything.select(config.state if config.obs is None else config.obs)
        self._state = entry_indices(everything, self._layout.names)
        self._view = entry_indices(everything, self._obs_layout.names)
        self._full = np.empty(everything.size)
        self._sites = sites
        bodies = model.site_bodyid[sites]
        self._roots = model.body_rootid[bodies].astype(np.int64)
        self._moves = self._moving_dofs(bodies)
        self._pos_col, self._vel_col = (
            self._layout.slice(n).start if n in self._layout.names else -1 for n in ENTRIES[:2]
        )
        limited = model.actuator_ctrllimited.astype(bool)
        self._low = np.where(limited, model.actuator_ctrlrange[:, 0], -np.inf)
        self._high = np.where(limited, model.actuator_ctrlrange[:, 1], np.inf)
        self._qpos = self._sized("qpos", config.qpos, model.qpos0)
        self._qvel = self._sized("qvel", config.qvel, np.zeros(nv))
        self._start_std = np.concatenate(
            [
                self._sized(field, (std,) * nv if isinstance(std, (int, float)) else std, None)
                for field, std in (
                    ("start_qpos_std", config.start_qpos_std),
                    ("start_qvel_std", config.start_qvel_std),
                )
            ]
        )
        self._conditions = {
            test: [self._prepare(c) for c in conditions]
            for test, conditions in ((False, config.conditions), (True, config.test_conditions))
        }
        self._batches: dict[int, Batch] = {}

    def _site_ids(self, names: tuple[str, ...]) -> np.ndarray:
        known = [self.model.site(i).name for i in range(self.model.nsite)]
        for name in names:
            if name not in known:
                raise ConfigError(f"MujocoConfig.sites: {choices('site', name, known)}")
        return np.array([known.index(name) for name in names], dtype=np.int64)

    def _moving_dofs(self, bodies: np.ndarray) -> np.ndarray:
        """Whether each joint lies between the world and the body, (ns, nv)."""
        moves = np.zeros((len(bodies), self.model.nv), dtype=np.bool_)
        for s, body in enumerate(bodies):
            while body:
                first, n = self.model.body_dofadr[body], self.model.body_dofnum[body]
                moves[s, first : first + n] = n > 0
                body = self.model.body_parentid[body]
        return moves

    def _sized(self, field: str, value: Any, default: Any) -> Array:
        vector = np.array(default if value is None else value, dtype=np.float64)
        if vector.shape != (self.model.nv,):
            raise ConfigError(
                f"MujocoConfig.{field} must have {self.model.nv} values, one per joint of "
                f"{self.config.model}, got {vector.size}"
            )
        return vector

    def _prepare(self, condition: Condition) -> tuple[mujoco.MjModel, Array]:
        """The condition's own model, made from the unshifted one, and its start positions."""
        qpos = self._sized("conditions: qpos", condition.qpos, self._qpos)
        if condition.qpos_offset is not None:
            qpos = qpos + self._sized("conditions: qpos_offset", condition.qpos_offset, None)
        model = copy.copy(self.model)
        known = [model.body(i).name for i in range(1, model.nbody)]
        for name, offset in condition.body_offsets:
            if name not in known:
                raise ConfigError(f"Condition.body_offsets: {choices('body', name, known)}")
            model.body(name).pos += offset
        if condition.body_offsets:
            mujoco.mj_setConst(model, mujoco.MjData(model))
        return model, qpos

    @property
    def layout(self) -> Layout:
        """The configured state entries."""
        return self._layout

    @property
    def obs_layout(self) -> Layout:
        """The configured observation entries."""
        return self._obs_layout

    @property
    def T(self) -> int:
        """Steps of one rollout."""
        return self.config.T

    @property
    def dt(self) -> float:
        """Duration of one step in seconds."""
        return self.config.dt

    @property
    def nu(self) -> int:
        """Number of motors."""
        return int(self.model.nu)

    @property
    def n_start(self) -> int:
        """Joint positions and velocities, if starts are disturbed, else 0."""
        return 2 * self.model.nv if self._start_std.any() else 0

    @property
    def n_conditions(self) -> int:
        """Training conditions."""
        return len(self._conditions[False])

    @property
    def n_test_conditions(self) -> int:
        """Conditions kept for evaluation."""
        return len(self._conditions[True])

    @property
    def control_range(self) -> tuple[Array, Array]:
        """Lowest and highest control of each motor, (nu,) each; infinite where unlimited."""
        return self._low.copy(), self._high.copy()

    def warm_up(self) -> None:
        """Compile the kernels, or load them: a rollout without controls that nobody sees."""
        T, nu, nx = self.config.T, self.nu, self.layout.size
        idle = LinearGaussianController(
            K=np.zeros((T, nu, nx)), k=np.zeros((T, nu)), chol=np.tile(np.eye(nu), (T, 1, 1))
        )
        with suppress(SimulationError):
            self.rollout(idle, 0, np.zeros((1, T, nu)), np.zeros((1, self.n_start)))

    def model_of(self, condition: int, *, test: bool = False) -> mujoco.MjModel:
        """A copy of the model that a condition runs on, its bodies shifted."""
        check_condition(condition, len(self._conditions[test]), test=test)
        return copy.copy(self._conditions[test][condition][0])

    model_entries = ENTRIES[:2]
    """State entries that are the state of `known_model`, in its order."""

    def known_model(self, condition: int, models: Any, *, test: bool = False) -> Any:
        """The condition's dynamics for planning, bodies shifted; the state is (qpos, qvel).

        models: the module `gps.control.models`, which worlds do not import. Trajectories hold NaN
        from where `rollout` would name a failed sample: beyond the configured limit, or where the
        simulator is unstable.
        """
        model = self.model_of(condition, test=test)
        known = models.MujocoModel(model, substeps=self.config.substeps)
        return _Guarded(known, self.config.limit)

    def whole_states(
        self, condition: int, states: Array, *, test: bool = False
    ) -> tuple[Array, dict[str, Array]]:
        """The states (S, nx) at joint positions and velocities (S, 2 nv), and what depends on them.

        The dictionary holds d entry / dx, (S, size, nx), as `Rollouts.jacobians` does. Raises
        ShapeError.
        """
        check_condition(condition, len(self._conditions[test]), test=test)
        states, nv = np.ascontiguousarray(states, dtype=np.float64), self.model.nv
        if states.ndim != 2 or states.shape[1] != 2 * nv:
            raise ShapeError(f"states must have shape (S, {2 * nv}), got {states.shape}")
        S, nx = len(states), self.layout.size
        batch = self._batch(1, self._conditions[test][condition][0])
        inputs, bad = self._inputs(batch), np.zeros(1, dtype=np.bool_)
        X, obs = np.empty((S, 1, nx)), np.empty((S, 1, self.obs_layout.size))
        found = {
            name: np.zeros((S, 1, 1, *J.shape[2:]))
            for name, J in self._empty_jacobians(1, 1).items()
        }
        none = np.empty((0, 0, 0, 0))
        for i in range(S):
            self._reset(batch, states[i : i + 1], None)
            J, V = (found[n][i] if n in found else none for n in ENTRIES[2:])
            observe(0, math.inf, *inputs, X[i : i + 1], obs[i : i + 1], J, V, bad)
        return _locked(X[:, 0]), {name: _locked(J[:, 0, 0]) for name, J in found.items()}

    def start_state(self, condition: int, *, test: bool = False) -> Array:
        """The undisturbed state (nx,) at which rollouts of `condition` start."""
        check_condition(condition, len(self._conditions[test]), test=test)
        model, qpos = self._conditions[test][condition]
        batch = self._batch(1, model)
        self._reset(batch, np.concatenate((qpos, self._qvel))[None], None)
        X, obs = np.empty((1, 1, self.layout.size)), np.empty((1, 1, self.obs_layout.size))
        none, bad = np.empty((0, 0, 0, 0)), np.zeros(1, dtype=np.bool_)
        observe(0, self.config.limit, *self._inputs(batch), X, obs, none, none, bad)
        return _locked(X[0, 0])

    def rollout(
        self,
        policy: Policy,
        condition: int,
        noise: Array,
        start_noise: Array | None = None,
        *,
        test: bool = False,
    ) -> Rollouts:
        """See `gps.types.Agent`.

        Every step's end points, their velocities and their Jacobians belong to that step's joint
        positions and velocities. `Rollouts.jacobians` holds end_points (if joint_pos is in the
        state) and end_point_velocities (if joint_vel is there too), placed in the columns of the
        joint entries. Actions are clipped to the control range before they are recorded.
        """
        cfg, T, nu = self.config, self.config.T, self.nu
        check_condition(condition, len(self._conditions[test]), test=test)
        noise = smooth_noise(
            check_noise(noise, T, nu), cfg.noise_sigma, renormalise=cfg.noise_renormalise
        )
        N = noise.shape[0]
        model, start = self._starts(condition, N, start_noise, test=test)
        run = _Run(self, self._batch(N, model), condition, start, T)
        # the policy sees what it cannot change; time comes first, so that a step is contiguous
        X_view, obs_view, noise_view = _locked(run.X), _locked(run.obs), _locked(_swapped(noise))
        act, observe, apply, advance = policy.act, run.observe, run.apply, run.advance
        with run.quiet():
            for t in range(T):
                if not observe(t, t):
                    break
                u = check_actions(act(X_view[t], obs_view[t], t, noise_view[t]), N, nu)
                if not apply(t, t, u):
                    break
                if t + 1 < T and not advance(t):
                    break
        run.failures.raise_if_any()
        return Rollouts(
            X=_locked(_swapped(run.X)),
            U=_locked(_swapped(run.U)),
            obs=_locked(_swapped(run.obs)),
            noise=noise,
            layout=self.layout,
            condition=condition,
            jacobians={name: _locked(value) for name, value in run.jacobians.items()},
        )

    def simulation(self) -> Simulation:
        """A simulation of one sample that its owner steps; see `gps.agents.base.Simulation`."""
        # its own: rollouts of one sample must not touch an episode that is under way
        batch = Batch(self.model, 1, 1, persistent=True)

        def begin(condition: int, start_noise: Array | None, test: bool) -> _Run:
            model, start = self._starts(condition, 1, start_noise, test=test)
            batch.set_models(model)
            return _Run(self, batch, condition, start, 1)

        return Simulation(begin)

    def _starts(
        self, condition: int, N: int, start_noise: Array | None, *, test: bool
    ) -> tuple[mujoco.MjModel, Array]:
        """The condition's model, and where N samples start: (N, 2 nv)."""
        check_condition(condition, len(self._conditions[test]), test=test)
        model, qpos = self._conditions[test][condition]
        start = np.tile(np.concatenate((qpos, self._qvel)), (N, 1))
        if self.n_start:
            start += self._start_std * check_start_noise(start_noise, N, 2 * self.model.nv)
        return model, start

    def _batch(self, N: int, model: mujoco.MjModel) -> Batch:
        """N simulations on the condition's model; kept, since making them is not free."""
        batch = self._batches.pop(N, None)
        if batch is None:
            # persistent: the stages computed after a step are the beginning of the next one
            batch = Batch(self.model, N, self.threads, persistent=True)
        self._batches[N] = batch  # the newest comes last
        while len(self._batches) > _KEPT_BATCHES:
            del self._batches[next(iter(self._batches))]
        batch.set_models(model)
        return batch

    def _inputs(self, batch: Batch) -> tuple[Any, ...]:
        """What `observe` reads: the simulator's live arrays, then where things lie in them."""
        fields = map(batch.bind, ("site_xpos", "cdof", "subtree_com"))
        at = (_offset(batch, "qpos"), _offset(batch, "qvel"))
        maps = (self._sites, self._roots, self._moves, self._state, self._view)
        columns = (self._pos_col, self._vel_col)
        return (batch.state, *at, *fields, batch.warning, *maps, *columns, self._full)

    def _reset(self, batch: Batch, start: Array, ids: np.ndarray | None) -> None:
        """Put simulations at their starts, with nothing left of what they did before."""
        where = slice(None) if ids is None else ids
        nv = self.model.nv
        for name in ("site_xpos", "cdof", "subtree_com"):
            batch.bind(name)  # filled by the forward() below
        batch.reset(ids, stage=_NONE)
        batch.bind("qpos")[where], batch.bind("qvel")[where] = start[where, :nv], start[where, nv:]
        batch.forward(ids, stage=_VEL)

    def _empty_jacobians(self, N: int, T: int) -> dict[str, Array]:
        names, nx = self.layout.names, self.layout.size
        needs = {"end_points": ENTRIES[:1], "end_point_velocities": ENTRIES[:2]}
        return {
            name: np.zeros((N, T, self.layout.length(name), nx))
            for name, needed in needs.items()
            if name in names and all(n in names for n in needed)
        }

    def render(
        self,
        rollouts: Rollouts,
        sample: int = 0,
        *,
        width: int = 320,
        height: int = 240,
        camera: str | int = -1,
        every: int = 1,
        test: bool = False,
    ) -> np.ndarray:
        """Pictures of every `every`-th step of one sample, (frames, height, width, 3) uint8.

        camera: name of a camera of the model, or -1 for MuJoCo's free camera. `test` says that
        the rollouts are of a test condition. Raises GPSError where OpenGL is missing, and where
        the state does not hold joint_pos.
        """
        if "joint_pos" not in rollouts.layout.names:
            raise GPSError("a rollout can only be drawn if joint_pos is in its state")
        check_condition(rollouts.condition, len(self._conditions[test]), test=test)
        if not 0 <= sample < rollouts.N:
            raise ShapeError(f"sample {sample} does not exist; there are {rollouts.N}")
        model, _ = self._conditions[test][rollouts.condition]
        qpos = rollouts.entry("joint_pos")[sample, ::every]
        return render_states(model, qpos, width=width, height=height, camera=camera)


class _Run:
    """N simulations under way, and the arrays that hold `rows` of their steps.

    A rollout keeps every step in a row of its own; whoever steps from outside has one row. Each
    of the three parts of a step gives back whether any sample goes on.
    """

    def __init__(
        self, agent: MujocoAgent, batch: Batch, condition: int, start: Array, rows: int
    ) -> None:
        N = len(start)
        self._agent, self._batch, self._start = agent, batch, start
        agent._reset(batch, start, None)
        self._states, self._ctrl_at = batch.state, _offset(batch, "ctrl")
        self._inputs = agent._inputs(batch)
        self._limit, self._substeps = agent.config.limit, agent.config.substeps
        self._low, self._high = agent._low, agent._high
        self.X, self.U = np.empty((rows, N, agent.layout.size)), np.empty((rows, N, agent.nu))
        self.obs = np.empty((rows, N, agent.obs_layout.size))
        self.jacobians = agent._empty_jacobians(N, rows)
        none = np.empty((0, 0, 0, 0))
        self._J, self._V = (self.jacobians.get(name, none) for name in ENTRIES[2:])
        self._bad = np.zeros(N, dtype=np.bool_)
        self._alive: np.ndarray | None = None
        self.failures = Failures(condition)
        self.quiet = _warnings_to_log

    def observe(self, t: int, row: int) -> bool:
        """Write the states and observations of step t into a row, and check them."""
        X, obs, bad = self.X, self.obs, self._bad
        if not observe(row, self._limit, *self._inputs, X, obs, self._J, self._V, bad):
            return True
        for i in np.flatnonzero(bad):
            self.failures.add(i, t, _reason(self._batch.warning[i], self._limit))
        goes_on = self._set_aside(bad)
        X[row, bad], obs[row, bad] = X[0, bad], obs[0, bad]
        return goes_on

    def apply(self, t: int, row: int, u: Array) -> bool:
        """Clip the actions (N, nu) of step t into a row and hand them to the simulator."""
        bad = self._bad
        if not apply(u, self._low, self._high, self.U[row], self._states, self._ctrl_at, bad):
            return True
        for i in np.flatnonzero(bad):
            self.failures.add(i, t, "the policy's action is NaN or infinite")
        return self._set_aside(bad)

    def advance(self, t: int) -> bool:
        """Simulate from step t to the next."""
        try:
            self._batch.step(self._alive, nstep=self._substeps, stage=_VEL)
        except BatchError:
            bad = self._batch.status != 0
            for i in np.flatnonzero(bad):
                self.failures.add(i, t, f"MuJoCo: {self._batch.error(int(i))}")
            return self._set_aside(bad)
        return True

    def _set_aside(self, bad: np.ndarray) -> bool:
        """Stop the samples that failed, at their configured start; whether others are left."""
        start, limit = self._start, self._limit
        rest = np.where(np.isfinite(start) & (np.abs(start) <= limit), start, 0.0)
        self._agent._reset(self._batch, rest, np.flatnonzero(bad).astype(np.int32))
        left = [i for i in range(len(start)) if i not in self.failures]
        self._alive = np.array(left, dtype=np.int32)
        return bool(left)


class _Guarded:
    """A model that fails where a rollout of the world would, and warns in the log only."""

    def __init__(self, model: Any, limit: float) -> None:
        self._model, self._limit = model, limit
        self.nx, self.nu = model.nx, model.nu

    def rollout(self, *args: Array) -> tuple[Array, Array]:
        """See `gps.control.models.Model`; NaN from where a trajectory leaves the limit."""
        with _warnings_to_log():
            states, actions = self._model.rollout(*args)
        # MuJoCo replaces a control that it finds too large by zero
        bad = ~(np.abs(actions) <= mujoco.mjMAXVAL).all(axis=2)
        bad[:, 1:] = bad[:, :-1]  # an action shows in the next state
        bad[:, 0] = False
        bad |= ~(np.abs(states) <= self._limit).all(axis=2)
        states[np.logical_or.accumulate(bad, axis=1)] = np.nan
        return states, actions

    def jacobians(self, X: Array, U: Array) -> Array:
        """See `gps.control.models.Model`."""
        with _warnings_to_log():
            F: Array = self._model.jacobians(X, U)
        return F


class _Handler:
    """MuJoCo's warning handler, of which the process has one for all of its threads."""

    def __init__(self) -> None:
        self._lock, self._users, self._before = threading.Lock(), 0, None

    def enter(self) -> None:
        """Send warnings to the log, unless another thread has done so already."""
        with self._lock:
            if self._users == 0:
                self._before = mujoco.get_mju_user_warning()
                mujoco.set_mju_user_warning(lambda text: log.debug("MuJoCo: %s", text))
            self._users += 1

    def leave(self) -> None:
        """Put back what was there before, when no other thread is inside."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                mujoco.set_mju_user_warning(self._before)


_handler = _Handler()


@contextmanager
def _warnings_to_log() -> Iterator[None]:
    """MuJoCo's warnings go to the log, not to stderr and a file in the current folder."""
    _handler.enter()
    try:
        yield
    finally:
        _handler.leave()


def _locked(array: Array) -> Array:
    """A read-only view."""
    view = array.view()
    view.flags.writeable = False
    return view


def _offset(batch: Batch, name: str) -> int:
    """Where a state field begins in a row of `batch.state`."""
    return int(batch.bind(name).ctypes.data - batch.state.ctypes.data) // batch.state.itemsize


def _swapped(array: Array) -> Array:
    """The first two axes exchanged, C-ordered."""
    return np.ascontiguousarray(array.transpose(1, 0, 2))


def _reason(warning: np.ndarray, limit: float) -> str:
    """What a sample's warning counters say, or else that its state is not acceptable."""
    seen = [_WARNINGS.get(int(k), f"warning {k}") for k in np.flatnonzero(warning[:, 1])]
    if seen:
        return f"MuJoCo warning: {', '.join(seen)}"
    return f"the state is NaN or left +-{limit:g}"
