"""Fits, searches, plans and trainings in other units of states, actions and cost: the same result.

tests/algorithms/test_runs_in_other_units.py has whole runs.
"""

from dataclasses import replace

import numpy as np
import pytest
from rescaled import Model, Units, near, near_controllers

from gps.control import batch, dual, ilqr, pi2, pilqr, tracking
from gps.control.models import NumpyModel
from gps.costs import FittedRewardCost
from gps.distributions import regression
from gps.distributions.gmm import GMMConfig
from gps.dynamics import linear
from gps.errors import NotPositiveDefiniteError
from gps.policies import LineariseConfig, MLPConfig, TrainingConfig
from gps.policies.linearise import linearise
from gps.policies.policy import Sizes
from gps.policies.training import TrainingData, whitening_std
from gps.rng import stream
from gps.types import (
    Gaussian,
    Layout,
    LinearDynamics,
    LinearGaussianController,
    QuadraticCost,
    Rollouts,
)

T, NX, NU, N = 20, 4, 2, 6
CLOSE = 1e-9
"""Of the largest entry: rounding, by which other units differ, times the condition of a fit."""

drawn = pytest.mark.parametrize(
    "units",
    [
        *(pytest.param(Units.drawn(NX, NU, seed, 2.0, 20), id=f"2^k, {seed}") for seed in (0, 1)),
        *(pytest.param(Units.drawn(NX, NU, seed), id=f"10^k, {seed}") for seed in (2, 3, 4)),
    ],
)


def problem(seed=0):
    """Dynamics, cost, start and a controller, all of order one."""
    rng = np.random.default_rng(seed)
    A = np.eye(NX) + 0.1 * rng.normal(size=(T - 1, NX, NX))
    F = np.concatenate((A, 0.3 * rng.normal(size=(T - 1, NX, NU))), axis=2)
    w = 0.05 * rng.normal(size=(T - 1, NX, NX))
    h = rng.normal(size=(T, NX + NU, NX + NU))
    C = 0.1 * h @ h.transpose(0, 2, 1) + 0.1 * np.eye(NX + NU)
    s = 0.2 * rng.normal(size=(NX, NX))
    return (
        LinearDynamics(F, 0.1 * rng.normal(size=(T - 1, NX)), w @ w.transpose(0, 2, 1)),
        QuadraticCost(C, rng.normal(size=(T, NX + NU)), rng.normal(size=T)),
        Gaussian(rng.normal(size=NX), s @ s.T),
        LinearGaussianController(
            0.1 * rng.normal(size=(T, NU, NX)),
            0.1 * rng.normal(size=(T, NU)),
            np.tile(np.diag([0.5, 0.8]), (T, 1, 1)),
        ),
    )


def rescaled(units, dynamics, cost, start, controller):
    return (
        units.dynamics(dynamics),
        units.quadratic(cost),
        units.gaussian(start),
        units.controller(controller),
    )


def sampled(seed=0):
    """Rollouts of a smooth system, whose last state entry does not move before half of the time."""
    rng = np.random.default_rng(seed)
    U, X = rng.normal(size=(N, T, NU)), np.zeros((N, T, NX))
    X[:, 0, :3] = 1.0 + 0.1 * rng.normal(size=(N, 3))
    X[:, : T // 2, 3] = 0.6
    for t in range(T - 1):
        x = X[:, t]
        X[:, t + 1, 0] = x[:, 0] + 0.1 * x[:, 1]
        X[:, t + 1, 1] = x[:, 1] + 0.1 * np.sin(x[:, 0]) + 0.2 * U[:, t, 0]
        X[:, t + 1, 2] = 0.9 * x[:, 2] + 0.1 * U[:, t, 1]
        X[:, t + 1, 3] = 0.6 if t + 1 < T // 2 else x[:, 3] + 0.05 * x[:, 2]
    layout = Layout((("a", 1), ("speed", 1), ("b", 1), ("block", 1)))  # each of a unit of its own
    return Rollouts(X=X, U=U, obs=X, noise=U, layout=layout, condition=0)


# --- fits


@drawn
@pytest.mark.parametrize("moves", ["from the first", "later", "no longer", "never", "at zero"])
def test_dynamics_and_their_prior(units, moves):
    """Also of an entry that does not vary now, or has never varied."""

    def fit(units):
        prior, found = None, []
        for n in range(2):
            r = sampled(n)
            X = r.X.copy()
            held = {"later": n == 0, "no longer": n == 1, "never": True, "at zero": True}
            if held.get(moves, False):
                X[..., 3] = 0.0 if moves == "at zero" else 0.6
            r = units.rollouts(replace(r, X=X, obs=X))
            config = linear.DynamicsConfig()
            points = linear.points(r.X, r.U)
            prior = regression.update_prior(prior, points, config.prior, stream(n, "a prior"))
            found.append(linear.fit(r, prior, config))
        return found

    for one, other in zip(fit(Units.one(NX, NU)), fit(units), strict=True):
        d, x = units.back.dynamics(other.dynamics), units.back.gaussian(other.start)
        for part in ("F", "f", "W"):
            near(part, getattr(one.dynamics, part), getattr(d, part), 1e-6)
        near("start", one.start.mean, x.mean, CLOSE)
        near("start", one.start.cov, x.cov, CLOSE)


@drawn
def test_a_mixture(units):
    points = linear.points(sampled().X, sampled().U)
    scale = np.concatenate((units.z, units.x))
    config = regression.MixturePriorConfig(gmm=GMMConfig(max_iterations=10))
    one, other = (
        regression.update_prior(None, p, config, stream(0, "mixture")).mixture
        for p in (points, points * scale)
    )
    near("weights", np.exp(one.log_weight), np.exp(other.log_weight), CLOSE)
    near("means", one.mean, other.mean / scale, CLOSE)
    near("covariances", one.cov, other.cov / np.outer(scale, scale), CLOSE)


@drawn
def test_fitted_rewards(units):
    r, cost = sampled(), FittedRewardCost(entry="b", window=1)
    one, other = cost.evaluate(r), cost.evaluate(units.rollouts(r))
    reward = units.x[2]
    for part, size in (("l_x", units.x), ("l_u", units.u), ("l_xx", np.outer(units.x, units.x))):
        near(part, getattr(one, part), getattr(other, part) * size / reward, 1e-8)


# --- the policy


def trained(units, restart=False):
    """Policies after two S-steps in these units."""
    policy = MLPConfig(hidden=(8,)).initial_policy(Sizes(NX, NU), stream(0, "weights"))
    config, out = TrainingConfig(steps=50), []
    for n in range(2):
        r = sampled(n)
        K = np.array([[0.1, -0.5, 0.2, 0.3], [0.4, 0.1, -0.3, 0.0]])
        target = np.tanh(r.X @ K.T).reshape(-1, NU)
        P = np.tile(np.array([[4.0, 1.0], [1.0, 2.0]]), (N * T, 1, 1))
        data = TrainingData(
            obs=r.X.reshape(-1, NX) * units.x,
            target=target * units.u,
            precision=P / np.outer(units.u, units.u),
            weight=np.ones(N * T),
        )
        policy = policy.fit(data, config, stream(n, "train")).policy
        out.append(policy)
    return out


@drawn
def test_the_training_of_the_network(units):
    for one, other in zip(trained(Units.one(NX, NU)), trained(units), strict=True):
        for a, b in zip(one.weights, other.weights, strict=True):
            near("weights", a, b, 1e-8)
        near("noise", one.chol, other.chol / units.u[:, None], CLOSE)
        near("units", one.obs_std, other.obs_std / units.x, CLOSE)


def test_what_an_observation_is_divided_by():
    values = np.random.default_rng(0).normal(size=(50, 5))
    values[:, 1] = 4.0  # constant
    values[:, 2] = 4.0 + 1e-9 * values[:, 2]  # nearly
    values[:, 3] = 0.0
    values[:, 4] *= 1e-17  # what is left of sums of the others
    want = [values[:, 0].std(), 4e-3, 4e-3, 1.0, 1.0]
    np.testing.assert_allclose(whitening_std(values, 1e-3), want, rtol=1e-8)


@drawn
@pytest.mark.parametrize("method", ["samples", "jacobian"])
def test_the_linearised_policy(units, method):
    config = LineariseConfig(method=method)

    def linear_form(units):
        policy, r = trained(units)[0], units.rollouts(sampled())
        return linearise(policy, r, None, config, stream(0, "linearise"), r.layout).controller

    one, other = linear_form(Units.one(NX, NU)), linear_form(units)
    near_controllers(method, one, units.back.controller(other), 1e-7)


# --- LQR under KL bounds


@drawn
@pytest.mark.parametrize("under", ["new", "previous"])
@pytest.mark.parametrize("floor", [None, 0.3])
@pytest.mark.parametrize("search", ["minimise", "minimise_per_step", "batch", "batch per step"])
def test_kl_bounds(units, search, floor, under):
    """From no eta: the search begins anywhere, and its tolerance would keep what it began with."""
    ours, config = problem(), dual.DualConfig(kl_under=under)

    def find(args, floor):
        if search.startswith("batch"):
            per_step = search != "batch"
            function = batch.minimise_per_step if per_step else batch.minimise
            bound = np.full((2, T), 0.2) if per_step else np.full(2, 0.2)
            found = function(*args, bound, config, std_floor=floor)
            c = found.controller
            return LinearGaussianController(c.K[1], c.k[1], c.chol[1]), found.eta[1]
        found = getattr(dual, search)(*args, 0.2, config, std_floor=floor)
        assert found.converged
        return found.controller, found.eta

    floors = (None, None) if floor is None else (np.full(NU, floor), floor * units.u)
    (one, eta), (other, there) = (
        find(args, f) for args, f in zip((ours, rescaled(units, *ours)), floors, strict=True)
    )
    near_controllers(search, one, units.back.controller(other), CLOSE)
    near("eta", eta, there / units.cost, CLOSE)


def test_where_the_search_begins():
    """Steps from which the marginals overflow do not count, nor those where nothing costs."""
    dynamics, cost, start, previous = problem()
    wild = dual._Problem(replace(dynamics, F=1e60 * dynamics.F), cost, start, previous)
    assert 1e-3 < wild.least < 1e3
    assert 1e200 < wild.most <= 1e250
    last = np.zeros(T)
    last[-1] = 1.0
    late = QuadraticCost(cost.C * last[:, None, None], cost.c * last[:, None], cost.c0)
    end = dual._Problem(dynamics, late, start, previous)
    assert 1e-3 < end.least == end.most < 1e3
    zero = QuadraticCost(0.0 * cost.C, 0.0 * cost.c, cost.c0)
    assert dual._Problem(dynamics, zero, start, previous).least == 1.0


def test_unstable_dynamics():
    """Under the previous controller the cost varies by 1e10 in the end: no place to begin at."""
    dynamics, cost, start, previous = problem()
    F = dynamics.F + np.eye(NX, NX + NU)
    assert dual._Problem(replace(dynamics, F=F), cost, start, previous).most > 1e10
    found = dual.minimise(replace(dynamics, F=F), cost, start, previous, 5.0)
    assert found.converged
    assert len(found.trace) < 20


# --- sampling


@drawn
@pytest.mark.parametrize("covariance", ["scaled", "weighted"])
def test_pi2(units, covariance):
    controller, r = problem()[3], sampled()
    costs = np.abs(r.X).sum(axis=2)
    config = pi2.PI2Config(covariance=covariance)
    one = pi2.update(controller, r.X, r.U, costs, config)
    there = units.rollouts(r)
    args = units.controller(controller), there.X, there.U, units.cost * costs, config
    other = units.back.controller(pi2.update(*args).controller)
    near_controllers("PI2", one.controller, other, CLOSE)


@drawn
def test_pilqr(units):
    ours, rng = problem(), np.random.default_rng(1)
    dynamics, _, start, controller = ours
    X, U = np.empty((N, T, NX)), np.empty((N, T, NU))
    X[:, 0] = rng.multivariate_normal(start.mean, start.cov, size=N)
    for t in range(T):
        U[:, t] = controller.act(X[:, t], X[:, t], t, rng.normal(size=(N, NU)))
        if t + 1 < T:
            z = np.concatenate((X[:, t], U[:, t]), axis=1)
            X[:, t + 1] = z @ dynamics.F[t].T + dynamics.f[t] + 0.05 * rng.normal(size=(N, NX))
    costs = np.abs(X).sum(axis=2) + 0.1 * (U**2).sum(axis=2)
    one = pilqr.update(*ours, X, U, costs, 0.5).controller
    there = rescaled(units, *ours)
    other = pilqr.update(*there, X * units.x, U * units.u, units.cost * costs, 0.5).controller
    near_controllers("PILQR", one, units.back.controller(other), CLOSE)


# --- known models


def swing(x, u, t):
    """Two coupled pendulums."""
    a, b, w = x[..., :1], x[..., 1:2], x[..., 2:] + 0.1 * u
    w = w - 0.1 * np.concatenate((np.sin(a) + a - b, 0.5 * np.sin(b) + b - a), axis=-1)
    return np.concatenate((x[..., :2] + 0.1 * w, w), axis=-1)


@drawn
@pytest.mark.parametrize("limits", [None, ([-0.5, -0.2], [0.5, 0.3])])
@pytest.mark.parametrize("regularise", ["state", "action"])
def test_ilqr(units, limits, regularise):
    """Few iterations, of which none is the last by a tolerance, and all, which end by one."""
    model = NumpyModel(swing, NX, NU)
    C = np.tile(np.diag([1.0, 1.0, 0.1, 0.1, 0.02, 0.05]), (T, 1, 1))
    C[-1, :NX, :NX] *= 30.0
    cost = QuadraticCost(C, np.zeros((T, NX + NU)), np.zeros(T))
    x0, zero = np.array([2.5, -2.0, 0.0, 0.0]), np.zeros((T, NU))
    there = None if limits is None else tuple(np.array(v) * units.u for v in limits)
    for iterations in (4, 100):
        config = ilqr.ILQRConfig(regularise=regularise, initial=0.3, iterations=iterations)
        one = ilqr.minimise(model, cost, x0, zero, limits=limits, config=config)
        other = ilqr.minimise(
            *(Model(model, units), units.quadratic(cost), x0 * units.x, zero),
            limits=there,
            temperature=units.cost,
            config=config,
        )
        assert (one.reason, one.iterations) == (other.reason, other.iterations)
        near("cost", one.cost, other.cost / units.cost, CLOSE)
        near("actions", one.U, other.U / units.u, 1e-7)
        near("gains", one.controller.K, units.back.controller(other.controller).K, 1e-6)
        near("steps", one.step_sizes, other.step_sizes, 0.0)


@drawn
def test_tracking(units):
    model, rng = NumpyModel(swing, NX, NU), np.random.default_rng(3)
    U = 0.3 * rng.normal(size=(T, NU))
    X = np.zeros((T, NX))
    for t in range(T - 1):
        X[t + 1] = swing(X[t], U[t], t)
    Q, R, W = np.diag([1.0, 2.0, 0.1, 0.1]), np.array([[0.1, 0.02], [0.02, 0.3]]), 1e-4 * np.eye(NX)
    one = tracking.track_model(model, X, U, Q, R, W=W)
    xx, uu = np.outer(units.x, units.x), np.outer(units.u, units.u)
    other = tracking.track_model(
        *(Model(model, units), X * units.x, U * units.u),
        *(units.cost * Q / xx, units.cost * R / uu),
        W=W * xx,
        temperature=units.cost,
    )
    near_controllers("tracking", one.controller, units.back.controller(other.controller), CLOSE)
    H, V = np.eye(2, NX), np.diag([1e-2, 1e-3])
    Y = X[None, :, :2] + 0.1 * rng.normal(size=(3, T, 2))
    start, U3 = Gaussian(np.zeros(NX), 0.1 * np.eye(NX)), np.tile(U, (3, 1, 1))
    s = units.x[:2]
    sensor = tracking.LinearSensor.constant(T, H, V)
    there = tracking.LinearSensor.constant(T, H * s[:, None] / units.x, V * np.outer(s, s))
    filtered = tracking.kalman_filter(one.dynamics, sensor, Y, U3, start)
    args = units.dynamics(one.dynamics), there, Y * s, U3 * units.u, units.gaussian(start)
    near("filtered", filtered.mean, tracking.kalman_filter(*args).mean / units.x, CLOSE)


def test_weights_that_are_singular_in_any_unit():
    X, U = np.zeros((T, NX)), np.zeros((T, NU))
    fine = np.diag([1e-12, 1e12])  # newtons and meganewtons
    tracking.reference_cost(X, U, np.eye(NX), fine)
    for R in (np.ones((2, 2)), np.diag([1.0, 0.0])):
        with pytest.raises(NotPositiveDefiniteError, match="R"):
            tracking.reference_cost(X, U, np.eye(NX), R * np.outer([1e-6, 1e6], [1e-6, 1e6]))
