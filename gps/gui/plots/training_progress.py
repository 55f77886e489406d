"""Training progress of one run or of several: costs, success, KL, duration, memory, over the
iterations.

What a run does not hold is left out: nothing here asks which algorithm made it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gps.costs.measure import EndpointMeasure
from gps.errors import GPSError, StoreError, ranges
from gps.gui.plots.types import Line, LinePlot, Plot, Table
from gps.pipeline.checking import distance_label
from gps.pipeline.experiment import AgentConfig
from gps.pipeline.learning import joined
from gps.pipeline.sampling import agent_of
from gps.types import Array, iter_fields

if TYPE_CHECKING:
    from gps.gui.run_reader import RunReader


def progress(runs: Sequence[RunReader]) -> list[Plot]:
    """The training progress of one run, or of several in one plot each.

    Several runs: a line per run, and where more than one run has the same experiment, the mean over
    its seeds with their range, over the iterations that all of them have. Conditions and stages are
    shown of a single run only.
    """
    if not runs:
        return []
    plots: list[Plot] = [*_metric_plots(runs)]
    if len(runs) > 1:
        return [*plots, *_memory_plot(runs)]
    (run,) = runs
    first = sum(plot.name == "cost" for plot in plots)
    plots[first:first] = _condition_plots(run)
    return [
        *plots, *_stage_plots(run), *_memory_plot(runs), *_update_plots(run), *_event_table(run)
    ]  # fmt: skip


class _Metric(NamedTuple):
    """A plot of columns of metrics.csv."""

    name: str
    title: str
    unit: str
    columns: Mapping[str, str | tuple[str, str, str]]
    """From the label of a line to its column, or to those of its middle, low and high."""
    log: bool = True
    mean: bool = True
    """Whether runs of one experiment are averaged."""


def _metrics(runs: Sequence[RunReader]) -> Iterator[_Metric]:
    """Of several runs only means are shown: more lines could not be distinguished."""
    one = len(runs) == 1
    sampled = ("cost_mean", "cost_min", "cost_max") if one else "cost_mean"
    spread = ", mean and range over the samples" if one else ", mean over the samples"
    yield _Metric("cost", f"Sampled cost of a rollout{spread}", "cost", {"samples": sampled})
    best = runs[0].best if one else None
    which = "" if best is None else f"; the best iteration is {best}"
    title = f"Cost of a rollout without noise{which}"
    costs = {"local controllers": "local_cost_mean", "policy": "policy_cost_mean"}
    yield _Metric("noise_free_cost", title, "cost", costs)
    yield _Metric("success", "Success rate over the conditions, without noise", "share (1 = all)",
                  {"local controllers": "local_success", "policy": "policy_success"},
                  log=False)  # fmt: skip
    distances = {
        f"{who}, {of}": f"{column}_distance_{of}"
        for who, column in (("local controllers", "local"), ("policy", "policy"))
        for of in (("mean", "max") if one else ("mean",))
    }
    title = "Distance from the target at the last step, over the conditions"
    yield _Metric("distance", title, _distance_label(runs), distances)
    yield _Metric("kl", "KL of the update and its bound", "KL per time step (nats)",
                  {"KL bound": "kl_max", "KL": "kl_mean"})  # fmt: skip
    yield _Metric("step_multiplier", "Multiplier of the step size, mean over the conditions",
                  "multiplier", {"multiplier": "step_mult_mean"})  # fmt: skip
    yield _Metric("exploration_std", "Exploration: standard deviation of the action noise",
                  "share of half the range", {"noise": "exploration_std"})  # fmt: skip
    yield _Metric("diagnosis", "Signs of a run that does not learn: above 1 they are bad",
                  "ratio", {"clipped actions, share": "clipped_mean",
                            "error of fitted dynamics over persistence": "prediction_ratio",
                            "growth of the fitted closed loop over a rollout": "growth"},
                  mean=False)  # fmt: skip
    yield _Metric("eta", "Dual variable of the KL bound (or temperature), mean over conditions",
                  "eta (cost per nat)", {"eta": "eta_mean"})  # fmt: skip
    yield _Metric("policy_loss", "Loss of the policy after its training", "loss (nats)",
                  {"loss": "policy_loss"})  # fmt: skip
    if not one:
        yield _Metric("seconds", "Duration of an iteration", "seconds", {"seconds": "seconds"},
                      log=False, mean=False)  # fmt: skip


def _metric_plots(runs: Sequence[RunReader]) -> Iterator[Plot]:
    labels, groups = run_labels(runs), _groups(runs)
    for metric in _metrics(runs):
        lines = _metric_lines(runs, labels, groups if metric.mean else (), metric.columns)
        if lines:
            yield LinePlot(
                metric.name, metric.title, "iteration", metric.unit, tuple(lines), metric.log
            )


def run_labels(runs: Sequence[RunReader]) -> tuple[str, ...]:
    """A short name for each run: its seed, or where that is not unique its folder."""
    kinds = {run.kind for run in runs}
    for choice in (
        [f"seed {run.seed}" for run in runs] if len(kinds) == 1 else [],
        [run.label for run in runs],
        ["/".join(run.path.resolve().parts[-2:]) for run in runs],
    ):
        if choice and len(set(choice)) == len(runs):
            return tuple(choice)
    return tuple(str(run.path) for run in runs)


def _groups(runs: Sequence[RunReader]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Runs of the same experiment by their positions, where there are two or more."""
    members: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        members.setdefault(run.kind, []).append(i)
    found = [(runs[ids[0]].name, tuple(ids)) for ids in members.values() if len(ids) > 1]
    if len({name for name, _ in found}) < len(found):
        found = [(f"{name} ({runs[ids[0]].label})", ids) for name, ids in found]
    return tuple(found)


def _column(rows: Sequence[Mapping[str, float]], name: str) -> Array:
    return np.array([row.get(name, np.nan) for row in rows], dtype=float)


def _metric_lines(
    runs: Sequence[RunReader],
    labels: Sequence[str],
    groups: Sequence[tuple[str, tuple[int, ...]]],
    columns: Mapping[str, str | tuple[str, str, str]],
) -> list[Line]:
    """Lines of metrics.csv; columns: label to column, or to middle, low and high."""
    lines = []
    for what, column in columns.items():
        middle, *band = (column,) if isinstance(column, str) else column
        for run, label in zip(runs, labels, strict=True):
            y = _column(run.rows, middle)
            if not np.isfinite(y).any():
                continue
            text = what if len(runs) == 1 else f"{label}, {what}" if len(columns) > 1 else label
            low, high = (_column(run.rows, b) for b in band) if band else (None, None)
            lines.append(Line(text, _column(run.rows, "iteration"), y, low, high))
        for name, ids in groups:
            line = _mean_line([runs[i] for i in ids], name, what, middle, len(columns) > 1)
            if line is not None:
                lines.append(line)
    return lines


def _mean_line(
    runs: Sequence[RunReader], name: str, what: str, column: str, several: bool
) -> Line | None:
    """Mean over runs of one experiment, and their range, where all of them have a value."""
    values = [
        {int(r["iteration"]): r[column] for r in run.rows if np.isfinite(r.get(column, np.nan))}
        for run in runs
    ]
    common = sorted(set.intersection(*map(set, values)))
    if not common:
        return None
    y = np.array([[v[n] for n in common] for v in values])
    label = f"{name}: mean of {len(runs)} runs" + (f", {what}" if several else "")
    return Line(label, np.array(common, float), y.mean(axis=0), y.min(axis=0), y.max(axis=0))


def _memory_plot(runs: Sequence[RunReader]) -> Iterator[Plot]:
    """Peak memory of each process."""
    names = dict.fromkeys(k for run in runs for row in run.rows[-1:] for k in row)
    columns = {k.removeprefix("memory_"): k for k in names if k.startswith("memory_")}
    lines = _metric_lines(runs, run_labels(runs), (), columns)
    if lines:
        scaled = tuple(replace(line, y=line.y / 1e6) for line in lines)
        yield LinePlot("memory", "Peak memory of a process so far", "iteration", "MB", scaled)


def _condition_plots(run: RunReader) -> Iterator[Plot]:
    """Cost, step size and dual variable of every condition."""
    reports = {n: [dict(iter_fields(r)) for r in found] for n, found in run.all_reports().items()}
    x = np.array(list(reports), dtype=float)
    for field, name, title, unit in (
        ("cost_mean", "condition_cost", "Sampled cost of each condition, mean", "cost"),
        ("step_mult", "condition_step", "Step multiplier of each condition", "multiplier"),
        ("eta", "condition_eta", "Dual variable or temperature", "eta (cost per nat)"),
        ("kl", "condition_kl", "KL of each condition's update", "KL per time step (nats)"),
    ):
        lines = []
        for m in range(max(map(len, reports.values()), default=0)):
            y = np.array([r[m][field] if m < len(r) else np.nan for r in reports.values()])
            if np.isfinite(y).any():
                lines.append(Line(f"condition {m}", x, y))
        if lines:
            yield LinePlot(name, title, "iteration", unit, tuple(lines), log=True)


def _stage_plots(run: RunReader) -> Iterator[Plot]:
    """Seconds of every stage, one on top of the other."""
    rows = run.rows
    totals = {
        name.removeprefix("seconds_"): np.nan_to_num(_column(rows, name))
        for name in dict.fromkeys(k for row in rows for k in row)
        if name.startswith("seconds_")
    }
    x, below, lines = _column(rows, "iteration"), np.zeros(len(rows)), []
    for stage, seconds in sorted(totals.items(), key=lambda item: -item[1].sum()):
        lines.append(Line(stage, x, below + seconds, below, below + seconds))
        below = below + seconds
    wall = _column(rows, "seconds")
    if np.isfinite(wall).any():
        lines.append(Line("whole iteration (wall clock)", x, wall))
    if lines:
        title = "Time per stage, stacked, summed over all workers"
        yield LinePlot("seconds", title, "iteration", "seconds", tuple(lines))


def _update_plots(run: RunReader) -> Iterator[Plot]:
    """Every update of an asynchronous run, over the time at which it ended."""
    for column, title, unit, log in (
        ("cost_mean", "Sampled cost at each update of a condition", "cost", True),
        ("kl", "KL of each update of a condition", "KL per time step (nats)", True),
        ("age", "Age of the policy at each update of a condition", "versions", False),
        ("chain_seconds", "Time from one update of a condition to the next", "seconds", True),
    ):
        lines = []
        for m in sorted({int(row["condition"]) for row in run.updates if "condition" in row}):
            rows = [row for row in run.updates if row.get("condition") == m]
            y = _column(rows, column)
            if np.isfinite(y).any():
                lines.append(Line(f"condition {m}", _column(rows, "seconds"), y))
        if lines:
            name = f"updates_{column}"
            yield LinePlot(name, title, "seconds since the run began", unit, tuple(lines), log)


def _event_table(run: RunReader) -> Iterator[Plot]:
    """Interventions of the guard; conditions with the same one in one row."""
    rows = tuple(
        (str(n), ranges(who), text)
        for n, reports in run.all_reports().items()
        for who, text, _ in joined((r.condition, r.event) for r in reports if r.event)
    )
    if rows:
        columns = ("iteration", "condition", "event")
        yield Table("events", "Interventions of the guard", columns, rows)


def _distance_label(runs: Sequence[RunReader]) -> str:
    """The label of the runs' distances; without a unit where they differ, or where an experiment
    cannot be loaded on this machine: its rows can be shown all the same."""
    try:
        labels = {_label(run.experiment.measure, run.experiment.agent) for run in runs}
    except StoreError:
        return "distance"
    return labels.pop() if len(labels) == 1 else "distance"


@lru_cache(maxsize=32)
def _label(measure: EndpointMeasure | None, config: AgentConfig) -> str:
    """The label of the distances of a measure, which depends on the agent where it names no unit
    for end points: models have other units of length than m."""
    if measure is None or measure.unit is not None or measure.entry != "end_points":
        return "distance" if measure is None else measure.distance_label
    try:
        return distance_label(measure, agent_of(config))
    except GPSError:  # an agent that cannot be built on this machine
        return measure.distance_label


__all__ = ["progress", "run_labels"]
