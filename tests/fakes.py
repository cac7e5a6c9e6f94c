"""Three stages without networks: deterministic NumPy functions that keep the Protocols, with identities like Stable Diffusion's.

Each remembers its requests in `asked`, fails with `failure` where one is set, and waits for `gate` where one is given, so that
a test decides when work is done; `await stage.arrivals.get()` waits until a request has come. `started=False` makes a stage
that is not ready until `start` was called.
"""

from __future__ import annotations

import asyncio
import io
import zlib
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Generic, TypeVar

import numpy as np
from PIL import Image, PngImagePlugin

from triptych.contract import (
    IMAGE_TEXT_KEYWORD,
    Decoded,
    DecodeRequest,
    DecoderIdentity,
    Denoised,
    DenoiseRequest,
    DiffusionIdentity,
    Encoded,
    EncodeRequest,
    ImageFormat,
    Numerics,
    Progress,
    Task,
    TextEncoderIdentity,
    UInt8,
    check_decode,
    check_denoise,
    sha256_of,
)
from triptych.errors import InvalidValue, StageNotReady

NUMERICS = Numerics(engine="fake", version="1.0", precision="float32", instruction_set="none", device="cpu")
SIZES = ((64, 64), (96, 64), (64, 96))

TEXT_ENCODER = TextEncoderIdentity(
    model="fake",
    weights_digest="1" * 64,
    numerics=NUMERICS,
    exact=True,
    exact_batch_sizes=(1, 2, 4),
    text_space="sd-1",
    context_length=77,
    context_width=768,
)
DIFFUSION = DiffusionIdentity(
    model="fake",
    weights_digest="2" * 64,
    numerics=NUMERICS,
    exact=True,
    exact_batch_sizes=(1, 2, 4),
    text_space="sd-1",
    latent_space="sd-1",
    context_length=77,
    context_width=768,
    latent_channels=4,
    downsampling=8,
    prediction_type="epsilon",
    tasks=(Task.TEXT_TO_IMAGE,),
    sizes=SIZES,
    samplers=("ddim", "euler"),
    default_num_steps=4,
    default_guidance_scale=7.5,
)
DECODER = DecoderIdentity(
    model="fake",
    weights_digest="3" * 64,
    numerics=NUMERICS,
    exact=True,
    exact_batch_sizes=(1, 2, 4),
    latent_space="sd-1",
    latent_channels=4,
    scaling_factor=0.18215,
    downsampling=8,
    sizes=SIZES,
)

Request = TypeVar("Request")


class FakeStage(Generic[Request]):
    """What the three fakes share."""

    name: str

    def __init__(
        self,
        *,
        failure: Exception | None = None,
        gate: asyncio.Event | None = None,
        delay_seconds: float = 0.0,
        started: bool = True,
    ) -> None:
        self.failure = failure
        self.gate = gate
        self.delay_seconds = delay_seconds
        self.started = started
        self.closed = False
        self.asked: list[Request] = []
        self.deadlines: list[float | None] = []
        self.arrivals: asyncio.Queue[Request] = asyncio.Queue()
        self.cancelled = 0

    def start(self) -> None:
        self.started = True

    def close(self) -> None:
        self.started = False
        self.closed = True

    def check_started(self) -> None:
        if not self.started:
            raise StageNotReady(f"the {self.name} stage is still starting", stage=self.name)

    async def work(self, request: Request, deadline: float | None) -> None:
        self.check_started()
        self.asked.append(request)
        self.deadlines.append(deadline)
        self.arrivals.put_nowait(request)
        try:
            await asyncio.sleep(self.delay_seconds)
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failure is not None:
            raise self.failure


class FakeTextEncoder(FakeStage[EncodeRequest]):
    """Each prompt's context is noise drawn from the prompt. A token is a word."""

    name = "text_encoder"
    profile = TEXT_ENCODER

    async def identity(self) -> TextEncoderIdentity:
        self.check_started()
        return self.profile

    async def encode(self, request: EncodeRequest, *, deadline: float | None = None) -> Encoded:
        await self.work(request, deadline)
        warnings = tuple(filter(None, (self._warn(prompt, request.truncate) for prompt in request.prompts)))
        return Encoded(context=np.stack([self._context(prompt) for prompt in request.prompts]), warnings=warnings)

    def _warn(self, prompt: str, truncate: bool) -> str | None:
        length = self.profile.context_length
        if (count := len(prompt.split())) <= length:
            return None
        if not truncate:
            raise InvalidValue(f"the prompt has {count} tokens, the model takes {length}; truncate=true cuts it", param="prompt")
        return f"the prompt was cut from {count} to {length} tokens"

    def _context(self, prompt: str) -> np.ndarray:
        words = " ".join(prompt.split()[: self.profile.context_length])
        shape = (self.profile.context_length, self.profile.context_width)
        return np.random.default_rng(zlib.crc32(words.encode())).standard_normal(shape, np.float32)


class FakeDiffusion(FakeStage[DenoiseRequest]):
    """Latents are noise drawn from the seed, coloured by everything else that a picture depends on.

    Attributes:
        pace: Each evaluation takes one of these, where it is given: a test decides how far the denoising comes.
        evaluations: How many there were.
    """

    name = "diffusion"
    profile = DIFFUSION
    pace: asyncio.Semaphore | None = None
    evaluations = 0

    async def identity(self) -> DiffusionIdentity:
        self.check_started()
        return self.profile

    async def denoise(
        self, request: DenoiseRequest, *, deadline: float | None = None
    ) -> AsyncGenerator[Progress | Denoised, None]:
        check_denoise(request, await self.identity())
        await self.work(request, deadline)
        for position in range(1, request.num_steps + 1):
            if self.pace is not None:
                await self.pace.acquire()
            self.evaluations += 1
            yield Progress(position=position, num_evaluations=request.num_steps)
            await asyncio.sleep(0)
        yield Denoised(latents=np.stack([self._latents(request, row) for row in range(len(request.seeds))]))

    def _latents(self, request: DenoiseRequest, row: int) -> np.ndarray:
        side = self.profile.downsampling
        shape = (request.height // side, request.width // side, self.profile.latent_channels)
        noise = np.random.default_rng(int(request.seeds[row])).standard_normal(shape, np.float32)
        if request.initial_noise is not None:
            noise = request.initial_noise[row % len(request.initial_noise)]
        colour = request.context[row % len(request.context)].mean()
        if request.unconditional_context is not None:
            colour -= request.unconditional_context[row % len(request.unconditional_context)].mean()
        colour *= np.float32(request.guidance_scale + request.num_steps + self.profile.samplers.index(request.sampler))
        return (noise + colour).astype(np.float32)


class FakeDecoder(FakeStage[DecodeRequest]):
    """Each latent becomes a square of its own colour. `tells_digests=False` makes it a decoder of somebody else."""

    name = "decoder"
    profile = DECODER
    tells_digests = True

    async def identity(self) -> DecoderIdentity:
        self.check_started()
        return self.profile

    async def decode(self, request: DecodeRequest, *, deadline: float | None = None) -> Decoded:
        check_decode(request, await self.identity())
        await self.work(request, deadline)
        images = self._paint(request.latents)
        digests = tuple(map(sha256_of, images)) if self.tells_digests else ()
        if request.image_format is None:
            return Decoded(images=images, pixels_sha256=digests)
        texts = request.image_texts or ("",) * len(images)
        return Decoded(
            images=tuple(encode_image(image, request.image_format, text) for image, text in zip(images, texts, strict=True)),
            pixels_sha256=digests,
        )

    def _paint(self, latents: np.ndarray) -> UInt8:
        colours = (np.tanh(latents[..., :3]) * 127.5 + 127.5).astype(np.uint8)
        side = self.profile.downsampling
        return np.ascontiguousarray(colours.repeat(side, axis=1).repeat(side, axis=2))


def encode_image(image: UInt8, image_format: ImageFormat, text: str = "") -> bytes:
    """A real file of a picture; a PNG carries the text."""
    file = io.BytesIO()
    options = {}
    if image_format is ImageFormat.PNG and text:
        chunks = PngImagePlugin.PngInfo()
        chunks.add_itxt(IMAGE_TEXT_KEYWORD, text)
        options["pnginfo"] = chunks
    Image.fromarray(image).save(file, format=image_format.value.upper(), **options)
    return file.getvalue()


def with_profile(stage, **changes):
    """The same stage with another identity."""
    stage.profile = replace(stage.profile, **changes)
    return stage
