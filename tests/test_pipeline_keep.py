"""A request that is cut off anywhere and begun again with what was kept: the same picture, and nothing is computed twice."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from tests.fakes import FakeDecoder, FakeDiffusion, FakeImageEncoder, FakeTextEncoder, with_profile
from triptych.contract import Denoised, DenoiseState, Encoded, EncodedImages, ImageFormat, Task
from triptych.pipeline import Edit, Generated, GenerateRequest, Kept, Mask, Pipeline

STEPS = 4
PLAIN = GenerateRequest(
    prompt="a red circle",
    negative_prompt="blue",
    seed=7,
    num_images=2,
    width=64,
    height=64,
    sampler="euler",  # of which the stand-in keeps an array between two evaluations
    num_steps=STEPS,
    guidance_scale=4.0,
    image_format=ImageFormat.PNG,
)
EDITED = replace(
    PLAIN,
    edit=Edit(
        image=np.full((64, 64, 3), 200, np.uint8),
        mask=Mask(
            pixels=np.full((64, 64), 255, np.uint8),
            latents=np.ones((8, 8, 1), np.float32),
            paste=np.full((64, 64), 255, np.uint8),
        ),
        strength=0.5,
        num_resamples=1,
    ),
)


class Drawer:
    """Keeps what it is given by its kind."""

    def __init__(self) -> None:
        self.kept: dict[type, Any] = {}

    async def recall(self, kind: type[Kept]) -> Kept | None:
        return self.kept.get(kind)

    async def keep(self, made: Kept) -> None:
        self.kept[type(made)] = made


@dataclass
class Stages:
    text_encoder: FakeTextEncoder = field(default_factory=FakeTextEncoder)
    diffusion: FakeDiffusion = field(default_factory=lambda: with_profile(FakeDiffusion(), tasks=tuple(Task)))
    decoder: FakeDecoder = field(default_factory=FakeDecoder)
    image_encoder: FakeImageEncoder = field(default_factory=FakeImageEncoder)

    @property
    def pipeline(self) -> Pipeline:
        return Pipeline(self.text_encoder, self.diffusion, self.decoder, self.image_encoder)

    async def generate(self, request: GenerateRequest, keep: Drawer | None, *, events: int | None = None) -> Generated | None:
        """The pictures, or None where it is cut off after so many events."""
        async with aclosing(self.pipeline.generate(request, keep=keep)) as told:
            async for event in told:
                if isinstance(event, Generated):
                    return event
                if events is not None and (events := events - 1) < 0:
                    return None
        raise AssertionError("it ended without pictures")


@pytest.mark.parametrize("request_", [PLAIN, EDITED], ids=["plain", "edited"])
async def test_cut_off_after_any_event_nothing_is_made_twice(request_: GenerateRequest) -> None:
    whole = await Stages().generate(request_, None)
    assert whole is not None
    cuts = 0
    while True:
        stages, keep = Stages(), Drawer()
        ended = await stages.generate(request_, keep, events=cuts)
        again = await stages.generate(request_, keep)
        assert again is not None
        assert (again.images, again.digests, again.warnings) == (whole.images, whole.digests, whole.warnings)
        assert len(stages.text_encoder.asked) == 1
        assert len(stages.image_encoder.asked) == (request_.edit is not None)
        # What is told before its state is kept is the one evaluation that may be lost.
        assert STEPS <= stages.diffusion.evaluations <= STEPS + 1
        if ended is not None:
            break
        cuts += 1
    assert cuts == STEPS + 3


@pytest.mark.parametrize("kept", range(STEPS))
async def test_a_denoising_goes_on_from_the_newest_state(kept: int) -> None:
    """Cut off between the states, as by the end of a process, and not at an event."""
    stages = Stages()
    whole = await stages.generate(PLAIN, None)

    class Full(Drawer):
        async def keep(self, made: Kept) -> None:
            if (isinstance(made, DenoiseState) and made.position.min() > kept) or isinstance(made, Denoised):
                raise OSError("the process ended")
            await super().keep(made)

    keep, left = Full(), Drawer()
    with pytest.raises(OSError, match="ended"):
        await stages.generate(PLAIN, keep)
    left.kept = keep.kept
    before = stages.diffusion.evaluations

    again = await stages.generate(PLAIN, left)

    assert again is not None
    assert whole is not None
    assert again.images == whole.images
    assert stages.diffusion.evaluations - before == STEPS - kept
    assert (stages.diffusion.asked[-1].resume is not None) is (kept > 0)


async def test_with_denoised_latents_only_the_decoder_is_asked() -> None:
    stages, keep = Stages(), Drawer()
    whole = await stages.generate(EDITED, keep)
    assert set(keep.kept) == {Encoded, EncodedImages, DenoiseState, Denoised}
    for stage in (stages.text_encoder, stages.diffusion, stages.image_encoder, stages.decoder):
        stage.asked.clear()

    again = await stages.generate(EDITED, keep)

    assert again is not None
    assert whole is not None
    assert again.images == whole.images
    asked = (stages.text_encoder.asked, stages.diffusion.asked, stages.image_encoder.asked)
    assert (asked, len(stages.decoder.asked)) == (([], [], []), 1)
    assert set(again.seconds.values()) > {0.0}


async def test_without_a_keep_no_states_are_asked_for() -> None:
    stages = Stages()
    await stages.generate(PLAIN, None)
    assert [(each.progress_every, each.resume) for each in stages.diffusion.asked] == [(None, None)]
