"""Point mass with MDGPS: one neural policy for four start positions."""

from gps.agents.point_mass import PointMassConfig

from gps.algorithms import MDGPSConfig, StepConfig
from gps.control.initial import HoldConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost, SumCost, WeightedCost
from gps.pipeline.experiment import Experiment
from gps.policies import MLPConfig, TrainingConfig

TARGET = (0.0, 0.0)  # m

experiment = Experiment(
    description="2-D point mass, four starts, one neural policy by MDGPS",
    world=PointMassConfig(
        T=40,
        dt=0.05,
        starts=((1.0, 1.0), (1.0, -1.0), (-1.0, -1.0), (-1.0, 1.0)),
        test_starts=((0.7, 0.2), (-0.3, 0.9), (-0.8, -0.4), (0.5, -0.9), (0.0, 0.8), (0.9, 0.0)),
        force_limit=10.0,
    ),
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
    measure=EndpointMeasure(entry="position", target=TARGET, point_size=2, threshold=0.1),
    algorithm=MDGPSConfig(
        network=MLPConfig(hidden=(32, 32)),
        training=TrainingConfig(steps=2000, batch_size=25),
        step=StepConfig(kl_max=2.0),
    ),
    samples=5,
    iterations=8,
)
