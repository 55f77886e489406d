"""Costs that the user writes as a torch function of one state, action and step.

torch is imported at the first use, because importing it takes seconds.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from types import FunctionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, overload

import numpy as np

from gps.costs._kernels import pull_back
from gps.costs.base import SmoothDistance, TermBuffers, check_entry, ramp
from gps.costs.combine import InPlaceCost
from gps.costs.endpoint import Through
from gps.errors import ConfigError, GPSError, NonFiniteError, one_line
from gps.fields import Items, NonNegative
from gps.types import Array, Layout, Rollouts

if TYPE_CHECKING:
    from torch import Tensor

Returns = Literal["cost", "residual"]
HessianKind = Literal["auto", "exact", "positive", "gauss_newton"]

_CHUNK = 2**21
"""Numbers in one batch of second derivatives, which bounds the memory; a fixed size, so that the
batches, and with them the last bits, depend on nothing but the sizes of the rollouts."""


@dataclass(frozen=True, kw_only=True, repr=False)
class TorchCost(SmoothDistance, InPlaceCost):
    """A function `f(x, u, t)`, written in torch for one sample and step, times a ramp.

    x: the state (nx,), or one entry of it, or a dict of entries, as `entries` says. u: the action
    (nu,), or None with `action=False`. t: the step, a scalar. All are float64; constants inside the
    function need `dtype=torch.float64` too. It runs under `torch.func.vmap` over all samples and
    steps at once, so what depends on values is written with `torch.where`, not with `if`.

    returns="cost": f gives a scalar, `l = f`. Gradient by reverse mode, Hessian by reverse mode
    over it, all columns of all samples and steps in one pass.
    returns="residual": f gives r (k,), and `l = l2/2 s + l1 sqrt(alpha + s) + log_weight/2
    log(alpha + s)` with `s = sum_i w_i r_i^2`; with the defaults `l = 1/2 |r|^2`. Gauss-Newton:
    `l_v = J'g` and `l_vv = J'H J` with J the derivative of r and g, H as in `smooth_distance`.

    Hessians are symmetrised. Only what is passed to f is differentiated: naming the entries that
    f needs makes the Hessian smaller. In end points, `through="jacobian"` carries the derivatives
    on, with the entry's Jacobian E as the agent reports it: `l_x += E'l_e`, `l_xx += E'l_ee E`, and
    the mixed blocks alike; the curvature of the kinematics is left out.

    The function is stored and sent to workers by its name, so it stands at the top level of its
    module; what it reads from there must not change during a run.
    """

    function: Callable[..., Any]
    """The function f(x, u, t), at the top level of its module."""

    entries: Annotated[str | tuple[str, ...] | None, Items(some=True, distinct=True)] = None
    """What x is. None: the whole state. A name: that entry. Names: a dict of these entries."""

    action: bool = True
    """False: f does not depend on the action, is given None for it, and all l_u are zero."""

    returns: Returns = "cost"
    """What f gives: the cost itself, or residuals, of which the cost is a smooth distance."""

    hessian: HessianKind = "auto"
    """exact, perhaps indefinite; positive: the exact one, its negative eigenvalues set to zero;
    gauss_newton: of residuals, never indefinite. auto: exact for a cost, else gauss_newton."""

    through: Through = "state"
    """Where derivatives go in entries that have a Jacobian: on their own state columns, or on what
    they depend on. Entries without one keep their own columns."""

    l2: NonNegative = 1.0
    """Weight of s/2 for residuals; 0 leaves the term out."""

    def __post_init__(self) -> None:
        _check_function(self.function)
        super().__post_init__()
        if self.returns == "cost":
            if self.hessian == "gauss_newton":
                raise ConfigError(
                    "TorchCost.hessian='gauss_newton' needs returns='residual'; a cost alone has "
                    "only an exact Hessian, or its positive part"
                )
            for name, given in self._changed().items():
                if name in ("weights", "l1", "l2", "log_weight", "alpha"):
                    raise ConfigError(
                        f"TorchCost.{name}={given!r} has no meaning with returns='cost'; "
                        "it belongs to returns='residual'"
                    )

    def _changed(self) -> dict[str, Any]:
        """The options that do not have their default values."""
        return {f.name: v for f in fields(self) if (v := vars(self)[f.name]) != f.default}

    def __repr__(self) -> str:
        shown = self._changed() | {"function": None}
        del shown["function"]
        options = "".join(f", {name}={value!r}" for name, value in shown.items())
        return f"TorchCost(function={_path(self.function)}{options})"

    def __call__(self, x: Any, u: Any, t: Any) -> Any:
        """What the function itself gives."""
        return self.function(x, u, t)

    def check(self, layout: Layout, nu: int, T: int) -> None:
        """Raise ConfigError unless the entries exist and the function works on a state of zeros."""
        self._checked(layout, nu)

    def _checked(self, layout: Layout, nu: int) -> int:
        """As `check`; gives the number of residuals, 0 for a cost."""
        for name in self._names():
            check_entry("TorchCost.entries", name, layout)
        return _try(self, layout, nu)

    def _names(self) -> tuple[str, ...]:
        if self.entries is None:
            return ()
        return (self.entries,) if isinstance(self.entries, str) else self.entries

    def add(self, rollouts: Rollouts, weight: float, out: TermBuffers) -> None:
        """Add `weight` times this cost and its derivatives to `out`.

        Raises ConfigError, naming the function, if it raises, gives something else than it should,
        or does what cannot be differentiated; NonFiniteError, with sample and step, if a finite
        state gives NaN or infinity; and ConfigError if `through` is "jacobian" and no entry that f
        uses has one.
        """
        layout, N, T = rollouts.layout, rollouts.N, rollouts.T
        residuals = self._checked(layout, rollouts.nu)
        carried = self._carried(rollouts)
        factor = weight * ramp(self.ramp, T, self.final_multiplier)
        used = np.flatnonzero(factor)
        if N == 0 or used.size == 0:
            return
        when = slice(int(used[0]), int(used[-1]) + 1)
        parts = [rollouts.X] if self.entries is None else [rollouts.entry(n) for n in self._names()]
        if self.action:
            parts.append(rollouts.U)
        v = np.concatenate([part[:, when] for part in parts], axis=2)  # a copy that torch may keep
        sizes = _sizes(self, layout)
        value, gradient, hessian = _evaluate(self, v, when.start, sizes, residuals)
        if np.any(factor[when] != 1.0):
            value *= factor[when]
            gradient *= factor[when, None]
            hessian *= factor[when, None, None]
        if v.shape[1] < T:  # the rest are steps that the ramp switches off
            value, gradient, hessian = (_widen(a, when, T) for a in (value, gradient, hessian))
        out.l[...] += value

        nv = sum(sizes)
        if self.action:
            out.l_u[...] += gradient[:, :, nv:]
            out.l_uu[...] += hessian[:, :, nv:, nv:]
        own, columns, through = self._columns(layout, carried)
        if columns is not None:
            out.l_x[:, :, columns] += gradient[:, :, own]
            out.l_xx[:, :, *_grid(columns, columns)] += hessian[:, :, *_grid(own, own)]
            if self.action:
                # one index array beside slices keeps the order of the axes
                out.l_ux[:, :, :, columns] += hessian[:, :, nv:, own]
        if carried:
            E = rollouts.jacobians[carried[0]]
            if len(carried) > 1:
                E = np.concatenate([rollouts.jacobians[name] for name in carried], axis=2)
                E.setflags(write=False)  # as in the rollouts: the kernel is compiled for one kind
            H = np.ascontiguousarray(hessian[:, :, *_grid(through, through)])
            pull_back(E, np.ascontiguousarray(gradient[:, :, through]), H, out.l_x, out.l_xx)
            if self.action:
                out.l_ux[...] += hessian[:, :, nv:, through] @ E
            if columns is not None:
                mixed = np.zeros_like(out.l_xx)
                mixed[:, :, columns] = hessian[:, :, *_grid(own, through)] @ E
                # one sum for both halves: added one after the other they round differently
                out.l_xx[...] += mixed + mixed.swapaxes(2, 3)

    def _carried(self, rollouts: Rollouts) -> tuple[str, ...]:
        """The entries whose derivatives go through their Jacobians."""
        if self.through == "state":
            return ()
        names = self._names() or rollouts.layout.names
        carried = tuple(name for name in names if name in rollouts.jacobians)
        if not carried:
            known = ", ".join(sorted(rollouts.jacobians)) or "none"
            raise ConfigError(
                f"TorchCost.through is 'jacobian', but the agent reports no Jacobian of "
                f"{', '.join(names)} (it reports: {known}); through='state' needs none"
            )
        return carried

    def _columns(
        self, layout: Layout, carried: tuple[str, ...]
    ) -> tuple[_Index, _Index | None, _Index]:
        """Positions in v of the entries that keep their columns, these, and those carried on."""
        names, start = self._names() or layout.names, 0
        places: dict[str, range] = {}
        for name in names:
            places[name] = range(start, start + layout.length(name))
            start = places[name].stop
        rest = [name for name in names if name not in carried]
        own = [i for name in rest for i in places[name]]
        columns = [i for name in rest for i in range(layout.size)[layout.slice(name)]]
        through = [i for name in carried for i in places[name]]
        return _index(own), _index(columns) if columns else None, _index(through)


@overload
def torch_cost(function: Callable[..., Any], /, **options: Any) -> TorchCost: ...


@overload
def torch_cost(**options: Any) -> Callable[[Callable[..., Any]], TorchCost]: ...


def torch_cost(
    function: Callable[..., Any] | None = None, /, **options: Any
) -> TorchCost | Callable[[Callable[..., Any]], TorchCost]:
    """A `TorchCost` of a function, as a call or as a decorator; options are the fields' names.

        @torch_cost(entries="position", action=False)
        def near_wall(x, u, t):
            return torch.exp(-10.0 * (1.0 - x[0]))

    Then `near_wall` is the cost. As a decorated function can no longer be found under its own name,
    it takes the name `near_wall.function`, under which pickle and the run's files find it. Raises
    ConfigError for what is no function at the top level of a module.
    """
    if function is None:
        return lambda f: torch_cost(f, **options)
    _check_function(function, decorated=True)
    if _found(function) is not function and "." not in function.__qualname__:
        function.__qualname__ += ".function"
    return TorchCost(function=function, **options)


# --- the function ---------------------------------------------------------------------------------


def _path(function: Callable[..., Any]) -> str:
    """`module.name`, as shown to the user."""
    name: str = function.__qualname__
    return f"{function.__module__}.{name.removesuffix('.function')}"


def _found(function: Any) -> Any:
    """What the function's module holds under its name; None where nothing does (yet)."""
    scope = function.__globals__
    if scope.get("__name__") != function.__module__:  # wrapped by another module's decorator
        scope = vars(sys.modules.get(function.__module__, object))
    first, *rest = function.__qualname__.split(".")
    thing = scope.get(first)
    for part in rest:
        thing = getattr(thing, part, None)
    return thing


def _check_function(function: object, decorated: bool = False) -> None:
    """ConfigError unless workers and stored runs can find it by name and it takes (x, u, t)."""
    rule = "a function f(x, u, t) at the top level of a module (stored and sent by its name)"
    if not isinstance(function, FunctionType):
        raise ConfigError(f"TorchCost.function must be {rule}, got {function!r}")
    if "<" in function.__qualname__:
        kind = "a lambda" if function.__name__ == "<lambda>" else "defined inside a function"
        raise ConfigError(
            f"TorchCost.function must be {rule}; {function.__module__}.{function.__qualname__} is "
            f"{kind}"
        )
    try:
        inspect.signature(function).bind(None, None, None)
    except TypeError as error:
        raise ConfigError(
            f"TorchCost.function {_path(function)} must take (x, u, t): {error}"
        ) from None
    found = _found(function)
    # a module that runs again still holds the old cost while it makes the new one
    if not decorated and found is not None and found is not function:
        again = function.__qualname__.endswith(".function") and isinstance(found, FunctionType)
        if not again:
            raise ConfigError(
                f"TorchCost.function must be {rule}; {_path(function)} is now the name of "
                "something else"
            )


# --- evaluation -----------------------------------------------------------------------------------

_Index = slice | np.ndarray[Any, np.dtype[np.int64]]


def _index(places: list[int]) -> _Index:
    """The places as a slice where they are neighbours: views instead of copies."""
    if places and places == list(range(places[0], places[-1] + 1)):
        return slice(places[0], places[-1] + 1)
    return np.array(places, dtype=np.int64)


def _grid(rows: _Index, columns: _Index) -> tuple[Any, Any]:
    """Index of a block on the last two axes."""
    if isinstance(rows, np.ndarray) and isinstance(columns, np.ndarray):
        return rows[:, None], columns
    return rows, columns


def _widen(part: Array, when: slice, T: int) -> Array:
    """The same at all steps, zero outside of `when`."""
    whole = np.zeros((part.shape[0], T, *part.shape[2:]))
    whole[:, when] = part
    return whole


@lru_cache(maxsize=256)
def _try(cost: TorchCost, layout: Layout, nu: int) -> int:
    """Number of residuals (0 for a cost), from one evaluation at zeros.

    Done once for each cost and agent, so that faults show before the first rollout.
    """
    sizes = _sizes(cost, layout)
    points = np.zeros((1, sum(sizes) + (nu if cost.action else 0)))
    with np.errstate(all="ignore"):
        return _derivatives(cost, points, np.zeros(1), sizes)[3]


def _sizes(cost: TorchCost, layout: Layout) -> list[int]:
    """Lengths of the parts of the state that the function is given."""
    return [layout.size] if cost.entries is None else [layout.length(n) for n in cost._names()]


def _evaluate(
    cost: TorchCost, v: Array, first: int, sizes: list[int], residuals: int
) -> tuple[Array, Array, Array]:
    """Value (N, S), gradient (N, S, n) and Hessian (N, S, n, n) at the points v (N, S, n).

    first: the step of v[:, 0].
    """
    N, S, n = v.shape
    points = v.reshape(-1, n)
    t = np.tile(np.arange(first, first + S, dtype=np.float64), N)
    chunk = max(1, _CHUNK // max(1, n * max(n, residuals)))
    pieces = [
        _derivatives(cost, points[i : i + chunk], t[i : i + chunk], sizes)[:3]
        for i in range(0, N * S, chunk)
    ]
    value, gradient, hessian = (
        a[0] if len(a) == 1 else np.concatenate(a) for a in zip(*pieces, strict=True)
    )
    hessian = np.add(hessian, hessian.swapaxes(1, 2), order="C")
    hessian *= 0.5
    for what, a in (("value", value), ("gradient", gradient), ("Hessian", hessian)):
        with np.errstate(all="ignore"):
            suspect = not math.isfinite(a.sum())  # quicker than all; large numbers may overflow
        if suspect:
            _refuse_nonfinite(cost, what, a.reshape(N * S, -1), v, first)
    if cost.hessian == "positive":
        _clip_eigenvalues(hessian)
    return value.reshape(N, S), gradient.reshape(N, S, n), hessian.reshape(N, S, n, n)


def _refuse_nonfinite(cost: TorchCost, what: str, a: Array, v: Array, first: int) -> None:
    """NonFiniteError at the first finite point; a broken rollout's own NaN passes through."""
    bad = np.flatnonzero(~np.isfinite(a).all(axis=1) & np.isfinite(v).all(axis=2).ravel())
    if bad.size == 0:
        return
    sample, t = divmod(int(bad[0]), v.shape[1])
    number = a[bad[0]][~np.isfinite(a[bad[0]])][0]
    hint = (
        "its state and action are finite"
        if what == "value"
        else "the value is finite: often a root or norm at zero, which wants a small number inside"
    )
    raise NonFiniteError(
        f"TorchCost.function {_path(cost.function)} has {what} {number} at sample {sample}, "
        f"t={first + t} ({hint}); {bad.size} of {len(a)} points are so"
    )


def _clip_eigenvalues(hessian: Array) -> None:
    """Set negative eigenvalues of each finite matrix to zero, in place."""
    finite = np.flatnonzero(np.isfinite(hessian).all(axis=(1, 2)))
    values, vectors = np.linalg.eigh(hessian[finite])
    some = values[:, 0] < 0.0
    kept = vectors[some] * np.sqrt(np.maximum(values[some], 0.0))[:, None]
    hessian[finite[some]] = kept @ kept.swapaxes(1, 2)


@contextlib.contextmanager
def _quiet_torch() -> Iterator[None]:
    """Derivatives on, one thread, whatever the caller has set; all given back afterwards."""
    import torch

    threads = torch.get_num_threads()
    if threads != 1:
        torch.set_num_threads(1)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        if threads != 1:
            torch.set_num_threads(threads)


def _derivatives(
    cost: TorchCost, points: Array, t: Array, sizes: list[int]
) -> tuple[Array, Array, Array, int]:
    """As `_evaluate` for one batch, neither symmetrised nor checked; also the residuals' number."""
    gauss_newton = cost.returns == "residual" and cost.hessian in ("auto", "gauss_newton")
    kind = _residual_derivatives if gauss_newton else _cost_derivatives
    with _quiet_torch():
        try:
            return kind(cost, points, t, sizes)
        except GPSError:
            raise
        except Exception as error:
            _refuse(cost, error)


_HINTS = {
    "data-dependent": "write torch.where(condition, a, b) in place of if, min or max of Python",
    ".item()": "write torch.where(condition, a, b) in place of if, and no .item() or float()",
    "in-place": "write y = y + 1 in place of y += 1, and no y[i] = ...",
    "inplace": "write y = y + 1 in place of y += 1, and no y[i] = ...",
    "randomness": "a cost must not draw random numbers",
    "output with shape": "write y = y + 1 in place of y += 1, and no y[i] = ...",
    "storage": "use the functions of torch, not those of numpy",
    "dtype": "make constants with dtype=torch.float64",
    "NoneType": "with action=False, u is None",
}


def _refuse(cost: TorchCost, error: Exception) -> NoReturn:
    """ConfigError in one line that names the function."""
    text = one_line(error)
    hint = next((f"; {hint}" for key, hint in _HINTS.items() if key in text), "")
    text = text if len(text) <= 200 else text[:197] + "..."
    raise ConfigError(
        f"TorchCost.function {_path(cost.function)} failed: {type(error).__name__}: {text}{hint}"
    ) from error


def _batched(cost: TorchCost, v: Tensor, t: Tensor, sizes: list[int], ndim: int) -> Tensor:
    """The function at all points: (B,) for ndim 0, (B, k) for residuals."""
    import torch

    shape = "a scalar" if ndim == 0 else "a vector (k,)"

    def at_one_point(*parts: Tensor) -> Tensor:
        state = parts[: len(sizes)]
        if isinstance(cost.entries, tuple):
            x: Any = dict(zip(cost.entries, state, strict=True))
        else:
            x = state[0]
        given = cost.function(x, parts[len(sizes)] if cost.action else None, parts[-1])
        path = _path(cost.function)
        if not isinstance(given, torch.Tensor):
            raise ConfigError(
                f"TorchCost.function {path} must return {shape}, a torch tensor, got "
                f"{type(given).__name__}"
            )
        if given.ndim != ndim or given.numel() == 0:
            other = "; returns='residual' is for vectors" if ndim == 0 and given.ndim == 1 else ""
            raise ConfigError(
                f"TorchCost.function {path} must return {shape}, got shape {tuple(given.shape)}"
                f"{other}"
            )
        if given.dtype != torch.float64:
            raise ConfigError(
                f"TorchCost.function {path} must return float64, got {given.dtype}; make "
                "constants with dtype=torch.float64"
            )
        return given

    lengths = [*sizes, v.shape[1] - sum(sizes)] if cost.action else sizes
    parts = v.split(lengths, dim=1) if len(lengths) > 1 else (v,)
    result: Tensor = torch.func.vmap(at_one_point)(*parts, t)
    return result


def _cost_derivatives(
    cost: TorchCost, points: Array, t: Array, sizes: list[int]
) -> tuple[Array, Array, Array, int]:
    """Of the scalar cost, which may be the smooth distance of residuals; exact Hessian."""
    import torch

    (B, n), k = points.shape, 0
    v = torch.from_numpy(points).requires_grad_()
    if cost.returns == "cost":
        value = _batched(cost, v, torch.from_numpy(t), sizes, 0)
    else:
        r = _batched(cost, v, torch.from_numpy(t), sizes, 1)
        k = r.shape[1]
        _check_weights(cost, k)
        s = (r * r * v.new_tensor(cost.weights)).sum(dim=1)
        value = 0.5 * cost.l2 * s
        if cost.l1 != 0.0:
            value = value + cost.l1 * torch.sqrt(cost.alpha + s)
        if cost.log_weight != 0.0:
            value = value + 0.5 * cost.log_weight * torch.log(cost.alpha + s)
    gradient = hessian = None
    if value.requires_grad:  # else the function ignores what it is given
        (gradient,) = torch.autograd.grad(
            value, v, torch.ones_like(value), create_graph=True, allow_unused=True
        )
    if gradient is not None and gradient.requires_grad:
        hessian = _rows(gradient, v)
    return (
        value.detach().numpy().copy(),
        np.zeros((B, n)) if gradient is None else gradient.detach().numpy().copy(),
        np.zeros((B, n, n)) if hessian is None else hessian,
        k,
    )


def _residual_derivatives(
    cost: TorchCost, points: Array, t: Array, sizes: list[int]
) -> tuple[Array, Array, Array, int]:
    """Of the smooth distance of residuals, with the Gauss-Newton Hessian."""
    import torch

    B, n = points.shape
    v = torch.from_numpy(points).requires_grad_()
    r = _batched(cost, v, torch.from_numpy(t), sizes, 1)
    k = r.shape[1]
    J = None
    if r.requires_grad and k <= 4 * n:
        J = _rows(r, v)
    elif r.requires_grad:  # J'g is linear in g: its n rows in g cost n passes in place of k
        g_any = torch.zeros_like(r, requires_grad=True)
        (Jtg,) = torch.autograd.grad(r, v, g_any, create_graph=True, allow_unused=True)
        columns = None if Jtg is None else _rows(Jtg, g_any)
        J = None if columns is None else columns.transpose(0, 2, 1)
    if J is None:
        J = np.zeros((B, k, n))
    _check_weights(cost, k)
    value, g, H = cost.distance(r.detach().numpy().copy())
    Jt = J.transpose(0, 2, 1)
    slopes = H[:, np.arange(k), np.arange(k)]  # Gauss-Newton: diagonal
    return value, (Jt @ g[:, :, None])[:, :, 0], Jt @ (slopes[:, :, None] * J), k


def _rows(r: Tensor, v: Tensor) -> Array | None:
    """d r / d v at every point, (B, k, n), all k in one reverse pass; None where r ignores v.

    Point b of r depends on point b of v only. Several times quicker than `jacfwd` over `jacrev`.
    """
    import torch

    B, k = r.shape
    directions = torch.eye(k, dtype=torch.float64)[:, None].expand(k, B, k)
    (rows,) = torch.autograd.grad(r, v, directions, allow_unused=True, is_grads_batched=True)
    return None if rows is None else rows.detach().numpy().transpose(1, 0, 2)


def _check_weights(cost: TorchCost, k: int) -> None:
    """ConfigError if the number of weights is not that of the residuals."""
    if isinstance(cost.weights, tuple) and len(cost.weights) != k:
        raise ConfigError(
            f"TorchCost.weights has {len(cost.weights)} values, the function "
            f"{_path(cost.function)} gives {k} residuals"
        )
