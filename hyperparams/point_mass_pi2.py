"""Point mass by PI2: no dynamics are fitted and no gradient is taken."""

from gps.agents import PointMassConfig
from gps.algorithms import PI2TrajOptConfig
from gps.control import HoldConfig, PI2Config
from gps.costs import ActionCost, EndpointMeasure, StateCost, SumCost, WeightedCost
from gps.pipeline import Experiment

TARGET = (0.0, 0.0)  # m

experiment = Experiment(
    description="2-D point mass to a target by PI2, from sampled costs alone; seconds",
    agent=PointMassConfig(T=80, dt=0.05, starts=((1.0, 1.0), (1.0, -0.5)), force_limit=10.0),
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
    # PI2 never changes the gains of the first controllers. Soft ones let the noise of 80 steps add
    # up, and what is left of it at the end hides what an update brought.
    initial=HoldConfig(position="position", velocity="velocity", variance=4.0, stiffness=1.0),
    measure=EndpointMeasure(entry="position", target=TARGET, point_size=2, threshold=0.1, unit="m"),
    # More KL learns faster at first, but takes the exploration away before the end is reached.
    algorithm=PI2TrajOptConfig(pi2=PI2Config(kl_max=1.0)),
    samples=20,
    iterations=25,
)
