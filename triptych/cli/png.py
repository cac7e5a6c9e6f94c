"""Reads the PNGs that Triptych writes, 8-bit RGB, with NumPy alone: the base install has no library for pictures."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from triptych.errors import TriptychError

KEYWORD = b"triptych"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_PIXELS = 2**26
_CHANNELS = 3
_RGB_8_BIT = (8, 2, 0, 0, 0)  # bit depth, colour type, compression, filter and interlace methods


@dataclass(frozen=True, kw_only=True)
class Png:
    """A PNG file.

    Attributes:
        text: What it carries under `KEYWORD`, or None.
    """

    width: int
    height: int
    text: str | None
    form: tuple[int, ...]
    compressed: bytes

    def pixels(self) -> NDArray[np.uint8]:
        """(H, W, 3).

        Raises:
            TriptychError: It is not of the form that Triptych writes, or it is damaged.
        """
        if self.form != _RGB_8_BIT or not 0 < self.width * self.height <= MAX_PIXELS:
            raise TriptychError("it is no PNG of 8-bit RGB any more, which is what Triptych writes")
        size = self.height * (1 + _CHANNELS * self.width)
        try:
            filtered = zlib.decompressobj().decompress(self.compressed, size + 1)
        except zlib.error:
            raise TriptychError("it is a damaged PNG") from None
        if len(filtered) != size:
            raise TriptychError("it is a damaged PNG")
        rows = np.frombuffer(filtered, np.uint8).reshape(self.height, -1)
        return _unfilter(rows[:, 0], rows[:, 1:].reshape(self.height, self.width, _CHANNELS))


def read_png(data: bytes) -> Png:
    """Reads all but the pixels.

    Raises:
        TriptychError: It is no PNG, or it is damaged.
    """
    if not data.startswith(SIGNATURE):
        raise TriptychError("it is no PNG")
    chunks = list(_chunks(data))
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        raise TriptychError("it is a damaged PNG")
    width, height, *form = struct.unpack(">II5B", chunks[0][1])
    texts = (_text(kind, content) for kind, content in chunks)
    return Png(
        width=width,
        height=height,
        text=next((text for text in texts if text is not None), None),
        form=tuple(form),
        compressed=b"".join(content for kind, content in chunks if kind == b"IDAT"),
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each, up to the end of the picture."""
    offset, kind = len(SIGNATURE), b""
    while kind != b"IEND":
        length, kind = struct.unpack(">I4s", data[offset : offset + 8].ljust(8, b"\0"))
        if offset + 12 + length > len(data):
            raise TriptychError("it is a PNG that ends too early")
        content = data[offset + 8 : offset + 8 + length]
        checksum = data[offset + 8 + length : offset + 12 + length]
        if checksum != struct.pack(">I", zlib.crc32(kind + content)):
            raise TriptychError("it is a damaged PNG")
        yield kind, content
        offset += 12 + length


def _text(kind: bytes, content: bytes) -> str | None:
    """The text of a chunk that has one under `KEYWORD`; one that is compressed is not ours."""
    keyword, _, text = content.partition(b"\0")
    if keyword != KEYWORD:
        return None
    if kind == b"tEXt":
        return text.decode("latin-1")
    if kind == b"iTXt" and text.startswith(b"\0"):
        # Behind the two bytes on compression: the language, and the keyword in it.
        return text[2:].split(b"\0", 2)[-1].decode("utf-8", "replace")
    return None


def _unfilter(kinds: NDArray[np.uint8], rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows as they were before each was written as what differs from its neighbours, in one of five ways."""
    pixels = np.zeros((len(rows) + 1, *rows.shape[1:]), np.uint8)
    for index, (kind, row) in enumerate(zip(kinds, rows, strict=True), start=1):
        above = pixels[index - 1]
        match kind:
            case 0:
                pixels[index] = row
            case 1:
                pixels[index] = np.cumsum(row, axis=0, dtype=np.uint8)
            case 2:
                pixels[index] = row + above
            case 3:
                pixels[index] = _from_averages(row, above)
            case 4:
                pixels[index] = _from_paeth(row, above)
            case _:
                raise TriptychError("it is a damaged PNG")
    return pixels[1:]


def _from_averages(row: NDArray[np.uint8], above: NDArray[np.uint8]) -> NDArray[np.uint8]:
    out = [0] * _CHANNELS
    for delta, up in zip(row.ravel().tolist(), above.ravel().tolist(), strict=True):
        out.append((delta + (out[-_CHANNELS] + up) // 2) % 256)
    return np.array(out[_CHANNELS:], np.uint8).reshape(row.shape)


def _from_paeth(row: NDArray[np.uint8], above: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The neighbour that is nearest to left + above - above left was subtracted; left wins ties, then above."""
    ups = [0] * _CHANNELS + above.ravel().tolist()
    out = [0] * _CHANNELS
    for index, delta in enumerate(row.ravel().tolist()):
        left, up, corner = out[index], ups[index + _CHANNELS], ups[index]
        to_left, to_up, to_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
        nearest = up if to_up <= to_corner else corner
        if to_left <= to_up and to_left <= to_corner:
            nearest = left
        out.append((delta + nearest) % 256)
    return np.array(out[_CHANNELS:], np.uint8).reshape(row.shape)
