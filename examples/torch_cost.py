"""A cost of your own as a torch function: a point mass goes round a disc that stands in its way.

You learn: how such a function is written for one sample and step, how it names the entries of the
state that it needs, and that gradient and Hessian come of themselves, here for iLQR and its plan.
"""

import numpy as np
import torch
from numba import njit

from gps.control import ilqr
from gps.control.models import NumbaModel
from gps.costs import ActionCost, CostOf, StateCost, torch_cost
from gps.types import Layout

T, dt = 60, 0.05
layout = Layout((("position", 2), ("velocity", 2)))
CENTRE = torch.tensor([1.0, 0.55], dtype=torch.float64)  # float64, as all that the function gets
RADIUS = 0.4


@torch_cost(entries="position", action=False)
def disc(x, u, t):
    """0 far away, 1 on the edge, and rising to the centre."""
    return torch.exp(4.0 * (RADIUS**2 - ((x - CENTRE) ** 2).sum()) / RADIUS**2)


@njit
def point_mass(x, u, t, out):
    """Position and velocity, pushed by a force in the plane."""
    out[2], out[3] = x[2] + dt * u[0], x[3] + dt * u[1]
    out[0], out[1] = x[0] + dt * out[2], x[1] + dt * out[3]


goal = {"l2": 1.0, "ramp": "final"}
reach = (
    0.02 * ActionCost(weights=1.0)
    + 50.0 * StateCost(entry="position", target=(2.0, 1.0), **goal)
    + 5.0 * StateCost(entry="velocity", target=0.0, **goal)
)
costs = {"without": reach, "with": reach + disc}
costs = {name: CostOf(cost, layout, 2, T) for name, cost in costs.items()}
model = NumbaModel(point_mass, nx=4, nu=2)
plans = {}
for name, cost in costs.items():
    found = ilqr.minimise(model, cost, np.zeros(4), np.zeros((T, 2)))
    plans[name] = found.X[:, :2]
    nearest = np.linalg.norm(plans[name] - CENTRE.numpy(), axis=1).min() / RADIUS
    total = costs["with"].values(found.X[None], found.U[None]).sum()
    off = np.linalg.norm(plans[name][-1] - (2.0, 1.0))
    print(f"planned {name:>7} it, {found.iterations:2} iterations: cost with the disc {total:.3f},")
    print(f"  {nearest:.2f} radii from the centre, ends {off:.3f} m from the target")

for y in np.arange(1.1, -0.2, -0.1):  # o without, * with, : the disc
    row = [":" if np.hypot(x - 1.0, y - 0.55) < RADIUS else " " for x in np.arange(0, 2.2, 0.05)]
    for name, mark in (("without", "o"), ("with", "*")):
        for x in plans[name][np.abs(plans[name][:, 1] - y) <= 0.05, 0]:
            row[round(x / 0.05)] = mark
    print("".join(row).rstrip())
