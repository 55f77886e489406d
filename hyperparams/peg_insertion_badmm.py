"""Peg insertion by BADMM: duals draw the controllers and one neural policy together."""

from dataclasses import replace

from gps.algorithms import BADMMConfig, ExplorationConfig, StepConfig
from gps.distributions import MixturePriorConfig
from gps.dynamics import DynamicsConfig
from gps.hyperparams.peg_insertion import experiment as base
from gps.policies import LineariseConfig, MLPConfig, TrainingConfig

experiment = replace(
    base,
    description="7-joint arm inserts a peg, one neural policy by BADMM",
    algorithm=BADMMConfig(
        network=MLPConfig(hidden=(40, 40), activation="tanh"),
        # Two rollouts are few to learn from, and this algorithm has no bound on what the policy
        # does: a fresh network on the rollouts of four iterations wanders least.
        restart=True,
        replay=8,
        training=TrainingConfig(steps=4000, batch_size=25, weight_decay=1e-2),
        dynamics=DynamicsConfig(ridge=1e-4, prior=MixturePriorConfig(strength=10.0)),
        linearise=LineariseConfig(ridge=1e-4),
        step=StepConfig(kl_max=1.5, max_mult=2.0),
        exploration=ExplorationConfig(floor=0.1),
    ),
)
