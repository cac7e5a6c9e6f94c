"""`python -m training STAGE`: one stage of the recipe, or `all` in their order. Each goes on where it was interrupted.

`from-release` puts a released model's weights where the stages begin, for a machine that has no state of them. The backend is
Keras' own choice, KERAS_BACKEND: tensorflow on a CPU, jax on a large GPU, where this is the whole recipe in half an hour:

    KERAS_BACKEND=jax python -m training all --minutes 28 --times 8 --train-text --folder FOLDER
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

STAGES = ("tokenizer", "vae", "latents", "text", "unet", "masked-latents", "inpainting", "decoder", "tiny-decoder", "release")
# Of the minutes of `all`; what is left is for building networks, measuring reconstructions and releasing.
SHARES = {
    "vae": 0.28,
    "latents": 0.05,
    "text": 0.05,
    "unet": 0.29,
    "masked-latents": 0.03,
    "inpainting": 0.10,
    "decoder": 0.04,
    "tiny-decoder": 0.02,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", nargs="?", default="all", choices=(*STAGES, "all", "from-release", "judge"))
    parser.add_argument("--grammar", choices=("first_light", "one_thing", "full"), default="full")
    parser.add_argument("--steps", type=int, help="of one stage, those of earlier runs counted in")
    parser.add_argument(
        "--rows",
        type=int,
        help="of a batch of one stage, instead of 8, 96, 32, 32, 4 and 16 of vae, text, unet, inpainting, decoder, tiny-decoder",
    )
    parser.add_argument("--times", type=int, default=1, help="so many times these rows, for every stage: 8 for a large GPU")
    parser.add_argument("--rate", type=float, help="of learning, instead of the stage's own")
    parser.add_argument("--ema", type=float, help="of the U-Nets' averaged weights, instead of 0.999: less for a short run")
    parser.add_argument("--scenes", type=int, default=200_000, help="to encode")
    parser.add_argument(
        "--minutes", type=float, help="stop after these, the rate fallen by then; those of `all` are divided among the stages"
    )
    parser.add_argument("--constant-rate", action="store_true", help="do not let the rate fall at the end: the run will go on")
    parser.add_argument(
        "--train-text", action="store_true", help="let the text encoder learn with the U-Net, at a tenth of its rate"
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "mixed_bfloat16"),
        help="the faster one unless told: bfloat16 on a GPU and on processors that multiply it",
    )
    parser.add_argument("--folder", type=Path, help="where to release to, instead of the package")
    parser.add_argument("--version", type=int, help="of the release, instead of the one after the package's")
    arguments = parser.parse_args()
    if arguments.stage == "all" and (arguments.steps or arguments.rows or arguments.rate):
        parser.error("--steps, --rows and --rate are of one stage; for all there are --minutes and --times")

    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras

    for stage in STAGES if arguments.stage == "all" else (arguments.stage,):
        as_it_is = stage in ("release", "from-release")
        keras.mixed_precision.set_global_policy("float32" if as_it_is else arguments.precision or fastest_precision())
        _runner(stage, arguments)()


def fastest_precision() -> str:
    """bfloat16 where the hardware multiplies it; a processor that does not takes twice as long with it as with float32."""
    import keras

    from triptych.engines.hardware import has_bfloat16

    if keras.config.backend() == "jax":
        import jax

        if jax.default_backend() != "cpu":
            return "mixed_bfloat16"
    return "mixed_bfloat16" if has_bfloat16() else "float32"


def _runner(stage: str, arguments: argparse.Namespace) -> Callable[[], None]:
    from training.decoder import train_decoder
    from training.from_release import start_from_release
    from training.inpainting import train_inpainting
    from training.judge import train_judge
    from training.latents import cache_latents
    from training.masked_latents import cache_masked_latents
    from training.release import release
    from training.text import train_text
    from training.tiny_decoder import train_tiny_decoder
    from training.tokenizer import train_tokenizer
    from training.unet import train_unet
    from training.vae import train_vae
    from training.world.scenes import Grammar

    grammar = Grammar(arguments.grammar)
    minutes = arguments.minutes
    if minutes is not None and arguments.stage == "all":
        minutes *= SHARES.get(stage, 0.0)
    rate = {} if arguments.rate is None else {"rate": arguments.rate}
    decay = {"decay": 0.0} if arguments.constant_rate else {}
    ema = {} if arguments.ema is None else {"ema": arguments.ema}

    def rows(usual: int) -> int:
        return int((arguments.rows or usual) * arguments.times)

    runners: dict[str, Callable[[], None]] = {
        "tokenizer": train_tokenizer,
        "vae": lambda: train_vae(steps=arguments.steps or 20_000, rows=rows(8), minutes=minutes, **rate, **decay),
        "latents": lambda: cache_latents(scenes=arguments.scenes, grammar=grammar, minutes=minutes),
        "text": lambda: train_text(steps=arguments.steps or 6_000, rows=rows(96), minutes=minutes, **rate),
        "unet": lambda: train_unet(
            grammar=grammar,
            steps=arguments.steps or 30_000,
            rows=rows(32),
            train_text=arguments.train_text,
            minutes=minutes,
            **ema,
            **rate,
            **decay,
        ),
        "masked-latents": lambda: cache_masked_latents(scenes=arguments.scenes, grammar=grammar, minutes=minutes),
        "inpainting": lambda: train_inpainting(
            grammar=grammar,
            steps=arguments.steps or 20_000,
            rows=rows(32),
            minutes=minutes,
            **ema,
            **rate,
            **decay,
        ),
        "decoder": lambda: train_decoder(steps=arguments.steps or 20_000, rows=rows(4), minutes=minutes, **rate),
        "tiny-decoder": lambda: train_tiny_decoder(
            grammar=grammar, steps=arguments.steps or 20_000, rows=rows(16), minutes=minutes, **rate, **decay
        ),
        "release": lambda: release(arguments.folder, version=arguments.version),
        "from-release": start_from_release,
        "judge": lambda: train_judge(steps=arguments.steps or 2_000, rows=rows(16), minutes=minutes, **rate),
    }
    return runners[stage]


if __name__ == "__main__":
    main()
