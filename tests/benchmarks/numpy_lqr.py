"""The passes in plain numpy and scipy, step by step: what the kernels are measured against."""

import numpy as np
from scipy.linalg import cholesky, solve_triangular


def backward(F, f, C, c):
    """Gains K (T, nu, nx), k (T, nu) and lower factors of Q_uu^-1 (T, nu, nu)."""
    T, nz = c.shape
    nx = F.shape[1]
    nu = nz - nx
    K, k, chol = np.empty((T, nu, nx)), np.empty((T, nu)), np.empty((T, nu, nu))
    V_xx, V_x = np.zeros((nx, nx)), np.zeros(nx)
    eye = np.eye(nu)
    for t in range(T - 1, -1, -1):
        Q_zz, Q_z = C[t], c[t]
        if t < T - 1:
            Q_zz = Q_zz + F[t].T @ V_xx @ F[t]
            Q_z = Q_z + F[t].T @ (V_x + V_xx @ f[t])
            Q_zz = 0.5 * (Q_zz + Q_zz.T)
        L = cholesky(Q_zz[nx:, nx:], lower=True)
        Q_ux, Q_u = Q_zz[nx:, :nx], Q_z[nx:]
        K[t] = -solve_triangular(L, solve_triangular(L, Q_ux, lower=True), lower=True, trans=1)
        k[t] = -solve_triangular(L, solve_triangular(L, Q_u, lower=True), lower=True, trans=1)
        Linv = solve_triangular(L, eye, lower=True)
        chol[t] = cholesky(Linv.T @ Linv, lower=True)
        V_xx = Q_zz[:nx, :nx] + Q_ux.T @ K[t]
        V_xx = 0.5 * (V_xx + V_xx.T)
        V_x = Q_z[:nx] + Q_ux.T @ k[t]
    return K, k, chol


def forward(F, f, W, K, k, chol, x0_mean, x0_cov):
    """Marginals of [x; u]: mean (T, nz), cov (T, nz, nz)."""
    T, nu, nx = K.shape
    mean, cov = np.empty((T, nx + nu)), np.empty((T, nx + nu, nx + nu))
    m, S = x0_mean, x0_cov
    for t in range(T):
        KS = K[t] @ S
        mean[t, :nx], mean[t, nx:] = m, K[t] @ m + k[t]
        cov[t, :nx, :nx], cov[t, nx:, :nx], cov[t, :nx, nx:] = S, KS, KS.T
        cov[t, nx:, nx:] = KS @ K[t].T + chol[t] @ chol[t].T
        if t < T - 1:
            S = F[t] @ cov[t] @ F[t].T + W[t]
            m = F[t] @ mean[t] + f[t]
    return mean, cov


def kl_per_step(K, k, chol, K_old, k_old, chol_old, mean, cov):
    """KL of the actions under state marginals, (T,)."""
    T, nu, nx = K.shape
    kl = np.empty(T)
    for t in range(T):
        dK, d = K_old[t] - K[t], k_old[t] - k[t]
        a = solve_triangular(chol_old[t], dK, lower=True)
        b = solve_triangular(chol_old[t], dK @ mean[t, :nx] + d, lower=True)
        s = solve_triangular(chol_old[t], chol[t], lower=True)
        logdet = 2 * (np.log(np.diag(chol_old[t])).sum() - np.log(np.diag(chol[t])).sum())
        quadratic = b @ b + np.sum((a @ cov[t, :nx, :nx]) * a)
        kl[t] = 0.5 * (logdet - nu + np.sum(s * s) + quadratic)
    return kl


def penalised(C, c, K_old, k_old, chol_old, eta):
    """(cost + eta * (-log previous)) / eta, per step."""
    T, nu, _ = K_old.shape
    eye = np.eye(nu)
    C_new, c_new = np.empty_like(C), np.empty_like(c)
    for t in range(T):
        H = solve_triangular(chol_old[t], np.hstack([-K_old[t], eye]), lower=True)
        C_new[t] = C[t] / eta + H.T @ H
        c_new[t] = c[t] / eta - H.T @ solve_triangular(chol_old[t], k_old[t], lower=True)
    return C_new, c_new
