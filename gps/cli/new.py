"""`gps new`: a hyperparams file to edit, from an experiment or for a robot."""

from __future__ import annotations

import argparse

from gps.cli import options


def new_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gps new`."""
    parser.epilog = (
        "For a robot the file lists what its model has, and its values are made from that: it runs "
        "as written (gps run NAME.py); gps check NAME.py says what its initial controllers do."
    )
    parser.add_argument("name", metavar="NAME", help="of the new experiment; NAME.py is written")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--from", dest="source", metavar="EXPERIMENT", help="name or file to copy")
    source.add_argument("--model", metavar="FILE", help="for a MuJoCo model: its file, or a name")
    source.add_argument("--env", metavar="ID", help="for an environment of Gymnasium: Reacher-v5")
    source.add_argument("--dm", metavar="DOMAIN:TASK", help="for a task of dm_control's suite")
    options.flag(parser, "--force", "write over a file that exists")


def new(args: argparse.Namespace) -> int:
    """`gps new`."""
    from gps.pipeline import loader

    if args.source is not None:
        path = loader.new(args.name, args.source, force=args.force)
        print(f"wrote {path}; edit it, then: gps run {path}")
        return 0
    from gps.extras import require

    require("run", "gps new")
    from gps.pipeline import scaffold

    made = scaffold.new(args.name, model=args.model, env=args.env, dm=args.dm, force=args.force)
    print(made)
    return 0
