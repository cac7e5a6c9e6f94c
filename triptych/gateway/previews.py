"""Previews of a denoising: work for a decoder that has nothing better to do, and that nobody misses where there is none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Self

import structlog

from triptych.contract import Decoded, Decoder, DecodeRequest, ImageFormat
from triptych.errors import TriptychError
from triptych.pipeline import PredictedOriginal, StageProgress

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What the pictures looked like after some evaluations: a JPEG each."""

    progress: StageProgress
    images: tuple[bytes, ...]


class IdleDecoder:
    """A model's decoder while no picture is with it. It makes one preview at a time, and gives it up when a picture comes."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._pictures = 0
        self._preview: asyncio.Task[Decoded] | None = None

    @asynccontextmanager
    async def left_to_a_picture(self) -> AsyncIterator[None]:
        """For the length of the block there are no previews, whoever they are for.

        It begins when the one that was in the making is gone: until then that has a place and memory at the decoder, which a
        picture would be refused for.
        """
        self._pictures += 1
        try:
            if self._preview is not None:
                self._preview.cancel()
                await asyncio.wait([self._preview])
            yield
        finally:
            self._pictures -= 1

    def start(self, request: DecodeRequest, *, deadline: float) -> asyncio.Task[Decoded] | None:
        """A preview in the making, or None where the decoder has something better to do."""
        if self._pictures or self._preview is not None:
            return None
        self._preview = asyncio.create_task(self._decode(request, deadline))
        self._preview.add_done_callback(self._forget)
        return self._preview

    async def _decode(self, request: DecodeRequest, deadline: float) -> Decoded:
        identity = await self._decoder.identity()  # a decoder of somebody else may refuse a parameter that it does not know
        return await self._decoder.decode(replace(request, preview=identity.has_preview_decoder), deadline=deadline)

    def _forget(self, task: asyncio.Task[Decoded]) -> None:
        self._preview = None


class Previews:
    """The previews of one request, as an asynchronous context manager: what is not ready when it is left is dropped.

    Args:
        decoder: Of the request's model.
        most: How many are wanted.
        deadline: Of `time.monotonic()`.
        tell: Called with each.
        count: Called for each: whether it was made, or else dropped.
    """

    def __init__(
        self,
        decoder: IdleDecoder,
        *,
        most: int,
        deadline: float,
        tell: Callable[[Preview], None],
        count: Callable[[bool], None],
    ) -> None:
        self._decoder = decoder
        self._left = most
        self._deadline = deadline
        self._tell = tell
        self._count = count
        self._task: asyncio.Task[Decoded] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def offer(self, predicted: PredictedOriginal) -> None:
        """Has a preview made if that disturbs nobody; returns at once."""
        if not self._left:
            return
        self._left -= 1
        request = DecodeRequest(latents=predicted.latents, image_format=ImageFormat.JPEG)
        task = self._decoder.start(request, deadline=self._deadline)
        if task is None:
            self._count(False)
            return
        self._task = task
        task.add_done_callback(partial(self._finish, predicted))

    def _finish(self, predicted: PredictedOriginal, task: asyncio.Task[Decoded]) -> None:
        images = _images(task)
        made = isinstance(images, tuple) and len(images) == len(predicted.latents)
        self._count(made)
        if made:
            assert isinstance(images, tuple)
            self._tell(Preview(progress=predicted.progress, images=images))


def _images(task: asyncio.Task[Decoded]) -> object:
    """None where there are none: given up, refused, failed. The picture itself will tell what is wrong, if anything is."""
    if task.cancelled():
        return None
    if (error := task.exception()) is not None:
        if not isinstance(error, TriptychError):
            log.error("preview_failed", exc_info=error)
        return None
    return task.result().images
