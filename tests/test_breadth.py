"""Robots of other packages: agents of their models, `HoldConfig()` on arms, files of `gps new`.

Of them all, the scripts in tests/benchmarks have the tables.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import mujoco
import numpy as np
import pytest

import gps
from gps import cli
from gps.agents import MocapAction, MujocoConfig
from gps.pipeline import scaffold

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".breadth"
INSTALL = "pip install --no-deps --target .breadth -r tests/breadth.txt"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def folder():
    if not FOLDER.is_dir():
        pytest.skip(f"the robots of other packages are not there: {INSTALL}")
    return FOLDER


def script(name):
    """A module of tests/benchmarks, which is no package."""
    spec = importlib.util.spec_from_file_location(
        name, ROOT / "tests" / "benchmarks" / f"{name}.py"
    )
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COUNTS = {
    "dm_control": 31,
    "gymnasium": 14,
    "gymnasium_robotics": 30,
    "metaworld": 44,
    "myo_sim": 8,
    "robosuite": 23,
}


@pytest.mark.parametrize("package", COUNTS)
def test_models_are_agents_with_the_defaults(package, folder):
    """All that plain MuJoCo steps: through its positions, and through an iteration."""
    path = ROOT / "tests" / "benchmarks" / "model_breadth.py"
    argv = [sys.executable, path, "--refused", "--timeout", "600", "--packages", package]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    n = COUNTS[package]
    assert done.stdout.startswith(f"{n} of {n} models"), done.stdout + done.stderr
    assert done.returncode == 0


ARMS = (
    "robosuite/models/assets/robots/panda/robot.xml",
    "robosuite/models/assets/robots/iiwa/robot.xml",
    "robosuite/models/assets/robots/ur5e/robot.xml",
    "robosuite/models/assets/robots/sawyer/robot.xml",
    "dm_control/suite/manipulator.xml",
    "dm_control/suite/stacker.xml",
)


@pytest.mark.parametrize("path", ARMS)
def test_an_arm_is_held(path, folder):
    hold = script("hold_arms")
    model = mujoco.MjModel.from_xml_path(str(folder / path))
    assert hold.is_arm(model)
    agent = hold.agent_of(folder / path, model)
    held = hold.measure(agent, 10, np.flatnonzero(hold.driven(model)))
    assert held.holds, str(held)
    assert held.noisy > 0.1  # it explores


def test_a_hand_that_a_mocap_body_leads_is_held(folder):
    """Fetch's seven joints are led by three displacements of its gripper, which they hold."""
    path = str(folder / "gymnasium_robotics/envs/assets/fetch/reach.xml")
    agent = MujocoConfig(
        model=path,
        T=100,
        dt=0.04,
        sites=("robot0:grip",),
        state=("joint_pos", "joint_vel", "end_points"),
        mocap_actions=(MocapAction(body="robot0:mocap"),),
    ).build()
    layout = agent.layout
    which = np.arange(layout.size)[layout.slice("end_points")]
    held = script("hold_arms").measure(agent, 10, which)
    assert held.holds, str(held)
    assert held.noisy > 0.1


MADE = (
    *(
        f"robosuite/models/assets/robots/{name}/robot.xml"
        for name in ("panda", "sawyer", "kinova3")
    ),
    *(f"dm_control/suite/{name}.xml" for name in ("cartpole", "reacher", "finger", "walker")),
    *(f"dm_control/suite/{name}.xml" for name in ("manipulator", "hopper", "pendulum")),
    *(
        f"gymnasium_robotics/envs/assets/{name}.xml"
        for name in ("fetch/reach", "adroit_hand/adroit_door")
    ),
    *(f"metaworld/assets/sawyer_xyz/sawyer_{name}.xml" for name in ("reach_v3", "drawer")),
    "myo_sim/models/legacy/finger/myofinger_v0.xml",
    *("InvertedPendulum-v5", "InvertedDoublePendulum-v5", "Reacher-v5", "Pusher-v5", "Swimmer-v5"),
    *("Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "Ant-v5"),
    *("cartpole:swingup", "reacher:easy", "finger:spin", "pendulum:swingup", "walker:walk"),
    *("cheetah:run",),
)


@pytest.mark.parametrize("source", MADE)
def test_what_gps_new_writes_runs(source, request, tmp_path, monkeypatch):
    """As written, and `gps check` finds what was found when it was written."""
    monkeypatch.chdir(tmp_path)
    if source.endswith(".xml"):
        made = scaffold.new("robot", model=str(request.getfixturevalue("folder") / source))
    elif ":" in source:
        pytest.importorskip("dm_control", reason="pip install 'guided-policy-search[dm]'")
        made = scaffold.new("robot", dm=source)
    else:
        pytest.importorskip("gymnasium", reason="pip install 'guided-policy-search[gym]'")
        made = scaffold.new("robot", env=source)
    experiment = gps.load(made.path)
    again = gps.check(experiment, conditions=2)
    assert not again.failures
    assert again.holds == made.check.holds
    assert [e.drift for e in again.entries] == [e.drift for e in made.check.entries]
    argv = ["run", str(made.path), "--iterations", "1", "--executor", "serial", "--out", "run"]
    assert cli.main(argv) == 0
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") == 2
