"""Errors as one line, and the library's log on the terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gps.errors import GPSError, one_line

EXIT_ERROR, EXIT_INTERRUPTED = 2, 130
COMPILING = "gps.compiling"
"""The logger that says when a kernel is compiled, at level INFO."""


def complain(error: GPSError) -> None:
    """The error as one line on stderr, with its notes."""
    print(f"gps: error: {one_line(error)}", file=sys.stderr)


@contextmanager
def logging_to(handler: logging.Handler | None = None, verbose: bool = False) -> Iterator[None]:
    """Send the library's log to a handler, to stderr by default, inside the block.

    Shown are warnings, with `verbose` all of level INFO; a handler also gets what is compiled.
    """
    # a lost worker is our affair, and said in a line; Dask and tornado print a traceback for each
    # message that could not be delivered, asyncio for tasks of Dask that nobody awaits
    known = [n for n in logging.root.manager.loggerDict if n.partition(".")[0] == "distributed"]
    levels = dict.fromkeys((*known, "tornado.application", "asyncio"), logging.CRITICAL)
    log = logging.getLogger("gps")
    if not log.handlers or verbose:
        levels["gps"] = logging.INFO if verbose else logging.WARNING
    if handler is not None or verbose:
        levels[COMPILING] = logging.INFO
    before = {name: logging.getLogger(name).level for name in levels}
    handlers, propagate = log.handlers, log.propagate
    if handler is None:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("gps: %(levelname)s: %(message)s"))
    log.handlers, log.propagate = [handler], False
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        log.handlers, log.propagate = handlers, propagate
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
