"""The reader gives what was stored, and reads no more than was requested."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace

import h5py
import numpy as np
import pytest

from gps.errors import StoreError
from gps.gui.run_reader import RunReader
from gps.pipeline import progress
from gps.pipeline.store import RunFolder

same = np.testing.assert_array_equal


@pytest.fixture
def reader(run_path):
    return RunReader(run_path)


@pytest.fixture(scope="module")
def snapshots(run_path):
    folder = RunFolder.open(run_path)
    return {n: folder.read(n) for n in folder.iterations()}


def test_the_run_is_described(reader, run_path):
    assert reader.iterations == (0, 1, 2, 3)
    assert (reader.last, reader.conditions, reader.seed) == (3, 4, 0)
    assert (reader.name, reader.label) == ("point_mass_policy", run_path.name)
    assert reader.layout.names == ("position", "velocity")
    assert reader.experiment.samples == reader.samples(2) == 5
    assert reader.samples(0) == 0
    assert [row["iteration"] for row in reader.rows] == [1, 2, 3]
    assert reader.updates == ()
    assert reader.problems == ()


@pytest.mark.parametrize(("n", "m", "i"), [(1, 0, 0), (3, 3, 4), (2, 1, 2)])
def test_a_rollout_is_the_stored_one(reader, snapshots, n, m, i):
    sample, whole = reader.rollout(n, m, i), snapshots[n].rollouts[m]
    same(sample.X, whole.X[i])
    same(sample.U, whole.U[i])
    same(sample.obs, whole.obs[i])
    one = reader.rollouts(n, m, i)
    assert one.N == 1
    assert one.condition == m
    same(one.X[0], whole.X[i])
    same(reader.rollouts(n, m).noise, whole.noise)
    same(reader.entry(n, m, "velocity"), whole.entry("velocity"))
    same(reader.endpoints(n, m), whole.entry("position"))  # of the experiment's measure


def test_models_and_states_are_the_stored_ones(reader, snapshots):
    n, m = 2, 1
    stored, state = snapshots[n].models, snapshots[n].state.conditions[m]
    same(reader.dynamics(n, m).dynamics.F, stored["dynamics"][m].fit.dynamics.F)
    same(reader.cost_samples(n, m), stored["cost"][m].l)
    same(reader.quadratic_cost(n, m).C, stored["cost"][m].quadratic.C)
    same(reader.linearised(n, m).K, stored["linearised"][m].controller.K)
    same(reader.prior(n, m).log_weight, stored["dynamics"][m].prior.mixture.log_weight)
    same(reader.controller(n, m).k, state.controller.k)
    same(reader.sampled_controller(n, m).k, snapshots[1].state.conditions[m].controller.k)
    same(reader.search(n, m).trace, state.search.trace)
    same(reader.policy(n).weights[0], snapshots[n].state.policy.policy.weights[0])
    same(reader.policy_loss(n), snapshots[n].state.policy.loss_trace)
    assert reader.condition_reports(n) == snapshots[n].report.conditions
    assert list(reader.all_reports()) == [1, 2, 3]


def test_what_is_missing_is_none(reader):
    for n, m, i in ((0, 0, 0), (9, 0, 0), (1, 4, 0), (1, 0, 5), (1, 0, -1)):
        assert reader.rollout(n, m, i) is None, (n, m, i)
        assert reader.rollouts(n, m, i) is None, (n, m, i)
    assert reader.image(1, 0, 0, 0) is None
    assert reader.entry(1, 0, "height") is None
    assert reader.algorithm_state(1, 0) is None
    assert reader.sampled_controller(0, 0) is None
    for read in (reader.dynamics, reader.search, reader.prior, reader.linearised):
        assert read(0, 0) is None
        assert read(9, 0) is None
    assert reader.condition_reports(0) is None
    assert reader.problems == ()  # to miss something is no problem


def test_no_more_is_read_than_asked_for(run_path, monkeypatch):
    sizes = []
    real = h5py.Dataset.__getitem__

    def spy(self, *args, **kwargs):
        value = real(self, *args, **kwargs)
        sizes.append((self.name, np.size(value)))
        return value

    monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
    reader = RunReader(run_path)
    assert sizes == []  # opening a run reads no array
    T, nx, nu = 80, 4, 2
    reader.rollout(2, 1, 3)
    assert sorted(sizes) == sorted(
        [("/rollouts/1/X", T * nx), ("/rollouts/1/U", T * nu), ("/rollouts/1/obs", T * nx)]
    )
    sizes.clear()
    reader.endpoints(2, 0)
    assert sizes == [("/rollouts/0/X", 5 * T * 2)]
    sizes.clear()
    reader.rollout(2, 1, 3)
    reader.endpoints(2, 0)
    assert sizes == []  # remembered
    reader.all_reports()
    assert sizes == []  # attributes


def test_images_are_read_one_at_a_time(image_run, monkeypatch):
    stored = RunFolder.open(image_run).read(1).rollouts
    reader, sizes = RunReader(image_run), []
    real = h5py.Dataset.__getitem__

    def spy(self, *args):
        value = real(self, *args)
        sizes.append(np.size(value))
        return value

    monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
    same(reader.image(1, 2, 3, 17), stored[2].images[3, 17])
    assert sizes == [4 * 5 * 3]
    assert reader.rollout(1, 2, 3).image_shape == (4, 5, 3)
    assert reader.rollout(2, 2, 3).image_shape is None
    assert reader.image(1, 2, 3, 80) is None
    same(reader.images(1, 2, 3), stored[2].images[3])


def test_reading_takes_no_lock_and_minds_none(run_path, own_run):
    before = sorted(os.listdir(run_path))
    reader = RunReader(run_path)
    reader.rollout(1, 0, 0)
    assert sorted(os.listdir(run_path)) == before
    with RunFolder.open(own_run) as writer:
        writer.append_line("other.csv", {"a": 1})  # holds the lock
        assert (own_run / "lock").exists()
        assert RunReader(own_run).rollout(1, 0, 0) is not None


def test_refresh_sees_new_changed_and_deleted_iterations(own_run):
    reader = RunReader(own_run)
    assert not reader.refresh()
    folder = RunFolder.open(own_run)
    snapshot = folder.read(2)
    old = reader.rollout(2, 0, 0)
    with folder:
        moved = replace(snapshot.rollouts[0], X=snapshot.rollouts[0].X + 1.0)
        report = replace(snapshot.report.conditions[0], cost_mean=123.0)
        folder.write(
            replace(
                snapshot,
                rollouts=(moved, *snapshot.rollouts[1:]),
                report=replace(
                    snapshot.report, conditions=(report, *snapshot.report.conditions[1:])
                ),
            )
        )
        assert reader.refresh()
        same(reader.rollout(2, 0, 0).X, old.X + 1.0)
        assert reader.all_reports()[2][0].cost_mean == 123.0
        assert not reader.refresh()
        folder.truncate(1)
    assert reader.refresh()
    assert reader.iterations == (0, 1)
    assert [row["iteration"] for row in reader.rows] == [1]
    assert reader.rollout(2, 0, 0) is None
    assert list(reader.all_reports()) == [1]


def test_a_file_that_vanished_since_the_last_look_is_none(own_run):
    reader = RunReader(own_run)
    reader.rollout(3, 0, 0)
    (own_run / "iterations" / "0003.h5").unlink()
    assert reader.rollout(3, 0, 0) is None
    assert reader.dynamics(3, 0) is None
    assert reader.problems == ()


def test_only_new_files_are_opened_at_a_refresh(own_run, monkeypatch):
    reader, checked = RunReader(own_run), []
    real = RunFolder.check
    monkeypatch.setattr(RunFolder, "check", lambda self, n: (checked.append(n), real(self, n)))
    path = own_run / "iterations" / "0003.h5"
    os.utime(path, ns=(1, 1))
    assert reader.refresh()
    assert checked == [3]


def test_a_damaged_file_is_skipped_and_named_once(own_run, caplog):
    path = own_run / "iterations" / "0002.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    reader = RunReader(own_run)
    assert reader.iterations == (0, 1, 3)
    assert reader.dynamics(2, 0) is None
    assert reader.rollout(2, 0, 0) is None
    assert len(reader.problems) == 1
    assert "0002.h5 is damaged" in reader.problems[0]
    assert "\n" not in reader.problems[0]
    assert len([r for r in caplog.records if "0002.h5" in r.getMessage()]) == 1
    path.write_bytes(whole)
    assert reader.refresh()
    assert reader.iterations == (0, 1, 2, 3)
    assert reader.problems == ()
    assert reader.rollout(2, 0, 0) is not None


def test_a_line_that_is_still_being_written_is_left_out(own_run):
    with open(own_run / "metrics.csv", "a") as file:
        file.write("4,1.0,2.")
    with open(own_run / "updates.csv", "w") as file:
        file.write("update,seconds,condition\n1,0.5,2\n2,0.")
    reader = RunReader(own_run)
    assert [row["iteration"] for row in reader.rows] == [1, 2, 3]
    assert reader.updates == ({"update": 1.0, "seconds": 0.5, "condition": 2.0},)
    with open(own_run / "updates.csv", "a") as file:
        file.write("7,1\n")
    assert reader.refresh()
    assert len(reader.updates) == 2


def test_scores_are_those_of_metrics_csv(reader):
    row = reader.rows[-1]
    for who in ("local", "policy"):
        scores = [reader.evaluation(3, m, who) for m in range(4)]
        np.testing.assert_allclose(
            np.mean([s.cost[0] for s in scores]), row[f"{who}_cost_mean"], rtol=1e-12
        )
        np.testing.assert_allclose(
            np.max([s.distance[0] for s in scores]), row[f"{who}_distance_max"], rtol=1e-12
        )
    assert reader.evaluation(3, 0) is reader.evaluation(3, 0)
    tested = reader.evaluation(3, 0, test=True)
    same(tested.rollouts.X[0, 0, :2], (0.7, 0.2))
    assert reader.evaluation(9, 0) is None


def test_results_are_those_of_the_files(reader, run_path, best_run, monkeypatch):
    stored = RunFolder.open(run_path).results()
    want = [{k: row[k] for k in (*progress.COLUMNS, "iteration") if k in row} for row in stored]
    np.testing.assert_equal(list(reader.results), want)
    run = RunReader(best_run)
    assert run.best == run.choose("best") == 2
    assert run.choose("last") == 3
    monkeypatch.setattr(h5py, "File", None)  # what was read once is not read again
    assert run.choose("best") == 2


def test_policy_actions_are_the_policys(reader, snapshots):
    policy, r = snapshots[2].state.policy.policy, snapshots[2].rollouts[1]
    np.testing.assert_allclose(reader.policy_actions(2, 1, 3), policy.mean(r.obs[3]), rtol=1e-12)
    assert reader.policy_actions(0, 0, 0) is None


def test_runs_of_one_experiment_are_of_a_kind(reader, other_path, own_run):
    other = RunReader(other_path)
    assert other.seed == 1
    assert other.kind == reader.kind
    text = (own_run / "experiment.json").read_text()
    assert '"samples": 5' in text
    (own_run / "experiment.json").write_text(text.replace('"samples": 5', '"samples": 6'))
    assert RunReader(own_run).kind != reader.kind


def test_the_agent_is_built_once_in_a_thread(reader):
    assert reader.agent is reader.agent
    assert reader.agent.n_conditions == 4


def test_the_sampled_controller_of_an_asynchronous_run(own_run, run_path):
    path = own_run / "experiment.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "asynchronous": {}}))
    reader = RunReader(own_run)
    assert reader.kind != RunReader(run_path).kind
    with RunFolder.open(own_run) as folder:
        snapshot = folder.read(2)
        right = snapshot.state.conditions[0].previous
        same(reader.sampled_controller(2, 0).k, right.k)
        wrong = replace(snapshot.state.conditions[0], previous=replace(right, k=right.k + 1.0))
        conditions = (wrong, *snapshot.state.conditions[1:])
        folder.write(replace(snapshot, state=replace(snapshot.state, conditions=conditions)))
    assert reader.sampled_controller(2, 0) is None


def test_threads_read_what_one_would(reader, snapshots):
    wrong = []

    def work(k):
        rng = np.random.default_rng(k)
        for _ in range(40):
            n, m, i = rng.integers(1, 4), rng.integers(4), rng.integers(5)
            reader.refresh()
            if not np.array_equal(reader.rollout(n, m, i).X, snapshots[n].rollouts[m].X[i]):
                wrong.append((n, m, i))
            same(reader.controller(n, m).k, snapshots[n].state.conditions[m].controller.k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert wrong == []


def test_a_folder_that_holds_no_run_is_refused(tmp_path):
    with pytest.raises(StoreError, match="not a run folder"):
        RunReader(tmp_path)
    with pytest.raises(StoreError, match="does not exist"):
        RunReader(tmp_path / "nothing")


def test_a_part_of_an_iteration_file(run_path):
    folder = RunFolder.open(run_path)
    assert folder.read_part(2, "state/conditions/0/step_mult") == 1.0
    assert folder.read_part(2, "state/conditions/0/algorithm_state") is None
    assert folder.read_part(2, "state/no/such") is None
    same(folder.read_part(2, "rollouts/1/X"), folder.read(2).rollouts[1].X)
    with pytest.raises(StoreError, match="not stored"):
        folder.read_part(7, "state")
