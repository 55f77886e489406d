"""Guided policy search by Bregman ADMM: dual variables draw controllers and policy together.

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

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from gps.algorithms import stages
from gps.algorithms.base import PolicyAlgorithm
from gps.algorithms.exploration import ExplorationConfig
from gps.algorithms.state import (
    Assessment,
    ConditionState,
    CostModel,
    DynamicsModel,
    GPSState,
    PolicyState,
    Proposal,
    Replay,
    Report,
)
from gps.algorithms.step_size import GuardConfig, StepConfig, new_multiplier
from gps.control import kl
from gps.control.dual import DualConfig
from gps.dynamics.linear import DynamicsConfig
from gps.errors import ConfigError, choices
from gps.execution import Executor, Serial, each
from gps.policies import MLPConfig, Network
from gps.policies.linearise import LineariseConfig, Linearised, mean_actions
from gps.policies.sgd import SGDConfig
from gps.policies.training import TrainingConfig, TrainingData
from gps.types import (
    Array,
    LinearGaussianController,
    QuadraticCost,
    Record,
    Rollouts,
    freeze,
    optional,
    shape_of,
)

WeightRule = Literal["fixed", "gradient", "change", "deviation"]


@dataclass(frozen=True, eq=False)
class Duals(Record):
    """What ties one condition's controller to the policy."""

    lam: Array  # (T, nu) cost units per unit of action
    weight: Array  # (T,) cost units per nat
    kl: Array | None = None  # (T,) nats, controller from policy at the last change of the weights
    unit: float | None = optional()
    """Mean absolute cost of a step in the condition's first rollouts, the unit of the weights in
    the configuration; None for 1, of a run of version 0.1."""

    def __post_init__(self) -> None:
        T, nu = shape_of(self, "lam", 2)
        freeze(self, lam=(T, nu), weight=(T,))
        if self.kl is not None:
            freeze(self, kl=(T,))


@dataclass(frozen=True, kw_only=True)
class BADMMConfig(PolicyAlgorithm):
    """Guided policy search by Bregman ADMM, with fitted dynamics and a step size per condition."""

    inner: int = 4
    """C-, S- and dual steps per iteration."""
    weight: float = 0.005
    """Weight w_t at first: of KL(p || pi), controller from policy, in the C-step, and of
    KL(pi || p) in the S-step. All weights here are per nat and in units of the condition's first
    rollouts: the mean absolute cost of one of their steps."""
    weight_rule: WeightRule = "deviation"
    """How w_t changes at the end of an iteration, by the step's KL(p || pi). "fixed":
    + weight_step. "gradient": + weight_step times the KL. "change": times weight_decrease where the
    KL fell below 0.8 of what it was, times weight_increase where it did not fall below 0.95.
    "deviation": times weight_decrease where the KL is more than weight_lower standard deviations
    below the mean over the steps, times weight_increase where it is weight_upper above."""
    weight_step: float | tuple[float, ...] = 5e-4
    """In the unit of the weights, with "gradient" per nat of the step's KL: one number, or one per
    iteration, of which the last holds from there on."""
    weight_decrease: float = 0.5
    """Factor of weights that are too large, between 0 and 1."""
    weight_increase: float = 2.0
    """Factor of weights that are too small, above 1."""
    weight_lower: float = 2.0
    """See weight_rule "deviation"; not below 0."""
    weight_upper: float = 2.0
    """See weight_rule "deviation"; not below 0."""
    weight_range: tuple[float, float] = (5e-6, 50.0)
    """Smallest and largest weight, in the same unit."""
    dual_rate: float = 0.1
    """Rate of the dual step, a share of the weights; not below 0, where 0 leaves the constraint to
    the weights."""
    network: Network = field(default_factory=MLPConfig)
    """The global policy."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Its training in every S-step."""
    sgd: SGDConfig = field(default_factory=SGDConfig)
    """How processes share the training."""
    restart: bool | None = None
    """Train a fresh network in every S-step, or continue; as `MDGPSConfig.restart`."""
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
    """KL bound around the previous controller, and its adaptation."""
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    """The least noise of the controllers."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """When a model or a controller is not trusted."""

    def __post_init__(self) -> None:
        if type(self.inner) is not int or self.inner < 1:
            raise ConfigError(f"BADMMConfig.inner must be at least 1, got {self.inner!r}")
        if self.weight_rule not in get_args(WeightRule):
            known = get_args(WeightRule)
            raise ConfigError(choices("BADMMConfig.weight_rule", self.weight_rule, known))
        low, high = self.weight_range
        if not 0 < low <= self.weight <= high < math.inf:
            raise ConfigError(
                "BADMMConfig needs 0 < weight_range[0] <= weight <= weight_range[1], got "
                f"{self.weight} and {self.weight_range}"
            )
        if not 0 < self.weight_decrease < 1 < self.weight_increase < math.inf:
            raise ConfigError(
                "BADMMConfig needs 0 < weight_decrease < 1 < weight_increase, got "
                f"{self.weight_decrease} and {self.weight_increase}"
            )
        for name in ("weight_lower", "weight_upper", "dual_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"BADMMConfig.{name} must be finite and not below 0, got {getattr(self, name)}"
                )
        if np.ndim(self.weight_step) > 1 or not np.size(self.weight_step):
            raise ConfigError(
                "BADMMConfig.weight_step must be one number or one per iteration, got "
                f"{self.weight_step!r}"
            )
        if not np.isfinite(self.weight_step).all():
            raise ConfigError(f"BADMMConfig.weight_step must be finite, got {self.weight_step!r}")

    def iterate(
        self, state: GPSState, rollouts: Sequence[Any], executor: Executor | None = None
    ) -> tuple[GPSState, Report]:
        """See `iterate`."""
        return iterate(state, rollouts, self, executor)


def iterate(
    state: GPSState,
    rollouts: Sequence[Any],
    config: BADMMConfig,
    executor: Executor | None = None,
) -> tuple[GPSState, Report]:
    """One iteration: fit dynamics, set the steps, then C-, S- and dual steps in turn."""
    ex = executor or Serial()
    it, seed, cond = state.iteration, state.seed, state.conditions
    train = (config.training, config.sgd, config.restart, seed, it)
    costs = each(ex, "expand_cost", stages.expand_cost, (state.costs, rollouts))
    models = each(
        ex, "fit_dynamics", stages.fit_dynamics, (rollouts, cond), config.dynamics, seed, it
    )
    rules = config.guard, config.step, config.dual.entropy_weight
    checks = each(ex, "assess", stages.assess_own, (cond, rollouts, costs, models), *rules)
    rule = (adjust_steps, checks, config.step, config.guard, it)
    mults = ex.call("set_steps", stages.set_steps, *rule)
    steps = ((mults,) * len(cond), range(len(cond)))
    policy = state.policy
    if it == 0:  # there is no policy to draw near to yet: start from the initial controllers
        data = each(ex, "targets", stages.targets, (rollouts, cond), config.remembers)
        policy = stages.train_policy_on(ex, policy, data, *train, 0)
    linearised: Sequence[Any] = ()
    duals = each(ex, "dual_step", _first_duals, (cond, checks), config)
    new: Sequence[Any] = cond
    for inner in range(config.inner):
        linearised = each(
            *(ex, "linearise_policy", stages.linearise_policy),
            ((policy,) * len(cond), rollouts, cond),
            *(config.linearise, seed, it),
        )
        given = (cond, rollouts, costs, models, linearised, duals, checks, *steps, new)
        new = each(ex, "improve", _improve, given, config)
        data = each(ex, "targets", _targets, (rollouts, new, duals), config.remembers)
        policy = stages.train_policy_on(ex, policy, data, *train, 1 + inner)
        last = inner == config.inner - 1
        pairs = (rollouts, new, (policy,) * len(cond), duals)
        duals = each(ex, "dual_step", _dual_step, pairs, config, it if last else None)
    new = each(ex, "dual_step", _remember, (new, duals))
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


def _first_duals(condition: ConditionState, checked: Assessment, config: BADMMConfig) -> Duals:
    """Those of the last iteration, or what a run begins with."""
    known: Duals | None = condition.own
    if known is not None:
        return known
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
        )

    return stages.decide(
        *(condition, condition.controller, propose, checked, mults[m], bound),
        may_rise=True,  # to draw near to the policy may cost something
        dynamics_prior=dynamics.prior,
        policy_prior=linearised.prior,
        replay=Replay.extended(condition.replay, rollouts, config.replay),
    )


def _targets(
    rollouts: Rollouts, condition: ConditionState, duals: Duals, remembers: bool = False
) -> TrainingData:
    """The S-step's targets: where the policy minimises lambda'u + w KL(pi || p) at each state.

    u = K x + k - Sigma lambda / w, with precision Sigma^-1 and weight w.
    """
    data = stages.targets(rollouts, condition, remembers)
    samples = data.n // rollouts.T
    shift = np.einsum("tij,tj->ti", condition.controller.Sigma, duals.lam) / duals.weight[:, None]
    return replace(
        data,
        target=data.target - np.tile(shift, (samples, 1)),
        weight=np.tile(duals.weight, samples),
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
    own = 2 * np.log(controller.chol.diagonal(axis1=1, axis2=2)).sum(axis=1)
    return np.asarray(0.5 * (logdet - own - controller.nu + trace + distance))


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
    least, most = config.weight_range
    return np.clip(w, unit * least, unit * most)


def _remember(condition: ConditionState, duals: Duals) -> ConditionState:
    return replace(condition, own=duals)


def adjust_steps(checks: Sequence[Assessment], step: StepConfig, guard: GuardConfig) -> list[float]:
    """The step multiplier of every condition for this iteration, each by itself.

    The rule compares expected costs. An update that promised none of that, since it drew the
    controller to the policy, leaves the multiplier as it is.
    """
    return [_adjust_step(check, step, guard) for check in checks]


def _adjust_step(check: Assessment, step: StepConfig, guard: GuardConfig) -> float:
    old = check.step_mult
    if check.rejected:
        return max(old * guard.shrink, step.min_mult)
    mult = old
    if check.updated and check.promised:
        mult = new_multiplier(old, check.kept, step)
    return mult if check.trusted else max(min(mult, old) * guard.shrink, step.min_mult)
