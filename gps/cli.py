"""The command `gps`: run, resume, evaluate, export, list, new.

Heavy packages are imported by the commands that need them, so that `gps list` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
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

    from gps.execution import Executor
    from gps.pipeline.experiment import Experiment
    from gps.pipeline.runner import IterationReport
    from gps.pipeline.store import RunFolder
    from gps.types import Agent, Policy

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
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        print(f"gps: error: {' '.join(str(error).split())}{notes}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("gps: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone: gps list | head -1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


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
    _limit_arguments(parser)
    parser.add_argument(
        "--replay",
        type=int,
        metavar="R",
        help="asynchronous: batches per condition that the policy is trained on (default: 2)",
    )
    _executor_arguments(parser)


def _limit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rollouts",
        type=int,
        metavar="N",
        help="asynchronous: stop after N rollouts in all (default: those of all iterations)",
    )
    parser.add_argument(
        "--updates", type=int, metavar="N", help="asynchronous: stop after N policy updates"
    )


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

    from gps.pipeline import config_io, store
    from gps.pipeline.runner import run

    limits = {k: getattr(args, k) for k in ("rollouts", "updates", "replay")}
    given = {k: v for k, v in limits.items() if v is not None}
    if given and not args.asynchronous:
        raise ConfigError(f"--{next(iter(given))} needs --asynchronous")
    if args.asynchronous:
        from gps.pipeline import asynchronous

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

    def start(executor: Executor, stop: Callable[[], bool]) -> Iterator[IterationReport]:
        if args.asynchronous:
            return asynchronous.run_asynchronous(
                experiment,
                config=config,
                out=out,
                executor=executor,
                source=loaded.source,
                stop=stop,
            )
        return run(experiment, out=out, executor=executor, source=loaded.source)

    if args.asynchronous:
        total = config.snapshots(experiment, agent.n_conditions)
        goal = _goal(config.total(experiment, agent.n_conditions), config.updates)
        return _follow(args, experiment.name, total, out, start, goal, trainers)
    return _follow(args, experiment.name, experiment.iterations, out, start)


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
    _limit_arguments(parser)
    _executor_arguments(parser)


def _resume(args: argparse.Namespace, options: list[str]) -> int:
    from gps.pipeline import store
    from gps.pipeline.runner import resume

    folder = store.RunFolder.open(args.run)
    experiment = folder.experiment()
    folder.check(folder.last() if args.start is None else args.start)
    total = experiment.iterations if args.iterations is None else args.iterations
    if total < 1:
        raise ConfigError(f"--iterations must be at least 1, got {total}")
    given = {k: getattr(args, k) for k in ("rollouts", "updates", "iterations")}
    if "asynchronous" in folder.info():
        if args.iterations is not None and args.rollouts is not None:
            raise ConfigError("give one of --iterations and --rollouts; either sets the rollouts")
        return _resume_asynchronous(args, folder, experiment, given)
    if args.rollouts is not None or args.updates is not None:
        raise ConfigError("--rollouts and --updates are for asynchronous runs; use --iterations")

    def start(executor: Executor, stop: Callable[[], bool]) -> Iterator[IterationReport]:
        return resume(args.run, start=args.start, iterations=args.iterations, executor=executor)

    return _follow(args, experiment.name, total, Path(args.run), start)


def _resume_asynchronous(
    args: argparse.Namespace, folder: RunFolder, experiment: Experiment, given: dict[str, Any]
) -> int:
    from gps.pipeline import asynchronous

    config, experiment = asynchronous.changed(folder, experiment, **given)
    agent = experiment.validate()

    def start(executor: Executor, stop: Callable[[], bool]) -> Iterator[IterationReport]:
        return asynchronous.resume_asynchronous(
            args.run, start=args.start, executor=executor, stop=stop, **given
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
    start: Callable[[Executor, Callable[[], bool]], Iterable[IterationReport]],
    limits: str = "",
    trainers: int = 0,
) -> int:
    """Show the iterations as they come, until the last or an interrupt.

    limits: when an asynchronous run stops, in words; its iterations are snapshots. trainers:
    workers that are to be free of conditions.
    """
    from gps.display import Progress
    from gps.parallel.executors import make_executor

    done, asynchronous = 0, bool(limits)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(total or 0))
        stack.enter_context(_logging(args.verbose, progress.log_handler()))
        unit = "snapshot" if asynchronous else "iteration"
        interrupt = stack.enter_context(_Interrupt(f"{'a' if asynchronous else 'this'} {unit}"))
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
            return EXIT_INTERRUPTED
        goal = limits or f"{total} iterations"
        kind = "asynchronous, " if asynchronous else ""
        progress.line(f"{name}: {kind}{goal}, {args.executor}, in {out}")
        progress.header()
        reports = start(executor, lambda: interrupt.requested)
        stack.callback(getattr(reports, "close", lambda: None))
        try:
            for report in reports:
                done = report.iteration
                progress.iteration(report.row, report.stage_seconds)
                if asynchronous:
                    progress.line(_asynchronous_line(report.row))
                for event in report.events:
                    progress.event(event)
                if interrupt.requested and not asynchronous:  # they stop by themselves
                    break
        except Exception as error:
            if list((out / "iterations").glob("*.h5")):
                copy = out / "hyperparams.py"
                own = f", which uses the run's own copy {copy}" if copy.exists() else ""
                error.add_note(f"go on with: gps resume {out}{own}")
            raise
        except KeyboardInterrupt:
            progress.line(f"stopped at once; go on with: gps resume {out}")
            return EXIT_INTERRUPTED
        if interrupt.requested and (asynchronous or total is None or done < total):
            progress.line(f"stopped after {unit} {done}; go on with: gps resume {out}")
        elif done == 0:
            progress.line(f"nothing to do: {out} has reached its {goal}")
        else:
            progress.line(f"done; look at the result with: gps evaluate {out}")
    return 0


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

    def __init__(self, what: str = "this iteration") -> None:
        self.requested = False
        self._what = what
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
        # print may be in the middle of a line of its own
        text = f"\nstopping after {self._what} is stored; Ctrl-C again stops at once\n"
        with suppress(OSError):  # the terminal may be closed
            os.write(2, text.encode())


# --- evaluate ------------------------------------------------------------------------------------


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--iteration", type=int, metavar="N", help="default: the last")
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
    size = _size(args.size)
    from gps import display
    from gps.pipeline import store
    from gps.threads import one_thread

    folder = store.RunFolder.open(args.run)
    experiment = folder.experiment()
    n = folder.last() if args.iteration is None else args.iteration
    state = folder.read_state(n)
    test = args.conditions == "test"
    agent = experiment.validate()
    count = agent.n_test_conditions if test else agent.n_conditions
    if count == 0:
        raise ConfigError(f"{experiment.name} has no test conditions; its world defines none")
    if state.policy is None and test:
        raise ConfigError(
            f"{experiment.name} trains no global policy, and local controllers exist for the "
            "training conditions only"
        )
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
    for who in judged:
        columns += [f"{who} cost", "distance", "success"]
    rows = [
        [str(m), *(cell for result in judged.values() for cell in _cells(result[m]))]
        for m in range(count)
    ]
    means = [_mean(result) for result in judged.values()]
    last = ["mean", *(cell for mean in means for cell in _cells(mean))]
    title = f"{experiment.name}, iteration {n}, {args.conditions} conditions, "
    title += f"{args.samples} sample{'s' if args.samples > 1 else ''} each"
    display.table(title, columns, rows, last=last)
    path = folder.path / f"evaluation_{args.conditions}.csv"
    lines = [f"{j.condition},{j.cost!r},{j.distance!r},{j.success!r}\n" for j in first]
    try:
        store.write_whole(path, ("condition,cost,distance,success\n" + "".join(lines)).encode())
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
            experiment.world,
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


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) > 0 and int(height) > 0):
        raise ConfigError(f"--size must look like 320x240, got {text!r}")
    return int(width), int(height)


def _frames(
    args: argparse.Namespace,
    agent: Agent,
    results: Sequence[Judged],
    size: tuple[int, int],
    still: bool,
) -> list[np.ndarray]:
    """Pictures (frames, height, width, 3) of the first sample of every condition."""
    render = getattr(agent, "render", None)
    if render is None:
        raise ConfigError(f"{type(agent).__name__} draws no pictures")
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
        imageio: Any = import_module("imageio.v2")
        import_module("imageio_ffmpeg")  # imageio needs it, and says so badly
    except ImportError:
        raise ConfigError(
            "--video needs the extra 'video': pip install 'guided-policy-search[video]'"
        ) from None
    try:
        with imageio.get_writer(path, fps=round(1 / dt), macro_block_size=1) as writer:
            for frame in (frame for part in frames for frame in part):
                writer.append_data(frame)
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot write {path}: {error}") from error


# --- export --------------------------------------------------------------------------------------


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument(
        "out", metavar="FILE", help="file to write: .pt2 for torch, .onnx for onnxruntime"
    )
    parser.add_argument("--iteration", type=int, metavar="N", help="default: the last")
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")
    parser.add_argument(
        "--clip", action="store_true", help="the program clips its action to the world's limits"
    )
    parser.add_argument(
        "--float32", action="store_true", help="an .onnx file takes float32 observations"
    )


def _export(args: argparse.Namespace, options: list[str]) -> int:
    from gps.pipeline import export_policy
    from gps.threads import one_thread

    with one_thread():
        path = export_policy(
            *(args.run, args.out),
            iteration=args.iteration,
            force=args.force,
            clip=args.clip,
            float32=args.float32,
        )
    onnx = path.suffix == ".onnx"
    reader, how = ("onnxruntime", "gps.policies.onnx") if onnx else ("torch", "torch.export.load")
    print(f"wrote {path}; it needs {reader} only, see gps.policies.load and {how}")
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
    "evaluate": Command("roll out what a run has learned", _evaluate_arguments, _evaluate),
    "export": Command("write the policy for use without gps", _export_arguments, _export),
    "list": Command("show the experiments", lambda parser: None, _list),
    "new": Command("write a hyperparams file to edit", _new_arguments, _new),
}

if __name__ == "__main__":
    sys.exit(main())
