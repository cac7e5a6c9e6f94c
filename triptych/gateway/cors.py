"""Which pages of other sites may call: those that are listed, and by default none."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from triptych.wire.headers import REQUEST_ID_HEADER, TIMEOUT_HEADER

ASKED = ("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", REQUEST_ID_HEADER, TIMEOUT_HEADER)
"""Headers that such a page may send besides those that every page may."""

ANSWERED = (
    REQUEST_ID_HEADER,
    "X-Triptych-Id",
    "X-Triptych-Seed",
    "X-Triptych-Pixels-Sha256",
    "Server-Timing",
    "Retry-After",
    "Location",
)
"""Headers that it may read."""


def cors(origins: Sequence[str]) -> list[Middleware]:
    """What answers browsers' questions for some origins, without cookies: a key is a header. Nothing where there are none."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=ASKED,
            expose_headers=ANSWERED,
        )
    ]
