"""Pixels, and the files that they are sent in. The same pixels give the same bytes."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from triptych.contract import IMAGE_TEXT_KEYWORD, Float32, ImageFormat, UInt8

_JPEG_QUALITY = 92
_WEBP_QUALITY = 90
_PNG_COMPRESSION = 1  # zlib's 4 takes twice as long and its 6 five times, for files a sixth smaller


def to_pixels(images: Float32) -> UInt8:
    """sRGB 0..255 of images in [-1, 1]; what lies outside is clipped, halves go to the even number."""
    levels = np.clip((images + 1) * np.float32(127.5), 0, 255)
    pixels: UInt8 = np.rint(levels).astype(np.uint8)
    return pixels


def paste(pixels: UInt8, original: UInt8, mask: UInt8) -> UInt8:
    """Pictures where the mask is 255, the original where it is 0 (to the bit), rounded mixtures between.

    Args:
        pixels: sRGB, (B, H, W, 3).
        original: The same, or (1, H, W, 3).
        mask: (B or 1, H, W).
    """
    share = mask[..., None].astype(np.uint32)
    mixture = (share * pixels + (255 - share) * original + 127) // 255
    return mixture.astype(np.uint8)


def encode_image(pixels: UInt8, image_format: ImageFormat, text: str | None) -> bytes:
    """A file of one picture (H, W, 3).

    Args:
        pixels: sRGB.
        image_format: Of the file.
        text: What a PNG carries under `IMAGE_TEXT_KEYWORD`; the other formats carry none.
    """
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    match image_format:
        case ImageFormat.PNG:
            image.save(file, "PNG", compress_level=_PNG_COMPRESSION, pnginfo=_png_info(text))
        case ImageFormat.JPEG:
            image.save(file, "JPEG", quality=_JPEG_QUALITY)
        case ImageFormat.WEBP:
            image.save(file, "WEBP", quality=_WEBP_QUALITY)
    return file.getvalue()


def _png_info(text: str | None) -> PngInfo | None:
    if text is None:
        return None
    info = PngInfo()
    info.add_text(IMAGE_TEXT_KEYWORD, text)
    return info
