"""Mirror descent guided policy search (MDGPS).

The C-step improves every local controller under a KL bound around the linearised global policy;
the S-step fits the policy to the improved controllers.
Source: W. Montgomery, S. Levine, Guided Policy Search as Approximate Mirror Descent, NIPS 2016
(arXiv 1607.04614), algorithm 2 and section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from gps.algorithms import stages
from gps.algorithms.base import PolicyAlgorithm, sample_policy
from gps.algorithms.exploration import ExplorationConfig
from gps.algorithms.state import (
    Assessment,
    ConditionState,
    ControllerOrPolicy,
    CostModel,
    DynamicsModel,
    GPSState,
    Renewed,
    Replay,
    Report,
)
from gps.algorithms.step_size import GuardConfig, StepConfig, new_multiplier
from gps.control.dual import DualConfig
from gps.costs.base import Cost
from gps.dynamics.linear import DynamicsConfig
from gps.errors import ConfigError
from gps.execution import Executor, Serial, each
from gps.policies import MLPConfig, Network
from gps.policies.linearise import LineariseConfig, Linearised
from gps.policies.sgd import SGDConfig
from gps.policies.training import TrainingConfig
from gps.types import Rollouts


@dataclass(frozen=True, kw_only=True)
class MDGPSConfig(PolicyAlgorithm):
    """MDGPS with fitted dynamics and one step size for all conditions."""

    sample_from: Literal["controllers", "policy"] = "controllers"
    """What is rolled out: the local controllers ("off-policy") or the global policy
    ("on-policy", from the second iteration on)."""
    network: Network = field(default_factory=MLPConfig)
    """The global policy."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Its training in every iteration."""
    sgd: SGDConfig = field(default_factory=SGDConfig)
    """How processes share the training."""
    restart: bool | None = None
    """Train a fresh network in every iteration (True), or continue from the last weights (False),
    as the paper does. None continues where the network can be rewritten for the units of new data,
    as perceptrons can (`NetworkPolicy.renormalised`); any other would keep those of its first data,
    hold-still rollouts that say little of later ones, and is trained afresh. What both are worth:
    docs/stability.md."""
    replay: int = 0
    """Rollouts per condition, counting earlier iterations, at whose states the policy is trained on
    the newest controllers' actions; never fewer than the newest ones."""
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    """Fit of the dynamics."""
    linearise: LineariseConfig = field(default_factory=LineariseConfig)
    """Linearisation of the policy."""
    dual: DualConfig = field(default_factory=DualConfig)
    """Search for the dual variable of the KL bound."""
    step: StepConfig = field(default_factory=StepConfig)
    """KL bound and its adaptation."""
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    """The least noise of the controllers."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """When a model or a controller is not trusted."""

    def __post_init__(self) -> None:
        if self.sample_from not in ("controllers", "policy"):
            raise ConfigError(
                "MDGPSConfig.sample_from must be 'controllers' or 'policy', "
                f"got {self.sample_from!r}"
            )
        if self.step.rule == "mc" and self.sample_from == "controllers":
            raise ConfigError(
                "MDGPSConfig.step.rule 'mc' compares sampled costs of the policy: it needs "
                "sample_from='policy'; with 'controllers' use rule 'laplace'"
            )

    def sampling(self, state: GPSState) -> tuple[Any, ...]:
        """The local controllers, or the policy once it has been trained: in place of all of them
        by `sample_from`, or of one that has left it aside for long by `guard.trial`."""
        if self.sample_from == "policy":
            return self.unseen(sample_policy(state))
        if state.iteration == 0:
            return self.unseen(state.conditions)
        return self.unseen(tuple(ControllerOrPolicy(c, state.policy) for c in state.conditions))

    def iterate(
        self, state: GPSState, rollouts: Sequence[Any], executor: Executor | None = None
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
        if self.sgd.mode == "asynchronous":
            raise ConfigError(
                "MDGPSConfig.sgd.mode='asynchronous' cannot be used in an asynchronous run: it is "
                "looked after by the process that looks after the conditions, which would wait; "
                "use another mode"
            )

    def renew(
        self,
        condition: Any,
        rollouts: Any,
        cost: Cost,
        policy: Any,
        at: tuple[int, int, int],
        executor: Executor,
    ) -> Renewed:
        """See `renew`."""
        return renew(condition, rollouts, cost, policy, self, at, executor)

    def train(
        self, policy: Any, data: Sequence[Any], seed: int, version: int, executor: Executor
    ) -> Any:
        """A handle of the policy trained on `data`; `version` counts the trainings."""
        train = (self.training, self.sgd, self.restart, seed, version, 0)
        return stages.train_policy_on(executor, policy, data, *train)


def iterate(
    state: GPSState,
    rollouts: Sequence[Any],
    config: MDGPSConfig,
    executor: Executor | None = None,
) -> tuple[GPSState, Report]:
    """One iteration: fit dynamics, linearise the policy, set the step, C-step, S-step."""
    ex = executor or Serial()
    it, seed, cond = state.iteration, state.seed, state.conditions
    train = (config.training, config.sgd, config.restart, seed, it)
    costs = each(ex, "expand_cost", stages.expand_cost, (state.costs, rollouts))
    models = each(
        ex, "fit_dynamics", stages.fit_dynamics, (rollouts, cond), config.dynamics, seed, it
    )
    policy = state.policy
    if it == 0:  # there is no policy to be near to yet: start from the initial controllers
        data = each(ex, "targets", stages.targets, (rollouts, cond), config.remembers)
        policy = stages.train_policy_on(ex, policy, data, *train, 0)
    linearised = each(
        ex,
        "linearise_policy",
        stages.linearise_policy,
        ((policy,) * len(cond), rollouts, cond),
        *(config.linearise, seed, it),
    )
    on_policy = config.sample_from == "policy" and it > 0
    models_of = (cond, rollouts, costs, models, linearised)
    checks = each(ex, "assess", _assess, models_of, on_policy, config)
    rule = (adjust_steps, checks, config.step, config.guard, it)
    mults = ex.call("set_steps", stages.set_steps, *rule)
    steps = ((mults,) * len(cond), range(len(cond)))
    new = each(ex, "improve", _improve, (*models_of, checks, *steps), config, True)
    data = each(ex, "targets", stages.targets, (rollouts, new), config.remembers)
    policy = stages.train_policy_on(ex, policy, data, *train, 1)
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


def renew(
    condition: Any,
    rollouts: Any,
    cost: Cost,
    policy: Any,
    config: MDGPSConfig,
    at: tuple[int, int, int],
    executor: Executor,
) -> Renewed:
    """One condition's part of an iteration, with a step size of its own: ADGPS.

    policy: the newest one, or None while there is none: then the update starts from the
    condition's own controller. at: seed, the condition's own iteration, the condition. The caller
    remembers the targets of earlier rollouts, which keep the labels of their own time: MDGPSConfig.
    replay is not used.
    Source: A. Yahya et al., Collective Robot Reinforcement Learning with Distributed Asynchronous
    Guided Policy Search, 2016 (arXiv 1610.00673), algorithm 2.
    """
    ex, (seed, it, m) = executor, at

    def call(stage: str, fn: Any, *args: Any) -> Any:
        return ex.call(stage, fn, *args, condition=m)

    expanded = call("expand_cost", stages.expand_cost, cost, rollouts)
    dynamics = call(
        *("fit_dynamics", stages.fit_dynamics, rollouts, condition, config.dynamics, seed, it)
    )
    linearised = call(
        *("linearise_policy", stages.linearise_sampled, policy, rollouts, condition),
        *(config.linearise, seed, it),
    )
    models = (condition, rollouts, expanded, dynamics, linearised)
    checked = call("assess", _assess, *models, False, config)
    mults = call("set_steps", adjust_steps, (checked,), config.step, config.guard)
    new = call("improve", _improve, *models, checked, mults, 0, replace(config, replay=0), False)
    return Renewed(
        state=new,
        models={"cost": expanded, "dynamics": dynamics, "linearised": linearised},
        targets=call("targets", stages.targets, rollouts, new, config.remembers),
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
    tries: bool,
) -> ConditionState:
    """The C-step around the linearised policy.

    tries: the policy may be sampled next where it has been left aside for long.
    """
    replay = Replay.extended(condition.replay, rollouts, config.replay)
    new = stages.improve(
        condition,
        cost,
        dynamics,
        stages.with_noise(linearised.controller, condition, config.exploration),
        linearised.prior,
        replay,
        checked,
        mults[m],
        config.step.kl_max,
        config.dual,
        config.exploration,
    )
    if condition.tries_policy or not (checked.policy_astray or checked.rejected):
        return replace(new, astray=None, trial=None)
    if checked.rejected or not tries:
        return new
    astray = (condition.astray or 0) + 1
    return replace(new, astray=astray, trial=True if astray >= config.guard.trial else None)


def adjust_steps(checks: Sequence[Assessment], step: StepConfig, guard: GuardConfig) -> list[float]:
    """The step multiplier of every condition: one rule over all, shrunk where the guard spoke.

    A condition whose policy has gone astray says nothing of the common step: its update does not
    start from the policy.
    """
    mult = float(np.mean([c.step_mult for c in checks]))
    known = [c for c in checks if c.updated and not c.rejected and not c.policy_astray]
    new = mult
    if known:
        new = new_multiplier(mult, float(np.mean([c.kept for c in known])), step)
    return [
        new if c.trusted and not c.rejected else max(min(new, mult) * guard.shrink, step.min_mult)
        for c in checks
    ]
