"""Pictures that are changed: image-to-image, and inpainting in both ways, alone and in company, cut and resumed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.stages.mixed_requests import CallSizes, differing, latents_of
from tests.tiny_models import CONTEXT_LENGTH, INPAINTING_UNET, UNET, write_tiny_model
from triptych.contract import Denoised, DenoiseRequest, State
from triptych.errors import Conflict, InvalidValue
from triptych.sampling.noise import Purpose, normal
from triptych.sampling.samplers import SAMPLERS
from triptych.stages.diffusion import DiffusionStage

CONTEXTS = np.random.default_rng(3).standard_normal((2, CONTEXT_LENGTH, UNET.cross_attention_dim)).astype(np.float32)
ORIGINAL = normal(1, Purpose.POSTERIOR, 0, (4, 4, 4))[None]
MASKED = normal(2, Purpose.POSTERIOR, 0, (4, 4, 4))[None]
MASK = np.zeros((1, 4, 4, 1), np.float32)
MASK[:, :, 2:] = 1

TEXT_TO_IMAGE: dict[str, Any] = {}
IMAGE_TO_IMAGE: dict[str, Any] = {"init_latents": ORIGINAL, "strength": 0.7}
INPAINTING: dict[str, Any] = {"init_latents": ORIGINAL, "mask": MASK}
RESAMPLING: dict[str, Any] = {**INPAINTING, "strength": 0.9, "num_resamples": 2}
MASKED_IMAGE: dict[str, Any] = {"mask": MASK, "masked_image_latents": MASKED}


def some_request(seed: int = 5, **changes: Any) -> DenoiseRequest:
    values: dict[str, Any] = {
        "context": CONTEXTS[:1],
        "unconditional_context": CONTEXTS[1:],
        "seeds": np.array([seed], np.uint64),
        "width": 32,
        "height": 32,
        "sampler": "ddim",
        "num_steps": 5,
        "guidance_scale": 3.0,
    }
    return DenoiseRequest(**{**values, **changes})


@pytest.fixture(scope="module")
def stage(options) -> Iterator[DiffusionStage]:
    stage = DiffusionStage(replace(options, queue_size=32))
    stage.start()
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def inpainting_stage(options, tmp_path_factory) -> Iterator[DiffusionStage]:
    folder = write_tiny_model(tmp_path_factory.mktemp("inpainting"), unet=INPAINTING_UNET)
    stage = DiffusionStage(replace(options, model=str(folder), queue_size=32))
    stage.start()
    yield stage
    stage.close()


@pytest.mark.parametrize("sampler", SAMPLERS)
async def test_what_the_mask_leaves_comes_out_as_it_went_in(stage, sampler):
    latents = await latents_of(stage, some_request(sampler=sampler, **INPAINTING))
    np.testing.assert_array_equal(latents[:, :, :2], ORIGINAL[:, :, :2])
    assert not np.isclose(latents[:, :, 2:], ORIGINAL[:, :, 2:]).any()


async def test_all_of_a_masked_part_is_new_at_full_strength(stage):
    # Nothing of the original shines through: the painted part depends on the kept part alone.
    other = np.where(MASK == 1, ORIGINAL + 1, ORIGINAL)
    one = await latents_of(stage, some_request(**INPAINTING))
    two = await latents_of(stage, some_request(**{**INPAINTING, "init_latents": other}))
    assert one.tobytes() == two.tobytes()
    weaker = {"strength": 0.6}
    one = await latents_of(stage, some_request(**INPAINTING, **weaker))
    two = await latents_of(stage, some_request(**{**INPAINTING, "init_latents": other}, **weaker))
    assert one.tobytes() != two.tobytes()


async def test_the_less_strength_the_nearer_to_the_picture(stage):
    distances = [
        np.abs(await latents_of(stage, some_request(num_steps=10, init_latents=ORIGINAL, strength=strength)) - ORIGINAL).mean()
        for strength in (0.1, 0.4, 1.0)
    ]
    assert distances == sorted(distances)
    assert distances[0] < 0.5 * distances[-1]


async def test_a_strength_makes_its_share_of_the_steps(stage):
    events = [event async for event in stage.denoise(some_request(num_steps=10, init_latents=ORIGINAL, strength=0.4))]
    assert [event.num_evaluations for event in events[:-1]] == [4] * 4


@pytest.mark.parametrize(
    "change",
    [
        {"mask": 1 - MASK},
        {"init_latents": ORIGINAL + 0.1},
        {"strength": 0.5},
        {"num_resamples": 3},
        {"seeds": np.array([6], np.uint64)},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_everything_in_an_editing_request_matters(stage, change):
    latents = await latents_of(stage, some_request(**RESAMPLING))
    assert np.abs(await latents_of(stage, some_request(**{**RESAMPLING, **change})) - latents).max() > 1e-3


@pytest.mark.parametrize("change", [{"mask": 1 - MASK}, {"masked_image_latents": ORIGINAL}], ids=["mask", "masked_image_latents"])
async def test_an_inpainting_network_sees_mask_and_picture(inpainting_stage, change):
    assert (await inpainting_stage.identity()).takes_masked_image
    latents = await latents_of(inpainting_stage, some_request(**MASKED_IMAGE))
    assert np.abs(await latents_of(inpainting_stage, some_request(**{**MASKED_IMAGE, **change})) - latents).max() > 1e-3


async def test_an_inpainting_network_sees_them_in_the_order_of_diffusers(inpainting_stage):
    seen = []
    shape = (4, 4, 4), CONTEXTS.shape[1:]
    networks = inpainting_stage._batcher._networks
    network = networks[shape]

    def look(inputs):
        seen.append(inputs["latents"][0])
        return network(inputs)

    networks[shape] = look
    try:
        await latents_of(inpainting_stage, some_request(num_steps=1, **MASKED_IMAGE))
    finally:
        networks[shape] = network
    noise = normal(5, Purpose.INITIAL, 0, (4, 4, 4))
    np.testing.assert_array_equal(seen[0], np.concatenate([noise, MASK[0], MASKED[0]], axis=-1))


KINDS = {
    "text to image": TEXT_TO_IMAGE,
    "image to image": IMAGE_TO_IMAGE,
    "inpainting": INPAINTING,
    "resampling": RESAMPLING,
}
INPAINTING_KINDS = {
    "masked image": MASKED_IMAGE,
    "masked image and image": {**MASKED_IMAGE, "init_latents": ORIGINAL, "strength": 0.7},
}


def mixed(kinds: dict[str, dict[str, Any]]) -> list[DenoiseRequest]:
    samplers = sorted(SAMPLERS)
    return [
        some_request(seed, sampler=samplers[seed % len(samplers)], num_steps=3 + seed % 4, **kind)
        for seed, kind in enumerate(list(kinds.values()) * 4)
    ]


@pytest.mark.parametrize(("which", "kinds"), [("stage", KINDS), ("inpainting_stage", INPAINTING_KINDS)])
async def test_all_kinds_share_calls_and_each_is_what_it_is_alone(which, kinds, request):
    stage = request.getfixturevalue(which)
    requests = mixed(kinds)
    alone = [await latents_of(stage, each) for each in requests]
    calls = CallSizes(stage)
    together = await asyncio.gather(*(latents_of(stage, each) for each in requests))
    assert max(calls.sizes) >= 4
    assert not differing(alone, together)
    assert len({latents.tobytes() for latents in together}) == len(requests)


async def states_of(stage, request) -> tuple[list[State], bytes]:
    events = [event async for event in stage.denoise(replace(request, progress_every=1))]
    assert isinstance(events[-1], Denoised)
    return [event for event in events if isinstance(event, State)], events[-1].latents.tobytes()


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral", "unipc"])
@pytest.mark.parametrize("kind", [*KINDS, *INPAINTING_KINDS])
async def test_cut_anywhere_and_resumed_the_bytes_are_the_same(stage, inpainting_stage, kind, sampler):
    where = stage if kind in KINDS else inpainting_stage
    request = some_request(sampler=sampler, **(KINDS | INPAINTING_KINDS)[kind])
    states, uncut = await states_of(where, request)
    assert len(states) >= 2
    for state in states:
        assert (await latents_of(where, replace(request, resume=state.state))).tobytes() == uncut


@pytest.mark.parametrize(("change"), [{"strength": 0.5}, {"num_resamples": 3}, {"mask": None, "num_resamples": 1}])
async def test_a_state_of_another_editing_is_refused(stage, change):
    states, _ = await states_of(stage, some_request(**RESAMPLING))
    with pytest.raises(Conflict):
        await latents_of(stage, some_request(**{**RESAMPLING, **change, "resume": states[0].state}))


@pytest.mark.parametrize(
    ("which", "change", "sentence"),
    [
        ("stage", {"strength": 0.1, "init_latents": ORIGINAL}, "strength 0.1 of 5 steps leaves none"),
        ("stage", {"masked_image_latents": MASKED}, "this model takes no masked_image_latents"),
        ("inpainting_stage", {}, "this model inpaints, and needs mask with every request"),
        ("inpainting_stage", {**MASKED_IMAGE, "num_resamples": 2}, "num_resamples is for masks on models that"),
    ],
)
async def test_what_does_not_go_together_is_refused(which, change, sentence, request):
    with pytest.raises(InvalidValue, match=sentence):
        await latents_of(request.getfixturevalue(which), some_request(**change))
