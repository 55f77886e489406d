"""The records that travel through the pipeline.

Axis order is (condition, sample, time, feature). Arrays are float64, C-ordered and read-only;
to change a record, use `dataclasses.replace`. The letters are those of CONTRIBUTING.md.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from gps.errors import ShapeError, choices
from gps.fields import Shape, Whole, check_shapes, checked, numbers

Array = npt.NDArray[np.float64]
Images = npt.NDArray[np.uint8]
"""Images (..., height, width, channels): red, green, blue of each camera, one after another."""


def _steps_of(what: str, parts: Mapping[str, tuple[Array, int]], steps: int | None) -> int:
    """How many steps stacked parts have; what: for errors. A part is an array and its axes at one
    step. steps: said by the caller. ShapeError where they differ, or nothing says."""
    said = {} if steps is None else {"T": steps}
    for name, (array, ndim) in parts.items():
        if array.ndim not in (ndim, ndim + 1):
            raise ShapeError(
                f"{what}: {name} must have {ndim} axes, or {ndim + 1} with a step in front, got "
                f"shape {array.shape}"
            )
        if array.ndim > ndim:
            said[name] = array.shape[0]
    if not said:
        raise ShapeError(f"{what}: T must be given where no matrix is stacked over the steps")
    if len(set(said.values())) > 1:
        counts = ", ".join(f"{name}: {count}" for name, count in said.items())
        raise ShapeError(f"{what}: the parts have different numbers of steps ({counts})")
    return next(iter(said.values()))


def _at_every_step(what: str, name: str, array: Array, steps: int, shape: tuple[int, ...]) -> Array:
    """A part that may be stacked, at every step: (steps, *shape); ShapeError."""
    if array.shape not in (shape, (steps, *shape)):
        raise ShapeError(
            f"{what}: {name} must have shape {shape} or {(steps, *shape)}, got {array.shape}"
        )
    return np.broadcast_to(array, (steps, *shape))


def _number_of_steps(what: str, T: int | None, least: int) -> int | None:
    """T as a whole number; ShapeError."""
    if T is None:
        return None
    try:
        steps = operator.index(T)
    except TypeError:
        raise ShapeError(f"{what}: T must be a whole number, got {T!r}") from None
    if steps < least:
        raise ShapeError(f"{what}: T must be at least {least}, got {steps}")
    return steps


def optional() -> Any:
    """A field of a record or configuration that is None unless it is used, and then not stored:
    files written before there was such a field are read, and stay the same without it."""
    return field(default=None, metadata={"stored": "unless None"})


class Record:
    """Base of the records: one that travelled to another process is checked and frozen again.

    Shapes stand in the annotations of its fields (`gps.fields.Shape`); further checks go into a
    `__post_init__` that calls this one first. Printed, a record shows the shapes of its arrays, not
    their numbers.
    """

    def __post_init__(self) -> None:
        check_shapes(self)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__repr__ = _short_repr  # type: ignore[method-assign]

    def __reduce__(self) -> tuple[object, ...]:
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.init}  # type: ignore[arg-type]
        plain = {k: dict(v) if isinstance(v, MappingProxyType) else v for k, v in values.items()}
        return _rebuild, (type(self), plain)


def _short_repr(record: Any) -> str:
    """`LinearDynamics(F=(99, 26, 33), ...)`; records inside by their names."""
    parts = []
    for name, value in iter_fields(record):
        if isinstance(value, np.ndarray):
            text = str(value.shape)
        elif isinstance(value, Record):
            text = f"{type(value).__name__}(...)"
        elif isinstance(value, Mapping):
            text = "{" + ", ".join(map(str, value)) + "}"
        elif isinstance(value, tuple) and value and isinstance(value[0], Record):
            text = f"{len(value)} x {type(value[0]).__name__}"
        else:
            text = repr(value)
        parts.append(f"{name}={text if len(text) <= 200 else text[:197] + '...'}")
    return f"{type(record).__name__}({', '.join(parts)})"


def _rebuild(cls: type, values: dict[str, Any]) -> Any:
    return cls(**values)


@dataclass(frozen=True)
class Layout:
    """Named entries of a vector, in order: `Layout((("joint_pos", 7), ("joint_vel", 7)))`."""

    entries: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        entries = checked(self.entries, tuple[tuple[str, Whole], ...], "Layout.entries")
        object.__setattr__(self, "entries", entries)
        names = [name for name, _ in self.entries]
        if len(set(names)) != len(names):
            raise ShapeError(f"Layout names an entry twice: {', '.join(names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The entries' names, in order."""
        return tuple(name for name, _ in self.entries)

    @property
    def size(self) -> int:
        """Length of the whole vector."""
        return sum(n for _, n in self.entries)

    def slice(self, name: str) -> slice:
        """Where the entry lies in the vector; ShapeError with the known names otherwise."""
        start = 0
        for entry, n in self.entries:
            if entry == name:
                return slice(start, start + n)
            start += n
        raise ShapeError(choices("state entry", name, self.names))

    def columns(self, names: Sequence[str]) -> npt.NDArray[np.intp]:
        """Where the values of some entries lie in the vector, one entry after another."""
        return np.concatenate([np.arange(self.size)[self.slice(name)] for name in names])

    def length(self, name: str) -> int:
        """Number of values of the entry."""
        where = self.slice(name)
        return where.stop - where.start

    def select(self, names: Sequence[str]) -> Layout:
        """The layout that holds only `names`, in the given order."""
        return Layout(tuple((name, self.length(name)) for name in names))


@dataclass(frozen=True, eq=False)
class Rollouts(Record):
    """N samples of T steps from one condition. Action U[:, T-1] is recorded and charged only.

    States X are named by `layout`.
    """

    X: Annotated[Array, Shape("N T nx")]
    """States, before each action."""
    U: Annotated[Array, Shape("N T nu")]
    """As applied, after clipping to the control range."""
    obs: Annotated[Array, Shape("N T no")]
    """Observations, what the policy was given."""
    noise: Annotated[Array, Shape("N T nu")]
    """The unit-variance noise that the controller was given."""
    layout: Layout  # of the state
    condition: int = 0
    jacobians: Mapping[str, Array] = field(default_factory=dict)
    """Of state entries that are functions of others, d entry / d x: name -> (N, T, size, nx)."""
    images: Annotated[Images, Shape("N T height width channels")] | None = None
    """The images that belong to the observations; None in an agent without cameras."""

    def __post_init__(self) -> None:
        super().__post_init__()
        N, T, nx = self.X.shape
        if self.layout.size != nx:
            raise ShapeError(f"Rollouts.layout describes {self.layout.size} values, X has {nx}")
        jac = {n: numbers(J, f"Rollouts.jacobians[{n!r}]") for n, J in self.jacobians.items()}
        for name, J in jac.items():
            want = (N, T, self.layout.length(name), nx)
            if J.shape != want:
                raise ShapeError(f"Rollouts.jacobians[{name!r}] must be {want}, got {J.shape}")
        object.__setattr__(self, "jacobians", MappingProxyType(jac))

    @property
    def N(self) -> int:
        """Number of samples."""
        return self.X.shape[0]

    @property
    def T(self) -> int:
        """Number of steps."""
        return self.X.shape[1]

    @property
    def nx(self) -> int:
        """State size."""
        return self.X.shape[2]

    @property
    def nu(self) -> int:
        """Action size."""
        return self.U.shape[2]

    def entry(self, name: str) -> Array:
        """One named entry of the states, (N, T, size)."""
        return self.X[:, :, self.layout.slice(name)]


@dataclass(frozen=True, eq=False)
class LinearDynamics(Record):
    """x[t+1] ~ N(F[t] @ [x[t]; u[t]] + f[t], W[t]) for t = 0 .. T-2.

    A trajectory has T states and T actions: the last action, u[T-1], leads to no state, and costs
    what the cost of its own step says. `from_matrices` takes A and B.
    """

    F: Annotated[Array, Shape("T-1 nx nx+nu")]
    f: Annotated[Array, Shape("T-1 nx")]
    W: Annotated[Array, Shape("T-1 nx nx")]
    """Symmetric positive semi-definite."""

    @classmethod
    def from_matrices(
        cls,
        A: npt.ArrayLike,
        B: npt.ArrayLike,
        offset: npt.ArrayLike | None = None,
        noise: npt.ArrayLike | None = None,
        T: int | None = None,
    ) -> LinearDynamics:
        """x[t+1] = A x[t] + B u[t] + offset, with Gaussian noise of covariance `noise`.

        A (nx, nx), B (nx, nu), offset (nx,) and noise (nx, nx), the last two 0 by default, each the
        same at every step or stacked over the T-1 transitions, as (T-1, nx, nx). T: states, and
        actions, of the trajectory; needed where nothing is stacked. Raises ShapeError.
        """
        what, steps = "LinearDynamics.from_matrices", None
        parts = {"A": (numbers(A, f"{what}: A"), 2), "B": (numbers(B, f"{what}: B"), 2)}
        if offset is not None:
            parts["offset"] = numbers(offset, f"{what}: offset"), 1
        if noise is not None:
            parts["noise"] = numbers(noise, f"{what}: noise"), 2
        if (number := _number_of_steps(what, T, 2)) is not None:
            steps = number - 1
        S = _steps_of(what, parts, steps)
        nx, nu = parts["A"][0].shape[-1], parts["B"][0].shape[-1]
        shapes = {"A": (nx, nx), "B": (nx, nu), "offset": (nx,), "noise": (nx, nx)}
        full = {
            name: _at_every_step(what, name, array, S, shapes[name])
            for name, (array, _) in parts.items()
        }
        return cls(
            F=np.concatenate([full["A"], full["B"]], axis=2),
            f=full.get("offset", np.zeros((S, nx))),
            W=full.get("noise", np.zeros((S, nx, nx))),
        )

    @property
    def nx(self) -> int:
        """State size."""
        return self.F.shape[1]

    @property
    def nu(self) -> int:
        """Action size."""
        return self.F.shape[2] - self.F.shape[1]

    @property
    def T(self) -> int:
        """Number of steps of the trajectory: one more than there are transitions."""
        return self.F.shape[0] + 1

    @property
    def A(self) -> Array:
        """State part of F, (T-1, nx, nx); a view."""
        return self.F[:, :, : self.nx]

    @property
    def B(self) -> Array:
        """Action part of F, (T-1, nx, nu); a view."""
        return self.F[:, :, self.nx :]


@dataclass(frozen=True, eq=False)
class Linearisation(Record):
    """One control step about a state at rest: x' = F [x; u] + f, near `x` and `u`.

    What of the state follows from other entries, such as end points, has zero columns in F.
    """

    x: Annotated[Array, Shape("nx")]
    """The state to hold: the start at rest, its activations in equilibrium with `u`."""
    u: Annotated[Array, Shape("nu")]
    """The action that holds it, or comes nearest within the control range."""
    F: Annotated[Array, Shape("nx nx+nu")]
    """d x' / d [x; u]."""
    f: Annotated[Array, Shape("nx")]
    """Offset: the state after a step from `x` under `u` is F [x; u] + f."""
    x_scale: Annotated[Array, Shape("nx")]
    """How large a deviation of each entry is a large one, in its unit; infinite for entries that
    may deviate as they like."""
    u_scale: Annotated[Array, Shape("nu")]
    """The change of each action that makes for such a deviation of what it drives, within the
    response time and with everything else held, in the action's unit; infinite if not known."""
    u_range: Annotated[Array, Shape("nu")]
    """Half of each action's range, in its unit; infinite for actions without limits."""
    layout: Layout
    """Names of the state's entries."""
    dt: float
    """Duration of the step, in seconds."""
    response_time: float
    """The time in which such deviations should be corrected, in seconds."""


@dataclass(frozen=True, eq=False)
class QuadraticCost(Record):
    """Cost of step t: 1/2 z'C[t]z + c[t]'z + c0[t] with z = [x; u], expanded about z = 0.

    Every step is charged, the last one with its action. `from_matrices` takes Q, R and their
    relatives.
    """

    C: Annotated[Array, Shape("T nz nz")]
    """Symmetric."""
    c: Annotated[Array, Shape("T nz")]
    c0: Annotated[Array, Shape("T")]

    @classmethod
    def from_matrices(
        cls,
        Q: npt.ArrayLike,
        R: npt.ArrayLike,
        q: npt.ArrayLike | None = None,
        r: npt.ArrayLike | None = None,
        N: npt.ArrayLike | None = None,
        reference: npt.ArrayLike | None = None,
        final: npt.ArrayLike | None = None,
        T: int | None = None,
    ) -> QuadraticCost:
        """1/2 e'Q e + 1/2 u'R u + e'N u + q'e + r'u at every step, with e = x - reference.

        Q (nx, nx), R (nu, nu), N (nx, nu), q (nx,), r (nu,) and reference (nx,), 0 where they are
        not given, each the same at every step or stacked over the T steps, as (T, nx, nx).

        final (nx, nx): the weight of the last state, in place of Q. The last step then has no q, r
        and N: its action leads to no state, costs R alone, and the best is none. T: states, and
        actions, of the trajectory; needed where nothing is stacked. Raises ShapeError.
        """
        what = "QuadraticCost.from_matrices"
        given = {"Q": (Q, 2), "R": (R, 2), "q": (q, 1), "r": (r, 1), "N": (N, 2)}
        given["reference"] = reference, 1
        parts = {n: (numbers(v, f"{what}: {n}"), d) for n, (v, d) in given.items() if v is not None}
        T = _steps_of(what, parts, _number_of_steps(what, T, 1))
        nx, nu = parts["Q"][0].shape[-1], parts["R"][0].shape[-1]
        shapes = {"Q": (nx, nx), "R": (nu, nu), "q": (nx,), "r": (nu,), "N": (nx, nu)}
        shapes["reference"] = (nx,)
        full = {
            name: _at_every_step(what, name, parts[name][0], T, shape).copy()
            if name in parts
            else np.zeros((T, *shape))
            for name, shape in shapes.items()
        }
        if final is not None:
            last = numbers(final, f"{what}: final")
            if last.shape != (nx, nx):
                raise ShapeError(f"{what}: final must have shape {(nx, nx)}, got {last.shape}")
            full["Q"][-1] = last
            for name in ("q", "r", "N"):
                full[name][-1] = 0.0
        Q_, R_, N_, q_, r_, e = (full[name] for name in ("Q", "R", "N", "q", "r", "reference"))
        Qe = np.einsum("tij,tj->ti", Q_, e)
        return cls(
            C=np.concatenate(
                [
                    np.concatenate([Q_, N_], axis=2),
                    np.concatenate([N_.transpose(0, 2, 1), R_], axis=2),
                ],
                axis=1,
            ),
            c=np.concatenate([q_ - Qe, r_ - np.einsum("tij,ti->tj", N_, e)], axis=1),
            c0=0.5 * np.einsum("ti,ti->t", e, Qe) - np.einsum("ti,ti->t", q_, e),
        )


@dataclass(frozen=True, eq=False)
class CostTerms(Record):
    """Cost and derivatives at every sample and step."""

    l: Annotated[Array, Shape("N T")]  # noqa: E741
    """Cost; the rest are its derivatives by state and action."""
    l_x: Annotated[Array, Shape("N T nx")]
    l_u: Annotated[Array, Shape("N T nu")]
    l_xx: Annotated[Array, Shape("N T nx nx")]
    l_ux: Annotated[Array, Shape("N T nu nx")]
    l_uu: Annotated[Array, Shape("N T nu nu")]


@dataclass(frozen=True, eq=False)
class Gaussian(Record):
    """A Gaussian distribution."""

    mean: Annotated[Array, Shape("n")]
    """Expectation."""
    cov: Annotated[Array, Shape("n n")]
    """Symmetric positive semi-definite."""


@dataclass(frozen=True, eq=False)
class Marginals(Record):
    """Gaussian marginals of z = [x; u] along a trajectory."""

    mean: Annotated[Array, Shape("T nz")]
    """Expectation at each step."""
    cov: Annotated[Array, Shape("T nz nz")]
    """Covariance at each step, symmetric positive semi-definite."""


@dataclass(frozen=True)
class StateStructure:
    """What is known of each of a state's nx entries before any data."""

    periodic: tuple[bool, ...]
    """Whether it is an angle, of which 2 pi more is the same, in rad."""
    velocity: tuple[int, ...]
    """Index of the entry whose integral over time it is, or -1."""

    def __post_init__(self) -> None:
        n = len(self.periodic)
        if len(self.velocity) != n:
            raise ShapeError(f"velocity must have {n} values, got {len(self.velocity)}")
        for i, j in enumerate(self.velocity):
            if not -1 <= j < n or j == i or (j >= 0 and self.velocity[j] >= 0):
                raise ShapeError(
                    f"velocity[{i}] must be -1 or the index of another entry that integrates none, "
                    f"got {j}"
                )

    def select(self, columns: npt.NDArray[np.intp]) -> StateStructure:
        """Of some of the entries, (ns,), alone; a velocity that is left out is not known of."""
        place = {int(old): new for new, old in enumerate(columns)}
        return StateStructure(
            tuple(self.periodic[i] for i in columns),
            tuple(place.get(self.velocity[i], -1) for i in columns),
        )

    @classmethod
    def unknown(cls, nx: int) -> StateStructure:
        """That nothing is known of nx entries."""
        return cls((False,) * nx, (-1,) * nx)


@dataclass(frozen=True, eq=False)
class LinearGaussianController(Record):
    """u ~ N(K[t] x + k[t], Sigma[t]) with absolute x and Sigma[t] = chol[t] chol[t]'."""

    K: Annotated[Array, Shape("T nu nx")]
    k: Annotated[Array, Shape("T nu")]
    chol: Annotated[Array, Shape("T nu nu")]
    """Lower triangular with a positive diagonal."""

    @property
    def T(self) -> int:
        """Number of steps."""
        return self.K.shape[0]

    @property
    def nx(self) -> int:
        """State size."""
        return self.K.shape[2]

    @property
    def nu(self) -> int:
        """Action size."""
        return self.K.shape[1]

    @property
    def Sigma(self) -> Array:
        """Action covariances, (T, nu, nu)."""
        return self.chol @ self.chol.transpose(0, 2, 1)

    @property
    def precision(self) -> Array:
        """Inverse action covariances, (T, nu, nu), symmetric."""
        inv = np.linalg.inv(self.chol)
        return inv.transpose(0, 2, 1) @ inv

    def mean_action(self, X: Array) -> Array:
        """K x + k for states (..., T, nx); returns (..., T, nu)."""
        return np.einsum("tux,...tx->...tu", self.K, X) + self.k

    def act(self, x: Array, obs: Array, t: int, noise: Array) -> Array:
        """Actions (N, nu) at step t for states (N, nx) and unit-variance noise (N, nu)."""
        return x @ self.K[t].T + self.k[t] + noise @ self.chol[t].T


def iter_fields(record: object) -> Iterator[tuple[str, Any]]:
    """Names and values of a record's fields, in order of definition."""
    for f in fields(record):  # type: ignore[arg-type]
        yield f.name, getattr(record, f.name)
