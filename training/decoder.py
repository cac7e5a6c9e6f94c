"""The decoder once more, for a frozen encoder: sharper, and at ease with latents that are not quite what an encoder makes.

The latent space stays as it is, so this can be done at any time, before or after the U-Net.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from training.cache import cache_folder, report
from training.latents import fold_whitening, measure_whitening
from training.loop import Batch, Schedule, train, use_averages
from training.norm import use_fast_group_norm
from training.vae import edge_l1, pyramid_l1, reconstruction, vae_config
from training.world.draw import draw
from training.world.scenes import random_scene
from triptych.models.vae import build_vae_decoder, build_vae_encoder

FRAMES_A_BATCH = 2
NOISE = 0.05  # deviation on white latents
WEIGHTS = "decoder.weights.h5"


class DecoderTraining(keras.Model):
    """Frozen encoder, a little noise, decoder, and the loss of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = build_vae_encoder(vae_config())
        self.decoder = build_vae_decoder(vae_config())
        self.encoder.trainable = False

    def start_from(self, folder: Any) -> None:
        """Takes the weights of the whole autoencoder's training, and whitens them."""
        self.encoder.load_weights(folder / "encoder.weights.h5")
        self.decoder.load_weights(folder / "decoder.weights.h5")
        fold_whitening(self.encoder, self.decoder, measure_whitening())

    def call(self, batch: Any) -> Any:
        images = ops.cast(batch["images"], "float32")
        latents = ops.cast(self.encoder({"images": images})["mean"], "float32")
        noisy = ops.stop_gradient(latents) + NOISE * ops.cast(batch["noise"], "float32")
        decoded = ops.cast(self.decoder({"latents": noisy})["images"], "float32")
        return pyramid_l1(decoded, images) + edge_l1(decoded, images)


def frames(step: int, rng: np.random.Generator) -> Batch:
    """Full pictures and the noise for their latents."""
    images = np.stack([draw(random_scene(rng), rng).image for _ in range(FRAMES_A_BATCH)])
    rows, height, width, _ = images.shape
    noise = rng.standard_normal((rows, height // 8, width // 8, 4), dtype=np.float32)
    return {"images": images.astype(np.float32) / 127.5 - 1, "noise": noise}


def train_decoder(*, steps: int = 20_000, rate: float = 3e-4, deadline: float | None = None) -> None:
    """Goes on with the decoder alone."""
    use_fast_group_norm()
    network = DecoderTraining()
    network.start_from(cache_folder("vae"))
    schedule = Schedule(steps=steps, rate=rate, ema=0.99, weight_decay=0.0, seed=13, report_every=25)
    train(network, frames, schedule, "decoder", deadline=deadline)
    use_averages(network)
    network.decoder.save_weights(cache_folder("decoder") / WEIGHTS)
    report("decoder", **reconstruction(network.encoder, network.decoder))
