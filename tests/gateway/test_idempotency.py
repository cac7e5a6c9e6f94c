"""`Idempotency-Key` and `detach` at `POST /generate`: one request, whoever waits for it and however often it is sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest
from asgi_lifespan import LifespanManager

from tests.fakes import FakeDiffusion
from tests.gateway.running import Connection, Stages, client_of, events_of, until
from triptych.contract import StageName
from triptych.errors import StageFailed
from triptych.gateway import shared_runs
from triptych.gateway.app import create_app
from triptych.gateway.registry import Model, Registry
from triptych.gateway.settings import GatewaySettings
from triptych.gateway.shared_runs import Run, SharedRuns
from triptych.gateway.work import Event
from triptych.pipeline import StageProgress

BODY: dict[str, Any] = {"prompt": "a red circle", "num_steps": 4}


def keyed(key: str = "mine", **headers: str) -> dict[str, str]:
    return {"Idempotency-Key": key, **headers}


def pictures(answer: httpx2.Response) -> list[Any]:
    assert answer.status_code == 200, answer.text
    images: list[Any] = answer.json()["images"]
    return images


async def test_a_request_that_is_sent_again_is_answered_and_not_made_again() -> None:
    """The seed is drawn: made again it would be another picture."""
    stages = Stages()
    async with stages.client() as client:
        first = await client.post("/generate", json=BODY, headers=keyed())
        again = await client.post("/generate", json=BODY, headers=keyed())
        assert pictures(first) == pictures(again)
        assert first.json()["id"] == again.json()["id"]
        events = dict(events_of((await client.post("/generate", json=BODY, headers=keyed(Accept="text/event-stream"))).text))
        assert events["completed"]["images"] == pictures(first)
        assert len(stages.diffusion.asked) == 1
        assert pictures(await client.post("/generate", json=BODY, headers=keyed("another"))) != pictures(first)
        assert pictures(await client.post("/generate", json=BODY)) != pictures(first)
        assert len(stages.diffusion.asked) == 3


async def test_requests_that_come_together_are_one() -> None:
    stages = Stages(diffusion=FakeDiffusion(gate=asyncio.Event()))
    async with stages.client() as client:
        asked = [asyncio.create_task(client.post("/generate", json=BODY, headers=keyed())) for _ in range(5)]
        await stages.diffusion.arrivals.get()
        assert stages.diffusion.gate is not None
        stages.diffusion.gate.set()
        first, *others = [pictures(each) for each in await asyncio.gather(*asked)]
        assert others == [first] * 4
        assert len(stages.diffusion.asked) == 1


@pytest.mark.parametrize("accept", ["application/json", "image/webp"])
async def test_something_else_under_the_same_key_is_refused(accept: str) -> None:
    stages = Stages()
    async with stages.client() as client:
        pictures(await client.post("/generate", json=BODY, headers=keyed()))
        other = BODY if accept == "image/webp" else {**BODY, "num_steps": 5}
        answer = await client.post("/generate", json=other, headers=keyed(Accept=accept))
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
        assert answer.json()["error"]["param"] == "Idempotency-Key"
        assert len(stages.diffusion.asked) == 1


async def test_each_callers_keys_are_its_own() -> None:
    stages = Stages()
    async with stages.client(api_keys="one,two") as client:
        answers = [
            await client.post("/generate", json={**BODY, "num_steps": steps}, headers=keyed(Authorization=f"Bearer {key}"))
            for key, steps in (("one", 4), ("two", 5))
        ]
        assert [answer.status_code for answer in answers] == [200, 200]


async def test_what_failed_is_made_again() -> None:
    stages = Stages()
    stages.decoder.failure = StageFailed("nonsense", stage="decoder")
    async with stages.client() as client:
        assert (await client.post("/generate", json=BODY, headers=keyed())).status_code == 502
        stages.decoder.failure = None
        pictures(await client.post("/generate", json=BODY, headers=keyed()))


@pytest.mark.parametrize(("seconds", "most"), [(0.0, 2**20), (60.0, 10)])
async def test_what_was_made_is_kept_for_a_while(monkeypatch: pytest.MonkeyPatch, seconds: float, most: int) -> None:
    monkeypatch.setattr(shared_runs, "KEPT_SECONDS", seconds)
    monkeypatch.setattr(shared_runs, "KEPT_BYTES", most)
    stages = Stages()
    async with stages.client() as client:
        for _ in range(2):
            pictures(await client.post("/generate", json=BODY, headers=keyed()))
        assert len(stages.diffusion.asked) == 2


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_where_all_leave_the_work_ends(accept: str) -> None:
    stages = Stages()
    stages.diffusion.turnstile = asyncio.Semaphore(2)
    app = stages.app()
    connections = [Connection(app, BODY, accept=accept, idempotency_key="mine") for _ in range(2)]
    await until(lambda: stages.diffusion.evaluations == 2)
    await connections[0].close()
    stages.diffusion.turnstile.release()
    await until(lambda: stages.diffusion.evaluations == 3)
    await connections[1].close()
    await stages.diffusion.ended.wait()
    assert stages.diffusion.evaluations == 3
    assert stages.decoder.asked == []


async def test_a_run_that_all_have_left_is_nobodys_any_more() -> None:
    """It takes a while to end: who asks under its name meanwhile is not to end with it."""
    at_work, may_end = asyncio.Event(), asyncio.Event()

    async def slow_to_end() -> AsyncGenerator[Event, None]:
        try:
            at_work.set()
            await asyncio.Event().wait()
            yield StageProgress(stage=StageName.DIFFUSION)
        finally:
            await may_end.wait()

    runs, name = SharedRuns(), ("", "mine")
    left, after = (Run("digest", slow_to_end(), ExitStack(), detached=False) for _ in range(2))
    runs.start(name, left)
    with left.followed():
        await at_work.wait()
        while_at_work = runs.find(name, "digest")
    about_to_end = runs.find(name, "digest")
    runs.start(name, after)
    may_end.set()
    await asyncio.wait([left.task])
    assert (while_at_work, about_to_end, runs.find(name, "digest")) == (left, None, after)
    await runs.close()


@pytest.mark.parametrize("key", ["", "mine"])
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_what_is_detached_goes_on_without_its_caller(accept: str, key: str) -> None:
    stages = Stages()
    stages.diffusion.turnstile = asyncio.Semaphore(2)
    app = stages.app()
    connection = Connection(app, {**BODY, "detach": True}, accept=accept, idempotency_key=key)
    await until(lambda: stages.diffusion.evaluations == 2)
    await connection.close()
    for _ in range(2):
        stages.diffusion.turnstile.release()
    await until(lambda: app.state.gateway.admission.running == 0)
    assert len(stages.decoder.asked) == 1
    if key:
        async with client_of(app) as client:
            pictures(await client.post("/generate", json=BODY, headers=keyed(key)))
        assert len(stages.diffusion.asked) == 1


async def test_a_model_that_is_replaced_before_its_turn_does_not_count_it_any_more() -> None:
    turnstile = asyncio.Semaphore(0)
    stages = Stages(diffusion=FakeDiffusion(turnstile=turnstile))
    before, after = Model("before", stages.pipeline), Model("after", stages.pipeline)
    registry = Registry([before])
    app = create_app(GatewaySettings(max_running_requests=1), registry)
    first, second = [Connection(app, BODY, idempotency_key=key) for key in ("first", "second")]
    await until(lambda: app.state.gateway.admission.waiting and stages.diffusion.asked)
    assert before.jobs == 2
    registry.replace([after])
    before.forget()
    for _ in range(BODY["num_steps"]):
        turnstile.release()
    await until(lambda: len(stages.diffusion.asked) == 2)
    await until(lambda: (before.jobs, after.jobs) == (0, 1))
    for _ in range(BODY["num_steps"]):
        turnstile.release()
    await asyncio.gather(first.task, second.task)
    await until(lambda: (before.jobs, after.jobs) == (0, 0))
    assert (first.status, second.status) == (200, 200)


async def test_it_is_cancelled_by_its_name_for_all() -> None:
    stages = Stages(diffusion=FakeDiffusion(gate=asyncio.Event()))
    app = stages.app()
    connection = Connection(app, {**BODY, "detach": True}, name="named", idempotency_key="mine")
    await stages.diffusion.arrivals.get()
    async with client_of(app) as client:
        assert (await client.delete("/requests/named")).status_code == 204
    await connection.task
    assert (connection.status, json.loads(connection.body)["error"]["code"]) == (499, "request_cancelled")


async def test_a_gateway_that_stops_ends_what_is_detached() -> None:
    stages = Stages(diffusion=FakeDiffusion(gate=asyncio.Event()))
    app = stages.app()
    async with LifespanManager(app):
        connection = Connection(app, {**BODY, "detach": True})
        await stages.diffusion.arrivals.get()
        await connection.close()
    assert stages.diffusion.cancelled == 1
