"""What a run survives, and how it ends when it cannot: every fault is caused for real."""

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import dask
import pytest
from distributed import Client, LocalCluster

import gps
from gps.costs import StateCost
from gps.errors import ClusterError, ConfigError, GPSError, SharedLostError
from gps.execution import stage, stage_of
from gps.parallel import Dask
from gps.pipeline.store import RunFolder

STAGES = (
    "rollout",
    "expand_cost",
    "fit_dynamics",
    "linearise_policy",
    "assess",
    "improve",
    "targets",
    "train_policy",
    "score",
)

ALWAYS = ("improve", "train_policy")


HANGS = 7.0
"""Seconds after which a task is held to hang: a slow machine loads torch and kernels in four."""


@pytest.fixture(scope="module")
def two():
    ex = Dask(workers=2, task_timeout=60)
    yield ex
    ex.close()


def small():
    """Two short iterations with a policy, from four starts."""
    experiment = gps.load("point_mass_policy")
    training = replace(experiment.algorithm.training, steps=200)
    return replace(
        experiment,
        algorithm=replace(experiment.algorithm, training=training),
        agent=replace(experiment.agent, T=15),
        samples=4,
        iterations=3,
    )


def hashes(folder):
    files = sorted((folder / "iterations").iterdir())
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def serial_hashes(tmp_path_factory):
    out = tmp_path_factory.mktemp("serial") / "run"
    for _ in gps.run(small(), out=out):
        pass
    return hashes(out)


def once(mark, act, fn, *args):
    """Do something in the first task that comes here, then what the task is for."""
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return fn(*args)
    act()
    return fn(*args)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(3600)


def sabotage(monkeypatch, executor, where, act, mark, after=0):
    """Let one task of stage `where`, but `after` of them, begin with `act` in its worker."""
    call, seen = executor.call, []

    def changed(fn, *args, condition=-1):
        if stage_of(fn) == where:
            seen.append(condition)
            if len(seen) > after:
                fn = stage(where)(partial(once, str(mark), act, fn))
        return call(fn, *args, condition=condition)

    monkeypatch.setattr(executor, "call", changed)


def run_with_fault(monkeypatch, executor, where, act, tmp_path, after=4):
    mark = tmp_path / "mark"
    sabotage(monkeypatch, executor, where, act, mark, after)
    reports = list(gps.run(small(), out=tmp_path / "run", executor=executor))
    assert mark.exists()  # it has happened
    assert len(reports) == 3
    return hashes(tmp_path / "run")


# --- workers that die, hang, leave


@pytest.mark.parametrize(
    "where",
    [
        s if s in ("improve", "train_policy") else pytest.param(s, marks=pytest.mark.slow)
        for s in STAGES
    ],
)
def test_a_worker_killed_in_a_stage_changes_no_byte(
    where, two, serial_hashes, monkeypatch, tmp_path, caplog
):
    after = 1 if where == "train_policy" else 5  # in the second iteration
    with caplog.at_level(logging.WARNING, "gps"):
        assert run_with_fault(monkeypatch, two, where, die, tmp_path, after) == serial_hashes
    assert "running it again" in caplog.text


def test_a_worker_killed_between_iterations_changes_no_byte(two, serial_hashes, tmp_path):
    for report in gps.run(small(), out=tmp_path / "run", executor=two):
        if report.iteration < 3:
            pid = two.client.run(os.getpid, workers=[two._homes[0]]).popitem()[1]
            os.kill(pid, signal.SIGKILL)
    assert hashes(tmp_path / "run") == serial_hashes


@pytest.mark.slow
def test_a_worker_that_hangs_is_restarted(two, serial_hashes, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(two, "_task_timeout", HANGS)
    with caplog.at_level(logging.WARNING, "gps"):
        got = run_with_fault(monkeypatch, two, "fit_dynamics", hang, tmp_path)
    assert got == serial_hashes
    assert f"has not finished within {HANGS:g} s: restarting worker" in caplog.text
    assert "fit_dynamics of condition" in caplog.text


def announced(folder):
    """A preparation that says where it has begun, and takes long enough to be killed in."""
    (folder / str(os.getpid())).touch()
    time.sleep(1.5)


@pytest.mark.parametrize("worker", [0, 1])
def test_a_worker_lost_while_it_is_prepared(two, worker, tmp_path):
    """The first of a host goes ahead, then come all."""
    both(two)
    pid = two.client.run(os.getpid, workers=[two._workers[worker]]).popitem()[1]

    def kill():
        while not (tmp_path / str(pid)).exists():
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    two.prepare(partial(announced, tmp_path))
    killer.join(timeout=0)
    assert not killer.is_alive()
    assert two.gather(two.call(abs, -3)) == 3
    both(two)


def test_a_worker_that_dask_gives_up_is_replaced(two):
    """Dask closes the nanny of a worker that is missing 15 s after a death, perhaps its second."""
    both(two)
    cluster = two._cluster
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "0.1s"}):
        name, nanny = next(iter(cluster.workers.items()))
        cluster.sync(nanny.close)
        deadline = time.monotonic() + 30
        while cluster.workers.get(name) is nanny:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    both(two)
    assert two.gather([two.call(abs, -3, condition=m) for m in range(4)]) == [3] * 4


@stage("expand_cost")
def leave(*_):
    sys.exit(3)


def test_a_task_that_calls_exit_is_named(two):
    with pytest.raises(GPSError, match=r"called sys\.exit\(3\)") as caught:
        two.gather(two.call(leave, condition=1))
    assert caught.value.__notes__ == ["in expand_cost of condition 1"]


def test_a_large_value_for_a_worker_that_is_gone_costs_seconds(two):
    import numpy as np

    both(two)
    handle = two.call(np.ones, 10**6, condition=0)
    two.gather(handle)
    two.keep(handle)
    two._homes[5] = "tcp://127.0.0.1:1"  # as if a worker had left since the last look
    two._workers.append("tcp://127.0.0.1:1")
    start = time.monotonic()
    assert two.gather(two.call(np.sum, handle, condition=5)) == 10**6
    assert time.monotonic() - start < 20


def freeze():
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.slow
def test_a_worker_whose_process_is_stopped_is_restarted(two, serial_hashes, monkeypatch, tmp_path):
    monkeypatch.setattr(two, "_task_timeout", HANGS)
    assert run_with_fault(monkeypatch, two, "improve", freeze, tmp_path) == serial_hashes


def pause():
    time.sleep(2 * HANGS + 8)


@pytest.mark.slow
def test_a_thread_that_hangs_is_given_up(serial_hashes, monkeypatch, tmp_path, caplog):
    """Workers that are threads of the driver cannot be ended."""
    with (
        LocalCluster(
            n_workers=2, processes=False, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        executor = Dask(client, task_timeout=HANGS)
        with caplog.at_level(logging.WARNING, "gps"):
            got = run_with_fault(monkeypatch, executor, "improve", pause, tmp_path)
        executor.close()
        assert got == serial_hashes
        assert "cannot be restarted" in caplog.text
        time.sleep(HANGS + 4)  # until the thread has woken up


def test_a_task_that_kills_every_worker_is_named(monkeypatch, two, tmp_path):
    call = two.call

    def changed(fn, *args, condition=-1):
        if stage_of(fn) == "fit_dynamics" and condition == 2:
            fn = deadly
        return call(fn, *args, condition=condition)

    monkeypatch.setattr(two, "call", changed)
    with pytest.raises(
        ClusterError, match="fit_dynamics of condition 2: given up after 3 attempts"
    ):
        list(gps.run(small(), executor=two))


@stage("fit_dynamics")
def deadly(*args):
    die()


@stage("improve")
def forever(*args):
    hang()


@pytest.mark.slow
def test_a_task_that_always_hangs_is_named(monkeypatch, two, caplog, serial_hashes):
    """Three restarts, all for the call that hangs, which is not the oldest one.

    By then the serial run has compiled whatever a stage needs, which may take longer than HANGS.
    """
    assert serial_hashes
    both(two)
    monkeypatch.setattr(two, "_task_timeout", HANGS)
    call = two.call

    def changed(fn, *args, condition=-1):
        if (stage_of(fn), condition) == ("improve", 3):
            fn = forever
        return call(fn, *args, condition=condition)

    monkeypatch.setattr(two, "call", changed)
    with (
        caplog.at_level(logging.WARNING, "gps"),
        pytest.raises(ClusterError, match="improve of condition 3: given up after 3 attempts"),
    ):
        list(gps.run(small(), executor=two))
    named = [r.getMessage() for r in caplog.records if "has not finished within" in r.getMessage()]
    assert len(named) == 3
    assert all(text.startswith("improve of condition 3 has not") for text in named)


@pytest.mark.slow
def test_a_result_that_is_not_fetched_is_no_hang(two, monkeypatch, caplog):
    """A worker that has done its part is left alone while another works on."""
    both(two)
    monkeypatch.setattr(two, "_task_timeout", HANGS)
    idle, busy = 100, next(m for m in range(101, 120) if two._home(m) != two._home(100))
    done = two.call(abs, -3, condition=idle)
    two.wait([done])
    with caplog.at_level(logging.WARNING, "gps"):
        began = time.monotonic()
        while time.monotonic() - began < 1.2 * HANGS:  # each far below what counts as a hang
            two.gather(two.call(time.sleep, HANGS / 20, condition=busy))
    assert "has not finished" not in caplog.text
    assert two.gather(done) == 3


def test_a_shared_object_goes_to_a_worker_that_is_there(two):
    both(two)
    two._workers.insert(0, "tcp://127.0.0.1:1")  # as if one had left since the last look
    two._workers.insert(0, "tcp://127.0.0.1:2")
    start = time.monotonic()
    for _ in range(3):
        shared = two.share(Counter, 3)
        assert shared.ask("add", 1) == 4
        shared.close()
    assert time.monotonic() - start < 20


@pytest.mark.slow
def test_all_workers_gone_waits_and_goes_on(serial_hashes, tmp_path, caplog):
    """A cluster without nannies: nothing brings its only worker back."""
    with Cluster(tmp_path) as cluster:
        first = cluster.worker()
        executor = Dask(scheduler=cluster.address)
        helper = threading.Timer(6.0, cluster.worker)
        with caplog.at_level(logging.WARNING, "gps"):
            for report in gps.run(small(), out=tmp_path / "run", executor=executor):
                if report.iteration == 1:
                    first.kill()
                    helper.start()
        executor.close()
        helper.join()
    assert hashes(tmp_path / "run") == serial_hashes
    assert "no worker is left; waiting for one to join" in caplog.text
    assert "joined after" in caplog.text


def test_workers_that_join_get_conditions(tmp_path, serial_hashes):
    with Cluster(tmp_path) as cluster:
        cluster.worker()
        executor = Dask(scheduler=cluster.address)
        homes = []
        for report in gps.run(small(), out=tmp_path / "run", executor=executor):
            homes.append(len(set(executor._homes.values())))
            if report.iteration == 1:
                cluster.worker()
                executor.client.wait_for_workers(2, timeout=60)
                executor._looked = 0.0
        executor.close()
    assert homes == [1, 2, 2]
    assert hashes(tmp_path / "run") == serial_hashes


class Cluster:
    """A scheduler and workers in processes of their own, without nannies."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, []

    def __enter__(self):
        file = self.folder / "scheduler.json"
        self.scheduler = self.start(
            "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
            "--no-dashboard", "--scheduler-file", str(file),
        )  # fmt: skip
        deadline = time.monotonic() + 60
        self.address = None
        while self.address is None:
            assert time.monotonic() < deadline
            with suppress(OSError, ValueError):  # not there, or not whole yet
                self.address = json.loads(file.read_text())["address"]
            time.sleep(0.05)
        return self

    def start(self, module, *args):
        process = subprocess.Popen(
            [sys.executable, "-m", module, *args],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
        )
        self.processes.append(process)
        return process

    def worker(self):
        return self.start(
            "distributed.cli.dask_worker", self.address, "--no-nanny", "--nthreads", "1",
            "--no-dashboard", "--local-directory", str(self.folder),
        )  # fmt: skip

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()
            process.wait()


# --- the scheduler, and tasks that raise


@pytest.mark.slow
def test_a_scheduler_that_is_lost_ends_the_run_and_it_can_be_resumed(tmp_path, serial_hashes):
    with Cluster(tmp_path) as cluster:
        cluster.worker()
        command = [
            sys.executable, "-m", "gps.cli", "run", str(experiment_file(tmp_path)), "--scheduler",
            cluster.address, "--out", str(tmp_path / "run"),
        ]  # fmt: skip
        env = os.environ | {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "4s"}
        driver = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        )
        first = tmp_path / "run" / "iterations" / "0001.h5"
        deadline = time.monotonic() + 90
        while not first.exists():
            assert driver.poll() is None, driver.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        cluster.scheduler.kill()
        out, err = driver.communicate(timeout=90)
    assert driver.returncode == 2
    lines = [line for line in err.splitlines() if line.startswith("gps: error:")]
    assert len(lines) == 1
    assert f"the Dask scheduler {cluster.address} is gone" in lines[0]
    assert "gps resume" in lines[0]
    assert "Traceback" not in err + out
    done = RunFolder.open(tmp_path / "run").iterations()
    assert done[:2] == [0, 1]
    assert max(done) < 40


def experiment_file(folder: Path) -> Path:
    """A run of many short iterations."""
    path = folder / "many.py"
    path.write_text(
        "from dataclasses import replace\nimport gps\n"
        "experiment = replace(gps.load('point_mass'), name='many', iterations=1000)\n"
    )
    return path


@dataclass(frozen=True, kw_only=True)
class Broken(StateCost):
    """A cost with a mistake in it."""

    def evaluate(self, rollouts):
        if rollouts.condition == 1:
            return the_mistake(rollouts)
        return super().evaluate(rollouts)


def the_mistake(rollouts):
    return rollouts.X / rollouts.no_such_thing


def test_a_task_that_raises_is_named_and_keeps_its_traceback(two):
    import traceback

    cost = Broken(entry="position", target=(0.0, 0.0), weights=1.0, l2=1.0)
    with pytest.raises(AttributeError, match="no_such_thing") as caught:
        list(gps.run(replace(small(), cost=cost), executor=two))
    assert caught.value.__notes__ == ["in expand_cost of condition 1", "in iteration 1"]
    text = "".join(traceback.format_exception(caught.value))
    assert "in the_mistake" in text
    assert "rollouts.no_such_thing" in text
    with pytest.raises(AttributeError) as serial:
        next(gps.run(replace(small(), cost=cost)))
    assert serial.value.__notes__ == caught.value.__notes__
    assert two.gather(two.call(abs, -3)) == 3  # the executor goes on


# --- shared objects


class Counter:
    def __init__(self, start):
        self.value = start

    def add(self, n):
        if n < 0:
            raise ValueError("only up")
        self.value += n
        return self.value


def add_often(counter, n):
    return [counter.ask("add", 1) for _ in range(n)]


def test_a_shared_object_answers_driver_and_tasks_until_its_worker_dies(two):
    counter = two.share(Counter, 10)
    assert counter.ask("add", 5) == 15
    asked = [two.call(add_often, counter, 20, condition=m) for m in range(2)]
    values = sorted(v for answers in two.gather(asked) for v in answers)
    assert values == list(range(16, 56))  # every request once, none lost
    with pytest.raises(ValueError, match="only up"):
        counter.ask("add", -1)
    (pid,) = two.client.run(os.getpid, workers=[worker_of(two, counter)]).values()
    os.kill(pid, signal.SIGKILL)
    start = time.monotonic()

    def ask_on():
        for _ in range(100):
            counter.ask("add", 1)
            time.sleep(0.05)

    with pytest.raises(SharedLostError, match="shared object"):
        ask_on()
    assert time.monotonic() - start < 20
    counter.close()
    again = two.share(Counter, 3)
    assert again.ask("add", 1) == 4


def worker_of(executor, shared):
    return shared._actor._address


# --- gangs


def both(executor):
    """Wait for the worker that an earlier test has killed; a dead one is known for a while yet."""
    deadline = time.monotonic() + 60

    def alive():
        there = executor._look()
        return there & set(executor.client.run(os.getpid, on_error="ignore"))

    while len(alive()) < 2:
        assert time.monotonic() < deadline, "the second worker does not come back"
        time.sleep(0.1)


def ranks(group, value):
    import numpy as np

    got = group.all_gather(np.array([float(group.rank), value]))
    return [a.tolist() for a in got], group.size


def test_a_gang_talks(two):
    both(two)
    value = two.call(abs, -7)
    got, size = two.gather(two.gang(ranks, 4, value))
    assert size == 2
    assert got == [[0.0, 7.0], [1.0, 7.0]]
    assert two.gather(two.gang(ranks, 1, value)) == ([[0.0, 7.0]], 1)


def fragile(group, mark):
    import numpy as np

    for step in range(20):
        if step == 7 and group.rank == 1:
            once(mark, die, abs, 1)
        total = sum(a[0] for a in group.all_gather(np.array([float(step)])))
    return total / group.size


def test_a_gang_that_loses_a_member_starts_again(two, tmp_path):
    both(two)
    assert two.gather(two.gang(fragile, 2, str(tmp_path / "mark"))) == 19.0
    assert (tmp_path / "mark").exists()


def quarrel(group, _):
    import numpy as np

    group.all_gather(np.zeros(1))
    raise GPSError("the same on every member")


def test_an_error_of_a_gang_is_the_members_own(two):
    with pytest.raises(GPSError, match="the same on every member"):
        two.gather(two.gang(quarrel, 2, 0))


def test_a_handle_cannot_be_sent_by_accident(two):
    handle = two.call(abs, -3)

    class Opaque:
        def __init__(self, inside):
            self.inside = inside

    with pytest.raises(TypeError) as caught:
        two.call(abs, Opaque(handle))
    assert "a handle cannot be sent" in str(caught.getrepr(chain=True))


@pytest.mark.parametrize("address", ["foo", "", "tcp://127.0.0.1:9"])
def test_an_address_without_a_scheduler_is_one_line(address, tmp_path):
    env = os.environ | {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "1s"}
    done = subprocess.run(
        [sys.executable, "-m", "gps.cli", "run", "point_mass", "--scheduler", address],
        capture_output=True, text=True, timeout=60, env=env, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"gps: error: --scheduler {address}: no Dask scheduler answers")


def test_what_excludes_another_is_refused():
    for wrong in (
        {"workers": 2, "scheduler": "tcp://127.0.0.1:9"},
        {"client": object()},
        {"workers": 1, "reserve": -1},
        {"workers": 1, "task_timeout": "5"},
        {"workers": 1, "task_timeout": 0.0},
    ):
        with pytest.raises(ConfigError):
            Dask(**wrong)
