"""LQG with a bound on the KL at every step: minimise E[cost] subject to KL_t(p || previous) <= b_t.

Every bound has a dual variable of its own, eta_t. The KL of a step is an average over states
(`DualConfig.kl_under`), and what decides the optimum is whether these depend on the controller:

- "previous": they do not. From the last step to the first, each step is then a problem of its own,
  given the values of those after it, and one pass solves all of them exactly.
- "new": they do, so that a step changes the KL of every later one. The Lagrangian counts eta_s KL_s
  of the steps s > t in the values of step t. A sweep goes backward, for the values that belong to
  the present eta, and forward, where each step is solved exactly for its bound at the states that
  the controller really reaches. After every sweep all bounds hold; the sweeps are repeated until
  values, states and eta agree.

A step alone has a closed form: where the reference's precision and Q_uu are both diagonal, the KL
is a sum of terms that fall with eta (`gps.control._per_step_kernels`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt

from gps.control import _checks, _kernels
from gps.control import _per_step_kernels as kernels
from gps.control.dual_config import DualConfig
from gps.control.kl import factors, floor_of, precise, raised
from gps.control.lqr import check_overflow, controller_of, per_step
from gps.errors import ConfigError, DualError, NonFiniteError, NotPositiveDefiniteError
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

__all__ = ["PerStepResult", "backward_per_step", "minimise_per_step"]

log = logging.getLogger(__name__)

ENDS = {
    kernels.SHORT: "the best controller within the bounds came back; raise DualConfig.max_trials, "
    "or bring states and cost to the order of 1",
    kernels.HELD: "no controller within the bounds is better than `previous`, in numbers, so that "
    "it came back; check the scale of the dynamics",
}
"""What a search that did not converge gives, for the log."""


@dataclass(frozen=True, eq=False)
class PerStepResult(Record):
    """What `minimise_per_step` found."""

    controller: LinearGaussianController
    marginals: Marginals
    """Of [x; u] under the controller."""
    eta: Annotated[Array, Shape("T")]
    """Cost units per nat."""
    kl: Annotated[Array, Shape("T")]
    """Nats, under the marginals, or those of `DualConfig.kl_under`."""
    kl_max: Annotated[Array, Shape("T")]
    """Nats."""
    active: Annotated[npt.NDArray[np.bool_], Shape("T")]
    """False: eta is at its floor and the KL below the bound."""
    converged: bool
    """False: every bound holds, but the controller need not be the optimum."""
    trace: Annotated[Array, Shape("n")]
    """Of every sweep: the largest KL / bound of the backward pass (NaN: no finite trajectory)."""
    reason: str = ""
    """Why it has not converged; `batch.minimise_per_step` gives none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.same_steps(self, self.controller, self.kl)


def backward_per_step(
    dynamics: LinearDynamics,
    cost: QuadraticCost,
    previous: LinearGaussianController,
    eta: float | Array,
    entropy_weight: float | Array = 0.0,
    kl_under: Literal["new", "previous"] = "previous",
) -> LinearGaussianController:
    """Minimises E[Q_t] + eta[t] KL_t(p || previous) - entropy_weight[t] H_t(p) at every step.

    Q_t is the expected cost from step t on under the new controller. With P = Sigma^-1 of
    `previous`, blocks of Q as in `lqr.backward`, w the entropy weight, and eta and w scalar or (T,)
    in cost units per nat::

        M = (Q_uu / eta + P)^-1                     Sigma = (1 + w / eta) M
        K = -M (Q_ux / eta - P K_prev)              k = -M (Q_u / eta - P k_prev)
        V_xx = Q_xx + K'Q_uu K + Q_xu K + K'Q_ux    V_x = Q_x + K'Q_u + K'Q_uu k + Q_xu k

    With `kl_under="new"`, where a step changes the states that later KL are averaged over, Q_t
    counts them too: eta dK'P dK joins V_xx and eta dK'P dk joins V_x, with dK = K - K_prev and
    dk = k - k_prev. The controller is then that of `lqr.backward` for the cost plus
    eta[t] (-log previous) with the temperature eta + w: it minimises
    E[cost] + sum_t eta[t] KL_t - w[t] H_t.

    The entropy of a linear-Gaussian controller does not depend on the state, so that neither the
    values nor the gains see its weight.

    Raises ShapeError, NonFiniteError, ConfigError (eta, entropy_weight, kl_under),
    NotPositiveDefiniteError with t, eta and the smallest eigenvalue of M^-1. Source: Chebotar et
    al. 2017; without the KL of later steps as in cbfinn/gps traj_opt_lqr_python.py with
    `cons_per_step`, which has no entropy term.
    """
    _checks.kinds(dynamics=dynamics, cost=cost, previous=previous)
    T, nx, nu = dynamics.T, dynamics.nx, dynamics.nu
    if kl_under not in ("new", "previous"):
        raise ConfigError(f"kl_under must be 'new' or 'previous', got {kl_under!r}")
    _checks.dynamics(dynamics)
    C = _checks.cost(cost, T, nx + nu)
    _checks.controller("previous", previous, T, nu, nx)
    given = per_step("eta", eta, T)
    w = per_step("entropy_weight", entropy_weight, T, zero=True)
    K, k, chol = np.empty((T, nu, nx)), np.empty((T, nu)), np.empty((T, nu, nu))
    Q_uu, inv = np.zeros((nu, nu)), factors(previous)[0]
    status, t = _kernels.backward_per_step(
        C, cost.c, dynamics.F, dynamics.f, *_precision_terms(previous, inv),
        previous.K, previous.k, inv, given, kl_under == "new", K, k, chol, Q_uu,
    )  # fmt: skip
    if status == _kernels.NOT_POSITIVE_DEFINITE and np.isfinite(Q_uu).all():
        raise NotPositiveDefiniteError(
            "Q_uu / eta + P",
            t=t,
            smallest=_smallest(Q_uu, given[t], inv[t]),
            hint=f"raise eta, which is {given[t]:.3g} there",
        )
    if status == _kernels.OK and w.any():
        _kernels.scale_covariance(chol, given, w)
    check_overflow(status, t, K, chol)
    return controller_of(K, k, chol)


def minimise_per_step(
    dynamics: LinearDynamics,
    cost: QuadraticCost,
    x0: Gaussian | npt.ArrayLike,
    previous: LinearGaussianController,
    kl_max: float | Array,
    config: DualConfig | None = None,
    eta: float | Array | None = None,
    entropy_weight: float | Array | None = None,
    std_floor: npt.ArrayLike | None = None,
) -> PerStepResult:
    """Minimise E[cost] - entropy_weight H(p) subject to KL_t(p || previous) <= kl_max at every t.

    The result is `backward_per_step` of its eta, with `config.kl_under`, and every step's KL is
    within `config.tol` of its bound, or below it with eta at its floor (there the constraint is
    inactive). With `kl_under="new"` that is the optimum under the bounds: the problem is convex. It
    takes sweeps (see the module), five as a rule and at most `config.max_trials`; the moves of log
    eta are damped where they turn back. With "previous" every step has the least cost-to-go at the
    states of `previous`, and one pass finds it.

    x0: distribution of x[0], or the state (nx,) itself. kl_max: nats per time step, scalar or (T,),
    above 0. eta: start of the search, scalar or (T,), in cost units
    per nat, such as the last result's; by default the first backward pass solves each step at the
    states of `previous`. entropy_weight and `config.kl_under`: as for `minimise`. std_floor:
    minimum standard deviations, in action units, scalar or (nu,), above 0, so that
    Sigma_t >= diag(std_floor^2) at every step. The covariance of `backward_per_step` then has its
    eigenvalues, in units of the floor, raised to 1, which is the optimum under the floor;
    `previous` counts as raised in the same way, in the KL as well. The floor of eta is 1e-8 of the
    step's own curvature; neither it nor anything else depends on the unit of the cost, and
    `config.eta_min` and `eta_max` are not used.

    Always returns a controller with KL_t <= (1 + tol) kl_max_t for every t. Where numbers do not
    suffice (states that grow by twenty orders) or sweeps run out it is the best that was found, or
    `previous` itself, with `converged=False` and a `reason`; where a step kept the action of
    `previous`, its eta is 1e16 times the largest coefficient of the cost. Raises DualError only
    if no trajectory, not even that of `previous`, stays finite, and the errors of `minimise` for
    bad inputs. Source: Chebotar et al. 2017 (arXiv 1703.03078), KL bounds per step; the search is
    not theirs (cbfinn/gps: 20 halvings, then 200 steps of Adam on log eta), and under
    `kl_under="new"` the values count the KL of later steps, which theirs do not.
    """
    config = _checks.config(DualConfig, config)
    weight = config.entropy_weight if entropy_weight is None else entropy_weight
    _checks.kinds(dynamics=dynamics, cost=cost, previous=previous)
    T, nx, nu = dynamics.T, dynamics.nx, dynamics.nu
    _checks.dynamics(dynamics)
    C = _checks.cost(cost, T, nx + nu)
    _checks.controller("previous", previous, T, nu, nx)
    W, (x0_mean, x0_cov) = _checks.noise(dynamics), _checks.start(x0, nx)
    bound = per_step("kl_max", kl_max, T)
    first = np.full(T, np.nan) if eta is None else per_step("eta", eta, T)
    w = per_step("entropy_weight", weight, T, zero=True)
    floor = floor_of(std_floor, nu)
    reference = raised(previous, floor)
    inv, half_logdet = factors(reference)
    K, k, chol = np.empty((T, nu, nx)), np.empty((T, nu)), np.empty((T, nu, nu))
    mean, cov, kl = np.empty((T, nx + nu)), np.empty((T, nx + nu, nx + nu)), np.empty(T)
    trace, found, active = np.zeros(config.max_trials), np.empty(T), np.zeros(T, dtype=bool)
    end, n = kernels.search(
        C, cost.c, cost.c0, *_precision_terms(reference, inv),
        dynamics.F, dynamics.f, W, x0_mean, x0_cov,
        reference.K, reference.k, reference.chol, inv, half_logdet,
        w, bound, first, config.tol, floor, config.kl_under == "previous",
        K, k, chol, mean, cov, kl, trace, found, active,
    )  # fmt: skip
    if end == kernels.NO_MARGINALS:
        raise NonFiniteError(
            f"the marginals of `previous` overflow at t={n}, so that no KL can be averaged "
            "over them; check dynamics.F and previous.K, or take DualConfig.kl_under='new'"
        )
    if end == kernels.LOST:
        raise DualError(
            f"no controller within the KL bounds: the trajectory of `previous` overflows at t={n}, "
            "and so does that of every controller tried; check the scale of dynamics.F, or shorten "
            "the horizon",
            t=n,
        )
    check_overflow(_kernels.OK, 0, K, chol)
    if end != kernels.DONE:
        log.debug("the search with a KL bound per step did not converge: %s", ENDS[end])
    for array in (mean, cov, kl):
        array.setflags(write=False)
    return PerStepResult(
        controller=controller_of(K, k, chol),
        marginals=Marginals(mean, cov),
        eta=found,
        kl=kl,
        kl_max=bound,
        active=active,
        converged=end == kernels.DONE,
        trace=trace[:n],
        reason=ENDS.get(end, ""),
    )


def _precision_terms(previous: LinearGaussianController, inv: Array) -> tuple[Array, Array, Array]:
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
