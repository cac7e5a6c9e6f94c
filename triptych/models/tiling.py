"""What is to be known of the VAE's upper levels to run them in tiles. No keras here; the networks are in `vae_parts.py`."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.models.config import VAEConfig

UPPER_LEVELS = 2
"""Levels nearest to the picture that are run in tiles: they take most of the memory."""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The upper levels of one half of the VAE. A feature is what their other end has for `scale` x `scale` pixels.

    Attributes:
        scale: Pixels of an edge for each feature.
        margin: Features that must be known on each side of those that are computed.
        channels: Of the features.
        num_norms: Group norms on the way.
    """

    scale: int
    margin: int
    channels: int
    num_norms: int


def num_upper_levels(config: VAEConfig) -> int:
    return min(UPPER_LEVELS, len(config.block_out_channels) - 1)


def is_tiled(width: int, height: int, config: VAEConfig, *, tile_side: int) -> bool:
    """Whether pictures of that size are run in tiles of no more than `tile_side` pixels of an edge."""
    return max(width, height) > tile_side and num_upper_levels(config) > 0


def tiling_of_decoder(config: VAEConfig) -> Tiling:
    levels, resnets = num_upper_levels(config), config.layers_per_block + 1
    margin = 1  # conv_out
    for _ in range(levels):  # from the pixels down: two convolutions a residual block, and the upsampler's
        margin = _half(margin + 2 * resnets + 1)
    return Tiling(
        scale=2**levels,
        margin=margin,
        channels=config.block_out_channels[levels],
        num_norms=2 * resnets * levels + 1,
    )


def tiling_of_encoder(config: VAEConfig) -> Tiling:
    levels, resnets = num_upper_levels(config), config.layers_per_block
    margin = 0
    for _ in range(levels):  # from the features up: the downsampler's convolution, and two a residual block
        margin = 2 * margin + 1 + 2 * resnets
    margin += 1  # conv_in
    for _ in range(levels):
        margin = _half(margin)
    return Tiling(
        scale=2**levels,
        margin=margin,
        channels=config.block_out_channels[levels - 1],
        num_norms=2 * resnets * levels,
    )


def _half(pixels: int) -> int:
    return -(-pixels // 2)
