"""Why a condition is not improved: figures of its rollouts and fits, and the cause they point to.

The figures are ratios, so that no unit of states, actions or cost matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import numpy as np
import numpy.typing as npt

from gps.distributions.gmm import ROUNDING, entry_sizes
from gps.fields import Shape
from gps.types import (
    Array,
    Gaussian,
    Layout,
    LinearDynamics,
    LinearGaussianController,
    QuadraticCost,
    Record,
    Rollouts,
    optional,
)

Cause = Literal[
    "cost value", "weight", "noise", "constant", "flat cost", "short", "clipped", "saturated",
    "stiff", "unstable", "samples", "dt", "floor", "curvature", "unknown",
]  # fmt: skip
"""cost value: the cost is not finite; weight: all of it is that of the actions; noise: the samples
do not differ; constant: it depends on entries that never change; flat cost: it depends on no state;
short: the states hardly change within a rollout; clipped: the actions lie at the ends of their
range; saturated: so do the mean actions, whatever the noise; stiff: the feedback makes the closed
loop diverge; unstable: the robot diverges, and the feedback does not prevent it; samples, dt: the
fitted dynamics predict nothing, for want of samples or since a step is too long; floor: the
variance floor of the start exceeds all that happens; curvature: the cost falls without bound with
the actions; unknown: none of these."""
CAUSES: tuple[Cause, ...] = get_args(Cause)

_STILL = 1e-13  # share of an entry's size by which it may differ by rounding
_FLAT = 1e-6  # share of the cost by which samples have to differ to be compared
_CLIPPED = 0.95  # share of clipped actions of every actuator with which no noise comes through
CLIP_SLACK = 1e-6
"""Share of a limit by which actions that were clipped to it may miss it."""
DIVERGES = 1e3
"""Growth over a rollout beyond which the expectations of a fitted model are of no use."""


@dataclass(frozen=True, eq=False)
class Figures(Record):
    """What one condition's rollouts, and the models fitted to them, look like."""

    layout: Layout
    """Names of the state's entries."""
    samples: int
    """Rollouts that all of this is about."""
    clipped: Annotated[Array, Shape("nu")]
    """Share of each actuator's actions that lie at an end of its control range; NaN for one
    without limits."""
    saturated: Annotated[Array, Shape("nu")]
    """Share of the steps at which the actions of all samples lie at the same end of an actuator's
    control range: the mean action is there, and not the noise; NaN for one without limits."""
    action_spread: Annotated[Array, Shape("nu")]
    """Standard deviation of each action over the samples, root mean square over the steps, as a
    share of half of its actuator's range, or, where that has no limits, of `action_scale`."""
    spread: Annotated[Array, Shape("nx")]
    """Standard deviation of each state entry over the samples, root mean square over the steps, as
    a share of its largest absolute value; NaN for an entry that never changes."""
    cost_spread: float
    """Standard deviation over the samples of the cost, without what the actions themselves cost, as
    a share of the mean absolute cost."""
    state_cost: float
    """What the states cost, as a share of the mean absolute cost; the rest is that of the actions
    themselves."""
    cost_slope: Annotated[Array, Shape("nx")]
    """Root mean square over the steps of the cost's slope by each state entry, times the largest
    absolute value of that, as a share of the mean absolute cost of a step."""
    action_curvature: float
    """Smallest second derivative of the cost by an action, as a share of the largest by anything;
    below 0 the cost falls without bound."""
    floored: Annotated[Array, Shape("nx")] | None = optional()  # noqa: RUF009
    """Standard deviation that the fit gives the start state, floor included
    (`dynamics.x0_variance_floor`), over that of the entry over all samples and steps; NaN for an
    entry that never changes. Above 1 whole rollouts differ less than starts are taken to differ."""
    prediction: Annotated[Array, Shape("nx")] | None = optional()  # noqa: RUF009
    """Error of the fitted dynamics for the next state, leave-one-out, over that of persistence,
    x[t+1] = x[t]; NaN for an entry that never changes. Above 1 the fit predicts nothing."""
    growth: float | None = optional()
    """Largest factor by which a deviation from the mean trajectory, in standard deviations of the
    states, grows from the first step to the last in the closed loop of fitted dynamics and sampled
    controller: the largest singular value of the product of A + B K."""
    open_growth: float | None = optional()
    """The same of the fitted dynamics without feedback, of the product of A; None where `growth` is
    below DIVERGES."""
    with_prior: bool = False
    """Whether the dynamics were fitted with a prior."""

    @property
    def constant(self) -> tuple[str, ...]:
        """Names of the state's entries none of whose values ever changes by more than rounding."""
        return _names(self.layout, np.isnan(self.spread))

    @property
    def without_effect(self) -> bool:
        """Whether the limits of all actuators undo whatever an update changes."""
        return bool((self.saturated >= _CLIPPED).all())  # False for NaN


@dataclass(frozen=True)
class Finding:
    """A cause, in words that name the options to change."""

    cause: Cause
    text: str
    options: tuple[str, ...] = ()
    """Those to change, the likeliest first, as on the command line."""


def figures(
    rollouts: Rollouts,
    l: Array,  # noqa: E741
    cost: QuadraticCost,
    limits: Array | None,
    action_scale: Array | None,
    sampled: LinearGaussianController | None = None,
    dynamics: LinearDynamics | None = None,
    start: Gaussian | None = None,
    prediction: Array | None = None,
    with_prior: bool = False,
) -> Figures:
    """The figures of one condition.

    l: costs (N, T); cost: their expansion. limits: (2, nu), lowest and highest actions, None where
    unknown. sampled: what acted, in linear form; dynamics, start, prediction: fitted, where a model
    is.
    """
    X, U, nx, nu = rollouts.X, rollouts.U, rollouts.nx, rollouts.nu
    low, high = (np.full(nu, s * np.inf) for s in (-1, 1)) if limits is None else limits
    half = 0.5 * (high - low)
    assumed = np.full(nu, np.nan) if action_scale is None else action_scale
    half = np.where(np.isfinite(half), half, assumed)
    size = np.abs(X).max(axis=(0, 1))
    with np.errstate(all="ignore"):
        x_mean, x_var = X.mean(axis=0), X.var(axis=0).mean(axis=0)
        std = np.sqrt(x_var + x_mean.var(axis=0))  # over samples and steps together
        # what all of an entry does is a movement, however small
        rounding = np.maximum(_STILL * size, ROUNDING * entry_sizes(X, rollouts.layout, 0.0))
        std[std <= rounding] = np.nan
        still = std * 0.0  # NaN for an entry that never changes
        slopes = (cost.C[:, nx:, nx:] @ U.transpose(1, 2, 0)).transpose(2, 0, 1)
        u_cost = (U * (cost.c[:, nx:] + 0.5 * slopes)).sum(axis=2)
        whole = float(np.abs(l).sum(axis=1).mean())
        of_states = (l - u_cost).sum(axis=1)
        mean = np.concatenate([x_mean, U.mean(axis=0)], axis=1)
        slope = cost.c[:, :nx] + (cost.C[:, :nx] @ mean[:, :, None])[:, :, 0]
        growth = open_growth = None
        if dynamics is not None and sampled is not None:
            closed = dynamics.A + dynamics.B @ sampled.K[:-1]
            growth = _growth(closed, std)
            if not growth <= DIVERGES:  # else nobody asks
                open_growth = _growth(dynamics.A, std)
        return Figures(
            layout=rollouts.layout,
            samples=rollouts.N,
            clipped=clipped_share(U, low, high),
            saturated=_saturated(U, low, high),
            action_spread=np.sqrt(U.var(axis=0).mean(axis=0)) / half,
            spread=np.sqrt(x_var) / size + still,
            cost_spread=float(of_states.std() / whole),
            state_cost=float(abs(of_states.mean()) / whole),
            cost_slope=np.sqrt((slope**2).mean(axis=0)) * size * rollouts.T / whole,
            action_curvature=float(cost.C.diagonal(axis1=1, axis2=2)[:, nx:].min())
            / max(float(cost.C.max()), -float(cost.C.min()), 1e-300),
            floored=None if start is None else np.sqrt(start.cov.diagonal()) / std,
            prediction=None if prediction is None else prediction + still,
            growth=growth,
            open_growth=open_growth,
            with_prior=with_prior,
        )


def clipped_share(U: Array, low: Array, high: Array) -> Array:
    """Share of the actions U (N, T, nu) that lie at an end of their control range, (nu,).

    low, high (nu,): that range, infinite where an action has no limit, and NaN comes back where it
    has none at all. An agent that computes in float32 may be a rounding away from an end.
    """
    return _of_limited(_at_ends(U, low, high).any(axis=0).mean(axis=(0, 1)), low, high)


def _saturated(U: Array, low: Array, high: Array) -> Array:
    """Share of the steps at which all samples' actions lie at the same end, (nu,)."""
    same = _at_ends(U, low, high).all(axis=1).any(axis=0)
    return _of_limited(same.mean(axis=0), low, high)


def _at_ends(U: Array, low: Array, high: Array) -> npt.NDArray[np.bool_]:
    """Whether actions U (N, T, nu) lie at the lower, and at the upper end, (2, N, T, nu)."""
    slack = [np.where(np.isfinite(end), CLIP_SLACK * np.abs(end), 0.0) for end in (low, high)]
    return np.stack([low + slack[0] >= U, high - slack[1] <= U])


def _of_limited(share: Array, low: Array, high: Array) -> Array:
    """NaN for the actions without limits."""
    share[np.isinf(low) & np.isinf(high)] = np.nan
    return share


def _growth(steps: Array, std: Array) -> float:
    """Largest singular value of the product of matrices (S, nx, nx), by step, in units of std."""
    moving = np.isfinite(std)
    if not moving.any():
        return math.nan
    if not moving.all():
        steps = steps[:, moving][:, :, moving]
    log = 0.0
    while len(steps) > 1:  # pairs, pairs of pairs, ...: far fewer calls than a loop over the steps
        even = len(steps) // 2 * 2
        steps = np.concatenate((steps[1:even:2] @ steps[:even:2], steps[even:]))
        size = np.maximum(np.abs(steps).max(axis=(1, 2)), 1e-300)  # lest anything overflows
        steps, log = steps / size[:, None, None], log + float(np.log(size).sum())
    product = steps[0] * (std[moving] / std[moving][:, None])
    if not np.isfinite(product).all():
        return math.inf
    largest = float(np.linalg.norm(product, 2))
    return math.exp(min(log + math.log(max(largest, 1e-300)), 700.0))


def _names(layout: Layout, which: Array) -> tuple[str, ...]:
    """Entries all of whose values are marked."""
    return tuple(n for n in layout.names if which[layout.slice(n)].all())


def blind(f: Figures) -> Finding | None:
    """What no update could learn from, whatever it finds; None where nothing is wrong.

    True of a condition whose updates are accepted as well.
    """
    limited = f.clipped[np.isfinite(f.clipped)]
    if limited.size and limited.size == f.clipped.size and limited.min() >= _CLIPPED:
        return _clipped(f)
    if f.samples > 1 and not f.cost_spread >= _FLAT and math.isfinite(f.cost_spread):
        return _flat(f)
    ratio = upper_median(f.prediction)
    if ratio >= 1.0:
        times = "" if math.isinf(ratio) else f" ({ratio:.2g} times its error)"
        text = f"the fitted dynamics predict the next state no better than no change{times}: "
        inputs = f.layout.size + f.clipped.size
        if f.samples <= inputs and not f.with_prior:
            return Finding(
                "samples",
                text + f"{f.samples} samples are too few for {inputs} states and actions without a "
                "prior; raise samples, or set algorithm.dynamics.prior",
                ("samples", "algorithm.dynamics.prior"),
            )
        return Finding(
            "dt",
            text + "a step is too long for linear dynamics; make agent.dt smaller, "
            "or raise samples",
            ("agent.dt", "samples"),
        )
    return None


def upper_median(values: Array | None) -> float:
    """The value that at least half of the entries reach; NaN where none is known."""
    known = np.zeros(0) if values is None else values[~np.isnan(values)]
    return float(np.quantile(known, 0.5, method="higher")) if known.size else math.nan


def _flat(f: Figures) -> Finding:
    """Why the cost of the states is the same in all samples."""
    same = "the samples' costs are the same"
    if f.cost_spread > 0.0:
        same = f"the samples' costs differ by {f.cost_spread:.1g} of their size"
    if not f.state_cost > 1e-3:
        return Finding(
            "weight",
            f"{same}, but for what the actions themselves cost, which is nearly all: raise the "
            "weight of the state's terms of cost, or lower that of the actions",
            ("cost",),
        )
    if min(np.nanmax(np.append(v, 0.0)) for v in (f.spread, f.action_spread)) < _FLAT:
        return Finding(
            "noise",
            f"{same}: initial has too little exploration noise; raise its variance, or "
            "algorithm.exploration.floor",
            ("initial.variance", "algorithm.exploration.floor"),
        )
    depends = f.cost_slope > 1e-9
    moving = depends & ~np.isnan(f.spread)
    if not depends.any():
        return Finding(
            "flat cost",
            f"{same}: the cost is the same at all states that they reach; check cost and its "
            "weights, or raise the variance of initial",
            ("cost", "initial.variance"),
        )
    if not moving.any():
        names = [n for n in f.layout.names if depends[f.layout.slice(n)].any()]
        return Finding(
            "constant",
            f"{same}: it depends on {', '.join(names)} only, which never changes; use another "
            "state entry in cost",
            ("cost",),
        )
    return Finding(
        "short",
        f"{same}: within a rollout the actions hardly change what it depends on; make agent.dt or "
        "agent.T larger, or raise the variance of initial",
        ("agent.dt", "agent.T", "initial.variance"),
    )


def _clipped(f: Figures) -> Finding:
    """That actions lie at the ends of their range, by their noise or by their mean."""
    worst = int(np.nanargmax(f.clipped + f.saturated))
    much = f"{100 * np.nanmean(f.clipped):.0f} % of the actions are clipped to the control range"
    if f.saturated[worst] >= 0.9 * f.clipped[worst]:
        return Finding(
            "saturated",
            f"{much}, action {worst} to the same end in all samples in "
            f"{100 * f.saturated[worst]:.0f} % of the steps: the controller asks for more than the "
            "actuator can do, as where it cannot carry its load, and neither more nor less noise "
            "helps; widen the agent's control range, or give another start or initial, which asks "
            "for less",
            ("agent", "initial"),
        )
    return Finding(
        "clipped",
        f"{much} (action {worst}: {100 * f.clipped[worst]:.0f} %), so that neither noise nor "
        "feedback comes through: give initial smaller gains and less variance, or widen the "
        "agent's control range",
        ("initial.variance",),
    )


def why(f: Figures | None, reason: str = "") -> Finding:
    """Why a condition was not updated, or its model is not to be trusted.

    f: None where nothing is known. reason: what is left to say where none of the causes is found.
    """
    reason = reason or "no better controller is within the KL bound"
    if f is None:
        return Finding("unknown", reason)
    found = blind(f)
    if found is not None:
        return found
    if f.growth is not None and f.open_growth is not None and not f.growth <= DIVERGES:
        grows = f"deviations grow {_factor(f.growth)} over a rollout in the fitted closed loop"
        some = f.clipped[np.isfinite(f.clipped)]
        share = f"; {100 * some.mean():.0f} % of the actions are clipped" if some.any() else ""
        if f.open_growth < math.sqrt(f.growth):
            return Finding(
                "stiff",
                f"{grows}, and {_factor(f.open_growth)} without feedback{share}: the gains are too "
                "high for what the actions do in a step; give initial smaller gains (or the true "
                "effect of its actions), or make agent.dt smaller",
                ("initial", "agent.dt"),
            )
        return Finding(
            "unstable",
            f"{grows}, as they do without feedback{share}: the robot falls or drifts, and the "
            "controller does not hold it; give an initial that does (HoldConfig, or where it is "
            "that already, higher gains), or a shorter agent.T",
            ("initial", "agent.T"),
        )
    limited = f.clipped[np.isfinite(f.clipped)]
    if limited.size and limited.max() >= 0.5:
        return _clipped(f)
    if f.floored is not None and (m := f.floored[~np.isnan(f.floored)]).size and m.min() > 1.0:
        return Finding(
            "floor",
            "every state entry differs less within the rollouts than the variance floor lets its "
            "start differ; raise the variance of initial, use larger units, or lower "
            "algorithm.dynamics.x0_variance_floor",
            ("algorithm.dynamics.x0-variance-floor",),
        )
    if f.action_curvature < -_STILL:
        return Finding(
            "curvature",
            "the cost falls without bound with growing actions: its curvature along them is "
            "negative; give every action a positive weight in cost",
            ("cost",),
        )
    return Finding(
        "unknown",
        f"{reason}; raise samples, or change algorithm.step.kl_max",
        ("samples", "algorithm.step.kl-max"),
    )


def not_finite(value: float) -> Finding:
    """That the sampled cost is no number."""
    return Finding(
        "cost value",
        f"the sampled cost is {value}: check cost, or give initial less variance",
        ("cost", "initial.variance"),
    )


def _factor(growth: float) -> str:
    """A growth in words."""
    return f"by a factor of {growth:.2g}" if growth < 1e200 else "without bound"


__all__ = [
    "CAUSES",
    "CLIP_SLACK",
    "DIVERGES",
    "Cause",
    "Figures",
    "Finding",
    "blind",
    "clipped_share",
    "figures",
    "not_finite",
    "upper_median",
    "why",
]
