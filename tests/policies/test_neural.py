import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from policy_networks import GatedNetwork, TorchMLP

from gps.errors import ConfigError, NonFiniteError, ShapeError
from gps.policies import AdamState, MLPConfig, NetworkPolicy, _kernels, initial_policy
from gps.protocols import Policy
from gps.rng import stream

NETWORKS = [
    MLPConfig(),
    MLPConfig(hidden=(9, 5), activation="tanh", output_init_scale=1.0),
    MLPConfig(hidden=(7,), activation="softplus", output_init_scale=1.0),
    MLPConfig(hidden=(), output_init_scale=1.0),
    TorchMLP(hidden=(8,), activation="tanh"),
    GatedNetwork(),
]
networks = pytest.mark.parametrize("network", NETWORKS, ids=repr)


def make_policy(network, no=6, nu=3) -> NetworkPolicy:
    """A policy with normalisers, a full covariance and biases that are not zero."""
    rng = stream(1, "policy")
    policy = initial_policy(network, no, nu, rng)
    return replace(
        policy,
        weights=tuple(w + 0.1 * rng.normal(size=w.shape) for w in policy.weights),
        obs_mean=rng.normal(size=no),
        obs_std=rng.uniform(0.5, 20, size=no),
        chol=np.tril(rng.normal(size=(nu, nu))) + 3 * np.eye(nu),
        action_mean=rng.normal(size=nu),
        action_std=rng.uniform(0.5, 3, size=nu),
    )


@networks
def test_mean_is_the_forward_pass_of_the_module(network):
    policy = make_policy(network)
    obs = 10 * stream(0, "obs").normal(size=(50, 6))
    with torch.no_grad():
        want = policy.module()(torch.tensor(obs)).numpy()
    assert np.abs(want).max() > 0.05
    np.testing.assert_allclose(policy.mean(obs), want, rtol=1e-12, atol=1e-12)


@networks
def test_actions_count_in_the_policys_units(network):
    """In units far from one, also in those of a module of its own."""
    mean, std = np.array([51.1, -2e5 / 3, 0.0]), np.array([1e-3, 1e3, 1.0])
    policy = make_policy(network)
    plain = replace(policy, action_mean=np.zeros(3), action_std=np.ones(3))
    far = replace(policy, action_mean=mean, action_std=std)
    obs = 10 * stream(0, "obs").normal(size=(50, 6))
    want = plain.mean(obs)
    assert np.ptp(want, axis=0).min() > 0.05
    with torch.no_grad():
        by_torch = far.module()(torch.tensor(obs)).numpy()
    for have in (far.mean(obs), by_torch):
        np.testing.assert_allclose((have - mean) / std, want, rtol=1e-9, atol=1e-9)


@networks
def test_mean_takes_any_leading_axes(network):
    policy = make_policy(network)
    obs = stream(0, "obs").normal(size=(4, 5, 6))
    rows = policy.mean(obs.reshape(20, 6))
    np.testing.assert_array_equal(policy.mean(obs), rows.reshape(4, 5, 3))
    np.testing.assert_allclose(policy.mean(obs[0, 0]), rows[0], rtol=1e-12, atol=1e-14)
    assert policy.mean(obs[:0]).shape == (0, 5, 3)
    np.testing.assert_array_equal(policy.mean(np.asfortranarray(obs)), rows.reshape(4, 5, 3))


def test_tanh_kernel_against_extended_precision():
    rng = np.random.default_rng(0)
    z = np.concatenate(
        [
            *(scale * rng.normal(size=4001) for scale in (1e-9, 1e-3, 0.3, 3.0)),
            np.linspace(-25, 25, 5003),
            [0.0, 5e-324, -1e-300, 60.0, -1e5, 1e308, np.inf, -np.inf],
        ]
    )
    want = np.tanh(z.astype(np.longdouble))
    whole, bad = z.copy(), np.array([1.0, np.nan, 2.0, 3.0, 4.0])
    _kernels.tanh(whole)
    assert np.all(np.abs(whole - want) <= 4.5e-16 * np.abs(want))
    for n in (1, 3, 4, 17):  # the rest of a vector loop gives the same bytes as the loop
        part = z[:n].copy()
        _kernels.tanh(part)
        np.testing.assert_array_equal(part, whole[:n])
    _kernels.tanh(bad)
    np.testing.assert_array_equal(np.isnan(bad), [False, True, False, False, False])


def test_a_row_does_not_depend_on_the_rows_beside_it():
    policy = make_policy(MLPConfig())
    obs = stream(0, "obs").normal(size=(33, 6))
    one_by_one = np.stack([policy.mean(o) for o in obs])
    np.testing.assert_array_equal(policy.mean(obs), one_by_one)


@networks
def test_nan_in_an_observation_stays_nan(network):
    obs = np.zeros((3, 6))
    obs[1, 2] = np.nan
    action = make_policy(network).mean(obs)
    assert np.isnan(action[1]).all()
    assert np.isfinite(action[[0, 2]]).all()


@networks
def test_act_adds_the_noise_through_the_factor(network):
    policy = make_policy(network)
    assert isinstance(policy, Policy)
    rng = stream(0, "act")
    x, obs, noise = rng.normal(size=(5, 4)), rng.normal(size=(5, 6)), rng.normal(size=(5, 3))
    want = policy.mean(obs) + np.stack([policy.chol @ e for e in noise])
    np.testing.assert_allclose(policy.act(x, obs, 7, noise), want, rtol=1e-13, atol=1e-13)


def test_noise_has_the_covariance():
    policy = make_policy(MLPConfig())
    n, obs = 20_000, np.zeros((20_000, 6))
    action, state = policy.predict(obs, deterministic=False, rng=stream(0, "noise"))
    assert state is None
    S = policy.Sigma
    sigma = np.sqrt((S**2 + np.outer(S.diagonal(), S.diagonal())) / (n - 1))
    assert np.all(np.abs(np.cov(action.T) - S) < 5 * sigma)


def test_predict_is_the_mean_unless_asked_for_noise():
    policy = make_policy(MLPConfig())
    obs = stream(0, "obs").normal(size=6)
    np.testing.assert_array_equal(policy.predict(obs)[0], policy.mean(obs))
    # as stable_baselines3.common.evaluation calls it
    action, _ = policy.predict(obs, state=None, episode_start=np.ones(1), deterministic=True)
    np.testing.assert_array_equal(action, policy.mean(obs))
    with pytest.raises(ConfigError, match="rng"):
        policy.predict(obs, deterministic=False)
    for wrong in (np.nan, np.inf):
        with pytest.raises(NonFiniteError, match="NaN or infinity in the observation"):
            policy.predict(np.where(np.arange(6) == 2, wrong, obs))


@networks
def test_module_round_trip(network):
    policy = make_policy(network)
    module = policy.module()
    back = tuple(p.detach().numpy() for p in module.network.parameters())
    again = replace(policy, weights=back)
    obs = stream(0, "obs").normal(size=(5, 6))
    np.testing.assert_array_equal(again.mean(obs), policy.mean(obs))
    with torch.no_grad():  # a module of its own: changing it leaves the policy alone
        for p in module.network.parameters():
            p.add_(1.0)
    np.testing.assert_array_equal(again.weights[0], policy.weights[0])
    assert set(module.state_dict()) >= {"obs_mean", "obs_std", "action_mean", "action_std"}


@networks
def test_pickled_policy_is_the_same_and_read_only(network):
    policy = make_policy(network)
    policy.mean(np.zeros(6))  # fills what is computed once; it must not travel
    for again in (pickle.loads(pickle.dumps(policy)), copy.deepcopy(policy)):
        obs = stream(0, "obs").normal(size=(5, 6))
        np.testing.assert_array_equal(again.mean(obs), policy.mean(obs))
        assert again.network == network
        assert hash(again.network) == hash(network)
        state = again.optimiser
        for array in (*again.normaliser, again.chol, *again.weights, *state.m, *state.v):
            assert not array.flags.writeable
            assert array.dtype == np.float64


@networks
def test_initial_weights_come_from_the_stream_alone(network):
    before = torch.random.get_rng_state()
    a, b, c = (initial_policy(network, 6, 3, stream(s, "p")) for s in (0, 0, 1))
    a.module()
    assert torch.equal(before, torch.random.get_rng_state())
    for x, y in zip(a.weights, b.weights, strict=True):
        np.testing.assert_array_equal(x, y)
    assert not np.array_equal(a.weights[0], c.weights[0])
    np.testing.assert_array_equal(a.Sigma, np.eye(3))
    assert not a.trained


def test_initial_weights_have_the_configured_standard_deviation():
    network = MLPConfig(hidden=(400, 300), init_scale=0.5, output_init_scale=0.2)
    weights = initial_policy(network, 200, 100, stream(0, "p")).weights
    for W, unit in ((weights[0], 0.5 * 2**0.5), (weights[2], 0.5 * 2**0.5), (weights[4], 0.2)):
        sigma = unit / np.sqrt(W.shape[1])
        assert abs(W.std() / sigma - 1) < 5 / np.sqrt(2 * W.size)
    assert all(np.all(b == 0) for b in weights[1::2])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden": (40, 10**6)}, "hidden must be .* from 1 to 10000"),
        ({"hidden": (40, 0)}, "hidden"),
        ({"hidden": (40.0,)}, "hidden"),
        ({"activation": "rely"}, "did you mean 'relu'"),
        ({"init_scale": 0.0}, "init_scale"),
        ({"output_init_scale": float("nan")}, "output_init_scale"),
    ],
)
def test_a_wrong_network_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        MLPConfig(**options)


def test_wrong_shapes_are_refused():
    policy = make_policy(MLPConfig(hidden=(8,)))
    with pytest.raises(ShapeError, match="6 values"):
        policy.mean(np.zeros((2, 5)))
    with pytest.raises(ShapeError, match="weights"):
        replace(policy, weights=policy.weights[:-1])
    with pytest.raises(ShapeError, match="weights"):
        replace(policy, network=MLPConfig(hidden=(9,)))
    with pytest.raises(ShapeError, match="optimiser"):
        replace(policy, optimiser=AdamState.zero(policy.weights[:2]))
    with pytest.raises(ShapeError, match="AdamState"):
        AdamState(m=policy.weights, v=policy.weights[:2])
    with pytest.raises(ShapeError, match="obs_std"):
        replace(policy, obs_std=np.zeros(6))
    with pytest.raises(ShapeError, match="action_std must be above 0"):
        replace(policy, action_std=np.array([1.0, 0.0, 1.0]))
    with pytest.raises(ShapeError, match="action_mean"):
        replace(policy, action_mean=np.zeros(2))
    with pytest.raises(ShapeError, match="chol"):
        replace(policy, chol=np.eye(3)[:2])
