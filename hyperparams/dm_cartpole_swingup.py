"""dm_control's cart-pole swing-up: iLQR on the known model, for the whole episode of 10 s."""

from gps.agents import DMControlConfig, random_episodes
from gps.algorithms import ILQRPlanningConfig
from gps.control import OpenLoopConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost
from gps.pipeline import Experiment

# The pole hangs at pi and is upright at 0. An action is held for four of the task's steps.
agent = DMControlConfig(
    domain="cartpole",
    task="swingup",
    repeat=4,
    T=251,
    conditions=random_episodes(3, seed=1, purpose="training conditions"),
    test_conditions=random_episodes(5, seed=1),
)

experiment = Experiment(
    description="Cart-pole swing-up of dm_control, known dynamics, iLQR with force limits",
    agent=agent,
    cost=(
        ActionCost(weights=0.1)
        + StateCost(entry="joint_pos", target=(0.0, 0.0), weights=(1.0, 1.0), l2=1.0)
        + 0.05 * StateCost(entry="joint_vel", target=0.0, l2=1.0)
    ),
    initial=OpenLoopConfig(variance=0.01),
    measure=EndpointMeasure(
        entry="joint_pos",
        target=(0.0, 0.0),
        point_size=1,
        success_point=1,
        threshold=0.1,
        unit="m or rad",
    ),
    algorithm=ILQRPlanningConfig(model=agent, steps_per_iteration=20, exploration=0.02),
    samples=2,
    iterations=15,
)
