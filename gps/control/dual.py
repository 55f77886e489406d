"""LQG under a KL trust region: minimise E[cost] subject to KL(p || previous) <= bound.

`minimise` bounds the KL of the whole trajectory with one dual variable eta, `minimise_per_step`
bounds every step with its own. In both, `kl_max` counts nats per time step. The result is always a
controller that was evaluated, with the eta and the KL that belong to it.

Noise costs something, so that E[cost] alone narrows the controller with every update, as far as the
bound on the KL lets it, until samples no longer tell a slope from another. Two ways keep
exploration alive. A floor (`std_floor`) adds the constraint Sigma_t >= diag(std_floor^2), the least
standard deviation of each action, in the unit of the action: what a person knows of a robot. For a
given eta the gains stay the same, and Sigma_t is the unconstrained one with those eigenvalues
raised to 1 that are below it, seen in units of the floor: the exact minimiser. An entropy weight w
makes the objective E[cost] - w H(p), with H the sum of the action entropies given the state,
1/2 log |2 pi e Sigma_t|; it is in cost units per nat: about the cost of a step that is worth paying
for the noise.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt

from gps.control import _checks, _kernels
from gps.control.dual_config import DualConfig
from gps.control.kl import factors, floor_of, penalty, raised
from gps.control.lqr import controller_of, per_step
from gps.control.per_step import PerStepResult, backward_per_step, minimise_per_step
from gps.errors import DualError, NonFiniteError
from gps.fields import Shape
from gps.types import (
    Array,
    Gaussian,
    LinearDynamics,
    LinearGaussianController,
    Marginals,
    QuadraticCost,
    Record,
)

__all__ = [
    "DualConfig",
    "DualResult",
    "PerStepResult",
    "backward_per_step",
    "minimise",
    "minimise_per_step",
]

log = logging.getLogger(__name__)

_ROUNDING = "; a bound this small is near the rounding error of the KL"


@dataclass(frozen=True, eq=False)
class DualResult(Record):
    """What `minimise` found."""

    controller: LinearGaussianController
    marginals: Marginals
    """Of [x; u] under the controller."""
    eta: float
    """Cost units per nat, that the controller was computed with."""
    kl: Annotated[Array, Shape("T")]
    """Nats, under the marginals, or those of `DualConfig.kl_under`."""
    kl_max: float
    """Nats per step; the bound is kl_max * T."""
    active: bool
    """False: eta is at its floor, and the KL below the bound and constant there."""
    converged: bool
    """False: the bound holds, but the KL is not within `tol` of it."""
    trace: Annotated[Array, Shape("n 2")]
    """Of every trial: eta and the total KL (NaN: no controller, or no finite trajectory)."""
    reason: str = ""
    """Why it has not converged; `batch.minimise` gives none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.same_steps(self, self.controller, self.kl)


@dataclass(frozen=True)
class _Failure:
    """What was wrong with a trial, for an error."""

    text: str
    t: int | None
    eta: float
    smallest: float | None

    def error(self, begin: str, advice: str) -> DualError:
        """The whole message."""
        return DualError(
            f"{begin}: {self.text}; {advice}", t=self.t, eta=self.eta, smallest=self.smallest
        )


class _Problem:
    """Checked inputs in the form the kernels take, and the buffers of the trials."""

    def __init__(
        self,
        dynamics: LinearDynamics,
        cost: QuadraticCost,
        x0: Gaussian | npt.ArrayLike,
        previous: LinearGaussianController,
        std_floor: npt.ArrayLike | None = None,
    ) -> None:
        _checks.kinds(dynamics=dynamics, cost=cost, previous=previous)
        T, nx, nu = dynamics.T, dynamics.nx, dynamics.nu
        _checks.dynamics(dynamics)
        self.C, self.c = _checks.cost(cost, T, nx + nu), cost.c
        _checks.controller("previous", previous, T, nu, nx)
        W, (x0_mean, x0_cov) = _checks.noise(dynamics), _checks.start(x0, nx)
        self.std_floor = floor_of(std_floor, nu)
        self.previous = previous = raised(previous, self.std_floor)
        self.inv, half_logdet = factors(previous)
        self.model = (dynamics.F, dynamics.f, W, x0_mean, x0_cov)
        self.reference = (previous.K, previous.k, self.inv, half_logdet)
        self.T, self.nx, self.nu = T, nx, nu
        self.Q_uu = np.zeros((nu, nu))
        self.spare = self.buffers()
        self.kept = self.buffers()
        acting = previous.K, previous.k, previous.chol
        args = (self.C, self.c, *acting, *self.model, *self.spare[3:5])
        self.least, self.most = _kernels.cost_unit(*args)

    def buffers(self) -> tuple[Array, ...]:
        """K, k, chol, mean, cov, kl."""
        T, nx, nu = self.T, self.nx, self.nu
        shapes = [(T, nu, nx), (T, nu), (T, nu, nu), (T, nx + nu), (T, nx + nu, nx + nu), (T,)]
        return tuple(np.empty(s) for s in shapes)

    def keep(self) -> None:
        """Make the trial just done the best one."""
        self.spare, self.kept = self.kept, self.spare

    def limits(self, config: DualConfig) -> tuple[float, float]:
        """Floor and ceiling of eta, in cost units per nat."""
        high = min(config.eta_max * self.most, 1e250)
        return min(max(config.eta_min * self.least, 1e-250), high), high

    def failure(self, status: int, t: int, eta: float) -> _Failure:
        """Why the last trial gave no controller."""
        if status == _kernels.NOT_POSITIVE_DEFINITE and np.isfinite(self.Q_uu).all():
            eig = _checks.smallest(self.Q_uu)
            text = f"Q_uu is not positive definite at t={t} (smallest eigenvalue {eig:.3g})"
            return _Failure(text, t, eta, eig)
        return _Failure(
            f"the value function, the trajectory or the KL overflows at t={t}", t, eta, None
        )

    def keep_previous(self) -> bool:
        """Make the previous controller the best trial; False if its own trajectory overflows."""
        K, k, chol, mean, cov, kl = self.spare
        K[:], k[:], chol[:] = self.previous.K, self.previous.k, self.previous.chol
        if _kernels.forward(K, k, chol, *self.model, mean, cov)[0] != _kernels.OK:
            return False
        kl[:] = 0.0
        self.keep()
        return True

    def marginals_of(self, controller: LinearGaussianController) -> tuple[Array, Array]:
        """State-action marginals of the previous controller, in writable arrays like the trials'.

        NonFiniteError if they overflow.
        """
        mean, cov = self.buffers()[3:5]
        args = (controller.K, controller.k, controller.chol, *self.model, mean, cov)
        status, t = _kernels.forward(*args)
        if status != _kernels.OK:
            raise NonFiniteError(
                f"the marginals of `previous` overflow at t={t}, so that no KL can be averaged "
                "over them; check dynamics.F and previous.K, or take DualConfig.kl_under='new'"
            )
        return mean, cov

    def result(self) -> tuple[LinearGaussianController, Marginals, Array]:
        """The kept trial as records."""
        K, k, chol, mean, cov, kl = self.kept
        for array in (mean, cov, kl):
            array.setflags(write=False)
        return controller_of(K, k, chol), Marginals(mean, cov), kl


def minimise(
    dynamics: LinearDynamics,
    cost: QuadraticCost,
    x0: Gaussian | npt.ArrayLike,
    previous: LinearGaussianController,
    kl_max: float,
    config: DualConfig | None = None,
    eta: float | None = None,
    entropy_weight: float | Array | None = None,
    std_floor: npt.ArrayLike | None = None,
) -> DualResult:
    """Minimise E[cost] - entropy_weight H(p) subject to sum_t KL_t(p || previous) <= kl_max * T
    and, with a floor, Sigma_t >= diag(std_floor^2) at every t.

    For a given dual variable eta the minimiser is `lqr.backward` of `cost + eta * (-log previous)`
    with temperature `eta + entropy_weight`; its KL falls as eta grows. The search brackets the
    bound in log eta from the given start and closes in by safeguarded regula falsi, until the KL
    is within `config.tol` of the bound, or eta is at its floor with the KL below the bound and no
    longer growing (the constraint is inactive). A trial whose Q_uu has no Cholesky factor, or
    whose trajectory overflows, counts as a KL that is too large.

    x0: distribution of x[0], or the state (nx,) itself. kl_max: nats per time step, above 0; the
    mean over the steps is bounded, where `minimise_per_step` bounds each. eta: start of the search,
    in cost units per nat; the last result's eta saves trials, None begins at what a step's cost
    varies by (see `DualConfig.eta_min`). entropy_weight: cost units per nat, scalar or (T,); by
    default that of `config`. A KL penalty w_t KL_t(p || q) is the cost term w_t (-log q) together
    with the entropy weight w_t.
    std_floor: minimum standard deviation of each action, in its unit, scalar or (nu,), above 0;
    None for none. Where `previous` has less noise, it counts as raised to the floor.
    `config.kl_under` says over whose states the KL_t are averaged; under the previous controller's,
    the search is the same but its answer is no longer the optimum. The cost times a positive
    factor, and eta and weights with it, gives the same controller up to rounding, and so do other
    units of states and actions.

    Never returns a controller beyond (1 + tol) times the bound. When the search ends elsewhere than
    at the bound, the best controller within it comes back with `converged=False` and a `reason`; in
    an ill-conditioned problem it may be worse than `previous` (compare `lqr.expected_cost`). Where
    no trial is within it, `previous` does, which is. Raises DualError only when its own trajectory
    overflows (with eta and, if Q_uu was the reason, t and its smallest eigenvalue, in the message
    and as attributes), ShapeError, NonFiniteError, NotPositiveDefiniteError, ConfigError for bad
    inputs.
    Source: Levine & Abbeel 2014 (the constrained problem); the dual of cbfinn/gps
    traj_opt_lqr_python.py, with a root find in place of its line search.
    """
    config = _checks.config(DualConfig, config)
    weight = config.entropy_weight if entropy_weight is None else entropy_weight
    p = _Problem(dynamics, cost, x0, previous, std_floor)
    previous = p.previous
    kl_max = float(per_step("kl_max", kl_max, 1)[0])
    bound = min(kl_max * p.T, 1e300)
    eta = float(per_step("eta", p.least if eta is None else eta, 1)[0])
    w = per_step("entropy_weight", weight, p.T, zero=True)
    low, high = p.limits(config)
    R, r = penalty(previous, p.inv)
    averaged_over = p.marginals_of(previous) if config.kl_under == "previous" else None
    trace: list[tuple[float, float]] = []
    best = math.inf  # smallest eta within the bound
    why, accepted = _Failure("no trial", None, eta, None), False

    def excess(x: float) -> float:
        """log(KL / bound) at eta = exp(x), infinite without a controller, 0 when accepted."""
        nonlocal best, why, accepted
        e = min(max(math.exp(x), low), high)
        args = (p.C, p.c, R, r, e, e + w, p.std_floor, *p.model, *p.reference, *p.spare, p.Q_uu)
        status, t, kl = _kernels.trial(*args, *(averaged_over or p.spare[3:5]))
        trace.append((e, kl))
        if status != _kernels.OK:
            why = p.failure(status, t, e)
            return math.inf
        worst = int(p.spare[-1].argmax())
        text = f"the KL is {kl:.3g} nats at eta {e:.3g}, most of it at t={worst}"
        why = _Failure(text, worst, e, None)
        accepted = abs(kl - bound) <= config.tol * bound
        if accepted or (kl <= bound and e < best):
            best = e
            p.keep()
        return 0.0 if accepted else math.log(max(max(kl, 1e-300) / bound, 1e-308))

    end = _root(excess, math.log(eta), math.log(low), math.log(high), config.max_trials)
    if end == "floor" and len(trace) == 1:  # it began there: does the KL still depend on eta?
        excess(min(math.log(low) + 7.0, math.log(high)))
    reason = ""
    if math.isinf(best):
        nothing = (
            f"no other controller within {bound:.3g} nats of the previous one, eta up to "
            f"{max(e for e, _ in trace):.3g} in {len(trace)} trials",
            "check the cost Hessian and the scale of the dynamics, or raise eta_max or max_trials"
            + _ROUNDING * (bound < 1e-9),
        )
        if not p.keep_previous():
            raise why.error(*nothing)
        best, reason = high, f"the previous controller stays: {why.error(*nothing)}"
    elif end == "floor" and _still_grows(trace, config.tol * bound):
        end = "low"
    if not (reason or accepted or end == "floor"):
        reason = f"the KL stays below its bound of {bound:.3g} nats: {_ENDS[end]}"
    if reason:
        log.debug(reason)
    controller, marginals, kl = p.result()
    return DualResult(
        controller=controller,
        marginals=marginals,
        eta=best,
        kl=kl,
        kl_max=kl_max,
        active=accepted or end != "floor",
        converged=accepted or end == "floor",
        trace=np.array(trace),
        reason=reason,
    )


def _still_grows(trace: list[tuple[float, float]], slack: float) -> bool:
    """Whether the KL has changed by more than `slack` from the last trial but one to the last."""
    return len(trace) > 1 and not abs(trace[-1][1] - trace[-2][1]) <= slack


_ENDS = {
    "low": "eta is at its floor, and it still grows; lower DualConfig.eta_min",
    "trials": "the search has used up its trials; raise DualConfig.max_trials, or start from the "
    "last result's eta",
    "interval": "its KL jumps there, by rounding; bring states and cost to the order of 1",
    "ceiling": "eta is at its ceiling; raise DualConfig.eta_max",
}


def _root(fn: Callable[[float], float], x: float, low: float, high: float, trials: int) -> str:
    """Drive a decreasing fn to 0 on [low, high]; says how it ended.

    fn may be +inf below some point. "root": fn gave 0; "floor": fn(low) < 0; "ceiling":
    fn(high) > 0; "trials" and "interval": neither, the calls or the numbers between ran out.
    """
    a, fa, b, fb = -math.inf, math.inf, math.inf, -math.inf  # fn(a) > 0 > fn(b)
    reach, side, slow, halved, x = 3.0, 0, 0, False, min(max(x, low), high)
    for _ in range(trials):
        fx = fn(x)
        if fx == 0.0:
            return "root"
        width = b - a
        if fx > 0:
            if x >= high:
                return "ceiling"
            a, fa = x, fx
            if side > 0:
                fb *= 0.5  # Illinois: the end that stays loses half its weight
            side = 1
        else:
            if x <= low:
                return "floor"
            b, fb = x, fx
            if side < 0:
                fa *= 0.5
            side = -1
        if math.isinf(b):  # KL falls about like 1/eta: overshoot a little, and further every time
            x = min(a + min(max(reach / 32, 1.2 * fa), reach), high)
            reach *= 2.0
        elif math.isinf(a):
            x = max(b - min(max(reach / 32, -1.2 * fb), reach), low)
            reach *= 2.0
        else:
            if b - a <= 1e-12 * max(1.0, abs(a), abs(b)):
                return "interval"
            if not halved:
                slow = slow + 1 if b - a > 0.5 * width else 0
            halved = slow >= 3 or math.isinf(fa)
            if halved:
                slow, x = 2, 0.5 * (a + b)  # the next slow secant gives way at once
            else:
                margin = 1e-3 * (b - a)
                x = min(max((a * fb - b * fa) / (fb - fa), a + margin), b - margin)
    return "trials"
