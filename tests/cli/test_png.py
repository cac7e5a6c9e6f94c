from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.fakes import encode_image
from triptych.cli.png import SIGNATURE, read_png
from triptych.contract import IMAGE_TEXT_KEYWORD, ImageFormat
from triptych.errors import TriptychError

NOISE = np.random.default_rng(0).integers(0, 256, (24, 17, 3), np.uint8)
SMOOTH = np.broadcast_to(np.add.outer(np.arange(24), np.arange(17))[..., None], (24, 17, 3)).astype(np.uint8).copy()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(rows: bytes, *, width: int = 17, height: int = 24, form: bytes = bytes([8, 2, 0, 0, 0])) -> bytes:
    header = chunk(b"IHDR", struct.pack(">II", width, height) + form)
    return SIGNATURE + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("pixels", [NOISE, SMOOTH, NOISE[:1, :1]])
def test_pixels_are_those_that_pillow_wrote(pixels: np.ndarray) -> None:
    np.testing.assert_array_equal(read_png(encode_image(pixels, ImageFormat.PNG)).pixels(), pixels)


@pytest.mark.parametrize("kind", range(5))
def test_each_way_of_filtering_is_undone_as_pillow_undoes_it(kind: int) -> None:
    """Any bytes are a picture under any filter: Pillow is the judge of which."""
    rows = np.concatenate([np.full((24, 1), kind, np.uint8), NOISE.reshape(24, -1)], axis=1)
    data = png_of(rows.tobytes())
    np.testing.assert_array_equal(read_png(data).pixels(), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("text", ['{"prompt": "x"}', '{"prompt": "naïve 圆"}'])
def test_the_text_is_found_whatever_chunk_it_is_in(text: str) -> None:
    assert read_png(encode_image(NOISE, ImageFormat.PNG, text)).text == text


def test_other_texts_are_passed_over() -> None:
    data = encode_image(NOISE, ImageFormat.PNG)
    end = len(data) - 12
    others = chunk(b"tEXt", b"Comment\0hello") + chunk(b"zTXt", IMAGE_TEXT_KEYWORD.encode() + b"\0\0" + zlib.compress(b"x"))
    assert read_png(data[:end] + others + data[end:]).text is None


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "no PNG"),
        (b"\xff\xd8\xff", "no PNG"),
        (SIGNATURE, "ends too early"),
        (png_of(b"")[:-20], "ends too early"),
        (png_of(b"").replace(b"IDAT", b"IDAX"), "damaged"),
        (SIGNATURE + chunk(b"IEND", b""), "damaged"),
    ],
)
def test_files_that_are_none_are_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(TriptychError, match=sentence):
        read_png(data)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (png_of(bytes(24 * 52)[:-1]), "damaged"),
        (png_of(bytes(24 * 52 + 1)), "damaged"),
        (png_of(b"\x05" + bytes(24 * 52 - 1)), "damaged"),
        (png_of(b"", form=bytes([8, 6, 0, 0, 0])), "no PNG of 8-bit RGB"),
        (png_of(b"", form=bytes([16, 2, 0, 0, 0])), "no PNG of 8-bit RGB"),
        (png_of(b"", width=2**31 - 1, height=2**31 - 1), "no PNG of 8-bit RGB"),
        (png_of(b"", width=0), "no PNG of 8-bit RGB"),
        (SIGNATURE + chunk(b"IHDR", struct.pack(">II5B", 1, 1, 8, 2, 0, 0, 0)) + chunk(b"IEND", b""), "damaged"),
    ],
)
def test_pixels_that_cannot_be_had_are_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(TriptychError, match=sentence):
        read_png(data).pixels()
