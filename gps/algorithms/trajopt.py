"""Trajectory optimisation under unknown dynamics: local controllers only.

Source: S. Levine, P. Abbeel, Learning Neural Network Policies with Guided Policy Search under
Unknown Dynamics, NIPS 2014, section 3: fitted linear-Gaussian dynamics and a KL trust region
around the previous controller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gps.algorithms import stages
from gps.algorithms.base import LocalAlgorithm
from gps.algorithms.exploration import ExplorationConfig
from gps.algorithms.state import (
    Assessment,
    ConditionState,
    CostModel,
    DynamicsModel,
    GPSState,
    Report,
)
from gps.algorithms.step_size import GuardConfig, StepConfig, new_multiplier
from gps.control.dual import DualConfig
from gps.dynamics.linear import DynamicsConfig
from gps.execution import Executor, Serial, each


@dataclass(frozen=True, kw_only=True)
class TrajOptConfig(LocalAlgorithm):
    """Trajectory optimisation with fitted dynamics, one step size per condition."""

    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    """Fit of the dynamics."""
    dual: DualConfig = field(default_factory=DualConfig)
    """Search for the dual variable of the KL bound."""
    step: StepConfig = field(default_factory=StepConfig)
    """KL bound and its adaptation."""
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    """The least noise of the controllers."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """When a model or a controller is not trusted."""

    def iterate(
        self, state: GPSState, rollouts: Sequence[Any], executor: Executor | None = None
    ) -> tuple[GPSState, Report]:
        """See `iterate`."""
        return iterate(state, rollouts, self, executor)


def iterate(
    state: GPSState,
    rollouts: Sequence[Any],
    config: TrajOptConfig,
    executor: Executor | None = None,
) -> tuple[GPSState, Report]:
    """One iteration: expand costs, fit dynamics, set the steps, improve the controllers."""
    ex = executor or Serial()
    it, seed, cond = state.iteration, state.seed, state.conditions
    costs = each(ex, "expand_cost", stages.expand_cost, (state.costs, rollouts))
    models = each(
        ex, "fit_dynamics", stages.fit_dynamics, (rollouts, cond), config.dynamics, seed, it
    )
    rules = config.guard, config.step, config.dual.entropy_weight
    checks = each(ex, "assess", stages.assess_own, (cond, rollouts, costs, models), *rules)
    rule = (adjust_steps, checks, config.step, config.guard, it)
    mults = ex.call("set_steps", stages.set_steps, *rule)
    steps = ((mults,) * len(cond), range(len(cond)))
    new = each(ex, "improve", _improve, (cond, costs, models, checks, *steps), config)
    report = Report(
        iteration=it,
        conditions=tuple(ex.pick(c, "report") for c in new),
        policy_loss=float("nan"),
        models={"cost": tuple(costs), "dynamics": tuple(models)},
    )
    return replace(state, iteration=it + 1, conditions=tuple(new)), report


def _improve(
    condition: ConditionState,
    cost: CostModel,
    dynamics: DynamicsModel,
    checked: Assessment,
    mults: Sequence[float],
    m: int,
    config: TrajOptConfig,
) -> ConditionState:
    """The C-step around the sampled controller."""
    return stages.improve(
        condition,
        cost,
        dynamics,
        condition.controller,
        None,
        None,
        checked,
        mults[m],
        config.step.kl_max,
        config.dual,
        config.exploration,
    )


def adjust_steps(checks: Sequence[Assessment], step: StepConfig, guard: GuardConfig) -> list[float]:
    """The step multiplier of every condition for this iteration, each by itself."""
    return [_adjust_step(check, step, guard) for check in checks]


def _adjust_step(check: Assessment, step: StepConfig, guard: GuardConfig) -> float:
    if check.rejected:
        return max(check.step_mult * guard.shrink, step.min_mult)
    mult = check.step_mult
    if check.updated:
        mult = new_multiplier(mult, check.kept, step)
    if not check.trusted:
        mult = max(min(mult, check.step_mult) * guard.shrink, step.min_mult)
    return mult
