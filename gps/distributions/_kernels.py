"""Numba kernels of the mixture fit and of the regression. No checks in here: callers own those.

Every sum runs in a fixed order, so that the same input gives the same bytes. Inverse Cholesky
factors are kept transposed (upper), so that whitening a block of points is one `np.dot`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

LEAD = 16  # leading coordinates that bound a Mahalanobis distance from below
CUT = 40.0  # nats below a point's best component at which a responsibility counts as zero
TINY_MASS = 1e-10  # points; below it a component keeps its mean and covariance
LOG_2PI = float(np.log(2 * np.pi))


@njit(cache=True, nogil=True)
def cholesky_upper(A, U):  # type: ignore[no-untyped-def]
    """U with A = U'U from A's upper triangle, below the diagonal nothing is written.

    Row by row, which the compiler turns into vector instructions. Returns 0, or 1 + the index of
    the first pivot that is not above zero.
    """
    n = A.shape[0]
    for i in range(n):
        for k in range(i, n):
            U[i, k] = A[i, k]
    for j in range(n):
        pivot = U[j, j]
        if not (pivot > 0.0 and np.isfinite(pivot)):
            return j + 1
        inv = 1.0 / np.sqrt(pivot)
        for k in range(j, n):
            U[j, k] *= inv
        for i in range(j + 1, n):
            a = U[j, i]
            for k in range(i, n):
                U[i, k] -= a * U[j, k]
    return 0


@njit(cache=True, nogil=True)
def whitening(cov, floor, log_weight, U, scratch, inv_t, const):  # type: ignore[no-untyped-def]
    """Transposed inverse Cholesky factors (J, D, D), and each component's constant log factor.

    const = log weight - D/2 log 2 pi - 1/2 log|cov| - floor/2 tr(cov^-1). Returns 0 or 1 + the
    index of the first component without a Cholesky factor.
    """
    J, D = cov.shape[0], cov.shape[1]
    for j in range(J):
        if cholesky_upper(cov[j], U) != 0:
            return j + 1
        half_logdet = 0.0
        trace = 0.0
        for i in range(D):  # row i of the inverse of U' by forward substitution
            for k in range(D):
                scratch[i, k] = 0.0
            scratch[i, i] = 1.0
            for p in range(i):
                a = U[p, i]
                for k in range(p + 1):
                    scratch[i, k] -= a * scratch[p, k]
            inv = 1.0 / U[i, i]
            half_logdet += np.log(U[i, i])
            for k in range(i + 1):
                scratch[i, k] *= inv
                trace += scratch[i, k] * scratch[i, k]
        for i in range(D):
            for k in range(D):
                inv_t[j, k, i] = scratch[i, k]
        const[j] = log_weight[j] - 0.5 * D * LOG_2PI - half_logdet - 0.5 * floor * trace
    return 0


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _squared_norm(v):  # type: ignore[no-untyped-def]
    """Sum of squares; may be summed in vector order, NaN and infinity keep their meaning."""
    s = 0.0
    for k in range(v.shape[0]):
        s += v[k] * v[k]
    return s


@njit(cache=True, nogil=True)
def _exact(points, rows, m, mean, inv_t, const, diff, white, out, j):  # type: ignore[no-untyped-def]
    """Log joint of component j at the points listed in rows[:m], into out[:, j]."""
    D = points.shape[1]
    for r in range(m):
        i = rows[r]
        for k in range(D):
            diff[r, k] = points[i, k] - mean[k]
    np.dot(diff[:m], inv_t, white[:m])
    for r in range(m):
        out[rows[r], j] = const - 0.5 * _squared_norm(white[r])


@njit(cache=True, nogil=True)
def log_joint(points, lead, mean, inv_t, const, guess, work, out):  # type: ignore[no-untyped-def]
    """Log of weight times density, (n, J) into out; -inf where it is CUT below the point's best.

    The first coordinates of a whitened point bound the Mahalanobis distance from below. A pair
    whose bound already lies CUT nats under the best value found so far is not evaluated: its share
    is under 5e-18. guess (n,): the component tried first, or -1; holds the best one afterwards.
    """
    n, D = points.shape
    J, b = mean.shape[0], lead.shape[1]
    diff, white, lead_diff, lead_white, upper, rows, low = work
    for j in range(J):
        factor = inv_t[j, :b, :b].copy()
        for i in range(n):
            for k in range(b):
                lead_diff[i, k] = lead[i, k] - mean[j, k]
        np.dot(lead_diff, factor, lead_white)
        for i in range(n):
            upper[i, j] = const[j] - 0.5 * _squared_norm(lead_white[i])
    if b == D:
        for i in range(n):
            for j in range(J):
                out[i, j] = upper[i, j]
    else:
        for i in range(n):
            if guess[i] < 0:
                best = 0
                for j in range(1, J):
                    if upper[i, j] > upper[i, best]:
                        best = j
                guess[i] = best
            for j in range(J):
                out[i, j] = -np.inf
        for j in range(J):
            m = 0
            for i in range(n):
                if guess[i] == j:
                    rows[m] = i
                    m += 1
            if m > 0:
                _exact(points, rows, m, mean[j], inv_t[j], const[j], diff, white, out, j)
        for i in range(n):
            low[i] = out[i, guess[i]]
        for j in range(J):
            m = 0
            for i in range(n):
                if guess[i] != j and upper[i, j] >= low[i] - CUT:
                    rows[m] = i
                    m += 1
            if m > 0:
                _exact(points, rows, m, mean[j], inv_t[j], const[j], diff, white, out, j)
                for r in range(m):
                    i = rows[r]
                    if out[i, j] > low[i]:
                        low[i] = out[i, j]
    for i in range(n):
        best = 0
        for j in range(1, J):
            if out[i, j] > out[i, best]:
                best = j
        guess[i] = best


@njit(cache=True, nogil=True)
def normalise(logs, guess):  # type: ignore[no-untyped-def]
    """Log joints to responsibilities in place; returns the sum over points of log sum exp."""
    n, J = logs.shape
    total = 0.0
    for i in range(n):
        top = logs[i, guess[i]]
        s = 0.0
        for j in range(J):
            d = logs[i, j] - top
            p = np.exp(d) if d > -CUT else 0.0
            logs[i, j] = p
            s += p
        inv = 1.0 / s
        for j in range(J):
            logs[i, j] *= inv
        total += top + np.log(s)
    return total


@njit(cache=True, nogil=True)
def maximise(points, resp, floor, work, mean, cov, mass):  # type: ignore[no-untyped-def]
    """Weighted means and covariances + floor I, in place; mass (J,) in points.

    A component with hardly any mass keeps its mean and covariance.
    """
    n, D = points.shape
    J = resp.shape[1]
    rows_of, scatter, rows = work
    for j in range(J):
        m = 0
        total = 0.0
        for i in range(n):
            if resp[i, j] > 0.0:
                rows[m] = i
                m += 1
                total += resp[i, j]
        mass[j] = total
        if total < TINY_MASS:
            continue
        for k in range(D):
            mean[j, k] = 0.0
        for r in range(m):
            i = rows[r]
            w = resp[i, j]
            for k in range(D):
                mean[j, k] += w * points[i, k]
        for k in range(D):
            mean[j, k] /= total
        for r in range(m):
            i = rows[r]
            w = np.sqrt(resp[i, j] / total)
            for k in range(D):
                rows_of[r, k] = w * (points[i, k] - mean[j, k])
        block = rows_of[:m]
        np.dot(block.T, block, scatter)
        for i in range(D):
            for k in range(i, D):
                cov[j, i, k] = scatter[i, k]
                cov[j, k, i] = scatter[i, k]
            cov[j, i, i] += floor


@njit(cache=True, nogil=True)
def average_weights(resp, N, S, weights):  # type: ignore[no-untyped-def]
    """Mean responsibilities of each step's points; rows of resp are ordered (sample, step)."""
    J = resp.shape[1]
    for t in range(S):
        for j in range(J):
            s = 0.0
            for i in range(N):
                s += resp[i * S + t, j]
            weights[t, j] = s / N


@njit(cache=True, nogil=True)
def mixture_moments(weights, mean, cov, mu, S):  # type: ignore[no-untyped-def]
    """Mean and covariance of the mixture under the given weights."""
    J, D = mean.shape
    for k in range(D):
        mu[k] = 0.0
        for i in range(D):
            S[k, i] = 0.0
    for j in range(J):
        if weights[j] > 0.0:
            for k in range(D):
                mu[k] += weights[j] * mean[j, k]
    for j in range(J):
        w = weights[j]
        if w > 0.0:
            for i in range(D):
                a = w * (mean[j, i] - mu[i])
                for k in range(D):
                    S[i, k] += w * cov[j, i, k] + a * (mean[j, k] - mu[k])


@njit(cache=True, nogil=True)
def regress(  # type: ignore[no-untyped-def]
    Y, n_in, weights, means, scales, psi, kappa0, nu0, ridge, mean, gain, offset, W, joint
):
    """Conditioning of each step's posterior joint Gaussian on its first n_in coordinates.

    Y (N, S, D). The prior of step t is the mixture (means, scales) under weights[t], times psi.
    Returns 0, or 1 + the first step whose input block has no Cholesky factor.
    """
    N, S, D = Y.shape
    n_out = D - n_in
    mu0 = np.empty(D)
    diff = np.empty((N, D))
    scatter = np.empty((D, D))
    U = np.empty((n_in, n_in))
    V = np.empty((n_in, n_out))
    WW = np.empty((n_out, n_out))
    for t in range(S):
        for k in range(D):
            s = 0.0
            for i in range(N):
                s += Y[i, t, k]
            mean[t, k] = s / N
        for i in range(N):
            for k in range(D):
                diff[i, k] = Y[i, t, k] - mean[t, k]
        np.dot(diff.T, diff, scatter)
        P = joint[t]
        mixture_moments(weights[t], means, scales, mu0, P)
        pull = N * kappa0 / (N + kappa0)
        inv = 1.0 / (N + nu0)
        for i in range(D):
            d = pull * (mean[t, i] - mu0[i])
            for k in range(i, D):
                v = (scatter[i, k] + psi * P[i, k] + d * (mean[t, k] - mu0[k])) * inv
                P[i, k] = v
                P[k, i] = v
        for i in range(n_in):
            P[i, i] += ridge
        if cholesky_upper(P[:n_in, :n_in], U) != 0:
            return t + 1
        for i in range(n_in):  # V = U'^-1 S_zx, then U^-1 V in place
            for k in range(n_out):
                V[i, k] = P[i, n_in + k]
            for p in range(i):
                a = U[p, i]
                for k in range(n_out):
                    V[i, k] -= a * V[p, k]
            a = 1.0 / U[i, i]
            for k in range(n_out):
                V[i, k] *= a
        np.dot(V.T, V, WW)
        for i in range(n_out):
            for k in range(i, n_out):
                v = P[n_in + i, n_in + k] - WW[i, k]
                W[t, i, k] = v
                W[t, k, i] = v
        for i in range(n_in - 1, -1, -1):
            for p in range(i + 1, n_in):
                a = U[i, p]
                for k in range(n_out):
                    V[i, k] -= a * V[p, k]
            a = 1.0 / U[i, i]
            for k in range(n_out):
                V[i, k] *= a
        for k in range(n_out):
            s = 0.0
            for i in range(n_in):
                gain[t, k, i] = V[i, k]
                s += V[i, k] * mean[t, i]
            offset[t, k] = mean[t, n_in + k] - s
    return 0


@njit(cache=True, nogil=True)
def without_factor(W, failed):  # type: ignore[no-untyped-def]
    """Mark the steps whose W has no Cholesky factor."""
    U = np.empty((W.shape[1], W.shape[2]))
    for t in range(W.shape[0]):
        failed[t] = cholesky_upper(W[t], U) != 0
