"""Control without learning: LQG with a bound on how far the controller may move, on plain arrays.

You learn: how a time-varying linear system and a quadratic cost are written down, that the best
controller under a KL bound lies between the previous controller and the LQR solution, and what the
dual variable eta says: the cost that one more nat would save.
"""

import numpy as np

from gps.control import dual, lqr
from gps.types import Gaussian, LinearDynamics, LinearGaussianController, QuadraticCost

T, dt = 40, 0.1
nx, nu = 2, 1  # position and velocity; force

# x[t+1] ~ N(A x + B u, noise): a pendulum-like mass whose spring softens over time, so that A is
# stacked over the T - 1 transitions, and what does not change is not.
A = np.tile([[1.0, dt], [0.0, 1.0]], (T - 1, 1, 1))
A[:, 1, 0] = -dt * np.linspace(2.0, 0.5, T - 1)
dynamics = LinearDynamics.from_matrices(A, B=[[0.0], [dt]], noise=1e-4 * np.eye(nx))

# 1/2 (x - 1)^2 + 1/2 0.1 v^2 + 1/2 0.01 u^2 at each of T steps, the last one included
cost = QuadraticCost.from_matrices(Q=np.diag([1.0, 0.1]), R=[[0.01]], reference=[1.0, 0.0], T=T)
start = Gaussian(np.zeros(nx), 1e-3 * np.eye(nx))

# Before: do nothing but try out forces of about 1 N.
previous = LinearGaussianController(
    K=np.zeros((T, nu, nx)), k=np.zeros((T, nu)), chol=np.ones((T, nu, nu))
)


def total(controller: LinearGaussianController) -> float:
    return lqr.expected_cost(cost, lqr.forward(dynamics, controller, start)).sum()


print(f"{'KL bound per step':>18} {'KL used':>8} {'eta':>10} {'expected cost':>14}")
print(f"{'0 (previous)':>18} {0:8.3f} {'':>10} {total(previous):14.4f}")
for kl_max in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0):
    step = dual.minimise(dynamics, cost, start, previous, kl_max)
    print(f"{kl_max:18g} {step.kl.mean():8.3f} {step.eta:10.3g} {total(step.controller):14.4f}")
best = lqr.backward(dynamics, cost, temperature=1e-8)
print(f"{'none (LQR)':>18} {'':>8} {'':>10} {total(best):14.4f}")
