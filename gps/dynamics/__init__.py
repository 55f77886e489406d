"""Fitted dynamics: time-varying linear-Gaussian ones of a condition, and a global model of all."""

from gps.dynamics.gaussian_process import GaussianProcess, GaussianProcessConfig
from gps.dynamics.global_model import (
    GlobalDynamics,
    GlobalDynamicsConfig,
    GlobalPriorConfig,
    Transitions,
    fit_global,
)
from gps.dynamics.linear import (
    DynamicsConfig,
    DynamicsFit,
    fit,
    points,
    prediction_error,
    start_covariance,
)

__all__ = [
    "DynamicsConfig",
    "DynamicsFit",
    "GaussianProcess",
    "GaussianProcessConfig",
    "GlobalDynamics",
    "GlobalDynamicsConfig",
    "GlobalPriorConfig",
    "Transitions",
    "fit",
    "fit_global",
    "points",
    "prediction_error",
    "start_covariance",
]
