"""Gripper pusher with a global policy: one network pushes the block from wherever it lies."""

from dataclasses import replace

from gps.agents.presets import gripper_pusher
from gps.algorithms import MDGPSConfig, StepConfig
from gps.hyperparams.gripper_pusher import dynamics
from gps.hyperparams.gripper_pusher import experiment as base
from gps.policies import MLPConfig, TrainingConfig

experiment = replace(
    base,
    description="3-joint arm with a gripper pushes a block to a goal, one neural policy by MDGPS",
    agent=gripper_pusher(),
    algorithm=MDGPSConfig(
        # Rollouts of the local controllers do not show what the policy's own small errors lead to:
        # with them, at 1 nat a step, it succeeded from three of the four trained starts in the end.
        sample_from="policy",
        network=MLPConfig(hidden=(40, 40), activation="tanh"),
        training=TrainingConfig(steps=4000, batch_size=25),
        dynamics=dynamics,
        step=StepConfig(kl_max=0.5, min_mult=0.1, max_mult=1.0),
        replay=20,
    ),
)
