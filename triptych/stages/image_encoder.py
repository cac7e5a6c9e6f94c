"""The image encoder: pictures to latents. A part of the decoder's service."""

from __future__ import annotations

import asyncio

import numpy as np

from triptych.checkpoints.checkpoint import Network
from triptych.contract import (
    EncodedImages,
    EncodeImagesRequest,
    Float32,
    ImageEncoderIdentity,
    StageName,
    UInt8,
    UInt64,
    check_encode_images,
)
from triptych.engines import RowSpec
from triptych.errors import StageFailed
from triptych.models.config import VAEConfig
from triptych.sampling.noise import Purpose, normal
from triptych.stages.autoencoder import AutoencoderStage
from triptych.stages.call_batcher import Arrays
from triptych.stages.tiles import TiledEncoder


class ImageEncoderStage(AutoencoderStage[ImageEncoderIdentity]):
    """See `contract.ImageEncoder`."""

    title = "image_encoder"
    network = Network.VAE_ENCODER
    input = "images"
    tiled = TiledEncoder
    identity_type = ImageEncoderIdentity

    @staticmethod
    def row(width: int, height: int, config: VAEConfig) -> RowSpec:
        return RowSpec(shape=(height, width, 3))

    @staticmethod
    def picture_bytes(width: int, height: int, config: VAEConfig) -> int:
        latents = 4 * (height // config.downsampling) * (width // config.downsampling) * config.latent_channels
        # For each pixel: the picture and its mask, three numbers of 4 bytes as they are made of it, masked, and as a call takes
        # them. The network's two outputs, the noise, what is made of them, and that on the wire.
        return width * height * (3 + 1 + 3 * 12) + 6 * latents

    async def encode_images(self, request: EncodeImagesRequest, *, deadline: float | None = None) -> EncodedImages:
        identity = await self.identity()
        check_encode_images(request, identity)
        rows, height, width, _ = request.images.shape
        with self.take_room(rows, (width, height)):
            images = await asyncio.to_thread(_from_pixels, request.images, request.mask)
            outputs = await self._networks[height, width]({"images": images}, deadline=deadline)
            return EncodedImages(latents=await asyncio.to_thread(_latents, outputs, request.seeds, identity.scaling_factor))


def _from_pixels(pixels: UInt8, mask: UInt8 | None) -> Float32:
    """sRGB 0..255 as the network sees it, in [-1, 1], and 0 under the mask."""
    images: Float32 = pixels.astype(np.float32) / np.float32(127.5) - 1
    return images if mask is None else np.where(mask[..., None] >= 128, np.float32(0), images)


def _latents(outputs: Arrays, seeds: UInt64 | None, scaling_factor: float) -> Float32:
    """Mean of the distribution, or a sample of it for each seed; VAE-scaled."""
    latents: Float32 = outputs["mean"]
    if seeds is not None:
        noise = np.stack([normal(int(seed), Purpose.POSTERIOR, 0, latents.shape[1:]) for seed in seeds])
        deviation: Float32 = np.exp(np.float32(0.5) * outputs["logvar"])
        latents = latents + deviation * noise
    if not np.isfinite(latents).all():
        raise StageFailed("the image encoder computed NaN or infinity", stage=StageName.DECODER)
    return np.float32(scaling_factor) * latents
