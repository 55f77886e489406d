"""`gps check`: what the initial controllers of an experiment do, before it is run."""

from __future__ import annotations

import argparse

from gps.cli import options
from gps.fields import Count

EXIT_WRONG = 3
"""Exit code where what the experiment begins with does not do what it should."""


def check_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gps check`."""
    parser.usage = "gps check NAME|FILE.py [options] [--an.experiment.option VALUE ...]"
    parser.epilog = (
        "Exit code 0: all rollouts can be simulated, and what should be held is held; 3: not so; "
        "2: the experiment cannot be built."
    )
    parser.add_argument("experiment", nargs="?", metavar="NAME|FILE.py", help="see gps list")
    help = "roll out the first M training conditions (default: 8)"
    options.add(parser, "--conditions", Count, "M", help, default=8)
    options.flag(
        parser,
        "--iterate",
        "make one iteration too, in memory: what it takes and stores",
    )


def check(args: argparse.Namespace, own: list[str]) -> int:
    """`gps check`; own: options of the experiment."""
    missing = "gps check needs an experiment; gps list shows them"
    if options.only_help(args, args.experiment, missing):
        return 0
    from gps.pipeline import checking, loader

    experiment, prog = loader.load(args.experiment).experiment, f"gps check {args.experiment}"
    if args.help:
        print(args.parser.format_help())
        options.show_own(experiment, prog)
        return 0
    known = [text for action in args.parser._actions for text in action.option_strings]
    experiment = loader.override(experiment, own, prog=prog, known=known)
    found = checking.check(experiment, conditions=args.conditions, iterate=args.iterate)
    print(found)
    return 0 if found.good else EXIT_WRONG
