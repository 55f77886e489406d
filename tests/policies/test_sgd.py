"""Training by several processes: against torch, against plain loops, and when servers are lost."""

import threading
from concurrent import futures
from dataclasses import replace

import numpy as np
import pytest
import torch
from policy_networks import GatedNetwork, TorchMLP, some_data

import gps
from gps.algorithms import PolicyState, stages
from gps.errors import ClusterError, ConfigError, FitError, SharedLostError
from gps.execution import LocalGroup, LocalShared, Serial, stage_of
from gps.policies import (
    MLPConfig,
    SGDConfig,
    TrainingConfig,
    adam_step,
    batch_gradient,
    fit,
    flatten,
    initial_policy,
    minibatches,
    prepare,
    schedule,
    sgd,
)
from gps.policies.sgd import ParameterServer, ServerState, processes, shard_minibatches, train
from gps.rng import stream

SYNCHRONOUS = SGDConfig(mode="synchronous", shards=3)
LOCAL = SGDConfig(mode="local", shards=3, average_every=8)
NETWORKS = {
    "kernel": MLPConfig(hidden=(12, 9), activation="tanh"),
    "torch": TorchMLP(hidden=(12, 9), activation="tanh"),
    "gated": GatedNetwork(),
}
CONFIG = TrainingConfig(steps=30, batch_size=7, final_rate=0.1, weight_decay=0.01, trace_points=30)
DATA = some_data()
PARTS = [some_data(n, seed=s) for n, s in ((50, 1), (40, 2), (31, 3))]
networks = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())


def start(network, data=DATA):
    policy = initial_policy(network, data.obs.shape[1], data.target.shape[1], stream(0, "policy"))
    policy, _ = prepare(policy, data, CONFIG)  # in the units of the data, which a training keeps
    # Adam's state is not that of a first training
    m, v = ([rng.random(w.shape) * 1e-2 for w in policy.weights] for rng in (stream(1, "m"),) * 2)
    return replace(policy, optimiser=replace(policy.optimiser, m=tuple(m), v=tuple(v), step=5))


def vectors(policy):
    return [flatten(a) for a in (policy.weights, policy.optimiser.m, policy.optimiser.v)]


def assert_same_bytes(a, b):
    for x, y in zip(vectors(a.policy), vectors(b.policy), strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(
        (*a.policy.normaliser, a.policy.chol), (*b.policy.normaliser, b.policy.chol), strict=True
    ):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(a.trace, b.trace)
    assert a.loss == b.loss
    assert a.policy.optimiser.step == b.policy.optimiser.step


class Threads:
    """Groups and calls in threads of this process."""

    def __init__(self, workers, share=LocalShared):
        self.workers, self._share = workers, share
        self.pool = futures.ThreadPoolExecutor(workers)

    def call(self, fn, *args, condition=-1):
        return self.pool.submit(lambda: fn(*self.gather(list(args))))

    def gang(self, fn, size, *args):
        """Rank 0's result; every member's outcome stays in `outcomes`."""
        slots, barrier = [None] * size, threading.Barrier(size, timeout=20)

        class Member:
            def __init__(self, rank):
                self.rank, self.size = rank, size

            def all_gather(self, array):
                slots[self.rank] = array.copy()
                barrier.wait()
                out = [a.copy() for a in slots]
                barrier.wait()
                return out

            def barrier(self):
                barrier.wait()

        with futures.ThreadPoolExecutor(size) as pool:
            args = self.gather(list(args))
            self.outcomes = [pool.submit(fn, Member(rank), *args) for rank in range(size)]
        self.sizes = [size, *getattr(self, "sizes", [])]
        return self.outcomes[0]

    def share(self, make, *args):
        return self._share(make(*args))

    def wait(self, handles, timeout=None):
        done, _ = futures.wait(handles, timeout, futures.FIRST_COMPLETED)
        return [h for h in handles if h in done]

    def gather(self, tree):
        if isinstance(tree, list | tuple):
            return type(tree)(self.gather(item) for item in tree)
        return tree.result() if isinstance(tree, futures.Future) else tree


def joined_torch_training(policy, data, batches, config):
    """torch.optim.Adam on the rows of `batches` (steps, B): weights, m, v, losses."""
    policy, problem = prepare(policy, data, config)
    obs, target, P = (torch.tensor(a) for a in (problem.obs, problem.target, problem.precision))
    network = policy.module().network
    optimiser = torch.optim.Adam(
        network.parameters(),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
    )
    state = policy.optimiser
    for p, m, v in zip(network.parameters(), state.m, state.v, strict=True):
        optimiser.state[p] = {
            "step": torch.tensor(float(state.step)),
            "exp_avg": torch.tensor(m),
            "exp_avg_sq": torch.tensor(v),
        }
    last = config.learning_rate * config.final_rate
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps - 1, eta_min=last)
    losses = []
    for batch in batches:
        d = network(obs[batch]) - target[batch]
        loss = 0.5 * (d[:, None, :] @ P[batch] @ d[:, :, None]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
        losses.append(loss.item() * problem.scale)
    after = [optimiser.state[p] for p in network.parameters()]
    weights = [p.detach().numpy() for p in network.parameters()]
    m, v = ([s[key].numpy() for s in after] for key in ("exp_avg", "exp_avg_sq"))
    return flatten(weights), flatten(m), flatten(v), losses


def all_batches(sgd_config, n, config=CONFIG):
    return [shard_minibatches(n, k, config, sgd_config, 0, 4) for k in range(sgd_config.shards)]


@networks
def test_synchronous_is_adam_on_the_joined_minibatch(network):
    result = train(Serial(), start(network), [DATA], CONFIG, SYNCHRONOUS, 0, 4)
    joined = np.concatenate(all_batches(SYNCHRONOUS, DATA.n), axis=1)
    assert joined.shape == (30, 21)
    *want, losses = joined_torch_training(start(network), DATA, joined, CONFIG)
    for ours, theirs in zip(vectors(result.policy), want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(result.trace, losses, rtol=1e-8)
    assert np.abs(vectors(result.policy)[0] - vectors(start(network))[0]).max() > 0.02
    assert result.policy.optimiser.step == 35
    assert result.staleness is None


@networks
def test_local_averages_what_the_shards_have_trained(network):
    """30 updates in stretches of 8: the last one is shorter."""
    result = train(Serial(), start(network), [DATA], CONFIG, LOCAL, 0, 4)
    policy, problem = prepare(start(network), DATA, CONFIG)
    states = [[a.copy() for a in vectors(policy)] for _ in range(3)]
    plan, losses = schedule(CONFIG, 5), np.zeros((3, 30))
    for s in range(30):
        for k, batches in enumerate(all_batches(LOCAL, DATA.n)):
            theta, m, v = states[k]
            losses[k, s], grad = batch_gradient(policy, theta, problem, batches[s])
            adam_step(theta, m, v, grad, plan[s], CONFIG)
        if s in (7, 15, 23, 29):
            means = [np.mean(parts, axis=0) for parts in zip(*states, strict=True)]
            states = [[a.copy() for a in means] for _ in range(3)]
    for ours, want in zip(vectors(result.policy), states[0], strict=True):
        np.testing.assert_allclose(ours, want, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(result.trace, losses.mean(axis=0) * problem.scale, rtol=1e-9)


def test_one_local_update_has_the_mean_gradient_of_a_synchronous_one():
    """m is linear in the gradient and v is not: its mean over shards is larger."""
    config = replace(CONFIG, steps=1)
    policy = start(NETWORKS["kernel"])
    local, synchronous = (
        vectors(train(Serial(), policy, [DATA], config, c, 0, 4).policy)
        for c in (replace(LOCAL, average_every=1), SYNCHRONOUS)
    )
    np.testing.assert_allclose(local[1], synchronous[1], rtol=1e-10, atol=1e-14)
    assert np.all(local[2] >= synchronous[2] * (1 - 1e-12))
    assert np.any(local[2] > synchronous[2] * 1.001)


@pytest.mark.parametrize("config", [SYNCHRONOUS, LOCAL], ids=lambda c: c.mode)
def test_with_one_shard_all_modes_are_serial_training(config):
    config = replace(config, shards=1)
    policy = start(NETWORKS["kernel"])
    result = train(Serial(), policy, [DATA], CONFIG, config, 0, 4)
    policy, problem = prepare(policy, DATA, CONFIG)
    theta, m, v = vectors(policy)
    for batch, row in zip(all_batches(config, DATA.n)[0], schedule(CONFIG, 5), strict=True):
        adam_step(theta, m, v, batch_gradient(policy, theta, problem, batch)[1], row, CONFIG)
    for ours, want in zip(vectors(result.policy), (theta, m, v), strict=True):
        np.testing.assert_array_equal(ours, want)


@networks
@pytest.mark.parametrize("config", [SYNCHRONOUS, LOCAL], ids=lambda c: c.mode)
def test_the_number_of_members_does_not_change_a_byte(network, config):
    config = replace(config, shards=5)
    alone = train(Serial(), start(network), PARTS, CONFIG, config, 0, 4)
    sizes = []
    for workers in (2, 3, 4, 9):
        ex = Threads(workers)
        result = train(ex, start(network), PARTS, CONFIG, config, 0, 4)
        assert_same_bytes(ex.gather(result), alone)
        assert [o.result() for o in ex.outcomes[1:]] == [None] * (len(ex.outcomes) - 1)
        sizes += ex.sizes
    assert sizes == [2, 3, 3, 5]  # no member is idle throughout
    other = train(Serial(), start(network), PARTS, CONFIG, config, 0, 5)
    assert other.loss != alone.loss


def test_a_larger_group_than_needed_still_gives_the_same_bytes():
    args = (start(NETWORKS["kernel"]), PARTS, CONFIG, LOCAL, 0, 4)
    ex = Threads(1)
    assert_same_bytes(
        ex.gang(sgd.fit_in_group, 5, *args).result(), sgd.fit_in_group(LocalGroup(), *args)
    )


def test_processes_are_as_many_as_shorten_the_work():
    got = {(s, w): processes(s, w) for s in (1, 4, 5) for w in (0, 1, 2, 3, 4, 8)}
    assert [got[1, w] for w in (0, 1, 2, 3, 4, 8)] == [1, 1, 1, 1, 1, 1]
    assert [got[4, w] for w in (0, 1, 2, 3, 4, 8)] == [1, 1, 2, 2, 4, 4]
    assert [got[5, w] for w in (0, 1, 2, 3, 4, 8)] == [1, 1, 2, 3, 3, 5]


def test_shards_divide_the_samples():
    config = TrainingConfig(steps=40, batch_size=6)
    batches = [shard_minibatches(100, k, config, SYNCHRONOUS, 0, 4) for k in range(3)]
    assert [b.shape for b in batches] == [(40, 6)] * 3
    rows = [set(b.ravel().tolist()) for b in batches]
    assert sorted(len(r) for r in rows) == [33, 33, 34]
    assert set.union(*rows) == set(range(100))
    for shard, own in zip(batches, rows, strict=True):  # every epoch holds each of its samples once
        assert set(shard.ravel()[: len(own)].tolist()) == own
    assert all(len({i % 3 for i in r}) == 3 for r in rows)  # not every third time step
    assert all(10 < sum(i < 50 for i in r) < 24 for r in rows)  # nor one condition
    pack = stream(0, "shards", 4).permutation(100)
    places = [[list(pack[k::3]).index(i) for i in batches[k][0]] for k in range(3)]
    assert len({tuple(p) for p in places}) == 3  # every shard draws for itself
    again = shard_minibatches(100, 1, config, SYNCHRONOUS, 0, 4)
    np.testing.assert_array_equal(again, batches[1])
    for other in ((1, 4), (0, 5)):
        assert not np.array_equal(
            shard_minibatches(100, 1, config, SYNCHRONOUS, *other), batches[1]
        )
    with pytest.raises(FitError, match=r"2 samples cannot fill SGDConfig\.shards = 3"):
        shard_minibatches(2, 0, config, SYNCHRONOUS, 0)


@pytest.mark.parametrize("config", [SYNCHRONOUS, LOCAL], ids=lambda c: c.mode)
@networks
def test_divergence_is_an_error_of_every_member(network, config):
    ex = Threads(3)
    wild = replace(CONFIG, learning_rate=1e200)
    train(ex, start(network), [DATA], wild, config, 0, 4)
    for outcome in ex.outcomes:
        with pytest.raises(FitError, match=r"not finite after \d+ of 30 steps; lower"):
            outcome.result()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"mode": "sync"}, r"mode must be 'serial', .* got 'sync'"),
        ({"shards": 0}, r"shards must be a whole number from 1 to 10000, got 0"),
        ({"shards": 2.0}, r"shards must be a whole number"),
        ({"average_every": 0}, r"average_every must be a whole number of at least 1"),
        ({"max_staleness": -1}, r"max_staleness must be a whole number of at least 0"),
        ({"snapshot_seconds": 0.0}, r"snapshot_seconds must be a number above 0"),
        ({"snapshot_seconds": float("nan")}, r"snapshot_seconds must be a number above 0"),
    ],
)
def test_a_wrong_configuration_is_refused(change, text):
    with pytest.raises(ConfigError, match=text):
        SGDConfig(**change)


# asynchronous


def server_state(n=6):
    rng = stream(0, "server")
    zero = np.zeros(0)
    return ServerState(
        theta=rng.normal(size=n), m=rng.normal(size=n), v=rng.random(n), losses=zero, staleness=zero
    )


def gradients(count, n=6):
    return stream(0, "gradients").normal(size=(count, n))


def applied(state, grads, config=CONFIG):
    """theta, m and v after one Adam step for each gradient."""
    out = [a.copy() for a in (state.theta, state.m, state.v)]
    for grad, row in zip(grads, schedule(config, 0), strict=False):
        adam_step(*out, grad, row, config)
    return out


def test_the_server_applies_gradients_as_they_come_and_counts_their_staleness():
    state, g = server_state(), gradients(4)
    server = ParameterServer(state, schedule(CONFIG, 0), CONFIG, None)
    a, theta = server.pull()
    b, _ = server.pull()
    assert (a, b) == (0, 0)
    fine, a, _ = server.push(a, g[0], 1.0)  # stale by 0
    np.testing.assert_array_equal(theta, state.theta)  # what was read stays as it was
    assert (fine, a) == (True, 1)
    fine, a, theta = server.push(a, g[1], 2.0)  # 0
    np.testing.assert_array_equal(theta, applied(state, g[:2])[0])
    fine, b, _ = server.push(b, g[2], 3.0)  # two updates have been made since b read
    assert (fine, b) == (True, 3)
    fine, a, theta = server.push(a, g[3], 4.0)  # 1
    assert (fine, a) == (True, 4)
    now = server.snapshot()
    assert now.staleness.tolist() == [0, 0, 2, 1]
    assert now.losses.tolist() == [1, 2, 3, 4]
    assert (now.version, now.dropped) == (4, 0)
    for ours, want in zip((now.theta, now.m, now.v), applied(state, g), strict=True):
        np.testing.assert_array_equal(ours, want)
    theta[:] = 0.0  # what a trainer does with its copy is its own affair
    np.testing.assert_array_equal(server.pull()[1], now.theta)


@pytest.mark.parametrize(("bound", "kept"), [(0, False), (1, False), (2, True), (None, True)])
def test_a_gradient_beyond_the_bound_is_dropped(bound, kept):
    state, g = server_state(), gradients(3)
    server = ParameterServer(state, schedule(CONFIG, 0), CONFIG, bound)
    for version in (0, 1):
        server.push(version, g[version], 1.0)
    fine, version, theta = server.push(0, g[2], 1.0)
    assert fine is kept
    assert version == (3 if kept else 2)
    np.testing.assert_array_equal(theta, applied(state, g[:version])[0])
    assert server.snapshot().dropped == (0 if kept else 1)
    if not kept:  # computed anew it is welcome
        assert server.push(version, g[2], 1.0)[:2] == (True, 3)
        assert server.snapshot().staleness.tolist() == [0, 0, 0]


def test_the_server_takes_no_more_gradients_than_planned():
    config = replace(CONFIG, steps=2)
    state, g = server_state(), gradients(3)
    server = ParameterServer(state, schedule(config, 0), config, None)
    for k in range(3):
        _, version, theta = server.push(0, g[k], 1.0)
    assert version == 2
    np.testing.assert_array_equal(theta, applied(state, g[:2], config)[0])
    assert server.snapshot().staleness.tolist() == [0, 1]
    assert server.push(0, g[0], float("nan"))[1] == 2  # nobody asks for that loss


def test_a_loss_that_is_not_finite_ends_the_training_of_all():
    server = ParameterServer(server_state(), schedule(CONFIG, 0), CONFIG, None)
    server.push(0, gradients(1)[0], 1.0)
    for loss in (float("nan"), 1.0):
        with pytest.raises(FitError, match="not finite after 1 of 30 steps"):
            server.push(1, gradients(1)[0], loss)
    wild = replace(CONFIG, learning_rate=1e200)
    config = SGDConfig(mode="asynchronous")
    with pytest.raises(FitError, match="not finite"):
        train(Serial(), start(NETWORKS["kernel"]), [DATA], wild, config, 0)


def test_a_server_continues_from_a_snapshot_as_if_nothing_had_been():
    state, g = server_state(), gradients(9)
    plan = schedule(CONFIG, 0)
    first = ParameterServer(state, plan, CONFIG, 0)
    first.push(0, g[0], 1.0)
    first.push(0, g[0], 1.0)  # dropped
    for k in range(1, 5):
        first.push(k, g[k], 1.0 + k)
    kept = first.snapshot()
    first.push(5, g[8], 7.0)  # lost
    assert (kept.version, kept.dropped) == (5, 1)
    second = ParameterServer(kept, plan, CONFIG, 0)
    for k in range(5, 9):
        second.push(k, g[k], 1.0 + k)
    end = second.snapshot()
    for ours, want in zip((end.theta, end.m, end.v), applied(state, g), strict=True):
        np.testing.assert_array_equal(ours, want)
    assert end.losses.tolist() == list(range(1, 10))
    assert (end.version, end.dropped) == (9, 1)


def test_asynchronous_with_one_trainer_is_adam_on_its_minibatches():
    policy, config = start(NETWORKS["kernel"]), SGDConfig(mode="asynchronous", shards=4)
    result = train(Serial(), policy, PARTS, CONFIG, config, 0, 4)
    assert result.staleness.tolist() == [30]
    assert result.dropped == 0
    joined = sgd.pooled(PARTS)
    rng = stream(0, "trainer minibatches", 4, 0, 0)  # of the first server's first trainer
    epochs = [minibatches(joined.n, 18, 7, rng) for _ in range(2)]  # 18 x 7 is just above 121
    batches = np.concatenate(epochs)[:30]
    *want, losses = joined_torch_training(policy, joined, batches, CONFIG)
    for ours, theirs in zip(vectors(result.policy), want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(result.trace, losses, rtol=1e-8)


class Choosy:
    """A server that takes every second gradient only, and never changes its weights."""

    def __init__(self, theta):
        self.theta, self.version, self.grads = theta, 0, []

    def ask(self, method, *args):
        if method == "pull":
            return self.version, self.theta
        self.grads.append(args[1].copy())
        taken = len(self.grads) % 2 == 0
        self.version += taken
        return taken, self.version, self.theta


def test_the_minibatch_of_a_dropped_gradient_is_computed_anew():
    policy, config = start(NETWORKS["kernel"]), replace(CONFIG, steps=3)
    server = Choosy(vectors(policy)[0])
    assert sgd._trainer(server, policy, [DATA], config, 0, (0, 0)) is True
    a, b, c = (server.grads[2 * k : 2 * k + 2] for k in range(3))
    for first, second in (a, b, c):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(a[0], b[0])
    assert not np.array_equal(b[0], c[0])


LONG = TrainingConfig(steps=3000, batch_size=20)
TRAINED = MLPConfig(hidden=(24, 24))


@pytest.mark.parametrize("mode", ["synchronous", "local", "asynchronous"])
def test_every_mode_learns_as_well_as_serial(mode):
    policy = initial_policy(TRAINED, 6, 3, stream(0, "policy"))
    serial = train(Serial(), policy, PARTS, LONG, SGDConfig(), 0, 4)
    assert serial.loss < 0.05 * serial.trace[0]
    config = SGDConfig(mode=mode, shards=3)
    ex = Threads(3)
    result = ex.gather(train(ex, policy, PARTS, LONG, config, 0, 4))
    assert result.loss < 2.0 * serial.loss
    assert result.policy.optimiser.step == 3000
    if mode == "asynchronous":
        assert result.staleness.sum() == 3000


class Interleaved(LocalShared):
    """A server whose every second push waits until another one has come before it."""

    def __init__(self, value):
        super().__init__(value)
        self.lock, self.count = threading.Lock(), 0
        self.passed = threading.Event()

    def ask(self, method, *args):
        if method != "push":
            return super().ask(method, *args)
        with self.lock:
            self.count += 1
            first = self.count % 2
            if first:
                self.passed.clear()
        if first:
            self.passed.wait(0.2)
        out = super().ask(method, *args)
        self.passed.set()
        return out


@pytest.mark.parametrize(("bound", "dropped"), [(None, False), (0, True)])
def test_staleness_of_trainers_that_overtake_each_other_is_in_the_result(bound, dropped):
    config = SGDConfig(mode="asynchronous", shards=2, max_staleness=bound)
    ex = Threads(2, Interleaved)
    result = ex.gather(train(ex, start(NETWORKS["kernel"]), PARTS, CONFIG, config, 0, 4))
    assert result.staleness.sum() == 30
    if dropped:
        assert result.staleness.tolist() == [30]
        assert result.dropped > 0
    else:
        assert result.staleness[1:].sum() > 0
        assert result.dropped == 0


class Fragile(LocalShared):
    """A server that is lost, if at all, after the second snapshot that has seen progress."""

    made = ()

    def __init__(self, value):
        super().__init__(value)
        self.start, self.kept, self.lost = value.snapshot().version, [], False
        self.first = not Fragile.made
        Fragile.made = (*Fragile.made, self)

    def ask(self, method, *args):
        if self.first and len(self.kept) == 2:
            self.lost = True
        if self.lost:
            raise SharedLostError("the server is gone")
        out = super().ask(method, *args)
        if method == "snapshot" and out.version > self.start:
            self.kept.append(out.version)
        return out


def test_a_lost_server_costs_what_came_after_the_last_snapshot():
    Fragile.made = ()
    policy = initial_policy(TRAINED, 6, 3, stream(0, "policy"))
    config = SGDConfig(mode="asynchronous", shards=2, snapshot_seconds=0.01)
    ex = Threads(2, Fragile)
    result = ex.gather(train(ex, policy, PARTS, LONG, config, 0, 4))
    first, second = Fragile.made
    assert first.lost
    assert 0 < first.kept[-1] == second.start < LONG.steps
    assert result.staleness.sum() == LONG.steps
    assert result.policy.optimiser.step == LONG.steps
    serial = train(Serial(), policy, PARTS, LONG, SGDConfig(), 0, 4)
    assert result.loss < 2.0 * serial.loss


class Gone(LocalShared):
    """A server that nobody ever reaches."""

    made = 0

    def __init__(self, value):
        Gone.made += 1

    def ask(self, method, *args):
        raise SharedLostError("the server is gone")


def test_servers_that_are_lost_again_and_again_are_an_error():
    config = SGDConfig(mode="asynchronous", snapshot_seconds=0.01)
    Gone.made = 0
    with pytest.raises(ClusterError, match=r"lost 5 times in a row at update 0 of 30"):
        train(Threads(2, Gone), start(NETWORKS["kernel"]), PARTS, CONFIG, config, 0)
    assert Gone.made == 5


# in the algorithms


class Counting(Serial):
    """Counts calls."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def call(self, fn, *args, condition=-1):
        self.calls.append((stage_of(fn), fn.__name__))
        return super().call(fn, *args, condition=condition)


@pytest.mark.parametrize("restart", [True, False])
def test_serial_training_is_one_call_and_the_same_as_ever(restart):
    ex, policy = Counting(), start(NETWORKS["kernel"])
    before = PolicyState(policy=policy)
    args = (CONFIG, SGDConfig(shards=7), restart, 0, 4, 1)
    after = stages.train_policy_on(ex, before, PARTS, *args)
    assert ex.calls == [("train_policy", "train_policy")]
    if restart:
        rng = stream(0, "restarted policy", 4, 1)
        policy = initial_policy(policy.network, policy.no, policy.nu, rng)
    want = fit(policy, sgd.pooled(PARTS), CONFIG, stream(0, "train policy", 4, 1))
    for a, b in zip(vectors(after.policy), vectors(want.policy), strict=True):
        np.testing.assert_array_equal(a, b)
    assert after.loss == want.loss
    assert after.staleness is None


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize("mode", ["synchronous", "local", "asynchronous"])
def test_the_other_modes_keep_the_meaning_of_restart(mode, restart):
    policy = start(NETWORKS["kernel"], sgd.pooled(PARTS))
    config = SGDConfig(mode=mode)
    args = (CONFIG, config, restart, 0, 4, 1)
    after = stages.train_policy_on(Serial(), PolicyState(policy=policy), PARTS, *args)
    assert type(after) is PolicyState
    assert after.policy.optimiser.step == 30 + (0 if restart else 5)
    if restart:
        rng = stream(0, "restarted policy", 4, 1)
        policy = initial_policy(policy.network, policy.no, policy.nu, rng)
    want = train(Serial(), policy, PARTS, CONFIG, config, 0, 4, 1)
    np.testing.assert_array_equal(vectors(after.policy)[0], vectors(want.policy)[0])
    if mode == "asynchronous":
        assert after.staleness.tolist() == [30]


@pytest.mark.parametrize("mode", ["synchronous", "local", "asynchronous"])
def test_an_experiment_trains_in_its_configured_mode(mode):
    experiment = gps.load("point_mass_policy")
    algorithm = replace(experiment.algorithm, training=TrainingConfig(steps=50))
    losses = {}
    for config in (SGDConfig(), SGDConfig(mode=mode)):
        one = replace(experiment, algorithm=replace(algorithm, sgd=config), iterations=1)
        (report,) = gps.run(one)
        losses[config.mode] = report.state.policy.loss
    assert np.isfinite(list(losses.values())).all()
    assert losses[mode] != losses["serial"]
