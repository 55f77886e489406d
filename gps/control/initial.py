"""Controllers to start from, before anything is known of the dynamics."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import numpy.typing as npt

from gps.control import _checks, lqr
from gps.errors import ConfigError, NonFiniteError, ShapeError, SimulationError, choices
from gps.fields import (
    Config,
    Count,
    Finite,
    Items,
    NonNegative,
    Positive,
    Range,
    Whole,
    checked,
    numbers,
)
from gps.protocols import Predict
from gps.rng import stream
from gps.types import (
    Array,
    Layout,
    LinearDynamics,
    LinearGaussianController,
    Linearisation,
    QuadraticCost,
    optional,
)

__all__ = [
    "HoldConfig",
    "OpenLoopConfig",
    "PDConfig",
    "hold_linearised",
    "hold_position",
    "open_loop",
    "pd",
]

Index = npt.NDArray[np.signedinteger]


@dataclass(frozen=True, kw_only=True)
class HoldConfig(Config):
    """An LQR that holds the start position.

    For an agent that knows its model (`gps.protocols.Linearises`) everything follows from that:
    `hold_linearised`, with the action that gravity and springs ask for, gains for what the
    actuators do to the joints, and noise in proportion to it. Where the agent does not, and where
    `gains`, `acceleration`, `joints` or the names of other entries say what to assume,
    `hold_position`: every action accelerates one joint.
    """

    model: bool | None = optional()
    """Whether the agent's own model is used: True needs one, False assumes joints that integrate
    acceleration. None takes the model of an agent that has one, unless `gains`, `acceleration`,
    `joints`, `position` or `velocity` are given."""

    variance: Positive | None = None
    """Scale of the exploration: the action variance where stiffness is negligible, in squared
    action units. None: 1, or with the model for each action what makes the positions deviate by a
    tenth of what `Linearisation.x_scale` calls large."""

    stiffness: NonNegative | None = None
    """Cost weight of squared position errors relative to squared actions, in their units. None: 1,
    or with the model weights in comparable units, see `hold_linearised`."""

    stiffness_vel: NonNegative | None = None
    """Cost weight of squared velocities, as a multiple of that of positions. None: 0.5, or with the
    model the square of `Linearisation.response_time`."""

    final_weight: Positive | None = None
    """Factor on the state's cost of the last step; without the model on that of actions too. None:
    1, or with the model what makes the gains the same at all steps."""

    gains: tuple[Finite, ...] = ()
    """Acceleration per unit of each action, assumed for the joint that it drives; empty: all 1."""

    acceleration: tuple[Finite, ...] = ()
    """Constant acceleration of each driven joint, such as gravity's; empty: all 0."""

    joints: tuple[Whole, ...] = ()
    """Which position entry each action drives; empty: action i drives entry i."""

    position: str = "joint_pos"
    """Name of the state entry that holds the positions."""

    velocity: str = "joint_vel"
    """Name of the state entry that holds their velocities."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model and (self.gains or self.acceleration or self.joints):
            raise ConfigError(
                "HoldConfig.model must be False or None where gains, acceleration or joints say "
                f"what to assume instead, got {self.model}"
            )

    @property
    def wants_linearisation(self) -> bool | None:
        """See `gps.protocols.UsesLinearisation`."""
        said = self.gains or self.acceleration or self.joints
        names = (self.position, self.velocity) == ("joint_pos", "joint_vel")
        return False if self.model is None and (said or not names) else self.model

    @property
    def assumption(self) -> str:
        """See `gps.protocols.UsesLinearisation`."""
        return (
            f"assumed double integrator: each action accelerates one value of {self.position!r}, "
            f"by {'gains' if self.gains else '1'} per unit"
        )

    def linearised(
        self, linearisation: Linearisation, T: int, predict: Predict | None = None
    ) -> LinearGaussianController:
        """`hold_linearised` with this configuration."""
        return hold_linearised(linearisation, T, self, predict)

    def controller(
        self, x0: Array, layout: Layout, nu: int, T: int, dt: float
    ) -> LinearGaussianController:
        """`hold_position` at x0 with this configuration."""
        return hold_position(
            x0, layout, nu, T, dt, self, position=self.position, velocity=self.velocity
        )


@dataclass(frozen=True, kw_only=True)
class PDConfig(Config):
    """A proportional-derivative controller about the start state."""

    variance: Positive = 10.0
    """Action variance, in squared action units."""

    position_gain: Annotated[NonNegative | tuple[NonNegative, ...], Items(some=True)] = 10.0
    """Action per unit of position error: one number, or one for each action."""

    velocity_gain: Annotated[NonNegative | tuple[NonNegative, ...], Items(some=True)] = 0.01
    """Velocity gain as a multiple of `position_gain`: one number, or one for each action."""

    joints: tuple[Whole, ...] = ()
    """Which position entry each action drives; empty: action i drives entry i."""

    position: str = "joint_pos"
    """Name of the state entry that holds the positions."""

    velocity: str = "joint_vel"
    """Name of the state entry that holds their velocities."""

    def controller(
        self, x0: Array, layout: Layout, nu: int, T: int, dt: float
    ) -> LinearGaussianController:
        """`pd` about x0 with this configuration; dt is not used."""
        return pd(x0, layout, nu, T, self, position=self.position, velocity=self.velocity)


@dataclass(frozen=True, kw_only=True)
class OpenLoopConfig(Config):
    """Noise about constant actions, without feedback: for any agent, whatever its state holds."""

    variance: Positive | tuple[Positive, ...] = 1.0
    """Action variance, in squared action units: one for all actions or one each."""

    mean: tuple[Finite, ...] = ()
    """Mean of each action, in its unit; empty: all 0."""

    def controller(
        self, x0: Array, layout: Layout, nu: int, T: int, dt: float
    ) -> LinearGaussianController:
        """`open_loop` with this configuration; of x0 only the size is used, dt is not."""
        return open_loop(layout.size, nu, T, self)


def hold_position(
    x0: Array,
    layout: Layout,
    nu: int,
    T: int,
    dt: float,
    config: HoldConfig | None = None,
    *,
    position: str = "joint_pos",
    velocity: str = "joint_vel",
) -> LinearGaussianController:
    """The LQR controller that holds x0, under double-integrator joints.

    Model: vel[t+1] = vel + dt (gains u + acceleration), pos[t+1] = pos + dt vel
    + dt^2 (gains u + acceleration); other state entries become 0 and cost nothing. Cost of step t:
    (stiffness |pos - pos0|^2 + stiffness stiffness_vel |vel - vel0|^2 + |u|^2) / (2 variance),
    times final_weight at the last step.

    x0: (nx,), split by `layout`, whose entries `position` and `velocity` have equal length, at
    least nu. dt in seconds. Raises ShapeError, ConfigError, NonFiniteError.
    Source: as init_lqr of cbfinn/gps lin_gauss_init.py, which takes the first 2 nu state entries.
    """
    config = _checks.config(HoldConfig, config)
    x0, pos, vel = _joints(x0, layout, nu, T, position, velocity)
    dt = checked(dt, Annotated[float, Range(above=0, unit="s")], "dt")
    driven = _driven(config.joints, nu, len(pos))
    gains = _vector("HoldConfig.gains", config.gains, 1.0, nu)
    acceleration = _vector("HoldConfig.acceleration", config.acceleration, 0.0, nu)
    variance, stiffness, stiffness_vel, final_weight = (
        default if value is None else value
        for value, default in (
            (config.variance, 1.0),
            (config.stiffness, 1.0),
            (config.stiffness_vel, 0.5),
            (config.final_weight, 1.0),
        )
    )
    nx = len(x0)
    F, f = np.zeros((nx, nx + nu)), np.zeros(nx)
    F[pos, pos] = F[vel, vel] = 1.0
    F[pos, vel] = dt
    action = nx + np.arange(nu)
    with np.errstate(all="ignore"):  # lqr.backward names what overflows
        F[pos[driven], action], F[vel[driven], action] = dt * dt * gains, dt * gains
        f[pos[driven]], f[vel[driven]] = dt * dt * acceleration, dt * acceleration
        weights = np.zeros(nx + nu)
        weights[pos] = stiffness
        weights[vel] = stiffness * stiffness_vel
        weights[action] = 1.0
        C = np.tile(np.diag(weights / variance), (T, 1, 1))
        C[-1] *= final_weight
        target = np.concatenate([x0, np.zeros(nu)])
        c = -C @ target
    steps = T - 1
    model = LinearDynamics(
        np.tile(F, (steps, 1, 1)), np.tile(f, (steps, 1)), np.zeros((steps, nx, nx))
    )
    return lqr.backward(model, QuadraticCost(C, c, np.zeros(T)))


def hold_linearised(
    linearisation: Linearisation,
    T: int,
    config: HoldConfig | None = None,
    predict: Predict | None = None,
) -> LinearGaussianController:
    """The LQR controller that holds a state, for the dynamics near it: u = u* + K (x - x*) + noise.

    x*, u* and x' = F [x; u] + f are those of `linearisation`. K is the stationary gain for the cost
    sum_j (dx_j / x_scale_j)^2 + sum_i (du_i / r_i)^2 per step, with r_i = FIRMNESS u_scale_i, at
    most half of the action's range; where `linearisation` does not know u_scale_i, it is the change
    that, held for the response time, moves some entry by its x_scale. A state entry that the
    actions do not reach has no part in it. If no gain stabilises what they reach, future costs are
    discounted, by a power of (2/3)^2 per step. Entries without columns in F get no gains.

    The noise is independent for each action: its standard deviation is what makes the position
    that it moves most deviate, in the closed loop and over T steps, by EXPLORATION of its x_scale
    on average, at most half of u_range; all are lowered together where positions would deviate
    further by their sum. With `predict`, which rolls out the model itself, they are lowered as
    well where the noise takes a position that would be held without it further than MAX_DEVIATION
    of its x_scale, where the simulation fails, and where states deviate by 10 % more than the
    linear model says: light joints next to heavy ones soon leave the range in which the gains hold
    them.

    `config.stiffness`, and `stiffness_vel` with it, weigh squared positions and velocities, by the
    names of their entries, against squared actions instead, all in their own units;
    `stiffness_vel` alone weighs velocities against the positions' weights; `final_weight` makes
    the gains those of a horizon of T steps; `variance` is that of all actions. Raises ShapeError,
    ConfigError, NonFiniteError.
    Source: the scaling is Bryson's rule (A. E. Bryson, Y.-C. Ho, Applied Optimal Control, 1975).
    """
    config = _checks.config(HoldConfig, config)
    lin = linearisation
    _checks.require("linearisation", lin, Linearisation, "an agent's `linearise` gives one")
    T = checked(T, Count, "T")
    nx, nu = len(lin.x), len(lin.u)
    for name, value in {"x": lin.x, "u": lin.u, "F": lin.F, "f": lin.f}.items():
        if not np.isfinite(value).all():
            raise NonFiniteError(f"Linearisation.{name} is not finite; check the start state")
    A, B = lin.F[:, :nx], lin.F[:, nx:]
    weights = np.where(np.isfinite(lin.x_scale), lin.x_scale**-2.0, 0.0)
    names = lin.layout.names
    pos, vel = (
        np.arange(nx)[lin.layout.slice(n)] if n in names else None
        for n in (config.position, config.velocity)
    )
    u_scale = _action_scale(lin)
    R = u_scale**-2.0
    if config.stiffness is not None or config.stiffness_vel is not None:
        if pos is None or vel is None or len(pos) != len(vel):
            raise ShapeError(
                f"HoldConfig.stiffness needs {config.position!r} and {config.velocity!r} in the "
                f"state, which holds {', '.join(names)}"
            )
        share = 0.5 if config.stiffness_vel is None else config.stiffness_vel
        if config.stiffness is not None:
            weights, R = np.zeros(nx), np.ones(nu)
            weights[pos] = config.stiffness
        weights[vel] = share * weights[pos]
    # what the actions do not reach, and what nothing follows from, has no part in the problem
    scale = np.where(np.isfinite(lin.x_scale), lin.x_scale, 1.0)
    steps = max(2, round(2 * lin.response_time / lin.dt))
    reached = _reached(A, B * u_scale, lin.x_scale, steps) & (A.any(axis=0) | (weights > 0))
    weights[~reached] = 0.0
    s, r, K = scale[reached], R**-0.5, np.zeros((nu, nx))
    inner = A[np.ix_(reached, reached)] * s / s[:, None]
    K[:, reached] = _stationary_gain(inner, B[reached] * r / s[:, None], weights[reached] * s**2)
    K *= r[:, None] / scale
    gains = np.tile(K, (T, 1, 1))
    if config.final_weight is not None and T > 1:
        Q = np.diag(weights)
        gains = lqr.backward(
            LinearDynamics.from_matrices(A, B, T=T),
            QuadraticCost.from_matrices(Q, np.diag(R), final=config.final_weight * Q, T=T),
        ).K
    if config.variance is None:
        measured = np.zeros(nx, dtype=np.bool_)
        measured[slice(None) if pos is None else pos] = True
        std = _exploration(A + B @ K, B, u_scale, lin, measured & (weights > 0), T)
    else:
        std = np.full(nu, math.sqrt(config.variance))
    with np.errstate(all="ignore"):
        k = lin.u - gains @ lin.x
    if not (np.isfinite(gains).all() and np.isfinite(k).all()):
        raise NonFiniteError("the gains overflow; check the scales of the linearisation")
    found = LinearGaussianController(gains, k, np.tile(np.diag(std), (T, 1, 1)))
    if predict is not None and config.variance is None:
        weighed = weights > 0
        entries, positions = np.flatnonzero(weighed), np.flatnonzero(weighed & measured)
        found = _with_bearable_noise(found, lin, entries, positions, predict)
    return found


FIRMNESS = 4.0
"""Change of an action that costs as much as a large deviation, in units of its u_scale. Soft gains
lean on how the joints drive each other at the start pose, and fail a third of a radian off."""
EXPLORATION = 0.1
"""Standard deviation of positions under the noise of `hold_linearised`, as a share of x_scale."""
MAX_DEVIATION = 4.5 * EXPLORATION
"""Largest deviation of positions under the noise, in rollouts of the model, as a share of x_scale:
more standard deviations than a few samples have, if the model is what its linearisation says."""

_SAMPLES = 5  # rollouts of the model that tell
_LESS, _LOWERED = 0.5, 5  # factor on the noise, at most so often
_LINEAR, _EXCESS = 2, 1.1  # of them for the sake of deviations larger than the linear ones
_REACH = 1e-3  # response of an entry to all actions below which they do not reach it
_DOUBLINGS = 10  # of the horizon at most
_LARGEST = 1e3  # a stationary gain, in comparable units, above which nothing is stabilised
_DISCOUNTS = tuple((2 / 3) ** k for k in range(12))  # of the state's growth in a step


def _action_scale(lin: Linearisation) -> Array:
    """r_i of `hold_linearised`, (nu,)."""
    nx = len(lin.x)
    A, B = lin.F[:, :nx], lin.F[:, nx:]
    moved, largest = np.zeros_like(B), np.zeros(B.shape[1])
    with np.errstate(all="ignore"):
        for _ in range(max(1, round(lin.response_time / lin.dt))):
            moved = A @ moved + B
            largest = np.fmax(largest, np.abs(moved / lin.x_scale[:, None]).max(axis=0))
        scale = np.where(np.isfinite(lin.u_scale), lin.u_scale, 1.0 / largest)
        scale = np.fmin(lin.u_range, FIRMNESS * scale)
    # an action that moves nothing
    return np.where(np.isfinite(scale) & (scale > 0), scale, 1.0)


def _reached(A: Array, B: Array, scale: Array, steps: int) -> npt.NDArray[np.bool_]:
    """Which entries actions of unit size move noticeably, in units of their scale, (nx,); those
    without a scale by any amount."""
    moved, reach, measured = B, np.zeros(len(A)), np.isfinite(scale)
    with np.errstate(all="ignore"):
        for _ in range(steps):
            size = np.abs(moved).max(axis=1)
            reach = np.fmax(reach, np.where(measured, size / scale, size > 0))
            moved = A @ moved
            moved /= max(1.0, (np.abs(moved).max(axis=1) / scale).max())
    return reach > _REACH


def _stationary_gain(A: Array, B: Array, weights: Array) -> Array:
    """The limit of the Riccati recursion, (nu, nx), in comparable units, where R is the identity;
    discounted where there is none.

    By doubling: H is the value of 2^k steps after k of them. Where there is a limit,
    scipy.linalg.solve_discrete_are finds the same to rounding; it fails for entries that add up
    what others do and have no weight, as the place of a free base, and takes ten times as long.
    Source: E. K.-W. Chu, H.-Y. Fan, W.-W.
    Lin, C.-S. Wang, Structure-preserving algorithms for periodic discrete-time algebraic Riccati
    equations, International Journal of Control, 2004.
    """
    n, nu = B.shape
    for discount in _DISCOUNTS:
        a, b = discount * A, discount * B
        E, G, H = a, b @ b.T, np.diag(weights)
        K, change = np.zeros((nu, n)), math.inf
        with np.errstate(all="ignore"):
            for _ in range(_DOUBLINGS):
                W = np.eye(n) + G @ H
                try:
                    WE, WG = np.split(np.linalg.solve(W, np.concatenate((E, G), axis=1)), 2, axis=1)
                    G, H, E = G + E @ WG @ E.T, H + E.T @ H @ WE, E @ WE
                    G, H = 0.5 * (G + G.T), 0.5 * (H + H.T)
                    new = -np.linalg.solve(np.eye(nu) + b.T @ H @ b, b.T @ H @ a)
                except np.linalg.LinAlgError:
                    break
                change, K = float(np.abs(new - K).max(initial=0.0)), new
                if not change > 1e-10:
                    break
        if change < 1e-2 and np.abs(K).max(initial=0.0) < _LARGEST:
            return K
    return np.zeros((nu, n))


def _exploration(
    A: Array,
    B: Array,
    u_scale: Array,
    lin: Linearisation,
    measured: npt.NDArray[np.bool_],
    T: int,
) -> Array:
    """Standard deviations of the actions, (nu,), for a closed loop x' = A x + B noise."""
    most = np.fmin(0.5 * lin.u_range, u_scale)
    if not measured.any():
        return np.fmin(0.5 * lin.u_range, EXPLORATION * u_scale)
    # d x / d noise of the step k before; squares summed over k are the variances of unit noise
    response, variances = B, np.zeros((int(measured.sum()), B.shape[1]))
    with np.errstate(all="ignore"):
        for _ in range(max(1, T - 1)):
            variances += (response[measured] / lin.x_scale[measured, None]) ** 2
            response = A @ response
        std = np.fmin(most, EXPLORATION / np.sqrt(variances.max(axis=0)))
        std = np.where(std > 0, std, EXPLORATION * np.fmin(most, u_scale))
        total = math.sqrt(np.nan_to_num((variances * std**2).sum(axis=1).max(), posinf=1e300))
    return std * min(1.0, EXPLORATION / total) if total > 0 else std


def _with_bearable_noise(
    controller: LinearGaussianController,
    lin: Linearisation,
    entries: Index,
    positions: Index,
    predict: Predict,
) -> LinearGaussianController:
    """The controller with as much of its noise as the model bears; entries: those that have a part
    in the problem, positions: those of them that the noise was chosen by."""
    T, nu = controller.k.shape
    draws = stream(0, "trial of an initial controller").standard_normal((_SAMPLES, T, nu))
    try:
        still = predict(controller, np.zeros((1, T, nu)))
    except SimulationError:
        return controller
    off = np.abs((still - lin.x) / lin.x_scale)[:, :, positions]
    if not off.max(initial=0.0) <= 0.5 * MAX_DEVIATION:  # falls, with less noise too
        return controller
    promised = _deviations(_predicted(controller, lin, draws) - lin.x, lin, entries)
    bearable: LinearGaussianController | None = None
    for lowered in range(_LOWERED + 1):
        if lowered > _LINEAR and bearable is not None:
            break  # what less noise does not make linear is not due to the noise
        share = _LESS**lowered
        tried = replace(controller, chol=share * controller.chol)
        try:
            X = predict(tried, draws)
        except SimulationError:
            continue
        off = np.abs((X - lin.x) / lin.x_scale)[:, :, positions]
        if not off.max(initial=0.0) <= MAX_DEVIATION:
            continue
        if lowered > _LINEAR:
            return tried
        found, expected = _deviations(X - still, lin, entries), share * promised
        if not (found > _EXCESS * expected + 0.02 * expected.max(initial=0.0)).any():
            return tried
        bearable = bearable or tried
    return bearable or controller


def _predicted(controller: LinearGaussianController, lin: Linearisation, noise: Array) -> Array:
    """States (N, T, nx) under noise (N, T, nu), by the linearisation."""
    x = np.tile(lin.x, (len(noise), 1))
    states = [x]
    with np.errstate(all="ignore"):
        for t in range(len(controller.k) - 1):
            u = controller.act(x, x, t, noise[:, t])
            x = np.concatenate((x, u), axis=1) @ lin.F.T + lin.f
            states.append(x)
    return np.stack(states, axis=1)


def _deviations(off: Array, lin: Linearisation, entries: Index) -> Array:
    """Root mean squares over samples and steps, as a share of x_scale, (entries,)."""
    with np.errstate(all="ignore"):
        shares = off[:, :, entries] / lin.x_scale[entries]
        return np.asarray(np.sqrt((shares**2).mean(axis=(0, 1))))


def pd(
    x0: Array,
    layout: Layout,
    nu: int,
    T: int,
    config: PDConfig | None = None,
    *,
    position: str = "joint_pos",
    velocity: str = "joint_vel",
) -> LinearGaussianController:
    """u = -position_gain ((pos - pos0) + velocity_gain (vel - vel0)) + noise, for T steps, with one
    pair of gains for each action, or one for all.

    Arguments and errors as of `hold_position`; joints beyond the nu driven ones have no gain.
    Source: as init_pd of cbfinn/gps lin_gauss_init.py, whose case of more joints than actions
    fails.
    """
    config = _checks.config(PDConfig, config)
    x0, pos, vel = _joints(x0, layout, nu, T, position, velocity)
    driven, action = _driven(config.joints, nu, len(pos)), np.arange(nu)
    K = np.zeros((nu, len(x0)))
    gain, share = (
        _vector(f"PDConfig.{name}", value if isinstance(value, tuple) else (value,) * nu, 0.0, nu)
        for name, value in (
            ("position_gain", config.position_gain),
            ("velocity_gain", config.velocity_gain),
        )
    )
    with np.errstate(all="ignore"):
        K[action, pos[driven]], K[action, vel[driven]] = -gain, -gain * share
    with np.errstate(all="ignore"):
        k = -K @ x0
    if not (np.isfinite(K).all() and np.isfinite(k).all()):
        raise NonFiniteError("the gains times x0 overflow; check PDConfig's gains and x0")
    chol = math.sqrt(config.variance) * np.eye(nu)
    return LinearGaussianController(
        np.tile(K, (T, 1, 1)), np.tile(k, (T, 1)), np.tile(chol, (T, 1, 1))
    )


def open_loop(
    nx: int, nu: int, T: int, config: OpenLoopConfig | None = None
) -> LinearGaussianController:
    """u = mean + noise for T steps, the same at every state of nx values; independent noise.

    Raises ShapeError, ConfigError for a mean or variance that is not one value for each action.
    """
    config = _checks.config(OpenLoopConfig, config)
    sizes = {"nx": nx, "nu": nu, "T": T}
    if not all(isinstance(n, (int, np.integer)) and n >= 1 for n in sizes.values()):
        raise ShapeError(f"nx, nu and T must be at least 1, whole numbers, got {sizes}")
    variance = config.variance if isinstance(config.variance, tuple) else (config.variance,) * nu
    chol = np.diag(np.sqrt(_vector("OpenLoopConfig.variance", variance, 1.0, nu)))
    k = _vector("OpenLoopConfig.mean", config.mean, 0.0, nu)
    return LinearGaussianController(
        np.zeros((T, nu, nx)), np.tile(k, (T, 1)), np.tile(chol, (T, 1, 1))
    )


def _joints(
    x0: Array, layout: Layout, nu: int, T: int, position: str, velocity: str
) -> tuple[Array, Index, Index]:
    """x0 and the indices of positions and velocities, checked."""
    x0 = numbers(x0, "x0")
    if x0.shape != (layout.size,):
        raise ShapeError(f"x0 must have shape {(layout.size,)} as its layout, got {x0.shape}")
    if not np.isfinite(x0).all():
        i = int(np.flatnonzero(~np.isfinite(x0))[0])
        raise NonFiniteError(f"x0 holds {x0[i]} at entry {i}; check the start state")
    if not all(isinstance(n, (int, np.integer)) and n >= 1 for n in (nu, T)):
        raise ShapeError(f"nu and T must be at least 1, whole numbers, got nu={nu} and T={T}")
    for name in (position, velocity):
        if name not in layout.names:
            raise ShapeError(
                f"{choices('state entry', name, layout.names)}; name the entries of the joints by "
                "`position` and `velocity`, or take OpenLoopConfig, which needs none"
            )
    pos, vel = (np.arange(layout.size)[layout.slice(name)] for name in (position, velocity))
    if len(pos) != len(vel):
        raise ShapeError(
            f"{position!r} has {len(pos)} values and {velocity!r} {len(vel)}: they must pair up "
            "(joints with quaternions need a controller of their own)"
        )
    if len(pos) < nu:
        raise ShapeError(f"{position!r} has {len(pos)} values, too few for nu={nu} actions")
    return x0, pos, vel


def _driven(joints: tuple[int, ...], nu: int, n: int) -> Index:
    """Indices into the joints, one per action."""
    if not joints:
        return np.arange(nu)
    whole = all(isinstance(j, (int, np.integer)) and 0 <= j < n for j in joints)
    if len(joints) != nu or len(set(joints)) != nu or not whole:
        raise ConfigError(f"joints must name {nu} different entries of 0..{n - 1}, got {joints}")
    return np.array(joints)


def _vector(name: str, values: tuple[float, ...], default: float, n: int) -> Array:
    """A tuple of n numbers, or n times the default."""
    if values and len(values) != n:
        raise ConfigError(f"{name} must have {n} values, one per action, got {len(values)}")
    return np.array(values or (default,) * n, dtype=np.float64)
