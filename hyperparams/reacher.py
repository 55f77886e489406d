"""A planar arm learns to reach targets that differ: 8 of them trained, 20 unseen, one policy."""

from dataclasses import replace

from gps.agents.presets import reacher
from gps.algorithms import MDGPSConfig, StepConfig
from gps.control import HoldConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost
from gps.distributions import GMMConfig, MixturePriorConfig
from gps.dynamics import DynamicsConfig
from gps.pipeline import Experiment
from gps.policies import LineariseConfig, MLPConfig, TrainingConfig

TIP = "sensor:target_to_tip"  # zero at the target, wherever that stands

# Starts that differ show the policy more than the few ways along which the arm moves.
agent = replace(reacher(), start_qpos_std=0.1)

cost = (
    ActionCost(weights=0.05)
    # A sharper logarithm makes the controllers of targets that are reached so stiff that the
    # policy's noise, an average over all of them, is too small for the others.
    + StateCost(entry=TIP, target=0.0, l2=100.0, log_weight=0.1, alpha=1e-3)
    + 0.01 * StateCost(entry="joint_vel", target=0.0, l2=1.0)
)

STANDARDISE = False  # in the state's own units few iterations from few targets learn faster

experiment = Experiment(
    description="2-link planar arm to targets that differ, one neural policy by MDGPS",
    agent=agent,
    cost=cost,
    # gains: acceleration of each joint per unit of control, in rad/s^2, somewhat low. variance:
    # wide, but few controls are clipped; where they are, a regression learns nothing of them.
    initial=HoldConfig(gains=(60.0, 75.0), variance=0.3),
    measure=EndpointMeasure(entry=TIP, target=(0.0, 0.0, 0.0), threshold=0.02, unit="m"),
    algorithm=MDGPSConfig(
        network=MLPConfig(hidden=(40, 40), activation="tanh"),
        # Fresh networks reach the targets between the eight trained ones more often than one that
        # is trained on.
        restart=True,
        training=TrainingConfig(steps=6000, batch_size=25, learning_rate=6e-3, weight_decay=3e-4),
        dynamics=DynamicsConfig(ridge=1e-4),
        linearise=LineariseConfig(
            standardise=STANDARDISE,
            ridge=1e-6,
            prior=MixturePriorConfig(gmm=GMMConfig(standardise=STANDARDISE)),
        ),
        step=StepConfig(kl_max=2.0, max_mult=1.0),
    ),
    samples=4,
    iterations=20,
)
