"""The timing benchmark tells the truth: what is slow by a known time shows as that time in its own bar and nowhere else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from statistics import median
from urllib.parse import urlsplit

import httpx2
import pytest

from benchmarks.stand_in import HEIGHT, WIDTH, make_stand_in
from benchmarks.timing.asking import NAMES, Asked, MeasurementError, Parts, ask_for_parts
from benchmarks.timing.front import mixed_gateway
from benchmarks.timing.statistics import paired_difference
from tests.gateway.served import served
from triptych.contract import StageName
from triptych.gateway.settings import GatewaySettings
from triptych.serving.settings import StageSettings, read_settings
from triptych.serving.stage_app import stage_app

pytestmark = pytest.mark.timeout(300)  # where a busy machine blurs, more rounds are looked at

SLOWER = 0.2
TOLERANCE = 0.1 * SLOWER
ROUNDS = (5, 10, 20, 40)
USUAL = {StageName.TEXT_ENCODER: 0.01, StageName.DIFFUSION: 0.03, StageName.DECODER: 0.02}
BARS = {StageName.TEXT_ENCODER: "encode", StageName.DIFFUSION: "diffuse", StageName.DECODER: "decode"}


@dataclass(frozen=True)
class Running:
    """A gateway's address, and its stages'."""

    url: str
    remote: Mapping[StageName, str]


@contextmanager
def three_endpoints(seconds: Mapping[StageName, float], between: Mapping[StageName, str] | None = None) -> Iterator[Running]:
    """Stand-ins and a gateway on sockets.

    Args:
        between: Addresses that the gateway is told instead of the stages' own.
    """
    settings = read_settings(StageSettings)
    with ExitStack() as open_ones:
        remote = {
            stage: open_ones.enter_context(served(stage_app(make_stand_in(stage, each), settings)))
            for stage, each in seconds.items()
        }
        yield open_ones.enter_context(_gateway(remote, between or {}))


@contextmanager
def _gateway(remote: Mapping[StageName, str], between: Mapping[StageName, str]) -> Iterator[Running]:
    with served(mixed_gateway(read_settings(GatewaySettings), {**remote, **between})) as url:
        with httpx2.Client(base_url=url, timeout=30, trust_env=False) as client:
            while client.get("/health/ready").status_code != 200:
                time.sleep(0.05)
        yield Running(url, remote)


@pytest.fixture(scope="module")
def plain() -> Iterator[Running]:
    with three_endpoints(USUAL) as running:
        yield running


async def rounds_of(number: int, *subjects: Running) -> list[list[Parts]]:
    """Of each, so many requests, in turn."""
    rounds = []
    for seed in range(number):
        asked = Asked(num_images=1, num_steps=20, width=WIDTH, height=HEIGHT, seed=seed)
        rounds.append([(await ask_for_parts(each.url, each.remote, asked))[0] for each in subjects])
    return [list(parts) for parts in zip(*rounds, strict=True)]


async def assert_slower_in(bar: str, plain: Running, slow: Running) -> None:
    """By 200 ms at the medians, and in no other bar. Where a busy machine blurs them, more rounds are looked at."""
    await rounds_of(1, plain, slow)
    wanted = dict.fromkeys(NAMES, 0.0) | {bar: SLOWER}
    before: list[Parts] = []
    after: list[Parts] = []
    for number in ROUNDS:
        more_before, more_after = await rounds_of(number - len(before), plain, slow)
        before, after = before + more_before, after + more_after
        differences = {name: _median(name, after) - _median(name, before) for name in NAMES}
        if differences == pytest.approx(wanted, abs=TOLERANCE):
            return
    assert differences == pytest.approx(wanted, abs=TOLERANCE)


def _median(bar: str, measured: Sequence[Parts]) -> float:
    return median(getattr(parts, bar) for parts in measured)


@pytest.mark.parametrize("stage", list(StageName))
async def test_a_slow_stage_shows_in_its_own_bar(plain: Running, stage: StageName) -> None:
    with three_endpoints({**USUAL, stage: USUAL[stage] + SLOWER}) as slow:
        await assert_slower_in(BARS[stage], plain, slow)


async def test_a_slow_wire_shows_as_transfer(plain: Running) -> None:
    async with delay_line(plain.remote[StageName.DECODER], SLOWER) as address:
        with ExitStack() as open_ones:
            slow = await asyncio.to_thread(open_ones.enter_context, _gateway(plain.remote, {StageName.DECODER: address}))
            await assert_slower_in("transfer", plain, slow)
            await asyncio.to_thread(open_ones.close)


async def test_the_parts_are_the_whole(plain: Running) -> None:
    (measured,) = await rounds_of(2, plain)
    for parts in measured:
        assert sum(getattr(parts, name) for name in NAMES) == pytest.approx(parts.wall)
        assert sum(parts.transfer_of.values()) == pytest.approx(parts.transfer)


async def test_a_scenario_does_not_differ_from_itself_and_does_from_a_slower_one(plain: Running) -> None:
    with three_endpoints({**USUAL, StageName.DIFFUSION: 0.03 + SLOWER}) as slow:
        first, again, slower = ([parts.wall for parts in each] for each in await rounds_of(12, plain, plain, slow))
    assert paired_difference(again, first, confidence=0.999).is_noise
    assert not paired_difference(slower, first, confidence=0.999).is_noise


async def test_a_stage_that_does_not_tell_is_named(plain: Running) -> None:
    """Its transfer is within its work: nothing is made up."""
    async with without_metrics() as address:
        (measured,) = await rounds_of(1, Running(plain.url, {**plain.remote, StageName.DECODER: address}))
    assert all(parts.silent == (StageName.DECODER,) for parts in measured)
    assert StageName.DECODER not in measured[0].transfer_of


async def test_somebody_else_at_a_stage_is_noticed(plain: Running) -> None:
    asked = Asked(num_images=1, num_steps=20, width=WIDTH, height=HEIGHT, seed=0)
    both = (ask_for_parts(plain.url, plain.remote, asked) for _ in range(2))
    # Both come to their end: one that the loop's end cut off in mid-connection would leave its socket to some later test.
    told = await asyncio.gather(*both, return_exceptions=True)
    errors = [each for each in told if isinstance(each, BaseException)]
    assert errors
    assert all(isinstance(error, MeasurementError) and "somebody else" in str(error) for error in errors)


@asynccontextmanager
async def delay_line(address: str, seconds: float) -> AsyncIterator[str]:
    """What is sent to the address arrives so much later; answers do not."""
    writers: list[asyncio.StreamWriter] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", urlsplit(address).port)
        writers.extend((writer, there_writer))
        await asyncio.gather(pump(reader, there_writer, seconds), pump(there_reader, writer, 0.0))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, late: float) -> None:
        loop = asyncio.get_running_loop()
        while chunk := await reader.read(2**16):
            loop.call_later(late, writer.write, chunk)
        writer.close()

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    try:
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers))


@asynccontextmanager
async def without_metrics() -> AsyncIterator[str]:
    """Somebody who has no metrics of ours: whatever is asked is not there."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
