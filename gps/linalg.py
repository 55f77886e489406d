"""Small dense linear algebra for numba kernels, with a status where numpy would raise.

All arrays are contiguous float64. Matrices are small (a few tens of rows): plain loops are as fast
as LAPACK there and, unlike a function pointer, can be cached on disk.
"""

from __future__ import annotations

import numpy as np

from gps.compiling import inner, kernel
from gps.types import Array


@kernel
def cholesky(A, L):  # type: ignore[no-untyped-def]
    """Lower factor of A into L (upper part set to 0), reading A's lower triangle.

    Returns 0, or 1 + the index of the first pivot that is not above zero (NaN included).
    """
    n = A.shape[0]
    for j in range(n):
        s = A[j, j]
        for p in range(j):
            s -= L[j, p] * L[j, p]
        if not s > 0.0:
            return j + 1
        d = np.sqrt(s)
        if not np.isfinite(d):
            return j + 1
        L[j, j] = d
        inv = 1.0 / d
        for i in range(j + 1, n):
            s = A[i, j]
            for p in range(j):
                s -= L[i, p] * L[j, p]
            L[i, j] = s * inv
            L[j, i] = 0.0
    return 0


@kernel
def solve_lower(L, B):  # type: ignore[no-untyped-def]
    """Overwrite B (n, m) with L^-1 B."""
    n, m = B.shape
    for i in range(n):
        for p in range(i):
            a = L[i, p]
            for j in range(m):
                B[i, j] -= a * B[p, j]
        inv = 1.0 / L[i, i]
        for j in range(m):
            B[i, j] *= inv


@kernel
def solve_lower_t(L, B):  # type: ignore[no-untyped-def]
    """Overwrite B (n, m) with L'^-1 B."""
    n, m = B.shape
    for i in range(n - 1, -1, -1):
        for p in range(i + 1, n):
            a = L[p, i]
            for j in range(m):
                B[i, j] -= a * B[p, j]
        inv = 1.0 / L[i, i]
        for j in range(m):
            B[i, j] *= inv


@inner
def invert_lower(L, out):  # type: ignore[no-untyped-def]
    """L^-1 into out, lower triangular."""
    n = L.shape[0]
    for i in range(n):
        for j in range(n):
            out[i, j] = 0.0
        for p in range(i):
            a = L[i, p]
            for j in range(p + 1):
                out[i, j] -= a * out[p, j]
        inv = 1.0 / L[i, i]
        for j in range(i):
            out[i, j] *= inv
        out[i, i] = inv


@inner
def symmetrise(A):  # type: ignore[no-untyped-def]
    """Overwrite A with (A + A') / 2."""
    n = A.shape[0]
    for i in range(n):
        for j in range(i):
            m = 0.5 * (A[i, j] + A[j, i])
            A[i, j] = m
            A[j, i] = m


@kernel
def eigh_jacobi(A, s, E):  # type: ignore[no-untyped-def]
    """Eigenvalues s (n,), ascending, and eigenvectors, the columns of E, of a symmetric A.

    By Jacobi's rotations in a fixed order; A is read whole and overwritten. Small eigenvalues of a
    positive definite matrix come out to relative precision where scaling its diagonal to 1 makes it
    well-conditioned. Returns 0, or 1 if A is not finite (then s and E mean nothing).
    Source: Golub & Van Loan, Matrix Computations, section 8.5.
    """
    n = A.shape[0]
    size = 0.0
    for i in range(n):
        for j in range(n):
            E[i, j] = 0.0
            if not np.isfinite(A[i, j]):
                return 1
            size = max(size, abs(A[i, j]))
        E[i, i] = 1.0
    for _ in range(60):  # six or so are needed
        turned = False
        for p in range(n - 1):
            for q in range(p + 1, n):
                a = A[p, q]
                least = np.sqrt(abs(A[p, p])) * np.sqrt(abs(A[q, q]))
                if abs(a) <= max(5e-17 * least, 5e-32 * size):
                    continue
                turned = True
                # the smaller of the two angles whose rotation makes A[p, q] vanish
                half = 0.5 * (A[q, q] / a - A[p, p] / a)
                tan = 0.0
                if abs(half) < 1e150:
                    tan = 1.0 / (abs(half) + np.sqrt(1.0 + half * half))
                elif np.isfinite(half):
                    tan = 0.5 / abs(half)
                if half < 0.0:
                    tan = -tan
                cos = 1.0 / np.sqrt(1.0 + tan * tan)
                sin = tan * cos
                A[p, p] -= tan * a
                A[q, q] += tan * a
                A[p, q] = A[q, p] = 0.0
                for i in range(n):
                    if i != p and i != q:
                        u, v = A[i, p], A[i, q]
                        A[i, p] = A[p, i] = cos * u - sin * v
                        A[i, q] = A[q, i] = sin * u + cos * v
                    u, v = E[i, p], E[i, q]
                    E[i, p] = cos * u - sin * v
                    E[i, q] = sin * u + cos * v
        if not turned:
            break
    for i in range(n):
        s[i] = A[i, i]
    for i in range(n - 1):  # by selection
        k = i
        for j in range(i + 1, n):
            if s[j] < s[k]:
                k = j
        if k != i:
            s[i], s[k] = s[k], s[i]
            for j in range(n):
                u = E[j, i]
                E[j, i] = E[j, k]
                E[j, k] = u
    return 0


@kernel
def half_logdet(L):  # type: ignore[no-untyped-def]
    """Half the log determinant of L L'."""
    s = 0.0
    for i in range(L.shape[0]):
        s += np.log(L[i, i])
    return s


def smallest_eigenvalue(A: Array) -> float:
    """Of the symmetric part of A; NaN if A is not finite. For error messages."""
    if not np.all(np.isfinite(A)):
        return float("nan")
    return float(np.linalg.eigvalsh((A + A.T) / 2)[0])
