"""A complete model of tiny networks with random weights, on disk as a real one is.

`write_tiny_model` imports no keras: the networks are built in a process of their own, once for each seed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.shared_folder import made_once
from triptych.checkpoints.checkpoint import ModelFacts
from triptych.checkpoints.diffusers_folder import save_description, save_network
from triptych.models.config import CLIPTextConfig, UNetConfig, VAEConfig
from triptych.models.tokenizer import END, START, save_tokenizer

ROOT = Path(__file__).resolve().parent.parent

WORDS = ("a", "red", "green", "blue", "circle", "square", "star", "on", "white", "black", "background")
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789,.!?-"

CONTEXT_LENGTH = 16
SIZES = ((32, 32), (64, 32))

TEXT_ENCODER = CLIPTextConfig(
    vocab_size=256,
    max_position_embeddings=CONTEXT_LENGTH,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
)
UNET = UNetConfig(
    block_out_channels=(32, 64),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    attention_head_dim=4,
    cross_attention_dim=32,
    norm_num_groups=8,
)
VAE = VAEConfig(
    block_out_channels=(16, 32, 32, 32),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=1,
    norm_num_groups=8,
)
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
FACTS = ModelFacts(
    model="tiny",
    latent_space="tiny",
    text_space="tiny",
    sizes=SIZES,
    sampler="ddim",
    num_steps=4,
    guidance_scale=3.0,
    words=WORDS,
)


INPAINTING_UNET = replace(UNET, in_channels=9)


def write_tiny_model(folder: Path, seed: int = 0, *, unet: UNetConfig = UNET) -> Path:
    """Writes the tiny model into a folder, which is made. The same seed and U-Net give the same bytes."""
    return Path(shutil.copytree(_template(seed, unet.in_channels), folder, dirs_exist_ok=True))


def tiny_tokenizer() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges: letters, and WORDS put together from left to right."""
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        letters = [*word[:-1], word[-1] + "</w>"]
        while len(letters) > 1:
            merges[letters[0], letters[1]] = None
            letters[:2] = ["".join(letters[:2])]
    tokens = [*ALPHABET, *(letter + "</w>" for letter in ALPHABET), *("".join(pair) for pair in merges), START, END]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}, list(merges)


def randomize(model: Any, seed: int) -> None:
    """Gives every weight of a Keras network a random value that keeps activations near one; biases and norms too."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        noise = generator.standard_normal(variable.shape, dtype=np.float32)
        match variable.name:
            case "kernel":
                value = noise / np.sqrt(np.prod(variable.shape[:-1]))
            case "gamma":
                value = 1 + 0.2 * noise
            case _:
                value = 0.2 * noise
        variable.assign(value)


def run_network(network: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a Keras network on any backend, in float32 and without our engines."""
    import keras

    match keras.config.backend():
        case "openvino":
            return _run_on_openvino(network, inputs)
        case "jax":
            return dict(network.predict(inputs, verbose=0))  # compiled as a whole: op by op takes minutes
        case _:
            outputs = network({name: keras.ops.convert_to_tensor(array) for name, array in inputs.items()}, training=False)
            return {name: keras.ops.convert_to_numpy(output) for name, output in outputs.items()}


def _run_on_openvino(network: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    # Not by `predict`, which computes in bfloat16 where the processor can; not by a call on arrays, because then the whole
    # network is folded as a constant, slowly.
    import keras
    import openvino

    signature = {name: keras.InputSpec(shape=array.shape, dtype=array.dtype.name) for name, array in inputs.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/network.xml"
        network.export(path, format="openvino", input_signature=signature, verbose=False)
        compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = compiled([inputs[name] for name in sorted(inputs)])
    return dict(zip(sorted(network.output), outputs.values(), strict=True))


def _template(seed: int, in_channels: int) -> Path:
    def fill(folder: Path) -> None:
        command = [sys.executable, "-m", "tests.tiny_models", str(folder), str(seed), str(in_channels)]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "KERAS_BACKEND": "openvino"}, check=True)

    return made_once(f"tiny-model-{seed}-{in_channels}", fill)


def _write(folder: Path, seed: int, in_channels: int) -> None:
    from triptych.models.text_encoder import build_text_encoder
    from triptych.models.unet import build_unet
    from triptych.models.vae import build_vae_decoder, build_vae_encoder

    unet_config = replace(UNET, in_channels=in_channels)
    networks = [build_text_encoder(TEXT_ENCODER), build_unet(unet_config), build_vae_encoder(VAE), build_vae_decoder(VAE)]
    for number, network in enumerate(networks):
        randomize(network, seed + number)
    text_encoder, unet, vae_encoder, vae_decoder = networks
    save_network(folder, "text_encoder", TEXT_ENCODER, text_encoder)
    save_network(folder, "unet", unet_config, unet)
    save_network(folder, "vae", VAE, vae_encoder, vae_decoder)
    vocabulary, merges = tiny_tokenizer()
    assert len(vocabulary) <= TEXT_ENCODER.vocab_size
    save_tokenizer(folder / "tokenizer", vocabulary, merges, length=CONTEXT_LENGTH)
    save_description(folder, FACTS, SCHEDULER)


if __name__ == "__main__":
    _write(Path(sys.argv[1]), *map(int, sys.argv[2:]))
