"""Stable Diffusion 1.5 at its full size, random weights: our three services against diffusers' pipeline, from the same noise.

Both sides compute in float32, three steps of DDIM with guidance 7.5. With the weights of `benchmarks/random_checkpoint.py` the
U-Net's predictions are near one, as those of a trained one are, so that the loop amplifies errors as it does with real weights.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.real_services import running
from tests.full.real_stages import ROOT, environment
from tests.full.results import record
from triptych.cli.processes import free_ports
from triptych.cli.topology import four_services
from triptych.contract import Decoded, DecodeRequest, Denoised, DenoiseRequest, EncodeRequest, Float32
from triptych.remote import RemoteDecoder, RemoteDiffusion, RemoteTextEncoder, make_client

pytestmark = pytest.mark.timeout(3600)

PROMPTS = ("a photo of an astronaut riding a horse on mars", "blurry, low quality")
NUM_STEPS = 3
GUIDANCE_SCALE = 7.5
SIZE = 512
LATENTS_TOLERANCE = 1e-3
PIXEL_TOLERANCE = 2
PIXELS_WITHIN = 0.999


def test_three_services_agree_with_diffusers(stable_diffusion_1: Path, full_size_folder: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(11).standard_normal((1, SIZE // 8, SIZE // 8, 4), dtype=np.float32)
    np.save(tmp_path / "noise.npy", noise)
    task = {"prompts": PROMPTS, "num_steps": NUM_STEPS, "guidance_scale": GUIDANCE_SCALE, "size": SIZE}
    (tmp_path / "task.json").write_text(json.dumps(task))
    command = [sys.executable, "-m", "tests.full.run_pipeline", str(stable_diffusion_1), str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    theirs = np.load(tmp_path / "theirs.npz")

    told = environment(stable_diffusion_1, full_size_folder / "compiled", PRECISION="float32", SIZES=f"{SIZE}x{SIZE}")
    stages = [replace(each, environment={**told, **each.environment}) for each in four_services(free_ports(4))[:-1]]
    started = time.monotonic()
    with running(stages):
        ready = time.monotonic()
        context, latents, pixels = asyncio.run(paint([stage.url for stage in stages], noise))
        done = time.monotonic()

    distances = np.abs(pixels.astype(np.int64) - theirs["pixels"].astype(np.int64))
    latents_error = relative_error(latents, theirs["latents"])
    within = float((distances <= PIXEL_TOLERANCE).mean())
    clipped = float(((theirs["pixels"] == 0) | (theirs["pixels"] == 255)).mean())
    measured = {
        "context_error": relative_error(context, theirs["context"]),
        "latents_error": latents_error,
        "latents_bound": LATENTS_TOLERANCE,
        "pixels_within_2": within,
        "pixels_bound": PIXELS_WITHIN,
        "largest_pixel_distance": int(distances.max()),
        "pixels_clipped": clipped,
        "seconds": {"start": ready - started, "ours": done - ready, "theirs": float(theirs["seconds"])},
    }
    record("end to end", f"1.5, {SIZE}x{SIZE}", measured)
    assert latents_error < LATENTS_TOLERANCE
    assert within >= PIXELS_WITHIN
    assert clipped < 0.5, "pixels that are all black or white would agree too easily"


async def paint(urls: list[str], noise: Float32) -> tuple[Float32, Float32, np.ndarray]:
    """Contexts, latents and pixels, each over HTTP."""
    async with make_client() as client:
        text_encoder = RemoteTextEncoder(urls[0], client=client)
        diffusion = RemoteDiffusion(urls[1], client=client)
        decoder = RemoteDecoder(urls[2], client=client)
        encoded = await text_encoder.encode(EncodeRequest(prompts=PROMPTS))
        request = DenoiseRequest(
            context=encoded.context[:1],
            unconditional_context=encoded.context[1:],
            seeds=np.zeros(1, np.uint64),
            width=SIZE,
            height=SIZE,
            sampler="ddim",
            num_steps=NUM_STEPS,
            guidance_scale=GUIDANCE_SCALE,
            initial_noise=noise,
        )
        await diffusion.identity()
        (denoised,) = [event async for event in diffusion.denoise(request) if isinstance(event, Denoised)]
        decoded: Decoded = await decoder.decode(DecodeRequest(latents=denoised.latents))
    assert isinstance(decoded.images, np.ndarray)
    return encoded.context, denoised.latents, decoded.images


def relative_error(array: np.ndarray, right: np.ndarray) -> float:
    assert array.shape == right.shape
    return float(np.linalg.norm(array - right) / np.linalg.norm(right))
