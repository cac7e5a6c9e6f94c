"""The line before the gateway's work: who comes next among those that wait."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter

from triptych.contract import Priority

OVERTAKEN_BY: Mapping[str, int] = {Priority.HIGH: 0, Priority.NORMAL: 256, Priority.LOW: 1024}
"""A request is overtaken at most by so many later ones of its key, of higher priorities: so it does not starve."""


@dataclass(eq=False, kw_only=True)
class Waiter:
    """A request in line.

    Attributes:
        number: It is the how manieth that came.
        key: The name of the API key that it came with.
        work: How much it asks for.
        called: Done when it is its turn, or when it was sent away.
    """

    number: int
    key: str
    priority: str
    work: float
    called: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def standing(self) -> int:
        """Among those of its key; the least comes first."""
        return self.number + OVERTAKEN_BY[self.priority]


def in_turn(waiting: Sequence[Waiter], last_turns: Mapping[str, int]) -> list[Waiter]:
    """Those that wait in the order in which they come: keys take turns, and within a key priorities and who came first decide.

    Args:
        waiting: In any order.
        last_turns: When each key last had a turn, as a number that grows; those that never had one come first.
    """
    by_standing = sorted(waiting, key=attrgetter("standing"))
    keys = dict.fromkeys(waiter.key for waiter in by_standing)
    places = {key: place for place, key in enumerate(sorted(keys, key=lambda key: last_turns.get(key, -1)))}
    before: Counter[str] = Counter()
    line: list[tuple[int, int, Waiter]] = []
    for waiter in by_standing:
        line.append((before[waiter.key], places[waiter.key], waiter))
        before[waiter.key] += 1
    return [waiter for _, _, waiter in sorted(line, key=itemgetter(0, 1))]
