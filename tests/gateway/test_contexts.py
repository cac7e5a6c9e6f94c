"""Contexts are kept by their prompts, made once however many ask, and forgotten with their text encoder."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from tests.fakes import FakeTextEncoder, with_profile
from tests.gateway.running import until
from triptych.contract import Encoded, EncodeRequest
from triptych.errors import InvalidValue, StageFailed, StageTimeout
from triptych.gateway.contexts import CachedTextEncoder

BYTES_OF_ONE = 77 * 768 * 4


def asking(*prompts: str, **options: bool) -> EncodeRequest:
    return EncodeRequest(prompts=prompts, **options)


async def cached(stage: FakeTextEncoder, *, contexts: int = 4) -> CachedTextEncoder:
    encoder = CachedTextEncoder(stage, max_bytes=contexts * BYTES_OF_ONE)
    await encoder.identity()
    return encoder


def asked(stage: FakeTextEncoder) -> list[tuple[str, ...]]:
    return [request.prompts for request in stage.asked]


async def test_a_context_is_what_it_would_be_and_is_asked_for_once() -> None:
    stage = FakeTextEncoder()
    encoder = await cached(stage)
    for prompts in (("a circle", ""), ("a square", ""), ("a square", "a circle"), ("", "")):
        told = await encoder.encode(asking(*prompts))
        expected = await FakeTextEncoder().encode(asking(*prompts))
        assert told.context.tobytes() == expected.context.tobytes()
    assert asked(stage) == [("a circle", ""), ("a square",)]
    assert encoder.counts == {"kept": 4, "shared": 0, "made": 3}


async def test_those_asked_for_longest_ago_make_room() -> None:
    stage = FakeTextEncoder()
    encoder = await cached(stage, contexts=2)
    for prompt in ("a", "b", "a", "c", "a", "b"):
        await encoder.encode(asking(prompt))
    assert asked(stage) == [("a",), ("b",), ("c",), ("b",)]
    assert encoder.num_bytes == 2 * BYTES_OF_ONE


async def test_a_request_that_is_larger_than_all_room_is_answered_all_the_same() -> None:
    encoder = await cached(FakeTextEncoder(), contexts=1)
    assert (await encoder.encode(asking("a", "b", "c"))).context.shape[0] == 3


async def test_who_asks_for_what_is_being_made_waits_for_it() -> None:
    stage = FakeTextEncoder(gate=(gate := asyncio.Event()))
    encoder = await cached(stage)
    tasks = [asyncio.create_task(encoder.encode(asking(f"prompt {number}", ""))) for number in range(3)]
    await until(lambda: len(stage.asked) == 3)
    gate.set()
    results = await asyncio.gather(*tasks)
    assert asked(stage) == [("prompt 0", ""), ("prompt 1",), ("prompt 2",)]
    assert len({result.context[1].tobytes() for result in results}) == 1
    assert encoder.counts == {"kept": 0, "shared": 2, "made": 4}


async def test_it_is_made_as_long_as_anybody_waits_for_it() -> None:
    stage = FakeTextEncoder(gate=(gate := asyncio.Event()))
    encoder = await cached(stage)
    first, second = (asyncio.create_task(encoder.encode(asking("x"))) for _ in range(2))
    await stage.arrivals.get()
    first.cancel()
    await asyncio.wait([first])
    assert stage.cancelled == 0
    gate.set()
    assert len((await second).context) == 1


async def test_and_no_longer() -> None:
    stage = FakeTextEncoder(gate=(gate := asyncio.Event()))
    encoder = await cached(stage)
    task = asyncio.create_task(encoder.encode(asking("x")))
    await stage.arrivals.get()
    task.cancel()
    await asyncio.wait([task])
    again = asyncio.create_task(encoder.encode(asking("x")))
    await until(lambda: stage.cancelled == 1 and len(stage.asked) == 2)
    gate.set()
    assert len((await again).context) == 1


@pytest.mark.parametrize("error", [InvalidValue("too long"), StageFailed("broke", stage="text_encoder")])
async def test_an_error_is_not_kept(error: Exception) -> None:
    stage = FakeTextEncoder(failure=error)
    encoder = await cached(stage)
    with pytest.raises(type(error)):
        await encoder.encode(asking("x"))
    stage.failure = None
    assert len((await encoder.encode(asking("x"))).context) == 1


async def test_another_ones_deadline_is_not_ones_own() -> None:
    class Late(FakeTextEncoder):
        async def encode(self, request: EncodeRequest, *, deadline: float | None = None) -> Encoded:
            encoded = await super().encode(request, deadline=deadline)
            if deadline is not None:
                raise StageTimeout("too late", stage="text_encoder")
            return encoded

    stage = Late(gate=(gate := asyncio.Event()))
    encoder = await cached(stage)
    hasty = asyncio.create_task(encoder.encode(asking("x"), deadline=time.monotonic()))
    patient = asyncio.create_task(encoder.encode(asking("x")))
    await stage.arrivals.get()
    gate.set()
    with pytest.raises(StageTimeout):
        await hasty
    assert len((await patient).context) == 1


async def test_warnings_are_kept_with_the_prompt_that_they_are_about() -> None:
    encoder = await cached(FakeTextEncoder())
    long = " ".join(["word"] * 100)
    for _ in range(2):
        told = await encoder.encode(asking(long, "short", truncate=True))
        assert told.warnings == ("the prompt was cut from 100 to 77 tokens",)
    assert (await encoder.encode(asking("short", truncate=True))).warnings == ()
    with pytest.raises(InvalidValue, match="100 tokens"):
        await encoder.encode(asking(long))


async def test_another_text_encoder_has_other_contexts() -> None:
    stage = FakeTextEncoder()
    encoder = await cached(stage)
    await encoder.encode(asking("x"))
    with_profile(stage, weights_digest="9" * 64)
    await encoder.identity()
    await encoder.encode(asking("x"))
    assert len(stage.asked) == 2


async def test_what_is_made_while_the_text_encoder_is_exchanged_is_not_kept() -> None:
    stage = FakeTextEncoder(gate=(gate := asyncio.Event()))
    encoder = await cached(stage)
    task = asyncio.create_task(encoder.encode(asking("x")))
    await stage.arrivals.get()
    with_profile(stage, weights_digest="9" * 64)
    await encoder.identity()
    gate.set()
    await task
    await encoder.encode(asking("x"))
    assert len(stage.asked) == 2


@pytest.mark.parametrize(("exact", "long_prompt"), [(False, False), (True, True)])
async def test_contexts_that_depend_on_each_other_are_kept_together(exact: bool, long_prompt: bool) -> None:
    stage = with_profile(FakeTextEncoder(), exact=exact)
    encoder = await cached(stage)
    for prompts in (("a", ""), ("a", ""), ("b", "")):
        await encoder.encode(asking(*prompts, long_prompt=long_prompt))
    assert asked(stage) == [("a", ""), ("b", "")]


async def test_without_room_nothing_is_kept() -> None:
    stage = FakeTextEncoder()
    encoder = await cached(stage, contexts=0)
    for _ in range(2):
        await encoder.encode(asking("x"))
    assert len(stage.asked) == 2


async def test_nobody_can_change_what_is_kept() -> None:
    encoder = await cached(FakeTextEncoder())
    told: Encoded = await encoder.encode(asking("x"))
    with pytest.raises(ValueError, match="read-only"):
        told.context[0] = np.float32(0)
