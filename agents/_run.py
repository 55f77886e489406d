"""Simulations under way in a `mujoco.batch`, and MuJoCo's warnings, which go to the log."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from mujoco.batch import Batch
from mujoco.batch import SimulationError as BatchError

from gps.agents._kernels import apply, observe
from gps.agents._model import ENTRIES, JACOBIANS, WARMSTART, Compiled, mocap_poses, put_mocap
from gps.agents.actions import HISTORY, MOCAP, MocapAt
from gps.agents.base import Failures, entry_indices
from gps.types import Array, Layout

log = logging.getLogger(__name__)

_NONE = int(mujoco.mjtStage.mjSTAGE_NONE)
_WARNINGS = {
    int(mujoco.mjtWarning.mjWARN_INERTIA): "near-singular inertia matrix",
    int(mujoco.mjtWarning.mjWARN_CONTACTFULL): "contact list full",
    int(mujoco.mjtWarning.mjWARN_CNSTRFULL): "constraint list full",
    int(mujoco.mjtWarning.mjWARN_BADQPOS): "bad number in qpos",
    int(mujoco.mjtWarning.mjWARN_BADQVEL): "bad number in qvel",
    int(mujoco.mjtWarning.mjWARN_BADQACC): "bad number in qacc (unstable)",
    int(mujoco.mjtWarning.mjWARN_BADCTRL): "bad number in ctrl",
}
NO_ARRAY = np.empty((0, 0, 0, 0))
NO_NOISE = np.empty((1, 0, 0))


class Setup:
    """What all simulations of an agent have in common: what is computed, read and recorded.

    everything: the entries in the order in which the kernel finds them; layout and obs_layout: the
    selected ones. stage: the last stage that is computed at a new state. noisy: the values of the
    observation that get noise. limit: largest size of each value of `everything`, (n,).
    """

    def __init__(
        self,
        everything: Layout,
        layout: Layout,
        obs_layout: Layout,
        *,
        stage: int,
        sensors: bool,
        limit: Array,
        noisy: np.ndarray,
    ) -> None:
        self.layout, self.no = layout, obs_layout.size
        self.stage, self.limit = stage, limit
        held = (HISTORY, MOCAP, WARMSTART)
        self.n_memory = sum(everything.length(n) for n in held if n in everything.names)
        self.warm = WARMSTART in everything.names
        self.fields = ("site_xpos", "cdof", "subtree_com", *(("sensordata",) if sensors else ()))
        self._state = entry_indices(everything, layout.names)
        self._everything = everything
        self._view = entry_indices(everything, obs_layout.names)
        self._noisy = noisy
        self._columns = tuple(
            layout.slice(n).start if n in layout.names else -1 for n in ENTRIES[:2]
        )
        self._full = np.empty(everything.size)

    def inputs(
        self, batch: Batch, compiled: Compiled, memory: Array | None = None
    ) -> tuple[Any, ...]:
        """What `observe` reads: the simulator's live arrays, then where things lie in them."""
        if memory is None:
            memory = np.zeros((batch.nsim, self.n_memory))
        site_xpos, cdof, com, *sensors = map(batch.bind, self.fields)
        sensordata = sensors[0] if sensors else locked(np.empty((len(cdof), 0)))
        at = (offset(batch, "qpos"), offset(batch, "qvel"))
        live = (site_xpos, cdof, com, sensordata, memory, batch.warning)
        maps = (*compiled.maps, self._noisy, self._state, self._view)
        return (batch.state, *at, *live, *maps, *self._columns, self._full)

    def limits(self, names: Sequence[str]) -> Array:
        """The largest size of each value of these entries."""
        return self.limit[entry_indices(self._everything, names)]

    def outside(self, x: Array, model: mujoco.MjModel) -> str:
        """What is wrong with a state (nx,), and which of its values; empty if nothing is."""
        for name in self.layout.names:
            values, limits = x[self.layout.slice(name)], self.limits((name,))
            for i in map(int, np.flatnonzero(~(np.abs(values) <= limits))):
                joint = name in ENTRIES[:2] and model.joint(model.dof_jntid[i]).name
                where = f"{name} of {joint!r}" if joint else f"{name}, value {i}"
                if np.isnan(values[i]):
                    return f"the state is NaN ({where})"
                return f"the state left +-{limits[i]:g} ({where})"
        return ""

    def reset(self, batch: Batch, begin: Start, start: Array, ids: np.ndarray | None) -> None:
        """Put simulations at their starts (N, nq + nv), with nothing left of what they did."""
        model = begin.model
        where = slice(None) if ids is None else ids
        for name in self.fields:
            batch.bind(name)  # filled by the forward() below
        led = (batch.bind("xpos"), batch.bind("xquat")) if begin.led else ()
        batch.reset(ids, stage=_NONE)
        nq = model.nq
        batch.bind("qpos")[where], batch.bind("qvel")[where] = start[where, :nq], start[where, nq:]
        if model.nmocap:
            pos, quat = batch.bind("mocap_pos"), batch.bind("mocap_quat")
            for live, given in zip((pos, quat), begin.mocap, strict=True):
                live[where] = np.broadcast_to(given, live.shape)[where]
        if model.na:
            batch.bind("act")[where] = begin.act
        if begin.ctrl.any():
            batch.bind("ctrl")[where] = begin.ctrl
            history = batch.bind("history")
            for i in np.flatnonzero(model.actuator_historyadr >= 0):
                # times are those of a reset; the controls count as applied before
                kept, at = model.actuator_history[i, 0], model.actuator_historyadr[i] + 2
                first, count = model.actuator_ctrladr[i], model.actuator_ctrlnum[i]
                values = np.tile(begin.ctrl[first : first + count], kept)
                history[where, at + kept : at + kept + len(values)] = values
        batch.forward(ids, stage=self.stage)
        if led and (start[where, :nq] != begin.qpos).any():
            for n in np.arange(len(start)) if ids is None else ids:
                begin.compiled.actions.settle(begin.led, pos[n], quat[n], *(a[n] for a in led))
            batch.forward(ids, stage=self.stage)

    def empty_jacobians(self, N: int, T: int) -> dict[str, Array]:
        """Zeros for d entry / dx of the entries that have it, name -> (N, T, size, nx)."""
        names, nx = self.layout.names, self.layout.size
        return {
            name: np.zeros((N, T, self.layout.length(name), nx))
            for name, needed in JACOBIANS.items()
            if name in names and all(n in names for n in needed)
        }


@dataclass(frozen=True, eq=False)
class Start:
    """What a condition begins with."""

    compiled: Compiled
    model: mujoco.MjModel  # shared by conditions that differ in where mocap bodies begin
    qpos: Array
    qvel: Array
    act: Array
    ctrl: Array  # what actuators that no action controls keep
    keyed: bool  # whether the controls come from a keyframe
    mocap: tuple[Array, Array]  # where mocap bodies begin, ([N,] nmocap, 3) and (..., 4)
    led: tuple[int, ...]  # numbers of those that begin where their weld is at rest

    def poses(self, model: mujoco.MjModel) -> tuple[Array, Array]:
        """`mocap`, shifted as the bodies are in another model than the condition's own."""
        (own, _), (pos, _) = mocap_poses(self.model), mocap_poses(model)
        place, quat = self.mocap
        return np.where(place == own, pos, place + (pos - own)), quat

    def placed(self) -> mujoco.MjModel:
        """A copy of the model, its mocap bodies where they begin."""
        model = copy.copy(self.model)
        put_mocap(model, self.mocap)
        return model


class Run:
    """N simulations under way, and the arrays that hold `rows` of their steps.

    A rollout keeps every step in a row of its own; one that is stepped from outside has one
    row. Each of the three parts of a step returns whether any sample is left. obs_noise: (T, N, n)
    what the noisy values of the observation get; from step T on it begins again. positions: whether
    `poses` (rows, N, nq + 7 nmocap) are kept too: positions, then the places of all mocap bodies,
    then their quaternions.
    """

    def __init__(
        self,
        setup: Setup,
        batch: Batch,
        begin: Start,
        condition: int,
        start: Array,
        rows: int,
        obs_noise: Array = NO_NOISE,
        *,
        positions: bool = False,
    ) -> None:
        N, compiled = len(start), begin.compiled
        model, self._actions = compiled.model, compiled.actions
        self._setup, self._batch, self._begin = setup, batch, begin
        self._start, self._obs_noise = start, obs_noise
        self._poses = (batch.bind("xpos"), batch.bind("xquat")) if self._actions.mocap else None
        setup.reset(batch, begin, start, None)
        self._states, self._ctrl_at, self._mocap = (
            batch.state,
            offset(batch, "ctrl"),
            MocapAt.of(batch),
        )
        self._columns = self._ctrl_at + self._actions.controls
        self._memory = np.zeros((N, setup.n_memory))
        self._actions.begin(self._memory, self._states, begin.ctrl, self._mocap)
        self._inputs = setup.inputs(batch, compiled, self._memory)
        self._limit, self._substeps, self._stage = (
            setup.limit,
            compiled.timing.substeps,
            setup.stage,
        )
        self.X, self.U = (
            np.empty((rows, N, setup.layout.size)),
            np.empty((rows, N, self._actions.nu)),
        )
        self.obs = np.empty((rows, N, setup.no))
        drawn = model.nq + 7 * model.nmocap
        self.poses = np.empty((rows, N, drawn)) if positions else None
        self.jacobians = setup.empty_jacobians(N, rows)
        self._J, self._V = (self.jacobians.get(name, NO_ARRAY) for name in ENTRIES[2:])
        self._bad = np.zeros(N, dtype=np.bool_)
        self._alive: np.ndarray | None = None
        self.failures = Failures(condition, compiled.timing.text)
        self.quiet = warnings_to_log

    def restart(self, memory: Array | None = None, **fields: Array) -> None:
        """Give the simulations, which are at their starts, other values (N, n) of state fields of
        the simulator (qpos, qvel, act), and of the state entries `history` and `mocap`."""
        for name, values in fields.items():
            self._batch.bind(name)[:] = values
        if memory is not None:
            self._actions.put(memory, self._batch, self._begin.model, self._substeps)
            self._memory[:, : memory.shape[1]] = memory
        self._batch.forward(stage=self._stage)

    def memory(self, size: int) -> Array:
        """The state entries `history` and `mocap` of the first simulation, (size,)."""
        return self._memory[0, :size].copy()

    def sensors(self) -> Array:
        """All sensors (N, nsensordata), live; to be asked for before the first step.

        Those of accelerations and forces are those of the simulator's last step, if no entry of
        the agent is one.
        """
        sensors: Array = self._batch.bind("sensordata")
        return sensors

    def observe(self, t: int, row: int) -> bool:
        """Write the states and observations of step t into a row, and check them."""
        X, obs, bad = self.X, self.obs, self._bad
        noise = self._obs_noise[t % len(self._obs_noise)]
        if self._setup.warm:
            warm = self._batch.bind("qacc_warmstart")
            self._memory[:, -warm.shape[1] :] = warm
        if self.poses is not None:
            nq, at = self._begin.model.nq, self._mocap.pos
            self.poses[row, :, :nq] = self._batch.qpos
            moved = self.poses.shape[2] - nq
            self.poses[row, :, nq:] = self._states[:, at : at + moved]
        if not observe(row, self._limit, *self._inputs, noise, X, obs, self._J, self._V, bad):
            return True
        for i in np.flatnonzero(bad):
            outside = self._setup.outside(X[row, i], self._begin.model)
            self.failures.add(i, t, reason(self._batch.warning[i], outside))
        goes_on = self._set_aside(bad)
        X[row, bad], obs[row, bad] = X[0, bad], obs[0, bad]
        return goes_on

    def apply(self, t: int, row: int, u: Array) -> bool:
        """Clip the actions (N, nu) of step t into a row and hand them to the simulator."""
        bad, actions, states = self._bad, self._actions, self._states
        done = self.U[row]
        wrong = apply(u, actions.low, actions.high, done, states, self._columns, actions.shift, bad)
        if self._poses is not None:
            actions.move(done, states, self._poses, self._mocap)
        if self._memory.size:
            actions.remember(self._memory, states, self._ctrl_at, self._mocap)
        if not wrong:
            return True
        for i in np.flatnonzero(bad):
            self.failures.add(i, t, "the policy's action is NaN or infinite")
        return self._set_aside(bad)

    def advance(self, t: int) -> bool:
        """Simulate from step t to the next."""
        try:
            self._batch.step(self._alive, nstep=self._substeps, stage=self._stage)
        except BatchError:
            bad = self._batch.status != 0
            for i in np.flatnonzero(bad):
                self.failures.add(i, t, f"MuJoCo: {self._batch.error(int(i))}")
            return self._set_aside(bad)
        return True

    def _set_aside(self, bad: np.ndarray) -> bool:
        """Stop the samples that failed, at their configured start; whether others are left."""
        start, model = self._start, self._begin.model
        safe = np.concatenate((model.qpos0, np.zeros(model.nv)))
        rest = np.where(np.abs(start) < mujoco.mjMAXVAL, start, safe)
        self._setup.reset(self._batch, self._begin, rest, np.flatnonzero(bad).astype(np.int32))
        left = [i for i in range(len(start)) if i not in self.failures]
        self._alive = np.array(left, dtype=np.int32)
        return bool(left)


class Guarded:
    """A model that fails where a rollout of the agent would, and warns in the log only."""

    def __init__(self, model: Any, limit: Array) -> None:
        self._model, self._limit = model, limit
        self.nx, self.nu = model.nx, model.nu

    def rollout(self, *args: Array) -> tuple[Array, Array]:
        """See `gps.control.models.Model`; NaN from where a trajectory leaves the limit."""
        with warnings_to_log():
            states, actions = self._model.rollout(*args)
        # MuJoCo replaces a control that it finds too large by zero
        bad = ~(np.abs(actions) <= mujoco.mjMAXVAL).all(axis=2)
        bad[:, 1:] = bad[:, :-1]  # an action shows in the next state
        bad[:, 0] = False
        bad |= ~(np.abs(states) <= self._limit).all(axis=2)
        states[np.logical_or.accumulate(bad, axis=1)] = np.nan
        return states, actions

    def jacobians(self, X: Array, U: Array) -> Array:
        """See `gps.control.models.Model`."""
        with warnings_to_log():
            F: Array = self._model.jacobians(X, U)
        return F


class _Handler:
    """MuJoCo's warning handler, of which the process has one for all of its threads."""

    def __init__(self) -> None:
        self._lock, self._users, self._before = threading.Lock(), 0, None

    def enter(self) -> None:
        """Send warnings to the log, unless another thread has done so already."""
        with self._lock:
            if self._users == 0:
                self._before = mujoco.get_mju_user_warning()
                mujoco.set_mju_user_warning(lambda text: log.debug("MuJoCo: %s", text))
            self._users += 1

    def leave(self) -> None:
        """Put back what was there before, when no other thread is inside."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                mujoco.set_mju_user_warning(self._before)


_handler = _Handler()


@contextmanager
def warnings_to_log() -> Iterator[None]:
    """MuJoCo's warnings go to the log, not to stderr and a file in the current folder."""
    _handler.enter()
    try:
        yield
    finally:
        _handler.leave()


def locked(array: Array) -> Array:
    """A read-only view."""
    view = array.view()
    view.flags.writeable = False
    return view


def offset(batch: Batch, name: str) -> int:
    """Where a state field begins in a row of `batch.state`."""
    return int(batch.bind(name).ctypes.data - batch.state.ctypes.data) // batch.state.itemsize


def reason(warning: np.ndarray, outside: str) -> str:
    """What a sample's warning counters say, or else that its state is not acceptable."""
    seen = [_WARNINGS.get(int(k), f"warning {k}") for k in np.flatnonzero(warning[:, 1])]
    if seen:
        return f"MuJoCo warning: {', '.join(seen)}"
    return outside or "a position or velocity is NaN or beyond MujocoConfig.limit"
