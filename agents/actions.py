"""What an action is to the simulator: controls of actuators, and displacements of mocap bodies.

And what the simulator keeps of earlier actions, which belongs to the state: `history`, the controls
that are under way in delayed actuators, and `mocap`, where mocap bodies were put.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import mujoco
import numpy as np

from gps.agents.base import require
from gps.errors import ConfigError, choices
from gps.fields import Config, Finite, Positive
from gps.types import Array

if TYPE_CHECKING:
    from mujoco.batch import Batch

Axes = Literal["", "x", "y", "z", "xy", "xz", "yz", "xyz"]
Corner = tuple[Finite, Finite, Finite]
HISTORY, MOCAP = "history", "mocap"
_ROUNDING = 1e-9  # of files, which have some digits


@dataclass(frozen=True, kw_only=True)
class MocapAction(Config):
    """A mocap body that actions move, as those are by which a welded hand or gripper is led.

    Each action is a displacement during one control step: along the world's axes in m, then about
    them in rad, as a rotation vector. The body jumps there when the step begins.
    """

    body: str
    """Name of the mocap body."""
    position: Axes = "xyz"
    """Axes of the world along which it is moved, one action each."""
    rotation: Axes = ""
    """Axes of the world about which it is turned, one action each; without any it is not turned."""
    max_displacement: Positive = 0.05
    """Largest displacement along an axis in one control step, in m."""
    max_rotation: Positive = 0.2
    """Largest turn about an axis in one control step, in rad."""
    workspace: tuple[Corner, Corner] | None = None
    """Lowest and highest place of the body, in m in the world, axis by axis; None for all of it. A
    displacement that would leave it is cut, and recorded as it was cut."""
    origin: Literal["welded", "mocap"] | None = None
    """What is displaced: `welded`, the pose in which the body that is welded to the mocap body
    would need no force, so that the mocap body cannot run away from a hand that is held up, but
    sinks with one that gravity pulls down, unless actions lift it; `mocap`, its own last pose,
    which then is the state entry `mocap`. None: welded where the model welds the mocap body to
    another one, else mocap."""

    def __post_init__(self) -> None:
        super().__post_init__()
        some = bool(self.position or self.rotation)
        require(some, self, "position", "one or more axes where rotation has none", self.position)
        if self.workspace is not None:
            ordered = all(a <= b for a, b in zip(*self.workspace, strict=True))
            require(ordered, self, "workspace", "(low, high), in order", self.workspace)

    @property
    def names(self) -> tuple[str, ...]:
        """What each of its actions is called."""
        moves = (f"{self.body}:{axis}" for axis in self.position)
        return (*moves, *(f"{self.body}:turn_{axis}" for axis in self.rotation))

    @property
    def limits(self) -> Array:
        """Largest size of each action."""
        moves, turns = len(self.position), len(self.rotation)
        return np.array([self.max_displacement] * moves + [self.max_rotation] * turns)


@dataclass(frozen=True, eq=False)
class _Weld:
    """The body on the other side of a weld, and how it stands to the mocap body."""

    body: int
    first: bool  # whether the mocap body is the first of the two
    anchor: Array  # (3,) in the second body
    place: Array  # (3,) of the anchor in the first body
    turn: Array  # (4,) of the second body in the first

    def orientation(self, other: Array) -> Array:
        """Of the mocap body where the weld is at rest, for a body turned as `other`, (4,)."""
        return _product(other, _inverse(self.turn) if self.first else self.turn)

    def position(self, pos: Array, other: Array, own: Array) -> Array:
        """Likewise, for the mocap body turned as `own`; (3,)."""
        here, there = (self.place, self.anchor) if self.first else (self.anchor, self.place)
        rest: Array = pos + _rotated(there, other) - _rotated(here, own)
        return rest


class Actions:
    """The actions of an agent on one model.

    actuators: names of those that actions control, None for all. shift: what is added to the
    control that an action names, (nu of the model,). past: for each control, over how many
    control steps it stays under way. references: quaternions of the mocap bodies
    from which their rotation vectors count. Raises ConfigError for names that the model has not.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        actuators: Sequence[str] | None,
        mocap: Sequence[MocapAction],
        shift: Array,
        past: np.ndarray,
        references: dict[str, Array],
    ) -> None:
        known = [model.actuator(i).name for i in range(model.nactuator)]
        for name in actuators or ():
            if name not in known:
                what = choices("actuator", name, [n for n in known if n])
                raise ConfigError(f"MujocoConfig.actuators: {what}")
        numbers = range(len(known)) if actuators is None else map(known.index, actuators)
        controls: list[int] = []
        names: list[str] = []
        for i in numbers:
            first, n = int(model.actuator_ctrladr[i]), int(model.actuator_ctrlnum[i])
            controls += range(first, first + n)
            name = known[i] or f"actuator_{i}"
            names += [name] if n == 1 else [f"{name}:{k}" for k in range(n)]
        low, high = (limit - shift for limit in control_limits(model))
        self.controls = np.array(controls, dtype=np.int64)
        self.shift = shift[self.controls]
        self.names = (*names, *(name for m in mocap for name in m.names))
        limits = [np.zeros(0), *(m.limits for m in mocap)]
        reach = np.concatenate(limits)
        self.low = np.concatenate((low[self.controls], -reach))
        self.high = np.concatenate((high[self.controls], reach))
        self.plain = not mocap and not shift.any() and controls == list(range(model.nu))
        self.mocap: list[_Moved] = []
        used = len(controls)
        for m in mocap:
            self.mocap.append(_Moved(model, m, used, references))
            used += len(m.names)
        self._past = [(c, int(past[c])) for c in controls if past[c]]
        newest = np.cumsum([0, *(n for _, n in self._past)])
        self._newest, self._delayed = newest[:-1], [c for c, _ in self._past]
        rest = np.setdiff1d(np.arange(newest[-1]), self._newest)
        self._older, self._history = rest, int(newest[-1])

    @property
    def nu(self) -> int:
        """Number of actions."""
        return len(self.names)

    @property
    def sizes(self) -> dict[str, int]:
        """Of the state entries that earlier actions make necessary."""
        sizes = {HISTORY: self._history, MOCAP: sum(m.size for m in self.mocap)}
        return {name: size for name, size in sizes.items() if size}

    def under_way(self, u: Array) -> Array:
        """The state entry `history` after the same actions (nu,) for long."""
        out = np.zeros(self._history)
        for (control, steps), first in zip(self._past, self._newest, strict=True):
            k = int(np.flatnonzero(self.controls == control)[0])
            out[first : first + steps] = u[k] + self.shift[k]
        return out

    def begin(self, memory: Array, rows: Array, ctrl: Array, at: MocapAt) -> None:
        """Write what the state holds of earlier actions before the first, (N, nm)."""
        for (control, n), first in zip(self._past, self._newest, strict=True):
            memory[:, first : first + n] = ctrl[control]
        self._remember_poses(memory, rows, at)

    def remember(self, memory: Array, rows: Array, ctrl_at: int, at: MocapAt) -> None:
        """Take up the actions of a step, which are in the simulator's rows (N, nstate)."""
        if self._history:
            memory[:, self._older] = memory[:, self._older - 1]
            memory[:, self._newest] = rows[:, np.add(ctrl_at, self._delayed)]
        self._remember_poses(memory, rows, at)

    def _remember_poses(self, memory: Array, rows: Array, at: MocapAt) -> None:
        column = self._history
        for m in self.mocap:
            if m.size:
                for entry, pos, quat in zip(memory, *at.pose(rows, m.number), strict=True):
                    entry[column : column + m.size] = m.remembered(pos, quat)
                column += m.size

    def put(self, memory: Array, batch: Batch, model: mujoco.MjModel, substeps: int) -> None:
        """Let simulations be as after earlier actions: `history` and `mocap` of states (N, nm)."""
        if self._past:
            history, names = batch.bind("history"), model.actuator_ctrladr
        for (control, steps), first in zip(self._past, self._newest, strict=True):
            i = int(np.searchsorted(names, control, side="right")) - 1
            n, width = model.actuator_history[i, 0], model.actuator_ctrlnum[i]
            times = model.actuator_historyadr[i] + 2
            values = times + n + control - names[i] + width * np.arange(n)
            # of a time step each, the newest at -h
            age = np.rint(-history[0, times : times + n] / model.opt.timestep).astype(int) - 1
            history[:, values] = memory[:, first + np.clip(age // substeps, 0, steps - 1)]
        column, at = self._history, MocapAt.of(batch)
        for m in self.mocap:
            if m.size:
                for entry, pos, quat in zip(memory, *at.pose(batch.state, m.number), strict=True):
                    m.recall(entry[column : column + m.size], pos, quat)
                column += m.size

    def move(self, u: Array, rows: Array, poses: tuple[Array, Array], at: MocapAt) -> None:
        """Displace the mocap bodies as the actions u (N, nu) say, which become what was done.

        poses: the simulator's xpos and xquat, (N, nbody, 3) and (N, nbody, 4).
        """
        for m in self.mocap:
            for sample in zip(u, *at.pose(rows, m.number), *poses, strict=True):
                m.displace(*sample)

    @property
    def led(self) -> tuple[int, ...]:
        """Numbers of the mocap bodies that actions move and to which another body is welded."""
        return tuple(m.number for m in self.mocap if m.welded)

    def settle(
        self, led: Sequence[int], pos: Array, quat: Array, xpos: Array, xquat: Array
    ) -> None:
        """Put some of these where their welds ask for nothing: poses of a simulation's mocap bodies
        (nmocap, 3), (nmocap, 4), by those of its bodies (nbody, 3), (nbody, 4)."""
        for m in self.mocap:
            if m.number in led:
                m.settle(pos[m.number], quat[m.number], xpos, xquat)

    def place(self, data: mujoco.MjData, entry: Array) -> None:
        """Put the mocap bodies of a data where a state has them; its kinematics are computed.

        entry: the state's `mocap`. A welded one stands where its weld is at rest.
        """
        column = 0
        for m in self.mocap:
            pos, quat = data.mocap_pos[m.number], data.mocap_quat[m.number]
            if m.size:
                m.recall(entry[column : column + m.size], pos, quat)
                column += m.size
            else:
                m.at_rest(pos, quat, data.xpos, data.xquat)


@dataclass(frozen=True)
class MocapAt:
    """Where the poses of mocap bodies lie in a row of a batch."""

    pos: int
    quat: int

    @classmethod
    def of(cls, batch: Batch) -> MocapAt:
        """In the rows of this batch."""
        first = batch.state.ctypes.data
        pos, quat = (batch.bind(f"mocap_{n}").ctypes.data - first for n in ("pos", "quat"))
        return cls(pos // batch.state.itemsize, quat // batch.state.itemsize)

    def pose(self, rows: Array, number: int) -> tuple[Array, Array]:
        """Position (N, 3) and quaternion (N, 4) of one of them, views."""
        pos, quat = self.pos + 3 * number, self.quat + 4 * number
        return rows[:, pos : pos + 3], rows[:, quat : quat + 4]


class _Moved:
    """One mocap body of a model, moved by the actions from `first` on."""

    def __init__(
        self,
        model: mujoco.MjModel,
        config: MocapAction,
        first: int,
        references: dict[str, Array],
    ) -> None:
        names = mocap_names(model)
        if config.body not in names:
            what = choices("mocap body", config.body, names)
            raise ConfigError(f"MujocoConfig.mocap_actions: {what}")
        self._axes = ["xyz".index(axis) for axis in config.position]
        self._about = ["xyz".index(axis) for axis in config.rotation]
        self._moves = np.arange(first, first + len(self._axes))
        self._turns = first + len(self._axes) + np.arange(len(self._about))
        body = model.body(config.body).id
        self.number = int(model.body_mocapid[body])
        weld = _weld(model, body)
        if config.origin == "welded" and weld is None:
            raise ConfigError(
                f"MocapAction.origin: no body of the model is welded to {config.body}; use 'mocap'"
            )
        self._lead, self._weld = weld, None if config.origin == "mocap" else weld
        everywhere = ((-np.inf,) * 3, (np.inf,) * 3)
        self._low, self._high = map(np.array, config.workspace or everywhere)
        self._unturned = _inverse(references[config.body])
        self.size = 0
        if self._weld is None:
            self.size = len(self._axes) + 3 * bool(self._about)

    def remembered(self, pos: Array, quat: Array) -> Array:
        """What the state holds of a pose (3,) and (4,): place, then rotation vector."""
        turn = np.zeros(3)
        mujoco.mju_quat2Vel(turn, _product(quat, self._unturned), 1.0)
        return np.concatenate((pos[self._axes], turn if self._about else turn[:0]))

    def recall(self, entry: Array, pos: Array, quat: Array) -> None:
        """Write the pose that `remembered` gave."""
        pos[self._axes] = entry[: len(self._axes)]
        if self._about:
            quat[:] = _product(_turn(entry[len(self._axes) :]), _inverse(self._unturned))

    @property
    def welded(self) -> bool:
        """Whether another body is welded to it."""
        return self._lead is not None

    def settle(self, pos: Array, quat: Array, xpos: Array, xquat: Array) -> None:
        """Write all of the pose (3,) and (4,) that the weld asks for, whatever actions move.

        One that is there up to rounding stays as it is.
        """
        assert self._lead is not None
        at, other = xpos[self._lead.body], xquat[self._lead.body]
        new = self._lead.orientation(other)
        place = self._lead.position(at, other, new)
        size = np.linalg.norm(at) + np.linalg.norm(place - at)
        same = np.linalg.norm(place - pos) <= _ROUNDING * size
        if not same or abs(quat @ new) < (1.0 - _ROUNDING) * np.linalg.norm(quat):
            pos[:], quat[:] = place, new

    def at_rest(self, pos: Array, quat: Array, xpos: Array, xquat: Array) -> None:
        """Write the pose (3,) and (4,) that the weld asks for, in what actions move of it."""
        if self._weld is None:
            return
        other = xquat[self._weld.body]
        if self._about:
            quat[:] = self._weld.orientation(other)
        if self._axes:
            pos[self._axes] = self._weld.position(xpos[self._weld.body], other, quat)[self._axes]

    def displace(self, u: Array, pos: Array, quat: Array, xpos: Array, xquat: Array) -> None:
        """Write the next pose of a sample, and into u (nu,) what was left of the displacement."""
        self.at_rest(pos, quat, xpos, xquat)
        asked, turn = np.zeros(3), np.zeros(3)
        asked[self._axes], turn[self._about] = u[self._moves], u[self._turns]
        base, new = pos.copy(), pos + asked
        # from outside of the workspace it may come back at its own pace
        pos[:] = np.clip(new, np.minimum(self._low, base), np.maximum(self._high, base))
        u[self._moves] = np.where(pos == new, asked, pos - base)[self._axes]
        if self._about:
            quat[:] = _product(_turn(turn), quat)


# a sample at a time, by MuJoCo's functions: the others must not change a bit of it


def _product(a: Array, b: Array) -> Array:
    out = np.empty(4)
    mujoco.mju_mulQuat(out, a, b)
    return out


def _inverse(quat: Array) -> Array:
    out = np.empty(4)
    mujoco.mju_negQuat(out, quat)
    return out


def _rotated(vector: Array, quat: Array) -> Array:
    out = np.empty(3)
    mujoco.mju_rotVecQuat(out, vector, quat)
    return out


def _turn(vector: Array) -> Array:
    """The quaternion of a rotation vector."""
    out = np.array([1.0, 0.0, 0.0, 0.0])
    mujoco.mju_quatIntegrate(out, vector, 1.0)
    return out


def control_limits(model: mujoco.MjModel) -> tuple[Array, Array]:
    """Lowest and highest control, (nu,) each; infinite where unlimited."""
    limited = model.actuator_ctrllimited.astype(bool)
    low, high = model.actuator_ctrlrange.T
    return np.where(limited, low, -np.inf), np.where(limited, high, np.inf)


def mocap_names(model: mujoco.MjModel) -> list[str]:
    """Names of the mocap bodies."""
    return [model.body(i).name for i in range(model.nbody) if model.body_mocapid[i] >= 0]


def welded_mocap(model: mujoco.MjModel) -> tuple[MocapAction, ...]:
    """Actions for the mocap bodies that are welded to a body that can move."""
    names = [n for n in mocap_names(model) if n and _weld(model, model.body(n).id) is not None]
    return tuple(MocapAction(body=name) for name in names)


def _weld(model: mujoco.MjModel, mocap: int) -> _Weld | None:
    """The first weld, active at the start, of a mocap body to one that can move."""
    kinds = (mujoco.mjtEq.mjEQ_WELD, mujoco.mjtObj.mjOBJ_BODY)
    for i in range(model.neq):
        if (model.eq_type[i], model.eq_objtype[i]) != kinds or not model.eq_active0[i]:
            continue
        pair = int(model.eq_obj1id[i]), int(model.eq_obj2id[i])
        if mocap in pair:
            other = pair[1 - pair.index(mocap)]
            if model.body_weldid[other]:
                data = model.eq_data[i]
                parts = (data[:3].copy(), data[3:6].copy(), data[6:10].copy())
                return _Weld(other, pair[0] == mocap, *parts)
    return None


def steps_under_way(model: mujoco.MjModel, substeps: int) -> np.ndarray:
    """For each control, over how many control steps it stays under way in its actuator, (nu,)."""
    steps = np.zeros(model.nu, dtype=np.int64)
    h = model.opt.timestep
    for i in range(model.nactuator):
        if model.actuator_historyadr[i] < 0 or model.actuator_delay[i] <= 0:
            continue
        kept, interpolation = (int(v) for v in model.actuator_history[i])
        # a delay of n time steps is n or n + 1 of them, as MuJoCo's sum of time steps is rounded;
        # a spline through the kept values needs neighbours too
        asked = math.floor(model.actuator_delay[i] / h + 1e-6) + 1 + interpolation
        values = min(kept, asked)
        first, n = model.actuator_ctrladr[i], model.actuator_ctrlnum[i]
        steps[first : first + n] = -(-values // substeps)
    return steps


def servo_shift(
    model: mujoco.MjModel, data: mujoco.MjData, relative: bool | Sequence[str], ctrl: Array | None
) -> Array:
    """The controls, (nu,), from which actions of position servos count; 0 for other actuators.

    data: at the start, positions computed. ctrl: the controls there if they are known; else those
    at which a servo exerts no force. Raises ConfigError.
    """
    shift = np.zeros(model.nu)
    if relative is False:
        return shift
    names = [model.actuator(i).name for i in range(model.nactuator)]
    fixed, affine = mujoco.mjtGain.mjGAIN_FIXED, mujoco.mjtBias.mjBIAS_AFFINE
    servo = (
        (model.actuator_gaintype == fixed)
        & (model.actuator_biastype == affine)
        & (model.actuator_gainprm[:, 0] > 0)
        & (model.actuator_biasprm[:, 1] < 0)
    )
    servos = [names[i] for i in np.flatnonzero(servo)]
    if relative is True and not servos:
        raise ConfigError("MujocoConfig.relative: the model has no position servo")
    for name in () if isinstance(relative, bool) else relative:
        if name not in servos:
            what = choices("position servo", name, [n for n in servos if n])
            raise ConfigError(f"MujocoConfig.relative: {what}")
    for i in np.flatnonzero(servo):
        if relative is not True and names[i] not in relative:
            continue
        c, bias = model.actuator_ctrladr[i], model.actuator_biasprm[i]
        length = data.actuator_length[model.actuator_outadr[i]]
        rest = -(bias[0] + bias[1] * length) / model.actuator_gainprm[i, 0]
        value = rest if ctrl is None else ctrl[c]
        if model.actuator_ctrllimited[c]:
            value = np.clip(value, *model.actuator_ctrlrange[c])
        shift[c] = value
    return shift
