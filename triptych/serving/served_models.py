"""Stages as models of the Open Inference Protocol: tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from triptych.contract import Decoder, Denoised, Diffusion, StageName, TextEncoder
from triptych.errors import StageFailed
from triptych.wire import decoder, diffusion, text_encoder
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
        denoised = None
        async for event in self.stage.denoise(denoise, deadline=deadline):
            denoised = event if isinstance(event, Denoised) else None
        if denoised is None:
            raise StageFailed("the diffusion stage ended without a result", stage=self.stage_name)
        return diffusion.write_response(denoised)


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


_BY_VERB: Mapping[str, Callable[[Any], ServedModel]] = {
    "encode": TextEncoderModel,
    "denoise": DiffusionModel,
    "decode": DecoderModel,
}


def served_model(stage: TextEncoder | Diffusion | Decoder) -> ServedModel:
    """The model that a stage is on the wire. A stage is known by its verb."""
    (model,) = (make(stage) for verb, make in _BY_VERB.items() if hasattr(stage, verb))
    return model
