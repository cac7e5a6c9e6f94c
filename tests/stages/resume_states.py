"""Resumes denoisings that another process began: `python -m tests.stages.resume_states MODEL CACHE_FOLDER STATES RESULTS`.

STATES is an npz of arrays `SAMPLER/NUMBER/FIELD`; RESULTS becomes one of `SAMPLER/NUMBER`.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.stages.mixed_requests import latents_of
from tests.stages.options import Options
from tests.tiny_models import CONTEXT_LENGTH, UNET
from triptych.contract import DenoiseRequest, DenoiseState, Float32
from triptych.stages.diffusion import DiffusionStage


def request_of(sampler: str) -> DenoiseRequest:
    """The same in every process."""
    shape = (2, CONTEXT_LENGTH, UNET.cross_attention_dim)
    contexts = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    return DenoiseRequest(
        context=contexts[:1],
        unconditional_context=contexts[1:],
        seeds=np.array([1, 2], np.uint64),
        width=32,
        height=32,
        sampler=sampler,
        num_steps=6,
        guidance_scale=3.0,
    )


async def resume_all(stage: DiffusionStage, states: dict[str, DenoiseState]) -> dict[str, Float32]:
    return {
        name: await latents_of(stage, replace(request_of(name.partition("/")[0]), resume=state)) for name, state in states.items()
    }


def read_states(path: Path) -> dict[str, DenoiseState]:
    with np.load(path, allow_pickle=False) as file:
        names = {name.rpartition("/")[0] for name in file.files}
        return {
            name: DenoiseState(
                latents=file[f"{name}/latents"],
                sampler_state=file[f"{name}/sampler_state"],
                position=file[f"{name}/position"],
                state_key=str(file[f"{name}/state_key"]),
            )
            for name in sorted(names)
        }


def main(model: str, cache_folder: str, states: str, results: str) -> None:
    stage = DiffusionStage(Options(model=model, cache_folder=Path(cache_folder)))
    stage.start()
    np.savez(results, **asyncio.run(resume_all(stage, read_states(Path(states)))))  # type: ignore[arg-type]
    stage.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
