import pickle
from dataclasses import replace

import numpy as np
import pytest

from gps.distributions import (
    NIW,
    GMMConfig,
    Mixture,
    MixturePrior,
    MixturePriorConfig,
    condition,
    fit_linear_gaussian,
    mixture_moments,
    mixture_prior,
    posterior_covariance,
    responsibilities,
    update_prior,
)
from gps.errors import ConfigError, FitError, NonFiniteError, ShapeError
from gps.types import Gaussian

NI, NO, TP = 4, 3, 12
CONFIG = MixturePriorConfig(max_samples=10)


def linear_data(rng, N, noise=0.01):
    """Outputs linear in the inputs, with a gain that drifts from step to step."""
    drift = 1 + 0.05 * np.arange(TP)[:, None, None]
    G = drift * np.random.default_rng(5).normal(size=(NO, NI))
    X = rng.normal(size=(N, TP, NI)) + np.arange(TP)[:, None]
    return X, np.einsum("toi,nti->nto", G, X) + 1.5 + noise * rng.normal(size=(N, TP, NO)), G


def joint(X, Z):
    return np.concatenate([X, Z], axis=2)


@pytest.mark.parametrize("N", [2, 3, 40])
def test_without_prior_it_is_ridge_regression(rng, N):
    X, Z, _ = linear_data(rng, N)
    ridge = 1e-3
    fit = fit_linear_gaussian(X, Z, None, ridge=ridge)
    spread = X.reshape(-1, NI).std(axis=0)
    for t in range(TP):
        A, B = X[:, t] - X[:, t].mean(axis=0), Z[:, t] - Z[:, t].mean(axis=0)
        A_all = np.vstack([A, np.sqrt(N * ridge) * np.diag(spread)])
        B_all = np.vstack([B, np.zeros((NI, NO))])
        gain = np.linalg.lstsq(A_all, B_all, rcond=None)[0].T
        np.testing.assert_allclose(fit.gain[t], gain, rtol=1e-8, atol=1e-9)
        R = B_all - A_all @ gain.T
        np.testing.assert_allclose(fit.cov[t], R.T @ R / N, rtol=1e-6, atol=1e-9)
    predicted = fit.predict(X.mean(axis=0))
    np.testing.assert_allclose(predicted, Z.mean(axis=0), rtol=1e-10)


def test_kernel_is_niw_posterior_then_conditioning(rng):
    X, Z, _ = linear_data(rng, 3)
    Y = joint(X, Z)
    prior = update_prior(None, joint(*linear_data(rng, 6)[:2]), CONFIG, rng)
    ridge, strength = 1e-4, 2.5
    added = ridge * X.reshape(-1, NI).var(axis=0)
    fit = fit_linear_gaussian(X, Z, prior, strength=strength, ridge=ridge)
    for t in range(TP):
        niw = mixture_prior(prior.mixture, Y[:, t], prior.n_points, strength)
        cov = posterior_covariance(niw, Y[:, t])
        cov[:NI, :NI] += np.diag(added)
        G, offset, W = condition(Gaussian(Y[:, t].mean(axis=0), cov), NI)
        np.testing.assert_allclose(fit.gain[t], G, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(fit.offset[t], offset, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(fit.cov[t], W, rtol=1e-6, atol=1e-10)
        np.testing.assert_allclose(fit.joint_cov[t], cov, rtol=1e-9, atol=1e-10)
        one = fit_linear_gaussian(X, Z, niw, ridge=ridge)
        np.testing.assert_allclose(one.gain[t], G, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("strength", [None, 1.0])
def test_units_do_not_matter(rng, strength):
    """Every input and output in another unit: the same model, in that unit."""
    X, Z, _ = linear_data(rng, 4)
    old = joint(*linear_data(rng, 6)[:2])
    to_in, to_out = 10.0 ** np.array([-6, -2, 3, 6]), 10.0 ** np.array([5, 0, -7])

    def fitted(a, b):
        prior = None
        if strength is not None:
            prior = update_prior(None, old * np.r_[a, b], CONFIG, np.random.default_rng(2))
        return fit_linear_gaussian(X * a, Z * b, prior, strength=strength or 1.0)

    plain, other = fitted(np.ones(NI), np.ones(NO)), fitted(to_in, to_out)
    np.testing.assert_allclose(other.gain * to_in / to_out[:, None], plain.gain, rtol=1e-6)
    np.testing.assert_allclose(other.offset / to_out, plain.offset, rtol=1e-6)
    noise = other.cov / np.outer(to_out, to_out)
    np.testing.assert_allclose(noise, plain.cov, rtol=1e-6, atol=1e-9 * plain.cov.max())


def test_an_input_that_never_changes(rng):
    """Constant, also up to rounding: no slope, and the others' as without it."""
    X, Z, _ = linear_data(rng, 20)
    for still in (np.zeros(X.shape[:2]), 0.3 + 5e-17 * (rng.random(X.shape[:2]) > 0.5)):
        with_it = fit_linear_gaussian(np.concatenate([X, still[..., None]], axis=2), Z, None)
        without = fit_linear_gaussian(X, Z, None)
        np.testing.assert_allclose(with_it.gain[..., :-1], without.gain, rtol=1e-9)
        np.testing.assert_allclose(with_it.gain[..., -1], 0, atol=1e-9)


def test_a_ridge_in_the_inputs_own_units(rng):
    X, Z, _ = linear_data(rng, 5)
    spread = X.reshape(-1, NI).std(axis=0)
    share = fit_linear_gaussian(X, Z, None, ridge=1e-3)
    own = fit_linear_gaussian(X / spread, Z, None, ridge=1e-3, standardise=False)
    np.testing.assert_allclose(own.gain / spread, share.gain, rtol=1e-9)
    other = fit_linear_gaussian(X, Z, None, ridge=1e-3, standardise=False)
    assert np.abs(other.gain - share.gain).max() > 1e-4


def test_posterior_covariance_of_conjugate_theory(rng):
    Y, mu0 = rng.normal(size=(5, 3)), rng.normal(size=3)
    A = rng.normal(size=(3, 3))
    niw = NIW(mu0, A @ A.T, 2.0, 4.0)
    # scatter of the points about the posterior mean, and of the prior's two points about it
    mean = (Y.sum(axis=0) + 2 * mu0) / 7
    scatter = (Y - mean).T @ (Y - mean) + A @ A.T + 2 * np.outer(mu0 - mean, mu0 - mean)
    np.testing.assert_allclose(posterior_covariance(niw, Y), scatter / 9, atol=1e-12)


def test_moments_are_those_of_samples(rng):
    mixture = Mixture(
        np.array([[0.0, 3], [2, -1]]), np.array([np.eye(2), [[2.0, 1], [1, 1]]]), np.log([0.5, 0.5])
    )
    w, n = np.array([0.3, 0.7]), 200_000
    mu, S = mixture_moments(mixture, w)
    which = (rng.random(n) > 0.3).astype(int)
    L = np.linalg.cholesky(mixture.cov)
    x = mixture.mean[which] + np.einsum("nij,nj->ni", L[which], rng.normal(size=(n, 2)))
    np.testing.assert_allclose(mu, x.mean(axis=0), atol=5 * np.sqrt(S.max() / n))
    np.testing.assert_allclose(S, np.cov(x.T), atol=5 * 3 * S.max() / np.sqrt(n))


def test_a_huge_strength_gives_the_conditional_of_the_prior(rng):
    X, Z, _ = linear_data(rng, 3)
    Y = joint(X, Z)
    prior = update_prior(None, joint(*linear_data(rng, 8)[:2]), CONFIG, rng)
    fit = fit_linear_gaussian(X, Z, prior, strength=1e12, ridge=0)
    R = responsibilities(prior.mixture, Y.reshape(-1, NI + NO)).reshape(3, TP, -1).mean(axis=0)
    for t in range(TP):
        mu, S = mixture_moments(prior.mixture, R[t])
        G, _, W = condition(Gaussian(mu, S), NI)
        np.testing.assert_allclose(fit.gain[t], G, rtol=1e-5, atol=1e-6)
        n, D = prior.n_points, NI + NO
        np.testing.assert_allclose(fit.cov[t], W * n / (n - 2 - D), rtol=1e-4, atol=1e-9)


def test_prior_makes_three_samples_enough(rng):
    """N = 3 for 4 inputs: hopeless alone, good with other rollouts."""
    X, Z, G = linear_data(rng, 3)
    own = update_prior(None, joint(*linear_data(rng, 10)[:2]), CONFIG, rng)
    X2, _, _ = linear_data(rng, 10)  # another condition: other inputs, the same relation
    Z2 = np.einsum("toi,nti->nto", G, X2 - 8) + 1.5
    both = np.concatenate([joint(X2 - 8, Z2), joint(*linear_data(rng, 7)[:2]), joint(X, Z)])
    pooled = update_prior(None, both, replace(CONFIG, max_samples=20), rng)
    errors = [
        np.abs(fit_linear_gaussian(X, Z, prior).gain - G).mean() for prior in (None, own, pooled)
    ]
    assert errors[1] < 0.2 * errors[0]
    assert errors[2] < 0.2 * errors[0]


def test_exactly_max_samples_rollouts_are_kept(rng):
    Y = joint(*linear_data(rng, 25)[:2])
    prior = None
    for k in range(0, 25, 4):
        prior = update_prior(prior, Y[k : k + 4], CONFIG, rng)
        seen = min(k + 4, 25)
        np.testing.assert_array_equal(prior.history, Y[max(0, seen - 10) : seen])
    many = update_prior(None, Y, CONFIG, rng)
    np.testing.assert_array_equal(many.history, Y[-10:])
    fresh = update_prior(many, Y[:2, :5], CONFIG, rng, replace_history=True)
    np.testing.assert_array_equal(fresh.history, Y[:2, :5])


def test_number_of_components(rng):
    Y = joint(*linear_data(rng, 10)[:2])  # 120 points
    for least, most, want in ((40, 20, 3), (10, 20, 12), (10, 5, 5), (1000, 20, 2)):
        config = MixturePriorConfig(min_points_per_component=least, max_components=most)
        got = update_prior(None, Y, config, rng).mixture.J
        assert got == want
    config = MixturePriorConfig(min_points_per_component=12)
    prior = update_prior(None, Y[:4], config, rng)
    assert prior.mixture.J == 4
    assert update_prior(prior, Y[4:], config, rng).mixture.J == 10


def test_warm_start_draws_nothing_and_starts_where_the_last_ended(rng):
    Y = joint(*linear_data(rng, 12)[:2])
    config = replace(CONFIG, gmm=GMMConfig(max_iterations=1))
    prior = update_prior(None, Y[:10], config, rng)
    state = rng.bit_generator.state
    a = update_prior(prior, Y[10:], config, rng)
    assert rng.bit_generator.state == state
    b = update_prior(prior, Y[10:], config, np.random.default_rng(99))
    assert a.mixture.cov.tobytes() == b.mixture.cov.tobytes()


def test_covariance_can_be_used_as_one(rng):
    for N, noise, prior_samples in ((2, 0.0, 0), (3, 0.0, 6), (3, 0.1, 0), (20, 0.0, 0)):
        X, Z, _ = linear_data(rng, N, noise)
        Y = joint(*linear_data(rng, max(prior_samples, 1))[:2])
        prior = update_prior(None, Y, CONFIG, rng) if prior_samples else None
        W = fit_linear_gaussian(X, Z, prior).cov
        np.testing.assert_array_equal(W, W.transpose(0, 2, 1))
        values = np.linalg.eigvalsh(W)
        assert np.all(values >= -1e-14 * np.maximum(values[:, -1:], 1e-12))
        if prior is not None:
            np.linalg.cholesky(W)


def test_few_points_do_not_turn_the_sign(rng):
    """A mixture fitted to fewer points than coordinates: nu0 would be negative."""
    X, Z = rng.normal(size=(2, 2, 5)), rng.normal(size=(2, 2, 4))
    prior = update_prior(None, joint(X, Z), MixturePriorConfig(strength=5), rng)
    fit = fit_linear_gaussian(X, Z, prior, strength=5)
    assert np.linalg.eigvalsh(fit.cov).min() > 0


def test_same_bytes_twice_and_inputs_untouched(rng):
    X, Z, _ = linear_data(rng, 4)
    prior = update_prior(None, joint(X, Z), CONFIG, rng)
    before = X.copy(), Z.copy()
    X.setflags(write=False)
    Z.setflags(write=False)
    a, b = (fit_linear_gaussian(X, Z, prior) for _ in range(2))
    assert a.gain.tobytes() == b.gain.tobytes()
    assert a.cov.tobytes() == b.cov.tobytes()
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(Z, before[1])
    strided = fit_linear_gaussian(np.asfortranarray(X), np.repeat(Z, 2, axis=0)[::2], prior)
    assert a.gain.tobytes() == strided.gain.tobytes()


def test_records_travel(rng):
    X, Z, _ = linear_data(rng, 4)
    prior = update_prior(None, joint(X, Z), CONFIG, rng)
    back = pickle.loads(pickle.dumps(prior))
    np.testing.assert_array_equal(back.mixture.cov, prior.mixture.cov)
    assert not back.history.flags.writeable
    with pytest.raises(ShapeError, match="history has 6"):
        MixturePrior(prior.history[..., :6], prior.mixture)


def test_errors_say_what_is_wrong(rng):
    X, Z, _ = linear_data(rng, 3)
    with pytest.raises(FitError, match="1 sample; use 2"):
        fit_linear_gaussian(X[:1], Z[:1], None)
    bad = Z.copy()
    bad[2, 7, 1] = np.inf
    with pytest.raises(NonFiniteError, match="outputs of sample 2 at t=7"):
        fit_linear_gaussian(X, bad, None)
    with pytest.raises(NonFiniteError, match="points of sample 2 at t=7"):
        update_prior(None, joint(X, bad), CONFIG, rng)
    prior = update_prior(None, joint(X, Z), CONFIG, rng)
    with pytest.raises(ShapeError, match="size 7"):
        fit_linear_gaussian(X[..., :3], Z, prior)
    with pytest.raises(ShapeError, match=r"\(12, 7\)"):
        update_prior(prior, joint(X, Z)[:, :5], CONFIG, rng)
    with pytest.raises(ShapeError, match="inputs and outputs"):
        fit_linear_gaussian(X, Z[:, :5], None)
    with pytest.raises(ConfigError, match="ridge"):
        fit_linear_gaussian(X, Z, None, ridge=-1)
    for wrong in (
        {"max_samples": 0},
        {"max_components": 1},
        {"min_points_per_component": 0},
        {"strength": 0.0},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            MixturePriorConfig(**wrong)
