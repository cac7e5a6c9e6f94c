"""Bodies of requests and responses, read no further than somebody is willing to hold."""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping

from triptych.errors import TooLarge


async def read_bounded(chunks: AsyncIterable[bytes], headers: Mapping[str, str], *, limit: int) -> bytes:
    """All of a body, if it is not too large: by what its headers say before anything is read, then by what really comes.

    Args:
        chunks: The body as it arrives.
        headers: Of the message; any mapping that ignores case.
        limit: Bytes.

    Raises:
        TooLarge: There is more.
    """
    announced = headers.get("Content-Length", "")
    if announced.isdecimal() and (len(announced) > 18 or int(announced) > limit):
        raise TooLarge(f"the body has {announced} bytes, at most {limit} are read")
    parts: list[bytes] = []
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"the body has more than the {limit} bytes that are read")
        parts.append(chunk)
    return b"".join(parts)
