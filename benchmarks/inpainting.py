"""How well a masked part is painted anew. `python -m benchmarks.inpainting --help`.

Scenes are drawn, one thing of each is masked by its box and a margin for its shadow, and the prompt says the scene with a thing
of another colour and another shape in that place: a scene that was kept out of training. The picture, the mask and the prompt go
through the real pipeline. A model of nine channels sees mask and picture; any other has the known latents put back.

The judge that marks `benchmarks.adherence` says whether the right thing in the right colour is in the mask. How well the picture
goes on across the mask's border is measured: the mean difference between neighbouring pixels of which one is masked. The world
draws the same scenes with the thing that was asked for, by the same chances, under what the mask keeps: its marks are the judge's
own error, and its step is the one to come near.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.adherence import local_pipeline, paint, teach_judge
from benchmarks.report import circumstances, describe, markdown_table, write_results
from training.masks import DOWNSAMPLING, box_mask
from training.world.captions import caption, plain_caption
from training.world.draw import draw
from training.world.scenes import COLOUR_NAMES, FIRST_LIGHT_SHAPES, SHAPES, Grammar, Scene, Thing, kept_out, random_scene
from training.world.sheet import save_sheet
from triptych.pipeline import Edit, GenerateRequest, Mask

MARGIN = 10
"""Pixels around a thing, within which its shadow ends."""

TARGETS = {"thing_and_colour": 0.85, "step_beyond_drawn": 6.0}
GROUPS = ("together", "one_thing", "two_things")
ON_THE_SHEET = 32


@dataclass(frozen=True, kw_only=True)
class Case:
    """One picture to change.

    Attributes:
        scene: What is to be there afterwards.
        thing: What of it the mask covers.
        prompt: Words for the scene.
        before: The picture, uint8 (128, 128, 3).
        mask: 255 where to paint, uint8 (128, 128).
        truth: What the world draws there, under what the mask keeps, uint8 (128, 128, 3).
    """

    scene: Scene
    thing: Thing
    prompt: str
    before: np.ndarray
    mask: np.ndarray
    truth: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vignette-inpainting", help="an embedded model or a folder, of nine channels or not")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--grammar", type=Grammar, choices=tuple(Grammar), default=Grammar.FULL)
    parser.add_argument("--sampler", help="the model's own unless told")
    parser.add_argument("--steps", type=int, help="the model's own unless told")
    parser.add_argument("--guidance", type=float, help="the model's own unless told")
    parser.add_argument("--resamples", type=int, default=1, help="num_resamples, for models without the further channels")
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--sheet", type=Path, help="where to write a contact sheet of the first of them: before, mask, after")
    parser.add_argument(
        "--keep", nargs="?", const="inpainting", metavar="NAME", help="keep the numbers in benchmarks/results/NAME.json"
    )
    arguments = parser.parse_args()

    teach_judge()
    os.environ.setdefault("KERAS_BACKEND", "openvino")
    cases = kept_out_cases(arguments.scenes, arguments.grammar, arguments.seed)
    document, images = asyncio.run(measure(arguments, cases))
    print(summary(document))
    if arguments.keep:
        write_results(arguments.keep, document)
    if arguments.sheet:
        save_sheet(list(triples(cases, images)), 12, arguments.sheet)


def kept_out_cases(count: int, grammar: Grammar, seed: int) -> list[Case]:
    """Pictures to change into scenes that no network was shown."""
    rng = np.random.default_rng(seed)
    cases: list[Case] = []
    while len(cases) < count:
        scene = random_scene(rng, grammar)
        place = int(rng.integers(len(scene.things)))
        thing = _another(scene.things[place], grammar, rng)
        wanted = replace(scene, things=(*scene.things[:place], thing, *scene.things[place + 1 :]))
        if kept_out(wanted):
            cases.append(_case(scene, wanted, place, grammar, rng))
    return cases


def _another(thing: Thing, grammar: Grammar, rng: np.random.Generator) -> Thing:
    """A thing of another colour and another shape in the same place and size."""
    shapes = FIRST_LIGHT_SHAPES if grammar is Grammar.FIRST_LIGHT else SHAPES

    def other(name: str, names: Sequence[str]) -> str:
        return str(rng.choice([each for each in names if each != name]))

    return replace(thing, colour=other(thing.colour, COLOUR_NAMES), shape=other(thing.shape, shapes))


def _case(scene: Scene, wanted: Scene, place: int, grammar: Grammar, rng: np.random.Generator) -> Case:
    chances = int(rng.integers(2**63))
    before, after = (draw(each, np.random.default_rng(chances)) for each in (scene, wanted))
    # A thing's box is round its pixels: a narrow one may give way to a wide one, so the mask covers both.
    mask = np.maximum(box_mask(before, place + 1, MARGIN), box_mask(after, place + 1, MARGIN))
    return Case(
        scene=wanted,
        thing=wanted.things[place],
        prompt=plain_caption(wanted) if grammar is Grammar.FIRST_LIGHT else caption(wanted, rng, ordered=True),
        before=before.image,
        mask=mask,
        truth=np.where(mask[..., None] > 0, after.image, before.image),
    )


async def measure(arguments: argparse.Namespace, cases: Sequence[Case]) -> tuple[dict[str, Any], np.ndarray]:
    """The numbers and the pictures."""
    from triptych.checkpoints.registry import find_model

    facts = find_model(arguments.model).facts
    settings: dict[str, Any] = {
        "sampler": arguments.sampler or facts.sampler,
        "num_steps": arguments.steps or facts.num_steps,
        "guidance_scale": arguments.guidance or facts.guidance_scale,
    }
    async with local_pipeline(arguments.model, edits=True) as pipeline:
        sees_masks = (await pipeline.diffusion.identity()).takes_masked_image
        requests = [
            request_of(case, seed, settings, sees_masks=sees_masks, num_resamples=arguments.resamples)
            for seed, case in enumerate(cases)
        ]
        started = time.perf_counter()
        images = await paint(pipeline, requests)
        seconds = time.perf_counter() - started
    document = {
        **circumstances(("keras", "openvino", "numpy")),
        "model": facts.model,
        "latent_space": facts.latent_space,
        "way": "nine channels" if sees_masks else "known latents put back",
        "grammar": str(arguments.grammar),
        "scenes": len(cases),
        "seed": arguments.seed,
        **settings,
        "num_resamples": arguments.resamples,
        "seconds_a_picture": round(seconds / len(cases), 3),
        **judged(cases, images),
        "targets": TARGETS,
    }
    return document, images


def request_of(case: Case, seed: int, settings: dict[str, Any], *, sees_masks: bool, num_resamples: int = 1) -> GenerateRequest:
    """What the gateway would make of the picture, the mask and the prompt."""
    from triptych.gateway.pictures import latent_mask

    mask = Mask(pixels=case.mask, latents=latent_mask(case.mask, DOWNSAMPLING), paste=case.mask)
    height, width = case.mask.shape
    return GenerateRequest(
        prompt=case.prompt,
        seed=seed,
        width=width,
        height=height,
        edit=Edit(image=case.before, mask=mask, strength=1.0, num_resamples=num_resamples),
        takes_masked_image=sees_masks,
        **settings,
    )


def judged(cases: Sequence[Case], images: np.ndarray) -> dict[str, Any]:
    """The tables of the pictures and of the drawn truth, and the steps across the masks' borders."""
    from training.judge import by_cell, load_judge, look, marks_within

    judge = load_judge()
    windows = np.stack([by_cell(case.mask > 0) >= 0.5 for case in cases]).astype(np.float32)
    truths, things = np.stack([case.truth for case in cases]), [case.thing for case in cases]
    marks, own = (marks_within(pictures, look(judge, pictures), things, windows) for pictures in (images, truths))
    steps, drawn_steps = (
        np.array([step_across(picture, case.mask) for picture, case in zip(pictures, cases, strict=True)])
        for pictures in (images, truths)
    )
    return {"painted": tables(cases, marks), "drawn": tables(cases, own), "colour_step": steps_of(steps, drawn_steps)}


def tables(cases: Sequence[Case], marks: Sequence[dict[str, bool]]) -> dict[str, Any]:
    """Shares of pictures with the right thing, the right colour and both in the mask: of all, of one thing and of two."""
    from training.judge import share

    def of(counts: tuple[int, ...]) -> dict[str, Any]:
        chosen = [mark for mark, case in zip(marks, cases, strict=True) if len(case.scene.things) in counts]
        return {
            "thing": share([mark["shape"] for mark in chosen]),
            "colour": share([mark["colour"] for mark in chosen]),
            "thing_and_colour": share([mark["shape"] and mark["colour"] for mark in chosen]),
        }

    return dict(zip(GROUPS, (of((1, 2)), of((1,)), of((2,))), strict=True))


def step_across(image: np.ndarray, mask: np.ndarray) -> float:
    """Mean difference between neighbouring pixels of which one is in the mask and one is not, over channels, in 0..255."""
    values, inside = image.astype(np.float32), mask > 0
    across, down = inside[:, 1:] != inside[:, :-1], inside[1:] != inside[:-1]
    steps = np.concatenate([np.abs(values[:, 1:] - values[:, :-1])[across], np.abs(values[1:] - values[:-1])[down]])
    return float(steps.mean())


def steps_of(painted: np.ndarray, drawn: np.ndarray) -> dict[str, Any]:
    """Means of steps, (n,), in 1/255, and how far the painted are beyond the drawn, with the 95 % interval of that."""
    beyond = painted - drawn
    half = 1.96 * float(beyond.std(ddof=1)) / np.sqrt(len(beyond)) if len(beyond) > 1 else float("inf")
    middle = float(beyond.mean())
    return {
        "painted": round(float(painted.mean()), 2),
        "drawn": round(float(drawn.mean()), 2),
        "beyond_drawn": round(middle, 2),
        "interval": (round(middle - half, 2), round(middle + half, 2)),
    }


def triples(cases: Sequence[Case], images: np.ndarray) -> list[np.ndarray]:
    """Before, what the mask keeps of it, after; of the first of them."""
    gray = np.uint8(128)
    shown = zip(cases[:ON_THE_SHEET], images[:ON_THE_SHEET], strict=True)
    return [
        picture
        for case, after in shown
        for picture in (case.before, np.where(case.mask[..., None] > 0, gray, case.before), after)
    ]


def summary(document: dict[str, Any]) -> str:
    """The numbers as Markdown."""

    def cell(row: dict[str, Any]) -> str:
        return f"{row['share']:.3f} ({row['interval'][0]:.2f} to {row['interval'][1]:.2f})" if row["count"] else ""

    painted, drawn = document["painted"], document["drawn"]["together"]
    rows = [[name, *(cell(painted[group][name]) for group in GROUPS), cell(drawn[name])] for name in drawn]
    counts = [str(painted[group]["thing"]["count"]) for group in GROUPS]
    step = document["colour_step"]
    lines = [
        describe(document),
        f"{document['model']}: {document['way']}.",
        "",
        markdown_table(["in the mask", *GROUPS, "drawn, together"], [["scenes", *counts, str(document["scenes"])], *rows]),
        "",
        f"Colour step across the border: {step['painted']} of 255, drawn {step['drawn']}; beyond it {step['beyond_drawn']} "
        f"({step['interval'][0]} to {step['interval'][1]}), where {TARGETS['step_beyond_drawn']} are allowed.",
        f"{document['seconds_a_picture']} s a picture.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
