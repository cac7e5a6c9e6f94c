"""Networks of real size with random weights, on disk as Stable Diffusion's publishers lay them out.

Names and shapes of the tensors are those that diffusers and transformers have for a configuration, so this needs the reference
environment. Every weight is random, those of norms and biases too: a kernel is normal with the variance 1/fan-in, a norm's
scale is 1 and every other weight is 0, both plus a normal of deviation 0.2. So activations stay near one, and two weights that
were exchanged show. The same seed gives the same bytes.
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.diffusers_networks import make_peer
from benchmarks.real_configurations import CLIP_L, DDIM, OPENCLIP_H, UNET_1, UNET_2, VAE, Config
from triptych.models.tokenizer import END, START, save_tokenizer

CLIP_VOCABULARY = Path(__file__).resolve().parents[2] / "shared" / "data" / "bpe_simple_vocab_16e6.txt.gz"
CLIP_LENGTH = 77

_DEVIATION = 0.2
_WEIGHTS_FILES = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
_SAFETENSORS_TYPES = {"float16": "F16", "float32": "F32"}
# The names that the attention of the VAE has in the files of 1.x and 2.x; diffusers has renamed it since.
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def write_stable_diffusion_1(folder: Path, *, seed: int = 1) -> None:
    """A whole Stable Diffusion 1.5 in half precision: 2.1 GB."""
    _write_model(folder, CLIP_L, UNET_1, DDIM, seed)


def write_text_encoder_of_stable_diffusion_2(folder: Path, *, seed: int = 2) -> None:
    """What the text encoder's stage reads of a Stable Diffusion 2.1 that predicts v, in half precision: 0.7 GB."""
    _write_model(folder, OPENCLIP_H, UNET_2, {**DDIM, "prediction_type": "v_prediction"}, seed, weights_of=("text_encoder",))


def write_network(folder: Path, subfolder: str, config: Config, *, seed: int, dtype: str) -> None:
    """One network of a model.

    Args:
        folder: The model's.
        subfolder: `text_encoder`, `unet` or `vae`.
        dtype: `float16` or `float32`, of the tensors on disk.
    """
    shapes = _shapes_of(subfolder, config)
    generator = np.random.default_rng([seed, *subfolder.encode()])
    _write_json(folder / subfolder / "config.json", config)
    tensors = ((name, _random_weight(name, shape, generator)) for name, shape in shapes.items())
    _write_safetensors(folder / subfolder / f"{_WEIGHTS_FILES[subfolder]}.safetensors", shapes, tensors, np.dtype(dtype))


def write_clip_tokenizer(folder: Path) -> None:
    """CLIP's own tokenizer.

    Raises:
        FileNotFoundError: Its vocabulary is not beside the repository.
    """
    lines = gzip.decompress(CLIP_VOCABULARY.read_bytes()).decode().splitlines()
    merges = [(left, right) for left, right in (line.split() for line in islice(lines, 1, 49152 - 256 - 2 + 1))]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [*map(chr, printable), *map(chr, range(256, 256 + 256 - len(printable)))]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    save_tokenizer(folder, {token: number for number, token in enumerate(tokens)}, merges, length=CLIP_LENGTH)


def _write_model(
    folder: Path,
    text_encoder: Config,
    unet: Config,
    scheduler: Config,
    seed: int,
    weights_of: Collection[str] = tuple(_WEIGHTS_FILES),
) -> None:
    for subfolder, config in (("text_encoder", text_encoder), ("unet", unet), ("vae", VAE)):
        if subfolder in weights_of:
            write_network(folder, subfolder, config, seed=seed, dtype="float16")
        else:
            _write_json(folder / subfolder / "config.json", config)
    write_clip_tokenizer(folder / "tokenizer")
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    parts = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.6.0",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write_json(folder / "model_index.json", parts)


def _write_json(path: Path, values: Config) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")


def _shapes_of(subfolder: str, config: Config) -> dict[str, tuple[int, ...]]:
    """The tensors of a network under the names that its publishers' files have."""
    with torch.device("meta"):
        module = make_peer(subfolder, config)
    return {_published_name(subfolder, name): tuple(parameter.shape) for name, parameter in module.named_parameters()}


def _published_name(subfolder: str, name: str) -> str:
    if subfolder == "text_encoder" and not name.startswith("text_model."):
        return f"text_model.{name}"
    if subfolder == "vae" and ".attentions." in name:
        for new, old in _OLD_ATTENTION.items():
            name = name.replace(f".{new}.", f".{old}.")
    return name


def _random_weight(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.float32]:
    noise = generator.standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        noise /= np.sqrt(np.prod(shape[1:], dtype=np.float32))
        return noise
    is_scale = "norm" in name and name.endswith("weight")
    return (np.float32(is_scale) + np.float32(_DEVIATION) * noise).astype(np.float32)


def _write_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], tensors: Iterator[tuple[str, NDArray[Any]]], dtype: np.dtype[Any]
) -> None:
    """One tensor after the other, so that no more than one is in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + int(np.prod(shape)) * dtype.itemsize
        header[name] = {"dtype": _SAFETENSORS_TYPES[dtype.name], "shape": list(shape), "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        for _, tensor in tensors:
            file.write(tensor.astype(dtype).tobytes())
