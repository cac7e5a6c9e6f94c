"""Three stages without networks: deterministic NumPy functions that keep the Protocols, with identities like Stable Diffusion's.

Each remembers its requests in `asked`, fails with `failure` where one is set, and waits for `gate` where one is given, so that
a test decides when work is done; `await stage.arrivals.get()` waits until a request has come. `started=False` makes a stage
that is not ready until `start` was called.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import zlib
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image, PngImagePlugin

from triptych.contract import (
    IMAGE_TEXT_KEYWORD,
    Decoded,
    DecodeRequest,
    DecoderIdentity,
    Denoised,
    DenoiseEvent,
    DenoiseRequest,
    DenoiseState,
    DiffusionIdentity,
    Encoded,
    EncodedImages,
    EncodeImagesRequest,
    EncodeRequest,
    ImageEncoderIdentity,
    ImageFormat,
    Memory,
    Numerics,
    Progress,
    State,
    Task,
    TextEncoderIdentity,
    UInt8,
    check_decode,
    check_denoise,
    check_encode_images,
    sha256_of,
)
from triptych.errors import Conflict, InvalidValue, StageNotReady

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

IMAGE_ENCODER = ImageEncoderIdentity(**{**vars(DECODER), "weights_digest": "4" * 64})

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
        self.is_at_work = False
        self.asked: list[Request] = []
        self.deadlines: list[float | None] = []
        self.arrivals: asyncio.Queue[Request] = asyncio.Queue()
        self.cancelled = 0
        self.memory: Memory | None = None

    def start(self) -> None:
        self.started = True

    def stop(self, *, hand_back_all_at: float) -> None:
        self.started = False

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
        length = self.profile.context_length
        room = length * (self.profile.max_prompt_chunks if request.long_prompt else 1)
        warnings = tuple(filter(None, (self._warn(prompt, room, request.truncate) for prompt in request.prompts)))
        longest = max(min(len(prompt.split()), room) for prompt in request.prompts)
        chunks = max(1, -(-longest // length))
        return Encoded(context=np.stack([self._context(prompt, chunks) for prompt in request.prompts]), warnings=warnings)

    def _warn(self, prompt: str, room: int, truncate: bool) -> str | None:
        if (count := len(prompt.split())) <= room:
            return None
        if not truncate:
            raise InvalidValue(f"the prompt has {count} tokens, the model takes {room}; truncate=true cuts it", param="prompt")
        return f"the prompt was cut from {count} to {room} tokens"

    def _context(self, prompt: str, chunks: int) -> np.ndarray:
        length = self.profile.context_length
        words = prompt.split()
        return np.concatenate([self._chunk(words[start : start + length]) for start in range(0, chunks * length, length)])

    def _chunk(self, words: list[str]) -> np.ndarray:
        shape = (self.profile.context_length, self.profile.context_width)
        return np.random.default_rng(zlib.crc32(" ".join(words).encode())).standard_normal(shape, np.float32)


class FakeDiffusion(FakeStage[DenoiseRequest]):
    """Latents are noise drawn from the seed, and with every evaluation more coloured by all else that a picture depends on.

    With `turnstile` each evaluation waits for a `release()`. `evaluations` counts them; `ended` is set at the end.
    """

    name = "diffusion"
    profile = DIFFUSION

    def __init__(self, *, turnstile: asyncio.Semaphore | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.turnstile = turnstile
        self.evaluations = 0
        self.ended = asyncio.Event()

    async def identity(self) -> DiffusionIdentity:
        self.check_started()
        return self.profile

    async def denoise(self, request: DenoiseRequest, *, deadline: float | None = None) -> AsyncGenerator[DenoiseEvent, None]:
        check_denoise(request, await self.identity())
        state = self._initial(request) if request.resume is None else self._resumed(request, request.resume)
        await self.work(request, deadline)
        try:
            while (position := int(state.position.min())) < request.num_steps:
                if self.turnstile is not None:
                    await self.turnstile.acquire()
                state = self._evaluate(request, state)
                position += 1
                yield Progress(position=position, num_evaluations=request.num_steps)
                if request.progress_every and position % request.progress_every == 0 and position < request.num_steps:
                    yield State(state=state, predicted_original=state.latents / 2 if request.previews else None)
                await asyncio.sleep(0)
            yield Denoised(latents=state.latents)
        finally:
            self.ended.set()

    def _shape(self, request: DenoiseRequest) -> tuple[int, int, int]:
        return self.profile.latents_shape(request.width, request.height)

    def _num_arrays(self, request: DenoiseRequest) -> int:
        """The first sampler keeps nothing, the others one array."""
        return min(1, self.profile.samplers.index(request.sampler))

    def _state_key(self, request: DenoiseRequest) -> str:
        parts = (self.profile.weights_digest, request.sampler, request.num_steps, request.guidance_scale, len(request.seeds))
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _initial(self, request: DenoiseRequest) -> DenoiseState:
        rows, shape = len(request.seeds), self._shape(request)
        latents = np.stack([np.random.default_rng(int(seed)).standard_normal(shape, np.float32) for seed in request.seeds])
        if request.initial_noise is not None:
            latents = np.ascontiguousarray(np.broadcast_to(request.initial_noise, (rows, *shape)))
        return DenoiseState(
            latents=latents,
            sampler_state=np.zeros((rows, self._num_arrays(request), *shape), np.float32),
            position=np.zeros(rows, np.int32),
            state_key=self._state_key(request),
        )

    def _resumed(self, request: DenoiseRequest, state: DenoiseState) -> DenoiseState:
        if state.state_key != self._state_key(request):
            raise Conflict("the state belongs to another plan", param="state_key")
        initial = self._initial(request)
        for name in ("latents", "sampler_state", "position"):
            array, expected = getattr(state, name), getattr(initial, name)
            if array.shape != expected.shape:
                raise InvalidValue(f"{name} must be {expected.shape}, not {array.shape}", param=name)
        if not 0 <= state.position.min() <= state.position.max() <= request.num_steps:
            raise InvalidValue(f"position must be 0..{request.num_steps}", param="position")
        return state

    def _evaluate(self, request: DenoiseRequest, state: DenoiseState) -> DenoiseState:
        self.evaluations += 1
        latents = state.latents + np.float32(0.1) * state.sampler_state.sum(axis=1)
        for row in range(len(latents)):
            latents[row] += self._colour(request, row) / request.num_steps
        kept = np.repeat(state.latents[:, None], self._num_arrays(request), axis=1)
        return replace(state, latents=latents.astype(np.float32), sampler_state=kept, position=state.position + np.int32(1))

    def _colour(self, request: DenoiseRequest, row: int) -> np.float32:
        colour = request.context[row % len(request.context)].mean()
        if request.unconditional_context is not None:
            colour -= request.unconditional_context[row % len(request.unconditional_context)].mean()
        return colour * np.float32(request.guidance_scale + request.num_steps + self.profile.samplers.index(request.sampler))


class FakeDecoder(FakeStage[DecodeRequest]):
    """Each latent becomes a square of its own colour. `tells_digests=False` makes it a decoder of somebody else.

    `float32_pictures` are those that it says it computed again.
    """

    name = "decoder"
    profile = DECODER
    tells_digests = True
    float32_pictures: tuple[int, ...] = ()

    async def identity(self) -> DecoderIdentity:
        self.check_started()
        return self.profile

    async def decode(self, request: DecodeRequest, *, deadline: float | None = None) -> Decoded:
        check_decode(request, await self.identity())
        await self.work(request, deadline)
        images = self._paint(request.latents)
        digests = tuple(map(sha256_of, images)) if self.tells_digests else ()
        if request.image_format is None:
            return Decoded(images=images, pixels_sha256=digests, float32_rows=self.float32_pictures)
        texts = request.image_texts or ("",) * len(images)
        return Decoded(
            images=tuple(encode_image(image, request.image_format, text) for image, text in zip(images, texts, strict=True)),
            pixels_sha256=digests,
            float32_rows=self.float32_pictures,
        )

    def _paint(self, latents: np.ndarray) -> UInt8:
        colours = (np.tanh(latents[..., :3]) * 127.5 + 127.5).astype(np.uint8)
        side = self.profile.downsampling
        return np.ascontiguousarray(colours.repeat(side, axis=1).repeat(side, axis=2))


class FakeImageEncoder(FakeStage[EncodeImagesRequest]):
    """Latents are the means of squares of pixels, and their brightness."""

    name = "decoder"
    profile = IMAGE_ENCODER

    async def identity(self) -> ImageEncoderIdentity:
        self.check_started()
        return self.profile

    async def encode_images(self, request: EncodeImagesRequest, *, deadline: float | None = None) -> EncodedImages:
        check_encode_images(request, await self.identity())
        await self.work(request, deadline)
        side = self.profile.downsampling
        rows, height, width, _ = request.images.shape
        squares = request.images.reshape(rows, height // side, side, width // side, side, 3).mean(axis=(2, 4)) / 127.5 - 1
        return EncodedImages(latents=np.concatenate([squares, squares.mean(axis=-1, keepdims=True)], axis=-1).astype(np.float32))


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
