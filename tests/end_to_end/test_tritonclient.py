"""tritonclient[http], unmodified, as the judge of our wire: it lists, inspects and infers on all three stages."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

from tests.fakes import FakeDecoder, FakeDiffusion, FakeTextEncoder
from triptych.contract import DecodeRequest, Denoised, DenoiseRequest, EncodeRequest, ImageFormat
from triptych.serving.settings import StageSettings
from triptych.serving.stage_app import stage_app

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "s3cret"
STAGES = {"text_encoder": FakeTextEncoder, "diffusion": FakeDiffusion, "decoder": FakeDecoder}


@contextmanager
def serving(stage: Any, **settings: Any) -> Iterator[str]:
    """A stage's service on a socket, by host and port."""
    app = stage_app(stage, StageSettings(**settings))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
    thread = Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive()
        host, port = server.servers[0].sockets[0].getsockname()
        yield f"{host}:{port}"
    finally:
        server.should_exit = True
        thread.join()


def run_triton(arguments: list[str], folder: Path) -> str:
    """What a script prints that finds tritonclient and nothing of ours."""
    python = ROOT / ".venv-triton" / "bin" / "python"
    if not python.exists():
        pytest.skip("there is no .venv-triton with tritonclient in it: `make test` makes one")
    command = [str(python), *arguments]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the client saw of three running services."""
    script = Path(__file__).with_name("triton_client.py")
    with ExitStack() as stack:
        addresses = [stack.enter_context(serving(stage(), token=TOKEN)) for stage in STAGES.values()]
        output = run_triton([str(script), TOKEN, *addresses], tmp_path_factory.mktemp("triton"))
    results: dict[str, Any] = json.loads(output)
    return results


def describe(array: np.ndarray) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": array.dtype.name, "sha256": hashlib.sha256(array.tobytes()).hexdigest()}


async def expected_context() -> np.ndarray:
    return (await FakeTextEncoder().encode(EncodeRequest(prompts=("ein roter Bär", "")))).context


async def expected_latents() -> np.ndarray:
    context = await expected_context()
    request = DenoiseRequest(
        context=context[:1],
        unconditional_context=context[1:],
        seeds=np.array([7, 2**64 - 1], np.uint64),
        width=96,
        height=64,
        sampler="euler",
        num_steps=3,
        guidance_scale=5.5,
    )
    *_, denoised = [event async for event in FakeDiffusion().denoise(request)]
    assert isinstance(denoised, Denoised)
    return denoised.latents


@pytest.mark.parametrize("model", STAGES)
def test_it_lists_and_inspects(seen: dict[str, Any], model: str) -> None:
    inspected = seen["inspected"][model]
    ready = {name: inspected[name] for name in ("live", "ready", "model_ready", "version_ready", "other_ready")}
    assert ready == {"live": True, "ready": True, "model_ready": True, "version_ready": True, "other_ready": False}
    assert "binary_tensor_data" in inspected["server"]["extensions"]
    assert (inspected["metadata"]["name"], inspected["metadata"]["versions"]) == (model, ["1"])
    assert [entry["name"] for entry in inspected["index"]] == [model]
    assert inspected["index"][0]["state"] == "READY"


async def test_it_encodes(seen: dict[str, Any]) -> None:
    encoded = seen["encoded"]
    assert encoded["id"] == "seven"
    assert encoded["context"] == encoded["context_as_json"] == describe(await expected_context())
    assert encoded["warnings"] == "the prompt was cut from 80 to 77 tokens"


async def test_it_denoises(seen: dict[str, Any]) -> None:
    assert seen["denoised"]["latents"] == describe(await expected_latents())


async def test_it_decodes(seen: dict[str, Any]) -> None:
    latents = await expected_latents()
    pixels = (await FakeDecoder().decode(DecodeRequest(latents=latents))).images
    files = (
        await FakeDecoder().decode(DecodeRequest(latents=latents, image_format=ImageFormat.PNG, image_texts=("one", "two")))
    ).images
    assert isinstance(pixels, np.ndarray)
    assert seen["decoded"]["images"] == describe(pixels)
    assert seen["decoded"]["files"] == [hashlib.sha256(file).hexdigest() for file in files]


def test_its_errors_have_our_words(seen: dict[str, Any]) -> None:
    assert seen["locked"] == ["401", "send a token of this service as Authorization: Bearer"]
    assert seen["encoded"]["too_long"] == ["422", "the prompt has 80 tokens, the model takes 77; truncate=true cuts it"]
    assert seen["denoised"]["wrong_shape"] == ["422", "context must have the shape [-1, 77, 768], not [2, 5, 768]"]
    assert seen["denoised"]["wrong_name"][1].startswith("there is no input 'contexts'; the inputs are context")
    assert seen["denoised"]["timeout"][1].startswith("there is no parameter 'timeout'")
    assert seen["decoded"]["nan"] == ["422", "latents has values that are NaN or infinite"]


def test_the_example_of_the_page_makes_a_picture(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "wire.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    with ExitStack() as stack:
        for port, stage in zip((8001, 8002, 8003), STAGES.values(), strict=True):
            assert example.count(f"127.0.0.1:{port}") == 1
            example = example.replace(f"127.0.0.1:{port}", stack.enter_context(serving(stage())))
        run_triton(["-c", example], tmp_path)
    with Image.open(tmp_path / "triptych.png") as picture:
        assert picture.size == FakeDecoder.profile.sizes[0]
