"""Which version the tables of the jobs are, and how those of an earlier one become ours.

A row says it. Tables that were made before there was such a row are version 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import structlog
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, func, insert, inspect, select, text, update
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection

from triptych.errors import StartError

log = structlog.get_logger(__name__)

VERSION = 1
"""Of the tables as `table.py` has them. Who changes them counts it up, and writes into STEPS how they are changed."""

STEPS: Mapping[int, Sequence[str]] = {}
"""SQL by the version that it makes of the one before; each statement for SQLite and PostgreSQL alike."""

JOBS = "triptych_jobs"

_PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE")
_TO_USE = f"GRANT {', '.join(_PRIVILEGES)} ON {JOBS}, triptych_schema TO {{role}}"

MAKE = (
    "the role {role} may not make the tables of the jobs: GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}, "
    f"or let a gateway of a role that may start first, and {_TO_USE}"
)
CHANGE = "the role {role} may not upgrade the tables of the jobs: let a gateway of the role that made them start first"
USE = f"the role {{role}} may not use the tables of the jobs, which another made: {_TO_USE}"
"""What to do where PostgreSQL refuses."""

_INSUFFICIENT_PRIVILEGE = "42501"

_LOCK = 0x7472_6970
"""By which gateways that start together on PostgreSQL wait for each other."""

schema = Table(
    "triptych_schema",
    MetaData(),
    Column("name", String, primary_key=True),
    Column("version", Integer, nullable=False),
)


async def prepare(connection: AsyncConnection, tables: MetaData) -> None:
    """Makes the tables where there are none, and upgrades those of an earlier version, in one transaction.

    Raises:
        StartError: They are of a version that this gateway does not know, or cannot make its own of; or its role may not make,
            change or use them.
    """
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    else:  # else SQLite's driver would begin the transaction after the tables were made
        await connection.exec_driver_sql("BEGIN IMMEDIATE")
    await connection.run_sync(_prepare, tables)


def _prepare(connection: Connection, tables: MetaData) -> None:
    with _permitted(connection, USE):
        found = _find(connection)
    if found is None:
        with _permitted(connection, MAKE):
            tables.create_all(connection)
    elif found != VERSION:
        with _permitted(connection, CHANGE):
            _upgrade(connection, found)
    with _permitted(connection, MAKE):
        schema.create(connection, checkfirst=True)
    with _permitted(connection, USE):
        _write(connection)
        _check_use(connection)


@contextmanager
def _permitted(connection: Connection, sentence: str) -> Iterator[None]:
    """Raises StartError, with this sentence, where PostgreSQL does not let the gateway's role do what the block does."""
    try:
        yield
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != _INSUFFICIENT_PRIVILEGE:
            raise
        raise _not_permitted(connection, sentence) from error


def _not_permitted(connection: Connection, sentence: str) -> StartError:
    place = {"role": connection.engine.url.username, "schema": connection.dialect.default_schema_name}
    return StartError(f"TRIPTYCH_JOBS_DATABASE: {sentence.format(**place)}")


def _check_use(connection: Connection) -> None:
    """Jobs that come are not to be what shows that their table may not be written."""
    if connection.dialect.name == "postgresql":
        may = [func.has_table_privilege(table, each) for table in (JOBS, schema.name) for each in _PRIVILEGES]
        if not all(connection.execute(select(*may)).one()):
            raise _not_permitted(connection, USE)


def _find(connection: Connection) -> int | None:
    """The version that is there; None where nothing is."""
    names = inspect(connection).get_table_names()
    if JOBS not in names:
        return None
    told = connection.execute(select(schema.c.version)).scalar() if schema.name in names else None
    return 1 if told is None else told


def _upgrade(connection: Connection, found: int) -> None:
    where = f"the tables of the jobs are of version {found}, and this gateway's are {VERSION}"
    if found > VERSION:
        raise StartError(f"{where}: start a newer gateway, or set TRIPTYCH_JOBS_DATABASE to another database")
    missing = [version for version in range(found + 1, VERSION + 1) if version not in STEPS]
    if missing:
        raise StartError(
            f"{where}, with no known way from one to the other: let a gateway of the version that made them finish its jobs, "
            f"then drop {JOBS} and {schema.name}, or set TRIPTYCH_JOBS_DATABASE to another database"
        )
    for version in range(found + 1, VERSION + 1):
        for statement in STEPS[version]:
            connection.execute(text(statement))
    log.info("jobs_tables_upgraded", before=found, now=VERSION)


def _write(connection: Connection) -> None:
    if not connection.execute(update(schema).values(version=VERSION)).rowcount:
        connection.execute(insert(schema).values(name=JOBS, version=VERSION))
