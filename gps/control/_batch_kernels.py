"""Array kernels of `gps.control.batch`: many problems of one size, one after another or in threads.

Every operation has a function for one problem, which calls the kernels that the single functions
call, and two loops over it, `..._each` and `..._threads`. The two loops are written out twice: a
function compiled twice, with and without `parallel`, would share one file of the cache, and the
second would silently load the first. A problem is the work of one thread from beginning to end, so
that the number of threads changes no byte.

An input has one problem per row, or a single row that all problems share. A problem whose status is
not OK on entry is skipped. DOUBTFUL means that something is wrong or out of the ordinary, such as a
search that does not converge; the caller then asks the single function, which says what. Nothing in
here may raise: an exception inside a parallel loop ends the process or is lost. So what could
divide by zero is looked at first. The index of a parallel loop is unsigned: in one expression with
an int it would become a float.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from gps.control import _per_step_kernels, _pi2_kernels, _tracking_kernels
from gps.control._kernels import (
    OK,
    backward,
    backward_per_step,
    divergence,
    expected_cost,
    forward,
    heat,
    invert_factors,
    relative_penalty,
    scan_symmetry,
    trial_under,
)
from gps.linalg import cholesky

DOUBTFUL = 3
DONE = _per_step_kernels.DONE
ROOT, FLOOR, CEILING, INTERVAL, TRIALS = 0, 1, 2, 3, 4
_PSD_TOLERANCE = 1e-9
_FAR = 1e100  # factors beyond may have an inverse that overflows


@njit(cache=True, nogil=True)
def _row(b, n):  # type: ignore[no-untyped-def]
    """Where problem b lies in an input of n problems."""
    return b if n > 1 else 0


@njit(cache=True, nogil=True)
def all_finite(A):  # type: ignore[no-untyped-def]
    """Whether a contiguous array holds numbers alone."""
    flat = A.reshape(A.size)
    bad = 0
    for i in range(flat.shape[0]):
        # x - x is 0 exactly for finite x and NaN otherwise
        bad |= flat[i] - flat[i] != 0.0
    return bad == 0


@njit(cache=True, nogil=True)
def _factors_good(chol):  # type: ignore[no-untyped-def]
    """Whether stacked factors are finite, lower triangular, and positive on the diagonal."""
    if not all_finite(chol):
        return False
    for t in range(chol.shape[0]):
        for i in range(chol.shape[1]):
            if not chol[t, i, i] > 0.0:
                return False
            for j in range(i + 1, chol.shape[1]):
                if chol[t, i, j] != 0.0:
                    return False
    return True


@njit(cache=True, nogil=True)
def _variances_good(A, S, L):  # type: ignore[no-untyped-def]
    """Whether a symmetric matrix is positive semi-definite but for rounding; S, L are scratch."""
    n = A.shape[0]
    most, diagonal = 0.0, True
    for i in range(n):
        if A[i, i] < 0.0:
            return False
        most = max(most, A[i, i])
        for j in range(i):
            if A[i, j] != 0.0:
                diagonal = False
    if diagonal:
        return True
    for i in range(n):
        for j in range(i + 1):
            S[i, j] = A[i, j]
        S[i, i] += _PSD_TOLERANCE * most
    return cholesky(S, L) == 0


@njit(cache=True, nogil=True)
def _noise_good(F, f, W):  # type: ignore[no-untyped-def]
    """Whether dynamics are finite, with a covariance that can be one."""
    if not (all_finite(F) and all_finite(f) and all_finite(W)):
        return False
    n = f.shape[1]
    S, L = np.empty((n, n)), np.empty((n, n))
    good = True
    for t in range(W.shape[0]):
        good = good and _variances_good(W[t], S, L)
    return good


@njit(cache=True, nogil=True)
def asymmetry(A, off):  # type: ignore[no-untyped-def]
    """Largest relative asymmetry of each problem's matrices, A (n, T, d, d)."""
    for i in range(A.shape[0]):
        off[i], _ = scan_symmetry(A[i])


# --- backward


@njit(cache=True, nogil=True)
def _backward_one(C, c, c0, F, f, W, temperature, K, k, chol):  # type: ignore[no-untyped-def]
    if not (all_finite(C) and all_finite(c) and all_finite(c0)):
        return DOUBTFUL
    if not (all_finite(F) and all_finite(f) and all_finite(W)):
        return DOUBTFUL
    nu = k.shape[1]
    status, _ = backward(C, c, C, c, 0.0, temperature, F, f, K, k, chol, np.empty((nu, nu)))
    if status != OK or not (all_finite(K) and all_finite(chol)):
        return DOUBTFUL
    return OK


@njit(cache=True, nogil=True)
def _backward_at(b, C, c, c0, F, f, W, temperature, K, k, chol, status):  # type: ignore[no-untyped-def]
    i, j = _row(b, C.shape[0]), _row(b, F.shape[0])
    if status[b] == OK:
        status[b] = _backward_one(
            C[i], c[i], c0[i], F[j], f[j], W[j], temperature[b], K[b], k[b], chol[b]
        )  # fmt: skip


@njit(cache=True, nogil=True)
def backward_each(C, c, c0, F, f, W, temperature, K, k, chol, status):  # type: ignore[no-untyped-def]
    """`backward` for every problem: gains and factors, and a status."""
    for b in range(status.shape[0]):
        _backward_at(b, C, c, c0, F, f, W, temperature, K, k, chol, status)


@njit(cache=True, nogil=True, parallel=True)
def backward_threads(C, c, c0, F, f, W, temperature, K, k, chol, status):  # type: ignore[no-untyped-def]
    """`backward_each` in threads."""
    for b in prange(status.shape[0]):
        _backward_at(np.int64(b), C, c, c0, F, f, W, temperature, K, k, chol, status)


# --- backward, with a dual variable per step


@njit(cache=True, nogil=True)
def _per_step_at(  # type: ignore[no-untyped-def]
    b, C, c, c0, F, f, W, P, PK, Pk, K_old, k_old, inv_old, eta, w, ahead, K, k, chol, status
):
    i, j, o = _row(b, C.shape[0]), _row(b, F.shape[0]), _row(b, P.shape[0])
    if status[b] != OK:
        return
    status[b] = DOUBTFUL
    if not (all_finite(C[i]) and all_finite(c[i]) and all_finite(c0[i])):
        return
    if not (all_finite(F[j]) and all_finite(f[j]) and all_finite(W[j])):
        return
    if not (all_finite(P[o]) and all_finite(PK[o]) and all_finite(Pk[o])):
        return
    nu = k.shape[2]
    done, _ = backward_per_step(
        C[i], c[i], F[j], f[j], P[o], PK[o], Pk[o], K_old[o], k_old[o], inv_old[o], eta[b], ahead,
        K[b], k[b], chol[b], np.zeros((nu, nu)),
    )  # fmt: skip
    if done != OK:
        return
    heat(chol[b], eta[b], w[b])
    if all_finite(K[b]) and all_finite(chol[b]):
        status[b] = OK


@njit(cache=True, nogil=True)
def per_step_each(  # type: ignore[no-untyped-def]
    C, c, c0, F, f, W, P, PK, Pk, K_old, k_old, inv_old, eta, w, ahead, K, k, chol, status
):
    """`backward_per_step` for every problem."""
    for b in range(status.shape[0]):
        _per_step_at(
            b, C, c, c0, F, f, W, P, PK, Pk, K_old, k_old, inv_old, eta, w, ahead,
            K, k, chol, status,
        )  # fmt: skip


@njit(cache=True, nogil=True, parallel=True)
def per_step_threads(  # type: ignore[no-untyped-def]
    C, c, c0, F, f, W, P, PK, Pk, K_old, k_old, inv_old, eta, w, ahead, K, k, chol, status
):
    """`per_step_each` in threads."""
    for b in prange(status.shape[0]):
        _per_step_at(
            np.int64(b), C, c, c0, F, f, W, P, PK, Pk, K_old, k_old, inv_old, eta, w, ahead,
            K, k, chol, status,
        )  # fmt: skip


# --- forward


@njit(cache=True, nogil=True)
def _start_good(mean, cov):  # type: ignore[no-untyped-def]
    if not (all_finite(mean) and all_finite(cov)):
        return False
    n = mean.shape[0]
    return _variances_good(cov, np.empty((n, n)), np.empty((n, n)))


@njit(cache=True, nogil=True)
def _forward_one(K, k, chol, F, f, W, x0_mean, x0_cov, mean, cov):  # type: ignore[no-untyped-def]
    if not (all_finite(K) and all_finite(k) and _factors_good(chol)):
        return DOUBTFUL
    if not (_noise_good(F, f, W) and _start_good(x0_mean, x0_cov)):
        return DOUBTFUL
    status, _ = forward(K, k, chol, F, f, W, x0_mean, x0_cov, mean, cov)
    if status != OK or not all_finite(cov):
        return DOUBTFUL
    return OK


@njit(cache=True, nogil=True)
def _forward_at(b, K, k, chol, F, f, W, x0_mean, x0_cov, mean, cov, status):  # type: ignore[no-untyped-def]
    i, j, s = _row(b, K.shape[0]), _row(b, F.shape[0]), _row(b, x0_mean.shape[0])
    if status[b] == OK:
        status[b] = _forward_one(
            K[i], k[i], chol[i], F[j], f[j], W[j], x0_mean[s], x0_cov[s], mean[b], cov[b]
        )


@njit(cache=True, nogil=True)
def forward_each(K, k, chol, F, f, W, x0_mean, x0_cov, mean, cov, status):  # type: ignore[no-untyped-def]
    """`forward` for every problem."""
    for b in range(status.shape[0]):
        _forward_at(b, K, k, chol, F, f, W, x0_mean, x0_cov, mean, cov, status)


@njit(cache=True, nogil=True, parallel=True)
def forward_threads(K, k, chol, F, f, W, x0_mean, x0_cov, mean, cov, status):  # type: ignore[no-untyped-def]
    """`forward_each` in threads."""
    for b in prange(status.shape[0]):
        _forward_at(np.int64(b), K, k, chol, F, f, W, x0_mean, x0_cov, mean, cov, status)


# --- expected cost


@njit(cache=True, nogil=True)
def _expected_cost_at(b, C, c, c0, mean, cov, out, status):  # type: ignore[no-untyped-def]
    i, j = _row(b, C.shape[0]), _row(b, mean.shape[0])
    if status[b] != OK:
        return
    status[b] = DOUBTFUL
    if not (all_finite(C[i]) and all_finite(c[i]) and all_finite(c0[i])):
        return
    if not (all_finite(mean[j]) and all_finite(cov[j])):
        return
    expected_cost(C[i], c[i], c0[i], mean[j], cov[j], out[b])
    if all_finite(out[b]):
        status[b] = OK


@njit(cache=True, nogil=True)
def expected_cost_each(C, c, c0, mean, cov, out, status):  # type: ignore[no-untyped-def]
    """`expected_cost` for every problem."""
    for b in range(status.shape[0]):
        _expected_cost_at(b, C, c, c0, mean, cov, out, status)


@njit(cache=True, nogil=True, parallel=True)
def expected_cost_threads(C, c, c0, mean, cov, out, status):  # type: ignore[no-untyped-def]
    """`expected_cost_each` in threads."""
    for b in prange(status.shape[0]):
        _expected_cost_at(np.int64(b), C, c, c0, mean, cov, out, status)


# --- KL


@njit(cache=True, nogil=True)
def factors_each(K, k, chol, inv, half_logdet, good):  # type: ignore[no-untyped-def]
    """Inverse factors and half log determinants of the controllers that can be used."""
    for b in range(chol.shape[0]):
        good[b] = all_finite(K[b]) and all_finite(k[b]) and _factors_good(chol[b])
        if good[b]:
            invert_factors(chol[b], inv[b], half_logdet[b])
            good[b] = all_finite(inv[b])


@njit(cache=True, nogil=True)
def penalties_each(K, k, inv, R, r, good):  # type: ignore[no-untyped-def]
    """`relative_penalty` of the controllers that can be used."""
    for b in range(good.shape[0]):
        if good[b]:
            relative_penalty(K[b], k[b], inv[b], R[b], r[b])
            good[b] = all_finite(R[b]) and all_finite(r[b])


@njit(cache=True, nogil=True)
def _divergence_at(  # type: ignore[no-untyped-def]
    b, K, k, chol, K_old, k_old, inv_old, half_old, mean, cov, kl, status
):
    i, o, j = _row(b, K.shape[0]), _row(b, K_old.shape[0]), _row(b, mean.shape[0])
    if status[b] != OK:
        return
    status[b] = DOUBTFUL
    if not (all_finite(K[i]) and all_finite(k[i]) and _factors_good(chol[i])):
        return
    if not (all_finite(mean[j]) and all_finite(cov[j])):
        return
    divergence(
        K[i], k[i], chol[i], K_old[o], k_old[o], inv_old[o], half_old[o], mean[j], cov[j], kl[b]
    )
    if all_finite(kl[b]):
        status[b] = OK


@njit(cache=True, nogil=True)
def divergence_each(  # type: ignore[no-untyped-def]
    K, k, chol, K_old, k_old, inv_old, half_old, mean, cov, kl, status
):
    """`divergence` for every problem."""
    for b in range(status.shape[0]):
        _divergence_at(b, K, k, chol, K_old, k_old, inv_old, half_old, mean, cov, kl, status)


@njit(cache=True, nogil=True, parallel=True)
def divergence_threads(  # type: ignore[no-untyped-def]
    K, k, chol, K_old, k_old, inv_old, half_old, mean, cov, kl, status
):
    """`divergence_each` in threads."""
    for b in prange(status.shape[0]):
        _divergence_at(
            np.int64(b), K, k, chol, K_old, k_old, inv_old, half_old, mean, cov, kl, status
        )


# --- the search for one dual variable


@njit(cache=True, nogil=True)
def _limits(C, c, eta_min, eta_max):  # type: ignore[no-untyped-def]
    """The cost's largest coefficient, and the floor and the ceiling of eta."""
    scale = 0.0
    flat = C.reshape(C.size)
    for i in range(flat.shape[0]):
        scale = max(scale, abs(flat[i]))
    flat = c.reshape(c.size)
    for i in range(flat.shape[0]):
        scale = max(scale, abs(flat[i]))
    if scale == 0.0:
        scale = 1.0
    high = min(eta_max * scale, 1e250)
    return scale, min(max(eta_min * scale, 1e-250), high), high


@njit(cache=True, nogil=True)
def _copy(source, target):  # type: ignore[no-untyped-def]
    """Contiguous array into another of its shape."""
    a, b = source.reshape(source.size), target.reshape(target.size)
    for i in range(a.shape[0]):
        b[i] = a[i]


@njit(cache=True, nogil=True)
def _search_one(  # type: ignore[no-untyped-def]
    C, c, R, r, F, f, W, x0_mean, x0_cov, K_old, k_old, inv_old, half_old,
    w, bound, eta, std_floor, tol, eta_min, eta_max, under, mean_at, cov_at,
    K, k, chol, mean, cov, kl, trace,
):  # fmt: skip
    """Bracket and safeguarded regula falsi in log eta, as in `gps.control.dual`.

    eta: 0 to begin at the cost's largest coefficient. std_floor: (nu,) or empty.
    The KL is averaged over the marginals mean_at, cov_at with `under`, else over each trial's own.
    Returns (how it ended, trials, eta of the controller kept); infinity when none was kept.
    """
    T, nu, nx = K.shape
    nz = nx + nu
    K_, k_, chol_ = np.empty((T, nu, nx)), np.empty((T, nu)), np.empty((T, nu, nu))
    mean_, cov_, kl_ = np.empty((T, nz)), np.empty((T, nz, nz)), np.empty(T)
    if not under:
        mean_at, cov_at = mean_, cov_
    temperature, Q_uu = np.empty(T), np.zeros((nu, nu))
    unit, least, most = _limits(C, c, eta_min, eta_max)
    low, high = np.log(least), np.log(most)
    best, trials = np.inf, trace.shape[0]
    # f(a) > 0 > f(b)
    a, fa, b, fb = -np.inf, np.inf, np.inf, -np.inf
    reach, side, slow, halved = 3.0, 0, 0, False
    x = min(max(np.log(eta if eta > 0.0 else unit), low), high)
    for n in range(trials):
        e = min(max(np.exp(x), least), most)
        for t in range(T):
            temperature[t] = e + w[t]
        status, _, total = trial_under(
            C, c, R, r, e, temperature, std_floor, F, f, W, x0_mean, x0_cov,
            K_old, k_old, inv_old, half_old, K_, k_, chol_, mean_, cov_, kl_, Q_uu, mean_at, cov_at,
        )  # fmt: skip
        trace[n, 0], trace[n, 1] = e, total
        fx = np.inf
        if status == OK:
            accepted = abs(total - bound) <= tol * bound
            if accepted or (total <= bound and e < best):
                best = e
                _copy(K_, K)
                _copy(k_, k)
                _copy(chol_, chol)
                _copy(mean_, mean)
                _copy(cov_, cov)
                _copy(kl_, kl)
            if accepted:
                return ROOT, n + 1, best
            fx = np.log(max(max(total, 1e-300) / bound, 1e-308))
            if fx == 0.0:
                return ROOT, n + 1, best
        width = b - a
        if fx > 0:
            if x >= high:
                return CEILING, n + 1, best
            a, fa = x, fx
            if side > 0:
                fb *= 0.5  # Illinois: the end that stays loses half its weight
            side = 1
        else:
            if x <= low:
                return FLOOR, n + 1, best
            b, fb = x, fx
            if side < 0:
                fa *= 0.5
            side = -1
        if np.isinf(b):
            x = min(a + min(max(reach / 32, 1.2 * fa), reach), high)
            reach *= 2.0
        elif np.isinf(a):
            x = max(b - min(max(reach / 32, -1.2 * fb), reach), low)
            reach *= 2.0
        else:
            if b - a <= 1e-12 * max(1.0, abs(a), abs(b)):
                return INTERVAL, n + 1, best
            if not halved:
                slow = slow + 1 if b - a > 0.5 * width else 0
            halved = slow >= 3 or np.isinf(fa)
            if halved:
                slow, x = 2, 0.5 * (a + b)
            else:
                margin = 1e-3 * (b - a)
                x = min(max((a * fb - b * fa) / (fb - fa), a + margin), b - margin)
    return TRIALS, trials, best


@njit(cache=True, nogil=True)
def _search_at(  # type: ignore[no-untyped-def]
    p, C, c, c0, R, r, F, f, W, x0_mean, x0_cov, K_old, k_old, inv_old, half_old,
    w, bound, eta, std_floor, tol, eta_min, eta_max, under, mean_at, cov_at,
    K, k, chol, mean, cov, kl, trace, found, trials, end, status,
):  # fmt: skip
    i, j, s = _row(p, C.shape[0]), _row(p, F.shape[0]), _row(p, x0_mean.shape[0])
    o, a = _row(p, K_old.shape[0]), _row(p, mean_at.shape[0])
    if status[p] != OK:
        return
    status[p] = DOUBTFUL
    if not (all_finite(C[i]) and all_finite(c[i]) and all_finite(c0[i])):
        return
    if not (_noise_good(F[j], f[j], W[j]) and _start_good(x0_mean[s], x0_cov[s])):
        return
    end[p], trials[p], found[p] = _search_one(
        C[i], c[i], R[o], r[o], F[j], f[j], W[j], x0_mean[s], x0_cov[s],
        K_old[o], k_old[o], inv_old[o], half_old[o],
        w[p], bound[p], eta[p], std_floor, tol, eta_min, eta_max, under, mean_at[a], cov_at[a],
        K[p], k[p], chol[p], mean[p], cov[p], kl[p], trace[p],
    )  # fmt: skip
    if end[p] <= FLOOR and all_finite(K[p]) and all_finite(chol[p]) and all_finite(cov[p]):
        status[p] = OK


@njit(cache=True, nogil=True)
def search_each(  # type: ignore[no-untyped-def]
    C, c, c0, R, r, F, f, W, x0_mean, x0_cov, K_old, k_old, inv_old, half_old,
    w, bound, eta, std_floor, tol, eta_min, eta_max, under, mean_at, cov_at,
    K, k, chol, mean, cov, kl, trace, found, trials, end, status,
):  # fmt: skip
    """The dual search for every problem."""
    for p in range(status.shape[0]):
        _search_at(
            p, C, c, c0, R, r, F, f, W, x0_mean, x0_cov, K_old, k_old, inv_old, half_old,
            w, bound, eta, std_floor, tol, eta_min, eta_max, under, mean_at, cov_at,
            K, k, chol, mean, cov, kl, trace, found, trials, end, status,
        )  # fmt: skip


@njit(cache=True, nogil=True, parallel=True)
def search_threads(  # type: ignore[no-untyped-def]
    C, c, c0, R, r, F, f, W, x0_mean, x0_cov, K_old, k_old, inv_old, half_old,
    w, bound, eta, std_floor, tol, eta_min, eta_max, under, mean_at, cov_at,
    K, k, chol, mean, cov, kl, trace, found, trials, end, status,
):  # fmt: skip
    """`search_each` in threads."""
    for p in prange(status.shape[0]):
        _search_at(
            np.int64(p), C, c, c0, R, r, F, f, W, x0_mean, x0_cov, K_old, k_old, inv_old, half_old,
            w, bound, eta, std_floor, tol, eta_min, eta_max, under, mean_at, cov_at,
            K, k, chol, mean, cov, kl, trace, found, trials, end, status,
        )  # fmt: skip


# --- the search for a dual variable per step


@njit(cache=True, nogil=True)
def _steps_at(  # type: ignore[no-untyped-def]
    p, C, c, c0, P, PK, Pk, F, f, W, x0_mean, x0_cov, K_old, k_old, chol_old, inv_old, half_old,
    w, bound, eta, tol, std_floor, under,
    K, k, chol, mean, cov, kl, trace, found, active, trials, end, status,
):  # fmt: skip
    i, j = _row(p, C.shape[0]), _row(p, F.shape[0])
    s, o = _row(p, x0_mean.shape[0]), _row(p, K_old.shape[0])
    if status[p] != OK:
        return
    status[p] = DOUBTFUL
    if not (all_finite(C[i]) and all_finite(c[i]) and all_finite(c0[i])):
        return
    if not (all_finite(P[o]) and all_finite(PK[o]) and all_finite(Pk[o])):
        return
    if not (_noise_good(F[j], f[j], W[j]) and _start_good(x0_mean[s], x0_cov[s])):
        return
    end[p], trials[p] = _per_step_kernels.search(
        C[i], c[i], c0[i], P[o], PK[o], Pk[o], F[j], f[j], W[j], x0_mean[s], x0_cov[s],
        K_old[o], k_old[o], chol_old[o], inv_old[o], half_old[o],
        w[p], bound[p], eta[p], tol, std_floor, under,
        K[p], k[p], chol[p], mean[p], cov[p], kl[p], trace[p], found[p], active[p],
    )  # fmt: skip
    if end[p] <= _per_step_kernels.HELD and all_finite(K[p]) and all_finite(chol[p]):
        status[p] = OK if all_finite(cov[p]) else DOUBTFUL


@njit(cache=True, nogil=True)
def steps_each(  # type: ignore[no-untyped-def]
    C, c, c0, P, PK, Pk, F, f, W, x0_mean, x0_cov, K_old, k_old, chol_old, inv_old, half_old,
    w, bound, eta, tol, std_floor, under,
    K, k, chol, mean, cov, kl, trace, found, active, trials, end, status,
):  # fmt: skip
    """The search with one dual variable per step, for every problem."""
    for p in range(status.shape[0]):
        _steps_at(
            p, C, c, c0, P, PK, Pk, F, f, W, x0_mean, x0_cov,
            K_old, k_old, chol_old, inv_old, half_old, w, bound, eta, tol, std_floor, under,
            K, k, chol, mean, cov, kl, trace, found, active, trials, end, status,
        )  # fmt: skip


@njit(cache=True, nogil=True, parallel=True)
def steps_threads(  # type: ignore[no-untyped-def]
    C, c, c0, P, PK, Pk, F, f, W, x0_mean, x0_cov, K_old, k_old, chol_old, inv_old, half_old,
    w, bound, eta, tol, std_floor, under,
    K, k, chol, mean, cov, kl, trace, found, active, trials, end, status,
):  # fmt: skip
    """`steps_each` in threads."""
    for p in prange(status.shape[0]):
        _steps_at(
            np.int64(p), C, c, c0, P, PK, Pk, F, f, W, x0_mean, x0_cov,
            K_old, k_old, chol_old, inv_old, half_old, w, bound, eta, tol, std_floor, under,
            K, k, chol, mean, cov, kl, trace, found, active, trials, end, status,
        )  # fmt: skip


# --- PI2


@njit(cache=True, nogil=True)
def _pi2_at(  # type: ignore[no-untyped-def]
    b, X, U, costs, K, k_old, chol, kl_max, low, given, damping, floor,
    k, new_chol, eta, kl, weights, status,
):  # fmt: skip
    i = _row(b, K.shape[0])
    if status[b] != OK:
        return
    status[b] = DOUBTFUL
    if not (all_finite(K[i]) and all_finite(k_old[i]) and _factors_good(chol[i])):
        return
    if not (all_finite(X[b]) and all_finite(U[b]) and all_finite(costs[b])):
        return
    for n in range(costs.shape[1]):
        total = 0.0
        for t in range(costs.shape[2]):
            total += abs(costs[b, n, t])
        if not np.isfinite(2.0 * total):
            return
    flat = chol[i].reshape(chol[i].size)
    for n in range(flat.shape[0]):
        if abs(flat[n]) > _FAR or 0.0 < abs(flat[n]) < 1.0 / _FAR:
            return
    done, _ = _pi2_kernels.update(
        X[b], U[b], costs[b], K[i], chol[i], kl_max[b], low, given[b], damping, floor,
        k[b], new_chol[b], eta[b], kl[b], weights[b],
    )  # fmt: skip
    if done == OK and all_finite(k[b]) and _factors_good(new_chol[b]):
        status[b] = OK if all_finite(eta[b]) and all_finite(kl[b]) else DOUBTFUL


@njit(cache=True, nogil=True)
def pi2_each(  # type: ignore[no-untyped-def]
    X, U, costs, K, k_old, chol, kl_max, low, given, damping, floor,
    k, new_chol, eta, kl, weights, status,
):  # fmt: skip
    """One PI2 update of every controller."""
    for b in range(status.shape[0]):
        _pi2_at(
            b, X, U, costs, K, k_old, chol, kl_max, low, given, damping, floor,
            k, new_chol, eta, kl, weights, status,
        )  # fmt: skip


@njit(cache=True, nogil=True, parallel=True)
def pi2_threads(  # type: ignore[no-untyped-def]
    X, U, costs, K, k_old, chol, kl_max, low, given, damping, floor,
    k, new_chol, eta, kl, weights, status,
):  # fmt: skip
    """`pi2_each` in threads."""
    for b in prange(status.shape[0]):
        _pi2_at(
            np.int64(b), X, U, costs, K, k_old, chol, kl_max, low, given, damping, floor,
            k, new_chol, eta, kl, weights, status,
        )  # fmt: skip


# --- estimation


@njit(cache=True, nogil=True)
def _have_roots(A):  # type: ignore[no-untyped-def]
    """Whether stacked matrices are positive semi-definite, as `gps.control.tracking` judges it."""
    return _tracking_kernels.roots(A, np.empty(A.shape)) < 0


@njit(cache=True, nogil=True)
def _filter_at(  # type: ignore[no-untyped-def]
    b, F, f, W, H, h, V, x0_mean, x0_cov, U, Y,
    pred_mean, pred_cov, mean, cov, gain, log_likelihood, status,
):  # fmt: skip
    i, j, s = _row(b, F.shape[0]), _row(b, H.shape[0]), _row(b, x0_mean.shape[0])
    u, y = _row(b, U.shape[0]), _row(b, Y.shape[0])
    if status[b] != OK:
        return
    status[b] = DOUBTFUL
    if not (_noise_good(F[i], f[i], W[i]) and _start_good(x0_mean[s], x0_cov[s, 0])):
        return
    if not (all_finite(H[j]) and all_finite(h[j]) and all_finite(V[j])):
        return
    if not (all_finite(U[u]) and all_finite(Y[y])):
        return
    if not (_have_roots(W[i]) and _have_roots(V[j]) and _have_roots(x0_cov[s])):
        return
    T, no, _ = H[j].shape
    chol, S = np.zeros((T, no, no)), np.empty((no, no))
    done, _ = _tracking_kernels.filter_covariances(
        F[i], W[i], H[j], V[j], x0_cov[s, 0], pred_cov[b], cov[b], gain[b], chol, S
    )
    if done != OK:
        return
    done, _ = _tracking_kernels.filter_means(
        F[i], f[i], H[j], h[j], gain[b], chol, x0_mean[s], U[u], Y[y],
        pred_mean[b], mean[b], log_likelihood[b],
    )  # fmt: skip
    status[b] = OK if done == OK else DOUBTFUL


@njit(cache=True, nogil=True)
def filter_each(  # type: ignore[no-untyped-def]
    F, f, W, H, h, V, x0_mean, x0_cov, U, Y,
    pred_mean, pred_cov, mean, cov, gain, log_likelihood, status,
):  # fmt: skip
    """The Kalman filter for every system; x0_cov (n, 1, nx, nx)."""
    for b in range(status.shape[0]):
        _filter_at(
            b, F, f, W, H, h, V, x0_mean, x0_cov, U, Y,
            pred_mean, pred_cov, mean, cov, gain, log_likelihood, status,
        )  # fmt: skip


@njit(cache=True, nogil=True, parallel=True)
def filter_threads(  # type: ignore[no-untyped-def]
    F, f, W, H, h, V, x0_mean, x0_cov, U, Y,
    pred_mean, pred_cov, mean, cov, gain, log_likelihood, status,
):  # fmt: skip
    """`filter_each` in threads."""
    for b in prange(status.shape[0]):
        _filter_at(
            np.int64(b), F, f, W, H, h, V, x0_mean, x0_cov, U, Y,
            pred_mean, pred_cov, mean, cov, gain, log_likelihood, status,
        )  # fmt: skip


@njit(cache=True, nogil=True)
def _smooth_at(  # type: ignore[no-untyped-def]
    b, F, f, W, pred_mean, pred_cov, mean, cov, s_mean, s_cov, cross, status
):
    i, j = _row(b, F.shape[0]), _row(b, mean.shape[0])
    if status[b] != OK:
        return
    status[b] = DOUBTFUL
    if not (_noise_good(F[i], f[i], W[i]) and _have_roots(W[i])):
        return
    if not (all_finite(pred_mean[j]) and all_finite(mean[j])):
        return
    # what is not finite has no root
    if not (_have_roots(pred_cov[j]) and _have_roots(cov[j])):
        return
    done, _ = _tracking_kernels.smooth(
        F[i], W[i], pred_mean[j], pred_cov[j], mean[j], cov[j], s_mean[b], s_cov[b], cross[b]
    )
    status[b] = OK if done == OK else DOUBTFUL


@njit(cache=True, nogil=True)
def smooth_each(  # type: ignore[no-untyped-def]
    F, f, W, pred_mean, pred_cov, mean, cov, s_mean, s_cov, cross, status
):
    """The smoother for every system."""
    for b in range(status.shape[0]):
        _smooth_at(b, F, f, W, pred_mean, pred_cov, mean, cov, s_mean, s_cov, cross, status)


@njit(cache=True, nogil=True, parallel=True)
def smooth_threads(  # type: ignore[no-untyped-def]
    F, f, W, pred_mean, pred_cov, mean, cov, s_mean, s_cov, cross, status
):
    """`smooth_each` in threads."""
    for b in prange(status.shape[0]):
        _smooth_at(
            np.int64(b), F, f, W, pred_mean, pred_cov, mean, cov, s_mean, s_cov, cross, status
        )
