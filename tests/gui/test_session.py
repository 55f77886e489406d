"""Status and selection of the page, without a browser."""

import json
import os
import re
import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

import gps
from gps.errors import ConfigError, StoreError
from gps.gui.run_monitor import duration, status_line
from gps.gui.run_reader import RunReader
from gps.gui.session import Session
from gps.pipeline.changes import Change, Changes
from gps.pipeline.steering import Command, Status, Steering
from gps.policies import Sizes, VisionConfig


def until(what, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


@pytest.fixture
def session(run_path):
    run = RunReader(run_path)
    run.refresh()
    session = Session(run)
    session.poll()
    yield session
    session.close()


def test_a_stored_run_is_done_and_shows_its_newest_iteration(session):
    status = session.monitor.status
    assert (status.state, status.iteration, status.total) == ("done", 3, 3)
    assert status.commands == ()
    assert session.selection.iteration == 3
    assert not session.monitor.connected
    assert session.monitor.can_resume
    spent = sum(row["seconds"] for row in session.run.rows)
    assert status.note == f"its iterations took {spent:.0f} s"


def opened(path, **options):
    run = RunReader(path)
    session = Session(run, **options)
    session.poll()
    return session


def test_a_stored_run_opens_at_its_best(best_run):
    session = opened(best_run)
    s = session.selection
    assert (s.iteration, s.newest, s.best) == (2, False, True)
    assert session.monitor.progress.startswith(
        "best: iteration 2 of 3 (policy: success 200 %, cost "
    )
    assert {p.marker for p in session.progress_plots() if hasattr(p, "marker")} == {2.0}
    assert not session.select(iteration=1).best
    for choice, n in (("last", 3), ("best", 2), (1, 1)):
        assert opened(best_run, iteration=choice).selection.iteration == n
    with pytest.raises(StoreError, match="iteration 7 is not stored"):
        opened(best_run, iteration=7)
    with pytest.raises(ConfigError, match="best, last or the number"):
        opened(best_run, iteration="worst")


def test_the_newest_iteration_of_a_running_run_is_followed(best_run):
    lock = json.dumps({"pid": os.getpid(), "host": os.uname().nodename, "started": ""})
    (best_run / "lock").write_text(lock)
    assert Session(RunReader(best_run)).selection.newest  # at once
    assert opened(best_run).selection.newest
    chosen = opened(best_run, iteration="best")
    assert chosen.selection.iteration == 2  # as it was asked for
    (best_run / "lock").unlink()
    session = opened(best_run)
    assert session.selection.iteration == 2
    (best_run / "lock").write_text(lock)  # it is resumed
    session.poll()
    assert (session.selection.iteration, session.selection.newest) == (3, True)
    other = opened(best_run)
    other.select(iteration=1)
    other.poll()
    assert other.selection.iteration == 1


def test_a_run_that_ended_because_it_has_converged_is_done(tmp_path):
    experiment = gps.load("point_mass")
    experiment = replace(experiment, iterations=40, agent=replace(experiment.agent, T=12))
    done = len(list(gps.run(experiment, out=tmp_path / "run", until_converged=True)))
    assert done < 40
    session = opened(tmp_path / "run")
    status = session.monitor.status
    assert (status.state, status.iteration, status.total) == ("done", done, done)
    assert "; converged: the last 10 iterations brought less than 1 %" in session.monitor.progress
    assert session.monitor.can_resume
    with session.run.folder as folder:
        folder.truncate(done - 3)
    session.poll()
    assert "converged" not in session.monitor.progress
    assert (session.monitor.status.state, session.monitor.status.total) == ("stopped", 40)


def test_a_status_does_not_load_the_experiment(own_run, monkeypatch):
    """It takes half a second, which the page has no time for at first."""
    run = RunReader(own_run)

    def loaded():
        raise AssertionError("it was loaded")

    monkeypatch.setattr(run.folder, "experiment", loaded)
    session = Session(run)
    session.poll()
    assert (session.monitor.status.state, session.monitor.status.total) == ("done", 3)
    assert session.rollout(0) is not None
    run.folder.write_changes(Changes().with_change(2, Change({"iterations": "7"})))
    run.folder.close()  # lets go of the run
    assert (session.monitor.status.state, session.monitor.status.total) == ("stopped", 7)


def test_numbers_out_of_range_are_clipped(session):
    s = session.select(iteration=99, condition=99, sample=99, t=10_000)
    samples, T = session.run.samples(3), len(session.run.rollout(3, 0, 0).X)
    assert (s.iteration, s.condition, s.sample, s.t) == (
        3,
        session.run.conditions - 1,
        samples - 1,
        T - 1,
    )
    s = session.select(iteration=-5, condition=-1, sample=-1, t=-1)
    assert (s.iteration, s.condition, s.sample, s.t) == (1, 0, 0, 0)


def test_an_older_iteration_stays_selected_and_the_newest_is_followed(session):
    assert not session.select(iteration=2).newest
    assert session.select(t=3).iteration == 2
    assert session.select(newest=True).iteration == 3
    assert session.select(iteration=3).newest


def test_rollouts_are_stored_samples_or_simulated(session):
    session.select(sample=1, condition=1)
    rollout = session.rollout(1)
    np.testing.assert_array_equal(rollout.X, session.run.rollout(3, 1, 1).X)
    assert "sample 1 of iteration 3" in rollout.label
    session.select(source="policy")
    policy = session.rollout(1)
    assert "policy after iteration 3 without noise" in policy.label
    assert policy.X.shape == rollout.X.shape
    assert not np.array_equal(policy.X, rollout.X)
    session.select(source="local controller")
    assert not np.array_equal(session.rollout(1).X, policy.X)


def test_paths_and_targets_are_in_space(session):
    T, N = len(session.run.rollout(3, 0, 0).X), session.run.samples(3)
    paths = session.sample_paths(0)
    assert paths.shape == (N, T, 3)
    X = session.run.rollouts(3, 0).entry("position")
    np.testing.assert_array_equal(paths[..., :2], X)
    path, some = session.plan(0)
    assert path.shape == (1, T, 3)
    assert some.centres.shape[1:] == (3,)
    assert session.policy_paths(0).shape == (1, T, 3)
    assert session.targets(0)


def test_several_conditions_begin_with_the_selected_one(session):
    session.select(condition=2)
    assert session.conditions == [2]
    session.select(others="all")
    assert session.conditions == [2, 0, 1, 3]
    session.select(others="3, 1 3")
    assert session.conditions == [2, 3, 1]
    for wrong in ("4", "x", "-1"):
        with pytest.raises(ConfigError, match="numbers from 0 to 3, or all"):
            session.select(others=wrong)
    assert session.conditions == [2, 3, 1]


def test_plots_follow_the_selection(session):
    assert session.progress_plots()
    titles = {}
    for topic in ("trajectory", "controller", "dual"):
        session.select(topic=topic)
        titles[topic] = [p.title for p in session.condition_plots()]
        assert titles[topic]
    assert len({tuple(t) for t in titles.values()}) == 3


def test_the_selected_iteration_is_marked_in_the_course_of_the_run(session):
    assert {p.marker for p in session.progress_plots() if hasattr(p, "marker")} == {
        None
    }  # the newest
    session.select(iteration=2)
    marks = {p.x_label: p.marker for p in session.progress_plots() if hasattr(p, "marker")}
    assert marks["iteration"] == 2


def test_the_trajectory_is_that_of_the_playback(session):
    session.select(topic="trajectory")
    assert session.condition_plots()[0].title.startswith("position: sample 0; mean")
    session.select(source="policy")
    (rollout, plot) = session.rollout(0), session.condition_plots()[0]
    assert plot.title.startswith("position: policy; mean")
    np.testing.assert_array_equal(plot.lines[0].y, rollout.X[:, 0])


def test_other_runs_of_the_folder_are_offered_for_comparison(
    session, other_path, own_run, tmp_path
):
    assert session.run.path.resolve() not in [p.resolve() for p in session.comparable()]
    (tmp_path / "no_run").mkdir()
    shutil.copytree(own_run, tmp_path / "second")
    run = RunReader(own_run)
    run.refresh()
    assert [p.name for p in Session(run).comparable()] == ["second"]
    with pytest.raises(StoreError, match="does not exist"):
        session.add(tmp_path / "none")
    before = len(session.progress_plots()[0].lines)
    session.add(other_path)
    assert len(session.progress_plots()[0].lines) > before


def test_a_command_needs_a_process_that_makes_the_run(session):
    with pytest.raises(StoreError, match="no process makes this run now"):
        session.monitor.send(Command(kind="pause"))


def test_a_run_that_was_left_early_is_stopped(own_run):
    (own_run / "iterations" / "0003.h5").unlink()
    run = RunReader(own_run)
    run.refresh()
    status = Session(run).monitor.status
    assert (status.state, status.iteration) == ("stopped", 2)
    assert "gps resume" in status.note


def test_an_asynchronous_run_that_ended_by_itself_is_done(tmp_path):
    """However many snapshots were expected; a run that was stopped is not done."""
    experiment = replace(gps.load("point_mass_policy"), iterations=4)
    config = gps.AsynchronousConfig(rollouts=experiment.samples * 16, updates=2)
    out, steering = tmp_path / "run", Steering(pausable=False)
    reports = list(gps.run_asynchronous(experiment, out=out, config=config, steering=steering))
    assert 0 < len(reports) < 4
    ended = steering.status
    assert (ended.state, ended.iteration, ended.total) == ("done", len(reports), len(reports))
    run = RunReader(out)
    run.refresh()
    session = Session(run)
    stored = session.monitor.status
    assert (stored.state, stored.iteration, stored.total) == ("done", len(reports), len(reports))
    text = (out / "log.txt").read_text()
    (out / "log.txt").write_text(text.replace("the run is done", "the run is stopped"))
    assert (session.monitor.status.state, session.monitor.status.total) == ("stopped", 4)
    session.close()


def test_a_finished_run_is_resumed_only_for_more_iterations(session):
    with pytest.raises(StoreError, match="has reached its 3 iterations"):
        session.monitor.resume()


def test_a_run_of_another_machine_is_watched_only(own_run):
    (own_run / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": ""}))
    run = RunReader(own_run)
    run.refresh()
    session = Session(run)
    session.poll()
    status = session.monitor.status
    assert status.state == "running"
    assert "process 1 on elsewhere writes to it" in status.note
    assert not session.monitor.can_resume
    with pytest.raises(StoreError, match="process 1 on elsewhere"):
        session.monitor.send(Command(kind="pause"))


def test_a_running_run_is_monitored_and_steered(tmp_path):
    experiment = gps.load("point_mass_policy")
    agent = replace(experiment.agent, T=8, starts=((1.0, 1.0), (1.0, -1.0)))
    training = replace(experiment.algorithm.training, steps=40)
    algorithm = replace(experiment.algorithm, training=training)
    experiment = replace(experiment, iterations=3, agent=agent, samples=3, algorithm=algorithm)
    steering, out = Steering(), tmp_path / "run"
    steering.send(Command(kind="pause"))
    reports = gps.run(experiment, out=out, steering=steering)
    thread = threading.Thread(target=lambda: list(reports), daemon=True)
    thread.start()
    until(lambda: steering.status.state == "paused")
    run = RunReader(out)
    run.refresh()
    session = Session(run)
    until(lambda: session.poll() or session.monitor.status.state == "paused")
    assert session.monitor.connected
    assert session.selection.iteration == 0
    assert session.condition_plots() == []
    assert session.rollout(0) is None
    assert not session.monitor.can_resume
    session.monitor.send(Command(kind="change", options={"samples": "4"}))
    with pytest.raises(ConfigError, match="cannot change between iterations"):
        session.monitor.send(Command(kind="change", options={"agent.T": "4"}))
    session.monitor.send(Command(kind="step"))
    until(lambda: session.poll() and session.selection.iteration == 1)
    assert run.samples(1) == 4
    until(lambda: session.poll() or session.monitor.settings["samples"] == "4")
    session.monitor.send(Command(kind="run"))
    thread.join(60)
    until(
        lambda: (
            session.poll()
            or (session.monitor.status.state == "done" and not session.monitor.connected)
        )
    )
    assert session.selection.iteration == 3
    lines = [line.split(" ", 2)[2] for line in session.monitor.log()]
    assert "command: change: samples 4" in lines
    assert lines[0].startswith("initial controller: HoldConfig: ")
    assert lines[1].startswith("process ")
    stored = [
        line for line in lines if re.fullmatch(r"iteration \d is stored, after \d+\.\d s", line)
    ]
    assert [line.split()[1] for line in stored] == ["1", "2", "3"]
    assert lines[-1] == "the run is done"
    assert session.errors() == []
    session.close()


def test_the_error_that_ended_a_run_stays_visible(session, own_run):
    text = "2026-01-01T00:00:00 error the arm fell off (in iteration 4)\n"
    (own_run / "log.txt").write_text(text)
    run = RunReader(own_run)
    run.refresh()
    other = Session(run)
    (error,) = other.errors()
    assert error == f"the arm fell off (in iteration 4); resume with: gps resume {own_run}"
    assert other.monitor.status.state == "failed"
    assert session.errors() == []


def test_feature_points_lie_in_the_receptive_fields():
    config = VisionConfig(channels=(4, 6), kernels=(5, 3), strides=(2, 1), finetune_steps=1)
    policy = config.initial_policy(Sizes(2, 2, (32, 48, 3)), np.random.default_rng(0))
    frame = np.zeros((32, 48, 3), np.uint8)
    points = policy.feature_points(frame)
    # on a uniform image every softmax is flat: its mean is the centre
    np.testing.assert_allclose(points, np.tile([[23.0, 15.0]], (6, 1)), atol=1e-4)
    assert policy.feature_points(frame[:10]) is None


def test_a_feature_point_is_column_and_row_of_a_bright_pixel():
    config = VisionConfig(channels=(1,), kernels=(3,), strides=(1,), finetune_steps=1)
    policy = config.initial_policy(Sizes(2, 2, (20, 30, 3)), np.random.default_rng(0))
    middle = np.zeros((1, 3, 3, 3))
    middle[:, :, 1, 1] = 200.0
    encoder = replace(policy.encoder, weights=(middle, np.zeros(1)))
    frame = np.zeros((20, 30, 3), np.uint8)
    frame[7, 22] = 255
    points = replace(policy, encoder=encoder).feature_points(frame)
    np.testing.assert_allclose(points, [[22.0, 7.0]], atol=1e-3)


def test_a_status_is_one_line():
    status = Status(
        state="running",
        iteration=3,
        total=12,
        doing="rollout, 2 of 4 done",
        elapsed=1.25,
        expected=2.0,
        remaining=18.75,
    )
    assert status_line(status, True) == (
        "running, iteration 3 of 12; rollout, 2 of 4 done; 1.2 s of about 2.0 s; 19 s left in all"
    )
    paused = Status(state="paused", iteration=2, total=4, elapsed=90.0, running_for=200.0)
    assert status_line(paused, True) == (
        "paused, iteration 2 of 4; for 1 min 30 s; 3 min 20 s since the start"
    )
    assert status_line(Status(state="failed", iteration=1, note="no disk"), False) == (
        "failed, iteration 1; no disk"
    )
    assert [duration(s) for s in (5, 200, 7500)] == ["5 s", "3 min 20 s", "2 h 5 min"]


def test_the_writer_of_a_run_is_read_from_its_lock(session):
    assert session.monitor.writer() == ""
    lock = session.run.path / "lock"
    try:
        lock.write_text(json.dumps({"pid": os.getpid(), "host": os.uname().nodename}))
        assert session.monitor.writer() == f"process {os.getpid()}"
        lock.write_text("{")
        assert session.monitor.writer() == ""
    finally:
        lock.unlink()
