from __future__ import annotations

import pytest

from tests.fakes import FakeTextEncoder
from tests.gateway.running import Stages
from triptych.serving.security_headers import HEADERS
from triptych.serving.settings import StageSettings
from triptych.serving.stage_app import stage_app

PROMPT = {"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["a red circle"]}]}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2", 200),
        ("GET", "/v2/health/live", 200),
        ("GET", "/metrics", 200),
        ("POST", "/v2/models/text_encoder/infer", 200),
        ("GET", "/v2/models/text_encoder/infer", 405),
        ("GET", "/nowhere", 404),
    ],
)
async def test_every_answer_of_a_stage_has_them(connect, method: str, path: str, status: int) -> None:
    client = connect(stage_app(FakeTextEncoder(), StageSettings()))
    response = await client.request(method, path, json=PROMPT if method == "POST" else None)
    assert response.status_code == status
    assert HEADERS.items() <= dict(told_by(response)).items()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/models", 200),
        ("GET", "/openapi.json", 200),
        ("POST", "/generate", 422),
        ("POST", "/admin/swap", 415),
        ("OPTIONS", "/generate", 405),
        ("GET", "/../etc/passwd", 404),
    ],
)
async def test_every_answer_of_a_gateway_has_them(method: str, path: str, status: int) -> None:
    async with Stages().client() as client:
        content = b"{}" if status == 422 else None
        headers = {"Content-Type": "application/json"} if status == 422 else {}
        response = await client.request(method, path, content=content, headers=headers)
    assert response.status_code == status
    assert HEADERS.items() <= dict(told_by(response)).items()


async def test_who_is_turned_away_gets_them_too(connect) -> None:
    client = connect(stage_app(FakeTextEncoder(), StageSettings(token="s3cret")))
    response = await client.get("/v2")
    assert response.status_code == 401
    assert HEADERS.items() <= dict(told_by(response)).items()


async def test_a_bug_gets_them_too(connect, logged) -> None:
    client = connect(stage_app(FakeTextEncoder(failure=ZeroDivisionError()), StageSettings()))
    response = await client.post("/v2/models/text_encoder/infer", json=PROMPT)
    assert response.status_code == 500
    assert HEADERS.items() <= dict(told_by(response)).items()


@pytest.mark.parametrize("accept", ["application/json", "image/png", "text/event-stream"])
async def test_pictures_are_kept_by_no_cache(accept: str) -> None:
    async with Stages().client() as client:
        response = await client.post("/generate", json={"prompt": "x"}, headers={"Accept": accept})
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_the_pages_of_the_api_may_run_their_program_and_nobody_may_frame_them(path: str) -> None:
    async with Stages().client() as client:
        policy = (await client.get(path)).headers["Content-Security-Policy"]
    assert "script-src 'unsafe-inline' https:" in policy
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy


def told_by(response) -> list[tuple[str, str]]:
    """The headers of a response under the names that we write."""
    return [(name, response.headers[name]) for name in HEADERS if name in response.headers]
