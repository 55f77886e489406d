"""iLQR beside crocoddyl (C++) on the same dynamics, derivatives and cost: the same optimum.

Needs the extra `peers`, 0.9 GB and an older numpy, so it is part of no other extra. The first lines
of tests/benchmarks/bench_crocoddyl.py, which has the times, say how to install it.
"""

import numpy as np
import pytest
from control_problems import cart_pole, double_pendulum

from gps.control import ilqr
from gps.control.models import NumbaModel
from gps.types import QuadraticCost

crocoddyl = pytest.importorskip("crocoddyl")


class Peer(crocoddyl.ActionModelAbstract):
    """A step function with its derivatives by the same differences, and a quadratic cost."""

    def __init__(self, step, model, C, c, last):
        crocoddyl.ActionModelAbstract.__init__(self, crocoddyl.StateVector(model.nx), model.nu, 0)
        self.step, self.ours, self.C, self.c, self.last = step, model, C, c, last

    def calc(self, data, x, u=None):
        u = np.zeros(self.ours.nu) if u is None else u
        z = np.concatenate([x, u])
        data.cost = 0.5 * z @ self.C @ z + self.c @ z
        out = np.empty(self.ours.nx)
        if not self.last:
            self.step(x, u, 0, out)
        data.xnext = x if self.last else out

    def calcDiff(self, data, x, u=None):
        u = np.zeros(self.ours.nu) if u is None else u
        z, n = np.concatenate([x, u]), self.ours.nx
        gradient = self.C @ z + self.c
        data.Lx, data.Lu = gradient[:n], gradient[n:]
        data.Lxx, data.Luu, data.Lxu = self.C[:n, :n], self.C[n:, n:], self.C[:n, n:]
        if not self.last:
            F = self.ours.jacobians(np.stack([x, x]), np.stack([u, u]))[0]
            data.Fx, data.Fu = F[:, :n], F[:, n:]


PROBLEMS = {
    "cart-pole": (cart_pole, 1, 80, (0.5, 0.8, 0.0, 0.0), (0.0, 0.0), 1e-2),
    "double pendulum": (double_pendulum, 2, 60, (0.0, 0.0, 0.0, 0.0), (1.5, -0.7), 1e-3),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_same_optimum(name):
    step, nu, T, start, goal, effort = PROBLEMS[name]
    model = NumbaModel(step, 4, nu)
    C, c = np.zeros((T, 4 + nu, 4 + nu)), np.zeros((T, 4 + nu))
    C[:] = np.diag([0.1, 0.1, 0.01, 0.01, *[effort] * nu])
    C[-1, :4, :4] = np.diag([50.0, 50.0, 5.0, 5.0])
    c[:, :2] = -C[:, :2, :2] @ np.array(goal)
    cost = QuadraticCost(C, c, np.zeros(T))
    config = ilqr.ILQRConfig(iterations=300, tol_cost=1e-14, tol_gradient=1e-9)
    found = ilqr.minimise(model, cost, np.array(start), np.zeros((T, nu)), config=config)

    nodes = [Peer(step, model, C[t], c[t], False) for t in range(T - 1)]
    shooting = crocoddyl.ShootingProblem(
        np.array(start), nodes, Peer(step, model, C[-1], c[-1], True)
    )
    solver = crocoddyl.SolverDDP(shooting)
    solver.th_stop = 1e-14
    us = [np.zeros(nu)] * (T - 1)
    solver.solve(shooting.rollout(us), us, 300, True)

    assert found.cost < 0.9 * found.costs[0]  # it had something to do
    assert found.cost == pytest.approx(solver.cost, rel=1e-6)
    np.testing.assert_allclose(found.X, np.array(solver.xs), atol=1e-4)
    np.testing.assert_allclose(
        found.U[:-1], np.array(solver.us), atol=1e-4 * (1 + abs(found.U).max())
    )
    assert found.iterations < 3 * solver.iter + 10
