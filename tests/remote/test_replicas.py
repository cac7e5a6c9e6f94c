"""Replicas of a stage: who is asked, who is passed over, and what they must have in common."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.fakes import NUMERICS, FakeDecoder, FakeDiffusion, FakeImageEncoder, FakeTextEncoder, with_profile
from tests.gateway.running import until
from triptych.contract import DecodeRequest as Latents
from triptych.contract import Denoised, DenoiseRequest, EncodeImagesRequest, EncodeRequest
from triptych.errors import InvalidValue, QueueFull, StageFailed, StageNotReady, StageTimeout, TooLarge
from triptych.remote import (
    Patience,
    ReplicatedDecoder,
    ReplicatedDiffusion,
    ReplicatedImageEncoder,
    ReplicatedTextEncoder,
    breaker,
    replicas,
)

PROMPT = EncodeRequest(prompts=("a red circle",))
LATENTS = Latents(latents=np.zeros((1, 8, 8, 4), np.float32))
PATIENT = Patience(wait_seconds=60)
QUICK = Patience(wait_seconds=60, stall_seconds=0.01)


def denoise_request() -> DenoiseRequest:
    context = np.zeros((1, 77, 768), np.float32)
    return DenoiseRequest(
        context=context,
        unconditional_context=None,
        seeds=np.array([3], np.uint64),
        width=64,
        height=64,
        sampler="ddim",
        num_steps=2,
        guidance_scale=1.0,
    )


def two(kind=FakeTextEncoder):
    return {"http://a": kind(), "http://b": kind()}


def alone(stage) -> dict[str, Any]:
    return {"http://a": stage}


def shares(stages) -> list[int]:
    return [len(stage.asked) for stage in stages.values()]


async def test_idle_replicas_take_turns() -> None:
    stages = two()
    stage = ReplicatedTextEncoder(stages)
    for _ in range(4):
        await stage.encode(PROMPT)
    assert shares(stages) == [2, 2]


async def test_the_least_busy_is_asked() -> None:
    stages = two()
    stages["http://a"].gate = asyncio.Event()
    stage = ReplicatedTextEncoder(stages)
    slow = asyncio.create_task(stage.encode(PROMPT))
    await stages["http://a"].arrivals.get()
    for _ in range(3):
        await stage.encode(PROMPT)
    assert shares(stages) == [1, 3]
    stages["http://a"].gate.set()
    await slow
    await stage.encode(PROMPT)
    assert shares(stages) == [2, 3]


async def test_one_that_is_not_ready_is_passed_over_by_every_kind_of_stage() -> None:
    for kind in (FakeTextEncoder, FakeDiffusion, FakeDecoder, FakeImageEncoder):
        stages = two(kind)
        stages["http://a"].failure = StageNotReady("cannot be reached", stage=kind.name)
        await use(stages)
        assert shares(stages) == [1, 1], kind


async def use(stages) -> None:
    match next(iter(stages.values())):
        case FakeTextEncoder():
            assert len((await ReplicatedTextEncoder(stages).encode(PROMPT)).context) == 1
        case FakeDiffusion():
            events = [event async for event in ReplicatedDiffusion(stages).denoise(denoise_request())]
            assert isinstance(events[-1], Denoised)
        case FakeDecoder():
            assert len((await ReplicatedDecoder(stages).decode(LATENTS)).images) == 1
        case FakeImageEncoder():
            images = np.zeros((1, 64, 64, 3), np.uint8)
            encoded = await ReplicatedImageEncoder(stages).encode_images(EncodeImagesRequest(images=images))
            assert encoded.latents.shape == (1, 8, 8, 4)


async def test_where_none_is_there_the_first_says_so() -> None:
    stages = two()
    for name, stage in stages.items():
        stage.failure = StageNotReady(f"{name} cannot be reached", stage="text_encoder")
    with pytest.raises(StageNotReady, match="http://a cannot be reached"):
        await ReplicatedTextEncoder(stages).encode(PROMPT)
    assert shares(stages) == [1, 1]
    diffusion = two(FakeDiffusion)
    for stage in diffusion.values():
        stage.started = False
    with pytest.raises(StageNotReady):
        await anext(ReplicatedDiffusion(diffusion).denoise(denoise_request()))


async def test_one_that_fails_is_passed_over_too_and_what_it_said_is_kept() -> None:
    stages = two()
    stages["http://a"].failure = StageFailed("computed NaN", stage="text_encoder")
    stage = ReplicatedTextEncoder(stages)
    await stage.encode(PROMPT)
    assert shares(stages) == [1, 1]
    assert [(each.failures, each.state) for each in stage.replicas] == [(1, "ready"), (0, "ready")]


async def test_one_that_claims_no_tiles_is_a_replica_all_the_same() -> None:
    stages = two(FakeDecoder)
    with_profile(stages["http://a"], tile_sizes=())
    with_profile(stages["http://b"], tile_sizes=((64, 64),))
    assert (await ReplicatedDecoder(stages).identity()).tile_sizes == ()
    with_profile(stages["http://a"], tile_sizes=((32, 32),))
    with pytest.raises(StageNotReady, match="the tile_sizes of http://a is"):
        await ReplicatedDecoder(stages).identity()


async def test_what_a_replica_refuses_is_refused() -> None:
    stages = two()
    stages["http://a"].failure = InvalidValue("too long")
    with pytest.raises(InvalidValue, match="too long"):
        await ReplicatedTextEncoder(stages).encode(PROMPT)
    assert shares(stages) == [1, 0]


async def test_one_that_is_too_small_is_passed_over_and_where_all_are_the_request_is_refused() -> None:
    stages = two(FakeDecoder)
    stages["http://a"].failure = TooLarge("too large for a")
    stage = ReplicatedDecoder(stages, patience=PATIENT)
    assert len((await stage.decode(LATENTS)).images) == 1
    assert [(each.failures, each.state) for each in stage.replicas] == [(0, "ready")] * 2
    stages["http://b"].failure = TooLarge("too large for b")
    with pytest.raises(TooLarge, match="too large for a"):
        await stage.decode(LATENTS)
    assert shares(stages) == [2, 2]


async def test_a_full_one_is_passed_over_and_where_all_are_full_the_caller_is_told() -> None:
    stages = two()
    stages["http://a"].failure = QueueFull("a is full", retry_after_seconds=1)
    stage = ReplicatedTextEncoder(stages)
    await stage.encode(PROMPT)
    stages["http://b"].failure = stages["http://a"].failure
    with pytest.raises(QueueFull, match="a is full"):
        await stage.encode(PROMPT)
    assert [each.failures for each in stage.replicas] == [0, 0]


async def test_one_that_fails_again_and_again_is_asked_at_most_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "FIRST_REST_SECONDS", 0.0)
    stages = {"http://a": FakeTextEncoder(failure=StageFailed("computed NaN", stage="text_encoder"))}
    with pytest.raises(StageFailed, match="computed NaN"):
        await ReplicatedTextEncoder(stages, patience=PATIENT).encode(PROMPT)
    assert len(stages["http://a"].asked) == replicas.MOST_FAILURES


async def test_what_went_wrong_with_another_request_is_no_error_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "FAILURES_TO_OPEN", 1)
    stage = ReplicatedTextEncoder(alone(FakeTextEncoder(failure=StageFailed("computed NaN", stage="text_encoder"))))
    with pytest.raises(StageFailed):
        await stage.encode(PROMPT)
    with pytest.raises(StageNotReady, match="no replica of the text_encoder stage is ready: computed NaN"):
        await stage.encode(PROMPT)


async def test_a_decoder_of_other_weights_gets_no_latents_of_the_one_before() -> None:
    decoder = FakeDecoder()
    stage = ReplicatedDecoder(alone(decoder), patience=PATIENT)
    await stage.identity()
    decoder.failure = StageNotReady("stopping", stage="decoder")
    with_profile(decoder, weights_digest="9" * 64)
    with pytest.raises(StageNotReady, match="the decoder stage was exchanged") as error:
        await stage.decode(LATENTS)
    assert not error.value.waited


async def test_latents_wait_for_a_decoder_and_are_lost_to_none() -> None:
    decoder = FakeDecoder(started=False)
    stage = ReplicatedDecoder(alone(decoder), patience=PATIENT)
    decoding = asyncio.create_task(stage.decode(LATENTS))
    await until(lambda: stage.replicas[0].state == "missing")
    decoder.start()
    assert len((await decoding).images) == 1


async def test_a_decoder_that_does_not_come_is_waited_for_until_the_deadline() -> None:
    stage = ReplicatedDecoder(alone(FakeDecoder(started=False)), patience=PATIENT)
    with pytest.raises(StageNotReady, match="still starting; waited 0 s") as error:
        await stage.decode(LATENTS, deadline=time.monotonic() + 0.2)
    assert error.value.waited


async def test_one_who_rests_is_probed_by_one_request_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "FIRST_REST_SECONDS", 0.0)
    stages = two()
    failing = stages["http://a"]
    failing.failure = StageFailed("computed NaN", stage="text_encoder")
    stage = ReplicatedTextEncoder(stages)
    for _ in range(6):
        await stage.encode(PROMPT)
    assert stage.replicas[0].state == "probed"
    failing.failure, failing.gate = None, asyncio.Event()
    asked = len(failing.asked)
    probe = asyncio.create_task(stage.encode(PROMPT))
    await until(lambda: len(failing.asked) > asked)
    for _ in range(3):
        await stage.encode(PROMPT)
    assert len(failing.asked) == asked + 1
    failing.gate.set()
    await probe
    assert stage.replicas[0].state == "ready"


class Frozen(FakeTextEncoder):
    """Answers nothing any more, once it is frozen; the connection stays."""

    frozen = False

    async def identity(self):
        return await self.unless_frozen(super().identity())

    async def encode(self, request: EncodeRequest, *, deadline: float | None = None):
        return await self.unless_frozen(super().encode(request, deadline=deadline))

    async def unless_frozen(self, answer):
        if self.frozen:
            answer.close()
            await asyncio.Event().wait()
        return await answer


async def test_one_that_falls_silent_is_left_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "IDENTITY_TIMEOUT_SECONDS", 0.01)
    stages = two(Frozen)
    stages["http://a"].frozen = True
    stage = ReplicatedTextEncoder(stages, patience=QUICK)
    assert len((await stage.encode(PROMPT)).context) == 1
    assert [each.state for each in stage.replicas] == ["missing", "ready"]
    assert "fell silent" in str(stage.replicas[0].problem)


async def test_where_there_is_no_other_silence_is_borne(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "IDENTITY_TIMEOUT_SECONDS", 0.01)
    stages: dict[str, Any] = {"http://a": FakeTextEncoder(gate=asyncio.Event()), "http://b": Frozen()}
    stages["http://b"].frozen = True
    stage = ReplicatedTextEncoder(stages, patience=QUICK)
    await stage.identity()
    encoding = asyncio.create_task(stage.encode(PROMPT))
    await asyncio.sleep(0.1)
    stages["http://a"].gate.set()
    await encoding
    assert len(stages["http://a"].asked) == 1


async def test_a_denoising_counts_until_it_is_closed() -> None:
    stages = two(FakeDiffusion)
    stage = ReplicatedDiffusion(stages)
    first = stage.denoise(denoise_request())
    await anext(first)
    second = stage.denoise(denoise_request())
    await anext(second)
    await first.aclose()
    third = stage.denoise(denoise_request())
    await anext(third)
    assert shares(stages) == [2, 1]
    await second.aclose()
    await third.aclose()
    assert all(each.ended.is_set() for each in stages.values())


class TestIdentity:
    async def test_alike_but_for_their_numerics(self) -> None:
        stages = two(FakeDiffusion)
        with_profile(stages["http://b"], numerics=replace(NUMERICS, device="other"), exact=False, largest_difference=0.1)
        assert await ReplicatedDiffusion(stages).identity() == FakeDiffusion.profile

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"weights_digest": "9" * 64}, f"weights_digest of http://a is {'2' * 64}, that of http://b is {'9' * 64}"),
            ({"sizes": ((8, 8),)}, "sizes of http://a"),
        ],
    )
    async def test_what_differs_is_said(self, changes: dict[str, object], words: str) -> None:
        stages = two(FakeDiffusion)
        with_profile(stages["http://b"], **changes)
        with pytest.raises(StageNotReady, match=f"replicas of the diffusion stage are not alike.*{words}") as error:
            await ReplicatedDiffusion(stages).identity()
        assert error.value.stage == "diffusion"

    async def test_one_that_is_missing_gets_no_requests_until_it_has_said_who_it_is(self) -> None:
        stages = two()
        stages["http://b"].started = False
        stage = ReplicatedTextEncoder(stages)
        assert await stage.identity() == FakeTextEncoder.profile
        stages["http://b"].started = True
        for _ in range(2):
            await stage.encode(PROMPT)
        assert shares(stages) == [2, 0]
        await stage.identity()
        await stage.encode(PROMPT)
        assert shares(stages) == [2, 1]

    async def test_where_all_are_missing_the_first_says_why(self) -> None:
        stages = two(FakeDecoder)
        for each in stages.values():
            each.started = False
        with pytest.raises(StageNotReady, match="the decoder stage is still starting"):
            await ReplicatedDecoder(stages).identity()

    async def test_one_that_is_frozen_does_not_silence_the_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class FrozenEncoder(FakeImageEncoder):
            async def identity(self):
                await asyncio.Event().wait()

        monkeypatch.setattr(replicas, "IDENTITY_TIMEOUT_SECONDS", 0.01)
        stages = {"a": FrozenEncoder(), "b": FakeImageEncoder()}
        assert await ReplicatedImageEncoder(stages).identity() == FakeImageEncoder.profile
        del stages["b"]
        with pytest.raises(StageTimeout, match=r"decoder stage at a did not say who it is within 0\.01 s"):
            await ReplicatedImageEncoder(stages).identity()
