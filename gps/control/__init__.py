"""Linear-quadratic-Gaussian control, with or without a bound on the change of the controller.

Usable on its own: `lqr` solves and evaluates the finite-horizon problem, `kl` measures how far a
linear-Gaussian controller is from another, `dual` solves LQG under that KL as a trust region,
`ilqr` plans with a known nonlinear model (`models`) and limits on the actions, `pi2` improves a
controller from sampled costs alone, `pilqr` from both samples and a model, `tracking` follows a
reference with a Kalman filter in the loop, `batch` does all that for many problems at once, and
`initial` makes controllers to start from::

    from gps.control import dual, lqr
    controller = lqr.backward(dynamics, cost)
    marginals = lqr.forward(dynamics, controller, start)
    step = dual.minimise(dynamics, cost, start, previous=controller, kl_max=0.5)

The records are those of `gps.types`. Angles, lengths and costs are in whatever units the caller
uses; divergences are in nats.
"""

from gps.control import batch, dual, ilqr, initial, kl, lqr, models, pi2, pilqr, tracking
from gps.control.dual import DualConfig, DualResult, PerStepResult, minimise, minimise_per_step
from gps.control.ilqr import ILQRConfig, ILQRResult
from gps.control.initial import HoldConfig, OpenLoopConfig, PDConfig, hold_position, open_loop, pd
from gps.control.kl import kl_per_step, penalised, raised
from gps.control.lqr import backward, expected_cost, forward
from gps.control.pi2 import PI2Config, PI2Result
from gps.control.pilqr import PILQRConfig, PILQRResult
from gps.control.tracking import kalman_filter, simulate, smooth, track

__all__ = [
    "DualConfig",
    "DualResult",
    "HoldConfig",
    "ILQRConfig",
    "ILQRResult",
    "OpenLoopConfig",
    "PDConfig",
    "PI2Config",
    "PI2Result",
    "PILQRConfig",
    "PILQRResult",
    "PerStepResult",
    "backward",
    "batch",
    "dual",
    "expected_cost",
    "forward",
    "hold_position",
    "ilqr",
    "initial",
    "kalman_filter",
    "kl",
    "kl_per_step",
    "lqr",
    "minimise",
    "minimise_per_step",
    "models",
    "open_loop",
    "pd",
    "penalised",
    "pi2",
    "pilqr",
    "raised",
    "simulate",
    "smooth",
    "track",
    "tracking",
]
