"""How many requests are held at once: what a service reads is bounded by their number, not only by the size of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from triptych.errors import QueueFull

RETRY_AFTER_SECONDS = 1.0


class Places:
    """A number of places, of which each request takes one."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._taken = 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """Raises QueueFull where all are taken."""
        if self._taken >= self._number:
            raise QueueFull(f"{self._number} requests are here already; come back later", retry_after_seconds=RETRY_AFTER_SECONDS)
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
