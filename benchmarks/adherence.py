"""How well the pictures do what the prompt says, measured on the pixels. `python benchmarks/adherence.py --help`.

First form, for the grammar of first light: "a <colour> <shape> on a <colour> background". The thing's colour is the median
over the middle of where that shape has its colour; the background's is the median over the border; each is named by the nearest
anchor.
The same measurement on pictures that the world drew itself is printed beside: it is the error of the judge.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

from training.world.captions import plain_caption
from training.world.draw import SIDE, draw
from training.world.scenes import Grammar, Scene, kept_out, nearest_colour, random_scene
from training.world.shapes import PARTS
from training.world.sheet import save_sheet

BORDER = 8


def thing_colour(image: np.ndarray, shape: str) -> str:
    """The colour of a medium thing in the middle of a picture, uint8 (128, 128, 3)."""
    return nearest_colour(np.median(image[_inside(shape)], axis=0))


def background_colour(image: np.ndarray) -> str:
    """The colour of the border."""
    border = np.ones(image.shape[:2], bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    return nearest_colour(np.median(image[border], axis=0))


def _inside(shape: str) -> np.ndarray:
    """Where a thing of this shape in the middle of the picture surely has its colour: its inner half, wherever it may stand."""
    axis = (np.arange(SIDE, dtype=np.float32) + 0.5 - SIDE / 2) / (0.205 * SIDE)
    distance = PARTS[shape](axis[None, :] + 0 * axis[:, None], axis[:, None] + 0 * axis[None, :])[0].distance
    return distance < np.quantile(distance[distance < 0], 0.4)


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    z, share = 1.96, right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return round(float(middle - half), 3), round(float(middle + half), 3)


def judge(images: np.ndarray, scenes: list[Scene]) -> dict[str, dict[str, object]]:
    """Shares of pictures whose thing, background, and both have the colour that was asked for."""
    thing = [thing_colour(image, s.things[0].shape) == s.things[0].colour for image, s in zip(images, scenes, strict=True)]
    ground = [background_colour(image) == s.background for image, s in zip(images, scenes, strict=True)]
    both = [a and b for a, b in zip(thing, ground, strict=True)]
    rows = {"thing_colour": thing, "background": ground, "both": both}
    table: dict[str, dict[str, object]] = {}
    table |= {name: {"share": round(float(np.mean(r)), 3), "interval": wilson(sum(r), len(r))} for name, r in rows.items()}
    unseen = [right for right, scene in zip(both, scenes, strict=True) if kept_out(scene)]
    return table | {"both_where_kept_out": {"share": round(float(np.mean(unseen)), 3), "count": len(unseen)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vignette", help="an embedded model or a folder")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--sampler", default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--guidance", type=float, default=None)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--sheet", type=Path, default=None, help="where to write the contact sheet")
    arguments = parser.parse_args()

    rng = np.random.default_rng(arguments.seed)
    scenes = [random_scene(rng, Grammar.FIRST_LIGHT) for _ in range(arguments.prompts)]
    drawn = np.stack([draw(scene, rng).image for scene in scenes])

    from training.paint import Painter
    from triptych.checkpoints.diffusers_folder import DiffusersFolder
    from triptych.checkpoints.registry import find_model

    folder = find_model(arguments.model)
    facts = DiffusersFolder(folder).facts
    settings: dict[str, Any] = {
        "sampler": arguments.sampler or facts.sampler,
        "num_steps": arguments.steps or facts.num_steps,
        "guidance_scale": arguments.guidance or facts.guidance_scale,
    }
    painter = Painter.from_folder(folder)
    started = time.perf_counter()
    images = painter.paint([plain_caption(scene) for scene in scenes], seeds=range(len(scenes)), **settings)
    seconds = time.perf_counter() - started
    print(
        json.dumps(
            {
                "date": time.strftime("%Y-%m-%d"),
                "machine": f"{platform.processor() or platform.machine()}, {platform.system()}",
                "prompts": len(scenes),
                **settings,
                "seconds_a_picture": round(seconds / len(scenes), 3),
                "generated": judge(images, scenes),
                "drawn": judge(drawn, scenes),
            },
            indent=2,
        )
    )
    if arguments.sheet:
        save_sheet(list(images), 10, arguments.sheet)


if __name__ == "__main__":
    main()
