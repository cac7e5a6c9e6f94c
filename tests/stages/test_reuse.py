"""Features of the U-Net reused across evaluations: the pictures, the calls, the states, and the company."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.stages.mixed_requests import latents_of
from tests.stages.scripts import run_script
from tests.stages.test_diffusion import CONTEXTS, denoise, of_bytes, some_request
from tests.stages.test_editing import INPAINTING, MASKED_IMAGE, RESAMPLING
from tests.tiny_models import INPAINTING_UNET, write_tiny_model
from triptych.contract import Denoised, DenoiseEvent, DenoiseRequest, DenoiseState, DiffusionIdentity, Float32, Progress, State
from triptych.errors import Conflict, InvalidValue, StageBrokeOff
from triptych.remote import Patience, ReplicatedDiffusion
from triptych.sampling.guidance import guide
from triptych.sampling.noise import Purpose, normal
from triptych.sampling.samplers import SAMPLERS
from triptych.stages.diffusion import DiffusionStage, plan_of

# Three stages are started here, two of them with four networks each.
pytestmark = pytest.mark.timeout(300)

SHAPE = (4, 4, 4), CONTEXTS.shape[1:]


def started(options) -> Iterator[DiffusionStage]:
    stage = DiffusionStage(replace(options, queue_size=32))
    stage.start()
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def plain(options) -> Iterator[DiffusionStage]:
    yield from started(options)


@pytest.fixture(scope="module")
def stage(options) -> Iterator[DiffusionStage]:
    yield from started(replace(options, feature_reuse=True))


@pytest.fixture(scope="module")
def inpainting_stage(options, tmp_path_factory) -> Iterator[DiffusionStage]:
    folder = write_tiny_model(tmp_path_factory.mktemp("inpainting"), unet=INPAINTING_UNET)
    yield from started(replace(options, model=str(folder), feature_reuse=True))


@pytest.fixture
def calls(stage, monkeypatch) -> list[tuple[str, int]]:
    """What each call computed, and how many rows it had."""
    told: list[tuple[str, int]] = []

    def told_of(part: str, network: Any) -> Any:
        def call(inputs: Mapping[str, Float32]) -> Mapping[str, Float32]:
            told.append((part, len(inputs["latents"])))
            return network(inputs)

        return call

    for part, networks in (("whole", stage._batcher._networks), ("shallow", stage._batcher._shallow)):
        monkeypatch.setitem(networks, SHAPE, told_of(part, networks[SHAPE]))
    return told


def parts(calls: list[tuple[str, int]]) -> str:
    """Their first letters, in capitals where there are two halves of one picture."""
    return "".join(part[0].upper() if rows == 2 else part[0] for part, rows in calls)


# The pictures


async def test_a_stage_says_whether_it_reuses_features(plain, stage):
    identities: list[DiffusionIdentity] = [await each.identity() for each in (plain, stage)]
    assert [identity.takes_cache_interval for identity in identities] == [False, True]
    # Else replicas of equal numerics would not be replicas.
    assert identities[0].numerics == identities[1].numerics
    assert identities[0].exact_batch_sizes == identities[1].exact_batch_sizes == (1, 2, 4)


@pytest.mark.parametrize("sampler", ["ddim", "pndm", "euler_ancestral"])
async def test_an_interval_of_one_gives_the_bytes_of_a_stage_that_reuses_nothing(plain, stage, calls, sampler):
    request = some_request(1, 2, sampler=sampler)
    np.testing.assert_array_equal(await denoise(stage, request), await denoise(plain, request))
    assert parts(calls).strip("w") == ""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["tensorflow", "jax"])
def test_on_other_engines_too_a_whole_network_predicts_the_same_whether_its_features_come_out(engine, options):
    answer = json.loads(run_script("tests.stages.kept_features", engine, options.model))
    assert answer == {"same": True, "outputs": [["prediction"], ["features", "prediction"]]}


async def test_a_stage_that_reuses_nothing_refuses(plain):
    sentence = r"takes no cache_interval but 1, not 2; it takes others when it is started with TRIPTYCH_FEATURE_REUSE=true"
    with pytest.raises(InvalidValue, match=sentence) as refused:
        await denoise(plain, some_request(1, cache_interval=2))
    assert refused.value.param == "cache_interval"


def by_hand(stage: DiffusionStage, request: DenoiseRequest) -> Float32:
    """One guided picture, written out: the whole U-Net at every N-th evaluation, the shallow one on its features in between."""
    assert stage._batcher is not None
    whole, shallow = stage._batcher._networks[SHAPE], stage._batcher._shallow[SHAPE]
    plan = plan_of(request.sampler, stage._schedule, request.num_steps, 1.0, 1)
    seed = int(request.seeds[0])
    latents, sampler_state = plan.initial(normal(seed, Purpose.INITIAL, 0, SHAPE[0]))
    contexts = np.concatenate([request.context, request.unconditional_context])  # type: ignore[list-item]
    features: Any = None
    for position in range(plan.num_evaluations):
        seen = plan.network_input(latents, position)
        inputs = {
            "latents": np.stack([seen, seen]),
            "timestep": np.full(2, plan.timesteps[position], np.float32),
            "context": contexts,
        }
        if position % request.cache_interval == 0:
            outputs = whole(inputs)
            features = outputs["features"]
        else:
            outputs = shallow({**inputs, "features": features})
        conditional, unconditional = outputs["prediction"]
        noise = normal(seed, Purpose.ANCESTRAL, position, SHAPE[0]) if plan.needs_noise(position) else None
        prediction = guide(unconditional, conditional, request.guidance_scale)
        latents, sampler_state = plan.advance(latents, sampler_state, position, prediction, noise)
    return latents[None]


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
async def test_a_picture_is_that_of_a_loop_by_hand(stage, sampler):
    request = some_request(7, sampler=sampler, num_steps=8, cache_interval=3)
    latents = await denoise(stage, request)
    np.testing.assert_array_equal(latents, by_hand(stage, request))
    assert np.abs(latents - await denoise(stage, replace(request, cache_interval=1))).max() > 1e-3


async def test_the_longer_the_interval_the_further_from_the_picture_without_reuse(stage):
    plain, *reused = [await denoise(stage, some_request(7, num_steps=20, cache_interval=n)) for n in (1, 2, 20)]
    distances = [np.abs(latents - plain).mean() for latents in reused]
    assert 0 < distances[0] < distances[1]


# The calls


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cache_interval": 3}, "WSSWSSWS"),
        ({"cache_interval": 100}, "WSSSSSSS"),
        ({"cache_interval": 3, "guidance_scale": 1.0}, "wsswssws"),
        # Guidance begins: its half has no features yet, unless it begins with a whole evaluation anyway.
        ({"cache_interval": 3, "guidance_start": 0.5}, "wsswWSWS"),
        ({"cache_interval": 2, "guidance_start": 0.5}, "wswsWSWS"),
        ({"cache_interval": 3, "guidance_end": 0.5}, "WSSWssws"),
        ({"cache_interval": 4, "guidance_start": 0.25, "guidance_end": 0.375}, "wsWswsss"),
        ({"cache_interval": 3, "guidance_start": 0.5, "guidance_end": 0.5}, "wsswssws"),
    ],
)
async def test_which_evaluations_take_the_whole_network(stage, calls, changes, expected):
    await denoise(stage, some_request(1, num_steps=8, **changes))
    assert parts(calls) == expected


async def test_the_second_evaluation_of_a_step_counts(stage, calls):
    """PNDM makes the second of its steps twice."""
    await denoise(stage, some_request(1, sampler="pndm", num_steps=4, cache_interval=2))
    assert parts(calls) == "WSWSW"


async def test_so_does_an_evaluation_that_is_made_again(stage, calls):
    await denoise(stage, some_request(1, num_steps=3, cache_interval=2, **{**INPAINTING, "num_resamples": 2}))
    assert parts(calls) == "WSWSW"


# The company


MIXED = [
    some_request(1, num_steps=7, cache_interval=3),
    some_request(2, 3, num_steps=7, cache_interval=2, sampler="dpm++_2m"),
    some_request(4, num_steps=9),
    some_request(5, num_steps=8, cache_interval=4, guidance_scale=1.0),
    some_request(6, num_steps=8, cache_interval=3, guidance_start=0.5, sampler="euler_ancestral"),
    some_request(7, 8, num_steps=6, cache_interval=5, guidance_end=0.4, width=64),
]


async def test_rows_of_all_intervals_share_calls_and_get_the_bytes_that_each_gets_alone(stage, calls):
    alone = [await latents_of(stage, request) for request in MIXED]
    calls.clear()
    with stage._batcher._changed:
        together = [asyncio.create_task(latents_of(stage, request)) for request in MIXED]
        while len(stage._batcher._joining) < len(MIXED) and not any(task.done() for task in together):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    for one, other in zip(alone, await asyncio.gather(*together), strict=True):
        np.testing.assert_array_equal(one, other)
    for part in ("whole", "shallow"):
        assert max(rows for each, rows in calls if each == part) > 2, part


# The states


def states_of(events: list[DenoiseEvent]) -> list[DenoiseState]:
    return [event.state for event in events if isinstance(event, State)]


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
async def test_cut_wherever_it_can_be_and_resumed_it_gives_the_same_bytes(stage, sampler):
    request = some_request(1, 2, sampler=sampler, num_steps=8, cache_interval=3)
    events = [event async for event in stage.denoise(replace(request, progress_every=1))]
    states = states_of(events)
    assert [state.position.tolist() for state in states] == [[3, 3], [6, 6]]
    for state in states:
        np.testing.assert_array_equal(await denoise(stage, replace(request, resume=of_bytes(state))), events[-1].latents)


@pytest.mark.parametrize(
    ("changes", "positions"),
    [
        ({"guidance_start": 0.5}, [3, 4, 6]),
        ({"guidance_end": 0.5}, [3, 6]),
        ({"guidance_start": 0.125, "guidance_end": 0.25}, [1, 3, 6]),
        (RESAMPLING, [3, 6, 9, 12]),
    ],
    ids=["start", "end", "both", "resampling"],
)
async def test_so_it_does_with_guidance_in_a_part_and_with_resampling(stage, changes, positions):
    request = some_request(1, num_steps=8, cache_interval=3, **changes)
    events = [event async for event in stage.denoise(replace(request, progress_every=1))]
    assert [int(state.position[0]) for state in states_of(events)] == positions
    for state in states_of(events):
        np.testing.assert_array_equal(await denoise(stage, replace(request, resume=of_bytes(state))), events[-1].latents)


async def test_so_does_a_network_that_sees_mask_and_picture(inpainting_stage):
    request = some_request(1, num_steps=8, cache_interval=3, **MASKED_IMAGE)
    events = [event async for event in inpainting_stage.denoise(replace(request, progress_every=1))]
    assert [int(state.position[0]) for state in states_of(events)] == [3, 6]
    for state in states_of(events):
        resumed = await denoise(inpainting_stage, replace(request, resume=of_bytes(state)))
        np.testing.assert_array_equal(resumed, events[-1].latents)


async def test_a_state_that_is_due_comes_with_the_next_that_there_is(stage):
    request = some_request(1, num_steps=12, cache_interval=3, previews=True)
    for progress_every, positions in ((2, [3, 6, 9]), (4, [6, 9]), (5, [6]), (6, [6])):
        events = [event async for event in stage.denoise(replace(request, progress_every=progress_every))]
        states = [event for event in events if isinstance(event, State)]
        assert [int(event.state.position[0]) for event in states] == positions, progress_every
        assert all(event.predicted_original is not None for event in states)


async def a_state(stage: DiffusionStage, request: DenoiseRequest) -> DenoiseState:
    return states_of([event async for event in stage.denoise(replace(request, progress_every=1))])[0]


@pytest.mark.parametrize("position", [1, 2, 4, 5, 7])
async def test_a_state_whose_next_evaluation_is_not_a_whole_one_is_refused(stage, calls, position):
    request = some_request(1, num_steps=8, cache_interval=3)
    state = replace(await a_state(stage, request), position=np.array([position], np.int32))
    calls.clear()
    with pytest.raises(InvalidValue, match=f"with cache_interval 3 are its multiples .*; {position} is none") as refused:
        await denoise(stage, replace(request, resume=state))
    assert refused.value.param == "position"
    assert calls == []


async def test_a_state_at_the_end_is_the_result(stage):
    request = some_request(1, num_steps=8, cache_interval=3)
    state = replace(await a_state(stage, request), position=np.array([8], np.int32))
    np.testing.assert_array_equal(await denoise(stage, replace(request, resume=state)), state.latents)


async def test_a_state_of_another_interval_is_a_conflict(stage):
    request = some_request(1, num_steps=8, cache_interval=3)
    state = await a_state(stage, request)
    for cache_interval in (1, 6):
        with pytest.raises(Conflict, match="other parameters"):
            await denoise(stage, replace(request, resume=state, cache_interval=cache_interval))


class Breaking:
    """A stage that breaks off after so many evaluations, once."""

    def __init__(self, stage: DiffusionStage, after: int) -> None:
        self.stage = stage
        self.after = after
        self.resumed_at: list[int] = []

    async def identity(self) -> DiffusionIdentity:
        return await self.stage.identity()

    async def denoise(self, request: DenoiseRequest, *, deadline: float | None = None) -> AsyncGenerator[DenoiseEvent, None]:
        if request.resume is not None:
            self.resumed_at += request.resume.position.tolist()
        async for event in self.stage.denoise(request, deadline=deadline):
            yield event
            if isinstance(event, Progress) and event.position == self.after:
                self.after = -1
                raise StageBrokeOff("broke off", stage="diffusion")


@pytest.mark.parametrize(("after", "resumed_at"), [(2, []), (4, [3]), (5, [3]), (7, [6])])
async def test_a_replica_that_goes_in_mid_picture_costs_no_byte(stage, after, resumed_at):
    request = some_request(1, num_steps=8, cache_interval=3, sampler="dpm++_2m")
    broken = Breaking(stage, after)
    replicated = ReplicatedDiffusion({"http://a": broken}, patience=Patience(wait_seconds=60))  # type: ignore[dict-item]
    events = [event async for event in replicated.denoise(request)]
    assert isinstance(events[-1], Denoised)
    assert events[-1].warnings == ()
    np.testing.assert_array_equal(events[-1].latents, await denoise(stage, request))
    assert [event.position for event in events if isinstance(event, Progress)] == list(range(1, 9))
    assert broken.resumed_at == resumed_at


async def test_states_that_were_asked_for_are_told_as_the_stage_alone_would_tell_them(stage):
    request = some_request(1, num_steps=12, cache_interval=3, progress_every=4)
    alone = states_of([event async for event in stage.denoise(request)])
    broken = Breaking(stage, after=8)
    replicated = ReplicatedDiffusion({"http://a": broken}, patience=Patience(wait_seconds=60))  # type: ignore[dict-item]
    told = states_of([event async for event in replicated.denoise(request)])
    assert [int(state.position[0]) for state in told] == [int(state.position[0]) for state in alone] == [6, 9]
    assert broken.resumed_at == [6]
