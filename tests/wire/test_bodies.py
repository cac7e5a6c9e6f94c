from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from triptych.errors import TooLarge
from triptych.wire.bodies import read_bounded


class Chunks:
    """A body that counts how much of it was read."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks
        self.read = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            self.read += 1
            yield chunk


async def test_a_body_is_read_whole() -> None:
    assert await read_bounded(Chunks(b"ab", b"", b"cd"), {"Content-Length": "4"}, limit=4) == b"abcd"
    assert await read_bounded(Chunks(), {}, limit=0) == b""


@pytest.mark.parametrize("length", ["5", "9" * 30, "9" * 5000])
async def test_a_body_that_says_it_is_too_large_is_not_read(length: str) -> None:
    chunks = Chunks(b"ab", b"cde")
    with pytest.raises(TooLarge, match=r"the body has .* bytes, at most 4 are read"):
        await read_bounded(chunks, {"Content-Length": length}, limit=4)
    assert chunks.read == 0


async def test_a_body_that_turns_out_too_large_is_read_no_further() -> None:
    chunks = Chunks(b"ab", b"cde", b"f")
    with pytest.raises(TooLarge, match="the body has more than the 4 bytes that are read"):
        await read_bounded(chunks, {}, limit=4)
    assert chunks.read == 2
