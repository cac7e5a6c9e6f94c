"""Encode, denoise, decode: the heart of Triptych.

::

    prompt            context            latents            images
    ──────▶ text_encoder ─────▶ diffusion ─────▶ decoder ─────▶

Three lines on three Protocols. Whether a stage is an object in this process or a service on another machine is not known here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from triptych.contract import (
    Decoded,
    Decoder,
    DecodeRequest,
    Denoised,
    DenoiseRequest,
    DenoiseState,
    Diffusion,
    Encoded,
    EncodedImages,
    EncodeImagesRequest,
    EncodeRequest,
    Float32,
    ImageEncoder,
    ImageFormat,
    Priority,
    Progress,
    StageName,
    State,
    TextEncoder,
    UInt8,
    sha256_of,
)
from triptych.errors import StageFailed, StageNotReady, StageTimeout

T = TypeVar("T")
Kept = TypeVar("Kept", Encoded, EncodedImages, DenoiseState, Denoised)


STATE_EVERY = 1
"""Evaluations between two states that are kept: a state is small against the evaluation that it saves."""


class Keep(Protocol):
    """What outlives a request that is cut off: what its stages have made so far, one of each kind.

    A request that is begun again with what was kept computes none of it again, and its denoising goes on from the newest state.
    """

    async def recall(self, kind: type[Kept]) -> Kept | None:
        """The newest that was kept of a kind; None where there is none."""

    async def keep(self, made: Kept) -> None:
        """Keeps what a stage made in the place of what was kept of its kind before."""


@dataclass(frozen=True, kw_only=True)
class Mask:
    """Where a picture is painted anew.

    Attributes:
        pixels: 255 where to paint and 0 where to keep, uint8 (H, W).
        latents: The same for latents, 1 and 0, float32 (H/8, W/8, 1).
        paste: What of the painted picture shows, 0 to 255: `pixels` with edges as soft as they are wanted, uint8 (H, W).
    """

    pixels: UInt8
    latents: Float32
    paste: UInt8


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A picture to change.

    Attributes:
        image: sRGB pixels, uint8 (H, W, 3).
        mask: None is all of it.
        strength: How much to change, 0 to 1.
        num_resamples: See `DenoiseRequest`.
    """

    image: UInt8
    mask: Mask | None
    strength: float
    num_resamples: int


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """One to a few pictures of one prompt.

    Attributes:
        seed: Of the first picture, 0..2^64-1; picture i is made from `seed + i` modulo 2^64.
        width, height: Pixels.
        image_format: None asks for pixels, else for encoded files.
        image_texts: What each PNG carries as text: none, or one a picture.
        truncate: Cut a prompt that is too long instead of refusing it.
        long_prompt: Let prompts be longer than the context, in chunks of it.
        previews: About how many predictions of the pictures to tell on the way.
        edit: The picture to change; None makes one of noise alone.
        takes_masked_image: Whether the diffusion model does, as its identity says.
        priority: A `Priority`: how much of a hurry it is in.
    """

    prompt: str
    negative_prompt: str = ""
    seed: int
    num_images: int = 1
    width: int
    height: int
    sampler: str
    num_steps: int
    guidance_scale: float
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    cache_interval: int = 1
    image_format: ImageFormat | None = None
    image_texts: tuple[str, ...] = ()
    truncate: bool = False
    long_prompt: bool = False
    previews: int = 0
    edit: Edit | None = None
    takes_masked_image: bool = False
    priority: str = Priority.NORMAL

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple((self.seed + image) % 2**64 for image in range(self.num_images))

    @property
    def guided(self) -> bool:
        """At scale 1 guidance multiplies the unconditional half by zero, so that half is neither encoded nor sent."""
        return self.guidance_scale != 1

    def to_encode(self) -> EncodeRequest:
        prompts = (self.prompt, self.negative_prompt) if self.guided else (self.prompt,)
        return EncodeRequest(prompts=prompts, truncate=self.truncate, long_prompt=self.long_prompt)

    @property
    def _sees_the_image(self) -> bool:
        """Where all of a masked part is painted anew, a model that takes the masked image needs nothing else of it."""
        if self.edit is None:
            return False
        return not (self.takes_masked_image and self.edit.mask is not None and self.edit.strength == 1)

    def to_encode_images(self) -> EncodeImagesRequest | None:
        """The picture, and what of it is kept, as far as the diffusion model needs them; None where it needs neither."""
        if self.edit is None and not self.takes_masked_image:
            return None
        nothing, all_of_it = (np.full((self.height, self.width), value, np.uint8) for value in (0, 255))
        image = np.zeros((self.height, self.width, 3), np.uint8) if self.edit is None else self.edit.image
        mask = all_of_it if self.edit is None or self.edit.mask is None else self.edit.mask.pixels
        masks = [nothing] * self._sees_the_image + [mask] * self.takes_masked_image
        return EncodeImagesRequest(images=np.stack([image] * len(masks)), mask=np.stack(masks))

    def to_denoise(self, encoded: Encoded, images: EncodedImages | None = None) -> DenoiseRequest:
        rows = 2 if self.guided else 1
        if len(encoded.context) != rows:
            raise StageFailed(
                f"the text encoder answered {len(encoded.context)} contexts to {rows} prompts", stage=StageName.TEXT_ENCODER
            )
        return DenoiseRequest(
            context=encoded.context[:1],
            unconditional_context=encoded.context[1:] if self.guided else None,
            seeds=np.array(self.seeds, np.uint64),
            width=self.width,
            height=self.height,
            sampler=self.sampler,
            num_steps=self.num_steps,
            guidance_scale=self.guidance_scale,
            guidance_start=self.guidance_start,
            guidance_end=self.guidance_end,
            cache_interval=self.cache_interval,
            # Most samplers evaluate the network once a step; with others there are a few more states than previews.
            progress_every=max(1, self.num_steps // (self.previews + 1)) if self.previews else None,
            previews=self.previews > 0,
            priority=self.priority,
            **self._editing(images),
        )

    def _editing(self, images: EncodedImages | None) -> dict[str, Any]:
        """What the diffusion stage is told of the picture to change."""
        if images is None:
            return {}
        count = self._sees_the_image + self.takes_masked_image
        if len(images.latents) != count:
            raise StageFailed(
                f"the image encoder answered {len(images.latents)} latents to {count} pictures", stage=StageName.DECODER
            )
        mask = None if self.edit is None or self.edit.mask is None else self.edit.mask.latents[None]
        if self.takes_masked_image and mask is None:
            mask = np.ones((1, *images.latents.shape[1:3], 1), np.float32)
        return {
            "init_latents": images.latents[:1] if self._sees_the_image else None,
            "mask": mask,
            "masked_image_latents": images.latents[-1:] if self.takes_masked_image else None,
            "strength": 1.0 if self.edit is None else self.edit.strength,
            "num_resamples": 1 if self.edit is None else self.edit.num_resamples,
        }

    def to_decode(self, denoised: Denoised) -> DecodeRequest:
        request = DecodeRequest(latents=denoised.latents, image_format=self.image_format, image_texts=self.image_texts)
        if self.edit is None or self.edit.mask is None:
            return request
        return replace(request, original=self.edit.image[None], paste_mask=self.edit.mask.paste[None])


@dataclass(frozen=True, kw_only=True)
class StageProgress:
    """A stage is at work; `position` of `num_evaluations` are done where the stage tells."""

    stage: StageName
    position: int | None = None
    num_evaluations: int | None = None


@dataclass(frozen=True, kw_only=True)
class PredictedOriginal:
    """The latents that the denoising would end in as far as it can tell now, float32 (B, H/8, W/8, 4)."""

    progress: StageProgress
    latents: Float32


@dataclass(frozen=True, kw_only=True)
class Digests:
    """What passed between the stages, by its `sha256_of`: which stage differs where two pictures do.

    Attributes:
        context: Of both prompts' contexts, or of one where there is no guidance.
        latents: One a picture.
        pixels: One a picture, or None where the decoder does not tell.
    """

    context: str
    latents: tuple[str, ...]
    pixels: tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class Generated:
    """The pictures, and how they came about.

    Attributes:
        images: Pixels uint8 (B, H, W, 3), or one encoded file a picture, as the request's `image_format` asked.
        seeds: One for each picture.
        seconds: How long each stage was waited for.
        digests: What the stages handed on.
        float32_rows: Pictures that were NaN or infinite in the decoder's own precision, and were decoded again in float32.
    """

    images: UInt8 | tuple[bytes, ...]
    seeds: tuple[int, ...]
    warnings: tuple[str, ...]
    seconds: Mapping[StageName, float]
    digests: Digests
    float32_rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pipeline:
    """Three stages that make pictures together, and what turns pictures into latents where pictures are changed."""

    text_encoder: TextEncoder
    diffusion: Diffusion
    decoder: Decoder
    image_encoder: ImageEncoder | None = None

    async def generate(
        self, request: GenerateRequest, *, deadline: float | None = None, keep: Keep | None = None
    ) -> AsyncGenerator[StageProgress | PredictedOriginal | Generated, None]:
        """Makes the pictures: any number of StageProgress and PredictedOriginal, then one Generated, the last.

        Closing the iterator, or cancelling the task that awaits it, cancels the stage that is at work.

        Args:
            request: What to make.
            deadline: Of `time.monotonic()`, in seconds, for all three stages together. None waits for ever.
            keep: What an earlier go at this very request has left, and where this one leaves what it makes.

        Raises:
            InvalidValue, QueueFull, StageNotReady, StageFailed: As a stage raised it.
            StageTimeout: The deadline passed; names the stage that was at work.
        """
        clock, keep = _Clock(deadline), keep or _Nothing()

        yield StageProgress(stage=StageName.TEXT_ENCODER)
        encoded = await _once(keep, Encoded, lambda: self._encode(request, clock))

        yield (progress := StageProgress(stage=StageName.DIFFUSION))
        if (denoised := await keep.recall(Denoised)) is None:
            images = await self._encode_images(request, clock, keep)
            denoise = await _go_on(request.to_denoise(encoded, images), keep)
            async with _closing(self.diffusion.denoise(denoise, deadline=deadline)) as denoising:
                while isinstance(event := await clock.wait(StageName.DIFFUSION, anext(denoising, None)), Progress | State):
                    if isinstance(event, Progress):
                        yield (progress := _progress(event))
                        continue
                    await keep.keep(event.state)
                    if event.predicted_original is not None:
                        yield PredictedOriginal(progress=progress, latents=event.predicted_original)
            await keep.keep(denoised := _expect_latents(event))

        yield StageProgress(stage=StageName.DECODER)
        decoded = await clock.wait(StageName.DECODER, self.decoder.decode(request.to_decode(denoised), deadline=deadline))

        yield Generated(
            images=_expect_images(decoded, request.num_images).images,
            seeds=request.seeds,
            warnings=(*encoded.warnings, *denoised.warnings),
            seconds=clock.seconds,
            digests=_digests(encoded, denoised, decoded),
            float32_rows=decoded.float32_rows,
        )

    async def _encode(self, request: GenerateRequest, clock: _Clock) -> Encoded:
        return await clock.wait(StageName.TEXT_ENCODER, self.text_encoder.encode(request.to_encode(), deadline=clock.deadline))

    async def _encode_images(self, request: GenerateRequest, clock: _Clock, keep: Keep) -> EncodedImages | None:
        """The latents of the picture to change; None where there is none."""
        if (pictures := request.to_encode_images()) is None:
            return None
        if (image_encoder := self.image_encoder) is None:
            raise StageNotReady("there is no image encoder, without which no picture can be changed", stage=StageName.DECODER)

        async def encode_images() -> EncodedImages:
            return await clock.wait(StageName.DECODER, image_encoder.encode_images(pictures, deadline=clock.deadline))

        return await _once(keep, EncodedImages, encode_images)


class _Nothing:
    """Keeps nothing."""

    async def recall(self, kind: type[Kept]) -> Kept | None:
        return None

    async def keep(self, made: Kept) -> None:
        pass


async def _once(keep: Keep, kind: type[Kept], make: Callable[[], Awaitable[Kept]]) -> Kept:
    """What was kept of a kind, or what is made now, and kept."""
    if (made := await keep.recall(kind)) is None:
        await keep.keep(made := await make())
    return made


async def _go_on(request: DenoiseRequest, keep: Keep) -> DenoiseRequest:
    """The denoising from the newest state that was kept, and with states to keep; as it is where nothing is kept."""
    if isinstance(keep, _Nothing):
        return request
    return replace(request, resume=await keep.recall(DenoiseState), progress_every=request.progress_every or STATE_EVERY)


class _Clock:
    """One request's time: the deadline that holds for all stages, and where the seconds went."""

    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline
        self.seconds: dict[StageName, float] = dict.fromkeys(StageName, 0.0)

    async def wait(self, stage: StageName, work: Awaitable[T]) -> T:
        """Waits for a stage, but never past the deadline, whatever the stage itself makes of it."""
        started = time.monotonic()
        patience = None if self.deadline is None else max(0.0, self.deadline - started)
        try:
            async with asyncio.timeout(patience) as timeout:
                return await work
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise StageTimeout(f"the {stage} stage did not answer before the request's deadline", stage=stage) from error
        finally:
            self.seconds[stage] += time.monotonic() - started


@asynccontextmanager
async def _closing(events: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Closes a generator at the end of the block and not whenever it is collected: this is what cancels a denoising."""
    try:
        yield events
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()


def _progress(event: Progress) -> StageProgress:
    return StageProgress(stage=StageName.DIFFUSION, position=event.position, num_evaluations=event.num_evaluations)


def _digests(encoded: Encoded, denoised: Denoised, decoded: Decoded) -> Digests:
    return Digests(
        context=sha256_of(encoded.context),
        latents=tuple(map(sha256_of, denoised.latents)),
        pixels=decoded.pixels_sha256 or None,
    )


def _expect_latents(event: Denoised | None) -> Denoised:
    if event is None:
        raise StageFailed("the diffusion stage ended without a result", stage=StageName.DIFFUSION)
    return event


def _expect_images(decoded: Decoded, num_images: int) -> Decoded:
    if len(decoded.images) != num_images:
        raise StageFailed(
            f"the decoder answered {len(decoded.images)} images where {num_images} were asked for", stage=StageName.DECODER
        )
    if len(decoded.pixels_sha256) not in (0, num_images):
        raise StageFailed(
            f"the decoder answered {len(decoded.pixels_sha256)} digests of {num_images} images", stage=StageName.DECODER
        )
    return decoded
