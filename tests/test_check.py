"""What a check says of an experiment, against rollouts that are made and judged here."""

import math
from dataclasses import replace

import numpy as np
import pytest

import gps
from gps import cli
from gps.agents import MujocoConfig, PointMassConfig
from gps.algorithms import MDGPSConfig, TrajOptConfig
from gps.control import HoldConfig, OpenLoopConfig, PDConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost
from gps.gui.plots import progress
from gps.gui.run_reader import RunReader
from gps.pipeline import checking

CART = """<mujoco><option gravity="0 0 0" timestep="0.01"/><worldbody>
  <body name="cart"><joint name="rail" type="slide" axis="1 0 0" damping="1"/>
    <geom size="0.1" mass="1"/>
    <body name="arm"><joint name="elbow" type="hinge" axis="0 1 0" damping="0.5"/>
      <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.02" mass="2"/>
    </body>
  </body>
  <body name="rock" pos="0 0 -5"><geom size="0.1"/></body></worldbody>
  <actuator><motor name="push" joint="rail" ctrlrange="-2 2" ctrllimited="true"/>
    <motor name="bend" joint="elbow"/></actuator>
  <sensor><framepos name="rock" objtype="body" objname="rock"/></sensor></mujoco>"""

cart = gps.Experiment(
    name="cart",
    agent=MujocoConfig(model=CART, T=12, dt=0.05, state=("joint_pos", "joint_vel")),
    cost=ActionCost(weights=0.1) + 2.0 * StateCost(entry="joint_pos", target=1.0, l2=1.0),
    initial=PDConfig(variance=0.04, position_gain=5.0, velocity_gain=0.1),
    algorithm=TrajOptConfig(),
    samples=4,
)


def entry(found, name, unit=None):
    return next(e for e in found.entries if e.name == name and unit in (None, e.unit))


def test_entries_are_named_measured_and_in_their_units():
    found = gps.check(cart)
    assert [(e.name, e.unit, e.size) for e in found.entries] == [
        ("joint_pos", "m", 1),
        ("joint_pos", "rad", 1),
        ("joint_vel", "m/s", 1),
        ("joint_vel", "rad/s", 1),
    ]
    report = next(iter(gps.run(cart, iterations=1)))  # the same rollouts, by the same numbers
    X = report.rollouts[0].X
    rail = entry(found, "joint_pos", "m")
    assert rail.explored == np.abs(X[:, :, 0]).max() > 0
    assert rail.spread[0] == rail.spread[1] == pytest.approx(np.sqrt(X[:, :, 0].var(axis=0).mean()))
    assert rail.drift == 0.0
    assert found.holds
    assert found.good


def test_actions_are_named_and_the_share_that_is_clipped_is_counted():
    hot = replace(cart, initial=OpenLoopConfig(variance=(4.0, 1e-6)))
    found = gps.check(hot)
    push, bend = found.actions
    U = next(iter(gps.run(hot, iterations=1))).rollouts[0].U
    assert (push.name, push.low, push.high, bend.name) == ("push", -2.0, 2.0, "bend")
    assert push.clipped == (np.abs(U[:, :, 0]) == 2.0).mean() > 0.2
    assert math.isnan(bend.clipped)  # without limits
    assert math.isinf(bend.high)
    assert found.holds is None  # without feedback
    assert any("push" in line and "initial.variance" in line for line in found.advice)


def test_chosen_actuators_have_their_names():
    agent = replace(cart.agent, actuators=("bend",))
    found = gps.check(replace(cart, agent=agent, initial=OpenLoopConfig(variance=1e-6)))
    assert [a.name for a in found.actions] == ["bend"]


def test_what_does_not_hold_is_said_with_its_joint():
    falls = CART.replace('gravity="0 0 0"', 'gravity="0 0 -9.8"')
    found = gps.check(replace(cart, agent=replace(cart.agent, model=falls)))
    turn = entry(found, "joint_pos", "rad")
    assert found.holds is False
    assert turn.drift > checking.HOLDS
    assert turn.worst == "elbow"
    assert not found.good
    assert any("elbow" in line and "initial" in line for line in found.advice)
    assert "holds its start: no" in str(found)


def test_failed_rollouts_are_named_and_the_others_are_judged():
    wild = replace(cart, initial=OpenLoopConfig(variance=(1.0, 1e-4)))
    sizes = np.abs(next(iter(gps.run(wild, iterations=1))).rollouts[0].X).max(axis=(1, 2))
    limit = float(np.sort(sizes)[1:3].mean())  # between the two that go the farthest and the others
    wild = replace(wild, agent=replace(wild.agent, limit=limit))
    found = gps.check(wild)
    failed = {text.partition(", step")[0] for text in found.failures}
    assert failed == {f"condition 0, sample {n}" for n in np.flatnonzero(sizes > limit)}
    assert len(failed) == 2
    assert not found.good
    assert any("agent.dt" in line for line in found.advice)
    assert 0 < entry(found, "joint_pos", "m").explored <= limit
    stopped = gps.check(replace(wild, agent=replace(wild.agent, limit=1e-9)))
    assert len(stopped.failures) == cart.samples  # without noise nothing moves
    assert math.isnan(entry(stopped, "joint_pos", "m").explored)
    (line,) = (line for line in str(stopped).splitlines() if line.startswith("failed: "))
    assert line.startswith("failed: condition 0, sample 0, step 1, and 3 more: ")


def test_shares_of_the_cost_and_terms_without_a_say():
    sizes = gps.check(cart).terms
    rollouts = next(iter(gps.run(cart, iterations=1))).rollouts[0]
    by_hand = [0.05 * (rollouts.U**2).sum(axis=(1, 2)).mean()]
    by_hand += [((rollouts.entry("joint_pos") - 1.0) ** 2).sum(axis=(1, 2)).mean()]
    assert [t.cost for t in sizes] == pytest.approx(by_hand)
    assert sum(t.share for t in sizes) == pytest.approx(1.0)
    assert [t.name for t in sizes] == ["ActionCost", "StateCost of joint_pos"]
    mute = replace(cart, cost=1e-9 * ActionCost(weights=1.0) + cart.cost.terms[1].cost)
    assert any("cost.terms.0.weight" in line for line in gps.check(mute).advice)


def test_entries_that_never_change_are_named():
    state = ("joint_pos", "joint_vel", "sensor:rock")
    found = gps.check(replace(cart, agent=replace(cart.agent, state=state)))
    assert entry(found, "sensor:rock").constant == ("0", "1", "2")
    assert entry(found, "joint_pos", "m").constant == ()
    assert any("sensor:rock never changes" in line for line in found.advice)


def test_a_start_that_is_a_success_already():
    measure = EndpointMeasure(
        entry="joint_pos", target=(0.3, 0.4), point_size=2, threshold=0.6, unit="m"
    )
    found = gps.check(replace(cart, measure=measure))
    assert found.distance == pytest.approx(0.5)
    assert any("measure.threshold" in line for line in found.advice)
    assert "distance (m) at the end, without noise: 0.5" in str(found)
    far = gps.check(replace(cart, measure=replace(measure, threshold=0.4)))
    assert not far.succeeds


def test_conditions_are_as_many_as_asked_for_and_time_is_that_of_all():
    points = replace(
        cart,
        agent=PointMassConfig(T=10, starts=((1.0, 1.0), (1.0, -1.0), (0.5, 0.0))),
        cost=StateCost(entry="position", target=0.0, l2=1.0),
        initial=OpenLoopConfig(),
        algorithm=MDGPSConfig(),
    )
    found = gps.check(points, conditions=2)
    assert (found.conditions, found.n_conditions) == (2, 3)
    assert found.seconds_rollouts == pytest.approx(found.seconds * 3 * (cart.samples + 2))
    assert any("agent.test_conditions" in line for line in found.advice)
    assert "2 of 3 conditions" in str(found)
    with pytest.raises(gps.GPSError, match="conditions must be a whole number of at least 1"):
        gps.check(points, conditions=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["point_mass", "arm_reach", "peg_insertion", "point_mass_pigps", "cartpole_unknown"],
)
def test_the_estimate_of_what_is_stored_is_about_right(name):
    experiment = gps.load(name)
    guess, made = gps.check(experiment), gps.check(experiment, iterate=True)
    assert 0.5 < guess.bytes_iteration / made.bytes_iteration < 2.0
    assert made.bytes_run == made.bytes_iteration * experiment.iterations
    assert math.isnan(guess.seconds_iteration)
    assert made.seconds_iteration > 0


def test_the_command_prints_the_table_and_says_by_its_code_what_it_found(capsys, tmp_path):
    assert cli.main(["check", "arm_reach", "--conditions", "1"]) == 0
    assert "holds its start: yes" in capsys.readouterr().out
    falls = tmp_path / "falls.py"  # which takes gravity for nothing
    falls.write_text(
        "from dataclasses import replace\nimport gps\nfrom gps.control import HoldConfig\n"
        "assumed = HoldConfig(gains=(4.5, 31.0), variance=4.0)\n"
        "experiment = replace(gps.load('arm_reach'), initial=assumed)"
    )
    assert cli.main(["check", str(falls), "--conditions", "1"]) == 3
    text = capsys.readouterr().out
    assert "arm_reach: 1 of 4 conditions" in text
    assert "holds its start: no" in text
    assert "- joint_pos is not held" in text
    held = tmp_path / "held.py"
    held.write_text(
        "from dataclasses import replace\nimport gps\nfrom gps.agents import PointMassConfig\n"
        "experiment = replace(gps.load('point_mass'), agent=PointMassConfig(starts=((0.0, 0.0),)))"
    )
    assert cli.main(["check", str(held)]) == 0
    assert cli.main(["check", str(held), "--samples", "0"]) == 2
    assert cli.main(["check", str(held), "--frob", "0"]) == 2
    assert "unknown option --frob" in capsys.readouterr().err
    assert cli.main(["check", "--help"]) == 0
    assert "Exit code 0" in capsys.readouterr().out
    assert cli.main(["check", str(held), "--help"]) == 0
    text = capsys.readouterr().out
    assert "--iterate" in text
    assert "--agent.T" in text
    assert cli.main(["check"]) == 2
    assert "gps check needs an experiment" in capsys.readouterr().err


def link(strength, gravity=9.81, size=1.0, **options):
    """A link of 0.3 m and 1.2 kg, held out horizontally, in units of 1/size m."""
    xml = f"""<mujoco><option gravity="0 0 {-gravity * size}" timestep="0.01"/><worldbody><body>
      <joint name="sh" type="hinge" axis="0 1 0" damping="{0.1 * size**2}"/>
      <geom type="capsule" fromto="0 0 0 {0.3 * size} 0 0" size="{0.03 * size}" mass="1.2"/>
      <site name="tip" pos="{0.3 * size} 0 0"/></body></worldbody><actuator>
      <motor name="m" joint="sh" gear="{size**2}" ctrlrange="{-strength} {strength}"/></actuator>
    </mujoco>"""
    state = ("joint_pos", "joint_vel", "end_points")
    agent = MujocoConfig(model=xml, T=20, dt=0.05, state=state, sites=("tip",))
    return replace(cart, agent=agent, cost=ActionCost(weights=1.0), **options)


@pytest.mark.parametrize("initial", [HoldConfig(), OpenLoopConfig(variance=1e-6)])
def test_a_motor_that_cannot_carry_its_link_is_the_reason(initial):
    found = gps.check(link(0.01, initial=initial))
    weight = 1.2 * 9.81 * 0.15  # N m about the joint
    (cause,) = found.causes
    assert f"sh needs {weight:.2g} N m" in cause
    assert "m has 0.01 N m" in cause
    assert cause in found.advice
    assert any("moves by" in line for line in found.advice)
    assert not gps.check(link(1.1 * weight, initial=HoldConfig())).causes
    assert gps.check(link(0.9 * weight, initial=HoldConfig())).causes


def test_units_that_are_not_known_are_not_printed():
    metres = gps.check(link(10.0, initial=HoldConfig()))
    found = gps.check(link(10.0, size=1e3, initial=HoldConfig()))
    assert entry(metres, "end_points").unit == "m"
    assert entry(found, "end_points").unit == ""
    assert entry(found, "joint_pos").unit == "rad"
    (cause,) = gps.check(link(0.01, size=1e3, initial=HoldConfig())).causes
    assert "N m" not in cause
    assert "1.8e+06" in cause


@pytest.mark.parametrize(("size", "unit"), [(1.0, "m"), (1e3, ""), (1e3, "mm")])
def test_a_distance_has_the_unit_that_is_known(size, unit, tmp_path, capsys):
    own = unit if unit == "mm" else None
    measure = EndpointMeasure(target=(0.0, 0.0, 0.3 * size), threshold=0.1 * size, unit=own)
    told = replace(link(10.0, size=size), measure=measure, initial=HoldConfig())
    label = f"distance ({unit})" if unit else "distance"
    assert gps.check(told).distance_label == label
    list(gps.run(told, iterations=1, out=tmp_path / "run"))
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 0
    head = capsys.readouterr().out
    assert f" {label} " in head
    assert unit or "distance (" not in head
    (plot,) = (p for p in progress([RunReader(tmp_path / "run")]) if p.name == "distance")
    assert plot.y_label == label


def test_a_slide_in_mm_is_held_to_as_much_as_one_in_m():
    xml = """<mujoco><option gravity="0 0 -9810"/><worldbody><body><joint name="x" type="slide"
      axis="1 0 0" damping="1"/><geom size="100" mass="1"/></body></worldbody><actuator>
      <motor joint="x"/></actuator></mujoco>"""
    hit = OpenLoopConfig(variance=1e-6, mean=(40.0,))  # 40 mm/s^2 for 1 s
    agent = MujocoConfig(model=xml, T=20, dt=0.05, state=("joint_pos", "joint_vel"))
    slide = entry(
        gps.check(replace(cart, agent=agent, initial=hit, cost=ActionCost(weights=1.0))),
        "joint_pos",
    )
    assert 1.0 < slide.drift < 1e3 * checking.HOLDS == pytest.approx(slide.tolerance, rel=1e-6)


LEGS = """<mujoco><option timestep="0.005"/><worldbody><geom type="plane" size="5 5 .1"/>
  <body name="trunk" pos="0 0 .29"><freejoint name="root"/>
  <geom type="box" size=".2 .1 .04" mass="4"/>{legs}</body>
  <body name="cube" pos="3 0 .05"><freejoint/><geom type="box" size=".05 .05 .05"/></body>
  </worldbody><actuator>{motors}</actuator></mujoco>"""


def test_contacts_that_carry_the_start_are_named():
    legs = "".join(
        f'<body pos="{x} {y} 0"><joint name="h{i}" axis="0 1 0" damping=".5" armature=".01"/>'
        '<geom type="capsule" fromto="0 0 0 .05 0 -.25" size=".02" mass=".3"/></body>'
        for i, (x, y) in enumerate([(0.2, 0.12), (0.2, -0.12), (-0.2, 0.12), (-0.2, -0.12)])
    )
    motors = "".join(f'<motor joint="h{i}" gear="20" ctrlrange="-1 1"/>' for i in range(4))
    xml = LEGS.format(legs=legs, motors=motors)
    agent = MujocoConfig(model=xml, T=20, dt=0.05, state=("joint_pos", "joint_vel"))
    found = gps.check(replace(cart, agent=agent, initial=OpenLoopConfig(variance=1e-4)))
    (cause,) = found.causes  # the cube is no robot, and rests on the floor
    assert "no actuator moves root" in cause
    assert "contacts" in cause
    assert cause in found.advice
    assert entry(found, "joint_pos", "m").constant == ("cube x", "cube y")


def test_what_only_could_move_is_no_advice_whatever_its_name():
    xml = """<mujoco><worldbody><geom type="plane" size="5 5 .1"/><body pos="0 0 .1">
      <freejoint name="outside"/><geom type="box" size=".2 .2 .1" mass="9"/><body pos="0 0 .2">
      <joint name="turn" axis="0 0 1" damping="1"/><geom size=".05" mass=".1"/></body></body>
      </worldbody><actuator><motor joint="turn"/></actuator></mujoco>"""
    agent = MujocoConfig(model=xml, T=20, dt=0.05, state=("joint_pos", "joint_vel"))
    found = gps.check(replace(cart, agent=agent, initial=OpenLoopConfig(variance=1e-6)))
    assert not found.moves
    (cause,) = found.causes
    assert "no actuator moves outside" in cause
    assert cause not in found.advice


def test_a_thruster_that_is_too_weak_moves_its_body_all_the_same():
    xml = """<mujoco><worldbody><body><freejoint name="root"/><geom size=".1" mass="1"/>
      <site name="s"/></body></worldbody><actuator>
      <motor site="s" gear="0 0 1 0 0 0" ctrlrange="0 1"/></actuator></mujoco>"""
    agent = MujocoConfig(model=xml, T=20, dt=0.05, state=("joint_pos", "joint_vel"))
    found = gps.check(replace(cart, agent=agent, initial=OpenLoopConfig(variance=1e-6)))
    assert found.moves
    assert not any("no actuator moves" in cause for cause in found.causes)


def test_a_start_beyond_the_limits_of_a_joint_is_said():
    xml = link(10.0).agent.model.replace('name="sh"', 'name="sh" limited="true" range="-1.5 1.5"')
    xml = xml.replace("</mujoco>", '<keyframe><key name="up" qpos="0.5"/></keyframe></mujoco>')
    agent = replace(link(10.0).agent, model=xml, keyframe="up")
    found = gps.check(replace(link(10.0), agent=agent, initial=HoldConfig()))
    assert any(  # 1.5 degrees
        "sh starts at 0.5 rad, outside of its range -0.0262..0.0262 rad" in line
        for line in found.advice
    )
    inside = xml.replace("<mujoco>", '<mujoco><compiler angle="radian"/>')
    agent = replace(agent, model=inside)
    found = gps.check(replace(link(10.0), agent=agent, initial=HoldConfig()))
    assert not found.causes


def test_what_actions_cost_beside_the_task_is_said():
    dear = replace(cart, cost=ActionCost(weights=1e4) + cart.cost.terms[1].cost)
    assert any("ActionCost is" in line for line in gps.check(dear).advice)
    assert not any("ActionCost is" in line for line in gps.check(cart).advice)


def test_a_term_without_a_share_is_named_unless_the_robot_falls():
    small = replace(cart, cost=ActionCost(weights=1e-9) + cart.cost.terms[1].cost)
    falls = CART.replace('gravity="0 0 0"', 'gravity="0 0 -9.8"')
    falling = replace(small, agent=replace(cart.agent, model=falls))
    for experiment, named in ((small, True), (falling, False)):
        said = gps.check(experiment).advice
        assert any("ActionCost has no share" in line for line in said) is named


def test_less_noise_is_no_advice_for_an_action_at_its_limit():
    held = replace(cart, initial=OpenLoopConfig(variance=(0.01, 1e-6), mean=(2.0, 0.0)))
    (line,) = (line for line in gps.check(held).advice if "clipped" in line)
    assert "less noise alone does not help" in line


def test_less_noise_is_the_advice_where_the_noise_alone_fills_the_range():
    wide = replace(cart, initial=OpenLoopConfig(variance=(400.0, 1e-6)))
    (line,) = (line for line in gps.check(wide).advice if "clipped" in line)
    assert "less exploration (initial.variance)" in line
