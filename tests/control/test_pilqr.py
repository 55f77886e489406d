"""PILQR against recorded outputs, against its parts, and on a cost with a hidden region."""

import numpy as np
import pytest
from control_problems import FIXTURES, make_problem, transposed
from hypothesis import given, settings
from hypothesis import strategies as st

from gps.control import dual, lqr, pi2, pilqr
from gps.control.pi2 import PI2Config
from gps.control.pilqr import PILQRConfig
from gps.errors import ConfigError, GPSError, NonFiniteError, ShapeError
from gps.types import Gaussian, LinearDynamics, LinearGaussianController, QuadraticCost


@pytest.fixture(scope="module")
def recorded():
    """The recorded problem as records, and the raw arrays."""
    d = dict(np.load(FIXTURES / "pilqr_update.npz"))
    model = (
        LinearDynamics(d["Fm"][:-1], d["fv"][:-1], d["dyn_covar"][:-1]),
        QuadraticCost(d["Cm"], d["cv"], d["cc"]),
        Gaussian(d["x0mu"], d["x0sigma"]),
        LinearGaussianController(d["prev_K"], d["prev_k"], transposed(d["prev_chol_pol_covar"])),
    )
    return d, model


def samples(dynamics, cost, start, controller, rng, N=20, hidden=0.0):
    """Samples of a linear agent with the cost of its model plus `hidden` where the last state's
    first entry is below 0; without process noise."""
    T, nx = controller.T, controller.nx
    x = start.mean + rng.normal(size=(N, nx)) @ np.linalg.cholesky(start.cov + 1e-12 * np.eye(nx)).T
    X, U = np.empty((N, T, nx)), np.empty((N, T, controller.nu))
    noise = rng.normal(size=U.shape)
    for t in range(T):
        X[:, t] = x
        U[:, t] = controller.act(x, x, t, noise[:, t])
        if t < T - 1:
            x = np.concatenate([x, U[:, t]], axis=1) @ dynamics.F[t].T + dynamics.f[t]
    Z = np.concatenate([X, U], axis=2)
    costs = 0.5 * np.einsum("nti,tij,ntj->nt", Z, cost.C, Z) + (Z * cost.c).sum(2) + cost.c0
    costs[:, -1] += hidden * (X[:, -1, 0] < 0)
    return X, U, noise, costs


# --- the recorded outputs


def test_the_replay_gives_the_recorded_predictions(recorded):
    d, (dynamics, cost, _, previous) = recorded
    x0 = np.tile(d["x0mu"], (len(d["X"]), 1))
    predicted = pilqr.replay(dynamics, cost, previous, x0, d["noise"])
    np.testing.assert_allclose(predicted, d["approx_cost"], rtol=1e-10, atol=1e-12)


def test_the_model_free_half_gives_the_recorded_controller(recorded, monkeypatch):
    """From the recorded LQR controller, whose own search the reference never ends."""
    d, model = recorded
    lq = LinearGaussianController(d["lqr_K"], d["lqr_k"], transposed(d["lqr_chol_pol_covar"]))
    honest = dual.minimise_per_step

    def recorded_search(*args, std_floor=None):
        return dual.PerStepResult(**{**vars(honest(*args)), "controller": lq})

    monkeypatch.setattr(dual, "minimise_per_step", recorded_search)
    kl_max = d["base_kl_step"] * d["step_mult"]
    result = pilqr.update(*model, d["X"], d["U"], d["cs"], kl_max)
    np.testing.assert_array_equal(result.controller.K, d["new_K"])
    np.testing.assert_allclose(result.controller.k, d["new_k"], rtol=1e-4, atol=1e-4)
    scale = np.abs(d["new_pol_covar"]).max()
    np.testing.assert_allclose(result.controller.Sigma, d["new_pol_covar"], atol=1e-5 * scale)
    np.testing.assert_allclose(result.explained.residual, d["cs"] - d["approx_cost"], atol=1e-9)
    assert np.abs(lq.k - d["new_k"]).max() > 1  # the second half has something to do


def test_the_step_rule_gives_the_recorded_multipliers():
    d = np.load(FIXTURES / "step_rule_pilqr.npz")
    residual = d["cs"] - d["c_approx"]
    share = pilqr._share(d["cs"], residual)
    low, high = d["min_step_mult"], d["max_step_mult"]
    config = PILQRConfig(decrease=float(d["dec"]), increase=float(d["inc"]))
    new = pilqr.adjust_steps(d["step_mult_in"], share, low, high, config)
    np.testing.assert_array_equal(new, d["step_mult_out"])
    assert len(set(new / d["step_mult_in"])) > 1  # not one answer for all steps


# --- its parts


def test_a_model_that_explains_all_leaves_no_residual(rng):
    """Then the weights are equal: PI2 only moves the mean by the samples' mean noise."""
    dynamics, cost, start, previous = make_problem(rng)
    X, U, noise, costs = samples(dynamics, cost, start, previous, rng)
    result = pilqr.update(dynamics, cost, start, previous, X, U, costs, 0.3)
    np.testing.assert_allclose(result.explained.residual, 0, atol=1e-8 * np.abs(costs).max())
    assert result.explained.share.max() < 1e-8
    expected = result.lqr.controller.k + np.einsum(
        "tij,tj->ti", result.lqr.controller.chol, noise.mean(axis=0)
    )
    np.testing.assert_allclose(result.controller.k, expected, atol=1e-6)
    np.testing.assert_array_equal(result.controller.K, result.lqr.controller.K)


def test_a_model_that_explodes_does_not_end_the_exploration(rng):
    """Its residual is no reason to give one sample all the weight, and so no variance is left."""
    dynamics, cost, start, previous = make_problem(rng)
    X, U, _, costs = samples(dynamics, cost, start, previous, rng)
    wild = LinearDynamics(4.0 * dynamics.F, dynamics.f, dynamics.W)
    result = pilqr.update(wild, cost, start, previous, X, U, costs, 20.0)
    wrong = result.explained.share > 10.0
    assert wrong.any()
    assert result.explained.share.max() > 1e4
    assert result.pi2.kl[wrong].max() < 1.01 * PI2Config().kl_max
    size = [np.trace(c.Sigma, axis1=1, axis2=2) for c in (result.controller, result.lqr.controller)]
    assert (size[0] / size[1])[wrong].min() > 0.1


def test_it_is_its_two_halves_put_together(rng):
    dynamics, cost, start, previous = make_problem(rng)
    X, U, noise, costs = samples(dynamics, cost, start, previous, rng, hidden=20.0)
    config = PILQRConfig(pi2=PI2Config(kl_max=0.7))
    result = pilqr.update(dynamics, cost, start, previous, X, U, costs, 0.3, config)
    half = dual.minimise_per_step(dynamics, cost, start, previous, 0.3).controller
    np.testing.assert_array_equal(result.lqr.controller.k, half.k)
    hot = pi2.update(half, X, U, costs, PI2Config(kl_max=0.7)).temperature
    np.testing.assert_allclose(result.pi2.temperature, hot, rtol=1e-6)
    moved = half.mean_action(X) + np.einsum("tij,ntj->nti", half.chol, noise)
    full = pi2.update(half, X, moved, result.explained.residual, config.pi2, temperature=hot)
    np.testing.assert_allclose(result.controller.k, full.controller.k, rtol=1e-8, atol=1e-8)


def test_it_finds_what_the_quadratic_cost_does_not_show(rng):
    """A region of lower cost that the model knows nothing of: LQR alone stays out of it."""
    T, dt = 15, 0.2
    F = np.tile(np.array([[1.0, dt, 0.5 * dt**2], [0.0, 1.0, dt]]), (T - 1, 1, 1))
    dynamics = LinearDynamics(F, np.zeros((T - 1, 2)), np.zeros((T - 1, 2, 2)))
    C = np.tile(np.diag([0.0, 0.0, 0.02]), (T, 1, 1))
    cost = QuadraticCost(C, np.zeros((T, 3)), np.zeros(T))
    start = Gaussian(np.array([1.0, 0.0]), 1e-6 * np.eye(2))
    open_loop = np.zeros((T, 1, 2)), np.zeros((T, 1)), np.ones((T, 1, 1))

    def final(controller):
        return lqr.forward(dynamics, controller, start).mean[-1, 0]

    both = one = LinearGaussianController(*open_loop)
    for i in range(8):
        draw = np.random.default_rng(i)
        for name, controller in (("both", both), ("one", one)):
            X, U, _, costs = samples(dynamics, cost, start, controller, draw, N=40, hidden=-30.0)
            args = (dynamics, cost, start, controller, X, U, costs, 0.1)
            if name == "both":
                both = pilqr.update(*args).controller
            else:
                one = pilqr.update(*args).lqr.controller
    assert final(one) > 0.9
    assert final(both) < 0.1


def test_replay_against_a_loop(rng):
    dynamics, cost, start, controller = make_problem(rng)
    X, _, noise, costs = samples(dynamics, cost, start, controller, rng, N=3)
    predicted = pilqr.replay(dynamics, cost, controller, X[:, 0], noise)
    np.testing.assert_allclose(predicted, costs, rtol=1e-10, atol=1e-10)


# --- the step rule, and bad input


def test_adjust_steps():
    share = np.array([0.5, 0.1, 0.01, np.nan, np.inf, 0.2, 0.05])
    new = pilqr.adjust_steps(1.0, share, 0.1, 10.0)
    np.testing.assert_array_equal(new, [0.5, 1, 2, 0.5, 0.5, 1, 1])
    np.testing.assert_array_equal(pilqr.adjust_steps(1.0, share, 0.8, 1.5)[:3], [0.8, 1, 1.5])
    with pytest.raises(ConfigError, match="0 < low <= high"):
        pilqr.adjust_steps(1.0, share, 2.0, 1.0)
    with pytest.raises(ShapeError, match="share"):
        pilqr.adjust_steps(1.0, share[None], 0.1, 1.0)


def test_bad_input_is_named(rng):
    problem = make_problem(rng)
    X, U, _, costs = samples(*problem, rng)
    with pytest.raises(ShapeError, match=r"X must have shape \(20, 12, 4\)"):
        pilqr.update(*problem, X[:, :, :3], U, costs, 0.3)
    with pytest.raises(ShapeError, match="at least 2 samples, got 1"):
        pilqr.update(*problem, X[:1], U[:1], costs[:1], 0.3)
    bad = costs.copy()
    bad[3, 5] = np.nan
    with pytest.raises(NonFiniteError, match="costs is not finite in sample 3 at t=5"):
        pilqr.update(*problem, X, U, bad, 0.3)
    with pytest.raises(ConfigError, match="kl_max"):
        pilqr.update(*problem, X, U, costs, -1.0)
    with pytest.raises(ConfigError, match="increase < decrease"):
        PILQRConfig(increase=0.5)
    dynamics, cost, _, previous = problem
    wild = LinearDynamics(1e200 * dynamics.F, dynamics.f, dynamics.W)
    with pytest.raises(NonFiniteError, match=r"sample \d+ overflows at t="):
        pilqr.replay(wild, cost, previous, X[:, 0], np.ones_like(U))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1e-150, 1e-12, 1e-3, 1.0, 1e6, 1e100, 1e150]),
    what=st.sampled_from(["costs", "cost", "W", "X", "kl", "everything alike"]),
    value=st.sampled_from([1.0, 0.0, -1.0, np.inf, np.nan]),
)
def test_extreme_numbers_give_a_controller_or_an_error(seed, scale, what, value):
    rng = np.random.default_rng(seed)
    dynamics, cost, start, previous = make_problem(rng, T=5, nx=3, nu=2)
    X, U, _, costs = samples(dynamics, cost, start, previous, rng, N=4)
    kl_max, factor = 0.3, scale * value
    with np.errstate(all="ignore"):
        if what == "costs":
            costs = factor * costs
        elif what == "cost":
            cost = QuadraticCost(factor * cost.C, factor * cost.c, factor * cost.c0)
        elif what == "W":
            dynamics = LinearDynamics(dynamics.F, dynamics.f, factor * dynamics.W)
        elif what == "X":
            X = factor * X
        elif what == "kl":
            kl_max = factor
        else:
            costs, X, U = np.zeros_like(costs), np.zeros_like(X), np.zeros_like(U)
    try:
        result = pilqr.update(dynamics, cost, start, previous, X, U, costs, kl_max)
    except GPSError:
        return
    for array in vars(result.controller).values():
        assert np.isfinite(array).all()
    assert (result.controller.chol.diagonal(axis1=1, axis2=2) > 0).all()
    assert (result.lqr.kl <= 1.01 * result.lqr.kl_max).all()
