from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stages.test_evaluation import CONFIG, context
from triptych.checkpoints.checkpoint import UNetPart
from triptych.contract import Denoised, Priority, State
from triptych.errors import QueueFull, StageFailed, StageNotReady, StageTimeout
from triptych.sampling.noise import Purpose, normal
from triptych.sampling.samplers import make_plan
from triptych.stages.denoising import Denoising
from triptych.stages.evaluation import Row
from triptych.stages.step_batcher import MOST_ROUNDS_WAITED, StepBatcher, choose_rows

SMALL, LARGE = (2, 2, 4), (4, 4, 4)


def some_row(*, num_steps=4, seed=1, guided=True, shape=SMALL, sampler="ddim", cache_interval=1) -> Row:
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
        cache_interval=cache_interval,
        seed=seed,
    )


def some_denoising(*seeds: int, deadline=None, priority="normal", finish_here=False, **row) -> Denoising:
    rows = [some_row(seed=seed, **row) for seed in seeds or (1,)]
    return Denoising(rows, state_key="key", deadline=deadline, priority=priority, finish_here=finish_here)


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
        prediction = np.broadcast_to(level[:, None, None, None], inputs["latents"].shape).astype(np.float32)
        return {"prediction": prediction, "features": prediction}


@pytest.fixture
def network() -> GatedNetwork:
    return GatedNetwork()


@pytest.fixture
def shallow(network) -> GatedNetwork:
    """Through the same gate, so that a test sees one call after the other."""
    shallow = GatedNetwork()
    shallow.called, shallow.gate = network.called, network.gate
    return shallow


@pytest.fixture
def batcher(network, shallow) -> Iterator[StepBatcher]:
    whole, shallows = ({(shape, (3, 5)): each for shape in (SMALL, LARGE)} for each in (network, shallow))
    batcher = StepBatcher(whole, shallow=shallows, capacity=4, queue_size=6)
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
    assert [place.denoising for place in choose_rows(denoisings, 4, turn=8)] == [denoisings[0], denoisings[1], denoisings[3]]


async def test_at_least_one_picture_whatever_fits():
    denoising = some_denoising(1)
    assert [(place.denoising, place.index) for place in choose_rows([denoising], 1, turn=8)] == [(denoising, 0)]


async def test_requests_take_turns_row_by_row():
    many, one = some_denoising(1, 2, 3, 4), some_denoising(5)
    chosen = choose_rows([many, one], 6, turn=8)
    assert [(place.denoising, place.index) for place in chosen] == [(many, 0), (one, 0), (many, 1)]


async def test_who_has_waited_longest_comes_first():
    first, second = some_denoising(1), some_denoising(2)
    first.last_turn = 7
    second.last_turn = 6
    assert the_first_of([first, second]) is second


async def test_a_row_that_is_behind_comes_first():
    denoising = some_denoising(1, 2, guided=False)
    denoising.replace(0, denoising.rows[0].advance(np.zeros(SMALL, np.float32)))
    assert [place.index for place in choose_rows([denoising], 1, turn=8)] == [1]


async def test_a_call_has_one_shape_and_shapes_take_turns():
    small, large = some_denoising(1), some_denoising(2, shape=LARGE)
    assert [place.denoising for place in choose_rows([small, large], 16, turn=8)] == [small]
    small.last_turn = 1
    assert [place.denoising for place in choose_rows([small, large], 16, turn=8)] == [large]


async def test_a_call_takes_the_whole_network_or_the_shallow_one_as_whoever_comes_first_wants():
    whole, shallow = some_denoising(1), some_denoising(2, cache_interval=2)
    shallow.replace(0, shallow.rows[0].advance(np.zeros(SMALL, np.float32)))
    assert [place.denoising for place in choose_rows([whole, shallow], 16, turn=8)] == [whole]
    whole.last_turn = 1
    assert [place.denoising for place in choose_rows([whole, shallow], 16, turn=8)] == [shallow]


async def test_of_a_request_that_comes_first_the_row_that_is_behind_decides_what_a_call_takes():
    denoising, other = some_denoising(1, 2, cache_interval=2), some_denoising(3)
    denoising.replace(0, denoising.rows[0].advance(np.zeros(SMALL, np.float32)))
    assert [(place.denoising, place.index) for place in choose_rows([denoising, other], 16, turn=8)] == [
        (denoising, 1),
        (other, 0),
    ]


PRIORITIES = list(Priority)


async def test_the_higher_priority_comes_first_and_equals_take_turns():
    low, normal, high, again = (some_denoising(1, priority=priority) for priority in ("low", "normal", "high", "high"))
    chosen = choose_rows([low, normal, high, again], 8, turn=1)
    assert [place.denoising for place in chosen] == [high, again, normal, low]
    low.last_turn, normal.last_turn, high.last_turn, again.last_turn = 0, 1, 3, 2
    chosen = choose_rows([low, normal, high, again], 8, turn=4)
    assert [place.denoising for place in chosen] == [again, high, normal, low]


async def test_all_rows_of_a_higher_priority_come_before_those_of_a_lower_one():
    low, high = some_denoising(1, priority="low"), some_denoising(2, 3, 4, priority="high")
    assert [place.denoising for place in choose_rows([low, high], 6, turn=1)] == [high] * 3


async def test_of_equals_those_in_a_hurry_come_first_and_the_earliest_deadline_before_them():
    calm, later, sooner = (some_denoising(1, deadline=deadline) for deadline in (1.0, 3.0, 2.0))
    later.is_hurried = sooner.is_hurried = True
    calm.last_turn, later.last_turn, sooner.last_turn = 1, 2, 2
    assert [place.denoising for place in choose_rows([calm, later, sooner], 6, turn=3)] == [sooner, later, calm]


async def test_a_hurry_does_not_make_up_for_a_priority():
    hurried, high = some_denoising(1, deadline=1.0), some_denoising(2, deadline=2.0, priority="high")
    hurried.is_hurried = True
    assert the_first_of([hurried, high], turn=1) is high


async def test_who_has_waited_for_long_enough_comes_before_all_others():
    low, high = some_denoising(1, priority="low"), some_denoising(2, priority="high")
    low.last_turn, high.last_turn = 0, 7
    assert the_first_of([low, high], turn=7) is high
    assert the_first_of([low, high], turn=8) is low


def the_first_of(denoisings: list[Denoising], *, turn: int = 8) -> Denoising:
    return choose_rows(denoisings, 2, turn=turn)[0].denoising


newcomers = st.lists(
    st.tuples(
        st.sampled_from(PRIORITIES),
        st.integers(1, 3),
        st.sampled_from([SMALL, LARGE]),
        st.booleans(),
        st.integers(1, 9),
        st.sampled_from([1, 1, 2, 3]),
    ),
    max_size=3,
)


@given(capacity=st.integers(1, 6), arrivals=st.lists(newcomers, max_size=60))
@settings(deadline=None, max_examples=60)
def test_nothing_starves(capacity, arrivals):
    """Whatever comes, and however urgent it is: in (MOST_ROUNDS_WAITED + 1) * n turns each takes part, of n that are there."""

    async def run() -> None:
        running: list[Denoising] = []
        most = 1
        for turn, coming in enumerate([*arrivals, *[[]] * 200], start=1):
            for priority, rows, shape, is_hurried, num_steps, cache_interval in coming:
                denoising = a_denoising(rows, shape, num_steps, priority, cache_interval)
                denoising.is_hurried, denoising.deadline = is_hurried, float(-turn)
                denoising.last_turn = turn - 2
                running.append(denoising)
            if not running:
                continue
            most = max(most, len(running))
            for place in choose_rows(running, capacity, turn=turn):
                place.denoising.last_turn = turn
                place.denoising.replace(place.index, replace(place.row, position=place.row.position + 1))
            running = [denoising for denoising in running if denoising.evaluations_left]
            assert all(turn - denoising.last_turn <= (MOST_ROUNDS_WAITED + 1) * most for denoising in running)

    asyncio.run(run())


_ROWS = {shape: some_row(num_steps=9, shape=shape) for shape in (SMALL, LARGE)}


def a_denoising(rows: int, shape, num_steps: int, priority: str, cache_interval: int) -> Denoising:
    row = replace(_ROWS[shape], position=9 - num_steps, cache_interval=cache_interval)
    return Denoising([row] * rows, state_key="key", priority=priority)


# The thread


async def test_a_denoising_that_comes_later_joins_between_two_evaluations(batcher, network):
    first, second = some_denoising(1, num_steps=3), some_denoising(2, num_steps=3)
    batcher.join(first)
    await called(network)
    batcher.join(second)
    network.let(100)
    await asyncio.gather(latents_of(first), latents_of(second))
    assert network.calls == [[1, -1], [2, 1, -1, -1], [1, 2, -1, -1], [2, -1]]


async def test_requests_of_one_interval_fall_into_step(batcher, network, shallow):
    first, second = (some_denoising(seed, num_steps=9, cache_interval=3) for seed in (1, 2))
    batcher.join(first)
    await called(network)
    batcher.join(second)
    network.let(100)
    await asyncio.gather(latents_of(first), latents_of(second))
    # The first is one ahead, waits for the second where that takes the whole network, and from then on they share all calls.
    assert [sorted(call) for call in network.calls] == [[-1, 1], [-1, 2], [-1, -1, 1, 2], [-1, -1, 1, 2]]
    assert [sorted(call) for call in shallow.calls] == [[-1, -1, 1, 2]] * 6


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


async def test_newcomers_are_behind_whoever_has_waited_for_longer_than_a_turn(batcher, network):
    batcher.join(some_denoising(1, 2, num_steps=50))
    for _ in range(5):
        await called(network)
        network.let(1)
    await called(network)
    assert batcher.turn == 6
    batcher.join(newcomer := some_denoising(3))
    assert newcomer.last_turn == 5


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


def seconds_per_row(batcher: StepBatcher, seconds: float) -> None:
    batcher._pace.measure(((SMALL, (3, 5)), UNetPart.WHOLE), 1, seconds)


async def test_a_full_queue_says_when_the_shortest_of_those_on_their_way_is_done(batcher, network):
    """Until then the others advance by as many evaluations: 4 of two rows each, and 4 times 2 halves of the short one's mates."""
    seconds_per_row(batcher, 0.5)
    batcher.join(some_denoising(1, 2, 3, num_steps=50))
    batcher.join(some_denoising(4, 5, num_steps=50))
    batcher.join(some_denoising(6, num_steps=4))
    with pytest.raises(QueueFull) as caught:
        batcher.join(some_denoising(7))
    assert caught.value.retry_after_seconds == pytest.approx(3 * 4 * 2 * 0.5)


def seconds_per_shallow_row(batcher: StepBatcher, seconds: float) -> None:
    batcher._pace.measure(((SMALL, (3, 5)), UNetPart.SHALLOW), 1, seconds)


async def test_what_is_left_is_counted_by_what_it_takes_of_the_network(batcher, network):
    """Of 10 evaluations under an interval of 5 two are whole ones: 2 s and 8 times a quarter, for each half."""
    seconds_per_row(batcher, 1.0)
    seconds_per_shallow_row(batcher, 0.25)
    batcher.join(some_denoising(1, 2, 3, 4, 5, 6, num_steps=50))
    reusing = some_denoising(7, num_steps=10, cache_interval=5)
    assert batcher._seconds_to_the_end(reusing, []) == pytest.approx(2 * 4.0)
    with pytest.raises(QueueFull) as caught:
        batcher.join(some_denoising(8))
    assert caught.value.retry_after_seconds == pytest.approx(50 * 12 * 1.0)


async def test_a_full_queue_of_shallow_rows_does_not_keep_callers_away_for_longer_than_it_takes(batcher, network):
    seconds_per_row(batcher, 1.0)
    seconds_per_shallow_row(batcher, 0.25)
    batcher.join(some_denoising(1, 2, 3, 4, 5, 6, num_steps=10, cache_interval=5))
    with pytest.raises(QueueFull) as caught:
        batcher.join(some_denoising(8))
    assert caught.value.retry_after_seconds == pytest.approx(6 * 2 * 4.0)


async def test_a_deadline_that_shallow_rows_meet_is_no_reason_to_refuse(batcher, network):
    seconds_per_row(batcher, 1.0)
    seconds_per_shallow_row(batcher, 0.25)
    batcher.join(some_denoising(1, num_steps=50, cache_interval=5, deadline=time.monotonic() + 1000))
    # Four rows a call: 4 s for a whole one, 1 s for a shallow one, so 16 s, where whole ones alone would take 40 s.
    batcher.join(some_denoising(2, num_steps=10, cache_interval=5, deadline=time.monotonic() + 17))
    with pytest.raises(StageTimeout, match=r"the 10 evaluations that are left take 16\.0 s"):
        batcher.join(some_denoising(3, num_steps=10, cache_interval=5, deadline=time.monotonic() + 12))


async def test_whoever_cannot_share_calls_is_no_reason_to_fail_early(batcher, network, shallow):
    """Another size, or another interval, may be in no call of a request: with a place in every call it has these for itself."""
    for _ in range(32):
        seconds_per_row(batcher, 1.0)
    request = some_denoising(1, num_steps=10, deadline=time.monotonic() + 20)
    batcher.join(request)
    batcher.join(some_denoising(2, num_steps=50, cache_interval=3))
    await called(network)
    network.let(1)
    await called(network)
    # 9 turns of its two rows are 18 s; of four rows they would be 36 s.
    assert request.is_wanted


async def test_a_batcher_without_a_place_refuses_everybody():
    batcher = StepBatcher({}, capacity=4, queue_size=0)
    with pytest.raises(QueueFull, match="0 pictures on their way"):
        batcher.join(some_denoising(1))
    batcher.close()


async def test_who_cannot_be_done_in_time_is_refused_with_the_sentence_why(batcher, network):
    seconds_per_row(batcher, 1.0)
    first = some_denoising(1, num_steps=50, deadline=time.monotonic() + 1000)
    batcher.join(first)
    # A turn of both has four rows, and takes as many seconds.
    with pytest.raises(StageTimeout, match=r"that is 3[01]\.\d s away, and the 10 evaluations that are left take 40\.0 s"):
        batcher.join(some_denoising(2, num_steps=10, deadline=time.monotonic() + 31))
    batcher.join(some_denoising(3, num_steps=10, deadline=time.monotonic() + 39))  # what was measured is no promise
    batcher.join(some_denoising(4, num_steps=10))


async def test_only_those_that_come_before_it_count_against_a_newcomer(batcher, network):
    seconds_per_row(batcher, 1.0)
    for priority, seconds in (("low", 1), ("normal", 1000), ("normal", 500), ("high", 2000)):
        batcher.join(some_denoising(1, num_steps=50, priority=priority, deadline=time.monotonic() + seconds + 700))
    newcomer = some_denoising(2, num_steps=10, deadline=time.monotonic() + 1300)
    # Itself, the normal one that is due before, and the high one: six rows of the network a round.
    assert batcher._seconds_to_the_end(newcomer, batcher._present()) == pytest.approx(10 * 6 * 1.0)


async def test_an_idle_batcher_refuses_nobody_for_what_it_measured_long_ago(batcher, network):
    seconds_per_row(batcher, 1000.0)
    denoising = some_denoising(1, deadline=time.monotonic() + 60)
    batcher.join(denoising)
    network.let(100)
    # Its own first evaluation is measured, and the median of two is still in the hundreds: by then it is judged by that.
    with pytest.raises(StageTimeout, match="cannot be done before the deadline"):
        await latents_of(denoising)
    assert len(network.calls) == 1
    for _ in range(3):
        seconds_per_row(batcher, 0.001)
    batcher.join(again := some_denoising(1, deadline=time.monotonic() + 60))
    await latents_of(again)


async def test_who_can_no_longer_make_it_fails_early(batcher, network):
    late = some_denoising(1, num_steps=50, deadline=time.monotonic() + 60)
    batcher.join(late)
    await called(network)
    for _ in range(32):
        seconds_per_row(batcher, 10.0)
    network.let(1)
    with pytest.raises(StageTimeout, match="the 49 evaluations that are left take 980"):
        await latents_of(late)


async def test_who_misses_its_deadline_with_a_fair_share_is_hurried(batcher, network):
    for _ in range(32):
        seconds_per_row(batcher, 1.0)
    calm = [some_denoising(seed, num_steps=10, deadline=time.monotonic() + 1000) for seed in (1, 2, 3)]
    for denoising in calm:
        batcher.join(denoising)
    await called(network)
    # Four requests of two rows each: a round takes 8 s, ten rounds 80 s, and ten calls of four rows 40 s.
    hurried = some_denoising(4, num_steps=10, deadline=time.monotonic() + 60)
    batcher.join(hurried)
    network.let(1)
    await called(network)
    assert [denoising.is_hurried for denoising in (*calm, hurried)] == [False, False, False, True]
    assert network.calls[1][0] == 4, "though others wait for as long"


# The end


async def until_stopped(denoising: Denoising) -> list[object]:
    told: list[object] = []

    async def listen() -> None:
        async for event in denoising.events():
            told.append(event)

    with pytest.raises(StageNotReady, match="the diffusion stage is stopping"):
        await listen()
    return told


async def test_stopping_hands_back_what_runs_as_a_state(batcher, network):
    started, waiting = some_denoising(1, 2, num_steps=50), some_denoising(3)
    batcher.join(started)
    await called(network)
    batcher.join(waiting)
    batcher.stop()
    with pytest.raises(StageNotReady, match="is stopping"):
        batcher.join(some_denoising(4))
    network.let(1)
    *_, state = await until_stopped(started)
    assert isinstance(state, State)
    assert state.state.position.tolist() == [1, 1]
    assert state.state.latents.tobytes() == np.stack([row.latents for row in started.rows]).tobytes()
    assert await until_stopped(waiting) == [], "there is no state of what was not begun"
    await asyncio.to_thread(batcher.close)
    assert len(network.calls) == 1


async def test_a_resumed_denoising_that_was_not_evaluated_here_has_no_state_to_hand_back(batcher, network):
    batcher.join(some_denoising(1))
    await called(network)
    resumed = some_denoising(2)
    resumed = Denoising([replace(resumed.rows[0], position=2)], state_key="key")
    batcher.join(resumed)
    batcher.stop()
    network.let(1)
    assert await until_stopped(resumed) == []


async def test_stopping_finishes_what_nobody_else_can(batcher, network):
    stays, goes = some_denoising(1, num_steps=20, finish_here=True), some_denoising(2, num_steps=20)
    batcher.join(stays)
    batcher.join(goes)
    await called(network)
    batcher.stop()
    network.let(100)
    await until_stopped(goes)
    assert (await latents_of(stays)).shape == (1, *SMALL)


async def test_at_last_all_is_handed_back(batcher, network):
    stays = some_denoising(1, num_steps=20, finish_here=True)
    batcher.join(stays)
    await called(network)
    batcher.stop(hand_back_all_at=time.monotonic())
    network.let(100)
    *_, state = await until_stopped(stays)
    assert isinstance(state, State)


@pytest.fixture
def hasty(network) -> Iterator[StepBatcher]:
    """Waits for no evaluation when it is to hand back."""
    batcher = StepBatcher({(SMALL, (3, 5)): network}, capacity=4, queue_size=6, patience=0.0)
    yield batcher
    network.let(1000)
    batcher.close()


async def test_an_evaluation_that_takes_too_long_is_left_behind(hasty, network):
    denoising = some_denoising(1, 2, num_steps=50)
    hasty.join(denoising)
    await called(network)
    network.let(1)
    await called(network)
    hasty.stop()
    *_, state = await until_stopped(denoising)
    assert isinstance(state, State)
    assert state.state.position.tolist() == [1, 1], "the evaluation that was left behind is in no state"
    await asyncio.to_thread(hasty.close)
    assert hasty.is_at_work
    network.let(1)
    async with asyncio.timeout(10):
        while hasty.is_at_work:  # noqa: ASYNC110 - another thread makes it true
            await asyncio.sleep(0.001)
    assert len(network.calls) == 2


async def test_what_nobody_else_can_finish_is_not_left_behind_before_its_time(hasty, network):
    stays, goes = some_denoising(1, num_steps=2, finish_here=True), some_denoising(2, num_steps=20)
    hasty.join(stays)
    hasty.join(goes)
    await called(network)
    hasty.stop()
    assert await until_stopped(goes) == [], "it is told at once, in the middle of its first evaluation"
    network.let(2)
    assert (await latents_of(stays)).shape == (1, *SMALL)
    await asyncio.to_thread(hasty.close)
    assert not hasty.is_at_work


async def test_at_last_even_that_is_left_behind(hasty, network):
    stays = some_denoising(1, num_steps=20, finish_here=True)
    hasty.join(stays)
    await called(network)
    hasty.stop(hand_back_all_at=time.monotonic() + 0.05)
    assert await until_stopped(stays) == []
    await asyncio.to_thread(hasty.close)
    assert hasty.is_at_work


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
