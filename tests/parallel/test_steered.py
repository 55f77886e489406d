"""A run on worker processes is steered like one in this process, and gives the same bytes."""

import hashlib
import threading
import time
from dataclasses import replace

import pytest

import gps
from gps.parallel import Dask
from gps.pipeline.steering import Command, Steering
from gps.pipeline.store import RunFolder


@pytest.fixture(scope="module")
def executor():
    executor = Dask(workers=2, task_timeout=60)
    yield executor
    executor.close()


def hashes(folder):
    files = sorted((folder / "iterations").glob("*.h5"))
    return [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]


def until(what, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


@pytest.mark.parametrize("stored", [True, False])
def test_pause_change_repeat_on_workers(executor, tmp_path, stored):
    known = gps.load("point_mass_policy")
    training = replace(known.algorithm.training, steps=40)
    experiment = replace(
        known,
        iterations=4,
        samples=3,
        agent=replace(known.agent, T=8),
        algorithm=replace(known.algorithm, training=training),
    )
    steering, done, doing = Steering(), [], set()
    steering.send(Command(kind="pause"))
    out = tmp_path / "run" if stored else None
    reports = gps.run(experiment, executor=executor, out=out, steering=steering)

    def go():
        for report in reports:
            done.append(report)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    until(lambda: steering.status.state == "paused")

    def step(command):
        count = len(done)
        steering.send(command)

        def over():
            doing.add(steering.status.doing)
            return len(done) > count and steering.status.state == "paused"

        until(over)

    step(Command(kind="step"))
    steering.send(Command(kind="pause", after="rollouts"))
    until(lambda: steering.status.note == "after the rollouts")
    step(Command(kind="step"))
    steering.send(Command(kind="change", options={"samples": "4"}))
    step(Command(kind="step"))
    step(Command(kind="repeat", seed=3))
    steering.send(Command(kind="run"))
    thread.join(60)
    assert not thread.is_alive()
    assert [r.iteration for r in done] == [1, 2, 3, 3, 4]
    assert [r.rollouts[0].N for r in done] == [3, 3, 4, 4, 4]
    assert any(text.startswith("rollout") for text in doing)
    again = tmp_path / "again"
    made = RunFolder.open(out).changes() if stored else None
    if made is None:
        from gps.pipeline.changes import Change, Changes

        made = Changes(((3, Change({"samples": "4"}, 3)),))
    last = None
    for report in gps.run(experiment, out=again, changes=made):
        last = report
    assert (last.row["cost_mean"], last.row["policy_loss"]) == (
        done[-1].row["cost_mean"],
        done[-1].row["policy_loss"],
    )
    if stored:
        assert hashes(out) == hashes(again)
