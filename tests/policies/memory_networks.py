"""Networks with memory for the tests, and trajectories to train on."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from gps.policies import MLPConfig, RecurrentConfig, TrainingData, WindowConfig
from gps.rng import stream


class Cell(nn.Module):
    """A GRU step by step; its first hidden state is learned."""

    def __init__(self, no, nu, hidden=8):
        super().__init__()
        self.cell, self.last = nn.GRUCell(no, hidden), nn.Linear(hidden, nu)
        self.hidden0 = nn.Parameter(0.1 * torch.randn(hidden))

    def forward(self, obs, hidden):
        hidden = self.cell(obs, hidden)
        return self.last(hidden), hidden


class Whole(nn.Module):
    """The same by torch.nn.GRU, with one call for a trajectory."""

    def __init__(self, no, nu, hidden=8):
        super().__init__()
        self.gru, self.last = nn.GRU(no, hidden, batch_first=True), nn.Linear(hidden, nu)
        self.register_buffer("hidden0", torch.full((hidden,), 0.2))

    def forward(self, obs, hidden):
        out, after = self.gru(obs[:, None], hidden[None].contiguous())
        return self.last(out[:, 0]), after[0]

    def along(self, obs, hidden):
        return self.last(self.gru(obs, hidden[None].contiguous())[0])


class Lstm(nn.Module):
    """[h; c] in one tensor."""

    def __init__(self, no, nu, hidden=8):
        super().__init__()
        self.cell, self.last = nn.LSTMCell(no, hidden), nn.Linear(hidden, nu)
        self.register_buffer("hidden0", torch.zeros(2 * hidden))

    def forward(self, obs, hidden):
        h, c = self.cell(obs, hidden.chunk(2, dim=1))
        return self.last(h), torch.cat([h, c], dim=1)


WINDOW = WindowConfig(network=MLPConfig(hidden=(12,), activation="tanh"), steps=3)
RECURRENT = [RecurrentConfig(module=module) for module in (Cell, Whole, Lstm)]
ALL = [WINDOW, *RECURRENT]


def name(network):
    return getattr(getattr(network, "module", None), "__name__", "window")


def some_trajectories(S: int = 12, T: int = 9, seed: int = 0) -> TrainingData:
    """The target is the difference of the last two observations: one that only memory shows."""
    rng = stream(seed, "trajectories")
    obs = 3.0 + rng.normal(size=(S, T, 2)).cumsum(axis=1)
    target = np.diff(obs, axis=1, prepend=obs[:, :1])
    precision = np.tile(np.diag([1.0, 4.0]), (S * T, 1, 1))
    return TrainingData(
        obs=obs.reshape(-1, 2),
        target=target.reshape(-1, 2),
        precision=precision,
        weight=np.ones(S * T),
        T=T,
    )
