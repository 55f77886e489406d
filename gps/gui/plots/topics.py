"""The plots of one condition of one iteration, by topic.

What a run does not hold is left out: nothing here asks which algorithm made it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import TYPE_CHECKING

from gps.errors import ConfigError, choices
from gps.gui.plots.context import PlotContext
from gps.gui.plots.controllers import controller_plots, policy_plots
from gps.gui.plots.dynamics import dynamics_plots
from gps.gui.plots.rollouts import cost_plots, trajectory_plots
from gps.gui.plots.search import search_plots
from gps.gui.plots.types import Plot

if TYPE_CHECKING:
    from gps.gui.run_reader import RunReader

_GENERATORS: MappingProxyType[str, Callable[[PlotContext], Iterator[Plot]]] = MappingProxyType(
    {
        "trajectory": trajectory_plots,
        "cost": cost_plots,
        "controller": controller_plots,
        "dynamics": dynamics_plots,
        "policy": policy_plots,
        "dual": search_plots,
    }
)
TOPICS = tuple(_GENERATORS)
"""The groups of `inspect`, from what was sampled to what was made of it."""


def inspect(
    run: RunReader, iteration: int, condition: int, sample: int = 0, t: int | None = None
) -> dict[str, list[Plot]]:
    """The results of one iteration for one condition, by topic (see `TOPICS`).

    sample: which of the sampled rollouts is shown on its own. t: the time step that is marked and
    whose numbers are given in a table; None for neither. Topics without data are left out.
    """
    context = PlotContext(run, iteration, condition, sample, t)
    found = {name: topic_plots(name, context) for name in TOPICS}
    return {name: plots for name, plots in found.items() if plots}


def topic_plots(name: str, context: PlotContext) -> list[Plot]:
    """One topic of `inspect`, without the work for the others; ConfigError for an unknown one."""
    if name not in _GENERATORS:
        raise ConfigError(choices("topic", name, TOPICS))
    return list(_GENERATORS[name](context))


__all__ = ["TOPICS", "inspect", "topic_plots"]
