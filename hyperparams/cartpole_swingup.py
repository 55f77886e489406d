"""Cart-pole: iLQR on the known model swings the pole up with limited force on a short rail."""

from math import pi

from gps.agents import cartpole
from gps.algorithms import ILQRPlanningConfig
from gps.control import HoldConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost
from gps.pipeline import Experiment

UP = (0.0, pi)  # cart in the middle, m; pole upright, rad

agent = cartpole()

experiment = Experiment(
    description="Cart-pole swing-up, known dynamics, iLQR with force limits, four starts",
    agent=agent,
    cost=(
        # 8 N for the whole time cost 6, hanging for the whole time costs 100.
        ActionCost(weights=2e-3)
        # The sooner upright the better. The last step counts as much as all others together: to get
        # up late is still worth it.
        + 0.2 * StateCost(entry="joint_pos", target=UP, l2=1.0, final_multiplier=100.0)
        # Still at the end.
        + 0.01 * StateCost(entry="joint_vel", target=0.0, l2=1.0, final_multiplier=100.0)
    ),
    # Only the cart (joint 0) has a motor. It is held where it is: nothing has to be known in
    # advance of how to swing a pole up.
    initial=HoldConfig(joints=(0,)),
    # The pole's angle decides about success; 0.1 rad is 6 degrees. The distance is the larger one:
    # the pole's, in rad, or the cart's, in m. That both are still at the end is up to the cost.
    measure=EndpointMeasure(
        entry="joint_pos", target=UP, point_size=1, success_point=1, threshold=0.1, unit="m or rad"
    ),
    # The plans succeed after 20 steps and have converged after about 120.
    algorithm=ILQRPlanningConfig(model=agent, steps_per_iteration=10, exploration=0.1),
    samples=3,
    iterations=12,
)
