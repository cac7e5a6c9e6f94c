"""The open loop of the timing benchmark: arrivals, what is made of the answers, and the search for the knee."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from benchmarks.timing.load import Outcome, Tried, kept_up, knee, next_rate, offer, poisson_arrivals, summarise
from benchmarks.timing.plan import Kind

KINDS = (Kind(width=128, height=128, num_steps=10), Kind(width=192, height=128, num_steps=25))


def test_arrivals_are_poisson() -> None:
    """Mean and deviation of the gaps of an exponential distribution are alike; both kinds come about as often."""
    arrivals = poisson_arrivals(KINDS, rate=4.0, requests=4000, seed=0)
    gaps = np.diff([arrival.at for arrival in arrivals])
    assert gaps.mean() == pytest.approx(0.25, rel=0.05)
    assert gaps.std() == pytest.approx(0.25, rel=0.05)
    assert sum(arrival.kind is KINDS[0] for arrival in arrivals) == pytest.approx(2000, abs=150)


def test_the_same_seed_brings_the_same_requests_at_any_rate() -> None:
    slow, fast = (poisson_arrivals(KINDS, rate=rate, requests=50, seed=7) for rate in (1.0, 10.0))
    assert [arrival.kind for arrival in slow] == [arrival.kind for arrival in fast]
    assert [arrival.at for arrival in slow] == pytest.approx([10 * arrival.at for arrival in fast])
    assert slow != poisson_arrivals(KINDS, rate=1.0, requests=50, seed=8)


@asynccontextmanager
async def one_at_a_time(seconds: float, places: int) -> AsyncIterator[str]:
    """Somebody who answers one request after the other, each after some seconds, and sends away whoever finds no place."""
    at_work, present = asyncio.Lock(), 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal present
        await reader.readuntil(b"\r\n\r\n")
        status = b"429 Too Many Requests" if present >= places else b"200 OK"
        if status == b"200 OK":
            present += 1
            async with at_work:
                await asyncio.sleep(seconds)
            present -= 1
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_waiting_is_counted_from_the_arrival() -> None:
    """Twenty come within a moment and are served one after the other: the last waits for all others."""
    arrivals = poisson_arrivals(KINDS, rate=1000.0, requests=20, seed=0)
    async with one_at_a_time(0.05, places=100) as url:
        result = await offer(url, arrivals, {"this": os.getpid()})
    assert (result.completed, result.shed, result.failed) == (20, 0, 0)
    assert result.p99_seconds == pytest.approx(20 * 0.05, rel=0.3)
    assert result.p50_seconds == pytest.approx(10 * 0.05, rel=0.3)
    assert result.throughput == pytest.approx(20, rel=0.3)
    assert result.memory_bytes["this"]["anonymous"] > 2**20


async def test_who_is_sent_away_is_counted_apart() -> None:
    arrivals = poisson_arrivals(KINDS, rate=1000.0, requests=20, seed=0)
    async with one_at_a_time(0.3, places=4) as url:
        result = await offer(url, arrivals, {})
    assert (result.completed, result.shed, result.failed) == (4, 16, 0)


def test_failures_are_no_latencies() -> None:
    outcomes = [Outcome(kind="a", status=200, late=0.0, latency=1.0), Outcome(kind="b", status=502, late=0.0, latency=0.1)]
    result = summarise(outcomes, offered_rate=1.0, seconds=2.0, memory={})
    assert (result.completed, result.failed, result.p50_seconds, result.throughput) == (1, 1, 1.0, 0.5)
    assert set(result.by_kind) == {"a"}


def test_nothing_made_has_no_latency() -> None:
    result = summarise([Outcome(kind="a", status=429, late=0.0, latency=0.1)], offered_rate=1.0, seconds=2.0, memory={})
    assert (result.shed, result.p50_seconds, result.by_kind) == (1, None, {})


@pytest.mark.parametrize("capacity", [0.4, 1.0, 3.3])
def test_the_search_comes_to_the_knee(capacity: float) -> None:
    tried: list[Tried] = []
    for _ in range(8):
        rate = next_rate(tried, first=0.7)
        tried.append(Tried(rate=rate, kept_up=rate <= capacity))
    assert knee(tried) == pytest.approx(capacity, rel=0.1)
    assert (knee(tried) or 0) <= capacity
    assert len({each.rate for each in tried}) == len(tried)


def test_there_may_be_no_knee() -> None:
    assert knee([Tried(rate=1.0, kept_up=False)]) is None


def test_a_rate_above_one_that_was_too_much_is_luck() -> None:
    assert knee([Tried(rate=1.0, kept_up=True), Tried(rate=2.0, kept_up=False), Tried(rate=3.0, kept_up=True)]) == 1.0


@pytest.mark.parametrize(
    ("change", "wanted"),
    [({}, True), ({"p95_seconds": 4.1}, False), ({"shed": 1}, False), ({"failed": 1}, False), ({"p95_seconds": None}, False)],
)
def test_keeping_up(change: dict[str, float | None], wanted: bool) -> None:
    result = {"shed": 0, "failed": 0, "p95_seconds": 3.9, **change}
    assert kept_up(result, alone_seconds=1.0, slow=4.0) is wanted
