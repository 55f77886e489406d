"""Asynchronous runs: the conditions are updated without waiting for each other.

Each condition has a chain of its own: roll out, fit, update around the newest policy, and again.
Beside the chains a trainer fits the policy continuously to the replay buffer, which holds the last
batches of every condition. This process starts the calls and takes their results in whichever
order they come. An update depends on the timing as far as it decides which policy is the newest: a
run cannot be repeated to the same bytes, except on the serial executor, where the conditions take
turns, the policy is trained after every turn, and only the times in the files differ.

    chain m    rollout -> [newest policy] -> fit, linearise, assess, improve, targets -> rollout ...
    trainer    [replay buffer] -> train_policy -> newest policy; again when the buffer has changed

Now and then a snapshot is made of the newest of everything, and stored as an ordinary iteration;
RUN/updates.csv has a line for every single update.
Source: A. Yahya et al., Collective Robot Reinforcement Learning with Distributed Asynchronous
Guided Policy Search, 2016 (arXiv 1610.00673). There the replay buffer is a process of its own;
here it is a list of handles, and what a lost worker held is recomputed by the executor.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from gps.algorithms.state import (
    AsynchronousState,
    ConditionReport,
    ConditionState,
    ConditionUpdate,
    GPSState,
    PolicyState,
    Report,
    Source,
)
from gps.errors import ConfigError, GPSError, NonFiniteError, StoreError
from gps.execution import Deferred, Executor, Serial, stage
from gps.fields import Config, Count
from gps.pipeline import changes as live
from gps.pipeline import config_io, keeping, progress, sampling, sending
from gps.pipeline.experiment import (
    AgentConfig,
    AsynchronousAlgorithm,
    ChoosesImages,
    Experiment,
    initial_state,
)
from gps.pipeline.learning import Learning, in_own_terms, own_terms, unrewarded
from gps.pipeline.runner import (
    IterationReport,
    memory_row,
    metrics_row,
    say,
    steered,
    succeeds,
    warn,
)
from gps.pipeline.steering import Steering
from gps.pipeline.store import RunFolder, Snapshot
from gps.pipeline.warmup import prepare
from gps.policies.training import TrainingData
from gps.protocols import Agent, Policy
from gps.threads import one_thread
from gps.types import Record, Rollouts

log = logging.getLogger(__name__)

UPDATES = "updates.csv"
FIXED = {
    "samples": "it counts its rollouts in batches of so many",
    "iterations": "iterations, rollouts and updates are limits of their own",
}
"""Options that stay, unlike in a synchronous run, and why."""
_POLL = 0.2  # seconds between checks of everything else: a stop, a stored snapshot


@dataclass(frozen=True, kw_only=True)
class AsynchronousConfig(Config):
    """When an asynchronous run stops and stores, and what its policy is trained on."""

    replay_batches: Count = 2
    """Batches of each condition in the replay buffer that the policy is trained on, one batch being
    the rollouts of one update. Each keeps the actions that were its targets when it was sampled.
    The test errors of peg_insertion with 1, 2 and 3 lie within one another's noise; with the newest
    controllers' actions instead, they double."""
    snapshot_every: Count | None = None
    """Updates of conditions between two snapshots; None for as many as there are conditions."""
    rollouts: Count | None = None
    """Sampled rollouts of all conditions together after which the run stops, rounded up to whole
    batches and to one batch of each condition; None with `updates` for no such limit, without it
    for as many as the synchronous run."""
    updates: Count | None = None
    """Policy updates after which the run stops; None for no such limit."""

    def total(self, experiment: Experiment, conditions: int) -> int | None:
        """Rollouts after which a run stops; None without such a limit."""
        batch = experiment.samples
        if self.rollouts is not None:
            return max(conditions, -(-self.rollouts // batch)) * batch
        return None if self.updates is not None else experiment.iterations * conditions * batch

    def over(self, experiment: Experiment, conditions: int, batches: int, version: int) -> bool:
        """Whether no more rollouts are to be started after so many batches and policy updates."""
        limit = self.total(experiment, conditions)
        done = limit is not None and batches * experiment.samples >= limit
        return done or self.trained_enough(version)

    def trained_enough(self, version: int) -> bool:
        """Whether the policy has been updated often enough."""
        return self.updates is not None and version >= self.updates

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

    out, executor, source: as for `gps.run`. stop: called often; when it returns True, what has
    finished is stored and the run ends. clock: seconds, for executors that keep a time of their
    own. steering: as for `gps.run`; an asynchronous run accepts a stop. Raises ConfigError
    before the first rollout, SimulationError, StoreError, and NotLearningError where the last
    `experiment.max_without_update` updates of every condition have failed; what was finished before
    an error is stored and reported first.
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
    experiment = keeping.kept(experiment)
    if executor is not None and executor.concurrent:
        sending.check(experiment)
    with one_thread():
        agent = experiment.validate()
        begins: list[str] = []
        state = initial_state(experiment, agent, begins.append)
        M = agent.n_conditions
        nothing = AsynchronousState((0,) * M, 0, ((),) * M, False, 0.0, 0.0, 0.0)
        state = replace(state, asynchronous=nothing)
        folder = None
        if out is not None:
            where = "serial" if executor is None else type(executor).__name__.lower()
            extra = {"executor": where, "asynchronous": config_io.to_json(config)}
            folder = RunFolder.create(Path(out), experiment, source, extra=extra)
        say(folder, *begins)
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
    replay_batches: int | None = None,
    changes: Mapping[str, Any] | None = None,
    executor: Executor | None = None,
    stop: Callable[[], bool] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    steering: Steering | None = None,
) -> Iterator[IterationReport]:
    """Continue a stored asynchronous run from a snapshot; what was under way begins again.

    The result is not that of a run without the break, byte for byte: which policy is the newest
    when an update starts depends on the clock.
    start: the snapshot to resume from (later ones are deleted); None takes the last whole one.
    rollouts, updates: new limits in place of the run's own; iterations: the limit on rollouts as
    so many synchronous iterations; replay_batches: another size of the replay buffer, from now on.
    changes: as for `gps.resume`, options and seed that are different from now on; `samples` stays.
    They are recorded in RUN/changes.json at the number of the next snapshot, unless there is
    nothing to do. Raises StoreError, ConfigError.
    """
    folder = RunFolder.open(Path(path))
    base = folder.experiment()
    start = folder.last() if start is None else start
    folder.check(start)
    config, experiment, made = changed(
        folder,
        base,
        start=start,
        rollouts=rollouts,
        updates=updates,
        iterations=iterations,
        replay_batches=replay_batches,
        changes=changes,
    )
    snapshot = folder.read(start)
    try:
        known = _progress(snapshot.state)
        with one_thread():
            agent = experiment.validate()
        folder.truncate(start)
        folder.cut_lines(UPDATES, known.local_updates)
        M, batches = agent.n_conditions, known.local_updates
        if made != folder.changes() and not config.over(experiment, M, batches, known.version):
            folder.write_changes(made)
        seed = made.seed(start + 1)
        if seed is not None:
            snapshot = replace(snapshot, state=replace(snapshot.state, seed=seed))
        warn(folder, base)
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
    start: int,
    rollouts: int | None = None,
    updates: int | None = None,
    iterations: int | None = None,
    replay_batches: int | None = None,
    changes: Mapping[str, Any] | None = None,
) -> tuple[AsynchronousConfig, Experiment, live.Changes]:
    """A stored run's configurations with other limits and replay buffer from a snapshot on, and
    all changes up to then.

    changes: as for `resume_asynchronous`. Raises StoreError, ConfigError.
    """
    config = stored_config(folder)
    if config is None:
        raise StoreError(f"{folder.path} is a synchronous run; continue it with gps.resume")
    if iterations is not None:
        experiment = replace(experiment, iterations=iterations)
    if (iterations, rollouts, updates) != (None, None, None):
        config = replace(config, rollouts=rollouts, updates=updates)
    if replay_batches is not None:
        config = replace(config, replay_batches=replay_batches)
    # a process makes all of its snapshots with the same options: later ones are made anew
    made = live.Changes(tuple((n, c) for n, c in folder.changes().at if n <= start + 1))
    for name in changes or ():
        if why := FIXED.get(name.replace("_", "-")):
            raise ConfigError(f"{name!r} cannot change in an asynchronous run: {why}")
    if changes:
        change = live.change_of(made.apply(experiment, start + 1), changes)
        made = made.from_now(start + 1, change)
    experiment = made.apply(experiment, start + 1)
    check(experiment)
    return config, experiment, made


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
            f"{name} cannot run asynchronously; it lacks methods of AsynchronousAlgorithm "
            "(update_condition, train), which MDGPSConfig has"
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
                solved = succeeds(report.row)
                advice = driver.learning.advice(report.report.conditions, solved)
                if report.iteration == 1:
                    nothing = unrewarded(experiment.cost, report.rollouts)
                    advice = "; ".join(filter(None, (advice, nothing)))
                news = "; ".join(filter(None, (progress.news(rows), advice)))
                reports[k] = report = replace(report, news=news)
                if folder is not None:
                    folder.note(f"snapshot {report.iteration} is stored")
                    for event in report.events:
                        folder.note(f"snapshot {report.iteration}, {event}", logging.WARNING)
                    if report.news:
                        folder.note(report.news, logging.WARNING if advice else logging.INFO)
                steering.finished(report.row["seconds"])
                if not (driver.done and report is reports[-1]):
                    steering.begin(experiment, report.iteration + 1, ex.doing, total=total)
            yield from reports
        if driver.error is not None:
            raise driver.error


def _progress(state: GPSState) -> AsynchronousState:
    """The asynchronous part of a state; StoreError if a snapshot has none."""
    if state.asynchronous is None:
        raise StoreError(f"iteration {state.iteration} is not a snapshot of an asynchronous run")
    return state.asynchronous


# --- stages --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Sampled(Record):
    """A batch of rollouts and the time that sampling it took."""

    rollouts: Rollouts
    seconds: float


@stage("rollout")
def sample(
    agent: AgentConfig,
    source: Source,
    condition: int,
    samples: int,
    seed: int,
    iteration: int,
    max_resamples: int,
) -> Sampled:
    """`gps.pipeline.sampling.rollout`, timed."""
    begin = time.perf_counter()
    rollouts = sampling.rollout(agent, source, condition, samples, seed, iteration, max_resamples)
    return Sampled(rollouts, time.perf_counter() - begin)


@stage("rollout")
def rollouts_of(sampled: Sampled) -> Rollouts:
    """The batch alone."""
    return sampled.rollouts


@dataclass(frozen=True, eq=False)
class Acting(Record):
    """What acts in a condition, without the rest of its state."""

    actor: Policy


def closing(
    state: ConditionState, targets: TrainingData, sampled: Sampled
) -> tuple[ConditionReport, float]:
    """The report and the sampling time of a finished chain, as soon as all of it is there."""
    assert state.report is not None
    return state.report, sampled.seconds


# --- the driver ----------------------------------------------------------------------------------


@dataclass
class _Chain:
    """One condition's update under way."""

    m: int
    started: float
    since: float
    """When the condition's last update was finished."""
    sampled: Deferred[Sampled]
    rollouts: Deferred[Rollouts] | None = None
    version: int = 0
    sampled_at: float = 0.0
    update: ConditionUpdate | None = None
    closing: Deferred[tuple[ConditionReport, float]] | None = None

    @property
    def watched(self) -> object:
        """The handle that the next thing to do with this chain waits for."""
        return self.sampled if self.closing is None else self.closing


@dataclass(frozen=True, eq=False)
class _Newest:
    """The values of one condition's last finished update."""

    state: ConditionState
    rollouts: Rollouts
    models: dict[str, Record]
    report: ConditionReport


@dataclass(frozen=True, eq=False)
class _Moment:
    """The run as it was when a snapshot was begun."""

    state: GPSState
    newest: tuple[_Newest, ...]
    scores: tuple[Deferred[sampling.Score], ...]
    """Of the local controllers, then of the policy."""
    numbers: dict[str, float]
    events: tuple[str, ...]
    seconds: float
    stage_seconds: dict[str, float]
    """Sampling, and by this process's clock what follows it, and the training."""


class _Driver:
    """Starts calls, takes results, and keeps the state of one run."""

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
        self.every = config.snapshot_every or M
        state, known = begin.state, _progress(begin.state)
        self.seed, self.number = state.seed, state.iteration
        self.conditions: list[Deferred[ConditionState]] = list(state.conditions)
        self.counts, self.version = list(known.counts), known.version
        self.batches = sum(self.counts)  # finished and under way
        assert state.policy is not None  # `check` refuses algorithms without one
        self.policy: Deferred[PolicyState] = state.policy
        self.policy_value: PolicyState = state.policy
        # handles for the trainer, and their values for the store
        size = config.replay_batches
        self.replay_buffer: list[deque[Deferred[TrainingData]]]
        self.replay_buffer = [deque(kept, size) for kept in known.replay_buffer]
        self.replay_values = [deque(kept, size) for kept in known.replay_buffer]
        self.fresh = known.fresh  # the buffer holds data that no training has used
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
        self.trainer: Deferred[PolicyState] | None = None
        self.ages: list[int] = []
        self.told: list[ConditionReport] = []  # of the updates since the last snapshot
        path = None if folder is None else folder.path
        self.learning = Learning(experiment.max_without_update, M, path, live=("algorithm.",))
        self.named = own_terms(experiment, agent)
        self.solved = False  # by the last snapshot
        self.stored_at = (self.local_updates, self.version)  # of the last snapshot
        self.last_moment = clock()
        self.moment: _Moment | None = None
        # scores of `moment` that are not there yet
        self.pending: list[Deferred[sampling.Score]] = []
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
                self._tried(self._update, chain)
        for m in range(self.M):
            if self._may_sample(m):
                self._tried(self._start_chain, m)
        for chain in finished:
            self._tried(self._fetch, chain)
        if self.halting or self.error is not None:
            self._abandon()
        return self._snapshots(ready)

    def close(self) -> None:
        """Wait for a snapshot that is being written, and release all handles."""
        if self.storing is not None:
            self.storing.join(30.0)
        self.chains, self.replay_buffer, self.conditions = [None] * self.M, [], []
        self.trainer = self.moment = None
        self.pending = []

    # what is under way

    def _watched(self) -> list[object]:
        handles: list[object] = [c.watched for c in self.chains if c is not None]
        if self.trainer is not None:
            handles.append(self.trainer)
        return [*handles, *self.pending]

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

    def _abandon(self) -> None:
        """Abandon what is under way, unless a condition would be left with nothing to store."""
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
        return self.config.over(self.experiment, self.M, self.batches, self.version)

    def _trained_enough(self) -> bool:
        return self.config.trained_enough(self.version)

    def _start_chain(self, m: int) -> None:
        """Roll out the condition's newest controller."""
        e, now = self.experiment, self.clock()
        source: Source = self.conditions[m]
        if isinstance(self.algorithm, ChoosesImages):
            (source,) = self.algorithm.without_images((source,))
        address = (self.seed, self.counts[m], e.max_resamples)
        sampled = self.ex.call(sample, e.agent, source, m, e.samples, *address, condition=m)
        self.batches += 1
        self.chains[m] = _Chain(m, now, self.ended_at[m], sampled)

    def _update(self, chain: _Chain) -> None:
        """The rollouts are there: update the condition, around the policy that is newest now."""
        m = chain.m
        with self.ex.together():
            rollouts = self.ex.call(rollouts_of, chain.sampled, condition=m)
            chain.version, chain.sampled_at = self.version, self.clock()
            try:
                chain.update = self.algorithm.update_condition(
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
            state, targets = chain.update.state, chain.update.targets
            chain.closing = self.ex.call(closing, state, targets, chain.sampled, condition=m)
        chain.rollouts = rollouts

    def _finish(self, chain: _Chain) -> None:
        """Take over an update; its condition continues."""
        m, now = chain.m, self.clock()
        self.chains[m] = None
        try:
            report, sampling = self.ex.gather(cast(tuple[ConditionReport, float], chain.closing))
        except Exception as error:
            error.add_note(f"in update {self.counts[m] + 1} of that condition")
            raise
        report, update = in_own_terms(report, self.named), cast(ConditionUpdate, chain.update)
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
        self.conditions[m] = update.state
        self.replay_buffer[m].append(update.targets)
        self.fresh = True
        self.counts[m] += 1
        self.ages.append(age)
        self.sampling += sampling
        self._spent("rollout", sampling)
        self._spent("update_condition", now - chain.sampled_at)
        self.spans += now - chain.since
        self.ended_at[m] = now
        self.told.append(report)
        self.learning.count([report], self.solved)
        if self.learning.over and self.error is None:
            self.error = self.learning.error()

    def _fetch(self, chain: _Chain) -> None:
        """Gather a finished update: for snapshots, and to recompute what a worker loses."""
        m, update = chain.m, cast(ConditionUpdate, chain.update)
        tree = (update.state, cast(Rollouts, chain.rollouts), update.models, update.targets)
        state, rollouts, models, targets = self.ex.gather(tree)
        self.ex.keep(tree)
        report = in_own_terms(cast(ConditionReport, state.report), self.named)
        self.newest[m] = _Newest(replace(state, report=report), rollouts, models, report)
        self.replay_values[m].append(targets)
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
        if not all(self.replay_buffer) or not (self.fresh or (again and self.version > 0)):
            return
        data = [handle for kept in self.replay_buffer for handle in kept]
        self.fresh = False
        self.round_began = self.clock()
        self.trainer = self.algorithm.train(self.policy, data, self.seed, self.version, self.ex)
        # it may have been done at once
        self._publish({id(h) for h in self.ex.wait([self.trainer], timeout=0.0)})

    def _publish(self, ready: set[int]) -> None:
        if self.trainer is not None and id(self.trainer) in ready:
            self._tried(self._take_policy)

    def _take_policy(self) -> None:
        trained, self.trainer = cast(PolicyState, self.trainer), None
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
        """Take a snapshot of the newest of everything, and start its evaluation."""
        now, e = self.clock(), self.experiment
        newest = tuple(cast(_Newest, n) for n in self.newest)
        known = AsynchronousState(
            counts=tuple(self.counts),
            version=self.version,
            replay_buffer=tuple(map(tuple, self.replay_values)),
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
        sources: list[Source] = [*(Acting(n.state.actor) for n in newest), *[self.policy] * self.M]
        judges = [e.agent] * self.M + [e.evaluation_agent] * self.M
        try:
            # without a condition: a worker that samples is not held up
            scores = tuple(
                self.ex.call(sampling.score, judge, e.cost, e.measure, source, i % self.M)
                for i, (judge, source) in enumerate(zip(judges, sources, strict=True))
            )
        except Exception as error:  # of an executor that runs it at once
            scores = self._without_scores(error)
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
            events=self.learning.events(self.told),
            seconds=now - self.last_moment,
            # the executor's own count would wait for rollouts that are under way
            stage_seconds=self.spent,
        )
        self.pending = list(scores)
        self.last_moment = now
        self.stored_at = (self.local_updates, self.version)
        self.ages, self.told, self.spent = [], [], {}

    def _without_scores(self, error: Exception) -> tuple[sampling.Score, ...]:
        """No scores: the updates are good and will be stored, then the run ends with the error."""
        error.add_note(f"while snapshot {self.number} was evaluated")
        self.error = self.error or error
        return (sampling.Score(math.nan, math.nan, math.nan),) * (2 * self.M)

    def _store(self) -> None:
        """Store a snapshot whose parts are complete, in parallel with the other work."""
        moment = cast(_Moment, self.moment)
        try:
            scores = self.ex.gather(moment.scores)
        except Exception as error:
            scores = self._without_scores(error)
        names = moment.newest[0].models
        report = Report(
            iteration=moment.state.iteration - 1,
            conditions=tuple(n.report for n in moment.newest),
            policy_loss=cast(PolicyState, moment.state.policy).loss,
            models={name: tuple(n.models[name] for n in moment.newest) for name in names},
        )
        local, policy = scores[: self.M], scores[self.M :]
        row = metrics_row(report, local, policy, moment.state)
        self.solved = succeeds(row)
        events = moment.events
        for who, found in (("the controller", local), ("the policy", policy)):
            events += self.learning.failures(who, [s.failed for s in found])
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
                events=events,
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
