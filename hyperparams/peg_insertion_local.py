"""Peg insertion with local controllers only: one linear-Gaussian controller per base offset."""

from dataclasses import replace

from gps.algorithms import StepConfig, TrajOptConfig
from gps.distributions import MixturePriorConfig
from gps.dynamics import DynamicsConfig
from gps.hyperparams.peg_insertion import experiment as base

experiment = replace(
    base,
    description="7-joint arm inserts a peg, linear controllers only, one per base offset",
    algorithm=TrajOptConfig(
        dynamics=DynamicsConfig(ridge=1e-4, prior=MixturePriorConfig(strength=5.0)),
        step=StepConfig(kl_max=1.0, min_mult=0.2, max_mult=1.0),
    ),
    samples=5,
    iterations=10,
)
