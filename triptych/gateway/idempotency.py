"""`Idempotency-Key`: a request that is sent again is the same request."""

from __future__ import annotations

import hashlib

from starlette.datastructures import Headers

from triptych.errors import InvalidValue
from triptych.gateway.body import GenerateBody

HEADER = "Idempotency-Key"
LONGEST_KEY = 255


def read_idempotency_key(headers: Headers) -> str | None:
    """What the caller calls its request; None where it does not.

    Raises:
        InvalidValue: It is none, or there are several.
    """
    sent = headers.getlist(HEADER)
    if not sent:
        return None
    (key, *others) = sent
    if others or not (0 < len(key) <= LONGEST_KEY and key.isascii() and key.isprintable()):
        raise InvalidValue(f"{HEADER} must be one text of 1 to {LONGEST_KEY} printable ASCII characters", param=HEADER)
    return key


def digest_of(body: GenerateBody, media_type: str = "") -> str:
    """Of what is asked for. How it is waited for is no part of that.

    Args:
        media_type: Of the picture, where the Accept header says it.
    """
    asked = body.model_dump_json(exclude_none=True, exclude={"detach", "previews"})
    return hashlib.sha256(f"{media_type}\n{asked}".encode()).hexdigest()
