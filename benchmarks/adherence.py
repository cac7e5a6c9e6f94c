"""How well the pictures do what the prompt says, and how like the drawn ones they are. `python -m benchmarks.adherence --help`.

Prompts of scenes that were kept out of training go through the real pipeline, three stages in this process, at the model's own
settings. A judge that was taught on drawn pictures alone (`python -m training judge`) marks background, colour, place, size,
shape and number. The same scenes drawn by the world itself get the same marks: that is the judge's own error. The feature
distance is Fréchet's, in the judge's penultimate layer: from the generated pictures to drawn ones, and from these to drawn ones
again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import circumstances, describe, markdown_table, write_results
from training.cache import cache_folder
from training.world.captions import caption, plain_caption
from training.world.draw import draw
from training.world.scenes import Grammar, Scene, kept_out, pair_kept_out, random_scene
from training.world.sheet import save_sheet
from triptych.pipeline import Generated, GenerateRequest, Pipeline
from triptych.serving.settings import StageSettings, read_settings

AT_A_TIME = 16
SHARE_OF_TWO = 0.4
SHEET = 60
TARGETS = {
    "background": 0.98,
    "colour": 0.97,
    "place": 0.97,
    "size": 0.95,
    "shape": 0.94,
    "all_of_one_thing": 0.85,
    "pairs_never_seen": 0.80,
    "all_of_two_things": 0.60,
    "psnr": 32.0,
    "worst_psnr": 28.0,
    "feature_distance_ratio": 1.5,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vignette", help="an embedded model or a folder")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument(
        "--grammar",
        type=Grammar,
        choices=tuple(Grammar),
        default=Grammar.FULL,
        help="full: two prompts in five name two things; first_light: kept out or not, there are too few",
    )
    parser.add_argument("--sampler", help="the model's own unless told")
    parser.add_argument("--steps", type=int, help="the model's own unless told")
    parser.add_argument("--guidance", type=float, help="the model's own unless told")
    parser.add_argument("--cache-interval", type=int, default=1, help="see benchmarks.reuse")
    parser.add_argument("--guidance-start", type=float, default=0.0, help="share of the steps from which on there is guidance")
    parser.add_argument("--guidance-end", type=float, default=1.0, help="share of the steps up to which there is")
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--sheet", type=Path, help="where to write a contact sheet of the first of them")
    parser.add_argument("--drawn-sheet", type=Path, help="where to write the same scenes as the world draws them")
    parser.add_argument(
        "--keep", nargs="?", const="adherence", metavar="NAME", help="keep the numbers in benchmarks/results/NAME.json"
    )
    arguments = parser.parse_args()

    teach_judge()
    os.environ.setdefault("KERAS_BACKEND", "openvino")
    scenes, prompts = kept_out_prompts(arguments.prompts, arguments.grammar, arguments.seed)
    document, images, drawn = asyncio.run(measure(arguments, scenes, prompts))
    print(summary(document))
    if arguments.keep:
        write_results(arguments.keep, document)
    if arguments.sheet:
        save_sheet(list(images[:SHEET]), 10, arguments.sheet)
    if arguments.drawn_sheet:
        save_sheet(list(drawn[:SHEET]), 10, arguments.drawn_sheet)


def teach_judge() -> None:
    """Teaches the judge, where that has not been done yet, in a process of its own: it takes a backend that trains."""
    if not (cache_folder("judge") / "judge.weights.h5").exists():
        environment = {"KERAS_BACKEND": "tensorflow", **os.environ}
        subprocess.run([sys.executable, "-m", "training", "judge"], check=True, env=environment)


def kept_out_prompts(count: int, grammar: Grammar, seed: int) -> tuple[list[Scene], list[str]]:
    """Scenes that no U-Net was shown, one thing before two, and words for them that leave nothing open."""
    rng = np.random.default_rng(seed)
    two = round(count * SHARE_OF_TWO) if grammar is Grammar.FULL else 0
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = random_scene(rng, grammar)
        wanted = 1 if len(scenes) < count - two else 2
        if len(scene.things) == wanted and (grammar is Grammar.FIRST_LIGHT or kept_out(scene)):
            scenes.append(scene)
    if grammar is Grammar.FIRST_LIGHT:
        return scenes, [plain_caption(scene) for scene in scenes]
    return scenes, [caption(scene, rng, ordered=True) for scene in scenes]


async def measure(
    arguments: argparse.Namespace, scenes: Sequence[Scene], prompts: Sequence[str]
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """The numbers, the generated pictures and the drawn ones."""
    from triptych.checkpoints.registry import find_model

    facts = find_model(arguments.model).facts
    settings: dict[str, Any] = {
        "sampler": arguments.sampler or facts.sampler,
        "num_steps": arguments.steps or facts.num_steps,
        "guidance_scale": arguments.guidance or facts.guidance_scale,
        "cache_interval": arguments.cache_interval,
        "guidance_start": arguments.guidance_start,
        "guidance_end": arguments.guidance_end,
    }
    async with local_pipeline(arguments.model, feature_reuse=arguments.cache_interval > 1) as pipeline:
        started = time.perf_counter()
        images = await paint(pipeline, requests_of(prompts, facts.sizes[0], settings))
        seconds = time.perf_counter() - started

    rng = np.random.default_rng([arguments.seed, 1])
    drawn, again = (np.stack([draw(scene, rng).image for scene in scenes]) for _ in range(2))
    document = {
        **circumstances(("keras", "openvino", "numpy")),
        "model": facts.latent_space,
        "grammar": str(arguments.grammar),
        "prompts": len(scenes),
        "seed": arguments.seed,
        **settings,
        "seconds_a_picture": round(seconds / len(scenes), 3),
        **judged(scenes, images, drawn, again),
        "reconstruction": reconstruction_of(arguments.model),
        "targets": TARGETS,
    }
    return document, images, drawn


@asynccontextmanager
async def local_pipeline(model: str, *, edits: bool = False, **settings: Any) -> AsyncIterator[Pipeline]:
    """The three stages in this process, and the image encoder where pictures are changed.

    Args:
        settings: Of the stages, whatever the environment says.
    """
    from triptych.stages.decoder import DecoderStage
    from triptych.stages.diffusion import DiffusionStage
    from triptych.stages.image_encoder import ImageEncoderStage
    from triptych.stages.text_encoder import TextEncoderStage

    options = read_settings(StageSettings, model=model, **settings)
    text_encoder, diffusion, decoder = TextEncoderStage(options), DiffusionStage(options), DecoderStage(options)
    image_encoder = ImageEncoderStage(options) if edits else None
    stages = [stage for stage in (text_encoder, diffusion, decoder, image_encoder) if stage is not None]
    try:
        for stage in stages:
            await asyncio.to_thread(stage.start)
        yield Pipeline(text_encoder, diffusion, decoder, image_encoder)
    finally:
        for stage in stages:
            await asyncio.to_thread(stage.close)


def requests_of(prompts: Sequence[str], size: tuple[int, int], settings: dict[str, Any]) -> list[GenerateRequest]:
    """A picture of each prompt, seeds counted from 0."""
    return [
        GenerateRequest(prompt=prompt, seed=seed, width=size[0], height=size[1], **settings)
        for seed, prompt in enumerate(prompts)
    ]


async def paint(pipeline: Pipeline, requests: Sequence[GenerateRequest]) -> np.ndarray:
    """The picture of each request, uint8 (n, H, W, 3); a few at a time."""
    places = asyncio.Semaphore(AT_A_TIME)

    async def one(request: GenerateRequest) -> np.ndarray:
        async with places:
            async for event in pipeline.generate(request):
                if isinstance(event, Generated):
                    return np.asarray(event.images[0])
        raise AssertionError("a pipeline ends in pictures")

    return np.stack(await asyncio.gather(*map(one, requests)))


def judged(scenes: Sequence[Scene], images: np.ndarray, drawn: np.ndarray, again: np.ndarray) -> dict[str, Any]:
    """The tables of the generated pictures and of the drawn ones, and the feature distances."""
    from training.judge import frechet_distance, load_judge, look, marks_of

    judge = load_judge()
    seen, seen_drawn, seen_again = (look(judge, pictures) for pictures in (images, drawn, again))
    return {
        "generated": tables(scenes, marks_of(images, seen, scenes)),
        "drawn": tables(scenes, marks_of(drawn, seen_drawn, scenes)),
        "feature_distance": distances(
            frechet_distance(seen.features, seen_drawn.features), frechet_distance(seen_drawn.features, seen_again.features)
        ),
    }


def tables(scenes: Sequence[Scene], marks: Sequence[dict[str, bool]]) -> dict[str, Any]:
    """Shares by attribute: of all, of one thing, of colours and shapes never seen together, and of two things."""
    from training.judge import table

    alone = [len(scene.things) == 1 for scene in scenes]
    unseen = [
        one and pair_kept_out(scene.things[0].colour, scene.things[0].shape) for one, scene in zip(alone, scenes, strict=True)
    ]

    def of(chosen: Sequence[bool]) -> dict[str, Any]:
        return table([mark for mark, wanted in zip(marks, chosen, strict=True) if wanted])

    return {
        "together": table(marks),
        "one_thing": of(alone),
        "pairs_never_seen": of(unseen),
        "two_things": of([not one for one in alone]),
    }


def distances(to_drawn: float, among_drawn: float) -> dict[str, float]:
    return {
        "generated_to_drawn": round(to_drawn, 4),
        "drawn_to_drawn": round(among_drawn, 4),
        "ratio": round(to_drawn / among_drawn, 2),
    }


def reconstruction_of(model: str) -> dict[str, Any]:
    """Peak signal to noise of the model's autoencoder in dB."""
    from training.vae import reconstruction
    from triptych.checkpoints.checkpoint import Network, load_network
    from triptych.checkpoints.registry import find_model

    checkpoint = find_model(model)
    return reconstruction(load_network(checkpoint, Network.VAE_ENCODER), load_network(checkpoint, Network.VAE_DECODER))


def summary(document: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    groups = ("together", "one_thing", "pairs_never_seen", "two_things")

    def cell(row: dict[str, Any]) -> str:
        return f"{row['share']:.3f} ({row['interval'][0]:.2f} to {row['interval'][1]:.2f})" if row["count"] else ""

    rows = [
        [name, *(cell(document["generated"][group][name]) for group in groups), cell(document["drawn"]["together"][name])]
        for name in document["drawn"]["together"]
    ]
    counts = [str(document["generated"][group]["all"]["count"]) for group in groups]
    lines = [
        describe(document),
        "",
        markdown_table(["", *groups, "drawn, together"], [["prompts", *counts, str(document["prompts"])], *rows]),
        "",
        f"Feature distance: {json.dumps(document['feature_distance'])}.",
        f"Reconstruction: {json.dumps(document['reconstruction'])}.",
        f"{document['seconds_a_picture']} s a picture.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
