"""Bad requests to the stages: each gets its status and one sentence, reaches no network, and the service answers afterwards."""

from __future__ import annotations

import gc
import json
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest

from tests.fakes import FakeDecoder, FakeDiffusion, FakeStage, FakeTextEncoder
from triptych.serving.settings import StageSettings
from triptych.serving.stage_app import stage_app
from triptych.wire import open_inference

STAGES: Mapping[str, Callable[[], FakeStage[Any]]] = {
    "text_encoder": FakeTextEncoder,
    "diffusion": FakeDiffusion,
    "decoder": FakeDecoder,
}
MAX_BODY_BYTES = 4 * 2**20
LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A request and what it deserves.

    Attributes:
        sentence: A part of it, as a regular expression.
        refused_by_stage: Found out only by the stage at work, because it takes a tokenizer; nothing else gets so far.
    """

    model: str = "text_encoder"
    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    path: str = "/v2/models/{model}/infer"
    method: str = "POST"
    status: int
    sentence: str
    refused_by_stage: bool = False


def raw(content: bytes, status: int, sentence: str, **fields: Any) -> Bad:
    return Bad(content=content, status=status, sentence=sentence, **fields)


def header(value: Any, status: int, sentence: str, **fields: Any) -> Bad:
    """A request that is JSON only."""
    return raw(json.dumps(value).encode(), status, sentence, **fields)


def prompt(status: int, sentence: str, asking: Any = None, refused_by_stage: bool = False, **changes: Any) -> Bad:
    """A prompt, spoilt: parameters of the request, or fields of its tensor."""
    tensor = {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["a red circle"], **changes}
    return header({"inputs": [tensor], "parameters": asking}, status, sentence, refused_by_stage=refused_by_stage)


def binary(model: str, arrays: Mapping[str, np.ndarray], parameters: Mapping[str, Any], status: int, sentence: str) -> Bad:
    """Tensors as binary data, written here by hand and not by the code under test."""
    names = {
        np.float32: "FP32",
        np.float64: "FP64",
        np.float16: "FP16",
        np.uint64: "UINT64",
        np.int64: "INT64",
        np.int32: "INT32",
    }
    inputs = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": names[array.dtype.type],
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in arrays.items()
    ]
    text = json.dumps({"inputs": inputs, "parameters": dict(parameters)}).encode()
    content = text + b"".join(array.tobytes() for array in arrays.values())
    return raw(content, status, sentence, model=model, headers={LENGTH: str(len(text))})


CONTEXT = np.full((1, 77, 768), 0.5, np.float32)
SEED = np.array([7], np.uint64)
LATENTS = np.full((1, 8, 8, 4), 0.5, np.float32)
NAN = np.where(np.arange(77 * 768).reshape(1, 77, 768) == 5, np.nan, CONTEXT)


def denoise(status: int, sentence: str, parameters: Mapping[str, Any] | None = None, **changes: np.ndarray | None) -> Bad:
    """A denoising, spoilt; None leaves a tensor out."""
    arrays = {"context": CONTEXT, "unconditional_context": CONTEXT, "seed": SEED, **changes}
    present = {name: array for name, array in arrays.items() if array is not None}
    return binary("diffusion", present, parameters or {}, status, sentence)


def decode(status: int, sentence: str, parameters: Mapping[str, Any] | None = None, **changes: np.ndarray | None) -> Bad:
    """Latents, spoilt; None leaves a tensor out."""
    present = {name: array for name, array in {"latents": LATENTS, **changes}.items() if array is not None}
    return binary("decoder", present, parameters or {}, status, sentence)


def texts(shape: list[int], blob: bytes, status: int, sentence: str) -> Bad:
    """A prompt in binary whose bytes are not what they should be."""
    tensor = {"name": "prompt", "shape": shape, "datatype": "BYTES", "parameters": {"binary_data_size": len(blob)}}
    text = json.dumps({"inputs": [tensor]}).encode()
    return raw(text + blob, status, sentence, headers={LENGTH: str(len(text))})


PROMPT = {"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["a red circle"]}]}
WORD = struct.pack("<I", 4) + b"word"

BAD = [
    # What is no request
    raw(b"", 400, "the request is not valid JSON"),
    raw(b"{", 400, "the request is not valid JSON"),
    raw(b"\x00\x01\x02", 400, "the request is not valid JSON"),
    raw(b'{"inputs": "\xff"}', 400, "the request is not UTF-8 text"),
    raw(b"[1, 2]", 400, "the request must be a JSON object"),
    raw(b"null", 400, "the request must be a JSON object"),
    raw(b'{"inputs":' + b"[" * 50_000, 400, "the request is JSON nested too deeply"),
    raw(b'{"inputs": [], "inputs": []}', 400, "a JSON object names a key twice"),
    raw(b'{"inputs": [], "parameters": {"truncate": NaN}}', 400, "NaN is not JSON"),
    raw(b'{"inputs": [], "parameters": {"a": ' + b"1" * 5000 + b"}}", 400, "the request has a number that is too long"),
    header({}, 400, "the request has no inputs"),
    header({"inputs": {"prompt": "a"}}, 400, "inputs of the request must be a list"),
    header({"instances": ["a"]}, 400, "the request has the field 'instances'; known are"),
    header({**PROMPT, "id": 7}, 400, "id of the request must be a string"),
    header({**PROMPT, "model_name": "diffusion"}, 400, "the request is for the model 'diffusion', its address for text_encoder"),
    header({"inputs": PROMPT["inputs"] * 2}, 400, "the input 'prompt' appears twice"),
    header({**PROMPT, "outputs": [{"name": "context"}] * 2}, 400, "the output 'context' is requested twice"),
    header({**PROMPT, "outputs": ["context"]}, 400, "a requested output must be a JSON object"),
    header({**PROMPT, "parameters": {"binary_data_output": "yes"}}, 400, "binary_data_output must be true or false"),
    header({**PROMPT, "parameters": {"truncate": [True]}}, 400, "the parameter 'truncate' of the request must be"),
    # Tensors that contradict themselves
    prompt(400, "an input has no name", name=None),
    prompt(400, "the input 'prompt' has the datatype 'STRING'; known are BOOL, UINT8", datatype="STRING"),
    prompt(400, "the shape of the input 'prompt' must be a list of at most 8 whole numbers, none negative", shape=[-1]),
    prompt(400, "the shape of the input 'prompt' must be", shape=[1.5]),
    prompt(400, r"the input 'prompt' has 1 values, its shape \[2\] takes 2", shape=[2]),
    prompt(422, r"prompt must have the shape \[-1\], not \[1099511627776, 1048576\]", shape=[2**40, 2**20]),
    prompt(400, "the input 'prompt' is BYTES: its data must be strings", data=[3]),
    prompt(400, "the input 'prompt' needs either data or a binary_data_size", data=None),
    prompt(400, "the input 'prompt' has a string that is not valid Unicode", data=["\ud83d"]),
    prompt(400, "says 99 bytes of binary data, the body has 0 left", data=None, parameters={"binary_data_size": 99}),
    prompt(501, "shared memory", data=None, parameters={"shared_memory_region": "r"}),
    texts([1], WORD + b"!", 400, "the input 'prompt' has 1 bytes after its last element"),
    texts([2], WORD, 400, "the input 'prompt' ends before its element 1 of 2"),
    texts([1], WORD[:-1], 400, "the input 'prompt' ends in the middle of its element 0"),
    texts([10**12], WORD, 422, "prompt has 1000000000000 rows; this service takes 64"),
    texts([2**20 - 64], bytes(4 * (2**20 - 64)), 422, "prompt has 1048512 rows; this service takes 64"),
    texts([1], struct.pack("<I", 2**32 - 1), 400, "the input 'prompt' ends in the middle of its element 0"),
    raw(json.dumps(PROMPT).encode(), 400, "is 9999, but the request has", headers={LENGTH: "9999"}),
    raw(json.dumps(PROMPT).encode(), 400, f"{LENGTH} must be a number of bytes", headers={LENGTH: "-5"}),
    raw(json.dumps(PROMPT).encode() + b"?", 400, "the request is not valid JSON"),
    raw(json.dumps(PROMPT).encode() + b"?", 400, "1 bytes that no tensor", headers={LENGTH: str(len(json.dumps(PROMPT)))}),
    # Prompts that do not fit the text encoder
    header({"inputs": []}, 422, "the input prompt is missing"),
    prompt(422, "there is no input 'text'; the inputs are prompt", name="text"),
    prompt(422, "prompt must be BYTES, not INT32", datatype="INT32", data=[1]),
    prompt(422, r"prompt must have the shape \[-1\], not \[1, 1\]", shape=[1, 1]),
    prompt(422, "prompt is empty", shape=[0], data=[]),
    prompt(422, "prompt has 65 rows; this service takes 64", shape=[65], data=["a"] * 65),
    prompt(422, "the prompt has 78 tokens, the model takes 77", data=["word " * 78], refused_by_stage=True),
    texts([1], struct.pack("<I", 1) + b"\xff", 422, "prompt must be UTF-8 text"),
    prompt(422, "truncate must be true or false", {"truncate": "yes"}),
    prompt(422, "there is no parameter 'priority'; there are truncate", {"priority": 1}),
    header({**PROMPT, "outputs": [{"name": "pooled"}]}, 422, "there is no output 'pooled'; the outputs are context"),
    # Denoisings that do not fit the model
    denoise(422, "the input context is missing", context=None),
    denoise(422, "the input seed is missing", seed=None),
    denoise(422, "there is no input 'noise'; the inputs are context", noise=LATENTS),
    denoise(422, r"mask must have the shape \[-1, -1, -1, 1\]", mask=LATENTS),
    denoise(422, "with a mask this model needs the init_latents that it keeps", mask=LATENTS[..., :1]),
    denoise(422, "there is no input 'masked_image_latents'", masked_image_latents=LATENTS),
    denoise(422, "context has values that are NaN or infinite", context=NAN),
    denoise(422, "context has values that are NaN or infinite", context=np.full_like(CONTEXT, -np.inf)),
    denoise(422, "context must be FP32, not FP16", context=CONTEXT.astype(np.float16)),
    denoise(422, r"context must have the shape \[-1, 77, 768\], not \[1, 77, 512\]", context=CONTEXT[..., :512]),
    denoise(422, r"not \[77, 768\]", context=CONTEXT[0]),
    denoise(422, r"context must be float32 \(1 or 1, 77, 768\), not float32 \(2, 77, 768\)", context=CONTEXT.repeat(2, axis=0)),
    denoise(422, "without unconditional_context the guidance_scale must be 1", unconditional_context=None),
    denoise(422, "seed must be UINT64, not INT64", seed=SEED.astype(np.int64)),
    denoise(422, "seed is empty", seed=SEED[:0]),
    denoise(422, r"initial_noise must have the shape", initial_noise=LATENTS[..., :3]),
    denoise(422, r"initial_noise must be float32 \(1 or 1, 8, 8, 4\)", initial_noise=LATENTS[:, :4]),
    denoise(422, "num_steps must be a whole number from 1 to 1000", {"num_steps": 0}),
    denoise(422, "num_steps must be a whole number", {"num_steps": 20.5}),
    denoise(422, "num_steps must be a whole number", {"num_steps": 10**30}),
    denoise(422, "guidance_scale must be a number from 0 to 100", {"guidance_scale": -1}),
    denoise(422, "there is no sampler 'plms'; there are ddim, euler", {"sampler": "plms"}),
    denoise(422, "sampler must be a text of at most 64 characters", {"sampler": "x" * 10_000}),
    denoise(422, "this model makes no pictures of 500x64; it makes 64x64, 96x64, 64x96", {"width": 500}),
    denoise(422, "height must be a whole number from 1 to 8192", {"height": 2**31}),
    denoise(422, "there is no parameter 'steps'; there are width, height, sampler, num_steps", {"steps": 20}),
    denoise(422, "progress_every is for answers in frames: ask for them with Accept", {"progress_every": 5}),
    denoise(422, "previews is for answers in frames", {"previews": True}),
    denoise(422, "to resume takes latents, sampler_state, position, state_key; latents is missing", {"state_key": "k"}),
    denoise(422, "sampler_state must have the shape", sampler_state=LATENTS),
    # Latents that do not fit the decoder
    decode(422, "latents has values that are NaN or infinite", latents=np.full_like(LATENTS, np.nan)),
    decode(422, "latents must be FP32, not FP64", latents=LATENTS.astype(np.float64)),
    decode(422, "these latents are a picture of 1024x1024; this decoder makes", latents=np.zeros((1, 128, 128, 4), np.float32)),
    decode(422, "these latents are a picture of 24x64", latents=LATENTS[:, :, :3]),
    decode(422, "image_format must be one of png, jpeg, webp", {"image_format": "tiff"}),
    decode(422, "encoded images have no JSON form", {"image_format": "png"}),
    decode(422, "there is no parameter 'quality'", {"quality": 90}),
    # Around the request
    header(
        PROMPT,
        404,
        "there is no model 'text_encoder' here; there is decoder",
        model="decoder",
        path="/v2/models/text_encoder/infer",
    ),
    header(PROMPT, 404, "text_encoder has no version '2'; it has 1", path="/v2/models/{model}/versions/2/infer"),
    header(PROMPT, 404, "there is nothing at this address", path="/v2/models/{model}/predict"),
    raw(b"", 405, "GET is not for this address", method="GET"),
    header(PROMPT, 415, "a compressed body is not read", headers={"Content-Encoding": "gzip"}),
    header(PROMPT, 501, "text_encoder does not answer in frames", headers={"Accept": "application/vnd.triptych.frames"}),
    header(PROMPT, 400, "X-Request-Timeout-Seconds must be a number of seconds", headers={"X-Request-Timeout-Seconds": "soon"}),
    header(PROMPT, 504, "was not done before the request's deadline", headers={"X-Request-Timeout-Seconds": "0"}),
    raw(b" " * (MAX_BODY_BYTES + 1), 413, f"the body has {MAX_BODY_BYTES + 1} bytes, at most {MAX_BODY_BYTES} are read"),
    raw(LATENTS.tobytes(), 501, "decoder takes more than one text", model="decoder", headers={LENGTH: "0"}),
]

GOOD = {
    "text_encoder": header(PROMPT, 200, ""),
    "diffusion": denoise(200, ""),
    "decoder": decode(200, "", {"image_format": "png", "binary_data_output": True}),
}


class Service:
    """A stage's app in this process."""

    def __init__(self, model: str) -> None:
        self.stage: FakeStage[Any] = STAGES[model]()
        app = stage_app(self.stage, StageSettings(max_body_bytes=MAX_BODY_BYTES))  # type: ignore[arg-type]
        self.client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://stage")

    async def send(self, bad: Bad) -> httpx2.Response:
        path = bad.path.format(model=bad.model)
        return await self.client.request(bad.method, path, content=bad.content, headers=bad.headers)


@pytest.fixture(scope="module")
def services() -> dict[str, Service]:
    """One for all requests: what a bad one did to it, the next would feel."""
    return {model: Service(model) for model in STAGES}


def identifier(bad: Bad) -> str:
    return f"{bad.status} {re.sub('[^a-z0-9]+', '-', bad.sentence.lower())[:60]}"


@pytest.mark.parametrize("bad", BAD, ids=identifier)
async def test_a_bad_request_gets_its_status_and_a_sentence(services: dict[str, Service], bad: Bad) -> None:
    service = services[bad.model]
    asked = len(service.stage.asked)

    response = await service.send(bad)

    assert response.status_code == bad.status
    assert set(response.json()) == {"error"}
    sentence = response.json()["error"]
    assert re.search(bad.sentence, sentence), sentence
    assert "\n" not in sentence
    assert len(sentence) < 300
    assert len(service.stage.asked) - asked == bad.refused_by_stage
    assert (await service.send(GOOD[bad.model])).status_code == 200


def test_the_table_is_long_enough() -> None:
    assert len(BAD) >= 60
    assert len({(bad.model, bad.content, bad.path, bad.method, *bad.headers.items()) for bad in BAD}) == len(BAD)


@pytest.mark.parametrize(
    "bad",
    [
        denoise(422, "there is no input 'noise'", noise=LATENTS),
        denoise(422, "context must be FP32, not FP16", context=CONTEXT.astype(np.float16)),
        denoise(422, r"context must have the shape \[-1, 77, 768\], not", context=CONTEXT[..., :512]),
        texts([2**19], bytes(4 * 2**19), 422, "prompt has 524288 rows; this service takes 64"),
    ],
    ids=identifier,
)
async def test_tensors_are_refused_by_what_is_said_of_them_before_they_are_made(
    services: dict[str, Service], bad: Bad, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(open_inference, "unpack", lambda *told, **_: made.append(told))
    response = await services[bad.model].send(bad)
    assert response.status_code == bad.status
    assert re.search(bad.sentence, response.json()["error"])
    assert made == []


async def test_bad_requests_leave_no_memory_behind(services: dict[str, Service]) -> None:
    async def send_all(times: int) -> None:
        for bad in BAD * times:
            await services[bad.model].send(bad)
        gc.collect()

    await send_all(1)
    before = psutil.Process().memory_info().rss
    await send_all(5)
    assert psutil.Process().memory_info().rss - before < 16 * 2**20
