"""Trajectory optimisation under unknown dynamics: local controllers only.

Source: S. Levine, P. Abbeel, Learning Neural Network Policies with Guided Policy Search under
Unknown Dynamics, NIPS 2014, section 3: fitted linear-Gaussian dynamics and a KL trust region
around the previous controller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gps.algorithms import stages
from gps.algorithms.base import FittedAlgorithm, finish_iteration
from gps.algorithms.state import (
    Assessment,
    ConditionState,
    CostModel,
    DynamicsModel,
    GPSState,
    Report,
)
from gps.control.dual import DualConfig
from gps.execution import Deferred, Executor, Serial, each, over
from gps.types import Rollouts


@dataclass(frozen=True, kw_only=True)
class TrajOptConfig(FittedAlgorithm):
    """Trajectory optimisation with fitted dynamics, one step size per condition."""

    dual: DualConfig = field(default_factory=DualConfig)
    """Search for the dual variable of the KL bound."""

    def iterate(
        self,
        state: GPSState,
        rollouts: Sequence[Deferred[Rollouts]],
        executor: Executor | None = None,
    ) -> tuple[GPSState, Report]:
        """See `iterate`."""
        return iterate(state, rollouts, self, executor)


def iterate(
    state: GPSState,
    rollouts: Sequence[Deferred[Rollouts]],
    config: TrajOptConfig,
    executor: Executor | None = None,
) -> tuple[GPSState, Report]:
    """One iteration: expand costs, fit dynamics, set the steps, improve the controllers."""
    ex = executor or Serial()
    it, cond, samples = state.iteration, over(state.conditions), over(rollouts)
    costs = each(ex, stages.expand_cost, over(state.costs), samples)
    models, state = config.fit_dynamics(ex, state, rollouts)
    rules = config.guard, config.step, config.dual.entropy_weight
    checks = each(ex, stages.assess_own, cond, samples, over(costs), over(models), *rules)
    mults = ex.call(stages.set_steps, checks, config.step, config.guard, it, False, False)
    m = over(range(len(checks)))
    new = each(ex, _improve, cond, over(costs), over(models), over(checks), mults, m, config)
    return finish_iteration(ex, state, new, cost=costs, dynamics=models)


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
        *(condition, cost, dynamics, condition.controller, None, None, checked, mults[m]),
        *(config.step.kl_max, config.dual, config.exploration),
    )
