"""The inpainting sibling: the trained U-Net with five channels more, which sees a mask and what the mask leaves of a picture.

Text encoder and VAE are those of the U-Net that it begins with, and stay as they are: the two models share them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from training.cache import cache_folder, digest_of, report
from training.latents import Whitening, measure_whitening
from training.loop import Schedule, train, use_averages
from training.masked_latents import MaskedLatents, load_masked_latents
from training.norm import use_fast_group_norm
from training.pictures import Batch
from training.tokenizer import CONTEXT_LENGTH, load_tokenizer
from training.unet import (
    NO_PROMPT_SHARE,
    RELEASED,
    TEXT_WEIGHTS,
    WEIGHTS,
    UNetTraining,
    load_shape,
    place_weights,
    random_timesteps,
    save_shape,
    to_denoise,
    trained_stage,
)
from training.world.captions import caption
from training.world.scenes import Grammar, from_code
from triptych.models.config import UNetConfig
from triptych.models.unet import build_unet

STAGE = "inpainting"
MASK_WEIGHT = 3.0  # inside the mask, and there again threefold where a thing is; what is outside the network can see
SPACES = "spaces.txt"  # digest of the text encoder and the whitening that it was trained with


class InpaintingTraining(UNetTraining):
    """As `UNetTraining`, for a network that sees mask and masked picture behind the latents, in diffusers' order."""

    def seen(self, batch: Any, noisy: Any) -> Any:
        return ops.concatenate([noisy, ops.cast(batch["mask"], "float32"), ops.cast(batch["masked"], "float32")], axis=-1)


class MaskedBatches:
    """Batches of cached scenes under masks, with fresh words for all that is in them and fresh noise."""

    def __init__(self, scenes: MaskedLatents, rows: int) -> None:
        self.scenes = scenes
        self.rows = rows
        self.whitening = measure_whitening()
        self.tokenizer = load_tokenizer()

    def __call__(self, step: int, rng: np.random.Generator) -> Batch:
        picks = rng.integers(len(self.scenes.latents), size=self.rows)
        latents, masked = self.whitening(self.scenes.latents[picks]), self.whitening(self.scenes.masked[picks])
        masks = self.scenes.masks[picks].astype(np.float32)
        places = np.stack([place_weights(boxes) for boxes in self.scenes.boxes[picks]])
        silent = rng.random(self.rows) < NO_PROMPT_SHARE
        texts = ["" if none else caption(from_code(self.scenes.codes[i]), rng) for none, i in zip(silent, picks, strict=True)]
        timesteps, noise = random_timesteps(rng, self.rows), rng.standard_normal(latents.shape, dtype=np.float32)
        return {
            **to_denoise(latents, timesteps, noise, mask_weights(masks, places)),
            "mask": masks,
            "masked": masked,
            "tokens": self.tokenizer.encode(texts, CONTEXT_LENGTH),
        }


def mask_weights(masks: np.ndarray, places: np.ndarray) -> np.ndarray:
    """1 outside a mask, and inside it MASK_WEIGHT times the weight of the place."""
    return 1 + masks * (MASK_WEIGHT * places - 1)


def widened(network: keras.Model, config: UNetConfig) -> keras.Model:
    """A U-Net with the weights of another that has fewer input channels; the kernels of the others are zero.

    So it begins with the prediction of the other one, whatever the further channels say.
    """
    wide = build_unet(config, kernel_initializer="zeros")
    for ours, theirs in zip(wide.weights, network.weights, strict=True):
        values = ops.convert_to_numpy(theirs)
        if more := ours.shape[-2] - values.shape[-2] if values.ndim == 4 else 0:
            values = np.concatenate([values, np.zeros((*values.shape[:2], more, values.shape[3]), values.dtype)], axis=2)
        ours.assign(values)
    return wide


def train_inpainting(
    *,
    grammar: Grammar = Grammar.FULL,
    steps: int = 20_000,
    rows: int = 32,
    rate: float = 4e-4,
    decay: float = 0.2,
    ema: float = 0.999,
    minutes: float | None = None,
) -> None:
    """Trains on the cached masked scenes of a grammar.

    A run without a state begins with the U-Net that was trained here, or else with the released one, and has its shape.

    Raises:
        FileNotFoundError: There is neither, or no masked scenes.
        ValueError: Its state is of a run with another text encoder or autoencoder.
    """
    use_fast_group_norm()
    folder = cache_folder(STAGE)
    origin, text = _origin()
    goes_on = (folder / "state.npz").exists()
    shape = load_shape(folder) if goes_on else replace(load_shape(origin), in_channels=9)
    save_shape(folder, shape)
    network = InpaintingTraining(shape)
    network.text_encoder.load_weights(text)
    whitening = measure_whitening()
    if goes_on:
        refuse_other_spaces(network.text_encoder, whitening)
    else:
        network.unet.set_weights(_widened_weights(origin, shape))
        report(STAGE, begins_with=origin.name)
    (folder / SPACES).write_text(spaces_digest(network.text_encoder, whitening))
    schedule = Schedule(steps=steps, rate=rate, decay=decay, minutes=minutes, ema=ema, seed=43, report_every=100)
    train(network, MaskedBatches(load_masked_latents(grammar), rows), schedule, STAGE)
    use_averages(network)
    network.unet.save_weights(folder / WEIGHTS)


def _origin() -> tuple[Path, Path]:
    """The folder of the U-Net to begin with, and the weights of the text encoder that it knows."""
    released = cache_folder(RELEASED)
    try:
        trained = cache_folder(trained_stage())
    except FileNotFoundError:
        if not (released / WEIGHTS).exists():
            raise
        return released, cache_folder("text") / "encoder.weights.h5"
    return trained, trained / TEXT_WEIGHTS


def _widened_weights(origin: Path, shape: UNetConfig) -> list[np.ndarray]:
    network = build_unet(load_shape(origin))
    network.load_weights(origin / WEIGHTS)
    return [ops.convert_to_numpy(weight) for weight in widened(network, shape).weights]


def spaces_digest(text_encoder: keras.Model, whitening: Whitening) -> str:
    """Changes when the text encoder does, or the encoder of pictures, on whose latents the whitening was measured."""
    weights = [ops.convert_to_numpy(weight) for weight in text_encoder.weights]
    return digest_of((*weights, whitening.mean, whitening.matrix))


def refuse_other_spaces(text_encoder: keras.Model, whitening: Whitening) -> None:
    """Refuses a sibling that was trained with another text encoder or autoencoder than these.

    Raises:
        ValueError: It was.
    """
    if (cache_folder(STAGE) / SPACES).read_text() != spaces_digest(text_encoder, whitening):
        raise ValueError(
            "the inpainting sibling was trained with another text encoder or autoencoder, so the two models would share "
            f"neither: remove {cache_folder(STAGE)} and train it again"
        )


def build_trained() -> tuple[UNetConfig, keras.Model]:
    """The sibling that `train_inpainting` left, and its configuration."""
    config = load_shape(cache_folder(STAGE))
    network = build_unet(config)
    network.load_weights(cache_folder(STAGE) / WEIGHTS)
    return config, network
