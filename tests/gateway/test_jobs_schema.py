"""Tables of another version: upgraded where a step is known, else one sentence that says what to do, and nothing is changed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from asgi_lifespan import LifespanManager
from sqlalchemy import UniqueConstraint, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests.gateway.running import Stages, client_of
from tests.gateway.test_jobs_table import new
from tests.postgres import USER, Server, postgres, skip_where_it_is_missing
from triptych.errors import StartError
from triptych.gateway.jobs import schema, service
from triptych.gateway.jobs.table import jobs, open_table, read_database

SHAPES = {1: "83f7a9c46184ac38740a5b7405630eb84832c9e66e9e99453ce6347f959d154c"}
"""Of each version that there was, the digest of its table: who changes the table adds a version, and a step that leads there."""


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
async def engine(database: str) -> AsyncIterator[AsyncEngine]:
    """Of the database, with none of our tables in it."""
    engine = create_async_engine(read_database(database))
    async with engine.begin() as connection:
        for name in (schema.JOBS, "triptych_schema"):
            await connection.execute(text(f"DROP TABLE IF EXISTS {name}"))
    yield engine
    await engine.dispose()


async def ask(engine: AsyncEngine, statement: str) -> list[tuple[object, ...]]:
    async with engine.begin() as connection:
        result = await connection.execute(text(statement))
        return [tuple(row) for row in result] if result.returns_rows else []


async def version_of(engine: AsyncEngine) -> list[tuple[object, ...]]:
    return await ask(engine, "SELECT name, version FROM triptych_schema")


def another_version(monkeypatch: pytest.MonkeyPatch, version: int, steps: dict[int, tuple[str, ...]]) -> None:
    monkeypatch.setattr(schema, "VERSION", version)
    monkeypatch.setattr(schema, "STEPS", steps)


async def test_new_tables_say_their_version(engine: AsyncEngine, database: str) -> None:
    for _ in range(2):
        async with open_table(database, lease_seconds=60):
            assert await version_of(engine) == [(schema.JOBS, schema.VERSION)]


async def test_tables_from_before_there_were_versions_are_the_first(engine: AsyncEngine, database: str) -> None:
    async with open_table(database, lease_seconds=60) as table:
        await table.add(new("a"))
    await ask(engine, "DROP TABLE triptych_schema")
    async with open_table(database, lease_seconds=60) as table:
        assert await table.get("a", "") is not None
    assert await version_of(engine) == [(schema.JOBS, 1)]


async def test_a_known_step_upgrades_and_keeps_what_is_there(
    engine: AsyncEngine, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_table(database, lease_seconds=60) as table:
        await table.add(new("a"))
    another_version(
        monkeypatch,
        3,
        {
            2: ("ALTER TABLE triptych_jobs ADD COLUMN note VARCHAR", "UPDATE triptych_jobs SET note = 'old'"),
            3: ("ALTER TABLE triptych_jobs RENAME COLUMN note TO remark",),
        },
    )
    async with open_table(database, lease_seconds=60) as table:
        assert await table.get("a", "") is not None
    assert await ask(engine, "SELECT id, remark FROM triptych_jobs") == [("a", "old")]
    assert await version_of(engine) == [(schema.JOBS, 3)]
    async with open_table(database, lease_seconds=60):
        pass  # each step is made once


async def test_a_step_that_fails_leaves_all_as_it_was(
    engine: AsyncEngine, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_table(database, lease_seconds=60) as table:
        await table.add(new("a"))
    another_version(
        monkeypatch,
        3,
        {2: ("ALTER TABLE triptych_jobs ADD COLUMN note VARCHAR",), 3: ("INSERT INTO triptych_jobs (id) VALUES ('a')",)},
    )
    with pytest.raises(Exception, match=r"(?i)constraint"):
        async with open_table(database, lease_seconds=60):
            pytest.fail("was opened")
    assert await version_of(engine) == [(schema.JOBS, 1)]
    with pytest.raises(Exception, match="note"):
        await ask(engine, "SELECT note FROM triptych_jobs")


async def test_a_newer_version_is_left_alone(engine: AsyncEngine, database: str) -> None:
    async with open_table(database, lease_seconds=60):
        pass
    await ask(engine, "UPDATE triptych_schema SET version = 7")
    with pytest.raises(
        StartError,
        match=r"^the tables of the jobs are of version 7, and this gateway's are 1: start a newer gateway, or set TRIPTYCH_JOBS_",
    ):
        async with open_table(database, lease_seconds=60):
            pytest.fail("was opened")
    assert await version_of(engine) == [(schema.JOBS, 7)]


async def test_an_older_version_without_a_step_is_left_alone(
    engine: AsyncEngine, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_table(database, lease_seconds=60):
        pass
    another_version(monkeypatch, 3, {2: ("DELETE FROM triptych_jobs",)})
    with pytest.raises(
        StartError, match=r"of version 1, and this gateway's are 3, with no known way .* then drop triptych_jobs and"
    ):
        async with open_table(database, lease_seconds=60):
            pytest.fail("was opened")
    assert await version_of(engine) == [(schema.JOBS, 1)]


class Role:
    """One that may connect to a server and do nothing else, and what may be told to its owner of it."""

    def __init__(self, server: Server, owner: AsyncEngine) -> None:
        self.database = server.url.replace(f"{USER}@", "guest@")
        self.owner = owner

    async def refused(self) -> str:
        """The sentence that a gateway of this role gets."""
        with pytest.raises(StartError) as refusal:
            async with open_table(self.database, lease_seconds=60):
                pytest.fail("was opened")
        return refusal.value.message

    async def accepted(self) -> None:
        async with open_table(self.database, lease_seconds=60) as table:
            await table.add(new("of-the-guest"))


@pytest.fixture
async def guest(server: Server) -> AsyncIterator[Role]:
    owner = create_async_engine(read_database(server.url))
    for name in (schema.JOBS, "triptych_schema"):
        await ask(owner, f"DROP TABLE IF EXISTS {name}")
    await ask(owner, "CREATE ROLE guest LOGIN")
    yield Role(server, owner)
    for statement in ("DROP OWNED BY guest", "DROP ROLE guest"):
        await ask(owner, statement)
    await owner.dispose()


def granted(sentence: str) -> list[str]:
    """The statements that a sentence tells to make."""
    return re.findall(r"GRANT [A-Z, ]+ ON .+? TO \w+", sentence)


async def test_a_role_that_may_make_no_tables_is_told_what_to_grant(guest: Role) -> None:
    sentence = await guest.refused()
    assert sentence.startswith(
        "TRIPTYCH_JOBS_DATABASE: the role guest may not make the tables of the jobs: GRANT USAGE, CREATE ON"
    )
    await ask(guest.owner, granted(sentence)[0])
    await guest.accepted()


async def test_a_role_that_may_not_use_the_tables_of_another_is_told_what_to_grant(guest: Role, server: Server) -> None:
    async with open_table(server.url, lease_seconds=60):
        pass
    for allowed in ("ALL ON triptych_schema", "SELECT, INSERT, UPDATE ON triptych_jobs"):
        sentence = await guest.refused()
        assert sentence.startswith(
            "TRIPTYCH_JOBS_DATABASE: the role guest may not use the tables of the jobs, which another made: "
        )
        await ask(guest.owner, f"GRANT {allowed} TO guest")
    (statement,) = granted(await guest.refused())
    await ask(guest.owner, statement)
    await guest.accepted()


async def test_a_role_that_may_not_upgrade_the_tables_is_told_who_may(
    guest: Role, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_table(server.url, lease_seconds=60):
        pass
    await ask(guest.owner, "GRANT ALL ON triptych_jobs, triptych_schema TO guest")
    another_version(monkeypatch, 2, {2: ("ALTER TABLE triptych_jobs ADD COLUMN note VARCHAR",)})
    assert (await guest.refused()).endswith(
        "the role guest may not upgrade the tables of the jobs: let a gateway of the role that made them start first"
    )
    async with open_table(server.url, lease_seconds=60):
        pass
    await guest.accepted()


async def test_a_gateway_says_so_and_makes_pictures_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "OPENING_SECONDS", 0.05)
    database = str(tmp_path / "jobs.sqlite3")
    async with open_table(database, lease_seconds=60):
        pass
    engine = create_async_engine(read_database(database))
    await ask(engine, "UPDATE triptych_schema SET version = 7")
    await engine.dispose()
    app = Stages().app(jobs_database=database, jobs_store=str(tmp_path / "jobs"))
    async with LifespanManager(app), client_of(app) as client:
        async with asyncio.timeout(20):
            while "tables" not in (answer := await client.post("/jobs", json={"prompt": "x"})).text:
                assert answer.status_code == 503
        picture = await client.post("/generate", json={"prompt": "x"})
    assert (answer.status_code, picture.status_code) == (503, 200)
    assert answer.json()["error"]["message"].startswith(
        "the tables of the jobs are of version 7, and this gateway's are 1: start"
    )


def test_a_change_of_the_table_is_a_new_version() -> None:
    columns = [f"{column.name} {column.type} {column.nullable}" for column in jobs.columns]
    unique = [[column.name for column in each.columns] for each in jobs.constraints if isinstance(each, UniqueConstraint)]
    indexes = [[column.name for column in each.columns] for each in jobs.indexes]
    shape = json.dumps([columns, unique, indexes])
    assert hashlib.sha256(shape.encode()).hexdigest() == SHAPES[schema.VERSION]
    assert set(SHAPES) == set(range(1, schema.VERSION + 1)) == {1, *schema.STEPS}
