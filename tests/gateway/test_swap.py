"""A stage is exchanged while requests are flowing; or refused, and nothing has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes import FakeDecoder, FakeImageEncoder, FakeTextEncoder, with_profile
from tests.gateway.panels import (
    DECODER,
    DIFFUSION,
    NEXT,
    LiveGateway,
    Panels,
    at,
    diffusion,
    gateway,
    model_table,
    panels,
)
from triptych.errors import InvalidValue, QueueFull, StageFailed
from triptych.gateway.topology_file import read_topology

__all__ = ["gateway", "panels"]

THIRD = 8022
SWAP = {"stage": "diffusion", "to": [at(NEXT)]}


def entry_of(gateway: LiveGateway, place: int = 0):
    return read_topology(gateway.path)[1][place]


class TestSwap:
    async def test_new_requests_go_to_the_new_stage(self, gateway: LiveGateway, panels: Panels) -> None:
        async with gateway.running():
            assert await gateway.made_by() == ("old", "old")
            answer = await gateway.swap(**SWAP)
            assert answer.status_code == 200, answer.text
            assert answer.json() == {"model": "new", "stage": "diffusion", "before": [at(DIFFUSION)], "now": [at(NEXT)]}
            assert await gateway.made_by() == ("new", "new")
            assert await gateway.steps() == [("checked", "new"), ("swapped", "new"), ("let_go", "old")]
            assert (await gateway.told())["steps"][1]["message"] == f"diffusion from {at(DIFFUSION)} to {at(NEXT)}"
        (trial, _) = panels.stages[NEXT].asked
        assert trial.num_steps == 1

    async def test_the_file_says_so_and_so_does_a_gateway_that_starts_later(self, gateway: LiveGateway) -> None:
        async with gateway.running():
            await gateway.swap(**SWAP)
        assert entry_of(gateway).diffusion == (at(NEXT),)
        assert entry_of(gateway).previous == {"diffusion": (at(DIFFUSION),)}
        async with gateway.running():
            assert await gateway.made_by() == ("new", "new")
            answer = await gateway.swap(stage="diffusion", rollback=True)
            assert (answer.status_code, answer.json()["model"]) == (200, "old")
            assert await gateway.made_by() == ("old", "old")
            assert [kind for kind, _ in await gateway.steps()] == ["checked", "rolled_back", "let_go"]
        assert entry_of(gateway).previous == {"diffusion": (at(NEXT),)}

    async def test_what_the_old_stage_has_it_finishes(self, gateway: LiveGateway, panels: Panels) -> None:
        old = panels.stages[DIFFUSION]
        old.gate = asyncio.Event()
        async with gateway.running():
            under_way = asyncio.create_task(gateway.made_by())
            await old.arrivals.get()
            await gateway.swap(**SWAP)
            assert [each["jobs"] for each in (await gateway.told())["retiring"]] == [1]
            assert await gateway.made_by() == ("new", "new")
            assert "let_go" not in [kind for kind, _ in await gateway.steps()]
            old.gate.set()
            assert await under_way == ("old", "old")
            assert (await gateway.steps())[-1] == ("let_go", "old")

    async def test_a_stream_counts_until_its_last_event(self, gateway: LiveGateway, panels: Panels) -> None:
        old = panels.stages[DIFFUSION]
        old.gate = asyncio.Event()
        async with gateway.running():
            headers = {"Accept": "text/event-stream"}
            body = {"prompt": "x"}
            under_way = asyncio.create_task(gateway.client.post("/generate", json=body, headers=headers))
            await old.arrivals.get()
            await gateway.swap(**SWAP)
            assert [each["jobs"] for each in (await gateway.told())["retiring"]] == [1]
            old.gate.set()
            assert "event: completed" in (await under_way).text
            assert (await gateway.told())["retiring"] == []

    async def test_a_model_by_its_name_and_no_other(self, gateway: LiveGateway, panels: Panels) -> None:
        panels.add(THIRD, diffusion("third"))
        gateway.path.write_text(model_table() + "# two\n" + model_table("second", diffusion=NEXT))
        async with gateway.running():
            answer = await gateway.swap(stage="diffusion", to=[at(THIRD)], model="second")
            assert answer.json()["model"] == "second"
            assert await gateway.made_by(model="second") == ("second", "third")
            assert await gateway.made_by() == ("old", "old")
        assert entry_of(gateway, 1).diffusion == (at(THIRD),)
        assert gateway.path.read_text().startswith(model_table() + "# two\n")

    async def test_each_of_several_replicas_makes_a_picture_first(self, gateway: LiveGateway, panels: Panels) -> None:
        panels.add(THIRD, diffusion("new", takes_masked_image=True))
        async with gateway.running():
            answer = await gateway.swap(stage="diffusion", to=[at(NEXT), at(THIRD)])
            assert answer.status_code == 200, answer.text
            assert [len(panels.stages[port].asked) for port in (NEXT, THIRD)] == [1, 1]
            assert await gateway.made_by() == ("new", "new")

    @pytest.mark.parametrize("stage", ["text_encoder", "decoder"])
    async def test_the_ends_are_swapped_too(self, gateway: LiveGateway, panels: Panels, stage: str) -> None:
        fresh = panels.add(THIRD, *((FakeTextEncoder(),) if stage == "text_encoder" else (FakeDecoder(), FakeImageEncoder())))
        async with gateway.running():
            assert (await gateway.swap(stage=stage, to=[at(THIRD)])).status_code == 200
            await gateway.generate()
        assert entry_of(gateway).at(stage) == (at(THIRD),)
        # A decoder is tried with a changed picture too, since its service has the image encoder.
        assert len(fresh.asked) == (2 if stage == "text_encoder" else 3)

    async def test_the_image_encoder_gets_a_place_of_its_own_and_goes_back(self, gateway: LiveGateway, panels: Panels) -> None:
        encoder = panels.add(THIRD, FakeImageEncoder())
        async with gateway.running():
            answer = await gateway.swap(stage="image_encoder", to=[at(THIRD)])
            assert (answer.status_code, answer.json()["before"]) == (200, [])
            assert len(encoder.asked) == 1
            assert entry_of(gateway).image_encoder == (at(THIRD),)
            answer = await gateway.swap(stage="image_encoder", rollback=True)
            assert (answer.status_code, answer.json()["now"]) == (200, [])
            assert entry_of(gateway).image_encoder == ()
            assert "from http://stage:8022 to its decoder's place" in (await gateway.told())["steps"][-2]["message"]

    async def test_a_second_gateway_on_the_same_file_sees_it(self, gateway: LiveGateway, panels: Panels) -> None:
        other = LiveGateway(gateway.path, panels)
        async with gateway.running(), other.running():
            await gateway.swap(**SWAP)
            await other.app.state.gateway.topology.refresh()
            assert await other.made_by() == ("new", "new")


def wide(panels: Panels) -> None:
    panels.add(NEXT, diffusion("wide", context_width=1024))


def still_starting(panels: Panels) -> None:
    panels.stages[NEXT].started = False


def gone(panels: Panels) -> None:
    panels.stages[NEXT] = None


def dies_when_it_is_tried(panels: Panels) -> None:
    panels.stages[NEXT].failure = StageFailed("the network is gone", stage="diffusion")


def breaks_when_it_is_tried(panels: Panels) -> None:
    panels.stages[NEXT].failure = ZeroDivisionError("secret")


def refuses_to_try(panels: Panels) -> None:
    panels.stages[NEXT].failure = InvalidValue("not with me", param="num_steps")


def never_ends(panels: Panels) -> None:
    panels.stages[NEXT].gate = asyncio.Event()


def the_decoder_is_gone(panels: Panels) -> None:
    panels.stages[DECODER].started = False


def the_decoder_is_full(panels: Panels) -> None:
    panels.stages[DECODER].failure = QueueFull("full", retry_after_seconds=1)


def anything(panels: Panels) -> None:
    pass


ROLLBACK = {"stage": "diffusion", "rollback": True}


class TestRefusals:
    @pytest.mark.parametrize(
        ("spoil", "body", "status", "words"),
        [
            (wide, SWAP, 409, "'fake' has context width 768, the diffusion model 'wide' wants 1024"),
            (still_starting, SWAP, 503, "the diffusion stage is still starting"),
            (gone, SWAP, 503, f"the diffusion stage at {at(NEXT)} cannot be reached"),
            (dies_when_it_is_tried, SWAP, 503, "it made no picture: "),
            (breaks_when_it_is_tried, SWAP, 503, "it made no picture: "),
            (refuses_to_try, SWAP, 409, "it made no picture: not with me"),
            (never_ends, SWAP, 503, "it made no picture: the diffusion stage did not answer"),
            (the_decoder_is_full, SWAP, 429, "full"),
            (anything, SWAP | {"to": [at(DIFFUSION)]}, 409, f"the diffusion is at {at(DIFFUSION)} already"),
            (anything, SWAP | {"to": [at(NEXT), at(DIFFUSION)]}, 503, "are not alike"),
            (anything, SWAP | {"to": [at(NEXT), at(THIRD)]}, 503, "cannot be reached"),
            (anything, SWAP | {"model": "nobody"}, 404, "there is no model 'nobody' here; there is old, second"),
            (anything, SWAP | {"to": [at(THIRD + 1)]}, 503, "cannot be reached"),
            (anything, SWAP | {"model": "old", "to": [at(THIRD + 2)]}, 409, "there is a model 'second' already"),
            (anything, ROLLBACK, 409, "there is nothing to roll back to"),
            (anything, {"stage": "text_encoder", "to": [at(NEXT)]}, 503, "text_encoder"),
            (anything, {"stage": "image_encoder", "to": [at(THIRD)]}, 503, "cannot be reached"),
            (anything, {"stage": "image_encoder", "to": [at(THIRD + 3)]}, 409, "the image encoder 'fake' has latent space other"),
        ],
    )
    async def test_the_file_and_the_traffic_are_as_they_were(
        self,
        gateway: LiveGateway,
        panels: Panels,
        spoil: Callable[[Panels], None],
        body: dict[str, Any],
        status: int,
        words: str,
    ) -> None:
        panels.add(THIRD + 2, diffusion("second"))
        panels.add(THIRD + 3, with_profile(FakeImageEncoder(), latent_space="other"))
        gateway.path.write_text(model_table() + model_table("second"))
        before = gateway.path.read_bytes(), gateway.path.stat().st_ino
        async with gateway.running(swap_timeout_seconds=0.3):
            models = list(gateway.app.state.gateway.registry)
            await gateway.made_by()
            spoil(panels)
            answer = await gateway.swap(**body)
            panels.stages[DECODER].failure = None
            assert list(gateway.app.state.gateway.registry) == models
            assert await gateway.made_by() == ("old", "old")
            steps = (await gateway.told())["steps"]
        assert (answer.status_code, words in answer.json()["error"]["message"]) == (status, True), answer.text
        assert (gateway.path.read_bytes(), gateway.path.stat().st_ino) == before
        assert [step["step"] for step in steps] == ["refused"]
        assert steps[0]["message"] == answer.json()["error"]["message"] + "; nothing was changed"
        assert "secret" not in answer.text

    async def test_another_stage_that_is_not_there_is_named(self, gateway: LiveGateway, panels: Panels) -> None:
        async with gateway.running():
            the_decoder_is_gone(panels)
            answer = await gateway.swap(**SWAP)
        assert (answer.status_code, answer.json()["error"]["param"]) == (503, "decoder")

    async def test_two_at_once(self, gateway: LiveGateway, panels: Panels) -> None:
        panels.stages[NEXT].gate = asyncio.Event()
        async with gateway.running():
            first = asyncio.create_task(gateway.swap(**SWAP))
            await panels.stages[NEXT].arrivals.get()
            second = await gateway.swap(**SWAP)
            panels.stages[NEXT].gate.set()
            assert (await first).status_code == 200
        assert (second.status_code, "another swap is at work" in second.text) == (409, True)

    async def test_a_file_that_changes_while_the_stage_is_tried(self, gateway: LiveGateway, panels: Panels) -> None:
        panels.stages[NEXT].gate = asyncio.Event()
        async with gateway.running():
            swapping = asyncio.create_task(gateway.swap(**SWAP))
            await panels.stages[NEXT].arrivals.get()
            gateway.path.write_text("# somebody was here\n" + model_table())
            await gateway.app.state.gateway.topology.refresh()
            panels.stages[NEXT].gate.set()
            answer = await swapping
            assert await gateway.made_by() == ("old", "old")
        assert (answer.status_code, "changed by somebody else" in answer.text) == (409, True)
        assert gateway.path.read_text().startswith("# somebody was here")

    async def test_a_file_that_is_broken_is_mended_first(self, gateway: LiveGateway) -> None:
        async with gateway.running():
            gateway.path.write_text("models = 3")
            answer = await gateway.swap(**SWAP)
        assert (answer.status_code, "must be mended first: the topology" in answer.text) == (409, True)
        assert gateway.path.read_text() == "models = 3"

    async def test_a_file_of_a_moment_ago_is_taken_up_first(self, gateway: LiveGateway) -> None:
        async with gateway.running():
            gateway.path.write_text("# mine\n" + model_table("mine"))
            assert (await gateway.swap(**SWAP, model="mine")).status_code == 200
            assert await gateway.made_by(model="mine") == ("mine", "new")
        assert gateway.path.read_text().startswith("# mine\n")
