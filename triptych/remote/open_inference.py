"""The three stages behind addresses that speak the Open Inference Protocol.

`identity` asks each time: whoever wants to remember the answer knows best for how long.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import httpx2

from triptych.contract import (
    Decoded,
    DecodeRequest,
    DecoderIdentity,
    Denoised,
    DenoiseRequest,
    DiffusionIdentity,
    Encoded,
    EncodeRequest,
    Progress,
    StageName,
    TextEncoderIdentity,
)
from triptych.remote.connection import StageConnection
from triptych.wire import decoder, diffusion, text_encoder


class RemoteTextEncoder:
    """Keeps the Protocol `TextEncoder`; the errors are those of `connection.py`."""

    def __init__(self, url: str, *, token: str | None = None, client: httpx2.AsyncClient) -> None:
        self._stage = StageConnection(StageName.TEXT_ENCODER, url, token=token, client=client)

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

    def __init__(self, url: str, *, token: str | None = None, client: httpx2.AsyncClient) -> None:
        self._stage = StageConnection(StageName.DIFFUSION, url, token=token, client=client)

    async def identity(self) -> DiffusionIdentity:
        metadata = await self._stage.metadata(diffusion.MODEL)
        with self._stage.blame():
            return diffusion.from_metadata(metadata)

    async def denoise(
        self, request: DenoiseRequest, *, deadline: float | None = None
    ) -> AsyncGenerator[Progress | Denoised, None]:
        """One answer, without progress on the way: a plain `infer` has none."""
        response = await self._stage.infer(diffusion.MODEL, diffusion.write_request(request), deadline=deadline)
        with self._stage.blame():
            denoised = diffusion.read_response(response, request)
        yield denoised


class RemoteDecoder:
    """Keeps the Protocol `Decoder`; the errors are those of `connection.py`."""

    def __init__(self, url: str, *, token: str | None = None, client: httpx2.AsyncClient) -> None:
        self._stage = StageConnection(StageName.DECODER, url, token=token, client=client)

    async def identity(self) -> DecoderIdentity:
        metadata = await self._stage.metadata(decoder.MODEL)
        with self._stage.blame():
            return decoder.from_metadata(metadata)

    async def decode(self, request: DecodeRequest, *, deadline: float | None = None) -> Decoded:
        response = await self._stage.infer(decoder.MODEL, decoder.write_request(request), deadline=deadline)
        with self._stage.blame():
            return decoder.read_response(response, request)
