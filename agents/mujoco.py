"""Agents simulated by MuJoCo: all samples of a condition step together in one `mujoco.batch`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any

import mujoco
import numpy as np
from mujoco.batch import Batch

from gps.agents._kept_model import kept
from gps.agents._kernels import observe
from gps.agents._linearise import (
    Statics,
    direction_scales,
    linearise,
    outside_limits,
    smooth,
    widen_slides,
    within_limits,
)
from gps.agents._model import (
    ACC,
    ACTIVATION,
    ENTRIES,
    HIDDEN,
    PLUGIN,
    QPOS,
    SENSOR,
    VEL,
    WARMSTART,
    Compiled,
    ModelSource,
    checked_source,
    interned,
    joint_positions,
    mocap_poses,
    moved,
    raw_positions,
    shown,
    warn_once,
)
from gps.agents._run import (
    NO_ARRAY,
    NO_NOISE,
    Guarded,
    Run,
    Setup,
    Start,
    locked,
    warnings_to_log,
)
from gps.agents._starts import Models
from gps.agents._structure import structure_of
from gps.agents.actions import (
    HISTORY,
    MOCAP,
    MocapAction,
    control_limits,
)
from gps.agents.base import (
    Limit,
    Names,
    Seconds,
    SimulatedAgent,
    Simulation,
    Std,
    Steps,
    Values,
    check_actions,
    check_start_noise,
    entry_indices,
    require,
    require_joint_pos,
)
from gps.agents.randomise import Randomise, randomised
from gps.agents.rendering import Renderer, render_states, require_display
from gps.agents.visual_model import MujocoVisualModel
from gps.errors import ConfigError, ShapeError, SimulationError, choices
from gps.fields import Config, Count, Finite, Items, NonNegative, Range, Whole, checked
from gps.protocols import Policy, acting, needs_images, records_images
from gps.rng import stream
from gps.types import (
    Array,
    Images,
    Layout,
    LinearGaussianController,
    Linearisation,
    Rollouts,
    StateStructure,
)

_KEPT_BATCHES = 4
_DERIVED_AT_ONCE = 64  # states
_WORTH_THREADS = 1e5  # simulations times steps times directions: a tenth of a second, or more
Vector3 = tuple[Finite, Finite, Finite]
Quaternion = tuple[Finite, Finite, Finite, Finite]
Pixels = Annotated[int, Range(at_least=1, at_most=8192, unit="pixels")]
Box = tuple[str, Vector3, Vector3]
"""A body and the lowest and highest place that a distribution gives it, in m."""
Key = Annotated[int, Range(at_least=0)] | str
"""A keyframe of the model, by name, or by number where it has none."""


def _refuse_text(config: Config, field: str, value: object) -> None:
    """ConfigError for a text in place of start positions."""
    if isinstance(value, str):
        raise ConfigError(
            f"{type(config).__name__}.{field} must be a tuple, each a finite number or None, got "
            f"{value!r}; a keyframe of the model is named by keyframe={value!r}"
        )


@dataclass(frozen=True, kw_only=True)
class Condition(Config):
    """How one start differs from the configuration."""

    keyframe: Key | None = None
    """Keyframe of the model to start at, in place of the configuration's start: its positions,
    velocities, activations, controls and mocap poses; see `MujocoConfig.keyframe`."""
    qpos: Values | None = None
    """Start positions in place of the configuration's or the keyframe's, rad or m, quaternions for
    balls."""
    qvel: Values | None = None
    """Start joint velocities in place of the configuration's or the keyframe's, rad/s or m/s."""
    qpos_offset: Values | None = None
    """Added to the start joint positions, rad or m; a rotation vector for each quaternion."""
    body_offsets: tuple[tuple[str, Vector3], ...] = ()
    """Bodies moved from their place in the model: (name, (x, y, z)) in the parent's frame, in m."""
    mocap: tuple[tuple[str, Vector3] | tuple[str, Vector3, Quaternion], ...] = ()
    """Where mocap bodies begin, and stand for the whole rollout unless actions move them:
    (name, (x, y, z)) in m in the world, or (name, (x, y, z), (w, x, y, z)) with a quaternion. The
    others stand as in the keyframe or the model; but one that actions move, and to which another
    body is welded, begins where its weld is at rest in the start positions, unless they are those
    of a keyframe that says where it stands."""
    model: ModelSource | None = None
    """A model in place of the configuration's, given like it. It has to have the same kinds of
    joints in the same order, the same numbers of controls and activations with the same limits,
    and the entries of state and observation under the same names and sizes; its bodies and shapes
    are free."""

    def __post_init__(self) -> None:
        _refuse_text(self, "qpos", self.qpos)
        super().__post_init__()
        both = self.qpos is not None and self.qpos_offset is not None
        require(not both, self, "qpos_offset", "None where qpos is given", self.qpos_offset)
        turns = [turn for _, _, *some in self.mocap for turn in some]
        rule = "(body, (x, y, z)) or (body, (x, y, z), quaternion), which is not zero"
        require(all(map(any, turns)), self, "mocap", rule, self.mocap)
        if self.model is not None:
            object.__setattr__(self, "model", checked_source(self.model, "Condition.model"))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in another process."""
        self.__dict__.update(state | {"model": interned(state["model"])})


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


def sample_conditions(
    count: int,
    *,
    seed: int,
    purpose: str = "test conditions",
    base: Condition | None = None,
    qpos_low: Sequence[float] | None = None,
    qpos_high: Sequence[float] | None = None,
    qpos_std: Sequence[float] | None = None,
    body_boxes: Sequence[Box] = (),
    mocap_boxes: Sequence[Box] = (),
    models: Sequence[ModelSource] = (),
) -> tuple[Condition, ...]:
    """Conditions drawn from a distribution; what is not drawn is as in `base`.

    qpos_low, qpos_high: start positions, uniform between them. qpos_std: standard deviation of
    normal shifts of the start joint positions, rad or m, one for each direction. body_boxes: shifts
    of bodies, mocap_boxes: places of mocap bodies, each (name, low, high), uniform in the box, axis
    by axis, in m. models: one of them each. A condition's numbers depend on the seed, the purpose
    and its index alone: the first ones stay when `count` grows, and another purpose ("training
    conditions") gives others. Raises ConfigError.
    """
    count = checked(count, Whole, "sample_conditions: count")
    seed = checked(seed, Whole, "sample_conditions: seed")
    base = base or Condition()
    together = (qpos_low is None) == (qpos_high is None)
    if not together or (qpos_std is not None and (qpos_low is not None or np.ndim(qpos_std) != 1)):
        raise ConfigError(
            "sample_conditions: give qpos_low and qpos_high, or qpos_std with one value for each "
            f"joint direction, got {qpos_low}, {qpos_high} and {qpos_std}"
        )
    shifts = [(n, np.asarray(a, float), np.asarray(b, float)) for n, a, b in body_boxes]
    places = [(n, np.asarray(a, float), np.asarray(b, float)) for n, a, b in mocap_boxes]
    low, high = (np.asarray(() if q is None else q, float) for q in (qpos_low, qpos_high))
    for name, a, b in (*shifts, *places, ("qpos", low, high)):
        if a.shape != b.shape or a.ndim != 1 or not (a <= b).all():
            raise ConfigError(
                f"sample_conditions: {name}: low must be below high, value by value, got "
                f"{a.tolist()} and {b.tolist()}"
            )
    out = []
    for i in range(count):
        rng = stream(seed, purpose, i)
        drawn: dict[str, Any] = {}
        if qpos_low is not None:
            drawn["qpos"] = tuple(rng.uniform(low, high))
        if qpos_std is not None:
            drawn["qpos_offset"] = tuple(np.asarray(qpos_std) * rng.standard_normal(len(qpos_std)))
        if shifts:
            moves = tuple((n, tuple(rng.uniform(a, b))) for n, a, b in shifts)
            drawn["body_offsets"] = (*base.body_offsets, *moves)
        if places:
            drawn["mocap"] = (*base.mocap, *((n, tuple(rng.uniform(a, b))) for n, a, b in places))
        if models:
            drawn["model"] = models[int(rng.integers(len(models)))]
        out.append(replace(base, **drawn))
    return tuple(out)


@dataclass(frozen=True, kw_only=True)
class MujocoConfig(Config):
    """An agent made of a MuJoCo model.

    Positions are given in the directions of the joints' velocities, nv of them: the entry
    `joint_pos` is the position of a hinge, a slide or a free body's centre as it is, and the
    rotation of a ball or a free body as the rotation vector, in its own frame, from the
    orientation that the model has at its reference pose qpos0 (`mujoco.mj_differentiatePos`). A
    rotation vector jumps at half a turn from there; that pose has to be out of reach.
    """

    model: ModelSource
    """Name of a model in `gps.data`; a path to a file that ends in .xml (MJCF or URDF), .urdf or
    .mjb, relative to the hyperparams file that names it, or else to the current folder; MJCF or
    URDF text (begins with "<"); or a function without arguments that gives a `mujoco.MjSpec`, the
    same one each time. The function is called wherever the agent is built, so it has to be defined
    at the top level of a module, or of the hyperparams file. A URDF without actuators gets a motor
    for each hinge and slide, within its effort limit, and the log says so."""
    T: Steps = 100
    """Steps of one rollout."""
    dt: Seconds | None = None
    """Duration of one control step, in seconds; the controls are constant during a step. None: the
    multiple of the model's own time step that is nearest to 0.05 s."""
    substeps: Annotated[int, Range(at_least=1, at_most=10_000)] | None = None
    """Simulator steps per control step, whose time step then is dt / substeps, with dt = 0.05 s
    where it is None. None: the model's own time step, of which dt has to be a multiple."""
    sites: tuple[str, ...] = ()
    """Sites of the model that are the end points, in order."""
    actuators: Annotated[tuple[str, ...], Items(distinct=True)] | None = None
    """Actuators of the model that the actions control, by name and in this order; None for all.
    The others keep the keyframe's control, or 0."""
    mocap_actions: tuple[MocapAction, ...] | None = None
    """Mocap bodies that actions move, after the actuators. None: for a model without actuators
    those that it welds to a body that can move, along the world's axes; else none."""
    relative: bool | Names = False
    """Whether the actions of position servos count from the start of the configuration, the same
    for all conditions: action 0 is the keyframe's control, or the one at which the servo exerts no
    force in the start positions. True for all position servos, or the names of some. The control
    range moves along."""
    state: Names | None = None
    """State entries: joint_pos (rad, m), joint_vel, end_points (m), end_point_velocities (m/s), and
    sensor:NAME, any sensor of the model, in its own units. And what else a model keeps: activation
    (the internal state of actuators with dynamics), history (the controls under way in actuators
    with a delay, of every control step that may still act, the newest first), mocap (place in m and
    rotation vector of mocap bodies that actions displace from their own pose), plugin_state, and
    warmstart (the accelerations from which the constraint solver starts, which matter only where
    its iterations are too few for it to converge). None: joint_pos, joint_vel, and activation,
    history, plugin_state and mocap where the model has them, without which no state is complete.

    Sensors belong to the positions and velocities of their step. Those that need accelerations
    (accelerometer, force, torque, touch, actuator and constraint forces) are evaluated there too,
    with the control of the step before, which at step 0 is zero or the keyframe's; an agent that
    uses one computes the forces of every step once more. A sensor with a delay or an interval
    belongs to the observation only."""
    obs: Annotated[tuple[str, ...], Items(distinct=True)] | None = None
    """The global policy's observation, any of the same entries, or qpos, the positions with
    quaternions; None for the whole state."""
    keyframe: Key | None = None
    """Keyframe of the model to start at, by name, or by number where it has none: its positions,
    velocities, activations and mocap poses, and its controls, which actuators without an action
    keep, which delayed ones have under way, and from which initial controllers may begin; None for
    the model's reference pose at rest."""
    qpos: Values | None = None
    """Start positions, rad or m, quaternions for balls (nq values); None for the keyframe's or the
    model's."""
    qvel: Values | None = None
    """Start joint velocities, rad/s or m/s; None for the keyframe's, or rest."""
    conditions: Annotated[tuple[Condition, ...], Items(some=True)] = (Condition(),)
    """Training conditions."""
    test_conditions: tuple[Condition, ...] = ()
    """Conditions kept for evaluation."""
    start_qpos_std: Std = 0.0
    """Standard deviation of the start joint positions, rad or m: one for all joints or one each."""
    start_qvel_std: Std = 0.0
    """Standard deviation of the start joint velocities, rad/s or m/s."""
    activation: Values | None = None
    """Start activations of the actuators that have them; None for the keyframe's, or zeros."""
    obs_noise: tuple[tuple[str, NonNegative], ...] = ()
    """Normal noise on the observation: (entry, standard deviation in its unit), anew at every
    step. The T numbers for each value are the last ones of a rollout's start noise; the state has
    no noise, and a simulation that goes beyond step T begins with them again."""
    randomise: tuple[Randomise, ...] = ()
    """Properties of the model that every sample draws for itself. Their numbers are part of the
    start noise, between those of the start and those of the observation; without start noise each
    property has its median, and so it has where the model is asked for or planned with."""
    cameras: tuple[str, ...] = ()
    """Cameras of the model whose images belong to the observation, in the order of the channels;
    see `Rollouts.images`. Rollouts need OpenGL then."""
    image_size: tuple[Pixels, Pixels] = (64, 64)
    """Height and width of an image, in pixels."""
    noise_sigma: NonNegative = 0.0
    """Width in steps of the Gaussian that smooths action noise over time; 0 leaves it white."""
    noise_renormalise: bool = True
    """Whether smoothed noise is scaled back to unit variance."""
    limit: Limit | None = None
    """A sample with a position or velocity above this, in the state's units, has failed, so that no
    model is fitted to a simulation that blew up. None: 1e4 rad and rad/s, and 1e4 times the size of
    the model and the start, whatever the unit of length, for slides, free bodies and end points."""

    def __post_init__(self) -> None:
        _refuse_text(self, "qpos", self.qpos)
        super().__post_init__()
        object.__setattr__(self, "model", checked_source(self.model, "MujocoConfig.model"))
        known = (*ENTRIES, *HIDDEN, WARMSTART)
        for field, names, listed in (
            ("state", self.state or (), known),
            ("obs", self.obs or (), (*known, QPOS)),
        ):
            for name in names:
                if name not in listed and not name.startswith(SENSOR):
                    what = choices("entry", name, (*listed, f"{SENSOR}NAME"))
                    raise ConfigError(f"MujocoConfig.{field}: {what}")
                needs_sites = name.startswith("end_point")
                require(bool(self.sites) or not needs_sites, self, "sites", f"named for {name}", ())
        once = len(dict(self.obs_noise)) == len(self.obs_noise)
        rule = "(entry, standard deviation) pairs, each entry once"
        require(once, self, "obs_noise", rule, self.obs_noise)
        seen = self.obs if self.obs is not None else self.state or (*ENTRIES[:2], *HIDDEN)
        for name, _ in self.obs_noise:
            if name not in seen:
                raise ConfigError(f"MujocoConfig.obs_noise: {choices('entry', name, seen)}")
        moved_bodies = [m.body for m in self.mocap_actions or ()]
        rule = "one for each body"
        once = len(set(moved_bodies)) == len(moved_bodies)
        require(once, self, "mocap_actions", rule, moved_bodies)
        some = self.actuators != () or bool(self.mocap_actions)
        require(some, self, "actuators", "a name at least, without mocap_actions", ())

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in another process."""
        self.__dict__.update(state | {"model": interned(state["model"])})

    def with_kept_files(self) -> MujocoConfig:
        """The same, its models replaced by their files as they are now; raises ConfigError.

        See `gps.protocols.KeepsFiles`.
        """
        conditions, test = (
            tuple(c if c.model is None else replace(c, model=kept(c.model)) for c in some)
            for some in (self.conditions, self.test_conditions)
        )
        model = kept(self.model)
        return replace(self, model=model, conditions=conditions, test_conditions=test)

    def build(self, threads: int = 1) -> MujocoAgent:
        """Load the model and check the names and sizes; `threads` step the samples in parallel."""
        return MujocoAgent(self, threads)


class MujocoAgent(SimulatedAgent[Start]):
    """Runs all samples of a rollout together, with one Python call per control step.

    Not to be used from several Python threads at once: the simulations are reused.
    """

    def __init__(self, config: MujocoConfig, threads: int = 1) -> None:
        self.config = config
        self.threads: int = checked(threads, Count, "MujocoConfig.build(threads)")
        models = Models(config)
        base, self._dt = models.base, models.dt
        self.model = model = base.model
        self._actions, observed = base.actions, models.state if config.obs is None else config.obs
        everything = Layout(tuple(base.sizes.items()))
        self._layout = everything.select(models.state)
        self._obs_layout = everything.select(observed)
        self._obs_std = np.array(
            [std for n, std in config.obs_noise for _ in range(self._obs_layout.length(n))]
        )
        self._late, self._timing = base.late, base.timing
        self._start_std = self._start_stds(model.nv, shown(config.model))
        self._sizes = (
            2 * model.nv if self._start_std.any() else 0,
            sum(r.size for r in config.randomise),
            config.T * len(self._obs_std),
        )
        self._conditions = models.starts
        self._setup = Setup(
            everything,
            self._layout,
            self._obs_layout,
            stage=ACC if base.late else VEL,
            sensors=any(name.startswith(SENSOR) for name in base.sizes),
            limit=models.limits(everything),
            noisy=entry_indices(self._obs_layout, [n for n, _ in config.obs_noise]),
        )
        self._batches: dict[tuple[int, int], Batch] = {}
        self._renderers: dict[Compiled, Renderer] = {}
        self._linearisations: dict[tuple[Any, ...], Linearisation] = {}
        self._pushed = False
        self._kept = _KEPT_BATCHES * models.groups

    @property
    def noisy_entries(self) -> tuple[str, ...]:
        """Observation entries that differ from the state by noise."""
        return tuple(name for name, std in self.config.obs_noise if std > 0)

    @property
    def dt(self) -> float:
        """Duration of one step in seconds."""
        return self._dt

    @property
    def nu(self) -> int:
        """Number of actions."""
        return self._actions.nu

    @property
    def substeps(self) -> int:
        """Simulator steps per control step, on the configuration's model."""
        return self._timing.substeps

    @property
    def action_names(self) -> tuple[str, ...]:
        """The actuator, or mocap body and axis, of each action."""
        return self._actions.names

    @property
    def n_start(self) -> int:
        """Joint positions and velocities if starts are disturbed, then `randomise`, `obs_noise`."""
        return sum(self._sizes)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels, three for each camera; None for an agent without cameras."""
        cameras = self.config.cameras
        return (*self.config.image_size, 3 * len(cameras)) if cameras else None

    @property
    def control_range(self) -> tuple[Array, Array]:
        """Lowest and highest value of each action, (nu,) each; infinite where unlimited."""
        return self._actions.low.copy(), self._actions.high.copy()

    def warm_up(self) -> None:
        """Compile the kernels, or load them, by a rollout without controls."""
        T, nu, nx = self.config.T, self.nu, self.layout.size
        idle = LinearGaussianController(
            K=np.zeros((T, nu, nx)), k=np.zeros((T, nu)), chol=np.tile(np.eye(nu), (T, 1, 1))
        )
        with suppress(SimulationError):
            self.rollout(idle, 0, np.zeros((1, T, nu)), np.zeros((1, self.n_start)))

    def model_of(self, condition: int, *, test: bool = False) -> mujoco.MjModel:
        """A copy of the model that a condition runs on, its bodies shifted, mocap bodies too."""
        model = self._condition(condition, test=test).placed()
        if self.config.randomise:
            (model,) = randomised(model, self.config.randomise, np.zeros((1, self._sizes[1])))
        return model

    def linearise(self, condition: int, *, test: bool = False) -> Linearisation:
        """See `gps.protocols.Linearises`: about the start positions, at rest, and within
        the joints' ranges.

        Free bodies, a robot's free base too, may move as they like; what holds is the rest.

        The action is the one that minimises the kinetic energy of the acceleration that is left
        (`Statics.equilibrium`), found from the start's own controls; activations are in equilibrium
        with it. Derivatives are central differences of a whole control step. Both leave out dry
        friction and the limits of joints, which at rest hide what the actuators do, and contacts,
        but where they may carry the robot (`_linearise.smooth`), which the log warns of. Properties
        under `randomise` have their medians. Raises SimulationError, and ConfigError for models of
        plugins with a state.
        """
        begin = self._condition(condition, test=test)
        arrays = (begin.qpos, begin.act, begin.ctrl, *begin.mocap)
        # starts that are alike share one: large models take seconds
        key = (id(begin.model), begin.keyed, *(a.tobytes() for a in arrays))
        if key not in self._linearisations:
            self._linearisations[key] = self._linearise(condition, test=test)
        return self._linearisations[key]

    def _linearise(self, condition: int, *, test: bool) -> Linearisation:
        """See `linearise`; it costs as much as some rollouts."""
        if PLUGIN in self.layout.names:
            raise ConfigError(
                f"{shown(self.config.model)} cannot be linearised: the states of its plugins "
                "cannot be varied"
            )
        start = self._condition(condition, test=test)
        model = self.model_of(condition, test=test)
        qpos = within_limits(model, start.qpos)
        pushed = list(outside_limits(model, start.qpos))
        if pushed and not self._pushed:  # the others are so too
            self._pushed = True
            warn_once(
                f"{shown(self.config.model)}: {', '.join(pushed)}, so that MuJoCo pushes it in, "
                "with all that hangs on it; an initial controller of the model holds the pose with "
                "the joints at their limits: start there, or inside (qpos, keyframe)"
            )
        model = smooth(model, qpos)
        compiled, nv, na = start.compiled, model.nv, model.na
        actions = compiled.actions
        start = replace(start, model=model, mocap=mocap_poses(model))
        chosen, shift = actions.controls, actions.shift
        kept = {n: self.layout.length(n) for n in (HISTORY, MOCAP) if n in self.layout.names}
        n_kept = sum(kept.values())

        def begin(N: int) -> tuple[Run, Callable[[Array], None]]:
            work = N * compiled.timing.substeps * nv
            threads = len(os.sched_getaffinity(0)) if work > _WORTH_THREADS else 1
            batch = self._batch(N, compiled, model, threads=max(self.threads, threads))
            still = np.tile(np.concatenate((qpos, np.zeros(nv))), (N, 1))
            noise = np.zeros((1, N, len(self._obs_std)))
            run = Run(self._setup, batch, start, condition, still, 2, noise)

            def put(states: Array) -> None:
                moving = {"act": states[:, 2 * nv : 2 * nv + na]} if na else {}
                positions = raw_positions(compiled, states[:, :nv])
                velocities = states[:, nv : 2 * nv]
                run.restart(states[:, 2 * nv + na :], qpos=positions, qvel=velocities, **moving)

            return run, put

        run, _ = begin(1)
        memory = run.memory(n_kept)
        ctrl = start.ctrl.copy()
        if not start.keyed:
            ctrl[chosen] = shift
        scales, large, time = direction_scales(model)
        longest = max(2.0, self.T / 4) * self.dt
        u, u_scale = np.zeros(self.nu), np.full(self.nu, np.inf)
        n = len(chosen)
        with warnings_to_log():
            statics = Statics(model, qpos, chosen, ctrl)
            held, act = statics.equilibrium(ctrl, start.act)
            half = 0.5 * np.subtract(*reversed(control_limits(model)))
            if statics.stands:
                warn_once(
                    f"{shown(self.config.model)}: contacts may carry the robot at its start, and a "
                    "controller made of one linearisation knows them only as they are there: it "
                    "seldom holds a robot that stands on legs. See `gps check`; OpenLoopConfig or "
                    "a controller of your own may do better than HoldConfig"
                )
            if time > longest:  # gravity says nothing of the robot
                _, reach = statics.authority(held, act, scales, longest)
                time = statics.driving_time(held, act, scales, np.fmin(half, reach))
            time = float(np.clip(time, 2 * self.dt, longest))
            authority, reach = statics.authority(held, act, scales, time)
            widen_slides(large, statics, held, act, np.fmin(half, reach), self.T * self.dt)
        u[:n], u_scale[:n] = held[chosen] - shift, authority[chosen]
        low, high = self.control_range
        u_range = 0.5 * (high - low)
        u_range[:n] = np.fmin(u_range[:n], reach[chosen])
        size = float(model.stat.extent)
        own = {ENTRIES[0]: np.arange(nv), ENTRIES[1]: nv + np.arange(nv)}
        own |= {ACTIVATION: 2 * nv + np.arange(na)} if na else {}
        for name, at in zip(kept, np.cumsum((2 * nv + na, *kept.values())), strict=False):
            own[name] = at + np.arange(kept[name])
        others = dict(zip(ENTRIES[2:], (size, size / time), strict=True))
        u_width = np.where(np.isfinite(u_scale), u_scale, 1.0)
        widths = {MOCAP: np.full(kept.get(MOCAP, 0), size)}
        memory[: kept.get(HISTORY, 0)], widths[HISTORY] = (
            actions.under_way(u),
            actions.under_way(u_width),
        )
        return linearise(
            begin,
            np.concatenate((joint_positions(compiled, qpos), np.zeros(nv), act, memory)),
            u,
            widths=np.concatenate(
                (scales, scales / time, np.ones(na), widths[HISTORY], widths[MOCAP])
            ),
            large=np.concatenate((large, large / time, np.full(na + n_kept, np.inf))),
            u_scale=u_scale,
            u_range=u_range,
            layout=self.layout,
            own={n: where for n, where in own.items() if n in self.layout.names},
            others={n: scale for n, scale in others.items() if n in self.layout.names},
            dt=self.dt,
            response_time=time,
        )

    @cached_property
    def state_structure(self) -> StateStructure:
        """Angles of hinges without limits, and the velocities of positions."""
        return structure_of(self.model, self.layout)

    @property
    def model_entries(self) -> tuple[str, ...]:
        """State entries that are the state of `known_model`, in its order."""
        return (*ENTRIES[:2], ACTIVATION) if self.model.na else ENTRIES[:2]

    def known_model(self, condition: int, models: Any, *, test: bool = False) -> Any:
        """The condition's dynamics for planning, bodies shifted; its state is `model_entries`.

        models: the module `gps.control.models`, which agents do not import. Trajectories hold NaN
        from where `rollout` would name a failed sample: beyond the configured limit, or where the
        simulator is unstable. Properties under `randomise` have their medians. Raises ConfigError
        for models with delays or plugins, for actions that are not controls of the model, and
        where the state holds a sensor of accelerations or forces.
        """
        self._refuse_late("planned with")
        self._refuse_actions("planned with")
        model = self.model_of(condition, test=test)
        timing = self._condition(condition, test=test).compiled.timing
        known = models.MujocoModel(model, substeps=timing.substeps)
        return Guarded(known, self._setup.limits(self.model_entries))

    def whole_states(
        self, condition: int, states: Array, *, test: bool = False
    ) -> tuple[Array, dict[str, Array]]:
        """The states (S, nx) at states of `known_model` (S, ns), and what depends on these.

        The dictionary holds d entry / dx, (S, size, nx), as `Rollouts.jacobians` does, and those of
        sensors as well, by central differences. Raises ShapeError, and ConfigError where more than
        the model's state matters: for sensors of accelerations and forces.
        """
        begin = self._condition(condition, test=test)
        if self.config.randomise:
            model = self.model_of(condition, test=test)
            begin = replace(begin, model=model, mocap=mocap_poses(model))
        self._refuse_late("derived from positions and velocities")
        self._refuse_memory("derived from positions and velocities")
        states, nv = np.ascontiguousarray(states, dtype=np.float64), self.model.nv
        ns = 2 * nv + self.model.na
        if states.ndim != 2 or states.shape[1] != ns:
            raise ShapeError(f"states must have shape (S, {ns}), got {states.shape}")
        S, nx = len(states), self.layout.size
        compiled = begin.compiled
        N = min(S, _DERIVED_AT_ONCE)
        batch = self._batch(N, compiled, begin.model)
        inputs, bad = self._setup.inputs(batch, compiled), np.zeros(N, dtype=np.bool_)
        X, obs = np.empty((S, nx)), np.empty((1, N, self.obs_layout.size))
        found = {n: J[:, 0] for n, J in self._setup.empty_jacobians(S, 1).items()}
        qpos = raw_positions(compiled, states[:, :nv])
        starts = np.concatenate((qpos, states[:, nv : 2 * nv]), axis=1)
        noise, anything = np.zeros((N, len(self._obs_std))), np.full_like(self._setup.limit, np.inf)
        for first in range(0, S, _DERIVED_AT_ONCE):
            some = slice(min(first, S - N), min(first, S - N) + N)  # the last ones overlap
            self._setup.reset(batch, begin, starts[some], None)
            if self.model.na:  # of the state, positions and velocities alone need a forward pass
                batch.bind("act")[:] = states[some, 2 * nv :]
            now = np.empty((1, N, nx))
            own = self._setup.empty_jacobians(N, 1)
            J, V = (own.get(n, NO_ARRAY) for n in ENTRIES[2:])
            observe(0, anything, *inputs, noise, now, obs, J, V, bad)
            X[some] = now[0]
            for name, value in own.items():
                found[name][some] = value[:, 0]
        jacobians = found | self._sensor_jacobians(begin, states)
        return locked(X), {name: locked(J) for name, J in jacobians.items()}

    def _sensor_jacobians(self, begin: Start, states: Array) -> dict[str, Array]:
        """d sensor / dx of the state's sensors at positions and velocities, by differences."""
        names = [n for n in self._layout.names if n.startswith(SENSOR)]
        own = [self._layout.slice(n) for n in ENTRIES[:2] if n in self._layout.names]
        if not names or len(own) < 2:
            return {}
        nv, nx, h = self.model.nv, self._layout.size, 1e-6
        steps = np.concatenate((h * np.eye(2 * nv), -h * np.eye(2 * nv)))
        compiled = begin.compiled
        batch = self._batch(len(steps), compiled, begin.model)
        inputs, bad = self._setup.inputs(batch, compiled), np.zeros(len(steps), dtype=np.bool_)
        X = np.empty((1, len(steps), nx))
        obs = np.empty((1, len(steps), self.obs_layout.size))
        noise = np.zeros((len(steps), len(self._obs_std)))
        anything = np.full_like(self._setup.limit, np.inf)
        columns = np.concatenate([np.arange(where.start, where.stop) for where in own])
        J = np.zeros((len(states), nx, nx))
        for state, out in zip(states, J, strict=True):
            near = state[: 2 * nv] + steps
            qpos = raw_positions(compiled, near[:, :nv])
            starts = np.concatenate((qpos, near[:, nv:]), axis=1)
            self._setup.reset(batch, begin, starts, None)
            observe(0, anything, *inputs, noise, X, obs, NO_ARRAY, NO_ARRAY, bad)
            out[:, columns] = (X[0, : 2 * nv] - X[0, 2 * nv :]).T / (2 * h)
        return {name: J[:, self._layout.slice(name)] for name in names}

    def _refuse_late(self, what: str) -> None:
        late = [n for n in self._late if n in self._layout.names]
        if late:
            raise ConfigError(
                f"MujocoConfig.state: {', '.join(late)} cannot be {what}, as it depends on the "
                "action before; leave it to the observation"
            )

    def _refuse_memory(self, what: str) -> None:
        more = {
            HISTORY: "delays",
            MOCAP: "mocap bodies that actions displace",
            PLUGIN: "plugins with a state",
            WARMSTART: "the solver's warm start",
        }
        if found := [f"{n} ({why})" for n, why in more.items() if n in self._layout.names]:
            raise ConfigError(
                f"MujocoConfig.state: states of {shown(self.config.model)} cannot be {what}, as "
                f"they hold {', '.join(found)}"
            )

    def _refuse_actions(self, what: str) -> None:
        self._refuse_memory(what)
        if not self._actions.plain:
            raise ConfigError(
                "MujocoConfig.actuators, mocap_actions, relative: an agent whose actions are not "
                f"the model's own controls cannot be {what}"
            )

    def start_state(self, condition: int, *, test: bool = False) -> Array:
        """The undisturbed state (nx,) at which rollouts of `condition` start."""
        run, _ = self._begin(1, 1, condition, None, test=test)
        run.observe(0, 0)
        return locked(run.X[0, 0])

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

        Every step's end points, their velocities and their Jacobians belong to that step's joint
        positions and velocities. `Rollouts.jacobians` holds end_points (if joint_pos is in the
        state) and end_point_velocities (if joint_vel is there too), placed in the columns of the
        joint entries. Actions are clipped to the control range before they are recorded.

        With cameras, `Rollouts.images` shows every sample on its own model. A policy with
        `needs_images` gets the images of a step when it acts; otherwise they are drawn all at
        once at the end, unless `gps.protocols.records_images` is false. Raises
        ConfigError for a policy that needs them without cameras, and GPSError where OpenGL is
        missing.
        """
        cfg, T, nu = self.config, self.config.T, self.nu
        compiled = self._condition(condition, test=test).compiled
        noise = self._smooth(noise, nu)
        N = noise.shape[0]
        policy = acting(policy)
        with_images = needs_images(policy)
        if with_images and not cfg.cameras:
            raise ConfigError("MujocoConfig.cameras must name a camera: the policy needs images")
        run, models = self._begin(N, T, condition, start_noise, test=test)
        frames: list[Images] = []
        # the policy gets what it cannot change; time comes first, so that a step is contiguous
        X_view, obs_view, noise_view = locked(run.X), locked(run.obs), locked(_swapped(noise))
        act, observe, apply, advance = policy.act, run.observe, run.apply, run.advance
        with run.quiet():
            for t in range(T):
                if not observe(t, t):
                    break
                if with_images:
                    assert run.poses is not None
                    frame = self._images(compiled, models, run.poses[t : t + 1])[:, 0]
                    frame.flags.writeable = False
                    frames.append(frame)
                    act_on: Any = act  # a policy with images has one more argument
                    u = act_on(X_view[t], obs_view[t], t, noise_view[t], images=frame)
                else:
                    u = act(X_view[t], obs_view[t], t, noise_view[t])
                u = check_actions(u, N, nu)
                if not apply(t, t, u):
                    break
                if t + 1 < T and not advance(t):
                    break
        run.failures.raise_if_any()
        images = np.stack(frames, axis=1) if frames else None
        if run.poses is not None and images is None and records_images(policy):
            images = self._images(compiled, models, run.poses)
        if images is not None:
            images.flags.writeable = False
        return Rollouts(
            X=locked(_swapped(run.X)),
            U=locked(_swapped(run.U)),
            obs=locked(_swapped(run.obs)),
            noise=noise,
            layout=self.layout,
            condition=condition,
            jacobians={name: locked(value) for name, value in run.jacobians.items()},
            images=images,
        )

    def _images(
        self, compiled: Compiled, models: mujoco.MjModel | list[mujoco.MjModel], poses: Array
    ) -> Images:
        """What the cameras see at `Run.poses` (S, N, n), (N, S, height, width, channels)."""
        renderer = self._renderers.get(compiled)
        if renderer is None:  # textures and meshes go to OpenGL once
            size = self.config.image_size
            renderer = Renderer(compiled.model, self.config.cameras, *size)
            self._renderers[compiled] = renderer
        poses = _swapped(poses)
        N, S = poses.shape[:2]
        out = np.empty((N, S, *renderer.shape), dtype=np.uint8)
        nq, places = self.model.nq, self.model.nq + 3 * self.model.nmocap

        def draw(model: mujoco.MjModel, rows: Array, images: Images) -> None:
            pos = rows[:, nq:places].reshape(len(rows), -1, 3)
            quat = rows[:, places:].reshape(len(rows), -1, 4)
            renderer.render(model, rows[:, :nq], pos, quat, out=images)

        if isinstance(models, list):
            for model, rows, images in zip(models, poses, out, strict=True):
                draw(model, rows, images)
        else:
            draw(models, poses.reshape(N * S, -1), out.reshape(N * S, *renderer.shape))
        return out

    def simulation(self) -> Simulation:
        """A simulation of one sample that its owner steps; see `gps.agents.base.Simulation`.

        It has no images.
        """
        # its own: rollouts of one sample must not touch an episode that is under way
        own: dict[int, Batch] = {}

        def begin(condition: int, start_noise: Array | None, test: bool) -> Run:
            return self._begin(1, 1, condition, start_noise, test=test, batches=own)[0]

        return Simulation(begin)

    def _begin(
        self,
        N: int,
        rows: int,
        condition: int,
        start_noise: Array | None,
        *,
        test: bool,
        batches: dict[int, Batch] | None = None,
    ) -> tuple[Run, mujoco.MjModel | list[mujoco.MjModel]]:
        """N simulations of a condition at their starts, disturbed by `start_noise` (N, n_start).

        And their model, or one for each of them.
        """
        ready, nq, nv = self._condition(condition, test=test), self.model.nq, self.model.nv
        model: mujoco.MjModel | list[mujoco.MjModel] = ready.model
        start = np.tile(np.concatenate((ready.qpos, ready.qvel)), (N, 1))
        obs_noise = NO_NOISE
        if self.n_start:
            numbers = check_start_noise(start_noise, N, self.n_start)
            first, second, third = self._sizes
            if first:
                by = self._start_std * numbers[:, :first]
                start[:, :nq] = moved(ready.model, start[:, :nq], by[:, :nv])
                start[:, nq:] += by[:, nv:]
            if second:
                model = randomised(
                    ready.model, self.config.randomise, numbers[:, first : first + second]
                )
                places, turns = zip(*map(ready.poses, model), strict=True)
                ready = replace(ready, mocap=(np.stack(places), np.stack(turns)))
            if third:
                drawn = numbers[:, -third:].reshape(N, self.config.T, -1)
                obs_noise = np.ascontiguousarray((self._obs_std * drawn).transpose(1, 0, 2))
        batch = self._batch(N, ready.compiled, model, batches)
        keep = bool(self.config.cameras) and batches is None
        run = Run(self._setup, batch, ready, condition, start, rows, obs_noise, positions=keep)
        return run, model

    def _batch(
        self,
        N: int,
        compiled: Compiled,
        model: mujoco.MjModel | list[mujoco.MjModel],
        own: dict[int, Batch] | None = None,
        threads: int = 0,
    ) -> Batch:
        """N simulations on the given models; kept, since making them is not free."""
        if own is not None:
            batch = own.get(compiled.group) or Batch(compiled.model, N, 1, persistent=True)
            own[compiled.group] = batch
        else:
            key = compiled.group, N
            batch = self._batches.pop(key, None)
            if batch is None:
                # persistent: the stages computed after a step are the beginning of the next one
                batch = Batch(compiled.model, N, threads or self.threads, persistent=True)
            self._batches[key] = batch  # the newest comes last
            while len(self._batches) > self._kept:
                del self._batches[next(iter(self._batches))]
        batch.set_models(model)
        return batch

    def check_images(self) -> None:
        """GPSError where no image could be drawn, as far as environment variables show."""
        require_display()

    def check_render(
        self, *, width: int, height: int, camera: str | int = -1, test: bool = False
    ) -> None:
        """Raise what `render` would of these arguments, for all (test) conditions.

        ConfigError for a camera that a model lacks or a size; GPSError where OpenGL is missing, and
        where the state does not hold joint_pos.
        """
        require_joint_pos(self._layout)
        for compiled in dict.fromkeys(start.compiled for start in self._conditions[test]):
            with Renderer(compiled.model, (camera,), height, width, plain=False):
                pass

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

        camera: name of a camera of the model, or -1 for MuJoCo's free camera. `test` says that
        the rollouts are of a test condition. Raises GPSError where OpenGL is missing, and where
        the state does not hold joint_pos.
        """
        require_joint_pos(rollouts.layout)
        model = self.model_of(rollouts.condition, test=test)
        if not 0 <= sample < rollouts.N:
            raise ShapeError(f"sample {sample} does not exist; there are {rollouts.N}")
        compiled = self._conditions[test][rollouts.condition].compiled
        X = rollouts.X[sample, ::every]
        qpos = raw_positions(compiled, X[:, rollouts.layout.slice("joint_pos")])
        poses = self._mocap_poses(compiled, model, X, qpos)
        return render_states(model, qpos, *poses, width=width, height=height, camera=camera)

    def _mocap_poses(
        self, compiled: Compiled, model: mujoco.MjModel, X: Array, qpos: Array
    ) -> tuple[Array, ...]:
        """Poses of the mocap bodies at states (S, nx); nothing where actions move none."""
        if not compiled.actions.mocap:
            return ()
        data = mujoco.MjData(model)
        pos, quat = np.empty((len(X), model.nmocap, 3)), np.empty((len(X), model.nmocap, 4))
        for i, q in enumerate(qpos):
            data.qpos[:] = q
            mujoco.mj_kinematics(model, data)
            compiled.actions.place(data, self._entry_of(X[i], MOCAP))
            pos[i], quat[i] = data.mocap_pos, data.mocap_quat
        return pos, quat

    def _entry_of(self, x: Array, name: str) -> Array:
        """An entry of a state, empty where the state does not have it."""
        return x[self._layout.slice(name)] if name in self._layout.names else x[:0]

    def visual_model(self, condition: int, *, test: bool = False) -> MujocoVisualModel:
        """How a condition is shown; properties under `randomise` have their medians.

        Raises GPSError where the state does not hold joint_pos.
        """
        require_joint_pos(self._layout, "an agent can only be shown")
        model = self.model_of(condition, test=test)
        compiled = self._conditions[test][condition].compiled
        where = self._layout.slice("joint_pos")
        actions = compiled.actions

        def place(data: mujoco.MjData, x: Array) -> None:
            actions.place(data, self._entry_of(x, MOCAP))

        return MujocoVisualModel(
            model,
            self._layout.size,
            lambda X: raw_positions(compiled, X[:, where]),
            place if actions.mocap else None,
        )


def _swapped(array: Array) -> Array:
    """The first two axes exchanged, C-ordered."""
    return np.ascontiguousarray(array.transpose(1, 0, 2))
