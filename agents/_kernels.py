"""Numba kernels of the MuJoCo world: one call before and one after the policy, per step.

They take contiguous arrays whose shapes the agent has checked, and give back the number of samples
with something wrong, marked in `bad`. The simulator's state comes as its whole rows: a view of one
component counts as contiguous for a single sample only, and would compile everything again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numba import njit

from gps.types import Array


@njit(cache=True, nogil=True)
def _observe(
    t: int,
    limit: float,
    rows: Array,  # (N, nstate) the simulator's states
    qpos_at: int,  # where joint positions begin in a row
    qvel_at: int,
    site_xpos: Array,  # (N, nsite, 3)
    cdof: Array,  # (N, nv, 6) motion axes: angular, linear at the tree's centre of mass
    com: Array,  # (N, nbody, 3)
    warning: Array,  # (N, kinds, 2) int32: last info, count
    sites: Array,  # (ns,) int64
    roots: Array,  # (ns,) int64 root body of the site's tree
    moves: Array,  # (ns, nv) whether the joint moves the site
    state: Array,  # (nx,) int64 where each state value lies in `full`
    view: Array,  # (no,) int64 likewise for the observation
    pos_col: int,  # column of joint_pos in the state, -1 for none
    vel_col: int,
    full: Array,  # (2 nv + 6 ns,) scratch
    X: Array,  # (T, N, nx)
    obs: Array,  # (T, N, no)
    J: Array,  # (N, T, 3 ns, nx) d end_points / dx; may have no samples
    V: Array,  # (N, T, 3 ns, nx) d end_point_velocities / dx
    bad: Array,  # (N,) bool
) -> int:
    N, nv = cdof.shape[:2]
    ns = sites.shape[0]
    write_J, write_V = J.shape[0] > 0, V.shape[0] > 0
    col = np.empty((nv, 3))  # d site / d q of one site
    wrong = 0
    for i in range(N):
        for j in range(nv):
            full[j] = rows[i, qpos_at + j]
            full[nv + j] = rows[i, qvel_at + j]
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
                # joints with it, and moves the point about the axes of the earlier ones
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
                        q = rows[i, qvel_at + j]
                        v0, v1, v2 = v0 - c0 * q, v1 - c1 * q, v2 - c2 * q
                        w0, w1, w2 = w0 + a0 * q, w1 + a1 * q, w2 + a2 * q
        good = True
        for j in range(full.shape[0]):
            good = good and abs(full[j]) <= limit  # NaN compares false
        for j in range(warning.shape[1]):
            good = good and warning[i, j, 1] == 0
        bad[i] = not good
        wrong += not good
        for j in range(state.shape[0]):
            X[t, i, j] = full[state[j]]
        for j in range(view.shape[0]):
            obs[t, i, j] = full[view[j]]
    return wrong


@njit(cache=True, nogil=True)
def _apply(
    u: Array,  # (N, nu)
    low: Array,  # (nu,)
    high: Array,  # (nu,)
    U: Array,  # (N, nu) what is recorded
    rows: Array,  # (N, nstate) the simulator's states
    ctrl_at: int,  # where the controls begin in a row
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
            rows[i, ctrl_at + j] = v
        bad[i] = not good
        wrong += not good
    return wrong


# what njit makes of a signature differs between numba's versions; the shapes are what matters
observe: Callable[..., int] = _observe
apply: Callable[..., int] = _apply
