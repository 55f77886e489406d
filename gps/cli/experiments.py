"""Experiments by name: `gps list`."""

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
