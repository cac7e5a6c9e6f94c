"""What is run: the U-Net and the decoder of Stable Diffusion 1.5 at 512x512, or small ones of their kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.checkpoints.checkpoint import Network
from triptych.checkpoints.diffusers_folder import save_network
from triptych.engines.keras_backend import import_keras
from triptych.models.config import STABLE_DIFFUSION_1_5_UNET, STABLE_DIFFUSION_1_5_VAE, UNetConfig, VAEConfig

Arrays = Mapping[str, NDArray[Any]]

BATCHES = {Network.UNET: (2, 4, 8, 16), Network.VAE_DECODER: (1, 2, 4)}
PRECISIONS = ("bfloat16", "float16")
PRODUCTS = 16
"""Of matrices in a row, so that the start of one hides behind the one before."""

_TINY_UNET = replace(
    STABLE_DIFFUSION_1_5_UNET,
    block_out_channels=(32, 64),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    attention_head_dim=4,
    cross_attention_dim=32,
    norm_num_groups=8,
)
_TINY_VAE = replace(STABLE_DIFFUSION_1_5_VAE, block_out_channels=(16, 32, 32, 32), layers_per_block=1, norm_num_groups=8)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network at a precision and a number of rows."""

    network: Network
    precision: str
    batch: int
    tiny: bool

    @property
    def name(self) -> str:
        return f"{self.network}-{self.precision}-{self.batch}"

    @property
    def matrix_side(self) -> int:
        return 128 if self.tiny else 8192

    @property
    def unet(self) -> UNetConfig:
        return _TINY_UNET if self.tiny else STABLE_DIFFUSION_1_5_UNET

    @property
    def vae(self) -> VAEConfig:
        return _TINY_VAE if self.tiny else STABLE_DIFFUSION_1_5_VAE


def inputs_of(case: Case) -> dict[str, NDArray[Any]]:
    """Random inputs of the shapes that requests have. Fewer rows are the first ones of more."""
    generator = np.random.default_rng(0)
    side, tokens = (4, 8) if case.tiny else (64, 77)

    def rows(*shape: int) -> NDArray[np.float32]:
        return generator.standard_normal((max(BATCHES[case.network]), *shape), np.float32)[: case.batch]

    latents = rows(side, side, 4)
    if case.network is Network.VAE_DECODER:
        return {"latents": latents}
    context = rows(tokens, case.unet.cross_attention_dim)
    return {"latents": latents, "timestep": np.full(case.batch, 500, np.float32), "context": context}


def write_weights(case: Case, folder: Path) -> int:
    """Writes the case's network, with random weights that are always the same, in diffusers' layout; needs Keras on JAX.

    Returns:
        Additions and multiplications of a row.
    """
    keras = import_keras("jax")
    from triptych.models.unet import build_unet
    from triptych.models.vae import build_vae_decoder, build_vae_encoder

    keras.utils.set_random_seed(0)
    if case.network is Network.UNET:
        models = [build_unet(case.unet)]
        save_network(folder, case.network.subfolder, case.unet, *models)
    else:
        models = [build_vae_decoder(case.vae), build_vae_encoder(case.vae)]
        save_network(folder, case.network.subfolder, case.vae, *models)
    return operations_of(partial(models[0], training=False), inputs_of(replace(case, batch=1)))


def operations_of(function: Any, inputs: Arrays) -> int:
    """Additions and multiplications of the matrix products and convolutions of a function of JAX, which is not run."""
    import jax

    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in inputs.items()}
    return _operations(jax.make_jaxpr(function)(shapes).jaxpr)


def _operations(jaxpr: Any) -> int:
    return sum(_operations_of_step(step) for step in jaxpr.eqns)


def _operations_of_step(step: Any) -> int:
    if step.primitive.name == "dot_general":
        (contracted, _), _ = step.params["dimension_numbers"]
        terms = math.prod(step.invars[0].aval.shape[axis] for axis in contracted)
    elif step.primitive.name == "conv_general_dilated":
        kernel, outputs_axis = step.invars[1].aval.shape, step.params["dimension_numbers"].rhs_spec[0]
        terms = math.prod(kernel) // kernel[outputs_axis]
    else:
        return sum(_operations(getattr(inner, "jaxpr", inner)) for inner in step.params.values() if _is_function(inner))
    return int(2 * terms * math.prod(step.outvars[0].aval.shape))


def _is_function(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")
