"""The draft of an experiment with a MuJoCo model: what to reach, from where, at what cost.

What the robot can do, and the values that suit it, are those of `gps.pipeline.robot`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gps.errors import ConfigError
from gps.pipeline.draft import CONDITIONS, TESTS, Draft, each, named, plain
from gps.pipeline.source_text import Argument, Call, Name, number
from gps.types import Array

if TYPE_CHECKING:
    from gps.pipeline.robot import Robot

_TRAINING = "training conditions"
_TARGETS = 6
"""Training conditions where targets differ, which say more of a policy's task than starts do."""
_FAR = 2.0
"""Cost of a step as far from the target as the start is."""
_EFFORT = 0.025
"""Cost of a step in which an action is at its limit."""
_SPEED = 0.05
"""Cost of a step at the speed that takes the way in a quarter of the rollout."""


def of_model(source: str, folder: Path) -> Draft:
    """The draft for a model's file, by a path from the current folder, or one by name.

    folder: that of the file to be written, from which it names the model. Raises ConfigError.
    """
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
    weights = each(_EFFORT * 2 / robot.action_range**2, robot.actions)
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
    return Draft(
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
        target = plain(point.target)
        start = tuple(float(number(v, 3)) for v in plain(point.start))
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
        target=each(target, robot.directions),
        weights=None if (weights == 1).all() else each(weights, robot.directions),
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
        yield Argument(named(plain(robot.start), robot.positions), "qpos", above=above)


def _starts(robot: Robot, task: _Task) -> tuple[tuple[tuple[str, Any], ...], tuple[Argument, ...]]:
    """Conditions that differ, and the value that they use."""
    if task.box is not None:
        low, high = task.box
        name, value = "TARGETS", ((task.mocap, plain(low), plain(high)),)
        option, what = "mocap_boxes", f"The mocap body {task.mocap} stands elsewhere in each."
    elif robot.shifts.any():
        name, value = "SHIFTS", each(_shifts(robot), robot.directions, whole=True)
        units = "rad or m" if robot.length else "rad or the model's unit of length"
        option, what = "qpos_std", f"Starts that differ by so much, in {units}."
    else:
        return (), ()
    drawn = Argument(Name(name), option)
    training = (Argument(0, "seed"), Argument(_TRAINING, "purpose"), drawn)
    count = CONDITIONS if task.box is None else _TARGETS
    train = Call("sample_conditions", (Argument(count), *training))
    test = Call("sample_conditions", (Argument(TESTS), Argument(0, "seed"), drawn))
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
            *sample_conditions(CONDITIONS, purpose=_TRAINING, **given),
            *sample_conditions(TESTS, **given),
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
                variance=each((share * robot.action_range) ** 2, robot.actions),
                mean=named(plain(mean), robot.actions) if mean.any() else None,
            ),
            above=f"Noise of {share:.0%} of {of}, no feedback.",
        )
