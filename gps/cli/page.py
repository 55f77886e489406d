"""The page in the browser, and the figures: `gps gui`, `gps plot`, and `--gui` of a run."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from gps.cli import options
from gps.errors import ConfigError
from gps.extras import require
from gps.fields import Range, checked


class Page:
    """The process that shows the run in the browser, where `--gui` asks for it.

    It is a process of its own, so that neither its work nor its end is felt by the run.
    """

    def __init__(self, args: argparse.Namespace, out: Path) -> None:
        self._args, self._out = args, out
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Page:
        values = vars(self._args)
        given = {k: values[k] for k in ("port", "host", "token", "plots") if values[k] is not None}
        if not self._args.gui:
            if given:
                raise ConfigError(f"--{next(iter(given))} needs --gui")
            return self
        require("gui", "the page")
        check_access(self._args)
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


def check_access(args: argparse.Namespace) -> None:
    """ConfigError for a port or token that the page could not take."""
    if args.port is not None:
        checked(args.port, Annotated[int, Range(at_least=0, at_most=65535)], "--port")
    if args.token is not None and not (args.token.isascii() and args.token.isprintable()):
        raise ConfigError("--token must consist of printable ASCII characters")


def gui_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gps gui`."""
    options.run_folder(parser, "run folder, of a run in progress or one that has ended")
    options.iteration(
        parser,
        "what is selected at first",
        None,
        "best, and of a run in progress always the newest",
    )
    options.compare(parser, "for the progress plots")
    options.page(parser, always=True)
    # of `gps run --gui`: the folder is still to come; end with that process
    parser.add_argument("--wait", type=int, help=argparse.SUPPRESS)


def gui(args: argparse.Namespace) -> int:
    """`gps gui`."""
    require("gui", "the page")
    check_access(args)
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


def plot_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gps plot`."""
    options.run_folder(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the figures")
    options.iteration(parser, "of the inspector's figures")
    options.add(parser, "--condition", int, "M", "of the inspector's figures (default: 0)")
    options.compare(parser, "in the progress figures")
    options.flag(parser, "--log", "logarithmic axes where they make sense")
    options.plots(parser)


def plot(args: argparse.Namespace) -> int:
    """`gps plot`."""
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
        plots=args.plots or [],
        log=args.log,
    )
    of = "" if chosen is None else f"; the inspector's are of iteration {chosen}"
    print(f"wrote {len(written)} plots to {args.out}, each as PNG and its numbers as CSV{of}")
    return 0
