"""Pictures that callers send: read from PNG, JPEG or WebP with nothing trusted that they say of themselves.

Pillow is imported when the first picture comes: most gateways never see one.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
from typing import TYPE_CHECKING

import numpy as np

from triptych.contract import Float32, UInt8
from triptych.errors import InvalidValue, TooLarge

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP")

_DATA_URL = re.compile(r"data:[\w.+/-]*(?:;[\w=.-]+)*;base64,", re.IGNORECASE)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def read_image(text: str, *, param: str, max_pixels: int) -> UInt8:
    """A picture as sRGB pixels (H, W, 3): turned as its EXIF says, and what is transparent in it is white.

    Args:
        text: The file in base64, or as a data URL.
        param: What the caller calls it.
        max_pixels: More are refused before they are decoded.

    Raises:
        InvalidValue: It is no picture of a kind that is read, or a damaged one.
        TooLarge: It has too many pixels.
    """
    from PIL import Image

    image = _upright(_file(text, param), param, max_pixels)
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    image = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


def read_mask(text: str, *, param: str, max_pixels: int) -> UInt8:
    """A mask (H, W): 255 where it is light and 0 where it is dark or transparent. Otherwise as `read_image`."""
    from PIL import Image

    image = _upright(_file(text, param), param, max_pixels)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    light = np.asarray(image.convert("L")) >= 128
    return np.where(light, np.uint8(255), np.uint8(0))


def latent_mask(mask: UInt8, downsampling: int) -> Float32:
    """Of a mask (H, W): 1 where any pixel of a latent is to be painted, else 0, float32 (H/8, W/8, 1)."""
    height, width = mask.shape
    squares = mask.reshape(height // downsampling, downsampling, width // downsampling, downsampling)
    mask_of_latents: Float32 = (squares.max(axis=(1, 3)) > 0).astype(np.float32)[..., None]
    return mask_of_latents


def soften(mask: UInt8, radius: int) -> UInt8:
    """A mask (H, W) with its edges blurred, the radius being the deviation of the Gaussian in pixels; 0 leaves it as it is."""
    from PIL import Image, ImageFilter

    return mask if radius == 0 else np.asarray(Image.fromarray(mask).filter(ImageFilter.GaussianBlur(radius)))


def _file(text: str, param: str) -> bytes:
    """The bytes of a file that travels as text. Addresses are refused: nothing is fetched for a caller."""
    if (prefix := _DATA_URL.match(text)) is not None:
        text = text[prefix.end() :]
    elif _ADDRESS.match(text):
        raise InvalidValue(
            f"{param} must be the picture itself, in base64 or as a data URL; addresses are not fetched", param=param
        )
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidValue(f"{param} is not base64", param=param) from None
    if not data:
        raise InvalidValue(f"{param} is empty", param=param)
    return data


def _upright(data: bytes, param: str, max_pixels: int) -> Image.Image:
    """The decoded picture, the way up that a camera says, with eight bits a channel."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Pillow finds odd; what it cannot read it raises
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image, param, max_pixels)
                if getattr(image, "is_animated", False):
                    raise InvalidValue(f"{param} is an animation; one picture is read", param=param)
                image.load()
                return _eight_bits(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise InvalidValue(f"{param} is not a picture that is read: PNG, JPEG or WebP", param=param) from None
    except Image.DecompressionBombError:
        raise TooLarge(f"{param} has more than the {max_pixels} pixels that are read", param=param) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InvalidValue(f"{param} is damaged or cut off: {error}", param=param) from None


def _check_size(image: Image.Image, param: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise TooLarge(f"{param} has {width}x{height} pixels, at most {max_pixels} are read", param=param)


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of sixteen bits with eight; Pillow would cut its values off instead of scaling them."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    levels = np.clip(np.asarray(image).astype(np.float64), 0, 65535)
    return Image.fromarray(np.rint(levels / 257).astype(np.uint8))
