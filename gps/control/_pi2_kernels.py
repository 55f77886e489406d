"""Array kernels of `gps.control.pi2`; rules as in `gps.control._kernels`."""

from __future__ import annotations

import numpy as np

from gps.compiling import kernel
from gps.control._kernels import NOT_POSITIVE_DEFINITE, OK, product
from gps.linalg import cholesky, invert_lower


@kernel
def soft_weights(s, eta, p):  # type: ignore[no-untyped-def]
    """p ~ exp(-s / eta), summing to one, for s >= 0 with minimum 0; KL(p || uniform) in nats."""
    N, total = s.shape[0], 0.0
    for i in range(N):
        p[i] = np.exp(-s[i] / eta)
        total += p[i]
    mean = 0.0
    for i in range(N):
        p[i] /= total
        mean += p[i] * (s[i] / eta)
    return np.log(N / total) - mean


@kernel
def temperature_of(s, kl_max, low, high, p):  # type: ignore[no-untyped-def]
    """The temperature in [low, high] at which KL(p || uniform) is kl_max, by safeguarded Newton
    steps in its logarithm; an end of the interval where that KL is not reached. Fills p."""
    if soft_weights(s, low, p) <= kl_max:
        return low
    if soft_weights(s, high, p) >= kl_max:
        return high
    a, b = np.log(low), np.log(high)
    # KL ~ variance / (2 eta^2) at high temperature
    spread = 0.0
    mean = s.mean()
    for i in range(s.shape[0]):
        spread += (s[i] - mean) ** 2 / s.shape[0]
    x = np.log(np.sqrt(spread / (2.0 * kl_max)))
    for _ in range(200):
        if not (a < x < b):
            x = 0.5 * (a + b)
        eta = np.exp(x)
        kl = soft_weights(s, eta, p)
        if abs(kl - kl_max) <= 1e-12 * max(1.0, kl_max) or b - a <= 1e-15 * max(1.0, abs(x)):
            break
        if kl > kl_max:
            a = x
        else:
            b = x
        # d KL / d log eta = -Var_p[s] / eta^2
        mean = 0.0
        for i in range(s.shape[0]):
            mean += p[i] * s[i]
        slope = 0.0
        for i in range(s.shape[0]):
            slope += p[i] * ((s[i] - mean) / eta) ** 2
        x = x + (kl - kl_max) / slope if slope > 0.0 else 0.5 * (a + b)
    return np.exp(x)


@kernel
def update(X, U, costs, K, chol, kl_max, low, given, damping, floor, k, new_chol, eta, kl, P):  # type: ignore[no-untyped-def]
    """New offsets and factors; see `gps.control.pi2.update`.

    given: temperatures (T,) that are above 0, or 0 where they are to be found. damping: exponent
    1 / damping of the old covariance's scale; 0 takes the weighted covariance and adds `floor`
    times the old one. Returns (status, t).
    """
    N, T, nu = U.shape
    nx = X.shape[2]
    togo, s, E = np.zeros(N), np.empty(N), np.empty((N, nu))
    inv, S, gains = np.zeros((nu, nu)), np.empty((nu, nu)), np.empty((nx, nu))
    X_t, fed_back = np.empty((N, nx)), np.empty((N, nu))
    for t in range(T - 1, -1, -1):
        for i in range(N):
            togo[i] += costs[i, t]
        least, most = togo.min(), togo.max()
        for i in range(N):
            s[i] = togo[i] - least
        p = P[t]
        if given[t] > 0.0:
            eta[t] = given[t]
        else:
            # the second keeps differences that are rounding from weighing anything
            span = most - least
            floor_t = max(low * span, 1e-12 * max(abs(most), abs(least)), 1e-290)
            # above this the KL is below kl_max whatever the costs: it is under (range/eta)^2 / 8
            high = max(floor_t, span / np.sqrt(8.0 * kl_max) * 1.01)
            eta[t] = temperature_of(s, kl_max, floor_t, high, p)
        kl[t] = soft_weights(s, eta[t], p)
        for a in range(nu):
            k[t, a] = 0.0
            for j in range(nx):
                gains[j, a] = K[t, a, j]
        X_t[:] = X[:, t]
        product(X_t, gains, fed_back)
        for i in range(N):
            for a in range(nu):
                E[i, a] = U[i, t, a] - fed_back[i, a]
                k[t, a] += p[i] * E[i, a]
        S[:] = 0.0
        for i in range(N):
            for a in range(nu):
                E[i, a] -= k[t, a]
            for a in range(nu):
                for b in range(a + 1):
                    S[a, b] += p[i] * E[i, a] * E[i, b]
        if damping > 0.0:
            # tr(Sigma^-1 S) = sum_i p_i |L^-1 e_i|^2
            invert_lower(chol[t], inv)
            trace = 0.0
            for i in range(N):
                for a in range(nu):
                    h = 0.0
                    for b in range(a + 1):
                        h += inv[a, b] * E[i, b]
                    trace += p[i] * h * h
            scale = (trace / nu) ** (0.5 / damping)
            scale = max(scale, np.sqrt(floor))
            for a in range(nu):
                for b in range(nu):
                    new_chol[t, a, b] = scale * chol[t, a, b]
        else:
            for a in range(nu):
                for b in range(a + 1):
                    for c in range(b + 1):
                        S[a, b] += floor * chol[t, a, c] * chol[t, b, c]
            if cholesky(S, new_chol[t]) != 0:
                return NOT_POSITIVE_DEFINITE, t
    return OK, 0
