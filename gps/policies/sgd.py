"""Training of the global policy by several processes: minibatch SGD (Adam) in four modes.

Serial is `GlobalPolicy.fit`. The others share the gradient work, the samples, or both, and
differ in how often the processes communicate; see `SGDConfig`. `train` is the one function
that an algorithm needs; `fit_in_group` is what each member of a group runs.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from gps.errors import ClusterError, FitError, SharedLostError
from gps.execution import Executor, Group, Shared, stage
from gps.fields import Config, Count, Positive, Range, Shape, Whole
from gps.policies import _kernels
from gps.policies.neural import NetworkPolicy, finished, prepare
from gps.policies.optimisation import (
    Gradient,
    Indices,
    adam_step,
    diverged,
    minibatches,
    schedule,
)
from gps.policies.policy import GlobalPolicy
from gps.policies.training import TrainingConfig, TrainingData, TrainingResult, pooled
from gps.rng import stream
from gps.types import Array, Record

log = logging.getLogger(__name__)

STAGE = "train_policy"
FUTILE = 5
"""Servers that may be lost one after another without an update kept in between."""


@dataclass(frozen=True, kw_only=True)
class SGDConfig(Config):
    """How processes share a training. `TrainingConfig.steps` and `.batch_size` are as follows.

    serial: `steps` updates with minibatches of `batch_size`, in one process.
    synchronous: `steps` updates, each with the mean gradient of `shards` minibatches of
    `batch_size`, one from each shard: exactly Adam on the joined minibatch.
    local: every shard makes `steps` updates of its own with minibatches of `batch_size`; weights
    and Adam's running means are averaged over the shards every `average_every` updates.
    asynchronous: `steps` updates in all, each with the gradient of one minibatch of `batch_size`,
    applied as it comes to weights that may have changed meanwhile. Not reproducible.

    The first three give the same bytes for any number of processes. A message costs some tenths of
    a millisecond, so more processes are faster only where the gradient of a minibatch takes longer:
    large networks, large minibatches, or local with a large `average_every`.
    """

    mode: Literal["serial", "synchronous", "local", "asynchronous"] = "serial"
    """serial: in one process. synchronous: the mean gradient of all shards in every step. local:
    every shard by itself, averaged now and then. asynchronous: a parameter server."""
    shards: Annotated[int, Range(at_least=1, at_most=10_000)] = 2
    """Parts that the samples are divided into. A matter of the result, not of speed:
    with fewer workers a process computes several shards one after another. Asynchronous: the
    largest number of trainers, each of which draws from all samples."""
    average_every: Count = 20
    """local: updates of each shard between two averages, of which the last ends the training."""
    max_staleness: Whole | None = None
    """asynchronous: maximum number of updates made since the weights of a gradient were read. A
    staler one is dropped, and its minibatch recomputed at the newest weights. None for no bound."""
    snapshot_seconds: Positive = 5.0
    """asynchronous: time between two copies of the server's state, from which training continues
    when the server is lost."""


def train(
    ex: Executor,
    policy: Any,
    data: Sequence[Any],
    config: TrainingConfig,
    sgd: SGDConfig,
    seed: int,
    *index: int,
) -> Any:
    """Train `policy` on the pooled `data`; returns a handle of a TrainingResult.

    policy: a NetworkPolicy or its handle; data: records of TrainingData or their handles. All
    random numbers have addresses below (seed, *index). In mode asynchronous this function waits for
    the end of the training, as it watches the server; see `train_asynchronously`.
    """
    if sgd.mode == "serial":
        return ex.call(fit_pooled, policy, list(data), config, seed, *index)
    if sgd.mode == "asynchronous":
        return train_asynchronously(ex, policy, data, config, sgd, seed, *index)
    size = processes(sgd.shards, ex.workers)
    return ex.gang(fit_in_group, size, policy, list(data), config, sgd, seed, *index)


@stage(STAGE)
def fit_pooled(
    policy: GlobalPolicy, data: Sequence[TrainingData], config: TrainingConfig, seed: int,
    *index: int,
) -> TrainingResult[GlobalPolicy]:  # fmt: skip
    """Serial training."""
    return policy.fit(pooled(data), config, stream(seed, "train policy", *index))


def processes(shards: int, workers: int) -> int:
    """How many processes to use: no more than have work while the busiest one has."""
    return math.ceil(shards / math.ceil(shards / max(workers, 1)))


def shard_minibatches(
    n: int, shard: int, config: TrainingConfig, sgd: SGDConfig, seed: int, *index: int
) -> Indices:
    """Rows of the n samples that `shard` uses in each step, (steps, batch_size).

    The samples are shuffled once, by (seed, *index), and dealt out to the shards in turn, so that
    neither conditions nor time steps gather in one; each shard goes through its own in shuffled
    epochs. Raises FitError when there are fewer samples than shards.
    """
    if n < sgd.shards:
        raise FitError(f"{n} samples cannot fill SGDConfig.shards = {sgd.shards}")
    rows = stream(seed, "shards", *index).permutation(n)[shard :: sgd.shards]
    rng = stream(seed, "shard minibatches", *index, shard)
    out: Indices = rows[minibatches(rows.size, config.steps, config.batch_size, rng)]
    return out


@stage(STAGE)
def fit_in_group(
    group: Group,
    policy: NetworkPolicy,
    data: Sequence[TrainingData],
    config: TrainingConfig,
    sgd: SGDConfig,
    seed: int,
    *index: int,
) -> TrainingResult[NetworkPolicy] | None:
    """Synchronous or local training as one member of `group`; rank 0 returns the result.

    Every member has all samples and ends with the same weights; only the gradients are shared out.
    What is exchanged are the parts of single shards, which all add up in the order of the shards:
    the bytes do not depend on `group.size`. Raises ShapeError, NonFiniteError, FitError, and
    ClusterError when a member is lost.
    """
    joined = pooled(data)
    policy, problem = prepare(policy, joined, config)
    theta, m, v = policy.vectors()
    plan = schedule(config, policy.optimiser.step)
    each = math.ceil(sgd.shards / group.size)
    mine = range(sgd.shards)[group.rank * each : (group.rank + 1) * each]
    batches = [shard_minibatches(joined.n, k, config, sgd, seed, *index) for k in mine]
    work = _synchronous if sgd.mode == "synchronous" else _local
    gradient = policy.gradient(problem)
    losses = work(group, gradient, theta, m, v, batches, each, plan, config, sgd)
    if group.rank:
        return None
    return finished(policy, problem, joined, theta, m, v, losses, config)


def _synchronous(
    group: Group,
    gradient: Gradient,
    theta: Array,
    m: Array,
    v: Array,
    batches: Sequence[Indices],
    each: int,
    plan: Array,
    config: TrainingConfig,
    sgd: SGDConfig,
) -> Array:
    """Change theta, m and v by `config.steps` updates; returns the mean losses (steps,).

    batches: rows of this member's shards, at most `each` of them.
    """
    n = theta.size
    sent = _rows(each, n + 1)  # per shard: gradient, loss
    parts = [sent[j, :n] for j in range(len(batches))]
    mean = np.empty(sent.shape[1])
    losses = np.zeros(config.steps)
    for s in range(config.steps):
        for j, rows in enumerate(batches):
            sent[j, n] = gradient(theta, rows[s], parts[j])
        _mean_of_shards(group.all_gather(sent), each, sgd.shards, mean)
        losses[s] = mean[n]
        if not math.isfinite(losses[s]):  # the same for all members
            raise diverged(s, config)
        rate, bias1, bias2 = plan[s]
        _kernels.adam(
            theta, m, v, mean[:n], rate, bias1, bias2, config.beta1, config.beta2, config.eps,
            config.weight_decay,
        )  # fmt: skip
    return losses


def _local(
    group: Group,
    gradient: Gradient,
    theta: Array,
    m: Array,
    v: Array,
    batches: Sequence[Indices],
    each: int,
    plan: Array,
    config: TrainingConfig,
    sgd: SGDConfig,
) -> Array:
    """The same, with `sgd.average_every` updates of each shard between two exchanges.

    theta, m and v are averaged alike. If the shards kept their own v, they would continue with step
    sizes of their own, and their mean would favour the shard with the smallest gradients.
    """
    n, H = theta.size, min(sgd.average_every, config.steps)
    sent = _rows(each, 3 * n + H)  # per shard: theta, m, v, losses
    states = [(row[:n], row[n : 2 * n], row[2 * n : 3 * n]) for row in sent]
    mean = np.zeros(sent.shape[1])
    mean[: 3 * n] = np.concatenate([theta, m, v])
    losses = np.zeros(config.steps)
    for s in range(0, config.steps, H):
        now = slice(s, min(s + H, config.steps))
        count = now.stop - s
        for j, rows in enumerate(batches):
            sent[j, : 3 * n] = mean[: 3 * n]
            try:
                out = gradient.train(*states[j], rows[now], plan[now], config)
            except FitError:  # all members learn of it below, and stop together
                out = np.full(count, np.nan)
            sent[j, 3 * n : 3 * n + count] = out
        _mean_of_shards(group.all_gather(sent), each, sgd.shards, mean)
        losses[now] = mean[3 * n : 3 * n + count]
        if not np.isfinite(losses[now]).all():
            raise diverged(s, config)
    for i, vector in enumerate((theta, m, v)):
        vector[:] = mean[i * n : (i + 1) * n]
    return losses


def _rows(count: int, length: int) -> Array:
    """Zeros (count, at least length); every row begins at the same place of a cache line."""
    return np.zeros((count, 8 * math.ceil(length / 8)))


def _mean_of_shards(gathered: Sequence[Array], each: int, shards: int, out: Array) -> None:
    """Mean of the shards' rows, added up in the order of the shards."""
    out[:] = gathered[0][0]
    for k in range(1, shards):
        out += gathered[k // each][k % each]
    out /= shards


# asynchronous


@dataclass(frozen=True, eq=False)
class ServerState(Record):
    """State of a parameter server, from which another one continues."""

    theta: Annotated[Array, Shape("n")]
    m: Annotated[Array, Shape("n")]
    v: Annotated[Array, Shape("n")]
    losses: Annotated[Array, Shape("version")]
    """Of the gradients applied, without the problem's scale."""
    staleness: Annotated[Array, Shape("version")]
    """Updates made between reading the weights and applying the gradient."""
    dropped: int = 0
    """Gradients that were too stale."""

    @property
    def version(self) -> int:
        """Updates made."""
        return len(self.losses)


class ParameterServer:
    """Holds the weights and Adam's state, and applies each gradient at once.

    plan: (steps, 3), rows of `schedule`. The order in which gradients arrive decides the result, so
    that no two trainings are alike. May be called from several threads.
    """

    def __init__(
        self, state: ServerState, plan: Array, config: TrainingConfig, max_staleness: int | None
    ) -> None:
        self._theta, self._m, self._v = (np.array(a) for a in (state.theta, state.m, state.v))
        self._plan, self._config, self._bound = plan, config, max_staleness
        self._version, self._dropped = state.version, state.dropped
        self._losses, self._staleness = np.zeros((2, len(plan)))
        self._losses[: state.version] = state.losses
        self._staleness[: state.version] = state.staleness
        self._failed = False
        self._lock = threading.Lock()

    def pull(self) -> tuple[int, Array]:
        """The version, which is the number of updates made, and its weights."""
        with self._lock:
            return self._version, self._theta.copy()

    def push(self, version: int, grad: Array, loss: float) -> tuple[bool, int, Array]:
        """Apply a gradient that was computed at `version`; the version and weights after it.

        The first entry is False when the gradient was too stale and was dropped. After the last
        update of the plan gradients are ignored. Raises FitError when a loss is not finite, and
        from then on.
        """
        with self._lock:
            fine = True
            if self._version < len(self._plan):
                if self._failed or not math.isfinite(loss):
                    self._failed = True
                    raise diverged(self._version, self._config)
                stale = self._version - version
                fine = self._bound is None or stale <= self._bound
                if fine:
                    row = self._plan[self._version]
                    adam_step(self._theta, self._m, self._v, grad, row, self._config)
                    self._losses[self._version] = loss
                    self._staleness[self._version] = stale
                    self._version += 1
                else:
                    self._dropped += 1
            return fine, self._version, self._theta.copy()

    def snapshot(self) -> ServerState:
        """The state now."""
        with self._lock:
            return ServerState(
                theta=self._theta,
                m=self._m,
                v=self._v,
                losses=self._losses[: self._version],
                staleness=self._staleness[: self._version],
                dropped=self._dropped,
            )


def train_asynchronously(
    ex: Executor,
    policy: Any,
    data: Sequence[Any],
    config: TrainingConfig,
    sgd: SGDConfig,
    seed: int,
    *index: int,
) -> Any:
    """Train with a parameter server and up to `sgd.shards` trainers; handle of a TrainingResult.

    NOT reproducible: the result depends on which gradient comes first. Waits until all updates are
    made, and copies the server's state every `sgd.snapshot_seconds`. When the server is lost, a new
    one continues from the last copy, and later updates are repeated. Raises FitError, and
    ClusterError when servers are lost again and again without any progress.
    """
    start: NetworkPolicy = ex.gather(ex.call(_prepared, policy, list(data), config))
    state = ServerState(*start.vectors(), losses=np.zeros(0), staleness=np.zeros(0))
    plan = schedule(config, start.optimiser.step)
    trainers = max(1, min(sgd.shards, ex.workers))  # one more would wait for a worker
    futile, servers = 0, 0
    while state.version < config.steps:
        before = state.version
        server = ex.share(ParameterServer, state, plan, config, sgd.max_staleness)
        work = [
            ex.call(
                _trainer, server, policy, list(data), config, seed, (*index, servers, k)
            )
            for k in range(trainers)
        ]  # fmt: skip
        state = _watch(ex, server, work, state, sgd.snapshot_seconds)
        servers += 1
        futile = futile + 1 if state.version == before else 0
        if state.version < config.steps:
            if futile == FUTILE:
                raise ClusterError(
                    f"the parameter server was lost {futile} times in a row at update "
                    f"{state.version} of {config.steps}; SGDConfig.snapshot_seconds may be longer "
                    "than servers live"
                )
            log.warning("lost the parameter server; continuing from update %d", state.version)
    return ex.call(_finish, policy, list(data), config, state)


def _watch(
    ex: Executor, server: Shared, work: Sequence[Any], state: ServerState, seconds: float
) -> ServerState:
    """Take snapshots until all trainers have ended; returns the last one received."""
    pending, alive = list(work), True
    due = time.monotonic() + seconds
    while pending:
        ended = ex.wait(pending, timeout=max(due - time.monotonic(), 0.0) if alive else seconds)
        pending = [h for h in pending if not any(h is e for e in ended)]
        if alive and pending and time.monotonic() >= due:
            state, alive = _snapshot(server, state)
            due = time.monotonic() + seconds
    if all(ex.gather(list(work))) and alive:
        state, _ = _snapshot(server, state)
        server.close()
    return state


def _snapshot(server: Shared, state: ServerState) -> tuple[ServerState, bool]:
    """The server's state and True, or the given one and False when the server is gone."""
    try:
        now: ServerState = server.ask("snapshot")
    except SharedLostError:
        return state, False
    return now, True


@stage(STAGE)
def _prepared(
    policy: NetworkPolicy, data: Sequence[TrainingData], config: TrainingConfig
) -> NetworkPolicy:
    """The policy that the first server starts from, after all checks of the data."""
    return prepare(policy, pooled(data), config)[0]


@stage(STAGE)
def _trainer(
    server: Shared,
    policy: NetworkPolicy,
    data: Sequence[TrainingData],
    config: TrainingConfig,
    seed: int,
    index: tuple[int, ...],
) -> bool:
    """Hand gradients to the server until it has enough; False when it is gone."""
    joined = pooled(data)
    policy, problem = prepare(policy, joined, config)
    gradient = policy.gradient(problem)
    batches = _endless_minibatches(joined.n, config.batch_size, seed, *index)
    try:
        version, theta = server.ask("pull")
        grad, batch = np.empty(theta.size), next(batches)
        while version < config.steps:
            loss = gradient(theta, batch, grad)
            applied, version, theta = server.ask("push", version, grad, loss)
            if applied:  # else the same minibatch again, so that no sample is left out
                batch = next(batches)
    except SharedLostError as error:
        log.info("trainer %s: %s", index[-1], error)
        return False
    return True


def _endless_minibatches(n: int, batch_size: int, seed: int, *index: int) -> Iterator[Indices]:
    """Minibatches (batch_size,) of one trainer, drawn from all n samples."""
    rng = stream(seed, "trainer minibatches", *index)
    while True:
        yield from minibatches(n, math.ceil(n / batch_size), batch_size, rng)


@stage(STAGE)
def _finish(
    policy: NetworkPolicy, data: Sequence[TrainingData], config: TrainingConfig, state: ServerState
) -> TrainingResult[NetworkPolicy]:
    """The result from the server's last state."""
    joined = pooled(data)
    policy, problem = prepare(policy, joined, config)
    theta, m, v = (np.array(a) for a in (state.theta, state.m, state.v))
    return finished(
        policy, problem, joined, theta, m, v, np.array(state.losses), config,
        staleness=np.bincount(state.staleness.astype(np.int64)).astype(np.float64),
        dropped=state.dropped,
    )  # fmt: skip


__all__ = [
    "ParameterServer",
    "SGDConfig",
    "ServerState",
    "fit_in_group",
    "processes",
    "shard_minibatches",
    "train",
    "train_asynchronously",
]
