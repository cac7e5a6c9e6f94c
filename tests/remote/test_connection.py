"""Every way in which a stage can fail, as the error that it becomes."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable

import httpx2
import numpy as np
import pytest
import structlog
from opentelemetry import context, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from tests.fakes import DECODER
from triptych.contract import StageName
from triptych.errors import (
    Conflict,
    InvalidValue,
    MalformedRequest,
    NotSupported,
    QueueFull,
    StageBrokeOff,
    StageError,
    StageFailed,
    StageNotReady,
    StageTimeout,
    StartError,
    TooLarge,
    TriptychError,
)
from triptych.remote import connection, make_client
from triptych.remote.connection import StageConnection
from triptych.wire import decoder
from triptych.wire.open_inference import InferRequest, InferResponse, encode_response

REQUEST = InferRequest(inputs={"x": np.zeros(2, np.float32)})
BODY = encode_response(InferResponse(model_name="m", outputs={"y": np.zeros(2, np.float32)}))

Handler = Callable[[httpx2.Request], httpx2.Response]


def stage_that(handler: Handler, *, url: str = "http://stage:8003", token: str | None = None) -> StageConnection:
    client = make_client(transport=httpx2.MockTransport(handler))
    return StageConnection(StageName.DECODER, url, token=token, client=client)


def answers(response: httpx2.Response) -> Handler:
    return lambda request: response


def raises(error: Exception) -> Handler:
    def handler(request: httpx2.Request) -> httpx2.Response:
        raise error

    return handler


GOOD = httpx2.Response(200, content=BODY.content, headers=BODY.headers)


async def test_an_inference_goes_there_and_back() -> None:
    seen: list[httpx2.Request] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return GOOD

    stage = stage_that(handler, url="https://stage/base/", token="secret")
    response = await stage.infer("m", REQUEST, deadline=time.monotonic() + 60)
    assert list(response.outputs) == ["y"]
    (request,) = seen
    assert (request.method, str(request.url)) == ("POST", "https://stage/base/v2/models/m/infer")
    assert request.headers["Authorization"] == "Bearer secret"
    assert request.headers["Content-Type"] == "application/octet-stream"
    assert int(request.headers["Inference-Header-Content-Length"]) + 8 == len(request.content)
    assert 59 < float(request.headers["X-Request-Timeout-Seconds"]) <= 60


async def test_without_token_and_deadline_no_header_is_sent() -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        assert not {"authorization", "x-request-timeout-seconds", "x-request-id", "traceparent"} & set(request.headers)
        return GOOD

    assert await stage_that(handler).infer("m", REQUEST, deadline=None)


async def test_the_current_trace_goes_along() -> None:
    seen = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers["traceparent"])
        return GOOD

    span = NonRecordingSpan(SpanContext(trace_id=0xAB, span_id=0xCD, is_remote=True, trace_flags=TraceFlags(1)))
    token = context.attach(trace.set_span_in_context(span))
    try:
        await stage_that(handler).infer("m", REQUEST, deadline=None)
    finally:
        context.detach(token)
    assert seen == [f"00-{0xAB:032x}-{0xCD:016x}-01"]


async def test_the_current_requests_name_goes_along() -> None:
    seen = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers["X-Request-Id"])
        return GOOD

    with structlog.contextvars.bound_contextvars(request_id="seven"):
        await stage_that(handler).infer("m", REQUEST, deadline=None)
    assert seen == ["seven"]


@pytest.mark.parametrize(
    ("handler", "kind", "sentence"),
    [
        (raises(httpx2.ConnectError("refused")), StageNotReady, "cannot be reached"),
        (raises(httpx2.ConnectTimeout("late")), StageNotReady, "cannot be reached"),
        (raises(httpx2.ReadTimeout("late")), StageTimeout, "did not answer in time"),
        (raises(httpx2.WriteTimeout("late")), StageTimeout, "did not answer in time"),
        (raises(httpx2.PoolTimeout("late")), StageTimeout, "did not answer in time"),
        (raises(httpx2.ReadError("reset")), StageBrokeOff, r"broke off \(ReadError\)"),
        (raises(httpx2.RemoteProtocolError("eh")), StageBrokeOff, r"broke off \(RemoteProtocolError\)"),
        (answers(httpx2.Response(500, json={"error": "oh"})), StageFailed, "answered 500: oh"),
        (answers(httpx2.Response(401, json={"error": "who?"})), StageFailed, r"answered 401: who\?"),
        (answers(httpx2.Response(404, json={"error": "m?"})), StageFailed, r"answered 404: m\?"),
        (answers(httpx2.Response(307, headers={"Location": "/"})), StageFailed, "answered 307 without a reason"),
        (answers(httpx2.Response(502, content=b"<html>")), StageFailed, "answered 502 without a reason"),
        (answers(httpx2.Response(502, json={"error": ["no", "words"]})), StageFailed, "answered 502 without a reason"),
        (answers(httpx2.Response(500, json={"error": "e" * 999})), StageFailed, "answered 500: e{500}$"),
        (answers(httpx2.Response(500, content=b"e" * 2**17)), StageFailed, "answered 500 without a reason"),
        (answers(httpx2.Response(503, json={"error": "soon"})), StageNotReady, "answered 503: soon"),
        (answers(httpx2.Response(504, json={"error": "slow"})), StageTimeout, "answered 504: slow"),
        (
            answers(httpx2.Response(200, content=b"")),
            StageFailed,
            "an answer that cannot be used: the response is not valid",
        ),
        (answers(httpx2.Response(200, json={"model_name": "m"})), StageFailed, "cannot be used: the response has no outputs"),
        (
            answers(httpx2.Response(200, content=BODY.content[:-1], headers=BODY.headers)),
            StageFailed,
            "says 8 bytes of binary data, the body has 7 left",
        ),
    ],
)
async def test_a_stages_fault_names_the_stage(handler: Handler, kind: type[StageError], sentence: str) -> None:
    with pytest.raises(kind, match=f"^the decoder stage at http://stage:8003 .*{sentence}") as failed:
        await stage_that(handler).infer("m", REQUEST, deadline=None)
    assert type(failed.value) is kind
    assert failed.value.stage == "decoder"


@pytest.mark.parametrize("kind", [MalformedRequest, Conflict, TooLarge, InvalidValue, NotSupported])
async def test_the_callers_fault_keeps_class_and_words(kind: type[TriptychError]) -> None:
    response = httpx2.Response(kind.status, json={"error": "the stage's own words"})
    with pytest.raises(kind, match=r"^the stage's own words$"):
        await stage_that(answers(response)).infer("m", REQUEST, deadline=None)


@pytest.mark.parametrize(("headers", "seconds"), [({"Retry-After": "7"}, 7.0), ({}, 1.0), ({"Retry-After": "soon"}, 1.0)])
async def test_a_full_stage_says_when_to_come_back(headers: dict[str, str], seconds: float) -> None:
    response = httpx2.Response(429, json={"error": "full"}, headers=headers)
    with pytest.raises(QueueFull, match="full") as refused:
        await stage_that(answers(response)).infer("m", REQUEST, deadline=None)
    assert refused.value.retry_after_seconds == seconds


async def test_a_passed_deadline_asks_nobody() -> None:
    with pytest.raises(StageTimeout, match="there was no time left to ask the decoder stage at http://stage:8003"):
        await stage_that(raises(AssertionError("was asked"))).infer("m", REQUEST, deadline=time.monotonic() - 1)


async def test_a_deadline_ends_the_waiting() -> None:
    cancelled = asyncio.Event()

    async def never(request: httpx2.Request) -> httpx2.Response:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    client = make_client(transport=httpx2.MockTransport(never))
    stage = StageConnection(StageName.DIFFUSION, "http://stage", token=None, client=client)
    with pytest.raises(StageTimeout, match="the diffusion stage at http://stage did not answer in time"):
        await stage.infer("m", REQUEST, deadline=time.monotonic() + 0.05)
    assert cancelled.is_set()


async def test_an_answer_without_end_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_RESPONSE_BYTES", 1000)
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 100
            yield b" " * 100

    with pytest.raises(StageFailed, match="more than the 1000 bytes"):
        await stage_that(lambda request: httpx2.Response(200, content=endless())).infer("m", REQUEST, deadline=None)
    assert read == 1100


async def test_nobody_listens() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        async with make_client() as client:
            stage = StageConnection(StageName.DECODER, url, token=None, client=client)
            with pytest.raises(StageNotReady, match=f"the decoder stage at {url} cannot be reached"):
                await stage.metadata("decoder")


async def test_metadata() -> None:
    metadata = decoder.to_metadata(DECODER)

    def handler(request: httpx2.Request) -> httpx2.Response:
        assert (request.method, request.url.path) == ("GET", "/v2/models/decoder")
        assert request.headers["X-Request-Timeout-Seconds"].startswith(("4.9", "5.0"))
        return httpx2.Response(200, json=metadata.to_json())

    assert await stage_that(handler).metadata("decoder") == metadata


async def test_metadata_that_is_none_is_the_stages_fault() -> None:
    with pytest.raises(StageFailed, match=r"the decoder stage at .* cannot be used: the metadata cannot be read"):
        await stage_that(answers(httpx2.Response(200, json={"name": "decoder"}))).metadata("decoder")


async def test_a_password_in_an_address_stays_there() -> None:
    stage = stage_that(raises(httpx2.ConnectError("refused")), url="http://me:secret@stage/base", token="hush")
    with pytest.raises(StageNotReady, match="http://stage/base cannot be reached") as failed:
        await stage.metadata("m")
    assert "secret" not in str(failed.value)
    assert "hush" not in str(failed.value)


@pytest.mark.parametrize("url", ["", "localhost:8001", "stage", "ftp://stage", "http://", "http://[::1", "http://h:port"])
def test_an_address_that_is_none_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(StartError, match="the address of the decoder stage"):
        stage_that(raises(AssertionError()), url=url)
