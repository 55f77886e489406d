"""A network of your own: a policy whose action is linear in the observation, with learned gains.

You learn: what inputs and outputs a torch module must have, how `ModuleConfig` names it and its
arguments, and that it is trained, evaluated from new starts and linearised like any other network.
"""

from dataclasses import replace

import numpy as np
import torch

import gps
from gps.policies import ModuleConfig


class Gains(torch.nn.Module):
    """u = K(o) o + k(o): gains that a small network schedules over the observation."""

    def __init__(self, no, nu, hidden):
        super().__init__()
        self.no, self.nu = no, nu
        self.gains = torch.nn.Sequential(
            torch.nn.Linear(no, hidden), torch.nn.SiLU(), torch.nn.Linear(hidden, nu * (no + 1))
        )

    def forward(self, obs):  # (B, no), whitened, to (B, nu); float64
        K, k = self.gains(obs).split((self.nu * self.no, self.nu), dim=1)
        return torch.einsum("bij,bj->bi", K.reshape(-1, self.nu, self.no), obs) + k


start = gps.load("point_mass_policy")
algorithm = replace(
    start.algorithm,
    network=ModuleConfig(module=Gains, arguments=(("hidden", 16),)),
    training=replace(start.algorithm.training, steps=500),
    restart=False,  # so few steps continue from the last weights
)
experiment = replace(start, name="own_network", algorithm=algorithm, iterations=5)

if __name__ == "__main__":
    for report in gps.run(experiment, seed=1):
        print(f"{report.iteration}: cost {report.row['cost_mean']:7.3f}")
    policy = report.state.policy.policy
    agent = experiment.agent.build()
    noise = np.zeros((1, agent.T, agent.nu))
    for m in range(agent.n_test_conditions):
        rollouts = agent.rollout(policy, m, noise, test=True)
        (x, y), end = rollouts.X[0, 0, :2], rollouts.entry("position")[0, -1]
        print(f"from ({x:4.1f}, {y:4.1f}) it ends {np.hypot(*end):.3f} m from the target")
    numbers = sum(w.size for w in policy.weights)
    gain = np.linalg.norm(policy.jacobian(np.zeros(4)))
    print(f"{numbers} weights; gain at the target {gain:.2f}")
