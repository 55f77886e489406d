"""PI2 against recorded outputs, against its own definition, and on costs that have no gradient."""

import numpy as np
import pytest
from control_problems import FIXTURES
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from gps.control import pi2
from gps.control.pi2 import PI2Config
from gps.errors import ConfigError, GPSError, NonFiniteError, NotPositiveDefiniteError, ShapeError
from gps.types import LinearGaussianController


def open_loop(mean, cov, nx=1):
    """A controller without gains."""
    T, nu = mean.shape
    return LinearGaussianController(np.zeros((T, nu, nx)), mean, np.linalg.cholesky(cov))


def problem(seed=0, N=20, T=30, nx=3, nu=2, scale=1.0):
    """A controller with gains, samples of it, and costs."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(T, nu, nu)) + 2 * np.eye(nu)
    controller = LinearGaussianController(
        rng.normal(size=(T, nu, nx)),
        rng.normal(size=(T, nu)),
        np.linalg.cholesky(root @ root.transpose(0, 2, 1)),
    )
    X = rng.normal(size=(N, T, nx))
    noise = np.einsum("tuv,ntv->ntu", controller.chol, rng.normal(size=(N, T, nu)))
    U = controller.mean_action(X) + noise
    return controller, X, U, scale * rng.gamma(1.0, size=(N, T))


# --- the recorded outputs


@pytest.fixture(scope="module")
def recorded():
    return np.load(FIXTURES / "pi2.npz")


def run(d, call, **named):
    samples = d[f"{call}_samples"]
    controller = open_loop(d[f"{call}_mean_old"], d[f"{call}_cov_old"])
    X = np.zeros((*samples.shape[:2], 1))
    return pi2.update(controller, X, samples, d[f"{call}_costs"], **named)


def test_the_recorded_update(recorded):
    """Its temperatures come from a search that ends at 1e-6 of the KL."""
    d = recorded
    config = PI2Config(kl_max=float(d["kl_threshold"]), damping=float(d["covariance_damping"]))
    found = run(d, "call0", config=config)
    np.testing.assert_allclose(found.temperature, d["call0_etas"], rtol=2e-5)
    np.testing.assert_allclose(found.controller.k, d["call0_mean_new"], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(found.controller.Sigma, d["call0_cov_new"], rtol=2e-5, atol=1e-9)
    np.testing.assert_allclose(found.kl, 1.0, atol=1e-9)


def test_the_recorded_update_at_its_own_temperatures(recorded):
    d = recorded
    found = run(d, "call0", temperature=d["call0_etas"])
    np.testing.assert_allclose(found.controller.k, d["call0_mean_new"], atol=1e-12)
    np.testing.assert_allclose(found.controller.Sigma, d["call0_cov_new"], rtol=1e-9, atol=1e-12)
    other = run(d, "call1", temperature=d["call1_fixed_eta"])
    np.testing.assert_allclose(other.controller.k, d["call1_mean_new"], atol=1e-12)
    np.testing.assert_allclose(other.controller.Sigma, d["call1_cov_new"], rtol=1e-9, atol=1e-12)
    weighted = run(
        d, "call0", temperature=d["nodamp_etas"], config=PI2Config(covariance="weighted")
    )
    scale = np.abs(d["nodamp_cov_new"]).max()
    np.testing.assert_allclose(
        weighted.controller.Sigma, d["nodamp_cov_new"], rtol=1e-6, atol=1e-7 * scale
    )


# --- the definition


def test_the_temperature_minimises_the_dual():
    """eta kl_max + eta log mean exp(-(S - min S) / eta) - min S, by a general minimiser."""
    controller, X, U, costs = problem()
    N = len(costs)
    for kl_max in (0.1, 1.0, 2.5):
        config = PI2Config(kl_max=kl_max, temperature_min=1e-9)
        found = pi2.update(controller, X, U, costs, config)
        for t in (0, 7, 29):
            S = costs[:, t:].sum(axis=1)
            s = S - S.min()

            def dual(x, s=s, kl_max=kl_max):
                eta = np.exp(x)
                return eta * kl_max + eta * np.log(np.mean(np.exp(-s / eta)))

            best = minimize_scalar(dual, bounds=(-9, 9), method="bounded", options={"xatol": 1e-10})
            assert found.temperature[t] == pytest.approx(np.exp(best.x), rel=1e-4)
            p = np.exp(-s / found.temperature[t])
            np.testing.assert_allclose(found.weights[t], p / p.sum(), rtol=1e-12)
        kl = (found.weights * np.log(N * found.weights + 1e-300)).sum(axis=1)
        np.testing.assert_allclose(found.kl, kl, atol=1e-12)
        np.testing.assert_allclose(found.kl, kl_max, rtol=1e-9)


def test_the_mean_and_the_covariance():
    controller, X, U, costs = problem(1)
    found = pi2.update(controller, X, U, costs, PI2Config(damping=3.0))
    weighted = pi2.update(controller, X, U, costs, PI2Config(covariance="weighted", floor=0.1))
    np.testing.assert_array_equal(found.controller.K, controller.K)
    for t in (0, 12, 29):
        p = found.weights[t]
        rest = U[:, t] - X[:, t] @ controller.K[t].T
        k = p @ rest
        C = (p[:, None] * (rest - k)).T @ (rest - k)
        np.testing.assert_allclose(found.controller.k[t], k, rtol=1e-12)
        old = controller.Sigma[t]
        scale = (np.trace(np.linalg.inv(old) @ C) / 2) ** (1 / 3)
        np.testing.assert_allclose(found.controller.Sigma[t], scale * old, rtol=1e-10)
        np.testing.assert_allclose(weighted.controller.Sigma[t], C + 0.1 * old, rtol=1e-10)


def test_costs_that_are_all_alike_change_no_mean_much():
    """Equal costs: equal weights, although the temperature is next to nothing."""
    controller, X, U, _ = problem(2)
    found = pi2.update(controller, X, U, np.ones((20, 30)))
    np.testing.assert_allclose(found.weights, 1 / 20)
    assert (found.temperature > 0).all()
    np.testing.assert_allclose(found.kl, 0.0, atol=1e-12)


def test_a_bound_beyond_the_samples_takes_the_best_one():
    controller, X, U, costs = problem(3)
    found = pi2.update(controller, X, U, costs, PI2Config(kl_max=10.0))
    togo = np.cumsum(costs[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(found.temperature, 1e-3 * np.ptp(togo, axis=0))
    best = costs.sum(axis=1).argmin()
    assert found.weights[0, best] == pytest.approx(1.0)
    np.testing.assert_allclose(
        found.controller.k[0], U[best, 0] - controller.K[0] @ X[best, 0], rtol=1e-9
    )


def test_a_cost_with_a_step():
    """A region that a gradient does not show: the mean goes there."""
    rng = np.random.default_rng(0)
    controller = open_loop(np.zeros((1, 2)), np.eye(2)[None])
    target, wide = np.array([2.0, 1.0]), 1.0
    for _ in range(15):
        U = controller.k + rng.normal(size=(60, 1, 2)) @ controller.chol[0].T
        inside = np.linalg.norm(U[:, 0] - target, axis=1) < wide
        costs = np.where(inside, 0.0, 1.0)[:, None]
        if inside.any():
            controller = pi2.update(controller, np.zeros((60, 1, 1)), U, costs).controller
    assert np.linalg.norm(controller.k[0] - target) < wide
    assert np.trace(controller.Sigma[0]) < 2.0


# --- what goes wrong


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"X": np.zeros((20, 30, 4))}, ShapeError, r"X must have shape \(20, 30, 3\)"),
        ({"U": np.zeros((20, 29, 2))}, ShapeError, r"U must have shape \(20, 30, 2\)"),
        ({"costs": np.zeros((20, 29))}, ShapeError, r"costs must have shape \(20, 30\)"),
        ({"costs": 1.0}, ShapeError, "X must have shape"),
        ({"temperature": 0.0}, ConfigError, "temperature must be finite and above 0"),
        ({"temperature": np.ones(4)}, ShapeError, r"temperature must be a number or have shape"),
    ],
)
def test_wrong_inputs(change, error, message):
    controller, X, U, costs = problem()
    with pytest.raises(error, match=message):
        pi2.update(controller, **({"X": X, "U": U, "costs": costs} | change))


@pytest.mark.parametrize("name", ["X", "U", "costs"])
def test_numbers_that_are_none(name):
    controller, X, U, costs = problem()
    given = {"X": X, "U": U, "costs": costs}
    given[name] = given[name].copy()
    given[name][4, 7] = np.nan
    with pytest.raises(NonFiniteError, match=f"{name} is not finite in sample 4 at t=7"):
        pi2.update(controller, **given)


def test_too_few_samples():
    controller, X, U, costs = problem()
    with pytest.raises(ShapeError, match="at least 2 samples, got 1"):
        pi2.update(controller, X[:1], U[:1], costs[:1])
    same = np.repeat(U[:1], 20, axis=0)
    still = np.repeat(X[:1], 20, axis=0)
    found = pi2.update(controller, still, same, costs)  # no spread at all: the floor
    np.testing.assert_allclose(found.controller.Sigma, 1e-8 * controller.Sigma, rtol=1e-9)


@pytest.mark.parametrize(
    "change",
    [
        {"kl_max": 0.0}, {"kl_max": np.inf}, {"temperature_min": 0.0}, {"damping": 0.5},
        {"floor": 0.0}, {"covariance": "both"},
    ],
)  # fmt: skip
def test_wrong_configurations(change):
    with pytest.raises(ConfigError, match=r"PI2Config\." + next(iter(change))):
        PI2Config(**change)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    N=st.integers(2, 8),
    nu=st.integers(1, 3),
    scale=st.sampled_from([0.0, 1e-300, 1e-12, 1.0, 1e12, 1e150, 1e300]),
    kl_max=st.sampled_from([1e-9, 0.1, 1.0, 50.0]),
    kind=st.sampled_from(["scaled", "weighted"]),
)
def test_never_garbage(seed, N, nu, scale, kl_max, kind):
    controller, X, U, costs = problem(seed, N=N, T=4, nu=nu, scale=scale)
    config = PI2Config(kl_max=kl_max, covariance=kind)
    try:
        found = pi2.update(controller, X, U, costs, config)
    except GPSError:
        return
    np.testing.assert_allclose(found.weights.sum(axis=1), 1.0, rtol=1e-9)
    assert (found.kl <= kl_max * (1 + 1e-6) + 1e-9).all() or (
        found.temperature <= config.temperature_min
    ).any()
    assert np.isfinite(found.controller.k).all()
    assert (np.linalg.eigvalsh(found.controller.Sigma) > 0).all()
    # the new mean lies among the samples
    rest = U - np.einsum("tux,ntx->ntu", controller.K, X)
    assert (found.controller.k <= rest.max(axis=0) + 1e-9).all()
    assert (found.controller.k >= rest.min(axis=0) - 1e-9).all()


def test_a_covariance_without_a_factor():
    controller, X, U, costs = problem(scale=1e9)
    U = np.repeat(U[:, :, :1], 2, axis=2) * 1e12  # the two actions always alike
    config = PI2Config(covariance="weighted", floor=1e-300)
    with pytest.raises(NotPositiveDefiniteError, match="more samples than actions"):
        pi2.update(controller, np.zeros_like(X), U, costs, config)


def test_a_weighted_covariance_needs_more_samples_than_actions():
    controller, X, U, costs = problem(N=2, nu=2)
    with pytest.raises(ShapeError, match="more samples than the 2 actions, got 2"):
        pi2.update(controller, X, U, costs, PI2Config(covariance="weighted"))
