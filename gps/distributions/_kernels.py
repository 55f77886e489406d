"""Numba kernels of the mixture fit and of the regression. No checks in here: callers own those.

Every sum runs in a fixed order, so that the same input gives the same bytes. Inverse Cholesky
factors are kept transposed (upper), so that whitening a block of points is one `np.dot`.
"""

from __future__ import annotations

import numpy as np

from gps.compiling import kernel

LEAD = 16  # leading coordinates that bound a Mahalanobis distance from below
BLOCK = 20  # further ones that are whitened at a time, at least
CUT = 40.0  # nats below a point's best component at which a responsibility counts as zero
TINY_MASS = 1e-10  # points; below it a component keeps its mean and covariance
LOG_2PI = float(np.log(2 * np.pi))


@kernel(fastmath={"reassoc", "contract"})
def _squared_norm(v):  # type: ignore[no-untyped-def]
    """Sum of squares; may be summed in vector order, NaN and infinity keep their meaning."""
    s = 0.0
    for k in range(v.shape[0]):
        s += v[k] * v[k]
    return s


@kernel(error_model="numpy", fastmath={"contract"})
def cholesky_upper(A, U):  # type: ignore[no-untyped-def]
    """U with A = U'U from A's upper triangle, below the diagonal nothing is written.

    Row by row, four earlier rows at a time. The loops run over slices from 0: an index that might
    be negative would keep the compiler from vector instructions. Returns 0, or 1 + the index of
    the first pivot that is not above zero.
    """
    n = A.shape[0]
    for i in range(n):
        row = U[i, i:]
        m = row.size
        given = A[i, i:]
        for k in range(m):
            row[k] = given[k]
        p = 0
        while p + 4 <= i:
            r0 = U[p, i:]
            r1 = U[p + 1, i:]
            r2 = U[p + 2, i:]
            r3 = U[p + 3, i:]
            a0 = r0[0]
            a1 = r1[0]
            a2 = r2[0]
            a3 = r3[0]
            for k in range(m):
                row[k] -= a0 * r0[k] + a1 * r1[k] + a2 * r2[k] + a3 * r3[k]
            p += 4
        while p < i:
            r0 = U[p, i:]
            a0 = r0[0]
            for k in range(m):
                row[k] -= a0 * r0[k]
            p += 1
        pivot = row[0]
        if not (pivot > 0.0 and np.isfinite(pivot)):
            return i + 1
        inv = 1.0 / np.sqrt(pivot)
        for k in range(m):
            row[k] *= inv
    return 0


@kernel(error_model="numpy", fastmath={"contract"})
def invert_upper(U, out):  # type: ignore[no-untyped-def]
    """U^-1 into out, upper triangular, from the last row to the first."""
    n = U.shape[0]
    for i in range(n - 1, -1, -1):
        for k in range(n):
            out[i, k] = 0.0
        out[i, i] = 1.0
        p = i + 1
        while p + 4 <= n:
            a0 = U[i, p]
            a1 = U[i, p + 1]
            a2 = U[i, p + 2]
            a3 = U[i, p + 3]
            row = out[i, p:]
            r0 = out[p, p:]
            r1 = out[p + 1, p:]
            r2 = out[p + 2, p:]
            r3 = out[p + 3, p:]
            for k in range(row.size):
                row[k] -= a0 * r0[k] + a1 * r1[k] + a2 * r2[k] + a3 * r3[k]
            p += 4
        while p < n:
            a0 = U[i, p]
            row = out[i, p:]
            r0 = out[p, p:]
            for k in range(row.size):
                row[k] -= a0 * r0[k]
            p += 1
        inv = 1.0 / U[i, i]
        row = out[i, i:]
        for k in range(row.size):
            row[k] *= inv


@kernel
def whitening(cov, floor, log_weight, U, inv_t, const):  # type: ignore[no-untyped-def]
    """Transposed inverse Cholesky factors (J, D, D), and each component's constant log factor.

    const = log weight - D/2 log 2 pi - 1/2 log|cov| - floor/2 tr(cov^-1). Returns 0 or 1 + the
    index of the first component without a Cholesky factor.
    """
    J, D = cov.shape[0], cov.shape[1]
    for j in range(J):
        if cholesky_upper(cov[j], U) != 0:
            return j + 1
        invert_upper(U, inv_t[j])
        half_logdet = 0.0
        trace = 0.0
        for i in range(D):
            half_logdet += np.log(U[i, i])
            trace += _squared_norm(inv_t[j, i])
        const[j] = log_weight[j] - 0.5 * D * LOG_2PI - half_logdet - 0.5 * floor * trace
    return 0


@kernel
def _complete(points, rows, m, mean, inv_t, done, low, diff, white, out, j):  # type: ignore[no-untyped-def]
    """Take the distance in the coordinates from `done` on off out[:, j] at the points in rows[:m].

    Whitened coordinate k needs the first k coordinates only, as the factor is triangular, so that
    they are computed some at a time. Where the value has come to lie CUT under `low`, which holds
    one number per point, it becomes -inf and the rest is left out. Returns how many points are
    left; they are first in rows.
    """
    D = points.shape[1]
    steps = max(1, (D - done) // BLOCK)
    begin = done
    for step in range(steps):
        end = done + (D - done) * (step + 1) // steps
        factor = inv_t[:end, begin:end].copy()
        d = diff[: m * end].reshape(m, end)
        w = white[: m * (end - begin)].reshape(m, end - begin)
        for r in range(m):
            i = rows[r]
            for k in range(end):
                d[r, k] = points[i, k] - mean[k]
        np.dot(d, factor, w)
        kept = 0
        for r in range(m):
            i = rows[r]
            out[i, j] -= 0.5 * _squared_norm(w[r])
            if out[i, j] >= low[i] - CUT:
                rows[kept] = i
                kept += 1
            else:
                out[i, j] = -np.inf
        m = kept
        begin = end
    return m


@kernel
def log_joint(points, lead, mean, inv_t, const, guess, work, out):  # type: ignore[no-untyped-def]
    """Log of weight times density, (n, J) into out; -inf where it is CUT below the point's best.

    The first coordinates of a whitened point bound the Mahalanobis distance from below. A pair
    whose bound already lies CUT nats under the best value found so far is not evaluated further:
    its share is under 5e-18. guess (n,): the component tried first, or -1; holds the best one
    afterwards.
    """
    n, D = points.shape
    J, b = mean.shape[0], lead.shape[1]
    diff, white, lead_diff, lead_white, rows, low = work
    for j in range(J):
        factor = inv_t[j, :b, :b].copy()
        for i in range(n):
            for k in range(b):
                lead_diff[i, k] = lead[i, k] - mean[j, k]
        np.dot(lead_diff, factor, lead_white)
        for i in range(n):
            out[i, j] = const[j] - 0.5 * _squared_norm(lead_white[i])
    if b < D:
        for i in range(n):
            if guess[i] < 0:
                best = 0
                for j in range(1, J):
                    if out[i, j] > out[i, best]:
                        best = j
                guess[i] = best
            low[i] = -np.inf
        for j in range(J):
            m = 0
            for i in range(n):
                if guess[i] == j:
                    rows[m] = i
                    m += 1
            if m > 0:
                _complete(points, rows, m, mean[j], inv_t[j], b, low, diff, white, out, j)
        for i in range(n):
            low[i] = out[i, guess[i]]
        for j in range(J):
            m = 0
            for i in range(n):
                if guess[i] != j:
                    if out[i, j] >= low[i] - CUT:
                        rows[m] = i
                        m += 1
                    else:
                        out[i, j] = -np.inf
            if m > 0:
                m = _complete(points, rows, m, mean[j], inv_t[j], b, low, diff, white, out, j)
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


@kernel
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


@kernel
def maximise(points, resp, floor, work, mean, cov, mass):  # type: ignore[no-untyped-def]
    """Weighted means and covariances + floor I, in place; mass (J,) in points.

    A component with hardly any mass keeps its mean and covariance. Scatter matrices are made of
    three blocks, two on the diagonal and the one above.
    """
    n, D = points.shape
    J = resp.shape[1]
    h = D // 2
    near, halves, scatter, rows, weight = work
    for j in range(J):
        m = 0
        total = 0.0
        for i in range(n):
            if resp[i, j] > 0.0:
                rows[m] = i
                weight[m] = resp[i, j]
                total += weight[m]
                m += 1
        mass[j] = total
        if total < TINY_MASS:
            continue
        block = near[: m * D].reshape(m, D)
        centre = mean[j]
        for k in range(D):
            centre[k] = 0.0
        for r in range(m):
            i = rows[r]
            for k in range(D):
                block[r, k] = points[i, k]
                centre[k] += weight[r] * block[r, k]
        for k in range(D):
            centre[k] /= total
        left = halves[: m * h].reshape(m, h)
        right = halves[m * h : m * D].reshape(m, D - h)
        for r in range(m):
            w = np.sqrt(weight[r] / total)
            for k in range(h):
                left[r, k] = w * (block[r, k] - centre[k])
            for k in range(D - h):
                right[r, k] = w * (block[r, h + k] - centre[h + k])
        first = scatter[: h * h].reshape(h, h)
        across = scatter[h * h : h * D].reshape(h, D - h)
        second = scatter[h * D : h * D + (D - h) * (D - h)].reshape(D - h, D - h)
        np.dot(left.T, left, first)
        np.dot(left.T, right, across)
        np.dot(right.T, right, second)
        for i in range(D):
            for k in range(i, D):
                if k < h:
                    v = first[i, k]
                elif i < h:
                    v = across[i, k - h]
                else:
                    v = second[i - h, k - h]
                cov[j, i, k] = v
                cov[j, k, i] = v
            cov[j, i, i] += floor


@kernel
def average_weights(resp, N, S, weights):  # type: ignore[no-untyped-def]
    """Mean responsibilities of each step's points; rows of resp are ordered (sample, step)."""
    J = resp.shape[1]
    for t in range(S):
        for j in range(J):
            s = 0.0
            for i in range(N):
                s += resp[i * S + t, j]
            weights[t, j] = s / N


@kernel(error_model="numpy", fastmath={"contract"})
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
                row = S[i, i:]
                own = cov[j, i, i:]
                there = mean[j, i:]
                here = mu[i:]
                for k in range(row.size):
                    row[k] += w * own[k] + a * (there[k] - here[k])
    mirror(S)


@kernel
def mirror(A):  # type: ignore[no-untyped-def]
    """Copy what is above the diagonal to below it."""
    for i in range(A.shape[0]):
        for k in range(i):
            A[i, k] = A[k, i]


@kernel(error_model="numpy", fastmath={"contract"})
def solve_upper_t(U, V):  # type: ignore[no-untyped-def]
    """Overwrite V (n, m) with U'^-1 V, U upper triangular; four rows at a time."""
    n, m = V.shape
    for i in range(n):
        row = V[i]
        p = 0
        while p + 4 <= i:
            a0 = U[p, i]
            a1 = U[p + 1, i]
            a2 = U[p + 2, i]
            a3 = U[p + 3, i]
            for k in range(m):
                row[k] -= a0 * V[p, k] + a1 * V[p + 1, k] + a2 * V[p + 2, k] + a3 * V[p + 3, k]
            p += 4
        while p < i:
            a0 = U[p, i]
            for k in range(m):
                row[k] -= a0 * V[p, k]
            p += 1
        inv = 1.0 / U[i, i]
        for k in range(m):
            row[k] *= inv


@kernel(error_model="numpy", fastmath={"contract"})
def solve_upper(U, V):  # type: ignore[no-untyped-def]
    """Overwrite V (n, m) with U^-1 V, U upper triangular; four rows at a time."""
    n, m = V.shape
    for i in range(n - 1, -1, -1):
        row = V[i]
        p = i + 1
        while p + 4 <= n:
            a0 = U[i, p]
            a1 = U[i, p + 1]
            a2 = U[i, p + 2]
            a3 = U[i, p + 3]
            for k in range(m):
                row[k] -= a0 * V[p, k] + a1 * V[p + 1, k] + a2 * V[p + 2, k] + a3 * V[p + 3, k]
            p += 4
        while p < n:
            a0 = U[i, p]
            for k in range(m):
                row[k] -= a0 * V[p, k]
            p += 1
        inv = 1.0 / U[i, i]
        for k in range(m):
            row[k] *= inv


@kernel
def regress(  # type: ignore[no-untyped-def]
    Y, n_in, weights, means, scales, psi, kappa0, nu0, ridge, mean, gain, offset, W, joint
):
    """Conditioning of each step's posterior joint Gaussian on its first n_in coordinates.

    Y (N, S, D). ridge (n_in,) is added to the variances of the input block. The prior of step t is
    the mixture (means, scales) under weights[t], times psi. Returns 0, or 1 + the first step whose
    input block has no Cholesky factor.
    """
    N, S, D = Y.shape
    n_out = D - n_in
    mu0 = np.empty(D)
    shift = np.empty(D)
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
        for k in range(D):
            shift[k] = mean[t, k] - mu0[k]
        for i in range(D):
            d = pull * shift[i]
            row = P[i, i:]
            own = scatter[i, i:]
            there = shift[i:]
            for k in range(row.size):
                row[k] = (own[k] + psi * row[k] + d * there[k]) * inv
        mirror(P)
        for i in range(n_in):
            P[i, i] += ridge[i]
        if cholesky_upper(P[:n_in, :n_in], U) != 0:
            return t + 1
        for i in range(n_in):
            for k in range(n_out):
                V[i, k] = P[i, n_in + k]
        solve_upper_t(U, V)
        np.dot(V.T, V, WW)
        for i in range(n_out):
            for k in range(i, n_out):
                v = P[n_in + i, n_in + k] - WW[i, k]
                W[t, i, k] = v
                W[t, k, i] = v
        solve_upper(U, V)
        for k in range(n_out):
            s = 0.0
            for i in range(n_in):
                gain[t, k, i] = V[i, k]
                s += V[i, k] * mean[t, i]
            offset[t, k] = mean[t, n_in + k] - s
    return 0


@kernel
def without_factor(W, failed):  # type: ignore[no-untyped-def]
    """Mark the steps whose W has no Cholesky factor."""
    U = np.empty((W.shape[1], W.shape[2]))
    for t in range(W.shape[0]):
        failed[t] = cholesky_upper(W[t], U) != 0
