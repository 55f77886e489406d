"""What a cost is, the smooth distance that most costs use, and the expansion that the LQR takes.

Letters: d residual (k,), w weights (k,), s = sum_i w_i d_i^2; l, l_x, ... as in `CostTerms`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt

from gps.costs._kernels import expand_about_zero
from gps.errors import ConfigError, ShapeError, choices
from gps.fields import Config, Finite, Items, NonNegative, Positive
from gps.types import Array, CostTerms, Layout, QuadraticCost, Rollouts

RampKind = Literal["constant", "linear", "quadratic", "final"]
Numbers = Annotated[Finite | tuple[Finite, ...], Items(some=True)]
"""One number for all components, or one for each."""
Weights = Annotated[NonNegative | tuple[NonNegative, ...], Items(some=True)]
"""One weight for all components, or one for each."""


@runtime_checkable
class Cost(Protocol):
    """Anything that gives a cost and its derivatives at every sample and step."""

    def evaluate(self, rollouts: Rollouts) -> CostTerms:
        """Cost and derivatives at the samples."""
        ...

    def check(self, layout: Layout, nu: int, T: int) -> None:
        """Raise ConfigError if the cost cannot work on states of `layout` and `nu` actions."""
        ...


@dataclass(frozen=True, eq=False)
class TermBuffers:
    """The arrays of a `CostTerms` while several costs add to them in place."""

    l: Array  # noqa: E741
    l_x: Array
    l_u: Array
    l_xx: Array
    l_ux: Array
    l_uu: Array

    @classmethod
    def zeros(cls, rollouts: Rollouts) -> TermBuffers:
        """Buffers of the sizes of `rollouts`."""
        N, T, nx, nu = rollouts.N, rollouts.T, rollouts.nx, rollouts.nu
        return cls(
            l=np.zeros((N, T)),
            l_x=np.zeros((N, T, nx)),
            l_u=np.zeros((N, T, nu)),
            l_xx=np.zeros((N, T, nx, nx)),
            l_ux=np.zeros((N, T, nu, nx)),
            l_uu=np.zeros((N, T, nu, nu)),
        )

    def add(self, terms: CostTerms, weight: float) -> None:
        """Add `weight` times a cost that was evaluated on its own."""
        for name, total in vars(self).items():
            part = vars(terms)[name]
            if part.shape != total.shape:
                raise ShapeError(
                    f"CostTerms.{name} must have shape {total.shape} like the rollouts, "
                    f"got {part.shape}"
                )
            total += weight * part

    def freeze(self) -> CostTerms:
        """The record; the buffers become read-only, so that it takes them without a copy."""
        for array in vars(self).values():
            array.setflags(write=False)
        return CostTerms(**vars(self))


def smooth_distance(
    d: Array,
    weights: npt.ArrayLike,
    *,
    l1: float = 0.0,
    l2: float = 0.0,
    alpha: float = 1e-5,
    log_weight: float = 0.0,
    exact: bool = False,
) -> tuple[Array, Array, Array]:
    """`l2/2 s + l1 sqrt(alpha + s) + log_weight/2 log(alpha + s)` with `s = sum_i w_i d_i^2`.

    d (..., k); weights broadcast against it. A term of weight zero is absent; the other two need
    alpha > 0. Returns value (...), gradient (..., k) and Hessian (..., k, k), both with respect
    to d. With `a = l2 + l1 (alpha+s)^-1/2 + log_weight (alpha+s)^-1` the gradient is `a W d`.

    exact: `a W - (l1 (alpha+s)^-3/2 + 2 log_weight (alpha+s)^-2) W d d'W`. The log's part has a
    negative eigenvalue wherever s > alpha.
    Otherwise Gauss-Newton (reweighted least squares, `a` held fixed): `a W`, positive
    semi-definite. As the value is concave in s, this quadratic model touches it at d and lies on
    or above it everywhere else, with its minimum at d = 0.
    """
    w = np.broadcast_to(np.asarray(weights, dtype=np.float64), np.shape(d))
    wd = w * d
    s = np.sum(wd * d, axis=-1)
    value = 0.5 * l2 * s
    slope = np.full_like(s, l2)
    bend = np.zeros_like(s)
    if l1 != 0.0:
        root = np.sqrt(alpha + s)
        value += l1 * root
        slope += l1 / root
        bend += l1 / root**3
    if log_weight != 0.0:
        q = alpha + s
        value += 0.5 * log_weight * np.log(q)
        slope += log_weight / q
        bend += 2.0 * log_weight / q**2
    gradient = slope[..., None] * wd
    hessian = np.zeros((*d.shape, d.shape[-1]))
    diagonal = np.arange(d.shape[-1])
    hessian[..., diagonal, diagonal] = slope[..., None] * w
    if exact:
        hessian -= bend[..., None, None] * (wd[..., :, None] * wd[..., None, :])
    return value, gradient, hessian


@dataclass(frozen=True, kw_only=True)
class SmoothDistance(Config):
    """The options of a cost that is a smooth distance (see `smooth_distance`) times a ramp."""

    weights: Weights = 1.0
    """Weight w_i of each squared component, or one for all."""

    l1: NonNegative = 0.0
    """Weight of sqrt(alpha + s), s = sum_i w_i d_i^2; 0 leaves the term out."""

    l2: NonNegative = 0.0
    """Weight of s/2; 0 leaves the term out."""

    log_weight: NonNegative = 0.0
    """Weight of log(alpha + s)/2, which asks for precision near the target; 0 leaves it out."""

    alpha: Positive = 1e-5
    """Rounds off the l1 and log terms at s = 0; unit of s, so in the entry's unit squared with
    weights that are plain numbers: the precision that is asked for, squared, and a part of what the
    task is, as the weights are. For a stage that moves a millimetre it is far below the default."""

    ramp: RampKind = "constant"
    """Factor of the whole step cost over time: 1, (t+1)/T, its square, or the last step only."""

    final_multiplier: NonNegative = 1.0
    """Further factor of the last step's cost (of the cost, not of the weights inside the log)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.l1 == self.l2 == self.log_weight == 0.0:
            name = type(self).__name__
            raise ConfigError(f"{name}: one of l1, l2 and log_weight must be above zero")

    def distance(self, d: Array, *, exact: bool = False) -> tuple[Array, Array, Array]:
        """Value, gradient and Hessian of the distance at residuals d (..., k), without the ramp."""
        return smooth_distance(
            d,
            self.weights,
            l1=self.l1,
            l2=self.l2,
            alpha=self.alpha,
            log_weight=self.log_weight,
            exact=exact,
        )

    def ramped_distance(
        self, d: Array, weight: float, *, exact: bool = False
    ) -> tuple[Array, Array, Array]:
        """The same at residuals (N, T, k), times `weight` and the ramp."""
        value, gradient, hessian = self.distance(d, exact=exact)
        factor = weight * ramp(self.ramp, d.shape[1], self.final_multiplier)
        value *= factor
        gradient *= factor[:, None]
        hessian *= factor[:, None, None]
        return value, gradient, hessian


def ramp(kind: RampKind, T: int, final_multiplier: float = 1.0) -> Array:
    """Factor of each step's cost, (T,): 1, (t+1)/T, its square, or 1 at T-1 and 0 before.

    The last step's factor is multiplied by `final_multiplier`. Raises ConfigError.
    Source: the four ramps of cbfinn/gps cost_utils.py get_ramp_multiplier, there partly float32
    and put on the weights inside the distance. For l2 that is the same; a log cost with a factor
    r inside is one with weights r^2 here, not one with r times the cost.
    """
    if T < 1:
        raise ConfigError(f"a ramp needs at least one step, got T={T}")
    if kind == "constant":
        factor = np.ones(T)
    elif kind == "linear":
        factor = np.arange(1, T + 1) / T
    elif kind == "quadratic":
        factor = (np.arange(1, T + 1) / T) ** 2
    elif kind == "final":
        factor = np.zeros(T)
        factor[-1] = 1.0
    else:
        raise ConfigError(choices("ramp", kind, get_args(RampKind)))
    factor[-1] *= final_multiplier
    return factor


def expand(terms: CostTerms, rollouts: Rollouts) -> QuadraticCost:
    """Mean over samples of the second-order expansions, rewritten about z = 0.

    With `l_zz` the symmetric Hessian: `C = mean(l_zz)`, `c = mean(l_z - l_zz z)`,
    `c0 = mean(l - l_z'z + 1/2 z'l_zz z)`. Raises ShapeError if the two records disagree.
    """
    N, T, nx, nu = rollouts.N, rollouts.T, rollouts.nx, rollouts.nu
    if terms.l_x.shape != (N, T, nx) or terms.l_u.shape != (N, T, nu):
        raise ShapeError(
            f"expand: the cost terms have (N, T, nx) = {terms.l_x.shape} and (N, T, nu) = "
            f"{terms.l_u.shape}, the rollouts {(N, T, nx)} and {(N, T, nu)}"
        )
    if N < 1:
        raise ShapeError("expand: the rollouts hold no sample")
    C, c, c0 = np.zeros((T, nx + nu, nx + nu)), np.zeros((T, nx + nu)), np.zeros(T)
    t = terms
    expand_about_zero(t.l, t.l_x, t.l_u, t.l_xx, t.l_ux, t.l_uu, rollouts.X, rollouts.U, C, c, c0)
    for array in (C, c, c0):
        array.setflags(write=False)  # the record takes them without a copy
    return QuadraticCost(C=C, c=c, c0=c0)


def check_entry(where: str, entry: str, layout: Layout) -> int:
    """Length of a state entry; ConfigError with the known names. where: `StateCost.entry`."""
    if entry not in layout.names:
        raise ConfigError(f"{where}: {choices('state entry', entry, layout.names)}")
    return layout.length(entry)


def check_length(where: str, value: object, expected: int, of: str) -> None:
    """Check that a field is one number or has one number for each of the `expected` values."""
    if isinstance(value, tuple) and len(value) != expected:
        raise ConfigError(f"{where} has {len(value)} values, {of} has {expected}")
