"""Executors: `Serial` in the calling process, `Dask` on a local or a running cluster.

Both give the same bytes. Every call is a Dask task named after its stage, so Dask's dashboard shows
the pipeline. All calls of a condition run on one worker, its home, and their results stay there
until they are gathered; what comes from another worker is moved by Dask.

Dask itself would repeat lost work from the beginning of the run, and move tasks to where a worker
is idle. So the executor pins every task, and keeps the lineage of each result itself, back to the
last `keep`: from there on it has the values, and when a worker is lost, it resubmits what was lost
to the others.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent import futures as threads
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import dask
import dask.utils
from distributed import Client, Future, KilledWorker, LocalCluster
from distributed.comm.core import connect
from distributed.security import Security

from gps.errors import ClusterError, ConfigError, GPSError, SharedLostError, choices
from gps.execution import (
    Deferred,
    Executor,
    Group,
    LocalGroup,
    Serial,
    Shared,
    T,
    Ts,
    error_note,
    label,
    map_tree,
    stage_of,
)
from gps.fields import Count, Range, Whole, checked
from gps.parallel.group import fresh_address, run_member
from gps.parallel.worker import (
    CANCELLED,
    COMPILING,
    ActorProxy,
    ArgumentSlot,
    CachedRef,
    MissingValue,
    OpaqueCall,
    Prepare,
    Result,
    SharedHost,
    SingleThread,
    kill_process,
    prepare,
    process_id,
    report_seconds,
    run_task,
    running,
)
from gps.threads import single_thread_environment

log = logging.getLogger(__name__)

_INLINE = 2**18  # bytes; larger values are sent to a worker once, not with every task
_POLL = 0.5  # seconds between checks of the workers while no result arrives
_MOMENT = 0.03  # seconds between transfers of what is finished
_ATTEMPTS = 3  # workers that one task may take down before it is held to be the cause
_LOSSES = 20  # losses in a row, of whatever cause
# Dask makes malloc return memory to the system at once; records of megabytes then cost page faults
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**30)}


class Handle:
    """A call, and where its result is."""

    def __init__(
        self,
        number: int,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        condition: int = -1,
        gang: int = 0,
    ) -> None:
        self.number, self.condition, self.gang = number, condition, gang
        self.stage = stage_of(fn)
        self.fn: Callable[..., Any] | None = fn
        self.args = args
        self.needs: tuple[Handle, ...] = tuple(_handles(args))
        self.futures: list[Future] = []  # one, or one for each member of a gang; none until sent
        self.key: Any = None
        """Dask's key of a call that is not sent yet."""
        self.workers: list[str] = []
        self.value: Any = None
        self.gathered = False
        self.kept = False
        self.present = True
        """Whether a kept value is where it was made, as far as is known."""
        self.worker_losses = 0
        self.attempts = 1

    @property
    def future(self) -> Future:
        """Of the result."""
        return self.futures[0]

    @property
    def label(self) -> str:
        """In words."""
        return label(self.stage, self.condition)

    def state(self) -> str:
        """pending, finished, error or lost."""
        if self.gathered:
            return "finished"
        if not self.futures:
            return "pending"
        states = [future.status for future in self.futures]
        if "error" in states:
            return "error"
        if any(state in ("cancelled", "lost") for state in states):
            return "lost"
        return "finished" if states[0] == "finished" else "pending"

    def errors(self) -> list[tuple[Future, BaseException]]:
        """What the call, or the members of a gang, have raised."""
        return [(f, f.exception()) for f in self.futures if f.status == "error"]

    def is_loss(self, error: BaseException) -> bool:
        """Whether an error says that something was lost, and not that the call is wrong."""
        if self.gang and type(error) is ClusterError:  # a member that misses another
            return True
        return isinstance(error, (MissingValue, KilledWorker, *CANCELLED))

    def lost(self) -> bool:
        """Whether the call must be sent again."""
        state = self.state()
        if state == "error":
            # an error caused by a lost call has no meaning of its own
            inherited = any(not h.gathered and h.lost() for h in self.needs)
            return inherited or all(self.is_loss(error) for _, error in self.errors())
        return state == "lost"

    def __repr__(self) -> str:
        return f"<{self.label} {self.number}: {self.state() if self.futures else 'new'}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a handle cannot be sent; hand it to Executor.call in tuples, lists, dicts and records"
        )


@dataclass(frozen=True)
class AttributeHandle:
    """One attribute of a call's result."""

    handle: Handle
    name: str


def _handles(tree: Any) -> list[Handle]:
    found: dict[int, Handle] = {}

    def collect(item: Any) -> Any:
        if type(item) is AttributeHandle:
            item = item.handle
        if type(item) is Handle:
            found[item.number] = item
        return item

    map_tree(collect, tree)
    return list(found.values())


def _size(value: Any) -> int:
    """Bytes of the arrays in a value."""
    total = 0

    def count(item: Any) -> Any:
        nonlocal total
        total += int(getattr(item, "nbytes", 64))
        return item

    map_tree(count, value)
    return total


class Dask:
    """Runs stages on a Dask cluster.

    client: a connected `distributed.Client`; its cluster is left running on `close`.
    scheduler: the address of a running cluster to join; for tls:// the certificates come from
    Dask's own configuration. Otherwise a LocalCluster of `workers` single-threaded processes
    (default: one per core) is started, and closed by `close`.
    timeout: seconds to wait for a scheduler, also for one that is lost, and for its first worker;
    None takes Dask's setting distributed.comm.timeouts.connect, 30 s.
    task_timeout: seconds after which a worker that finishes nothing is restarted.
    reserve: workers that get no condition, for the calls that have none; as far as there are more.
    """

    def __init__(
        self,
        client: Client | None = None,
        *,
        workers: int | None = None,
        scheduler: str | None = None,
        timeout: float | None = None,
        task_timeout: float = 600.0,
        reserve: int = 0,
    ) -> None:
        seconds = Annotated[float, Range(above=0, unit="seconds", finite=False)]
        task_timeout = checked(task_timeout, seconds, "Dask.task_timeout")
        self._reserve: int = checked(reserve, Whole, "Dask.reserve")
        if client is not None and not (isinstance(client, Client) and client.status == "running"):
            raise ConfigError(f"Dask.client must be a connected distributed.Client, got {client!r}")
        if workers is not None:
            workers = checked(workers, Count, "Dask.workers")
        if scheduler is not None and not isinstance(scheduler, str):
            raise ConfigError(f"--scheduler must be an address, got {scheduler!r}")
        if sum(given is not None for given in (client, workers, scheduler)) > 1:
            raise ConfigError(
                "give one of --workers, --scheduler and a client: a cluster that is there has its "
                "own workers"
            )
        self._cluster: LocalCluster | None = None
        self._wanted = 0
        self._own_client = client is None
        if timeout is None:
            setting = dask.config.get("distributed.comm.timeouts.connect", 30.0)
            timeout = float(dask.utils.parse_timedelta(setting, "s"))
        self._timeout, self._task_timeout = timeout, task_timeout
        if client is not None:
            self.client = client
        elif scheduler is not None:
            self.client = _join(scheduler, timeout)
        else:
            self._wanted = workers or len(os.sched_getaffinity(0))
            with dask.config.set({"distributed.nanny.pre-spawn-environ": _spawn_environment()}):
                self._cluster = LocalCluster(
                    n_workers=self._wanted,
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    env=single_thread_environment(),
                    silence_logs=logging.CRITICAL,  # what a task raises comes here
                    memory_limit=0,
                )
            self.client = Client(self._cluster, set_as_default=False, direct_to_workers=True)
        self._plugins: dict[str, SingleThread | Prepare] = {}
        self._register(SingleThread())
        self.client.subscribe_topic(COMPILING, _announce)
        self._address = str(self.client.scheduler_info(n_workers=0)["address"])
        self._topic = f"gps-{uuid.uuid4().hex}"
        self._run = uuid.uuid4().hex[:8]  # a key that was used before would return its old result
        self._count = itertools.count()
        # calls whose result is not here, by their numbers; those that nobody waits for vanish
        self._open: weakref.WeakValueDictionary[int, Handle] = weakref.WeakValueDictionary()
        self._homes: dict[int, str] = {}
        self._workers: list[str] = []
        self._banned: set[str] = set()
        self._joined = False
        self._losses = 0
        self._stopped = False
        self._looked = 0.0
        self._turn = itertools.count()
        self._together = False
        self._outbox: dict[Any, tuple[Handle, str, tuple[Any, ...]]] = {}
        self._busy: dict[str, tuple[frozenset[int], float]] = {}
        self._copies: dict[int, dict[str, Future]] = {}
        self._submitted: dict[str, int] = {}  # tasks per worker address
        self._reported: dict[str, Result] = {}  # latest per process
        self._process_of: dict[str, str] = {}
        self._counted: dict[str, float] = {}
        self._look()

    @property
    def workers(self) -> int:
        """Number of workers."""
        return max(1, len(self._workers))

    concurrent = True

    @contextmanager
    def together(self) -> Iterator[None]:
        """Send the calls inside as one graph: a third of what single ones cost the scheduler."""
        outer, self._together = self._together, True
        try:
            yield
        finally:
            self._together = outer
            if not outer:
                self._flush()

    def _flush(self) -> None:
        """Send the calls that were collected."""
        outbox, self._outbox = self._outbox, {}
        if not outbox:
            return
        # the first policy travels with its task, however large it is
        quiet = dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TB"})
        if len(outbox) == 1:
            ((key, (handle, worker, task)),) = outbox.items()
            with quiet:
                handle.futures = [self.client.submit(*task, key=key, workers=[worker])]
            return
        graph = {key: task for key, (_, _, task) in outbox.items()}
        places = {key: [worker] for key, (_, worker, _) in outbox.items()}
        place = dask.annotate(  # type: ignore[attr-defined]
            workers=places.get, allow_other_workers=False
        )
        with quiet, place:
            futures = self.client.get(graph, list(graph), sync=False)
        for (handle, _, _), future in zip(outbox.values(), futures, strict=True):
            handle.futures = [future]

    @property
    def reserve(self) -> int:
        """Workers that get no condition."""
        return min(self._reserve, self.workers - 1)

    @property
    def dashboard(self) -> str:
        """Address of Dask's own dashboard."""
        return str(self.client.dashboard_link)

    # workers

    def _look(self) -> set[str]:
        """The workers that are there now; waits while there are none. ClusterError without a
        scheduler."""
        waiting = 0.0
        self._looked = time.monotonic()
        while True:
            self._require_scheduler()
            try:
                found = set(self._ask_scheduler()) - self._banned
            except (OSError, TimeoutError):
                time.sleep(0.1)
                continue
            if self._cluster is not None and len(found) < self._wanted:
                # Dask gives up the nanny of a worker that dies again 15 s later, while it starts
                self._cluster.scale(self._wanted)
            if found:
                break
            if waiting == 0.0:
                log.warning("no worker is left; waiting for one to join %s", self._address)
                waiting = time.monotonic()
            time.sleep(0.2)
        if waiting:
            log.warning("%d worker(s) joined after %.0f s", len(found), time.monotonic() - waiting)
        kept = [w for w in self._workers if w in found]
        new = sorted(found - set(kept))
        if self._workers and (new or len(kept) < len(self._workers)):
            log.info("workers: %d gone, %d new", len(self._workers) - len(kept), len(new))
        self._joined = self._joined or bool(new)
        self._workers = kept + new
        self._submitted = {w: n for w, n in self._submitted.items() if w in found}
        return found

    def _ask_scheduler(self) -> Iterable[str]:
        """Addresses of the workers, asked for now."""
        scheduler: Any = self.client.scheduler

        async def ask() -> Any:
            return await scheduler.ncores()

        future = self._start(ask())
        try:
            return list(future.result(timeout=self._timeout))
        except threads.TimeoutError:
            future.cancel()
            raise TimeoutError from None

    def _start(self, coroutine: Any) -> threads.Future[Any]:
        """Run a coroutine in the client's thread, without waiting for it."""
        loop: Any = self.client.loop
        return asyncio.run_coroutine_threadsafe(coroutine, loop.asyncio_loop)

    def _require_scheduler(self) -> None:
        """Wait while the client tries to connect again; ClusterError when it has given up."""
        warned = False
        while self.client.status == "connecting":
            if not warned:
                log.warning("the scheduler %s does not answer; trying again", self._address)
                warned = True
            time.sleep(0.1)
        if self.client.status != "running":
            raise ClusterError(
                f"the Dask scheduler {self._address} is gone; iterations that were stored are "
                "whole, and a run can be resumed from them"
            )
        if warned:
            for plugin in self._plugins.values():  # another scheduler does not know them
                self._register(plugin)

    def _candidates(self, condition: int) -> list[str]:
        spare = self.reserve
        if not spare:
            return self._workers
        return self._workers[spare:] if condition >= 0 else self._workers[:spare]

    def _home(self, condition: int) -> str:
        """The worker of a condition; the least loaded one the first time."""
        candidates = self._candidates(condition)
        if condition < 0:
            return candidates[next(self._turn) % len(candidates)]
        home = self._homes.get(condition)
        if home not in candidates:
            load = self._load(candidates)
            home = min(candidates, key=lambda w: load[w])
            self._homes[condition] = home
        return home

    def _load(self, candidates: Sequence[str]) -> dict[str, int]:
        """How many conditions live on each worker."""
        load = dict.fromkeys(candidates, 0)
        for home in self._homes.values():
            if home in load:
                load[home] += 1
        return load

    def _spread(self, conditions: Iterable[int]) -> None:
        """Give some conditions new homes where workers have joined."""
        candidates = self._candidates(0)
        load = self._load(candidates)
        for m in conditions:
            home = self._homes.get(m)
            least = min(candidates, key=lambda w: load[w])
            if home in load and load[home] > load[least] + 1:
                load[home] -= 1
                load[least] += 1
                self._homes[m] = least
        self._joined = max(load.values()) > min(load.values()) + 1

    def prepare(self, fn: Callable[[], Any]) -> None:
        """Run `fn` in every worker, first in one per host: it may compile what all will load."""
        hosts: dict[str, str] = {}
        for address in self._workers:
            hosts.setdefault(address.rpartition(":")[0], address)
        first = [Handle(next(self._count), prepare, (fn,)) for _ in hosts]
        for handle, address in zip(first, hosts.values(), strict=True):
            self._post(handle, address)
        self.gather(first)
        self._register(Prepare(fn))

    def _register(self, plugin: SingleThread | Prepare) -> None:
        self._plugins[plugin.name] = plugin
        for wait in (0.2, 1.0, 5.0, None):
            try:
                self.client.register_plugin(plugin)
                return
            except OSError:  # a worker is lost in the middle; those that come later will have it
                if wait is None:
                    raise
                time.sleep(wait)

    # calls

    def call(self, fn: Callable[[*Ts], T], *args: *Ts, condition: int = -1) -> Deferred[T]:
        """Submit `fn(*args)`; returns a Handle."""
        return self._submitted_handle(Handle(next(self._count), fn, args, condition))

    def gang(self, fn: Callable[[Group, *Ts], T], size: int, *args: *Ts) -> Deferred[T]:
        """Start `fn(group, *args)` on at most `size` workers at once, joined by gloo."""
        return self._submitted_handle(Handle(next(self._count), fn, args, gang=size))

    def pick(self, handle: Any, name: str) -> Any:
        """A handle of one attribute of a result, for `gather` only."""
        return AttributeHandle(handle, name)

    def _submitted_handle(self, handle: Handle) -> Any:
        self._submit(handle)
        return handle

    def _post(self, handle: Handle, worker: str) -> None:
        """Have a call sent to a worker with the next message."""
        assert handle.fn is not None
        handle.workers, handle.futures = [worker], []
        args = (LocalGroup(), *handle.args) if handle.gang else handle.args
        handle.key, task = self._task(handle, worker, handle.fn, args)
        self._outbox[handle.key] = handle, worker, task
        self._open[handle.number] = handle

    def _submit(self, handle: Handle) -> None:
        assert handle.fn is not None
        size = min(handle.gang, len(self._workers))
        if size <= 1:
            self._post(handle, self._home(handle.condition))
            if not self._together:
                self._flush()
            return
        self._flush()
        # idle workers first: a member that waits for a long rollout holds up all others
        chosen = self._candidates(-1) + self._candidates(0)
        handle.workers = list(dict.fromkeys(chosen))[:size]
        address = self._fresh_address(handle.workers[0])
        limit = self._task_timeout
        handle.futures = []
        for rank, worker in enumerate(handle.workers):
            args = (handle.fn, rank, size, address, limit, handle.args)
            key, task = self._task(handle, worker, run_member, args, rank)
            handle.futures.append(
                self.client.submit(*task, key=key, workers=[worker], allow_other_workers=False)
            )
        self._open[handle.number] = handle

    def _fresh_address(self, worker: str) -> str:
        host = worker.rpartition("://")[2].rpartition(":")[0] or "127.0.0.1"  # inproc has no port
        found = self.client.run(fresh_address, host, workers=[worker], on_error="ignore")
        return next(iter(found.values()), "127.0.0.1:0")

    def _task(
        self,
        handle: Handle,
        worker: str,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        rank: int = 0,
    ) -> tuple[Any, tuple[Any, ...]]:
        """Key and task, in Dask's form, of a call on a worker."""
        values: list[Any] = []
        places: dict[int, Any] = {}

        def place(item: Any) -> Any:
            if type(item) is not Handle:
                return item
            if item.number not in places:
                places[item.number] = self._place(item, worker, values)
            return places[item.number]

        call = OpaqueCall(fn, map_tree(place, args))
        name = f"{handle.label.replace(' of condition ', '-c')}-{self._run}-{handle.number}"
        self._submitted[worker] = self._submitted.get(worker, 0) + 1
        announce = (self._topic, handle.number) if handle.attempts > 1 else None
        task = (run_task, self._run, handle.stage, announce, call, *values)
        return (handle.stage, f"{name}-{rank}-{next(self._count)}"), task

    def _place(self, item: Handle, worker: str, values: list[Any]) -> Any:
        """What stands for a handle in the arguments of a task on `worker`."""
        here = item.workers[0] == worker and item.present
        if item.kept:
            return CachedRef(item.future.key) if here else self._copy(item, worker, values)
        if item.gathered and item.workers[0] not in self._workers:
            return self._copy(item, worker, values)
        values.append(item.future if item.futures else item.key)
        return ArgumentSlot(len(values) - 1)

    def _copy(self, item: Handle, worker: str, values: list[Any]) -> Any:
        """The value itself when it is small, else a copy on `worker`, made once."""
        if _size(item.value) <= _INLINE:
            return item.value
        copies = self._copies.setdefault(item.number, {})
        if not copies:
            weakref.finalize(item, self._copies.pop, item.number, None)
        if worker not in copies or copies[worker].status != "finished":
            try:
                (copies[worker],) = self.client.scatter(
                    [item.value], workers=[worker], hash=False, timeout=2
                )
            except (OSError, TimeoutError, KeyError, ValueError):  # that worker has just gone
                self._look()
                return item.value
        values.append(copies[worker])
        return ArgumentSlot(len(values) - 1)

    # shared objects

    def share(self, make: Callable[[*Ts], object], *args: *Ts) -> Shared:
        """An actor on one of the workers."""
        self._look()  # a task for a worker that has just gone would wait for it in vain
        try:
            with self.client.as_current():  # without a client the actor would let go of itself
                actor = self.client.submit(
                    SharedHost,
                    make,
                    args,
                    actor=True,
                    workers=[self._home(-1)],
                    key=f"shared-{self._run}-{next(self._count)}",
                ).result(timeout=self._timeout)
        except (OSError, TimeoutError, KilledWorker, *CANCELLED) as error:
            raise SharedLostError(f"the worker of a shared object is gone ({error})") from error
        return ActorProxy(actor, self._timeout, self.client)

    # results

    def wait(self, handles: Sequence[T], timeout: float | None = None) -> list[T]:
        """The handles whose result is there, one at least unless `timeout` seconds pass first."""
        deadline = None if timeout is None else time.monotonic() + timeout
        calls = cast(Sequence[Any], handles)
        self._flush()
        while True:
            if any(type(h) is Handle and h.lost() for h in calls):
                self._recover()
            done = [h for h in calls if type(h) is not Handle or h.state() in ("finished", "error")]
            if done or not calls:
                return done
            step = _POLL if deadline is None else min(_POLL, deadline - time.monotonic())
            if step <= 0:
                return []
            pending = [f for h in calls for f in h.futures if f.status == "pending"]
            if not self._wait_for(pending, step, any_of=True):
                self._check()

    def _wait_for(self, futures: Sequence[Future], timeout: float, *, any_of: bool) -> bool:
        """Wait until all of `futures`, or any, are over; whether that was before `timeout` seconds.

        Dask's own wait raises at a time-out, and its exception keeps the frames here, and with them
        all results, alive until the garbage collector runs.
        """
        begin = time.monotonic()
        while True:
            pending = sum(future.status == "pending" for future in futures)
            if not pending or (any_of and pending < len(futures)):
                return True
            waited = time.monotonic() - begin
            if waited >= timeout:
                return False
            # polling: Dask's callbacks hold references to results that are no longer awaited
            time.sleep(min(0.02, max(0.001, waited / 10, 1e-5 * len(futures))))

    def gather(self, tree: Deferred[T]) -> T:
        """Bring the values of all handles in `tree` here; what is finished while others compute."""
        self._flush()
        todo = [h for h in _handles(tree) if not h.gathered]
        while todo:
            self._settle(todo)
            for handle in todo:
                if handle.state() == "error" and not handle.lost():
                    self._raise(handle)
            self._fetch([h for h in todo if h.state() == "finished"])
            todo = [h for h in todo if not h.gathered]

        def value_of(item: Any) -> Any:
            if type(item) is AttributeHandle:
                return getattr(item.handle.value, item.name)
            return item.value if type(item) is Handle else item

        values: T = map_tree(value_of, tree)
        return values

    def _settle(self, handles: Sequence[Handle]) -> None:
        """Wait until no call is pending, at most for a moment; resubmit what is lost."""
        if any(h.lost() for h in handles):
            self._recover()
        pending = [f for h in handles for f in h.futures if f.status == "pending"]
        over = self._wait_for(pending, _MOMENT, any_of=False)
        if not over and time.monotonic() - self._looked > _POLL:
            self._check()

    def _fetch(self, handles: Sequence[Handle]) -> None:
        """Bring results here in one transfer; leaves those alone whose worker is lost meanwhile."""
        if not handles:
            return
        futures = [h.future for h in handles]

        async def get() -> Any:
            return await self.client.gather(futures, asynchronous=True)

        task, begin = self._start(get()), time.monotonic()
        while True:
            try:
                results = task.result(timeout=_POLL)
                break
            except threads.TimeoutError:
                if task.done():  # the transfer's own
                    return
                self._check()  # a worker that hangs in its task does not send either
                if time.monotonic() - begin > self._task_timeout:
                    begin = time.monotonic()
                    for worker in {h.workers[0] for h in handles}:
                        if self._running_on(worker) is None:
                            self._restart(worker, None)
                if any(f is not h.future for f, h in zip(futures, handles, strict=True)):
                    task.cancel()  # something was lost, and is on its way again
                    return
            except (OSError, KilledWorker, *CANCELLED):
                self._check()
                return
        for handle, result in zip(handles, results, strict=True):
            handle.value, handle.gathered = result.value, True
            handle.fn, handle.args, handle.needs = None, (), ()  # it is not run again
            self._open.pop(handle.number, None)
            self._process_of[handle.workers[0]] = result.process
            known = self._reported.get(result.process)
            if known is None or known.tasks < result.tasks:
                self._reported[result.process] = Result(
                    None, result.process, result.spent, result.tasks, result.memory
                )

    def keep(self, tree: T) -> T:
        """Cut the lineage of gathered handles; later calls start from their values."""
        handles = _handles(tree)
        self.gather(handles)
        for handle in handles:
            handle.kept = True
            self._losses = 0
            # results without a condition are used everywhere, and Dask thins out copies as it likes
            handle.present = handle.condition >= 0
        if time.monotonic() - self._looked > _POLL:
            self._look()
        if self._joined:
            self._spread({h.condition for h in handles if h.condition >= 0})
        return tree

    def _raise(self, handle: Handle) -> None:
        """Raise what the call has raised, or the call whose result it needed."""
        root = handle
        while bad := [h for h in root.needs if not h.gathered and h.state() == "error"]:
            root = bad[0]
        errors = root.errors()
        future = next((f for f, error in errors if not root.is_loss(error)), errors[0][0])
        try:
            future.result()
        except Exception as error:
            error.add_note(error_note(root.stage, root.condition))
            raise

    # faults

    def _check(self) -> None:
        """Look for workers that are gone, or finish nothing any more."""
        found = self._look()
        if any(not set(h.workers) <= found for h in list(self._open.values())):
            self._recover()
            return
        now = time.monotonic()
        busy: dict[str, set[int]] = {}
        for handle in list(self._open.values()):
            ready = all(h.state() == "finished" for h in handle.needs)
            if ready and handle.state() == "pending":
                for worker in handle.workers:
                    busy.setdefault(worker, set()).add(handle.number)
        before, self._busy = self._busy, {}
        for worker, numbers in busy.items():
            known, since = before.get(worker, (frozenset(), now))
            self._busy[worker] = (known, since) if known == numbers else (frozenset(numbers), now)
            if now - self._busy[worker][1] > self._task_timeout:
                keys = self._running_on(worker) or []
                named = [self._open.get(n) for n in sorted(numbers)]
                busy_with = [h for h in named if h and any(f.key in keys for f in h.futures)]
                self._restart(worker, (busy_with or named)[0])
                return

    def _running_on(self, worker: str) -> list[Any] | None:
        """Keys of the tasks that a worker is busy with; None if it does not answer any more."""

        async def ask() -> Any:
            return await self.client.run(running, workers=[worker], asynchronous=True)

        try:
            keys: list[Any] = self._start(ask()).result(timeout=3.0)[worker]
        except (OSError, threads.TimeoutError, KeyError, ValueError, *CANCELLED):
            return None
        return keys

    def _restart(self, worker: str, handle: Handle | None) -> None:
        what = "its task" if handle is None else handle.label
        log.warning(
            "%s has not finished within %g s: restarting worker %s",
            what, self._task_timeout, worker,
        )  # fmt: skip
        self._stopped = True
        self._stop(worker)
        self._busy = {}  # that took seconds
        if handle is not None:
            self._count_worker_loss(handle)
        self._recover({worker})

    def _stop(self, worker: str) -> None:
        """End a worker that hangs: by itself if it still listens, else by its nanny."""

        async def end() -> None:
            with suppress(OSError, TimeoutError, ValueError):
                await self.client.run(
                    kill_process, *process_id(), workers=[worker], asynchronous=True
                )

        self._start(end())
        deadline = time.monotonic() + 3.0
        while time.monotonic() < deadline:
            time.sleep(0.1)
            if worker not in self._look():
                return

        def restart() -> None:
            try:  # a nanny that is stopped in the middle starts nothing any more: no short time-out
                self.client.restart_workers([worker], timeout=300.0, raise_for_error=False)
            except (ValueError, OSError, TimeoutError, KeyError) as error:
                log.warning("worker %s cannot be restarted (%s)", worker, error)

        threading.Thread(target=restart, daemon=True).start()
        self._banned.add(worker)

    def _recover(self, dead: Set[str] = frozenset()) -> None:
        """Submit again what was lost, also with the workers `dead`, and what waits for it."""
        found = self._look() - dead
        again: list[Handle] = []
        chosen: set[int] = set()
        gone: set[str] = set()
        for handle in list(self._open.values()):
            left = {w for w in handle.workers if w not in found}
            if not (left or handle.lost() or any(h.number in chosen for h in handle.needs)):
                continue
            if handle.state() == "error":
                for need in handle.needs:
                    need.present = False
            gone |= left
            chosen.add(handle.number)
            again.append(handle)
        if not again:
            return
        self._attribute_losses(gone, dead)
        log.warning(
            "lost: %s; running it again on %d worker(s)",
            ", ".join(h.label for h in again[:4]) + (", ..." if len(again) > 4 else ""),
            len(self._workers),
        )
        with self.together():
            for handle in again:
                handle.attempts += 1
                self._submit(handle)
        self._flush()  # a block around this one would go on collecting

    def _count_worker_loss(self, handle: Handle) -> None:
        """Count the workers that a call takes down with it; ClusterError when it is too many."""
        handle.worker_losses += 1
        if handle.worker_losses >= _ATTEMPTS:
            reason = "its worker died each time"
            if self._stopped:
                reason += f", or was ended after {self._task_timeout:g} s"
            raise ClusterError(f"{handle.label}: given up after {_ATTEMPTS} attempts; {reason}")

    def _attribute_losses(self, gone: Set[str], stopped: Set[str]) -> None:
        """Name the calls that the workers `gone` were busy with, but those `stopped` on purpose.

        A call that is repeated announces its begin and end, so that the right one is named.
        """
        self._losses += 1
        last: dict[str, int] = {}
        for _, event in self.client.get_events(self._topic):
            last[event["worker"]] = event["begins"]
        for worker in gone - stopped:
            handle = self._open.get(last.get(worker, -1))
            if handle is not None:
                self._count_worker_loss(handle)
        if self._losses > _LOSSES:
            raise ClusterError(f"given up: workers were lost {_LOSSES} times without any progress")

    # times

    def seconds(self) -> dict[str, float]:
        """Seconds of work per stage since the last call, summed over workers."""
        self._flush()
        behind = [
            worker
            for worker, tasks in self._submitted.items()
            if worker in self._workers and tasks > self._known(worker)
        ]
        if behind:
            asked = [Handle(next(self._count), report_seconds, ()) for _ in behind]
            for handle, worker in zip(asked, behind, strict=True):
                self._post(handle, worker)
            self._flush()
            self._fetch(asked)
        totals: dict[str, float] = {}
        for result in self._reported.values():
            for stage, spent in result.spent.items():
                if stage != "seconds":
                    totals[stage] = totals.get(stage, 0.0) + spent
        before, self._counted = self._counted, totals
        return {s: t - before.get(s, 0.0) for s, t in totals.items() if t != before.get(s)}

    def doing(self) -> str:
        """The first stage that has not finished, and its progress. May be called in any thread."""
        try:
            calls = [(h.number, h.stage, h.state()) for h in list(self._open.values()) if h.futures]
        except RuntimeError:  # the run's own thread is adding calls
            return ""
        waiting = [stage for _, stage, state in sorted(calls) if state == "pending"]
        if not waiting:
            return ""
        states = [state for _, stage, state in calls if stage == waiting[0]]
        return f"{waiting[0]}, {len(states) - states.count('pending')} of {len(states)} done"

    def memory(self) -> float:
        """Peak resident memory of any one worker so far, in bytes."""
        known = [r.memory for r in self._reported.values() if not math.isnan(r.memory)]
        return max(known, default=math.nan)

    def _known(self, worker: str) -> int:
        process = self._process_of.get(worker)
        return self._reported[process].tasks if process in self._reported else 0

    def close(self) -> None:
        """Disconnect, and stop the workers if they were started here."""
        self._open.clear()
        self._copies.clear()
        self._outbox.clear()
        if self._own_client:
            self.client.close()
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None


def _announce(event: tuple[float, str]) -> None:
    """Log here what a worker compiles."""
    logging.getLogger(COMPILING).info("%s", event[1])


def _spawn_environment() -> dict[str, str]:
    """What must be set before a worker process starts."""
    before = dask.config.get("distributed.nanny.pre-spawn-environ", {})
    return {**before, **single_thread_environment(), **_MALLOC}


async def _reach(address: str, timeout: float) -> None:
    """Connect to an address and let it go; raises OSError, ValueError."""
    args: dict[str, Any] = Security().get_connection_args("client")
    comm = await connect(address, timeout=timeout, **args)
    await comm.close()


def _join(scheduler: str, timeout: float) -> Client:
    """A client of a running cluster with at least one worker; GPSError in one line otherwise."""
    try:
        secured = scheduler.startswith("tls://")
        if secured and Security().get_connection_args("client").get("ssl_context") is None:
            # Client would fail too, but is then never closed
            raise ValueError(
                "TLS needs distributed.comm.tls.ca-file, client.cert and client.key in Dask's "
                "configuration"
            )
        asyncio.run(_reach(scheduler, timeout))  # a Client that fails is noisy when it is freed
        direct = dask.config.get("distributed.client.direct-to-workers", None)
        client = Client(
            scheduler,
            timeout=timeout,
            set_as_default=False,
            # results need not pass through the scheduler, unless Dask's settings require it
            direct_to_workers=True if direct is None else direct,
        )
    except (OSError, TimeoutError, ValueError, TypeError) as error:
        raise GPSError(
            f"--scheduler {scheduler}: no Dask scheduler answers there within {timeout:g} s "
            f"({' '.join(str(error).split())})"
        ) from None
    try:
        if not client.scheduler_info(n_workers=1)["workers"]:
            log.warning("%s has no worker yet; waiting up to %g s for one", scheduler, timeout)
        client.wait_for_workers(1, timeout=timeout)
    except TimeoutError:
        client.close()
        raise GPSError(
            f"--scheduler {scheduler}: no worker has joined it within {timeout:g} s; start "
            f"some with: dask worker {scheduler} --nthreads 1"
        ) from None
    return client


def make_executor(
    kind: Literal["serial", "dask"] = "dask",
    workers: int | None = None,
    scheduler: str | None = None,
    *,
    task_timeout: float | None = None,
    reserve: int = 0,
) -> Executor:
    """The executor that the command line asks for. Raises ConfigError, GPSError."""
    if kind == "serial":
        if (workers, scheduler, task_timeout) != (None, None, None):
            raise ConfigError("--workers, --scheduler and --task-timeout need --executor dask")
        return Serial()
    if kind != "dask":
        raise ConfigError(choices("executor", kind, ("serial", "dask")))
    limit = 600.0 if task_timeout is None else task_timeout
    return Dask(workers=workers, scheduler=scheduler, task_timeout=limit, reserve=reserve)


__all__ = ["Dask", "Executor", "Serial", "make_executor"]
