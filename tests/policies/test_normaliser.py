"""A policy that is trained on is rewritten for the units of the new data."""

from dataclasses import replace

import numpy as np
import pytest
from policy_networks import GatedNetwork, TorchMLP, some_data

from gps.algorithms import stages
from gps.algorithms.state import PolicyState
from gps.policies import (
    MLPConfig,
    Normaliser,
    TrainingConfig,
    WindowConfig,
    fit,
    initial_policy,
    prepare,
)
from gps.rng import stream

CONFIG = TrainingConfig(steps=40)
PLAIN = [
    MLPConfig(hidden=(9, 5), activation="tanh"),
    MLPConfig(hidden=(7,), activation="relu"),
    MLPConfig(hidden=()),
    MLPConfig(hidden=(6,), activation="softplus"),
]


def trained(network, data=None, config=CONFIG):
    data = some_data() if data is None else data
    no, nu = data.obs.shape[1], data.target.shape[1]
    start = initial_policy(network, no, nu, stream(0, "policy"))
    return fit(start, data, config, stream(0, "batches")).policy


def other_normaliser(no, nu):
    rng = stream(0, "units")
    return Normaliser(
        rng.normal(size=no),
        rng.uniform(0.1, 9, no),
        50 * rng.normal(size=nu),
        rng.uniform(1, 9, nu),
    )


def moved(data):
    """The same task elsewhere: wider observations, larger actions."""
    return replace(data, obs=3 * data.obs + 2.0, target=20 * data.target - 100.0)


@pytest.mark.parametrize("network", PLAIN, ids=repr)
def test_a_rewritten_network_is_the_same_function(network):
    data, old = some_data(), trained(network)
    assert old.renormalises
    normaliser = other_normaliser(old.no, old.nu)
    new = old.renormalised(normaliser)
    assert all(map(np.array_equal, new.normaliser, normaliser))
    assert np.abs(new.weights[0] - old.weights[0]).max() > 1e-2
    np.testing.assert_allclose(new.mean(data.obs), old.mean(data.obs), rtol=1e-9, atol=1e-9)
    assert new.optimiser.step == 0
    assert not any(m.any() for m in new.optimiser.m)


def test_the_same_units_change_nothing():
    old = trained(PLAIN[0])
    assert old.renormalised(old.normaliser) is old


def test_a_network_that_is_not_a_perceptron_keeps_its_units():
    old = trained(GatedNetwork())
    assert not old.renormalises
    assert old.renormalised(other_normaliser(old.no, old.nu)) is old
    again, problem = prepare(old, moved(some_data()), CONFIG)
    assert all(map(np.array_equal, again.normaliser, old.normaliser))
    assert all(map(np.array_equal, problem.normaliser, old.normaliser))


def test_preparing_computes_what_the_policy_did_in_the_units_of_the_data():
    old, data = trained(PLAIN[0]), moved(some_data())
    new, problem = prepare(old, data, CONFIG)
    np.testing.assert_allclose(problem.obs.std(axis=0), 1.0, rtol=1e-9)
    np.testing.assert_allclose(problem.target.mean(axis=0), 0.0, atol=1e-9)
    assert problem.target.std(axis=0).max() < 1.0  # the noise counts as spread, too
    np.testing.assert_allclose(new.mean(data.obs), old.mean(data.obs), rtol=1e-9, atol=1e-7)


def test_training_on_where_states_have_drawn_together_needs_the_new_units():
    """As in a run whose first rollouts are wide, and whose later ones stay near the target."""
    data, sizes = some_data(n=600), {"hidden": (40, 40), "activation": "tanh"}
    centre = data.obs.mean(axis=0)
    near = replace(data, obs=centre + 0.5 * (data.obs - centre), target=0.5 * data.target + 0.5)
    config = TrainingConfig(steps=4000, weight_decay=1e-3)
    first = trained(MLPConfig(**sizes), data, config)
    kept = replace(first, network=TorchMLP(**sizes))  # the same network, which keeps its units
    follows, stays = (
        fit(policy, near, replace(config, steps=1000), stream(1, "batches")).loss
        for policy in (first, kept)
    )
    assert follows < 0.8 * stays


def test_windows_follow_by_their_network():
    assert initial_policy(
        WindowConfig(network=MLPConfig(), steps=2), 3, 2, stream(0, "policy")
    ).renormalises
    assert not initial_policy(
        WindowConfig(network=GatedNetwork(), steps=2), 3, 2, stream(0, "policy")
    ).renormalises


@pytest.mark.parametrize(
    ("network", "continues"), [(PLAIN[0], True), (GatedNetwork(), False)], ids=["plain", "module"]
)
def test_by_default_a_training_continues_where_units_can_follow(network, continues):
    data = moved(some_data())
    state = PolicyState(policy=trained(network))
    args = ([data], replace(CONFIG, steps=1, learning_rate=1e-9))
    unsaid, on, afresh = (
        stages.train_policy(state, *args, restart, 0, 4, 1).policy
        for restart in (None, False, True)
    )
    want = on if continues else afresh
    for got, weights in zip(unsaid.weights, want.weights, strict=True):
        np.testing.assert_array_equal(got, weights)
    assert not np.array_equal(on.weights[0], afresh.weights[0])
