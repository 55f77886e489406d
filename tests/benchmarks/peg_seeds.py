"""Peg insertion over several seeds: what README's table of results is made of.

    python tests/benchmarks/peg_seeds.py [--experiment NAME] [--seeds 0 1 2 3 4] [--samples N]

Runs the experiment serially, and after every iteration rolls the global policy out, noise-free,
from the unseen test conditions (these rollouts are not counted as environment steps). Prints for
each seed the distances at the last iteration, the success on the test conditions, and the number
of environment steps after which that success reaches 95 % and stays there. About 20 s a seed.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

import gps
from gps.pipeline.sampling import evaluate_condition


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="peg_insertion")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--samples", type=int, help="rollouts per condition and iteration")
    args = parser.parse_args()
    experiment = gps.load(args.experiment)
    if args.samples is not None:
        experiment = replace(experiment, samples=args.samples)
    policy = experiment.algorithm.trains_policy
    kind = "policy" if policy else "local"
    n_test = experiment.agent.build().n_test_conditions if policy else 0
    print(f"{args.experiment}, {experiment.samples} samples a condition, metres, seconds")
    print("seed  distance mean   max   test success  test mean    max  steps to 95 %  s/iteration")
    for seed in args.seeds:
        history, seconds = [], []
        for report in gps.run(experiment, seed=seed):
            seconds.append(report.seconds)
            if not n_test:
                continue
            tests = [
                evaluate_condition(
                    experiment.agent,
                    experiment.cost,
                    experiment.measure,
                    report.state.policy.policy,
                    m,
                    1,
                    0,
                    test=True,
                )
                for m in range(n_test)
            ]
            success = np.mean([t.success[0] for t in tests])
            distance = np.array([t.distance[0] for t in tests])
            history.append((report.row["env_steps"], success, distance.mean(), distance.max()))
        row = report.row
        line = f"{seed:4d}  {row[f'{kind}_distance_mean']:12.4f} {row[f'{kind}_distance_max']:7.4f}"
        if history:
            good = [success >= 0.95 for _, success, _, _ in history]
            since = len(good) - next((i for i, g in enumerate(reversed(good)) if not g), len(good))
            steps = f"{history[since][0]:.0f}" if since < len(good) else "never"
            _, success, mean, worst = history[-1]
            line += f" {100 * success:12.0f} % {mean:10.4f} {worst:6.4f} {steps:>14s}"
        print(f"{line} {np.median(seconds):12.2f}", flush=True)


if __name__ == "__main__":
    main()
