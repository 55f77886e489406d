"""An agent of your own: a pendulum that a motor swings up and holds level.

You learn: the few members that an agent needs, and that its file is an experiment like any other:
`gps run own_agent.py`.
"""

from dataclasses import dataclass

import numpy as np

import gps
from gps.algorithms import StepConfig, TrajOptConfig
from gps.control import HoldConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost
from gps.types import Layout, Rollouts


@dataclass(frozen=True, kw_only=True)
class Pendulum:
    """Configuration of the agent, and the agent itself: it keeps no state between rollouts."""

    torque_limit: float = 20.0  # N m; 9.81 hold the pendulum level
    layout = obs_layout = Layout((("angle", 1), ("velocity", 1)))  # rad from hanging, rad/s
    T, dt, nu, n_start = 60, 0.05, 1, 0
    n_conditions, n_test_conditions = 2, 0

    def build(self):
        return self

    def start_state(self, condition, *, test=False):
        return np.array([(-0.5, 0.5)[condition], 0.0])

    def rollout(self, policy, condition, noise, start_noise=None, *, test=False):
        x = np.tile(self.start_state(condition), (len(noise), 1))
        X, U = np.empty((len(x), self.T, 2)), np.empty((len(x), self.T, 1))
        for t in range(self.T):
            u = policy.act(x, x, t, noise[:, t]).clip(-self.torque_limit, self.torque_limit)
            X[:, t], U[:, t] = x, u
            velocity = x[:, 1] + self.dt * (u[:, 0] - 9.81 * np.sin(x[:, 0]) - 0.1 * x[:, 1])
            x = np.stack([x[:, 0] + self.dt * velocity, velocity], axis=1)
        return Rollouts(X=X, U=U, obs=X, noise=noise, layout=self.layout, condition=condition)


LEVEL = np.pi / 2  # rad
angle = StateCost(entry="angle", target=LEVEL, l2=1.0)
velocity = StateCost(entry="velocity", target=0.0, l2=1.0)
experiment = gps.Experiment(
    agent=Pendulum(),
    cost=angle + 0.05 * velocity + ActionCost(weights=1e-4),
    initial=HoldConfig(position="angle", velocity="velocity", variance=4.0),
    measure=EndpointMeasure(
        entry="angle", target=(LEVEL,), point_size=1, threshold=0.05, unit="rad"
    ),
    algorithm=TrajOptConfig(step=StepConfig(kl_max=2.0, max_mult=1.0)),
)

if __name__ == "__main__":
    for report in gps.run(experiment):
        cost, off = report.row["cost_mean"], report.row["local_distance_max"]
        print(f"{report.iteration:2}: cost {cost:6.2f}, ends {off:.3f} rad off level")
