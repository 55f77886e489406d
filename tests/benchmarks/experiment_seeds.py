"""Experiments over several seeds: how they end, and what that takes.

    python tests/benchmarks/experiment_seeds.py NAME [NAME ...] [--seeds 0 1 2 3 4]
        [--iterations N] [--samples N] [--fresh N [--test-seed 1]]

Runs every experiment serially and prints one line for each seed: of the last iteration the cost of
a noise-free rollout (the global policy's where there is one, else the local controllers'), mean and
largest distance from the target over conditions, the share of conditions that succeed, and
the first iteration from which on all succeed; then the seconds of the whole run. The last line is
the mean over seeds, +- the standard deviation. NAME may be a path.

Where there is a policy and the agent has test conditions, a second line for each seed says how the
policy does there, likewise noise-free: the mean and largest distance and the share that succeed
after the last iteration; then the control steps and the seconds until that share reached 95 % and
stayed there. The rollouts that tell are counted neither in these steps nor in the seconds. With
--fresh the agent's function in `gps.agents.presets` draws N other test conditions in their place.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np

import gps
from gps.agents import presets
from gps.errors import ConfigError, GPSError
from gps.pipeline import Experiment
from gps.pipeline.runner import IterationReport
from gps.pipeline.sampling import agent_of, evaluate_condition

COLUMNS = ("cost", "distance", "largest", "success", "from", "seconds")
UNSEEN = ("distance", "largest", "success", "steps", "seconds")
NAN = float("nan")


def run(experiment: Experiment, seed: int) -> tuple[list[float], list[float]]:
    """The columns of one seed, and those of its test conditions, none of them without any.

    `from` is NaN when not all conditions succeed at the end; `steps` and the unseen `seconds` are
    when fewer than 95 % of the test conditions do.
    """
    kind = "policy" if experiment.algorithm.trains_policy else "local"
    tests = agent_of(experiment.agent).n_test_conditions if kind == "policy" else 0
    tests = 0 if experiment.measure is None else tests
    begin, seconds, success, unseen, row = time.perf_counter(), 0.0, [], [], {}
    for report in gps.run(experiment, seed=seed):
        seconds += time.perf_counter() - begin
        row = report.row
        success.append(row[f"{kind}_success"])
        if tests:
            unseen.append([*_unseen(experiment, report, tests), row["env_steps"], seconds])
        begin = time.perf_counter()
    since = _since([share >= 1.0 for share in success])
    columns = [
        row[f"{kind}_cost_mean"],
        row[f"{kind}_distance_mean"],
        row[f"{kind}_distance_max"],
        success[-1],
        NAN if since is None else since + 1,
        seconds,
    ]
    if not tests:
        return columns, []
    since = _since([share >= 0.95 for _, _, share, _, _ in unseen])
    return columns, unseen[-1][:3] + ([NAN, NAN] if since is None else unseen[since][3:])


def _since(good: list[bool]) -> int | None:
    """Index from which on all are good; None if the last one is not."""
    failed = max((i for i, g in enumerate(good) if not g), default=-1)
    return failed + 1 if failed + 1 < len(good) else None


def _unseen(experiment: Experiment, report: IterationReport, tests: int) -> list[float]:
    """Mean and largest distance, and the success, of the policy on the test conditions."""
    ended = [
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
        for m in range(tests)
    ]
    distance = [e.distance[0] for e in ended]
    share = np.mean([e.success[0] for e in ended])
    return [float(np.mean(distance)), float(np.max(distance)), float(share)]


def with_fresh(experiment: Experiment, count: int, test_seed: int) -> Experiment:
    """The experiment with `count` newly drawn test conditions; ConfigError where none are drawn."""
    name = experiment.name.removesuffix("_images").removesuffix("_policy")
    make = getattr(presets, name, None)
    if make is None:
        raise ConfigError(
            f"{experiment.name}: no function of gps.agents.presets draws its conditions"
        )
    drawn = make(n_test=count, test_seed=test_seed).test_conditions
    return replace(experiment, agent=replace(experiment.agent, test_conditions=drawn))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--samples", type=int, help="rollouts per condition and iteration")
    parser.add_argument("--fresh", type=int, metavar="N", help="draw N other test conditions")
    parser.add_argument("--test-seed", type=int, default=1, help="their seed")
    args = parser.parse_args()
    changes = {k: v for k in ("iterations", "samples") if (v := getattr(args, k)) is not None}
    for name in args.names:
        experiment = replace(gps.load(name), **changes)
        if args.fresh is not None:
            experiment = with_fresh(experiment, args.fresh, args.test_seed)
        print(f"{name}: {experiment.iterations} iterations, {experiment.samples} samples")
        print(f"{'seed':>8}" + "".join(f"{c:>12}" for c in COLUMNS))
        rows, unseen = [], []
        for seed in args.seeds:
            try:
                row, on_tests = run(experiment, seed)
            except GPSError as error:
                print(f"{seed:8d}  {error}", flush=True)
                rows.append([NAN] * len(COLUMNS))
                continue
            rows.append(row)
            print(f"{seed:8d}" + "".join(f"{v:12.4g}" for v in row), flush=True)
            if on_tests:
                unseen.append(on_tests)
                shown = zip(UNSEEN, on_tests, strict=True)
                print("  unseen  " + "  ".join(f"{c} {v:.4g}" for c, v in shown), flush=True)
        mean, deviation = np.mean(rows, axis=0), np.std(rows, axis=0)
        print("    mean" + "".join(f"{v:12.4g}" for v in mean))
        print("     +- " + "".join(f"{v:12.2g}" for v in deviation), flush=True)
        if unseen:
            both = zip(UNSEEN, np.mean(unseen, axis=0), np.std(unseen, axis=0), strict=True)
            print(
                "  unseen  " + "  ".join(f"{c} {m:.4g} +- {d:.2g}" for c, m, d in both), flush=True
            )


if __name__ == "__main__":
    main()
