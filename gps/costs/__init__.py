"""Costs of states and actions with exact derivatives, and their expansion for the LQR.

A cost is a frozen dataclass of numbers: configuration and function in one. `evaluate` gives value
and derivatives at the samples, `expand` turns these into the quadratic model of each step, and
`check` refuses a cost that does not fit the agent before the first rollout.
"""

from gps.costs.action import ActionCost
from gps.costs.base import (
    Cost,
    RampKind,
    TermBuffers,
    expand,
    ramp,
    smooth_distance,
)
from gps.costs.combine import BaseCost, InPlaceCost, SumCost, WeightedCost
from gps.costs.endpoint import EndpointCost
from gps.costs.fitted import FittedRewardCost
from gps.costs.measure import EndpointMeasure
from gps.costs.region import BinaryRegionCost
from gps.costs.state import StateCost
from gps.costs.torch_cost import TorchCost, torch_cost
from gps.costs.trajectory import CostOf, model_cost
from gps.costs.waypoints import WaypointCost

__all__ = [
    "ActionCost",
    "BaseCost",
    "BinaryRegionCost",
    "Cost",
    "CostOf",
    "EndpointCost",
    "EndpointMeasure",
    "FittedRewardCost",
    "InPlaceCost",
    "RampKind",
    "StateCost",
    "SumCost",
    "TermBuffers",
    "TorchCost",
    "WaypointCost",
    "WeightedCost",
    "expand",
    "model_cost",
    "ramp",
    "smooth_distance",
    "torch_cost",
]
