"""Weighted sum of costs."""

from __future__ import annotations

from dataclasses import dataclass

from gps.costs.base import Cost, InPlaceCost, TermBuffers, set_number
from gps.errors import ConfigError
from gps.types import Layout, Rollouts


@dataclass(frozen=True, kw_only=True)
class WeightedCost:
    """One term of a `SumCost`."""

    cost: Cost
    """The cost."""

    weight: float = 1.0
    """Its factor; not below zero, and zero switches the term off. All factors of a `SumCost` times
    one number change nothing that is learned, but for what options in cost units do
    (`DualConfig.entropy_weight`)."""

    def __post_init__(self) -> None:
        set_number(self, "weight", minimum=0.0)
        if not isinstance(self.cost, Cost) or isinstance(self.cost, type):
            raise ConfigError(
                f"WeightedCost.cost must be a cost (evaluate and check), got {self.cost!r}"
            )


@dataclass(frozen=True, kw_only=True)
class SumCost(InPlaceCost):
    """`l = sum_j weight_j l_j`, and derivatives alike."""

    terms: tuple[WeightedCost, ...]
    """The costs to add, each with its weight; at least one."""

    def __post_init__(self) -> None:
        try:
            terms = tuple(self.terms)
        except TypeError:
            raise ConfigError(
                f"SumCost.terms must be a tuple of WeightedCost, got {self.terms!r}"
            ) from None
        object.__setattr__(self, "terms", terms)
        if not terms:
            raise ConfigError("SumCost.terms is empty; give at least one WeightedCost")
        for j, term in enumerate(terms):
            if not isinstance(term, WeightedCost):
                raise ConfigError(
                    f"SumCost.terms[{j}] must be a WeightedCost, got {type(term).__name__}; "
                    "write WeightedCost(cost=..., weight=...)"
                )

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
