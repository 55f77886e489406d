"""Costs of the toolkit along single trajectories."""

from __future__ import annotations

import numpy as np

from gps.costs.base import Cost
from gps.errors import NonFiniteError
from gps.types import Array, Layout, Rollouts

__all__ = ["CostOf"]


class CostOf:
    """A cost whose terms depend on states and actions alone, for `gps.control.ilqr`.

    layout names the entries of the state. End points are entries that depend on others: their costs
    need rollouts of an agent. Raises ConfigError if the cost cannot work.
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
