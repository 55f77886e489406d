"""Policies in ONNX: the same numbers where there is onnxruntime only, and clear refusals."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from policy_networks import GatedNetwork, TorchMLP
from test_neural import make_policy

from gps.errors import ConfigError, ShapeError, StoreError
from gps.pipeline import exporting
from gps.policies import MLPConfig, PolicyMetadata, export_program, load
from gps.policies import onnx as gps_onnx
from gps.rng import stream
from gps.types import Layout

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")

LAYOUT = Layout((("joint_pos", 4), ("ee_pos", 2)))
METADATA = PolicyMetadata(obs_layout=LAYOUT, dt=0.05, experiment="arm", iteration=7, seed=2**40)


class _Gelu(torch.nn.Module):
    def __init__(self, no, nu):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.zeros(nu, no, dtype=torch.float64))

    def forward(self, obs):
        return torch.nn.functional.gelu(obs @ self.gain.T)


@dataclass(frozen=True)
class GeluNetwork(GatedNetwork):
    """Its function has no float64 kernel in onnxruntime."""

    def build(self, sizes):
        return _Gelu(sizes.no, sizes.nu)

    def initial_weights(self, sizes, rng):
        return (rng.normal(size=(sizes.nu, sizes.no)),)


NETWORKS = [
    MLPConfig(hidden=(9, 5), output_init_scale=1.0),
    MLPConfig(hidden=(8,), activation="tanh", output_init_scale=1.0),
    MLPConfig(hidden=(7,), activation="softplus", output_init_scale=1.0),
    MLPConfig(hidden=(), output_init_scale=1.0),
    TorchMLP(hidden=(8,), activation="tanh"),
    GatedNetwork(),
    GeluNetwork(),
]

# what runs on a robot: reads models and observations, writes what they say
ALONE = """
import json, sys
import numpy as np, onnxruntime
for path in sys.argv[1:]:
    session = onnxruntime.InferenceSession(path)
    rows = np.load(path + ".obs.npy")
    out = {"metadata": np.array(session.get_modelmeta().custom_metadata_map["gps_policy.json"])}
    for B in (1, 2, 7, len(rows)):
        mean, out["covariance"] = session.run(["mean", "covariance"], {"obs": rows[:B]})
        assert mean.dtype == np.float64
        out[str(B)] = mean
    np.savez(path + ".npz", **out)
bad = [m for m in sys.modules if m.split(".")[0] in ("gps", "torch", "onnx", "numba")]
assert not bad, bad
"""


def observations(policy, n=50):
    """Rows at and far from those that the policy is used to."""
    return policy.obs_mean + 3 * policy.obs_std * stream(0, "obs").normal(size=(n, policy.no))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Policies, their files, and what the files say in a process without gps and torch."""
    folder = tmp_path_factory.mktemp("onnx")
    policies = [make_policy(network) for network in NETWORKS]
    paths = [folder / f"{i}.onnx" for i in range(len(policies))]
    for policy, path in zip(policies, paths, strict=True):
        path.write_bytes(gps_onnx.export_onnx(policy, METADATA))
        np.save(f"{path}.obs.npy", observations(policy))
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *map(str, paths)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = [dict(np.load(f"{path}.npz")) for path in paths]
    return list(zip(policies, paths, said, strict=True))


def test_onnxruntime_alone_computes_the_policy(exported):
    for policy, _, out in exported:
        single = isinstance(policy.network, GeluNetwork)
        want = policy.mean(observations(policy))
        assert np.abs(want).max() > 0.05
        close = dict(rtol=0, atol=(1e-5 if single else 1e-12) * np.abs(want).max())
        for B in (1, 2, 7, 50):
            np.testing.assert_allclose(out[str(B)], want[:B], **close)
        np.testing.assert_allclose(out["covariance"], policy.Sigma, rtol=1e-13)
        metadata = json.loads(str(out["metadata"]))
        assert metadata["precision"] == ("float32" if single else "float64")
        assert metadata["obs_layout"] == [["joint_pos", 4], ["ee_pos", 2]]
        assert (metadata["dt"], metadata["experiment"], metadata["seed"]) == (0.05, "arm", 2**40)


@pytest.mark.parametrize("network", [GeluNetwork(), MLPConfig(hidden=(5,))], ids=repr)
def test_units_far_from_one_are_not_rounded(network, tmp_path):
    """Where the network is float32, its error counts in units of the actions' spread."""
    mean, std = np.array([51.1, -2e5 / 3, 0.0]), np.array([1e-3, 1e3, 1.0])
    plain = replace(make_policy(network), action_mean=np.zeros(3), action_std=np.ones(3))
    policy, path = replace(plain, action_mean=mean, action_std=std), tmp_path / "policy.onnx"
    path.write_bytes(gps_onnx.export_onnx(policy, METADATA))
    obs = observations(policy)
    want = plain.mean(obs)
    assert np.ptp(want, axis=0).min() > 0.05
    error = np.abs((load(path).mean(obs) - mean) / std - want).max() / np.abs(want).max()
    assert 1e-9 < error < 1e-5 if isinstance(network, GeluNetwork) else error < 1e-9


def test_a_loaded_policy_acts_like_the_exported_one(exported):
    for policy, path, _ in exported[:-1]:
        loaded = load(path)
        assert loaded.metadata == METADATA
        assert repr(loaded).startswith("ExportedPolicy('arm', iteration=7")
        np.testing.assert_array_equal(loaded.chol, policy.chol)
        obs, noise = observations(policy, 20), stream(1, "noise").normal(size=(20, 3))
        x = np.zeros((20, 2))
        close = dict(rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(
            loaded.act(x, obs, 3, noise), policy.act(x, obs, 3, noise), **close
        )
        np.testing.assert_allclose(loaded.mean(obs[0]), policy.mean(obs[0]), **close)
        assert loaded.mean(obs[:0].reshape(0, 4, 6)).shape == (0, 4, 3)
        again = pickle.loads(pickle.dumps(loaded))  # as to another process
        np.testing.assert_array_equal(again.mean(obs), loaded.mean(obs))
    with pytest.raises(ShapeError, match="6 values"):
        loaded.mean(np.zeros(5))
    with pytest.raises(ConfigError, match="no torch module"):
        loaded.module()


def test_nan_in_an_observation_is_nan_in_the_action(exported):
    """NaN in, NaN out: a network must not make an action of it."""
    for policy, path, _ in exported:
        obs = observations(policy, 4)
        obs[1, 2] = np.nan
        mean = load(path).mean(obs)
        assert np.isnan(mean[1]).all(), policy.network
        assert np.isfinite(mean[[0, 2, 3]]).all()


def test_a_model_is_the_same_bytes_without_traces_of_the_machine():
    policy = make_policy(MLPConfig(hidden=(5,)))
    data = gps_onnx.export_onnx(policy, METADATA)
    assert data == gps_onnx.export_onnx(policy, METADATA)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    for part in (b".py", os.path.dirname(gps_onnx.__file__).encode()):
        assert part not in data


class _Branching(torch.nn.Module):
    def forward(self, obs):
        return obs[:, :3] if obs.sum() > 0 else -obs[:, :3]


class _Fixed(torch.nn.Module):
    def forward(self, obs):
        return obs.reshape(2, 6)[:, :3]


@dataclass(frozen=True)
class Refused(GatedNetwork):
    """A network that cannot be exported."""

    module: type = _Branching

    def build(self, sizes):
        return self.module()

    def initial_weights(self, sizes, rng):
        return ()


@pytest.mark.parametrize("module", [_Branching, _Fixed])
def test_networks_that_cannot_be_converted(module):
    policy = make_policy(Refused(module))
    with pytest.raises(ConfigError, match=r"Refused.*any number of rows") as caught:
        gps_onnx.export_onnx(policy, METADATA)
    assert "\n" not in str(caught.value)


def test_a_wrong_conversion_is_noticed(monkeypatch):
    policy = make_policy(MLPConfig(hidden=(5,), output_init_scale=1.0))
    convert = gps_onnx._convert

    def wrong(policy, metadata, *, single):
        model = onnx.load_from_string(convert(policy, metadata, single=single))
        next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Tanh"
        return model.SerializeToString()

    monkeypatch.setattr(gps_onnx, "_convert", wrong)
    with pytest.raises(ConfigError, match="does not compute the policy's actions"):
        gps_onnx.export_onnx(policy, METADATA)


def test_metadata_must_fit():
    policy = make_policy(MLPConfig())
    with pytest.raises(ShapeError, match="describes 4 values, the policy takes 6"):
        gps_onnx.export_onnx(policy, PolicyMetadata(obs_layout=Layout((("x", 4),)), dt=0.1))


def test_damaged_and_foreign_files(exported, tmp_path):
    _, path, _ = exported[0]
    bad = tmp_path / "bad.onnx"
    for data in (b"", b"nonsense", path.read_bytes()[:500]):
        bad.write_bytes(data)
        with pytest.raises(StoreError, match=r"bad\.onnx"):
            load(bad)
    with pytest.raises(StoreError, match="does not exist"):
        load(tmp_path / "none.onnx")

    def edited(change):
        model = onnx.load_from_string(path.read_bytes())
        (entry,) = model.metadata_props
        values = json.loads(entry.value)
        change(model, values)
        if model.metadata_props:
            entry.value = json.dumps(values)
        bad.write_bytes(model.SerializeToString())

    edited(lambda model, values: model.metadata_props.pop())
    with pytest.raises(StoreError, match="not written by gps"):
        load(bad)
    edited(lambda model, values: values.update(schema_version=99))
    with pytest.raises(StoreError, match="schema version 99"):
        load(bad)
    edited(lambda model, values: values.update(chol=np.eye(3).tolist()))
    with pytest.raises(StoreError, match=r"graph and its gps_policy\.json do not agree"):
        load(bad)
    edited(lambda model, values: values.update(obs_layout=[["x", 5]]))
    with pytest.raises(StoreError, match="damaged"):
        load(bad)


def test_a_missing_extra_is_named(exported, monkeypatch, tmp_path):
    policy, path, _ = exported[0]
    missing = r"ONNX needs the extra 'onnx' \({} is not .*guided-policy-search\[onnx\]"
    for name in ("onnxscript", "onnx"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, name, None)
            with pytest.raises(ConfigError, match=missing.format(name)):
                gps_onnx.export_onnx(policy, METADATA)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=missing.format("onnxruntime")):
        load(path)


def test_without_onnxruntime_a_model_is_written_unchecked(exported, monkeypatch, caplog):
    policy, path, _ = exported[0]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert gps_onnx.export_onnx(policy, METADATA) == path.read_bytes()
    assert "has not been checked" in caplog.text


def test_the_end_of_the_name_chooses_the_format():
    assert {".pt2": export_program, ".onnx": gps_onnx.export_onnx} == exporting.FORMATS
