"""Acrobot: a model of all rollouts so far swings two links up with a weak motor at the elbow."""

from dataclasses import replace

from gps.agents import acrobot
from gps.algorithms import GlobalModelConfig
from gps.control import OpenLoopConfig
from gps.hyperparams.acrobot import experiment as base

experiment = replace(
    base,
    description="Acrobot swing-up, unknown dynamics, one rollout at a time",
    agent=replace(acrobot(), conditions=acrobot().conditions[:1]),
    initial=OpenLoopConfig(variance=4.0),
    algorithm=GlobalModelConfig(),
    samples=1,
    iterations=12,
)
