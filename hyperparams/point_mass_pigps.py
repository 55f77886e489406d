"""Point mass by PIGPS: one neural policy for four starts, without dynamics or gradients."""

from gps.agents import PointMassConfig
from gps.algorithms import PIGPSConfig
from gps.control import HoldConfig, PI2Config
from gps.costs import ActionCost, EndpointMeasure, StateCost, SumCost, WeightedCost
from gps.pipeline import Experiment
from gps.policies import MLPConfig, TrainingConfig

TARGET = (0.0, 0.0)  # m

experiment = Experiment(
    description="2-D point mass, four starts, one neural policy by PIGPS; seconds",
    agent=PointMassConfig(
        T=80,
        dt=0.05,
        starts=((1.0, 1.0), (1.0, -1.0), (-1.0, -1.0), (-1.0, 1.0)),
        # Never trained from; gps evaluate RUN --conditions test
        test_starts=((0.7, 0.2), (-0.3, 0.9), (-0.8, -0.4), (0.5, -0.9), (0.0, 0.8), (0.9, 0.0)),
        force_limit=10.0,
    ),
    # As in point_mass.py, whose comments explain these numbers.
    cost=SumCost(
        terms=(
            WeightedCost(weight=1.0, cost=ActionCost(weights=0.03)),
            WeightedCost(
                weight=1.0,
                cost=StateCost(entry="position", target=TARGET, l2=1.0, final_multiplier=10.0),
            ),
            WeightedCost(weight=0.1, cost=StateCost(entry="velocity", target=TARGET, l2=1.0)),
        )
    ),
    initial=HoldConfig(position="position", velocity="velocity", variance=4.0, stiffness=1.0),
    measure=EndpointMeasure(entry="position", target=TARGET, point_size=2, threshold=0.1, unit="m"),
    algorithm=PIGPSConfig(
        pi2=PI2Config(kl_max=1.0),
        network=MLPConfig(hidden=(32, 32), activation="tanh"),
        training=TrainingConfig(steps=2000, batch_size=25),
    ),
    samples=20,
    iterations=15,
)
