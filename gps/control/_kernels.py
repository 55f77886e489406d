"""Array kernels of the package: no checks in here, see `gps.control._checks`.

Inputs are read-only C-ordered float64 arrays (as records hold them), outputs are writable ones, so
that each kernel is compiled once. Kernels return (status, t): OK, or why and at which step they
stopped. The products of the Riccati recursion are made of tiles that stay in registers (`_tile`),
other large products go to BLAS (`product`), the rest is plain loops whose inner index runs along
memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gps.compiling import inlined, inner, kernel
from gps.linalg import (
    cholesky,
    eigh_jacobi,
    invert_lower,
    solve_lower,
    solve_lower_t,
    symmetrise,
)

OK, NOT_POSITIVE_DEFINITE, NON_FINITE = 0, 1, 2
_FEW = 600  # multiplications below which a call of BLAS costs more than they do


@inner
def product(A, B, out):  # type: ignore[no-untyped-def]
    """out <- A B, for small matrices in plain loops."""
    n, m = out.shape
    k = A.shape[1]
    if n * m * k > _FEW:
        np.dot(A, B, out)
        return
    for i in range(n):
        for j in range(m):
            out[i, j] = A[i, 0] * B[0, j]
        for p in range(1, k):
            a = A[i, p]
            for j in range(m):
                out[i, j] += a * B[p, j]


@inner
def product_with(A, b, out):  # type: ignore[no-untyped-def]
    """out <- A b for a vector b; as `product`."""
    n, k = A.shape
    if n * k > _FEW:
        np.dot(A, b, out)
        return
    for i in range(n):
        s = 0.0
        for p in range(k):
            s += A[i, p] * b[p]
        out[i] = s


@inner
def _factor(A, N):  # type: ignore[no-untyped-def]
    """Lower N with A = N' N, reading A's lower triangle; a status as in `backward`.

    The order is chosen so that N^-1 is the lower Cholesky factor of A^-1: one factorisation gives
    both the gains and the covariance.
    """
    n = A.shape[0]
    for j in range(n - 1, -1, -1):
        s = A[j, j]
        for p in range(j + 1, n):
            s -= N[p, j] * N[p, j]
        if not np.isfinite(s):
            return NON_FINITE
        if s <= 0.0:
            return NOT_POSITIVE_DEFINITE
        d = np.sqrt(s)
        N[j, j] = d
        inv = 1.0 / d
        for i in range(j):
            s = A[j, i]
            for p in range(j + 1, n):
                s -= N[p, j] * N[p, i]
            N[j, i] = s * inv
            N[i, j] = 0.0
    return OK


LANES = 4  # numbers in a SIMD vector, and rows of a tile; LLVM splits what a machine lacks
SET, ADD = 0, 1


def _emit_tile(typingctx, mode, columns, A, B, depth, out, i, j):  # type: ignore[no-untyped-def]
    """out[i:i+4, j:j+columns] <- (or, with ADD, +=) A[:depth, i:i+4]' B[:depth, j:j+columns].

    mode and columns (4, 8 or 12) are literals; C-ordered float64 arrays. Written in LLVM's
    instructions, as its vectoriser makes loops in Python several times slower: 12 columns keep all
    of the 16 registers of AVX2 busy. Nothing is checked: all these entries must exist, and out must
    share none with A and B. NaN and inf spread as in plain loops; multiply and add may round once.
    """
    arrays = A, B, out
    if not all(isinstance(x, types.IntegerLiteral) for x in (mode, columns)):
        return None
    if not all(isinstance(x, types.Array) and x.layout == "C" and x.ndim == 2 for x in arrays):
        return None
    if any(x.dtype != types.float64 for x in arrays):
        return None
    n_vectors, adds = columns.literal_value // LANES, mode.literal_value == ADD
    index = types.intp
    signature = types.void(mode, columns, A, B, index, out, index, index)

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        A, B, out = (
            context.make_array(signature.args[n])(context, builder, args[n]) for n in (2, 3, 5)
        )
        depth, i, j = args[4], args[6], args[7]
        whole, double = cgutils.intp_t, ir.DoubleType()
        vector = ir.VectorType(double, LANES)
        first_lane = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        rows = [builder.add(i, whole(r)) for r in range(LANES)]
        starts = [builder.add(j, whole(LANES * v)) for v in range(n_vectors)]

        def pointer(array, row, column, kind):  # type: ignore[no-untyped-def]
            """To array[row, column], as the beginning of a number or a vector."""
            stride = cgutils.unpack_tuple(builder, array.strides)[0]
            offset = builder.add(builder.mul(row, stride), builder.mul(column, whole(8)))
            return cgutils.pointer_add(builder, array.data, offset, kind.as_pointer())

        # variables that LLVM turns into registers
        sums = {(row, v): cgutils.alloca_once(builder, vector) for row in rows for v in starts}
        for (row, v), total in sums.items():
            at = pointer(out, row, v, vector)
            value = builder.load(at, align=8) if adds else vector([0.0] * LANES)
            builder.store(value, total)
        with cgutils.for_range(builder, depth) as loop:
            b = {v: builder.load(pointer(B, loop.index, v, vector), align=8) for v in starts}
            for row in rows:
                a = builder.load(pointer(A, loop.index, row, double))
                a = builder.insert_element(vector(ir.Undefined), a, whole(0))
                a = builder.shuffle_vector(a, a, first_lane)  # the number in every lane
                for v in starts:
                    # "contract": a fused multiply-add where there is one
                    term = builder.fmul(a, b[v], flags=("contract",))
                    total = builder.fadd(builder.load(sums[row, v]), term, flags=("contract",))
                    builder.store(total, sums[row, v])
        for (row, v), total in sums.items():
            builder.store(builder.load(total), pointer(out, row, v, vector), align=8)
        return context.get_dummy_value()

    return signature, generate


_tile: Any = intrinsic(_emit_tile)  # kernels call it without the first argument


@kernel
def _set_product(A, B, depth, out, n, m):  # type: ignore[no-untyped-def]
    """out[:n, :m] <- A[:depth, :n]' B[:depth, :m], with n and m rounded up by `_padded`."""
    # a panel of B's columns stays in the nearest cache while all of A passes by
    for j in range(0, m, 12):
        for i in range(0, n, LANES):
            if m - j > 8:
                _tile(SET, 12, A, B, depth, out, i, j)
            elif m - j > 4:
                _tile(SET, 8, A, B, depth, out, i, j)
            else:
                _tile(SET, 4, A, B, depth, out, i, j)


@kernel
def _add_lower(A, B, depth, out, n):  # type: ignore[no-untyped-def]
    """Lower triangle of out[:n, :n] += A[:depth, :n]' B[:depth, :n]; n rounded up by `_padded`.

    Right of the diagonal up to three numbers a row are changed as well, and mean nothing.
    """
    for j in range(0, n, 12):
        for i in range(j, n, LANES):
            if i - j > 4:
                _tile(ADD, 12, A, B, depth, out, i, j)
            elif i - j > 0:
                _tile(ADD, 8, A, B, depth, out, i, j)
            else:
                _tile(ADD, 4, A, B, depth, out, i, j)


@kernel
def _padded(n):  # type: ignore[no-untyped-def]
    """n rounded up to whole tiles: the size that arrays of `_tile` need."""
    return (n + LANES - 1) // LANES * LANES


@inlined
def _work(nx, nu):  # type: ignore[no-untyped-def]
    """Arrays V, F_t, G, Q for `_action_value`."""
    n = _padded(nx + nu + 1)
    m = _padded(nx + 1)
    return np.zeros((m, m)), np.zeros((nx, n)), np.zeros((m, n)), np.zeros((n, n))


@inner
def _action_value(C, c, R, r, eta, F, f, t, V, F_t, G, Q):  # type: ignore[no-untyped-def]
    """Lower triangle of Q = [Q_zz; Q_z'] at step t, of cost C + eta R and the next step's value V.

    V = [V_xx, V_x] is read, its rows from nx on are not. Linear terms are one row or column more,
    so that they need no products of their own. The rest of each array is padding: it may hold
    anything, and no sum runs over it.
    """
    nz = c.shape[1]
    for i in range(nz):
        for j in range(i + 1):
            Q[i, j] = C[t, i, j] + eta * R[t, i, j]
    for j in range(nz):
        Q[nz, j] = c[t, j] + eta * r[t, j]
    if t == C.shape[0] - 1:
        return
    nx = F.shape[1]
    for i in range(nx):
        for j in range(nz):
            F_t[i, j] = F[t, i, j]
        F_t[i, nz] = f[t, i]
    # G = [V_xx F, V_xx f + V_x], then Q += G'F; V_xx is its own transpose
    _set_product(V, F_t, nx, G, nx, nz + 1)
    for i in range(nx):
        G[i, nz] += V[i, nx]
    _add_lower(G, F_t, nx, Q, nz + 1)


@kernel
def backward(C, c, R, r, eta, temperature, F, f, K, k, chol, Q_uu):  # type: ignore[no-untyped-def]
    """Riccati recursion for the cost C + eta R; Sigma[t] = temperature[t] Q_uu[t]^-1.

    When it stops early, Q_uu holds the block that has no factor.
    """
    T, nu, nx = K.shape
    nz = nx + nu
    V, F_t, G, Q = _work(nx, nu)
    m, n = _padded(nx + 1), _padded(nu)
    N, inv, inv_t = np.zeros((nu, nu)), np.zeros((nu, n)), np.zeros((nu, n))
    Y, minus_Y, gains = np.zeros((n, m)), np.zeros((n, m)), np.zeros((n, m))
    S = Q[nx:]
    for t in range(T - 1, -1, -1):
        _action_value(C, c, R, r, eta, F, f, t, V, F_t, G, Q)
        for i in range(nu):
            for j in range(i + 1):
                Q_uu[i, j] = Q_uu[j, i] = Q[nx + i, nx + j]
            S[i, nx] = Q[nz, nx + i]  # S = [Q_ux, Q_u]: overwrites a part of Q_uu, which is copied
        status = _factor(Q_uu, N)
        if status != OK:
            return status, t
        # with N^-1 = inv: Y = inv'S, [K, k] = -inv Y
        invert_lower(N, inv)
        scale = np.sqrt(temperature[t])
        for i in range(nu):
            for j in range(nu):
                inv_t[j, i] = inv[i, j]
                chol[t, i, j] = scale * inv[i, j]
        _set_product(inv, S, nu, Y, nu, nx + 1)
        for i in range(nu):
            for j in range(nx + 1):
                minus_Y[i, j] = -Y[i, j]
        _set_product(inv_t, minus_Y, nu, gains, nu, nx + 1)
        for i in range(nu):
            for j in range(nx):
                K[t, i, j] = gains[i, j]
            if not np.isfinite(gains[i, nx]):
                return NON_FINITE, t
            k[t, i] = gains[i, nx]
        # V = Q - Y'Y (equal to Q_xx + Q_xu K), with Q_x in the row below Q_xx, where S was
        for j in range(nx):
            Q[nx, j] = Q[nz, j]
        _add_lower(Y, minus_Y, nu, Q, nx + 1)
        for i in range(nx + 1):
            for j in range(i + 1):
                V[i, j] = V[j, i] = Q[i, j]
    return OK, 0


@kernel
def blocks(Q, Q_uu, Q_ux, Q_u):  # type: ignore[no-untyped-def]
    """Copy out the blocks of `_action_value`'s Q that belong to the action."""
    nu, nx = Q_ux.shape
    nz = nx + nu
    for i in range(nu):
        for j in range(i + 1):
            Q_uu[i, j] = Q_uu[j, i] = Q[nx + i, nx + j]
        for j in range(nx):
            Q_ux[i, j] = Q[nx + i, j]
        Q_u[i] = Q[nz, nx + i]


@kernel
def constrained_gains(Q_uu, Q_ux, Q_u, P, PK, Pk, eta, A, N, y, K, k, chol):  # type: ignore[no-untyped-def]
    """K, k and chol of one step, with the precision Q_uu / eta + P; a status as in `backward`.

    A and N (nu, nu) and y (nu, 1) are scratch.
    """
    nu, nx = K.shape
    inv = 1.0 / eta
    for i in range(nu):
        for j in range(nu):
            A[i, j] = inv * Q_uu[i, j] + P[i, j]
    status = _factor(A, N)
    if status != OK:
        return status
    for i in range(nu):
        for j in range(nx):
            K[i, j] = PK[i, j] - inv * Q_ux[i, j]
        y[i, 0] = Pk[i] - inv * Q_u[i]
    solve_lower_t(N, K)
    solve_lower_t(N, y)
    solve_lower(N, K)
    solve_lower(N, y)
    for i in range(nu):
        k[i] = y[i, 0]
        if not np.isfinite(k[i]):
            return NON_FINITE
    invert_lower(N, chol)
    return OK


@kernel
def value_of_gains(Q, Q_uu, Q_ux, Q_u, K, k, M, m, YY, V):  # type: ignore[no-untyped-def]
    """V = [V_xx, V_x] of one step under the gains; M (nu, nx), m (nu,), YY (nx, nx) are scratch."""
    nu, nx = K.shape
    nz = nx + nu
    # V_xx = Q_xx + K'(Q_uu K + 2 Q_ux), symmetrised; V_x alike
    for i in range(nu):
        m[i] = Q_u[i]
        for j in range(nx):
            M[i, j] = 2.0 * Q_ux[i, j]
        for p in range(nu):
            a = Q_uu[i, p]
            m[i] += a * k[p]
            for j in range(nx):
                M[i, j] += a * K[p, j]
    product(K.T, M, YY)
    for i in range(nx):
        s = Q[nz, i]
        for p in range(nu):
            s += K[p, i] * m[p] + Q_ux[p, i] * k[p]
        V[i, nx] = s
        for j in range(i + 1):
            V[i, j] = V[j, i] = Q[i, j] + 0.5 * (YY[i, j] + YY[j, i])


@kernel
def add_kl_value(K, k, K_old, k_old, inv_chol_old, eta, E, e, V):  # type: ignore[no-untyped-def]
    """V += eta times the part of one step's KL that depends on the state.

    E (nu, nx) and e (nu,) are scratch.
    """
    nu, nx = K.shape
    for i in range(nu):
        e[i] = 0.0
        for j in range(nx):
            E[i, j] = 0.0
        for p in range(i + 1):
            a = inv_chol_old[i, p]
            e[i] += a * (k[p] - k_old[p])
            for j in range(nx):
                E[i, j] += a * (K[p, j] - K_old[p, j])
    for i in range(nx):
        s = 0.0
        for p in range(nu):
            s += E[p, i] * e[p]
        V[i, nx] += eta * s
        for j in range(i + 1):
            s = 0.0
            for p in range(nu):
                s += E[p, i] * E[p, j]
            V[i, j] += eta * s
            V[j, i] = V[i, j]


@kernel
def backward_per_step(  # type: ignore[no-untyped-def]
    C, c, F, f, P, PK, Pk, K_old, k_old, inv_chol_old, eta, ahead, K, k, chol, Q_uu
):
    """As `backward`, with the precision Q_uu / eta[t] + P[t].

    The values are those of the cost, and with `ahead` of eta KL as well.
    """
    T, nu, nx = K.shape
    V, F_t, G, Q = _work(nx, nu)
    A, N, y = np.empty((nu, nu)), np.zeros((nu, nu)), np.empty((nu, 1))
    Q_ux, Q_u = np.empty((nu, nx)), np.empty(nu)
    M, m, YY = np.empty((nu, nx)), np.empty(nu), np.empty((nx, nx))
    for t in range(T - 1, -1, -1):
        _action_value(C, c, C, c, 0.0, F, f, t, V, F_t, G, Q)
        blocks(Q, Q_uu, Q_ux, Q_u)
        status = constrained_gains(
            Q_uu, Q_ux, Q_u, P[t], PK[t], Pk[t], eta[t], A, N, y, K[t], k[t], chol[t]
        )
        if status != OK:
            return status, t
        value_of_gains(Q, Q_uu, Q_ux, Q_u, K[t], k[t], M, m, YY, V)
        if ahead:
            add_kl_value(K[t], k[t], K_old[t], k_old[t], inv_chol_old[t], eta[t], M, m, V)
    return OK, 0


@inlined
def place(K, k, chol, m, S, KS, mean, cov):  # type: ignore[no-untyped-def]
    """Marginal of z = [x; u] at one step, from that of x; whether it is finite. KS is scratch."""
    nu, nx = K.shape
    product(K, S, KS)
    for i in range(nx):
        mean[i] = m[i]
        for j in range(nx):
            cov[i, j] = S[i, j]
    for i in range(nu):
        s = k[i]
        for j in range(nx):
            s += K[i, j] * m[j]
            cov[nx + i, j] = KS[i, j]
            cov[j, nx + i] = KS[i, j]
        mean[nx + i] = s
        for j in range(i + 1):
            s = 0.0
            for p in range(nx):
                s += KS[i, p] * K[j, p]
            for p in range(j + 1):
                s += chol[i, p] * chol[j, p]
            cov[nx + i, nx + j] = s
            cov[nx + j, nx + i] = s
    total = 0.0
    for i in range(nx + nu):
        total += 0.0 * mean[i] + 0.0 * cov[i, i]  # NaN where one is not finite
    return total == 0.0


@inlined
def advance(F, f, W, mean, cov, F_t, G, m, S):  # type: ignore[no-untyped-def]
    """Marginal m, S of the next step's x. F_t and G (nx, nz) are scratch."""
    for i in range(F.shape[0]):  # a copy has the type of the other factors: one variant less
        for j in range(F.shape[1]):
            F_t[i, j] = F[i, j]
    product(F_t, cov, G)
    product(G, F_t.T, S)
    product_with(F_t, mean, m)
    for i in range(len(m)):
        m[i] += f[i]
        for j in range(len(m)):
            S[i, j] += W[i, j]
    symmetrise(S)


@kernel
def forward(K, k, chol, F, f, W, x0_mean, x0_cov, mean, cov):  # type: ignore[no-untyped-def]
    """Marginals of z = [x; u] into mean, cov."""
    T, nu, nx = K.shape
    S, m, KS = np.empty((nx, nx)), np.empty(nx), np.empty((nu, nx))
    F_t, G = np.empty((nx, nx + nu)), np.empty((nx, nx + nu))
    for i in range(nx):
        m[i] = x0_mean[i]
        for j in range(nx):
            S[i, j] = x0_cov[i, j]
    for t in range(T):
        if not place(K[t], k[t], chol[t], m, S, KS, mean[t], cov[t]):
            return NON_FINITE, t
        if t < T - 1:
            advance(F[t], f[t], W[t], mean[t], cov[t], F_t, G, m, S)
    return OK, 0


@inlined
def divergence_at(  # type: ignore[no-untyped-def]
    K, k, chol, K_old, k_old, inv_chol_old, half_logdet_old, mean, cov, D, d, E, ES, L
):
    """KL of one step. D (nu, n), whose columns from nx on must be 0, d (nu,), E and ES as D, and
    L (nu, nu) are scratch, n the size of mean.
    """
    nu, nx = K.shape
    # D = K_old - K, zero where cov is not of the state, and E = Lbar^-1 D
    for i in range(nu):
        s = k_old[i] - k[i]
        for j in range(nx):
            D[i, j] = K_old[i, j] - K[i, j]
            s += D[i, j] * mean[j]
        d[i] = s
        for j in range(nu):
            L[i, j] = inv_chol_old[i, j]
    product(L, D, E)
    product(E, cov, ES)
    s = half_logdet_old - 0.5 * nu
    for i in range(nu):
        s -= np.log(chol[i, i])
        e = 0.0
        for p in range(i + 1):
            e += inv_chol_old[i, p] * d[p]
        s += 0.5 * e * e
        for j in range(i + 1):
            a = 0.0
            for p in range(j, i + 1):
                a += inv_chol_old[i, p] * chol[p, j]
            s += 0.5 * a * a
        for j in range(nx):
            s += 0.5 * E[i, j] * ES[i, j]
    return s


@kernel
def divergence(K, k, chol, K_old, k_old, inv_chol_old, half_logdet_old, mean, cov, kl):  # type: ignore[no-untyped-def]
    """KL per step; of mean and cov only the state part is read; returns the sum."""
    T, nu = k.shape
    n = cov.shape[1]
    D, d, E, ES = np.zeros((nu, n)), np.empty(nu), np.empty((nu, n)), np.empty((nu, n))
    L, total = np.empty((nu, nu)), 0.0
    for t in range(T):
        kl[t] = divergence_at(
            K[t], k[t], chol[t], K_old[t], k_old[t], inv_chol_old[t], half_logdet_old[t],
            mean[t], cov[t], D, d, E, ES, L,
        )  # fmt: skip
        total += kl[t]
    return total


@inlined
def trial(  # type: ignore[no-untyped-def]
    C, c, R, r, eta, temperature, std_floor, F, f, W, x0_mean, x0_cov,
    K_old, k_old, inv_chol_old, half_logdet_old,
    K, k, chol, mean, cov, kl, Q_uu, mean_at, cov_at,
):  # fmt: skip
    """Backward, forward and KL for one dual variable; (status, t, total KL).

    std_floor: minimum standard deviations (nu,), in units of the actions, or None: then what raises
    a covariance is not even compiled. mean_at, cov_at: the marginals that the KL is averaged over;
    for those of the trial itself, mean and cov.
    """
    status, t = backward(C, c, R, r, eta, temperature, F, f, K, k, chol, Q_uu)
    if status != OK:
        return status, t, np.nan
    if std_floor is not None:
        status, t = raise_covariance(chol, std_floor)
        if status != OK:
            return status, t, np.nan
    status, t = forward(K, k, chol, F, f, W, x0_mean, x0_cov, mean, cov)
    if status != OK:
        return status, t, np.nan
    total = divergence(
        K, k, chol, K_old, k_old, inv_chol_old, half_logdet_old, mean_at, cov_at, kl
    )  # fmt: skip
    if not np.isfinite(total):
        return NON_FINITE, 0, np.nan
    return OK, 0, total


@kernel
def expected_cost(C, c, c0, mean, cov, out):  # type: ignore[no-untyped-def]
    """Expectation of the quadratic cost under Gaussian marginals, per step."""
    T, nz = c.shape
    row = np.empty(nz)
    for t in range(T):
        for j in range(nz):
            row[j] = 2.0 * c[t, j] * mean[t, j]
        for i in range(nz):
            m = mean[t, i]
            for j in range(nz):
                row[j] += C[t, i, j] * (cov[t, i, j] + m * mean[t, j])
        s = 0.0
        for j in range(nz):
            s += row[j]
        out[t] = c0[t] + 0.5 * s


@kernel
def cost_unit(C, c, K, k, chol, F, f, W, x0_mean, x0_cov, mean, cov):  # type: ignore[no-untyped-def]
    """By how much a step's cost varies under a controller: (least, most) over the steps.

    In cost units, above 0 and finite. Of a step the largest |C_ij| s_i s_j and |C mean + c|_i s_i,
    with s the standard deviations of z: whatever the units of states and actions, the same. Steps
    of no variation, and those from which the marginals overflow, do not count; where none does, the
    largest coefficient is both. mean and cov are overwritten.
    """
    T, nz = c.shape
    status, stop = forward(K, k, chol, F, f, W, x0_mean, x0_cov, mean, cov)
    if status == OK:
        stop = T
    s, least, most, largest = np.empty(nz), np.inf, 0.0, 0.0
    for t in range(T):
        size = 0.0
        if t < stop:
            for i in range(nz):
                s[i] = np.sqrt(max(cov[t, i, i], 0.0))
        for i in range(nz):
            largest = max(largest, abs(c[t, i]))
            slope = c[t, i]
            for j in range(nz):
                largest = max(largest, abs(C[t, i, j]))
                if t < stop:
                    slope += C[t, i, j] * mean[t, j]
                    size = max(size, abs(C[t, i, j]) * s[i] * s[j])
            if t < stop:
                size = max(size, abs(slope) * s[i])
        if 0.0 < size < np.inf:
            least, most = min(least, size), max(most, size)
    if most == 0.0:
        least = most = largest if largest > 0.0 else 1.0
    return min(max(least, 1e-250), 1e250), min(max(most, 1e-250), 1e250)


@kernel
def relative_penalty(K, k, inv_chol, R, r):  # type: ignore[no-untyped-def]
    """Hessian R and gradient r about z = 0 of -log N(u; K x + k, Sigma)."""
    T, nu, nx = K.shape
    nz = nx + nu
    H, H_t, h = np.empty((nu, nz)), np.empty((nz, nu)), np.empty(nu)
    for t in range(T):
        # H = Lbar^-1 [-K, I], so that R = H'H
        for i in range(nu):
            h[i] = 0.0
            for j in range(nz):
                H[i, j] = 0.0
            for p in range(i + 1):
                a = inv_chol[t, i, p]
                h[i] -= a * k[t, p]
                H[i, nx + p] = a
                for j in range(nx):
                    H[i, j] -= a * K[t, p, j]
        for i in range(nu):
            for j in range(nz):
                H_t[j, i] = H[i, j]
        product(H_t, H, R[t])
        symmetrise(R[t])
        for j in range(nz):
            r[t, j] = 0.0
        for i in range(nu):
            for j in range(nz):
                r[t, j] += H[i, j] * h[i]


@kernel
def invert_factors(chol, inv, half_logdet):  # type: ignore[no-untyped-def]
    """Inverses and half log determinants of stacked lower factors."""
    T, nu, _ = chol.shape
    L = np.empty((nu, nu))
    for t in range(T):
        for i in range(nu):
            for j in range(i + 1):
                L[i, j] = chol[t, i, j]
        invert_lower(L, inv[t])
        s = 0.0
        for i in range(nu):
            s += np.log(chol[t, i, i])
        half_logdet[t] = s


@kernel
def scan_finite(A):  # type: ignore[no-untyped-def]
    """First index t at which A (T, n) is not finite, or -1."""
    for t in range(A.shape[0]):
        bad = 0
        for i in range(A.shape[1]):
            # x - x is 0 exactly for finite x and NaN otherwise
            bad |= A[t, i] - A[t, i] != 0.0
        if bad:
            return t
    return -1


@inlined
def scan_symmetry(A):  # type: ignore[no-untyped-def]
    """Largest |A - A'| / max |A| over the stacked matrices, and where."""
    worst, where = 0.0, 0
    n = A.shape[1]
    for t in range(A.shape[0]):
        size, off = 0.0, 0.0
        for i in range(n):
            size = max(size, abs(A[t, i, i]))
            for j in range(i):
                a, b = A[t, i, j], A[t, j, i]
                size = max(size, abs(a), abs(b))
                off = max(off, abs(a - b))
        if off > worst * size:
            worst, where = off / size, t
    return worst, where


@kernel
def scan_semidefinite(A, tolerance):  # type: ignore[no-untyped-def]
    """First t at which A (T, n, n) has an eigenvalue below -tolerance max(diag A), or -1.

    A factor of the shifted matrix decides, so that singular matrices and rounding pass. Matrices
    equal to the one before are not factored again.
    """
    T, n, _ = A.shape
    M = np.empty((n, n))
    for t in range(T):
        same = t > 0
        for i in range(n):
            if not same:
                break
            for j in range(n):
                same = same and A[t, i, j] == A[t - 1, i, j]
        if same:
            continue
        largest = 0.0
        for i in range(n):
            largest = max(largest, A[t, i, i])
            for j in range(i, n):
                M[i, j] = A[t, i, j]
        shift = tolerance * largest + 1e-307  # so that zero matrices pass
        # L D L', by rows of the upper triangle, four eliminations at a time; M[p, p] <- 1 / D[p]
        for i in range(n):
            M[i, i] += shift
            p = 0
            while p + 4 <= i:
                a, b = M[p, i] * M[p, p], M[p + 1, i] * M[p + 1, p + 1]
                c, d = M[p + 2, i] * M[p + 2, p + 2], M[p + 3, i] * M[p + 3, p + 3]
                for j in range(i, n):
                    M[i, j] = (
                        M[i, j] - a * M[p, j] - b * M[p + 1, j] - c * M[p + 2, j] - d * M[p + 3, j]
                    )
                p += 4
            while p < i:
                a = M[p, i] * M[p, p]
                for j in range(i, n):
                    M[i, j] -= a * M[p, j]
                p += 1
            if not M[i, i] > 0.0:
                return t
            M[i, i] = 1.0 / M[i, i]
    return -1


@inner
def raise_factor(L, std_floor, B, M, s, E):  # type: ignore[no-untyped-def]
    """Raise L L' to at least diag(std_floor^2), in place; (status, whether it was below).

    B, M, E (nu, nu) and s (nu,) are scratch. With D = diag(std_floor), the eigenvalues of
    D^-1 L L' D^-1 that are below 1 become 1. That is the nearest covariance above the floor in the
    sense that counts in the C-step: with L L' = h A^-1 it minimises tr(A Sigma) - h log|Sigma| over
    all Sigma >= D^2 (the optimum shares the eigenvectors of D A D). A factor that is above the
    floor, but for rounding, keeps its bytes.
    """
    nu = L.shape[0]
    size = 0.0
    for i in range(nu):
        for j in range(nu):
            B[i, j] = L[i, j] / std_floor[i] if j <= i else 0.0
    for i in range(nu):
        for j in range(i + 1):
            a = 0.0
            for p in range(j + 1):
                a += B[i, p] * B[j, p]
            M[i, j] = M[j, i] = a
        size += M[i, i]
    if not np.isfinite(size):
        return NON_FINITE, False
    least = 1.0 - 1e-12
    for i in range(nu):
        M[i, i] -= least
    if cholesky(M, E) == 0:
        return OK, False
    for i in range(nu):
        M[i, i] += least
    if eigh_jacobi(M, s, E) != 0:
        return NON_FINITE, False
    for i in range(nu):
        for j in range(i + 1):
            a = 0.0
            for p in range(nu):
                a += E[i, p] * max(s[p], 1.0) * E[j, p]
            M[i, j] = a
    if cholesky(M, B) != 0:
        return NON_FINITE, False
    for i in range(nu):
        for j in range(i + 1):
            L[i, j] = std_floor[i] * B[i, j]
    return OK, True


@kernel
def raise_covariance(chol, std_floor):  # type: ignore[no-untyped-def]
    """Raise stacked factors (T, nu, nu) to Sigma[t] >= diag(std_floor^2), in place; (status, t).

    std_floor (nu,) above 0, in action units. See `raise_factor`.
    """
    T, nu, _ = chol.shape
    B, M, E = np.empty((nu, nu)), np.empty((nu, nu)), np.empty((nu, nu))
    s = np.empty(nu)
    for t in range(T):
        status, _ = raise_factor(chol[t], std_floor, B, M, s, E)
        if status != OK:
            return status, t
    return OK, 0


@kernel
def scale_covariance(chol, eta, weight):  # type: ignore[no-untyped-def]
    """Factors of the covariance that an entropy weight gives: times sqrt(1 + weight / eta)."""
    T, nu, _ = chol.shape
    for t in range(T):
        scale = np.sqrt(1.0 + weight[t] / eta[t])
        for i in range(nu):
            for j in range(i + 1):
                chol[t, i, j] *= scale
