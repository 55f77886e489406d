"""Mirror descent guided policy search (MDGPS).

The C-step improves every local controller under a KL bound around the linearised global policy;
the S-step fits the policy to the improved controllers.
Source: W. Montgomery, S. Levine, Guided Policy Search as Approximate Mirror Descent, NIPS 2016
(arXiv 1607.04614), algorithm 2 and section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from gps.algorithms import stages
from gps.algorithms.base import (
    FittedAlgorithm,
    PolicyAlgorithm,
    finish_iteration,
    sample_policy,
)
from gps.algorithms.state import (
    Assessment,
    ConditionState,
    ConditionUpdate,
    ControllerOrPolicy,
    CostModel,
    DynamicsModel,
    GPSState,
    PolicyState,
    ReplayBuffer,
    Report,
    Source,
)
from gps.algorithms.step_size import adjust_steps
from gps.control.dual import DualConfig
from gps.costs.base import Cost
from gps.errors import ConfigError
from gps.execution import Deferred, Executor, Serial, each, over
from gps.policies.linearise import Linearised
from gps.policies.training import TrainingData
from gps.types import Rollouts


@dataclass(frozen=True, kw_only=True)
class MDGPSConfig(PolicyAlgorithm, FittedAlgorithm):
    """MDGPS with fitted dynamics and one step size for all conditions."""

    sample_from: Literal["controllers", "policy"] = "controllers"
    """What is rolled out: the local controllers ("off-policy") or the global policy
    ("on-policy", from the second iteration on)."""
    dual: DualConfig = field(default_factory=DualConfig)
    """Search for the dual variable of the KL bound."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step.rule == "mc" and self.sample_from == "controllers":
            raise ConfigError(
                "MDGPSConfig.step.rule 'mc' compares sampled costs of the policy: it needs "
                "sample_from='policy'; with 'controllers' use rule 'laplace'"
            )

    def sampling(self, state: GPSState) -> tuple[Deferred[Source], ...]:
        """The local controllers, or the policy once it has been trained: in place of all of them
        by `sample_from`, or of one whose updates did not start from it by `guard.policy_trial`."""
        if self.sample_from == "policy":
            return self.without_images(sample_policy(state))
        cond, policy = state.conditions, state.policy
        if state.iteration == 0 or policy is None:
            return self.without_images(cond)
        return self.without_images([ControllerOrPolicy(c, policy) for c in cond])

    def iterate(
        self,
        state: GPSState,
        rollouts: Sequence[Deferred[Rollouts]],
        executor: Executor | None = None,
    ) -> tuple[GPSState, Report]:
        """See `iterate`."""
        return iterate(state, rollouts, self, executor)

    @property
    def keeps_training(self) -> bool:
        """Whether an asynchronous run repeats the training while no new rollouts come."""
        return self.restart is False

    @property
    def trainers(self) -> int:
        """Processes that train the policy at once."""
        return 1 if self.sgd.mode == "serial" else self.sgd.shards

    def check_asynchronous(self) -> None:
        """ConfigError when the settings need all conditions at once."""
        if self.sample_from != "controllers":
            raise ConfigError(
                "MDGPSConfig.sample_from='policy' cannot run asynchronously: the policy that was "
                "sampled has been replaced when the update starts; use 'controllers'"
            )
        if self.dynamics.min_samples < 2:
            raise ConfigError(
                "MDGPSConfig.dynamics.prior=GlobalPriorConfig cannot run asynchronously: its model "
                "is of the rollouts of all conditions at once; use a mixture prior"
            )
        if self.sgd.mode == "asynchronous":
            raise ConfigError(
                "MDGPSConfig.sgd.mode='asynchronous' cannot be used in an asynchronous run: it is "
                "supervised by the process that supervises the conditions, which would wait; "
                "use another mode"
            )

    def update_condition(
        self,
        condition: Deferred[ConditionState],
        rollouts: Deferred[Rollouts],
        cost: Cost,
        policy: Deferred[PolicyState] | None,
        at: tuple[int, int, int],
        executor: Executor,
    ) -> ConditionUpdate:
        """See `update_condition`."""
        return update_condition(condition, rollouts, cost, policy, self, at, executor)

    def train(
        self,
        policy: Deferred[PolicyState],
        data: Sequence[Deferred[TrainingData]],
        seed: int,
        version: int,
        executor: Executor,
    ) -> Deferred[PolicyState]:
        """A handle of the policy trained on `data`; `version` counts the trainings."""
        return self.train_policy(executor, policy, data, seed, version, 0)


def iterate(
    state: GPSState,
    rollouts: Sequence[Deferred[Rollouts]],
    config: MDGPSConfig,
    executor: Executor | None = None,
) -> tuple[GPSState, Report]:
    """One iteration: fit dynamics, linearise the policy, set the step, C-step, S-step."""
    ex = executor or Serial()
    it, seed, cond, samples = state.iteration, state.seed, over(state.conditions), over(rollouts)
    costs = each(ex, stages.expand_cost, over(state.costs), samples)
    models, state = config.fit_dynamics(ex, state, rollouts)
    policy = state.policy
    if it == 0:  # there is no policy to be near to yet: start from the initial controllers
        policy = config.train_policy_at(ex, state, rollouts, state.conditions)
        state = replace(state, policy=policy)
    assert policy is not None
    linearise = config.linearise, seed, it
    linearised = each(ex, stages.linearise_policy, policy, samples, cond, *linearise)
    on_policy = config.sample_from == "policy" and it > 0
    fitted = (cond, samples, over(costs), over(models), over(linearised))
    checks = each(ex, _assess, *fitted, on_policy, config)
    mults = ex.call(stages.set_steps, checks, config.step, config.guard, it, True, False)
    m = over(range(len(checks)))
    new = each(ex, _improve, *fitted, over(checks), mults, m, config, True)
    policy = config.train_policy_at(ex, state, rollouts, new, 1)
    return finish_iteration(
        ex, state, new, policy, cost=costs, dynamics=models, linearised=linearised
    )


def update_condition(
    condition: Deferred[ConditionState],
    rollouts: Deferred[Rollouts],
    cost: Cost,
    policy: Deferred[PolicyState] | None,
    config: MDGPSConfig,
    at: tuple[int, int, int],
    executor: Executor,
) -> ConditionUpdate:
    """One condition's part of an iteration, with a step size of its own: ADGPS.

    policy: the newest one, or None while there is none: then the update starts from the
    condition's own controller. at: seed, the condition's own iteration, the condition. The caller
    keeps the targets of earlier rollouts, which are not relabelled: MDGPSConfig.replay is not used.
    Source: A. Yahya et al., Collective Robot Reinforcement Learning with Distributed Asynchronous
    Guided Policy Search, 2016 (arXiv 1610.00673), algorithm 2.
    """
    ex, (seed, it, m) = executor, at
    expanded = ex.call(stages.expand_cost, cost, rollouts, condition=m)
    fit, linearise = (config.dynamics, seed, it), (config.linearise, seed, it)
    dynamics = ex.call(stages.fit_dynamics, rollouts, condition, *fit, condition=m)
    sampled = (policy, rollouts, condition)
    linearised = ex.call(stages.linearise_sampled, *sampled, *linearise, condition=m)
    fitted = (condition, rollouts, expanded, dynamics, linearised)
    checked = ex.call(_assess, *fitted, False, config, condition=m)
    mults = ex.call(adjust_steps, [checked], config.step, config.guard, condition=m)
    alone, trained = replace(config, replay=0), (config.network.has_memory, config.train_until)
    new = ex.call(_improve, *fitted, checked, mults, 0, alone, False, condition=m)
    return ConditionUpdate(
        state=new,
        models={"cost": expanded, "dynamics": dynamics, "linearised": linearised},
        targets=ex.call(stages.targets, rollouts, new, *trained, condition=m),
    )


def _assess(
    condition: ConditionState,
    rollouts: Rollouts,
    cost: CostModel,
    dynamics: DynamicsModel,
    linearised: Linearised,
    on_policy: bool,
    config: MDGPSConfig,
) -> Assessment:
    """The assessment with the linearised policy as reference."""
    reference = stages.with_noise(linearised.controller, condition, config.exploration)
    sampled = reference if on_policy or condition.tries_policy else condition.controller
    return stages.assess(
        *(condition, rollouts, cost, dynamics, sampled, reference),
        *(config.guard, config.step, config.dual.entropy_weight, on_policy),
    )


def _improve(
    condition: ConditionState,
    rollouts: Rollouts,
    cost: CostModel,
    dynamics: DynamicsModel,
    linearised: Linearised,
    checked: Assessment,
    mults: Sequence[float],
    m: int,
    config: MDGPSConfig,
    policy_trials: bool,
) -> ConditionState:
    """The C-step around the linearised policy.

    policy_trials: whether the policy may be sampled next; see GuardConfig.policy_trial.
    """
    new = stages.improve(
        condition,
        cost,
        dynamics,
        stages.with_noise(linearised.controller, condition, config.exploration),
        linearised.prior,
        ReplayBuffer.extended(condition.replay, rollouts, config.replay),
        checked,
        mults[m],
        config.step.kl_max,
        config.dual,
        config.exploration,
    )
    if condition.tries_policy or not (checked.policy_worse or checked.rejected):
        return replace(new, policy_trial_in=None)
    if checked.rejected or not policy_trials:
        return new
    left = config.guard.policy_trial
    if condition.policy_trial_in is not None:
        left = min(left, condition.policy_trial_in)
    return replace(new, policy_trial_in=left - 1)
