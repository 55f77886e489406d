"""Environments of Gymnasium as agents; the way back is `gps.agents.as_gymnasium`."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import mujoco
import numpy as np

from gps.agents import _environments
from gps.agents._environments import GOAL, OFFSET
from gps.agents._given import Given
from gps.agents._kept_model import kept
from gps.agents._linearise import after, require_entries, widened
from gps.agents._model import ACTIVATION, moved, origin
from gps.agents._run import reason, warnings_to_log
from gps.agents.base import (
    Failures,
    Limit,
    Names,
    Seconds,
    Seed,
    SimulatedAgent,
    Simulation,
    Std,
    Steps,
    Values,
    check_start_noise,
    drive,
    entry_indices,
    option_pairs,
    require,
    require_joint_pos,
    start_seeds,
)
from gps.agents.mujoco import MujocoConfig
from gps.agents.rendering import Renderer, render_states
from gps.agents.visual_model import MujocoVisualModel
from gps.errors import ConfigError, GPSError, ShapeError, choices
from gps.fields import Config, Count, Items, NonNegative, readonly
from gps.protocols import Policy
from gps.rng import stream
from gps.types import Array, Layout, Linearisation, Rollouts

ENTRIES = ("joint_pos", "joint_vel", "obs", "reward", "terminated")
Termination = Literal["ignore", "end", "failure"]

log = logging.getLogger(__name__)

_RESERVED = ("id", "max_episode_steps", "disable_env_checker", "render_mode")
_TRIED_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class GymnasiumStart(Config):
    """One start of an environment. Without any field it is the nominal one.

    The nominal start of MuJoCo environments is (init_qpos, init_qvel), the model's own pose; other
    environments have none and start where `reset(seed=0)` leads.
    """

    seed: Seed | None = None
    """Seed of `reset`, which draws from the environment's own distribution of starts."""
    options: tuple[tuple[str, Any], ...] = ()
    """Options of `reset` as (name, value) pairs, where the environment has any."""
    qpos: Values | None = None
    """MuJoCo environments: positions (nq,), rad or m, in place of the drawn or nominal ones."""
    qvel: Values | None = None
    """MuJoCo environments: velocities (nv,), rad/s or m/s, in place of the others."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", option_pairs(self, "options", self.options))
        super().__post_init__()

    @property
    def nominal(self) -> bool:
        """Whether nothing is drawn: MuJoCo environments then start from their model's pose."""
        return self.seed is None and not self.options


def random_starts(
    count: int, *, seed: int, purpose: str = "test conditions"
) -> tuple[GymnasiumStart, ...]:
    """Starts that an environment draws itself, each by a seed of its own.

    The same seed gives the same starts, and the first ones stay the same when `count` grows.
    Another `purpose` gives others: training and test starts need two.
    """
    return tuple(GymnasiumStart(seed=s) for s in start_seeds(count, seed, purpose))


@dataclass(frozen=True, kw_only=True)
class GymnasiumConfig(Config):
    """A Gymnasium environment with vectors of observations and continuous actions.

    The environment steps itself: its model, its frame_skip, its observation and its reward, without
    a time limit. State entries to choose from: what the environment observes, `reward` and
    `terminated`, and for MuJoCo environments `joint_pos` and `joint_vel`, (nv,) each, and
    `activation` where actuators have one. What an environment observes is the entry `obs`, or of a
    dictionary every part under its key; where these are `achieved_goal` and `desired_goal`,
    `goal_offset` is the first minus the second. Reward and termination of step t are those on
    arriving there: the reward of action u[t-1], 0 at t = 0. So T steps hold the rewards of T-1
    actions; that of the last one, which moves no recorded state, is not known. What else a
    simulator keeps (its solver's last solution) is in no entry.

    Observations and rewards are the environment's to the bit, its peculiarities too: those of
    MuJoCo's that hold positions of bodies (Reacher-v5, Pusher-v5) are not recomputed after the last
    simulator step, so they lag behind the joints a little, except at the start.

    joint_pos is qpos where all joints are hinges or slides. A ball or free joint's quaternion q is
    replaced by the rotation vector (3,) of q0^-1 q, with q0 that of the nominal start, which jumps
    at an angle of pi; joint_vel is qvel, whose angular velocities are in the body's frame.
    """

    env: str
    """Name of the environment, `Reacher-v5` or `module:Name-v0`."""
    make: tuple[tuple[str, Any], ...] = ()
    """Arguments of the environment's constructor as (name, value) pairs."""
    T: Steps = 50
    """Steps of one rollout."""
    dt: Seconds | None = None
    """Duration of one step in seconds; None for what the environment reports, needed where it
    reports nothing."""
    obs_entries: tuple[tuple[str, Count], ...] = ()
    """Names for consecutive parts of the observation, (name, length); none: one entry `obs`, or
    the keys of a dictionary."""
    state: Names | None = None
    """State entries. None: joint_pos, joint_vel and activation for MuJoCo, else the observation."""
    obs: Names | None = None
    """The global policy's observation, any of the same entries; None for the whole observation."""
    conditions: Annotated[tuple[GymnasiumStart, ...], Items(some=True)] = (GymnasiumStart(),)
    """Training starts."""
    test_conditions: tuple[GymnasiumStart, ...] = ()
    """Starts kept for evaluation."""
    start_qpos_std: Std = 0.0
    """MuJoCo: standard deviation of the start positions, rad or m; one for all or (nv,)."""
    start_qvel_std: Std = 0.0
    """MuJoCo: standard deviation of the start velocities, rad/s or m/s; one for all or (nv,)."""
    termination: Termination = "ignore"
    """Where the environment would end the episode: "ignore" continues, "end" too but without
    reward, so that a rollout has the sum of an episode, "failure" fails a sample."""
    noise_sigma: NonNegative = 0.0
    """Width in steps of the Gaussian that smooths action noise over time; 0 leaves it white."""
    noise_renormalise: bool = True
    """Whether smoothed noise is scaled back to unit variance."""
    limit: Limit = 1e4
    """A sample with a state or observation above this has failed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "make", option_pairs(self, "make", self.make))
        if isinstance(self.obs_entries, dict):
            object.__setattr__(self, "obs_entries", tuple(self.obs_entries.items()))
        super().__post_init__()
        require(bool(self.env), self, "env", "a name", self.env)
        for name, _ in self.make:
            require(name not in _RESERVED, self, "make", f"without {name}, which is set", self.make)
        names = [name for name, _ in self.obs_entries]
        taken = (*ENTRIES, ACTIVATION, OFFSET)
        good = len(set(names)) == len(names) and not set(names) & set(taken)
        require(good, self, "obs_entries", f"new names, none twice, none of {taken}", names)
        known = (*ENTRIES[:2], ACTIVATION, *names, OFFSET, *ENTRIES[3:])
        # without names the environment's own are known when it is made
        for field, chosen in (("state", self.state), ("obs", self.obs)) if names else ():
            for name in chosen or ():
                if name not in known:
                    raise ConfigError(f"GymnasiumConfig.{field}: {choices('entry', name, known)}")

    def with_kept_files(self) -> GymnasiumConfig:
        """The same, with the content of model files among the arguments in `make`; ConfigError.

        See `gps.protocols.KeepsFiles`. What an environment reads of its own package is the same as
        long as the package is; a run records its version.
        """
        make = tuple((name, kept(v) if _is_model(v) else v) for name, v in self.make)
        return replace(self, make=make)

    def build(self, threads: int = 1) -> GymnasiumAgent:
        """Make the environment and check that it can be an agent.

        Raises ConfigError: gymnasium or something that the environment needs is missing, there is
        no such environment, its observations are no vector or its actions not continuous, an equal
        reset is not followed by equal steps, or names and sizes do not fit. `threads` is accepted
        as for other agents and has nothing to do here.
        """
        return GymnasiumAgent(self)


class GymnasiumAgent(SimulatedAgent[GymnasiumStart]):
    """Runs each sample in an environment instance of its own, all of them step by step together.

    Before each rollout every instance is reset by the condition's seed. So nothing that happened
    before matters, and an environment that draws random numbers while it steps draws the same ones
    in every sample. Not to be used from several Python threads at once: the instances are reused.
    """

    def __init__(self, config: GymnasiumConfig) -> None:
        self.config = config
        first = _Instance(config)
        self._first = first
        self._pool = [first]
        self._warned_of_ends = False
        nv, parts = first.nv, config.obs_entries or first.parts
        if sum(n for _, n in parts) != first.n_obs:
            raise ConfigError(
                f"GymnasiumConfig.obs_entries name {sum(n for _, n in parts)} values, "
                f"{config.env} observes {first.n_obs}"
            )
        joints = ((ENTRIES[0], nv), (ENTRIES[1], nv)) if first.has_joints else ()
        if first.na:
            joints = (*joints, (ACTIVATION, first.na))
        offset = ((OFFSET, first.n_goal),) if first.n_goal else ()
        self._everything = Layout((*joints, *parts, *offset, ("reward", 1), ("terminated", 1)))
        seen = tuple(name for name, _ in parts)
        state = config.state or (tuple(n for n, _ in joints) or seen)
        self._layout, self._state = self._chosen("state", state)
        self._obs_layout, self._view = self._chosen("obs", config.obs or seen)
        for field, std in (
            ("start_qpos_std", config.start_qpos_std),
            ("start_qvel_std", config.start_qvel_std),
        ):
            if np.any(std) and not first.settable:
                raise ConfigError(f"GymnasiumConfig.{field} must be 0: {first.why_not_settable}")
        self._start_std = self._start_stds(nv, config.env)
        self._conditions = {False: config.conditions, True: config.test_conditions}
        for start in (*config.conditions, *config.test_conditions):
            first.check_start(start)
        self._dt = config.dt or first.dt
        self._starts: dict[tuple[bool, int], tuple[Array, Array, Array]] = {}
        self._linearisations: dict[tuple[bool, int], Linearisation] = {}
        self._check_repeatable()

    def _chosen(self, field: str, names: Sequence[str]) -> tuple[Layout, np.ndarray]:
        """The layout of the named entries, and where they lie among everything."""
        for name in names:
            if name not in self._everything.names:
                what = choices("entry", name, self._everything.names)
                if name in ENTRIES[:2]:
                    what += f"; {self.config.env} is not a MuJoCo environment"
                raise ConfigError(f"GymnasiumConfig.{field}: {what}")
        return self._everything.select(names), entry_indices(self._everything, names)

    def _check_repeatable(self) -> None:
        """Refuse an environment that an equal reset does not bring back to the same place."""
        rng = stream(0, "tried actions")
        low, high = self._first.low, self._first.high
        low = np.where(np.isfinite(low), low, np.where(np.isfinite(high), high - 1.0, -1.0))
        high = np.where(np.isfinite(high), high, low + 1.0)
        tried = [rng.uniform(low, high) for _ in range(_TRIED_STEPS)]
        start = self.config.conditions[0]

        def seen(instance: _Instance) -> bytes:
            obs = np.asarray(instance.obs, dtype=np.float64)
            if obs.shape != (instance.n_obs,):
                raise ConfigError(
                    f"GymnasiumConfig.env: {self.config.env} gives an observation of shape "
                    f"{obs.shape}, its observation space has {(instance.n_obs,)}"
                )
            return obs.tobytes() + np.float64(instance.reward).tobytes()

        def trace(instance: _Instance) -> list[bytes]:
            with warnings_to_log():
                instance.reset(start, None)
                found = [seen(instance)]
                for u in tried:
                    instance.step(u.astype(instance.dtype))
                    found.append(seen(instance))
            return found

        expected, other = trace(self._first), trace(self._instances(2)[1])
        again = trace(self._first)
        for what, found in (("another instance", other), ("the same instance", again)):
            if found[0] != expected[0]:
                raise ConfigError(
                    f"GymnasiumConfig.env: {self.config.env} starts elsewhere when {what} is reset "
                    "with the same seed; rollouts from a fixed start need a reset that its seed "
                    "determines"
                )
            if found != expected:
                raise ConfigError(
                    f"GymnasiumConfig.env: {self.config.env} goes elsewhere when {what} is reset "
                    "with the same seed and gets the same actions; its randomness must come from "
                    "np_random, and nothing may outlast a reset"
                )

    def _instances(self, N: int) -> list[_Instance]:
        """N instances, which are kept: making one takes some milliseconds."""
        while len(self._pool) < N:
            self._pool.append(_Instance(self.config))
        return self._pool[:N]

    @property
    def dt(self) -> float:
        """Duration of one step in seconds."""
        return self._dt

    @property
    def nu(self) -> int:
        """Action size."""
        return len(self._first.low)

    @property
    def n_start(self) -> int:
        """Twice the number of velocities, if starts are disturbed, else 0."""
        return len(self._start_std) if self._start_std.any() else 0

    @property
    def control_range(self) -> tuple[Array, Array]:
        """Ends of the action space, (nu,) each; infinite where it has none."""
        return self._first.low.copy(), self._first.high.copy()

    @property
    def action_names(self) -> tuple[str, ...]:
        """The actuator of each action, where the environment's model has one for each."""
        model = self._first.model if self._first.has_joints else None
        if model is None or model.nu != self.nu or model.nactuator != self.nu:
            return tuple(f"action {i}" for i in range(self.nu))
        return tuple(model.actuator(i).name or f"actuator_{i}" for i in range(self.nu))

    def start_state(self, condition: int, *, test: bool = False) -> Array:
        """The undisturbed state (nx,) at which rollouts of `condition` start."""
        return self._start(condition, test=test)[0]

    def start_joints(self, condition: int, *, test: bool = False) -> tuple[Array, Array]:
        """qpos (nq,) and qvel (nv,) where rollouts start, as drawn if the start is drawn by a seed.

        Raises GPSError if the environment is not one of MuJoCo's, and ShapeError.
        """
        if not self._first.has_joints:
            raise GPSError(f"{self.config.env} is not a MuJoCo environment: it has no qpos")
        return self._start(condition, test=test)[1:]

    def _start(self, condition: int, *, test: bool) -> tuple[Array, Array, Array]:
        """State, qpos and qvel of an undisturbed start."""
        self._condition(condition, test=test)
        if (test, condition) not in self._starts:
            run = self._run(self._pool, condition, 1, None, 1, test=test)
            with run.quiet():
                run.observe(0, 0)
            run.failures.raise_if_any()
            first = self._first
            qpos, qvel = (first.qpos, first.qvel) if first.has_joints else (np.zeros(0),) * 2
            self._starts[test, condition] = readonly(run.X[0, 0]), readonly(qpos), readonly(qvel)
        return self._starts[test, condition]

    def linearise(self, condition: int, *, test: bool = False) -> Linearisation:
        """See `gps.protocols.Linearises`: that of the environment's model, by `MujocoAgent`.

        For environments of MuJoCo's whose actions are the model's controls. What the environment
        observes is taken to stay as it is. Raises GPSError for others, and where the state lacks
        joint_pos, joint_vel or activation; SimulationError.
        """
        first = self._first
        first.require_plain()
        own = (*ENTRIES[:2], *((ACTIVATION,) if first.na else ()))
        require_entries(self._layout, own, "GymnasiumConfig.state")
        x, qpos, _ = self._start(condition, test=test)
        if (test, condition) not in self._linearisations:
            model = self._model_of(condition, test=test)
            agent = MujocoConfig(
                model=Given(model, f"gymnasium.{self.config.env}"),
                T=self.T,
                dt=first.dt,
                substeps=round(first.dt / model.opt.timestep),
                state=own,
                qpos=tuple(qpos),
            ).build()
            found, where = agent.linearise(0), entry_indices(self._layout, own)
            at, x_after = x.copy(), x.copy()
            at[where], x_after[where] = found.x, after(found)
            self._linearisations[test, condition] = widened(found, self._layout, at, x_after, {})
        return self._linearisations[test, condition]

    def _model_of(self, condition: int, *, test: bool) -> mujoco.MjModel:
        """The environment's own model, with what the reset of a condition makes of it."""
        start = self._condition(condition, test=test)
        with warnings_to_log():
            self._first.reset(start, None)
        return self._first.model

    def rollout(
        self,
        policy: Policy,
        condition: int,
        noise: Array,
        start_noise: Array | None = None,
        *,
        test: bool = False,
    ) -> Rollouts:
        """See `gps.protocols.Agent`.

        Actions are clipped to the action space and rounded to its dtype, mostly float32, before
        they are recorded and applied.
        """
        self._condition(condition, test=test)  # a wrong condition is reported before wrong noise
        noise = self._smooth(noise, self.nu)
        N, T = noise.shape[:2]
        run = self._run(self._instances(N), condition, N, start_noise, T, test=test)
        try:
            drive(run, policy, noise)
        finally:
            self._warn_of_early_ends(run.ended)
        return Rollouts(
            X=run.X, U=run.U, obs=run.obs, noise=noise, layout=self.layout, condition=condition
        )

    def _warn_of_early_ends(self, ended: Sequence[float]) -> None:
        """A warning, once: most samples go on for long after the environment would have stopped."""
        half, steps = self.T / 2, sorted(ended)
        if self._warned_of_ends or self.config.termination == "end":
            return
        if sum(t < half for t in steps) <= len(steps) / 2:
            return
        self._warned_of_ends = True
        goes_on = "; it goes on from there (termination='ignore'), which its task does not mean"
        log.warning(
            "%s ends %d of %d samples before half of T=%d; T=%d would do for most of them%s",
            *(self.config.env, sum(t < half for t in steps), len(steps), self.T),
            max(int(steps[(len(steps) - 1) // 2]), 2),
            "" if self.config.termination == "failure" else goes_on,
        )

    def simulation(self) -> Simulation:
        """A simulation of one sample that its owner steps; see `gps.agents.base.Simulation`."""
        own = [_Instance(self.config)]  # rollouts must not touch an episode that is under way
        return Simulation(
            lambda m, start_noise, test: self._run(own, m, 1, start_noise, 1, test=test)
        )

    def _run(
        self,
        instances: list[_Instance],
        condition: int,
        N: int,
        start_noise: Array | None,
        rows: int,
        *,
        test: bool,
    ) -> _Run:
        """N samples at their starts, with arrays for `rows` steps."""
        start, shift = self._condition(condition, test=test), None
        if self.n_start and start_noise is not None:
            shift = self._start_std * check_start_noise(start_noise, N, self.n_start)
        return _Run(self, instances[:N], condition, start, shift, rows)

    def check_render(
        self, *, width: int, height: int, camera: str | int = -1, test: bool = False
    ) -> None:
        """Raise what `render` would of these arguments, which are the same for all conditions.

        ConfigError for a camera that is not there or a size; GPSError where nothing can be drawn.
        """
        self._require_joints(self.layout, "drawn")
        with Renderer(self._first.model, (camera,), height, width, plain=False):
            pass

    def _require_joints(self, layout: Layout, what: str) -> None:
        if not self._first.has_joints:
            raise GPSError(f"{self.config.env} is not a MuJoCo environment: it cannot be {what}")
        require_joint_pos(layout, f"{self.config.env} can only be {what}")

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
        """Images of every `every`-th step of one sample, (frames, height, width, 3) uint8.

        camera: name of a camera of the model, or -1 for MuJoCo's free camera. Raises GPSError where
        OpenGL is missing, where the state does not hold joint_pos, and for environments that are
        not MuJoCo's.
        """
        self._require_joints(rollouts.layout, "drawn")
        model = self._model_of(rollouts.condition, test=test)
        if not 0 <= sample < rollouts.N:
            raise ShapeError(f"sample {sample} does not exist; there are {rollouts.N}")
        qpos = moved(model, self._first.origin, rollouts.entry("joint_pos")[sample, ::every])
        return render_states(model, qpos, width=width, height=height, camera=camera)

    def visual_model(self, condition: int, *, test: bool = False) -> MujocoVisualModel:
        """How a condition is shown, with what its reset has made of the model.

        Raises GPSError where the state does not hold joint_pos, and for environments that are not
        MuJoCo's.
        """
        first = self._first
        self._require_joints(self._layout, "shown")
        model, where = self._model_of(condition, test=test), self._layout.slice("joint_pos")
        model, zero = copy.copy(model), first.origin
        return MujocoVisualModel(
            model, self._layout.size, lambda X: moved(model, zero, X[:, where])
        )


@runtime_checkable
class _HasModel(Protocol):
    """An environment of MuJoCo's, if these are an MjModel and an MjData."""

    model: Any
    data: Any


@runtime_checkable
class _HasStep(Protocol):
    """An environment with a duration of its step, in s."""

    dt: Any


class _Instance:
    """One environment, where it is, and how it is put there."""

    def __init__(self, config: GymnasiumConfig) -> None:
        self._name = config.env
        env, gymnasium = _environments.make(config.env, config.make)
        # it only says that reset was forgotten, and costs a call in every step
        while type(env) is gymnasium.wrappers.OrderEnforcing:
            env = env.env
        self._env, self._base = env, env.unwrapped
        spaces = gymnasium.spaces
        self.parts = _environments.observed(config.env, env.observation_space, spaces)
        self._parts = tuple(name for name, _ in self.parts)
        self.n_obs = sum(n for _, n in self.parts)
        self.low, self.high, self.dtype = _environments.actions(
            config.env, env.action_space, spaces
        )
        base = self._base
        self.has_joints = (
            isinstance(base, _HasModel)
            and isinstance(base.model, mujoco.MjModel)
            and isinstance(base.data, mujoco.MjData)
        )
        needed = ("set_state", "_get_obs", "init_qpos", "init_qvel")
        missing = [name for name in needed if not hasattr(base, name)]
        self.why_not_settable = ""
        if not self.has_joints:
            self.why_not_settable = f"{config.env} is not a MuJoCo environment"
        elif missing:
            self.why_not_settable = f"{config.env} has no {missing[0]}"
        elif env is not base:
            # what a wrapper would make of the start's observation is not to be had
            self.why_not_settable = f"{config.env} is registered with {type(env).__name__}"
        self.settable = not self.why_not_settable
        if self.why_not_settable:
            self.why_not_settable += ", so its starts can only be drawn by seed"
        sizes = dict(self.parts)
        both = [sizes.get(name, 0) for name in GOAL]
        self.n_goal = both[0] if both[0] == both[1] else 0
        starts = dict(zip(self._parts, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
        self._goals = [slice(starts[n], starts[n] + self.n_goal) for n in GOAL if self.n_goal]
        self.nq = self.nv = self.na = 0
        if self.has_joints:
            self.model, data = base.model, base.data
            self.nq, self.nv, self.na = self.model.nq, self.model.nv, self.model.na
            self._act = data.act
            self.qpos, self.qvel, self.warning = data.qpos, data.qvel, data.warning.number  # live
            self._no_warning = bytes(self.warning.nbytes)
            types = self.model.jnt_type
            self.flat = not np.isin(
                types, (mujoco.mjtJoint.mjJNT_FREE, mujoco.mjtJoint.mjJNT_BALL)
            ).any()
            nominal = self.model.qpos0 if "init_qpos" in missing else base.init_qpos
            self.origin = origin(self.model, nominal)
            """qpos (nq,) where joint_pos is zero."""
        if self.settable:
            self._init = base.init_qpos.copy(), base.init_qvel.copy()
        self.dt = self._step_duration(config)
        # as the environment gives them; an array may be one that its next step writes to
        self.obs: Any = np.zeros(self.n_obs)
        self.reward: Any = 0.0
        self.terminated: Any = False

    def require_plain(self) -> None:
        """GPSError unless a step of the environment is some of its model under the actions."""
        from gymnasium.envs.mujoco import MujocoEnv

        base = self._base
        if not (self.has_joints and isinstance(base, MujocoEnv)):
            raise GPSError(f"{self._name} is not one of Gymnasium's MuJoCo environments")
        steps = ("do_simulation", "_step_mujoco_simulation")
        low, high = self.model.actuator_ctrlrange.T
        limited = self.model.actuator_ctrllimited.astype(bool)
        same = (
            self.model.nu == len(self.low)
            and all(vars(type(base)).get(n) is None for n in steps)
            and np.allclose(self.low[limited], low[limited])
            and np.allclose(self.high[limited], high[limited])
        )
        if not same:
            raise GPSError(f"the actions of {self._name} are not the controls of its model")
        if not np.allclose(self.origin, origin(self.model, self.model.qpos0)):
            raise GPSError(f"{self._name} has another nominal orientation than its model")

    def _step_duration(self, config: GymnasiumConfig) -> float:
        """What the environment reports of its step, in s; not needed if it is configured."""
        dt = self._base.dt if isinstance(self._base, _HasStep) else None
        fps = (self._env.metadata or {}).get("render_fps")
        for value in (dt, 1.0 / fps if isinstance(fps, (int, float)) and fps > 0 else None):
            if isinstance(value, (int, float, np.number)) and 0 < value < math.inf:
                known = value is dt  # frames per second are those of a video
                good = config.dt is None or not known or math.isclose(config.dt, value)
                require(good, config, "dt", f"None or the {value:g} s of {config.env}", config.dt)
                return float(value)
        require(config.dt is not None, config, "dt", f"given: {config.env} reports none", None)
        return math.nan

    def check_start(self, start: GymnasiumStart) -> None:
        """ConfigError if the environment cannot start there."""
        for field, value, n in (("qpos", start.qpos, self.nq), ("qvel", start.qvel, self.nv)):
            if value is None:
                continue
            if not self.settable:
                raise ConfigError(f"GymnasiumStart.{field} must be None: {self.why_not_settable}")
            if len(value) != n:
                raise ConfigError(
                    f"GymnasiumStart.{field} must have {n} values for {self._name}, "
                    f"got {len(value)}"
                )

    def reset(self, start: GymnasiumStart, shift: Array | None) -> None:
        """Go to a start, moved by `shift` (2 nv,), with nothing left of what was before."""
        base = self._base
        if self.settable:
            # Pusher draws into init_qpos itself
            base.init_qpos[:], base.init_qvel[:] = self._init
        options = dict(start.options) or None
        obs, _ = self._env.reset(seed=start.seed or 0, options=options)
        self.reward, self.terminated = 0.0, False
        drawn = start.qpos is None and start.qvel is None and not start.nominal
        if not self.settable or (drawn and shift is None):
            self.obs = _environments.flat(obs, self._parts)
            return
        qpos, qvel = self._init if start.nominal else (self.qpos, self.qvel)
        qpos = np.array(qpos if start.qpos is None else start.qpos)
        qvel = np.array(qvel if start.qvel is None else start.qvel)
        if shift is not None:
            qpos = moved(self.model, qpos, shift[: self.nv])
            qvel += shift[self.nv :]
        # a reset that lets the simulator step leaves its time and its solver's last solution behind
        mujoco.mj_resetData(self.model, base.data)
        base.set_state(qpos, qvel)
        self.obs = _environments.flat(base._get_obs(), self._parts)

    def step(self, u: np.ndarray) -> None:
        """Apply the action u (nu,), in the action space's dtype."""
        obs, self.reward, self.terminated, _, _ = self._env.step(u)
        self.obs = _environments.flat(obs, self._parts)

    def warned(self) -> bool:
        """Whether the simulator has warned since the reset."""
        return self.has_joints and self.warning.tobytes() != self._no_warning

    def windows(self, row: Array) -> tuple[Array, ...]:
        """The parts of a row of the agent's entries, which `write` fills."""
        nv = self.nv  # 0 where there are no joints
        ends = np.cumsum([nv, nv, self.na, self.n_obs, self.n_goal, 2])
        return tuple(np.split(row, ends[:-1]))

    def write(self, windows: tuple[Array, ...]) -> None:
        """Everything there is to see."""
        pos, vel, act, seen, offset, rest = windows
        if self.has_joints:
            if self.flat:
                pos[...] = self.qpos
            else:
                mujoco.mj_differentiatePos(self.model, pos, 1.0, self.origin, self.qpos)
            vel[...] = self.qvel
            if self.na:
                act[...] = self._act
        seen[...] = self.obs
        if self.n_goal:
            achieved, desired = self._goals
            offset[...] = seen[achieved] - seen[desired]
        rest[0], rest[1] = self.reward, self.terminated


class _Run:
    """N samples under way, and the arrays (N, rows, n) of their steps; one row when stepped."""

    def __init__(
        self,
        agent: GymnasiumAgent,
        instances: list[_Instance],
        condition: int,
        start: GymnasiumStart,
        shift: Array | None,
        rows: int,
    ) -> None:
        N, first = len(instances), instances[0]
        self._instances, self._config = instances, agent.config
        self._state, self._view = agent._state, agent._view
        self._low, self._high, self._dtype = first.low, first.high, first.dtype
        self._all = np.zeros((N, agent._everything.size))
        self._windows = [first.windows(row) for row in self._all]
        self._actions = np.zeros((N, agent.nu), dtype=first.dtype)
        self._alive = list(range(N))
        self.ended = [math.inf] * N
        """The first step in which the environment would have ended the episode, of each sample."""
        self.X, self.U = np.empty((N, rows, len(self._state))), np.empty((N, rows, agent.nu))
        self.obs = np.empty((N, rows, len(self._view)))
        self.jacobians: dict[str, Array] = {}
        self.failures = Failures(condition)
        self.quiet = warnings_to_log
        with warnings_to_log():
            for i, instance in enumerate(instances):
                instance.reset(start, None if shift is None else shift[i])

    def observe(self, t: int, row: int) -> bool:
        """Write the states and observations of step t into a row, and check them."""
        limit = self._config.limit
        for i in self._alive:
            instance = self._instances[i]
            if instance.terminated:
                self.ended[i] = min(self.ended[i], t)
            instance.write(self._windows[i])
            if t > self.ended[i] and self._config.termination == "end":
                self._windows[i][-1][:] = 0.0, 1.0  # reward, terminated
            if instance.warned():
                # after such a warning the simulator continues from its reset state, which is finite
                counts = np.zeros((len(instance.warning), 2), dtype=int)
                counts[:, 1] = instance.warning
                self.failures.add(i, t, reason(counts, limit))
            elif instance.terminated and self._config.termination == "failure":
                self.failures.add(i, t, "the environment terminated the episode")
        X, obs = self._all[:, self._state], self._all[:, self._view]
        good = (np.abs(X) <= limit).all(axis=1) & (np.abs(obs) <= limit).all(axis=1)
        if not good.all():
            for bad in np.flatnonzero(~good):
                self.failures.add(bad, t, f"the state is NaN or left +-{limit:g}")
        if len(self.failures):
            self._set_aside()
            X[self._failed], obs[self._failed] = 0.0, 0.0
        self.X[:, row], self.obs[:, row] = X, obs
        return bool(self._alive)

    def apply(self, t: int, row: int, u: Array) -> bool:
        """Clip the actions (N, nu) of step t into a row."""
        good = np.isfinite(u)
        if not good.all():
            for i in np.flatnonzero(~good.all(axis=1)):
                self.failures.add(i, t, "the policy's action is NaN or infinite")
                u[i] = 0.0
            self._set_aside()
        np.clip(u, self._low, self._high, out=u)
        self._actions[:] = u
        self.U[:, row] = self._actions
        return bool(self._alive)

    def advance(self, t: int) -> bool:
        """Let the environments step."""
        for i in self._alive:
            try:
                self._instances[i].step(self._actions[i])
            except mujoco.FatalError as error:
                self.failures.add(i, t, f"MuJoCo: {error}")
        if len(self.failures):
            self._set_aside()
        return bool(self._alive)

    def _set_aside(self) -> None:
        """Leave the samples that failed where they are; what is shown of them is zero."""
        self._alive = [i for i in self._alive if i not in self.failures]
        self._failed = [i for i in range(len(self._instances)) if i in self.failures]
        self._all[self._failed] = 0.0


def _is_model(value: Any) -> bool:
    """Whether an argument is the path of a model that is no file of Gymnasium's own."""
    return isinstance(value, str) and value.endswith(".xml") and value.startswith(("/", ".", "~"))
