"""Executors: `Serial` in the calling process, `Dask` on a local or a running cluster.

Both give the same bytes. Tasks are named after their stage, so Dask's dashboard shows the pipeline;
results stay on the worker that made them until they are gathered, and Dask runs a task where most
of its arguments lie, which keeps a condition's chain on one worker.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
import uuid
from collections.abc import Callable
from typing import Any, Literal

from distributed import Client, Future, LocalCluster, WorkerPlugin

from gps.errors import ConfigError, GPSError, choices
from gps.execution import Executor, Serial, Timed, leaf, map_tree, run_timed
from gps.threads import single_thread_environment

log = logging.getLogger(__name__)


class OneThread(WorkerPlugin):
    """Pins BLAS and torch to one thread in every worker, for equal bytes."""

    name = "gps-one-thread"

    def setup(self, worker: Any) -> None:
        """Called by Dask once in every worker process."""
        import torch
        from threadpoolctl import threadpool_limits

        torch.set_num_threads(1)
        threadpool_limits(limits=1)
        if threading.current_thread() is threading.main_thread():
            # Ctrl-C is for the driver, which finishes the iteration with these workers
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_task(fn: Callable[..., Any], *args: Any) -> Timed:
    """A task on a worker: `fn` on the values of its arguments, timed."""
    return run_timed(fn, args)


class Dask:
    """Runs stages on a Dask cluster.

    client: a connected `distributed.Client`; its cluster is left running on `close`.
    scheduler: the address of a running cluster to join. Otherwise a LocalCluster of `workers`
    single-threaded processes (default: one per core) is started, and closed by `close`.
    """

    def __init__(
        self,
        client: Client | None = None,
        *,
        workers: int | None = None,
        scheduler: str | None = None,
        timeout: float = 30.0,
    ) -> None:
        self._cluster: LocalCluster | None = None
        self._own_client = client is None
        if client is not None:
            self.client = client
        elif scheduler is not None:
            try:
                self.client = Client(scheduler, timeout=timeout, set_as_default=False)
            except (OSError, TimeoutError, ValueError) as error:
                raise GPSError(
                    f"--scheduler {scheduler}: no Dask scheduler answers there within "
                    f"{timeout:g} s ({error})"
                ) from None
            try:
                self.client.wait_for_workers(1, timeout=timeout)
            except TimeoutError:
                self.client.close()
                raise GPSError(
                    f"--scheduler {scheduler}: no worker has joined it within {timeout:g} s; start "
                    f"some with: dask worker {scheduler} --nthreads 1"
                ) from None
        else:
            if workers is not None and workers < 1:
                raise ConfigError(f"--workers must be at least 1, got {workers}")
            self._cluster = LocalCluster(
                n_workers=workers or len(os.sched_getaffinity(0)),
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                env=single_thread_environment(),
                silence_logs=logging.ERROR,
                memory_limit=0,
            )
            self.client = Client(self._cluster, set_as_default=False)
        self.client.register_plugin(OneThread())
        self._run = uuid.uuid4().hex[:8]  # a key that was used before would return its old result
        self._count = itertools.count()
        self._pending: list[tuple[str, Future]] = []
        self._seconds: dict[Any, float] = {}

    @property
    def dashboard(self) -> str:
        """Address of Dask's own dashboard."""
        return str(self.client.dashboard_link)

    def warm_up(self, fn: Callable[[], None]) -> None:
        """Run `fn` in one worker per host before the others need what it compiles."""
        hosts: dict[str, str] = {}
        for address, info in self.client.scheduler_info(n_workers=-1)["workers"].items():
            hosts.setdefault(info["host"], address)
        if hosts:
            self.client.run(fn, workers=list(hosts.values()))

    def call(self, stage: str, fn: Callable[..., Any], *args: Any, condition: int = -1) -> Future:
        """Submit `fn(*args)`; returns the future of a Timed."""
        name = stage if condition < 0 else f"{stage}-c{condition}"
        future = self.client.submit(
            run_task,
            fn,
            *args,
            key=(f"{stage}", f"{name}-{self._run}-{next(self._count)}"),
        )
        self._pending.append((stage, future))
        return future

    def gather(self, tree: Any) -> Any:
        """Bring the values of all futures in `tree` here, in one transfer."""
        futures: dict[Any, Future] = {}

        def collect(item: Any) -> Any:
            if isinstance(item, Future):
                futures[item.key] = item
            return item

        map_tree(collect, tree)
        keys = list(futures)
        values = dict(zip(keys, self.client.gather([futures[key] for key in keys]), strict=True))
        self._seconds |= {key: value.seconds for key, value in values.items()}
        return map_tree(
            lambda item: leaf(values[item.key]) if isinstance(item, Future) else leaf(item), tree
        )

    def seconds(self) -> dict[str, float]:
        """Seconds of work per stage since the last call, summed over workers."""
        pending, self._pending = self._pending, []
        known, self._seconds = self._seconds, {}
        missing = [future for _, future in pending if future.key not in known]
        if missing:  # results that nobody asked for: fetch the number, not the data
            asked = [self.client.submit(_seconds_of, future, pure=False) for future in missing]
            known |= dict(zip([f.key for f in missing], self.client.gather(asked), strict=True))
        out: dict[str, float] = {}
        for stage, future in pending:
            out[stage] = out.get(stage, 0.0) + known[future.key]
        return out

    def close(self) -> None:
        """Disconnect, and stop the workers if they were started here."""
        self._pending = []
        if self._own_client:
            self.client.close()
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None


def _seconds_of(result: Timed) -> float:
    return result.seconds


def make_executor(
    kind: Literal["serial", "dask"] = "dask",
    workers: int | None = None,
    scheduler: str | None = None,
    warm_up: Callable[[], None] | None = None,
) -> Executor:
    """The executor that the command line asks for. Raises ConfigError, GPSError.

    warm_up: run once per host before anything else, so that only one process compiles kernels.
    """
    if kind == "serial":
        if workers is not None or scheduler is not None:
            raise ConfigError("--workers and --scheduler need --executor dask")
        return Serial()
    if kind != "dask":
        raise ConfigError(choices("executor", kind, ("serial", "dask")))
    executor = Dask(workers=workers, scheduler=scheduler)
    if warm_up is not None:
        executor.warm_up(warm_up)
    return executor


__all__ = ["Dask", "Executor", "Serial", "make_executor"]
