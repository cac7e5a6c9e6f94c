"""Jobs at one gateway: fake stages, and a real SQLite file and folder."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from asgi_lifespan import LifespanManager
from fastapi import FastAPI

from tests.fakes import FakeDiffusion
from tests.gateway.running import Stages, client_of, until
from triptych.errors import InvalidValue, QueueFull, StageBrokeOff, StageFailed, StageNotReady, StartError
from triptych.gateway.jobs import service, worker
from triptych.gateway.settings import GatewaySettings

BODY = {"prompt": "a red circle", "seed": 7, "num_steps": 4, "sampler": "euler"}
ENDS = ("completed", "failed", "cancelled")


class Jobs:
    """What a caller sees of a gateway's jobs."""

    def __init__(self, app: FastAPI, client: httpx2.AsyncClient) -> None:
        self.app = app
        self.client = client

    async def submit(self, *, key: str | None = None, **body: Any) -> str:
        headers = {} if key is None else {"Idempotency-Key": key}
        answer = await self.client.post("/jobs", json={**BODY, **body}, headers=headers)
        assert answer.status_code == 202, answer.text
        assert answer.json()["poll_url"] == answer.headers["Location"] == f"/jobs/{answer.json()['id']}"
        return str(answer.json()["id"])

    async def get(self, job: str) -> dict[str, Any]:
        answer = await self.client.get(f"/jobs/{job}")
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    async def ended(self, job: str) -> dict[str, Any]:
        return await self.when(job, *ENDS)

    async def when(self, job: str, *statuses: str) -> dict[str, Any]:
        async with asyncio.timeout(20):
            while True:
                told = await self.get(job)
                if told["status"] in statuses:
                    return told
                await asyncio.sleep(0.01)

    async def at(self, job: str, position: int) -> dict[str, Any]:
        """The job once so many evaluations are kept."""
        async with asyncio.timeout(20):
            while True:
                told = await self.get(job)
                if told["position"] == position:
                    return told
                await asyncio.sleep(0.01)

    async def events(self, job: str, **headers: str) -> list[tuple[str, str, Any]]:
        """(id, name, data) of each, to the end."""
        answer = await self.client.get(f"/jobs/{job}/events", headers=headers)
        assert answer.status_code == 200, answer.text
        blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in answer.text.strip().split("\n\n")]
        return [(block["id"], block["event"], json.loads(block["data"])) for block in blocks]


@pytest.fixture
def stages() -> Stages:
    return Stages()


@asynccontextmanager
async def running(stages: Stages, **settings: Any) -> AsyncIterator[Jobs]:
    app = stages.app(**settings)
    async with LifespanManager(app), client_of(app) as client:
        yield Jobs(app, client)


@pytest.fixture
async def jobs(stages: Stages) -> AsyncIterator[Jobs]:
    async with running(stages) as jobs:
        yield jobs


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(worker, "_pause", lambda failures: 0.01)


async def test_a_job_makes_the_pictures_that_generate_makes(jobs: Jobs) -> None:
    at_once = (await jobs.client.post("/generate", json={**BODY, "num_images": 2})).json()

    told = await jobs.ended(await jobs.submit(num_images=2))

    assert (told["status"], told["error"], told["attempts"], told["queue_position"]) == ("completed", None, 1, None)
    result = told["result"]
    for name in ("model", "parameters", "warnings"):
        assert result[name] == at_once[name]
    assert [image["seed"] for image in result["images"]] == [7, 8]
    for image, same in zip(result["images"], at_once["images"], strict=True):
        answer = await jobs.client.get(image["url"])
        assert answer.headers["Content-Type"] == image["media_type"] == "image/png"
        assert httpx2.Response(200, json={"b64": same["b64_json"]}).json()["b64"] == _base64(answer.content)
    assert result["receipt"]["latents"] == at_once["receipt"]["latents"]


def _base64(content: bytes) -> str:
    import base64

    return base64.b64encode(content).decode("ascii")


async def test_of_a_job_that_has_ended_only_its_pictures_are_kept(jobs: Jobs, tmp_path: Path) -> None:
    job = await jobs.submit()
    told = await jobs.ended(job)
    await until(lambda: len(list((tmp_path / "jobs" / job).iterdir())) == 2)
    picture = (await jobs.client.get(told["result"]["images"][0]["url"])).content
    assert picture in [path.read_bytes() for path in (tmp_path / "jobs" / job).iterdir()]


async def test_what_no_model_takes_is_refused_and_nothing_is_written(jobs: Jobs, tmp_path: Path) -> None:
    for body, status, words in (
        ({"width": 65}, 422, "not a size"),
        ({"model": "other"}, 404, "other"),
        ({"previews": 2}, 422, "a job has none"),
        ({"steps": 0}, 422, "give one of them"),
    ):
        answer = await jobs.client.post("/jobs", json={**BODY, **body})
        assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert (await jobs.client.get("/jobs")).json() == {"jobs": []}
    assert list((tmp_path / "jobs").iterdir()) == []


async def test_jobs_wait_in_line_and_those_in_a_hurry_overtake() -> None:
    turnstile = asyncio.Semaphore(0)
    stages = Stages(diffusion=FakeDiffusion(turnstile=turnstile))
    async with running(stages, jobs_running=1) as jobs:
        first = await jobs.submit()
        await jobs.when(first, "running")
        normal, low, high = [await jobs.submit(request_priority=each, seed=1) for each in (None, "low", "high")]
        places = {each["id"]: each["queue_position"] for each in (await jobs.client.get("/jobs")).json()["jobs"]}
        assert places == {first: None, high: 1, normal: 2, low: 3}
        assert (await jobs.get(low))["queue_position"] == 3
        newest = (await jobs.client.get("/jobs", params={"limit": 2})).json()["jobs"]
        assert [each["id"] for each in newest] == [high, low]
        for _ in range(4 * 4):
            turnstile.release()
        told = [await jobs.ended(each) for each in (first, high, normal, low)]
        assert sorted(each["ended"] for each in told) == [each["ended"] for each in told]


async def test_how_far_a_job_is_can_be_followed_and_gone_on_with() -> None:
    turnstile = asyncio.Semaphore(2)
    stages = Stages(diffusion=FakeDiffusion(turnstile=turnstile))
    async with running(stages) as jobs:
        job = await jobs.submit()
        told = await jobs.at(job, 2)
        assert (told["status"], told["stage"], told["num_evaluations"]) == ("running", "diffusion", 4)
        following = asyncio.create_task(jobs.events(job))
        await asyncio.sleep(0)
        for _ in range(2):
            turnstile.release()
        events = await following

        assert {name for _, name, _ in events[:-1]} <= {"progress"}
        last, name, told = events[-1]
        assert (name, told["status"]) == ("completed", "completed")
        assert told == await jobs.get(job)
        before = str(int(last) - 1)
        assert await jobs.events(job, **{"Last-Event-ID": before}) == events[-1:]
        answer = await jobs.client.get(f"/jobs/{job}/events", headers={"Last-Event-ID": last})
        assert (answer.status_code, answer.content) == (204, b"")
        answer = await jobs.client.get(f"/jobs/{job}/events", headers={"Last-Event-ID": "x"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "Last-Event-ID")


async def test_a_job_that_is_cancelled_is_not_evaluated_further(tmp_path: Path) -> None:
    turnstile = asyncio.Semaphore(2)
    stages = Stages(diffusion=FakeDiffusion(turnstile=turnstile))
    async with running(stages, jobs_running=1) as jobs:
        job, waiting = await jobs.submit(), await jobs.submit(seed=8)
        await until(lambda: stages.diffusion.evaluations == 2)
        for each in (waiting, job):
            assert (await jobs.client.delete(f"/jobs/{each}")).status_code == 204
            assert (await jobs.ended(each))["status"] == "cancelled"
        turnstile.release()
        assert len(stages.diffusion.asked) == 1
        assert stages.diffusion.evaluations == 2
        await until(lambda: not any((tmp_path / "jobs").glob("*/*")))
        (_, name, told), *others = await jobs.events(job)
        assert (name, told["status"], others) == ("error", "cancelled", [])
        answer = await jobs.client.get(f"/jobs/{job}/images/0")
        assert (answer.status_code, answer.json()["error"]["message"]) == (409, "the job has no pictures: it is cancelled")


async def test_a_job_that_has_ended_is_removed_with_its_pictures(jobs: Jobs, tmp_path: Path) -> None:
    job = await jobs.submit()
    told = await jobs.ended(job)
    assert (await jobs.client.get(told["result"]["images"][0]["url"])).status_code == 200
    assert (await jobs.client.get(f"/jobs/{job}/images/1")).status_code == 404

    assert (await jobs.client.delete(f"/jobs/{job}")).status_code == 204

    for path in (f"/jobs/{job}", f"/jobs/{job}/images/0", f"/jobs/{job}/events"):
        answer = await jobs.client.get(path)
        assert (answer.status_code, answer.json()["error"]["message"]) == (404, f"there is no job {job!r}")
    assert (await jobs.client.delete(f"/jobs/{job}")).status_code == 404
    assert not any((tmp_path / "jobs" / job).iterdir())


async def test_the_same_request_is_the_same_job(jobs: Jobs, stages: Stages, tmp_path: Path) -> None:
    first, *others = await asyncio.gather(*(jobs.submit(key="mine") for _ in range(5)))
    assert set(others) == {first}
    await jobs.ended(first)
    assert await jobs.submit(key="mine") == first
    assert await jobs.submit(key="another") != first
    answer = await jobs.client.post("/jobs", json={**BODY, "seed": 8}, headers={"Idempotency-Key": "mine"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
    assert first in answer.json()["error"]["message"]
    assert len((await jobs.client.get("/jobs")).json()["jobs"]) == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
async def test_an_idempotency_key_is_a_short_text(jobs: Jobs, key: str) -> None:
    for path in ("/jobs", "/generate"):
        answer = await jobs.client.post(path, json=BODY, headers={"Idempotency-Key": key})
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "Idempotency-Key")


async def test_nobody_sees_the_jobs_of_another_key(stages: Stages) -> None:
    async with running(stages, api_keys="one,two") as jobs:
        jobs.client.headers["Authorization"] = "Bearer one"
        job = await jobs.submit(key="mine")
        await jobs.ended(job)
        jobs.client.headers["Authorization"] = "Bearer two"
        assert (await jobs.client.get("/jobs")).json() == {"jobs": []}
        for method, path in (("GET", ""), ("GET", "/images/0"), ("GET", "/events"), ("DELETE", "")):
            assert (await jobs.client.request(method, f"/jobs/{job}{path}")).status_code == 404
        assert await jobs.submit(key="mine") != job
        del jobs.client.headers["Authorization"]
        assert (await jobs.client.post("/jobs", json=BODY)).status_code == 401


@pytest.mark.parametrize("name", ["a", "%00", "..", "a%2Fb", "0" * 33, "%F0%9F%98%80"])
async def test_what_is_no_job_is_404(jobs: Jobs, name: str) -> None:
    assert (await jobs.client.get(f"/jobs/{name}/events")).status_code == 404
    assert (await jobs.client.delete(f"/jobs/{name}")).status_code in (404, 405)


async def test_a_full_line_says_when_to_come_back() -> None:
    stages = Stages(diffusion=FakeDiffusion(gate=asyncio.Event()))
    async with running(stages, jobs_running=1, jobs_waiting=1) as jobs:
        await jobs.when(await jobs.submit(), "running")
        await jobs.submit(key="mine")
        answer = await jobs.client.post("/jobs", json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
        assert int(answer.headers["Retry-After"]) >= 1
        await jobs.submit(key="mine")  # it is in line already


@pytest.mark.parametrize(
    "failure",
    [
        StageFailed("nonsense", stage="decoder"),
        StageBrokeOff("it died", stage="decoder"),
        StageNotReady("it starts", stage="decoder"),
        QueueFull("much to do", retry_after_seconds=1),
        RuntimeError("a mistake of ours"),
    ],
)
async def test_whatever_fails_is_tried_again_and_what_was_made_is_not_made_again(stages: Stages, failure: Exception) -> None:
    stages.decoder.failure = failure
    async with running(stages, stage_wait_seconds=0) as jobs:
        job = await jobs.submit()
        await until(lambda: len(stages.decoder.asked) >= 2)
        stages.decoder.failure = None
        told = await jobs.ended(job)
        assert (told["status"], told["result"]["warnings"]) == ("completed", [])
        assert told["attempts"] > 1
        assert (len(stages.text_encoder.asked), stages.diffusion.evaluations) == (1, 4)


async def test_what_the_request_is_at_fault_for_is_not_tried_again(stages: Stages) -> None:
    stages.text_encoder.failure = InvalidValue("the prompt has 90 tokens", param="prompt")
    async with running(stages) as jobs:
        told = await jobs.ended(await jobs.submit())
        assert (told["status"], told["attempts"], told["result"]) == ("failed", 1, None)
        assert told["error"]["message"] == "the prompt has 90 tokens"
        assert told["error"]["param"] == "prompt"


async def test_what_fails_again_and_again_has_failed(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MOST_FAILURES", 3)
    stages.text_encoder.failure = StageFailed("nonsense", stage="text_encoder")
    async with running(stages) as jobs:
        told = await jobs.ended(await jobs.submit())
        assert (told["status"], told["attempts"], told["error"]["message"]) == ("failed", 3, "nonsense")
        assert len(stages.text_encoder.asked) == 3


async def test_a_gateway_that_stops_leaves_its_jobs_to_the_next(stages: Stages) -> None:
    stages.diffusion.turnstile = asyncio.Semaphore(2)
    async with running(stages, jobs_lease_seconds=600) as jobs:
        job = await jobs.submit()
        await jobs.at(job, 2)
    stages.diffusion.turnstile = None
    async with running(stages, jobs_lease_seconds=600) as jobs:
        told = await jobs.ended(job)
        assert (told["status"], told["attempts"]) == ("completed", 2)
        assert (len(stages.text_encoder.asked), stages.diffusion.evaluations) == (1, 4)


async def test_old_jobs_are_forgotten_with_their_pictures(stages: Stages, tmp_path: Path) -> None:
    async with running(stages, jobs_retention_seconds=0.2) as jobs:
        job = await jobs.submit()
        async with asyncio.timeout(20):
            while True:
                if (await jobs.client.get(f"/jobs/{job}")).status_code == 404:
                    break
                await asyncio.sleep(0.02)
        assert not any((tmp_path / "jobs" / job).iterdir())


async def test_before_the_first_job_there_is_no_database(stages: Stages, tmp_path: Path) -> None:
    async with running(stages) as jobs:
        assert (await jobs.client.post("/generate", json=BODY)).status_code == 200
        assert not (tmp_path / "jobs.sqlite3").exists()
        await jobs.submit()
        assert (tmp_path / "jobs.sqlite3").exists()


@pytest.mark.parametrize("setting", ["jobs_database", "jobs_store"])
async def test_where_jobs_cannot_be_kept_is_said(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setattr(service, "OPENING_SECONDS", 0.5)
    (tmp_path / "file").write_text("")
    async with running(stages, **{setting: str(tmp_path / "file" / "jobs")}) as jobs:
        answer = await jobs.client.post("/jobs", json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "jobs_not_ready")
        assert f"TRIPTYCH_{setting.upper()}: " in answer.json()["error"]["message"]


def test_an_address_of_something_else_is_no_database(stages: Stages) -> None:
    with pytest.raises(StartError, match="must be the path of a SQLite file"):
        service.check_settings(GatewaySettings(jobs_database="mysql://host/name"))


async def test_without_the_extra_there_is_one_sentence(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    async with running(stages) as jobs:
        for answer in (await jobs.client.post("/jobs", json=BODY), await jobs.client.get("/jobs")):
            assert answer.status_code == 501
            assert "install triptych[jobs]" in answer.json()["error"]["message"]
        assert (await jobs.client.post("/generate", json=BODY)).status_code == 200
