"""Reading a request's parameters: each with its type, its range and its default, and none that nobody knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from triptych.errors import InvalidValue
from triptych.wire.open_inference import Scalar, quoted

MAX_TEXT_CHARACTERS = 64


class Parameters:
    """The parameters of one request. Whoever has read what it knows calls `finish`."""

    def __init__(self, values: Mapping[str, Scalar]) -> None:
        self._values = values
        self._known: list[str] = []

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._take(name, default)
        if not isinstance(value, bool):
            raise InvalidValue(f"{name} must be true or false", param=name)
        return value

    def integer(self, name: str, *, default: int, minimum: int, maximum: int) -> int:
        value = self._take(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise InvalidValue(f"{name} must be a whole number from {minimum} to {maximum}", param=name)
        return value

    def optional_integer(self, name: str, *, minimum: int, maximum: int) -> int | None:
        """None where the parameter is absent."""
        value = self.integer(name, default=minimum, minimum=minimum, maximum=maximum)
        return value if name in self._values else None

    def number(self, name: str, *, default: float, minimum: float, maximum: float) -> float:
        value = self._take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not minimum <= value <= maximum:
            raise InvalidValue(f"{name} must be a number from {minimum:g} to {maximum:g}", param=name)
        return float(value)

    def text(self, name: str, *, default: str) -> str:
        value = self._take(name, default)
        if not isinstance(value, str) or len(value) > MAX_TEXT_CHARACTERS:
            raise InvalidValue(f"{name} must be a text of at most {MAX_TEXT_CHARACTERS} characters", param=name)
        return value

    def choice(self, name: str, choices: Sequence[str]) -> str | None:
        """One of some words; None where the parameter is absent."""
        value = self._take(name, None)
        if value is None or (isinstance(value, str) and value in choices):
            return value
        raise InvalidValue(f"{name} must be one of {', '.join(choices)}", param=name)

    def finish(self) -> None:
        """Refuses what has not been read.

        Raises:
            InvalidValue: The sentence names the parameters that there are.
        """
        if unknown := sorted(set(self._values) - set(self._known)):
            raise InvalidValue(
                f"there is no parameter {quoted(unknown[0])}; there are {', '.join(self._known)}", param=unknown[0]
            )

    def _take(self, name: str, default: Scalar | None) -> Scalar | None:
        self._known.append(name)
        return self._values.get(name, default)
