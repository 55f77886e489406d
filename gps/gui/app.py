"""`gps gui`: the server, the page and the loop that keeps it up to date."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from gps.errors import StoreError
from gps.gui.access import is_loopback, new_token
from gps.pipeline.provenance import read_facts
from gps.threads import single_thread_environment

if TYPE_CHECKING:
    from gps.gui.plots import UserPlots
    from gps.gui.run_reader import RunReader
    from gps.gui.server import SecureServer
    from gps.pipeline.progress import Choice

log = logging.getLogger(__name__)

PORT = 8080
_WAIT = 0.2  # seconds between looks for a run that is still to come


def serve(
    run: Path,
    *,
    compare: Sequence[Path] = (),
    plots: Sequence[Path] = (),
    iteration: int | Choice | None = None,
    host: str | None = None,
    port: int | None = None,
    token: str | None = None,
    parent: int | None = None,
    report: Callable[[str], None] = print,
) -> int:
    """Show a run until Ctrl-C or SIGTERM; returns the exit code.

    compare: other runs, for the plots of training progress. plots: files with plots of the user's
    (see `gps.gui.load_plots`). iteration: what is selected at first; None for the best of a run at
    rest, and the newest of one that is being made. host: None for this machine only; any other
    address needs a token, and gets a random one where none is given. port: None for 8080 or the
    next free one. parent: a process that is about to make the run: its folder may still be missing,
    and the page ends with that process. report: prints the address. Raises StoreError where there
    is no run or no such iteration, ExperimentError, ConfigError.
    """
    host = host or "127.0.0.1"
    if token is None and not is_loopback(host):
        token = new_token()
    os.environ |= single_thread_environment()  # for the libraries that are still to be loaded
    user = _user_plots(plots) if plots else None
    stop = _Stop(parent)
    with ExitStack() as stack:
        server = None
        needed = [path / "experiment.json" for path in (run, *compare)]
        if isinstance(iteration, int):
            needed.append(run / "iterations" / f"{iteration:04d}.h5")
        if all(path.is_file() for path in needed):
            facts = [read_facts(path) for path in (run, *compare)]
            name = str(facts[0].get("name") or run.name)
            # what reads and shows a run takes a second to import: a browser can load meanwhile
            server = stack.enter_context(_serving(name, host, port, token, report))
        reader = _reader(run, stop, parent is not None)
        if reader is None:
            return 0
        if iteration is not None:
            reader.choose(iteration)  # refused now where it is not stored
        others = [_opened(path) for path in compare]
        if server is None:
            server = stack.enter_context(_serving(reader.name, host, port, token, report))
        _show(server, reader, others, iteration, user, stop)
    return 0


@contextmanager
def _serving(
    name: str, host: str, port: int | None, token: str | None, report: Callable[[str], None]
) -> Iterator[SecureServer]:
    """A server for the block; its address is reported."""
    from gps.gui.server import SecureServer

    label = f"gps {name}"
    server = SecureServer(host, PORT if port is None else port, token=token, label=label)
    try:
        if server.note and port is not None:
            report(f"gui: {server.note}")
        report(f"gui: {server.url}")
        yield server
    finally:
        server.stop()


def _show(
    server: SecureServer,
    reader: RunReader,
    others: list[RunReader],
    iteration: int | Choice | None,
    user: UserPlots | None,
    stop: Callable[[], bool],
) -> None:
    """Keep the page up to date until it is to end."""
    from threadpoolctl import threadpool_limits

    from gps.gui.panels import Page
    from gps.gui.session import Session

    os.nice(5)  # the run comes first
    with threadpool_limits(limits=1):
        session = Session(reader, others, iteration=iteration, user=user)
        with server.atomic():
            page = Page(server, session)
        while not stop():
            page.step()
        session.close()


def _opened(run: Path) -> RunReader:
    from gps.gui.run_reader import RunReader

    return RunReader(run)


def _user_plots(paths: Sequence[Path]) -> UserPlots:
    from gps.gui.plots import load_plots

    return load_plots(*paths)


def _reader(run: Path, stop: Callable[[], bool], wait: bool) -> RunReader | None:
    """The run, once its folder is there; None if there is no more reason to wait."""
    while True:
        try:
            reader = _opened(run)
            reader.refresh()
            if reader.iterations or not wait:
                return reader
        except StoreError:
            if not wait:
                raise
        if stop():
            return None
        time.sleep(_WAIT)


class _Stop:
    """Whether to end: after Ctrl-C or SIGTERM, or when the process that we belong to is gone."""

    def __init__(self, parent: int | None) -> None:
        self._asked, self._parent = False, parent
        self._belongs = parent is not None and os.getppid() == parent
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> Any:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def __call__(self) -> bool:
        return self._asked or (self._belongs and os.getppid() != self._parent)


__all__ = ["serve"]
