"""Tasks of dm_control's suite as agents: MuJoCo steps their model, the task says what is seen."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import mujoco
import numpy as np

from gps.agents._given import Given
from gps.agents._linearise import after, require_entries, widened
from gps.agents._model import ACTIVATION, ENTRIES, JACOBIANS, QPOS, moved, origin
from gps.agents._run import warnings_to_log
from gps.agents.base import (
    Limit,
    Names,
    SimulatedAgent,
    Simulation,
    Std,
    Steps,
    Values,
    check_actions,
    check_noise,
    entry_indices,
    option_pairs,
    require,
    require_joint_pos,
    start_seeds,
)
from gps.agents.mujoco import Condition, MujocoAgent, MujocoConfig, Pixels
from gps.agents.randomise import Randomise
from gps.agents.visual_model import MujocoVisualModel
from gps.errors import ConfigError, choices
from gps.extras import needed_by
from gps.fields import Config, Count, Items, NonNegative, Range, readonly
from gps.protocols import Policy, acting, needs_images, records_images
from gps.types import Array, Images, Layout, Linearisation, Rollouts

REWARD = "reward"
DIRECTIONS = "joint_directions"
_STEP = 1e-6  # of the central differences of what a task observes, in rad, m and their rates


@dataclass(frozen=True, kw_only=True)
class DMControlStart(Config):
    """One episode's beginning, as the task draws it: pose, velocities, targets."""

    seed: Annotated[int, Range(at_least=0, below=2**32)] = 0
    """Seed of the task's random numbers."""
    qpos: Values | None = None
    """Positions (nq,), rad or m, in place of the drawn ones."""
    qvel: Values | None = None
    """Velocities (nv,), rad/s or m/s, in place of the drawn ones."""


def random_episodes(
    count: int, *, seed: int, purpose: str = "test conditions"
) -> tuple[DMControlStart, ...]:
    """Starts that a task draws itself, each by a seed of its own; see `random_starts`."""
    # the task's generator is numpy's old one, whose seeds have 32 bits
    return tuple(DMControlStart(seed=s) for s in start_seeds(count, seed, purpose))


@dataclass(frozen=True, kw_only=True)
class DMControlConfig(Config):
    """A task of dm_control's suite, with its model, its starts, its observation and its reward.

    The states are those of dm_control's `env.step` for the same actions, to the bit; samples are
    stepped together as those of a `MujocoConfig`. State entries to choose from: those of a
    `MujocoConfig` (joint_pos, joint_vel, activation, end_points of `sites`, sensor:NAME),
    joint_directions (cosine and sine of each hinge's angle, one after the other), what the task
    observes under its own names (`position`, `to_target`, ...), and `reward`. Only the task's own
    take a Python call for each step and sample, some 50 us.

    Reward of step t is that on arriving there, with action u[t-1], and 0 at t = 0, so an episode of
    1000 rewards, as results are published, is T = 1001. Properties under `randomise` change what
    happens, not how the task sees it.
    """

    domain: str
    """Domain of the suite: `cartpole`, `reacher`."""
    task: str
    """Task of the domain: `swingup`, `easy`."""
    options: tuple[tuple[str, Any], ...] = ()
    """Arguments of the task's function as (name, value) pairs, where it has any."""
    repeat: Count = 1
    """Control steps of the task for which an action is held: one step of the agent. The reward of
    a step is then that of the last of them."""
    T: Steps = 100
    """Steps of one rollout."""
    sites: tuple[str, ...] = ()
    """Sites of the model that are the end points, in order."""
    state: Names | None = None
    """State entries; None: joint_pos, joint_vel, and activation where there is any."""
    obs: Names | None = None
    """The global policy's observation, any of the same entries, or qpos; None for all that the task
    observes."""
    conditions: Annotated[tuple[DMControlStart, ...], Items(some=True)] = (DMControlStart(),)
    """Training starts."""
    test_conditions: tuple[DMControlStart, ...] = ()
    """Starts kept for evaluation."""
    start_qpos_std: Std = 0.0
    """Standard deviation of the start joint positions, rad or m: one for all joints or one each."""
    start_qvel_std: Std = 0.0
    """Standard deviation of the start joint velocities, rad/s or m/s."""
    randomise: tuple[Randomise, ...] = ()
    """Properties of the model that every sample draws for itself; see `MujocoConfig`."""
    cameras: tuple[str, ...] = ()
    """Cameras of the model whose images belong to the observation; see `MujocoConfig`."""
    image_size: tuple[Pixels, Pixels] = (64, 64)
    """Height and width of an image, in pixels."""
    noise_sigma: NonNegative = 0.0
    """Width in steps of the Gaussian that smooths action noise over time; 0 leaves it white."""
    noise_renormalise: bool = True
    """Whether smoothed noise is scaled back to unit variance."""
    limit: Limit = 1e4
    """A sample with a position or velocity above this, in SI units, has failed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", option_pairs(self, "options", self.options))
        super().__post_init__()
        require(bool(self.domain), self, "domain", "a name", self.domain)
        require(bool(self.task), self, "task", "a name", self.task)
        for name, _ in self.options:
            good = name not in ("random", "environment_kwargs")
            require(good, self, "options", f"without {name}, which is set", self.options)

    @property
    def name(self) -> str:
        """`domain:task`."""
        return f"{self.domain}:{self.task}"

    def build(self, threads: int = 1) -> DMControlAgent:
        """Load the task and check names and sizes; `threads` step the samples in parallel.

        Raises ConfigError: dm_control is missing, there is no such task, or it does more with its
        steps than to hand the actions to MuJoCo.
        """
        return DMControlAgent(self, threads)


class DMControlAgent(SimulatedAgent["_Episode"]):
    """Runs all samples of a rollout together in a MujocoAgent, and lets the task look at them.

    Not to be used from several Python threads at once: the simulations are reused.
    """

    def __init__(self, config: DMControlConfig, threads: int = 1) -> None:
        self.config = config
        made = _Environments(config)
        self._conditions: dict[bool, list[_Episode]] = {
            test: [_Episode(config, start, made.new(start.seed)) for start in some]
            for test, some in ((False, config.conditions), (True, config.test_conditions))
        }
        first = self._conditions[False][0]
        seen, stateful = first.sizes, first.physics.model.na > 0
        state = config.state or (*ENTRIES[:2], *((ACTIVATION,) if stateful else ()))
        observed = config.obs or tuple(seen)
        task = {DIRECTIONS: 2 * len(first.hinges), **seen, REWARD: 1}
        base = tuple(n for n in state if n not in task)
        inner_state = dict.fromkeys((*ENTRIES[:2], *((ACTIVATION,) if stateful else ()), *base))
        for name in (*inner_state, *observed):
            known = (*ENTRIES, ACTIVATION, QPOS, "sensor:NAME", *task)
            if name not in known and not name.startswith("sensor:"):
                raise ConfigError(f"DMControlConfig.state, obs: {choices('entry', name, known)}")
        if stateful and ACTIVATION not in state:
            raise ConfigError(
                f"DMControlConfig.state: {config.name} has stateful actuators "
                f"(na={first.physics.model.na}); add {ACTIVATION!r}, or the state is incomplete"
            )
        self._dt = first.step_duration * config.repeat
        self._start_stds(first.model.nv, config.name)  # whose errors name our own fields
        self.simulator = _Simulator(
            MujocoConfig(
                model=first.source,
                T=config.T,
                dt=self._dt,
                substeps=first.substeps * config.repeat,
                sites=config.sites,
                state=tuple(inner_state),
                obs=(QPOS, *(n for n in observed if n not in (*task, QPOS))),
                conditions=tuple(self._inner(e) for e in self._conditions[False]),
                test_conditions=tuple(self._inner(e) for e in self._conditions[True]),
                start_qpos_std=config.start_qpos_std,
                start_qvel_std=config.start_qvel_std,
                randomise=config.randomise,
                cameras=config.cameras,
                image_size=config.image_size,
                noise_sigma=config.noise_sigma,
                noise_renormalise=config.noise_renormalise,
                limit=config.limit,
            ),
            threads,
            self._conditions,
        )
        """What steps the samples; its model is the first condition's."""
        inner = self.simulator
        both = dict((*inner.layout.entries, *inner.obs_layout.entries))
        self._everything = Layout((*both.items(), *task.items()))
        self._layout = self._everything.select(state)
        self._obs_layout = self._everything.select(observed)
        self._state = entry_indices(self._everything, state)
        self._view = entry_indices(self._everything, observed)
        self._only_observed = entry_indices(
            inner.obs_layout, [n for n in inner.obs_layout.names if n not in inner.layout.names]
        )
        self._evaluates = any(n in (*seen, REWARD) for n in (*state, *observed))
        shared = [n for n in inner.layout.names if n in self._layout.names]
        self._columns = (
            entry_indices(self._layout, shared),
            entry_indices(inner.layout, shared),
        )

    @staticmethod
    def _inner(episode: _Episode) -> Condition:
        qpos, qvel = tuple(episode.qpos), tuple(episode.qvel)
        return Condition(qpos=qpos, qvel=qvel, model=episode.source)

    @property
    def dt(self) -> float:
        """Duration of one step in seconds."""
        return self._dt

    @property
    def nu(self) -> int:
        """Number of actuators."""
        return self.simulator.nu

    @property
    def model(self) -> mujoco.MjModel:
        """The model of the first condition."""
        return self.simulator.model

    @property
    def n_start(self) -> int:
        """Joint positions and velocities if starts are disturbed, then `randomise`."""
        return self.simulator.n_start

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels, three for each camera; None for an agent without cameras."""
        return self.simulator.image_shape

    @property
    def control_range(self) -> tuple[Array, Array]:
        """Lowest and highest control of each actuator, (nu,) each; infinite where unlimited."""
        return self.simulator.control_range

    @property
    def action_names(self) -> tuple[str, ...]:
        """The actuator of each action."""
        return self.simulator.action_names

    def check_images(self) -> None:
        """GPSError where no image could be drawn, as far as environment variables show."""
        self.simulator.check_images()

    def warm_up(self) -> None:
        """Compile the kernels, or load them."""
        self.simulator.warm_up()

    def model_of(self, condition: int, *, test: bool = False) -> mujoco.MjModel:
        """A copy of the model that a condition runs on, with what the task has drawn."""
        return self.simulator.model_of(condition, test=test)

    def start_joints(self, condition: int, *, test: bool = False) -> tuple[Array, Array]:
        """qpos (nq,) and qvel (nv,) where undisturbed rollouts start. Raises ShapeError."""
        episode = self._condition(condition, test=test)
        return episode.qpos, episode.qvel

    def start_state(self, condition: int, *, test: bool = False) -> Array:
        """The undisturbed state (nx,) at which rollouts of `condition` start."""
        simulation = self.simulation()
        simulation.reset(condition, test=test)
        return readonly(simulation.x)

    def rollout(
        self,
        policy: Policy,
        condition: int,
        noise: Array,
        start_noise: Array | None = None,
        *,
        test: bool = False,
    ) -> Rollouts:
        """See `gps.protocols.Agent` and `MujocoAgent.rollout`, which steps the samples."""
        episode = self._condition(condition, test=test)
        noise = check_noise(noise, self.T, self.nu)
        recorder = _Recorder(self, episode, policy, len(noise))
        stepped = self.simulator.rollout(
            acting(recorder, records_images=records_images(policy)),
            *(condition, noise, start_noise),
            test=test,
        )
        return Rollouts(
            X=recorder.X,
            U=stepped.U,
            obs=recorder.obs,
            noise=stepped.noise,
            layout=self.layout,
            condition=condition,
            jacobians=self._state_jacobians(stepped.jacobians),
            images=stepped.images,
        )

    def simulation(self) -> Simulation:
        """A simulation of one sample that its owner steps; see `gps.agents.base.Simulation`.

        It has no images.
        """
        own = self.simulator.simulation()

        def begin(condition: int, start_noise: Array | None, test: bool) -> _TaskRun:
            episode = self._condition(condition, test=test)
            run = own._begin(condition, start_noise, test)
            return _TaskRun(self, run, episode)

        return Simulation(begin)

    def _full(
        self,
        episode: _Episode,
        x: Array,
        obs: Array,
        u: Array | None = None,
        sensors: Array | None = None,
    ) -> Array:
        """All entries (N, ·) of a step: the simulator's, then the task's, after actions (N, nu)."""
        own = np.zeros((len(x), episode.size + 1))
        if self._evaluates:
            inner, nq = self.simulator.layout, episode.model.nq
            act = x[:, inner.slice(ACTIVATION)] if ACTIVATION in inner.names else x[:, :0]
            vel = x[:, inner.slice(ENTRIES[1])]
            with warnings_to_log():
                for i, row in enumerate(own):
                    after = None if u is None else u[i]
                    measured = None if sensors is None else sensors[i]
                    episode.evaluate(obs[i, :nq], vel[i], act[i], after, measured, row)
        angles = obs[:, episode.hinges]
        turned = np.stack((np.cos(angles), np.sin(angles)), axis=2).reshape(len(x), -1)
        return np.concatenate((x, obs[:, self._only_observed], turned, own), axis=1)

    def _state_jacobians(self, jacobians: Mapping[str, Array]) -> dict[str, Array]:
        """The simulator's Jacobians in the columns of our state, of entries that it holds together
        with what they depend on."""
        names = self._layout.names
        return {
            name: self._wider(J)
            for name, J in jacobians.items()
            if name in names and all(n in names for n in JACOBIANS.get(name, ENTRIES[:2]))
        }

    def _wider(self, J: Array) -> Array:
        """d entry / dx in the columns of our state, (..., nx), from the simulator's."""
        ours, theirs = self._columns
        out = np.zeros((*J.shape[:-1], self._layout.size))
        out[..., ours] = J[..., theirs]
        return out

    @property
    def model_entries(self) -> tuple[str, ...]:
        """State entries that are the state of `known_model`, in its order."""
        return tuple(self.simulator.model_entries)

    def known_model(self, condition: int, models: Any, *, test: bool = False) -> Any:
        """The condition's dynamics for planning; see `MujocoAgent.known_model`."""
        if REWARD in self._layout.names:
            raise ConfigError(
                "DMControlConfig.state: reward cannot be planned with, as it depends on the action "
                "before; leave it to the observation, and write the cost of the other entries"
            )
        return self.simulator.known_model(condition, models, test=test)

    def whole_states(
        self, condition: int, states: Array, *, test: bool = False
    ) -> tuple[Array, dict[str, Array]]:
        """The states (S, nx) at states of the model (S, ns), and what depends on them.

        The dictionary holds d entry / dx, (S, size, nx): also of what the task observes, by central
        differences. Raises ShapeError and ConfigError as `MujocoAgent.whole_states`.
        """
        X, jacobians = self.simulator.whole_states(condition, states, test=test)
        episode = self._condition(condition, test=test)
        slopes = self._state_jacobians(jacobians) | self._slopes(episode, X)
        full = self._at(episode, X)
        return readonly(full[:, self._state]), {n: readonly(J) for n, J in slopes.items()}

    def linearise(self, condition: int, *, test: bool = False) -> Linearisation:
        """See `gps.protocols.Linearises` and `MujocoAgent.linearise`.

        What the task observes follows from the rest. Raises GPSError where the state lacks what
        the simulation needs, and SimulationError.
        """
        require_entries(self._layout, self.simulator.layout.names, "DMControlConfig.state")
        found = self.simulator.linearise(condition, test=test)
        episode = self._condition(condition, test=test)
        x, x_after = self._at(episode, np.stack((found.x, after(found))))[:, self._state]
        slopes = {n: slope[0] for n, slope in self._slopes(episode, found.x[None]).items()}
        return widened(found, self._layout, x, x_after, slopes)

    def _slopes(self, episode: _Episode, X: Array) -> dict[str, Array]:
        """d entry / dx of what the task observes, at states of the simulator: (S, size, nx)."""
        names = [n for n in self._layout.names if n in (DIRECTIONS, *episode.sizes)]
        out = {n: np.zeros((len(X), self._layout.length(n), self._layout.size)) for n in names}
        if not names:
            return out
        entries = [n for n in self.simulator.layout.names if n in (*ENTRIES[:2], ACTIVATION)]
        if any(n not in self._layout.names for n in entries):
            return out
        columns = entry_indices(self._layout, entries)
        inner = entry_indices(self.simulator.layout, entries)
        shifts = _STEP * np.eye(self.simulator.layout.size)[inner]
        for s, x in enumerate(X):
            above, below = np.split(self._at(episode, x + np.concatenate((shifts, -shifts))), 2)
            slope = (above - below) / (2 * _STEP)
            for n in names:
                out[n][s][:, columns] = slope[:, self._everything.slice(n)].T
        return out

    def _at(self, episode: _Episode, X: Array) -> Array:
        """All entries at states of the simulator (S, ·), without actions."""
        where = self.simulator.layout.slice(ENTRIES[0])
        obs = np.zeros((len(X), self.simulator.obs_layout.size))
        obs[:, : episode.physics.model.nq] = episode.positions(X[:, where])
        return self._full(episode, X, obs)

    def episode_returns(
        self,
        policy: Policy,
        starts: Sequence[DMControlStart] | None = None,
        *,
        steps: int | None = None,
    ) -> Array:
        """Sum of the task's rewards over a whole episode from each start, as published: (n,).

        One reward for each control step of the task until its time limit (1000 steps nearly
        everywhere), whatever `repeat` and `T` are. The policy acts without noise; a controller acts
        from step T on as in its last one. starts: by default the test conditions, or the training
        conditions if there are none. steps: another number of control steps. Raises SimulationError
        where a simulation fails, and ConfigError where the task has no time limit.
        """
        config = self.config
        starts = tuple(starts or config.test_conditions or config.conditions)
        seen = (*(n for n in self._obs_layout.names if n != REWARD), REWARD)
        agent = DMControlAgent(
            replace(config, repeat=1, conditions=starts, test_conditions=(), obs=seen, cameras=())
        )
        order = entry_indices(agent.obs_layout, self._obs_layout.names)
        limit = steps or agent._conditions[False][0].step_limit
        if not math.isfinite(limit):
            raise ConfigError(f"episode_returns: {config.name} has no time limit; give steps")
        simulation, silence = agent.simulation(), np.zeros((1, self.nu))
        totals = np.zeros(len(starts))
        for m in range(len(starts)):
            actor = acting(policy)
            simulation.reset(m)
            for t in range(round(limit)):
                if t % config.repeat == 0:
                    x, obs = simulation.x[None], simulation.obs[None, order]
                    u = actor.act(x, obs, min(t // config.repeat, self.T - 1), silence)
                simulation.step(u[0])
                totals[m] += simulation.obs[-1]
        return totals

    def check_render(
        self, *, width: int, height: int, camera: str | int = -1, test: bool = False
    ) -> None:
        """Raise what `render` would of these arguments; see `MujocoAgent.check_render`."""
        require_joint_pos(self._layout)
        self.simulator.check_render(width=width, height=height, camera=camera, test=test)

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
        """Images of every `every`-th step of one sample; see `MujocoAgent.render`."""
        return self.simulator.render(
            rollouts, sample, width=width, height=height, camera=camera, every=every, test=test
        )

    def visual_model(self, condition: int, *, test: bool = False) -> MujocoVisualModel:
        """How a condition is shown. Raises GPSError where the state does not hold joint_pos."""
        require_joint_pos(self._layout, "an agent can only be shown")
        episode, where = self._condition(condition, test=test), self._layout.slice(ENTRIES[0])
        model = self.model_of(condition, test=test)
        return MujocoVisualModel(model, self._layout.size, lambda X: episode.positions(X[:, where]))


class _Episode:
    """One beginning of a task, and a physics of its own in which the task looks at states."""

    def __init__(self, config: DMControlConfig, start: DMControlStart, env: Any) -> None:
        self.name = config.name
        with warnings_to_log():
            try:
                first = env.reset()
            except (mujoco.FatalError, RuntimeError) as error:  # some begin with a drawing
                raise ConfigError(
                    f"DMControlConfig.task: {self.name} cannot begin: {error}; a task that draws "
                    "needs OpenGL, without a display by MUJOCO_GL=egl or osmesa"
                ) from error
        self.task, self.physics = env.task, env.physics
        if not isinstance(first.observation, Mapping):
            raise ConfigError(f"DMControlConfig.task: {self.name} observes no named entries")
        self.model = self.physics.model.ptr
        self._data = self.physics.data.ptr
        self.source = Given(self.model, f"dm_control.{self.name}")
        self.step_duration = float(env.control_timestep())
        self.substeps = round(self.step_duration / self.model.opt.timestep)
        self.step_limit = float(env._step_limit)
        self.sizes = {name: int(np.size(v)) for name, v in first.observation.items()}
        self.size = sum(self.sizes.values())
        for field, value, array in (
            ("qpos", start.qpos, self._data.qpos),
            ("qvel", start.qvel, self._data.qvel),
        ):
            if value is None:
                continue
            if len(value) != len(array):
                raise ConfigError(
                    f"DMControlStart.{field} must have {len(array)} values for {self.name}, got "
                    f"{len(value)}"
                )
            array[:] = value
            with warnings_to_log():
                self.physics.after_reset()
        data = self._data
        self.qpos, self.qvel, self.act, self.warm = (
            readonly(a) for a in (data.qpos, data.qvel, data.act, data.qacc_warmstart)
        )
        late = self.model.sensor_needstage == mujoco.mjtStage.mjSTAGE_ACC
        self._forces = np.repeat(late, self.model.sensor_dim)
        # where the angles of hinges lie in qpos
        self.hinges = self.model.jnt_qposadr[self.model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE]
        self._origin = origin(self.model, self.model.qpos0)

    def positions(self, joint_pos: Array) -> Array:
        """qpos (S, nq) of the entry joint_pos (S, nv)."""
        return moved(self.model, self._origin, joint_pos)

    def evaluate(
        self,
        qpos: Array,
        qvel: Array,
        act: Array,
        u: Array | None,
        sensors: Array | None,
        out: Array,
    ) -> None:
        """What the task observes in a state, and its reward for the action that led there (nu,).

        sensors: those of the simulator, whose forces are those of its last step. Without an action
        all is as after a reset: no actuator works, and the reward is zero.
        """
        data = self._data
        data.qpos[:], data.qvel[:], data.act[:] = qpos, qvel, act
        data.ctrl[:] = 0.0 if u is None else u
        if u is None or sensors is None:
            with self.physics.model.disable("actuation"):
                mujoco.mj_forward(self.model, data)
        else:
            mujoco.mj_step1(self.model, data)
            data.sensordata[self._forces] = sensors[self._forces]
        at = 0
        for value in self.task.get_observation(self.physics).values():
            n = np.size(value)
            out[at : at + n] = np.ravel(value)
            at += n
        out[at] = 0.0 if u is None else self.task.get_reward(self.physics)


class _Environments:
    """The suite's environment of a task with one seed after another.

    Compiling its model takes long. So from the third on it is a copy of the first with random
    numbers of its own, unless the second shows that what is made depends on them.
    """

    def __init__(self, config: DMControlConfig) -> None:
        self._config = config
        self._first: Any = None  # which is never reset
        self._seed, self._alike = 0, False

    def new(self, seed: int) -> Any:
        """One that has not been reset."""
        if self._alike:
            env = copy.deepcopy(self._first)
            env.task.random.seed(seed)
            return env
        config = self._config
        env = loaded(config.domain, config.task, seed, config.options)
        if self._first is None:
            self._first, self._seed = copy.deepcopy(env), seed
        elif seed != self._seed:
            self._alike = _certainly_equal(_made(env, seed), _made(self._first, self._seed))
        return env


def _made(env: Any, seed: int) -> tuple[bytes, dict[str, Any]] | None:
    """The model and the task of a new environment; None if it has drawn random numbers."""
    model, random = env.physics.model.ptr, env.task.random
    (_, drawn, at, *_), (_, fresh, first, *_) = (
        r.get_state() for r in (random, np.random.RandomState(seed))
    )
    if at != first or not np.array_equal(drawn, fresh):
        return None
    buffer = np.empty(mujoco.mj_sizeModel(model), dtype=np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer.tobytes(), {n: v for n, v in vars(env.task).items() if v is not random}


def _certainly_equal(one: Any, other: Any) -> bool:
    """Whether two results of `_made` are equal; False in case of doubt."""
    try:
        return one is not None and bool(one == other)
    except ValueError:  # arrays
        return False


class _Simulator(MujocoAgent):
    """With the activations of an episode's beginning, and its solver's last solution."""

    def __init__(
        self, config: MujocoConfig, threads: int, episodes: Mapping[bool, Sequence[_Episode]]
    ) -> None:
        super().__init__(config, threads)
        self._episodes = episodes

    def _begin(self, N: int, rows: int, condition: int, *args: Any, test: bool, **more: Any) -> Any:
        run, model = super()._begin(N, rows, condition, *args, test=test, **more)
        episode = self._episodes[test][condition]
        self.sensors = run.sensors()
        """Live sensors (N, nsensordata) of the run that has begun last."""
        run.restart(act=episode.act, qacc_warmstart=episode.warm)
        return run, model


class _Recorder:
    """A policy that sees our entries in place of the simulator's, and notes them."""

    def __init__(self, agent: DMControlAgent, episode: _Episode, policy: Policy, N: int) -> None:
        self._agent, self._episode, self._policy = agent, episode, acting(policy)
        self.needs_images = needs_images(policy)
        self.X = np.zeros((N, agent.T, agent.layout.size))
        self.obs = np.zeros((N, agent.T, agent.obs_layout.size))
        self._low, self._high = agent.control_range
        self._u: Array | None = None

    def act(
        self, x: Array, obs: Array, t: int, noise: Array, images: Images | None = None
    ) -> Array:
        """See `gps.protocols.Policy`."""
        agent = self._agent
        applied = None if self._u is None else np.clip(self._u, self._low, self._high)
        if t == 0:
            self._sensors = agent.simulator.sensors
        full = agent._full(self._episode, x, obs, applied, self._sensors)
        self.X[:, t], self.obs[:, t] = full[:, agent._state], full[:, agent._view]
        more = {"images": images} if self.needs_images else {}
        act: Any = self._policy.act
        u = act(self.X[:, t].copy(), self.obs[:, t].copy(), t, noise, **more)
        self._u = check_actions(u, len(x), agent.nu)
        return self._u.copy()


class _TaskRun:
    """The simulator's run of one sample, shown as our entries."""

    def __init__(self, agent: DMControlAgent, run: Any, episode: _Episode) -> None:
        self._agent, self._run, self._episode = agent, run, episode
        self._sensors = agent.simulator.sensors
        self.X, self.U = np.zeros((1, 1, agent.layout.size)), run.U
        self.obs = np.zeros((1, 1, agent.obs_layout.size))
        self.jacobians = agent._state_jacobians(run.jacobians)
        self.failures, self.quiet = run.failures, run.quiet
        self.apply, self.advance = run.apply, run.advance

    def observe(self, t: int, row: int) -> bool:
        """See `gps.agents.base.Run`."""
        agent, run = self._agent, self._run
        left: bool = run.observe(t, row)
        u = run.U[row] if t else None
        full = agent._full(self._episode, run.X[row], run.obs[row], u, self._sensors)
        self.X[row], self.obs[row] = full[:, agent._state], full[:, agent._view]
        for name, J in self.jacobians.items():
            J[...] = agent._wider(run.jacobians[name])
        return left


def loaded(domain: str, task: str, seed: int = 0, options: Sequence[tuple[str, Any]] = ()) -> Any:
    """The suite's environment with its random numbers; ConfigError where there is none."""
    with needed_by("DMControlConfig"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of GLFW, where there is no display
        from dm_control import suite
        from dm_control.suite import base
    tasks = suite.TASKS_BY_DOMAIN
    if domain not in tasks:
        raise ConfigError(f"DMControlConfig.domain: {choices('domain', domain, sorted(tasks))}")
    known = tasks[domain]
    if task not in known:
        raise ConfigError(f"DMControlConfig.task: {choices(f'{domain} task', task, known)}")
    # domains' loaders log what their model files should say otherwise
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings_to_log(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env = suite.load(domain, task, task_kwargs={**dict(options), "random": seed})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"DMControlConfig.options: {domain}:{task}: {error}") from error
    finally:
        log.setLevel(level)
    for hook in ("before_step", "after_step"):
        if inspect.getattr_static(type(env.task), hook) is not vars(base.Task)[hook]:
            raise ConfigError(
                f"DMControlConfig.task: {domain}:{task} has a {hook} of its own, which MuJoCo's "
                "simulation alone would leave out"
            )
    return env
