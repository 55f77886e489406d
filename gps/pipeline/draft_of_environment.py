"""The draft of an experiment in an environment that has starts and a reward of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from gps.errors import ConfigError
from gps.pipeline.checking import visual_of
from gps.pipeline.draft import CONDITIONS, TESTS, Draft, each
from gps.pipeline.experiment import Experiment, initial_state
from gps.pipeline.source_text import Argument, Call
from gps.protocols import Agent, control_limits_of, control_range_of
from gps.types import Array

_ENV_T, _ENV_DURATION = (100, 400), 5.0
"""Least and most steps of a rollout in an environment, and its duration in s in between. Within
100 steps of 8 ms it pays a walker to throw itself forward, since it falls after them only."""
_FALLS, _FALL_DURATION = 4, 2.0
"""Rollouts where half of the first samples fall: in times as long as they stand, and in s; of the
two the longer one."""
_DM_STEP, _DM_T = 0.04, 100
"""Duration of a step of dm_control's tasks, in s, which take actions up to a hundred times a second
for 10 s or more, and steps of a rollout."""


def of_env(env: str) -> Draft:
    """The draft for an environment of Gymnasium's, `Reacher-v5`; raises ConfigError."""
    import gymnasium

    from gps.agents import GymnasiumConfig

    config, dt = GymnasiumConfig(env=env), None
    try:
        agent: Agent = config.build()
    except ConfigError as error:
        if "GymnasiumConfig.dt" not in str(error):
            raise
        dt = 0.05
        agent = replace(config, dt=dt).build()
    limit = gymnasium.spec(env.rpartition(":")[2]).max_episode_steps  # its module is imported now
    starts = [
        Call("random_starts", (Argument(n), Argument(0, "seed"), *purpose))
        for n, purpose in ((CONDITIONS, (Argument("training", "purpose"),)), (TESTS, ()))
    ]

    def draft(T: int, why: str) -> Draft:
        options = (
            Argument(env, "env"),
            Argument(T, "T", above=why),
            *([Argument(dt, "dt", above="The environment has no unit of time.")] if dt else []),
            Argument((*agent.layout.names, "reward"), "state"),
            Argument(starts[0], "conditions", above="Starts that the environment draws."),
            Argument(starts[1], "test_conditions"),
            Argument(
                "end", "termination", above="Where it ends the episode, there is no more reward."
            ),
        )
        title = f"{env}: the environment's own reward"
        made = _environment(title, agent, Call("GymnasiumConfig", options, split=True))
        return made if not limit or limit == T else replace(made, episode=limit)

    def shorter(experiment: Experiment) -> Draft | None:
        ended = _ended(experiment)
        if ended is None:
            return None
        early = f"{why} Half of the first samples would end by step {ended}."
        enough = max(20, ended * _FALLS, round(_FALL_DURATION / agent.dt))
        return draft(min(T, enough), early)

    T = int(np.clip(round(_ENV_DURATION / agent.dt), *_ENV_T))
    T = min(limit or T, T)
    why = f"The environment's own limit is {limit}." if limit else "It has no limit of its own."
    return replace(draft(T, why), shorter=shorter)


def _ended(experiment: Experiment) -> int | None:
    """The step by which half of the first samples have been terminated, None if fewer are."""
    config: Any = experiment.agent
    agent = replace(config, obs=("terminated",)).build()
    policy = initial_state(experiment, agent).conditions[0].actor
    noise = np.random.default_rng(0).standard_normal((experiment.samples, agent.T, agent.nu))
    over = agent.rollout(policy, 0, noise).obs[:, :, 0] > 0
    step = int(np.median(np.where(over.any(axis=1), over.argmax(axis=1), agent.T)))
    return step if step < agent.T else None


def _half_range(agent: Agent) -> Array:
    """Half of each action's range, (nu,); 1 without limits."""
    low, high = control_limits_of(agent)
    return np.where(np.isfinite(high - low), (high - low) / 2, 1.0)


def _environment(title: str, agent: Agent, call: Call) -> Draft:
    """A draft for an environment that has starts and a reward of its own."""
    half = _half_range(agent)
    visual = visual_of(agent)
    notes = [f"states of {agent.layout.size}, observations of {agent.obs_layout.size} numbers"]
    limits = control_range_of(agent)
    if limits is not None:
        ends = [f"{a:g}..{b:g}" for a, b in zip(*limits, strict=True)]
        notes.append(f"actions within {', '.join(dict.fromkeys(ends))}; {agent.nu} of them")
    if visual is not None:
        from gps.pipeline.robot import Robot

        notes += ["", "its model has", "", *Robot(visual.model).inventory()]
    holds = [Argument(Call("HoldConfig"))] if "joint_pos" in agent.layout.names else []
    noise = Call.of("OpenLoopConfig", variance=each((0.3 * half) ** 2))
    return Draft(
        title=title,
        notes="\n".join(notes),
        values=(),
        agent=call,
        cost=(
            Argument(
                Call("FittedRewardCost"),
                above="Minus the environment's reward, with derivatives from the samples. A reward "
                "that is known is better written as a cost: StateCost, ActionCost, torch_cost.",
            ),
            Argument(
                Call.of("ActionCost", weights=each(2 * 0.01 / half**2)),
                above="Keeps the actions within what the samples have tried.",
            ),
        ),
        measure=None,
        initial=(
            *holds,
            Argument(noise, above="Noise of 30 % of half of each action's range, no feedback."),
        ),
        samples=10,
        iterations=20,
    )


def of_dm(task: str) -> Draft:
    """The draft for a task of dm_control's, `cartpole:swingup`; raises ConfigError."""
    from gps import agents

    domain, colon, name = task.partition(":")
    if not (domain and colon and name):
        raise ConfigError(f"--dm must look like cartpole:swingup, got {task!r}")
    config = agents.DMControlConfig(domain=domain, task=name)
    agent: Agent = config.build()
    repeat = max(1, round(_DM_STEP / agent.dt))
    state = (*(n for n in agent.layout.names), "reward")
    starts = [
        Call("random_episodes", (Argument(n), Argument(0, "seed"), *purpose))
        for n, purpose in ((CONDITIONS, (Argument("training", "purpose"),)), (TESTS, ()))
    ]
    options = (
        Argument(domain, "domain"),
        Argument(name, "task"),
        Argument(
            repeat,
            "repeat",
            above=f"An action is held for {repeat * agent.dt:g} s, {repeat} of the task's steps.",
        ),
        Argument(_DM_T, "T", above=f"{_DM_T * repeat * agent.dt:g} s; an episode is 1000 steps."),
        Argument(state, "state"),
        Argument(starts[0], "conditions", above="Starts that the task draws."),
        Argument(starts[1], "test_conditions"),
    )
    title = f"{task} of dm_control, the task's own reward"
    return _environment(title, agent, Call("DMControlConfig", options, split=True))
