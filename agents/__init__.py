"""Agents that a controller can act in.

Each agent is a frozen configuration with `build()`, which gives an agent as `gps.protocols.Agent`
describes it. Nothing here knows costs, controllers or algorithms.
"""

from gps.agents._protocol import RemoteError
from gps.agents.base import Simulation, smooth_noise
from gps.agents.environment import as_gymnasium
from gps.agents.gymnasium_agent import (
    GymnasiumAgent,
    GymnasiumConfig,
    GymnasiumStart,
    random_starts,
)
from gps.agents.mujoco import (
    Condition,
    MujocoAgent,
    MujocoConfig,
    random_conditions,
    sample_conditions,
)
from gps.agents.point_mass import PointMassAgent, PointMassConfig
from gps.agents.presets import (
    acrobot,
    arm_reach,
    cartpole,
    obstacle_nav,
    peg_insertion,
    peg_insertion_blind,
    pendulum,
    reacher,
)
from gps.agents.randomise import Randomise
from gps.agents.real_time import RealTime, RealTimeConfig
from gps.agents.remote import RemoteAgent, RemoteConfig, RobotServer, serve
from gps.agents.visual_model import MujocoVisualModel

__all__ = [
    "Condition",
    "GymnasiumAgent",
    "GymnasiumConfig",
    "GymnasiumStart",
    "MujocoAgent",
    "MujocoConfig",
    "MujocoVisualModel",
    "PointMassAgent",
    "PointMassConfig",
    "Randomise",
    "RealTime",
    "RealTimeConfig",
    "RemoteAgent",
    "RemoteConfig",
    "RemoteError",
    "RobotServer",
    "Simulation",
    "acrobot",
    "arm_reach",
    "as_gymnasium",
    "cartpole",
    "obstacle_nav",
    "peg_insertion",
    "peg_insertion_blind",
    "pendulum",
    "random_conditions",
    "random_starts",
    "reacher",
    "sample_conditions",
    "serve",
    "smooth_noise",
]
