from __future__ import annotations

import asyncio

import pytest

from tests.fakes import FakeDiffusion, FakeImageEncoder, with_profile
from tests.gateway.running import Stages, client_of
from triptych.contract import DiffusionIdentity, Task
from triptych.gateway.app import create_app
from triptych.gateway.settings import GatewaySettings


async def test_a_model_says_what_it_can_do_and_whose_stages_it_has() -> None:
    async with Stages().client() as client:
        (model,) = (await client.get("/models")).json()["models"]
    assert model["name"] == "fake"
    assert model["default"] is True
    assert model["ready"] is True
    assert model["problems"] == {}
    assert model["abilities"] == {
        "tasks": ["text_to_image"],
        "inpainting": None,
        "sizes": [[64, 64], [96, 64], [64, 96]],
        "samplers": ["ddim", "euler"],
        "default_num_steps": 4,
        "default_guidance_scale": 7.5,
        "context_length": 77,
        "max_prompt_chunks": 1,
        "takes_cache_interval": False,
    }
    assert {name: stage["weights_digest"][0] for name, stage in model["stages"].items()} == {
        "text_encoder": "1",
        "diffusion": "2",
        "decoder": "3",
    }
    assert model["stages"]["decoder"]["numerics"]["engine"] == "fake"


async def test_a_gateway_where_nothing_happened_tells_no_steps() -> None:
    async with Stages().client() as client:
        answer = (await client.get("/models")).json()
    assert {name: answer[name] for name in ("retiring", "steps", "topology_problem")} == {
        "retiring": [],
        "steps": [],
        "topology_problem": None,
    }


async def test_whether_features_are_reused() -> None:
    async with Stages(diffusion=with_profile(FakeDiffusion(), takes_cache_interval=True)).client() as client:
        (model,) = (await client.get("/models")).json()["models"]
    assert model["abilities"]["takes_cache_interval"] is True


@pytest.mark.parametrize(("takes_masked_image", "way"), [(True, "masked_image"), (False, "known_latents")])
async def test_how_a_model_inpaints(takes_masked_image: bool, way: str) -> None:
    diffusion = with_profile(FakeDiffusion(), tasks=tuple(Task), takes_masked_image=takes_masked_image)
    async with Stages(diffusion=diffusion, image_encoder=FakeImageEncoder()).client() as client:
        (model,) = (await client.get("/models")).json()["models"]
    assert model["abilities"]["inpainting"] == way


async def test_without_an_image_encoder_it_does_not_inpaint() -> None:
    async with Stages(diffusion=with_profile(FakeDiffusion(), tasks=tuple(Task))).client() as client:
        (model,) = (await client.get("/models")).json()["models"]
    assert model["abilities"]["inpainting"] is None


async def test_a_model_that_is_not_ready_says_why() -> None:
    stages = Stages()
    stages.decoder.started = False
    async with stages.client() as client:
        (model,) = (await client.get("/models")).json()["models"]
    assert model == {
        "name": None,
        "default": True,
        "ready": False,
        "problems": {"decoder": "the decoder stage is still starting"},
        "abilities": None,
        "stages": None,
    }


async def test_models_that_are_not_ready_are_asked_at_the_same_time() -> None:
    """Each may take seconds to answer, or not to."""
    together = asyncio.Barrier(2)

    class Waiting(FakeDiffusion):
        async def identity(self) -> DiffusionIdentity:
            await together.wait()
            return await super().identity()

    pipelines = {name: Stages(diffusion=Waiting()).pipeline for name in ("one", "two")}
    async with client_of(create_app(GatewaySettings(), pipelines)) as client:
        models = (await client.get("/models")).json()["models"]
    assert [model["ready"] for model in models] == [True, True]


async def test_each_sampler_names_the_models_that_take_it() -> None:
    other = Stages(diffusion=with_profile(FakeDiffusion(), samplers=("euler", "unipc")))
    app = create_app(GatewaySettings(), {"one": Stages().pipeline, "two": other.pipeline})
    async with client_of(app) as client:
        listed = (await client.get("/samplers")).json()["samplers"]
        models = (await client.get("/models")).json()["models"]
    assert listed == [
        {"name": "ddim", "models": ["one"]},
        {"name": "euler", "models": ["one", "two"]},
        {"name": "unipc", "models": ["two"]},
    ]
    assert [(model["name"], model["default"]) for model in models] == [("one", True), ("two", False)]


class TestHealth:
    async def test_a_gateway_without_stages_lives_and_is_not_ready(self) -> None:
        stages = Stages()
        stages.diffusion.started = False
        async with stages.client() as client:
            live, ready = await client.get("/health/live"), await client.get("/health/ready")
        assert (live.status_code, live.json()) == (200, {"status": "live"})
        assert ready.status_code == 503
        assert ready.json()["error"] == {
            "message": "the diffusion stage is still starting",
            "type": "stage_not_ready_error",
            "param": "diffusion",
            "code": "stage_not_ready",
        }
        assert ready.json()["models"][0]["problems"] == {"diffusion": "the diffusion stage is still starting"}

    @pytest.mark.parametrize("stage", ["text_encoder", "diffusion", "decoder"])
    async def test_a_stage_that_goes_and_comes_back_is_seen_at_once(self, stage: str) -> None:
        stages = Stages()
        seen = []
        async with stages.client() as client:
            for started in (True, False, True):
                getattr(stages, stage).started = started
                seen.append((await client.get("/health/ready")).status_code)
        assert seen == [200, 503, 200]

    async def test_stages_that_do_not_fit_say_so(self) -> None:
        stages = Stages(diffusion=with_profile(FakeDiffusion(), context_width=1024))
        async with stages.client() as client:
            ready = await client.get("/health/ready")
        assert ready.status_code == 503
        assert "context width 768" in ready.json()["error"]["message"]
        assert "1024" in ready.json()["models"][0]["problems"]["stages"]

    async def test_one_model_of_two_is_enough(self) -> None:
        broken = Stages()
        broken.decoder.started = False
        app = create_app(GatewaySettings(stage_wait_seconds=0), {"broken": broken.pipeline, "good": Stages().pipeline})
        async with client_of(app) as client:
            ready = await client.get("/health/ready")
            answers = [await client.post("/generate", json={"prompt": "x", "model": name}) for name in ("good", "broken")]
        assert ready.status_code == 200
        assert [(model["name"], model["ready"]) for model in ready.json()["models"]] == [("broken", False), ("good", True)]
        assert [answer.status_code for answer in answers] == [200, 503]
