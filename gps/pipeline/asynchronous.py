"""Asynchronous runs: every condition renews itself without waiting for the others.

Each condition has a chain of its own: roll out, fit, update around the newest policy, begin again.
Beside the chains a trainer fits the policy to the memory, which holds the last batches of every
condition, again and again. This process starts the calls and takes what comes back; it waits for
no particular one. What an update depends on but its condition's own past, namely which policy was
the newest, is decided by the clock: a run cannot be repeated to the same bytes, except on the
serial executor, where the conditions take turns, the policy is trained after every turn, and only
the times in the files differ.

    chain m    rollout -> [newest policy] -> fit, linearise, assess, improve, targets -> rollout ...
    trainer    [memory] -> train_policy -> newest policy; at once again if the memory has changed

Now and then a snapshot is made of the newest of everything, and stored as an ordinary iteration;
RUN/updates.csv has a line for every single update.
Source: A. Yahya et al., Collective Robot Reinforcement Learning with Distributed Asynchronous
Guided Policy Search, 2016 (arXiv 1610.00673). There the replay memory is a process of its own; here
it is a list of handles, and what a lost worker held is made again by the executor.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from gps.algorithms.state import (
    AsynchronousState,
    ConditionReport,
    ConditionState,
    GPSState,
    Renewed,
    Report,
)
from gps.errors import ConfigError, GPSError, NonFiniteError, StoreError
from gps.execution import Executor, Serial
from gps.pipeline import config_io, progress, sampling
from gps.pipeline.experiment import (
    AgentConfig,
    AsynchronousAlgorithm,
    Experiment,
    initial_state,
)
from gps.pipeline.runner import (
    IterationReport,
    memory_row,
    metrics_row,
    steered,
)
from gps.pipeline.steering import Steering
from gps.pipeline.store import RunFolder, Snapshot
from gps.pipeline.warmup import prepare
from gps.policies.training import TrainingData
from gps.protocols import Agent
from gps.threads import one_thread
from gps.types import Record, Rollouts

log = logging.getLogger(__name__)

UPDATES = "updates.csv"
_POLL = 0.2  # seconds between looks at what else there is to do: a stop, a stored snapshot


@dataclass(frozen=True, kw_only=True)
class AsynchronousConfig:
    """When an asynchronous run stops and stores, and what its policy is trained on."""

    replay: int = 2
    """Batches of each condition in the memory that the policy is trained on. Each keeps the actions
    that were its targets when it was sampled. The test errors of peg_insertion with 1, 2 and 3 lie
    within one another's noise; with the newest controllers' actions instead, they double."""
    snapshot_every: int | None = None
    """Updates of conditions between two snapshots; None for as many as there are conditions."""
    rollouts: int | None = None
    """Sampled rollouts of all conditions together after which the run stops, rounded up to whole
    batches and to one batch of each condition; None with `updates` for no such limit, without it
    for as many as the synchronous run."""
    updates: int | None = None
    """Policy updates after which the run stops; None for no such limit."""

    def __post_init__(self) -> None:
        for name in ("replay", "snapshot_every", "rollouts", "updates"):
            value = getattr(self, name)
            if value is None and name != "replay":
                continue
            if type(value) is not int or value < 1:
                raise ConfigError(
                    f"AsynchronousConfig.{name} must be a whole number of at least 1, got {value!r}"
                )

    def total(self, experiment: Experiment, conditions: int) -> int | None:
        """Rollouts after which a run stops; None without such a limit."""
        batch = experiment.samples
        if self.rollouts is not None:
            return max(conditions, -(-self.rollouts // batch)) * batch
        return None if self.updates is not None else experiment.iterations * conditions * batch

    def snapshots(self, experiment: Experiment, conditions: int) -> int | None:
        """About how many snapshots a run makes; None if that is not known."""
        total = self.total(experiment, conditions)
        every = self.snapshot_every or conditions
        return None if total is None else max(1, -(-total // (experiment.samples * every)))


def run_asynchronous(
    experiment: Experiment,
    *,
    config: AsynchronousConfig | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    executor: Executor | None = None,
    source: Path | None = None,
    stop: Callable[[], bool] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    steering: Steering | None = None,
) -> Iterator[IterationReport]:
    """Run an experiment asynchronously; yields a report after every stored snapshot.

    The first snapshot is made when every condition has been updated once. The rest of the row is
    that of `gps.run`, with more columns: `local_updates` and `policy_updates` so far, `age_mean`
    and `age_max` of the updates since the last snapshot (policy updates between the policy that an
    update used and the newest one when the update was finished), `utilisation` (share of the
    conditions' time that went into sampling).

    out, executor, source: as for `gps.run`. stop: asked often; when it says True, what has been
    finished is stored and the run ends. clock: seconds, for executors that keep a time of their
    own. steering: as for `gps.run`; an asynchronous run can be told to stop. Raises ConfigError
    before the first rollout, SimulationError, StoreError; what was finished before an error is
    stored and reported first.
    """
    if not isinstance(experiment, Experiment):
        raise ConfigError(
            f"run_asynchronous needs an Experiment, got {experiment!r}; gps.load(name or path) "
            "gives one"
        )
    config = config or AsynchronousConfig()
    if seed is not None:
        experiment = replace(experiment, seed=seed)
    check(experiment)
    with one_thread():
        agent = experiment.validate()
        state = initial_state(experiment, agent)
        M = agent.n_conditions
        nothing = AsynchronousState((0,) * M, 0, ((),) * M, False, 0.0, 0.0, 0.0)
        state = replace(state, asynchronous=nothing)
        folder = None
        if out is not None:
            where = "serial" if executor is None else type(executor).__name__.lower()
            extra = {"executor": where, "asynchronous": config_io.to_json(config)}
            folder = RunFolder.create(Path(out), experiment, source, extra=extra)
    steering = steering or Steering(pausable=False)
    begin = Snapshot.of_start(state)
    yield from _reports(experiment, agent, config, begin, folder, executor, stop, clock, steering)


def resume_asynchronous(
    path: str | Path,
    *,
    start: int | None = None,
    iterations: int | None = None,
    rollouts: int | None = None,
    updates: int | None = None,
    replay: int | None = None,
    executor: Executor | None = None,
    stop: Callable[[], bool] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    steering: Steering | None = None,
) -> Iterator[IterationReport]:
    """Continue a stored asynchronous run from a snapshot; what was under way begins again.

    The result is not that of a run without the break, byte for byte: which policy is the newest
    when an update starts depends on the clock.
    start: the snapshot to go on from (later ones are deleted); None takes the last whole one.
    rollouts, updates: new limits in place of the run's own; iterations: the limit on rollouts as
    so many synchronous iterations; replay: another length of the memory, from now on. Raises
    StoreError.
    """
    folder = RunFolder.open(Path(path))
    experiment = folder.experiment()
    config, experiment = changed(
        folder,
        experiment,
        rollouts=rollouts,
        updates=updates,
        iterations=iterations,
        replay=replay,
    )
    start = folder.last() if start is None else start
    snapshot = folder.read(start)
    try:
        folder.truncate(start)
        folder.cut_lines(UPDATES, snapshot.state.asynchronous.local_updates)
        with one_thread():
            agent = experiment.validate()
    except BaseException:
        folder.close()
        raise
    steering = steering or Steering(pausable=False)
    yield from _reports(
        experiment, agent, config, snapshot, folder, executor, stop, clock, steering, stored=True
    )


def stored_config(folder: RunFolder) -> AsynchronousConfig | None:
    """How a stored run was run asynchronously; None if it was not. Raises StoreError."""
    facts = folder.info().get("asynchronous")
    if facts is None:
        return None
    try:
        config = config_io.from_json(facts)
    except GPSError as error:
        raise StoreError(f"{folder.path / 'experiment.json'}: {error}") from error
    if not isinstance(config, AsynchronousConfig):
        raise StoreError(f"{folder.path / 'experiment.json'}: no AsynchronousConfig")
    return config


def changed(
    folder: RunFolder,
    experiment: Experiment,
    *,
    rollouts: int | None = None,
    updates: int | None = None,
    iterations: int | None = None,
    replay: int | None = None,
) -> tuple[AsynchronousConfig, Experiment]:
    """A stored run's configurations with other limits and memory; raises StoreError."""
    config = stored_config(folder)
    if config is None:
        raise StoreError(f"{folder.path} is a synchronous run; continue it with gps.resume")
    if iterations is not None:
        experiment = replace(experiment, iterations=iterations)
        config = replace(config, rollouts=rollouts, updates=updates)
    elif rollouts is not None or updates is not None:
        config = replace(config, rollouts=rollouts, updates=updates)
    if replay is not None:
        config = replace(config, replay=replay)
    return config, experiment


def check(experiment: Experiment) -> AsynchronousAlgorithm:
    """The experiment's algorithm; ConfigError if it cannot run asynchronously."""
    algorithm: Any = experiment.algorithm
    name = type(algorithm).__name__
    if not algorithm.trains_policy:
        raise ConfigError(
            f"{name} cannot run asynchronously; it trains no global policy, so its conditions have "
            "nothing to wait for each other: use --executor dask, or an algorithm with a policy"
        )
    if not isinstance(algorithm, AsynchronousAlgorithm):
        raise ConfigError(
            f"{name} cannot run asynchronously; it lacks methods of AsynchronousAlgorithm (renew, "
            "train), which MDGPSConfig has"
        )
    algorithm.check_asynchronous()
    return algorithm


def _reports(
    experiment: Experiment,
    agent: Agent,
    config: AsynchronousConfig,
    begin: Snapshot,
    folder: RunFolder | None,
    executor: Executor | None,
    stop: Callable[[], bool] | None,
    clock: Callable[[], float],
    steering: Steering,
    stored: bool = False,
) -> Iterator[IterationReport]:
    ex = executor or Serial()

    def asked_to_stop() -> bool:
        return steering.stopping or (stop is not None and stop())

    total = config.snapshots(experiment, agent.n_conditions) or 0
    with ExitStack() as stack:
        if executor is None:
            stack.callback(ex.close)
        if folder is not None:
            stack.callback(folder.close)
            if not stored:
                folder.write(begin)
        stack.enter_context(steered(folder, steering))
        driver = _Driver(experiment, agent, config, begin, folder, ex, asked_to_stop, clock)
        stack.callback(driver.close)
        steering.begin(experiment, begin.state.iteration + 1, ex.doing, total=total)
        rows: list[progress.Row] = [] if folder is None else [*folder.results()]
        while not driver.done:
            reports: list[IterationReport] = []
            with one_thread():  # entering takes milliseconds: not in every pass
                while not (reports or driver.done):
                    reports = driver.advance()
            for k, report in enumerate(reports):
                rows.append(dict(report.row))
                reports[k] = report = replace(report, news=progress.news(rows))
                if folder is not None:
                    folder.note(f"snapshot {report.iteration} is stored")
                    for event in report.events:
                        folder.note(f"snapshot {report.iteration}, {event}", logging.WARNING)
                    if report.news:
                        folder.note(report.news)
                steering.finished(report.row["seconds"])
                if not (driver.done and report is reports[-1]):
                    steering.begin(experiment, report.iteration + 1, ex.doing, total=total)
            yield from reports
        if driver.error is not None:
            raise driver.error


# --- stages --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Sampled(Record):
    """A batch of rollouts and the time that sampling it took."""

    rollouts: Rollouts
    seconds: float


def sample(
    agent_config: AgentConfig,
    source: Any,
    condition: int,
    samples: int,
    seed: int,
    iteration: int,
    max_resamples: int,
) -> Sampled:
    """`gps.pipeline.sampling.rollout`, timed."""
    begin = time.perf_counter()
    rollouts = sampling.rollout(
        agent_config, source, condition, samples, seed, iteration, max_resamples
    )
    return Sampled(rollouts, time.perf_counter() - begin)


def rollouts_of(sampled: Sampled) -> Rollouts:
    """The batch alone."""
    return sampled.rollouts


@dataclass(frozen=True, eq=False)
class Acting(Record):
    """What acts in a condition, without the rest of its state."""

    actor: Any


def closing(
    state: ConditionState, targets: TrainingData, sampled: Sampled
) -> tuple[ConditionReport | None, float]:
    """What the driver must know of a finished chain, as soon as all of it is there."""
    return state.report, sampled.seconds


# --- the driver ----------------------------------------------------------------------------------


@dataclass
class _Chain:
    """One condition's update under way."""

    m: int
    started: float
    since: float
    """When the condition's last update was finished."""
    sampled: Any
    version: int = 0
    sampled_at: float = 0.0
    renewed: Renewed | None = None
    closing: Any = None

    @property
    def watched(self) -> Any:
        """The handle that the next thing to do with this chain waits for."""
        return self.sampled if self.closing is None else self.closing


@dataclass(frozen=True, eq=False)
class _Newest:
    """The values of one condition's last finished update."""

    state: Any
    rollouts: Any
    models: dict[str, Any]
    report: ConditionReport


@dataclass(frozen=True, eq=False)
class _Moment:
    """The run as it was when a snapshot was begun."""

    state: GPSState
    newest: tuple[_Newest, ...]
    scores: tuple[Any, ...]
    """Handles: of the local controllers, then of the policy."""
    numbers: dict[str, float]
    events: tuple[str, ...]
    seconds: float
    stage_seconds: dict[str, float]
    """Sampling, and by this process's clock what follows it, and the training."""


class _Driver:
    """Starts calls, takes results, and keeps the books of one run."""

    def __init__(
        self,
        experiment: Experiment,
        agent: Agent,
        config: AsynchronousConfig,
        begin: Snapshot,
        folder: RunFolder | None,
        ex: Executor,
        stop: Callable[[], bool] | None,
        clock: Callable[[], float],
    ) -> None:
        self.experiment, self.agent, self.config = experiment, agent, config
        self.algorithm = check(experiment)
        self.folder, self.ex, self.clock = folder, ex, clock
        self.asked_to_stop = stop or (lambda: False)
        M = self.M = agent.n_conditions
        self.limit = config.total(experiment, M)
        self.every = config.snapshot_every or M
        state, known = begin.state, begin.state.asynchronous
        self.seed, self.number = state.seed, state.iteration
        self.conditions: list[Any] = list(state.conditions)
        self.counts, self.version = list(known.counts), known.version
        self.batches = sum(self.counts)  # finished and under way
        self.policy = self.policy_value = state.policy
        # handles for the trainer, and their values for the store
        self.memory: list[deque[Any]] = [deque(kept, config.replay) for kept in known.memory]
        self.remembered = [deque(kept, config.replay) for kept in known.memory]
        self.fresh = known.fresh  # the memory holds what no training has seen
        self.sampling, self.spans = known.sampling_seconds, known.chain_seconds
        self.newest: list[_Newest | None] = [None] * M
        if begin.report is not None:
            self.newest = [
                _Newest(
                    state.conditions[m],
                    begin.rollouts[m],
                    {name: models[m] for name, models in begin.models.items()},
                    begin.report.conditions[m],
                )
                for m in range(M)
            ]
        if not self._over():
            prepare(ex, experiment)
        self.round_began = clock()
        self.began = clock() - known.seconds
        self.ended_at = [clock()] * M
        self.chains: list[_Chain | None] = [None] * M
        self.trainer: Any = None
        self.ages: list[int] = []
        self.events: list[str] = []
        self.stored_at = (self.local_updates, self.version)  # of the last snapshot
        self.last_moment = clock()
        self.moment: _Moment | None = None
        self.pending: list[Any] = []  # scores of `moment` that are not there yet
        self.storing: _Storing | None = None
        self.halting = self.done = False
        self.error: Exception | None = None
        # conditions that can be worked on at once
        self.slots = min(M, max(1, ex.workers - ex.reserve))
        self.spent: dict[str, float] = {}  # since the last snapshot

    @property
    def local_updates(self) -> int:
        """Finished updates of all conditions together."""
        return sum(self.counts)

    def advance(self) -> list[IterationReport]:
        """Wait for something to happen and do what follows; reports of stored snapshots."""
        handles = self._watched()
        ready = {id(h) for h in self.ex.wait(handles, timeout=_POLL)} if handles else set()
        if not self.halting and self.asked_to_stop():
            self.halting = True
        self._publish(ready)
        chains = [c for c in self.chains if c is not None and id(c.watched) in ready]
        finished = []
        for chain in chains:
            if chain.closing is not None and self._tried(self._finish, chain):
                finished.append(chain)
        if self.error is None:
            self._tried(self._start_round)
        for chain in chains:
            if chain.closing is None and self.error is None:
                self._tried(self._renew, chain)
        for m in range(self.M):
            if self._may_sample(m):
                self._tried(self._start_chain, m)
        for chain in finished:
            self._tried(self._fetch, chain)
        if self.halting or self.error is not None:
            self._give_up()
        return self._snapshots(ready)

    def close(self) -> None:
        """Wait for a snapshot that is being written, and let go of all handles."""
        if self.storing is not None:
            self.storing.join(30.0)
        self.chains, self.memory, self.conditions = [None] * self.M, [], []
        self.trainer = self.policy = self.moment = None
        self.pending = []

    # what is under way

    def _watched(self) -> list[Any]:
        handles = [c.watched for c in self.chains if c is not None]
        if self.trainer is not None:
            handles.append(self.trainer)
        return handles + self.pending

    def _tried(self, act: Callable[..., None], *args: Any) -> bool:
        """Do something that may raise; the first error ends the run when all is stored."""
        try:
            act(*args)
        except Exception as error:
            if self.error is not None:
                log.warning("after the first error: %s", error)
            self.error = self.error or error
            return False
        return True

    def _give_up(self) -> None:
        """Leave what is under way, unless a condition would be left with nothing to store."""
        for m, newest in enumerate(self.newest):
            if self.error is not None or newest is not None:
                self.chains[m] = None
        if self.trainer is not None and (self.error is not None or all(self.newest)):
            self.trainer, self.fresh = None, True

    def _may_sample(self, m: int) -> bool:
        if self.chains[m] is not None or self.error is not None:
            return False
        if self.halting:
            return self.newest[m] is None
        return not self._over()

    def _over(self) -> bool:
        """Whether no more rollouts are to be started."""
        done = self.limit is not None and self.batches * self.experiment.samples >= self.limit
        return done or self._trained_enough()

    def _trained_enough(self) -> bool:
        return self.config.updates is not None and self.version >= self.config.updates

    def _start_chain(self, m: int) -> None:
        """Roll out the condition's newest controller."""
        e, now = self.experiment, self.clock()
        address = (self.seed, self.counts[m], e.max_resamples)
        # an algorithm of the user's may say nothing of pictures
        (source,) = getattr(self.algorithm, "unseen", tuple)((self.conditions[m],))
        sampled = self.ex.call(
            "rollout",
            sample,
            *(e.agent, source, m, e.samples, *address),
            condition=m,
        )
        self.batches += 1
        self.chains[m] = _Chain(m, now, self.ended_at[m], sampled)

    def _renew(self, chain: _Chain) -> None:
        """The rollouts are there: update the condition, around the policy that is newest now."""
        m = chain.m
        with self.ex.together():
            rollouts = self.ex.call("rollout", rollouts_of, chain.sampled, condition=m)
            chain.version, chain.sampled_at = self.version, self.clock()
            try:
                chain.renewed = self.algorithm.renew(
                    self.conditions[m],
                    rollouts,
                    self.experiment.cost,
                    self.policy if self.version else None,
                    (self.seed, self.counts[m], m),
                    self.ex,
                )
            except Exception:
                self.chains[m] = None
                raise
            made = chain.renewed
            chain.closing = self.ex.call(
                "closing", closing, made.state, made.targets, chain.sampled, condition=m
            )
        chain.sampled = rollouts

    def _finish(self, chain: _Chain) -> None:
        """Take over an update; its condition can go on."""
        m, now = chain.m, self.clock()
        self.chains[m] = None
        try:
            report, sampling = self.ex.gather(chain.closing)
        except Exception as error:
            error.add_note(f"in update {self.counts[m] + 1} of that condition")
            raise
        renewed = cast(Renewed, chain.renewed)
        age = self.version - chain.version
        if self.folder is not None:  # first: what cannot be written has not happened
            row = {
                "update": self.local_updates + 1,
                "seconds": round(now - self.began, 4),
                "condition": m,
                "iteration": self.counts[m] + 1,
                "version": chain.version,
                "age": age,
                "cost_mean": float(report.cost_mean),
                "kl": float(report.kl),
                "sampling_seconds": round(sampling, 4),
                "chain_seconds": round(now - chain.started, 4),
            }
            self.folder.append_line(UPDATES, row)
        self.conditions[m] = renewed.state
        self.memory[m].append(renewed.targets)
        self.fresh = True
        self.counts[m] += 1
        self.ages.append(age)
        self.sampling += sampling
        self._spent("rollout", sampling)
        self._spent("renew", now - chain.sampled_at)
        self.spans += now - chain.since
        self.ended_at[m] = now
        if report.event:
            self.events.append(f"condition {m}, update {self.counts[m]}: {report.event}")

    def _fetch(self, chain: _Chain) -> None:
        """Bring a finished update here: for snapshots, and to make again what a worker loses."""
        m, made = chain.m, cast(Renewed, chain.renewed)
        tree = (made.state, chain.sampled, made.models, made.targets)
        state, rollouts, models, targets = self.ex.gather(tree)
        self.ex.keep(tree)
        self.newest[m] = _Newest(state, rollouts, models, state.report)
        self.remembered[m].append(targets)
        known = [n.report.cost_mean for n in self.newest if n is not None]
        if len(known) == self.M and not np.isfinite(known).any():
            raise NonFiniteError(
                "the sampled cost of every condition is NaN or infinite; check the cost, or start "
                "with less exploration"
            )

    # the policy

    def _start_round(self) -> None:
        if self.trainer is not None or self.halting or self._trained_enough():
            return
        working = any(self.chains) or any(self._may_sample(m) for m in range(self.M))
        # where conditions take turns, once after each turn
        again = self.algorithm.keeps_training and self.ex.concurrent and working
        if not all(self.memory) or not (self.fresh or (again and self.version > 0)):
            return
        data = [handle for kept in self.memory for handle in kept]
        self.fresh = False
        self.round_began = self.clock()
        self.trainer = self.algorithm.train(self.policy, data, self.seed, self.version, self.ex)
        # it may have been done at once
        self._publish({id(h) for h in self.ex.wait([self.trainer], timeout=0.0)})

    def _publish(self, ready: set[int]) -> None:
        if self.trainer is not None and id(self.trainer) in ready:
            self._tried(self._take_policy)

    def _take_policy(self) -> None:
        trained, self.trainer = self.trainer, None
        self.policy_value = self.ex.gather(trained)
        self.policy = self.ex.keep(trained)
        self.version += 1
        self._spent("train_policy", self.clock() - self.round_began)

    def _spent(self, what: str, seconds: float) -> None:
        self.spent[what] = self.spent.get(what, 0.0) + seconds

    # snapshots

    def _snapshots(self, ready: set[int]) -> list[IterationReport]:
        out: list[IterationReport] = []
        self.pending = [h for h in self.pending if id(h) not in ready]
        if self.moment is not None and not self.pending and self.storing is None:
            self._store()
        if self.storing is not None:
            busy = any(self.chains) or self.trainer is not None
            self.storing.join(0.0 if busy else _POLL)
            if not self.storing.is_alive():
                out.append(self.storing.report())
                self.storing = self.moment = None
        if self.moment is None:
            sampling = any(self.chains) or any(self._may_sample(m) for m in range(self.M))
            trained = self.halting or not self.fresh or self._trained_enough()
            idle = not sampling and self.trainer is None and trained
            idle = idle or self.error is not None
            new = self.stored_at != (self.local_updates, self.version)
            # the last one waits for the last training
            due = sampling and self.local_updates - self.stored_at[0] >= self.every
            if all(self.newest) and (due or (idle and new)):
                self._tried(self._begin_snapshot)
            elif idle:
                self.done = True
        return out

    def _begin_snapshot(self) -> None:
        """Note the newest of everything, and have it judged."""
        now, e = self.clock(), self.experiment
        newest = tuple(cast(_Newest, n) for n in self.newest)
        known = AsynchronousState(
            counts=tuple(self.counts),
            version=self.version,
            memory=tuple(map(tuple, self.remembered)),
            fresh=self.fresh or self.trainer is not None,
            sampling_seconds=self.sampling,
            chain_seconds=self.spans,
            seconds=now - self.began,
        )
        self.number += 1
        state = GPSState(
            iteration=self.number,
            seed=self.seed,
            costs=(e.cost,) * self.M,
            conditions=tuple(n.state for n in newest),
            policy=self.policy_value,
            asynchronous=known,
        )
        sources = [*(Acting(n.state.actor) for n in newest), *[self.policy] * self.M]
        try:
            # without a condition: a worker that samples is not held up
            scores = tuple(
                self.ex.call(
                    "score", sampling.score, e.agent, e.cost, e.measure, source, i % self.M
                )
                for i, source in enumerate(sources)
            )
        except Exception as error:  # of an executor that runs it at once
            scores = self._unjudged(error)
        steps = self.local_updates * e.samples * self.agent.T
        available = self.spans * self.slots / self.M
        numbers = {
            "env_steps": float(steps),
            "local_updates": float(self.local_updates),
            "policy_updates": float(self.version),
            "age_mean": float(np.mean(self.ages)) if self.ages else math.nan,
            "age_max": float(max(self.ages, default=0)) if self.ages else math.nan,
            "utilisation": float(self.sampling / available) if available > 0 else math.nan,
        }
        self.moment = _Moment(
            state=state,
            newest=newest,
            scores=scores,
            numbers=numbers,
            events=tuple(self.events),
            seconds=now - self.last_moment,
            # the executor's own count would wait for rollouts that are under way
            stage_seconds=self.spent,
        )
        self.pending = list(scores)
        self.last_moment = now
        self.stored_at = (self.local_updates, self.version)
        self.ages, self.events, self.spent = [], [], {}

    def _unjudged(self, error: Exception) -> tuple[sampling.Score, ...]:
        """No scores: the updates are good and will be stored, then the run ends with the error."""
        error.add_note(f"while snapshot {self.number} was judged")
        self.error = self.error or error
        return (sampling.Score(math.nan, math.nan, math.nan),) * (2 * self.M)

    def _store(self) -> None:
        """Everything is there: store it beside the work that goes on."""
        moment = cast(_Moment, self.moment)
        try:
            scores = self.ex.gather(moment.scores)
        except Exception as error:
            scores = self._unjudged(error)
        names = moment.newest[0].models
        report = Report(
            iteration=moment.state.iteration - 1,
            conditions=tuple(n.report for n in moment.newest),
            policy_loss=moment.state.policy.loss,
            models={name: tuple(n.models[name] for n in moment.newest) for name in names},
        )
        local, policy = scores[: self.M], scores[self.M :]
        row = metrics_row(report, local, policy, moment.state)
        row |= moment.numbers
        row |= memory_row(self.ex)
        row["seconds"] = moment.seconds
        row |= {f"seconds_{name}": s for name, s in moment.stage_seconds.items()}
        self.storing = _Storing(
            self.folder,
            IterationReport(
                iteration=moment.state.iteration,
                report=report,
                row=row,
                state=moment.state,
                rollouts=tuple(n.rollouts for n in moment.newest),
                seconds=moment.seconds,
                stage_seconds=moment.stage_seconds,
                events=moment.events,
            ),
        )
        self.storing.start()
        if not self.ex.concurrent or self.folder is None:  # one thing after the other
            self.storing.join()


class _Storing(threading.Thread):
    """Writes one snapshot."""

    def __init__(self, folder: RunFolder | None, report: IterationReport) -> None:
        super().__init__(name="gps-store", daemon=True)
        self._folder, self._report = folder, report
        self._error: BaseException | None = None

    def run(self) -> None:
        """Called by the thread."""
        r = self._report
        if self._folder is None:
            return
        begin = time.perf_counter()
        try:
            self._folder.write(
                Snapshot(
                    state=replace(r.state, costs=()),
                    rollouts=r.rollouts,
                    models=r.report.models,
                    metrics=dict(r.row),
                    report=replace(r.report, models={}),
                )
            )
            r.row["seconds_store"] = time.perf_counter() - begin
            self._folder.append_metrics(r.row)
        except BaseException as error:
            self._error = error

    def report(self) -> IterationReport:
        """What was stored; raises what went wrong."""
        if self._error is not None:
            raise self._error
        return self._report


__all__ = [
    "AsynchronousConfig",
    "changed",
    "check",
    "resume_asynchronous",
    "run_asynchronous",
    "stored_config",
]
