"""Models on disk as diffusers lays them out: a folder for each network, with config.json and safetensors.

::

    model_index.json  triptych.json
    text_encoder/   config.json  model.safetensors
    unet/           config.json  diffusion_pytorch_model.safetensors
    vae/            config.json  diffusion_pytorch_model.safetensors
    scheduler/      scheduler_config.json
    tokenizer/      vocab.json  merges.txt  tokenizer_config.json  special_tokens_map.json

triptych.json is our own: what diffusers' files do not say. Reading configurations imports no keras.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.checkpoints.checkpoint import ModelFacts, Network
from triptych.checkpoints.weights import TensorFile, half_precision_file, tensor_file
from triptych.errors import CheckpointError
from triptych.models.config import CLIPTextConfig, NetworkConfig, UNetConfig, VAEConfig

if TYPE_CHECKING:
    import keras


class DiffusersFolder:
    """See `Checkpoint`: a model's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def facts(self) -> ModelFacts:
        return ModelFacts.from_dict(_read_json(self.path / "triptych.json"))

    @cached_property
    def text_encoder(self) -> CLIPTextConfig:
        return CLIPTextConfig.from_dict(_read_json(self.path / "text_encoder" / "config.json"))

    @cached_property
    def unet(self) -> UNetConfig:
        return UNetConfig.from_dict(_read_json(self.path / "unet" / "config.json"))

    @cached_property
    def vae(self) -> VAEConfig:
        return VAEConfig.from_dict(_read_json(self.path / "vae" / "config.json"))

    @cached_property
    def scheduler(self) -> dict[str, Any]:
        """The noise schedule and the sampler's options, with diffusers' names."""
        return _read_json(self.path / "scheduler" / "scheduler_config.json")

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    def config(self, network: Network) -> NetworkConfig:
        config: NetworkConfig = getattr(self, network.subfolder)
        return config

    def tensors(self, network: Network) -> AbstractContextManager[TensorFile]:
        return tensor_file(_weights_file(self.path, network.subfolder), partial(_our_name, network))

    def weights_digest(self, network: Network) -> str:
        with _weights_file(self.path, network.subfolder).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def save_network(folder: Path, subfolder: str, config: NetworkConfig, *models: keras.Model) -> None:
    """Writes the configuration and, in half precision, the weights of a network; of both halves where it is the VAE.

    The same weights give the same bytes.

    Raises:
        CheckpointError: A weight is too large for half precision, or not a number.
    """
    content = half_precision_file(models)
    target = folder / subfolder
    save_json(target / "config.json", {**_DIFFUSERS_CLASS[subfolder], **config.to_dict()})
    (target / _WEIGHTS_FILE[subfolder]).write_bytes(content)


def save_description(folder: Path, facts: ModelFacts, scheduler: Mapping[str, Any]) -> None:
    """Writes what is beside the networks and the tokenizer: our facts, the noise schedule, and diffusers' list of parts."""
    save_json(folder / "triptych.json", {name: value for name, value in asdict(facts).items() if value not in (None, ())})
    save_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    save_json(folder / "model_index.json", {**_MODEL_INDEX, "scheduler": ["diffusers", scheduler["_class_name"]]})


def save_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


_WEIGHTS_FILE = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
_DIFFUSERS_CLASS: Mapping[str, Mapping[str, Any]] = {
    "text_encoder": {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"},
    "unet": {"_class_name": "UNet2DConditionModel"},
    "vae": {"_class_name": "AutoencoderKL"},
}
_MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "feature_extractor": [None, None],
    "safety_checker": [None, None],
}

# How the keys begin that are in the same file and belong to the other half of the VAE
_FOREIGN_PREFIXES = {
    Network.VAE_ENCODER: ("decoder.", "post_quant_conv."),
    Network.VAE_DECODER: ("encoder.", "quant_conv."),
}

# Names that the attention of old VAE files has; SD 1.5 itself is one
_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def _our_name(network: Network, key: str) -> str | None:
    """The key as diffusers and transformers 4 write it; None for what is another network's, or no weight."""
    if key.endswith(".position_ids") or key.startswith(_FOREIGN_PREFIXES.get(network, ())):
        return None
    if network is Network.TEXT_ENCODER and not key.startswith("text_model."):
        return f"text_model.{key}"
    if network.subfolder == "vae" and ".attentions." in key:
        for old, new in _OLD_ATTENTION.items():
            key = key.replace(old, new)
    return key


def _weights_file(folder: Path, subfolder: str) -> Path:
    path = folder / subfolder / _WEIGHTS_FILE[subfolder]
    if not path.is_file():
        if pickles := sorted(_pickles(folder / subfolder)):
            raise CheckpointError(
                f"{pickles[0]} is a pickle, which can run code when it is loaded, so it is refused; "
                "convert it with diffusers: save_pretrained(..., safe_serialization=True)"
            )
        raise CheckpointError(f"there is no {path}")
    return path


def _pickles(folder: Path) -> Iterator[Path]:
    for ending in ("*.bin", "*.ckpt", "*.pt", "*.pth"):
        yield from folder.glob(ending)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no {path}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return values
