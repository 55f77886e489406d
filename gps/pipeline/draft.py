"""A hyperparams file that is about to be written: the text of its parts, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gps.pipeline.experiment import Experiment
from gps.pipeline.source_text import (
    Argument,
    Call,
    Items,
    Name,
    assigned,
    comment,
    number,
    sum_of,
)
from gps.types import Array

CONDITIONS, TESTS = 4, 10
"""Training conditions, and those kept for evaluation."""
_TRAINED = 0.7
"""Share of a rollout that the policy learns, where episodes are longer."""


@dataclass(frozen=True)
class Draft:
    """The parts of a file but for the initial controllers."""

    title: str
    """What the experiment is about, in a line."""
    notes: str
    """What there is, in a comment."""
    values: tuple[tuple[str, Any], ...]
    """Names that the agent's options use, and their values."""
    agent: Call
    cost: tuple[Argument, ...]
    measure: Argument | None
    initial: tuple[Argument, ...]
    """Initial controllers, in the order in which they are tried."""
    samples: int
    iterations: int
    episode: int | None = None
    """Actions of an episode by which the policy is judged, where rollouts are shorter."""
    shorter: Callable[[Experiment], Draft | None] | None = None
    """The draft with a horizon that the experiment's first rollouts reach; None where they do."""

    def text(self, name: str, initial: Argument) -> str:
        """The source."""
        options = (
            Argument(_cut(self.title), "description"),
            Argument(Name("agent"), "agent"),
            Argument(Name("cost"), "cost"),
            replace(initial, keyword="initial"),
            *([self.measure] if self.measure is not None else []),
            _algorithm(self.episode is not None),
            Argument(self.samples, "samples", after="rollouts per condition and iteration"),
            Argument(self.iterations, "iterations"),
            *([] if self.episode is None else [_judged_by(self.episode)]),
        )
        body = [
            *comment(self.notes),
            "",
            *[line for name, value in self.values for line in [*assigned(name, value), ""]],
            *assigned("agent", self.agent),
            "",
            *sum_of("cost", self.cost),
            "",
            *assigned("experiment", Call("Experiment", options, split=True)),
        ]
        head = (
            f'"""{_cut(self.title)}\n\nWritten by `gps new`, to be edited. Check it and run it:\n\n'
            f'    gps check {name}.py\n    gps run {name}.py\n"""'
        )
        used = [n for n in _HOMES if any(f"{n}(" in line for line in body)]
        imports = [
            f"from {home} import {', '.join(n for n in used if _HOMES[n] == home)}"
            for home in dict.fromkeys(_HOMES[n] for n in used)
        ]
        return "\n".join([head, "", *_wrapped(imports), "", *body, ""])


_HOMES = {
    "DMControlConfig": "gps.agents",
    "GymnasiumConfig": "gps.agents",
    "MocapAction": "gps.agents",
    "MujocoConfig": "gps.agents",
    "random_episodes": "gps.agents",
    "random_starts": "gps.agents",
    "sample_conditions": "gps.agents",
    "MDGPSConfig": "gps.algorithms",
    "HoldConfig": "gps.control",
    "OpenLoopConfig": "gps.control",
    "ActionCost": "gps.costs",
    "EndpointCost": "gps.costs",
    "EndpointMeasure": "gps.costs",
    "FittedRewardCost": "gps.costs",
    "StateCost": "gps.costs",
    "Experiment": "gps.pipeline",
}
"""Where the names that a file may use come from, in the order of its imports."""


def _judged_by(episode: int) -> Argument:
    """Whole episodes; T steps hold the rewards of T - 1 actions."""
    why = f"The policy is judged, and the best iteration chosen, by episodes of {episode} actions."
    return Argument(episode + 1, "evaluation_steps", above=why)


def _algorithm(goes_on: bool) -> Argument:
    """MDGPS; goes_on: whether the task lasts for longer than the rollouts."""
    if not goes_on:
        return Argument(Call("MDGPSConfig"), "algorithm")
    why = "Near the end controllers act as if nothing came after. The policy does not learn that."
    return Argument(Call.of("MDGPSConfig", train_until=_TRAINED), "algorithm", above=why)


def plain(values: Sequence[float] | Array) -> tuple[float, ...]:
    """Numbers as a file holds them, to five digits after the point."""
    return tuple(round(float(v), 5) + 0.0 for v in values)


def named(values: tuple[float, ...], names: Sequence[str]) -> Any:
    """The values, with their names where they need a line each."""
    return Items(values, tuple(names))


def each(values: Array, names: Sequence[str] = (), *, whole: bool = False) -> Any:
    """One number where all are the same, unless it has to be a tuple; else all, with names."""
    found = tuple(number(v, 3) for v in values)
    if len(set(found)) == 1 and not whole:
        return found[0]
    return named(found, names) if names else found


def _cut(text: str) -> str:
    """A title that fits into a line."""
    return text if len(text) <= 68 else f"{text[:65]}..."


def _wrapped(imports: Sequence[str]) -> Iterator[str]:
    for line in imports:
        if len(line) <= 88:
            yield line
            continue
        home, _, names = line.partition(" import ")
        yield f"{home} import ("
        yield from (f"    {n}," for n in names.split(", "))
        yield ")"
