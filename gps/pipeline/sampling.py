"""The stages that touch an agent: rollouts for learning, and rollouts for evaluation."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import numpy as np

from gps.algorithms.diagnosis import CLIP_SLACK
from gps.algorithms.state import Source, WithoutRecordedImages
from gps.costs.base import Cost
from gps.costs.measure import EndpointMeasure
from gps.errors import ConfigError, SampleFailure, ShapeError, SimulationError
from gps.fields import Shape
from gps.pipeline.experiment import AgentConfig
from gps.protocols import (
    Agent,
    Policy,
    acting,
    action_names_of,
    control_range_of,
    image_shape_of,
    records_images,
)
from gps.rng import stream
from gps.types import Array, Layout, Record, Rollouts

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
    runs a local controller next to the robot, and asks for the actions of all others."""
    return acting(policy, records_images=records_images or image_shape_of(agent) is None)


def checked_rollouts(
    agent: Agent, rollouts: object, samples: int, condition: int, images: bool = False
) -> Rollouts:
    """What an agent's `rollout` gave, as promised by its members; for all agents alike.

    images: whether they have to be there. Raises ShapeError for other shapes, another order of the
    state's entries or another condition, ConfigError for actions that were not clipped to the
    agent's control range, SimulationError for what is not finite.
    """
    who = f"{type(agent).__name__}.rollout"
    if not isinstance(rollouts, Rollouts):
        raise ShapeError(f"{who} must return gps.types.Rollouts, got {type(rollouts).__name__}")
    r, N, T = rollouts, samples, agent.T
    nx, no, nu = agent.layout.size, agent.obs_layout.size, agent.nu
    arrays = {"X": r.X, "U": r.U, "obs": r.obs, "noise": r.noise}
    for (name, array), size in zip(arrays.items(), (nx, nu, no, nu), strict=True):
        if array.shape != (N, T, size):
            raise ShapeError(
                f"{who} gave {name} of shape {array.shape} in condition {condition}; the agent "
                f"promises {(N, T, size)}: samples, steps (T) and values of a step"
            )
    if r.layout != agent.layout:
        raise ShapeError(
            f"{who} gave the state entries {_entries(r.layout)}; the agent's layout promises "
            f"{_entries(agent.layout)}"
        )
    if r.condition != condition:
        raise ShapeError(f"{who} gave condition {r.condition} where {condition} was asked for")
    camera = image_shape_of(agent)
    given = None if r.images is None else r.images.shape
    if camera is not None and given != (N, T, *camera) and (images or given is not None):
        raise ShapeError(
            f"{who} gave images of shape {given}; the agent promises {(N, T, *camera)}"
        )
    arrays |= {f"jacobians[{name!r}]": J for name, J in r.jacobians.items()}
    failures: dict[int, SampleFailure] = {}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            for i, t in np.argwhere(~np.isfinite(array.reshape(N, T, -1)).all(axis=2)):
                reason = f"{who} gave {name} that is NaN or infinite"
                failures.setdefault(int(i), SampleFailure(int(i), int(t), reason))
    if failures:
        raise SimulationError(condition, [failures[i] for i in sorted(failures)])
    limits = control_range_of(agent)
    if limits is not None:
        low, high = limits
        slack = CLIP_SLACK * np.maximum(np.abs(low), np.abs(high))
        with np.errstate(invalid="ignore"):
            wrong = np.argwhere((low - slack > r.U) | (high + slack < r.U))
        if len(wrong):
            n, t, j = wrong[0]
            raise ConfigError(
                f"{who} gave {r.U[n, t, j]:g} for {action_names_of(agent)[j]} at t={t}; U must "
                f"hold the actions as applied, within the agent's control range, {low[j]:g} to "
                f"{high[j]:g}"
            )
    return r


def _entries(layout: Layout) -> str:
    return ", ".join(f"{name} ({size})" for name, size in layout.entries)


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
    SimulationError of the last try is raised. The first try that fails is a warning in the log.
    Images are drawn where a policy with images acts, or is trained from these rollouts.
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
            found = agent.rollout(actor, condition, noise, start)
            return checked_rollouts(agent, found, samples, condition, records_images(actor))
        except SimulationError as error:
            if attempt == max_resamples:
                late = any(failure.t > 0 for failure in error.failures)
                if iteration == 0 and len(error.failures) == samples and late:
                    error.add_note(
                        "none of the samples gets to the end under the initial controller: give "
                        "initial smaller gains or less variance, or make the steps shorter, or the "
                        "rollouts (agent.T)"
                    )
                raise
            level = logging.DEBUG if attempt else logging.WARNING  # the next ones fail alike
            log.log(level, "%s; drawing these samples again", error)
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
    found = agent.rollout(actor, condition, zeta, start, test=test)
    rollouts = checked_rollouts(agent, found, samples, condition, records_images(actor))
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
    failed: str = ""
    """Where and why it could not finish."""


def score(
    config: AgentConfig, cost: Cost, measure: EndpointMeasure | None, source: Source, condition: int
) -> Score:
    """How `source.actor` does from one training condition; infinite cost if it cannot finish."""
    try:
        e = evaluate_condition(config, cost, measure, source.actor, condition, 1, 0)
    except SimulationError as error:
        log.debug("evaluation: %s", error)
        failure = error.failures[0]
        return Score(float("inf"), float("inf"), 0.0, f"t={failure.t}: {failure.reason}")
    return Score(float(e.cost[0]), float(e.distance[0]), float(e.success[0]))
