"""The records that travel through the pipeline, and the protocols of agents and policies.

Axis order is (condition, sample, time, feature). Arrays are float64, C-ordered and read-only;
to change a record, use `dataclasses.replace`. The letters are those of CONTRIBUTING.md.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from gps.errors import ShapeError, choices

Array = npt.NDArray[np.float64]
Images = npt.NDArray[np.uint8]
"""Pictures (..., height, width, channels): red, green, blue of each camera, one after another."""


def readonly(value: npt.ArrayLike) -> Array:
    """A float64, C-ordered, aligned, read-only array; copies unless `value` is one already."""
    if (
        type(value) is np.ndarray
        and value.dtype == np.float64
        and value.flags.c_contiguous
        and value.flags.aligned
        and not value.flags.writeable
    ):
        return value
    array = np.array(value, dtype=np.float64, order="C", copy=True)
    array.setflags(write=False)
    return array


def freeze(record: object, **shapes: Sequence[int]) -> None:
    """Cast the named fields of a frozen dataclass to read-only arrays and check their shapes."""
    for name, shape in shapes.items():
        array = readonly(getattr(record, name))
        if array.shape != tuple(shape):
            raise ShapeError(
                f"{type(record).__name__}.{name} must have shape {tuple(shape)}, got {array.shape}"
            )
        object.__setattr__(record, name, array)


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


def freeze_images(record: object, name: str, lead: Sequence[int]) -> None:
    """Make the pictures in a field read-only, if it is not None; `lead`: the axes before a picture.

    ShapeError for other shapes and for anything but bytes: pictures are never converted silently.
    """
    images = getattr(record, name)
    if images is None:
        return
    what = f"{type(record).__name__}.{name}"
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        raise ShapeError(
            f"{what} must be an array of uint8, got {getattr(images, 'dtype', type(images))}"
        )
    if images.shape[:-3] != tuple(lead) or images.ndim != len(lead) + 3:
        want = ", ".join(map(str, (*lead, "height", "width", "channels")))
        raise ShapeError(f"{what} must have shape ({want}), got {images.shape}")
    if images.flags.writeable or not images.flags.c_contiguous:
        images = np.array(images, order="C")
        images.setflags(write=False)
        object.__setattr__(record, name, images)


def shape_of(record: object, name: str, ndim: int) -> tuple[int, ...]:
    """The shape of a field that must have `ndim` axes; ShapeError names it otherwise."""
    shape = np.shape(getattr(record, name))
    if len(shape) != ndim:
        raise ShapeError(f"{type(record).__name__}.{name} must have {ndim} axes, got shape {shape}")
    return shape


def optional() -> Any:
    """A field of a record or configuration that is None unless it is used, and then not stored:
    files written before there was such a field are read, and stay the same without it."""
    return field(default=None, metadata={"stored": "unless None"})


class Record:
    """Base of the records: one that travelled to another process is checked and frozen again.

    Printed, a record shows the shapes of its arrays, not their numbers.
    """

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

    X: (N, T, nx) states, named by `layout`. U: (N, T, nu) actions as applied, after clipping.
    obs: (N, T, no). noise: (N, T, nu), unit variance. jacobians: name -> (N, T, size, nx).
    images: (N, T, height, width, channels) uint8, what the world's cameras see, or None.
    """

    X: Array  # (N, T, nx)
    U: Array  # (N, T, nu) as applied, after clipping to the control range
    obs: Array  # (N, T, no)
    noise: Array  # (N, T, nu) the unit-variance noise that the controller was given
    layout: Layout  # of the state
    condition: int = 0
    jacobians: Mapping[str, Array] = field(default_factory=dict)
    """Of state entries that are functions of others, d entry / d x: name -> (N, T, size, nx)."""
    images: Images | None = None
    """The pictures that belong to the observations; None in a world without cameras."""

    def __post_init__(self) -> None:
        N, T, nx = shape_of(self, "X", 3)
        nu, no = shape_of(self, "U", 3)[-1], shape_of(self, "obs", 3)[-1]
        freeze(self, X=(N, T, nx), U=(N, T, nu), obs=(N, T, no), noise=(N, T, nu))
        if self.layout.size != nx:
            raise ShapeError(f"Rollouts.layout describes {self.layout.size} values, X has {nx}")
        jac = {name: readonly(J) for name, J in self.jacobians.items()}
        for name, J in jac.items():
            want = (N, T, self.layout.length(name), nx)
            if J.shape != want:
                raise ShapeError(f"Rollouts.jacobians[{name!r}] must be {want}, got {J.shape}")
        object.__setattr__(self, "jacobians", MappingProxyType(jac))
        freeze_images(self, "images", (N, T))

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

    F: (T-1, nx, nx+nu). f: (T-1, nx). W: (T-1, nx, nx), symmetric positive semi-definite.

    A trajectory has T states and T actions: the last action, u[T-1], leads to no state, and costs
    what the cost of its own step says. `from_matrices` takes A and B.
    """

    F: Array  # (T-1, nx, nx+nu)
    f: Array  # (T-1, nx)
    W: Array  # (T-1, nx, nx) symmetric positive semi-definite

    def __post_init__(self) -> None:
        S, nx, nz = shape_of(self, "F", 3)
        freeze(self, F=(S, nx, nz), f=(S, nx), W=(S, nx, nx))

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
        parts = {"A": (readonly(A), 2), "B": (readonly(B), 2)}
        if offset is not None:
            parts["offset"] = readonly(offset), 1
        if noise is not None:
            parts["noise"] = readonly(noise), 2
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
class QuadraticCost(Record):
    """Cost of step t: 1/2 z'C[t]z + c[t]'z + c0[t] with z = [x; u], expanded about z = 0.

    C: (T, nz, nz), symmetric. c: (T, nz). c0: (T,). Every step is charged, the last one with its
    action. `from_matrices` takes Q, R and their relatives.
    """

    C: Array  # (T, nz, nz) symmetric
    c: Array  # (T, nz)
    c0: Array  # (T,)

    def __post_init__(self) -> None:
        T, nz, _ = shape_of(self, "C", 3)
        freeze(self, C=(T, nz, nz), c=(T, nz), c0=(T,))

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
        parts = {n: (readonly(v), d) for n, (v, d) in given.items() if v is not None}
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
            last = readonly(final)
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
    """Cost and derivatives at every sample and step.

    l: (N, T). l_x, l_u: (N, T, nx), (N, T, nu). l_xx, l_ux, l_uu: (N, T, nx, nx),
    (N, T, nu, nx), (N, T, nu, nu).
    """

    l: Array  # noqa: E741 (N, T)
    l_x: Array  # (N, T, nx)
    l_u: Array  # (N, T, nu)
    l_xx: Array  # (N, T, nx, nx)
    l_ux: Array  # (N, T, nu, nx)
    l_uu: Array  # (N, T, nu, nu)

    def __post_init__(self) -> None:
        N, T, nx = shape_of(self, "l_x", 3)
        nu = shape_of(self, "l_u", 3)[-1]
        freeze(self, l=(N, T), l_x=(N, T, nx), l_u=(N, T, nu), l_xx=(N, T, nx, nx))
        freeze(self, l_ux=(N, T, nu, nx), l_uu=(N, T, nu, nu))


@dataclass(frozen=True, eq=False)
class Gaussian(Record):
    """A Gaussian: mean (n,) and covariance cov (n, n), symmetric positive semi-definite."""

    mean: Array  # (n,)
    cov: Array  # (n, n)

    def __post_init__(self) -> None:
        (n,) = shape_of(self, "mean", 1)
        freeze(self, mean=(n,), cov=(n, n))


@dataclass(frozen=True, eq=False)
class Marginals(Record):
    """Gaussian marginals of z = [x; u] along a trajectory: mean (T, nz) and cov (T, nz, nz)."""

    mean: Array  # (T, nz)
    cov: Array  # (T, nz, nz)

    def __post_init__(self) -> None:
        T, nz = shape_of(self, "mean", 2)
        freeze(self, mean=(T, nz), cov=(T, nz, nz))


@dataclass(frozen=True, eq=False)
class LinearGaussianController(Record):
    """u ~ N(K[t] x + k[t], Sigma[t]) with absolute x and Sigma[t] = chol[t] chol[t]'.

    K: (T, nu, nx). k: (T, nu). chol: (T, nu, nu), lower triangular with a positive diagonal.
    """

    K: Array  # (T, nu, nx)
    k: Array  # (T, nu)
    chol: Array  # (T, nu, nu) lower triangular, positive diagonal

    def __post_init__(self) -> None:
        T, nu, nx = shape_of(self, "K", 3)
        freeze(self, K=(T, nu, nx), k=(T, nu), chol=(T, nu, nu))

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


@runtime_checkable
class Policy(Protocol):
    """Whatever chooses actions in a rollout: a local controller or the global policy.

    A policy with an attribute `needs_images` that is true is given the pictures of this step as
    well, `act(x, obs, t, noise, images=images)` with uint8 (N, height, width, channels). With an
    attribute `wants_images` that is false, a world with cameras may leave `Rollouts.images` out.

    A policy with an attribute `has_memory` that is true is given what it remembers, (N, size), and
    gives back actions and what it remembers next: `act(x, obs, t, noise, memory=memory)`. Before
    the first step that is its `memory0` (size,) in every row. A world need not know: `acting` makes
    a Policy like any other of it.
    """

    def act(self, x: Array, obs: Array, t: int, noise: Array) -> Array:
        """Actions (N, nu) for states (N, nx), observations (N, no), unit-variance noise (N, nu)."""
        ...


@runtime_checkable
class Agent(Protocol):
    """A world that a controller can act in, with a fixed list of start conditions.

    A world with cameras has besides `image_shape`, (height, width, channels) of an observation's
    pictures; see `image_shape_of`. One whose actuators have limits has `control_range`, a pair of
    lowest and highest actions; see `control_range_of`.
    """

    @property
    def layout(self) -> Layout:
        """Named entries of the state."""
        ...

    @property
    def obs_layout(self) -> Layout:
        """Named entries of the observation."""
        ...

    @property
    def T(self) -> int:
        """Steps of one rollout."""
        ...

    @property
    def dt(self) -> float:
        """Duration of one step in seconds."""
        ...

    @property
    def nu(self) -> int:
        """Action size."""
        ...

    @property
    def n_start(self) -> int:
        """Numbers of unit variance that a sample takes besides its actions' noise: they disturb its
        start, and its model and observations where the world does that; 0 for none."""
        ...

    @property
    def n_conditions(self) -> int:
        """Training conditions."""
        ...

    @property
    def n_test_conditions(self) -> int:
        """Conditions kept for evaluation."""
        ...

    def start_state(self, condition: int, *, test: bool = False) -> Array:
        """The undisturbed state (nx,) at which rollouts of `condition` start."""
        ...

    def rollout(
        self,
        policy: Policy,
        condition: int,
        noise: Array,
        start_noise: Array | None = None,
        *,
        test: bool = False,
    ) -> Rollouts:
        """Run one sample per row of `noise` (N, T, nu); `start_noise` is (N, n_start).

        `test` counts `condition` in the test conditions. Samples do not influence each other.
        Raises SimulationError with every failed sample (simulator warning, NaN, infinity).
        """
        ...


def image_shape_of(agent: Agent) -> tuple[int, int, int] | None:
    """Height, width and channels of the agent's pictures; None for a world without cameras."""
    shape: tuple[int, int, int] | None = getattr(agent, "image_shape", None)
    return shape


def control_range_of(agent: Agent) -> tuple[Array, Array] | None:
    """Lowest and highest action, (nu,) each and infinite where there is no limit; None where the
    agent does not say."""
    limits: tuple[npt.ArrayLike, npt.ArrayLike] | None = getattr(agent, "control_range", None)
    if limits is None:
        return None
    low, high = (np.array(np.broadcast_to(np.asarray(v, float), (agent.nu,))) for v in limits)
    return low, high


def needs_images(policy: object) -> bool:
    """Whether a policy's actions depend on pictures; see `Policy`."""
    return bool(getattr(policy, "needs_images", False))


def wants_images(policy: object) -> bool:
    """Whether somebody will look at the pictures of a policy's rollouts; see `Policy`."""
    return needs_images(policy) or bool(getattr(policy, "wants_images", True))


@dataclass(frozen=True)
class WithoutImages:
    """A policy that does not see, acting in rollouts whose pictures nobody will look at."""

    policy: Policy
    wants_images: ClassVar[bool] = False

    def act(self, x: Array, obs: Array, t: int, noise: Array) -> Array:
        """What the policy does."""
        return self.policy.act(x, obs, t, noise)


def has_memory(policy: object) -> bool:
    """Whether a policy's actions depend on earlier observations; see `Policy`."""
    return bool(getattr(policy, "has_memory", False))


def acting(policy: Any) -> Policy:
    """The policy as it acts in the rollouts of one call: one with memory carries it from step to
    step, a row for each sample, and begins anew at step 0; any other is given back as it is."""
    actor: Policy = _Remembering(policy) if has_memory(policy) else policy
    return actor


class _Remembering:
    """A policy and what it remembers of the rollouts under way."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self._memory: Array | None = None
        self.needs_images = needs_images(policy)

    def act(self, x: Array, obs: Array, t: int, noise: Array, **images: Any) -> Array:
        """See `Policy`."""
        if t == 0 or self._memory is None:
            self._memory = np.tile(self._policy.memory0, (len(obs), 1))
        u, self._memory = self._policy.act(x, obs, t, noise, memory=self._memory, **images)
        actions: Array = u
        return actions


def iter_fields(record: object) -> Iterator[tuple[str, Any]]:
    """Names and values of a record's fields, in order of definition."""
    for f in fields(record):  # type: ignore[arg-type]
        yield f.name, getattr(record, f.name)
