"""What an algorithm carries from one iteration to the next, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gps.control.dual import DualResult, PerStepResult
from gps.control.pi2 import PI2Result
from gps.control.pilqr import PILQRResult
from gps.distributions.regression import MixturePrior
from gps.dynamics.linear import DynamicsFit
from gps.policies.linearise import PolicyPrior, joined_images
from gps.policies.policy import GlobalPolicy
from gps.types import (
    Array,
    Images,
    Layout,
    LinearGaussianController,
    QuadraticCost,
    Record,
    Rollouts,
    freeze,
    freeze_images,
    optional,
    shape_of,
)


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


@dataclass(frozen=True, eq=False)
class CostModel(Record):
    """Sampled costs of one condition and their quadratic expansion."""

    l: Array  # noqa: E741 (N, T)
    quadratic: QuadraticCost

    def __post_init__(self) -> None:
        freeze(self, l=shape_of(self, "l", 2))


@dataclass(frozen=True, eq=False)
class DynamicsModel(Record):
    """Fitted dynamics of one condition and the prior that now includes its rollouts."""

    fit: DynamicsFit
    prior: MixturePrior | None


@dataclass(frozen=True, eq=False)
class Replay(Record):
    """States and observations of one condition's last sound rollouts, oldest first."""

    X: Array  # (S, T, nx)
    obs: Array  # (S, T, no)
    images: Images | None = None  # (S, T, height, width, channels)

    def __post_init__(self) -> None:
        S, T, nx = shape_of(self, "X", 3)
        freeze(self, X=(S, T, nx), obs=(S, T, shape_of(self, "obs", 3)[-1]))
        freeze_images(self, "images", (S, T))

    @staticmethod
    def extended(old: Replay | None, rollouts: Rollouts, size: int) -> Replay:
        """The last `size` rollouts, the new ones included; never fewer than the new ones."""
        size = max(size, rollouts.N)
        if old is None:
            return Replay(rollouts.X, rollouts.obs, rollouts.images)
        X = np.concatenate([old.X, rollouts.X])[-size:]
        obs = np.concatenate([old.obs, rollouts.obs])[-size:]
        images = joined_images(old.images, rollouts.images)
        return Replay(X, obs, None if images is None else images[-size:])


@dataclass(frozen=True, eq=False)
class ConditionState(Record):
    """What one condition needs for its next iteration."""

    controller: LinearGaussianController
    """The controller to sample next."""
    previous: LinearGaussianController
    """The one that was sampled at the least cost; the guard goes back to it."""
    step_mult: float
    eta: float = float("nan")
    """Dual variable of the last update, where the next search begins; NaN before the first."""
    dynamics_prior: MixturePrior | None = None
    policy_prior: PolicyPrior | None = None
    replay: Replay | None = None
    """Where the policy is trained; None without a policy, and before the first iteration."""
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
    """Mean objective of the last sound rollouts, of whichever controller."""
    controller_cost: float = float("nan")
    """Expected cost of the controller before the last update, under the model of that update; of
    the step rule 'classic' alone."""
    report: ConditionReport | None = None
    dual: DualResult | PerStepResult | PI2Result | PILQRResult | None = None
    """What the last update found, for inspection; None where there was none."""
    own: Any = None
    """A record of what this algorithm alone remembers, or None."""
    action_scale: Array | None = optional()  # noqa: RUF009 (nu,)
    """Half of each actuator's range, by which `ExplorationConfig.floor` is measured."""
    obs_layout: Layout | None = optional()  # noqa: RUF009
    """Names of the observation's entries, where there is a policy."""
    astray: int | None = optional()
    """Updates in a row that left the policy aside, since its linear form was far worse than the
    controller; None for none. See GuardConfig.trial."""
    trial: bool | None = optional()
    """Whether the policy is sampled next in place of the controller; None for no."""

    @property
    def tries_policy(self) -> bool:
        """Whether the next rollouts are the policy's."""
        return self.trial is True

    @property
    def actor(self) -> LinearGaussianController:
        """What acts in rollouts of this condition."""
        return self.controller


@dataclass(frozen=True, eq=False)
class Proposal(Record):
    """An improved controller before it has been judged."""

    controller: LinearGaussianController
    predicted: float
    """Its expected cost, as far as the algorithm can tell."""
    kl: float = float("nan")
    """Mean KL of the update per time step, in nats."""
    eta: float = float("nan")
    """Dual variable or temperature, the mean where there is one per step."""
    search: Any = None
    """What the optimiser found; without it the guard does not take back mere setbacks."""
    own: Any = None
    """What this algorithm alone remembers after the update."""


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
    promised: bool
    """It predicted an improvement."""
    kept: float
    """Share of it that came, by `StepConfig.rule`; between -4 and 0.9."""
    best_sampled: float
    """The least so far: of the controller that the guard goes back to."""
    rejected: bool
    """The sampled cost rose, beyond the explosion threshold or beyond its noise."""
    sampled_best: bool
    """What was sampled becomes the controller that the guard goes back to."""
    trusted: bool
    """The model's expectation for the sampled controller agrees with the samples."""
    policy_astray: bool
    """The linearised policy is far worse than what was sampled: no place to start from."""


@dataclass(frozen=True, eq=False)
class PolicyState(Record):
    """The global policy and how its last training went."""

    policy: GlobalPolicy
    loss: float = float("nan")
    loss_trace: Array | None = None  # (k,) mean loss of k equal stretches of the training
    staleness: Array | None = None
    """(k,) Number of updates of staleness 0, 1, ... in asynchronous training, else None."""
    dropped: int = 0
    """Gradients that were too stale in asynchronous training."""

    @property
    def actor(self) -> GlobalPolicy:
        """What acts in rollouts of the global policy."""
        return self.policy


@dataclass(frozen=True, eq=False)
class ControllerOrPolicy(Record):
    """What MDGPS rolls out of a condition: its controller, or the policy where that is tried."""

    condition: Any
    """A ConditionState, or a handle of one."""
    policy: Any
    """A PolicyState, or a handle of one."""

    @property
    def actor(self) -> Any:
        """What acts."""
        return self.policy.actor if self.condition.tries_policy else self.condition.actor


@dataclass(frozen=True, eq=False)
class Unseen(Record):
    """Something to roll out, in a run in which nobody looks at pictures."""

    source: Any
    """A ConditionState, a PolicyState, or a handle of one."""
    wants_images: ClassVar[bool] = False

    @property
    def actor(self) -> Any:
        """What acts."""
        return self.source.actor


@dataclass(frozen=True, eq=False)
class GPSState(Record):
    """Everything that an iteration starts from. Entries may be handles of an executor."""

    iteration: int
    """Iterations done."""
    seed: int
    costs: tuple[Any, ...]
    """One cost configuration per condition."""
    conditions: tuple[Any, ...]
    """One ConditionState per condition."""
    policy: Any = None
    """PolicyState, or None for algorithms without a global policy."""
    asynchronous: Any = None
    """AsynchronousState of an asynchronous run, whose iterations are snapshots."""


@dataclass(frozen=True, eq=False)
class AsynchronousState(Record):
    """What an asynchronous run needs to go on, beside the conditions and the policy."""

    counts: tuple[int, ...]
    """Finished updates of each condition."""
    version: int
    """Finished policy updates."""
    memory: tuple[tuple[Any, ...], ...]
    """TrainingData of each condition's last batches, oldest first."""
    fresh: bool
    """Whether the memory holds something that no finished policy update has seen."""
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
class Renewed(Record):
    """What became of one condition after its rollouts; entries may be handles of an executor."""

    state: Any
    """ConditionState, with its report."""
    models: dict[str, Any]
    """Fitted 'cost', 'dynamics' and 'linearised'."""
    targets: Any
    """TrainingData for the global policy."""


@dataclass(frozen=True, eq=False)
class Report(Record):
    """What one iteration did, for people.

    As `iterate` returns it, all but the number may be handles of its executor.
    """

    iteration: int
    conditions: tuple[ConditionReport, ...]
    policy_loss: float
    models: dict[str, Any]
    """Per stage one record per condition: 'cost', 'dynamics', 'linearised'."""


__all__ = [
    "Assessment",
    "AsynchronousState",
    "ConditionReport",
    "ConditionState",
    "CostModel",
    "DynamicsModel",
    "GPSState",
    "PolicyState",
    "Proposal",
    "Renewed",
    "Report",
]
