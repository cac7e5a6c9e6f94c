"""Headers that go along with a request besides the protocol's own, from whoever is asked first to whoever is asked last."""

from __future__ import annotations

REQUEST_ID_HEADER = "X-Request-Id"
"""The request's name in everybody's log."""

TIMEOUT_HEADER = "X-Request-Timeout-Seconds"
"""The time that is left."""
