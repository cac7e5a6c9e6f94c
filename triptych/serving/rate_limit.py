"""How often each key may ask for work: a window that moves with the clock, kept in this process."""

from __future__ import annotations

import time

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from triptych.errors import RateLimited


def read_rate(text: str) -> RateLimitItem:
    """A rate such as `60/minute`.

    Raises:
        ValueError: It is none.
    """
    try:
        rate = parse(text)
    except ValueError:
        raise ValueError("a rate is a number of requests and a time, such as 60/minute or 5 per 10 seconds") from None
    if rate.amount < 1:
        raise ValueError("a rate allows one request at least")
    return rate


class RateLimit:
    """Counts what each key asked for.

    Args:
        text: The rate, the same for every key.
    """

    def __init__(self, text: str) -> None:
        self._rate = read_rate(text)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def count(self, key: str) -> None:
        """Counts one request.

        Raises:
            RateLimited: There were as many already; it is not counted.
        """
        if not self._limiter.hit(self._rate, key):
            window = self._limiter.get_window_stats(self._rate, key)
            raise RateLimited(
                f"this key may ask {self._rate.amount} times in {_words(self._rate)}",
                retry_after_seconds=max(0.0, window.reset_time - time.time()),
            )


def _words(rate: RateLimitItem) -> str:
    return f"{rate.get_expiry()} seconds"
