"""Making runs: `gps run` and `gps resume`."""

from __future__ import annotations

import argparse
import textwrap
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gps.cli import options
from gps.cli.interrupts import Interrupt, deferred_interrupts
from gps.cli.messages import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_NOT_LEARNING,
    complain,
    logging_to,
)
from gps.cli.page import Page
from gps.errors import ConfigError, GPSError, NotLearningError, StoreError

if TYPE_CHECKING:
    from gps.cli.terminal import Progress
    from gps.execution import Executor
    from gps.pipeline.experiment import Experiment
    from gps.pipeline.runner import IterationReport
    from gps.pipeline.steering import Steering
    from gps.pipeline.store import RunFolder


def run_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gps run`."""
    parser.usage = "gps run NAME|FILE.py [options] [--an.experiment.option VALUE ...]"
    parser.add_argument("experiment", nargs="?", metavar="NAME|FILE.py", help="see gps list")
    options.add(parser, "--seed", int, "K", "seed of every random stream")
    options.add(parser, "--iterations", int, "I", "iterations of the whole run")
    options.until_converged(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="run folder, new or empty (default: runs/<experiment>/<time>-seed<k>)",
    )
    options.flag(
        parser,
        "--asynchronous",
        "conditions run asynchronously, and the policy trains continuously",
    )
    options.limits(parser, "2")
    parser.add_argument(
        "--changes",
        metavar="FILE",
        help="changes.json of a run whose options were changed meanwhile: change them again",
    )
    options.executor(parser)
    options.page(parser)


def resume_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gps resume`."""
    parser.usage = "gps resume RUN [options] [--an.option.of.the.algorithm VALUE ...]"
    parser.add_argument("run", nargs="?", metavar="RUN", help="run folder")
    help = "resume from iteration N and forget the later ones (default: the last)"
    options.add(parser, "--from", int, "N", help, dest="start")
    options.add(parser, "--iterations", int, "I", "total to reach")
    options.add(parser, "--seed", int, "K", "another seed, from the next iteration on")
    options.until_converged(parser)
    options.limits(parser, "as before")
    options.executor(parser)
    options.page(parser)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A run that is about to be made, or continued."""

    name: str
    out: Path
    start: Callable[[Executor, Steering], Iterable[IterationReport]]
    total: int | None
    """Iterations, or snapshots; None where unknown."""
    resumed: bool = False
    """Whether the run is continued."""
    limits: str = ""
    """When an asynchronous run stops, in words."""
    made: int = 0
    """Iterations that it has already."""
    changes: tuple[str, ...] = ()
    """Options that are to change from the next iteration on."""
    trainers: int = 0
    """Workers that are to be free of conditions."""

    @property
    def asynchronous(self) -> bool:
        return bool(self.limits)

    @property
    def unit(self) -> str:
        return "snapshot" if self.asynchronous else "iteration"

    @property
    def goal(self) -> str:
        return self.limits or f"{self.total} iterations"


def _asynchronous_job(
    name: str,
    out: Path,
    start: Callable[[Executor, Steering], Iterable[IterationReport]],
    experiment: Experiment,
    config: Any,
    M: int,
    resumed: bool = False,
    changes: tuple[str, ...] = (),
) -> _Job:
    """The job of an asynchronous run of M conditions."""
    from gps.pipeline import asynchronous

    rollouts = config.total(experiment, M)
    limits = [f"{rollouts} rollouts"] if rollouts is not None else []
    limits += [f"{config.updates} policy updates"] if config.updates is not None else []
    return _Job(
        name=name,
        out=out,
        start=start,
        total=config.snapshots(experiment, M),
        resumed=resumed,
        changes=changes,
        limits=" or ".join(limits),
        trainers=asynchronous.check(experiment).trainers,
    )


def _given(args: argparse.Namespace) -> dict[str, int]:
    """The options of asynchronous runs that are there."""
    values = vars(args)
    return {name: values[name] for name in options.LIMITS if values[name] is not None}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _refuse_until_converged(args: argparse.Namespace) -> None:
    if args.until_converged:
        raise ConfigError(
            "--until-converged is for synchronous runs; an asynchronous one ends after --rollouts "
            "or --updates"
        )


def run(args: argparse.Namespace, own: list[str]) -> int:
    """`gps run`; own: options of the experiment."""
    missing = "gps run needs an experiment; gps list shows them"
    if options.only_help(args, args.experiment, missing):
        return 0
    from gps.pipeline import loader

    fixed = ("name", "description", "seed", "iterations")
    known = [text for action in args.parser._actions for text in action.option_strings]
    prog = f"gps run {args.experiment}"
    loaded = loader.load(args.experiment)
    if args.help:
        print(args.parser.format_help())
        options.show_own(loaded.experiment, prog, fixed)
        return 0
    experiment = loader.override(loaded.experiment, own, prog=prog, skip=fixed, known=known)
    values = {"seed": args.seed, "iterations": args.iterations}
    experiment = replace(experiment, **{k: v for k, v in values.items() if v is not None})

    from gps.pipeline import changes as live
    from gps.pipeline import config_io, keeping, sending, store
    from gps.pipeline.runner import run

    given = _given(args)
    if given and not args.asynchronous:
        raise ConfigError(f"{_option(next(iter(given)))} needs --asynchronous")
    if args.asynchronous:
        from gps.pipeline import asynchronous

        _refuse_until_converged(args)
        config = asynchronous.AsynchronousConfig(**given)
        asynchronous.check(experiment)
    out = Path(args.out) if args.out is not None else store.default_path(experiment)
    # before workers are started, which takes seconds
    store.require_new(out)
    experiment = keeping.kept(experiment)
    config_io.to_json(experiment)
    if args.executor == "dask":
        sending.check(experiment)
    agent = experiment.validate()
    changes = live.Changes()
    if args.changes is not None:
        if args.asynchronous:
            raise ConfigError("--changes is for synchronous runs: they can be repeated")
        if not Path(args.changes).is_file():
            raise ConfigError(f"--changes: there is no file {args.changes}")
        changes = live.read(Path(args.changes))
        for n, _ in changes.at:
            changes.apply(experiment, n)
    where: dict[str, Any] = {"out": out, "source": loaded.source}

    def start_asynchronous(executor: Executor, steering: Steering) -> Iterable[IterationReport]:
        return asynchronous.run_asynchronous(
            experiment, config=config, executor=executor, steering=steering, **where
        )

    def start(executor: Executor, steering: Steering) -> Iterable[IterationReport]:
        return run(
            experiment,
            executor=executor,
            steering=steering,
            changes=changes,
            until_converged=args.until_converged,
            **where,
        )

    if args.asynchronous:
        M = agent.n_conditions
        job = _asynchronous_job(experiment.name, out, start_asynchronous, experiment, config, M)
        return _follow(args, job)
    job = _Job(name=experiment.name, out=out, start=start, total=experiment.iterations)
    return _follow(args, job)


def resume(args: argparse.Namespace, own: list[str]) -> int:
    """`gps resume`; own: options of the experiment that change."""
    missing = "the following arguments are required: RUN; see gps resume --help"
    if options.only_help(args, args.run, missing):
        return 0
    from gps.pipeline import changes as live
    from gps.pipeline import store
    from gps.pipeline.runner import resume

    folder = store.RunFolder.open(args.run)
    experiment = folder.experiment()
    if args.help:
        print(args.parser.format_help())
        _show_live(folder, experiment)
        return 0
    start = folder.last() if args.start is None else args.start
    folder.check(start)
    if args.iterations is not None:
        replace(experiment, iterations=args.iterations)  # checks it
    given = _given(args)
    values: dict[str, Any] = options.by_name(own)
    values |= {} if args.seed is None else {"seed": args.seed}
    if "asynchronous" in folder.info():
        _refuse_until_converged(args)
        if args.iterations is not None and args.rollouts is not None:
            raise ConfigError("give one of --iterations and --rollouts; either sets the rollouts")
        return _resume_asynchronous(args, folder, experiment, given | {"changes": values})
    if given:
        raise ConfigError(
            f"{_option(next(iter(given)))} is for asynchronous runs; use --iterations"
        )
    # before workers are started, which takes seconds
    held = folder.changes().apply(experiment, start + 1)
    if values:
        held = live.changed(held, live.change_of(held, values).options)
        held.validate()

    def start_again(executor: Executor, steering: Steering) -> Iterable[IterationReport]:
        return resume(
            args.run,
            start=args.start,
            iterations=args.iterations,
            executor=executor,
            steering=steering,
            until_converged=args.until_converged,
            changes=values,
        )

    total = held.iterations if args.iterations is None else args.iterations
    job = _Job(
        name=experiment.name,
        out=Path(args.run),
        start=start_again,
        total=total,
        resumed=True,
        made=start,
        changes=tuple(values),
    )
    return _follow(args, job)


def _show_live(folder: RunFolder, experiment: Experiment) -> None:
    """The options that can change in a run, with their present values."""
    from gps.pipeline import asynchronous
    from gps.pipeline import changes as live

    held = folder.changes().apply(experiment, folder.last() + 1)
    fixed = asynchronous.FIXED if "asynchronous" in folder.info() else ("iterations",)
    print("options that can change in this run, from the next iteration on:\n")
    for name, option in live.live_options(held).items():
        if name not in fixed:
            print(f"  --{name} (now: {live.text(option.value)})")
            print(
                textwrap.fill(option.help, 100, initial_indent=" " * 8, subsequent_indent=" " * 8)
            )


def _resume_asynchronous(
    args: argparse.Namespace, folder: RunFolder, base: Experiment, given: dict[str, Any]
) -> int:
    from gps.pipeline import asynchronous

    values: dict[str, Any] = {**given, "iterations": args.iterations}
    start = folder.last() if args.start is None else args.start
    config, experiment, _ = asynchronous.changed(folder, base, start=start, **values)
    agent = experiment.validate()

    def again(executor: Executor, steering: Steering) -> Iterable[IterationReport]:
        return asynchronous.resume_asynchronous(
            args.run, start=args.start, executor=executor, steering=steering, **values
        )

    print(
        "note: an asynchronous run depends on the clock; resumed, it does not give the same bytes "
        "as without the break"
    )
    out, M = Path(args.run), agent.n_conditions
    job = _asynchronous_job(
        *(experiment.name, out, again, experiment, config, M, True), tuple(given["changes"])
    )
    return _follow(args, job)


def _follow(args: argparse.Namespace, job: _Job) -> int:
    """Show the iterations as they come, until the last or an interrupt."""
    with Page(args, job.out) as page:
        try:
            code, interrupted = _watch(args, job)
        except Exception as error:
            if not page.open or not (job.out / "iterations").is_dir():
                raise
            if isinstance(error, GPSError):  # said now: the page, which shows it too, stays
                complain(error)
                code, interrupted = EXIT_ERROR, False
            else:
                traceback.print_exc()
                code, interrupted = 1, False
        if not interrupted:
            page.stay()
    return code


def _watch(args: argparse.Namespace, job: _Job) -> tuple[int, bool]:
    """`_follow` without the page; the exit code, and whether the user interrupted."""
    from gps.cli.terminal import Progress
    from gps.parallel.executors import make_executor
    from gps.pipeline.steering import Steering

    done, total, out = 0, job.total, job.out
    steering = Steering(pausable=not job.asynchronous)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(total or 0))
        stack.enter_context(logging_to(progress.log_handler(args.verbose), args.verbose))
        what = f"{'a' if job.asynchronous else 'this'} {job.unit}"
        interrupt = stack.enter_context(Interrupt(what, steering.ask_to_stop))
        if args.executor == "dask":
            where = f"joining {args.scheduler}" if args.scheduler else "starting workers"
            progress.line(f"{job.name}: {where}")
        with deferred_interrupts():
            executor = make_executor(
                *(args.executor, args.workers, args.scheduler),
                task_timeout=args.task_timeout,
                reserve=job.trainers,
            )
        stack.callback(executor.close)
        if interrupt.requested:  # nothing has begun that could be finished
            progress.line("stopped before the first iteration")
            return EXIT_INTERRUPTED, True
        kind = "asynchronous, " if job.asynchronous else ""
        progress.line(f"{job.name}: {kind}{job.goal}, {args.executor}, in {out}")
        progress.waiting("loading models and kernels")
        reports = job.start(executor, steering)
        if isinstance(reports, Generator):
            stack.callback(reports.close)
        try:
            for report in reports:
                done = report.iteration
                progress.iteration(report.row, report.stage_seconds)
                if job.asynchronous:
                    progress.asynchronous(report.row)
                for event in filter(None, (*report.events, report.news)):
                    progress.event(event)
        except NotLearningError as error:
            _show_best(progress, out)
            complain(error, "not learning")
            return EXIT_NOT_LEARNING, False
        except Exception as error:
            if list((out / "iterations").glob("*.h5")):
                again = job.resumed and not done  # then that is the command which has failed
                copy = out / "hyperparams.py"
                notes = [] if again else [f"resume with: gps resume {out}"]
                notes += [f"the run uses its copy {copy}"] if copy.exists() else []
                for note in notes:
                    error.add_note(note)
            raise
        except KeyboardInterrupt:
            _show_best(progress, out)
            progress.line(f"stopped at once; resume with: gps resume {out}")
            return EXIT_INTERRUPTED, True
        if not job.asynchronous and steering.status.total:  # may have been changed meanwhile
            total = steering.status.total
        converged = _show_best(progress, out)
        if steering.stopping and (job.asynchronous or total is None or done < total):
            progress.line(f"stopped after {job.unit} {done}; resume with: gps resume {out}")
        elif done == 0 and args.until_converged and converged:
            how = "continue without --until-converged"
            progress.line(f"nothing to do: {out} has converged; {how}{_unused(job)}")
        elif done == 0 and job.made:
            how = f"continue with --iterations {job.made + 1} or more"
            progress.line(f"nothing to do: {out} has {job.made} iterations; {how}{_unused(job)}")
        elif done == 0:
            progress.line(f"nothing to do: {out} has reached its {job.goal}{_unused(job)}")
        else:
            progress.line(f"done; look at the result with: gps evaluate {out}")
        return 0, interrupt.requested


def _unused(job: _Job) -> str:
    """That options were given for iterations which are not made."""
    names = ", ".join(_option(name) for name in job.changes)
    return f"; not recorded: {names}" if names else ""


def _show_best(progress: Progress, out: Path) -> bool:
    """Name the best iteration; returns whether the run has converged."""
    from gps.pipeline import progress as judge
    from gps.pipeline.store import RunFolder

    with suppress(StoreError):  # the run has ended well; what reads it next says what is wrong
        rows = RunFolder.open(out).results()
        if text := judge.summary(rows):
            progress.line(text)
        return judge.converged(rows)
    return False
