"""`long_prompt` from the body of a request to the stages, and back into the picture."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from PIL import Image

from tests.fakes import FakeDiffusion, FakeTextEncoder, with_profile
from tests.gateway.running import Stages
from triptych.contract import IMAGE_TEXT_KEYWORD

LONG = " ".join(f"word{number}" for number in range(100))


def stages_of(text_encoder: int = 3, diffusion: int = 3) -> Stages:
    """Fakes, in which a word is a token and 77 of them a chunk, that take so many chunks."""
    return Stages(
        text_encoder=with_profile(FakeTextEncoder(), max_prompt_chunks=text_encoder),
        diffusion=with_profile(FakeDiffusion(), max_prompt_chunks=diffusion),
    )


async def generate(stages: Stages, **body: Any) -> Any:
    async with stages.client() as client:
        return await client.post("/generate", json={"seed": 1, **body})


async def test_the_prompt_and_the_negative_prompt_have_equally_many_chunks() -> None:
    stages = stages_of()
    response = await generate(stages, prompt=LONG, negative_prompt="blue", long_prompt=True)
    assert response.status_code == 200
    assert response.json()["warnings"] == []
    assert response.json()["parameters"]["long_prompt"] is True
    (encoded,), (denoised,) = stages.text_encoder.asked, stages.diffusion.asked
    assert encoded.long_prompt
    assert denoised.context.shape == (1, 154, 768)
    assert denoised.unconditional_context is not None
    assert denoised.unconditional_context.shape == (1, 154, 768)


async def test_words_of_the_second_chunk_make_another_picture() -> None:
    pictures = {
        (await generate(stages_of(), prompt=prompt, long_prompt=True)).json()["images"][0]["b64_json"]
        for prompt in (LONG, LONG + " more", " ".join(LONG.split()[:77]))
    }
    assert len(pictures) == 3


async def test_a_short_prompt_gives_the_same_pixels_with_and_without() -> None:
    receipts = [
        (await generate(stages_of(), prompt="short", long_prompt=long_prompt)).json()["receipt"] for long_prompt in (True, False)
    ]
    assert receipts[0]["context"] == receipts[1]["context"]
    assert receipts[0]["pixels"] == receipts[1]["pixels"]


@pytest.mark.parametrize(
    ("body", "param", "sentence"),
    [
        ({"prompt": LONG}, "prompt", "the prompt has 100 tokens, the model takes 77"),
        ({"prompt": "a", "negative_prompt": LONG}, "negative_prompt", "the prompt has 100 tokens, the model takes 77"),
        ({"prompt": f"{LONG} {LONG} {LONG}", "long_prompt": True}, "prompt", "has 300 tokens, the model takes 231"),
        (
            {"prompt": LONG, "negative_prompt": f"{LONG} {LONG} {LONG}", "long_prompt": True},
            "negative_prompt",
            "has 300 tokens, the model takes 231",
        ),
    ],
)
async def test_a_prompt_that_is_too_long_is_named(body: dict[str, Any], param: str, sentence: str) -> None:
    response = await generate(stages_of(), **body)
    assert response.status_code == 422
    assert sentence in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == param


async def test_truncate_cuts_only_what_no_chunk_is_left_for() -> None:
    response = await generate(stages_of(), prompt=f"{LONG} {LONG} {LONG}", long_prompt=True, truncate=True)
    assert response.json()["warnings"] == ["the prompt was cut from 300 to 231 tokens"]


async def test_a_diffusion_stage_that_takes_fewer_chunks_says_what_to_set() -> None:
    stages = stages_of(text_encoder=3, diffusion=1)
    response = await generate(stages, prompt=LONG, long_prompt=True)
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["message"] == (
        "the context is 2 chunks of 77, the diffusion model takes 1; it takes more when it is started with "
        "TRIPTYCH_MAX_PROMPT_CHUNKS=2"
    )
    assert error["param"] == "prompt"
    assert (await generate(stages, prompt="short", long_prompt=True)).status_code == 200


@pytest.mark.parametrize(("text_encoder", "diffusion", "both"), [(1, 1, 1), (3, 2, 2), (2, 4, 2)])
async def test_models_tell_how_many_chunks_both_stages_take(text_encoder: int, diffusion: int, both: int) -> None:
    async with stages_of(text_encoder, diffusion).client() as client:
        (model,) = (await client.get("/models")).json()["models"]
    assert model["abilities"]["max_prompt_chunks"] == both
    assert model["abilities"]["context_length"] == 77


async def test_a_png_of_a_long_prompt_carries_what_makes_it_again() -> None:
    stages = stages_of()
    made = base64.b64decode((await generate(stages, prompt=LONG, long_prompt=True)).json()["images"][0]["b64_json"])
    text = json.loads(Image.open(io.BytesIO(made)).info[IMAGE_TEXT_KEYWORD])
    assert text["long_prompt"] is True
    again = base64.b64decode((await generate(stages, **text)).json()["images"][0]["b64_json"])
    assert again == made
