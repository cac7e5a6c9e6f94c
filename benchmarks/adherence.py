"""How well the pictures do what the prompt says, measured on the pixels. `python -m benchmarks.adherence --help`.

First form, for the grammar of first light: "a <colour> <shape> on a <colour> background". The thing's colour is the median
over the middle of where that shape has its colour; the background's is the median over the border; each is named by the nearest
anchor.
The same measurement on pictures that the world drew itself is printed beside: it is the error of the judge.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import circumstances, write_results
from training.judge import judge
from training.world.captions import plain_caption
from training.world.draw import draw
from training.world.scenes import Grammar, random_scene
from training.world.sheet import save_sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vignette", help="an embedded model or a folder")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--sampler", default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--guidance", type=float, default=None)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--sheet", type=Path, default=None, help="where to write the contact sheet")
    parser.add_argument("--keep", action="store_true", help="keep the numbers in benchmarks/results/adherence.json")
    arguments = parser.parse_args()

    rng = np.random.default_rng(arguments.seed)
    scenes = [random_scene(rng, Grammar.FIRST_LIGHT) for _ in range(arguments.prompts)]
    drawn = np.stack([draw(scene, rng).image for scene in scenes])

    from training.paint import Painter
    from triptych.checkpoints.registry import find_model

    model = find_model(arguments.model)
    facts = model.facts
    settings: dict[str, Any] = {
        "sampler": arguments.sampler or facts.sampler,
        "num_steps": arguments.steps or facts.num_steps,
        "guidance_scale": arguments.guidance or facts.guidance_scale,
    }
    painter = Painter.of(model)
    started = time.perf_counter()
    images = painter.paint([plain_caption(scene) for scene in scenes], seeds=range(len(scenes)), **settings)
    seconds = time.perf_counter() - started
    document = {
        **circumstances(("keras", "openvino", "tensorflow-cpu", "numpy")),
        "prompts": len(scenes),
        **settings,
        "seconds_a_picture": round(seconds / len(scenes), 3),
        "generated": judge(images, scenes),
        "drawn": judge(drawn, scenes),
    }
    print(json.dumps(document, indent=2))
    if arguments.keep:
        write_results("adherence", document)
    if arguments.sheet:
        save_sheet(list(images), 10, arguments.sheet)


if __name__ == "__main__":
    main()
