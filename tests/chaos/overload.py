"""Ten times as many requests as the services can serve: what becomes of those that are taken, and of those that are sent away.

`python -m tests.chaos.overload` starts the four services with vignette on this machine, for about three minutes. First as many
callers as there are places at the gateway keep it just full: that is capacity. Then requests come at ten times the rate that it
served, whether others are done or not. It ends with status 1 where one of these does not hold:

- every answer is 200 or 429;
- p95 of the pictures' latencies is at most 1.5 times that at capacity;
- no process has more memory at its peak than 1.1 times its peak at capacity;
- nine in ten Retry-After are right: the next request was done after no less than half, and no more than twice that time, where
  the header's whole seconds, rounded up, allow for one second more.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import httpx2

from benchmarks.memory import PeakMemory
from benchmarks.report import quantile
from tests.end_to_end.real_services import running
from triptych.cli.processes import free_ports
from triptych.cli.topology import four_services

RUNNING, WAITING = 4, 4
PLACES = RUNNING + WAITING
TIMES_CAPACITY = 10
BODY = {"prompt": "a red circle", "num_steps": 25, "num_images": 4}

MOST_LATENCY = 1.5
MOST_MEMORY = 1.1
LEAST_RIGHT = 0.9


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One request.

    Attributes:
        sent, ended: By `time.monotonic()`.
        retry_after: Seconds, where the answer names them.
    """

    status: int
    sent: float
    ended: float
    retry_after: float | None

    @property
    def seconds(self) -> float:
        return self.ended - self.sent


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What became of a load. `memory` is in bytes, the most that each process had of its own."""

    answers: Sequence[Answer]
    memory: Mapping[str, int]

    @property
    def made(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status == 200]

    @property
    def rate(self) -> float:
        """Requests a second that were done."""
        ends = [answer.ended for answer in self.made]
        return (len(ends) - 1) / (max(ends) - min(ends))

    @property
    def p95(self) -> float:
        return quantile([answer.seconds for answer in self.made], 0.95)

    def is_right(self, refused: Answer) -> bool | None:
        """Whether a Retry-After was right; None where nothing was done any more."""
        assert refused.retry_after is not None
        following = [answer.ended for answer in self.made if answer.ended > refused.ended]
        if not following:
            return None
        seconds = min(following) - refused.ended
        return seconds / 2 <= refused.retry_after <= 2 * seconds + 1

    @property
    def share_right(self) -> float:
        """Of the Retry-After."""
        right = [self.is_right(answer) for answer in self.answers if answer.status == 429]
        judged = [each for each in right if each is not None]
        return sum(judged) / len(judged) if judged else 1.0


async def ask(client: httpx2.AsyncClient, body: Mapping[str, Any]) -> Answer:
    sent = time.monotonic()
    response = await client.post("/generate", json=body, headers={"Accept": "application/json"})
    told = response.headers.get("Retry-After")
    return Answer(
        status=response.status_code, sent=sent, ended=time.monotonic(), retry_after=None if told is None else float(told)
    )


async def callers(client: httpx2.AsyncClient, body: Mapping[str, Any], *, number: int, seconds: float) -> list[Answer]:
    """So many callers, each of whom asks again as soon as there is an answer, and a moment later where it was sent away."""
    until = time.monotonic() + seconds

    async def call(place: int) -> list[Answer]:
        answers: list[Answer] = []
        while time.monotonic() < until:
            answers.append(await ask(client, {**body, "seed": place * 10_000 + len(answers)}))
            if answers[-1].status != 200:
                await asyncio.sleep(0.2)
        return answers

    return [answer for answers in await asyncio.gather(*map(call, range(number))) for answer in answers]


async def arrivals(client: httpx2.AsyncClient, body: Mapping[str, Any], *, rate: float, seconds: float) -> list[Answer]:
    """Requests at a steady rate, whether others are done or not."""

    async def arrive(number: int) -> Answer:
        await asyncio.sleep(number / rate)
        return await ask(client, {**body, "seed": number})

    return await asyncio.gather(*map(arrive, range(round(rate * seconds))))


def client_of(url: str) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=PLACES)
    return httpx2.AsyncClient(base_url=url, timeout=600, limits=limits)


def judge(capacity: Phase, overload: Phase) -> list[str]:
    """A sentence for each promise that was not kept."""
    statuses = Counter(answer.status for answer in (*capacity.answers, *overload.answers))
    growth = {name: overload.memory[name] / capacity.memory[name] for name in overload.memory}
    broken = [f"{number} answers were {status}" for status, number in statuses.items() if status not in (200, 429)]
    if overload.p95 > MOST_LATENCY * capacity.p95:
        broken.append(f"p95 is {overload.p95 / capacity.p95:.2f} times that at capacity")
    broken += [f"{name} has {times:.2f} times the memory" for name, times in growth.items() if times > MOST_MEMORY]
    if overload.share_right < LEAST_RIGHT:
        broken.append(f"{overload.share_right:.0%} of the Retry-After are right")
    return broken


def told(name: str, phase: Phase) -> Iterable[str]:
    statuses = ", ".join(f"{number} x {status}" for status, number in Counter(a.status for a in phase.answers).items())
    yield f"{name}: {statuses}; {phase.rate:.2f} requests a second done, p95 {phase.p95:.1f} s"
    yield "  " + ", ".join(f"{process} {bytes_ / 2**20:.0f} MiB" for process, bytes_ in phase.memory.items())


async def run(url: str, pids: Mapping[str, int], *, seconds: float, say: Callable[[str], None]) -> list[str]:
    """Both loads; what was not kept."""
    async with client_of(url) as client:
        await callers(client, BODY, number=PLACES, seconds=seconds / 4)  # what grows only once has grown
        with ExitStack() as stack:
            peaks = {name: stack.enter_context(PeakMemory(pid)) for name, pid in pids.items()}
            answers = await callers(client, BODY, number=PLACES, seconds=seconds)
        capacity = Phase(answers=answers, memory={name: peak.anonymous for name, peak in peaks.items()})
        for line in told("at capacity", capacity):
            say(line)
        with ExitStack() as stack:
            peaks = {name: stack.enter_context(PeakMemory(pid)) for name, pid in pids.items()}
            answers = await arrivals(client, BODY, rate=TIMES_CAPACITY * capacity.rate, seconds=seconds)
        overload = Phase(answers=answers, memory={name: peak.anonymous for name, peak in peaks.items()})
    for line in told(f"{TIMES_CAPACITY} times as many", overload):
        say(line)
    say(f"  {overload.share_right:.0%} of the Retry-After are right")
    return judge(capacity, overload)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each of the two loads")
    seconds = parser.parse_args().seconds
    *stages, gateway = (
        replace(service, environment={**service.environment, "TRIPTYCH_THREADS": "1", "TRIPTYCH_LOG_LEVEL": "error"})
        for service in four_services(free_ports(4))
    )
    few = {"TRIPTYCH_MAX_RUNNING_REQUESTS": str(RUNNING), "TRIPTYCH_MAX_WAITING_REQUESTS": str(WAITING)}
    services = (*stages, replace(gateway, environment={**gateway.environment, **few}))
    with running(services) as group:
        pids = {process.service.name: process.pid for process in group.processes}
        broken = asyncio.run(run(gateway.url, pids, seconds=seconds, say=print))
    for sentence in broken:
        print(f"NOT KEPT: {sentence}")  # noqa: T201
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
