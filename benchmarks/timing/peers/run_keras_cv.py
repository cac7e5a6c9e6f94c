"""keras-cv's StableDiffusion with random weights: a peer's script, `python -m benchmarks.timing.peers.run_keras_cv TASK`.

`as-it-comes` is its constructor's default: float32, compiled by XLA. keras-cv's guide recommends mixed precision with XLA, which
is `bfloat16`. Its pictures are made as `text_to_image` makes them, with its own sampler.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.line_processes import Lines
from benchmarks.timing.peers.stopwatches import Stopwatches

PROMPT = "a red circle on a blue background"
GUIDANCE_SCALE = 7.5
MAX_PROMPT_LENGTH = 77
_MERGES_OF_CLIP = 49152 - 256 - 2


def make_pipeline(task: dict[str, Any]) -> Any:
    """Theirs, whose networks are made without a download. Their initial values are random."""
    import keras_cv
    from keras_cv.src.models.stable_diffusion import clip_tokenizer, decoder, diffusion_model, text_encoder

    height, width, xla = task["height"], task["width"], task["setting"] != "without-xla"
    theirs = keras_cv.models.StableDiffusion(height, width, jit_compile=xla)
    theirs._text_encoder = text_encoder.TextEncoder(MAX_PROMPT_LENGTH, download_weights=False)
    theirs._diffusion_model = diffusion_model.DiffusionModel(height, width, MAX_PROMPT_LENGTH, download_weights=False)
    theirs._decoder = decoder.Decoder(height, width, download_weights=False)
    for network in (theirs._text_encoder, theirs._diffusion_model, theirs._decoder):
        if xla:  # as their properties do when they have downloaded
            network.compile(jit_compile=True)
    with tempfile.TemporaryDirectory() as folder:
        theirs._tokenizer = clip_tokenizer.SimpleTokenizer(str(_write_vocabulary(Path(task["model"]), Path(folder))))
    return theirs


def _write_vocabulary(model: Path, folder: Path) -> Path:
    """The merges of the model's tokenizer in the file that keras-cv would download."""
    merges = (model / "tokenizer" / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    path = folder / "bpe_simple_vocab_16e6.txt.gz"
    lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', *merges[:_MERGES_OF_CLIP], ""]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def main() -> None:
    """Is ready after one picture, which compiles what is to be compiled."""
    lines, watches = Lines(), Stopwatches()
    task = json.loads(sys.argv[1])
    import keras

    if task["setting"] == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    theirs = make_pipeline(task)
    theirs._text_encoder.predict_on_batch = watches.around("encode", theirs._text_encoder.predict_on_batch)
    theirs._decoder.predict_on_batch = watches.around("decode", theirs._decoder.predict_on_batch)
    whole = watches.around("whole", theirs.text_to_image)

    def picture(asked: dict[str, Any]) -> dict[str, float]:
        whole(
            PROMPT,
            batch_size=asked["num_images"],
            num_steps=asked["num_steps"],
            unconditional_guidance_scale=GUIDANCE_SCALE,
            seed=asked["seed"],
        )
        seconds = watches.take()
        rest = seconds["whole"] - seconds["encode"] - seconds["decode"]
        return {"encode": seconds["encode"], "diffuse": rest, "decode": seconds["decode"]}

    picture({**task, "num_steps": task["warm_up_steps"], "seed": 0})
    precision = "mixed bfloat16" if task["setting"] == "bfloat16" else "float32"
    lines.say({"precision": precision, "versions": {"keras-cv": version("keras-cv"), "keras": keras.__version__}})
    lines.answer(picture)


if __name__ == "__main__":
    main()
