"""Gaussian processes against scikit-learn, finite differences, and their own statistics."""

import numpy as np
import pytest

from gps.dynamics import GaussianProcess, GaussianProcessConfig, gaussian_process
from gps.dynamics.gaussian_process import Hyperparameters
from gps.errors import FitError, NonFiniteError, ShapeError

RNG = np.random.default_rng(4)
INPUT_UNITS = np.array([1.0, 1e-6, 1e5])


def function(Z):
    z = Z / INPUT_UNITS
    return np.column_stack([np.sin(2 * z[:, 0]) + 0.3 * z[:, 1], 1e4 * z[:, 1] * z[:, 2]])


def data(n, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    Z = INPUT_UNITS * (1.0 + rng.standard_normal((n, 3)))
    Y = function(Z)
    return Z, Y + noise * Y.std(axis=0) * rng.standard_normal(Y.shape)


@pytest.fixture(scope="module")
def fitted():
    return gaussian_process.fit(*data(120, noise=0.05))


def test_posterior_and_likelihood_are_those_of_scikit_learn():
    gp = pytest.importorskip("sklearn.gaussian_process")
    kernels = gp.kernels
    Z, Y = (np.array(v) for v in data(40, noise=0.1))
    length, s, v = np.array([1.3, 0.7, 2.1]), 1.4, 0.2
    made = GaussianProcess(
        Z, Y, Hyperparameters(np.tile(length, (2, 1)), np.full(2, s), np.full(2, v))
    )
    z, y = (Z - Z.mean(0)) / Z.std(0), (Y - Y.mean(0)) / Y.std(0)
    kernel = kernels.ConstantKernel(s**2) * kernels.RBF(length)
    theirs = gp.GaussianProcessRegressor(kernel, alpha=v**2 + 1e-8 * s**2, optimizer=None).fit(z, y)
    new = INPUT_UNITS * RNG.standard_normal((7, 3))
    mean, std = theirs.predict((new - Z.mean(0)) / Z.std(0), return_std=True)
    found = made.predict(new)
    np.testing.assert_allclose(found.mean, mean * Y.std(0) + Y.mean(0), rtol=1e-8)
    np.testing.assert_allclose(found.variance, (std * Y.std(0)) ** 2, rtol=1e-7)
    np.testing.assert_allclose(made.mean(new), found.mean, rtol=1e-12)
    np.testing.assert_allclose(made.variance(new), found.variance, rtol=1e-8)
    theta = np.log(np.append(length, [s, v]))
    prior = 0.5 * (gaussian_process._standing(theta) ** 2).sum()
    loss = gaussian_process._loss(theta, z, y[:, 0])[0] - prior
    one = gp.GaussianProcessRegressor(kernel, alpha=v**2 + 1e-8 * s**2, optimizer=None)
    one.fit(z, y[:, 0])
    assert loss == pytest.approx(-one.log_marginal_likelihood(), rel=1e-9)


def test_gradients_are_those_of_differences(fitted):
    Z, Y = data(30, noise=0.1)
    z, y = (Z - Z.mean(0)) / Z.std(0), ((Y - Y.mean(0)) / Y.std(0))[:, 1]
    theta = 0.3 * RNG.standard_normal(5)
    steps = 1e-6 * np.eye(5)
    wanted = [
        (gaussian_process._loss(theta + h, z, y)[0] - gaussian_process._loss(theta - h, z, y)[0])
        / 2e-6
        for h in steps
    ]
    np.testing.assert_allclose(gaussian_process._loss(theta, z, y)[1], wanted, rtol=1e-5, atol=1e-5)
    at = INPUT_UNITS * RNG.standard_normal((4, 3))
    found = fitted.predict(at)
    for d, h in enumerate(1e-4 * INPUT_UNITS):
        up, down = at.copy(), at.copy()
        up[:, d] += h
        down[:, d] -= h
        for slope, value in (
            (found.mean_slope, fitted.mean),
            (found.variance_slope, fitted.variance),
        ):
            wanted = (value(up) - value(down)) / (2 * h)
            scale = np.abs(wanted).max() + 1e-12
            np.testing.assert_allclose(slope[:, :, d] / scale, wanted / scale, atol=2e-4)


def test_errors_are_as_large_as_it_says():
    """On held-out points, within the data and far from them, with noise and without."""
    for noise in (0.0, 0.1):
        found = gaussian_process.fit(*data(150, noise))
        Z, Y = data(400, noise, seed=1)
        p = found.predict(Z)
        std = np.sqrt(p.variance + found.noise**2)
        off = np.abs(p.mean - Y) / std
        assert ((off < 2).mean(axis=0) > 0.9).all(), off
        assert ((off**2).mean(axis=0) < 4).all()
        if noise:
            assert ((off**2).mean(axis=0) > 0.4).all()
            assert (np.abs(found.noise / (noise * function(Z).std(axis=0)) - 1) < 0.4).all()


def test_an_input_without_influence_is_found():
    length = gaussian_process.fit(*data(120, noise=0.01)).parameters.length
    assert length[0, 2] > 30 * length[0, 0]
    assert length[1, 0] > 30 * length[1, 1]


def test_units_do_not_matter():
    Z, Y = data(60, noise=0.02)
    at = INPUT_UNITS * RNG.standard_normal((5, 3))
    here = gaussian_process.fit(Z, Y).predict(at)
    scale, unit = np.array([1e-6, 1e3, 2.0**20]), np.array([1e6, 1e-6])
    there = gaussian_process.fit(Z * scale + 3.0 * scale, Y * unit - unit).predict(
        at * scale + 3.0 * scale
    )
    np.testing.assert_allclose(there.mean, here.mean * unit - unit, rtol=1e-4)
    np.testing.assert_allclose(there.variance, here.variance * unit**2, rtol=1e-3)


def test_a_search_goes_on_from_earlier_hyperparameters():
    Z, Y = data(80, noise=0.02)
    config = GaussianProcessConfig(iterations=3)
    first = gaussian_process.fit(Z, Y, config)
    later, wanted = gaussian_process.fit(Z, Y, config, first.parameters), gaussian_process.fit(Z, Y)

    def loss(p):
        z, y = (Z - Z.mean(0)) / Z.std(0), (Y - Y.mean(0)) / Y.std(0)
        theta = np.log(
            np.column_stack([p.parameters.length, p.parameters.signal, p.parameters.noise])
        )
        return sum(gaussian_process._loss(theta[e], z, y[:, e])[0] for e in range(2))

    assert loss(wanted) < loss(later) < loss(first)


def test_constant_values_and_repeated_points():
    """What never changes has no influence, and is predicted; a point may be seen twice."""
    Z, Y = data(20)
    Z, Y = np.concatenate([Z, Z[:5]]), np.concatenate([Y, Y[:5]])
    Z[:, 1], Y[:, 1] = 0.1, 7.0
    found = gaussian_process.fit(Z, Y)
    p = found.predict(np.array([[1.0, 0.1, 1e5]]))
    assert np.isfinite(p.mean).all()
    assert p.mean[0, 1] == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("Z", "Y", "error", "match"),
    [
        (np.zeros((1, 2)), np.zeros((1, 1)), FitError, "2 points or more, got 1"),
        (np.zeros((4, 2)), np.zeros((3, 1)), ShapeError, r"\(n, D\) and \(n, E\), got \(4, 2\)"),
        (np.full((4, 2), np.nan), np.zeros((4, 1)), NonFiniteError, "inputs of the Gaussian"),
        (np.zeros((4, 2)), np.full((4, 1), np.inf), NonFiniteError, "outputs of the Gaussian"),
    ],
)
def test_bad_data_are_named(Z, Y, error, match):
    with pytest.raises(error, match=match):
        gaussian_process.fit(Z, Y)


def test_bad_shapes_are_named(fitted):
    with pytest.raises(ShapeError, match=r"inputs must be \(B, 3\), got \(2, 4\)"):
        fitted.mean(np.zeros((2, 4)))
    with pytest.raises(ShapeError, match="start must be of 2 outputs and 3 inputs"):
        gaussian_process.fit(
            *data(5), start=Hyperparameters(np.ones((1, 3)), np.ones(1), np.ones(1))
        )
    with pytest.raises(ShapeError, match="hyperparameters are of 2 outputs and 3 inputs"):
        GaussianProcess(np.zeros((4, 2)), np.zeros((4, 2)), fitted.parameters)
