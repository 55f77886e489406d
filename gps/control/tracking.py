"""Following a reference, estimating the state, and both together in a closed loop.

`track` makes the LQR controller that follows a reference on given linear dynamics, `track_model` on
a model that is linearised along the reference. `kalman_filter` and `smooth` estimate states from
measurements y[t] ~ N(H x + h, V), and `simulate` runs a controller that sees such measurements, or
the state itself::

    from gps.control import tracking
    sensor = tracking.LinearSensor.constant(T, H, V)
    found = tracking.track(dynamics, X_ref, U_ref, Q, R)
    runs = tracking.simulate(dynamics, found.controller, x0, sensor, N=100, rng=rng)
    estimated = tracking.kalman_filter(dynamics, sensor, runs.Y, runs.U, x0)
    smoothed = tracking.smooth(dynamics, estimated)

Letters beside those of `gps.types`: H, h, V of a sensor with no outputs, and Y (N, T, no) measured.
States, actions and measurements are in whatever units the caller uses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt

from gps.control import _checks, lqr
from gps.control import _tracking_kernels as kernels
from gps.control._kernels import NOT_POSITIVE_DEFINITE, OK
from gps.control.models import Model, require_model
from gps.errors import ConfigError, NonFiniteError, NotPositiveDefiniteError, ShapeError
from gps.fields import Count, Shape, checked, numbers, readonly
from gps.linalg import smallest_eigenvalue
from gps.types import (
    Array,
    Gaussian,
    LinearDynamics,
    LinearGaussianController,
    QuadraticCost,
    Record,
)

__all__ = [
    "FilterResult",
    "LinearSensor",
    "Simulation",
    "SimulationNoise",
    "SmootherResult",
    "TrackingResult",
    "kalman_filter",
    "reference_cost",
    "simulate",
    "smooth",
    "track",
    "track_model",
]


@dataclass(frozen=True, eq=False)
class TrackingResult(Record):
    """What `track` and `track_model` found."""

    controller: LinearGaussianController
    """Of absolute states, as everywhere."""
    cost: QuadraticCost
    """Of being away from the reference, about z = 0."""
    dynamics: LinearDynamics
    """Given, or the linearisation along the reference."""
    X_ref: Annotated[Array, Shape("T nx")]
    U_ref: Annotated[Array, Shape("T nu")]
    defects: Annotated[Array, Shape("T-1 nx")]
    """Where the dynamics lead from the reference, less the reference."""


@dataclass(frozen=True, eq=False)
class LinearSensor(Record):
    """y[t] ~ N(H[t] x[t] + h[t], V[t]) for t = 0 .. T-1."""

    H: Annotated[Array, Shape("T no nx")]
    h: Annotated[Array, Shape("T no")]
    V: Annotated[Array, Shape("T no no")]
    """Symmetric positive semi-definite."""

    @classmethod
    def constant(
        cls, T: int, H: npt.ArrayLike, V: npt.ArrayLike, h: npt.ArrayLike | None = None
    ) -> Self:
        """The same sensor at T steps: H (no, nx), V (no, no), h (no,), by default 0."""
        T = checked(T, Count, "a sensor's T")
        one = numbers(H, "H")
        if one.ndim != 2:
            raise ShapeError(f"H must have shape (no, nx), got {one.shape}")
        no = one.shape[0]
        both = {"h": np.zeros(no) if h is None else numbers(h, "h"), "V": numbers(V, "V")}
        for name, want in (("h", (no,)), ("V", (no, no))):
            if both[name].shape != want:
                raise ShapeError(f"{name} must have shape {want}, got {both[name].shape}")
        return cls(*(np.repeat(a[None], T, axis=0) for a in (one, both["h"], both["V"])))

    @property
    def T(self) -> int:
        """Number of steps."""
        return self.H.shape[0]

    @property
    def no(self) -> int:
        """Number of measured values."""
        return self.H.shape[1]

    @property
    def nx(self) -> int:
        """State size."""
        return self.H.shape[2]


@dataclass(frozen=True, eq=False)
class FilterResult(Record):
    """What `kalman_filter` found. Covariances and gains do not depend on what was measured."""

    mean: Annotated[Array, Shape("N T nx")]
    """E[x[t] | y[0 .. t]]."""
    cov: Annotated[Array, Shape("T nx nx")]
    """Cov[x[t] | y[0 .. t]]."""
    pred_mean: Annotated[Array, Shape("N T nx")]
    """E[x[t] | y[0 .. t-1]]."""
    pred_cov: Annotated[Array, Shape("T nx nx")]
    """Cov[x[t] | y[0 .. t-1]]."""
    gain: Annotated[Array, Shape("T nx no")]
    """mean = pred_mean + gain (y - H pred_mean - h)."""
    log_likelihood: Annotated[Array, Shape("N T")]
    """Nats: log p(y[t] | y[0 .. t-1]); its sum is that of the sample."""


@dataclass(frozen=True, eq=False)
class SmootherResult(Record):
    """What `smooth` found: states given all measurements."""

    mean: Annotated[Array, Shape("N T nx")]
    """E[x[t] | y[0 .. T-1]]."""
    cov: Annotated[Array, Shape("T nx nx")]
    """Cov[x[t] | y[0 .. T-1]]."""
    cross: Annotated[Array, Shape("T-1 nx nx")]
    """Cov[x[t], x[t+1] | y[0 .. T-1]]."""


@dataclass(frozen=True, eq=False)
class SimulationNoise(Record):
    """Independent unit-variance numbers for N samples; `simulate` gives them their covariances."""

    start: Annotated[Array, Shape("N nx")]
    process: Annotated[Array, Shape("N T-1 nx")]
    sensor: Annotated[Array, Shape("N T no")]
    action: Annotated[Array, Shape("N T nu")]
    """Zeros: the controller's mean action is taken."""

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        N: int,
        T: int,
        nx: int,
        nu: int,
        no: int = 0,
        *,
        explore: bool = False,
    ) -> Self:
        """Normal numbers; without `explore`, none for the actions.

        Raises ConfigError for what is no generator of numpy's.
        """
        if not isinstance(rng, np.random.Generator | np.random.RandomState):
            raise ConfigError(
                f"rng must be a numpy.random.Generator, got {rng!r}: np.random.default_rng(seed) "
                "makes one"
            )
        N = checked(N, Count, "N")
        start, process = rng.normal(size=(N, nx)), rng.normal(size=(N, T - 1, nx))
        sensor = rng.normal(size=(N, T, no))
        action = rng.normal(size=(N, T, nu)) if explore else np.zeros((N, T, nu))
        return cls(start, process, sensor, action)


@dataclass(frozen=True, eq=False)
class Simulation(Record):
    """N samples of a closed loop."""

    X: Annotated[Array, Shape("N T nx")]
    """True states."""
    U: Annotated[Array, Shape("N T nu")]
    """Actions."""
    Y: Annotated[Array, Shape("N T no")]
    """Measurements."""
    estimates: Annotated[Array, Shape("N T nx")]
    """E[x[t] | y[0 .. t]]."""
    cov: Annotated[Array, Shape("T nx nx")]
    """Of x - estimate, the same for every sample."""


# --- tracking


def reference_cost(
    X_ref: npt.ArrayLike,
    U_ref: npt.ArrayLike,
    Q: npt.ArrayLike,
    R: npt.ArrayLike,
    Q_final: npt.ArrayLike | None = None,
) -> QuadraticCost:
    """1/2 (x - X_ref)'Q(x - X_ref) + 1/2 (u - U_ref)'R(u - U_ref), written about z = 0.

    X_ref (T, nx), U_ref (T, nu); Q (nx, nx) or (T, nx, nx), symmetric positive semi-definite; R
    (nu, nu) or (T, nu, nu), symmetric positive definite. Q_final (nx, nx) takes the place of Q at
    the last step. With C = diag(Q, R) and r = [X_ref; U_ref], the gradient is c = -C r and the
    constant c0 = 1/2 r'C r.

    Raises ShapeError, NonFiniteError and NotPositiveDefiniteError, with the name and the step.
    """
    X, U = _reference(X_ref, U_ref)
    T, nx, nu = len(X), X.shape[1], U.shape[1]
    Qs, Rs = np.array(_weights("Q", Q, T, nx)), _weights("R", R, T, nu)
    if Q_final is not None:
        if np.shape(Q_final) != (nx, nx):
            raise ShapeError(f"Q_final must have shape {(nx, nx)}, got {np.shape(Q_final)}")
        Qs[-1] = _weights("Q_final", Q_final, 1, nx)[0]
    for t in range(T):
        # singular but for rounding counts as singular, on a unit diagonal, so that no unit matters
        size = np.sqrt(np.maximum(Rs[t].diagonal(), 0.0))
        low = smallest_eigenvalue(Rs[t])
        if not (size.all() and smallest_eigenvalue(Rs[t] / size / size[:, None]) > 1e-14):
            raise NotPositiveDefiniteError(
                "R", t=t, smallest=low, hint="every action needs a cost above 0"
            )
    C = np.zeros((T, nx + nu, nx + nu))
    C[:, :nx, :nx], C[:, nx:, nx:] = Qs, Rs
    r = np.concatenate((X, U), axis=1)
    with np.errstate(all="ignore"):
        c = -np.einsum("tij,tj->ti", C, r)
        c0 = -0.5 * np.einsum("ti,ti->t", c, r)
    for name, array in (("c", c), ("c0", c0)):
        _checks.finite(f"the reference cost's {name}", array)
    return QuadraticCost(C, c, c0)


def track(
    dynamics: LinearDynamics,
    X_ref: npt.ArrayLike,
    U_ref: npt.ArrayLike,
    Q: npt.ArrayLike,
    R: npt.ArrayLike,
    Q_final: npt.ArrayLike | None = None,
    temperature: float | Array = 1.0,
) -> TrackingResult:
    """The controller that follows a reference best on linear dynamics.

    It minimises E of the sum over t of `reference_cost` under x[t+1] = F z + f: u = K x + k with
    the gains of LQR, and offsets k that look ahead on the whole reference. The reference need not
    be a trajectory of the dynamics; the controller then gives up as little as the weights allow.
    temperature: of the exploration, Sigma = temperature Q_uu^-1; `controller.mean_action` and
    `simulate` by default leave it out.

    Raises what `reference_cost` and `lqr.backward` raise.
    """
    X, U = _reference(X_ref, U_ref)
    _checks.kinds(dynamics=dynamics)
    _checks.dynamics(dynamics)
    T, nx, nu = dynamics.T, dynamics.nx, dynamics.nu
    for name, array, want in (("X_ref", X, (T, nx)), ("U_ref", U, (T, nu))):
        if array.shape != want:
            raise ShapeError(f"{name} must have shape {want}, as the dynamics, got {array.shape}")
    cost = reference_cost(X, U, Q, R, Q_final)
    z = np.concatenate((X, U), axis=1)[:-1]
    with np.errstate(all="ignore"):
        defects = np.einsum("tij,tj->ti", dynamics.F, z) + dynamics.f - X[1:]
    _checks.finite("the defect of the reference", defects)
    return TrackingResult(
        controller=lqr.backward(dynamics, cost, temperature),
        cost=cost,
        dynamics=dynamics,
        X_ref=X,
        U_ref=U,
        defects=defects,
    )


def track_model(
    model: Model,
    X_ref: npt.ArrayLike,
    U_ref: npt.ArrayLike,
    Q: npt.ArrayLike,
    R: npt.ArrayLike,
    Q_final: npt.ArrayLike | None = None,
    W: npt.ArrayLike | None = None,
    temperature: float | Array = 1.0,
    step: Callable[[Array, Array, int], npt.ArrayLike] | None = None,
) -> TrackingResult:
    """`track` on a model of `gps.control.models`, linearised along the reference.

    With x' the model's next state from [X_ref; U_ref] and F its Jacobian there::

        x[t+1] = F z + f        f = x'[t] - F [X_ref[t]; U_ref[t]]

    so that an infeasible reference (x'[t] other than X_ref[t+1], a defect) is linearised about the
    points it consists of, and its defects are in the affine term. W: process noise, (nx, nx) or
    (T-1, nx, nx), by default 0. step(x (nx,), u (nu,), t): the model's next state, needed only when
    its dynamics depend on t, since the models start their rollouts at t = 0.

    Raises what `track` raises, NonFiniteError where the model becomes non-finite, and ConfigError
    when it depends on t and `step` is missing.
    """
    require_model(model)
    X, U = _reference(X_ref, U_ref)
    T, nx, nu = len(X), model.nx, model.nu
    for name, array, want in (("X_ref", X, (T, nx)), ("U_ref", U, (T, nu))):
        if array.shape != want:
            raise ShapeError(f"{name} must have shape {want}, as the model, got {array.shape}")
    if step is None:
        _autonomous(model, X, U)
        ahead = _one_step(model, X, U)
    else:
        ahead = np.empty((T - 1, nx))
        for t in range(T - 1):
            x = numbers(step(X[t], U[t], t), f"step at t={t}")
            if x.shape != (nx,):
                raise ShapeError(f"step must return shape {(nx,)}, got {x.shape} at t={t}")
            ahead[t] = x
    _checks.finite("the model's next state along the reference", ahead)
    F = np.asarray(model.jacobians(X, U), dtype=np.float64)
    if F.shape != (T - 1, nx, nx + nu):
        raise ShapeError(f"the model's Jacobians must be {(T - 1, nx, nx + nu)}, got {F.shape}")
    _checks.finite("the model's Jacobian along the reference", F)
    noise = np.zeros((nx, nx)) if W is None else numbers(W, "W")
    if noise.shape not in ((nx, nx), (T - 1, nx, nx)):
        raise ShapeError(f"W must be {(nx, nx)} or {(T - 1, nx, nx)}, got {noise.shape}")
    z = np.concatenate((X, U), axis=1)[:-1]
    with np.errstate(all="ignore"):
        f = ahead - np.einsum("tij,tj->ti", F, z)
    dynamics = LinearDynamics(F, f, np.broadcast_to(noise, (T - 1, nx, nx)))
    _semi_definite("W", _checks.noise(dynamics))
    return track(dynamics, X, U, Q, R, Q_final, temperature)


def _one_step(model: Model, X: Array, U: Array) -> Array:
    """The model's next state from each of the points, (T-1, nx)."""
    (T, nx), nu = X.shape, U.shape[1]
    k, K, limit = np.zeros((2, nu)), np.zeros((2, nu, nx)), np.full((2, nu), np.inf)
    out = np.empty((T - 1, nx))
    for t in range(T - 1):
        out[t] = model.rollout(X[t : t + 2], U[t : t + 2], k, K, np.zeros(1), -limit, limit)[0][
            0, 1
        ]
    return out


def _autonomous(model: Model, X: Array, U: Array) -> None:
    """ConfigError when steps taken on their own differ from those of one long rollout."""
    (T, nx), nu = X.shape, U.shape[1]
    k, K, limit = np.zeros((T, nu)), np.zeros((T, nu, nx)), np.full((T, nu), np.inf)
    states = model.rollout(X, U, k, K, np.zeros(1), -limit, limit)[0][0]
    finite = np.isfinite(states).all(axis=1)
    n = T if finite.all() else int((~finite).argmax())
    if n < 2:
        return
    alone, along = _one_step(model, states[:n], U[:n]), states[1:n]
    with np.errstate(all="ignore"):
        size = np.abs(along).max(axis=0)  # of each entry; what is 0 but for rounding has none
        off = np.abs(alone - along) > 1e-9 * size + 1e-14 * size.max(initial=0.0)
    if off.any():
        t = int(off.any(axis=1).argmax())
        raise ConfigError(
            f"the model's step at t={t} differs from its step at t=0 from the same state: its "
            "dynamics depend on t (or are not deterministic); pass step(x, u, t) to track_model"
        )


# --- estimation


def kalman_filter(
    dynamics: LinearDynamics,
    sensor: LinearSensor,
    Y: npt.ArrayLike,
    U: npt.ArrayLike,
    x0: Gaussian | npt.ArrayLike,
) -> FilterResult:
    """Gaussian state estimates from measurements up to each step, for known actions.

    For t = 0 .. T-1, from P = x0.cov, m = x0.mean before the first measurement::

        S = H P H' + V      gain = P H' S^-1      m <- m + gain (y - H m - h)
        P <- (I - gain H) P (I - gain H)' + gain V gain'
        m <- F [m; u] + f   P <- A P A' + W

    x0: distribution of x[0], or the state (nx,) itself. Y: (N, T, no) or (T, no). U: (N, T, nu) or
    (T, nu), of which the last action is not read. V and W may be singular as long as every
    measurement says something new. Results have the axis of samples, N = 1 for a single one.
    Covariances are positive semi-definite up to rounding relative to the covariance before the
    measurement.

    Raises NotPositiveDefiniteError with the step where an innovation covariance S is singular to
    rounding (an exact measurement made twice) or an input covariance is indefinite; ShapeError and
    NonFiniteError, also for overflow, with the step.
    Source: R. E. Kalman, A new approach to linear filtering and prediction problems, 1960, with the
    covariance update of P. D. Joseph.
    """
    W, V, x0_mean, S0 = _estimation(dynamics, sensor, x0)
    T, nx, nu, no = dynamics.T, dynamics.nx, dynamics.nu, sensor.no
    measured, actions = _samples("Y", Y, (T, no)), _samples("U", U, (T, nu))
    N = len(measured)
    if actions.shape[0] != N:
        raise ShapeError(f"Y has {N} samples, U has {len(actions)}")
    pred_cov, cov, gain, chol = _gains(dynamics, sensor, W, V, S0)
    pred_mean, mean = np.empty((N, T, nx)), np.empty((N, T, nx))
    log_likelihood = np.empty((N, T))
    status, t = kernels.filter_means(
        dynamics.F, dynamics.f, sensor.H, sensor.h, gain, chol, x0_mean, actions, measured,
        pred_mean, mean, log_likelihood,
    )  # fmt: skip
    if status != OK:
        raise NonFiniteError(f"the state estimate overflows at t={t}; check the scales")
    return FilterResult(mean, cov, pred_mean, pred_cov, gain, log_likelihood)


def smooth(dynamics: LinearDynamics, filtered: FilterResult) -> SmootherResult:
    """State estimates from all measurements, backward from those of `kalman_filter`.

    With m, P of the filter, m-, P- its predictions and P-^ a generalised inverse::

        G = P[t] A' P-[t+1]^                mean[t] = m[t] + G (mean[t+1] - m-[t+1])
        cov[t] = (I - G A) P (I - G A)' + G (W + cov[t+1]) G'

    which is P + G (cov[t+1] - P-[t+1]) G' in a form that stays positive semi-definite, and holds
    for singular W. Raises ShapeError, NonFiniteError and NotPositiveDefiniteError with the step.
    Source: H. E. Rauch, F. Tung, C. T. Striebel, Maximum likelihood estimates of linear dynamic
    systems, 1965.
    """
    _checks.kinds(dynamics=dynamics)
    _checks.require("filtered", filtered, FilterResult, "kalman_filter gives it")
    _checks.dynamics(dynamics)
    W = _semi_definite("dynamics.W", _checks.noise(dynamics))
    N, T, nx = filtered.mean.shape
    if (T, nx) != (dynamics.T, dynamics.nx):
        raise ShapeError(
            f"filtered has {T} steps of {nx} states, dynamics {dynamics.T} of {dynamics.nx}"
        )
    for name in ("mean", "pred_mean"):
        _checks.finite(f"filtered.{name}", getattr(filtered, name).swapaxes(0, 1).copy())
    for name in ("cov", "pred_cov"):
        array = getattr(filtered, name)
        _checks.finite(f"filtered.{name}", array)
        _semi_definite(f"filtered.{name}", _checks.symmetric(f"filtered.{name}", array))
    mean, cov = np.empty((N, T, nx)), np.empty((T, nx, nx))
    cross = np.empty((T - 1, nx, nx))
    status, t = kernels.smooth(
        dynamics.F, W, filtered.pred_mean, filtered.pred_cov, filtered.mean, filtered.cov,
        mean, cov, cross,
    )  # fmt: skip
    if status == NOT_POSITIVE_DEFINITE:
        raise NotPositiveDefiniteError(
            "filtered.pred_cov", t=t, hint="use the dynamics that the filter was given"
        )
    if status != OK:
        raise NonFiniteError(f"the smoothed estimate overflows at t={t}; check the scales")
    return SmootherResult(mean, cov, cross)


# --- the closed loop


def simulate(
    dynamics: LinearDynamics,
    controller: LinearGaussianController,
    x0: Gaussian | npt.ArrayLike,
    sensor: LinearSensor | None = None,
    *,
    feedback: Literal["estimate", "state"] = "estimate",
    N: int = 1,
    rng: np.random.Generator | None = None,
    noise: SimulationNoise | None = None,
    explore: bool = False,
) -> Simulation:
    """N samples of x[t+1] ~ N(F z + f, W) in closed loop with a controller.

    x0: distribution of x[0], or the state (nx,) itself.

    With a sensor, y[t] ~ N(H x + h, V) is measured, a Kalman filter that knows the actions gives
    the estimate, and the action is u[t] = K (estimate or state, as `feedback` says) + k. Without
    one the controller sees the state. The noise is drawn from `rng`, N samples, in the order start,
    process, sensor, actions; or given as unit-variance arrays in `noise`, whose actions' part is
    multiplied by the controller's `chol`. explore: draw that part too, else it is 0.

    Raises ConfigError (neither or both of rng and noise, or no generator), ShapeError,
    NonFiniteError (also where the loop overflows, with the step) and NotPositiveDefiniteError as
    `kalman_filter`.
    """
    _checks.kinds(dynamics=dynamics, controller=controller)
    T, nx, nu = dynamics.T, dynamics.nx, dynamics.nu
    if feedback not in ("estimate", "state"):
        raise ConfigError(f"feedback must be 'estimate' or 'state', got {feedback!r}")
    if (rng is None) == (noise is None):
        raise ConfigError("simulate needs either rng or noise, and not both")
    by_estimate = feedback == "estimate" and sensor is not None
    if sensor is None:
        sensor = LinearSensor(np.zeros((T, 0, nx)), np.zeros((T, 0)), np.zeros((T, 0, 0)))
    W, V, x0_mean, S0 = _estimation(dynamics, sensor, x0)
    _checks.controller("controller", controller, T, nu, nx, noiseless=True)
    no = sensor.no
    if noise is None:
        assert rng is not None
        noise = SimulationNoise.draw(rng, N, T, nx, nu, no, explore=explore)
    _checks.require("noise", noise, SimulationNoise, "SimulationNoise.draw gives it")
    samples = noise.start.shape[0]
    wants = {"start": (nx,), "process": (T - 1, nx), "sensor": (T, no), "action": (T, nu)}
    for name, want in wants.items():
        array = getattr(noise, name)
        if array.shape != (samples, *want) or samples < 1:
            raise ShapeError(f"noise.{name} must have shape (N, *{want}), got {array.shape}")
        _checks.finite(f"noise.{name}", array)
    root_W, root_V, root_0 = np.empty(W.shape), np.empty(V.shape), np.empty((1, nx, nx))
    for matrices, root in ((W, root_W), (V, root_V), (S0[None], root_0)):
        kernels.roots(matrices, root)
    _, cov, gain, _ = _gains(dynamics, sensor, W, V, S0)
    X, U = np.empty((samples, T, nx)), np.empty((samples, T, nu))
    Y, estimates = np.empty((samples, T, no)), np.empty((samples, T, nx))
    status, t = kernels.simulate(
        dynamics.F, dynamics.f, root_W, sensor.H, sensor.h, root_V, x0_mean, root_0[0],
        controller.K, controller.k, controller.chol, gain, by_estimate,
        noise.start, noise.process, noise.sensor, noise.action, X, U, Y, estimates,
    )  # fmt: skip
    if status != OK:
        raise NonFiniteError(f"the simulation overflows at t={t}; the closed loop is unstable")
    for array in (X, U, Y, estimates):
        array.setflags(write=False)
    return Simulation(X, U, Y, estimates, cov)


# --- checks


def _reference(X_ref: npt.ArrayLike, U_ref: npt.ArrayLike) -> tuple[Array, Array]:
    """A finite reference of T states and T actions."""
    X, U = numbers(X_ref, "X_ref"), numbers(U_ref, "U_ref")
    if X.ndim != 2 or U.ndim != 2 or len(X) != len(U) or 0 in X.shape or 0 in U.shape:
        raise ShapeError(
            f"X_ref and U_ref must have shapes (T, nx) and (T, nu), got {X.shape} and {U.shape}"
        )
    _checks.finite("X_ref", X)
    _checks.finite("U_ref", U)
    return X, U


def _weights(name: str, value: npt.ArrayLike, T: int, n: int) -> Array:
    """Weights (T, n, n) from one matrix or one for each step, positive semi-definite."""
    array = numbers(value, name)
    if array.shape not in ((n, n), (T, n, n)):
        raise ShapeError(f"{name} must have shape {(n, n)} or {(T, n, n)}, got {array.shape}")
    array = readonly(np.broadcast_to(array, (T, n, n)))
    _checks.finite(name, array)
    return _semi_definite(name, _checks.symmetric(name, array))


def _semi_definite(name: str, matrices: Array) -> Array:
    """Stacked symmetric matrices, refused when one has a negative eigenvalue beyond rounding."""
    t = kernels.roots(matrices, np.empty(matrices.shape))
    if t >= 0:
        raise NotPositiveDefiniteError(
            name,
            t=int(t),
            smallest=smallest_eigenvalue(matrices[t]),
            hint="it must have no negative eigenvalue",
        )
    return matrices


def _estimation(
    dynamics: LinearDynamics, sensor: LinearSensor, x0: Gaussian | npt.ArrayLike
) -> tuple[Array, Array, Array, Array]:
    """W, V, and mean and covariance of the start, checked and symmetric."""
    _checks.kinds(dynamics=dynamics)
    _checks.require("sensor", sensor, LinearSensor, "LinearSensor.constant(T, H, V) makes one")
    _checks.dynamics(dynamics)
    W = _semi_definite("dynamics.W", _checks.noise(dynamics))
    want = (dynamics.T, sensor.no, dynamics.nx)
    if sensor.H.shape != want:
        raise ShapeError(f"sensor.H must have shape {want} (T, no, nx), got {sensor.H.shape}")
    for name in ("H", "h", "V"):
        _checks.finite(f"sensor.{name}", getattr(sensor, name))
    V = sensor.V
    if sensor.no:
        V = _semi_definite("sensor.V", _checks.symmetric("sensor.V", sensor.V))
    x0_mean, x0_cov = _checks.start(x0, dynamics.nx)
    return W, V, x0_mean, _semi_definite("x0.cov", x0_cov[None])[0]


def _gains(
    dynamics: LinearDynamics, sensor: LinearSensor, W: Array, V: Array, S0: Array
) -> tuple[Array, Array, Array, Array]:
    """Covariances before and after each measurement, gains, factors of the innovations."""
    (T, no, nx), S = sensor.H.shape, np.empty((sensor.no, sensor.no))
    pred_cov, cov = np.empty((T, nx, nx)), np.empty((T, nx, nx))
    gain, chol = np.empty((T, nx, no)), np.zeros((T, no, no))
    status, t = kernels.filter_covariances(
        dynamics.F, W, sensor.H, V, S0, pred_cov, cov, gain, chol, S
    )
    if status == NOT_POSITIVE_DEFINITE:
        raise NotPositiveDefiniteError(
            "the covariance of the innovation",
            t=t,
            smallest=smallest_eigenvalue(S),
            hint="the covariance of the state has grown out of all proportion: the dynamics may be "
            "unstable or badly scaled"
            if np.abs(S).max() / 1e12 > max(np.abs(a).max(initial=0.0) for a in (V, W, S0))
            else "a measurement without noise says again what is known exactly; add noise to V or "
            "W, or leave that measurement out",
        )
    if status != OK:
        raise NonFiniteError(f"the covariance of the state overflows at t={t}; check the scales")
    for array in (pred_cov, cov, gain, chol):
        array.setflags(write=False)
    return pred_cov, cov, gain, chol


def _samples(name: str, value: npt.ArrayLike, shape: tuple[int, int]) -> Array:
    """Finite samples (N, T, n) from those or a single one (T, n)."""
    array = numbers(value, name)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[1:] != shape or len(array) < 1:
        raise ShapeError(f"{name} must have shape (N, {shape[0]}, {shape[1]}), got {array.shape}")
    if not np.isfinite(array).all():
        n, t = map(int, np.argwhere(~np.isfinite(array).all(axis=2))[0])
        raise NonFiniteError(f"{name} is not finite in sample {n} at t={t}")
    return array
