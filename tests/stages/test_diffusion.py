from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.tiny_models import CONTEXT_LENGTH, FACTS, SIZES, UNET
from triptych.contract import Denoised, DenoiseRequest, DenoiseState, Progress, State, Task
from triptych.errors import CheckpointError, Conflict, InvalidValue, QueueFull, StageFailed, StageTimeout
from triptych.sampling.noise import Purpose, normal
from triptych.sampling.samplers import SAMPLERS
from triptych.stages.diffusion import DiffusionStage

CONTEXTS = np.random.default_rng(3).standard_normal((4, CONTEXT_LENGTH, UNET.cross_attention_dim)).astype(np.float32)


@pytest.fixture(scope="module")
def stage(options) -> Iterator[DiffusionStage]:
    stage = DiffusionStage(replace(options, queue_size=2))
    stage.start()
    yield stage
    stage.close()


class CountingNetwork:
    """A network that remembers how many rows each call had."""

    def __init__(self, network) -> None:
        self.network = network
        self.calls: list[int] = []

    def __call__(self, inputs):
        self.calls.append(len(inputs["latents"]))
        return self.network(inputs)


@pytest.fixture
def network(stage, monkeypatch) -> CountingNetwork:
    shape = (4, 4, 4), CONTEXTS.shape[1:]
    network = CountingNetwork(stage._batcher._networks[shape])
    monkeypatch.setitem(stage._batcher._networks, shape, network)
    return network


def some_request(*seeds: int, **changes: Any) -> DenoiseRequest:
    values: dict[str, Any] = {
        "context": CONTEXTS[:1],
        "unconditional_context": CONTEXTS[1:2],
        "seeds": np.array(seeds or (1,), np.uint64),
        "width": 32,
        "height": 32,
        "sampler": "ddim",
        "num_steps": 3,
        "guidance_scale": 3.0,
    }
    return DenoiseRequest(**{**values, **changes})


async def denoise(stage, request, **arguments):
    events = [event async for event in stage.denoise(request, **arguments)]
    assert isinstance(events[-1], Denoised)
    return events[-1].latents


async def test_it_says_who_it_is(stage):
    identity = await stage.identity()
    assert (identity.text_space, identity.latent_space) == (FACTS.text_space, FACTS.latent_space)
    assert (identity.context_length, identity.context_width) == (CONTEXT_LENGTH, UNET.cross_attention_dim)
    assert (identity.latent_channels, identity.downsampling) == (4, 8)
    assert identity.prediction_type == "v_prediction"
    assert identity.tasks == tuple(Task)
    assert not identity.takes_masked_image
    assert identity.sizes == SIZES
    assert identity.samplers[0] == FACTS.sampler
    assert sorted(identity.samplers) == sorted(SAMPLERS)
    assert (identity.default_num_steps, identity.default_guidance_scale) == (FACTS.num_steps, FACTS.guidance_scale)


async def test_progress_and_then_the_latents(stage):
    events = [event async for event in stage.denoise(some_request(1, 2))]
    assert events[:-1] == [Progress(position=position, num_evaluations=3) for position in (1, 2, 3)]
    latents = events[-1].latents
    assert latents.shape == (2, 4, 4, 4)
    assert latents.dtype == np.float32


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
async def test_every_sampler_is_the_same_twice_and_in_company(stage, sampler):
    one = await denoise(stage, some_request(1, sampler=sampler))
    both = await denoise(stage, some_request(2, 1, sampler=sampler))
    np.testing.assert_array_equal(one[0], both[1])
    assert np.abs(both[0] - both[1]).max() > 0.1


@pytest.mark.parametrize(
    "change",
    [
        {"context": CONTEXTS[2:3]},
        {"unconditional_context": CONTEXTS[2:3]},
        {"guidance_scale": 4.0},
        {"guidance_start": 0.5},
        {"guidance_end": 0.5},
        {"num_steps": 4},
        {"sampler": "euler_ancestral"},
        {"seeds": np.array([2**64 - 1], np.uint64)},
        {"initial_noise": normal(9, Purpose.INITIAL, 0, (4, 4, 4))[None]},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_everything_in_a_request_matters(stage, change):
    latents = await denoise(stage, some_request(1))
    assert np.abs(await denoise(stage, some_request(1, **change)) - latents).max() > 1e-3


async def test_a_leading_dimension_of_one_stands_for_all_rows(stage):
    noise = normal(9, Purpose.INITIAL, 0, (4, 4, 4))[None]
    short = some_request(1, 2, initial_noise=noise)
    long = some_request(
        1,
        2,
        context=CONTEXTS[[0, 0]],
        unconditional_context=CONTEXTS[[1, 1]],
        initial_noise=np.concatenate([noise, noise]),
    )
    np.testing.assert_array_equal(await denoise(stage, short), await denoise(stage, long))


async def test_rows_may_have_contexts_of_their_own(stage):
    both = await denoise(stage, some_request(1, 2, context=CONTEXTS[[0, 2]]))
    second = await denoise(stage, some_request(2, context=CONTEXTS[2:3]))
    np.testing.assert_array_equal(both[1:], second)


async def test_without_initial_noise_it_is_drawn_from_the_seed(stage):
    noise = np.stack([normal(seed, Purpose.INITIAL, 0, (4, 4, 4)) for seed in (5, 6)])
    np.testing.assert_array_equal(
        await denoise(stage, some_request(5, 6)), await denoise(stage, some_request(5, 6, initial_noise=noise))
    )


async def test_guidance_takes_two_halves_in_one_call(stage, network):
    await denoise(stage, some_request(1, 2))
    assert network.calls == [4, 4, 4]


@pytest.mark.parametrize("unconditional", [None, CONTEXTS[1:2]])
async def test_at_scale_one_there_is_no_unconditional_half(stage, network, unconditional):
    await denoise(stage, some_request(1, guidance_scale=1.0, unconditional_context=unconditional))
    assert network.calls == [1, 1, 1]


@pytest.mark.parametrize(
    ("limits", "calls"),
    [
        ({"guidance_start": 0.5}, [1, 1, 2, 2]),
        ({"guidance_end": 0.25}, [2, 1, 1, 1]),
        ({"guidance_start": 0.25, "guidance_end": 0.75}, [1, 2, 2, 1]),
        ({"guidance_start": 0.5, "guidance_end": 0.5}, [1, 1, 1, 1]),
    ],
)
async def test_outside_its_limits_there_is_no_unconditional_half(stage, network, limits, calls):
    latents = await denoise(stage, some_request(1, num_steps=4, **limits))
    assert network.calls == calls
    if sum(calls) == 4:
        np.testing.assert_array_equal(latents, await denoise(stage, some_request(1, num_steps=4, guidance_scale=1.0)))


async def test_rows_with_and_without_guidance_at_the_moment_share_calls_and_change_nothing(stage):
    requests = [some_request(1, num_steps=4, guidance_end=0.5), some_request(2, num_steps=4)]
    alone = [await denoise(stage, request) for request in requests]
    together = await asyncio.gather(*(denoise(stage, request) for request in requests))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


async def test_cut_outside_and_inside_the_limits_and_resumed_it_gives_the_same_bytes(stage):
    request = some_request(1, num_steps=6, guidance_start=0.3, guidance_end=0.7)
    events = [event async for event in stage.denoise(replace(request, progress_every=1))]
    for state in (event.state for event in events if isinstance(event, State)):
        np.testing.assert_array_equal(await denoise(stage, replace(request, resume=of_bytes(state))), events[-1].latents)


async def test_the_other_size_is_made_too(stage):
    assert (await denoise(stage, some_request(1, width=64))).shape == (1, 4, 8, 4)


async def test_a_closed_iterator_ends_the_denoising(stage, network):
    async with aclosing(stage.denoise(some_request(1, num_steps=150))) as events:
        await anext(events)
    await denoise(stage, some_request(2))
    # The other request shares the first call or two, and then has the network for itself.
    assert len(network.calls) < 10
    assert network.calls[-1] == 2


async def test_two_requests_at_once_share_calls_and_change_nothing(stage, network):
    alone = [await denoise(stage, some_request(seed, num_steps=40)) for seed in (1, 2)]
    network.calls.clear()
    together = await asyncio.gather(*(denoise(stage, some_request(seed, num_steps=40)) for seed in (1, 2)))
    np.testing.assert_array_equal(together, alone)
    assert network.calls.count(4) > 30


async def test_a_full_queue_is_refused_and_who_was_let_in_is_not(stage):
    async with aclosing(stage.denoise(some_request(1, 2, num_steps=100))) as first:
        await anext(first)
        with pytest.raises(QueueFull, match="the diffusion stage has 2 pictures on their way") as caught:
            await denoise(stage, some_request(3))
        assert 0 < caught.value.retry_after_seconds < 60
        assert isinstance([event async for event in first][-1], Denoised)
    await denoise(stage, some_request(3))


async def test_a_deadline_that_has_passed_costs_no_evaluation(stage, network):
    with pytest.raises(StageTimeout, match="deadline"):
        await denoise(stage, some_request(1), deadline=0.0)
    assert network.calls == []


def of_bytes(state: DenoiseState) -> DenoiseState:
    """The state as another process would have it."""
    arrays = {name: getattr(state, name) for name in ("latents", "sampler_state", "position")}
    copies = {name: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape) for name, array in arrays.items()}
    return DenoiseState(**copies, state_key=state.state_key)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
async def test_cut_at_every_position_and_resumed_it_gives_the_same_bytes(stage, sampler):
    request = some_request(1, 2, sampler=sampler, num_steps=6)
    events = [event async for event in stage.denoise(replace(request, progress_every=1))]
    states = [event.state for event in events if isinstance(event, State)]
    assert [int(state.position[0]) for state in states] == list(range(1, len(states) + 1))
    assert len(states) >= 5
    for state in states:
        resumed = await denoise(stage, replace(request, resume=of_bytes(state)))
        np.testing.assert_array_equal(resumed, events[-1].latents)


async def test_rows_may_be_resumed_at_different_positions(stage):
    request = some_request(1, 2, num_steps=6, sampler="dpm++_2m")
    events = [event async for event in stage.denoise(replace(request, progress_every=1))]
    first, second = events[1].state, events[5].state
    assert (first.position[0], second.position[0]) == (1, 3)
    mixed = DenoiseState(
        latents=np.stack([first.latents[0], second.latents[1]]),
        sampler_state=np.stack([first.sampler_state[0], second.sampler_state[1]]),
        position=np.array([1, 3], np.int32),
        state_key=first.state_key,
    )
    np.testing.assert_array_equal(await denoise(stage, replace(request, resume=mixed)), events[-1].latents)


async def test_states_come_as_often_as_asked_and_with_previews_where_asked(stage):
    request = some_request(1, num_steps=7)
    plain = [event async for event in stage.denoise(replace(request, progress_every=3))]
    states = [event for event in plain if isinstance(event, State)]
    assert [int(event.state.position[0]) for event in states] == [3, 6]
    assert all(event.predicted_original is None for event in states)

    with_previews = [event async for event in stage.denoise(replace(request, progress_every=3, previews=True))]
    states_with_previews = [event for event in with_previews if isinstance(event, State)]
    previews = [event.predicted_original for event in states_with_previews if event.predicted_original is not None]
    assert [preview.shape for preview in previews] == [(1, 4, 4, 4)] * 2
    # The last preview is closer to the result than the latents were then.
    result = with_previews[-1].latents
    assert np.abs(previews[1] - result).mean() < np.abs(states[0].state.latents - result).mean()


@pytest.mark.parametrize(
    "change",
    [
        {"num_steps": 7},
        {"sampler": "euler"},
        {"guidance_scale": 2.0},
        {"guidance_end": 0.9},
        {"seeds": np.array([1, 2], np.uint64)},
        {"width": 64},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_state_of_another_plan_is_a_conflict(stage, change):
    request = some_request(1, num_steps=6)
    state = [event async for event in stage.denoise(replace(request, progress_every=2))][2].state
    with pytest.raises(Conflict, match="the state belongs to other weights, another plan or other parameters"):
        await denoise(stage, replace(request, resume=state, **change))


@pytest.mark.parametrize(
    "doctored",
    [
        {"latents": np.zeros((2, 4, 4, 4), np.float32)},
        {"latents": np.zeros((1, 4, 8, 4), np.float32)},
        {"sampler_state": np.zeros((1, 1, 4, 4, 4), np.float32)},
        {"position": np.array([-1], np.int32)},
        {"position": np.array([7], np.int32)},
        {"position": np.array([1, 1], np.int32)},
    ],
    ids=lambda doctored: next(iter(doctored)),
)
async def test_a_doctored_state_is_refused(stage, network, doctored):
    request = some_request(1, num_steps=6)
    state = [event async for event in stage.denoise(replace(request, progress_every=2))][2].state
    network.calls.clear()
    with pytest.raises(InvalidValue, match=next(iter(doctored))):
        await denoise(stage, replace(request, resume=replace(state, **doctored)))
    assert network.calls == []


async def test_a_state_at_the_end_is_the_result(stage, network):
    request = some_request(1, num_steps=3)
    latents = await denoise(stage, request)
    state = [event async for event in stage.denoise(replace(request, progress_every=1))][1].state
    at_the_end = replace(state, latents=latents, position=np.array([3], np.int32))
    network.calls.clear()
    np.testing.assert_array_equal(await denoise(stage, replace(request, resume=at_the_end)), latents)
    assert network.calls == []


@pytest.mark.parametrize(
    ("change", "sentence", "param"),
    [
        ({"width": 48}, "no pictures of 48x32; it makes 32x32, 64x32", "width"),
        ({"sampler": "ddpm"}, "no sampler 'ddpm'; there are ddim,", "sampler"),
        ({"num_steps": 0}, "num_steps", "num_steps"),
        ({"guidance_scale": -1.0}, "must be 0 or more, not -1.0", "guidance_scale"),
        ({"guidance_scale": float("nan")}, "must be 0 or more, not nan", "guidance_scale"),
        ({"unconditional_context": None}, "the guidance_scale must be 1", "unconditional_context"),
        ({"seeds": np.zeros(0, np.uint64)}, "seeds must be uint64", "seed"),
        ({"seeds": np.zeros(1, np.int64)}, "seeds must be uint64", "seed"),
        ({"seeds": np.zeros((1, 1), np.uint64)}, "seeds must be uint64", "seed"),
        ({"context": CONTEXTS[:1, :5]}, r"context must be float32 \(1 or 1, 16, 32\), not float32 \(1, 5, 32\)", "context"),
        ({"context": CONTEXTS[:3]}, "context must be float32", "context"),
        ({"context": CONTEXTS[:1].astype(np.float64)}, "not float64", "context"),
        ({"unconditional_context": CONTEXTS[:2]}, "unconditional_context must be", "unconditional_context"),
        ({"progress_every": 0}, "progress_every must be 1 or more, not 0", "progress_every"),
        ({"priority": "urgent"}, "request_priority must be one of low, normal, high", "request_priority"),
        ({"initial_noise": np.zeros((1, 4, 8, 4), np.float32)}, "initial_noise must be", "initial_noise"),
    ],
)
async def test_what_the_model_does_not_take_is_refused(stage, network, change, sentence, param):
    with pytest.raises(InvalidValue, match=sentence) as caught:
        await denoise(stage, some_request(1, **change))
    assert caught.value.param == param
    assert network.calls == []


async def test_latents_that_are_no_numbers_are_our_failure(stage):
    with pytest.raises(StageFailed, match="computed NaN or infinity"):
        await denoise(stage, some_request(1, context=np.full_like(CONTEXTS[:1], np.nan)))


def test_a_model_that_wants_an_unknown_sampler_does_not_start(options, tiny_model, tmp_path):
    import shutil

    folder = shutil.copytree(tiny_model, tmp_path / "tiny")
    facts = folder / "triptych.json"
    facts.write_text(facts.read_text(encoding="utf-8").replace('"ddim"', '"ddpm"'), encoding="utf-8")
    with pytest.raises(CheckpointError, match="the model wants the sampler 'ddpm'"):
        DiffusionStage(replace(options, model=str(folder))).start()
