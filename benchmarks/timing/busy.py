"""How busy the machine was with others while something was measured."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_WORKING = (0, 1, 2, 5, 6, 7)
"""Of the numbers of /proc/stat's first line: user, nice, system, irq, softirq, and steal, which went to other machines."""

SHORTEST_SECONDS = 0.1
"""Of what is shorter the clocks, which tick in hundredths of a second, say nothing."""


@dataclass(frozen=True, kw_only=True)
class Busy:
    """Of one measurement.

    Attributes:
        seconds: How long it took.
        own_cpu_seconds: Processor time of this process and of all that it started.
        others_cpu_seconds: Of everybody else, the hypervisor's other guests included.
        others_share: The latter over what all cores could have given, 0 to 1.
    """

    seconds: float
    own_cpu_seconds: float
    others_cpu_seconds: float
    others_share: float


class Meter:
    """Looks at the clocks when it is made and when it is read."""

    def __init__(self) -> None:
        self._began, self._total, self._own = time.monotonic(), _total_seconds(), _own_seconds()

    def read(self) -> Busy:
        seconds = time.monotonic() - self._began
        own = _own_seconds() - self._own
        # The clocks tick in hundredths of a second, and not together.
        others = max(0.0, _total_seconds() - self._total - own)
        # A hypervisor books what it took in lumps, so that in a short time it may come to more than there was.
        share = min(1.0, others / (seconds * (os.cpu_count() or 1)))
        return Busy(seconds=seconds, own_cpu_seconds=own, others_cpu_seconds=others, others_share=share)


def _total_seconds() -> float:
    _, *numbers = Path("/proc/stat").read_text().splitlines()[0].split()
    return sum(int(numbers[field]) for field in _WORKING) / _TICKS_PER_SECOND


def _own_seconds() -> float:
    """Of processes that have ended too: whoever waited for one has its time."""
    this = psutil.Process()
    return sum(map(_seconds_of, [this, *this.children(recursive=True)]))


def _seconds_of(process: psutil.Process) -> float:
    try:
        times: Any = process.cpu_times()
    except psutil.NoSuchProcess:  # it has ended since its parent was asked for it
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)
