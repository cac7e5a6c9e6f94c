from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing

import pytest

from tests.fakes import FakeDiffusion
from tests.gateway.running import Connection, Stages, client_of, events_of, until
from triptych.errors import RequestCancelled, StageFailed
from triptych.gateway.running import RunningRequests


class Source:
    """Tells its numbers, and then waits for ever, unless it fails."""

    def __init__(self, *numbers: int, failure: Exception | None = None) -> None:
        self.numbers = numbers
        self.failure = failure
        self.closed = asyncio.Event()

    async def work(self, tell: Callable[[int], None]) -> None:
        try:
            for number in self.numbers:
                tell(number)
            if self.failure is not None:
                raise self.failure
            await asyncio.Event().wait()
        finally:
            self.closed.set()


async def test_events_and_the_error_at_their_end_come_through() -> None:
    running, source = RunningRequests(), Source(1, 2, failure=StageFailed("broke off", stage="decoder"))
    events = running.follow("a", source.work)
    assert [await anext(events), await anext(events)] == [1, 2]
    with pytest.raises(StageFailed, match="broke off"):
        await anext(events)
    assert not await running.cancel("a")


async def test_the_source_ends_though_its_reader_is_busy_with_something_else() -> None:
    """A caller that reads slowly is not in its source when it is cancelled."""
    running, source = RunningRequests(), Source(1)
    async with aclosing(running.follow("a", source.work)) as events:
        assert await anext(events) == 1
        assert await running.cancel("a")
        assert source.closed.is_set()
        with pytest.raises(RequestCancelled, match="was cancelled"):
            await anext(events)


async def test_closing_the_iterator_ends_the_source() -> None:
    running, source = RunningRequests(), Source(1)
    events = running.follow("a", source.work)
    await anext(events)
    await events.aclose()
    assert source.closed.is_set()
    assert not await running.cancel("a")


async def test_all_of_one_name_are_ended_and_no_others() -> None:
    running, sources = RunningRequests(), [Source(1), Source(1), Source(1)]
    followed = [running.follow(name, source.work) for name, source in zip("aab", sources, strict=True)]
    for events in followed:
        await anext(events)

    assert await running.cancel("a")

    assert [source.closed.is_set() for source in sources] == [True, True, False]
    for events in followed:
        await events.aclose()


@pytest.mark.parametrize("accept", ["application/json", "image/png", "text/event-stream"])
async def test_a_request_that_is_cancelled_is_not_evaluated_further(accept: str) -> None:
    stages = Stages()
    stages.diffusion.turnstile = asyncio.Semaphore(2)
    app = stages.app()
    connection = Connection(app, {"prompt": "x", "num_steps": 50}, accept=accept, name="mine")
    await until(lambda: stages.diffusion.evaluations == 2)

    async with client_of(app) as client:
        answer = await client.delete("/requests/mine")
        for _ in range(50):
            stages.diffusion.turnstile.release()
        await connection.task

        assert (answer.status_code, answer.content) == (204, b"")
        assert stages.diffusion.evaluations == 2
        assert stages.decoder.asked == []
        error = dict(events_of(connection.body.decode()))["error"] if "event" in accept else json.loads(connection.body)
        assert error["error"]["code"] == "request_cancelled"
        assert "was cancelled by DELETE" in error["error"]["message"]
        assert connection.status == (200 if "event" in accept else 499)
        assert (await client.delete("/requests/mine")).status_code == 404


@pytest.mark.parametrize("accept", ["application/json", "image/png", "text/event-stream"])
async def test_a_request_whose_caller_left_is_not_evaluated_further(accept: str) -> None:
    stages = Stages()
    stages.diffusion.turnstile = asyncio.Semaphore(2)
    connection = Connection(stages.app(), {"prompt": "x", "num_steps": 50}, accept=accept)
    await until(lambda: stages.diffusion.evaluations == 2)

    await connection.close()
    for _ in range(50):
        stages.diffusion.turnstile.release()
    await stages.diffusion.ended.wait()

    assert stages.diffusion.evaluations == 2
    assert stages.decoder.asked == []


async def test_a_request_in_line_is_cancelled_too() -> None:
    stages = Stages(diffusion=FakeDiffusion(gate=asyncio.Event()))
    app = stages.app(max_running_requests=1)
    running = Connection(app, {"prompt": "x"}, name="first")
    await until(lambda: stages.diffusion.asked)
    waiting = Connection(app, {"prompt": "x"}, name="second")
    await until(lambda: app.state.gateway.admission.waiting == 1)

    async with client_of(app) as client:
        assert (await client.delete("/requests/second")).status_code == 204
    await waiting.task

    assert waiting.status == 499
    assert app.state.gateway.admission.waiting == 0
    assert not running.sent
    await running.close()


async def test_a_name_that_nobody_has_is_404_with_a_sentence() -> None:
    async with Stages().client() as client:
        done = await client.post("/generate", json={"prompt": "x"})
        for name in (done.headers["X-Triptych-Id"], "never"):
            answer = await client.delete(f"/requests/{name}")
            assert answer.status_code == 404
            assert f"no request {name!r} is in line or at work" in answer.json()["error"]["message"]


async def test_only_who_has_a_key_may_cancel() -> None:
    async with Stages().client(api_keys=("secret",)) as client:
        assert (await client.delete("/requests/any")).status_code == 401
