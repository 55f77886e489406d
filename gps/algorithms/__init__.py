"""Guided policy search algorithms, each a pure function `iterate(state, rollouts, config)`."""

from gps.algorithms.mdgps import MDGPSConfig
from gps.algorithms.state import ConditionReport, ConditionState, GPSState, PolicyState, Report
from gps.algorithms.step_size import GuardConfig, StepConfig
from gps.algorithms.trajopt import TrajOptConfig

__all__ = [
    "ConditionReport",
    "ConditionState",
    "GPSState",
    "GuardConfig",
    "MDGPSConfig",
    "PolicyState",
    "Report",
    "StepConfig",
    "TrajOptConfig",
]
