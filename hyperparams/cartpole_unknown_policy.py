"""Cart-pole: a neural policy swings PILCO's pole up from starts that it has not seen."""

from dataclasses import replace

from gps.agents import pilco_cartpole
from gps.algorithms import ExplorationConfig, GlobalModelGPSConfig
from gps.hyperparams.cartpole_unknown import experiment as base

experiment = replace(
    base,
    description="Cart-pole swing-up of PILCO, unknown dynamics, a neural policy from four starts",
    agent=pilco_cartpole(spread=0.1, n_test=20),
    algorithm=GlobalModelGPSConfig(replay=8, exploration=ExplorationConfig(floor=0.02)),
    iterations=5,
)
