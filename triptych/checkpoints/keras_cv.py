"""keras-cv's Stable Diffusion 1.4 and 2.1, written once as a folder that every engine serves.

keras-cv itself downloads and builds its networks, on TensorFlow. Their weights are carried over in order and checked by shape,
and written in single precision, in which keras-cv has them. All of it runs in a process of its own, because a process has one
backend::

    python -m triptych.checkpoints.keras_cv keras-cv/sd-v1-4 FOLDER

keras_cv and tensorflow are imported in this file alone, and only there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.checkpoints.checkpoint import ModelFacts, Network
from triptych.checkpoints.diffusers_folder import save_config, save_description, save_json, save_sample_sizes
from triptych.checkpoints.weights import first_names
from triptych.errors import CheckpointError
from triptych.models.config import (
    STABLE_DIFFUSION_1_5_TEXT_ENCODER,
    STABLE_DIFFUSION_1_5_UNET,
    STABLE_DIFFUSION_1_5_VAE,
    CLIPTextConfig,
    NetworkConfig,
    UNetConfig,
    VAEConfig,
)
from triptych.models.tokenizer import Flavour, save_tokenizer

NORM_EPS = 1e-5
"""keras-cv has one for all its norms."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What keras-cv builds, in our words.

    Attributes:
        pipeline: The name of its class in keras_cv.models.
        files: What keras-cv downloads for each part.
    """

    pipeline: str
    text_encoder: CLIPTextConfig
    unet: UNetConfig
    vae: VAEConfig
    facts: ModelFacts
    files: Mapping[str, tuple[str, ...]]

    def config(self, part: str) -> NetworkConfig:
        config: NetworkConfig = getattr(self, part)
        return config


_UNET = replace(STABLE_DIFFUSION_1_5_UNET, transformer_norm_eps=NORM_EPS, geglu_tanh=True)
_VAE = replace(STABLE_DIFFUSION_1_5_VAE, norm_eps=NORM_EPS)
_VAE_FILES = ("vae_encoder.h5", "kcv_decoder.h5")
_FACTS = ModelFacts(
    model="keras-cv/sd-v1-4",
    latent_space="sd-1",
    text_space="clip-vit-l-14",
    sizes=((512, 512),),
    sampler="ddim",
    num_steps=50,
    guidance_scale=7.5,
)
PRESETS: dict[str, Preset] = {
    "keras-cv/sd-v1-4": Preset(
        pipeline="StableDiffusion",
        text_encoder=STABLE_DIFFUSION_1_5_TEXT_ENCODER,
        unet=_UNET,
        vae=_VAE,
        facts=_FACTS,
        files={"text_encoder": ("kcv_encoder.h5",), "unet": ("kcv_diffusion_model.h5",), "vae": _VAE_FILES},
    ),
    "keras-cv/sd-v2-1": Preset(
        pipeline="StableDiffusionV2",
        text_encoder=CLIPTextConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=23,
            num_attention_heads=16,
            hidden_act="gelu_pytorch_tanh",
        ),
        unet=replace(_UNET, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True),
        vae=_VAE,
        facts=replace(_FACTS, model="keras-cv/sd-v2-1", text_space="openclip-vit-h-14"),
        files={"text_encoder": ("text_encoder_v2_1.h5",), "unet": ("diffusion_model_v2_1.h5",), "vae": _VAE_FILES},
    ),
}

PARTS = ("text_encoder", "unet", "vae")
"""Folders that can be written alone, each for one stage; the tokenizer goes with the text encoder."""

CONTEXT_LENGTH = 77

# `generate_image` predicts the noise, for 2.1 too, and ends at no noise.
_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
    "timestep_spacing": "keras_cv",
    "clip_sample": False,
    "set_alpha_to_one": True,
}

# What keras-cv calls the networks of a part
_THEIRS = {
    Network.TEXT_ENCODER: "text_encoder",
    Network.UNET: "diffusion_model",
    Network.VAE_ENCODER: "image_encoder",
    Network.VAE_DECODER: "decoder",
}

# Our names of keras-cv's layers of each class, in the order in which an image passes them
_LAYERS: dict[Network, dict[str, list[str]]] = {
    Network.TEXT_ENCODER: {
        "CLIPEmbedding": ["text_model.embeddings"],
        "CLIPEncoderLayer": [],  # as many as the configuration has
        "LayerNormalization": ["text_model.final_layer_norm"],
    },
    Network.UNET: {
        "Dense": ["time_embedding.linear_1", "time_embedding.linear_2"],
        "PaddedConv2D": ["conv_in", *(f"down_blocks.{level}.downsamplers.0.conv" for level in range(3)), "conv_out"],
        "ResBlock": [
            *(f"down_blocks.{level}.resnets.{i}" for level in range(4) for i in range(2)),
            *(f"mid_block.resnets.{i}" for i in range(2)),
            *(f"up_blocks.{block}.resnets.{i}" for block in range(4) for i in range(3)),
        ],
        "SpatialTransformer": [
            *(f"down_blocks.{level}.attentions.{i}" for level in range(3) for i in range(2)),
            "mid_block.attentions.0",
            *(f"up_blocks.{block}.attentions.{i}" for block in range(1, 4) for i in range(3)),
        ],
        "Upsample": [f"up_blocks.{block}.upsamplers.0.conv" for block in range(3)],
        "GroupNormalization": ["conv_norm_out"],
    },
    Network.VAE_ENCODER: {
        "PaddedConv2D": [
            "encoder.conv_in",
            *(f"encoder.down_blocks.{level}.downsamplers.0.conv" for level in range(3)),
            "encoder.conv_out",
            "quant_conv",
        ],
        "ResnetBlock": [
            *(f"encoder.down_blocks.{level}.resnets.{i}" for level in range(4) for i in range(2)),
            *(f"encoder.mid_block.resnets.{i}" for i in range(2)),
        ],
        "AttentionBlock": ["encoder.mid_block.attentions.0"],
        "GroupNormalization": ["encoder.conv_norm_out"],
    },
    Network.VAE_DECODER: {
        "PaddedConv2D": [
            "post_quant_conv",
            "decoder.conv_in",
            *(f"decoder.up_blocks.{block}.upsamplers.0.conv" for block in range(3)),
            "decoder.conv_out",
        ],
        "ResnetBlock": [
            *(f"decoder.mid_block.resnets.{i}" for i in range(2)),
            *(f"decoder.up_blocks.{block}.resnets.{i}" for block in range(4) for i in range(3)),
        ],
        "AttentionBlock": ["decoder.mid_block.attentions.0"],
        "GroupNormalization": ["decoder.conv_norm_out"],
    },
}

# The layers inside those of keras-cv's own classes, in the order of their weights
_INSIDE = {
    "CLIPEmbedding": ("token_embedding", "position_embedding"),
    "CLIPEncoderLayer": (
        "layer_norm1",
        *(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")),
        "layer_norm2",
        "mlp.fc1",
        "mlp.fc2",
    ),
    "ResBlock": ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut"),
    "ResnetBlock": ("norm1", "conv1", "norm2", "conv2", "conv_shortcut"),
    "AttentionBlock": ("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
    "SpatialTransformer": (
        "norm",
        "proj_in",
        *(
            f"transformer_blocks.0.{inner}"
            for inner in (
                "norm1",
                *(f"attn1.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")),
                "norm2",
                *(f"attn2.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")),
                "norm3",
                "ff.net.0.proj",
                "ff.net.2",
            )
        ),
        "proj_out",
    ),
}


def pull_keras_cv(name: str, target: Path, *, parts: Collection[str] = PARTS, source: Path | None = None) -> Path:
    """Has a preset of keras-cv in a folder, where it is not there yet.

    Nothing half-written is ever found there: parts are written beside it and moved. What keras-cv downloads stays in Keras' own
    cache, and its progress and licence notice go to stderr.

    Args:
        name: Of PRESETS.
        target: The folder, made if it is missing. Parts that it has are left as they are.
        parts: Of PARTS, those that are wanted.
        source: A folder of the `.h5` files and the vocabulary, under the names with which keras-cv downloads them; then nothing
            is downloaded.

    Returns:
        The folder.

    Raises:
        CheckpointError: There is no such preset; keras-cv is not installed, or cannot download or read its files; they are of
            another architecture; the disk is too full.
    """
    _preset(name)
    wanted = [part for part in PARTS if part in parts and not _holds(target, part)]
    if not wanted:
        return target
    _require_keras_cv(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    command = [sys.executable, "-m", __name__, name, str(staged), "--parts", *wanted]
    if source is not None:
        command += ["--source", str(source.resolve())]
    # No GPU: it would only hold what is read and written.
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    try:
        finished = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if finished.returncode != 0:
            reason = finished.stdout.strip() or f"its process ended with status {finished.returncode}"
            raise CheckpointError(f"{name} was not written: {reason}")
        _move(staged, target)
        _describe(target, _preset(name))
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return target


def write_folder(name: str, folder: Path, *, parts: Collection[str] = PARTS, source: Path | None = None) -> None:
    """Writes parts of a preset, in this process, whose Keras must run on TensorFlow. See `pull_keras_cv`.

    Raises:
        CheckpointError: See `pull_keras_cv`.
    """
    preset = _preset(name)
    _require_keras_cv(name)
    try:
        import keras

        if (backend := keras.config.backend()) != "tensorflow":
            raise CheckpointError(f"keras-cv needs a process whose Keras runs on tensorflow, not on {backend}")
        import keras_cv
    except ModuleNotFoundError as error:
        raise CheckpointError(f"{name} needs {error.name}, which is not installed: pip install 'triptych[keras-cv]'") from error
    shapes = {part: _shapes(preset, part) for part in parts}
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_full_disk(preset, shapes, folder, cache=None if source else _keras_cache())
    with _files_from(source):
        theirs = getattr(keras_cv.models, preset.pipeline)(jit_compile=False)
        for part in parts:
            weights = {key: each for network in _networks(part) for key, each in _weights(theirs, preset, network).items()}
            _write_part(folder, part, preset.config(part), weights, shapes[part])
        if "text_encoder" in parts:
            _write_tokenizer(folder / "tokenizer", _built(theirs, "tokenizer"))
    save_description(folder, preset.facts, _SCHEDULER)


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise CheckpointError(f"keras-cv has no preset {name!r} for us; there are {' and '.join(PRESETS)}")
    return PRESETS[name]


def _require_keras_cv(name: str) -> None:
    try:
        version = metadata.version("keras-cv")
    except metadata.PackageNotFoundError as error:
        raise CheckpointError(
            f"{name} is downloaded and built by keras-cv, which is not installed: pip install 'triptych[keras-cv]'"
        ) from error
    if not version.startswith("0.9."):
        raise CheckpointError(f"{name} needs keras-cv 0.9, and {version} is installed: pip install 'triptych[keras-cv]'")


def _keras_cache() -> Path:
    """Where `get_file` leaves what it has downloaded."""
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "datasets"


def _networks(part: str) -> list[Network]:
    return [network for network in Network if network.subfolder == part]


# On disk


def _entries(part: str) -> tuple[str, ...]:
    return ("text_encoder", "tokenizer") if part == "text_encoder" else (part,)


def _holds(folder: Path, part: str) -> bool:
    return all((folder / entry).is_dir() for entry in _entries(part)) and any((folder / part).glob("*.safetensors"))


def _move(staged: Path, target: Path) -> None:
    """The whole folder where there is none yet, else what the target lacks of it."""
    if not target.exists():
        staged.rename(target)
        return
    for entry in staged.iterdir():
        if not (target / entry.name).exists():
            entry.rename(target / entry.name)
        for weights in entry.glob("*.safetensors"):  # that belong beside a configuration which is there already
            weights.rename(target / entry.name / weights.name)


def _describe(folder: Path, preset: Preset) -> None:
    """The configurations of the parts that are not there: a stage reads those of its neighbours too."""
    for part in PARTS:
        if not (folder / part / "config.json").exists():
            save_config(folder, part, preset.config(part))
    save_sample_sizes(folder, *preset.facts.sizes[0])


def _refuse_full_disk(
    preset: Preset, shapes: Mapping[str, Mapping[str, tuple[int, ...]]], folder: Path, *, cache: Path | None
) -> None:
    """Before anything is downloaded."""
    needed: dict[int, int] = defaultdict(int)
    places: dict[int, Path] = {}
    for part, tensors in shapes.items():
        size = _size(tensors)
        _add(needed, places, folder, size)
        if cache is not None and not all((cache / file).exists() for file in preset.files[part]):
            _add(needed, places, cache, size)
    for device, size in needed.items():
        free = shutil.disk_usage(places[device]).free
        if free < size:
            raise CheckpointError(
                f"the disk of {places[device]} is too full: {size / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free"
            )


def _add(needed: dict[int, int], places: dict[int, Path], place: Path, size: int) -> None:
    while not place.exists():
        place = place.parent
    device = place.stat().st_dev
    places.setdefault(device, place)
    needed[device] += size


def _size(tensors: Mapping[str, tuple[int, ...]]) -> int:
    return sum(4 * int(np.prod(shape)) for shape in tensors.values())


def _write_part(
    folder: Path, part: str, config: NetworkConfig, weights: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    if weights.keys() != shapes.keys():
        raise CheckpointError(f"keras-cv's {part} differs from ours in {first_names(weights.keys() ^ shapes.keys())}")
    file = save_config(folder, part, config)
    with file.open("xb") as output:
        output.write(_header(shapes))
        for name, shape in shapes.items():  # one at a time: memory holds keras-cv's network, and no second one
            output.write(_for_disk(name, weights[name], shape).data)


def _header(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """How a safetensors file of single precision begins."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + _size({name: shape})
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _for_disk(name: str, weight: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """In the order of axes that files have. A 1x1 convolution is a dense layer where ours is one."""
    array = weight.numpy()
    if weight.name == "kernel":
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        if len(shape) == 2 and array.shape[2:] == (1, 1):
            array = array[:, :, 0, 0]
    if array.shape != shape:
        raise CheckpointError(f"keras-cv's {name} has shape {array.shape}, ours {shape}")
    if not np.isfinite(array).all():
        raise CheckpointError(f"keras-cv's {name} has values that are no numbers")
    return np.ascontiguousarray(array, dtype="<f4")


def _write_tokenizer(folder: Path, theirs: Any) -> None:
    save_tokenizer(folder, theirs.encoder, theirs.bpe_ranks, length=CONTEXT_LENGTH, flavour=Flavour.KERAS_CV)
    path = folder / "tokenizer_config.json"
    # Not transformers' class, which would read the same files and make other tokens.
    save_json(path, {**json.loads(path.read_text(encoding="utf-8")), "tokenizer_class": "SimpleTokenizer"})


# The two sides


def _shapes(preset: Preset, part: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of our weights of a part, as on disk. The networks are described, and hold no memory."""
    import keras

    from triptych.models.text_encoder import build_text_encoder
    from triptych.models.unet import build_unet
    from triptych.models.vae import build_vae_decoder, build_vae_encoder

    builders: dict[Network, Any] = {
        Network.TEXT_ENCODER: build_text_encoder,
        Network.UNET: build_unet,
        Network.VAE_ENCODER: build_vae_encoder,
        Network.VAE_DECODER: build_vae_decoder,
    }
    with keras.StatelessScope(initialize_variables=False):
        models = [builders[network](preset.config(part)) for network in _networks(part)]
    shapes = {
        _weight_name(layer.name, variable): _shape_on_disk(variable)
        for model in models
        for layer in model.layers
        for variable in layer.weights
    }
    keras.utils.clear_session()  # else Keras would still mean to initialize these variables
    return shapes


def _shape_on_disk(variable: Any) -> tuple[int, ...]:
    shape = tuple(variable.shape)
    return (shape[-1], shape[-2], *shape[:-2]) if variable.name == "kernel" else shape


def _weight_name(layer: str, variable: Any) -> str:
    return f"{layer}.bias" if variable.name in ("bias", "beta") else f"{layer}.weight"


def _weights(theirs: Any, preset: Preset, network: Network) -> dict[str, Any]:
    """keras-cv's weights under our names."""
    layers = dict(_LAYERS[network])
    if network is Network.TEXT_ENCODER:
        layers["CLIPEncoderLayer"] = [f"text_model.encoder.layers.{i}" for i in range(preset.text_encoder.num_hidden_layers)]
    remaining = {kind: iter(names) for kind, names in layers.items()}
    weights = {}
    for layer in _built(theirs, _THEIRS[network]).layers:
        if not layer.weights:
            continue
        kind = type(layer).__name__
        name = next(remaining[kind])
        inside = iter(_INSIDE.get(kind, ()))
        for weight in layer.weights:
            if kind in _INSIDE and weight.name in ("kernel", "gamma", "embeddings"):  # each layer's first
                inner = f"{name}.{next(inside)}"
            weights[_weight_name(inner if kind in _INSIDE else name, weight)] = weight
    return weights


def _built(theirs: Any, attribute: str) -> Any:
    """A network or the tokenizer of keras-cv, which downloads and builds it when it is first asked for."""
    try:
        return getattr(theirs, attribute)
    except CheckpointError:
        raise
    except Exception as error:  # Keras raises bare Exceptions where a download fails, and ValueErrors on files of another network
        raise CheckpointError(f"keras-cv cannot load its {attribute}: {error}") from error


@contextmanager
def _files_from(source: Path | None) -> Iterator[None]:
    """Has keras-cv find its files in a folder instead of downloading them."""
    import keras

    def get_file(fname: str | None = None, origin: str = "", **_: Any) -> str:
        assert source is not None
        path = source / (fname or origin.rpartition("/")[2])
        if not path.is_file():
            raise CheckpointError(f"there is no {path}")
        return str(path)

    theirs = keras.utils.get_file
    if source is not None:
        keras.utils.get_file = get_file
    try:
        yield
    finally:
        keras.utils.get_file = theirs


def main() -> None:
    """`python -m triptych.checkpoints.keras_cv`: writes a folder, or says on standard output why not."""
    parser = argparse.ArgumentParser(description="Write a preset of keras-cv as a folder of ours.")
    parser.add_argument("name", choices=list(PRESETS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--source", type=Path)
    arguments = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "tensorflow"
    try:
        with redirect_stdout(sys.stderr):
            write_folder(arguments.name, arguments.folder, parts=arguments.parts, source=arguments.source)
    except CheckpointError as error:
        sys.stdout.write(error.message)
        sys.exit(1)


if __name__ == "__main__":
    main()
