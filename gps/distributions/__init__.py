"""Gaussians, Gaussian mixtures, and linear regression with a mixture as prior."""

from gps.distributions.gaussian import condition, kl, log_density
from gps.distributions.gmm import (
    GMMConfig,
    GMMFit,
    Mixture,
    entry_sizes,
    log_likelihood,
    m_step,
    responsibilities,
)
from gps.distributions.gmm import fit as fit_mixture
from gps.distributions.niw import NIW, mixture_moments, mixture_prior, posterior_covariance
from gps.distributions.regression import (
    LinearGaussianFit,
    MixturePrior,
    MixturePriorConfig,
    fit_linear_gaussian,
    update_prior,
)

__all__ = [
    "NIW",
    "GMMConfig",
    "GMMFit",
    "LinearGaussianFit",
    "Mixture",
    "MixturePrior",
    "MixturePriorConfig",
    "condition",
    "entry_sizes",
    "fit_linear_gaussian",
    "fit_mixture",
    "kl",
    "log_density",
    "log_likelihood",
    "m_step",
    "mixture_moments",
    "mixture_prior",
    "posterior_covariance",
    "responsibilities",
    "update_prior",
]
