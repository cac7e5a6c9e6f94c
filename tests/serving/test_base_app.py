"""Ids, traces, metrics and the log of a request, on an app that has every kind of answer."""

from __future__ import annotations

import hashlib
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI, Request
from opentelemetry import trace
from opentelemetry.propagate import inject
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client.parser import text_string_to_metric_families

from triptych.errors import InvalidValue, StageFailed
from triptych.serving.base_app import make_app
from triptych.serving.error_responses import open_inference_error
from triptych.serving.request_ids import request_id
from triptych.serving.settings import ServerSettings, StageSettings

TRACE = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
SECRET = "a prompt that nobody else should read"


@asynccontextmanager
async def no_lifespan(app: FastAPI):
    yield


@pytest.fixture
def settings() -> ServerSettings:
    return StageSettings()


@pytest.fixture
def app(settings: ServerSettings) -> FastAPI:
    app = make_app(title="test", settings=settings, error_body=open_inference_error, lifespan=no_lifespan)

    @app.get("/fine/{thing}")
    async def fine(request: Request, thing: str) -> dict[str, str]:
        carrier: dict[str, str] = {}
        inject(carrier)
        return {"id": request_id(request), **carrier}

    @app.get("/health/live")
    async def live() -> None: ...

    @app.get("/invalid")
    async def invalid() -> None:
        raise InvalidValue(SECRET, param="prompt")

    @app.get("/stage")
    async def stage() -> None:
        raise StageFailed("the decoder stage broke off", stage="decoder")

    @app.get("/bug")
    async def bug() -> None:
        raise ValueError(SECRET)

    return app


async def test_every_response_has_an_id(connect, app) -> None:
    client = connect(app)
    first, second = await client.get("/fine/a"), await client.get("/nowhere")
    assert first.json()["id"] == first.headers["X-Request-Id"]
    assert len({first.headers["X-Request-Id"], second.headers["X-Request-Id"]}) == 2


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("job-7:3.a_b", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("two words", False),
        ("", False),
        ("bär", False),
        ("a{b}", False),
    ],
)
async def test_the_callers_id_is_kept_where_it_fits(connect, app, sent: str, kept: bool) -> None:
    response = await connect(app).get("/fine/a", headers={"X-Request-Id": sent.encode()})
    assert (response.headers["X-Request-Id"] == sent) is kept


async def test_a_trace_goes_on_without_an_sdk(connect, app) -> None:
    assert (await connect(app).get("/fine/a", headers={"traceparent": TRACE})).json()["traceparent"] == TRACE
    assert "traceparent" not in (await connect(app).get("/fine/a", headers={"traceparent": "garbage"})).json()


async def test_a_trace_goes_on_under_a_span_of_ours_with_an_sdk(connect, app, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = TracerProvider()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    onward = (await connect(app).get("/fine/a", headers={"traceparent": TRACE})).json()["traceparent"]
    assert onward.split("-")[1] == "ab" * 16
    assert onward.split("-")[2] != "cd" * 8


async def test_requests_are_counted_under_their_route(connect, app) -> None:
    client = connect(app)
    for path in ("/fine/a", "/fine/b", "/invalid", "/nowhere", "/bug"):
        await client.get(path)
    await client.request("BREW", "/fine/a")
    text = (await client.get("/metrics")).text
    families = {family.name: family.samples for family in text_string_to_metric_families(text)}
    counted = {
        (sample.labels["method"], sample.labels["route"], sample.labels["status"]): sample.value
        for sample in families["triptych_requests"]
        if sample.name.endswith("_total")
    }
    assert counted == {
        ("GET", "/fine/{thing}", "200"): 2,
        ("GET", "/invalid", "422"): 1,
        ("GET", "none", "404"): 1,
        ("GET", "/bug", "500"): 1,
        ("other", "/fine/{thing}", "405"): 1,
    }
    timed = [sample.value for sample in families["triptych_request_seconds"] if sample.name.endswith("_count")]
    assert sum(timed) == 6
    (running,) = families["triptych_requests_running"]
    assert running.value == 1, "the request for the metrics itself"
    assert families["process_resident_memory_bytes"][0].value > 1e6


async def test_apps_count_apart(connect, app, settings) -> None:
    other = make_app(title="other", settings=settings, error_body=open_inference_error, lifespan=no_lifespan)
    await connect(app).get("/fine/a")
    assert "/fine" not in (await connect(other).get("/metrics")).text


async def test_metrics_are_behind_the_door(connect) -> None:
    app = make_app(title="locked", settings=StageSettings(token="s3cret"), error_body=open_inference_error, lifespan=no_lifespan)
    assert (await connect(app).get("/metrics")).status_code == 401
    assert (await connect(app).get("/metrics", headers={"Authorization": "Bearer s3cret"})).status_code == 200


async def test_whose_key_it_was_is_logged_by_its_name(connect, logged) -> None:
    entry = "laptop:sha256:" + hashlib.sha256(b"s3cret").hexdigest()
    app = make_app(title="t", settings=StageSettings(token=entry), error_body=open_inference_error, lifespan=no_lifespan)
    await connect(app).get("/metrics", headers={"Authorization": "Bearer s3cret"})
    (line,) = [line for line in logged if line["event"] == "request"]
    assert line["key"] == "laptop"
    assert "s3cret" not in str(logged)


async def test_a_request_is_one_line_of_the_log(connect, app, logged) -> None:
    response = await connect(app).get("/fine/a", params={"prompt": SECRET})
    (entry,) = logged
    assert entry.pop("seconds") >= 0
    assert entry == {
        "event": "request",
        "log_level": "info",
        "method": "GET",
        "route": "/fine/{thing}",
        "status": 200,
        "request_id": response.headers["X-Request-Id"],
    }


async def test_a_callers_error_is_logged_by_its_class(connect, app, logged) -> None:
    response = await connect(app).get("/invalid")
    assert response.json() == {"error": SECRET}, "its own words go to the caller"
    (entry,) = logged
    assert (entry["error"], entry["param"], entry["status"]) == ("invalid_value", "prompt", 422)
    assert SECRET not in repr(logged)


async def test_a_stages_error_is_logged_with_its_words(connect, app, logged) -> None:
    await connect(app).get("/stage")
    (entry,) = logged
    assert (entry["error"], entry["reason"]) == ("stage_failed", "the decoder stage broke off")


async def test_health_is_logged_only_for_the_curious(connect, app, logged) -> None:
    await connect(app).get("/health/live")
    assert [entry["log_level"] for entry in logged] == ["debug"]


async def test_a_bug_is_500_and_nothing_more(connect, app, logged) -> None:
    response = await connect(app).get("/bug")
    name = response.headers["X-Request-Id"]
    assert response.status_code == 500
    assert response.json() == {"error": f"this is our fault; the log knows more under {name}"}
    error, request = logged
    assert (error["event"], error["request_id"], error["exc_info"]) == ("unexpected_error", name, True)
    assert request["status"] == 500
