"""Control from sampled costs alone: PI2 finds a region where the cost drops at once.

You learn: what one PI2 update needs (samples and their costs, no model and no derivative), how the
temperature follows from the bound on the weights' KL, and that the exploration shrinks when the
samples have become good.
"""

import numpy as np

from gps.control import pi2
from gps.types import LinearGaussianController

T, N, dt = 10, 50, 0.2
rng = np.random.default_rng(0)
# a point mass in the plane, pushed from rest at the origin; x = position and velocity
controller = LinearGaussianController(
    K=np.zeros((T, 2, 4)), k=np.zeros((T, 2)), chol=np.tile(1.5 * np.eye(2), (T, 1, 1))
)
target, radius = np.array([1.0, 0.5]), 0.3


def rollouts(controller: LinearGaussianController) -> tuple[np.ndarray, np.ndarray]:
    """States (N, T, 4) and actions (N, T, 2)."""
    X, U = np.zeros((N, T, 4)), np.zeros((N, T, 2))
    for t in range(T):
        U[:, t] = controller.act(X[:, t], X[:, t], t, rng.normal(size=(N, 2)))
        if t + 1 < T:
            X[:, t + 1, 2:] = X[:, t, 2:] + dt * U[:, t]
            X[:, t + 1, :2] = X[:, t, :2] + dt * X[:, t + 1, 2:]
    return X, U


print(f"{'iteration':>9} {'cost':>8} {'inside':>7} {'temperature':>12} {'exploration':>12}")
for iteration in range(1, 26):
    X, U = rollouts(controller)
    inside = np.linalg.norm(X[:, :, :2] - target, axis=2) < radius
    costs = 1e-3 * (U**2).sum(axis=2)
    costs[:, -1] += np.where(inside[:, -1], 0.0, 10.0)  # the whole reward, at the last step
    found = pi2.update(controller, X, U, costs)
    controller = found.controller
    spread = np.sqrt(np.trace(controller.Sigma, axis1=1, axis2=2).mean() / 2)
    print(f"{iteration:9d} {costs.sum(axis=1).mean():8.3f} {inside[:, -1].mean():7.2f}", end="")
    print(f" {found.temperature[0]:12.3g} {spread:12.3f}")
