"""A cost of your own: a mass on a plane that is to go round on a circle.

You learn: the two methods that a cost needs, how it gives its derivatives and is added to others,
and that a file with a cost in it is an experiment like any other: `gps run own_cost.py`.
"""

from dataclasses import dataclass

import numpy as np

import gps
from gps.agents import PointMassConfig
from gps.algorithms import StepConfig, TrajOptConfig
from gps.control import HoldConfig
from gps.costs import ActionCost, BaseCost, TermBuffers
from gps.types import CostTerms, Layout, Rollouts


@dataclass(frozen=True, kw_only=True)
class OnCircle(BaseCost):
    """1/2 (|p| - radius)^2 + 1/8 |v - speed (-p_y, p_x) / radius|^2, in m and m/s."""

    radius: float = 1.0
    speed: float = 1.0

    def check(self, layout: Layout, nu: int, T: int) -> None:
        layout.slice("position"), layout.slice("velocity")  # errors that list the known names

    def evaluate(self, rollouts: Rollouts) -> CostTerms:
        # cost, gradient and the Gauss-Newton Hessian J'J of three residuals
        p, v = rollouts.entry("position"), rollouts.entry("velocity")
        length = np.linalg.norm(p, axis=-1, keepdims=True)
        turn = self.speed / self.radius * np.array([[0.0, -1.0], [1.0, 0.0]])
        r = np.concatenate([length - self.radius, 0.5 * (v - p @ turn.T)], axis=-1)
        J = np.zeros((*r.shape, 4))
        J[..., 0, :2] = p / np.maximum(length, 1e-9)
        J[..., 1:, :2], J[..., 1:, 2:] = -0.5 * turn, 0.5 * np.eye(2)
        out = TermBuffers.zeros(rollouts)
        out.l[...] = 0.5 * (r**2).sum(axis=-1)
        out.l_x[...] = np.einsum("ntri,ntr->nti", J, r)
        out.l_xx[...] = np.einsum("ntri,ntrj->ntij", J, J)
        return out.freeze()


experiment = gps.Experiment(
    agent=PointMassConfig(T=80, starts=((0.3, 0.0),)),
    cost=OnCircle() + ActionCost(weights=1e-3),
    initial=HoldConfig(position="position", velocity="velocity", variance=4.0),
    algorithm=TrajOptConfig(step=StepConfig(kl_max=1.0, max_mult=1.0)),
)

if __name__ == "__main__":
    for report in gps.run(experiment):
        off = np.abs(np.linalg.norm(report.rollouts[0].X[:, 40:, :2], axis=-1) - 1.0).mean()
        print(
            f"{report.iteration:2}: cost {report.row['cost_mean']:7.3f}, {off:.3f} m off the circle"
        )
