"""Two-link arm: swing the tip to a target against gravity, one neural policy for four poses."""

from gps.agents import arm_reach
from gps.algorithms import MDGPSConfig, StepConfig
from gps.control import HoldConfig
from gps.costs import ActionCost, EndpointCost, EndpointMeasure, StateCost
from gps.pipeline import Experiment
from gps.policies import MLPConfig, TrainingConfig

TARGET = (0.6, 0.0, 0.1)  # m; in front of the shoulder and a little above it

experiment = Experiment(
    description="2-link arm under gravity, tip to a target, one neural policy by MDGPS",
    agent=arm_reach(),
    cost=(
        # Holding the arm up needs 4 N m at the shoulder, at every step. The weight keeps that cheap
        # beside being off: with ten times as much the tip stays some millimetres short.
        ActionCost(weights=3e-3)
        # The l2 term pulls from afar, the log term asks for precision near the target.
        + EndpointCost(target=TARGET, l2=1.0, log_weight=0.2, alpha=1e-3)
        # Fast joints make the next step hard to predict.
        + 0.01 * StateCost(entry="joint_vel", target=0.0, l2=1.0)
    ),
    # From the model: the torques that hold each pose, gains for what the motors do there, and noise
    # that moves the joints by some tenths of a radian.
    initial=HoldConfig(),
    measure=EndpointMeasure(target=TARGET, threshold=0.02),
    algorithm=MDGPSConfig(
        # The way to the target leads far from the start: rollouts of the policy itself show what
        # it does there. Those of the local controllers do not, and in the first iterations the
        # guard has to step in again and again.
        sample_from="policy",
        network=MLPConfig(hidden=(32, 32), activation="tanh"),
        training=TrainingConfig(steps=2000, batch_size=25),
        replay=10,
        step=StepConfig(kl_max=0.7, min_mult=0.2, max_mult=1.0),
    ),
    samples=3,
    iterations=16,
)
