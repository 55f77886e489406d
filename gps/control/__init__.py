"""Linear-quadratic-Gaussian control, with or without a bound on the change of the controller.

Usable on its own: `lqr` solves and evaluates the finite-horizon problem, `kl` measures how far a
linear-Gaussian controller is from another, `dual` solves LQG under that KL as a trust region,
`ilqr` plans with a known nonlinear model (`models`) and limits on the actions, `pi2` improves a
controller from sampled costs alone, `pilqr` from both samples and a model, `tracking` follows a
reference with a Kalman filter in the loop, `batch` does all that for many problems at once, and
`initial` makes controllers to start from::

    from gps.control import dual, lqr
    from gps.types import LinearDynamics, QuadraticCost

    dynamics = LinearDynamics.from_matrices(A, B, noise=W, T=50)
    cost = QuadraticCost.from_matrices(Q, R, T=50)
    controller = lqr.backward(dynamics, cost)
    marginals = lqr.forward(dynamics, controller, x0)
    step = dual.minimise(dynamics, cost, x0, previous=controller, kl_max=0.5)

The horizon: a trajectory has T states x[0] .. x[T-1] and T actions u[0] .. u[T-1]. The dynamics
lead from (x[t], u[t]) to x[t+1] for t = 0 .. T-2; the cost charges every step t = 0 .. T-1. The
last action leads to no state, and is charged what the cost of its step says; a terminal cost
x'Q_f x alone needs no action cost there.

One name, one meaning: `x0` is the start, a `Gaussian` or a known state (nx,), whose covariance is
then 0. `kl_max` is in nats per time step: `dual.minimise` bounds the mean over the steps,
`dual.minimise_per_step` the KL of each. `temperature` sets the noise of a controller and never its
gains: Sigma = temperature Q_uu^-1, in cost units per nat; 0 is plain LQR. The functions called
`minimise` lower the expected cost in the problem that their module is named after.

The records are those of `gps.types`. Angles, lengths and costs are in whatever units the caller
uses; divergences are in nats.
"""

from gps.control import batch, dual, ilqr, initial, kl, lqr, models, pi2, pilqr, tracking
from gps.control.dual import DualConfig, DualResult, PerStepResult
from gps.control.ilqr import ILQRConfig, ILQRResult
from gps.control.initial import (
    HoldConfig,
    OpenLoopConfig,
    PDConfig,
    hold_linearised,
    hold_position,
    open_loop,
    pd,
)
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
    "hold_linearised",
    "hold_position",
    "ilqr",
    "initial",
    "kalman_filter",
    "kl",
    "kl_per_step",
    "lqr",
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
