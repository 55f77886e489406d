"""Synchronous against asynchronous runs, where sampling takes a robot's time.

    python tests/benchmarks/bench_async.py [--experiment point_mass_policy|peg_insertion]
        [--speed S] [--seeds N] [--only KIND] [--no-clock]

Eight conditions on eight Dask workers (threads of this process, which mostly sleep) and a ninth for
what has no condition. A batch takes its real time divided by --speed, times a log-normal factor of
deviation 0.3. First both kinds of run against the clock, from the same seed; then the same number
of rollouts over N seeds without sleeping: the synchronous run serially, the asynchronous one on a
virtual clock with the same kind of factors. Unseen start conditions judge the policy.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import gps
from gps.agents import Condition, RealTimeConfig
from gps.pipeline import sampling
from gps.rng import stream

sys.path.insert(0, str(Path(__file__).parent.parent / "pipeline"))
from virtual_executor import Virtual

WORKERS, STD = 8, 0.3
SPEED = 4.0


def eight(name: str, seed: int) -> Any:
    """The experiment with eight training conditions."""
    e = gps.load(name)
    if name == "peg_insertion":
        places = [
            (x, y) for x in (-0.08, 0.0, 0.08) for y in (-0.08, 0.0, 0.08) if (x, y) != (0, 0)
        ]
        conditions = tuple(Condition(body_offsets=(("base", (x, y, 0.0)),)) for x, y in places)
        agent_config = replace(e.agent, conditions=conditions)
    else:
        angles = [2 * math.pi * i / 8 for i in range(8)]
        starts = tuple((1.4 * math.cos(a), 1.4 * math.sin(a)) for a in angles)
        agent_config = replace(e.agent, starts=starts)
    return replace(e, agent=agent_config, seed=seed)


@dataclass(frozen=True)
class Outcome:
    """One run."""

    wall: float
    first: float
    """Seconds until the policy succeeds from all training conditions, and stays so."""
    utilisation: float
    """Of the eight workers, from the first moment to the last."""
    while_sampling: float
    """The same without the wait for the last batches and the last training."""
    busy: float
    """Cores that computed."""
    success: float
    distance: float
    cost: float


def judged(e: Any, policy: Any) -> tuple[float, float, float]:
    """Success, distance (mm) and cost from the unseen conditions, noise-free."""
    n = e.agent.build().n_test_conditions
    found = [
        sampling.evaluate_condition(e.agent, e.cost, e.measure, policy, m, 1, 0, test=True)
        for m in range(n)
    ]
    means = [
        float(np.mean([getattr(f, k)[0] for f in found])) for k in ("success", "distance", "cost")
    ]
    return means[0], 1000 * means[1], means[2]


def settled(curve: list[tuple[float, float]]) -> float:
    """When the success became 1 for good; NaN if it did not."""
    when = math.nan
    for seconds, success in curve:
        if success < 1.0:
            when = math.nan
        elif math.isnan(when):
            when = seconds
    return when


def on_the_clock(e: Any, speed: float, asynchronous: bool) -> Outcome:
    """A run on eight slow robots."""
    from distributed import Client, LocalCluster

    from gps.parallel import Dask

    slow = replace(e, agent=RealTimeConfig(agent=e.agent, factor_std=STD, speed=speed, seed=e.seed))
    with (
        LocalCluster(
            n_workers=WORKERS + 1, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        ex = Dask(client, reserve=1)
        for _ in gps.run(replace(e, agent=replace(e.agent, T=5), iterations=1), executor=ex):
            pass  # connections, kernels
        config = gps.AsynchronousConfig(snapshot_every=4)  # to see more of the curve
        run = partial(gps.run_asynchronous, config=config) if asynchronous else gps.run
        curve, sampling, share, now = [], 0.0, math.nan, 0.0
        begin, cpu = time.perf_counter(), time.process_time()
        for report in run(slow, executor=ex):
            known = report.state.asynchronous
            if known is None:
                now += report.seconds
                sampling += report.stage_seconds["rollout"]
                share = sampling / (WORKERS * now)
            else:
                now, sampling = known.seconds, known.sampling_seconds
                share = report.row["utilisation"]
            curve.append((now, report.row["policy_success"]))
        wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
        ex.close()
    result = judged(e, report.state.policy.policy)
    return Outcome(*(wall, settled(curve), sampling / (WORKERS * wall), share, cpu / wall), *result)


def learned(e: Any, asynchronous: bool, batch: float) -> tuple[float, float, float, float]:
    """Without sleeping: what the policy can do after all rollouts, and the mean age."""
    if not asynchronous:
        *_, report = gps.run(e)
        return *judged(e, report.state.policy.policy), 0.0
    rng, calls = stream(e.seed, "durations"), [0] * WORKERS

    def seconds(stage: str, condition: int) -> float:
        if stage == "rollout":
            calls[condition] += 1
            factor = math.exp(STD * rng.standard_normal() - STD**2 / 2)
            return batch * factor if calls[condition] % 2 else 0.0  # then they are handed on
        return {"train_policy": 1.0, "score": 0.01}.get(stage, 0.05)

    ex = Virtual(WORKERS, seconds)
    ages = []
    for report in gps.run_asynchronous(e, executor=ex, clock=ex.clock):
        ages.append(report.row["age_mean"])
    return *judged(e, report.state.policy.policy), float(np.nanmean(ages))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--experiment", choices=("point_mass_policy", "peg_insertion"), default="point_mass_policy"
    )
    parser.add_argument("--speed", type=float, default=SPEED)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--only", choices=("synchronous", "asynchronous"), help="one kind of run by the clock"
    )
    parser.add_argument("--no-clock", action="store_true", help="only the comparison over seeds")
    args = parser.parse_args()
    e = eight(args.experiment, 0)
    agent = e.agent.build()
    real = e.samples * agent.T * agent.dt
    print(
        f"{args.experiment}: {WORKERS} conditions, {e.iterations * WORKERS * e.samples} rollouts, "
        f"batches of {real:g} s of robot time"
    )
    if not args.no_clock:
        speed = args.speed
        print(f"\nagainst the clock, robots {speed:g} times as fast, seed 0")
        for kind in (args.only,) if args.only else ("synchronous", "asynchronous"):
            o = on_the_clock(e, speed, kind == "asynchronous")
            print(
                f"  {kind:<13} {o.wall:6.1f} s   success from all trained starts after "
                f"{o.first:5.1f} s   sampling {o.utilisation:.3f} of the time "
                f"({o.while_sampling:.3f} until the last batch began)   {o.busy:.2f} cores busy   "
                f"unseen: success {o.success:.2f}, {o.distance:.1f} mm, cost {o.cost:.2f}",
                flush=True,
            )
    if args.seeds > 0:
        print(f"\nequal rollouts, no sleeping, {args.seeds} seeds, unseen starts")
    columns: dict[str, list[tuple[float, ...]]] = {"synchronous": [], "asynchronous": []}
    for seed in range(args.seeds):
        for kind, column in columns.items():
            column.append(learned(eight(args.experiment, seed), kind == "asynchronous", real))
            success, distance, cost, age = column[-1]
            print(
                f"  seed {seed} {kind:<13} success {success:.2f}   {distance:6.2f} mm   "
                f"cost {cost:9.3f}   age {age:.2f}",
                flush=True,
            )
    for kind, column in columns.items():
        for i, what in enumerate(("success", "distance in mm", "cost")):
            values = [row[i] for row in column]
            if len(values) > 1:
                mean, std = statistics.mean(values), statistics.stdev(values)
                print(f"  {kind:<13} {what:<15} {mean:9.3f} +- {std:.3f}")


if __name__ == "__main__":
    main()
