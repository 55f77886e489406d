"""Point mass: drive a 2-D mass to the origin with linear controllers. The smoke test."""

from gps.agents.point_mass import PointMassConfig

from gps.algorithms import StepConfig, TrajOptConfig
from gps.control.initial import HoldConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost, SumCost, WeightedCost
from gps.pipeline.experiment import Experiment

TARGET = (0.0, 0.0)  # m

experiment = Experiment(
    description="2-D point mass to a target, linear controllers only; seconds",
    world=PointMassConfig(T=40, dt=0.05, starts=((1.0, 1.0), (1.0, -0.5)), force_limit=10.0),
    cost=SumCost(
        terms=(
            WeightedCost(weight=1.0, cost=ActionCost(weights=0.01)),
            WeightedCost(
                weight=1.0, cost=StateCost(entry="position", target=TARGET, weights=1.0, l2=1.0)
            ),
            WeightedCost(
                weight=1.0, cost=StateCost(entry="velocity", target=TARGET, weights=0.05, l2=1.0)
            ),
        )
    ),
    initial=HoldConfig(position="position", velocity="velocity"),
    measure=EndpointMeasure(entry="position", target=TARGET, point_size=2, threshold=0.05),
    algorithm=TrajOptConfig(step=StepConfig(kl_max=2.0)),
    samples=5,
    iterations=8,
)
