"""A cost that a quadratic model cannot show: LQR by itself, PI2 by itself, and PILQR.

You learn: what a PILQR update needs (a model of dynamics and cost, and samples with their costs),
how much of the cost the model explains, and what the two halves reach by themselves.
"""

import numpy as np

from gps.control import dual, pi2, pilqr
from gps.types import Gaussian, LinearDynamics, LinearGaussianController, QuadraticCost

T, N, dt, KL = 20, 40, 0.2, 0.01
# a mass on a line from 1 m, x = position and velocity; the model knows how it moves and what the
# smooth cost is, but nothing of the reward of 5 for an end below -0.7 m
F = np.tile(np.array([[1.0, dt, 0.5 * dt**2], [0.0, 1.0, dt]]), (T - 1, 1, 1))
dynamics = LinearDynamics(F, np.zeros((T - 1, 2)), np.zeros((T - 1, 2, 2)))
cost = QuadraticCost(np.tile(np.diag([0.2, 0.1, 0.02]), (T, 1, 1)), np.zeros((T, 3)), np.zeros(T))
start = Gaussian(np.array([1.0, 0.0]), 1e-8 * np.eye(2))


def rollouts(p: LinearGaussianController, n: int, seed: int) -> tuple[np.ndarray, ...]:
    """States (n, T, 2), actions (n, T, 1), and costs (n, T) with the reward."""
    noise = np.random.default_rng(seed).normal(size=(n, T, 1))
    Z, x = np.empty((n, T, 3)), np.tile(start.mean, (n, 1))
    for t in range(T):
        Z[:, t] = np.concatenate([x, p.act(x, x, t, noise[:, t])], axis=1)
        x = Z[:, t] @ F[0].T
    costs = 0.5 * np.einsum("nti,tij,ntj->nt", Z, cost.C, Z)
    costs[:, -1] -= 5.0 * (Z[:, -1, 0] < -0.7)
    return Z[:, :, :2], Z[:, :, 2:], costs


first = LinearGaussianController(np.zeros((T, 1, 2)), np.zeros((T, 1)), np.ones((T, 1, 1)))
best = dict.fromkeys(("LQR", "PI2", "PILQR"), first)
print(f"{'':>10}{'LQR':>16}{'PI2':>16}{'PILQR':>16}")
print(f"{'iteration':>10}" + f"{'cost':>8}{'reward':>8}" * 3 + f"{'not explained':>16}")
for iteration in range(1, 16):
    share = 0.0
    for name, p in best.items():
        X, U, costs = rollouts(p, N, iteration)
        if name == "LQR":
            best[name] = dual.minimise_per_step(dynamics, cost, start, p, KL).controller
        elif name == "PI2":
            best[name] = pi2.update(p, X, U, costs).controller
        else:
            found = pilqr.update(dynamics, cost, start, p, X, U, costs, KL)
            best[name], share = found.controller, found.explained.share[0]
    fresh = [rollouts(p, 1000, 0) for p in best.values()]  # mean cost, and how many get the reward
    row = [(c.sum(axis=1).mean(), (X[:, -1, 0] < -0.7).mean()) for X, _, c in fresh]
    shown = "".join(f"{mean:8.2f}{rewarded:8.2f}" for mean, rewarded in row)
    print(f"{iteration:10d}{shown}{share:16.2f}")
