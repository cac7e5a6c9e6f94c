from __future__ import annotations

import hashlib

import pytest
from fastapi import Request

from triptych.errors import Forbidden, RateLimited, Unauthenticated
from triptych.serving.auth import key_name, make_guard
from triptych.serving.keys import Key, read_key
from triptych.serving.settings import ServerSettings, StageSettings


def request_with(
    authorization: str | None = None, server: tuple[str, int | None] | None = ("127.0.0.1", 8001), method: str = "POST"
) -> Request:
    headers = [] if authorization is None else [(b"authorization", authorization.encode("latin-1"))]
    return Request({"type": "http", "method": method, "headers": headers, "server": server})


SECOND = "of-a-friend:sha256:" + hashlib.sha256(b"second").hexdigest()


class TwoKeys(ServerSettings):
    def demanded_keys(self) -> tuple[Key, ...]:
        return (read_key("first"), read_key(SECOND))


@pytest.mark.parametrize("authorization", ["Bearer first", "Bearer second", "bearer second", "Bearer  second "])
async def test_each_token_opens_the_door(authorization: str) -> None:
    await make_guard(TwoKeys())(request_with(authorization))


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer third", "Bearer firs", f"Bearer {SECOND}", "Basic first", "first", "Bearer f\xfc"],
)
async def test_nothing_else_does(authorization: str | None) -> None:
    with pytest.raises(Unauthenticated, match="send a token of this service as Authorization: Bearer"):
        await make_guard(TwoKeys())(request_with(authorization))


@pytest.mark.parametrize(
    "server", [("127.0.0.1", 1), ("::1", 1), ("::ffff:127.0.0.1", 1), ("/run/stage.sock", None), ("testserver", 80), None]
)
async def test_without_tokens_this_machine_may_come_in(server) -> None:
    await make_guard(StageSettings())(request_with(server=server))


@pytest.mark.parametrize("server", [("192.168.0.7", 1), ("::ffff:10.0.0.1", 1), ("2001:db8::1", 1)])
async def test_without_tokens_others_may_not(server) -> None:
    """Whatever host the settings named: `uvicorn --host` does not tell them."""
    with pytest.raises(Forbidden, match="set TRIPTYCH_TOKEN, or TRIPTYCH_INSECURE=true"):
        await make_guard(StageSettings())(request_with(server=server))
    await make_guard(StageSettings(insecure=True))(request_with(server=server))


async def test_the_guard_tells_whose_key_it_was_and_nothing_of_the_key() -> None:
    guard = make_guard(TwoKeys())
    named, unnamed = request_with("Bearer second"), request_with("Bearer first")
    await guard(named)
    await guard(unnamed)
    assert key_name(named) == "of-a-friend"
    assert key_name(unnamed) == hashlib.sha256(b"first").hexdigest()[:8]
    open_door = request_with()
    await make_guard(StageSettings())(open_door)
    assert key_name(open_door) == ""


class TestRateLimit:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """A clock that stands still; its one element is the time."""
        now = [1000.0]
        monkeypatch.setattr("time.time", lambda: now[0])
        return now

    async def test_each_key_has_its_own(self, clock: list[float]) -> None:
        guard = make_guard(TwoKeys(rate_limit="2/minute"))
        for key in ("first", "second"):
            await guard(request_with(f"Bearer {key}"))
            await guard(request_with(f"Bearer {key}"))
        with pytest.raises(RateLimited, match="this key may ask 2 times in 60 seconds"):
            await guard(request_with("Bearer first"))

    async def test_it_says_when_the_next_may_come_and_means_it(self, clock: list[float]) -> None:
        guard = make_guard(TwoKeys(rate_limit="2/minute"))
        await guard(request_with("Bearer first"))
        clock[0] += 20
        await guard(request_with("Bearer first"))
        clock[0] += 10
        with pytest.raises(RateLimited) as refused:
            await guard(request_with("Bearer first"))
        assert refused.value.retry_after_seconds == pytest.approx(30, abs=0.01)
        clock[0] += 30.1
        await guard(request_with("Bearer first"))

    @pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
    async def test_what_wants_no_work_is_not_counted(self, clock: list[float], method: str) -> None:
        guard = make_guard(TwoKeys(rate_limit="1/minute"))
        for _ in range(3):
            await guard(request_with("Bearer first", method=method))
        await guard(request_with("Bearer first"))

    async def test_who_is_not_let_in_is_not_counted(self, clock: list[float]) -> None:
        guard = make_guard(TwoKeys(rate_limit="1/minute"))
        for _ in range(3):
            with pytest.raises(Unauthenticated):
                await guard(request_with("Bearer third"))
        await guard(request_with("Bearer first"))

    async def test_without_keys_all_count_as_one(self, clock: list[float]) -> None:
        guard = make_guard(StageSettings(rate_limit="1/minute"))
        await guard(request_with())
        with pytest.raises(RateLimited):
            await guard(request_with())
