"""The global model as the prior of local linear-Gaussian dynamics."""

import numpy as np
import pytest

from gps.distributions.niw import NIW, StepwiseNIW
from gps.distributions.regression import fit_linear_gaussian
from gps.dynamics import (
    DynamicsConfig,
    GlobalDynamics,
    GlobalPriorConfig,
    Transitions,
    fit,
    fit_global,
    global_model,
)
from gps.errors import FitError, ShapeError
from gps.types import Layout, Rollouts, StateStructure

LAYOUT = Layout((("position", 2), ("velocity", 1)))
CONFIG = DynamicsConfig(prior=GlobalPriorConfig())


def after(x, u):
    """Bent enough that slopes differ from place to place."""
    v = x[..., 2] + 0.1 * np.sin(2 * x[..., 0]) + 0.3 * u[..., 0]
    return np.stack(
        [x[..., 0] + 0.1 * v, 0.9 * x[..., 1] + 0.2 * x[..., 0] * u[..., 0], v], axis=-1
    )


def rollouts(N, T=12, seed=0, spread=0.3, noise=0.0):
    rng = np.random.default_rng(seed)
    X, U = np.empty((N, T, 3)), spread * rng.standard_normal((N, T, 1))
    X[:, 0] = (1.0, 0.5, 0.0) + spread * rng.standard_normal((N, 3))
    for t in range(T - 1):
        X[:, t + 1] = after(X[:, t], U[:, t]) + noise * rng.standard_normal((N, 3))
    return Rollouts(X=X, U=U, obs=X, noise=np.zeros_like(U), layout=LAYOUT)


def model_of(*some):
    first, *others = map(Transitions.of, some)
    unfitted = GlobalDynamics.unfitted(StateStructure.unknown(3), 1, 0.1)
    return fit_global(unfitted, first.joined(*others))


@pytest.fixture(scope="module")
def model():
    return model_of(rollouts(8, seed=1))


def true_slopes(r):
    """At the means of the samples, by central differences."""
    x, u = r.X.mean(axis=0)[:-1], r.U.mean(axis=0)[:-1]
    z = np.concatenate([x, u], axis=1)
    out = np.empty((len(z), 3, 4))
    for i, h in enumerate(1e-6 * np.eye(4)):
        up, down = z + h, z - h
        out[:, :, i] = (after(up[:, :3], up[:, 3:]) - after(down[:, :3], down[:, 3:])) / 2e-6
    return out


def test_the_prior_is_the_model_as_a_joint_gaussian(model):
    r = rollouts(5)
    S = np.array([0.1, 0.2, 0.3, 0.4])
    prior = global_model.step_priors(model, r.X, r.U, S, 2.0)
    z = np.concatenate([r.X.mean(axis=0), r.U.mean(axis=0)], axis=1)[:-1]
    F, variance, _ = model.linearised(z[:, :3], z[:, 3:])
    assert (prior.kappa0, prior.nu0) == (2.0, 2.0)
    cov = prior.Psi / 2.0
    np.testing.assert_allclose(cov[:, 4:, :4] @ np.linalg.inv(cov[:, :4, :4]), F, atol=1e-12)
    rest = cov[:, 4:, 4:] - F @ cov[:, :4, 4:]
    wanted = [np.diag(v + model.process.noise**2) for v in variance]
    np.testing.assert_allclose(rest, wanted, atol=1e-12)
    np.testing.assert_allclose(
        prior.mu0, np.concatenate([z, model.step(z[:, :3], z[:, 3:])], axis=1)
    )
    own = np.concatenate([r.X[:, :-1], r.U[:, :-1]], axis=2).var(axis=0).mean(axis=0)
    np.testing.assert_allclose(cov[0, :4, :4].diagonal(), np.maximum(own, S))


def test_one_sample_takes_the_models_slopes_and_passes_through_it(model):
    r = rollouts(1)
    found = fit(r, model, CONFIG).dynamics
    F, _, _ = model.linearised(r.X[0, :-1], r.U[0, :-1])
    np.testing.assert_allclose(found.F, F, atol=1e-10)
    z = np.concatenate([r.X[0, :-1], r.U[0, :-1]], axis=1)
    there = np.einsum("txz,tz->tx", found.F, z) + found.f
    np.testing.assert_allclose(there, r.X[0, 1:], atol=1e-12)
    assert np.linalg.eigvalsh(found.W).min() > 0
    assert fit(r, model, CONFIG).error_ratio is None


def test_few_samples_are_fitted_better_than_without(model):
    """Slopes, against the true ones: those of the plain fit of three samples are far off."""
    r = rollouts(3, spread=0.1, noise=1e-3)
    wanted = true_slopes(r)

    def off(prior, config):
        return np.abs(fit(r, prior, config).dynamics.F - wanted).mean()

    plain = off(None, DynamicsConfig(prior=None))
    assert off(model, CONFIG) < 0.02 < 0.2 * plain


def test_many_samples_outvote_a_wrong_model():
    t = Transitions.of(rollouts(8, seed=1))
    unfitted = GlobalDynamics.unfitted(StateStructure.unknown(3), 1, 0.1)
    wrong = fit_global(unfitted, Transitions(t.X, t.U, 0.5 * t.X))  # that everything calms down
    off = []
    for N in (1, 20, 400):
        r = rollouts(N, spread=0.2)
        off.append(np.abs(fit(r, wrong, CONFIG).dynamics.F - true_slopes(r)).mean())
    assert off[0] > 4 * off[1] > 8 * off[2], off


def test_units_do_not_matter():
    scale, unit = np.array([1e3, 1e3, 1e-6]), 1e5
    one, other = rollouts(2), rollouts(6, seed=1)

    def scaled(r):
        X, U = r.X * scale, r.U * unit
        return Rollouts(X=X, U=U, obs=X, noise=r.noise, layout=LAYOUT)

    here = fit(one, model_of(other), CONFIG).dynamics
    there = fit(scaled(one), model_of(scaled(other)), CONFIG).dynamics
    factors = np.concatenate([scale, [unit]])
    np.testing.assert_allclose(there.F * factors / scale[:, None], here.F, atol=2e-3)


def test_a_prior_for_each_step_is_that_of_each_step():
    """Against NIW priors, one regression at a time."""
    rng = np.random.default_rng(0)
    X, Z = rng.normal(size=(4, 3, 2)), rng.normal(size=(4, 3, 1))
    mu0, half = rng.normal(size=(3, 3)), rng.normal(size=(3, 3, 3))
    Psi = half @ half.transpose(0, 2, 1)
    found = fit_linear_gaussian(X, Z, StepwiseNIW(mu0, Psi, 1.5, 2.0), ridge=0.0)
    for t in range(3):
        alone = NIW(mu0[t], Psi[t], 1.5, 2.0)
        wanted = fit_linear_gaussian(X[:, t : t + 1], Z[:, t : t + 1], alone, ridge=0.0)
        np.testing.assert_allclose(found.gain[t], wanted.gain[0], rtol=1e-10)
        np.testing.assert_allclose(found.cov[t], wanted.cov[0], rtol=1e-10)


def test_what_cannot_be_is_named(model):
    with pytest.raises(FitError, match="1 sample"):
        fit(rollouts(1), None, CONFIG)
    assert CONFIG.min_samples == 1
    assert DynamicsConfig().min_samples == 2
    with pytest.raises(ShapeError, match="prior is of 3 steps, inputs and outputs are of 2"):
        fit_linear_gaussian(
            np.zeros((2, 2, 1)),
            np.zeros((2, 2, 1)),
            StepwiseNIW(np.zeros((3, 2)), np.zeros((3, 2, 2)), 1.0, 1.0),
        )
    with pytest.raises(FitError, match="NIW counts must not be negative"):
        StepwiseNIW(np.zeros((3, 2)), np.zeros((3, 2, 2)), -1.0, 1.0)
