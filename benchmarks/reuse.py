"""What leaving out parts of the U-Net's work costs in likeness and gains in time. `python -m benchmarks.reuse --help`.

The same prompts and seeds go through the real pipeline under every `cache_interval`, one picture after the other: in each round
one of each, and every round begins with another. With `--guidance-start` or `--guidance-end` they go through it under that
guidance interval too. Seconds are the diffusion stage's for a picture; how much faster it is, is the median of the rounds' own
ratios, so that what slows a round down falls out. Likeness is the PSNR of a picture to that of the same seed with nothing left
out. Random weights (`--full-size`) give the time of a real size, and pictures that say nothing.

A full-size model is written by the reference environment::

    .venv-reference/bin/python -m benchmarks.reuse --full-size
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.adherence import kept_out_prompts, local_pipeline
from benchmarks.report import circumstances, describe, markdown_table, write_results
from training.world.scenes import Grammar
from triptych.contract import StageName
from triptych.pipeline import Generated, GenerateRequest, Pipeline

INTERVALS = (1, 2, 3, 5)
PLAIN = "1"
"""With nothing left out."""

PACKAGES = ("triptych", "keras", "openvino", "numpy")


@dataclass(frozen=True, kw_only=True)
class Made:
    """One picture: how long its denoising took, and its pixels, uint8 (H, W, 3)."""

    seconds: float
    image: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vignette", help="an embedded model or a folder")
    parser.add_argument("--full-size", action="store_true", help="instead, a Stable Diffusion 1.5 with random weights: 2.1 GB")
    parser.add_argument("--intervals", type=int, nargs="+", default=INTERVALS, help="beside 1, without which there is no ratio")
    parser.add_argument("--pictures", type=int, default=20, help="rounds that count; one more comes before")
    parser.add_argument("--sampler", help="the model's own unless told")
    parser.add_argument("--steps", type=int, help="the model's own unless told")
    parser.add_argument("--guidance", type=float, help="the model's own unless told")
    parser.add_argument("--guidance-start", type=float, default=0.0, help="share of the steps from which on there is guidance")
    parser.add_argument("--guidance-end", type=float, default=1.0, help="share of the steps up to which there is")
    parser.add_argument("--seed", type=int, default=7, help="of the prompts; those of the pictures are counted from 0")
    parser.add_argument(
        "--keep", nargs="?", const="reuse", metavar="NAME", help="keep the numbers in benchmarks/results/NAME.json"
    )
    arguments = parser.parse_args()

    os.environ.setdefault("KERAS_BACKEND", "openvino")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.full_size:
            from benchmarks.random_checkpoint import write_stable_diffusion_1

            write_stable_diffusion_1(Path(folder))
            arguments.model = folder
        document = asyncio.run(measure(arguments))
    print(summary(document))
    if arguments.keep:
        write_results(arguments.keep, document)


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The numbers."""
    from triptych.checkpoints.registry import find_model

    facts = find_model(arguments.model).facts
    settings: dict[str, Any] = {
        "sampler": arguments.sampler or facts.sampler,
        "num_steps": arguments.steps or facts.num_steps,
        "guidance_scale": facts.guidance_scale if arguments.guidance is None else arguments.guidance,
    }
    ways = ways_of(arguments.intervals, arguments.guidance_start, arguments.guidance_end)
    _, prompts = kept_out_prompts(arguments.pictures + 1, Grammar.FULL, arguments.seed)
    told = circumstances(PACKAGES)
    width, height = facts.sizes[0]
    rounds = []
    async with local_pipeline(arguments.model, feature_reuse=True) as pipeline:
        for number, prompt in enumerate(prompts):
            request = GenerateRequest(prompt=prompt, seed=number, width=width, height=height, **settings)
            rounds.append({way: await make(pipeline, replace(request, **ways[way])) for way in rotated(list(ways), number)})
    return {
        **told,
        "model": "Stable Diffusion 1.5's size, random weights" if arguments.full_size else facts.model,
        "size": f"{width}x{height}",
        "pictures": arguments.pictures,
        **settings,
        "intervals": {way: compared([(each[PLAIN], each[way]) for each in rounds[1:]]) for way in ways},
    }


def ways_of(intervals: Sequence[int], guidance_start: float, guidance_end: float) -> dict[str, dict[str, Any]]:
    """Parameters of requests by what a way is called, `PLAIN` first: every interval alone, then with the guidance interval."""
    ways: dict[str, dict[str, Any]] = {str(n): {"cache_interval": n} for n in sorted({int(PLAIN), *intervals})}
    guidance = {"guidance_start": guidance_start, "guidance_end": guidance_end}
    if (guidance_start, guidance_end) != (0, 1):
        words = f"guidance from {guidance_start:g} to {guidance_end:g}"
        ways |= {f"{n}, {words}": {**way, **guidance} for n, way in ways.items()}
    return ways


async def make(pipeline: Pipeline, request: GenerateRequest) -> Made:
    """The picture of a request."""
    async for event in pipeline.generate(request):
        if isinstance(event, Generated):
            return Made(seconds=event.seconds[StageName.DIFFUSION], image=np.asarray(event.images[0]))
    raise AssertionError("a pipeline ends in pictures")


def rotated(ways: Sequence[str], number: int) -> list[str]:
    """All of them, with another one first in every round."""
    first = number % len(ways)
    return [*ways[first:], *ways[:first]]


def compared(pairs: Sequence[tuple[Made, Made]]) -> dict[str, Any]:
    """What a way does, from pairs of a picture with nothing left out and the same picture made that way."""
    likeness = [psnr(plain.image, reused.image) for plain, reused in pairs]
    return {
        "seconds": round(statistics.median(reused.seconds for _, reused in pairs), 3),
        "times_as_fast": round(statistics.median(plain.seconds / reused.seconds for plain, reused in pairs), 3),
        "psnr": _finite(statistics.median(likeness)),
        "worst_psnr": _finite(min(likeness)),
    }


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Of two pictures, uint8 of one shape, in dB; infinite where they are the same."""
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def _finite(value: float) -> float | None:
    """As JSON has it: null is a picture that is the same."""
    return round(value, 2) if math.isfinite(value) else None


def summary(document: dict[str, Any]) -> str:
    """The numbers as Markdown."""

    def cell(value: float | None) -> str:
        return "the same" if value is None else f"{value:.1f}"

    rows = [
        [n, f"{each['seconds']:.3f}", f"{each['times_as_fast']:.2f}", cell(each["psnr"]), cell(each["worst_psnr"])]
        for n, each in document["intervals"].items()
    ]
    settings = f"{document['sampler']}, {document['num_steps']} steps, guidance {document['guidance_scale']:g}"
    header = ("cache_interval", "s a picture", "times as fast", "PSNR, dB", "worst PSNR, dB")
    return "\n".join(
        [
            describe(document),
            f"{document['model']}, {document['size']}, {settings}; medians of {document['pictures']} pictures.",
            "",
            markdown_table(header, rows),
        ]
    )


if __name__ == "__main__":
    main()
