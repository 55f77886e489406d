"""Plots of sampled rollouts: states and actions, and their costs, term by term."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from gps.control import lqr
from gps.costs import Cost
from gps.errors import GPSError
from gps.gui.plots.context import PlotContext, names_of, spread_line, time_line
from gps.gui.plots.types import Plot, Table, file_name, number_text
from gps.protocols import HasEntry, HasTerms
from gps.types import Array, Layout, Rollouts

_ENTRIES = 4  # of one state entry in a plot; each has its mean and range too


def trajectory_plots(context: PlotContext) -> Iterator[Plot]:
    """States and actions of one rollout, with mean and range of all samples."""
    r = context.rollouts
    if r is None:
        return
    name, shown, i = f"sample {context.sample}", r, context.sample
    if context.evaluation is not None:
        (name, shown), i = context.evaluation, 0
    for entry, size in r.layout.entries:
        at, labels = r.layout.slice(entry), names_of(Layout(((entry, size),)))
        one, values = shown.X[i, :, at], r.X[:, :, at]
        yield from entry_plots(context, (entry, entry), labels, name, one, values)
    labels = context.action_names(r.nu)
    yield from entry_plots(context, ("actions", "action"), labels, name, shown.U[i], r.U)


def entry_plots(
    context: PlotContext,
    names: tuple[str, str],
    labels: Sequence[str],
    rollout: str,
    one: Array,
    values: Array,
) -> Iterator[Plot]:
    """One rollout's values (T, size) of an entry among those of all samples, (N, T, size).

    names: of the plot, and of its vertical axis; labels: of the values.
    """
    (name, axis), size = names, values.shape[2]
    for first in range(0, size, _ENTRIES):
        numbers = range(first, min(first + _ENTRIES, size))
        lines = []
        for k in numbers:
            lines.append(time_line(labels[k], one[:, k]))
            lines.append(spread_line(f"{labels[k]}, mean and range", values[:, :, k]))
        part, of = "", ""
        if size > _ENTRIES:
            part, of = f"_{numbers[0]}-{numbers[-1]}", f" {numbers[0]} to {numbers[-1]}"
        title = f"{name}{of}: {rollout}; mean and range of {len(values)} samples"
        yield context.time_plot(file_name(name) + part, title, axis, lines)


def cost_plots(context: PlotContext) -> Iterator[Plot]:
    """Cost per step: sampled, expected, and term by term."""
    run, lines = context.run, []
    l = run.cost_samples(*context.at)  # noqa: E741
    if l is not None:
        lines.append(spread_line("samples, mean and range", l))
        if 0 <= context.sample < len(l):
            lines.append(time_line(f"sample {context.sample}", l[context.sample]))
    quadratic, fit = run.quadratic_cost(*context.at), run.dynamics(*context.at)
    if quadratic is not None and fit is not None:
        for when, controller in (
            ("before", run.sampled_controller(*context.at)),
            ("after", run.controller(*context.at)),
        ):
            if controller is None:
                continue
            try:
                marginals = lqr.forward(fit.dynamics, controller, fit.start)
                expected = lqr.expected_cost(quadratic, marginals)
            except GPSError:  # the model diverges under this controller
                continue
            lines.append(time_line(f"expected of the controller {when} the update", expected))
    if lines:
        title = "Cost per step: sampled, and expected under the fitted model"
        yield context.time_plot("per_step", title, "cost", lines, log=True)
    yield from _term_plots(context)


def cost_terms(cost: Cost, rollouts: Rollouts, weight: float = 1.0) -> list[tuple[str, Array]]:
    """The weighted terms of a sum of costs with their values (N, T), nested sums taken apart.

    A sum is a cost with `terms` (see `HasTerms`); other costs are one term.
    """
    if isinstance(cost, HasTerms):
        parts = [cost_terms(t.cost, rollouts, weight * t.weight) for t in cost.terms]
        return _numbered([part for found in parts for part in found])
    entry = cost.entry if isinstance(cost, HasEntry) else None
    label = type(cost).__name__ + (f" {entry}" if isinstance(entry, str) else "")
    return [(label, weight * cost.evaluate(rollouts).l)]


def _numbered(found: list[tuple[str, Array]]) -> list[tuple[str, Array]]:
    """Labels that occur twice get numbers."""
    plain = [re.sub(r" #\d+$", "", label) for label, _ in found]
    count: dict[str, int] = {}
    out = []
    for label, (_, values) in zip(plain, found, strict=True):
        count[label] = count.get(label, 0) + 1
        out.append((f"{label} #{count[label]}" if plain.count(label) > 1 else label, values))
    return out


def _term_plots(context: PlotContext) -> Iterator[Plot]:
    """The terms of the configured cost, evaluated on the selected sample."""
    rollouts = context.run.rollouts(*context.at, context.sample)
    if rollouts is None:
        return
    try:
        terms = cost_terms(context.run.experiment.cost, rollouts)
    except GPSError:  # a hyperparams file that is gone, or a cost that needs images
        return
    if len(terms) < 2:
        return
    values = np.stack([v[0] for _, v in terms], axis=1)
    labels = [label for label, _ in terms]
    title = f"Terms of the cost, with their weights, of sample {context.sample}"
    both = np.column_stack([values, values.sum(axis=1)])
    yield context.columns("terms", title, "cost", both, [*labels, "sum"], log=True)
    sums = values.sum(axis=0)
    size = np.abs(sums).sum() or 1.0
    rows = [
        (label, number_text(total), f"{100 * abs(total) / size:.1f} %")
        for label, total in zip(labels, sums, strict=True)
    ]
    rows.append(("sum", number_text(sums.sum()), ""))
    columns = ("term", "sum over the steps", "share of the absolute sums")
    yield Table("term_sums", f"Terms of the cost of sample {context.sample}", columns, tuple(rows))


__all__ = ["cost_plots", "cost_terms", "entry_plots", "trajectory_plots"]
