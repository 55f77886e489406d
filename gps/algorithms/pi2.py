"""Trajectory optimisation by PI2: controllers improved from sampled costs alone, without a model.

Source: E. Theodorou, J. Buchli, S. Schaal, A generalized path integral control approach to
reinforcement learning, JMLR 2010, with the temperature and the covariance of Y. Chebotar et al.,
Path integral guided policy search, 2016 (arXiv 1610.00529), section III.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from gps.algorithms import stages
from gps.algorithms.base import GuardedAlgorithm, finish_iteration
from gps.algorithms.exploration import ExplorationConfig
from gps.algorithms.state import (
    Assessment,
    ConditionState,
    CostModel,
    GPSState,
    Proposal,
    ReplayBuffer,
    Report,
)
from gps.algorithms.step_size import GuardConfig
from gps.control import pi2
from gps.control.pi2 import PI2Config
from gps.execution import Deferred, Executor, Serial, each, over
from gps.policies.linearise import PolicyPrior
from gps.types import LinearGaussianController, Rollouts


@dataclass(frozen=True, kw_only=True)
class PI2TrajOptConfig(GuardedAlgorithm):
    """Trajectory optimisation by PI2; for costs without gradient, and with many samples.

    An update that the guard undoes shrinks the KL of the next one.
    """

    pi2: PI2Config = field(default_factory=PI2Config)
    """The update."""

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
    config: PI2TrajOptConfig,
    executor: Executor | None = None,
) -> tuple[GPSState, Report]:
    """One iteration: costs of the samples, then PI2, every condition by itself."""
    ex = executor or Serial()
    cond, samples = over(state.conditions), over(rollouts)
    costs = each(ex, stages.expand_cost, over(state.costs), samples)
    checks = each(ex, stages.assess_samples, cond, samples, over(costs), config.guard)
    new = each(ex, _improve, cond, samples, over(costs), over(checks), config)
    return finish_iteration(ex, state, new, cost=costs)


def _improve(
    condition: ConditionState,
    rollouts: Rollouts,
    cost: CostModel,
    checked: Assessment,
    config: PI2TrajOptConfig,
) -> ConditionState:
    c = condition.controller
    rules = config.pi2, config.guard, config.exploration
    return improve(condition, rollouts, cost, c, checked, *rules)


def improve(
    condition: ConditionState,
    rollouts: Rollouts,
    cost: CostModel,
    reference: LinearGaussianController,
    checked: Assessment,
    config: PI2Config,
    guard: GuardConfig,
    exploration: ExplorationConfig,
    policy_prior: PolicyPrior | None = None,
    replay: ReplayBuffer | None = None,
) -> ConditionState:
    """One C-step by PI2 around `reference`, whose gains stay; with the guard's fall-backs.

    The KL bound shrinks by `guard.shrink` when an update is undone, and recovers as fast.
    """
    mult = condition.step_mult
    mult = mult * guard.shrink if checked.rejected else min(mult / guard.shrink, 1.0)
    bound = max(mult * config.kl_max, 1e-6)

    def propose(reference: LinearGaussianController) -> Proposal:
        update = replace(config, kl_max=bound)
        result = pi2.update(reference, rollouts.X, rollouts.U, cost.l, update)
        return Proposal(
            controller=stages.with_noise(result.controller, condition, exploration),
            predicted=float(result.weights[0] @ cost.l.sum(axis=1)),
            kl=float(result.kl.mean()),
            eta=float(result.temperature.mean()),
            search=result,
        )

    return stages.accept_or_reject(
        condition,
        reference,
        propose,
        checked,
        mult,
        bound,
        policy_prior=policy_prior,
        replay=replay,
    )
