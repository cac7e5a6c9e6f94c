"""The stages that answer once, as replicas; `failover.py` is the one that answers step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triptych.contract import (
    Decoded,
    DecodeRequest,
    DecoderIdentity,
    Encoded,
    EncodedImages,
    EncodeImagesRequest,
    EncodeRequest,
    ImageEncoderIdentity,
    StageName,
    TextEncoderIdentity,
)
from triptych.remote.open_inference import RemoteDecoder, RemoteImageEncoder, RemoteTextEncoder
from triptych.remote.replica import ReplicaStatus
from triptych.remote.replicas import Replicas


class ReplicatedTextEncoder:
    """Keeps the Protocol `TextEncoder`. Arguments are those of `Replicas`."""

    def __init__(self, stages: Mapping[str, RemoteTextEncoder], **options: Any) -> None:
        self._replicas: Replicas[RemoteTextEncoder] = Replicas(StageName.TEXT_ENCODER, stages, **options)

    @property
    def replicas(self) -> tuple[ReplicaStatus, ...]:
        return self._replicas.status

    async def identity(self) -> TextEncoderIdentity:
        identity: TextEncoderIdentity = await self._replicas.identity()
        return identity

    async def encode(self, request: EncodeRequest, *, deadline: float | None = None) -> Encoded:
        return await self._replicas.call(
            lambda stage: stage.encode(request, deadline=deadline), rows=len(request.prompts), deadline=deadline
        )


class ReplicatedDecoder:
    """Keeps the Protocol `Decoder`. Latents have cost a denoising: where no replica is there, they wait for one."""

    def __init__(self, stages: Mapping[str, RemoteDecoder], **options: Any) -> None:
        self._replicas: Replicas[RemoteDecoder] = Replicas(StageName.DECODER, stages, **options)

    @property
    def replicas(self) -> tuple[ReplicaStatus, ...]:
        return self._replicas.status

    async def identity(self) -> DecoderIdentity:
        identity: DecoderIdentity = await self._replicas.identity()
        return identity

    async def decode(self, request: DecodeRequest, *, deadline: float | None = None) -> Decoded:
        return await self._replicas.call(
            lambda stage: stage.decode(request, deadline=deadline), rows=len(request.latents), deadline=deadline, keep=True
        )


class ReplicatedImageEncoder:
    """Keeps the Protocol `ImageEncoder`; the errors name the decoder, whose service it is."""

    def __init__(self, stages: Mapping[str, RemoteImageEncoder], **options: Any) -> None:
        self._replicas: Replicas[RemoteImageEncoder] = Replicas(StageName.DECODER, stages, **options)

    @property
    def replicas(self) -> tuple[ReplicaStatus, ...]:
        return self._replicas.status

    async def identity(self) -> ImageEncoderIdentity:
        identity: ImageEncoderIdentity = await self._replicas.identity()
        return identity

    async def encode_images(self, request: EncodeImagesRequest, *, deadline: float | None = None) -> EncodedImages:
        return await self._replicas.call(
            lambda stage: stage.encode_images(request, deadline=deadline), rows=len(request.images), deadline=deadline
        )
