"""Guided policy search by Bregman ADMM: dual variables make controllers and policy agree.

The augmented Lagrangian of condition m, with the local controller p, the global policy pi, the dual
variables lambda_t (cost per action) and the weights w_t (cost per nat)::

    C-step: E_p[l] + sum_t lambda_t' (E_pi[u_t] - E_p[u_t]) + w_t KL(p || pi)
    S-step: E_p[l] + sum_t lambda_t' (E_pi[u_t] - E_p[u_t]) + w_t KL(pi || p)

C-step: minimise over p, KL-bounded around the previous controller. S-step: minimise over pi.
Dual step: lambda_t += rate w_t Sigma_t^-1 (E_pi[u_t] - E_p[u_t]). Some of these per iteration, on
the same rollouts.
Source: S. Levine, C. Finn, T. Darrell, P. Abbeel, End-to-end training of deep visuomotor policies,
JMLR 2016 (arXiv 1504.00702), section 4 and appendix A; weight rules as in cbfinn/gps
algorithm_badmm.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import numpy as np

from gps.algorithms import stages
from gps.algorithms.base import FittedAlgorithm, PolicyAlgorithm, finish_iteration
from gps.algorithms.state import (
    Assessment,
    ConditionState,
    CostModel,
    DynamicsModel,
    GPSState,
    PolicyState,
    Proposal,
    ReplayBuffer,
    Report,
)
from gps.control import kl
from gps.control.dual import DualConfig
from gps.errors import ConfigError
from gps.execution import Deferred, Executor, Serial, each, over, stage
from gps.fields import Count, NonNegative, Positive, Range, Shape
from gps.policies.linearise import Linearised, mean_actions
from gps.policies.training import TrainingData
from gps.types import (
    Array,
    LinearGaussianController,
    QuadraticCost,
    Record,
    Rollouts,
    optional,
)

WeightRule = Literal["fixed", "gradient", "change", "deviation"]


@dataclass(frozen=True, eq=False)
class Duals(Record):
    """The terms that couple one condition's controller to the policy."""

    lam: Annotated[Array, Shape("T nu")]
    """Cost units per unit of action."""
    weight: Annotated[Array, Shape("T")]
    """Cost units per nat."""
    kl: Annotated[Array, Shape("T")] | None = None
    """Nats, controller from policy, at the last change of the weights."""
    unit: float | None = optional()
    """Mean absolute cost of a step in the condition's first rollouts, the unit of the weights in
    the configuration; None for 1."""


@dataclass(frozen=True, kw_only=True)
class BADMMConfig(PolicyAlgorithm, FittedAlgorithm):
    """Guided policy search by Bregman ADMM, with fitted dynamics and a step size per condition.

    The KL bound of `step` is around the previous controller.
    """

    inner: Count = 4
    """C-, S- and dual steps per iteration."""
    weight: Positive = 0.005
    """Weight w_t at first: of KL(p || pi), controller from policy, in the C-step, and of
    KL(pi || p) in the S-step. All weights here are per nat and in units of the condition's first
    rollouts: the mean absolute cost of one of their steps."""
    weight_rule: WeightRule = "deviation"
    """How w_t changes at the end of an iteration, by the step's KL(p || pi). "fixed":
    + weight_step. "gradient": + weight_step times the KL. "change": times weight_decrease where the
    KL fell below 0.8 of what it was, times weight_increase where it did not fall below 0.95.
    "deviation": times weight_decrease where the KL is more than weight_lower standard deviations
    below the mean over the steps, times weight_increase where it is weight_upper above."""
    weight_step: Annotated[float | tuple[float, ...], Range()] = 5e-4
    """In the unit of the weights, with "gradient" per nat of the step's KL: one number, or one per
    iteration, of which the last holds from there on."""
    weight_decrease: Annotated[float, Range(above=0, below=1)] = 0.5
    """Factor of weights that are too large."""
    weight_increase: Annotated[float, Range(above=1)] = 2.0
    """Factor of weights that are too small."""
    weight_lower: NonNegative = 2.0
    """See weight_rule "deviation"."""
    weight_upper: NonNegative = 2.0
    """See weight_rule "deviation"."""
    weight_range: tuple[Positive, Positive] = (5e-6, 50.0)
    """Smallest and largest weight, in the same unit."""
    dual_rate: NonNegative = 0.1
    """Rate of the dual step, a share of the weights; 0 leaves the constraint to the weights."""
    dual: DualConfig = field(default_factory=DualConfig)
    """Search for the dual variable of the KL bound."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.weight_range
        if not low <= self.weight <= high:
            raise ConfigError(
                "BADMMConfig needs weight_range[0] <= weight <= weight_range[1], got "
                f"{self.weight} and {self.weight_range}"
            )
        if self.weight_step == ():
            raise ConfigError("BADMMConfig.weight_step must be one number or one per iteration")

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
    config: BADMMConfig,
    executor: Executor | None = None,
) -> tuple[GPSState, Report]:
    """One iteration: fit dynamics, set the steps, then C-, S- and dual steps in turn."""
    ex = executor or Serial()
    it, seed, cond, samples = state.iteration, state.seed, over(state.conditions), over(rollouts)
    costs = each(ex, stages.expand_cost, over(state.costs), samples)
    models, state = config.fit_dynamics(ex, state, rollouts)
    fitted = samples, over(costs), over(models)
    rules = config.guard, config.step, config.dual.entropy_weight
    checks = each(ex, stages.assess_own, cond, *fitted, *rules)
    mults = ex.call(stages.set_steps, checks, config.step, config.guard, it, False, True)
    m = over(range(len(checks)))
    policy = state.policy
    if it == 0:  # there is no policy to be near to yet: start from the initial controllers
        policy = config.train_policy_at(ex, state, rollouts, state.conditions)
    assert policy is not None
    linearised: Sequence[Linearised] = ()
    duals = each(ex, _first_duals, cond, over(checks), config)
    new: Sequence[ConditionState] = state.conditions
    for inner in range(config.inner):
        linearise = config.linearise, seed, it
        linearised = each(ex, stages.linearise_policy, policy, samples, cond, *linearise)
        ties = over(linearised), over(duals)
        new = each(ex, _improve, cond, *fitted, *ties, over(checks), mults, m, over(new), config)
        how = config.network.has_memory, config.train_until
        data = each(ex, _targets, samples, over(new), over(duals), *how)
        policy = config.train_policy(ex, policy, data, seed, it, 1 + inner)
        last = inner == config.inner - 1
        step = config, it if last else None
        duals = each(ex, _dual_step, samples, over(new), policy, over(duals), *step)
    new = each(ex, _with_duals, over(new), over(duals))
    return finish_iteration(
        ex, state, new, policy, cost=costs, dynamics=models, linearised=linearised
    )


@stage("dual_step")
def _first_duals(condition: ConditionState, checked: Assessment, config: BADMMConfig) -> Duals:
    """Those of the last iteration, or what a run begins with."""
    if isinstance(condition.algorithm_state, Duals):
        return condition.algorithm_state
    T, nu = condition.controller.T, condition.controller.nu
    unit = checked.cost_scale / T
    return Duals(np.zeros((T, nu)), np.full(T, config.weight * unit), unit=unit)


def surrogate(
    cost: QuadraticCost, policy: LinearGaussianController, duals: Duals
) -> tuple[QuadraticCost, Array]:
    """The C-step's cost l - lambda'u - w log pi(u | x), and the entropy weight w (T,) beside it.

    `dual.minimise` with both minimises the Lagrangian over p: w KL(p || pi) is the expectation of
    -w log pi less w times p's entropy. Constants are left out.
    """
    nx = policy.nx
    R, r = kl.penalty(policy, kl.factors(policy)[0])
    C = cost.C + duals.weight[:, None, None] * R
    c = cost.c + duals.weight[:, None] * r
    c[:, nx:] -= duals.lam
    return QuadraticCost(C, c, cost.c0), duals.weight


def _improve(
    condition: ConditionState,
    rollouts: Rollouts,
    cost: CostModel,
    dynamics: DynamicsModel,
    linearised: Linearised,
    duals: Duals,
    checked: Assessment,
    mults: Sequence[float],
    m: int,
    last: ConditionState,
    config: BADMMConfig,
) -> ConditionState:
    """The C-step around the sampled controller; `last` has the dual variable to begin with."""
    bound = config.step.kl_max * mults[m]
    entropy_weight = config.dual.entropy_weight

    def propose(reference: LinearGaussianController) -> Proposal:
        objective, weight = surrogate(cost.quadratic, linearised.controller, duals)
        result = stages.bounded_update(
            *(condition, objective, dynamics, reference, bound, config.dual, config.exploration),
            number=checked.condition,
            eta=last.eta,
            entropy_weight=entropy_weight + weight,
        )
        return Proposal(
            controller=result.controller,
            predicted=stages.total_expected_cost(result.controller, cost, dynamics, entropy_weight),
            kl=float(result.kl.mean()),
            eta=result.eta,
            search=result,
            short=not result.converged,
        )

    return stages.accept_or_reject(
        *(condition, condition.controller, propose, checked, mults[m], bound),
        may_rise=True,  # to come nearer to the policy may raise the cost
        dynamics_prior=dynamics.prior,
        policy_prior=linearised.prior,
        replay=ReplayBuffer.extended(condition.replay, rollouts, config.replay),
    )


def _targets(
    rollouts: Rollouts,
    condition: ConditionState,
    duals: Duals,
    whole_trajectories: bool = False,
    share: float = 1.0,
) -> TrainingData:
    """The S-step's targets: where the policy minimises lambda'u + w KL(pi || p) at each state.

    u = K x + k - Sigma lambda / w, with precision Sigma^-1 and weight w.
    """
    data = stages.targets(rollouts, condition, whole_trajectories, share)
    T = stages.trained_steps(rollouts.T, share)
    samples = data.n // T
    shift = np.einsum("tij,tj->ti", condition.controller.Sigma, duals.lam) / duals.weight[:, None]
    return replace(
        data,
        target=data.target - np.tile(shift[:T], (samples, 1)),
        weight=np.tile(duals.weight[:T], samples),
    )


def _dual_step(
    rollouts: Rollouts,
    condition: ConditionState,
    policy: PolicyState,
    duals: Duals,
    config: BADMMConfig,
    iteration: int | None,
) -> Duals:
    """New dual variables, and new weights where `iteration` is given."""
    mean = mean_actions(policy.policy, rollouts.obs, rollouts.images)
    controller = condition.controller
    duals = replace(duals, lam=new_multipliers(rollouts.X, controller, mean, duals, config))
    if iteration is None:
        return duals
    near = kl_from_policy(rollouts.X, controller, mean, policy.policy.Sigma)
    return replace(duals, weight=new_weights(duals, near, config, iteration), kl=near)


def new_multipliers(
    X: Array, controller: LinearGaussianController, mean: Array, duals: Duals, config: BADMMConfig
) -> Array:
    """lambda_t + rate w_t Sigma_t^-1 (E_pi[u] - E_p[u]), (T, nu).

    X (N, T, nx): sampled states. mean (N, T, nu): the policy's mean actions there.
    """
    gap = (mean - controller.mean_action(X)).mean(axis=0)
    step = np.einsum("tij,tj->ti", controller.precision, gap)
    return duals.lam + config.dual_rate * duals.weight[:, None] * step


def kl_from_policy(
    X: Array, controller: LinearGaussianController, mean: Array, Sigma: Array
) -> Array:
    """KL(controller || policy) per step, (T,) in nats, averaged over the sampled states.

    X (N, T, nx); mean (N, T, nu) and Sigma (nu, nu) are the policy's. Not clipped.
    """
    d = controller.mean_action(X) - mean
    P = np.linalg.inv(Sigma)
    distance = np.einsum("nti,ij,ntj->t", d, P, d) / len(X)
    trace = np.einsum("ij,tji->t", P, controller.Sigma)
    logdet = np.linalg.slogdet(Sigma)[1]
    controller_logdet = 2 * np.log(controller.chol.diagonal(axis1=1, axis2=2)).sum(axis=1)
    return np.asarray(0.5 * (logdet - controller_logdet - controller.nu + trace + distance))


def new_weights(duals: Duals, near: Array, config: BADMMConfig, iteration: int) -> Array:
    """w_t by `BADMMConfig.weight_rule`, (T,). near: this iteration's KL per step, (T,)."""
    w, old = duals.weight, duals.kl
    unit = 1.0 if duals.unit is None else duals.unit
    steps = np.atleast_1d(config.weight_step)
    step = unit * float(steps[min(iteration, len(steps) - 1)])
    if config.weight_rule == "fixed":
        w = w + step
    elif config.weight_rule == "gradient":
        w = w + step * near
    elif old is not None:  # both of the others compare with the iteration before
        if config.weight_rule == "change":
            less, more = near < 0.8 * old, near >= 0.95 * old
        else:
            less = near < near.mean() - config.weight_lower * near.std()
            more = near >= near.mean() + config.weight_upper * near.std()
        w = np.where(
            less, config.weight_decrease * w, np.where(more, config.weight_increase * w, w)
        )
    low, high = config.weight_range
    return np.clip(w, unit * low, unit * high)


@stage("dual_step")
def _with_duals(condition: ConditionState, duals: Duals) -> ConditionState:
    return replace(condition, algorithm_state=duals)
