import pickle
from dataclasses import replace

import numpy as np
import pytest
from policy_networks import GatedNetwork

from gps.distributions.regression import MixturePriorConfig
from gps.errors import ConfigError, FitError, NonFiniteError, NotPositiveDefiniteError
from gps.policies import LineariseConfig, MLPConfig, initial_policy, linearise
from gps.rng import stream
from gps.types import Layout, Rollouts

NX, NO, NU, T = 4, 5, 2, 12
PLAIN = LineariseConfig(prior=None, ridge=0.0)
MIXTURE = LineariseConfig(prior=MixturePriorConfig(max_samples=12))


def rollouts_of(N, seed=0, scale=1.0):
    """States that drift apart over time; observations are a fixed linear map of them."""
    rng = stream(seed, "rollouts")
    X = np.cumsum(rng.normal(size=(N, T, NX)), axis=1) * scale + np.linspace(0, 3, T)[:, None]
    obs = X @ observation_map().T
    U, noise = rng.normal(size=(2, N, T, NU))
    return Rollouts(X=X, U=U, obs=obs, noise=noise, layout=Layout((("x", NX),)))


def observation_map():
    return stream(0, "map").normal(size=(NO, NX))


def some_policy(network, seed=0):
    rng = stream(seed, "policy")
    policy = initial_policy(network, NO, NU, rng)
    return replace(
        policy,
        weights=tuple(w + 0.3 * rng.normal(size=w.shape) for w in policy.weights),
        obs_mean=rng.normal(size=NO),
        obs_std=rng.uniform(1, 3, size=NO),
        chol=np.array([[0.3, 0.0], [0.1, 0.2]]),
    )


@pytest.mark.parametrize("config", [PLAIN, MIXTURE], ids=["plain", "mixture"])
def test_a_linear_policy_is_found_again(config):
    policy = some_policy(MLPConfig(hidden=()))
    result = linearise(policy, rollouts_of(40), None, config, stream(0, "em")).controller
    W, b = policy.weights
    K = (W / policy.obs_std) @ observation_map()
    k = b - W @ (policy.obs_mean / policy.obs_std)
    # the mixture's covariance floor and the ridge bend the regression a little
    tol = 1e-9 if config is PLAIN else 2e-2
    np.testing.assert_allclose(result.K, np.tile(K, (T, 1, 1)), atol=tol * np.abs(K).max())
    np.testing.assert_allclose(result.k, np.tile(k, (T, 1)), atol=tol * 10)
    np.testing.assert_allclose(result.Sigma, np.tile(policy.Sigma, (T, 1, 1)), atol=tol)


@pytest.mark.parametrize("network", [MLPConfig(), GatedNetwork()], ids=repr)
def test_a_nonlinear_policy_is_regressed_step_by_step(network):
    policy, rollouts = some_policy(network), rollouts_of(30)
    result = linearise(policy, rollouts, None, PLAIN, stream(0, "em"))
    assert result.prior is None
    for t in range(T):
        x, u = rollouts.X[:, t], policy.mean(rollouts.obs[:, t])
        solution = np.linalg.lstsq(np.c_[x, np.ones(30)], u, rcond=None)[0]
        rest = u - np.c_[x, np.ones(30)] @ solution
        np.testing.assert_allclose(result.controller.K[t], solution[:-1].T, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(result.controller.k[t], solution[-1], rtol=1e-7, atol=1e-9)
        want = rest.T @ rest / 30 + policy.Sigma
        np.testing.assert_allclose(result.controller.Sigma[t], want, rtol=1e-7, atol=1e-9)
        assert np.abs(rest).max() > 1e-3


@pytest.mark.parametrize("standardise", [True, False])
def test_the_ridge_is_a_share_or_a_variance(standardise):
    policy, rollouts = some_policy(MLPConfig()), rollouts_of(6)
    config = LineariseConfig(prior=None, ridge=1e-2, standardise=standardise)
    got = linearise(policy, rollouts, None, config, stream(0, "em")).controller.K
    X = rollouts.X
    added = 1e-2 * (X.reshape(-1, NX).var(axis=0) if standardise else np.ones(NX))
    for t in range(T):
        u = policy.mean(rollouts.obs[:, t])
        x, u = X[:, t] - X[:, t].mean(axis=0), u - u.mean(axis=0)
        want = np.linalg.solve(x.T @ x / 6 + np.diag(added), x.T @ u / 6).T
        np.testing.assert_allclose(got[t], want, rtol=1e-8, atol=1e-10)


def test_the_prior_settles_what_few_samples_leave_open():
    policy, few = some_policy(MLPConfig(hidden=())), rollouts_of(3)
    prior = linearise(policy, rollouts_of(9, seed=1), None, MIXTURE, stream(0, "em")).prior
    test = rollouts_of(200, seed=2)
    want = policy.mean(test.obs)
    ridge = LineariseConfig(prior=None, ridge=1e-6)
    with_prior, without = (
        linearise(policy, few, p, c, stream(1, "em")).controller.mean_action(test.X) - want
        for p, c in ((prior, MIXTURE), (None, ridge))
    )
    spread = want - want.mean(axis=0)
    assert np.mean(with_prior**2) < 1e-3 * np.mean(spread**2) < 1e-2 * np.mean(without**2)


def test_history_holds_the_actions_of_the_newest_policy():
    old, new = (some_policy(MLPConfig(), seed=s) for s in (0, 1))
    first, second = rollouts_of(8, seed=1), rollouts_of(7, seed=2)
    prior = linearise(old, first, None, MIXTURE, stream(0, "em")).prior
    np.testing.assert_array_equal(prior.history[:, :, NX:], old.mean(first.obs))
    kept = pickle.dumps(prior)
    later = linearise(new, second, prior, MIXTURE, stream(1, "em")).prior
    assert later.history.shape == (12, T, NX + NU)  # max_samples of 8 + 7
    X, obs = (np.concatenate(pair)[-12:] for pair in ((first.X, second.X), (first.obs, second.obs)))
    np.testing.assert_array_equal(later.history[:, :, :NX], X)
    np.testing.assert_array_equal(later.obs, obs)
    np.testing.assert_array_equal(later.history[:, :, NX:], new.mean(obs))
    assert pickle.dumps(prior) == kept


def test_same_seed_same_bytes_also_from_a_pickled_prior():
    policy = some_policy(MLPConfig())
    prior = linearise(policy, rollouts_of(6, seed=1), None, MIXTURE, stream(0, "em")).prior
    travelled = pickle.loads(pickle.dumps(prior))
    assert not travelled.obs.flags.writeable
    a, b = (
        linearise(policy, rollouts_of(6), p, MIXTURE, stream(1, "em")) for p in (prior, travelled)
    )
    for name in ("K", "k", "chol"):
        np.testing.assert_array_equal(getattr(a.controller, name), getattr(b.controller, name))
    np.testing.assert_array_equal(a.prior.mixture.mean, b.prior.mixture.mean)


def test_what_cannot_be_linearised():
    policy, rollouts = some_policy(MLPConfig()), rollouts_of(8)
    with pytest.raises(FitError, match="1 sample"):
        linearise(policy, rollouts_of(1), None, PLAIN, stream(0, "em"))
    obs = np.array(rollouts.obs)
    obs[2, 3] = np.nan
    with pytest.raises(NonFiniteError, match="sample 2 at t=3"):
        linearise(policy, replace(rollouts, obs=obs), None, PLAIN, stream(0, "em"))
    constant = tuple(0 * w for w in policy.weights)
    frozen = replace(policy, weights=constant, chol=np.zeros((NU, NU)))
    with pytest.raises(NotPositiveDefiniteError, match="linearised policy"):
        linearise(frozen, rollouts, None, LineariseConfig(prior=None), stream(0, "em"))
    with pytest.raises(ConfigError, match="ridge"):
        LineariseConfig(ridge=-1.0)
