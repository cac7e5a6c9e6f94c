"""A model on disk, whatever its layout: what it says of itself, and the tensors of its networks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from triptych.checkpoints.weights import Tensors, fill, first_names
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


class UNetPart(StrEnum):
    """What an evaluation computes of a U-Net whose features are reused by later ones: see `models.unet`."""

    WHOLE = "whole"
    """All of it, and the features beside the prediction."""
    SHALLOW = "shallow"
    """Its layers nearest to the latents, on the features of an earlier evaluation."""


class VAEPart(StrEnum):
    """The parts of one half of the VAE, for pictures that are run in tiles: see `models/vae_parts.py`."""

    TRUNK = "trunk"
    TILE = "tile"
    THUMBNAIL = "thumbnail"


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the networks of a model do not say themselves.

    Attributes:
        model: The model's name.
        latent_space, text_space: Names of what its VAE and its text encoder make; equal names fit together.
        sizes: (width, height) in pixels of its pictures, the default first.
        sampler, num_steps, guidance_scale: What it uses unless asked otherwise.
        words: All words it knows, in lower case; None where it was trained on anything.
        warnings: What whoever leaves the choice of sampler to it should know, such as that we do not have the one it wants.
    """

    model: str
    latent_space: str
    text_space: str
    sizes: tuple[tuple[int, int], ...]
    sampler: str
    num_steps: int
    guidance_scale: float
    words: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelFacts:
        names = {field.name for field in fields(cls)}
        if surplus := values.keys() - names:
            raise CheckpointError(f"triptych.json has keys that mean nothing: {first_names(surplus)}")
        if missing := names - {"words", "warnings"} - values.keys():
            raise CheckpointError(f"triptych.json lacks {first_names(missing)}")
        words = values.get("words")
        try:
            sizes = tuple((int(width), int(height)) for width, height in values["sizes"])
        except (TypeError, ValueError) as error:
            raise CheckpointError("sizes in triptych.json must be a list of [width, height]") from error
        read = {"sizes": sizes, "words": None if words is None else tuple(words), "warnings": tuple(values.get("warnings", ()))}
        return cls(**{**values, **read})


class Checkpoint(Protocol):
    """A model on disk. Each file is read when it is first asked for, so that a stage needs no more than its own.

    All members raise CheckpointError where their file is missing, damaged, or describes what we do not have.
    """

    @property
    def facts(self) -> ModelFacts: ...

    @property
    def text_encoder(self) -> CLIPTextConfig: ...

    @property
    def unet(self) -> UNetConfig: ...

    @property
    def vae(self) -> VAEConfig: ...

    @property
    def scheduler(self) -> Mapping[str, Any]:
        """The noise schedule and the sampler's options, with diffusers' names."""

    @property
    def tokenizer(self) -> Path:
        """The folder of vocab.json and merges.txt."""

    @property
    def tiny_vae(self) -> Path | None:
        """The folder of an AutoencoderTiny that decodes the same latents, roughly and fast; None where there is none."""

    def config(self, network: Network) -> NetworkConfig:
        """Of one network; both halves of the VAE have the same."""

    def tensors(self, network: Network) -> AbstractContextManager[Tensors]:
        """The network's tensors under diffusers' and transformers' names; what holds them is open meanwhile."""

    def weights_digest(self, network: Network) -> str:
        """sha256 of what holds the network's weights, in hexadecimal. Gigabytes may be read."""


def load_network(
    checkpoint: Checkpoint, network: Network, *, part: UNetPart | None = None, data_format: str | None = None
) -> keras.Model:
    """A network, built and with its weights.

    Args:
        part: Of the U-Net where its features are reused; None where they are not.

    Raises:
        CheckpointError: As `load_weights`, and where the configuration is not one of ours.
    """
    from triptych.models.text_encoder import build_text_encoder
    from triptych.models.unet import build_shallow_unet, build_unet
    from triptych.models.vae import build_vae_decoder, build_vae_encoder

    fresh = {"kernel_initializer": "zeros"}  # random ones would take longer than the loading
    match network:
        case Network.TEXT_ENCODER:
            model = build_text_encoder(checkpoint.text_encoder, embeddings_initializer="zeros", **fresh)
        case Network.UNET if part is UNetPart.SHALLOW:
            model = build_shallow_unet(checkpoint.unet, data_format=data_format, **fresh)
        case Network.UNET:
            model = build_unet(checkpoint.unet, keep_features=part is not None, data_format=data_format, **fresh)
        case Network.VAE_ENCODER:
            model = build_vae_encoder(checkpoint.vae, data_format=data_format, **fresh)
        case Network.VAE_DECODER:
            model = build_vae_decoder(checkpoint.vae, data_format=data_format, **fresh)
    load_weights(model, checkpoint, network, is_part=part is UNetPart.SHALLOW)
    return model


def load_part(checkpoint: Checkpoint, network: Network, part: VAEPart, *, data_format: str | None = None) -> keras.Model:
    """A part of one half of the VAE, built and with its weights. Raises as `load_network`."""
    from triptych.models import vae_parts

    build = {
        (Network.VAE_DECODER, VAEPart.TRUNK): vae_parts.build_decoder_trunk,
        (Network.VAE_DECODER, VAEPart.TILE): vae_parts.build_decoder_tile,
        (Network.VAE_DECODER, VAEPart.THUMBNAIL): vae_parts.build_decoder_thumbnail,
        (Network.VAE_ENCODER, VAEPart.TRUNK): vae_parts.build_encoder_trunk,
        (Network.VAE_ENCODER, VAEPart.TILE): vae_parts.build_encoder_tile,
        (Network.VAE_ENCODER, VAEPart.THUMBNAIL): vae_parts.build_encoder_thumbnail,
    }[network, part]
    model = build(checkpoint.vae, data_format=data_format, kernel_initializer="zeros")
    load_weights(model, checkpoint, network, is_part=True)
    return model


def load_weights(model: keras.Model, checkpoint: Checkpoint, network: Network, *, is_part: bool = False) -> None:
    """Fills a network, or what is a part of one, with its weights.

    Raises:
        CheckpointError: A file is missing, damaged or a pickle; or its tensors are not those of the network.
    """
    with checkpoint.tensors(network) as tensors:
        fill(model, tensors, is_part=is_part)
