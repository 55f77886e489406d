"""The models of a MujocoConfig, compiled, and where its conditions start on them."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import mujoco
import numpy as np
from mujoco.batch import Batch

from gps.agents._model import (
    ACTIVATION,
    ENTRIES,
    HIDDEN,
    SENSOR,
    WARMSTART,
    Compiled,
    ModelSource,
    Timing,
    grouped,
    hidden_entries,
    ids,
    joint_positions,
    load_model,
    locate,
    mocap_poses,
    moved,
    put_mocap,
    refuse_free,
    same_but_mocap,
    set_const,
    shown,
    warn_once,
)
from gps.agents._run import Start
from gps.agents.actions import (
    HISTORY,
    MOCAP,
    Actions,
    MocapAction,
    mocap_names,
    servo_shift,
    steps_under_way,
    welded_mocap,
)
from gps.errors import ConfigError, choices
from gps.types import Array, Layout

if TYPE_CHECKING:
    from gps.agents.mujoco import Condition, MujocoConfig

    Conditions = Sequence[tuple[bool, Sequence[Condition]]]

_USUAL_DT = 0.05  # s
_FEW_ITERATIONS = 10
_FAR = 1e4  # times the size of what moves there, nothing goes in a rollout


class Models:
    """The models of a configuration, and the starts of its conditions. Raises ConfigError.

    state: the entries of the state. dt: duration of a control step, in s. base: the configuration's
    own model; groups: how many kinds of batches all of them need. starts: of the conditions, and of
    those of the test (True).
    """

    state: tuple[str, ...]
    dt: float

    def __init__(self, config: MujocoConfig) -> None:
        self._config = config
        conditions = ((False, config.conditions), (True, config.test_conditions))
        found = self._compiled(conditions)
        self.base, self.model = found[config.model], found[config.model].model
        self.groups = 1 + max(c.group for c in found.values())
        self.starts = {
            test: [self._start(c, found[c.model or config.model]) for c in some]
            for test, some in conditions
        }

    def _compiled(self, conditions: Conditions) -> dict[ModelSource, Compiled]:
        """All models of the agent, by their source; ConfigError where they do not fit together."""
        config = self._config
        found: dict[ModelSource, Compiled] = {}
        users = [
            (c.model, f"{'test ' * test}condition {m}")
            for test, some in conditions
            for m, c in enumerate(some)
            if c.model is not None
        ]
        references: dict[str, Array] = {}
        shift = np.zeros(0)
        mocap: tuple[MocapAction, ...] = ()
        for source, user in ((config.model, ""), *users):
            if source in found:
                continue
            try:
                model = load_model(source)
                timing = self._timed(model, source)
                _refuse_hidden(model, source, warm=WARMSTART in (config.state or ()))
                if not user:
                    # one of each for all, so that states and actions mean the same everywhere
                    references = {n: model.body(n).quat.copy() for n in mocap_names(model)}
                    shift = self._shift(model)
                    mocap = config.mocap_actions or ()
                    if config.mocap_actions is None and not model.nu:
                        mocap = welded_mocap(model)
                actions = Actions(
                    model,
                    config.actuators,
                    mocap,
                    shift if len(shift) == model.nu else np.zeros(model.nu),
                    steps_under_way(model, timing.substeps),
                    references,
                )
                needed = hidden_entries(model, actions)
                if not user:
                    self.state = config.state or (*ENTRIES[:2], *needed)
                names = dict.fromkeys((*self.state, *(config.obs or ())))
                found[source] = locate(model, config.sites, tuple(names), timing, actions)
                self._check_entries(model, actions, needed, source)
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

    def _timed(self, model: mujoco.MjModel, source: ModelSource) -> Timing:
        """The time step at which a model is simulated, which is set in it; ConfigError."""
        config, own = self._config, float(model.opt.timestep)
        if config.substeps is not None:
            self.dt = _USUAL_DT if config.dt is None else config.dt
            model.opt.timestep = self.dt / config.substeps
            return Timing(own, config.substeps, float(model.opt.timestep))
        if source == config.model:  # the first
            usual = float(f"{max(1, round(_USUAL_DT / own)) * own:.12g}")  # 0.051, not 0.05100...04
            self.dt = usual if config.dt is None else config.dt
        n = max(1, round(self.dt / own))
        if not math.isclose(n * own, self.dt, rel_tol=1e-4):
            first = max(1, math.floor(self.dt / own))
            near = f"{first * own:.10g} or {(first + 1) * own:.10g}"
            raise ConfigError(
                f"MujocoConfig.dt must be a multiple of the time step of {own:g} s that "
                f"{shown(source)} asks for, such as {near}, got {self.dt:g}; or set substeps, for "
                "a time step of dt / substeps"
            )
        return Timing(own, n, own)

    def _shift(self, model: mujoco.MjModel) -> Array:
        """What is added to the controls that actions name, (nu,)."""
        if self._config.relative is False:
            return np.zeros(model.nu)
        begin, data = self._keyed(model, self._config.keyframe), mujoco.MjData(model)
        data.qpos[:] = (
            begin.qpos
            if self._config.qpos is None
            else self._sized("qpos", self._config.qpos, None, model.nq)
        )
        mujoco.mj_fwdPosition(model, data)
        return servo_shift(model, data, self._config.relative, begin.ctrl if begin.keyed else None)

    def _check_entries(
        self,
        model: mujoco.MjModel,
        actions: Actions,
        needed: Collection[str],
        source: ModelSource,
    ) -> None:
        """ConfigError where the state lacks an entry of the model, or an entry has nothing."""
        config, name = self._config, shown(source)
        if not actions.nu:
            raise ConfigError(
                f"MujocoConfig.model: {name} has no actuators, so nothing could be controlled; add "
                "some, or name mocap bodies in mocap_actions"
            )
        why = {
            ACTIVATION: f"stateful actuators (na={model.na})",
            HISTORY: f"actuators with a delay (nhistory={model.nhistory})",
            MOCAP: "mocap bodies that actions displace from their own pose",
        }
        none = {
            ACTIVATION: f"no actuator of {name} has an activation",
            HISTORY: f"no actuator of {name} has a delay",
            MOCAP: "no action displaces a mocap body from its own pose",
        }
        for entry in HIDDEN:
            if entry in needed and entry not in self.state:
                what = why.get(entry, f"plugins with a state (npluginstate={model.npluginstate})")
                raise ConfigError(
                    f"MujocoConfig.state: the model {name} has {what}; add {entry!r}, or the state "
                    "is incomplete"
                )
            if entry not in needed and entry in (*self.state, *(config.obs or ())):
                what = none.get(entry, f"no plugin of {name} has a state")
                raise ConfigError(f"MujocoConfig.state, obs: {what}")
        sensors = [n for n in self.state if n.startswith(SENSOR)]
        found = ids(model, "sensor", [n[len(SENSOR) :] for n in sensors], "MujocoConfig.state, obs")
        for entry, k in zip(sensors, found, strict=True):
            if model.sensor_historyadr[k] >= 0:
                raise ConfigError(
                    f"MujocoConfig.state: {entry} shows earlier values (it has a delay, an "
                    "interval or a history); leave it to the observation"
                )

    def _sized(self, field: str, value: Any, default: Any, n: int) -> Array:
        vector = np.array(default if value is None else value, dtype=np.float64)
        if vector.shape != (n,):
            raise ConfigError(
                f"MujocoConfig.{field} must have {n} values, one for each "
                f"{'activation' if field == 'activation' else 'joint value'} of "
                f"{shown(self._config.model)}, got {vector.size}"
            )
        return vector

    def _keyed(
        self, model: mujoco.MjModel, key: int | str | None, field: str = "MujocoConfig.keyframe"
    ) -> _Keyed:
        """What a keyframe says of the start, or the model without one; ConfigError."""
        if key is None:
            qvel, act, ctrl = (np.zeros(n) for n in (model.nv, model.na, model.nu))
            return _Keyed(model.qpos0.copy(), qvel, act, ctrl, None, False)
        names = [model.key(i).name for i in range(model.nkey)]
        if isinstance(key, int):
            known: list[Any] = list(range(model.nkey))
        else:
            known = [n for n in names if n]
        if key not in known:
            kind = f"keyframe of {shown(self._config.model)}"
            raise ConfigError(f"{field}: {choices(kind, key, map(str, known))}")
        i = key if isinstance(key, int) else names.index(key)
        fields = (model.key_qpos, model.key_qvel, model.key_act, model.key_ctrl)
        qpos, qvel, act, ctrl = (f[i].copy() for f in fields)
        poses = (model.key_mpos[i].reshape(-1, 3), model.key_mquat[i].reshape(-1, 4))
        # a keyframe without controls has zeros
        return _Keyed(qpos, qvel, act, ctrl, poses, bool(ctrl.any()))

    def _start(self, condition: Condition, compiled: Compiled) -> Start:
        """The condition's start, and its model: the unshifted one where it shifts no body."""
        model, config = compiled.model, self._config
        if condition.keyframe is None:
            begin = self._keyed(model, config.keyframe)
        else:
            begin = self._keyed(model, condition.keyframe, "Condition.keyframe")
        fields = {"qpos": config.qpos, "qvel": config.qvel, "activation": config.activation}
        if condition.keyframe is not None:
            fields = dict.fromkeys(fields)
        start = [
            self._sized(name, value, default, len(default))
            for (name, value), default in zip(
                fields.items(), (begin.qpos, begin.qvel, begin.act), strict=True
            )
        ]
        qpos, qvel, act = start
        if condition.qvel is not None:
            qvel = self._sized("conditions: qvel", condition.qvel, None, model.nv)
        if condition.qpos is not None:
            qpos = self._sized("conditions: qpos", condition.qpos, None, model.nq)
        if condition.qpos_offset is not None:
            by = self._sized("conditions: qpos_offset", condition.qpos_offset, None, model.nv)
            qpos = moved(model, qpos, by)
        mocap, led = self._mocap(condition, compiled, begin, qpos)
        offsets = condition.body_offsets
        found = ids(model, "body", [b for b, _ in offsets], "Condition.body_offsets")
        own = model
        if offsets or condition.mocap:
            # what follows from places is of this condition; meshes and all are shared if they can
            own = copy.copy(model)
            put_mocap(own, mocap)
            for body, (_, offset) in zip(found, offsets, strict=True):
                refuse_free(model, body, "Condition.body_offsets")
                own.body_pos[body] += offset
            mocap = mocap_poses(own)
            set_const(own)
            own = model if same_but_mocap(model, own) else own
        for spec in self._config.randomise:
            spec.check(own)
        return Start(compiled, own, qpos, qvel, act, begin.ctrl, begin.keyed, mocap, led)

    def _mocap(
        self, condition: Condition, compiled: Compiled, begin: _Keyed, qpos: Array
    ) -> tuple[tuple[Array, Array], tuple[int, ...]]:
        """Where mocap bodies begin, and which of them where their welds are at rest."""
        model, names = compiled.model, mocap_names(compiled.model)
        own = mocap_poses(model)
        pos, quat = (p.copy() for p in (begin.mocap or own))
        said = {names.index(n) for n, *_ in condition.mocap if n in names}
        if np.array_equal(qpos, begin.qpos):  # a keyframe has the model's where it has none itself
            said |= {
                i
                for i in range(len(names))
                if (pos[i] != own[0][i]).any() or (quat[i] != own[1][i]).any()
            }
        offset = {b for b, _ in condition.body_offsets}
        offset |= {n for r in self._config.randomise if r.what == "body_pos" for n in r.names}
        led = tuple(i for i in compiled.actions.led if i not in said and names[i] not in offset)
        if led:
            data = mujoco.MjData(model)
            data.qpos[:] = qpos
            mujoco.mj_kinematics(model, data)
            compiled.actions.settle(led, pos, quat, data.xpos, data.xquat)
        for name, place, *turn in condition.mocap:
            if name not in names:
                raise ConfigError(f"Condition.mocap: {choices('mocap body', name, names)}")
            pos[names.index(name)] = place
            for quaternion in turn:
                quat[names.index(name)] = np.array(quaternion) / np.linalg.norm(quaternion)
        return (pos, quat), led

    def limits(self, everything: Layout) -> Array:
        """The largest size of each value in a simulation that did not blow up; ConfigError for a
        start beyond `limit`."""
        starts = [s for some in self.starts.values() for s in some]
        nv = self.model.nv
        held = [np.abs((joint_positions(s.compiled, s.qpos), s.qvel)) for s in starts]
        joints, directions = self.model.jnt_type, np.arange(nv)
        kinds = joints[self.model.dof_jntid]
        along = kinds == int(mujoco.mjtJoint.mjJNT_SLIDE)
        free = kinds == int(mujoco.mjtJoint.mjJNT_FREE)
        along |= free & (directions - self.model.jnt_dofadr[self.model.dof_jntid] < 3)
        if self._config.limit is not None:
            for start, values in zip(starts, held, strict=True):
                over = np.argwhere(values > self._config.limit)
                for row, i in over[:1]:
                    joint = start.model.joint(start.model.dof_jntid[i])
                    raise ConfigError(
                        f"MujocoConfig.limit: {self._config.limit:g} is less than the start's "
                        f"{ENTRIES[row]} of {joint.name or f'joint {joint.id}'!r}, "
                        f"{values[row, i]:g}: every sample would have failed at the start"
                    )
            return np.full(everything.size, self._config.limit)
        largest = np.max(held, axis=0)
        stats = [s.model.stat for s in starts]
        size = max(float(s.extent + np.linalg.norm(s.center)) for s in stats)
        size = max(size, float(largest[0, along].max(initial=0.0)))
        limit = np.full(everything.size, np.inf)  # of what the joints do not show, NaN alone is bad
        limit[: 2 * nv] = (_FAR * np.fmax(np.where(along, size, 1.0), largest)).ravel()
        for name in ENTRIES[2:]:
            limit[everything.slice(name)] = _FAR * size
        return limit


class _Keyed(NamedTuple):
    """What a keyframe says of a start."""

    qpos: Array
    qvel: Array
    act: Array
    ctrl: Array
    mocap: tuple[Array, Array] | None  # places and quaternions
    keyed: bool  # whether the controls are given


def _refuse_hidden(model: mujoco.MjModel, source: ModelSource, *, warm: bool) -> None:
    """Switch off what would be hidden from the state, or ConfigError where that is not possible."""
    flags = int(model.opt.enableflags)
    if flags & int(mujoco.mjtEnableBit.mjENBL_IPC):
        raise ConfigError(
            f"MujocoConfig.model: {shown(source)} has the flag ipc, whose contacts keep a state "
            "that MuJoCo does not give; remove it"
        )
    if flags & int(mujoco.mjtEnableBit.mjENBL_SLEEP):
        model.opt.enableflags = flags & ~int(mujoco.mjtEnableBit.mjENBL_SLEEP)
        warn_once(f"{shown(source)}: sleeping is switched off, as no state shows what sleeps")
    if model.opt.iterations < _FEW_ITERATIONS and not warm:
        # a solver that converges ends at the same forces from every start, to its tolerance
        warn_once(
            f"{shown(source)}: the constraint solver has {model.opt.iterations} iterations at "
            "most; where it does not converge, its start has a part in every step: more iterations "
            f"would end that, or the entry {WARMSTART!r} in MujocoConfig.state shows it"
        )


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
    here, there = ((c.actions.low, c.actions.high) for c in (first, other))
    if not np.array_equal(here, there):
        raise ConfigError(f"Condition.model: {who}: the controls must have the same limits")
