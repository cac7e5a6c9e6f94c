"""Contexts that were asked for before: the one of the empty prompt is wanted by nearly every request."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from triptych.contract import Encoded, EncodeRequest, TextEncoder, TextEncoderIdentity
from triptych.errors import StageTimeout

OUTCOMES = ("kept", "shared", "made")
"""What may become of a wish for a context: it was kept from before, it was being made for another, it was made."""


class CachedTextEncoder:
    """Keeps the Protocol `TextEncoder`, and the contexts that it gave last. Who wants one that is being made waits for it.

    A prompt's context is kept by itself where it depends on that prompt alone: where the text encoder is exact, and the prompt no
    long one, for then all prompts of a request get as many chunks as the longest needs. Else all of a request's are kept as one.

    Args:
        text_encoder: Whose contexts they are. Where it says that it is another, all of them are forgotten.
        max_bytes: Of the contexts that are kept; 0 keeps none.

    Attributes:
        counts: Of prompts, or of requests where these are kept as one, by outcome.
    """

    def __init__(self, text_encoder: TextEncoder, *, max_bytes: int) -> None:
        self.counts = dict.fromkeys(OUTCOMES, 0)
        self._text_encoder = text_encoder
        self._max_bytes = max_bytes
        self._identity: TextEncoderIdentity | None = None
        self._kept: OrderedDict[EncodeRequest, Encoded] = OrderedDict()
        self._flights: dict[EncodeRequest, _Flight] = {}

    @property
    def replicas(self) -> tuple[Any, ...]:
        """See `gateway.replicas`."""
        return tuple(getattr(self._text_encoder, "replicas", ()))

    @property
    def num_bytes(self) -> int:
        return sum(encoded.context.nbytes for encoded in self._kept.values())

    async def identity(self) -> TextEncoderIdentity:
        identity = await self._text_encoder.identity()
        if identity != self._identity:
            self._identity = identity
            self._kept.clear()
            self._flights = {}
        return identity

    async def encode(self, request: EncodeRequest, *, deadline: float | None = None) -> Encoded:
        """See `contract.TextEncoder.encode`."""
        if self._identity is None or not self._max_bytes:
            return await self._text_encoder.encode(request, deadline=deadline)
        parts = self._parts(request)
        self._begin([part for part in dict.fromkeys(parts) if not self._is_known(part)], deadline)
        # Nothing is awaited before this: what is kept or made now could be gone by then.
        return _joined(await _all(*[self._answer(part, self._source(part), deadline) for part in parts]))

    def _parts(self, request: EncodeRequest) -> list[EncodeRequest]:
        assert self._identity is not None
        if request.long_prompt or not self._identity.exact:
            return [request]
        return [replace(request, prompts=(prompt,)) for prompt in request.prompts]

    def _is_known(self, part: EncodeRequest) -> bool:
        """Whether nobody need be asked for it; counts what becomes of the wish for it."""
        if part in self._kept:
            self._kept.move_to_end(part)
            outcome = "kept"
        else:
            outcome = "shared" if self._flight_of(part) else "made"
        self.counts[outcome] += 1
        return outcome != "made"

    def _flight_of(self, part: EncodeRequest) -> _Flight | None:
        flight = self._flights.get(part)
        return None if flight is None or flight.task.cancelling() else flight

    def _begin(self, parts: Sequence[EncodeRequest], deadline: float | None) -> None:
        """Has some made that are not known, in one request."""
        if parts:
            flight = _Flight(asyncio.create_task(self._make(parts, deadline)))
            self._flights |= dict.fromkeys(parts, flight)

    def _source(self, part: EncodeRequest) -> Encoded | _Flight:
        return self._kept.get(part) or self._flights[part].joined()

    async def _answer(self, part: EncodeRequest, source: Encoded | _Flight, deadline: float | None) -> Encoded:
        if isinstance(source, Encoded):
            return source
        try:
            return (await source.answer())[part]
        except StageTimeout:
            # Its deadline was that of whoever asked first.
            if deadline is not None and time.monotonic() >= deadline:
                raise
            return await self._text_encoder.encode(part, deadline=deadline)

    async def _make(self, parts: Sequence[EncodeRequest], deadline: float | None) -> Mapping[EncodeRequest, Encoded]:
        identity = self._identity
        try:
            made = await self._encode_all(parts, deadline)
        finally:
            for part in parts:
                if (flight := self._flights.get(part)) is not None and flight.task is asyncio.current_task():
                    del self._flights[part]
        if identity == self._identity:  # else another text encoder was there by the time this one answered
            self._keep(made)
        return made

    async def _encode_all(self, parts: Sequence[EncodeRequest], deadline: float | None) -> Mapping[EncodeRequest, Encoded]:
        prompts = tuple(prompt for part in parts for prompt in part.prompts)
        encoded = await self._text_encoder.encode(replace(parts[0], prompts=prompts), deadline=deadline)
        if len(parts) == 1:
            return {parts[0]: encoded}
        if encoded.warnings:  # which do not say whose they are
            return {part: await self._text_encoder.encode(part, deadline=deadline) for part in parts}
        # Copied, because a row of an array would keep all of it.
        return {part: Encoded(context=encoded.context[row : row + 1].copy()) for row, part in enumerate(parts)}

    def _keep(self, made: Mapping[EncodeRequest, Encoded]) -> None:
        for part, encoded in made.items():
            encoded.context.setflags(write=False)
            self._kept[part] = encoded
        while self.num_bytes > self._max_bytes:
            self._kept.popitem(last=False)


@dataclass
class _Flight:
    """Contexts in the making. They are given up when nobody waits for them any more."""

    task: asyncio.Task[Mapping[EncodeRequest, Encoded]]
    waiting: int = 0

    def joined(self) -> Self:
        """The same with one more who waits for its answer."""
        self.waiting += 1
        return self

    async def answer(self) -> Mapping[EncodeRequest, Encoded]:
        """For one who has joined."""
        try:
            return await asyncio.shield(self.task)
        finally:
            self.waiting -= 1
            if not self.waiting:
                self.task.cancel()


async def _all(*parts: Coroutine[Any, Any, Encoded]) -> list[Encoded]:
    """All of them; where one fails the others are given up, and its error is raised as it is."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _joined(parts: Sequence[Encoded]) -> Encoded:
    if len(parts) == 1:
        return parts[0]
    warnings = tuple(warning for part in parts for warning in part.warnings)
    return Encoded(context=np.concatenate([part.context for part in parts]), warnings=warnings)
