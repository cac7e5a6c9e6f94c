"""The three stages behind addresses that speak the Open Inference Protocol.

`identity` asks each time: whoever wants to remember the answer knows best for how long.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import httpx2

from triptych.contract import (
    Decoded,
    DecodeRequest,
    DecoderIdentity,
    DenoiseEvent,
    DenoiseRequest,
    DiffusionIdentity,
    Encoded,
    EncodedImages,
    EncodeImagesRequest,
    EncodeRequest,
    ImageEncoderIdentity,
    Priority,
    StageName,
    TextEncoderIdentity,
)
from triptych.errors import StageError
from triptych.remote.connection import StageConnection
from triptych.wire import decoder, diffusion, image_encoder, text_encoder
from triptych.wire.metadata import ModelMetadata


class RemoteTextEncoder:
    """Keeps the Protocol `TextEncoder`; the errors are those of `connection.py`."""

    def __init__(self, url: str, *, token: str | None = None, client: httpx2.AsyncClient, ip: str | None = None) -> None:
        self._stage = StageConnection(StageName.TEXT_ENCODER, url, token=token, client=client, ip=ip)

    async def identity(self) -> TextEncoderIdentity:
        metadata = await self._stage.metadata(text_encoder.MODEL)
        with self._stage.blame():
            return text_encoder.from_metadata(metadata)

    async def encode(self, request: EncodeRequest, *, deadline: float | None = None) -> Encoded:
        response = await self._stage.infer(text_encoder.MODEL, text_encoder.write_request(request), deadline=deadline)
        with self._stage.blame():
            return text_encoder.read_response(response, request)


class RemoteDiffusion:
    """Keeps the Protocol `Diffusion`; the errors are those of `connection.py`."""

    def __init__(self, url: str, *, token: str | None = None, client: httpx2.AsyncClient, ip: str | None = None) -> None:
        self._stage = StageConnection(StageName.DIFFUSION, url, token=token, client=client, ip=ip)

        self._metadata: ModelMetadata | None = None

    @property
    def evaluations_reported(self) -> int | None:
        """Evaluations of the network that it said it had before it; None where it says nothing of that."""
        return None if self._metadata is None else diffusion.evaluations_outstanding(self._metadata)

    async def identity(self) -> DiffusionIdentity:
        self._metadata = await self._stage.metadata(diffusion.MODEL)
        with self._stage.blame():
            return diffusion.from_metadata(self._metadata)

    async def denoise(self, request: DenoiseRequest, *, deadline: float | None = None) -> AsyncGenerator[DenoiseEvent, None]:
        """See `contract.Diffusion.denoise`. A stage that offers no frames gives one answer, without progress on the way.

        Closing the iterator closes the connection, which ends the denoising before its next evaluation.
        """
        try:
            if self._metadata is None:
                self._metadata = await self._stage.metadata(diffusion.MODEL, deadline=deadline)
            events = self._in_frames if diffusion.offers_frames(self._metadata) else self._at_once
            async with aclosing(events(request, self._metadata, deadline)) as told:
                async for event in told:
                    yield event
        except StageError:
            # Another stage may be at this address by the next time.
            self._metadata = None
            raise

    async def _in_frames(
        self, request: DenoiseRequest, metadata: ModelMetadata, deadline: float | None
    ) -> AsyncGenerator[DenoiseEvent, None]:
        with self._stage.blame():
            reader = diffusion.frame_reader(request, diffusion.from_metadata(metadata))
        asked = self._stage.infer_in_frames(diffusion.MODEL, diffusion.write_request(request), reader=reader, deadline=deadline)
        async with aclosing(asked) as frames:
            async for frame in frames:
                with self._stage.blame():
                    event = diffusion.read_event(frame, request)
                yield event

    async def _at_once(
        self, request: DenoiseRequest, metadata: ModelMetadata, deadline: float | None
    ) -> AsyncGenerator[DenoiseEvent, None]:
        plain = diffusion.write_request(
            replace(request, progress_every=None, previews=False, finish_here=False, priority=Priority.NORMAL)
        )
        response = await self._stage.infer(diffusion.MODEL, plain, deadline=deadline)
        with self._stage.blame():
            denoised = diffusion.read_response(response, request)
        yield denoised


class RemoteDecoder:
    """Keeps the Protocol `Decoder`; the errors are those of `connection.py`."""

    def __init__(self, url: str, *, token: str | None = None, client: httpx2.AsyncClient, ip: str | None = None) -> None:
        self._stage = StageConnection(StageName.DECODER, url, token=token, client=client, ip=ip)

    async def identity(self) -> DecoderIdentity:
        metadata = await self._stage.metadata(decoder.MODEL)
        with self._stage.blame():
            return decoder.from_metadata(metadata)

    async def decode(self, request: DecodeRequest, *, deadline: float | None = None) -> Decoded:
        response = await self._stage.infer(decoder.MODEL, decoder.write_request(request), deadline=deadline)
        with self._stage.blame():
            return decoder.read_response(response, request)


class RemoteImageEncoder:
    """Keeps the Protocol `ImageEncoder`; the errors are those of `connection.py`, and name the decoder, whose service it is."""

    def __init__(self, url: str, *, token: str | None = None, client: httpx2.AsyncClient, ip: str | None = None) -> None:
        self._stage = StageConnection(StageName.DECODER, url, token=token, client=client, ip=ip)

    async def identity(self) -> ImageEncoderIdentity:
        metadata = await self._stage.metadata(image_encoder.MODEL)
        with self._stage.blame():
            return image_encoder.from_metadata(metadata)

    async def encode_images(self, request: EncodeImagesRequest, *, deadline: float | None = None) -> EncodedImages:
        response = await self._stage.infer(image_encoder.MODEL, image_encoder.write_request(request), deadline=deadline)
        with self._stage.blame():
            return image_encoder.read_response(response, request)
