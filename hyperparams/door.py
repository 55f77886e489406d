"""Door: an arm puts its hook behind the handle of a door and pulls it open, by PILQR."""

from dataclasses import replace
from math import cos, sin
from typing import Any

import torch

from gps.agents.presets import door
from gps.algorithms import PILQRTrajOptConfig, StepConfig
from gps.control import HoldConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost, WaypointCost, torch_cost
from gps.distributions import GMMConfig, MixturePriorConfig
from gps.dynamics import DynamicsConfig
from gps.pipeline import Experiment

OPEN = 1.0  # rad; how far the door shall be open at the end
HINGE, ARM = (0.72, -0.3), (-0.11, 0.36)  # m; the door's hinge, and the handle seen from there
HANDLE = (  # m; where the handle is when the door is open
    HINGE[0] + cos(OPEN) * ARM[0] - sin(OPEN) * ARM[1],
    HINGE[1] + sin(OPEN) * ARM[0] + cos(OPEN) * ARM[1],
    0.0,
)
REACH, PULL = 30, 85  # steps at which the hook is behind the handle, and the door open


@torch_cost(
    entries=("joint_pos", "end_points"), action=False, returns="residual", through="jacobian"
)
def hook_at_handle(x: Any, _u: Any, t: Any) -> torch.Tensor:
    """From the hook to where it shall be at the handle, in m, and 0.3 m per rad of its turn.

    The handle moves with the door, so that no place in space can be the hook's target.
    """
    joints, points = x["joint_pos"], x["end_points"]
    inwards = torch.stack([torch.cos(joints[3]), torch.sin(joints[3])])
    # The hook passes behind the bar without touching it, then rests against it.
    depth = torch.where(t < REACH, 0.045, -0.005)
    # A hand that does not turn with the door lets the bar slip over the tip of the hook.
    turn = joints[3] - joints[:3].sum()
    return torch.cat([points[3:5] + depth * inwards - points[:2], 0.3 * turn[None]])


cost = (
    ActionCost(weights=0.03)  # N m
    # The door's way, not its end alone: asked to be open at once, it is pulled so hastily that the
    # bar slips off the hook half-way. The last step counts twenty-fold, or the door stops short:
    # there is hardly any time left in which the last 0.2 rad would pay.
    + WaypointCost(
        entry="joint_pos",
        steps=(REACH, PULL),
        targets=((0.0,), (OPEN,)),
        matrices=(((0.0, 0.0, 0.0, 1.0),),) * 2,
        l2=400.0,
        final_multiplier=20.0,
    )
    + 200.0 * hook_at_handle
    # Fast joints make the next step hard to predict.
    + StateCost(entry="joint_vel", target=0.0, weights=0.05, l2=1.0)
)

# In the state's own units: how far the door has moved so far is no measure of what will matter, and
# in shares of that the contacts are fitted too closely.
STANDARDISE = False
prior = MixturePriorConfig(gmm=GMMConfig(standardise=STANDARDISE))
dynamics = DynamicsConfig(standardise=STANDARDISE, ridge=1e-5, prior=replace(prior, strength=5.0))

experiment = Experiment(
    description="3-joint arm hooks the handle of a door and opens it, by PILQR, through contacts",
    # Its conditions move the arm, which is as good as to move the door, and leaves the position of
    # the open handle fixed. Its noise is correlated over time, which moves the hook; white noise
    # only shakes it. Local controllers have nothing to do in test conditions.
    agent=door(n_test=0),
    cost=cost,
    # gains: acceleration per N m of each joint, about the inverse of its inertia
    initial=HoldConfig(gains=(1.8, 6.0, 24.0), variance=8.0),
    # The handle's distance from where it is on the open door decides; 40 mm are 0.11 rad.
    measure=EndpointMeasure(target=(*HANDLE, *HANDLE), success_point=1, threshold=0.04),
    algorithm=PILQRTrajOptConfig(
        dynamics=dynamics,
        step=StepConfig(kl_max=1.0, min_mult=0.1, max_mult=1.0),
    ),
    samples=20,
    iterations=20,
)
