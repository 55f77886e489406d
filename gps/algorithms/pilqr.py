"""Trajectory optimisation by PILQR: LQR for what the fitted model explains, PI2 for the rest.

Source: Y. Chebotar et al., Combining Model-Based and Model-Free Updates for Trajectory-Centric
Reinforcement Learning, ICML 2017 (arXiv 1703.03078), algorithm 1.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from gps.algorithms import stages
from gps.algorithms.base import FittedAlgorithm, finish_iteration
from gps.algorithms.exploration import ExplorationConfig
from gps.algorithms.state import (
    Assessment,
    ConditionState,
    CostModel,
    DynamicsModel,
    GPSState,
    Proposal,
    ReplayBuffer,
    Report,
)
from gps.algorithms.step_size import GuardConfig, StepConfig
from gps.control import pilqr
from gps.control.pilqr import PILQRConfig
from gps.errors import GPSError
from gps.execution import Deferred, Executor, Serial, each, over
from gps.fields import Shape
from gps.policies.linearise import PolicyPrior
from gps.types import Array, LinearGaussianController, Record, Rollouts

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PILQRState(Record):
    """What PILQR keeps of a condition: one step size and one dual variable per time step."""

    step_mult: Annotated[Array, Shape("T")]
    eta: Annotated[Array, Shape("T")]
    """Cost units per nat; NaN before the first update."""


@dataclass(frozen=True, kw_only=True)
class PILQRTrajOptConfig(FittedAlgorithm):
    """Trajectory optimisation by PILQR, with a step size of its own for every time step.

    The multipliers of `step` follow the residual; its `rule` is not used. The bound holds at every
    step, and has to leave room for stabilising a fitted model that diverges. In half_cheetah's
    first iteration the model's states grow by a third with every step, to 1e14 in the end: half a
    nat a step is enough to stop this (after 26 sweeps of the search, 11 with 1 nat and 7 with 2), a
    quarter of a nat is not, and the guard rejects the update.
    """

    pilqr: PILQRConfig = field(default_factory=PILQRConfig)
    """The update."""

    @property
    def min_samples(self) -> int:  # type: ignore[override]
        """Rollouts of a condition that an iteration needs: PI2 compares them."""
        return max(2, super().min_samples)

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
    config: PILQRTrajOptConfig,
    executor: Executor | None = None,
) -> tuple[GPSState, Report]:
    """One iteration: expand costs, fit dynamics, PILQR, every condition by itself."""
    ex = executor or Serial()
    cond, samples = over(state.conditions), over(rollouts)
    costs = each(ex, stages.expand_cost, over(state.costs), samples)
    models, state = config.fit_dynamics(ex, state, rollouts)
    rules = config.guard, config.step, config.pilqr.dual.entropy_weight
    checks = each(ex, stages.assess_own, cond, samples, over(costs), over(models), *rules)
    new = each(ex, _improve, cond, samples, over(costs), over(models), over(checks), config)
    return finish_iteration(ex, state, new, cost=costs, dynamics=models)


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
    replay: ReplayBuffer | None = None,
) -> ConditionState:
    """One C-step by PILQR around `reference`, with the guard's fall-backs.

    The multiplier of each time step follows the residual's share of the cost; it shrinks as a whole
    where the model or the last update was bad.
    """
    T, fit = rollouts.T, dynamics.fit
    known = condition.algorithm_state
    if not isinstance(known, PILQRState):  # before the first update
        known = PILQRState(np.full(T, condition.step_mult), np.full(T, np.nan))
    low, high = step.min_mult, step.max_mult
    shrunk = np.clip(known.step_mult * guard.shrink, low, high)
    mults = shrunk
    if checked.trusted and not checked.rejected:
        samples = (fit.dynamics, cost.quadratic, reference, rollouts.X, rollouts.U, cost.l)
        try:
            share = pilqr.explain(*samples).share
        except GPSError:  # the model diverges on its own samples: nothing is explained
            share = np.full(T, np.nan)
        mults = pilqr.adjust_steps(known.step_mult, share, low, high, config)
    bound = step.kl_max * mults
    eta = known.eta if np.isfinite(known.eta).all() else None

    def propose(reference: LinearGaussianController) -> Proposal:
        result = pilqr.update(
            fit.dynamics, cost.quadratic, fit.start, reference, rollouts.X, rollouts.U, cost.l,
            bound, config, eta, std_floor=exploration.std_floor(condition.action_scale),
        )  # fmt: skip
        if not result.lqr.converged:
            log.debug("condition %d: %s", checked.condition, result.lqr.reason)
        return Proposal(
            controller=result.controller,
            predicted=stages.total_expected_cost(
                result.controller, cost, dynamics, config.dual.entropy_weight
            ),
            kl=float(result.lqr.kl.mean()),
            eta=float(result.lqr.eta.mean()),
            search=result,
            algorithm_state=PILQRState(mults, result.lqr.eta),
            short=not result.lqr.converged,
        )

    return stages.accept_or_reject(
        *(condition, reference, propose, checked, float(mults.mean()), float(bound.mean())),
        may_rise=True,  # the residual's part of the update is not in the model
        dynamics_prior=dynamics.prior,
        policy_prior=policy_prior,
        replay=replay,
        algorithm_state=PILQRState(shrunk, known.eta),
    )
