"""An executor with a clock of its own: calls run at once, and count as finished later."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from gps.execution import error_note, map_tree, stage_of
from gps.pipeline.asynchronous import Sampled


class Handle:
    """A call's value or error, and when it is there."""

    def __init__(self, value: Any, error: Exception | None, at: float) -> None:
        self.value, self.error, self.at = value, error, at


class Virtual:
    """Worker m serves condition m (modulo their number), one more all other calls.

    seconds_of(stage, condition): how long a call takes. Asking for a value that is not there yet
    is a mistake of the caller: it would hold up whatever else is ready.
    """

    reserve, concurrent = 1, True

    def __init__(self, workers: int, seconds_of: Callable[[str, int], float]) -> None:
        self.workers, self.seconds_of = workers + 1, seconds_of
        self.now = 0.0
        self.free: dict[int, float] = {}
        self.log: list[tuple[str, int, float, float]] = []
        self.kept = 0

    def clock(self) -> float:
        return self.now

    def prepare(self, fn):
        pass

    def together(self):
        return nullcontext()

    def call(self, fn, *args, condition=-1):
        stage, waits, errors = stage_of(fn), [self.now], []

        def value_of(item):
            if isinstance(item, Handle):
                waits.append(item.at)
                errors.extend([item.error] if item.error else [])
                return item.value
            return item

        values = map_tree(value_of, args)
        seconds = self.seconds_of(stage, condition)
        worker = -1 if condition < 0 else condition % (self.workers - 1)
        begin = max(*waits, self.free.get(worker, 0.0))
        value = None
        try:
            if errors:
                raise errors[0]
            value = fn(*values)
            if isinstance(value, Sampled):
                value = replace(value, seconds=seconds)
        except Exception as error:
            if not errors:
                error.add_note(error_note(stage, condition))
            errors.append(error)
        self.free[worker] = begin + seconds
        self.log.append((stage, condition, begin, begin + seconds))
        return Handle(value, errors[0] if errors else None, begin + seconds)

    def wait(self, handles, timeout=None):
        first = min(h.at for h in handles)
        if timeout is not None:
            first = min(first, self.now + timeout)
        self.now = max(self.now, first)
        return [h for h in handles if h.at <= self.now]

    def gather(self, tree):
        def value_of(item):
            if not isinstance(item, Handle):
                return item
            assert item.at <= self.now, "would have waited"
            if item.error:
                raise item.error
            return item.value

        return map_tree(value_of, tree)

    def keep(self, tree):
        self.kept += 1
        return tree

    def doing(self):
        return ""

    def seconds(self):
        return {}

    def memory(self):
        return float("nan")

    def close(self):
        raise AssertionError("an executor that was handed in is not closed")
