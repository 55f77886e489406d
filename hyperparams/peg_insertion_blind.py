"""Blind peg insertion: the policy observes its joints only, and the hole is a little off."""

from dataclasses import replace

from gps.agents import peg_insertion_blind
from gps.algorithms import MDGPSConfig, StepConfig
from gps.distributions import GMMConfig, MixturePriorConfig
from gps.dynamics import DynamicsConfig
from gps.hyperparams.peg_insertion import experiment as base
from gps.policies import LineariseConfig, MLPConfig, TrainingConfig

# The state's own units, with which the policy of few rollouts learns faster here.
STANDARDISE = False
prior = MixturePriorConfig(gmm=GMMConfig(standardise=STANDARDISE))

experiment = replace(
    base,
    description="7-joint arm inserts a peg that its policy cannot observe, base off by up to 8 mm",
    agent=peg_insertion_blind(),
    algorithm=MDGPSConfig(
        # One action for all places of the base is no single controller's, and how the rim takes
        # the peg then shows in rollouts of the policy only. With those of the controllers, whose
        # state holds the peg, success comes and goes from one iteration to the next.
        sample_from="policy",
        network=MLPConfig(hidden=(40, 40), activation="tanh"),
        training=TrainingConfig(steps=4000, batch_size=25),
        dynamics=DynamicsConfig(
            standardise=STANDARDISE, ridge=1e-5, prior=replace(prior, strength=5.0)
        ),
        linearise=LineariseConfig(standardise=STANDARDISE, ridge=1e-6, prior=prior),
        step=StepConfig(kl_max=0.5, min_mult=0.2, max_mult=1.0),
        replay=10,
    ),
    samples=3,
    iterations=16,
)
