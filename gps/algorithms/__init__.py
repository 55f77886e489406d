"""Guided policy search algorithms, each a pure function `iterate(state, rollouts, config)`."""

from gps.algorithms.badmm import BADMMConfig
from gps.algorithms.exploration import ExplorationConfig
from gps.algorithms.global_model import GlobalModelConfig
from gps.algorithms.mdgps import MDGPSConfig
from gps.algorithms.mdgps_pilqr import MDGPSPILQRConfig
from gps.algorithms.pi2 import PI2TrajOptConfig
from gps.algorithms.pigps import PIGPSConfig
from gps.algorithms.pilqr import PILQRTrajOptConfig
from gps.algorithms.planning import ILQRPlanningConfig
from gps.algorithms.state import ConditionReport, ConditionState, GPSState, PolicyState, Report
from gps.algorithms.step_size import GuardConfig, StepConfig
from gps.algorithms.trajopt import TrajOptConfig

__all__ = [
    "BADMMConfig",
    "ConditionReport",
    "ConditionState",
    "ExplorationConfig",
    "GPSState",
    "GlobalModelConfig",
    "GuardConfig",
    "ILQRPlanningConfig",
    "MDGPSConfig",
    "MDGPSPILQRConfig",
    "PI2TrajOptConfig",
    "PIGPSConfig",
    "PILQRTrajOptConfig",
    "PolicyState",
    "Report",
    "StepConfig",
    "TrajOptConfig",
]
