"""keras-cv on random weights, in a process of its own whose Keras runs on TensorFlow.

::

    python -m tests.reference.run_keras_cv keras-cv/sd-v1-4 FOLDER --size 128 --decoder-size 128 --narrow

Leaves in the folder:

    files/             the .h5 files and the vocabulary, as keras-cv would have downloaded them
    inputs.npz         what the networks are tried with, under our names
    outputs.npz        what they answer, the decoder in single and in double precision
    picture.npz        what `generate_image` makes of PROMPT, the tokens of PROMPTS, and the epsilons of the norms
    model/             with --narrow only: our folder, written through a `get_file` that hands out the files
"""

from __future__ import annotations

import argparse
import gzip
import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from tests.reference.narrow_keras_cv import narrow, narrow_keras_cv
from tests.tiny_models import randomize
from triptych.checkpoints import keras_cv as ours
from triptych.sampling.noise import Purpose, normal

PROMPT, NEGATIVE_PROMPT = "a photo of an astronaut riding a horse &amp; a café", ""
PROMPTS = [PROMPT, NEGATIVE_PROMPT, "  Two   Words\n", "it's &lt;b&gt; 3.14", "cafe\u0301 \U0001f600"]
SEED, NUM_STEPS, GUIDANCE_SCALE = 7, 3, 7.5
TIMESTEPS = (981.0, 21.0)
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"

# Their names of the networks, and how to build them without a download
CLASSES = {
    "StableDiffusion": ("TextEncoder", "DiffusionModel"),
    "StableDiffusionV2": ("TextEncoderV2", "DiffusionModelV2"),
}


def inputs_of(preset: ours.Preset, size: int, decoder_size: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    rows, latents = len(TIMESTEPS), (size // 8, size // 8, 4)
    return {
        "tokens": generator.integers(0, preset.text_encoder.vocab_size, (rows, ours.CONTEXT_LENGTH)).astype(np.int32),
        "latents": generator.standard_normal((rows, *latents), dtype=np.float32),
        "timestep": np.array(TIMESTEPS, np.float32),
        "context": generator.standard_normal((rows, ours.CONTEXT_LENGTH, preset.unet.cross_attention_dim), dtype=np.float32),
        "decoder_latents": generator.standard_normal((1, decoder_size // 8, decoder_size // 8, 4), dtype=np.float32),
        "pictures": generator.uniform(-1, 1, (1, size, size, 3)).astype(np.float32),
    }


def with_random_weights(preset: ours.Preset, size: int, files: Path) -> Any:
    """keras-cv's pipeline with networks and a vocabulary of ours, which are left in files as keras-cv would download them."""
    import keras_cv
    from keras_cv.src.models.stable_diffusion import clip_tokenizer, decoder, diffusion_model, image_encoder, text_encoder

    text, unet = CLASSES[preset.pipeline]
    (text_file,), (unet_file,), (encoder_file, decoder_file) = preset.files.values()
    fresh = {"download_weights": False}
    files.mkdir()
    theirs = getattr(keras_cv.models, preset.pipeline)(size, size, jit_compile=False)
    theirs._text_encoder = getattr(text_encoder, text)(ours.CONTEXT_LENGTH, **fresh)
    theirs._diffusion_model = getattr(diffusion_model, unet)(size, size, ours.CONTEXT_LENGTH, **fresh)
    theirs._image_encoder = image_encoder.ImageEncoder(**fresh)
    theirs._decoder = decoder.Decoder(size, size, **fresh)
    networks = {
        text_file: theirs._text_encoder,
        unet_file: theirs._diffusion_model,
        encoder_file: theirs._image_encoder,
        decoder_file: theirs._decoder,
    }
    for seed, (name, network) in enumerate(networks.items()):
        randomize(network, seed)
        save_as_keras_2(network, files / name)
    write_vocabulary(files / VOCABULARY)
    theirs._tokenizer = clip_tokenizer.SimpleTokenizer(str(files / VOCABULARY))
    return theirs


def save_as_keras_2(network: Any, path: Path) -> None:
    """Weights in the layout of keras-cv's own files, which Keras 3 reads and no longer writes by itself."""
    import h5py
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, network)


def write_vocabulary(path: Path) -> None:
    """As many merges as CLIP's vocabulary has, of any two letters."""
    from keras_cv.src.models.stable_diffusion.clip_tokenizer import bytes_to_unicode

    pairs = itertools.product(bytes_to_unicode().values(), repeat=2)
    merges = [f"{left} {right}" for left, right in itertools.islice(pairs, 49152 - 256 - 2)]
    path.write_bytes(gzip.compress("\n".join(['"bpe_simple_vocab_16e6.txt#version: 0.2', *merges, ""]).encode()))


@contextmanager
def downloads_from(folder: Path) -> Iterator[list[str]]:
    """`keras.utils.get_file` hands out the folder's files, and tells which were asked for."""
    asked = []

    def get_file(fname: str | None = None, origin: str | None = None, **options: Any) -> str:
        assert options["file_hash"]
        name = fname or str(origin).rpartition("/")[2]
        asked.append(name)
        return str(folder / name)

    with mock.patch("keras.utils.get_file", get_file):
        yield asked


def outputs_of(theirs: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    positions = np.arange(ours.CONTEXT_LENGTH, dtype=np.int32)[None].repeat(len(inputs["tokens"]), axis=0)
    width = theirs.diffusion_model.inputs[1].shape[-1]
    waves = np.concatenate([theirs._get_timestep_embedding(timestep, 1, dim=width) for timestep in inputs["timestep"]])
    noisy = {"latent": inputs["latents"], "timestep_embedding": waves, "context": inputs["context"]}
    return {
        "context": theirs.text_encoder.predict_on_batch({"tokens": inputs["tokens"], "positions": positions}),
        "prediction": theirs.diffusion_model.predict_on_batch(noisy),
        "mean": theirs.image_encoder.predict_on_batch(inputs["pictures"]),
    }


def decoded(theirs: Any, latents: np.ndarray, dtype: str) -> np.ndarray:
    """Of the decoder with the same weights, for latents of this size and in this precision."""
    import keras
    from keras_cv.src.models.stable_diffusion.decoder import Decoder

    keras.config.set_dtype_policy(dtype)
    try:
        decoder = Decoder(8 * latents.shape[1], 8 * latents.shape[2], download_weights=False)
    finally:
        keras.config.set_dtype_policy("float32")
    decoder.set_weights([weight.astype(dtype) for weight in theirs.decoder.get_weights()])
    return decoder.predict_on_batch(latents.astype(dtype))


def generate(theirs: Any) -> np.ndarray:
    """keras-cv's picture of the prompt, from the noise that we make of the seed."""
    import keras

    # It asks for 320 waves; a narrow U-Net takes fewer.
    width = theirs.diffusion_model.inputs[1].shape[-1]
    waves = theirs._get_timestep_embedding
    theirs._get_timestep_embedding = lambda timestep, rows: waves(timestep, rows, dim=width)
    noise = normal(SEED, Purpose.INITIAL, 0, (theirs.img_height // 8, theirs.img_width // 8, 4))
    return theirs.generate_image(
        theirs.encode_text(PROMPT),
        negative_prompt=NEGATIVE_PROMPT or None,
        num_steps=NUM_STEPS,
        unconditional_guidance_scale=GUIDANCE_SCALE,
        diffusion_noise=keras.ops.convert_to_tensor(noise),
    )


def epsilons_of(theirs: Any) -> np.ndarray:
    """Of all norms of all networks, each value once."""
    networks = (theirs.text_encoder, theirs.diffusion_model, theirs.image_encoder, theirs.decoder)
    layers = [layer for network in networks for layer in network._flatten_layers()]
    return np.unique([layer.epsilon for layer in layers if hasattr(layer, "epsilon")])


def tokens_of(theirs: Any) -> np.ndarray:
    rows = [theirs.tokenizer.encode(prompt) for prompt in PROMPTS]
    return np.array([row + [theirs.tokenizer.end_of_text] * (ours.CONTEXT_LENGTH - len(row)) for row in rows], np.int32)


def main() -> None:
    """See the top."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=list(ours.PRESETS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, required=True, help="of the picture, in pixels")
    parser.add_argument("--decoder-size", type=int, required=True, help="of the decoder alone")
    parser.add_argument("--narrow", action="store_true")
    arguments = parser.parse_args()
    folder, size = arguments.folder, arguments.size

    import tensorflow as tf

    tf.config.run_functions_eagerly(True)  # tracing takes longer than all the computing here
    preset = ours.PRESETS[arguments.name]
    if arguments.narrow:
        preset = ours.PRESETS[arguments.name] = narrow(preset)
    inputs = inputs_of(preset, size, arguments.decoder_size)
    np.savez(folder / "inputs.npz", **inputs)
    with narrow_keras_cv() if arguments.narrow else nullcontext():
        theirs = with_random_weights(preset, size, folder / "files")
        outputs = outputs_of(theirs, inputs)
        for dtype in ("float32", "float64"):
            outputs[f"images_{dtype}"] = decoded(theirs, inputs["decoder_latents"], dtype)
        np.savez(folder / "outputs.npz", **outputs)
        np.savez(folder / "picture.npz", images=generate(theirs), tokens=tokens_of(theirs), epsilons=epsilons_of(theirs))
        if arguments.narrow:
            with downloads_from(folder / "files") as asked:
                ours.write_folder(arguments.name, folder / "model")
            assert sorted(asked) == sorted([*itertools.chain(*preset.files.values()), VOCABULARY])


if __name__ == "__main__":
    main()
