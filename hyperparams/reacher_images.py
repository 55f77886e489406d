"""Reaching from images: the policy observes a view from above and its joints, not the target.

The local controllers know where the target is, as in reacher; the convolutions learn from them to
find target and tip in the image.
"""

from dataclasses import replace

from gps.agents import Randomise
from gps.algorithms import MDGPSConfig, StepConfig
from gps.hyperparams.reacher import TIP, agent
from gps.hyperparams.reacher import experiment as base
from gps.policies import MLPConfig, TrainingConfig, VisionConfig

experiment = replace(
    base,
    description="reacher where the policy observes a 64x64 image and the joints, by MDGPS",
    agent=replace(
        agent,
        obs=("joint_pos", "joint_vel"),
        cameras=("main",),
        # Every rollout has a target of its own about that of its condition: eight places would not
        # teach the convolutions what a target looks like anywhere.
        randomise=(
            Randomise(what="body_pos", names=("target",), between=(-0.05, 0.05), axes="xy"),
        ),
    ),
    algorithm=MDGPSConfig(
        network=VisionConfig(
            head=MLPConfig(hidden=(40, 40), activation="tanh"),
            pose=(TIP,),
            through_pose=True,
            first_steps=2000,
            steps=600,
        ),
        restart=True,  # as in reacher.py
        training=TrainingConfig(steps=6000, batch_size=25, learning_rate=6e-3, weight_decay=3e-4),
        step=StepConfig(kl_max=2.0, max_mult=1.0),
    ),
    samples=8,
    iterations=15,
)
