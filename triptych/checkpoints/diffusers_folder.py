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
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.checkpoints.weights import fill, first_names, half_precision_file
from triptych.errors import CheckpointError
from triptych.models.config import CLIPTextConfig, NetworkConfig, UNetConfig, VAEConfig

if TYPE_CHECKING:
    import keras


class Network(StrEnum):
    """The networks of a model. The VAE is two of them, in one folder and one file."""

    TEXT_ENCODER = "text_encoder"
    UNET = "unet"
    VAE_ENCODER = "vae_encoder"
    VAE_DECODER = "vae_decoder"

    @property
    def subfolder(self) -> str:
        return "vae" if self in (Network.VAE_ENCODER, Network.VAE_DECODER) else self.value

    @property
    def foreign_prefixes(self) -> tuple[str, ...]:
        """How the keys begin that are in the same file and belong to the other half of the VAE."""
        match self:
            case Network.VAE_ENCODER:
                return ("decoder.", "post_quant_conv.")
            case Network.VAE_DECODER:
                return ("encoder.", "quant_conv.")
            case _:
                return ()


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What triptych.json says.

    Attributes:
        model: The model's name.
        latent_space, text_space: Names of what its VAE and its text encoder make; equal names fit together.
        sizes: (width, height) in pixels of its pictures, the default first.
        sampler, num_steps, guidance_scale: What it uses unless asked otherwise.
        words: All words it knows, in lower case; None where it was trained on anything.
    """

    model: str
    latent_space: str
    text_space: str
    sizes: tuple[tuple[int, int], ...]
    sampler: str
    num_steps: int
    guidance_scale: float
    words: tuple[str, ...] | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelFacts:
        names = {field.name for field in fields(cls)}
        if surplus := values.keys() - names:
            raise CheckpointError(f"triptych.json has keys that mean nothing: {first_names(surplus)}")
        if missing := names - {"words"} - values.keys():
            raise CheckpointError(f"triptych.json lacks {first_names(missing)}")
        words = values.get("words")
        try:
            sizes = tuple((int(width), int(height)) for width, height in values["sizes"])
        except (TypeError, ValueError) as error:
            raise CheckpointError("sizes in triptych.json must be a list of [width, height]") from error
        return cls(**{**values, "sizes": sizes, "words": None if words is None else tuple(words)})


class DiffusersFolder:
    """A model's folder. Each file is read when it is first asked for, so that a stage needs no more than its own.

    All attributes raise CheckpointError where their file is missing, damaged, or describes what we do not have.
    """

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


def load_network(folder: Path, network: Network, *, data_format: str | None = None) -> keras.Model:
    """A network of the folder, built and with its weights.

    Raises:
        CheckpointError: As `load_weights`, and where the configuration is not one of ours.
    """
    from triptych.models.text_encoder import build_text_encoder
    from triptych.models.unet import build_unet
    from triptych.models.vae import build_vae_decoder, build_vae_encoder

    files = DiffusersFolder(folder)
    fresh = {"kernel_initializer": "zeros"}  # random ones would take longer than the loading
    match network:
        case Network.TEXT_ENCODER:
            model = build_text_encoder(files.text_encoder, embeddings_initializer="zeros", **fresh)
        case Network.UNET:
            model = build_unet(files.unet, data_format=data_format, **fresh)
        case Network.VAE_ENCODER:
            model = build_vae_encoder(files.vae, data_format=data_format, **fresh)
        case Network.VAE_DECODER:
            model = build_vae_decoder(files.vae, data_format=data_format, **fresh)
    load_weights(model, folder, network)
    return model


def load_weights(model: keras.Model, folder: Path, network: Network) -> None:
    """Fills a network with the weights of the folder.

    Raises:
        CheckpointError: The file is missing, damaged or a pickle; or its tensors are not those of the network.
    """
    fill(model, _weights_file(folder, network.subfolder), partial(_our_name, network))


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
    save_json(folder / "triptych.json", {name: value for name, value in asdict(facts).items() if value is not None})
    save_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    save_json(folder / "model_index.json", {**_MODEL_INDEX, "scheduler": ["diffusers", scheduler["_class_name"]]})


def save_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def weights_digest(folder: Path, network: Network) -> str:
    """sha256 of the file that holds the network's weights, in hexadecimal."""
    with _weights_file(folder, network.subfolder).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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

# Names that the attention of old VAE files has; SD 1.5 itself is one
_OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def _our_name(network: Network, key: str) -> str | None:
    """The key as diffusers and transformers 4 write it; None for what is another network's, or no weight."""
    if key.endswith(".position_ids") or key.startswith(network.foreign_prefixes):
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
