"""Control of a known model: swing a pole up with iLQR, with and without limits on the force.

You learn: how a model is written as a compiled step function, what limits cost, and that the result
is a controller with gains: it brings a disturbed start back to the planned motion, where the same
forces without feedback fail.
"""

import numpy as np
from numba import njit

from gps.control import ilqr
from gps.control.models import NumbaModel
from gps.types import QuadraticCost

T, dt = 150, 0.02


@njit
def cart_pole(x, u, t, out):
    """Cart position, pole angle (0 is up, pi hangs down), and their velocities."""
    cart, pole, half, g = 1.0, 0.1, 0.5, 9.81
    s, c = np.sin(x[1]), np.cos(x[1])
    push = (u[0] + pole * half * x[3] ** 2 * s) / (cart + pole)
    turn = (g * s - c * push) / (half * (4.0 / 3.0 - pole * c * c / (cart + pole)))
    out[2] = x[2] + dt * (push - pole * half * turn * c / (cart + pole))
    out[3] = x[3] + dt * turn
    out[0], out[1] = x[0] + dt * out[2], x[1] + dt * out[3]


# little for forces, something for being away, much for not being upright and at rest at the end
C = np.zeros((T, 5, 5))
C[:] = np.diag([1e-2, 1e-2, 0.0, 0.0, 2e-3])
C[-1] = np.diag([100.0, 200.0, 10.0, 10.0, 2e-3])
cost = QuadraticCost(C=C, c=np.zeros((T, 5)), c0=np.zeros(T))
model = NumbaModel(cart_pole, nx=4, nu=1)
hanging = np.array([0.0, np.pi, 0.0, 0.0])


def replay(found: ilqr.ILQRResult, K: np.ndarray) -> float:
    """Angle at the end, in rad, from a start that is 0.05 rad off."""
    X = found.X.copy()
    start = np.zeros((T, 4))
    start[0] = X[0] + [0.0, 0.05, 0.0, 0.0]
    # u = U + K (x - X) about the plan: `rollout` wants the plan's first state to be the start
    offset = found.U - np.einsum("tux,tx->tu", K, X)
    offset[0] += K[0] @ start[0]
    inf = np.full((T, 1), np.inf)
    states, _ = model.rollout(start, offset, np.zeros((T, 1)), K, np.zeros(1), -inf, inf)
    return float(states[0, -1, 1])


print(f"{'limit':>6} {'iterations':>10} {'reason':>9} {'cost':>8} {'largest force':>14}", end="")
print(f" {'end angle':>10} {'disturbed':>10} {'without gains':>14}")
for limit in (np.inf, 10.0, 6.0):
    found = ilqr.minimise(model, cost, hanging, np.zeros((T, 1)), limits=(-limit, limit))
    gains, none = found.controller.K, np.zeros((T, 1, 4))
    print(f"{limit:6g} {found.iterations:10d} {found.reason:>9} {found.cost:8.3f}", end="")
    print(f" {np.abs(found.U).max():14.3f} {found.X[-1, 1]:10.4f}", end="")
    print(f" {replay(found, gains):10.4f} {replay(found, none):14.4f}")
