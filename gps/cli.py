"""The command `gps`: run, resume, gui, plot, evaluate, export, list, new.

Heavy packages are imported by the commands that need them, so that `gps list` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from gps.errors import (
    ConfigError,
    ExperimentError,
    GPSError,
    SimulationError,
    StoreError,
    choices,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np

    from gps.display import Progress
    from gps.execution import Executor
    from gps.pipeline.control import Control
    from gps.pipeline.experiment import Experiment
    from gps.pipeline.runner import IterationReport
    from gps.pipeline.store import RunFolder
    from gps.protocols import Agent, Policy

EXIT_ERROR, EXIT_INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    An error that the user can do something about becomes one line and code 2; a bug keeps its
    traceback. Interrupted: 130.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        _check_gl()
        return _dispatch(argv)
    except GPSError as error:
        _complain(error)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("gps: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone: gps list | head -1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _complain(error: GPSError) -> None:
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    print(f"gps: error: {' '.join(str(error).split())}{notes}", file=sys.stderr)


def _check_gl() -> None:
    """MuJoCo cannot be imported with a wrong MUJOCO_GL, and would be blamed on a file of ours."""
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    known = ("egl", "osmesa", "glfw", "glx", "wgl", "cgl", "disable", "disabled", "off", "false")
    if asked and asked not in (*known, "0", "enable", "enabled", "on", "true", "1"):
        raise ConfigError(
            "the environment variable MUJOCO_GL must be egl, osmesa, glfw or disable, or not be "
            f"set, got {asked!r}"
        )


@dataclass(frozen=True)
class Command:
    """One word after `gps`."""

    summary: str
    fill: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, list[str]], int]
    takes_options: bool = False
    """Whether unknown options are the experiment's."""


class _Parser(argparse.ArgumentParser):
    """Raises an error of ours in place of printing the usage and leaving."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for wrong arguments."""
        raise ExperimentError(f"{message}; see {self.prog} --help")


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"gps {version('guided-policy-search')}")
        return 0
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        raise ExperimentError(f"{choices('command', name, COMMANDS)}; see gps --help")
    command = COMMANDS[name]
    parser = _Parser(
        prog=f"gps {name}",
        description=command.summary,
        allow_abbrev=False,
        add_help=not command.takes_options,
    )
    if command.takes_options:
        parser.add_argument("-h", "--help", action="store_true", help="show this and leave")
    parser.add_argument("-v", "--verbose", action="store_true", help="show more of what goes on")
    command.fill(parser)
    options: list[str] = []
    if command.takes_options:
        rest, options = _split(rest, parser)
    try:
        args = parser.parse_args(rest)
    except SystemExit as stop:  # --help has been printed
        return int(stop.code or 0)
    args.parser = parser
    with _logging(args.verbose):
        return command.run(args, options)


def _split(argv: list[str], parser: argparse.ArgumentParser) -> tuple[list[str], list[str]]:
    """What the parser knows, and the rest: options of the experiment with their values."""
    known: dict[str, bool] = {}  # takes a value?
    for action in parser._actions:
        known |= {text: action.nargs != 0 for text in action.option_strings}
    ours: list[str] = []
    others: list[str] = []
    tokens = iter(argv)
    for token in tokens:
        name, equals, _ = token.partition("=")
        if name in known:
            ours.append(token)
            if known[name] and not equals:
                ours.extend(value for value in [next(tokens, None)] if value is not None)
        elif not others and not token.startswith("--"):
            ours.append(token)  # the experiment's name
        else:
            others.append(token)
    return ours, others


def _overview() -> str:
    lines = [
        "usage: gps COMMAND ...",
        "",
        "Guided policy search: learn a neural policy from locally optimised controllers.",
        "",
        *(f"  {name:<10}{command.summary}" for name, command in COMMANDS.items()),
        "",
        "gps COMMAND --help says more; gps --version prints the version.",
    ]
    return "\n".join(lines)


@contextmanager
def _logging(verbose: bool, handler: logging.Handler | None = None) -> Iterator[None]:
    """Send the library's log to a handler, to stderr by default, inside the block."""
    # a lost worker is our affair, and said in a line; Dask and tornado print a traceback for each
    # message that could not be delivered, asyncio for tasks of Dask that nobody awaits
    known = [n for n in logging.root.manager.loggerDict if n.partition(".")[0] == "distributed"]
    noisy = [logging.getLogger(name) for name in (*known, "tornado.application", "asyncio")]
    levels = [other.level for other in noisy]
    for other in noisy:
        other.setLevel(logging.CRITICAL)
    log = logging.getLogger("gps")
    before = log.handlers[:], log.level, log.propagate
    if handler is None:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("gps: %(levelname)s: %(message)s"))
    log.handlers, log.propagate = [handler], False
    if not before[0] or verbose:
        log.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        yield
    finally:
        log.handlers, log.propagate = before[0], before[2]
        log.setLevel(before[1])
        for other, level in zip(noisy, levels, strict=True):
            other.setLevel(level)


# --- run and resume ------------------------------------------------------------------------------


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "gps run NAME|FILE.py [options] [--an.experiment.option VALUE ...]"
    parser.add_argument("experiment", nargs="?", metavar="NAME|FILE.py", help="see gps list")
    parser.add_argument("--seed", type=int, metavar="K", help="seed of every random stream")
    parser.add_argument("--iterations", type=int, metavar="I", help="iterations of the whole run")
    _converged_argument(parser)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="run folder, new or empty (default: runs/<experiment>/<time>-seed<k>)",
    )
    parser.add_argument(
        "--asynchronous",
        action="store_true",
        help="every condition goes on by itself, and the policy is trained all the time",
    )
    _limit_arguments(parser, "2")
    parser.add_argument(
        "--changes",
        metavar="FILE",
        help="changes.json of a run whose options were changed on the way: change them again",
    )
    _executor_arguments(parser)
    _page_arguments(parser)


def _converged_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--until-converged",
        action="store_true",
        help="end when nothing improves any more, at the latest after all iterations",
    )


def _limit_arguments(parser: argparse.ArgumentParser, replay: str) -> None:
    parser.add_argument(
        "--rollouts",
        type=int,
        metavar="N",
        help="asynchronous: stop after N rollouts in all (default: those of all iterations)",
    )
    parser.add_argument(
        "--updates", type=int, metavar="N", help="asynchronous: stop after N policy updates"
    )
    parser.add_argument(
        "--replay",
        type=int,
        metavar="R",
        help="asynchronous: batches per condition that the policy is trained on (default: "
        f"{replay})",
    )


_PLOTS = "files with plots of your own: lists progress_plots or condition_plots of functions"


def _page_arguments(parser: argparse.ArgumentParser, always: bool = False) -> None:
    """always: for the command that does nothing but show the page."""
    what = "" if always else "with --gui: "
    if not always:
        parser.add_argument("--gui", action="store_true", help="show the run in the browser")
    parser.add_argument(
        "--port", type=int, metavar="P", help=f"{what}port of the page (default: 8080 or the next)"
    )
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        help=f"{what}listen there, for other machines too; the page then asks for a token "
        "(default: 127.0.0.1, this machine only)",
    )
    parser.add_argument(
        "--token", metavar="TEXT", help=f"{what}the token (default with --host: a random one)"
    )
    parser.add_argument("--plots", nargs="+", metavar="FILE", help=f"{what}{_PLOTS}")


def _executor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--executor",
        choices=("serial", "dask"),
        default="dask",
        help="dask: worker processes; serial: this process (default: dask)",
    )
    parser.add_argument("--workers", type=int, metavar="W", help="dask: processes to start here")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="dask: join a running cluster")
    parser.add_argument(
        "--task-timeout",
        type=float,
        metavar="SECONDS",
        help="dask: restart a worker that finishes nothing for so long (default: 600)",
    )


def _run(args: argparse.Namespace, options: list[str]) -> int:
    if args.experiment is None:
        print(args.parser.format_help())
        if args.help:
            return 0
        raise ExperimentError("gps run needs an experiment; gps list shows them")
    from gps.pipeline import loader

    fixed = ("name", "description", "seed", "iterations")
    known = [text for action in args.parser._actions for text in action.option_strings]
    prog = f"gps run {args.experiment}"
    loaded = loader.load(args.experiment)
    if args.help:
        print(args.parser.format_help())
        try:
            loader.override(loaded.experiment, ["--help"], prog=prog, skip=fixed)
        except SystemExit:
            return 0
    experiment = loader.override(loaded.experiment, options, prog=prog, skip=fixed, known=known)
    changes = {k: getattr(args, k) for k in ("seed", "iterations") if getattr(args, k) is not None}
    experiment = replace(experiment, **changes)

    from gps.pipeline import changes as live
    from gps.pipeline import config_io, store
    from gps.pipeline.runner import run

    limits = {k: getattr(args, k) for k in ("rollouts", "updates", "replay")}
    given = {k: v for k, v in limits.items() if v is not None}
    if given and not args.asynchronous:
        raise ConfigError(f"--{next(iter(given))} needs --asynchronous")
    if args.asynchronous:
        from gps.pipeline import asynchronous

        _refuse_until_converged(args)
        for option, value in given.items():
            if value < 1:
                raise ConfigError(f"--{option} must be at least 1, got {value}")
        config = asynchronous.AsynchronousConfig(**given)
        trainers = asynchronous.check(experiment).trainers
    out = Path(args.out) if args.out is not None else store.default_path(experiment)
    # before workers are started, which takes seconds
    store.require_new(out)
    config_io.to_json(experiment)
    agent = experiment.validate()
    made = live.Changes()
    if args.changes is not None:
        if args.asynchronous:
            raise ConfigError("--changes is for synchronous runs: they can be made again")
        if not Path(args.changes).is_file():
            raise ConfigError(f"--changes: there is no file {args.changes}")
        made = live.read(Path(args.changes))
        for n, _ in made.at:
            made.apply(experiment, n)

    def start(executor: Executor, control: Control) -> Iterator[IterationReport]:
        where: dict[str, Any] = {"out": out, "executor": executor, "source": loaded.source}
        if args.asynchronous:
            return asynchronous.run_asynchronous(
                experiment, config=config, control=control, **where
            )
        until = args.until_converged
        return run(experiment, control=control, changes=made, until_converged=until, **where)

    if args.asynchronous:
        total = config.snapshots(experiment, agent.n_conditions)
        goal = _goal(config.total(experiment, agent.n_conditions), config.updates)
        return _follow(args, experiment.name, total, out, start, goal, trainers)
    return _follow(args, experiment.name, experiment.iterations, out, start)


def _refuse_until_converged(args: argparse.Namespace) -> None:
    if args.until_converged:
        raise ConfigError(
            "--until-converged is for synchronous runs; an asynchronous one ends after --rollouts "
            "or --updates"
        )


def _goal(rollouts: int | None, updates: int | None) -> str:
    """When an asynchronous run stops, in words."""
    limits = [f"{rollouts} rollouts"] if rollouts is not None else []
    limits += [f"{updates} policy updates"] if updates is not None else []
    return " or ".join(limits)


def _resume_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument(
        "--from",
        dest="start",
        type=int,
        metavar="N",
        help="go on from iteration N and forget the later ones (default: the last)",
    )
    parser.add_argument("--iterations", type=int, metavar="I", help="total to reach")
    _converged_argument(parser)
    _limit_arguments(parser, "as before")
    _executor_arguments(parser)
    _page_arguments(parser)


def _resume(args: argparse.Namespace, options: list[str]) -> int:
    from gps.pipeline import store
    from gps.pipeline.runner import resume

    folder = store.RunFolder.open(args.run)
    experiment = folder.experiment()
    folder.check(folder.last() if args.start is None else args.start)
    total = experiment.iterations if args.iterations is None else args.iterations
    if total < 1:
        raise ConfigError(f"--iterations must be at least 1, got {total}")
    given = {k: getattr(args, k) for k in ("rollouts", "updates", "iterations", "replay")}
    if "asynchronous" in folder.info():
        _refuse_until_converged(args)
        if args.iterations is not None and args.rollouts is not None:
            raise ConfigError("give one of --iterations and --rollouts; either sets the rollouts")
        return _resume_asynchronous(args, folder, experiment, given)
    if args.rollouts is not None or args.updates is not None:
        raise ConfigError("--rollouts and --updates are for asynchronous runs; use --iterations")
    if args.replay is not None:
        raise ConfigError("--replay is for asynchronous runs")

    held = folder.changes().apply(experiment, folder.last() + 1)
    total = held.iterations if args.iterations is None else args.iterations

    def start(executor: Executor, control: Control) -> Iterator[IterationReport]:
        return resume(
            args.run,
            start=args.start,
            iterations=args.iterations,
            executor=executor,
            control=control,
            until_converged=args.until_converged,
        )

    return _follow(args, experiment.name, total, Path(args.run), start)


def _resume_asynchronous(
    args: argparse.Namespace, folder: RunFolder, experiment: Experiment, given: dict[str, Any]
) -> int:
    from gps.pipeline import asynchronous

    config, experiment = asynchronous.changed(folder, experiment, **given)
    agent = experiment.validate()

    def start(executor: Executor, control: Control) -> Iterator[IterationReport]:
        return asynchronous.resume_asynchronous(
            args.run, start=args.start, executor=executor, control=control, **given
        )

    print(
        "note: an asynchronous run depends on the clock; resumed, it does not give the same bytes "
        "as without the break"
    )
    M = agent.n_conditions
    goal = _goal(config.total(experiment, M), config.updates)
    total = config.snapshots(experiment, M)
    trainers = asynchronous.check(experiment).trainers
    return _follow(args, experiment.name, total, Path(args.run), start, goal, trainers)


def _follow(
    args: argparse.Namespace,
    name: str,
    total: int | None,
    out: Path,
    start: Callable[[Executor, Control], Iterable[IterationReport]],
    limits: str = "",
    trainers: int = 0,
) -> int:
    """Show the iterations as they come, until the last or an interrupt.

    limits: when an asynchronous run stops, in words; its iterations are snapshots. trainers:
    workers that are to be free of conditions.
    """
    with _Page(args, out) as page:
        try:
            code, interrupted = _watch(args, name, total, out, start, limits, trainers)
        except Exception as error:
            if not page.open or not (out / "iterations").is_dir():
                raise
            if isinstance(error, GPSError):  # said now: the page, which shows it too, stays
                _complain(error)
                code, interrupted = EXIT_ERROR, False
            else:
                traceback.print_exc()
                code, interrupted = 1, False
        if not interrupted:
            page.stay()
    return code


def _watch(
    args: argparse.Namespace,
    name: str,
    total: int | None,
    out: Path,
    start: Callable[[Executor, Control], Iterable[IterationReport]],
    limits: str,
    trainers: int,
) -> tuple[int, bool]:
    """`_follow` without the page; the exit code, and whether the user interrupted."""
    from gps.display import Progress
    from gps.parallel.executors import make_executor
    from gps.pipeline.control import Control

    done, asynchronous = 0, bool(limits)
    control = Control(pausable=not asynchronous)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(total or 0))
        stack.enter_context(_logging(args.verbose, progress.log_handler()))
        unit = "snapshot" if asynchronous else "iteration"
        what = f"{'a' if asynchronous else 'this'} {unit}"
        interrupt = stack.enter_context(_Interrupt(what, control.ask_to_stop))
        if args.executor == "dask":
            where = f"joining {args.scheduler}" if args.scheduler else "starting workers"
            progress.line(f"{name}: {where}")
        with _deferred_interrupts():
            executor = make_executor(
                *(args.executor, args.workers, args.scheduler),
                task_timeout=args.task_timeout,
                reserve=trainers,
            )
        stack.callback(executor.close)
        if interrupt.requested:  # nothing has begun that could be finished
            progress.line("stopped before the first iteration")
            return EXIT_INTERRUPTED, True
        goal = limits or f"{total} iterations"
        kind = "asynchronous, " if asynchronous else ""
        progress.line(f"{name}: {kind}{goal}, {args.executor}, in {out}")
        progress.header()
        reports = start(executor, control)
        stack.callback(getattr(reports, "close", lambda: None))
        try:
            for report in reports:
                done = report.iteration
                progress.iteration(report.row, report.stage_seconds)
                if asynchronous:
                    progress.line(_asynchronous_line(report.row))
                for event in report.events:
                    progress.event(event)
                if report.news:
                    progress.event(report.news)
        except Exception as error:
            if list((out / "iterations").glob("*.h5")):
                copy = out / "hyperparams.py"
                own = f", which uses the run's own copy {copy}" if copy.exists() else ""
                error.add_note(f"go on with: gps resume {out}{own}")
            raise
        except KeyboardInterrupt:
            _say_best(progress, out)
            progress.line(f"stopped at once; go on with: gps resume {out}")
            return EXIT_INTERRUPTED, True
        if not asynchronous and control.status.total:  # may have been changed on the way
            total = control.status.total
        converged = _say_best(progress, out)
        if control.stopping and (asynchronous or total is None or done < total):
            progress.line(f"stopped after {unit} {done}; go on with: gps resume {out}")
        elif done == 0 and args.until_converged and converged:
            progress.line(f"nothing to do: {out} has converged; continue without --until-converged")
        elif done == 0:
            progress.line(f"nothing to do: {out} has reached its {goal}")
        else:
            progress.line(f"done; look at the result with: gps evaluate {out}")
        return 0, interrupt.requested


def _say_best(progress: Progress, out: Path) -> bool:
    """Name the best iteration; returns whether the run has converged."""
    from gps.pipeline import progress as judge
    from gps.pipeline.store import RunFolder

    with suppress(StoreError):  # the run has ended well; what reads it next says what is wrong
        rows = RunFolder.open(out).results()
        if text := judge.summary(rows):
            progress.line(text)
        return judge.converged(rows)
    return False


class _Page:
    """The process that shows the run in the browser, where `--gui` asks for it.

    It is a process of its own, so that neither its work nor its end is felt by the run.
    """

    def __init__(self, args: argparse.Namespace, out: Path) -> None:
        self._args, self._out = args, out
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> _Page:
        options = {name: getattr(self._args, name) for name in ("port", "host", "token", "plots")}
        given = {name: value for name, value in options.items() if value is not None}
        if not self._args.gui:
            if given:
                raise ConfigError(f"--{next(iter(given))} needs --gui")
            return self
        _check_gui()
        if self._args.plots:
            from gps.gui.plots import load_plots

            load_plots(*self._args.plots)  # refused before the run begins
        argv = [sys.executable, "-m", "gps.cli", "gui", str(self._out), "--wait", str(os.getpid())]
        for name, value in given.items():
            argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        # Ctrl-C is for the run; it ends the page when it has ended itself
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()

    @property
    def open(self) -> bool:
        """Whether the page is there."""
        return self._process is not None and self._process.poll() is None

    def stay(self) -> None:
        """Let the page be looked at after the run, until Ctrl-C or until it ends."""
        if self._process is not None and self.open:
            print("the page stays until Ctrl-C", flush=True)
            with suppress(KeyboardInterrupt):
                self._process.wait()


def _asynchronous_line(row: Mapping[str, float]) -> str:
    """What an asynchronous run has done so far, for the line below a snapshot's."""
    from gps.display import number, percent

    ages = f"{number(row['age_mean'], 0, 2)} on average, {number(row['age_max'], 0)} at most"
    return (
        f"      {row['local_updates']:.0f} updates of conditions, {row['policy_updates']:.0f} of "
        f"the policy (age {ages}), {percent(row['utilisation'])} of the time sampling"
    )


@contextmanager
def _deferred_interrupts() -> Iterator[None]:
    """Let Ctrl-C wait until the end of the block.

    Processes and threads that start inside never see it. A terminal sends it to all processes of
    the command, and workers that die of it would end the iteration that is to be finished.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # starting the tracker unblocks the signal again; so it must not be started by the first worker
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Interrupt:
    """The first Ctrl-C asks for a stop after the iteration, the second stops at once."""

    def __init__(
        self, what: str = "this iteration", on_request: Callable[[], None] = lambda: None
    ) -> None:
        self.requested = False
        self._what, self._on_request = what, on_request
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Interrupt:
        # a batch system that ends a job sends SIGTERM, a terminal that is closed SIGHUP
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is None or (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
                continue  # not on this system, or started with nohup
            with suppress(ValueError):  # not in the main thread: Ctrl-C does not arrive here
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._on_request()
        # print may be in the middle of a line of its own
        text = f"\nstopping after {self._what} is stored; Ctrl-C again stops at once\n"
        with suppress(OSError):  # the terminal may be closed
            os.write(2, text.encode())


# --- gui and plot --------------------------------------------------------------------------------


def _check_gui() -> None:
    missing = [name for name in ("viser", "mjviser", "plotly") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"the page needs the extra 'gui' ({', '.join(missing)} is not installed): "
            "pip install 'guided-policy-search[gui]'"
        )


def _iteration_argument(
    parser: argparse.ArgumentParser, what: str, default: str | None = "best", usual: str = "best"
) -> None:
    parser.add_argument(
        "--iteration",
        metavar="best|last|N",
        default=default,
        help=f"{what}: best (highest success without noise from the training conditions, then "
        f"lowest cost), last, or a number (default: {usual})",
    )


def _gui_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder, of a run that goes on or has ended")
    _iteration_argument(
        parser,
        "what is selected at first",
        None,
        "best, and of a run that goes on always the newest",
    )
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="RUN", help="other runs, for the progress plots"
    )
    _page_arguments(parser, always=True)
    # of `gps run --gui`: the folder is still to come; end with that process
    parser.add_argument("--wait", type=int, help=argparse.SUPPRESS)


def _gui(args: argparse.Namespace, options: list[str]) -> int:
    _check_gui()
    if args.port is not None and not 0 <= args.port < 2**16:
        raise ConfigError(f"--port must be from 0 to 65535, got {args.port}")
    from gps.gui.app import serve
    from gps.pipeline.progress import choice

    return serve(
        Path(args.run),
        iteration=None if args.iteration is None else choice(args.iteration),
        compare=[Path(path) for path in args.compare],
        plots=[Path(path) for path in args.plots or ()],
        host=args.host,
        port=args.port,
        token=args.token,
        parent=args.wait,
    )


def _plot_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the figures")
    _iteration_argument(parser, "of the inspector's figures")
    parser.add_argument(
        "--condition", type=int, metavar="M", help="of the inspector's figures (default: 0)"
    )
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="RUN", help="other runs in the progress figures"
    )
    parser.add_argument("--log", action="store_true", help="logarithmic axes where they make sense")
    parser.add_argument("--plots", nargs="+", default=[], metavar="FILE", help=_PLOTS)


def _plot(args: argparse.Namespace, options: list[str]) -> int:
    from gps.gui.figures import plot_run
    from gps.gui.run_reader import RunReader
    from gps.pipeline.progress import choice

    chosen = RunReader(args.run).choose(choice(args.iteration))
    written = plot_run(
        Path(args.run),
        Path(args.out),
        iteration="best" if chosen is None else chosen,
        condition=args.condition,
        compare=[Path(path) for path in args.compare],
        plots=args.plots,
        log=args.log,
    )
    of = "" if chosen is None else f"; the inspector's are of iteration {chosen}"
    print(f"wrote {len(written)} plots to {args.out}, each as PNG and its numbers as CSV{of}")
    return 0


# --- evaluate ------------------------------------------------------------------------------------


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder")
    _iteration_argument(parser, "what to roll out")
    parser.add_argument(
        "--samples", type=int, default=1, metavar="S", help="rollouts per condition (default: 1)"
    )
    parser.add_argument(
        "--conditions", choices=("train", "test"), default="train", help="default: train"
    )
    parser.add_argument(
        "--noise", action="store_true", help="with the exploration noise of policy and controllers"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="K", help="of starts and noise")
    parser.add_argument("--video", metavar="FILE.mp4", help="film of one rollout per condition")
    parser.add_argument("--images", metavar="FILE.png", help="strip of pictures, one per condition")
    parser.add_argument("--camera", metavar="NAME", help="camera of the model (default: free)")
    parser.add_argument("--size", default="320x240", metavar="WxH", help="of a picture, in pixels")


TABLE_HEADER = "condition,cost,distance,success,iteration"
_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp")
_FILMS = (".mp4", ".mkv", ".mov", ".avi")


@dataclass(frozen=True)
class Judged:
    """What one policy did from one condition: means over the samples."""

    condition: int
    cost: float
    distance: float
    success: float
    rollouts: Any
    """None where the simulation failed."""


def _evaluate(args: argparse.Namespace, options: list[str]) -> int:
    if args.samples < 1:
        raise ConfigError(f"--samples must be at least 1, got {args.samples}")
    size = _size(args.size, even=args.video is not None)
    _check_pictures(args)
    from gps import display
    from gps.pipeline import progress, store
    from gps.threads import one_thread

    chosen = progress.choice(args.iteration)
    folder = store.RunFolder.open(args.run)
    experiment = folder.experiment()
    n = folder.choose(chosen)
    state = folder.read_state(n)
    test = args.conditions == "test"
    agent = experiment.validate()
    count = agent.n_test_conditions if test else agent.n_conditions
    if count == 0:
        raise ConfigError(f"{experiment.name} has no test conditions; its agent defines none")
    if state.policy is None and test:
        raise ConfigError(
            f"{experiment.name} trains no global policy, and local controllers exist for the "
            "training conditions only"
        )
    if args.images is not None or args.video is not None:
        _check_drawing(args, agent, size)
    path = _table_path(folder.path, args.conditions, None if chosen == "best" else n)
    _check_writable(path)
    policies: dict[str, list[Policy]] = {}
    if state.policy is not None:
        policies["policy"] = [state.policy.actor] * count
    if not test:
        policies["local"] = [condition.actor for condition in state.conditions]
    with one_thread():
        judged = {
            who: [_judge(args, experiment, actors[m], m) for m in range(count)]
            for who, actors in policies.items()
        }
    first = next(iter(judged.values()))  # the policy's where there is one
    columns = ["condition"]
    label = "distance" if experiment.measure is None else experiment.measure.distance_label
    for who in judged:
        columns += [f"{who} cost", label, "success"]
    rows = [
        [str(m), *(cell for result in judged.values() for cell in _cells(result[m]))]
        for m in range(count)
    ]
    means = [_mean(result) for result in judged.values()]
    footer = ["mean", *(cell for mean in means for cell in _cells(mean))]
    place = f"iteration {n}" if chosen == n else f"iteration {n} (the {chosen})"
    title = f"{experiment.name}, {place}, {args.conditions} conditions, "
    title += f"{args.samples} sample{'s' if args.samples > 1 else ''} each"
    display.table(title, columns, rows, last=footer)
    lines = [f"{j.condition},{j.cost!r},{j.distance!r},{j.success!r},{n}\n" for j in first]
    try:
        if chosen == "best":
            _set_aside(path, args.conditions, n)
        store.write_whole(path, f"{TABLE_HEADER}\n{''.join(lines)}".encode())
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error
    print(f"wrote {path}")
    if args.images is not None:
        _write_images(Path(args.images), _frames(args, agent, first, size, still=True))
        print(f"wrote {args.images}")
    if args.video is not None:
        _write_video(Path(args.video), _frames(args, agent, first, size, still=False), agent.dt)
        print(f"wrote {args.video}")
    return 0


def _judge(args: argparse.Namespace, experiment: Experiment, policy: Policy, m: int) -> Judged:
    from gps.pipeline import stages

    try:
        e = stages.evaluate_condition(
            experiment.agent,
            experiment.cost,
            experiment.measure,
            policy,
            m,
            args.samples,
            args.seed,
            noise=args.noise,
            test=args.conditions == "test",
        )
    except SimulationError as error:
        logging.getLogger("gps.cli").warning("%s", error)
        return Judged(m, float("inf"), float("inf"), 0.0, None)
    cost, distance, success = (float(a.mean()) for a in (e.cost, e.distance, e.success))
    return Judged(m, cost, distance, success, e.rollouts)


def _mean(results: Sequence[Judged]) -> Judged:
    parts = [(j.cost, j.distance, j.success) for j in results]
    cost, distance, success = (sum(column) / len(parts) for column in zip(*parts, strict=True))
    return Judged(-1, cost, distance, success, None)


def _cells(judged: Judged) -> tuple[str, str, str]:
    from gps.display import number, percent

    return number(judged.cost, 0), number(judged.distance, 0, 4), percent(judged.success)


def _size(text: str, *, even: bool = False) -> tuple[int, int]:
    """Width and height; `even` where a film is wanted, whose codec halves them for the colours."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) > 0 and int(height) > 0):
        raise ConfigError(f"--size must look like 320x240, got {text!r}")
    if even and (int(width) % 2 or int(height) % 2):
        raise ConfigError(f"--size must be two even numbers for --video, got {text!r}")
    return int(width), int(height)


def _table_path(run: Path, conditions: str, n: int | None) -> Path:
    """`evaluation_test.csv` for the best iteration, `evaluation_test_0003.csv` for one that was
    asked for by number or as the last. Its rows say which iteration it is in any case."""
    return run / f"evaluation_{conditions}{'' if n is None else f'_{n:04d}'}.csv"


def _set_aside(path: Path, conditions: str, n: int) -> None:
    """Rename the table of another iteration, which was the best before the run was gone on with."""
    try:
        head, *rows = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError, ValueError):
        return
    before = rows[0].rpartition(",")[2] if head == TABLE_HEADER and rows else ""
    if before.isdecimal() and int(before) != n:
        kept = _table_path(path.parent, conditions, int(before))
        if not kept.exists():
            path.rename(kept)
            print(f"kept the one of iteration {before} as {kept}")


def _check_pictures(args: argparse.Namespace) -> None:
    """Refuse pictures and films that could not be written, before the rollouts that they show."""
    if args.images is not None:
        _check_suffix("--images", args.images, _PICTURES)
        _check_writable(Path(args.images))
    if args.video is not None:
        _check_suffix("--video", args.video, _FILMS)
        _imageio()
        _check_writable(Path(args.video))
    if args.camera is not None and args.images is None and args.video is None:
        raise ConfigError("--camera needs --images or --video")


def _check_suffix(option: str, name: str, known: Sequence[str]) -> None:
    suffix = Path(name).suffix.lower()
    if suffix not in known:
        raise ConfigError(f"{option} must be a file that ends in {', '.join(known)}, got {name!r}")


def _check_writable(path: Path) -> None:
    """StoreError unless a file can be written there; leaves what is there as it is."""
    try:
        if path.exists():
            with open(path, "ab"):
                pass
        else:  # asked of the folder itself: permissions do not tell of a read-only disk
            with tempfile.TemporaryFile(dir=path.parent):
                pass
    except OSError as error:
        reason = error.strerror
        if not path.parent.is_dir():
            what = "is not a folder" if path.parent.exists() else "does not exist"
            reason = f"the folder {path.parent} {what}"
        raise StoreError(f"cannot write {path}: {reason}") from error


def _check_drawing(args: argparse.Namespace, agent: Agent, size: tuple[int, int]) -> None:
    """Refuse a camera, a size or a machine with which the agent cannot draw."""
    if getattr(agent, "render", None) is None:
        raise ConfigError(f"{type(agent).__name__} draws no pictures")
    check = getattr(agent, "check_render", None)  # an agent of the user's may have `render` alone
    if check is None:
        return
    camera = -1 if args.camera is None else args.camera
    try:
        check(width=size[0], height=size[1], camera=camera, test=args.conditions == "test")
    except ConfigError as error:
        raise ConfigError(f"{'--camera' if args.camera else '--size'}: {error}") from error


def _frames(
    args: argparse.Namespace,
    agent: Agent,
    results: Sequence[Judged],
    size: tuple[int, int],
    still: bool,
) -> list[np.ndarray]:
    """Pictures (frames, height, width, 3) of the first sample of every condition."""
    render: Any = getattr(agent, "render")  # noqa: B009 (not in the protocol; checked before)
    if all(judged.rollouts is None for judged in results):
        raise ConfigError("no picture to draw: the simulation failed in every condition")
    every = max(1, (agent.T - 1) // 5) if still else 1
    camera = -1 if args.camera is None else args.camera
    return [
        render(
            judged.rollouts,
            0,
            width=size[0],
            height=size[1],
            camera=camera,
            every=every,
            test=args.conditions == "test",
        )
        for judged in results
        if judged.rollouts is not None
    ]


def _write_images(path: Path, frames: Sequence[np.ndarray]) -> None:
    """One row of pictures for each condition."""
    import numpy as np
    from PIL import Image

    strip = np.concatenate([np.concatenate(list(row), axis=1) for row in frames], axis=0)
    try:
        Image.fromarray(strip).save(path)
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot write {path}: {error}") from error


def _write_video(path: Path, frames: Sequence[np.ndarray], dt: float) -> None:
    """The conditions one after the other, in real time."""
    try:
        rate = max(1, round(1 / dt))
        with _imageio().get_writer(path, fps=rate, macro_block_size=1) as writer:
            for frame in (frame for part in frames for frame in part):
                writer.append_data(frame)
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot write {path}: {error}") from error


def _imageio() -> Any:
    """What writes films; ConfigError where it is not installed."""
    try:
        imageio: Any = import_module("imageio.v2")
        import_module("imageio_ffmpeg")  # imageio needs it, and says so badly
    except ImportError:
        raise ConfigError(
            "--video needs the extra 'video': pip install 'guided-policy-search[video]'"
        ) from None
    return imageio


# --- export --------------------------------------------------------------------------------------


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument(
        "out", metavar="FILE", help="file to write: .pt2 for torch, .onnx for onnxruntime"
    )
    _iteration_argument(parser, "whose policy")
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")
    parser.add_argument(
        "--clip", action="store_true", help="the program clips its action to the world's limits"
    )
    parser.add_argument(
        "--float32", action="store_true", help="an .onnx file takes float32 observations"
    )


def _export(args: argparse.Namespace, options: list[str]) -> int:
    from gps.pipeline import export_policy, progress
    from gps.pipeline.store import RunFolder
    from gps.threads import one_thread

    chosen = progress.choice(args.iteration)
    n = RunFolder.open(args.run).choose(chosen)
    with one_thread():
        path = export_policy(
            *(args.run, args.out),
            iteration=n,
            force=args.force,
            clip=args.clip,
            float32=args.float32,
        )
    onnx = path.suffix == ".onnx"
    reader, how = ("onnxruntime", "gps.policies.onnx") if onnx else ("torch", "torch.export.load")
    place = f"iteration {n}" if chosen == n else f"iteration {n}, the {chosen}"
    print(f"wrote {path} ({place}); it needs {reader} only, see gps.policies.load and {how}")
    return 0


# --- list and new --------------------------------------------------------------------------------


def _list(args: argparse.Namespace, options: list[str]) -> int:
    from gps.pipeline import loader

    found = loader.names()
    width = max((len(name) for name, _ in found), default=0)
    for name, description in found:
        print(f"{name:<{width}}  {description}".rstrip())
    return 0


def _new_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the new experiment; NAME.py is written")
    parser.add_argument(
        "--from", dest="source", required=True, metavar="EXPERIMENT", help="name or file to copy"
    )


def _new(args: argparse.Namespace, options: list[str]) -> int:
    from gps.pipeline import loader

    path = loader.new(args.name, args.source)
    print(f"wrote {path}; edit it, then: gps run {path}")
    return 0


COMMANDS = {
    "run": Command("run an experiment", _run_arguments, _run, takes_options=True),
    "resume": Command("continue a run", _resume_arguments, _resume),
    "gui": Command("show a run in the browser, live or stored", _gui_arguments, _gui),
    "plot": Command("write a run's plots as PNG", _plot_arguments, _plot),
    "evaluate": Command("roll out what a run has learned", _evaluate_arguments, _evaluate),
    "export": Command("write the policy for use without gps", _export_arguments, _export),
    "list": Command("show the experiments", lambda parser: None, _list),
    "new": Command("write a hyperparams file to edit", _new_arguments, _new),
}

if __name__ == "__main__":
    sys.exit(main())
