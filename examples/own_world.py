"""A world and a cost of your own in one file: a pendulum that a motor swings up and holds level.

You learn: the few members that a world needs, how a cost gives its derivatives, and that such a
file is an experiment like any other: `gps run own_cost_and_world.py`, or run it with Python.
"""

from dataclasses import dataclass

import numpy as np

import gps
from gps.algorithms import StepConfig, TrajOptConfig
from gps.control import HoldConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost, SumCost, TermBuffers, WeightedCost
from gps.types import CostTerms, Layout, Rollouts


@dataclass(frozen=True, kw_only=True)
class Pendulum:
    """Configuration of the world, and the world itself: it keeps no state between rollouts."""

    torque_limit: float = 20.0
    """In N m; 9.81 hold the pendulum level."""

    layout = obs_layout = Layout((("angle", 1), ("velocity", 1)))  # rad from hanging, rad/s
    T, dt, nu, n_start = 60, 0.05, 1, 0
    n_conditions, n_test_conditions = 2, 0

    def build(self):
        return self

    def start_state(self, condition, *, test=False):
        return np.array([(-0.5, 0.5)[condition], 0.0])

    def rollout(self, policy, condition, noise, start_noise=None, *, test=False):
        N = len(noise)
        x = np.tile(self.start_state(condition), (N, 1))
        X, U = np.empty((N, self.T, 2)), np.empty((N, self.T, 1))
        for t in range(self.T):
            u = policy.act(x, x, t, noise[:, t]).clip(-self.torque_limit, self.torque_limit)
            X[:, t], U[:, t] = x, u
            velocity = x[:, 1] + self.dt * (u[:, 0] - 9.81 * np.sin(x[:, 0]) - 0.1 * x[:, 1])
            x = np.stack([x[:, 0] + self.dt * velocity, velocity], axis=1)
        return Rollouts(X=X, U=U, obs=X, noise=noise, layout=self.layout, condition=condition)


@dataclass(frozen=True, kw_only=True)
class Turned:
    """1 - cos(angle - goal)."""

    goal: float = np.pi / 2
    """Where the angle should be, in rad."""

    def check(self, layout, nu, T):
        layout.slice("angle")  # an error that lists the known names, where there is none

    def evaluate(self, rollouts) -> CostTerms:
        d = rollouts.entry("angle")[..., 0] - self.goal
        out, i = TermBuffers.zeros(rollouts), rollouts.layout.slice("angle").start
        out.l[...] = 1.0 - np.cos(d)
        out.l_x[..., i] = np.sin(d)
        out.l_xx[..., i, i] = np.abs(np.sinc(d / np.pi))  # sin(d)/d: cos(d) may be negative
        return out.freeze()


experiment = gps.Experiment(
    description="a pendulum is held level; world and cost are defined in the file",
    world=Pendulum(),
    cost=SumCost(
        terms=(
            WeightedCost(cost=Turned()),
            WeightedCost(cost=ActionCost(weights=1e-4)),
            WeightedCost(weight=0.05, cost=StateCost(entry="velocity", target=0.0, l2=1.0)),
        )
    ),
    initial=HoldConfig(position="angle", velocity="velocity", variance=4.0),
    measure=EndpointMeasure(entry="angle", target=(np.pi / 2,), point_size=1, threshold=0.05),
    algorithm=TrajOptConfig(step=StepConfig(kl_max=2.0, max_mult=1.0)),
    iterations=10,
)

if __name__ == "__main__":
    for report in gps.run(experiment):
        row = report.row
        off = row["local_distance_max"]
        print(f"{report.iteration:2}: cost {row['cost_mean']:6.2f}, ends {off:.3f} rad off level")
