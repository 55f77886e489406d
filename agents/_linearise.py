"""What a MuJoCo model says about a start: the controls that hold it, one control step near it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import mujoco
import numpy as np
from scipy.optimize import lsq_linear

from gps.agents._run import Run, warnings_to_log
from gps.types import Array, Layout, Linearisation

GRAVITY = 9.81
"""In m/s^2: with the size of a robot it gives the time in which it falls over."""
_NEWTON = 8  # steps at most; actuators are linear in their controls but for muscles and contacts
_ENOUGH = 1e-9
_RIDGE = 1e-4  # pull to the first guess, relative to what a control does
_WIDTH = 1e-4  # of central differences, in units of the entry's scale


def without_dry_friction(model: mujoco.MjModel) -> mujoco.MjModel:
    """A copy whose joints and tendons have none: at rest it hides what small forces do."""
    model = copy.copy(model)
    model.dof_frictionloss[:] = 0.0
    model.tendon_frictionloss[:] = 0.0
    return model


def control_limits(model: mujoco.MjModel) -> tuple[Array, Array]:
    """Lowest and highest control, (nu,) each; infinite where unlimited."""
    limited = model.actuator_ctrllimited.astype(bool)
    low, high = model.actuator_ctrlrange.T
    return np.where(limited, low, -np.inf), np.where(limited, high, np.inf)


def equilibrium(model: mujoco.MjModel, qpos: Array, ctrl: Array, act: Array) -> tuple[Array, Array]:
    """Controls and activations within their limits that hold a model at rest at `qpos`.

    They minimise the acceleration qacc' M qacc that is left, and the rates of the activations:
    where not all joints are driven, what the actuators pull at does not accelerate, and the rest
    falls as it likes, onto a floor too, which carries what it can. Of controls that hold equally
    well, those nearest to the first guess, `ctrl` and `act`. Gauss-Newton steps on `mj_forward`.
    """
    nu, na = model.nu, model.na
    data = mujoco.MjData(model)
    low, high = control_limits(model)
    bounded = model.actuator_actlimited.astype(bool)
    act_low, act_high = np.full(na, -np.inf), np.full(na, np.inf)
    for i in np.flatnonzero(bounded):
        where = slice(model.actuator_actadr[i], model.actuator_actadr[i] + model.actuator_actnum[i])
        act_low[where], act_high[where] = model.actuator_actrange[i]
    low, high = np.concatenate((low, act_low)), np.concatenate((high, act_high))
    guess = np.clip(np.concatenate((ctrl, act)), low, high)
    rate = 0.1  # s: activations at rest matter as much as speeds after this time

    def residual(y: Array) -> Array:
        """Acceleration in units of its kinetic metric, then the rates of the activations."""
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.ctrl[:], data.act[:] = qpos, y[:nu], y[nu:]
        mujoco.mj_forward(model, data)
        return np.concatenate((factor.T @ data.qacc, data.act_dot / rate))

    mujoco.mj_resetData(model, data)
    data.qpos[:] = qpos
    mujoco.mj_forward(model, data)
    M = np.zeros((model.nv, model.nv))
    mujoco.mj_fullM(model, data, M)
    factor = np.linalg.cholesky(M)
    widths = np.where(np.isfinite(high - low), high - low, 1.0 + np.abs(guess))
    with warnings_to_log():
        y, left = guess, residual(guess)
        scale = None
        for _ in range(_NEWTON):
            J = np.empty((len(left), nu + na))
            for i, h in enumerate(1e-4 * widths):
                up, down = y.copy(), y.copy()
                up[i], down[i] = min(y[i] + h, high[i]), max(y[i] - h, low[i])
                J[:, i] = (residual(up) - residual(down)) / (up[i] - down[i]) if h > 0 else 0.0
            if not (np.isfinite(J).all() and np.isfinite(left).all()):
                break
            if scale is None:  # the change of each unknown that matters alike
                norms = np.linalg.norm(J, axis=0)
                scale = np.where(norms > 1e-9 * norms.max(initial=0.0), norms, 1.0)
                scale[norms == 0] = 1.0
            rows = np.concatenate((J / scale, _RIDGE * np.eye(nu + na)))
            wanted = np.concatenate((-left, _RIDGE * scale * (guess - y)))
            box = (low - y) * scale, (high - y) * scale
            fixed = box[0] >= box[1]
            step = np.zeros(nu + na)
            if (~fixed).any():
                step[~fixed] = lsq_linear(
                    rows[:, ~fixed], wanted, (box[0][~fixed], box[1][~fixed]), tol=1e-13
                ).x
            step = np.clip(step, *box) / scale
            before = _total(left, scale * (y - guess))
            for share in (1.0, 0.5, 0.25, 0.1):
                new = np.clip(y + share * step, low, high)
                after = residual(new)
                if _total(after, scale * (new - guess)) < before:
                    break
            else:
                break
            moved = np.abs(scale * (new - y)).max(initial=0.0)
            y, left = new, after
            if moved < _ENOUGH * (1.0 + np.abs(scale * y).max(initial=0.0)):
                break
    return y[:nu], y[nu:]


def _total(left: Array, pulled: Array) -> float:
    """The objective of `equilibrium`."""
    value = float(left @ left + (_RIDGE * pulled) @ (_RIDGE * pulled))
    return value if np.isfinite(value) else np.inf


def direction_scales(model: mujoco.MjModel) -> tuple[Array, float]:
    """How large a deviation of each joint position is a large one, (nv,), and a time for it.

    1 rad of a turn, the model's size of a slide, and at most half of the joint's range; in s.
    """
    size = float(model.stat.extent)
    scales = np.ones(model.nv)
    for j in range(model.njnt):
        at, kind = model.jnt_dofadr[j], model.jnt_type[j]
        if kind in (mujoco.mjtJoint.mjJNT_FREE, mujoco.mjtJoint.mjJNT_SLIDE):
            scales[at : at + (3 if kind == mujoco.mjtJoint.mjJNT_FREE else 1)] = size
        one = kind in (mujoco.mjtJoint.mjJNT_SLIDE, mujoco.mjtJoint.mjJNT_HINGE)
        if one and model.jnt_limited[j]:
            low, high = model.jnt_range[j]
            scales[at] = max(min(scales[at], 0.5 * (high - low)), 1e-3 * scales[at])
    return scales, float(np.sqrt(size / GRAVITY))


def linearise(
    begin: Callable[[int], tuple[Run, Callable[[Array], None]]],
    state: Array,
    action: Array,
    *,
    widths: Array,
    large: Array,
    u_range: Array,
    layout: Layout,
    own: dict[str, Array],
    others: dict[str, float],
    dt: float,
    response_time: float,
) -> Linearisation:
    """Central differences of one control step from states near (ns,) under actions near (nu,).

    begin: makes N simulations, and the function that puts them into states (N, ns). widths: units
    of the differences, and large: large deviations of the state's values, (ns,) each. own: the
    entries of the agent's state that are values of the simulated state as they are, and which;
    others: what is a large deviation of other entries, if the first do not make up the whole state.
    """
    ns, nu, nx = len(state), len(action), layout.size
    u_width = np.where(np.isfinite(u_range), u_range, 1.0 + np.abs(action))
    h = _WIDTH * np.concatenate((widths, np.where(u_width > 0, u_width, 1.0)))
    z = np.concatenate((state, action)) + np.concatenate((np.zeros((1, ns + nu)), np.diag(h), -np.diag(h)))
    run, put = begin(len(z))
    put(z[:, :ns])
    with run.quiet():
        fine = run.observe(0, 0) and run.apply(0, 0, np.ascontiguousarray(z[:, ns:]))
        fine = fine and run.advance(0) and run.observe(1, 1)
    run.failures.raise_if_any()
    assert fine
    n = ns + nu
    applied = run.U[0, :, :]  # clipped, so that a width is what was left of it
    span = 2.0 * h
    span[ns:] = (applied[1 + ns : 1 + n] - applied[1 + n + ns :]).diagonal()
    span[span == 0] = np.inf
    G, D = (
        ((run.X[row, 1 : 1 + n] - run.X[row, 1 + n :]) / span[:, None]).T for row in (0, 1)
    )
    G = G[:, :ns]
    columns = np.full(ns, -1)
    x_scale = np.full(nx, np.inf)
    for name, where in own.items():
        columns[where] = np.arange(nx)[layout.slice(name)]
    back = np.zeros((ns, nx))  # state from the agent's: what it holds, else what follows from it
    if (columns >= 0).all():
        back[np.arange(ns), columns] = 1.0
        x_scale[columns] = large
    else:
        weighted = G * widths
        values = np.linalg.svd(weighted, compute_uv=False)
        if nx >= ns and values[-1] > 1e-6 * values[0]:
            back = widths[:, None] * np.linalg.pinv(weighted)
        x_scale[columns[columns >= 0]] = large[columns >= 0]
        for name, scale in others.items():
            x_scale[layout.slice(name)] = scale
    F = np.concatenate((D[:, :ns] @ back, D[:, ns:]), axis=1)
    x, u = run.X[0, 0], applied[0]
    return Linearisation(
        x=x,
        u=u,
        F=F,
        f=run.X[1, 0] - F @ np.concatenate((x, u)),
        x_scale=x_scale,
        u_range=u_range,
        layout=layout,
        dt=dt,
        response_time=response_time,
    )
