"""Pictures that callers send, good and bad."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from triptych.errors import InvalidValue, TooLarge
from triptych.gateway.pictures import latent_mask, read_image, read_mask, soften

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)
MAX_PIXELS = 32 * 32


def file_of(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def read(data: bytes) -> np.ndarray:
    return read_image(text_of(data), param="image", max_pixels=MAX_PIXELS)


PNG = file_of(Image.fromarray(PIXELS))


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "DATA:image/png;charset=x;base64,", "data:;base64,"])
def test_a_file_is_read_in_base64_and_as_a_data_url(prefix: str) -> None:
    np.testing.assert_array_equal(read_image(prefix + text_of(PNG), param="image", max_pixels=MAX_PIXELS), PIXELS)


def test_base64_may_be_wrapped() -> None:
    lines = base64.encodebytes(PNG).decode()
    assert lines.count("\n") > 3
    np.testing.assert_array_equal(read_image(lines, param="image", max_pixels=MAX_PIXELS), PIXELS)


@pytest.mark.parametrize(("format_", "options"), [("WEBP", {"lossless": True}), ("JPEG", {"quality": 100, "subsampling": 0})])
def test_webp_and_jpeg_are_read(format_: str, options: dict[str, Any]) -> None:
    smooth = np.broadcast_to(np.linspace(0, 255, 16, dtype=np.uint8)[None, :, None], (24, 16, 3))
    assert np.abs(read(file_of(Image.fromarray(smooth), format_, **options)).astype(int) - smooth).max() <= 2


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [(1, PIXELS), (3, PIXELS[::-1, ::-1]), (6, np.rot90(PIXELS, -1)), (2, PIXELS[:, ::-1])],
)
def test_a_camera_says_which_way_is_up(orientation: int, turned: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(read(file_of(Image.fromarray(PIXELS), exif=exif.tobytes())), turned)


def test_what_is_transparent_is_white_and_what_is_half_so_is_mixed() -> None:
    alpha = np.zeros((24, 16, 1), np.uint8)
    alpha[8:16], alpha[16:] = 128, 255
    pixels = read(file_of(Image.fromarray(np.concatenate([PIXELS, alpha], axis=-1))))
    assert (pixels[:8] == 255).all()
    np.testing.assert_array_equal(pixels[16:], PIXELS[16:])
    assert np.abs(pixels[8:16] - (255 - (255.0 - PIXELS[8:16]) * 128 / 255)).max() <= 1


def test_a_palette_with_a_transparent_colour_is_converted() -> None:
    image = Image.fromarray(np.repeat(np.arange(16, dtype=np.uint8)[None] % 2, 16, axis=0), mode="P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    pixels = read(file_of(image, transparency=1))
    assert (pixels[:, ::2] == [255, 0, 0]).all()
    assert (pixels[:, 1::2] == 255).all()


def test_sixteen_bits_are_scaled_to_eight() -> None:
    levels = np.linspace(0, 65535, 16).astype(np.uint16)
    image = Image.fromarray(np.broadcast_to(levels, (8, 16)).copy())
    assert image.mode == "I;16"
    np.testing.assert_array_equal(read(file_of(image))[0, :, 0], np.rint(levels / 257))


@pytest.mark.parametrize(("mode", "white"), [("1", 1), ("L", 255), ("LA", (255, 255)), ("CMYK", (0, 0, 0, 0))])
def test_other_modes_are_converted(mode: str, white: Any) -> None:
    image = Image.new(mode, (8, 8), white)
    data = file_of(image, "JPEG") if mode == "CMYK" else file_of(image)
    assert read(data).shape == (8, 8, 3)
    assert (read(data) > 250).all()


def bomb(width: int, height: int) -> bytes:
    """A PNG that says to be large and holds nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "image is empty"),
        ("%%%", "image is not base64"),
        ("data:image/png;base64,====", "image is not base64"),
        ("äöü", "image is not base64"),
        ("http://127.0.0.1/x.png", "addresses are not fetched"),
        ("file:///etc/passwd", "addresses are not fetched"),
        ("data:image/png,rawtext", "addresses are not fetched"),
        (text_of(b"hello"), "image is not a picture that is read: PNG, JPEG or WebP"),
        (text_of(file_of(Image.fromarray(PIXELS), "GIF")), "is not a picture that is read"),
        (text_of(file_of(Image.fromarray(PIXELS), "TIFF")), "is not a picture that is read"),
        (text_of(PNG[: len(PNG) // 2]), "image is damaged or cut off"),
        (text_of(PNG[:40]), "image is"),
        (text_of(file_of(Image.fromarray(PIXELS), "JPEG")[:-200]), "image is damaged or cut off"),
        (text_of(file_of(Image.fromarray(PIXELS), "WEBP")[:-40]), "image is"),
        (
            text_of(file_of(Image.fromarray(PIXELS), "WEBP", save_all=True, append_images=[Image.fromarray(255 - PIXELS)])),
            "image is an animation",
        ),
    ],
)
def test_what_is_no_picture_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(InvalidValue, match=sentence) as refused:
        read_image(text, param="image", max_pixels=MAX_PIXELS)
    assert refused.value.param == "image"


@pytest.mark.parametrize(("width", "height"), [(33, 32), (50_000, 50_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_before_they_are_decoded(width: int, height: int) -> None:
    with pytest.raises(TooLarge, match=r"at most 1024 are read|more than the 1024 pixels"):
        read_image(text_of(bomb(width, height)), param="image", max_pixels=MAX_PIXELS)


def test_a_mask_is_white_where_it_is_light_and_nothing_else() -> None:
    grey = np.broadcast_to(np.array([0, 127, 128, 255], np.uint8), (8, 4))
    mask = read_mask(text_of(file_of(Image.fromarray(grey.copy()))), param="mask", max_pixels=MAX_PIXELS)
    assert mask.dtype == np.uint8
    assert mask[0].tolist() == [0, 0, 255, 255]


def test_what_is_transparent_in_a_mask_is_kept() -> None:
    painted = np.full((8, 8, 4), 255, np.uint8)
    painted[:, 4:, 3] = 0
    mask = read_mask(text_of(file_of(Image.fromarray(painted))), param="mask", max_pixels=MAX_PIXELS)
    assert (mask[:, :4] == 255).all() and not mask[:, 4:].any()


def test_a_latent_is_painted_where_any_of_its_pixels_is() -> None:
    mask = np.zeros((16, 24), np.uint8)
    mask[3, 17] = 255
    assert latent_mask(mask, 8)[..., 0].tolist() == [[0, 0, 1], [0, 0, 0]]
    assert latent_mask(mask, 8).dtype == np.float32


def test_a_blur_softens_edges_and_none_leaves_them() -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 16:] = 255
    assert soften(mask, 0) is mask
    row = soften(mask, 3)[16].astype(int)
    assert (np.diff(row) >= 0).all()
    assert row[0] < 5 and row[-1] > 250 and 100 < row[15] < 155
