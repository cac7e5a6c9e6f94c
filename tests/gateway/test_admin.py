"""`POST /admin/swap`: who may, and what is asked for."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from tests.gateway.panels import NEXT, LiveGateway, at, gateway, panels
from tests.gateway.running import Stages

__all__ = ["gateway", "panels"]

SWAP = {"stage": "diffusion", "to": [at(NEXT)]}
TOKEN = {"Authorization": "Bearer admin-secret"}


def caller_of(app: FastAPI, *, address: str = "127.0.0.1", name: str = "127.0.0.1") -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app, client=(address, 1234)), base_url=f"http://{name}")


class TestWhoMay:
    @pytest.mark.parametrize(
        ("settings", "headers", "status", "words"),
        [
            ({"admin_token": "admin-secret"}, {}, 401, "Bearer"),
            ({"admin_token": "admin-secret"}, {"Authorization": "Bearer other"}, 401, "Bearer"),
            ({"admin_token": "admin-secret", "api_keys": "key"}, {"Authorization": "Bearer key"}, 401, "Bearer"),
            ({"api_keys": "key"}, {"Authorization": "Bearer key"}, 403, "set TRIPTYCH_ADMIN_TOKEN"),
            ({"admin_token": "admin-secret"}, TOKEN | {"Sec-Fetch-Site": "cross-site"}, 403, "another site"),
            ({}, {"Sec-Fetch-Site": "same-site"}, 403, "another site"),
            ({}, {"Host": "rebound.example"}, 403, "own machine"),
            ({}, {"Host": "::::"}, 403, "own machine"),
        ],
    )
    async def test_others_are_refused_and_nothing_changes(
        self, gateway: LiveGateway, settings: dict[str, str], headers: dict[str, str], status: int, words: str
    ) -> None:
        async with gateway.running(**settings):
            before = gateway.path.read_text()
            answer = await gateway.client.post("/admin/swap", json=SWAP, headers=headers)
            assert list(gateway.app.state.gateway.registry.steps) == []
        assert (answer.status_code, words in answer.text) == (status, True), answer.text
        assert gateway.path.read_text() == before

    @pytest.mark.parametrize(
        ("settings", "headers"),
        [
            ({}, {}),
            ({}, {"Sec-Fetch-Site": "same-origin", "Host": "localhost:8000"}),
            ({}, {"Host": "[::1]:8000"}),
            ({"admin_token": "admin-secret", "api_keys": "key"}, TOKEN),
            ({"admin_token": "admin-secret"}, TOKEN | {"Host": "gateway.example"}),
        ],
    )
    async def test_administrators_may(self, gateway: LiveGateway, settings: dict[str, str], headers: dict[str, str]) -> None:
        async with gateway.running(**settings):
            answer = await gateway.client.post("/admin/swap", json=SWAP, headers=headers)
        assert answer.status_code == 200, answer.text

    async def test_without_a_token_nobody_from_elsewhere_though_everybody_may_ask_for_pictures(
        self, gateway: LiveGateway
    ) -> None:
        async with gateway.running(insecure=True), caller_of(gateway.app, address="10.0.0.7") as caller:
            assert (await caller.post("/generate", json={"prompt": "x"})).status_code == 200
            assert (await caller.post("/admin/swap", json=SWAP)).status_code == 403

    async def test_without_a_token_not_by_an_address_that_others_can_reach(self, gateway: LiveGateway) -> None:
        async with gateway.running(insecure=True), caller_of(gateway.app, name="10.0.0.1") as caller:
            assert (await caller.post("/admin/swap", json=SWAP)).status_code == 403

    async def test_with_the_token_from_anywhere(self, gateway: LiveGateway) -> None:
        async with gateway.running(admin_token="admin-secret"), caller_of(gateway.app, address="10.0.0.7") as caller:
            assert (await caller.post("/admin/swap", json=SWAP, headers=TOKEN)).status_code == 200


class TestBody:
    @pytest.mark.parametrize(
        ("body", "status", "param", "words"),
        [
            ([], 400, None, "must be a JSON object"),
            ({}, 422, "stage", "stage must be one of text_encoder, diffusion, decoder, image_encoder"),
            ({"stage": "vae", "to": [at(NEXT)]}, 422, "stage", "stage must be one of"),
            ({"stage": "diffusion"}, 422, "to", "say where the new stage is"),
            (SWAP | {"rollback": True}, 422, "to", "not both"),
            (SWAP | {"rollback": "yes"}, 422, "rollback", "true or false"),
            (SWAP | {"to": []}, 422, "to", "1 to 64 addresses"),
            (SWAP | {"to": at(NEXT)}, 422, "to", "1 to 64 addresses"),
            (SWAP | {"to": [3]}, 422, "to", "1 to 64 addresses"),
            (SWAP | {"to": ["b:8002"]}, 422, "to", '"b:8002" is no address'),
            (SWAP | {"to": ["file:///etc/passwd"]}, 422, "to", "is no address"),
            (SWAP | {"to": [at(NEXT), at(NEXT)]}, 422, "to", "twice"),
            (SWAP | {"model": 3}, 422, "model", "name of a model"),
            (SWAP | {"force": True}, 422, "force", "there is no field"),
        ],
    )
    async def test_what_is_impossible(self, gateway: LiveGateway, body: Any, status: int, param: str | None, words: str) -> None:
        async with gateway.running():
            answer = await gateway.client.post("/admin/swap", json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], words in error["message"]) == (status, param, True), answer.text

    async def test_json_only(self, gateway: LiveGateway) -> None:
        """A page of another site can have a browser post text and forms without asking here first, but not JSON."""
        async with gateway.running():
            for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
                headers = {"Content-Type": kind} if kind else {}
                answer = await gateway.client.post("/admin/swap", content=json.dumps(SWAP), headers=headers)
                assert answer.status_code == 415
            too_long = await gateway.client.post("/admin/swap", json=SWAP | {"model": "x" * 2**16})
        assert too_long.status_code == 413

    async def test_a_password_of_an_address_is_not_told(self, gateway: LiveGateway) -> None:
        async with gateway.running():
            to = at(NEXT).replace("//", "//me:secret@")
            answer = await gateway.swap(stage="diffusion", to=[to])
            told = await gateway.client.get("/models")
        assert answer.json()["now"] == [at(NEXT)]
        assert "secret" not in answer.text + told.text
        assert "me:secret@" in gateway.path.read_text()


async def test_without_a_topology_file_it_says_what_to_set() -> None:
    async with Stages().client() as client:
        answer = await client.post("/admin/swap", json=SWAP)
    assert (answer.status_code, "TRIPTYCH_TOPOLOGY" in answer.json()["error"]["message"]) == (409, True)


async def test_the_schema_describes_it() -> None:
    async with Stages().client() as client:
        operation = (await client.get("/openapi.json")).json()["paths"]["/admin/swap"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == {"stage", "to", "model", "rollback"}
    assert {"401", "403", "409", "503"} <= set(operation["responses"])
