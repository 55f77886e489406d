"""A user's own plots, from Python files: `gps plot RUN --plots FILE`, `gps gui RUN --plots FILE`.

Such a file, which may be a hyperparams file, defines one or both of

    progress_plots = [...]   # functions of a sequence of RunReader: the run, and its baselines
    condition_plots = [...]  # functions of a PlotContext: one condition of one iteration

Each function yields or returns plots (`LinePlot`, `HeatMap`, `Table`), as those of the toolkit do.
It runs as a hyperparams file does: modules in its folder can be imported.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gps.errors import ConfigError, GPSError
from gps.gui.plots.context import PlotContext
from gps.gui.plots.types import Plot
from gps.pipeline import loader

if TYPE_CHECKING:
    from gps.gui.run_reader import RunReader

log = logging.getLogger(__name__)

TOPIC = "custom"
"""The topic of the plots of a condition."""
_LISTS = ("progress_plots", "condition_plots")


class _Generator(NamedTuple):
    """A function of a user's file."""

    make: Callable[[Any], Iterable[Plot]]
    path: Path
    place: str
    """`condition_plots[0]`: its place in the file's list."""

    def where(self, error: BaseException) -> str:
        """File and line at which the function failed, or its place where it did not itself."""
        trace = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in trace if frame.filename == str(self.path)]
        return f"{self.path}:{lines[-1]}" if lines else f"{self.path}: {self.place}"


class Failure(NamedTuple):
    """Why a user's function gave fewer plots than it was to."""

    text: str
    """One line, with file and line."""
    error: BaseException

    def log(self) -> None:
        """Log the traceback of an error in the user's code; a GPSError needs none."""
        if not isinstance(self.error, GPSError):
            log.warning("a user's plot cannot be made", exc_info=self.error)


class Made(NamedTuple):
    """What a user's functions gave."""

    plots: list[Plot]
    failures: list[Failure]


@dataclass(frozen=True)
class UserPlots:
    """The functions of a user's files; see `load_plots`."""

    progress_plots: tuple[_Generator, ...] = ()
    condition_plots: tuple[_Generator, ...] = ()

    def progress(self, runs: Sequence[RunReader], taken: Iterable[str] = ()) -> Made:
        """Plots of training progress; taken: names that other plots have already."""
        return _made(self.progress_plots, runs, taken)

    def condition(self, context: PlotContext, taken: Iterable[str] = ()) -> Made:
        """Plots of one condition of one iteration."""
        return _made(self.condition_plots, context, taken)


def load_plots(*paths: str | Path) -> UserPlots:
    """The plots that files define.

    Raises ExperimentError or ConfigError, each with the file, where one cannot be executed or
    defines no plots.
    """
    found: dict[str, list[_Generator]] = {name: [] for name in _LISTS}
    for path in map(Path, paths):
        names = vars(loader.execute(path))
        if not any(name in names for name in _LISTS):
            raise ConfigError(
                f"{path}: defines neither `{_LISTS[0]}` nor `{_LISTS[1]}`; end the file with "
                f"`{_LISTS[1]} = [my_function]`"
            )
        for name, functions in found.items():
            listed = names.get(name, ())
            if not isinstance(listed, list | tuple) or not all(map(callable, listed)):
                raise ConfigError(f"{path}: `{name}` must be a list of functions, got {listed!r}")
            functions += [_Generator(f, path, f"{name}[{i}]") for i, f in enumerate(listed)]
    return UserPlots(*(tuple(found[name]) for name in _LISTS))


def _made(generators: Sequence[_Generator], argument: Any, taken: Iterable[str]) -> Made:
    """What the functions give; a function that fails costs only the rest of its own plots."""
    made, names = Made([], []), set(taken)
    for generator in generators:
        try:
            found = generator.make(argument)
            if not isinstance(found, Iterable):
                raise ConfigError(f"it must yield or return plots, got {type(found).__name__}")
            for plot in found:
                _check(plot, names)
                names.add(plot.name)
                made.plots.append(plot)
        except (Exception, SystemExit) as error:
            text = " ".join(str(error).split())
            what = text if isinstance(error, GPSError) else f"{type(error).__name__}: {text}"
            made.failures.append(Failure(f"{generator.where(error)}: {what}", error))
    return made


def _check(plot: Any, names: Iterable[str]) -> None:
    if not isinstance(plot, Plot):
        raise ConfigError(
            f"a plot must be a LinePlot, a HeatMap or a Table, got {type(plot).__name__}"
        )
    if plot.name in names:
        raise ConfigError(f"there is a plot {plot.name!r} already; give this one another name")


__all__ = ["TOPIC", "Failure", "Made", "UserPlots", "load_plots"]
