"""Requests that have nothing in common, each alone and then all at once.

Run as a script it does so on an engine of its own, because Keras has one backend a process:
`python -m tests.stages.mixed_requests ENGINE MODEL CACHE_FOLDER` prints what happened as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.stages.options import Options
from tests.tiny_models import CONTEXT_LENGTH, SIZES, UNET
from triptych.contract import Denoised, DenoiseRequest, Float32
from triptych.sampling.samplers import SAMPLERS
from triptych.stages.diffusion import DiffusionStage

COUNT = 32


def mixed_requests() -> list[DenoiseRequest]:
    """32, of all samplers, both sizes, 2 to 8 steps, with and without guidance, of one row or two."""
    generator = np.random.default_rng(11)
    contexts = generator.standard_normal((COUNT + 1, 1, CONTEXT_LENGTH, UNET.cross_attention_dim)).astype(np.float32)
    return [
        DenoiseRequest(
            context=contexts[number],
            unconditional_context=contexts[-1],
            seeds=np.arange(number, number + 1 + number % 2, dtype=np.uint64),
            width=SIZES[number // 3 % 2][0],
            height=SIZES[number // 3 % 2][1],
            sampler=sorted(SAMPLERS)[number % len(SAMPLERS)],
            num_steps=2 + number % 7,
            guidance_scale=(1.0, 3.0, 7.5)[number % 3],
        )
        for number in range(COUNT)
    ]


class CallSizes:
    """A stage's networks, and how many rows each of their calls had."""

    def __init__(self, stage: DiffusionStage) -> None:
        self.sizes: list[int] = []
        assert stage._batcher is not None
        networks = stage._batcher._networks
        for shape in networks:
            networks[shape] = self._counted(networks[shape])  # type: ignore[index]

    def _counted(self, network: Any) -> Any:
        def call(inputs: Any) -> Any:
            self.sizes.append(len(inputs["latents"]))
            return network(inputs)

        return call


async def latents_of(stage: DiffusionStage, request: DenoiseRequest) -> Float32:
    *_, last = [event async for event in stage.denoise(request)]
    assert isinstance(last, Denoised)
    return last.latents


async def alone_and_together(stage: DiffusionStage) -> tuple[list[Float32], list[Float32]]:
    requests = mixed_requests()
    alone = [await latents_of(stage, request) for request in requests]
    assert stage._batcher is not None
    with stage._batcher._changed:  # the batcher waits until all have joined: on a busy machine it would be done with each before
        together = [asyncio.create_task(latents_of(stage, request)) for request in requests]
        while len(stage._batcher._joining) < COUNT and not any(task.done() for task in together):  # noqa: ASYNC110 - joining tells nobody
            await asyncio.sleep(0.001)
    return alone, await asyncio.gather(*together)


def differing(alone: list[Float32], together: list[Float32]) -> list[int]:
    """The requests whose bytes depend on the company."""
    pairs = enumerate(zip(alone, together, strict=True))
    return [number for number, (one, other) in pairs if one.tobytes() != other.tobytes()]


def run_mixed(engine: str, model: str, cache_folder: str) -> dict[str, Any]:
    stage = DiffusionStage(Options(model=model, cache_folder=Path(cache_folder), engine=engine, queue_size=2 * COUNT))
    stage.start()
    calls = CallSizes(stage)
    alone, together = asyncio.run(alone_and_together(stage))
    identity = asyncio.run(stage.identity())
    stage.close()
    return {
        "exact": identity.exact,
        "exact_batch_sizes": identity.exact_batch_sizes,
        "differing": differing(alone, together),
        "distinct": len({latents.tobytes() for latents in together}),
        "largest_call": max(calls.sizes),
    }


def check_mixed(answer: dict[str, Any]) -> None:
    """What `run_mixed` must say."""
    assert answer["differing"] == []
    assert answer["distinct"] == COUNT
    assert answer["largest_call"] > 2
    assert answer["exact"]


if __name__ == "__main__":
    answer = run_mixed(*sys.argv[1:])
    os.write(1, json.dumps(answer).encode())
