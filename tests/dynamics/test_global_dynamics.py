"""The global model: what it is told of the state, its derivatives, and its doubts."""

from math import pi

import numpy as np
import pytest

from gps.control.models import Model
from gps.dynamics import (
    GaussianProcessConfig,
    GlobalDynamics,
    GlobalDynamicsConfig,
    Transitions,
    fit_global,
)
from gps.dynamics.global_model import features, spread_out
from gps.errors import FitError, ShapeError
from gps.types import Layout, Rollouts, StateStructure

DT = 0.1
STRUCTURE = StateStructure(periodic=(True, False, False), velocity=(1, -1, -1))


def pendulum(X, U):
    """Angle, angular velocity, and a filter of the action."""
    v = X[:, 1] + DT * (-9.0 * np.sin(X[:, 0]) - 0.1 * X[:, 1] + 3.0 * U[:, 0])
    q = X[:, 0] + 0.5 * DT * (X[:, 1] + v)
    return np.column_stack([q, v, 0.5 * X[:, 2] + U[:, 0]])


def transitions(n, seed=0, around=0.0, noise=0.0):
    rng = np.random.default_rng(seed)
    X = np.column_stack(
        [around + rng.uniform(-pi, pi, n), 3 * rng.standard_normal(n), rng.normal(size=n)]
    )
    U = rng.standard_normal((n, 1))
    return Transitions(X, U, pendulum(X, U) + noise * rng.standard_normal((n, 3)))


def fitted(new, structure=STRUCTURE, **options):
    return fit_global(
        GlobalDynamics.unfitted(structure, 1, DT), new, GlobalDynamicsConfig(**options)
    )


@pytest.fixture(scope="module")
def model():
    return fitted(transitions(120))


def test_it_predicts_what_it_has_not_seen(model):
    """Also one turn further: an angle enters by sine and cosine."""
    test = transitions(200, seed=1, around=2 * pi)
    off = model.step(test.X, test.U) - test.X_next
    assert isinstance(model, Model)
    moved = (test.X_next - test.X).std(axis=0)
    assert (np.sqrt((off**2).mean(axis=0)) < (1e-3, 0.02, 0.01) * moved).all()


def test_a_position_moves_with_its_velocity():
    """With the structure the position needs no data of its own, without it is learned."""
    new = transitions(40)
    told, untold = fitted(new), fitted(new, StateStructure.unknown(3))
    test = transitions(200, seed=2)
    off = [np.abs(m.step(test.X, test.U) - test.X_next)[:, 0].mean() for m in (told, untold)]
    assert off[0] < 0.1 * off[1]
    assert told.process.parameters.length.shape == (3, 5)
    assert untold.process.parameters.length.shape == (3, 4)


def test_derivatives_are_those_of_its_steps(model):
    t = transitions(5, seed=3)
    X, U = t.X * (1, 5, 5), 5 * t.U  # beyond the data, where there is a variance to speak of
    F, variance, slope = model.linearised(X, U)
    np.testing.assert_allclose(model.variances(X, U), variance, rtol=1e-6)
    own = model.process.variance(features(X, U, STRUCTURE))
    own[:, 0] += (0.5 * DT) ** 2 * own[:, 1]  # the position moves with the velocity
    np.testing.assert_allclose(variance, own, rtol=1e-6)
    for i, h in enumerate(1e-4 * np.eye(4)):
        up, down = ((X + s * h[:3], U + s * h[3:]) for s in (1.0, -1.0))
        wanted = (model.step(*up) - model.step(*down)) / 2e-4
        np.testing.assert_allclose(F[:, :, i], wanted, atol=1e-5)
        wanted = (model.variances(*up) - model.variances(*down)) / 2e-4
        largest = np.abs(slope).max(axis=(0, 2))
        np.testing.assert_allclose(slope[:, :, i] / largest, wanted / largest, atol=1e-3)
    np.testing.assert_array_equal(model.jacobians(X, U), model.linearised(X[:-1], U[:-1])[0])


def test_rollouts_follow_its_steps(model):
    T, sizes = 6, np.array([1.0, 0.3])
    rng = np.random.default_rng(0)
    X, U, k = rng.normal(size=(T, 3)), rng.normal(size=(T, 1)), rng.normal(size=(T, 1))
    K, high = rng.normal(size=(T, 1, 3)), np.full((T, 1), 0.8)
    states, actions = model.rollout(X, U, k, K, sizes, -high, high)
    for b, size in enumerate(sizes):
        x = X[0]
        for t in range(T):
            u = np.clip(U[t] + size * k[t] + K[t] @ (x - X[t]), -0.8, 0.8)
            np.testing.assert_allclose(actions[b, t], u, atol=1e-12)
            np.testing.assert_allclose(states[b, t], x, atol=1e-12)
            x = model.step(x[None], u[None])[0]


def test_errors_are_as_large_as_it_says():
    """Held-out rollouts, near the data and far from it: the model knows what it does not know."""
    model = fitted(transitions(60, noise=0.02))
    near, far = transitions(300, seed=4, noise=0.02), transitions(300, seed=5, noise=0.02)
    far = Transitions(far.X * (1, 4, 1), far.U, pendulum(far.X * (1, 4, 1), far.U))
    for test, most in ((near, 2.0), (far, 6.0)):
        std = np.sqrt(model.variances(test.X, test.U) + model.process.noise**2)[:, 1:]
        off = (model.step(test.X, test.U) - test.X_next)[:, 1:] / std
        assert ((off**2).mean(axis=0) < most).all(), (off**2).mean(axis=0)
    assert (np.abs(model.process.noise[1:] / 0.02 - 1) < 0.5).all()
    there, here = (model.variances(t.X, t.U)[:, 1].mean() for t in (far, near))
    assert there > 2 * here


def test_more_data_join_the_old():
    first = fitted(transitions(30))
    both = fit_global(first, transitions(30, seed=1))
    assert len(both.transitions.X) == 60
    np.testing.assert_array_equal(both.transitions.X[:30], first.transitions.X)
    test = transitions(200, seed=2)
    off = [np.abs(m.step(test.X, test.U) - test.X_next)[:, 1].mean() for m in (first, both)]
    assert off[1] < off[0]


def test_a_search_goes_on_from_the_last_models():
    """With one step of it the hyperparameters of a fitted model are better than none."""
    first, more = fitted(transitions(60)), transitions(5, seed=1)
    one_step = GlobalDynamicsConfig(process=GaussianProcessConfig(iterations=1))
    unfitted = GlobalDynamics.unfitted(STRUCTURE, 1, DT)
    warm = fit_global(first, more, one_step)
    cold = fit_global(unfitted, first.transitions.joined(more), one_step)
    test = transitions(200, seed=2)
    off = [np.abs(m.step(test.X, test.U) - test.X_next)[:, 1].mean() for m in (warm, cold)]
    assert off[0] < 0.5 * off[1]


def test_the_same_data_give_the_same_bytes():
    new = transitions(40)
    one, other = (fitted(new).parameters for _ in range(2))
    assert all(
        getattr(one, n).tobytes() == getattr(other, n).tobytes() for n in ("length", "noise")
    )


def test_points_beyond_the_most_are_thinned():
    """The newest half stays; of the old ones those that are near to others go first."""
    rng = np.random.default_rng(0)
    crowd = rng.normal(size=(60, 2)) * 1e-3
    Z = np.concatenate([[[5.0, 5.0], [-5.0, 5.0]], crowd, rng.normal(size=(10, 2))])
    chosen = spread_out(Z, 20)
    assert len(set(chosen)) == 20
    assert {0, 1, *range(62, 72)} <= set(chosen)
    assert list(chosen) == sorted(chosen)
    model = fitted(transitions(60), max_points=25)
    assert len(model.transitions.X) == 25
    np.testing.assert_array_equal(model.transitions.X[-12:], transitions(60).X[-12:])


def test_rollouts_become_transitions():
    rng = np.random.default_rng(0)
    X, U = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 4, 1))
    layout = Layout((("a", 3),))
    found = Transitions.of(
        Rollouts(X=X, U=U, obs=np.zeros((2, 4, 0)), noise=np.zeros_like(U), layout=layout)
    )
    assert found.X.shape == (6, 3)
    np.testing.assert_array_equal(found.X[4], X[1, 1])
    np.testing.assert_array_equal(found.X_next[4], X[1, 2])
    np.testing.assert_array_equal(found.U[4], U[1, 1])


def test_features_keep_actions_and_sizes():
    X, U = np.array([[pi / 6, 2.0, 3.0]]), np.array([[4.0]])
    np.testing.assert_allclose(features(X, U, STRUCTURE), [[np.sqrt(0.75), 2.0, 3.0, 0.5, 4.0]])


def test_what_cannot_be_is_named(model):
    with pytest.raises(FitError, match="not been fitted"):
        GlobalDynamics.unfitted(STRUCTURE, 1, DT).step(np.zeros((1, 3)), np.zeros((1, 1)))
    for x, u in ((np.zeros((2, 3)), np.zeros((3, 1))), (np.zeros(3), np.zeros(1))):
        for call in (model.step, model.linearised):
            with pytest.raises(ShapeError, match=r"must be \(B, 3\) and \(B, 1\), got"):
                call(x, u)
    wrong = Transitions(np.zeros((4, 2)), np.zeros((4, 1)), np.zeros((4, 2)))
    with pytest.raises(ShapeError, match="of nx=2 and nu=1, the model of nx=3 and nu=1"):
        fit_global(model, wrong)
    with pytest.raises(ShapeError, match="velocity must have 2 values, got 1"):
        StateStructure((False, True), (-1,))
    for velocity in ((0, -1), (2, -1), (1, 0)):
        with pytest.raises(ShapeError, match=r"velocity\[\d\] must be -1 or the index of another"):
            StateStructure((False, False), velocity)
