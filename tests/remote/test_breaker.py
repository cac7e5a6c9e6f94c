"""When a circuit breaker opens, for how long, and what closes it."""

from __future__ import annotations

import pytest

from triptych.remote.breaker import FAILURES_TO_OPEN, FIRST_REST_SECONDS, LONGEST_REST_SECONDS, BreakerState, CircuitBreaker


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(clock=clock, jitter=lambda: 1.0)


def state_of(breaker: CircuitBreaker) -> BreakerState:
    return breaker.state


def lets_through(breaker: CircuitBreaker) -> bool:
    return breaker.lets_through


def fail(breaker: CircuitBreaker, clock: Clock, times: int) -> None:
    for _ in range(times):
        clock.now += 1
        with breaker.work() as began:
            breaker.fail(began)


def test_it_opens_after_some_failures_in_a_row(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, clock, FAILURES_TO_OPEN - 1)
    breaker.succeed()
    fail(breaker, clock, FAILURES_TO_OPEN - 1)
    assert lets_through(breaker)
    fail(breaker, clock, 1)
    assert (state_of(breaker), lets_through(breaker)) == (BreakerState.OPEN, False)


def test_all_work_that_one_death_ends_is_one_failure(breaker: CircuitBreaker, clock: Clock) -> None:
    began = clock.now
    clock.now += 1
    for _ in range(10):
        breaker.fail(began)
    assert state_of(breaker) is BreakerState.CLOSED


def test_after_a_rest_one_is_let_through(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, clock, FAILURES_TO_OPEN)
    clock.now += FIRST_REST_SECONDS
    assert (state_of(breaker), lets_through(breaker)) == (BreakerState.HALF_OPEN, True)
    with breaker.work():
        assert not lets_through(breaker)
    assert lets_through(breaker), "the probe was given up, which says nothing"
    with breaker.work():
        breaker.succeed()
    assert state_of(breaker) is BreakerState.CLOSED


def test_each_rest_is_twice_as_long_up_to_a_longest(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, clock, FAILURES_TO_OPEN)
    rest = FIRST_REST_SECONDS
    for _ in range(8):
        clock.now += rest - 0.01
        assert state_of(breaker) is BreakerState.OPEN
        clock.now += 0.01
        assert state_of(breaker) is BreakerState.HALF_OPEN
        with breaker.work() as began:
            breaker.fail(began)
        rest = min(2 * rest, LONGEST_REST_SECONDS)
    assert rest == LONGEST_REST_SECONDS
