"""Trajectory optimisation by PILQR: LQR for what the fitted model explains, PI2 for the rest.

Source: Y. Chebotar et al., Combining Model-Based and Model-Free Updates for Trajectory-Centric
Reinforcement Learning, ICML 2017 (arXiv 1703.03078), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gps.algorithms import stages
from gps.algorithms.base import LocalAlgorithm
from gps.algorithms.exploration import ExplorationConfig
from gps.algorithms.state import (
    Assessment,
    ConditionState,
    CostModel,
    DynamicsModel,
    GPSState,
    Proposal,
    Replay,
    Report,
)
from gps.algorithms.step_size import GuardConfig, StepConfig
from gps.control import pilqr
from gps.control.pilqr import PILQRConfig
from gps.dynamics.linear import DynamicsConfig
from gps.errors import GPSError
from gps.execution import Executor, Serial, each
from gps.policies.linearise import PolicyPrior
from gps.types import Array, LinearGaussianController, Record, Rollouts, freeze, shape_of


@dataclass(frozen=True, eq=False)
class PILQRMemory(Record):
    """What PILQR remembers of a condition: one step size and one dual variable per time step."""

    step_mult: Array  # (T,)
    eta: Array  # (T,) cost units per nat; NaN before the first update

    def __post_init__(self) -> None:
        (T,) = shape_of(self, "step_mult", 1)
        freeze(self, step_mult=(T,), eta=(T,))


@dataclass(frozen=True, kw_only=True)
class PILQRTrajOptConfig(LocalAlgorithm):
    """Trajectory optimisation by PILQR, with a step size of its own for every time step."""

    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    """Fit of the dynamics."""
    pilqr: PILQRConfig = field(default_factory=PILQRConfig)
    """The update."""
    step: StepConfig = field(default_factory=StepConfig)
    """KL bound and range of its multipliers, which follow the residual; `rule` is not used. The
    bound holds at every step, and has to leave room for holding what the fitted model lets explode.
    In half_cheetah's first iteration the model's states grow by a third with every step, to 1e14 in
    the end: half a nat a step is enough to stop this (after 26 sweeps of the search, 11 with 1 nat
    and 7 with 2), a quarter of a nat is not, and the guard refuses what is expected of it."""
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    """The least noise of the controllers."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """When a model or a controller is not trusted."""

    def iterate(
        self, state: GPSState, rollouts: Sequence[Any], executor: Executor | None = None
    ) -> tuple[GPSState, Report]:
        """See `iterate`."""
        return iterate(state, rollouts, self, executor)


def iterate(
    state: GPSState,
    rollouts: Sequence[Any],
    config: PILQRTrajOptConfig,
    executor: Executor | None = None,
) -> tuple[GPSState, Report]:
    """One iteration: expand costs, fit dynamics, PILQR, every condition by itself."""
    ex = executor or Serial()
    it, seed, cond = state.iteration, state.seed, state.conditions
    costs = each(ex, "expand_cost", stages.expand_cost, (state.costs, rollouts))
    models = each(
        ex, "fit_dynamics", stages.fit_dynamics, (rollouts, cond), config.dynamics, seed, it
    )
    rules = config.guard, config.step, config.pilqr.dual.entropy_weight
    checks = each(ex, "assess", stages.assess_own, (cond, rollouts, costs, models), *rules)
    new = each(ex, "improve", _improve, (cond, rollouts, costs, models, checks), config)
    report = Report(
        iteration=it,
        conditions=tuple(ex.pick(c, "report") for c in new),
        policy_loss=float("nan"),
        models={"cost": tuple(costs), "dynamics": tuple(models)},
    )
    return replace(state, iteration=it + 1, conditions=tuple(new)), report


def _improve(
    condition: ConditionState,
    rollouts: Rollouts,
    cost: CostModel,
    dynamics: DynamicsModel,
    checked: Assessment,
    config: PILQRTrajOptConfig,
) -> ConditionState:
    """The C-step around the sampled controller."""
    return improve(
        *(condition, rollouts, cost, dynamics, condition.controller, checked),
        *(config.pilqr, config.step, config.guard, config.exploration),
    )


def improve(
    condition: ConditionState,
    rollouts: Rollouts,
    cost: CostModel,
    dynamics: DynamicsModel,
    reference: LinearGaussianController,
    checked: Assessment,
    config: PILQRConfig,
    step: StepConfig,
    guard: GuardConfig,
    exploration: ExplorationConfig,
    policy_prior: PolicyPrior | None = None,
    replay: Replay | None = None,
) -> ConditionState:
    """One C-step by PILQR around `reference`, with the guard's fall-backs.

    The multiplier of each time step follows the residual's share of the cost; it shrinks as a whole
    where the model or the last update was bad.
    """
    T, fit = rollouts.T, dynamics.fit
    memory: PILQRMemory | None = condition.own
    if memory is None:
        memory = PILQRMemory(np.full(T, condition.step_mult), np.full(T, np.nan))
    low, high = step.min_mult, step.max_mult
    shrunk = np.clip(memory.step_mult * guard.shrink, low, high)
    mults = shrunk
    if checked.trusted and not checked.rejected:
        samples = (fit.dynamics, cost.quadratic, reference, rollouts.X, rollouts.U, cost.l)
        try:
            share = pilqr.explain(*samples).share
        except GPSError:  # the model's own samples leave the numbers: nothing is explained
            share = np.full(T, np.nan)
        mults = pilqr.adjust_steps(memory.step_mult, share, low, high, config)
    bound = step.kl_max * mults
    eta = memory.eta if np.isfinite(memory.eta).all() else None

    def propose(reference: LinearGaussianController) -> Proposal:
        result = pilqr.update(
            fit.dynamics, cost.quadratic, fit.start, reference, rollouts.X, rollouts.U, cost.l,
            bound, config, eta, std_floor=exploration.std_floor(condition.action_scale),
        )  # fmt: skip
        if not result.lqr.converged:
            stages.warn_short(
                checked.condition, result.lqr.kl, result.lqr.kl_max, result.lqr.reason
            )
        return Proposal(
            controller=result.controller,
            predicted=stages.total_expected_cost(
                result.controller, cost, dynamics, config.dual.entropy_weight
            ),
            kl=float(result.lqr.kl.mean()),
            eta=float(result.lqr.eta.mean()),
            search=result,
            own=PILQRMemory(mults, result.lqr.eta),
        )

    return stages.decide(
        *(condition, reference, propose, checked, float(mults.mean()), float(bound.mean())),
        may_rise=True,  # what the residual asks for, the model may not expect
        dynamics_prior=dynamics.prior,
        policy_prior=policy_prior,
        replay=replay,
        own=PILQRMemory(shrunk, memory.eta),
    )
