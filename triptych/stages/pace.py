"""How fast a network is: seconds per row, as the last calls were measured."""

from __future__ import annotations

from collections import defaultdict, deque
from statistics import median

from triptych.stages.evaluation import Kind

MEASURED_CALLS = 32


class Pace:
    """Seconds per row of the network, by the shapes of a row's latents and context and by what of the network is computed.

    The median of the last calls: one that took long because the process was frozen, or the machine busy, does not count.
    Measured by one thread, and read by any.
    """

    def __init__(self) -> None:
        self._calls: defaultdict[Kind, deque[float]] = defaultdict(lambda: deque(maxlen=MEASURED_CALLS))
        self._medians: dict[Kind, float] = {}

    def measure(self, kind: Kind, rows: int, seconds: float) -> None:
        """One call of so many rows took so long."""
        calls = self._calls[kind]
        calls.append(seconds / rows)
        self._medians[kind] = median(calls)

    def seconds_per_row(self, kind: Kind, *, default: float) -> float:
        """`default` where none has been measured."""
        return self._medians.get(kind, default)
