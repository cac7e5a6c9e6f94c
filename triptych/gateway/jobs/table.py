"""The table of jobs, in SQLite or PostgreSQL: every promise about who works on what is one statement here.

A gateway takes a job by one UPDATE, and holds it by a lease that it renews. Where it dies the lease runs out, and the same UPDATE
of another gateway takes the job over. `attempt` counts the takings: who comes back from a standstill changes nothing any more.
All times are the database's, so that the clocks of gateways need not agree.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    ColumnElement,
    Double,
    Index,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    UniqueConstraint,
    and_,
    case,
    delete,
    event,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from triptych.contract import StageName
from triptych.errors import Conflict, JobsNotReady, StartError
from triptych.gateway.jobs.records import ENDS, JobRecord, Lease, NewJob, Status
from triptych.gateway.jobs.schema import JOBS, prepare

T = TypeVar("T")

log = structlog.get_logger(__name__)

HEAD_STARTS_SECONDS: Mapping[str, float] = {"high": 600.0, "normal": 0.0, "low": -600.0}
"""A job is served as if it had come so much earlier: who is in a hurry overtakes, and nobody waits for ever."""

PATIENCE_SECONDS = 20.0
"""How long a database that cannot be reached is tried again."""

LONGEST_PAUSE_SECONDS = 1.0


class now(ColumnElement[float]):
    """The database's clock: seconds since 1970."""

    type = Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _sqlite_now(element: now, compiler: SQLCompiler, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _postgresql_now(element: now, compiler: SQLCompiler, **options: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


metadata = MetaData()

jobs = Table(
    JOBS,
    metadata,
    Column("id", String, primary_key=True),
    Column("key", String, nullable=False),
    Column("priority", String, nullable=False),
    Column("request", String, nullable=False),
    Column("idempotency_key", String),
    Column("body_digest", String, nullable=False),
    Column("status", String, nullable=False, default=Status.QUEUED),
    Column("version", Integer, nullable=False, default=1),
    Column("attempt", Integer, nullable=False, default=0),
    Column("failures", Integer, nullable=False, default=0),
    Column("cancelling", Boolean, nullable=False, default=False),
    Column("stage", String),
    Column("position", Integer),
    Column("num_evaluations", Integer),
    Column("made_by", String, nullable=False, default=""),
    Column("kept", JSON, nullable=False, default={}),
    Column("result", String),
    Column("error", JSON(none_as_null=True)),
    Column("created", Double, nullable=False),
    Column("started", Double),
    Column("ended", Double),
    # Who comes first, when it may be taken, and how long whoever took it holds it.
    Column("rank", Double, nullable=False),
    Column("not_before", Double, nullable=False),
    Column("leased_until", Double),
    UniqueConstraint("key", "idempotency_key"),
    Index("triptych_jobs_by_rank", "status", "rank"),
)

_RECORD = tuple(jobs.c[name] for name in JobRecord.__annotations__)


class JobTable:
    """The rows of all jobs.

    Args:
        engine: Of the database.
        lease_seconds: How long a gateway holds a job that it does not say again that it works on.
    """

    def __init__(self, engine: AsyncEngine, *, lease_seconds: float) -> None:
        self.lease_seconds = lease_seconds
        self._engine = engine

    # Orders

    async def add(self, new: NewJob) -> tuple[JobRecord, bool]:
        """The job, and whether it is new: one that came before with the same `Idempotency-Key` is not made again.

        Raises:
            Conflict: Something else was asked for with that key.
        """
        row = {**vars(new), "created": now(), "not_before": now(), "rank": now() - HEAD_STARTS_SECONDS[new.priority]}
        try:
            return await self._one(insert(jobs).values(row).returning(*_RECORD)), True
        except IntegrityError:
            if (mine := await self.get(new.id, new.key)) is not None:  # the connection broke after it was written
                return mine, True
            assert new.idempotency_key is not None
            found = await self.find_repeated(new.key, new.idempotency_key, new.body_digest)
            return (found, False) if found is not None else await self.add(new)  # it was removed in between

    async def find_repeated(self, key: str, idempotency_key: str, body_digest: str) -> JobRecord | None:
        """The job that came with this `Idempotency-Key` before.

        Raises:
            Conflict: Something else was asked for then.
        """
        found = await self._find(jobs.c.key == key, jobs.c.idempotency_key == idempotency_key)
        if found is not None and found.body_digest != body_digest:
            raise Conflict(f"another request came with this Idempotency-Key: job {found.id}", param="Idempotency-Key")
        return found

    async def get(self, id: str, key: str) -> JobRecord | None:  # noqa: A002
        return await self._find(jobs.c.id == id, jobs.c.key == key)

    async def newest(self, key: str, *, limit: int) -> list[JobRecord]:
        """The last jobs that came, the newest first."""
        query = select(*_RECORD).where(jobs.c.key == key).order_by(jobs.c.created.desc(), jobs.c.id).limit(limit)
        return [_record(row) for row in await self._all(query)]

    async def queued(self) -> int:
        """How many jobs wait, of all callers."""
        return int((await self._all(select(func.count()).where(jobs.c.status == Status.QUEUED)))[0][0])

    async def positions(self, ids: Sequence[str]) -> dict[str, int]:
        """Which place in line each of these jobs has that waits; 1 is the next."""
        place = func.row_number().over(order_by=(jobs.c.rank, jobs.c.id)).label("place")
        line = select(jobs.c.id, place).where(jobs.c.status == Status.QUEUED).subquery()
        return {row.id: row.place for row in await self._all(select(line).where(line.c.id.in_(ids)))}

    async def cancel(self, id: str, key: str) -> JobRecord | None:  # noqa: A002
        """Ends a job that waits; has whoever is at work on it end it. Returns it as it is then, or None where there is none."""
        waits = jobs.c.status == Status.QUEUED
        # One statement: between two of them a job that is at work may be put back.
        cancelling = (
            update(jobs)
            .where(jobs.c.id == id, jobs.c.key == key, jobs.c.status.not_in(ENDS))
            .values(
                status=case((waits, Status.CANCELLED), else_=jobs.c.status),
                ended=case((waits, now()), else_=None),
                cancelling=~waits,
                **_CHANGED,
            )
        )
        await self._change(cancelling)
        return await self.get(id, key)

    async def remove(self, id: str) -> None:  # noqa: A002
        """Removes a job that has ended; its blobs are removed before."""
        await self._change(delete(jobs).where(jobs.c.id == id, jobs.c.status.in_(ENDS)))

    # Work

    async def take(self) -> JobRecord | None:
        """The next job that waits or whose gateway is gone, taken; None where there is none."""
        waits = and_(jobs.c.status == Status.QUEUED, jobs.c.not_before <= now())
        left_behind = and_(jobs.c.status == Status.RUNNING, jobs.c.leased_until < now())
        first = (
            select(jobs.c.id)
            .where(or_(waits, left_behind))
            .order_by(jobs.c.rank, jobs.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)  # PostgreSQL's; in SQLite one writes at a time
            .correlate(None)
            .scalar_subquery()
        )
        taking = (
            update(jobs)
            .where(jobs.c.id == first)
            .values(
                status=Status.RUNNING,
                attempt=jobs.c.attempt + 1,
                # Counted now, as nobody will where this gateway dies of it; what it keeps sets it back.
                failures=jobs.c.failures + 1,
                leased_until=now() + self.lease_seconds,
                started=func.coalesce(jobs.c.started, now()),
                **_CHANGED,
            )
            .returning(*_RECORD)
        )
        rows = await self._all(taking)
        return _record(rows[0]) if rows else None

    async def renew(self, leases: Sequence[Lease]) -> dict[Lease, bool]:
        """Holds jobs for longer. Those that are not returned were lost to another; those with True are to be cancelled."""
        if not leases:
            return {}
        held = or_(*(_held(lease) for lease in leases))
        columns = (jobs.c.id, jobs.c.attempt, jobs.c.cancelling)
        renewing = update(jobs).where(held).values(leased_until=now() + self.lease_seconds).returning(*columns)
        return {Lease(row.id, row.attempt): row.cancelling for row in await self._all(renewing)}

    async def note(self, lease: Lease, **values: Any) -> bool:
        """Writes down how far a job is; False where it was lost to another."""
        return await self._change(update(jobs).where(_held(lease)).values(**values, **_CHANGED))

    async def end(self, lease: Lease, status: Status, **values: Any) -> bool:
        """Ends a job; False where it was lost to another."""
        return await self.note(lease, status=status, ended=now(), cancelling=False, kept={}, **values)

    async def put_back(self, lease: Lease, *, seconds: float = 0.0, is_failure: bool = False) -> bool:
        """Lets another gateway, or this one later, go on with a job."""
        not_counted = case((jobs.c.failures > 0, jobs.c.failures - 1), else_=0)
        failures = jobs.c.failures if is_failure else not_counted
        return await self.note(lease, status=Status.QUEUED, not_before=now() + seconds, failures=failures)

    async def end_cancelled(self) -> None:
        """Ends what was to be cancelled while its gateway died."""
        left_behind = and_(jobs.c.status == Status.RUNNING, jobs.c.cancelling, jobs.c.leased_until < now())
        await self._change(update(jobs).where(left_behind).values(status=Status.CANCELLED, ended=now(), **_CHANGED))

    # Retention

    async def ended_before(self, seconds: float, *, limit: int = 100) -> list[str]:
        """The ids of jobs that ended so long ago."""
        query = select(jobs.c.id).where(jobs.c.ended < now() - seconds).limit(limit)
        return [row.id for row in await self._all(query)]

    async def known(self, ids: Sequence[str]) -> set[str]:
        """Which of these ids are jobs."""
        return {row.id for row in await self._all(select(jobs.c.id).where(jobs.c.id.in_(ids)))}

    async def usual_seconds(self) -> float | None:
        """The mean duration of the last jobs that were completed; None where there are none."""
        last = select((jobs.c.ended - jobs.c.started).label("seconds")).where(jobs.c.status == Status.COMPLETED)
        last_few = last.order_by(jobs.c.ended.desc()).limit(32).subquery()
        seconds = (await self._all(select(func.avg(last_few.c.seconds))))[0][0]
        return None if seconds is None else float(seconds)

    # Statements

    async def _find(self, *conditions: ColumnElement[bool]) -> JobRecord | None:
        rows = await self._all(select(*_RECORD).where(*conditions))
        return _record(rows[0]) if rows else None

    async def _one(self, statement: Any) -> JobRecord:
        (row,) = await self._all(statement)
        return _record(row)

    async def _all(self, statement: Any) -> Sequence[Row[Any]]:
        async def ask(connection: AsyncConnection) -> Sequence[Row[Any]]:
            return (await connection.execute(statement)).all()

        return await self._patiently(ask)

    async def _change(self, statement: Any) -> bool:
        """Whether there was a row to change."""

        async def change(connection: AsyncConnection) -> bool:
            return bool((await connection.execute(statement)).rowcount)

        return await self._patiently(change)

    async def _patiently(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Each statement is a transaction of its own, and may be made twice where the connection breaks between the two ends.

        Raises:
            JobsNotReady: The database cannot be reached, and was tried for `PATIENCE_SECONDS`.
        """
        loop, pause = asyncio.get_running_loop(), 0.05
        deadline = loop.time() + PATIENCE_SECONDS
        while True:
            try:
                async with self._engine.begin() as connection:
                    return await work(connection)
            except (IntegrityError, ProgrammingError, DataError):
                raise  # no better the next time
            except (DBAPIError, OSError) as error:
                if loop.time() > deadline:
                    raise JobsNotReady("the database of the jobs cannot be reached") from error
                log.warning("jobs_database_missed", error=type(error).__name__)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


_CHANGED: Mapping[str, Any] = {"version": jobs.c.version + 1}


def _held(lease: Lease) -> ColumnElement[bool]:
    return and_(jobs.c.id == lease.id, jobs.c.attempt == lease.attempt, jobs.c.status == Status.RUNNING)


def _record(row: Row[Any]) -> JobRecord:
    fields = row._asdict()
    stage = None if row.stage is None else StageName(row.stage)
    return JobRecord(**{**fields, "status": Status(row.status), "stage": stage})


@asynccontextmanager
async def open_table(database: str, *, lease_seconds: float) -> AsyncIterator[JobTable]:
    """The table of a database, made where there is none and upgraded where it is of an earlier version.

    Args:
        database: The path of a SQLite file, or the address of a PostgreSQL database.
        lease_seconds: As for `JobTable`.

    Raises:
        StartError: It is neither; its driver is not installed; its tables are of a version that this gateway cannot use,
            or its role may not make or use them.
        JobsNotReady: It cannot be reached.
    """
    url = read_database(database)
    if url.get_backend_name() == "sqlite":
        assert url.database is not None
        await asyncio.to_thread(_make_folder, Path(url.database).parent)
    engine = create_async_engine(url, pool_pre_ping=True, pool_recycle=300)
    if url.get_backend_name() == "sqlite":
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    try:
        table = JobTable(engine, lease_seconds=lease_seconds)
        await table._patiently(partial(prepare, tables=metadata))
        yield table
    finally:
        await engine.dispose()


def read_database(database: str) -> URL:
    """Raises StartError where this is no database that jobs can be kept in."""
    if "://" not in database:
        return URL.create("sqlite+aiosqlite", database=database)
    try:
        url = make_url(database)
    except ArgumentError:
        url = None
    if url is None or url.drivername not in ("postgresql", "postgres"):
        raise StartError(
            "TRIPTYCH_JOBS_DATABASE must be the path of a SQLite file, or an address such as postgresql://user:password@host/name"
        )
    return url.set(drivername="postgresql+asyncpg")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"TRIPTYCH_JOBS_DATABASE: {folder} cannot be made: {error.strerror}") from None


def _prepare_sqlite(connection: Any, record: object) -> None:
    """Readers and the one writer do not wait for each other; two writers do, and for longer than by default."""
    cursor = connection.cursor()
    for setting in ("journal_mode=WAL", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()
