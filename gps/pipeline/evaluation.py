"""What a policy and local controllers do: rollouts without learning, judged and tabulated."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np

from gps.algorithms.state import GPSState
from gps.errors import ConfigError, SimulationError, StoreError
from gps.fields import Kind, Shape, checked_arguments
from gps.pipeline import progress, sampling
from gps.pipeline.experiment import AgentConfig, Experiment, Samples, Seed, initial_state
from gps.pipeline.files import write_whole
from gps.pipeline.store import RunFolder
from gps.pipeline.tables import EVALUATION, evaluated
from gps.protocols import Policy
from gps.threads import one_thread
from gps.types import Array, Record, Rollouts

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Judged(Record):
    """What one policy, or the controller of each condition, does from all conditions.

    Where the simulation fails, cost and distance are infinite and success is 0.
    """

    cost: Annotated[Array, Shape("M N")]
    """Sums over the steps."""
    distance: Annotated[Array, Shape("M N")]
    """By the experiment's measure; NaN without one."""
    success: Annotated[Array, Shape("M N")]
    """1 or 0; NaN without a measure."""
    rollouts: tuple[Rollouts | None, ...]
    """Per condition; None where the simulation failed."""


@dataclass(frozen=True, eq=False)
class EvaluationReport(Record):
    """What has been learned, rolled out from all training or all test conditions."""

    experiment: Experiment
    """The run's, with the options that had been changed by that iteration, or the one given."""
    iteration: int
    """Whose policy and controllers these are."""
    test: bool
    """Whether the conditions are the test conditions."""
    policy: Judged | None
    """The global policy; None where the algorithm trains none."""
    local: Judged | None
    """The local controllers; None in test conditions, which have none."""
    table: Path | None = None
    """The CSV file, where one was written."""
    set_aside: Path | None = None
    """Where the table of another iteration is now, which had the same name."""

    @property
    def best(self) -> Judged:
        """The policy's results where there is a policy, else the local controllers'."""
        found = self.policy or self.local
        assert found is not None
        return found


RunOrExperiment = Annotated[
    str | Path | RunFolder | Experiment,
    Kind("a run folder or an Experiment", (str, os.PathLike, RunFolder, Experiment)),
]


@checked_arguments
def evaluate(
    source: RunOrExperiment,
    *,
    iteration: progress.Iteration = "best",
    state: GPSState | None = None,
    samples: Samples = 1,
    noise: bool = False,
    test: bool = False,
    seed: Seed = 0,
    save: bool = False,
) -> EvaluationReport:
    """Roll out what a run has learned from all its conditions; nothing is learned from it.

    source: a run folder, of which `iteration` is evaluated: `best` (see `gps.pipeline.progress`),
    `last` or a number; or an experiment, of which `state` is, as reports of `gps.run` hold it, and
    the initial controllers where that is None. samples: rollouts per condition; one starts at the
    condition itself, several as disturbed as in training. noise: with the exploration noise of
    policy and controllers. test: from the test conditions. seed: of starts and noise. save: write
    the results into the run folder as a table, evaluation_train.csv or evaluation_test.csv for the
    best iteration, with its number in the name for one that is asked for otherwise; a table of that
    name which holds another iteration is renamed.

    Raises ConfigError, StoreError.
    """
    if isinstance(source, Experiment):
        if iteration != "best":
            raise ConfigError("iteration is for a run folder; of an Experiment give the state")
        if save:
            raise ConfigError("save needs a run folder, got an Experiment")
        experiment, path = source, None
        agent = experiment.validate()
        state = initial_state(experiment, agent) if state is None else state
    else:
        if state is not None:
            raise ConfigError("state is for an Experiment; of a run folder give the iteration")
        chosen = progress.choice(iteration)
        folder = source if isinstance(source, RunFolder) else RunFolder.open(source)
        state = folder.read_state(folder.choose(chosen))
        base = folder.experiment()
        experiment = folder.changes().apply(base, state.iteration)
        for text in folder.notices(base):
            log.warning("%s", text)
        agent = experiment.validate()
        number = None if chosen == "best" else state.iteration
        path = _table_path(folder.path, test, number) if save else None
    count = agent.n_test_conditions if test else agent.n_conditions
    if count == 0:
        raise ConfigError(f"{experiment.name} has no test conditions; its agent defines none")
    if state.policy is None and test:
        raise ConfigError(
            f"{experiment.name} trains no global policy, and local controllers exist for the "
            "training conditions only"
        )
    if path is not None:
        require_writable(path)
    how = samples, seed, noise, test
    policy = local = None
    with one_thread():
        if state.policy is not None:
            judge = experiment.evaluation_agent
            policy = _judged(experiment, judge, [state.policy.actor] * count, *how)
        if not test:
            actors = [c.actor for c in state.conditions]
            local = _judged(experiment, experiment.agent, actors, *how)
    report = EvaluationReport(experiment, state.iteration, test, policy, local)
    return report if path is None else _saved(report, path)


def _judged(
    experiment: Experiment,
    config: AgentConfig,
    actors: Sequence[Policy],
    samples: int,
    seed: int,
    noise: bool,
    test: bool,
) -> Judged:
    """Roll out one actor per condition."""
    cost, distance = np.full((2, len(actors), samples), np.inf)
    success = np.zeros((len(actors), samples))
    rollouts: list[Rollouts | None] = []
    for m, actor in enumerate(actors):
        e = experiment
        try:
            found = sampling.evaluate_condition(
                config, e.cost, e.measure, actor, m, samples, seed, noise=noise, test=test
            )
        except SimulationError as error:
            log.warning("%s", error)
            rollouts.append(None)
            continue
        cost[m], distance[m], success[m] = found.cost, found.distance, found.success
        rollouts.append(found.rollouts)
    return Judged(cost, distance, success, tuple(rollouts))


def _table_path(run: Path, test: bool, n: int | None) -> Path:
    """`evaluation_test.csv` for the best iteration, `evaluation_test_0003.csv` for another choice.
    Its rows hold the iteration in any case."""
    kind = "test" if test else "train"
    return run / f"evaluation_{kind}{'' if n is None else f'_{n:04d}'}.csv"


def _saved(report: EvaluationReport, path: Path) -> EvaluationReport:
    """The report with its table, which is written now."""
    columns = report.best.cost, report.best.distance, report.best.success
    lines = [
        f"{m},{','.join(repr(float(c[m].mean())) for c in columns)},{report.iteration}\n"
        for m in range(len(report.best.cost))
    ]
    try:
        aside = _set_aside(path, report)
        write_whole(path, f"{','.join(EVALUATION)}\n{''.join(lines)}".encode())
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
    return replace(report, table=path, set_aside=aside)


def _set_aside(path: Path, report: EvaluationReport) -> Path | None:
    """Rename the table of another iteration, which was the best before the run was resumed."""
    before = evaluated(path)
    if before is None or before == report.iteration:
        return None
    kept = _table_path(path.parent, report.test, before)
    if kept.exists():
        return None
    path.rename(kept)
    return kept


def require_writable(path: Path) -> None:
    """StoreError unless a file can be written there; leaves what is there as it is."""
    try:
        if path.exists():
            with open(path, "ab"):
                pass
        else:  # asked of the folder itself: permissions do not show a read-only disk
            with tempfile.TemporaryFile(dir=path.parent):
                pass
    except OSError as error:
        reason = error.strerror
        if not path.parent.is_dir():
            what = "is not a folder" if path.parent.exists() else "does not exist"
            reason = f"the folder {path.parent} {what}"
        raise StoreError(f"cannot write {path}: {reason}") from error


__all__ = ["EvaluationReport", "Judged", "evaluate", "require_writable"]
