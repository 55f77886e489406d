"""Adaptation of the KL bound, and the guard against models that are wrong.

The improvement of an update of size `s` (in KL) is modelled as linear plus quadratic in `s`; the
best `s` follows from the `predicted` and the `actual` improvement of the last update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from gps.algorithms.state import Assessment
from gps.errors import ConfigError
from gps.execution import stage
from gps.fields import Config, Count, Positive, Range

_AnyPositive = Annotated[float, Range(above=0, finite=False)]


@dataclass(frozen=True, kw_only=True)
class StepConfig(Config):
    """The KL trust region and how it adapts."""

    kl_max: Annotated[float, Range(above=0, unit="nats")] = 1.0
    """KL bound per time step at multiplier 1, in nats."""
    rule: Literal["laplace", "mc", "classic"] = "laplace"
    """What counts as the cost before and after an update. 'laplace': expected under the fitted
    models, of what the update starts from: with a global policy, of its linear form, so that what
    the S-step loses shrinks the step (the rule 'global' of the MDGPS paper). 'mc': sampled.
    'classic': expected under the fitted models, of the local controllers alone, as in the same
    paper; it does not see what the S-step loses, and is 'laplace' where there is no policy."""
    initial_mult: Positive = 1.0
    """Step multiplier of the first update."""
    min_mult: Positive = 0.01
    """Smallest step multiplier."""
    max_mult: Positive = 3.0
    """Largest step multiplier."""
    growth: Annotated[float, Range(at_least=1)] = 2.0
    """Maximum factor by which a multiplier grows at once. Near the optimum the predicted
    improvement is below the noise of the actual one, and their agreement is chance: at a growth of
    5 one lucky update undoes many small steps, whose mean is what makes a controller exact."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.min_mult <= self.initial_mult <= self.max_mult:
            raise ConfigError(
                "StepConfig needs min_mult <= initial_mult <= max_mult, got "
                f"{self.min_mult}, {self.initial_mult}, {self.max_mult}"
            )


@dataclass(frozen=True, kw_only=True)
class GuardConfig(Config):
    """When a condition's fitted model or its new controller is not trusted."""

    disagreement: _AnyPositive = 1.0
    """Largest gap between expected and sampled cost, as a share of the sampled cost's scale (the
    mean absolute cost of a rollout, at least the spread over samples); a larger one shrinks the
    step."""
    explosion: _AnyPositive = 3.0
    """A sampled cost that rises above its baseline (`against`) by more than this many times the
    scale of that is an explosion: the condition returns to the baseline's controller. Of a policy
    that is sampled in every iteration only explosions are undone."""
    setback: _AnyPositive = 2.0
    """A sampled cost that lies by more than this many standard errors (of the difference of the two
    means over samples), and a fiftieth of the scale, above its baseline undoes the last update: the
    condition returns to the baseline's controller. Infinite to switch off."""
    against: Literal["best", "last"] = "best"
    """The baseline of a sampled cost: that of the best controller so far, or of the last one, where
    many small rises pass."""
    policy_gap: _AnyPositive = 0.5
    """MDGPS: where the linearised policy's expected cost exceeds that of the sampled controller by
    more than this share of the scale, the update starts from the sampled controller instead."""
    policy_trial: Count = 3
    """MDGPS: after so many updates in a row that start from the controller for that reason the
    policy itself is sampled once: its linear form may be wrong only where the controller goes. The
    result decides as that of any other update does: it is accepted or undone."""
    shrink: Annotated[float, Range(above=0, below=1)] = 0.5
    """Factor on the step multiplier after a disagreement, an explosion or a setback."""


def improvement_ratio(predicted: float, actual: float) -> float:
    """actual / predicted, clipped to [-4, 0.9]: the share of an update's predicted improvement of
    the objective that was reached. -4 for an update that predicted none, and for values that are
    not finite.
    """
    if not (math.isfinite(predicted) and math.isfinite(actual) and predicted > 0):
        return -4.0
    return min(max(actual / predicted, -4.0), 0.9)


def new_multiplier(mult: float, ratio: float, config: StepConfig) -> float:
    """The step multiplier after updates with this `improvement_ratio`.

    `mult / (2 (1 - ratio))`, where the model of the improvement has its best step, but at most
    `config.growth` times `mult`: the factor lies between 0.1 and the smaller of that and 5.
    Clipped to the range of `config`. No unit of the cost matters. Source: the rule of cbfinn/gps
    algorithm.py `_set_new_mult`, with these limits; there the growth is 5, and a miss of less than
    1e-4, in units of the cost, counts as 1e-4.
    """
    factor = min(0.5 / (1.0 - ratio), config.growth)
    return min(max(mult * factor, config.min_mult), config.max_mult)


@stage("set_steps")
def adjust_steps(
    checks: Sequence[Assessment],
    step: StepConfig,
    guard: GuardConfig,
    *,
    jointly: bool = False,
    if_predicted: bool = False,
) -> list[float]:
    """The step multiplier of every condition for this iteration, shrunk where the guard asks.

    jointly: one multiplier for all conditions, by the mean of their improvement ratios, instead of
    one for each. if_predicted: an update that predicted no improvement does not count; for updates
    that have other aims beside the cost. A condition whose policy is far worse than its controller
    does not count either: its update does not start from the policy.
    """
    if not jointly and len(checks) > 1:
        return [adjust_steps([c], step, guard, if_predicted=if_predicted)[0] for c in checks]
    mult = float(np.mean([c.step_mult for c in checks]))
    known = [
        c.improvement_ratio
        for c in checks
        if c.updated and not (c.rejected or c.policy_worse)
        if c.predicts_improvement or not if_predicted
    ]
    new = new_multiplier(mult, float(np.mean(known)), step) if known else mult
    return [
        new if c.trusted and not c.rejected else max(min(new, mult) * guard.shrink, step.min_mult)
        for c in checks
    ]
