import copy
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from policy_networks import GatedNetwork, TorchMLP, in_other_units, some_data

from gps.errors import ConfigError, FitError, NonFiniteError, ShapeError
from gps.policies import (
    MLPConfig,
    TrainingConfig,
    TrainingData,
    adam_step,
    batch_gradient,
    capped_weights,
    fit,
    flatten,
    initial_policy,
    minibatches,
    policy_variance,
    prepare,
    schedule,
    unflatten,
    updated,
)
from gps.rng import stream
from gps.types import iter_fields

FIXTURE = Path(__file__).parents[1] / "fixtures" / "policy_weights_and_variance.npz"
SHAPES = [
    ((40, 40), "relu"),
    ((9, 5), "tanh"),
    ((7,), "softplus"),
    ((), "relu"),
]
shapes = pytest.mark.parametrize(("hidden", "activation"), SHAPES)


def start(network, data, seed=0):
    return initial_policy(network, data.obs.shape[1], data.target.shape[1], stream(seed, "policy"))


def assert_same_bytes(a, b):
    arrays_a, arrays_b = (
        (*p.normaliser, p.chol, *p.weights, *p.optimiser.m, *p.optimiser.v) for p in (a, b)
    )
    for x, y in zip(arrays_a, arrays_b, strict=True):
        np.testing.assert_array_equal(x, y)
    assert a.optimiser.step == b.optimiser.step


def action_units(data, config):
    """Mean and spread of the actions: of the targets, and of the noise around them."""
    w = capped_weights(data.weight, config.weight_cap)
    P = np.mean([w[i] * np.diag(data.precision[i]) for i in range(data.n)], axis=0) / w.mean()
    mean = data.target.sum(axis=0) / data.n
    return mean, np.sqrt(((data.target - mean) ** 2).sum(axis=0) / data.n + 1 / P)


def torch_training(policy, data, config, rng):
    """The same training with torch.optim: (weights, running means of gradient, square, losses)."""
    obs = (data.obs - data.obs.mean(axis=0)) / np.maximum(data.obs.std(axis=0), config.std_floor)
    w = capped_weights(data.weight, config.weight_cap)
    mean, std = action_units(data, config)
    P = w[:, None, None] * data.precision * std[:, None] * std
    scale = np.trace(P.sum(axis=0)) / (data.n * data.target.shape[1])
    target = (data.target - mean) / std
    obs, target, P = torch.tensor(obs), torch.tensor(target), torch.tensor(P / scale)
    network = policy.module().network
    optimiser = torch.optim.Adam(
        network.parameters(),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    lr_end = config.learning_rate * config.final_rate
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps - 1, eta_min=lr_end)
    losses = []
    for batch in minibatches(data.n, config.steps, config.batch_size, rng):
        d = network(obs[batch]) - target[batch]
        loss = 0.5 * (d[:, None, :] @ P[batch] @ d[:, :, None]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
        losses.append(loss.item() * scale)
    state = optimiser.state_dict()["state"]
    weights = [p.detach().numpy() for p in network.parameters()]
    m, v = ([state[i][key].numpy() for i in state] for key in ("exp_avg", "exp_avg_sq"))
    return weights, m, v, losses


@pytest.mark.parametrize("kind", [MLPConfig, TorchMLP])
@shapes
def test_training_equals_torch_optim(kind, hidden, activation):
    data = some_data()
    config = TrainingConfig(
        steps=50, batch_size=25, learning_rate=3e-3, final_rate=0.1, weight_decay=0.01, beta1=0.8,
        trace_points=50,
    )  # fmt: skip
    policy = start(kind(hidden=hidden, activation=activation, output_init_scale=1.0), data)
    result = fit(policy, data, config, stream(0, "batches"))
    weights, m, v, losses = torch_training(policy, data, config, stream(0, "batches"))
    for ours, theirs in (
        (result.policy.weights, weights),
        (result.policy.optimiser.m, m),
        (result.policy.optimiser.v, v),
    ):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(result.trace, losses, rtol=1e-9)
    assert max(np.abs(a - b).max() for a, b in zip(weights, policy.weights, strict=True)) > 0.02


@pytest.mark.parametrize("network", [MLPConfig(activation="tanh"), GatedNetwork()], ids=repr)
def test_gradient_is_the_central_difference(network):
    data = some_data()
    policy, problem = prepare(start(network, data), data, TrainingConfig())
    rng = stream(0, "gradient")
    theta = flatten(policy.weights) + 0.1 * rng.normal(size=sum(w.size for w in policy.weights))
    batch = rng.integers(0, data.n, size=9)
    loss, grad = batch_gradient(policy, theta, problem, batch)
    assert loss > 0.1
    for i in rng.integers(0, theta.size, size=20):
        e = np.zeros(theta.size)
        e[i] = 1e-5
        up, down = (batch_gradient(policy, t, problem, batch)[0] for t in (theta + e, theta - e))
        np.testing.assert_allclose(grad[i], (up - down) / 2e-5, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", [MLPConfig, TorchMLP])
def test_gradient_of_a_joined_batch_is_the_mean_over_its_parts(kind):
    data = some_data()
    policy, problem = prepare(start(kind(), data), data, TrainingConfig())
    theta = flatten(policy.weights)
    batch = stream(0, "batch").permutation(data.n)
    loss, grad = batch_gradient(policy, theta, problem, batch)
    parts = [batch_gradient(policy, theta, problem, b) for b in np.split(batch, 4)]
    np.testing.assert_allclose(np.mean([g for _, g in parts], axis=0), grad, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(np.mean([x for x, _ in parts]), loss, rtol=1e-12)


def test_the_parts_of_a_training_make_up_fit():
    data, config = some_data(), TrainingConfig(steps=30, batch_size=10)
    policy = start(MLPConfig(), data)
    want = fit(policy, data, config, stream(0, "batches")).policy
    got, problem = prepare(policy, data, config)
    theta, m, v = (flatten(a) for a in (got.weights, got.optimiser.m, got.optimiser.v))
    batches = minibatches(data.n, config.steps, config.batch_size, stream(0, "batches"))
    for batch, row in zip(batches, schedule(config, 0), strict=True):
        _, grad = batch_gradient(got, theta, problem, batch)
        adam_step(theta, m, v, grad, row, config)
    assert_same_bytes(updated(got, theta, m, v, 30), want)
    for a, b in zip(unflatten(theta, got.weights), want.weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("network", [MLPConfig(), GatedNetwork()], ids=repr)
def test_same_seed_same_bytes(network):
    data, config = some_data(), TrainingConfig(steps=40)
    runs = [fit(start(network, data), data, config, stream(s, "batches")) for s in (3, 3, 4)]
    assert_same_bytes(runs[0].policy, runs[1].policy)
    np.testing.assert_array_equal(runs[0].trace, runs[1].trace)
    assert runs[0].loss == runs[1].loss != runs[2].loss


@pytest.mark.parametrize("kind", [MLPConfig, TorchMLP])
def test_a_stopped_and_resumed_run_gives_the_same_bytes(kind):
    data = some_data(n=100)
    # epochs of four batches: twelve steps and twelve draw what twenty-four draw
    half, whole = (TrainingConfig(steps=s, batch_size=25, final_rate=1.0) for s in (12, 24))
    policy = start(kind(), data)
    straight = fit(policy, data, whole, stream(0, "batches")).policy
    rng = stream(0, "batches")
    stopped = fit(policy, data, half, rng).policy
    resumed = fit(pickle.loads(pickle.dumps(stopped)), data, half, rng).policy
    assert_same_bytes(straight, resumed)
    forgetful = replace(stopped, optimiser=policy.optimiser)
    forgot = fit(forgetful, data, half, stream(0, "other")).policy
    assert not np.array_equal(forgot.weights[0], resumed.weights[0])


def test_arguments_are_not_changed():
    data = some_data()
    given = {name: a for name, a in iter_fields(data) if a is not None}
    raw = {name: np.array(a) for name, a in given.items()}  # writable, as a caller's own
    policy = start(MLPConfig(), data)
    before, kept = copy.deepcopy(raw), copy.deepcopy(policy)
    fit(policy, TrainingData(**raw), TrainingConfig(steps=20), stream(0, "batches"))
    for name, array in raw.items():
        np.testing.assert_array_equal(array, before[name])
        assert array.flags.writeable
    assert_same_bytes(policy, kept)


def test_loss_falls_and_is_the_formula():
    data = some_data(n=400)
    config = TrainingConfig(
        steps=2500, trace_points=30
    )  # it begins at the mean action, not at zero
    result = fit(start(MLPConfig(), data), data, config, stream(0, "batches"))
    assert result.trace.shape == (30,)
    assert result.trace[-1] < 0.05 * result.trace[0]
    w = capped_weights(data.weight, 2.0)

    def loss_of(action):
        d = action - data.target
        return sum(0.5 * w[i] * d[i] @ data.precision[i] @ d[i] for i in range(data.n)) / data.n

    np.testing.assert_allclose(result.loss, loss_of(result.policy.mean(data.obs)), rtol=1e-10)
    at_the_mean = loss_of(data.target.mean(axis=0))
    assert 0.1 * at_the_mean < result.trace[0] < at_the_mean < 0.5 * loss_of(0.0)


def test_learns_a_linear_law():
    rng = stream(0, "linear")
    obs = rng.normal(size=(500, 5)) * [1, 10, 0.1, 3, 1] + [0, 5, 0, -2, 100]
    K, k = rng.normal(size=(2, 5)), np.array([3.0, -8.0])
    data = TrainingData(
        obs=obs,
        target=obs @ K.T + k,
        precision=np.tile(np.eye(2), (500, 1, 1)),
        weight=np.ones(500),
    )
    policy = start(MLPConfig(hidden=()), data)
    config = TrainingConfig(steps=4000, learning_rate=0.3, weight_decay=0.0)
    policy = fit(policy, data, config, stream(0, "batches")).policy
    (W, b), new = policy.weights, rng.normal(size=(50, 5)) * 100
    W, b = policy.action_std[:, None] * W, policy.action_mean + policy.action_std * b
    np.testing.assert_allclose(W / policy.obs_std, K, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(b - W @ (policy.obs_mean / policy.obs_std), k, rtol=1e-5)
    np.testing.assert_allclose(policy.mean(new), new @ K.T + k, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "tanh", "softplus"])
def test_learns_a_nonlinear_law(activation):
    rng = stream(0, "nonlinear")
    obs = rng.uniform(-2, 2, size=(2200, 2))
    target = np.stack([np.sin(2 * obs[:, 0]) * obs[:, 1], np.abs(obs[:, 1])], axis=1)
    data = TrainingData(
        obs=obs[:2000], target=target[:2000], precision=np.tile(np.eye(2), (2000, 1, 1)),
        weight=np.ones(2000),
    )  # fmt: skip
    config = TrainingConfig(steps=12000, learning_rate=5e-3, weight_decay=0.0)
    policy = start(MLPConfig(activation=activation), data)
    policy = fit(policy, data, config, stream(0, "batches")).policy
    error = policy.mean(obs[2000:]) - target[2000:]
    assert np.sqrt(np.mean(error**2)) < 0.04 * target.std()


def test_precisions_decide_between_contradicting_targets():
    n = 200
    target = np.where(np.arange(n) % 2, 1.0, -1.0)[:, None]
    precision = np.where(np.arange(n) % 2, 3.0, 1.0)[:, None, None]
    weight = np.where(np.arange(n) % 2, 1.0, 2.0)
    data = TrainingData(obs=np.ones((n, 1)), target=target, precision=precision, weight=weight)
    config = TrainingConfig(steps=3000, batch_size=n, learning_rate=0.05, weight_decay=0.0)
    policy = fit(start(MLPConfig(hidden=()), data), data, config, stream(0, "b")).policy
    np.testing.assert_allclose(policy.mean(np.ones(1)), (3 * 1 - 1 * 2) / (3 + 2), atol=1e-6)


def test_scale_of_the_precisions_changes_the_loss_and_the_share_of_the_noise_only():
    """The noise counts in the spread of the actions; once it is small, its size has no part."""
    data, config = some_data(), TrainingConfig(steps=100)
    mean, std = action_units(data, config)
    factors = [1.0, 2.0**-4, 2.0**30, 2.0**50]
    given = [replace(data, precision=data.precision * f) for f in factors]
    a, b, c, d = (fit(start(MLPConfig(), data), g, config, stream(0, "b")) for g in given)
    for factor, result in zip(factors, (a, b, c, d), strict=True):
        np.testing.assert_allclose(result.policy.Sigma, a.policy.Sigma / factor, rtol=1e-12)
        want = np.sqrt(std**2 + (1 / factor - 1) * a.policy.Sigma.diagonal())
        np.testing.assert_allclose(result.policy.action_std, want, rtol=1e-12)
        np.testing.assert_allclose(result.policy.action_mean, mean, rtol=1e-12)
    assert not np.allclose(a.policy.weights[0], b.policy.weights[0], rtol=0, atol=1e-4)
    for x, y in zip(c.policy.weights, d.policy.weights, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(d.loss, c.loss * 2**20, rtol=1e-6)


def test_a_unit_that_is_a_power_of_two_changes_no_byte_of_the_weights():
    data, config = some_data(), TrainingConfig(steps=100)
    unit = np.array([2.0**-10, 2.0**10, 2.0**3])
    other = in_other_units(data, unit, np.zeros(3))
    a, b = (fit(start(MLPConfig(), data), d, config, stream(0, "b")) for d in (data, other))
    for x, y in zip(a.policy.weights, b.policy.weights, strict=True):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(b.policy.mean(data.obs), unit * a.policy.mean(data.obs))
    np.testing.assert_array_equal(b.policy.Sigma, np.outer(unit, unit) * a.policy.Sigma)
    assert a.loss == b.loss


@pytest.mark.parametrize("kind", [MLPConfig, TorchMLP])
def test_neither_unit_nor_offset_of_the_actions_matters(kind):
    data = some_data()
    config = TrainingConfig(steps=200, learning_rate=1e-2, weight_decay=1e-2)
    unit, offset = np.array([1e-3, 1e3, 1.0]), np.array([5.0, -4e6, 7e3])
    other = in_other_units(data, unit, offset)
    network = kind(activation="tanh", output_init_scale=1.0)
    policy = start(network, data)
    a, b = (fit(policy, d, config, stream(0, "batches")) for d in (data, other))
    want = a.policy.mean(data.obs)
    np.testing.assert_allclose(
        (b.policy.mean(data.obs) - offset) / unit, want, rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(b.loss, a.loss, rtol=1e-6)
    np.testing.assert_allclose(b.trace, a.trace, rtol=1e-6)
    np.testing.assert_allclose(b.policy.Sigma, np.outer(unit, unit) * a.policy.Sigma, rtol=1e-9)
    for x, y in zip(a.policy.weights, b.policy.weights, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)
    free = fit(policy, data, replace(config, weight_decay=0.0), stream(0, "batches"))
    assert np.abs(free.policy.mean(data.obs) - want).max() > 1e-3  # the decay has its part


def test_targets_that_are_all_one_constant():
    data, constant = some_data(), np.array([3e-5, -8e4, 0.0])
    data = replace(data, target=np.tile(constant, (data.n, 1)))
    config = TrainingConfig(steps=1500, learning_rate=1e-2)
    policy = fit(start(MLPConfig(hidden=(8,)), data), data, config, stream(0, "b")).policy
    noise = np.sqrt(policy_variance(data, config))
    assert noise.min() > 0
    np.testing.assert_allclose(policy.action_std, noise, rtol=1e-9)
    np.testing.assert_allclose(policy.action_mean, constant, rtol=1e-12)
    np.testing.assert_allclose((policy.mean(data.obs) - constant) / noise, 0.0, atol=1e-3)


def test_an_asymmetric_precision_counts_by_its_symmetric_part():
    data, config = some_data(), TrainingConfig(steps=20)
    skew = np.triu(stream(0, "skew").normal(size=(3, 3)), 1)
    a, b = (
        fit(start(MLPConfig(), data), d, config, stream(0, "b"))
        for d in (data, replace(data, precision=data.precision + skew - skew.T))
    )
    np.testing.assert_allclose(a.policy.weights[0], b.policy.weights[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [MLPConfig, TorchMLP])
def test_normalisers_are_those_of_the_data_or_of_the_first(kind):
    first, second = some_data(seed=0), some_data(seed=1)
    flat = first.obs.copy()
    flat[:, 1] = 4.0
    first, config = replace(first, obs=flat), TrainingConfig(steps=5, std_floor=0.02)
    policy = fit(start(kind(), first), first, config, stream(0, "b")).policy
    np.testing.assert_allclose(policy.obs_mean, flat.mean(axis=0), rtol=1e-14)
    want = flat.std(axis=0)
    want[1] = 0.02 * 4.0  # a share of its size
    np.testing.assert_allclose(policy.obs_std, want, rtol=1e-14)
    mean, std = action_units(first, config)
    np.testing.assert_allclose(policy.action_mean, mean, rtol=1e-12)
    np.testing.assert_allclose(policy.action_std, std, rtol=1e-12)
    second = in_other_units(second, np.array([10.0, 0.1, 3.0]), np.full(3, 100.0))
    again = fit(policy, second, config, stream(1, "b")).policy
    follows = kind is MLPConfig  # it can be rewritten, and its optimiser begins anew
    for now, before in zip(again.normaliser, policy.normaliser, strict=True):
        assert np.array_equal(now, before) is not follows
    if follows:
        np.testing.assert_allclose(again.action_mean, action_units(second, config)[0], rtol=1e-12)
    assert again.optimiser.step == (5 if follows else 10)
    assert not np.array_equal(again.chol, policy.chol)


def test_weights_as_in_the_reference():
    d = np.load(FIXTURE)
    weight = d["tgt_wt_in"].ravel()
    np.testing.assert_allclose(capped_weights(weight, 2.0), d["tgt_wt_out"].ravel(), rtol=1e-12)


def test_weight_cap():
    weight = np.array([1.0, 1, 1, 1.5, 3, 50, 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(  # median of the six that count: 1.25
        capped_weights(weight, 2.0), np.array([1, 1, 1, 1.5, 2.5, 2.5, 0, 0, 0, 0, 0, 0]) / 1.25
    )
    np.testing.assert_allclose(capped_weights(weight, np.inf), weight / 1.25)
    np.testing.assert_allclose(capped_weights(1e8 * weight, 2.0), capped_weights(weight, 2.0))


def test_variance_as_in_the_reference_where_all_weights_are_one():
    d = np.load(FIXTURE)
    n, ent = 2000, float(d["ent_reg"])
    mean = d["prc_diag_sum"] / n
    rng = stream(0, "variance")
    spread = rng.uniform(0.5, 1.5, size=(n, 7))
    diagonal = spread / spread.mean(axis=0) * mean
    precision = np.einsum("ni,ij->nij", diagonal, np.eye(7)) + 0.1 * (1 - np.eye(7))
    data = TrainingData(
        obs=np.zeros((n, 1)), target=np.zeros((n, 7)), precision=precision, weight=np.ones(n)
    )
    ours = policy_variance(data, TrainingConfig(entropy_weight=ent))
    # the reference divides the unweighted sum by the sum of the weights
    np.testing.assert_allclose(ours, d["var"] * n / d["tgt_wt_out"].sum(), rtol=1e-9)


def test_variance_weighs_precisions_as_the_loss_does():
    data, config = some_data(), TrainingConfig(steps=3, entropy_weight=0.25)
    w = np.minimum(data.weight, 2 * np.median(data.weight))
    P = sum(w[i] * data.precision[i] for i in range(data.n)) / w.sum() + 2 * 0.25 * np.eye(3)
    np.testing.assert_allclose(policy_variance(data, config), 1 / np.diag(P), rtol=1e-12)
    policy = fit(start(MLPConfig(), data), data, config, stream(0, "b")).policy
    np.testing.assert_allclose(policy.Sigma, np.diag(1 / np.diag(P)), rtol=1e-12)


@pytest.mark.parametrize(("n", "steps", "size"), [(100, 12, 25), (37, 50, 10), (3, 4, 8)])
def test_minibatches_are_shuffled_epochs(n, steps, size):
    batches = minibatches(n, steps, size, stream(0, "batches"))
    assert batches.shape == (steps, size)
    flat = batches.ravel()
    for start_ in range(0, flat.size - n + 1, n):
        np.testing.assert_array_equal(np.sort(flat[start_ : start_ + n]), np.arange(n))
    assert np.bincount(flat, minlength=n).max() - np.bincount(flat, minlength=n).min() <= 1
    assert not np.array_equal(flat[:n], flat[n : 2 * n])


@pytest.mark.parametrize("name", ["obs", "target", "precision", "weight"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_named(name, value):
    data = some_data()
    array = np.array(getattr(data, name))
    array[7:9] = value
    data = replace(data, **{name: array})
    with pytest.raises(NonFiniteError, match=rf"{name} .* in 2 of 120 .* sample 7"):
        fit(start(MLPConfig(), data), data, TrainingConfig(steps=2), stream(0, "b"))


def test_data_that_cannot_be_fitted():
    data, config = some_data(), TrainingConfig(steps=2)
    policy = start(MLPConfig(), data)

    def train(**changes):
        fit(policy, replace(data, **changes), config, stream(0, "b"))

    with pytest.raises(FitError, match="weights"):
        train(weight=np.zeros(data.n))
    with pytest.raises(FitError, match="weights"):
        train(weight=-data.weight)
    with pytest.raises(FitError, match=r"mean precision of action \d is -"):
        train(precision=-data.precision)
    with pytest.raises(FitError, match="no samples"):
        train(obs=data.obs[:0], target=data.target[:0], precision=data.precision[:0], weight=[])
    with pytest.raises(ShapeError, match="precision"):
        train(precision=data.precision[:, :2])
    with pytest.raises(ShapeError, match="weight"):
        train(weight=data.weight[:-1])
    with pytest.raises(ShapeError, match="maps 6 observations to 3 actions"):
        train(obs=data.obs[:, :5])


@pytest.mark.parametrize("kind", [MLPConfig, TorchMLP])
def test_a_diverging_training_is_an_error(kind):
    data = some_data()
    config = TrainingConfig(steps=200, learning_rate=1e200)
    with pytest.raises(FitError, match="learning_rate"), np.errstate(all="ignore"):
        fit(start(kind(), data), data, config, stream(0, "b"))


def test_parts_refuse_wrong_sizes():
    data, config = some_data(), TrainingConfig()
    policy, problem = prepare(start(MLPConfig(), data), data, config)
    theta = flatten(policy.weights)
    rows = np.arange(4)
    with pytest.raises(ShapeError, match="batch"):
        batch_gradient(policy, theta, problem, rows + data.n)
    with pytest.raises(ShapeError, match="theta"):
        batch_gradient(policy, theta[1:], problem, rows)
    with pytest.raises(ShapeError, match="one shape"):
        adam_step(theta, theta[1:], theta, theta, schedule(config, 0)[0], config)
    with pytest.raises(ShapeError, match="values"):
        unflatten(theta[1:], policy.weights)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"steps": 10.0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"final_rate": 1.5},
        {"beta1": 1.0},
        {"beta2": -0.1},
        {"eps": 0.0},
        {"weight_decay": -1.0},
        {"weight_cap": 0.5},
        {"entropy_weight": -1.0},
        {"std_floor": 0.0},
        {"trace_points": 0},
    ],
    ids=str,
)
def test_a_wrong_configuration_is_refused(options):
    (name,) = options
    with pytest.raises(ConfigError, match=f"TrainingConfig.{name}"):
        TrainingConfig(**options)
