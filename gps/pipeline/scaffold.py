"""Hyperparams files for a robot that no one has described yet: what `gps new --model` writes.

The values come from the model or the environment itself, and the file says from what; of several
initial controllers the first one is taken with which `gps.check` finds nothing wrong.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gps.errors import ConfigError, GPSError
from gps.pipeline import loader
from gps.pipeline.checking import CLIPPED, EXPLORES, POSITIONS, Check, check, visual_of
from gps.pipeline.experiment import Experiment, initial_state
from gps.pipeline.source_text import (
    Argument,
    Call,
    Items,
    Name,
    assigned,
    comment,
    number,
    sum_of,
)
from gps.protocols import Agent, control_limits_of, control_range_of
from gps.types import Array

if TYPE_CHECKING:
    from gps.pipeline.robot import Robot

_CONDITIONS, _TESTS, _TRAINING = 4, 10, "training conditions"
_TARGETS = 6
"""Training conditions where targets differ, which say more of a policy's task than starts do."""
_FAR = 2.0
"""Cost of a step as far from the target as the start is."""
_EFFORT = 0.025
"""Cost of a step in which an action is at its limit."""
_ENV_T, _ENV_DURATION = (100, 400), 5.0
"""Least and most steps of a rollout in an environment, and its duration in s in between. Within
100 steps of 8 ms it pays a walker to throw itself forward, since it falls after them only."""
_FALLS, _FALL_DURATION = 4, 2.0
"""Rollouts where half of the first samples fall: in times as long as they stand, and in s; of the
two the longer one."""
_DM_STEP, _DM_T = 0.04, 100
"""Duration of a step of dm_control's tasks, in s, which take actions up to a hundred times a second
for 10 s or more, and steps of a rollout."""
_TRAINED = 0.7
"""Share of a rollout that the policy learns, where episodes are longer."""
_SPEED = 0.05
"""Cost of a step at the speed that takes the way in a quarter of the rollout."""


@dataclass(frozen=True)
class Made:
    """What `new` wrote. `str(...)` says so."""

    path: Path
    check: Check
    """Of the experiment as written."""
    passed: tuple[str, ...] = ()
    """Initial controllers that are not in it, and why."""

    def __str__(self) -> str:
        holds = {True: "hold", False: "do not hold", None: "have no feedback to hold"}
        reasons = (*self.passed, *(self.check.causes if self.check.holds is not True else ()))
        return "\n".join(
            [
                f"wrote {self.path}: {self.check.n_conditions} conditions, {self.check.T} steps of "
                f"{self.check.dt:g} s; its initial controllers {holds[self.check.holds]} the start",
                *(f"- {reason}" for reason in reasons),
                f"next: gps check {self.path}; edit it; gps run {self.path}",
            ]
        )


@dataclass(frozen=True)
class _Draft:
    """The parts of a file but for the initial controllers."""

    title: str
    """What the experiment is about, in a line."""
    notes: str
    """What there is, in a comment."""
    values: tuple[tuple[str, Any], ...]
    """Names that the agent's options use, and their values."""
    agent: Call
    cost: tuple[Argument, ...]
    measure: Argument | None
    initial: tuple[Argument, ...]
    """Initial controllers, in the order in which they are tried."""
    samples: int
    iterations: int
    episode: int | None = None
    """Actions of an episode by which the policy is judged, where rollouts are shorter."""
    shorter: Callable[[Experiment], _Draft | None] | None = None
    """The draft with a horizon that the experiment's first rollouts reach; None where they do."""

    def text(self, name: str, initial: Argument) -> str:
        """The source."""
        options = (
            Argument(_cut(self.title), "description"),
            Argument(Name("agent"), "agent"),
            Argument(Name("cost"), "cost"),
            replace(initial, keyword="initial"),
            *([self.measure] if self.measure is not None else []),
            _algorithm(self.episode is not None),
            Argument(self.samples, "samples", after="rollouts per condition and iteration"),
            Argument(self.iterations, "iterations"),
            *([] if self.episode is None else [_judged_by(self.episode)]),
        )
        body = [
            *comment(self.notes),
            "",
            *[line for name, value in self.values for line in [*assigned(name, value), ""]],
            *assigned("agent", self.agent),
            "",
            *sum_of("cost", self.cost),
            "",
            *assigned("experiment", Call("Experiment", options, split=True)),
        ]
        head = (
            f'"""{_cut(self.title)}\n\nWritten by `gps new`, to be edited. Check it and run it:\n\n'
            f'    gps check {name}.py\n    gps run {name}.py\n"""'
        )
        used = [n for n in _HOMES if any(f"{n}(" in line for line in body)]
        imports = [
            f"from {home} import {', '.join(n for n in used if _HOMES[n] == home)}"
            for home in dict.fromkeys(_HOMES[n] for n in used)
        ]
        return "\n".join([head, "", *_wrapped(imports), "", *body, ""])


_HOMES = {
    "DMControlConfig": "gps.agents",
    "GymnasiumConfig": "gps.agents",
    "MocapAction": "gps.agents",
    "MujocoConfig": "gps.agents",
    "random_episodes": "gps.agents",
    "random_starts": "gps.agents",
    "sample_conditions": "gps.agents",
    "MDGPSConfig": "gps.algorithms",
    "HoldConfig": "gps.control",
    "OpenLoopConfig": "gps.control",
    "ActionCost": "gps.costs",
    "EndpointCost": "gps.costs",
    "EndpointMeasure": "gps.costs",
    "FittedRewardCost": "gps.costs",
    "StateCost": "gps.costs",
    "Experiment": "gps.pipeline",
}
"""Where the names that a file may use come from, in the order of its imports."""


def new(
    name: str,
    *,
    model: str | None = None,
    env: str | None = None,
    dm: str | None = None,
    folder: str | Path = ".",
    force: bool = False,
) -> Made:
    """Write a hyperparams file for a MuJoCo model, a Gymnasium or a dm_control environment.

    model: a file or the name of a model in `gps.data`; env: `Reacher-v5`; dm: `domain:task`; one of
    them is given. force: write over a file that exists. Raises ExperimentError, and ConfigError
    where the robot cannot be an agent; then no file is left.
    """
    given = [v for v in (model, env, dm) if v is not None]
    if len(given) != 1:
        raise ConfigError(f"new needs one of model, env and dm, got {len(given)} of them")
    target = loader.new_path(name, folder)
    before = target.read_text(encoding="utf-8") if target.is_file() else None
    if before is not None and not force:
        loader.write_new(target, "")  # raises
    if model is not None:
        draft = _of_model(model, target.parent)
    elif env is not None:
        draft = _of_env(env)
    else:
        draft = _of_dm(str(dm))
    try:
        return _written(draft, target)
    except BaseException:
        if before is None:
            target.unlink(missing_ok=True)
        else:
            target.write_text(before, encoding="utf-8")
        raise


def _written(draft: _Draft, target: Path) -> Made:
    """Write the draft with the first initial controllers that do, or those that do best."""
    tried: list[tuple[tuple[float, ...], Argument, Check]] = []
    errors: list[GPSError] = []
    passed: dict[str, str] = {}
    for initial in draft.initial:
        loader.write_new(target, draft.text(target.stem, initial), force=True)
        kind = initial.value.name
        try:
            with _unheard():
                found = check(loader.load(target).experiment, conditions=2)
        except GPSError as error:
            errors.append(error)
            passed.setdefault(kind, f"{kind} fails: {error}")
            continue
        tried.append((_faults(found), initial, found))
        passed.setdefault(kind, f"{kind} is not what it starts with: {_objection(found)}")
        if found.good and not any(_faults(found)):
            break
    if not tried:
        raise errors[0]
    _, initial, found = min(tried, key=lambda t: t[0])
    passed.pop(initial.value.name, None)
    loader.write_new(target, draft.text(target.stem, initial), force=True)
    if draft.shorter is not None:
        with _unheard():
            other = draft.shorter(loader.load(target).experiment)
        if other is not None:  # what falls within the longer horizon may be held in the shorter one
            return _written(other, target)
    before = [i.value.name for i in draft.initial].index(initial.value.name)
    reasons = tuple(passed.get(i.value.name, "") for i in draft.initial[:before])
    return Made(target, found, tuple(dict.fromkeys(filter(None, reasons))))


@contextmanager
def _unheard() -> Iterator[None]:
    """Without the warnings of what is only tried; what is written is checked by the user."""
    log = logging.getLogger("gps")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _objection(found: Check) -> str:
    """What speaks most against initial controllers that were tried."""
    if found.failures:
        return f"{len(found.failures)} of its rollouts cannot be simulated"
    positions = [e for e in found.entries if e.name in POSITIONS]
    drifts = [e for e in positions if not e.drift <= e.tolerance]
    if drifts and found.holds is False:
        e = max(drifts, key=lambda e: e.drift / e.tolerance)
        return f"{e.worst} moves by {e.drift:.2g} {e.unit}".rstrip() + " without noise"
    much = [a for a in found.actions if a.clipped > CLIPPED]
    if much:
        worst = max(much, key=lambda a: a.clipped)
        return f"{worst.name} is clipped in {worst.clipped:.0%} of the steps"
    far = max((e.explored for e in positions), default=math.nan)
    return f"exploration moves positions by up to {far:.2g}"


def _faults(found: Check) -> tuple[float, ...]:
    """What speaks against initial controllers, the worst first; zeros for nothing."""
    clipped = any(a.clipped > CLIPPED for a in found.actions)
    away = max((e.explored for e in found.entries if e.name in POSITIONS), default=0.0)
    # in powers of ten: what falls anyhow falls about as far with other gains and less noise
    far = max(0, round(math.log10(away / EXPLORES))) if 0 < away < math.inf else 0
    return bool(found.failures), far, (found.holds is False) + clipped


# --- models --------------------------------------------------------------------------------------


def _of_model(source: str, folder: Path) -> _Draft:
    from gps.agents._model import load_model
    from gps.agents.mujoco import MujocoConfig
    from gps.data import model_names
    from gps.pipeline.robot import Robot

    if not source.strip():
        raise ConfigError("--model must be a model's file or the name of one, got an empty text")
    if source not in model_names() and Path(source).expanduser().is_dir():
        raise ConfigError(f"{source} is a folder; give a model file, or the name of a model")
    if source not in model_names() and not os.path.isabs(source):
        path = Path(source).expanduser()
        source = str(path) if path.is_absolute() else os.path.relpath(path, folder)
    MujocoConfig(model=source)
    compiled = load_model(source if source in model_names() else str(folder / source))
    robot = Robot(compiled)
    if not robot.actions:
        raise ConfigError(f"{source} has no actuators, so nothing could be controlled")
    task = _task(robot)
    title = f"{Path(source).stem}: {task.title}"
    notes = "\n".join([f"{source} has", "", *robot.inventory()])
    values, starts = _starts(robot, task)
    options = (*_model_options(robot, source, folder, task), *starts)
    agent = Call("MujocoConfig", options, split=True)
    m = compiled
    weights = _each(_EFFORT * 2 / robot.action_range**2, robot.actions)
    effort = Call.of("ActionCost", weights=weights)
    speed = number(2 * _SPEED * (0.25 * task.timing.T * task.timing.dt) ** 2, 1)
    slow = robot.room[robot.driven & robot.scalar]
    way = float(np.median(slow)) if len(slow) else 1.0
    cost = (
        *task.cost,
        Argument(
            effort,
            above="The actions, each in units of its own range."
            if robot.bounded
            else "The actions, each in units of its range, or of what moves its joint without one.",
        ),
        Argument(
            Call.of(
                "StateCost",
                entry="joint_vel",
                target=0.0,
                l2=number(speed / way**2 / max(m.nv, 1), 1),
            ),
            above="Fast joints make the next step hard to predict.",
        ),
    )
    return _Draft(
        title=title,
        notes=notes,
        values=values,
        agent=agent,
        cost=cost,
        measure=Argument(task.measure, "measure"),
        initial=tuple(_initial(robot)),
        samples=5,
        iterations=15,
    )


@dataclass(frozen=True)
class _Task:
    """What a robot is to do."""

    title: str
    timing: Any
    sites: tuple[str, ...]
    entry: str
    """What the state holds besides joints and activations; empty for none."""
    cost: tuple[Argument, ...]
    measure: Call
    box: tuple[Array, Array] | None
    """From which the target is drawn; None where starts differ."""
    mocap: str = ""


def _task(robot: Robot) -> _Task:
    """Reach with a sensor's body, else with a site, else with the joints."""
    timing, pointer = robot.timing(), robot.pointer()
    if pointer is not None and pointer.distance > 1e-6:
        entry = f"sensor:{pointer.sensor}"
        measure = _measure(entry, (0.0, 0.0, 0.0), pointer.distance, robot.length)
        box = robot.target_box(pointer) if pointer.mocap else None
        title = f"reach the target, of which the sensor {pointer.sensor} tells"
        cost = _reach(
            "StateCost", entry, 0.0, pointer.distance, robot.length, "What the sensor reports is 0"
        )
        return _Task(title, timing, (), entry, (cost,), measure, box, pointer.mocap)
    point = robot.point()
    if point is not None:
        target = _values(point.target)
        start = tuple(float(number(v, 3)) for v in _values(point.start))
        place = f"{point.site} is at {start} at the start"
        what = "; ".join(filter(None, (robot.length, place)))
        cost = _reach("EndpointCost", None, target, point.distance, robot.length, what)
        measure = _measure(None, target, point.distance, robot.length)
        title = f"take the site {point.site} to a place"
        return _Task(title, timing, (point.site,), "end_points", (cost,), measure, None)
    return _posture(robot, timing)


def _reach(
    kind: str, entry: str | None, target: Any, distance: float, unit: str, what: str
) -> Argument:
    """A pull from afar, and a logarithm that asks for precision near the target."""
    call = Call.of(
        kind,
        entry=entry,
        target=target,
        l2=number(2 * _FAR / distance**2, 1),
        log_weight=0.1,
        alpha=number((0.1 * distance) ** 2, 1),
    )
    away = f"{number(distance, 2):g} {unit}".rstrip()
    above = (
        f"{what}, {away} from the target. l2 pulls from afar, log_weight "
        "asks for precision within sqrt(alpha)."
    )
    return Argument(call, above=above)


def _measure(entry: str | None, target: Any, distance: float, unit: str, size: int = 3) -> Call:
    return Call.of(
        "EndpointMeasure",
        entry=entry,
        target=target,
        point_size=None if size == 3 else size,
        threshold=number(0.1 * distance, 1),
        unit=unit,
    )


def _posture(robot: Robot, timing: Any) -> _Task:
    """Joints to a pose near the start; a free root stays up, what nothing drives stays put."""
    m = robot.model
    way = robot.goal(robot.driven & robot.scalar)
    if robot.stands:  # it has to stay up before it can do anything else
        way[:] = 0.0
    start = np.zeros(m.nv)
    for dof in range(m.nv):
        start[dof] = robot.start[robot.qpos_of(dof)] if robot.scalar[dof] else 0.0
    free = ~robot.scalar
    if free.any():
        start[free] = _turns(robot)[free]
    moved = float(np.linalg.norm(way)) or 0.1
    target = np.array([number(v, 3) for v in start + way])
    carried = robot.free_root
    weights = np.where(robot.scalar, 1.0, 0.0)
    for dof in map(int, np.flatnonzero(carried)):
        first = int(m.jnt_dofadr[m.dof_jntid[dof]])
        across = int(m.jnt_type[m.dof_jntid[dof]]) == 0 and dof - first < 2
        weights[dof] = 0.0 if across else 1.0
    call = Call.of(
        "StateCost",
        entry="joint_pos",
        target=_each(target, robot.directions),
        weights=None if (weights == 1).all() else _each(weights, robot.directions),
        l2=number(2 * _FAR / moved**2, 1),
        log_weight=0.1,
        alpha=number((0.1 * moved) ** 2, 1),
    )
    what = "Joints to a pose near the start" if way.any() else "Joints stay where they start"
    above = (
        f"{what}, {number(moved, 2):g} away in all. l2 pulls from afar, log_weight asks for "
        "precision within sqrt(alpha)."
    )
    units = {"rad" if h else robot.length for h in robot.hinges}
    unit = " or ".join(sorted(units, reverse=True)) if all(units) else ""
    measure = _measure("joint_pos", tuple(map(float, target)), moved, unit, m.nv)
    title = "stay up where it starts" if robot.stands else "take the joints to a pose"
    return _Task(title, timing, (), "", (Argument(call, above=above),), measure, None)


def _turns(robot: Robot) -> Array:
    """The entry joint_pos at the start, (nv,): rotation vectors from the model's pose for turns."""
    import mujoco

    m, out = robot.model, np.zeros(robot.model.nv)
    mujoco.mj_differentiatePos(m, out, 1.0, m.qpos0, robot.start)
    for j in range(m.njnt):
        if m.jnt_type[j] == mujoco.mjtJoint.mjJNT_FREE:
            at, q = m.jnt_dofadr[j], m.jnt_qposadr[j]
            out[at : at + 3] = robot.start[q : q + 3]
    return out


def _complete_state(robot: Robot, source: str, folder: Path) -> tuple[str, ...]:
    """The state that an agent of the model has by default."""
    from gps.agents.mujoco import MujocoConfig
    from gps.data import model_names

    path = source if source in model_names() else str((folder / source).absolute())
    config = MujocoConfig(model=path, dt=robot.timing().dt, mocap_actions=robot.mocap_actions)
    return config.build().layout.names


def _model_options(robot: Robot, source: str, folder: Path, task: _Task) -> Iterator[Argument]:
    m, timing = robot.model, task.timing
    yield Argument(source, "model")
    why = f" {timing.reason[0].upper()}{timing.reason[1:]}." if timing.reason else ""
    yield Argument(timing.T, "T", above=f"{timing.T * timing.dt:.3g} s.{why}")
    own = f"{timing.substeps} of the model's own steps of {1e3 * m.opt.timestep:g} ms"
    yield Argument(timing.dt, "dt", after=own)
    if task.sites:
        yield Argument(task.sites, "sites")
    if robot.mocap_actions and m.nu:  # without actuators they are the actions anyhow
        led = tuple(Call.of("MocapAction", body=a.body) for a in robot.mocap_actions)
        yield Argument(led, "mocap_actions", above="These bodies lead the robot, by welds.")
    if robot.servos.any():
        above = "Actions of position servos count from the start."
        yield Argument(True, "relative", above=above)
    if robot.keyframe is not None:
        yield Argument(m.key(robot.keyframe).name or robot.keyframe, "keyframe")
    if task.entry:
        yield Argument((*_complete_state(robot, source, folder), task.entry), "state")
    if robot.moved_inside:
        above = (
            "Where the mocap bodies have led it."
            if robot.settled
            else "The middle of the range for joints that are beyond their limits in the model's "
            "own pose, or near them where its bodies are inside each other."
        )
        yield Argument(_named(_values(robot.start), robot.positions), "qpos", above=above)


def _starts(robot: Robot, task: _Task) -> tuple[tuple[tuple[str, Any], ...], tuple[Argument, ...]]:
    """Conditions that differ, and the value that they use."""
    if task.box is not None:
        low, high = task.box
        name, value = "TARGETS", ((task.mocap, _values(low), _values(high)),)
        option, what = "mocap_boxes", f"The mocap body {task.mocap} stands elsewhere in each."
    elif robot.shifts.any():
        name, value = "SHIFTS", _each(_shifts(robot), robot.directions, whole=True)
        units = "rad or m" if robot.length else "rad or the model's unit of length"
        option, what = "qpos_std", f"Starts that differ by so much, in {units}."
    else:
        return (), ()
    drawn = Argument(Name(name), option)
    training = (Argument(0, "seed"), Argument(_TRAINING, "purpose"), drawn)
    count = _CONDITIONS if task.box is None else _TARGETS
    train = Call("sample_conditions", (Argument(count), *training))
    test = Call("sample_conditions", (Argument(_TESTS), Argument(0, "seed"), drawn))
    return ((name, value),), (
        Argument(train, "conditions", above=what),
        Argument(test, "test_conditions"),
    )


def _shifts(robot: Robot) -> Array:
    """Standard deviations of the starts, so small that no body is inside another one in them."""
    from gps.agents.mujoco import sample_conditions

    shifts = robot.shifts
    for _ in range(4):
        shifts = np.array([number(s, 1) for s in shifts])
        given: Any = {"seed": 0, "qpos_std": tuple(shifts)}
        drawn = [
            *sample_conditions(_CONDITIONS, purpose=_TRAINING, **given),
            *sample_conditions(_TESTS, **given),
        ]
        if not any(robot.collides(np.array(c.qpos_offset)) for c in drawn):
            break
        shifts = shifts / 2
    return shifts


def _initial(robot: Robot) -> Iterator[Argument]:
    """Initial controllers to try."""
    m = robot.model
    yield Argument(Call("HoldConfig"))
    mean = np.zeros(len(robot.actions))
    mean[: m.nu] = np.where(robot.servos, 0.0, robot.control)
    of = "half of each actuator's range"
    if not robot.bounded:
        of += ", or of what accelerates its joint by 10 where it has none"
    for share in (0.2, 0.05):
        yield Argument(
            Call.of(
                "OpenLoopConfig",
                variance=_each((share * robot.action_range) ** 2, robot.actions),
                mean=_named(_values(mean), robot.actions) if mean.any() else None,
            ),
            above=f"Noise of {share:.0%} of {of}, no feedback.",
        )


def _values(values: Sequence[float] | Array) -> tuple[float, ...]:
    return tuple(round(float(v), 5) + 0.0 for v in values)


def _named(values: tuple[float, ...], names: Sequence[str]) -> Any:
    """The values, with their names where they need a line each."""
    return Items(values, tuple(names))


def _each(values: Array, names: Sequence[str] = (), *, whole: bool = False) -> Any:
    """One number where all are the same, unless it has to be a tuple; else all, with names."""
    found = tuple(number(v, 3) for v in values)
    if len(set(found)) == 1 and not whole:
        return found[0]
    return _named(found, names) if names else found


def _cut(text: str) -> str:
    """A title that fits into a line."""
    return text if len(text) <= 68 else f"{text[:65]}..."


def _wrapped(imports: Sequence[str]) -> Iterator[str]:
    for line in imports:
        if len(line) <= 88:
            yield line
            continue
        home, _, names = line.partition(" import ")
        yield f"{home} import ("
        yield from (f"    {n}," for n in names.split(", "))
        yield ")"


# --- environments --------------------------------------------------------------------------------


def _of_env(env: str) -> _Draft:
    import gymnasium

    from gps.agents import GymnasiumConfig

    config, dt = GymnasiumConfig(env=env), None
    try:
        agent: Agent = config.build()
    except ConfigError as error:
        if "GymnasiumConfig.dt" not in str(error):
            raise
        dt = 0.05
        agent = replace(config, dt=dt).build()
    limit = gymnasium.spec(env).max_episode_steps
    starts = [
        Call("random_starts", (Argument(n), Argument(0, "seed"), *purpose))
        for n, purpose in ((_CONDITIONS, (Argument("training", "purpose"),)), (_TESTS, ()))
    ]

    def draft(T: int, why: str) -> _Draft:
        options = (
            Argument(env, "env"),
            Argument(T, "T", above=why),
            *([Argument(dt, "dt", above="The environment has no unit of time.")] if dt else []),
            Argument((*agent.layout.names, "reward"), "state"),
            Argument(starts[0], "conditions", above="Starts that the environment draws."),
            Argument(starts[1], "test_conditions"),
            Argument(
                "end", "termination", above="Where it ends the episode, there is no more reward."
            ),
        )
        title = f"{env}: the environment's own reward"
        made = _environment(title, agent, Call("GymnasiumConfig", options, split=True))
        return made if not limit or limit == T else replace(made, episode=limit)

    def shorter(experiment: Experiment) -> _Draft | None:
        ended = _ended(experiment)
        if ended is None:
            return None
        early = f"{why} Half of the first samples would end by step {ended}."
        enough = max(20, ended * _FALLS, round(_FALL_DURATION / agent.dt))
        return draft(min(T, enough), early)

    T = int(np.clip(round(_ENV_DURATION / agent.dt), *_ENV_T))
    T = min(limit or T, T)
    why = f"The environment's own limit is {limit}." if limit else "It has no limit of its own."
    return replace(draft(T, why), shorter=shorter)


def _judged_by(episode: int) -> Argument:
    """Whole episodes; T steps hold the rewards of T - 1 actions."""
    why = f"The policy is judged, and the best iteration chosen, by episodes of {episode} actions."
    return Argument(episode + 1, "evaluation_steps", above=why)


def _algorithm(goes_on: bool) -> Argument:
    """MDGPS; goes_on: whether the task lasts for longer than the rollouts."""
    if not goes_on:
        return Argument(Call("MDGPSConfig"), "algorithm")
    why = "Near the end controllers act as if nothing came after. The policy does not learn that."
    return Argument(Call.of("MDGPSConfig", train_until=_TRAINED), "algorithm", above=why)


def _ended(experiment: Experiment) -> int | None:
    """The step by which half of the first samples have been terminated, None if fewer are."""
    config: Any = experiment.agent
    agent = replace(config, obs=("terminated",)).build()
    policy = initial_state(experiment, agent).conditions[0].actor
    noise = np.random.default_rng(0).standard_normal((experiment.samples, agent.T, agent.nu))
    over = agent.rollout(policy, 0, noise).obs[:, :, 0] > 0
    step = int(np.median(np.where(over.any(axis=1), over.argmax(axis=1), agent.T)))
    return step if step < agent.T else None


def _half_range(agent: Agent) -> Array:
    """Half of each action's range, (nu,); 1 without limits."""
    low, high = control_limits_of(agent)
    return np.where(np.isfinite(high - low), (high - low) / 2, 1.0)


def _environment(title: str, agent: Agent, call: Call) -> _Draft:
    """A draft for an environment that has starts and a reward of its own."""
    half = _half_range(agent)
    visual = visual_of(agent)
    notes = [f"states of {agent.layout.size}, observations of {agent.obs_layout.size} numbers"]
    limits = control_range_of(agent)
    if limits is not None:
        ends = [f"{a:g}..{b:g}" for a, b in zip(*limits, strict=True)]
        notes.append(f"actions within {', '.join(dict.fromkeys(ends))}; {agent.nu} of them")
    if visual is not None:
        from gps.pipeline.robot import Robot

        notes += ["", "its model has", "", *Robot(visual.model).inventory()]
    holds = [Argument(Call("HoldConfig"))] if "joint_pos" in agent.layout.names else []
    noise = Call.of("OpenLoopConfig", variance=_each((0.3 * half) ** 2))
    return _Draft(
        title=title,
        notes="\n".join(notes),
        values=(),
        agent=call,
        cost=(
            Argument(
                Call("FittedRewardCost"),
                above="Minus the environment's reward, with derivatives from the samples. A reward "
                "that is known is better written as a cost: StateCost, ActionCost, torch_cost.",
            ),
            Argument(
                Call.of("ActionCost", weights=_each(2 * 0.01 / half**2)),
                above="Keeps the actions within what the samples have tried.",
            ),
        ),
        measure=None,
        initial=(
            *holds,
            Argument(noise, above="Noise of 30 % of half of each action's range, no feedback."),
        ),
        samples=10,
        iterations=20,
    )


def _of_dm(task: str) -> _Draft:
    from gps import agents

    domain, colon, name = task.partition(":")
    if not (domain and colon and name):
        raise ConfigError(f"--dm must look like cartpole:swingup, got {task!r}")
    config = agents.DMControlConfig(domain=domain, task=name)
    agent: Agent = config.build()
    repeat = max(1, round(_DM_STEP / agent.dt))
    state = (*(n for n in agent.layout.names), "reward")
    starts = [
        Call("random_episodes", (Argument(n), Argument(0, "seed"), *purpose))
        for n, purpose in ((_CONDITIONS, (Argument("training", "purpose"),)), (_TESTS, ()))
    ]
    options = (
        Argument(domain, "domain"),
        Argument(name, "task"),
        Argument(
            repeat,
            "repeat",
            above=f"An action is held for {repeat * agent.dt:g} s, {repeat} of the task's steps.",
        ),
        Argument(_DM_T, "T", above=f"{_DM_T * repeat * agent.dt:g} s; an episode is 1000 steps."),
        Argument(state, "state"),
        Argument(starts[0], "conditions", above="Starts that the task draws."),
        Argument(starts[1], "test_conditions"),
    )
    title = f"{task} of dm_control, the task's own reward"
    return _environment(title, agent, Call("DMControlConfig", options, split=True))
