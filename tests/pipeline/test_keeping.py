"""A run keeps what it was made with: models with their files, modules of a script, its options."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

import gps
from gps import cli, kept_files
from gps.agents import GymnasiumConfig, MujocoConfig, PointMassConfig
from gps.agents._kept_model import kept
from gps.agents._model import load_model, warn_once
from gps.agents.mujoco import Condition
from gps.agents.real_time import RealTimeConfig
from gps.errors import ConfigError, ExperimentError, StoreError
from gps.kept_files import KeptFiles
from gps.pipeline import config_io, keeping, loader, sending, store
from gps.pipeline.changes import Change, Changes
from gps.pipeline.store import RunFolder
from gps.protocols import KeepsFiles

ROBOT = """<mujoco>
  <compiler meshdir="../parts/meshes" texturedir="../parts"/>
  <include file="world.xml"/>
  <asset>
    <mesh name="tip" file="tip.stl"/>
    <texture name="wall" type="2d" file="wall.png"/>
    <material name="wall" texture="wall"/>
    <hfield name="floor" file="../floor.bin" size="1 1 .1 .1"/>
  </asset>
  <worldbody>
    <geom type="hfield" hfield="floor" material="wall" pos="0 0 -1"/>
    <body>
      <joint name="x" type="slide" axis="1 0 0" damping="1"/>
      <geom type="mesh" mesh="tip" mass="1"/>
    </body>
  </worldbody>
  <actuator><motor joint="x" ctrlrange="-5 5"/></actuator>
</mujoco>
"""
EXPERIMENT = """
from pathlib import Path
import gps
import mujoco
from gps.agents import MujocoConfig
from gps.algorithms import TrajOptConfig
from gps.control import HoldConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost, SumCost, WeightedCost

def made():
    return mujoco.MjSpec.from_string(Path({here!r}, "own.xml").read_text())

experiment = gps.Experiment(
    agent=MujocoConfig(model={model}, T=20),
    cost=SumCost(
        terms=(
            WeightedCost(cost=StateCost(entry="joint_pos", target=1.0, l2=10.0)),
            WeightedCost(cost=ActionCost(weights=0.01)),
        )
    ),
    initial=HoldConfig(),
    measure=EndpointMeasure(entry="joint_pos", target=(1.0,), point_size=1, threshold=0.05),
    algorithm=TrajOptConfig(),
    iterations=2,
    samples=4,
)
"""


def stl() -> bytes:
    """A tetrahedron."""
    corners = np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [0, 0, 0.1]], dtype="<f4")
    faces = [corners[list(face)] for face in ((0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3))]
    body = b"".join(bytes(12) + face.tobytes() + bytes(2) for face in faces)
    return bytes(80) + struct.pack("<I", len(faces)) + body


@pytest.fixture
def robot(tmp_path):
    """robot.xml with an include, a mesh, a texture and a height field, some in folders above."""
    from PIL import Image

    folder = tmp_path / "lab" / "robots"
    (tmp_path / "lab" / "parts" / "meshes").mkdir(parents=True)
    folder.mkdir()
    (folder / "robot.xml").write_text(ROBOT)
    (folder / "world.xml").write_text('<mujoco><option gravity="0 0 0"/></mujoco>')
    (folder / "own.xml").write_text(OWN)
    parts = tmp_path / "lab" / "parts"
    (parts / "meshes" / "tip.stl").write_bytes(stl())
    heights = np.linspace(0, 1, 9, dtype="<f4")
    (parts / "floor.bin").write_bytes(struct.pack("<ii", 3, 3) + heights.tobytes())
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(parts / "wall.png")
    return folder / "robot.xml"


OWN = """<mujoco><option gravity="0 0 0"/><worldbody><body>
<joint name="x" type="slide" axis="1 0 0" damping="1"/><geom size=".05" mass=".123456789"/></body>
</worldbody><actuator><motor joint="x" ctrlrange="-5 5"/></actuator></mujoco>"""


def experiment_of(robot: Path, model: str | None = None) -> Path:
    """A hyperparams file beside a robot."""
    path = robot.parent / "exp.py"
    path.write_text(EXPERIMENT.format(model=model or repr(str(robot)), here=str(robot.parent)))
    return path


def made(path: Path, out: Path, **options: Any) -> list[bytes]:
    """The iteration files of a run."""
    loaded = loader.load(path)
    list(gps.run(loaded.experiment, out=out, source=loaded.source, **options))
    return files_of(out)


def files_of(out: Path) -> list[bytes]:
    return [p.read_bytes() for p in sorted((out / "iterations").glob("*.h5"))]


def fields_of(model: mujoco.MjModel) -> dict[str, bytes]:
    """All arrays of a model but where the names of its files begin."""
    names = [n for n in dir(model) if not n.startswith("_") and "pathadr" not in n]
    values = {n: getattr(model, n) for n in names}
    return {n: v.tobytes() for n, v in values.items() if isinstance(v, np.ndarray)}


# --- models --------------------------------------------------------------------------------------


def test_the_kept_files_are_the_same_model_and_need_nothing_else(robot):
    before = fields_of(load_model(str(robot)))
    assert len(before) > 300
    files = kept(str(robot))
    paths = [path for path, _ in files.files]
    ends = ("robot.xml", "world.xml", "tip.stl", "wall.png", "floor.bin")
    assert len(paths) == 5
    assert all(sum(path.endswith(end) for path in paths) == 1 for end in ends)
    shutil.rmtree(robot.parents[1])
    assert fields_of(load_model(files)) == before
    assert kept(files) is files
    assert len({files, kept_files.KeptFiles("other", files.main, files.files)}) == 1


def test_names_that_lead_up_and_down_again_are_followed(robot):
    shutil.move(robot.parents[1] / "parts" / "meshes", robot.parent / "meshes")
    robot.write_text(
        "<mujoco><compiler meshdir='../robots/meshes'/><asset><mesh file='tip.stl'/></asset>"
        "<worldbody><geom type='mesh' mesh='tip'/></worldbody></mujoco>"
    )
    before = fields_of(load_model(str(robot)))
    files = kept(str(robot))
    shutil.rmtree(robot.parents[1])
    assert fields_of(load_model(files)) == before


URDF = """<robot name="bot"><!-- <mesh filename="package://bot/urdf/tip.stl"/> -->
<link name="base"><inertial><mass value="1"/>
<inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/></inertial>
<collision><geometry><mesh filename="tip.stl"/></geometry></collision></link>
<joint name="x" type="prismatic"><parent link="base"/><child link="hand"/><axis xyz="1 0 0"/>
<limit lower="-1" upper="1" effort="5" velocity="1"/></joint><link name="hand"><inertial>
<mass value="1"/><inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/></inertial></link>
</robot>"""


def test_the_folder_of_a_ros_package_keeps_its_name(tmp_path, caplog):
    (tmp_path / "bot" / "urdf").mkdir(parents=True)
    path = tmp_path / "bot" / "urdf" / "bot.xml"
    path.write_text(URDF)
    (path.parent / "tip.stl").write_bytes(stl())
    warn_once.cache_clear()
    before = fields_of(load_model(str(path)))
    assert "motors added on x (-5 to 5 N)" in caplog.text
    files = kept(str(path))
    assert [name for name, _ in files.files] == ["bot/urdf/bot.xml", "bot/urdf/tip.stl"]
    shutil.rmtree(tmp_path / "bot")
    warn_once.cache_clear()
    caplog.clear()
    assert fields_of(load_model(files)) == before
    assert not caplog.records  # it has been said when the run was made


def make_spec():
    return mujoco.MjSpec.from_string(OWN)


def test_kept_files_are_no_options(robot):
    experiment = loader.load(experiment_of(robot)).experiment
    options = loader.options(experiment)
    options.remove("--agent.model")  # a name is one as long as nothing is kept
    assert loader.options(keeping.kept(experiment)) == options


def test_a_run_takes_another_model_and_keeps_that(robot, tmp_path, capsys):
    (tmp_path / "other.xml").write_text(OWN)
    file = experiment_of(robot)
    argv = ["run", str(file), "--executor", "serial", "--iterations", "1", "--out", "other"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert cli.main([*argv, "--agent.model", "other.xml"]) == 0  # from the current folder
        (folder,) = (tmp_path / "other" / "model").iterdir()
        assert [f.name for f in folder.iterdir()] == ["other.xml"]
        capsys.readouterr()
        for options, said in (
            (["--agent.model", "gone.xml"], f"{tmp_path / 'gone.xml'}: no such file"),
            (["--agent.model"], "--agent.model needs a value, text"),
        ):
            assert cli.main([*argv[:-1], "new", *options]) == 2
            assert said in capsys.readouterr().err
        assert cli.main(["resume", "other", "--agent.model", "other.xml"]) == 2
        refusal = "'agent.model' cannot change between iterations: states, controllers and policy"
        assert refusal in capsys.readouterr().err


def test_long_texts_and_functions_are_no_options(robot):
    experiment = loader.load(experiment_of(robot)).experiment
    for model in (OWN + " " * 300, make_spec):
        agent = replace(experiment.agent, model=model)
        assert "--agent.model" not in loader.options(replace(experiment, agent=agent))


def test_files_at_absolute_paths_are_kept_as_a_compiled_model(robot):
    meshes = robot.parents[1] / "parts" / "meshes"
    robot.write_text(ROBOT.replace("../parts/meshes", str(meshes)))
    before = fields_of(load_model(str(robot)))
    files = kept(str(robot))
    assert files.main.endswith(".mjb")
    assert not files.outside()
    (meshes / "tip.stl").write_bytes(stl()[:-1] + b"\1")
    assert "tip.stl has changed" in files.outside()
    shutil.rmtree(robot.parents[1])
    assert fields_of(load_model(files)) == before


def test_a_text_is_kept_with_the_files_that_it_names(robot, monkeypatch):
    monkeypatch.chdir(robot.parent)
    before = fields_of(load_model(ROBOT))
    files = kept(ROBOT)
    assert len(files.files) == 5
    assert sorted(os.listdir()) == ["own.xml", "robot.xml", "world.xml"]
    shutil.rmtree(robot.parents[1] / "parts")
    assert fields_of(load_model(files)) == before
    assert kept(OWN) == OWN  # it is in the configuration already


def of_function():
    return mujoco.MjSpec.from_string(OWN)


def test_what_a_function_gives_is_kept_to_the_bit(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes its log of what is wrong
    files = kept(of_function)
    assert [path for path, _ in files.files] == ["of_function.mjb", "of_function.xml"]
    before = fields_of(load_model(of_function))
    monkeypatch.setattr(sys.modules[__name__], "OWN", OWN.replace(".123", ".5"))
    assert fields_of(load_model(of_function)) != before
    assert fields_of(load_model(files)) == before
    text = files.read()["of_function.xml"].decode()
    assert mujoco.MjModel.from_xml_string(text).nu == 1
    content = {**files.read(), files.main: b"MJB of another version"}
    other = KeptFiles.of(content, files.main, source="of_function()", made=files.made)
    with pytest.raises(ConfigError, match=r"of_function\(\): .* is for one version of MuJoCo"):
        load_model(other)


@pytest.mark.parametrize("missing", ["robot.xml", "world.xml", "tip.stl"])
def test_a_missing_file_is_named_before_anything_is_made(robot, missing, tmp_path):
    path = experiment_of(robot)
    next(robot.parents[1].rglob(missing)).unlink()
    with pytest.raises(ConfigError, match=missing):
        made(path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_configuration_that_has_files_keeps_them(robot):
    config = MujocoConfig(
        model="reacher",
        conditions=(Condition(), Condition(model=str(robot))),
        test_conditions=(Condition(model=of_function),),
    )
    assert isinstance(config, KeepsFiles)
    assert not isinstance(PointMassConfig(), KeepsFiles)
    found = keeping.kept({"a": (RealTimeConfig(agent=config),), "b": PointMassConfig()})
    names = [files.source for files in kept_files.found_in(found)]
    assert names == ["reacher", str(robot), "of_function()"]
    plain = PointMassConfig()
    assert keeping.kept((plain, "text"))[0] is plain
    again = keeping.kept(found)
    assert again == found


def test_a_model_file_of_a_gymnasium_environment_is_kept(tmp_path):
    gymnasium = pytest.importorskip("gymnasium")
    assets = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets"
    mine = tmp_path / "pendulum.xml"
    shutil.copy(assets / "inverted_pendulum.xml", mine)
    config = GymnasiumConfig(env="InvertedPendulum-v5", make=(("xml_file", str(mine)),), T=5)
    files = keeping.kept(config)
    assert isinstance(files, GymnasiumConfig)
    assert isinstance(files.make[0][1], KeptFiles)
    mine.unlink()
    assert files.build().nu == 1
    own = GymnasiumConfig(env="InvertedPendulum-v5", make=(("frame_skip", 2),))
    assert keeping.kept(own) == own


# --- runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [None, "made"])
def test_a_run_goes_on_with_its_own_model(robot, tmp_path, model, caplog, monkeypatch):
    path = experiment_of(robot, model)
    whole = made(path, tmp_path / "whole", iterations=3)
    made(path, tmp_path / "half")
    shutil.move(tmp_path / "half", tmp_path / "elsewhere")  # and every process forgets it
    monkeypatch.setattr(kept_files, "_places", {})
    robot.write_text(ROBOT.replace('mass="1"', 'mass="4"'))
    (robot.parent / "own.xml").write_text(OWN.replace("123456789", "5"))
    list(gps.resume(tmp_path / "elsewhere", iterations=3))
    assert files_of(tmp_path / "elsewhere") == whole
    told = f"{robot} has changed since the run was made, which uses its copy"
    assert (told in caplog.text) == (model is None)
    assert (told in (tmp_path / "elsewhere" / "log.txt").read_text()) == (model is None)
    shutil.rmtree(robot.parents[1])
    report = gps.evaluate(tmp_path / "elsewhere")
    again = gps.evaluate(tmp_path / "whole", iteration=report.iteration)
    np.testing.assert_array_equal(report.best.cost, again.best.cost)
    assert (f"{robot} is gone since the run was made" in caplog.text) == (model is None)


def test_the_kept_model_opens_by_itself_and_its_meshes_are_there_once(robot, tmp_path):
    other = robot.with_name("other.xml")
    other.write_text(ROBOT.replace("damping", 'armature="1" damping'))
    experiment = loader.load(experiment_of(robot)).experiment
    config = replace(experiment.agent, conditions=(Condition(), Condition(model=str(other))))
    folder = RunFolder.create(tmp_path / "run", keeping.kept(replace(experiment, agent=config)))
    folder.close()
    models = sorted((tmp_path / "run" / "model").rglob("*r.xml"))
    assert [path.name for path in models] == ["other.xml"]
    (model,) = (tmp_path / "run" / "model").rglob("robot.xml")
    assert mujoco.MjModel.from_xml_path(str(model)).nmesh == 1
    assert model.read_text() == ROBOT
    meshes = list((tmp_path / "run" / "model").rglob("tip.stl"))
    assert len(meshes) == 2
    assert len({mesh.stat().st_ino for mesh in meshes}) == 1


def test_a_damaged_copy_is_refused(robot, tmp_path, monkeypatch):
    made(experiment_of(robot), tmp_path / "run")
    monkeypatch.setattr(kept_files, "_places", {})
    (copy,) = (tmp_path / "run" / "model").rglob("robot.xml")
    copy.write_text(ROBOT.replace('mass="1"', 'mass="4"'))
    with pytest.raises(ConfigError, match=rf"{copy} has changed since the run was made"):
        gps.evaluate(tmp_path / "run")
    copy.unlink()
    with pytest.raises(ConfigError, match=rf"{copy} is gone since the run was made"):
        list(gps.resume(tmp_path / "run", iterations=3))
    assert len(files_of(tmp_path / "run")) == 3


def test_where_a_model_lay_changes_no_byte(robot, tmp_path):
    first = made(experiment_of(robot), tmp_path / "first")
    shutil.copytree(robot.parents[1], tmp_path / "copied")
    moved = tmp_path / "copied" / "robots" / "robot.xml"
    assert made(experiment_of(moved), tmp_path / "second") == first
    moved.write_text(ROBOT.replace('mass="1"', 'mass="4"'))
    assert made(experiment_of(moved), tmp_path / "third")[0] != first[0]


def test_a_run_in_memory_sees_a_changed_file(robot):
    experiment = loader.load(experiment_of(robot)).experiment
    costs = []
    for text in (ROBOT, ROBOT.replace('mass="1"', 'mass="4"'), ROBOT):
        robot.write_text(text)
        costs.append([r.row["cost_mean"] for r in gps.run(experiment)])
    assert costs[0] == costs[2] != costs[1]


@pytest.mark.slow
def test_workers_that_cannot_read_the_files_have_them(robot):
    from gps.parallel.executors import Dask

    experiment = keeping.kept(loader.load(experiment_of(robot)).experiment)
    expected = [r.row["cost_mean"] for r in gps.run(experiment)]
    shutil.rmtree(robot.parents[1])
    executor = Dask(workers=1)
    try:
        found = [r.row["cost_mean"] for r in gps.run(experiment, executor=executor)]
    finally:
        executor.close()
    assert found == expected


def test_the_warm_up_brings_the_files_to_a_process(robot, monkeypatch):
    from gps.pipeline.warmup import warm_up

    experiment = keeping.kept(loader.load(experiment_of(robot)).experiment)
    files = kept_files.contents(experiment)
    monkeypatch.setattr(kept_files, "_places", {})  # as in another process
    shutil.rmtree(robot.parents[1])
    with pytest.raises(ConfigError, match="are not to be had"):
        experiment.agent.build()
    warm_up(experiment, files)
    assert experiment.agent.build().nu == 1


# --- the run's own hyperparams file --------------------------------------------------------------


def edited(run: Path, old: str, new: str) -> None:
    path = run / "hyperparams.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_edited_values_are_named_as_not_used(robot, tmp_path):
    out = tmp_path / "run"
    made(experiment_of(robot), out, changes=Changes(((2, Change({"samples": "5"})),)))
    assert RunFolder.open(out).notices() == []
    (out / "hyperparams.py").touch()
    assert RunFolder.open(out).notices() == []
    edited(out, "samples=4", "samples=9")
    edited(out, "target=(1.0,)", "target=(2.0,)")
    (line,) = RunFolder.open(out).notices()
    assert "samples is 9 in hyperparams.py and 5 in the run" in line
    assert "measure.target.0 is 2.0 in hyperparams.py and 1.0 in the run" in line
    assert line.endswith(f"gps resume {out} --samples 9")
    edited(out, "samples=9", "samples=4")
    (line,) = RunFolder.open(out).notices()
    assert "samples" not in line  # it was changed in the run, not in the file
    edited(out, "target=(2.0,)", "target=(1.0,)")
    assert RunFolder.open(out).notices() == []
    edited(out, "samples=4", "samples=")
    (line,) = RunFolder.open(out).notices()
    assert "does not load" in line


def test_values_from_the_command_line_are_no_edits_until_the_file_is_edited(robot, tmp_path):
    path, out = experiment_of(robot), tmp_path / "run"
    loaded = loader.load(path)
    list(gps.run(replace(loaded.experiment, samples=6), out=out, source=path))
    assert RunFolder.open(out).notices() == []


def test_edited_code_is_named_as_used(robot, tmp_path):
    path = experiment_of(robot)
    (robot.parent / "scale.py").write_text("SCALE = 1.0\n")
    (robot.parent / "mine.py").write_text(
        "from scale import SCALE\nfrom gps.costs import ActionCost\n"
        "class MyCost(ActionCost):\n    pass\n"
    )
    text = path.read_text().replace("cost=ActionCost(", "cost=MyCost(")
    path.write_text("from mine import MyCost\n" + text)
    made(path, tmp_path / "run")
    assert RunFolder.open(tmp_path / "run").notices() == []
    (tmp_path / "run" / "scale.py").write_text("SCALE = 2.0\n")
    (line,) = RunFolder.open(tmp_path / "run").notices()
    assert f"{tmp_path / 'run' / 'scale.py'} changed since the run was made" in line
    assert line.endswith("what they define now: MyCost")


# --- changed options -----------------------------------------------------------------------------


def test_resume_changes_options_and_records_them(robot, tmp_path):
    path = experiment_of(robot)
    change = {"samples": "6", "algorithm.step.kl-max": "0.5"}
    expected = made(path, tmp_path / "whole", iterations=4, changes=Changes(((3, Change(change)),)))
    out = tmp_path / "run"
    made(path, out)
    list(gps.resume(out, iterations=3, changes={"samples": 6, "algorithm.step.kl_max": 0.5}))
    assert RunFolder.open(out).changes() == Changes(((3, Change(change)),))
    list(gps.resume(out, iterations=4))  # they hold
    assert files_of(out) == expected
    assert gps.evaluate(out, iteration=4).experiment.samples == 6
    assert gps.evaluate(out, iteration=2).experiment.samples == 4


def test_later_changes_of_the_same_options_are_forgotten(robot, tmp_path):
    out = tmp_path / "run"
    changes = ((2, Change({"samples": "5", "algorithm.step.kl-max": "0.5"}, seed=3)),)
    made(experiment_of(robot), out, changes=Changes(changes))
    list(gps.resume(out, start=0, changes={"samples": 6, "seed": 7}))
    found = RunFolder.open(out).changes()
    assert found.options(2) == {"samples": "6", "algorithm.step.kl-max": "0.5"}
    assert (found.seed(1), found.seed(2)) == (7, None)
    assert RunFolder.open(out).read_state(2).seed == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agent.dt": 0.1}, "'agent.dt' cannot change .*those of this agent"),
        ({"cost.terms.0.weight": 2}, "compared by it"),
        ({"initial.noise": 2}, "only the first iteration begins with it"),
        ({"patience": 2}, "what can: samples"),
        ({"name": "other"}, "it names the run's folder"),
        ({"sample": 3}, "did you mean samples"),
        ({"kl_max": 3}, r"did you mean algorithm\.step\.kl-max"),
        ({"samples": "many"}, "--samples must be a whole number"),
        ({"samples": 0}, "Experiment.samples must be"),
        ({"seed": -1}, "seed must be"),
        ({"algorithm.step.kl_max": None}, "--algorithm.step.kl-max must be"),
    ],
)
def test_what_cannot_change_is_refused_and_nothing_is_lost(finished, changes, message):
    before = files_of(finished)
    with pytest.raises((ConfigError, ExperimentError), match=message):
        gps.resume(finished, start=1, changes=changes).__next__()
    assert files_of(finished) == before
    assert not (finished / "changes.json").exists()
    assert not (finished / "lock").exists()


def test_where_there_is_nothing_to_do_no_change_is_recorded(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    argv = ["resume", str(run), "--executor", "serial", "--algorithm.step.kl-max", "0.5"]
    assert cli.main([*argv, "--iterations", "2"]) == 0
    out = capsys.readouterr().out
    assert "has 2 iterations; continue with --iterations 3 or more" in out.replace("\n", " ")
    assert "not recorded: --algorithm.step.kl-max" in out.replace("\n", " ")
    assert not (run / "changes.json").exists()
    assert cli.main([*argv[:4], "--iterations", "1"]) == 0
    assert "has 2 iterations" in capsys.readouterr().out


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that is only read."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "own.xml").write_text(OWN)
    made(experiment_of(folder / "own.xml"), folder / "run")
    return folder / "run"


def test_the_command_line_changes_options(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    argv = ["resume", str(run), "--executor", "serial"]
    for wrong, message in (
        (["--agent.T", "3"], "'agent.T' cannot change between iterations"),
        (["--samples"], "--samples needs a value"),
        (["--replay-batches", "3"], "is for asynchronous runs"),
        (["9"], "unrecognized arguments: 9"),
    ):
        assert cli.main([*argv, *wrong]) == 2
        assert message in capsys.readouterr().err
    options = ["--samples", "5", "--algorithm.step.kl_max=0.5", "--iterations", "3", "--seed", "4"]
    assert cli.main([*argv, *options]) == 0
    (entry,) = json.loads((run / "changes.json").read_text())["changes"]
    assert entry == {
        "iteration": 3,
        "options": {"samples": "5", "algorithm.step.kl-max": "0.5"},
        "seed": 4,
    }
    assert cli.main([*argv, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--samples (now: 5)" in text
    assert "--algorithm.step.kl-max (now: 0.5)" in text
    assert "--agent" not in text


@pytest.mark.parametrize("path", ["../robot.xml", "/etc/robot.xml", "a/../../robot.xml", ""])
def test_a_stored_path_does_not_lead_out_of_its_folder(path):
    tree = config_io.to_json(KeptFiles.of({"robot.xml": b"x"}, "robot.xml", source="robot.xml"))
    tree["fields"]["files"]["tuple"][0]["tuple"][0] = path
    with pytest.raises(ConfigError, match="must be paths below their common folder"):
        config_io.from_json(tree)
    tree = config_io.to_json(KeptFiles.of({"robot.xml": b"x"}, "robot.xml", source="robot.xml"))
    tree["fields"]["main"] = path
    with pytest.raises(ConfigError, match="must be paths below their common folder"):
        config_io.from_json(tree)


# --- experiments of scripts ----------------------------------------------------------------------

SCRIPT = """
import sys
from dataclasses import dataclass, replace
import gps
from parts.costs import MyCost
from gps.costs import SumCost, WeightedCost

class Local(MyCost):
    pass

cost = MyCost if sys.argv[2] == "module" else Local
e = gps.load("point_mass_policy")
terms = (*e.cost.terms, WeightedCost(cost=cost(weights=0.1)))
e = replace(e, cost=SumCost(terms=terms), iterations=1, samples=3)
list(gps.run(e, out=sys.argv[1]))
"""


def script(folder: Path, kind: str) -> subprocess.CompletedProcess[str]:
    (folder / "parts").mkdir()
    (folder / "parts" / "__init__.py").write_text("")
    (folder / "parts" / "scale.py").write_text("SCALE = 2.0\n")
    (folder / "parts" / "costs.py").write_text(
        "from parts.scale import SCALE\nfrom gps.costs import ActionCost\n"
        "class MyCost(ActionCost):\n    pass\n"
    )
    (folder / "train.py").write_text(SCRIPT)
    argv = [sys.executable, str(folder / "train.py"), str(folder / "run"), kind]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_script_s_experiment_is_stored_with_its_modules(tmp_path):
    done = script(tmp_path, "module")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "parts")
    assert "import parts.costs" in (tmp_path / "run" / "hyperparams.py").read_text()
    assert (tmp_path / "run" / "parts" / "scale.py").exists()
    folder = RunFolder.open(tmp_path / "run")
    assert type(folder.experiment().cost.terms[-1].cost).__name__ == "MyCost"
    assert folder.notices() == []
    gps.evaluate(tmp_path / "run")


@pytest.mark.slow
def test_what_a_script_defines_itself_is_named(tmp_path):
    error = script(tmp_path, "script").stderr.splitlines()[-1]
    assert "experiment.cost.terms[" in error
    assert "Local cannot be stored: it is defined in __main__" in error
    assert "from mine import Local" in error
    assert not (tmp_path / "run").exists()


def test_modules_of_a_script_are_copied(tmp_path, monkeypatch):
    (tmp_path / "bits").mkdir()
    (tmp_path / "bits" / "__init__.py").write_text("")
    (tmp_path / "bits" / "cost.py").write_text(
        "from helper import X\nfrom gps.costs import ActionCost\nclass Mine(ActionCost): pass\n"
    )
    (tmp_path / "helper.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    from bits.cost import Mine  # type: ignore[import-not-found]

    experiment = replace(gps.load("point_mass"), cost=Mine(weights=1.0))
    RunFolder.create(tmp_path / "run", experiment).close()
    identity = store.identity_of(experiment)
    for name in ("bits", "bits.cost", "helper"):
        sys.modules.pop(name)
    shutil.rmtree(tmp_path / "bits")
    found = RunFolder.open(tmp_path / "run").experiment()
    assert type(found.cost).__name__ == "Mine"
    assert found.cost.weights == 1.0
    assert store.identity_of(found) == identity


def installed(folder: Path) -> None:
    """A package as `pip install` puts it there."""
    package = folder / "site-packages" / "lab"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "costs.py").write_text(
        "from gps.costs import ActionCost\nclass Mine(ActionCost): pass\n"
    )


@pytest.mark.parametrize("loaded", [False, True])
def test_parts_of_an_installed_package_are_imported_by_the_run_s_copy(
    tmp_path, monkeypatch, loaded
):
    installed(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    from lab.costs import Mine  # type: ignore[import-not-found]

    path = tmp_path / "mine.py"
    path.write_text("import gps\nexperiment = gps.load('point_mass')\n")
    experiment = replace(gps.load("point_mass"), cost=Mine(weights=1.0))
    RunFolder.create(tmp_path / "run", experiment, path if loaded else None).close()
    for name in ("lab.costs", "lab"):
        sys.modules.pop(name)
    assert "import lab.costs\n" in (tmp_path / "run" / "hyperparams.py").read_text()
    folder = RunFolder.open(tmp_path / "run")
    assert type(folder.experiment().cost).__name__ == "Mine"
    (tmp_path / "run" / "hyperparams.py").write_text("")
    for name in ("lab.costs", "lab"):
        sys.modules.pop(name)
    with pytest.raises(StoreError, match=r"add: import lab\.costs"):
        folder.experiment()
    assert "lab" not in sys.modules


@dataclass(frozen=True)
class Holder(PointMassConfig):
    thing: Any = None


def test_what_cannot_be_sent_to_a_worker_is_named_with_its_field(tmp_path):
    experiment = gps.load("point_mass")
    sending.check(experiment)
    sending.check(replace(experiment, agent=Holder(thing=lambda x: x)))  # by value
    bad = replace(experiment, agent=Holder(thing={"a": (1, threading.Lock())}))
    message = re.escape("Experiment.agent.thing['a'][1] cannot be sent to a worker (TypeError")
    with pytest.raises(ConfigError, match=message):
        sending.check(bad)

    class Concurrent:
        concurrent = True

        def call(self, fn, *args): ...

        def gather(self, tree): ...

    with pytest.raises(ConfigError, match=message):
        next(gps.run(bad, executor=Concurrent(), out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_names_that_a_run_has_itself_are_refused(tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text(
        "from gps.costs import ActionCost\nclass Mine(ActionCost): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from model import Mine  # type: ignore[import-not-found]

    experiment = replace(gps.load("point_mass"), cost=Mine(weights=1.0))
    with pytest.raises(StoreError, match="where a run has its own model"):
        RunFolder.create(tmp_path / "run", experiment)
    sys.modules.pop("model")


def test_a_loaded_file_s_own_classes_are_found_without_naming_it(tmp_path):
    (tmp_path / "helper.py").write_text(
        "from gps.costs import ActionCost\nclass Mine(ActionCost): pass\n"
    )
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import replace\nimport gps\nfrom helper import Mine\n"
        "experiment = replace(gps.load('point_mass'), cost=Mine(weights=1.0))\n"
    )
    RunFolder.create(tmp_path / "run", gps.load(path)).close()
    path.unlink()
    folder = RunFolder.open(tmp_path / "run")
    assert folder.experiment().cost.weights == 1.0
    assert folder.info()["source"] == str(path)


def test_a_file_that_cannot_be_read_again_is_named_at_once(tmp_path, caplog):
    (tmp_path / "weight.txt").write_text("2.0")
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import replace\nfrom pathlib import Path\nimport gps\n"
        "from gps.costs import ActionCost\n"
        "W = float(Path(__file__).with_name('weight.txt').read_text())\n"
        "class Mine(ActionCost): pass\n"
        "experiment = replace(gps.load('point_mass'), cost=Mine(weights=W))\n"
    )
    RunFolder.create(tmp_path / "run", gps.load(path), path).close()
    assert "the run will not be readable again" in caplog.text
    assert "weight.txt" in caplog.text


def test_versions_of_simulators_are_told_where_something_is_simulated(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    facts = json.loads((run / "experiment.json").read_text())
    assert facts["versions"]["mujoco"] == mujoco.__version__
    facts["versions"]["mujoco"] = "3.0.0"
    (run / "experiment.json").write_text(json.dumps(facts))
    line = f"the run was made with mujoco 3.0.0, this is mujoco {mujoco.__version__}"
    assert line in RunFolder.open(run).notices()
    assert cli.main(["plot", str(run), "--out", str(tmp_path / "plots")]) == 0
    assert line not in capsys.readouterr().err  # nothing moves in a plot
    assert cli.main(["evaluate", str(run)]) == 0
    assert line in capsys.readouterr().err
