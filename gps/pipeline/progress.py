"""How far a run has come, judged from the rows of its iterations: the best one, and convergence.

Pure functions of rows as in metrics.csv. What counts are the noise-free rollouts from the training
conditions: the policy's where the run has one (`policy_success`, `policy_cost_mean`), else those of
the local controllers. All verdicts stay the same when every cost is multiplied by a positive factor
or shifted by a constant, since costs have no unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Annotated, Literal, SupportsIndex

from gps.errors import ConfigError
from gps.fields import Kind, Whole, checked

Row = Mapping[str, float]
Verdict = Literal["improving", "converged", "noise", "stalled"]
"""improving: or too early to say; converged: nothing improves any more, and the last iterations are
about as good as the best; noise: nothing improves any more, and one iteration differs from the next
by as much as the whole run has improved; stalled: nothing improves any more, and the last
iterations are far worse than the best."""
Choice = Literal["best", "last"]
CHOICES: tuple[Choice, ...] = ("best", "last")
"""The names of iterations of a stored run."""
_WORDS = "best, last or the number of a stored iteration"
Iteration = Annotated[int | Choice, Kind(_WORDS, (SupportsIndex, str))]
"""An iteration of a stored run; see `choice`."""

COLUMNS = (
    *(f"{who}_{what}" for who in ("local", "policy") for what in ("success", "cost_mean")),
    *(f"{who}_distance_mean" for who in ("local", "policy")),
    "cost_mean",
    "policy_updates",
)
"""What is looked at of a row, with the iteration."""

PATIENCE = 10
"""Iterations without improvement after which a run has converged."""
TOLERANCE = 0.01
"""Share of the whole improvement that does not count as one."""
_NEAR = 0.1
"""Share of the improvement on the first rollouts, and of conditions that succeed, by which the last
iterations may be worse than the best."""
_NOISE = 5.0
"""The same in deviations of the cost from one iteration to the next."""


@dataclass(frozen=True)
class Result:
    """What one iteration reached, without noise, from the training conditions."""

    iteration: int
    who: Literal["policy", "local"]
    success: float
    """Share of the conditions that succeed; NaN without a measure of success."""
    cost: float
    """Sum over a rollout, mean over the conditions; not finite where it could not be had."""
    distance: float
    """The experiment's measure, mean over the conditions; NaN without one."""
    sampled: float
    """Cost of the rollouts from which the iteration was made, mean."""

    @property
    def counts(self) -> bool:
        """Whether it can be compared with others."""
        return math.isfinite(self.cost)

    def better(self, other: Result) -> bool:
        """Higher success, or as high and a lower cost; whatever counts is better than what does
        not. An unknown success is below any other."""
        if self.counts and other.counts:
            return (_share(self), -self.cost) > (_share(other), -other.cost)
        return self.counts and not other.counts


def results(rows: Iterable[Row]) -> list[Result]:
    """What the iterations reached, in order; of one that was repeated the last row counts.

    A snapshot of an asynchronous run from before the first training of its policy does not count.
    """
    latest = {int(row["iteration"]): row for row in rows}
    latest = {n: latest[n] for n in sorted(latest) if n > 0}
    nan = math.nan
    policy = any(math.isfinite(row.get("policy_cost_mean", nan)) for row in latest.values())
    who: Literal["policy", "local"] = "policy" if policy else "local"
    found = []
    for n, row in latest.items():
        untrained = policy and row.get("policy_updates", nan) == 0
        success, cost, distance = (
            row.get(f"{who}_{what}", nan) for what in ("success", "cost_mean", "distance_mean")
        )
        cost = nan if untrained else cost
        found.append(Result(n, who, success, cost, distance, row.get("cost_mean", nan)))
    return found


def best(reached: Sequence[Result]) -> Result | None:
    """The best of some results, the earliest of equals; None where none counts."""
    found: Result | None = None
    for result in reached:
        if result.counts and (found is None or result.better(found)):
            found = result
    return found


def best_iteration(rows: Iterable[Row]) -> int | None:
    """The best iteration; None where no row has a finite cost.

    It has the highest success, and of those the lowest cost. Of equal ones it is the earliest,
    which took the minimum of samples.
    """
    found = best(results(rows))
    return None if found is None else found.iteration


def verdict(rows: Iterable[Row], patience: int = PATIENCE, tolerance: float = TOLERANCE) -> Verdict:
    """Whether a run still improves.

    It does not if in its last `patience` iterations success has not risen, and the lowest cost has
    fallen by no more than the share `tolerance` of its whole improvement: to the lowest, from that
    of the first rollouts or of the first iteration's result, whichever is lower: one of the two may
    explode. Then it has converged if the median of those last iterations is near the best:
    success within 0.1, and cost within a tenth of the improvement on the first rollouts, or five
    times the noise, by which the cost differs from one iteration to the next. Where it is near by
    the noise only, and five times that is all of the improvement, nothing is known but noise.
    Otherwise it has stalled. Iterations without a finite cost are worse than all others.
    """
    if patience < 1:
        raise ConfigError(f"patience must be at least 1, got {patience}")
    if not 0 <= tolerance < 1:
        raise ConfigError(f"tolerance must be from 0 to below 1, got {tolerance}")
    return _verdict(results(rows), patience, tolerance)


def _verdict(reached: Sequence[Result], patience: int, tolerance: float) -> Verdict:
    known = [r for r in reached if r.counts]
    earlier, recent = reached[:-patience], reached[-patience:]
    before = [r for r in earlier if r.counts]
    if not before:
        return "improving"
    lowest, highest = min(r.cost for r in known), max(_share(r) for r in known)
    begin = next((r.sampled for r in reached if math.isfinite(r.sampled)), known[0].cost)
    whole = max(min(begin, known[0].cost) - lowest, 0.0)
    if highest > max(_share(r) for r in before):
        return "improving"
    if min(r.cost for r in before) - lowest > tolerance * whole:
        return "improving"
    costs = [r.cost if r.counts else math.inf for r in recent]
    if median(map(_share, recent)) < highest - _NEAR:
        return "stalled"
    gap, gained, noise = median(costs) - lowest, begin - lowest, _NOISE * _noise(costs)
    if gap <= _NEAR * gained:
        return "converged"
    if gap <= noise:
        return "converged" if noise < gained else "noise"
    return "stalled"


def _noise(costs: Sequence[float]) -> float:
    """How much a cost differs from one iteration to the next, about a steady trend: the median."""
    steps = [b - a for a, b in pairwise(costs) if math.isfinite(b - a)]
    return median(abs(step - median(steps)) for step in steps) if steps else 0.0


def _share(result: Result) -> float:
    """Its success for comparisons: below any other where it is unknown."""
    return -1.0 if math.isnan(result.success) or not result.counts else result.success


def converged(rows: Iterable[Row], patience: int = PATIENCE, tolerance: float = TOLERANCE) -> bool:
    """Whether nothing improves any more, and the last iterations are as good as the best; see
    `verdict`. It makes no difference by what positive factor all costs are multiplied, and what
    constant is added."""
    return verdict(rows, patience, tolerance) == "converged"


def news(rows: Iterable[Row], patience: int = PATIENCE, tolerance: float = TOLERANCE) -> str:
    """What the last iteration has made true, in a line: that the run has converged, or that it has
    not improved for long. Empty otherwise, and where that has been said in the last `patience`
    iterations already."""
    reached = results(rows)
    now = _verdict(reached, patience, tolerance)
    if now == "improving":
        return ""
    earlier = range(max(len(reached) - patience, 1), len(reached))
    if any(_verdict(reached[:k], patience, tolerance) == now for k in earlier):
        return ""
    return _words(reached, now, patience, tolerance)


def standing(rows: Iterable[Row], patience: int = PATIENCE, tolerance: float = TOLERANCE) -> str:
    """The verdict in words; empty while the run improves."""
    reached = results(rows)
    return _words(reached, _verdict(reached, patience, tolerance), patience, tolerance)


def _words(reached: Sequence[Result], now: Verdict, patience: int, tolerance: float) -> str:
    found = best(reached)
    if now == "improving" or found is None:
        return ""
    if now == "converged":
        return (
            f"converged: the last {patience} iterations brought less than {100 * tolerance:g} % of "
            f"the improvement; the best is iteration {found.iteration}{_succeeds(found)}"
        )
    if now == "noise":
        return (
            f"no improvement since iteration {found.iteration}{_succeeds(found)}, and from one to "
            "the next the costs differ by as much as the whole run has brought"
        )
    return f"no improvement since iteration {found.iteration}, and the last ones are far worse"


def _succeeds(found: Result) -> str:
    """How many conditions do, where not all of them."""
    few = not math.isnan(found.success) and found.success < 1
    return f", in which {100 * found.success:.0f} % succeed" if few else ""


def summary(rows: Iterable[Row]) -> str:
    """The best iteration in a line, and the last one; empty where there is none."""
    reached = results(rows)
    found = best(reached)
    if found is None:
        return ""
    last, who = reached[-1], "policy" if found.who == "policy" else "local controllers"
    place = f"iteration {found.iteration} of {last.iteration}"
    if found is last:
        return f"best: {place}, the last ({who}: {_numbers(found)})"
    return f"best: {place} ({who}: {_numbers(found)}); last: {_numbers(last)}"


def _numbers(result: Result) -> str:
    parts = [] if math.isnan(result.success) else [f"success {100 * result.success:.0f} %"]
    parts.append(f"cost {result.cost:.5g}")
    if not math.isnan(result.distance):
        parts.append(f"distance {result.distance:.3g}")
    return ", ".join(parts)


def choice(value: object) -> int | Choice:
    """`best`, `last` or a whole number of at least 0, also as text; ConfigError for anything
    else."""
    text = value.strip() if isinstance(value, str) else value
    for name in CHOICES:
        if text == name:
            return name
    if isinstance(text, str) and text.isascii() and text.isdecimal():
        text = int(text)
    try:
        number: int = checked(text, Whole, "iteration")
    except ConfigError:
        raise ConfigError(f"iteration must be {_WORDS}, got {value!r}") from None
    return number


__all__ = [
    "CHOICES",
    "COLUMNS",
    "PATIENCE",
    "TOLERANCE",
    "Choice",
    "Result",
    "Row",
    "Verdict",
    "best",
    "best_iteration",
    "choice",
    "converged",
    "news",
    "results",
    "standing",
    "summary",
    "verdict",
]
