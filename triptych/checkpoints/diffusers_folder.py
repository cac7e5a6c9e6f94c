"""Models on disk as diffusers lays them out: a folder for each network, with config.json and safetensors.

::

    model_index.json  triptych.json
    text_encoder/   config.json  model.safetensors
    unet/           config.json  diffusion_pytorch_model.safetensors
    vae/            config.json  diffusion_pytorch_model.safetensors
    scheduler/      scheduler_config.json
    tokenizer/      vocab.json  merges.txt  tokenizer_config.json  special_tokens_map.json
    tiny_vae/       config.json  diffusion_pytorch_model.safetensors   (an AutoencoderTiny, for previews; rarely there)

triptych.json is our own: what diffusers' files do not say, and docs/checkpoints.md says how it is derived where there is none.
Its `base` names another folder, relative to this one, that lends whatever parts and facts this one does not have itself.
In place of a file of weights there may be its half-precision variant (`model.fp16.safetensors`), or an index and the shards that
it lists. Reading configurations imports no keras.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.checkpoints.checkpoint import ModelFacts, Network
from triptych.checkpoints.weights import Tensors, half_precision_file, read_index, read_json, sharded_tensors, tensor_file
from triptych.errors import CheckpointError
from triptych.models.config import STABLE_DIFFUSION_1_5_VAE, CLIPTextConfig, NetworkConfig, UNetConfig, VAEConfig
from triptych.sampling import replaced_sampler

if TYPE_CHECKING:
    import keras


class DiffusersFolder:
    """See `Checkpoint`: a model's folder.

    Args:
        path: The folder.
        name: What the model is called where triptych.json does not say; the folder's own name where None.
        variant: Which of several files of weights to read, such as `fp16` for `model.fp16.safetensors`. None is the plain one,
            and that of half precision where there is no plain one.
    """

    def __init__(self, path: Path, *, name: str | None = None, variant: str | None = None) -> None:
        self.path = path
        self.name = name or path.resolve().name
        self.variant = variant

    @cached_property
    def facts(self) -> ModelFacts:
        self._refuse_other_pipelines()
        if self._says_what_it_is:
            lent = {} if self._base is None else asdict(self._base.facts)
            return ModelFacts.from_dict({**lent, **{name: value for name, value in self._told.items() if name != BASE}})
        sampler, warning = replaced_sampler(self.scheduler)
        return ModelFacts(
            model=self.name,
            latent_space="sd-1" if self.vae == STABLE_DIFFUSION_1_5_VAE else self.name,
            text_space=text_space_of(self.text_encoder) or self.name,
            sizes=(_size(self._unet, self.vae.downsampling),),
            sampler=sampler,
            num_steps=50,
            guidance_scale=7.5,
            warnings=() if warning is None else (warning,),
        )

    @cached_property
    def text_encoder(self) -> CLIPTextConfig:
        return CLIPTextConfig.from_dict(read_json(self._holder("text_encoder").path / "text_encoder" / "config.json"))

    @cached_property
    def unet(self) -> UNetConfig:
        return UNetConfig.from_dict(self._unet)

    @cached_property
    def vae(self) -> VAEConfig:
        return VAEConfig.from_dict(read_json(self._holder("vae").path / "vae" / "config.json"))

    @cached_property
    def scheduler(self) -> dict[str, Any]:
        """The noise schedule and the sampler's options, with diffusers' names."""
        holder = self._holder("scheduler")
        values = read_json(holder.path / "scheduler" / "scheduler_config.json")
        return values if holder._says_what_it_is else {**values, **_PIPELINE_OPTIONS}

    @property
    def tokenizer(self) -> Path:
        return self._holder("tokenizer").path / "tokenizer"

    @property
    def tiny_vae(self) -> Path | None:
        path = self._holder("tiny_vae").path / "tiny_vae"
        return path if path.is_dir() else None

    def config(self, network: Network) -> NetworkConfig:
        config: NetworkConfig = getattr(self, network.subfolder)
        return config

    def tensors(self, network: Network) -> AbstractContextManager[Tensors]:
        path = self._weights(network)
        name_of = partial(_our_name, network)
        return sharded_tensors(path, name_of) if path.suffix == ".json" else tensor_file(path, name_of)

    def weights_digest(self, network: Network) -> str:
        """sha256 of the file of weights; of shards, of their contents one after the other in the order of their names."""
        path = self._weights(network)
        digest = hashlib.sha256()
        for each in read_index(path) if path.suffix == ".json" else (path,):
            try:
                with each.open("rb") as file:
                    hashlib.file_digest(file, lambda: digest)
            except FileNotFoundError as error:
                raise CheckpointError(f"there is no {each}") from error
        return digest.hexdigest()

    @cached_property
    def _unet(self) -> dict[str, Any]:
        return read_json(self._holder("unet").path / "unet" / "config.json")

    @property
    def _says_what_it_is(self) -> bool:
        return (self.path / "triptych.json").exists()

    @cached_property
    def _told(self) -> dict[str, Any]:
        """What triptych.json says; nothing where there is none."""
        return read_json(self.path / "triptych.json") if self._says_what_it_is else {}

    @cached_property
    def _base(self) -> DiffusersFolder | None:
        """The model that lends what this one does not have itself."""
        if BASE not in self._told:
            return None
        name = self._told[BASE]
        if not isinstance(name, str) or Path(name).is_absolute():
            raise CheckpointError(
                f"base in {self.path / 'triptych.json'} must be a folder relative to it, not {str(name)[:64]!r}"
            )
        base = DiffusersFolder(self.path / name)
        if not base.path.is_dir():
            raise CheckpointError(f"there is no {base.path}, which {self.path / 'triptych.json'} names as its base")
        if BASE in base._told:
            raise CheckpointError(f"{base.path} has a base itself, so it is none of {self.path}")
        return base

    def _holder(self, part: str) -> DiffusersFolder:
        """Whose folder of that part is read."""
        return self if self._base is None or (self.path / part).exists() else self._base

    def _weights(self, network: Network) -> Path:
        """The file of weights, or the index of its shards."""
        if (holder := self._holder(network.subfolder)) is not self:
            return holder._weights(network)
        folder = self.path / network.subfolder
        there = {path.name for path in folder.glob("*")}
        if (name := weights_file(network, there, self.variant)) is not None:
            return folder / name
        if pickles := pickles_among(there):
            raise CheckpointError(pickle_sentence(str(folder / pickles[0])))
        raise CheckpointError(f"there is no {folder / _file_name(network, self.variant)}")

    def _refuse_other_pipelines(self) -> None:
        path = self.path / "model_index.json"
        name = read_json(path).get("_class_name") if path.exists() else PIPELINES[0]
        if name not in PIPELINES:
            raise CheckpointError(
                f"{self.path} is a model for diffusers' {str(name)[:64]}; only models of Stable Diffusion 1.x and 2.x are served "
                f"({', '.join(PIPELINES)})"
            )


PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
"""Classes of model_index.json whose parts are ours. Others have other networks, or other uses of the same ones."""

HALF_PRECISION = "fp16"

BASE = "base"
"""Key of triptych.json: the folder, relative to this one, of the model whose other parts this one shares."""


def weights_file(network: Network, names: Collection[str], variant: str | None = None) -> str | None:
    """Which of the files in a network's folder has its weights, or is the index of those that do; None where none does.

    Args:
        network: Of which.
        names: Of the files in its folder.
        variant: As of `DiffusersFolder`.
    """
    for each in (None, HALF_PRECISION) if variant is None else (variant,):
        for name in (_file_name(network, each), _index_name(network, each)):
            if name in names:
                return name
    return None


def pickles_among(names: Iterable[str]) -> list[str]:
    """Those files that would run code when they are loaded."""
    return sorted(name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth")))


def pickle_sentence(path: str) -> str:
    return (
        f"{path} is a pickle, which can run code when it is loaded, so it is refused; "
        "convert it with diffusers: save_pretrained(..., safe_serialization=True)"
    )


def save_network(folder: Path, subfolder: str, config: NetworkConfig, *models: keras.Model) -> None:
    """Writes the configuration and, in half precision, the weights of a network; of both halves where it is the VAE.

    The same weights give the same bytes.

    Raises:
        CheckpointError: A weight is too large for half precision, or not a number.
    """
    content = half_precision_file(models)
    save_config(folder, subfolder, config).write_bytes(content)


def save_config(folder: Path, subfolder: str, config: NetworkConfig) -> Path:
    """Writes the configuration of a network, and returns where its weights belong."""
    target = folder / subfolder
    save_json(target / "config.json", {**_DIFFUSERS_CLASS[subfolder], **config.to_dict()})
    return target / f"{_STEM[subfolder]}.safetensors"


def save_description(folder: Path, facts: ModelFacts, scheduler: Mapping[str, Any]) -> None:
    """Writes what is beside the networks and the tokenizer: our facts, the noise schedule, and diffusers' list of parts.

    The configurations of U-Net and VAE, where both are there, are told the size of the model's pictures.
    """
    save_sample_sizes(folder, *facts.sizes[0])
    save_json(folder / "triptych.json", {name: value for name, value in asdict(facts).items() if value not in (None, ())})
    save_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    save_json(folder / "model_index.json", {**_MODEL_INDEX, "scheduler": ["diffusers", scheduler["_class_name"]]})


def save_sample_sizes(folder: Path, width: int, height: int) -> None:
    """`sample_size`, by which diffusers' pipelines know the size of a picture: the VAE's in pixels, the U-Net's in latents."""
    vae, unet = (folder / part / "config.json" for part in ("vae", "unet"))
    if not (vae.exists() and unet.exists()):
        return
    downsampling = VAEConfig.from_dict(read_json(vae)).downsampling
    for path, pixels in ((vae, 1), (unet, downsampling)):
        size = width // pixels if width == height else [height // pixels, width // pixels]
        save_json(path, {**read_json(path), "sample_size": size})


def save_sibling(folder: Path, model: str, base: str) -> None:
    """Writes what stands beside the networks of a model that shares all its other parts, and its facts, with another.

    Args:
        folder: Of the model.
        model: Its name.
        base: The other model's folder, relative to this one.
    """
    save_json(folder / "triptych.json", {"model": model, BASE: base})


def save_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


_STEM = {
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "tiny_vae": "diffusion_pytorch_model",
}
_DIFFUSERS_CLASS: Mapping[str, Mapping[str, Any]] = {
    "text_encoder": {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"},
    "unet": {"_class_name": "UNet2DConditionModel"},
    "vae": {"_class_name": "AutoencoderKL"},
    "tiny_vae": {"_class_name": "AutoencoderTiny"},
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


def _file_name(network: Network, variant: str | None) -> str:
    return ".".join(filter(None, (_STEM[network.subfolder], variant, "safetensors")))


def _index_name(network: Network, variant: str | None) -> str:
    return ".".join(filter(None, (_STEM[network.subfolder], "safetensors.index", variant, "json")))


# What diffusers' pipelines make of every scheduler_config.json, because those of the first checkpoints lack them
_PIPELINE_OPTIONS = {"steps_offset": 1, "clip_sample": False}


def text_space_of(config: CLIPTextConfig) -> str | None:
    """The name of what a text encoder of Stable Diffusion makes; None where it is of neither family."""
    match (config.hidden_size, config.num_hidden_layers, config.hidden_act):
        case (768, 12, "quick_gelu"):
            return "clip-vit-l-14"
        case (1024, 23, "gelu"):
            return "openclip-vit-h-14"
    return None


def _size(unet: Mapping[str, Any], downsampling: int) -> tuple[int, int]:
    """(width, height) in pixels that a U-Net's configuration recommends, as diffusers' pipeline reads it."""
    latents = unet.get("sample_size") or 64
    height, width = latents if isinstance(latents, list) and len(latents) == 2 else (latents, latents)
    if not all(type(side) is int and side > 0 for side in (width, height)):
        raise CheckpointError(
            f"the configuration of the U-Net has sample_size={str(latents)[:64]}; it must be a whole number above 0"
        )
    if latents == width < 64 and _is_before_0_9(unet.get("_diffusers_version")):
        width = height = 64  # they said 32 and meant 64
    return width * downsampling, height * downsampling


def _is_before_0_9(version: Any) -> bool:
    found = re.match(r"0\.(\d+)\b", version) if isinstance(version, str) else None
    return found is not None and int(found[1]) < 9
