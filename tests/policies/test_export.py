"""Exported policies: the same numbers where there is torch only, and clear refusals."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass, replace

import h5py
import numpy as np
import pytest
import torch
from policy_networks import GatedNetwork, TorchMLP
from test_neural import make_policy

import gps
from gps import cli
from gps.errors import ConfigError, ShapeError, StoreError
from gps.pipeline import RunFolder
from gps.policies import ExportedPolicy, MLPConfig, PolicyMetadata, export_program, load
from gps.policies.exported import check_export
from gps.protocols import Policy
from gps.rng import stream
from gps.types import Layout

LAYOUT = Layout((("joint_pos", 4), ("ee_pos", 2)))
METADATA = PolicyMetadata(obs_layout=LAYOUT, dt=0.05, experiment="arm", iteration=7, seed=2**40)
NETWORKS = [
    MLPConfig(),
    MLPConfig(hidden=(9, 5), activation="tanh", output_init_scale=1.0),
    MLPConfig(hidden=(7,), activation="softplus", output_init_scale=1.0),
    MLPConfig(hidden=(), output_init_scale=1.0),
    TorchMLP(hidden=(8,), activation="tanh"),
    GatedNetwork(),
]
networks = pytest.mark.parametrize("network", NETWORKS, ids=repr)

# what runs on a robot: reads archives and observations, writes what the programs say
ALONE = """
import json, sys
import numpy as np, torch
for path in sys.argv[1:]:
    extra = {"gps_policy.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    rows = np.load(path + ".obs.npy")
    out = {}
    with torch.no_grad():
        for B in (1, 2, 7, len(rows)):
            for kind in ("float64", "float32"):
                mean, cov = program(torch.tensor(rows[:B].astype(kind)))
                assert mean.dtype == cov.dtype == torch.float64
                out[f"{kind}-{B}"], out["cov"] = mean.numpy(), cov.numpy()
    np.savez(path + ".npz", metadata=np.array(extra["gps_policy.json"]), **out)
bad = [m for m in sys.modules if m.split(".")[0] in ("gps", "numba", "h5py", "policy_networks")]
assert not bad, bad
"""


def alone(paths, cwd):
    """What the programs of the archives say in a process that has torch and no gps."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *map(str, paths)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [dict(np.load(f"{path}.npz")) for path in paths]


def observations(policy, n=50):
    """Rows at and far from those that the policy is used to."""
    rng = stream(0, "obs")
    scale = 3.0 * policy.obs_std
    return policy.obs_mean + scale * rng.normal(size=(n, policy.no))


def test_torch_alone_computes_the_policy(tmp_path):
    """In double precision from float64, to the rounding of the observation from float32."""
    paths, policies = [], [make_policy(network) for network in NETWORKS]
    for i, policy in enumerate(policies):
        paths.append(tmp_path / f"{i}.pt2")
        paths[-1].write_bytes(export_program(policy, METADATA))
        np.save(f"{paths[-1]}.obs.npy", observations(policy))
    for policy, out in zip(policies, alone(paths, tmp_path), strict=True):
        obs = observations(policy)
        want = policy.mean(obs)
        assert np.abs(want).max() > 0.05
        for B in (1, 2, 7, len(obs)):  # exported once, for any number of rows
            np.testing.assert_allclose(out[f"float64-{B}"], want[:B], rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(out[f"float32-{B}"], want[:B], rtol=1e-6, atol=1e-6)
            rounded = policy.mean(obs[:B].astype(np.float32))  # the widening itself adds nothing
            np.testing.assert_allclose(out[f"float32-{B}"], rounded, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(out["cov"], policy.Sigma, rtol=1e-14, atol=1e-14)
        metadata = json.loads(str(out["metadata"]))
        assert metadata.pop("gps_version") == gps.__version__
        assert metadata == {
            "schema": "gps policy",
            "schema_version": 1,
            "experiment": "arm",
            "iteration": 7,
            "seed": 2**40,
            "dt": 0.05,
            "no": 6,
            "nu": 3,
            "obs_layout": [["joint_pos", 4], ["ee_pos", 2]],
        }


@pytest.fixture
def saved(tmp_path):
    """A policy and the file of it."""
    policy = make_policy(MLPConfig(hidden=(9, 5), activation="tanh", output_init_scale=1.0))
    path = tmp_path / "policy.pt2"
    path.write_bytes(export_program(policy, METADATA))
    return policy, path


@networks
def test_loaded_policy_acts_like_the_exported_one(network, tmp_path):
    policy, path = make_policy(network), tmp_path / "policy.pt2"
    path.write_bytes(export_program(policy, METADATA))
    loaded = load(path)
    assert isinstance(loaded, Policy)
    assert loaded.metadata == METADATA
    assert (loaded.obs_layout, loaded.dt, loaded.experiment) == (LAYOUT, 0.05, "arm")
    assert (loaded.iteration, loaded.seed, loaded.no, loaded.nu) == (7, 2**40, 6, 3)
    np.testing.assert_array_equal(loaded.chol, policy.chol)
    np.testing.assert_array_equal(loaded.Sigma, policy.Sigma)
    obs = observations(policy, 20)
    close = dict(rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(loaded.predict(obs)[0], policy.mean(obs), **close)
    np.testing.assert_allclose(loaded.predict(obs[0])[0], policy.mean(obs[0]), **close)
    np.testing.assert_allclose(loaded.mean(obs[None]), policy.mean(obs[None]), **close)
    assert loaded.mean(obs[:0].reshape(0, 4, 6)).shape == (0, 4, 3)
    noisy = [
        p.predict(obs, deterministic=False, rng=stream(0, "noise"))[0] for p in (loaded, policy)
    ]
    np.testing.assert_allclose(*noisy, **close)
    assert np.abs(noisy[0] - policy.mean(obs)).min() > 0
    noise = stream(1, "noise").normal(size=(20, 3))
    x = np.zeros((20, 2))
    np.testing.assert_allclose(loaded.act(x, obs, 3, noise), policy.act(x, obs, 3, noise), **close)
    direct = ExportedPolicy.of(policy, METADATA)
    np.testing.assert_allclose(direct.mean(obs), policy.mean(obs), **close)
    assert direct.metadata == loaded.metadata
    obs[1, 2] = np.nan
    assert np.isnan(loaded.mean(obs)[1]).all()
    assert np.isfinite(loaded.mean(obs)[2:]).all()


def test_wrong_arguments_are_refused(saved):
    loaded = load(saved[1])
    with pytest.raises(ShapeError, match=r"6 values \(joint_pos 4, ee_pos 2\), got shape \(2, 5\)"):
        loaded.mean(np.zeros((2, 5)))
    with pytest.raises(ConfigError, match="needs rng"):
        loaded.predict(np.zeros(6), deterministic=False)
    with pytest.raises(ShapeError, match="describes 5 values, the policy takes 6"):
        export_program(saved[0], replace(METADATA, obs_layout=Layout((("q", 5),))))
    with pytest.raises(ConfigError, match=r"PolicyMetadata\.dt must be a number above 0"):
        replace(METADATA, dt=0.0)
    with pytest.raises(ConfigError, match=r"PolicyMetadata\.iteration must be a whole number"):
        replace(METADATA, iteration=1.0)


# --- networks that torch.export cannot take, or takes for another


class Odd(torch.nn.Module):
    def __init__(self, what, no, nu):
        super().__init__()
        self.what, self.calls = what, 0
        self.gain = torch.nn.Parameter(torch.zeros(nu, no, dtype=torch.float64))

    def forward(self, obs):
        if self.what == "branch" and float(obs.sum()) > 0:
            return -(obs @ self.gain.T)
        if self.what == "crowd" and len(obs) < 2:
            return -(obs @ self.gain.T)
        if self.what == "pairs":
            obs = obs.reshape(2, -1, obs.shape[-1]).reshape(-1, obs.shape[-1])
        self.calls += 1
        out = obs @ self.gain.T
        # a number that Python makes is a constant of the program
        return out * (1.0 + self.calls) if self.what == "counts" else out


@dataclass(frozen=True)
class OddNetwork(GatedNetwork):
    what: str = ""

    def build(self, sizes):
        return Odd(self.what, sizes.no, sizes.nu)

    def initial_weights(self, sizes, rng):
        return (rng.normal(size=(sizes.nu, sizes.no)),)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("branch", "cannot trace the network OddNetwork: "),
        ("pairs", "cannot trace the network OddNetwork: "),
        ("crowd", "cannot trace the network OddNetwork: .*it must take any number of rows"),
        ("counts", "OddNetwork does not compute the policy's actions"),
    ],
)
def test_a_network_that_cannot_be_exported_is_refused(what, message):
    assert export_program(make_policy(OddNetwork()), METADATA)
    with pytest.raises(ConfigError, match=message) as error:
        export_program(make_policy(OddNetwork(what)), METADATA)
    assert "\n" not in str(error.value)


def test_a_program_for_one_number_of_rows_is_refused(monkeypatch):
    monkeypatch.setattr(torch.export, "Dim", lambda name: None)
    with pytest.raises(ConfigError, match="MLPConfig does not take 5 rows: "):
        export_program(make_policy(MLPConfig()), METADATA)


# --- other files


def rewritten(path, change):
    """The archive with other metadata."""
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    (name,) = (name for name in parts if name.endswith("gps_policy.json"))
    parts[name] = change(parts[name])
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as new:
        for part in parts:
            if parts[part] is not None:
                new.writestr(part, parts[part])
    return data.getvalue()


def edited(**values):
    return lambda text: json.dumps({**json.loads(text), **values}).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: b"", "is not an exported policy, or is truncated"),
        (lambda path: path.read_bytes()[:5000], "is not an exported policy, or is truncated"),
        (lambda path: rewritten(path, lambda text: None), "was not written by gps"),
        (lambda path: rewritten(path, edited(schema="other")), "was not written by gps"),
        (lambda path: rewritten(path, lambda text: b"{"), "cannot read"),
        (lambda path: rewritten(path, edited(schema_version=9)), "schema version 9, this gps rea"),
        (lambda path: rewritten(path, edited(dt=-1)), "is damaged: gps_policy.json: .*dt must be"),
        (lambda path: rewritten(path, edited(nu=2)), "is damaged: its covariance has shape"),
        (lambda path: rewritten(path, edited(obs_layout=3)), "is damaged: gps_policy.json"),
    ],
)
def test_a_file_that_is_not_a_policy_is_refused(saved, change, message):
    path = saved[1]
    path.write_bytes(change(path))
    with pytest.raises(StoreError, match=message):
        load(path)


def test_a_damaged_weight_is_noticed(saved):
    """torch reads a tensor whose bits have changed without a word."""
    policy, path = saved
    data = bytearray(path.read_bytes())
    at = bytes(data).index(policy.weights[0][0, :2].tobytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"damaged: .*weight.* wrong checksum"):
        load(path)


def test_places_without_a_file(tmp_path):
    with pytest.raises(StoreError, match=r"none\.pt2 does not exist"):
        load(tmp_path / "none.pt2")
    with pytest.raises(StoreError, match=r"is a folder; gps\.load_policy"):
        load(tmp_path)


# --- of a run, and the command line


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of two short runs, with a policy and without."""
    base = tmp_path_factory.mktemp("runs")
    for name in ("point_mass_policy", "point_mass"):
        experiment = gps.load(name)
        algorithm = experiment.algorithm
        if algorithm.trains_policy:
            algorithm = replace(algorithm, training=replace(algorithm.training, steps=60))
        experiment = replace(
            experiment,
            agent=replace(experiment.agent, T=12),
            samples=4,
            iterations=2,
            algorithm=algorithm,
        )
        for _ in gps.run(experiment, seed=5, out=base / name):
            pass
    return base


@pytest.fixture(scope="module")
def run(runs):
    return runs / "point_mass_policy"


def error_of(capsys, *argv):
    """The one line of an error, after the exit code has been checked."""
    assert cli.main([str(a) for a in argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix("gps: error: ")


def test_exported_by_the_command(run, tmp_path, capsys):
    stored = {n: RunFolder.open(run).read_state(n).policy.policy for n in (1, 2)}
    paths = {2: tmp_path / "last.pt2", 1: tmp_path / "first.pt2"}
    assert cli.main(["export", str(run), str(paths[2])]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"wrote {paths[2]} (iteration 2, the best); it needs torch only")
    assert cli.main(["export", str(run), str(paths[1]), "--iteration", "1"]) == 0
    assert sorted(os.listdir(tmp_path)) == ["first.pt2", "last.pt2"]  # nothing left beside them
    obs = stream(0, "obs").normal(size=(9, 4))
    for path in paths.values():
        np.save(f"{path}.obs.npy", obs)
    outs = dict(zip(paths, alone(paths.values(), tmp_path), strict=True))
    agent = gps.load("point_mass_policy").agent.build()
    for n, path in paths.items():
        want = stored[n].mean(obs)
        np.testing.assert_allclose(outs[n]["float64-9"], want, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(outs[n]["cov"], stored[n].Sigma, rtol=1e-14)
        for loaded in (load(path), gps.load_policy(path), gps.load_policy(run, iteration=n)):
            np.testing.assert_allclose(loaded.mean(obs), want, rtol=1e-12, atol=1e-12)
            assert loaded.metadata == PolicyMetadata(
                obs_layout=agent.obs_layout,
                limits=((-10.0, -10.0), (10.0, 10.0)),
                dt=agent.dt,
                experiment="point_mass_policy",
                iteration=n,
                seed=5,
            )
    assert gps.load_policy(run).iteration == 2
    copy = shutil.copytree(run, tmp_path / "run")
    with h5py.File(RunFolder.open(copy).iteration_path(1), "r+") as file:
        file["metrics"].attrs["policy_success"] = 2.0  # what wins is the best, not the last
    assert gps.load_policy(copy).iteration == gps.load_policy(copy, "best").iteration == 1
    assert gps.load_policy(copy, "last").iteration == 2
    for name, n in (("best", 1), ("last", 2)):
        path = gps.export_policy(copy, tmp_path / f"{name}.pt2", iteration=name, force=True)
        assert load(path).iteration == n
    assert np.abs(stored[1].mean(obs) - stored[2].mean(obs)).max() > 1e-3  # they differ


def test_a_loaded_policy_rolls_out_like_the_stored_one(run, tmp_path):
    loaded = load(gps.export_policy(run, tmp_path / "policy.pt2"))
    folder = RunFolder.open(run)
    agent = folder.experiment().agent.build()
    noise = stream(0, "noise").normal(size=(3, agent.T, agent.nu))
    stored = folder.read_state(2).policy.policy
    a, b = (agent.rollout(policy, 1, noise) for policy in (loaded, stored))
    np.testing.assert_allclose(a.X, b.X, rtol=1e-9, atol=1e-9)
    assert np.ptp(b.U) > 0.1


def test_an_existing_file_stays_unless_forced(run, tmp_path, capsys):
    path = tmp_path / "policy.pt2"
    path.write_bytes(b"mine")
    assert "policy.pt2 exists; give another name, or replace it with --force" in error_of(
        capsys, "export", run, path
    )
    assert path.read_bytes() == b"mine"
    assert cli.main(["export", str(run), str(path), "--force"]) == 0
    assert load(path).iteration == 2


def test_a_failed_write_leaves_what_was_there(run, tmp_path, capsys, monkeypatch):
    path = tmp_path / "policy.pt2"
    path.write_bytes(b"mine")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = error_of(capsys, "export", run, path, "--force")
    assert message == f"cannot write {path}: No space left on device"
    assert os.listdir(tmp_path) == ["policy.pt2"]
    assert path.read_bytes() == b"mine"


def test_errors_of_the_command(run, runs, tmp_path, capsys, monkeypatch):
    out = tmp_path / "policy.pt2"
    message = error_of(capsys, "export", runs / "point_mass", out)
    assert "has no global policy: point_mass trains local controllers only" in message
    message = error_of(capsys, "export", run, out, "--iteration", "0")
    assert "the policy of iteration 0 has not been trained" in message
    message = error_of(capsys, "export", run, out, "--iteration", "lst")
    assert message == "iteration must be best, last or the number of a stored iteration, got 'lst'"
    message = error_of(capsys, "export", run, out, "--iteration", "9")
    assert "iteration 9 is not stored; stored: 0-2" in message
    assert "does not exist" in error_of(capsys, "export", tmp_path / "none", out)
    assert "is not a run folder" in error_of(capsys, "export", tmp_path, out)
    for name in ("policy", "policy.pt", "policy.PT2"):
        assert f"ends in .pt2 or .onnx, got {tmp_path / name}" in error_of(
            capsys, "export", run, tmp_path / name
        )
    (tmp_path / "folder.pt2").mkdir()
    message = error_of(capsys, "export", run, tmp_path / "folder.pt2", "--force")
    assert "folder.pt2 is a folder" in message
    message = error_of(capsys, "export", run, tmp_path / "none" / "policy.pt2")
    assert f"there is no folder {tmp_path / 'none'}" in message
    assert "required" in error_of(capsys, "export", run)
    assert not out.exists()
    with pytest.raises(ConfigError, match="only of a run folder can one be chosen"):
        gps.load_policy(out, iteration=1)
    with pytest.raises(ConfigError, match="has no global policy"):
        gps.load_policy(runs / "point_mass")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a superuser may write anywhere
    message = error_of(capsys, "export", run, out)
    assert message == f"cannot write {out}: no permission to write in {tmp_path}"


def test_a_run_with_a_damaged_iteration(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / "iterations" / "0002.h5"
    path.write_bytes(path.read_bytes()[:3000])
    message = error_of(capsys, "export", copy, tmp_path / "a.pt2", "--iteration", "2")
    assert "0002.h5 is damaged" in message
    assert gps.load_policy(gps.export_policy(copy, tmp_path / "b.pt2")).iteration == 1


@pytest.mark.parametrize("unit", [(1.0, 1e-6, 1.0), (1e6, 1e-6, 1e3), (1e-9, 1e9, 1.0)])
@pytest.mark.parametrize("entry", [0, 1])
def test_a_wrong_program_is_found_in_every_action_whatever_its_unit(unit, entry):
    start = make_policy(MLPConfig(hidden=(7,), activation="tanh"))
    offset = np.array([3.0, -2.0, 0.0]) * unit
    policy = replace(start, action_std=np.array(unit), action_mean=offset)
    check_export(policy, ExportedPolicy.of(policy, METADATA))
    std = np.array(unit)
    std[entry] *= 1 + 1e-6
    wrong = ExportedPolicy.of(replace(policy, action_std=std), METADATA)
    with pytest.raises(ConfigError, match="does not compute the policy's actions"):
        check_export(policy, wrong)
