"""Planning with known dynamics: iLQR on a model of the agent, local controllers only.

Every condition's plan starts at its start state and is improved by `gps.control.ilqr.minimise`,
some steps per iteration. Rollouts show how well the plan is tracked; they do not enter the plan.
So the same loop, store and executors serve known dynamics as well as fitted ones, and the costs of
both can be compared.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import numpy as np

from gps.algorithms import stages
from gps.algorithms.base import Algorithm, finish_iteration
from gps.algorithms.state import (
    ConditionReport,
    ConditionState,
    CostModel,
    GPSState,
    Report,
)
from gps.control import ilqr, models
from gps.control.ilqr import ILQRConfig, ILQRResult, TrajectoryCost
from gps.costs import model_cost
from gps.costs.base import Cost
from gps.errors import ConfigError, NonFiniteError, NotPositiveDefiniteError
from gps.execution import Deferred, Executor, Serial, each, over
from gps.fields import Count, Range
from gps.protocols import Agent, BuildsAgent, DerivedState, KnownDynamics, control_range_of
from gps.types import Array, Layout, LinearGaussianController, Rollouts

__all__ = ["ILQRPlanningConfig", "iterate"]

log = logging.getLogger(__name__)

_NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class ILQRPlanningConfig(Algorithm):
    """iLQR with known dynamics, one plan and its gains per condition."""

    min_samples: ClassVar[int] = 1

    model: Any
    """Agent whose dynamics the planner knows, usually the experiment's own; another one of the
    same shape shows what a wrong model costs. An option set for the agent is to be set here too."""
    planner: ILQRConfig = field(default_factory=ILQRConfig)
    """The search; of its `iterations`, `steps_per_iteration` are done at once at most."""
    steps_per_iteration: Count = 10
    """iLQR iterations in each iteration of the run, which continue from the last plan; the
    regularisation is reset to `planner.initial`."""
    limits: bool = True
    """Whether the plan keeps to the model's control range. False plans without limits, and the
    agent clips what it gets."""
    exploration: Annotated[float | tuple[float, ...], Range(above=0)] = 0.05
    """Standard deviation of the action noise in rollouts, in the unit of each action: one number
    or one for each. No rollout without noise depends on it, and no plan."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_agent_config("ILQRPlanningConfig.model", self.model)
        if self.exploration == ():
            raise ConfigError("ILQRPlanningConfig.exploration must be one number or one per action")

    def check(self, agent: Agent) -> None:
        """ConfigError where no condition of `agent` can be planned with the model."""
        self._check_alike(agent_of(self.model), agent)
        self._noise_std(agent.nu)
        for m in range(agent.n_conditions):
            _known(self, m)

    def start(
        self,
        costs: tuple[Cost, ...],
        controllers: tuple[LinearGaussianController, ...],
        agent: Agent,
        seed: int,
    ) -> GPSState:
        """The state before the first iteration; the first plans follow `controllers`.

        Raises ConfigError when the model is not known, differs from `agent` in more than its
        dynamics, or does not suit the costs and the initial controllers.
        """
        self.check(agent)
        for m, (cost, controller) in enumerate(zip(costs, controllers, strict=True)):
            _Problem.of(self, cost, m).reduced(controller)
        return GPSState(
            iteration=0,
            seed=seed,
            costs=costs,
            conditions=tuple(
                ConditionState(controller=c, previous=c, step_mult=1.0) for c in controllers
            ),
        )

    def iterate(
        self,
        state: GPSState,
        rollouts: Sequence[Deferred[Rollouts]],
        executor: Executor | None = None,
    ) -> tuple[GPSState, Report]:
        """See `iterate`."""
        return iterate(state, rollouts, self, executor)

    def _check_alike(self, model: Agent, agent: Agent) -> None:
        """ConfigError unless the model's agent has the shape and the starts of the experiment's."""
        facts: list[tuple[str, Any, Any]] = [
            ("state", model.layout.entries, agent.layout.entries),
            ("action size", model.nu, agent.nu),
            ("number of steps T", model.T, agent.T),
            ("step dt", model.dt, agent.dt),
            ("number of conditions", model.n_conditions, agent.n_conditions),
        ]
        for what, here, there in facts:
            if here != there:
                raise ConfigError(
                    f"ILQRPlanningConfig.model: its {what} is {here}, the experiment's agent has "
                    f"{there}; give it the same options as the experiment's agent, but for its "
                    "dynamics"
                )
        columns = _columns(model, type(self.model).__name__)
        for m in range(agent.n_conditions):
            here, there = model.start_state(m)[columns], agent.start_state(m)[columns]
            if not np.allclose(here, there, rtol=1e-9, atol=1e-12):
                raise ConfigError(
                    f"ILQRPlanningConfig.model: its condition {m} starts at {here}, the "
                    f"experiment's agent at {there}; a plan has to begin where the rollouts do"
                )

    def _noise_std(self, nu: int) -> Array:
        """`exploration` of each action, (nu,)."""
        values = np.asarray(self.exploration, dtype=np.float64)
        if values.ndim and values.shape != (nu,):
            raise ConfigError(
                f"ILQRPlanningConfig.exploration has {values.size} values, there are {nu} actions"
            )
        return np.broadcast_to(values, (nu,))


def iterate(
    state: GPSState,
    rollouts: Sequence[Deferred[Rollouts]],
    config: ILQRPlanningConfig,
    executor: Executor | None = None,
) -> tuple[GPSState, Report]:
    """One iteration: the cost of the rollouts, then some iLQR steps from each condition's plan."""
    ex = executor or Serial()
    costs = each(ex, stages.expand_cost, over(state.costs), over(rollouts))
    m = over(range(len(costs)))
    new = each(ex, _plan, over(state.conditions), over(costs), over(state.costs), m, config)
    return finish_iteration(ex, state, new, cost=costs)


def _plan(
    condition: ConditionState, sampled: CostModel, cost: Cost, m: int, config: ILQRPlanningConfig
) -> ConditionState:
    """Some iLQR steps from the present plan; a plan that fails leaves the controller as it is.

    The present plan is where the controller's mean actions lead on the model, so that nothing
    but the controller has to be kept from one iteration to the next.
    """
    problem = _Problem.of(config, cost, m)
    planner = config.planner
    steps = min(config.steps_per_iteration, planner.iterations)
    totals = sampled.l.sum(axis=1)
    seen = replace(condition, previous=condition.controller, sampled_cost=float(totals.mean()))
    try:
        first = problem.reduced(condition.controller)
        plan = ilqr.minimise(
            problem.model,
            problem.cost,
            problem.start,
            np.zeros_like(first.k),
            limits=problem.limits,
            controller=first,
            config=replace(planner, iterations=steps),
        )
    except (NonFiniteError, NotPositiveDefiniteError) as error:
        event = f"no plan, the last controller stays: {error}"
        report = _report(m, totals, _NAN, _NAN, event, updated=False)
        return replace(seen, expected_cost=_NAN, predicted_cost=_NAN, report=report)
    before, after = float(plan.costs[0]), plan.cost
    event = _event(plan, condition, planner)
    log.debug(
        "condition %d: planned cost %.6g after %d steps, from %.6g: %s",
        *(m, after, plan.iterations, before, plan.reason),
    )
    return replace(
        seen,
        controller=problem.widened(plan.controller, config),
        expected_cost=before,
        predicted_cost=after,
        report=_report(m, totals, before, after, event),
    )


def _event(plan: ILQRResult, condition: ConditionState, planner: ILQRConfig) -> str:
    """What became of the plan, when that is new."""
    if plan.reason == "regularisation":
        return (
            f"the plan stays at cost {plan.cost:.6g}: no step lowers it at the largest "
            f"regularisation {planner.largest:g}"
        )
    lowered = float(plan.costs[0]) - plan.cost
    news = condition.report is None or lowered >= planner.tol_cost * (plan.unit + abs(plan.cost))
    return f"the plan has converged ({plan.reason})" if plan.converged and news else ""


def _report(
    m: int, totals: Array, before: float, after: float, event: str, updated: bool = True
) -> ConditionReport:
    """The iteration in numbers; there is no KL bound, hence no step size and no dual variable."""
    return ConditionReport(
        condition=m,
        cost_mean=float(totals.mean()),
        cost_min=float(totals.min()),
        cost_max=float(totals.max()),
        expected_cost=before,
        predicted_cost=after,
        kl=_NAN,
        kl_max=_NAN,
        step_mult=_NAN,
        eta=_NAN,
        event=event,
        updated=updated,
        cause=None if updated else "unknown",
        advice=None if updated else event,
    )


# --- the planning problem of a condition


@dataclass(frozen=True, eq=False)
class _Problem:
    """A condition's planning problem, in the states of the model."""

    model: models.Model
    cost: TrajectoryCost
    start: Array  # (ns,)
    columns: np.ndarray  # (ns,) where the model's state lies in the agent's
    layout: Layout  # of the agent's state
    limits: tuple[Array, Array]

    @classmethod
    def of(cls, config: ILQRPlanningConfig, cost: Cost, m: int) -> _Problem:
        """The problem of condition `m`; ConfigError where the agent lacks something."""
        agent, name = agent_of(config.model), type(config.model).__name__
        model, columns = _known(config, m)
        limits = np.full(agent.nu, -np.inf), np.full(agent.nu, np.inf)
        if config.limits:
            found = control_range_of(agent)
            if found is None:
                raise ConfigError(
                    f"ILQRPlanningConfig.limits: {name} has no control_range; give it one, or plan "
                    "with limits=False"
                )
            limits = found
        return cls(
            model=model,
            cost=model_cost(cost, agent, m),
            start=agent.start_state(m)[columns],
            columns=columns,
            layout=agent.layout,
            limits=limits,
        )

    def reduced(self, controller: LinearGaussianController) -> LinearGaussianController:
        """The controller for states of the model; ConfigError if it has gains on other states."""
        rest = np.setdiff1d(np.arange(controller.nx), self.columns)
        if controller.K[:, :, rest].any():
            raise ConfigError(
                "a plan's initial controller may have gains on "
                f"{_names(self.layout, self.columns)} only, this one has others"
            )
        return replace(controller, K=controller.K[:, :, self.columns])

    def widened(
        self, controller: LinearGaussianController, config: ILQRPlanningConfig
    ) -> LinearGaussianController:
        """The controller for states of the agent, with the configured noise."""
        T, nu, _ = controller.K.shape
        K = np.zeros((T, nu, self.layout.size))
        K[:, :, self.columns] = controller.K
        noise = np.diag(config._noise_std(nu))
        return LinearGaussianController(K=K, k=controller.k, chol=np.tile(noise, (T, 1, 1)))


def _known(config: ILQRPlanningConfig, m: int) -> tuple[models.Model, np.ndarray]:
    """The model of a condition, and where its state lies in the agent's; ConfigError."""
    agent, name = agent_of(config.model), type(config.model).__name__
    columns = _columns(agent, name)
    # agents do not import gps.control, and are given its classes
    model: models.Model = agent.known_model(m, models)
    if (model.nx, model.nu) != (len(columns), agent.nu):
        raise ConfigError(
            f"{name}.known_model: states and actions must have the sizes "
            f"{len(columns)} and {agent.nu}, got {model.nx} and {model.nu}"
        )
    return model, columns


def _columns(agent: Agent, name: str) -> np.ndarray:
    """Where the model's state lies in the agent's, (ns,); ConfigError if there is no model."""
    if not isinstance(agent, KnownDynamics):
        raise ConfigError(
            f"ILQRPlanningConfig.model: the dynamics of {name} are not known; its agent needs a "
            "method known_model(condition, models), and model_entries"
        )
    layout, needed = agent.layout, tuple(agent.model_entries)
    missing = [n for n in needed if n not in layout.names]
    if missing:
        raise ConfigError(
            f"ILQRPlanningConfig.model: a plan for {name} needs {' and '.join(needed)} in the "
            f"state, which holds {', '.join(layout.names)}"
        )
    if needed != layout.names and not isinstance(agent, DerivedState):
        raise ConfigError(
            f"ILQRPlanningConfig.model: a plan for {name} needs the state {', '.join(needed)} and "
            f"no more, or a method whole_states; the state holds {', '.join(layout.names)}"
        )
    return layout.columns(needed)


def _names(layout: Layout, columns: np.ndarray) -> str:
    """The entries that the columns belong to."""
    return " and ".join(n for n in layout.names if layout.slice(n).start in columns)


def require_agent_config(name: str, value: Any) -> None:
    """ConfigError where an option, by its name, is not the configuration of an agent."""
    if isinstance(value, type) or not isinstance(value, BuildsAgent):
        raise ConfigError(
            f"{name} must be the configuration of an agent, such as the experiment's own, got "
            f"{value!r}"
        )
    if not isinstance(value, Hashable):
        raise ConfigError(f"{name} must be hashable, got {value!r}")


class _Agents(threading.local):
    """Agents of the models; each thread has its own, as agents write into arrays of theirs."""

    def __init__(self) -> None:
        self.of = lru_cache(maxsize=4)(lambda agent_config: agent_config.build())


_agents = _Agents()


def agent_of(agent_config: Any) -> Any:
    """The agent of a configuration, built once in every thread."""
    return _agents.of(agent_config)
