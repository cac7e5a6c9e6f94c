"""The promise of the split: three services composed give the same bytes as all stages in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import httpx2
import pytest

from tests.end_to_end.real_services import TinyModel, addresses, four_tiny_services, running, tiny_all_in_one
from tests.gateway.running import client_of
from triptych.contract import Denoised, DenoiseEvent, DenoiseRequest, Diffusion, DiffusionIdentity
from triptych.gateway.app import create_app
from triptych.gateway.settings import GatewaySettings
from triptych.gateway.topology import remote_models
from triptych.pipeline import Pipeline
from triptych.remote import make_client

pytestmark = pytest.mark.timeout(600)

SEEDS = (0, 1, 7, 2**32 - 1, 2**64 - 1)
SAMPLERS = ("ddim", "euler_ancestral", "dpm++_2m")

Pictures = Mapping[tuple[str, int], bytes]


@dataclass(frozen=True)
class Topologies:
    """The same model twice: behind a gateway and three services, and in one process."""

    composed: str
    together: str
    stages: Mapping[str, str]


@pytest.fixture(scope="module")
def topologies(tiny_model: TinyModel) -> Iterator[Topologies]:
    services, alone = four_tiny_services(tiny_model), tiny_all_in_one(tiny_model)
    # One after the other: what the first compiles the others find on disk.
    with running([alone]), running(services):
        yield Topologies(services[-1].url, alone.url, addresses(services[:-1]))


async def paint_all(client: httpx2.AsyncClient) -> Pictures:
    """A picture for each sampler and seed, as the bytes of a PNG."""
    return {(sampler, seed): await paint(client, sampler, seed) for sampler in SAMPLERS for seed in SEEDS}


async def paint(client: httpx2.AsyncClient, sampler: str, seed: int) -> bytes:
    body = {
        "prompt": "a red circle",
        "negative_prompt": "blue",
        "num_steps": 4,
        "sampler": sampler,
        "seed": seed,
        "model": "tiny",
    }
    response = await client.post("/generate", json=body, headers={"Accept": "image/png"})
    assert response.status_code == 200, response.text
    return response.content


def differing(one: Pictures, other: Pictures) -> Sequence[tuple[str, int]]:
    assert one.keys() == other.keys()
    return [key for key in one if one[key] != other[key]]


async def test_three_services_give_the_bytes_of_one_process(topologies: Topologies) -> None:
    async with (
        httpx2.AsyncClient(base_url=topologies.composed, timeout=100) as composed,
        httpx2.AsyncClient(base_url=topologies.together, timeout=100) as together,
    ):
        pictures, expected = await paint_all(composed), await paint_all(together)
    assert differing(pictures, expected) == []
    # All of them are pictures of their own: bytes that are always the same would agree too.
    assert len(set(pictures.values())) == len(SEEDS) * len(SAMPLERS)


async def test_requests_at_the_same_time_do_not_mix(topologies: Topologies) -> None:
    async with httpx2.AsyncClient(base_url=topologies.composed, timeout=100) as client:
        alone = [await paint(client, "ddim", seed) for seed in SEEDS]
        at_once = await asyncio.gather(*(paint(client, "ddim", seed) for seed in SEEDS))
    assert at_once == alone


class Nudged:
    """A diffusion stage that is wrong by a tenth in one number of one picture."""

    def __init__(self, stage: Diffusion, wrong: tuple[str, int]) -> None:
        self._stage = stage
        self._wrong = wrong

    async def identity(self) -> DiffusionIdentity:
        return await self._stage.identity()

    async def denoise(self, request: DenoiseRequest, *, deadline: float | None = None) -> AsyncIterator[DenoiseEvent]:
        async for event in self._stage.denoise(request, deadline=deadline):
            if isinstance(event, Denoised) and (request.sampler, int(request.seeds[0])) == self._wrong:
                latents = event.latents.copy()
                latents[0, 0, 0, 0] += 0.1
                event = Denoised(latents=latents)
            yield event


async def test_a_planted_difference_is_caught(topologies: Topologies) -> None:
    settings = GatewaySettings(**{f"{stage}_url": url for stage, url in topologies.stages.items()})
    async with make_client() as stages:
        ((name, right),) = remote_models(settings, stages).items()
        wrong = Pipeline(right.text_encoder, Nudged(right.diffusion, ("euler_ancestral", 7)), right.decoder)
        async with (
            client_of(create_app(settings, {name: wrong})) as composed,
            httpx2.AsyncClient(base_url=topologies.together, timeout=100) as together,
        ):
            found = differing(await paint_all(composed), await paint_all(together))
    assert found == [("euler_ancestral", 7)]


def test_both_have_the_same_weights_and_numerics(topologies: Topologies) -> None:
    """So that equal bytes say something about the split, and nothing about two models that are alike."""
    stages = [httpx2.get(f"{url}/models").json()["models"][0]["stages"] for url in (topologies.composed, topologies.together)]
    assert stages[0] == stages[1]
    assert stages[0]["diffusion"]["numerics"]["engine"] == "openvino"
