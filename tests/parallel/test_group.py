"""Groups of real processes: what they exchange, that they give the same bytes, how they break."""

import multiprocessing
import os
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from gps.errors import ClusterError
from gps.execution import LocalGroup
from gps.parallel.group import GlooGroup, fresh_address, run_member
from gps.policies import MLPConfig, SGDConfig, TrainingConfig, TrainingData, initial_policy
from gps.policies.sgd import fit_in_group
from gps.rng import stream
from gps.threads import single_thread_environment


def serve(pipe):
    """The loop of one process: run members in a thread, as Dask does, and send what came of it."""

    def run(order, out):
        start = time.perf_counter()
        try:
            out.append(run_member(*order))
        except Exception as error:
            out.append(error)  # with its traceback, which holds frames of the group
        out.append(time.perf_counter() - start)

    import torch  # noqa: F401 (now, so that times do not hold it)

    pipe.send("ready")
    kept = []
    while (order := pipe.recv()) is not None:
        out = []
        thread = threading.Thread(target=run, args=(order, out))
        thread.start()
        thread.join()
        kept.append(out)
        pipe.send(tuple(out))


class Crew:
    """Processes that stay for all tests of this file; one that died is replaced."""

    def __init__(self, size):
        self.context = multiprocessing.get_context("spawn")
        self.members = [self.hire() for _ in range(size)]

    def hire(self):
        here, there = self.context.Pipe()
        process = self.context.Process(target=serve, args=(there,), daemon=True)
        process.start()
        there.close()
        return process, here

    def run(self, fn, size, *args, timeout=60.0):
        """(result, seconds) of every member; None for one that died."""
        for i in range(size):
            if not self.members[i][0].is_alive():
                self.members[i] = self.hire()
        for process, pipe in self.members[:size]:
            if not hasattr(process, "ready"):
                process.ready = pipe.recv()
        address = fresh_address("127.0.0.1")
        for rank in range(size):
            self.members[rank][1].send((fn, rank, size, address, timeout, args))
        out = []
        for _, pipe in self.members[:size]:
            try:
                assert pipe.poll(timeout + 30), "a member hangs"
                out.append(pipe.recv())
            except EOFError:
                out.append(None)
        return out

    def end(self):
        for process, pipe in self.members:
            if process.is_alive():
                pipe.send(None)
            process.join(5)
            if process.is_alive():
                process.kill()


@pytest.fixture(scope="module")
def crew():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in single_thread_environment().items():
            patch.setenv(name, value)
        crew = Crew(4)
    yield crew
    crew.end()


def exchange(group, steps):
    """What all members have handed in, as rank 0 sees it; every member checks its own view."""
    seen = []
    mine = np.zeros((2, 3))
    for s in range(steps):
        mine[:] = 10.0 * group.rank + s
        got = group.all_gather(mine)
        want = [np.full((2, 3), 10.0 * r + s) for r in range(group.size)]
        assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
        seen.append([a[0, 0] for a in got])
    frozen = np.arange(4) + group.rank
    frozen.setflags(write=False)
    whole = group.all_gather(frozen)
    turned = group.all_gather(np.arange(6.0).reshape(2, 3).T * (group.rank + 1))
    empty = group.all_gather(np.zeros((0, 2)))
    group.barrier()
    return seen, [a.tolist() for a in whole], [a[2].tolist() for a in turned], len(empty)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_member_sees_the_arrays_of_all(crew, size):
    first, *others = crew.run(exchange, size, 20)
    seen, whole, turned, empty = first[0]
    assert seen == [[10.0 * r + s for r in range(size)] for s in range(20)]
    assert whole == [[r, 1 + r, 2 + r, 3 + r] for r in range(size)]
    assert turned == [[2.0 * (r + 1), 5.0 * (r + 1)] for r in range(size)]
    assert empty == size
    assert [result for result, _ in others] == [None] * (size - 1)  # only rank 0 has a result


def train(group, mode, network):
    rng = stream(0, "group data")
    obs, half = rng.normal(size=(90, 5)), rng.normal(size=(90, 2, 2))
    target = np.sin(obs[:, :2]) + obs[:, 2:4]
    precision = half @ half.transpose(0, 2, 1) + np.eye(2)
    data = [
        TrainingData(
            obs=obs[s], target=target[s], precision=precision[s], weight=np.ones(len(obs[s]))
        )
        for s in (slice(0, 40), slice(40, 90))
    ]
    policy = initial_policy(network, 5, 2, stream(0, "policy"))
    sgd = SGDConfig(mode=mode, shards=4, average_every=7)
    return fit_in_group(
        group, policy, data, TrainingConfig(steps=60, batch_size=9), sgd, 3, 1
    )  # fmt: skip


def bytes_of(result):
    p = result.policy
    arrays = (*p.weights, *p.optimiser.m, *p.optimiser.v, p.chol, result.trace)
    return b"".join(a.tobytes() for a in arrays) + np.float64(result.loss).tobytes()


@pytest.mark.parametrize("mode", ["synchronous", "local"])
def test_the_number_of_processes_does_not_change_a_byte(crew, mode):
    network = MLPConfig(hidden=(40, 30), activation="tanh")
    alone = bytes_of(train(LocalGroup(), mode, network))
    for size in (1, 2, 4):
        results = [out[0] for out in crew.run(train, size, mode, network)]
        assert bytes_of(results[0]) == alone, size
    another = {"synchronous": "local"}.get(mode, "synchronous")
    other = bytes_of(train(LocalGroup(), another, network))
    assert other != alone


def break_down(group, how, seconds):
    for step in range(100):
        group.all_gather(np.full(1000, float(step)))
        if step == 50 and group.rank == 1:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "raises":
                raise ValueError("of my own")
            time.sleep(seconds)
    return "done"


def test_a_killed_member_is_an_error_of_the_others_at_once(crew):
    outs = crew.run(break_down, 3, "killed", 0, timeout=40.0)
    assert outs[1] is None
    for error, seconds in (outs[0], outs[2]):
        assert isinstance(error, ClusterError)
        assert "of a group of 3 lost another one" in str(error)
        assert seconds < 15
    assert crew.run(exchange, 3, 2)[0][0][0] == [[0, 10, 20], [1, 11, 21]]  # a new group works


def test_the_error_of_one_member_is_its_own_and_breaks_the_others(crew):
    outs = crew.run(break_down, 3, "raises", 0, timeout=40.0)
    assert repr(outs[1][0]) == "ValueError('of my own')"
    for error, seconds in (outs[0], outs[2]):
        assert isinstance(error, ClusterError)
        assert seconds < 15


def test_a_member_that_does_not_answer_is_an_error_after_the_timeout(crew):
    outs = crew.run(break_down, 3, "sleeps", 4.0, timeout=0.7)
    for error, seconds in (outs[0], outs[2]):
        assert isinstance(error, ClusterError)
        assert 0.7 <= seconds < 3.5
    assert isinstance(outs[1][0], ClusterError)  # it finds nobody when it wakes


@pytest.mark.parametrize("rank", [0, 1])
def test_a_member_that_never_comes_is_an_error(rank):
    start = time.perf_counter()
    with pytest.raises(ClusterError, match="could not reach the others"):
        run_member(exchange, rank, 2, fresh_address("127.0.0.1"), 0.5, (1,))
    assert time.perf_counter() - start < 10


def test_a_port_that_is_taken_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ClusterError, match="could not reach the others"):
            run_member(exchange, 0, 2, address, 0.5, (1,))


def test_a_fresh_address_is_free():
    host, port = fresh_address("127.0.0.1").split(":")
    with socket.create_server((host, int(port))) as server:
        assert server.getsockname()[1] == int(port) > 0


def test_a_group_of_one_needs_no_address():
    group = GlooGroup(0, 1, "nowhere:0", 1.0)
    array = np.arange(3.0)
    assert group.all_gather(array)[0] is array
    group.barrier()
    group.close()


def listening(group):
    """Local addresses, as hex, of the sockets that this process listens on."""
    inodes = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _open(fd)}
    out = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            cells = line.split()
            if cells[3] == "0A" and f"socket:[{cells[9]}]" in inodes:
                out.append(cells[1].split(":")[0])
    group.barrier()
    return out


def _open(fd):
    return os.path.lexists(f"/proc/self/fd/{fd}")


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="Linux lists sockets there")
def test_only_the_interface_of_the_address_is_listened_on(crew):
    addresses = crew.run(listening, 2)[0][0]
    assert len(addresses) >= 2  # the store and the group
    assert set(addresses) == {"0100007F"}
