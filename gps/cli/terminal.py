"""What the command line shows of a run: one line per iteration, tables of evaluations.

On a terminal a status line runs below; elsewhere there are plain lines only.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from gps.cli.messages import COMPILING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

HEADER = (
    f"{'iter':>4}  {'cost':>9}  {'lowest':>9} {'highest':>9}  {'distance':>8} {'success':>7}"
    f"  {'kl':>6}/{'bound':<6} {'step':>5} {'noise':>6}  {'peak MB':>9}  {'seconds':>7}  of which"
)


class Progress:
    """Shows a run of `total` iterations as it proceeds, 0 if unknown; a context manager."""

    def __init__(self, total: int, *, stream: TextIO | None = None, live: bool | None = None):
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty() if live is None else live
        self._total = total
        self._console: Console | None = None
        self._status: Status | None = None
        self._headed = self._compiling = False

    def __enter__(self) -> Progress:
        if self._live:
            from rich.console import Console

            self._console = Console(file=self._stream, highlight=False, soft_wrap=True)
            self._status = self._console.status("starting")
            self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._status is not None:
            self._status.stop()

    def line(self, text: str, style: str = "") -> None:
        """One line that stays."""
        if self._console is not None:
            self._console.print(text, style=style or None, markup=False)
        else:
            print(text, file=self._stream, flush=True)

    def waiting(self, text: str) -> None:
        """What is being done before the first iteration, on a terminal."""
        if self._status is not None:
            self._status.update(text)

    def working(self, iteration: int) -> None:
        """What is being worked on, on a terminal."""
        if self._status is not None:
            last = 0 < self._total < iteration
            of = f" of {self._total}" if self._total else ""
            self._status.update("closing" if last else f"iteration {iteration}{of}")

    def iteration(self, row: Mapping[str, float], stages: Mapping[str, float]) -> None:
        """The line of a finished iteration, below the columns' names if it is the first."""
        if not self._headed:
            self._headed = True
            self.line(HEADER, "bold")
        self.line(iteration_line(row, stages))
        self.working(int(row["iteration"]) + 1)

    def asynchronous(self, row: Mapping[str, float]) -> None:
        """What an asynchronous run has done so far, below a snapshot's line."""
        ages = f"{number(row['age_mean'], 0, 2)} on average, {number(row['age_max'], 0)} at most"
        self.line(
            f"      {row['local_updates']:.0f} updates of conditions, {row['policy_updates']:.0f} "
            f"of the policy (age {ages}), {percent(row['utilisation'])} of the time sampling"
        )

    def event(self, text: str) -> None:
        """Something that needs attention."""
        self.line(f"      {text}", "yellow")

    def compiling(self, text: str) -> None:
        """That a kernel is compiled: one line for all of them, and below which one it is."""
        if not self._compiling:
            self._compiling = True
            self.line("compiling kernels, once on this machine: up to half a minute", "dim")
        self.waiting(text)

    def log_handler(self, verbose: bool = False) -> logging.Handler:
        """A handler that puts log records between the lines; verbose: a line for every kernel."""
        return _LineHandler(self, verbose)


class _LineHandler(logging.Handler):
    def __init__(self, progress: Progress, verbose: bool) -> None:
        super().__init__()
        self._progress, self._verbose = progress, verbose

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record as one line."""
        try:
            text, level = record.getMessage(), record.levelno
            if record.name == COMPILING and not self._verbose:
                self._progress.compiling(text)
                return
            if level >= logging.WARNING:
                text = f"{record.levelname.lower()}: {text}"
            style = "red" if level >= logging.ERROR else "yellow" if level > logging.INFO else "dim"
            self._progress.line(text, style)
        except Exception:
            self.handleError(record)


def iteration_line(row: Mapping[str, float], stages: Mapping[str, float]) -> str:
    """One iteration in numbers; distance and success are the policy's where there is one."""
    who = "local" if math.isnan(row.get("policy_distance_mean", math.nan)) else "policy"
    distance, success = row.get(f"{who}_distance_mean"), row.get(f"{who}_success")
    total = row.get("seconds", math.nan)
    slowest = sorted(stages.items(), key=lambda item: -item[1])[:3]
    parts = ", ".join(f"{name} {seconds:.2g}" for name, seconds in slowest if seconds >= 0.005)
    return (
        f"{int(row['iteration']):>4}  {number(row.get('cost_mean'), 9)}"
        f"  {number(row.get('cost_min'), 9)} {number(row.get('cost_max'), 9)}"
        f"  {number(distance, 8, 4)} {percent(success):>7}"
        f"  {number(row.get('kl_mean'), 6, 3)}/{number(row.get('kl_max'), 0, 3):<6}"
        f" {number(row.get('step_mult_mean'), 5, 3)} {percent(row.get('exploration_std')):>6}"
        f"  {_memory(row):>9}  {total:>7.2f}  {parts}"
    ).rstrip()


def _memory(row: Mapping[str, float]) -> str:
    """`512/430`: the most megabytes that the driver, and the largest worker, have held so far."""
    known = [row.get(f"memory_{who}", math.nan) for who in ("driver", "worker")]
    return "/".join(f"{m / 1e6:.0f}" for m in known if not math.isnan(m)) or "-"


def number(value: float | None, width: int, digits: int = 5) -> str:
    """A number of few digits; `-` where there is none."""
    text = "-" if value is None or math.isnan(value) else f"{value:.{digits}g}"
    return f"{text:>{width}}"


def percent(value: float | None) -> str:
    """A share as a percentage; `-` where there is none."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.0f} %"


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    last: Sequence[str] | None = None,
    stream: TextIO | None = None,
) -> None:
    """Print a table of text cells; the first column is left-aligned, `last` is set apart."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    stream = stream or sys.stdout
    wide: dict[str, Any] = {} if stream.isatty() else {"width": 120}
    console = Console(file=stream, highlight=False, **wide)
    shown = Table(box=box.SIMPLE, show_footer=last is not None)
    for i, name in enumerate(columns):
        footer = last[i] if last is not None else ""
        shown.add_column(name, footer=footer, justify="left" if i == 0 else "right")
    for row in rows:
        shown.add_row(*row)
    console.print(title, soft_wrap=True)
    console.print(shown)
