"""Any MuJoCo agent: where models come from, free and ball joints, sensors, mocap, random models."""

from __future__ import annotations

import itertools
import json
import types
from dataclasses import replace

import mujoco
import numpy as np
import pytest
from mujoco.batch import Batch

from gps.agents import (
    Condition,
    MujocoConfig,
    Randomise,
    arm_reach,
    random_conditions,
    sample_conditions,
)
from gps.agents._model import grouped
from gps.agents.randomise import randomised
from gps.agents.rendering import Renderer
from gps.control import models
from gps.data import model_path
from gps.errors import ConfigError, GPSError, SimulationError
from gps.pipeline.config_io import from_json, to_json
from gps.rng import stream

FREE = """<mujoco>
  <option gravity="0 0 -1" integrator="implicitfast"/>
  <worldbody>
    <body name="cart"><joint name="x" type="slide" axis="1 0 0"/><geom size="0.1" mass="1"/>
      <body name="arm" pos="0 0 0.3" quat="0.8 0.6 0 0"><joint name="elbow" axis="0.6 0.8 0"/>
        <geom size="0.05" pos="0 0 0.2" mass="0.4"/>
        <body name="hand" pos="0 0.1 0.3" quat="0.6 0 0.8 0">
          <joint name="wrist" type="ball" damping="0.05"/>
          <geom size="0.05" pos="0.2 0 0" mass="0.3"/><site name="finger" pos="0.3 0.1 0"/>
          <body name="thumb" pos="0.1 0 0.1"><joint name="thumb" axis="0 1 0"/>
            <geom size="0.03" pos="0 0 0.1" mass="0.1"/><site name="tip" pos="0.02 0 0.2"/></body>
        </body>
      </body>
    </body>
    <body name="box" pos="0.5 0 0.1" quat="0.5 0.5 0.5 0.5"><freejoint name="box"/>
      <geom type="box" size="0.1 0.15 0.2" mass="1"/><site name="corner" pos="0.1 0.15 0.2"/>
      <body name="lid" pos="0 0 0.2"><joint name="lid" axis="1 0 0"/>
        <geom type="box" size="0.1 0.15 0.01" mass="0.2"/><site name="edge" pos="0 0.15 0"/></body>
    </body>
  </worldbody>
  <actuator>
    <motor joint="x"/><motor joint="elbow"/><motor joint="wrist" gear="1 0 0"/>
    <motor joint="wrist" gear="0 0.5 1"/><motor site="corner" gear="1 0.5 1 0 0 0"/>
    <motor site="corner" gear="0 0 0 0.1 0.2 0.1"/>
  </actuator>
</mujoco>"""
REACH = """<mujoco>
  <option gravity="0 0 0"/>
  <worldbody>
    <body name="upper"><joint name="a" axis="0 0 1" damping="0.1"/>
      <geom name="bar" type="capsule" size="0.01" fromto="0 0 0 0.2 0 0"/>
      <body name="lower" pos="0.2 0 0"><joint name="b" axis="0 1 1" damping="0.1"/>
        <geom type="capsule" size="0.01" fromto="0 0 0 0.2 0 0"/>
        <site name="tip" pos="0.2 0 0" size="0.02"/></body>
    </body>
    <body name="target" mocap="true" pos="0.3 0.1 0" quat="1 0 0 1"><site name="goal"/></body>
    <geom type="plane" size="1 1 0.1" pos="0 0 -0.03"/>
  </worldbody>
  <actuator><motor name="m1" joint="a"/><motor name="m2" joint="b"/></actuator>
  <sensor>
    <framepos name="to_goal" objtype="site" objname="tip" reftype="site" refname="goal"/>
    <framelinvel name="speed" objtype="site" objname="tip"/>
    <framequat name="goal_quat" objtype="site" objname="goal"/>
    <jointpos name="q" joint="b"/>
    <accelerometer name="acc" site="tip"/>
    <touch name="touch" site="tip"/>
    <jointactuatorfrc name="force" joint="a"/>
  </sensor>
</mujoco>"""
SIGHT = ("sensor:to_goal", "sensor:speed", "sensor:q")
FEEL = ("sensor:acc", "sensor:touch", "sensor:force")
FREE_AGENT = MujocoConfig(
    model=FREE,
    T=15,
    sites=("finger", "tip", "corner", "edge"),
    state=("end_points", "joint_vel", "joint_pos", "end_point_velocities"),
    obs=("qpos", "joint_vel"),
    start_qpos_std=0.3,
    start_qvel_std=0.5,
)
REACH_AGENT = MujocoConfig(
    model=REACH, T=30, sites=("tip", "goal"), state=("joint_pos", "joint_vel", *SIGHT)
)


class Noise:
    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def act(self, x, obs, t, noise):
        return self.scale * noise


def run(config: MujocoConfig, N: int = 3, scale: float = 1.0, condition: int = 0, seed: int = 1):
    agent = config.build()
    noise = stream(1, "noise").normal(size=(N, agent.T, agent.nu))
    start = stream(seed, "start").normal(size=(N, agent.n_start))
    return agent, agent.rollout(Noise(scale), condition, noise, start)


# ---- where models come from


def spec() -> mujoco.MjSpec:
    made = mujoco.MjSpec()
    body = made.worldbody.add_body(name="bob")
    body.add_joint(name="swing", type=mujoco.mjtJoint.mjJNT_HINGE, axis=[0, 1, 0])
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[0.05, 0, 0], pos=[0, 0, -0.5])
    motor = made.add_actuator(name="motor", trntype=mujoco.mjtTrn.mjTRN_JOINT, target="swing")
    motor.set_to_motor()
    return made


def no_spec() -> str:
    return REACH


def test_a_model_is_a_name_a_path_a_text_or_a_spec(tmp_path):
    text = model_path("arm_reach").read_text()
    by_name = replace(arm_reach(), T=10)
    want = run(by_name)[1].X.tobytes()
    (tmp_path / "arm.xml").write_text(text)
    for model in (str(tmp_path / "arm.xml"), text[text.index("<mujoco") :], "\n  " + text):
        assert run(replace(by_name, model=model))[1].X.tobytes() == want
    _, swung = run(MujocoConfig(model=spec, T=10))
    assert swung.nx == 2
    model = spec().compile()
    data = mujoco.MjData(model)
    data.ctrl[:] = swung.U[0, 0]
    for _ in range(25):  # 0.05 s at the 0.002 s that a MjSpec has
        mujoco.mj_step(model, data)
    assert data.qpos.tobytes() == swung.entry("joint_pos")[0, 1].tobytes()


def test_models_are_stored_with_the_configuration():
    for model in (REACH, "arm_reach"):
        config = MujocoConfig(model=model, conditions=(Condition(model=model),))
        assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_a_function_that_travelled_is_the_one_that_was_seen_before():
    """A copy by value has to be equal, or every rollout would build its agent again."""
    cloudpickle = pytest.importorskip("cloudpickle")
    source = "LENGTH = 0.5\ndef helper(): return LENGTH\ndef swing(): return spec(), helper()"

    def copies(text):
        module = types.ModuleType("a_file_of_experiments")
        module.__dict__["spec"] = spec
        exec(text, module.__dict__)
        config = MujocoConfig(model=module.swing, conditions=(Condition(model=module.swing),))
        return [cloudpickle.loads(cloudpickle.dumps(config)) for _ in range(2)]

    one, two = copies(source)
    assert one == two
    assert hash(one) == hash(two)
    assert one.model is two.model
    (other, _), (called, _) = (
        copies(source.replace("0.5", "0.6")),
        copies(source.replace("return LENGTH", "return -LENGTH")),
    )
    assert len({one, other, called}) == 3


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (lambda: spec(), "defined at the top level"),
        (3, "a name, a path to a file that MuJoCo reads, MJCF or URDF text or a function"),
        (no_spec, r"no_spec\(\) must give a mujoco.MjSpec, got str"),
        ("<mujoco><worldbod/></mujoco>", "the MJCF text: MuJoCo cannot load this model"),
        (None, "MujocoConfig.model must be"),
        (" ", "MujocoConfig.model must be"),
        ("<mujoco><worldbody/></mujoco>", "the MJCF text has no actuators"),
    ],
)
def test_other_models_are_refused(model, match):
    with pytest.raises(ConfigError, match=match):
        MujocoConfig(model=model).build()


LONG = REACH.replace('fromto="0 0 0 0.2 0 0"', 'fromto="0 0 0 0.3 0 0"')
WIDE = REACH.replace(
    '<site name="goal"/>', '<site name="goal"/><geom size="0.02" pos="0 0 0.5"/>'
).replace("<worldbody>", '<worldbody><body pos="0 0 1"><geom size="0.1"/></body>')


def test_models_of_the_same_sizes_share_a_batch():
    made = [mujoco.MjModel.from_xml_string(text) for text in (REACH, WIDE, LONG, WIDE)]
    assert grouped(made, Batch) == [0, 1, 0, 1]


def test_conditions_may_have_models_of_their_own():
    """Same rollouts as agents of that model alone, whatever ran before."""
    mixed = replace(
        REACH_AGENT,
        conditions=(Condition(), Condition(model=LONG), Condition(model=WIDE)),
        test_conditions=(Condition(model=WIDE, body_offsets=(("upper", (0.0, 0.0, 0.01)),)),),
    )
    agent = mixed.build()
    assert agent.model_of(2).nbody == agent.model_of(0).nbody + 1
    noise = stream(1, "noise").normal(size=(3, 30, 2))
    alone = [run(replace(REACH_AGENT, model=m))[1] for m in (REACH, LONG, WIDE)]
    for m in (0, 1, 2, 1, 0):
        r = agent.rollout(Noise(), m, noise)
        assert r.X.tobytes() == alone[m].X.tobytes()
        assert agent.start_state(m).tobytes() == r.X[0, 0].tobytes()
        simulation = agent.simulation()
        simulation.reset(m)
        simulation.step(r.U[2, 0])
        assert simulation.x.tobytes() == r.X[2, 1].tobytes()
    assert alone[0].X.tobytes() != alone[1].X.tobytes()
    agent.rollout(Noise(), 0, noise, test=True)
    assert agent.model_of(0, test=True).body("upper").pos[2] == 0.01


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (FREE, r"condition 1: MujocoConfig.sites: unknown site 'goal'"),
        (REACH.replace('name="speed"', 'name="quick"'), "condition 1: .*unknown sensor 'speed'"),
        (
            REACH.replace('<motor name="m2" joint="b"/>', ""),
            r"condition 1, the MJCF text: nu must be 2 as elsewhere, got 1",
        ),
        (
            REACH.replace('joint="b"/></act', 'joint="b" ctrlrange="-1 1"/></act'),
            "condition 1.*the same limits",
        ),
        (
            REACH.replace('name="b" axis', 'name="b" type="slide" axis'),
            "condition 1.*of the same kinds",
        ),
        (
            REACH.replace(
                '<jointpos name="q" joint="b"/>',
                '<framepos name="q" objtype="body" objname="upper"/>',
            ),
            "condition 1.*sensor:q must have 1 values as elsewhere, got 3",
        ),
        ("<mujoco><worldbod/></mujoco>", "condition 1: the MJCF text: MuJoCo cannot load"),
    ],
)
def test_models_that_do_not_fit_together_are_named(model, match):
    with pytest.raises(ConfigError, match=match):
        replace(REACH_AGENT, conditions=(Condition(), Condition(model=model))).build()


# ---- sensors


@pytest.mark.parametrize("late", [(), FEEL])
def test_sensors_are_in_step_with_the_state(late):
    """The simulator's own, computed at each step; accelerations with the control before."""
    config = replace(REACH_AGENT, state=(*REACH_AGENT.state, *late), obs=("sensor:q", *late))
    agent, r = run(config, scale=0.3)
    model = agent.model_of(0)
    data = mujoco.MjData(model)
    for i in range(r.N):
        mujoco.mj_resetData(model, data)
        for t in range(r.T):
            (mujoco.mj_forward if late else mujoco.mj_step1)(model, data)
            assert data.qpos.tobytes() == r.entry("joint_pos")[i, t].tobytes()
            for name in (*SIGHT, *late):
                value = data.sensor(name.removeprefix("sensor:")).data
                assert value.tobytes() == r.entry(name)[i, t].tobytes(), (name, t)
            assert r.obs[i, t, 0] == data.sensor("q").data[0]
            data.ctrl[:] = r.U[i, t]
            for _ in range(agent.substeps):
                mujoco.mj_step(model, data)
    if late:
        force = r.entry("sensor:force")[:, :, 0]
        assert not force[:, 0].any()
        np.testing.assert_array_equal(force[:, 1:], r.U[:, :-1, 0])
        assert np.abs(r.entry("sensor:touch")).max() > 0
        assert np.abs(r.entry("sensor:acc")).max() > 1


def test_a_sensor_gives_the_vector_to_a_target_that_is_moved():
    places = ((0.3, 0.1, 0.0), (-0.2, 0.3, 0.1))
    config = replace(
        REACH_AGENT,
        state=("joint_pos", "joint_vel", "end_points", "sensor:to_goal"),
        conditions=tuple(Condition(mocap=(("target", p),)) for p in places),
    )
    for m, place in enumerate(places):
        _, r = run(config, condition=m)
        tip, goal = np.split(r.entry("end_points"), 2, axis=2)
        np.testing.assert_array_equal(goal, np.broadcast_to(place, goal.shape))
        apart = tip - goal
        turned = np.stack([apart[..., 1], -apart[..., 0], apart[..., 2]], axis=2)  # goal's frame
        np.testing.assert_allclose(r.entry("sensor:to_goal"), turned, atol=1e-12)


def test_large_forces_are_no_failure_and_nan_is():
    config = replace(REACH_AGENT, obs=FEEL, limit=10.0)
    _, r = run(config, scale=0.3)
    assert np.abs(r.obs).max() > 10
    with pytest.raises(SimulationError, match="left"):
        run(replace(config, limit=0.9), scale=0.3)


def test_plans_know_how_sensors_depend_on_the_joints():
    state = ("joint_vel", *SIGHT, "end_points", "joint_pos", "end_point_velocities")
    agent, r = run(replace(REACH_AGENT, state=state, sites=("tip",)), scale=0.3)
    X, jacobians = agent.whole_states(
        0, np.concatenate((r.entry("joint_pos")[1], r.entry("joint_vel")[1]), axis=1)
    )
    np.testing.assert_allclose(X, r.X[1], atol=1e-12)
    tip, speed = r.jacobians["end_points"][1], r.jacobians["end_point_velocities"][1]
    turned = np.stack((tip[:, 1], -tip[:, 0], tip[:, 2]), axis=1)  # the goal's frame
    np.testing.assert_allclose(jacobians["sensor:to_goal"], turned, atol=1e-8)
    np.testing.assert_allclose(jacobians["sensor:speed"], speed, atol=1e-7)
    joint = np.zeros((30, 1, r.nx))
    joint[:, 0, r.layout.slice("joint_pos").start + 1] = 1.0
    np.testing.assert_allclose(jacobians["sensor:q"], joint, atol=1e-9)


def test_unknown_sensors_are_named():
    with pytest.raises(ConfigError, match="unknown sensor 'to_gaol'; did you mean 'to_goal'"):
        replace(REACH_AGENT, obs=("sensor:to_gaol",)).build()


def test_what_depends_on_the_action_before_is_not_planned_with():
    agent = replace(REACH_AGENT, state=(*REACH_AGENT.state, "sensor:acc")).build()
    with pytest.raises(ConfigError, match="sensor:acc cannot be planned with"):
        agent.known_model(0, models)
    with pytest.raises(ConfigError, match="sensor:acc cannot be derived"):
        agent.whole_states(0, np.zeros((1, 4)))


# ---- mocap


def test_mocap_bodies_stand_where_the_condition_says():
    place, turn = (0.1, 0.2, 0.3), (0.0, 2.0, 0.0, 0.0)
    config = replace(
        REACH_AGENT,
        state=("joint_pos", "joint_vel", "end_points", "sensor:goal_quat"),
        conditions=(
            Condition(),
            Condition(mocap=(("target", place, turn),)),
            Condition(mocap=(("target", place),), body_offsets=(("target", (0, 0, 1.0)),)),
        ),
    )
    half = np.sqrt(0.5)
    want = (
        ((0.3, 0.1, 0.0), (half, 0, 0, half)),
        (place, (0, 1, 0, 0)),
        ((0.1, 0.2, 1.3), (half, 0, 0, half)),
    )
    agent, _ = run(config)
    for m in (2, 1, 0):
        r = agent.rollout(Noise(), m, stream(1, "noise").normal(size=(3, 30, 2)))
        for sample, t in ((0, 0), (2, 29)):
            place, turn = want[m]
            np.testing.assert_allclose(r.entry("end_points")[sample, t, 3:], place, atol=1e-15)
            np.testing.assert_allclose(r.entry("sensor:goal_quat")[sample, t], turn, atol=1e-12)
        data = mujoco.MjData(agent.model_of(m))
        np.testing.assert_allclose(data.mocap_pos[0], place, atol=1e-15)


@pytest.mark.parametrize(
    ("mocap", "match"),
    [
        ((("upper", (0.0, 0.0, 0.0)),), "unknown mocap body 'upper'; .*target"),
        ((("target", (0.0, 0.0)),), "Condition.mocap must be"),
        ((("target", (0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)),), "Condition.mocap must be"),
        ((("target", (0.0, 0.0, float("nan"))),), "Condition.mocap must be"),
    ],
)
def test_mocap_errors(mocap, match):
    with pytest.raises(ConfigError, match=match):
        replace(REACH_AGENT, conditions=(Condition(mocap=mocap),)).build()


# ---- free and ball joints


def raw(model, joint_pos):
    """qpos of joint_pos: quaternions are qpos0's times the exponential of the vector."""
    q = np.zeros(model.nq)
    for kind, a, b in zip(model.jnt_type, model.jnt_qposadr, model.jnt_dofadr, strict=True):
        if kind > int(mujoco.mjtJoint.mjJNT_BALL):
            q[a] = joint_pos[b]
            continue
        if kind == int(mujoco.mjtJoint.mjJNT_FREE):
            q[a : a + 3] = joint_pos[b : b + 3]
            a, b = a + 3, b + 3
        angle = np.linalg.norm(joint_pos[b : b + 3])
        axis = joint_pos[b : b + 3] / max(angle, 1e-30)
        turn = np.r_[np.cos(angle / 2), np.sin(angle / 2) * axis]
        mujoco.mju_mulQuat(q[a : a + 4], model.qpos0[a : a + 4], turn)
    return q


def points(model, data, q, v=None):
    """End points of the free agent, or their velocities."""
    data.qpos[:] = q
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    J, out = np.zeros((3, model.nv)), []
    for site in FREE_AGENT.sites:
        mujoco.mj_jacSite(model, data, J, None, model.site(site).id)
        out.append(data.site(site).xpos.copy() if v is None else J @ v)
    return np.concatenate(out)


def test_joint_positions_are_rotation_vectors_from_the_reference():
    agent, r = run(FREE_AGENT)
    model = agent.model_of(0)
    assert (model.nq, model.nv, agent.n_start) == (15, 13, 26)
    moves, back = np.zeros(13), np.zeros(13)
    turned = 0.0
    for i, t in itertools.product(range(r.N), range(r.T)):
        q, entry = r.obs[i, t, :15], r.entry("joint_pos")[i, t]
        mujoco.mj_differentiatePos(model, moves, 1.0, model.qpos0, q)
        np.testing.assert_allclose(entry - moves, [0] * 6 + [0.5, 0, 0.1] + [0] * 4, atol=1e-12)
        mujoco.mj_differentiatePos(model, back, 1.0, q, raw(model, entry))
        np.testing.assert_allclose(back, 0, atol=1e-12)
        turned = max(turned, np.linalg.norm(entry[9:12]))
    assert turned > 0.5


def test_a_free_body_moves_as_the_simulator_moves_it():
    agent, r = run(FREE_AGENT)
    model = agent.model_of(0)
    data = mujoco.MjData(model)
    for i in range(r.N):
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = r.obs[i, 0, :15], r.entry("joint_vel")[i, 0]
        for t in range(r.T - 1):
            data.ctrl[:] = r.U[i, t]
            for _ in range(agent.substeps):
                mujoco.mj_step(model, data)
            assert data.qpos.tobytes() == r.obs[i, t + 1, :15].tobytes()


@pytest.mark.parametrize("spread", [1e-4, 0.3])  # the series of small angles, and the formula
def test_jacobians_of_turned_joints_are_the_central_differences(spread):
    agent, r = run(replace(FREE_AGENT, start_qpos_std=spread))
    model, h = agent.model_of(0), 1e-6
    data = mujoco.MjData(model)
    pos, vel = r.layout.slice("joint_pos"), r.layout.slice("joint_vel")
    for i, t in itertools.product(range(r.N), (0, 1, 7, 14)):
        q, v = r.entry("joint_pos")[i, t], r.entry("joint_vel")[i, t]
        J, V = np.zeros((12, r.nx)), np.zeros((12, r.nx))
        for j, e in enumerate(h * np.eye(model.nv)):
            ahead, behind = raw(model, q + e), raw(model, q - e)
            J[:, pos.start + j] = points(model, data, ahead) - points(model, data, behind)
            V[:, pos.start + j] = points(model, data, ahead, v) - points(model, data, behind, v)
            here = raw(model, q)
            V[:, vel.start + j] = points(model, data, here, v + e) - points(
                model, data, here, v - e
            )
        found = r.jacobians
        np.testing.assert_allclose(found["end_points"][i, t], J / (2 * h), atol=1e-7)
        np.testing.assert_allclose(found["end_point_velocities"][i, t], V / (2 * h), atol=1e-6)


def test_starts_are_turned_in_the_body():
    turn = (0.0,) * 9 + (0.0, 0.0, 0.5, 0.0)
    config = replace(FREE_AGENT, conditions=(Condition(qpos_offset=turn),))
    agent = config.build()
    start = np.zeros((1, agent.n_start))
    start[0, 9] = 1.0  # about the body's x, after the turn about its z
    r = agent.rollout(Noise(), 0, np.zeros((1, 15, 6)), start)
    z, x = np.zeros(4), np.zeros(4)
    mujoco.mju_mulQuat(z, np.full(4, 0.5), np.r_[np.cos(0.25), 0, 0, np.sin(0.25)])
    mujoco.mju_mulQuat(x, z, np.r_[np.cos(0.15), np.sin(0.15), 0, 0])
    np.testing.assert_allclose(r.obs[0, 0, 10:14], x, atol=1e-12)
    entry = agent.start_state(0)[agent.layout.slice("joint_pos")]
    np.testing.assert_allclose(entry[9:12], turn[9:12], atol=1e-12)


def test_quaternions_of_a_start_are_normalised():
    qpos = np.zeros(15)
    qpos[2:6] = qpos[10:14] = (2.0, 0.0, 0.0, 2.0)
    _, r = run(replace(FREE_AGENT, qpos=tuple(qpos), start_qpos_std=0.0))
    np.testing.assert_allclose(r.obs[0, 0, 2:6], np.sqrt([0.5, 0, 0, 0.5]))
    with pytest.raises(ConfigError, match="must have 15 values"):
        replace(FREE_AGENT, qpos=(0.0,) * 13).build()
    with pytest.raises(ConfigError, match="must have 13 values"):
        replace(FREE_AGENT, qvel=(0.0,) * 15).build()


def test_whole_states_of_turned_joints_are_those_of_a_rollout():
    agent, r = run(FREE_AGENT)
    states = np.concatenate((r.entry("joint_pos")[1], r.entry("joint_vel")[1]), axis=1)
    X, jacobians = agent.whole_states(0, states)
    np.testing.assert_allclose(X, r.X[1], atol=1e-12)
    for name, J in jacobians.items():
        np.testing.assert_allclose(J, r.jacobians[name][1], atol=1e-11)


def test_turned_joints_are_drawn():
    lit = FREE.replace("<worldbody>", '<worldbody><light pos="0 0 3"/>')
    agent, r = run(replace(FREE_AGENT, model=lit))
    try:
        frames = agent.render(r, 1, width=32, height=24, every=5)
    except GPSError as error:
        if "OpenGL" not in str(error):
            raise
        pytest.skip(str(error))
    model = agent.model_of(0)
    with Renderer(model, (-1,), 24, 32, plain=False) as renderer:
        want = renderer.render(model, r.obs[1, ::5, :15])
    # the way over rotation vectors rounds
    assert np.mean(np.abs(frames.astype(int) - want) > 3) < 0.01
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 30


def test_raw_positions_are_for_the_observation_only():
    with pytest.raises(ConfigError, match=r"MujocoConfig\.state: unknown entry 'qpos'"):
        replace(FREE_AGENT, state=("qpos",))


# ---- activations

LAZY = """<mujoco><worldbody>
  <body><joint name="x" type="slide" axis="1 0 0"/><geom size="0.1" mass="1"/></body>
  <body pos="0 1 0"><joint name="y" type="slide" axis="1 0 0"/><geom size="0.1" mass="1"/></body>
</worldbody><actuator>
  <general joint="x" dyntype="filterexact" dynprm="0.2" gainprm="2"/><motor joint="y"/>
  <general joint="y" dyntype="integrator"/>
</actuator></mujoco>"""
LAZY_AGENT = MujocoConfig(model=LAZY, T=12, state=("joint_pos", "activation", "joint_vel"))


def test_activations_are_part_of_the_state():
    agent, r = run(replace(LAZY_AGENT, activation=(0.5, -1.0)))
    assert agent.layout.length("activation") == 2
    np.testing.assert_array_equal(r.entry("activation")[:, 0], [[0.5, -1.0]] * 3)
    want = np.tile([0.5, -1.0], (3, 12, 1))
    for t in range(11):
        toward = r.U[:, t, 0] - want[:, t, 0]
        want[:, t + 1, 0] = want[:, t, 0] + toward * (1 - np.exp(-0.05 / 0.2))
        want[:, t + 1, 1] = want[:, t, 1] + 0.05 * r.U[:, t, 2]
    np.testing.assert_allclose(r.entry("activation"), want, atol=1e-12)
    _, plain = run(LAZY_AGENT)
    assert not plain.entry("activation")[:, 0].any()


def test_activations_have_to_be_in_the_state():
    with pytest.raises(ConfigError, match="stateful actuators"):
        replace(LAZY_AGENT, state=("joint_pos", "joint_vel")).build()
    with pytest.raises(ConfigError, match="has an activation"):
        replace(REACH_AGENT, state=("joint_pos", "activation")).build()
    with pytest.raises(ConfigError, match="activation must have 2 values, one for each activation"):
        replace(LAZY_AGENT, activation=(0.0,)).build()


# ---- observation noise


def test_observation_noise_is_the_last_of_the_start_noise():
    plain = replace(REACH_AGENT, obs=("joint_pos", "sensor:to_goal", "joint_vel"))
    config = replace(plain, obs_noise=(("sensor:to_goal", 0.1), ("joint_pos", 0.5)))
    agent, quiet = config.build(), plain.build()
    assert agent.n_start == 30 * 5
    noise = stream(1, "noise").normal(size=(3, 30, 2))
    z = stream(1, "start").normal(size=(3, 150))
    r, s = agent.rollout(Noise(), 0, noise, z), quiet.rollout(Noise(), 0, noise)
    assert r.X.tobytes() == s.X.tobytes()
    z = z.reshape(3, 30, 5)
    added = np.zeros((3, 30, 7))
    added[..., 2:5], added[..., :2] = 0.1 * z[..., :3], 0.5 * z[..., 3:]
    np.testing.assert_array_equal(r.obs, s.obs + added)
    assert agent.rollout(Noise(), 0, noise).obs.tobytes() == s.obs.tobytes()
    assert not agent.whole_states(0, r.X[0, :, :4])[0].flags.writeable
    simulation = agent.simulation()
    simulation.reset(0, z[0].ravel())
    for t in range(31):
        expected = r.obs[0, t % 30] if t < 30 else None
        if expected is not None:
            np.testing.assert_array_equal(simulation.obs, expected)
        else:  # the numbers begin again
            x = agent.layout.slice("sensor:to_goal")
            shift = simulation.obs[2:5] - simulation.x[x]
            np.testing.assert_allclose(shift, added[0, 0, 2:5], atol=1e-12)
        simulation.step(r.U[0, min(t, 29)])


def test_the_parts_of_the_start_noise_are_in_order():
    """Start, then model, then observation."""
    mass = Randomise(what="body_mass", names=("upper",), std=0.3)
    config = replace(
        REACH_AGENT,
        start_qvel_std=(0.2, 0.0),
        randomise=(mass,),
        obs=("joint_vel",),
        obs_noise=(("joint_vel", 0.1),),
    )
    agent = config.build()
    assert agent.n_start == 4 + 1 + 60
    z = stream(1, "start").normal(size=(3, agent.n_start))
    noise = stream(1, "noise").normal(size=(3, 30, 2))
    r = agent.rollout(Noise(), 0, noise, z)
    np.testing.assert_allclose(r.entry("joint_vel")[:, 0], z[:, 2:4] * [0.2, 0.0])
    added = 0.1 * z[:, 5:].reshape(3, 30, 2)
    np.testing.assert_allclose(r.obs, r.entry("joint_vel") + added, atol=1e-12)
    heavy = z.copy()
    heavy[:, 4] += 1
    s = agent.rollout(Noise(), 0, noise, heavy)
    np.testing.assert_allclose(s.X[:, 0], r.X[:, 0], atol=1e-12)  # the centre of mass moves
    assert np.abs(s.X[:, 2] - r.X[:, 2]).max() > 1e-6


@pytest.mark.parametrize(
    ("noise", "match"),
    [
        ((("joint_vl", 0.1),), "did you mean 'joint_vel'"),
        ((("joint_vel", -0.1),), "obs_noise must be"),
        ((("joint_vel", 0.1), ("joint_vel", 0.2)), "each entry once"),
    ],
)
def test_observation_noise_errors(noise, match):
    with pytest.raises(ConfigError, match=match):
        replace(REACH_AGENT, obs_noise=noise)


# ---- random models

ARM = replace(arm_reach(), T=12)
ALL = (
    Randomise(what="body_mass", names=("upper", "lower"), std=0.2),
    Randomise(what="body_pos", names=("base",), between=(-0.1, 0.1)),
    Randomise(what="dof_damping", names=("shoulder",), between=(0.5, 2.0)),
    Randomise(what="dof_frictionloss", names=("elbow",), between=(0.0, 0.1), relative=False),
    Randomise(what="dof_armature", names=("elbow",), std=0.1),
    Randomise(what="jnt_stiffness", names=("elbow",), between=(0.0, 1.0), relative=False),
    Randomise(what="actuator_gain", names=("elbow", "shoulder"), between=(0.8, 1.2)),
)


@pytest.mark.parametrize("spec", ALL, ids=lambda s: s.what)
def test_each_sample_runs_on_a_model_of_its_own(spec):
    """The rollout of a sample is that of an agent whose model has the sample's numbers."""
    config = replace(ARM, randomise=(spec,))
    agent = config.build()
    assert agent.n_start == spec.size
    noise = np.repeat(stream(1, "noise").normal(size=(1, 12, 2)), 3, axis=0)
    z = stream(2, "start").normal(size=(3, agent.n_start))
    nominal = agent.model_of(0)
    r = agent.rollout(Noise(), 0, noise, z)
    assert not np.allclose(r.X[0, -1], r.X[1, -1], atol=1e-6)
    plain = ARM.build()
    for i in range(3):
        model = plain.model_of(0)
        values = spec.values(z[i])
        if spec.what == "body_mass":
            for name, value in zip(spec.names, values, strict=True):
                model.body(name).mass *= value
                model.body(name).inertia *= value
        elif spec.what == "body_pos":
            model.body("base").pos += values
        elif spec.what == "actuator_gain":
            model.actuator_gainprm[[1, 0]] *= values[:, None]
        else:
            (joint,) = spec.names
            value = getattr(model, spec.what)[model.joint(joint).id]
            new = value * values[0] if spec.relative else value + values[0]
            getattr(model, spec.what)[model.joint(joint).id] = new
        mujoco.mj_setConst(model, mujoco.MjData(model))
        data = mujoco.MjData(model)
        data.qpos[:] = r.entry("joint_pos")[i, 0]
        for t in range(11):
            data.ctrl[:] = r.U[i, t]
            for _ in range(agent.substeps):
                mujoco.mj_step(model, data)
            np.testing.assert_allclose(data.qpos, r.entry("joint_pos")[i, t + 1], atol=1e-12)
    after = agent.model_of(0)
    assert after.body_mass.tobytes() == nominal.body_mass.tobytes()


def test_friction_of_all_coefficients_or_of_sliding():
    model = mujoco.MjModel.from_xml_string(REACH)
    for relative, want in ((True, [1.5, 0.0075, 0.00015]), (False, [2.5, 0.005, 0.0001])):
        spec = Randomise(
            what="geom_friction", names=("bar",), between=(1.5, 1.5), relative=relative
        )
        spec.check(model)
        spec.apply(model, np.zeros(1))
        np.testing.assert_allclose(model.geom("bar").friction, want)
        model.geom("bar").friction = [1, 0.005, 0.0001]


def test_what_the_simulator_derives_from_a_place_follows():
    moved = (("lower", (0.0, 0.0, -0.3)),)
    model = replace(ARM, conditions=(Condition(body_offsets=moved),)).build().model_of(0)
    seen = model.dof_invweight0.copy()
    mujoco.mj_setConst(model, mujoco.MjData(model))
    np.testing.assert_array_equal(model.dof_invweight0, seen)
    assert np.abs(seen / ARM.build().model_of(0).dof_invweight0 - 1).max() > 1e-3


def test_what_the_simulator_derives_from_a_mass_follows():
    model = ARM.build().model_of(0)
    (own,) = randomised(model, ALL[:1], np.array([[1.0, -2.0]]))
    assert own.body_subtreemass[0] == pytest.approx(own.body_mass.sum())
    assert own.body_subtreemass[0] != pytest.approx(model.body_mass.sum(), rel=1e-3)
    mujoco.mj_setConst(model, mujoco.MjData(model))
    assert np.abs(own.dof_invweight0 / model.dof_invweight0 - 1).min() > 1e-3


def test_the_gain_of_a_servo_moves_its_stiffness_too():
    servo = REACH.replace('<motor name="m1" joint="a"/>', '<position name="m1" joint="a" kp="7"/>')
    model = mujoco.MjModel.from_xml_string(servo)
    spec = Randomise(what="actuator_gain", names=("m1",), between=(1.5, 1.5))
    (own,) = randomised(model, (spec,), np.zeros((1, 1)))
    assert own.actuator_gainprm[0, 0] == 10.5
    assert own.actuator_biasprm[0, 1] == -10.5
    assert own.actuator_gainprm[1, 0] == 1


def test_random_models_do_not_leak():
    config = replace(ARM, randomise=ALL, start_qpos_std=0.1)
    agent = config.build()
    noise = stream(1, "noise").normal(size=(4, 12, 2))
    z = stream(2, "start").normal(size=(4, agent.n_start))
    first = agent.rollout(Noise(), 0, noise, z)
    other = agent.rollout(Noise(), 0, noise, 1.5 * z)
    assert not np.allclose(first.X[:, -1], other.X[:, -1], atol=1e-3)
    middle = agent.rollout(Noise(), 0, noise)
    assert agent.rollout(Noise(), 0, noise, z).X.tobytes() == first.X.tobytes()
    assert agent.rollout(Noise(), 0, noise, 0 * z).X.tobytes() == middle.X.tobytes()
    mixed = z.copy()
    mixed[2] *= -1
    changed = agent.rollout(Noise(), 0, noise, mixed).X
    assert changed[[0, 1, 3]].tobytes() == first.X[[0, 1, 3]].tobytes()
    assert not np.allclose(changed[2, -1], first.X[2, -1], atol=1e-3)


def test_no_spread_gives_the_bytes_of_the_plain_agent():
    still = tuple(
        replace(s, std=None, between=(1.0, 1.0) if s.relative else (0.0, 0.0), relative=s.relative)
        for s in ALL
    )
    agent, plain = replace(ARM, randomise=still).build(), ARM.build()
    noise = stream(1, "noise").normal(size=(4, 12, 2))
    z = stream(2, "start").normal(size=(4, agent.n_start))
    a, b = agent.rollout(Noise(), 0, noise, z), plain.rollout(Noise(), 0, noise)
    assert a.X.tobytes() == b.X.tobytes()
    no_std = replace(ARM, randomise=(Randomise(what="body_mass", names=("lower",), std=0.0),))
    assert run(no_std)[1].X.tobytes() == run(ARM)[1].X.tobytes()


def test_distributions_of_random_properties():
    z = stream(3, "z").normal(size=20_000)
    factor = Randomise(what="body_mass", names=("a",), std=0.5).values(z)
    assert factor.min() > 0
    logs = np.log(factor)
    assert abs(logs.mean()) < 5 * 0.5 / np.sqrt(len(z))
    assert abs(logs.std() - 0.5) < 0.02
    uniform = Randomise(what="body_mass", names=("a",), between=(0.5, 2.0)).values(z)
    assert 0.5 <= uniform.min() < 0.51
    assert 1.99 < uniform.max() <= 2.0
    assert abs(uniform.mean() - 1.25) < 5 * 1.5 / np.sqrt(12 * len(z))


def test_the_planned_model_is_the_median():
    config = replace(
        ARM, randomise=(Randomise(what="body_mass", names=("lower",), between=(1.0, 3.0)),)
    )
    agent = config.build()
    assert agent.model_of(0).body("lower").mass[0] == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="unknown body 'lowr'; did you mean 'lower'"):
        replace(config, randomise=(Randomise(what="body_mass", names=("lowr",), std=0.1),)).build()


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"what": "mass"}, "got 'mass'; did you mean 'body_mass'"),
        ({"what": "body_mass", "names": "lower"}, "names must be"),
        ({"what": "body_mass", "names": ()}, "names must be"),
        ({"what": "body_mass", "std": None}, "std must be given"),
        ({"what": "body_mass", "between": (0.5, 1.5)}, "and not both"),
        ({"what": "body_mass", "std": -1.0}, "number of at least 0"),
        ({"what": "body_mass", "std": None, "between": (0.0, 1.0)}, "must stay above 0, got 0"),
        ({"what": "dof_damping", "std": None, "between": (-0.1, 1.0)}, "must stay at or above 0"),
        ({"what": "body_mass", "std": None, "between": (2.0, 1.0)}, "in order"),
        ({"what": "body_mass", "relative": False}, "relative for body_mass"),
        ({"what": "body_pos", "relative": True}, "False for body_pos"),
        ({"what": "actuator_gain", "relative": False}, "True for actuator_gain"),
        ({"what": "body_pos", "axes": "yx"}, "'xz', 'yz' or 'xyz', got 'yx'"),
        ({"what": "body_mass", "axes": "x"}, "xyz for body_mass"),
    ],
)
def test_randomise_errors(fields, match):
    with pytest.raises(ConfigError, match=match):
        Randomise(**({"names": ("lower",), "std": 0.1} | fields))


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (Randomise(what="dof_frictionloss", names=("elbow",), std=0.1), "is 0 in the model"),
        (
            Randomise(what="body_mass", names=("upper",), between=(-0.8, 1.0), relative=False),
            "must stay above 0",
        ),
        (
            Randomise(what="dof_damping", names=("elbow",), between=(-0.4, 1.0), relative=False),
            "must stay at or above 0",
        ),
        (Randomise(what="body_mass", names=("world",), std=0.1), "world has no mass"),
    ],
)
def test_properties_that_make_no_model_are_refused(spec, match):
    with pytest.raises(ConfigError, match=match):
        replace(ARM, randomise=(spec,)).build()


# ---- drawn conditions


def test_a_path_is_as_good_as_its_text(tmp_path):
    path = tmp_path / "reach.xml"
    path.write_text(REACH)
    one, two = MujocoConfig(model=path), MujocoConfig(model=str(path))
    assert one == two
    assert from_json(to_json(one)) == one
    assert Condition(model=path).model == str(path)
    assert one.build().nu == 2


@pytest.mark.parametrize(
    ("count", "seed", "match"), [(-1, 0, "count"), (1.5, 0, "count"), (1, -1, "seed")]
)
def test_conditions_that_cannot_be_drawn(count, seed, match):
    with pytest.raises(ConfigError, match=f"sample_conditions: {match} must be a whole number"):
        sample_conditions(count, seed=seed)


def test_drawn_conditions_keep_their_order_and_their_bounds():
    def draw(count, **changes):
        options = {
            "seed": 3,
            "qpos_low": (-1.0, 0.5),
            "qpos_high": (1.0, 0.5),
            "body_boxes": (("upper", (-0.1, 0.0, 0.0), (0.1, 0.2, 0.0)),),
            "mocap_boxes": (("target", (0.2, 0.2, 0.1), (0.4, 0.3, 0.1)),),
            "models": (REACH, LONG),
        }
        return sample_conditions(count, **(options | changes))

    many = draw(300)
    assert draw(5) == many[:5]
    assert not set(draw(5, purpose="training conditions")) & set(many)
    assert not set(draw(5, seed=4)) & set(many)
    q = np.array([c.qpos for c in many])
    body = np.array([c.body_offsets[0][1] for c in many])
    goal = np.array([c.mocap[0][1] for c in many])
    for value, low, high in (
        (q, (-1.0, 0.5), (1.0, 0.5)),
        (body, (-0.1, 0.0, 0.0), (0.1, 0.2, 0.0)),
        (goal, (0.2, 0.2, 0.1), (0.4, 0.3, 0.1)),
    ):
        width = np.subtract(high, low)
        np.testing.assert_allclose(value.min(axis=0), low, atol=0.03 * width.max())
        np.testing.assert_allclose(value.max(axis=0), high, atol=0.03 * width.max())
        assert (value >= np.array(low) - 1e-15).all()
        assert (value <= np.array(high) + 1e-15).all()
    assert {c.model for c in many} == {REACH, LONG}
    replace(REACH_AGENT, conditions=many[:4]).build()


def test_drawn_offsets_and_what_stays():
    base = Condition(mocap=(("target", (0.0, 0.0, 1.0)),), model=LONG)
    drawn = sample_conditions(500, seed=1, base=base, qpos_std=(0.1, 0.0))
    assert {c.mocap for c in drawn} == {base.mocap}
    assert {c.model for c in drawn} == {LONG}
    offsets = np.array([c.qpos_offset for c in drawn])
    assert not offsets[:, 1].any()
    assert abs(offsets[:, 0].std() - 0.1) < 5 * 0.1 / np.sqrt(2 * 500)
    box = random_conditions(3, body="b", half_width=0.1, seed=1)
    assert box == random_conditions(5, body="b", half_width=0.1, seed=1)[:3]


@pytest.mark.parametrize(
    "options",
    [
        {"qpos_low": (0.0,)},
        {"qpos_std": 0.1},
        {"qpos_std": (0.1,), "qpos_low": (0.0,), "qpos_high": (1.0,)},
        {"qpos_low": (0.0,), "qpos_high": (1.0, 2.0)},
        {"body_boxes": (("b", (1.0, 0.0, 0.0), (0.0, 0.0, 0.0)),)},
    ],
)
def test_boxes_have_to_make_sense(options):
    with pytest.raises(ConfigError, match="sample_conditions"):
        sample_conditions(2, seed=0, **options)


# ---- images

LIT = REACH.replace(
    "<worldbody>",
    """<worldbody><light pos="0 0 2" dir="0 0 -1"/>
    <camera name="top" pos="0 0 1" xyaxes="1 0 0 0 1 0"/>
    <camera name="side" pos="0 -1 0.2" xyaxes="1 0 0 0 0 1"/>""",
).replace(
    '<site name="goal"/>',
    '<geom size="0.05" rgba="1 0 0 1" contype="0" conaffinity="0"/><site name="goal"/>',
)
SEEN = replace(
    REACH_AGENT,
    model=LIT,
    T=4,
    state=("joint_vel",),
    cameras=("top", "side"),
    image_size=(24, 32),
    start_qpos_std=0.3,
    conditions=(Condition(), Condition(mocap=(("target", (-0.2, -0.2, 0.0)),))),
)


class Sees(Noise):
    """Acts on the mean of its images, and keeps them."""

    needs_images = True

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[np.ndarray] = []

    def act(self, x, obs, t, noise, images):
        assert not images.flags.writeable
        self.kept.append(images)
        return noise + images.mean(axis=(1, 2))[:, [0, 3]] / 255


def render_rollouts(config, policy, condition=0, N=3):
    agent = config.build()
    noise = stream(1, "noise").normal(size=(N, agent.T, agent.nu))
    start = stream(1, "start").normal(size=(N, agent.n_start))
    try:
        return agent, agent.rollout(policy, condition, noise, start)
    except GPSError as error:
        if "OpenGL" not in str(error):
            raise
        pytest.skip(str(error))


def test_images_are_of_the_recorded_states():
    agent, r = render_rollouts(SEEN, Noise())
    assert agent.image_shape == (24, 32, 6)
    assert r.images.shape == (3, 4, 24, 32, 6)
    assert r.images.dtype == np.uint8
    assert not r.images.flags.writeable
    shown = replace(SEEN, state=("joint_pos", "joint_vel"))
    _, s = render_rollouts(shown, Noise())
    with Renderer(agent.model_of(0), ("top", "side"), 24, 32) as renderer:
        for i in range(3):
            want = renderer.render(agent.model_of(0), s.entry("joint_pos")[i])
            np.testing.assert_array_equal(r.images[i], want)
    assert np.abs(r.images[0, 0].astype(int) - r.images[0, -1]).max() > 50
    assert np.abs(r.images[0, 0].astype(int) - r.images[1, 0]).max() > 50
    _, moved = render_rollouts(SEEN, Noise(), condition=1)
    red = (r.images[0, 0, ..., :3] - 0.0)[..., 0] - r.images[0, 0, ..., 1]
    away = (moved.images[0, 0, ..., :3] - 0.0)[..., 0] - moved.images[0, 0, ..., 1]
    assert np.unravel_index(red.argmax(), red.shape) < (12, 32)  # up and right of the middle
    assert np.unravel_index(red.argmax(), red.shape)[1] > 16
    assert np.unravel_index(away.argmax(), away.shape)[0] > 12
    assert np.unravel_index(away.argmax(), away.shape)[1] < 16


def test_a_policy_sees_each_step_before_it_acts():
    policy = Sees()
    agent, r = render_rollouts(SEEN, policy)
    np.testing.assert_array_equal(np.stack(policy.kept, axis=1), r.images)
    drawn = r.images.mean(axis=(2, 3))[..., [0, 3]] / 255
    np.testing.assert_allclose(r.U, r.noise + drawn, atol=1e-12)

    class Replay(Noise):
        def act(self, x, obs, t, noise):
            return r.U[:, t]

    again = agent.rollout(Replay(), 0, r.noise, stream(1, "start").normal(size=(3, agent.n_start)))
    assert again.images.tobytes() == r.images.tobytes()
    assert again.X.tobytes() == r.X.tobytes()
    alone = agent.rollout(
        Sees(), 0, r.noise[1:2], stream(1, "start").normal(size=(3, agent.n_start))[1:2]
    )
    assert alone.images[0].tobytes() == r.images[1].tobytes()


def test_images_show_the_model_of_each_sample():
    spec = Randomise(what="body_pos", names=("target",), std=0.2)
    config = replace(SEEN, randomise=(spec,), start_qpos_std=0.0)
    for policy in (Noise(0.0), Sees()):
        agent, r = render_rollouts(config, policy)
        z = stream(1, "start").normal(size=(3, 3))
        with Renderer(agent.model_of(0), ("top", "side"), 24, 32) as renderer:
            for i in range(3):
                model = agent.model_of(0)
                model.body("target").pos += 0.2 * z[i]
                want = renderer.render(model, np.zeros((1, 2)))[0]
                np.testing.assert_array_equal(r.images[i, 0], want)
        assert np.abs(r.images[0, 0].astype(int) - r.images[1, 0]).max() > 50


def test_a_body_moves_along_its_axes_only():
    spec = Randomise(what="body_pos", names=("target",), between=(-0.2, 0.2), axes="xz")
    agent = replace(SEEN, cameras=(), randomise=(spec,), start_qpos_std=0.0).build()
    assert agent.n_start == 2
    model = agent.model_of(0)
    before = model.body("target").pos.copy()
    spec.apply(model, np.array([3.0, -30.0]))
    want = before + np.array([spec.values(np.array([3.0]))[0], 0.0, -0.2])
    np.testing.assert_allclose(model.body("target").pos, want, atol=1e-12)


def test_conditions_with_other_shapes_are_drawn_too():
    wide = LIT.replace("<worldbody>", '<worldbody><geom size="0.1" pos="0.3 -0.3 0"/>')
    agent, r = render_rollouts(
        replace(SEEN, conditions=(Condition(), Condition(model=wide))), Noise(), 1
    )
    _, plain = render_rollouts(SEEN, Noise())
    assert np.abs(r.images[0, 0].astype(int) - plain.images[0, 0]).max() > 30
    noise, start = plain.noise, stream(1, "start").normal(size=(3, agent.n_start))
    assert agent.rollout(Noise(), 0, noise, start).images.tobytes() == plain.images.tobytes()


def test_what_cannot_be_drawn_is_refused_without_a_rollout():
    render_rollouts(SEEN, Noise())  # skips without OpenGL
    agent = replace(SEEN, state=("joint_pos", "joint_vel"), test_conditions=(Condition(),)).build()
    for camera in ("top", -1):
        agent.check_render(width=32, height=24, camera=camera)
        agent.check_render(width=32, height=24, camera=camera, test=True)
    with pytest.raises(ConfigError, match="unknown camera 'tpo'; did you mean 'top'"):
        agent.check_render(width=32, height=24, camera="tpo")
    with pytest.raises(GPSError, match="joint_pos is in its state"):
        replace(SEEN, state=("joint_vel",)).build().check_render(width=32, height=24)


def test_agents_without_cameras_have_no_images():
    agent, r = run(REACH_AGENT)
    assert agent.image_shape is None
    assert r.images is None
    with pytest.raises(ConfigError, match="cameras must name a camera"):
        agent.rollout(Sees(), 0, r.noise)
    with pytest.raises(ConfigError, match="unknown camera 'tpo'; did you mean 'top'"):
        replace(SEEN, cameras=("tpo",)).build()
    for size in ((64,), (0, 64), (64.0, 64)):
        with pytest.raises(ConfigError, match="image_size must be"):
            replace(SEEN, image_size=size)
    with pytest.raises(ConfigError, match="cameras must be a tuple"):
        replace(SEEN, cameras="top")


FREE_BODY = """
<mujoco><worldbody>
  <body name="box"><freejoint/><geom size="0.1" mass="1"/></body>
  <body name="arm"><joint name="hinge"/><geom size="0.1" mass="1"/></body>
</worldbody><actuator><motor joint="hinge"/></actuator></mujoco>
"""


@pytest.mark.parametrize(
    "change",
    [
        {"conditions": (Condition(body_offsets=(("box", (0.3, 0.0, 0.0)),)),)},
        {"randomise": (Randomise(what="body_pos", names=("box",), std=0.3),)},
    ],
)
def test_a_free_body_is_not_moved_by_its_place_in_the_model(change):
    with pytest.raises(ConfigError, match="box has a free joint"):
        MujocoConfig(model=FREE_BODY, **change).build()
