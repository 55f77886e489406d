import numpy as np
import pytest

from gps import dynamics
from gps.distributions import MixturePriorConfig, update_prior
from gps.errors import ConfigError, FitError, NonFiniteError, ShapeError
from gps.types import Layout, LinearDynamics, Rollouts, iter_fields

NX, NU, T = 3, 2, 6


def truth():
    rng = np.random.default_rng(11)
    F = rng.normal(size=(T - 1, NX, NX + NU)) / 2
    A = rng.normal(size=(T - 1, NX, NX))
    return LinearDynamics(F, rng.normal(size=(T - 1, NX)), 0.1 * A @ A.transpose(0, 2, 1))


def simulate(model, rng, N, noise=1.0):
    X, U = np.empty((N, T, NX)), rng.normal(size=(N, T, NU))
    X[:, 0] = [1.0, -1.0, 0.5] + 0.2 * rng.normal(size=(N, NX))
    L = noise * np.linalg.cholesky(model.W)
    for t in range(T - 1):
        z = np.concatenate([X[:, t], U[:, t]], axis=1)
        X[:, t + 1] = z @ model.F[t].T + model.f[t] + rng.normal(size=(N, NX)) @ L[t].T
    return rollouts(X, U)


def rollouts(X, U):
    return Rollouts(X, U, X, np.zeros_like(U), Layout((("x", X.shape[2]),)), condition=3)


NO_PRIOR = dynamics.DynamicsConfig(prior=None, ridge=0)


def test_points_pair_each_step_with_the_next(rng):
    r = simulate(truth(), rng, 4)
    Y = dynamics.points(r.X, r.U)
    assert Y.shape == (4, T - 1, 2 * NX + NU)
    np.testing.assert_array_equal(Y[2, 3], np.r_[r.X[2, 3], r.U[2, 3], r.X[2, 4]])
    with pytest.raises(ShapeError, match="X and U"):
        dynamics.points(r.X, r.U[:, :-1])


def test_noiseless_dynamics_are_found_exactly(rng):
    model = truth()
    r = simulate(model, rng, 12, noise=0.0)
    got = dynamics.fit(r, None, NO_PRIOR).dynamics
    np.testing.assert_allclose(got.F, model.F, atol=1e-9)
    np.testing.assert_allclose(got.f, model.f, atol=1e-9)
    np.testing.assert_allclose(got.W, 0, atol=1e-12)
    assert dynamics.prediction_error(got, r).max() < 1e-9


def test_neither_little_noise_nor_a_distant_origin_is_rounding(rng):
    """Of positions as UTM coordinates have them, and of samples that hardly differ."""
    near = simulate(truth(), rng, 12, noise=0.0)
    want = dynamics.fit(near, None, NO_PRIOR).dynamics.F
    config = dynamics.DynamicsConfig(prior=None)
    plain = dynamics.fit(near, None, config).dynamics.F
    assert np.abs(plain - want).max() < 0.05
    for scale, offset in ((1.0, 5e7), (1e-8, 1.0)):
        far = rollouts(offset + scale * near.X, scale * near.U)
        found = dynamics.fit(far, None, config).dynamics.F
        np.testing.assert_allclose(found, plain, atol=1e-5)


def test_noise_covariance_within_five_sigma(rng):
    model, N = truth(), 20_000
    fit = dynamics.fit(simulate(model, rng, N), None, NO_PRIOR)
    W = model.W
    var = np.diagonal(W, axis1=1, axis2=2)
    sigma = np.sqrt((W**2 + var[:, :, None] * var[:, None, :]) / (N - NX - NU - 1))
    assert np.all(np.abs(fit.dynamics.W - W) < 5 * sigma)
    error = dynamics.prediction_error(fit.dynamics, simulate(model, rng, N))
    np.testing.assert_allclose(error, np.sqrt(var), rtol=0.05)
    np.testing.assert_allclose(fit.start.mean, [1, -1, 0.5], atol=5 * 0.2 / np.sqrt(N))
    np.testing.assert_allclose(fit.start.cov, 0.04 * np.eye(NX), atol=5e-3)


def test_prior_helps_where_samples_are_fewer_than_inputs(rng):
    first = truth()  # the same at all steps: other steps and rollouts tell about this one
    model = LinearDynamics(*(np.repeat(a[:1], T - 1, axis=0) for _, a in iter_fields(first)))
    config = dynamics.DynamicsConfig()
    r, test = simulate(model, rng, 3, 0.1), simulate(model, rng, 500, 0.1)
    earlier = simulate(model, rng, 17, 0.1)
    points = np.concatenate([dynamics.points(s.X, s.U) for s in (earlier, r)])
    prior = update_prior(None, points, config.prior, rng)
    plain, helped = (dynamics.fit(r, p, config).dynamics for p in (None, prior))
    errors = [dynamics.prediction_error(m, test).mean() for m in (plain, helped)]
    assert errors[1] < 0.3 * errors[0]
    np.linalg.cholesky(helped.W)


def test_strength_of_the_prior_reaches_the_fit(rng):
    r = simulate(truth(), rng, 3)
    fits = []
    for strength in (1e-3, 1.0, 1e3):
        config = dynamics.DynamicsConfig(prior=MixturePriorConfig(strength=strength))
        prior = update_prior(
            None, dynamics.points(r.X, r.U), config.prior, np.random.default_rng(0)
        )
        fits.append(dynamics.fit(r, prior, config).dynamics.F)
    assert np.abs(fits[0] - fits[1]).max() > 1e-3
    assert np.abs(fits[2] - fits[1]).max() > 1e-3


@pytest.mark.parametrize("standardise", [True, False])
def test_the_ridge_is_a_share_or_a_variance(rng, standardise):
    r = simulate(truth(), rng, 6)
    config = dynamics.DynamicsConfig(prior=None, ridge=1e-2, standardise=standardise)
    got = dynamics.fit(r, None, config).dynamics.F
    Z = np.concatenate([r.X, r.U], axis=2)[:, :-1]
    added = 1e-2 * (Z.reshape(-1, NX + NU).var(axis=0) if standardise else np.ones(NX + NU))
    for t in range(T - 1):
        z, y = (a[:, t] - a[:, t].mean(axis=0) for a in (Z, r.X[:, 1:]))
        want = np.linalg.solve(z.T @ z / 6 + np.diag(added), z.T @ y / 6).T
        np.testing.assert_allclose(got[t], want, rtol=1e-8, atol=1e-10)


def test_start_covariance(rng):
    x0 = rng.normal(size=(4, 3)) * [1.0, 1e-5, 0]
    config = dynamics.DynamicsConfig(x0_variance_floor=1e-4)
    cov = dynamics.start_covariance(x0, None, config)
    np.testing.assert_allclose(cov, np.diag([x0[:, 0].var(), 1e-4, 1e-4]))
    earlier = rng.normal(size=(7, 3)) + 2
    cov = dynamics.start_covariance(x0, earlier, config)
    d = x0.mean(axis=0) - earlier.mean(axis=0)
    want = 4 * np.diag(x0.var(axis=0)) + np.diag(earlier.var(axis=0)) + 4 / 5 * np.outer(d, d)
    np.testing.assert_allclose(cov, want / 5, rtol=1e-12)
    alone = dynamics.DynamicsConfig(x0_variance_floor=1e-4, x0_strength=0)
    without = dynamics.start_covariance(x0, None, alone)
    np.testing.assert_allclose(dynamics.start_covariance(x0, earlier, alone), without)


def test_start_stays_with_its_condition(rng):
    """A prior pooled over other starts leaves the mean alone, and the spread where asked."""
    model = truth()
    r = simulate(model, rng, 4)
    Y = np.concatenate([dynamics.points(r.X, r.U), dynamics.points(r.X + 3, r.U)])
    prior = update_prior(None, Y, MixturePriorConfig(), rng)
    fit = dynamics.fit(r, prior, dynamics.DynamicsConfig(x0_strength=0))
    np.testing.assert_allclose(fit.start.mean, r.X[:, 0].mean(axis=0))
    np.testing.assert_allclose(np.diag(fit.start.cov), r.X[:, 0].var(axis=0))


def test_same_bytes_twice(rng):
    r = simulate(truth(), rng, 4)
    both = []
    for _ in range(2):
        prior = update_prior(
            None, dynamics.points(r.X, r.U), MixturePriorConfig(), np.random.default_rng(4)
        )
        both.append(dynamics.fit(r, prior, dynamics.DynamicsConfig()).dynamics)
    for name in ("F", "f", "W"):
        assert getattr(both[0], name).tobytes() == getattr(both[1], name).tobytes()


def test_errors_say_what_is_wrong(rng):
    r = simulate(truth(), rng, 4)
    with pytest.raises(FitError, match="condition 3 cannot be fitted to 1 sample"):
        dynamics.fit(rollouts(r.X[:1], r.U[:1]), None, NO_PRIOR)
    for name, bad in (("states", "X"), ("actions", "U")):
        arrays = {"X": r.X.copy(), "U": r.U.copy()}
        arrays[bad][2, 4, 1] = np.nan
        with pytest.raises(NonFiniteError, match=f"{name} of condition 3, sample 2 at t=4"):
            dynamics.fit(rollouts(**arrays), None, NO_PRIOR)
    with pytest.raises(ShapeError, match="do not match"):
        dynamics.prediction_error(truth(), rollouts(r.X[:, :-1], r.U[:, :-1]))
    for wrong in ({"ridge": -1.0}, {"x0_variance_floor": 0.0}, {"x0_strength": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            dynamics.DynamicsConfig(**wrong)


def test_the_error_over_persistence_is_that_of_fits_without_the_sample(rng):
    """Exactly so for least squares, whose fit without one sample follows from leverages."""
    N = 9
    r = simulate(truth(), rng, N)
    error, persistence = np.zeros((N, T - 1, NX)), r.X[:, 1:] - r.X[:, :-1]
    for i in range(N):
        rest = [j for j in range(N) if j != i]
        model = dynamics.fit(rollouts(r.X[rest], r.U[rest]), None, NO_PRIOR).dynamics
        z = np.concatenate([r.X[i, :-1], r.U[i, :-1]], axis=1)
        error[i] = r.X[i, 1:] - (np.einsum("txz,tz->tx", model.F, z) + model.f)
    expected = np.sqrt((error**2).mean(axis=(0, 1)) / (persistence**2).mean(axis=(0, 1)))
    found = dynamics.fit(r, None, NO_PRIOR).error_ratio
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_the_error_over_persistence_shows_what_cannot_be_predicted(rng):
    """With a prior too; an entry without change has none, and too few samples no bound."""
    X, U = rng.normal(size=(8, 30, 3)), rng.normal(size=(8, 30, 1))
    for t in range(29):
        X[:, t + 1, 0] = X[:, t, 0] + 0.3 * U[:, t, 0]
    X[:, :, 2] = 4.0
    r = rollouts(X, U)
    config = dynamics.DynamicsConfig()
    prior = update_prior(None, dynamics.points(X, U), config.prior, rng)
    known, noise, _ = dynamics.fit(r, prior, config).error_ratio
    assert known < 0.1
    assert noise > 0.7  # of white noise, whose best prediction is its mean
    two = dynamics.fit(rollouts(X[:2], U[:2]), None, dynamics.DynamicsConfig(prior=None))
    assert two.error_ratio[0] > 3
