"""What an update's search found, whichever algorithm made it."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from gps.types import Array, LinearGaussianController, Marginals, iter_fields


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The fields of an algorithm's search record that are shown; None for those it does not have.

    They are taken by name from the stored record, so that those of a user's algorithm are shown
    too. T time steps, N samples.
    """

    controller: LinearGaussianController | None = None
    """The optimum."""
    marginals: Marginals | None = None
    """Of [x; u] under the optimum and the fitted model."""
    eta: float | Array | None = None
    """Dual variable of the KL bound, one or (T,), in cost units per nat."""
    kl: Array | None = None
    """(T,) in nats."""
    kl_max: float | Array | None = None
    """Bound of the mean, or (T,) of every step, in nats."""
    trace: Array | None = None
    """(n, 2): eta and total KL of every trial; or (n,): largest KL over its bound."""
    temperature: Array | None = None
    """(T,) in cost units."""
    weights: Array | None = None
    """(T, N) of the samples."""
    unexplained: Array | None = None
    """(T,) share of the costs from a step on that the model does not explain."""
    lqr: SearchResult | None = None
    """Of the model-based half of an update."""
    pi2: SearchResult | None = None
    """Of its model-free half."""

    @classmethod
    def of(cls, record: Any) -> SearchResult | None:
        """Those of a stored record; None where there is none."""
        if not is_dataclass(record):
            return None
        stored = dict(iter_fields(record))
        found = cls(**{f.name: stored[f.name] for f in fields(cls) if f.name in stored})
        explained = stored.get("explained")
        if is_dataclass(explained):
            found = replace(found, unexplained=dict(iter_fields(explained)).get("share"))
        return replace(found, lqr=cls.of(found.lqr), pi2=cls.of(found.pi2))


__all__ = ["SearchResult"]
