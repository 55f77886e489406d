"""The same bytes in every stored iteration, wherever the stages run and whatever happens there."""

import contextlib
import faulthandler
import hashlib
import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import permutations

import psutil
import pytest
from distributed import Client, LocalCluster

import gps
from gps import cli
from gps.algorithms import (
    BADMMConfig,
    MDGPSPILQRConfig,
    PI2TrajOptConfig,
    PIGPSConfig,
    PILQRTrajOptConfig,
)
from gps.execution import stage_of
from gps.parallel import Dask
from gps.pipeline.store import RunFolder
from gps.policies.sgd import SGDConfig

OTHERS = {"pigps": PIGPSConfig, "mdgps_pilqr": MDGPSPILQRConfig, "badmm": BADMMConfig}
ITERATIONS = 3
SHARDS = 4
LIMIT = 150.0  # seconds that one test may take


@pytest.fixture(autouse=True)
def ends():
    """A test that hangs fails; one that does not even notice the alarm ends the tests."""

    def late(number, frame):
        raise TimeoutError(f"the test takes more than {LIMIT:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    faulthandler.dump_traceback_later(2 * LIMIT, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, before)


# --- executors and experiments


@pytest.fixture(scope="module")
def one():
    yield from started(1)


@pytest.fixture(scope="module")
def two():
    yield from started(2)


@pytest.fixture(scope="module")
def four():
    yield from started(4)


def started(workers):
    ex = Dask(workers=workers, task_timeout=60)
    yield ex
    ex.close()


@pytest.fixture(scope="module")
def threads():
    """Workers that are threads of this process, behind a client that was handed in."""
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        ex = Dask(client)
        yield ex
        ex.close()


WORKERS = {"serial": 1, "one": 1, "two": 2, "four": 4, "threads": 2}


def executor_of(name, request):
    """An executor that is whole, also after a test that has killed one of its workers."""
    if name == "serial":
        return None
    ex = request.getfixturevalue(name)
    ex.client.wait_for_workers(WORKERS[name], timeout=60)
    ex._look()
    assert ex.workers == WORKERS[name]
    return ex


def short(name):
    """Seconds; every stage of the real thing."""
    local = ("controllers", "pi2", "pilqr")
    kind = "arm_reach" if name == "arm" else "point_mass" if name in local else "point_mass_policy"
    experiment = gps.load(kind)
    experiment = replace(
        experiment,
        agent=replace(experiment.agent, T=15),
        samples=4,
        iterations=2 if name == "arm" else ITERATIONS,
    )
    if name in local:
        others = {"pi2": PI2TrajOptConfig(), "pilqr": PILQRTrajOptConfig()}
        return replace(experiment, algorithm=others.get(name, experiment.algorithm))
    # in lock-step a training takes long where other work takes the processors
    steps = 40 if name == "synchronous" else 150
    algorithm = replace(
        experiment.algorithm, training=replace(experiment.algorithm.training, steps=steps)
    )
    if name in ("synchronous", "local"):
        algorithm = replace(algorithm, sgd=SGDConfig(mode=name, shards=SHARDS, average_every=20))
    if name == "odd":  # the last of two processes has less to do than the first
        algorithm = replace(algorithm, sgd=SGDConfig(mode="local", shards=3, average_every=40))
    if name in OTHERS:
        algorithm = OTHERS[name](network=algorithm.network, training=algorithm.training)
    return replace(experiment, algorithm=algorithm)


def hashes(folder):
    files = sorted((folder / "iterations").iterdir())
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """A function that gives the hashes of an experiment's serial run."""
    known = {}

    def find(name):
        if name not in known:
            out = tmp_path_factory.mktemp("serial") / name
            experiment = short(name)
            for _ in gps.run(experiment, out=out):
                pass
            known[name] = hashes(out)
            assert list(known[name]) == [f"{n:04d}.h5" for n in range(experiment.iterations + 1)]
            assert len(set(known[name].values())) == experiment.iterations + 1
        return known[name]

    return find


def slowly(*values):
    return pytest.param(*values, marks=pytest.mark.slow, id="-".join(map(str, values)))


# --- the matrix


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("synchronous", "two"),
        ("local", "two"),
        ("policy", "threads"),
        *((name, "threads") for name in ("pi2", "pilqr", *OTHERS)),
        *(slowly("controllers", w) for w in ("one", "two", "four", "threads")),
        *(slowly("policy", w) for w in ("one", "two", "four")),
        *(slowly("synchronous", w) for w in ("serial", "one", "four", "threads")),
        *(slowly("local", w) for w in ("serial", "one", "four", "threads")),
        *(slowly("odd", w) for w in ("one", "two", "four")),
        *(slowly(name, "two") for name in ("pi2", "pilqr", *OTHERS)),
        *(slowly("arm", w) for w in ("one", "two", "four", "threads")),
    ],
)
def test_a_run_has_the_serial_bytes(name, where, request, serial, tmp_path, monkeypatch):
    ex = executor_of(where, request)
    gangs = watched(ex, monkeypatch)
    reports = list(gps.run(short(name), out=tmp_path / "run", executor=ex))
    assert hashes(tmp_path / "run") == serial(name)
    if ex is not None:
        assert {"rollout", "improve", "score"} <= set(reports[-1].stage_seconds)
    if ex is not None and name in ("synchronous", "local", "odd"):
        shards = 3 if name == "odd" else SHARDS
        # one training before the first iteration, and one in each; with as many as have work
        processes = math.ceil(shards / math.ceil(shards / WORKERS[where]))
        assert [len(gang.workers) for gang in gangs] == [processes] * (1 + ITERATIONS)


def watched(ex, monkeypatch):
    """The gangs that an executor will start."""
    found = []
    if ex is not None:
        gang = ex.gang
        monkeypatch.setattr(ex, "gang", lambda *a: found.append(gang(*a)) or found[-1])
    return found


def test_another_seed_or_setting_has_other_bytes(serial, tmp_path):
    """What the tests of this file look for can be seen."""
    first = next(iter(gps.run(short("policy"), seed=1, out=tmp_path / "seed", iterations=1)))
    assert first.iteration == 1
    assert hashes(tmp_path / "seed")["0001.h5"] != serial("policy")["0001.h5"]
    firsts = {serial(name)["0001.h5"] for name in ("policy", "synchronous", "local")}
    assert len(firsts) == 3


@pytest.mark.parametrize(
    ("name", "where"),
    [("policy", "two"), slowly("controllers", "four"), slowly("local", "threads")],
)
def test_without_working_ahead(name, where, request, serial, tmp_path, monkeypatch):
    """The rollouts of an iteration begin before its predecessor is stored, or after that."""
    ex = executor_of(where, request)
    call, seen = ex.call, []

    def counted(fn, *args, **kwargs):
        if stage_of(fn) == "rollout":
            seen.append(len(list(tmp_path.glob("run/iterations/*.h5"))))
        return call(fn, *args, **kwargs)

    monkeypatch.setattr(ex, "call", counted)
    M = len(short(name).agent.starts)
    orders = []
    for ahead in (False, True) if name == "policy" else (False,):
        for _ in gps.run(short(name), out=tmp_path / "run", executor=ex, ahead=ahead):
            pass
        assert hashes(tmp_path / "run") == serial(name)
        orders.append(seen[:])
        seen.clear()
        (tmp_path / "run").rename(tmp_path / f"ahead-{ahead}")
    # files on the disk when a rollout was asked for
    assert orders[0] == [n for n in range(1, ITERATIONS + 1) for _ in range(M)]
    if len(orders) > 1:
        assert orders[1] == [n for n in (1, *range(1, ITERATIONS)) for _ in range(M)]


# --- stopped and resumed


CHAINS = [
    ("policy", "serial", "two", "threads"),
    ("synchronous", "two", "serial", "threads"),
    *(slowly("policy", *p, p[0]) for p in permutations(("serial", "one", "two", "four"), 2)),
    slowly("controllers", "two", "one", "serial"),
    slowly("controllers", "serial", "four", "one"),
    slowly("local", "four", "two", "one"),
    slowly("synchronous", "one", "four", "serial"),
    slowly("odd", "serial", "four", "two"),
    slowly("arm", "two", "serial", "two"),
    slowly("arm", "serial", "four", "serial"),
]


@pytest.mark.parametrize(("name", "first", "then", "last"), CHAINS)
def test_stopped_and_resumed_elsewhere(name, first, then, last, request, serial, tmp_path):
    """A run that is stopped after every iteration and goes on with other workers."""
    run = tmp_path / "run"
    experiment = short(name)
    places = [executor_of(where, request) for where in (first, then, last)]
    reports = gps.run(experiment, out=run, executor=places[0])
    assert next(reports).iteration == 1
    reports.close()  # rollouts of the next iteration are under way
    assert list(hashes(run)) == ["0000.h5", "0001.h5"]
    reports = gps.resume(run, executor=places[1])
    assert next(reports).iteration == 2
    reports.close()
    for _ in gps.resume(run, executor=places[2]):
        pass
    assert hashes(run) == serial(name)
    # once more from the middle
    numbers = [r.iteration for r in gps.resume(run, start=1, executor=places[0])]
    assert numbers == list(range(2, experiment.iterations + 1))
    assert hashes(run) == serial(name)


# --- a worker dies in the middle of a training that several share


class Fragile:
    """A group whose member dies, once, in one of its exchanges."""

    def __init__(self, group, mark, at):
        self.group, self.mark, self.at, self.count = group, mark, at, 0
        self.rank, self.size = group.rank, group.size

    def all_gather(self, array):
        self.count += 1
        if self.count == self.at:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)
        return self.group.all_gather(array)

    def barrier(self):
        self.group.barrier()


def breaking(mark, rank, at, fn, group, *args):
    """`fn` in a group of which `rank` dies in its exchange `at`."""
    return fn(Fragile(group, mark, at) if group.rank == rank else group, *args)


@pytest.mark.parametrize(
    ("name", "where", "rank", "at"),
    [
        ("synchronous", "two", 1, 20),
        slowly("synchronous", "two", 0, 20),
        slowly("synchronous", "four", 2, 39),
        slowly("synchronous", "two", 1, 1),
        slowly("local", "two", 1, 4),
        slowly("local", "two", 0, 8),
        slowly("local", "four", 3, 4),
        slowly("odd", "two", 1, 2),
    ],
)
def test_a_worker_killed_in_a_training_step(
    name, where, rank, at, request, serial, tmp_path, monkeypatch, caplog
):
    ex = executor_of(where, request)
    mark = tmp_path / "mark"
    gang, submit, gangs, sent = ex.gang, ex._submit, [], []

    def changed(fn, size, *args):
        if len(gangs) == 2:  # of the second iteration
            fn = partial(breaking, str(mark), rank, at, fn)
        handle = gang(fn, size, *args)
        gangs.append(handle.number)  # not the handle: it would be mended for us
        return handle

    def noted(handle):
        sent.extend([handle.number] * bool(handle.gang))
        submit(handle)

    monkeypatch.setattr(ex, "gang", changed)
    monkeypatch.setattr(ex, "_submit", noted)
    with caplog.at_level(logging.WARNING, "gps"):
        for _ in gps.run(short(name), out=tmp_path / "run", executor=ex):
            pass
    assert mark.exists()  # it has happened
    assert [sent.count(g) > 1 for g in gangs] == [False, False, True, False]
    assert re.search("lost: .*; running it again on", caplog.text)  # it names four calls at most
    assert hashes(tmp_path / "run") == serial(name)


# --- the driver dies


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_driver(serial, tmp_path):
    """And the run goes on from what was stored."""
    run, source = tmp_path / "run", tmp_path / "long.py"
    source.write_text(
        "from dataclasses import replace\nimport gps\n"
        "experiment = replace(gps.load('point_mass'), iterations=400)\n"
    )
    options = ["--agent.T", "15", "--samples", "4"]
    command = ["run", str(source), *options, "--workers", "2", "--out", str(run)]
    driver = subprocess.Popen(
        [sys.executable, "-m", "gps.cli", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    children = []
    try:
        deadline = time.monotonic() + 90
        while not (run / "iterations" / "0002.h5").exists():
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        children = psutil.Process(driver.pid).children(recursive=True)
        assert sum(p.name().startswith("python") for p in children) >= 2
        driver.kill()
        assert driver.wait(timeout=30) == -signal.SIGKILL
        _, alive = psutil.wait_procs(children, timeout=20)
        assert alive == []
    finally:
        for process in [driver, *children]:
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                process.kill()
        driver.wait()
    done = RunFolder.open(run).last()
    assert 2 <= done < 400
    argv = ["resume", str(run), "--iterations", str(done + 2), "--executor", "serial"]
    assert cli.main(argv) == 0
    experiment = replace(short("controllers"), iterations=done + 2)
    for _ in gps.run(experiment, out=tmp_path / "whole"):
        pass
    assert hashes(run) == hashes(tmp_path / "whole")
