from __future__ import annotations

import asyncio
import time

import numpy as np

from tests.stages.test_step_batcher import SMALL, some_row
from triptych.contract import Denoised, DenoiseEvent, Progress, State
from triptych.errors import StageTimeout
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
