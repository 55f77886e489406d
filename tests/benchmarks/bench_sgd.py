"""Samples per second of the four modes of training, for a small and a large network.

On an idle machine, with OMP_NUM_THREADS=1 and OPENBLAS_NUM_THREADS=1:
python tests/benchmarks/bench_sgd.py [--steps-small 4000] [--steps-large 30] [--repeats 3]

A plain torch loop on one thread, and serial training in this process, stand beside the modes that
run on a Dask cluster of 1 and 2 workers. A step is an update; in the modes synchronous and local
each of two shards uses a minibatch of its own in every step. Times are those of the training as an
algorithm sees it: from the call until its result is there.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch
from bench_policy import NO, NU, problem_data, torch_loop

from gps.execution import Serial
from gps.parallel import Dask
from gps.policies import MLPConfig, SGDConfig, TrainingConfig, initial_policy
from gps.policies.sgd import train
from gps.rng import stream

SHARDS = 2
MODES = {
    "synchronous": SGDConfig(mode="synchronous", shards=SHARDS),
    "local, every 5": SGDConfig(mode="local", shards=SHARDS, average_every=5),
    "local, every 20": SGDConfig(mode="local", shards=SHARDS, average_every=20),
    "asynchronous": SGDConfig(mode="asynchronous", shards=SHARDS),
}


@dataclass(frozen=True)
class Problem:
    """What is trained, and for how long."""

    name: str
    network: MLPConfig
    config: TrainingConfig


def measure(once, samples: int, repeats: int) -> tuple[float, str]:
    """Samples per second, best of `repeats`, and what the last run reports."""
    best, note = np.inf, ""
    for _ in range(repeats):
        start = time.perf_counter()
        note = once()
        best = min(best, time.perf_counter() - start)
    return samples / best, note


def staleness(result) -> str:
    """`loss 12.3, staleness mean 0.9, largest 3`."""
    text = f"loss {result.loss:.4g}"
    if result.staleness is not None:
        counts = result.staleness
        mean = counts @ np.arange(len(counts)) / counts.sum()
        text += f", staleness mean {mean:.2f}, largest {len(counts) - 1}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps-small", type=int, default=4000)
    parser.add_argument("--steps-large", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    problems = [
        Problem("26-40-40-7", MLPConfig(), TrainingConfig(steps=args.steps_small, final_rate=1.0)),
        Problem(
            "26-980-980-7",
            MLPConfig(hidden=(980, 980)),
            TrainingConfig(
                steps=args.steps_large, batch_size=256, learning_rate=3e-4, final_rate=1.0
            ),
        ),
    ]
    data = problem_data()
    for problem in problems:
        report(problem, data, args.repeats)


def report(problem: Problem, data, repeats: int) -> None:
    """Print the table of one network."""
    config = problem.config
    policy = initial_policy(problem.network, NO, NU, stream(0, "policy"))
    size, batch = sum(w.size for w in policy.weights), config.batch_size
    print(f"\n{problem.name}: {size} weights, batch {batch}, {config.steps} steps\n")
    print("| mode | where | samples/s | of serial | per step | result |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)

    def line(mode, where, once, per_step, warm=None):
        (warm or once)()
        rate, note = measure(once, config.steps * per_step, repeats)
        of_serial = f"{rate / reference:.2f}" if reference else "1"
        ms = 1e3 * per_step / rate
        print(f"| {mode} | {where} | {rate:.0f} | {of_serial} | {ms:.3f} ms | {note} |", flush=True)
        return rate

    def run_in(ex, sgd, steps=None):
        here = config if steps is None else TrainingConfig(steps=steps, batch_size=batch)
        handles = [ex.call(part, data, k) for k in range(2)]
        return lambda: staleness(ex.gather(train(ex, policy, handles, here, sgd, 0)))

    reference = None
    reference = line("serial", "in process", run_in(Serial(), SGDConfig()), batch)
    line(
        "torch loop", "in process",
        lambda: f"loss {torch_loop(policy, data, config, stream(0, 'batches')):.4g}", batch,
    )  # fmt: skip
    for workers in (0, 1, 2):  # one cluster at a time
        ex = Dask(workers=workers) if workers else Serial()
        where = f"{workers} worker{'s' * (workers > 1)}" if workers else "in process"
        try:
            for mode, sgd in MODES.items():
                per_step = batch * (1 if sgd.mode == "asynchronous" else sgd.shards)
                line(mode, where, run_in(ex, sgd), per_step, run_in(ex, sgd, steps=3))
        finally:
            ex.close()


def part(data, k: int):
    """Half of the samples, as if of one condition."""
    half = slice(k * data.n // 2, (k + 1) * data.n // 2)
    names = ("obs", "target", "precision", "weight")
    return type(data)(**{name: getattr(data, name)[half] for name in names})


if __name__ == "__main__":
    main()
