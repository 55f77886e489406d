"""A puck finds its way round posts: the cost has hills, and one neural policy learns all starts."""

from typing import Any

from gps.agents.presets import obstacle_nav
from gps.algorithms import MDGPSConfig, StepConfig
from gps.control import HoldConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost, TorchCost
from gps.dynamics import DynamicsConfig
from gps.pipeline import Experiment
from gps.policies import LineariseConfig, MLPConfig, TrainingConfig

GOAL = (0.9, 0.0)  # m
PUCK = 0.05  # m; its radius
POSTS = ((-0.35, 0.0, 0.18), (0.3, 0.42, 0.15), (0.3, -0.42, 0.15))  # x, y, radius in m
# m; from where a post costs, and how gently that begins. A steep hill is felt when it is too late:
# with a softness of 0.04 and less some runs stayed stuck at the first post.
MARGIN, SOFT = 0.06, 0.06


def closeness(place: Any, _action: Any, _t: Any) -> Any:
    """How far the puck is inside each post's margin, rounded off: one residual a post, in m."""
    import torch

    posts = torch.tensor(POSTS, dtype=torch.float64)
    distance = torch.sqrt(((place - posts[:, :2]) ** 2).sum(dim=1) + 1e-6)
    inside = posts[:, 2] + PUCK + MARGIN - distance
    return SOFT * torch.nn.functional.softplus(inside / SOFT)


experiment = Experiment(
    description="a puck slides round posts to a goal, one neural policy by MDGPS",
    agent=obstacle_nav(),
    cost=(
        # Calm: a puck that arrives fast is thrown about by the first post.
        ActionCost(weights=0.2)
        + StateCost(entry="joint_pos", target=GOAL, l2=1.0, log_weight=0.1, alpha=1e-3)
        + 0.1 * StateCost(entry="joint_vel", target=0.0, l2=1.0)
        + 300.0
        * TorchCost(function=closeness, entries="joint_pos", action=False, returns="residual")
    ),
    initial=HoldConfig(model=False, variance=2.0, stiffness=0.1),
    # At the goal, and nowhere on the way in touch with a post.
    measure=EndpointMeasure(
        entry="joint_pos",
        target=GOAL,
        point_size=2,
        threshold=0.05,
        unit="m",
        avoid=tuple((x, y, radius + PUCK) for x, y, radius in POSTS),
    ),
    algorithm=MDGPSConfig(
        network=MLPConfig(hidden=(40, 40), activation="tanh"),
        # The usual decay, 1e-3, is too much for a way that bends round posts.
        training=TrainingConfig(steps=3000, batch_size=25, weight_decay=1e-4),
        replay=10,
        # linear but for the posts, so the samples can be followed closely
        dynamics=DynamicsConfig(ridge=1e-6),
        linearise=LineariseConfig(ridge=1e-4),
        step=StepConfig(kl_max=0.7, max_mult=1.0),
    ),
    samples=3,
    iterations=20,
)
