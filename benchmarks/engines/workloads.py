"""What is run: each network of Stable Diffusion 1.5 as one guided picture of 512x512 calls it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.diffusers_networks import call_peer, make_peer
from benchmarks.real_configurations import CLIP_L, UNET_1, VAE
from triptych.checkpoints.checkpoint import Network

Arrays = Mapping[str, NDArray[Any]]

NETWORKS = (Network.UNET, Network.VAE_DECODER, Network.TEXT_ENCODER)
_CONFIGS = {Network.UNET: UNET_1, Network.VAE_DECODER: VAE, Network.TEXT_ENCODER: CLIP_L}


def inputs_of(network: Network, *, side: int = 512, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random inputs of the shapes that a request has, `side` pixels wide and high."""
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return generator.standard_normal(shape, np.float32)

    match network:
        case Network.UNET:
            latents, context = normal(1, side // 8, side // 8, 4).repeat(2, 0), normal(2, 77, UNET_1["cross_attention_dim"])
            return {"latents": latents, "timestep": np.full(2, 500, np.float32), "context": context}
        case Network.VAE_DECODER:
            return {"latents": normal(1, side // 8, side // 8, 4)}
        case Network.TEXT_ENCODER:
            return {"tokens": generator.integers(0, 49406, (2, 77), np.int32)}
    raise ValueError(f"no request calls the {network} for a picture made of words")


def operations_of(network: Network, inputs: Arrays) -> int:
    """Additions and multiplications of the matrix products and convolutions, as torch counts them."""
    with torch.device("meta"):
        module = make_peer(network.subfolder, _CONFIGS[network])
    tensors = {
        name: torch.empty(array.shape, dtype=torch.from_numpy(array).dtype, device="meta") for name, array in inputs.items()
    }
    tensors = {name: tensor if tensor.is_floating_point() else tensor.long() for name, tensor in tensors.items()}
    with FlopCounterMode(display=False) as counter:
        call_peer(network, module, tensors)
    return int(counter.get_total_flops())
