"""What scheduler and driver cost with many conditions, on robots that sleep.

    python tests/benchmarks/bench_scaling.py [--conditions 8 64 512] [--large 8 64] [--batch 1]
        [--asynchronous 1 8] [--repeats 2] [--threads T] [--inside] [--direct] [--only PART ...]
        [--profile FILE]

Every condition has a thread of a Dask worker; a further worker has no condition. There are at most
33 workers unless --threads says otherwise (1: a worker for every condition, which takes minutes
with 512). They live in two processes, the scheduler in another, the driver in a fourth, so that the
CPU time of each can be read from the system. A batch of rollouts takes --batch seconds, without
spread: what an iteration takes beyond that is overhead. docs/scaling.md says what follows.

Parts: synchronous (the run loop with a small point mass), large (the same graph of calls with
functions that return records of the sizes of peg_insertion), store (files of such records),
asynchronous (with no sleeping, for the rate that is sustained, and with batches of
--asynchronous seconds), slowest (a simulation: how long M robots wait for the slowest).
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

PARTS = ("synchronous", "large", "store", "asynchronous", "slowest")
HOSTS = 2  # processes that the workers share
STD = 0.3  # of the logarithm of a batch's duration, as in RealTimeConfig
# Dask's own looks at every worker would be most of the work with hundreds of workers in a process
QUIET = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "20s",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# bytes per condition and iteration of peg_insertion, in the middle of a run
SIZES = {"rollouts": 1.5e6, "cost": 0.9e6, "dynamics": 2.7e6, "linearised": 1.3e6}
STATE, TARGETS = 4.5e6, 0.66e6


# --- the cluster: processes on this machine ------------------------------------------------------


@dataclass(frozen=True)
class How:
    """A case."""

    M: int
    """Conditions."""
    batch: float
    """Seconds of a batch of rollouts."""
    repeats: int
    """Iterations that count."""
    threads: int = 1
    """Of each worker."""
    inside: bool = False
    """Whether the scheduler lives in the driver's process."""
    direct: bool = False
    """Whether the driver takes results from the workers themselves, not through the scheduler."""
    profile: str | None = None


@dataclass(frozen=True)
class Cluster:
    """Where the parts of a cluster run."""

    address: str
    scheduler: psutil.Process | None
    """None: in this process."""
    hosts: tuple[psutil.Process, ...]

    def seconds(self) -> tuple[float, float, float]:
        """CPU seconds so far of this process, the scheduler's, the workers'."""
        return (
            time.process_time(),
            0.0 if self.scheduler is None else _cpu(self.scheduler),
            sum(map(_cpu, self.hosts)),
        )


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def orphaned() -> None:
    """Wait until the process that has started this one is gone, or stops it."""
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(1.0)


async def host(address: str, threads: int, names: Sequence[str]) -> None:
    """Many workers with so many threads each, in this process."""
    from distributed import Worker

    workers = [
        Worker(
            address, nthreads=threads, name=name, memory_limit=0, dashboard=False, host="127.0.0.1"
        )
        for name in names
    ]
    await asyncio.gather(*workers)
    await orphaned()


async def scheduler(file: str) -> None:
    """A scheduler that writes its address to a file."""
    from distributed import Scheduler

    async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as it:
        Path(file + ".new").write_text(it.address)
        os.replace(file + ".new", file)
        await orphaned()


@contextmanager
def cluster(how: How) -> Iterator[tuple[Cluster, Any]]:
    """The workers for M conditions and one more, and a client of theirs."""
    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())

        def start(*args: str) -> psutil.Process:
            process = subprocess.Popen(
                [sys.executable, __file__, *args],
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env=os.environ | QUIET,
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return psutil.Process(process.pid)

        central = None
        workers = -(-how.M // how.threads) + 1
        if how.inside:
            local = LocalCluster(
                n_workers=0, processes=False, protocol="tcp://", host="127.0.0.1",
                dashboard_address=None,
            )  # fmt: skip
            address = stack.enter_context(local).scheduler_address
        else:
            file = Path(folder) / "address"
            central = start("--as-scheduler", str(file))
            while not file.exists():
                time.sleep(0.05)
            address = file.read_text()
        hosts = tuple(
            start(
                "--as-host", address, str(how.threads), *(f"w{i}" for i in range(h, workers, HOSTS))
            )
            for h in range(HOSTS)
        )
        link = Client(address, set_as_default=False, direct_to_workers=how.direct or None)
        client = stack.enter_context(link)
        client.wait_for_workers(workers, timeout=180)
        yield Cluster(address, central, hosts), client


def counting(client: Any, **options: Any) -> Any:
    """The Dask executor, which also counts tasks, bytes that come here, and seconds of `call`."""
    from gps.parallel import executors

    class Counting(executors.Dask):
        tasks, bytes, calling = 0, 0, 0.0

        def _task(self, *args: Any, **named: Any) -> Any:
            self.tasks += 1
            return super()._task(*args, **named)

        def _submit(self, handle: Any) -> None:
            self._timed(super()._submit, handle)

        def _flush(self) -> None:
            self._timed(super()._flush)

        def _timed(self, what: Any, *args: Any) -> None:
            begin, inside = time.perf_counter(), self.calling
            what(*args)
            self.calling = inside + time.perf_counter() - begin  # one may call the other

        def _fetch(self, handles: Any) -> None:
            super()._fetch(handles)
            self.bytes += sum(executors._size(h.value) for h in handles if h.gathered)

        def take(self) -> tuple[int, int, float]:
            found = self.tasks, self.bytes, self.calling
            self.tasks, self.bytes, self.calling = 0, 0, 0.0
            return found

    return Counting(client, **options)


@contextmanager
def profiled(file: str | None) -> Iterator[None]:
    """Profile the driver's main thread into a file."""
    if file is None:
        yield
        return
    profile = cProfile.Profile()
    with profile:
        yield
    profile.dump_stats(file)


# --- the cases, each in a fresh process -----------------------------------------------------------


def no_warm_up(executor: Any, experiment: Any) -> None:
    """In place of compiling and building models, which every machine does for itself."""


def points(M: int, batch: float, std: float) -> Any:
    """M point masses at a robot's pace; computing takes a millisecond or so per call."""
    import gps
    from gps.agents import RealTimeConfig
    from gps.policies import MLPConfig, TrainingConfig

    e = gps.load("point_mass_policy")
    angles = [2 * math.pi * i / M for i in range(M)]
    starts = tuple((1.4 * math.cos(a), 1.4 * math.sin(a)) for a in angles)
    agent = replace(e.agent, T=5, starts=starts, test_starts=())
    real = e.samples * agent.T * agent.dt
    algorithm = replace(
        e.algorithm,
        network=MLPConfig(hidden=(8,), activation="tanh"),
        training=TrainingConfig(steps=10, batch_size=25),
        replay=0,
    )
    speed = real / max(batch, 1e-6)
    slow = RealTimeConfig(agent=agent, factor_std=std, speed=speed)
    return replace(e, agent=slow, algorithm=algorithm)


def rss() -> float:
    """Memory of this process in MB."""
    return float(psutil.Process().memory_info().rss / 1e6)


def synchronous(how: How) -> Any:
    """Iterations of the run loop; a row per iteration."""
    import gps
    from gps.pipeline import runner

    runner.prepare = no_warm_up
    e = replace(points(how.M, how.batch, 0.0), iterations=how.repeats + 1)
    rows = []
    with cluster(how) as (where, client):
        ex = counting(client, reserve=1)
        loop = gps.run(e, executor=ex, ahead=False)
        next(loop)  # agents, connections
        with profiled(how.profile):
            for _ in range(how.repeats):
                rows.append(measured(where, ex, lambda: next(loop), how.batch))
        loop.close()
        ex.close()
    return rows


def measured(where: Cluster, ex: Any, act: Callable[[], Any], batch: float) -> dict[str, float]:
    """What something costs."""
    ex.take()
    gc.collect()
    begin, cpu = time.perf_counter(), where.seconds()
    keep = act()
    wall = time.perf_counter() - begin
    driver, central, hosts = (b - a for a, b in zip(cpu, where.seconds(), strict=True))
    tasks, moved, calling = ex.take()
    row = {
        "tasks": tasks,
        "wall": wall,
        "beyond": wall - batch,
        "calling": calling,
        "driver": driver,
        "scheduler": central,
        "workers": hosts,
        "MB": moved / 1e6,
        "memory": rss(),
    }
    del keep
    return row


@dataclass(frozen=True, eq=False)
class Block:
    """An array of so many bytes, in place of a record."""

    data: Any

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return int(self.data.nbytes)


@dataclass(frozen=True)
class block:
    """A stage of this name that sleeps and returns a block."""

    stage: str

    def __call__(self, size: float, seconds: float, *needs: Any) -> Block:
        time.sleep(seconds)
        return Block(np.zeros(int(size) // 8))


def large(how: How) -> Any:
    """The calls of a synchronous iteration with records of the sizes of peg_insertion."""
    M, batch, rows = how.M, how.batch, []
    with cluster(how) as (where, client):
        ex = counting(client, reserve=1)
        states = [ex.call(block("start"), STATE, 0.0, condition=m) for m in range(M)]
        policy = ex.call(block("start"), 7e4, 0.0)
        ex.keep((states, policy))

        def iteration() -> Any:
            nonlocal states, policy
            C = range(M)

            def each(stage: str, size: float, seconds: float, *columns: Any) -> list[Any]:
                return [
                    ex.call(block(stage), size, seconds, *(c[m] for c in columns), condition=m)
                    for m in C
                ]

            with ex.together():
                rollouts = each("rollout", SIZES["rollouts"], batch, states)
                costs = each("expand_cost", SIZES["cost"], 0.0, rollouts)
                models = each("fit_dynamics", SIZES["dynamics"], 0.0, rollouts, states)
                same = [policy] * M
                lines = each("linearise_policy", SIZES["linearised"], 0.0, same, rollouts, states)
                checks = each("assess", 100, 0.0, states, rollouts, costs, models, lines)
                steps = [ex.call(block("set_steps"), 100, 0.0, checks)] * M
                new = each("improve", STATE, 0.0, states, rollouts, costs, models, lines, steps)
                data = each("targets", TARGETS, 0.0, rollouts, new)
                trained = ex.call(block("train_policy"), 7e4, 0.0, data)
                local = each("score", 100, 0.0, new)
                judged = each("score", 100, 0.0, [trained] * M)
                tree = (rollouts, costs, models, lines, new, trained, local, judged)
            values = ex.gather(tree)
            ex.seconds()
            ex.keep((new, trained))
            states, policy = new, trained
            return values

        iteration()
        with profiled(how.profile):
            for _ in range(how.repeats):
                rows.append(measured(where, ex, iteration, how.batch))
        ex.close()
    return rows


def store(how: How) -> Any:
    """Files of an iteration of peg_insertion with M conditions, made of four real ones."""
    import gps
    from gps.execution import map_tree
    from gps.pipeline.files import write_whole
    from gps.pipeline.store import Snapshot, encode
    from gps.policies import TrainingConfig

    e = gps.load("peg_insertion")
    tiny = TrainingConfig(steps=50)
    *_, r = gps.run(replace(e, iterations=3, algorithm=replace(e.algorithm, training=tiny)))
    rng = np.random.default_rng(0)

    def like(m: int) -> Any:
        """Condition m's records: those of one of the four with other numbers, equal where they
        were equal."""
        changed: dict[int, Any] = {}

        def leaf(x: Any) -> Any:
            if not isinstance(x, np.ndarray) or x.dtype.kind != "f" or m < 4:
                return x
            if id(x) not in changed:
                changed[id(x)] = x * (1.0 + 1e-9 * rng.random())
            return changed[id(x)]

        i = m % 4
        models = {name: v[i] for name, v in r.report.models.items()}
        return map_tree(leaf, (r.state.conditions[i], r.rollouts[i], models))

    every = [like(m) for m in range(how.M)]
    snapshot = Snapshot(
        state=replace(r.state, costs=(), conditions=tuple(c for c, _, _ in every)),
        rollouts=tuple(x for _, x, _ in every),
        models={name: tuple(v[name] for _, _, v in every) for name in r.report.models},
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(how.repeats):
            gc.collect()
            before, begin, cpu = rss(), time.perf_counter(), time.process_time()
            data = encode(snapshot)
            made, used = time.perf_counter() - begin, time.process_time() - cpu
            write_whole(Path(folder) / "x.h5", data)
            wall = time.perf_counter() - begin
            rows.append(
                {"MB": len(data) / 1e6, "encode": made, "cpu": used, "wall": wall,
                 "before": before, "memory": rss()}
            )  # fmt: skip
            del data
    return rows


def asynchronous(how: How) -> Any:
    """An asynchronous run for about so many seconds after every condition's first update."""
    import gps
    from gps.pipeline import asynchronous as module

    module.prepare = no_warm_up
    M = how.M
    with cluster(how) as (where, client):
        ex = counting(client, reserve=1)
        for _ in gps.run(replace(points(M, 0.0, 0.0), iterations=1), executor=ex, ahead=False):
            pass  # agents, connections
        seen: list[dict[str, float]] = []
        stopping = [math.inf]
        config = gps.AsynchronousConfig(rollouts=10**9, snapshot_every=M)
        run = gps.run_asynchronous(
            points(M, how.batch, STD), executor=ex, config=config,
            stop=lambda: time.perf_counter() > stopping[0],
        )  # fmt: skip

        def note(report: Any) -> None:
            driver, central, hosts = where.seconds()
            known = report.state.asynchronous
            seen.append(
                {"at": time.perf_counter(), "updates": known.local_updates,
                 "policies": report.row["policy_updates"], "sampling": known.sampling_seconds,
                 "spans": known.chain_seconds, "driver": driver, "scheduler": central,
                 "workers": hosts, "age": report.row["age_mean"], "tasks": ex.tasks,
                 "MB": ex.bytes / 1e6}
            )  # fmt: skip

        with profiled(how.profile):
            for report in run:
                note(report)
                if len(seen) == 1:
                    stopping[0] = seen[0]["at"] + how.repeats * max(how.batch, 4.0)
                elif time.perf_counter() > stopping[0]:
                    break
        run.close()
        ex.close()
        first, last = seen[0], seen[-1]
        d = {k: last[k] - first[k] for k in last}
        n = d["updates"]
        return [
            {
                "rate": n / d["at"],
                "utilisation": d["sampling"] / d["spans"],
                "policies": d["policies"] / d["at"],
                "age": last["age"],
                "tasks": d["tasks"] / n,
                "driver": d["driver"] / n,
                "scheduler": d["scheduler"] / n,
                "workers": d["workers"] / n,
                "driver share": d["driver"] / d["at"],
                "memory": rss(),
                "updates": n,
            }
        ]


def slowest(M: int, draws: int = 20000) -> float:
    """Mean of the largest of M log-normal factors with mean 1."""
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.standard_normal((draws // 20, M)).max(axis=1) for _ in range(20)])
    return float(np.exp(STD * z - STD**2 / 2).mean())


CASES: dict[str, Callable[..., Any]] = {
    "synchronous": synchronous,
    "large": large,
    "store": store,
    "asynchronous": asynchronous,
}


def case(name: str, **arguments: Any) -> list[dict[str, float]]:
    """The rows of a case, run in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--case", name, json.dumps(arguments)],
        stdout=subprocess.PIPE, text=True, env=os.environ | QUIET, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        print(f"  {name} {arguments} failed", flush=True)
        return []
    rows: list[dict[str, float]] = json.loads(lines[-1])
    return rows


def middle(rows: Sequence[dict[str, float]], name: str) -> float:
    """Median of a column."""
    return statistics.median(row[name] for row in rows)


def show(label: str, rows: Sequence[dict[str, float]], columns: dict[str, str]) -> None:
    """A line of a table: medians."""
    cells = [format(middle(rows, name), form) for name, form in columns.items()]
    load = os.getloadavg()[0]
    print(f"{label:>14}" + "".join(f"{c:>13}" for c in cells) + f"   load {load:.1f}", flush=True)


def head(title: str, label: str, columns: dict[str, str]) -> None:
    """The head of a table."""
    print(f"\n{title}\n{label:>14}" + "".join(f"{name:>13}" for name in columns), flush=True)


def iterations(title: str, name: str, sizes: Sequence[int], args: argparse.Namespace) -> None:
    """A table of iterations, and the straight line through it."""
    columns = {
        "tasks": ".0f", "beyond": ".2f", "calling": ".2f", "driver": ".2f", "scheduler": ".2f",
        "workers": ".2f", "MB": ".1f", "memory": ".0f",
    }  # fmt: skip
    head(title, "conditions", columns)
    found: dict[int, dict[str, float]] = {}
    for M in sizes:
        rows = case(name, **settings(M, args), batch=args.batch)
        if rows:
            show(str(M), rows, columns)
            found[M] = {k: middle(rows, k) for k in ("tasks", "driver", "scheduler", "MB")}
    if len(found) > 1:
        for what in ("tasks", "driver", "scheduler", "MB"):
            # relative errors: the small numbers count as much as the large ones
            x, y = np.array(list(found)), np.array([f[what] for f in found.values()])
            if (y > 0).all():
                b, a = np.polyfit(x, y, 1, w=1 / y)
                print(f"  {what:>12} per iteration: {a:.3g} + {b:.3g} M")


def settings(M: int, args: argparse.Namespace) -> dict[str, Any]:
    """What all cases with M conditions share."""
    threads = args.threads or max(1, M // 32)
    return {
        "M": M, "repeats": args.repeats, "threads": threads, "inside": args.inside,
        "direct": args.direct, "profile": args.profile,
    }  # fmt: skip


def rates(args: argparse.Namespace) -> None:
    """The table of asynchronous runs."""
    columns = {
        "rate": ".1f", "utilisation": ".3f", "tasks": ".1f", "driver": ".4f", "scheduler": ".4f",
        "workers": ".4f", "driver share": ".2f", "policies": ".2f", "age": ".2f", "memory": ".0f",
    }  # fmt: skip
    head(
        "asynchronous, per local update: rate (updates/s), CPU s; utilisation of the robots; "
        "policies per s",
        "M x batch",
        columns,
    )
    middle_size = sorted(args.conditions)[len(args.conditions) // 2]
    cases = [(M, 0.0) for M in sorted(args.conditions)[-2:]]
    cases += [(middle_size, batch) for batch in args.asynchronous]
    for M, batch in cases:
        rows = case("asynchronous", **settings(M, args), batch=batch)
        if rows:
            show(f"{M} x {batch:g} s", rows, columns)


def main() -> None:
    """Run the parts and print their tables."""
    if sys.argv[1:2] == ["--as-host"]:
        import gps.pipeline  # noqa: F401 (before the first task)

        asyncio.run(host(sys.argv[2], int(sys.argv[3]), sys.argv[4:]))
        return
    if sys.argv[1:2] == ["--as-scheduler"]:
        asyncio.run(scheduler(sys.argv[2]))
        return
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(CASES[sys.argv[2]](How(**json.loads(sys.argv[3])))))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--conditions", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--large", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--batch", type=float, default=1.0, help="seconds, synchronous")
    parser.add_argument(
        "--asynchronous", type=float, nargs="*", default=[8.0], help="seconds of a batch"
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, help="of each worker; default 1 for 32 conditions")
    parser.add_argument("--inside", action="store_true", help="scheduler in the driver's process")
    parser.add_argument("--direct", action="store_true", help="results from the workers themselves")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--profile", help="file for a profile of the driver, of the last case")
    args = parser.parse_args()
    print(
        "beyond: wall seconds of an iteration without the batch; calling: of them in "
        "Executor.call;\ndriver, scheduler, workers: CPU seconds; MB: arrays that came to the "
        "driver; memory: of the driver, MB"
    )
    if "synchronous" in args.only:
        iterations("synchronous iterations", "synchronous", args.conditions, args)
    if "large" in args.only:
        iterations("the same with records of peg_insertion's size", "large", args.large, args)
    if "store" in args.only:
        columns = {
            "MB": ".0f", "encode": ".2f", "cpu": ".2f", "wall": ".2f", "before": ".0f",
            "memory": ".0f",
        }  # fmt: skip
        head("files of peg_insertion's records; seconds, MB", "conditions", columns)
        for M in args.large:
            rows = case("store", **settings(M, args), batch=0.0)
            if rows:
                show(str(M), rows, columns)
    if "asynchronous" in args.only:
        rates(args)
    if "slowest" in args.only:
        print(f"\nmean of the slowest of M batches over the mean of one, spread {STD}")
        for M in sorted({8, 64, 512, 1000, *args.conditions}):
            print(f"{M:>14}{slowest(M):11.2f}")


if __name__ == "__main__":
    main()
