"""The decoder: latents to pictures."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np

from triptych.checkpoints.checkpoint import Network
from triptych.checkpoints.tiny_vae_folder import TinyVAEFolder
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
from triptych.stages.call_batcher import CallBatcher
from triptych.stages.finite_network import IN_FLOAT32
from triptych.stages.images import encode_image, paste, to_pixels
from triptych.stages.networks import NetworkLoader
from triptych.stages.tiles import TiledDecoder


class DecoderStage(AutoencoderStage[DecoderIdentity]):
    """See `contract.Decoder`."""

    network = Network.VAE_DECODER
    input = "latents"
    tiled = TiledDecoder
    identity_type = DecoderIdentity

    @staticmethod
    def row(width: int, height: int, config: VAEConfig) -> RowSpec:
        return RowSpec(shape=(height // config.downsampling, width // config.downsampling, config.latent_channels))

    @staticmethod
    def picture_bytes(width: int, height: int, config: VAEConfig) -> int:
        latents = 4 * (height // config.downsampling) * (width // config.downsampling) * config.latent_channels
        # Latents as they came and as a call takes them. For each pixel: three numbers of 4 bytes as the network gives them, as
        # calls are joined, and as they are rounded; the picture, and what is pasted into it with its mask, mixed in numbers of
        # 4 bytes; and its file, made and sent.
        pixel = 3 * 12 + (3 + 3 + 1 + 3 * 12) + 2 * 3
        return 2 * latents + width * height * pixel

    def load(self, networks: NetworkLoader) -> DecoderIdentity:
        tiny = networks.tiny_vae
        # First: its weights are in use, and its call is known, when the room for pictures is counted.
        self._previews = {} if tiny is None else self._load_previews(networks, tiny)
        return replace(super().load(networks), has_preview_decoder=bool(self._previews))

    def _load_previews(self, networks: NetworkLoader, files: TinyVAEFolder) -> dict[tuple[int, ...], CallBatcher]:
        """By the sizes of latents: the network that previews go through."""
        vae = networks.files.vae
        rows = [self.row(width, height, vae) for width, height in networks.sizes(vae.downsampling)]
        tiny = {row.shape[:2]: networks.load_tiny_decoder(files, row) for row in rows}
        precision = networks.numerics.precision
        return {size: self._batched(net, capacity=net.capacity, precision=precision) for size, net in tiny.items()}

    async def decode(self, request: DecodeRequest, *, deadline: float | None = None) -> Decoded:
        identity = await self.identity()
        check_decode(request, identity)
        rows, height, width, _ = request.latents.shape
        networks = self._previews if request.preview and self._previews else self._networks
        with self.take_room(rows, (width * identity.downsampling, height * identity.downsampling)):
            outputs = await networks[height, width]({"latents": request.latents}, deadline=deadline)
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
