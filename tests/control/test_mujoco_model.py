"""`MujocoModel` for joints, integrators and actuators of every kind, against MuJoCo's own steps."""

import mujoco
import numpy as np
import pytest

from gps.agents import MujocoConfig
from gps.control import ILQRConfig, ilqr, models
from gps.control.models import MujocoModel
from gps.costs import ActionCost, EndpointCost, StateCost, SumCost, WeightedCost, model_cost
from gps.errors import ConfigError, ShapeError

JOINTS = {
    "hinge": '<joint name="j" axis="0 1 0.2" damping="0.1"/>',
    "slide": '<joint name="j" type="slide" axis="1 0 1" damping="0.5"/>',
    "ball": '<joint name="j" type="ball" damping="0.1"/>',
    "free": '<freejoint name="j"/>',
}
ACTUATORS = {
    "motors": '<motor joint="j" gear="1 0.5 0.2 0.1 0.3 0.2"/><motor joint="k"/>',
    "activations": (
        '<general joint="k" dyntype="filterexact" dynprm="0.1" gainprm="2"/>'
        '<intvelocity joint="k" kp="3"/>'
        '<muscle joint="k" lengthrange="-2 2" force="5" ctrllimited="true" ctrlrange="0 1"/>'
    ),
}
INTEGRATORS = ("Euler", "implicit", "implicitfast", "RK4")
XML = """<mujoco><compiler angle="radian"/><option timestep="0.004" integrator="{integrator}"/>
<worldbody><body pos="0 0 1" quat="0.8 0.6 0 0">{joint}
  <geom type="box" size=".1 .15 .2" mass="1"/>
  <body pos=".2 0 0"><joint name="k" axis="0 0 1" damping="0.1"/>
    <geom type="capsule" fromto="0 0 0 .2 0 .1" size=".03" mass=".4" contype="0" conaffinity="0"/>
    <site name="tip" pos=".2 0 .1"/></body></body></worldbody>
<actuator>{actuators}</actuator></mujoco>"""


def made(joint, integrator, actuators="motors"):
    xml = XML.format(joint=JOINTS[joint], integrator=integrator, actuators=ACTUATORS[actuators])
    return mujoco.MjModel.from_xml_string(xml)


def stepped(plain, known, x, u):
    """The next state by mj_step from states (nx,), which MuJoCo's own functions convert."""
    nv, data = plain.nv, mujoco.MjData(plain)
    data.qpos[:] = plain.qpos0
    mujoco.mj_integratePos(plain, data.qpos, x[:nv], 1.0)  # of rotations too: about qpos0
    data.qvel[:], data.act[:], data.ctrl[:] = x[nv : 2 * nv], x[2 * nv :], u
    mujoco.mj_step(plain, data, known.substeps)
    moved = np.zeros(nv)
    mujoco.mj_differentiatePos(plain, moved, 1.0, plain.qpos0, data.qpos)
    return np.concatenate((moved, data.qvel, data.act))


@pytest.mark.parametrize("actuators", ACTUATORS)
@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("joint", JOINTS)
def test_steps_and_jacobians_are_those_of_mujoco(joint, integrator, actuators):
    rng, T = np.random.default_rng(1), 6
    plain = made(joint, integrator, actuators)
    known = MujocoModel(plain, substeps=3, threads=2)
    nv, nx, nu = plain.nv, known.nx, known.nu
    assert nx == 2 * nv + plain.na
    X, U = np.zeros((T, nx)), rng.uniform(0.2, 0.8, size=(T, nu))
    X[0, : 2 * nv] = 0.5 * rng.normal(size=2 * nv)
    X[0, 2 * nv :] = 0.3
    inf = np.full((T, nu), np.inf)
    states, _ = known.rollout(X, U, 0 * U, np.zeros((T, nu, nx)), np.ones(2), -inf, inf)
    np.testing.assert_array_equal(states[0], states[1])
    F = known.jacobians(states[0], U)
    for t in (0, T - 2):
        np.testing.assert_allclose(
            states[0, t + 1], stepped(plain, known, states[0, t], U[t]), rtol=1e-7, atol=1e-9
        )
        z = np.concatenate((states[0, t], U[t]))
        ends = [
            [
                stepped(plain, known, (z + e)[:nx], (z + e)[nx:])
                for e in sign * 1e-5 * np.eye(nx + nu)
            ]
            for sign in (1, -1)
        ]
        differences = (np.array(ends[0]) - np.array(ends[1])).T / 2e-5
        np.testing.assert_allclose(F[t], differences, rtol=1e-4, atol=2e-6)


def test_rotation_vectors_and_quaternions_are_each_others_inverse():
    known = MujocoModel(made("free", "Euler"))
    X = np.random.default_rng(0).normal(size=(50, known.nx))
    X[0, 3:6] = 0.0
    nv = known.model.nv
    qpos = known.qpos(X)
    np.testing.assert_allclose(known.state(qpos, X[:, nv:]), X, atol=1e-12)
    # one of them, as in a simulator's data, or more axes
    np.testing.assert_array_equal(known.qpos(X[7]), qpos[7])
    np.testing.assert_array_equal(known.state(qpos[7], X[7, nv:]), known.state(qpos, X[:, nv:])[7])
    folded = known.state(qpos.reshape(5, 10, -1), X[:, nv:].reshape(5, 10, -1))
    np.testing.assert_array_equal(folded, known.state(qpos, X[:, nv:]).reshape(5, 10, -1))
    np.testing.assert_array_equal(
        known.qpos(folded), known.qpos(folded.reshape(50, -1)).reshape(5, 10, -1)
    )
    qpos[:, 3:7] *= -1.0  # the same rotation
    np.testing.assert_allclose(known.state(qpos, X[:, nv:]), X, atol=1e-12)
    with pytest.raises(
        ShapeError, match=rf"qpos must have shape \(50, {nv + 1}\), got \(50, {nv}\)"
    ):
        known.state(qpos[:, 1:], X[:, nv:])
    with pytest.raises(ShapeError, match=r"qvel must have shape"):
        known.state(qpos[0], X[0])
    with pytest.raises(
        ShapeError, match=rf"states must have shape \(\.\.\., {known.nx}\), got \(3,\)"
    ):
        known.qpos(X[0, :3])
    moving = MujocoModel(made("hinge", "Euler", "activations"))
    x = moving.state([0.1, 0.2], [0.3, 0.4])  # without activations
    np.testing.assert_array_equal(x, [0.1, 0.2, 0.3, 0.4, *np.zeros(moving.model.na)])


def test_what_cannot_be_planned_with_says_so():
    delayed = XML.format(
        joint=JOINTS["hinge"],
        integrator="Euler",
        actuators='<motor joint="k" delay="0.02" nsample="5"/>',
    )
    with pytest.raises(ConfigError, match="this one has delays"):
        MujocoModel(mujoco.MjModel.from_xml_string(delayed))


@pytest.mark.parametrize("joint", ["hinge", "ball"])
@pytest.mark.parametrize("integrator", ["Euler", "RK4"])
def test_end_points_are_reached_by_ilqr(joint, integrator):
    """A cost of the tip's place, which is no state of the model, lowers the tip's distance."""
    xml = XML.format(
        joint=JOINTS[joint], integrator=integrator, actuators=ACTUATORS["motors"]
    ).replace("<option ", '<option gravity="0 0 0" ')
    agent = MujocoConfig(
        model=xml, T=20, dt=0.04, substeps=10, sites=("tip",),
        state=("joint_vel", "end_points", "joint_pos"),
    ).build()  # fmt: skip
    start = agent.start_state(0)
    at = agent.layout.slice("end_points")
    own = np.concatenate([np.r_[agent.layout.slice(n)] for n in agent.model_entries])
    pose = np.zeros((1, len(own)))
    pose[0, : len(own) // 2] = 0.3
    target = tuple(agent.whole_states(0, pose)[0][0, at])
    cost = SumCost(
        terms=(
            WeightedCost(cost=EndpointCost(target=target, l2=100.0)),
            WeightedCost(cost=ActionCost(weights=1e-3)),
            WeightedCost(cost=StateCost(entry="joint_vel", target=0.0, l2=1e-3)),
        )
    )
    known, whole = agent.known_model(0, models), model_cost(cost, agent)
    X, U = 0.3 * np.random.default_rng(2).normal(size=(3, known.nx)), np.zeros((3, known.nu))
    gradient, _ = whole.derivatives(X, U)
    for i, e in enumerate(1e-6 * np.eye(known.nx)):
        up, down = (whole.values((X + s * e)[None], U[None])[0] for s in (1, -1))
        np.testing.assert_allclose(gradient[:, i], (up - down) / 2e-6, rtol=1e-4, atol=1e-4)
    plan = ilqr.minimise(
        known, whole, start[own], np.zeros((20, known.nu)), config=ILQRConfig(iterations=8)
    )
    tip = agent.whole_states(0, plan.X)[0][-1, at]
    assert np.linalg.norm(tip - target) < 0.3 * np.linalg.norm(start[at] - target)


def test_costs_of_agents_without_a_known_model_are_refused():
    class Nothing:
        pass

    with pytest.raises(ConfigError, match="Nothing has no known_model"):
        model_cost(ActionCost(weights=1.0), Nothing())
