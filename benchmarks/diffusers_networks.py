"""Diffusers' and transformers' networks as functions of the named arrays that ours take: channels last, VAE-scaled latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from triptych.checkpoints.checkpoint import Network

SCALING_FACTOR = 0.18215
_CLASSES: Mapping[str, Any] = {
    "text_encoder": transformers.CLIPTextModel,
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
}

Tensors = Mapping[str, torch.Tensor]


def make_peer(subfolder: str, config: Mapping[str, Any]) -> torch.nn.Module:
    """A network of a `config.json`, with the weights that torch gives it: none on its device `meta`."""
    if subfolder == "text_encoder":
        return transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
    return _CLASSES[subfolder].from_config(config)


def load_peer(network: Network, checkpoint: Path, dtype: torch.dtype) -> torch.nn.Module:
    """The network of a folder in diffusers' layout, for `call_peer`."""
    return _CLASSES[network.subfolder].from_pretrained(checkpoint / network.subfolder, torch_dtype=dtype).eval()


def call_peer(network: Network, module: torch.nn.Module, inputs: Tensors) -> Tensors:
    """As diffusers' own pipeline calls it."""
    return _CALLS[network](module, inputs)


def _encode_text(module: Any, inputs: Tensors) -> Tensors:
    return {"context": module(inputs["tokens"]).last_hidden_state}


def _predict(module: Any, inputs: Tensors) -> Tensors:
    latents = inputs["latents"].permute(0, 3, 1, 2)
    return {"prediction": module(latents, inputs["timestep"], inputs["context"]).sample.permute(0, 2, 3, 1)}


def _encode_image(module: Any, inputs: Tensors) -> Tensors:
    distribution = module.encode(inputs["images"].permute(0, 3, 1, 2)).latent_dist
    return {"mean": distribution.mean.permute(0, 2, 3, 1), "logvar": distribution.logvar.permute(0, 2, 3, 1)}


def _decode(module: Any, inputs: Tensors) -> Tensors:
    latents = inputs["latents"].permute(0, 3, 1, 2) / SCALING_FACTOR
    return {"images": module.decode(latents).sample.permute(0, 2, 3, 1)}


_CALLS: Mapping[Network, Callable[[Any, Tensors], Tensors]] = {
    Network.TEXT_ENCODER: _encode_text,
    Network.UNET: _predict,
    Network.VAE_ENCODER: _encode_image,
    Network.VAE_DECODER: _decode,
}
