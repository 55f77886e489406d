"""Pendulum: a weak motor learns to swing it up with dynamics fitted to five rollouts at a time."""

from math import pi

from gps.agents import pendulum
from gps.algorithms import StepConfig, TrajOptConfig
from gps.control import HoldConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost
from gps.pipeline import Experiment

experiment = Experiment(
    description="Pendulum swing-up, dynamics fitted to few samples, linear controllers only",
    agent=pendulum(),
    cost=(
        # The LQR knows no limits. This weight keeps most of what it asks for within the motor's
        # 1.2 N m; a torque that is clipped there does not obey the fitted dynamics.
        0.1 * ActionCost(weights=1.0)
        # On the way little matters: a running cost that counts draws the pendulum to one side,
        # where the motor holds it at its limit and no small change is for the better.
        + 0.02 * StateCost(entry="joint_pos", target=pi, l2=1.0)
        # Upright and still at the end.
        + 50.0 * StateCost(entry="joint_pos", target=pi, l2=1.0, ramp="final")
        + 10.0 * StateCost(entry="joint_vel", target=0.0, l2=1.0, ramp="final")
    ),
    # Almost free, with a noise of 1 N m: the first rollouts swing widely about the hanging place.
    initial=HoldConfig(model=False, variance=1.0, stiffness=0.01),
    measure=EndpointMeasure(
        entry="joint_pos", target=(pi,), point_size=1, threshold=0.1, unit="rad"
    ),
    algorithm=TrajOptConfig(
        # Short steps: the way up bends the dynamics, from pulling back to falling over. The step
        # may not grow, so that there is noise to fit from until the end.
        step=StepConfig(kl_max=0.3, max_mult=1.0),
    ),
    samples=5,
    iterations=15,
)
