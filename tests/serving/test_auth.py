from __future__ import annotations

import pytest
from fastapi import Request

from triptych.errors import Forbidden, Unauthenticated
from triptych.serving.auth import make_guard
from triptych.serving.settings import ServerSettings, StageSettings


def request_with(authorization: str | None = None, server: tuple[str, int | None] | None = ("127.0.0.1", 8001)) -> Request:
    headers = [] if authorization is None else [(b"authorization", authorization.encode("latin-1"))]
    return Request({"type": "http", "headers": headers, "server": server})


class TwoKeys(ServerSettings):
    def demanded_tokens(self) -> tuple[str, ...]:
        return ("first", "second")


@pytest.mark.parametrize("authorization", ["Bearer first", "Bearer second", "bearer second", "Bearer  second "])
async def test_each_token_opens_the_door(authorization: str) -> None:
    await make_guard(TwoKeys())(request_with(authorization))


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Bearer third", "Bearer firs", "Basic first", "first", "Bearer f\xfc"]
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
