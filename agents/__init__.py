"""Worlds that a controller can act in.

Each world is a frozen configuration with `build()`, which gives an agent as `gps.types.Agent`
describes it. Nothing here knows costs, controllers or algorithms.
"""

from gps.agents.base import smooth_noise
from gps.agents.point_mass import PointMassAgent, PointMassConfig

__all__ = [
    "PointMassAgent",
    "PointMassConfig",
    "smooth_noise",
]
