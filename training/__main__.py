"""`python -m training STAGE`: one stage of the recipe, or `all` in their order. Each goes on where it was interrupted.

The backend is Keras' own choice, KERAS_BACKEND: tensorflow on a CPU, jax on a large GPU.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

STAGES = ("tokenizer", "vae", "latents", "text", "unet", "decoder", "release")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("stage", nargs="?", default="all", choices=(*STAGES, "all"))
    parser.add_argument("--grammar", choices=("first_light", "one_thing", "full"), default="full")
    parser.add_argument("--steps", type=int, help="of vae, text or unet, those of earlier runs counted in")
    parser.add_argument(
        "--rows", type=int, help="of a batch: more for a GPU than the 8, 96, 32 and 2 of vae, text, unet and decoder"
    )
    parser.add_argument("--scenes", type=int, default=200_000, help="to encode")
    parser.add_argument("--minutes", type=float, help="stop after these")
    parser.add_argument("--constant-rate", action="store_true", help="do not let the rate fall at the end: the run will go on")
    parser.add_argument(
        "--train-text", action="store_true", help="let the text encoder learn with the U-Net, at a tenth of its rate"
    )
    parser.add_argument("--precision", choices=("float32", "mixed_bfloat16"), default="mixed_bfloat16")
    parser.add_argument("--folder", type=Path, help="where to release to, instead of the package")
    arguments = parser.parse_args()

    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras

    keras.mixed_precision.set_global_policy("float32" if arguments.stage == "release" else arguments.precision)
    for stage in STAGES if arguments.stage == "all" else (arguments.stage,):
        _runner(stage, arguments)()


def _runner(stage: str, arguments: argparse.Namespace) -> Callable[[], None]:
    from training.decoder import train_decoder
    from training.latents import cache_latents
    from training.release import release
    from training.text import train_text
    from training.tokenizer import train_tokenizer
    from training.unet import train_unet
    from training.vae import train_vae
    from training.world.scenes import Grammar

    grammar = Grammar(arguments.grammar)
    deadline = None if arguments.minutes is None else time.time() + 60 * arguments.minutes
    decay = 0.0 if arguments.constant_rate else 0.2
    runners: dict[str, Callable[[], None]] = {
        "tokenizer": train_tokenizer,
        "vae": lambda: train_vae(steps=arguments.steps or 20_000, rows=arguments.rows or 8, deadline=deadline),
        "latents": lambda: cache_latents(scenes=arguments.scenes, grammar=grammar),
        "text": lambda: train_text(steps=arguments.steps or 6_000, rows=arguments.rows or 96, deadline=deadline),
        "unet": lambda: train_unet(
            grammar=grammar,
            steps=arguments.steps or 30_000,
            rows=arguments.rows or 32,
            decay=decay,
            train_text=arguments.train_text,
            deadline=deadline,
        ),
        "decoder": lambda: train_decoder(steps=arguments.steps or 20_000, rows=arguments.rows or 2, deadline=deadline),
        "release": lambda: release(arguments.folder),
    }
    return runners[stage]


if __name__ == "__main__":
    main()
