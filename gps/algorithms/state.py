"""What an algorithm carries from one iteration to the next, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Protocol

import numpy as np

from gps.algorithms.diagnosis import Cause, Figures
from gps.control.dual import DualResult, PerStepResult
from gps.control.pi2 import PI2Result
from gps.control.pilqr import PILQRResult
from gps.costs.base import Cost
from gps.distributions.regression import MixturePrior
from gps.dynamics.global_model import GlobalDynamics
from gps.dynamics.linear import DynamicsFit
from gps.execution import Deferred
from gps.fields import Shape
from gps.policies.linearise import PolicyPrior, joined_images
from gps.policies.policy import GlobalPolicy
from gps.policies.training import TrainingData
from gps.protocols import Policy
from gps.types import (
    Array,
    Images,
    Layout,
    LinearGaussianController,
    QuadraticCost,
    Record,
    Rollouts,
    optional,
)

SearchResult = DualResult | PerStepResult | PI2Result | PILQRResult
"""What the optimisers of the C-step find."""


@dataclass(frozen=True)
class ConditionReport:
    """One condition's iteration in numbers. Costs are sums over a rollout's steps."""

    condition: int
    cost_mean: float
    """Mean over the samples of this iteration."""
    cost_min: float
    cost_max: float
    expected_cost: float
    """Of the distribution that the update starts from, under the fitted model."""
    predicted_cost: float
    """Of the improved controller, under the fitted model."""
    kl: float
    """Mean KL of the update per time step, in nats."""
    kl_max: float
    """Its bound, in nats."""
    step_mult: float
    eta: float
    """Dual variable of the KL bound."""
    event: str = ""
    """What the guard did, in words; empty when nothing was wrong."""
    exploration_std: float | None = optional()
    """Standard deviation of the improved controller's action noise, root mean square over steps and
    actions, as a share of half of the actuators' range; see `gps.algorithms.exploration`."""
    updated: bool | None = optional()
    """Whether the controller was improved; False where the one before stays or comes back, None
    where an algorithm does not say."""
    figures: Figures | None = field(default=None, compare=False, metadata={"stored": "unless None"})
    """Of the rollouts and the fits that the update was made from."""
    cause: Cause | None = optional()  # noqa: RUF009
    """Why it was not improved, or cannot be: see `gps.algorithms.diagnosis`."""
    advice: str | None = optional()
    """The same in words, with the options to change."""
    options: str | None = optional()
    """Those, as on the command line, the likeliest first, with blanks between."""


@dataclass(frozen=True, eq=False)
class CostModel(Record):
    """Sampled costs of one condition and their quadratic expansion."""

    l: Annotated[Array, Shape("N T")]  # noqa: E741
    """At every sample and step."""
    quadratic: QuadraticCost
    """Averaged over the samples."""


@dataclass(frozen=True, eq=False)
class DynamicsModel(Record):
    """Fitted dynamics of one condition and the prior that now includes its rollouts."""

    fit: DynamicsFit
    """Of this iteration's rollouts."""
    prior: MixturePrior | None
    """For the next iteration; None where the algorithm uses none."""


@dataclass(frozen=True, eq=False)
class ReplayBuffer(Record):
    """States and observations of one condition's last accepted rollouts, oldest first."""

    X: Annotated[Array, Shape("S T nx")]
    obs: Annotated[Array, Shape("S T no")]
    images: Annotated[Images, Shape("S T height width channels")] | None = None

    @staticmethod
    def extended(old: ReplayBuffer | None, rollouts: Rollouts, size: int) -> ReplayBuffer:
        """The last `size` rollouts, the new ones included; never fewer than the new ones."""
        size = max(size, rollouts.N)
        if old is None:
            return ReplayBuffer(rollouts.X, rollouts.obs, rollouts.images)
        X = np.concatenate([old.X, rollouts.X])[-size:]
        obs = np.concatenate([old.obs, rollouts.obs])[-size:]
        images = joined_images(old.images, rollouts.images)
        return ReplayBuffer(X, obs, None if images is None else images[-size:])


@dataclass(frozen=True, eq=False)
class ConditionState(Record):
    """What one condition needs for its next iteration."""

    controller: LinearGaussianController
    """The controller to sample next."""
    previous: LinearGaussianController
    """The one with the lowest sampled cost; the guard returns to it."""
    step_mult: float
    """Multiplier of the KL bound."""
    eta: float = float("nan")
    """Dual variable of the last update, where the next search begins; NaN before the first."""
    dynamics_prior: MixturePrior | None = None
    policy_prior: PolicyPrior | None = None
    replay: ReplayBuffer | None = None
    """What the policy is trained on; None without a policy, and before the first iteration."""
    expected_cost: float = float("nan")
    """Of the last update's starting point under the last model; NaN where the update cannot be
    judged."""
    predicted_cost: float = float("nan")
    sampled_cost: float = float("nan")
    """Mean sampled objective of `previous`: cost, less entropy where that has a weight."""
    cost_scale: float = float("nan")
    """Scale of the sampled costs of `previous`; see GuardConfig."""
    cost_error: float = float("nan")
    """Standard error of `sampled_cost`."""
    last_cost: float = float("nan")
    """Mean objective of the last accepted rollouts, of whichever controller."""
    controller_cost: float = float("nan")
    """Expected cost of the controller before the last update, under the model of that update; of
    the step rule 'classic' alone."""
    report: ConditionReport | None = None
    search: SearchResult | None = None
    """What the last update found, for inspection; None where there was none."""
    algorithm_state: Record | None = None
    """State that only this algorithm has."""
    action_scale: Annotated[Array, Shape("nu")] | None = optional()  # noqa: RUF009
    """Half of each actuator's range, by which `ExplorationConfig.floor` is measured."""
    control_range: Annotated[Array, Shape("2 nu")] | None = optional()  # noqa: RUF009
    """Lowest and highest action of each actuator; None where the agent says none."""
    obs_layout: Layout | None = optional()  # noqa: RUF009
    """Names of the observation's entries, where there is a policy."""
    policy_trial_in: int | None = optional()
    """Updates that may still start from the controller before the policy is sampled in its place;
    0 where it is sampled next, None where the last update started from the policy. See
    GuardConfig.policy_trial."""

    @property
    def tries_policy(self) -> bool:
        """Whether the next rollouts are the policy's."""
        return self.policy_trial_in == 0

    @property
    def actor(self) -> LinearGaussianController:
        """What acts in rollouts of this condition."""
        return self.controller


@dataclass(frozen=True, eq=False)
class Proposal(Record):
    """An improved controller that is not accepted yet."""

    controller: LinearGaussianController
    predicted: float
    """Its expected cost, as the algorithm predicts it."""
    kl: float = float("nan")
    """Mean KL of the update per time step, in nats."""
    eta: float = float("nan")
    """Dual variable or temperature, the mean where there is one per step."""
    search: SearchResult | None = None
    """What the optimiser found; without it the guard does not undo mere setbacks."""
    short: bool = False
    """Whether less of the KL bound was used than could have been."""
    algorithm_state: Record | None = None
    """State that only this algorithm has, after the update."""


@dataclass(frozen=True)
class Assessment:
    """The scalars by which the driver sets the step of one condition."""

    condition: int
    sampled_cost: float
    """Mean objective over samples: the cost, less the entropy where that has a weight. All costs
    here are objectives but the next three."""
    cost_mean: float
    cost_min: float
    cost_max: float
    cost_scale: float
    cost_error: float
    """Standard error of `sampled_cost`."""
    expected_cost: float
    """Of the update's starting point under the model fitted now."""
    expected_sampled: float
    """Of the sampled controller under the model fitted now."""
    expected_controller: float
    """Of the condition's controller under the model fitted now; NaN unless the step rule asks."""
    model_gap: float
    """Expected minus sampled cost of the sampled controller, as a share of `cost_scale`."""
    step_mult: float
    """Multiplier before this iteration's rule."""
    updated: bool
    """The last update can be judged: it was made from a model that was trusted."""
    predicts_improvement: bool
    """It predicted a lower cost."""
    improvement_ratio: float
    """Actual over predicted improvement, by `StepConfig.rule`; between -4 and 0.9."""
    best_sampled: float
    """The lowest so far: of the controller that the guard returns to."""
    rejected: bool
    """The sampled cost rose, beyond the explosion threshold or beyond its noise."""
    sampled_best: bool
    """What was sampled becomes the controller that the guard returns to."""
    trusted: bool
    """The model's expectation for the sampled controller agrees with the samples."""
    policy_worse: bool
    """The linearised policy is far worse than what was sampled: the update starts elsewhere."""
    figures: Figures | None = None
    """What else is known of the rollouts and fits."""


@dataclass(frozen=True, eq=False)
class PolicyState(Record):
    """The global policy and how its last training went."""

    policy: GlobalPolicy
    loss: float = float("nan")
    loss_trace: Annotated[Array, Shape("k")] | None = None
    """Mean loss of k equal parts of the training."""
    staleness: Annotated[Array, Shape("s")] | None = None
    """Number of updates of staleness 0, 1, ... in asynchronous training, else None."""
    dropped: int = 0
    """Gradients that were too stale in asynchronous training."""

    @property
    def actor(self) -> GlobalPolicy:
        """What acts in rollouts of the global policy."""
        return self.policy


class Source(Protocol):
    """What is rolled out: a ConditionState, a PolicyState, or one of the records below."""

    @property
    def actor(self) -> Policy:
        """What chooses the actions."""
        ...


@dataclass(frozen=True, eq=False)
class ControllerOrPolicy(Record):
    """What MDGPS rolls out of a condition: its controller, or the policy where that is tried."""

    condition: Deferred[ConditionState]
    policy: Deferred[PolicyState]

    @property
    def actor(self) -> Policy:
        """What chooses the actions."""
        return self.policy.actor if self.condition.tries_policy else self.condition.actor


@dataclass(frozen=True, eq=False)
class WithoutRecordedImages(Record):
    """Something to roll out, in a run in which images are not recorded."""

    source: Deferred[Source]

    @property
    def actor(self) -> Policy:
        """What chooses the actions."""
        return self.source.actor


@dataclass(frozen=True, eq=False)
class GPSState(Record):
    """Everything that an iteration starts from. Entries may be handles of an executor."""

    iteration: int
    """Iterations done."""
    seed: int
    costs: tuple[Cost, ...]
    """One per condition."""
    conditions: tuple[Deferred[ConditionState], ...]
    """One per condition."""
    policy: Deferred[PolicyState] | None = None
    """None for algorithms without a global policy."""
    asynchronous: AsynchronousState | None = None
    """Of an asynchronous run, whose iterations are snapshots."""
    dynamics: Deferred[GlobalDynamics] | None = optional()  # noqa: RUF009
    """The model of all conditions, where the algorithm has one."""


@dataclass(frozen=True, eq=False)
class AsynchronousState(Record):
    """What an asynchronous run resumes from, beside the conditions and the policy."""

    counts: tuple[int, ...]
    """Finished updates of each condition."""
    version: int
    """Finished policy updates."""
    replay_buffer: tuple[tuple[Deferred[TrainingData], ...], ...]
    """Of each condition's last batches, oldest first."""
    fresh: bool
    """Whether the replay buffer holds data that no finished policy update was trained on."""
    sampling_seconds: float
    """Time that was spent sampling for the finished updates, summed over conditions."""
    chain_seconds: float
    """Time that these updates took, each from the end of its condition's last one."""
    seconds: float
    """Time since the run began, breaks left out."""

    @property
    def local_updates(self) -> int:
        """Finished updates of all conditions together."""
        return sum(self.counts)


@dataclass(frozen=True, eq=False)
class ConditionUpdate(Record):
    """The update of one condition after its rollouts; entries may be handles of an executor."""

    state: Deferred[ConditionState]
    """With its report."""
    models: dict[str, Deferred[Record]]
    """Fitted 'cost', 'dynamics' and 'linearised'."""
    targets: Deferred[TrainingData]
    """For the global policy."""


@dataclass(frozen=True, eq=False)
class Report(Record):
    """What one iteration did, for people.

    As `iterate` returns it, all but the number may be handles of its executor.
    """

    iteration: int
    conditions: tuple[ConditionReport, ...]
    policy_loss: float
    models: dict[str, tuple[Deferred[Record], ...]]
    """Per stage one record per condition: 'cost', 'dynamics', 'linearised'."""


__all__ = [
    "Assessment",
    "AsynchronousState",
    "ConditionReport",
    "ConditionState",
    "ConditionUpdate",
    "ControllerOrPolicy",
    "CostModel",
    "DynamicsModel",
    "GPSState",
    "PolicyState",
    "Proposal",
    "ReplayBuffer",
    "Report",
    "SearchResult",
    "Source",
    "WithoutRecordedImages",
]
