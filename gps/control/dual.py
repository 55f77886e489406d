"""LQG under a KL trust region: minimise E[cost] subject to KL(p || previous) <= bound.

`minimise` bounds the KL of the whole trajectory with one dual variable eta, `minimise_per_step`
bounds every step with its own. The result is always a controller that was evaluated, with the eta
and the KL that belong to it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gps.control import _checks, _kernels
from gps.control.kl import factors, penalty
from gps.control.lqr import controller_of, per_step
from gps.errors import ConfigError, DualError, NonFiniteError, NotPositiveDefiniteError
from gps.linalg import smallest_eigenvalue
from gps.types import (
    Array,
    Gaussian,
    LinearDynamics,
    LinearGaussianController,
    Marginals,
    QuadraticCost,
    Record,
    freeze,
    shape_of,
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


@dataclass(frozen=True, kw_only=True)
class DualConfig:
    """How the dual variable is searched for."""

    tol: float = 0.01
    """Accepted distance of the KL from its bound, as a fraction of the bound; above 0, below 1."""

    eta_min: float = 1e-8
    """Floor of eta, in cost units per nat; below it the constraint counts as inactive. For a cost
    whose largest coefficient is under 1, the floor shrinks with it."""

    eta_max: float = 1e16
    """Ceiling of eta, in cost units per nat; reaching it is an error. For a cost whose largest
    coefficient is above 1, the ceiling grows with it."""

    max_trials: int = 100
    """Most backward-forward passes of one search; at least 1. Ten are usual, far fewer with a warm
    start."""

    entropy_weight: float = 0.0
    """Weight of the controller's entropy in the objective, in cost units per nat; 0 or above. Not
    used with one constraint per step."""

    def __post_init__(self) -> None:
        if not 0 < self.tol < 1:
            raise ConfigError(f"DualConfig.tol must be between 0 and 1, got {self.tol}")
        if not 0 < self.eta_min < self.eta_max < math.inf:
            raise ConfigError(
                "DualConfig needs 0 < eta_min < eta_max, both finite, "
                f"got {self.eta_min} and {self.eta_max}"
            )
        if not (isinstance(self.max_trials, int) and self.max_trials >= 1):
            raise ConfigError(f"DualConfig.max_trials must be at least 1, got {self.max_trials}")
        if not 0 <= self.entropy_weight < math.inf:
            raise ConfigError(
                f"DualConfig.entropy_weight must be finite and >= 0, got {self.entropy_weight}"
            )


@dataclass(frozen=True, eq=False)
class DualResult(Record):
    """What `minimise` found."""

    controller: LinearGaussianController
    marginals: Marginals  # of [x; u] under the controller
    eta: float  # cost units per nat, that the controller was computed with
    kl: Array  # (T,) nats, under the marginals
    kl_max: float  # nats per step; the bound is kl_max * T
    active: bool  # False: eta is at its floor and the KL below the bound
    converged: bool  # False: the bound holds, but the KL is not within `tol` of it
    trace: Array  # (n_trials, 2): eta, total KL (NaN: no controller, or no finite trajectory)

    def __post_init__(self) -> None:
        n, _ = shape_of(self, "trace", 2)
        freeze(self, kl=(self.controller.T,), trace=(n, 2))


@dataclass(frozen=True, eq=False)
class PerStepResult(Record):
    """What `minimise_per_step` found."""

    controller: LinearGaussianController
    marginals: Marginals  # of [x; u] under the controller
    eta: Array  # (T,) cost units per nat
    kl: Array  # (T,) nats, under the marginals
    kl_max: Array  # (T,) nats
    active: npt.NDArray[np.bool_]  # (T,) False: eta is at its floor and the KL below the bound
    converged: bool  # False: every bound holds, but some KL is not within `tol` of it
    trace: Array  # (n_trials,) largest KL / bound (NaN: no controller, or no finite trajectory)

    def __post_init__(self) -> None:
        T = self.controller.T
        (n,) = shape_of(self, "trace", 1)
        freeze(self, eta=(T,), kl=(T,), kl_max=(T,), trace=(n,))
        active = np.array(self.active, dtype=bool).reshape(T)
        active.setflags(write=False)
        object.__setattr__(self, "active", active)


class _Problem:
    """Checked inputs in the form the kernels take, and the buffers of the trials."""

    def __init__(
        self,
        dynamics: LinearDynamics,
        cost: QuadraticCost,
        start: Gaussian,
        previous: LinearGaussianController,
    ) -> None:
        T, nx, nu = dynamics.T, dynamics.nx, dynamics.nu
        _checks.dynamics(dynamics)
        self.C, self.c = _checks.cost(cost, T, nx + nu), cost.c
        _checks.controller("previous", previous, T, nu, nx)
        W, x0_cov = _checks.noise(dynamics), _checks.start(start, nx)
        self.inv, half_logdet = factors(previous)
        self.model = (dynamics.F, dynamics.f, W, start.mean, x0_cov)
        self.reference = (previous.K, previous.k, self.inv, half_logdet)
        self.T, self.nx, self.nu = T, nx, nu
        self.scale = float(max(self.C.max(), -self.C.min(), self.c.max(), -self.c.min()))
        self.Q_uu = np.zeros((nu, nu))
        self.spare = self.buffers()
        self.kept = self.buffers()

    def buffers(self) -> tuple[Array, ...]:
        """K, k, chol, mean, cov, kl."""
        T, nx, nu = self.T, self.nx, self.nu
        shapes = [(T, nu, nx), (T, nu), (T, nu, nu), (T, nx + nu), (T, nx + nu, nx + nu), (T,)]
        return tuple(np.empty(s) for s in shapes)

    def keep(self) -> None:
        """Make the trial just done the best one."""
        self.spare, self.kept = self.kept, self.spare

    def limits(self, config: DualConfig) -> tuple[float, float]:
        """Floor and ceiling of eta, widened for tiny and huge costs."""
        scale = self.scale if self.scale > 0 else 1.0
        low = max(config.eta_min * min(1.0, scale), 1e-250)
        return low, min(config.eta_max * max(1.0, scale), 1e250)

    def failure(self, status: int, t: int) -> str:
        """Why the last trial gave no controller, for an error message."""
        if status == _kernels.NOT_POSITIVE_DEFINITE:
            eig = smallest_eigenvalue(self.Q_uu)
            return f"Q_uu is not positive definite at t={t} (smallest eigenvalue {eig:.3g})"
        return f"the value function, the trajectory or the KL overflows at t={t}"

    def result(self) -> tuple[LinearGaussianController, Marginals, Array]:
        """The kept trial as records."""
        K, k, chol, mean, cov, kl = self.kept
        for array in (mean, cov, kl):
            array.setflags(write=False)
        return controller_of(K, k, chol), Marginals(mean, cov), kl


def minimise(
    dynamics: LinearDynamics,
    cost: QuadraticCost,
    start: Gaussian,
    previous: LinearGaussianController,
    kl_max: float,
    config: DualConfig | None = None,
    eta: float = 1.0,
    entropy_weight: float | Array | None = None,
) -> DualResult:
    """Minimise E[cost] - entropy_weight H(p) subject to sum_t KL_t(p || previous) <= kl_max * T.

    For a given dual variable eta the minimiser is `lqr.backward` of `cost + eta * (-log previous)`
    with temperature `eta + entropy_weight`; its KL falls as eta grows. The search brackets the
    bound in log eta from the given start and closes in by safeguarded regula falsi, until the KL
    is within `config.tol` of the bound, or eta is at its floor with the KL below the bound (the
    constraint is inactive). A trial whose Q_uu has no Cholesky factor, or whose trajectory
    overflows, counts as a KL that is too large.

    kl_max: nats per step, above 0. eta: start of the search, in cost units per nat; the last
    result's eta saves trials. entropy_weight: cost units per nat, scalar or (T,); by default
    that of `config`. A KL penalty w_t KL_t(p || q) is the cost term w_t (-log q) together with the
    entropy weight w_t.

    Never returns a controller beyond (1 + tol) times the bound. When the search ends elsewhere than
    at the bound, the best controller within it comes back with `converged=False` and a log line.
    Raises DualError when there is none (with eta and, if Q_uu was the reason, t and its smallest
    eigenvalue), ShapeError, NonFiniteError, NotPositiveDefiniteError, ConfigError for bad inputs.
    Source: Levine & Abbeel 2014 (the constrained problem); the dual of cbfinn/gps
    traj_opt_lqr_python.py, with a root find in place of its line search.
    """
    config = DualConfig() if config is None else config
    weight = config.entropy_weight if entropy_weight is None else entropy_weight
    p = _Problem(dynamics, cost, start, previous)
    bound = float(per_step("kl_max", kl_max, 1)[0]) * p.T
    eta = float(per_step("eta", eta, 1)[0])
    w = per_step("entropy_weight", weight, p.T, zero=True)
    low, high = p.limits(config)
    R, r = penalty(previous, p.inv)
    trace: list[tuple[float, float]] = []
    best = math.inf  # smallest eta within the bound
    why, accepted = "", False

    def excess(x: float) -> float:
        """log(KL / bound) at eta = exp(x), infinite without a controller, 0 when accepted."""
        nonlocal best, why, accepted
        e = min(max(math.exp(x), low), high)
        args = (p.C, p.c, R, r, e, e + w, *p.model, *p.reference, *p.spare, p.Q_uu)
        status, t, kl = _kernels.trial(*args)
        trace.append((e, kl))
        if status != _kernels.OK:
            why = p.failure(status, t)
            return math.inf
        why = f"the KL is {kl:.3g} nats"
        accepted = abs(kl - bound) <= config.tol * bound
        if accepted or (kl <= bound and e < best):
            best = e
            p.keep()
        return 0.0 if accepted else math.log(max(kl, 1e-300) / bound)

    end = _root(excess, math.log(eta), math.log(low), math.log(high), config.max_trials)
    if math.isinf(best):
        raise DualError(
            f"no controller within {bound:.3g} nats of the previous one, eta up to "
            f"{max(e for e, _ in trace):.3g} in {len(trace)} trials: {why}; check the "
            "cost Hessian and the scale of the dynamics, or raise eta_max or max_trials"
        )
    if not (accepted or end == "floor"):
        log.warning("KL bound of %.3g nats not met to %g: %s", bound, config.tol, end)
    controller, marginals, kl = p.result()
    return DualResult(
        controller=controller,
        marginals=marginals,
        eta=best,
        kl=kl,
        kl_max=float(kl_max),
        active=accepted or end != "floor",
        converged=accepted or end == "floor",
        trace=np.array(trace),
    )


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


def backward_per_step(
    dynamics: LinearDynamics,
    cost: QuadraticCost,
    previous: LinearGaussianController,
    eta: float | Array,
) -> LinearGaussianController:
    """The controller that minimises E[Q_t] + eta[t] KL_t(p || previous) at every step.

    Q_t is the expected cost from step t on under the new controller. With P = Sigma^-1 of
    `previous`, blocks of Q as in `lqr.backward`, and eta scalar or (T,) in cost units per nat::

        Sigma^-1 = Q_uu / eta + P
        K = -Sigma (Q_ux / eta - P K_prev)          k = -Sigma (Q_u / eta - P k_prev)
        V_xx = Q_xx + K'Q_uu K + Q_xu K + K'Q_ux    V_x = Q_x + K'Q_u + K'Q_uu k + Q_xu k

    Raises ShapeError, NonFiniteError, ConfigError (eta), NotPositiveDefiniteError with t and the
    smallest eigenvalue of Q_uu. Source: Chebotar et al. 2017; as in cbfinn/gps
    traj_opt_lqr_python.py with `cons_per_step`.
    """
    T, nx, nu = dynamics.T, dynamics.nx, dynamics.nu
    _checks.dynamics(dynamics)
    C = _checks.cost(cost, T, nx + nu)
    _checks.controller("previous", previous, T, nu, nx)
    given = per_step("eta", eta, T)
    K, k, chol = np.empty((T, nu, nx)), np.empty((T, nu)), np.empty((T, nu, nu))
    Q_uu, inv = np.zeros((nu, nu)), factors(previous)[0]
    status, t = _kernels.backward_per_step(
        C, cost.c, dynamics.F, dynamics.f, *_pulls(previous, inv), 0.0, given, K, k, chol, Q_uu
    )
    if status == _kernels.NOT_POSITIVE_DEFINITE:
        raise NotPositiveDefiniteError(
            "Q_uu / eta + P", t=t, smallest=_smallest(Q_uu, given[t], inv[t]), hint="raise eta"
        )
    if status == _kernels.NON_FINITE or not (np.isfinite(K).all() and np.isfinite(chol).all()):
        raise NonFiniteError(
            f"the value function overflows at t={t}; the dynamics may be unstable or badly scaled"
        )
    return controller_of(K, k, chol)


def minimise_per_step(
    dynamics: LinearDynamics,
    cost: QuadraticCost,
    start: Gaussian,
    previous: LinearGaussianController,
    kl_max: float | Array,
    config: DualConfig | None = None,
    eta: float | Array = 1.0,
) -> PerStepResult:
    """Minimise E[cost] subject to KL_t(p || previous) <= kl_max at every step t.

    Every step has its own dual variable, and `backward_per_step` gives the controller. All of them
    move together, log eta_t by a gain times log(KL_t / kl_max_t); a step's gain is halved when it
    overshoots and grows while it does not. The search ends when every step is within `config.tol`
    of its bound, or below it with eta at its floor (there the constraint is inactive).

    kl_max: nats, scalar or (T,), above 0. eta: start of the search, scalar or (T,), in cost units
    per nat. Returns a controller with KL_t <= (1 + tol) kl_max_t for every t; with
    `converged=False` and a log line if some step stays further below its bound than `tol`. Raises
    DualError when there is none, ConfigError if `config.entropy_weight` is not 0, and the errors of
    `minimise` for bad inputs. Source: Chebotar et al. 2017 (arXiv 1703.03078), KL bounds per step;
    the search is not theirs (cbfinn/gps: 20 halvings, then 200 steps of Adam on log eta).
    """
    config = DualConfig() if config is None else config
    if config.entropy_weight != 0.0:
        raise ConfigError("minimise_per_step has no entropy term; set entropy_weight to 0")
    p = _Problem(dynamics, cost, start, previous)
    T, tol = p.T, config.tol
    bound = per_step("kl_max", kl_max, T)
    low, high = p.limits(config)
    ask: Array = np.clip(per_step("eta", eta, T), low, high)
    pulls = _pulls(previous, p.inv)
    gain, sign, best, kept = np.full(T, 0.6), np.zeros(T), math.inf, ask
    trace: list[float] = []
    why, done, lift, reach = "", False, 1.0, np.full(T, 3.0)
    good: Array | None = None
    while len(trace) < config.max_trials and not done:
        used = ask.copy()
        args = (p.C, p.c, *pulls, high, used, *p.model, *p.reference, *p.spare, p.Q_uu)
        status, t = _kernels.trial_per_step(*args)
        if status != _kernels.OK:
            trace.append(math.nan)
            why = p.failure(status, t)
            if (ask >= high).all():
                break
            # an overflow at one step can be the fault of any other: move all, half-way back to
            # the last trial that worked, or up
            if good is None:
                ask = np.exp(np.minimum(np.log(used) + lift, math.log(high)))
                lift *= 2.0
            else:
                ask = np.sqrt(used) * np.sqrt(good)
                reach = np.maximum(0.25 * reach, 0.1)
            continue
        good, kl = used, p.spare[-1]
        ratio = np.log(np.maximum(kl, 1e-300) / bound)
        trace.append(float(math.exp(ratio.max())))
        why = f"the KL at t={int(ratio.argmax())} is {trace[-1]:.3g} times its bound"
        inactive = (used <= low) & (kl <= bound)
        done = bool((inactive | (np.abs(kl - bound) <= tol * bound)).all())
        miss = float(np.abs(np.where(inactive, 0.0, ratio)).max())
        if done or (miss < best and (kl <= (1 + tol) * bound).all()):
            best, kept = miss, used
            p.keep()
        turned = (used > ask) | (np.sign(ratio) == -sign)
        sign = np.sign(ratio)
        gain = np.where(turned, 0.5 * gain, np.minimum(1.2 * gain, 2.0))
        reach = np.where(turned, np.maximum(0.25 * reach, 1.0), np.minimum(1.5 * reach, 200.0))
        step = np.clip(gain * ratio, -reach, reach)
        if math.isinf(best) and len(trace) > config.max_trials // 2:
            # time runs short: only upwards, so that at least the bounds are met
            step = np.where(kl > bound, np.maximum(step, 0.1), 0.0)
        ask = np.clip(used * np.exp(step), low, high)
    if math.isinf(best):
        raise DualError(
            f"no controller within the KL bounds after {len(trace)} trials: {why}; check the cost "
            "Hessian and the scale of the dynamics, or raise eta_max or max_trials"
        )
    if not done:
        log.warning("KL bounds per step not met to %g: %s", tol, why)
    controller, marginals, kl = p.result()
    return PerStepResult(
        controller=controller,
        marginals=marginals,
        eta=kept,
        kl=kl,
        kl_max=bound,
        active=(kept > low) | (kl > bound),
        converged=done,
        trace=np.array(trace),
    )


def _pulls(previous: LinearGaussianController, inv: Array) -> tuple[Array, Array, Array]:
    """P, P K and P k of a controller, read-only."""
    P = inv.transpose(0, 2, 1) @ inv
    out = P, P @ previous.K, np.einsum("tij,tj->ti", P, previous.k)
    for array in out:
        array.setflags(write=False)
    return out


def _smallest(Q_uu: Array, eta: float, inv: Array) -> float:
    """Smallest eigenvalue of the precision that has no factor."""
    return smallest_eigenvalue(Q_uu / eta + inv.T @ inv)
