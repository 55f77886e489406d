"""Model-based and model-free policy improvement in one: LQR for what the model explains, PI2 for
the rest.

The cost of a sample is split in two: what the fitted dynamics and the quadratic cost predict for
its noise, and a residual. KL-constrained LQR lowers the first, PI2 on the residual corrects the
result where the cost is not quadratic (it may be discontinuous) or the dynamics are not linear.
Source: Y. Chebotar, K. Hausman, M. Zhang, G. Sukhatme, S. Schaal, S. Levine, Combining Model-Based
and Model-Free Updates for Trajectory-Centric Reinforcement Learning, ICML 2017 (arXiv 1703.03078).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import numpy.typing as npt

from gps.compiling import kernel
from gps.control import _checks, dual, kl, pi2
from gps.control._kernels import product_with
from gps.control.dual import DualConfig, PerStepResult
from gps.control.lqr import per_step
from gps.control.pi2 import PI2Config, PI2Result
from gps.errors import ConfigError, NonFiniteError, ShapeError
from gps.fields import Config, Positive, Shape, numbers
from gps.linalg import solve_lower
from gps.types import (
    Array,
    Gaussian,
    LinearDynamics,
    LinearGaussianController,
    QuadraticCost,
    Record,
)

__all__ = [
    "Explained",
    "PILQRConfig",
    "PILQRResult",
    "adjust_steps",
    "explain",
    "replay",
    "update",
]


_WRONG = 10.0
"""Residual share of the cost-to-go above which a model explains nothing at all."""


@dataclass(frozen=True, kw_only=True)
class PILQRConfig(Config):
    """Both halves of an update, and how the residual sets the step of the first."""

    dual: DualConfig = field(default_factory=DualConfig)
    """Search for the dual variables of the KL bounds per step."""

    pi2: PI2Config = field(default_factory=PI2Config)
    """The update on the residual."""

    decrease: Positive = 0.2
    """Residual share of the cost above which a step's KL bound is halved."""

    increase: Positive = 0.05
    """Residual share of the cost below which a step's KL bound is doubled."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.increase < self.decrease:
            raise ConfigError(
                f"PILQRConfig needs increase < decrease, got {self.increase} and {self.decrease}"
            )


@dataclass(frozen=True, eq=False)
class Explained(Record):
    """How much of the sampled costs a model accounts for."""

    noise: Annotated[Array, Shape("N T nu")]
    """Unit-variance noise of the sampled actions."""
    predicted: Annotated[Array, Shape("N T")]
    """Cost of that noise under the model."""
    residual: Annotated[Array, Shape("N T")]
    """Sampled cost less the predicted one."""
    share: Annotated[Array, Shape("T")]
    """sum_{t' >= t} |residual| over sum_{t' >= t} |cost|, over all samples."""


@dataclass(frozen=True, eq=False)
class PILQRResult(Record):
    """What `update` found."""

    controller: LinearGaussianController
    lqr: PerStepResult
    """The model-based half."""
    pi2: PI2Result
    """The model-free half."""
    explained: Explained


@kernel
def _replay(F, f, C, c, c0, K, k, chol, x0, noise, out):  # type: ignore[no-untyped-def]
    """Costs out (N, T) of noise (N, T, nu) from x0 (N, nx) under the model."""
    N, T, nu = noise.shape
    nx = x0.shape[1]
    x, z, y = np.empty(nx), np.empty(nx + nu), np.empty(nx + nu)
    for n in range(N):
        x[:] = x0[n]
        for t in range(T):
            z[:nx] = x
            for i in range(nu):
                s = k[t, i]
                for j in range(nx):
                    s += K[t, i, j] * x[j]
                for j in range(i + 1):
                    s += chol[t, i, j] * noise[n, t, j]
                z[nx + i] = s
            product_with(C[t], z, y)
            s = c0[t]
            for j in range(nx + nu):
                s += z[j] * (0.5 * y[j] + c[t, j])
            out[n, t] = s
            if t < T - 1:
                product_with(F[t], z, x)
                for j in range(nx):
                    x[j] += f[t, j]


@kernel
def _noise_of(K, k, chol, X, U, out):  # type: ignore[no-untyped-def]
    """chol^-1 (u - K x - k) for every sample and step."""
    N, T, nu = U.shape
    nx = X.shape[2]
    d = np.empty((nu, 1))
    for n in range(N):
        for t in range(T):
            for i in range(nu):
                s = U[n, t, i] - k[t, i]
                for j in range(nx):
                    s -= K[t, i, j] * X[n, t, j]
                d[i, 0] = s
            solve_lower(chol[t], d)
            for i in range(nu):
                out[n, t, i] = d[i, 0]


def replay(
    dynamics: LinearDynamics,
    cost: QuadraticCost,
    controller: LinearGaussianController,
    x0: npt.ArrayLike,
    noise: npt.ArrayLike,
) -> Array:
    """Cost (N, T) of samples of a controller under a linear model without noise of its own.

    x0 (N, nx): where each sample starts. noise (N, T, nu): the unit-variance noise of its actions,
    u = K x + k + chol noise. Raises ShapeError, NonFiniteError (also when a sample overflows).
    """
    _checks.kinds(dynamics=dynamics, cost=cost, controller=controller)
    T, nx, nu = dynamics.T, dynamics.nx, dynamics.nu
    _checks.dynamics(dynamics)
    C = _checks.cost(cost, T, nx + nu)
    _checks.controller("controller", controller, T, nu, nx)
    starts, eps = numbers(x0, "x0"), numbers(noise, "noise")
    N = len(eps) if eps.ndim else 0
    _samples(x0=(starts, (N, nx)), noise=(eps, (N, T, nu)))
    out = np.empty((N, T))
    with np.errstate(over="ignore", invalid="ignore"):
        _replay(
            dynamics.F, dynamics.f, C, cost.c, cost.c0, controller.K, controller.k,
            controller.chol, starts, eps, out,
        )  # fmt: skip
    if not np.isfinite(out).all():
        i, t = np.argwhere(~np.isfinite(out))[0]
        raise NonFiniteError(
            f"the model's prediction for sample {i} overflows at t={t}; the fitted dynamics may "
            "be unstable: take more samples, or a stronger prior"
        )
    return out


def explain(
    dynamics: LinearDynamics,
    cost: QuadraticCost,
    controller: LinearGaussianController,
    X: npt.ArrayLike,
    U: npt.ArrayLike,
    costs: npt.ArrayLike,
) -> Explained:
    """Split the costs of samples of `controller` into what the model predicts, and the rest.

    The noise of every sample, chol^-1 (u - K x - k), is replayed from its own start under the
    controller and the model (`replay`). X (N, T, nx), U (N, T, nu), costs (N, T), N >= 1. Raises
    ShapeError, NonFiniteError.
    """
    _checks.kinds(dynamics=dynamics, cost=cost, controller=controller)
    T, nx, nu = dynamics.T, dynamics.nx, dynamics.nu
    _checks.controller("controller", controller, T, nu, nx)
    states, actions, values = numbers(X, "X"), numbers(U, "U"), numbers(costs, "costs")
    N = len(states) if states.ndim else 0
    _samples(costs=(values, (N, T)), X=(states, (N, T, nx)), U=(actions, (N, T, nu)))
    if N < 1:
        raise ShapeError("explain needs at least 1 sample, got 0")
    noise = np.empty((N, T, nu))
    _noise_of(controller.K, controller.k, controller.chol, states, actions, noise)
    predicted = replay(dynamics, cost, controller, states[:, 0], noise)
    residual = values - predicted
    return Explained(noise, predicted, residual, _share(values, residual))


def update(
    dynamics: LinearDynamics,
    cost: QuadraticCost,
    x0: Gaussian | npt.ArrayLike,
    previous: LinearGaussianController,
    X: npt.ArrayLike,
    U: npt.ArrayLike,
    costs: npt.ArrayLike,
    kl_max: float | Array,
    config: PILQRConfig | None = None,
    eta: float | Array | None = None,
    std_floor: npt.ArrayLike | None = None,
) -> PILQRResult:
    """One PILQR update of `previous` from samples of it.

    1. `dual.minimise_per_step` gives p_lqr: least expected cost under the model with
       KL_t(p_lqr || previous) <= kl_max_t at every step.
    2. The noise of every sample, chol^-1 (u - K x - k) of `previous`, is replayed under `previous`
       and the model; what the sampled cost differs by is the residual (`explain`).
    3. `pi2.update` on the residual, for the actions that p_lqr takes with the same noise at the
       sampled states: K of p_lqr stays. Its temperatures are those that the full costs ask for, so
       that a small residual moves the controller little; where the residual is over ten times the
       cost-to-go, at least those that it asks for itself.

    dynamics, cost, x0: the model fitted to the samples, as `dual.minimise` takes it. X (N, T, nx),
    U (N, T, nu), costs (N, T): states, actions, and costs, N >= 2. kl_max: nats per time step,
    scalar or (T,). eta: start of the dual search, as for `dual.minimise_per_step`. std_floor:
    minimum standard deviations of the result, as there. Raises the errors of
    `dual.minimise_per_step` and `pi2.update`.

    Departure from the paper: samples of `previous` are compared with what the model says of
    `previous`, as the public implementation does, not with what it says of p_lqr; the difference
    of two controllers is no residual.
    """
    config = _checks.config(PILQRConfig, config)
    if len(np.shape(X)) and np.shape(X)[0] < 2:
        raise ShapeError(f"PILQR needs at least 2 samples, got {np.shape(X)[0]}")
    known = explain(dynamics, cost, previous, X, U, costs)
    step = dual.minimise_per_step(
        dynamics, cost, x0, previous, kl_max, config.dual, eta, std_floor=std_floor
    )
    asked, states, values = step.controller, numbers(X, "X"), numbers(costs, "costs")
    moved = asked.mean_action(states) + np.einsum("tij,ntj->nti", asked.chol, known.noise)
    full = pi2.update(asked, states, moved, values, config.pi2)
    temperature, rest = full.temperature, known.residual
    wrong = ~(known.share <= _WRONG)
    if wrong.any():
        # The residual of a model that explodes is far above the costs: at their temperature one
        # sample would get all the weight, and with it the covariance would vanish.
        own = pi2.update(asked, states, moved, rest, config.pi2).temperature
        temperature = np.where(wrong, np.maximum(temperature, own), temperature)
    done = pi2.update(asked, states, moved, rest, config.pi2, temperature=temperature)
    return PILQRResult(
        controller=kl.raised(done.controller, std_floor), lqr=step, pi2=done, explained=known
    )


def adjust_steps(
    mult: float | Array,
    share: npt.ArrayLike,
    low: float | Array,
    high: float | Array,
    config: PILQRConfig | None = None,
) -> Array:
    """The multiplier of every step's KL bound, (T,), by how well the model explained the costs.

    share (T,): of `Explained`. Above `config.decrease` the multiplier is halved, below
    `config.increase` doubled, else kept; then clipped to [low, high], scalars or (T,). A share that
    is not a number halves. Raises ConfigError, ShapeError.
    Source: Chebotar et al. 2017, section 4.3.
    """
    config = _checks.config(PILQRConfig, config)
    shares = numbers(share, "share")
    if shares.ndim != 1:
        raise ShapeError(f"share must have shape (T,), got {shares.shape}")
    old, least, most = (
        per_step(name, value, len(shares))
        for name, value in (("mult", mult), ("low", low), ("high", high))
    )
    if (least > most).any():
        raise ConfigError(f"adjust_steps needs 0 < low <= high, got {low} and {high}")
    factor = np.where(shares < config.increase, 2.0, 1.0)
    factor[~(shares <= config.decrease)] = 0.5  # NaN too
    return np.clip(old * factor, least, most)


def _share(costs: Array, residual: Array) -> Array:
    """Residual share of the cost-to-go, over all samples."""
    togo = np.abs(costs).sum(axis=0)[::-1].cumsum()[::-1]
    rest = np.abs(residual).sum(axis=0)[::-1].cumsum()[::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = rest / togo
    return np.where((togo == 0) & (rest == 0), 0.0, share)


def _samples(**arrays: tuple[Array, tuple[int, ...]]) -> None:
    """Check shapes and numbers of arrays whose first axis is the sample."""
    for name, (array, want) in arrays.items():
        if array.shape != want:
            raise ShapeError(f"{name} must have shape {want}, got {array.shape}")
        if not np.isfinite(array).all():
            i, *t = np.argwhere(~np.isfinite(array))[0]
            at = f" at t={t[0]}" if array.ndim > 1 and name != "x0" else ""
            raise NonFiniteError(f"{name} is not finite in sample {i}{at}")
