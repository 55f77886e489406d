"""What Dask costs and what it brings: one iteration on the serial executor, 1 and 2 workers.

    python tests/benchmarks/bench_parallel.py [--workers 1 2 4 8]

Comparisons within one run: all executors take turns, so that what else the machine does falls on
all of them alike. The median and the quickest of each are printed: where other work comes and goes,
the quickest says more about the program, the median more about the day.

- overhead: `peg_insertion` as it is, serial against Dask with one worker; in memory, where they
  take turns after every iteration, and stored, as `gps run` does it;
- stages 1 to 3 of the peg agent with eight conditions, from the first rollout to the last improved
  controller, results left where they are: 1 worker against 2 or more, and beside it what the
  machine itself allows: as many processes that share the conditions out and know nothing of each
  other;
- whole iterations with eight conditions, S-step and storing included; serial and all workers.

One thread everywhere. The workers and the driver, which is also the scheduler, share the cores: on
a machine with no more of them than workers the driver's work comes out of the workers' time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import gps
from gps.agents.mujoco import Condition
from gps.algorithms import mdgps, stages
from gps.execution import Executor, Serial, each, over
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
    return replace(experiment, agent=replace(experiment.agent, conditions=conditions))


Times = dict[str, list[float]]


def in_turns(experiment: Any, executors: dict[str, Executor], iterations: int) -> Times:
    """Seconds of every iteration, in memory; the executors take turns after each of them.

    The workers may not begin the next rollouts early: it would be in another's turn.
    """
    runs = {
        name: gps.run(experiment, iterations=iterations + 1, executor=executor, ahead=False)
        for name, executor in executors.items()
    }
    times: Times = {name: [] for name in executors}
    for k in range(iterations + 1):
        for name, run in runs.items():
            begin = perf_counter()
            next(run)
            if k:  # the first iteration trains twice
                times[name].append(perf_counter() - begin)
    for run in runs.values():
        run.close()
    return times


def in_blocks(
    experiment: Any, executors: dict[str, Executor], rounds: int, iterations: int
) -> Times:
    """Seconds from one stored report to the next, as `gps run` has them; runs take turns."""
    times: Times = {name: [] for name in executors}
    for _ in range(rounds):
        for name, executor in executors.items():
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run"
                run = gps.run(experiment, iterations=iterations + 2, out=out, executor=executor)
                marks = [perf_counter() for _ in run]
            # the first iteration trains twice, the last one has no next rollouts to begin
            times[name] += [b - a for a, b in pairwise(marks[:-1])]
    return times


def identity(value: Any) -> Any:
    """A task that leaves a value on a worker."""
    return value


def is_there(value: Any) -> bool:
    """A task that waits for a value where it lies."""
    return value is not None


def hold(ex: Executor, state: Any) -> Any:
    """The state with its conditions on their workers, as a run leaves them after an iteration."""
    conditions = tuple(ex.call(identity, c, condition=m) for m, c in enumerate(state.conditions))
    ex.gather(conditions)
    return replace(state, conditions=ex.keep(conditions))


def early_stages(ex: Executor, experiment: Any, state: Any) -> float:
    """Seconds of stages 1 to 3 of one iteration."""
    begin = perf_counter()
    with ex.together():
        new = improved(ex, experiment, state)
        # a gather of `new` itself would bring it here
        ex.gather(each(ex, is_there, over(new)))
    return perf_counter() - begin


def improved(ex: Executor, experiment: Any, state: Any) -> list[Any]:
    """Stages 1 to 3 by the recipe of `gps.algorithms.mdgps.iterate`."""
    config, it, seed = experiment.algorithm, state.iteration, state.seed
    cond, M = over(state.conditions), range(len(state.conditions))
    rollouts = runner._rollouts(experiment, state, ex, M)
    samples = over(rollouts)
    costs = each(ex, stages.expand_cost, over(state.costs), samples)
    models = each(ex, stages.fit_dynamics, samples, cond, config.dynamics, seed, it)
    linearise = config.linearise, seed, it
    linearised = each(ex, stages.linearise_policy, state.policy, samples, cond, *linearise)
    fitted = (cond, samples, over(costs), over(models), over(linearised))
    checks = each(ex, mdgps._assess, *fitted, False, config)
    mults = ex.call(stages.set_steps, checks, config.step, config.guard, it, True, False)
    return each(ex, mdgps._improve, *fitted, over(checks), mults, over(M), config, True)


def alone(state: Any, experiment: Any, begin: Any, results: Any) -> None:
    """A process that does stages 1 to 3 on its own whenever it is told to."""
    with one_thread():
        early_stages(Serial(), experiment, state)
        while begin.recv():
            results.put(early_stages(Serial(), experiment, state))


class Independent:
    """Processes that do stages 1 to 3 at the same time and know nothing of each other."""

    def __init__(self, states: Sequence[Any], experiment: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.results = context.Queue()
        self.pipes = []
        for state in states:
            here, there = context.Pipe()
            context.Process(
                target=alone, args=(state, experiment, there, self.results), daemon=True
            ).start()
            self.pipes.append(here)

    def seconds(self) -> float:
        """Of the slower one."""
        for pipe in self.pipes:
            pipe.send(True)
        return max(self.results.get(timeout=300) for _ in self.pipes)

    def close(self) -> None:
        """End the processes."""
        for pipe in self.pipes:
            pipe.send(False)


def show_early(experiment: Any, workers: dict[int, Dask], rounds: int) -> None:
    """Stages 1 to 3 on so many workers each, and the machine's limits; all take turns."""
    *_, last = gps.run(experiment, iterations=2)
    state = replace(last.state, costs=(experiment.cost,) * len(last.state.conditions))
    ways: dict[str, Callable[[], float]] = {}
    for n, ex in workers.items():
        ways[counted(n, "worker")] = partial(early_stages, ex, experiment, hold(ex, state))
    apart = {n: Independent(shares_of(state, n), experiment) for n in workers}
    for n, processes in apart.items():
        ways[counted(n, "process")] = processes.seconds
    times: dict[str, list[float]] = {name: [] for name in ways}
    for k in range(rounds + 1):
        for name, way in ways.items():
            spent = way()
            if k:  # the first is a rehearsal
                times[name].append(spent)
    for processes in apart.values():
        processes.close()
    first = min(workers)
    show(f"stages 1-3, 8 conditions, {rounds} rounds", times, counted(first, "worker"))
    for title, estimate in ESTIMATES.items():
        found = {name: estimate(values) for name, values in times.items()}
        for n in sorted(set(workers) - {first}):
            gains = [
                found[counted(first, kind)] / found[counted(n, kind)]
                for kind in ("worker", "process")
            ]
            print(
                f"  {title}: {n} workers {gains[0]:.2f} times as fast as {first}; without Dask, "
                f"{n} processes with their shares of the conditions: {gains[1]:.2f} times"
            )
    print(flush=True)


def counted(n: int, kind: str) -> str:
    """1 worker, 2 workers, 1 process, 2 processes."""
    return f"{n} {kind}" if n == 1 else f"{n} {kind}{'es' if kind.endswith('s') else 's'}"


def shares_of(state: Any, n: int) -> list[Any]:
    """The state's conditions shared out to n states."""
    shares = [list(share) for share in np.array_split(range(len(state.conditions)), n)]
    return [
        replace(
            state,
            conditions=tuple(state.conditions[m] for m in share),
            costs=tuple(state.costs[m] for m in share),
        )
        for share in shares
    ]


ESTIMATES = {"median": statistics.median, "quickest": min}


def show(title: str, times: Times, base: str) -> None:
    """One line per executor, with the ratio to `base`."""
    print(f"{title:36s} {'median':>9s} {'ratio':>6s} {'quickest':>11s} {'ratio':>6s}")
    for name, values in times.items():
        found = [(e(values), e(values) / e(times[base])) for e in ESTIMATES.values()]
        print(f"  {name:34s}" + "  ".join(f"{t:7.3f} s {r:6.3f}" for t, r in found))
    print(flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the comparisons that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4, help="repeats of each executor")
    parser.add_argument("--iterations", type=int, default=6, help="measured iterations per repeat")
    parts = ("overhead", "stages", "whole")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="which comparisons")
    parser.add_argument("--samples", type=int, help="rollouts per condition (default: 5)")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=(1, 2), help="of stages and whole (default: 1 2)"
    )
    args = parser.parse_args(argv)
    peg = gps.load("peg_insertion")
    if args.samples is not None:
        peg = replace(peg, samples=args.samples)
    many = with_conditions(peg, 8)
    with ExitStack() as stack:
        workers = {n: stack.enter_context(closing(Dask(workers=n))) for n in args.workers}
        size = (args.rounds, args.iterations)
        if "overhead" in args.only:
            one = workers.get(1) or stack.enter_context(closing(Dask(workers=1)))
            small: dict[str, Executor] = {"serial": Serial(), "1 worker": one}
            number = args.rounds * args.iterations
            show("peg_insertion, in memory", in_turns(peg, small, number), "serial")
            show("peg_insertion, stored", in_blocks(peg, small, *size), "serial")
        if "stages" in args.only:
            show_early(many, workers, args.rounds * args.iterations)
        if "whole" in args.only:
            every: dict[str, Executor] = {"serial": Serial()}
            every |= {counted(n, "worker"): ex for n, ex in workers.items()}
            show("8 conditions, whole, stored", in_blocks(many, every, *size), "serial")


if __name__ == "__main__":
    main()
