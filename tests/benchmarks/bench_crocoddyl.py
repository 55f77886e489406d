"""LQR and iLQR beside crocoddyl (C++), on the same problems in one run.

    python3 -m venv peers && peers/bin/pip install torch==2.13.0 -e '.[peers,test]'
    peers/bin/python tests/benchmarks/bench_crocoddyl.py [--rounds 60]

- backward: the Riccati recursion alone on dense linear-quadratic problems. Both sides get the
  derivatives ready-made, and both find the same gains, which is checked. The limit is the three
  products V F, F'(V F) and F'v of every step by numpy's BLAS, without anything around them.
- swing-up: a cart-pole from hanging to upright. crocoddyl gets its dynamics and their analytic
  derivatives from pinocchio's C++, gps from a numba step function and central differences; both
  begin with no force at all and stop by themselves; the table says where. Both find local optima
  of a problem that has several: the costs are printed, and where they differ, times say little.
- double pendulum: from hanging to a pose, a motor in each joint; the same otherwise.

One thread. Every figure is the median of rounds in which the candidates take turns. With crocoddyl
3.2.1 and pin 4.1 crocoddyl's models knew no gravity; the script compares a step of both models and
would stop.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import crocoddyl
import numpy as np
import pinocchio as pin
from numba import njit
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "control"))
from bench_lqr import problem, race
from control_problems import cart_pole, double_pendulum

from gps.control import _kernels, ilqr, lqr
from gps.control.models import NumbaModel
from gps.types import QuadraticCost

SIZES = ((100, 4, 2), (100, 14, 7), (100, 26, 7), (100, 60, 20), (1000, 26, 7))
T, DT, CART, POLE, HALF = 200, 0.02, 1.0, 0.1, 0.5
RUNNING = np.array([1e-2, 1e-2, 0.0, 0.0])
LAST = np.array([100.0, 200.0, 10.0, 10.0])
FORCE, NO_TORQUE = 2e-3, 1e4


def backward(T: int, nx: int, nu: int, rounds: int) -> None:
    """One line of the first table."""
    dynamics, cost, start, _ = problem(T, nx, nu)
    F, f, C, c = dynamics.F, dynamics.f, cost.C, cost.c
    nodes = []
    for t in range(T - 1):
        node = crocoddyl.ActionModelLQR(nx, nu, True)
        A, B = F[t, :, :nx], F[t, :, nx:]
        node.setLQR(
            A, B, C[t, :nx, :nx], C[t, nx:, nx:], C[t, :nx, nx:],
            np.zeros((0, nx + nu)), np.zeros((0, nx + nu)), f[t], c[t, :nx], c[t, nx:],
            np.zeros(0), np.zeros(0),
        )  # fmt: skip
        nodes.append(node)
    # crocoddyl has no action in the last step: minimise it away
    K_last = -np.linalg.solve(C[-1, nx:, nx:], C[-1, nx:, :nx])
    k_last = -np.linalg.solve(C[-1, nx:, nx:], c[-1, nx:])
    Q = C[-1, :nx, :nx] + C[-1, :nx, nx:] @ K_last
    q = c[-1, :nx] + C[-1, :nx, nx:] @ k_last
    end = crocoddyl.ActionModelLQR(nx, nu, True)
    end.setLQR(
        np.eye(nx), np.zeros((nx, nu)), 0.5 * (Q + Q.T), np.eye(nu), np.zeros((nx, nu)),
        np.zeros((0, nx + nu)), np.zeros((0, nx + nu)), np.zeros(nx), q, np.zeros(nu),
        np.zeros(0), np.zeros(0),
    )  # fmt: skip
    shooting = crocoddyl.ShootingProblem(start.mean, nodes, end)
    solver = crocoddyl.SolverDDP(shooting)
    zero = [np.zeros(nx)] * T, [np.zeros(nu)] * (T - 1)
    solver.setCandidate(*zero, False)
    solver.preg = solver.dreg = 0.0
    shooting.calc(*zero)
    shooting.calcDiff(*zero)
    solver.backwardPass()

    K, k, chol = np.empty((T, nu, nx)), np.empty((T, nu)), np.empty((T, nu, nu))
    Q_uu, ones = np.empty((nu, nu)), np.ones(T)
    V, G, Z = np.eye(nx), np.empty((nx, nx + nu)), np.empty((nx + nu, nx + nu))
    v, z = np.ones(nx), np.empty(nx + nu)
    seconds = race(
        {
            "crocoddyl": solver.backwardPass,
            "gps": lambda: _kernels.backward(C, c, C, c, 0.0, ones, F, f, K, k, chol, Q_uu),
            "checked": lambda: lqr.backward(dynamics, cost),
            "products": lambda: products(V, v, F, G, Z, z),
        },
        rounds,
    )
    # about the trajectory that is zero everywhere, so that its gains are absolute
    same = np.abs(np.array(solver.K) + K[:-1]).max() / np.abs(K).max()
    ours, theirs = seconds["gps"], seconds["crocoddyl"]
    print(
        f"{T:5d} {nx:3d} {nu:3d} {1e3 * theirs:12.3f} {1e3 * ours:10.3f} {theirs / ours:7.2f}"
        f" {1e3 * seconds['checked']:10.3f} {ours / seconds['products']:11.2f} {same:10.1e}",
        flush=True,
    )


@njit(cache=True)
def products(V, v, F, G, Z, z):  # type: ignore[no-untyped-def]
    """The matrix products of a backward pass."""
    for t in range(F.shape[0] - 1, -1, -1):
        np.dot(V, F[t], G)
        np.dot(F[t].T, G, Z)
        np.dot(F[t].T, v, z)


def pinocchio_cart_pole() -> Any:
    """The same model of rigid bodies."""
    model = pin.Model()
    cart = model.addJoint(0, pin.JointModelPX(), pin.SE3.Identity(), "slide")
    model.appendBodyToJoint(
        cart, pin.Inertia(CART, np.zeros(3), 1e-9 * np.eye(3)), pin.SE3.Identity()
    )
    pole = model.addJoint(cart, pin.JointModelRY(), pin.SE3.Identity(), "hinge")
    about = np.diag([POLE * HALF**2 / 3, POLE * HALF**2 / 3, 1e-12])
    model.appendBodyToJoint(
        pole, pin.Inertia(POLE, np.array([0.0, 0.0, HALF]), about), pin.SE3.Identity()
    )
    return model


def swing_up(rounds: int) -> None:
    """The second table."""
    model = pinocchio_cart_pole()
    state = crocoddyl.StateMultibody(model)
    # an actuation written in Python would cost a call per node: the hinge gets a motor as well,
    # and its torque a weight that keeps it at zero
    actuation = crocoddyl.ActuationModelFull(state)

    def node(weights: np.ndarray, force: float) -> Any:
        costs = crocoddyl.CostModelSum(state, 2)
        reach = crocoddyl.ActivationModelWeightedQuad(weights / DT)
        costs.addCost(
            "state", crocoddyl.CostModelResidual(
                state, reach, crocoddyl.ResidualModelState(state, np.zeros(4), 2)
            ), 1.0,
        )  # fmt: skip
        if force:
            push = crocoddyl.ActivationModelWeightedQuad(np.array([force, NO_TORQUE]) / DT)
            costs.addCost(
                "force", crocoddyl.CostModelResidual(
                    state, push, crocoddyl.ResidualModelControl(state, 2)
                ), 1.0,
            )  # fmt: skip
        free = crocoddyl.DifferentialActionModelFreeFwdDynamics(state, actuation, costs)
        return crocoddyl.IntegratedActionModelEuler(free, DT)

    start = np.array([0.0, np.pi, 0.0, 0.0])
    end = node(LAST * DT, 0.0)
    end.dt = 0.0  # a last node's cost is not multiplied by the step
    shooting = crocoddyl.ShootingProblem(start, [node(RUNNING, FORCE)] * (T - 1), end)
    C = np.zeros((T, 5, 5))
    C[:] = np.diag([*RUNNING, FORCE])
    C[-1] = np.diag([*LAST, FORCE])
    cost = QuadraticCost(C, np.zeros((T, 5)), np.zeros(T))
    ours = NumbaModel(cart_pole, 4, 1)

    require_same_steps(shooting, cart_pole, lambda u: np.array([u[0], 0.0]), 1)
    side_by_side("swing-up", shooting, ours, cost, start, rounds)


def arm(rounds: int) -> None:
    """The third table: a double pendulum from hanging to a pose, a motor in each joint."""
    steps, goal = 60, np.array([1.5, -0.7, 0.0, 0.0])
    running, last, effort = np.array([0.1, 0.1, 0.01, 0.01]), np.array([50.0, 50.0, 5.0, 5.0]), 1e-3
    model = pin.Model()
    parent, place = 0, pin.SE3.Identity()
    for name in ("shoulder", "elbow"):
        parent = model.addJoint(parent, pin.JointModelRY(), place, name)
        tip = pin.Inertia(1.0, np.array([0.0, 0.0, -1.0]), 1e-12 * np.eye(3))
        model.appendBodyToJoint(parent, tip, pin.SE3.Identity())
        place = pin.SE3(np.eye(3), np.array([0.0, 0.0, -1.0]))
    state = crocoddyl.StateMultibody(model)
    actuation = crocoddyl.ActuationModelFull(state)

    def node(weights: np.ndarray, dt: float) -> Any:
        costs = crocoddyl.CostModelSum(state, 2)
        # a node's cost is multiplied by its step
        scale = 1.0 / dt if dt else 1.0
        reach = crocoddyl.ActivationModelWeightedQuad(scale * weights)
        residual = crocoddyl.ResidualModelState(state, goal, 2)
        costs.addCost("state", crocoddyl.CostModelResidual(state, reach, residual), 1.0)
        if dt:
            push = crocoddyl.ActivationModelWeightedQuad(np.full(2, scale * effort))
            residual = crocoddyl.ResidualModelControl(state, 2)
            costs.addCost("torque", crocoddyl.CostModelResidual(state, push, residual), 1.0)
        free = crocoddyl.DifferentialActionModelFreeFwdDynamics(state, actuation, costs)
        return crocoddyl.IntegratedActionModelEuler(free, dt)

    start = np.zeros(4)
    shooting = crocoddyl.ShootingProblem(start, [node(running, DT)] * (steps - 1), node(last, 0.0))
    C, c = np.zeros((steps, 6, 6)), np.zeros((steps, 6))
    C[:] = np.diag([*running, effort, effort])
    C[-1] = np.diag([*last, effort, effort])
    c[:, :4] = -C[:, :4, :4] @ goal
    cost = QuadraticCost(C, c, 0.5 * np.einsum("tij,i,j->t", C[:, :4, :4], goal, goal))
    ours = NumbaModel(double_pendulum, 4, 2)
    require_same_steps(shooting, double_pendulum, lambda u: u, 2)
    side_by_side("double pendulum", shooting, ours, cost, start, rounds)


def require_same_steps(shooting: Any, step: Any, theirs: Any, nu: int) -> None:
    """One step of both models from some states: the same dynamics."""
    rng = np.random.default_rng(0)
    data = shooting.runningModels[0].createData()
    for x, u in zip(rng.normal(size=(20, 4)), rng.normal(size=(20, nu)), strict=True):
        shooting.runningModels[0].calc(data, x, theirs(u))
        out = np.empty(4)
        step(x, u, 0, out)
        assert np.abs(out - data.xnext).max() < 1e-8, (out, data.xnext)


def side_by_side(
    title: str, shooting: Any, ours: Any, cost: QuadraticCost, start: np.ndarray, rounds: int
) -> None:
    """Both solvers from no force at all, until they stop by themselves."""
    T = len(shooting.runningModels) + 1
    found: dict[str, Any] = {}

    def theirs(name: str) -> None:
        solver = getattr(crocoddyl, name)(shooting)
        solver.th_stop = 1e-9
        us = [np.zeros(2)] * (T - 1)
        solver.solve(shooting.rollout(us), us, 500, True)
        found[f"crocoddyl {name}"] = solver.cost, solver.iter

    def mine(regularise: Any, name: str) -> None:
        config = ilqr.ILQRConfig(regularise=regularise, iterations=500)
        r = ilqr.minimise(ours, cost, start, np.zeros((T, ours.nu)), config=config)
        found[name] = r.cost, r.iterations

    seconds = race(
        {
            "crocoddyl SolverDDP": lambda: theirs("SolverDDP"),
            "crocoddyl SolverFDDP": lambda: theirs("SolverFDDP"),
            "gps, state": lambda: mine("state", "gps, state"),
            "gps, action": lambda: mine("action", "gps, action"),
        },
        max(3, rounds // 10),
    )
    print(f"\n{title:24s} {'ms':>9} {'iterations':>11} {'ms each':>8} {'cost':>10}")
    for name, spent in seconds.items():
        value, count = found[name]
        print(f"{name:24s} {1e3 * spent:9.1f} {count:11d} {1e3 * spent / count:8.3f} {value:10.5f}")


def main() -> None:
    """All tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    with threadpool_limits(limits=1):
        print("backward pass, ms; the last column: largest difference of the gains")
        print(
            f"{'T':>5} {'nx':>3} {'nu':>3} {'crocoddyl':>12} {'gps':>10} {'ratio':>7}"
            f" {'checked':>10} {'of products':>11} {'difference':>10}"
        )
        for size in SIZES:
            backward(*size, args.rounds)
        swing_up(args.rounds)
        arm(args.rounds)


if __name__ == "__main__":
    main()
