"""Compile the kernels that an experiment needs: two iterations of its algorithm on a tiny agent."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

from gps.agents.point_mass import PointMassConfig
from gps.algorithms.state import Source
from gps.control.initial import HoldConfig
from gps.costs import ActionCost, StateCost, SumCost, WeightedCost
from gps.errors import ConfigError
from gps.execution import Executor, Serial, stage
from gps.kept_files import bring, contents
from gps.pipeline import sampling
from gps.pipeline.experiment import Experiment, initial_state
from gps.protocols import WarmsUp

log = logging.getLogger(__name__)


def prepare(executor: Executor, experiment: Experiment) -> None:
    """Have every worker warm up; two of them compile at once, where nothing is compiled yet."""
    if executor.workers > 1 and "dynamics" in vars(experiment.algorithm):
        executor.gather(
            [executor.call(compile_part, experiment, part, condition=part) for part in range(2)]
        )
    # once for each worker: configurations, which go with every task, have the files' digests only
    files = contents(experiment) if executor.concurrent else {}
    executor.prepare(partial(warm_up, experiment, files))


@stage("prepare")
def compile_part(experiment: Experiment, part: int) -> None:
    """Compile the kernels of the algorithm. Part 1 leaves out those of the dynamics' prior, and so
    has done some of the others when part 0 comes to them, and finds them on disk."""
    try:
        tiny = _tiny(experiment)
        if part:
            algorithm: Any = tiny.algorithm
            dynamics = replace(algorithm.dynamics, prior=None)
            tiny = replace(tiny, algorithm=replace(algorithm, dynamics=dynamics))
        _iterate(tiny)
    except Exception as error:
        log.debug("the first tasks compile what they need: %s", error)


def warm_up(
    experiment: Experiment, files: Mapping[str, Mapping[str, bytes]] = MappingProxyType({})
) -> None:
    """Build the agent, which every worker needs, and compile the kernels, or load them.

    files: contents of those that the experiment is made of, as `gps.kept_files.bring` takes them.
    What is left out, since an algorithm of the user's does not work on the tiny agent, is compiled
    by the first task that needs it.
    """
    bring(files)
    agent = sampling.agent_of(experiment.agent)
    if isinstance(agent, WarmsUp):
        agent.warm_up()
    compile_part(experiment, 0)


def _tiny(experiment: Experiment) -> Experiment:
    """The same algorithm on a point mass with five steps, with as little training as it can."""
    position = StateCost(entry="position", target=(0.0, 0.0), weights=1.0, l2=1.0)
    costs = ActionCost(weights=0.01), position
    agent = PointMassConfig(T=5, starts=((1.0, 1.0),))
    algorithm: Any = experiment.algorithm
    options = vars(algorithm)
    changes: dict[str, Any] = {}
    if "model" in options:  # what is planned with
        changes["model"] = agent
    if "training" in options:
        changes["training"] = replace(options["training"], steps=10)
    tiny = Experiment(
        name="warm_up",
        agent=agent,
        cost=SumCost(terms=tuple(WeightedCost(weight=1.0, cost=cost) for cost in costs)),
        initial=HoldConfig(position="position", velocity="velocity"),
        algorithm=replace(algorithm, **changes),
        samples=max(3, algorithm.min_samples),
    )
    try:
        tiny.validate()
    except ConfigError:  # the network needs images, or entries that the point mass does not have
        if "network" not in options:
            raise
        from gps.policies import MLPConfig

        tiny = replace(tiny, algorithm=replace(tiny.algorithm, network=MLPConfig()))  # type: ignore[type-var]
    return tiny


def _iterate(tiny: Experiment) -> None:
    """Two iterations: the second one has a prior from the first, and perhaps a policy."""
    agent = sampling.agent_of(tiny.agent)
    state = initial_state(tiny, agent)
    for _ in range(2):
        rollouts = tuple(
            sampling.rollout(
                *(tiny.agent, source, m, tiny.samples),
                *(tiny.seed, state.iteration, tiny.max_resamples),
            )
            for m, source in enumerate(tiny.algorithm.sampling(state))
        )
        state, _ = tiny.algorithm.iterate(state, rollouts, Serial())
    for m, condition in enumerate(state.conditions):
        judged: list[Source] = [condition, *([] if state.policy is None else [state.policy])]
        for source in judged:
            sampling.score(tiny.agent, tiny.cost, tiny.measure, source, m)
