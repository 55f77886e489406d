"""Options that several commands have, and how their values are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from gps.errors import ExperimentError
from gps.fields import Count, Positive, checked

if TYPE_CHECKING:
    from gps.pipeline.experiment import Experiment

LIMITS = ("rollouts", "updates", "replay_batches")
"""Options of asynchronous runs, which `AsynchronousConfig` has by the same names."""


class Parser(argparse.ArgumentParser):
    """Raises an error of ours in place of printing the usage and leaving."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for wrong arguments."""
        raise ExperimentError(f"{message}; see {self.prog} --help")


def of(option: str, hint: Any) -> Callable[[str], Any]:
    """A `type=` for argparse: text as a value of a declared type, ConfigError where it is not."""

    def convert(text: str) -> Any:
        for kind in (int, float):
            try:
                return checked(kind(text), hint, option)
            except ValueError:
                continue
        return checked(text, hint, option)

    return convert


def add(
    parser: argparse._ActionsContainer,
    option: str,
    hint: Any,
    metavar: str,
    help: str,
    **more: Any,
) -> None:
    """Add an option with a value of a declared type."""
    parser.add_argument(option, type=of(option, hint), metavar=metavar, help=help, **more)


def flag(parser: argparse.ArgumentParser, option: str, help: str) -> None:
    """Add an option without a value."""
    parser.add_argument(option, action="store_true", help=help)


def split(argv: list[str], parser: argparse.ArgumentParser) -> tuple[list[str], list[str]]:
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


def only_help(args: argparse.Namespace, given: object, missing: str) -> bool:
    """Whether --help was asked for without the argument that a command needs; it is printed then.

    For commands whose unknown options are the experiment's. Raises ExperimentError, with the text
    `missing`, where neither is there.
    """
    if given is not None:
        return False
    print(args.parser.format_help())
    if not args.help:
        raise ExperimentError(missing)
    return True


def show_own(experiment: Experiment, prog: str, skip: Sequence[str] = ()) -> None:
    """Print the options of an experiment."""
    from gps.pipeline import loader

    with suppress(SystemExit):
        loader.override(experiment, ["--help"], prog=prog, skip=("name", "description", *skip))


def by_name(own: list[str]) -> dict[str, str]:
    """Options of an experiment with their values as text, `--samples 9` as {"samples": "9"}.

    ExperimentError for what is no option, or has no value.
    """
    found: dict[str, list[str]] = {}
    name = ""
    for token in own:
        if token.startswith("--"):
            name, equals, value = token.removeprefix("--").partition("=")
            found[name] = [value] if equals else []
        elif not name:
            raise ExperimentError(f"unexpected {token!r}; options look like --samples 5")
        else:
            found[name].append(token)
    if empty := [name for name, values in found.items() if not values]:
        raise ExperimentError(f"--{empty[0]} needs a value")
    return {name: " ".join(values) for name, values in found.items()}


def run_folder(parser: argparse.ArgumentParser, help: str = "run folder") -> None:
    """Add the argument RUN."""
    parser.add_argument("run", metavar="RUN", help=help)


def until_converged(parser: argparse.ArgumentParser) -> None:
    """Add the option that ends a run early."""
    help = "end when nothing improves any more, at the latest after all iterations"
    flag(parser, "--until-converged", help)


def limits(parser: argparse.ArgumentParser, replay: str) -> None:
    """Add the options of asynchronous runs; replay: the default of that one, in words."""
    helps = (
        "asynchronous: stop after N rollouts in all (default: those of all iterations)",
        "asynchronous: stop after N policy updates",
        f"asynchronous: batches per condition that the policy is trained on (default: {replay})",
    )
    for name, help in zip(LIMITS, helps, strict=True):
        add(parser, f"--{name.replace('_', '-')}", Count, "N", help)


def page(parser: argparse.ArgumentParser, *, always: bool = False) -> None:
    """Add the options of the page; always: for the command that does nothing but show it."""
    what = "" if always else "with --gui: "
    if not always:
        flag(parser, "--gui", "show the run in the browser")
    add(parser, "--port", int, "P", f"{what}port of the page (default: 8080 or the next)")
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        help=f"{what}listen there, for other machines too; the page then asks for a token "
        "(default: 127.0.0.1, this machine only)",
    )
    parser.add_argument(
        "--token", metavar="TEXT", help=f"{what}the token (default with --host: a random one)"
    )
    plots(parser, what)


def plots(parser: argparse.ArgumentParser, what: str = "") -> None:
    """Add plots of the user's own; what: when they count."""
    help = (
        f"{what}files with plots of your own: lists progress_plots or condition_plots of functions"
    )
    parser.add_argument("--plots", nargs="+", metavar="FILE", help=help)


def executor(parser: argparse.ArgumentParser) -> None:
    """Add where a run is computed."""
    add(
        parser,
        "--executor",
        Literal["serial", "dask"],
        "{serial,dask}",
        "dask: worker processes; serial: this process (default: dask)",
        default="dask",
    )
    one = parser.add_mutually_exclusive_group()
    add(one, "--workers", Count, "W", "dask: processes to start here")
    one.add_argument("--scheduler", metavar="ADDRESS", help="dask: join a running cluster")
    help = "dask: restart a worker that finishes nothing for so long (default: 600)"
    add(parser, "--task-timeout", Positive, "SECONDS", help)


def iteration(
    parser: argparse.ArgumentParser, what: str, default: str | None = "best", usual: str = "best"
) -> None:
    """Add the choice of an iteration."""
    parser.add_argument(
        "--iteration",
        metavar="best|last|N",
        default=default,
        help=f"{what}: best (highest success without noise from the training conditions, then "
        f"lowest cost), last, or a number (default: {usual})",
    )


def compare(parser: argparse.ArgumentParser, where: str) -> None:
    """Add other runs to show."""
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="RUN", help=f"other runs, {where}"
    )
