"""Plots of local controllers, of the action values behind them, and of the policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gps.control import lqr
from gps.control.kl import penalised
from gps.errors import GPSError
from gps.gui.plots.context import PlotContext
from gps.gui.plots.types import Line, LinePlot, Plot, Table, number_text
from gps.protocols import needs_images
from gps.types import Array, LinearDynamics, LinearGaussianController, QuadraticCost

if TYPE_CHECKING:
    from gps.gui.run_reader import RunReader


def controller_plots(context: PlotContext) -> Iterator[Plot]:
    """The local controller after the iteration, and the eigenvalues of its Q_uu."""
    controller = context.run.controller(*context.at)
    if controller is None:
        return
    yield from _gain_plots(context, controller, "", "the controller after the update")
    found = list(action_values(context.run, *context.at))
    for q in found:
        title = f"Eigenvalues of Q_uu under {q.objective}"
        if q.eigenvalues is None:
            yield Table(q.name, title, ("the backward pass failed",), ((q.error,),))
        else:
            labels = [f"eigenvalue {j}" for j in range(q.eigenvalues.shape[1])]
            yield context.columns(q.name, title, q.unit, q.eigenvalues, labels, log=True)
    if context.t is not None and 0 <= context.t < controller.T:
        yield _step_table(context, context.t, controller, found)


def _gain_plots(
    context: PlotContext, controller: LinearGaussianController, prefix: str, whose: str
) -> Iterator[Plot]:
    """Gains, offsets and exploration over time."""
    T, nu, nx = controller.K.shape
    states, actions = context.state_names(nx), context.action_names(nu)
    rows = [f"{a} <- {x}" for a in actions for x in states]
    gains = controller.K.reshape(T, nu * nx).T
    unit = "action per unit of state"
    yield context.heat_map(f"{prefix}gains", f"Gains K of {whose}", gains, rows, unit)
    title = f"Offset k of {whose}: u = K x + k"
    yield context.columns(f"{prefix}offset", title, "action", controller.k, actions)
    Sigma = controller.Sigma
    std = np.sqrt(np.diagonal(Sigma, axis1=1, axis2=2))
    title = f"Exploration of {whose}: standard deviation of its actions"
    yield context.columns(f"{prefix}exploration", title, "action", std, actions, log=True)
    if nu > 1:
        pairs = [(i, j) for i in range(nu) for j in range(i)]
        scale = std[:, :, None] * std[:, None, :]
        values = np.stack([(Sigma / scale)[:, i, j] for i, j in pairs])
        names = [f"{actions[j]}, {actions[i]}" for i, j in pairs]
        title = f"Exploration of {whose}: correlation of its actions"
        yield context.heat_map(f"{prefix}correlation", title, values, names, "1")


@dataclass(frozen=True, eq=False)
class ActionValue:
    """Eigenvalues of Q_uu under one objective."""

    name: str
    objective: str
    unit: str
    eigenvalues: Array | None
    """(T, nu); None where the backward pass failed."""
    error: str = ""


def action_values(run: RunReader, n: int, m: int) -> Iterator[ActionValue]:
    """Q_uu by the backward pass under the fitted cost, and under the update's objective."""
    cost, fit = run.quadratic_cost(n, m), run.dynamics(n, m)
    if cost is None or fit is None:
        return
    problems = [("q_uu", "the fitted cost alone", "cost per action squared", cost)]
    known = update_objective(run, n, m)
    if known is not None:
        problems.append(("q_uu_kl", known[1], "nats per action squared", known[0]))
    for name, what, unit, objective in problems:
        try:
            eigenvalues = np.linalg.eigvalsh(action_hessian(fit.dynamics, objective))
        except GPSError as error:
            yield ActionValue(name, what, unit, None, str(error))
        else:
            yield ActionValue(name, what, unit, np.asarray(eigenvalues, dtype=np.float64))


def action_hessian(dynamics: LinearDynamics, cost: QuadraticCost) -> Array:
    """Q_uu of every step under the optimal controller, (T, nu, nu); see `gps.control.lqr`.

    Raises NotPositiveDefiniteError where it is not, and the errors of `lqr.backward`.
    """
    precision: Array = lqr.backward(dynamics, cost).precision  # Sigma = Q_uu^-1 at temperature 1
    return precision


def update_objective(run: RunReader, n: int, m: int) -> tuple[QuadraticCost, str] | None:
    """The cost with the KL term that the update minimised, and its name; None if unknown.

    The stored eta and each controller that the KL may be measured from are tried, and only an
    objective whose optimum is the stored controller counts.
    """
    cost, fit, found = run.quadratic_cost(n, m), run.dynamics(n, m), run.search(n, m)
    if cost is None or fit is None or found is None:
        return None
    eta, optimum = found.eta, found.controller
    if optimum is None or not isinstance(eta, float):
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


def _step_table(
    context: PlotContext, t: int, controller: LinearGaussianController, found: list[ActionValue]
) -> Table:
    """The controller's numbers at the selected step, an action a column."""
    rows = [
        ("offset k", *map(number_text, controller.k[t])),
        ("standard deviation", *map(number_text, np.sqrt(np.diag(controller.Sigma[t])))),
    ]
    for i, name in enumerate(context.state_names(controller.nx)):
        rows.append((f"gain of {name}", *map(number_text, controller.K[t, :, i])))
    for j, name in enumerate(context.action_names(controller.nu)):
        rows.append((f"covariance with {name}", *map(number_text, controller.Sigma[t, j])))
    for q in found:
        if q.eigenvalues is not None:
            values = map(number_text, q.eigenvalues[t])
            rows.append((f"eigenvalues of Q_uu under {q.objective}", *values))
    title = f"The controller after the update at t = {t}"
    return Table("at_step", title, ("", *context.action_names(controller.nu)), tuple(rows))


def policy_plots(context: PlotContext) -> Iterator[Plot]:
    """The policy's actions along the samples, and those of the controller that it imitates."""
    run, r = context.run, context.rollouts
    policy, controller = run.policy(context.iteration), run.controller(*context.at)
    if r is not None and policy is not None:
        actions = run.policy_actions(*context.at, context.sample)
        if actions is not None:
            columns = {"policy": actions}
            if controller is not None:
                columns["local controller"] = controller.mean_action(r.X[context.sample])
            columns["sampled"] = r.U[context.sample]
            for j, label in enumerate(context.action_names(r.nu)):
                title = (
                    f"Action: {label}, in the states of sample {context.sample}, after the update"
                )
                values = np.stack([v[:, j] for v in columns.values()], axis=1)
                yield context.columns(f"action_{j}", title, label, values, list(columns))
        if controller is not None and not needs_images(policy):
            gap = policy.mean(r.obs) - controller.mean_action(r.X)
            values = np.sqrt((gap**2).mean(axis=0))
            title = "Mean action of the policy less the controller's, root mean square over samples"
            names = context.action_names(r.nu)
            yield context.columns("difference", title, "action", values, names, log=True)
    linearised = run.linearised(*context.at)
    if linearised is not None:
        whose = "the linearised policy before the update"
        yield from _gain_plots(context, linearised, "linearised_", whose)
    trace = run.policy_loss(context.iteration)
    if policy is not None and trace is not None and trace.ndim == 1 and len(trace):
        share = 100 * (np.arange(len(trace)) + 0.5) / len(trace)
        title = "The policy's last training: mean loss of equal intervals"
        yield LinePlot("training", title, "share of the training (%)", "loss (nats)",
                       (Line("loss", share, trace),), log=True)  # fmt: skip


__all__ = ["ActionValue", "action_hessian", "action_values", "controller_plots", "policy_plots"]
__all__ += ["update_objective"]
