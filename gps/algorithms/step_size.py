"""How far the next update may go: the step rule, and the guard against models that lie.

The improvement of an update of size `s` (in KL) is modelled as linear plus quadratic in `s`; the
best `s` follows from what the last update promised (`predicted`) and what it brought (`actual`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gps.errors import ConfigError, choices


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """The KL trust region and how it adapts."""

    kl_max: float = 1.0
    """KL bound per time step at multiplier 1, in nats; above zero."""
    rule: Literal["laplace", "mc", "classic"] = "laplace"
    """What counts as the cost before and after an update. 'laplace': expected under the fitted
    models, of what the update starts from: with a global policy, of its linear form, so that what
    the S-step loses shrinks the step (the rule 'global' of the MDGPS paper). 'mc': sampled.
    'classic': expected under the fitted models, of the local controllers alone, as in the same
    paper; it does not see what the S-step loses, and is 'laplace' where there is no policy."""
    initial_mult: float = 1.0
    """Step multiplier of the first update."""
    min_mult: float = 0.01
    """Smallest step multiplier."""
    max_mult: float = 3.0
    """Largest step multiplier."""
    growth: float = 2.0
    """Most by which a multiplier grows at once; at least 1. Near the optimum an update promises
    less than the noise of what it brings, and that it kept its promise is luck: at a growth of 5
    one lucky update undoes many small steps, whose mean is what makes a controller exact."""

    def __post_init__(self) -> None:
        if not 0 < self.kl_max < math.inf:
            raise ConfigError(
                f"StepConfig.kl_max must be above 0 nats and finite, got {self.kl_max}"
            )
        if self.rule not in (known := ("laplace", "mc", "classic")):
            raise ConfigError(choices("StepConfig.rule", self.rule, known))
        if not 0 < self.min_mult <= self.initial_mult <= self.max_mult < math.inf:
            raise ConfigError(
                "StepConfig needs 0 < min_mult <= initial_mult <= max_mult, got "
                f"{self.min_mult}, {self.initial_mult}, {self.max_mult}"
            )
        if not 1 <= self.growth < math.inf:
            raise ConfigError(f"StepConfig.growth must be at least 1 and finite, got {self.growth}")


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """When a condition's fitted model or its new controller is not to be trusted."""

    disagreement: float = 1.0
    """Largest gap between expected and sampled cost, as a share of the sampled cost's scale (the
    mean absolute cost of a rollout, at least the spread over samples); a larger one shrinks the
    step."""
    explosion: float = 3.0
    """A sampled cost that rises above what it is compared with (`against`) by more than this many
    times the scale of that is an explosion: the condition goes back to that controller. Of a policy
    that is sampled in every iteration nothing else is taken back."""
    setback: float = 2.0
    """A sampled cost that lies by more than this many standard errors (of the difference of the two
    means over samples), and a fiftieth of the scale, above what it is compared with takes the last
    update back: the condition returns to that controller. Infinite to switch off."""
    against: Literal["best", "last"] = "best"
    """What a sampled cost is compared with: that of the best controller so far, or of the last one,
    where many small rises pass."""
    astray: float = 0.5
    """MDGPS: where the linearised policy's expected cost exceeds that of the sampled controller by
    more than this share of the scale, the update starts from the sampled controller instead."""
    trial: int = 3
    """MDGPS: after so many updates in a row that start from the controller for that reason the
    policy itself is sampled once: its linear form may be wrong only where the controller goes. What
    it does decides like any other update's outcome: it is kept, or taken back. At least 1."""
    shrink: float = 0.5
    """Factor on the step multiplier after a disagreement, an explosion or a setback."""

    def __post_init__(self) -> None:
        for name in ("disagreement", "explosion", "setback", "astray"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"GuardConfig.{name} must be above 0, got {getattr(self, name)}")
        if type(self.trial) is not int or self.trial < 1:
            raise ConfigError(
                f"GuardConfig.trial must be a whole number of at least 1, got {self.trial!r}"
            )
        if self.against not in ("best", "last"):
            raise ConfigError(choices("GuardConfig.against", self.against, ("best", "last")))
        if not 0 < self.shrink < 1:
            raise ConfigError(f"GuardConfig.shrink must lie between 0 and 1, got {self.shrink}")


def kept_share(predicted: float, actual: float) -> float:
    """actual / predicted, clipped to [-4, 0.9]: how much of the drop that an update predicted of
    the objective came. -4 for an update that predicted none, and for values that are not finite.
    """
    if not (math.isfinite(predicted) and math.isfinite(actual) and predicted > 0):
        return -4.0
    return min(max(actual / predicted, -4.0), 0.9)


def new_multiplier(mult: float, share: float, config: StepConfig) -> float:
    """The step multiplier after updates that kept a `share` of what they promised.

    `mult / (2 (1 - share))`, where the model of the improvement has its best step, but at most
    `config.growth` times `mult`: the factor lies between 0.1 and the smaller of that and 5 for
    shares as `kept_share` gives them. Clipped to the range of `config`. No unit of the cost
    matters. Source: the rule of cbfinn/gps algorithm.py `_set_new_mult`, with these limits; there
    the growth is 5, and a miss of less than 1e-4, in units of the cost, counts as 1e-4.
    """
    factor = min(0.5 / (1.0 - share), config.growth)
    return min(max(mult * factor, config.min_mult), config.max_mult)
