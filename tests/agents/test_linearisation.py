"""The linearisation about a start, and the controllers that are made of it."""

import os
from dataclasses import replace

import mujoco
import numpy as np
import pytest
from mujoco.batch import Batch

from gps.agents import Condition, MocapAction, MujocoConfig, PointMassConfig, cartpole
from gps.agents import mujoco as mujoco_agent
from gps.agents._linearise import Statics, smooth
from gps.agents._model import warn_once
from gps.control import HoldConfig, OpenLoopConfig, models, open_loop
from gps.pipeline.experiment import initial_controller
from gps.protocols import Linearises
from gps.rng import stream
from gps.types import Layout, Linearisation

LINKS = """<mujoco><compiler angle="radian"/>
  <option timestep="0.005" integrator="{integrator}"/><worldbody>{before}
  <body pos="0 0 1"><joint name="a" axis="0 1 0" damping="{damping}" range="-2 2"/>
    <geom type="capsule" fromto="0 0 0 .3 0 0" size=".03" mass="1" contype="0" conaffinity="0"/>
    <body pos=".3 0 0"><joint name="b" axis="0 1 0" damping="{damping}" range="-2 2"/>
      <geom type="capsule" fromto="0 0 0 .3 0 0" size=".03" mass=".5" contype="0" conaffinity="0"/>
      <site name="tip" pos=".3 0 0"/></body></body></worldbody>
  <tendon><fixed name="sum"><joint joint="a" coef="1"/><joint joint="b" coef="1"/></fixed></tendon>
  <actuator>{actuators}</actuator></mujoco>"""
BOX = '<body pos="1 0 1"><freejoint/><geom size=".1"/></body>'
ARMS = {
    "motors": '<motor joint="a" gear="5"/><motor joint="b" gear="0.5" ctrlrange="-10 10"/>',
    "in another order": '<motor joint="b"/><motor joint="a"/>',
    "servos": '<position joint="a" kp="50" ctrlrange="-2 2"/><position joint="b" kp="50"/>',
    "weak servos at their largest force": (
        '<position joint="a" kp="500" forcerange="-9 9"/>'
        '<position joint="b" kp="500" forcerange="-9 9"/>'
    ),
    "a velocity servo": '<velocity joint="a" kv="20"/><motor joint="b"/>',
    "integrated velocities": '<intvelocity joint="a" kp="80"/><intvelocity joint="b" kp="80"/>',
    "affine bias": (
        '<general joint="a" gainprm="3" biastype="affine" biasprm="1 -20 -1"/>'
        '<general joint="b" gainprm="2" biastype="affine" biasprm="-1 0 -1"/>'
    ),
    "filters": (
        '<general joint="a" dyntype="filterexact" dynprm="0.05" gainprm="10"/>'
        '<general joint="b" dyntype="filter" dynprm="0.05" gainprm="10"/>'
    ),
    "cylinders": (
        '<cylinder joint="a" timeconst="0.05" area="10"/>'
        '<cylinder joint="b" timeconst="0.05" area="10"/>'
    ),
    "a tendon": '<motor tendon="sum"/><motor joint="a"/>',
    "several for a joint": '<motor joint="a"/><motor joint="a" gear="2"/><motor joint="b"/>',
    "pairs of muscles": "".join(
        f'<muscle joint="{j}" gear="{g}" force="40" ctrllimited="true" ctrlrange="0 1" '
        'lengthrange="-4 4"/>'
        for j in "ab"
        for g in (1, -1)
    ),
}
POSE = (0.4, -0.7)


@pytest.fixture
def rng():
    return stream(0, "linearise")


def arm(actuators, *, before="", integrator="Euler", damping=0.1, **options):
    xml = LINKS.format(actuators=actuators, before=before, integrator=integrator, damping=damping)
    model = mujoco.MjModel.from_xml_string(xml)
    state = ("joint_pos", "joint_vel", *(("activation",) if model.na else ()))
    qpos = (1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, *POSE) if before else POSE
    defaults = {"T": 100, "dt": 0.04, "substeps": 8, "qpos": qpos, "state": state}
    return MujocoConfig(model=xml, **(defaults | options)).build()


def strays(agent, controller, noise):
    """The largest deviation of the arm's joints in rollouts with this noise, rad."""
    joints = np.arange(agent.layout.size)[agent.layout.slice("joint_pos")][-2:]
    r = agent.rollout(controller, 0, noise)
    return np.abs(r.X[:, :, joints] - agent.start_state(0)[joints]).max()


@pytest.mark.parametrize("before", ["", BOX], ids=["arm alone", "free body before"])
@pytest.mark.parametrize("name", ARMS)
def test_an_arm_under_gravity_holds_its_pose(name, before, rng):
    # an integrated velocity is where it was left; other actuators begin without force
    options = {"activation": POSE} if name == "integrated velocities" else {}
    agent = arm(ARMS[name], before=before, **options)
    controller, how = initial_controller(HoldConfig(), agent, 0)
    assert how == "from the model's linearisation at the start"
    assert strays(agent, controller, np.zeros((1, agent.T, agent.nu))) < 0.05
    noisy = strays(agent, controller, rng.normal(size=(5, agent.T, agent.nu)))
    assert 0.02 < noisy < 0.5


def test_the_feed_forward_is_inverse_dynamics():
    """With motors alone the controls are the forces that `mj_inverse` asks for, over the gears."""
    agent = arm(ARMS["motors"])
    data = mujoco.MjData(agent.model)
    data.qpos[:] = POSE
    mujoco.mj_inverse(agent.model, data)
    lin = agent.linearise(0)
    np.testing.assert_allclose(lin.u, data.qfrc_inverse / (5.0, 0.5), rtol=1e-5)
    np.testing.assert_allclose(lin.F @ np.concatenate((lin.x, lin.u)) + lin.f, lin.x, atol=1e-6)


def test_controls_stay_within_their_range():
    agent = arm('<motor joint="a" ctrlrange="-1 1"/><motor joint="b" ctrlrange="-1 1"/>')
    assert agent.linearise(0).u[0] == pytest.approx(-1.0)  # 4 N m are needed


def test_servos_near_their_force_limit_are_taken_for_what_they_can_do():
    lin = arm(ARMS["weak servos at their largest force"]).linearise(0)
    np.testing.assert_allclose(lin.u_range, 9 / 500, rtol=1e-6)


@pytest.mark.parametrize("integrator", ["Euler", "implicit", "implicitfast", "RK4"])
@pytest.mark.parametrize("name", ["filters", "a tendon", "servos"])
def test_the_linearisation_is_that_of_the_known_model(name, integrator):
    """F in the agent's entries against the planner's derivatives of the same step."""
    state = (
        "end_points",
        "joint_vel",
        *(("activation",) if name == "filters" else ()),
        "joint_pos",
    )
    agent = arm(ARMS[name], integrator=integrator, sites=("tip",), state=state)
    lin, model = agent.linearise(0), agent.known_model(0, models)
    own = np.concatenate([np.r_[agent.layout.slice(n)] for n in agent.model_entries])
    X, U = np.tile(lin.x[own], (2, 1)), np.tile(lin.u, (2, 1))
    F = model.jacobians(X, U)[0]
    nx = len(lin.x)
    columns = np.concatenate((own, nx + np.arange(len(lin.u))))
    np.testing.assert_allclose(lin.F[np.ix_(own, columns)], F, rtol=1e-4, atol=1e-5)
    assert not lin.F[:, agent.layout.slice("end_points")].any()
    tip = agent.rollout(Still(lin.u), 0, np.zeros((1, agent.T, agent.nu)))
    J = tip.jacobians["end_points"][0, 0][:, own]
    moves = lin.F[agent.layout.slice("end_points")][:, columns]
    np.testing.assert_allclose(moves, J @ F, rtol=1e-3, atol=1e-4)


class Still:
    """The same actions for ever."""

    def __init__(self, u):
        self.u = u

    def act(self, x, obs, t, noise):
        return np.tile(self.u, (len(x), 1))


def test_gains_on_what_follows_from_the_joints_where_the_joints_are_hidden(rng):
    """The end point and its velocity stand for the joints of an arm that they determine."""
    state = ("end_points", "end_point_velocities")
    agent = arm(ARMS["motors"], sites=("tip",), state=state)
    controller, _ = initial_controller(HoldConfig(), agent, 0)
    r = agent.rollout(controller, 0, 0.3 * rng.normal(size=(3, agent.T, 2)))
    assert np.abs(r.entry("end_points") - agent.start_state(0)[:3]).max() < 0.1
    assert controller.K.any()


def test_dry_friction_and_limits_do_not_hide_what_the_actuators_do():
    dry = LINKS.replace('damping="{damping}"', 'damping="{damping}" frictionloss="3"')
    plain = arm(ARMS["motors"]).linearise(0)
    xml = dry.format(actuators=ARMS["motors"], before="", integrator="Euler", damping=0.1)
    at_limit = xml.replace('range="-2 2"', 'range="-0.7 0.4"')
    for text in (xml, at_limit):
        other = MujocoConfig(model=text, T=100, dt=0.04, substeps=8, qpos=POSE).build().linearise(0)
        np.testing.assert_allclose(other.F, plain.F, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(other.u, plain.u, rtol=1e-6)


# ---- plants that do not stand by themselves, and what cannot be controlled


@pytest.mark.parametrize(
    "poles",
    ['<body name="p"{}><joint axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0 0 .6" size=".02"'
     ' mass=".1"/>{}</body>'],
)  # fmt: skip
@pytest.mark.parametrize("count", [1, 2])
def test_poles_on_a_cart_stay_upright(poles, count, rng):
    tree = ""
    for i in reversed(range(count)):
        tree = poles.format(' pos="0 0 .6"' if i else "", tree)
    tree = tree.replace('name="p"', "")
    xml = f"""<mujoco><option timestep="0.01"/><worldbody><body><joint name="cart" type="slide"
      axis="1 0 0" damping="0.5"/><geom size=".1" mass="1" contype="0" conaffinity="0"/>{tree}
      </body></worldbody>
      <actuator><motor joint="cart" gear="10" ctrlrange="-3 3"/></actuator></mujoco>"""
    xml = xml.replace('mass=".1"', 'mass=".1" contype="0" conaffinity="0"')
    agent = MujocoConfig(model=xml, T=200, dt=0.02, substeps=2, start_qpos_std=0.005).build()
    controller, _ = initial_controller(HoldConfig(), agent, 0)
    noise, start = rng.normal(size=(5, 200, 1)), rng.normal(size=(5, agent.n_start))
    r = agent.rollout(controller, 0, noise, start)
    assert np.abs(r.X[:, :, 1 : 1 + count]).max() < 0.5
    assert np.abs(r.X[:, :, 0]).max() < agent.model.stat.extent
    assert np.abs(r.X[:, -50:, 1 : 1 + count]).std() > 1e-4


def test_what_no_actuator_reaches_gets_no_gains_and_does_no_harm():
    """A pole that falls by itself beside the arm: its directions grow without bound."""
    rod = '<geom type="capsule" fromto="0 0 0 0 0 .3" size=".02"/>'
    pole = f'<body pos="2 0 1"><joint axis="0 1 0"/>{rod}</body>'
    agent = arm(ARMS["motors"], before=pole, qpos=(0.0, *POSE), T=400)
    lin, own = agent.linearise(0), np.array([1, 2, 4, 5])
    assert np.abs(np.linalg.eigvals(lin.F[:, :6])).max() > 1.1
    K = HoldConfig().linearised(lin, 400).K[0]
    np.testing.assert_array_equal(K[:, [0, 3]], 0.0)
    alone = replace(
        lin,
        x=lin.x[own],
        F=lin.F[np.ix_(own, [*own, 6, 7])],
        f=lin.f[own],
        x_scale=lin.x_scale[own],
        layout=Layout((("joint_pos", 2), ("joint_vel", 2))),
    )
    np.testing.assert_allclose(K[:, own], HoldConfig().linearised(alone, 400).K[0], rtol=1e-5)


def test_what_falls_although_the_actuators_reach_it_gets_bounded_gains():
    """A pole that the arm shakes and cannot hold: future costs are discounted."""
    F = np.array([[1.3, 0.0, 1e-2], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    F[0, 1] = 1e-2  # the joint drags at what falls, and nothing comes back
    lin = Linearisation(
        x=np.zeros(2), u=np.zeros(1), F=F[:2], f=np.zeros(2), x_scale=np.ones(2),
        u_scale=np.ones(1), u_range=np.ones(1), layout=Layout((("fall", 1), ("joint_pos", 1))),
        dt=0.05, response_time=0.2,
    )  # fmt: skip
    K = HoldConfig().linearised(lin, 500).K
    assert np.isfinite(K).all()
    assert K[0, 0, 1] < -0.1


LEG = """<mujoco><option timestep="0.002"/><worldbody><geom type="plane" size="5 5 .1"/>
  <body pos="0 0 0.{height}"><joint name="up" type="slide" axis="0 0 1"/>
    <geom size=".1" mass="5"/>
    <body><joint name="knee" type="slide" axis="0 0 1" range="-0.2 0.2" limited="true"/>
      <geom type="capsule" fromto="0 0 -.2 0 0 -.35" size=".05" mass="1"/></body></body></worldbody>
  <actuator><motor joint="knee" ctrlrange="-200 200"/></actuator></mujoco>"""


def test_a_leg_on_the_floor_carries_the_body_and_one_in_the_air_does_not_pull(caplog):
    """The floor's force follows from the model's own step, not from an assumed one."""
    stands = MujocoConfig(model=LEG.format(height=399), T=50, dt=0.02, substeps=10).build()
    falls = MujocoConfig(model=LEG.format(height=600), T=5, dt=0.02, substeps=10).build()
    warn_once.cache_clear()
    assert falls.linearise(0).u == pytest.approx([0.0], abs=1e-3)
    assert "contacts" not in caplog.text
    # what stands on the leg is the body's weight
    assert stands.linearise(0).u == pytest.approx([-5 * 9.81], rel=0.2)
    assert "contacts may carry the robot" in caplog.text


def test_conditions_of_the_same_physics_have_the_same_numbers():
    agent = replace(cartpole(), T=20).build()
    agents = [agent.linearise(m) for m in range(agent.n_conditions)]
    again = agent.linearise(0)
    np.testing.assert_array_equal(agents[0].F, again.F)
    assert isinstance(agent, Linearises)


def test_conditions_of_the_same_start_share_it_and_others_do_not():
    starts = ((0.3, 0.0), (0.3, 0.0), (-0.2, 0.1))
    config = replace(
        cartpole(),
        T=20,
        conditions=tuple(Condition(qpos=q) for q in starts),
        test_conditions=(
            Condition(qpos=starts[0]),
            Condition(body_offsets=(("pole", (0, 0, 0.1)),)),
        ),
    )
    agent = config.build()
    lin = agent.linearise(0)
    assert agent.linearise(1) is agent.linearise(0, test=True) is lin
    assert not np.array_equal(agent.linearise(2).x, lin.x)
    assert not np.array_equal(agent.linearise(1, test=True).F, agent.linearise(2).F)


def test_the_point_mass_is_linear():
    agent = PointMassConfig(T=30, force_limit=3.0).build()
    lin = agent.linearise(0)
    np.testing.assert_allclose(lin.F, agent.dynamics().F[0])
    assert lin.u_range.tolist() == [3.0, 3.0]
    controller, _ = initial_controller(HoldConfig(), agent, 0)
    r = agent.rollout(controller, 0, np.random.default_rng(0).normal(size=(5, 30, 2)))
    assert 0.05 < np.abs(r.X[:, :, :2] - agent.start_state(0)[:2]).max() < 0.5


def test_equilibrium_of_muscles_is_an_activation():
    agent = arm(ARMS["pairs of muscles"])
    lin = agent.linearise(0)
    np.testing.assert_allclose(lin.x[agent.layout.slice("activation")], lin.u, atol=1e-6)
    model = smooth(agent.model, np.array(POSE))
    statics = Statics(model, np.array(POSE), np.arange(model.nu), np.zeros(model.nu))
    data = mujoco.MjData(model)
    data.qpos[:], data.ctrl[:], data.act[:] = POSE, lin.u, lin.u
    mujoco.mj_forward(model, data)
    np.testing.assert_allclose(data.qacc, 0.0, atol=1e-3)
    assert (statics.authority(lin.u, lin.u, np.ones(2), 0.2)[0] > 0).all()


@pytest.mark.parametrize("given", ["", 'ctrllimited="true" ctrlrange="-3 5"'])
def test_muscles_take_controls_from_0_to_1_as_mujoco_clamps_them(given, rng):
    bare = ARMS["pairs of muscles"].replace('ctrllimited="true" ctrlrange="0 1"', given)
    assert given or "ctrl" not in bare
    agent, stated = arm(bare), arm(ARMS["pairs of muscles"])
    np.testing.assert_array_equal(agent.control_range, ([0.0] * 4, [1.0] * 4))
    np.testing.assert_array_equal(agent.linearise(0).F, stated.linearise(0).F)
    controller, _ = initial_controller(HoldConfig(), agent, 0)
    assert strays(agent, controller, np.zeros((1, agent.T, 4))) < 0.05
    assert strays(agent, controller, rng.normal(size=(5, agent.T, 4))) < 0.5


def unchanged(lin):
    np.testing.assert_allclose(lin.F @ np.concatenate((lin.x, lin.u)) + lin.f, lin.x, atol=1e-5)


DELAYED = '<motor joint="a" delay="{}" nsample="40"/><motor joint="b"/>'


@pytest.mark.parametrize("delay", [0.04, 0.05, 0.12])
def test_a_delayed_motor_holds_by_way_of_what_is_under_way(delay, rng):
    """A step with earlier actions in the state is predicted; so is the delay, which need not be a
    whole number of control steps."""
    weightless = 'Euler" gravity="0 0 0'
    agent = arm(DELAYED.format(delay), state=None, integrator=weightless)
    lin = agent.linearise(0)
    unchanged(lin)
    policy = open_loop(agent.layout.size, 2, 12, OpenLoopConfig(variance=1e-8))
    agent = replace(agent.config, T=12).build()
    r = agent.rollout(policy, 0, rng.normal(size=(3, 12, 2)))
    z = np.concatenate((r.X, r.U), axis=2)[:, :-1]
    np.testing.assert_allclose(z @ lin.F.T + lin.f, r.X[:, 1:], rtol=0, atol=1e-7)
    heavy = arm(DELAYED.format(delay), state=None)
    lin = heavy.linearise(0)
    unchanged(lin)
    assert lin.x[heavy.layout.slice("history")] == pytest.approx(lin.u[0])
    controller, how = initial_controller(HoldConfig(), heavy, 0)
    assert how.startswith("from the model")
    # nothing is under way at the start, so that it falls for as long as the delay lasts
    still = strays(heavy, controller, np.zeros((1, heavy.T, heavy.nu)))
    assert still < 0.1 + 10 * delay**2


def test_actuators_that_no_action_controls_stay_as_they_are():
    key = '<keyframe><key name="k" qpos="0.4 -0.7" ctrl="3 1 2"/></keyframe>'
    both = '<motor name="ma" joint="a"/><motor name="mb" joint="b"/><motor name="mc" joint="b"/>'
    xml = LINKS.format(actuators=both, before="", integrator="Euler", damping=0.1)
    xml = xml.replace("</mujoco>", key + "</mujoco>")
    agent = MujocoConfig(model=xml, keyframe="k", actuators=("mb", "ma"), dt=0.04, T=50).build()
    lin, data = agent.linearise(0), mujoco.MjData(agent.model)
    unchanged(lin)
    data.qpos[:] = POSE
    mujoco.mj_inverse(agent.model, data)
    a, b = data.qfrc_inverse
    np.testing.assert_allclose(lin.u, (b - 2.0, a), rtol=1e-5)  # the third motor goes on with 2 N m
    controller, _ = initial_controller(HoldConfig(), agent, 0)
    assert strays(agent, controller, np.zeros((1, 50, 2))) < 0.05


def test_servos_that_count_from_their_start_hold_it():
    agent, plain = (arm(ARMS["servos"], relative=relative) for relative in (True, False))
    lin, absolute = agent.linearise(0), plain.linearise(0)
    unchanged(lin)
    np.testing.assert_allclose(lin.u + POSE, absolute.u, atol=1e-6)
    np.testing.assert_allclose(lin.F, absolute.F, atol=1e-6)
    controller, _ = initial_controller(HoldConfig(), agent, 0)
    assert strays(agent, controller, np.zeros((1, agent.T, 2))) < 0.05


LED = """<mujoco><option timestep="0.005"/><worldbody>
  <body name="lead" mocap="true" pos=".6 0 1"><geom size=".02" contype="0" conaffinity="0"/></body>
  <body pos="0 0 1"><joint name="a" axis="0 1 0" damping="2"/>
    <geom type="capsule" fromto="0 0 0 .3 0 0" size=".03" mass="1" contype="0" conaffinity="0"/>
    <body pos=".3 0 0"><joint name="b" axis="0 1 0" damping="2"/>
      <geom type="capsule" fromto="0 0 0 .3 0 0" size=".03" mass="1" contype="0" conaffinity="0"/>
      <body name="hand" pos=".3 0 0"><geom size=".03" mass=".1" contype="0" conaffinity="0"/>
        <site name="hand"/></body></body></body></worldbody>
  <equality><weld body1="lead" body2="hand" torquescale="0"/></equality></mujoco>"""


@pytest.mark.parametrize("origin", ["welded", "mocap"])
def test_a_hand_that_a_mocap_body_leads_stays(origin, rng):
    lead = MocapAction(body="lead", position="xz", max_displacement=0.02, origin=origin)
    agent = MujocoConfig(
        model=LED, mocap_actions=(lead,), qpos=(-0.4, 0.8), T=60, dt=0.04, sites=("hand",),
        state=("joint_pos", "joint_vel", "end_points") + (("mocap",) if origin == "mocap" else ()),
    ).build()  # fmt: skip
    lin = agent.linearise(0)
    if origin == "mocap":  # a displacement is one of the body, and stays
        where = agent.layout.slice("mocap")
        np.testing.assert_allclose(lin.F[where, agent.layout.size :], np.eye(2), atol=1e-9)
        np.testing.assert_allclose(lin.F[where, where], np.eye(2), atol=1e-9)
        assert np.abs(lin.F[agent.layout.slice("joint_pos"), where]).max() > 0.1
    np.testing.assert_allclose(lin.u_range, 0.02)
    controller, how = initial_controller(HoldConfig(), agent, 0)
    assert how.startswith("from the model")
    assert np.isfinite(controller.K).all()
    r = agent.rollout(controller, 0, rng.normal(size=(5, 60, 2)))
    moved = np.abs(r.entry("end_points") - r.entry("end_points")[:, :1]).max()
    assert 0.005 < moved < 0.5


def slide(force, limits="", T=40):
    xml = f"""<mujoco><option gravity="0 0 0"/><worldbody><body>
      <joint name="x" type="slide" axis="1 0 0" {limits}/><geom size=".05" mass="1"/></body>
      </worldbody><actuator><motor joint="x" ctrlrange="-{force} {force}"/></actuator></mujoco>"""
    return MujocoConfig(model=xml, T=T, dt=0.05).build()


def test_a_slide_without_limits_deviates_as_far_as_its_motor_takes_it():
    """A body of 0.1 m does not say how far it goes; a controller that held it to 1 cm could hardly
    be left within a bound on the KL divergence."""
    extent = slide(1).model.stat.extent
    scales = [slide(f).linearise(0).x_scale[0] / extent for f in (0.01, 0.5, 100.0)]
    half, duration = 0.25, 1.0  # of the second motor; s
    assert scales[0] == pytest.approx(1.0)
    # from rest, with the response that `authority` asks for: force = inertia distance / duration^2
    assert scales[1] == pytest.approx(2 * half * duration**2 / extent, rel=0.1)
    assert scales[2] == pytest.approx(10.0)
    limited = slide(100.0, 'range="-0.02 0.02" limited="true"').linearise(0)
    assert limited.x_scale[0] == pytest.approx(0.02)


def test_the_noise_is_tried_in_rollouts_of_the_agent_from_its_undisturbed_start():
    agent = replace(cartpole(), T=40, start_qpos_std=0.3).build()
    plain = HoldConfig().linearised(agent.linearise(0), agent.T)
    kept, _ = initial_controller(HoldConfig(), agent, 0)
    np.testing.assert_array_equal(kept.chol, plain.chol)

    class Wilder:
        """The same agent, but its cart goes further than its linearisation says."""

        def __getattr__(self, name):
            return getattr(agent, name)

        def rollout(self, policy, condition, noise, start_noise, *, test=False):
            assert not start_noise.any()
            found = agent.rollout(policy, condition, noise, start_noise, test=test)
            rest = agent.start_state(0)
            return replace(found, X=rest + (3.0 if noise.any() else 1.0) * (found.X - rest))

    lowered, _ = initial_controller(HoldConfig(), Wilder(), 0)
    assert (lowered.chol[:, 0, 0] < 0.6 * plain.chol[:, 0, 0]).all()


def test_a_joint_that_damping_all_but_locks_is_linearised():
    """As the base of gymnasium-robotics' Fetch is: no such velocity as others have can be tried."""
    locked = """<mujoco><worldbody><body><joint name="base" type="slide" axis="1 0 0"
damping="1e15"/><geom size=".01" mass=".01"/><body><joint name="arm" axis="0 1 0" damping=".1"/>
<geom type="capsule" size=".02" fromto="0 0 0 .3 0 0" mass=".1"/></body></body></worldbody>
<actuator><motor joint="arm" ctrlrange="-2 2"/></actuator></mujoco>"""
    agent = MujocoConfig(model=locked, T=40).build()
    lin = agent.linearise(0)
    assert np.isfinite(lin.F).all()
    np.testing.assert_allclose(lin.F[2], 0.0, atol=1e-6)  # its velocity is gone after one step
    free = MujocoConfig(model=locked.replace("1e15", "1e4"), T=40).build().linearise(0)
    np.testing.assert_allclose(lin.F[[1, 3]][:, [1, 3, 4]], free.F[[1, 3]][:, [1, 3, 4]], rtol=1e-3)


def test_a_start_outside_of_a_joints_range_is_said_once(caplog):
    """As metaworld's arms have one, and are thrown by a radian."""
    warn_once.cache_clear()
    text = LINKS.format(integrator="Euler", before="", damping=1, actuators=ARMS["motors"])
    starts = (Condition(), Condition(qpos=(2.5, 0.1)), Condition(qpos=(2.6, 0.2)))
    agent = MujocoConfig(model=text, T=10, conditions=starts).build()
    agent.linearise(0)
    assert "outside" not in caplog.text
    for m in (1, 2):
        assert agent.linearise(m).x[0] == 2.0
    assert caplog.text.count("a starts at 2.5, outside of its range -2 to 2") == 1
    assert caplog.text.count("outside of its range") == 1


def test_large_models_are_linearised_by_all_cores_to_the_same_bits(monkeypatch):
    text = LINKS.format(integrator="Euler", before=BOX, damping=1, actuators=ARMS["motors"])
    found, asked = [], []
    for threshold, threads in ((np.inf, 1), (0.0, len(os.sched_getaffinity(0)))):
        monkeypatch.setattr(mujoco_agent, "_WORTH_THREADS", threshold)
        agent = MujocoConfig(model=text, T=10).build()

        def counted(model, N, threads, **options):
            asked.append(threads)
            return Batch(model, N, threads, **options)

        with monkeypatch.context() as patch:
            patch.setattr(mujoco_agent, "Batch", counted)
            found.append(agent.linearise(0))
        assert asked.pop() == threads
    for name in ("x", "u", "F", "f", "x_scale", "u_scale", "u_range"):
        np.testing.assert_array_equal(*(getattr(lin, name) for lin in found))
