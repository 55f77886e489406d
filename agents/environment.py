"""Any agent of the toolkit as an environment for reinforcement learning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from gps.errors import ConfigError
from gps.extras import needed_by
from gps.protocols import BuildsAgent, image_shape_of

if TYPE_CHECKING:
    from gps.agents.gymnasium import AgentEnv, Measure, StepCost


def as_gymnasium(
    agent: Any,
    cost: StepCost,
    condition: int | None = None,
    *,
    test: bool = False,
    measure: Measure | None = None,
    action_bound: float = 10.0,
    failure_cost: float = 0.0,
    dtype: DTypeLike = np.float64,
    render_mode: str | None = None,
    width: int = 320,
    height: int = 240,
    camera: str | int = -1,
) -> AgentEnv:
    """A gymnasium environment with the dynamics, starts, observations and cost of an agent.

    The same actions from the same start give the states of `Agent.rollout`, and the rewards are
    `-l[t]` of the cost: T steps sum to minus the cost of the rollout. Then the episode is
    truncated. The observation after its last action is that of state T, which follows from it and
    which no rollout records or charges.

    agent: an agent, or a configuration whose `build()` makes one; the environment steps a
    simulation of its own, that of a slowed agent (`RealTime`) at full speed. cost, measure: as of
    an experiment; a measure puts `distance` and `success` of state T-1 into the last info.
    condition, test: where episodes start; without a condition each reset draws one. The start is
    disturbed as the agent's configuration says.
    Every info holds `condition`, `test` and `state` (nx,).
    Actions have the units and limits of the motors, to which they are clipped; many learners
    expect gymnasium.wrappers.RescaleAction(env, -1.0, 1.0). action_bound: end of the action space,
    in the action's unit, where a motor has no limit; there it only says what is to be tried,
    actions beyond it are applied as they are. failure_cost: taken off the reward of a step whose
    simulation fails; at 0 an early failure saves the cost of the steps that are left.
    dtype: float64 or float32, of observations and actions; the agent itself computes in float64.
    render_mode: "rgb_array", where the agent can `render`, with width, height (pixels) and camera.

    Each step evaluates the cost of T steps, derivatives included, and keeps one of the values: a
    cost's ramp or way-points depend on t and T. This is exact for costs whose step t depends on
    the steps up to t alone, and takes most of the time of an environment's step.

    Raises ConfigError: gymnasium is missing, the agent cannot be stepped (it has no
    `simulation()`), cost or measure do not fit, or an argument is out of range; ShapeError for a
    condition that does not exist.
    """
    with needed_by("as_gymnasium"):
        from gps.agents.gymnasium import AgentEnv, StepCost
    if isinstance(cost, type) or not isinstance(cost, StepCost):
        raise ConfigError(f"as_gymnasium: cost must be one of gps.costs or alike, got {cost!r}")
    agent = agent.build() if isinstance(agent, BuildsAgent) else agent
    if image_shape_of(agent) is not None:
        raise ConfigError(
            "as_gymnasium: this agent has cameras, and an environment shows no images; give it "
            "without them, and what they show as entries of the observation instead: "
            "replace(agent, cameras=(), obs=(...))"
        )
    return AgentEnv(
        agent,
        cost,
        condition,
        test=test,
        measure=measure,
        action_bound=action_bound,
        failure_cost=failure_cost,
        dtype=dtype,
        render_mode=render_mode,
        width=width,
        height=height,
        camera=camera,
    )
