"""How much is held at once: what a service reads is bounded by the number of requests and by their bytes together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from triptych.errors import QueueFull

RETRY_AFTER_SECONDS = 1.0


class Places:
    """A number of places, of which each request takes one, and bytes, of which it takes as many as its body has.

    Args:
        number: Of places; None is any.
        most_bytes: Of all bodies together; one alone may have more.
    """

    def __init__(self, number: int | None, *, most_bytes: int) -> None:
        self._number = number
        self._most_bytes = most_bytes
        self._taken = 0
        self._bytes = 0

    @property
    def held_bytes(self) -> int:
        """Of all bodies that have a place."""
        return self._bytes

    @contextmanager
    def take(self, size: int = 0) -> Iterator[None]:
        """Raises QueueFull where all places are taken, or this body and those that are held have too many bytes."""
        if self._number is not None and self._taken >= self._number:
            raise QueueFull(f"{self._number} requests are here already; come back later", retry_after_seconds=RETRY_AFTER_SECONDS)
        if self._bytes and self._bytes + size > self._most_bytes:
            raise QueueFull(
                f"requests of {self._bytes} bytes are here already, and with {size} more it would be over {self._most_bytes}; "
                "come back later",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        self._taken += 1
        self._bytes += size
        try:
            yield
        finally:
            self._taken -= 1
            self._bytes -= size


def announced_bytes(headers: Mapping[str, str], *, limit: int) -> int:
    """Of a body that is read up to a limit: what its headers say, and the limit where they say nothing."""
    announced = headers.get("Content-Length", "")
    return min(int(announced), limit) if announced.isdecimal() and len(announced) <= len(str(limit)) else limit
