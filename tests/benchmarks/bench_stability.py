"""Long runs: whether an experiment keeps what it has reached, and which parts that needs.

    python tests/benchmarks/bench_stability.py [NAME ...] [--iterations N] [--samples N]
        [--seeds 60 61 62] [--ablate [PART ...]] [--only-ablated]

Runs each experiment for many more iterations than it needs, serially and in memory. NAME is that of
an experiment, a path, or one of this file's own: pole (InvertedPendulum-v5 by MDGPS), hopper and
cheetah (Hopper-v5 and HalfCheetah-v5 by trajectory optimisation), which need the extra gym. Without
names all of LONG are run, each for as many iterations as stand there.

A line for each seed, of noise-free rollouts as `gps.pipeline.progress` judges them: the best
iteration (highest success, then least cost) with its cost, distance and success; of the last ten
iterations the largest distance, the highest cost and the least success; whether the run `holds`,
see `holds`; the distance of the last iteration; `exploration_std` of the first and the last
iteration; how often the guard spoke; processor seconds. Distances are in the unit of the measure.
The last line is the mean over seeds; of `holds` it is the share.

--ablate repeats that for variants of the experiment, each with one part taken away or exchanged
(PARTS; without a name all of them, `floor+jacobian` for two at once). A variant that an experiment
has no field for is passed over. What it brings to keep the best iteration stands in every line:
`cost` and `distance` are those of the best one, `end` is that of the last. --only-ablated leaves
out the experiment as it is.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

import gps
from gps.agents import GymnasiumConfig, random_starts
from gps.algorithms import MDGPSConfig, TrajOptConfig
from gps.algorithms.exploration import ExplorationConfig
from gps.control import HoldConfig, OpenLoopConfig
from gps.costs import (
    ActionCost,
    EndpointMeasure,
    FittedRewardCost,
    StateCost,
    SumCost,
    WeightedCost,
)
from gps.errors import ConfigError, GPSError
from gps.pipeline import Experiment
from gps.pipeline.progress import Row, best, results
from gps.policies import TrainingConfig

LAST = 10
"""Iterations at the end that are looked at."""
NAN = math.nan


# experiments


def pole() -> Experiment:
    """Keep the pole upright and bring the cart to the middle, one policy for four starts."""
    agent = GymnasiumConfig(
        env="InvertedPendulum-v5",
        T=100,
        obs=("joint_pos", "joint_vel"),
        conditions=random_starts(4, seed=1, purpose="training"),
        start_qpos_std=(0.3, 0.03),
        start_qvel_std=0.1,
    )
    position = StateCost(entry="joint_pos", target=0.0, weights=(1.0, 10.0), l2=1.0)
    velocity = StateCost(entry="joint_vel", target=0.0, l2=0.05)
    terms = (position, velocity, ActionCost(weights=1e-2))
    return Experiment(
        name="pole",
        agent=agent,
        cost=SumCost(terms=tuple(WeightedCost(cost=term) for term in terms)),
        # a push of the cart towards where the pole falls
        initial=HoldConfig(joints=(1,), gains=(-10.0,), stiffness=10.0, variance=0.1),
        # metres of the cart and radians of the pole in one distance, both to be 0
        measure=EndpointMeasure(entry="joint_pos", target=(0.0, 0.0), point_size=2, threshold=0.05),
        # what docs/stability.md says of it was measured without replay
        algorithm=MDGPSConfig(training=TrainingConfig(weight_decay=1e-2), replay=0),
        samples=5,
        iterations=60,
    )


def runner(name: str, env: str) -> Experiment:
    """Collect an environment's own reward for 100 steps from two starts; no measure of success."""
    return Experiment(
        name=name,
        agent=GymnasiumConfig(
            env=env,
            T=100,
            state=("joint_pos", "joint_vel", "reward"),
            conditions=random_starts(2, seed=1, purpose="training"),
        ),
        cost=FittedRewardCost(),
        initial=OpenLoopConfig(variance=0.1),
        algorithm=TrajOptConfig(),
        samples=20,
        iterations=40,
    )


OWN: dict[str, Callable[[], Experiment]] = {
    "pole": pole,
    "hopper": lambda: runner("hopper", "Hopper-v5"),
    "cheetah": lambda: runner("cheetah", "HalfCheetah-v5"),
}
LONG = {
    "arm_reach": 150,
    "peg_insertion": 60,
    "reacher": 60,
    "peg_insertion_badmm": 40,
    "peg_insertion_local": 40,
    "door_policy": 40,
    "pole": 60,
    "hopper": 40,
    "cheetah": 40,
}


def load(name: str) -> Experiment:
    """The experiment of this file, of the toolkit, or of a path."""
    return OWN[name]() if name in OWN else gps.load(name)


# what is taken away


class DoesNotApply(Exception):
    """The experiment has no such part, or does not use it."""


def changed(experiment: Experiment, field: str, change: Callable[[Any], Any]) -> Experiment:
    """The experiment whose algorithm has another value of `field`."""
    algorithm = experiment.algorithm
    if field not in {f.name for f in fields(algorithm)}:
        raise DoesNotApply(f"{type(algorithm).__name__} has no {field}")
    old = getattr(algorithm, field)
    new = change(old)
    if new == old:
        raise DoesNotApply(f"{field} is {old!r} already")
    return replace(experiment, algorithm=replace(algorithm, **{field: new}))


def without_floor(experiment: Experiment) -> Experiment:
    """No least noise."""
    return changed(experiment, "exploration", lambda _: ExplorationConfig(floor=0))


def without_guard(experiment: Experiment) -> Experiment:
    """Every update is kept, and no model is doubted."""
    off = dict.fromkeys(("setback", "explosion", "policy_gap", "disagreement"), math.inf)
    return changed(experiment, "guard", lambda guard: replace(guard, **off))


def guarded_by_last(experiment: Experiment) -> Experiment:
    """Setbacks are measured against the last controller instead of the best."""
    return changed(experiment, "guard", lambda guard: replace(guard, against="last"))


def without_trials(experiment: Experiment) -> Experiment:
    """The policy is never sampled in place of a controller that leaves it aside."""
    return changed(experiment, "guard", lambda guard: replace(guard, policy_trial=sys.maxsize))


def with_leaps(experiment: Experiment) -> Experiment:
    """A step grows up to fivefold at once."""
    return changed(experiment, "step", lambda step: replace(step, growth=5.0))


def other_restart(experiment: Experiment) -> Experiment:
    """The network is trained on where it was always fresh, and fresh where it was trained on."""
    return changed(experiment, "restart", lambda restart: restart is not True)


def without_decay(experiment: Experiment) -> Experiment:
    """The policy is trained without weight decay."""
    return changed(experiment, "training", lambda config: replace(config, weight_decay=0.0))


def without_replay(experiment: Experiment) -> Experiment:
    """The policy is trained at the newest states only."""
    return changed(experiment, "replay", lambda _: 0)


def by_jacobian(experiment: Experiment) -> Experiment:
    """The policy is linearised by its derivative instead of a regression."""
    return changed(experiment, "linearise", lambda config: replace(config, method="jacobian"))


def entropy_for_floor(experiment: Experiment) -> Experiment:
    """No least noise, but a constant bonus for entropy in the cost."""
    return changed(
        without_floor(experiment), "dual", lambda dual: replace(dual, entropy_weight=0.01)
    )


PARTS: dict[str, Callable[[Experiment], Experiment]] = {
    "floor": without_floor,
    "guard": without_guard,
    "last": guarded_by_last,
    "trial": without_trials,
    "growth": with_leaps,
    "restart": other_restart,
    "decay": without_decay,
    "replay": without_replay,
    "jacobian": by_jacobian,
    "entropy": entropy_for_floor,
}


# how a run went


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run in numbers; costs, distances and success of noise-free rollouts."""

    best: float
    """The best iteration."""
    cost: float
    """There, as `distance` and `success`."""
    distance: float
    success: float
    worst_distance: float
    """Of the last iterations, as `worst_cost` and `least_success`."""
    worst_cost: float
    least_success: float
    holds: float
    """1 or 0; see `holds`."""
    end: float
    """Distance of the last iteration."""
    end_cost: float
    """Its cost."""
    first_std: float
    """`exploration_std` of the first iteration."""
    last_std: float
    events: float
    """How often the guard spoke."""
    seconds: float


def holds(
    distance: float, success: float, worst: float, least: float, whole: float, lost: float
) -> bool:
    """Whether a run keeps what it has reached.

    Its last iterations lie within 1.5 times the best iteration's distance or 1 mm (or 1 mrad) of
    it, and succeed as often. Without a measure: the cost that they lost is at most a tenth of the
    whole improvement.
    """
    if math.isnan(distance):
        return lost <= 0.1 * whole
    near = worst <= max(1.5 * distance, distance + 1e-3)
    return near and (math.isnan(success) or least >= success)


def outcome(rows: Iterable[Row], events: int, seconds: float) -> Outcome:
    """What the rows of a run's iterations amount to; ConfigError where none can be judged."""
    rows = list(rows)
    reached = results(rows)
    found = best(reached)
    if found is None:
        raise ConfigError("no iteration has a finite cost")
    last = reached[-LAST:]
    # whatever cannot be had is worse than all else
    costs = [r.cost if r.counts else math.inf for r in last]
    distances = [r.distance if r.counts else math.inf for r in last]
    shares = [r.success if r.counts else 0.0 for r in last]
    measured = not math.isnan(found.distance)
    worst = max(distances) if measured else NAN
    least = NAN if math.isnan(found.success) else min(shares)
    begin = next((r.sampled for r in reached if math.isfinite(r.sampled)), found.cost)
    lost = max(costs) - found.cost
    kept = holds(found.distance, found.success, worst, least, begin - found.cost, lost)
    return Outcome(
        best=found.iteration,
        cost=found.cost,
        distance=found.distance,
        success=found.success,
        worst_distance=worst,
        worst_cost=max(costs),
        least_success=least,
        holds=float(kept),
        end=distances[-1] if measured else NAN,
        end_cost=costs[-1],
        first_std=rows[0].get("exploration_std", NAN),
        last_std=rows[-1].get("exploration_std", NAN),
        events=events,
        seconds=seconds,
    )


def run(experiment: Experiment, seed: int) -> Outcome:
    """A whole run in memory; GPSError where it fails."""
    begin, rows, events = time.process_time(), [], 0
    for report in gps.run(experiment, seed=seed):
        rows.append(report.row)
        events += len(report.events)
    return outcome(rows, events, time.process_time() - begin)


# the table

HEADS = {
    "best": "best",
    "cost": "cost",
    "distance": "distance",
    "success": "success",
    "worst_distance": "last10 dist",
    "worst_cost": "last10 cost",
    "least_success": "last10 succ",
    "holds": "holds",
    "end": "end",
    "end_cost": "end cost",
    "first_std": "std first",
    "last_std": "std last",
    "events": "events",
    "seconds": "seconds",
}


def line(label: str, row: Outcome | None, mean: bool = False) -> str:
    """One row of the table; `mean` shows the share that holds instead of yes or no."""
    shown = [f"{label:>8}"]
    for f in fields(Outcome):
        value = NAN if row is None else getattr(row, f.name)
        text = "-" if math.isnan(value) else f"{value:.4g}"
        if f.name == "holds" and not mean:
            text = "yes" if value == 1 else "no"
        shown.append(f"{text:>{max(10, len(HEADS[f.name]) + 1)}}")
    return "".join(shown)


def head() -> str:
    """The names of the columns."""
    return f"{'seed':>8}" + "".join(f"{h:>{max(10, len(h) + 1)}}" for h in HEADS.values())


def mean_of(rows: list[Outcome | None]) -> Outcome:
    """The mean over seeds; a run that failed does not hold, and counts in no other column."""
    done = [row for row in rows if row is not None]

    def mean(name: str) -> float:
        values = [getattr(row, name) for row in done]
        if name == "holds":
            values += [0.0] * (len(rows) - len(done))
        return float(np.mean(values)) if values else NAN

    return Outcome(**{f.name: mean(f.name) for f in fields(Outcome)})


def table(experiment: Experiment, seeds: Iterable[int]) -> Outcome:
    """Run all seeds and print their lines as they come."""
    rows: list[Outcome | None] = []
    print(head(), flush=True)
    for seed in seeds:
        try:
            rows.append(run(experiment, seed))
        except GPSError as error:
            rows.append(None)
            print(f"{seed:8d}  {type(error).__name__}: {error}", flush=True)
        else:
            print(line(str(seed), rows[-1]), flush=True)
    mean = mean_of(rows)
    print(line("mean", mean, mean=True), flush=True)
    return mean


def chosen(names: list[str] | None) -> list[str]:
    """Parts to take away: none without the option, all for the option alone."""
    wanted = list(PARTS) if names == [] else names or []
    for name in "+".join(wanted).split("+"):
        if wanted and name not in PARTS:
            raise SystemExit(f"no part {name!r}; there are: {', '.join(PARTS)}")
    return wanted


def ablated(experiment: Experiment, names: str) -> Experiment:
    """The experiment without a part, or without several, as in `floor+jacobian`."""
    for name in names.split("+"):
        experiment = PARTS[name](experiment)
    return experiment


def in_words(names: str) -> str:
    """What that means."""
    words = [PARTS[name].__doc__ or "" for name in names.split("+")]
    return "; ".join(text.rstrip(".").lower() for text in words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[60, 61, 62])
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--samples", type=int, help="rollouts per condition and iteration")
    parser.add_argument("--ablate", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--only-ablated", action="store_true", help="leave the experiment out")
    args = parser.parse_args()
    parts = chosen(args.ablate)
    for name in args.names or LONG:
        experiment = load(name)
        iterations = args.iterations or LONG.get(name, experiment.iterations)
        experiment = replace(experiment, iterations=iterations)
        if args.samples is not None:
            experiment = replace(experiment, samples=args.samples)
        print(f"{name}: {iterations} iterations, {experiment.samples} samples")
        if not args.only_ablated:
            table(experiment, args.seeds)
        for part in parts:
            words = in_words(part)
            try:
                variant = ablated(experiment, part)
                variant.validate()
            except (ConfigError, DoesNotApply) as why:
                print(f"{name}, {part} ({words}): passed over, {why}", flush=True)
                continue
            print(f"{name}, {part} ({words})", flush=True)
            table(variant, args.seeds)


if __name__ == "__main__":
    main()
