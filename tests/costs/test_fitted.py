"""The cost made of a recorded reward: exact values, and derivatives that regression can find."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

import gps.costs
from gps.control import dual
from gps.costs import ActionCost, SumCost, WeightedCost, expand
from gps.costs.fitted import RIDGES, FittedRewardCost, _regression
from gps.errors import ConfigError, NonFiniteError
from gps.types import Gaussian, Layout, LinearDynamics, LinearGaussianController, Rollouts

LAYOUT = Layout((("pos", 2), ("reward", 1), ("vel", 2)))
NU, NX = 2, 5
SEEN = [0, 1, 3, 4, 5, 6]  # of z = [x; u], without the reward


def symmetric(rng, smallest=0.2):
    A = rng.normal(size=(6, 6))
    return A @ A.T + smallest * np.eye(6)


def samples(reward, N=12, T=9, seed=0, scale=1.0):
    """Rollouts whose entry `reward` holds reward(z) one step after z (N, T, 6)."""
    rng = np.random.default_rng(seed)
    X, U = scale * rng.normal(size=(N, T, NX)) + 0.7, rng.normal(size=(N, T, NU)) - 0.3
    Z = np.concatenate((X, U), axis=2)[:, :, SEEN]
    X[:, 0, 2] = 0.0
    X[:, 1:, 2] = reward(Z)[:, :-1]
    none = np.zeros((N, T, 0))
    return Rollouts(X=X, U=U, obs=none, noise=np.zeros_like(U), layout=LAYOUT)


def parts(rollouts):
    return np.concatenate((rollouts.X, rollouts.U), axis=2)[:, :, SEEN]


def gradient(terms):
    return np.concatenate((terms.l_x, terms.l_u), axis=2)


def hessian(terms):
    left = np.concatenate((terms.l_xx, terms.l_ux), axis=2)
    right = np.concatenate((terms.l_ux.swapaxes(2, 3), terms.l_uu), axis=2)
    return np.concatenate((left, right), axis=3)


def wild(Z):
    return np.sin(2 * Z[..., 0]) - np.abs(Z[..., 1] * Z[..., 4]) + 3 * Z[..., 5]


@pytest.mark.parametrize("cost", [FittedRewardCost(), FittedRewardCost(degree=1, window=0)])
def test_a_rollout_costs_minus_its_rewards_exactly(cost):
    r = samples(wild)
    l = cost.evaluate(r).l  # noqa: E741
    np.testing.assert_array_equal(l[:, :-1], -r.entry("reward")[:, 1:, 0])
    np.testing.assert_array_equal(l[:, -1], 0.0)
    assert (l.sum(axis=1) == -r.entry("reward")[:, 1:, 0].sum(axis=1)).all()


def test_the_last_step_and_the_reward_itself_have_no_derivatives():
    terms = FittedRewardCost().evaluate(samples(wild))
    g, H = gradient(terms), hessian(terms)
    assert not g[:, -1].any()
    assert not H[:, -1].any()
    assert not g[..., 2].any()
    assert not H[..., 2, :].any()
    assert not H[..., :, 2].any()
    others = [0, 1, 3, 4, 5, 6]
    assert np.abs(g[:, :-1][..., others]).min() > 0
    np.testing.assert_array_equal(H, H.swapaxes(2, 3))


@pytest.mark.parametrize("N", [9, 40])  # fewer rows than functions, and more
def test_a_quadratic_reward_is_found(N):
    rng = np.random.default_rng(3)
    A, b = symmetric(rng), rng.normal(size=6)
    r = samples(lambda Z: -0.5 * np.einsum("nti,ij,ntj->nt", Z, A, Z) - Z @ b + 4.0, N=N)
    window, Z = (8, parts(r)) if N == 9 else (1, parts(r))
    terms = FittedRewardCost(window=window, ridge=1e-12).evaluate(r)
    np.testing.assert_allclose(
        hessian(terms)[:, :-1][..., SEEN, :][..., SEEN], np.broadcast_to(A, (N, 8, 6, 6)), atol=1e-5
    )
    np.testing.assert_allclose(gradient(terms)[:, :-1][..., SEEN], (Z @ A + b)[:, :-1], atol=1e-5)


def test_the_expansion_has_the_sampled_mean_cost():
    """Whatever was fitted: at the samples the quadratic model costs what they cost on average."""
    r = samples(wild, N=30)
    quadratic = expand(FittedRewardCost().evaluate(r), r)
    z = np.concatenate((r.X, r.U), axis=2)
    model = 0.5 * np.einsum("nti,tij,ntj->nt", z, quadratic.C, z)
    model += np.einsum("nti,ti->nt", z, quadratic.c) + quadratic.c0
    expected = FittedRewardCost().evaluate(r).l
    # the samples' scatter about their mean is what the Hessian, not the gradient, adds
    np.testing.assert_allclose(model.mean(axis=0)[-1], 0.0, atol=1e-12)
    spread = np.einsum("tij,nti,ntj->t", quadratic.C, z - z.mean(0), z - z.mean(0)) / len(z)
    linear = gradient(FittedRewardCost().evaluate(r))
    both = np.einsum("nti,nti->t", linear, z - z.mean(0)) / len(z)
    np.testing.assert_allclose(both, spread, atol=1e-10)
    np.testing.assert_allclose(model.mean(axis=0), expected.mean(axis=0), atol=1e-10)


def brute(r, t, window, ridge, rows=None):
    """Ridge regression by stacked least squares: g and H at step t's mean, and the prediction."""
    Z, y = parts(r)[:, :-1], -r.entry("reward")[:, 1:, 0]
    at = slice(max(t - window, 0), t + window + 1)
    N, S = y[:, at].shape
    z, y = Z[:, at].reshape(-1, 6), y[:, at].reshape(-1)
    v = (z - z.mean(0)) / z.std(0)
    i, j = np.triu_indices(6)
    Phi = np.column_stack((np.ones(len(v)), v, v[:, i] * v[:, j]))
    penalty = np.sqrt(len(v) * ridge * np.r_[0.0, np.ones(6), np.full(len(i), 10.0)])
    keep = np.ones(len(v), dtype=bool) if rows is None else rows(N, S)
    stacked = np.vstack((Phi[keep], np.diag(penalty)))
    b = np.linalg.lstsq(stacked, np.r_[y[keep], np.zeros(len(penalty))], rcond=None)[0]
    H = np.zeros((6, 6))
    H[i, j] = b[7:]
    H = H + H.T
    mean = (Z[:, t].mean(0) - z.mean(0)) / z.std(0)
    g = (b[1:7] + H @ mean) / z.std(0)
    return g, H / np.outer(z.std(0), z.std(0)), y - Phi @ b, y


@pytest.mark.parametrize("N", [5, 30])
def test_the_fit_is_the_ridge_regression(N):
    r = samples(lambda Z: -np.square(Z).sum(axis=2) + 0.3 * wild(Z), N=N)
    terms = FittedRewardCost(ridge=0.05, window=2).evaluate(r)
    for t in (0, 4, 7):
        g, H, _, _ = brute(r, t, 2, 0.05)
        std = np.concatenate([parts(r)[:, :-1][:, max(t - 2, 0) : t + 3].reshape(-1, 6).std(0)])
        values, vectors = np.linalg.eigh(H * np.outer(std, std))
        clipped = (vectors * np.maximum(values, 0)) @ vectors.T / np.outer(std, std)
        np.testing.assert_allclose(gradient(terms)[:, t, SEEN].mean(axis=0), g, atol=1e-9)
        found = hessian(terms)[:, t][:, SEEN][..., SEEN]
        np.testing.assert_allclose(found, np.broadcast_to(clipped, found.shape), atol=1e-9)


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_the_ridge_predicts_left_out_rollouts_best(noise):
    """Against refitting without each rollout in turn."""
    rng = np.random.default_rng(5)
    r = samples(lambda Z: wild(Z) + noise * rng.normal(size=Z.shape[:2]), N=8)
    errors = []
    for ridge in RIDGES:
        total = 0.0
        for t in range(8):
            y = brute(r, t, 2, ridge)[3]
            for out in range(8):
                left = np.repeat(np.arange(8) == out, len(y) // 8)
                residual = brute(r, t, 2, ridge, lambda N, S, left=left: ~left)[2]
                total += np.sum(residual[left] ** 2) / np.sum((y - y.mean()) ** 2)
        errors.append(total)
    Z, y = parts(r)[:, :-1], -r.entry("reward")[:, 1:, 0]
    fits = [_regression(Z, y, t, 2, 2) for t in range(8)]
    found = [sum(fit.left_out(ridge) for fit in fits) for ridge in RIDGES]
    np.testing.assert_allclose(found, errors, rtol=1e-6)
    best = RIDGES[int(np.argmin(errors))]
    assert RIDGES[0] < best < RIDGES[-1]
    chosen, given = (FittedRewardCost(ridge=ridge).evaluate(r) for ridge in (None, best))
    np.testing.assert_array_equal(gradient(chosen), gradient(given))
    other = FittedRewardCost(ridge=RIDGES[RIDGES.index(best) - 1]).evaluate(r)
    assert not np.allclose(gradient(chosen), gradient(other))


def test_curvature_that_would_lead_away_is_cut_and_slope_is_kept():
    r = samples(lambda Z: Z[..., 0] ** 2 - 2.0 * Z[..., 1] ** 2 + 5.0 * Z[..., 4], N=60)
    terms = FittedRewardCost(window=0, ridge=1e-10).evaluate(r)
    H, Z = hessian(terms)[:, 3], parts(r)[:, 3]
    assert np.linalg.eigvalsh(H).min() > -1e-12
    assert np.abs(H[:, 0]).max() < 0.05  # l = -z0^2 curves down
    np.testing.assert_allclose(H[:, 1, 1], 4.0, atol=0.05)
    np.testing.assert_allclose(gradient(terms)[:, 3, 0].mean(), -2 * Z[:, 0].mean(), atol=0.05)
    np.testing.assert_allclose(gradient(terms)[:, 3, 5], -5.0, atol=0.1)


def test_degree_one_is_the_slope_without_curvature():
    r = samples(lambda Z: Z @ np.arange(6.0), N=20)
    terms = FittedRewardCost(degree=1, ridge=1e-10).evaluate(r)
    assert not hessian(terms).any()
    expected = np.broadcast_to(-np.arange(6.0), (20, 8, 6))
    np.testing.assert_allclose(gradient(terms)[:, :-1][..., SEEN], expected, atol=1e-6)


def test_units_and_the_order_of_samples_do_not_matter():
    r = samples(wild)
    order = np.random.default_rng(0).permutation(r.N)
    terms = FittedRewardCost().evaluate(r)
    mixed = FittedRewardCost().evaluate(replace(r, X=r.X[order], U=r.U[order]))
    np.testing.assert_allclose(gradient(mixed), gradient(terms)[order], atol=1e-9)
    unit = np.array([1e3, 1.0, 1.0, 1e-3, 1.0])  # mm, ms
    scaled = FittedRewardCost().evaluate(replace(r, X=r.X * unit))
    np.testing.assert_allclose(scaled.l_x * unit, terms.l_x, atol=1e-9)
    np.testing.assert_allclose(scaled.l_u, terms.l_u, atol=1e-9)


def test_features_that_do_not_vary_or_are_not_named_have_no_derivatives():
    r = samples(wild)
    X = r.X.copy()
    X[:, :, 1] = 123.4
    g = gradient(FittedRewardCost().evaluate(replace(r, X=X)))
    assert np.isfinite(g).all()
    assert not g[..., 1].any()
    assert g[..., 0].any()
    g = gradient(FittedRewardCost(features=("vel",)).evaluate(r))
    assert not g[..., :3].any()
    assert g[:, :-1, 3:].all()


def test_a_constant_reward_and_one_rollout_are_told_apart_from_nothing():
    for reward in (lambda Z: np.full(Z.shape[:2], -0.1), lambda Z: np.zeros(Z.shape[:2])):
        terms = FittedRewardCost().evaluate(samples(reward))
        assert not gradient(terms).any()
        assert not hessian(terms).any()
    one = FittedRewardCost().evaluate(samples(wild, N=1))
    assert np.isfinite(gradient(one)).all()
    alone = FittedRewardCost(window=0).evaluate(samples(wild, N=1))
    assert not gradient(alone).any()
    assert alone.l.any()


def test_it_adds_to_other_costs():
    r = samples(wild)
    fitted, action = FittedRewardCost(), ActionCost(weights=0.2)
    both = SumCost(terms=(WeightedCost(cost=fitted, weight=2.0), WeightedCost(cost=action)))
    total, a, b = both.evaluate(r), fitted.evaluate(r), action.evaluate(r)
    for name in ("l", "l_x", "l_u", "l_xx", "l_ux", "l_uu"):
        expected = 2.0 * getattr(a, name) + getattr(b, name)
        np.testing.assert_allclose(getattr(total, name), expected, atol=1e-12)


def test_bounded_steps_on_the_fit_earn_more():
    """A mass on a line, whose reward nobody writes down; the fit alone says where to go."""
    T, dt = 15, 0.2
    F = np.array([[1.0, dt, 0.0, 0.5 * dt**2], [0.0, 1.0, 0.0, dt], [0.0, 0.0, 0.0, 0.0]])
    layout = Layout((("pos", 1), ("vel", 1), ("reward", 1)))

    def roll(controller, noise):
        x, X, U = np.tile([1.0, 0.0, 0.0], (len(noise), 1)), [], []
        for t in range(T):
            X.append(x)
            U.append(controller.act(x, x, t, noise[:, t]))
            x = np.column_stack((x, U[-1])) @ F.T
            x[:, 2] = -np.log(0.1 + (X[-1][:, 0] - 0.2) ** 2) - 0.05 * U[-1][:, 0] ** 2
        X, U = np.stack(X, axis=1), np.stack(U, axis=1)
        return Rollouts(X=X, U=U, obs=X, noise=noise, layout=layout)

    tiles = np.tile(F, (T - 1, 1, 1)), np.zeros((T - 1, 3)), np.zeros((T - 1, 3, 3))
    start = Gaussian(np.array([1.0, 0.0, 0.0]), 1e-8 * np.eye(3))
    p = LinearGaussianController(np.zeros((T, 1, 3)), np.zeros((T, 1)), np.ones((T, 1, 1)))
    earned = []
    for k in range(5):
        earned.append(roll(p, np.zeros((1, T, 1))).entry("reward").sum())
        r = roll(p, np.random.default_rng(k).normal(size=(20, T, 1)))
        cost = expand(FittedRewardCost().evaluate(r), r)
        p = dual.minimise(LinearDynamics(*tiles), cost, start, p, 0.3).controller
    assert earned[0] < 5.0
    assert earned[-1] > 15.0
    # standing at the best place all the time earns this; it takes a while to get there
    assert earned[-1] < -(T - 1) * np.log(0.1)


def test_what_is_not_finite_is_named():
    r = samples(wild)
    X = r.X.copy()
    X[3, 4, 0] = np.nan
    with pytest.raises(NonFiniteError, match="sample 3 is NaN or infinite at t=4"):
        FittedRewardCost().evaluate(replace(r, X=X))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: FittedRewardCost(entry=3), "entry must be text, got 3"),
        (lambda: FittedRewardCost(window=-1), "window must be a whole number"),
        (lambda: FittedRewardCost(window=1.0), "window must be a whole number"),
        (lambda: FittedRewardCost(degree=3), "degree must be a whole number from 1 to 2"),
        (lambda: FittedRewardCost(degree=True), "degree must be a whole number from 1 to 2"),
        (lambda: FittedRewardCost(ridge=0.0), "ridge must be a number above 0"),
        (lambda: FittedRewardCost(features="pos"), "a tuple without repetition"),
        (lambda: FittedRewardCost(features=("pos", "pos")), "a tuple without repetition"),
        (lambda: FittedRewardCost(features=("reward",)), "without 'reward'"),
        (lambda: FittedRewardCost(entry="rewards").check(LAYOUT, 2, 5), "did you mean 'reward'"),
        (lambda: FittedRewardCost(entry="pos").check(LAYOUT, 2, 5), "has 2 values"),
        (lambda: FittedRewardCost(features=("poss",)).check(LAYOUT, 2, 5), "did you mean 'pos'"),
        (lambda: FittedRewardCost().check(LAYOUT, 2, 1), "2 steps or more, got T=1"),
    ],
)
def test_configuration_errors_say_what_would_help(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


def test_the_cost_is_configuration_that_travels():
    cost = FittedRewardCost(features=["pos"], ridge=1)
    assert cost.features == ("pos",)
    copy = pickle.loads(pickle.dumps(cost))
    assert copy == cost
    assert hash(copy) == hash(cost)
    assert eval(repr(cost), {"FittedRewardCost": FittedRewardCost}) == cost
    assert isinstance(cost, gps.costs.Cost)
