"""Which version the tables of the jobs are, and how those of an earlier one become ours.

A row says it. Tables that were made before there was such a row are version 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, insert, inspect, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from triptych.errors import StartError

log = structlog.get_logger(__name__)

VERSION = 1
"""Of the tables as `table.py` has them. Who changes them counts it up, and writes into STEPS how they are changed."""

STEPS: Mapping[int, Sequence[str]] = {}
"""SQL by the version that it makes of the one before; each statement for SQLite and PostgreSQL alike."""

JOBS = "triptych_jobs"

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
        StartError: They are of a version that this gateway does not know, or cannot make its own of.
    """
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    else:  # else SQLite's driver would begin the transaction after the tables were made
        await connection.exec_driver_sql("BEGIN IMMEDIATE")
    await connection.run_sync(_prepare, tables)


def _prepare(connection: Connection, tables: MetaData) -> None:
    found = _find(connection)
    if found is None:
        tables.create_all(connection)
    elif found != VERSION:
        _upgrade(connection, found)
    _write(connection)


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
    schema.create(connection, checkfirst=True)
    if not connection.execute(update(schema).values(version=VERSION)).rowcount:
        connection.execute(insert(schema).values(name=JOBS, version=VERSION))
