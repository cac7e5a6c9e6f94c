"""Who works on what: the same statements on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.postgres import Server, postgres, skip_where_it_is_missing
from triptych.errors import Conflict, JobsNotReady, StartError
from triptych.gateway.jobs import table as module
from triptych.gateway.jobs.records import JobRecord, Lease, NewJob, Status
from triptych.gateway.jobs.table import JobTable, open_table, read_database

SHORT = 0.05
"""A lease that has run out before anything else is done."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    skip_where_it_is_missing()
    with postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "jobs.sqlite3")
    url: str = request.getfixturevalue("server").url
    return url


@pytest.fixture
async def table(database: str) -> AsyncIterator[JobTable]:
    async with open_table(database, lease_seconds=60) as table:
        await table._change(module.jobs.delete())  # of the test before
        yield table


def new(id: str, **fields: Any) -> NewJob:  # noqa: A002
    told = {"key": "", "priority": "normal", "request": f"{id}/r", "idempotency_key": None, "body_digest": "d"}
    return NewJob(id=id, **{**told, **fields})


def lease(record: JobRecord | None) -> Lease:
    assert record is not None
    return Lease(record.id, record.attempt)


async def test_each_job_is_taken_once_whoever_asks_at_the_same_time(table: JobTable, database: str) -> None:
    async with open_table(database, lease_seconds=60) as other:
        for number in range(20):
            await table.add(new(str(number)))
        taken = await asyncio.gather(*(each.take() for each in (table, other) * 15))
    ids = [record.id for record in taken if record is not None]
    assert sorted(ids, key=int) == [str(number) for number in range(20)]


async def test_first_come_first_served_but_for_a_head_start(table: JobTable) -> None:
    for name, priority in (("a", "low"), ("b", "normal"), ("c", "normal"), ("d", "high")):
        await table.add(new(name, priority=priority))
    assert await table.positions(["a", "b", "c", "d", "e"]) == {"d": 1, "b": 2, "c": 3, "a": 4}
    assert [lease(await table.take()).id for _ in range(4)] == ["d", "b", "c", "a"]
    assert await table.take() is None
    assert await table.positions(["a"]) == {}


async def test_a_lease_that_ran_out_is_another_gateways(table: JobTable, database: str) -> None:
    await table.add(new("a"))
    async with open_table(database, lease_seconds=SHORT) as dying:
        lost = lease(await dying.take())
    await asyncio.sleep(2 * SHORT)
    taken = lease(await table.take())
    assert (taken.id, taken.attempt) == ("a", 2)

    # Whoever had it before comes back from a standstill, and changes nothing.
    assert await table.renew([lost, taken]) == {taken: False}
    assert not await table.note(lost, position=3)
    assert not await table.end(lost, Status.COMPLETED)
    assert not await table.put_back(lost)
    assert await table.note(taken, position=2, failures=0)
    found = await table.get("a", "")
    assert found is not None
    assert (found.position, found.failures, found.status) == (2, 0, Status.RUNNING)


async def test_a_lease_that_is_renewed_is_not(table: JobTable, database: str) -> None:
    await table.add(new("a"))
    async with open_table(database, lease_seconds=0.5) as working:
        held = lease(await working.take())
        for _ in range(8):
            await asyncio.sleep(0.1)
            assert await working.renew([held]) == {held: False}
            assert await table.take() is None
    assert await table.renew([]) == {}


async def test_every_change_counts_as_a_version(table: JobTable) -> None:
    record, is_new = await table.add(new("a"))
    assert (record.version, is_new) == (1, True)
    held = lease(await table.take())
    await table.note(held, stage="diffusion", kept={"context": "a/b"}, error={"message": "x"})
    await table.end(held, Status.FAILED)
    found = await table.get("a", "")
    assert found is not None
    assert (found.version, found.kept, found.error, found.stage) == (4, {}, {"message": "x"}, "diffusion")
    assert found.started is not None
    assert found.ended is not None
    assert found.created <= found.started <= found.ended


async def test_a_key_is_one_job_and_each_caller_has_keys_of_its_own(table: JobTable) -> None:
    first, _ = await table.add(new("a", idempotency_key="k"))
    assert await table.add(new("b", idempotency_key="k")) == (first, False)
    with pytest.raises(Conflict, match="job a"):
        await table.add(new("c", idempotency_key="k", body_digest="other"))
    assert (await table.add(new("d", idempotency_key="k", key="another")))[1]
    assert (await table.add(new("e")))[1]
    assert (await table.add(new("f")))[1]
    assert await table.add(new("a", idempotency_key="k")) == (first, True)  # written, but the connection broke
    assert [record.id for record in await table.newest("", limit=9)] == ["f", "e", "a"]
    assert await table.get("d", "") is None


async def test_what_is_cancelled_ends_even_where_its_gateway_has_died(table: JobTable, database: str) -> None:
    await table.add(new("waits", priority="low"))
    await table.add(new("runs"))
    async with open_table(database, lease_seconds=SHORT) as dying:
        held = lease(await dying.take())
        for name in ("waits", "runs"):
            await table.cancel(name, "")
        assert await table.cancel("waits", "somebody else") is None
        assert await dying.renew([held]) == {held: True}
    await asyncio.sleep(2 * SHORT)
    await table.end_cancelled()
    assert [(each.id, each.status) for each in await table.newest("", limit=2)] == [("runs", "cancelled"), ("waits", "cancelled")]
    assert await table.take() is None


async def test_what_is_put_back_waits_a_while_and_only_failures_count(table: JobTable) -> None:
    await table.add(new("a"))
    await table.put_back(lease(await table.take()), seconds=60)
    assert await table.take() is None
    await table.add(new("b"))
    for expected, is_failure in ((1, False), (1, True), (2, True), (3, False), (3, True)):
        record = await table.take()
        assert record is not None
        assert record.failures == expected
        await table.put_back(lease(record), is_failure=is_failure)


async def test_only_what_has_ended_is_removed(table: JobTable) -> None:
    await table.add(new("a"))
    await table.remove("a")
    held = lease(await table.take())
    await table.remove("a")
    assert await table.known(["a", "b"]) == {"a"}
    assert await table.usual_seconds() is None
    await table.end(held, Status.COMPLETED)
    assert await table.usual_seconds() is not None
    assert await table.ended_before(60) == []
    assert await table.ended_before(-1) == ["a"]
    await table.remove("a")
    assert await table.known(["a", "b"]) == set()


async def test_gateways_that_start_together_make_the_table_once(server: Server) -> None:
    async with open_table(server.url, lease_seconds=1) as table:
        await table._change(text("DROP TABLE triptych_jobs"))

    async def start() -> None:
        async with open_table(server.url, lease_seconds=1):
            pass

    await asyncio.gather(*(start() for _ in range(8)))


async def test_a_database_that_is_gone_for_a_while_is_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_table(server.url, lease_seconds=60) as table:
        server.stop(mode="immediate")
        try:
            asking = asyncio.create_task(table.add(new("waited-for")))
            await asyncio.sleep(0)  # it has begun, with the patience that it has
            monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
            with pytest.raises(JobsNotReady, match="cannot be reached"):
                await table.queued()
        finally:
            await asyncio.to_thread(server.start)
        assert (await asking)[1]


@pytest.mark.parametrize("database", ["mysql://host/name", "postgresql+psycopg://h/d", "sqlite:///x", "://"])
def test_what_is_no_database_is_one_sentence(database: str) -> None:
    with pytest.raises(StartError, match="must be the path of a SQLite file, or an address such as postgresql://"):
        read_database(database)


def test_a_password_stays_what_it_is() -> None:
    assert read_database("postgresql://me:a%40b@host/name").password == "a@b"
    assert read_database("postgres://me@host/name").drivername == "postgresql+asyncpg"
