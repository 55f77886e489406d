"""The compiled loops on their own, at sizes that do and do not fill their blocks."""

import numpy as np
import pytest
from scipy.linalg import solve_triangular
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from gps.distributions import Mixture, _kernels, m_step, mixture_moments, responsibilities
from gps.distributions.gmm import _EM


def positive_definite(rng, n):
    A = rng.normal(size=(2 * n, n))
    return A.T @ A / n + 0.1 * np.eye(n)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 13, 26, 33, 59])
def test_triangular_loops_against_lapack(rng, n):
    A, V = positive_definite(rng, n), rng.normal(size=(n, 7))
    lower_is_not_read = A.copy()
    lower_is_not_read[np.tril_indices(n, -1)] = np.nan
    U, inverse = np.full((n, n), 99.0), np.full((n, n), np.nan)
    assert _kernels.cholesky_upper(lower_is_not_read, U) == 0
    want = np.linalg.cholesky(A).T
    np.testing.assert_allclose(np.triu(U), want, rtol=1e-10, atol=1e-12)
    assert np.all(U[np.tril_indices(n, -1)] == 99.0)
    _kernels.invert_upper(U, inverse)
    np.testing.assert_allclose(inverse, np.linalg.inv(want), rtol=1e-9, atol=1e-11)
    for solve, trans in ((_kernels.solve_upper, "N"), (_kernels.solve_upper_t, "T")):
        got = V.copy()
        solve(U, got)
        np.testing.assert_allclose(got, solve_triangular(want, V, trans=trans), rtol=1e-9)


@pytest.mark.parametrize("bad", [0, 3, 6])
@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_cholesky_names_the_first_bad_pivot(rng, bad, value):
    A = positive_definite(rng, 7)
    A[bad, bad] = value
    assert _kernels.cholesky_upper(A, np.empty((7, 7))) == bad + 1


@pytest.mark.parametrize("D", [1, 2, 7, 33, 59])
def test_m_step_is_weighted_moments(rng, D):
    points, R = rng.normal(size=(150, D)) + 5.0, rng.dirichlet(np.full(4, 0.1), size=150)
    R[R < 0.05] = 0.0  # most points belong to few components
    mixture = m_step(points, R, 1e-3)
    for j in range(4):
        np.testing.assert_allclose(mixture.mean[j], np.average(points, axis=0, weights=R[:, j]))
        cov = np.cov(points.T, aweights=R[:, j], ddof=0).reshape(D, D) + 1e-3 * np.eye(D)
        np.testing.assert_allclose(mixture.cov[j], cov, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(mixture.cov, mixture.cov.transpose(0, 2, 1))


@pytest.mark.parametrize("D", [16, 33, 40, 59, 80])
def test_bounds_leave_out_only_what_does_not_count(rng, D):
    """Components that part early, late and not at all in the order of the coordinates."""
    mean = np.zeros((8, D))
    for j in range(1, 7):
        mean[j, D * j // 8 :] = 4.0 * rng.normal(size=D - D * j // 8)
    cov = np.array([positive_definite(rng, D) for _ in range(8)])
    mixture = Mixture(mean, cov, np.log(rng.dirichlet(np.ones(8))))
    which = rng.integers(8, size=300)
    points = mean[which] + np.einsum(
        "nij,nj->ni", np.linalg.cholesky(cov)[which], rng.normal(size=(300, D))
    )
    logs = mixture.log_weight + np.stack(
        [multivariate_normal(m, c).logpdf(points) for m, c in zip(mean, cov, strict=True)], axis=1
    )
    want = np.exp(logs - logsumexp(logs, axis=1, keepdims=True))
    got = responsibilities(mixture, points)
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-17)
    assert 0.05 < np.mean(got == 0) < 0.95  # some were left out, some not


def test_moments_of_a_mixture_under_other_weights(rng):
    D = 9
    cov = np.array([positive_definite(rng, D) for _ in range(4)])
    mixture, w = Mixture(rng.normal(size=(4, D)), cov, np.log(np.full(4, 0.25))), rng.random(4)
    w[2], w = 0.0, w / (w.sum() - w[2])
    w[2] = 0.0
    mu, S = mixture_moments(mixture, w)
    np.testing.assert_allclose(mu, w @ mixture.mean)
    second = np.einsum("j,jab->ab", w, cov + np.einsum("ja,jb->jab", mixture.mean, mixture.mean))
    np.testing.assert_allclose(S, second - np.outer(mu, mu), rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(S, S.T)


def test_the_heaviest_component_is_cut_across_its_long_axis(rng):
    points = rng.normal(size=(200, 3)) * [1.0, 9.0, 1.0]
    em = _EM(points, 3, 1e-6)
    em.resp[:] = 0.0
    em.resp[:120, 0], em.resp[120:, 1] = 1.0, 1.0
    em.resp[:40, 0], em.resp[:40, 1] = 0.75, 0.25
    before = em.resp.copy()
    em.split_heaviest(2)
    np.testing.assert_array_equal(em.resp[:, 1], before[:, 1])
    np.testing.assert_array_equal(em.resp[:, 0] + em.resp[:, 2], before[:, 0])
    moved = em.resp[:120, 2] > 0
    left, right = points[:120, 1][moved], points[:120, 1][~moved]
    low, high = sorted((left, right), key=np.mean)
    assert low.max() < high.min() + 0.5  # the axis is the second coordinate's, nearly
    assert 30 < moved.sum() < 90
