import logging
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from gps.distributions import GMMConfig, Mixture, log_likelihood, responsibilities
from gps.distributions.gmm import fit
from gps.errors import ConfigError, FitError, NonFiniteError, ShapeError


def blobs(rng, n=300, D=3, J=3, spread=4.0):
    centres = spread * rng.normal(size=(J, D))
    factors = rng.normal(size=(J, D, D)) / np.sqrt(D)
    which = rng.integers(J, size=n)
    return centres[which] + np.einsum("nij,nj->ni", factors[which], rng.normal(size=(n, D)))


def random_mixture(rng, J, D):
    A = rng.normal(size=(J, D, D))
    cov = A @ A.transpose(0, 2, 1) / D + 0.1 * np.eye(D)
    weight = rng.dirichlet(np.ones(J))
    return Mixture(2 * rng.normal(size=(J, D)), cov, np.log(weight))


def plain_log_joint(mixture, points):
    return np.stack(
        [
            w + multivariate_normal(m, c, allow_singular=False).logpdf(points)
            for m, c, w in zip(mixture.mean, mixture.cov, mixture.log_weight, strict=True)
        ],
        axis=1,
    )


def make_points(seed, n, D, kind):
    rng = np.random.default_rng(seed)
    if kind == "normal":
        return rng.normal(size=(n, D)) * 10.0 ** rng.uniform(-2, 2, size=D)
    if kind == "blobs":
        return blobs(rng, n, D, 4)
    if kind == "tiny clusters":  # far apart, of one to three points
        return 100 * rng.normal(size=(n, D))[rng.integers(max(n // 2, 1), size=n)] + 1e-3 * (
            rng.normal(size=(n, D))
        )
    if kind == "duplicates":
        return rng.normal(size=(n, D))[rng.integers(max(n // 5, 1), size=n)]
    if kind == "collinear":  # all coordinates follow one of two numbers, but for a little noise
        Y = rng.normal(size=(n, 2)) @ rng.normal(size=(2, D))
        return Y + rng.choice([0.0, 1e-6]) * rng.normal(size=(n, D))
    return np.ones((n, D))  # one point


KINDS = ["normal", "blobs", "tiny clusters", "duplicates", "collinear", "one point"]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(8, 120),
    D=st.sampled_from([1, 2, 5, 40]),
    J=st.integers(1, 8),
    kind=st.sampled_from(KINDS),
    floor=st.sampled_from([1e-6, 1e-2]),
)
def test_likelihood_never_falls(seed, n, D, J, kind, floor):
    points = make_points(seed, n, D, kind)
    config = GMMConfig(max_iterations=25, tol=0, covariance_floor=floor)
    result = fit(points, J, config, np.random.default_rng(seed))
    trace = result.log_likelihood
    assert np.all(np.isfinite(trace))
    assert np.all(np.diff(trace) >= -1e-9 * np.maximum(1, np.abs(trace[1:])))
    assert np.exp(result.mixture.log_weight).sum() == pytest.approx(1, abs=1e-12)
    R = responsibilities(result.mixture, points)
    assert R.min() >= 0
    np.testing.assert_allclose(R.sum(axis=1), 1, atol=1e-12)


def test_objective_is_what_the_docstring_says(rng):
    points, floor = blobs(rng), 1e-2
    points[:, 0] *= 30
    result = fit(points, 3, GMMConfig(covariance_floor=floor), rng)
    logs = plain_log_joint(result.mixture, points)
    inverse = np.linalg.inv(result.mixture.cov)
    logs -= 0.5 * floor * np.einsum("jdd,d->j", inverse, points.var(axis=0))
    assert result.log_likelihood[-1] == pytest.approx(logsumexp(logs, axis=1).mean(), rel=1e-12)
    assert result.log_likelihood[-1] < log_likelihood(result.mixture, points)


def test_units_do_not_matter(rng):
    """Each coordinate in another unit: the same components, in that unit, cold and warm."""
    points = make_points(3, 200, 5, "blobs")
    units = 10.0 ** np.array([-9, -3, 0, 4, 8])
    plain = fit(points, 4, GMMConfig(), np.random.default_rng(1))
    other = fit(points * units, 4, GMMConfig(), np.random.default_rng(1))
    for _ in range(2):
        np.testing.assert_allclose(other.mixture.mean, plain.mixture.mean * units, rtol=1e-6)
        cov = plain.mixture.cov * np.outer(units, units)
        size = np.sqrt(np.einsum("jaa,jbb->jab", cov, cov))
        assert np.abs((other.mixture.cov - cov) / size).max() < 1e-6
        np.testing.assert_allclose(other.mixture.log_weight, plain.mixture.log_weight, atol=1e-6)
        shifted = plain.log_likelihood - np.log(units).sum()
        np.testing.assert_allclose(other.log_likelihood, shifted, atol=1e-6)
        more = points + rng.normal(size=points.shape) * 0.1
        plain = fit(more, 5, GMMConfig(), rng, warm=plain.mixture)
        other = fit(more * units, 5, GMMConfig(), rng, warm=other.mixture)


def test_in_the_points_own_units_the_floor_is_a_variance(rng):
    points, floor = blobs(rng) * 3.0, 1e-2
    config = GMMConfig(covariance_floor=floor, standardise=False)
    result = fit(points, 3, config, rng)
    logs = plain_log_joint(result.mixture, points)
    logs -= 0.5 * floor * np.trace(np.linalg.inv(result.mixture.cov), axis1=1, axis2=2)
    assert result.log_likelihood[-1] == pytest.approx(logsumexp(logs, axis=1).mean(), rel=1e-12)


def test_a_cold_start_measures_distances_by_the_spread(rng):
    """Also in the points' own units: without a floor to speak of both ways are one fit."""
    points = blobs(rng) * np.array([1e4, 1.0, 1e-2])
    shares, own = (
        fit(points, 3, GMMConfig(max_iterations=2, covariance_floor=floor, standardise=flag), r)
        for floor, flag, r in (
            (1e-12, True, np.random.default_rng(4)),
            (1e-20, False, np.random.default_rng(4)),
        )
    )
    np.testing.assert_allclose(own.mixture.mean, shares.mixture.mean, rtol=1e-6)


def test_a_coordinate_that_is_constant_to_rounding(rng):
    """What rounding leaves of it is no spread, and means nothing."""
    points = blobs(rng)
    steady = np.full(len(points), 0.3)
    steady[::2] += 5e-17
    with_it = fit(np.c_[points, steady], 3, GMMConfig(), np.random.default_rng(1))
    without = fit(points, 3, GMMConfig(), np.random.default_rng(1))
    np.testing.assert_allclose(with_it.mixture.mean[:, :-1], without.mixture.mean, rtol=1e-8)
    np.testing.assert_allclose(with_it.mixture.mean[:, -1], 0.3)


@pytest.mark.parametrize("D", [3, 59])
def test_densities_and_responsibilities_against_scipy(rng, D):
    mixture = random_mixture(rng, 6, D)
    points = mixture.mean[rng.integers(6, size=200)] + rng.normal(size=(200, D))
    logs = plain_log_joint(mixture, points)
    want = np.exp(logs - logsumexp(logs, axis=1, keepdims=True))
    np.testing.assert_allclose(responsibilities(mixture, points), want, rtol=1e-8, atol=1e-15)
    got = log_likelihood(mixture, points)
    assert got == pytest.approx(logsumexp(logs, axis=1).mean(), rel=1e-12)


@pytest.mark.parametrize("D", [4, 40])
def test_same_iterations_as_scikit_learn(rng, D):
    from sklearn.mixture import GaussianMixture

    points = blobs(rng, 1200, D, 4, spread=0.3)
    start = random_mixture(rng, 4, D)
    start = replace(start, mean=0.1 * start.mean, cov=np.tile(np.cov(points.T), (4, 1, 1)))
    peer = GaussianMixture(
        4,
        tol=0,
        reg_covar=1e-13,
        max_iter=7,
        weights_init=np.exp(start.log_weight),
        means_init=start.mean,
        precisions_init=np.linalg.inv(start.cov),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer.fit(points)
    config = GMMConfig(max_iterations=7, tol=0, covariance_floor=1e-13, dead_mass=0)
    ours = fit(points, 4, config, rng, warm=start)
    np.testing.assert_allclose(ours.mixture.mean, peer.means_, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(ours.mixture.cov, peer.covariances_, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(np.exp(ours.mixture.log_weight), peer.weights_, rtol=1e-7)
    assert ours.log_likelihood[-1] == pytest.approx(peer.score(points), rel=1e-8)


def test_cold_start_finds_clear_clusters():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        centres = np.array([[0.0, 0], [20, 0], [0, 20], [20, 20]])
        points = centres[np.arange(400) % 4] + rng.normal(size=(400, 2))
        result = fit(points, 4, GMMConfig(), rng)
        gap = np.abs(result.mixture.mean[:, None] - centres).max(axis=2).min(axis=0)
        assert gap.max() < 0.5
        np.testing.assert_allclose(np.exp(result.mixture.log_weight), 0.25, atol=1e-6)


def test_a_dead_component_is_reseeded(rng, caplog):
    points = np.concatenate([rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + 15])
    start = Mixture(
        np.array([[7.0, 7.0], [1e4, 1e4]]),
        np.array([90 * np.eye(2), np.eye(2)]),
        np.log([0.5, 0.5]),
    )
    with caplog.at_level(logging.INFO, logger="gps.distributions.gmm"):
        result = fit(points, 2, GMMConfig(), rng, warm=start)
    assert result.reseeded == 1
    assert "died" in caplog.text
    np.testing.assert_allclose(np.exp(result.mixture.log_weight), 0.5, atol=1e-6)
    assert np.all(np.diff(result.log_likelihood) >= -1e-12)
    left = fit(points, 2, GMMConfig(dead_mass=0), rng, warm=start)
    assert left.reseeded == 0
    assert left.log_likelihood[-1] < result.log_likelihood[-1] - 1


def test_a_reseeding_that_lowers_the_likelihood_is_undone(rng):
    points = np.concatenate([rng.normal(size=(100, 3)), [[50.0, 0, 0]]])
    start = Mixture(
        np.array([[0.0, 0, 0], [50, 0, 0]]), np.array([np.eye(3)] * 2), np.log([0.99, 0.01])
    )
    result = fit(points, 2, GMMConfig(dead_mass=2), rng, warm=start)
    assert result.reseeded == 0
    np.testing.assert_allclose(result.mixture.mean[1], [50, 0, 0], atol=1e-6)
    assert np.all(np.diff(result.log_likelihood) >= -1e-12)


def test_warm_start_continues_the_same_fit(rng):
    points = blobs(rng, 400, 5, 6, spread=1.0)
    short, rest = GMMConfig(max_iterations=4, tol=0), GMMConfig(max_iterations=6, tol=0)
    whole = fit(points, 5, GMMConfig(max_iterations=10, tol=0), np.random.default_rng(1))
    first = fit(points, 5, short, np.random.default_rng(1))
    second = fit(points, 5, rest, np.random.default_rng(2), warm=first.mixture)
    np.testing.assert_allclose(second.mixture.mean, whole.mixture.mean, atol=1e-9)
    np.testing.assert_allclose(second.log_likelihood, whole.log_likelihood[4:], rtol=1e-10)


def test_a_warm_mixture_grows_and_shrinks(rng):
    points = np.concatenate([rng.normal(size=(100, 2)) + 30 * k for k in range(4)])
    two = fit(points, 2, GMMConfig(), np.random.default_rng(0)).mixture
    four = fit(points, 4, GMMConfig(), rng, warm=two)
    assert four.log_likelihood[0] > log_likelihood(two, points)
    np.testing.assert_allclose(np.exp(four.mixture.log_weight), 0.25, atol=1e-6)
    three = fit(points, 3, GMMConfig(), rng, warm=four.mixture)
    assert three.mixture.J == 3
    assert np.exp(three.mixture.log_weight).sum() == pytest.approx(1)


def test_stops_for_negative_and_positive_likelihoods():
    rng = np.random.default_rng(3)
    points = blobs(rng, 300, 3, 3)
    for scale in (1e-2, 1.0, 1e2):
        result = fit(
            scale * points,
            3,
            GMMConfig(max_iterations=200, tol=1e-6, covariance_floor=1e-8),
            np.random.default_rng(0),
        )
        assert 2 < len(result.log_likelihood) < 150


def test_same_bytes_twice_and_inputs_untouched():
    points = blobs(np.random.default_rng(0), 500, 40, 5)
    before = points.copy()
    points.setflags(write=False)
    a, b = (fit(points, 6, GMMConfig(), np.random.default_rng(7)) for _ in range(2))
    assert a.mixture.mean.tobytes() == b.mixture.mean.tobytes()
    assert a.mixture.cov.tobytes() == b.mixture.cov.tobytes()
    assert a.log_likelihood.tobytes() == b.log_likelihood.tobytes()
    np.testing.assert_array_equal(points, before)
    c = fit(points, 6, GMMConfig(), np.random.default_rng(0), warm=a.mixture)
    assert not c.mixture.mean.flags.writeable


def test_errors_say_what_is_wrong(rng):
    with pytest.raises(FitError, match="3 points cannot carry 4"):
        fit(rng.normal(size=(3, 2)), 4, GMMConfig(), rng)
    points = rng.normal(size=(10, 2))
    points[4, 1] = np.nan
    with pytest.raises(NonFiniteError, match="point 4"):
        fit(points, 2, GMMConfig(), rng)
    with pytest.raises(ShapeError, match="size 3"):
        fit(np.zeros((10, 2)), 2, GMMConfig(), rng, warm=random_mixture(rng, 2, 3))
    with pytest.raises(ShapeError, match="size 3"):
        responsibilities(random_mixture(rng, 2, 3), np.zeros((10, 2)))
    for wrong in (
        {"max_iterations": 0},
        {"tol": -1.0},
        {"covariance_floor": 0.0},
        {"dead_mass": float("nan")},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            GMMConfig(**wrong)
