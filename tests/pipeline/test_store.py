import csv
import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pytest

import gps
from gps.algorithms.state import (
    ConditionReport,
    ConditionState,
    CostModel,
    GPSState,
    PolicyState,
    Report,
)
from gps.errors import StoreError
from gps.pipeline import loader, lock, provenance, store
from gps.pipeline.store import RunFolder, Snapshot
from gps.policies import MLPConfig, initial_policy
from gps.types import Layout, LinearGaussianController, QuadraticCost, Record, Rollouts

N, T, NX, NU = 3, 5, 4, 2
LAYOUT = Layout((("position", 2), ("velocity", 2)))


def controller(rng):
    return LinearGaussianController(
        K=rng.normal(size=(T, NU, NX)),
        k=rng.normal(size=(T, NU)),
        chol=np.tile(np.eye(NU), (T, 1, 1)),
    )


def snapshot(iteration=1, seed=0):
    rng = np.random.default_rng(seed + 100 * iteration)
    reports = tuple(
        ConditionReport(m, *rng.normal(size=9), event="went back" if m else "") for m in range(2)
    )
    shared = controller(rng)
    conditions = tuple(
        ConditionState(controller=controller(rng), previous=shared, step_mult=0.5, report=r)
        for r in reports
    )
    policy = initial_policy(MLPConfig(hidden=(3,)), NX, NU, rng)
    rollouts = tuple(
        Rollouts(
            X=rng.normal(size=(N, T, NX)),
            U=rng.normal(size=(N, T, NU)),
            obs=rng.normal(size=(N, T, NX)),
            noise=rng.normal(size=(N, T, NU)),
            layout=LAYOUT,
            condition=m,
            jacobians={"velocity": rng.normal(size=(N, T, 2, NX))},
        )
        for m in range(2)
    )
    quadratic = QuadraticCost(np.zeros((T, 6, 6)), np.zeros((T, 6)), np.zeros(T))
    models = {"cost": tuple(CostModel(rng.normal(size=(N, T)), quadratic) for _ in range(2))}
    return Snapshot(
        state=GPSState(
            iteration=iteration,
            seed=seed,
            costs=("configuration",),
            conditions=conditions,
            policy=PolicyState(policy=policy, loss_trace=rng.normal(size=8)),
        ),
        rollouts=rollouts,
        models=models,
        metrics=row(iteration),
        report=Report(iteration=iteration, conditions=reports, policy_loss=0.25, models=models),
    )


def row(iteration, seconds=1.5):
    return {"iteration": float(iteration), "cost_mean": 1 / 3, "policy_loss": float("nan")} | {
        "seconds": seconds,
        "seconds_rollout": seconds / 2,
    }


def same(a, b):
    """Equal bit for bit, with the same types."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, tuple):
        return type(b) is tuple and len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "keys"):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, Record):
        return type(a) is type(b) and all(same(getattr(a, k), getattr(b, k)) for k in vars(a))
    if isinstance(a, float) and np.isnan(a):
        return np.isnan(b)
    return type(a) is type(b) and a == b


@pytest.fixture
def experiment():
    return loader.load("point_mass").experiment


@pytest.fixture
def folder(tmp_path, experiment):
    with RunFolder.create(tmp_path / "run", experiment) as folder:
        yield folder


@pytest.fixture
def filled(folder):
    for n in range(4):
        folder.write(snapshot(n))
        if n:
            folder.append_metrics(row(n))
    return folder


# --- snapshots


def test_a_snapshot_comes_back_bit_for_bit(folder):
    written = snapshot(1)
    folder.write(written)
    read = folder.read(1)
    assert same(replace(written.state, costs=()), read.state)
    assert same(written.rollouts, read.rollouts)
    assert same(written.models, read.models)
    assert same(replace(written.report, models={}), read.report)
    assert same(read.state, folder.read_state(1))
    assert dict(read.metrics).keys() == {"iteration", "cost_mean", "policy_loss"}
    assert not read.rollouts[0].X.flags.writeable
    assert not read.state.policy.loss_trace.flags.writeable


def test_the_comparison_above_sees_a_changed_bit(folder):
    one, two = snapshot(1).state, snapshot(1, seed=1).state
    assert same(one, snapshot(1).state)
    assert not same(one, two)
    assert not same(one, replace(one, conditions=(one.conditions[0], one.conditions[0])))


def test_the_start_is_a_snapshot_too(folder):
    state = replace(snapshot(0).state, policy=None)
    folder.write(Snapshot.of_start(state))
    read = folder.read(0)
    assert same(replace(state, costs=()), read.state)
    assert (read.rollouts, dict(read.models), read.report) == ((), {}, None)


def test_the_same_snapshot_gives_the_same_bytes_at_another_time(tmp_path, experiment):
    digests = set()
    for i in range(2):
        with RunFolder.create(tmp_path / f"run{i}", experiment) as folder:
            # seconds are no part of the file, nor is when it is written
            folder.write(replace(snapshot(1), metrics=row(1, seconds=float(i))))
            digests.add(hashlib.sha256(folder.iteration_path(1).read_bytes()).hexdigest())
        time.sleep(1.1)
    assert len(digests) == 1


def test_bytes_do_not_depend_on_which_arrays_are_the_same_object(folder):
    """Records that went through another process hold copies."""
    import pickle

    one = snapshot(1)
    two = pickle.loads(pickle.dumps(one))
    assert one.state.conditions[0].previous is one.state.conditions[1].previous
    assert store.encode(one) == store.encode(two)
    copied = tuple(pickle.loads(pickle.dumps(c)) for c in one.state.conditions)
    assert store.encode(replace(one, state=replace(one.state, conditions=copied))) == store.encode(
        one
    )


def test_other_bytes_for_another_snapshot():
    assert store.encode(snapshot(1)) != store.encode(snapshot(1, seed=1))


def test_reading_with_h5py_alone(filled):
    want = snapshot(2)
    with h5py.File(filled.iteration_path(2)) as file:
        assert file.attrs["schema"] == "gps iteration"
        np.testing.assert_array_equal(file["rollouts/1/X"][:], want.rollouts[1].X)
        K = file["state/conditions/0/controller/K"]
        np.testing.assert_array_equal(K[:], want.state.conditions[0].controller.K)
        condition = file["report/conditions/1"]
        assert condition.attrs["@type"] == "gps.algorithms.state:ConditionReport"
        assert condition.attrs["kl"] == want.report.conditions[1].kl
        assert condition.attrs["event"] == "went back"
        assert "kl_max: nat per step" in condition.attrs["@units"]
        assert file["metrics"].attrs["cost_mean"] == 1 / 3


def test_equal_arrays_are_stored_once():
    rng = np.random.default_rng(0)
    big = rng.normal(size=(200, 50))
    twice = replace(snapshot(1), models={"x": (big, big.copy(), -big)})
    once = replace(snapshot(1), models={"x": (big, np.zeros(1), -big)})
    assert len(store.encode(twice)) < len(store.encode(once)) + big.nbytes / 2


def test_minus_zero_and_nan_payloads_are_not_merged(folder):
    zeros, other = np.zeros(500), np.zeros(500)
    other[77] = -0.0
    folder.write(replace(snapshot(1), models={"x": (zeros, other)}))
    back = folder.read(1).models["x"]
    assert not np.signbit(back[0]).any()
    assert np.flatnonzero(np.signbit(back[1])).tolist() == [77]


@dataclass(frozen=True)
class Foreign:
    x: int = 1


@pytest.mark.parametrize(
    "value",
    [
        {"b": 1, "a": 2, "A": (), "x/y": 1.0, "@type": "t", "%2F": None, ".": 3, "": 4, "ü b": 5},
        ["text ü", "", None, True, 2**62, -1.5, float("inf")],
        (np.float32(1.5), np.arange(3), np.zeros((0, 2)), np.array(2.0), np.array([True, False])),
        ((), ([],), {"a": {}}),
    ],
    ids=["names", "scalars", "arrays", "empty"],
)
def test_odd_values_come_back(folder, value):
    folder.write(replace(snapshot(1), models={"x": value}))
    back = folder.read(1).models["x"]
    assert repr(back) == repr(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Foreign(), "models/x: .*Foreign cannot be stored"),
        ({1: 2}, "models/x: a key must be text"),
        (object(), "models/x: a builtins.object cannot be stored"),
        (({"a": {1}},), "models/x/0/a: a builtins.set"),
        (2**70, "has no HDF5 type"),
        ("a\0b", "has no HDF5 type"),
        (np.array(["a"]), "numpy.ndarray cannot be stored"),
    ],
)
def test_what_has_no_place_is_named_and_nothing_is_written(folder, value, message):
    with pytest.raises(StoreError, match=message):
        folder.write(replace(snapshot(1), models={"x": value}))
    assert folder.iterations() == []
    assert os.listdir(folder.path / "iterations") == []


@pytest.mark.parametrize("name", ["os:environ", "tests.x:Y", "gps.pipeline.store:RunFolder"])
def test_a_class_that_is_not_a_record_is_not_built(filled, name):
    with h5py.File(filled.iteration_path(2), "r+") as file:
        file["state"].attrs["@type"] = name
    refused = r"not allowed|not a dataclass|'tests\.x:Y': .*hyperparams.py does not exist"
    with pytest.raises(StoreError, match=rf"0002.h5 is damaged.*({refused})"):
        filled.read(2)


# --- broken files


def test_a_truncated_file_is_named_and_skipped(filled, caplog):
    path = filled.iteration_path(3)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(StoreError, match=r"0003.h5 is damaged.*delete it.*gps resume"):
        filled.read(3)
    assert filled.iterations() == [0, 1, 2]
    assert "0003.h5 is damaged" in caplog.text
    assert filled.last() == 2


@pytest.mark.parametrize("data", [b"", b"no HDF5 at all", None])
def test_a_foreign_file_is_named_and_skipped(filled, data, caplog):
    path = filled.iteration_path(3)
    if data is None:
        with h5py.File(path, "w") as file:
            file["x"] = 1
    else:
        path.write_bytes(data)
    with pytest.raises(StoreError, match=r"0003.h5"):
        filled.read_state(3)
    assert filled.iterations() == [0, 1, 2]
    assert "skipped" in caplog.text


def test_other_files_in_the_folder_do_not_matter(filled):
    for name in ("notes.txt", "0007.h5.tmp", "0000007.h5", "x0001.h5"):
        (filled.path / "iterations" / name).write_bytes(b"x")
    assert filled.iterations() == [0, 1, 2, 3]


def test_a_renamed_file_is_not_taken_for_another_iteration(filled):
    filled.iteration_path(3).rename(filled.iteration_path(4))
    with pytest.raises(StoreError, match="does not hold iteration 4"):
        filled.read(4)


def test_a_newer_schema_is_refused(filled):
    with h5py.File(filled.iteration_path(3), "r+") as file:
        file.attrs["schema_version"] = 99
    with pytest.raises(StoreError, match=rf"0003.h5 was written by gps {gps.__version__}, which"):
        filled.read(3)


def test_a_missing_iteration_says_what_there_is(filled):
    with pytest.raises(StoreError, match="iteration 9 is not stored; stored: 0-3"):
        filled.read(9)


def test_no_whole_file_at_all(folder):
    with pytest.raises(StoreError, match="no whole iteration file; the run ended before its first"):
        folder.last()


def test_iteration_files_of_another_version_are_called_so(filled):
    for n in filled.iterations():
        with h5py.File(filled.iteration_path(n), "r+") as file:
            file.attrs.update({"schema_version": 1, "gps_version": "0.1.0"})
    with pytest.raises(StoreError, match=r"file; .*0003\.h5 was written by gps 0\.1\.0, which gps"):
        filled.last()


# --- a disk that does not cooperate


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_loses_no_earlier_iteration(filled, monkeypatch, call):
    before = {n: filled.iteration_path(n).read_bytes() for n in range(4)}

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(StoreError, match=r"cannot write .*0004.h5: No space left.*gps resume"):
            filled.write(snapshot(4))
        with pytest.raises(StoreError, match=r"cannot write .*0003.h5: No space left"):
            filled.write(snapshot(3, seed=1))
    assert {n: filled.iteration_path(n).read_bytes() for n in range(4)} == before
    assert sorted(os.listdir(filled.path / "iterations")) == [f"{n:04d}.h5" for n in range(4)]
    filled.write(snapshot(4))
    assert filled.iterations() == [0, 1, 2, 3, 4]


def test_a_process_killed_while_it_writes_leaves_whole_files_only(filled):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from gps.pipeline import files\n"
        "os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_whole(Path(sys.argv[1]), b'x' * 100000)\n"
    )
    path = filled.iteration_path(3)
    run = subprocess.run([sys.executable, "-c", code, str(path)])
    assert run.returncode == -9
    assert filled.iteration_path(3).with_name("0003.h5.tmp").exists()
    assert filled.iterations() == [0, 1, 2, 3]
    filled.truncate(3)
    assert not list(filled.path.glob("**/*.tmp"))


def test_a_file_in_place_of_the_folder(tmp_path, experiment):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file is a file; give a new folder"):
        RunFolder.create(tmp_path / "file", experiment)
    with pytest.raises(StoreError, match=r"cannot make the run folder .*Not a directory"):
        RunFolder.create(tmp_path / "file" / "run", experiment)
    with pytest.raises(StoreError, match="is not a run folder"):
        RunFolder.open(tmp_path)
    with pytest.raises(StoreError, match="does not exist"):
        RunFolder.open(tmp_path / "nowhere")


# --- the folder


def test_a_folder_with_something_in_it_is_refused(filled, experiment, tmp_path):
    with pytest.raises(StoreError, match=r"is not empty; give a new folder .* gps resume"):
        RunFolder.create(filled.path, experiment)
    (tmp_path / "empty").mkdir()
    RunFolder.create(tmp_path / "empty", experiment).close()


def test_experiment_json(tmp_path, experiment):
    source = loader.load("point_mass").source
    changed = replace(experiment, seed=7, samples=9)
    with RunFolder.create(tmp_path / "run", changed, source, {"executor": "dask"}) as folder:
        facts = json.loads((folder.path / "experiment.json").read_text())
        assert folder.experiment() == changed
        assert (folder.path / "hyperparams.py").read_bytes() == source.read_bytes()
    assert (facts["seed"], facts["executor"], facts["name"]) == (7, "dask", "point_mass")
    assert facts["versions"]["numpy"] == np.__version__
    assert set(facts["versions"]) >= {"python", "gps", "torch", "mujoco", "numba"}
    assert facts["experiment"]["class"] == "gps.pipeline.experiment:Experiment"


def test_classes_of_the_hyperparams_file_are_found_in_its_copy(tmp_path, experiment):
    source = tmp_path / "mine.py"
    source.write_text(
        "from dataclasses import dataclass\n"
        "from gps.costs import ActionCost\n"
        "@dataclass(frozen=True)\n"
        "class MyCost:\n"
        "    weight: float = 1.0\n"
        "    def evaluate(self, rollouts):\n"
        "        return ActionCost(weights=self.weight).evaluate(rollouts)\n"
        "    def check(self, layout, nu, T):\n"
        "        pass\n"
    )
    module = loader.execute(source)
    mine = replace(experiment, cost=module.MyCost(weight=5.0))
    RunFolder.create(tmp_path / "run", mine, source).close()
    source.unlink()
    cost = RunFolder.open(tmp_path / "run").experiment().cost
    assert type(cost).__name__ == "MyCost"
    assert cost.weight == 5.0


def test_a_damaged_experiment_json_is_named(folder):
    path = folder.path / "experiment.json"
    facts = json.loads(path.read_text())
    path.write_text(path.read_text()[:-20])
    with pytest.raises(StoreError, match=r"cannot read .*experiment.json"):
        folder.info()
    facts["experiment"]["fields"]["sampels"] = 3
    path.write_text(json.dumps(facts))
    with pytest.raises(StoreError, match=r"experiment.json: .*'sampels'; did you mean 'samples'"):
        folder.experiment()


def test_default_paths_do_not_collide(tmp_path, experiment):
    named = replace(experiment, name="a b/c", seed=3)
    one = store.default_path(named, tmp_path)
    one.mkdir(parents=True)
    two = store.default_path(named, tmp_path)
    assert one.parent == tmp_path / "a-b-c"
    assert one.name.endswith("-seed3")
    assert one != two


# --- the lock


def test_a_second_writer_is_refused_and_readers_are_not(filled):
    other = RunFolder.open(filled.path)
    assert other.iterations() == [0, 1, 2, 3]
    other.read(3)
    with pytest.raises(StoreError, match=f"being written by process {os.getpid()}"):
        other.write(snapshot(4))
    with pytest.raises(StoreError, match="being written"):
        other.truncate(1)
    other.close()
    filled.close()
    with RunFolder.open(filled.path) as third:
        third.write(snapshot(4))
    assert not (filled.path / "lock").exists()


HOLDER = """
import sys, time
from pathlib import Path
from gps.pipeline import lock
if len(sys.argv) > 2:
    lock.socket.gethostname = lambda: sys.argv[2]
lock.FolderLock(Path(sys.argv[1])).take()
print("taken", flush=True)
time.sleep(60)
"""


def test_the_lock_of_a_killed_process_is_free(filled):
    filled.close()
    path = filled.path / "lock"
    argv = [sys.executable, "-c", HOLDER, str(path)]
    for host in ([], ["elsewhere"]):
        with subprocess.Popen([*argv, *host], stdout=subprocess.PIPE) as holder:
            assert holder.stdout.readline() == b"taken\n"
            where = " on elsewhere" if host else ""
            message = rf"being written by process {holder.pid}{where}; wait for it"
            with pytest.raises(StoreError, match=message), RunFolder.open(filled.path) as folder:
                folder.write(snapshot(4))
            assert path.exists()
            holder.kill()
        assert path.exists()
        with RunFolder.open(filled.path) as folder:
            folder.write(snapshot(4))
        assert not path.exists()


def test_a_lock_that_its_holder_has_just_removed_is_made_anew(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    first, second = lock.FolderLock(path), lock.FolderLock(path)
    first.take()
    real = os.open

    def released_in_between(*args, **kwargs):
        fd = real(*args, **kwargs)
        first.release()
        return fd

    monkeypatch.setattr(os, "open", released_in_between)
    second.take()
    assert os.path.samestat(os.stat(path), os.fstat(second._fd))
    second.release()
    assert not path.exists()


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def fail(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", fail)
    taken = lock.FolderLock(tmp_path / "lock")
    taken.take()
    taken.release()
    assert "has no locks" in caplog.text
    assert os.listdir(tmp_path) == []


# --- other versions


@pytest.fixture
def old(tmp_path):
    """What a run of gps 0.1.0 looks like."""
    path = tmp_path / "old"
    (path / "iterations").mkdir(parents=True)
    facts = {"schema": "gps experiment", "schema_version": 1, "versions": {"gps": "0.1.0"}}
    fields = {"world": {"class": "gps.agents.point_mass:PointMassConfig", "fields": {}}}
    experiment = {"class": "gps.pipeline.experiment:Experiment", "fields": fields}
    (path / "experiment.json").write_text(json.dumps(facts | {"experiment": experiment}))
    with h5py.File(path / "iterations" / "0000.h5", "w") as file:
        file.attrs.update({"schema": "gps iteration", "schema_version": 1, "iteration": 0})
    return path


def test_a_run_of_another_version_is_refused(old):
    message = (
        f"{old} was written by gps 0.1.0, which gps {gps.__version__} does not read; use that "
        "version: pip install guided-policy-search==0.1.0"
    )
    for use in (
        RunFolder.open,
        lambda path: next(gps.resume(path)),
        lambda path: next(gps.resume_asynchronous(path)),
        gps.evaluate,
        gps.load_policy,
        lambda path: gps.export_policy(path, old.parent / "x.pt2"),
    ):
        with pytest.raises(StoreError) as refused:
            use(old)
        assert str(refused.value) == message
    for argv in (["resume"], ["plot", "--out", "x"], ["evaluate"], ["export", "x.pt2"], ["gui"]):
        run = subprocess.run(
            [sys.executable, "-m", "gps.cli", argv[0], str(old), *argv[1:]],
            cwd=old.parent,
            capture_output=True,
            text=True,
        )
        assert (run.returncode, run.stderr) == (2, f"gps: error: {message}\n")
        assert run.stdout == ""
    assert sorted(os.listdir(old.parent)) == ["old"]


def test_a_run_that_does_not_say_its_version_is_refused_too(old):
    (old / "experiment.json").write_text(json.dumps({"schema": "gps experiment"}))
    with pytest.raises(StoreError, match="by another version of gps, which gps"):
        RunFolder.open(old)


# --- metrics


def test_metrics_come_back_exactly(filled):
    with open(filled.path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["iteration"] for r in rows] == ["1", "2", "3"]
    assert float(rows[0]["cost_mean"]) == 1 / 3
    back = filled.metrics()
    assert list(back[0]) == list(row(1))
    assert back[2]["iteration"] == 3
    assert np.isnan(back[0]["policy_loss"])


def test_a_new_column_reaches_the_rows_before(filled):
    filled.append_metrics(row(4) | {"seconds_new": 2.0})
    rows = filled.metrics()
    assert len(rows) == 4
    assert np.isnan(rows[0]["seconds_new"])
    assert rows[3]["seconds_new"] == 2.0


def test_truncate_forgets_what_comes_after(filled):
    (filled.path / "iterations" / "0004.h5.tmp").write_bytes(b"x")
    filled.truncate(1)
    assert filled.iterations() == [0, 1]
    assert [r["iteration"] for r in filled.metrics()] == [1]
    assert os.listdir(filled.path / "iterations").count("0004.h5.tmp") == 0
    filled.write(snapshot(2))
    filled.append_metrics(row(2))
    assert [r["iteration"] for r in filled.metrics()] == [1, 2]


def test_truncate_restores_rows_that_were_lost(filled):
    path = filled.path / "metrics.csv"
    path.write_text(path.read_text()[:-10])  # killed in the middle of the last line
    assert len(filled.metrics()) == 2
    filled.truncate(3)
    rows = filled.metrics()
    assert [r["iteration"] for r in rows] == [1, 2, 3]
    assert rows[2]["cost_mean"] == 1 / 3
    assert np.isnan(rows[2]["seconds"])
    assert rows[1]["seconds"] == 1.5


def test_truncate_refuses_before_it_deletes(filled):
    filled.iteration_path(1).write_bytes(b"x")
    with pytest.raises(StoreError, match="damaged"):
        filled.truncate(1)
    with pytest.raises(StoreError, match="not stored"):
        filled.truncate(17)
    assert filled.iterations() == [0, 2, 3]


def test_tensorboard_reads_the_events(filled):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    filled.truncate(2)
    filled.append_metrics(row(3) | {"cost_mean": 9.0})
    filled.close()
    events = EventAccumulator(str(filled.path / "tensorboard")).Reload()
    assert "policy/loss" not in events.Tags()["scalars"]  # NaN
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("cost/mean")] == [
        (1, 0.3333),
        (2, 0.3333),
        (3, 9.0),
    ]


def test_a_run_without_tensorboard(folder, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    with caplog.at_level("INFO"):
        folder.append_metrics(row(1))
        folder.append_metrics(row(2))
    assert len(folder.metrics()) == 2
    assert "no event files" in caplog.text


def test_git_commit_of_this_checkout_only(tmp_path):
    assert provenance.git_commit(tmp_path) is None
    found = provenance.git_commit(Path(store.__file__).parent)
    assert found is None or len(found["commit"]) == 40
