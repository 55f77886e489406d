"""Costs of the toolkit along single trajectories."""

from __future__ import annotations

import numpy as np

from gps.costs.base import Cost
from gps.errors import ConfigError, NonFiniteError
from gps.protocols import Agent, DerivedState, KnownDynamics
from gps.types import Array, Layout, Rollouts

__all__ = ["CostOf", "model_cost"]


class CostOf:
    """A cost whose terms depend on states and actions alone, for `gps.control.ilqr`.

    layout names the entries of the state. End points are entries that depend on others: for their
    costs see `model_cost`. Raises ConfigError if the cost cannot work.
    """

    def __init__(self, cost: Cost, layout: Layout, nu: int, T: int) -> None:
        cost.check(layout, nu, T)
        self._cost, self._layout = cost, layout

    def _rollouts(self, X: Array, U: Array) -> Rollouts:
        nothing = np.zeros((*U.shape[:2], 0))
        return Rollouts(X=X, U=U, obs=nothing, noise=np.zeros_like(U), layout=self._layout)

    def values(self, X: Array, U: Array) -> Array:
        """See `gps.control.ilqr.TrajectoryCost`.

        A trajectory whose cost is not finite costs infinity, so that a line search passes it by.
        """
        try:
            return self._cost.evaluate(self._rollouts(X, U)).l
        except NonFiniteError:
            if len(X) == 1:
                return np.full(U.shape[:2], np.inf)
            return np.concatenate(
                [self.values(x[None], u[None]) for x, u in zip(X, U, strict=True)]
            )

    def derivatives(self, X: Array, U: Array) -> tuple[Array, Array]:
        """See `gps.control.ilqr.TrajectoryCost`."""
        terms = self._cost.evaluate(self._rollouts(X[None], U[None]))
        gradient = np.concatenate((terms.l_x[0], terms.l_u[0]), axis=1)
        nx, nz = X.shape[1], gradient.shape[1]
        hessian = np.empty((len(X), nz, nz))
        hessian[:, :nx, :nx], hessian[:, nx:, nx:] = terms.l_xx[0], terms.l_uu[0]
        hessian[:, nx:, :nx] = terms.l_ux[0]
        hessian[:, :nx, nx:] = terms.l_ux[0].transpose(0, 2, 1)
        return gradient, hessian


def model_cost(cost: Cost, agent: Agent, condition: int = 0) -> CostOf:
    """A cost of an agent's states, end points and sensors among them, in the states of its model.

    For `gps.control.ilqr.minimise` with `agent.known_model(condition, gps.control.models)`. With
    x = g(s) and G = dg/ds the derivatives are l_s = G'l_x, l_ss = G'l_xx G, l_us = l_ux G; the
    curvature of g is left out, as end-point costs do. Raises ConfigError if the agent's dynamics
    are not known, if its state has entries that do not follow from the model's, or if the cost
    cannot work.
    """
    name = type(agent).__name__
    if not isinstance(agent, KnownDynamics):
        raise ConfigError(f"model_cost: {name} has no known_model(condition, models)")
    layout, needed = agent.layout, tuple(agent.model_entries)
    if needed == layout.names:
        return CostOf(cost, layout, agent.nu, agent.T)
    missing = [n for n in needed if n not in layout.names]
    if missing or not isinstance(agent, DerivedState):
        raise ConfigError(
            f"model_cost: the state of {name} must hold {', '.join(needed)}"
            f"{'' if missing else ' and no more'}, it holds {', '.join(layout.names)}"
        )
    return _ModelCost(cost, agent, condition)


class _ModelCost(CostOf):
    """A cost of the agent's whole state as one of the model's, which the rest follows from."""

    def __init__(self, cost: Cost, agent: Agent, condition: int) -> None:
        super().__init__(cost, agent.layout, agent.nu, agent.T)
        assert isinstance(agent, DerivedState)
        self._agent, self._condition = agent, condition
        self._columns = agent.layout.columns(agent.model_entries)

    def _rollouts(self, X: Array, U: Array) -> Rollouts:
        B, T, ns = X.shape
        whole, jacobians = self._agent.whole_states(self._condition, X.reshape(B * T, ns))
        return Rollouts(
            X=whole.reshape(B, T, -1),
            U=U,
            obs=np.zeros((B, T, 0)),
            noise=np.zeros_like(U),
            layout=self._layout,
            condition=self._condition,
            jacobians={name: J.reshape(B, T, *J.shape[1:]) for name, J in jacobians.items()},
        )

    def derivatives(self, X: Array, U: Array) -> tuple[Array, Array]:
        """See `gps.control.ilqr.TrajectoryCost`."""
        rollouts = self._rollouts(X[None], U[None])
        terms = self._cost.evaluate(rollouts)
        (T, ns), columns = X.shape, self._columns
        G = np.zeros((T, rollouts.nx, ns))
        G[:, columns, np.arange(ns)] = 1.0
        for name, J in rollouts.jacobians.items():
            G[:, rollouts.layout.slice(name)] = J[0][:, :, columns]
        Gt = G.transpose(0, 2, 1)
        gradient = np.concatenate(((Gt @ terms.l_x[0][:, :, None])[:, :, 0], terms.l_u[0]), axis=1)
        hessian = np.empty((T, gradient.shape[1], gradient.shape[1]))
        hessian[:, :ns, :ns], hessian[:, ns:, ns:] = Gt @ terms.l_xx[0] @ G, terms.l_uu[0]
        hessian[:, ns:, :ns] = terms.l_ux[0] @ G
        hessian[:, :ns, ns:] = hessian[:, ns:, :ns].transpose(0, 2, 1)
        return gradient, hessian
