"""How the cost grows with the rate, for every sort of plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.advisor.plans import Market, Sort
from benchmarks.advisor.search import Advice, Goal, advise

RATES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)
"""Requests a second."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """The cheapest plans at a rate."""

    rate: float
    advices: dict[Sort, Advice | None]


def grow(market: Market, p95_seconds: float, *, calls: int) -> Iterator[Level]:
    """One level after the other, from the lowest rate.

    Args:
        calls: Of networks, in a simulation.
    """
    for rate in RATES:
        yield Level(rate=rate, advices=advise(market, Goal(rate=rate, p95_seconds=p95_seconds, calls=calls)))
