"""Controllers to start from, before anything is known of the dynamics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt

from gps.control import _checks, lqr
from gps.errors import ConfigError, NonFiniteError, ShapeError, choices
from gps.fields import Config, Finite, NonNegative, Positive, Range, Whole, checked, numbers
from gps.types import Array, Layout, LinearDynamics, LinearGaussianController, QuadraticCost

__all__ = ["HoldConfig", "OpenLoopConfig", "PDConfig", "hold_position", "open_loop", "pd"]

Index = npt.NDArray[np.signedinteger]


@dataclass(frozen=True, kw_only=True)
class HoldConfig(Config):
    """A soft LQR that holds the start position, for joints that integrate acceleration."""

    variance: Positive = 1.0
    """Scale of the exploration: the action variance where stiffness is negligible, in squared
    action units."""

    stiffness: NonNegative = 1.0
    """Cost weight of squared position errors relative to squared actions."""

    stiffness_vel: NonNegative = 0.5
    """Cost weight of squared velocities, as a multiple of `stiffness`."""

    final_weight: Positive = 1.0
    """Factor on the cost of the last step."""

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

    position_gain: NonNegative = 10.0
    """Action per unit of position error."""

    velocity_gain: NonNegative = 0.01
    """Velocity gain as a multiple of `position_gain`."""

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
    nx = len(x0)
    F, f = np.zeros((nx, nx + nu)), np.zeros(nx)
    F[pos, pos] = F[vel, vel] = 1.0
    F[pos, vel] = dt
    action = nx + np.arange(nu)
    with np.errstate(all="ignore"):  # lqr.backward names what overflows
        F[pos[driven], action], F[vel[driven], action] = dt * dt * gains, dt * gains
        f[pos[driven]], f[vel[driven]] = dt * dt * acceleration, dt * acceleration
        weights = np.zeros(nx + nu)
        weights[pos] = config.stiffness
        weights[vel] = config.stiffness * config.stiffness_vel
        weights[action] = 1.0
        C = np.tile(np.diag(weights / config.variance), (T, 1, 1))
        C[-1] *= config.final_weight
        target = np.concatenate([x0, np.zeros(nu)])
        c = -C @ target
    steps = T - 1
    model = LinearDynamics(
        np.tile(F, (steps, 1, 1)), np.tile(f, (steps, 1)), np.zeros((steps, nx, nx))
    )
    return lqr.backward(model, QuadraticCost(C, c, np.zeros(T)))


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
    """u = -position_gain ((pos - pos0) + velocity_gain (vel - vel0)) + noise, for T steps.

    Arguments and errors as of `hold_position`; joints beyond the nu driven ones have no gain.
    Source: as init_pd of cbfinn/gps lin_gauss_init.py, whose case of more joints than actions
    fails.
    """
    config = _checks.config(PDConfig, config)
    x0, pos, vel = _joints(x0, layout, nu, T, position, velocity)
    driven, action = _driven(config.joints, nu, len(pos)), np.arange(nu)
    K = np.zeros((nu, len(x0)))
    K[action, pos[driven]] = -config.position_gain
    K[action, vel[driven]] = -config.position_gain * config.velocity_gain
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
