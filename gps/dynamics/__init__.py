"""Fitting time-varying linear-Gaussian dynamics to rollouts."""

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
    "fit",
    "points",
    "prediction_error",
    "start_covariance",
]
