"""The exploration noise that a controller keeps.

Noise adds to the cost, so that every update under a KL bound shrinks the controller's covariance,
as far as the bound allows. Samples of little spread do not excite the dynamics: their fit and the
linearised policy lose their slopes, the gains fade, and the cost rises again without one bad
update. A floor under the noise prevents it: Sigma_t >= diag(std_floor^2) is one more constraint of
the C-step (see `gps.control.dual`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from gps.fields import Config, Range, readonly
from gps.protocols import Agent, control_range_of
from gps.types import Array, LinearGaussianController


@dataclass(frozen=True, kw_only=True)
class ExplorationConfig(Config):
    """The minimum noise of the controllers that are sampled."""

    floor: Annotated[float, Range(at_least=0, below=1)] = 0.05
    """Minimum standard deviation of every action, as a share of half of its actuator's range, or of
    20 standard deviations of the initial controller where that is less, or 10 where there is no
    range (`action_scale`): by default never more noise than a run begins with. 0 for no floor."""

    def std_floor(self, action_scale: Array | None) -> Array | None:
        """Minimum standard deviations (nu,) in the units of the actions; None for none."""
        if self.floor == 0 or action_scale is None:
            return None
        return readonly(self.floor * action_scale)


UNLIMITED = 10.0
"""Half of the range that an actuator without limits is assumed to have, in standard deviations of
the initial controller: a floor of 5 % is half of the noise that a run begins with."""


MAX_HALF_RANGE = 20.0
"""Half of an actuator's range counts as at most so many of them: limits far beyond what the task
needs must not make a run noisier than its initial controller, at a floor of 5 %."""


def action_scale(agent: Agent, initial: LinearGaussianController) -> Array:
    """Half of each actuator's range, (nu,), in the unit of the action.

    The largest standard deviation over time that the initial controller gives the action is the
    user's idea of a large action: the range counts up to MAX_HALF_RANGE times that, and as
    UNLIMITED times that where there is none.
    """
    std = np.sqrt(np.einsum("tij,tij->ti", initial.chol, initial.chol)).max(axis=0)
    limits = control_range_of(agent)
    half = np.full(agent.nu, np.inf) if limits is None else 0.5 * (limits[1] - limits[0])
    limited = np.isfinite(half) & (half > 0)
    return readonly(np.where(limited, np.minimum(half, MAX_HALF_RANGE * std), UNLIMITED * std))


def exploration_std(controller: LinearGaussianController, action_scale: Array | None) -> float:
    """Root mean square over steps and actions of the noise's standard deviation, as a share of
    `action_scale`; NaN where that is unknown."""
    if action_scale is None:
        return math.nan
    relative = controller.chol / action_scale[:, None]
    return float(np.sqrt((relative**2).sum(axis=2).mean()))
