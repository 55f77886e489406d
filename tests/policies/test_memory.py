"""Policies with memory: windows and recurrent networks, step by step and along trajectories."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from memory_networks import ALL, RECURRENT, WINDOW, Cell, Lstm, Whole, name, some_trajectories
from policy_networks import in_other_units
from torch import nn

from gps.errors import ConfigError, ShapeError
from gps.policies import (
    ExportedPolicy,
    MLPConfig,
    ModuleConfig,
    PolicyMetadata,
    RecurrentConfig,
    TrainingConfig,
    TrainingData,
    VisionConfig,
    WindowConfig,
    export_program,
    fit,
    initial_policy,
    load,
)
from gps.policies.training import pooled
from gps.protocols import acting
from gps.rng import stream
from gps.types import Layout

networks = pytest.mark.parametrize("network", ALL, ids=name)
LAYOUT = Layout((("x", 2),))


def a_policy(network, no=2, nu=2):
    """Untrained, but with normalisers that do something."""
    policy = initial_policy(network, no, nu, stream(0, "net"))
    units = dict(action_mean=np.array([0.5, -2.0]), action_std=np.array([3.0, 0.2]))
    if network is WINDOW:
        head = replace(policy.head, obs_mean=np.arange(6.0) / 3, obs_std=np.arange(1.0, 7.0) / 2)
        return replace(policy, head=replace(head, **units))
    return replace(policy, obs_mean=np.array([1.0, -1.0]), obs_std=np.array([2.0, 0.5]), **units)


def trained(network):
    config = TrainingConfig(steps=200, learning_rate=2e-2)
    return fit(a_policy(network), some_trajectories(), config, stream(0, "fit"))


@networks
def test_a_rollout_computes_the_same_as_the_whole_trajectory(network):
    """Step by step as along trajectories, whose first observation begins anew."""
    policy = a_policy(network)
    obs = stream(0, "obs").normal(size=(4, 6, 2))
    want = policy.mean(obs)
    actor, zero = acting(policy), np.zeros((4, 2))
    for _ in range(2):  # step 0 begins again
        for t in range(6):
            u = actor.act(zero, obs[:, t], t, zero)
            np.testing.assert_allclose(u, want[:, t], rtol=1e-12, atol=1e-14)
    other = obs.copy()
    other[:, 4] += 1.0
    assert np.array_equal(policy.mean(other)[:, :4], want[:, :4])  # the future has no part
    assert np.abs(policy.mean(other)[:, 5] - want[:, 5]).min() > 1e-6  # the past has


@networks
def test_predict_takes_and_gives_the_state(network):
    policy = a_policy(network)
    obs = stream(0, "obs").normal(size=(5, 3, 2))
    want, state = policy.mean(obs.transpose(1, 0, 2)), None
    for t in range(5):
        action, state = policy.predict(obs[t], state)
        np.testing.assert_allclose(action, want[:, t], rtol=1e-12, atol=1e-14)
    started, _ = policy.predict(obs[0], state, np.array([True, False, True]))
    np.testing.assert_allclose(started[::2], want[::2, 0], rtol=1e-12, atol=1e-14)
    assert np.abs(started[1] - want[1, 0]).max() > 1e-6
    single, after = policy.predict(obs[0, 0])
    np.testing.assert_allclose(single, want[0, 0], rtol=1e-12, atol=1e-14)
    assert after.shape == policy.memory0.shape
    noisy, _ = policy.predict(obs[0], rng=stream(0, "noise"), deterministic=False)
    noise = stream(0, "noise").normal(size=(3, 2)) @ policy.chol.T
    np.testing.assert_allclose(noisy, want[:, 0] + noise, rtol=1e-12, atol=1e-14)
    with pytest.raises(ShapeError, match="state must have shape"):
        policy.predict(obs[0], state[:, 1:])
    with pytest.raises(ShapeError, match=r"whole trajectories of observations, \(\.\.\., T, no\)"):
        policy.mean(obs[0, 0])


def test_a_window_begins_with_the_first_observation_repeated():
    policy = a_policy(WINDOW)
    obs = np.arange(8.0).reshape(1, 4, 2)
    windows = policy.windows(obs)[0]
    np.testing.assert_array_equal(windows[0], [0, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(windows[1], [0, 1, 0, 1, 2, 3])
    np.testing.assert_array_equal(windows[3], [2, 3, 4, 5, 6, 7])
    np.testing.assert_array_equal(policy.mean(obs)[0], policy.head.mean(windows))


@networks
def test_training_learns_what_only_memory_shows(network):
    data = some_trajectories()
    result = trained(network)
    blind = TrainingConfig(steps=1000)
    memoryless = fit(initial_policy(MLPConfig(), 2, 2, stream(0, "n")), data, blind, stream(0, "f"))
    assert result.loss < 0.5 * memoryless.loss
    gap = result.policy.mean(data.trajectories).reshape(-1, 2) - data.target
    per = 0.5 * np.einsum("ni,nij,nj->n", gap, data.precision, gap).mean()
    assert result.loss == pytest.approx(per, rel=1e-9)


@networks
def test_neither_unit_nor_offset_of_the_actions_matters(network):
    data, config = some_trajectories(), TrainingConfig(steps=20, weight_decay=0.01)
    unit, offset = np.array([1e-3, 1e3]), np.array([51.1, -2e5 / 3])
    other = in_other_units(data, unit, offset)
    a, b = (fit(a_policy(network), d, config, stream(0, "fit")) for d in (data, other))
    have, want = (r.policy.mean(data.trajectories) for r in (b, a))
    np.testing.assert_allclose((have - offset) / unit, want, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(b.loss, a.loss, rtol=1e-6)


@pytest.mark.parametrize("network", RECURRENT, ids=name)
def test_normalisers_are_those_of_the_first_data(network):
    first, second = some_trajectories(), some_trajectories(seed=1)
    second = in_other_units(second, np.array([10.0, 0.1]), np.array([3.0, 50.0]))
    config = TrainingConfig(steps=3)
    policy = fit(a_policy(network), first, config, stream(0, "fit")).policy
    np.testing.assert_allclose(policy.action_mean, first.target.mean(axis=0), rtol=1e-12)
    variance = first.target.var(axis=0) + policy.Sigma.diagonal()
    np.testing.assert_allclose(policy.action_std**2, variance, rtol=1e-12)
    again = fit(policy, second, config, stream(1, "fit")).policy
    for kept, before in zip(again.normaliser, policy.normaliser, strict=True):
        np.testing.assert_array_equal(kept, before)
    assert again.optimiser.step == 6


def test_the_gradient_goes_back_through_time():
    """Against differences of the loss over a whole trajectory, with and without `along`."""
    from gps.policies import flatten, prepare

    data = some_trajectories(S=3, T=5)
    for network in RECURRENT:
        policy, problem = prepare(a_policy(network), data, TrainingConfig())
        gradient = policy.gradient(problem, data)
        theta = flatten(policy.weights)
        grad, scratch, batch = np.empty(theta.size), np.empty(theta.size), np.array([2, 0])
        gradient(theta, batch, grad)
        for i in range(0, theta.size, 17):
            e = np.zeros(theta.size)
            e[i] = 1e-5
            up, down = gradient(theta + e, batch, scratch), gradient(theta - e, batch, scratch)
            assert grad[i] == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-9)


def test_trajectories_are_needed_and_kept_together():
    data = some_trajectories()
    with pytest.raises(ShapeError, match=r"TrainingData\.T must be given"):
        fit(a_policy(WINDOW), replace(data, T=None), TrainingConfig(steps=2), stream(0, "f"))
    with pytest.raises(ShapeError, match="not trajectories of 7 steps"):
        replace(data, T=7)
    other = some_trajectories(S=2, seed=1)
    both = pooled([data, other])
    np.testing.assert_array_equal(both.trajectories[12:], other.trajectories)
    assert pooled([data, replace(other, T=3)]).T is None
    assert isinstance(both, TrainingData)


@networks
def test_export_and_back(network, tmp_path):
    policy = a_policy(network)
    metadata = PolicyMetadata.of(policy, obs_layout=LAYOUT, dt=0.1)
    path = tmp_path / "policy.pt2"
    path.write_bytes(export_program(policy, metadata))
    obs = stream(0, "obs").normal(size=(3, 5, 2))
    want = policy.mean(obs)
    for again in (load(path), ExportedPolicy.of(policy, metadata)):
        assert again.has_memory
        np.testing.assert_allclose(again.mean(obs), want, rtol=1e-9, atol=1e-12)
        actor = acting(again)
        acted = [actor.act(obs[:, t], obs[:, t], t, 0 * obs[:, t]) for t in range(5)]
        np.testing.assert_allclose(acted, want.transpose(1, 0, 2), rtol=1e-9, atol=1e-12)
        action, state = again.predict(obs[:, 0])
        action, _ = again.predict(obs[:, 1], state)
        np.testing.assert_allclose(action, want[:, 1], rtol=1e-9, atol=1e-12)
    with pytest.raises(ShapeError, match=r"memory0 must be \("):
        export_program(policy, PolicyMetadata(obs_layout=LAYOUT, dt=0.1))


ROBOT = """
import json, sys
import numpy, torch
obs = numpy.load("obs.npy")
for name in ("window", "recurrent"):
    extra = {"gps_policy.json": ""}
    program = torch.export.load(name + ".pt2", extra_files=extra).module()
    metadata = json.loads(extra["gps_policy.json"])
    memory0 = numpy.array([metadata["memory0"]], dtype=float)
    memory = torch.tensor(numpy.tile(memory0, (len(obs), 1)))
    means = []
    for t in range(obs.shape[1]):
        mean, covariance, memory = program(torch.tensor(obs[:, t]), memory)
        means.append(mean.detach().numpy())
    numpy.save(name + ".npy", numpy.stack(means, axis=1))
assert "gps" not in sys.modules
"""


def test_a_robot_without_gps_steps_by_the_metadata(tmp_path):
    policies = {"window": a_policy(WINDOW), "recurrent": a_policy(RECURRENT[1])}
    obs = stream(0, "obs").normal(size=(3, 5, 2))
    np.save(tmp_path / "obs.npy", obs)
    for kind, policy in policies.items():
        metadata = PolicyMetadata.of(policy, obs_layout=LAYOUT, dt=0.1)
        (tmp_path / f"{kind}.pt2").write_bytes(export_program(policy, metadata))
    done = subprocess.run(
        [sys.executable, "-c", ROBOT], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for kind, policy in policies.items():
        want = policy.mean(obs)
        np.testing.assert_allclose(
            np.load(tmp_path / f"{kind}.npy"), want, rtol=0, atol=1e-6 * np.abs(want).max()
        )


@pytest.mark.parametrize("network", [WINDOW, RECURRENT[1]], ids=name)
def test_onnx_and_back(network, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from gps.policies import export_onnx

    policy = a_policy(network)
    path = tmp_path / "policy.onnx"
    path.write_bytes(export_onnx(policy, PolicyMetadata.of(policy, obs_layout=LAYOUT, dt=0.1)))
    obs = stream(0, "obs").normal(size=(3, 5, 2))
    np.testing.assert_allclose(load(path).mean(obs), policy.mean(obs), rtol=1e-6, atol=1e-7)


class NoStart(Cell):
    def __init__(self, no, nu):
        super().__init__(no, nu)
        del self.hidden0


class NaNStart(Cell):
    def __init__(self, no, nu):
        super().__init__(no, nu)
        del self.hidden0
        self.register_buffer("hidden0", torch.full((8,), torch.nan))


class Column(Cell):
    def __init__(self, no, nu):
        super().__init__(no, nu)
        self.hidden0 = nn.Parameter(torch.zeros(1, 8))


class Forgets(Cell):
    def forward(self, obs, hidden):
        after = self.cell(obs, hidden.detach())
        return self.last(self.cell(obs, torch.zeros_like(hidden))), after


class Alone(Cell):
    def forward(self, obs, hidden):
        return super().forward(obs, hidden)[0]


class Grows(Cell):
    def forward(self, obs, hidden):
        action, hidden = super().forward(obs, hidden)
        return action, torch.cat([hidden, hidden], dim=1)


class Explodes(Cell):
    def forward(self, obs, hidden):
        action, hidden = super().forward(obs, hidden)
        return action, hidden / 0.0


class OneArgument(Cell):
    def forward(self, obs):
        return super().forward(obs, self.hidden0.expand(len(obs), -1))


class OtherAlong(Whole):
    def along(self, obs, hidden):
        return super().along(obs.flip(1), hidden)


class WrongAlong(Whole):
    def along(self, obs):
        return obs


class Coupled(Lstm):
    def forward(self, obs, hidden):
        action, hidden = super().forward(obs, hidden)
        return action, hidden - hidden.mean(dim=0)


REFUSED = [
    (NoStart, r"must have hidden0, a buffer or parameter of shape \(nh,\).* got none"),
    (NaNStart, "the first memory is not finite"),
    (Column, r"must have hidden0.* got shape \(1, 8\)"),
    (Forgets, "do not depend on the hidden state; .* named by ModuleConfig"),
    (Alone, "must return two tensors, actions and hidden states, got Tensor"),
    (Grows, r"hidden states of shape \(3, 8\) .* got \(3, 16\)"),
    (Explodes, "NaN or infinity"),
    (OneArgument, r"forward of observations \(3, 2\) and hidden states \(3, 8\) raised TypeError"),
    (OtherAlong, r"along must return the actions \(B, T, nu\) of forward, step after step"),
    (WrongAlong, r"along of observations \(3, 2, 2\) raised TypeError"),
    (Coupled, "depends on the other rows"),
    (lambda no, nu: nn.GRU(no, nu), "must have hidden0"),
]


@pytest.mark.parametrize(("module", "message"), REFUSED, ids=lambda v: getattr(v, "__name__", None))
def test_recurrent_modules_that_cannot_be_trained_are_refused(module, message):
    with pytest.raises(ConfigError, match=message) as caught:
        initial_policy(RecurrentConfig(module=module), 2, 2, stream(0, "net"))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"RecurrentConfig.module {module.__qualname__}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WindowConfig(steps=1), r"WindowConfig\.steps must be .* from 2 to 10000, got 1"),
        (lambda: WindowConfig(network=VisionConfig()), r"WindowConfig\.network must be a network"),
        (lambda: WindowConfig(network=WINDOW), r"WindowConfig\.network must be a network"),
        (lambda: WindowConfig(network=MLPConfig), r"WindowConfig\.network must be a network"),
        (
            lambda: RecurrentConfig(module=Cell, trajectories=0),
            r"RecurrentConfig\.trajectories must be .* from 1 to 100000, got 0",
        ),
    ],
)
def test_configurations_that_cannot_be_right(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_window_for_a_module_of_the_users():
    network = WindowConfig(network=ModuleConfig(module=nn.Linear), steps=3)
    policy = initial_policy(network, 2, 2, stream(0, "net"))
    assert policy.head.weights[0].shape == (2, 6)
    config = TrainingConfig(steps=600, learning_rate=3e-2, final_rate=0.01)
    result = fit(policy, some_trajectories(), config, stream(0, "f"))
    assert result.loss < 1e-3  # a difference is linear
