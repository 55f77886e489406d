"""What a cost is, the smooth distance that most costs use, and the expansion that the LQR takes.

Letters: d residual (k,), w weights (k,), s = sum_i w_i d_i^2; l, l_x, ... as in `CostTerms`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt

from gps.costs._kernels import expand_about_zero
from gps.errors import ConfigError, ShapeError, choices
from gps.types import Array, CostTerms, Layout, QuadraticCost, Rollouts

RampKind = Literal["constant", "linear", "quadratic", "final"]


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

    l: Array  # noqa: E741 (N, T)
    l_x: Array  # (N, T, nx)
    l_u: Array  # (N, T, nu)
    l_xx: Array  # (N, T, nx, nx)
    l_ux: Array  # (N, T, nu, nx)
    l_uu: Array  # (N, T, nu, nu)

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
            part = getattr(terms, name)
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


class InPlaceCost:
    """Base of costs that add themselves to buffers: a sum of them needs no temporary Hessians."""

    def check(self, layout: Layout, nu: int, T: int) -> None:
        """See `Cost.check`."""
        raise NotImplementedError

    def add(self, rollouts: Rollouts, weight: float, out: TermBuffers) -> None:
        """Add `weight` times this cost and its derivatives to `out`."""
        raise NotImplementedError

    def evaluate(self, rollouts: Rollouts) -> CostTerms:
        """Cost and derivatives at the samples."""
        out = TermBuffers.zeros(rollouts)
        self.add(rollouts, 1.0, out)
        return out.freeze()


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


def set_numbers(
    config: object,
    name: str,
    *,
    minimum: float = -math.inf,
    above: float = -math.inf,
) -> None:
    """Cast a field to float, or to a tuple of floats, and check that every number is in range."""
    given = getattr(config, name)
    field = f"{type(config).__name__}.{name}"
    try:
        array = np.asarray(given)
    except ValueError as error:  # numpy's word for rows of unequal length
        raise ConfigError(f"{field} must be made of numbers, got {given!r}") from error
    if array.dtype.kind not in "iuf":
        raise ConfigError(f"{field} must be made of numbers, got {given!r}")
    if array.ndim > 1 or array.size == 0:
        raise ConfigError(f"{field} must be a number or a flat tuple of numbers, got {given!r}")
    if not np.all(np.isfinite(array)):
        raise ConfigError(f"{field} must be finite, got {given!r}")
    if np.any(array < minimum):
        raise ConfigError(f"{field} must not be below {minimum:g}, got {given!r}")
    if np.any(array <= above):
        raise ConfigError(f"{field} must be above {above:g}, got {given!r}")
    value = float(array) if array.ndim == 0 else tuple(float(v) for v in array)
    object.__setattr__(config, name, value)


def set_number(
    config: object, name: str, *, minimum: float = -math.inf, above: float = -math.inf
) -> None:
    """As `set_numbers`, for a field that is one number."""
    set_numbers(config, name, minimum=minimum, above=above)
    value = getattr(config, name)
    if not isinstance(value, float):
        raise ConfigError(f"{type(config).__name__}.{name} must be one number, got {value!r}")


def set_choice(config: object, name: str, known: Sequence[str]) -> None:
    """Check that a field holds one of the known words."""
    given = getattr(config, name)
    if given not in known:
        raise ConfigError(choices(f"{type(config).__name__}.{name}", given, known))


def check_entry(config: object, layout: Layout, *, field: str = "entry") -> int:
    """Length of the state entry that `config` names; ConfigError with the known names."""
    entry = getattr(config, field)
    if entry not in layout.names:
        raise ConfigError(
            f"{type(config).__name__}.{field}: {choices('state entry', entry, layout.names)}"
        )
    return layout.length(entry)


def check_length(config: object, name: str, expected: int, of: str) -> None:
    """Check that a field is one number or has one number for each of the `expected` values."""
    value = getattr(config, name)
    if isinstance(value, tuple) and len(value) != expected:
        raise ConfigError(
            f"{type(config).__name__}.{name} has {len(value)} values, {of} has {expected}"
        )
