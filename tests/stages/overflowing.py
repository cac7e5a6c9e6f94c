"""Latents of which some are too large for float16, and a decoder that computes in float16 for real.

Few CPUs multiply in float16; TensorFlow does it for any, when it is told that this one can. Run as a script, because Keras has
one backend a process: `python -m tests.stages.overflowing MODEL CACHE_FOLDER` prints what happened as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.stages.options import Options
from triptych.contract import Decoded, DecodeRequest, Float32
from triptych.engines import precision
from triptych.stages.decoder import DecoderStage

LARGE = (1,)
"""Which of the rows are too large."""


def overflowing_latents(rows: int = 3) -> Float32:
    """Float32 holds all of them. Float16 ends at 65504."""
    latents = np.random.default_rng(3).standard_normal((rows, 4, 4, 4)).astype(np.float32)
    latents[list(LARGE)] *= 1e6
    return latents


async def _decode(told: Options) -> dict[str, Any]:
    stage = DecoderStage(told)
    stage.start()
    latents = overflowing_latents()
    together = await stage.decode(DecodeRequest(latents=latents))
    alone = [await stage.decode(DecodeRequest(latents=latents[row : row + 1])) for row in range(len(latents))]
    numerics, counted = (await stage.identity()).numerics, stage.float32_rows
    stage.close()
    return {
        "precision": numerics.precision,
        "float32_rows": together.float32_rows,
        "counted": counted,
        "alone": together.pixels_sha256 == tuple(digest for each in alone for digest in each.pixels_sha256),
        "pixels": _pixels(together).tolist(),
    }


def _pixels(decoded: Decoded) -> Any:
    assert isinstance(decoded.images, np.ndarray)
    return decoded.images


def main(model: str, cache_folder: str) -> dict[str, Any]:
    vars(precision)["has_float16"] = lambda: True
    told = {"model": model, "cache_folder": Path(cache_folder), "engine": "tensorflow"}
    half, whole = (
        asyncio.run(_decode(Options(precision=each, sizes=((32, 32),), batch_sizes=(1, 2), **told)))
        for each in ("float16", "float32")
    )
    return {"half": half, "whole": whole}


if __name__ == "__main__":
    json.dump(main(*sys.argv[1:]), sys.stdout)
