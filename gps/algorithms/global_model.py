"""Planning with one probabilistic model of all that has been seen.

After every iteration the model is fitted to the transitions of all conditions and iterations, and
iLQR plans through its means from the start of each condition: from the last plan and from random
actions, the best is executed in closed loop in the next iteration. Where the model has no data its
variance is part of the cost. So one rollout per condition and iteration is enough, and what is
learned in one condition serves all. Sources: M. P. Deisenroth, C. E. Rasmussen, PILCO, ICML 2011
(Gaussian processes on all data, one trial at a time); Y. Tassa, T. Erez, E. Todorov, IROS 2012 (the
planner).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt

from gps.algorithms import stages
from gps.algorithms.base import LocalAlgorithm, finish_iteration, unfitted
from gps.algorithms.exploration import ExplorationConfig
from gps.algorithms.planning import agent_of, require_agent_config
from gps.algorithms.state import (
    ConditionReport,
    ConditionState,
    CostModel,
    DynamicsModel,
    GPSState,
    Report,
)
from gps.control import ilqr
from gps.control.ilqr import ILQRConfig, ILQRResult, TrajectoryCost
from gps.costs import CostOf, model_cost
from gps.costs.base import Cost
from gps.dynamics.global_model import (
    GlobalDynamics,
    GlobalDynamicsConfig,
)
from gps.dynamics.linear import DynamicsFit
from gps.errors import ConfigError, NonFiniteError, NotPositiveDefiniteError
from gps.execution import Deferred, Executor, Serial, each, over, stage
from gps.fields import NonNegative, Range, Shape, Whole
from gps.protocols import Agent, KnownDynamics
from gps.rng import stream
from gps.types import (
    Array,
    Gaussian,
    Layout,
    LinearDynamics,
    LinearGaussianController,
    Record,
    Rollouts,
)

__all__ = ["GlobalModelConfig", "iterate"]

log = logging.getLogger(__name__)

_NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class GlobalModelConfig(LocalAlgorithm):
    """Plans through a global probabilistic model, local controllers only."""

    min_samples: ClassVar[int] = 1

    dynamics: GlobalDynamicsConfig = field(default_factory=GlobalDynamicsConfig)
    """The model."""
    planner: ILQRConfig = field(default_factory=lambda: ILQRConfig(iterations=60, tol_cost=1e-4))
    """The search for a plan."""
    starts: Whole = 2
    """Plans that begin at random actions, next to those that begin at the last plan and at the one
    with the lowest sampled cost."""
    start_std: Annotated[float, Range(above=0)] = 0.3
    """Standard deviation of these actions, as a share of half of each actuator's range."""
    switch: NonNegative = 0.1
    """Share by which a plan from random actions has to be cheaper than those from earlier plans to
    be executed: what has been tried is known to work, or not to."""
    kinematics: Any = None
    """Agent that says where end points are and what sensors show at given positions and velocities,
    usually the experiment's own: they are computed then, and not learned. None where no cost
    depends on such entries."""
    caution: NonNegative = 0.1
    """Weight of the model's doubt in the cost: of the variance of each change over that of the
    data, in units of the sampled cost of a step. 0 plans as if the model were right."""
    exploration: ExplorationConfig = field(default_factory=lambda: ExplorationConfig(floor=1e-3))
    """Noise of the plans' rollouts, all of it. Changing plans explore; noise is for several
    samples of one plan."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kinematics is not None:
            require_agent_config("GlobalModelConfig.kinematics", self.kinematics)
        if self.exploration.floor == 0:
            raise ConfigError(
                f"{type(self).__name__}.exploration.floor must be above 0: a controller has noise, "
                "be it 1e-6"
            )

    def check(self, agent: Agent) -> None:
        """ConfigError where `kinematics` is not of the agent's states."""
        super().check(agent)
        _Space.of(self, agent.layout)

    def start(
        self,
        costs: tuple[Cost, ...],
        controllers: tuple[LinearGaussianController, ...],
        agent: Agent,
        seed: int,
    ) -> GPSState:
        """The state before the first iteration, whose rollouts follow `controllers`."""
        state = super().start(costs, controllers, agent, seed)
        space = _Space.of(self, agent.layout)
        for m, cost in enumerate(costs):
            space.require_plannable(cost, agent, m)
        dynamics = unfitted(agent)
        structure = dynamics.structure.select(space.columns)
        return replace(
            state,
            conditions=tuple(
                replace(c, algorithm_state=Start(agent.start_state(m)))
                for m, c in enumerate(state.conditions)
            ),
            dynamics=GlobalDynamics.unfitted(structure, agent.nu, agent.dt),
        )

    def iterate(
        self,
        state: GPSState,
        rollouts: Sequence[Deferred[Rollouts]],
        executor: Executor | None = None,
    ) -> tuple[GPSState, Report]:
        """See `iterate`."""
        ex = executor or Serial()
        return iterate(state, rollouts, self, ex)


@dataclass(frozen=True, eq=False)
class Start(Record):
    """Where the plans of a condition begin."""

    x: Annotated[Array, Shape("nx")]


@dataclass(frozen=True, eq=False)
class _Space:
    """The states in which a plan is made: the agent's, or what the others of them follow from."""

    layout: Layout  # of the agent's state
    columns: npt.NDArray[np.intp]  # (ns,) where the plan's states lie in it
    kinematics: Any  # an agent, or None

    @classmethod
    def of(cls, config: GlobalModelConfig, layout: Layout) -> _Space:
        """ConfigError where the agent of `kinematics` does not know what its state follows from."""
        if config.kinematics is None:
            return cls(layout, np.arange(layout.size), None)
        agent = agent_of(config.kinematics)
        alike = agent.layout.entries == layout.entries
        known = alike and isinstance(agent, KnownDynamics)
        if not known or any(n not in layout.names for n in agent.model_entries):
            raise ConfigError(
                "GlobalModelConfig.kinematics must be the configuration of an agent with the "
                "experiment's state, positions and velocities among it, that knows what the rest "
                f"follows from, got {type(config.kinematics).__name__}"
            )
        return cls(layout, layout.columns(agent.model_entries), agent)

    def cost(self, cost: Cost, nu: int, T: int, m: int) -> CostOf:
        """The cost of condition m in states of the plan."""
        if self.kinematics is None:
            return CostOf(cost, self.layout, nu, T)
        return model_cost(cost, self.kinematics, m)

    def require_plannable(self, cost: Cost, agent: Agent, m: int) -> None:
        """ConfigError for a cost that needs what is not known."""
        x0 = np.tile(agent.start_state(m)[self.columns], (agent.T, 1))
        try:
            self.cost(cost, agent.nu, agent.T, m).derivatives(x0, np.zeros((agent.T, agent.nu)))
        except ConfigError as error:
            raise ConfigError(
                "GlobalModelConfig.kinematics: a cost needs more than the state: give the "
                f"experiment's agent, if it knows where its end points are ({error})"
            ) from error

    def reduced(self, controller: LinearGaussianController) -> LinearGaussianController:
        """A plan's controller, for states of the plan."""
        return replace(controller, K=controller.K[:, :, self.columns])

    def widened(self, controller: LinearGaussianController) -> LinearGaussianController:
        """A plan's controller, for states of the agent."""
        K = np.zeros((*controller.K.shape[:2], self.layout.size))
        K[:, :, self.columns] = controller.K
        return replace(controller, K=K)


def iterate(
    state: GPSState,
    rollouts: Sequence[Deferred[Rollouts]],
    config: GlobalModelConfig,
    ex: Executor,
) -> tuple[GPSState, Report]:
    """One iteration: the model of all transitions, then a plan for each condition."""
    it, seed, samples = state.iteration, state.seed, over(rollouts)
    costs = each(ex, stages.expand_cost, over(state.costs), samples)
    assert state.dynamics is not None
    model = ex.call(_fit, state.dynamics, list(rollouts), config)
    cond, m = over(state.conditions), over(range(len(costs)))
    where = (cond, over(costs), over(state.costs), samples, model)
    new = each(ex, _plan, *where, m, seed, it, config)
    models: dict[str, Sequence[Deferred[Record]]] = {"cost": costs}
    if config.kinematics is None:  # else of other states than the agent's
        models["dynamics"] = each(ex, _linearised, samples, model, config)
    after, report = finish_iteration(ex, state, new, state.policy, **models)
    return replace(after, dynamics=model), replace(report, policy_loss=_NAN)


@stage("fit_global")
def _fit(
    model: GlobalDynamics, rollouts: list[Rollouts], config: GlobalModelConfig
) -> GlobalDynamics:
    """The model with the transitions of an iteration, in the states of the plans."""
    columns = _Space.of(config, rollouts[0].layout).columns
    return stages.fit_global_dynamics(model, rollouts, config.dynamics, columns)


def _plan(
    condition: ConditionState,
    sampled: CostModel,
    cost: Cost,
    rollouts: Rollouts,
    model: GlobalDynamics,
    m: int,
    seed: int,
    iteration: int,
    config: GlobalModelConfig,
) -> ConditionState:
    """The best plan of several; where none is found the last controller stays."""
    totals = sampled.l.sum(axis=1)
    cost_now = float(totals.mean())
    T, nu = condition.controller.k.shape
    space = _Space.of(config, rollouts.layout)
    plain = space.cost(cost, nu, T, m)
    unit = max(float(np.abs(sampled.l).mean()), 1e-290)
    doubtful = Doubtful(plain, model, config.caution * unit)
    assert isinstance(condition.algorithm_state, Start)
    assert condition.action_scale is not None
    x0, half = condition.algorithm_state.x[space.columns], condition.action_scale
    low, high = (-np.inf, np.inf) if condition.control_range is None else condition.control_range
    improves = not condition.sampled_cost <= cost_now  # True for NaN
    seen = condition
    if improves:
        seen = replace(condition, previous=condition.controller, sampled_cost=cost_now)
    earlier: list[LinearGaussianController] = []
    if iteration > 0:  # the initial controllers' actions are noise
        earlier = [condition.controller, *([] if improves else [condition.previous])]
    why: list[str] = []

    def planned(U: Array, first: LinearGaussianController | None = None) -> Iterator[ILQRResult]:
        """A plan that begins at actions, or where a controller leads; none where that fails."""
        try:
            yield ilqr.minimise(
                *(model, doubtful, x0, U),
                limits=(low, high),
                controller=first,
                config=config.planner,
                temperature=0.0,
            )
        except (NonFiniteError, NotPositiveDefiniteError) as error:
            why.append(str(error))

    rng = stream(seed, "plan", iteration, m)
    draws = config.start_std * half * rng.standard_normal((max(1, config.starts), T, nu))
    known = [plan for c in earlier for plan in planned(c.k, space.reduced(c))]
    starts = draws[: max(config.starts, 1 - len(known))]
    new = [plan for U in starts for plan in planned(np.clip(U, low, high))]
    if not known and not new:
        event = f"no plan, the last controller stays: {why[-1]}"
        return replace(seen, report=_report(m, totals, _NAN, event))
    best = _chosen(known, new, config.switch)
    std = config.exploration.std_floor(half)
    assert std is not None
    predicted = float(plain.values(best.X[None], best.U[None]).sum())
    log.debug("condition %d: planned cost %.6g, %s", m, predicted, best.reason)
    found = space.widened(best.controller)
    return replace(
        seen,
        controller=replace(found, chol=np.tile(np.diag(std), (T, 1, 1))),
        predicted_cost=predicted,
        report=_report(m, totals, predicted, ""),
    )


def _chosen(known: list[ILQRResult], new: list[ILQRResult], switch: float) -> ILQRResult:
    """The cheapest plan; one that begins at random actions only where it is cheaper by the share
    `switch` than all that begin at earlier plans, whose rollouts have been seen."""
    if not known:
        return min(new, key=_cost)
    kept = min(known, key=_cost)
    if not new:
        return kept
    other = min(new, key=_cost)
    return other if other.cost < kept.cost - switch * abs(kept.cost) else kept


def _cost(plan: ILQRResult) -> float:
    return plan.cost


def _linearised(
    rollouts: Rollouts, model: GlobalDynamics, config: GlobalModelConfig
) -> DynamicsModel:
    """The model along the first rollout, as the other algorithms' fitted dynamics."""
    columns = _Space.of(config, rollouts.layout).columns
    X, U = rollouts.X[0][:, columns], rollouts.U[0]
    F, variance, _ = model.linearised(X[:-1], U[:-1])
    after = model.step(X[:-1], U[:-1])
    f = after - np.einsum("txz,tz->tx", F, np.concatenate([X[:-1], U[:-1]], axis=1))
    W = np.zeros_like(F[:, :, : model.nx])
    W[:, np.arange(model.nx), np.arange(model.nx)] = variance + model.process.noise**2
    x0 = rollouts.X[:, 0][:, columns]
    start = Gaussian(x0.mean(axis=0), np.diag(x0.var(axis=0)))
    return DynamicsModel(fit=DynamicsFit(LinearDynamics(F, f, W), start), prior=None)


class Doubtful:
    """A cost plus a weight times the variances that the model gives the next state.

    A variance counts relative to that of the entry's changes in the data, and its curvature by the
    Gauss-Newton form of the standard deviation.
    """

    def __init__(self, cost: TrajectoryCost, model: GlobalDynamics, weight: float) -> None:
        self._cost, self._model, self._weight = cost, model, weight
        var = model.process.Y.var(axis=0)
        known = (var > 0) & (np.array(model.structure.velocity) < 0)  # the others follow from these
        self._share = np.where(known, weight / np.where(known, var, 1.0), 0.0)

    def values(self, X: Array, U: Array) -> Array:
        """See `gps.control.ilqr.TrajectoryCost`."""
        values = self._cost.values(X, U)
        if not self._weight:
            return values
        finite = np.isfinite(X).all(axis=(1, 2))
        B, T = int(finite.sum()), X.shape[1]
        flat = self._model.variances(X[finite].reshape(B * T, -1), U[finite].reshape(B * T, -1))
        both = np.full(values.shape, np.inf)
        both[finite] = values[finite] + (flat @ self._share).reshape(B, T)
        return both

    def derivatives(self, X: Array, U: Array) -> tuple[Array, Array]:
        """See `gps.control.ilqr.TrajectoryCost`."""
        gradient, hessian = self._cost.derivatives(X, U)
        if not self._weight:
            return gradient, hessian
        _, variance, slope = self._model.linearised(X, U)
        gradient = gradient + np.einsum("tx,txz->tz", np.tile(self._share, (len(X), 1)), slope)
        root = slope / (2.0 * np.sqrt(np.maximum(variance, 1e-300)))[:, :, None]
        root = root * np.sqrt(2.0 * self._share)[:, None]
        return gradient, hessian + root.transpose(0, 2, 1) @ root


def _report(m: int, totals: Array, predicted: float, event: str) -> ConditionReport:
    """The iteration in numbers; there is no KL bound."""
    return ConditionReport(
        condition=m,
        cost_mean=float(totals.mean()),
        cost_min=float(totals.min()),
        cost_max=float(totals.max()),
        expected_cost=_NAN,
        predicted_cost=predicted,
        kl=_NAN,
        kl_max=_NAN,
        step_mult=_NAN,
        eta=_NAN,
        event=event,
        updated=not event,
        cause="unknown" if event else None,
        advice=event or None,
    )
