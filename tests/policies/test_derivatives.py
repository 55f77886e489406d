"""The derivative of a policy by the observation, and the linearisation that is made of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from policy_networks import GatedNetwork, TorchMLP

import gps
from gps.agents import PointMassConfig, arm_reach
from gps.algorithms import BADMMConfig, MDGPSConfig
from gps.errors import ConfigError, NonFiniteError, ShapeError
from gps.policies import (
    LineariseConfig,
    MLPConfig,
    ModuleConfig,
    WindowConfig,
    initial_policy,
    linearise,
)
from gps.rng import stream
from gps.types import Layout, Rollouts

NO, NU, T = 6, 2, 7
JACOBIAN = LineariseConfig(method="jacobian")
NETWORKS = [
    MLPConfig(hidden=()),
    MLPConfig(activation="relu"),
    MLPConfig(hidden=(9,), activation="tanh"),
    MLPConfig(hidden=(3, 8, 5), activation="softplus"),
    TorchMLP(hidden=(7, 5), activation="tanh"),
    GatedNetwork(),
]
STATE = Layout((("joint_pos", 2), ("joint_vel", 1), ("end_points", 3)))
SEEN = Layout((("end_points", 3), ("joint_pos", 2), ("joint_vel", 1)))


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


def differences(f, x, h=1e-6):
    """Central differences of f (..., m) by the last axis of x (..., n): (..., m, n)."""
    steps = h * np.eye(x.shape[-1])
    return np.stack([(f(x + d) - f(x - d)) / (2 * h) for d in steps], axis=-1)


def points_of(q):
    """Three coordinates that two joints set: (..., 2) -> (..., 3)."""
    a, b = q[..., 0], q[..., 0] + q[..., 1]
    return np.stack([np.cos(a) + np.cos(b), np.sin(a) + np.sin(b), a * b], axis=-1)


def seen_at(joints):
    """The observation for joint positions and the velocity (..., 3)."""
    return np.concatenate([points_of(joints[..., :2]), joints], axis=-1)


def rollouts_of(N, seed=0):
    """Joints that drift apart over time, and the points that they set."""
    rng = stream(seed, "rollouts")
    joints = np.cumsum(0.3 * rng.normal(size=(N, T, 3)), axis=1) + 0.2
    obs = seen_at(joints)
    J = np.zeros((N, T, 3, 6))
    J[..., :2] = differences(points_of, joints[..., :2])
    U, noise = rng.normal(size=(2, N, T, NU))
    X = np.concatenate([joints, obs[..., :3]], axis=2)
    return Rollouts(X=X, U=U, obs=obs, noise=noise, layout=STATE, jacobians={"end_points": J})


@pytest.mark.parametrize("network", NETWORKS, ids=repr)
def test_the_derivative_is_that_of_finite_differences(network):
    policy = some_policy(network)
    obs = stream(0, "obs").normal(size=(4, 5, NO)) * 2
    found = policy.jacobian(obs)
    assert found.shape == (4, 5, NU, NO)
    np.testing.assert_allclose(found, differences(policy.mean, obs), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(policy.jacobian(obs[2, 3]), found[2, 3], rtol=1e-12, atol=1e-14)
    assert np.ptp(found, axis=(0, 1)).max() > 1e-3 or network == MLPConfig(hidden=())
    with pytest.raises(ShapeError, match="6 values"):
        policy.jacobian(obs[..., 1:])


@pytest.mark.parametrize("network", NETWORKS, ids=repr)
def test_the_derivative_is_in_the_units_of_the_actions(network):
    mean, std = np.array([5.0, -2e4]), np.array([1e-3, 1e3])
    policy = replace(some_policy(network), action_mean=mean, action_std=std)
    obs = stream(0, "obs").normal(size=(20, NO)) * 2
    found = policy.jacobian(obs) / std[:, None]
    want = differences(policy.mean, obs) / std[:, None]
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
    assert np.abs(found).max(axis=(0, 2)).min() > 0.02


def test_kernel_and_torch_agree():
    layers = {"hidden": (7, 5), "activation": "tanh"}
    obs = stream(0, "obs").normal(size=(50, NO))
    fast, slow = (some_policy(kind(**layers)).jacobian(obs) for kind in (MLPConfig, TorchMLP))
    np.testing.assert_allclose(fast, slow, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("N", [1, 6])
def test_gains_are_mean_derivatives_by_the_independent_entries(N):
    """Points follow from joints: what the policy makes of them goes to the joints' columns."""
    policy, r = some_policy(MLPConfig(activation="tanh")), rollouts_of(N)
    result = linearise(policy, r, None, JACOBIAN, stream(0, "em"), SEEN)
    assert result.prior is None
    K = differences(lambda joints: policy.mean(seen_at(joints)), r.X[..., :3]).mean(axis=0)
    np.testing.assert_allclose(result.controller.K[..., :3], K, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(result.controller.K[..., 3:], 0)
    rest = policy.mean(r.obs) - result.controller.mean_action(r.X)
    np.testing.assert_allclose(rest.mean(axis=0), 0, atol=1e-12)  # through the data
    want = np.einsum("ntu,ntv->tuv", rest, rest) / N + policy.Sigma
    np.testing.assert_allclose(result.controller.Sigma, want, rtol=1e-10)


def test_an_entry_without_jacobians_keeps_its_own_columns():
    policy, r = some_policy(MLPConfig()), replace(rollouts_of(4), jacobians={})
    K = linearise(policy, r, None, JACOBIAN, stream(0, "em"), SEEN).controller.K
    slopes = policy.jacobian(r.obs).mean(axis=0)
    np.testing.assert_allclose(K[..., 3:], slopes[..., :3])
    np.testing.assert_allclose(K[..., :3], slopes[..., 3:])


@pytest.mark.parametrize("known", [False, True])
def test_on_a_linear_policy_both_methods_agree(known):
    """Where points follow from joints, in what they do near the samples: gains are not unique."""
    rng = stream(0, "linear")
    joints = rng.normal(size=(40, T, 3))
    A = rng.normal(size=(3, 6)) * (np.arange(6) < 2)
    points = joints @ A[:, :3].T if known else rng.normal(size=(40, T, 3))
    X = np.concatenate([joints, points], axis=2)
    U, noise = rng.normal(size=(2, 40, T, NU))
    jacobians = {"end_points": np.broadcast_to(A, (40, T, 3, 6))} if known else {}
    r = Rollouts(X=X, U=U, obs=X, noise=noise, layout=STATE, jacobians=jacobians)
    policy = some_policy(MLPConfig(hidden=()))
    ridge = 1e-9 if known else 0.0
    plain = LineariseConfig(prior=None, ridge=ridge)
    a = linearise(policy, r, None, plain, stream(0, "em"), STATE).controller
    b = linearise(policy, r, None, JACOBIAN, stream(0, "em"), STATE).controller
    tol = 1e-6 if known else 1e-9
    np.testing.assert_allclose(a.mean_action(X), b.mean_action(X), atol=tol)
    np.testing.assert_allclose(a.Sigma, b.Sigma, atol=tol)
    if not known:
        np.testing.assert_allclose(a.K, b.K, atol=tol)
        np.testing.assert_allclose(a.k, b.k, atol=tol)


def test_what_has_no_derivative_by_the_state():
    policy, r = some_policy(MLPConfig()), rollouts_of(3)
    other = Layout((("end_points", 3), ("camera", 3)))
    with pytest.raises(ConfigError, match="'camera' is not part of the state"):
        linearise(policy, r, None, JACOBIAN, stream(0, "em"), other)
    with pytest.raises(ConfigError, match="no names"):
        linearise(policy, r, None, JACOBIAN, stream(0, "em"))
    obs = np.array(r.obs)
    obs[2, 3] = np.nan
    with pytest.raises(NonFiniteError, match="sample 2 at t=3"):
        linearise(policy, replace(r, obs=obs), None, JACOBIAN, stream(0, "em"), SEEN)
    with pytest.raises(ConfigError, match=r"LineariseConfig\.method must be .* mean .jacobian"):
        LineariseConfig(method="jacobean")


ARM = arm_reach()
REFUSED = {
    "sensor": (replace(ARM, state=ARM.state[:2], obs=ARM.state), MLPConfig(), "'end_points'"),
    "noise": (replace(ARM, obs_noise=(("joint_vel", 0.1),)), MLPConfig(), "'joint_vel' has noise"),
    "memory": (ARM, WindowConfig(steps=2), "WindowConfig"),
}


@pytest.mark.parametrize("algorithm", [MDGPSConfig, BADMMConfig])
@pytest.mark.parametrize("name", REFUSED)
def test_an_experiment_without_the_derivative_is_refused_before_it_starts(name, algorithm):
    agent, network, words = REFUSED[name]
    config = algorithm(network=network, linearise=JACOBIAN)
    with pytest.raises(ConfigError, match=words) as error:
        config.check(agent.build())
    assert "\n" not in str(error.value)
    algorithm(network=network).check(agent.build())
    quiet = replace(ARM, obs_noise=(("joint_vel", 0.0),)).build()
    algorithm(linearise=JACOBIAN).check(quiet)


def test_a_stored_run_is_resumed_with_the_same_bytes(tmp_path):
    experiment = gps.load("point_mass_policy")
    algorithm = replace(experiment.algorithm, linearise=JACOBIAN)
    experiment = replace(experiment, algorithm=algorithm, samples=2, iterations=3)
    assert isinstance(experiment.agent, PointMassConfig)
    rows = [r.row for r in gps.run(experiment, seed=0, out=tmp_path / "run")]
    again = [r.row for r in gps.resume(tmp_path / "run", start=1)]
    assert [r["policy_cost_mean"] for r in again] == [r["policy_cost_mean"] for r in rows[1:]]
    assert rows[-1]["policy_cost_mean"] < rows[0]["policy_cost_mean"]


def one_layer(no, nu):
    return torch.nn.Sequential(torch.nn.Linear(no, 5), torch.nn.Tanh(), torch.nn.Linear(5, nu))


def test_a_module_of_the_users_has_one():
    policy = some_policy(ModuleConfig(module=one_layer))
    policy = replace(policy, action_mean=np.array([1.0, -2.0]), action_std=np.array([0.2, 7.0]))
    obs = stream(0, "obs").normal(size=(9, NO))
    found = policy.jacobian(obs)
    np.testing.assert_allclose(found, differences(policy.mean, obs), rtol=1e-6, atol=1e-8)
