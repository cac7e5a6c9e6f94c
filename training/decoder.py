"""The decoder once more, for a frozen encoder: sharper, and at ease with latents that are not quite what an encoder makes.

The latent space stays as it is, so this can be done at any time, before or after the U-Net.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from training.ahead import drawing_workers
from training.cache import cache_folder, report
from training.latents import fold_whitening, measure_whitening
from training.loop import Schedule, train, use_averages
from training.norm import use_fast_group_norm
from training.pictures import CropsAndFrames
from training.vae import edge_l1, pyramid_l1, reconstruction, vae_config
from triptych.models.vae import build_vae_decoder, build_vae_encoder

NOISE = 0.05  # deviation on white latents
SQUARE_WEIGHT = 4.0  # less than the whole autoencoder's: squares blur an edge that may be here or there
ENERGY_WEIGHT = 4.0
WINDOW = 8  # pixels within which an edge may run elsewhere
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
        square = SQUARE_WEIGHT * ops.mean(ops.square(decoded - images), axis=(1, 2, 3))
        return pyramid_l1(decoded, images) + edge_l1(decoded, images) + square + ENERGY_WEIGHT * edge_energy(decoded, images)


def edge_energy(x: Any, y: Any) -> Any:
    """How much the strength of the edges around a place differs, wherever exactly they run: what a blurred edge lacks; (B,)."""
    return sum(
        ops.mean(ops.abs(_energy(along(x)) - _energy(along(y))), axis=(1, 2, 3))
        for along in (lambda z: z[:, :, 1:] - z[:, :, :-1], lambda z: z[:, 1:] - z[:, :-1])
    )


def _energy(differences: Any) -> Any:
    return ops.sqrt(ops.average_pool(ops.square(differences), WINDOW, WINDOW // 2) + 1e-4)


def train_decoder(*, steps: int = 20_000, rows: int = 4, rate: float = 3e-4, minutes: float | None = None) -> None:
    """Goes on with the decoder alone."""
    use_fast_group_norm()
    network = DecoderTraining()
    network.start_from(cache_folder("vae"))
    schedule = Schedule(steps=steps, rate=rate, ema=0.99, weight_decay=0.0, seed=13, report_every=25, minutes=minutes)
    batches = CropsAndFrames(rows=0, frame_rows=rows, every=1)
    train(network, batches, schedule, "decoder", workers=drawing_workers())
    use_averages(network)
    network.decoder.save_weights(cache_folder("decoder") / WEIGHTS)
    report("decoder", **reconstruction(network.encoder, network.decoder))
