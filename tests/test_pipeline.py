from __future__ import annotations

import asyncio
import hashlib
import struct
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import pytest

from triptych.contract import (
    Decoded,
    Decoder,
    DecodeRequest,
    Denoised,
    DenoiseEvent,
    DenoiseRequest,
    DenoiseState,
    Diffusion,
    Encoded,
    EncodeRequest,
    ImageFormat,
    Progress,
    StageName,
    State,
    TextEncoder,
)
from triptych.errors import InvalidValue, StageFailed, StageTimeout
from triptych.pipeline import Digests, Generated, GenerateRequest, Pipeline, PredictedOriginal, StageProgress

REQUEST = GenerateRequest(
    prompt="a red circle",
    negative_prompt="blue",
    seed=7,
    num_images=2,
    width=16,
    height=8,
    sampler="ddim",
    num_steps=2,
    guidance_scale=4.0,
    image_format=ImageFormat.PNG,
    image_texts=("one", "two"),
)


@dataclass
class ScriptedTextEncoder:
    """Answers each prompt with its length, and remembers what it was asked."""

    surplus_rows: int = 0
    asked: list[EncodeRequest] = field(default_factory=list)

    async def encode(self, request: EncodeRequest, *, deadline: float | None = None) -> Encoded:
        self.asked.append(request)
        lengths = [len(prompt) for prompt in request.prompts] + [0] * self.surplus_rows
        return Encoded(context=np.array(lengths, np.float32).reshape(-1, 1, 1), warnings=("a warning",))


@dataclass
class ScriptedDiffusion:
    """Answers with its seeds as latents, after two evaluations, unless told to do otherwise."""

    hangs: bool = False
    ends_early: bool = False
    asked: list[DenoiseRequest] = field(default_factory=list)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def denoise(self, request: DenoiseRequest, *, deadline: float | None = None) -> AsyncIterator[DenoiseEvent]:
        self.asked.append(request)
        self.started.set()
        try:
            yield Progress(position=1, num_evaluations=2)
            if self.hangs:
                await asyncio.Event().wait()
            yield Progress(position=2, num_evaluations=2)
            if not self.ends_early:
                yield Denoised(latents=request.seeds.astype(np.float32).reshape(-1, 1, 1, 1))
        finally:
            self.closed.set()


@dataclass
class ScriptedDecoder:
    surplus_rows: int = 0
    error: Exception | None = None
    digests: tuple[str, ...] = ("first", "second")
    asked: list[DecodeRequest] = field(default_factory=list)

    async def decode(self, request: DecodeRequest, *, deadline: float | None = None) -> Decoded:
        self.asked.append(request)
        if self.error:
            raise self.error
        return Decoded(images=(b"picture",) * (len(request.latents) + self.surplus_rows), pixels_sha256=self.digests)


@dataclass
class Stages:
    text_encoder: ScriptedTextEncoder = field(default_factory=ScriptedTextEncoder)
    diffusion: ScriptedDiffusion = field(default_factory=ScriptedDiffusion)
    decoder: ScriptedDecoder = field(default_factory=ScriptedDecoder)

    @property
    def pipeline(self) -> Pipeline:
        """These stages have no identity, which the pipeline never asks for."""
        return Pipeline(cast(TextEncoder, self.text_encoder), cast(Diffusion, self.diffusion), cast(Decoder, self.decoder))

    async def generate(self, request: GenerateRequest = REQUEST, *, deadline: float | None = None) -> Generated:
        *_, last = [event async for event in self.pipeline.generate(request, deadline=deadline)]
        assert isinstance(last, Generated)
        return last


async def test_what_one_stage_makes_the_next_one_gets() -> None:
    stages = Stages()

    generated = await stages.generate()

    (encode,), (denoise,), (decode,) = stages.text_encoder.asked, stages.diffusion.asked, stages.decoder.asked
    assert encode == EncodeRequest(prompts=("a red circle", "blue"))
    assert denoise.context.tolist() == [[[12.0]]]
    assert denoise.unconditional_context is not None
    assert denoise.unconditional_context.tolist() == [[[4.0]]]
    assert denoise.seeds.dtype == np.uint64
    assert denoise.seeds.tolist() == [7, 8]
    assert (denoise.width, denoise.height, denoise.sampler, denoise.num_steps) == (16, 8, "ddim", 2)
    assert denoise.guidance_scale == 4.0
    assert decode.latents.ravel().tolist() == [7.0, 8.0]
    assert (decode.image_format, decode.image_texts) == (ImageFormat.PNG, ("one", "two"))
    assert generated.images == (b"picture", b"picture")
    assert generated.seeds == (7, 8)
    assert generated.warnings == ("a warning",)


async def test_the_progress_of_all_stages_is_told_in_order() -> None:
    events = [event async for event in Stages().pipeline.generate(REQUEST)]

    assert events[:-1] == [
        StageProgress(stage=StageName.TEXT_ENCODER),
        StageProgress(stage=StageName.DIFFUSION),
        StageProgress(stage=StageName.DIFFUSION, position=1, num_evaluations=2),
        StageProgress(stage=StageName.DIFFUSION, position=2, num_evaluations=2),
        StageProgress(stage=StageName.DECODER),
    ]
    assert isinstance(events[-1], Generated)


async def test_without_guidance_no_unconditional_row_is_made_or_sent() -> None:
    stages = Stages()

    await stages.generate(replace(REQUEST, guidance_scale=1.0))

    assert stages.text_encoder.asked[0].prompts == ("a red circle",)
    assert stages.diffusion.asked[0].unconditional_context is None


async def test_guidance_of_nought_still_needs_the_unconditional_row() -> None:
    stages = Stages()

    await stages.generate(replace(REQUEST, guidance_scale=0.0))

    assert stages.diffusion.asked[0].unconditional_context is not None


def test_seeds_count_up_modulo_two_to_the_sixty_fourth() -> None:
    assert replace(REQUEST, seed=2**64 - 2, num_images=4).seeds == (2**64 - 2, 2**64 - 1, 0, 1)


async def test_what_passed_between_the_stages_is_digested() -> None:
    """The scripted contexts are the prompts' lengths, and the latents the seeds."""
    generated = await Stages().generate()

    assert generated.digests == Digests(
        context=digest_of(12.0, 4.0), latents=(digest_of(7.0), digest_of(8.0)), pixels=("first", "second")
    )


async def test_without_guidance_there_is_one_context_to_digest() -> None:
    assert (await Stages().generate(replace(REQUEST, guidance_scale=1.0))).digests.context == digest_of(12.0)


async def test_a_decoder_that_tells_no_digests_has_none() -> None:
    assert (await Stages(decoder=ScriptedDecoder(digests=())).generate()).digests.pixels is None


def digest_of(*numbers: float) -> str:
    return hashlib.sha256(struct.pack(f"<{len(numbers)}f", *numbers)).hexdigest()


async def test_every_stage_is_timed() -> None:
    generated = await Stages().generate()

    assert set(generated.seconds) == set(StageName)
    assert all(seconds > 0 for seconds in generated.seconds.values())


async def test_time_that_the_listener_takes_is_not_the_stages() -> None:
    pause, pauses = 0.05, 0
    async for event in Stages().pipeline.generate(REQUEST):
        if isinstance(event, Generated):
            assert pauses == 5
            assert sum(event.seconds.values()) < 0.9 * pauses * pause
        else:
            await asyncio.sleep(pause)
            pauses += 1


async def test_a_stage_that_hangs_is_given_up_at_the_deadline_by_name() -> None:
    stages = Stages(diffusion=ScriptedDiffusion(hangs=True))

    with pytest.raises(StageTimeout, match="the diffusion stage") as timeout:
        await stages.generate(deadline=time.monotonic() + 0.05)

    assert timeout.value.stage == StageName.DIFFUSION
    assert stages.diffusion.closed.is_set()
    assert stages.decoder.asked == []


async def test_a_deadline_that_has_passed_fails_at_the_first_stage_that_waits() -> None:
    stages = Stages(diffusion=ScriptedDiffusion(hangs=True))

    with pytest.raises(StageTimeout):
        await stages.generate(deadline=time.monotonic() - 1)


async def test_a_timeout_of_the_stage_itself_is_not_taken_for_the_deadline() -> None:
    stages = Stages(decoder=ScriptedDecoder(error=TimeoutError("of a socket")))

    with pytest.raises(TimeoutError, match="of a socket"):
        await stages.generate(deadline=time.monotonic() + 60)


async def test_closing_the_iterator_closes_the_denoising() -> None:
    stages = Stages(diffusion=ScriptedDiffusion(hangs=True))
    events = stages.pipeline.generate(REQUEST)
    while (await anext(events)) != StageProgress(stage=StageName.DIFFUSION, position=1, num_evaluations=2):
        assert not stages.diffusion.closed.is_set()

    await events.aclose()

    assert stages.diffusion.closed.is_set()


async def test_cancelling_the_task_closes_the_denoising() -> None:
    stages = Stages(diffusion=ScriptedDiffusion(hangs=True))
    task = asyncio.create_task(stages.generate())
    await stages.diffusion.started.wait()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert stages.diffusion.closed.is_set()


async def test_an_error_of_a_stage_comes_through_as_it_is() -> None:
    stages = Stages(decoder=ScriptedDecoder(error=InvalidValue("too wide", param="latents")))

    with pytest.raises(InvalidValue, match="too wide"):
        await stages.generate()


@pytest.mark.parametrize(
    ("stages", "stage", "sentence"),
    [
        (Stages(ScriptedTextEncoder(surplus_rows=1)), StageName.TEXT_ENCODER, "answered 3 contexts to 2 prompts"),
        (Stages(diffusion=ScriptedDiffusion(ends_early=True)), StageName.DIFFUSION, "ended without a result"),
        (Stages(decoder=ScriptedDecoder(surplus_rows=1)), StageName.DECODER, "answered 3 images where 2 were asked for"),
        (Stages(decoder=ScriptedDecoder(digests=("one",))), StageName.DECODER, "answered 1 digests of 2 images"),
    ],
)
async def test_a_stage_that_answers_something_else_has_failed(stages: Stages, stage: StageName, sentence: str) -> None:
    with pytest.raises(StageFailed, match=sentence) as failure:
        await stages.generate()

    assert failure.value.stage == stage


async def test_what_a_state_predicts_is_told_with_the_progress_it_belongs_to() -> None:
    request = replace(REQUEST, num_steps=6, previews=2)
    stages = Stages(diffusion=PredictingDiffusion())

    events = [event async for event in stages.pipeline.generate(request)]

    predicted = [event for event in events if isinstance(event, PredictedOriginal)]
    assert [(event.progress.position, event.latents.ravel().tolist()) for event in predicted] == [(2, [0.5]), (4, [0.75])]
    assert (stages.diffusion.asked[0].progress_every, stages.diffusion.asked[0].previews) == (2, True)


async def test_states_without_a_prediction_are_nobodys_business() -> None:
    stages = Stages(diffusion=PredictingDiffusion(predicts=False))

    events = [event async for event in stages.pipeline.generate(REQUEST)]

    assert {type(event) for event in events} == {StageProgress, Generated}
    assert (stages.diffusion.asked[0].progress_every, stages.diffusion.asked[0].previews) == (None, False)


@dataclass
class PredictingDiffusion(ScriptedDiffusion):
    """Tells a state at the evaluations 2 and 4 of 6."""

    predicts: bool = True

    async def denoise(self, request: DenoiseRequest, *, deadline: float | None = None) -> AsyncIterator[DenoiseEvent]:
        self.asked.append(request)
        latents = request.seeds.astype(np.float32).reshape(-1, 1, 1, 1)
        for position in range(1, 7):
            yield Progress(position=position, num_evaluations=6)
            if position in (2, 4):
                state = DenoiseState(
                    latents=latents, sampler_state=latents, position=np.array([position], np.int32), state_key=""
                )
                predicted = np.full((1, 1, 1, 1), 0.25 + position / 8, np.float32) if self.predicts else None
                yield State(state=state, predicted_original=predicted)
        yield Denoised(latents=latents)
