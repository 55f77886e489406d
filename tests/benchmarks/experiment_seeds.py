"""Experiments over several seeds: how they end, and what that takes.

    python tests/benchmarks/experiment_seeds.py NAME [NAME ...] [--seeds 0 1 2 3 4]
        [--iterations N] [--samples N]

Runs every experiment serially and prints one line for each seed: of the last iteration the cost of
a noise-free rollout (the global policy's where there is one, else the local controllers'), mean and
largest distance from the target over conditions, the share of conditions that succeed, and
the first iteration from which on all succeed; then the seconds of the whole run. The last line is
the mean over seeds, +- the standard deviation. NAME may be a path.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np

import gps
from gps.errors import GPSError
from gps.pipeline import Experiment

COLUMNS = ("cost", "distance", "largest", "success", "from", "seconds")


def run(experiment: Experiment, seed: int) -> list[float]:
    """The columns of one seed; `from` is NaN when not all conditions succeed at the end."""
    kind = "policy" if experiment.algorithm.trains_policy else "local"
    begin, success, row = time.perf_counter(), [], {}
    for report in gps.run(experiment, seed=seed):
        row = report.row
        success.append(row[f"{kind}_success"])
    failed = [i for i, share in enumerate(success, 1) if share < 1.0]
    since = (failed[-1] if failed else 0) + 1
    return [
        row[f"{kind}_cost_mean"],
        row[f"{kind}_distance_mean"],
        row[f"{kind}_distance_max"],
        success[-1],
        since if since <= len(success) else float("nan"),
        time.perf_counter() - begin,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--samples", type=int, help="rollouts per condition and iteration")
    args = parser.parse_args()
    changes = {k: v for k in ("iterations", "samples") if (v := getattr(args, k)) is not None}
    for name in args.names:
        experiment = replace(gps.load(name), **changes)
        print(f"{name}: {experiment.iterations} iterations, {experiment.samples} samples")
        print(f"{'seed':>4}" + "".join(f"{c:>12}" for c in COLUMNS))
        rows = []
        for seed in args.seeds:
            try:
                rows.append(run(experiment, seed))
            except GPSError as error:
                print(f"{seed:4d}  {error}", flush=True)
                rows.append([float("nan")] * len(COLUMNS))
                continue
            print(f"{seed:4d}" + "".join(f"{v:12.4g}" for v in rows[-1]), flush=True)
        mean, deviation = np.mean(rows, axis=0), np.std(rows, axis=0)
        print("mean" + "".join(f"{v:12.4g}" for v in mean))
        print(" +- " + "".join(f"{v:12.2g}" for v in deviation), flush=True)


if __name__ == "__main__":
    main()
