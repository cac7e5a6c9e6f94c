"""The contract between the stages: three Protocols, and the dataclasses that pass between them.

A stage is the same thing whether it is local, behind a socket or a handle of somebody's cluster: an object that keeps one of
the Protocols below. `pipeline.py` composes them, `stages/` implements them, `remote/` carries them over a network.

Shapes: B rows (images), T tokens, D the context's width, H and W pixels. All arrays are C-contiguous.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from triptych.errors import InvalidValue, StagesDoNotFit

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
UInt64 = NDArray[np.uint64]
UInt8 = NDArray[np.uint8]


MOST_PICTURES = 8
"""That one request to a gateway may ask for."""


class StageName(StrEnum):
    """The three panels."""

    TEXT_ENCODER = "text_encoder"
    DIFFUSION = "diffusion"
    DECODER = "decoder"


class Task(StrEnum):
    """What a diffusion model can be asked for."""

    TEXT_TO_IMAGE = "text_to_image"
    IMAGE_TO_IMAGE = "image_to_image"
    INPAINTING = "inpainting"


class Priority(StrEnum):
    """How much of a hurry a request is in, against others that wait for the same; the most urgent last."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class ImageFormat(StrEnum):
    """The encodings in which the decoder returns pictures."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"


# Identity: who a stage is, and with whom it fits.
#
# `exact` says that a row's bytes depend on its request alone, `exact_batch_sizes` at which sizes of calls they do, and
# `largest_difference` what batch-mates may change in an output of the network, as measured: nothing where the stage is exact.


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """What decides a stage's bytes besides weights and request.

    Replicas of equal numerics and equal weights return equal bytes.

    Attributes:
        float_precision: What those layers of an int8 network compute in that were not quantized; empty where none was.
        quantized: sha256 of the quantized graph; empty where there is none.
    """

    engine: str
    version: str
    precision: str
    instruction_set: str
    device: str
    float_precision: str = ""
    quantized: str = ""

    def told(self) -> dict[str, str]:
        """By name, without what is empty."""
        return {name: value for name, value in asdict(self).items() if value}


@dataclass(frozen=True, kw_only=True)
class TextEncoderIdentity:
    """A text encoder: the space that its contexts live in, (B, context_length, context_width).

    Attributes:
        max_prompt_chunks: Contexts that it joins for a long prompt at most; 1 is none.
    """

    model: str
    weights_digest: str
    numerics: Numerics
    exact: bool = False
    exact_batch_sizes: tuple[int, ...] = ()
    largest_difference: float = 0.0
    text_space: str
    context_length: int
    context_width: int
    max_prompt_chunks: int = 1


@dataclass(frozen=True, kw_only=True)
class DiffusionIdentity:
    """A diffusion model: which contexts it takes, which latents it makes, and what it may be asked for.

    Attributes:
        sizes: (width, height) in pixels of the pictures it makes; the first is its default.
        samplers: Names it takes; the first is its default.
        max_prompt_chunks: Contexts it takes are 1 to so many times `context_length` long.
        takes_masked_image: Whether the network sees mask and masked image as channels of their own, at every request. Where not,
            it inpaints all the same: what is known is put back after every evaluation.
        takes_cache_interval: Whether evaluations can reuse what earlier ones found out.
        warnings: What whoever leaves the choice of sampler to it should know of the pictures, a sentence each.
    """

    model: str
    weights_digest: str
    numerics: Numerics
    exact: bool = False
    exact_batch_sizes: tuple[int, ...] = ()
    largest_difference: float = 0.0
    text_space: str
    latent_space: str
    context_length: int
    context_width: int
    latent_channels: int
    downsampling: int
    prediction_type: str
    tasks: tuple[Task, ...]
    sizes: tuple[tuple[int, int], ...]
    samplers: tuple[str, ...]
    default_num_steps: int
    default_guidance_scale: float
    max_prompt_chunks: int = 1
    takes_masked_image: bool = False
    takes_cache_interval: bool = False
    warnings: tuple[str, ...] = ()

    def latents_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(H/8, W/8, channels) of the latents of a picture of so many pixels."""
        return height // self.downsampling, width // self.downsampling, self.latent_channels


@dataclass(frozen=True, kw_only=True)
class DecoderIdentity:
    """A decoder: the space of the latents it takes, and how many pixels each becomes.

    Attributes:
        tile_sizes: For each of `sizes` the (width, height) of what its network's upper levels are run on at once: the size
            itself, or less where the picture is made in tiles.
        has_preview_decoder: Whether `preview` in a request means something to it.
    """

    model: str
    weights_digest: str
    numerics: Numerics
    exact: bool = False
    exact_batch_sizes: tuple[int, ...] = ()
    largest_difference: float = 0.0
    latent_space: str
    latent_channels: int
    scaling_factor: float
    downsampling: int
    sizes: tuple[tuple[int, int], ...]
    tile_sizes: tuple[tuple[int, int], ...] = ()
    has_preview_decoder: bool = False


@dataclass(frozen=True, kw_only=True)
class ImageEncoderIdentity(DecoderIdentity):
    """The other half of the autoencoder: it takes what a decoder of the same latent space makes."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What pictures cost at a stage in bytes, and how many bytes they may take together. No part of who it is.

    Attributes:
        most_bytes: All pictures that are on their way at once.
        picture_bytes: One picture, by (width, height), at the most: whatever is held for it as long as it is on its way.
        call_bytes: One call of the network, as long as it runs; it is kept free beside the pictures.
    """

    most_bytes: int
    picture_bytes: Mapping[tuple[int, int], int]
    call_bytes: int


# What passes between the stages


@dataclass(frozen=True, kw_only=True)
class EncodeRequest:
    """Prompts for the text encoder, one a row.

    Attributes:
        truncate: Cut a prompt that is too long, with a warning, instead of refusing it.
        long_prompt: Cut a prompt that is longer than the context into chunks, and join their contexts. All rows get as many
            chunks as the longest prompt needs; a prompt is too long when it needs more than the text encoder joins.
    """

    prompts: tuple[str, ...]
    truncate: bool = False
    long_prompt: bool = False


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Contexts, float32 (B, T, D), and what the caller should know about the prompts. Only under `long_prompt` may T be more
    than the context's length: a multiple of it."""

    context: Float32
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DenoiseRequest:
    """One denoising of B rows. A leading dimension of 1 of a context or of the noise stands for all rows.

    Attributes:
        context: What the pictures should show, float32 (B or 1, T, D).
        unconditional_context: What guidance leads away from, same shape; may be None at `guidance_scale` 1.
        seeds: One for each row, uint64 (B,).
        width, height: Of the pictures, pixels.
        guidance_start, guidance_end: From and up to where there is guidance, as shares of the steps that are made, 0 to 1.
            Elsewhere the network is not asked for the unconditional half (Kynkaanniemi et al. 2024, arXiv:2404.07724).
        cache_interval: Of so many evaluations, counted from the first that is made, one computes the whole network; the others
            a shallow part of it, on the features that the last whole one left (Ma et al. 2023, arXiv:2312.00858). 1 is off.
        initial_noise: Standard normal, float32 (B or 1, H/8, W/8, 4); drawn from the seeds where None.
        init_latents: Of a picture to change, VAE-scaled, float32 (B or 1, H/8, W/8, 4); None makes one of noise alone.
        mask: Where to paint (1) and where to keep the picture (0), float32 (B or 1, H/8, W/8, 1); None is everywhere.
        masked_image_latents: Of the picture with grey where the mask is 1, like `init_latents`; for models that take it.
        strength: How much of `init_latents` to change, 0 to 1: the share of the steps that are made.
        num_resamples: How often each evaluation is made, so that what is painted and what is put back come to agree.
        resume: Where an earlier denoising of this very request came to; None begins.
        progress_every: Evaluations between two states; None asks for none. Under a `cache_interval` a state comes when the next
            evaluation is a whole one, as features are not carried in it.
        previews: Whether states carry the predicted original.
        priority: A `Priority`: whose turn it is where not all rows fit in a call.
        finish_here: Whether a stage that is told to stop finishes this denoising first; else it hands the newest state back, for
            another replica to go on from.
    """

    context: Float32
    unconditional_context: Float32 | None
    seeds: UInt64
    width: int
    height: int
    sampler: str
    num_steps: int
    guidance_scale: float
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    cache_interval: int = 1
    initial_noise: Float32 | None = None
    init_latents: Float32 | None = None
    mask: Float32 | None = None
    masked_image_latents: Float32 | None = None
    strength: float = 1.0
    num_resamples: int = 1
    resume: DenoiseState | None = None
    progress_every: int | None = None
    previews: bool = False
    priority: str = Priority.NORMAL
    finish_here: bool = False


@dataclass(frozen=True, kw_only=True)
class DenoiseState:
    """The whole state of a denoising between two evaluations: with the request, all that another replica needs to go on.

    Attributes:
        latents: float32 (B, H/8, W/8, 4).
        sampler_state: float32 (B, n, H/8, W/8, 4), where n is the sampler's.
        position: Evaluations of the plan that are done, int32 (B,).
        state_key: Digest of weights, plan, parameters and noise version; where these differ the state means nothing.
    """

    latents: Float32
    sampler_state: Float32
    position: Int32
    state_key: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """`position` of the plan's `num_evaluations` network evaluations are done, for all rows."""

    position: int
    num_evaluations: int


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a denoising is, and on request the latents without noise as its last evaluation saw them, (B, H/8, W/8, 4)."""

    state: DenoiseState
    predicted_original: Float32 | None = None


@dataclass(frozen=True, kw_only=True)
class Denoised:
    """VAE-scaled latents, float32 (B, H/8, W/8, 4), and what the caller should know of how they came about."""

    latents: Float32
    warnings: tuple[str, ...] = ()


DenoiseEvent = Progress | State | Denoised


@dataclass(frozen=True, kw_only=True)
class DecodeRequest:
    """Latents to make pictures of.

    Attributes:
        latents: VAE-scaled, float32 (B, H/8, W/8, 4).
        image_format: None asks for pixels, else for encoded files.
        image_texts: What each PNG carries as text under `IMAGE_TEXT_KEYWORD`: none, or one a row.
        original: Pixels to keep where `paste_mask` is 0, sRGB uint8 (B or 1, H, W, 3).
        paste_mask: 255 where the decoded picture shows, 0 where the original does, between them a mixture, uint8 (B or 1, H, W).
        preview: Rough pictures will do, by a smaller network where the decoder has one.
    """

    latents: Float32
    image_format: ImageFormat | None = None
    image_texts: tuple[str, ...] = ()
    original: UInt8 | None = None
    paste_mask: UInt8 | None = None
    preview: bool = False


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Pictures: sRGB pixels uint8 (B, H, W, 3), or one encoded file a row, as the request's `image_format` asked.

    Attributes:
        pixels_sha256: `sha256_of` each picture's pixels, which a file need not show any more; none where a decoder tells none.
        float32_rows: Those that were NaN or infinite in the decoder's own precision, and were computed again in float32.
    """

    images: UInt8 | tuple[bytes, ...]
    pixels_sha256: tuple[str, ...] = ()
    float32_rows: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EncodeImagesRequest:
    """Pictures to make latents of.

    Attributes:
        images: sRGB pixels, uint8 (B, H, W, 3).
        seeds: One for each picture, uint64 (B,): a sample of the distribution that the encoder sees; None is its mean.
        mask: Where not to look, uint8 (B or 1, H, W): from 128 on the encoder sees mid-grey, as inpainting networks were taught.
    """

    images: UInt8
    seeds: UInt64 | None = None
    mask: UInt8 | None = None


@dataclass(frozen=True, kw_only=True)
class EncodedImages:
    """VAE-scaled latents, float32 (B, H/8, W/8, 4)."""

    latents: Float32


IMAGE_TEXT_KEYWORD = "triptych"


def sha256_of(array: NDArray[Any]) -> str:
    """Of the array's numbers, little-endian and row-major: what receipts name contexts, latents and pixels by."""
    return hashlib.sha256(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data).hexdigest()


# The three panels


class TextEncoder(Protocol):
    """Prompts to contexts."""

    async def identity(self) -> TextEncoderIdentity:
        """Who it is. Raises StageNotReady while it cannot work."""

    async def encode(self, request: EncodeRequest, *, deadline: float | None = None) -> Encoded:
        """Contexts of the prompts.

        Args:
            request: The prompts.
            deadline: Of `time.monotonic()`, in seconds; past it nobody waits any more. None waits for ever.

        Raises:
            InvalidValue: A prompt is too long and `truncate` is not set.
            QueueFull, StageNotReady, StageFailed, StageTimeout: As their names say.
        """


class Diffusion(Protocol):
    """Contexts and noise to latents."""

    async def identity(self) -> DiffusionIdentity:
        """Who it is. Raises StageNotReady while it cannot work."""

    def denoise(self, request: DenoiseRequest, *, deadline: float | None = None) -> AsyncIterator[DenoiseEvent]:
        """The denoising: Progress after every evaluation, State where asked for, then one Denoised, the last.

        Raises:
            Conflict: The state to resume belongs to other weights, another plan or other parameters.
            InvalidValue: The model does not take this size, sampler, context or task.
            QueueFull, StageNotReady, StageFailed, StageTimeout: As their names say.
        """


class Decoder(Protocol):
    """Latents to pictures."""

    async def identity(self) -> DecoderIdentity:
        """Who it is. Raises StageNotReady while it cannot work."""

    async def decode(self, request: DecodeRequest, *, deadline: float | None = None) -> Decoded:
        """Pictures of the latents.

        Raises:
            InvalidValue: The decoder does not take latents of this shape.
            QueueFull, StageNotReady, StageFailed, StageTimeout: As their names say.
        """


class ImageEncoder(Protocol):
    """Pictures to latents: served beside the decoder, and needed only where pictures are changed."""

    async def identity(self) -> ImageEncoderIdentity:
        """Who it is. Raises StageNotReady while it cannot work."""

    async def encode_images(self, request: EncodeImagesRequest, *, deadline: float | None = None) -> EncodedImages:
        """Latents of the pictures.

        Raises:
            InvalidValue: The encoder does not take pictures of this size.
            QueueFull, StageNotReady, StageFailed, StageTimeout: As their names say.
        """


def check_fit(text_encoder: TextEncoderIdentity, diffusion: DiffusionIdentity, decoder: DecoderIdentity) -> None:
    """Refuses three stages that make no model together.

    Raises:
        StagesDoNotFit: The sentence names both sides and what differs.
    """
    for what, left, right in (
        ("text space", text_encoder.text_space, diffusion.text_space),
        ("context width", text_encoder.context_width, diffusion.context_width),
        ("context length", text_encoder.context_length, diffusion.context_length),
    ):
        if left != right:
            raise StagesDoNotFit(
                f"the text encoder {text_encoder.model!r} has {what} {left}, "
                f"the diffusion model {diffusion.model!r} wants {right}"
            )
    for what, left, right in (
        ("latent space", diffusion.latent_space, decoder.latent_space),
        ("number of latent channels", diffusion.latent_channels, decoder.latent_channels),
        ("downsampling", diffusion.downsampling, decoder.downsampling),
    ):
        if left != right:
            raise StagesDoNotFit(
                f"the diffusion model {diffusion.model!r} has {what} {left}, the decoder {decoder.model!r} wants {right}"
            )


# What a model takes


def check_denoise(request: DenoiseRequest, identity: DiffusionIdentity) -> None:
    """Refuses what a diffusion model does not take.

    Raises:
        InvalidValue: The sentence says what is allowed.
    """
    if (request.width, request.height) not in identity.sizes:
        allowed = ", ".join(f"{width}x{height}" for width, height in identity.sizes)
        raise InvalidValue(f"this model makes no pictures of {request.width}x{request.height}; it makes {allowed}", param="width")
    if request.sampler not in identity.samplers:
        raise InvalidValue(f"there is no sampler {request.sampler!r}; there are {', '.join(identity.samplers)}", param="sampler")
    if not math.isfinite(request.guidance_scale) or request.guidance_scale < 0:
        raise InvalidValue(f"guidance_scale must be 0 or more, not {request.guidance_scale}", param="guidance_scale")
    if not 0 <= request.guidance_start <= request.guidance_end <= 1:
        raise InvalidValue(
            "guidance_start and guidance_end must be shares of the steps, 0 to 1, the former no more than the latter, "
            f"not {request.guidance_start} and {request.guidance_end}",
            param="guidance_start",
        )
    _check_cache_interval(request.cache_interval, identity)
    if request.guidance_scale != 1 and request.unconditional_context is None:
        raise InvalidValue("without unconditional_context the guidance_scale must be 1", param="unconditional_context")
    if request.seeds.ndim != 1 or request.seeds.dtype != np.uint64 or not len(request.seeds):
        raise InvalidValue("seeds must be uint64, one for each picture", param="seed")
    if request.progress_every is not None and request.progress_every < 1:
        raise InvalidValue(f"progress_every must be 1 or more, not {request.progress_every}", param="progress_every")
    if request.priority not in list(Priority):
        raise InvalidValue(f"request_priority must be one of {', '.join(Priority)}", param="request_priority")
    context = (_context_length(request, identity), identity.context_width)
    latents = identity.latents_shape(request.width, request.height)
    _check_rows("context", request.context, context, len(request.seeds))
    _check_rows("unconditional_context", request.unconditional_context, context, len(request.seeds))
    _check_rows("initial_noise", request.initial_noise, latents, len(request.seeds))
    _check_rows("init_latents", request.init_latents, latents, len(request.seeds))
    _check_rows("mask", request.mask, (*latents[:2], 1), len(request.seeds))
    _check_rows("masked_image_latents", request.masked_image_latents, latents, len(request.seeds))
    _check_editing(request, identity)


def _check_cache_interval(cache_interval: int, identity: DiffusionIdentity) -> None:
    if cache_interval < 1:
        raise InvalidValue(f"cache_interval must be 1 or more, not {cache_interval}", param="cache_interval")
    if cache_interval > 1 and not identity.takes_cache_interval:
        raise InvalidValue(
            f"this diffusion stage takes no cache_interval but 1, not {cache_interval}; "
            "it takes others when it is started with TRIPTYCH_FEATURE_REUSE=true",
            param="cache_interval",
        )


def _check_editing(request: DenoiseRequest, identity: DiffusionIdentity) -> None:
    if identity.takes_masked_image:
        for name, tensor in (("mask", request.mask), ("masked_image_latents", request.masked_image_latents)):
            if tensor is None:
                raise InvalidValue(f"this model inpaints, and needs {name} with every request", param=name)
    elif request.masked_image_latents is not None:
        raise InvalidValue("this model takes no masked_image_latents", param="masked_image_latents")
    elif request.mask is not None and request.init_latents is None:
        raise InvalidValue("with a mask this model needs the init_latents that it keeps", param="init_latents")
    if request.mask is not None and not (request.mask.min() >= 0 and request.mask.max() <= 1):
        raise InvalidValue("a mask must be between 0, to keep, and 1, to paint", param="mask")
    if not 0 <= request.strength <= 1:
        raise InvalidValue(f"strength must be between 0 and 1, not {request.strength}", param="strength")
    if request.strength != 1 and request.init_latents is None:
        raise InvalidValue("strength says how much of a picture to change, and there are no init_latents", param="strength")
    if request.num_resamples < 1:
        raise InvalidValue(f"num_resamples must be 1 or more, not {request.num_resamples}", param="num_resamples")
    if request.num_resamples > 1 and (request.mask is None or identity.takes_masked_image):
        raise InvalidValue("num_resamples is for masks on models that take no masked image", param="num_resamples")


def _context_length(request: DenoiseRequest, identity: DiffusionIdentity) -> int:
    """How long the contexts of a request are: as long as one chunk, or as the chunks of its long prompts."""
    length = identity.context_length
    chunks, rest = divmod(request.context.shape[1], length) if request.context.ndim == 3 else (1, 0)
    if rest or not chunks:
        return length
    if chunks > identity.max_prompt_chunks:
        raise InvalidValue(
            f"the context is {chunks} chunks of {length}, the diffusion model takes {identity.max_prompt_chunks}; "
            f"it takes more when it is started with TRIPTYCH_MAX_PROMPT_CHUNKS={chunks}",
            param="context",
        )
    return chunks * length


def _check_rows(name: str, array: Float32 | None, row: tuple[int, ...], rows: int) -> None:
    if array is None:
        return
    if array.dtype != np.float32 or array.shape[1:] != row or len(array) not in (1, rows):
        shape = ", ".join(map(str, row))
        raise InvalidValue(f"{name} must be float32 ({rows} or 1, {shape}), not {array.dtype} {array.shape}", param=name)


def check_decode(request: DecodeRequest, identity: DecoderIdentity) -> None:
    """Refuses what a decoder does not take.

    Raises:
        InvalidValue: The sentence says what is allowed.
    """
    shape, dtype = request.latents.shape, request.latents.dtype
    if dtype != np.float32 or len(shape) != 4 or shape[3] != identity.latent_channels or not shape[0]:
        raise InvalidValue(
            f"latents must be float32 (B, H/{identity.downsampling}, W/{identity.downsampling}, {identity.latent_channels}), "
            f"not {dtype} {shape}",
            param="latents",
        )
    height, width = (side * identity.downsampling for side in shape[1:3])
    if (width, height) not in identity.sizes:
        allowed = ", ".join(f"{width}x{height}" for width, height in identity.sizes)
        raise InvalidValue(f"these latents are a picture of {width}x{height}; this decoder makes {allowed}", param="latents")
    if len(request.image_texts) not in (0, shape[0]):
        raise InvalidValue(f"there are {len(request.image_texts)} image_texts for {shape[0]} pictures", param="image_text")
    _check_pixels("original", request.original, (height, width, 3), shape[0])
    _check_pixels("paste_mask", request.paste_mask, (height, width), shape[0])
    if (request.original is None) != (request.paste_mask is None):
        missing = "original" if request.original is None else "paste_mask"
        raise InvalidValue(f"original and paste_mask go together; {missing} is missing", param=missing)


def check_encode_images(request: EncodeImagesRequest, identity: ImageEncoderIdentity) -> None:
    """Refuses what an image encoder does not take.

    Raises:
        InvalidValue: The sentence says what is allowed.
    """
    shape, dtype = request.images.shape, request.images.dtype
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not shape[0]:
        raise InvalidValue(f"images must be uint8 (B, H, W, 3), not {dtype} {shape}", param="images")
    if (shape[2], shape[1]) not in identity.sizes:
        allowed = ", ".join(f"{width}x{height}" for width, height in identity.sizes)
        raise InvalidValue(f"this model takes no pictures of {shape[2]}x{shape[1]}; it takes {allowed}", param="images")
    seeds = request.seeds
    if seeds is not None and (seeds.dtype != np.uint64 or seeds.shape != shape[:1]):
        raise InvalidValue("seeds must be uint64, one for each picture", param="seed")
    _check_pixels("mask", request.mask, shape[1:3], shape[0])


def _check_pixels(name: str, array: UInt8 | None, row: tuple[int, ...], rows: int) -> None:
    if array is not None and (array.dtype != np.uint8 or array.shape[1:] != row or len(array) not in (1, rows)):
        shape = ", ".join(map(str, row))
        raise InvalidValue(f"{name} must be uint8 ({rows} or 1, {shape}), not {array.dtype} {array.shape}", param=name)
