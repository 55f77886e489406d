"""Peg insertion by PILQR: one linear-Gaussian controller per base offset."""

from dataclasses import replace

from gps.algorithms import PILQRTrajOptConfig, StepConfig
from gps.distributions import MixturePriorConfig
from gps.dynamics import DynamicsConfig
from gps.hyperparams.peg_insertion import experiment as base

experiment = replace(
    base,
    description="7-joint arm inserts a peg, one linear controller per base offset by PILQR",
    algorithm=PILQRTrajOptConfig(
        dynamics=DynamicsConfig(ridge=1e-4, prior=MixturePriorConfig(strength=5.0)),
        step=StepConfig(kl_max=1.0, min_mult=0.2, max_mult=1.0),
    ),
    # PI2 weighs samples: with 5 it still works, and ends three times as far from the target.
    samples=10,
    iterations=10,
)
