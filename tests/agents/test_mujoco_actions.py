"""What a MuJoCo agent reads from its model: time step, keyframes, actions, files, hidden state."""

import itertools
import json
import logging
import os
import pickle
from dataclasses import replace

import mujoco
import numpy as np
import pytest

import gps
from gps.agents import Condition, MocapAction, MujocoConfig, Randomise, arm_reach
from gps.agents._model import warn_once
from gps.agents.actions import steps_under_way
from gps.data import model_path
from gps.errors import ConfigError, SimulationError
from gps.pipeline import loader
from gps.pipeline.config_io import from_json, to_json
from gps.rng import stream
from gps.types import LinearGaussianController

ARM = """<mujoco><option timestep="0.002"/><worldbody>
<body><joint name="a" axis="0 1 0" damping="2"/>
<geom type="capsule" size=".03" fromto="0 0 0 0 0 -.4" mass="1"/>
<body pos="0 0 -.4"><joint name="b" axis="0 1 0" damping="2"/>
<geom type="capsule" size=".03" fromto="0 0 0 0 0 -.4" mass="1"/></body></body>
<body name="goal" mocap="true" pos="1 0 0"/></worldbody>
<actuator><position name="sa" joint="a" kp="100" ctrlrange="-2 2"/>
<motor name="mb" joint="b" gear="3"/></actuator>
<keyframe><key name="home" qpos="1.2 .3" qvel=".1 -.2" ctrl="1.1 .4" mpos="0 1 2"
mquat="0 1 0 0"/><key name="away" qpos="-.5 0"/><key qpos=".1 .2" ctrl=".2 0"/></keyframe>
</mujoco>"""


def idle(agent, u=None):
    """The same action at every step, without noise."""
    k = np.zeros(agent.nu) if u is None else np.asarray(u, dtype=float)
    return LinearGaussianController(
        K=np.zeros((agent.T, agent.nu, agent.layout.size)),
        k=np.tile(k, (agent.T, 1)),
        chol=np.tile(np.eye(agent.nu), (agent.T, 1, 1)),
    )


def roll(agent, u=None, condition=0, N=1):
    return agent.rollout(idle(agent, u), condition, np.zeros((N, agent.T, agent.nu)))


def random_roll(agent, scale=1.0, N=2, condition=0):
    noise = scale * stream(0, "noise").normal(size=(N, agent.T, agent.nu))
    return agent.rollout(idle(agent), condition, noise)


# ---- time step


@pytest.mark.parametrize(
    ("step", "options", "dt", "substeps", "used"),
    [
        (0.002, {}, 0.05, 25, 0.002),
        (0.003, {}, 0.051, 17, 0.003),
        (0.2, {}, 0.2, 1, 0.2),
        (0.0083333, {"dt": 1 / 30}, 1 / 30, 4, 0.0083333),
        (0.002, {"dt": 0.04}, 0.04, 20, 0.002),
        (0.002, {"substeps": 5}, 0.05, 5, 0.01),
        (0.002, {"dt": 0.1, "substeps": 4}, 0.1, 4, 0.025),
    ],
)
def test_the_time_step_is_the_models_unless_told_otherwise(step, options, dt, substeps, used):
    model = ARM.replace('timestep="0.002"', f'timestep="{step}"')
    agent = MujocoConfig(model=model, T=3, **options).build()
    assert (agent.dt, agent.substeps) == (pytest.approx(dt, rel=1e-12), substeps)
    assert agent.model.opt.timestep == pytest.approx(used, rel=1e-12)


def test_a_dt_that_is_no_multiple_names_those_that_are():
    with pytest.raises(ConfigError, match=r"dt .* 0\.002 s .* 0\.004 or 0\.006, got 0\.005") as e:
        MujocoConfig(model=ARM, dt=0.005).build()
    assert "\n" not in str(e.value)
    assert "substeps" in str(e.value)
    for dt in (0.004, 0.006):
        assert MujocoConfig(model=ARM, dt=dt).build().dt == dt


def test_models_of_conditions_keep_their_own_time_steps():
    """Each condition is simulated as plain MuJoCo does it."""
    fine = ARM.replace('timestep="0.002"', 'timestep="0.001"')
    both = MujocoConfig(model=ARM, T=4, conditions=(Condition(), Condition(model=fine))).build()
    for m, (text, substeps) in enumerate(((ARM, 25), (fine, 50))):
        model = mujoco.MjModel.from_xml_string(text)
        data = mujoco.MjData(model)
        data.ctrl[:] = 0.3, 0.1
        mujoco.mj_step(model, data, 3 * substeps)
        r = roll(both, [0.3, 0.1], condition=m)
        np.testing.assert_array_equal(r.X[0, -1], [*data.qpos, *data.qvel])
    odd = ARM.replace('timestep="0.002"', 'timestep="0.003"')
    with pytest.raises(ConfigError, match=r"condition 0: .*dt must be a multiple .* 0\.003 s"):
        MujocoConfig(model=ARM, conditions=(Condition(model=odd),)).build()


def test_a_failed_simulation_says_at_which_time_step():
    stiff = ARM.replace('kp="100"', 'kp="1e7"').replace('damping="2"', "")
    with pytest.raises(SimulationError, match=r"time step of 0\.05 s; the model asks for 0\.002 s"):
        random_roll(MujocoConfig(model=stiff, T=40, dt=0.05, substeps=1).build())
    with pytest.raises(SimulationError, match=r"the model's own time step of 0\.002 s") as caught:
        random_roll(MujocoConfig(model=stiff, T=40, limit=1e-3).build())
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


# ---- keyframes


@pytest.mark.parametrize("where", ["configuration", "condition"])
def test_a_rollout_starts_at_the_keyframe(where):
    """As MuJoCo's own reset to it, under the same controls."""
    config = MujocoConfig(model=ARM, T=5, obs=("joint_pos",))
    key = {"keyframe": "home"}
    agent = (
        replace(config, **key)
        if where == "configuration"
        else replace(config, conditions=(Condition(**key),))
    ).build()
    model = mujoco.MjModel.from_xml_string(ARM)
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    r = roll(agent, data.ctrl)
    for t in range(5):
        np.testing.assert_array_equal(r.X[0, t], [*data.qpos, *data.qvel])
        mujoco.mj_step(model, data, agent.substeps)
    goal = agent.model_of(0).body("goal")
    np.testing.assert_array_equal(goal.pos, [0, 1, 2])
    np.testing.assert_array_equal(goal.quat, [0, 1, 0, 0])


def test_what_is_given_besides_a_keyframe_stands_above_it():
    config = MujocoConfig(
        model=ARM,
        T=2,
        keyframe="home",
        qpos=(0.5, 0.6),
        conditions=(
            Condition(),
            Condition(keyframe="away"),
            Condition(keyframe=2, qpos=(0.7, 0.8)),
            Condition(keyframe="home", qvel=(0.4, 0.5)),
            Condition(qpos_offset=(0.1, 0.1), mocap=(("goal", (3.0, 3.0, 3.0)),)),
        ),
    )
    agent = config.build()
    starts = [agent.start_state(m) for m in range(5)]
    want = [[0.5, 0.6, 0.1, -0.2], [-0.5, 0, 0, 0], [0.7, 0.8, 0, 0], [1.2, 0.3, 0.4, 0.5]]
    np.testing.assert_allclose(starts, [*want, [0.6, 0.7, 0.1, -0.2]], atol=1e-15)
    np.testing.assert_array_equal(agent.model_of(4).body("goal").pos, [3, 3, 3])


def test_activations_of_a_keyframe():
    muscle = (
        '<mujoco><worldbody><body><joint name="x" range="-1 1" limited="true"/><geom size=".1"/>'
        '</body></worldbody><actuator><muscle joint="x"/></actuator><keyframe><key name="k" '
        'act="0.7"/></keyframe></mujoco>'
    )
    config = MujocoConfig(model=muscle, T=2, keyframe="k")
    assert config.build().layout.names == ("joint_pos", "joint_vel", "activation")
    assert config.build().start_state(0)[2] == 0.7
    assert replace(config, activation=(0.2,)).build().start_state(0)[2] == 0.2


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: MujocoConfig(model=ARM, keyframe="hom").build(), "did you mean 'home'"),
        (lambda: MujocoConfig(model=ARM, keyframe=7).build(), "known: 0, 1, 2"),
        (lambda: MujocoConfig(model=ARM, qpos="home"), "keyframe='home'"),
        (lambda: Condition(qpos="home"), "Condition.qpos .* keyframe='home'"),
        (lambda: MujocoConfig(model=ARM, qvel="home"), "qvel must be a tuple"),
        (
            lambda: MujocoConfig(model=ARM, conditions=(Condition(qvel=(1.0,)),)).build(),
            "conditions: qvel must have 2 values",
        ),
        (lambda: MujocoConfig(model=ARM, keyframe=1.5), "keyframe must be"),
        (
            lambda: MujocoConfig(model=ARM, conditions=(Condition(keyframe="none"),)).build(),
            "unknown keyframe .* 'none'",
        ),
        (lambda: MujocoConfig(model=ARM, actuators=("ma",)).build(), "actuators: unknown actuator"),
        (lambda: MujocoConfig(model=ARM, actuators=()), "actuators must be"),
        (lambda: MujocoConfig(model=ARM, relative=("mb",)).build(), "unknown position servo 'mb'"),
        (
            lambda: MujocoConfig(model=ARM, mocap_actions=(MocapAction(body="gaol"),)).build(),
            "unknown mocap body 'gaol'; did you mean 'goal'",
        ),
        (
            lambda: MujocoConfig(
                model=ARM, mocap_actions=(MocapAction(body="goal", origin="welded"),)
            ).build(),
            "no body of the model is welded to goal",
        ),
        (lambda: MocapAction(body="goal", position=""), "position must be"),
        (
            lambda: MocapAction(body="goal", workspace=((0, 0, 1), (1, 1, 0))),
            r"workspace must be \(low, high\)",
        ),
        (
            lambda: MujocoConfig(model=ARM, mocap_actions=(MocapAction(body="goal"),) * 2),
            "one for each body",
        ),
    ],
)
def test_what_is_wrong_is_named_in_one_line(make, match):
    with pytest.raises(ConfigError, match=match) as caught:
        make()
    assert "\n" not in str(caught.value)


# ---- actuators


def test_actuators_by_name_and_in_order():
    """The whole model's positions under the same controls; others keep the keyframe's."""
    config = MujocoConfig(model=ARM, T=6, keyframe="home")
    whole = config.build()
    turned = replace(config, actuators=("mb", "sa")).build()
    assert turned.action_names == ("mb", "sa")
    np.testing.assert_array_equal(turned.control_range[1], [np.inf, 2.0])
    X = roll(whole, [0.9, 0.2]).X
    np.testing.assert_array_equal(roll(turned, [0.2, 0.9]).X, X)
    part = replace(config, actuators=("mb",)).build()
    assert part.nu == 1
    np.testing.assert_array_equal(roll(part, [0.2]).X, roll(whole, [1.1, 0.2]).X)
    at_zero = replace(config, actuators=("mb",), keyframe=None).build()
    rest = replace(config, keyframe=None).build()
    np.testing.assert_array_equal(roll(at_zero, [0.2]).X, roll(rest, [0.0, 0.2]).X)


def test_actions_of_position_servos_count_from_the_start():
    config = MujocoConfig(model=ARM, T=6, qpos=(0.8, 0.0), relative=True)
    agent, plain = config.build(), replace(config, relative=False).build()
    low, high = agent.control_range
    np.testing.assert_allclose(low, [-2.8, -np.inf])
    np.testing.assert_allclose(high, [1.2, np.inf])
    r = roll(agent, [0.1, 0.5])
    np.testing.assert_allclose(r.X, roll(plain, [0.9, 0.5]).X, atol=1e-12)
    np.testing.assert_array_equal(r.U[0, :, 0], 0.1)
    np.testing.assert_allclose(roll(agent, [5.0, 0.0]).U[..., 0], 1.2)  # what was applied
    keyed = replace(config, qpos=None, keyframe="home", relative=("sa",)).build()
    at_key = replace(config, qpos=None, keyframe="home", relative=False).build()
    np.testing.assert_allclose(roll(keyed, [0.0, 0.4]).X, roll(at_key, [1.1, 0.4]).X, atol=1e-12)
    # the same zero in all conditions, which a policy could not tell apart
    other = replace(config, conditions=(Condition(qpos=(0.1, 0.0)),)).build()
    np.testing.assert_array_equal(other.control_range, agent.control_range)


def test_actions_that_are_not_the_models_controls_are_not_planned_with():
    from gps.control import models

    for options in (
        {"relative": True, "qpos": (0.8, 0.0)},
        {"actuators": ("mb",)},
        {"mocap_actions": (MocapAction(body="goal"),)},
    ):
        agent = MujocoConfig(model=ARM, T=3, **options).build()
        with pytest.raises(ConfigError, match="cannot be planned with") as caught:
            agent.known_model(0, models)
        assert "\n" not in str(caught.value)


# ---- mocap bodies

LED = """<mujoco><option timestep="0.002" gravity="0 0 0"/><worldbody>
<body name="lead" mocap="true" pos="0 0 1" quat="1 0 0 1"><geom size=".02" contype="0"/></body>
<body name="hand" pos=".1 0 1.2" quat="1 1 0 0"><freejoint/><geom size=".05 .1" type="capsule"
mass="1"/></body><body name="peg" mocap="true"/></worldbody>
<equality><weld body1="{}" body2="{}" anchor=".1 .2 0" solref=".01 1"/></equality></mujoco>"""


@pytest.mark.parametrize("pair", [("lead", "hand"), ("hand", "lead")])
def test_a_welded_mocap_body_leads_the_hand(pair):
    """Steps of 4 cm take the hand along 4 cm each, and turns turn it, however it is welded."""
    moves = MocapAction(body="lead", rotation="xyz", max_rotation=0.3)
    agent = MujocoConfig(model=LED.format(*pair), T=8, dt=0.4, mocap_actions=(moves,)).build()
    assert agent.action_names == (*(f"lead:{a}" for a in "xyz"), *(f"lead:turn_{a}" for a in "xyz"))
    assert agent.layout.names == ("joint_pos", "joint_vel")  # nothing is hidden
    # a weld at rest stays so: the first pose is the one that asks for no force
    still = roll(agent)
    np.testing.assert_allclose(still.X, np.broadcast_to(still.X[0, 0], still.X.shape), atol=1e-9)
    moved = roll(agent, [0.04, 0.0, -0.02, 0.0, 0.0, 0.0]).entry("joint_pos")[0]
    shift = np.outer(np.arange(agent.T), [0.04, 0, -0.02])
    np.testing.assert_allclose(moved[:, :3] - moved[0, :3], shift, atol=2e-3)
    np.testing.assert_allclose(moved[:, 3:], 0, atol=5e-3)
    turned = roll(agent, [0.0, 0.0, 0.0, 0.0, 0.0, 0.1]).entry("joint_pos")[0]
    out = np.empty(3)
    for t, turn in enumerate(turned[:, 3:]):  # in the body's frame
        mujoco.mju_rotVecQuat(out, turn, agent.model.qpos0[3:])
        np.testing.assert_allclose(out, [0, 0, 0.1 * t], atol=5e-3)


def test_a_mocap_body_that_moves_by_itself_is_in_the_state():
    box = ((-0.1, -1.0, 0.95), (0.1, 1.0, 2.0))
    moves = MocapAction(body="lead", origin="mocap", position="xz", rotation="z", workspace=box)
    other = MocapAction(body="peg", position="y", max_displacement=0.01)
    agent = MujocoConfig(
        model=LED.format("lead", "hand"),
        T=8,
        mocap_actions=(moves, other),
        conditions=(Condition(mocap=(("peg", (0.0, 0.5, 0.0)),)),),
    ).build()
    low, high = agent.control_range
    np.testing.assert_allclose(high, [0.05, 0.05, 0.2, 0.01])
    np.testing.assert_array_equal(low, -high)
    r = roll(agent, [0.03, -0.02, 0.1, 1.0])
    lead = r.entry("mocap")[0]
    np.testing.assert_allclose(lead[0], [0, 1, 0, 0, 0, 0.5], atol=1e-12)
    t = np.arange(8)
    np.testing.assert_allclose(lead[:, 0], np.minimum(0.03 * t, 0.1))
    np.testing.assert_allclose(lead[:, 1], np.maximum(1 - 0.02 * t, 0.95))
    np.testing.assert_allclose(lead[:, 2:5], np.outer(t, [0, 0, 0.1]), atol=1e-12)
    np.testing.assert_allclose(lead[:, 5], 0.5 + 0.01 * t)
    # what was applied is what is recorded: the state is the sum of the actions
    applied = np.cumsum(r.U[0, :-1], axis=0)
    np.testing.assert_allclose(lead[1:, 0], applied[:, 0], atol=1e-15)
    np.testing.assert_allclose(lead[1:, 1], 1 + applied[:, 1], atol=1e-15)
    assert r.U[0, 0, 3] == 0.01
    with pytest.raises(ConfigError, match="add 'mocap'"):
        replace(agent.config, state=("joint_pos", "joint_vel")).build()


@pytest.mark.parametrize("kind", ["weld", "connect"])
@pytest.mark.parametrize("where", ["keyframe", "condition", "randomised"])
def test_a_mocap_body_that_starts_elsewhere_pulls_its_hand_there(kind, where):
    """As in plain MuJoCo, where it is put by its place in the data."""
    key = '<keyframe><key name="k" mpos="0 .2 1 0 0 0"/></keyframe></mujoco>'
    text = LED.format("lead", "hand").replace("<freejoint/>", '<joint name="f" type="free"/>')
    text = text.replace("</mujoco>", key).replace("<weld", f"<{kind}")
    if kind == "connect":
        text = text.replace('body1="lead" body2="hand"', 'body1="hand" body2="lead"')
    options = {"keyframe": "k"}
    if where != "keyframe":
        options = {"conditions": (Condition(mocap=(("lead", (0.0, 0.2, 1.0)),)),)}
    if where == "randomised":
        spec = Randomise(what="body_mass", names=("hand",), between=(1.0, 1.0))
        options["randomise"] = (spec,)
    still = (MocapAction(body="peg", origin="mocap"),)
    agent = MujocoConfig(model=text, T=10, mocap_actions=still, **options).build()
    r = roll(agent)
    model = mujoco.MjModel.from_xml_string(text)
    data = mujoco.MjData(model)
    data.mocap_pos[0] = 0, 0.2, 1
    mujoco.mj_step(model, data, 9 * agent.substeps)
    np.testing.assert_allclose(r.entry("joint_pos")[0, -1, :3], data.qpos[:3], atol=1e-9)
    assert data.qpos[1] > 0.1


def test_a_model_without_actuators_is_moved_by_its_welded_mocap_bodies():
    model = LED.format("lead", "hand")
    agent = MujocoConfig(model=model, T=4).build()
    assert agent.action_names == ("lead:x", "lead:y", "lead:z")
    with_motor = model.replace("<freejoint/>", '<joint name="x" type="slide"/>').replace(
        "</mujoco>", '<actuator><motor name="m" joint="x"/></actuator></mujoco>'
    )
    assert MujocoConfig(model=with_motor, T=4).build().action_names == ("m",)
    fixed = model.replace("<freejoint/>", "").replace(
        "</worldbody>", '<body><freejoint/><geom size=".1"/></body></worldbody>'
    )
    with pytest.raises(ConfigError, match="has no actuators"):
        MujocoConfig(model=fixed).build()  # welded to what cannot move
    with pytest.raises(ConfigError, match="has no actuators"):
        MujocoConfig(
            model=model.replace("<equality>", "<!--").replace("</equality>", "-->")
        ).build()


HANGING = """<mujoco><option timestep=".002" gravity="0 0 0"/><worldbody>
<body name="lead" mocap="true" pos=".8 0 0"/><body name="goal" mocap="true" pos="0 0 1"/>
<body><joint name="a" axis="0 1 0" damping="1"/><geom size=".03" fromto="0 0 0 .4 0 0"
type="capsule"/><body pos=".4 0 0"><joint name="b" axis="0 1 0" damping="1"/><geom size=".03"
fromto="0 0 0 .4 0 0" type="capsule"/><body name="hand" pos=".4 0 0"><joint name="c" axis="0 1 0"
damping="1"/><geom size=".05"/></body></body></body></worldbody>
<equality><weld body1="lead" body2="hand"/></equality>
<keyframe><key name="bent" qpos=".5 -1 .2"/><key name="pulled" qpos=".5 -1 .2" mpos=".8 0 .1 0 0 1"
mquat="1 0 0 0 1 0 0 0"/></keyframe></mujoco>"""


@pytest.mark.parametrize("origin", ["welded", "mocap"])
def test_what_a_mocap_body_leads_stays_where_it_starts(origin):
    """Its weld is at rest at a start that is not the model's own pose, turned or disturbed too."""
    lead = MocapAction(body="lead", origin=origin)  # which does not turn it
    here = (
        Condition(qpos=(0.5, -1.0, 0.2)),
        Condition(qpos_offset=(0.2, 0.4, 0.8)),
        Condition(keyframe="bent"),
        Condition(keyframe="pulled", qpos=(0.3, 0.3, 0.3)),
    )
    lead_there, goal_there = ((name, (0.7, 0.0, 0.0)) for name in ("lead", "goal"))
    there = (
        Condition(keyframe="pulled"),
        Condition(qpos=(0.5, -1.0, 0.2), mocap=(lead_there,)),
        Condition(qpos=(0.5, -1.0, 0.2), body_offsets=(("lead", (0.1, 0.0, 0.0)),)),
    )
    config = MujocoConfig(model=HANGING, T=10, mocap_actions=(lead,), conditions=(*here, *there))
    agent = config.build()
    for m in range(len(here)):
        q = roll(agent, condition=m).entry("joint_pos")[0]
        np.testing.assert_allclose(q, np.broadcast_to(q[0], q.shape), atol=1e-6)
        data = mujoco.MjData(agent.model_of(m))  # as it is drawn
        data.qpos[:] = q[0]
        mujoco.mj_forward(agent.model_of(m), data)
        assert np.abs(data.efc_pos[: data.ne]).max() < 1e-9
    for m in range(len(here), len(here) + len(there)):  # told where it begins
        q = roll(agent, condition=m).entry("joint_pos")[0]
        assert np.abs(q - q[0]).max() > 0.05
    both = replace(config, start_qpos_std=0.3, conditions=(Condition(mocap=(goal_there,)),)).build()
    numbers = stream(0, "start").normal(size=(3, both.n_start))
    noise = np.zeros((3, both.T, both.nu))
    r = both.rollout(idle(both), 0, noise, numbers)
    q = r.entry("joint_pos")
    np.testing.assert_allclose(q, np.broadcast_to(q[:, :1], q.shape), atol=1e-6)
    assert np.ptp(q[:, 0], axis=0).min() > 0.1
    both.linearise(0)  # which starts its differences there


def test_conditions_that_differ_in_mocap_bodies_share_their_model():
    """Of tens of MB; but not where what the model says follows from where they stand."""
    places = [Condition(mocap=(("goal", (0.1 * m, 0.0, 3.0)),)) for m in range(3)]
    config = MujocoConfig(model=ARM, T=3, conditions=(Condition(), *places))
    agent = config.build()
    assert len({id(s.model) for s in agent._conditions[False]}) == 1
    for m, place in enumerate(places, start=1):
        np.testing.assert_array_equal(agent.model_of(m).body("goal").pos, place.mocap[0][1])
    pulled = ARM.replace("</body>\n<body name", '<site name="here"/></body>\n<body name')
    pulled = pulled.replace('pos="1 0 0"/>', 'pos="1 0 0"><site name="there"/></body>')
    assert pulled.count("<site") == 2
    pulled = pulled.replace(
        "<actuator>",
        '<tendon><spatial name="cord" limited="true" range="0 .5"><site site="here"/>'
        '<site site="there"/></spatial></tendon><actuator>',
    )
    agent = replace(config, model=pulled, conditions=(Condition(), *places)).build()
    assert len({id(s.model) for s in agent._conditions[False]}) == 4


def test_mocap_bodies_are_drawn_where_actions_put_them():
    moves = (MocapAction(body="lead", rotation="z"), MocapAction(body="peg"))
    agent = MujocoConfig(model=LED.format("lead", "hand"), T=6, dt=0.1, mocap_actions=moves).build()
    r = roll(agent, [0.03, 0.02, 0.01, 0.1, 0.01, 0.0, 0.02])
    view = agent.visual_model(0)
    data = view.data()
    for t in (0, 3, 5):
        view.set_state(data, r.X[0, t])
        np.testing.assert_allclose(data.body("peg").xpos, r.entry("mocap")[0, t], atol=1e-12)
        assert np.linalg.norm(data.body("lead").xpos - data.body("hand").xpos) < 0.3
    # a hand that is far from where the model has it takes its mocap body along
    x = r.X[0, 0].copy()
    x[:3] += 5.0
    view.set_state(data, x)
    np.testing.assert_allclose(data.body("lead").xpos, [5, 5, 6], atol=1e-6)
    x[3:6] = 0.0, 0.0, 0.5  # turned in its own frame, and the other with it
    view.set_state(data, x)
    angle = np.zeros(3)
    mujoco.mju_subQuat(angle, data.body("lead").xquat, agent.model.body("lead").quat)
    np.testing.assert_allclose(np.linalg.norm(angle), 0.5, atol=1e-9)


def test_images_of_rollouts_and_render_show_where_actions_put_mocap_bodies():
    """A red box over a black floor goes from left to right, in rollouts' images and in `render`."""
    text = (
        '<mujoco><visual><headlight ambient="1 1 1"/></visual><worldbody><camera name="top" '
        'pos="0 0 1" fovy="60"/><body name="box" mocap="true" pos="-.2 0 0"><geom type="box" '
        'size=".1 .1 .1" rgba="1 0 0 1" contype="0"/></body><body pos="0 0 -5"><joint type="slide"'
        '/><geom size=".1" rgba="0 0 0 1"/></body></worldbody></mujoco>'
    )
    moves = (MocapAction(body="box", position="x", origin="mocap"),)
    config = MujocoConfig(model=text, T=9, mocap_actions=moves, cameras=("top",))
    agent = replace(config, image_size=(24, 24)).build()
    r = roll(agent, [0.05])
    drawn = agent.render(r, width=24, height=24, camera="top")
    for images in (r.images[0], drawn):
        red = images[..., 0].astype(float) - images[..., 1]
        columns = (red.sum(axis=1) * np.arange(24)).sum(axis=1) / red.sum(axis=(1, 2))
        assert columns[0] < 10
        assert columns[-1] > 14
        assert (np.diff(columns) > 0.5).all()


def test_samples_of_mocap_actions_are_independent():
    agent = MujocoConfig(
        model=LED.format("lead", "hand"), T=8, mocap_actions=(MocapAction(body="lead"),)
    ).build()
    noise = 0.02 * stream(3, "noise").normal(size=(3, 8, 3))
    together = agent.rollout(idle(agent), 0, noise)
    for i in range(3):
        alone = agent.rollout(idle(agent), 0, noise[i : i + 1])
        np.testing.assert_array_equal(alone.X[0], together.X[i])
    simulation = agent.simulation()
    simulation.reset(0)
    for t in range(7):
        np.testing.assert_array_equal(simulation.x, together.X[1, t])
        simulation.step(together.U[1, t])


# ---- hidden state


@pytest.fixture(autouse=True)
def fresh():
    """Warnings that other tests have seen come again."""
    warn_once.cache_clear()


DELAYED = (
    '<mujoco><option timestep="0.01" gravity="0 0 0"/><worldbody><body><joint name="x" '
    'type="slide" axis="1 0 0" damping="1"/><geom size=".05" mass="1"/></body></worldbody>'
    '<actuator><motor joint="x" ctrlrange="-20 20" delay="{}" nsample="{}"/><motor joint="x"/>'
    '</actuator><sensor><jointpos name="late" joint="x" delay=".02" nsample="3"/><jointpos '
    'name="now" joint="x"/></sensor><keyframe><key name="k" ctrl="3 0"/></keyframe></mujoco>'
)


@pytest.mark.parametrize(
    ("delay", "kept", "steps"), [(0.05, 5, 1), (0.05, 8, 2), (0.12, 20, 3), (0.03, 8, 1)]
)
def test_controls_under_way_are_in_the_state(delay, kept, steps):
    agent = MujocoConfig(model=DELAYED.format(delay, kept), T=8).build()
    assert agent.layout.entries[2:] == (("history", steps),)
    r = random_roll(agent, 5.0)
    for k, t in itertools.product(range(steps), range(8)):
        want = r.U[:, t - 1 - k, 0] if t > k else 0.0
        np.testing.assert_array_equal(r.entry("history")[:, t, k], want)


def test_the_state_with_controls_under_way_is_complete():
    """Two simulations with the same state and different pasts go on alike."""
    text = DELAYED.format(0.12, 20)
    agent = MujocoConfig(model=text, T=20).build()
    model = mujoco.MjModel.from_xml_string(text)
    steps = steps_under_way(model, 5)[0]
    assert steps == 3
    futures = []
    for first in (4.0, -7.0):  # the control before those that the state holds
        data = mujoco.MjData(model)
        for u in (first, 1.0, 2.0, 3.0):
            data.ctrl[:] = u, 0
            mujoco.mj_step(model, data, 5)
        data.qpos[:], data.qvel[:] = 0.1, 0.2
        path = []
        for u in (-1.0, 5.0, 0.0):
            data.ctrl[:] = u, 0
            mujoco.mj_step(model, data, 5)
            path.append(data.qpos[0])
        futures.append(path)
    np.testing.assert_array_equal(*futures)
    assert agent.layout.length("history") == steps


def test_a_keyframes_control_is_under_way_at_its_start():
    agent = MujocoConfig(model=DELAYED.format(0.12, 20), T=4, keyframe="k").build()
    np.testing.assert_array_equal(agent.start_state(0), [0, 0, 3, 3, 3])
    free = MujocoConfig(model=DELAYED.format(0.12, 20).replace("delay=", "delay='0' user="), T=4)
    moving = roll(agent, [3.0, 0.0]).entry("joint_pos")
    model = DELAYED.format(0.12, 20).replace('delay="0.12" nsample="20"', "")
    at_once = roll(replace(free, model=model).build(), [3.0, 0.0]).entry("joint_pos")
    np.testing.assert_allclose(moving, at_once, atol=1e-12)


def test_an_incomplete_state_is_refused():
    model = DELAYED.format(0.05, 8)
    plain = ("joint_pos", "joint_vel")
    with pytest.raises(ConfigError, match=r"with a delay .* add 'history'"):
        MujocoConfig(model=model, state=plain).build()
    with pytest.raises(ConfigError, match="sensor:late shows earlier values"):
        MujocoConfig(model=model, state=(*plain, "history", "sensor:late")).build()
    state = (*plain, "history", "sensor:now")
    agent = MujocoConfig(model=model, T=6, state=state, obs=("sensor:late",)).build()
    r = random_roll(agent, 5.0)
    assert np.abs(r.obs - r.entry("sensor:now")).max() > 1e-3
    for entry in ("activation", "history", "mocap", "plugin_state"):
        with pytest.raises(ConfigError, match=r"state, obs: no "):
            MujocoConfig(model=ARM, state=(*plain, entry)).build()


def test_sleeping_is_switched_off_and_said(caplog):
    sleepy = ARM.replace("<worldbody>", '<option><flag sleep="enable"/></option><worldbody>', 1)
    with caplog.at_level(logging.INFO):
        agent = MujocoConfig(model=sleepy, T=4).build()
    assert "sleeping is switched off" in caplog.text
    assert not agent.model.opt.enableflags & mujoco.mjtEnableBit.mjENBL_SLEEP
    np.testing.assert_array_equal(
        random_roll(agent).X, random_roll(MujocoConfig(model=ARM, T=4).build()).X
    )


BOX = '<body pos="0 {} {}"><freejoint/><geom type="box" size=".1 .1 .1"/></body>'
PILE = f"""<mujoco><worldbody><geom type="plane" size="1 1 1"/>
{"".join(BOX.format(0.02 * i, 0.1 + 0.2 * i) for i in range(3))}</worldbody></mujoco>"""


@pytest.mark.parametrize("text", [PILE, model_path("half_cheetah").read_text()])
def test_the_solvers_warm_start_is_no_hidden_state(text):
    """With contacts, a step from the same state and any warm start ends at the same state."""
    model = mujoco.MjModel.from_xml_string(text)
    data, cold = mujoco.MjData(model), mujoco.MjData(model)
    contacts = 0
    for t in range(100):
        data.ctrl[:] = stream(t, "u").normal(size=model.nu)
        mujoco.mj_copyData(cold, model, data)
        cold.qacc_warmstart[:] = 0
        for d in (data, cold):
            mujoco.mj_step(model, d, 5)
        contacts += data.ncon > 0
        np.testing.assert_allclose(cold.qpos, data.qpos, atol=1e-10)
        np.testing.assert_allclose(cold.qvel, data.qvel, atol=1e-8)
    assert contacts > 20


def test_few_iterations_of_the_solver_are_warned_of(caplog):
    few = ARM.replace("<worldbody>", '<option iterations="2"/><worldbody>', 1)
    MujocoConfig(model=few).build()
    assert "2 iterations" in caplog.text
    caplog.clear()
    MujocoConfig(model=ARM).build()
    MujocoConfig(model=few, state=("joint_pos", "joint_vel", "warmstart")).build()
    assert not caplog.text


def test_the_solvers_start_as_an_entry_completes_the_state():
    """With one iteration only a simulation that begins with it goes on alike."""
    text = model_path("half_cheetah").read_text()
    text = text.replace("<worldbody>", '<option iterations="1"/><worldbody>')
    state = ("joint_pos", "joint_vel", "warmstart")
    agent = MujocoConfig(model=text, T=40, dt=0.01, state=state, obs=("qpos",)).build()
    r = random_roll(agent, N=1)
    model, off = agent.model_of(0), {True: 0.0, False: 0.0}
    data = mujoco.MjData(model)
    for warm, t in itertools.product(off, range(39)):
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = r.obs[0, t], r.entry("joint_vel")[0, t]
        data.qacc_warmstart[:] = r.entry("warmstart")[0, t] if warm else 0.0
        data.ctrl[:] = r.U[0, t]
        mujoco.mj_step(model, data, agent.substeps)
        off[warm] = max(off[warm], np.abs(data.qpos - r.obs[0, t + 1]).max())
    assert off[True] < 1e-12
    assert off[False] > 1e-6


def test_new_options_are_stored_and_are_on_the_command_line():
    config = MujocoConfig(
        model=LED.format("lead", "hand"),
        keyframe=1,
        actuators=("a", "b"),
        relative=("a",),
        mocap_actions=(MocapAction(body="lead", workspace=((0, 0, 0), (1, 1, 1))),),
        conditions=(Condition(keyframe="home"),),
    )
    assert from_json(json.loads(json.dumps(to_json(config)))) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(config) == hash(replace(config))
    experiment = gps.load("pendulum_unknown")
    argv = "--agent.keyframe home --agent.actuators x y --agent.relative z --agent.substeps 3"
    agent = loader.override(experiment, argv.split()).agent
    assert (agent.keyframe, agent.actuators, agent.relative) == ("home", ("x", "y"), ("z",))
    argv = "--agent.keyframe 2 --agent.relative True --agent.substeps None --agent.dt None"
    agent = loader.override(experiment, argv.split()).agent
    assert (agent.keyframe, agent.relative, agent.substeps, agent.dt) == (2, True, None, None)


# ---- files

URDF = """<robot name="r"><link name="base">{0}</link><link name="a">{0}</link><link name="b">{0}
</link><link name="c">{0}</link><link name="d">{0}</link>
<joint name="lift" type="revolute"><parent link="base"/><child link="a"/><axis xyz="0 1 0"/>
<limit effort="5" lower="-1" upper="1" velocity="3"/><dynamics damping=".5"/></joint>
<joint name="slide" type="prismatic"><parent link="a"/><child link="b"/><axis xyz="0 1 0"/>
<limit effort="0" lower="-1" upper="1" velocity="3"/></joint>
<joint name="weld" type="fixed"><parent link="b"/><child link="c"/></joint>
<joint name="twin" type="revolute"><parent link="b"/><child link="d"/><axis xyz="0 1 0"/>
<limit effort="2" lower="-1" upper="1" velocity="3"/><mimic joint="lift"/></joint>
</robot>""".format(
    '<inertial><origin xyz="0 0 .1"/><mass value="1"/><inertia ixx=".1" iyy=".1" izz=".1" '
    'ixy="0" ixz="0" iyz="0"/></inertial>'
)


def test_files_of_every_kind_are_the_same_model(tmp_path, monkeypatch):
    text = model_path("arm_reach").read_text()
    config = replace(arm_reach(), T=6)
    want = random_roll(config.build()).X
    mujoco.mj_saveModel(mujoco.MjModel.from_xml_string(text), str(tmp_path / "arm.mjb"))
    for name in ("arm.xml", "ARM2.XML"):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    for name in ("arm.mjb", "arm.xml", "ARM2.XML", "./arm.xml", tmp_path / "arm.xml"):
        given = replace(config, model=name)
        assert os.path.isabs(given.model)
        monkeypatch.chdir("/")  # as on a worker
        np.testing.assert_array_equal(random_roll(given.build()).X, want)
        monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", ["text", "robot.urdf", "robot.xml"])
def test_a_urdf_gets_motors_within_its_effort_limits(kind, tmp_path, caplog):
    source = URDF
    if kind != "text":
        source = tmp_path / kind
        source.write_text(URDF)
    with caplog.at_level(logging.INFO):
        agent = MujocoConfig(model=source, T=5).build()
    assert agent.action_names == ("lift", "slide")  # not the fixed one, nor the one that follows
    np.testing.assert_array_equal(agent.control_range[1], [5.0, np.inf])
    assert "lift (-5 to 5 N m), slide (no effort limit)" in caplog.text
    assert ("the URDF text has no actuators" in caplog.text) == (kind == "text")
    assert np.abs(random_roll(agent).entry("joint_vel")).max() > 0


@pytest.mark.parametrize("place", ["ros/bot", "ros"])
def test_meshes_of_ros_packages_are_found(place, tmp_path):
    """The package is a folder above the URDF, or stands beside one of them."""
    meshes = tmp_path / "ros" / "bot" / "meshes"
    meshes.mkdir(parents=True)
    corners = "v 0 0 0\nv .1 0 0\nv 0 .1 0\nv 0 0 .1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"
    (meshes / "tip.obj").write_text(corners)
    mesh = '<collision><geometry><mesh filename="package://bot/meshes/tip.obj"/></geometry>'
    text = URDF.replace("</inertial></link>", f"</inertial>{mesh}</collision></link>", 1)
    file = tmp_path / place / "urdf" / "bot.urdf"
    file.parent.mkdir()
    file.write_text(text)
    assert MujocoConfig(model=file, T=3).build().model.nmesh == 1
    (meshes / "tip.obj").unlink()
    with pytest.raises(ConfigError, match=r"cannot load this model: .*tip\.obj"):
        MujocoConfig(model=file).build()


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("arm_raech", "unknown model 'arm_raech'; did you mean 'arm_reach'"),
        ("robot.xml", "robot.xml: no such file, looked in"),
        ("models/robot", "no such file, looked in"),
        ("robot.mjb", "no such file"),
        (".", "unknown model"),
        ("./", "a folder"),
        ("sub/robot.txt", "must end in .xml, .mjb or .urdf"),
        ("sub/broken.mjb", "MuJoCo cannot load this model"),
        ("sub/broken.urdf", "MuJoCo cannot load this model"),
    ],
)
def test_a_missing_file_and_an_unknown_model_are_told_apart(name, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for broken in ("robot.txt", "broken.mjb", "broken.urdf"):
        (tmp_path / "sub" / broken).write_text("<robot>")
    with pytest.raises(ConfigError, match=match) as caught:
        MujocoConfig(model=name).build()
    assert "\n" not in str(caught.value)


def test_a_path_counts_from_the_hyperparams_file(tmp_path, monkeypatch):
    """Also where it is run from elsewhere, and another file there has the same name."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, length in ((here, "0.4"), (there, "0.7")):
        folder.mkdir()
        (folder / "robot.xml").write_text(ARM.replace("0 0 -.4", f"0 0 -{length}"))
    (here / "arm.py").write_text(
        "import gps, helper\n"
        "from gps.agents import MujocoConfig, Condition\n"
        "from gps.algorithms import TrajOptConfig\n"
        "from gps.control import OpenLoopConfig\n"
        "from gps.costs import ActionCost\n"
        "experiment = gps.Experiment(agent=MujocoConfig(model='robot.xml', conditions=("
        "Condition(model=helper.model),)), cost=ActionCost(weights=1.0), "
        "initial=OpenLoopConfig(), algorithm=TrajOptConfig())\n"
    )
    (here / "helper.py").write_text("model = 'robot.xml'\n")
    monkeypatch.chdir(there)
    config = loader.load(here / "arm.py").experiment.agent
    assert config.model == str(here / "robot.xml") == config.conditions[0].model
    # outside of it, from the current folder: as an option of the command line
    assert replace(config, model="robot.xml").model == str(there / "robot.xml")
    (here / "robot.xml").unlink()
    (there / "robot.xml").unlink()
    missing = loader.load(here / "arm.py").experiment.agent
    with pytest.raises(ConfigError, match=f"no such file, looked in {here}"):
        missing.build()
