"""Scenes under masks, encoded once and kept: what the inpainting sibling is shown.

A cache, and not an encoder in the training step: the encoder's pass over 128x128 pixels costs more than the U-Net's whole step at
16x16, and a picture under its mask is looked at many times, each time in fresh words and under fresh noise.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.ahead import drawing_workers, in_order
from training.cache import cache_folder, load_arrays, report, save_arrays
from training.latents import SHARD, encoded, trained_encoder
from training.masks import latent_mask
from training.pictures import masked_scenes
from training.world.scenes import Grammar

STAGE = "masked-latents"


@dataclass(frozen=True, kw_only=True)
class MaskedLatents:
    """Encoded scenes and what masks leave of them.

    Attributes:
        latents: Means of the encoder before whitening, float16 (n, 16, 16, 4).
        masked: The same of the pictures with grey under their masks.
        masks: 1 where to paint, uint8 (n, 16, 16, 1).
        codes: What is in them, int8 (n, 9), see `scenes.to_code`.
        boxes: Where, shares of the side, float32 (n, 2, 4); the second is zero where there is one thing.
    """

    latents: np.ndarray
    masked: np.ndarray
    masks: np.ndarray
    codes: np.ndarray
    boxes: np.ndarray


def cache_masked_latents(
    *, scenes: int = 200_000, grammar: Grammar = Grammar.FULL, seed: int = 23, minutes: float | None = None
) -> None:
    """Encodes scenes of the training part of a grammar, whole and under a mask; shards that are there already stay.

    Args:
        minutes: Stops after the shard in which they end; at least one is encoded.
    """
    encoder = trained_encoder()
    shards = [shard for shard in range(-(-scenes // SHARD)) if not _shard(grammar, shard).exists()]
    started, done = time.time(), 0
    calls = [(grammar, min(SHARD, scenes - shard * SHARD), (seed, shard)) for shard in shards]
    for shard, drawn in zip(shards, in_order(masked_scenes, calls, workers=drawing_workers()), strict=True):
        images, masks = drawn.pop("images"), drawn.pop("masks")
        latents = {"latents": encoded(encoder, images), "masked": encoded(encoder, images, masks), "masks": latent_mask(masks)}
        save_arrays(_shard(grammar, shard), {**drawn, **latents})
        done += len(images)
        report(STAGE, shard=shard, scenes_a_second=round(done / (time.time() - started), 1))
        if minutes is not None and time.time() - started > 60 * minutes:
            break


def _shard(grammar: Grammar, shard: int) -> Path:
    return cache_folder(STAGE) / f"{grammar}-{shard:04d}.npz"


def load_masked_latents(grammar: Grammar) -> MaskedLatents:
    """All shards of a grammar that have been encoded so far.

    Raises:
        FileNotFoundError: There are none.
    """
    shards = [load_arrays(path) for path in sorted(cache_folder(STAGE).glob(f"{grammar}-[0-9]*[0-9].npz"))]
    if not shards:
        raise FileNotFoundError("no masked scenes have been encoded here: python -m training masked-latents")
    names = ("latents", "masked", "masks", "codes", "boxes")
    return MaskedLatents(**{name: np.concatenate([shard[name] for shard in shards]) for name in names})
