"""The search for a controller with a bound on the KL at every step, as one kernel.

See `gps.control.per_step` for the problem. With the reference's precision P = Lbar'^-1 Lbar^-1 and
the eigenvalues s of Lbar' Q_uu Lbar, the KL of one step at the states (m, S) is, for given values,

    1/2 sum_i [r_i - 1 - log r_i + g_i / (eta + s_i)^2],     r_i = (eta + w) / (eta + s_i)

with g_i from the eigenvectors' share of Lbar'(Q_ux + Q_uu Kbar) and Lbar'(Q_u + Q_uu kbar). It
falls from infinity, or its value at eta = 0, to 0 while eta grows, so that a bracketed search finds
the eta of its bound. All of that is done in units of the step's own Q: no constant has the units of
a cost. The functions of one step take their inputs and their scratch as tuples of arrays. Division
by zero gives infinity or NaN here, as in numpy, and is looked at where the KL is.
"""

from __future__ import annotations

import numpy as np

from gps.compiling import inlined, kernel
from gps.control._kernels import (
    OK,
    _action_value,
    _work,
    add_kl_value,
    advance,
    blocks,
    constrained_gains,
    cost_unit,
    divergence_at,
    expected_cost,
    forward,
    place,
    raise_factor,
    value_of_gains,
)
from gps.linalg import eigh_jacobi

DONE, SHORT, HELD, LOST, NO_MARGINALS = 0, 1, 2, 3, 4
_FAR = 1e16  # eta where the reference's own step is taken, by the size of the cost
_FLOOR = 1e-8  # of eta, by the largest of a step's |s|, w and sqrt(sum g)
_DAMP, _UNDAMP, _LEAST = 0.6, 1.05, 0.02  # of the moves of log eta, where they turn back


@inlined(error_model="numpy")
def _copy(source, target):  # type: ignore[no-untyped-def]
    """target <- source, contiguous arrays of one size."""
    a, b = source.reshape(source.size), target.reshape(target.size)
    for i in range(a.shape[0]):
        b[i] = a[i]


@kernel(error_model="numpy")
def _closed_kl(s, g, w, eta):  # type: ignore[no-untyped-def]
    """KL of one step by the formula of this module, and its slope in eta; inf where it has none."""
    total, slope = 0.0, 0.0
    if not (eta + s[0] > 0.0 and eta + w > 0.0):
        return np.inf, -np.inf
    for i in range(len(s)):
        inv = 1.0 / (eta + s[i])
        x = (w - s[i]) * inv  # r - 1
        if abs(x) < 1e-3:
            total += x * x * (0.5 - x * (1 / 3 - x * (0.25 - x * (0.2 - x / 6))))
        else:
            total += x - np.log((eta + w) * inv)
        shift = g[i] * inv * inv
        total += shift
        slope -= x * x / (eta + w) + 2.0 * shift * inv
    return 0.5 * total, 0.5 * slope


@kernel(error_model="numpy")
def _spectrum(Q, reference, mean, cov, s, g, scratch):  # type: ignore[no-untyped-def]
    """s, ascending, and g of one step, divided by the size of Q and its square.

    Returns that size: 0 where nothing depends on eta, NaN where something overflows.
    """
    Q_uu, Q_ux, Q_u = Q
    K_old, k_old, chol_old = reference[3:6]
    A, E, H, G, h, row = scratch
    nu, nx = K_old.shape
    # H = Lbar' Q_uu Lbar, G = Lbar'(Q_ux + Q_uu Kbar), h alike
    size, total = 0.0, 0.0
    for i in range(nu):
        h[i] = 0.0
        for j in range(nx):
            G[i, j] = 0.0
        for p in range(i, nu):
            a = chol_old[p, i]
            u = Q_u[p]
            for q in range(nu):
                u += Q_uu[p, q] * k_old[q]
            h[i] += a * u
            for j in range(nx):
                u = Q_ux[p, j]
                for q in range(nu):
                    u += Q_uu[p, q] * K_old[q, j]
                G[i, j] += a * u
        for j in range(nu):
            H[i, j] = 0.0
            for p in range(i, nu):
                u = 0.0
                for q in range(j, nu):
                    u += Q_uu[p, q] * chol_old[q, j]
                H[i, j] += chol_old[p, i] * u
            size = max(size, abs(H[i, j]))
            total += H[i, j]
        for j in range(nx):
            size = max(size, abs(G[i, j]))
            total += G[i, j]
        size = max(size, abs(h[i]))
        total += h[i]
    if not np.isfinite(total):
        return np.nan
    if size == 0.0:
        return 0.0
    for i in range(nu):
        for j in range(nu):
            A[i, j] = 0.5 * (H[i, j] / size + H[j, i] / size)
    if eigh_jacobi(A, s, E) != 0:
        return np.nan
    for i in range(nu):
        u = 0.0
        for j in range(nx):
            row[j] = 0.0
        for p in range(nu):
            u += E[p, i] * (h[p] / size)
            for j in range(nx):
                row[j] += E[p, i] * (G[p, j] / size)
        for j in range(nx):
            u += row[j] * mean[j]
        total = u * u
        for j in range(nx):
            v = 0.0
            for p in range(nx):
                v += cov[j, p] * row[p]
            total += row[j] * v
        g[i] = max(total, 0.0)
        if not np.isfinite(total):
            return np.nan
    return size


@kernel(error_model="numpy")
def _least(s, g, w):  # type: ignore[no-untyped-def]
    """(bottom, rise): eta has to be above the bottom; at bottom + rise is its floor."""
    bottom, size, shift = max(-s[0], 0.0), w, 0.0
    for i in range(len(s)):
        size = max(size, abs(s[i]))
        shift += g[i]
    return bottom, _FLOOR * (bottom if bottom > 0.0 else max(size, np.sqrt(shift)))


@kernel(error_model="numpy")
def _next(x, fx, side, a, fa, b, fb, reach):  # type: ignore[no-untyped-def]
    """One step of regula falsi (Illinois) for a falling f: the new (x, side, a, fa, b, fb, reach).

    f(a) > 0 > f(b); a is -inf or b is inf until there is one, fa may be inf.
    """
    if fx > 0.0:
        a, fa = x, fx
        if side > 0:
            fb *= 0.5
        side = 1
    else:
        b, fb = x, fx
        if side < 0:
            fa *= 0.5
        side = -1
    if b == np.inf:
        x = a + min(max(0.6 * fa, 0.1 * reach), 10.0 * reach)
        reach *= 2.0
    elif a == -np.inf:
        x = b - min(max(-0.6 * fb, 0.1 * reach), 10.0 * reach)
        reach *= 2.0
    else:
        x = 0.5 * (a + b)
        if fa < np.inf:
            y = (a * fb - b * fa) / (fb - fa)
            if a < y < b:
                x = y
    return x, side, a, fa, b, fb, reach


@kernel(error_model="numpy")
def _solve_closed(s, g, w, bound, guess):  # type: ignore[no-untyped-def]
    """(eta, whether at its floor) for the KL to be at the bound; eta is NaN without one."""
    bottom, rise = _least(s, g, w)
    if not 0.0 < rise < np.inf:
        return np.nan, False
    if not _closed_kl(s, g, w, bottom + rise)[0] > bound:
        return bottom + rise, True
    # Newton's method on log KL as a function of x = log(eta - bottom), inside a bracket
    a, b, reach = np.log(rise), np.inf, 1.0
    x = np.log(guess - bottom) if guess > bottom + rise else a - np.log(_FLOOR)
    for n in range(200):
        if x > 700.0:
            return np.nan, False
        above_bottom = np.exp(x)
        kl, slope = _closed_kl(s, g, w, bottom + above_bottom)
        if abs(kl - bound) <= 1e-13 * bound:
            return bottom + above_bottom, False
        if kl > bound:
            a = x
        else:
            b = x
        slope *= above_bottom / kl
        move = np.log(bound / kl) / slope if np.isfinite(slope) and slope < 0.0 else np.nan
        y = x + move
        if b == np.inf:  # onwards, further every time
            x += min(max(move, 0.1 * reach), 10.0 * reach) if np.isfinite(move) else reach
            reach *= 2.0
        elif a < y < b and n < 50:
            x = y
        else:
            x = 0.5 * (a + b)
        if b - a <= 4e-16 * max(1.0, min(abs(a), abs(b))):
            break
    return bottom + np.exp(b), False


@kernel(error_model="numpy")
def _step_at(eta, w, std_floor, Q, reference, step, scratch):  # type: ignore[no-untyped-def]
    """One step at eta into `step` = (K, k, chol); whether there is one, and if it was raised."""
    Q_uu, Q_ux, Q_u = Q
    P, PK, Pk = reference[:3]
    K, k, chol = step
    A, N, R, y, s = scratch[:5]
    if not 0.0 < eta < np.inf:
        return False, False
    if constrained_gains(Q_uu, Q_ux, Q_u, P, PK, Pk, eta, A, N, y, K, k, chol) != OK:
        return False, False
    if w != 0.0:
        scale = np.sqrt(1.0 + w / eta)
        for i in range(len(k)):
            for j in range(i + 1):
                chol[i, j] *= scale
    if std_floor is None:
        return True, False
    status, raised = raise_factor(chol, std_floor, A, N, s, R)
    return status == OK, raised


@kernel(error_model="numpy")
def _kl_of(reference, half_old, mean, cov, step, scratch):  # type: ignore[no-untyped-def]
    """KL of one step from the reference's, as `kl.kl_per_step` computes it."""
    K, k, chol = step
    K_old, k_old, _, inv_old = reference[3:]
    D, d, E, ES, L = scratch[5:]
    return divergence_at(K, k, chol, K_old, k_old, inv_old, half_old, mean, cov, D, d, E, ES, L)


@kernel(error_model="numpy")
def _attempt(eta, w, std_floor, Q, reference, half_old, mean, cov, step, scratch):  # type: ignore[no-untyped-def]
    """`_step_at` and its KL, which is NaN where there is no step."""
    good, raised = _step_at(eta, w, std_floor, Q, reference, step, scratch)
    if not good:
        return np.nan, False
    return _kl_of(reference, half_old, mean, cov, step, scratch), raised


@kernel(error_model="numpy")
def _solve(  # type: ignore[no-untyped-def]
    guess, w, bound, tol, std_floor, Q, reference, half_old, mean, cov, step, spectrum, scratch
):
    """The step whose KL at the states (mean, cov) is at its bound, or below it at the floor of eta.

    Returns (eta, KL, whether at the floor). Where there is none, in numbers, the reference's own
    step comes back, with eta NaN and a KL of 0.
    """
    s, g, work = spectrum
    size = _spectrum(Q, reference, mean, cov, s, g, work)
    if size == 0.0:
        size = w
        for i in range(len(s)):
            s[i] = g[i] = 0.0
    eta, low = np.nan, False
    if size == 0.0:
        eta, low = guess, True
    elif np.isfinite(size):
        eta, low = _solve_closed(s, g, w / size, bound, guess / size)
        eta *= size
    kl, raised = _attempt(eta, w, std_floor, Q, reference, half_old, mean, cov, step, scratch)
    if raised and size > 0.0:
        # The same search on the KL of the raised step, which falls with eta as well: what minimises
        # a + eta b over one set has less b the larger eta is.
        bottom, rise = _least(s, g, w / size)
        floor = np.log(size * (bottom + rise))
        a, fa, b, fb, side, reach = -np.inf, np.inf, np.inf, -np.inf, 0, 1.0
        x, low = max(np.log(eta), floor), False
        for _ in range(100):
            eta = np.exp(x)
            kl, _ = _attempt(eta, w, std_floor, Q, reference, half_old, mean, cov, step, scratch)
            fx = np.log(max(kl, 1e-300) / bound) if np.isfinite(kl) else np.inf
            low = x <= floor and fx <= 0.0
            if low or abs(fx) < 1e-12 or x > 700.0:
                break
            x, side, a, fa, b, fb, reach = _next(x, fx, side, a, fa, b, fb, reach)
            x = max(x, floor)
            if b - a <= 4e-16 * max(1.0, min(abs(a), abs(b))):
                x = b
    extra = 1e-12
    while np.isfinite(eta) and not kl <= (1.0 + tol) * bound and extra < 1e12:  # by rounding
        eta, low = eta * (1.0 + extra), False
        extra *= 8.0
        kl, _ = _attempt(eta, w, std_floor, Q, reference, half_old, mean, cov, step, scratch)
    if not kl <= (1.0 + tol) * bound:
        _copy(reference[3], step[0])
        _copy(reference[4], step[1])
        _copy(reference[5], step[2])
        return np.nan, 0.0, False
    return eta, kl, low


@kernel(error_model="numpy")
def _objective(C, c, c0, w, chol, mean, cov, each):  # type: ignore[no-untyped-def]
    """E[cost] - sum w H; each (T,) is scratch."""
    expected_cost(C, c, c0, mean, cov, each)
    T, nu, _ = chol.shape
    total = 0.0
    for t in range(T):
        total += each[t]
        if w[t] != 0.0:
            entropy = 0.5 * nu * np.log(2.0 * np.pi * np.e)
            for i in range(nu):
                entropy += np.log(chol[t, i, i])
            total -= w[t] * entropy
    return total


@kernel(error_model="numpy")
def search(  # type: ignore[no-untyped-def]
    C, c, c0, P, PK, Pk, F, f, W, x0_mean, x0_cov, K_old, k_old, chol_old, inv_old, half_old,
    w, bound, eta, tol, std_floor, under,
    K, k, chol, mean, cov, kl, trace, found, active,
):  # fmt: skip
    """The controller of `gps.control.per_step.minimise_per_step`; (how it ended, sweeps or t).

    eta: start of the search; all NaN: none. std_floor: None for none; the reference must be above
    it. under: whether the KL is averaged over the reference's own states. Results go into the
    arrays from K on. DONE; SHORT: the best controller within the bounds; HELD: the reference came
    back; LOST: not even its trajectory is finite; NO_MARGINALS: nor can it be where it must.
    """
    T, nu, nx = K.shape
    nz = nx + nu
    V, F_t, G, Q = _work(nx, nu)
    Q_uu, Q_ux, Q_u = np.empty((T, nu, nu)), np.empty((T, nu, nx)), np.empty((T, nu))
    M, m_u, YY, each = np.empty((nu, nx)), np.empty(nu), np.empty((nx, nx)), np.empty(T)
    A, E, H = np.empty((nu, nu)), np.empty((nu, nu)), np.empty((nu, nu))
    spectrum = np.empty(nu), np.empty(nu), (A, E, H, np.empty((nu, nx)), np.empty(nu), np.empty(nx))
    scratch = (
        np.empty((nu, nu)), np.zeros((nu, nu)), np.empty((nu, nu)), np.empty((nu, 1)),
        np.empty(nu), np.zeros((nu, nz)), np.empty(nu), np.empty((nu, nz)), np.empty((nu, nz)),
        np.empty((nu, nu)),
    )  # fmt: skip
    S, m, KS = np.empty((nx, nx)), np.empty(nx), np.empty((nu, nx))
    F_c, FS = np.empty((nx, nz)), np.empty((nx, nz))
    # of the backward passes, with their eta; of the forward sweeps
    K_b, k_b, chol_b, used = np.empty(K.shape), np.empty(k.shape), np.empty(chol.shape), eta.copy()
    K_f, k_f, chol_f, asked = np.empty(K.shape), np.empty(k.shape), np.empty(chol.shape), eta.copy()
    mean_f, cov_f, kl_f, low = np.zeros((T, nz)), np.zeros((T, nz, nz)), np.zeros(T), np.zeros(T)
    damp, last = np.ones(T), np.zeros(T)
    least, most = cost_unit(C, c, K_old, k_old, chol_old, F, f, W, x0_mean, x0_cov, mean_f, cov_f)
    cold = not np.isfinite(eta[0])
    if cold:
        for t in range(T):
            used[t] = asked[t] = _FLOOR * least
    if cold or under:
        status, t = forward(
            K_old, k_old, chol_old, F, f, W, x0_mean, x0_cov, mean_f, cov_f
        )  # fmt: skip
        if status != OK and under:
            return NO_MARGINALS, t
        if status != OK:  # later steps have no states to be solved at
            for i in range(t, T):
                for j in range(nz):
                    mean_f[i, j] = np.nan
    best, have, n, shrink = np.inf, False, 0, 1.0
    while n < trace.shape[0]:
        # --- backward: values, and the controller that they belong to
        solve = under or n in (1, 2) or (cold and n == 0)
        moved = solve
        for t in range(T - 1, -1, -1):
            _action_value(C, c, C, c, 0.0, F, f, t, V, F_t, G, Q)
            blocks(Q, Q_uu[t], Q_ux[t], Q_u[t])
            q = Q_uu[t], Q_ux[t], Q_u[t]
            step = K_b[t], k_b[t], chol_b[t]
            reference = P[t], PK[t], Pk[t], K_old[t], k_old[t], chol_old[t], inv_old[t]
            if solve:
                used[t], kl_f[t], at_floor = _solve(
                    asked[t], w[t], bound[t] * shrink, tol, std_floor, q, reference, half_old[t],
                    mean_f[t], cov_f[t], step, spectrum, scratch,
                )  # fmt: skip
                low[t] = at_floor
            else:
                # in log eta, but for the last hundredth: an eta near its floor is as good as 0
                near = 0.01 * max(asked[t], used[t])
                way = np.log((asked[t] + near) / (used[t] + near))
                if not np.isfinite(way):
                    moved = moved or np.isfinite(asked[t]) or np.isfinite(used[t])
                    used[t], way, last[t] = asked[t], 0.0, 0.0
                if way * last[t] < 0.0:
                    damp[t] = max(_DAMP * damp[t], _LEAST)
                else:
                    damp[t] = min(_UNDAMP * damp[t], 1.0)
                last[t] = way
                moved = moved or abs(way) > 1e-11 or n == 0
                if damp[t] == 1.0 or way == 0.0:
                    used[t] = asked[t]
                else:
                    eta_t = (used[t] + near) * np.exp(damp[t] * way) - near
                    used[t] = min(max(eta_t, min(used[t], asked[t])), max(used[t], asked[t]))
                for _ in range(100):
                    good, _ = _step_at(used[t], w[t], std_floor, q, reference, step, scratch)
                    if good:
                        break
                    used[t] *= 4.0
                if not good:
                    used[t] = np.nan
            if not np.isfinite(used[t]):
                _copy(K_old[t], K_b[t])
                _copy(k_old[t], k_b[t])
                _copy(chol_old[t], chol_b[t])
            value_of_gains(Q, Q_uu[t], Q_ux[t], Q_u[t], K_b[t], k_b[t], M, m_u, YY, V)
            if not under and np.isfinite(used[t]):
                add_kl_value(K_b[t], k_b[t], K_old[t], k_old[t], inv_old[t], used[t], M, m_u, V)
        if not moved:
            break
        # --- the whole search, where the states do not depend on the controller
        if under:
            status, t = forward(K_b, k_b, chol_b, F, f, W, x0_mean, x0_cov, mean, cov)
            trace[n] = np.nan
            n += 1
            if status != OK:  # its bounds hold, but it diverges: stay closer
                shrink *= 0.25
                continue
            _copy(K_b, K)
            _copy(k_b, k)
            _copy(chol_b, chol)
            _copy(kl_f, kl)
            done, trace[n - 1] = shrink == 1.0, 0.0
            for t in range(T):
                at = abs(kl[t] - bound[t]) <= tol * bound[t] or low[t] == 1.0
                done = done and at and np.isfinite(used[t])
                found[t] = used[t] if np.isfinite(used[t]) else _FAR * most
                active[t] = low[t] == 0.0
                trace[n - 1] = max(trace[n - 1], kl[t] / bound[t])
            return DONE if done else SHORT, n
        # --- forward: every step that is not at its bound solved anew, at the states it will see
        _copy(x0_mean, m)
        _copy(x0_cov, S)
        consistent, finite, worst = True, True, 0.0
        for t in range(T):
            for i in range(nx):
                mean_f[t, i] = m[i]
                for j in range(nx):
                    cov_f[t, i, j] = S[i, j]
            for i in range(nx, nz):  # multiplied by 0, so that they must be numbers
                for j in range(nx):
                    cov_f[t, i, j] = 0.0
            reference = P[t], PK[t], Pk[t], K_old[t], k_old[t], chol_old[t], inv_old[t]
            step = K_b[t], k_b[t], chol_b[t]
            value = _kl_of(reference, half_old[t], mean_f[t], cov_f[t], step, scratch)
            worst = max(worst, min(value / bound[t], 1e300)) if np.isfinite(value) else 1e300
            keep = abs(value - bound[t]) <= tol * bound[t] and np.isfinite(used[t])
            low[t] = 0.0
            if not keep:
                q, step = (Q_uu[t], Q_ux[t], Q_u[t]), (K_f[t], k_f[t], chol_f[t])
                asked[t], kl_f[t], at_floor = _solve(
                    used[t], w[t], bound[t], tol, std_floor, q, reference, half_old[t],
                    mean_f[t], cov_f[t], step, spectrum, scratch,
                )  # fmt: skip
                low[t] = at_floor
                near = 0.5 * used[t] <= asked[t] <= 2.0 * used[t]
                keep = at_floor and near and value <= bound[t]
            if keep:
                _copy(K_b[t], K_f[t])
                _copy(k_b[t], k_f[t])
                _copy(chol_b[t], chol_f[t])
                asked[t], kl_f[t] = used[t], value
            consistent = consistent and keep
            if not place(K_f[t], k_f[t], chol_f[t], m, S, KS, mean_f[t], cov_f[t]):
                finite = False
                for i in range(T):
                    asked[i] *= 4.0
                for i in range(t, T):
                    mean_f[i, 0] = np.nan
                break
            if t < T - 1:
                advance(F[t], f[t], W[t], mean_f[t], cov_f[t], F_c, FS, m, S)
        trace[n] = worst if finite else np.nan
        n += 1
        if not finite:
            continue
        value = _objective(C, c, c0, w, chol_f, mean_f, cov_f, each)
        if consistent or not have or value < best:
            best, have = value, True
            _copy(K_f, K)
            _copy(k_f, k)
            _copy(chol_f, chol)
            _copy(mean_f, mean)
            _copy(cov_f, cov)
            _copy(kl_f, kl)
            for t in range(T):
                found[t] = asked[t] if np.isfinite(asked[t]) else _FAR * most
                active[t] = low[t] == 0.0
        if consistent:
            return DONE, n
    # --- is what has been found any better than the reference?
    status, t = forward(K_old, k_old, chol_old, F, f, W, x0_mean, x0_cov, mean_f, cov_f)
    if status != OK:
        return (SHORT, n) if have else (LOST, t)
    value = _objective(C, c, c0, w, chol_old, mean_f, cov_f, each)
    if have and not value < best:
        return SHORT, n
    _copy(K_old, K)
    _copy(k_old, k)
    _copy(chol_old, chol)
    _copy(mean_f, mean)
    _copy(cov_f, cov)
    for t in range(T):
        kl[t], found[t], active[t] = 0.0, _FAR * most, True
    return HELD, n
