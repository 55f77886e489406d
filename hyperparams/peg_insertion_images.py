"""Peg insertion from images: the policy observes a camera and its joints, not the peg.

The local controllers know the end points, as in peg_insertion; the convolutions learn from them to
find the peg in the image, and the joint angles alone do not determine where the base is.
"""

from dataclasses import replace

from gps.agents import Condition, peg_insertion
from gps.algorithms import MDGPSConfig, StepConfig
from gps.distributions import MixturePriorConfig
from gps.dynamics import DynamicsConfig
from gps.hyperparams.peg_insertion import experiment as base
from gps.policies import MLPConfig, TrainingConfig, VisionConfig

experiment = replace(
    base,
    description="peg insertion where the policy observes a 64x64 image and the joints, by MDGPS",
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
    algorithm=MDGPSConfig(
        # What the policy observes is a few millimetres wrong, and how the rim takes the peg shows
        # then in rollouts of the policy only: with those of the controllers 45 to 65 % of the
        # unseen offsets succeed.
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
)
