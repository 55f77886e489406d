"""Where stage functions run: the interface that every executor has, and the serial one.

An algorithm hands stage functions to `Executor.call` and gets handles back. It may pass handles on
to later calls, and asks `gather` for the values that it needs itself. The serial executor runs a
call at once, in the calling process; it is the definition that any other must reproduce.

A handle of a T has no type of its own: to a type checker it is a T, written `Deferred[T]` where it
matters to the reader. So a stage is called with the types of its signature, whether its arguments
are values or handles, and a wrong one is an error of mypy's:

    costs = each(ex, expand_cost, over(state.costs), over(rollouts))    # list[Deferred[CostModel]]
    policy = ex.call(train_policy, state.policy, data, config)          # Deferred[PolicyState]

A type `T | Handle[T]` would have to stand in the signature of every stage, which never sees a
handle: executors replace them before the call. The price is that nothing but this rule keeps the
driver from looking into a handle: **only `gather` gives values.**
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, Protocol, TypeVar, TypeVarTuple, cast

from gps.errors import GPSError
from gps.types import Array, Record

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Function = TypeVar("Function", bound=Callable[..., object])

Deferred = Annotated[T, "a value, or an executor's handle of it"]
"""A T or a handle of one, as results of calls, their arguments and the entries of live states are;
T to a type checker, see above."""


def stage(name: str) -> Callable[[Function], Function]:
    """Decorator: calls of the function are counted and reported as the stage `name`."""

    def named(fn: Function) -> Function:
        fn.__dict__["stage"] = name
        return fn

    return named


def stage_of(fn: Callable[..., object]) -> str:
    """The stage that calls of a function belong to: the name given by `stage`, or else its own,
    without leading underscores; of a partial, that of its function."""
    while isinstance(fn, partial) and "stage" not in fn.__dict__:
        fn = fn.func
    name = getattr(fn, "stage", None) or getattr(fn, "__name__", type(fn).__name__)
    return str(name).lstrip("_")


class Group(Protocol):
    """The processes that work on one call together; see `Executor.gang`."""

    rank: int
    """Number of this process in the group, from 0."""
    size: int
    """How many processes there are."""

    def all_gather(self, array: Array) -> list[Array]:
        """The arrays that all members have handed in, in order of their rank.

        All must be of one shape. Every member has to call; a member that is gone is an error.
        """
        ...

    def barrier(self) -> None:
        """Wait until every member is here."""
        ...


class Shared(Protocol):
    """An object that lives in one process and answers the tasks of all; see `Executor.share`.

    It can be handed to tasks as an argument.
    """

    def ask(self, method: str, *args: Any) -> Any:
        """Call a method of the object and wait for its answer; SharedLostError when it is gone."""
        ...

    def close(self) -> None:
        """Release the object."""
        ...


class Executor(Protocol):
    """Runs stage functions somewhere."""

    @property
    def workers(self) -> int:
        """How many tasks can run at once."""
        ...

    @property
    def reserve(self) -> int:
        """How many of them are kept for calls without a condition."""
        ...

    @property
    def concurrent(self) -> bool:
        """Whether `call` returns before the call has run."""
        ...

    def prepare(self, fn: Callable[[], Any]) -> None:
        """Run `fn` once in every worker, also in later ones: imports, kernels, models."""
        ...

    def together(self) -> AbstractContextManager[None]:
        """A block whose calls are sent in one message: at its end, or when something waits."""
        ...

    def call(self, fn: Callable[[*Ts], T], *args: *Ts, condition: int = -1) -> Deferred[T]:
        """Start `fn(*args)` and return a handle; `args` may hold handles, also nested ones.

        The call belongs to the stage `stage_of(fn)`.
        Calls of one condition run on one worker, where their data lies; a call without a condition
        runs on any. `fn` must be pure: a call whose result was lost is repeated.
        """
        ...

    def gang(self, fn: Callable[[Group, *Ts], T], size: int, *args: *Ts) -> Deferred[T]:
        """Start `fn(group, *args)` in at most `size` processes at once, which communicate
        through `group`; returns a handle of what the first of them (rank 0) returns.

        `fn` must be pure, and its result must not depend on how many processes there were: when one
        is lost, all are started again.
        """
        ...

    def share(self, make: Callable[[*Ts], object], *args: *Ts) -> Shared:
        """Make `make(*args)` in one of the workers, for all tasks to talk to."""
        ...

    def pick(self, handle: object, name: str) -> Any:
        """A handle of one attribute of a result, for `gather` only."""
        ...

    def wait(self, handles: Sequence[T], timeout: float | None = None) -> list[T]:
        """Wait until one handle at least has its result; returns all that have, in their order.

        Also returns, perhaps with none, after `timeout` seconds. Raises nothing for a call that
        failed: it counts as finished, and `gather` raises.
        """
        ...

    def gather(self, tree: Deferred[T]) -> T:
        """Replace every handle in nested tuples, lists, dicts and records by its value.

        Raises what a call has raised, with a note of stage and condition.
        """
        ...

    def keep(self, tree: T) -> T:
        """Cut the lineage of the gathered handles in `tree`; returns the tree.

        Later calls may use them as before. If a worker is lost, the calls since the last `keep` are
        repeated, and no earlier one.
        """
        ...

    def seconds(self) -> dict[str, float]:
        """Seconds of work per stage since this method was called last."""
        ...

    def doing(self) -> str:
        """The work in progress, in words; empty without any. May be called in any thread."""
        ...

    def memory(self) -> float:
        """Peak resident memory of any one worker so far, in bytes, as reported with results; NaN
        without workers."""
        ...

    def close(self) -> None:
        """End the processes and connections that this executor started itself."""
        ...


def map_tree(fn: Callable[[Any], Any], tree: Any) -> Any:
    """Apply `fn` to the leaves of nested tuples, lists, dicts and records that hold handles."""
    if type(tree) in (tuple, list):  # a named tuple is a value
        return type(tree)(map_tree(fn, item) for item in tree)
    if isinstance(tree, dict | MappingProxyType):
        return {key: map_tree(fn, item) for key, item in tree.items()}
    if isinstance(tree, Record) and is_dataclass(tree):
        old = {f.name: getattr(tree, f.name) for f in fields(tree) if f.init}
        new = {name: map_tree(fn, item) for name, item in old.items()}
        changed = {name: new[name] for name in old if not _same(new[name], old[name])}
        return replace(tree, **changed) if changed else tree
    return fn(tree)


def _same(new: Any, old: Any) -> bool:
    """Whether mapping left a value as it was; containers are compared by their items."""
    if isinstance(old, tuple | list):
        return len(new) == len(old) and all(_same(a, b) for a, b in zip(new, old, strict=True))
    if isinstance(old, Mapping):
        return all(_same(new[key], old[key]) for key in old)
    return new is old


@dataclass(frozen=True)
class _PerCondition:
    """An argument that every condition has its own value of."""

    values: Sequence[Any]


def over(values: Sequence[T]) -> T:
    """For `each`: an argument that differs between the conditions, one value or handle for each.

    To a type checker it is one of the values, as in each single call.
    """
    return cast(T, _PerCondition(values))


def each(executor: Executor, fn: Callable[[*Ts], T], *args: *Ts) -> list[Deferred[T]]:
    """Call `fn(*args)` for every condition; an argument in `over` differs between them.

    Returns one handle per condition. ValueError where `over` is given different numbers of values.
    """
    columns = [arg.values for arg in args if isinstance(arg, _PerCondition)]
    if len({len(column) for column in columns}) != 1:
        sizes = ", ".join(str(len(column)) for column in columns) or "none"
        raise ValueError(f"{stage_of(fn)}: needs one value per condition, got {sizes}")

    def call(m: int) -> Deferred[T]:
        row: Any = [arg.values[m] if isinstance(arg, _PerCondition) else arg for arg in args]
        return executor.call(fn, *row, condition=m)

    return [call(m) for m in range(len(columns[0]))]


def label(stage: str, condition: int) -> str:
    """A call in words."""
    return stage if condition < 0 else f"{stage} of condition {condition}"


def error_note(stage: str, condition: int) -> str:
    """The note that an error of a call carries."""
    return f"in {label(stage, condition)}"


def run_user_code(fn: Callable[..., T], args: tuple[Any, ...]) -> T:
    """`fn(*args)`; user code must not call sys.exit, which is a GPSError."""
    try:
        return fn(*args)
    except SystemExit as stop:
        raise GPSError(f"code of the experiment called sys.exit({stop.code!r})") from stop


class LocalGroup:
    """A group of one."""

    rank, size = 0, 1

    def all_gather(self, array: Array) -> list[Array]:
        """The array itself."""
        return [array]

    def barrier(self) -> None:
        """Nothing to wait for."""


class LocalShared:
    """A shared object in this process."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def ask(self, method: str, *args: Any) -> Any:
        """Call the method."""
        return getattr(self._value, method)(*args)

    def close(self) -> None:
        """Nothing to release."""


class Serial:
    """Runs every call at once in this process, where breakpoints work."""

    workers, reserve, concurrent = 1, 0, False

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._doing = ""

    def prepare(self, fn: Callable[[], Any]) -> None:
        """Nothing: what a call needs is made by the first that needs it."""

    def together(self) -> AbstractContextManager[None]:
        """Nothing to collect: calls run at once."""
        return nullcontext()

    def call(self, fn: Callable[[*Ts], T], *args: *Ts, condition: int = -1) -> Deferred[T]:
        """Run `fn(*args)` now; the handle is the value itself."""
        start, stage = time.perf_counter(), stage_of(fn)
        self._doing = label(stage, condition)
        try:
            value = run_user_code(fn, args)
        except Exception as error:
            error.add_note(error_note(stage, condition))
            raise
        finally:
            self._doing = ""
        spent = time.perf_counter() - start
        self._seconds[stage] = self._seconds.get(stage, 0.0) + spent
        return value

    def gang(self, fn: Callable[[Group, *Ts], T], size: int, *args: *Ts) -> Deferred[T]:
        """Run `fn` in a group of one."""
        return self.call(fn, LocalGroup(), *args)

    def share(self, make: Callable[[*Ts], object], *args: *Ts) -> Shared:
        """The object itself."""
        return LocalShared(make(*args))

    def pick(self, handle: object, name: str) -> Any:
        """The attribute."""
        return getattr(handle, name)

    def wait(self, handles: Sequence[T], timeout: float | None = None) -> list[T]:
        """All of them: every call has finished when it returns."""
        return list(handles)

    def gather(self, tree: Deferred[T]) -> T:
        """The tree as it is: it holds no handles."""
        return tree

    def keep(self, tree: T) -> T:
        """The tree as it is."""
        return tree

    def seconds(self) -> dict[str, float]:
        """Seconds per stage since the last call."""
        out, self._seconds = self._seconds, {}
        return out

    def doing(self) -> str:
        """The call that is running."""
        return self._doing

    def memory(self) -> float:
        """NaN: there are no workers."""
        return math.nan

    def close(self) -> None:
        """Nothing to release."""
