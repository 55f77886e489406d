"""What a MuJoCo model has, in words, and values of an experiment that suit it.

Everything is read from the compiled model and from forward dynamics at the start; nothing is run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from gps.agents.actions import MocapAction, welded_mocap
from gps.pipeline import statics
from gps.pipeline.statics import Bools
from gps.types import Array

JOINTS = ("free", "ball", "slide", "hinge")
_SHOWN = 40
"""Rows of a table of the model's parts; larger models say how many more there are."""
_SETTLING = 4.0
"""Time in which mocap bodies lead a robot to their place, in s."""
_LED = 0.1
"""Way along each axis of what a mocap body leads, in units of the model's extent."""
_EFFORT = 0.3
"""Share of an actuator's range that a motion is planned with."""
_SHORTEST, _LONGEST = 1.0, 5.0
"""Bounds of the duration of a rollout, in s."""
_STEPS, _FINEST, _COARSEST = 50, 0.01, 0.05
"""Control steps of a rollout, if they last no less and no more than this, in s."""
_ENDS = r"tip|eef|\bee|end|grip|grasp|tool|tcp|hand|finger|pinch|attach|wrist|flange|peg"
_MARKS = r"target|goal|imu|ref|com\b|touch|camera"


@dataclass(frozen=True)
class Timing:
    """Steps of a rollout and what they were chosen by."""

    T: int
    dt: float
    substeps: int
    reason: str


@dataclass(frozen=True)
class Point:
    """A site that the actuators move, and a place that it can reach."""

    site: str
    start: Array
    target: Array

    @property
    def distance(self) -> float:
        """From the start to the target, in m."""
        return float(np.linalg.norm(self.target - self.start))


@dataclass(frozen=True)
class Pointer:
    """A sensor that reports where a moving body is, relative to a target."""

    sensor: str
    mocap: str
    """Name of the mocap body that is the target; empty where it is none."""
    distance: float
    """At the start, in m."""


class Robot:
    """A compiled model at the place where an experiment with it would start."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self.model = model
        self.keyframe = self._keyframe()
        self.data = mujoco.MjData(model)
        if self.keyframe is not None:
            mujoco.mj_resetDataKeyframe(model, self.data, self.keyframe)
        else:
            self.data.qpos[:] = self._inside_limits()
        self.settled = self.keyframe is None and bool(self._led) and self._settle()
        self.start = self.data.qpos.copy()
        self.control = self.data.ctrl.copy()
        mujoco.mj_forward(model, self.data)

    # --- the start -------------------------------------------------------------------------------

    def _keyframe(self) -> int | None:
        """The keyframe `home`, or the first."""
        names = [self.model.key(i).name for i in range(self.model.nkey)]
        return (names.index("home") if "home" in names else 0) if names else None

    def _inside_limits(self) -> Array:
        """The model's own pose, but the middle of its range for a joint that is outside, and if its
        bodies are then inside each other also for those that are near a limit, or for all."""
        for margin in (0.0, 0.1, 0.5):
            qpos = self._centred(margin)
            if not self._collides(qpos):
                return qpos
        return self._centred(0.0)

    def _centred(self, margin: float) -> Array:
        """The model's own pose, with joints within that share of their range from a limit moved to
        its middle."""
        model, qpos = self.model, self.model.qpos0.copy()
        for j in range(model.njnt):
            low, high = model.jnt_range[j]
            at, left = model.jnt_qposadr[j], margin * (high - low)
            limited = self.scalar_joint(j) and model.jnt_limited[j]
            if limited and not low + left <= qpos[at] <= high - left:
                qpos[at] = (low + high) / 2
        return qpos

    def _collides(self, qpos: Array) -> bool:
        """Whether two moving bodies are inside each other, by more than a mm."""
        data = mujoco.MjData(self.model)
        data.qpos[:] = qpos
        mujoco.mj_fwdPosition(self.model, data)
        for contact in data.contact:
            bodies = self.model.geom_bodyid[contact.geom]
            if contact.dist < -1e-3 and all(self.moves(int(b)).any() for b in bodies):
                return True
        return False

    def _settle(self) -> bool:
        """Let the mocap bodies lead the robot to their place; whether it comes to rest there."""
        before = self.data.qpos.copy()
        for _ in range(round(_SETTLING / self.model.opt.timestep)):
            mujoco.mj_step(self.model, self.data)
        still = np.isfinite(self.data.qpos).all() and not any(w.number for w in self.data.warning)
        if not still:
            mujoco.mj_resetData(self.model, self.data)
            self.data.qpos[:] = before
        self.data.qvel[:] = 0.0
        return bool(still)

    @property
    def moved_inside(self) -> bool:
        """Whether the start is not the model's own pose, which is outside of the limits, or in
        which its bodies are inside each other."""
        return self.keyframe is None and bool((self.start != self.model.qpos0).any())

    # --- what moves what -------------------------------------------------------------------------

    def scalar_joint(self, j: int) -> bool:
        """Whether a joint is a hinge or a slide."""
        return int(self.model.jnt_type[j]) >= int(mujoco.mjtJoint.mjJNT_SLIDE)

    @cached_property
    def moments(self) -> Array:
        """Generalised force per actuator force at the start, (nu, nv)."""
        return statics.moments(self.model, self.data)

    @cached_property
    def driven(self) -> Bools:
        """Which directions the actuators act on, or the mocap bodies that lead it, (nv,)."""
        driven = np.array((np.abs(self.moments) > 1e-9).any(axis=0))
        for _, body in self._led:
            driven |= self.moves(body)
        return driven

    @cached_property
    def _led(self) -> list[tuple[int, int]]:
        """Welds of a mocap body, and the body on their other side."""
        m, found = self.model, []
        for i in range(m.neq):
            weld = m.eq_type[i] == mujoco.mjtEq.mjEQ_WELD and m.eq_active0[i]
            if not weld or m.eq_objtype[i] != mujoco.mjtObj.mjOBJ_BODY:
                continue
            pair = int(m.eq_obj1id[i]), int(m.eq_obj2id[i])
            found += [(i, b) for a, b in (pair, pair[::-1]) if m.body_mocapid[a] >= 0]
        return found

    @property
    def mocap_actions(self) -> tuple[MocapAction, ...]:
        """The mocap bodies that lead it, as actions."""
        return welded_mocap(self.model)

    @cached_property
    def scalar(self) -> Bools:
        """Which directions are those of hinges and slides, (nv,)."""
        kinds = self.model.jnt_type[self.model.dof_jntid]
        scalar: Bools = kinds >= int(mujoco.mjtJoint.mjJNT_SLIDE)
        return scalar

    @cached_property
    def hinges(self) -> Bools:
        """Which directions are measured in rad, (nv,)."""
        return statics.turns(self.model)

    @cached_property
    def tied(self) -> Bools:
        """Which directions cannot move by themselves, as an equality constraint ties them."""
        m = self.model
        tied = np.zeros(m.nv, dtype=bool)
        for i, (kind, a, b, of) in enumerate(
            zip(m.eq_type, m.eq_obj1id, m.eq_obj2id, m.eq_objtype, strict=True)
        ):
            if not m.eq_active0[i] or i in dict(self._led):
                continue
            if kind == mujoco.mjtEq.mjEQ_JOINT:
                tied[[m.jnt_dofadr[j] for j in (a, b) if j >= 0]] = True
            elif kind in (mujoco.mjtEq.mjEQ_CONNECT, mujoco.mjtEq.mjEQ_WELD):
                site = of == mujoco.mjtObj.mjOBJ_SITE
                bodies = [m.site_bodyid[i] if site else i for i in (a, b)]
                tied |= self.moves(bodies[0]) ^ self.moves(bodies[1])
        return tied

    def moves(self, body: int) -> Bools:
        """Which directions move a body, (nv,)."""
        m, moves = self.model, np.zeros(self.model.nv, dtype=bool)
        while body > 0:
            first, n = m.body_dofadr[body], m.body_dofnum[body]
            moves[first : first + n] = n > 0
            body = m.body_parentid[body]
        return moves

    def qpos_of(self, dof: int) -> int:
        """Where the position of a hinge or slide is in qpos."""
        return int(self.model.jnt_qposadr[self.model.dof_jntid[dof]])

    @property
    def directions(self) -> tuple[str, ...]:
        """Name of the joint of each direction, (nv,)."""
        return tuple(self._joint(int(j)) for j in self.model.dof_jntid)

    @property
    def positions(self) -> tuple[str, ...]:
        """Name of the joint of each value of qpos, (nq,)."""
        widths = (7, 4, 1, 1)
        kinds = enumerate(self.model.jnt_type)
        return tuple(name for j, k in kinds for name in [self._joint(j)] * widths[int(k)])

    def _joint(self, j: int) -> str:
        return self.model.joint(j).name or f"joint {j}"

    @property
    def actions(self) -> tuple[str, ...]:
        """Names of the actions: actuators, then what leads mocap bodies."""
        led = [name for action in self.mocap_actions for name in action.names]
        return (*(self.action(i) for i in range(self.model.nu)), *led)

    @property
    def action_range(self) -> Array:
        """Half of the range of each action."""
        return np.concatenate((self.half_range, *(a.limits for a in self.mocap_actions)))

    @property
    def servos(self) -> Bools:
        """Which actuators are position servos, (nu,)."""
        m = self.model
        fixed = m.actuator_gaintype == mujoco.mjtGain.mjGAIN_FIXED
        affine = m.actuator_biastype == mujoco.mjtBias.mjBIAS_AFFINE
        stiff = (m.actuator_gainprm[:, 0] > 0) & (m.actuator_biasprm[:, 1] < 0)
        return np.array(fixed & affine & stiff)

    @cached_property
    def free_root(self) -> Bools:
        """Directions of free and ball joints on which driven joints ride, (nv,)."""
        m, root = self.model, np.zeros(self.model.nv, dtype=bool)
        for dof in _where(self.driven & self.scalar):
            root |= self.moves(int(m.dof_bodyid[dof])) & ~self.scalar
        return root

    # --- scales ----------------------------------------------------------------------------------

    @cached_property
    def half_range(self) -> Array:
        """Half of each control's range, (nu,); of one without limits, what turns its joint by 10
        rad/s^2, or moves it by 10 m/s^2, against the weight that it carries at most."""
        ends = statics.control_ends(self.model)
        half = (ends[:, 1] - ends[:, 0]) / 2
        for i in np.flatnonzero(~np.isfinite(half) | (half <= 0)):
            most = np.abs(self._acceleration[i]).max(initial=0.0)
            half[i] = 1.0
            if 1e-9 < most < 1e9:
                force, moment = abs(self._force(int(i))), np.abs(self.moments[i])
                acts = moment > 1e-9
                carried = float((self._weights[acts] / moment[acts]).max(initial=0.0))
                half[i] = 10.0 / most + (carried / force if force > 0 else 0.0)
        return half

    @cached_property
    def bounded(self) -> bool:
        """Whether all controls have limits."""
        return bool(np.isfinite(statics.control_ends(self.model)).all())

    @cached_property
    def _weights(self) -> Array:
        """Largest force of gravity on each hinge and slide in any pose of it, (nv,)."""
        m, d, found = self.model, self.data, np.zeros(self.model.nv)
        g = float(np.linalg.norm(m.opt.gravity))
        for dof in _where(self.scalar):
            body = m.dof_bodyid[dof]
            arm = d.subtree_com[body] - d.xanchor[m.dof_jntid[dof]]
            found[dof] = m.body_subtreemass[body] * g
            if self.hinges[dof]:
                axis = d.xaxis[m.dof_jntid[dof]]
                found[dof] *= float(np.linalg.norm(np.cross(arm, axis)))
        return found

    @cached_property
    def length(self) -> str:
        """The unit of its lengths; empty where it is not known."""
        return "m" if statics.metric(self.model) else ""

    @property
    def stands(self) -> bool:
        """Whether only contacts carry a free base."""
        return statics.stands(self.model, self.start, 1.0, 0.05)

    @cached_property
    def _acceleration(self) -> Array:
        """Acceleration of every direction per unit of control, (nu, nv), by its own force."""
        m, d = self.model, self.data
        M = np.zeros((m.nv, m.nv))
        mujoco.mj_fullM(m, d, M)
        forces = np.array([self._force(i) for i in range(m.nu)])
        per_unit = (self.moments * forces[:, None]).T if m.nu else np.zeros((m.nv, 0))
        out: Array = np.linalg.lstsq(M, per_unit, rcond=None)[0].T
        return out

    def _force(self, i: int) -> float:
        """Change of an actuator's force per unit of control or activation, at the start."""
        m, d = self.model, mujoco.MjData(self.model)
        d.qpos[:] = self.start
        mujoco.mj_forward(m, d)
        low, high = m.actuator_ctrlrange[i] if m.actuator_ctrllimited[i] else (-1.0, 1.0)
        at, found = m.actuator_actadr[i], []
        for value in (low, high):
            d.ctrl[i] = value
            if at >= 0:
                d.act[at + m.actuator_actnum[i] - 1] = value
            mujoco.mj_fwdActuation(m, d)
            found.append(float(d.actuator_force[i]))
        return (found[1] - found[0]) / (high - low) if high > low else 0.0

    @cached_property
    def room(self) -> Array:
        """How far each direction is moved, (nv,): a quarter of its range; without limits half a
        rad, or a tenth of the model's extent."""
        m = self.model
        room = np.where(self.hinges, 0.5, 0.1 * float(m.stat.extent))
        for dof in _where(self.scalar):
            j = m.dof_jntid[dof]
            if m.jnt_limited[j]:
                room[dof] = min(0.25 * float(np.ptp(m.jnt_range[j])), 4 * room[dof])
        return room

    @cached_property
    def _rates(self) -> npt.NDArray[np.complex128]:
        """Eigenvalues of the linearised model at the start, in 1/s; empty if there is none."""
        m, d = self.model, self.data
        integrator, width = m.opt.integrator, 2 * m.nv + m.na
        if not 0 < width <= 200:
            return np.zeros(0, dtype=complex)
        A = np.zeros((width, width))
        try:
            m.opt.integrator = mujoco.mjtIntegrator.mjINT_EULER  # the same motion, to first order
            mujoco.mjd_transitionFD(m, d, 1e-6, True, A, None, None, None)
            values = np.linalg.eigvals(A)
        except (mujoco.FatalError, np.linalg.LinAlgError):
            return np.zeros(0, dtype=complex)
        finally:
            m.opt.integrator = integrator
        values = values[np.abs(values) > 1e-12]
        rates: npt.NDArray[np.complex128] = np.log(values.astype(complex)) / m.opt.timestep
        return rates

    def timing(self) -> Timing:
        """Control steps and horizon, by what the actuators can do and by the slowest mode."""
        h, found = float(self.model.opt.timestep), []
        able = self.driven & self.scalar
        reached = np.abs(self._acceleration * self.half_range[:, None])
        pace = _EFFORT * reached.max(axis=0, initial=0.0)
        able &= pace > 1e-9
        slow = 0.0
        if able.any():
            reach = 2.0 * np.sqrt(self.room[able] / pace[able])
            slow = 4.0 * float(np.median(reach))
            found.append(
                f"{_EFFORT:.0%} of the actuators' range moves a joint by a quarter of its range in "
                f"{np.median(reach):.2g} s (median)"
            )
        rates = self._rates
        stable = rates[(rates.real < -1.0 / _LONGEST) & (rates.real > -0.5 / h)]
        if any(self.kind(i) == "position" for i in range(self.model.nu)) and len(stable):
            mode = float((-1.0 / stable.real).max())
            slow = max(slow, 4.0 * mode)
            found.append(f"the slowest mode that settles takes {mode:.2g} s")
        horizon = min(max(slow, _SHORTEST), _LONGEST)
        dt = min(max(horizon / _STEPS, _FINEST), _COARSEST)
        # what grows within a few simulator steps is a contact, or the differences that were taken
        growing = rates[(rates.real > 1.0 / _LONGEST) & (rates.real < 0.1 / h)]
        if len(growing):
            mode = float((1.0 / growing.real).min())
            dt = min(dt, max(mode / 5, _FINEST))
            found.append(f"the start is unstable, with a time constant of {mode:.2g} s")
        substeps = max(1, round(dt / h))
        dt = float(f"{substeps * h:.12g}")
        T = min(max(round(horizon / dt), 20), 200)
        return Timing(T, dt, substeps, "; ".join(found))

    # --- what to do ------------------------------------------------------------------------------

    @cached_property
    def shifts(self) -> Array:
        """Standard deviations of starts that differ, (nv,): a fifth of `room`, or less where the
        limits are near; 0 for what no actuator drives and for what a constraint ties."""
        std = np.where(self.driven & self.scalar & ~self.tied, self.room / 5, 0.0)
        for dof in _where(std > 0):
            left = min(self._left(dof, +1), self._left(dof, -1))
            std[dof] = min(std[dof], left / 3)
        return std

    def _left(self, dof: int, sign: int) -> float:
        """Way from the start to the limit of a hinge or slide."""
        j, q = self.model.dof_jntid[dof], self.start[self.qpos_of(dof)]
        if not self.model.jnt_limited[j]:
            return math.inf
        low, high = self.model.jnt_range[j]
        return float(max(high - q if sign > 0 else q - low, 0.0))

    def goal(self, dofs: Bools, share: Array | None = None) -> Array:
        """Way of each direction, (nv,), from the start to a pose within the limits: of the given
        directions `share` times `room`; without it 0.6 of it, to the side with more of it."""
        way = np.zeros(self.model.nv)
        for dof in _where(dofs & self.driven & self.scalar & ~self.tied):
            up, down = self._left(dof, +1), self._left(dof, -1)
            part = (0.6 if up >= down else -0.6) if share is None else float(share[dof])
            way[dof] = np.clip(part * self.room[dof], -0.8 * down, 0.8 * up)
        return way

    def place(self, site: int, way: Array) -> Array:
        """Where a site is after moving from the start."""
        data = mujoco.MjData(self.model)
        data.qpos[:] = self._moved(way)
        mujoco.mj_kinematics(self.model, data)
        return data.site_xpos[site].copy()

    def _moved(self, way: Array) -> Array:
        """Positions (nq,) after moving from the start."""
        qpos = self.start.copy()
        mujoco.mj_integratePos(self.model, qpos, np.array(way, dtype=float), 1.0)
        return qpos

    def collides(self, way: Array) -> bool:
        """Whether moving bodies are inside each other after moving from the start."""
        return self._collides(self._moved(way))

    def point(self) -> Point | None:
        """The site at the end of the longest chain of driven joints on a fixed base."""
        m, found = self.model, []
        for s in range(m.nsite):
            name, moves = m.site(s).name, self.moves(int(m.site_bodyid[s]))
            own = moves & self.driven & self.scalar
            led = any((self.moves(body) & ~self.scalar & moves).any() for _, body in self._led)
            if not name or not (own.any() or led) or ((moves & ~self.scalar).any() and not led):
                continue
            if re.search(_MARKS, name, re.IGNORECASE):
                continue
            named = bool(re.search(_ENDS, name, re.IGNORECASE))
            found.append((int(own.sum()) + 2 * named, s, own))
        for _, s, own in sorted(found, key=lambda f: (-f[0], f[1])):
            start, signs = self.place(s, np.zeros(m.nv)), np.sign(self.goal(own))
            if (self.moves(int(m.site_bodyid[s])) & ~self.scalar).any():
                # a mocap body leads it, to wherever; up and aside, away from the floor
                return Point(m.site(s).name, start, rounded(start + _LED * float(m.stat.extent)))
            # of a pose and its opposite the higher one: it is less likely in the floor
            ways = [self.goal(own, share * signs) for share in (0.6, -0.6, 0.3, -0.3)]
            ways = [way for way in ways if not self.collides(way)][:2] or ways[:1]
            target = max((self.place(s, way) for way in ways), key=lambda p: float(p[2]))
            point = Point(m.site(s).name, start, rounded(target))
            if point.distance > 1e-3 * float(m.stat.extent):
                return point
        return None

    def pointer(self) -> Pointer | None:
        """A sensor of a driven body's place relative to a body that is not driven."""
        m = self.model
        for k in range(m.nsensor):
            place = m.sensor_type[k] == mujoco.mjtSensor.mjSENS_FRAMEPOS
            if not place or m.sensor_refid[k] < 0 or not m.sensor(k).name:
                continue
            ends = [
                self._body(m.sensor_objtype[k], m.sensor_objid[k]),
                self._body(m.sensor_reftype[k], m.sensor_refid[k]),
            ]
            driven = [bool((self.moves(b) & self.driven).any()) for b in ends]
            if driven[0] == driven[1]:
                continue
            target = ends[driven.index(False)]
            mocap = m.body(target).name if m.body_mocapid[target] >= 0 else ""
            at = int(m.sensor_adr[k])
            distance = float(np.linalg.norm(self.data.sensordata[at : at + 3]))
            return Pointer(m.sensor(k).name, mocap, distance)
        return None

    def _body(self, kind: int, i: int) -> int:
        m, of = self.model, mujoco.mjtObj
        found = {of.mjOBJ_SITE: m.site_bodyid, of.mjOBJ_GEOM: m.geom_bodyid}.get(of(int(kind)))
        return int(i if found is None else found[i])

    def target_box(self, pointer: Pointer) -> tuple[Array, Array]:
        """A box of places that a pointer's moving end has, rounded, (3,) and (3,): from the first
        to the last fifth along each axis in 1000 poses about the start, within the limits; smaller
        where a corner is far from all of these places, out of reach that is."""
        m, rng, data = self.model, np.random.default_rng(0), mujoco.MjData(self.model)
        k = m.sensor(pointer.sensor).id
        ends = (
            (m.sensor_objtype[k], m.sensor_objid[k]),
            (m.sensor_reftype[k], m.sensor_refid[k]),
        )
        kind, i = next(e for e in ends if (self.moves(self._body(*e)) & self.driven).any())
        places = []
        for _ in range(1000):
            way = self.goal(self.driven, rng.uniform(-1.5, 1.5, m.nv))
            data.qpos[:] = self._moved(way)
            mujoco.mj_kinematics(m, data)
            of = mujoco.mjtObj
            where = {of.mjOBJ_SITE: data.site_xpos, of.mjOBJ_GEOM: data.geom_xpos}
            places.append(where.get(of(int(kind)), data.xpos)[i].copy())
        low, high = np.percentile(places, (20, 80), axis=0)
        middle, half = np.median(places, axis=0), 0.5 * (high - low)
        signs = np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1).T
        for share in (1.0, 0.8, 0.6, 0.4):
            low, high = middle - share * half, middle + share * half
            gaps = np.linalg.norm((middle + share * signs * half)[:, None] - places, axis=2)
            if gaps.min(axis=1).max() <= 0.1 * np.linalg.norm(half):
                break
        return rounded(low), rounded(high)

    # --- words -----------------------------------------------------------------------------------

    def kind(self, i: int) -> str:
        """What an actuator is called in MJCF, or `general`."""
        m = self.model
        gain, bias = m.actuator_gainprm[i], m.actuator_biasprm[i]
        if m.actuator_gaintype[i] == mujoco.mjtGain.mjGAIN_MUSCLE:
            return "muscle"
        fixed = m.actuator_gaintype[i] == mujoco.mjtGain.mjGAIN_FIXED
        if fixed and m.actuator_biastype[i] == mujoco.mjtBias.mjBIAS_NONE:
            return "motor" if m.actuator_actnum[i] == 0 else "general"
        if fixed and m.actuator_biastype[i] == mujoco.mjtBias.mjBIAS_AFFINE and gain[0] != 0:
            if math.isclose(bias[1], -gain[0]):
                return "position"
            if bias[1] == 0 and math.isclose(bias[2], -gain[0]):
                return "velocity"
        return "general"

    def drives(self, i: int) -> str:
        """Joint, tendon, site or body that an actuator acts on."""
        m, at = self.model, int(self.model.actuator_trnid[i, 0])
        of = mujoco.mjtTrn(int(m.actuator_trntype[i]))
        if of in (mujoco.mjtTrn.mjTRN_JOINT, mujoco.mjtTrn.mjTRN_JOINTINPARENT):
            return self._joint(at)
        for kinds, name in (
            ((mujoco.mjtTrn.mjTRN_TENDON,), "tendon"),
            ((mujoco.mjtTrn.mjTRN_SITE, mujoco.mjtTrn.mjTRN_SLIDERCRANK), "site"),
            ((mujoco.mjtTrn.mjTRN_BODY,), "body"),
        ):
            if of in kinds:
                return f"{name} {getattr(m, name)(at).name or at}"
        return "?"

    def action(self, i: int) -> str:
        """Name of an actuator."""
        return self.model.actuator(i).name or f"actuator {i}"

    def inventory(self) -> Iterator[str]:
        """Lines that say what the model has."""
        m = self.model
        rows: list[tuple[str, ...]] = []
        for j in range(m.njnt):
            limited = f"{m.jnt_range[j][0]:.4g} .. {m.jnt_range[j][1]:.4g}"
            dof = m.jnt_dofadr[j]
            by = [self.action(i) for i in range(m.nu) if abs(self.moments[i, dof]) > 1e-9]
            free = not self.scalar_joint(j)
            rows.append(
                (
                    self._joint(j),
                    JOINTS[int(m.jnt_type[j])],
                    limited if m.jnt_limited[j] else "",
                    "" if free else _some(by, 3) or "-",
                )
            )
        units = "rad, m" if self.length else "rad, lengths as in the model"
        yield from _table(("joint", "kind", f"range ({units})", "driven by"), rows)
        rows = []
        for i in range(m.nu):
            low, high = statics.control_ends(m)[i]
            kind = self.kind(i)
            rows.append(
                (
                    self.action(i),
                    kind,
                    self.drives(i),
                    f"{low:.4g} .. {high:.4g}" if math.isfinite(high - low) else "no limit",
                    f"{m.actuator_gear[i, 0]:.4g}",
                )
            )
        yield ""
        yield from _table(("actuator", "kind", "drives", "control range", "gear"), rows)
        yield ""
        sensors = [
            f"{m.sensor(k).name} ({mujoco.mjtSensor(int(m.sensor_type[k])).name[7:].lower()}, "
            f"{m.sensor_dim[k]})"
            for k in range(m.nsensor)
            if m.sensor(k).name
        ]
        mocap = [m.body(b).name for b in range(m.nbody) if m.body_mocapid[b] >= 0]
        for what, names in (
            ("sites", [m.site(s).name for s in range(m.nsite)]),
            ("sensors", sensors),
            ("keyframes", [m.key(k).name or str(k) for k in range(m.nkey)]),
            ("cameras", [m.cam(c).name for c in range(m.ncam)]),
            ("mocap bodies", mocap),
        ):
            yield f"{what}: {_some([n for n in names if n], _SHOWN) or 'none'}"


def rounded(place: Array) -> Array:
    """To mm, without a minus before a zero."""
    return np.round(place, 3) + 0.0


def _where(directions: Bools) -> list[int]:
    """Numbers of the directions that are marked."""
    return [int(i) for i in np.flatnonzero(directions)]


def _some(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _table(head: Sequence[str], rows: Sequence[Any]) -> Iterator[str]:
    """Aligned lines, in front of which stands a mark that keeps them from being wrapped."""
    shown = [head, *rows[:_SHOWN]]
    widths = [min(max(len(row[i]) for row in shown), 24) for i in range(len(head))]
    for row in shown:
        yield "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()
    if len(rows) > _SHOWN:
        yield f"and {len(rows) - _SHOWN} more"
