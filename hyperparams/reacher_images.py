"""Reaching by sight: the policy sees a picture from above and its joints, not the target's place.

The local controllers know where the target is, as in reacher; the convolutions learn from them to
find target and tip in the picture.
"""

from dataclasses import replace

from gps.agents import Randomise
from gps.agents.presets import reacher
from gps.algorithms import MDGPSConfig, StepConfig
from gps.control import HoldConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost, SumCost, WeightedCost
from gps.pipeline import Experiment
from gps.policies import MLPConfig, TrainingConfig, VisionConfig

TIP = "sensor:target_to_tip"  # zero at the target, wherever that stands

experiment = Experiment(
    description="reacher where the policy sees a 64x64 picture and the joints, by MDGPS",
    agent=replace(
        reacher(),
        obs=("joint_pos", "joint_vel"),
        cameras=("main",),
        # Starts that differ show the policy more than the few ways along which the arm moves.
        start_qpos_std=0.1,
        # Every rollout has a target of its own about that of its condition: eight places would not
        # teach the convolutions what a target looks like anywhere.
        randomise=(
            Randomise(what="body_pos", names=("target",), between=(-0.05, 0.05), axes="xy"),
        ),
    ),
    cost=SumCost(
        terms=(
            WeightedCost(weight=1.0, cost=ActionCost(weights=0.05)),
            # A sharper logarithm makes the controllers of targets that are reached so stiff that
            # the policy's noise, an average over all of them, is too small for the others.
            WeightedCost(
                weight=1.0,
                cost=StateCost(entry=TIP, target=0.0, l2=100.0, log_weight=0.1, alpha=1e-3),
            ),
            WeightedCost(weight=0.01, cost=StateCost(entry="joint_vel", target=0.0, l2=1.0)),
        )
    ),
    # gains: acceleration of each joint per unit of control, in rad/s^2. variance: wide, but few
    # controls are clipped; where they are, a regression learns nothing of what they do.
    initial=HoldConfig(gains=(60.0, 75.0), variance=0.3),
    measure=EndpointMeasure(entry=TIP, target=(0.0, 0.0, 0.0), threshold=0.02, unit="m"),
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
        replay=16,
        step=StepConfig(kl_max=2.0, max_mult=1.0),
    ),
    samples=8,
    iterations=15,
)
