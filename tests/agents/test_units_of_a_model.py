"""The same robot in other units of length and mass: the same start in all that follows from it."""

from dataclasses import replace

import numpy as np
import pytest

from gps.agents import MocapAction, MujocoConfig
from gps.control import HoldConfig
from gps.errors import ConfigError, SimulationError
from gps.pipeline.experiment import initial_controller
from gps.rng import stream

UNITS = {"millimetres": (1e3, 1.0), "grams": (1.0, 1e3), "both": (1e3, 1e3), "large": (1e-2, 1e-4)}
"""How many of each there are in a metre and in a kilogram."""


def links(k, m, gravity, actuators):
    """Two links under gravity, `actuators` with a factor for torques."""
    return f"""<mujoco><compiler angle="radian"/>
  <option timestep="0.005" gravity="0 0 {-gravity * k!r}"/><worldbody>
  <body pos="0 0 {k!r}"><joint name="a" axis="0 1 0" damping="{0.1 * m * k * k!r}" range="-2 2"/>
    <geom type="capsule" fromto="0 0 0 {0.3 * k!r} 0 0" size="{0.03 * k!r}" mass="{m!r}"/>
    <body pos="{0.3 * k!r} 0 0"><joint name="b" axis="0 1 0" damping="{0.1 * m * k * k!r}"/>
      <geom type="capsule" fromto="0 0 0 {0.3 * k!r} 0 0" size="{0.03 * k!r}" mass="{0.5 * m!r}"/>
      <site name="tip" pos="{0.3 * k!r} 0 0"/></body></body></worldbody>
  <actuator>{actuators(m * k * k)}</actuator></mujoco>"""


def motors(torque):
    return (
        f'<motor joint="a" gear="{5 * torque!r}" ctrlrange="-2 2"/>'
        f'<motor joint="b" gear="{0.5 * torque!r}" ctrlrange="-10 10"/>'
    )


def free_motors(torque):
    return f'<motor joint="a" gear="{5 * torque!r}"/><motor joint="b" gear="{0.5 * torque!r}"/>'


def muscles(torque):
    return "".join(
        f'<muscle joint="{j}" gear="{g}" force="{40 * torque!r}" lengthrange="-4 4"/>'
        for j in "ab"
        for g in (1, -1)
    )


def arm(actuators, gravity=9.81, **options):
    def build(k, m):
        xml = links(k, m, gravity, actuators)
        config = MujocoConfig(model=xml, T=40, dt=0.04, substeps=8, qpos=(0.4, -0.7), **options)
        turning = {"end_points": k, "end_point_velocities": k}
        return config, turning, 1.0

    return build


def cart(k, m):
    """A pole on a cart that a servo moves, in the model's unit of length."""
    xml = f"""<mujoco><option timestep="0.01" gravity="0 0 {-9.81 * k!r}"/>
      <default><geom contype="0" conaffinity="0"/></default><worldbody><body>
      <joint type="slide" axis="1 0 0" damping="{0.5 * m!r}"/>
      <geom size="{0.1 * k!r}" mass="{m!r}"/>
      <body><joint axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0 0 {0.6 * k!r}"
        size="{0.02 * k!r}" mass="{0.1 * m!r}"/></body></body></worldbody>
      <actuator><general joint="" gainprm="{50 * m!r}" biastype="affine"
        biasprm="0 {-50 * m!r} {-5 * m!r}" ctrlrange="{-k!r} {k!r}"/></actuator></mujoco>"""
    xml = xml.replace('joint type="slide"', 'joint name="x" type="slide"')
    xml = xml.replace('joint=""', 'joint="x"')
    config = MujocoConfig(model=xml, T=40, dt=0.02, substeps=2)
    both = np.array([k, 1.0])
    return config, {"joint_pos": both, "joint_vel": both}, k


def led(k, m):
    """An arm whose hand a mocap body leads."""
    xml = links(k, m, 9.81, lambda torque: "").replace(
        "</worldbody>",
        f"""<body name="lead" mocap="true" pos="0 0 0"><geom size="{0.02 * k!r}" contype="0"
        conaffinity="0"/></body></worldbody><equality><weld body1="lead" body2="hand"
        torquescale="0" solimp=".9 .95 {1e-3 * k!r}"/></equality>""",
    )
    xml = xml.replace(f'<body pos="{0.3 * k!r} 0 0">', f'<body name="hand" pos="{0.3 * k!r} 0 0">')
    lead = MocapAction(body="lead", position="xz", max_displacement=0.02 * k, origin="welded")
    config = MujocoConfig(
        model=xml, mocap_actions=(lead,), qpos=(0.4, -0.7), T=40, dt=0.04, substeps=8,
        sites=("tip",), state=("joint_pos", "joint_vel", "end_points"),
    )  # fmt: skip
    return config, {"end_points": k}, k


HIDDEN = {"sites": ("tip",), "state": ("end_points", "end_point_velocities")}
ROBOTS = {
    "an arm": arm(motors),
    "an arm with motors without range": arm(free_motors),
    "an arm without gravity": arm(motors, gravity=0.0),
    "an arm with nothing to go by": arm(free_motors, gravity=0.0),
    "an arm with muscles": arm(muscles),
    "muscles without gravity": arm(muscles, gravity=0.0),
    "an arm whose joints are hidden": arm(motors, **HIDDEN),
    "a cart": cart,
    "a hand that is led": led,
}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("robot", ROBOTS)
def test_a_start_does_not_depend_on_the_units(robot, unit):
    k, m = UNITS[unit]
    (here, _, _), (there, units, u) = ROBOTS[robot](1.0, 1.0), ROBOTS[robot](k, m)
    here, there = here.build(), there.build()
    x = np.concatenate([np.full(n, units.get(name, 1.0)) for name, n in here.layout.entries])
    z = np.concatenate((x, np.full(here.nu, u)))
    a, b = here.linearise(0), there.linearise(0)
    assert b.response_time == pytest.approx(a.response_time, rel=1e-6)
    same = {"rtol": 1e-4, "atol": 1e-5}
    for name, by in (("x", x), ("f", x), ("x_scale", x), ("u", u), ("u_scale", u), ("u_range", u)):
        np.testing.assert_allclose(getattr(b, name) / by, getattr(a, name), err_msg=name, **same)
    np.testing.assert_allclose(b.F * z / x[:, None], a.F, **same)
    one, other = (initial_controller(HoldConfig(), agent, 0)[0] for agent in (here, there))
    np.testing.assert_allclose(other.K * x / u, one.K, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(other.chol / u, one.chol, **same)
    noise = stream(0, "units").standard_normal((4, here.T, here.nu))
    r, s = (agent.rollout(c, 0, noise) for agent, c in ((here, one), (there, other)))
    np.testing.assert_allclose(s.X / x, r.X, rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(s.U / u, r.U, rtol=1e-2, atol=1e-3)
    if robot == "an arm":
        assert not np.allclose(one.K, 0.0)

    def act(self, x, obs, t, noise):
        return np.full((len(x), 2), 1e9)


@pytest.mark.parametrize("unit", UNITS)
def test_no_unit_of_length_makes_a_sample_fail(unit):
    k, m = UNITS[unit]
    slide = f"""<mujoco><option gravity="0 0 0"/><worldbody><body><joint name="x" type="slide"/>
      <geom size="{0.1 * k!r}" mass="{m!r}"/><site name="s"/></body></worldbody>
      <actuator><motor joint="x" gear="{m * k!r}"/></actuator></mujoco>"""

    class Away:
        def act(self, x, obs, t, noise):
            return np.full((len(x), 1), self.force)

    config = MujocoConfig(
        model=slide, T=20, dt=0.05, sites=("s",), state=("joint_vel", "end_points", "joint_pos")
    )
    agent, policy = config.build(), Away()
    policy.force = 100.0  # some 50 m in a second, of a body of 0.2 m
    r = agent.rollout(policy, 0, np.zeros((1, 20, 1)))
    assert r.entry("joint_pos").max() > 40 * k
    policy.force = 1e6
    with pytest.raises(SimulationError, match=r"t=1: the state left .* \(joint_vel of 'x'\)"):
        agent.rollout(policy, 0, np.zeros((1, 20, 1)))
    far = replace(config, qpos=(1e6 * k,)).build()  # from afar too
    policy.force = 100.0
    far.rollout(policy, 0, np.zeros((1, 20, 1)))


def test_a_limit_that_the_start_exceeds_is_refused_and_names_the_joint():
    config, *_ = ROBOTS["an arm"](1.0, 1.0)
    replace(config, limit=0.8).build()
    with pytest.raises(ConfigError, match=r"\.limit: 0\.5 is less than .* joint_pos of 'b', 0\.7"):
        replace(config, limit=0.5).build()
