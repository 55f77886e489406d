"""MDGPS with PILQR as its C-step, around the linearised global policy that was sampled.

Source: Y. Chebotar et al., Combining Model-Based and Model-Free Updates for Trajectory-Centric
Reinforcement Learning, ICML 2017 (arXiv 1703.03078), section 4.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gps.algorithms import pilqr, stages
from gps.algorithms.base import PolicyAlgorithm, sample_policy
from gps.algorithms.exploration import ExplorationConfig
from gps.algorithms.state import (
    Assessment,
    ConditionState,
    CostModel,
    DynamicsModel,
    GPSState,
    Replay,
    Report,
)
from gps.algorithms.step_size import GuardConfig, StepConfig
from gps.control.pilqr import PILQRConfig
from gps.dynamics.linear import DynamicsConfig
from gps.execution import Executor, Serial, each
from gps.policies import MLPConfig, Network
from gps.policies.linearise import LineariseConfig, Linearised
from gps.policies.sgd import SGDConfig
from gps.policies.training import TrainingConfig
from gps.types import Rollouts


@dataclass(frozen=True, kw_only=True)
class MDGPSPILQRConfig(PolicyAlgorithm):
    """On-policy MDGPS whose local updates are those of PILQR.

    From the second iteration on the global policy is rolled out: PILQR weighs samples of the very
    distribution that it improves.
    """

    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    """Fit of the dynamics."""
    pilqr: PILQRConfig = field(default_factory=PILQRConfig)
    """The C-step. With one bound per time step a condition that has nothing left to learn still
    spends its KL, on less noise, and the policy's covariance, which all conditions share, collapses
    before the others have learned. `pilqr.dual.entropy_weight` prevents it: the variance that it
    leaves is about itself over the curvature of the cost."""
    network: Network = field(default_factory=MLPConfig)
    """The global policy."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Its training in every iteration."""
    sgd: SGDConfig = field(default_factory=SGDConfig)
    """How processes share the training."""
    restart: bool | None = None
    """Train a fresh network in every iteration, or continue, so that the policy that acts next
    stays near to the one that acted last; as `MDGPSConfig.restart`."""
    replay: int = 0
    """Rollouts per condition, counting earlier iterations, at whose states the policy is trained on
    the newest controllers' actions; never fewer than the newest ones."""
    linearise: LineariseConfig = field(default_factory=LineariseConfig)
    """Linearisation of the policy."""
    step: StepConfig = field(default_factory=StepConfig)
    """KL bound and range of its multipliers, which follow the residual; `rule` is not used."""
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    """The least noise of the controllers."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """When a model or a controller is not trusted."""

    def sampling(self, state: GPSState) -> tuple[Any, ...]:
        """The policy, once it has been trained."""
        return self.unseen(sample_policy(state))

    def iterate(
        self, state: GPSState, rollouts: Sequence[Any], executor: Executor | None = None
    ) -> tuple[GPSState, Report]:
        """See `iterate`."""
        return iterate(state, rollouts, self, executor)


def iterate(
    state: GPSState,
    rollouts: Sequence[Any],
    config: MDGPSPILQRConfig,
    executor: Executor | None = None,
) -> tuple[GPSState, Report]:
    """One iteration: fit dynamics, linearise the policy that was sampled, PILQR, S-step."""
    ex = executor or Serial()
    it, seed, cond = state.iteration, state.seed, state.conditions
    costs = each(ex, "expand_cost", stages.expand_cost, (state.costs, rollouts))
    models = each(
        ex, "fit_dynamics", stages.fit_dynamics, (rollouts, cond), config.dynamics, seed, it
    )
    policies = (state.policy if it > 0 else None,) * len(cond)
    linearised = each(
        *(ex, "linearise_policy", stages.linearise_sampled, (policies, rollouts, cond)),
        *(config.linearise, seed, it),
    )
    models_of = (cond, rollouts, costs, models, linearised)
    checks = each(ex, "assess", _assess, models_of, it > 0, config)
    new = each(ex, "improve", _improve, (*models_of, checks), config)
    data = each(ex, "targets", stages.targets, (rollouts, new), config.remembers)
    train = (config.training, config.sgd, config.restart, seed, it, 0)
    policy = stages.train_policy_on(ex, state.policy, data, *train)
    report = Report(
        iteration=it,
        conditions=tuple(ex.pick(c, "report") for c in new),
        policy_loss=ex.pick(policy, "loss"),
        models={
            "cost": tuple(costs),
            "dynamics": tuple(models),
            "linearised": tuple(linearised),
        },
    )
    return replace(state, iteration=it + 1, conditions=tuple(new), policy=policy), report


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
        replay=Replay.extended(condition.replay, rollouts, config.replay),
    )
