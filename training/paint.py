"""Pictures from networks in this process: for contact sheets while training, and for benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from triptych.checkpoints.checkpoint import Checkpoint, Network, load_network
from triptych.models.tokenizer import Tokenizer
from triptych.sampling.guidance import guide
from triptych.sampling.noise import Purpose, normal
from triptych.sampling.samplers import make_plan
from triptych.sampling.schedule import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class Painter:
    """The networks of a model, and how it wants to be sampled."""

    tokenizer: Tokenizer
    context_length: int
    text_encoder: keras.Model
    unet: keras.Model
    decoder: keras.Model
    schedule: ScheduleConfig

    @classmethod
    def of(cls, files: Checkpoint) -> Painter:
        """The painter of a model."""
        return cls(
            tokenizer=Tokenizer.from_folder(files.tokenizer),
            context_length=files.text_encoder.max_position_embeddings,
            text_encoder=load_network(files, Network.TEXT_ENCODER),
            unet=load_network(files, Network.UNET),
            decoder=load_network(files, Network.VAE_DECODER),
            schedule=ScheduleConfig.from_dict(files.scheduler),
        )

    def paint(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        sampler: str = "ddim",
        num_steps: int = 25,
        guidance_scale: float = 3.0,
        rows: int = 32,
        side: int = 16,
    ) -> np.ndarray:
        """Pictures of the prompts, one a seed, uint8 (B, H, W, 3); `rows` of them at a time."""
        pictures = []
        for start in range(0, len(prompts), rows):
            part = slice(start, start + rows)
            latents = self._denoise(prompts[part], seeds[part], sampler, num_steps, guidance_scale, side)
            pictures.append(_predict(self.decoder, {"latents": latents}, "images"))
        images = (np.clip(np.concatenate(pictures), -1, 1) + 1) * 127.5
        return (images + 0.5).astype(np.uint8)

    def _denoise(
        self, prompts: Sequence[str], seeds: Sequence[int], sampler: str, num_steps: int, guidance_scale: float, side: int
    ) -> np.ndarray:
        count = len(prompts)
        plan = make_plan(sampler, self.schedule, num_steps)
        tokens = self.tokenizer.encode([*prompts, *[""] * count], self.context_length)
        context = _predict(self.text_encoder, {"tokens": tokens}, "context")
        shape = (side, side, 4)
        latents, state = plan.initial(np.stack([normal(seed, Purpose.INITIAL, 0, shape) for seed in seeds]))
        for position in range(plan.num_evaluations):
            seen = plan.network_input(latents, position)
            inputs = {
                "latents": np.concatenate([seen, seen]),
                "timestep": np.full(2 * count, plan.timesteps[position], np.float32),
                "context": context,
            }
            conditional, unconditional = np.split(_predict(self.unet, inputs, "prediction"), 2)
            noise = None
            if plan.needs_noise(position):
                noise = np.stack([normal(seed, Purpose.ANCESTRAL, position, shape) for seed in seeds])
            guided = guide(unconditional, conditional, guidance_scale)
            latents, state = plan.advance(latents, state, position, guided, noise)
        return latents


def _predict(network: keras.Model, inputs: dict[str, np.ndarray], output: str) -> np.ndarray:
    answer: Any = network.predict_on_batch(inputs)
    return np.asarray(answer[output], np.float32)
