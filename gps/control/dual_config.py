"""Options of the searches for dual variables, `gps.control.dual` and `gps.control.per_step`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from gps.errors import ConfigError
from gps.fields import Config, NonNegative, Positive, Range

__all__ = ["DualConfig"]


@dataclass(frozen=True, kw_only=True)
class DualConfig(Config):
    """How the dual variable is searched for."""

    tol: Annotated[float, Range(above=0, below=1)] = 0.01
    """Accepted distance of the KL from its bound, as a fraction of the bound."""

    eta_min: Positive = 1e-16
    """Floor of eta per nat, as a multiple of what a step's cost varies by under the previous
    controller (to first or second order, whichever is larger; the least of all steps), so that no
    unit matters. Where the KL is below its bound there, and has stopped to grow, the constraint is
    inactive. A search without a start begins at this variation itself: what unstable dynamics make
    of it in later steps would be far off."""

    eta_max: Positive = 1e16
    """Ceiling of eta per nat, as a multiple of the same, the most of all steps; where it is reached
    the previous controller stays."""

    max_trials: Annotated[int, Range(at_least=1, at_most=100_000)] = 100
    """Maximum number of backward-forward passes of one search. Ten are usual, far fewer with a warm
    start."""

    entropy_weight: NonNegative = 0.0
    """Weight of the controller's entropy in the objective, in cost units per nat. The
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
        super().__post_init__()
        if not self.eta_min < self.eta_max:
            raise ConfigError(
                f"DualConfig needs eta_min < eta_max, got {self.eta_min} and {self.eta_max}"
            )
