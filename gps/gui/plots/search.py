"""Plots of an update: its report, the search for its dual variables, the algorithm's own state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass

import numpy as np

from gps.gui.plots.context import PlotContext
from gps.gui.plots.types import LOG10, Line, LinePlot, Plot, Table, file_name, number_text
from gps.gui.search_result import SearchResult
from gps.types import Array, iter_fields

_COLUMNS = 12  # of an array of the algorithm's state that is shown


def search_plots(context: PlotContext) -> Iterator[Plot]:
    """The update in numbers, the search for its dual variables, and the algorithm's state."""
    reports = context.run.condition_reports(context.iteration)
    if reports is not None and context.condition < len(reports):
        rows = tuple(
            (name.replace("_", " "), number_text(value) if isinstance(value, float) else str(value))
            for name, value in iter_fields(reports[context.condition])
            if value != ""
        )
        yield Table("report", "The update in numbers", ("", "value"), rows)
    found = context.run.search(*context.at)
    if found is not None:
        yield from _result_plots(context, found, "", "")
        for part, prefix, half in (
            (found.lqr, "lqr_", "model-based half: "),
            (found.pi2, "pi2_", "model-free half: "),
        ):
            if part is not None:
                yield from _result_plots(context, part, prefix, half)
        if found.unexplained is not None:
            title = "Share of the costs from t on that the model does not explain"
            values = found.unexplained[:, None]
            yield context.columns("unexplained", title, "share", values, ["residual"])
    yield from _state_plots(context)


def _result_plots(
    context: PlotContext, found: SearchResult, prefix: str, half: str
) -> Iterator[Plot]:
    """One search; half: the beginning of its titles."""

    def title(text: str) -> str:
        text = half + text
        return text[:1].upper() + text[1:]

    trace = found.trace
    if trace is not None and trace.ndim == 1:
        x = np.arange(1, len(trace) + 1, dtype=float)
        lines = (Line("largest KL / bound", x, trace), Line("bound", x, np.ones(len(x))))
        yield LinePlot(f"{prefix}search", title("search for the dual variables"), "trial",
                       "largest KL / bound", lines, log=True)  # fmt: skip
    elif trace is not None and found.kl is not None:
        eta, bound = np.asarray(found.eta).item(), np.asarray(found.kl_max).item() * len(found.kl)
        order = np.argsort(trace[:, 0], kind="stable")
        x = np.log10(trace[order, 0])
        lines = (Line("trials", x, trace[order, 1]), Line("bound", x, np.full(len(x), bound)))
        yield LinePlot(f"{prefix}search",
                       title("search for the dual variable: KL of the trajectory against eta"),
                       f"eta (cost per nat){LOG10}", "KL (nats)", lines, True,
                       float(np.log10(eta)))  # fmt: skip
        rows = tuple((str(i + 1), number_text(e), number_text(k)) for i, (e, k) in enumerate(trace))
        trials = title(f"trials of the search, in order; the bound is {bound:.6g} nats")
        yield Table(f"{prefix}trials", trials, ("trial", "eta (cost per nat)", "KL (nats)"), rows)
    if found.kl is not None:
        columns = {"KL": found.kl} | _bounds(found.kl, found.kl_max)
        values = np.stack(list(columns.values()), axis=1)
        yield context.columns(f"{prefix}kl", title("KL of the update at every time step"), "nats",
                              values, list(columns), log=True)  # fmt: skip
    for name, steps, what, unit in (
        ("eta", found.eta, "dual variable of every step", "eta (cost per nat)"),
        ("temperature", found.temperature, "temperature of every step", "temperature (cost)"),
    ):
        if isinstance(steps, np.ndarray) and steps.ndim == 1:
            values = steps[:, None]
            yield context.columns(f"{prefix}{name}", title(what), unit, values, [name], log=True)
    if found.weights is not None and found.weights.ndim == 2:
        names = [f"sample {i}" for i in range(found.weights.shape[1])]
        what = title("weights of the samples")
        yield context.heat_map(f"{prefix}weights", what, found.weights.T, names, "1")


def _bounds(kl: Array, bound: float | Array | None) -> dict[str, Array]:
    """Columns besides the KL of every step: its bound, and what a bound of the mean is of."""
    if bound is None:
        return {}
    if np.ndim(bound) == 1:
        return {"bound of each step": np.asarray(bound)}
    return {"bound of the mean": np.full(kl.shape, bound), "mean KL": np.full(kl.shape, kl.mean())}


def _state_plots(context: PlotContext) -> Iterator[Plot]:
    """The arrays of the algorithm's state that have a row per time step."""
    state = context.run.algorithm_state(*context.at)
    controller = context.run.controller(*context.at)
    if controller is None or not is_dataclass(state):
        return
    for name, value in iter_fields(state):
        if isinstance(value, np.ndarray) and value.ndim in (1, 2) and len(value) == controller.T:
            values = value.reshape(len(value), -1).astype(float)
            labels = [name] if value.ndim == 1 else [f"{name} {j}" for j in range(values.shape[1])]
            if values.shape[1] <= _COLUMNS:
                yield context.columns(f"state_{file_name(name)}", f"Algorithm state: {name}", name,
                                      values, labels)  # fmt: skip


__all__ = ["search_plots"]
