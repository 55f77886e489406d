"""Array kernels of `gps.control.tracking`; rules as in `gps.control._kernels`."""

from __future__ import annotations

import numpy as np

from gps.compiling import kernel
from gps.control._kernels import NON_FINITE, NOT_POSITIVE_DEFINITE, OK, product
from gps.linalg import symmetrise

_PIVOT = 1e-13  # below it, of a matrix with unit diagonal, a pivot is taken for rounding
_NEGATIVE = 1e-9  # so much below zero it is not
_REPEATED = 1e-24  # of the largest variance predicted so far: an exact measurement, made twice
_TINY = 1e-290  # variances below have lost digits to underflow


@kernel
def semi_factor(A, L, order):  # type: ignore[no-untyped-def]
    """A = L L' for a positive semi-definite A, with as many columns as A has rank, the rest 0.

    Pivoted, on the matrix scaled to a unit diagonal, so that units do not matter. order: the
    pivots; L[order[:rank], :rank] is lower triangular. Returns the rank, or -1 for a matrix that is
    indefinite beyond rounding or not finite.
    """
    n = A.shape[0]
    d, S = np.empty(n), np.empty((n, n))
    for i in range(n):
        if not (A[i, i] >= 0.0 and np.isfinite(A[i, i])):
            return -1
        d[i] = np.sqrt(A[i, i])
        order[i] = i
        for j in range(n):
            L[i, j] = 0.0
    for i in range(n):
        for j in range(n):
            if d[i] > 0.0 and d[j] > 0.0:
                S[i, j] = (A[i, j] / d[i]) / d[j]
                if not np.isfinite(S[i, j]):
                    return -1
            elif A[i, j] != 0.0:
                return -1
            else:
                S[i, j] = 0.0
    for r in range(n):
        best = r
        for q in range(r, n):
            if S[order[q], order[q]] > S[order[best], order[best]]:
                best = q
        order[r], order[best] = order[best], order[r]
        p = order[r]
        if not S[p, p] > _PIVOT * n:
            for a in range(r, n):
                for b in range(r, n):
                    s = S[order[a], order[b]]
                    if abs(s) > _NEGATIVE * n:
                        return -1
            return r
        root = np.sqrt(S[p, p])
        for q in range(r, n):
            i = order[q]
            L[i, r] = S[i, p] / root
        for a in range(r + 1, n):
            i = order[a]
            for b in range(r + 1, n):
                j = order[b]
                S[i, j] -= L[i, r] * L[j, r]
        for q in range(r, n):
            L[order[q], r] *= d[order[q]]
    return n


@kernel
def roots(A, L):  # type: ignore[no-untyped-def]
    """Square roots of stacked positive semi-definite matrices; the first that has none, or -1."""
    order = np.empty(A.shape[1], dtype=np.int64)
    for t in range(A.shape[0]):
        if semi_factor(A[t], L[t], order) < 0:
            return t
    return -1


@kernel
def _sandwich(M, P, MP, out):  # type: ignore[no-untyped-def]
    """out <- M P M'."""
    product(M, P, MP)
    product(MP, M.T, out)


@kernel
def _finite(A):  # type: ignore[no-untyped-def]
    bad = 0
    for i in range(A.shape[0]):
        for j in range(A.shape[1]):
            bad |= A[i, j] - A[i, j] != 0.0
    return bad == 0


@kernel
def _innovation_factor(S, most, L):  # type: ignore[no-untyped-def]
    """Cholesky factor of an innovation covariance that is positive beyond rounding; a status."""
    n = S.shape[0]
    for j in range(n):
        if not np.isfinite(S[j, j]):
            return NON_FINITE
        most[j] = max(most[j], S[j, j])
        if not (S[j, j] > _REPEATED * most[j] and S[j, j] > _TINY):
            return NOT_POSITIVE_DEFINITE
        s = S[j, j]
        for p in range(j):
            s -= L[j, p] * L[j, p]
        if not s > _PIVOT * S[j, j]:
            return NOT_POSITIVE_DEFINITE
        L[j, j] = np.sqrt(s)
        for i in range(j):
            L[i, j] = 0.0
        for i in range(j + 1, n):
            s = S[i, j]
            for p in range(j):
                s -= L[i, p] * L[j, p]
            L[i, j] = s / L[j, j]
    return OK


@kernel
def filter_covariances(F, W, H, V, x0_cov, pred_cov, cov, gain, chol, S):  # type: ignore[no-untyped-def]
    """Covariances before and after each measurement, gains, factors of the innovations.

    The update is Joseph's, a sum of two positive semi-definite terms. When it stops early, S holds
    the innovation covariance that has no factor.
    """
    T, no, nx = H.shape
    A, M, MP = np.empty((nx, nx)), np.empty((nx, nx)), np.empty((nx, nx))
    HP, KV, KVK = np.empty((no, nx)), np.empty((nx, no)), np.zeros((nx, nx))
    most, x = np.zeros(no), np.empty(no)
    for i in range(nx):
        for j in range(nx):
            pred_cov[0, i, j] = x0_cov[i, j]
    for t in range(T):
        P = pred_cov[t]
        if no == 0:
            for i in range(nx):
                for j in range(nx):
                    cov[t, i, j] = P[i, j]
        else:
            product(H[t], P, HP)
            product(HP, H[t].T, S)
            for i in range(no):
                for j in range(no):
                    S[i, j] += V[t, i, j]
            symmetrise(S)
            if not _finite(S):
                return NON_FINITE, t
            L = chol[t]
            status = _innovation_factor(S, most, L)
            if status != OK:
                return status, t
            for c in range(nx):
                for i in range(no):
                    s = HP[i, c]
                    for p in range(i):
                        s -= L[i, p] * x[p]
                    x[i] = s / L[i, i]
                for i in range(no - 1, -1, -1):
                    s = x[i]
                    for p in range(i + 1, no):
                        s -= L[p, i] * x[p]
                    x[i] = s / L[i, i]
                for i in range(no):
                    gain[t, c, i] = x[i]
            product(gain[t], H[t], M)
            for i in range(nx):
                for j in range(nx):
                    M[i, j] = -M[i, j]
                M[i, i] += 1.0
            _sandwich(M, P, MP, cov[t])
            product(gain[t], V[t], KV)
            product(KV, gain[t].T, KVK)
            for i in range(nx):
                for j in range(nx):
                    cov[t, i, j] += KVK[i, j]
            symmetrise(cov[t])
        if not (_finite(cov[t]) and _finite(gain[t])):
            return NON_FINITE, t
        if t < T - 1:
            for i in range(nx):
                for j in range(nx):
                    A[i, j] = F[t, i, j]
            _sandwich(A, cov[t], MP, pred_cov[t + 1])
            for i in range(nx):
                for j in range(nx):
                    pred_cov[t + 1, i, j] += W[t, i, j]
            symmetrise(pred_cov[t + 1])
            if not _finite(pred_cov[t + 1]):
                return NON_FINITE, t + 1
    return OK, 0


@kernel
def _corrected(H, h, gain, y, m, v, out):  # type: ignore[no-untyped-def]
    """out <- m + gain v with the innovation v = y - H m - h."""
    no, nx = H.shape
    for i in range(no):
        s = y[i] - h[i]
        for j in range(nx):
            s -= H[i, j] * m[j]
        v[i] = s
    for j in range(nx):
        s = m[j]
        for i in range(no):
            s += gain[j, i] * v[i]
        out[j] = s


@kernel
def _stepped(F, f, x, u, out):  # type: ignore[no-untyped-def]
    """out <- F [x; u] + f."""
    nx, nu = x.shape[0], u.shape[0]
    for i in range(nx):
        s = f[i]
        for j in range(nx):
            s += F[i, j] * x[j]
        for j in range(nu):
            s += F[i, nx + j] * u[j]
        out[i] = s


@kernel
def filter_means(F, f, H, h, gain, chol, x0_mean, U, Y, pred_mean, mean, log_likelihood):  # type: ignore[no-untyped-def]
    """Means before and after each measurement, and log p(y[t] | y[0 .. t-1])."""
    N, T, nx = mean.shape
    no = H.shape[1]
    v, w = np.empty(no), np.empty(no)
    for n in range(N):
        for j in range(nx):
            pred_mean[n, 0, j] = x0_mean[j]
        for t in range(T):
            _corrected(H[t], h[t], gain[t], Y[n, t], pred_mean[n, t], v, mean[n, t])
            s = -0.5 * no * np.log(2.0 * np.pi)
            for i in range(no):
                a = v[i]
                for p in range(i):
                    a -= chol[t, i, p] * w[p]
                w[i] = a / chol[t, i, i]
                s -= 0.5 * w[i] * w[i] + np.log(chol[t, i, i])
            log_likelihood[n, t] = s
            if not np.isfinite(s):
                return NON_FINITE, t
            for j in range(nx):
                if not np.isfinite(mean[n, t, j]):
                    return NON_FINITE, t
            if t < T - 1:
                _stepped(F[t], f[t], mean[n, t], U[n, t], pred_mean[n, t + 1])
    return OK, 0


@kernel
def smooth(F, W, pred_mean, pred_cov, mean, cov, s_mean, s_cov, cross):  # type: ignore[no-untyped-def]
    """Backward pass of Rauch, Tung and Striebel; cross: covariance of x[t] and x[t+1].

    The covariance is a sum of positive semi-definite terms. A predicted covariance may be singular:
    x[t+1] then has no spread in some direction, so any generalised inverse gives the same.
    """
    N, T, nx = mean.shape
    A, PA, G = np.empty((nx, nx)), np.empty((nx, nx)), np.empty((nx, nx))
    M, MP, E = np.empty((nx, nx)), np.empty((nx, nx)), np.empty((nx, nx))
    L, order, x = np.empty((nx, nx)), np.empty(nx, dtype=np.int64), np.empty(nx)
    for i in range(nx):
        for j in range(nx):
            s_cov[T - 1, i, j] = cov[T - 1, i, j]
        for n in range(N):
            s_mean[n, T - 1, i] = mean[n, T - 1, i]
    for t in range(T - 2, -1, -1):
        for i in range(nx):
            for j in range(nx):
                A[i, j] = F[t, i, j]
        product(cov[t], A.T, PA)
        rank = semi_factor(pred_cov[t + 1], L, order)
        if rank < 0:
            return NOT_POSITIVE_DEFINITE, t + 1
        for c in range(nx):
            for i in range(rank):
                s = PA[c, order[i]]
                for p in range(i):
                    s -= L[order[i], p] * x[p]
                x[i] = s / L[order[i], i]
            for i in range(rank - 1, -1, -1):
                s = x[i]
                for p in range(i + 1, rank):
                    s -= L[order[p], i] * x[p]
                x[i] = s / L[order[i], i]
            for j in range(nx):
                G[c, j] = 0.0
            for i in range(rank):
                G[c, order[i]] = x[i]
        product(G, A, M)
        for i in range(nx):
            for j in range(nx):
                M[i, j] = -M[i, j]
                E[i, j] = W[t, i, j] + s_cov[t + 1, i, j]
            M[i, i] += 1.0
        product(G, s_cov[t + 1], cross[t])
        _sandwich(M, cov[t], MP, s_cov[t])
        _sandwich(G, E, MP, PA)
        for i in range(nx):
            for j in range(nx):
                s_cov[t, i, j] += PA[i, j]
        symmetrise(s_cov[t])
        if not (_finite(s_cov[t]) and _finite(cross[t])):
            return NON_FINITE, t
        for n in range(N):
            for i in range(nx):
                s = mean[n, t, i]
                for j in range(nx):
                    s += G[i, j] * (s_mean[n, t + 1, j] - pred_mean[n, t + 1, j])
                s_mean[n, t, i] = s
                if not np.isfinite(s):
                    return NON_FINITE, t
    return OK, 0


@kernel
def simulate(  # type: ignore[no-untyped-def]
    F, f, root_W, H, h, root_V, x0_mean, root_0, K, k, chol, gain, by_estimate,
    e_start, e_process, e_sensor, e_action, X, U, Y, M,
):  # fmt: skip
    """Closed loop of a controller that sees the state or its estimate, N samples."""
    N, T, nx = X.shape
    no, nu = H.shape[1], K.shape[1]
    v, pred = np.empty(no), np.empty(nx)
    for n in range(N):
        for i in range(nx):
            s = x0_mean[i]
            for j in range(nx):
                s += root_0[i, j] * e_start[n, j]
            X[n, 0, i] = s
            pred[i] = x0_mean[i]
        for t in range(T):
            x = X[n, t]
            for i in range(no):
                s = h[t, i]
                for j in range(nx):
                    s += H[t, i, j] * x[j]
                for j in range(no):
                    s += root_V[t, i, j] * e_sensor[n, t, j]
                Y[n, t, i] = s
            _corrected(H[t], h[t], gain[t], Y[n, t], pred, v, M[n, t])
            seen = M[n, t] if by_estimate else x
            for i in range(nu):
                s = k[t, i]
                for j in range(nx):
                    s += K[t, i, j] * seen[j]
                for j in range(i + 1):
                    s += chol[t, i, j] * e_action[n, t, j]
                U[n, t, i] = s
                if not np.isfinite(s):
                    return NON_FINITE, t
            for i in range(no):
                if not np.isfinite(Y[n, t, i]):
                    return NON_FINITE, t
            for i in range(nx):
                if not (np.isfinite(x[i]) and np.isfinite(M[n, t, i])):
                    return NON_FINITE, t
            if t < T - 1:
                _stepped(F[t], f[t], x, U[n, t], X[n, t + 1])
                for i in range(nx):
                    for j in range(nx):
                        X[n, t + 1, i] += root_W[t, i, j] * e_process[n, t, j]
                _stepped(F[t], f[t], M[n, t], U[n, t], pred)
    return OK, 0
