"""Stable Diffusion 1.5 at its full size, random weights, as a user starts it: cold starts, and a picture from four processes."""

from __future__ import annotations

import base64
import io
import shutil
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from benchmarks.memory import PeakMemory
from tests.end_to_end.real_services import running
from tests.full.real_stages import STAGES, environment, start_once
from tests.full.results import record
from triptych.cli.processes import free_ports
from triptych.cli.topology import four_services

pytestmark = pytest.mark.timeout(3600)

NUM_STEPS = 10
# Bytes of the largest network of a stage in float32.
NETWORK_BYTES = {"text_encoder": 4 * 123_060_480, "diffusion": 4 * 859_520_964, "decoder": 4 * 49_490_199}
# What Python, its libraries and the memory between the layers may take beside the weights.
ANONYMOUS_BYTES = {
    "text_encoder": 3 * NETWORK_BYTES["text_encoder"],  # a copy for each of two batch sizes
    "diffusion": 1.3 * NETWORK_BYTES["diffusion"],
    "decoder": 4e9,  # at 512x512 hardly any of it is weights
}


@pytest.fixture(scope="session")
def compiled(full_size_folder: Path) -> Path:
    return full_size_folder / "compiled"


@pytest.mark.parametrize("stage", STAGES)
def test_a_cold_start_takes_little_more_than_the_network(stage: str, stable_diffusion_1: Path, compiled: Path) -> None:
    for folder in compiled.glob({"diffusion": "unet-*", "decoder": "vae_*"}.get(stage, f"{stage}-*")):
        shutil.rmtree(folder)
    start = start_once(stage, environment(stable_diffusion_1, compiled))
    facts = {**start.facts(), "network_bytes": NETWORK_BYTES[stage], "bound_bytes": ANONYMOUS_BYTES[stage]}
    record("cold starts", f"{stage} of 1.5", facts)
    assert start.peak_anonymous_bytes < ANONYMOUS_BYTES[stage]
    assert "networks compiled" in start.log


def test_four_processes_make_a_picture(stable_diffusion_1: Path, compiled: Path) -> None:
    told = environment(stable_diffusion_1, compiled)
    services = [replace(service, environment={**told, **service.environment}) for service in four_services(free_ports(4))]
    started = time.monotonic()
    with running(services) as group, ExitStack() as watching:
        start_seconds = time.monotonic() - started
        peaks = {each.service.name: watching.enter_context(PeakMemory(each.pid)) for each in group.processes}
        body = {
            "prompt": "a photo of an astronaut riding a horse on mars",
            "negative_prompt": "blurry",
            "num_steps": NUM_STEPS,
            "width": 512,
            "height": 512,
            "seed": 7,
        }
        response = httpx2.post(f"{services[-1].url}/generate", json=body, timeout=1800)
        assert response.status_code == 200, response.text
    answer = response.json()
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["images"][0]["b64_json"]))))
    memory = {name: {"peak_anonymous_bytes": peak.anonymous, "file_bytes": peak.file} for name, peak in peaks.items()}
    facts = {"num_steps": NUM_STEPS, "start_seconds": start_seconds, "timings": answer["timings"], "memory": memory}
    record("serving", "1.5, 512x512", facts)
    assert pixels.shape == (512, 512, 3)
    assert pixels.std() > 10  # not of one colour
