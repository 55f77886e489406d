"""What is worth seeing in a run, as plain plots: numbers, labels and units, and no drawing.

A plot is drawn by the browser (`gps.gui`) or by `figures`; both show the same numbers. `progress`
shows how runs went, `inspect` one condition of one iteration. What a run does not hold is left out:
nothing here asks which algorithm made it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gps.control import lqr
from gps.control.kl import penalised
from gps.errors import ConfigError, GPSError, NotPositiveDefiniteError, StoreError, choices
from gps.protocols import needs_images
from gps.types import (
    Array,
    Layout,
    LinearDynamics,
    LinearGaussianController,
    QuadraticCost,
    Rollouts,
    iter_fields,
)

if TYPE_CHECKING:
    from gps.gui.records import RunReader

HORIZONS = (1, 5, 10, 20)
"""Steps of the predictions whose errors are shown."""
_LINES = 4  # of one state entry in a plot; each has a mean and a spread beside it
TOPICS = ("trajectory", "cost", "controller", "dynamics", "policy", "dual")
"""The groups of `inspect`, in the order in which one looks at them."""


@dataclass(frozen=True, eq=False)
class Line:
    """One line of a plot, with a band around it where `low` and `high` are given.

    Lines whose labels agree up to the first comma belong together and share a colour.
    """

    label: str
    x: Array  # (n,)
    y: Array  # (n,)
    low: Array | None = None  # (n,)
    high: Array | None = None  # (n,)


@dataclass(frozen=True, eq=False)
class LinePlot:
    """Lines over a common axis."""

    name: str
    """Safe as a file name, and unique among the plots of its group."""
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    log: bool = False
    """A logarithmic axis makes sense."""
    marker: float | None = None
    """Where a vertical line stands, for instance at the chosen time step."""


@dataclass(frozen=True, eq=False)
class HeatMap:
    """A matrix in colours: one row per name, one column per value of `x`."""

    name: str
    title: str
    x_label: str
    y_label: str
    x: Array  # (n,)
    rows: tuple[str, ...]
    values: Array  # (len(rows), n)
    unit: str = ""
    marker: float | None = None


@dataclass(frozen=True, eq=False)
class Table:
    """Text in rows and columns."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Plot = LinePlot | HeatMap | Table

LOGARITHM = ", logarithm to base 10"
"""How the label of an x axis ends whose values are logarithms."""


def axis_of(plot: Plot) -> str:
    """What lies along the x axis, of those things that are counted and can be selected: `time step`
    or `iteration`; empty for others."""
    label = "" if isinstance(plot, Table) else plot.x_label
    return next((name for name in ("time step", "iteration") if label.startswith(name)), "")


def _distance_label(runs: Sequence[RunReader]) -> str:
    """What the runs' measures call their distance; without a unit where they differ, or where an
    experiment cannot be read here: its rows can be shown all the same."""
    try:
        measures = [run.experiment.measure for run in runs]
    except StoreError:
        return "distance"
    labels = {"distance" if measure is None else measure.distance_label for measure in measures}
    return labels.pop() if len(labels) == 1 else "distance"


def names_of(layout: Layout) -> tuple[str, ...]:
    """A name for every value of a vector: `position 0`, `position 1`, ..., `height`."""
    return tuple(
        f"{name} {i}" if size > 1 else name for name, size in layout.entries for i in range(size)
    )


# --- how runs went


def progress(runs: Sequence[RunReader]) -> list[Plot]:
    """The course of one run, or of several in one plot each.

    Several runs: a line per run, and where more than one run has the same experiment, the mean over
    its seeds with their range, over the iterations that all of them have. Conditions and stages are
    shown of the first run only.
    """
    if not runs:
        return []
    labels, groups = run_labels(runs), _groups(runs)
    plots: list[Plot] = []

    def add(
        name: str, title: str, unit: str, columns: Mapping[str, str | tuple[str, str, str]],
        log: bool = False, mean: bool = True,
    ) -> None:  # fmt: skip
        lines = _metric_lines(runs, labels, groups if mean else (), columns)
        if lines:
            plots.append(LinePlot(name, title, "iteration", unit, tuple(lines), log))

    one = len(runs) == 1
    cost = ("cost_mean", "cost_min", "cost_max") if one else "cost_mean"
    spread = ", mean and range over the samples" if one else ", mean over the samples"
    add("cost", f"Sampled cost of a rollout{spread}", "cost", {"samples": cost}, log=True)
    if one:
        plots += _condition_plots(runs[0])
    noise_free = {"local controllers": "local_cost_mean", "policy": "policy_cost_mean"}
    best = runs[0].best if one else None
    which = "" if best is None else f"; the best iteration is {best}"
    add("noise_free_cost", f"Cost of a rollout without noise{which}", "cost", noise_free, log=True)
    add("success", "Share of conditions that succeed, without noise", "share (1 = all)",
        {"local controllers": "local_success", "policy": "policy_success"})  # fmt: skip
    distance = {
        f"{who}, {of}": f"{column}_distance_{of}"
        for who, column in (("local controllers", "local"), ("policy", "policy"))
        for of in (("mean", "max") if one else ("mean",))
    }
    add("distance", "Distance from the target at the end, over the conditions",
        _distance_label(runs), distance, log=True)  # fmt: skip
    add("kl", "KL of the update, used and allowed", "KL per time step (nats)",
        {"KL allowed": "kl_max", "KL used": "kl_mean"}, log=True)  # fmt: skip
    add("step_multiplier", "Multiplier of the step size, mean over the conditions", "multiplier",
        {"multiplier": "step_mult_mean"}, log=True)  # fmt: skip
    add("exploration_std", "Exploration: standard deviation of the action noise",
        "share of half the range", {"noise": "exploration_std"}, log=True)  # fmt: skip
    add("eta", "Dual variable of the KL bound (or temperature), mean over conditions",
        "eta (cost per nat)", {"eta": "eta_mean"}, log=True)  # fmt: skip
    add("policy_loss", "Loss of the policy after its training", "loss (nats)",
        {"loss": "policy_loss"}, log=True)  # fmt: skip
    if one:
        plots += _stage_plots(runs[0])
    else:
        add("seconds", "Duration of an iteration", "seconds", {"seconds": "seconds"}, mean=False)
    plots += _memory_plot(runs, labels)
    if one:
        plots += _update_plots(runs[0])
        plots += _event_table(runs[0])
    return plots


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


def _memory_plot(runs: Sequence[RunReader], labels: Sequence[str]) -> Iterator[Plot]:
    """The most memory that each process has held."""
    names = dict.fromkeys(k for run in runs for row in run.rows[-1:] for k in row)
    columns = {k.removeprefix("memory_"): k for k in names if k.startswith("memory_")}
    lines = [replace(line, y=line.y / 1e6) for line in _metric_lines(runs, labels, (), columns)]
    if lines:
        title = "Most memory that a process has held so far"
        yield LinePlot("memory", title, "iteration", "MB", tuple(lines))


def _condition_plots(run: RunReader) -> Iterator[Plot]:
    """Cost, step size and dual variable of every condition."""
    reports = run.all_reports()
    count = max((len(r) for r in reports.values()), default=0)
    kinds: tuple[tuple[str, str, str, str], ...] = (
        ("cost_mean", "condition_cost", "Sampled cost of each condition, mean", "cost"),
        ("step_mult", "condition_step", "Step multiplier of each condition", "multiplier"),
        ("eta", "condition_eta", "Dual variable or temperature", "eta (cost per nat)"),
        ("kl", "condition_kl", "KL of each condition's update", "KL per time step (nats)"),
    )
    x = np.array(list(reports), dtype=float)
    for field, name, title, unit in kinds:
        lines = []
        for m in range(count):
            y = [getattr(r[m], field, np.nan) if m < len(r) else np.nan for r in reports.values()]
            if np.isfinite(y).any():
                lines.append(Line(f"condition {m}", x, np.array(y, dtype=float)))
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
        title = "Work per stage, stacked: seconds of all workers together"
        yield LinePlot("seconds", title, "iteration", "seconds", tuple(lines))


def _update_plots(run: RunReader) -> Iterator[Plot]:
    """Every update of an asynchronous run, over the time at which it was finished."""
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
    """What the guard had to do."""
    rows = tuple(
        (str(n), str(report.condition), report.event)
        for n, reports in run.all_reports().items()
        for report in reports
        if getattr(report, "event", "")
    )
    if rows:
        columns = ("iteration", "condition", "event")
        yield Table("events", "What the guard did", columns, rows)


# --- one condition of one iteration


def inspect(
    run: RunReader, iteration: int, condition: int, sample: int = 0, t: int | None = None
) -> dict[str, list[Plot]]:
    """What one iteration found for one condition, by topic (see `TOPICS`).

    sample: which of the sampled rollouts is singled out. t: the time step that is marked and whose
    numbers are given in a table; None for neither. Topics without anything to show are left out.
    """
    found = {name: topic(name, run, iteration, condition, sample, t) for name in TOPICS}
    return {name: plots for name, plots in found.items() if plots}


def topic(
    name: str,
    run: RunReader,
    iteration: int,
    condition: int,
    sample: int = 0,
    t: int | None = None,
    instead: tuple[str, Rollouts] | None = None,
) -> list[Plot]:
    """One topic of `inspect`, without the work for the others; ConfigError for an unknown one.

    instead: the name of another rollout, and rollouts with that one alone, which the trajectory
    then shows in place of the sample.
    """
    parts: dict[str, Callable[[_View], Iterator[Plot]]] = {
        "trajectory": _trajectory,
        "cost": _cost,
        "controller": _controller,
        "dynamics": _dynamics,
        "policy": _policy,
        "dual": _dual,
    }
    if name not in parts:
        raise ConfigError(choices("topic", name, TOPICS))
    view = _View(run, iteration, condition, sample, t)
    view.instead = instead
    return list(parts[name](view))


class _View:
    """What is looked at, and how its axes are called."""

    def __init__(self, run: RunReader, n: int, m: int, i: int, t: int | None) -> None:
        self.run, self.n, self.m, self.i, self.t = run, n, m, i, t
        self.at = (n, m)
        self.mark = None if t is None else float(t)
        self.instead: tuple[str, Rollouts] | None = None
        self.rollouts = run.rollouts(n, m)
        if self.rollouts is not None and not 0 <= i < self.rollouts.N:
            self.rollouts = None
        try:
            dt: float | None = run.agent.dt
        except GPSError:  # an agent that cannot be built here: its records can still be read
            dt = None
        self.steps = "time step t" if dt is None else f"time step t ({dt:g} s each)"

    def x_names(self, nx: int) -> tuple[str, ...]:
        """Names of the state's values."""
        try:
            names = names_of(self.run.layout)
        except GPSError:
            names = ()
        return names if len(names) == nx else tuple(f"x {i}" for i in range(nx))

    def lines(
        self,
        name: str,
        title: str,
        unit: str,
        values: Array,
        labels: Sequence[str],
        *,
        log: bool = False,
    ) -> LinePlot:
        """A plot over time of the columns of `values` (n, k)."""
        x = np.arange(len(values), dtype=float)
        drawn = tuple(Line(label, x, y) for label, y in zip(labels, values.T, strict=True))
        return LinePlot(name, title, self.steps, unit, drawn, log, self.mark)

    def map(
        self, name: str, title: str, values: Array, rows: Sequence[str], unit: str = ""
    ) -> HeatMap:
        """A heat map over time of `values` (k, T)."""
        x = np.arange(values.shape[1], dtype=float)
        return HeatMap(name, title, self.steps, "", x, tuple(rows), values, unit, self.mark)


def _actions(nu: int) -> tuple[str, ...]:
    return tuple(f"action {j}" for j in range(nu))


def _safe(text: str) -> str:
    """Text as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_") or "unnamed"


def _text(value: float) -> str:
    return f"{value:.6g}"


def _trajectory(view: _View) -> Iterator[Plot]:
    """States and actions of the chosen sample, with mean and range of all."""
    r = view.rollouts
    if r is None:
        return
    what, X, U = f"sample {view.i}", r.X[view.i], r.U[view.i]
    if view.instead is not None:
        what, X, U = view.instead[0], view.instead[1].X[0], view.instead[1].U[0]
    for entry, size in r.layout.entries:
        at = r.layout.slice(entry)
        yield from _spread_plots(view, (entry, entry, what), X[:, at], r.X[:, :, at], size)
    yield from _spread_plots(view, ("actions", "action", what), U, r.U, r.nu)


def _spread_plots(
    view: _View, names: tuple[str, str, str], one: Array, values: Array, size: int
) -> Iterator[Plot]:
    """names: of the plots, their values and what is singled out: one (T, size); values: of all
    samples (N, T, size)."""
    name, entry, what = names
    x = np.arange(values.shape[1], dtype=float)
    for first in range(0, size, _LINES):
        numbers = range(first, min(first + _LINES, size))
        lines = []
        for k in numbers:
            label, v = (f"{entry} {k}" if size > 1 else entry), values[:, :, k]
            lines.append(Line(label, x, one[:, k]))
            lines.append(Line(f"{label}, mean and range", x, v.mean(0), v.min(0), v.max(0)))
        part = "" if size <= _LINES else f"_{numbers[0]}-{numbers[-1]}"
        some = "" if not part else f" {numbers[0]} to {numbers[-1]}"
        title = f"{name}{some}: {what}; mean and range of {len(values)} samples"
        yield LinePlot(_safe(name) + part, title, view.steps, entry, tuple(lines), False, view.mark)


def _cost(view: _View) -> Iterator[Plot]:
    """Cost per step: sampled, expected, and term by term."""
    run, lines = view.run, []
    l = run.cost_samples(*view.at)  # noqa: E741
    if l is not None:
        x = np.arange(l.shape[1], dtype=float)
        lines.append(Line("samples, mean and range", x, l.mean(0), l.min(0), l.max(0)))
        if 0 <= view.i < len(l):
            lines.append(Line(f"sample {view.i}", x, l[view.i]))
    quadratic, fit = run.quadratic_cost(*view.at), run.dynamics(*view.at)
    if quadratic is not None and fit is not None:
        for when, controller in (
            ("before", run.sampled_controller(*view.at)),
            ("after", run.controller(*view.at)),
        ):
            if controller is None:
                continue
            try:
                marginals = lqr.forward(fit.dynamics, controller, fit.start)
                expected = lqr.expected_cost(quadratic, marginals)
            except GPSError:  # the model explodes under this controller
                continue
            label = f"expected of the controller {when} the update"
            lines.append(Line(label, np.arange(len(expected), dtype=float), expected))
    if lines:
        title = "Cost per step: sampled, and expected under the fitted model"
        yield LinePlot("per_step", title, view.steps, "cost", tuple(lines), True, view.mark)
    yield from _term_plots(view)


def cost_terms(cost: Any, rollouts: Rollouts, weight: float = 1.0) -> list[tuple[str, Array]]:
    """The weighted terms of a sum of costs with their values (N, T), those of nested sums apart.

    A sum is whatever has `terms`, each with a `cost` and a `weight`; other costs are one term.
    """
    terms = getattr(cost, "terms", None)
    if isinstance(terms, Sequence) and all(
        hasattr(term, "cost") and hasattr(term, "weight") for term in terms
    ):
        found = [
            part for term in terms for part in cost_terms(term.cost, rollouts, weight * term.weight)
        ]
        return _numbered(found)
    entry = getattr(cost, "entry", None)
    label = type(cost).__name__ + (f" {entry}" if isinstance(entry, str) else "")
    return [(label, weight * cost.evaluate(rollouts).l)]


def _numbered(found: list[tuple[str, Array]]) -> list[tuple[str, Array]]:
    """Labels that occur twice get numbers."""
    plain = [re.sub(r" #\d+$", "", label) for label, _ in found]
    seen: dict[str, int] = {}
    out = []
    for label, (_, values) in zip(plain, found, strict=True):
        seen[label] = seen.get(label, 0) + 1
        out.append((f"{label} #{seen[label]}" if plain.count(label) > 1 else label, values))
    return out


def _term_plots(view: _View) -> Iterator[Plot]:
    """The terms of the configured cost, evaluated on the chosen sample."""
    rollouts = view.run.rollouts(view.n, view.m, view.i)
    if rollouts is None:
        return
    try:
        terms = cost_terms(view.run.experiment.cost, rollouts)
    except GPSError:  # a hyperparams file that is gone, or a cost that needs pictures
        return
    if len(terms) < 2:
        return
    values = np.stack([v[0] for _, v in terms], axis=1)
    labels = [label for label, _ in terms]
    title = f"Terms of the cost, with their weights, of sample {view.i}"
    both = np.column_stack([values, values.sum(axis=1)])
    yield view.lines("terms", title, "cost", both, [*labels, "sum"], log=True)
    sums = values.sum(axis=0)
    size = np.abs(sums).sum() or 1.0
    rows = [
        (label, _text(total), f"{100 * abs(total) / size:.1f} %")
        for label, total in zip(labels, sums, strict=True)
    ]
    rows.append(("sum", _text(sums.sum()), ""))
    columns = ("term", "sum over the steps", "share of the absolute sums")
    yield Table("term_sums", f"Terms of the cost of sample {view.i}", columns, tuple(rows))


def _controller(view: _View) -> Iterator[Plot]:
    """The local controller after the iteration, and what its action values look like."""
    controller = view.run.controller(*view.at)
    if controller is None:
        return
    yield from _gain_plots(view, controller, "", "the controller after the update")
    found: list[tuple[str, str, Array]] = []  # name, title, eigenvalues (T, nu)
    yield from _q_uu_plots(view, found)
    if view.t is not None and 0 <= view.t < controller.T:
        yield _numbers_at(view, controller, found)


def _gain_plots(
    view: _View, controller: LinearGaussianController, prefix: str, whose: str
) -> Iterator[Plot]:
    """Gains, offsets and exploration over time."""
    T, nu, nx = controller.K.shape
    x_names, actions = view.x_names(nx), _actions(nu)
    rows = [f"{a} <- {x}" for a in actions for x in x_names]
    gains = controller.K.reshape(T, nu * nx).T
    unit = "action per unit of state"
    yield view.map(f"{prefix}gains", f"Gains K of {whose}", gains, rows, unit)
    title = f"Offset k of {whose}: u = K x + k"
    yield view.lines(f"{prefix}offset", title, "action", controller.k, actions)
    Sigma = controller.Sigma
    std = np.sqrt(np.diagonal(Sigma, axis1=1, axis2=2))
    title = f"Exploration of {whose}: standard deviation of its actions"
    yield view.lines(f"{prefix}exploration", title, "action", std, actions, log=True)
    if nu > 1:
        pairs = [(i, j) for i in range(nu) for j in range(i)]
        scale = std[:, :, None] * std[:, None, :]
        values = np.stack([(Sigma / scale)[:, i, j] for i, j in pairs])
        names = [f"{actions[j]}, {actions[i]}" for i, j in pairs]
        title = f"Exploration of {whose}: correlation of its actions"
        yield view.map(f"{prefix}correlation", title, values, names, "1")


def _q_uu_plots(view: _View, found: list[tuple[str, str, Array]]) -> Iterator[Plot]:
    """Eigenvalues of Q_uu by the backward pass; adds them to `found`."""
    cost, fit = view.run.quadratic_cost(*view.at), view.run.dynamics(*view.at)
    if cost is None or fit is None:
        return
    problems = [("q_uu", "the fitted cost alone", "cost per action squared", cost)]
    known = update_objective(view.run, *view.at)
    if known is not None:
        objective, what = known
        problems.append(("q_uu_kl", what, "nats per action squared", objective))
    for name, what, unit, objective in problems:
        title = f"Eigenvalues of Q_uu under {what}"
        try:
            values = np.asarray(
                np.linalg.eigvalsh(action_hessian(fit.dynamics, objective)), dtype=np.float64
            )
        except NotPositiveDefiniteError as error:
            yield Table(name, title, ("the backward pass ended",), ((str(error),),))
            continue
        except GPSError as error:
            yield Table(name, title, ("the backward pass failed",), ((str(error),),))
            continue
        labels = [f"eigenvalue {j}" for j in range(values.shape[1])]
        found.append((name, what, values))
        yield view.lines(name, title, unit, values, labels, log=True)


def action_hessian(dynamics: LinearDynamics, cost: QuadraticCost) -> Array:
    """Q_uu of every step under the optimal controller, (T, nu, nu); see `gps.control.lqr`.

    Raises NotPositiveDefiniteError where it is not, and the errors of `lqr.backward`.
    """
    precision: Array = lqr.backward(dynamics, cost).precision  # Sigma = Q_uu^-1 at temperature 1
    return precision


def update_objective(run: RunReader, n: int, m: int) -> tuple[QuadraticCost, str] | None:
    """The cost with the KL term that the update minimised, and its name; None if unknown.

    The stored eta and each controller that the KL may be measured from are tried, and only an
    objective whose optimum is the stored controller is believed.
    """
    cost, fit, found = run.quadratic_cost(n, m), run.dynamics(n, m), run.dual(n, m)
    eta, optimum = getattr(found, "eta", None), getattr(found, "controller", None)
    if cost is None or fit is None or optimum is None or not isinstance(eta, float):
        return None
    for name, reference in (
        ("the linearised policy", run.linearised(n, m)),
        ("the controller before the update", run.sampled_controller(n, m)),
    ):
        if reference is None:
            continue
        try:
            objective = penalised(cost, reference, eta)
            again = lqr.backward(fit.dynamics, objective)
        except GPSError:
            continue
        size = max(1.0, float(np.abs(optimum.K).max()))
        if np.abs(again.K - optimum.K).max() <= 1e-6 * size:
            return objective, f"(cost - eta log p) / eta, eta = {eta:.4g}, p {name}"
    return None


def _numbers_at(
    view: _View, controller: LinearGaussianController, eigenvalues: list[tuple[str, str, Array]]
) -> Table:
    """The controller's numbers at the chosen step, an action a column."""
    t = view.t or 0
    rows = [
        ("offset k", *map(_text, controller.k[t])),
        ("standard deviation", *map(_text, np.sqrt(np.diag(controller.Sigma[t])))),
    ]
    for i, name in enumerate(view.x_names(controller.nx)):
        rows.append((f"gain of {name}", *map(_text, controller.K[t, :, i])))
    for j in range(controller.nu):
        rows.append((f"covariance with action {j}", *map(_text, controller.Sigma[t, j])))
    for _, what, values in eigenvalues:
        rows.append((f"eigenvalues of Q_uu under {what}", *map(_text, values[t])))
    title = f"The controller after the update at t = {t}"
    return Table("at_step", title, ("", *_actions(controller.nu)), tuple(rows))


# --- dynamics


@dataclass(frozen=True, eq=False)
class PredictionErrors:
    """Root mean square over samples and the values of an entry, (T - h,), from every start step."""

    model: Array
    unchanged: Array
    """Of the prediction that the state stays what it is."""
    velocity: Array
    """Of the prediction that it goes on changing as in the last step; NaN at t = 0."""


def open_loop(dynamics: LinearDynamics, X: Array, U: Array, h: int) -> Array:
    """Mean states after h steps with the sampled actions, from every step: (N, T - h, nx).

    X (N, T, nx), U (N, T, nu): the prediction from t is to be compared with X[:, t + h].
    """
    S = X.shape[1] - h
    x = X[:, :S]
    with np.errstate(over="ignore", invalid="ignore"):  # an unstable model: infinity is the answer
        for k in range(h):
            z = np.concatenate([x, U[:, k : k + S]], axis=2)
            x = np.einsum("sxz,nsz->nsx", dynamics.F[k : k + S], z) + dynamics.f[k : k + S]
    return x


def prediction_errors(
    dynamics: LinearDynamics, X: Array, U: Array, layout: Layout, h: int
) -> dict[str, PredictionErrors]:
    """Errors h steps ahead of every state entry: of the model and of two simple predictions."""
    S = X.shape[1] - h
    target = X[:, h:]
    drift = np.full_like(X[:, :S], np.nan)
    drift[:, 1:] = X[:, 1:S] - X[:, : S - 1]
    with np.errstate(over="ignore", invalid="ignore"):
        errors = (open_loop(dynamics, X, U, h) - target, X[:, :S] - target,
                  X[:, :S] + h * drift - target)  # fmt: skip
        return {
            name: PredictionErrors(
                *(np.sqrt((e[:, :, layout.slice(name)] ** 2).mean(axis=(0, 2))) for e in errors)
            )
            for name in layout.names
        }


def _dynamics(view: _View) -> Iterator[Plot]:
    """How well the fitted dynamics predict, their noise and their prior."""
    fit = view.run.dynamics(*view.at)
    if fit is not None and view.rollouts is not None:
        yield from _prediction_plots(view, fit.dynamics, view.rollouts)
    if fit is not None:
        W = np.diagonal(fit.dynamics.W, axis1=1, axis2=2)
        values = np.log10(np.sqrt(np.maximum(W, 1e-24))).T
        title = "Process noise: standard deviation of the next state, logarithm to base 10"
        yield view.map("process_noise", title, values, view.x_names(fit.dynamics.nx), "log10")
    yield from _mixture_plots(view)


def _prediction_plots(view: _View, dynamics: LinearDynamics, rollouts: Rollouts) -> Iterator[Plot]:
    X, U, layout = rollouts.X, rollouts.U, rollouts.layout
    horizons = [h for h in HORIZONS if h < X.shape[1] - 1]
    found = {h: prediction_errors(dynamics, X, U, layout, h) for h in horizons}
    later = view.run.rollouts(view.n + 1, view.m)
    fresh = {}
    if later is not None and later.X.shape[1:] == X.shape[1:]:
        fresh = {h: prediction_errors(dynamics, later.X, later.U, layout, h) for h in horizons}
    rows = []
    for name in layout.names:
        for h in horizons:
            e = found[h][name]
            model, still, drift = (_rms(v) for v in (e.model, e.unchanged, e.velocity))
            best = min(still, drift)
            row = (name, str(h), _text(model), _text(still), _text(drift),
                   _text(model / best) if best > 0 else "-")  # fmt: skip
            rows.append((*row, _text(_rms(fresh[h][name].model))) if fresh else row)
    columns: tuple[str, ...] = (
               "state entry", "steps", "model", "x does not change", "constant velocity",
               "model / better of these")  # fmt: skip
    if fresh:  # rollouts that the fit has not seen
        columns = (*columns, f"model in iteration {view.n + 1}")
    title = "Prediction error on the samples of the fit, root mean square over samples and t > 0"
    yield Table("prediction", title, columns, tuple(rows))
    for name in layout.names:
        lines = [
            Line(f"model {h} step{'s' * (h > 1)} ahead", _count(found[h][name].model),
                 found[h][name].model)
            for h in horizons
        ]  # fmt: skip
        e = found[1][name]
        lines.append(Line("x does not change (1 step)", _count(e.unchanged), e.unchanged))
        lines.append(Line("constant velocity (1 step)", _count(e.velocity), e.velocity))
        title = f"Prediction error of {name}, by the step that it starts from"
        yield LinePlot(f"error_{_safe(name)}", title, view.steps, f"{name}, root mean square",
                       tuple(lines), True, view.mark)  # fmt: skip
    for h in horizons:
        lines = []
        for name in layout.names:
            e = found[h][name]
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = e.model / e.unchanged
            lines.append(Line(name, _count(ratio), ratio))
        title = f"Error of the model {h} step{'s' * (h > 1)} ahead, relative to 'x does not change'"
        yield LinePlot(f"relative_error_{h}", title, view.steps, "ratio", tuple(lines), True,
                       view.mark)  # fmt: skip


def _count(values: Array) -> Array:
    return np.arange(len(values), dtype=float)


def _rms(values: Array) -> float:
    """Over t > 0, where every prediction exists."""
    return float(np.sqrt((values[1:] ** 2).mean()))


def _mixture_plots(view: _View) -> Iterator[Plot]:
    """Weights and means of the prior's mixture, heaviest component first."""
    mixture = view.run.prior(*view.at)
    if mixture is None:
        return
    order = np.argsort(-mixture.log_weight, kind="stable")
    weight, mean = np.exp(mixture.log_weight[order]), mixture.mean[order]
    x = np.arange(len(weight), dtype=float)
    axis = "component, heaviest first"
    yield LinePlot("mixture_weights", "Weights of the dynamics prior's mixture", axis, "weight",
                   (Line("weight", x, weight),))  # fmt: skip
    names = _point_names(view, mean.shape[1])
    centre = weight @ mean
    spread = np.sqrt(weight @ (mean - centre) ** 2)
    scaled = (mean - centre) / np.where(spread > 0, spread, 1.0)
    title = "Means of the mixture, each row less its mean and over its spread"
    yield HeatMap("mixture_means", title, axis, "", x, names, scaled.T, "standard deviations")
    rows = (("weight", *map(_text, weight)), *(
        (name, *map(_text, column)) for name, column in zip(names, mean.T, strict=True)
    ))  # fmt: skip
    columns = ("", *(f"component {int(j)}" for j in x))
    yield Table("mixture", "Weights and means of the mixture", columns, tuple(rows))


def _point_names(view: _View, D: int) -> tuple[str, ...]:
    """Names of [x; u; x']."""
    nx = view.run.layout.size
    nu = D - 2 * nx
    if nu < 0:
        return tuple(f"value {i}" for i in range(D))
    x = view.x_names(nx)
    return (*x, *_actions(nu), *(f"next {name}" for name in x))


# --- policy


def _policy(view: _View) -> Iterator[Plot]:
    """What the policy does along the samples, next to the controller that it learned from."""
    run, r = view.run, view.rollouts
    policy, controller = run.policy(view.n), run.controller(*view.at)
    if r is not None and policy is not None:
        actions = run.policy_actions(*view.at, view.i)
        if actions is not None:
            shown = [("policy", actions)]
            if controller is not None:
                shown.append(("local controller", controller.mean_action(r.X[view.i])))
            shown.append(("sampled", r.U[view.i]))
            for j in range(r.nu):
                title = f"Action {j} in the states of sample {view.i}, after the update"
                values = np.stack([v[:, j] for _, v in shown], axis=1)
                labels = [label for label, _ in shown]
                yield view.lines(f"action_{j}", title, f"action {j}", values, labels)
        if controller is not None and not needs_images(policy):
            gap = policy.mean(r.obs) - controller.mean_action(r.X)
            values = np.sqrt((gap**2).mean(axis=0))
            title = "Mean action of the policy less the controller's, root mean square over samples"
            yield view.lines("difference", title, "action", values, _actions(r.nu), log=True)
    linearised = run.linearised(*view.at)
    if linearised is not None:
        yield from _gain_plots(
            view, linearised, "linearised_", "the linearised policy before the update"
        )
    trace = run.policy_loss(view.n)
    if policy is not None and trace is not None and trace.ndim == 1 and len(trace):
        share = 100 * (np.arange(len(trace)) + 0.5) / len(trace)
        title = "The policy's last training: mean loss of equal stretches"
        yield LinePlot("training", title, "share of the training (%)", "loss (nats)",
                       (Line("loss", share, trace),), log=True)  # fmt: skip


# --- dual variables


def _dual(view: _View) -> Iterator[Plot]:
    """The update in numbers, and how its dual variable was found."""
    reports = view.run.condition_reports(view.n)
    if reports is not None and view.m < len(reports):
        rows = tuple(
            (name.replace("_", " "), _text(value) if isinstance(value, float) else str(value))
            for name, value in iter_fields(reports[view.m])
            if value != ""
        )
        yield Table("report", "The update in numbers", ("", "value"), rows)
    found = view.run.dual(*view.at)
    for prefix, what, part in (
        ("", "", found),
        ("lqr_", "model-based half: ", getattr(found, "lqr", None)),
        ("pi2_", "model-free half: ", getattr(found, "pi2", None)),
    ):
        if part is not None:
            yield from _search_plots(view, prefix, what, part)
    share = getattr(getattr(found, "explained", None), "share", None)
    if share is not None:
        title = "Share of the costs from t on that the model does not explain"
        yield view.lines("unexplained", title, "share", share[:, None], ["residual"])
    yield from _own_plots(view)


def _search_plots(view: _View, prefix: str, what: str, found: Any) -> Iterator[Plot]:
    kl: Any = getattr(found, "kl", None)
    bound: Any = getattr(found, "kl_max", None)
    trace: Any = getattr(found, "trace", None)
    eta: Any = getattr(found, "eta", None)
    if trace is not None and trace.ndim == 2 and kl is not None:
        yield from _trace_plots(prefix, what, trace, float(eta), float(bound) * len(kl))
    elif trace is not None and trace.ndim == 1:
        x = np.arange(1, len(trace) + 1, dtype=float)
        lines = (Line("largest KL / bound", x, trace), Line("bound", x, np.ones(len(x))))
        yield LinePlot(f"{prefix}search", _capital(f"{what}search for the dual variables"), "trial",
                       "largest KL / bound", lines, log=True)  # fmt: skip
    if kl is not None:
        values, labels = [kl], ["KL"]
        each = np.ndim(bound) == 1  # else the bound is on the whole trajectory
        if bound is not None:
            values.append(np.broadcast_to(bound, kl.shape))
            labels.append("bound of each step" if each else "bound of the mean")
            if not each:
                values.append(np.full(kl.shape, kl.mean()))
                labels.append("mean KL")
        title = f"{what}KL of the update at every time step"
        yield view.lines(f"{prefix}kl", title, "nats", np.stack(values, axis=1), labels, log=True)
    for field, title, unit in (
        ("eta", "dual variable of every step", "eta (cost per nat)"),
        ("temperature", "temperature of every step", "temperature (cost)"),
    ):
        of_steps: Any = getattr(found, field, None)
        if of_steps is not None and np.ndim(of_steps) == 1:
            title, each = _capital(what + title), of_steps[:, None]
            yield view.lines(f"{prefix}{field}", title, unit, each, [field], log=True)
    weights: Any = getattr(found, "weights", None)
    if weights is not None and np.ndim(weights) == 2:
        names = [f"sample {i}" for i in range(weights.shape[1])]
        yield view.map(
            f"{prefix}weights", _capital(f"{what}weights of the samples"), weights.T, names, "1"
        )


def _capital(title: str) -> str:
    return title[:1].upper() + title[1:]


def _trace_plots(prefix: str, what: str, trace: Array, eta: float, bound: float) -> Iterator[Plot]:
    """trace (n, 2): eta and total KL of every trial; NaN where there was no controller."""
    x, order = np.log10(trace[:, 0]), np.argsort(trace[:, 0], kind="stable")
    lines = (
        Line("trials", x[order], trace[order, 1]),
        Line("bound", x[order], np.full(len(x), bound)),
    )
    title = _capital(f"{what}search for the dual variable: KL of the trajectory against eta")
    yield LinePlot(f"{prefix}search", title, f"eta (cost per nat){LOGARITHM}",
                   "KL (nats)", lines, True, float(np.log10(eta)))  # fmt: skip
    rows = tuple((str(i + 1), _text(e), _text(k)) for i, (e, k) in enumerate(trace))
    columns = ("trial", "eta (cost per nat)", "KL (nats)")
    title = _capital(f"{what}trials of the search, in order; the bound is {bound:.6g} nats")
    yield Table(f"{prefix}trials", title, columns, rows)


def _own_plots(view: _View) -> Iterator[Plot]:
    """What the algorithm itself remembers per time step."""
    own, controller = view.run.own(*view.at), view.run.controller(*view.at)
    if own is None or controller is None or not is_dataclass(own):
        return
    for name, value in iter_fields(own):
        if isinstance(value, np.ndarray) and value.ndim in (1, 2) and len(value) == controller.T:
            values = value.reshape(len(value), -1).astype(float)
            labels = [name] if value.ndim == 1 else [f"{name} {j}" for j in range(values.shape[1])]
            if values.shape[1] <= 12:
                title = f"{name}, as the algorithm remembers it"
                yield view.lines(f"own_{_safe(name)}", title, name, values, labels)


__all__ = [
    "HORIZONS",
    "TOPICS",
    "HeatMap",
    "Line",
    "LinePlot",
    "Plot",
    "PredictionErrors",
    "Table",
    "action_hessian",
    "cost_terms",
    "inspect",
    "names_of",
    "open_loop",
    "prediction_errors",
    "progress",
    "run_labels",
    "topic",
    "update_objective",
]
