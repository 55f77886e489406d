"""What the configurations of algorithms share: options, the first state, and the S-step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

import numpy as np

from gps.algorithms import stages
from gps.algorithms.exploration import ExplorationConfig, action_scale
from gps.algorithms.state import (
    ConditionState,
    DynamicsModel,
    GPSState,
    PolicyState,
    Report,
    Source,
    WithoutRecordedImages,
)
from gps.algorithms.step_size import GuardConfig, StepConfig
from gps.control.kl import raised
from gps.costs.base import Cost
from gps.dynamics.global_model import GlobalDynamics, GlobalPriorConfig
from gps.dynamics.linear import DynamicsConfig
from gps.errors import ConfigError
from gps.execution import Deferred, Executor, each, over
from gps.fields import Config, Range, Whole
from gps.policies import MLPConfig
from gps.policies.linearise import LineariseConfig, check_derivatives
from gps.policies.policy import Network, Sizes
from gps.policies.sgd import SGDConfig
from gps.policies.training import TrainingConfig, TrainingData
from gps.protocols import Agent, ChecksImages, control_range_of, state_structure_of
from gps.rng import stream
from gps.types import LinearGaussianController, Record, Rollouts


class Algorithm(Config):
    """Base of all configurations of algorithms, with a default for what only some of them need."""

    trains_policy: ClassVar[bool] = False
    min_samples: ClassVar[int] = 2

    def check(self, agent: Agent) -> None:
        """ConfigError for options that do not fit the agent; by default all do."""

    def sampling(self, state: GPSState) -> tuple[Deferred[Source], ...]:
        """What is rolled out next, by condition: by default every condition's own controller."""
        return self.without_images(state.conditions)

    def without_images(self, sources: Sequence[Deferred[Source]]) -> tuple[Deferred[Source], ...]:
        """The sources, marked where the images of their rollouts are not recorded: by default all,
        as only the training of a policy with images needs them."""
        return tuple(WithoutRecordedImages(s) for s in sources)


class LocalAlgorithm(Algorithm):
    """Base of configurations of algorithms with local controllers, which explore.

    An algorithm without a field `exploration` has no minimum noise, one without a field `step` the
    multiplier 1 in its first update.
    """

    exploration: ExplorationConfig = ExplorationConfig(floor=0)
    step: StepConfig | None = None

    def start(
        self,
        costs: tuple[Cost, ...],
        controllers: tuple[LinearGaussianController, ...],
        agent: Agent,
        seed: int,
    ) -> GPSState:
        """The state before the first iteration; initial controllers have the minimum noise too."""
        conditions, limits = [], control_range_of(agent)
        for c in controllers:
            scale = action_scale(agent, c)
            start = raised(c, self.exploration.std_floor(scale))
            conditions.append(
                ConditionState(
                    controller=start,
                    previous=start,
                    step_mult=1.0 if self.step is None else self.step.initial_mult,
                    action_scale=scale,
                    control_range=None if limits is None else np.stack(limits),
                )
            )
        return GPSState(iteration=0, seed=seed, costs=costs, conditions=tuple(conditions))


@dataclass(frozen=True, kw_only=True)
class GuardedAlgorithm(LocalAlgorithm):
    """Options of algorithms whose updates are accepted or undone by the guard."""

    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    """The minimum noise of the controllers."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """When a model or a controller is not trusted."""


@dataclass(frozen=True, kw_only=True)
class FittedAlgorithm(GuardedAlgorithm):
    """Options of algorithms with fitted dynamics and a KL trust region."""

    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    """Fit of the dynamics."""
    step: StepConfig = field(default_factory=StepConfig)
    """KL bound and its adaptation."""

    @property
    def min_samples(self) -> int:  # type: ignore[override]
        """Rollouts of a condition that an iteration needs."""
        return self.dynamics.min_samples

    def start(
        self,
        costs: tuple[Cost, ...],
        controllers: tuple[LinearGaussianController, ...],
        agent: Agent,
        seed: int,
    ) -> GPSState:
        """The state before the first iteration, with an unfitted global model where that is the
        dynamics' prior."""
        state = super().start(costs, controllers, agent, seed)
        if not isinstance(self.dynamics.prior, GlobalPriorConfig):
            return state
        return replace(state, dynamics=unfitted(agent))

    def fit_dynamics(
        self, ex: Executor, state: GPSState, rollouts: Sequence[Deferred[Rollouts]]
    ) -> tuple[list[Deferred[DynamicsModel]], GPSState]:
        """Dynamics of every condition; the state with the global model, where that is their
        prior."""
        shared, prior = state.dynamics, self.dynamics.prior
        if isinstance(prior, GlobalPriorConfig):
            assert shared is not None
            shared = ex.call(stages.fit_global_dynamics, shared, list(rollouts), prior.model)
        at = self.dynamics, state.seed, state.iteration, shared
        models = each(ex, stages.fit_dynamics, over(rollouts), over(state.conditions), *at)
        return models, replace(state, dynamics=shared)


def unfitted(agent: Agent) -> GlobalDynamics:
    """The global model before the first rollout."""
    return GlobalDynamics.unfitted(state_structure_of(agent), agent.nu, agent.dt)


@dataclass(frozen=True, kw_only=True)
class PolicyAlgorithm(LocalAlgorithm):
    """Options of algorithms with a global policy, and its training."""

    trains_policy: ClassVar[bool] = True

    network: Network = field(default_factory=MLPConfig)
    """The global policy."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Its training in every S-step."""
    sgd: SGDConfig = field(default_factory=SGDConfig)
    """How processes share the training."""
    restart: bool | None = None
    """Train a fresh network in every S-step (True), or continue from the last weights (False), as
    the papers do, so that the policy stays near to the last one. None continues where the network
    can be rewritten for the units of new data, as perceptrons can (`NetworkPolicy.renormalised`);
    any other would keep those of its first data, hold-still rollouts that differ from later ones,
    and is trained afresh. A comparison of both: docs/stability.md."""
    replay: Whole = 16
    """Rollouts per condition, counting earlier iterations, at whose states the policy is trained on
    the newest controllers' actions; never fewer than the newest ones, and 0 for these alone, which
    near the optimum lie close together: a policy that has seen nothing else is wrong beside them.
    Each is stored with every iteration, its images too."""
    train_until: Annotated[float, Range(above=0, at_most=1)] = 1.0
    """Share of each rollout, from its start on, at whose states the policy is trained. Less than 1
    where the task goes on for longer: near the end of a rollout controllers act as if nothing came
    after it, so that a walker throws itself forward, and a policy that learns that falls."""
    linearise: LineariseConfig = field(default_factory=LineariseConfig)
    """Linearisation of the policy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.network, Network):
            raise ConfigError(
                f"{type(self).__name__}.network must be a configuration like MLPConfig(), "
                f"got {self.network!r}"
            )

    @property
    def min_samples(self) -> int:  # type: ignore[override]
        """Rollouts of a condition that an iteration needs."""
        return max(super().min_samples, self.linearise.min_samples)

    def without_images(self, sources: Sequence[Deferred[Source]]) -> tuple[Deferred[Source], ...]:
        """The sources, marked where the policy needs no images."""
        return tuple(sources) if self.network.needs_images else super().without_images(sources)

    def check(self, agent: Agent) -> None:
        """ConfigError where the network depends on more than sizes and this agent lacks it."""
        self.network.check(Sizes.of(agent))
        if self.linearise.method == "jacobian":
            check_derivatives(self.network, agent)
        if self.network.needs_images and isinstance(agent, ChecksImages):
            agent.check_images()
        whole = self.network.needs_images or self.network.has_memory
        if whole and self.sgd.mode != "serial":
            network = type(self.network).__name__
            raise ConfigError(
                f"{type(self).__name__}.sgd.mode must be 'serial' for a {network}, whose training "
                f"cannot be divided, got {self.sgd.mode!r}"
            )

    def start(
        self,
        costs: tuple[Cost, ...],
        controllers: tuple[LinearGaussianController, ...],
        agent: Agent,
        seed: int,
    ) -> GPSState:
        """The state before the first iteration, with an untrained policy."""
        state = super().start(costs, controllers, agent, seed)
        rng = stream(seed, "initial policy")
        policy = self.network.initial_policy(Sizes.of(agent), rng)
        return replace(
            state,
            conditions=tuple(replace(c, obs_layout=agent.obs_layout) for c in state.conditions),
            policy=PolicyState(policy=policy),
        )

    def train_policy(
        self,
        ex: Executor,
        policy: Deferred[PolicyState],
        data: Sequence[Deferred[TrainingData]],
        seed: int,
        iteration: int,
        call: int,
    ) -> Deferred[PolicyState]:
        """The S-step: the policy trained on `data`; call: number of the S-step in its iteration."""
        options = self.training, self.sgd, self.restart
        return stages.train_policy_on(ex, policy, data, *options, seed, iteration, call)

    def train_policy_at(
        self,
        ex: Executor,
        state: GPSState,
        rollouts: Sequence[Deferred[Rollouts]],
        conditions: Sequence[Deferred[ConditionState]],
        call: int = 0,
    ) -> Deferred[PolicyState]:
        """The S-step from the state's policy: the controllers' actions at the rollouts' states."""
        assert state.policy is not None
        how = self.network.has_memory, self.train_until
        data = each(ex, stages.targets, over(rollouts), over(conditions), *how)
        return self.train_policy(ex, state.policy, data, state.seed, state.iteration, call)


def sample_policy(state: GPSState) -> tuple[Deferred[Source], ...]:
    """What on-policy algorithms roll out: the policy, once it has been trained."""
    if state.iteration > 0 and state.policy is not None:
        return (state.policy,) * len(state.conditions)
    return state.conditions


def finish_iteration(
    ex: Executor,
    state: GPSState,
    conditions: Sequence[Deferred[ConditionState]],
    policy: Deferred[PolicyState] | None = None,
    **models: Sequence[Deferred[Record]],
) -> tuple[GPSState, Report]:
    """The state after an iteration, and its report.

    models: records per condition, to be stored: cost, dynamics, linearised.
    """
    report = Report(
        iteration=state.iteration,
        conditions=tuple(ex.pick(c, "report") for c in conditions),
        policy_loss=float("nan") if policy is None else ex.pick(policy, "loss"),
        models={name: tuple(records) for name, records in models.items()},
    )
    new = replace(state, iteration=state.iteration + 1, conditions=tuple(conditions), policy=policy)
    return new, report


__all__ = [
    "Algorithm",
    "FittedAlgorithm",
    "GuardedAlgorithm",
    "LocalAlgorithm",
    "PolicyAlgorithm",
    "finish_iteration",
    "sample_policy",
]
