"""The U-Net: v-prediction on cached latents, under a schedule that ends in noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from training.cache import cache_folder
from training.latents import Latents, load_latents, measure_whitening
from training.loop import Schedule, train, use_averages
from training.norm import use_fast_group_norm
from training.pictures import Batch
from training.text import text_config
from training.tokenizer import CONTEXT_LENGTH, load_tokenizer
from training.vae import start_blocks_as_identity
from training.world.captions import caption
from training.world.scenes import NO_THING, Grammar, from_code
from triptych.models.config import UNetConfig
from triptych.models.text_encoder import build_text_encoder
from triptych.models.unet import build_unet

NO_PROMPT_SHARE = 0.1
BOX_WEIGHT = 3.0
SNR_LIMIT = 5.0
LATENT_SIDE = 16
WEIGHTS = "unet.weights.h5"
TEXT_WEIGHTS = "text_encoder.weights.h5"
ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def unet_config() -> UNetConfig:
    """Plain at 16x16; the text comes in at 8x8 and 4x4."""
    return UNetConfig(
        block_out_channels=(64, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(2, 3, 4),
        cross_attention_dim=text_config().hidden_size,
        use_linear_projection=True,
        norm_num_groups=8,
    )


class UNetTraining(keras.Model):
    """Text encoder and U-Net, and the loss of each row.

    min-SNR weighting of v-prediction is min(SNR, 5) / (SNR + 1) (Hang et al. 2023, arXiv:2303.09556).
    """

    def __init__(self, *, train_text: bool = False) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(text_config())
        self.text_encoder.trainable = train_text
        self.unet = build_unet(unet_config())
        start_blocks_as_identity(self.unet)

    def call(self, batch: Any) -> Any:
        context = self.text_encoder({"tokens": batch["tokens"]})["context"]
        latents, noise = ops.cast(batch["latents"], "float32"), ops.cast(batch["noise"], "float32")
        alpha, sigma = ops.cast(batch["alpha"], "float32"), ops.cast(batch["sigma"], "float32")
        noisy, target = alpha * latents + sigma * noise, alpha * noise - sigma * latents
        prediction = self.unet({"latents": noisy, "timestep": batch["timestep"], "context": context})["prediction"]
        error = ops.square(ops.cast(prediction, "float32") - target) * ops.cast(batch["weight"], "float32")
        return ops.mean(error, axis=(1, 2, 3))


@dataclass(frozen=True, kw_only=True)
class Source:
    """Cached scenes, and the share of a batch's rows that come from them at a step."""

    scenes: Latents
    share: Callable[[int], float]


def sources_for(grammar: Grammar, steps: int) -> list[Source]:
    """Where the rows of a batch come from. The full grammar begins with one thing, and gives more and more to two."""
    scenes = load_latents(grammar)
    if grammar is not Grammar.FULL:
        return [Source(scenes=scenes, share=lambda step: 1.0)]
    two = scenes.codes[:, 5] != NO_THING

    def share_of_two(step: int) -> float:
        return 0.15 if step < 0.2 * steps else 0.5 if step < 0.5 * steps else 0.6

    return [
        Source(scenes=scenes.where(~two), share=lambda step: 1 - share_of_two(step)),
        Source(scenes=scenes.where(two), share=share_of_two),
    ]


class Batches:
    """Batches of cached scenes with fresh words and fresh noise."""

    def __init__(self, sources: list[Source], rows: int) -> None:
        self.whitening = measure_whitening()
        self.tokenizer = load_tokenizer()
        self.sources = sources
        self.rows = rows

    def __call__(self, step: int, rng: np.random.Generator) -> Batch:
        shares = [source.share(step) for source in self.sources]
        chosen = [self.sources[i].scenes for i in rng.choice(len(shares), self.rows, p=shares)]
        picks = [(scenes, int(rng.integers(len(scenes.latents)))) for scenes in chosen]
        latents = self.whitening(np.stack([source.latents[i] for source, i in picks]))
        texts = ["" if rng.random() < NO_PROMPT_SHARE else caption(from_code(source.codes[i]), rng) for source, i in picks]
        timesteps = rng.integers(0, 1000, self.rows)
        alphas = ALPHAS_CUMPROD[timesteps].reshape(-1, 1, 1, 1)
        ratio = alphas / (1 - alphas)
        weight = np.minimum(ratio, SNR_LIMIT) / (ratio + 1)
        places = np.stack([place_weights(source.boxes[i]) for source, i in picks])
        return {
            "latents": latents,
            "noise": rng.standard_normal(latents.shape, dtype=np.float32),
            "timestep": timesteps.astype(np.float32),
            "alpha": np.sqrt(alphas).astype(np.float32),
            "sigma": np.sqrt(1 - alphas).astype(np.float32),
            "weight": (weight * places).astype(np.float32),
            "tokens": self.tokenizer.encode(texts, CONTEXT_LENGTH),
        }


def place_weights(boxes: np.ndarray) -> np.ndarray:
    """Threefold weight on the latents that a thing's box touches, (16, 16, 1)."""
    weights = np.ones((LATENT_SIDE, LATENT_SIDE, 1), np.float32)
    for left, top, right, bottom in boxes:
        rows = slice(int(top * LATENT_SIDE), int(np.ceil(bottom * LATENT_SIDE)))
        weights[rows, int(left * LATENT_SIDE) : int(np.ceil(right * LATENT_SIDE))] = BOX_WEIGHT
    return weights


class TwoRates(keras.optimizers.AdamW):
    """AdamW that moves the text encoder at a tenth of the rate: it can parse already, and is not to forget it."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        factor = 0.1 if variable.path.startswith("text_model.") else 1.0
        super().update_step(gradient, variable, learning_rate * factor)


def train_unet(
    *,
    grammar: Grammar = Grammar.FULL,
    steps: int = 30_000,
    rows: int = 32,
    rate: float = 6e-4,
    decay: float = 0.2,
    train_text: bool = False,
    deadline: float | None = None,
) -> None:
    """Trains on the cached latents of a grammar and keeps the averaged weights.

    A run on the full grammar starts from what first light learnt, where that is there.
    """
    use_fast_group_norm()
    stage = f"unet-{grammar}"
    network = UNetTraining(train_text=train_text)
    network.text_encoder.load_weights(cache_folder("text") / "encoder.weights.h5")
    before = cache_folder(f"unet-{Grammar.FIRST_LIGHT}") / WEIGHTS
    if grammar is Grammar.FULL and before.exists():
        network.unet.load_weights(before)
    schedule = Schedule(steps=steps, rate=rate, decay=decay, ema=0.999, seed=41, report_every=100)
    batches = Batches(sources_for(grammar, steps), rows)
    train(network, batches, schedule, stage, deadline=deadline, optimizer=TwoRates)
    use_averages(network)
    network.unet.save_weights(cache_folder(stage) / WEIGHTS)
    network.text_encoder.save_weights(cache_folder(stage) / TEXT_WEIGHTS)


def trained_stage() -> str:
    """The furthest grammar that a U-Net was trained on."""
    done = [g for g in (Grammar.FULL, Grammar.ONE_THING, Grammar.FIRST_LIGHT) if (cache_folder(f"unet-{g}") / WEIGHTS).exists()]
    return f"unet-{done[0]}"
