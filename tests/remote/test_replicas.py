"""Replicas of a stage: who is asked, who is passed over, and what they must have in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

import numpy as np
import pytest

from tests.fakes import NUMERICS, FakeDecoder, FakeDiffusion, FakeImageEncoder, FakeTextEncoder, with_profile
from triptych.contract import DecodeRequest as Latents
from triptych.contract import Denoised, DenoiseEvent, DenoiseRequest, EncodeImagesRequest, EncodeRequest, Progress
from triptych.errors import StageFailed, StageNotReady, StageTimeout
from triptych.remote import (
    ReplicatedDecoder,
    ReplicatedDiffusion,
    ReplicatedImageEncoder,
    ReplicatedTextEncoder,
    replicas,
)

PROMPT = EncodeRequest(prompts=("a red circle",))


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
            latents = np.zeros((1, 8, 8, 4), np.float32)
            assert len((await ReplicatedDecoder(stages).decode(Latents(latents=latents))).images) == 1
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


async def test_one_that_fails_is_not_passed_over() -> None:
    """It may have done half of the work: who goes on, and from where, is another question."""
    stages = two()
    stages["http://a"].failure = StageFailed("broke off", stage="text_encoder")
    with pytest.raises(StageFailed):
        await ReplicatedTextEncoder(stages).encode(PROMPT)
    assert shares(stages) == [1, 0]


class StoppingDiffusion(FakeDiffusion):
    """Tells of one evaluation, and then that it stops."""

    async def denoise(self, request: DenoiseRequest, *, deadline: float | None = None) -> AsyncGenerator[DenoiseEvent, None]:
        self.asked.append(request)
        yield Progress(position=1, num_evaluations=2)
        raise StageNotReady("stopping", stage="diffusion")


async def test_a_denoising_that_has_begun_stays_where_it_is() -> None:
    stages = {"http://a": StoppingDiffusion(), "http://b": FakeDiffusion()}
    events = ReplicatedDiffusion(stages).denoise(denoise_request())
    assert await anext(events) == Progress(position=1, num_evaluations=2)
    with pytest.raises(StageNotReady, match="stopping"):
        await anext(events)
    assert shares(stages) == [1, 0]


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
        class Frozen(FakeImageEncoder):
            async def identity(self):
                await asyncio.Event().wait()

        monkeypatch.setattr(replicas, "IDENTITY_TIMEOUT_SECONDS", 0.01)
        stages = {"a": Frozen(), "b": FakeImageEncoder()}
        assert await ReplicatedImageEncoder(stages).identity() == FakeImageEncoder.profile
        del stages["b"]
        with pytest.raises(StageTimeout, match=r"decoder stage at a did not say who it is within 0\.01 s"):
            await ReplicatedImageEncoder(stages).identity()
