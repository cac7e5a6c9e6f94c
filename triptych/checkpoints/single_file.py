"""Models in one safetensors file in the layout of Stable Diffusion's first publishers, as Civitai holds them.

::

    model.diffusion_model.   the U-Net: time_embed, input_blocks, middle_block, output_blocks, out
    first_stage_model.       the VAE: encoder, decoder, quant_conv, post_quant_conv
    cond_stage_model.        the text encoder: CLIP under transformer.text_model (1.x), OpenCLIP under model (2.x)

There is no configuration in it: what its networks are is read off the shapes of their tensors, and what shapes cannot tell is a
rule of the family, or an option. A file with some of the parts serves the stages that need those. No keras here.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from triptych.checkpoints.checkpoint import ModelFacts, Network
from triptych.checkpoints.clip_vocabulary import read_clip_vocabulary
from triptych.checkpoints.diffusers_folder import text_space_of
from triptych.checkpoints.original_layout import (
    PREFIXES,
    Part,
    Piece,
    is_unused_layer,
    parts_of,
    text_config,
    unet_config,
    vae_config,
)
from triptych.checkpoints.weights import first_names, opened, read_tensor
from triptych.errors import CheckpointError
from triptych.models.config import (
    STABLE_DIFFUSION_1_5_TEXT_ENCODER,
    STABLE_DIFFUSION_1_5_VAE,
    CLIPTextConfig,
    NetworkConfig,
    UNetConfig,
    VAEConfig,
)
from triptych.models.tokenizer import Tokenizer, save_tokenizer

PICKLES = (".ckpt", ".pt", ".pth", ".bin")

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

STABLE_DIFFUSION_2_TEXT_ENCODER = CLIPTextConfig(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu"
)

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
"""With which all of 1.x and 2.x were trained, and how their publishers sample."""

# What a file may say of itself in its header (https://github.com/Stability-AI/ModelSpec), in our words
_PREDICTION_TYPE_KEY, _ARCHITECTURE_KEY, _RESOLUTION_KEY = (
    f"modelspec.{name}" for name in ("prediction_type", "architecture", "resolution")
)
_PREDICTION_TYPES_TOLD = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
_ARCHITECTURES_TOLD = {"stable-diffusion-v2-512": "epsilon", "stable-diffusion-v2-768-v": "v_prediction"}

# How our names begin of what is in the same part and belongs to the other half of the VAE
_OTHER_HALF = {
    Network.VAE_ENCODER: ("decoder.", "post_quant_conv."),
    Network.VAE_DECODER: ("encoder.", "quant_conv."),
}

Config = TypeVar("Config", UNetConfig, VAEConfig, CLIPTextConfig)


@dataclass(frozen=True, kw_only=True)
class SingleFileOptions:
    """What a single file does not say.

    Attributes:
        prediction_type: What the U-Net predicts, of PREDICTION_TYPES. The weights of 2.x do not tell.
        tokenizer: CLIP's vocabulary: a folder of vocab.json and merges.txt, or OpenAI's `bpe_simple_vocab_16e6.txt.gz`. The text
            encoder alone needs it.
        facts: In place of those that follow from the file.
        configs: Fields in place of those that follow from the file, of `unet`, `vae`, `text_encoder` and `scheduler`.
    """

    prediction_type: str | None = None
    tokenizer: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def looks_like_single_file(path: Path) -> bool:
    """Whether a path is named as single files are, the pickles that are refused included."""
    return path.suffix.lower() in (".safetensors", *PICKLES)


class SingleFile:
    """See `Checkpoint`: a model's file. Until a network is loaded no more of it is read than the header."""

    def __init__(self, path: Path, options: SingleFileOptions | None = None) -> None:
        self.path = path
        self.options = options or SingleFileOptions()

    @cached_property
    def facts(self) -> ModelFacts:
        is_v = self._prediction_type == "v_prediction"
        told = ModelFacts(
            model=self.path.stem,
            latent_space="sd-1" if self.vae == STABLE_DIFFUSION_1_5_VAE else self.path.stem,
            text_space=self._text_space or self.path.stem,
            sizes=(self._resolution_told or ((768, 768) if is_v and self._is_second else (512, 512)),),
            sampler="ddim" if is_v else "pndm",
            num_steps=50,
            guidance_scale=7.5,
        )
        return replace(told, **self.options.facts)

    @cached_property
    def text_encoder(self) -> CLIPTextConfig:
        """Of the file; where it has none, the one with which its U-Net was trained."""
        if part := self._parts.get("text_encoder"):
            return self._overridden("text_encoder", text_config(part))
        published = STABLE_DIFFUSION_2_TEXT_ENCODER if self._is_second else STABLE_DIFFUSION_1_5_TEXT_ENCODER
        if self.unet.cross_attention_dim != published.hidden_size:
            raise CheckpointError(
                f"{self.path} has no text encoder, and its U-Net wants contexts {self.unet.cross_attention_dim} wide, "
                f"not {published.hidden_size} as its family's"
            )
        return self._overridden("text_encoder", published)

    @cached_property
    def unet(self) -> UNetConfig:
        return self._overridden("unet", unet_config(self._part("unet")))

    @cached_property
    def vae(self) -> VAEConfig:
        """Of the file; where it has none, the one that all of 1.x and 2.x share."""
        part = self._parts.get("vae")
        return self._overridden("vae", vae_config(part) if part else STABLE_DIFFUSION_1_5_VAE)

    @cached_property
    def scheduler(self) -> Mapping[str, Any]:
        """As the publishers of 1.5 and 2.1 have it; see `Checkpoint.scheduler`."""
        sampler = "DDIMScheduler" if self._prediction_type == "v_prediction" else "PNDMScheduler"
        told = {"_class_name": sampler, **SCHEDULER, "prediction_type": self._prediction_type}
        return {**told, **self.options.configs.get("scheduler", {})}

    @cached_property
    def tokenizer(self) -> Path:
        """The folder that the options name; where that one pads otherwise than the model, another while this object lives."""
        source = self.options.tokenizer
        if source is None:
            raise CheckpointError(
                f"{self.path} holds no vocabulary, as no single file does: give as its tokenizer a folder with CLIP's vocab.json "
                "and merges.txt, or OpenAI's bpe_simple_vocab_16e6.txt.gz"
            )
        folder = source if source.is_dir() else self._unpacked(source)
        tokenizer = Tokenizer.from_folder(folder)
        size = self.text_encoder.vocab_size
        if tokenizer.vocabulary_size > size:
            raise CheckpointError(f"{source} has {tokenizer.vocabulary_size} tokens, the text encoder of {self.path} only {size}")
        pad = 0 if self._is_second else tokenizer.end
        return folder if tokenizer.pad == pad else self._padded(folder, str(tokenizer.bpe.id_to_token(pad)))

    @property
    def tiny_vae(self) -> None:
        """A single file has none."""

    def config(self, network: Network) -> NetworkConfig:
        config: NetworkConfig = getattr(self, network.subfolder)
        return config

    def tensors(self, network: Network) -> AbstractContextManager[OriginalTensors]:
        return _tensors(self.path, self._pieces(network))

    def weights_digest(self, network: Network) -> str:
        """sha256 over the network's own tensors, in hexadecimal: key, type, shape and bytes of each, in order of the keys.

        The rest of the file is neither read nor of any account: not its metadata, and no other network.
        """
        pieces = self._pieces(network)
        digest = hashlib.sha256()
        with _tensors(self.path, pieces) as tensors:
            for key in sorted({piece.key for piece in pieces.values()}):
                array = tensors.read_key(key)
                digest.update(f"{key} {array.dtype.name} {array.shape}\n".encode())
                digest.update(array.data)
        return digest.hexdigest()

    # What the file has

    @cached_property
    def _header(self) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
        """Shapes and metadata."""
        with _opened(self.path) as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - is no mapping
            return shapes, file.metadata() or {}

    @cached_property
    def _parts(self) -> Mapping[str, Part]:
        shapes, _ = self._header
        return parts_of(str(self.path), shapes)

    def _part(self, name: str) -> Part:
        if name not in self._parts:
            raise CheckpointError(f"{self.path} has no {name}: no key of it begins with {PREFIXES[name]}")
        return self._parts[name]

    def _pieces(self, network: Network) -> dict[str, Piece]:
        """Where the network's tensors are, by our names."""
        pieces = self._part(network.subfolder).pieces
        if network is Network.TEXT_ENCODER:
            return {name: piece for name, piece in pieces.items() if not is_unused_layer(name, self.text_encoder)}
        return {name: piece for name, piece in pieces.items() if not name.startswith(_OTHER_HALF.get(network, ()))}

    # What follows from it

    @cached_property
    def _is_second(self) -> bool:
        """Whether it is of 2.x; a VAE alone is of both."""
        if part := self._parts.get("unet"):
            return unet_config(part).use_linear_projection
        return "text_encoder" in self._parts and self._parts["text_encoder"].is_openclip

    @property
    def _text_space(self) -> str | None:
        if self._parts.keys() == {"vae"}:
            return None  # of no account
        if "unet" in self._parts and self.unet.cross_attention_dim != self.text_encoder.hidden_size:
            raise CheckpointError(
                f"the parts of {self.path} do not fit: its text encoder's contexts are {self.text_encoder.hidden_size} wide, "
                f"its U-Net wants {self.unet.cross_attention_dim}"
            )
        return text_space_of(self.text_encoder)

    @cached_property
    def _prediction_type(self) -> str:
        told = self.options.prediction_type or self._prediction_type_told
        if told is None and self._is_second and "unet" in self._parts and unet_config(self._parts["unet"]).in_channels == 4:
            raise CheckpointError(
                f"{self.path} is of Stable Diffusion 2, whose weights do not tell what they predict: give as its prediction_type "
                "epsilon (2.x base, 512x512) or v_prediction (768x768): `triptych models add NAME FILE --prediction-type ...`"
            )
        if told not in (None, *PREDICTION_TYPES):
            raise CheckpointError(f"prediction_type of {self.path} must be {', '.join(PREDICTION_TYPES)}, not {told!r}")
        return told or "epsilon"

    @property
    def _prediction_type_told(self) -> str | None:
        _, metadata = self._header
        told = metadata.get(_PREDICTION_TYPE_KEY)
        if told is None:
            return _ARCHITECTURES_TOLD.get(metadata.get(_ARCHITECTURE_KEY, ""))
        return _PREDICTION_TYPES_TOLD.get(told, told)

    @property
    def _resolution_told(self) -> tuple[int, int] | None:
        """(width, height) in pixels."""
        _, metadata = self._header
        told = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", metadata.get(_RESOLUTION_KEY, ""))
        return (int(told[1]), int(told[2])) if told else None

    def _overridden(self, part: str, config: Config) -> Config:
        values = self.options.configs.get(part, {})
        if unknown := values.keys() - {each.name for each in fields(config)}:
            raise CheckpointError(f"the {part} has no {first_names(unknown)} to be given for {self.path}")
        try:
            return type(config).from_dict({**config.to_dict(), **values})
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error.message}") from error

    # The vocabulary

    def _unpacked(self, source: Path) -> Path:
        vocabulary, merges = read_clip_vocabulary(source)
        folder = self._temporary_folder()
        save_tokenizer(folder, vocabulary, merges, length=self.text_encoder.max_position_embeddings)
        return folder

    def _padded(self, source: Path, pad: str) -> Path:
        """A folder with the same vocabulary, which pads with another token and has no further marks."""
        folder = self._temporary_folder()
        for name in ("vocab.json", "merges.txt"):
            if not (source / name).is_file():
                raise CheckpointError(f"the tokenizer for {self.path} has no {name} in {source}")
            shutil.copy(source / name, folder)
        (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad}), encoding="utf-8")
        return folder

    def _temporary_folder(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="triptych-tokenizer-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder


class OriginalTensors:
    """See `Tensors`: those of one network in a single file, which is mapped into memory."""

    def __init__(self, file: Any, path: Path, pieces: Mapping[str, Piece]) -> None:
        self.origin = str(path)
        self._file = file
        self._pieces = pieces

    def names(self) -> Collection[str]:
        return self._pieces.keys()

    def read(self, name: str) -> NDArray[Any]:
        piece = self._pieces[name]
        if piece.third is None:
            return self.read_key(piece.key)
        count, rest = divmod(self._file.get_slice(piece.key).get_shape()[0], 3)
        if rest:
            raise CheckpointError(f"{self.origin}: {piece.key} is no fused projection: it has {3 * count + rest} rows")
        return read_tensor(self._file, piece.key, self.origin, slice(piece.third * count, (piece.third + 1) * count))

    def read_key(self, key: str) -> NDArray[Any]:
        """The whole of one of the file's own tensors."""
        return read_tensor(self._file, key, self.origin)


@contextmanager
def _tensors(path: Path, pieces: Mapping[str, Piece]) -> Iterator[OriginalTensors]:
    with _opened(path) as file:
        yield OriginalTensors(file, path, pieces)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file while it is mapped into memory."""
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    if path.suffix.lower() in PICKLES or _begins_as_pickle(path):
        raise CheckpointError(
            f"{path} is a pickle, which can run code when it is loaded, so it is refused; where you trust it, convert it with "
            "diffusers: StableDiffusionPipeline.from_single_file(...).save_pretrained(...), and name that folder"
        )
    with opened(path) as file:
        yield file


def _begins_as_pickle(path: Path) -> bool:
    """Whether torch.save wrote it, as it does today or as it did until 2020."""
    with path.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"\x80\x02\x8a\n")
