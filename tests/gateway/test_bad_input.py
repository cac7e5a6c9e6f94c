"""Bad requests, each with its status, the field it names and its sentence; and what they leave behind, which is nothing."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2
import psutil
import pytest

from tests.gateway.running import Stages

MAX_BODY_BYTES = 64 * 1024
BIG = 10**400


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A request, and how it is refused.

    Attributes:
        body: Sent as it is where it is bytes, else as JSON.
        sentence: A part of the message.
    """

    body: Any
    status: int
    param: str | None
    sentence: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()

    async def post(self, client: httpx2.AsyncClient) -> httpx2.Response:
        headers = {"Content-Type": "application/json", **self.headers}
        return await client.post("/generate", content=self.content, headers=headers)


def malformed(body: bytes, sentence: str) -> Bad:
    return Bad(body=body, status=400, param=None, sentence=sentence)


def invalid(fields: Mapping[str, Any], param: str, sentence: str, **headers: str) -> Bad:
    return Bad(body={"prompt": "x", **fields}, status=422, param=param, sentence=sentence, headers=headers)


STEPS = "must be a whole number from 1 to 150"
GUIDANCE = "must be a number from 0 to 30"
SEED = "seed must be a whole number from 0 to 18446744073709551615"
IMAGES = "must be a whole number from 1 to 8"
SIZES = "it takes 64x64, 96x64, 64x96"
PIXELS = "must be a whole number of pixels"
PROMPT = "prompt must be a text of 1 to 4000 characters"

TABLE = [
    # Not readable as a request
    malformed(b"", "the body is not valid JSON"),
    malformed(b"prompt=x", "the body is not valid JSON"),
    malformed(b'{"prompt": "x"', "the body is not valid JSON"),
    malformed(b'{"prompt": "x",}', "the body is not valid JSON"),
    malformed(b'{"prompt": "x"} {"prompt": "y"}', "the body is not valid JSON"),
    malformed(b"{'prompt': 'x'}", "the body is not valid JSON"),
    malformed(b'{"prompt": "a\nb"}', "the body is not valid JSON"),
    malformed(b'{"prompt": "\xff"}', "the body is not UTF-8"),
    malformed(json.dumps({"prompt": "x"}).encode("utf-16"), "the body is not UTF-8"),
    malformed(b"\xef\xbb\xbf{}", "the body is not valid JSON"),
    malformed(b"\x89PNG\r\n\x1a\n", "the body is not UTF-8"),
    malformed(b"[" * 50_000, "nested too deeply"),
    malformed(b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "a number that is too long"),
    malformed(b'{"prompt": "x", "guidance_scale": NaN}', "NaN is not JSON"),
    malformed(b'{"prompt": "x", "guidance_scale": Infinity}', "Infinity is not JSON"),
    malformed(b'{"prompt": "x", "guidance_scale": -Infinity}', "-Infinity is not JSON"),
    malformed(b'{"prompt": "x", "prompt": "y"}', "names a key twice"),
    malformed(b"[]", "the body must be a JSON object"),
    malformed(b"null", "the body must be a JSON object"),
    malformed(b'"a red circle"', "the body must be a JSON object"),
    malformed(b"7", "the body must be a JSON object"),
    Bad(body=b"x" * (MAX_BODY_BYTES + 1), status=413, param=None, sentence="at most 65536 are read"),
    Bad(body={"prompt": "x"}, status=415, param=None, sentence="not text/plain", headers={"Content-Type": "text/plain"}),
    Bad(body={"prompt": "x"}, status=415, param=None, sentence="application/json", headers={"Content-Type": ""}),
    Bad(body=b"prompt=x", status=415, param=None, sentence="form", headers={"Content-Type": "application/x-www-form-urlencoded"}),
    Bad(body={"prompt": "x"}, status=400, param=None, sentence="seconds", headers={"X-Request-Timeout-Seconds": "soon"}),
    Bad(body={"prompt": "x"}, status=400, param=None, sentence="seconds", headers={"X-Request-Timeout-Seconds": "-1"}),
    Bad(body={"prompt": "x"}, status=400, param=None, sentence="seconds", headers={"X-Request-Timeout-Seconds": "nan"}),
    # Unknown fields, and names that mean the same
    invalid({"promt": "y"}, "promt", 'there is no field "promt"; a request takes prompt, negative_prompt'),
    invalid({"promt": None}, "promt", 'there is no field "promt"'),
    invalid({"": 1}, "", 'there is no field ""'),
    invalid({"Prompt": "y"}, "Prompt", 'there is no field "Prompt"'),
    invalid({"cfg_scale": 7}, "cfg_scale", "there is no field"),
    invalid({"__class__": 7}, "__class__", "there is no field"),
    invalid({"x" * 10_000: 7}, "x" * 60 + "...", "there is no field"),
    invalid({"\ud800": 7}, "\\ud800", "there is no field"),
    invalid({"num_steps": 5, "steps": 5}, "steps", "num_steps and steps mean the same"),
    invalid({"num_inference_steps": 5, "steps": 5}, "steps", "num_inference_steps and steps mean the same"),
    invalid(
        {"guidance_scale": 5, "unconditional_guidance_scale": 5},
        "unconditional_guidance_scale",
        "guidance_scale and unconditional_guidance_scale mean the same",
    ),
    invalid({"num_steps": None, "steps": 5}, "steps", "num_steps and steps mean the same"),
    invalid({"num_images": 1, "batch_size": 1}, "batch_size", "num_images and batch_size mean the same"),
    # prompt and negative_prompt
    Bad(body={}, status=422, param="prompt", sentence="prompt is required"),
    Bad(body={"negative_prompt": "x"}, status=422, param="prompt", sentence="prompt is required"),
    invalid({"prompt": None}, "prompt", "prompt is required"),
    invalid({"prompt": ""}, "prompt", PROMPT),
    invalid({"prompt": "x" * 4001}, "prompt", f"{PROMPT}, and has 4001"),
    invalid({"prompt": 7}, "prompt", f"{PROMPT}, not 7"),
    invalid({"prompt": ["x"]}, "prompt", f'{PROMPT}, not ["x"]'),
    invalid({"prompt": {"text": "x"}}, "prompt", PROMPT),
    invalid({"prompt": True}, "prompt", f"{PROMPT}, not true"),
    invalid({"prompt": "\ud800"}, "prompt", PROMPT),
    invalid({"negative_prompt": "x" * 4001}, "negative_prompt", "at most 4000 characters, and has 4001"),
    invalid({"negative_prompt": 0}, "negative_prompt", "must be a text of at most 4000 characters, not 0"),
    invalid({"prompt": "word " * 78}, "prompt", "the prompt has 78 tokens, the model takes 77"),
    # num_steps
    invalid({"num_steps": 0}, "num_steps", f"num_steps {STEPS}, not 0"),
    invalid({"num_steps": 151}, "num_steps", f"num_steps {STEPS}, not 151"),
    invalid({"num_steps": -1}, "num_steps", f"num_steps {STEPS}"),
    invalid({"num_steps": 20.0}, "num_steps", f"num_steps {STEPS}, not 20.0"),
    invalid({"num_steps": "20"}, "num_steps", f'num_steps {STEPS}, not "20"'),
    invalid({"num_steps": True}, "num_steps", f"num_steps {STEPS}, not true"),
    invalid({"num_steps": [20]}, "num_steps", f"num_steps {STEPS}"),
    invalid({"num_steps": BIG}, "num_steps", f"num_steps {STEPS}"),
    invalid({"steps": 0}, "steps", f"steps {STEPS}, not 0"),
    invalid({"num_inference_steps": "x"}, "num_inference_steps", f"num_inference_steps {STEPS}"),
    # guidance_scale
    invalid({"guidance_scale": -0.1}, "guidance_scale", f"guidance_scale {GUIDANCE}, not -0.1"),
    invalid({"guidance_scale": 30.1}, "guidance_scale", f"guidance_scale {GUIDANCE}, not 30.1"),
    invalid({"guidance_scale": "7.5"}, "guidance_scale", f"guidance_scale {GUIDANCE}"),
    invalid({"guidance_scale": False}, "guidance_scale", f"guidance_scale {GUIDANCE}, not false"),
    invalid({"guidance_scale": BIG}, "guidance_scale", f"guidance_scale {GUIDANCE}"),
    Bad(body=b'{"prompt": "x", "guidance_scale": 1e999}', status=422, param="guidance_scale", sentence=GUIDANCE),
    invalid({"unconditional_guidance_scale": 31}, "unconditional_guidance_scale", GUIDANCE),
    # cache_interval
    invalid({"cache_interval": 0}, "cache_interval", f"cache_interval {STEPS}, not 0"),
    invalid({"cache_interval": 151}, "cache_interval", f"cache_interval {STEPS}, not 151"),
    invalid({"cache_interval": 1.5}, "cache_interval", f"cache_interval {STEPS}, not 1.5"),
    invalid({"cache_interval": "3"}, "cache_interval", f"cache_interval {STEPS}"),
    invalid({"cache_interval": 2}, "cache_interval", "must be 1 with this model, whose diffusion stage does not reuse features"),
    # seed
    invalid({"seed": -1}, "seed", f"{SEED}, not -1"),
    invalid({"seed": 2**64}, "seed", f"{SEED}, not 18446744073709551616"),
    invalid({"seed": 1.5}, "seed", f"{SEED}, not 1.5"),
    invalid({"seed": "1"}, "seed", SEED),
    invalid({"seed": [1, 2]}, "seed", SEED),
    invalid({"seed": True}, "seed", SEED),
    # width and height
    invalid({"width": 500}, "width", f"500x64 is not a size this model takes (width x height); {SIZES}"),
    invalid({"height": 500}, "height", f"64x500 is not a size this model takes (width x height); {SIZES}"),
    invalid({"width": 96, "height": 96}, "height", SIZES),
    invalid({"width": 0}, "width", SIZES),
    invalid({"width": -64}, "width", SIZES),
    invalid({"width": BIG}, "width", SIZES),
    invalid({"width": 64.0}, "width", f"width {PIXELS}, not 64.0"),
    invalid({"height": "64"}, "height", f"height {PIXELS}"),
    invalid({"height": True}, "height", f"height {PIXELS}"),
    # num_images
    invalid({"num_images": 0}, "num_images", f"num_images {IMAGES}, not 0"),
    invalid({"num_images": 9}, "num_images", f"num_images {IMAGES}, not 9"),
    invalid({"num_images": "2"}, "num_images", f"num_images {IMAGES}"),
    invalid({"batch_size": 100}, "batch_size", f"batch_size {IMAGES}, not 100"),
    invalid({"num_images": 2}, "num_images", "image/png is one picture", Accept="image/png"),
    # sampler, model, output_format, truncate
    invalid({"sampler": "dpm"}, "sampler", 'sampler must be one of ddim, euler, not "dpm"'),
    invalid({"sampler": ""}, "sampler", 'sampler must be one of ddim, euler, not ""'),
    invalid({"sampler": 1}, "sampler", "sampler must be the name of a sampler"),
    invalid({"sampler": "y" * 10_000}, "sampler", "yyy..."),
    invalid({"model": 1}, "model", "model must be the name of a model"),
    Bad(body={"prompt": "x", "model": "sd"}, status=404, param="model", sentence="there is no model 'sd' here; there is fake"),
    Bad(body={"prompt": "x", "model": ""}, status=404, param="model", sentence="there is no model ''"),
    Bad(body={"prompt": "x", "model": "m" * 10_000}, status=404, param="model", sentence="mmm..."),
    Bad(body={"prompt": "x", "model": "../../etc/passwd"}, status=404, param="model", sentence="there is no model"),
    invalid({"output_format": "gif"}, "output_format", 'must be png, jpeg or webp, not "gif"'),
    invalid({"output_format": "PNG"}, "output_format", "must be png, jpeg or webp"),
    invalid({"output_format": 1}, "output_format", "must be png, jpeg or webp"),
    invalid({"output_format": "jpeg"}, "output_format", "contradicts the Accept header", Accept="image/png"),
    invalid({"truncate": "yes"}, "truncate", "truncate must be true or false"),
    invalid({"truncate": 1}, "truncate", "truncate must be true or false"),
    invalid({"long_prompt": "yes"}, "long_prompt", "long_prompt must be true or false"),
    # What nobody can answer with
    Bad(body={"prompt": "x"}, status=406, param=None, sentence="takes none of", headers={"Accept": "text/html"}),
    Bad(body={"prompt": "x"}, status=406, param=None, sentence="takes none of", headers={"Accept": "image/gif, audio/*"}),
    Bad(body={"prompt": "x"}, status=406, param=None, sentence="takes none of", headers={"Accept": "*/*;q=0"}),
    Bad(body={"prompt": "x"}, status=406, param=None, sentence="takes none of", headers={"Accept": "png"}),
]


def identify(bad: Bad) -> str:
    return f"{bad.status}-{bad.param or 'body'}-{bad.content[:40]!r}"


@pytest.mark.parametrize("bad", TABLE, ids=identify)
async def test_each_is_refused_with_its_status_and_sentence(bad: Bad) -> None:
    stages = Stages()
    async with stages.client(max_body_bytes=MAX_BODY_BYTES) as client:
        response = await bad.post(client)

    assert response.status_code == bad.status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == bad.param
    assert bad.sentence in error["message"]
    assert len(error["message"]) < 400
    assert "\n" not in error["message"]
    assert stages.diffusion.asked == []


def test_the_table_is_long_and_nothing_is_in_it_twice() -> None:
    assert len(TABLE) > 100
    assert len({(bad.content, tuple(sorted(bad.headers.items()))) for bad in TABLE}) == len(TABLE)


async def test_the_gateway_still_answers_afterwards_and_holds_no_more_memory() -> None:
    process = psutil.Process()
    async with Stages().client(max_body_bytes=MAX_BODY_BYTES) as client:

        async def post_all(times: int) -> int:
            for _ in range(times):
                for bad in TABLE:
                    assert (await bad.post(client)).status_code == bad.status
            gc.collect()
            return int(process.memory_info().rss)

        warmed_up = await post_all(2)
        growth = await post_all(6) - warmed_up
        assert (await client.post("/generate", json={"prompt": "x"})).status_code == 200

    # Some 650 requests; one of them kept with its body would be 64 kB.
    assert growth < 8 * 2**20
