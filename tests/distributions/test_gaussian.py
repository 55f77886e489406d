import numpy as np
import pytest
from scipy.stats import multivariate_normal

from gps.distributions import condition, kl, log_density
from gps.errors import NotPositiveDefiniteError, ShapeError
from gps.types import Gaussian


def random_gaussian(rng, n):
    A = rng.normal(size=(n, n))
    return Gaussian(rng.normal(size=n), A @ A.T + 0.1 * np.eye(n))


def test_log_density_against_scipy(rng):
    g = random_gaussian(rng, 5)
    points = rng.normal(size=(4, 6, 5))
    want = multivariate_normal(g.mean, g.cov).logpdf(points)
    np.testing.assert_allclose(log_density(g, points), want, rtol=1e-10)
    with pytest.raises(ShapeError, match="size 5"):
        log_density(g, points[..., :4])


def test_kl(rng):
    p, q = random_gaussian(rng, 4), random_gaussian(rng, 4)
    assert kl(p, p) == pytest.approx(0, abs=1e-12)
    inv, d = np.linalg.inv(q.cov), q.mean - p.mean
    logdet = np.log(np.linalg.det(q.cov) / np.linalg.det(p.cov))
    want = 0.5 * (np.trace(inv @ p.cov) + d @ inv @ d - 4 + logdet)
    assert kl(p, q) == pytest.approx(want, rel=1e-10)
    x = rng.multivariate_normal(p.mean, p.cov, size=200_000)
    ratio = log_density(p, x) - log_density(q, x)
    assert abs(ratio.mean() - want) < 5 * ratio.std() / np.sqrt(len(x))
    with pytest.raises(NotPositiveDefiniteError, match=r"old\.cov.*smallest eigenvalue"):
        kl(p, Gaussian(q.mean, -q.cov))


def test_condition_rebuilds_the_joint(rng):
    g = random_gaussian(rng, 6)
    G, offset, W = condition(g, 4)
    S = g.cov[:4, :4]
    np.testing.assert_allclose(G @ S, g.cov[4:, :4], atol=1e-10)
    np.testing.assert_allclose(G @ S @ G.T + W, g.cov[4:, 4:], atol=1e-10)
    np.testing.assert_allclose(G @ g.mean[:4] + offset, g.mean[4:], atol=1e-12)
    with pytest.raises(ShapeError, match="n_in"):
        condition(g, 6)
