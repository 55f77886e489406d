"""Agents of models of many kinds, with their defaults: see tests/benchmarks/model_breadth.py."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from gps.data import MODELS, model_names

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "model_breadth.py"

HEAD = """<mujoco><option timestep="0.004" integrator="{}"/><default><geom density="300"/>
<joint damping=".2" armature=".01"/></default>
<worldbody><geom type="plane" size="3 3 .1" pos="0 0 -1"/>"""
LINK = '<geom type="capsule" fromto="0 0 0 .3 0 0" size=".03"/>'
ARM = f"""<body name="u" pos="0 0 1"><joint name="a" axis="0 1 0" range="-90 90"/>{LINK}
<site name="s0" pos=".1 0 .06"/><body name="l" pos=".3 0 0"><joint name="b" axis="0 1 0"
range="-90 90"/>{LINK}<site name="s1" pos=".1 0 .06"/></body></body>"""
MODELS_OF_A_KIND = {
    "joints": f"""{HEAD}<body name="ball" pos="0 0 1"><joint name="ball" type="ball"/>{LINK}</body>
<body name="slider" pos="0 1 1"><joint name="slide" type="slide" axis="0 0 1" stiffness="50"/>
<geom size=".1"/><body pos=".2 0 0"><joint name="hinge" axis="0 1 0"/>{LINK}</body></body>
<body name="free" pos="0 -1 0"><freejoint/><geom size=".1"/><site name="thrust"/></body>
</worldbody><actuator><motor joint="ball" gear="1 0 0"/><motor joint="ball" gear="0 0 1"/>
<motor joint="slide" ctrlrange="-5 5"/><motor joint="hinge"/><motor site="thrust"
gear="0 0 5 0 0 1" ctrlrange="0 1"/><adhesion body="free" ctrlrange="0 1" gain="10"/></actuator>
</mujoco>""",
    "tendons": f"""{HEAD}{ARM}</worldbody><tendon><fixed name="both"><joint joint="a" coef="1"/>
<joint joint="b" coef="-.5"/></fixed><spatial name="cord" stiffness="20" damping="1"><site
site="s0"/><site site="s1"/></spatial></tendon><actuator><motor tendon="both"/><position
tendon="cord" kp="20"/></actuator></mujoco>""",
    "muscles": f"""{HEAD}{ARM}</worldbody><tendon><spatial name="m" range=".1 .5"><site site="s0"/>
<site site="s1"/></spatial></tendon><actuator><muscle joint="a"/><muscle tendon="m" force="20"/>
</actuator></mujoco>""",
    "servos": f"""{HEAD}{ARM}</worldbody><actuator><position joint="a" kp="30" timeconst=".1"/>
<velocity joint="b" kv="2"/><intvelocity joint="a" kp="5" actrange="-1 1"/><damper joint="b"
kv="1" ctrlrange="0 1"/><cylinder joint="b" timeconst=".2" area="2"/><general joint="a"
gainprm="10" biastype="affine" biasprm="1 -10 -1" ctrlrange="-1 1"/></actuator></mujoco>""",
    "delays": f"""{HEAD}{ARM}</worldbody><actuator><motor joint="a" delay=".06" nsample="20"/>
<position joint="b" kp="10" delay=".01" nsample="4" interp="linear"/></actuator><sensor>
<jointpos joint="a" delay=".02" nsample="8"/></sensor></mujoco>""",
    "constraints": f"""{HEAD}{ARM}<body name="box" pos=".6 0 1.1"><freejoint/><geom type="box"
size=".05 .05 .05"/></body><body name="rod" pos="0 1 1"><joint name="c" axis="0 1 0"/>{LINK}</body>
<body name="lead" mocap="true" pos=".6 0 1.1"/></worldbody><equality><weld body1="lead"
body2="box"/><joint joint1="b" joint2="a" polycoef="0 1 0 0 0"/><connect body1="rod"
anchor=".3 0 0"/></equality><actuator><motor joint="a"/><motor joint="c"/></actuator></mujoco>""",
}
INTEGRATORS = ("Euler", "RK4", "implicit", "implicitfast")


@pytest.fixture(scope="module")
def breadth():
    spec = importlib.util.spec_from_file_location("model_breadth", SCRIPT)
    module = sys.modules["model_breadth"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["model_breadth"]


def iterated(breadth, path, text=None):
    if text is not None:
        path.write_text(text)
    found = breadth.verdict(str(path))
    assert found.kind == "iterated", found.reason


@pytest.mark.parametrize("kind", ["joints", "servos"])
def test_a_model_of_a_kind(breadth, kind, tmp_path):
    iterated(breadth, tmp_path / "model.xml", MODELS_OF_A_KIND[kind].format("implicitfast"))


@pytest.mark.slow
@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("kind", MODELS_OF_A_KIND)
def test_models_of_all_kinds(breadth, kind, integrator, tmp_path):
    iterated(breadth, tmp_path / "model.xml", MODELS_OF_A_KIND[kind].format(integrator))


@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_the_toolkits_own_models(breadth, name):
    iterated(breadth, MODELS / f"{name}.xml")


def test_what_fails_says_why(breadth, tmp_path):
    """A model that explodes under plain MuJoCo does not count, one that is refused does."""
    wild = MODELS_OF_A_KIND["tendons"].format("Euler").replace('kp="20"', 'kp="1e9"')
    (tmp_path / "wild.xml").write_text(wild)
    assert breadth.verdict(str(tmp_path / "wild.xml")).kind == "skipped"
    ipc = MODELS_OF_A_KIND["tendons"].format("discrete")
    flag = '<option solver="CG"><flag ipc="enable"/></option><worldbody>'
    ipc = ipc.replace("<worldbody>", flag)
    (tmp_path / "ipc.xml").write_text(ipc)
    found = breadth.verdict(str(tmp_path / "ipc.xml"))
    assert (found.kind, "flag ipc" in found.reason) == ("plain", True)
    (tmp_path / "part.xml").write_text("<mujocoinclude/>")
    assert breadth.verdict(str(tmp_path / "part.xml")).kind == "skipped"


@pytest.mark.slow
def test_the_table_counts(tmp_path):
    """A line for each model, by a process of its own; the exit code says whether all are good."""
    (tmp_path / "good.xml").write_text(MODELS_OF_A_KIND["joints"].format("Euler"))
    (tmp_path / "part.xml").write_text("<mujocoinclude/>")
    argv = [sys.executable, SCRIPT, tmp_path / "good.xml", tmp_path / "part.xml"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 models" in done.stdout
    assert "part.xml" not in done.stdout
    argv = [sys.executable, SCRIPT, "--timeout", "0.01", tmp_path / "good.xml"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, "takes too long" in done.stdout) == (1, True)
