"""Plots of the fitted dynamics: prediction errors against baselines, process noise, prior."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from gps.fields import Shape
from gps.gui.plots.context import PlotContext, time_line
from gps.gui.plots.types import HeatMap, Line, LinePlot, Plot, Table, file_name, number_text
from gps.types import Array, Layout, LinearDynamics, Record, Rollouts

HORIZONS = (1, 5, 10, 20)
"""Steps of the predictions whose errors are shown."""


@dataclass(frozen=True, eq=False)
class PredictionErrors(Record):
    """Root mean square over samples and the values of an entry, by the step of the start (S,)."""

    model: Annotated[Array, Shape("S")]
    persistence: Annotated[Array, Shape("S")]
    """Of the baseline that predicts no change."""
    velocity: Annotated[Array, Shape("S")]
    """Of the baseline that predicts the change of the last step again; NaN at t = 0."""


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
    """Errors h steps ahead of every state entry: of the model and of two baselines."""
    S = X.shape[1] - h
    target = X[:, h:]
    change = np.full_like(X[:, :S], np.nan)
    change[:, 1:] = X[:, 1:S] - X[:, : S - 1]
    with np.errstate(over="ignore", invalid="ignore"):
        errors = (open_loop(dynamics, X, U, h) - target, X[:, :S] - target,
                  X[:, :S] + h * change - target)  # fmt: skip
        return {
            name: PredictionErrors(
                *(np.sqrt((e[:, :, layout.slice(name)] ** 2).mean(axis=(0, 2))) for e in errors)
            )
            for name in layout.names
        }


def dynamics_plots(context: PlotContext) -> Iterator[Plot]:
    """Prediction errors of the fitted dynamics, their noise and their prior."""
    fit = context.run.dynamics(*context.at)
    if fit is not None and context.rollouts is not None:
        yield from _prediction_plots(context, fit.dynamics, context.rollouts)
    if fit is not None:
        W = np.diagonal(fit.dynamics.W, axis1=1, axis2=2)
        values = np.log10(np.sqrt(np.maximum(W, 1e-24))).T
        title = "Process noise: standard deviation of the next state, logarithm to base 10"
        names = context.state_names(fit.dynamics.nx)
        yield context.heat_map("process_noise", title, values, names, "log10")
    yield from _mixture_plots(context)


def _prediction_plots(
    context: PlotContext, dynamics: LinearDynamics, rollouts: Rollouts
) -> Iterator[Plot]:
    X, U, layout = rollouts.X, rollouts.U, rollouts.layout
    horizons = [h for h in HORIZONS if h < X.shape[1] - 1]
    if not horizons:
        return
    found = {h: prediction_errors(dynamics, X, U, layout, h) for h in horizons}
    yield _error_table(context, dynamics, layout, found)
    for name in layout.names:
        lines = [time_line(f"model {_ahead(h)}", found[h][name].model) for h in horizons]
        lines.append(time_line("persistence (1 step)", found[1][name].persistence))
        lines.append(time_line("constant velocity (1 step)", found[1][name].velocity))
        title = f"Prediction error of {name}, by the step that it starts from"
        label = f"{name}, root mean square"
        yield context.time_plot(f"error_{file_name(name)}", title, label, lines, log=True)
    for h in horizons:
        lines = []
        for name in layout.names:
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = found[h][name].model / found[h][name].persistence
            lines.append(time_line(name, ratio))
        title = f"Error of the model {_ahead(h)}, relative to the persistence baseline"
        yield context.time_plot(f"relative_error_{h}", title, "ratio", lines, log=True)


def _ahead(h: int) -> str:
    return f"{h} step{'s' * (h > 1)} ahead"


def _error_table(
    context: PlotContext,
    dynamics: LinearDynamics,
    layout: Layout,
    found: dict[int, dict[str, PredictionErrors]],
) -> Table:
    """Errors on the samples of the fit and, where they are stored, on those after it."""
    columns = ["state entry", "steps", "model", "persistence", "constant velocity",
               "model / better baseline"]  # fmt: skip
    first = context.rollouts
    later = context.run.rollouts(context.iteration + 1, context.condition)
    unseen = None
    if later is not None and first is not None and later.X.shape[1:] == first.X.shape[1:]:
        unseen = {h: prediction_errors(dynamics, later.X, later.U, layout, h) for h in found}
        columns.append(f"model in iteration {context.iteration + 1}")
    rows = []
    for name in layout.names:
        for h, errors in found.items():
            e = errors[name]
            model, still, velocity = map(_rms, (e.model, e.persistence, e.velocity))
            best = min(still, velocity)
            row = [name, str(h), *map(number_text, (model, still, velocity))]
            row.append(number_text(model / best) if best > 0 else "-")
            if unseen is not None:
                row.append(number_text(_rms(unseen[h][name].model)))
            rows.append(tuple(row))
    title = "Prediction error on the samples of the fit, root mean square over samples and t > 0"
    return Table("prediction", title, tuple(columns), tuple(rows))


def _rms(values: Array) -> float:
    """Over t > 0, where every prediction exists."""
    return float(np.sqrt((values[1:] ** 2).mean()))


def _mixture_plots(context: PlotContext) -> Iterator[Plot]:
    """Weights and means of the prior's mixture, heaviest component first."""
    mixture = context.run.prior(*context.at)
    if mixture is None:
        return
    order = np.argsort(-mixture.log_weight, kind="stable")
    weight, mean = np.exp(mixture.log_weight[order]), mixture.mean[order]
    x = np.arange(len(weight), dtype=float)
    axis = "component, heaviest first"
    yield LinePlot("mixture_weights", "Weights of the dynamics prior's mixture", axis, "weight",
                   (Line("weight", x, weight),))  # fmt: skip
    names = _transition_names(context, mean.shape[1])
    centre = weight @ mean
    spread = np.sqrt(weight @ (mean - centre) ** 2)
    scaled = (mean - centre) / np.where(spread > 0, spread, 1.0)
    title = "Means of the mixture, each row less its mean and over its standard deviation"
    yield HeatMap("mixture_means", title, axis, "", x, names, scaled.T, "standard deviations")
    rows = (("weight", *map(number_text, weight)), *(
        (name, *map(number_text, column)) for name, column in zip(names, mean.T, strict=True)
    ))  # fmt: skip
    columns = ("", *(f"component {int(j)}" for j in x))
    yield Table("mixture", "Weights and means of the mixture", columns, tuple(rows))


def _transition_names(context: PlotContext, D: int) -> tuple[str, ...]:
    """Names of [x; u; x']."""
    nx = context.run.layout.size
    nu = D - 2 * nx
    if nu < 0:
        return tuple(f"value {i}" for i in range(D))
    x = context.state_names(nx)
    return (*x, *context.action_names(nu), *(f"next {name}" for name in x))


__all__ = ["HORIZONS", "PredictionErrors", "dynamics_plots", "open_loop", "prediction_errors"]
