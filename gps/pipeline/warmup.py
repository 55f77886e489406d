"""Compile every kernel once, by running the pipeline itself on a tiny problem."""

from __future__ import annotations

from dataclasses import replace

from gps.pipeline.experiment import AgentConfig
from gps.pipeline.sampling import agent_of


def warm_up(config: AgentConfig | None = None) -> None:
    """Two serial iterations of MDGPS and of PILQR on a tiny point mass; about a second once kernels
    are cached.

    agent: also build its agent, as every worker needs it, and let it compile what it has.
    """
    if config is not None:
        agent = agent_of(config)
        if hasattr(agent, "warm_up"):
            agent.warm_up()
    from gps.agents.point_mass import PointMassConfig
    from gps.algorithms.mdgps import MDGPSConfig
    from gps.algorithms.pilqr import PILQRTrajOptConfig
    from gps.control.initial import HoldConfig
    from gps.costs import ActionCost, StateCost, SumCost, WeightedCost
    from gps.pipeline.experiment import Experiment
    from gps.pipeline.runner import run
    from gps.policies.training import TrainingConfig

    position = StateCost(entry="position", target=(0.0, 0.0), weights=1.0, l2=1.0)
    tiny = Experiment(
        name="warm_up",
        agent=PointMassConfig(T=5, starts=((1.0, 1.0),)),
        cost=SumCost(
            terms=(
                WeightedCost(weight=1.0, cost=ActionCost(weights=0.01)),
                WeightedCost(weight=1.0, cost=position),
            )
        ),
        initial=HoldConfig(position="position", velocity="velocity"),
        algorithm=MDGPSConfig(training=TrainingConfig(steps=10)),
        samples=3,
        iterations=2,
    )
    for experiment in (tiny, replace(tiny, algorithm=PILQRTrajOptConfig())):
        for _ in run(experiment):
            pass
