"""Options of the searches for dual variables, `gps.control.dual` and `gps.control.per_step`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gps.errors import ConfigError

__all__ = ["DualConfig"]


@dataclass(frozen=True, kw_only=True)
class DualConfig:
    """How the dual variable is searched for."""

    tol: float = 0.01
    """Accepted distance of the KL from its bound, as a fraction of the bound; above 0, below 1."""

    eta_min: float = 1e-16
    """Floor of eta per nat, as a multiple of the cost's largest coefficient (entries of C and c);
    where the KL is below its bound there, and has stopped to grow, the constraint is inactive."""

    eta_max: float = 1e16
    """Ceiling of eta per nat, as a multiple of the cost's largest coefficient; where it is reached
    the previous controller stays."""

    max_trials: int = 100
    """Most backward-forward passes of one search; at least 1. Ten are usual, far fewer with a warm
    start."""

    entropy_weight: float = 0.0
    """Weight of the controller's entropy in the objective, in cost units per nat; 0 or above. The
    searches also take one weight per step as an argument."""

    kl_under: Literal["new", "previous"] = "new"
    """Whose state marginals the KL is averaged over, under the same dynamics and start. "new":
    those of the controller that is looked for; the KL is then that of the trajectory distributions,
    and `minimise` finds the optimum under the bound. "previous": those of the previous controller,
    where the samples are that a model was fitted to. It helps while the model's predictions for a
    new controller cannot be trusted, and with a bound per step: what one step does to the states
    does not change the KL of later steps, so that one pass is exact. The price: the new closed loop
    may leave those states, and what it does elsewhere has no bound."""

    def __post_init__(self) -> None:
        for name in ("tol", "eta_min", "eta_max", "entropy_weight"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float | np.number):
                raise ConfigError(f"DualConfig.{name} must be a number, got {value!r}")
        if not 0 < self.tol < 1:
            raise ConfigError(f"DualConfig.tol must be between 0 and 1, got {self.tol}")
        if not 0 < self.eta_min < self.eta_max < math.inf:
            raise ConfigError(
                "DualConfig needs 0 < eta_min < eta_max, both finite, "
                f"got {self.eta_min} and {self.eta_max}"
            )
        if type(self.max_trials) is not int or self.max_trials < 1:
            raise ConfigError(f"DualConfig.max_trials must be at least 1, got {self.max_trials!r}")
        if not 0 <= self.entropy_weight < math.inf:
            raise ConfigError(
                f"DualConfig.entropy_weight must be finite and >= 0, got {self.entropy_weight}"
            )
        if self.kl_under not in ("new", "previous"):
            raise ConfigError(
                f"DualConfig.kl_under must be 'new' or 'previous', got {self.kl_under!r}"
            )
