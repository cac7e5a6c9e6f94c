"""Two gateways on one PostgreSQL database and one store: a caller may ask either, and its request is one job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
import pytest

from tests.fakes import FakeDiffusion
from tests.gateway.running import Stages
from tests.gateway.test_jobs import BODY, Jobs, running
from tests.postgres import Server, postgres, skip_where_it_is_missing


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    skip_where_it_is_missing()
    with postgres() as server:
        yield server


@pytest.fixture
def gate() -> asyncio.Event:
    """Nothing is denoised before it is set."""
    return asyncio.Event()


@pytest.fixture
def stages(gate: asyncio.Event) -> tuple[Stages, Stages]:
    return Stages(diffusion=FakeDiffusion(gate=gate)), Stages(diffusion=FakeDiffusion(gate=gate))


@pytest.fixture
async def gateways(stages: tuple[Stages, Stages], server: Server, tmp_path: Path) -> AsyncIterator[list[Jobs]]:
    shared = {"jobs_database": server.url, "jobs_store": str(tmp_path / "shared")}
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(running(each, **shared)) for each in stages]


async def submit(gateway: Jobs, key: str, **body: object) -> httpx2.Response:
    return await gateway.client.post("/jobs", json={**BODY, **body}, headers={"Idempotency-Key": key})


async def test_a_key_holds_across_gateways(
    gateways: list[Jobs], stages: tuple[Stages, Stages], gate: asyncio.Event, tmp_path: Path
) -> None:
    answers = await asyncio.gather(*(submit(gateway, "mine") for gateway in gateways * 5))
    assert {answer.status_code for answer in answers} == {202}
    (job,) = {answer.json()["id"] for answer in answers}

    for gateway in gateways:  # under way, and made by either of them
        other = await submit(gateway, "mine", seed=8)
        assert (other.status_code, other.json()["error"]["param"]) == (409, "Idempotency-Key")
    gate.set()
    told = [await gateway.ended(job) for gateway in gateways]

    assert told[0]["status"] == "completed"
    assert told[0] == told[1]
    assert [(await submit(gateway, "mine")).json()["id"] for gateway in gateways] == [job, job]
    pictures = [(await gateway.client.get(told[0]["result"]["images"][0]["url"])).content for gateway in gateways]
    assert pictures[0] == pictures[1]
    assert sum(len(each.diffusion.asked) for each in stages) == 1
    assert {path.parent.name for path in (tmp_path / "shared").rglob("*") if path.is_file()} == {job}


async def test_the_key_of_a_job_that_was_removed_is_free_at_both(gateways: list[Jobs], gate: asyncio.Event) -> None:
    gate.set()
    first = (await submit(gateways[0], "again")).json()["id"]
    await gateways[1].ended(first)
    assert (await gateways[1].client.delete(f"/jobs/{first}")).status_code == 204
    second = await submit(gateways[0], "again", seed=8)
    assert (second.status_code, second.json()["id"] == first) == (202, False)


async def test_a_key_of_generate_is_one_gateways_own(
    gateways: list[Jobs], stages: tuple[Stages, Stages], gate: asyncio.Event
) -> None:
    """What docs/jobs.md says of it: who asks another gateway has the picture made there, and no other body is refused."""
    gate.set()
    headers = {"Idempotency-Key": "here"}
    for gateway, seed in zip(gateways, (7, 8), strict=True):
        answer = await gateway.client.post("/generate", json={**BODY, "seed": seed}, headers=headers)
        assert answer.status_code == 200
    assert [len(each.diffusion.asked) for each in stages] == [1, 1]
    refused = await gateways[0].client.post("/generate", json={**BODY, "seed": 8}, headers=headers)
    assert refused.status_code == 409
