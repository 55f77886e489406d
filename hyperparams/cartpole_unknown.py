"""Cart-pole: a model of all rollouts so far swings PILCO's pole up after four or five of them."""

from math import pi

from gps.agents import pilco_cartpole
from gps.algorithms import GlobalModelConfig
from gps.control import OpenLoopConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost
from gps.pipeline import Experiment

UP = (0.0, pi)  # cart where it began, m; pole upright, rad

experiment = Experiment(
    description="Cart-pole swing-up of PILCO, unknown dynamics, one rollout at a time",
    agent=pilco_cartpole(),
    cost=(
        # 10 N for the whole time cost 10, hanging for the whole time 10, to hang at the end 250.
        ActionCost(weights=5e-3)
        + 0.05 * StateCost(entry="joint_pos", target=UP, l2=1.0, final_multiplier=1000.0)
        + 0.01 * StateCost(entry="joint_vel", target=0.0, l2=1.0, final_multiplier=1000.0)
    ),
    # The first rollout: random forces, another one at every step.
    initial=OpenLoopConfig(variance=36.0),
    measure=EndpointMeasure(
        entry="joint_pos", target=UP, point_size=1, success_point=1, threshold=0.1, unit="m or rad"
    ),
    algorithm=GlobalModelConfig(),
    samples=1,
    iterations=8,
)
