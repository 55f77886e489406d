"""What a MuJoCo model says about a start: the controls that hold it, one control step near it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import mujoco
import numpy as np
from scipy.optimize import lsq_linear

from gps.agents._run import Run
from gps.agents.actions import control_limits
from gps.agents.base import entry_indices
from gps.errors import GPSError
from gps.types import Array, Layout, Linearisation

_NEWTON = 8  # steps at most; actuators are linear in their controls but for muscles and contacts
_ENOUGH = 1e-9
_RATE = 0.1  # s: rates of activations matter as much as the accelerations after this time
_RIDGE = 1e-4  # pull to the first guess, relative to what a control does
_WIDTH = 1e-4  # of central differences, in units of the entry's scale
_OUTSIDE = 0.01  # share of a joint's range beyond it that is worth a word
_NARROWER, _NARROWED = 4, 1e-3  # tries, each with smaller differences where simulations failed


def smooth(model: mujoco.MjModel, qpos: Array) -> mujoco.MjModel:
    """A copy without what hides at rest what small forces do: dry friction and limits of joints
    and tendons; and without contacts, unless they may carry what the actuators move.

    They may where an actuator moves a joint behind one that none moves, such as a free base.
    """
    model, data = copy.copy(model), mujoco.MjData(model)
    model.dof_frictionloss[:] = 0.0
    model.tendon_frictionloss[:] = 0.0
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_LIMIT
    data.qpos[:] = qpos
    mujoco.mj_forward(model, data)
    driven = np.zeros(model.nv, dtype=np.bool_)
    driven[data.moment_colind[data.actuator_moment != 0.0]] = True
    behind = np.zeros(model.nv, dtype=np.bool_)
    for i, parent in enumerate(model.dof_parentid):  # parents come first
        behind[i] = parent >= 0 and (behind[parent] or not driven[parent])
    if not (driven & behind).any():
        model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT
    return model


def within_limits(model: mujoco.MjModel, qpos: Array) -> Array:
    """The pose with every hinge and slide inside its range: no control holds one against that."""
    qpos = qpos.copy()
    for j in _limited(model):
        at = model.jnt_qposadr[j]
        qpos[at] = np.clip(qpos[at], *model.jnt_range[j])
    return qpos


def outside_limits(model: mujoco.MjModel, qpos: Array) -> Iterator[str]:
    """The hinges and slides that are beyond their range, by a hundredth of it or more, in words."""
    for j in _limited(model):
        q, (low, high) = qpos[model.jnt_qposadr[j]], model.jnt_range[j]
        if max(low - q, q - high) > _OUTSIDE * (high - low):
            name = model.joint(j).name or f"joint {j}"
            yield f"{name} starts at {q:.4g}, outside of its range {low:.4g} to {high:.4g}"


def _limited(model: mujoco.MjModel) -> np.ndarray:
    """Numbers of the hinges and slides that have limits."""
    kinds = mujoco.mjtJoint
    single = np.isin(model.jnt_type, [int(kinds.mjJNT_SLIDE), int(kinds.mjJNT_HINGE)])
    return np.flatnonzero(single & model.jnt_limited.astype(bool))


class Statics:
    """A model at rest at a pose: the controls that hold it, and what they can do."""

    def __init__(self, model: mujoco.MjModel, qpos: Array, chosen: np.ndarray, ctrl: Array) -> None:
        """chosen: the controls that can be set; the others stay as in `ctrl` (nu,)."""
        self._real, model = model, copy.copy(model)
        # a servo far from its target pulls as hard as it can, whatever the target
        for limited in ("actuator_forcelimited", "jnt_actfrclimited", "tendon_actfrclimited"):
            getattr(model, limited)[:] = 0
        model.actuator_delay[:] = 0.0
        self.model, self._data = model, mujoco.MjData(model)
        self._data.qpos[:] = self._qpos = qpos
        mujoco.mj_forward(model, self._data)
        self.stands = bool(self._data.ncon)
        """Whether contacts have a part in it, see `smooth`."""
        self.M = np.zeros((model.nv, model.nv))
        mujoco.mj_fullM(model, self._data, self.M)
        self._factor = np.linalg.cholesky(self.M)
        self._unit = 1.0
        self._moment = np.zeros((model.nactuator, model.nv))  # d length / d position
        d = self._data
        sparse = d.actuator_moment, d.moment_rownnz, d.moment_rowadr, d.moment_colind
        mujoco.mju_sparse2dense(self._moment, *sparse)
        self.driven = self._moment != 0.0
        """Which joint directions each actuator moves at the pose, (nactuator, nv)."""
        # of forces: what gives the joints that are driven a large deviation in 1 s
        ask = (self.M.diagonal() * direction_scales(model)[0] ** 2)[self.driven.any(axis=0)]
        self._unit = float(np.sqrt(ask.max(initial=0.0))) or 1.0
        low, high = np.array([ctrl, ctrl])
        low[chosen], high[chosen] = (limit[chosen] for limit in control_limits(model))
        act_low, act_high = np.full(model.na, -np.inf), np.full(model.na, np.inf)
        for i in np.flatnonzero(model.actuator_actlimited):
            at = model.actuator_actadr[i]
            where = slice(at, at + model.actuator_actnum[i])
            act_low[where], act_high[where] = model.actuator_actrange[i]
        self._low, self._high = np.concatenate((low, act_low)), np.concatenate((high, act_high))

    def _forces(self, y: Array, moved: Array | None = None, qvel: Array | None = None) -> Array:
        """The acceleration in its kinetic metric, then the rates of the activations.

        In a unit that goes with those of length and mass: the two are compared.
        """
        model, data, nu = self.model, self._data, self.model.nu
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.ctrl[:], data.act[:] = self._qpos, y[:nu], y[nu:]
        if moved is not None:
            mujoco.mj_integratePos(model, data.qpos, moved, 1.0)
        if qvel is not None:
            data.qvel[:] = qvel
        mujoco.mj_forward(model, data)
        return np.concatenate((self._factor.T @ data.qacc / self._unit, data.act_dot / _RATE))

    def _inertia(self, moved: Array) -> Array:
        """The diagonal of the mass matrix at a pose that was moved, (nv,)."""
        model, data = self.model, self._data
        data.qpos[:] = self._qpos
        mujoco.mj_integratePos(model, data.qpos, moved, 1.0)
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_tendon(model, data)
        mujoco.mj_makeM(model, data)
        M = np.zeros((model.nv, model.nv))
        mujoco.mj_fullM(model, data, M)
        return M.diagonal()

    def _derivatives(self, y: Array) -> Array:
        """d forces / d y by central differences, one-sided at a limit, (nv+na, nu+na)."""
        width = np.where(np.isfinite(self._high - self._low), self._high - self._low, 1 + np.abs(y))
        J = np.zeros((self.model.nv + self.model.na, len(y)))
        for i, h in enumerate(1e-4 * width):
            up, down = y.copy(), y.copy()
            up[i], down[i] = min(y[i] + h, self._high[i]), max(y[i] - h, self._low[i])
            if up[i] > down[i]:
                J[:, i] = (self._forces(up) - self._forces(down)) / (up[i] - down[i])
        return J

    def equilibrium(self, ctrl: Array, act: Array) -> tuple[Array, Array]:
        """Controls and activations within their limits that hold the pose.

        They minimise the acceleration qacc' M qacc that is left, and the rates of the activations:
        where not all joints are driven, what the actuators pull at does not accelerate, and the
        rest falls as it likes, onto a floor too, which carries what it can. Of controls that hold
        equally well, those nearest to the first guess, `ctrl` and `act`. Gauss-Newton steps.
        """
        low, high, nu = self._low, self._high, self.model.nu
        guess = y = np.clip(np.concatenate((ctrl, act)), low, high)
        left, scale = self._forces(y), np.ones(0)
        for _ in range(_NEWTON):
            J = self._derivatives(y)
            if not (np.isfinite(J).all() and np.isfinite(left).all()):
                break
            if not len(scale):  # the change of each unknown that matters alike
                norms = np.linalg.norm(J, axis=0)
                scale = np.where(norms > 1e-9 * norms.max(initial=0.0), norms, 1.0)
            rows = np.concatenate((J / scale, _RIDGE * np.eye(len(y))))
            wanted = np.concatenate((-left, _RIDGE * scale * (guess - y)))
            box, step = ((low - y) * scale, (high - y) * scale), np.zeros(len(y))
            free = box[0] < box[1]
            step[free] = lsq_linear(
                rows[:, free], wanted, (box[0][free], box[1][free]), tol=1e-13
            ).x
            before = _total(left, scale * (y - guess))
            for share in (1.0, 0.5, 0.25, 0.1):
                new = np.clip(y + share * step / scale, low, high)
                after = self._forces(new)
                if _total(after, scale * (new - guess)) < before:
                    break
            else:
                break
            moved = np.abs(scale * (new - y)).max(initial=0.0)
            y, left = new, after
            if moved < _ENOUGH * (1.0 + np.abs(scale * y).max(initial=0.0)):
                break
        return y[:nu], y[nu:]

    def _pushes(self, y: Array) -> Array:
        """The size of the force on each joint per unit of each control, which an activation
        follows, (nv, nu)."""
        model, nu = self.model, self.model.nu
        push = np.abs(self._unit * self._factor @ self._derivatives(y)[: model.nv])
        force = push[:, :nu].copy()
        for i in map(int, np.flatnonzero(model.actuator_actnum)):
            at = nu + int(model.actuator_actadr[i])
            own = push[:, at : at + model.actuator_actnum[i]]
            force[:, model.actuator_ctrladr[i]] += own.sum(axis=1)
        return force

    def driving_time(self, ctrl: Array, act: Array, scales: Array, u_range: Array) -> float:
        """Half of the time in which actuators at half of their range, u_range (nu,), accelerate a
        joint by its scale, in s: the median of the joints that actuators with a range drive."""
        force = self._pushes(np.concatenate((ctrl, act)))[:, np.isfinite(u_range)]
        rates = (force * u_range[np.isfinite(u_range)]).max(axis=1, initial=0.0)
        rates /= self.M.diagonal() * scales
        # what the other joints pull along, and rounding, is not driven
        driven = self.driven.any(axis=0) & (rates > 1e-9 * rates.max(initial=0.0))
        return 0.5 / float(np.sqrt(np.median(rates[driven]))) if driven.any() else np.inf

    def authority(self, ctrl: Array, act: Array, scales: Array, time: float) -> tuple[Array, Array]:
        """The change of each control that moves a joint that it drives by its scale, (nu,).

        In `time`, with all other joints held: the joint's inertia, damping and stiffness ask for
        the force (M_jj / time^2 + damping / time + stiffness) scale_j. Infinite for controls that
        drive nothing. The inertia is the largest of those at the pose and at poses with one joint
        moved by a third of its scale: an outstretched arm must not count as the light one that it
        is about its own axis.

        And half of the range of controls within which no force is at its limit, (nu,).
        """
        y, nv = np.concatenate((ctrl, act)), self.model.nv
        force, model = self._pushes(y), self.model
        thirds = np.diag(scales / 3)
        near = [self._inertia(moved) for moved in (*thirds, *-thirds)]
        inertia = np.max([self.M.diagonal(), *near], axis=0)
        ask = inertia / time**2
        for j in range(nv):
            h = np.zeros(nv)
            h[j] = 1e-4 * scales[j]
            stiffness, damping = (
                self._unit
                * self._factor[j]
                @ (self._forces(y, **{kind: h}) - self._forces(y, **{kind: -h}))[:nv]
                for kind in ("moved", "qvel")
            )
            ask[j] += (abs(stiffness) + abs(damping) / time) / (2 * h[j])
        most, real = np.full(nv, np.inf), self._real
        for joint in np.flatnonzero(real.jnt_actfrclimited):
            most[real.jnt_dofadr[joint]] = 0.5 * np.ptp(real.jnt_actfrcrange[joint])
        with np.errstate(all="ignore"):
            needed = 1.0 / (force / (ask * scales)[:, None]).max(axis=0, initial=0.0)
            reach = 1.0 / np.nan_to_num(force / most[:, None]).max(axis=0, initial=0.0)
        for i in map(int, np.flatnonzero(real.actuator_forcelimited)):
            pull = np.abs(self._moment[i]) @ force[:, model.actuator_ctrladr[i]]
            gain = pull / max(float(self._moment[i] @ self._moment[i]), 1e-300)
            if gain > 0:
                at = int(model.actuator_ctrladr[i])
                reach[at] = min(reach[at], 0.5 * np.ptp(real.actuator_forcerange[i]) / gain)
        return needed, reach


def _total(left: Array, pulled: Array) -> float:
    """The objective of `Statics.equilibrium`."""
    value = float(left @ left + (_RIDGE * pulled) @ (_RIDGE * pulled))
    return value if np.isfinite(value) else np.inf


def widen_slides(
    large: Array, statics: Statics, ctrl: Array, act: Array, u_range: Array, duration: float
) -> None:
    """Let a slide without limits deviate as far as its actuators take it, in place.

    By half of their range, u_range (nu,), in half of the rollout's duration (s); at least by the
    model's size, which says little of a body that moves freely, and at most by ten times that.
    """
    model, size = statics.model, float(statics.model.stat.extent)
    slides = (model.jnt_type == mujoco.mjtJoint.mjJNT_SLIDE) & ~model.jnt_limited.astype(bool)
    dofs = model.jnt_dofadr[slides]
    dofs = dofs[statics.driven[:, dofs].any(axis=0)]
    if not len(dofs):
        return
    needed, _ = statics.authority(ctrl, act, np.full(model.nv, size), 0.5 * duration)
    for dof in dofs:
        controls = model.actuator_ctrladr[statics.driven[:, dof]]
        reach = size * float(np.max(u_range[controls] / needed[controls]))
        large[dof] = np.clip(reach, size, 10.0 * size)


def direction_scales(model: mujoco.MjModel) -> tuple[Array, Array, float]:
    """Scales of joint positions (nv,), large deviations of them (nv,), and a time to correct them.

    1 rad of a turn, the model's size of a slide, and at most half of the joint's range; a free
    body has no large deviation. Half of the time in which gravity moves it by its size, in s;
    infinite without gravity.
    """
    size, scales = float(model.stat.extent), np.ones(model.nv)
    large, kinds = scales.copy(), mujoco.mjtJoint
    free, slide, hinge = map(int, (kinds.mjJNT_FREE, kinds.mjJNT_SLIDE, kinds.mjJNT_HINGE))
    for j, kind in enumerate(map(int, model.jnt_type)):
        at = model.jnt_dofadr[j]
        if kind == free:
            scales[at : at + 3], large[at : at + 6] = size, np.inf
        if kind == slide:
            scales[at] = size
        if kind in (slide, hinge):
            if model.jnt_limited[j]:
                low, high = model.jnt_range[j]
                scales[at] = max(min(scales[at], 0.5 * (high - low)), 1e-3 * scales[at])
            large[at] = scales[at]
    falls = not model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_GRAVITY
    gravity = float(np.linalg.norm(model.opt.gravity)) * falls
    return scales, large, 0.5 * float(np.sqrt(size / gravity)) if gravity else np.inf


def linearise(
    begin: Callable[[int], tuple[Run, Callable[[Array], None]]],
    state: Array,
    action: Array,
    *,
    widths: Array,
    large: Array,
    u_scale: Array,
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
    u_width = np.fmin(u_scale, u_range)
    u_width = np.where(np.isfinite(u_width) & (u_width > 0), u_width, 1.0 + np.abs(action))
    h, n = _WIDTH * np.concatenate((widths, u_width)), ns + nu
    for left in reversed(range(_NARROWER)):
        z = np.concatenate((state, action)) + np.concatenate(
            (np.zeros((1, n)), np.diag(h), -np.diag(h))
        )
        run, put = begin(len(z))
        put(z[:, :ns])
        with run.quiet():
            fine = run.observe(0, 0) and run.apply(0, 0, np.ascontiguousarray(z[:, ns:]))
            fine = fine and run.advance(0) and run.observe(1, 1)
        failed = [i for i in range(len(z)) if i in run.failures]
        if not failed:
            break
        if not left or failed[0] == 0:
            run.failures.raise_if_any()
        # a joint that damping all but locks, say, has no such velocity
        h[np.unique(np.subtract(failed, 1) % n)] *= _NARROWED
    assert fine
    applied = run.U[0, :, :]  # clipped, so that a width is what was left of it
    span = 2.0 * h
    span[ns:] = (applied[1 + ns : 1 + n] - applied[1 + n + ns :]).diagonal()
    span[span == 0] = np.inf
    G, D = (((run.X[row, 1 : 1 + n] - run.X[row, 1 + n :]) / span[:, None]).T for row in (0, 1))
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
        unit = np.linalg.norm(weighted, axis=1)  # entries have units of their own
        unit[unit == 0.0] = 1.0
        weighted /= unit[:, None]
        values = np.linalg.svd(weighted, compute_uv=False)
        if nx >= ns and values[-1] > 1e-6 * values[0]:
            back = widths[:, None] * np.linalg.pinv(weighted) / unit
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
        u_scale=u_scale,
        u_range=u_range,
        layout=layout,
        dt=dt,
        response_time=response_time,
    )


def require_entries(layout: Layout, names: Sequence[str], field: str) -> None:
    """GPSError where a state lacks entries of a linearisation; field: where they belong."""
    if lacking := [name for name in names if name not in layout.names]:
        raise GPSError(f"{', '.join(lacking)} not in {field}")


def after(found: Linearisation) -> Array:
    """The state one step later, (nx,)."""
    x: Array = found.F @ np.concatenate((found.x, found.u)) + found.f
    return x


def widened(
    found: Linearisation,
    layout: Layout,
    x: Array,
    x_after: Array,
    slopes: Mapping[str, Array],
) -> Linearisation:
    """A linearisation in a layout that has all of its entries, and others.

    x, x_after: the state (nx,) and that of the next step. slopes: d entry / dx, (size, nx), of
    others that follow from its entries; those without one are taken to stay as they are.
    """
    nx, own = layout.size, entry_indices(layout, found.layout.names)
    F, x_scale = np.zeros((nx, nx + len(found.u))), np.full(nx, np.inf)
    F[np.ix_(own, np.concatenate((own, np.arange(nx, F.shape[1]))))] = found.F
    x_scale[own] = found.x_scale
    for name, slope in slopes.items():
        F[layout.slice(name)] = slope @ F
    f = x_after - F @ np.concatenate((x, found.u))
    return replace(found, x=x, F=F, f=f, x_scale=x_scale, layout=layout)
