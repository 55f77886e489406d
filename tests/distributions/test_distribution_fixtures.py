"""Against the public reference's numbers; see tests/fixtures/README_dynamics.md."""

from pathlib import Path

import numpy as np
import pytest

from gps.distributions import (
    NIW,
    Mixture,
    MixturePrior,
    fit_linear_gaussian,
    log_likelihood,
    m_step,
    mixture_prior,
    responsibilities,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def gmm():
    return np.load(FIXTURES / "gmm_pilqr.npz")


@pytest.fixture(scope="module")
def dyn():
    return np.load(FIXTURES / "dynamics_pilqr.npz")


@pytest.fixture(scope="module")
def pol():
    return np.load(FIXTURES / "policy_linearisation_badmm.npz")


def reference_em(mixture, data, iterations):
    previous, values = -np.inf, []
    for _ in range(iterations):
        value = log_likelihood(mixture, data) * len(data)
        values.append(value)
        if value < previous or abs(value - previous) < 1e-5 * previous:
            break
        previous = value
        mixture = m_step(data, responsibilities(mixture, data), 1e-6)
    return mixture, values


def reference_start(gmm):
    data, K, cidx = gmm["data"], int(gmm["K"]), gmm["cidx"]
    mean = np.array([data[cidx == j].mean(axis=0) for j in range(K)])
    parts = [data[cidx == j] - mean[j] for j in range(K)]
    cov = np.array([R.T @ R / K for R in parts]) + 2e-6 * np.eye(data.shape[1])
    return Mixture(mean, cov, np.full(K, -np.log(K)))


def as_prior(d):
    D = d["gmm_mu"].shape[1]
    mixture = Mixture(d["gmm_mu"], d["gmm_sigma"], d["gmm_logmass"][:, 0])
    return MixturePrior(np.zeros((1, int(d["gmm_N"]), D)), mixture)


@pytest.mark.parametrize(
    ("tag", "iterations"), [("init", 0), ("it1", 1), ("it5", 5), ("full", 100)]
)
def test_em_steps(gmm, tag, iterations):
    mixture, values = reference_em(reference_start(gmm), gmm["data"], iterations)
    np.testing.assert_allclose(mixture.mean, gmm[f"{tag}_mu"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(np.exp(mixture.log_weight), gmm[f"{tag}_mass"][:, 0], atol=5e-8)
    if tag == "full":
        np.testing.assert_allclose(mixture.cov, gmm["full_sigma"], rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(values, gmm["full_ll"], rtol=1e-9)
    else:
        got = np.diagonal(mixture.cov, axis1=1, axis2=2)
        np.testing.assert_allclose(got, gmm[f"{tag}_sigma_diag"], rtol=1e-8, atol=1e-8)


def test_em_from_an_earlier_mixture(gmm):
    full = Mixture(gmm["full_mu"], gmm["full_sigma"], np.log(gmm["full_mass"][:, 0]))
    mixture, _ = reference_em(full, gmm["warm_data"], 100)
    np.testing.assert_allclose(mixture.mean, gmm["warm_mu"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(mixture.cov, gmm["warm_sigma"], rtol=1e-7, atol=5e-8)


def test_responsibilities(gmm):
    full = Mixture(gmm["full_mu"], gmm["full_sigma"], np.log(gmm["full_mass"][:, 0]))
    logs = gmm["full_estep_logobs_after"]
    want = np.exp(logs - np.logaddexp(logs[:, :1], logs[:, 1:]))
    np.testing.assert_allclose(responsibilities(full, gmm["data"][:50]), want, atol=1e-10)


@pytest.mark.parametrize("t", [0, 50])
def test_mixture_as_prior(dyn, t):
    points = np.concatenate([dyn["X"][:, t], dyn["U"][:, t], dyn["X"][:, t + 1]], axis=1)
    prior = as_prior(dyn)
    niw = mixture_prior(prior.mixture, points, prior.n_points, float(dyn["strength"]))
    np.testing.assert_allclose(niw.mu0, dyn[f"t{t}_prior_mu0"], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(niw.Psi, dyn[f"t{t}_prior_Phi"], rtol=1e-8, atol=1e-10)
    assert niw.kappa0 == dyn[f"t{t}_prior_m"]
    assert niw.nu0 == pytest.approx(float(dyn[f"t{t}_prior_n0"]), rel=1e-14)


def test_dynamics(dyn):
    X, U = dyn["X"], dyn["U"]
    inputs = np.concatenate([X[:, :-1], U[:, :-1]], axis=2)
    fit = fit_linear_gaussian(
        inputs,
        X[:, 1:],
        as_prior(dyn),
        strength=float(dyn["strength"]),
        ridge=float(dyn["regularization"]),
        standardise=False,
    )
    for got, key, atol in (
        (fit.gain, "Fm", 1e-8),
        (fit.offset, "fv", 1e-8),
        (fit.cov, "dyn_covar", 1e-13),
    ):
        np.testing.assert_allclose(got, dyn[f"{key}_diagonal_ridge"][:-1], rtol=1e-6, atol=atol)
    # the whole-block ridge of the reference is another model
    assert np.abs(fit.gain - dyn["Fm"][:-1]).max() > 1e-4


@pytest.mark.parametrize(("ridge", "steps"), [(0.0, slice(1, None)), (1e-8, slice(0, 1))])
def test_policy_linearisation(pol, ridge, steps):
    strength = float(pol["strength"])
    fit = fit_linear_gaussian(
        *(pol["X"], pol["pol_mu"], as_prior(pol)), strength=strength, ridge=ridge, standardise=False
    )
    for got, key in (
        (fit.gain, "pol_K"),
        (fit.offset, "pol_k"),
        (fit.cov + pol["pol_sig_t0"], "pol_S"),
    ):
        want = pol[f"{key}_diagonal_ridge"]
        np.testing.assert_allclose(got[steps], want[steps], rtol=1e-6, atol=1e-8)


def test_policy_linearisation_with_a_constant_prior(pol):
    X, action = pol["X"], pol["pol_mu"]
    nx, nu, strength = X.shape[2], action.shape[2], 1e-4
    Psi = strength * np.diag(np.r_[np.ones(nx), np.full(nu, 1e-5)])
    fit = fit_linear_gaussian(X, action, NIW(np.zeros(nx + nu), Psi, 0.0, strength), ridge=0.0)
    np.testing.assert_allclose(fit.gain[1:], pol["const_pol_K"][1:], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(fit.offset[1:], pol["const_pol_k"][1:], rtol=1e-6, atol=1e-8)
    got = fit.cov + pol["pol_sig_t0"]
    np.testing.assert_allclose(got[1:], pol["const_pol_S"][1:], rtol=1e-6, atol=1e-10)
