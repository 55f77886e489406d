"""The worker's side of the Dask executor: what runs in the processes of a cluster."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent import futures as threads
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from distributed import Client, WorkerPlugin, get_worker
from distributed.client import FutureCancelledError

from gps import process_memory
from gps.errors import SharedLostError
from gps.execution import map_tree, run_user_code, stage
from gps.threads import pin_torch

log = logging.getLogger(__name__)

CANCELLED = (FutureCancelledError, asyncio.CancelledError, threads.CancelledError)


COMPILING = "gps.compiling"
"""The logger of workers whose messages reach the driver, which kernels they compile; also the topic
under which the scheduler hands them on."""


class Forward(logging.Handler):
    """Hands the messages of a logger on to the scheduler.

    Dask's own `Client.forward_logging` would hand those of workers in the driver's process to the
    logger that they come from, again and again.
    """

    def __init__(self, worker: Any) -> None:
        super().__init__()
        self._worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        """Called by whoever logs."""
        self._worker.log_event(COMPILING, record.getMessage())


class SingleThread(WorkerPlugin):
    """Pins BLAS and torch to one thread in every worker, for equal bytes; sets the numba cache, and
    says to the driver what is compiled."""

    name = "gps-one-thread"

    def __init__(self) -> None:
        self.numba_cache = os.environ.get("NUMBA_CACHE_DIR")
        self.driver = socket.gethostname(), os.getpid()

    def setup(self, worker: Any) -> None:
        """Called by Dask once in every worker process."""
        import numba
        from threadpoolctl import threadpool_limits

        logger = logging.getLogger(COMPILING)
        if self.driver != (socket.gethostname(), os.getpid()):  # else it would hear itself
            logger.setLevel(logging.INFO)
            self.teardown(worker)  # of several workers in one process only one says it
            logger.addHandler(Forward(worker))
        pin_torch()
        threadpool_limits(limits=1)
        if self.numba_cache and not os.environ.get("NUMBA_CACHE_DIR"):
            numba.config.CACHE_DIR = self.numba_cache  # type: ignore[attr-defined]
        if threading.current_thread() is threading.main_thread():
            # Ctrl-C is for the driver, which finishes the iteration with these workers; so is the
            # end of its terminal
            for name in ("SIGINT", "SIGHUP"):
                if hasattr(signal, name):
                    signal.signal(getattr(signal, name), signal.SIG_IGN)

    def teardown(self, worker: Any) -> None:
        """Called by Dask when the worker ends, or another executor registers its plugin."""
        logger = logging.getLogger(COMPILING)
        for handler in [h for h in logger.handlers if isinstance(h, Forward)]:
            logger.removeHandler(handler)


class Prepare(WorkerPlugin):
    """Runs a function once in every worker, before its first task."""

    name = "gps-prepare"

    def __init__(self, fn: Callable[[], Any]) -> None:
        self.fn = fn

    async def setup(self, worker: Any) -> None:
        """In the thread that will run the tasks, since agents belong to a thread."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(worker.executors["default"], prepare, self.fn)


def prepare(fn: Callable[[], Any]) -> None:
    """Call `fn`; a failure is only logged."""
    try:
        fn()
    except Exception as error:  # the task that needs it will raise what is wrong
        log.warning("a worker could not be prepared: %s", error)


@dataclass(frozen=True)
class ArgumentSlot:
    """Stands in a task's arguments for a value that Dask brings."""

    number: int


@dataclass(frozen=True)
class CachedRef:
    """Stands for a value that lies in the memory of the worker, under a key of Dask's."""

    key: Any


@dataclass(frozen=True)
class OpaqueCall:
    """A function and its arguments, into which Dask does not look for keys and tasks."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]

    def __dask_tokenize__(self) -> str:
        """A name of its own; Dask would hash all arrays, and every call has a new key anyhow."""
        return uuid.uuid4().hex


class MissingValue(Exception):
    """A kept value is not where it was left; the driver sends it again."""


@dataclass(frozen=True)
class Result:
    """What a task leaves on its worker."""

    value: Any
    process: str
    """The process that made it."""
    spent: dict[str, float]
    """Seconds of work per stage that this process has done for this executor so far."""
    tasks: int
    """Number of its tasks so far."""
    memory: float
    """Its peak resident memory so far, in bytes; NaN where that is not known."""


_PROCESS = uuid.uuid4().hex
_spent: dict[str, tuple[dict[str, float], int]] = {}  # of each executor
_spent_lock = threading.Lock()


def run_task(
    run: str,
    name: str,
    announce: tuple[str, int] | None,
    call: OpaqueCall,
    *values: Any,
) -> Result:
    """A task on a worker: a function on its arguments, timed.

    announce: topic and number under which the scheduler is notified when the task begins and ends.
    """

    def value_of(item: Any) -> Any:
        if type(item) is ArgumentSlot:
            found = values[item.number]
        elif type(item) is CachedRef:
            try:
                found = get_worker().data[item.key]
            except KeyError:
                raise MissingValue(str(item.key)) from None
        else:
            return item
        return found.value if type(found) is Result else found

    full = map_tree(value_of, call.args)
    notify(announce, begins=True)
    start = time.perf_counter()
    value = run_user_code(call.fn, full)  # by a SystemExit Dask would end the worker, and the next
    seconds = time.perf_counter() - start
    notify(announce, begins=False)
    with _spent_lock:
        stages, tasks = _spent.get(run, ({}, 0))
        stages = stages | {name: stages.get(name, 0.0) + seconds}
        _spent[run] = stages, tasks + 1
    return Result(value, _PROCESS, stages, tasks + 1, process_memory.peak())


def notify(announce: tuple[str, int] | None, *, begins: bool) -> None:
    """Notify the scheduler; wait until the message has left, as the task may end this process."""
    if announce is not None:
        worker, (topic, number) = get_worker(), announce
        worker.log_event(topic, {"worker": worker.address, "begins": number if begins else -1})
        if begins:
            time.sleep(0.05)


def process_id() -> tuple[str, int]:
    """Host and number of this process."""
    return socket.gethostname(), os.getpid()


def kill_process(host: str, pid: int) -> None:
    """End this worker, unless it is a thread of the process named; its nanny starts another."""
    if process_id() != (host, pid):
        os.kill(os.getpid(), signal.SIGKILL)


def running(dask_worker: Any) -> list[Any]:
    """Keys of the tasks that a worker is busy with."""
    return [task.key for task in dask_worker.state.executing]


@stage("seconds")
def report_seconds() -> None:
    """A task that only brings the count of seconds."""


class SharedHost:
    """The actor behind a shared object."""

    def __init__(self, make: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.value = make(*args)

    def ask(self, method: str, args: tuple[Any, ...]) -> Any:
        """Call a method of the object."""
        return getattr(self.value, method)(*args)


class ActorProxy:
    """A shared object in a worker, as the driver and the tasks see it."""

    def __init__(self, actor: Any, timeout: float, client: Client | None = None) -> None:
        self._actor, self._timeout, self._client = actor, timeout, client

    def __reduce__(self) -> Any:
        return ActorProxy, (self._actor, self._timeout)

    def ask(self, method: str, *args: Any) -> Any:
        """Call a method and wait for its answer; SharedLostError when the worker is gone."""
        try:
            with nullcontext() if self._client is None else self._client.as_current():
                return self._actor.ask(method, args).result(timeout=self._timeout)
        except (RuntimeError, ValueError, OSError, TimeoutError, *CANCELLED) as error:
            # Dask raises a RuntimeError or a ValueError for a lost actor, as may its methods
            if isinstance(error, RuntimeError | ValueError) and "Actor" not in str(error):
                raise
            raise SharedLostError(f"the worker with the shared object is gone ({error})") from error

    def close(self) -> None:
        """Release the object, with its last reference."""
        self._actor = None
