"""Peg insertion from pictures: the policy sees a camera and its joints, not where the peg is.

The local controllers know the end points, as in peg_insertion; the convolutions learn from them to
find the peg in the picture, and from the joint angles alone nobody could tell where the base is.
"""

from dataclasses import replace

from gps.agents import Condition, peg_insertion
from gps.algorithms import MDGPSConfig, StepConfig
from gps.control.initial import HoldConfig
from gps.costs import (
    ActionCost,
    EndpointCost,
    EndpointMeasure,
    StateCost,
    SumCost,
    WeightedCost,
)
from gps.distributions import MixturePriorConfig
from gps.dynamics import DynamicsConfig
from gps.pipeline.experiment import Experiment
from gps.policies import MLPConfig, TrainingConfig, VisionConfig

# Where the peg's tip and top shall be at the end: at the bottom of the hole, upright, in metres.
TARGET = (0.6, 0.0, -0.55, 0.6, 0.0, -0.25)
ACROSS = (1.0, 1.0, 0.0, 1.0, 1.0, 0.0)  # weights of x, y, z of the tip, then of the top
DOWN = (0.0, 0.0, 1.0, 0.0, 0.0, 1.0)

cost = SumCost(
    terms=(
        # Torques. Much less, and the gains grow until contacts make the arm flail.
        WeightedCost(cost=ActionCost(weights=0.01)),
        # Above the hole at once, and down slowly: a peg that arrives too early stops on the rim,
        # where no sample shows the way in. The logarithms pull on when the peg is near.
        WeightedCost(
            cost=EndpointCost(target=TARGET, weights=ACROSS, l2=20.0, log_weight=2.0, alpha=1e-3)
        ),
        WeightedCost(
            cost=EndpointCost(
                target=TARGET, weights=DOWN, l2=30.0, log_weight=0.1, alpha=1e-3, ramp="quadratic"
            )
        ),
        # Be there at the end.
        WeightedCost(
            cost=EndpointCost(
                target=TARGET,
                weights=1.0,
                l2=1.0,
                log_weight=1.0,
                alpha=1e-3,
                ramp="final",
                final_multiplier=10.0,
            )
        ),
        # Fast joints make the next step hard to predict.
        WeightedCost(cost=StateCost(entry="joint_vel", target=0.0, weights=0.01, l2=1.0)),
    )
)

experiment = Experiment(
    description="peg insertion where the policy sees a 64x64 picture and the joints, by MDGPS",
    agent=replace(
        peg_insertion(),
        obs=("joint_pos", "joint_vel"),
        cameras=("hole",),
        # The corners of the square alone would not do: between them the convolutions are wrong by
        # more than the play of the hole, on some seeds.
        conditions=tuple(
            Condition(body_offsets=(("base", (x, y, 0.0)),))
            for x in (-0.08, 0.0, 0.08)
            for y in (-0.08, 0.0, 0.08)
        ),
    ),
    cost=cost,
    # acceleration per torque of each joint, about the inverse of its inertia, in 1/(kg m^2)
    initial=HoldConfig(gains=(0.85, 1.5, 4.7, 3.7, 30.0, 26.0, 43.0)),
    measure=EndpointMeasure(target=TARGET, threshold=0.06),
    algorithm=MDGPSConfig(
        # What the policy sees is a few millimetres wrong, and how the rim takes the peg then shows
        # in rollouts of the policy only: with those of the controllers 45 to 65 % of the unseen
        # offsets succeed.
        sample_from="policy",
        network=VisionConfig(
            head=MLPConfig(hidden=(40, 40), activation="tanh"),
            pose=("end_points",),
            through_pose=True,
            first_steps=1500,
            steps=500,
        ),
        # Fresh heads: what they are given changes with the convolutions.
        restart=True,
        training=TrainingConfig(steps=4000, batch_size=25),
        dynamics=DynamicsConfig(ridge=1e-4, prior=MixturePriorConfig(strength=5.0)),
        step=StepConfig(kl_max=0.5, min_mult=0.2, max_mult=1.0),
        replay=6,
    ),
    samples=3,
    iterations=12,
)
