"""The open loop: requests come when they come, whether the ones before are done or not, and the knee of the curve is searched."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.bare_client import BareConnection
from benchmarks.memory import resident_memory
from benchmarks.report import quantile
from benchmarks.timing.asking import PNG, Asked
from benchmarks.timing.plan import Kind

SHED = 429
_SECONDS_BETWEEN_LOOKS = 0.5
_STEP = 1.6
"""By what a rate grows while the service keeps up."""


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A request, and when it comes, in seconds since the first could have."""

    at: float
    kind: Kind
    seed: int

    def asked(self) -> Asked:
        return Asked(num_images=1, **asdict(self.kind), seed=self.seed)


def poisson_arrivals(kinds: Sequence[Kind], *, rate: float, requests: int, seed: int) -> list[Arrival]:
    """Independent of each other, `rate` a second in the mean.

    The same seed brings the same requests in the same order at any rate, only closer together: loads are alike but for that.
    """
    generator = np.random.default_rng(seed)
    gaps = generator.standard_exponential(requests)
    chosen = generator.integers(0, len(kinds), requests)
    return [
        Arrival(at=float(at), kind=kinds[kind], seed=number)
        for number, (at, kind) in enumerate(zip(np.cumsum(gaps) / rate, chosen, strict=True))
    ]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of an arrival. `latency` is counted from when it came, not from when the client got to sending it."""

    kind: str
    status: int
    late: float
    latency: float


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """One load.

    Attributes:
        offered_rate: Requests a second that came.
        throughput: Pictures a second that were made, from the first arrival to the last answer.
        shed: Requests that were answered 429; `failed`, with anything else that is not a picture.
        p50_seconds, p95_seconds, p99_seconds: Of the pictures that were made; None where there is none.
        by_kind: The same three of each kind.
        sent_late_p99_seconds: How far the client was behind with sending: what it adds to the latencies by itself.
        memory_bytes: The most that each process had at a look every half second, of its own and with pages of files.
    """

    offered_rate: float
    requests: int
    completed: int
    shed: int
    failed: int
    seconds: float
    throughput: float
    p50_seconds: float | None
    p95_seconds: float | None
    p99_seconds: float | None
    by_kind: dict[str, dict[str, float]]
    sent_late_p99_seconds: float
    memory_bytes: dict[str, dict[str, int]]


async def offer(url: str, arrivals: Sequence[Arrival], pids: Mapping[str, int]) -> LoadResult:
    """Sends every arrival at its time, and waits for all answers."""
    clock = asyncio.get_running_loop().time
    async with _watched(pids) as memory:
        began = clock()

        async def call(arrival: Arrival) -> Outcome:
            await asyncio.sleep(began + arrival.at - clock())
            late = clock() - began - arrival.at
            async with BareConnection(url) as connection:
                status, _ = await connection.post("/generate", arrival.asked().body(), accept=PNG)
            return Outcome(kind=arrival.kind.name, status=status, late=late, latency=clock() - began - arrival.at)

        outcomes = await asyncio.gather(*map(call, arrivals))
        seconds = clock() - began - arrivals[0].at
    return summarise(outcomes, offered_rate=len(arrivals) / arrivals[-1].at, seconds=seconds, memory=memory)


@asynccontextmanager
async def _watched(pids: Mapping[str, int]) -> AsyncIterator[dict[str, dict[str, int]]]:
    """The most memory of each process, filled in as it is seen."""
    most: dict[str, dict[str, int]] = {name: {"anonymous": 0, "file": 0} for name in pids}

    async def watch() -> None:
        while True:
            for name, pid in pids.items():
                now = resident_memory(pid)
                most[name] = {
                    "anonymous": max(most[name]["anonymous"], now.anonymous),
                    "file": max(most[name]["file"], now.file),
                }
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)

    watching = asyncio.create_task(watch())
    try:
        yield most
    finally:
        watching.cancel()
        await asyncio.wait([watching])


def summarise(
    outcomes: Sequence[Outcome], *, offered_rate: float, seconds: float, memory: Mapping[str, Mapping[str, int]]
) -> LoadResult:
    made = [outcome for outcome in outcomes if outcome.status == 200]
    shed = sum(outcome.status == SHED for outcome in outcomes)
    quantiles = _quantiles([outcome.latency for outcome in made])
    kinds = Counter(outcome.kind for outcome in made)
    return LoadResult(
        offered_rate=offered_rate,
        requests=len(outcomes),
        completed=len(made),
        shed=shed,
        failed=len(outcomes) - len(made) - shed,
        seconds=seconds,
        throughput=len(made) / seconds,
        p50_seconds=quantiles.get("p50_seconds"),
        p95_seconds=quantiles.get("p95_seconds"),
        p99_seconds=quantiles.get("p99_seconds"),
        by_kind={kind: _quantiles([outcome.latency for outcome in made if outcome.kind == kind]) for kind in sorted(kinds)},
        sent_late_p99_seconds=quantile([outcome.late for outcome in outcomes], 0.99),
        memory_bytes={name: dict(bytes_) for name, bytes_ in memory.items()},
    )


def _quantiles(latencies: Sequence[float]) -> dict[str, float]:
    if not latencies:
        return {}
    return {f"p{percent}_seconds": quantile(latencies, percent / 100) for percent in (50, 95, 99)}


# The knee


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A rate, and whether the service kept up with it."""

    rate: float
    kept_up: bool


def kept_up(result: Mapping[str, Any], *, alone_seconds: float, slow: float) -> bool:
    """Whether nobody was sent away, and 95 in 100 waited no longer than `slow` times what a request takes that is alone."""
    p95 = result["p95_seconds"]
    return result["shed"] == result["failed"] == 0 and p95 is not None and p95 <= slow * alone_seconds


def next_rate(tried: Sequence[Tried], *, first: float) -> float:
    """Where to look for the knee next: further up or down until it lies between two rates, then in their geometric middle."""
    good = [each.rate for each in tried if each.kept_up]
    bad = [each.rate for each in tried if not each.kept_up]
    if not tried:
        return _rounded(first)
    if not bad:
        return _rounded(max(good) * _STEP)
    if not good:
        return _rounded(min(bad) / _STEP)
    return _rounded((max(good) * min(bad)) ** 0.5)


def knee(tried: Sequence[Tried]) -> float | None:
    """The highest rate that the service kept up with, below the lowest that it did not; None where it kept up with none."""
    bad = min((each.rate for each in tried if not each.kept_up), default=float("inf"))
    return max((each.rate for each in tried if each.kept_up and each.rate < bad), default=None)


def _rounded(rate: float) -> float:
    """So that an interrupted search, which finds its rates anew, finds the same."""
    return float(f"{rate:.3g}")
