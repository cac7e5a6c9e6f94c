"""`GET /replicas` and the same in `GET /metrics`."""

from __future__ import annotations

import httpx2

from tests.fakes import FakeTextEncoder
from tests.gateway.panels import DIFFUSION, NEXT, LiveGateway, Panels, at, diffusion, gateway, panels
from tests.gateway.running import Stages
from triptych.errors import StageFailed

__all__ = ["gateway", "panels"]


async def stage_of(client: httpx2.AsyncClient, name: str) -> list[dict]:
    stages = (await client.get("/replicas")).json()["stages"]
    return next(stage["replicas"] for stage in stages if stage["stage"] == name)


def two_diffusions(gateway: LiveGateway, panels: Panels) -> None:
    panels.add(NEXT, diffusion("old"))
    gateway.path.write_text(gateway.path.read_text().replace(f'"{at(DIFFUSION)}"', f'["{at(DIFFUSION)}", "{at(NEXT)}"]'))


async def test_each_replica_and_how_it_is(gateway: LiveGateway, panels: Panels) -> None:
    two_diffusions(gateway, panels)
    async with gateway.running():
        assert (await gateway.generate()).status_code == 200
        stages = (await gateway.client.get("/replicas")).json()["stages"]
        assert [(stage["model"], stage["stage"], len(stage["replicas"])) for stage in stages] == [
            ("old", "text_encoder", 1),
            ("old", "diffusion", 2),
            ("old", "decoder", 1),
            ("old", "image_encoder", 1),
        ]
        ready = {"state": "ready", "evaluations_outstanding": 0, "evaluations_elsewhere": 0, "failures": 0, "problem": None}
        assert stages[1]["replicas"] == [{"address": at(port), **ready} for port in (DIFFUSION, NEXT)]


async def test_one_that_is_missing_or_fails_is_seen_in_both(gateway: LiveGateway, panels: Panels) -> None:
    two_diffusions(gateway, panels)
    async with gateway.running(context_cache_bytes=0):
        assert (await gateway.generate()).status_code == 200
        panels.stages[DIFFUSION].failure = StageFailed("computed NaN", stage="diffusion")
        panels.stages[NEXT] = None
        assert (await gateway.generate()).status_code == 503, "whose turn it was could not be reached"
        failing, missing = await stage_of(gateway.client, "diffusion")
        assert (failing["state"], failing["failures"]) == ("ready", 1)
        assert (missing["state"], missing["failures"]) == ("missing", 1)
        assert "cannot be reached" in missing["problem"]
        text = (await gateway.client.get("/metrics")).text
        assert f'triptych_replica_state{{address="{at(NEXT)}",stage="diffusion",state="missing"}} 1.0' in text
        assert f'triptych_replica_failures_total{{address="{at(DIFFUSION)}",stage="diffusion"}} 1.0' in text
        assert "triptych_evaluations_total 8.0" in text, "four guided steps"


async def test_contexts_are_counted(gateway: LiveGateway) -> None:
    async with gateway.running():
        for prompt in ("a", "b"):
            await gateway.generate(prompt=prompt)
        text = (await gateway.client.get("/metrics")).text
        assert 'triptych_contexts_total{outcome="kept"} 1.0' in text
        assert 'triptych_contexts_total{outcome="made"} 3.0' in text


async def test_the_unconditional_context_is_asked_for_once(gateway: LiveGateway, panels: Panels) -> None:
    stage = panels.stages[8001]
    assert isinstance(stage, FakeTextEncoder)
    async with gateway.running():
        for prompt in ("a", "b"):
            await gateway.generate(prompt=prompt)
    assert [request.prompts for request in stage.asked] == [("a", ""), ("b",)]


async def test_stages_in_the_gateways_own_process_are_no_replicas() -> None:
    async with Stages().client() as client:
        assert (await client.get("/replicas")).json() == {"stages": []}


async def test_not_for_everybody() -> None:
    async with Stages().client(api_keys="secret") as client:
        assert (await client.get("/replicas")).status_code == 401
