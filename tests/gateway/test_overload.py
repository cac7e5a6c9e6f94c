"""The line at the gateway as callers see it: keys, priorities, deadlines, and when to come back."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from tests.fakes import FakeDiffusion, with_profile
from tests.gateway.running import Stages, until
from triptych.gateway.parameters import SHALLOW_SHARE

KEYS = {"api_keys": "anns-key,bobs-key"}


class Line:
    """A gateway that does one thing at a time, and is at work until `open`."""

    def __init__(self, **settings: Any) -> None:
        self.stages = Stages(diffusion=FakeDiffusion(gate=asyncio.Event()))
        self.app = self.stages.app(max_running_requests=1, **settings)
        self.admission = self.app.state.gateway.admission
        self._asked: list[asyncio.Task[httpx2.Response]] = []

    async def ask(self, key: str = "", patience: str = "", **body: Any) -> asyncio.Task[httpx2.Response]:
        """Sends a request, and waits until it is in line or answered."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if patience:
            headers["X-Request-Timeout-Seconds"] = patience
        before = self._seen()
        asked = asyncio.create_task(self._post({"prompt": "x", "num_steps": 2} | body, headers))
        await until(lambda: asked.done() or self._seen() > before)
        self._asked.append(asked)
        return asked

    async def open(self) -> list[int]:
        """The seeds in the order in which the diffusion stage had them."""
        assert self.stages.diffusion.gate is not None
        self.stages.diffusion.gate.set()
        await asyncio.gather(*self._asked)
        return [int(request.seeds[0]) for request in self.stages.diffusion.asked]

    def _seen(self) -> int:
        """Requests that are at work, in line or answered: one more when a request has come as far as it gets by itself."""
        return self.admission.running + self.admission.waiting + sum(asked.done() for asked in self._asked)

    async def _post(self, body: dict[str, Any], headers: dict[str, str]) -> httpx2.Response:
        transport = httpx2.ASGITransport(self.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post("/generate", json=body, headers=headers)


async def test_the_higher_priority_is_made_first() -> None:
    line = Line()
    for seed, priority in enumerate(("normal", "low", "normal", "high")):
        await line.ask(seed=seed, request_priority=priority)
    assert await line.open() == [0, 3, 2, 1]
    assert [request.priority for request in line.stages.diffusion.asked] == ["normal", "high", "normal", "low"]


async def test_keys_take_turns() -> None:
    line = Line(**KEYS)
    for seed, key in enumerate(("anns-key", "anns-key", "anns-key", "bobs-key")):
        await line.ask(key, seed=seed)
    assert await line.open() == [0, 3, 1, 2]


async def test_no_key_keeps_another_out_of_a_full_line() -> None:
    line = Line(**KEYS, max_waiting_requests=1)
    first, second, refused, of_bob = [await line.ask(key) for key in ("anns-key", "anns-key", "anns-key", "bobs-key")]
    assert refused.result().status_code == 429
    await line.open()
    assert [asked.result().status_code for asked in (first, second, of_bob)] == [200, 429, 200]
    assert int(second.result().headers["Retry-After"]) >= 1


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_when_to_come_back_is_known_from_the_evaluations_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(max_waiting_requests=0)
    clock = Clock()
    monkeypatch.setattr(line.admission, "_clock", clock)
    line.stages.diffusion.gate = None
    line.stages.diffusion.turnstile = asyncio.Semaphore(0)
    running = await line.ask(num_steps=50)
    await until(lambda: line.stages.diffusion.asked)
    clock.now = 10.0
    line.stages.diffusion.turnstile.release()
    await until(lambda: line.stages.diffusion.evaluations == 1)
    await until(lambda: line.admission.seconds_to_next_place() > 1)
    refused = await line.ask()
    assert refused.result().headers["Retry-After"] == str(50 * 10 - 10)
    for _ in range(50):
        line.stages.diffusion.turnstile.release()
    assert (await running).status_code == 200


async def test_under_an_interval_the_first_evaluation_says_more_than_those_that_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(max_waiting_requests=0)
    with_profile(line.stages.diffusion, takes_cache_interval=True)
    clock = Clock()
    monkeypatch.setattr(line.admission, "_clock", clock)
    line.stages.diffusion.gate = None
    line.stages.diffusion.turnstile = asyncio.Semaphore(0)
    running = await line.ask(num_steps=50, cache_interval=5)
    await until(lambda: line.stages.diffusion.asked)
    clock.now = 10.0
    line.stages.diffusion.turnstile.release()
    await until(lambda: line.stages.diffusion.evaluations == 1)
    await until(lambda: line.admission.seconds_to_next_place() > 1)
    refused = await line.ask()
    assert int(refused.result().headers["Retry-After"]) == pytest.approx((9 + 40 * SHALLOW_SHARE) * 10, abs=1)
    for _ in range(50):
        line.stages.diffusion.turnstile.release()
    assert (await running).status_code == 200


async def test_a_request_that_cannot_be_done_in_time_is_429_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line()
    clock = Clock()
    monkeypatch.setattr(line.admission, "_clock", clock)
    measured = await line.ask(num_steps=2)
    clock.now = 20.0
    await line.open()
    assert measured.result().status_code == 200

    line.stages.diffusion.gate = asyncio.Event()
    await line.ask(num_steps=2)
    refused = (await line.ask(num_steps=4, patience="30")).result()
    assert refused.status_code == 429
    assert "with 0 others before it in line it takes about 60.0 s" in refused.json()["error"]["message"]
    assert refused.headers["Retry-After"] == "20"
    await line.open()
