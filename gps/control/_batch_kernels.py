"""Array kernels of `gps.control.batch`: a range of problems of one size, one after another.

A call of `gps.control.batch` is a chain of these kernels: checks of the inputs, the work, checks of
the results. Every kernel ends with (status, first, stop) and treats the problems first .. stop - 1,
so that the threads of Python can share the problems out: the kernels hold no lock of the
interpreter. A problem is the work of one thread from beginning to end, so that the number of
threads changes no byte.

An input has one problem per row, or a single row that all problems share. A problem whose status is
not OK on entry is skipped. FALLBACK means that something is wrong or out of the ordinary, such as a
search that does not converge; the caller then asks the single function, which says what.
"""

from __future__ import annotations

import numpy as np

from gps.compiling import inlined, kernel
from gps.control import _kernels, _per_step_kernels, _pi2_kernels, _tracking_kernels
from gps.control._kernels import OK, scan_semidefinite, scan_symmetry, trial

FALLBACK = 3
DONE = _per_step_kernels.DONE
ROOT, FLOOR, CEILING, INTERVAL, TRIALS = 0, 1, 2, 3, 4
_PSD_TOLERANCE = 1e-9  # below that of the single functions, which judge what does not pass
_FAR = 1e100  # factors beyond may have an inverse that overflows


@inlined
def _row(b, A):  # type: ignore[no-untyped-def]
    """Where problem b lies in an input."""
    return b if A.shape[0] > 1 else 0


# --- checks


@kernel
def finite(A, status, first, stop):  # type: ignore[no-untyped-def]
    """That A (n, m) holds numbers alone."""
    for b in range(first, stop):
        row = A[_row(b, A)]
        bad = 0
        for i in range(row.shape[0]):
            # x - x is 0 exactly for finite x and NaN otherwise
            bad |= row[i] - row[i] != 0.0
        if bad:
            status[b] = FALLBACK


@kernel
def factors(chol, status, first, stop):  # type: ignore[no-untyped-def]
    """That factors (n, T, nu, nu) are lower triangular, and positive on the diagonal."""
    for b in range(first, stop):
        L = chol[_row(b, chol)]
        for t in range(L.shape[0]):
            for i in range(L.shape[1]):
                if not L[t, i, i] > 0.0:
                    status[b] = FALLBACK
                for j in range(i + 1, L.shape[1]):
                    if L[t, i, j] != 0.0:
                        status[b] = FALLBACK


@kernel
def variances(A, status, first, stop):  # type: ignore[no-untyped-def]
    """That symmetric A (n, T, d, d) are positive semi-definite but for rounding."""
    for b in range(first, stop):
        S = A[_row(b, A)]
        for t in range(S.shape[0]):
            for i in range(S.shape[1]):
                if S[t, i, i] < 0.0:
                    status[b] = FALLBACK
        if status[b] == OK and scan_semidefinite(S, _PSD_TOLERANCE) >= 0:
            status[b] = FALLBACK


@kernel
def roots(A, status, first, stop):  # type: ignore[no-untyped-def]
    """That A (n, T, d, d) are positive semi-definite, as `gps.control.tracking` judges it."""
    for b in range(first, stop):
        S = A[_row(b, A)]
        if status[b] == OK and _tracking_kernels.roots(S, np.empty(S.shape)) >= 0:
            status[b] = FALLBACK


@kernel
def asymmetry(A, off):  # type: ignore[no-untyped-def]
    """Largest relative asymmetry of each problem's matrices, A (n, T, d, d)."""
    for i in range(A.shape[0]):
        off[i], _ = scan_symmetry(A[i])


# --- LQR


@kernel
def backward(C, c, F, f, temperature, K, k, chol, status, first, stop):  # type: ignore[no-untyped-def]
    """Gains and factors of every problem."""
    Q_uu = np.empty((k.shape[2], k.shape[2]))
    for b in range(first, stop):
        if status[b] == OK:
            i, j = _row(b, C), _row(b, F)
            done, _ = _kernels.backward(
                C[i], c[i], C[i], c[i], 0.0, temperature[b], F[j], f[j], K[b], k[b], chol[b], Q_uu
            )  # fmt: skip
            if done != OK:
                status[b] = FALLBACK


@kernel
def backward_per_step(  # type: ignore[no-untyped-def]
    C, c, F, f, P, PK, Pk, K_old, k_old, inv_old, eta, w, ahead, K, k, chol, status, first, stop
):
    """Gains and factors of every problem, with a dual variable per step."""
    Q_uu = np.zeros((k.shape[2], k.shape[2]))
    for b in range(first, stop):
        if status[b] == OK:
            i, j, o = _row(b, C), _row(b, F), _row(b, P)
            done, _ = _kernels.backward_per_step(
                C[i], c[i], F[j], f[j], P[o], PK[o], Pk[o], K_old[o], k_old[o], inv_old[o], eta[b],
                ahead, K[b], k[b], chol[b], Q_uu,
            )  # fmt: skip
            if done != OK:
                status[b] = FALLBACK
            else:
                _kernels.scale_covariance(chol[b], eta[b], w[b])


@kernel
def forward(K, k, chol, F, f, W, x0_mean, x0_cov, mean, cov, status, first, stop):  # type: ignore[no-untyped-def]
    """Marginals of every problem; x0_cov (n, 1, nx, nx)."""
    for b in range(first, stop):
        if status[b] == OK:
            i, j, s = _row(b, K), _row(b, F), _row(b, x0_mean)
            done, _ = _kernels.forward(
                K[i], k[i], chol[i], F[j], f[j], W[j], x0_mean[s], x0_cov[s, 0], mean[b], cov[b]
            )
            if done != OK:
                status[b] = FALLBACK


@kernel
def expected_cost(C, c, c0, mean, cov, out, status, first, stop):  # type: ignore[no-untyped-def]
    """Expected cost per step of every problem."""
    for b in range(first, stop):
        if status[b] == OK:
            i, j = _row(b, C), _row(b, mean)
            _kernels.expected_cost(C[i], c[i], c0[i], mean[j], cov[j], out[b])


# --- KL


@kernel
def divergence(  # type: ignore[no-untyped-def]
    K, k, chol, K_old, k_old, inv_old, half_old, mean, cov, kl, status, first, stop
):
    """KL per step of every problem."""
    for b in range(first, stop):
        if status[b] == OK:
            i, o, j = _row(b, K), _row(b, K_old), _row(b, mean)
            _kernels.divergence(
                K[i], k[i], chol[i], K_old[o], k_old[o], inv_old[o], half_old[o], mean[j], cov[j],
                kl[b],
            )  # fmt: skip


# --- the search for one dual variable


@inlined
def _search(  # type: ignore[no-untyped-def]
    C, c, R, r, F, f, W, x0_mean, x0_cov, K_old, k_old, inv_old, half_old,
    w, bound, eta, least, most, std_floor, tol, under, mean_at, cov_at,
    K, k, chol, mean, cov, kl, trace,
):  # fmt: skip
    """Bracket and safeguarded regula falsi in log eta, as in `gps.control.dual`.

    least, most: floor and ceiling of eta. std_floor: (nu,) or None. The KL is averaged over the
    marginals mean_at, cov_at with `under`, else over each trial's own. Every trial overwrites the
    results: a search that ends at the bound or at the floor keeps its last one.
    Returns (how it ended, trials, the last eta).
    """
    T, nu = k.shape
    if not under:
        mean_at, cov_at = mean, cov
    temperature, Q_uu = np.empty(T), np.empty((nu, nu))
    low, high = np.log(least), np.log(most)
    # f(a) > 0 > f(b)
    a, fa, b, fb = -np.inf, np.inf, np.inf, -np.inf
    reach, side, slow, halved = 3.0, 0, 0, False
    x, e = min(max(np.log(eta), low), high), eta
    for n in range(trace.shape[0]):
        e = min(max(np.exp(x), least), most)
        for t in range(T):
            temperature[t] = e + w[t]
        status, _, total = trial(
            C, c, R, r, e, temperature, std_floor, F, f, W, x0_mean, x0_cov,
            K_old, k_old, inv_old, half_old, K, k, chol, mean, cov, kl, Q_uu, mean_at, cov_at,
        )  # fmt: skip
        trace[n, 0], trace[n, 1] = e, total
        fx = np.inf
        if status == OK:
            fx = np.log(max(max(total, 1e-300) / bound, 1e-308))
            if abs(total - bound) <= tol * bound or fx == 0.0:
                return ROOT, n + 1, e
        width = b - a
        if fx > 0:
            if x >= high:
                return CEILING, n + 1, e
            a, fa = x, fx
            if side > 0:
                fb *= 0.5  # Illinois: the end that stays loses half its weight
            side = 1
        else:
            if x <= low:
                return FLOOR, n + 1, e
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
                return INTERVAL, n + 1, e
            if not halved:
                slow = slow + 1 if b - a > 0.5 * width else 0
            halved = slow >= 3 or np.isinf(fa)
            if halved:
                slow, x = 2, 0.5 * (a + b)
            else:
                margin = 1e-3 * (b - a)
                x = min(max((a * fb - b * fa) / (fb - fa), a + margin), b - margin)
    return TRIALS, trace.shape[0], e


@kernel
def search(  # type: ignore[no-untyped-def]
    C, c, R, r, F, f, W, x0_mean, x0_cov, K_old, k_old, chol_old, inv_old, half_old,
    w, bound, eta, eta_min, eta_max, std_floor, tol, under, mean_at, cov_at,
    K, k, chol, mean, cov, kl, trace, found, trials, end, status, first, stop,
):  # fmt: skip
    """The dual search for every problem; x0_cov (n, 1, nx, nx). eta: NaN for none.

    eta_min, eta_max: as in `DualConfig`.
    """
    for p in range(first, stop):
        if status[p] != OK:
            continue
        i, j, s = _row(p, C), _row(p, F), _row(p, x0_mean)
        o, a = _row(p, K_old), _row(p, mean_at)
        little, much = _kernels.cost_unit(
            C[i], c[i], K_old[o], k_old[o], chol_old[o], F[j], f[j], W[j], x0_mean[s], x0_cov[s, 0],
            mean[p], cov[p],
        )  # fmt: skip
        most = min(eta_max * much, 1e250)
        least = min(max(eta_min * little, 1e-250), most)
        end[p], trials[p], found[p] = _search(
            C[i], c[i], R[o], r[o], F[j], f[j], W[j], x0_mean[s], x0_cov[s, 0],
            K_old[o], k_old[o], inv_old[o], half_old[o],
            w[p], bound[p], little if np.isnan(eta[p]) else eta[p], least, most,
            std_floor, tol, under, mean_at[a], cov_at[a],
            K[p], k[p], chol[p], mean[p], cov[p], kl[p], trace[p],
        )  # fmt: skip
        if end[p] > FLOOR:
            status[p] = FALLBACK


# --- the search for a dual variable per step


@kernel
def search_per_step(  # type: ignore[no-untyped-def]
    C, c, c0, P, PK, Pk, F, f, W, x0_mean, x0_cov, K_old, k_old, chol_old, inv_old, half_old,
    w, bound, eta, tol, std_floor, under,
    K, k, chol, mean, cov, kl, trace, found, active, trials, end, status, first, stop,
):  # fmt: skip
    """The search with one dual variable per step, for every problem; x0_cov (n, 1, nx, nx)."""
    for p in range(first, stop):
        if status[p] != OK:
            continue
        i, j, s, o = _row(p, C), _row(p, F), _row(p, x0_mean), _row(p, K_old)
        end[p], trials[p] = _per_step_kernels.search(
            C[i], c[i], c0[i], P[o], PK[o], Pk[o], F[j], f[j], W[j], x0_mean[s], x0_cov[s, 0],
            K_old[o], k_old[o], chol_old[o], inv_old[o], half_old[o],
            w[p], bound[p], eta[p], tol, std_floor, under,
            K[p], k[p], chol[p], mean[p], cov[p], kl[p], trace[p], found[p], active[p],
        )  # fmt: skip
        if end[p] > _per_step_kernels.HELD:
            status[p] = FALLBACK


# --- PI2


@kernel
def pi2_update(  # type: ignore[no-untyped-def]
    X, U, costs, K, chol, kl_max, low, given, damping, floor, k, new_chol, eta, kl, weights,
    status, first, stop,
):  # fmt: skip
    """One PI2 update of every controller."""
    for b in range(first, stop):
        i = _row(b, K)
        for n in range(costs.shape[1]):
            total = 0.0
            for t in range(costs.shape[2]):
                total += abs(costs[b, n, t])
            if not np.isfinite(2.0 * total):
                status[b] = FALLBACK
        flat = chol[i].reshape(chol[i].size)
        for n in range(flat.shape[0]):
            if abs(flat[n]) > _FAR or 0.0 < abs(flat[n]) < 1.0 / _FAR:
                status[b] = FALLBACK
        if status[b] == OK:
            done, _ = _pi2_kernels.update(
                X[b], U[b], costs[b], K[i], chol[i], kl_max[b], low, given[b], damping, floor,
                k[b], new_chol[b], eta[b], kl[b], weights[b],
            )  # fmt: skip
            if done != OK:
                status[b] = FALLBACK


# --- estimation


@kernel
def kalman_filter(  # type: ignore[no-untyped-def]
    F, f, W, H, h, V, x0_mean, x0_cov, U, Y,
    pred_mean, pred_cov, mean, cov, gain, log_likelihood, status, first, stop,
):  # fmt: skip
    """The Kalman filter for every system; x0_cov (n, 1, nx, nx)."""
    T, no = H.shape[1:3]
    for b in range(first, stop):
        if status[b] != OK:
            continue
        i, j, s, u, y = _row(b, F), _row(b, H), _row(b, x0_mean), _row(b, U), _row(b, Y)
        chol, S = np.zeros((T, no, no)), np.empty((no, no))
        done, _ = _tracking_kernels.filter_covariances(
            F[i], W[i], H[j], V[j], x0_cov[s, 0], pred_cov[b], cov[b], gain[b], chol, S
        )
        if done == OK:
            done, _ = _tracking_kernels.filter_means(
                F[i], f[i], H[j], h[j], gain[b], chol, x0_mean[s], U[u], Y[y],
                pred_mean[b], mean[b], log_likelihood[b],
            )  # fmt: skip
        if done != OK:
            status[b] = FALLBACK


@kernel
def smooth(  # type: ignore[no-untyped-def]
    F, W, pred_mean, pred_cov, mean, cov, s_mean, s_cov, cross, status, first, stop
):
    """The smoother for every system."""
    for b in range(first, stop):
        if status[b] == OK:
            i, j = _row(b, F), _row(b, mean)
            done, _ = _tracking_kernels.smooth(
                F[i], W[i], pred_mean[j], pred_cov[j], mean[j], cov[j], s_mean[b], s_cov[b],
                cross[b],
            )  # fmt: skip
            if done != OK:
                status[b] = FALLBACK
