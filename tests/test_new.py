"""Files that `gps new` writes: well formed, true to the model, and they run as written."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

import gps
from gps import cli
from gps.data import MODELS, model_names
from gps.errors import ConfigError, ExperimentError
from gps.pipeline import checking, scaffold
from gps.pipeline import source_text as source
from gps.pipeline.draft import CONDITIONS
from gps.pipeline.robot import Robot
from gps.pipeline.source_text import Argument, Call, Items
from gps.policies import TrainingConfig

ARM = """<mujoco model="arm"><compiler angle="radian"/><option timestep="0.004"/><worldbody>
  <camera name="side" pos="0 -2 0.5"/>
  <body name="upper" pos="0 0 0.8">
    <joint name="shoulder" axis="0 1 0" range="-1.5 1.5" damping="1"/>
    <geom type="capsule" fromto="0 0 0 0.4 0 0" size="0.03" mass="1" contype="0" conaffinity="0"/>
    <body name="fore" pos="0.4 0 0"><joint name="elbow" axis="0 1 0" range="0.1 2.5" damping="1"/>
      <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.02" mass="0.5" contype="0"
        conaffinity="0"/><site name="tool" pos="0.3 0 0"/>
    </body></body>
  %s</worldbody>
  <actuator><motor name="lift" joint="shoulder" ctrlrange="-40 40"/>
    <motor name="bend" joint="elbow" ctrlrange="-10 20" gear="0.5"/></actuator>%s</mujoco>"""
REACH = ARM % ("", "")
TARGET = ARM % (
    '<body name="cup" mocap="true" pos="0.5 0 0.6"><site name="cup"/></body>',
    '<sensor><framepos name="to_cup" objtype="site" objname="tool" reftype="site" refname="cup"/>'
    "</sensor>",
)
SERVO = """<mujoco><compiler angle="radian"/><option timestep="0.002" gravity="0 0 0"/><worldbody>
  <body><joint name="turn" axis="0 0 1" range="-2 2" damping="0.5"/>
    <geom type="capsule" fromto="0 0 0 0.4 0 0" size="0.03" mass="1"/></body></worldbody>
  <actuator><position name="servo" joint="turn" kp="20" ctrlrange="-2 2"/></actuator>
  <keyframe><key name="park" qpos="-1"/>
    <key name="home" qpos="1.2" qvel="0.1" ctrl="1.2"/></keyframe>
  </mujoco>"""
POLE = """<mujoco><compiler angle="radian"/><option timestep="0.003"/><worldbody><body>
  <joint name="rail" type="slide" axis="1 0 0" range="-2 2"/><geom size="0.1" mass="1"/>
  <body><joint name="pole" axis="0 1 0"/><geom size="0.01" pos="0 0 0.5" mass="0.1"/></body></body>
  </worldbody><actuator><motor name="push" joint="rail" ctrlrange="-5 5"/></actuator></mujoco>"""
HOPPING = """<mujoco><compiler angle="radian"/><option timestep="0.005"/><worldbody>
  <geom type="plane" size="5 5 1"/>
  <body name="trunk" pos="0 0 0.5"><freejoint name="root"/><geom size="0.1" mass="2"/>
    <body pos="0 0 -0.1"><joint name="leg" axis="0 1 0" range="-1 1" damping="0.2"/>
      <geom type="capsule" fromto="0 0 0 0 0 -0.36" size="0.04" mass="0.5"/></body></body>
  <body name="box" pos="2 0 0.1"><freejoint/><geom type="box" size="0.1 0.1 0.1" mass="1"/></body>
  </worldbody><actuator><motor joint="leg" ctrlrange="-8 8"/></actuator></mujoco>"""
MUSCLE = """<mujoco><compiler angle="radian"/><option timestep="0.005" gravity="0 0 0"/>
  <worldbody><site name="wall" pos="0 0 0.1"/>
  <body pos="0 0 0"><joint name="wrist" axis="0 1 0" range="-1 1" limited="true" damping="0.3"
    stiffness="2"/><geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.02" mass="0.5"/>
    <site name="insertion" pos="0.1 0 0.03"/></body></worldbody>
  <tendon><spatial name="cord"><site site="wall"/><site site="insertion"/></spatial></tendon>
  <actuator><muscle name="flexor" tendon="cord" force="20" lengthrange="0.05 0.2"/></actuator>
  </mujoco>"""
LED = """<mujoco><compiler angle="radian"/><option timestep="0.004" gravity="0 0 0"/><worldbody>
  <body name="lead" mocap="true" pos="0.3 0 0.3"/>
  <body name="x"><joint name="x" type="slide" axis="1 0 0" damping="5"/><geom size="0.05" mass="1"/>
    <body name="z"><joint name="z" type="slide" axis="0 0 1" damping="5"/>
      <geom size="0.04" mass="1"/><site name="tip"/>
      <body pos="0 0.05 0"><joint name="finger" type="slide" axis="0 1 0"
        range="0 0.04" damping="1"/><geom size="0.01" mass="0.05"/></body></body></body></worldbody>
  <equality><weld body1="lead" body2="z" solref="0.02 1"
    relpose="0 0 0 1 0 0 0"/></equality>
  <actuator><position name="grip" joint="finger" kp="50" ctrlrange="0 0.04"/></actuator></mujoco>"""
TEXTS = {
    "led": LED,
    "reach": REACH,
    "target": TARGET,
    "servo": SERVO,
    "pole": POLE,
    "hopping": HOPPING,
    "muscle": MUSCLE,
}


def write(folder, name):
    """The model as a file, and the experiment that is written for it."""
    (folder / f"{name}.xml").write_text(TEXTS[name])
    made = scaffold.new(f"my_{name}", model=f"{name}.xml", folder=folder)
    return made, gps.load(made.path), made.path.read_text()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tool(*argv, text=None):
    """A tool's exit code and what it says."""
    done = subprocess.run(
        [sys.executable, "-m", *argv], input=text, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def formatted(text):
    """Whether ruff leaves the source as it is, at its own width and at that of this project."""
    for width in (88, 100):
        code, said = tool(
            *("ruff", "format", "--isolated", f"--line-length={width}", "--diff", "-"), text=text
        )
        assert code == 0, said


# --- the writer

NUMBERS = st.floats(-1e6, 1e6).map(source.number) | st.integers(-999, 999)
WORDS = st.text("abcdefghijklmnop _-:'", max_size=30)
VALUES = st.recursive(
    NUMBERS | WORDS | st.booleans() | st.none(),
    lambda inner: st.lists(inner, min_size=1, max_size=12).map(tuple),
    max_leaves=30,
)
CALLS = st.recursive(
    VALUES,
    lambda inner: st.builds(
        Call,
        st.just("dict"),
        st.lists(
            st.builds(
                Argument,
                inner,
                st.sampled_from(["alpha", "beta", "gamma", "a_rather_long_name_of_an_option"]),
                above=st.sampled_from(["", "why it is so", "long " * 30]),
                after=st.sampled_from(["", "a unit"]),
            ),
            min_size=1,
            max_size=4,
            unique_by=lambda a: a.keyword,
        ).map(tuple),
        st.booleans(),
    ),
    max_leaves=6,
)


def plain(value):
    if isinstance(value, Call):
        return {a.keyword: plain(a.value) for a in value.arguments}
    return value


def test_written_values_are_read_back_and_formatted():
    written = []

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(CALLS)
    def read_back(value):
        lines = source.assigned("found", value)
        scope = {}
        exec("\n".join(lines), scope)
        assert scope["found"] == plain(value)
        written.extend([*lines, ""])

    read_back()
    formatted("\n".join(written).rstrip() + "\n")


def test_a_tuple_of_one_item_stands_at_any_width():
    """Its comma is no reason for a formatter to keep its lines."""
    inner = ("lhmf", True, None, None, -108000.0, 0.0, False, 983000.0, "p_k")
    lines = source.assigned("found", (((-6.58e-160,), inner),))
    assert max(map(len, lines)) <= 88 < len(f"found = {(((-6.58e-160,), inner),)}") <= 100
    formatted("\n".join([*lines, ""]))


def test_sums_and_items_with_their_comments():
    terms = [
        Argument(Call.of("int", x=3), above="first"),
        Argument(Call.of("float", x=tuple(range(40))), above="second " * 30),
    ]
    weights = Items(tuple(i / 8 for i in range(30)), tuple(f"joint {i}" for i in range(30)))
    short = Items((1.0, 2.0), ("a", "b"))
    lines = [*source.sum_of("cost", terms), *source.assigned("weights", weights)]
    lines += source.assigned("short", short)
    formatted("\n".join([*lines, ""]))
    assert "    0.125,  # joint 1" in lines
    assert lines[-1] == "short = (1.0, 2.0)"


# --- what is written for a model


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_for_a_model_is_formatted_and_builds_what_its_check_saw(name, here):
    made, experiment, text = write(here, name)
    formatted(text)
    code, said = tool("ruff", "check", "--isolated", "--select=E,F,I,W,B,UP", "-", text=text)
    assert code == 0, said
    model = mujoco.MjModel.from_xml_string(TEXTS[name])
    agent = experiment.validate()
    assert agent.nu == model.nu + 3 * (name == "led")
    steps = experiment.agent.dt / model.opt.timestep
    assert steps == pytest.approx(round(steps))
    assert agent.n_conditions >= 2
    assert agent.n_test_conditions >= 5
    starts = [agent.start_state(m).tobytes() for m in range(agent.n_conditions)]
    assert len(set(starts)) == len(starts)
    assert not made.check.failures
    assert not made.check.succeeds
    for j in range(model.njnt):
        if model.joint(j).name:
            assert f"# {model.joint(j).name} " in text
    for i in range(model.nu):
        if model.actuator(i).name:
            assert f"# {model.actuator(i).name} " in text
    again = gps.check(experiment, conditions=2)
    assert again.holds == made.check.holds
    assert [e.drift for e in again.entries] == [e.drift for e in made.check.entries]


def test_a_site_is_taken_to_where_it_can_go(here):
    _, experiment, text = write(here, "reach")
    target = np.array(experiment.measure.target)
    assert experiment.agent.sites == ("tool",)
    assert experiment.cost.terms[0].cost.target == experiment.measure.target
    assert experiment.measure.unit == "m"
    model = mujoco.MjModel.from_xml_string(REACH)
    data = mujoco.MjData(model)

    def off(q):
        data.qpos[:] = q
        mujoco.mj_kinematics(model, data)
        return data.site("tool").xpos - target

    start = np.array(experiment.agent.qpos)  # the model's own pose is outside of the elbow's range
    assert (start == [0.0, 1.3]).all()
    assert np.linalg.norm(off(start)) == pytest.approx(10 * experiment.measure.threshold, rel=0.5)
    low, high = model.jnt_range.T
    assert np.abs(least_squares(off, start, bounds=(low, high)).fun).max() < 2e-3
    assert "cameras: side" in text


def test_actions_weigh_alike_at_the_ends_of_their_ranges(here):
    _, experiment, _ = write(here, "reach")
    weights = np.array(experiment.cost.terms[1].cost.weights)
    at_the_end = 0.5 * weights * np.array([40.0, 15.0]) ** 2
    assert at_the_end == pytest.approx(at_the_end[0], rel=0.01)


def test_a_sensor_of_a_mocap_target_is_what_the_cost_is_about(here):
    _, experiment, text = write(here, "target")
    assert experiment.cost.terms[0].cost.entry == experiment.measure.entry == "sensor:to_cup"
    assert set(experiment.measure.target) == {0.0}
    places = np.array([c.mocap[0][1] for c in experiment.agent.conditions])
    assert experiment.agent.conditions[0].mocap[0][0] == "cup"
    assert (np.linalg.norm(places - [0.0, 0.0, 0.8], axis=1) < 0.7).all()  # the arm's length
    assert np.ptp(places, axis=0)[[0, 2]].min() > 0.01
    assert "mocap bodies: cup" in text
    assert "to_cup (framepos, 3)" in text


def test_the_start_is_the_keyframe_home(here):
    _, experiment, text = write(here, "servo")
    x0 = experiment.agent.build().start_state(0)
    offset = experiment.agent.conditions[0].qpos_offset
    assert x0 == pytest.approx([1.2 + offset[0], 0.1])
    assert "keyframes: park, home" in text
    assert "position" in text
    goal = experiment.measure.target[0]
    assert -2 <= goal < 1.2  # on the side on which there is more room


def test_an_unstable_start_has_steps_that_are_short_beside_it():
    robot = Robot(mujoco.MjModel.from_xml_string(POLE))
    growth = np.sqrt(9.81 / 0.5 * 1.1)  # of a point mass on a cart that is free to move
    timing = robot.timing()
    assert timing.dt <= 1 / growth / 5 + robot.model.opt.timestep
    assert "unstable" in timing.reason
    assert 1.0 - timing.dt <= timing.T * timing.dt <= 5.0 + timing.dt


def test_horizons_follow_the_actuators_strength():
    weak = mujoco.MjModel.from_xml_string(REACH.replace("-40 40", "-4 4").replace("-10 20", "-1 1"))
    strong = Robot(mujoco.MjModel.from_xml_string(REACH)).timing()
    slow = Robot(weak).timing()
    assert slow.T * slow.dt > 1.5 * strong.T * strong.dt


def test_what_nothing_drives_is_left_alone(here):
    _, experiment, _ = write(here, "hopping")
    weights = np.array(experiment.cost.terms[0].cost.weights)
    assert weights[:2].tolist() == [0.0, 0.0]  # the trunk may wander
    assert weights[2:7].tolist() == [1.0] * 5  # and stays up
    assert weights[7:].tolist() == [0.0] * 6  # the box
    shifts = np.array(experiment.agent.conditions[0].qpos_offset)
    assert shifts[6] != 0
    assert np.count_nonzero(shifts) == 1


def test_muscles_have_their_activation_in_the_state(here):
    _, experiment, text = write(here, "muscle")
    assert "activation" in experiment.agent.state
    assert "muscle" in text
    assert "tendon cord" in text


def test_a_robot_that_a_mocap_body_leads_is_led_by_actions(here):
    _, experiment, text = write(here, "led")
    assert [a.body for a in experiment.agent.mocap_actions] == ["lead"]
    assert experiment.agent.qpos[:2] == pytest.approx((0.3, 0.3), abs=0.02)  # where it is led
    assert experiment.agent.sites == ("tip",)
    assert experiment.agent.relative is True
    assert "Where the mocap bodies have led it." in text
    assert len(experiment.cost.terms[1].cost.weights) == 4


def test_a_gripper_that_starts_closed_has_its_noise_clipped_by_half(here):
    made, _, text = write(here, "led")
    (grip,) = (a for a in made.check.actions if a.name == "grip")
    assert grip.clipped > 0.2
    assert grip.rests_at_end
    assert "HoldConfig()" in text
    assert not any("clipped" in line for line in made.check.advice)


def test_steps_and_keyframes_are_left_to_the_model(here):
    _, experiment, text = write(here, "servo")
    assert experiment.agent.keyframe == "home"
    assert experiment.agent.qpos is None
    assert experiment.agent.substeps is None
    assert experiment.agent.relative is True
    assert "of the model's own steps of 2 ms" in text


# --- files


def test_files_are_not_written_over_without_being_asked(here, capsys):
    (here / "reach.xml").write_text(REACH)
    mine = here / "mine.py"
    mine.write_text("mine")
    argv = ["new", "mine", "--model", "reach.xml"]
    assert cli.main(argv) == 2
    assert "--force" in capsys.readouterr().err
    assert mine.read_text() == "mine"
    assert cli.main([*argv, "--force"]) == 0
    assert "gps run mine.py" in capsys.readouterr().out
    assert gps.load(mine).agent.model.endswith("reach.xml")


def test_what_cannot_be_an_agent_leaves_everything_as_it_was(here):
    (here / "still.xml").write_text("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
    with pytest.raises(ConfigError, match="has no actuators"):
        scaffold.new("still", model="still.xml")
    assert not (here / "still.py").exists()
    old = here / "old.py"
    old.write_text("old")
    (here / "wild.xml").write_text(REACH.replace("<worldbody>", "<worldbdy>"))
    with pytest.raises(gps.GPSError):
        scaffold.new("old", model="wild.xml", force=True)
    assert old.read_text() == "old"
    with pytest.raises(ConfigError, match="one of model, env and dm"):
        scaffold.new("none")
    with pytest.raises(ExperimentError, match="not a name"):
        scaffold.new("../x", model="reacher")


def test_a_file_with_which_nothing_works_is_taken_back(here, monkeypatch):
    def fails(*args, **options):
        raise ConfigError("the robot has left")

    monkeypatch.setattr(scaffold, "check", fails)
    with pytest.raises(ConfigError, match="the robot has left"):
        scaffold.new("fresh", model="reacher")
    assert not (here / "fresh.py").exists()
    (here / "old.py").write_text("old")
    with pytest.raises(ConfigError, match="the robot has left"):
        scaffold.new("old", model="reacher", force=True)
    assert (here / "old.py").read_text() == "old"


def test_initial_controllers_with_which_something_is_wrong_are_passed_over(here, monkeypatch):
    real, seen = scaffold.check, []

    def judge(experiment, **options):
        seen.append(type(experiment.initial).__name__)
        found = real(experiment, **options)
        return replace(found, failures=("all",)) if seen[-1] == "HoldConfig" else found

    monkeypatch.setattr(scaffold, "check", judge)
    (here / "reach.xml").write_text(REACH.replace("timestep", "gravity='0 0 0' timestep"))
    made = scaffold.new("mine", model="reach.xml")
    assert seen[:2] == ["HoldConfig", "OpenLoopConfig"]
    assert type(gps.load(made.path).initial).__name__ == "OpenLoopConfig"
    assert made.check.failures == ()


# --- environments


def test_a_file_for_an_environment(here):
    pytest.importorskip("gymnasium")
    made = scaffold.new("swing", env="Pendulum-v1")
    text = made.path.read_text()
    formatted(text)
    experiment = gps.load(made.path)
    agent = experiment.validate()
    assert (agent.T, agent.nu, agent.n_conditions) == (100, 1, CONDITIONS)
    assert experiment.agent.termination == "end"
    assert experiment.evaluation_steps == 201
    assert experiment.algorithm.train_until < 1
    assert "The environment's own limit is 200." in text
    assert experiment.initial.variance == pytest.approx((0.3 * 2.0) ** 2)
    assert "reward" in agent.layout.names
    with pytest.raises(ConfigError, match="Nowhere-v0"):
        scaffold.new("nowhere", env="Nowhere-v0")
    assert not (here / "nowhere.py").exists()


@pytest.mark.parametrize(("lasts", "T"), [(24, 96), (7, 40)])
def test_rollouts_are_some_times_as_long_as_an_environment_lasts(lasts, T, caplog):
    gymnasium = pytest.importorskip("gymnasium")

    class Falls(gymnasium.Env):
        """Ends after so many steps, whatever is done."""

        metadata = {"render_modes": []}  # noqa: RUF012
        dt = 0.05
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t, self.x = 0, self.np_random.normal(size=1).astype(np.float32)
            return self.x, {}

        def step(self, action):
            self.t, self.x = self.t + 1, self.x + action
            return self.x, -float(self.x[0] ** 2), self.t >= lasts, False, {}

    gymnasium.register("Falls-v0", Falls, max_episode_steps=500)
    try:
        made = scaffold.new("falls", env="Falls-v0")
        text = " ".join(made.path.read_text().replace("#", "").split())
        assert f"Half of the first samples would end by step {lasts}." in text
        experiment = gps.load(made.path)
        assert experiment.agent.T == T  # so that to fall costs more than the last steps
        assert experiment.evaluation_steps == 501
        assert "by episodes of 500 actions" in text
        assert made.check.unrewarded == ""
        caplog.clear()
        next(gps.run(experiment, iterations=1))
        assert "before half of T" not in caplog.text  # what is written is not warned of
    finally:
        del gymnasium.registry["Falls-v0"]


def test_an_environment_by_its_module(here, monkeypatch):
    """As Gymnasium names one that is registered when its module is imported."""
    gymnasium = pytest.importorskip("gymnasium")
    (here / "my_environments.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import PendulumEnv\n"
        "gymnasium.register('Mine-v0', PendulumEnv, max_episode_steps=90)\n"
    )
    monkeypatch.syspath_prepend(here)
    try:
        made = scaffold.new("mine", env="my_environments:Mine-v0")
        assert "The environment's own limit is 90." in made.path.read_text()
    finally:
        gymnasium.registry.pop("Mine-v0", None)
        sys.modules.pop("my_environments", None)


def test_an_environment_that_rewards_nothing_near_its_start_is_named_so():
    gymnasium = pytest.importorskip("gymnasium")

    class Sparse(gymnasium.Env):
        """A long way to the reward, and actions cost something."""

        metadata = {"render_modes": []}  # noqa: RUF012
        dt = 0.05
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.x = self.np_random.normal(size=1).astype(np.float32)
            return self.x, {}

        def step(self, action):
            self.x = self.x + 0.1 * action[:1]
            reward = 100.0 * (self.x[0] > 50) - 0.1 * float(action @ action)
            return self.x, reward, False, False, {}

    gymnasium.register("Sparse-v0", Sparse, max_episode_steps=500)
    try:
        made = scaffold.new("sparse", env="Sparse-v0")
        assert "the reward is that of the actions alone" in str(made)
        experiment = gps.load(made.path)
        assert made.check.unrewarded in gps.check(experiment).advice
        quick = replace(experiment.algorithm, training=TrainingConfig(steps=5))
        experiment = replace(experiment, agent=replace(experiment.agent, T=20), algorithm=quick)
        first, second = gps.run(experiment, iterations=2)
        assert made.check.unrewarded in first.news
        assert "reward" not in second.news
        assert made.check.unrewarded in next(gps.run_asynchronous(experiment)).news
    finally:
        del gymnasium.registry["Sparse-v0"]


def test_a_task_of_dm_control(here):
    pytest.importorskip("dm_control")
    made = scaffold.new("swing_up", dm="cartpole:swingup")
    formatted(made.path.read_text())
    experiment = gps.load(made.path)
    assert (experiment.agent.domain, experiment.agent.task) == ("cartpole", "swingup")
    assert experiment.agent.build().dt == pytest.approx(0.04)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TEXTS, *model_names(), "Reacher-v5", "InvertedPendulum-v5"])
def test_files_run_as_written(name, here):
    if name in TEXTS:
        made, experiment, _ = write(here, name)
    elif name in model_names():
        made = scaffold.new("made", model=name)
    else:
        made = scaffold.new("made", env=name)
    experiment = gps.load(made.path)
    out = here / "run"
    argv = ["run", str(made.path), "--iterations", "2", "--executor", "serial", "--out", str(out)]
    assert cli.main(argv) == 0
    first = next(iter(gps.run(experiment, iterations=1)))
    found = checking.check(experiment)
    for e in found.entries:  # the rollouts of the check are those of the first iteration
        x0 = [r.X[:, :1] for r in first.rollouts]
        own = experiment.agent.build().layout
        if own.length(e.name) == e.size and experiment.agent.build().n_start == 0:
            away = [
                np.abs(r.entry(e.name) - s[..., own.slice(e.name)]).max()
                for r, s in zip(first.rollouts, x0, strict=True)
            ]
            assert e.explored == pytest.approx(max(away), abs=1e-12)


@pytest.mark.slow
def test_written_files_are_typed(here):
    for name in TEXTS:
        write(here, name)
    root = Path(gps.__file__).parent.parent
    files = [str(p) for p in here.glob("my_*.py")]
    code, said = tool("mypy", "--config-file", str(root / "setup.cfg"), *files)
    assert code == 0, said
    assert MODELS.is_dir()


WEAK = """<mujoco><option timestep="0.004"/><worldbody><body><joint name="sh" axis="0 1 0"
  damping="0.1"/><geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.03" mass="1.2"/>
  <site name="tip" pos="0.3 0 0"/></body></worldbody>
  <actuator><motor name="m" joint="sh" ctrlrange="-0.01 0.01"/></actuator></mujoco>"""


def test_a_start_that_the_motors_cannot_hold_is_said_with_the_reason(here):
    Path("weak.xml").write_text(WEAK)
    made = scaffold.new("weak_arm", model="weak.xml")
    said = str(made)
    assert "HoldConfig is not what it starts with: sh moves by" in said
    assert "m has 0.01 N m" in said


def test_the_same_robot_in_mm_has_no_unit_of_length(here):
    text = WEAK.replace("0.3 0 0", "300 0 0").replace('size="0.03"', 'size="30"')
    text = text.replace('timestep="0.004"', 'timestep="0.004" gravity="0 0 -9810"')
    text = text.replace('damping="0.1"', 'damping="1e5"').replace("0.01 0.01", "1e7 1e7")
    Path("mm.xml").write_text(text)
    made = scaffold.new("mm_arm", model="mm.xml")
    assert made.check.holds
    assert not any(e.unit.startswith("m") for e in made.check.entries)
    assert made.check.distance_label == "distance"
    assert " m from the target" not in made.path.read_text()


def test_an_actuator_without_limits_is_as_strong_as_its_load_asks_for(here):
    text = WEAK.replace('ctrlrange="-0.01 0.01"', "")
    robot = Robot(mujoco.MjModel.from_xml_string(text))
    M = np.zeros((1, 1))
    mujoco.mj_fullM(robot.model, robot.data, M)
    assert robot.half_range[0] == pytest.approx(1.2 * 9.81 * 0.15 + 10 * M[0, 0])
    Path("free.xml").write_text(text)
    made = scaffold.new("free_arm", model="free.xml")
    assert made.check.holds
    assert next(t.share for t in made.check.terms if t.name == "ActionCost") < 0.2


def test_controls_of_muscles_are_within_what_mujoco_clamps_them_to():
    text = WEAK.replace("motor", "muscle").replace('ctrlrange="-0.01 0.01"', 'force="10"')
    text = text.replace('name="sh"', 'name="sh" range="-90 90" limited="true"')
    robot = Robot(mujoco.MjModel.from_xml_string(text))
    assert robot.half_range.tolist() == [0.5]
    assert robot.bounded
    assert any("0 .. 1" in line for line in robot.inventory())


LED = """<mujoco><worldbody><body name="mc" mocap="true" pos="0 0 .3"/>
  <body name="hand" pos="0 0 .3"><freejoint name="hf"/>
  <geom type="box" size=".04 .02 .02" mass=".5"/><site name="grip"/>
  <body pos=".04 0 0"><joint name="fj" axis="0 1 0" damping=".05" range="-60 60" limited="true"/>
  <geom type="capsule" fromto="0 0 0 .05 0 0" size=".008" mass=".03"/></body></body></worldbody>
  <equality><weld body1="mc" body2="hand"/></equality>
  <actuator><position name="pf" joint="fj" kp="2" ctrlrange="-1 1"/></actuator></mujoco>"""


def test_what_a_mocap_body_leads_goes_somewhere_else():
    point = Robot(mujoco.MjModel.from_xml_string(LED)).point()
    assert point is not None
    assert point.site == "grip"
    assert (point.target > point.start + 0.01).all()


def test_what_stands_on_legs_stays_up_first(here):
    legs = "".join(
        f'<body pos="{x} {y} 0"><joint name="h{i}" axis="0 1 0" damping=".5" armature=".01"/>'
        '<geom type="capsule" fromto="0 0 0 .05 0 -.25" size=".02" mass=".3"/></body>'
        for i, (x, y) in enumerate([(0.2, 0.12), (0.2, -0.12), (-0.2, 0.12), (-0.2, -0.12)])
    )
    motors = "".join(f'<motor joint="h{i}" gear="20" ctrlrange="-1 1"/>' for i in range(4))
    Path("legs.xml").write_text(
        '<mujoco><worldbody><geom type="plane" size="5 5 .1"/><body pos="0 0 .275">'
        f'<freejoint name="root"/><geom type="box" size=".2 .1 .04" mass="4"/>{legs}</body>'
        f"</worldbody><actuator>{motors}</actuator></mujoco>"
    )
    made = scaffold.new("legs_up", model="legs.xml")
    assert "stay up where it starts" in made.path.read_text()
    if made.check.holds is not True:
        assert "no actuator moves root" in str(made)


@pytest.mark.slow
def test_trials_say_nothing_and_shorter_horizons_are_tried_with_feedback_again(here, caplog):
    pytest.importorskip("gymnasium")
    made = scaffold.new("two_poles", env="InvertedDoublePendulum-v5")
    assert not caplog.records
    assert "HoldConfig()" in made.path.read_text()


def test_what_is_no_model_or_no_experiment_is_named_as_what_it_is(here, capsys):
    Path("weak.xml").write_text(WEAK)
    Path("folder").mkdir()
    Path("bad.xml").write_text("garbage")
    Path("gone.xml").write_text('<mujoco><asset><mesh file="gone.obj"/></asset></mujoco>')
    for argv, said in (
        (["check", "weak.xml"], "weak.xml is a model, no hyperparams file; gps new NAME --model"),
        (["new", "q", "--model", ""], "got an empty text"),
        (["new", "q", "--model", "folder"], "folder is a folder"),
        (["new", "q", "--model", "bad.xml"], "no valid XML, at line 1 (text)"),
        (["new", "q", "--model", "gone.xml"], f"'gone.obj', looked for in {Path.cwd()}"),
    ):
        assert cli.main(argv) == 2
        text = capsys.readouterr().err
        assert said in text
        assert text.count("\n") == 1
    assert not Path("q.py").exists()
