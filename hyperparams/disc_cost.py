"""A point mass with a region of reward beside its smooth target: PILQR has to find the region."""

from gps.agents import PointMassConfig
from gps.algorithms import PILQRTrajOptConfig, StepConfig
from gps.control import HoldConfig, PI2Config, PILQRConfig
from gps.costs import BinaryRegionCost, EndpointMeasure, StateCost
from gps.pipeline import Experiment

TARGET = (3.0, 0.0)  # m; where the smooth cost is least
REGION = (2.5, 0.5)  # m; centre of the region, a diamond 0.6 m wide
WIDTH = 0.3  # m; |x| + |y| from the centre to the border

experiment = Experiment(
    description="2-D point mass, a hidden region of reward beside the smooth target, by PILQR",
    # Noise that is correlated over time carries the mass off its way, as white noise does not.
    agent=PointMassConfig(T=100, dt=0.05, starts=((1.0, 0.0),), damping=0.5, noise_sigma=1.7),
    cost=(
        StateCost(entry="position", target=TARGET, l2=1.0)
        + 10.0
        * BinaryRegionCost(
            entry="position", target=REGION, radius=WIDTH, norm="l1", inside=-3.0, outside=0.0
        )
    ),
    initial=HoldConfig(position="position", velocity="velocity", variance=20.0),
    measure=EndpointMeasure(entry="position", target=REGION, point_size=2, threshold=0.3, unit="m"),
    # The smooth cost alone leads straight to its target, and a longer step of the LQR gets there
    # before samples have met the region: with 0.3 nats a step none of three seeds ended in it.
    algorithm=PILQRTrajOptConfig(
        pilqr=PILQRConfig(pi2=PI2Config(kl_max=1.0)),
        step=StepConfig(kl_max=0.05, max_mult=1.0),
    ),
    samples=20,
    iterations=20,
)
