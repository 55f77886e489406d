"""What can hold a MuJoCo model where it starts, and what units its numbers have.

At rest a joint needs a force against gravity and springs, and its actuators have one within their
limits; a base that no actuator moves is left to contacts.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from gps.agents.actions import control_limits
from gps.types import Array

Bools = npt.NDArray[np.bool_]

STANDARD_GRAVITY = 9.81
"""In m/s^2."""
_EARTH = 0.05
"""Relative distance from it up to which a model's gravity says that its lengths are in m."""
_OUTSIDE = 0.01
"""Share of a joint's range beyond its limits that is worth a word."""
_SAID = 3
"""Joints that are named one by one."""


def length_scale(model: mujoco.MjModel) -> float:
    """How many of the model's units of length a metre has, by its gravity; 1 without gravity."""
    g = float(np.linalg.norm(model.opt.gravity))
    off = model.opt.disableflags & int(mujoco.mjtDisableBit.mjDSBL_GRAVITY)
    return g / STANDARD_GRAVITY if g > 0 and not off else 1.0


def metric(model: mujoco.MjModel) -> bool:
    """Whether lengths are in m, as far as anything tells: gravity is the earth's, or there is
    none. The same robot in mm has 9810."""
    return abs(length_scale(model) - 1.0) <= _EARTH


def direction_names(model: mujoco.MjModel) -> tuple[str, ...]:
    """A name of each direction of motion, (nv,): its joint's, or its body's where that has none,
    with x, y, z, and turn x ... for the directions of free and ball joints."""
    about, names = tuple(f"turn {axis}" for axis in "xyz"), []
    for j, kind in enumerate(map(int, model.jnt_type)):
        body = model.body(int(model.jnt_bodyid[j]))
        alone = int(model.body_jntnum[body.id]) == 1
        name = model.joint(j).name or (body.name if alone and body.name else f"joint {j}")
        own = ((*"xyz", *about), about, ("",), ("",))[kind]
        names += [f"{name} {direction}".rstrip() for direction in own]
    return tuple(names)


def outside(model: mujoco.MjModel, qpos: Array) -> Iterator[str]:
    """Hinges and slides that are beyond their limits, in words."""
    length = "m" if metric(model) else ""
    for j in range(model.njnt):
        kind = int(model.jnt_type[j])
        if kind < int(mujoco.mjtJoint.mjJNT_SLIDE) or not model.jnt_limited[j]:
            continue
        q, (low, high) = float(qpos[model.jnt_qposadr[j]]), model.jnt_range[j]
        if max(low - q, q - high) <= _OUTSIDE * (high - low):
            continue
        hinge = kind == int(mujoco.mjtJoint.mjJNT_HINGE)
        unit = f" {'rad' if hinge else length}".rstrip()
        angle = "; are its limits in degrees or rad as meant (compiler angle)?" if hinge else ""
        yield (
            f"{direction_names(model)[model.jnt_dofadr[j]]} starts at {q:.3g}{unit}, outside of "
            f"its range {low:.3g}..{high:.3g}{unit}, into which MuJoCo pushes it{angle}"
        )


def moments(model: mujoco.MjModel, data: Any) -> Array:
    """Generalised force per actuator force at the pose of the data, (nactuator, nv)."""
    found = np.zeros((model.nactuator, model.nv))
    sparse = data.actuator_moment, data.moment_rownnz, data.moment_rowadr, data.moment_colind
    mujoco.mju_sparse2dense(found, *sparse)
    return found


@dataclass(frozen=True)
class _Balance:
    """Forces at rest at a pose, of each direction, (nv,)."""

    needs: Array
    """What would keep it there."""
    able: Array
    """Magnitude that actuators and friction have towards that."""
    moments: Array
    """Generalised force per actuator force, (nactuator, nv)."""
    falls: Bools
    """Whether what is missing moves it by more than a tolerance."""
    constrained: Bools
    """Whether a contact, a limit or an equality constraint acts on it."""
    floating: Bools
    """Directions of free and ball joints that fall, and on which driven joints ride."""


def _balance(model: mujoco.MjModel, qpos: Array, time: float, tolerance: float) -> _Balance:
    """See `unheld`."""
    model = copy.copy(model)
    model.opt.jacobian = mujoco.mjtJacobian.mjJAC_DENSE
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_forward(model, data)
    tied, constrained = _constrained(model, data)
    moment = moments(model, data)
    forces = _forces(model, qpos)
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_CONSTRAINT)
    data.qvel[:] = data.qacc[:] = 0.0
    mujoco.mj_inverse(model, data)
    needs = data.qfrc_inverse.copy()
    M = np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, data, M)
    acts = (moment != 0.0)[:, :, None]
    ends = np.where(acts, np.where(acts, moment[:, :, None], 1.0) * forces[:, None, :], 0.0)
    ends.sort(axis=2)
    able = np.where(needs > 0, ends.max(axis=2).sum(axis=0), -ends.min(axis=2).sum(axis=0))
    able = np.fmax(able, 0.0) + model.dof_frictionloss
    scale = np.where(turns(model), 1.0, length_scale(model))
    falls = 0.5 * (np.abs(needs) - able) / M.diagonal() * time**2 > tolerance * scale
    driven = (moment != 0.0).any(axis=0)
    base = np.zeros(model.nv, dtype=np.bool_)
    for dof in map(int, np.flatnonzero(driven)):
        base |= _above(model, dof)
    floating = base & falls & _free(model) & ~driven & ~tied
    return _Balance(needs, able, moment, falls, constrained, floating)


def stands(model: mujoco.MjModel, qpos: Array, time: float, tolerance: float) -> bool:
    """Whether only contacts carry a free base at rest at qpos (nq,); time, tolerance: as in
    `unheld`."""
    return bool(_balance(model, qpos, time, tolerance).floating.any())


def unheld(model: mujoco.MjModel, qpos: Array, time: float, tolerance: float) -> Iterator[str]:
    """Why no controls hold the model at rest at qpos (nq,), in words; nothing where they do.

    A joint is named where what it lacks would move it by more than `tolerance` (rad, or m) within
    `time` (s), from rest and with constant acceleration. Joints that contacts, limits or equality
    constraints act on are left out, since these may carry them.
    """
    b, names = _balance(model, qpos, time, tolerance), direction_names(model)
    if b.floating.any():
        j = model.dof_jntid[np.flatnonzero(b.floating)[0]]
        root = names[model.jnt_dofadr[j]].rpartition(" ")[0].removesuffix(" turn")
        yield (
            f"no actuator moves {root}, so contacts carry the start: it is held as far as the "
            "robot stands by itself, and linear dynamics end where a contact does"
        )
    riding = np.array([bool((_above(model, dof) & b.floating).any()) for dof in range(model.nv)])
    short = b.falls & ~b.constrained & ~_free(model) & ~riding
    missing, driven = np.abs(b.needs) - b.able, (b.moments != 0.0).any(axis=0)
    for able_to, remedy in (
        (driven, "no gains or noise change that, a wider control range or another start does"),
        (~driven, "it stays only as far as the motion of other joints keeps it there"),
    ):
        found = list(map(int, np.flatnonzero(short & able_to)))
        if found:
            found.sort(key=lambda i: -missing[i] / abs(b.needs[i]))
            told = [_lack(model, names, i, b) for i in found[:_SAID]]
            more = f"; and {len(found) - _SAID} more joints" if len(found) > _SAID else ""
            yield f"{'; '.join(told)}{more}: {remedy}"


def _lack(model: mujoco.MjModel, names: tuple[str, ...], dof: int, b: _Balance) -> str:
    """What a direction needs, and what its actuators have."""
    unit = ""
    if metric(model):
        unit = " N m" if turns(model)[dof] else " N"
    own = [i for i in range(model.nactuator) if b.moments[i, dof] != 0.0]
    need = f"{names[dof]} needs {abs(b.needs[dof]):.2g}{unit} to stay where it starts"
    if not own:
        return f"{need}, and no actuator moves it"
    called = " and ".join(model.actuator(i).name or f"actuator {i}" for i in own[:_SAID])
    return f"{need}, {called} {'has' if len(own) == 1 else 'have'} {b.able[dof]:.2g}{unit}"


def control_ends(model: mujoco.MjModel) -> Array:
    """Lowest and highest control, (nu, 2), infinite without; of muscles what MuJoCo clamps to."""
    ends = np.stack(control_limits(model), axis=1)
    muscles = model.actuator_ctrladr[model.actuator_dyntype == int(mujoco.mjtDyn.mjDYN_MUSCLE)]
    ends[muscles] = np.clip(ends[muscles], 0.0, 1.0)
    return ends


def _forces(model: mujoco.MjModel, qpos: Array) -> Array:
    """Lowest and highest force of each actuator at rest at a pose, (nactuator, 2)."""
    data, found = mujoco.MjData(model), []
    controls = control_ends(model)
    activations = np.tile((-math.inf, math.inf), (model.na, 1))
    for i in map(int, np.flatnonzero(model.actuator_actnum)):
        at = model.actuator_actadr[i] + model.actuator_actnum[i] - 1
        activations[at] = controls[model.actuator_ctrladr[i]]
        if model.actuator_actlimited[i]:
            activations[at] = model.actuator_actrange[i]
    big = 1e6  # stands for no limit
    for side in (0, 1):
        data.qpos[:] = qpos
        mujoco.mj_fwdPosition(model, data)
        data.ctrl[:] = np.clip(controls[:, side], -big, big)
        data.act[:] = np.clip(activations[:, side], -big, big)
        mujoco.mj_fwdActuation(model, data)
        found.append(data.actuator_force.copy())
    forces = np.sort(np.array(found).T, axis=1)
    for i in range(model.nactuator):
        if not np.isfinite(controls[model.actuator_ctrladr[i]]).all():
            limited = model.actuator_forcelimited[i]
            forces[i] = model.actuator_forcerange[i] if limited else (-math.inf, math.inf)
    return np.array(forces)


def _constrained(model: mujoco.MjModel, data: Any) -> tuple[Bools, Bools]:
    """Directions that equality constraints act on, (nv,), and those that limits or contacts may
    carry as well."""
    J = np.reshape(data.efc_J, (-1, model.nv))[: data.nefc] != 0.0
    of, kinds = mujoco.mjtConstraint, np.array(data.efc_type[: data.nefc], dtype=int)
    dry = (int(of.mjCNSTR_FRICTION_DOF), int(of.mjCNSTR_FRICTION_TENDON))
    equal = J[kinds == int(of.mjCNSTR_EQUALITY)].any(axis=0)
    return np.array(equal), np.array(J[~np.isin(kinds, dry)].any(axis=0))


def turns(model: mujoco.MjModel) -> Bools:
    """Which directions are measured in rad, (nv,)."""
    found: list[bool] = []
    for kind in map(int, model.jnt_type):
        found += ((False,) * 3 + (True,) * 3, (True,) * 3, (False,), (True,))[kind]
    return np.array(found, dtype=np.bool_)


def _free(model: mujoco.MjModel) -> Bools:
    """Which directions are those of free and ball joints, (nv,)."""
    return np.less(model.jnt_type[model.dof_jntid], int(mujoco.mjtJoint.mjJNT_SLIDE))


def _above(model: mujoco.MjModel, dof: int) -> Bools:
    """The direction and those between it and the world, (nv,)."""
    found = np.zeros(model.nv, dtype=np.bool_)
    while dof >= 0:
        found[dof] = True
        dof = int(model.dof_parentid[dof])
    return found
