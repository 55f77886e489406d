"""The run loop: roll out, iterate, score, store, report."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np

from gps import process_memory
from gps.algorithms.diagnosis import upper_median
from gps.algorithms.state import ConditionReport, GPSState, Report
from gps.errors import ConfigError, NotLearningError, StoreError
from gps.execution import Executor, Serial
from gps.fields import Kind, checked_arguments
from gps.pipeline import keeping, progress, sampling, sending
from gps.pipeline.changes import Change, Changes, change_of
from gps.pipeline.experiment import AgentConfig, Experiment, initial_state
from gps.pipeline.files import AnyPath
from gps.pipeline.learning import Learning, in_own_terms, own_terms, unrewarded
from gps.pipeline.steering import NOT_LEARNING, Steering
from gps.pipeline.steering_socket import serving
from gps.pipeline.store import RunFolder, Snapshot
from gps.pipeline.warmup import prepare
from gps.protocols import Agent
from gps.threads import one_thread
from gps.types import Record, Rollouts

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class IterationReport(Record):
    """One finished iteration, with all that it made."""

    iteration: int
    """Number of the iteration, from 1."""
    report: Report
    """What the algorithm says; `report.models` holds costs, dynamics, linearised policies."""
    row: dict[str, float]
    """The line of metrics.csv."""
    state: GPSState
    """What the next iteration starts from: controllers, priors, policy."""
    rollouts: tuple[Rollouts, ...]
    """One per condition."""
    seconds: float
    """Wall-clock time of the iteration, storing included."""
    stage_seconds: dict[str, float]
    """Work per stage; with several workers the sum over all of them."""
    events: tuple[str, ...] = ()
    """What the guard had to do, one line per event."""
    news: str = ""
    """That the run has converged, or has not improved for long (see `gps.pipeline.progress`), or
    what keeps it from learning (see `gps.algorithms.diagnosis`). Said once."""


@runtime_checkable
class _Calls(Protocol):
    """The methods by which an executor is known; its properties may wait for a cluster."""

    def call(self, fn: Any, *args: Any) -> Any: ...

    def gather(self, tree: Any) -> Any: ...


LoadedExperiment = Annotated[
    Experiment, Kind("an Experiment as gps.load(name or path) gives it", (Experiment,))
]
AnyExecutor = Annotated[Executor, Kind("an executor such as gps.parallel.Dask()", (_Calls,))]
GivenChanges = Annotated[
    Mapping[str, Any], Kind("a mapping of options to their values", (Mapping,))
]
AnySteering = Annotated[Steering, Kind("a gps.pipeline.steering.Steering", (Steering,))]


@checked_arguments
def run(
    experiment: LoadedExperiment,
    *,
    seed: int | None = None,
    iterations: int | None = None,
    out: AnyPath | None = None,
    executor: AnyExecutor | None = None,
    source: AnyPath | None = None,
    ahead: bool = True,
    steering: AnySteering | None = None,
    changes: Changes | None = None,
    until_converged: bool = False,
) -> Iterator[IterationReport]:
    """Run an experiment; yields a report after every stored iteration.

    out: the run folder, which must be new or empty; None keeps everything in memory. executor:
    where the stages run; None runs them in this process. source: the hyperparams file, copied into
    the run folder; None for that which the experiment's own classes come from. ahead: let the
    workers of a cluster begin the next rollouts while an iteration is stored and reported; they are
    dropped if it is not asked for. steering: pauses, steps, changes and stops the run from another
    thread or process. changes: options that change during
    the run, as in a run's changes.json, in the iterations that they name. until_converged: end when
    nothing improves any more (`gps.pipeline.progress.converged`), at the latest after `iterations`.
    Raises ConfigError before the first rollout, SimulationError, StoreError, and NotLearningError
    after `experiment.max_without_update` iterations in a row without an update, the last of which
    is stored and reported first.
    """
    if seed is not None:
        experiment = replace(experiment, seed=seed)
    if iterations is not None:
        experiment = replace(experiment, iterations=iterations)
    experiment = keeping.kept(experiment)
    if executor is not None and executor.concurrent:
        sending.check(experiment)
    changes = changes or Changes()
    for n, _ in changes.at:
        changes.apply(
            experiment, n
        )  # a change that cannot work is refused before the first rollout
    with one_thread():
        agent = experiment.validate()
        begins: list[str] = []
        state = initial_state(experiment, agent, begins.append)
        folder = None
        if out is not None:
            where = "serial" if executor is None else type(executor).__name__.lower()
            folder = RunFolder.create(out, experiment, source, extra={"executor": where})
            if changes.at:
                folder.write_changes(changes)
        say(folder, *begins)
    run = _Run(experiment, agent, changes, None, until_converged)
    yield from _checked_loop(run, state, folder, executor, ahead, steering)


@checked_arguments
def resume(
    path: AnyPath,
    *,
    start: int | None = None,
    iterations: int | None = None,
    executor: AnyExecutor | None = None,
    ahead: bool = True,
    steering: AnySteering | None = None,
    until_converged: bool = False,
    changes: GivenChanges | None = None,
) -> Iterator[IterationReport]:
    """Continue a stored run to the same bytes as if it had never stopped.

    start: the iteration to resume from (later ones are deleted); None takes the last whole one.
    iterations: the total to reach; None takes the experiment's. executor, ahead, steering,
    until_converged: as in `run`; a run that has converged by then is left as it is. Options that
    had been changed during the run change again, in the same iterations. changes: options that are
    different from now on, `{"samples": 9, "algorithm.step.kl_max": 0.5, "seed": 3}`, by their names
    on the command line; they are recorded in RUN/changes.json, unless there is nothing to do, and
    what cannot change in a run is refused before anything is deleted, and so is a start after which
    there is nothing to do. Raises StoreError, ConfigError, ExperimentError.

    The run uses the files that it has stored; what differs outside is a warning in the log.
    """
    folder = RunFolder.open(path)
    if "asynchronous" in folder.info():
        raise StoreError(
            f"{folder.path} is an asynchronous run; continue it with gps.resume_asynchronous, or "
            "with: gps resume"
        )
    experiment, made = folder.experiment(), folder.changes()
    start = folder.last() if start is None else start
    if changes:
        folder.check(start)
        change = change_of(made.apply(experiment, start + 1), changes)
        made = made.from_now(start + 1, change)
    try:
        with one_thread():
            following = made.apply(experiment, start + 1)
            agent = following.validate()
            total = following.iterations if iterations is None else iterations
            rows = []
            if until_converged:
                rows = [r for r in folder.results() if r["iteration"] <= start]
            converged = until_converged and progress.converged(rows)
            if start < folder.last() and (start > total or converged):
                raise ConfigError(
                    f"there is nothing to do from iteration {start} to {total}: iterations "
                    f"{start + 1} to {folder.last()} of {folder.path} would be lost for nothing; "
                    "give more iterations, or another one to resume from"
                )
            idle = start >= total or converged
            folder.truncate(start)
            if changes and not idle:  # else they would hold later, in a run resumed without them
                folder.write_changes(made)
            stored = folder.read_state(start)
            state = replace(stored, costs=(experiment.cost,) * agent.n_conditions)
        warn(folder, experiment)
    except BaseException:
        folder.close()
        raise
    run = _Run(experiment, agent, made, iterations, until_converged)
    yield from _checked_loop(run, state, folder, executor, ahead, steering, stored=True)


def warn(folder: RunFolder, experiment: Experiment) -> None:
    """Say in the log, and in that of the run, what is different now from when it was made."""
    say(folder, *folder.notices(experiment), level=logging.WARNING)


def say(folder: RunFolder | None, *texts: str, level: int = logging.INFO) -> None:
    """Write to the log, and to that of the run."""
    for text in texts:
        log.log(level, "%s", text)
        if folder is not None:
            folder.note(text, level)


@dataclass
class _Run:
    """What the loop goes by; the state is apart."""

    base: Experiment
    """As the run began."""
    agent: Agent
    changes: Changes
    iterations: int | None
    """A total that overrides the experiment's."""
    until_converged: bool
    """Whether to end when the run has converged."""
    _known: tuple[Any, Experiment] | None = None

    def experiment(self, iteration: int) -> Experiment:
        """The experiment of an iteration; the same object as long as nothing changes."""
        key = self.changes.options(iteration), self.iterations
        if self._known is None or self._known[0] != key:
            experiment = self.changes.apply(self.base, iteration)
            if self.iterations is not None:
                experiment = replace(experiment, iterations=self.iterations)
            self._known = key, experiment
        return self._known[1]

    def over(self, done: int, iterations: int, rows: Sequence[progress.Row]) -> bool:
        """Whether no more is to be made, of so many iterations; rows: of those that are done."""
        return done >= iterations or (self.until_converged and progress.converged(rows))

    def change(self, iteration: int, change: Change) -> None:
        """Let something be different from an iteration on."""
        if "iterations" in change.options:  # said later than what the run was resumed with
            self.iterations = None
        self.changes = self.changes.with_change(iteration, change)


def _checked_loop(
    run: _Run,
    state: GPSState,
    folder: RunFolder | None,
    executor: Executor | None,
    ahead: bool,
    steering: Steering | None,
    stored: bool = False,
) -> Iterator[IterationReport]:
    ex, steering = executor or Serial(), steering or Steering()
    with ExitStack() as stack:
        if executor is None:
            stack.callback(ex.close)
        if folder is not None:
            stack.callback(folder.close)
            if not stored:
                folder.write(Snapshot.of_start(state))
        stack.enter_context(steered(folder, steering))
        yield from _loop(run, state, folder, ex, ahead, steering)


@contextmanager
def steered(folder: RunFolder | None, steering: Steering) -> Iterator[None]:
    """A run that takes commands and keeps a log inside the block, and says how it ended."""
    with ExitStack() as stack:
        if folder is not None:
            stack.enter_context(folder.logged())
            steering.note = folder.note
            stack.enter_context(serving(steering, folder.path))
            folder.note(f"process {os.getpid()} on {socket.gethostname()} executes the run")
        try:
            yield
        except NotLearningError as error:
            steering.end(error)
            if folder is not None:
                _note_best(folder)
                folder.note(f"{NOT_LEARNING}: {error}", logging.WARNING)
            raise
        except GeneratorExit:  # nobody asks for the next iteration
            steering.end()
            if folder is not None:
                _note_best(folder)
                folder.note("no further iteration was asked for")
            raise
        except BaseException as error:
            steering.end(error)
            if folder is not None:
                folder.note(steering.status.note, logging.ERROR)
            raise
        steering.end()
        if folder is not None:
            _note_best(folder)
            folder.note(f"the run is {steering.status.state}")


def _note_best(folder: RunFolder) -> None:
    """Say in the log which iteration is the best; no matter if the folder cannot be read."""
    with suppress(StoreError):
        if text := progress.summary(folder.results()):
            folder.note(text)


def _loop(
    run: _Run,
    state: GPSState,
    folder: RunFolder | None,
    ex: Executor,
    ahead: bool,
    steering: Steering,
) -> Iterator[IterationReport]:
    agent = run.agent
    M = range(agent.n_conditions)
    experiment = run.experiment(state.iteration + 1)
    rows: list[progress.Row] = [] if folder is None else [*folder.results()]
    if not run.over(state.iteration, experiment.iterations, rows):
        steering.prepare(experiment, state.iteration)
        prepare(ex, experiment)
    ex.seconds()
    live: tuple[Any, ...] | None = None
    before: GPSState | None = (
        None  # where the last iteration began; of a stored run read when asked
    )
    repeated = False
    path = None if folder is None else folder.path
    learning, named = Learning(None, len(M), path), own_terms(experiment, agent)
    while True:
        command = steering.take(experiment, state.iteration)
        if command is not None and command.kind == "stop":
            return
        if command is not None:
            live = None
            if command.kind == "repeat":
                state = _earlier(run, state, before, folder)
                rows = [r for r in rows if r["iteration"] <= state.iteration]
                repeated = True
            run.change(state.iteration + 1, Change(command.options, command.seed))
            if folder is not None:
                folder.write_changes(run.changes)
            experiment = run.experiment(state.iteration + 1)
            learning.restart()
            continue
        if run.over(state.iteration, experiment.iterations, rows):
            return
        begin = time.perf_counter()
        with one_thread():
            it = state.iteration
            steering.begin(experiment, it + 1, ex.doing)
            seed = run.changes.seed(it + 1)
            if seed is not None and seed != state.seed:
                state, live = replace(state, seed=seed), None
            if folder is None:
                before = state
            try:
                with ex.together():
                    if live is None:
                        live = tuple(_rollouts(experiment, state, ex, M))
                    if not steering.after_rollouts(partial(_wait_for_all, ex, live)):
                        return
                    live_state, live_report = experiment.algorithm.iterate(state, live, ex)
                    local = [_score(experiment, ex, live_state.conditions[m], m) for m in M]
                    policy = [
                        _score(experiment, ex, live_state.policy, m, experiment.evaluation_agent)
                        for m in M
                        if live_state.policy is not None
                    ]
                done, rollouts, report, local, policy = ex.gather(
                    (live_state, live, live_report, local, policy)
                )
            except Exception as error:
                error.add_note(f"in iteration {it + 1}")
                raise
            reports = tuple(in_own_terms(r, named) for r in report.conditions)
            report = replace(report, conditions=reports)
            each = zip(done.conditions, reports, strict=True)
            done = replace(done, conditions=tuple(replace(c, report=r) for c, r in each))
            stage_seconds = ex.seconds()
            row = metrics_row(report, local, policy, done)
            sampled = run.changes.rollouts(run.base, done.iteration)
            row["env_steps"] = float(sampled * len(M) * agent.T)
            rows.append(dict(row))
            row |= memory_row(ex)
            row["seconds"] = time.perf_counter() - begin
            row |= {f"seconds_{name}": s for name, s in stage_seconds.items()}
            # handles: on a cluster the data stays on its workers
            ex.keep((live_state.conditions, live_state.policy, live_state.dynamics))
            state, live = live_state, None
            del live_report
            following = run.experiment(state.iteration + 1)
            learning.limit = experiment.max_without_update
            learning.count(report.conditions, solved=succeeds(row))
            over = learning.over or run.over(state.iteration, following.iterations, rows)
            goes_on = not over and not steering.stopping
            if ahead and ex.concurrent and goes_on:
                with ex.together():
                    live = tuple(_rollouts(following, state, ex, M))
            if folder is not None:
                clean = replace(report, models={})
                folder.write(
                    Snapshot(
                        state=replace(done, costs=()),
                        rollouts=rollouts,
                        models=report.models,
                        metrics=dict(row),
                        report=clean,
                    )
                )
                row["seconds_store"] = time.perf_counter() - begin - row["seconds"]
                row["seconds"] += row["seconds_store"]
                if repeated:
                    folder.forget_metrics(done.iteration)
                folder.append_metrics(row)
        repeated = False
        experiment = following
        events = learning.events(report.conditions)
        for who, scores in (("the controller", local), ("the policy", policy)):
            events += learning.failures(who, [s.failed for s in scores])
        if folder is not None:
            folder.note(f"iteration {done.iteration} is stored, after {row['seconds']:.1f} s")
            for event in events:
                folder.note(f"iteration {done.iteration}, {event}", logging.WARNING)
        advice = learning.advice(report.conditions, solved=succeeds(row))
        if done.iteration == 1:
            advice = "; ".join(filter(None, (advice, unrewarded(experiment.cost, rollouts))))
        news = "; ".join(filter(None, (progress.news(rows), advice)))
        if folder is not None and news:
            folder.note(news, logging.WARNING if advice else logging.INFO)
        steering.finished(row["seconds"])
        yield IterationReport(
            iteration=done.iteration,
            report=report,
            row=row,
            state=done,
            rollouts=rollouts,
            seconds=row["seconds"],
            stage_seconds=stage_seconds,
            events=events,
            news=news,
        )
        if learning.over:
            raise learning.error()


def _wait_for_all(ex: Executor, handles: Sequence[Any]) -> None:
    waiting = list(handles)
    while waiting:
        done = ex.wait(waiting)
        waiting = [h for h in waiting if not any(h is d for d in done)]


def _earlier(
    run: _Run, state: GPSState, before: GPSState | None, folder: RunFolder | None
) -> GPSState:
    """The state from which the last iteration was made."""
    if folder is not None:
        stored = folder.read_state(state.iteration - 1)
        return replace(stored, costs=(run.base.cost,) * run.agent.n_conditions)
    assert before is not None  # a repeat is refused before the first iteration
    return before


def memory_row(ex: Executor) -> dict[str, float]:
    """The columns of memory, in bytes: the most that the driver's process has held so far, and the
    largest of the workers. Like the seconds, they are not part of the iteration's file."""
    return {"memory_driver": process_memory.peak(), "memory_worker": ex.memory()}


def _rollouts(experiment: Experiment, state: GPSState, ex: Executor, M: range) -> list[Any]:
    sources = experiment.algorithm.sampling(state)
    return [
        ex.call(
            sampling.rollout,
            experiment.agent,
            sources[m],
            m,
            experiment.samples,
            state.seed,
            state.iteration,
            experiment.max_resamples,
            condition=m,
        )
        for m in M
    ]


def _score(
    e: Experiment, ex: Executor, source: Any, m: int, agent: AgentConfig | None = None
) -> Any:
    return ex.call(sampling.score, agent or e.agent, e.cost, e.measure, source, m, condition=m)


def metrics_row(
    report: Report,
    local: Sequence[sampling.Score],
    policy: Sequence[sampling.Score],
    state: GPSState,
) -> dict[str, float]:
    """What an iteration says of itself in metrics.csv. Costs are sums over a rollout, distances as
    the experiment's measure gives them, KL in nats per step; `local_*` and `policy_*` are
    noise-free rollouts of what the iteration produced."""
    c = report.conditions
    row: dict[str, float] = {
        "iteration": float(state.iteration),
        "cost_mean": float(np.mean([x.cost_mean for x in c])),
        "cost_min": min(x.cost_min for x in c),
        "cost_max": max(x.cost_max for x in c),
    }
    for kind, scores in (("local", local), ("policy", policy)):
        none = math.nan if not scores else None
        row[f"{kind}_cost_mean"] = none or float(np.mean([s.cost for s in scores]))
        row[f"{kind}_distance_mean"] = none or float(np.mean([s.distance for s in scores]))
        row[f"{kind}_distance_max"] = none or float(np.max([s.distance for s in scores]))
        row[f"{kind}_success"] = none or float(np.mean([s.success for s in scores]))
    row["policy_loss"] = report.policy_loss
    row["kl_mean"] = float(np.mean([x.kl for x in c]))
    row["kl_max"] = float(np.mean([x.kl_max for x in c]))
    row["step_mult_mean"] = float(np.mean([x.step_mult for x in c]))
    row["eta_mean"] = float(np.mean([x.eta for x in c]))
    std = [math.nan if x.exploration_std is None else x.exploration_std for x in c]
    row["exploration_std"] = float(np.mean(std))
    return row | figures_row(c)


def figures_row(reports: Sequence[ConditionReport]) -> dict[str, float]:
    """The columns that say why a run does not learn: see `gps.algorithms.diagnosis.Figures`.

    Means over conditions and actuators of clipped actions, over conditions of whether they were
    updated; of everything else the worst condition, and in it the median over the state's entries.
    NaN where nothing is known.
    """
    known = [r.figures for r in reports if r.figures is not None]
    updated = [math.nan if r.updated is None else float(r.updated) for r in reports]

    def worst(values: Iterable[float], pick: Any = max) -> float:
        finite = [v for v in values if not math.isnan(v)]
        return float(pick(finite)) if finite else math.nan

    clipped = [v for f in known for v in f.clipped if not math.isnan(v)]
    return {
        "updated": float(np.mean(updated)),
        "clipped_mean": float(np.mean(clipped)) if clipped else math.nan,
        "clipped_max": worst(clipped),
        "growth": worst(math.nan if f.growth is None else f.growth for f in known),
        "prediction_ratio": worst(upper_median(f.prediction) for f in known),
        "floor_ratio": worst(upper_median(f.floored) for f in known),
        "cost_spread": worst((f.cost_spread for f in known), min),
        "constant_entries": worst(float(len(f.constant)) for f in known),
    }


def succeeds(row: Mapping[str, float]) -> bool:
    """Whether all conditions succeed: the policy where there is one, else the controllers."""
    policy = row.get("policy_success", math.nan)
    return (row.get("local_success", math.nan) if math.isnan(policy) else policy) == 1.0
