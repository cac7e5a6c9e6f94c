from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi import FastAPI

from triptych.errors import Conflict, InvalidValue, QueueFull, StageTimeout, TriptychError, Unauthenticated
from triptych.serving.error_responses import add_error_handlers, error_response, open_inference_error


def own_shape(error: TriptychError) -> dict[str, Any]:
    return {"code": error.code, "param": getattr(error, "param", None), "message": error.message}


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    add_error_handlers(app, own_shape)

    @app.get("/conflict")
    async def conflict() -> None:
        raise Conflict("not with what we hold", param="state_key")

    @app.get("/number")
    async def number(value: int) -> int:
        return value

    return app


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/conflict", 409, {"code": "conflict", "param": "state_key", "message": "not with what we hold"}),
        ("GET", "/nowhere", 404, {"code": "not_found", "param": None, "message": "there is nothing at this address"}),
        ("PUT", "/number", 405, {"code": "method_not_allowed", "param": None, "message": "PUT is not for this address"}),
        (
            "GET",
            "/number?value=x",
            422,
            {
                "code": "invalid_value",
                "param": "value",
                "message": "value: Input should be a valid integer, unable to parse string as an integer",
            },
        ),
    ],
)
async def test_errors_have_the_shape_of_the_protocol(connect, app, method: str, path: str, status: int, body: dict) -> None:
    response = await connect(app).request(method, path)
    assert (response.status_code, response.json()) == (status, body)


async def test_the_frameworks_headers_stay(connect, app) -> None:
    assert (await connect(app).put("/number")).headers["Allow"] == "GET"


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (QueueFull("full", retry_after_seconds=2.1), 429, {"retry-after": "3"}),
        (QueueFull("full", retry_after_seconds=0), 429, {"retry-after": "1"}),
        (Unauthenticated("who?"), 401, {"www-authenticate": "Bearer"}),
        (StageTimeout("slow", stage="decoder"), 504, {}),
        (InvalidValue("no"), 422, {}),
    ],
)
def test_errors_become_their_status_and_headers(error: TriptychError, status: int, headers: dict[str, str]) -> None:
    response = error_response(error, open_inference_error)
    assert response.status_code == status
    assert json.loads(response.body) == {"error": error.message}
    assert set(response.headers) - {"content-length", "content-type"} == set(headers)
    assert headers.items() <= dict(response.headers).items()
