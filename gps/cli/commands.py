"""The commands of `gps`, and what becomes of its arguments."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gps import __version__
from gps.cli import check, experiments, new, options, page, policies, running
from gps.cli.messages import EXIT_ERROR, EXIT_INTERRUPTED, complain, logging_to
from gps.errors import ConfigError, ExperimentError, GPSError, choices
from gps.extras import needed_by, require


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
        complain(error)
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
    run: Callable[..., int]
    own: bool = False
    """Whether unknown options are the experiment's; `run` then gets them as its second argument."""


COMMANDS = {
    "run": Command("run an experiment", running.run_arguments, running.run, own=True),
    "resume": Command("continue a run", running.resume_arguments, running.resume, own=True),
    "gui": Command("show a run in the browser, live or stored", page.gui_arguments, page.gui),
    "plot": Command("write a run's plots as PNG", page.plot_arguments, page.plot),
    "evaluate": Command(
        "roll out what a run has learned", policies.evaluate_arguments, policies.evaluate
    ),
    "export": Command(
        "write the policy for use without gps", policies.export_arguments, policies.export
    ),
    "list": Command("show the experiments", lambda parser: None, experiments.show),
    "new": Command("write a hyperparams file to edit", new.new_arguments, new.new),
    "check": Command(
        "say what an experiment's initial controllers do",
        check.check_arguments,
        check.check,
        own=True,
    ),
}


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if argv[0] == "--version":
        print(f"gps {__version__}")
        return 0
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        raise ExperimentError(f"{choices('command', name, COMMANDS)}; see gps --help")
    command = COMMANDS[name]
    parser = options.Parser(
        prog=f"gps {name}",
        description=command.summary,
        allow_abbrev=False,
        add_help=not command.own,
    )
    if command.own:
        parser.add_argument("-h", "--help", action="store_true", help="show this and leave")
    parser.add_argument("-v", "--verbose", action="store_true", help="show more messages")
    command.fill(parser)
    own: list[str] = []
    if command.own:
        rest, own = options.split(rest, parser)
    try:
        args = parser.parse_args(rest)
    except SystemExit as stop:  # --help has been printed
        return int(stop.code or 0)
    args.parser = parser
    if name not in ("list", "new"):
        require("run", f"gps {name}")
    with logging_to(verbose=args.verbose), needed_by(f"gps {name}"):
        return command.run(args, own) if command.own else command.run(args)


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
