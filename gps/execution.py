"""Where stage functions run: the interface that every executor has, and the serial one.

An algorithm hands stage functions to `Executor.call` and gets handles back. It may pass handles on
to later calls, and asks `gather` for the values that it needs itself. The serial executor runs a
call at once, in the calling process; it is the definition that any other must reproduce.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

from gps.errors import GPSError
from gps.types import Array, Record


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
        """Let the object go."""
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
        """Run `fn` once in every worker, those that join later too: imports, kernels, models."""
        ...

    def together(self) -> AbstractContextManager[None]:
        """A block whose calls are sent in one message: at its end, or when something waits."""
        ...

    def call(self, stage: str, fn: Callable[..., Any], *args: Any, condition: int = -1) -> Any:
        """Start `fn(*args)` and return a handle; `args` may hold handles, also nested ones.

        Calls of one condition run on one worker, where their data lies; a call without a condition
        runs on any. `fn` must be pure: a call whose result was lost is repeated.
        """
        ...

    def gang(self, stage: str, fn: Callable[..., Any], size: int, *args: Any) -> Any:
        """Start `fn(group, *args)` in at most `size` processes at once, which can talk to each
        other through `group`; returns a handle of what the first of them (rank 0) returns.

        `fn` must be pure, and its result must not depend on how many processes there were: when one
        is lost, all are started again.
        """
        ...

    def share(self, make: Callable[..., Any], *args: Any) -> Shared:
        """Make `make(*args)` in one of the workers, for all tasks to talk to."""
        ...

    def pick(self, handle: Any, name: str) -> Any:
        """A handle of one attribute of a result, for `gather` only."""
        ...

    def wait(self, handles: Sequence[Any], timeout: float | None = None) -> list[Any]:
        """Wait until one handle at least has its result; returns all that have, in their order.

        Also returns, perhaps with none, after `timeout` seconds. Raises nothing for a call that
        failed: it counts as finished, and `gather` raises.
        """
        ...

    def gather(self, tree: Any) -> Any:
        """Replace every handle in nested tuples, lists, dicts and records by its value.

        Raises what a call has raised, with a note that says in which stage and condition.
        """
        ...

    def keep(self, tree: Any) -> Any:
        """Forget how the gathered handles in `tree` were made; returns the tree.

        Later calls may use them as before. If a worker is lost, the calls since the last `keep` are
        repeated, and no earlier one.
        """
        ...

    def seconds(self) -> dict[str, float]:
        """Seconds of work per stage since this method was called last."""
        ...

    def doing(self) -> str:
        """What is being worked on now, in words; any thread may ask. Empty when nothing is."""
        ...

    def memory(self) -> float:
        """The most memory that any one worker has held so far, in bytes, as far as the results that
        came back tell; NaN without workers."""
        ...

    def close(self) -> None:
        """Give back processes and connections that this executor started itself."""
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


def each(
    executor: Executor,
    stage: str,
    fn: Callable[..., Any],
    columns: Sequence[Sequence[Any]],
    *same: Any,
) -> list[Any]:
    """Call `fn(*row, *same)` for every condition; `columns` hold one entry per condition."""
    rows = zip(*columns, strict=True)
    return [executor.call(stage, fn, *row, *same, condition=m) for m, row in enumerate(rows)]


def where(stage: str, condition: int) -> str:
    """The note that an error of a call carries."""
    return f"in {stage}" if condition < 0 else f"in {stage} of condition {condition}"


def run_or_say(fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """`fn(*args)`; GPSError if it wants to end the process, which is not its to end."""
    try:
        return fn(*args)
    except SystemExit as stop:
        raise GPSError(f"code of the experiment called sys.exit({stop.code!r})") from stop


class Alone:
    """A group of one."""

    rank, size = 0, 1

    def all_gather(self, array: Array) -> list[Array]:
        """The array itself."""
        return [array]

    def barrier(self) -> None:
        """Nobody to wait for."""


class Here:
    """A shared object in this process."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def ask(self, method: str, *args: Any) -> Any:
        """Call the method."""
        return getattr(self._value, method)(*args)

    def close(self) -> None:
        """Nothing to give back."""


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

    def call(self, stage: str, fn: Callable[..., Any], *args: Any, condition: int = -1) -> Any:
        """Run `fn(*args)` now; the handle is the value itself."""
        start = time.perf_counter()
        self._doing = stage if condition < 0 else f"{stage} of condition {condition}"
        try:
            value = run_or_say(fn, args)
        except Exception as error:
            error.add_note(where(stage, condition))
            raise
        finally:
            self._doing = ""
        spent = time.perf_counter() - start
        self._seconds[stage] = self._seconds.get(stage, 0.0) + spent
        return value

    def gang(self, stage: str, fn: Callable[..., Any], size: int, *args: Any) -> Any:
        """Run `fn` in a group of one."""
        return self.call(stage, fn, Alone(), *args)

    def share(self, make: Callable[..., Any], *args: Any) -> Shared:
        """The object itself."""
        return Here(make(*args))

    def pick(self, handle: Any, name: str) -> Any:
        """The attribute."""
        return getattr(handle, name)

    def wait(self, handles: Sequence[Any], timeout: float | None = None) -> list[Any]:
        """All of them: every call is over when it returns."""
        return list(handles)

    def gather(self, tree: Any) -> Any:
        """The tree as it is: it holds no handles."""
        return tree

    def keep(self, tree: Any) -> Any:
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
        """Nothing to give back."""
