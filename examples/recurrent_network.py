"""Policies with memory: a point mass that measures its position, but not its velocity.

You learn: what inputs and outputs a recurrent torch module must have, how `RecurrentConfig` and
`WindowConfig` name networks with memory, that the mass cannot be stopped without, and how to use
such a policy step by step.
"""

from dataclasses import replace

import numpy as np
import torch

import gps
from gps.policies import MLPConfig, RecurrentConfig, WindowConfig


class MyGRU(torch.nn.Module):
    """A GRU whose linear output layer takes the observation too."""

    def __init__(self, no, nu, hidden):
        super().__init__()
        self.gru = torch.nn.GRU(no, hidden, batch_first=True)
        self.last = torch.nn.Linear(hidden + no, nu)
        self.register_buffer("hidden0", torch.zeros(hidden))  # before the first observation

    def forward(self, obs, hidden):  # (B, no) whitened, (B, nh) to (B, nu), (B, nh); float64
        actions, hidden = self._run(obs[:, None], hidden)
        return actions[:, 0], hidden[0]

    def along(self, obs, hidden):  # optional, and faster in training: (B, T, no) to (B, T, nu)
        return self._run(obs, hidden)[0]

    def _run(self, obs, hidden):
        out, hidden = self.gru(obs, hidden[None].contiguous())
        return self.last(torch.cat([out, obs], dim=2)), hidden


NETWORKS = {
    "no memory": (mlp := MLPConfig(hidden=(32, 32), activation="tanh")),
    "window": WindowConfig(network=mlp, steps=4),
    "GRU": RecurrentConfig(module=MyGRU, arguments=(("hidden", 16),), trajectories=10),
}
start = gps.load("point_mass_policy")
config = replace(start.agent, obs=("position",), T=25, dt=0.12)
training = replace(
    start.algorithm.training, steps=200, learning_rate=1e-2, final_rate=0.05, weight_decay=0.0
)
# so few steps continue from the last weights
algorithm = replace(start.algorithm, network=NETWORKS["GRU"], training=training, restart=False)
experiment = replace(start, agent=config, algorithm=algorithm, iterations=5)

if __name__ == "__main__":
    agent = config.build()
    for name, network in NETWORKS.items():
        *_, report = gps.run(replace(experiment, algorithm=replace(algorithm, network=network)))
        policy = report.state.policy.policy
        end = agent.rollout(policy, 0, np.zeros((1, agent.T, 2)), test=True).X[0, -1, :2]
        cost, off = report.row["policy_cost_mean"], report.row["policy_distance_mean"]
        print(f"{name}: cost {cost:.2f}, ends {off:.3f} m off; new start {np.hypot(*end):.3f} m")
    state = None  # then step by step, as on a robot
    for y in (0.20, 0.19, 0.18):
        action, state = policy.predict(np.array([0.7, y]), state)
        print(f"force {action.round(2)}, hidden state of {state.size} numbers")
