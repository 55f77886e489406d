"""Path integral guided policy search: the global policy is sampled, PI2 improves it locally.

No dynamics are fitted and no cost is differentiated, so that contacts and discontinuous costs do
not matter; it takes more samples than MDGPS.
Source: Y. Chebotar, M. Kalakrishnan, A. Yahya, A. Li, S. Schaal, S. Levine, Path integral guided
policy search, 2016 (arXiv 1610.00529), algorithm 1 (global policy sampling).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from gps.algorithms import pi2, stages
from gps.algorithms.base import PolicyAlgorithm, sample_policy
from gps.algorithms.exploration import ExplorationConfig
from gps.algorithms.state import (
    Assessment,
    ConditionState,
    CostModel,
    GPSState,
    Replay,
    Report,
)
from gps.algorithms.step_size import GuardConfig
from gps.control.pi2 import PI2Config
from gps.errors import ConfigError
from gps.execution import Executor, Serial, each
from gps.policies import MLPConfig, Network
from gps.policies.linearise import LineariseConfig, Linearised
from gps.policies.sgd import SGDConfig
from gps.policies.training import TrainingConfig
from gps.types import Rollouts


@dataclass(frozen=True, kw_only=True)
class PIGPSConfig(PolicyAlgorithm):
    """Guided policy search with PI2 in place of model-based control."""

    sample_from: Literal["controllers", "policy"] = "policy"
    """What is rolled out: the global policy (from the second iteration on), around whose linear
    form PI2 works, or the local controllers, which PI2 then improves by themselves."""
    pi2: PI2Config = field(default_factory=PI2Config)
    """The C-step."""
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
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    """The least noise of the controllers."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """When a controller is not trusted."""

    def __post_init__(self) -> None:
        if self.sample_from not in ("controllers", "policy"):
            raise ConfigError(
                "PIGPSConfig.sample_from must be 'controllers' or 'policy', "
                f"got {self.sample_from!r}"
            )

    def sampling(self, state: GPSState) -> tuple[Any, ...]:
        """The policy, once it has been trained, or the local controllers."""
        on_policy = self.sample_from == "policy"
        return self.unseen(sample_policy(state) if on_policy else state.conditions)

    def iterate(
        self, state: GPSState, rollouts: Sequence[Any], executor: Executor | None = None
    ) -> tuple[GPSState, Report]:
        """See `iterate`."""
        return iterate(state, rollouts, self, executor)


def iterate(
    state: GPSState,
    rollouts: Sequence[Any],
    config: PIGPSConfig,
    executor: Executor | None = None,
) -> tuple[GPSState, Report]:
    """One iteration: linearise the policy that was sampled, PI2 around it, S-step."""
    ex = executor or Serial()
    it, seed, cond = state.iteration, state.seed, state.conditions
    on_policy = config.sample_from == "policy" and it > 0
    costs = each(ex, "expand_cost", stages.expand_cost, (state.costs, rollouts))
    policies = (state.policy if on_policy else None,) * len(cond)
    linearised = each(
        *(ex, "linearise_policy", stages.linearise_sampled, (policies, rollouts, cond)),
        *(config.linearise, seed, it),
    )
    samples = (cond, rollouts, costs)
    checks = each(ex, "assess", stages.assess_samples, samples, config.guard, 0.0, on_policy)
    new = each(ex, "improve", _improve, (cond, rollouts, costs, linearised, checks), config)
    data = each(ex, "targets", stages.targets, (rollouts, new), config.remembers)
    train = (config.training, config.sgd, config.restart, seed, it, 0)
    policy = stages.train_policy_on(ex, state.policy, data, *train)
    report = Report(
        iteration=it,
        conditions=tuple(ex.pick(c, "report") for c in new),
        policy_loss=ex.pick(policy, "loss"),
        models={"cost": tuple(costs), "linearised": tuple(linearised)},
    )
    return replace(state, iteration=it + 1, conditions=tuple(new), policy=policy), report


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
        replay=Replay.extended(condition.replay, rollouts, config.replay),
    )
