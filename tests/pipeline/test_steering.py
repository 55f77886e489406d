"""Pausing, stepping, repeating, changing and stopping a run, from a thread and from a process."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

import gps
from gps.errors import ConfigError, StoreError
from gps.pipeline import changes
from gps.pipeline.steering import Command, Steering
from gps.pipeline.steering_socket import connect, socket_path
from gps.pipeline.store import RunFolder


@pytest.fixture
def experiment():
    experiment = gps.load("point_mass_policy")
    training = replace(experiment.algorithm.training, steps=40)
    agent = replace(experiment.agent, T=8, starts=((1.0, 1.0), (1.0, -1.0)))
    algorithm = replace(experiment.algorithm, training=training)
    return replace(experiment, iterations=4, agent=agent, samples=3, algorithm=algorithm)


def hashes(folder):
    files = sorted((folder / "iterations").glob("*.h5"))
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def until(what, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


class Running:
    """A run in a thread, paused before its first iteration."""

    def __init__(self, experiment, paused=True, **options):
        self.steering = Steering()
        self.done, self.error = [], None
        if paused:
            self.steering.send(Command(kind="pause"))
        self.thread = threading.Thread(target=self._go, args=(experiment, options), daemon=True)
        self.thread.start()
        if paused:
            self.wait("paused")

    def _go(self, experiment, options):
        try:
            for report in gps.run(experiment, steering=self.steering, **options):
                self.done.append(report.iteration)
        except Exception as error:
            self.error = error

    def tell(self, kind, **values):
        self.steering.send(Command(kind=kind, **values))

    def wait(self, state):
        until(lambda: self.steering.status.state == state)

    def iterations(self, *numbers):
        until(lambda: self.done == list(numbers) and self.steering.status.state != "running")

    def end(self):
        self.thread.join(60)
        assert not self.thread.is_alive()
        assert self.error is None


def test_a_run_holds_makes_one_iteration_and_continues(experiment, tmp_path):
    run = Running(experiment, out=tmp_path / "run")
    assert run.done == []
    run.tell("step")
    run.iterations(1)
    time.sleep(0.3)
    assert run.steering.status.state == "paused"
    run.tell("run")
    run.end()
    assert run.done == [1, 2, 3, 4]
    assert run.steering.status.state == "done"
    for _ in gps.run(experiment, out=tmp_path / "plain"):
        pass
    assert hashes(tmp_path / "run") == hashes(tmp_path / "plain")


def test_a_pause_while_it_runs_begins_after_the_iteration(experiment):
    run = Running(replace(experiment, iterations=1000), paused=False)
    until(lambda: len(run.done) >= 1)
    run.tell("pause")
    run.wait("paused")
    count = len(run.done)
    time.sleep(0.3)
    assert len(run.done) == count
    assert run.steering.status.iteration == count
    run.tell("stop")
    run.end()
    assert len(run.done) == count


def test_a_pause_after_the_rollouts_holds_before_the_iteration_is_stored(experiment, tmp_path):
    run = Running(experiment, out=tmp_path / "run")
    run.tell("pause", after="rollouts")
    until(lambda: run.steering.status.note == "after the rollouts")
    assert run.steering.status.state == "paused"
    assert run.done == []
    run.tell("step")
    run.iterations(1)
    run.tell("pause", after="rollouts")
    until(lambda: run.steering.status.note == "after the rollouts")
    run.tell("stop")
    run.end()
    assert run.done == [1]
    assert RunFolder.open(tmp_path / "run").iterations() == [0, 1]


def test_a_changed_option_is_stored_and_the_run_can_be_made_again(experiment, tmp_path):
    run = Running(experiment, out=tmp_path / "run")
    run.tell("step")
    run.iterations(1)
    run.tell("change", options={"samples": "5", "algorithm.step.kl-max": "0.125"})
    until(lambda: run.steering.status.settings["samples"] == "5")
    run.tell("run")
    run.end()
    folder = RunFolder.open(tmp_path / "run")
    assert [folder.read(n).rollouts[0].N for n in (1, 2, 3, 4)] == [3, 5, 5, 5]
    size = len(folder.read(1).rollouts) * folder.read(1).rollouts[0].T
    assert [row["env_steps"] / size for row in folder.metrics()] == [3, 8, 13, 18]
    made = folder.changes()
    assert made.options(2) == {"samples": "5", "algorithm.step.kl-max": "0.125"}
    assert made.options(1) == {}
    for _ in gps.run(experiment, out=tmp_path / "again", changes=made):
        pass
    for _ in gps.resume(tmp_path / "again", start=1):
        pass
    assert hashes(tmp_path / "run") == hashes(tmp_path / "again")
    rows = RunFolder.open(tmp_path / "again").metrics()
    assert [row["env_steps"] / size for row in rows] == [3, 8, 13, 18]
    for _ in gps.run(experiment, out=tmp_path / "plain"):
        pass
    assert hashes(tmp_path / "run")["0002.h5"] != hashes(tmp_path / "plain")["0002.h5"]


def test_a_repeat_replaces_the_last_iteration_and_holds(experiment, tmp_path):
    run = Running(experiment, out=tmp_path / "run")
    run.tell("step")
    run.iterations(1)
    run.tell("step")
    run.iterations(1, 2)
    first = hashes(tmp_path / "run")
    run.tell("repeat")
    run.iterations(1, 2, 2)
    assert hashes(tmp_path / "run") == first
    run.tell("repeat", seed=11)
    run.iterations(1, 2, 2, 2)
    second = hashes(tmp_path / "run")
    assert second["0001.h5"] == first["0001.h5"]
    assert second["0002.h5"] != first["0002.h5"]
    run.tell("repeat", options={"samples": "4"})
    run.iterations(1, 2, 2, 2, 2)
    run.tell("run")
    run.end()
    folder = RunFolder.open(tmp_path / "run")
    assert [row["iteration"] for row in folder.metrics()] == [1, 2, 3, 4]
    assert folder.read(2).rollouts[0].N == 4
    assert (folder.changes().seed(2), folder.changes().options(2)) == (11, {"samples": "4"})
    for _ in gps.run(experiment, out=tmp_path / "again", changes=folder.changes()):
        pass
    assert hashes(tmp_path / "run") == hashes(tmp_path / "again")


def test_a_repeat_in_memory_starts_where_the_iteration_started(experiment):
    run = Running(experiment)
    run.tell("step")
    run.iterations(1)
    run.tell("repeat")
    run.iterations(1, 1)
    run.tell("run")
    run.end()
    assert run.done == [1, 1, 2, 3, 4]


def test_more_iterations_and_a_pause_at_the_end(experiment):
    run = Running(replace(experiment, iterations=1))
    run.tell("step")
    run.iterations(1)
    assert run.steering.status.state == "paused"
    run.tell("change", options={"iterations": "2"})
    until(lambda: run.steering.status.total == 2)
    run.tell("run")
    run.end()
    assert run.done == [1, 2]


def test_a_stop_ends_the_run_with_the_iteration_stored(experiment, tmp_path):
    run = Running(replace(experiment, iterations=1000), paused=False, out=tmp_path / "run")
    until(lambda: len(run.done) >= 2)
    run.tell("stop")
    run.end()
    assert RunFolder.open(tmp_path / "run").iterations()[-1] == run.done[-1]
    assert run.steering.status.state == "stopped"
    assert run.steering.status.running_for > 0
    with pytest.raises(ConfigError, match="the run has ended"):
        run.tell("pause")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"kind": "explode"}, "Command.kind must be 'run', 'pause', 'step'"),
        ({"kind": "pause", "after": "lunch"}, "Command.after must be 'iteration' or 'rollouts'"),
        ({"kind": "change"}, "at least one option"),
        ({"kind": "pause", "options": {"samples": "3"}}, "for change and repeat"),
        ({"kind": "change", "options": {"samples": 3}}, "text to text"),
        ({"kind": "repeat", "seed": -1}, "seed must be"),
        ({"kind": "run", "seed": 1}, "for repeat"),
    ],
)
def test_commands_that_make_no_sense_are_refused(values, text):
    with pytest.raises(ConfigError, match=text):
        Command(**values)


def test_what_cannot_be_done_is_refused_at_once(experiment):
    run = Running(experiment)
    with pytest.raises(ConfigError, match="no iteration to repeat"):
        run.tell("repeat")
    with pytest.raises(ConfigError, match="did you mean samples"):
        run.tell("change", options={"sampels": "3"})
    run.tell("stop")
    run.end()
    only = Steering(pausable=False)
    with pytest.raises(ConfigError, match="it takes stop"):
        only.send(Command(kind="pause"))


def test_the_status_says_what_is_done_and_how_long_it_will_take(experiment):
    run = Running(experiment)
    before = run.steering.status
    assert (before.iteration, before.total, before.state) == (0, 4, "paused")
    run.tell("step")
    run.iterations(1)
    after = run.steering.status
    assert after.iteration == 1
    assert after.expected > 0
    assert after.settings["samples"] == "3"
    run.tell("stop")
    run.end()


def test_an_error_is_the_last_status_and_stands_in_the_log(experiment, tmp_path, monkeypatch):
    from gps.pipeline import sampling

    def fail(*args, **kwargs):
        raise ConfigError("the arm fell off")

    monkeypatch.setattr(sampling, "rollout", fail)
    run = Running(experiment, paused=False, out=tmp_path / "run")
    run.thread.join(60)
    assert isinstance(run.error, ConfigError)
    status = run.steering.status
    assert status.state == "failed"
    assert "the arm fell off" in status.note
    assert "iteration 1" in status.note
    assert "error the arm fell off" in (tmp_path / "run" / "log.txt").read_text()


# --- from another process ------------------------------------------------------------------------


def test_another_process_steers_a_run(experiment, tmp_path):
    out = tmp_path / "run"
    run = Running(experiment, out=out)
    until(lambda: socket_path(out).exists())
    script = f"""
import time
from gps.errors import ConfigError
from gps.pipeline.steering import Command
from gps.pipeline.steering_socket import connect
run = connect({str(out)!r})
def wait(test):
    while run.status is None or not test(run.status):
        time.sleep(0.01)
wait(lambda s: s.state == "paused")
run.send(Command(kind="change", options={{"samples": "4"}}))
try:
    run.send(Command(kind="change", options={{"samples": "-4"}}))
except ConfigError as error:
    print("refused:", error)
run.send(Command(kind="step"))
wait(lambda s: s.state == "paused" and s.iteration == 1)
print("settings", run.status.settings["samples"])
run.send(Command(kind="run"))
wait(lambda s: s.state == "done")
run.close()
print("end")
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=True
    )
    run.end()
    assert "refused: Experiment.samples must be" in ran.stdout
    assert "settings 4" in ran.stdout
    assert ran.stdout.endswith("end\n")
    assert RunFolder.open(out).read(1).rollouts[0].N == 4
    assert not socket_path(out).exists()
    log = (out / "log.txt").read_text()
    assert "command: change: samples 4" in log
    assert "command: step" in log


def test_only_the_owner_can_enter(experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # where the folder is still to be made
    run = Running(experiment, out=tmp_path / "run")
    until(lambda: socket_path(tmp_path / "run").exists())
    folder = socket_path(tmp_path / "run").parent
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.stat().st_uid == os.getuid()
    run.tell("stop")
    run.end()


def test_a_folder_of_somebody_else_is_not_used(tmp_path, monkeypatch, caplog, experiment):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / f"gps-{os.getuid()}").mkdir(mode=0o777)
    (tmp_path / f"gps-{os.getuid()}").chmod(0o777)
    for _ in gps.run(replace(experiment, iterations=1), out=tmp_path / "run"):
        pass
    assert "cannot steer this run" in caplog.text
    with pytest.raises(StoreError, match="no process"):
        connect(tmp_path / "run")


@pytest.mark.parametrize(
    "line",
    [
        b"not json\n",
        b"[]\n",
        b'{"id": 1}\n',
        b'{"id": 1, "command": {"kind": "pause", "colour": "red"}}\n',
        b'{"id": 1, "command": {"kind": ["pause"]}}\n',
    ],
)
def test_nonsense_from_a_peer_is_answered_and_harmless(experiment, tmp_path, line):
    run = Running(experiment, out=tmp_path / "run")
    until(lambda: socket_path(tmp_path / "run").exists())
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.connect(str(socket_path(tmp_path / "run")))
    peer.settimeout(20)
    peer.sendall(line)
    answers = peer.makefile()
    while "error" not in (message := json.loads(answers.readline())):
        pass
    assert message["error"]
    answers.close()
    peer.close()
    run.tell("run")
    run.end()
    assert run.done == [1, 2, 3, 4]


def test_a_peer_that_never_reads_does_not_hold_up_the_run(experiment, tmp_path):
    run = Running(experiment, out=tmp_path / "run")
    until(lambda: socket_path(tmp_path / "run").exists())
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.connect(str(socket_path(tmp_path / "run")))
    try:
        for _ in range(4000):  # answers that nobody takes
            peer.sendall(json.dumps({"id": 1, "command": {"kind": "x" * 500}}).encode() + b"\n")
    except OSError:
        pass  # dropped
    run.tell("run")
    run.end()
    peer.close()
    assert run.done == [1, 2, 3, 4]


def test_a_run_that_was_killed_leaves_nothing_that_is_in_the_way(experiment, tmp_path):
    out = tmp_path / "run"
    for _ in gps.run(replace(experiment, iterations=1), out=out):
        pass
    stale = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stale.bind(str(socket_path(out)))
    stale.close()
    with pytest.raises(StoreError, match="no process"):
        connect(out)
    steering = Steering()
    steering.send(Command(kind="pause"))
    reports = gps.resume(out, iterations=2, steering=steering)
    thread = threading.Thread(target=lambda: list(reports))
    thread.start()
    until(lambda: steering.status.state == "paused")
    other = connect(out)
    other.send(Command(kind="run"))
    thread.join(60)
    assert not thread.is_alive()
    other.close()
    assert RunFolder.open(out).last() == 2


def test_changes_that_cannot_work_are_refused_before_the_first_rollout(experiment, tmp_path):
    made = changes.Changes().with_change(3, changes.Change({"samples": "0"}))
    with pytest.raises(ConfigError, match=r"Experiment\.samples"):
        next(gps.run(experiment, out=tmp_path / "run", changes=made))
    assert not (tmp_path / "run").exists()
