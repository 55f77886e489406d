"""Pendulum: as `pendulum_unknown`, by a model of all rollouts so far, one rollout at a time."""

from dataclasses import replace

from gps.agents import pendulum
from gps.algorithms import GlobalModelConfig
from gps.control import OpenLoopConfig
from gps.hyperparams.pendulum_unknown import experiment as base

experiment = replace(
    base,
    description="Pendulum swing-up, unknown dynamics, one rollout at a time",
    agent=replace(pendulum(), conditions=pendulum().conditions[:1]),
    initial=OpenLoopConfig(variance=1.0),
    algorithm=GlobalModelConfig(),
    samples=1,
    iterations=6,
)
