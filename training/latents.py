"""Scenes encoded once and kept in half precision, and the whitening of their latents."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import ops

from training.ahead import drawing_workers, in_order
from training.cache import cache_folder, load_arrays, report, save_arrays
from training.masks import kept_pixels
from training.pictures import drawn_scenes
from training.vae import vae_config
from training.world.scenes import Grammar
from triptych.models.vae import build_vae_decoder, build_vae_encoder

SHARD = 2000
BATCH = 20
SEED = 21


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Encoded scenes.

    Attributes:
        latents: Means of the encoder before whitening, float16 (n, 16, 16, 4).
        codes: What is in them, int8 (n, 9), see `scenes.to_code`.
        boxes: Where, shares of the side, float32 (n, 2, 4); the second is zero where there is one thing.
        twins: The index of the scene that is the same but for attributes swapped between its things, int32 (n,); -1: none.
    """

    latents: np.ndarray
    codes: np.ndarray
    boxes: np.ndarray
    twins: np.ndarray

    def where(self, chosen: np.ndarray) -> Latents:
        """Those scenes alone, and twins both or neither; `chosen` is bool (n,)."""
        index = np.append(np.where(chosen, np.cumsum(chosen) - 1, -1), -1).astype(np.int32)
        twins = index[self.twins[chosen]]
        return Latents(latents=self.latents[chosen], codes=self.codes[chosen], boxes=self.boxes[chosen], twins=twins)


def cache_latents(
    *, scenes: int = 200_000, grammar: Grammar = Grammar.FULL, seed: int = SEED, minutes: float | None = None
) -> None:
    """Encodes scenes of the training part of a grammar, shard by shard; shards that are there already stay.

    Args:
        minutes: Stops after the shard in which they end; at least one is encoded.
    """
    encoder = trained_encoder()
    shards = [shard for shard in range(-(-scenes // SHARD)) if not _shard(grammar, shard).exists()]
    started = time.time()
    calls = [(grammar, min(SHARD, scenes - shard * SHARD), (seed, shard)) for shard in shards]
    drawn = in_order(drawn_scenes, calls, workers=drawing_workers())
    done = 0
    for shard, pictures in zip(shards, drawn, strict=True):
        latents = encoded(encoder, pictures.pop("images"))
        done += len(latents)
        save_arrays(_shard(grammar, shard), {**pictures, "latents": latents})
        report("latents", shard=shard, scenes_a_second=round(done / (time.time() - started), 1))
        if minutes is not None and time.time() - started > 60 * minutes:
            break


def _shard(grammar: Grammar, shard: int) -> Path:
    return cache_folder("latents") / f"{grammar}-{shard:04d}.npz"


def trained_encoder() -> keras.Model:
    """The encoder that `vae` left, before whitening."""
    encoder = build_vae_encoder(vae_config())
    encoder.load_weights(cache_folder("vae") / "encoder.weights.h5")
    return encoder


def encoded(encoder: keras.Model, images: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
    """Means of pictures, uint8 (n, H, W, 3), or of what masks, uint8 (n, H, W), keep of them; float16 (n, H/8, W/8, 4)."""
    masks = np.zeros(images.shape[:3], np.uint8) if masks is None else masks
    latents = []
    for start in range(0, len(images), BATCH):
        rows = slice(start, start + BATCH)
        mean = encoder.predict_on_batch({"images": kept_pixels(images[rows], masks[rows])})["mean"]
        latents.append(np.asarray(mean).astype(np.float16))
    return np.concatenate(latents)


def latent_shards(grammar: Grammar) -> dict[int, Path]:
    """The shards of a grammar that have been encoded so far, by their numbers, in order."""
    paths = sorted(cache_folder("latents").glob(f"{grammar}-[0-9]*[0-9].npz"))  # not one that is half written
    return {int(path.stem.rpartition("-")[2]): path for path in paths}


def load_latents(grammar: Grammar) -> Latents:
    """All shards of a grammar that have been encoded so far."""
    shards = [load_arrays(path) for path in latent_shards(grammar).values()]
    firsts = np.cumsum([0, *(len(shard["latents"]) for shard in shards)])
    twins = [np.where(shard["twins"] < 0, -1, shard["twins"] + first) for shard, first in zip(shards, firsts, strict=False)]
    joined = {name: np.concatenate([shard[name] for shard in shards]) for name in ("latents", "codes", "boxes")}
    return Latents(**joined, twins=np.concatenate(twins).astype(np.int32))


@dataclass(frozen=True, kw_only=True)
class Whitening:
    """White latents are (latents - mean) @ matrix.

    Attributes:
        mean: (4,).
        matrix: The inverse square root of the covariance of the four channels, symmetric, (4, 4).
    """

    mean: np.ndarray
    matrix: np.ndarray

    def __call__(self, latents: np.ndarray) -> np.ndarray:
        return ((latents.astype(np.float32) - self.mean) @ self.matrix).astype(np.float32)


def measure_whitening() -> Whitening:
    """Measures latents that are cached and keeps the result, so that later shards do not move it."""
    path = cache_folder("latents") / "whitening.npz"
    if not path.exists():
        grammars = [g for g in (Grammar.FULL, Grammar.ONE_THING, Grammar.FIRST_LIGHT) if list(path.parent.glob(f"{g}-*.npz"))]
        values = np.concatenate([load_latents(g).latents[:20_000].reshape(-1, 4).astype(np.float64) for g in grammars[:1]])
        spread, axes = np.linalg.eigh(np.cov(values.T))
        matrix = (axes / np.sqrt(spread)) @ axes.T
        save_arrays(path, {"mean": values.mean(axis=0), "matrix": matrix})
        report("latents", mean=values.mean(axis=0).round(3).tolist(), deviations=np.sqrt(spread).round(3).tolist())
    arrays = load_arrays(path)
    return Whitening(mean=arrays["mean"].astype(np.float32), matrix=arrays["matrix"].astype(np.float32))


def whitened_vae(whitening: Whitening) -> tuple[keras.Model, keras.Model]:
    """The trained encoder and decoder with the whitening folded into `quant_conv` and `post_quant_conv`."""
    encoder, decoder = build_vae_encoder(vae_config()), build_vae_decoder(vae_config())
    encoder.load_weights(cache_folder("vae") / "encoder.weights.h5")
    decoder.load_weights(cache_folder("vae") / "decoder.weights.h5")
    fold_whitening(encoder, decoder, whitening)
    return encoder, decoder


def fold_whitening(encoder: keras.Model, decoder: keras.Model, whitening: Whitening) -> None:
    """Moves encoder and decoder to white latents. The variance is scaled channel by channel, which is exact for its diagonal."""
    mean, matrix = whitening.mean, whitening.matrix
    quant, post = encoder.get_layer("quant_conv"), decoder.get_layer("post_quant_conv")

    def quant_kernel(kernel: np.ndarray) -> np.ndarray:
        return np.concatenate([kernel[..., :4] @ matrix, kernel[..., 4:]], axis=-1)

    def quant_bias(bias: np.ndarray) -> np.ndarray:
        return np.concatenate([(bias[:4] - mean) @ matrix, bias[4:] + 2 * np.log(np.abs(np.diag(matrix)))])

    post_bias = mean @ ops.convert_to_numpy(post.kernel)[0, 0] + ops.convert_to_numpy(post.bias)
    _change(quant.kernel, quant_kernel)
    _change(quant.bias, quant_bias)
    _change(post.kernel, lambda kernel: np.linalg.inv(matrix) @ kernel)
    post.bias.assign(post_bias)


def _change(variable: keras.Variable, change: Callable[[np.ndarray], np.ndarray]) -> None:
    variable.assign(change(ops.convert_to_numpy(variable)))
