"""The autoencoder: first on crops, then on full frames; then its latents are whitened."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from training.ahead import drawing_workers
from training.cache import cache_folder, report
from training.loop import Schedule, train, use_averages
from training.norm import use_fast_group_norm
from training.pictures import CropsAndFrames
from training.world.draw import draw
from training.world.scenes import SHAPES, Grammar, Scene, Thing, random_scene
from triptych.models.config import VAEConfig
from triptych.models.vae import build_vae_decoder, build_vae_encoder

SQUARE_WEIGHT = 16.0  # against the sum of three absolute differences: edges, where the large errors are, count for more
KL_WEIGHT = 1e-4  # on the mean over latent numbers; the weight of the sum over four channels is a quarter of it


def vae_config(scaling_factor: float = 1.0) -> VAEConfig:
    """f8, four channels."""
    return VAEConfig(
        block_out_channels=(24, 48, 96, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=scaling_factor,
    )


class VAETraining(keras.Model):
    """Encoder, sample, decoder, and the loss of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = build_vae_encoder(vae_config())
        self.decoder = build_vae_decoder(vae_config())
        # Noise as large as the signal, which is what logvar 0 means at first, teaches the decoder to ignore its input.
        bias = self.encoder.get_layer("quant_conv").bias
        bias.assign(np.repeat(np.array([0.0, -6.0], np.float32), 4))
        for network in (self.encoder, self.decoder):
            start_blocks_as_identity(network)

    def call(self, batch: Any) -> Any:
        images = batch["images"]
        latents = self.encoder({"images": images})
        mean, logvar = ops.cast(latents["mean"], "float32"), ops.cast(latents["logvar"], "float32")
        sample = mean + ops.exp(0.5 * logvar) * ops.cast(batch["noise"], "float32")
        decoded = ops.cast(self.decoder({"latents": sample})["images"], "float32")
        kl = 0.5 * ops.mean(ops.square(mean) + ops.exp(logvar) - 1 - logvar, axis=(1, 2, 3))
        images = ops.cast(images, "float32")
        square = ops.mean(ops.square(decoded - images), axis=(1, 2, 3))
        return pyramid_l1(decoded, images) + SQUARE_WEIGHT * square + KL_WEIGHT * kl


def start_blocks_as_identity(network: keras.Model) -> None:
    """Residual blocks and attention begin by adding nothing. Measured on the VAE: loss 0.83 after 75 steps instead of 1.1."""
    for layer in network.layers:
        if layer.name.endswith((".conv2", ".conv.4", ".to_out.0", ".proj_out")):
            layer.kernel.assign(np.zeros(layer.kernel.shape, np.float32))


def pyramid_l1(x: Any, y: Any, levels: int = 3) -> Any:
    """Mean absolute difference at full, half and quarter size, summed; (B,)."""
    difference = x - y
    loss = ops.mean(ops.abs(difference), axis=(1, 2, 3))
    for _ in range(levels - 1):
        difference = ops.average_pool(difference, 2, 2)
        loss = loss + ops.mean(ops.abs(difference), axis=(1, 2, 3))
    return loss


def edge_l1(x: Any, y: Any) -> Any:
    """Mean absolute difference of the differences between neighbouring pixels: what a blurred edge lacks; (B,)."""
    difference = x - y
    across, down = difference[:, :, 1:] - difference[:, :, :-1], difference[:, 1:] - difference[:, :-1]
    return ops.mean(ops.abs(across), axis=(1, 2, 3)) + ops.mean(ops.abs(down), axis=(1, 2, 3))


def train_vae(
    *, steps: int = 20_000, rows: int = 8, rate: float = 4e-4, decay: float = 0.2, minutes: float | None = None
) -> None:
    """Trains on crops, `rows` a batch, and one step in four on a quarter as many full frames, which are as much work.

    A run without a state begins with the weights that are in the stage's folder, if there are any.
    """
    use_fast_group_norm()
    folder = cache_folder("vae")
    network = VAETraining()
    if (folder / "encoder.weights.h5").exists():
        network.encoder.load_weights(folder / "encoder.weights.h5")
        network.decoder.load_weights(folder / "decoder.weights.h5")
        if not (folder / "state.npz").exists():
            report("vae", begins_with=reconstruction(network.encoder, network.decoder))
    batches = CropsAndFrames(rows=rows, frame_rows=max(1, rows // 4), every=4)
    schedule = Schedule(
        steps=steps,
        rate=rate,
        decay=decay,
        minutes=minutes,
        warm_up=50,
        ema=0.99,
        weight_decay=0.0,
        seed=11,
        report_every=50,
        checkpoint_seconds=60,
    )
    train(network, batches, schedule, "vae", workers=drawing_workers())
    use_averages(network)
    network.encoder.save_weights(folder / "encoder.weights.h5")
    network.decoder.save_weights(folder / "decoder.weights.h5")
    report("vae", **reconstruction(network.encoder, network.decoder))


def reconstruction(encoder: keras.Model, decoder: keras.Model, *, pictures: int = 64) -> dict[str, Any]:
    """Peak signal to noise in dB of full frames through the mean latents: over all, and for the worst shape."""
    rng = np.random.default_rng(2024)
    by_shape: dict[str, list[float]] = {shape: [] for shape in SHAPES}
    for i in range(pictures):
        shape = SHAPES[i % len(SHAPES)]
        scene = random_scene(rng, Grammar.ONE_THING)
        first = scene.things[0]
        thing = Thing(colour=first.colour, shape=shape, size=first.size, place=first.place)
        image = draw(Scene(things=(thing,), background=scene.background), rng).image[None].astype(np.float32)
        mean = encoder.predict_on_batch({"images": image / 127.5 - 1})["mean"]
        decoded = np.asarray(decoder.predict_on_batch({"latents": mean})["images"], np.float32)
        error = np.square((np.clip(decoded, -1, 1) + 1) * 127.5 - image).mean()
        by_shape[shape].append(float(10 * np.log10(255**2 / error)))
    means = {shape: float(np.mean(values)) for shape, values in by_shape.items()}
    worst = min(means, key=means.__getitem__)
    return {"psnr": round(float(np.mean(list(means.values()))), 2), "worst_psnr": round(means[worst], 2), "worst_shape": worst}
