"""What Dask costs and what it brings: one iteration on the serial executor, 1 and 2 workers.

    python tests/benchmarks/bench_parallel.py

Comparisons within one run: the repeats of all executors take turns, so that what else the machine
does falls on all of them alike, and medians are taken over the iterations.

- overhead: `peg_insertion` as it is, serial against Dask with one worker, in memory and stored;
- stages 1 to 3 of the peg world with eight conditions, from the first rollout to the last improved
  controller, results left where they are: 1 worker against 2, and beside it what the machine itself
  allows: two processes with four conditions each, that know nothing of each other, against one;
- whole iterations with eight conditions, S-step and storing included; serial, 1 and 2 workers.

One thread everywhere. Two workers and the driver, which is also the scheduler, share the cores: on
a machine with two of them the driver's work comes out of the workers' time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import gps
from gps.agents.mujoco import Condition
from gps.algorithms import mdgps, stages
from gps.execution import Executor, Serial, each
from gps.parallel import Dask
from gps.pipeline import runner
from gps.threads import one_thread


def with_conditions(experiment: Any, number: int) -> Any:
    """The peg experiment with `number` base offsets, on a grid over the training area."""
    rows = max(1, number // 4)
    places = [
        (-0.09 + 0.06 * (i % 4), -0.06 + 0.12 * (i // 4) / max(rows - 1, 1)) for i in range(number)
    ]
    conditions = tuple(Condition(body_offsets=(("base", (x, y, 0.0)),)) for x, y in places)
    return replace(experiment, world=replace(experiment.world, conditions=conditions))


def seconds(
    experiment: Any, executors: dict[str, Executor], rounds: int, iterations: int, store: bool
) -> dict[str, float]:
    """Median seconds from one report to the next, per executor; the rounds alternate."""
    times: dict[str, list[float]] = {name: [] for name in executors}
    for _ in range(rounds):
        for name, executor in executors.items():
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run" if store else None
                marks = []
                for _ in gps.run(experiment, iterations=iterations + 2, out=out, executor=executor):
                    marks.append(perf_counter())
            # the first iteration trains twice, the last one has no next rollouts to begin
            times[name] += [b - a for a, b in pairwise(marks[:-1])]
    return {name: statistics.median(values) for name, values in times.items()}


def identity(value: Any) -> Any:
    """A task that leaves a value on a worker."""
    return value


def hold(ex: Executor, state: Any) -> Any:
    """The state with its conditions on their workers, as a run leaves them after an iteration."""
    conditions = tuple(
        ex.call("hold", identity, c, condition=m) for m, c in enumerate(state.conditions)
    )
    ex.gather(conditions)
    return replace(state, conditions=ex.keep(conditions))


def early_stages(ex: Executor, experiment: Any, state: Any) -> float:
    """Seconds of stages 1 to 3 of one iteration; the recipe of `gps.algorithms.mdgps.iterate`."""
    config, it, seed = experiment.algorithm, state.iteration, state.seed
    cond, M = state.conditions, range(len(state.conditions))
    begin = perf_counter()
    rollouts = runner._rollouts(experiment, state, ex, M)
    costs = each(ex, "expand_cost", stages.expand_cost, (state.costs, rollouts))
    models = each(
        ex, "fit_dynamics", stages.fit_dynamics, (rollouts, cond), config.dynamics, seed, it
    )
    policies = ((state.policy,) * len(cond), rollouts, cond)
    linearised = each(
        ex, "linearise_policy", stages.linearise_policy, policies, config.linearise, seed, it
    )
    models_of = (cond, rollouts, costs, models, linearised)
    assessed = each(ex, "assess", mdgps._assess, models_of, False, config.guard)
    # as `gather`, but nothing else is fetched meanwhile
    while len(ex.wait(assessed, 1.0)) < len(assessed):
        sleep(0.001)
    checks = ex.gather(assessed)
    mults = mdgps.adjust_steps(checks, config.step, config.guard)
    new = each(ex, "improve", mdgps._improve, (*models_of, checks, mults), config)
    while len(ex.wait(new, 1.0)) < len(new):
        sleep(0.001)
    return perf_counter() - begin


def alone(state: Any, experiment: Any, rounds: int, start: Any, results: Any) -> None:
    """A process that does stages 1 to 3 on its own, for the machine's limit."""
    with one_thread():
        early_stages(Serial(), experiment, state)
        for _ in range(rounds):
            start.wait()
            results.put(early_stages(Serial(), experiment, state))


def machine_limit(experiment: Any, state: Any, rounds: int) -> tuple[float, float]:
    """Median seconds of one process with all conditions, and of two at once with half of them."""
    M = len(state.conditions)
    half = replace(state, conditions=state.conditions[: M // 2], costs=state.costs[: M // 2])
    context = multiprocessing.get_context("spawn")
    medians = []
    for states in ([state], [half, half]):
        start, results = context.Barrier(len(states)), context.Queue()
        args = (experiment, rounds, start, results)
        processes = [context.Process(target=alone, args=(s, *args)) for s in states]
        for process in processes:
            process.start()
        times = [results.get(timeout=300) for _ in range(rounds * len(states))]
        for process in processes:
            process.join()
        medians.append(statistics.median(times))
    return medians[0], medians[1]


def show_early(experiment: Any, one: Dask, two: Dask, rounds: int) -> None:
    """Stages 1 to 3 on one and two workers, and the machine's limit."""
    *_, last = gps.run(experiment, iterations=2)
    state = replace(last.state, costs=(experiment.cost,) * len(last.state.conditions))
    held = {name: (ex, hold(ex, state)) for name, ex in (("1 worker", one), ("2 workers", two))}
    times: dict[str, list[float]] = {name: [] for name in held}
    for ex, there in held.values():
        early_stages(ex, experiment, there)
    for _ in range(rounds):
        for name, (ex, there) in held.items():
            times[name].append(early_stages(ex, experiment, there))
    found = {name: statistics.median(values) for name, values in times.items()}
    found["serial"] = statistics.median(
        early_stages(Serial(), experiment, state) for _ in range(rounds)
    )
    show("stages 1-3, 8 conditions", found, "1 worker")
    whole, half = machine_limit(experiment, state, rounds)
    print(f"  2 workers against 1: {found['1 worker'] / found['2 workers']:.2f}x; two processes ")
    print(f"  that do half of the work each, without Dask: {whole / half:.2f}x\n", flush=True)


def show(title: str, found: dict[str, float], base: str) -> None:
    """One line per executor, with the ratio to `base`."""
    print(title)
    for name, value in found.items():
        print(f"  {name:12s} {value:7.3f} s   {value / found[base]:6.3f} of {base}")
    print(flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the comparisons that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4, help="repeats of each executor")
    parser.add_argument("--iterations", type=int, default=6, help="measured iterations per repeat")
    parts = ("overhead", "stages", "whole")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="which comparisons")
    args = parser.parse_args(argv)
    peg = gps.load("peg_insertion")
    many = with_conditions(peg, 8)
    one, two = Dask(workers=1), Dask(workers=2)
    try:
        every: dict[str, Executor] = {"serial": Serial(), "1 worker": one, "2 workers": two}
        small = {name: every[name] for name in ("serial", "1 worker")}
        size = (args.rounds, args.iterations)
        if "overhead" in args.only:
            show("peg_insertion, in memory", seconds(peg, small, *size, store=False), "serial")
            show("peg_insertion, stored", seconds(peg, small, *size, store=True), "serial")
        if "stages" in args.only:
            show_early(many, one, two, args.rounds * args.iterations)
        if "whole" in args.only:
            found = seconds(many, every, *size, store=True)
            show("8 conditions, whole, stored", found, "serial")
    finally:
        one.close()
        two.close()


if __name__ == "__main__":
    main()
