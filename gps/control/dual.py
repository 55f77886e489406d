"""LQG under a KL trust region: minimise E[cost] subject to KL(p || previous) <= bound.

`minimise` bounds the KL of the whole trajectory with one dual variable eta, `minimise_per_step`
bounds every step with its own. The result is always a controller that was evaluated, with the eta
and the KL that belong to it.

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
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from gps.control import _checks, _kernels
from gps.control.kl import factors, penalty, precise
from gps.control.lqr import check_overflow, controller_of, per_step
from gps.errors import ConfigError, DualError, NonFiniteError, NotPositiveDefiniteError
from gps.types import (
    Array,
    Gaussian,
    LinearDynamics,
    LinearGaussianController,
    Marginals,
    QuadraticCost,
    Record,
    freeze,
    readonly,
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

_ROUNDING = "; a bound this small is near the rounding error of the KL"


@dataclass(frozen=True, kw_only=True)
class DualConfig:
    """How the dual variable is searched for."""

    tol: float = 0.01
    """Accepted distance of the KL from its bound, as a fraction of the bound; above 0, below 1."""

    eta_min: float = 1e-8
    """Floor of eta per nat, as a multiple of the cost's largest coefficient (entries of C and c);
    below it the constraint counts as inactive."""

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
    does not change the KL of later steps, so that the search takes about half the trials and
    converges where the other oscillates. The price: the new closed loop may leave those states, and
    what it does elsewhere has no bound."""

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


@dataclass(frozen=True, eq=False)
class DualResult(Record):
    """What `minimise` found."""

    controller: LinearGaussianController
    marginals: Marginals  # of [x; u] under the controller
    eta: float  # cost units per nat, that the controller was computed with
    kl: Array  # (T,) nats, under the marginals, or those of `DualConfig.kl_under`
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
    kl: Array  # (T,) nats, under the marginals, or those of `DualConfig.kl_under`
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
        start: Gaussian,
        previous: LinearGaussianController,
        std_floor: npt.ArrayLike | None = None,
    ) -> None:
        T, nx, nu = dynamics.T, dynamics.nx, dynamics.nu
        _checks.dynamics(dynamics)
        self.C, self.c = _checks.cost(cost, T, nx + nu), cost.c
        _checks.controller("previous", previous, T, nu, nx)
        W, x0_cov = _checks.noise(dynamics), _checks.start(start, nx)
        self.std_floor = std_floor_of(std_floor, nu)
        self.previous = previous = raised(previous, self.std_floor)
        self.inv, half_logdet = factors(previous)
        self.model = (dynamics.F, dynamics.f, W, start.mean, x0_cov)
        self.reference = (previous.K, previous.k, self.inv, half_logdet)
        self.T, self.nx, self.nu = T, nx, nu
        scale = float(max(self.C.max(), -self.C.min(), self.c.max(), -self.c.min()))
        self.unit = scale if scale > 0 else 1.0  # largest coefficient of the cost
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
        """Floor and ceiling of eta, in cost units per nat."""
        high = min(config.eta_max * self.unit, 1e250)
        return min(max(config.eta_min * self.unit, 1e-250), high), high

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
    start: Gaussian,
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
    is within `config.tol` of the bound, or eta is at its floor with the KL below the bound (the
    constraint is inactive). A trial whose Q_uu has no Cholesky factor, or whose trajectory
    overflows, counts as a KL that is too large.

    kl_max: nats per step, above 0. eta: start of the search, in cost units per nat; the last
    result's eta saves trials, None begins at the cost's largest coefficient. entropy_weight: cost
    units per nat, scalar or (T,); by default that of `config`. A KL penalty w_t KL_t(p || q) is the
    cost term w_t (-log q) together with the entropy weight w_t. std_floor: least standard deviation
    of each action, in its unit, scalar or (nu,), above 0; None for none. Where `previous` has less
    noise, it counts as raised to the floor. `config.kl_under` says over whose states the KL_t are
    averaged; under the previous controller's, the search is the same but its answer is no longer
    the optimum. The cost times a positive factor, and eta and weights with it, gives the same
    controller up to rounding.

    Never returns a controller beyond (1 + tol) times the bound. When the search ends elsewhere than
    at the bound, the best controller within it comes back with `converged=False` and a log line; in
    an ill-conditioned problem it may be worse than `previous` (compare `lqr.expected_cost`). Where
    no trial is within it, `previous` does, which is. Raises DualError only when its own trajectory
    overflows (with eta and, if Q_uu was the reason, t and its smallest eigenvalue, in the message
    and as attributes), ShapeError, NonFiniteError, NotPositiveDefiniteError, ConfigError for bad
    inputs.
    Source: Levine & Abbeel 2014 (the constrained problem); the dual of cbfinn/gps
    traj_opt_lqr_python.py, with a root find in place of its line search.
    """
    config = DualConfig() if config is None else config
    weight = config.entropy_weight if entropy_weight is None else entropy_weight
    p = _Problem(dynamics, cost, start, previous, std_floor)
    previous = p.previous
    kl_max = float(per_step("kl_max", kl_max, 1)[0])
    bound = min(kl_max * p.T, 1e300)
    eta = float(per_step("eta", p.unit if eta is None else eta, 1)[0])
    w = per_step("entropy_weight", weight, p.T, zero=True)
    low, high = p.limits(config)
    R, r = penalty(previous, p.inv)
    trial: Callable[..., tuple[int, int, float]] = _kernels.trial
    under: tuple[Array, ...] = ()
    if config.kl_under == "previous":
        trial, under = _kernels.trial_under, p.marginals_of(previous)
    trace: list[tuple[float, float]] = []
    best = math.inf  # smallest eta within the bound
    why, accepted = _Failure("no trial", None, eta, None), False

    def excess(x: float) -> float:
        """log(KL / bound) at eta = exp(x), infinite without a controller, 0 when accepted."""
        nonlocal best, why, accepted
        e = min(max(math.exp(x), low), high)
        args = (p.C, p.c, R, r, e, e + w, p.std_floor, *p.model, *p.reference, *p.spare, p.Q_uu)
        status, t, kl = trial(*args, *under)
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
    if math.isinf(best):
        nothing = (
            f"no other controller within {bound:.3g} nats of the previous one, eta up to "
            f"{max(e for e, _ in trace):.3g} in {len(trace)} trials",
            "check the cost Hessian and the scale of the dynamics, or raise eta_max or max_trials"
            + _ROUNDING * (bound < 1e-9),
        )
        if not p.keep_previous():
            raise why.error(*nothing)
        best = high
        log.info("the previous controller stays: %s", why.error(*nothing))
    elif not (accepted or end == "floor"):
        log.info("the KL stays below its bound of %.3g nats: %s", bound, _ENDS[end])
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
    )


_ENDS = {
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


def backward_per_step(
    dynamics: LinearDynamics,
    cost: QuadraticCost,
    previous: LinearGaussianController,
    eta: float | Array,
    entropy_weight: float | Array = 0.0,
) -> LinearGaussianController:
    """Minimises E[Q_t] + eta[t] KL_t(p || previous) - entropy_weight[t] H_t(p) at every step.

    Q_t is the expected cost from step t on under the new controller. With P = Sigma^-1 of
    `previous`, blocks of Q as in `lqr.backward`, w the entropy weight, and eta and w scalar or (T,)
    in cost units per nat::

        M = (Q_uu / eta + P)^-1                     Sigma = (1 + w / eta) M
        K = -M (Q_ux / eta - P K_prev)              k = -M (Q_u / eta - P k_prev)
        V_xx = Q_xx + K'Q_uu K + Q_xu K + K'Q_ux    V_x = Q_x + K'Q_u + K'Q_uu k + Q_xu k

    The entropy of a linear-Gaussian controller does not depend on the state, so that neither the
    values nor the gains see its weight.

    Raises ShapeError, NonFiniteError, ConfigError (eta, entropy_weight), NotPositiveDefiniteError
    with t, eta and the smallest eigenvalue of M^-1. Source: Chebotar et al. 2017; as in cbfinn/gps
    traj_opt_lqr_python.py with `cons_per_step`, which has no entropy term.
    """
    T, nx, nu = dynamics.T, dynamics.nx, dynamics.nu
    _checks.dynamics(dynamics)
    C = _checks.cost(cost, T, nx + nu)
    _checks.controller("previous", previous, T, nu, nx)
    given = per_step("eta", eta, T)
    w = per_step("entropy_weight", entropy_weight, T, zero=True)
    K, k, chol = np.empty((T, nu, nx)), np.empty((T, nu)), np.empty((T, nu, nu))
    Q_uu, inv = np.zeros((nu, nu)), factors(previous)[0]
    status, t = _kernels.backward_per_step(
        C, cost.c, dynamics.F, dynamics.f, *_pulls(previous, inv), 0.0, given, K, k, chol, Q_uu
    )
    if status == _kernels.NOT_POSITIVE_DEFINITE and np.isfinite(Q_uu).all():
        raise NotPositiveDefiniteError(
            "Q_uu / eta + P",
            t=t,
            smallest=_smallest(Q_uu, given[t], inv[t]),
            hint=f"raise eta, which is {given[t]:.3g} there",
        )
    if status == _kernels.OK and w.any():
        _kernels.heat(chol, given, w)
    check_overflow(status, t, K, chol)
    return controller_of(K, k, chol)


def minimise_per_step(
    dynamics: LinearDynamics,
    cost: QuadraticCost,
    start: Gaussian,
    previous: LinearGaussianController,
    kl_max: float | Array,
    config: DualConfig | None = None,
    eta: float | Array = 1.0,
    entropy_weight: float | Array | None = None,
) -> PerStepResult:
    """Minimise E[cost] - entropy_weight H(p) subject to KL_t(p || previous) <= kl_max at every t.

    Every step has its own dual variable, and `backward_per_step` gives the controller. All of them
    move together, log eta_t by a gain times log(KL_t / kl_max_t); a step's gain is halved when it
    overshoots and grows while it does not. The search ends when every step is within `config.tol`
    of its bound, or below it with eta at its floor (there the constraint is inactive). A step's
    gains look ahead on the cost, not on the KL that they leave to later steps, so that the result
    may miss the constrained optimum by some thousandths of what there is to gain.

    kl_max: nats, scalar or (T,), above 0. eta: start of the search, scalar or (T,), in cost units
    per nat. entropy_weight and `config.kl_under`: as for `minimise`. Returns a controller with
    KL_t <= (1 + tol) kl_max_t for every t; with `converged=False` and a log line if some step stays
    further below its bound than `tol`. Raises DualError when there is none (naming the step, its
    eta and, if Q_uu was the reason, its smallest eigenvalue), and the errors of `minimise` for bad
    inputs. Source: Chebotar et al. 2017 (arXiv 1703.03078), KL bounds per step; the search is not
    theirs (cbfinn/gps: 20 halvings, then 200 steps of Adam on log eta).
    """
    config = DualConfig() if config is None else config
    weight = config.entropy_weight if entropy_weight is None else entropy_weight
    p = _Problem(dynamics, cost, start, previous)
    T, tol = p.T, config.tol
    bound = per_step("kl_max", kl_max, T)
    low, high = p.limits(config)
    ask: Array = np.clip(per_step("eta", eta, T), low, high)
    w = per_step("entropy_weight", weight, T, zero=True)
    pulls = _pulls(previous, p.inv)
    under = p.marginals_of(previous) if config.kl_under == "previous" else None
    plain = under is None and not w.any()
    gain, sign, best, kept = np.full(T, 0.6), np.zeros(T), math.inf, ask
    trace: list[float] = []
    why, done, lift, reach = _Failure("no trial", None, math.nan, None), False, 1.0, np.full(T, 3.0)
    good: Array | None = None
    late, push = config.max_trials - config.max_trials // 10, 1.0
    while len(trace) < config.max_trials and not done:
        used = ask.copy()
        ends = (*p.model, *p.reference, *p.spare, p.Q_uu)
        if plain:
            status, t = _kernels.trial_per_step(p.C, p.c, *pulls, high, used, *ends)
        else:
            at = p.spare[3:5] if under is None else under
            status, t = _kernels.trial_per_step_under(
                p.C, p.c, *pulls, high, used, w, *ends, *at
            )  # fmt: skip
        if status != _kernels.OK:
            trace.append(math.nan)
            why = p.failure(status, t, float(used[t]))
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
        with np.errstate(over="ignore"):  # of a bound near zero
            share = np.maximum(np.maximum(kl, 1e-300) / bound, 1e-308)
            ratio = np.minimum(np.log(share), 700.0)
        trace.append(float(math.exp(ratio.max())))
        at_t = int(ratio.argmax())
        text = f"the KL at t={at_t} is {trace[-1]:.3g} times its bound at eta {used[at_t]:.3g}"
        why = _Failure(text, at_t, float(used[at_t]), None)
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
        if math.isinf(best) and len(trace) >= late:
            # all steps together: far enough up, the previous controller is within every bound
            step, push = np.full(T, push), 2.0 * push
        with np.errstate(over="ignore"):  # clipped
            ask = np.clip(used * np.exp(step), low, high)
    if math.isinf(best):
        raise why.error(
            f"no controller within the KL bounds after {len(trace)} trials",
            "check the cost Hessian and the scale of the dynamics, or raise eta_max or max_trials"
            + _ROUNDING * bool(bound.min() < 1e-9),
        )
    if not done:
        # every bound holds; usual where a step's constraint is about to become inactive
        log.info("some KL per step stays below its bound by more than %g: %s", tol, why.text)
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


def std_floor_of(value: npt.ArrayLike | None, nu: int) -> Array:
    """A floor on standard deviations as (nu,) numbers; all 0 for none. ConfigError, ShapeError."""
    if value is None:
        return np.zeros(nu)
    given = _checks.numbers("std_floor", value)
    if given.shape not in ((), (nu,)):
        raise ShapeError(f"std_floor must be a number or have shape {(nu,)}, got {given.shape}")
    if not ((given > 0) & (given < np.inf)).all():
        raise ConfigError(f"std_floor must be finite and above 0, got {given}")
    return np.array(np.broadcast_to(given, (nu,)))


def raised(
    controller: LinearGaussianController, std_floor: npt.ArrayLike
) -> LinearGaussianController:
    """The controller with at least the noise of a floor, (nu,) standard deviations; 0 for none.

    In units of the floor, eigenvalues of Sigma_t below 1 become 1: of all covariances that are at
    least diag(std_floor^2), the one with the least KL divergence from Sigma_t.
    """
    floor = np.array(std_floor, dtype=np.float64)
    if not floor.any():
        return controller
    chol = np.array(controller.chol)
    status, t = _kernels.raise_covariance(chol, floor)
    if status != _kernels.OK:
        raise NonFiniteError(f"a covariance in units of std_floor {floor} overflows at t={t}")
    return replace(controller, chol=readonly(chol)) if (chol != controller.chol).any() else controller


def _pulls(previous: LinearGaussianController, inv: Array) -> tuple[Array, Array, Array]:
    """P, P K and P k of a controller, read-only."""
    with np.errstate(all="ignore"):
        P = inv.transpose(0, 2, 1) @ inv
        out = P, P @ previous.K, np.einsum("tij,tj->ti", P, previous.k)
    precise("previous", *out)
    for array in out:
        array.setflags(write=False)
    return out


def _smallest(Q_uu: Array, eta: float, inv: Array) -> float:
    """Smallest eigenvalue of the precision that has no factor."""
    with np.errstate(all="ignore"):
        return _checks.smallest(Q_uu / eta + inv.T @ inv)
