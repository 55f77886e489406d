"""Gripper pusher: an arm takes a block between its fingers and pushes it to a goal, by PILQR."""

from typing import Any

from gps.agents.presets import gripper_pusher
from gps.algorithms import PILQRTrajOptConfig, StepConfig
from gps.control import HoldConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost, WaypointCost, torch_cost
from gps.distributions import MixturePriorConfig
from gps.dynamics import DynamicsConfig
from gps.pipeline import Experiment

GOAL = (0.68, 0.0, 0.0)  # m; of the block
BLOCK = (0.5, 0.0)  # m; where the block's slides are at 0
REACH, PUSH = 20, 70  # steps from which, and to which, the block's position matters more and more
NOTHING = ((0.0,) * 8,) * 2
BLOCK_ONLY = ((0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0))


# Squares only. A logarithm asks for a perfect grip, and no push is worth what it disturbs.
@torch_cost(entries="end_points", action=False, returns="residual", through="jacobian", l2=200.0)
def from_grip_to_block(points: Any, _u: Any, _t: Any) -> Any:
    """From the middle between the fingers to the block, in m, in the plane."""
    return points[3:5] - points[:2]


cost = (
    ActionCost(weights=0.03)  # N m, and N of the fingers
    # First behind the block, so that it lies between the fingers, then push: a block that is pushed
    # at once is met by the tip of a finger and leaves to the side. The last step counts
    # twenty-fold, or dry friction lets the block stop short.
    + WaypointCost(
        entry="joint_pos",
        steps=(REACH, PUSH),
        targets=((0.0, 0.0), (GOAL[0] - BLOCK[0], GOAL[1] - BLOCK[1])),
        matrices=(NOTHING, BLOCK_ONLY),
        l2=400.0,
        final_multiplier=20.0,
    )
    + from_grip_to_block
    # The arm's speed: fast joints make the next step hard to predict.
    + StateCost(entry="joint_vel", target=0.0, weights=(0.05,) * 4 + (0.0,) * 4, l2=1.0)
)
dynamics = DynamicsConfig(ridge=1e-4, prior=MixturePriorConfig(strength=5.0))

experiment = Experiment(
    description="3-joint arm with a gripper pushes a block to a goal, by PILQR, through contacts",
    # Its noise is correlated over time, which moves the hand; white noise only shakes it. Local
    # controllers have nothing to do in test conditions.
    agent=gripper_pusher(n_test=0),
    cost=cost,
    # gains: acceleration per N m (or N) of each joint, about the inverse of its inertia
    initial=HoldConfig(gains=(2.7, 5.0, 23.0, 3.6), variance=4.0),
    # Half the block's width. The grip's distance from the goal is part of `distance`.
    measure=EndpointMeasure(target=(*GOAL, *GOAL), success_point=1, threshold=0.03),
    algorithm=PILQRTrajOptConfig(
        dynamics=dynamics, step=StepConfig(kl_max=2.0, min_mult=0.1, max_mult=1.0)
    ),
    samples=20,
    iterations=20,
)
