"""Stages with Stable Diffusion 1.5's tensor shapes and no network: each takes a set time and answers the same every time.

What a benchmark measures over them is everything that is not a network. `python -m benchmarks.stand_in STAGE --port PORT` serves
one.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import numpy as np

from triptych.contract import (
    Decoded,
    DecodeRequest,
    DecoderIdentity,
    Denoised,
    DenoiseRequest,
    DiffusionIdentity,
    Encoded,
    EncodeRequest,
    Numerics,
    Progress,
    StageName,
    Task,
    TextEncoderIdentity,
)
from triptych.pipeline import Pipeline
from triptych.serving.logs import configure_logging
from triptych.serving.server import serve
from triptych.serving.settings import STAGE_PORTS, StageSettings, read_settings
from triptych.serving.stage_app import stage_app

WIDTH = HEIGHT = 512
CONTEXT_SHAPE = (77, 768)
LATENTS_SHAPE = (HEIGHT // 8, WIDTH // 8, 4)
FILE_BYTES = 450_000
"""A PNG of a photograph at 512x512 is about this large. It is not encoded here: that is the decoder's work, wherever it runs."""

NUMERICS = Numerics(engine="stand-in", version="1", precision="float32", instruction_set="none", device="none")
_NOISE = np.random.default_rng(0)


@dataclass(frozen=True)
class _StandIn:
    seconds: float = 0.0

    def start(self) -> None:
        """There is nothing to load."""

    def stop(self, *, hand_back_all_at: float) -> None:
        """Nothing of it takes long."""

    def close(self) -> None:
        """There is nothing to let go of."""

    @property
    def is_at_work(self) -> bool:
        return False


@dataclass(frozen=True)
class StandInTextEncoder(_StandIn):
    context = _NOISE.standard_normal(CONTEXT_SHAPE, np.float32)

    async def identity(self) -> TextEncoderIdentity:
        return TextEncoderIdentity(
            model="stand-in",
            weights_digest="0" * 64,
            numerics=NUMERICS,
            text_space="sd-1",
            context_length=CONTEXT_SHAPE[0],
            context_width=CONTEXT_SHAPE[1],
        )

    async def encode(self, request: EncodeRequest, *, deadline: float | None = None) -> Encoded:
        await asyncio.sleep(self.seconds)
        return Encoded(context=np.stack([self.context] * len(request.prompts)))


@dataclass(frozen=True)
class StandInDiffusion(_StandIn):
    latents = _NOISE.standard_normal(LATENTS_SHAPE, np.float32)

    async def identity(self) -> DiffusionIdentity:
        return DiffusionIdentity(
            model="stand-in",
            weights_digest="0" * 64,
            numerics=NUMERICS,
            text_space="sd-1",
            latent_space="sd-1",
            context_length=CONTEXT_SHAPE[0],
            context_width=CONTEXT_SHAPE[1],
            latent_channels=LATENTS_SHAPE[2],
            downsampling=8,
            prediction_type="epsilon",
            tasks=(Task.TEXT_TO_IMAGE,),
            sizes=((WIDTH, HEIGHT),),
            samplers=("ddim",),
            default_num_steps=20,
            default_guidance_scale=7.5,
        )

    async def denoise(
        self, request: DenoiseRequest, *, deadline: float | None = None
    ) -> AsyncGenerator[Progress | Denoised, None]:
        await asyncio.sleep(self.seconds)
        yield Denoised(latents=np.stack([self.latents] * len(request.seeds)))


@dataclass(frozen=True)
class StandInDecoder(_StandIn):
    file = _NOISE.bytes(FILE_BYTES)

    async def identity(self) -> DecoderIdentity:
        return DecoderIdentity(
            model="stand-in",
            weights_digest="0" * 64,
            numerics=NUMERICS,
            latent_space="sd-1",
            latent_channels=LATENTS_SHAPE[2],
            scaling_factor=0.18215,
            downsampling=8,
            sizes=((WIDTH, HEIGHT),),
        )

    async def decode(self, request: DecodeRequest, *, deadline: float | None = None) -> Decoded:
        await asyncio.sleep(self.seconds)
        return Decoded(images=(self.file,) * len(request.latents))


def stand_in_pipeline(diffusion_seconds: float) -> Pipeline:
    """All three in this process."""
    return Pipeline(StandInTextEncoder(), StandInDiffusion(diffusion_seconds), StandInDecoder())


def make_stand_in(stage: StageName, seconds: float) -> StandInTextEncoder | StandInDiffusion | StandInDecoder:
    if stage is StageName.TEXT_ENCODER:
        return StandInTextEncoder(seconds)
    return StandInDiffusion(seconds) if stage is StageName.DIFFUSION else StandInDecoder(seconds)


def main() -> None:
    """Serves one stand-in."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("stage", choices=list(StageName), type=StageName)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=0.0)
    arguments = parser.parse_args()
    settings = read_settings(StageSettings, port=arguments.port, log_level="warning")
    configure_logging(log_format=settings.log_format, log_level=settings.log_level)
    serve(stage_app(make_stand_in(arguments.stage, arguments.seconds), settings), settings, port=STAGE_PORTS[arguments.stage])


if __name__ == "__main__":
    main()
