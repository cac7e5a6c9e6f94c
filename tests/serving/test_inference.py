"""The routes of the Open Inference Protocol, as another client than ours would use them."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx2
import numpy as np
import pytest
from starlette.types import Scope

from tests.fakes import TEXT_ENCODER, FakeDecoder, FakeDiffusion, FakeTextEncoder
from triptych.contract import Denoised, Encoded, EncodeRequest, Memory
from triptych.errors import QueueFull
from triptych.serving.settings import StageSettings
from triptych.serving.stage_app import stage_app

PROMPT = {"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["a red circle"]}]}
INFER = "/v2/models/text_encoder/infer"


def app_of(stage: Any, **settings: Any) -> Any:
    return stage_app(stage, StageSettings(**settings))


async def context_of(prompt: str) -> np.ndarray:
    return (await FakeTextEncoder().encode(EncodeRequest(prompts=(prompt,)))).context


def read_binary(response: httpx2.Response) -> tuple[dict[str, Any], bytes]:
    length = int(response.headers["Inference-Header-Content-Length"])
    return json.loads(response.content[:length]), response.content[length:]


async def test_the_server_says_who_it_is(connect) -> None:
    answer = (await connect(app_of(FakeTextEncoder())).get("/v2")).json()
    assert answer["name"] == "triptych"
    assert answer["extensions"] == ["binary_tensor_data"]


async def test_live_and_ready_differ(connect) -> None:
    stage = FakeTextEncoder(started=False)
    client = connect(app_of(stage))
    ready = await client.get("/v2/health/ready")
    assert ((await client.get("/v2/health/live")).status_code, ready.status_code) == (200, 503)
    assert ready.json() == {"ready": False, "error": "the text_encoder stage is still starting"}
    stage.start()
    assert (await client.get("/v2/health/ready")).json() == {"ready": True}


async def test_a_stage_that_is_starting_refuses_without_reading(connect) -> None:
    client = connect(app_of(FakeTextEncoder(started=False)))

    async def unread():
        yield pytest.fail("the body was read")

    for request in (
        client.get("/v2/models/text_encoder"),
        client.get("/v2/models/text_encoder/ready"),
        client.post(INFER, content=unread()),
    ):
        response = await request
        assert (response.status_code, response.json()) == (503, {"error": "the text_encoder stage is still starting"})
    index = (await client.post("/v2/repository/index")).json()
    assert (index[0]["state"], index[0]["reason"]) == ("UNAVAILABLE", "the text_encoder stage is still starting")


async def test_a_model_tells_what_pictures_cost_where_that_is_counted(connect) -> None:
    for stage in (FakeDiffusion(), FakeDecoder()):
        address = f"/v2/models/{stage.name}"
        before = (await connect(app_of(stage)).get(address)).json()["parameters"]
        assert "memory_bytes" not in before
        stage.memory = Memory(most_bytes=1000, picture_bytes={(64, 64): 10, (96, 64): 15}, call_bytes=7)
        told = (await connect(app_of(stage)).get(address)).json()["parameters"]
        assert told == before | {"memory_bytes": 1000, "picture_bytes": "64x64=10,96x64=15", "call_bytes": 7}


@pytest.mark.parametrize("version", ["", "/versions/1"])
async def test_a_model_describes_itself(connect, version: str) -> None:
    client = connect(app_of(FakeTextEncoder()))
    metadata = (await client.get(f"/v2/models/text_encoder{version}")).json()
    assert metadata["inputs"] == [{"name": "prompt", "datatype": "BYTES", "shape": [-1]}]
    assert metadata["outputs"] == [{"name": "context", "datatype": "FP32", "shape": [-1, 77, 768]}]
    assert metadata["versions"] == ["1"]
    assert metadata["parameters"]["weights_digest"] == TEXT_ENCODER.weights_digest
    assert (await client.get(f"/v2/models/text_encoder{version}/ready")).json() == {"name": "text_encoder", "ready": True}
    index = (await client.post("/v2/repository/index", json={})).json()
    assert index == [{"name": "text_encoder", "version": "1", "state": "READY", "reason": ""}]


async def test_what_a_gateway_asks_every_few_seconds_does_not_fill_the_log(connect, logged) -> None:
    client = connect(app_of(FakeTextEncoder()))
    await client.get("/v2/models/text_encoder")
    await client.get("/v2/health/ready")
    await client.post(INFER, json=PROMPT)
    assert [entry["log_level"] for entry in logged] == ["debug", "debug", "info"]


@pytest.mark.parametrize("path", [INFER, "/v2/models/text_encoder/versions/1/infer"])
async def test_json_is_answered_in_json(connect, path: str) -> None:
    response = await connect(app_of(FakeTextEncoder())).post(path, json={**PROMPT, "id": "mine"})
    answer = response.json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("text_encoder", "1", "mine")
    (output,) = answer["outputs"]
    data = np.array(output.pop("data"), np.float32)
    assert output == {"name": "context", "datatype": "FP32", "shape": [1, 77, 768]}
    assert data.tobytes() == (await context_of("a red circle")).tobytes()


async def test_binary_is_answered_where_it_is_asked_for(connect) -> None:
    request = {**PROMPT, "parameters": {"binary_data_output": True}}
    response = await connect(app_of(FakeTextEncoder())).post(INFER, json=request)
    header, tensors = read_binary(response)
    assert response.headers["Content-Type"] == "application/octet-stream"
    assert header["outputs"][0]["parameters"] == {"binary_data_size": 77 * 768 * 4}
    assert tensors == (await context_of("a red circle")).tobytes()


async def test_the_raw_form_is_just_the_prompt(connect) -> None:
    client = connect(app_of(FakeTextEncoder()))
    response = await client.post(INFER, content=b"a red circle", headers={"Inference-Header-Content-Length": "0"})
    assert read_binary(response)[1] == (await context_of("a red circle")).tobytes()


async def test_warnings_travel_as_a_parameter(connect) -> None:
    inputs = [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["word " * 80]}]
    response = await connect(app_of(FakeTextEncoder())).post(INFER, json={"inputs": inputs, "parameters": {"truncate": True}})
    assert response.json()["parameters"] == {"warnings": "the prompt was cut from 80 to 77 tokens"}


async def test_two_requests_at_once_both_succeed(connect) -> None:
    gate = asyncio.Event()
    stage = FakeTextEncoder(gate=gate)
    client = connect(app_of(stage))
    async with asyncio.TaskGroup() as group:
        both = [group.create_task(client.post(INFER, json=PROMPT)) for _ in range(2)]
        for _ in both:
            await stage.arrivals.get()
        gate.set()
    assert [task.result().status_code for task in both] == [200, 200]


async def test_one_request_too_many_is_refused_unread(connect) -> None:
    stage = FakeTextEncoder(gate=asyncio.Event())
    client = connect(app_of(stage, max_requests=1))
    first = asyncio.create_task(client.post(INFER, json=PROMPT))
    await stage.arrivals.get()

    async def unread():
        yield pytest.fail("the body was read")

    refused = await client.post(INFER, content=unread())
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    assert stage.gate is not None
    stage.gate.set()
    assert (await first).status_code == 200
    assert (await client.post(INFER, json=PROMPT)).status_code == 200


async def test_a_full_queue_is_429(connect) -> None:
    stage = FakeTextEncoder(failure=QueueFull("64 jobs are waiting", retry_after_seconds=4.2))
    response = await connect(app_of(stage)).post(INFER, json=PROMPT)
    assert (response.status_code, response.headers["Retry-After"]) == (429, "5")
    assert response.json() == {"error": "64 jobs are waiting"}


async def test_the_deadline_reaches_the_stage(connect) -> None:
    stage = FakeTextEncoder()
    client = connect(app_of(stage, request_timeout_seconds=100))
    before = time.monotonic()
    await client.post(INFER, json=PROMPT, headers={"X-Request-Timeout-Seconds": "30"})
    await client.post(INFER, json=PROMPT, headers={"X-Request-Timeout-Seconds": "3000"})
    await client.post(INFER, json=PROMPT)
    left = [deadline - before for deadline in stage.deadlines if deadline is not None]
    assert [round(seconds, -1) for seconds in left] == [30, 100, 100]


@pytest.mark.parametrize("seconds", ["0", "0.05"])
async def test_a_stage_that_is_too_slow_is_504_and_stops(connect, seconds: str) -> None:
    stage = FakeTextEncoder(gate=asyncio.Event())
    response = await connect(app_of(stage)).post(INFER, json=PROMPT, headers={"X-Request-Timeout-Seconds": seconds})
    assert response.status_code == 504
    assert response.json() == {"error": "the text_encoder stage was not done before the request's deadline"}
    assert stage.cancelled == len(stage.asked)


class Caller:
    """A caller at the ASGI seam, because a client in the same process cannot hang up."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.received: list[dict[str, Any]] = []

    def send(self, content: bytes, *, more: bool) -> None:
        self.messages.put_nowait({"type": "http.request", "body": content, "more_body": more})

    def leave(self) -> None:
        self.messages.put_nowait({"type": "http.disconnect"})

    async def call(self, app: Any) -> None:
        async def receive_response(message: Any) -> None:
            self.received.append(message)

        scope: Scope = {"type": "http", "method": "POST", "path": INFER, "headers": [], "query_string": b"", "server": None}
        await app(scope, self.messages.get, receive_response)


async def test_a_caller_that_leaves_stops_the_work() -> None:
    stage = FakeTextEncoder(gate=asyncio.Event())
    caller = Caller()
    caller.send(json.dumps(PROMPT).encode(), more=False)
    call = asyncio.create_task(caller.call(app_of(stage)))
    await stage.arrivals.get()
    caller.leave()
    await call
    assert stage.cancelled == 1
    assert caller.received[0]["status"] == 499


async def test_a_caller_that_leaves_in_mid_request_is_no_bug(logged) -> None:
    stage = FakeTextEncoder()
    caller = Caller()
    caller.send(b'{"inputs": [', more=True)
    caller.leave()
    await caller.call(app_of(stage))
    assert caller.received[0]["status"] == 499
    assert [entry["event"] for entry in logged] == ["request"]
    assert stage.asked == []


async def test_values_that_are_not_finite_do_not_leave(connect) -> None:
    class Broken(FakeTextEncoder):
        async def encode(self, request, *, deadline=None):
            encoded = await super().encode(request)
            return Encoded(context=np.full_like(encoded.context, np.nan))

    response = await connect(app_of(Broken())).post(INFER, json=PROMPT)
    assert (response.status_code, response.json()) == (502, {"error": "the text_encoder stage computed NaN or infinity"})


async def test_a_denoising_without_a_result_is_a_failure(connect) -> None:
    class Endless(FakeDiffusion):
        async def denoise(self, request, *, deadline=None):
            async for event in super().denoise(request):
                if not isinstance(event, Denoised):
                    yield event

    inputs = [
        {"name": "context", "shape": [1, 77, 768], "datatype": "FP32", "data": [0.5] * 77 * 768},
        {"name": "seed", "shape": [1], "datatype": "UINT64", "data": [7]},
    ]
    request = {"inputs": inputs, "parameters": {"guidance_scale": 1}}
    response = await connect(app_of(Endless())).post("/v2/models/diffusion/infer", json=request)
    assert (response.status_code, response.json()) == (502, {"error": "the diffusion stage ended without a result"})
    assert (await connect(app_of(FakeDiffusion())).post("/v2/models/diffusion/infer", json=request)).status_code == 200


@pytest.mark.parametrize(("image_format", "magic"), [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8\xff"), ("webp", b"RIFF")])
async def test_the_decoder_answers_files(connect, image_format: str, magic: bytes) -> None:
    latents = {"name": "latents", "shape": [1, 8, 8, 4], "datatype": "FP32", "data": [0.0] * 256}
    request = {"inputs": [latents], "parameters": {"image_format": image_format, "binary_data_output": True}}
    response = await connect(app_of(FakeDecoder())).post("/v2/models/decoder/infer", json=request)
    header, tensors = read_binary(response)
    assert (header["outputs"][0]["datatype"], header["outputs"][0]["shape"]) == ("BYTES", [1])
    assert int.from_bytes(tensors[:4], "little") == len(tensors) - 4
    assert tensors[4:].startswith(magic)


LOCKED = {
    "GET": ["/v2", "/v2/models/text_encoder", "/v2/models/text_encoder/ready", "/metrics"],
    "POST": [INFER, "/v2/repository/index"],
}


@pytest.mark.parametrize(("method", "path"), [(method, path) for method, paths in LOCKED.items() for path in paths])
async def test_everything_but_health_is_behind_the_door(connect, method: str, path: str) -> None:
    client = connect(app_of(FakeTextEncoder(), token="s3cret"))
    refused = await client.request(method, path, json=PROMPT)
    assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert refused.json() == {"error": "send a token of this service as Authorization: Bearer"}
    assert (await client.request(method, path, json=PROMPT, headers={"Authorization": "Bearer s3cret"})).status_code == 200
    assert (await client.get("/v2/health/live")).status_code == (await client.get("/v2/health/ready")).status_code == 200
