"""Stages as models of the Open Inference Protocol: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from triptych.contract import Decoder, Denoised, DenoiseEvent, DenoiseRequest, Diffusion, ImageEncoder, StageName, TextEncoder
from triptych.errors import InvalidValue, StageFailed
from triptych.wire import decoder, diffusion, image_encoder, text_encoder
from triptych.wire.frames import MEDIA_TYPE, Frame
from triptych.wire.metadata import ModelMetadata
from triptych.wire.open_inference import InferRequest, InferResponse


class ServedModel(Protocol):
    """One model of a service."""

    @property
    def name(self) -> str:
        """As addresses have it."""

    @property
    def stage_name(self) -> StageName:
        """Whom errors name."""

    async def metadata(self) -> ModelMetadata:
        """Raises StageNotReady while it cannot work."""

    async def infer(self, request: InferRequest, *, deadline: float) -> InferResponse:
        """One inference. Raises what the stage's Protocol says, and InvalidValue where the request does not fit."""


@runtime_checkable
class FramedModel(ServedModel, Protocol):
    """A model that tells how far an inference is."""

    def frames(self, request: InferRequest, *, deadline: float) -> AsyncGenerator[Frame, None]:
        """The frames of one inference, the last one its result. Raises what `infer` raises."""


@dataclass(frozen=True)
class TextEncoderModel:
    """`text_encoder`."""

    stage: TextEncoder
    name: ClassVar[str] = text_encoder.MODEL
    stage_name: ClassVar[StageName] = StageName.TEXT_ENCODER

    async def metadata(self) -> ModelMetadata:
        return text_encoder.to_metadata(await self.stage.identity())

    async def infer(self, request: InferRequest, *, deadline: float) -> InferResponse:
        encode = text_encoder.read_request(request, await self.stage.identity())
        return text_encoder.write_response(await self.stage.encode(encode, deadline=deadline))


@dataclass(frozen=True)
class DiffusionModel:
    """`diffusion`."""

    stage: Diffusion
    name: ClassVar[str] = diffusion.MODEL
    stage_name: ClassVar[StageName] = StageName.DIFFUSION

    async def metadata(self) -> ModelMetadata:
        return diffusion.to_metadata(await self.stage.identity())

    async def infer(self, request: InferRequest, *, deadline: float) -> InferResponse:
        denoise = diffusion.read_request(request, await self.stage.identity())
        for name, value in (("progress_every", denoise.progress_every), ("previews", denoise.previews)):
            if value:
                raise InvalidValue(f"{name} is for answers in frames: ask for them with Accept: {MEDIA_TYPE}", param=name)
        async with aclosing(self._events(denoise, deadline)) as events:
            async for event in events:
                if isinstance(event, Denoised):
                    denoised = event
        return diffusion.write_response(denoised)

    async def frames(self, request: InferRequest, *, deadline: float) -> AsyncGenerator[Frame, None]:
        denoise = diffusion.read_request(request, await self.stage.identity())
        async with aclosing(self._events(denoise, deadline)) as events:
            async for event in events:
                yield diffusion.write_event(event)

    async def _events(self, request: DenoiseRequest, deadline: float) -> AsyncGenerator[DenoiseEvent, None]:
        """What the stage tells, with a result at the end."""
        event: DenoiseEvent | None = None
        events = self.stage.denoise(request, deadline=deadline)
        try:
            async for event in events:
                yield event
        finally:
            # Here and not whenever it is collected: this is what cancels a denoising.
            if isinstance(events, AsyncGenerator):
                await events.aclose()
        if not isinstance(event, Denoised):
            raise StageFailed("the diffusion stage ended without a result", stage=self.stage_name)


@dataclass(frozen=True)
class DecoderModel:
    """`decoder`."""

    stage: Decoder
    name: ClassVar[str] = decoder.MODEL
    stage_name: ClassVar[StageName] = StageName.DECODER

    async def metadata(self) -> ModelMetadata:
        return decoder.to_metadata(await self.stage.identity())

    async def infer(self, request: InferRequest, *, deadline: float) -> InferResponse:
        decode = decoder.read_request(request, await self.stage.identity())
        return decoder.write_response(await self.stage.decode(decode, deadline=deadline))


@dataclass(frozen=True)
class ImageEncoderModel:
    """`image_encoder`."""

    stage: ImageEncoder
    name: ClassVar[str] = image_encoder.MODEL
    stage_name: ClassVar[StageName] = StageName.DECODER

    async def metadata(self) -> ModelMetadata:
        return image_encoder.to_metadata(await self.stage.identity())

    async def infer(self, request: InferRequest, *, deadline: float) -> InferResponse:
        await self.stage.identity()
        return image_encoder.write_response(
            await self.stage.encode_images(image_encoder.read_request(request), deadline=deadline)
        )


_BY_VERB: Mapping[str, Callable[[Any], ServedModel]] = {
    "encode": TextEncoderModel,
    "denoise": DiffusionModel,
    "decode": DecoderModel,
    "encode_images": ImageEncoderModel,
}


def served_model(stage: TextEncoder | Diffusion | Decoder | ImageEncoder) -> ServedModel:
    """The model that a stage is on the wire. A stage is known by its verb."""
    (model,) = (make(stage) for verb, make in _BY_VERB.items() if hasattr(stage, verb))
    return model
