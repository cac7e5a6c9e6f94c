"""The U-Net: v-prediction on cached latents, under a schedule that ends in noise."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from training.cache import cache_folder, report
from training.latents import Latents, load_latents, measure_whitening
from training.loop import Schedule, train, use_averages
from training.muon import Muon
from training.norm import use_fast_group_norm
from training.pictures import Batch
from training.text import text_config
from training.tokenizer import CONTEXT_LENGTH, load_tokenizer
from training.vae import start_blocks_as_identity
from training.world.captions import caption
from training.world.scenes import NO_THING, Grammar, from_code
from triptych.checkpoints.diffusers_folder import save_json
from triptych.checkpoints.weights import read_json
from triptych.models.config import UNetConfig
from triptych.models.text_encoder import build_text_encoder
from triptych.models.unet import build_unet

NO_PROMPT_SHARE = 0.1
BOX_WEIGHT = 3.0
LOG_RATIO_DEVIATION = 2.0  # of the noise levels that are trained, around as much signal as noise
UNIFORM_SHARE = 0.2  # of the rows whose timestep may be any, so that the ends are learnt too
LATENT_SIDE = 16
WEIGHTS = "unet.weights.h5"
SHAPE = "unet.json"  # the configuration of the weights beside it
TEXT_WEIGHTS = "text_encoder.weights.h5"
RELEASED = "unet-released"  # where `from-release` puts weights to begin with
ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
LOG_RATIOS = np.log(ALPHAS_CUMPROD / (1 - ALPHAS_CUMPROD))  # of signal to noise, falling


def unet_config() -> UNetConfig:
    """What a run from zero has: plain at 16x16; the text comes in at 8x8 and 4x4.

    4.9 million parameters, so that this U-Net, the inpainting one, the VAE and the text encoder are 30 MB in half precision.
    """
    return UNetConfig(
        block_out_channels=(64, 96, 112),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(2, 3, 4),
        cross_attention_dim=text_config().hidden_size,
        use_linear_projection=True,
        norm_num_groups=8,
    )


def save_shape(folder: Path, config: UNetConfig) -> None:
    """Writes what the weights of a folder are of."""
    save_json(folder / SHAPE, config.to_dict())


def load_shape(folder: Path) -> UNetConfig:
    """What the weights of a folder are of. A run goes on with the shape it began with, whatever one from zero has now."""
    return UNetConfig.from_dict(read_json(folder / SHAPE))


class UNetTraining(keras.Model):
    """Text encoder and U-Net, and the loss of each row."""

    def __init__(self, config: UNetConfig, *, train_text: bool = False) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(text_config())
        self.text_encoder.trainable = train_text
        self.unet = build_unet(config)
        start_blocks_as_identity(self.unet)

    def seen(self, batch: Any, noisy: Any) -> Any:
        """What the network sees of a batch, float32 (B, 16, 16, C)."""
        return noisy

    def call(self, batch: Any) -> Any:
        context = self.text_encoder({"tokens": batch["tokens"]})["context"]
        latents, noise = ops.cast(batch["latents"], "float32"), ops.cast(batch["noise"], "float32")
        alpha, sigma = ops.cast(batch["alpha"], "float32"), ops.cast(batch["sigma"], "float32")
        noisy, target = alpha * latents + sigma * noise, alpha * noise - sigma * latents
        seen = self.seen(batch, noisy)
        prediction = self.unet({"latents": seen, "timestep": batch["timestep"], "context": context})["prediction"]
        error = ops.square(ops.cast(prediction, "float32") - target) * ops.cast(batch["weight"], "float32")
        return ops.mean(error, axis=(1, 2, 3))


@dataclass(frozen=True, kw_only=True)
class Source:
    """Cached scenes, and the share of picks that come from them when so much of the run is done, 0..1."""

    scenes: Latents
    share: Callable[[float], float]


def share_of_two(progress: float) -> float:
    """The curriculum of the full grammar: mostly one thing first, then half and half, then more of two."""
    return 0.2 if progress < 0.25 else 0.5 if progress < 0.6 else 0.6


def sources_for(grammar: Grammar) -> list[Source]:
    """Where the rows of a batch come from."""
    scenes = load_latents(grammar)
    if grammar is not Grammar.FULL:
        return [Source(scenes=scenes, share=lambda progress: 1.0)]
    two = scenes.codes[:, 5] != NO_THING
    return [
        Source(scenes=scenes.where(~two), share=lambda progress: 1 - share_of_two(progress)),
        Source(scenes=scenes.where(two), share=share_of_two),
    ]


class Batches:
    """Batches of cached scenes with fresh words and fresh noise.

    Twins, whose things have swapped what they are called by, come together under one noise: all that tells them apart is the
    prompt.
    """

    def __init__(self, sources: list[Source], rows: int, progress: Callable[[int], float]) -> None:
        """
        Args:
            sources: Their shares add up to 1.
            rows: Of a batch.
            progress: How much of the run is done at a step, 0..1.
        """
        self.whitening = measure_whitening()
        self.tokenizer = load_tokenizer()
        self.sources = sources
        self.rows = rows
        self.progress = progress

    def __call__(self, step: int, rng: np.random.Generator) -> Batch:
        picks, like_before = self._picks(step, rng)
        latents = self.whitening(np.stack([source.latents[i] for source, i in picks]))
        unprompted = (rng.random(self.rows) < NO_PROMPT_SHARE) & ~like_before
        texts = [
            "" if silent else caption(from_code(source.codes[i]), rng)
            for (source, i), silent in zip(picks, unprompted, strict=True)
        ]
        timesteps, noise = random_timesteps(rng, self.rows), rng.standard_normal(latents.shape, dtype=np.float32)
        second = np.flatnonzero(like_before)
        timesteps[second], noise[second] = timesteps[second - 1], noise[second - 1]
        places = np.stack([place_weights(source.boxes[i]) for source, i in picks])
        return {
            **to_denoise(latents, timesteps, noise, places),
            "tokens": self.tokenizer.encode(texts, CONTEXT_LENGTH),
        }

    def _picks(self, step: int, rng: np.random.Generator) -> tuple[list[tuple[Latents, int]], np.ndarray]:
        """Scenes, and which of them are the twin of the one before, bool (rows,)."""
        progress = min(1.0, self.progress(step))
        shares = [source.share(progress) for source in self.sources]
        picks: list[tuple[Latents, int]] = []
        like_before: list[bool] = []
        while len(picks) < self.rows:
            scenes = self.sources[rng.choice(len(shares), p=shares)].scenes
            first = int(rng.integers(len(scenes.latents)))
            both = [first] if scenes.twins[first] < 0 else [first, int(scenes.twins[first])]
            picks += [(scenes, i) for i in both]
            like_before += [False, True][: len(both)]
        return picks[: self.rows], np.array(like_before[: self.rows])


def random_timesteps(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Timesteps 0..999, (rows,), most of them where there is about as much signal as noise.

    There the picture is decided. Of uniform ones half would be nearly pure noise, because this schedule ends in it. The error of
    v weighs the same everywhere: weights of min(SNR, 5) / (SNR + 1) (Hang et al. 2023, arXiv:2303.09556) teach hardly anything
    where colours and places come from, at a ratio of 1 to 40.
    """
    anywhere = rng.random(rows) < UNIFORM_SHARE
    wanted = rng.normal(0.0, LOG_RATIO_DEVIATION, rows)
    chosen = np.searchsorted(-LOG_RATIOS, -wanted).clip(0, len(LOG_RATIOS) - 1)
    return np.where(anywhere, rng.integers(0, len(LOG_RATIOS), rows), chosen)


def to_denoise(latents: np.ndarray, timesteps: np.ndarray, noise: np.ndarray, places: np.ndarray) -> Batch:
    """White latents (B, 16, 16, 4) with their noise, how much of each the network sees, and how much each error weighs.

    Args:
        timesteps: 0..999, (B,).
        noise: Of the latents' shape.
        places: Weights of the places, (B, 16, 16, 1).
    """
    alphas = ALPHAS_CUMPROD[timesteps].reshape(-1, 1, 1, 1)
    return {
        "latents": latents,
        "noise": noise,
        "timestep": timesteps.astype(np.float32),
        "alpha": np.sqrt(alphas).astype(np.float32),
        "sigma": np.sqrt(1 - alphas).astype(np.float32),
        "weight": places.astype(np.float32),
    }


def place_weights(boxes: np.ndarray) -> np.ndarray:
    """Threefold weight on the latents that a thing's box touches, (16, 16, 1)."""
    weights = np.ones((LATENT_SIDE, LATENT_SIDE, 1), np.float32)
    for left, top, right, bottom in boxes:
        rows = slice(int(top * LATENT_SIDE), int(np.ceil(bottom * LATENT_SIDE)))
        weights[rows, int(left * LATENT_SIDE) : int(np.ceil(right * LATENT_SIDE))] = BOX_WEIGHT
    return weights


class TwoRates(Muon):
    """Moves the text encoder at a tenth of the rate: it can parse already, and is not to forget it."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        # On TensorFlow this is the backend's own variable, which does not know its path.
        path = self._trainable_variables[self._get_variable_index(variable)].path
        factor = 0.1 if path.startswith("text_model.") else 1.0
        super().update_step(gradient, variable, learning_rate * factor)


def train_unet(
    *,
    grammar: Grammar = Grammar.FULL,
    steps: int = 30_000,
    rows: int = 32,
    rate: float = 6e-4,
    decay: float = 0.2,
    ema: float = 0.999,
    train_text: bool = False,
    minutes: float | None = None,
) -> None:
    """Trains on the cached latents of a grammar and keeps the averaged weights.

    A run without a state begins with what was learnt of a narrower grammar, or with what was released, where that is there, and
    keeps the shape of that.
    """
    use_fast_group_norm()
    stage = f"unet-{grammar}"
    folder = cache_folder(stage)
    goes_on = (folder / "state.npz").exists()
    before = None if goes_on else starting_weights(grammar)
    shape = load_shape(folder) if goes_on else load_shape(before.parent) if before else unet_config()
    save_shape(folder, shape)
    network = UNetTraining(shape, train_text=train_text)
    network.text_encoder.load_weights(cache_folder("text") / "encoder.weights.h5")
    if before:
        network.unet.load_weights(before)
        report(stage, begins_with=before.parent.name)
    schedule = Schedule(steps=steps, rate=rate, decay=decay, minutes=minutes, ema=ema, seed=41, report_every=100)
    started = time.time()
    batches = Batches(sources_for(grammar), rows, lambda step: schedule.progress(step, time.time() - started))
    train(network, batches, schedule, stage, optimizer=TwoRates)
    use_averages(network)
    network.unet.save_weights(folder / WEIGHTS)
    network.text_encoder.save_weights(folder / TEXT_WEIGHTS)


_WIDEST_FIRST = (Grammar.FULL, Grammar.ONE_THING, Grammar.FIRST_LIGHT)


def trained_stage() -> str:
    """The widest grammar that a U-Net was trained on here.

    Raises:
        FileNotFoundError: There is none.
    """
    for grammar in _WIDEST_FIRST:
        if (cache_folder(f"unet-{grammar}") / WEIGHTS).exists():
            return f"unet-{grammar}"
    raise FileNotFoundError("no U-Net has been trained here: python -m training unet")


def starting_weights(grammar: Grammar) -> Path | None:
    """What was learnt of a narrower grammar, the widest of them first, or what was released; None where nothing is there."""
    narrower = [f"unet-{each}" for each in _WIDEST_FIRST[_WIDEST_FIRST.index(grammar) + 1 :]]
    paths = [cache_folder(stage) / WEIGHTS for stage in (*narrower, RELEASED)]
    return next((path for path in paths if path.exists()), None)
