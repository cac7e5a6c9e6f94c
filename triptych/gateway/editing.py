"""From what a caller sends of a picture to what is changed of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from triptych.contract import UInt8, sha256_of
from triptych.errors import InvalidValue
from triptych.gateway.body import GenerateBody
from triptych.gateway.pictures import latent_mask, read_image, read_mask, soften
from triptych.gateway.registry import Identities
from triptych.pipeline import Edit, Mask

IMAGE_TO_IMAGE_STRENGTH = 0.8
INPAINTING_STRENGTH = 1.0
"""What is usual: a picture is followed unless told otherwise, and what a mask covers is made anew."""

ONLY_WITH_AN_IMAGE = ("mask", "strength", "num_resamples", "mask_blur")
ONLY_WITH_A_MASK = ("num_resamples", "mask_blur")


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What came with a request.

    Attributes:
        image: sRGB pixels, uint8 (H, W, 3).
        mask: 255 where to paint and 0 where to keep, uint8 (H, W), of the same size.
    """

    image: UInt8 | None = None
    mask: UInt8 | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height)."""
        return None if self.image is None else (self.image.shape[1], self.image.shape[0])

    @property
    def num_bytes(self) -> int:
        return sum(pixels.nbytes for pixels in (self.image, self.mask) if pixels is not None)

    def warnings(self) -> Iterator[str]:
        """What the caller may not have meant."""
        if self.mask is not None and self.mask.all():
            yield "the mask is all white: all of the picture is painted anew"
        if self.mask is not None and not self.mask.any():
            yield "the mask is all black: nothing is painted, and the picture comes back as it was"


NO_PICTURES = Pictures()


def read_pictures(body: GenerateBody, *, max_pixels: int) -> Pictures:
    """Decodes the pictures of a request; takes tens of milliseconds.

    Raises:
        InvalidValue, TooLarge: One cannot be read, they do not agree, or a field has no picture that it could be about.
    """
    if body.image is None:
        for name in ONLY_WITH_AN_IMAGE:
            if getattr(body, name) is not None:
                raise InvalidValue(f"{name} is about a picture to change, and there is no image", param=name)
        return NO_PICTURES
    image = read_image(body.image, param="image", max_pixels=max_pixels)
    if body.mask is None:
        for name in ONLY_WITH_A_MASK:
            if getattr(body, name) is not None:
                raise InvalidValue(f"{name} is about a mask, and there is none", param=name)
        return Pictures(image=image)
    mask = read_mask(body.mask, param="mask", max_pixels=max_pixels)
    if mask.shape != image.shape[:2]:
        raise InvalidValue(
            f"the mask has {mask.shape[1]}x{mask.shape[0]} pixels and the image {image.shape[1]}x{image.shape[0]}; "
            "they must have the same size",
            param="mask",
        )
    return Pictures(image=image, mask=mask)


def resolve_edit(body: GenerateBody, pictures: Pictures, identities: Identities) -> Edit | None:
    """What is changed, every default filled in; None where nothing is.

    Raises:
        InvalidValue: The model changes no pictures.
    """
    if pictures.image is None:
        return None
    if identities.image_encoder is None:
        raise InvalidValue("this model has no image encoder, so it changes no pictures", param="image")
    usual = IMAGE_TO_IMAGE_STRENGTH if pictures.mask is None else INPAINTING_STRENGTH
    return Edit(
        image=pictures.image,
        mask=None if pictures.mask is None else _mask(pictures.mask, body.mask_blur or 0, identities.diffusion.downsampling),
        strength=usual if body.strength is None else body.strength,
        num_resamples=body.num_resamples or 1,
    )


def _mask(pixels: UInt8, blur: int, downsampling: int) -> Mask:
    return Mask(pixels=pixels, latents=latent_mask(pixels, downsampling), paste=soften(pixels, blur))


def describe_edit(edit: Edit, mask_blur: int) -> dict[str, Any]:
    """What an answer says of it; pictures go by the SHA-256 of their pixels."""
    told: dict[str, Any] = {"strength": edit.strength, "image_sha256": sha256_of(edit.image)}
    if edit.mask is None:
        return told
    return told | {"num_resamples": edit.num_resamples, "mask_blur": mask_blur, "mask_sha256": sha256_of(edit.mask.pixels)}
