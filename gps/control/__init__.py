"""Linear-quadratic-Gaussian control, with or without a bound on the change of the controller.

Usable on its own: `lqr` solves and evaluates the finite-horizon problem, `kl` measures how far a
linear-Gaussian controller is from another, `dual` solves LQG under that KL as a trust region, and
`initial` makes controllers to start from::

    from gps.control import dual, lqr
    controller = lqr.backward(dynamics, cost)
    marginals = lqr.forward(dynamics, controller, start)
    step = dual.minimise(dynamics, cost, start, previous=controller, kl_max=0.5)

The records are those of `gps.types`. Angles, lengths and costs are in whatever units the caller
uses; divergences are in nats.
"""

from gps.control import dual, initial, kl, lqr
from gps.control.dual import DualConfig, DualResult, PerStepResult, minimise, minimise_per_step
from gps.control.initial import HoldConfig, PDConfig, hold_position, pd
from gps.control.kl import kl_per_step, penalised
from gps.control.lqr import backward, expected_cost, forward

__all__ = [
    "DualConfig",
    "DualResult",
    "HoldConfig",
    "PDConfig",
    "PerStepResult",
    "backward",
    "dual",
    "expected_cost",
    "forward",
    "hold_position",
    "initial",
    "kl",
    "kl_per_step",
    "lqr",
    "minimise",
    "minimise_per_step",
    "pd",
    "penalised",
]
