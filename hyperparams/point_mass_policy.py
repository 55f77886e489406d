"""Point mass with MDGPS: one neural policy for four start positions."""

from gps.agents import PointMassConfig
from gps.algorithms import MDGPSConfig, StepConfig
from gps.control import HoldConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost, SumCost, WeightedCost
from gps.pipeline import Experiment
from gps.policies import MLPConfig, TrainingConfig

TARGET = (0.0, 0.0)  # m

experiment = Experiment(
    description="2-D point mass, four starts, one neural policy by MDGPS; seconds",
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
    # Here the wide first rollouts matter more: they are where the policy is first trained, and
    # outside of them it says anything.
    initial=HoldConfig(position="position", velocity="velocity", variance=4.0, stiffness=0.1),
    measure=EndpointMeasure(
        entry="position", target=TARGET, point_size=2, threshold=0.05, unit="m"
    ),
    algorithm=MDGPSConfig(
        # Smooth units: the policy is linearised in every iteration, and kinks hurt there.
        network=MLPConfig(hidden=(32, 32), activation="tanh"),
        training=TrainingConfig(steps=2000, batch_size=25),
        # Train at the states of the last two iterations: twice the states, no further rollouts.
        replay=10,
        step=StepConfig(kl_max=0.5, max_mult=1.0),
    ),
    samples=5,
    iterations=8,
)
