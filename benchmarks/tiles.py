"""Stable Diffusion's decoder at 512, 768 and 1024 pixels, whole and in tiles: memory at the peak, and seconds of a picture.

Random weights. Each case is a decoder stage in a process of its own, started twice: the first time compiles, the second is
measured.
Needs the reference environment, and 16 GB of memory::

    .venv-reference/bin/python -m benchmarks.tiles

`--previews` measures something else instead, on any machine: a picture by vignette's VAE beside a preview by its tiny decoder. A
`--model` that has no tiny decoder gets one of TAESD's size with random weights. With `--preview-precision int8` the tiny decoder
is quantized first, by one picture.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.line_processes import Lines, line_process
from benchmarks.memory import PeakMemory
from benchmarks.report import circumstances, describe, markdown_table, write_results
from triptych.checkpoints.diffusers_folder import save_json
from triptych.checkpoints.registry import find_model
from triptych.checkpoints.weights import half_precision_file
from triptych.contract import DecodeRequest, StageName
from triptych.engines import Precision
from triptych.models.config import TinyVAEConfig
from triptych.serving.settings import StageSettings, read_settings
from triptych.stages.decoder import DecoderStage

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("triptych", "keras", "openvino", "numpy")
SIDES = (512, 768, 1024)
TILE_SIDES = (256, 384, 512, 768)
WHOLE = 2**20
"""A `tile_side` that nothing exceeds."""


def serve(task: Mapping[str, Any]) -> None:
    """A decoder stage that decodes the same latents for every line, and keeps every eighth pixel of the last picture."""
    lines = Lines()
    side = task["side"]
    stage = DecoderStage(
        read_settings(
            StageSettings,
            model=task["model"],
            cache_folder=Path(task["cache"]),
            sizes=((side, side),),
            tile_side=task["tile_side"],
            precision=task["precision"],
        )
    )
    stage.start()
    shape = (1, side // 8, side // 8, 4)
    request = DecodeRequest(latents=np.random.default_rng(0).standard_normal(shape, np.float32))

    async def decode() -> dict[str, float]:
        started = time.perf_counter()
        images = (await stage.decode(request)).images
        seconds = time.perf_counter() - started
        np.save(task["pixels"], np.asarray(images)[0, ::8, ::8])
        return {"seconds": seconds}

    identity = asyncio.run(stage.identity())
    lines.say({"tile_sizes": identity.tile_sizes, "precision": identity.numerics.precision})
    lines.answer(lambda _: asyncio.run(decode()))


def measure(task: Mapping[str, Any], pictures: int) -> dict[str, Any]:
    """One case: memory over the start from disk and all pictures, seconds of each picture after the first."""
    command = [sys.executable, "-m", "benchmarks.tiles", "--serve", json.dumps(task)]

    def running() -> Any:
        return line_process("decoder", command, folder=ROOT, environment=os.environ, on_line=lambda name, line: None)

    with running():
        pass
    with running() as process, PeakMemory(process.pid) as peak:
        seconds = [process.ask({})["seconds"] for _ in range(pictures + 1)][1:]
        facts = process.facts
    return {
        "side": task["side"],
        "tile_side": task["tile_side"],
        **facts,
        "seconds": seconds,
        "anonymous_bytes": peak.anonymous,
        "total_bytes": peak.total,
    }


def measure_side(task: Mapping[str, Any], tile_sides: Sequence[int], pictures: int) -> list[dict[str, Any]]:
    """One size of picture: whole, then in tiles, each with the largest difference of its pixels from those of the whole."""
    cases = []
    whole: Any = None
    for tile_side in (WHOLE, *(each for each in tile_sides if each < task["side"])):
        print(f"Decoding {task['side']}x{task['side']}, tile_side {tile_side} ...", file=sys.stderr, flush=True)
        case = measure({**task, "tile_side": tile_side}, pictures)
        pixels = np.load(task["pixels"]).astype(int)
        whole = pixels if whole is None else whole
        cases.append({**case, "largest_difference": int(np.abs(pixels - whole).max())})
    return cases


def measure_previews(model: str, pictures: int, preview_precision: str) -> dict[str, Any]:
    """Seconds of the same latents, one row at the model's first size, as a picture and as a preview in turns."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        settings: dict[str, Any] = {"cache_folder": folder / "cache", "preview_precision": preview_precision}
        if find_model(model).tiny_vae is None:
            settings["preview_decoder"] = folder / "taesd"
            write_random_tiny_decoder(folder / "taesd")
        if preview_precision == Precision.INT8:
            settings["quantized_folder"] = folder / "quantized"
            quantize_decoder(read_settings(StageSettings, model=model, **settings))
        return asyncio.run(_measure_previews(read_settings(StageSettings, model=model, batch_sizes=(1,), **settings), pictures))


async def _measure_previews(settings: StageSettings, pictures: int) -> dict[str, Any]:
    stage = DecoderStage(settings)
    await asyncio.to_thread(stage.start)
    try:
        identity = await stage.identity()
        width, height = identity.sizes[0]
        rows = (1, height // identity.downsampling, width // identity.downsampling, identity.latent_channels)
        latents = np.random.default_rng(0).standard_normal(rows, np.float32)
        seconds: dict[str, list[float]] = {"picture": [], "preview": []}
        for _ in range(pictures + 1):
            for name, taken in seconds.items():
                started = time.perf_counter()
                await stage.decode(DecodeRequest(latents=latents, preview=name == "preview"))
                taken.append(time.perf_counter() - started)
    finally:
        stage.close()
    medians = {name: statistics.median(taken[1:]) for name, taken in seconds.items()}
    told = {"size": [width, height], "precision": identity.numerics.precision, "preview_precision": settings.preview_precision}
    return {**told, "pictures": pictures, "seconds": medians, "ratio": medians["picture"] / medians["preview"]}


def quantize_decoder(settings: StageSettings) -> None:
    """By one picture: enough for what is only to be timed."""
    from triptych.stages.calibration import ROWS_OF_A_PICTURE, quantize_model

    def tell(done: int, total: int) -> None:
        print(f"Making picture {done + 1} of {total} to quantize by ...", file=sys.stderr, flush=True)

    for _ in quantize_model(settings, (StageName.DECODER,), samples=ROWS_OF_A_PICTURE, prompts=None, on_progress=tell):
        pass


def write_random_tiny_decoder(folder: Path) -> None:
    """Of TAESD's size."""
    os.environ.setdefault("KERAS_BACKEND", "openvino")
    from triptych.models.tiny_vae import build_tiny_decoder

    config = TinyVAEConfig()
    folder.mkdir()
    save_json(folder / "config.json", {"_class_name": "AutoencoderTiny", **config.to_dict()})
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(half_precision_file([build_tiny_decoder(config)]))


def report_previews(found: Mapping[str, Any]) -> str:
    row = [f"{1000 * found['seconds'][name]:.2f}" for name in ("picture", "preview")]
    return markdown_table(("picture, ms", "preview, ms", "ratio"), [(*row, f"{found['ratio']:.1f}")])


def report(cases: Sequence[Mapping[str, Any]]) -> str:
    header = ("picture", "tiles of", "precision", "own memory at the peak, GB", "seconds", "largest difference of 255")
    rows = [
        (
            f"{each['side']}x{each['side']}",
            "whole" if each["tile_side"] == WHOLE else "x".join(map(str, each["tile_sizes"][0])),
            each["precision"],
            f"{each['anonymous_bytes'] / 1e9:.2f}",
            f"{statistics.median(each['seconds']):.2f}",
            each["largest_difference"],
        )
        for each in cases
    ]
    return markdown_table(header, rows)


def main() -> None:
    """Measures, prints Markdown, and keeps the numbers in benchmarks/results/tiles.json as they come, or previews.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--model", help="a model in diffusers' layout; else a Stable Diffusion 1.5 is written and deleted")
    parser.add_argument("--sides", nargs="+", type=int, default=SIDES)
    parser.add_argument("--tile-sides", nargs="+", type=int, default=TILE_SIDES)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--pictures", type=int, default=5)
    parser.add_argument("--previews", action="store_true", help="of vignette, or of --model: picture and preview in turns")
    parser.add_argument("--preview-precision", choices=("auto", "int8"), default="auto")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(json.loads(arguments.serve))
        return
    if arguments.preview_precision != "auto" and not arguments.previews:
        parser.error("--preview-precision goes with --previews")
    if arguments.previews:
        model, of_previews = arguments.model or "vignette", arguments.preview_precision
        given = "" if arguments.model is None else " --model FOLDER"
        given += "" if of_previews == "auto" else f" --preview-precision {of_previews}"
        told = circumstances(PACKAGES) | {"command": f"python -m benchmarks.tiles --previews{given}"}
        found = measure_previews(model, arguments.pictures, of_previews)
        name = find_model(model).facts.model
        parts = ["previews", *([] if name == "vignette" else [name]), *([] if of_previews == "auto" else [of_previews])]
        write_results("-".join(parts), told | found | {"model": name})
        print(report_previews(found), "\n\n" + describe(told))
        return
    sides, tile_sides = (" ".join(map(str, each)) for each in (arguments.sides, arguments.tile_sides))
    options = f"--sides {sides} --tile-sides {tile_sides} --precision {arguments.precision} --pictures {arguments.pictures}"
    told = circumstances(PACKAGES) | {"command": f"python -m benchmarks.tiles {options}"}
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        if (model := arguments.model) is None:
            from benchmarks.random_checkpoint import write_stable_diffusion_1

            model = f"{temporary}/checkpoint"
            write_stable_diffusion_1(Path(model))
        files = {"model": model, "cache": f"{temporary}/cache", "pixels": f"{temporary}/pixels.npy"}
        for side in arguments.sides:
            task = {**files, "precision": arguments.precision, "side": side}
            cases += measure_side(task, arguments.tile_sides, arguments.pictures)
            write_results("tiles", {**told, "cases": cases})
    print(report(cases), "\n\n" + describe(told))


if __name__ == "__main__":
    main()
