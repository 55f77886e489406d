"""The stages that touch an agent: rollouts for learning, and rollouts for evaluation."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import numpy as np

from gps.algorithms.state import Source, WithoutRecordedImages
from gps.costs.base import Cost
from gps.costs.measure import EndpointMeasure
from gps.errors import SimulationError
from gps.fields import Shape
from gps.pipeline.experiment import AgentConfig
from gps.protocols import Agent, Policy, acting, image_shape_of
from gps.rng import stream
from gps.types import Array, Record, Rollouts

log = logging.getLogger(__name__)


class _Agents(threading.local):
    """Agents by configuration; each thread has its own, as agents write into their own arrays."""

    def __init__(self) -> None:
        self.of = lru_cache(maxsize=4)(lambda config: config.build())


_agents = _Agents()


def agent_of(config: AgentConfig) -> Agent:
    """The agent of a configuration; built once in every thread, since models load slowly.

    Agents keep no state between rollouts, so using one again changes no result.
    """
    agent: Agent = _agents.of(config)
    return agent


def _actor(agent: Agent, policy: Policy, records_images: bool) -> Policy:
    """The policy as it acts in rollouts. An agent without cameras gets it as it is: a remote one
    runs a local controller beside the robot, and asks for the actions of all others."""
    return acting(policy, records_images=records_images or image_shape_of(agent) is None)


def rollout(
    config: AgentConfig,
    source: Source,
    condition: int,
    samples: int,
    seed: int,
    iteration: int,
    max_resamples: int,
) -> Rollouts:
    """`samples` rollouts of one training condition; `source.actor` acts.

    A sample whose simulation fails is drawn again with fresh noise, `max_resamples` times; then the
    SimulationError of the last try is raised. Images are drawn where a policy with images acts, or
    is trained from these rollouts.
    """
    agent = agent_of(config)
    actor = _actor(agent, source.actor, not isinstance(source, WithoutRecordedImages))
    attempts = [0] * samples
    for attempt in range(max_resamples + 1):
        noise = np.empty((samples, agent.T, agent.nu))
        start = np.empty((samples, agent.n_start))
        for n in range(samples):
            address = (iteration, condition, n, attempts[n])
            noise[n] = stream(seed, "noise", *address).standard_normal(noise[n].shape)
            start[n] = stream(seed, "start", *address).standard_normal(agent.n_start)
        try:
            return agent.rollout(actor, condition, noise, start)
        except SimulationError as error:
            if attempt == max_resamples:
                raise
            log.warning("%s; drawing these samples again", error)
            for failure in error.failures:
                attempts[failure.sample] += 1
    raise AssertionError("unreachable")


@dataclass(frozen=True, eq=False)
class Evaluation(Record):
    """Rollouts of one policy from one condition, judged."""

    condition: int
    cost: Annotated[Array, Shape("N")]
    """Sum over the steps."""
    distance: Annotated[Array, Shape("N")]
    """By the experiment's measure; NaN without one."""
    success: Annotated[Array, Shape("N")]
    """1 or 0; NaN without a measure."""
    rollouts: Rollouts


def evaluate_condition(
    config: AgentConfig,
    cost: Cost,
    measure: EndpointMeasure | None,
    policy: Policy,
    condition: int,
    samples: int,
    seed: int,
    noise: bool = False,
    test: bool = False,
) -> Evaluation:
    """Roll out `policy` from one condition, without exploration noise unless asked for.

    Start states are disturbed as in training when `samples` is above 1; a single sample starts
    at the condition itself. The rollouts have images only where the policy needs them. Raises
    SimulationError.
    """
    agent = agent_of(config)
    kind = "test" if test else "train"
    zeta = np.zeros((samples, agent.T, agent.nu))
    start = np.zeros((samples, agent.n_start))
    for n in range(samples):
        if noise:
            zeta[n] = stream(seed, f"evaluation noise {kind}", condition, n).standard_normal(
                zeta[n].shape
            )
        if samples > 1:
            start[n] = stream(seed, f"evaluation start {kind}", condition, n).standard_normal(
                agent.n_start
            )
    actor = _actor(agent, policy, False)
    rollouts = agent.rollout(actor, condition, zeta, start, test=test)
    total = cost.evaluate(rollouts).l.sum(axis=1)
    distance = success = np.full(samples, np.nan)
    if measure is not None:
        distance, success = measure.evaluate(rollouts)
    return Evaluation(condition, total, distance, np.asarray(success, dtype=float), rollouts)


@dataclass(frozen=True)
class Score:
    """A noise-free rollout in numbers."""

    cost: float
    distance: float
    success: float


def score(
    config: AgentConfig, cost: Cost, measure: EndpointMeasure | None, source: Source, condition: int
) -> Score:
    """How `source.actor` does from one training condition; infinite cost if it cannot finish."""
    try:
        e = evaluate_condition(config, cost, measure, source.actor, condition, 1, 0)
    except SimulationError as error:
        log.warning("evaluation: %s", error)
        return Score(float("inf"), float("inf"), 0.0)
    return Score(float(e.cost[0]), float(e.distance[0]), float(e.success[0]))
