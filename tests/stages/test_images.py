from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from triptych.contract import ImageFormat
from triptych.stages.images import encode_image, paste, to_pixels

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)
SMOOTH = np.broadcast_to(np.linspace(0, 255, 16, dtype=np.uint8)[None, :, None], (24, 16, 3))


@pytest.mark.parametrize(
    ("value", "pixel"),
    [(-1.0, 0), (1.0, 255), (-7.0, 0), (7.0, 255), (0.0, 128), (-126.5 / 127.5, 1), (-0.5, 64)],
)
def test_images_become_pixels(value, pixel):
    assert to_pixels(np.full((1, 2, 2, 3), value, np.float32)).tolist() == np.full((1, 2, 2, 3), pixel).tolist()


def test_halves_go_to_the_even_number():
    halves = np.arange(0.5, 255, 1, dtype=np.float64)
    images = (halves / 127.5 - 1).astype(np.float32)
    exact = (images + 1) * np.float32(127.5)
    (at_half,) = np.nonzero(exact % 1 == 0.5)
    assert len(at_half) > 50
    assert not np.any(to_pixels(images)[at_half] % 2)


def test_what_is_pasted_is_the_original_to_the_bit_and_between_a_rounded_mixture():
    pixels, original = PIXELS[None], PIXELS[None, ::-1].copy()
    mask = np.full((1, 24, 16), 255, np.uint8)
    np.testing.assert_array_equal(paste(pixels, original, mask), pixels)
    np.testing.assert_array_equal(paste(pixels, original, 0 * mask), original)
    mask[:, :, 8:] = np.arange(8) * 36
    exact = (mask[..., None] * pixels.astype(float) + (255.0 - mask[..., None]) * original) / 255
    assert np.abs(paste(pixels, original, mask) - exact).max() <= 0.5


def test_one_original_is_pasted_into_all_pictures():
    pixels, mask = np.stack([PIXELS, PIXELS // 2]), np.zeros((1, 24, 16), np.uint8)
    mask[:, 12:] = 255
    pasted = paste(pixels, PIXELS[None, ::-1], mask)
    for one, picture in zip(pasted, pixels, strict=True):
        np.testing.assert_array_equal(one[:12], PIXELS[::-1][:12])
        np.testing.assert_array_equal(one[12:], picture[12:])


@pytest.mark.parametrize(("image_format", "name"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_a_file_is_of_its_format_and_the_same_every_time(image_format, name):
    file = encode_image(SMOOTH, ImageFormat(image_format), None)
    image = Image.open(io.BytesIO(file))
    assert image.format == name
    assert image.size == (16, 24)
    assert np.abs(np.asarray(image).astype(int) - SMOOTH).max() < 12
    assert encode_image(SMOOTH, ImageFormat(image_format), None) == file


def test_a_png_is_exact_and_carries_its_text():
    text = '{"prompt": "a café, 赤い円"}'
    image = Image.open(io.BytesIO(encode_image(PIXELS, ImageFormat.PNG, text)))
    np.testing.assert_array_equal(np.asarray(image), PIXELS)
    assert image.info == {"triptych": text}


@pytest.mark.parametrize("image_format", [ImageFormat.JPEG, ImageFormat.WEBP])
def test_the_other_formats_carry_none(image_format):
    assert encode_image(PIXELS, image_format, "a red circle") == encode_image(PIXELS, image_format, None)


def test_a_png_without_text_has_none():
    assert Image.open(io.BytesIO(encode_image(PIXELS, ImageFormat.PNG, None))).info == {}
