"""Jobs whose requests, states and pictures lie in a bucket: by the settings, over a real socket, at a server that speaks S3."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import FakeDiffusion
from tests.gateway.running import Stages, until
from tests.gateway.test_jobs import BODY, running
from tests.s3 import BUCKET, PAGE, Bucket, s3
from triptych.errors import JobsNotReady
from triptych.gateway.jobs import worker
from triptych.gateway.jobs.blobs import Blobs, open_blobs

STORE = f"s3://{BUCKET}/triptych/jobs"
PREFIX = "triptych/jobs"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with s3() as (bucket, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield bucket


@pytest.fixture
def blobs(bucket: Bucket) -> Blobs:
    return open_blobs(STORE)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LOOK_SECONDS", 0.05)


async def test_a_blob_is_written_once_and_read(blobs: Blobs, bucket: Bucket) -> None:
    key = await blobs.put("a" * 32, b"some bytes")
    (_, written) = bucket.objects[f"{PREFIX}/{key}"]
    assert await blobs.put("a" * 32, b"some bytes") == key
    assert bucket.objects == {f"{PREFIX}/{key}": (b"some bytes", written)}
    assert [method for method, _ in bucket.asked] == ["PUT", "PUT"]
    assert await blobs.get(key) == b"some bytes"


async def test_one_that_is_not_there_is_no_failure_of_the_store(blobs: Blobs) -> None:
    with pytest.raises(FileNotFoundError):
        await blobs.get("a/b")
    await blobs.delete("a/b")


async def test_all_of_a_job_are_listed_and_none_of_others(blobs: Blobs, bucket: Bucket) -> None:
    mine = {await blobs.put("a", bytes([number])) for number in range(2 * PAGE + 1)}
    other = await blobs.put("ab", b"x")
    bucket.objects["elsewhere/a/b"] = bucket.objects[f"{PREFIX}/{other}"]
    assert set(await blobs.of("a")) == mine
    assert [job async for job, age in blobs.jobs() if -5 < age < 60] == ["a", "ab"]
    await blobs.delete(*mine)
    assert bucket.objects.keys() == {f"{PREFIX}/{other}", "elsewhere/a/b"}


async def test_a_store_that_refuses_is_one_sentence(blobs: Blobs, bucket: Bucket) -> None:
    bucket.refuses = 403
    with pytest.raises(JobsNotReady, match="the store of the jobs cannot be read"):
        await blobs.get("a/b")
    with pytest.raises(JobsNotReady, match="the store of the jobs cannot be written"):
        await blobs.put("a", b"x")


async def test_a_job_is_made_and_its_pictures_are_fetched_and_forgotten(bucket: Bucket, tmp_path: Path) -> None:
    async with running(Stages(), jobs_store=STORE, jobs_retention_seconds=0.4) as jobs:
        job = await jobs.submit(num_images=2)
        told = await jobs.ended(job)
        assert told["status"] == "completed", told["error"]
        pictures = [(await jobs.client.get(image["url"])).content for image in told["result"]["images"]]
        at_once = (await jobs.client.post("/generate", json={**BODY, "num_images": 2})).json()
        assert [base64.b64encode(picture).decode() for picture in pictures] == [image["b64_json"] for image in at_once["images"]]
        await until(lambda: not bucket.objects)  # by retention
    assert not (tmp_path / "jobs").exists()


async def test_what_was_made_before_a_gateway_stopped_is_in_the_bucket_for_the_next(bucket: Bucket) -> None:
    gate = asyncio.Event()
    stages = Stages(diffusion=FakeDiffusion(gate=gate))
    async with running(stages, jobs_store=STORE) as jobs:
        job = await jobs.submit()
        await stages.diffusion.arrivals.get()
        assert len([key for key in bucket.objects if key.startswith(f"{PREFIX}/{job}/")]) == 2  # the request, and its contexts
    gate.set()
    async with running(stages, jobs_store=STORE) as jobs:
        assert (await jobs.ended(job))["status"] == "completed"
        assert len(stages.text_encoder.asked) == 1
        assert (await jobs.client.delete(f"/jobs/{job}")).status_code == 204
    assert bucket.objects == {}


async def test_the_same_key_is_the_same_job_and_leaves_nothing(bucket: Bucket) -> None:
    async with running(Stages(), jobs_store=STORE) as jobs:
        first, *others = await asyncio.gather(*(jobs.submit(key="mine") for _ in range(3)))
        assert set(others) == {first}
        await jobs.ended(first)
        await until(lambda: {key.split("/")[2] for key in bucket.objects} == {first})
