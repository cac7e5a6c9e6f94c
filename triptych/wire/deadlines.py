"""Deadlines on the wire: not as a time, since clocks differ, but as the seconds that are left."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from triptych.errors import MalformedRequest
from triptych.wire.headers import TIMEOUT_HEADER


def write_deadline(deadline: float | None) -> dict[str, str]:
    """The header for a deadline of `time.monotonic()`; none for none."""
    return {} if deadline is None else {TIMEOUT_HEADER: f"{max(0.0, deadline - time.monotonic()):.3f}"}


def read_deadline(headers: Mapping[str, str], *, longest_seconds: float) -> float:
    """The deadline of a request, of `time.monotonic()`.

    Args:
        headers: Of the request; any mapping that ignores case.
        longest_seconds: What a caller gets that names no deadline, or a later one.

    Raises:
        MalformedRequest: The header is not a number of seconds.
    """
    text = headers.get(TIMEOUT_HEADER)
    if text is None:
        return time.monotonic() + longest_seconds
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise MalformedRequest(f"{TIMEOUT_HEADER} must be a number of seconds, not negative")
    return time.monotonic() + min(seconds, longest_seconds)
