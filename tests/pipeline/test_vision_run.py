"""Runs whose policy sees: from pictures in the rollouts to an exported policy."""

import hashlib
from dataclasses import replace

import mujoco
import numpy as np
import pytest

import gps
from gps import cli
from gps.agents import Condition, MujocoConfig, as_gymnasium
from gps.agents.rendering import Renderer
from gps.algorithms import MDGPSConfig, TrajOptConfig
from gps.errors import ConfigError, GPSError
from gps.parallel import Dask
from gps.pipeline.store import RunFolder
from gps.policies import MLPConfig, SGDConfig, TrainingConfig

EXPERIMENT = '''
"""A disc moves to the middle of the picture; only a picture tells the policy where it is."""

from gps.agents import Condition, MujocoConfig
from gps.algorithms import MDGPSConfig
from gps.control.initial import HoldConfig
from gps.costs import ActionCost, EndpointMeasure, StateCost, SumCost, WeightedCost
from gps.pipeline.experiment import Experiment
from gps.policies import MLPConfig, TrainingConfig, VisionConfig

MODEL = """
<mujoco>
  <option timestep="0.01" gravity="0 0 0"/>
  <worldbody>
    <light pos="0 0 2" dir="0 0 -1" directional="true" castshadow="false"/>
    <camera name="top" pos="0 0 2" fovy="60"/>
    <geom type="plane" size="2 2 0.1" contype="0" conaffinity="0" rgba="0.3 0.3 0.35 1"/>
    <body name="disc">
      <joint name="x" type="slide" axis="1 0 0" damping="1"/>
      <joint name="y" type="slide" axis="0 1 0" damping="1"/>
      <geom type="cylinder" size="0.12 0.02" mass="1" rgba="0.9 0.3 0.2 1"/>
      <site name="disc"/>
    </body>
  </worldbody>
  <actuator><motor joint="x"/><motor joint="y"/></actuator>
</mujoco>
"""
STARTS = ((0.6, 0.6), (0.6, -0.6), (-0.6, 0.6), (-0.6, -0.6))

experiment = Experiment(
    description="a disc moves to the middle of a picture",
    agent=MujocoConfig(
        model=MODEL,
        T=20,
        dt=0.1,
        substeps=5,
        sites=("disc",),
        obs=("joint_vel",),
        cameras=("top",),
        image_size=(32, 32),
        conditions=tuple(Condition(qpos=q) for q in STARTS),
        test_conditions=(Condition(qpos=(0.3, 0.1)), Condition(qpos=(-0.2, 0.5))),
        start_qpos_std=0.1,
    ),
    cost=SumCost(
        terms=(
            WeightedCost(weight=0.01, cost=ActionCost(weights=1.0)),
            WeightedCost(cost=StateCost(entry="joint_pos", target=0.0, l2=1.0)),
        )
    ),
    initial=HoldConfig(gains=(1.0, 1.0)),
    measure=EndpointMeasure(entry="joint_pos", target=(0.0, 0.0), point_size=2, threshold=0.15),
    algorithm=MDGPSConfig(
        network=VisionConfig(
            head=MLPConfig(hidden=(20,), activation="tanh"),
            channels=(8, 8),
            kernels=(5, 3),
            strides=(2, 1),
            pose=("joint_pos",),
            first_steps=200,
            steps=50,
        ),
        training=TrainingConfig(steps=1000),
        replay=8,
    ),
    samples=4,
    iterations=4,
)
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment") / "seen.py"
    path.write_text(EXPERIMENT)
    try:
        gps.load(path).agent.build().rollout(Still(), 0, np.zeros((1, 20, 2)))
    except GPSError as error:
        if "OpenGL" in str(error):
            pytest.skip(str(error))
        raise
    return path


@pytest.fixture(scope="module")
def run(file, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "seen"
    reports = list(gps.run(gps.load(file), out=out))
    return out, reports


class Still:
    """A policy that does nothing, and sees nothing."""

    def act(self, x, obs, t, noise):
        return np.zeros_like(noise)


class Watching(Still):
    """The same with its eyes open."""

    needs_images = True

    def __init__(self):
        self.seen = []

    def act(self, x, obs, t, noise, images):
        assert not images.flags.writeable
        self.seen.append(images.copy())
        return np.zeros_like(noise)


def drawn(monkeypatch):
    """Counts the images that are drawn from now on."""
    counted, real = [0], Renderer.render

    def render(self, model, qpos, *args, **kwargs):
        counted[0] += len(qpos)
        return real(self, model, qpos, *args, **kwargs)

    monkeypatch.setattr(Renderer, "render", render)
    return counted


def test_nothing_is_drawn_that_nobody_looks_at(file, monkeypatch):
    seeing = replace(gps.load(file), iterations=1)
    M, N, T = seeing.agent.build().n_conditions, seeing.samples, seeing.agent.T
    count = drawn(monkeypatch)
    (report,) = gps.run(seeing)
    assert report.rollouts[0].images is not None  # the convolutions learn from them
    assert count[0] == M * T * (N + 1)  # the rollouts, and the policy's score
    local = replace(seeing, algorithm=TrajOptConfig())
    blind = replace(
        seeing, algorithm=MDGPSConfig(network=MLPConfig(), training=TrainingConfig(steps=10))
    )
    for experiment in (local, blind):
        count = drawn(monkeypatch)
        (report,) = gps.run(experiment)
        assert count == [0]
        assert report.rollouts[0].images is None
    agent = local.agent.build()
    asked = agent.rollout(Still(), 0, np.zeros((2, T, 2)))
    assert asked.images.shape == (2, T, 32, 32, 3)  # who rolls out without a run asks for them


@pytest.mark.parametrize("value", ["glfw", "GLFW "])
def test_a_window_without_a_display_is_refused_before_the_first_rollout(file, value, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MUJOCO_GL", value)
    message = "MUJOCO_GL=glfw needs a display, and DISPLAY is not set"
    with pytest.raises(GPSError, match=message):
        gps.load(file).validate()
    with pytest.raises(GPSError, match=message):
        Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), (-1,))
    replace(gps.load(file), algorithm=TrajOptConfig()).validate()  # draws nothing
    monkeypatch.setenv("DISPLAY", ":0")
    gps.load(file).validate()


def hashes(out):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.glob("iterations/*.h5")}


def test_images_of_a_rollout_are_those_that_the_policy_saw(file):
    agent = gps.load(file).agent.build()
    assert agent.image_shape == (32, 32, 3)
    start = np.random.default_rng(0).normal(size=(3, agent.n_start))
    watching = Watching()
    seen = agent.rollout(watching, 1, np.zeros((3, 20, 2)), start)
    later = agent.rollout(Still(), 1, np.zeros((3, 20, 2)), start)
    np.testing.assert_array_equal(seen.images, np.stack(watching.seen, axis=1))
    np.testing.assert_array_equal(seen.images, later.images)
    # the disc is red, and where the state says: x to the right, y up
    for n in range(3):
        red = seen.images[n, 0, :, :, 0] > seen.images[n, 0, :, :, 2].astype(int) + 60
        row, column = np.argwhere(red).mean(axis=0)
        half = 2 * np.tan(np.deg2rad(30))  # metres from the middle to the edge
        at = np.array([column - 15.5, 15.5 - row]) * half / 16
        np.testing.assert_allclose(at, seen.X[n, 0, :2], atol=0.05)


def test_the_policy_learns_from_images(run):
    _, reports = run
    assert reports[-1].row["policy_success"] == 1.0
    assert reports[-1].row["policy_distance_max"] < 0.5 * reports[0].row["policy_distance_max"]


def test_a_run_that_was_stopped_gives_the_same_bytes(file, run, tmp_path):
    out, _ = run
    again = tmp_path / "again"
    list(gps.run(gps.load(file), out=again, iterations=2))
    list(gps.resume(again, iterations=4))
    assert hashes(again) == hashes(out)


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(file, run, tmp_path):
    out, _ = run
    executor = Dask(workers=2)
    try:
        list(gps.run(gps.load(file), out=tmp_path / "two", executor=executor, iterations=1))
    finally:
        executor.close()
    have, want = hashes(tmp_path / "two"), hashes(out)
    assert {name: want[name] for name in have} == have
    assert len(have) == 2


def test_evaluation_sees_unseen_starts(run, capsys):
    out, _ = run
    assert cli.main(["evaluate", str(out), "--conditions", "test"]) == 0
    assert "100" in capsys.readouterr().out


def test_images_are_stored_small(run):
    out, _ = run
    with_images = RunFolder.open(out).read(4).rollouts[0]
    assert with_images.images.shape == (4, 20, 32, 32, 3)
    raw = 4 * with_images.images.nbytes
    assert RunFolder.open(out).iteration_path(4).stat().st_size < raw


def test_a_policy_that_sees_needs_a_camera(file):
    blind = gps.load(file)
    blind = replace(blind, agent=replace(blind.agent, cameras=()))
    with pytest.raises(ConfigError, match="cameras"):
        blind.validate()


def test_training_in_several_processes_is_refused(file):
    experiment = gps.load(file)
    algorithm = replace(experiment.algorithm, sgd=SGDConfig(mode="synchronous"))
    with pytest.raises(ConfigError, match="serial"):
        replace(experiment, algorithm=algorithm).validate()


def test_unknown_camera_is_refused():
    config = MujocoConfig(model="peg_insertion", cameras=("nose",), conditions=(Condition(),))
    with pytest.raises(ConfigError, match=r"nose.*(main|hole)"):
        config.build()


def test_an_environment_without_images_is_refused(file):
    pytest.importorskip("gymnasium")
    experiment = gps.load(file)
    with pytest.raises(ConfigError, match="no images"):
        as_gymnasium(experiment.agent, experiment.cost)
    config = replace(experiment.agent, cameras=())
    assert as_gymnasium(config, experiment.cost).observation_space.shape == (2,)


@pytest.mark.parametrize("network", ["mlp", MLPConfig])
def test_a_network_has_to_be_a_configuration(file, network):
    algorithm = gps.load(file).algorithm
    with pytest.raises(ConfigError, match=r"network must be a configuration like MLPConfig\(\)"):
        replace(algorithm, network=network)


def test_a_gpu_that_is_not_there_is_named_before_the_rollouts(file, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    experiment = gps.load(file)
    network = replace(experiment.algorithm.network, device="cuda")
    algorithm = replace(experiment.algorithm, network=network)
    with pytest.raises(ConfigError, match="finds no GPU"):
        replace(experiment, algorithm=algorithm).validate()


OWN = """

import torch
from gps.policies import ImageModuleConfig
from dataclasses import replace


class Eyes(torch.nn.Module):
    def __init__(self, no, nu, image_shape):
        super().__init__()
        self.conv = torch.nn.Conv2d(image_shape[2], 4, 5, stride=2)
        self.head = torch.nn.Linear(no + 4 * 14, nu)

    def features(self, images):
        x = self.conv(images.permute(0, 3, 1, 2).to(self.conv.weight.dtype) / 255.0)
        return x.relu().mean(dim=3).flatten(1)

    def forward(self, obs, images):
        return self.head(torch.cat([obs, self.features(images)], dim=1))


network = ImageModuleConfig(module=Eyes, pose=("joint_pos",), pose_first_steps=20, pose_steps=5)
algorithm = replace(experiment.algorithm, network=network, training=TrainingConfig(steps=20))
experiment = replace(experiment, algorithm=algorithm, iterations=2)
"""


def test_a_seeing_network_of_the_users_is_stored_resumed_and_exported(file, tmp_path):
    own = tmp_path / "own.py"
    own.write_text(file.read_text() + OWN)
    experiment, whole, parts = gps.load(own), tmp_path / "whole", tmp_path / "parts"
    for report in gps.run(experiment, source=own, out=whole):
        assert np.isfinite(report.row["policy_cost_mean"])
    for _ in gps.run(experiment, source=own, iterations=1, out=parts):
        pass
    for _ in gps.resume(parts, iterations=2):
        pass
    for name in ("0001.h5", "0002.h5"):
        a, b = (run / "iterations" / name for run in (whole, parts))
        assert a.read_bytes() == b.read_bytes()
    policy, again = report.state.policy.policy, gps.load_policy(whole, "last")
    rollouts = report.rollouts[0]
    want = policy.mean(rollouts.obs, rollouts.images)
    np.testing.assert_allclose(again.mean(rollouts.obs, rollouts.images), want, rtol=1e-9)
    assert again.metadata.cameras == ("top",)
    pose = policy.predicted_pose(rollouts.images[0])
    assert pose.shape == (20, 2)
