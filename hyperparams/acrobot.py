"""Acrobot: iLQR on the known model swings two links up with a weak motor at the elbow."""

from math import pi

from gps.agents import acrobot
from gps.algorithms import ILQRPlanningConfig
from gps.control import HoldConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost
from gps.pipeline import Experiment

UP = (pi, 0.0)  # rad; upper link upright, lower link in line with it

agent = acrobot()

experiment = Experiment(
    description="Acrobot swing-up, known dynamics, iLQR with torque limits, three starts",
    agent=agent,
    cost=(
        # Never more than 3 in all: it is the limit that restrains the motor. The cost keeps the
        # plan calm where the torque matters little.
        ActionCost(weights=0.02)
        # Shaping: the last step counts as much as 500 others. With 10 instead all plans end in a
        # local minimum: the elbow draws the links a little to one side, as far as its torque can
        # hold them, and they stay there. To swing back costs more than it promises.
        + 0.2 * StateCost(entry="joint_pos", target=UP, l2=1.0, final_multiplier=500.0)
        + 0.002 * StateCost(entry="joint_vel", target=0.0, l2=1.0, final_multiplier=500.0)
    ),
    initial=HoldConfig(joints=(1,)),  # only the elbow has a motor
    # The farther of the two angles decides about the distance, the upper link's about success:
    # 0.1 rad is 6 degrees.
    measure=EndpointMeasure(entry="joint_pos", target=UP, point_size=1, threshold=0.1, unit="rad"),
    # Plans succeed after 40 steps; later ones find better ways to swing and have not converged by
    # the end. Noise of 0.01 N m: upright, the elbow's gains turn every disturbance into torque.
    algorithm=ILQRPlanningConfig(model=agent, steps_per_iteration=10, exploration=0.01),
    samples=3,
    iterations=12,
)
