import hashlib
import logging
import os
import threading
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numba
import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster

import gps
from gps.errors import ConfigError, GPSError, NotPositiveDefiniteError, SimulationError
from gps.execution import Serial, stage
from gps.parallel import Dask, make_executor
from gps.parallel.worker import SingleThread
from gps.pipeline import sampling
from gps.pipeline.experiment import initial_state
from gps.threads import single_thread_environment


@pytest.fixture(scope="module")
def one():
    ex = Dask(workers=1)
    yield ex
    ex.close()


@pytest.fixture(scope="module")
def two():
    ex = Dask(workers=2)
    yield ex
    ex.close()


def small(name):
    """A short run of an experiment that comes with the toolkit."""
    experiment = gps.load(name)
    experiment = replace(experiment, iterations=3, samples=4)
    if experiment.algorithm.trains_policy:
        training = replace(experiment.algorithm.training, steps=200)
        algorithm = replace(experiment.algorithm, training=training)
        return replace(
            experiment, algorithm=algorithm, agent=replace(experiment.agent, T=15), iterations=2
        )
    return experiment


def hashes(folder):
    files = sorted((folder / "iterations").iterdir())
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def serial_hashes(tmp_path_factory):
    """Iteration files of serial runs."""
    out = {}
    for name in ("point_mass", "point_mass_policy"):
        path = tmp_path_factory.mktemp("serial") / name
        for _ in gps.run(small(name), out=path):
            pass
        out[name] = hashes(path)
    return out


@pytest.mark.parametrize("workers", ["one", "two"])
@pytest.mark.parametrize("name", ["point_mass", "point_mass_policy"])
def test_a_stored_run_has_the_serial_bytes(name, workers, request, serial_hashes, tmp_path):
    executor = request.getfixturevalue(workers)
    reports = list(gps.run(small(name), out=tmp_path / "run", executor=executor))
    want = serial_hashes[name]
    assert hashes(tmp_path / "run") == want
    assert len(want) == 1 + len(reports)
    assert len(set(want.values())) == len(want)
    expected = {"rollout", "expand_cost", "fit_dynamics", "assess", "improve", "score"}
    if name == "point_mass_policy":
        expected |= {"train_policy", "linearise_policy", "targets"}
    for r in reports:
        assert set(r.stage_seconds) >= expected
        assert all(s >= 0 for s in r.stage_seconds.values())
        assert r.stage_seconds["rollout"] > 0


def test_rollouts_have_the_serial_bytes(two):
    experiment = small("point_mass")
    agent = experiment.validate()
    state = initial_state(experiment, agent)
    results = []
    for ex in (Serial(), two):
        handles = [
            ex.call(
                sampling.rollout,
                *(experiment.agent, state.conditions[m], m, 5, 0, 0, 1),
                condition=m,
            )
            for m in range(2)
        ]
        results.append(ex.gather(handles))
    for a, b in zip(*results, strict=True):
        for name in ("X", "U", "obs", "noise"):
            assert getattr(a, name).tobytes() == getattr(b, name).tobytes()
        assert not b.X.flags.writeable  # frozen again after the journey
        assert (a.condition, a.layout) == (b.condition, b.layout)
    assert not np.array_equal(results[0][0].X, results[0][1].X)


def double(x):
    return 2 * x


@stage("other")
def twice(x):
    return 2 * x


def fail(kind):
    if kind == "simulation":
        raise SimulationError(3, ())
    if kind == "matrix":
        raise NotPositiveDefiniteError("Q_uu", t=4, hint="raise eta", smallest=-0.5)
    raise GPSError("went wrong")


def where(_):
    return os.getpid()


def nap(seconds):
    time.sleep(seconds)


def test_handles_are_passed_on_and_gathered_wherever_they_are(two):
    two.seconds()
    first = two.call(double, 2)
    second = two.call(twice, first, condition=1)
    got = two.gather({"all": (first, [second, "x"]), "none": None})
    assert got == {"all": (4, [8, "x"]), "none": None}
    assert set(two.seconds()) == {"double", "other"}


def test_seconds_count_the_work_that_nobody_asked_for(two):
    two.seconds()
    naps = [two.call(nap, 0.1, condition=m) for m in range(2)]
    seconds = two.seconds()
    assert set(seconds) == {"nap"}
    assert 0.2 <= seconds["nap"] < 2.0
    assert two.seconds() == {}
    assert two.gather(naps) == [None, None]
    assert two.seconds() == {}  # nothing is counted twice


def hold(megabytes):
    return float(np.ones(megabytes * 125_000).sum())


def test_the_memory_of_the_largest_worker_is_known(two):
    before = two.memory()
    two.gather([two.call(hold, 300, condition=0)])
    assert two.memory() > 300e6 + 50e6  # the worker itself is no smaller
    assert two.memory() > before or before > 350e6
    assert np.isnan(Serial().memory())


def test_tasks_run_in_other_processes(two):
    pids = set(two.gather([two.call(where, n) for n in range(8)]))
    assert os.getpid() not in pids


def test_equal_calls_are_not_confused(two):
    """Dask gives a task with a known key its old result; every call here is a new one."""
    a, b = two.call(double, 1, condition=0), two.call(double, 5, condition=0)
    assert two.gather([a, b]) == [2, 10]


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("plain", GPSError, r"^went wrong\nin fail$"),
        ("simulation", SimulationError, "condition 3: simulation failed"),
        ("matrix", NotPositiveDefiniteError, r"Q_uu is not positive definite at t=4 .*raise eta"),
    ],
)
def test_an_error_arrives_as_it_was_raised(two, kind, error, text):
    with pytest.raises(error, match=text) as caught:
        two.gather([two.call(double, 1), two.call(fail, kind)])
    assert type(caught.value) is error
    if kind == "simulation":
        assert caught.value.condition == 3
    # also through a task that depends on the one that failed, and the executor still works
    with pytest.raises(error):
        two.gather(two.call(double, two.call(fail, kind)))
    assert two.gather(two.call(double, 3)) == 6


def test_every_worker_is_prepared_in_the_thread_that_runs_its_tasks(two, tmp_path):
    def mark():
        (tmp_path / f"{os.getpid()}-{threading.get_ident()}").touch()

    def thread(_):
        return f"{os.getpid()}-{threading.get_ident()}"

    two.prepare(mark)
    used = set(two.gather([two.call(thread, m, condition=m) for m in range(2)]))
    assert len(used) == 2
    assert {path.name for path in tmp_path.iterdir()} == used


def test_one_worker_of_a_host_is_prepared_before_the_others(two, tmp_path):
    """It may compile what the others then load."""

    def log(what):
        with (tmp_path / "log").open("a") as file:
            file.write(f"{what} {os.getpid()}\n")

    def slow():
        log("begin")
        time.sleep(0.3)
        log("end")

    two.prepare(slow)
    lines = (tmp_path / "log").read_text().split()
    first = lines[1]
    assert lines[:4] == ["begin", first, "end", first]
    assert len(set(lines[5::2]) - {first}) == 1  # then the other one


def test_a_worker_that_cannot_be_prepared_still_works(two):
    two.prepare(lambda: 1 / 0)
    assert two.gather(two.call(double, 4)) == 8


def test_workers_have_one_thread(two):
    def threads():
        import torch
        from threadpoolctl import threadpool_info

        blas = {i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"}
        return torch.get_num_threads(), blas, os.environ["NUMBA_NUM_THREADS"]

    for torch_threads, blas, numba_threads in two.client.run(threads).values():
        assert torch_threads == 1
        assert blas <= {1}
        assert numba_threads == "1"


def compiling(name):
    logging.getLogger("gps.compiling").info("compiling %s once, about 9 s", name)
    return os.getpid()


def wait_until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)


def test_what_workers_compile_is_said_here_once(two, caplog):
    with caplog.at_level(logging.INFO, logger="gps.compiling"):
        assert two.gather(two.call(compiling, "a kernel")) != os.getpid()
        wait_until(lambda: caplog.records)
        time.sleep(0.2)  # a second time would come now
    texts = [r.getMessage() for r in caplog.records if r.name == "gps.compiling"]
    assert texts == ["compiling a kernel once, about 9 s"]


def test_a_second_executor_of_a_cluster_does_not_say_it_twice(two, caplog):
    second = Dask(two.client)
    with caplog.at_level(logging.INFO, logger="gps.compiling"):
        second.gather(second.call(compiling, "a kernel"))
        wait_until(lambda: caplog.records)
        time.sleep(0.2)
    second.close()
    texts = [r.getMessage() for r in caplog.records if r.name == "gps.compiling"]
    assert texts == ["compiling a kernel once, about 9 s"]


def test_of_workers_that_share_a_process_one_says_what_is_compiled():
    plugin, said = SingleThread(), []
    plugin.driver = "elsewhere", 1
    logger = logging.getLogger("gps.compiling")
    level = logger.level
    try:
        for name in "ab":
            worker = SimpleNamespace(log_event=lambda topic, text, n=name: said.append((n, text)))
            thread = threading.Thread(target=plugin.setup, args=(worker,))  # not the main thread
            thread.start()
            thread.join()
        compiling("a kernel")
    finally:
        plugin.teardown(None)
        logger.setLevel(level)
    assert said == [("b", "compiling a kernel once, about 9 s")]
    assert logger.handlers == []


def test_workers_of_this_process_do_not_hear_themselves(caplog):
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
        caplog.at_level(logging.INFO, logger="gps.compiling"),
    ):
        executor = Dask(client)
        assert executor.gather(executor.call(compiling, "a kernel")) == os.getpid()
        time.sleep(0.5)
        executor.close()
    texts = [r.getMessage() for r in caplog.records if r.name == "gps.compiling"]
    assert texts == ["compiling a kernel once, about 9 s"]
    assert logging.getLogger("gps.compiling").handlers == []


def test_close_leaves_no_processes():
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    ex = make_executor("dask", workers=1)
    started = {p.pid for p in psutil.Process().children(recursive=True)} - before
    (pid,) = ex.client.run(os.getpid).values()
    assert pid in started
    ex.call(nap, 0.01)
    ex.close()
    ex.close()  # a second time does no harm
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)


def test_a_client_that_was_handed_in_stays_open_and_a_scheduler_can_be_joined():
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            env=single_thread_environment(),
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        ex = Dask(client=client)
        assert ex.gather(ex.call(double, 4)) == 8
        ex.close()
        assert client.status == "running"
        assert client.submit(double, 5).result() == 10
        joined = make_executor("dask", scheduler=cluster.scheduler_address)
        assert joined.gather(joined.call(double, 6)) == 12
        joined.close()
        assert client.submit(double, 7).result() == 14  # the cluster goes on


def test_an_address_where_nothing_answers():
    with pytest.raises(GPSError, match=r"no Dask scheduler answers there within 0\.5 s") as caught:
        Dask(scheduler="tcp://127.0.0.1:9", timeout=0.5)
    assert "\n" not in str(caught.value)
    assert "--scheduler tcp://127.0.0.1:9" in str(caught.value)
    with pytest.raises(GPSError, match="--scheduler nonsense://x"):
        Dask(scheduler="nonsense://x", timeout=0.5)


def test_make_executor():
    assert type(make_executor("serial")) is Serial
    for wrong in ({"workers": 2}, {"scheduler": "tcp://127.0.0.1:1"}):
        with pytest.raises(ConfigError, match="need --executor dask"):
            make_executor("serial", **wrong)
    with pytest.raises(ConfigError, match="unknown executor 'dusk'; did you mean 'dask'"):
        make_executor("dusk")
    with pytest.raises(ConfigError, match=r"Dask\.workers must be a whole number of at least 1"):
        make_executor("dask", workers=0)


def test_the_numba_cache_of_the_driver_is_that_of_workers_without_one(monkeypatch, tmp_path):
    """Workers of a running cluster have another environment."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "shared"))
    plugin = SingleThread()
    set_up = partial(threading.Thread, target=plugin.setup, args=(None,))  # not the main thread
    for own, expected in ((None, str(tmp_path / "shared")), (str(tmp_path / "own"), "")):
        monkeypatch.setattr(numba.config, "CACHE_DIR", "")
        if own is None:
            monkeypatch.delenv("NUMBA_CACHE_DIR")
        else:
            monkeypatch.setenv("NUMBA_CACHE_DIR", own)
        thread = set_up()
        thread.start()
        thread.join()
        assert expected == numba.config.CACHE_DIR
