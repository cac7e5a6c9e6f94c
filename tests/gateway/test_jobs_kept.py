"""What a job keeps of its stages' results: as bytes, and in a row."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triptych.contract import Denoised, DenoiseState, Encoded, EncodedImages
from triptych.errors import InvalidValue, MalformedRequest
from triptych.gateway.jobs.blobs import Blobs, open_blobs
from triptych.gateway.jobs.kept import JobKeep, LeaseLost, from_bytes, to_bytes
from triptych.gateway.jobs.records import JobRecord, Lease, NewJob
from triptych.gateway.jobs.table import JobTable, open_table


def noise(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def state(position: int, arrays: int = 1) -> DenoiseState:
    positions = np.full(2, position, np.int32)
    return DenoiseState(latents=noise(2, 8, 8, 4), sampler_state=noise(2, arrays, 8, 8, 4), position=positions, state_key="k")


@pytest.mark.parametrize(
    "made",
    [
        Encoded(context=noise(2, 77, 768), warnings=("the prompt was cut", "twice")),
        Encoded(context=noise(1, 77, 768)),
        EncodedImages(latents=noise(2, 8, 8, 4)),
        state(3),
        state(0, arrays=0),
        Denoised(latents=noise(2, 8, 8, 4), warnings=("by other numerics",)),
    ],
    ids=lambda made: type(made).__name__,
)
def test_what_is_kept_is_what_was_made(made: Any) -> None:
    read = from_bytes(type(made), to_bytes(made))
    assert type(read) is type(made)
    for name, value in vars(made).items():
        if isinstance(value, np.ndarray):
            assert (getattr(read, name).dtype, getattr(read, name).tobytes()) == (value.dtype, value.tobytes())
        else:
            assert getattr(read, name) == value


def test_other_bytes_are_none() -> None:
    content = to_bytes(state(1))
    others: list[tuple[Any, bytes]] = [(Denoised, content), (DenoiseState, content[:-1]), (DenoiseState, b"x"), (Encoded, b"")]
    for kind, other in others:
        with pytest.raises((MalformedRequest, InvalidValue, ValueError)):
            from_bytes(kind, other)


class Row:
    """A job that was taken, and its folder."""

    def __init__(self, table: JobTable, folder: Path, lease: Lease) -> None:
        self.table, self.folder, self.lease = table, folder, lease
        self.blobs: Blobs = open_blobs(str(folder))

    async def read(self) -> JobRecord:
        record = await self.table.get("a", "")
        assert record is not None
        return record

    async def keep(self, stages: str = "these") -> JobKeep:
        record = await self.read()
        keep = JobKeep(self.table, self.blobs, self.lease, made_by=record.made_by, kept=record.kept)
        return keep.made_by(stages)

    def files(self) -> set[str]:
        return {f"a/{path.name}" for path in (self.folder / "a").iterdir()}


@pytest.fixture
async def row(tmp_path: Path) -> AsyncIterator[Row]:
    async with open_table(str(tmp_path / "jobs.sqlite3"), lease_seconds=60) as table:
        await table.add(NewJob(id="a", key="", priority="normal", request="", idempotency_key=None, body_digest=""))
        await table.take()
        yield Row(table, tmp_path / "jobs", Lease("a", 1))


async def test_of_each_kind_the_newest_is_kept_and_nothing_else(row: Row) -> None:
    keep = await row.keep()
    await keep.keep(Encoded(context=noise(1, 77, 768)))
    for position in range(1, 4):
        await keep.keep(state(position))
        await keep.finish()
        assert (await row.read()).position == position
    record = await row.read()
    assert set(record.kept) == {"context", "state"}
    assert row.files() == set(record.kept.values())
    again = await row.keep()
    newest = await again.recall(DenoiseState)
    assert newest is not None
    assert newest.position.tolist() == [3, 3]
    assert await again.recall(Denoised) is None

    await again.keep(Denoised(latents=noise(2, 8, 8, 4)))
    record = await row.read()
    assert set(record.kept) == {"context", "latents"}
    assert row.files() == set(record.kept.values())


async def test_a_stage_does_not_wait_for_the_store_and_the_newest_state_is_written(row: Row) -> None:
    written: list[int] = []
    may_write = asyncio.Event()
    put = row.blobs.put

    async def slow_put(job: str, content: bytes) -> str:
        written.append(int(from_bytes(DenoiseState, content).position[0]))
        await may_write.wait()
        return await put(job, content)

    row.blobs.put = slow_put  # type: ignore[method-assign]
    keep = await row.keep()
    for position in range(1, 6):
        await keep.keep(state(position))
        await asyncio.sleep(0)
    may_write.set()
    await keep.finish()
    assert written == [1, 5]
    assert (await row.read()).position == 5


async def test_what_other_stages_made_is_not_used(row: Row) -> None:
    keep = await row.keep()
    await keep.keep(Encoded(context=noise(1, 77, 768)))
    assert await (await row.keep("others")).recall(Encoded) is None
    assert await (await row.keep()).recall(Encoded) is not None


async def test_what_is_gone_or_damaged_is_made_again(row: Row) -> None:
    keep = await row.keep()
    await keep.keep(Encoded(context=noise(1, 77, 768)))
    (path,) = (row.folder / "a").iterdir()
    path.write_bytes(path.read_bytes()[:-4])
    assert await keep.recall(Encoded) is None
    path.unlink()
    assert await keep.recall(Encoded) is None


async def test_who_lost_the_job_keeps_nothing(row: Row) -> None:
    keep = JobKeep(row.table, row.blobs, Lease("a", 0), made_by="", kept={})
    with pytest.raises(LeaseLost):
        await keep.keep(Encoded(context=noise(1, 77, 768)))
    await keep.keep(state(1))
    with pytest.raises(LeaseLost):
        await keep.finish()
    assert (await row.read()).kept == {}
