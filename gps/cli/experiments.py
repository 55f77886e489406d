"""Experiments by name: `gps list` and `gps new`."""

from __future__ import annotations

import argparse


def show(args: argparse.Namespace) -> int:
    """`gps list`."""
    from gps.pipeline import loader

    found = loader.names()
    width = max((len(name) for name, _ in found), default=0)
    for name, description in found:
        print(f"{name:<{width}}  {description}".rstrip())
    return 0


def new_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gps new`."""
    parser.add_argument("name", metavar="NAME", help="of the new experiment; NAME.py is written")
    parser.add_argument(
        "--from", dest="source", required=True, metavar="EXPERIMENT", help="name or file to copy"
    )


def new(args: argparse.Namespace) -> int:
    """`gps new`."""
    from gps.pipeline import loader

    path = loader.new(args.name, args.source)
    print(f"wrote {path}; edit it, then: gps run {path}")
    return 0
