"""Loops over samples and steps; shapes are checked by the callers."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def pull_back(J, g, H, l_x, l_xx):  # type: ignore[no-untyped-def]
    """Add J'g to l_x and J'H J to l_xx; columns of J that are all zero cost nothing."""
    N, T, k, nx = J.shape
    cols = np.empty(nx, dtype=np.int64)
    Jt = np.empty((nx, k))  # the columns of J in use, one a row
    HJ = np.empty((nx, k))
    for n in range(N):
        for t in range(T):
            idle = True  # a step that the ramp switches off
            for a in range(k):
                if g[n, t, a] != 0.0:
                    idle = False
                for b in range(k):
                    if H[n, t, a, b] != 0.0:
                        idle = False
            if idle:
                continue
            used = 0
            for j in range(nx):
                for a in range(k):
                    if J[n, t, a, j] != 0.0:
                        cols[used] = j
                        used += 1
                        break
            for p in range(used):
                j = cols[p]
                s = 0.0
                for a in range(k):
                    Jt[p, a] = J[n, t, a, j]
                    s += Jt[p, a] * g[n, t, a]
                l_x[n, t, j] += s
                for a in range(k):
                    s = 0.0
                    for b in range(k):
                        s += H[n, t, a, b] * Jt[p, b]
                    HJ[p, a] = s
            for p in range(used):
                for q in range(p + 1):
                    s = 0.0
                    for a in range(k):
                        s += Jt[p, a] * HJ[q, a]
                    l_xx[n, t, cols[p], cols[q]] += s
                    if p != q:
                        l_xx[n, t, cols[q], cols[p]] += s


@njit(cache=True, nogil=True)
def expand_about_zero(l, l_x, l_u, l_xx, l_ux, l_uu, X, U, C, c, c0):  # type: ignore[no-untyped-def]  # noqa: E741
    """Sample means of the expansions moved to z = 0, into C, c, c0 that hold zeros."""
    N, T, nx = l_x.shape
    nu = l_u.shape[2]
    nz = nx + nu
    z = np.empty(nz)
    Hz = np.empty(nz)
    share = 1.0 / N
    for t in range(T):
        for n in range(N):
            for i in range(nx):
                z[i] = X[n, t, i]
            for i in range(nu):
                z[nx + i] = U[n, t, i]
            for i in range(nx):
                s = 0.0
                for j in range(nx):
                    # only the symmetric part of a Hessian has a meaning
                    h = 0.5 * (l_xx[n, t, i, j] + l_xx[n, t, j, i])
                    C[t, i, j] += share * h
                    s += h * z[j]
                Hz[i] = s
            for i in range(nu):
                s = 0.0
                for j in range(nx):
                    h = l_ux[n, t, i, j]
                    C[t, nx + i, j] += share * h
                    s += h * z[j]
                    Hz[j] += h * z[nx + i]
                for j in range(nu):
                    h = 0.5 * (l_uu[n, t, i, j] + l_uu[n, t, j, i])
                    C[t, nx + i, nx + j] += share * h
                    s += h * z[nx + j]
                Hz[nx + i] = s
            first, second = 0.0, 0.0
            for i in range(nz):
                g = l_x[n, t, i] if i < nx else l_u[n, t, i - nx]
                c[t, i] += share * (g - Hz[i])
                first += g * z[i]
                second += Hz[i] * z[i]
            c0[t] += share * (l[n, t] - first + 0.5 * second)
        for i in range(nu):
            for j in range(nx):
                C[t, j, nx + i] = C[t, nx + i, j]
