"""Agents that a controller can act in.

Each agent is a frozen configuration with `build()`, which gives an agent as `gps.protocols.Agent`
describes it. Nothing here knows costs, controllers or algorithms. A name is imported when it is
first used: the point mass, remote agents and agents of your own need no MuJoCo.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gps.extras import needed_by

if TYPE_CHECKING:
    from gps.agents._protocol import RemoteError
    from gps.agents.actions import MocapAction
    from gps.agents.base import Simulation, smooth_noise
    from gps.agents.dm_control import (
        DMControlAgent,
        DMControlConfig,
        DMControlStart,
        random_episodes,
    )
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
        pilco_cartpole,
        reacher,
    )
    from gps.agents.randomise import Randomise
    from gps.agents.real_time import RealTime, RealTimeConfig
    from gps.agents.remote import RemoteAgent, RemoteConfig, RobotServer, serve
    from gps.agents.visual_model import MujocoVisualModel

_HOME = {
    "Condition": "mujoco",
    "DMControlAgent": "dm_control",
    "DMControlConfig": "dm_control",
    "DMControlStart": "dm_control",
    "GymnasiumAgent": "gymnasium_agent",
    "GymnasiumConfig": "gymnasium_agent",
    "GymnasiumStart": "gymnasium_agent",
    "MocapAction": "actions",
    "MujocoAgent": "mujoco",
    "MujocoConfig": "mujoco",
    "MujocoVisualModel": "visual_model",
    "PointMassAgent": "point_mass",
    "PointMassConfig": "point_mass",
    "Randomise": "randomise",
    "RealTime": "real_time",
    "RealTimeConfig": "real_time",
    "RemoteAgent": "remote",
    "RemoteConfig": "remote",
    "RemoteError": "_protocol",
    "RobotServer": "remote",
    "Simulation": "base",
    "acrobot": "presets",
    "arm_reach": "presets",
    "as_gymnasium": "environment",
    "cartpole": "presets",
    "obstacle_nav": "presets",
    "peg_insertion": "presets",
    "peg_insertion_blind": "presets",
    "pendulum": "presets",
    "pilco_cartpole": "presets",
    "random_conditions": "mujoco",
    "random_episodes": "dm_control",
    "random_starts": "gymnasium_agent",
    "reacher": "presets",
    "sample_conditions": "mujoco",
    "serve": "remote",
    "smooth_noise": "base",
}

__all__ = [
    "Condition",
    "DMControlAgent",
    "DMControlConfig",
    "DMControlStart",
    "GymnasiumAgent",
    "GymnasiumConfig",
    "GymnasiumStart",
    "MocapAction",
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
    "pilco_cartpole",
    "random_conditions",
    "random_episodes",
    "random_starts",
    "reacher",
    "sample_conditions",
    "serve",
    "smooth_noise",
]


def __getattr__(name: str) -> Any:
    """Import on first use; MissingPackageError says what to install."""
    if name not in _HOME:
        raise AttributeError(f"module 'gps.agents' has no attribute {name!r}")
    with needed_by(f"gps.agents.{name}"):
        return getattr(import_module(f"gps.agents.{_HOME[name]}"), name)
