"""Prompts of several chunks through real processes: split or together, in company, cut and resumed, the same bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import httpx2
import numpy as np
import pytest

from tests.end_to_end.real_services import TinyModel, addresses, four_tiny_services, running, tiny_all_in_one
from tests.end_to_end.test_resuming import cut_at, result_of
from tests.tiny_models import CONTEXT_LENGTH
from triptych.cli.processes import Service, free_ports
from triptych.cli.topology import serve_command
from triptych.contract import DenoiseRequest, EncodeRequest
from triptych.remote import RemoteDiffusion, RemoteTextEncoder, make_client

pytestmark = pytest.mark.timeout(600)

CHUNKS = 2
PROMPTS = {
    "short": "a red circle",
    "one token too long": "a red circle on a white star " * 2 + "on",
    "long": "a red circle on a white star " * 4,
}
SAMPLERS = ("ddim", "euler_ancestral")


@dataclass(frozen=True)
class Topologies:
    """One model, for prompts of up to two chunks: behind a gateway and three services, in one process, and another replica."""

    composed: str
    together: str
    text_encoder: str
    diffusion: str
    other_diffusion: str


def for_long_prompts(service: Service) -> Service:
    return replace(service, environment={**service.environment, "TRIPTYCH_MAX_PROMPT_CHUNKS": str(CHUNKS)})


@pytest.fixture(scope="module")
def topologies(tiny_model: TinyModel) -> Iterator[Topologies]:
    services = tuple(map(for_long_prompts, four_tiny_services(tiny_model)))
    alone = for_long_prompts(tiny_all_in_one(tiny_model))
    (port,) = free_ports(1)
    command = serve_command("diffusion", port)
    replica = Service(name="diffusion", port=port, command=command, ready_path="/v2/health/ready")
    other = for_long_prompts(tiny_model.served_by(replica))
    with running([alone]), running(services), running([other]):
        urls = addresses(services)
        yield Topologies(services[-1].url, alone.url, urls["text_encoder"], urls["diffusion"], other.url)


async def paint(client: httpx2.AsyncClient, prompt: str, sampler: str) -> bytes:
    body = {"prompt": prompt, "negative_prompt": "blue", "num_steps": 4, "sampler": sampler, "seed": 7, "long_prompt": True}
    response = await client.post("/generate", json=body, headers={"Accept": "image/png"})
    assert response.status_code == 200, response.text
    return response.content


def cases() -> list[tuple[str, str]]:
    return [(prompt, sampler) for prompt in PROMPTS.values() for sampler in SAMPLERS]


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=url, timeout=100) as client:
        yield client


async def test_three_services_give_the_bytes_of_one_process_in_any_company(topologies: Topologies) -> None:
    async with client_of(topologies.composed) as composed, client_of(topologies.together) as together:
        expected = [await paint(together, *case) for case in cases()]
        one_by_one = [await paint(composed, *case) for case in cases()]
        at_once = await asyncio.gather(*(paint(composed, *case) for case in cases()))
    assert one_by_one == expected
    assert at_once == expected
    assert len(set(expected)) == len(cases())


async def test_what_is_too_long_is_refused_with_what_to_do(topologies: Topologies) -> None:
    async with client_of(topologies.composed) as client:
        for long_prompt, sentence in (
            (False, "at most 14 fit; shorten it, or send truncate=true or long_prompt=true"),
            (True, "at most 28 fit; shorten it or send truncate=true; it fits when the text encoder and the diffusion stage"),
        ):
            words = 15 + 14 * long_prompt
            response = await client.post("/generate", json={"prompt": "red " * words, "long_prompt": long_prompt})
            assert response.status_code == 422
            assert f"the prompt has {words} tokens, {sentence}" in response.json()["error"]["message"]
        (model,) = (await client.get("/models")).json()["models"]
    assert model["abilities"]["max_prompt_chunks"] == CHUNKS


async def test_a_long_prompt_is_cut_in_one_process_and_goes_on_in_another(topologies: Topologies) -> None:
    async with make_client() as client:
        text_encoder = RemoteTextEncoder(topologies.text_encoder, client=client)
        one, other = (RemoteDiffusion(url, client=client) for url in (topologies.diffusion, topologies.other_diffusion))
        prompts = (PROMPTS["long"], "blue")
        context = (await text_encoder.encode(EncodeRequest(prompts=prompts, long_prompt=True))).context
        assert context.shape[:2] == (2, CHUNKS * CONTEXT_LENGTH)
        request = DenoiseRequest(
            context=context[:1],
            unconditional_context=context[1:],
            seeds=np.array([7, 8], np.uint64),
            width=64,
            height=32,
            sampler="euler_ancestral",
            num_steps=6,
            guidance_scale=3.0,
        )
        state = await cut_at(one, request, 3)
        resumed = await result_of(other, replace(request, resume=state))
        assert resumed == await result_of(one, request)
        shorter = replace(request, context=context[:1, :CONTEXT_LENGTH], unconditional_context=context[1:, :CONTEXT_LENGTH])
        assert resumed != await result_of(one, shorter)
