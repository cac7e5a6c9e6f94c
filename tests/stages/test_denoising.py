from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import numpy as np

from tests.stages.test_step_batcher import SMALL, some_row
from triptych.contract import Denoised, DenoiseEvent, Progress, State
from triptych.errors import StageNotReady, StageTimeout
from triptych.stages.denoising import UNREAD, Denoising

NUM_STEPS = UNREAD + 4


def some_denoising(**options) -> Denoising:
    return Denoising([some_row(num_steps=NUM_STEPS)], state_key="key", progress_every=1, **options)


def evaluate(denoising: Denoising) -> None:
    denoising.replace(0, denoising.rows[0].advance(np.zeros(SMALL, np.float32)))
    denoising.report()


async def all_of(denoising: Denoising) -> list[DenoiseEvent]:
    return [event async for event in denoising.events()]


async def test_a_slow_reader_is_told_the_newest_and_the_result():
    denoising = some_denoising()
    reading = asyncio.create_task(all_of(denoising))
    await asyncio.sleep(0)  # it waits for the first event
    for _ in range(NUM_STEPS):
        evaluate(denoising)
    events = await reading
    newest = list(range(1, NUM_STEPS + 1))[-UNREAD:]
    assert [event.position for event in events if isinstance(event, Progress)] == newest
    states = [int(event.state.position[0]) for event in events if isinstance(event, State)]
    assert states == list(range(1, NUM_STEPS))[-UNREAD:]  # the last evaluation's is the result
    assert isinstance(events[-1], Denoised)


async def test_a_reader_that_keeps_up_is_told_all():
    denoising = some_denoising()
    events = denoising.events()
    for position in range(1, NUM_STEPS):
        evaluate(denoising)
        assert await anext(events) == Progress(position=position, num_evaluations=NUM_STEPS)
        assert isinstance(await anext(events), State)
    await events.aclose()


async def test_an_error_comes_after_what_was_told_before():
    denoising = some_denoising(deadline=time.monotonic())
    evaluate(denoising)
    denoising.fail_if_too_late(0.0)
    told = []
    try:
        async for event in denoising.events():
            told.append(type(event))
    except StageTimeout:
        told.append(StageTimeout)
    assert told == [Progress, State, StageTimeout]


# States of rows that reuse features


def some_reusing_denoising(**options) -> Denoising:
    rows = [replace(some_row(num_steps=8, seed=seed), cache_interval=3) for seed in (1, 2)]
    return Denoising(rows, state_key="key", **options)


def evaluate_one(denoising: Denoising, index: int) -> None:
    denoising.replace(index, denoising.rows[index].advance(np.zeros(SMALL, np.float32)))
    denoising.report()


async def told_until_it_stops(denoising: Denoising) -> list[DenoiseEvent]:
    denoising.hand_back()
    told = []
    try:
        async for event in denoising.events():
            told.append(event)
    except StageNotReady:
        return told
    raise AssertionError("it did not stop")


async def test_each_row_is_handed_back_as_it_last_could_be_resumed():
    denoising = some_reusing_denoising()
    last = [row.latents for row in denoising.rows]
    for index, evaluations in ((0, 5), (1, 2)):
        for _ in range(evaluations):
            evaluate_one(denoising, index)
            if denoising.rows[index].is_resumable:
                last[index] = denoising.rows[index].latents
    *_, state = await told_until_it_stops(denoising)
    assert isinstance(state, State)
    assert state.state.position.tolist() == [3, 0]
    np.testing.assert_array_equal(state.state.latents, np.stack(last))


async def test_before_any_row_can_be_resumed_further_there_is_nothing_to_hand_back():
    denoising = some_reusing_denoising()
    for index in (0, 1, 0, 1):
        evaluate_one(denoising, index)
    assert denoising.has_advanced
    told = await told_until_it_stops(denoising)
    assert [type(event) for event in told] == [Progress, Progress]


async def test_a_state_comes_when_the_row_that_is_behind_can_be_resumed():
    denoising = some_reusing_denoising(progress_every=1)
    for index in (0, 0, 0, 0, 1, 1, 1, 1):
        evaluate_one(denoising, index)
    told = await told_until_it_stops(denoising)
    states = [event.state.position.tolist() for event in told if isinstance(event, State)]
    assert states == [[3, 3], [3, 3]], "once as it was asked for, once as it was handed back"
