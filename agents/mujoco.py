"""Agents simulated by MuJoCo: all samples of a condition step together in one `mujoco.batch`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any

import mujoco
import numpy as np
from mujoco.batch import Batch

from gps.agents._kernels import observe
from gps.agents._linearise import (
    Statics,
    direction_scales,
    linearise,
    smooth,
)
from gps.agents._model import (
    ACC,
    ACTIVATION,
    ENTRIES,
    QPOS,
    SENSOR,
    VEL,
    Compiled,
    ModelSource,
    checked_source,
    grouped,
    ids,
    interned,
    joint_positions,
    load_model,
    locate,
    moved,
    raw_positions,
    refuse_free,
    shown,
)
from gps.agents._run import (
    NO_ARRAY,
    NO_NOISE,
    Guarded,
    Run,
    Setup,
    locked,
    warnings_to_log,
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
)
from gps.agents.randomise import Randomise, randomised
from gps.agents.rendering import Renderer, render_states, require_display
from gps.agents.visual_model import MujocoVisualModel
from gps.errors import ConfigError, GPSError, ShapeError, SimulationError, choices
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
)

_KEPT_BATCHES = 4
_DERIVED_AT_ONCE = 64  # states
Vector3 = tuple[Finite, Finite, Finite]
Quaternion = tuple[Finite, Finite, Finite, Finite]
Pixels = Annotated[int, Range(at_least=1, at_most=8192, unit="pixels")]
Box = tuple[str, Vector3, Vector3]
"""A body and the lowest and highest place that a distribution gives it, in m."""


@dataclass(frozen=True, kw_only=True)
class Condition(Config):
    """How one start differs from the configuration."""

    qpos: Values | None = None
    """Start positions in place of the configuration's, rad or m, quaternions for balls."""
    qpos_offset: Values | None = None
    """Added to the start joint positions, rad or m; a rotation vector for each quaternion."""
    body_offsets: tuple[tuple[str, Vector3], ...] = ()
    """Bodies moved from their place in the model: (name, (x, y, z)) in the parent's frame, in m."""
    mocap: tuple[tuple[str, Vector3] | tuple[str, Vector3, Quaternion], ...] = ()
    """Where mocap bodies stand for the whole rollout: (name, (x, y, z)) in m in the world, or
    (name, (x, y, z), (w, x, y, z)) with a quaternion. The others stand as in the model."""
    model: ModelSource | None = None
    """A model in place of the configuration's, given like it. It has to have the same kinds of
    joints in the same order, the same numbers of controls and activations with the same limits,
    and the entries of state and observation under the same names and sizes; its bodies and shapes
    are free."""

    def __post_init__(self) -> None:
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
    """Name of a model in `gps.data`, a path to an MJCF file that ends in .xml (a `pathlib.Path` is
    kept as text), MJCF text (begins with "<"), or a function without arguments that gives a
    `mujoco.MjSpec`, the same one each time. The function is called wherever the agent is built, so
    it has to be defined at the top level of a module, or of the hyperparams file."""
    T: Steps = 100
    """Steps of one rollout."""
    dt: Seconds = 0.05
    """Duration of one control step, in seconds; the controls are constant during a step."""
    substeps: Annotated[int, Range(at_least=1, at_most=10_000)] = 5
    """Simulator steps per control step; the simulator's time step is dt / substeps."""
    sites: tuple[str, ...] = ()
    """Sites of the model that are the end points, in order."""
    state: Names = ("joint_pos", "joint_vel")
    """State entries: joint_pos (rad, m), joint_vel, end_points (m), end_point_velocities (m/s),
    activation (the internal state of actuators with dynamics; such a model needs it), and
    sensor:NAME, any sensor of the model, in its own units. Sensors belong to the positions and
    velocities of their step. Those that need accelerations (accelerometer, force, torque, touch,
    actuator and constraint forces) are evaluated there too, with the control of the step before,
    which is zero at step 0; an agent that uses one computes the forces of every step once more."""
    obs: Annotated[tuple[str, ...], Items(distinct=True)] | None = None
    """The global policy's observation, any of the same entries, or qpos, the positions with
    quaternions; None for the whole state."""
    qpos: Values | None = None
    """Start positions, rad or m, quaternions for balls (nq values); None for the model's."""
    qvel: Values | None = None
    """Start joint velocities, rad/s or m/s; None for rest."""
    conditions: Annotated[tuple[Condition, ...], Items(some=True)] = (Condition(),)
    """Training conditions."""
    test_conditions: tuple[Condition, ...] = ()
    """Conditions kept for evaluation."""
    start_qpos_std: Std = 0.0
    """Standard deviation of the start joint positions, rad or m: one for all joints or one each."""
    start_qvel_std: Std = 0.0
    """Standard deviation of the start joint velocities, rad/s or m/s."""
    activation: Values | None = None
    """Start activations of the actuators that have them; None for zeros."""
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
    limit: Limit = 1e4
    """A sample with a position or velocity above this, in SI units, has failed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "model", checked_source(self.model, "MujocoConfig.model"))
        seen = self.state if self.obs is None else self.obs
        known = (*ENTRIES, ACTIVATION)
        for field, names, listed in (
            ("state", self.state, known),
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
        for name, _ in self.obs_noise:
            if name not in seen:
                raise ConfigError(f"MujocoConfig.obs_noise: {choices('entry', name, seen)}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in another process."""
        self.__dict__.update(state | {"model": interned(state["model"])})

    def build(self, threads: int = 1) -> MujocoAgent:
        """Load the model and check the names and sizes; `threads` step the samples in parallel."""
        return MujocoAgent(self, threads)


class MujocoAgent(SimulatedAgent["_Start"]):
    """Runs all samples of a rollout together, with one Python call per control step.

    Not to be used from several Python threads at once: the simulations are reused.
    """

    def __init__(self, config: MujocoConfig, threads: int = 1) -> None:
        self.config = config
        self.threads: int = checked(threads, Count, "MujocoConfig.build(threads)")
        observed = config.state if config.obs is None else config.obs
        conditions = ((False, config.conditions), (True, config.test_conditions))
        models = self._compile(dict.fromkeys((*config.state, *observed)), conditions)
        base = models[config.model]
        self.model = model = base.model
        if not model.nu:
            raise ConfigError(
                f"MujocoConfig.model: {shown(config.model)} has no actuators, so nothing could be "
                "controlled"
            )
        if model.na and ACTIVATION not in config.state:
            raise ConfigError(
                f"MujocoConfig.state: the model {shown(config.model)} has stateful "
                f"actuators (na={model.na}); add {ACTIVATION!r}, or the state is incomplete"
            )
        if not model.na and ACTIVATION in (*config.state, *observed):
            raise ConfigError(
                f"MujocoConfig.state, obs: no actuator of {shown(config.model)} has an activation"
            )
        everything = Layout(tuple(base.sizes.items()))
        self._layout = everything.select(config.state)
        self._obs_layout = everything.select(observed)
        self._obs_std = np.array(
            [std for n, std in config.obs_noise for _ in range(self._obs_layout.length(n))]
        )
        self._low, self._high = base.limits
        self._late = base.late
        self._setup = Setup(
            everything,
            self._layout,
            self._obs_layout,
            stage=ACC if base.late else VEL,
            sensors=any(name.startswith(SENSOR) for name in base.sizes),
            limits=base.limits,
            limit=config.limit,
            substeps=config.substeps,
            noisy=entry_indices(self._obs_layout, [n for n, _ in config.obs_noise]),
            activation=self._sized("activation", config.activation, np.zeros(model.na), model.na),
        )
        self._qvel = self._sized("qvel", config.qvel, np.zeros(model.nv), model.nv)
        nv, parts = model.nv, []
        for field, std in (
            ("start_qpos_std", config.start_qpos_std),
            ("start_qvel_std", config.start_qvel_std),
        ):
            parts.append(self._sized(field, std if np.ndim(std) else (std,) * nv, None, nv))
        self._start_std = np.concatenate(parts)
        self._sizes = (
            2 * model.nv if self._start_std.any() else 0,
            sum(r.size for r in config.randomise),
            config.T * len(self._obs_std),
        )
        self._conditions = {
            test: [self._prepare(c, models[c.model or config.model]) for c in some]
            for test, some in conditions
        }
        self._batches: dict[tuple[int, int], Batch] = {}
        self._renderers: dict[Compiled, Renderer] = {}
        self._kept = _KEPT_BATCHES * (1 + max(m.group for m in models.values()))

    def _compile(
        self, names: Sequence[str] | dict[str, None], conditions: Any
    ) -> dict[ModelSource, Compiled]:
        """All models of the agent, by their source; ConfigError where they do not fit together."""
        config = self.config
        found: dict[ModelSource, Compiled] = {}
        users = [
            (c.model, f"{'test ' * test}condition {m}")
            for test, some in conditions
            for m, c in enumerate(some)
            if c.model is not None
        ]
        for source, user in ((config.model, ""), *users):
            if source in found:
                continue
            try:
                model = load_model(source)
                model.opt.timestep = config.dt / config.substeps
                found[source] = locate(model, config.sites, tuple(names))
                ids(model, "camera", config.cameras, "MujocoConfig.cameras")
            except ConfigError as error:
                raise ConfigError(f"{user}: {error}" if user else str(error)) from error
            if user:
                _check_alike(found[config.model], found[source], f"{user}, {shown(source)}")
        if len(found) > 1:
            numbers = grouped([c.model for c in found.values()], Batch)
            found = {
                source: replace(c, group=g)
                for (source, c), g in zip(found.items(), numbers, strict=True)
            }
        # one reference for all, so that a state means the same everywhere
        refs = found[config.model].maps[6]
        return {s: replace(c, maps=(*c.maps[:6], refs, *c.maps[7:])) for s, c in found.items()}

    def _sized(self, field: str, value: Any, default: Any, n: int) -> Array:
        vector = np.array(default if value is None else value, dtype=np.float64)
        if vector.shape != (n,):
            raise ConfigError(
                f"MujocoConfig.{field} must have {n} values, one for each "
                f"{'activation' if field == 'activation' else 'joint value'} of "
                f"{shown(self.config.model)}, got {vector.size}"
            )
        return vector

    def _prepare(self, condition: Condition, compiled: Compiled) -> _Start:
        """The condition's own model, made from the unshifted one, and its start positions."""
        model = copy.copy(compiled.model)
        default = self.config.qpos if self.config.qpos is not None else model.qpos0
        qpos = self._sized("qpos", default, None, model.nq)
        if condition.qpos is not None:
            qpos = self._sized("conditions: qpos", condition.qpos, None, model.nq)
        if condition.qpos_offset is not None:
            by = self._sized("conditions: qpos_offset", condition.qpos_offset, None, model.nv)
            qpos = moved(model, qpos, by)
        names = [model.body(i).name for i in range(model.nbody) if model.body_mocapid[i] >= 0]
        for name, place, *turn in condition.mocap:
            if name not in names:
                raise ConfigError(f"Condition.mocap: {choices('mocap body', name, names)}")
            # the simulator's reset takes mocap bodies from here
            model.body(name).pos = place
            for quaternion in turn:
                model.body(name).quat = np.array(quaternion) / np.linalg.norm(quaternion)
        offsets = condition.body_offsets
        found = ids(model, "body", [b for b, _ in offsets], "Condition.body_offsets")
        for body, (_, offset) in zip(found, offsets, strict=True):
            refuse_free(model, body, "Condition.body_offsets")
            model.body_pos[body] += offset
        if offsets or condition.mocap:
            mujoco.mj_setConst(model, mujoco.MjData(model))
        for spec in self.config.randomise:
            spec.check(model)
        return _Start(compiled, model, qpos)

    @property
    def noisy_entries(self) -> tuple[str, ...]:
        """Observation entries that differ from the state by noise."""
        return tuple(name for name, std in self.config.obs_noise if std > 0)

    @property
    def nu(self) -> int:
        """Number of motors."""
        return int(self.model.nu)

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
        """Lowest and highest control of each motor, (nu,) each; infinite where unlimited."""
        return self._low.copy(), self._high.copy()

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
        return copy.copy(self._nominal(condition, test=test))

    def _nominal(self, condition: int, *, test: bool) -> mujoco.MjModel:
        """The condition's model, which rollouts without start noise run on."""
        model = self._condition(condition, test=test).model
        if self.config.randomise:
            (model,) = randomised(model, self.config.randomise, np.zeros((1, self._sizes[1])))
        return model

    def start_control(self, condition: int, *, test: bool = False) -> Array | None:
        """The controls (nu,) that a condition's start asks for; None where it names none."""
        self._condition(condition, test=test)
        return None

    def linearise(self, condition: int, *, test: bool = False) -> Linearisation:
        """See `gps.protocols.Linearises`: about the start positions, at rest.

        The action is the one that minimises the kinetic energy of the acceleration that is left
        (`Statics.equilibrium`), found from the start's own controls; activations are in equilibrium
        with it. Derivatives are central differences of a whole control step. Both leave out dry
        friction and the limits of joints, which at rest hide what the actuators do, and contacts,
        but where they may carry the robot (`_linearise.smooth`). Properties under `randomise` have
        their medians. Raises SimulationError.
        """
        start = self._condition(condition, test=test)
        model = smooth(self._nominal(condition, test=test), start.qpos)
        compiled, nv, na, nu = start.compiled, model.nv, model.na, model.nu
        control = self.start_control(condition, test=test)
        u = np.zeros(self.nu) if control is None else np.array(control, dtype=np.float64)

        def begin(N: int) -> tuple[Run, Callable[[Array], None]]:
            batch = self._batch(N, compiled, model)
            still = np.tile(np.concatenate((start.qpos, np.zeros(nv))), (N, 1))
            noise = np.zeros((1, N, len(self._obs_std)))
            run = Run(self._setup, batch, compiled, condition, still, 2, noise)

            def put(states: Array) -> None:
                qpos = raw_positions(compiled, states[:, :nv])
                moving = {"act": states[:, 2 * nv :]} if na else {}
                run.restart(qpos=qpos, qvel=states[:, nv : 2 * nv], **moving)

            return run, put

        begin(1)
        act0 = self._batch(1, compiled, model).bind("act")[0].copy() if na else np.zeros(0)
        scales, time = direction_scales(model)
        time = float(np.clip(time, 2 * self.dt, max(2.0, self.T / 4) * self.dt))
        u_scale = np.full(self.nu, np.inf)
        with warnings_to_log():
            statics = Statics(model, start.qpos)
            u[:nu], act = statics.equilibrium(u[:nu], act0)
            u_scale[:nu], reach = statics.authority(u[:nu], act, scales, time)
        low, high = self.control_range
        u_range = 0.5 * (high - low)
        u_range[:nu] = np.fmin(u_range[:nu], reach)
        size = float(model.stat.extent)
        own = {ENTRIES[0]: np.arange(nv), ENTRIES[1]: nv + np.arange(nv)}
        own |= {ACTIVATION: 2 * nv + np.arange(na)} if na else {}
        others = dict(zip(ENTRIES[2:], (size, size / time), strict=True))
        return linearise(
            begin,
            np.concatenate((joint_positions(compiled, start.qpos), np.zeros(nv), act)),
            u,
            widths=np.concatenate((scales, scales / time, np.ones(na))),
            large=np.concatenate((scales, scales / time, np.full(na, np.inf))),
            u_scale=u_scale,
            u_range=u_range,
            layout=self.layout,
            own={n: where for n, where in own.items() if n in self.layout.names},
            others={n: scale for n, scale in others.items() if n in self.layout.names},
            dt=self.dt,
            response_time=time,
        )

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
        if self.nu != self.model.nu:
            raise ConfigError(
                f"MujocoConfig: {self.nu - self.model.nu} of the actions move mocap bodies, which "
                "cannot be planned with; leave them out"
            )
        model = self.model_of(condition, test=test)
        self._refuse_late("planned with")
        known = models.MujocoModel(model, substeps=self.config.substeps)
        return Guarded(known, self.config.limit)

    def whole_states(
        self, condition: int, states: Array, *, test: bool = False
    ) -> tuple[Array, dict[str, Array]]:
        """The states (S, nx) at states of `known_model` (S, ns), and what depends on these.

        The dictionary holds d entry / dx, (S, size, nx), as `Rollouts.jacobians` does, and those of
        sensors as well, by central differences. Raises ShapeError, and ConfigError where more than
        the model's state matters: for sensors of accelerations and forces.
        """
        model = self._nominal(condition, test=test)
        self._refuse_late("derived from positions and velocities")
        states, nv = np.ascontiguousarray(states, dtype=np.float64), self.model.nv
        ns = 2 * nv + self.model.na
        if states.ndim != 2 or states.shape[1] != ns:
            raise ShapeError(f"states must have shape (S, {ns}), got {states.shape}")
        S, nx = len(states), self.layout.size
        compiled = self._conditions[test][condition].compiled
        N = min(S, _DERIVED_AT_ONCE)
        batch = self._batch(N, compiled, model)
        inputs, bad = self._setup.inputs(batch, compiled), np.zeros(N, dtype=np.bool_)
        X, obs = np.empty((S, nx)), np.empty((1, N, self.obs_layout.size))
        found = {n: J[:, 0] for n, J in self._setup.empty_jacobians(S, 1).items()}
        qpos = raw_positions(compiled, states[:, :nv])
        starts = np.concatenate((qpos, states[:, nv : 2 * nv]), axis=1)
        noise = np.zeros((N, len(self._obs_std)))
        for first in range(0, S, _DERIVED_AT_ONCE):
            some = slice(min(first, S - N), min(first, S - N) + N)  # the last ones overlap
            self._setup.reset(batch, model, starts[some], None)
            if self.model.na:  # of the state, positions and velocities alone need a forward pass
                batch.bind("act")[:] = states[some, 2 * nv :]
            now = np.empty((1, N, nx))
            own = self._setup.empty_jacobians(N, 1)
            J, V = (own.get(n, NO_ARRAY) for n in ENTRIES[2:])
            observe(0, math.inf, *inputs, noise, now, obs, J, V, bad)
            X[some] = now[0]
            for name, value in own.items():
                found[name][some] = value[:, 0]
        jacobians = found | self._sensor_jacobians(compiled, model, states)
        return locked(X), {name: locked(J) for name, J in jacobians.items()}

    def _sensor_jacobians(
        self, compiled: Compiled, model: mujoco.MjModel, states: Array
    ) -> dict[str, Array]:
        """d sensor / dx of the state's sensors at positions and velocities, by differences."""
        names = [n for n in self._layout.names if n.startswith(SENSOR)]
        own = [self._layout.slice(n) for n in ENTRIES[:2] if n in self._layout.names]
        if not names or len(own) < 2:
            return {}
        nv, nx, h = self.model.nv, self._layout.size, 1e-6
        steps = np.concatenate((h * np.eye(2 * nv), -h * np.eye(2 * nv)))
        batch = self._batch(len(steps), compiled, model)
        inputs, bad = self._setup.inputs(batch, compiled), np.zeros(len(steps), dtype=np.bool_)
        X = np.empty((1, len(steps), nx))
        obs = np.empty((1, len(steps), self.obs_layout.size))
        noise = np.zeros((len(steps), len(self._obs_std)))
        columns = np.concatenate([np.arange(where.start, where.stop) for where in own])
        J = np.zeros((len(states), nx, nx))
        for state, out in zip(states, J, strict=True):
            near = state[: 2 * nv] + steps
            qpos = raw_positions(compiled, near[:, :nv])
            starts = np.concatenate((qpos, near[:, nv:]), axis=1)
            self._setup.reset(batch, model, starts, None)
            observe(0, math.inf, *inputs, noise, X, obs, NO_ARRAY, NO_ARRAY, bad)
            out[:, columns] = (X[0, : 2 * nv] - X[0, 2 * nv :]).T / (2 * h)
        return {name: J[:, self._layout.slice(name)] for name in names}

    def _refuse_late(self, what: str) -> None:
        late = [n for n in self._late if n in self._layout.names]
        if late:
            raise ConfigError(
                f"MujocoConfig.state: {', '.join(late)} cannot be {what}, as it depends on the "
                "action before; leave it to the observation"
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
                    assert run.qpos is not None
                    frame = self._pictures(compiled, models, run.qpos[t : t + 1])[:, 0]
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
        if run.qpos is not None and images is None and records_images(policy):
            images = self._pictures(compiled, models, run.qpos)
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

    def _pictures(
        self, compiled: Compiled, models: mujoco.MjModel | list[mujoco.MjModel], qpos: Array
    ) -> Images:
        """What the cameras see at positions (S, N, nq), (N, S, height, width, channels)."""
        renderer = self._renderers.get(compiled)
        if renderer is None:  # textures and meshes go to OpenGL once
            size = self.config.image_size
            renderer = Renderer(compiled.model, self.config.cameras, *size)
            self._renderers[compiled] = renderer
        qpos = _swapped(qpos)
        N, S = qpos.shape[:2]
        out = np.empty((N, S, *renderer.shape), dtype=np.uint8)
        if isinstance(models, list):
            for model, q, images in zip(models, qpos, out, strict=True):
                renderer.render(model, q, out=images)
        else:
            flat = out.reshape(N * S, *renderer.shape)
            renderer.render(models, qpos.reshape(N * S, -1), out=flat)
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
        start = np.tile(np.concatenate((ready.qpos, self._qvel)), (N, 1))
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
            if third:
                drawn = numbers[:, -third:].reshape(N, self.config.T, -1)
                obs_noise = np.ascontiguousarray((self._obs_std * drawn).transpose(1, 0, 2))
        batch = self._batch(N, ready.compiled, model, batches)
        keep = bool(self.config.cameras) and batches is None
        run = Run(
            self._setup, batch, ready.compiled, condition, start, rows, obs_noise, positions=keep
        )
        return run, model

    def _batch(
        self,
        N: int,
        compiled: Compiled,
        model: mujoco.MjModel | list[mujoco.MjModel],
        own: dict[int, Batch] | None = None,
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
                batch = Batch(compiled.model, N, self.threads, persistent=True)
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
        self._require_joints(self._layout)
        for compiled in dict.fromkeys(start.compiled for start in self._conditions[test]):
            with Renderer(compiled.model, (camera,), height, width, plain=False):
                pass

    @staticmethod
    def _require_joints(layout: Layout) -> None:
        if "joint_pos" not in layout.names:
            raise GPSError("a rollout can only be drawn if joint_pos is in its state")

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
        self._require_joints(rollouts.layout)
        model = self._nominal(rollouts.condition, test=test)
        if not 0 <= sample < rollouts.N:
            raise ShapeError(f"sample {sample} does not exist; there are {rollouts.N}")
        compiled = self._conditions[test][rollouts.condition].compiled
        qpos = raw_positions(compiled, rollouts.entry("joint_pos")[sample, ::every])
        return render_states(model, qpos, width=width, height=height, camera=camera)

    def visual_model(self, condition: int, *, test: bool = False) -> MujocoVisualModel:
        """How a condition is shown; properties under `randomise` have their medians.

        Raises GPSError where the state does not hold joint_pos.
        """
        if "joint_pos" not in self._layout.names:
            raise GPSError("an agent can only be shown if joint_pos is in its state")
        model = self.model_of(condition, test=test)
        compiled = self._conditions[test][condition].compiled
        where = self._layout.slice("joint_pos")
        return MujocoVisualModel(
            model, self._layout.size, lambda X: raw_positions(compiled, X[:, where])
        )


@dataclass(frozen=True, eq=False)
class _Start:
    """What a condition begins with."""

    compiled: Compiled
    model: mujoco.MjModel  # the condition's own
    qpos: Array


def _check_alike(first: Compiled, other: Compiled, who: str) -> None:
    """ConfigError names what a condition's model has otherwise than the configuration's."""
    models = first.model, other.model
    sizes = zip(("nq", "nv", "nu", "na"), *((m.nq, m.nv, m.nu, m.na) for m in models), strict=True)
    for name, a, b in sizes:
        if a != b:
            raise ConfigError(f"Condition.model: {who}: {name} must be {a} as elsewhere, got {b}")
    for name, size in first.sizes.items():
        if other.sizes[name] != size:
            raise ConfigError(
                f"Condition.model: {who}: {name} must have {size} values as elsewhere, got "
                f"{other.sizes[name]}"
            )
    if not np.array_equal(first.model.jnt_type, other.model.jnt_type):
        raise ConfigError(f"Condition.model: {who}: the joints must be of the same kinds in order")
    if not np.array_equal(first.limits, other.limits):
        raise ConfigError(f"Condition.model: {who}: the controls must have the same limits")


def _swapped(array: Array) -> Array:
    """The first two axes exchanged, C-ordered."""
    return np.ascontiguousarray(array.transpose(1, 0, 2))
