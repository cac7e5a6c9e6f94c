"""A gateway follows its topology file while it runs."""

from __future__ import annotations

import asyncio
import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from tests.fakes import FakeDecoder, FakeDiffusion, FakeImageEncoder, FakeTextEncoder, with_profile
from tests.gateway.panels import DECODER, DIFFUSION, NEXT, LiveGateway, Panels, at, diffusion, gateway, model_table, panels
from tests.gateway.running import until
from triptych.errors import StartError
from triptych.gateway import live_topology
from triptych.gateway.settings import GatewaySettings
from triptych.gateway.topology import local_gateway, remote_gateway
from triptych.gateway.topology_file import read_topology

__all__ = ["gateway", "panels"]


@pytest.fixture(autouse=True)
def watched_closely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_topology, "WATCH_SECONDS", 0.01)


def png(level: int) -> str:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (level,) * 3).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


class TestSeveralModels:
    async def test_two_models_share_their_ends(self, gateway: LiveGateway) -> None:
        gateway.path.write_text(model_table() + model_table(diffusion=NEXT))
        async with gateway.running():
            assert await gateway.made_by() == ("old", "old")
            assert await gateway.made_by(model="new") == ("new", "new")
            listed = (await gateway.told())["models"]
            first, second = gateway.app.state.gateway.registry
        assert [(model["name"], model["default"]) for model in listed] == [("old", True), ("new", False)]
        assert [model["abilities"]["inpainting"] for model in listed] == ["known_latents", "masked_image"]
        assert first.pipeline.decoder is second.pipeline.decoder
        assert first.idle_decoder is second.idle_decoder
        assert first.pipeline.diffusion is not second.pipeline.diffusion

    async def test_a_mask_goes_to_the_model_that_sees_masks(self, gateway: LiveGateway) -> None:
        gateway.path.write_text(model_table() + model_table(diffusion=NEXT))
        picture = {"image": png(90), "mask": png(255)}
        async with gateway.running():
            await gateway.told()
            assert await gateway.made_by(**picture) == ("new", "new")
            assert await gateway.made_by(image=png(90)) == ("old", "old")
            assert await gateway.made_by(**picture, model="old") == ("old", "old")

    async def test_a_model_of_its_own_name_says_which_stage_made_the_picture(self, gateway: LiveGateway) -> None:
        gateway.path.write_text(model_table("mine"))
        async with gateway.running():
            assert await gateway.made_by(model="mine") == ("mine", "old")

    async def test_stages_that_do_not_fit_are_refused_with_a_sentence_and_disturb_nobody(
        self, gateway: LiveGateway, panels: Panels
    ) -> None:
        panels.add(NEXT, diffusion("wide", context_width=1024))
        gateway.path.write_text(model_table() + model_table("wide", diffusion=NEXT))
        async with gateway.running():
            refused = await gateway.generate(model="wide")
            assert await gateway.made_by() == ("old", "old")
        assert refused.status_code == 503
        assert "context width 768" in refused.json()["error"]["message"]

    async def test_replicas_of_other_weights_make_no_model(self, gateway: LiveGateway) -> None:
        gateway.path.write_text(model_table().replace(f'"{at(DIFFUSION)}"', f'["{at(DIFFUSION)}", "{at(NEXT)}"]'))
        async with gateway.running():
            (model,) = (await gateway.told())["models"]
        assert not model["ready"]
        assert "are not alike" in model["problems"]["diffusion"]

    async def test_replicas_share_the_work(self, gateway: LiveGateway, panels: Panels) -> None:
        panels.add(NEXT, diffusion("old"))
        gateway.path.write_text(model_table().replace(f'"{at(DIFFUSION)}"', f'["{at(DIFFUSION)}", "{at(NEXT)}"]'))
        async with gateway.running():
            pictures = [(await gateway.generate()).json()["images"] for _ in range(4)]
        assert [len(panels.stages[port].asked) for port in (DIFFUSION, NEXT)] == [2, 2]
        assert all(picture == pictures[0] for picture in pictures)


class TestChanges:
    async def test_a_change_is_taken_up_and_the_old_model_finishes_what_it_has(
        self, gateway: LiveGateway, panels: Panels
    ) -> None:
        old = panels.stages[DIFFUSION]
        async with gateway.running():
            old.gate = asyncio.Event()
            under_way = asyncio.create_task(gateway.made_by())
            await old.arrivals.get()
            registry = gateway.app.state.gateway.registry
            gateway.path.write_text(model_table(diffusion=NEXT))
            await until(lambda: registry.retiring)

            assert await gateway.made_by() == ("new", "new")
            told = await gateway.told()
            assert [(each["name"], each["jobs"]) for each in told["retiring"]] == [("old", 1)]
            assert await gateway.steps() == [("taken_up", "new")]
            old.gate.set()
            assert await under_way == ("old", "old")
            assert (await gateway.told())["retiring"] == []
            assert await gateway.steps() == [("taken_up", "new"), ("let_go", "old")]
        assert at(NEXT) in told["steps"][0]["message"]

    async def test_models_that_did_not_change_keep_what_they_know(self, gateway: LiveGateway) -> None:
        gateway.path.write_text(model_table("kept") + model_table("changed"))
        async with gateway.running():
            registry = gateway.app.state.gateway.registry
            kept, changed = registry
            gateway.path.write_text(model_table("changed", diffusion=NEXT) + "# first now\n" + model_table("kept"))
            await until(lambda: next(iter(registry)).name == "changed")
            now = list(registry)
        assert now[1] is kept
        assert now[0] is not changed
        assert now[0].identities is not None, "it was asked before any request was"

    async def test_a_file_that_cannot_be_used_changes_nothing_and_is_told_once(self, gateway: LiveGateway) -> None:
        async with gateway.running():
            live = gateway.app.state.gateway.topology
            before = list(live.registry)
            gateway.path.write_text("[[models]]\n")
            await until(lambda: live.problem)
            for _ in range(3):
                await live.refresh()
            told = await gateway.told()
            assert "does not say where its text_encoder is" in told["topology_problem"]
            assert await gateway.steps() == [("not_taken_up", None)]
            assert await gateway.made_by() == ("old", "old")

            gateway.path.unlink()
            await until(lambda: "cannot be read" in str(live.problem))
            gateway.path.write_text(model_table())
            await until(lambda: live.problem is None)
            assert list(live.registry) == before
            assert (await gateway.told())["topology_problem"] is None

    async def test_a_comment_changes_no_model(self, gateway: LiveGateway) -> None:
        async with gateway.running():
            live = gateway.app.state.gateway.topology
            before = list(live.registry)
            gateway.path.write_text("# ours\n" + model_table())
            await until(lambda: live.text.startswith("# ours"))
            assert list(live.registry) == before
            assert await gateway.steps() == []


class TestStart:
    async def test_a_file_that_is_not_there_is_written_from_the_addresses(self, gateway: LiveGateway) -> None:
        gateway.path.unlink()
        addresses = {"text_encoder_url": at(8001), "diffusion_url": at(NEXT), "decoder_url": at(DECODER), "model_name": "mine"}
        async with gateway.running(**addresses):
            assert await gateway.made_by() == ("mine", "new")
        _, (entry,) = read_topology(gateway.path)
        assert (entry.name, entry.diffusion, entry.image_encoder) == ("mine", (at(NEXT),), ())

    async def test_a_file_goes_before_the_addresses(self, gateway: LiveGateway) -> None:
        async with gateway.running(diffusion_url=at(NEXT)):
            assert await gateway.made_by() == ("old", "old")

    def test_what_is_wrong_with_the_file_is_said_at_the_start(self, gateway: LiveGateway) -> None:
        gateway.path.write_text("models = []")
        with pytest.raises(StartError, match=r"topology\.toml names no model"):
            remote_gateway(GatewaySettings(topology=gateway.path))

    def test_a_file_that_could_not_be_read_again_is_not_written(self, tmp_path: Path) -> None:
        with pytest.raises(StartError, match=r"diffusion of model 1 of the topology .* must be like"):
            remote_gateway(GatewaySettings(topology=tmp_path / "t.toml", diffusion_url="diffusion:8002"))
        assert list(tmp_path.iterdir()) == []

    def test_all_in_one_has_its_own_stages(self, tmp_path: Path) -> None:
        stages = (FakeTextEncoder(), with_profile(FakeDiffusion()), FakeDecoder(), FakeImageEncoder())
        with pytest.raises(StartError, match="TRIPTYCH_TOPOLOGY says where stages are, and all_in_one has its own"):
            local_gateway(GatewaySettings(topology=tmp_path / "t.toml"), *stages)
