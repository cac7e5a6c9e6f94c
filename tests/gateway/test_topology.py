"""The environment's addresses as a model: a gateway before three stage services, all in this process."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import httpx2
import pytest
from asgi_lifespan import LifespanManager
from PIL import Image

from tests.fakes import FakeImageEncoder
from tests.gateway.running import Stages, client_of, events_of
from triptych.contract import IMAGE_TEXT_KEYWORD
from triptych.errors import StartError
from triptych.gateway import topology
from triptych.gateway.app import create_app
from triptych.gateway.settings import GatewaySettings
from triptych.gateway.topology import local_gateway, remote_gateway, remote_models
from triptych.remote import make_client
from triptych.serving.settings import StageSettings
from triptych.serving.stage_app import stage_app

BODY = {"prompt": "a red circle", "negative_prompt": "blue", "seed": 5, "num_images": 2, "width": 96}


class Network(httpx2.AsyncBaseTransport):
    """Carries requests to the apps in this process by their ports, and keeps their headers."""

    def __init__(self, stages: Stages, **settings: Any) -> None:
        told = StageSettings(**settings)
        self.apps: Mapping[int, httpx2.ASGITransport] = {
            8001: httpx2.ASGITransport(stage_app(stages.text_encoder, told)),
            8002: httpx2.ASGITransport(stage_app(stages.diffusion, told)),
            8003: httpx2.ASGITransport(stage_app(stages.decoder, told)),
        }
        self.inferences: list[httpx2.Headers] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "POST":
            self.inferences.append(request.headers)
        return await self.apps[request.url.port or 80].handle_async_request(request)


def remote_client(network: Network, **settings: Any) -> httpx2.AsyncClient:
    told = GatewaySettings(**settings)
    return client_of(create_app(told, remote_models(told, make_client(transport=network))))


async def test_services_and_one_process_give_the_same_bytes() -> None:
    async with remote_client(Network(Stages())) as composed, Stages().client() as together:
        pictures = [(await client.post("/generate", json=BODY)).json() for client in (composed, together)]
    assert pictures[0]["images"] == pictures[1]["images"]
    assert pictures[0]["parameters"] == pictures[1]["parameters"]


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
async def test_without_guidance_and_in_every_format_too(image_format: str) -> None:
    body = {"prompt": "x", "seed": 1, "guidance_scale": 1, "output_format": image_format}
    async with remote_client(Network(Stages())) as composed, Stages().client() as together:
        pictures = [
            (await client.post("/generate", json=body, headers={"Accept": "image/*"})).content for client in (composed, together)
        ]
    assert pictures[0] == pictures[1]


async def test_the_parameters_cross_the_wire_in_the_png() -> None:
    body = {"prompt": "naïve 円 \u0000", "seed": 1}
    async with remote_client(Network(Stages())) as client:
        response = await client.post("/generate", json=body, headers={"Accept": "image/png"})
    with Image.open(io.BytesIO(response.content)) as picture:
        assert "naïve 円" in picture.info[IMAGE_TEXT_KEYWORD]


async def test_trace_deadline_and_token_go_along() -> None:
    network = Network(Stages(), token="stage-secret")
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "X-Request-Timeout-Seconds": "20"}
    async with remote_client(network, stage_token="stage-secret") as client:
        response = await client.post("/generate", json=BODY, headers=headers)
    assert response.status_code == 200
    assert len(network.inferences) == 3
    for sent in network.inferences:
        assert sent["Authorization"] == "Bearer stage-secret"
        assert sent["traceparent"].split("-")[1] == trace
        assert 10 < float(sent["X-Request-Timeout-Seconds"]) <= 20


async def test_a_wrong_token_is_the_operators_fault_and_not_the_callers() -> None:
    async with remote_client(Network(Stages(), token="stage-secret"), stage_token="other", stage_wait_seconds=0) as client:
        response = await client.post("/generate", json=BODY)
    assert response.status_code == 503
    assert "text_encoder" in response.json()["error"]["message"]
    assert "other" not in response.text


LONG = "word " * 100


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": LONG}, "prompt"),
        ({"prompt": LONG, "negative_prompt": LONG}, "prompt"),
        ({"prompt": LONG, "guidance_scale": 1}, "prompt"),
        ({"prompt": "x", "negative_prompt": LONG}, "negative_prompt"),
    ],
)
async def test_a_prompt_that_is_too_long_is_named_though_the_wire_does_not_say_which(body: Mapping[str, Any], param: str) -> None:
    async with remote_client(Network(Stages())) as client:
        response = await client.post("/generate", json=body)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == param
    assert "the prompt has 100 tokens" in response.json()["error"]["message"]


async def test_a_name_of_the_environment_goes_before_the_stages_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_MODEL_NAME", "mine")
    async with remote_client(Network(Stages())) as client:
        assert (await client.post("/generate", json=BODY)).json()["model"] == "mine"
        assert (await client.post("/generate", json={**BODY, "model": "fake"})).status_code == 404


async def test_the_environment_says_where_the_stages_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in ("TEXT_ENCODER", "DIFFUSION", "DECODER"):
        monkeypatch.setenv(f"TRIPTYCH_{stage}_URL", f"http://{stage.lower()}.example:1234/base")
    hosts: list[str] = []

    def note(request: httpx2.Request) -> httpx2.Response:
        hosts.append(str(request.url))
        raise httpx2.ConnectError("nobody")

    settings = GatewaySettings()
    async with client_of(
        create_app(settings, remote_models(settings, make_client(transport=httpx2.MockTransport(note))))
    ) as client:
        ready = await client.get("/health/ready")
    assert sorted(hosts) == [
        "http://decoder.example:1234/base/v2/models/decoder",
        "http://decoder.example:1234/base/v2/models/image_encoder",
        "http://diffusion.example:1234/base/v2/models/diffusion",
        "http://text_encoder.example:1234/base/v2/models/text_encoder",
    ]
    assert set(ready.json()["models"][0]["problems"]) == {"text_encoder", "diffusion", "decoder"}


def test_an_address_that_is_none_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_DIFFUSION_URL", "diffusion:8002")
    with pytest.raises(StartError, match="diffusion"):
        remote_gateway(GatewaySettings())


async def test_the_client_of_the_stages_is_closed_with_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    client = make_client(transport=Network(Stages()))
    monkeypatch.setattr(topology, "make_client", lambda **_: client)
    app = remote_gateway(GatewaySettings())
    async with LifespanManager(app), client_of(app) as caller:
        assert (await caller.post("/generate", json=BODY)).status_code == 200
    assert client.is_closed


async def test_all_in_one_starts_its_stages_and_closes_them() -> None:
    stages = Stages()
    image_encoder = FakeImageEncoder()
    local = (stages.text_encoder, stages.diffusion, stages.decoder, image_encoder)
    for stage in local:
        stage.started = False
    app = local_gateway(GatewaySettings(), *local)
    async with LifespanManager(app), client_of(app) as client:
        while (await client.get("/health/ready")).status_code != 200:
            pass
        assert (await client.post("/generate", json=BODY)).status_code == 200
    assert all(stage.closed for stage in local)


async def test_progress_tells_every_evaluation_of_a_remote_stage() -> None:
    async with remote_client(Network(Stages())) as client:
        response = await client.post("/generate", json={**BODY, "num_steps": 3}, headers={"Accept": "text/event-stream"})
    events = [(name, data.get("stage"), data.get("position")) for name, data in events_of(response.text)]
    assert events == [
        ("progress", "text_encoder", None),
        ("progress", "diffusion", None),
        ("progress", "diffusion", 1),
        ("progress", "diffusion", 2),
        ("progress", "diffusion", 3),
        ("progress", "decoder", None),
        ("completed", None, None),
    ]
