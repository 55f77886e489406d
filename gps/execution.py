"""Where stage functions run: the interface that every executor has, and the serial one.

An algorithm hands stage functions to `Executor.call` and gets handles back. It may pass handles on
to later calls, and asks `gather` for the values that it needs itself. The serial executor runs a
call at once, in the calling process; it is the definition that any other must reproduce.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

from gps.types import Record


@dataclass(frozen=True)
class Timed:
    """A stage's result and the seconds that it took where it ran."""

    value: Any
    seconds: float


class Executor(Protocol):
    """Runs stage functions somewhere."""

    def call(self, stage: str, fn: Callable[..., Any], *args: Any, condition: int = -1) -> Any:
        """Start `fn(*args)` and return a handle; `args` may hold handles, also nested ones.

        `condition` is a wish: calls of one condition should run where its data lies.
        """
        ...

    def gather(self, tree: Any) -> Any:
        """Replace every handle in nested tuples, lists, dicts and records by its value."""
        ...

    def seconds(self) -> dict[str, float]:
        """Seconds of work per stage since this method was called last."""
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


def leaf(value: Any) -> Any:
    """The value of a Timed; anything else as it is."""
    return value.value if type(value) is Timed else value


def run_timed(fn: Callable[..., Any], args: tuple[Any, ...]) -> Timed:
    """Call `fn` on the values of `args` and time it."""
    values = map_tree(leaf, args)
    start = time.perf_counter()
    value = fn(*values)
    return Timed(value, time.perf_counter() - start)


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


class Serial:
    """Runs every call at once in this process, where breakpoints work."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def call(self, stage: str, fn: Callable[..., Any], *args: Any, condition: int = -1) -> Any:
        """Run `fn(*args)` now; the handle is the value itself."""
        result = run_timed(fn, args)
        self._seconds[stage] = self._seconds.get(stage, 0.0) + result.seconds
        return result.value

    def gather(self, tree: Any) -> Any:
        """The tree as it is: it holds no handles."""
        return tree

    def seconds(self) -> dict[str, float]:
        """Seconds per stage since the last call."""
        out, self._seconds = self._seconds, {}
        return out

    def close(self) -> None:
        """Nothing to give back."""
