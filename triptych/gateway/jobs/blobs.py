"""What is too large for a table: in a folder, or in a bucket of S3's kind."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from triptych.errors import JobsNotReady, StartError


class Blobs:
    """Bytes by their content: each is written once, under the SHA-256 of what it is, in the folder of its job.

    In a job's own folder, and not in one of all jobs: a job can be forgotten without asking who else has the same.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def put(self, job: str, content: bytes) -> str:
        """Writes some bytes and returns their key. That they are there already is as good."""
        key = f"{job}/{hashlib.sha256(content).hexdigest()}"
        try:
            await self._store.put_async(key, content, mode="create")
        except AlreadyExistsError:
            pass
        except (BaseError, OSError) as error:
            raise JobsNotReady(f"the store of the jobs cannot be written: {type(error).__name__}") from error
        return key

    async def get(self, key: str) -> bytes:
        """Raises JobsNotReady where they cannot be read; FileNotFoundError where they are not there."""
        try:
            return bytes(await (await self._store.get_async(key)).bytes_async())
        except FileNotFoundError:
            raise
        except (BaseError, OSError) as error:
            raise JobsNotReady(f"the store of the jobs cannot be read: {type(error).__name__}") from error

    async def delete(self, *keys: str) -> None:
        """That one is not there is as good."""
        for key in keys:
            try:
                await self._store.delete_async(key)
            except FileNotFoundError:
                pass
            except (BaseError, OSError) as error:
                raise JobsNotReady(f"the store of the jobs cannot be written: {type(error).__name__}") from error

    async def of(self, job: str) -> list[str]:
        """The keys of a job's blobs."""
        return [each["path"] async for part in self._store.list(prefix=job) for each in part]

    async def jobs(self) -> AsyncIterator[tuple[str, float]]:
        """The jobs that have blobs, and the seconds since the last of each was written."""
        newest: dict[str, datetime] = {}
        async for part in self._store.list():
            for each in part:
                job = each["path"].partition("/")[0]
                newest[job] = max(newest.get(job, each["last_modified"]), each["last_modified"])
        for job, written in newest.items():
            yield job, (datetime.now(UTC) - written).total_seconds()


def open_blobs(address: str) -> Blobs:
    """The store at an address.

    Args:
        address: The path of a folder, or an address such as `s3://bucket/prefix`, whose credentials are in the environment.

    Raises:
        StartError: There is no such store.
    """
    try:
        if "://" not in address:
            Path(address).mkdir(parents=True, exist_ok=True)
            return Blobs(LocalStore(address))
        return Blobs(from_url(address))
    except (BaseError, OSError, ValueError) as error:
        raise StartError(f"TRIPTYCH_JOBS_STORE: the store cannot be opened: {error}") from None
