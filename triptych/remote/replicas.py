"""Several replicas of a stage as one stage: each request goes to the least busy of them.

A replica that cannot be reached, or says that it is not ready, is passed over for the next one, as long as nothing has been
answered. Replicas must be alike in all that decides a picture; only their `numerics` may differ.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import fields
from itertools import count
from typing import Any, Generic, Protocol, TypeVar

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
    StageName,
    TextEncoderIdentity,
)
from triptych.errors import StageError, StageNotReady, StageTimeout
from triptych.remote.open_inference import RemoteDecoder, RemoteDiffusion, RemoteImageEncoder, RemoteTextEncoder

IDENTITY_TIMEOUT_SECONDS = 3.0
"""Less than whoever asks them all would wait: one that is frozen must not silence the others."""

MAY_DIFFER = frozenset({"numerics", "exact", "exact_batch_sizes", "largest_difference"})

AnswerT = TypeVar("AnswerT")


class _Replica(Protocol):
    async def identity(self) -> Any: ...


ReplicaT = TypeVar("ReplicaT", bound=_Replica)


class Replicas(Generic[ReplicaT]):
    """Which replica is asked next.

    Args:
        stage: Which one they serve, for the errors.
        replicas: By the address that errors may show.
    """

    def __init__(self, stage: StageName, replicas: Mapping[str, ReplicaT]) -> None:
        self._stage = stage
        self._replicas = replicas
        # Those that said last who they are. Whoever has not may be another by now, and is not asked for pictures.
        self._heard = tuple(replicas)
        self._busy: Counter[str] = Counter()
        self._turns = count(1)
        self._last_turn: dict[str, int] = {}

    async def identity(self) -> Any:
        """What all that answer agree on; the numerics are those of the first.

        Raises:
            StageError: None answers.
            StageNotReady: They are not alike.
        """
        answers = dict(zip(self._replicas, await asyncio.gather(*map(self._ask_who, self._replicas)), strict=True))
        heard = {name: answer for name, answer in answers.items() if not isinstance(answer, StageError)}
        if not heard:
            raise next(iter(answers.values()))
        self._check_alike(heard)
        self._heard = tuple(heard)
        return next(iter(heard.values()))

    async def _ask_who(self, name: str) -> Any:
        """The identity of a replica, or the error that it is missing by."""
        try:
            async with asyncio.timeout(IDENTITY_TIMEOUT_SECONDS):
                return await self._replicas[name].identity()
        except TimeoutError:
            return StageTimeout(
                f"the {self._stage} stage at {name} did not say who it is within {IDENTITY_TIMEOUT_SECONDS:g} s",
                stage=self._stage,
            )
        except StageError as error:
            return error

    def _check_alike(self, heard: Mapping[str, Any]) -> None:
        (first, expected), *others = heard.items()
        for name, identity in others:
            for field in fields(expected):
                if field.name in MAY_DIFFER:
                    continue
                here, there = getattr(expected, field.name), getattr(identity, field.name)
                if here != there:
                    raise StageNotReady(
                        f"the replicas of the {self._stage} stage are not alike: "
                        f"the {field.name} of {first} is {here}, that of {name} is {there}",
                        stage=self._stage,
                    )

    def by_load(self) -> list[str]:
        """The replicas to ask, one after the other: the least busy first, and of those whose last turn was longest ago."""
        return sorted(self._heard, key=lambda name: (self._busy[name], self._last_turn.get(name, 0)))

    @contextmanager
    def at_work(self, name: str) -> Iterator[ReplicaT]:
        """The replica of that name, counted as busy for the length of the block."""
        self._busy[name] += 1
        self._last_turn[name] = next(self._turns)
        try:
            yield self._replicas[name]
        finally:
            self._busy[name] -= 1

    async def ask(self, work: Callable[[ReplicaT], Awaitable[AnswerT]]) -> AnswerT:
        """The answer of the first replica that is there.

        Raises:
            StageNotReady: None is; in the words of the first that was asked.
        """
        missing: list[StageNotReady] = []
        for name in self.by_load():
            with self.at_work(name) as replica:
                try:
                    return await work(replica)
                except StageNotReady as error:
                    missing.append(error)
        raise missing[0]


class ReplicatedTextEncoder:
    """Keeps the Protocol `TextEncoder`."""

    def __init__(self, replicas: Mapping[str, RemoteTextEncoder]) -> None:
        self._replicas = Replicas(StageName.TEXT_ENCODER, replicas)

    async def identity(self) -> TextEncoderIdentity:
        identity: TextEncoderIdentity = await self._replicas.identity()
        return identity

    async def encode(self, request: EncodeRequest, *, deadline: float | None = None) -> Encoded:
        return await self._replicas.ask(lambda replica: replica.encode(request, deadline=deadline))


class ReplicatedDiffusion:
    """Keeps the Protocol `Diffusion`."""

    def __init__(self, replicas: Mapping[str, RemoteDiffusion]) -> None:
        self._replicas = Replicas(StageName.DIFFUSION, replicas)

    async def identity(self) -> DiffusionIdentity:
        identity: DiffusionIdentity = await self._replicas.identity()
        return identity

    async def denoise(self, request: DenoiseRequest, *, deadline: float | None = None) -> AsyncGenerator[DenoiseEvent, None]:
        """See `contract.Diffusion.denoise`; a replica is passed over only before it has told anything."""
        missing: list[StageNotReady] = []
        for name in self._replicas.by_load():
            told = False
            with self._replicas.at_work(name) as replica:
                try:
                    async with aclosing(replica.denoise(request, deadline=deadline)) as events:
                        async for event in events:
                            told = True
                            yield event
                    return
                except StageNotReady as error:
                    if told:
                        raise
                    missing.append(error)
        raise missing[0]


class ReplicatedDecoder:
    """Keeps the Protocol `Decoder`."""

    def __init__(self, replicas: Mapping[str, RemoteDecoder]) -> None:
        self._replicas = Replicas(StageName.DECODER, replicas)

    async def identity(self) -> DecoderIdentity:
        identity: DecoderIdentity = await self._replicas.identity()
        return identity

    async def decode(self, request: DecodeRequest, *, deadline: float | None = None) -> Decoded:
        return await self._replicas.ask(lambda replica: replica.decode(request, deadline=deadline))


class ReplicatedImageEncoder:
    """Keeps the Protocol `ImageEncoder`; the errors name the decoder, whose service it is."""

    def __init__(self, replicas: Mapping[str, RemoteImageEncoder]) -> None:
        self._replicas = Replicas(StageName.DECODER, replicas)

    async def identity(self) -> ImageEncoderIdentity:
        identity: ImageEncoderIdentity = await self._replicas.identity()
        return identity

    async def encode_images(self, request: EncodeImagesRequest, *, deadline: float | None = None) -> EncodedImages:
        return await self._replicas.ask(lambda replica: replica.encode_images(request, deadline=deadline))
