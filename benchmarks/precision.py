"""What each precision costs in pictures, and gains in time and memory. `python -m benchmarks.precision --help`.

The same prompts and seeds are painted at each precision and compared with float32's pictures: by the U-Net alone (its latents
decoded in float32), by the decoder alone (float32's latents decoded by it) and by both. The judge of `benchmarks.adherence` marks
each precision's pictures. A step is a guided evaluation of the U-Net; steps are timed in turns, A B A B, so that what else the
machine does falls on all alike. Memory is that of a process of its own for each precision, after one picture.

int8 is there where `triptych quantize` has made it before; what this machine does not compute in is left out, and named.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.adherence import judged, kept_out_prompts, teach_judge
from benchmarks.memory import resident_memory
from benchmarks.report import circumstances, describe, markdown_table, quantile, write_results
from training.world.draw import draw
from training.world.scenes import Grammar, Scene
from triptych.contract import DecodeRequest, Denoised, DenoiseRequest, EncodeRequest, Float32, UInt8
from triptych.errors import StartError
from triptych.serving.settings import StageSettings, read_settings
from triptych.stages.decoder import DecoderStage
from triptych.stages.diffusion import DiffusionStage
from triptych.stages.text_encoder import TextEncoderStage

REFERENCE = "float32"
PRECISIONS = (REFERENCE, "bfloat16", "float16", "int8")
AT_A_TIME = 8
MOST_DECIBEL = 100.0
"""Of pictures that are the same."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The two stages whose precision is in question."""

    diffusion: DiffusionStage
    decoder: DecoderStage

    def close(self) -> None:
        self.diffusion.close()
        self.decoder.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vignette", help="an embedded model or a folder of one")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument(
        "--grammar", type=Grammar, choices=tuple(Grammar), default=Grammar.FULL, help="as in benchmarks.adherence"
    )
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=20, help="of timed steps, each precision once in each")
    parser.add_argument("--keep", action="store_true", help="keep the numbers in benchmarks/results/precision.json")
    parser.add_argument("--memory-of", choices=PRECISIONS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        json.dump(asyncio.run(memory_of(arguments.model, arguments.memory_of)), sys.stdout)
        return

    teach_judge()
    os.environ.setdefault("KERAS_BACKEND", "openvino")
    scenes, prompts = kept_out_prompts(arguments.prompts, arguments.grammar, arguments.seed)
    document = asyncio.run(measure(arguments, scenes, prompts))
    print(summary(document))
    if arguments.keep:
        write_results("precision", document)


async def measure(arguments: argparse.Namespace, scenes: Sequence[Scene], prompts: Sequence[str]) -> dict[str, Any]:
    """All numbers, by precision."""
    told = circumstances(("keras", "openvino", "nncf", "numpy"))
    pairs, left_out = await start_pairs(arguments.model)
    try:
        contexts = await contexts_of(arguments.model, prompts)
        requests = [await request_of(pairs[REFERENCE].diffusion, context, seed) for seed, context in enumerate(contexts)]
        latents = {name: await denoise_all(pair.diffusion, requests) for name, pair in pairs.items()}
        steps = await step_seconds({name: pair.diffusion for name, pair in pairs.items()}, requests[0], arguments.rounds)
        pictures = {name: await pictures_of(pairs, latents, name) for name in pairs}
        numerics = {name: await numerics_of(pair) for name, pair in pairs.items()}
    finally:
        for pair in pairs.values():
            pair.close()
    rng = np.random.default_rng([arguments.seed, 1])
    drawn, again = (np.stack([draw(scene, rng).image for scene in scenes]) for _ in range(2))
    reference = pictures[REFERENCE]["both"]
    return {
        **told,
        "model": arguments.model,
        "prompts": len(prompts),
        "rounds": arguments.rounds,
        "left_out": left_out,
        "precisions": {
            name: {
                "numerics": numerics[name],
                "psnr": {part: spread(decibels(images, reference)) for part, images in pictures[name].items()},
                "adherence": judged(scenes, pictures[name]["both"], drawn, again),
                "step_seconds": {"median": statistics.median(steps[name]), "p90": quantile(steps[name], 0.9)},
                "memory": in_a_process(arguments.model, name),
            }
            for name in pairs
        },
    }


async def start_pairs(model: str) -> tuple[dict[str, Pair], dict[str, str]]:
    """The stages at each precision that there is here, and why the others are not."""
    pairs: dict[str, Pair] = {}
    left_out: dict[str, str] = {}
    for precision in PRECISIONS:
        options = read_settings(StageSettings, model=model, precision=precision)
        pair = Pair(diffusion=DiffusionStage(options), decoder=DecoderStage(options))
        try:
            await asyncio.to_thread(pair.diffusion.start)
            await asyncio.to_thread(pair.decoder.start)
        except StartError as error:
            left_out[precision] = error.message
            pair.close()
            continue
        if (taken := (await pair.diffusion.identity()).numerics.precision) != precision:
            left_out[precision] = f"this machine takes {taken} in its place"
            pair.close()
            continue
        pairs[precision] = pair
    return pairs, left_out


async def contexts_of(model: str, prompts: Sequence[str]) -> list[Float32]:
    """Of each prompt and of none, (2, T, D), in float32 for all precisions alike."""
    stage = TextEncoderStage(read_settings(StageSettings, model=model, precision=REFERENCE))
    await asyncio.to_thread(stage.start)
    try:
        return [(await stage.encode(EncodeRequest(prompts=(prompt, "")))).context for prompt in prompts]
    finally:
        stage.close()


async def request_of(stage: DiffusionStage, contexts: Float32, seed: int) -> DenoiseRequest:
    """At the model's own settings."""
    identity = await stage.identity()
    width, height = identity.sizes[0]
    return DenoiseRequest(
        context=contexts[:1],
        unconditional_context=contexts[1:],
        seeds=np.array([seed], np.uint64),
        width=width,
        height=height,
        sampler=identity.samplers[0],
        num_steps=identity.default_num_steps,
        guidance_scale=identity.default_guidance_scale,
    )


async def denoise(stage: DiffusionStage, request: DenoiseRequest) -> Float32:
    async for event in stage.denoise(request):
        if isinstance(event, Denoised):
            return event.latents
    raise AssertionError("a denoising ends in its result")


async def denoise_all(stage: DiffusionStage, requests: Sequence[DenoiseRequest]) -> Float32:
    """Latents (n, H/8, W/8, C), a few pictures at a time."""
    places = asyncio.Semaphore(AT_A_TIME)

    async def one(request: DenoiseRequest) -> Float32:
        async with places:
            return await denoise(stage, request)

    return np.concatenate(await asyncio.gather(*map(one, requests)))


async def decode_all(stage: DecoderStage, latents: Float32) -> UInt8:
    parts = [latents[start : start + AT_A_TIME] for start in range(0, len(latents), AT_A_TIME)]
    return np.concatenate([np.asarray((await stage.decode(DecodeRequest(latents=part))).images) for part in parts])


async def pictures_of(pairs: Mapping[str, Pair], latents: Mapping[str, Float32], name: str) -> dict[str, UInt8]:
    """With the U-Net, the decoder, and both of them at a precision; what is not is float32's."""
    return {
        "unet": await decode_all(pairs[REFERENCE].decoder, latents[name]),
        "decoder": await decode_all(pairs[name].decoder, latents[REFERENCE]),
        "both": await decode_all(pairs[name].decoder, latents[name]),
    }


async def numerics_of(pair: Pair) -> dict[str, dict[str, str]]:
    return {stage.name: (await stage.identity()).numerics.told() for stage in (pair.diffusion, pair.decoder)}


async def step_seconds(stages: Mapping[str, DiffusionStage], request: DenoiseRequest, rounds: int) -> dict[str, list[float]]:
    """Seconds of a guided step of one picture, as the mean over its denoising; each precision once in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in stages}
    for _ in range(rounds):
        for name, stage in stages.items():
            started = time.perf_counter()
            await denoise(stage, request)
            seconds[name].append((time.perf_counter() - started) / request.num_steps)
    return seconds


def decibels(images: UInt8, reference: UInt8) -> list[float]:
    """Peak signal to noise of each picture."""
    errors = np.square(images.astype(np.float64) - reference).mean(axis=(1, 2, 3))
    return [MOST_DECIBEL if error == 0 else min(MOST_DECIBEL, 10 * float(np.log10(255**2 / error))) for error in errors]


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 1), "p10": round(quantile(values, 0.1), 1), "worst": round(min(values), 1)}


def in_a_process(model: str, precision: str) -> dict[str, int]:
    """What `memory_of` finds in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.precision", "--model", model, "--memory-of", precision]
    answer: dict[str, int] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return answer


async def memory_of(model: str, precision: str) -> dict[str, int]:
    """Bytes of this process that each stage added, once it has made one picture. Networks come compiled from disk."""
    options = read_settings(StageSettings, model=model, precision=precision)
    (contexts,) = await contexts_of(model, ["a red circle on a blue background"])
    before = resident_memory()
    diffusion = DiffusionStage(options)
    await asyncio.to_thread(diffusion.start)
    latents = await denoise(diffusion, await request_of(diffusion, contexts, seed=0))
    between = resident_memory()
    decoder = DecoderStage(options)
    await asyncio.to_thread(decoder.start)
    await decode_all(decoder, latents)
    after = resident_memory()
    diffusion.close()
    decoder.close()
    return {"diffusion_bytes": between.total - before.total, "decoder_bytes": after.total - between.total}


def summary(document: Mapping[str, Any]) -> str:
    """The numbers as Markdown."""
    reference = document["precisions"][REFERENCE]["step_seconds"]["median"]

    def row(name: str, found: Mapping[str, Any]) -> list[object]:
        psnr = [f"{found['psnr'][part]['median']} ({found['psnr'][part]['worst']})" for part in ("unet", "decoder", "both")]
        seconds = found["step_seconds"]["median"]
        megabytes = [round(found["memory"][f"{stage}_bytes"] / 2**20) for stage in ("diffusion", "decoder")]
        right = found["adherence"]["generated"]["together"]["all"]["share"]
        return [name, *psnr, f"{right:.3f}", f"{1000 * seconds:.1f}", f"{seconds / reference:.2f}", *megabytes]

    header = [
        *("", "U-Net, dB (worst)", "decoder, dB (worst)", "both, dB (worst)", "as asked, share"),
        *("step, ms", "over float32", "diffusion, MiB", "decoder, MiB"),
    ]
    lines = [describe(document), "", markdown_table(header, [row(name, each) for name, each in document["precisions"].items()])]
    lines += [f"Left out: {name}, {why}." for name, why in document["left_out"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
