"""Array kernels of `gps.control.ilqr`; rules as in `gps.control._kernels`."""

from __future__ import annotations

import numpy as np
from numba import njit

from gps.compiling import kernel
from gps.control._kernels import (
    NON_FINITE,
    NOT_POSITIVE_DEFINITE,
    OK,
    _factor,
    product,
    product_with,
)
from gps.linalg import invert_lower

ARMIJO, SHRINK, FEWEST = 0.1, 0.6, 1e-12


@kernel
def _free_factor(H, free, L):  # type: ignore[no-untyped-def]
    """Cholesky factor of the free rows and columns of H, packed to the top left of L."""
    m = 0
    for i in range(H.shape[0]):
        if not free[i]:
            continue
        n = 0
        for j in range(i + 1):
            if not free[j]:
                continue
            s = H[i, j]
            for p in range(n):
                s -= L[m, p] * L[n, p]
            if n < m:
                L[m, n] = s / L[n, n]
            elif not np.isfinite(s):
                return NON_FINITE
            elif s <= 0.0:
                return NOT_POSITIVE_DEFINITE
            else:
                L[m, m] = np.sqrt(s)
            n += 1
        m += 1
    return OK


@kernel
def _free_solve(L, m, b):  # type: ignore[no-untyped-def]
    """b <- (L L')^-1 b for the leading m rows."""
    for i in range(m):
        s = b[i]
        for p in range(i):
            s -= L[i, p] * b[p]
        b[i] = s / L[i, i]
    for i in range(m - 1, -1, -1):
        s = b[i]
        for p in range(i + 1, m):
            s -= L[p, i] * b[p]
        b[i] = s / L[i, i]


@kernel
def box_minimum(H, q, low, high, x, free, L, trials):  # type: ignore[no-untyped-def]
    """Minimise 1/2 x'Hx + q'x within low <= x <= high by projected Newton steps, from x.

    Leaves the minimiser in x, the components that are not held by a limit in `free`, and the factor
    of their block in L. Returns a status.
    """
    n = x.shape[0]
    g, d, y, b = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    for i in range(n):
        x[i] = min(max(x[i], low[i]), high[i])
        free[i] = True
    for trial in range(trials):
        changed, m, value, size = trial == 0, 0, 0.0, 0.0
        for i in range(n):
            s = 0.0
            for j in range(n):
                s += H[i, j] * x[j]
            g[i] = s + q[i]
            value += x[i] * (0.5 * s + q[i])
        for i in range(n):
            held = (x[i] <= low[i] and g[i] > 0.0) or (x[i] >= high[i] and g[i] < 0.0)
            if held == free[i]:
                changed, free[i] = True, not held
            if not held:
                m += 1
                size = max(size, abs(g[i]))
        if changed:
            status = _free_factor(H, free, L)
            if status != OK:
                return status
        if m == 0:
            return OK
        k = 0
        for i in range(n):
            if free[i]:
                b[k] = -g[i]
                k += 1
        _free_solve(L, m, b)
        k, slope, longest = 0, 0.0, 0.0
        for i in range(n):
            d[i] = 0.0
            if free[i]:
                d[i] = b[k]
                k += 1
                if d[i] != 0.0:
                    longest = max(longest, abs(d[i]) / max(abs(x[i]), 1e-290))
            slope += d[i] * g[i]
        if longest <= FEWEST or slope >= 0.0:
            return OK
        step = 1.0
        while True:
            new, moved = 0.0, False
            for i in range(n):
                y[i] = min(max(x[i] + step * d[i], low[i]), high[i])
                moved = moved or y[i] != x[i]
            for i in range(n):
                s = 0.0
                for j in range(n):
                    s += H[i, j] * y[j]
                new += y[i] * (0.5 * s + q[i])
            if not moved:
                return OK
            if new <= value + ARMIJO * step * slope or step < FEWEST:
                break
            step *= SHRINK
        for i in range(n):
            x[i] = y[i]
        if new >= value:  # rounding is all that is left
            return OK
    return OK


@kernel
def backward(  # type: ignore[no-untyped-def]
    l_z, l_zz, F, low, high, mu, weights, on_state, boxed, K, k, inv, change, Q_uu
):
    """Deviations' gains K and steps k about a trajectory, under low <= k <= high.

    mu (a number) times B'D B (`on_state`) or times D is added to Q_uu, D the diagonal matrix of
    the weights (nz,) of states or of actions. inv: lower factor of the
    inverse of the regularised Q_uu. change: first and second derivative of the expected cost with
    respect to the step size. When it stops early, Q_uu holds the block that has no factor.
    """
    T, nu, nx = K.shape
    nz = nx + nu
    V_xx, V_x = np.zeros((nx, nx)), np.zeros(nx)
    G, Q, q = np.empty((nx, nz)), np.empty((nz, nz)), np.empty(nz)
    Q_ux, N, M = np.empty((nu, nx)), np.zeros((nu, nu)), np.empty((nu, nx))
    L, free, b = np.zeros((nu, nu)), np.ones(nu, dtype=np.bool_), np.empty(nu)
    KM, R, H = np.empty((nx, nx)), np.empty((nx, nz)), np.empty((nu, nu))
    change[0] = change[1] = 0.0
    for t in range(T - 1, -1, -1):
        last = t == T - 1
        if last:
            Q[:] = l_zz[t]
            q[:] = l_z[t]
        else:
            A = F[t]
            product(V_xx, A, G)
            product(A.T, G, Q)
            product_with(A.T, V_x, q)
            for i in range(nz):
                q[i] += l_z[t, i]
                for j in range(nz):
                    Q[i, j] += l_zz[t, i, j]
        for i in range(nu):
            for j in range(nu):
                Q_uu[i, j] = Q[nx + i, nx + j]
            for j in range(nx):
                Q_ux[i, j] = Q[nx + i, j]
        if mu > 0.0:
            if on_state and not last:
                for i in range(nx):
                    for j in range(nz):
                        R[i, j] = mu * weights[i] * F[t, i, j]
                for p in range(nx):
                    for i in range(nu):
                        a = F[t, p, nx + i]
                        for j in range(nu):
                            Q_uu[i, j] += a * R[p, nx + j]
                        for j in range(nx):
                            Q_ux[i, j] += a * R[p, j]
            else:
                for i in range(nu):
                    Q_uu[i, i] += mu * weights[nx + i]
        status = _factor(Q_uu, N)
        if status != OK:
            return status, t
        invert_lower(N, inv[t])
        if boxed:
            # start from the step after: limits that hold there often hold here
            for i in range(nu):
                k[t, i] = k[t + 1, i] if not last else 0.0
            status = box_minimum(Q_uu, q[nx:], low[t], high[t], k[t], free, L, 200)
            if status != OK:
                return status, t
            m = 0
            for i in range(nu):
                m += free[i]
            for j in range(nx):
                n = 0
                for i in range(nu):
                    if free[i]:
                        b[n] = -Q_ux[i, j]
                        n += 1
                _free_solve(L, m, b)
                n = 0
                for i in range(nu):
                    K[t, i, j] = 0.0
                    if free[i]:
                        K[t, i, j] = b[n]
                        n += 1
        else:
            for i in range(nu):
                for j in range(i + 1):
                    s = 0.0
                    for p in range(j + 1):  # inv is lower triangular
                        s += inv[t, i, p] * inv[t, j, p]
                    H[i, j] = H[j, i] = s
            product(H, Q_ux, M)
            for i in range(nu):
                s = 0.0
                for j in range(nu):
                    s -= H[i, j] * q[nx + j]
                k[t, i] = s
                for j in range(nx):
                    K[t, i, j] = -M[i, j]
        # value of the gains that were found, with the cost as it is
        K_t = K[t]
        for i in range(nu):
            for j in range(nx):
                M[i, j] = Q[nx + i, j]
                for p in range(nu):
                    M[i, j] += 0.5 * Q[nx + i, nx + p] * K_t[p, j]
        product(K_t.T, M, KM)
        for i in range(nu):
            s = 0.0
            for j in range(nu):
                s += Q[nx + i, nx + j] * k[t, j]
            b[i] = s
            change[0] += k[t, i] * q[nx + i]
            change[1] += k[t, i] * s
        for i in range(nx):
            s = q[i]
            for p in range(nu):
                s += K_t[p, i] * (b[p] + q[nx + p]) + Q[nx + p, i] * k[t, p]
            V_x[i] = s
            if not np.isfinite(s):
                return NON_FINITE, t
            for j in range(nx):
                V_xx[i, j] = 0.5 * (Q[i, j] + Q[j, i]) + KM[i, j] + KM[j, i]
    return OK, 0


@njit(nogil=True)
def rollout(step, X, U, k, K, sizes, low, high, X_new, U_new):  # type: ignore[no-untyped-def]
    """Roll out u = clip(U + size k + K (x - X)) for every step size, with a compiled `step`."""
    T, nu = U.shape
    nx = X.shape[1]
    for s in range(sizes.shape[0]):
        X_new[s, 0] = X[0]
        for t in range(T):
            for i in range(nu):
                u = U[t, i] + sizes[s] * k[t, i]
                for j in range(nx):
                    u += K[t, i, j] * (X_new[s, t, j] - X[t, j])
                U_new[s, t, i] = min(max(u, low[t, i]), high[t, i])
            if t + 1 < T:
                step(X_new[s, t], U_new[s, t], t, X_new[s, t + 1])


@njit(nogil=True)
def differences(step, X, U, F, width):  # type: ignore[no-untyped-def]
    """Central differences of a compiled `step` along a trajectory.

    Over `width` times the size of an entry, or times 1 in its own unit below that: an angle of 0
    says nothing of how far the step is smooth, so that a model in units other than those in which
    its numbers are of order one should bring its Jacobian.
    """
    S, nx, nz = F.shape
    x, u = np.empty(nx), np.empty(nz - nx)
    above, below = np.empty(nx), np.empty(nx)
    for t in range(S):
        x[:] = X[t]
        u[:] = U[t]
        for j in range(nz):
            # what lies between the two points in floating point
            if j < nx:
                here = x[j]
                h = width * max(1.0, abs(here))
                x[j] = here + h
                step(x, u, t, above)
                span = x[j]
                x[j] = here - h
                span -= x[j]
                step(x, u, t, below)
                x[j] = here
            else:
                here = u[j - nx]
                h = width * max(1.0, abs(here))
                u[j - nx] = here + h
                step(x, u, t, above)
                span = u[j - nx]
                u[j - nx] = here - h
                span -= u[j - nx]
                step(x, u, t, below)
                u[j - nx] = here
            for i in range(nx):
                F[t, i, j] = (above[i] - below[i]) / span


@njit(nogil=True)
def along(jacobian, X, U, F):  # type: ignore[no-untyped-def]
    """A compiled Jacobian at every step of a trajectory."""
    for t in range(F.shape[0]):
        jacobian(X[t], U[t], t, F[t])
