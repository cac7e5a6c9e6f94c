"""A tiny decoder for previews: it learns to draw, from the latents of a frozen encoder, the pictures that they were made of.

The encoder's pass would be most of every step, so nothing is encoded here: `latents` keeps what was, shard by shard, and the
pictures of a shard are drawn again from its seed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import keras
import numpy as np
from keras import ops

from training.cache import cache_folder, digest_of, load_arrays, report
from training.latents import SEED, SHARD, Whitening, latent_shards, measure_whitening, trained_encoder, whitened_vae
from training.loop import Schedule, train, use_averages
from training.muon import Muon
from training.pictures import Batch, drawn_scenes
from training.vae import SQUARE_WEIGHT, pyramid_l1, reconstruction, start_blocks_as_identity
from training.world.scenes import Grammar
from triptych.models.config import TinyVAEConfig
from triptych.models.tiny_vae import build_tiny_decoder

STAGE = "tiny-decoder"
NOISE = 0.05  # deviation on white latents: those of a preview are not quite what an encoder makes
WEIGHTS = "decoder.weights.h5"
SPACE = "space.txt"  # digest of the encoder and the whitening that it was trained for


def tiny_config() -> TinyVAEConfig:
    """Most of its work is where the pixels are, most of its layers where they are not.

    None at the full size: what is enlarged last has 16 numbers for the 12 of four pixels already.
    """
    return TinyVAEConfig(decoder_block_out_channels=(16,) * 4, num_decoder_blocks=(6, 3, 1, 0))


class TinyDecoderTraining(keras.Model):
    """A little noise, decoder, and the loss of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = build_tiny_decoder(tiny_config())
        start_blocks_as_identity(self.decoder)

    def call(self, batch: Any) -> Any:
        images = ops.cast(batch["images"], "float32")
        decoded = ops.cast(self.decoder({"latents": batch["latents"]})["images"], "float32")
        square = ops.mean(ops.square(decoded - images), axis=(1, 2, 3))
        return pyramid_l1(decoded, images) + SQUARE_WEIGHT * square


class LatentsAndPictures:
    """Batches of white latents under a little noise, and their pictures: of one shard until as many were taken as it has."""

    def __init__(self, grammar: Grammar, rows: int) -> None:
        """
        Raises:
            FileNotFoundError: No scenes of the grammar have been encoded.
        """
        self.grammar = grammar
        self.rows = rows
        self.shards = sorted(latent_shards(grammar).items())
        if not self.shards:
            raise FileNotFoundError(f"no scenes of the grammar {grammar} have been encoded here: python -m training latents")
        self.whitening = measure_whitening()
        self.drawn = lru_cache(maxsize=1)(self._drawn)

    def __call__(self, step: int, rng: np.random.Generator) -> Batch:
        latents, images = self.drawn(step * self.rows // SHARD % len(self.shards))
        picks = rng.integers(len(latents), size=self.rows)
        white = self.whitening(latents[picks])
        noise = rng.standard_normal(white.shape, dtype=np.float32)
        return {"latents": white + NOISE * noise, "images": images[picks].astype(np.float32) / 127.5 - 1}

    def _drawn(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Latents of a shard as they were encoded, and its pictures, uint8.

        Raises:
            ValueError: The world has changed since.
        """
        number, path = self.shards[place]
        shard = load_arrays(path)
        drawn = drawn_scenes(self.grammar, len(shard["latents"]), (SEED, number))
        if not all(np.array_equal(drawn[name], shard[name]) for name in ("codes", "boxes")):
            raise ValueError(f"{path} was encoded of other scenes than are drawn now: remove it, and encode them again")
        return shard["latents"], drawn["images"]


def train_tiny_decoder(
    *,
    grammar: Grammar = Grammar.FULL,
    steps: int = 20_000,
    rows: int = 16,
    rate: float = 2e-3,
    decay: float = 0.2,
    minutes: float | None = None,
) -> None:
    """Trains on the cached scenes of a grammar.

    Raises:
        FileNotFoundError: There are none.
        ValueError: Its state is of a run for another autoencoder, or the scenes are of another world.
    """
    folder = cache_folder(STAGE)
    batches = LatentsAndPictures(grammar, rows)
    if (folder / "state.npz").exists():
        refuse_other_space(batches.whitening)
    (folder / SPACE).write_text(space_digest(batches.whitening))
    network = TinyDecoderTraining()
    schedule = Schedule(
        steps=steps, rate=rate, decay=decay, minutes=minutes, ema=0.99, weight_decay=0.0, seed=17, report_every=50
    )
    train(network, batches, schedule, STAGE, optimizer=Muon)
    use_averages(network)
    network.decoder.save_weights(folder / WEIGHTS)
    report(STAGE, **reconstruction(whitened_vae(batches.whitening)[0], network.decoder))


def space_digest(whitening: Whitening) -> str:
    """Changes when the trained encoder does, or what makes its latents white."""
    weights = [ops.convert_to_numpy(weight) for weight in trained_encoder().weights]
    return digest_of((*weights, whitening.mean, whitening.matrix))


def refuse_other_space(whitening: Whitening) -> None:
    """Refuses a tiny decoder that was trained for another autoencoder than the one that is trained here.

    Raises:
        ValueError: It was.
    """
    folder = cache_folder(STAGE)
    if (folder / SPACE).read_text() != space_digest(whitening):
        raise ValueError(f"the tiny decoder was trained for another autoencoder: remove {folder} and train it again")


def was_trained() -> bool:
    return (cache_folder(STAGE) / WEIGHTS).exists()


def build_trained() -> tuple[TinyVAEConfig, keras.Model]:
    """The tiny decoder that `train_tiny_decoder` left, and its configuration."""
    config = tiny_config()
    decoder = build_tiny_decoder(config)
    decoder.load_weights(cache_folder(STAGE) / WEIGHTS)
    return config, decoder
