"""Policy improvement with path integrals: a better controller from sampled costs alone.

Samples are weighted by the exponential of their cost-to-go, with a temperature that bounds how far
the weights may go from equal ones. No model, no derivative: the cost may be discontinuous.
Source: E. Theodorou, J. Buchli, S. Schaal, A generalized path integral control approach to
reinforcement learning, JMLR 2010; the temperature is that of relative entropy policy search
(J. Peters, K. Muelling, Y. Altun, AAAI 2010), as Y. Chebotar et al. 2017 (arXiv 1703.03078) use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt

from gps.control import _checks, _kernels
from gps.control import _pi2_kernels as kernels
from gps.control.kl import factors
from gps.control.lqr import controller_of, per_step
from gps.errors import NonFiniteError, NotPositiveDefiniteError, ShapeError
from gps.fields import Config, Positive, Range, Shape, numbers
from gps.types import Array, LinearGaussianController, Record

__all__ = ["PI2Config", "PI2Result", "update"]


@dataclass(frozen=True, kw_only=True)
class PI2Config(Config):
    """How far one update may go, and what becomes of the exploration."""

    kl_max: Positive = 1.0
    """KL divergence of the samples' weights from equal ones, in nats per time step. With N samples
    it cannot exceed log N, where the best sample has all the weight."""

    temperature_min: Positive = 1e-3
    """Floor of each step's temperature, as a share of the range of its samples' costs-to-go."""

    covariance: Literal["scaled", "weighted"] = "scaled"
    """"scaled": the old covariance, times the weighted one's size relative to it to the power of
    1 / damping. "weighted": the weighted covariance of the samples, which needs more samples than
    actions."""

    damping: Annotated[float, Range(at_least=1)] = 2.0
    """Of the scale: larger values let the covariance change more slowly."""

    floor: Positive = 1e-8
    """Smallest variance, as a fraction of the old one."""


@dataclass(frozen=True, eq=False)
class PI2Result(Record):
    """What `update` found."""

    controller: LinearGaussianController
    temperature: Annotated[Array, Shape("T")]
    """In cost units."""
    weights: Annotated[Array, Shape("T N")]
    """Each row sums to 1."""
    kl: Annotated[Array, Shape("T")]
    """Nats, of the weights from equal ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.same_steps(self, self.controller, self.kl)


def update(
    controller: LinearGaussianController,
    X: npt.ArrayLike,
    U: npt.ArrayLike,
    costs: npt.ArrayLike,
    config: PI2Config | None = None,
    temperature: float | Array | None = None,
) -> PI2Result:
    """One PI2 update of a controller from samples; its gains K stay as they are.

    With cost-to-go S_i = sum_{t' >= t} costs[i, t'], at every step on its own::

        p_i ~ exp(-(S_i - min S) / temperature)       KL(p || 1/N) = kl_max
        k = sum_i p_i (u_i - K x_i)                   C = sum_i p_i (u_i - K x_i - k)(...)'
        Sigma = Sigma_old (tr(Sigma_old^-1 C) / nu)^(1 / damping), or C + floor Sigma_old

    X (N, T, nx), U (N, T, nu): states and actions; costs (N, T). temperature: scalar or (T,) above
    0 fixes it, in cost units; None finds the one with the KL of `config`, or its floor where the
    samples' costs are too much alike. Raises ShapeError, NonFiniteError with sample and step,
    ConfigError, NotPositiveDefiniteError with the step.
    """
    config = _checks.config(PI2Config, config)
    _checks.kinds(controller=controller)
    T, nu, nx = controller.T, controller.nu, controller.nx
    _checks.controller("controller", controller, T, nu, nx)
    states, actions = numbers(X, "X"), numbers(U, "U")
    values = numbers(costs, "costs")
    N = len(values) if values.ndim else 0
    for name, array, want in (
        ("X", states, (N, T, nx)), ("U", actions, (N, T, nu)), ("costs", values, (N, T)),
    ):  # fmt: skip
        if array.shape != want:
            raise ShapeError(f"{name} must have shape {want}, got {array.shape}")
        if not np.isfinite(array).all():
            i, t = np.argwhere(~np.isfinite(array).reshape(N, T, -1).all(axis=2))[0]
            raise NonFiniteError(f"{name} is not finite in sample {i} at t={t}")
    if N < 2:
        raise ShapeError(f"PI2 needs at least 2 samples, got {N}")
    if config.covariance == "weighted" and not nu < N:
        raise ShapeError(
            f"PI2Config.covariance='weighted' needs more samples than the {nu} actions, got {N}; "
            "take more, or covariance='scaled'"
        )
    with np.errstate(over="ignore"):
        sums = np.isfinite(2.0 * np.abs(values).sum(axis=1))  # twice: differences must not either
        if not sums.all():
            raise NonFiniteError(f"the sum of the costs of sample {sums.argmin()} overflows")
    given = np.zeros(T) if temperature is None else per_step("temperature", temperature, T)
    k, chol, eta = np.empty((T, nu)), np.zeros((T, nu, nu)), np.empty(T)
    kl, weights = np.empty(T), np.empty((T, N))
    damping = config.damping if config.covariance == "scaled" else 0.0
    if damping:
        factors(controller, "controller")  # that the precision is finite
    status, t = kernels.update(
        states, actions, values, controller.K, controller.chol, config.kl_max,
        config.temperature_min, given, damping, config.floor, k, chol, eta, kl, weights,
    )  # fmt: skip
    if status == _kernels.NOT_POSITIVE_DEFINITE:
        raise NotPositiveDefiniteError(
            "the weighted covariance of the samples",
            t=t,
            hint="take more samples than actions, or PI2Config.covariance='scaled'",
        )
    t = _checks.last_not_finite(k, chol, eta, kl)
    if t >= 0:
        raise NonFiniteError(f"the update overflows at t={t}; check the scale of the samples")
    diagonal = chol.diagonal(axis1=1, axis2=2).min(axis=1)
    if not diagonal.all():
        raise NotPositiveDefiniteError(
            "the new covariance",
            t=int(diagonal.argmin()),
            hint="its factor is too small for a number; raise PI2Config.floor",
        )
    return PI2Result(
        controller=controller_of(controller.K, k, chol),
        temperature=eta,
        weights=weights,
        kl=kl,
    )
