"""Costs that are added and weighted: `0.1 * StateCost(...) + ActionCost(...)`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, NoReturn

from gps.costs.base import Cost, TermBuffers
from gps.errors import ConfigError
from gps.fields import Config, Items, NonNegative
from gps.types import CostTerms, Layout, Rollouts

_MINIMISED = (
    "costs are minimised and cannot be subtracted; what is to be large needs a cost that falls "
    "with it, as FittedRewardCost and BinaryRegionCost(inside=-1.0, outside=0.0) do"
)


class BaseCost:
    """Base of costs that can be added and multiplied by a weight; the result is a `SumCost`.

    `0.1 * a + b` is `SumCost(terms=(WeightedCost(weight=0.1, cost=a), WeightedCost(cost=b)))`, and
    `sum([a, b])` works too. Sums stay flat: the terms of a sum join those of the other one, and a
    factor multiplies the weight of each. A cost of the user's inherits this class or `InPlaceCost`;
    one that inherits neither can be the other summand, or be wrapped in a `WeightedCost`. Raises
    ConfigError for a difference and for a weight below zero.
    """

    __array_ufunc__: ClassVar[None] = None  # numpy's numbers leave the product to us

    def __add__(self, other: Cost) -> SumCost:
        return _sum(self, other)

    def __radd__(self, other: Any) -> Any:
        if type(other) is int and other == 0:  # what sum() begins with
            return self
        return _sum(other, self)

    def __rmul__(self, weight: float) -> SumCost:
        if isinstance(weight, BaseCost | Cost):
            return NotImplemented
        terms = _terms(self)
        scale = WeightedCost(weight=weight, cost=SumCost(terms=terms)).weight
        return SumCost(terms=tuple(replace(t, weight=scale * t.weight) for t in terms))

    __mul__ = __rmul__

    def __sub__(self, other: object) -> NoReturn:
        raise ConfigError(_MINIMISED)

    __rsub__ = __sub__

    def __neg__(self) -> NoReturn:
        raise ConfigError(_MINIMISED)


def _sum(a: object, b: object) -> SumCost:
    """The flat sum; NotImplemented where one of them is no cost."""
    if not all(isinstance(cost, WeightedCost | Cost) for cost in (a, b)):
        return NotImplemented
    return SumCost(terms=(*_terms(a), *_terms(b)))


def _terms(cost: Any) -> tuple[WeightedCost, ...]:
    """The terms of a sum, or a cost as the only one."""
    if type(cost) is SumCost:  # a class derived from it may evaluate to something else
        return cost.terms
    return (cost if isinstance(cost, WeightedCost) else WeightedCost(cost=cost),)


class InPlaceCost(BaseCost):
    """Base of costs that add themselves to buffers: a sum of them needs no temporary Hessians."""

    def check(self, layout: Layout, nu: int, T: int) -> None:
        """See `Cost.check`."""
        raise NotImplementedError

    def add(self, rollouts: Rollouts, weight: float, out: TermBuffers) -> None:
        """Add `weight` times this cost and its derivatives to `out`."""
        raise NotImplementedError

    def evaluate(self, rollouts: Rollouts) -> CostTerms:
        """Cost and derivatives at the samples."""
        out = TermBuffers.zeros(rollouts)
        self.add(rollouts, 1.0, out)
        return out.freeze()


@dataclass(frozen=True, kw_only=True)
class WeightedCost(Config, BaseCost):
    """One term of a `SumCost`."""

    cost: Cost
    """The cost."""

    weight: NonNegative = 1.0
    """Its factor; zero switches the term off. All factors of a `SumCost` times one number change
    nothing that is learned, but for what options in cost units do
    (`DualConfig.entropy_weight`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.cost, Cost) or isinstance(self.cost, type):
            raise ConfigError(
                f"WeightedCost.cost must be a cost (evaluate and check), got {self.cost!r}"
            )


@dataclass(frozen=True, kw_only=True)
class SumCost(Config, InPlaceCost):
    """`l = sum_j weight_j l_j`, and derivatives alike."""

    terms: Annotated[tuple[WeightedCost, ...], Items(some=True)]
    """The costs to add, each with its weight."""

    def check(self, layout: Layout, nu: int, T: int) -> None:
        """Raise ConfigError, naming the term, if one of the costs cannot work."""
        for j, term in enumerate(self.terms):
            try:
                term.cost.check(layout, nu, T)
            except ConfigError as error:
                raise ConfigError(f"SumCost.terms[{j}]: {error}") from error

    def add(self, rollouts: Rollouts, weight: float, out: TermBuffers) -> None:
        """Add `weight` times this cost and its derivatives to `out`; a zero term is skipped."""
        self.check(rollouts.layout, rollouts.nu, rollouts.T)
        for term in self.terms:
            factor = weight * term.weight
            if factor == 0.0:
                continue
            own = type(term.cost)
            if isinstance(term.cost, InPlaceCost) and own.evaluate is InPlaceCost.evaluate:
                term.cost.add(rollouts, factor, out)
            else:
                out.add(term.cost.evaluate(rollouts), factor)
