"""MDGPS with PILQR as its C-step, around the linearised global policy that was sampled.

Source: Y. Chebotar et al., Combining Model-Based and Model-Free Updates for Trajectory-Centric
Reinforcement Learning, ICML 2017 (arXiv 1703.03078), section 4.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gps.algorithms import pilqr, stages
from gps.algorithms.base import (
    FittedAlgorithm,
    PolicyAlgorithm,
    finish_iteration,
    sample_policy,
)
from gps.algorithms.state import (
    Assessment,
    ConditionState,
    CostModel,
    DynamicsModel,
    GPSState,
    ReplayBuffer,
    Report,
    Source,
)
from gps.control.pilqr import PILQRConfig
from gps.execution import Deferred, Executor, Serial, each, over
from gps.policies.linearise import Linearised
from gps.types import Rollouts


@dataclass(frozen=True, kw_only=True)
class MDGPSPILQRConfig(PolicyAlgorithm, FittedAlgorithm):
    """On-policy MDGPS whose local updates are those of PILQR.

    From the second iteration on the global policy is rolled out: PILQR weighs samples of the very
    distribution that it improves. The multipliers of `step` follow the residual; its `rule` is not
    used.
    """

    pilqr: PILQRConfig = field(default_factory=PILQRConfig)
    """The C-step. With one bound per time step a condition that has nothing left to learn still
    uses its KL to reduce its noise, and the policy's covariance, which all conditions share,
    collapses before the others have learned. `pilqr.dual.entropy_weight` prevents it: the remaining
    variance is about the weight over the curvature of the cost."""

    def sampling(self, state: GPSState) -> tuple[Deferred[Source], ...]:
        """The policy, once it has been trained."""
        return self.without_images(sample_policy(state))

    @property
    def min_samples(self) -> int:  # type: ignore[override]
        """Rollouts of a condition that an iteration needs: PI2 compares them."""
        return max(2, super().min_samples)

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
    config: MDGPSPILQRConfig,
    executor: Executor | None = None,
) -> tuple[GPSState, Report]:
    """One iteration: fit dynamics, linearise the policy that was sampled, PILQR, S-step."""
    ex = executor or Serial()
    it, seed, cond, samples = state.iteration, state.seed, over(state.conditions), over(rollouts)
    costs = each(ex, stages.expand_cost, over(state.costs), samples)
    models, state = config.fit_dynamics(ex, state, rollouts)
    sampled = state.policy if it > 0 else None
    linearise = config.linearise, seed, it
    linearised = each(ex, stages.linearise_sampled, sampled, samples, cond, *linearise)
    fitted = (cond, samples, over(costs), over(models), over(linearised))
    checks = each(ex, _assess, *fitted, it > 0, config)
    new = each(ex, _improve, *fitted, over(checks), config)
    policy = config.train_policy_at(ex, state, rollouts, new)
    return finish_iteration(
        ex, state, new, policy, cost=costs, dynamics=models, linearised=linearised
    )


def _assess(
    condition: ConditionState,
    rollouts: Rollouts,
    cost: CostModel,
    dynamics: DynamicsModel,
    linearised: Linearised,
    on_policy: bool,
    config: MDGPSPILQRConfig,
) -> Assessment:
    """The assessment with the linearised policy, which was sampled, as reference."""
    c = stages.with_noise(linearised.controller, condition, config.exploration)
    weight = config.pilqr.dual.entropy_weight
    return stages.assess(
        *(condition, rollouts, cost, dynamics, c, c),
        *(config.guard, config.step, weight, on_policy),
    )


def _improve(
    condition: ConditionState,
    rollouts: Rollouts,
    cost: CostModel,
    dynamics: DynamicsModel,
    linearised: Linearised,
    checked: Assessment,
    config: MDGPSPILQRConfig,
) -> ConditionState:
    """The C-step around the linearised policy."""
    reference = stages.with_noise(linearised.controller, condition, config.exploration)
    return pilqr.improve(
        *(condition, rollouts, cost, dynamics, reference, checked),
        *(config.pilqr, config.step, config.guard, config.exploration),
        policy_prior=linearised.prior,
        replay=ReplayBuffer.extended(condition.replay, rollouts, config.replay),
    )
