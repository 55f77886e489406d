"""Whether a run learns at all: what its conditions' reports say, a line for each cause.

`gps.algorithms.diagnosis` finds the cause in a condition's figures; here the conditions of an
iteration are joined, so that six of them with one cause make one line, and iterations are counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gps.algorithms.state import ConditionReport
from gps.costs.base import Cost
from gps.costs.fitted import FittedRewardCost
from gps.errors import NotLearningError, ranges
from gps.pipeline import loader
from gps.protocols import Agent, HasTerms, action_names_of
from gps.types import Rollouts

if TYPE_CHECKING:
    from gps.pipeline.experiment import Experiment

_NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.]*\w)")
_SAME = 1e-12
_EXPLAINED = 1e-4
"""Share of the largest reward that a function of the actions alone may leave over."""
_ACTION = re.compile(r"(?<![\w.])action (\d+)(?![\w.]*\w)")


def own_terms(experiment: Experiment, agent: Agent) -> Callable[[str], str]:
    """A function that names in a text the options and actions which an experiment has, in place of
    others.

    What finds a cause knows neither the agent nor the algorithm. It names the options that most
    have: `agent.dt`, for which a task of dm_control has `agent.repeat`, and some agents nothing;
    and actions by their number.
    """
    actions = dict(enumerate(action_names_of(agent)))
    names = [option.name for option in loader.settings(experiment)]
    bounds = [n.replace("-", "_") for n in names if n.endswith(".kl-max")]
    step = "agent.repeat" if "agent.repeat" in names else "the agent's time step"
    new = {
        "agent.dt": "agent.dt" if "agent.dt" in names else step,
        "algorithm.step.kl_max": bounds[0] if bounds else "the bound of a step",
    }

    def named(text: str) -> str:
        for old, own in new.items():
            text = re.sub(rf"(?<![\w.]){re.escape(old)}(?![\w.]*\w)", own, text)
        return _ACTION.sub(lambda found: actions.get(int(found[1]), found[0]), text)

    return named


def in_own_terms(report: ConditionReport, named: Callable[[str], str]) -> ConditionReport:
    """The report of a condition with the names of `own_terms`."""
    options = (named(o.replace("-", "_")).replace("_", "-") for o in (report.options or "").split())
    known = [o for o in options if " " not in o]  # words, where the experiment has no such option
    return replace(
        report,
        event=named(report.event),
        advice=report.advice and named(report.advice),
        options=report.options and " ".join(known),
    )


class Learning:
    """What is said of the iterations of one run, one after another.

    limit: of iterations in a row without an update, None for none. conditions: how many there are.
    path: of the run folder. live: what the options begin with that can change when it is resumed,
    besides the limit.
    """

    def __init__(
        self,
        limit: int | None,
        conditions: int,
        path: object = None,
        live: tuple[str, ...] = ("samples", "algorithm."),
    ) -> None:
        self.limit, self.conditions, self.path, self._live = limit, conditions, path, live
        self._failed: dict[int, tuple[int, ConditionReport]] = {}  # updates in a row, and the last
        self._said: set[str] = set()
        self._suspected: set[str] = set()
        self._advised: set[str] = set()

    def restart(self) -> None:
        """Count anew, since options have changed or an iteration is repeated."""
        self._failed = {}

    def events(self, reports: Sequence[ConditionReport]) -> tuple[str, ...]:
        """What happened to the conditions of an iteration; advice that was given in the last one
        already is left out."""
        advised = {_NUMBER.sub("#", r.event) for r in reports if r.advice and r.advice in r.event}
        lines = tuple(
            f"{_conditions(who)}: " + (_short(text) if key in self._said else text)
            for who, text, key in joined((r.condition, r.event) for r in reports if r.event)
        )
        self._said = advised
        # an event that is an advice is not said again as one
        self._advised |= {r.cause for r in reports if r.cause and r.advice and r.advice in r.event}
        return lines

    def failures(self, who: str, failed: Sequence[str]) -> tuple[str, ...]:
        """Which of the noise-free rollouts of all conditions have failed, by an empty text or the
        reason; who: acted in them."""
        return tuple(
            f"{_conditions(m)}: the rollout of {who} without noise fails ({text})"
            for m, text, _ in joined((m, text) for m, text in enumerate(failed) if text)
        )

    def advice(self, reports: Sequence[ConditionReport], solved: bool = False) -> str:
        """What keeps most conditions from learning, where it has done so in the iteration before
        too; empty otherwise, where all succeed, and where it has been said already."""
        ill = [r for r in reports if r.cause and r.advice and not solved]
        now = {str(r.cause) for r in ill} if 2 * len(ill) > len(reports) else set()
        lasting, self._suspected = now & self._suspected, now
        new = lasting - self._advised
        self._advised |= lasting
        return "; ".join(diagnosis([r for r in ill if r.cause in new]))

    def count(self, reports: Sequence[ConditionReport], solved: bool = False) -> None:
        """Take in an iteration, or the update of one condition; solved: whether all succeed."""
        for r in reports:
            before = self._failed.get(r.condition, (0, r))[0]
            vain = r.updated is False or (r.figures is not None and r.figures.without_effect)
            failed = vain and not solved
            self._failed[r.condition] = (before + 1 if failed else 0), r

    @property
    def over(self) -> bool:
        """Whether the run has to end."""
        return self.limit is not None and self._least >= self.limit

    @property
    def _least(self) -> int:
        """Iterations in a row in which no condition was updated with any effect."""
        known = [n for n, _ in self._failed.values()]
        return min(known) if len(known) == self.conditions else 0

    def error(self) -> NotLearningError:
        """What ends the run, with how to go on."""
        reports = [r for _, r in self._failed.values()]
        lines, n = diagnosis(reports), self._least
        options = dict.fromkeys(o for r in reports for o in (r.options or "").split())
        live = [o for o in options if o.startswith(self._live)]
        others = [o for o in options if o not in live]
        how = ""
        if self.path is not None:
            how = f"; go on all the same with: gps resume {self.path} --max-without-update None"
            if live:
                how += f", or with another value: gps resume {self.path} --{live[0]} VALUE"
            if others:
                how += f"; another {' or '.join(others)} needs a new run"
        why = "; ".join(lines) or "for no known reason"
        no = "no effective" if any(r.updated for r in reports) else "no"
        text = f"{no} update of any condition in {n} iterations in a row: {why}{how}"
        return NotLearningError(text, iterations=n, diagnosis=lines)


def diagnosis(reports: Sequence[ConditionReport]) -> list[str]:
    """The causes of some reports in words, a line for each, the most frequent first."""
    by_cause: dict[str, list[ConditionReport]] = {}
    for r in reports:
        if r.cause and r.advice:
            by_cause.setdefault(r.cause, []).append(r)
    lines = []
    for found in sorted(by_cause.values(), key=len, reverse=True):
        for who, text, _ in joined((r.condition, r.advice or "") for r in found):
            lines.append(f"{_conditions(who)}: {text}")
    return lines


def joined(said: Iterable[tuple[int, str]]) -> list[tuple[list[int], str, str]]:
    """Texts of conditions that differ in their numbers only, as one: `1.5..3` in place of each.

    Returns conditions, text, and the text without numbers.
    """
    groups: dict[str, list[tuple[int, str]]] = {}
    for m, text in said:
        groups.setdefault(_NUMBER.sub("#", text), []).append((m, text))
    return [
        ([m for m, _ in group], _merged([text for _, text in group]), key)
        for key, group in groups.items()
    ]


def _merged(texts: Sequence[str]) -> str:
    """One text for those that differ in their numbers, with the range of each."""
    columns = list(zip(*(_NUMBER.findall(text) for text in texts), strict=True))
    ranges = iter(
        a if (a := min(c, key=float)) == (b := max(c, key=float)) else f"{a}..{b}" for c in columns
    )
    return _NUMBER.sub(lambda _: next(ranges), texts[0])


def _conditions(numbers: Sequence[int]) -> str:
    """`condition 3`, or `conditions 0-2, 5`."""
    return f"condition{'s' if len(set(numbers)) > 1 else ''} {ranges(numbers)}"


def _short(text: str) -> str:
    """The first words of a text, up to where its explanation begins."""
    head = re.split(r"[:;(]", text, maxsplit=1)[0].strip()
    return f"{head}, as before"


def unrewarded(cost: Cost, rollouts: Sequence[Rollouts]) -> str:
    """That the rewards of an environment say nothing of where to go, in words; empty where they do,
    or there are none.

    None is above 0, and they are a quadratic function of the actions.
    """
    entries = reward_entries(cost)
    if not entries or not rollouts or rollouts[0].T < 3:
        return ""
    y = np.concatenate([r.entry(entries[0])[:, 1:].ravel() for r in rollouts])
    u = np.concatenate([r.U[:, :-1].reshape(-1, r.nu) for r in rollouts])
    i, j = np.triu_indices(u.shape[1])
    Z = np.concatenate([np.ones((len(u), 1)), u, u[:, i] * u[:, j]], axis=1)
    left = y - Z @ np.linalg.lstsq(Z, y)[0]
    largest = np.abs(y).max()
    if y.max() > 0 or len(y) <= 2 * Z.shape[1] or left.std() > _EXPLAINED * largest:
        return ""
    what = "is that of the actions alone" if y.std() > _SAME * largest else "never changes"
    return (
        f"the reward {what} in these rollouts, so that nothing says where to go: they must come "
        "to what is rewarded, by more exploration (initial.variance), a longer agent.T or starts "
        "that are nearer; or write a cost of the states (StateCost)"
    )


def reward_entries(cost: Cost) -> list[str]:
    """State entries that hold a reward."""
    terms = [t.cost for t in cost.terms] if isinstance(cost, HasTerms) else [cost]
    return [t.entry for t in terms if isinstance(t, FittedRewardCost)]


__all__ = [
    "Learning",
    "diagnosis",
    "in_own_terms",
    "joined",
    "own_terms",
    "reward_entries",
    "unrewarded",
]
