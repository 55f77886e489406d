"""The stages of one condition's iteration: pure functions of records, run by any executor."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from gps.algorithms import diagnosis
from gps.algorithms.diagnosis import Finding, figures
from gps.algorithms.exploration import ExplorationConfig, exploration_std
from gps.algorithms.state import (
    Assessment,
    ConditionReport,
    ConditionState,
    CostModel,
    DynamicsModel,
    PolicyState,
    Proposal,
    ReplayBuffer,
)
from gps.algorithms.step_size import GuardConfig, StepConfig, adjust_steps, improvement_ratio
from gps.control import dual, kl, lqr
from gps.control.dual import DualConfig, DualResult
from gps.costs.base import Cost, expand
from gps.distributions.regression import MixturePrior, MixturePriorConfig, update_prior
from gps.dynamics import linear
from gps.dynamics.global_model import (
    GlobalDynamics,
    GlobalDynamicsConfig,
    Transitions,
    fit_global,
)
from gps.dynamics.linear import DynamicsConfig
from gps.errors import DualError, FitError, GPSError, NonFiniteError, NotPositiveDefiniteError
from gps.execution import Deferred, Executor, stage
from gps.policies.linearise import LineariseConfig, Linearised, PolicyPrior, linearise
from gps.policies.policy import GlobalPolicy
from gps.policies.sgd import SGDConfig, fit_pooled, train
from gps.policies.training import TrainingConfig, TrainingData, TrainingResult
from gps.rng import stream
from gps.types import Array, LinearGaussianController, QuadraticCost, Record, Rollouts

log = logging.getLogger(__name__)


def expand_cost(cost: Cost, rollouts: Rollouts) -> CostModel:
    """Costs at the samples, and their mean quadratic expansion."""
    terms = cost.evaluate(rollouts)
    return CostModel(l=terms.l, quadratic=expand(terms, rollouts))


def fit_dynamics(
    rollouts: Rollouts,
    condition: ConditionState,
    config: DynamicsConfig,
    seed: int,
    iteration: int,
    shared: GlobalDynamics | None = None,
) -> DynamicsModel:
    """Time-varying linear-Gaussian dynamics with the condition's own mixture prior, or with the
    model that it shares with all conditions."""
    if shared is not None:
        return DynamicsModel(fit=linear.fit(rollouts, shared, config), prior=None)
    prior: MixturePrior | None = None
    if isinstance(config.prior, MixturePriorConfig):
        prior = update_prior(
            condition.dynamics_prior,
            linear.points(rollouts.X, rollouts.U),
            config.prior,
            stream(seed, "dynamics prior", iteration, rollouts.condition),
            sizes=linear.point_sizes(rollouts),
        )
    return DynamicsModel(fit=linear.fit(rollouts, prior, config), prior=prior)


@stage("fit_global")
def fit_global_dynamics(
    model: GlobalDynamics,
    rollouts: list[Rollouts],
    config: GlobalDynamicsConfig,
    columns: npt.NDArray[np.intp] | None = None,
) -> GlobalDynamics:
    """The model of all conditions with the transitions of an iteration; columns: the entries of the
    state that it is of, all where None."""
    first, *others = (Transitions.of(r, columns) for r in rollouts)
    return fit_global(model, first.joined(*others), config)


def linearise_policy(
    policy: PolicyState,
    rollouts: Rollouts,
    condition: ConditionState,
    config: LineariseConfig,
    seed: int,
    iteration: int,
) -> Linearised:
    """The global policy as a linear-Gaussian controller around this condition's rollouts."""
    rng = stream(seed, "policy prior", iteration, rollouts.condition)
    return linearise(
        policy.policy, rollouts, condition.policy_prior, config, rng, condition.obs_layout
    )


@stage("linearise_policy")
def linearise_sampled(
    policy: PolicyState | None,
    rollouts: Rollouts,
    condition: ConditionState,
    config: LineariseConfig,
    seed: int,
    iteration: int,
) -> Linearised:
    """What acted in the rollouts as a linear-Gaussian controller: the linearised policy, or without
    one the condition's own controller."""
    if policy is None:
        return Linearised(condition.controller, condition.policy_prior)
    return linearise_policy(policy, rollouts, condition, config, seed, iteration)


def with_noise(
    controller: LinearGaussianController, condition: ConditionState, config: ExplorationConfig
) -> LinearGaussianController:
    """The controller with at least the noise that exploration needs."""
    return kl.raised(controller, config.std_floor(condition.action_scale))


def total_expected_cost(
    controller: LinearGaussianController,
    cost: CostModel,
    dynamics: DynamicsModel,
    entropy_weight: float = 0.0,
) -> float:
    """The objective of a whole rollout under the fitted model: expected cost less entropy_weight
    (cost units per nat) times entropy. NaN or infinity if it diverges."""
    with np.errstate(over="ignore", invalid="ignore"):
        marginals = lqr.forward(dynamics.fit.dynamics, controller, dynamics.fit.start)
        expected = float(np.sum(lqr.expected_cost(cost.quadratic, marginals)))
    return expected - entropy_bonus(controller, entropy_weight)


def entropy_bonus(controller: LinearGaussianController, entropy_weight: float) -> float:
    """entropy_weight times sum_t 1/2 log |2 pi e Sigma_t|, in cost units; 0 without a weight."""
    if entropy_weight == 0:
        return 0.0
    half_logdet = np.log(controller.chol.diagonal(axis1=1, axis2=2)).sum()
    constant = 0.5 * controller.T * controller.nu * (1 + math.log(2 * math.pi))
    return entropy_weight * float(half_logdet + constant)


def assess(
    condition: ConditionState,
    rollouts: Rollouts,
    cost: CostModel,
    dynamics: DynamicsModel,
    sampled: LinearGaussianController,
    reference: LinearGaussianController,
    guard: GuardConfig,
    step: StepConfig,
    entropy_weight: float = 0.0,
    on_policy: bool = False,
) -> Assessment:
    """Compare what was sampled with what the fitted model expects.

    `sampled` is (the linear form of) what acted in the rollouts; `reference` is where the update
    starts from, so that KL is measured against it. What is compared is the objective: the cost,
    less entropy_weight times the entropy. on_policy: see `assess_samples`.
    """
    args = cost, dynamics, entropy_weight
    expected = _finite_or_nan(reference, *args)
    expected_sampled = expected if sampled is reference else _finite_or_nan(sampled, *args)
    bonus = entropy_bonus(sampled, entropy_weight)
    check = assess_samples(condition, rollouts, cost, guard, bonus, on_policy)
    fit, known = dynamics.fit, (condition.control_range, condition.action_scale)
    found = figures(
        *(rollouts, cost.l, cost.quadratic, *known, sampled, fit.dynamics, fit.start),
        *(fit.error_ratio, dynamics.prior is not None),
    )
    gap = (expected_sampled - check.sampled_cost) / check.cost_scale
    worse = not expected - expected_sampled <= guard.policy_gap * check.cost_scale  # True for NaN
    predicted = condition.expected_cost - condition.predicted_cost  # NaN: no update to judge
    if condition.tries_policy:  # not what the last update was about
        predicted = math.nan
    now, before = expected, condition.expected_cost
    controller_now, updated = math.nan, math.isfinite(predicted)
    if step.rule == "mc":
        now, before = check.sampled_cost, condition.last_cost
    elif step.rule == "classic":
        controller_now = _finite_or_nan(condition.controller, *args)
        now, before = controller_now, condition.controller_cost
        predicted = before - condition.predicted_cost
    return replace(
        check,
        updated=updated,
        expected_controller=controller_now,
        predicts_improvement=predicted > 0,
        improvement_ratio=improvement_ratio(predicted, before - now),
        expected_cost=expected,
        expected_sampled=expected_sampled,
        model_gap=gap,
        trusted=abs(gap) <= guard.disagreement,  # False for NaN
        policy_worse=sampled is not reference and worse,
        figures=found,
    )


@stage("assess")
def assess_own(
    condition: ConditionState,
    rollouts: Rollouts,
    cost: CostModel,
    dynamics: DynamicsModel,
    guard: GuardConfig,
    step: StepConfig,
    entropy_weight: float = 0.0,
) -> Assessment:
    """The assessment with the sampled controller as reference."""
    c = condition.controller
    return assess(condition, rollouts, cost, dynamics, c, c, guard, step, entropy_weight)


@stage("assess")
def assess_samples(
    condition: ConditionState,
    rollouts: Rollouts,
    cost: CostModel,
    guard: GuardConfig,
    bonus: float = 0.0,
    on_policy: bool = False,
) -> Assessment:
    """The assessment from samples alone, for algorithms without a model: the expected cost is the
    sampled one.

    bonus: cost less objective; see `entropy_bonus`. on_policy: the policy is sampled in every
    iteration, which no earlier controller would undo; only explosions are.
    """
    totals = cost.l.sum(axis=1)
    mean, spread = float(totals.mean()) - bonus, float(totals.std())
    scale = max(float(np.abs(cost.l).sum(axis=1).mean()), spread, 1e-290)
    error = float(totals.std(ddof=1) / math.sqrt(len(totals))) if len(totals) > 1 else scale
    jump = mean - condition.sampled_cost
    noise = math.hypot(error, condition.cost_error)
    # After a fall-back there is no update to undo: the same controller has been sampled again, and
    # only chance in its first samples can be above. The policy is another one every time.
    updated = condition.search is not None or condition.tries_policy
    exploded = jump > guard.explosion * condition.cost_scale
    set_back = jump > guard.setback * noise + 0.02 * condition.cost_scale
    rejected = not math.isfinite(mean) or (
        exploded if on_policy else updated and (exploded or set_back)
    )
    return Assessment(
        condition=rollouts.condition,
        sampled_cost=mean,
        cost_mean=float(totals.mean()),
        cost_min=float(totals.min()),
        cost_max=float(totals.max()),
        cost_scale=scale,
        cost_error=error,
        expected_cost=mean,
        expected_sampled=mean,
        expected_controller=math.nan,
        model_gap=0.0,
        step_mult=condition.step_mult,
        updated=False,
        predicts_improvement=False,
        improvement_ratio=math.nan,
        best_sampled=condition.sampled_cost,
        rejected=rejected,
        sampled_best=guard.against == "last" or not updated or not jump > 0,
        trusted=True,
        policy_worse=False,
        figures=figures(
            rollouts, cost.l, cost.quadratic, condition.control_range, condition.action_scale
        ),
    )


def set_steps(
    checks: Sequence[Assessment],
    step: StepConfig,
    guard: GuardConfig,
    iteration: int,
    jointly: bool = False,
    if_predicted: bool = False,
) -> list[float]:
    """The step multiplier of every condition; see `adjust_steps`.

    NonFiniteError when no condition at all has a finite sampled cost: nothing can be learned.
    """
    if not any(math.isfinite(check.sampled_cost) for check in checks):
        raise NonFiniteError(
            f"the sampled cost of every condition is NaN or infinite in iteration {iteration + 1}; "
            "check the cost, or start with less exploration"
        )
    return adjust_steps(checks, step, guard, jointly=jointly, if_predicted=if_predicted)


def _finite_or_nan(
    controller: LinearGaussianController,
    cost: CostModel,
    dynamics: DynamicsModel,
    entropy_weight: float,
) -> float:
    try:
        return total_expected_cost(controller, cost, dynamics, entropy_weight)
    except GPSError:  # a forward pass that becomes non-finite: the model diverges
        return float("nan")


def improve(
    condition: ConditionState,
    cost: CostModel,
    dynamics: DynamicsModel,
    reference: LinearGaussianController,
    policy_prior: PolicyPrior | None,
    replay: ReplayBuffer | None,
    checked: Assessment,
    step_mult: float,
    kl_max: float,
    config: DualConfig,
    exploration: ExplorationConfig,
) -> ConditionState:
    """One C-step: KL-constrained LQG around `reference`, with the guard's fall-backs.

    `kl_max` is the bound per step at multiplier 1. See `accept_or_reject`.
    """
    bound = kl_max * step_mult

    def propose(reference: LinearGaussianController) -> Proposal:
        result = bounded_update(
            *(condition, cost.quadratic, dynamics, reference, bound, config, exploration),
            number=checked.condition,
            eta=condition.eta,
        )
        return Proposal(
            controller=result.controller,
            predicted=total_expected_cost(result.controller, cost, dynamics, config.entropy_weight),
            kl=float(result.kl.mean()),
            eta=result.eta,
            search=result,
            short=not result.converged,
        )

    return accept_or_reject(
        condition,
        reference,
        propose,
        checked,
        step_mult,
        bound,
        dynamics_prior=dynamics.prior,
        policy_prior=policy_prior,
        replay=replay,
    )


def bounded_update(
    condition: ConditionState,
    objective: QuadraticCost,
    dynamics: DynamicsModel,
    reference: LinearGaussianController,
    bound: float,
    config: DualConfig,
    exploration: ExplorationConfig,
    *,
    number: int,
    eta: float,
    entropy_weight: float | Array | None = None,
) -> DualResult:
    """`dual.minimise` around `reference`, with the floor under the condition's exploration.

    bound: nats per step. number: of the condition, for the log. eta: where the search begins, NaN
    before the first one. entropy_weight: by default that of `config`. Raises DualError where
    nothing but `reference` is within the bound.
    """
    fit = dynamics.fit
    result = dual.minimise(
        *(fit.dynamics, objective, fit.start, reference, bound, config),
        eta=None if math.isnan(eta) else eta,
        entropy_weight=entropy_weight,
        std_floor=exploration.std_floor(condition.action_scale),
    )
    if not result.converged:
        log.debug("condition %d: %s", number, result.reason)
        if not result.kl.any():
            raise DualError(result.reason, eta=result.eta)
    return result


def accept_or_reject(
    condition: ConditionState,
    reference: LinearGaussianController,
    propose: Callable[[LinearGaussianController], Proposal],
    checked: Assessment,
    step_mult: float,
    bound: float,
    *,
    may_rise: bool = False,
    dynamics_prior: MixturePrior | None = None,
    policy_prior: PolicyPrior | None = None,
    replay: ReplayBuffer | None = None,
    algorithm_state: Record | None = None,
) -> ConditionState:
    """The condition after an update by `propose` that the guard accepts, or after a fall-back.

    propose: takes the controller to start from (`reference`, or what was sampled where the policy
    is far worse) and gives a Proposal, or raises a GPSError. bound: KL per step in nats, for the
    report. may_rise: a proposal may have a higher expected cost than what it starts from.
    dynamics_prior, policy_prior, replay: kept with an accepted update. algorithm_state: that of
    the condition without one. Never raises for a model that cannot be used: the condition keeps a
    controller that has worked, and shrinks its step.
    """
    event = "the policy was sampled: update from it" if condition.tries_policy else ""
    found_cause: Finding | None = None
    kept = condition.algorithm_state if algorithm_state is None else algorithm_state
    if checked.rejected:
        rose = f"rose from {checked.best_sampled:.4g} to {checked.sampled_cost:.4g}"
        what = rose if math.isfinite(checked.sampled_cost) else f"is {checked.sampled_cost}"
        event = f"sampled cost {what}: back to an earlier controller"
        if not math.isfinite(checked.sampled_cost):
            found_cause = diagnosis.not_finite(checked.sampled_cost)
        shape = step_mult, event, bound, kept, found_cause
        return _fall_back(condition, condition.previous, checked, *shape)
    if checked.figures is not None:
        found_cause = diagnosis.blind(checked.figures)
    if not checked.trusted:
        cause = diagnosis.why(checked.figures)
        found_cause = cause if cause.cause != "unknown" else found_cause
        event = (
            f"model error {checked.model_gap:+.3g} times the cost scale (expected cost "
            f"{checked.expected_sampled:.4g}, sampled {checked.sampled_cost:.4g}): smaller step"
        )
    expected = checked.expected_cost
    if checked.policy_worse:
        reference, expected = condition.controller, checked.expected_sampled
        event = event or (
            f"the linearised policy's expected cost {checked.expected_cost:.4g} is far above the "
            f"sampled controller's {expected:.4g}: update from the controller"
        )
    try:
        found = propose(reference)
    except GPSError as error:
        log.debug("condition %d: no update: %s", checked.condition, error)
        # what a search says of itself is for whoever writes one, anything else for the user
        searched = isinstance(error, DualError | NotPositiveDefiniteError | NonFiniteError)
        cause = diagnosis.why(checked.figures, "" if searched else str(error))
        shape = step_mult, f"no update: {cause.text}", bound, kept, cause
        return _fall_back(condition, condition.controller, checked, *shape)
    slack = 1e-6 * checked.cost_scale
    worse = not may_rise and math.isfinite(expected) and found.predicted > expected + slack
    if worse or not math.isfinite(found.predicted):
        rises = f"its expected cost {found.predicted:.4g} is above the present {expected:.4g}"
        cause = diagnosis.why(checked.figures, rises)
        shape = step_mult, f"no update: {cause.text}", bound, kept, cause
        return _fall_back(condition, condition.controller, checked, *shape)
    if found.short:
        event = event or (
            f"the update uses {found.kl:.3g} of {bound:.3g} nats a step (algorithm.step.kl_max)"
        )
    log.debug(
        "condition %d: kl %.3f of %.3f nats at eta %.2e",
        checked.condition,
        found.kl,
        bound,
        found.eta,
    )
    return replace(
        _with_sampled(condition, checked, reference if condition.tries_policy else None),
        controller=found.controller,
        step_mult=step_mult,
        eta=found.eta,
        dynamics_prior=dynamics_prior,
        policy_prior=policy_prior,
        replay=replay,
        # the prediction of an untrusted model says nothing of its improvement ratio
        expected_cost=expected if checked.trusted else float("nan"),
        predicted_cost=found.predicted if checked.trusted else float("nan"),
        report=_report(
            *(checked, found.predicted, found.kl, bound, step_mult, found.eta, event),
            *(exploration_std(found.controller, condition.action_scale), True, found_cause),
        ),
        search=found.search,
        algorithm_state=found.algorithm_state,
    )


def _with_sampled(
    condition: ConditionState,
    checked: Assessment,
    sampled: LinearGaussianController | None = None,
) -> ConditionState:
    """The condition with the costs of its last accepted rollouts, and with the best controller.

    sampled: what acted, where that was not the condition's own controller.
    """
    last = replace(
        condition,
        last_cost=checked.sampled_cost,
        controller_cost=checked.expected_controller,
    )
    if not checked.sampled_best:
        return last
    return replace(
        last,
        previous=condition.controller if sampled is None else sampled,
        sampled_cost=checked.sampled_cost,
        cost_scale=checked.cost_scale,
        cost_error=checked.cost_error,
    )


def _fall_back(
    condition: ConditionState,
    controller: LinearGaussianController,
    checked: Assessment,
    step_mult: float,
    event: str,
    bound: float,
    algorithm_state: Record | None,
    cause: Finding | None,
) -> ConditionState:
    """Keep a controller that has worked; this iteration's rollouts do not enter the priors."""
    if not (checked.rejected or condition.tries_policy):
        condition = _with_sampled(condition, checked)
    return replace(
        condition,
        controller=controller,
        step_mult=step_mult,
        expected_cost=float("nan"),  # the next step rule has nothing to compare with
        predicted_cost=float("nan"),
        report=_report(
            *(checked, float("nan"), 0.0, bound, step_mult, condition.eta, event),
            *(exploration_std(controller, condition.action_scale), False, cause),
        ),
        search=None,
        algorithm_state=algorithm_state,
    )


def _report(
    checked: Assessment,
    predicted: float,
    kl: float,
    kl_max: float,
    step_mult: float,
    eta: float,
    event: str,
    std: float,
    updated: bool,
    cause: Finding | None,
) -> ConditionReport:
    return ConditionReport(
        condition=checked.condition,
        cost_mean=checked.cost_mean,
        cost_min=checked.cost_min,
        cost_max=checked.cost_max,
        expected_cost=checked.expected_cost,
        predicted_cost=predicted,
        kl=kl,
        kl_max=kl_max,
        step_mult=step_mult,
        eta=eta,
        event=event,
        exploration_std=None if math.isnan(std) else std,
        updated=updated,
        figures=checked.figures,
        cause=None if cause is None else cause.cause,
        advice=None if cause is None else cause.text,
        options=None if cause is None else " ".join(cause.options),
    )


def trained_steps(T: int, share: float) -> int:
    """Steps of T, from the first on, whose states are trained on; see `train_until`."""
    return math.ceil(share * T)


def targets(
    rollouts: Rollouts,
    condition: ConditionState,
    whole_trajectories: bool = False,
    share: float = 1.0,
) -> TrainingData:
    """Training data from one condition: its controller's mean actions at the sampled states.

    whole_trajectories: the samples are trained on by trajectory, as policies with memory are.
    share: of the steps, from the first on.
    """
    where = condition.replay or rollouts  # before the first update there is nothing to replay
    S, T, nx = len(where.X), trained_steps(where.X.shape[1], share), where.X.shape[2]
    images = where.images
    if images is not None:
        images = images[:, :T].reshape(S * T, *images.shape[2:])
    return TrainingData(
        obs=where.obs[:, :T].reshape(S * T, -1),
        target=condition.controller.mean_action(where.X)[:, :T].reshape(S * T, -1),
        precision=np.tile(condition.controller.precision[:T], (S, 1, 1)),
        weight=np.ones(S * T),
        images=images,
        state=None if images is None else where.X[:, :T].reshape(S * T, nx),
        layout=None if images is None else rollouts.layout,
        T=T if whole_trajectories else None,
    )


def train_policy(
    policy: PolicyState,
    data: list[TrainingData],
    config: TrainingConfig,
    restart: bool | None,
    seed: int,
    iteration: int,
    call: int,
) -> PolicyState:
    """The S-step: regression on the improved controllers' actions at the pooled rollouts."""
    start = _to_train(policy, restart, seed, iteration, call)
    return _trained(fit_pooled(start, data, config, seed, iteration, call))


def train_policy_on(
    ex: Executor,
    policy: Deferred[PolicyState],
    data: Sequence[Deferred[TrainingData]],
    config: TrainingConfig,
    sgd: SGDConfig,
    restart: bool | None,
    seed: int,
    iteration: int,
    call: int,
) -> Deferred[PolicyState]:
    """The S-step in the mode of `sgd`; in mode asynchronous it waits until the training ends."""
    if sgd.mode == "serial":
        pooled = list(data)
        return ex.call(train_policy, policy, pooled, config, restart, seed, iteration, call)
    start = ex.call(_to_train, policy, restart, seed, iteration, call)
    result = train(ex, start, data, config, sgd, seed, iteration, call)
    return ex.call(_trained, result)


@stage("train_policy")
def _to_train(
    policy: PolicyState, restart: bool | None, seed: int, iteration: int, call: int
) -> GlobalPolicy:
    """The policy that a training starts from: the last one, or a fresh one.

    restart: None for a fresh one where the last cannot follow the units of new data.
    """
    start = policy.policy
    fresh = not start.renormalises if restart is None else restart
    return start.restarted(stream(seed, "restarted policy", iteration, call)) if fresh else start


@stage("train_policy")
def _trained(result: TrainingResult[GlobalPolicy]) -> PolicyState:
    if not math.isfinite(result.loss):
        raise FitError(f"the policy's training loss became {result.loss}; lower the learning rate")
    return PolicyState(
        policy=result.policy,
        loss=result.loss,
        loss_trace=result.trace,
        staleness=result.staleness,
        dropped=result.dropped,
    )
