"""Exported programs: convolutions in float64, limits, float32 observations."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from memory_networks import RECURRENT, WINDOW
from test_image_module import PLAIN
from torch import nn

import gps
from gps import cli
from gps.errors import ConfigError, ShapeError
from gps.pipeline import config_io
from gps.policies import (
    ExportedPolicy,
    MLPConfig,
    PolicyMetadata,
    VisionConfig,
    export_onnx,
    export_program,
    initial_policy,
    load,
)
from gps.policies._program import without_convolutions
from gps.policies.features import FeaturePolicy
from gps.rng import stream
from gps.types import Layout

SHAPE = (16, 16, 3)
LAYOUT = Layout((("x", 2),))
METADATA = PolicyMetadata(obs_layout=LAYOUT, dt=0.1)
LIMITS = ((-0.05, float("-inf")), (0.02, 0.01))


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"padding": 2, "dilation": 2},
        {"padding": (1, 3), "stride": (2, 1), "groups": 2, "bias": False},
        {"padding": "same", "dilation": (1, 3)},
    ],
    ids=str,
)
def test_a_convolution_as_a_matrix_product(options):
    conv = nn.Conv2d(4, 6, (3, 5), dtype=torch.float64, **options)
    x = torch.tensor(stream(0, "x").normal(size=(3, 4, 11, 14)))
    want = conv(x)
    assert type(conv) is nn.Conv2d
    torch.testing.assert_close(without_convolutions(conv)(x), want, rtol=1e-12, atol=1e-12)
    assert type(conv) is not nn.Conv2d


def vision(precision=None):
    """The features are almost the same for all images: the head amplifies their rounding."""
    network = VisionConfig(
        head=MLPConfig(hidden=(20,), activation="tanh", output_init_scale=1.0),
        channels=(8, 8),
        kernels=(5, 3),
        strides=(2, 1),
        finetune_steps=1,
        precision=precision,
    )
    policy = initial_policy(network, 2, 2, stream(0, "net"), SHAPE, METADATA.obs_layout)
    std = policy.head.obs_std.copy()
    std[2:] = 1e-2
    return replace(policy, head=replace(policy.head, obs_std=std))


@pytest.mark.parametrize("kind", ["float32", "float64", "users"])
def test_images_are_computed_in_float64_by_both_runtimes(kind, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    users = initial_policy(PLAIN, 2, 2, stream(0, "net"), SHAPE, METADATA.obs_layout)
    policy = users if kind == "users" else vision(None if kind == "float32" else kind)
    metadata, rng = replace(METADATA, image_shape=SHAPE), np.random.default_rng(0)
    obs, images = rng.normal(size=(50, 2)), rng.integers(0, 256, (50, *SHAPE), dtype=np.uint8)
    (tmp_path / "p.onnx").write_bytes(export_onnx(policy, metadata))
    onnx = load(tmp_path / "p.onnx").mean(obs, images)
    pt2 = ExportedPolicy.of(policy, metadata).mean(obs, images)  # what is in such a file
    scale = np.abs(pt2).max()
    assert np.abs(onnx - pt2).max() < 1e-11 * scale
    own = policy.mean(obs, images)  # a VisionConfig's is rounded to float32
    error = np.abs(own - pt2).max() / scale
    assert 1e-7 < error < 1e-5 if kind == "float32" else error < 1e-11


def test_a_precision_that_is_not_used_is_not_stored():
    """Runs of before keep their identity; what is chosen comes back."""
    plain, double = VisionConfig(), VisionConfig(precision="float64")
    assert "precision" not in config_io.to_json(plain)["fields"]
    for config in (plain, double):
        assert config_io.from_json(config_io.to_json(config)) == config
    with pytest.raises(ConfigError, match=r"VisionConfig\.precision must be .*'half'"):
        VisionConfig(precision="half")


UNITS = dict(action_mean=np.array([51.1, -2e5 / 3]), action_std=np.array([1e-3, 1e3]))


def in_far_units(policy):
    """The same policy where an action a counts as action_mean + action_std a."""
    if isinstance(policy, FeaturePolicy):
        return replace(policy, head=replace(policy.head, **UNITS))
    return replace(policy, **UNITS)


def net(network):
    return initial_policy(network, 2, 2, stream(0, "net"), SHAPE, METADATA.obs_layout)


PLAIN_POLICIES = {
    "mlp": lambda: mlp(),
    "window": lambda: net(WINDOW),
    "recurrent": lambda: net(RECURRENT[0]),
    "image module": lambda: net(PLAIN),
    "vision": lambda: vision(),
}


@pytest.mark.parametrize("end", ["pt2", "onnx"])
@pytest.mark.parametrize("kind", PLAIN_POLICIES)
def test_the_program_acts_in_the_policys_units(kind, end, tmp_path):
    """Every error counts in units of the actions' spread, however far they are from zero."""
    if end == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    plain, rng = PLAIN_POLICIES[kind](), np.random.default_rng(0)
    policy, metadata = in_far_units(plain), PolicyMetadata.of(plain, obs_layout=LAYOUT, dt=0.1)
    inputs = [rng.normal(size=(20, 4, 2) if metadata.memory0 else (20, 2))]
    if policy.needs_images:
        inputs.append(rng.integers(0, 256, (20, *SHAPE), dtype=np.uint8))
    path = tmp_path / f"p.{end}"
    path.write_bytes((export_onnx if end == "onnx" else export_program)(policy, metadata))
    want, again = plain.mean(*inputs), load(path)
    assert np.ptp(want.reshape(-1, 2), axis=0).min() > 0.01
    tolerance = {"vision": 1e-5, "recurrent": 1e-6}.get(kind, 1e-9) * np.abs(want).max()

    def error(mean):
        return np.abs((mean - UNITS["action_mean"]) / UNITS["action_std"] - want).max()

    assert error(policy.mean(*inputs)) < 1e-9
    assert error(again.mean(*inputs)) < tolerance
    if kind == "mlp":  # an observation in float32 is rounded, and nothing else
        if end == "onnx":
            path.write_bytes(export_onnx(policy, replace(metadata, single_obs=True)))
            mean = load(path).mean(inputs[0])
        else:
            mean = again.module()(torch.tensor(inputs[0]).float())[0].detach().numpy()
        want = plain.mean(inputs[0].astype(np.float32))
        assert error(mean) < 1e-9


def mlp():
    return initial_policy(MLPConfig(output_init_scale=1.0), 2, 2, stream(0, "net"))


@pytest.mark.parametrize("end", ["pt2", "onnx"])
def test_the_program_clips_on_request(end, tmp_path):
    if end == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    make, policy = export_onnx if end == "onnx" else export_program, mlp()
    obs = stream(0, "obs").normal(size=(40, 2))
    want = policy.mean(obs)
    for clipped in (False, True):
        metadata, path = replace(METADATA, limits=LIMITS, clipped=clipped), tmp_path / f"p.{end}"
        path.write_bytes(make(policy, metadata))
        again = load(path)
        assert again.metadata == metadata  # infinity is null in the file
        mean = np.clip(want, *map(np.array, LIMITS)) if clipped else want
        np.testing.assert_allclose(again.mean(obs), mean, rtol=1e-9, atol=1e-12)
    assert np.abs(np.clip(want, *map(np.array, LIMITS)) - want).max() > 0.1
    with pytest.raises(ShapeError, match=r"PolicyMetadata\.limits must have 2 values"):
        make(policy, replace(METADATA, limits=((0.0,), (1.0,))))
    with pytest.raises(ConfigError, match=r"PolicyMetadata\.clipped needs limits"):
        replace(METADATA, clipped=True)


def test_an_onnx_file_for_observations_in_float32(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    policy, path = mlp(), tmp_path / "p.onnx"
    path.write_bytes(export_onnx(policy, replace(METADATA, single_obs=True)))
    obs = stream(0, "obs").normal(size=(40, 2)).astype(np.float32)
    session = onnxruntime.InferenceSession(path)
    mean, _ = session.run(None, {"obs": obs})
    want = policy.mean(obs.astype(np.float64))
    assert np.abs(mean - want).max() < 1e-9 * np.abs(want).max()  # the rest is float64
    np.testing.assert_array_equal(load(path).mean(obs.astype(np.float64)), mean)
    assert load(path).metadata.single_obs


ROBOT = """
import json, sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession("policy.onnx")
metadata = json.loads(session.get_modelmeta().custom_metadata_map["gps_policy.json"])
assert metadata["control_limits"] == {"low": [-2.0, -2.0], "high": [2.0, 2.0], "clipped": True}
assert metadata["obs_dtype"] == "float32"
mean, covariance = session.run(None, {"obs": numpy.load("obs.npy")})
numpy.save("u.npy", mean)
assert "gps" not in sys.modules and "torch" not in sys.modules
"""


def test_a_run_is_exported_with_the_limits_of_its_agent(tmp_path, capsys):
    """By the command line; a process that has not imported gps acts with it."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    run = str(tmp_path / "run")
    experiment = gps.load("point_mass_policy")
    experiment = replace(experiment, agent=replace(experiment.agent, force_limit=2.0))
    for _ in gps.run(experiment, iterations=1, out=run):
        pass
    policy = gps.load_policy(run)
    assert policy.metadata.limits == ((-2.0, -2.0), (2.0, 2.0))
    assert not policy.metadata.clipped
    out = str(tmp_path / "policy.onnx")
    assert cli.main(["export", run, out, "--clip", "--float32"]) == 0
    obs = (3 * stream(0, "obs").normal(size=(60, 4))).astype(np.float32)
    np.save(tmp_path / "obs.npy", obs)
    done = subprocess.run(
        [sys.executable, "-c", ROBOT], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    free = policy.mean(obs.astype(np.float64))
    want = free.clip(-2, 2)
    assert np.abs(free - want).max() > 1.0
    assert np.abs(np.load(tmp_path / "u.npy") - want).max() < 1e-6 * np.abs(want).max()
    assert cli.main(["export", run, str(tmp_path / "p.pt2"), "--float32"]) == 2
    assert "a .pt2 file takes both" in capsys.readouterr().err
