"""iLQR against dense solvers, other models of the same system, and problems that have no answer."""

from dataclasses import replace
from itertools import product

import mujoco
import numpy as np
import pytest
from control_problems import cart_pole
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from scipy.optimize import minimize

from gps.control import _ilqr_kernels as kernels
from gps.control import ilqr, lqr
from gps.control.ilqr import ILQRConfig
from gps.control.models import MujocoModel, NumbaModel, NumpyModel, TorchModel
from gps.costs import ActionCost, CostOf, StateCost, SumCost, WeightedCost
from gps.errors import ConfigError, GPSError, NonFiniteError, NotPositiveDefiniteError, ShapeError
from gps.types import Layout, LinearDynamics, QuadraticCost

# --- systems


def cart_pole_rows(x, u, t):
    out = np.empty_like(x)
    for i in range(len(x)):
        cart_pole.py_func(x[i], u[i], t, out[i])
    return out


def cart_pole_torch(x, u, t):
    import torch

    cart, pole, half, g, dt = 1.0, 0.1, 0.5, 9.81, 0.02
    s, c = torch.sin(x[1]), torch.cos(x[1])
    push = (u[0] + pole * half * x[3] ** 2 * s) / (cart + pole)
    turn = (g * s - c * push) / (half * (4.0 / 3.0 - pole * c * c / (cart + pole)))
    v = x[2] + dt * (push - pole * half * turn * c / (cart + pole))
    w = x[3] + dt * turn
    return torch.stack((x[0] + dt * v, x[1] + dt * w, v, w))


CART_POLE_XML = """
<mujoco>
  <option timestep="0.01" gravity="0 0 -9.81"/>
  <worldbody>
    <body name="cart">
      <joint name="slide" type="slide" axis="1 0 0" damping="0.1"/>
      <geom type="box" size="0.1 0.05 0.05" mass="1"/>
      <body name="pole">
        <joint name="hinge" type="hinge" axis="0 1 0"/>
        <geom type="capsule" fromto="0 0 0 0 0 1" size="0.02" mass="0.1"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="slide" ctrlrange="-8 8" ctrllimited="true"/></actuator>
</mujoco>
"""

UP = np.array([0.0, np.pi, 0.0, 0.0])


def swing_up_cost(T):
    C = np.zeros((T, 5, 5))
    C[:, 4, 4] = 2e-3
    C[:, 0, 0] = C[:, 1, 1] = 1e-2
    C[-1, :4, :4] = np.diag([100.0, 200.0, 10.0, 10.0])
    return QuadraticCost(C, np.zeros((T, 5)), np.zeros(T))


def random_lq(seed, T=12, nx=3, nu=2):
    """A linear model, a convex quadratic cost, a start."""
    rng = np.random.default_rng(seed)
    F = np.concatenate(
        (np.eye(nx) + 0.2 * rng.normal(size=(T - 1, nx, nx)), rng.normal(size=(T - 1, nx, nu))),
        axis=2,
    )
    f = 0.1 * rng.normal(size=(T - 1, nx))
    root = rng.normal(size=(T, nx + nu, nx + nu))
    C = root @ root.transpose(0, 2, 1) / (nx + nu) + 0.1 * np.eye(nx + nu)
    cost = QuadraticCost(C, rng.normal(size=(T, nx + nu)), rng.normal(size=T))
    dynamics = LinearDynamics(F, f, np.zeros((T - 1, nx, nx)))
    model = NumpyModel(lambda x, u, t: np.concatenate((x, u), axis=1) @ F[t].T + f[t], nx, nu)
    return model, dynamics, cost, rng.normal(size=nx)


def total_cost(model, cost, start, U):
    """Of the actions in open loop."""
    T, nu = U.shape
    X = np.zeros((T, model.nx))
    X[0] = start
    inf = np.full((T, nu), np.inf)
    K = np.zeros((T, nu, model.nx))
    states, actions = model.rollout(X, U, np.zeros((T, nu)), K, np.zeros(1), -inf, inf)
    z = np.concatenate((states[0], actions[0]), axis=1)
    return float(
        sum(0.5 * z[t] @ cost.C[t] @ z[t] + cost.c[t] @ z[t] + cost.c0[t] for t in range(T))
    )


# --- linear-quadratic problems have known answers


@pytest.mark.parametrize("regularise", ["state", "action"])
def test_a_linear_quadratic_problem_takes_one_step(regularise):
    model, dynamics, cost, start = random_lq(0)
    config = ILQRConfig(initial=0.0, regularise=regularise)
    found = ilqr.minimise(model, cost, start, np.zeros((12, 2)), config=config)
    best = lqr.backward(dynamics, cost)
    assert found.reason in ("gradient", "cost")
    assert found.iterations <= 2
    assert found.step_sizes[0] == 1.0
    np.testing.assert_allclose(found.controller.K, best.K, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.controller.k, best.k, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.controller.chol, best.chol, rtol=1e-6, atol=1e-8)
    heated = ilqr.minimise(model, cost, start, np.zeros((12, 2)), config=config, temperature=4.0)
    np.testing.assert_allclose(heated.controller.Sigma, 4 * best.Sigma, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_the_dense_solution_of_all_steps_at_once(seed):
    model, dynamics, cost, start = random_lq(seed)
    T, nx, nu = 12, 3, 2
    # x[0..T-1] and u[0..T-1] with multipliers: one linear system
    nz, n = nx + nu, T * (nx + nu)
    A, b = np.zeros((T * nx, n)), np.zeros(T * nx)
    A[:nx, :nx], b[:nx] = np.eye(nx), start
    H, g = np.zeros((n, n)), cost.c.ravel()
    for t in range(T):
        H[t * nz : (t + 1) * nz, t * nz : (t + 1) * nz] = cost.C[t]
        if t + 1 < T:
            rows = slice((t + 1) * nx, (t + 2) * nx)
            A[rows, (t + 1) * nz : (t + 1) * nz + nx] = np.eye(nx)
            A[rows, t * nz : (t + 1) * nz] = -dynamics.F[t]
            b[rows] = dynamics.f[t]
    KKT = np.block([[H, A.T], [A, np.zeros((T * nx, T * nx))]])
    z = np.linalg.solve(KKT, np.concatenate((-g, b)))[:n].reshape(T, nz)
    found = ilqr.minimise(model, cost, start, np.ones((T, nu)))
    np.testing.assert_allclose(found.X, z[:, :nx], atol=1e-6)
    np.testing.assert_allclose(found.U, z[:, nx:], atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_limits_against_a_general_solver(seed):
    """Limits bind at about half of the steps; the optimum is that of scipy's L-BFGS-B."""
    model, _, cost, start = random_lq(seed)
    T, nu = 12, 2
    low, high = np.array([-0.3, -0.2]), np.array([0.25, 0.4])
    found = ilqr.minimise(model, cost, start, np.zeros((T, nu)), limits=(low, high))
    assert found.converged
    assert (low <= found.U).all()
    assert (high >= found.U).all()
    held = (low == found.U) | (high == found.U)
    assert 3 <= held.sum() < held.size

    def objective(flat):
        return total_cost(model, cost, start, flat.reshape(T, nu))

    reference = minimize(
        objective,
        np.zeros(T * nu),
        bounds=list(zip(low, high, strict=True)) * T,
        method="L-BFGS-B",
        options={"maxiter": 2000, "maxfun": 200_000, "ftol": 1e-14, "gtol": 1e-8},
    )
    assert found.cost <= reference.fun + 1e-7 * (1 + abs(reference.fun))
    np.testing.assert_allclose(found.U.ravel(), reference.x, atol=2e-3)
    assert (found.controller.K[held] == 0).all()


@settings(max_examples=200, deadline=None)
@given(
    n=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    spread=st.floats(-6, 6),
    width=st.floats(0, 3),
)
def test_the_minimum_in_a_box(n, seed, spread, width):
    """Against all choices of components at their limits."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n, n)) * 10.0 ** (spread * rng.uniform(-0.5, 0.5, size=n))
    H = root.T @ root + 1e-6 * np.trace(root.T @ root) * np.eye(n)
    q = rng.normal(size=n) * np.sqrt(np.trace(H))
    low = rng.normal(size=n) - width
    high = low + rng.uniform(0, 2 * width + 1e-3, size=n)
    x, free, L = np.zeros(n), np.ones(n, dtype=bool), np.zeros((n, n))
    assert kernels.box_minimum(H, q, low, high, x, free, L, 200) == 0

    best = np.inf
    for choice in product((-1, 0, 1), repeat=n):
        c = np.array(choice)
        y = np.where(c < 0, low, high)
        inside = c == 0
        if inside.any():
            rest = q[inside] + H[np.ix_(inside, ~inside)] @ y[~inside]
            y[inside] = np.linalg.solve(H[np.ix_(inside, inside)], -rest)
        if (y >= low - 1e-12).all() and (y <= high + 1e-12).all():
            best = min(best, 0.5 * y @ H @ y + q @ y)
    value = 0.5 * x @ H @ x + q @ x
    assert (x >= low).all()
    assert (x <= high).all()
    scale = np.abs(0.5 * H).sum() * max(1, np.abs(x).max()) ** 2 + np.abs(q) @ np.abs(x)
    assert value <= best + 1e-9 * scale


# --- models


def along(model, T=30):
    """A trajectory of the model under small actions."""
    rng = np.random.default_rng(1)
    U = rng.normal(size=(T, model.nu))
    X = np.zeros((T, model.nx))
    X[0] = rng.normal(size=model.nx)
    inf = np.full((T, model.nu), np.inf)
    K = np.zeros((T, model.nu, model.nx))
    states, actions = model.rollout(X, U, np.zeros_like(U), K, np.zeros(1), -inf, inf)
    return states[0], actions[0]


def test_four_ways_to_write_one_model():
    numba, numpy = NumbaModel(cart_pole, 4, 1), NumpyModel(cart_pole_rows, 4, 1)
    torch = TorchModel(cart_pole_torch, 4, 1)
    X, U = along(numba)
    exact = torch.jacobians(X, U)
    given = NumpyModel(
        cart_pole_rows, 4, 1, jacobian=lambda x, u, t: np.tile(exact[t], (len(x), 1, 1))
    )
    for model in (numba, numpy, given):
        states, _ = along(model)
        np.testing.assert_allclose(states, X, atol=1e-12)
        np.testing.assert_allclose(model.jacobians(X, U), exact, atol=1e-8)

    @njit
    def jacobian(x, u, t, out):
        out[:] = t

    assert (NumbaModel(cart_pole, 4, 1, jacobian).jacobians(X, U)[7] == 7).all()


def test_a_torch_model_that_needs_the_step_as_a_number():
    def step(x, u, t):
        return x + [0.1, 0.2, 0.3][t] * u

    F = TorchModel(step, 2, 2).jacobians(np.zeros((4, 2)), np.zeros((4, 2)))
    np.testing.assert_allclose(F[:, 0, 2], [0.1, 0.2, 0.3])


@pytest.mark.parametrize("substeps", [1, 3])
def test_mujoco(substeps):
    """Trajectories are those of mj_step, Jacobians those of differences of them."""
    plain = mujoco.MjModel.from_xml_string(CART_POLE_XML)
    model = MujocoModel(plain, substeps=substeps)
    assert model.dt == pytest.approx(0.01 * substeps)
    assert model.control_range == (-8.0, 8.0)
    X, U = along(model)
    data = mujoco.MjData(plain)

    def step(x, u, t):
        mujoco.mj_resetData(plain, data)
        data.qpos[:], data.qvel[:], data.ctrl[:] = x[:2], x[2:], u
        mujoco.mj_step(plain, data, substeps)
        return np.concatenate((data.qpos, data.qvel))

    for t in range(len(X) - 1):
        np.testing.assert_allclose(X[t + 1], step(X[t], U[t], t), atol=1e-9)
    rows = NumpyModel(
        lambda x, u, t: np.array([step(*row, t) for row in zip(x, u, strict=True)]), 4, 1
    )
    np.testing.assert_allclose(model.jacobians(X, U), rows.jacobians(X, U), atol=2e-6)


def test_mujoco_with_contacts():
    """A ball pushed along the floor: the contact shows in the Jacobians, and is used."""
    xml = """
    <mujoco>
      <option timestep="0.005"/>
      <worldbody>
        <geom type="plane" size="5 5 0.1"/>
        <body pos="0 0 0.1">
          <joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 0 1"/>
          <geom type="sphere" size="0.1" mass="1" friction="0.5"/>
        </body>
      </worldbody>
      <actuator><motor joint="" gear="1"/></actuator>
    </mujoco>
    """.replace('joint=""', 'joint="push"').replace(
        '<joint type="slide" axis="1 0 0"/>', '<joint name="push" type="slide" axis="1 0 0"/>'
    )
    model = MujocoModel(mujoco.MjModel.from_xml_string(xml), substeps=4)
    T = 60
    C = np.zeros((T, 5, 5))
    C[:, 4, 4] = 1e-4
    C[-1, 0, 0], C[-1, 2, 2] = 100.0, 10.0
    c = np.zeros((T, 5))
    c[-1, 0] = -100.0 * 0.5  # half a metre to the right
    cost = QuadraticCost(C, c, np.zeros(T))
    first = np.zeros((T, 1))
    found = ilqr.minimise(model, cost, np.zeros(4), first, limits=(-20.0, 20.0))
    assert abs(found.X[-1, 0] - 0.5) < 0.01
    assert abs(found.X[:, 1]).max() < 0.01  # it stays on the floor
    F = model.jacobians(found.X, found.U)
    assert abs(F[:, 3, 1]).max() > 1.0  # pushed into the floor, it comes back


def test_mujoco_does_not_jump_back_from_an_unstable_state(tmp_path, monkeypatch):
    """A planner would take the jump to the model's start for a way to get there."""
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings there
    xml = CART_POLE_XML.replace("<motor ", '<motor gear="1e14" ')
    assert xml != CART_POLE_XML
    model = MujocoModel(mujoco.MjModel.from_xml_string(xml))
    T = 12
    limit = np.full((T, 1), 8.0)
    plan = np.zeros((T, 4)), limit, np.zeros((T, 1)), np.zeros((T, 1, 4))
    X, _ = model.rollout(*plan, np.ones(1), -limit, limit)
    assert not (np.abs(X[0, -1]) < 1e9).all()


def test_what_a_mujoco_model_must_be():
    late = CART_POLE_XML.replace("<motor ", '<motor delay="0.05" nsample="4" ')
    with pytest.raises(ConfigError, match="this one has delays"):
        MujocoModel(mujoco.MjModel.from_xml_string(late))
    idle = "<mujoco><worldbody><body><joint/><geom size='1'/></body></worldbody></mujoco>"
    with pytest.raises(ConfigError, match="at least one actuator"):
        MujocoModel(mujoco.MjModel.from_xml_string(idle))
    good = mujoco.MjModel.from_xml_string(CART_POLE_XML)
    with pytest.raises(ConfigError, match=r"MujocoModel\.substeps must be a whole number"):
        MujocoModel(good, substeps=0)


# --- swing-up: a problem that is far from linear


@pytest.mark.parametrize("regularise", ["state", "action"])
def test_swing_up_with_limits(regularise):
    T = 200
    model, cost = NumbaModel(cart_pole, 4, 1), swing_up_cost(T)
    config = ILQRConfig(regularise=regularise)
    found = ilqr.minimise(model, cost, UP, np.zeros((T, 1)), limits=(-5.0, 5.0), config=config)
    assert found.converged
    assert np.abs(found.X[-1]).max() < 0.05  # upright, at rest, in the middle
    assert np.abs(found.U).max() <= 5.0
    assert np.abs(found.U).max() == 5.0  # the limits do bind
    assert (np.diff(found.costs) <= 0).all()
    assert found.costs[0] > 100 * found.cost
    assert len(found.costs) == found.iterations + 1
    assert found.cost == pytest.approx(total_cost(model, cost, UP, found.U), rel=1e-6)

    # no way down from here: the gradient with respect to free actions, by differences
    held = np.abs(found.U) == 5.0
    scale = abs(found.cost)
    for t in range(0, T, 7):
        if held[t]:
            continue
        ends = []
        for h in (1e-4, -1e-4):
            U = found.U.copy()
            U[t] += h
            ends.append(total_cost(model, cost, UP, U))
        assert abs(ends[0] - ends[1]) / 2e-4 < 2e-3 * scale

    # the controller is about that trajectory
    again = ilqr.minimise(
        model, cost, UP, np.zeros((T, 1)), limits=(-5.0, 5.0), controller=found.controller
    )
    assert again.costs[0] == pytest.approx(found.cost, rel=1e-9)
    assert again.iterations <= 5
    warm = ilqr.minimise(model, cost, UP, found.U, limits=(-5.0, 5.0), config=config)
    assert warm.iterations <= 5
    assert warm.cost <= found.cost * (1 + 1e-9)


def test_models_do_not_matter():
    T = 100
    cost = swing_up_cost(T)
    config = ILQRConfig(iterations=15)
    found = [
        ilqr.minimise(model, cost, UP, np.zeros((T, 1)), limits=(-8.0, 8.0), config=config)
        for model in (
            NumbaModel(cart_pole, 4, 1),
            NumpyModel(cart_pole_rows, 4, 1),
            TorchModel(cart_pole_torch, 4, 1),
        )
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other.costs, found[0].costs, rtol=1e-4)


def test_swing_up_in_mujoco():
    T = 100
    model = MujocoModel(mujoco.MjModel.from_xml_string(CART_POLE_XML), substeps=2)
    found = ilqr.minimise(model, swing_up_cost(T), UP, np.zeros((T, 1)), limits=model.control_range)
    assert np.abs(found.X[-1]).max() < 0.2  # it began at pi
    assert np.abs(found.U).max() <= 8.0


def test_a_cost_of_the_toolkit():
    layout = Layout((("joint_pos", 2), ("joint_vel", 2)))
    T = 60
    cost = SumCost(
        terms=(
            WeightedCost(cost=StateCost(entry="joint_pos", target=0.0, l2=1.0), weight=1.0),
            WeightedCost(cost=StateCost(entry="joint_vel", target=0.0, l2=1.0), weight=0.1),
            WeightedCost(cost=ActionCost(weights=1e-2), weight=1.0),
        )
    )
    start = np.array([0.5, 0.2, 0.0, 0.0])
    model = NumbaModel(cart_pole, 4, 1)
    trajectory_cost = CostOf(cost, layout, 1, T)
    found = ilqr.minimise(model, trajectory_cost, start, np.zeros((T, 1)))
    assert found.converged
    gradient, hessian = trajectory_cost.derivatives(found.X, found.U)
    z = np.concatenate((found.X, found.U), axis=1)
    rng = np.random.default_rng(0)
    for _ in range(5):
        d = 1e-5 * rng.normal(size=z.shape)
        ends = [trajectory_cost.values((z + s * d)[None, :, :4], (z + s * d)[None, :, 4:]).sum()
                for s in (1, -1)]  # fmt: skip
        assert ends[0] - ends[1] == pytest.approx(2 * (gradient * d).sum(), rel=1e-5)
    assert hessian.shape == (T, 5, 5)
    with pytest.raises(ConfigError, match="joint_pos"):
        CostOf(cost, Layout((("angle", 4),)), 1, T)


# --- stops, and problems without an answer


def test_reasons():
    T = 60
    model, cost = NumbaModel(cart_pole, 4, 1), swing_up_cost(T)
    short = ilqr.minimise(model, cost, UP, np.zeros((T, 1)), config=ILQRConfig(iterations=2))
    assert (short.reason, short.iterations, short.converged) == ("iterations", 2, False)
    loose = ilqr.minimise(model, cost, UP, np.zeros((T, 1)), config=ILQRConfig(tol_cost=0.9))
    assert loose.reason == "cost"
    # at the optimum already, to the last digit
    lq, _, quadratic, start = random_lq(3)
    once = ilqr.minimise(lq, quadratic, start, np.zeros((12, 2)))
    again = ilqr.minimise(lq, quadratic, start, once.U)
    assert again.reason == "gradient"
    assert again.cost == pytest.approx(once.cost, rel=1e-12)


def test_a_model_that_lies_stops_with_a_reason():
    """Jacobians of the wrong sign: no step lowers the cost."""
    exact = TorchModel(cart_pole_torch, 4, 1)
    T = 30

    class Liar:
        nx, nu = 4, 1

        def rollout(self, *args):
            return exact.rollout(*args)

        def jacobians(self, X, U):
            F = exact.jacobians(X, U)
            F[:, :, 4:] *= -1
            return F

    C = np.zeros((T, 5, 5))
    C[-1, 0, 0] = 1.0
    C[:, 4, 4] = 1e-9
    c = np.zeros((T, 5))
    c[-1, 0] = -1.0
    cost = QuadraticCost(C, c, np.zeros(T))
    config = ILQRConfig(largest=1e3, tol_gradient=0.0)
    found = ilqr.minimise(Liar(), cost, np.zeros(4), np.zeros((T, 1)), config=config)
    assert found.reason == "regularisation"
    assert not found.converged


def test_a_step_that_regularisation_made_small_is_no_optimum():
    """A cost whose gradient has the wrong sign, with the tolerances as they are."""
    T = 10
    right = QuadraticCost(np.tile(np.eye(3), (T, 1, 1)), np.ones((T, 3)), np.zeros(T))

    class Wrong:
        values = staticmethod(ilqr._Quadratic(right).values)

        def derivatives(self, X, U):
            gradient, hessian = ilqr._Quadratic(right).derivatives(X, U)
            return -gradient, hessian

    model = NumpyModel(lambda x, u, t: x + 0.1 * np.concatenate([x[:, 1:], u], axis=1), 2, 1)
    found = ilqr.minimise(model, Wrong(), np.ones(2), np.zeros((T, 1)))
    assert found.gradients[-1] < ILQRConfig().tol_gradient  # and yet
    assert found.reason == "regularisation"
    assert not found.converged
    assert found.cost == found.costs[0]
    assert found.cost <= found.costs[0]


def test_no_regularisation_helps():
    """Concave in the last action, where no model multiplies it."""
    T = 5
    C = np.zeros((T, 5, 5))
    C[:, 4, 4] = 1.0
    C[-1, 4, 4] = -1.0
    cost = QuadraticCost(C, np.zeros((T, 5)), np.zeros(T))
    model = NumbaModel(cart_pole, 4, 1)
    config = ILQRConfig(largest=0.5)
    with pytest.raises(NotPositiveDefiniteError, match=r"t=4.*-0\.5") as caught:
        ilqr.minimise(model, cost, UP, np.zeros((T, 1)), config=config)
    assert "action cost" in str(caught.value)


@njit
def explode(x, u, t, out):
    out[0] = x[0] ** 3 + u[0]


def test_a_trajectory_that_explodes():
    T = 40
    cost = QuadraticCost(np.tile(np.eye(2), (T, 1, 1)), np.zeros((T, 2)), np.zeros(T))
    model = NumbaModel(explode, 1, 1)
    with pytest.raises(NonFiniteError, match=r"first trajectory is not finite at t=\d+"):
        ilqr.minimise(model, cost, [3.0], np.zeros((T, 1)))
    # from where it holds it comes to rest, though most steps of the line search explode
    found = ilqr.minimise(model, cost, [0.9], np.zeros((T, 1)))
    assert abs(found.X[-1, 0]) < 1e-3


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x0": np.zeros(3)}, ShapeError, r"x0 must be a Gaussian or a state of shape \(4,\)"),
        ({"x0": [0, np.nan, 0, 0]}, NonFiniteError, "x0 is not finite"),
        ({"actions": np.zeros((5, 2))}, ShapeError, r"actions must have shape \(T, 1\)"),
        ({"actions": np.full((5, 1), np.inf)}, NonFiniteError, "actions is not finite at t=0"),
        ({"limits": (1.0, -1.0)}, ConfigError, r"lower one of action 0 at t=0"),
        ({"limits": (np.nan, 1.0)}, ConfigError, "lower one of action 0"),
        ({"limits": (np.zeros(3), 1.0)}, ShapeError, "the lower limit must be a number"),
        ({"cost": swing_up_cost(6)}, ShapeError, r"cost\.c must have shape \(5, 5\)"),
    ],
)
def test_wrong_problems(change, error, message):
    problem = {
        "model": NumbaModel(cart_pole, 4, 1),
        "cost": swing_up_cost(5),
        "x0": UP,
        "actions": np.zeros((5, 1)),
    }
    with pytest.raises(error, match=message):
        ilqr.minimise(**(problem | change))


def test_wrong_models():
    with pytest.raises(ShapeError, match=r"NumpyModel\.step must map"):
        NumpyModel(lambda x, u, t: x[0], 4, 1)
    with pytest.raises(ShapeError, match=r"NumpyModel\.jacobian must give"):
        NumpyModel(cart_pole_rows, 4, 1, jacobian=lambda x, u, t: x)
    with pytest.raises(ShapeError, match=r"TorchModel\.step must map"):
        TorchModel(lambda x, u, t: x[:2], 4, 1)
    with pytest.raises(ConfigError, match=r"NumbaModel\.step must be decorated"):
        NumbaModel(cart_pole_rows, 4, 1)
    with pytest.raises(ConfigError, match="nx must be a whole number of at least 1"):
        NumbaModel(cart_pole, 0, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"iterations": 0}, {"tol_cost": -1.0}, {"tol_gradient": np.nan}, {"step_sizes": ()},
        {"step_sizes": (0.5, 1.0)}, {"step_sizes": (2.0,)}, {"min_ratio": 1.0}, {"factor": 1.0},
        {"regularise": "both"}, {"smallest": 0.0}, {"largest": 1e-9}, {"initial": 1e11},
    ],
)  # fmt: skip
def test_wrong_configurations(change):
    with pytest.raises(ConfigError, match="ILQRConfig"):
        replace(ILQRConfig(), **change)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-150, 1e-8, 1.0, 1e8, 1e150]),
    curvature=st.sampled_from([-1.0, 0.0, 1e-12, 1.0]),
    unstable=st.sampled_from([0.0, 1.0, 30.0]),
    limited=st.booleans(),
)
def test_never_garbage(seed, scale, curvature, unstable, limited):
    """Ill-conditioned, tiny, huge, singular, concave: a finite improvement or a named error."""
    rng = np.random.default_rng(seed)
    T, nx, nu = 8, 2, 2
    A = rng.normal(size=(nx, nx)) * (1 + unstable)
    B = rng.normal(size=(nx, nu)) * rng.choice([0.0, 1.0, 1e6])
    model = NumpyModel(lambda x, u, t: x @ A.T + u @ B.T, nx, nu)
    root = rng.normal(size=(T, nx + nu, nx + nu))
    C = root @ root.transpose(0, 2, 1)
    C[:, nx:, nx:] *= curvature
    cost = QuadraticCost(scale * C, scale * rng.normal(size=(T, nx + nu)), np.zeros(T))
    limits = (-1.0, 1.0) if limited else None
    config = ILQRConfig(iterations=30)
    try:
        found = ilqr.minimise(
            model, cost, rng.normal(size=nx), np.zeros((T, nu)), limits=limits, config=config
        )
    except GPSError:  # by a name of its own, not numpy's or numba's
        return
    assert np.isfinite(found.cost)
    assert np.isfinite(found.controller.K).all()
    assert (np.diff(found.costs) <= 0).all()
    if limited:
        assert np.abs(found.U).max() <= 1.0


# --- functions that do what they must not


@njit
def beyond(x, u, t, out):
    out[0] = x[0]
    out[2] = u[0]


@njit
def half(x, u, t, out):
    out[0] = x[0] + u[0]


@njit
def in_place(x, u, t, out):
    x[0] += 1.0
    out[:] = x


@njit
def reciprocal(x, u, t, out):
    out[0] = 1.0 / x[0]
    out[1] = u[0]


@pytest.mark.parametrize(
    ("step", "error", "match"),
    [
        (beyond, ShapeError, r"step reads or writes beyond .*out \(2,\)"),
        (half, ConfigError, r"step does not write out\[1\]"),
        (in_place, ConfigError, "step changes its arguments x or u"),
    ],
)
def test_a_compiled_step_is_tried_before_it_can_do_harm(step, error, match):
    with pytest.raises(error, match=match):
        NumbaModel(step, 2, 1)


def test_a_division_by_zero_in_a_compiled_step():
    cost = QuadraticCost(np.tile(np.eye(3), (4, 1, 1)), np.zeros((4, 3)), np.zeros(4))
    with pytest.raises(NonFiniteError, match=r"step reciprocal divides .*error_model='numpy'"):
        ilqr.minimise(NumbaModel(reciprocal, 2, 1), cost, np.zeros(2), np.zeros((4, 1)))


@njit
def unknown(x, u, t, out):
    out[:] = x.no_such_method()


@njit
def too_few(x, u):
    return x + u


@pytest.mark.parametrize("options", [{}, {"jacobian": unknown}])
def test_a_step_that_numba_cannot_compile_is_named(options):
    which = "jacobian" if options else "step"
    model = NumbaModel(filled if options else unknown, 2, 1, **options)
    cost = QuadraticCost.from_matrices(np.eye(2), np.eye(1), T=4)
    with pytest.raises(ConfigError, match=f"NumbaModel.{which} unknown failed: Typing") as caught:
        ilqr.minimise(model, cost, np.zeros(2), np.zeros((4, 1)))
    assert "\n" not in str(caught.value)


@njit
def filled(x, u, t, out):
    out[:] = u[0]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: NumbaModel(too_few, 2, 1), r"NumbaModel\.step too_few must take \(x, u, t, out\)"),
        (lambda: NumbaModel(filled, 2, 1, too_few), r"\.jacobian too_few must take \(x, u, t, o"),
        (
            lambda: NumpyModel(lambda: None, 2, 1),
            r"NumpyModel\.step .*<lambda> must take \(x, u, t",
        ),
        (lambda: NumpyModel(max, 2, 1), r"NumpyModel\.step max failed"),  # has no signature
        (lambda: NumpyModel(pushed, 2, 1, 3), r"\.jacobian int must take \(x, u, t\): 3 is not"),
        (lambda: TorchModel(lambda: None, 2, 1), r"TorchModel\.step .* must take \(x, u, t\)"),
        (lambda: TorchModel(lambda x, u, t: None, 2, 1), r"must return a torch tensor, got None"),
    ],
)
def test_a_function_that_cannot_be_called_so_is_named(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_network_of_the_wrong_size_is_told_its_size(dtype):
    """Not that it is of another precision, which was tried too."""
    torch = pytest.importorskip("torch")
    net = torch.nn.Linear(5, 2).to(getattr(torch, dtype))
    with pytest.raises(ConfigError, match=r"shapes cannot be multiplied \(1x3 and 5x2\)"):
        TorchModel(lambda x, u, t: net(torch.cat([x, u])), 2, 1)


def test_a_numpy_step_in_place_gives_the_same_plan():
    def apart(x, u, t):
        return x + 0.1 * np.concatenate([x[:, 1:], u], axis=1)

    def together(x, u, t):
        x[:, 0] += 0.1 * x[:, 1]
        x[:, 1] += 0.1 * u[:, 0]
        return x

    C = np.tile(np.eye(3), (20, 1, 1))
    cost = QuadraticCost(C, np.zeros((20, 3)), np.zeros(20))
    one, other = (
        ilqr.minimise(NumpyModel(step, 2, 1), cost, np.ones(2), np.zeros((20, 1)))
        for step in (apart, together)
    )
    assert other.cost == pytest.approx(one.cost, rel=1e-9)
    np.testing.assert_array_equal(other.X[0], 1.0)


def test_a_cost_without_minimum_is_named():
    step = NumpyModel(lambda x, u, t: 0.9 * x + u, 1, 1)
    C = np.tile(np.diag([1.0, -1.0]), (8, 1, 1))
    C[3, 1, 1] = -2.0
    cost = QuadraticCost(C, np.zeros((8, 2)), np.zeros(8))
    with pytest.raises(NotPositiveDefiniteError, match=r"t=3.*-2.*without bound"):
        ilqr.minimise(step, cost, np.ones(1), np.zeros((8, 1)))
    found = ilqr.minimise(step, cost, np.ones(1), np.zeros((8, 1)), limits=(-1.0, 1.0))
    assert np.isfinite(found.cost)  # limits make it a problem with an answer


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m, c: ilqr.minimise(m, c, [1.0], np.zeros((4, 1)), limits=3.0), ShapeError, "pair"),
        (lambda m, c: ILQRConfig(step_sizes=1.0), ConfigError, "must be a tuple, each a number"),
        (lambda m, c: MujocoModel("robot.xml"), ConfigError, "from_xml_path"),
        (
            lambda m, c: ilqr.minimise(m, Short(), [1.0], np.zeros((4, 1))),
            ShapeError,
            r"values must have shape \(B, T\) = \(1, 4\), got \(1,\)",
        ),
    ],
)
def test_slips_are_named(call, error, match):
    cost = QuadraticCost(np.tile(np.eye(2), (4, 1, 1)), np.zeros((4, 2)), np.zeros(4))
    with pytest.raises(error, match=match):
        call(NumpyModel(lambda x, u, t: x + u, 1, 1), cost)


class Short:
    """Its values are totals, not steps."""

    def values(self, X, U):
        return np.zeros(len(X))

    def derivatives(self, X, U):
        return np.zeros((4, 2)), np.zeros((4, 2, 2))


# --- models that fail, and networks as they come out of a training


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_trained_network_is_a_model(dtype):
    """Its weights require gradients, and may be of single precision."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    with torch.no_grad():
        for weights in net.parameters():
            weights.copy_(torch.randn(weights.shape, generator=generator))
    net = net.to(getattr(torch, dtype))
    assert all(weights.requires_grad for weights in net.parameters())
    model = TorchModel(lambda x, u, t: x + 0.05 * net(torch.cat([x, u])), 2, 1)
    rng = np.random.default_rng(0)
    X, U = rng.normal(size=(5, 2)), rng.normal(size=(5, 1))
    F = model.jacobians(X, U)
    W = [w.detach().double().numpy() for w in net.parameters()]

    def by_hand(x, u):
        z = np.concatenate([x, u], axis=1)
        return x + 0.05 * (np.tanh(z @ W[0].T + W[1]) @ W[2].T + W[3])

    want = NumpyModel(lambda x, u, t: by_hand(x, u), 2, 1)
    assert F.dtype == np.float64
    np.testing.assert_allclose(F, want.jacobians(X, U), atol=1e-6 if dtype == "float32" else 1e-9)
    cost = QuadraticCost.from_matrices(np.eye(2), np.eye(1), T=20)
    plans = [ilqr.minimise(m, cost, [1.0, 0.0], np.zeros((20, 1))) for m in (model, want)]
    assert plans[0].cost == pytest.approx(plans[1].cost, rel=1e-5)


def lost(x, u, t):
    raise KeyError("mass")


def lost_later(x, u, t):
    if t > 2:
        raise KeyError("mass")
    return x


@pytest.mark.parametrize("kind", [NumpyModel, TorchModel])
def test_a_function_of_the_users_that_fails_is_named(kind):
    with pytest.raises(ConfigError, match=f"{kind.__name__}.step lost failed: KeyError: 'mass'"):
        kind(lost, 2, 1)
    cost = QuadraticCost.from_matrices(np.eye(2), np.eye(1), T=6)
    model = kind(lost_later, 2, 1)
    with pytest.raises(ConfigError, match="step lost_later failed: KeyError: 'mass'") as caught:
        ilqr.minimise(model, cost, [1.0, 0.0], np.zeros((6, 1)))
    assert isinstance(caught.value.__cause__, KeyError)  # a bug keeps its traceback
    if kind is NumpyModel:
        with pytest.raises(ConfigError, match=r"NumpyModel\.jacobian lost failed: KeyError"):
            kind(lambda x, u, t: x, 2, 1, jacobian=lost)


def test_a_model_that_clips_its_actions_limits_the_plan():
    """Else the plan would be one that the simulator does not carry out."""
    xml = """<mujoco><option timestep="0.02"/><worldbody><body><joint name="x" type="slide"
      axis="1 0 0"/><geom type="sphere" size="0.1" mass="1"/></body></worldbody>
      <actuator><motor joint="x" ctrlrange="-2 3" ctrllimited="true"/></actuator></mujoco>"""
    model = MujocoModel(mujoco.MjModel.from_xml_string(xml))
    T = 40
    cost = QuadraticCost.from_matrices(np.diag([10.0, 0.1]), [[1e-3]], reference=[1.0, 0.0], T=T)
    args = (model, cost, [0.0, 0.0], np.zeros((T, 1)))
    plan = ilqr.minimise(*args)
    assert plan.U.min() == -2
    assert plan.U.max() == 3
    asked = ilqr.minimise(*args, limits=model.control_range)
    np.testing.assert_array_equal(plan.U, asked.U)
    free = ilqr.minimise(*args, limits=(-np.inf, np.inf))
    assert abs(free.U).max() > 3
    # one without limits is planned for without them
    plain = xml.replace('ctrlrange="-2 3" ctrllimited="true"', "")
    model = MujocoModel(mujoco.MjModel.from_xml_string(plain))
    found = [ilqr.minimise(model, *args[1:], **limits) for limits in ({}, {"limits": (-1e9, 1e9)})]
    np.testing.assert_allclose(found[0].U, found[1].U, atol=1e-6)
    assert abs(found[0].U).max() > 3


def pushed(x, u, t):
    return x + 0.1 * u


def sharp(x, u, t):
    return np.where(x < 2.0, x + u, np.inf)


def steep(x, u, t):
    z = np.concatenate((x, u), axis=1)
    return np.full((*x.shape, z.shape[1]), np.nan if t == 3 else 1.0)


class SquareRoot:
    """sum sqrt(x) + u^2 / 2: infinite derivatives at x = 0, no value below."""

    def values(self, X, U):
        return np.sqrt(X[..., 0]) + 0.5 * U[..., 0] ** 2

    def derivatives(self, X, U):
        l_zz = np.zeros((len(X), 2, 2))
        l_zz[:, 0, 0], l_zz[:, 1, 1] = -0.25 * X[:, 0] ** -1.5, 1.0
        return np.stack([0.5 * X[:, 0] ** -0.5, U[:, 0]], axis=1), l_zz


@pytest.mark.parametrize(
    ("model", "cost", "x0", "actions", "message"),
    [
        (pushed, SquareRoot(), 1.0, [0, 0, -20.0, 0], r"SquareRoot\.values\) is not finite at t=3"),
        (
            pushed,
            SquareRoot(),
            1.0,
            [0, -10.0, 0, 0],
            r"gradient \(SquareRoot\): not finite at t=2",
        ),
        (sharp, SquareRoot(), 1.0, [1.0, 1, 1, 1], r"at t=2 \(NumpyModel\.step sharp\); begin"),
    ],
)
def test_what_is_not_finite_first_is_named(model, cost, x0, actions, message):
    model = NumpyModel(model, 1, 1)
    with pytest.raises(NonFiniteError, match=message):
        ilqr.minimise(model, cost, [x0], np.array(actions)[:, None])


def test_a_jacobian_that_is_not_finite_names_the_function():
    model = NumpyModel(pushed, 1, 1, steep)
    with pytest.raises(NonFiniteError, match=r"Jacobians \(NumpyModel.step pushed\).*at t=3"):
        ilqr.minimise(model, SquareRoot(), [1.0], np.zeros((6, 1)))


def test_a_terminal_cost_needs_no_action_cost():
    """The same plan as with a cost of the last action, whose best is none; within limits too."""
    T = 20
    model = NumbaModel(cart_pole, 4, 1)
    charged = QuadraticCost.from_matrices(0.1 * np.eye(4), np.eye(1), final=50 * np.eye(4), T=T)
    C = charged.C.copy()
    C[-1, 4:] = 0.0
    free = QuadraticCost(C, charged.c, charged.c0)
    for limits in (None, (-3.0, 3.0)):
        a, b = (
            ilqr.minimise(model, cost, [0.3, 0.2, 0, 0], np.full((T, 1), 0.1), limits=limits)
            for cost in (charged, free)
        )
        np.testing.assert_allclose(a.U[:-1], b.U[:-1], rtol=1e-5, atol=1e-6)
        assert a.converged
        assert b.converged
        # not by regularising what has no minimum, which would leave noise of its inverse
        np.testing.assert_array_equal(a.regularisation, b.regularisation)
        np.testing.assert_allclose(b.controller.Sigma[-1], a.controller.Sigma[-1])
