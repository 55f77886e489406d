"""Iterative LQR for known dynamics, with limits on the actions.

The problem: minimise sum_t l_t(x[t], u[t]) for t = 0 .. T-1 over actions within limits, where
x[t+1] is what a `gps.control.models.Model` says. There are T states and T actions: the last action
leads to no state, and a terminal cost need not charge it. Every iteration linearises the model
along the trajectory, solves the quadratic problem backwards in time, and rolls the new gains out
for several step sizes. Second derivatives of the dynamics are left out (iLQR, the Gauss-Newton form
of DDP). Source: W. Li, E. Todorov, Iterative linear quadratic regulator design, ICINCO 2004; Y.
Tassa, T. Erez, E. Todorov, Synthesis and stabilization of complex behaviors, IROS 2012
(regularisation, line search); Y. Tassa, N. Mansard, E. Todorov, Control-limited DDP, ICRA 2014
(limits).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from gps.control import _checks, _kernels
from gps.control import _ilqr_kernels as kernels
from gps.control.lqr import controller_of, per_step, terminal
from gps.control.models import Limited, Model, UserDefined, require_model
from gps.errors import ConfigError, NonFiniteError, NotPositiveDefiniteError, ShapeError
from gps.fields import Config, Count, NonNegative, Positive, Range, Shape, numbers
from gps.types import (
    Array,
    Gaussian,
    LinearGaussianController,
    QuadraticCost,
    Record,
)

__all__ = ["ILQRConfig", "ILQRResult", "TrajectoryCost", "minimise"]

log = logging.getLogger(__name__)

Reason = Literal["gradient", "cost", "iterations", "regularisation"]


@dataclass(frozen=True, kw_only=True)
class ILQRConfig(Config):
    """When the iteration stops, and how it is kept from diverging."""

    iterations: Count = 200
    """Maximum number of iterations."""

    tol_gradient: NonNegative = 1e-6
    """Stop when no action would change by more than this fraction of its unit + |u|. The unit of an
    action, here and below, is the smaller of half the range between its limits and of the action
    that costs as much as a step of the first trajectory does; without either its largest size in
    the first trajectory, or 1."""

    tol_cost: NonNegative = 1e-9
    """Stop when an accepted step lowers the cost by less than this fraction of unit + |cost|. The
    unit of the cost, here and below, is the largest entry of a step's Hessian (of its gradient,
    where that is zero), averaged over the first trajectory, with actions in their units and states
    in theirs: the standard deviation that independent actions of one unit would give them (median
    over the steps, on the model's linearisation). So the cost times a positive factor is minimised
    by the same steps, and so it is whatever states and actions count in."""

    step_sizes: tuple[Annotated[float, Range(above=0, at_most=1)], ...] = tuple(
        1.1 ** -(k * k) for k in range(10)
    )
    """Tried in the line search, from large to small. The first alone, then all others as one batch
    of rollouts."""

    min_ratio: Annotated[float, Range(at_least=0, below=1)] = 1e-4
    """A step is accepted when it lowers the cost by more than this share of what the quadratic
    model expects."""

    regularise: Literal["state", "action"] = "state"
    """What the regularisation is a multiple of: B'B ("state": deviations of the next state are
    penalised) or the identity on Q_uu ("action"), with states and actions in their units."""

    initial: NonNegative = 1e-6
    """Regularisation of the first iteration, in the cost's unit."""

    factor: Annotated[float, Range(above=1)] = 1.6
    """By which it grows and falls, faster with every repetition."""

    smallest: Positive = 1e-6
    """Where it falls to 0 and from where it grows, in the cost's unit."""

    largest: Positive = 1e10
    """Where the iteration gives up, in the cost's unit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.step_sizes
        if not sizes or not all(a > b for a, b in pairwise(sizes)):
            raise ConfigError(f"ILQRConfig.step_sizes must fall, from at most 1, got {sizes}")
        if not self.smallest < self.largest or self.initial > self.largest:
            raise ConfigError(
                "ILQRConfig needs smallest < largest and initial <= largest, got "
                f"{self.smallest}, {self.largest} and {self.initial}"
            )


@runtime_checkable
class TrajectoryCost(Protocol):
    """A cost of states and actions, with derivatives along one trajectory."""

    def values(self, X: Array, U: Array) -> Array:
        """Cost of each step (B, T), for states (B, T, nx) and actions (B, T, nu)."""
        ...

    def derivatives(self, X: Array, U: Array) -> tuple[Array, Array]:
        """Gradient (T, nz) and Hessian (T, nz, nz) in [x; u] along X (T, nx), U (T, nu)."""
        ...


class _Quadratic:
    """A `QuadraticCost` as a cost of trajectories."""

    def __init__(self, cost: QuadraticCost) -> None:
        T, nz = cost.c.shape
        self._C, self._c, self._c0 = _checks.cost(cost, T, nz), cost.c, cost.c0

    def values(self, X: Array, U: Array) -> Array:
        z = np.concatenate((X, U), axis=2)
        Cz = np.einsum("tij,btj->bti", self._C, z)
        value: Array = np.einsum("bti,bti->bt", z, 0.5 * Cz + self._c) + self._c0
        return value

    def derivatives(self, X: Array, U: Array) -> tuple[Array, Array]:
        z = np.concatenate((X, U), axis=1)
        return np.einsum("tij,tj->ti", self._C, z) + self._c, self._C


@dataclass(frozen=True, eq=False)
class ILQRResult(Record):
    """What `minimise` found."""

    X: Annotated[Array, Shape("T nx")]
    """States of the best trajectory."""
    U: Annotated[Array, Shape("T nu")]
    """Its actions, within the limits."""
    controller: LinearGaussianController
    """u = U + K (x - X) + noise, in absolute states."""
    cost: float
    """Sum over the trajectory, in cost units."""
    reason: Reason
    """Why it stopped: "gradient" and "cost" are tolerances that were met."""
    costs: Annotated[Array, Shape("n+1")]
    """Of the start, and after every iteration."""
    regularisation: Annotated[Array, Shape("n")]
    """With which each iteration's backward pass succeeded, in the unit."""
    step_sizes: Annotated[Array, Shape("n")]
    """Step sizes that the line search accepted; 0 where no step was."""
    gradients: Annotated[Array, Shape("n")]
    """Largest change of an action that was asked for, over its unit + |u|."""
    unit: float
    """Of the cost, by which tolerances and regularisation go; see ILQRConfig.tol_cost."""

    @property
    def converged(self) -> bool:
        """Whether a tolerance was met."""
        return self.reason in ("gradient", "cost")

    @property
    def iterations(self) -> int:
        """How many there were."""
        return len(self.step_sizes)


def minimise(
    model: Model,
    cost: TrajectoryCost | QuadraticCost,
    x0: Gaussian | npt.ArrayLike,
    actions: npt.ArrayLike,
    *,
    limits: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    controller: LinearGaussianController | None = None,
    temperature: float | Array = 1.0,
    config: ILQRConfig | None = None,
) -> ILQRResult:
    """Improve a sequence of actions until a tolerance of `config` is met.

    x0: the state x[0] (nx,), or a Gaussian, whose mean is taken. actions: where the search begins,
    (T, nu); an earlier result's U warm-starts it. limits: lowest and highest actions, numbers,
    (nu,) or (T, nu), infinite where there are none; by default those of the model, if it clips its
    actions (`models.Limited`, as a `MujocoModel` does). An action that a limit holds has zero
    gains. controller: its mean actions begin the search instead, rolled out in closed loop from the
    start (`actions` is then ignored beyond its shape); for models that fly apart in open loop.
    temperature: Sigma = temperature times the inverse of the (regularised) Q_uu, in cost units per
    nat, as in `lqr.backward`; 0 for none.

    The model is deterministic; the controller's noise is for those who sample around it. Raises
    ShapeError, ConfigError, NonFiniteError (x0, limits, a first trajectory or derivatives that
    are not finite, with the step), NotPositiveDefiniteError when no regularisation up to
    `config.largest` makes the first backward pass possible, or when the cost falls without bound,
    with the step and the eigenvalue.

    cost: a QuadraticCost, or any object with the methods of `TrajectoryCost`; costs of `gps.costs`,
    those in torch too, go through `gps.costs.CostOf`.
    """
    config = _checks.config(ILQRConfig, config)
    problem = _Problem(model, cost, x0, actions, limits)
    X, U, J = problem.begin(controller)
    T, nx, nu = problem.T, problem.nx, problem.nu
    temperatures = per_step("temperature", temperature, T, zero=True)
    k, K, inv = np.zeros((T, nu)), np.zeros((T, nu, nx)), np.zeros((T, nu, nu))
    found: _Gains | None = None
    costs, mus, sizes, gradients = [J], [], [], []
    schedule = _Schedule(config)
    reason: Reason = "iterations"
    fresh = True
    for _ in range(config.iterations):
        if fresh:
            problem.expand(X, U)
            fresh = False
        status, t = problem.backward(U, schedule, config, k, K, inv)
        if status != _kernels.OK:
            if found is None:
                raise problem.failure(status, t)
            reason = "regularisation"
            break
        gradient = float((np.abs(k) / (problem.scale[nx:] + np.abs(U))).max())
        found = _Gains(K.copy(), inv.copy())
        gradients.append(gradient)
        mus.append(schedule.mu)
        mild = schedule.mu <= 10 * config.smallest
        if gradient < config.tol_gradient and mild:
            sizes.append(0.0)
            costs.append(J)
            reason = "gradient"
            break
        step = problem.search(X, U, J, k, K, config)
        sizes.append(0.0 if step is None else step.size)
        if step is None:
            costs.append(J)
            if mild and problem.promised() < config.tol_cost * (problem.unit + abs(J)):
                reason = "cost"
                break
            # a small change that a large regularisation asks for says nothing about the optimum
            if not schedule.grow():
                reason = "regularisation"
                break
            continue
        problem.require_bounded(step.cost, costs[0])
        lowered = J - step.cost
        X, U, J, fresh = step.X, step.U, step.cost, True
        costs.append(J)
        schedule.fall()
        if lowered < config.tol_cost * (problem.unit + abs(J)):
            reason = "cost"
            break
    if fresh:  # gains that belong to the trajectory that is returned
        problem.expand(X, U)
        status, t = problem.backward(U, schedule, config, k, K, inv)
        if status == _kernels.OK:
            found = _Gains(K, inv)
    assert found is not None
    with np.errstate(all="ignore"):
        chol = np.sqrt(temperatures)[:, None, None] * found.inv
        offset = U - np.einsum("tux,tx->tu", found.K, X)
    t = _checks.last_not_finite(chol, offset)
    if t >= 0:
        raise NonFiniteError(
            f"the controller overflows at t={t}; check the scale of the states, of the cost and of "
            "the temperature"
        )
    return ILQRResult(
        X=X,
        U=U,
        controller=controller_of(found.K, offset, chol),
        cost=J,
        reason=reason,
        costs=np.array(costs),
        regularisation=np.array(mus),
        step_sizes=np.array(sizes),
        gradients=np.array(gradients),
        unit=problem.unit,
    )


@dataclass(frozen=True, eq=False)
class _Gains:
    """Of one backward pass: gains, and the lower factor of the inverse of Q_uu."""

    K: Array
    inv: Array


@dataclass(frozen=True, eq=False)
class _Step:
    """A step of the line search that was accepted."""

    size: float
    X: Array
    U: Array
    cost: float


class _Schedule:
    """The regularisation; it moves faster the longer it moves in one direction (Tassa 2012)."""

    def __init__(self, config: ILQRConfig) -> None:
        self.mu, self._pace, self._c = config.initial, 1.0, config

    def grow(self) -> bool:
        """Raise it; False when it has reached its ceiling."""
        c = self._c
        if self.mu >= c.largest:
            return False
        self._pace = max(c.factor, self._pace * c.factor)
        self.mu = min(max(c.smallest, self.mu * self._pace), c.largest)
        return True

    def fall(self) -> None:
        """Lower it."""
        c = self._c
        self._pace = min(1.0 / c.factor, self._pace / c.factor)
        self.mu *= self._pace
        if self.mu < c.smallest:
            self.mu = 0.0


def reached(F: Array, u: Array) -> Array:
    """Standard deviation (nx,) that independent actions with those of u (nu,) give the states.

    The median over the steps that they reach, on the linearisation F (T-1, nx, nx+nu); 0 for what
    they do not reach.
    """
    nx = F.shape[1]
    S, found = np.zeros((nx, nx)), np.zeros((len(F), nx))
    for t, f in enumerate(F):
        A, B = f[:, :nx], f[:, nx:] * u
        S = A @ S @ A.T + B @ B.T
        found[t] = S.diagonal()
    found[~((found > 0) & (found < np.inf))] = np.nan
    out = np.zeros(nx)
    known = ~np.isnan(found).all(axis=0)
    out[known] = np.sqrt(np.nanmedian(found[:, known], axis=0))
    return out


def _made_of(source: object) -> str:
    """The user's function that a model or a cost consists of, in brackets."""
    return f" ({source.user_function})" if isinstance(source, UserDefined) else ""


class _Problem:
    """Checked inputs, and the buffers of the passes."""

    def __init__(
        self,
        model: Model,
        cost: TrajectoryCost | QuadraticCost,
        x0: Gaussian | npt.ArrayLike,
        actions: npt.ArrayLike,
        limits: tuple[npt.ArrayLike, npt.ArrayLike] | None,
    ) -> None:
        require_model(model)
        if not isinstance(cost, QuadraticCost | TrajectoryCost):
            raise ShapeError(
                "cost must be a QuadraticCost, or have the methods of TrajectoryCost; costs of "
                f"gps.costs go through gps.costs.CostOf(cost, layout, nu, T); got {cost!r}"
            )
        self.model, self.nx, self.nu = model, model.nx, model.nu
        self.x0 = _checks.start_state(x0, model.nx)
        self.actions = numbers(actions, "actions")
        if self.actions.ndim != 2 or self.actions.shape[1] != self.nu or not len(self.actions):
            raise ShapeError(
                f"actions must have shape (T, {self.nu}) with T >= 1, got {self.actions.shape}"
            )
        _checks.finite("actions", self.actions)
        self.T = T = len(self.actions)
        self.cost: TrajectoryCost
        if isinstance(cost, QuadraticCost):
            if cost.c.shape != (T, self.nx + self.nu):
                raise ShapeError(
                    f"cost.c must have shape {(T, self.nx + self.nu)}, got {cost.c.shape}"
                )
            self.cost = _Quadratic(cost)
        else:
            self.cost = cost
        if limits is None:
            limits = model.control_range if isinstance(model, Limited) else (-np.inf, np.inf)
        try:
            low, high = limits
        except (TypeError, ValueError):
            raise ShapeError(
                f"limits must be a pair of lowest and highest actions, got {limits!r}"
            ) from None
        self.low, self.high = self._limit("lower", low), self._limit("upper", high)
        self.boxed = bool(np.isfinite(self.low).any() or np.isfinite(self.high).any())
        if not (self.low <= self.high).all():
            t, i = np.argwhere(~(self.low <= self.high))[0]
            raise ConfigError(
                f"limits: the lower one of action {i} at t={t}, {self.low[t, i]}, is not below "
                f"the upper one, {self.high[t, i]}"
            )
        self.F = np.zeros((T - 1, self.nx, self.nx + self.nu))
        self.l_z = np.zeros((T, self.nx + self.nu))
        self.l_zz = np.zeros((T, self.nx + self.nu, self.nx + self.nu))
        self.Q_uu, self.change = np.zeros((self.nu, self.nu)), np.zeros(2)
        # units of the cost and of [x; u]; set by the first expansion
        self.unit = 0.0
        self.scale, self.weights = np.ones(self.nx + self.nu), np.ones(self.nx + self.nu)

    def _limit(self, which: str, value: npt.ArrayLike) -> Array:
        array = numbers(value, f"the {which} limit")
        try:
            return np.broadcast_to(array, (self.T, self.nu)).copy()
        except ValueError:
            raise ShapeError(
                f"the {which} limit must be a number, ({self.nu},) or ({self.T}, {self.nu}), got "
                f"shape {array.shape}"
            ) from None

    def roll(
        self, X: Array, U: Array, k: Array, K: Array, sizes: Array
    ) -> tuple[Array, Array, Array]:
        """States, actions and total costs, one for each step size; infinite where it blows up."""
        totals = np.full(len(sizes), np.inf)
        with np.errstate(all="ignore"):  # what becomes non-finite counts as an infinite cost
            states, actions = self.model.rollout(X, U, k, K, sizes, self.low, self.high)
            good = np.isfinite(states).all(axis=(1, 2)) & np.isfinite(actions).all(axis=(1, 2))
            if good.any():
                values = self.cost.values(states[good], actions[good])
                if np.shape(values) != (int(good.sum()), self.T):
                    raise ShapeError(
                        "the cost's values must have shape (B, T) = "
                        f"{(int(good.sum()), self.T)}, got {np.shape(values)}"
                    )
                totals[good] = values.sum(axis=1)
        totals[~np.isfinite(totals)] = np.inf
        return states, actions, totals

    def begin(self, controller: LinearGaussianController | None) -> tuple[Array, Array, float]:
        """The first trajectory and its cost."""
        T, nx, nu = self.T, self.nx, self.nu
        K, U, X = np.zeros((T, nu, nx)), self.actions, np.zeros((T, nx))
        X[0] = self.x0
        if controller is not None:
            _checks.kinds(controller=controller)
            _checks.controller("controller", controller, T, nu, nx)
            # u = k + K x: about a trajectory that is zero from the second step on
            K, U = controller.K, controller.k.copy()
            U[0] += K[0] @ X[0]
        states, actions, totals = self.roll(X, U, np.zeros((T, nu)), K, np.zeros(1))
        if not np.isfinite(totals[0]):
            bad = ~(np.isfinite(states[0]).all(axis=1) & np.isfinite(actions[0]).all(axis=1))
            if not bad.any():
                raise self.cost_failure(states[0], actions[0])
            raise NonFiniteError(
                f"the first trajectory is not finite at t={int(bad.argmax())}{_made_of(self.model)}"
                "; begin with other actions, or with a controller that stabilises the model"
            )
        return states[0], actions[0], float(totals[0])

    def cost_failure(self, X: Array, U: Array) -> NonFiniteError:
        """Where the cost of the first trajectory is not finite, in the cost's own words if any."""
        with np.errstate(all="ignore"):
            try:
                self.cost.derivatives(X, U)
            except NonFiniteError as error:
                return NonFiniteError(f"the cost of the first trajectory is not finite: {error}")
            values = self.cost.values(X[None], U[None])[0]
        where = (
            f"at t={int((~np.isfinite(values)).argmax())}"
            if not np.isfinite(values).all()
            else ("when summed over the steps")
        )
        return NonFiniteError(
            f"the cost of the first trajectory ({type(self.cost).__qualname__}.values"
            f"{_made_of(self.cost)}) is not finite {where}; check the cost there, or begin with "
            "other actions"
        )

    def expand(self, X: Array, U: Array) -> None:
        """Derivatives along a trajectory."""
        with np.errstate(all="ignore"):  # the step that is not finite is named below
            F = self.model.jacobians(X, U)
            l_z, l_zz = self.cost.derivatives(X, U)
        for name, source, array, want in (
            ("the model's Jacobians", self.model, F, self.F.shape),
            ("the cost's gradient", self.cost, l_z, self.l_z.shape),
            ("the cost's Hessian", self.cost, l_zz, self.l_zz.shape),
        ):
            if np.shape(array) != want:
                raise ShapeError(f"{name} must have shape {want}, got {np.shape(array)}")
            t = _checks.not_finite(array)
            if t >= 0:
                made_of = _made_of(source) or f" ({type(source).__qualname__})"
                raise NonFiniteError(f"{name}{made_of}: not finite at t={t}")
        self.F[:], self.l_z[:] = F, l_z
        l_zz = _checks.symmetric("the cost's Hessian", np.ascontiguousarray(l_zz))
        self.l_zz[:] = terminal(l_zz, self.l_z, self.nu)
        if not self.unit:
            self._set_units(X, U)

    def _set_units(self, X: Array, U: Array) -> None:
        """Units of the states, of the actions and of the cost; see ILQRConfig."""
        nx, step = self.nx, float(np.abs(self.cost.values(X[None], U[None])).mean())
        with np.errstate(all="ignore"):
            own = np.abs(self.l_zz.diagonal(axis1=1, axis2=2)[:, nx:]).mean(axis=0)
            sizes = np.sqrt(step / own), 0.5 * (self.high - self.low).min(axis=0)
            fit = [np.where((s > 0) & np.isfinite(s), s, np.inf) for s in sizes]
            u = np.minimum(*fit)
            largest = np.abs(U).max(axis=0)
            u = np.where(np.isfinite(u), u, np.where(largest > 0, largest, 1.0))
            x = reached(self.F, u)
            self.scale = s = np.concatenate((x, u))
            self.weights = np.where(s > 0, 1.0 / (s * s), 0.0)
            curvature = (np.abs(self.l_zz) * s[:, None] * s).max(axis=(1, 2)).mean()
            unit = curvature or (np.abs(self.l_z) * s).max(axis=1).mean()
        self.unit = float(unit) if 0 < unit < np.inf else 1.0

    def backward(
        self, U: Array, schedule: _Schedule, config: ILQRConfig, k: Array, K: Array, inv: Array
    ) -> tuple[int, int]:
        """Gains about the trajectory that was expanded last; regularised more until they exist."""
        while True:
            with np.errstate(over="ignore"):  # a limit so far away is none
                low, high = self.low - U, self.high - U
            status, t = kernels.backward(
                self.l_z, self.l_zz, self.F, low, high, schedule.mu * self.unit, self.weights,
                config.regularise == "state", self.boxed, K, k, inv, self.change, self.Q_uu,
            )  # fmt: skip
            if status == _kernels.OK and not (np.isfinite(k).all() and np.isfinite(K).all()):
                status, t = _kernels.NON_FINITE, _checks.last_not_finite(k, K)
            if status == _kernels.OK or not schedule.grow():
                return status, t

    def failure(self, status: int, t: int) -> Exception:
        """Why there are no gains."""
        if status == _kernels.NOT_POSITIVE_DEFINITE and np.isfinite(self.Q_uu).all():
            return NotPositiveDefiniteError(
                "Q_uu",
                t=t,
                smallest=_checks.smallest(self.Q_uu),
                hint=_checks.advice(
                    *(self.l_zz, t, self.Q_uu.shape[0]),
                    "add action cost, or regularise the action (ILQRConfig.regularise)",
                ),
            )
        return NonFiniteError(
            f"the value function overflows at t={t}; the model may be unstable or badly scaled: "
            "begin with a controller that stabilises it, or bring states and cost to the order of 1"
        )

    def promised(self) -> float:
        """By how much a whole step lowers the cost, says the quadratic model."""
        return -float(self.change[0] + 0.5 * self.change[1])

    def require_bounded(self, J: float, first: float) -> None:
        """Raise an error when the cost has fallen further than any cost with a minimum does."""
        if abs(J) / 1e12 < self.unit + abs(first):
            return
        own = self.l_zz[:, self.nx :, self.nx :]
        smallest = [_checks.smallest(block) for block in own]
        t = int(np.argmin(smallest))
        hint = f"the cost falls without bound ({J:.3g}): add action cost, or give limits"
        if smallest[t] <= 0:
            raise NotPositiveDefiniteError(
                "the action part of the cost's Hessian", t=t, smallest=smallest[t], hint=hint
            )
        raise NonFiniteError(f"{hint}; check the sign of the state cost")

    def search(
        self, X: Array, U: Array, J: float, k: Array, K: Array, config: ILQRConfig
    ) -> _Step | None:
        """The first step size that lowers the cost enough: the largest, else the best of the rest.

        What lowers it by more than the model expects is as good.
        """
        sizes = np.array(config.step_sizes)
        for some in (sizes[:1], sizes[1:]):
            if not len(some):
                continue
            states, actions, totals = self.roll(X, U, k, K, some)
            with np.errstate(all="ignore"):  # NaN and infinity accept no step
                expected = -some * (self.change[0] + 0.5 * some * self.change[1])
                enough = (J - totals > config.min_ratio * expected) & (totals < J) & (expected > 0)
            if enough.any():
                best = int(np.where(enough, totals, np.inf).argmin())
                return _Step(float(some[best]), states[best], actions[best], float(totals[best]))
        return None
