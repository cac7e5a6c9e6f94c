"""Stages as models of the Open Inference Protocol: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

from triptych.contract import Decoder, Denoised, DenoiseEvent, DenoiseRequest, Diffusion, ImageEncoder, StageName, TextEncoder
from triptych.errors import InvalidValue, StageFailed
from triptych.wire import decoder, diffusion, image_encoder, text_encoder
from triptych.wire.frames import MEDIA_TYPE, Frame
from triptych.wire.identities import memory_parameters
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


class WireFormat(Protocol):
    """A module of `triptych.wire`: a model's tensors to and from what its stage takes and gives."""

    MODEL: str

    def to_metadata(self, identity: Any, /) -> ModelMetadata: ...

    def read_request(self, request: InferRequest, identity: Any, /) -> Any:
        """Raises InvalidValue where the request does not fit the model."""

    def write_response(self, answer: Any, /) -> InferResponse: ...


@dataclass(frozen=True)
class CalledModel:
    """A model whose inference is one call of its stage."""

    wire: WireFormat
    stage_name: StageName
    stage: TextEncoder | Decoder | ImageEncoder
    verb: Callable[..., Awaitable[Any]]

    @property
    def name(self) -> str:
        return self.wire.MODEL

    async def metadata(self) -> ModelMetadata:
        return _with_memory(self.wire.to_metadata(await self.stage.identity()), self.stage)

    async def infer(self, request: InferRequest, *, deadline: float) -> InferResponse:
        asked = self.wire.read_request(request, await self.stage.identity())
        return self.wire.write_response(await self.verb(asked, deadline=deadline))


@dataclass(frozen=True)
class DiffusionModel:
    """`diffusion`."""

    stage: Diffusion
    name: ClassVar[str] = diffusion.MODEL
    stage_name: ClassVar[StageName] = StageName.DIFFUSION

    async def metadata(self) -> ModelMetadata:
        outstanding = getattr(self.stage, "evaluations_outstanding", None)
        metadata = diffusion.to_metadata(await self.stage.identity(), evaluations_outstanding=outstanding)
        return _with_memory(metadata, self.stage)

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


def _with_memory(metadata: ModelMetadata, stage: object) -> ModelMetadata:
    """What pictures cost at a stage that counts it is told with who it is."""
    return replace(metadata, parameters={**metadata.parameters, **memory_parameters(getattr(stage, "memory", None))})


_BY_VERB: Mapping[str, Callable[[Any], ServedModel]] = {
    "encode": lambda stage: CalledModel(text_encoder, StageName.TEXT_ENCODER, stage, stage.encode),
    "denoise": DiffusionModel,
    "decode": lambda stage: CalledModel(decoder, StageName.DECODER, stage, stage.decode),
    "encode_images": lambda stage: CalledModel(image_encoder, StageName.DECODER, stage, stage.encode_images),
}


def served_model(stage: TextEncoder | Diffusion | Decoder | ImageEncoder) -> ServedModel:
    """The model that a stage is on the wire. A stage is known by its verb."""
    (model,) = (make(stage) for verb, make in _BY_VERB.items() if hasattr(stage, verb))
    return model
