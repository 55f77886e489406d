"""Numba kernels of the MuJoCo agent: one call before and one after the policy, per step.

They take contiguous arrays whose shapes the agent has checked, and return the number of samples
with something wrong, marked in `bad`. The simulator's state comes as its whole rows: a view of one
component counts as contiguous for a single sample only, and would compile everything again.

The directions of a ball joint's velocity, and the three that turn a free joint, are a "turn": they
share one rotation, and their positions are a rotation vector from a reference quaternion.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numba import njit

from gps.types import Array


@njit(cache=True, nogil=True)
def _rotation_vector(
    rows: Array,  # (N, nstate)
    i: int,
    at: int,  # where the quaternion begins in the row; its length does not matter
    ref: Array,  # (4,) unit quaternion: where the vector is zero
    out: Array,  # (3,) rotation vector r: quaternion = ref exp(r), |r| <= pi
    Jr: Array,  # (3, 3) right Jacobian of SO(3): exp(r + d) = exp(r) exp(Jr d) to first order
) -> None:
    p0, p1, p2, p3 = ref[0], -ref[1], -ref[2], -ref[3]
    q0, q1, q2, q3 = rows[i, at], rows[i, at + 1], rows[i, at + 2], rows[i, at + 3]
    w = p0 * q0 - p1 * q1 - p2 * q2 - p3 * q3
    x = p0 * q1 + p1 * q0 + p2 * q3 - p3 * q2
    y = p0 * q2 - p1 * q3 + p2 * q0 + p3 * q1
    z = p0 * q3 + p1 * q2 - p2 * q1 + p3 * q0
    s = math.sqrt(x * x + y * y + z * z)
    angle = 2.0 * math.atan2(s, w)
    if angle > math.pi:
        angle -= 2.0 * math.pi
    scale = angle / s if s > 1e-300 else 0.0
    x, y, z = scale * x, scale * y, scale * z
    out[0], out[1], out[2] = x, y, z
    h = angle * angle
    if h < 1e-4:  # the quotients below lose their digits
        a, b = 0.5 - h / 24.0 + h * h / 720.0, 1.0 / 6.0 - h / 120.0 + h * h / 5040.0
    else:
        a, b = (1.0 - math.cos(angle)) / h, (angle - math.sin(angle)) / (angle * h)
    # I - a [r] + b [r]^2
    Jr[0, 0], Jr[1, 1], Jr[2, 2] = (
        1.0 - b * (y * y + z * z),
        1.0 - b * (x * x + z * z),
        1.0 - b * (x * x + y * y),
    )
    Jr[0, 1], Jr[1, 0] = a * z + b * x * y, -a * z + b * x * y
    Jr[0, 2], Jr[2, 0] = -a * y + b * x * z, a * y + b * x * z
    Jr[1, 2], Jr[2, 1] = a * x + b * y * z, -a * x + b * y * z


@njit(cache=True, nogil=True)
def _columns_times(M: Array, i: int, t: int, row: int, col: int, Jr: Array) -> None:
    """Three rows of M[i, t], their three columns from `col`, times Jr."""
    for r in range(row, row + 3):
        a, b, c = M[i, t, r, col], M[i, t, r, col + 1], M[i, t, r, col + 2]
        for k in range(3):
            M[i, t, r, col + k] = a * Jr[0, k] + b * Jr[1, k] + c * Jr[2, k]


@njit(cache=True, nogil=True)
def _observe(
    t: int,
    limit: Array,  # (n,) of every value of `full`: its largest size, unless it is of memory
    rows: Array,  # (N, nstate) the simulator's states
    qpos_at: int,  # where joint positions begin in a row
    qvel_at: int,
    site_xpos: Array,  # (N, nsite, 3)
    cdof: Array,  # (N, nv, 6) motion axes: angular, linear at the tree's centre of mass
    com: Array,  # (N, nbody, 3)
    sensordata: Array,  # (N, nsensordata)
    memory: Array,  # (N, nm) entries that hold what earlier actions left
    warning: Array,  # (N, kinds, 2) int32: last info, count
    sites: Array,  # (ns,) int64
    roots: Array,  # (ns,) int64 root body of the site's tree
    moves: Array,  # (ns, nv) whether the joint moves the site
    pos_at: Array,  # (nv,) int64 where each joint position lies among the positions of a row
    last: Array,  # (nv,) int64 the last direction of the same turn; the direction itself elsewhere
    turns: Array,  # (nb, 2) int64 first direction of a turn, where its quaternion lies
    refs: Array,  # (nb, 4) reference quaternions
    extra: Array,  # (ne,) int64 values of a row that are entries as they are
    sensors: Array,  # (nk,) int64 which values of `sensordata` are entries
    noisy: Array,  # (nn,) int64 values of the observation that `obs_noise` is added to
    state: Array,  # (nx,) int64 where each state value lies in `full`
    view: Array,  # (no,) int64 likewise for the observation
    pos_col: int,  # column of joint_pos in the state, -1 for none
    vel_col: int,
    full: Array,  # (2 nv + 6 ns + ne + nm + nk,) scratch
    obs_noise: Array,  # (N, nn) of this step
    X: Array,  # (T, N, nx)
    obs: Array,  # (T, N, no)
    J: Array,  # (N, T, 3 ns, nx) d end_points / dx; may have no samples
    V: Array,  # (N, T, 3 ns, nx) d end_point_velocities / dx
    bad: Array,  # (N,) bool
) -> int:
    N, nv = cdof.shape[:2]
    ns, nb, ne, nk = sites.shape[0], turns.shape[0], extra.shape[0], sensors.shape[0]
    nm = memory.shape[1]
    write_J, write_V = J.shape[0] > 0, V.shape[0] > 0
    col = np.empty((nv, 3))  # d site / d q of one site
    Jr = np.empty((nb, 3, 3))
    wrong = 0
    for i in range(N):
        for j in range(nv):
            full[j] = rows[i, qpos_at + pos_at[j]]
            full[nv + j] = rows[i, qvel_at + j]
        for b in range(nb):
            first, q = turns[b, 0], qpos_at + turns[b, 1]
            _rotation_vector(rows, i, q, refs[b], full[first : first + 3], Jr[b])
        for s in range(ns):
            root = roots[s]
            p0, p1, p2 = (
                site_xpos[i, sites[s], 0],
                site_xpos[i, sites[s], 1],
                site_xpos[i, sites[s], 2],
            )
            r0, r1, r2 = p0 - com[i, root, 0], p1 - com[i, root, 1], p2 - com[i, root, 2]
            v0 = v1 = v2 = 0.0
            for j in range(nv):
                if moves[s, j]:
                    a0, a1, a2 = cdof[i, j, 0], cdof[i, j, 1], cdof[i, j, 2]
                    c0 = cdof[i, j, 3] + a1 * r2 - a2 * r1
                    c1 = cdof[i, j, 4] + a2 * r0 - a0 * r2
                    c2 = cdof[i, j, 5] + a0 * r1 - a1 * r0
                    col[j, 0], col[j, 1], col[j, 2] = c0, c1, c2
                    v0 += c0 * rows[i, qvel_at + j]
                    v1 += c1 * rows[i, qvel_at + j]
                    v2 += c2 * rows[i, qvel_at + j]
                    if write_J:
                        J[i, t, 3 * s, pos_col + j] = c0
                        J[i, t, 3 * s + 1, pos_col + j] = c1
                        J[i, t, 3 * s + 2, pos_col + j] = c2
            k = 2 * nv + 3 * s
            full[k], full[k + 1], full[k + 2] = p0, p1, p2
            k += 3 * ns
            full[k], full[k + 1], full[k + 2] = v0, v1, v2
            if write_V:
                # joints are numbered from the root: turning joint j turns the columns of the later
                # joints with it, and moves the point about the axes of the earlier ones; the
                # columns of one turn are turned together
                w0 = w1 = w2 = 0.0  # angular velocity from the joints before j
                for j in range(nv):
                    if moves[s, j]:
                        a0, a1, a2 = cdof[i, j, 0], cdof[i, j, 1], cdof[i, j, 2]
                        c0, c1, c2 = col[j, 0], col[j, 1], col[j, 2]
                        # v is the share of joints j and later
                        g0 = a1 * v2 - a2 * v1 + w1 * c2 - w2 * c1
                        g1 = a2 * v0 - a0 * v2 + w2 * c0 - w0 * c2
                        g2 = a0 * v1 - a1 * v0 + w0 * c1 - w1 * c0
                        V[i, t, 3 * s, pos_col + j] = g0
                        V[i, t, 3 * s + 1, pos_col + j] = g1
                        V[i, t, 3 * s + 2, pos_col + j] = g2
                        V[i, t, 3 * s, vel_col + j] = c0
                        V[i, t, 3 * s + 1, vel_col + j] = c1
                        V[i, t, 3 * s + 2, vel_col + j] = c2
                        if last[j] != j:
                            continue
                        first = j
                        while first > 0 and last[first - 1] == j:
                            first -= 1
                        for m in range(first, j + 1):
                            q = rows[i, qvel_at + m]
                            v0, v1, v2 = v0 - col[m, 0] * q, v1 - col[m, 1] * q, v2 - col[m, 2] * q
                            w0 = w0 + cdof[i, m, 0] * q
                            w1 = w1 + cdof[i, m, 1] * q
                            w2 = w2 + cdof[i, m, 2] * q
            for b in range(nb):
                if moves[s, turns[b, 0]]:
                    if write_J:
                        _columns_times(J, i, t, 3 * s, pos_col + turns[b, 0], Jr[b])
                    if write_V:
                        _columns_times(V, i, t, 3 * s, pos_col + turns[b, 0], Jr[b])
        good = True
        k = full.shape[0] - nk - nm - ne
        for j in range(ne):
            full[k + j] = rows[i, extra[j]]
        k += ne
        for j in range(k):
            good = good and abs(full[j]) <= limit[j]  # NaN compares false
        for j in range(nm):
            full[k + j] = memory[i, j]
        k += nm
        for j in range(nk):
            full[k + j] = sensordata[i, sensors[j]]
            good = good and math.isfinite(full[k + j])  # forces may be large
        for j in range(warning.shape[1]):
            good = good and warning[i, j, 1] == 0
        bad[i] = not good
        wrong += not good
        for j in range(state.shape[0]):
            X[t, i, j] = full[state[j]]
        for j in range(view.shape[0]):
            obs[t, i, j] = full[view[j]]
        for j in range(noisy.shape[0]):
            obs[t, i, noisy[j]] += obs_noise[i, j]
    return wrong


@njit(cache=True, nogil=True)
def _apply(
    u: Array,  # (N, nu)
    low: Array,  # (nu,)
    high: Array,  # (nu,)
    U: Array,  # (N, nu) what is recorded
    rows: Array,  # (N, nstate) the simulator's states
    columns: Array,  # (nc,) int64 where in a row the controls of the first actions lie
    shift: Array,  # (nc,) added to them
    bad: Array,  # (N,) bool
) -> int:
    N, nu = u.shape
    wrong = 0
    for i in range(N):
        good = True
        for j in range(nu):
            v = u[i, j]
            if not math.isfinite(v):
                good = False
                v = 0.0
            v = min(max(v, low[j]), high[j])
            U[i, j] = v
            if j < columns.shape[0]:
                rows[i, columns[j]] = v + shift[j]
        bad[i] = not good
        wrong += not good
    return wrong


# what njit makes of a signature differs between numba's versions; the shapes are what matters
observe: Callable[..., int] = _observe
apply: Callable[..., int] = _apply
