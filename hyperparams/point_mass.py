"""Point mass: drive a 2-D mass to the origin with linear controllers. The smoke test."""

from gps.agents import PointMassConfig
from gps.algorithms import StepConfig, TrajOptConfig
from gps.control import HoldConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost
from gps.pipeline import Experiment

TARGET = (0.0, 0.0)  # m

# A smaller T would do, but leaves the mass still on its way when it is judged.
agent = PointMassConfig(T=80, dt=0.05, starts=((1.0, 1.0), (1.0, -0.5)), force_limit=10.0)

cost = (
    # Large enough that the best controller asks for some 5 N: a force that is clipped at the limit
    # does not obey the fitted linear dynamics.
    ActionCost(weights=0.03)
    + StateCost(entry="position", target=TARGET, l2=1.0, final_multiplier=10.0)
    # A little damping; without it the mass swings round the target.
    + 0.1 * StateCost(entry="velocity", target=TARGET, l2=1.0)
)

# Soft and noisy: the first rollouts should wander over the space that later ones cross.
initial = HoldConfig(position="position", velocity="velocity", variance=4.0, stiffness=0.1)

measure = EndpointMeasure(entry="position", target=TARGET, point_size=2, threshold=0.02, unit="m")

experiment = Experiment(
    description="2-D point mass to a target, linear controllers only; seconds",
    agent=agent,
    cost=cost,
    initial=initial,
    measure=measure,
    algorithm=TrajOptConfig(
        # max_mult: the step may shrink, but never grow. A long step also takes away the noise that
        # the next fit of the dynamics needs.
        step=StepConfig(kl_max=0.5, max_mult=1.0),
    ),
    samples=5,
    iterations=8,
)
