"""How a peer's script talks: lines of JSON on what was standard output. What libraries print there goes to standard error."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


class Lines:
    """The pipe to whoever started this process."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def say(self, document: dict[str, Any]) -> None:
        self._out.write(json.dumps(document) + "\n")
        self._out.flush()

    def answer(self, picture: Callable[[dict[str, Any]], dict[str, float]]) -> None:
        """Answers each request with its parts, until there are no more."""
        for line in sys.stdin:
            self.say(picture(json.loads(line)))


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
