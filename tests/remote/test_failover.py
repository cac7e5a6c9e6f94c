"""A denoising goes on where it broke off: on another replica, or on the same one, and its reader notices nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.fakes import NUMERICS, FakeDiffusion, with_profile
from tests.gateway.running import until
from triptych.contract import Denoised, DenoiseEvent, DenoiseRequest, Progress, State
from triptych.errors import Conflict, InvalidValue, QueueFull, StageBrokeOff, StageFailed, StageNotReady, StageTimeout, TooLarge
from triptych.remote import Patience, ReplicatedDiffusion, breaker, failover, replicas

REQUEST = DenoiseRequest(
    context=np.ones((1, 77, 768), np.float32),
    unconditional_context=None,
    seeds=np.array([3, 4], np.uint64),
    width=64,
    height=64,
    sampler="euler",
    num_steps=6,
    guidance_scale=1.0,
)
PATIENT = Patience(wait_seconds=60)
BROKE = StageBrokeOff("broke off", stage="diffusion")


class Breaking(FakeDiffusion):
    """Each error is raised after so many states have been told of one denoising, then it works."""

    def __init__(self, *errors: Exception, after: int = 3, then: Callable[[], None] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.errors = list(errors)
        self.after = after
        self.then = then

    async def denoise(self, request: DenoiseRequest, *, deadline: float | None = None) -> AsyncGenerator[DenoiseEvent, None]:
        states = 0
        async for event in super().denoise(request, deadline=deadline):
            yield event
            states += isinstance(event, State)
            if self.errors and states == self.after:
                if self.then is not None:
                    self.then()
                raise self.errors.pop(0)


async def events_of(stage: Any, request: DenoiseRequest = REQUEST, **options: Any) -> list[Any]:
    return [event async for event in stage.denoise(request, **options)]


async def undisturbed(request: DenoiseRequest = REQUEST) -> list[Any]:
    return await events_of(FakeDiffusion(), request)


def resumed_at(stage: Any, asked: int) -> list[int]:
    """Evaluations that each row had behind it in one of the requests to a stage."""
    positions: list[int] = stage.asked[asked].resume.position.tolist()
    return positions


def alone(stage: Any) -> dict[str, Any]:
    return {"http://a": stage}


def bytes_of(events: list[Any]) -> bytes:
    content: bytes = events[-1].latents.tobytes()
    return content


def positions(events: list[Any]) -> list[int]:
    return [event.position for event in events if isinstance(event, Progress)]


@pytest.mark.parametrize(
    "error",
    [
        BROKE,
        StageFailed("garbage", stage="diffusion"),
        StageNotReady("stopping", stage="diffusion"),
        StageTimeout("a proxy's", stage="diffusion"),
        QueueFull("full", retry_after_seconds=0.1),
    ],
)
@pytest.mark.parametrize("alone", [False, True])
async def test_it_goes_on_from_the_newest_state(error: Exception, alone: bool) -> None:
    first = Breaking(error)
    stages = {"http://a": first} if alone else {"http://a": first, "http://b": FakeDiffusion()}
    stage = ReplicatedDiffusion(stages, patience=PATIENT)

    events = await events_of(stage)

    assert bytes_of(events) == bytes_of(await undisturbed())
    assert positions(events) == [1, 2, 3, 4, 5, 6]
    assert [type(event) for event in events] == [Progress] * 6 + [Denoised], "nobody asked for states"
    assert events[-1].warnings == ()
    second = first if alone else stages["http://b"]
    assert resumed_at(second, -1) == [3, 3]
    assert sum(each.evaluations for each in stages.values()) == 6, "nothing is computed twice"


async def test_states_that_were_asked_for_are_told_once_each_with_their_previews() -> None:
    request = replace(REQUEST, progress_every=2, previews=True)
    stages = {"http://a": Breaking(BROKE), "http://b": FakeDiffusion()}
    events = await events_of(ReplicatedDiffusion(stages, patience=PATIENT), request)
    expected = await undisturbed(request)
    assert [type(event) for event in events] == [type(event) for event in expected]
    for told, known in zip(events, expected, strict=True):
        if isinstance(told, State):
            assert told.state.position.tolist() == known.state.position.tolist()
            assert told.predicted_original is not None
            assert told.predicted_original.tobytes() == known.predicted_original.tobytes()


async def test_what_it_costs_is_counted() -> None:
    stages = {"http://a": Breaking(BROKE), "http://b": FakeDiffusion()}
    stage = ReplicatedDiffusion(stages, patience=PATIENT)
    await events_of(stage)
    assert (stage.evaluations, stage.evaluations_repeated, stage.resumed) == (12, 2, 1)


async def test_one_that_breaks_off_everywhere_is_told_in_the_end() -> None:
    class Stuck(Breaking):
        async def denoise(self, request: DenoiseRequest, *, deadline: float | None = None):
            if request.resume is not None:
                self.asked.append(request)
                raise BROKE
            async for event in super().denoise(request, deadline=deadline):
                yield event

    stages = {name: Stuck(BROKE, after=1) for name in ("http://a", "http://b")}
    with pytest.raises(StageBrokeOff):
        await events_of(ReplicatedDiffusion(stages, patience=PATIENT))
    assert sum(len(each.asked) for each in stages.values()) == replicas.MOST_FAILURES


async def test_one_that_gets_somewhere_each_time_does_not_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "FIRST_REST_SECONDS", 600.0)
    stage = ReplicatedDiffusion(alone(Breaking(*[BROKE] * 5, after=1)), patience=PATIENT)
    async with asyncio.timeout(30):
        assert bytes_of(await events_of(stage)) == bytes_of(await undisturbed())
    assert stage.replicas[0].failures == 5


async def test_it_waits_for_the_same_address_to_come_back() -> None:
    stage = Breaking(BROKE, then=lambda: stage.close())
    replicated = ReplicatedDiffusion(alone(stage), patience=PATIENT)
    denoising = asyncio.create_task(events_of(replicated))
    await until(lambda: stage.closed and replicated.replicas[0].state == "missing")
    assert not denoising.done()
    stage.start()
    assert bytes_of(await denoising) == bytes_of(await undisturbed())


async def test_until_its_deadline_allows_no_more() -> None:
    stage = Breaking(BROKE, then=lambda: stage.close())
    replicated = ReplicatedDiffusion(alone(stage), patience=PATIENT)
    with pytest.raises(StageNotReady, match=r"broke off; waited 0 s") as error:
        await events_of(replicated, deadline=time.monotonic() + 0.3)
    assert error.value.waited


async def test_where_nobody_is_to_wait_it_is_told_at_once() -> None:
    with pytest.raises(StageBrokeOff):
        await events_of(ReplicatedDiffusion(alone(Breaking(BROKE))))


class Small(FakeDiffusion):
    """Has no room for anything."""

    async def denoise(self, request: DenoiseRequest, *, deadline: float | None = None) -> AsyncGenerator[DenoiseEvent, None]:
        self.asked.append(request)
        if self.started:
            raise TooLarge("does not fit")
        yield Progress(position=0, num_evaluations=0)


async def test_one_that_is_too_small_is_passed_over_in_mid_picture() -> None:
    stages = {"http://a": Breaking(BROKE), "http://b": Small(), "http://c": FakeDiffusion()}
    events = await events_of(ReplicatedDiffusion(stages, patience=PATIENT))
    assert bytes_of(events) == bytes_of(await undisturbed())
    assert resumed_at(stages["http://c"], 0) == [3, 3]
    assert len(stages["http://b"].asked) == 1


async def test_where_the_other_is_too_small_the_first_is_waited_for() -> None:
    first = Breaking(BROKE, then=lambda: first.close())
    stages = {"http://a": first, "http://b": Small()}
    replicated = ReplicatedDiffusion(stages, patience=PATIENT)
    denoising = asyncio.create_task(events_of(replicated))
    await until(lambda: first.closed and replicated.replicas[0].state == "missing" and stages["http://b"].asked)
    assert not denoising.done()
    first.start()
    assert bytes_of(await denoising) == bytes_of(await undisturbed())
    assert len(stages["http://b"].asked) == 1, "it is never asked again"


async def test_what_fits_nowhere_is_refused_once_all_have_said_so() -> None:
    stages = {"http://a": Small(), "http://b": Small()}
    replicated = ReplicatedDiffusion(stages, patience=PATIENT)
    with pytest.raises(TooLarge, match="does not fit"):
        await events_of(replicated)
    assert [len(each.asked) for each in stages.values()] == [1, 1]
    assert [(each.state, each.failures) for each in replicated.replicas] == [("ready", 0)] * 2


async def test_one_that_has_not_begun_is_not_waited_for_here() -> None:
    with pytest.raises(StageNotReady, match="still starting"):
        await events_of(ReplicatedDiffusion(alone(FakeDiffusion(started=False)), patience=PATIENT))


async def test_a_state_that_the_next_replica_does_not_know_begins_anew() -> None:
    class OfAnotherVersion(FakeDiffusion):
        def _state_key(self, request: DenoiseRequest) -> str:
            return "another version of the noise"

    stages = {"http://a": Breaking(BROKE), "http://b": OfAnotherVersion()}
    stage = ReplicatedDiffusion(stages, patience=PATIENT)
    events = await events_of(stage)
    assert bytes_of(events) == bytes_of(await undisturbed())
    assert positions(events) == [1, 2, 3, 4, 5, 6]
    assert events[-1].warnings == ("the denoising was begun anew: the state belongs to another plan",)
    assert stage.evaluations_repeated == 2 + 2 * 3


async def test_a_state_of_the_callers_own_that_is_refused_is_refused() -> None:
    state = next(event.state for event in await undisturbed(replace(REQUEST, progress_every=1)) if isinstance(event, State))
    stages = {"http://a": FakeDiffusion(), "http://b": FakeDiffusion()}
    with pytest.raises(Conflict):
        await events_of(ReplicatedDiffusion(stages), replace(REQUEST, resume=replace(state, state_key="x")))
    with pytest.raises(InvalidValue):
        await events_of(ReplicatedDiffusion(stages), replace(REQUEST, sampler="none"))


async def test_the_callers_own_state_is_where_it_begins() -> None:
    state = next(event.state for event in await undisturbed(replace(REQUEST, progress_every=2)) if isinstance(event, State))
    stages = {"http://a": Breaking(BROKE, after=1), "http://b": FakeDiffusion()}
    events = await events_of(ReplicatedDiffusion(stages, patience=PATIENT), replace(REQUEST, resume=state))
    assert bytes_of(events) == bytes_of(await undisturbed())
    assert positions(events) == [3, 4, 5, 6]


async def test_other_numerics_are_told() -> None:
    stages = {"http://a": Breaking(BROKE), "http://b": with_profile(FakeDiffusion(), numerics=replace(NUMERICS, device="other"))}
    stage = ReplicatedDiffusion(stages, patience=PATIENT)
    await stage.identity()
    (warning,) = (await events_of(stage))[-1].warnings
    assert warning.startswith("the denoising went on after evaluation 3 on another replica, whose numerics differ")


async def test_other_weights_at_all_addresses_are_another_model() -> None:
    def exchange() -> None:
        with_profile(first, weights_digest="9" * 64)

    first = Breaking(BROKE, then=exchange)
    stage = ReplicatedDiffusion(alone(first), patience=PATIENT)
    await stage.identity()
    with pytest.raises(StageNotReady, match="exchanged for another in mid-picture") as error:
        await events_of(stage)
    assert not error.value.waited, "whoever asked can have the picture from the new one"


async def test_a_stalled_one_is_left_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stalling(FakeDiffusion):
        async def identity(self):
            if self.evaluations == 2:
                await asyncio.Event().wait()
            return await super().identity()

    monkeypatch.setattr(replicas, "IDENTITY_TIMEOUT_SECONDS", 0.01)
    stages = {"http://a": Stalling(turnstile=asyncio.Semaphore(2)), "http://b": FakeDiffusion()}
    stage = ReplicatedDiffusion(stages, patience=Patience(wait_seconds=60, stall_seconds=0.05))
    events = await events_of(stage)
    assert bytes_of(events) == bytes_of(await undisturbed())
    assert resumed_at(stages["http://b"], 0) == [2, 2]
    assert stages["http://a"].ended.is_set(), "it was let go"


async def test_one_that_says_who_it_is_and_computes_nothing_is_left_after_a_while() -> None:
    stages = {"http://a": FakeDiffusion(turnstile=asyncio.Semaphore(3)), "http://b": FakeDiffusion()}
    stage = ReplicatedDiffusion(stages, patience=Patience(wait_seconds=60, stall_seconds=0.02))
    assert bytes_of(await events_of(stage)) == bytes_of(await undisturbed())
    assert resumed_at(stages["http://b"], 0) == [3, 3]


async def test_the_last_one_is_told_to_finish_what_it_has() -> None:
    stages = {"http://a": FakeDiffusion(), "http://b": FakeDiffusion()}
    stage = ReplicatedDiffusion(stages)
    await events_of(stage)
    stages["http://b"].close()
    await stage.identity()
    await events_of(stage)
    assert [request.finish_here for request in stages["http://a"].asked] == [False, True]


async def test_the_least_loaded_is_the_one_with_the_fewest_evaluations_left() -> None:
    stages = {
        "http://a": FakeDiffusion(turnstile=asyncio.Semaphore(5)),
        "http://b": FakeDiffusion(turnstile=asyncio.Semaphore(1)),
    }
    stage = ReplicatedDiffusion(stages)
    both = [stage.denoise(REQUEST) for _ in range(2)]
    for _ in range(5):
        await anext(both[0])
    await anext(both[1])
    assert [each.evaluations_outstanding for each in stage.replicas] == [2, 10]
    third = stage.denoise(replace(REQUEST, num_steps=1))
    arrived = asyncio.create_task(anext(third, None))
    await until(lambda: len(stages["http://a"].asked) == 2)
    arrived.cancel()
    for each in both:
        await each.aclose()


async def test_what_a_replica_reports_counts_too() -> None:
    stages: dict[str, Any] = {"http://a": FakeDiffusion(), "http://b": FakeDiffusion()}
    stages["http://a"].evaluations_reported = 100
    stage = ReplicatedDiffusion(stages)
    await stage.identity()
    for _ in range(3):
        await events_of(stage)
    assert [len(each.asked) for each in stages.values()] == [0, 3]
    assert stage.replicas[0].evaluations_elsewhere == 100


@pytest.mark.parametrize(("pace", "every"), [(10.0, 1), (0.1, 1), (0.01, 2), (0.001, 12)])
async def test_states_are_as_dense_as_they_are_cheap(monkeypatch: pytest.MonkeyPatch, pace: float, every: int) -> None:
    (state,) = [each.state for each in await undisturbed(replace(REQUEST, progress_every=5)) if isinstance(each, State)]
    size = state.latents.nbytes + state.sampler_state.nbytes
    monkeypatch.setattr(failover, "STATE_BYTES_PER_SECOND", size / 0.000115)
    journey = failover.Journey(replace(REQUEST, resume=None))
    assert journey.request(pace=pace, finish_here=False).progress_every == 1, "none was seen yet"
    journey.state = state
    assert journey.request(pace=pace, finish_here=False).progress_every == every
