"""The decoder: latents to pictures."""

from __future__ import annotations

import asyncio

import numpy as np

from triptych.checkpoints.checkpoint import Network
from triptych.contract import (
    Decoded,
    DecodeRequest,
    DecoderIdentity,
    Float32,
    ImageFormat,
    StageName,
    UInt8,
    check_decode,
    sha256_of,
)
from triptych.engines import RowSpec
from triptych.errors import StageFailed
from triptych.models.config import VAEConfig
from triptych.stages.autoencoder import AutoencoderStage
from triptych.stages.finite_network import IN_FLOAT32
from triptych.stages.images import encode_image, paste, to_pixels


class DecoderStage(AutoencoderStage[DecoderIdentity]):
    """See `contract.Decoder`."""

    network = Network.VAE_DECODER
    input = "latents"
    identity_type = DecoderIdentity

    @staticmethod
    def row(width: int, height: int, config: VAEConfig) -> RowSpec:
        return RowSpec(shape=(height // config.downsampling, width // config.downsampling, config.latent_channels))

    async def decode(self, request: DecodeRequest, *, deadline: float | None = None) -> Decoded:
        check_decode(request, await self.identity())
        network = self._networks[request.latents.shape[1:3]]
        outputs = await network({"latents": request.latents}, deadline=deadline)
        pixels, digests = await asyncio.to_thread(_to_pixels, outputs["images"], request)
        images = pixels if request.image_format is None else await _encode(pixels, request.image_format, request.image_texts)
        float32_rows = tuple(np.flatnonzero(outputs[IN_FLOAT32]).tolist())
        return Decoded(images=images, pixels_sha256=digests, float32_rows=float32_rows)


def _to_pixels(images: Float32, request: DecodeRequest) -> tuple[UInt8, tuple[str, ...]]:
    """Pixels, with the original pasted in where there is one, and each picture's digest."""
    if not np.isfinite(images).all():
        raise StageFailed("the decoder stage computed NaN or infinity", stage=StageName.DECODER)
    pixels = to_pixels(images)
    if request.original is not None and request.paste_mask is not None:
        pixels = paste(pixels, request.original, request.paste_mask)
    return pixels, tuple(map(sha256_of, pixels))


async def _encode(pixels: UInt8, image_format: ImageFormat, texts: tuple[str, ...]) -> tuple[bytes, ...]:
    """One file a picture. Not by the worker: the network of the next request need not wait for it."""
    all_texts = texts or (None,) * len(pixels)
    files = (asyncio.to_thread(encode_image, image, image_format, text) for image, text in zip(pixels, all_texts, strict=True))
    return tuple(await asyncio.gather(*files))
