"""The three stage services as they are deployed: settings from the environment in, app out."""

from __future__ import annotations

import importlib

import httpx2
import pytest
from fastapi import FastAPI

STAGES = ["text_encoder", "diffusion", "decoder"]


def create_app(stage: str) -> FastAPI:
    app = importlib.import_module(f"services.{stage}.app").create_app()
    assert isinstance(app, FastAPI)
    return app


@pytest.mark.parametrize("stage", STAGES)
async def test_a_service_is_live_before_it_is_ready(stage: str) -> None:
    transport = httpx2.ASGITransport(app=create_app(stage))
    async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
        assert (await client.get("/v2/health/live")).status_code == 200
        assert (await client.get("/v2/health/ready")).status_code == 503
        metadata = await client.get(f"/v2/models/{stage}")
        assert metadata.status_code == 503
        assert f"the {stage} stage" in metadata.json()["error"]
        assert (await client.get("/v2/models/other")).status_code == 404


async def test_the_image_encoder_is_served_beside_the_decoder() -> None:
    transport = httpx2.ASGITransport(app=create_app("decoder"))
    async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
        index = (await client.post("/v2/repository/index")).json()
        assert [(entry["name"], entry["state"]) for entry in index] == [
            ("decoder", "UNAVAILABLE"),
            ("image_encoder", "UNAVAILABLE"),
        ]


@pytest.mark.parametrize("stage", STAGES)
async def test_a_service_obeys_its_environment(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_TOKEN", "s3cret")
    transport = httpx2.ASGITransport(app=create_app(stage))
    async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
        assert (await client.get("/v2")).status_code == 401
        assert (await client.get("/v2", headers={"Authorization": "Bearer s3cret"})).status_code == 200


@pytest.mark.parametrize("stage", STAGES)
def test_a_service_that_cannot_be_is_one_sentence(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIPTYCH_HOST", "0.0.0.0")
    with pytest.raises(SystemExit, match=r"listening on 0\.0\.0\.0 lets other machines in: set TRIPTYCH_TOKEN"):
        create_app(stage)
