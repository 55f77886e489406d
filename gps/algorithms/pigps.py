"""Path integral guided policy search: the global policy is sampled, PI2 improves it locally.

No dynamics are fitted and no cost is differentiated, so that contacts and discontinuous costs do
not matter; it takes more samples than MDGPS.
Source: Y. Chebotar, M. Kalakrishnan, A. Yahya, A. Li, S. Schaal, S. Levine, Path integral guided
policy search, 2016 (arXiv 1610.00529), algorithm 1 (global policy sampling).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from gps.algorithms import pi2, stages
from gps.algorithms.base import (
    GuardedAlgorithm,
    PolicyAlgorithm,
    finish_iteration,
    sample_policy,
)
from gps.algorithms.state import (
    Assessment,
    ConditionState,
    CostModel,
    GPSState,
    ReplayBuffer,
    Report,
    Source,
)
from gps.control.pi2 import PI2Config
from gps.execution import Deferred, Executor, Serial, each, over
from gps.policies.linearise import Linearised
from gps.types import Rollouts


@dataclass(frozen=True, kw_only=True)
class PIGPSConfig(PolicyAlgorithm, GuardedAlgorithm):
    """Guided policy search with PI2 in place of model-based control."""

    sample_from: Literal["controllers", "policy"] = "policy"
    """What is rolled out: the global policy (from the second iteration on), around whose linear
    form PI2 works, or the local controllers, which PI2 then improves by themselves."""
    pi2: PI2Config = field(default_factory=PI2Config)
    """The C-step."""

    def sampling(self, state: GPSState) -> tuple[Deferred[Source], ...]:
        """The policy, once it has been trained, or the local controllers."""
        on_policy = self.sample_from == "policy"
        return self.without_images(sample_policy(state) if on_policy else state.conditions)

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
    config: PIGPSConfig,
    executor: Executor | None = None,
) -> tuple[GPSState, Report]:
    """One iteration: linearise the policy that was sampled, PI2 around it, S-step."""
    ex = executor or Serial()
    it, seed, cond, samples = state.iteration, state.seed, over(state.conditions), over(rollouts)
    on_policy = config.sample_from == "policy" and it > 0
    costs = each(ex, stages.expand_cost, over(state.costs), samples)
    sampled = state.policy if on_policy else None
    linearise, rules = (config.linearise, seed, it), (config.guard, 0.0, on_policy)
    linearised = each(ex, stages.linearise_sampled, sampled, samples, cond, *linearise)
    checks = each(ex, stages.assess_samples, cond, samples, over(costs), *rules)
    new = each(ex, _improve, cond, samples, over(costs), over(linearised), over(checks), config)
    policy = config.train_policy_at(ex, state, rollouts, new)
    return finish_iteration(ex, state, new, policy, cost=costs, linearised=linearised)


def _improve(
    condition: ConditionState,
    rollouts: Rollouts,
    cost: CostModel,
    linearised: Linearised,
    checked: Assessment,
    config: PIGPSConfig,
) -> ConditionState:
    reference = stages.with_noise(linearised.controller, condition, config.exploration)
    return pi2.improve(
        *(condition, rollouts, cost, reference, checked),
        *(config.pi2, config.guard, config.exploration),
        policy_prior=linearised.prior,
        replay=ReplayBuffer.extended(condition.replay, rollouts, config.replay),
    )
