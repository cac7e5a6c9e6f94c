from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.stages.test_evaluation import CONFIG, context
from triptych.contract import Denoised
from triptych.errors import QueueFull, StageFailed, StageNotReady, StageTimeout
from triptych.sampling.noise import Purpose, normal
from triptych.sampling.samplers import make_plan
from triptych.stages.denoising import Denoising
from triptych.stages.evaluation import Row
from triptych.stages.step_batcher import StepBatcher, choose_rows

SMALL, LARGE = (2, 2, 4), (4, 4, 4)


def some_row(*, num_steps=4, seed=1, guided=True, shape=SMALL, sampler="ddim") -> Row:
    plan = make_plan(sampler, CONFIG, num_steps)
    latents, sampler_state = plan.initial(normal(seed, Purpose.INITIAL, 0, shape))
    return Row(
        plan=plan,
        latents=latents,
        sampler_state=sampler_state,
        position=0,
        context=context(seed),
        unconditional_context=context(-1) if guided else None,
        guidance_scale=3.0 if guided else 1.0,
        seed=seed,
    )


def some_denoising(*seeds: int, deadline=None, **row) -> Denoising:
    return Denoising([some_row(seed=seed, **row) for seed in seeds or (1,)], state_key="key", deadline=deadline)


class GatedNetwork:
    """Predicts the mean of its context; runs one call for each time that it is let."""

    def __init__(self) -> None:
        self.calls: list[list[float]] = []
        self.called = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.error: Exception | None = None

    def let(self, calls: int) -> None:
        self.gate.release(calls)

    def __call__(self, inputs):
        self.calls.append(inputs["context"][:, 0, 0].tolist())
        self.called.release()
        assert self.gate.acquire(timeout=10)
        if self.error is not None:
            raise self.error
        level = inputs["context"].mean(axis=(1, 2))
        return {"prediction": np.broadcast_to(level[:, None, None, None], inputs["latents"].shape).astype(np.float32)}


@pytest.fixture
def network() -> GatedNetwork:
    return GatedNetwork()


@pytest.fixture
def batcher(network) -> Iterator[StepBatcher]:
    shapes = (3, 5)
    batcher = StepBatcher({(SMALL, shapes): network, (LARGE, shapes): network}, capacity=4, queue_size=6)
    yield batcher
    network.let(1000)
    batcher.close()


async def called(network: GatedNetwork) -> None:
    assert await asyncio.to_thread(network.called.acquire, timeout=10)


async def latents_of(denoising: Denoising):
    async for event in denoising.events():
        if isinstance(event, Denoised):
            return event.latents


def until_closing(batcher: StepBatcher) -> None:
    while not batcher._closing:
        time.sleep(0.001)


# Which rows


async def test_as_many_rows_as_fit_and_guided_ones_take_two_places():
    denoisings = [some_denoising(1), some_denoising(2, guided=False), some_denoising(3), some_denoising(4, guided=False)]
    assert [place.denoising for place in choose_rows(denoisings, 4)] == [denoisings[0], denoisings[1], denoisings[3]]


async def test_at_least_one_picture_whatever_fits():
    denoising = some_denoising(1)
    assert [(place.denoising, place.index) for place in choose_rows([denoising], 1)] == [(denoising, 0)]


async def test_requests_take_turns_row_by_row():
    many, one = some_denoising(1, 2, 3, 4), some_denoising(5)
    chosen = choose_rows([many, one], 6)
    assert [(place.denoising, place.index) for place in chosen] == [(many, 0), (one, 0), (many, 1)]


async def test_who_has_waited_longest_comes_first():
    first, second = some_denoising(1), some_denoising(2)
    first.last_turn = 7
    second.last_turn = 6
    assert [place.denoising for place in choose_rows([first, second], 2)] == [second]


async def test_a_row_that_is_behind_comes_first():
    denoising = some_denoising(1, 2, guided=False)
    denoising.replace(0, denoising.rows[0].advance(np.zeros(SMALL, np.float32)))
    assert [place.index for place in choose_rows([denoising], 1)] == [1]


async def test_a_call_has_one_shape_and_shapes_take_turns():
    small, large = some_denoising(1), some_denoising(2, shape=LARGE)
    assert [place.denoising for place in choose_rows([small, large], 16)] == [small]
    small.last_turn = 1
    assert [place.denoising for place in choose_rows([small, large], 16)] == [large]


# The thread


async def test_a_denoising_that_comes_later_joins_between_two_evaluations(batcher, network):
    first, second = some_denoising(1, num_steps=3), some_denoising(2, num_steps=3)
    batcher.join(first)
    await called(network)
    batcher.join(second)
    network.let(100)
    await asyncio.gather(latents_of(first), latents_of(second))
    assert network.calls == [[1, -1], [2, 1, -1, -1], [1, 2, -1, -1], [2, -1]]


async def test_a_short_request_does_not_wait_for_long_ones(batcher, network):
    long = [some_denoising(seed, num_steps=50) for seed in (1, 2, 3)]
    for denoising in long:
        batcher.join(denoising)
    await called(network)
    short = some_denoising(9, num_steps=4)
    batcher.join(short)
    network.let(1000)
    await latents_of(short)
    takes_part = [turn for turn, call in enumerate(network.calls) if 9 in call]
    # Two of four requests fit in a call.
    assert len(takes_part) == 4
    assert takes_part[-1] <= 9
    for denoising in long:
        await latents_of(denoising)


async def test_whoever_leaves_takes_no_part_in_the_next_evaluation(batcher, network):
    stays, leaves = some_denoising(1), some_denoising(2, num_steps=50)
    batcher.join(stays)
    batcher.join(leaves)
    await called(network)
    network.let(1)
    await called(network)
    leaves.leave()
    calls = len(network.calls)
    network.let(100)
    await latents_of(stays)
    assert all(2 not in call for call in network.calls[calls:])


async def test_a_deadline_in_the_middle_ends_the_denoising_alone(batcher, network):
    late, other = some_denoising(1, num_steps=50, deadline=time.monotonic() + 60), some_denoising(2)
    batcher.join(late)
    batcher.join(other)
    await called(network)
    late.deadline = time.monotonic()
    calls = len(network.calls)
    network.let(100)
    await latents_of(other)
    with pytest.raises(StageTimeout, match="deadline passed"):
        await latents_of(late)
    assert all(1 not in call for call in network.calls[calls:])


async def test_a_network_that_fails_fails_those_in_the_call_and_no_others(batcher, network):
    fails = some_denoising(1)
    batcher.join(fails)
    await called(network)
    other = some_denoising(2)
    batcher.join(other)
    network.error = RuntimeError("out of memory")
    network.let(1)
    with pytest.raises(StageFailed, match="the diffusion network failed"):
        await latents_of(fails)
    await called(network)
    network.error = None
    network.let(100)
    assert (await latents_of(other)).shape == (1, *SMALL)


async def test_more_pictures_than_the_queue_holds_are_refused(batcher, network):
    several, one = some_denoising(1, 2, 3, 4, 5), some_denoising(6)
    batcher.join(several)
    batcher.join(one)
    with pytest.raises(QueueFull, match="6 pictures on their way") as caught:
        batcher.join(some_denoising(7))
    assert caught.value.retry_after_seconds > 0
    network.let(100)
    await asyncio.gather(latents_of(several), latents_of(one))


async def test_numbers_that_are_none_fail_their_request_alone(batcher, network):
    bad, good = some_denoising(1), some_denoising(2)
    bad.replace(0, Row(**{**vars(bad.rows[0]), "context": np.full_like(context(1), np.nan)}))
    batcher.join(bad)
    batcher.join(good)
    network.let(100)
    with pytest.raises(StageFailed, match="NaN or infinity"):
        await latents_of(bad)
    await latents_of(good)


async def test_closing_finishes_what_runs_and_takes_nothing_new(batcher, network):
    denoising = some_denoising(1)
    batcher.join(denoising)
    await called(network)
    closing = asyncio.create_task(asyncio.to_thread(batcher.close))
    await asyncio.to_thread(until_closing, batcher)
    with pytest.raises(StageNotReady, match="is stopping"):
        batcher.join(some_denoising(2))
    network.let(100)
    await closing
    assert (await latents_of(denoising)).shape == (1, *SMALL)
