"""Where the seconds of a peer's picture go."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Stopwatches:
    """Adds up what functions take, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

        return timed

    def take(self) -> dict[str, float]:
        """What was added up since the last time."""
        seconds, self.seconds = self.seconds, {}
        return seconds
