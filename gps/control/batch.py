"""Many control problems of one size at once: conditions, start states, or bounds on the KL.

The functions have the names and the results of `lqr`, `kl`, `dual`, `pi2` and `tracking`; their
arguments carry a first axis of B problems. One call goes from Python to compiled code once, where
most of the time of small problems is lost, and can work in threads::

    from gps.control import batch
    dynamics = batch.DynamicsBatch.stack(list_of_linear_dynamics)
    cost = batch.CostBatch.stack(list_of_quadratic_costs)
    controllers = batch.backward(dynamics, cost, threads=2)
    controllers[3]  # a LinearGaussianController

Where a batch is asked for, a single record (or a batch of one) stands for all problems alike: one
problem with 20 bounds needs no copies of it. All but `minimise`, which goes through the same
trials and may differ in the last digits, give the bytes of the single functions; the number of
threads changes no byte. BLAS should have one thread, since it is called from all of them.

A problem that fails (an indefinite Q_uu, NaN, an overflow) does not touch the others. With
`on_error="raise"`, the default, the first failure is raised, with the problem's index and what the
single function says: step and smallest eigenvalue. With "mask" the result carries the failures:
`result.ok` (B,) and `result.errors[b]`; its arrays hold NaN there, `result[b]` raises the error,
and the next function that is given the result hands the error on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar, get_args, get_origin

import numpy as np
import numpy.typing as npt

from gps.control import _batch_kernels as kernels
from gps.control import _checks, _kernels, dual, kl, lqr, pi2, tracking
from gps.control._checks import SYMMETRY_TOLERANCE
from gps.control.dual import DualConfig, DualResult, PerStepResult
from gps.control.pi2 import PI2Config, PI2Result
from gps.control.tracking import FilterResult, LinearSensor, SmootherResult
from gps.errors import (
    ConfigError,
    DualError,
    GPSError,
    NonFiniteError,
    NotPositiveDefiniteError,
    ShapeError,
)
from gps.fields import Axes, Range, Shape, check_shapes, checked, declared, numbers, shapes_of
from gps.types import (
    Array,
    Gaussian,
    LinearDynamics,
    LinearGaussianController,
    Marginals,
    QuadraticCost,
    Record,
)

__all__ = [
    "ControllerBatch",
    "CostBatch",
    "DualBatch",
    "DynamicsBatch",
    "FilterBatch",
    "GaussianBatch",
    "MarginalsBatch",
    "PI2Batch",
    "PerStepBatch",
    "SensorBatch",
    "SmootherBatch",
    "StepValues",
    "backward",
    "backward_per_step",
    "expected_cost",
    "forward",
    "kalman_filter",
    "kl_per_step",
    "minimise",
    "minimise_per_step",
    "pi2_update",
    "smooth",
]

log = logging.getLogger(__name__)

OnError = Literal["raise", "mask"]
S = TypeVar("S")
R = TypeVar("R", bound=DualResult | PerStepResult)
Found = TypeVar("Found")
Call = tuple[Any, ...]
"""A kernel and its arguments but for the last three: status, and the range of the problems."""

CHUNKS = 4
"""Parts of the problems per thread: some problems take longer than others."""


@cache
def _shapes(batch: Any) -> Mapping[str, Axes]:
    """Shapes in a batch: those of the record's arrays behind an axis B, (B,) of its numbers, and
    what the batch itself declares."""
    record, out = batch.record, {}
    if is_dataclass(record):
        arrays = shapes_of(batch.record)
        for name, (hint, _) in declared(batch.record).items():
            if name in arrays:
                out[name] = arrays[name]._replace(axes=("B", *arrays[name].axes))
            elif hint in (float, bool):
                out[name] = Axes(("B",), np.dtype(hint), optional=False)
    return {**out, **shapes_of(batch)}


_BATCHES: dict[Any, type[Stack[Any]]] = {}
"""The batch of each kind of record."""


@dataclass(frozen=True, eq=False)
class Stack(Record, Generic[S]):
    """B records of one kind and size, stacked: `stack[b]` gives the b-th one back.

    A class for a kind of record repeats the names of its fields, for type checkers, and nothing
    else: an array has the shape that the record declares, with the problems along a first axis, a
    number is an array (B,), and a record is stacked in turn.
    """

    errors: Mapping[int, GPSError] = field(default_factory=dict, kw_only=True)
    """Of the problems that failed, by index; their arrays hold NaN."""

    record: ClassVar[Any] = None
    """The kind of a single problem."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        (cls.record,) = get_args(vars(cls)["__orig_bases__"][0])
        if not isinstance(cls.record, TypeVar):
            _BATCHES[cls.record] = cls

    def __post_init__(self) -> None:
        check_shapes(self, self.shapes())
        if self.B < 1:
            raise ShapeError(f"{type(self).__name__} needs at least one problem, got none")
        wrong = [b for b in self.errors if not 0 <= b < self.B]
        if wrong:
            raise ShapeError(f"{type(self).__name__}.errors names {wrong} of {self.B} problems")
        object.__setattr__(self, "errors", MappingProxyType(dict(self.errors)))

    @classmethod
    def shapes(cls) -> Mapping[str, Axes]:
        """The declared shapes of the arrays, by name."""
        kind: Any = cls
        return _shapes(kind)

    @classmethod
    def stack(cls, records: Iterable[S]) -> Self:
        """Copy records into one; ShapeError when there are none, or their kinds or sizes differ."""
        kind = get_origin(cls.record) or cls.record
        if not isinstance(records, Iterable):
            raise ShapeError(
                f"{cls.__name__}.stack needs a list of {kind.__name__}, got "
                f"{type(records).__name__}"
            )
        items = list(records)
        if not items:
            raise ShapeError(f"{cls.__name__}.stack needs at least one record")
        for b, item in enumerate(items):
            if not isinstance(item, kind):
                raise ShapeError(
                    f"{cls.__name__}.stack: problem {b} must be a {kind.__name__}, got "
                    f"{type(item).__name__}"
                )
        stacked: dict[str, Any] = {}
        for name in cls.shapes():
            parts = [cls._part(item, name) for item in items]
            for b, part in enumerate(parts):
                if np.shape(part) != np.shape(parts[0]):
                    raise ShapeError(
                        f"{cls.__name__}.stack: {name} of problem {b} has shape {np.shape(part)}, "
                        f"that of problem 0 has {np.shape(parts[0])}"
                    )
            stacked[name] = np.stack(parts)
            stacked[name].setflags(write=False)
        return cls(**stacked)

    @staticmethod
    def _part(record: S, name: str) -> Any:
        """One of the arrays or numbers of a record; `_single` is the way back."""
        return getattr(record, name)

    @property
    def B(self) -> int:
        """Number of problems."""
        return len(getattr(self, next(iter(self.shapes()))))

    @property
    def ok(self) -> npt.NDArray[np.bool_]:
        """Which problems have a result, (B,)."""
        good = np.ones(self.B, dtype=bool)
        good[list(self.errors)] = False
        return good

    def __len__(self) -> int:
        return self.B

    def __getitem__(self, b: int) -> S:
        return self._single(self._index(b))

    def __iter__(self) -> Iterator[S]:
        return (self[b] for b in range(self.B))

    def _index(self, b: int) -> int:
        """A valid index; raises the problem's own error if it failed."""
        if not -self.B <= b < self.B:
            raise IndexError(f"{type(self).__name__} has {self.B} problems, not one at {b}")
        b %= self.B
        if b in self.errors:
            raise self.errors[b]
        return b

    def _single(self, b: int) -> S:
        values = {}
        for f in fields(self.record):
            if f.name in self.__dict__:
                value = getattr(self, f.name)[b]
                values[f.name] = value.item() if isinstance(value, np.generic) else value
        record: S = self.record(**values)
        return record


Flags = npt.NDArray[np.bool_]
Counts = Annotated[npt.NDArray[np.int64], Shape("B")]


@dataclass(frozen=True, eq=False)
class DynamicsBatch(Stack[LinearDynamics]):
    """B `LinearDynamics`."""

    F: Array
    f: Array
    W: Array


@dataclass(frozen=True, eq=False)
class CostBatch(Stack[QuadraticCost]):
    """B `QuadraticCost`s."""

    C: Array
    c: Array
    c0: Array


@dataclass(frozen=True, eq=False)
class ControllerBatch(Stack[LinearGaussianController]):
    """B `LinearGaussianController`s."""

    K: Array
    k: Array
    chol: Array


@dataclass(frozen=True, eq=False)
class GaussianBatch(Stack[Gaussian]):
    """B `Gaussian`s."""

    mean: Array
    cov: Array


@dataclass(frozen=True, eq=False)
class MarginalsBatch(Stack[Marginals]):
    """B `Marginals`."""

    mean: Array
    cov: Array


@dataclass(frozen=True, eq=False)
class StepValues(Stack[Array]):
    """A number per problem and step."""

    values: Annotated[Array, Shape("B T")]

    @staticmethod
    def _part(record: Array, name: str) -> Array:
        return record

    def _single(self, b: int) -> Array:
        row: Array = self.values[b]
        return row


@dataclass(frozen=True, eq=False)
class _SearchBatch(Stack[R]):
    """What the results of both searches hold; `trials` is how much of `trace` belongs to each."""

    controller: ControllerBatch
    marginals: MarginalsBatch
    eta: Array
    kl: Array
    kl_max: Array
    active: Flags
    converged: Flags
    trials: Counts
    trace: Array

    def _single(self, b: int) -> R:
        return replace(super()._single(b), trace=self.trace[b, : self.trials[b]])


@dataclass(frozen=True, eq=False)
class DualBatch(_SearchBatch[DualResult]):
    """B `DualResult`s of `minimise`.

    trials: passes that the search took; rows of `trace` from there on are 0.
    """


@dataclass(frozen=True, eq=False)
class PerStepBatch(_SearchBatch[PerStepResult]):
    """B `PerStepResult`s of `minimise_per_step`.

    trials: sweeps that the search took; entries of `trace` from there on are 0.
    """


@dataclass(frozen=True, eq=False)
class PI2Batch(Stack[PI2Result]):
    """B `PI2Result`s of `pi2_update`."""

    controller: ControllerBatch
    temperature: Array
    weights: Array
    kl: Array


@dataclass(frozen=True, eq=False)
class SensorBatch(Stack[LinearSensor]):
    """B `LinearSensor`s."""

    H: Array
    h: Array
    V: Array


@dataclass(frozen=True, eq=False)
class FilterBatch(Stack[FilterResult]):
    """B `FilterResult`s of `kalman_filter`."""

    mean: Array
    cov: Array
    pred_mean: Array
    pred_cov: Array
    gain: Array
    log_likelihood: Array


@dataclass(frozen=True, eq=False)
class SmootherBatch(Stack[SmootherResult]):
    """B `SmootherResult`s of `smooth`."""

    mean: Array
    cov: Array
    cross: Array


Dynamics = LinearDynamics | DynamicsBatch
Cost = QuadraticCost | CostBatch
Controllers = LinearGaussianController | ControllerBatch
Start = Gaussian | GaussianBatch | npt.ArrayLike
Along = Marginals | MarginalsBatch
Sensor = LinearSensor | SensorBatch
Filtered = FilterResult | FilterBatch


def backward(
    dynamics: Dynamics,
    cost: Cost,
    temperature: npt.ArrayLike = 1.0,
    *,
    threads: int = 1,
    on_error: OnError = "raise",
) -> ControllerBatch:
    """`lqr.backward` for every problem.

    temperature: anything that broadcasts to (B, T); a value per problem has the shape (B, 1).
    threads: of Python's; more than there are cores bring nothing. Raises the errors of
    `lqr.backward` with the problem's index, and ShapeError and ConfigError for what concerns all
    problems.
    """
    d, c = _batched("dynamics", dynamics), _batched("cost", cost)
    job = _Job(threads, on_error, dynamics=d, cost=c)
    T, nx, nu = _sizes(d, cost=c)
    temperatures = _positive("temperature", temperature, (job.B, T), zero=True)
    C = job.symmetric("cost", c.C)
    K, k, chol = np.empty((job.B, T, nu, nx)), np.empty((job.B, T, nu)), _square(job.B, T, nu)
    job.run(
        *_finite(C, c.c, c.c0, d.F, d.f, d.W),
        (kernels.backward, C, c.c, d.F, d.f, temperatures, K, k, chol),
        *_finite(K, chol),
    )

    def single(b: int) -> tuple[Array, ...]:
        found = lqr.backward(_at(d, b), _at(c, b), temperatures[b])
        return found.K, found.k, found.chol

    errors = job.settle(single, K=K, k=k, chol=chol)
    return ControllerBatch(*_read(K, k, chol), errors=errors)


def backward_per_step(
    dynamics: Dynamics,
    cost: Cost,
    previous: Controllers,
    eta: npt.ArrayLike,
    entropy_weight: npt.ArrayLike = 0.0,
    kl_under: Literal["new", "previous"] = "previous",
    *,
    threads: int = 1,
    on_error: OnError = "raise",
) -> ControllerBatch:
    """`dual.backward_per_step` for every problem.

    eta, entropy_weight: in cost units per nat, broadcast to (B, T); a value per problem has the
    shape (B, 1). B is the longest of the arguments, so that one problem can be solved for many eta
    at once. Raises the errors of `dual.backward_per_step` with the problem's index; ShapeError and
    ConfigError for what concerns all problems, and for an eta or entropy_weight that is not
    allowed.
    """
    d, c = _batched("dynamics", dynamics), _batched("cost", cost)
    p = _batched("previous", previous)
    lengths = [_length("eta", eta, 2), _length("entropy_weight", entropy_weight, 2)]
    job = _Job(threads, on_error, *lengths, dynamics=d, cost=c, previous=p)
    B, (T, nx, nu) = job.B, _sizes(d, cost=c, previous=p)
    if kl_under not in ("new", "previous"):
        raise ConfigError(f"kl_under must be 'new' or 'previous', got {kl_under!r}")
    given = _positive("eta", eta, (B, T))
    w = _positive("entropy_weight", entropy_weight, (B, T), zero=True)
    C = job.symmetric("cost", c.C)
    inv, _, good = _factors(p)
    job.fall_back(good)
    K, k, chol = np.empty((B, T, nu, nx)), np.empty((B, T, nu)), _square(B, T, nu)
    terms = _precision_terms(p, inv)
    job.run(
        *_finite(C, c.c, c.c0, d.F, d.f, d.W, *terms),
        (
            kernels.backward_per_step, C, c.c, d.F, d.f, *terms, p.K, p.k, inv, given, w,
            kl_under == "new", K, k, chol,
        ),
        *_finite(K, chol),
    )  # fmt: skip

    def single(b: int) -> tuple[Array, ...]:
        x = dual.backward_per_step(_at(d, b), _at(c, b), _at(p, b), given[b], w[b], kl_under)
        return x.K, x.k, x.chol

    errors = job.settle(single, K=K, k=k, chol=chol)
    return ControllerBatch(*_read(K, k, chol), errors=errors)


def forward(
    dynamics: Dynamics,
    controller: Controllers,
    x0: Start,
    *,
    threads: int = 1,
    on_error: OnError = "raise",
) -> MarginalsBatch:
    """`lqr.forward` for every problem: marginals of z = [x; u] from x[0] ~ x0.

    Raises the errors of `lqr.forward` with the problem's index, and ShapeError and ConfigError for
    what concerns all problems.
    """
    d, p, s = (
        _batched("dynamics", dynamics),
        _batched("controller", controller),
        _start(x0),
    )
    job = _Job(threads, on_error, dynamics=d, controller=p, x0=s)
    T, nx, nu = _sizes(d, controller=p, x0=s)
    W, S0 = job.symmetric("dynamics", d.W), job.symmetric("x0", s.cov[:, None])
    mean, cov = np.empty((job.B, T, nx + nu)), _square(job.B, T, nx + nu)
    job.run(
        *_controller(p), *_model(d, W, s, S0),
        (kernels.forward, p.K, p.k, p.chol, d.F, d.f, W, s.mean, S0, mean, cov),
        *_finite(cov),
    )  # fmt: skip

    def single(b: int) -> tuple[Array, ...]:
        found = lqr.forward(_at(d, b), _at(p, b), _at(s, b))
        return found.mean, found.cov

    errors = job.settle(single, mean=mean, cov=cov)
    return MarginalsBatch(*_read(mean, cov), errors=errors)


def expected_cost(
    cost: Cost, marginals: Along, *, threads: int = 1, on_error: OnError = "raise"
) -> StepValues:
    """`lqr.expected_cost` for every problem: values (B, T), in cost units.

    Raises the errors of `lqr.expected_cost` with the problem's index, NonFiniteError also where the
    expectation overflows.
    """
    c, m = _batched("cost", cost), _batched("marginals", marginals)
    job = _Job(threads, on_error, cost=c, marginals=m)
    _, T, nz = m.mean.shape
    if c.C.shape[1:] != (T, nz, nz):
        raise ShapeError(f"cost.C must have shape (B, {T}, {nz}, {nz}), got {c.C.shape}")
    C, out = job.symmetric("cost", c.C), np.empty((job.B, T))
    job.run(
        *_finite(C, c.c, c.c0, m.mean, m.cov),
        (kernels.expected_cost, C, c.c, c.c0, m.mean, m.cov, out),
        *_finite(out),
    )
    errors = job.settle(lambda b: (lqr.expected_cost(_at(c, b), _at(m, b)),), expected_cost=out)
    return StepValues(*_read(out), errors=errors)


def kl_per_step(
    new: Controllers,
    old: Controllers,
    marginals: Along,
    *,
    threads: int = 1,
    on_error: OnError = "raise",
) -> StepValues:
    """`kl.kl_per_step` for every problem: values (B, T), in nats.

    marginals: of the states or of [x; u]. Raises the errors of `kl.kl_per_step` with the problem's
    index, NonFiniteError also where the KL overflows.
    """
    n, o = _batched("new", new), _batched("old", old)
    m = _batched("marginals", marginals)
    job = _Job(threads, on_error, new=n, old=o, marginals=m)
    _, T, nu, nx = n.K.shape
    if o.K.shape[1:] != (T, nu, nx):
        raise ShapeError(f"old.K must have shape (B, {T}, {nu}, {nx}), got {o.K.shape}")
    if m.mean.shape[1] != T or m.mean.shape[2] not in (nx, nx + nu):
        raise ShapeError(
            f"marginals.mean must have shape (B, {T}, {nx}) or (B, {T}, {nx + nu}), "
            f"got {m.mean.shape}"
        )
    inv, half, good = _factors(o)
    job.fall_back(good)
    out = np.empty((job.B, T))
    job.run(
        *_controller(n), *_finite(m.mean, m.cov),
        (kernels.divergence, n.K, n.k, n.chol, o.K, o.k, inv, half, m.mean, m.cov, out),
        *_finite(out),
    )  # fmt: skip

    def single(b: int) -> tuple[Array, ...]:
        along = _at(m, b)
        return (kl.kl_per_step(_at(n, b), _at(o, b), along.mean, along.cov),)

    errors = job.settle(single, kl=out)
    return StepValues(*_read(out), errors=errors)


def minimise(
    dynamics: Dynamics,
    cost: Cost,
    x0: Start,
    previous: Controllers,
    kl_max: npt.ArrayLike,
    config: DualConfig | None = None,
    eta: npt.ArrayLike | None = None,
    entropy_weight: npt.ArrayLike | None = None,
    std_floor: npt.ArrayLike | None = None,
    *,
    threads: int = 1,
    on_error: OnError = "raise",
) -> DualBatch:
    """`dual.minimise` for every problem, each with its own search in compiled code.

    kl_max, in nats per time step, and eta, in cost units per nat: broadcast to (B,); eta=None
    begins where `dual.minimise` does. entropy_weight: broadcasts to (B, T), by default that
    of `config`. std_floor: a number or (nu,), for all problems. B is the longest of the arguments,
    so that one problem can be solved for many bounds at once. The searches are those of
    `dual.minimise`, trial for trial; one that does not converge is done again by that function.
    Problems whose bound holds but is not met to `config.tol` have `converged[b] = False`, and one
    log line names them.

    Raises the errors of `dual.minimise` with the problem's index; ConfigError for a kl_max, eta or
    entropy_weight that is not allowed, whatever `on_error`.
    """
    config = _checks.config(DualConfig, config)
    weight = config.entropy_weight if entropy_weight is None else entropy_weight
    d, c = _batched("dynamics", dynamics), _batched("cost", cost)
    s, p = _start(x0), _batched("previous", previous)
    lengths = [_length("kl_max", kl_max, 1), _length("eta", 0.0 if eta is None else eta, 1)]
    lengths.append(_length("entropy_weight", weight, 2))
    job = _Job(threads, on_error, *lengths, dynamics=d, cost=c, x0=s, previous=p)
    B, (T, nx, nu) = job.B, _sizes(d, cost=c, x0=s, previous=p)
    most = _positive("kl_max", kl_max, (B,))
    first = None if eta is None else _positive("eta", eta, (B,))
    floor = kl.floor_of(std_floor, nu)
    w = _positive("entropy_weight", weight, (B, T), zero=True)
    C, W = job.symmetric("cost", c.C), job.symmetric("dynamics", d.W)
    S0 = job.symmetric("x0", s.cov[:, None])
    q, inv, half, good = _references(p, floor)
    job.fall_back(good)
    R, r = _square(p.B, T, nx + nu), np.empty((p.B, T, nx + nu))
    penalties: list[Call] = [(_penalties, q.K, q.k, inv, R, r), *_finite(R, r)]
    if p.B < B:  # one for all
        job.fall_back(_chain(p.B, *penalties))
    K, k, chol = np.empty((B, T, nu, nx)), np.empty((B, T, nu)), _square(B, T, nu)
    mean, cov, kl_t = np.empty((B, T, nx + nu)), _square(B, T, nx + nu), np.empty((B, T))
    trace, found = np.zeros((B, config.max_trials, 2)), np.empty(B)
    trials, end = np.zeros(B, dtype=np.int64), np.zeros(B, dtype=np.int64)
    under, *at = _averaged_over(job, config, d, W, s, S0, q)
    job.run(
        *_finite(C, c.c, c.c0), *_model(d, W, s, S0), *(penalties if p.B == B else ()),
        (
            kernels.search, C, c.c, _seen(R), _seen(r), d.F, d.f, W, s.mean, S0,
            q.K, q.k, _seen(q.chol), inv, half, w, np.minimum(most * T, 1e300),
            np.full(B, np.nan) if first is None else first,
            config.eta_min, config.eta_max, floor, config.tol, under, *at,
            K, k, chol, mean, cov, kl_t, trace, found, trials, end,
        ),
        *_finite(K, chol, cov),
    )  # fmt: skip
    active, converged = end != kernels.FLOOR, end <= kernels.FLOOR

    def single(b: int) -> DualResult:
        return dual.minimise(
            _at(d, b), _at(c, b), _at(s, b), _at(p, b), float(most[b]), config,
            None if first is None else float(first[b]), w[b], std_floor,
        )  # fmt: skip

    return _searched(
        DualBatch, job, config, single, most, K=K, k=k, chol=chol, mean=mean, cov=cov, kl=kl_t,
        eta=found, active=active, converged=converged, trials=trials, trace=trace,
    )  # fmt: skip


def minimise_per_step(
    dynamics: Dynamics,
    cost: Cost,
    x0: Start,
    previous: Controllers,
    kl_max: npt.ArrayLike,
    config: DualConfig | None = None,
    eta: npt.ArrayLike | None = None,
    entropy_weight: npt.ArrayLike | None = None,
    std_floor: npt.ArrayLike | None = None,
    *,
    threads: int = 1,
    on_error: OnError = "raise",
) -> PerStepBatch:
    """`dual.minimise_per_step` for every problem, by the same compiled search.

    kl_max, in nats per time step, eta and entropy_weight, in cost units per nat: broadcast to (B,
    T). std_floor (nu,), in action units, is the same for all. Problems that did not converge have
    `converged[b] = False`, and one log line names them. Else as `minimise`.
    """
    config = _checks.config(DualConfig, config)
    weight = config.entropy_weight if entropy_weight is None else entropy_weight
    d, c = _batched("dynamics", dynamics), _batched("cost", cost)
    s, p = _start(x0), _batched("previous", previous)
    lengths = [_length("kl_max", kl_max, 2), _length("entropy_weight", weight, 2)]
    if eta is not None:
        lengths.append(_length("eta", eta, 2))
    job = _Job(threads, on_error, *lengths, dynamics=d, cost=c, x0=s, previous=p)
    B, (T, nx, nu) = job.B, _sizes(d, cost=c, x0=s, previous=p)
    bound = _positive("kl_max", kl_max, (B, T))
    first = np.full((B, T), np.nan) if eta is None else _positive("eta", eta, (B, T))
    w = _positive("entropy_weight", weight, (B, T), zero=True)
    floor = kl.floor_of(std_floor, nu)
    C, W = job.symmetric("cost", c.C), job.symmetric("dynamics", d.W)
    S0 = job.symmetric("x0", s.cov[:, None])
    r, inv, half, good = _references(p, floor)
    job.fall_back(good)
    K, k, chol = np.empty((B, T, nu, nx)), np.empty((B, T, nu)), _square(B, T, nu)
    mean, cov, kl_t = np.empty((B, T, nx + nu)), _square(B, T, nx + nu), np.empty((B, T))
    trace, found = np.zeros((B, config.max_trials)), np.empty((B, T))
    active, trials = np.zeros((B, T), dtype=bool), np.zeros(B, dtype=np.int64)
    end = np.zeros(B, dtype=np.int64)
    terms = _precision_terms(r, inv)
    job.run(
        *_finite(C, c.c, c.c0, *terms), *_model(d, W, s, S0),
        (
            kernels.search_per_step, C, c.c, c.c0, *terms, d.F, d.f, W, s.mean, S0,
            r.K, r.k, r.chol, inv, half, w, bound, first, config.tol, floor,
            config.kl_under == "previous", K, k, chol, mean, cov, kl_t, trace, found, active,
            trials, end,
        ),
        *_finite(K, chol, cov),
    )  # fmt: skip
    converged = end == kernels.DONE

    def single(b: int) -> PerStepResult:
        return dual.minimise_per_step(
            _at(d, b), _at(c, b), _at(s, b), _at(p, b), bound[b], config,
            None if eta is None else first[b], w[b], floor,
        )  # fmt: skip

    return _searched(
        PerStepBatch, job, config, single, bound, K=K, k=k, chol=chol, mean=mean, cov=cov, kl=kl_t,
        eta=found, active=active, converged=converged, trials=trials, trace=trace,
    )  # fmt: skip


def pi2_update(
    controller: Controllers,
    X: npt.ArrayLike,
    U: npt.ArrayLike,
    costs: npt.ArrayLike,
    config: PI2Config | None = None,
    temperature: npt.ArrayLike | None = None,
    kl_max: npt.ArrayLike | None = None,
    *,
    threads: int = 1,
    on_error: OnError = "raise",
) -> PI2Batch:
    """`pi2.update` for every controller from its own samples.

    X (B, N, T, nx), U (B, N, T, nu), costs (B, N, T). temperature: broadcasts to (B, T), or None to
    find it. kl_max: broadcasts to (B,), in nats, by default that of `config`. Raises the errors of
    `pi2.update` with the problem's index, and ShapeError and ConfigError for what concerns all.
    """
    config = _checks.config(PI2Config, config)
    p = _batched("controller", controller)
    states, actions, values = numbers(X, "X"), numbers(U, "U"), numbers(costs, "costs")
    if values.ndim != 3 or values.shape[1] < 2:
        raise ShapeError(f"costs must have shape (B, N, T) with N >= 2, got {values.shape}")
    job = _Job(threads, on_error, ("costs", values.shape[0]), exact="costs", controller=p)
    (B, N, _), (_, T, nu, nx) = values.shape, p.K.shape
    for name, array, want in (
        ("X", states, (B, N, T, nx)), ("U", actions, (B, N, T, nu)), ("costs", values, (B, N, T)),
    ):  # fmt: skip
        if array.shape != want:
            raise ShapeError(f"{name} must have shape {want}, got {array.shape}")
    fixed = temperature is not None
    given = _positive("temperature", temperature, (B, T)) if fixed else np.zeros((B, T))  # type: ignore[arg-type]
    most = _positive("kl_max", config.kl_max if kl_max is None else kl_max, (B,))
    damping = config.damping if config.covariance == "scaled" else 0.0
    k, chol, eta = np.empty((B, T, nu)), np.zeros((B, T, nu, nu)), np.empty((B, T))
    kl_t, weights = np.empty((B, T)), np.empty((B, T, N))
    job.run(
        *_controller(p), *_finite(states, actions, values),
        (
            kernels.pi2_update, states, actions, values, p.K, p.chol, most, config.temperature_min,
            given, damping, config.floor, k, chol, eta, kl_t, weights,
        ),
        *_finite(k, chol, eta, kl_t), (kernels.factors, _seen(chol)),
    )  # fmt: skip

    def single(b: int) -> tuple[Array, ...]:
        own = replace(config, kl_max=float(most[b]))
        x = pi2.update(
            _at(p, b), states[b], actions[b], values[b], own, given[b] if fixed else None
        )
        return x.controller.k, x.controller.chol, x.temperature, x.weights, x.kl

    errors = job.settle(single, k=k, chol=chol, temperature=eta, weights=weights, kl=kl_t)
    K = np.broadcast_to(p.K, (B, T, nu, nx)).copy()
    K[list(errors)] = np.nan
    K, k, chol, eta, weights, kl_t = _read(K, k, chol, eta, weights, kl_t)
    return PI2Batch(
        controller=ControllerBatch(K, k, chol, errors=errors),
        temperature=eta,
        weights=weights,
        kl=kl_t,
        errors=errors,
    )


def kalman_filter(
    dynamics: Dynamics,
    sensor: Sensor,
    Y: npt.ArrayLike,
    U: npt.ArrayLike,
    x0: Start,
    *,
    threads: int = 1,
    on_error: OnError = "raise",
) -> FilterBatch:
    """`tracking.kalman_filter` for every system, of N samples each.

    Y (B, N, T, no) and U (B, N, T, nu), of which the last action is not read; with a first axis of
    1 they stand for all systems alike. Raises the errors of `tracking.kalman_filter` with the
    system's index, and ShapeError and ConfigError for what concerns all.
    """
    d, o, s = (
        _batched("dynamics", dynamics),
        _batched("sensor", sensor),
        _start(x0),
    )
    measured, actions = numbers(Y, "Y"), numbers(U, "U")
    T, nx, nu = _sizes(d, x0=s)
    no = o.H.shape[2]
    if o.H.shape[1:] != (T, no, nx):
        raise ShapeError(f"sensor.H must have shape (B, {T}, no, {nx}), got {o.H.shape}")
    for name, array, n in (("Y", measured, no), ("U", actions, nu)):
        if array.ndim != 4 or array.shape[2:] != (T, n) or array.shape[1] < 1:
            raise ShapeError(f"{name} must have shape (B, N, {T}, {n}), got {array.shape}")
    N = measured.shape[1]
    if actions.shape[1] != N:
        raise ShapeError(f"Y has {N} samples per system, U has {actions.shape[1]}")
    lengths = [("Y", len(measured)), ("U", len(actions))]
    job = _Job(threads, on_error, *lengths, dynamics=d, sensor=o, x0=s)
    B = job.B
    W, V = job.symmetric("dynamics", d.W), job.symmetric("sensor", o.V)
    S0 = job.symmetric("x0", s.cov[:, None])
    pred_mean, mean = np.empty((B, N, T, nx)), np.empty((B, N, T, nx))
    pred_cov, cov = _square(B, T, nx), _square(B, T, nx)
    gain, log_likelihood = np.empty((B, T, nx, no)), np.empty((B, N, T))
    job.run(
        *_model(d, W, s, S0), *_finite(o.H, o.h, V, actions, measured),
        (kernels.roots, W), (kernels.roots, V), (kernels.roots, S0),
        (
            kernels.kalman_filter, d.F, d.f, W, o.H, o.h, V, s.mean, S0, actions, measured,
            pred_mean, pred_cov, mean, cov, gain, log_likelihood,
        ),
    )  # fmt: skip

    def single(b: int) -> tuple[Array, ...]:
        y, u = measured[b if len(measured) > 1 else 0], actions[b if len(actions) > 1 else 0]
        x = tracking.kalman_filter(_at(d, b), _at(o, b), y, u, _at(s, b))
        return x.mean, x.cov, x.pred_mean, x.pred_cov, x.gain, x.log_likelihood

    errors = job.settle(
        single, mean=mean, cov=cov, pred_mean=pred_mean, pred_cov=pred_cov, gain=gain,
        log_likelihood=log_likelihood,
    )  # fmt: skip
    return FilterBatch(*_read(mean, cov, pred_mean, pred_cov, gain, log_likelihood), errors=errors)


def smooth(
    dynamics: Dynamics,
    filtered: Filtered,
    *,
    threads: int = 1,
    on_error: OnError = "raise",
) -> SmootherBatch:
    """`tracking.smooth` for every system, backward from the results of `kalman_filter`.

    Raises the errors of `tracking.smooth` with the system's index, and ShapeError and ConfigError
    for what concerns all.
    """
    d, f = _batched("dynamics", dynamics), _batched("filtered", filtered)
    job = _Job(threads, on_error, dynamics=d, filtered=f)
    B, (T, nx, _), N = job.B, _sizes(d), f.mean.shape[1]
    if f.mean.shape[2:] != (T, nx):
        raise ShapeError(f"filtered.mean must have shape (B, N, {T}, {nx}), got {f.mean.shape}")
    W = job.symmetric("dynamics", d.W)
    for covariances in (f.cov, f.pred_cov):  # the filter's own are exactly symmetric
        off = np.empty(f.B)
        kernels.asymmetry(covariances, off)
        job.fall_back(off == 0)
    mean, cov, cross = np.empty((B, N, T, nx)), _square(B, T, nx), _square(B, T - 1, nx)
    job.run(
        *_finite(d.F, d.f, W, f.pred_mean, f.mean),
        # what is not finite has no root
        (kernels.variances, W), (kernels.roots, W), (kernels.roots, f.pred_cov),
        (kernels.roots, f.cov),
        (kernels.smooth, d.F, W, f.pred_mean, f.pred_cov, f.mean, f.cov, mean, cov, cross),
    )  # fmt: skip

    def single(b: int) -> tuple[Array, ...]:
        x = tracking.smooth(_at(d, b), _at(f, b))
        return x.mean, x.cov, x.cross

    errors = job.settle(single, mean=mean, cov=cov, cross=cross)
    return SmootherBatch(*_read(mean, cov, cross), errors=errors)


class _Job:
    """The problems of one call: how many, which need a fallback, and how they are run."""

    def __init__(
        self,
        threads: int,
        on_error: str,
        *lengths: tuple[str, int],
        exact: str | None = None,
        **inputs: Stack[Any],
    ) -> None:
        threads = checked(threads, Annotated[int, Range(at_least=1, at_most=1024)], "threads")
        if on_error not in ("raise", "mask"):
            raise ConfigError(f"on_error must be 'raise' or 'mask', got {on_error!r}")
        given = [*lengths, *((name, value.B) for name, value in inputs.items())]
        self.B = dict(given)[exact] if exact else max(n for _, n in given)
        for name, n in given:
            if n not in (1, self.B):
                sizes = ", ".join(f"{name} {n}" for name, n in given)
                raise ShapeError(
                    f"{name} has {n} problems where others have {self.B}: a batch must hold 1 or "
                    f"all of them; got {sizes}"
                )
        if self.B < 1:
            raise ShapeError("a batch needs at least one problem")
        self.threads, self.on_error = threads, on_error
        self.status = np.zeros(self.B, dtype=np.int64)
        self.inherited: dict[int, GPSError] = {}
        for value in inputs.values():
            for b, error in value.errors.items():
                for every in (b,) if value.B > 1 else range(self.B):
                    self.inherited.setdefault(every, error)
        self.status[list(self.inherited)] = kernels.FALLBACK

    def fall_back(self, good: npt.NDArray[np.bool_]) -> None:
        """Leave the problems of one input that are not good to the single function."""
        self.status[~np.broadcast_to(good, (self.B,))] = kernels.FALLBACK

    def symmetric(self, name: str, matrices: Array) -> Array:
        """Stacked matrices (n, T, d, d), made exactly symmetric where they are nearly so."""
        off = np.empty(len(matrices))
        kernels.asymmetry(matrices, off)
        self.fall_back(off <= SYMMETRY_TOLERANCE)
        nearly = (off > 0) & (off <= SYMMETRY_TOLERANCE)
        if not nearly.any():
            return matrices
        out = matrices.copy()
        out[nearly] = 0.5 * out[nearly] + 0.5 * out[nearly].swapaxes(-1, -2)
        out.setflags(write=False)
        return out

    def run(self, *calls: Call) -> None:
        """The kernels, one after another, over all problems, which the threads share out."""
        size = self.B if self.threads == 1 else -(-self.B // (CHUNKS * self.threads))
        chunks = iter(range(0, self.B, size))

        def work() -> None:
            for first in chunks:
                for kernel, *args in calls:
                    kernel(*args, self.status, first, min(first + size, self.B))

        if self.threads == 1:
            work()
            return
        with ThreadPoolExecutor(self.threads - 1) as pool:
            others = [pool.submit(work) for _ in range(self.threads - 1)]
            work()
        for other in others:
            other.result()

    def settle(self, single: Callable[[int], Sequence[Any]], **outputs: Any) -> dict[int, GPSError]:
        """Ask the single function about every problem that needs it; returns the errors."""
        errors: dict[int, GPSError] = {}
        for b in map(int, np.flatnonzero(self.status)):
            try:
                if b in self.inherited:
                    raise self.inherited[b]
                values = single(b)
                for (name, out), value in zip(outputs.items(), values, strict=True):
                    finite = np.isfinite(np.atleast_1d(value))
                    if name != "trace" and not finite.all():
                        t = int((~finite.reshape(len(finite), -1)).any(axis=1).argmax())
                        raise NonFiniteError(f"{name} overflows at t={t}; check the scales")
                    out[b] = value
            except GPSError as error:
                errors[b] = error if b in self.inherited else _numbered(error, b)
                if self.on_error == "raise":
                    raise errors[b] from error
                for out in outputs.values():
                    out[b] = np.nan if out.dtype == np.float64 else 0
        return errors


def _searched(
    kind: Callable[..., Found],
    job: _Job,
    config: DualConfig,
    single: Callable[[int], DualResult | PerStepResult],
    kl_max: Array,
    **found: Any,
) -> Found:
    """The result of either search, from the arrays that its kernel has filled, in the order of
    `unpacked`; problems that need the single function get its result."""

    def unpacked(b: int) -> tuple[Any, ...]:
        x = single(b)
        trace = np.zeros(found["trace"].shape[1:])
        trace[: len(x.trace)] = x.trace
        u, m = x.controller, x.marginals
        return (
            u.K, u.k, u.chol, m.mean, m.cov, x.kl, x.eta, x.active, x.converged, len(x.trace),
            trace,
        )  # fmt: skip

    errors = job.settle(unpacked, **found)
    _report(found["converged"], errors, config.tol)
    K, k, chol, mean, cov = _read(*(found.pop(name) for name in ("K", "k", "chol", "mean", "cov")))
    _read(found["kl"])
    found["trace"] = found["trace"][:, : max(1, int(found["trials"].max()))]
    return kind(
        controller=ControllerBatch(K, k, chol, errors=errors),
        marginals=MarginalsBatch(mean, cov, errors=errors),
        kl_max=kl_max,
        errors=errors,
        **found,
    )


def _numbered(error: GPSError, b: int) -> GPSError:
    """The error of a single function, with the problem's index in front."""
    if isinstance(error, NotPositiveDefiniteError):
        return NotPositiveDefiniteError(
            f"problem {b}: {error.matrix}", t=error.t, hint=error.hint, smallest=error.smallest
        )
    text = f"problem {b}: {error}"
    if isinstance(error, DualError):
        return DualError(text, t=error.t, eta=error.eta, smallest=error.smallest)
    return type(error)(text)


def _batched(name: str, value: Any) -> Any:
    """A single record as a batch of one, without a copy; a batch as it is."""
    if isinstance(value, Stack):
        return value
    kind = _BATCHES.get(type(value))
    if kind is None:
        raise ShapeError(
            f"{name} must be a record of one problem or a batch of them, got {type(value).__name__}"
        )
    return kind(**{field: getattr(value, field)[None] for field in kind.shapes()})


def _start(x0: Start) -> GaussianBatch:
    """Start distributions; arrays (nx,), or (B, nx), are states that are known exactly."""
    if not isinstance(x0, Record):
        mean = numbers(x0, "x0")
        if mean.ndim not in (1, 2):
            raise ShapeError(
                f"x0 must be Gaussians, or states of shape (nx,) or (B, nx), got {mean.shape}"
            )
        n = mean.shape[-1]
        mean = mean.reshape(-1, n)
        return GaussianBatch(mean, np.zeros((len(mean), n, n)))
    batched: GaussianBatch = _batched("x0", x0)
    return batched


def _at(batch: Stack[S], b: int) -> S:
    """The record of problem b, which may be the one that all share."""
    return batch[b if batch.B > 1 else 0]


def _sizes(dynamics: DynamicsBatch, **others: Any) -> tuple[int, int, int]:
    """T, nx, nu of the dynamics; ShapeError names what does not fit them."""
    _, steps, nx, nz = dynamics.F.shape
    T, nu = steps + 1, nz - nx
    if nx < 1 or nu < 1:
        raise ShapeError(
            f"dynamics.F must have more columns than rows, got {dynamics.F.shape[2:]} (nx, nx+nu)"
        )
    for name, batch in others.items():
        field, want = {
            CostBatch: ("C", (T, nz, nz)),
            ControllerBatch: ("K", (T, nu, nx)),
            GaussianBatch: ("mean", (nx,)),
        }[type(batch)]
        got = getattr(batch, field).shape
        if got[1:] != want:
            sizes = ", ".join(map(str, want))
            raise ShapeError(f"{name}.{field} must have shape (B, {sizes}), got {got}")
    return T, nx, nu


def _length(name: str, value: npt.ArrayLike, ndim: int) -> tuple[str, int]:
    """How many problems an array of `ndim` axes stands for; fewer axes mean all of them."""
    shape = np.shape(value)
    if len(shape) > ndim:
        raise ShapeError(f"{name} must have at most {ndim} axes, got shape {shape}")
    return name, shape[0] if len(shape) == ndim else 1


def _positive(
    name: str, value: npt.ArrayLike, shape: tuple[int, ...], *, zero: bool = False
) -> Array:
    """Values above 0 (or not below, with `zero`), broadcast to a shape whose first axis is B."""
    array = numbers(value, name)
    try:
        array = np.broadcast_to(array, shape).copy()
    except ValueError:
        raise ShapeError(
            f"{name} must broadcast to shape {shape}, got {array.shape}; a value per problem of a "
            f"(B, T) quantity has shape (B, 1)"
        ) from None
    bad = ~(np.isfinite(array) & ((array >= 0) if zero else (array > 0)))
    if bad.any():
        where = tuple(map(int, np.argwhere(bad)[0]))
        limit = "0 or above" if zero else "above 0"
        raise ConfigError(
            f"{name} must be finite and {limit}, got {array[where]} for problem {where[0]}"
        )
    return array


def _seen(array: Array) -> Array:
    """A read-only view, so that a check is compiled once for inputs and results."""
    view = array.view()
    view.setflags(write=False)
    return view


def _steps(array: Array) -> Array:
    """The steps of all problems along one axis."""
    return array.reshape(-1, *array.shape[2:])


def _finite(*arrays: Array) -> list[Call]:
    """Checks that arrays hold numbers alone."""
    return [(kernels.finite, _seen(array.reshape(len(array), -1))) for array in arrays]


def _controller(value: ControllerBatch) -> list[Call]:
    """Checks that controllers are finite, with lower factors of a positive diagonal."""
    return [*_finite(value.K, value.k, value.chol), (kernels.factors, value.chol)]


def _model(dynamics: DynamicsBatch, W: Array, start: GaussianBatch, S0: Array) -> list[Call]:
    """Checks that dynamics and start states are finite, with covariances that can be ones."""
    finite = _finite(dynamics.F, dynamics.f, W, start.mean, S0)
    return [*finite, (kernels.variances, W), (kernels.variances, S0)]


def _chain(B: int, *calls: Call) -> npt.NDArray[np.bool_]:
    """Run kernels over B problems; which of them are good."""
    status = np.zeros(B, dtype=np.int64)
    for kernel, *args in calls:
        kernel(*args, status, 0, B)
    return status == _kernels.OK


def _penalties(
    K: Array, k: Array, inv: Array, R: Array, r: Array, status: Any, first: int, stop: int
) -> None:
    """Hessian and gradient of the controllers' -log density, as a kernel of this file."""
    _kernels.relative_penalty(*(_steps(array[first:stop]) for array in (K, k, inv, R, r)))


def _factors(controller: ControllerBatch) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Inverse factors, half log determinants, and which controllers have them."""
    inv, half = np.zeros(controller.chol.shape), np.zeros(controller.k.shape[:2])
    good, chol = _chain(controller.B, *_controller(controller)), controller.chol
    if not good.all():
        chol = chol.copy()
        chol[~good] = np.eye(chol.shape[-1])
    _kernels.invert_factors(_seen(_steps(chol)), _steps(inv), half.reshape(-1))
    inv, half = _read(inv, half)
    return inv, half, good & _chain(controller.B, *_finite(inv))


def _references(
    controller: ControllerBatch, floor: Array | None
) -> tuple[ControllerBatch, Array, Array, npt.NDArray[np.bool_]]:
    """Controllers raised to a floor, their factors as `_factors`, and which can be used; the others
    are left to the single function."""
    inv, half, good = _factors(controller)
    if floor is None:
        return controller, inv, half, good
    chol, risen = controller.chol.copy(), good.copy()
    for b in np.flatnonzero(good):
        risen[b] = _kernels.raise_covariance(chol[b], floor)[0] == _kernels.OK
    raised = replace(controller, chol=chol)
    inv, half, fine = _factors(raised)
    return raised, inv, half, risen & fine


def _precision_terms(controller: ControllerBatch, inv: Array) -> tuple[Array, ...]:
    """P, P K and P k of every controller, with P = Sigma^-1; what overflows the checks find."""
    with np.errstate(all="ignore"):
        P = inv.swapaxes(-1, -2) @ inv
        return _read(P, P @ controller.K, np.einsum("btij,btj->bti", P, controller.k))


def _averaged_over(
    job: _Job,
    config: DualConfig,
    dynamics: DynamicsBatch,
    W: Array,
    start: GaussianBatch,
    S0: Array,
    previous: ControllerBatch,
) -> tuple[bool, Array, Array]:
    """Whether the KL is averaged over the previous controllers' marginals, and these (n, T, nz).

    Problems whose marginals cannot be computed are left to the single function.
    """
    _, T, nu, nx = previous.K.shape
    if config.kl_under == "new":
        return False, np.empty((1, 0, 0)), np.empty((1, 0, 0, 0))
    n = max(dynamics.B, start.B, previous.B)
    mean, cov = np.empty((n, T, nx + nu)), _square(n, T, nx + nu)
    args = (previous.K, previous.k, previous.chol, dynamics.F, dynamics.f, W, start.mean, S0)
    checks = [*_controller(previous), *_model(dynamics, W, start, S0)]
    calls = [*checks, (kernels.forward, *args, mean, cov), *_finite(cov)]
    if n == job.B:
        job.run(*calls)
    else:  # one for all
        job.fall_back(_chain(n, *calls))
    return True, mean, cov


def _report(converged: npt.NDArray[np.bool_], errors: Mapping[int, GPSError], tol: float) -> None:
    """One log line for the problems whose bound was not met."""
    short = [int(b) for b in np.flatnonzero(~converged) if int(b) not in errors]
    if short:
        log.info(
            "the KL stays below its bound by more than %g in %d problems: %s",
            tol,
            len(short),
            short,
        )


def _square(*shape: int) -> Array:
    """An empty stack of square matrices; the last size is that of a side."""
    return np.empty((*shape, shape[-1]))


def _read(*arrays: Array) -> tuple[Array, ...]:
    """The arrays, made read-only, so that records take them over without a copy."""
    for array in arrays:
        array.setflags(write=False)
    return arrays
