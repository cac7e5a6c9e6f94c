"""A gateway's jobs: opened when there may be some, or when the first one comes."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from triptych.errors import JobsNotReady, NotSupported, StartError
from triptych.gateway.settings import GatewaySettings

if TYPE_CHECKING:
    from triptych.gateway.jobs.blobs import Blobs
    from triptych.gateway.jobs.table import JobTable
    from triptych.gateway.jobs.worker import Worker
    from triptych.gateway.state import Gateway

log = structlog.get_logger(__name__)

REQUIRED = ("sqlalchemy", "aiosqlite", "asyncpg", "obstore")
"""Modules of the extra `jobs`."""

OPENING_SECONDS = 5.0
"""How long a request waits for a database that is being opened."""

PAUSE_SECONDS = 2.0
OUT_OF_REACH = "the database of the jobs cannot be reached"


@dataclass(frozen=True, kw_only=True)
class OpenJobs:
    """What the routes work with."""

    table: JobTable
    blobs: Blobs
    worker: Worker


class Jobs:
    """The jobs of one gateway. No database is made before somebody asks for jobs: most gateways never have any."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._wanted = asyncio.Event()
        self._open: asyncio.Future[OpenJobs] | None = None
        self._problem = OUT_OF_REACH

    async def opened(self) -> OpenJobs:
        """Raises NotSupported where jobs are not installed, and JobsNotReady where their database cannot be reached."""
        check_installed()
        if self._open is None:
            raise JobsNotReady("this gateway is starting or stopping, and takes no jobs")
        self._wanted.set()
        try:
            async with asyncio.timeout(OPENING_SECONDS):
                return await asyncio.shield(self._open)
        except TimeoutError:
            raise JobsNotReady(self._problem) from None

    @asynccontextmanager
    async def running(self, gateway: Gateway) -> AsyncIterator[None]:
        """Has the gateway work on jobs for the length of the block.

        Raises:
            StartError: The settings name no database, or no store.
        """
        self._open = asyncio.get_running_loop().create_future()
        if may_be_there(self._settings):
            check_settings(self._settings)
            self._wanted.set()
        serving = asyncio.create_task(self._serve(gateway))
        try:
            yield
        finally:
            self._open = None
            serving.cancel()
            await asyncio.wait([serving])

    async def _serve(self, gateway: Gateway) -> None:
        await self._wanted.wait()
        while True:
            try:
                await self._serve_open(gateway)
            except (JobsNotReady, StartError) as error:
                self._problem = error.message
                log.warning("jobs_not_ready", reason=error.message)
            except Exception:
                log.exception("jobs_failed")
            await asyncio.sleep(PAUSE_SECONDS)

    async def _serve_open(self, gateway: Gateway) -> None:
        from triptych.gateway.jobs.blobs import open_blobs
        from triptych.gateway.jobs.table import open_table
        from triptych.gateway.jobs.worker import Worker

        blobs = await asyncio.to_thread(open_blobs, self._settings.jobs_store)
        database = self._settings.jobs_database.get_secret_value()
        async with open_table(database, lease_seconds=self._settings.jobs_lease_seconds) as table:
            worker = Worker(gateway, table, blobs)
            async with worker.working():
                assert self._open is not None
                self._open.set_result(OpenJobs(table=table, blobs=blobs, worker=worker))
                await asyncio.Event().wait()


def check_installed() -> None:
    """Raises NotSupported where the extra `jobs` is not installed."""
    if not is_installed():
        raise NotSupported("this gateway keeps no jobs: install triptych[jobs] beside it, and start it again")


def is_installed() -> bool:
    return all(importlib.util.find_spec(module) is not None for module in REQUIRED)


def may_be_there(settings: GatewaySettings) -> bool:
    """Whether a gateway that starts may have left jobs behind, or is told where other gateways keep theirs."""
    database = settings.jobs_database.get_secret_value()
    return is_installed() and ("://" in database or Path(database).exists())


def check_settings(settings: GatewaySettings) -> None:
    """Raises StartError where the settings name no database."""
    from triptych.gateway.jobs.table import read_database

    read_database(settings.jobs_database.get_secret_value())
