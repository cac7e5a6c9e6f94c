"""One network of a checkpoint on given inputs, in a process of its own: ours on our engine, or its peer's on torch.

::

    python -m tests.full.run_network ours|theirs|theirs-float64 NETWORK CHECKPOINT INPUTS.npz OUTPUTS.npz
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.checkpoints.checkpoint import Network, load_network
from triptych.checkpoints.diffusers_folder import DiffusersFolder
from triptych.engines import NetworkSource, Precision, RowSpec, get_engine

Arrays = Mapping[str, NDArray[Any]]
SCALING_FACTOR = 0.18215


def run_ours(network: Network, checkpoint: Path, inputs: Arrays, folder: Path) -> Arrays:
    """As a stage runs it, in float32."""
    source = NetworkSource(name=network, build=partial(load_network, DiffusersFolder(checkpoint), network), key={})
    compiled = get_engine("openvino").compile(
        source,
        {name: RowSpec(shape=array.shape[1:], dtype=array.dtype.name) for name, array in inputs.items()},
        batch_sizes=[len(next(iter(inputs.values())))],
        precision=Precision.FLOAT32,
        cache_folder=folder,
    )
    return compiled(inputs)


def run_theirs(network: Network, checkpoint: Path, inputs: Arrays, *, double: bool) -> Arrays:
    """As diffusers' own pipeline calls it."""
    import torch

    dtype = torch.float64 if double else torch.float32
    module = _their_module(network, checkpoint, dtype)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor.long() for name, tensor in tensors.items()}
    with torch.inference_mode():
        outputs = _CALLS[network](module, tensors)
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def _their_module(network: Network, checkpoint: Path, dtype: Any) -> Any:
    import diffusers
    import transformers

    classes = {"text_encoder": transformers.CLIPTextModel, "unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}
    return classes[network.subfolder].from_pretrained(checkpoint / network.subfolder, torch_dtype=dtype).eval()


def _encode_text(module: Any, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"context": module(inputs["tokens"]).last_hidden_state}


def _predict(module: Any, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    latents = inputs["latents"].permute(0, 3, 1, 2)
    return {"prediction": module(latents, inputs["timestep"], inputs["context"]).sample.permute(0, 2, 3, 1)}


def _encode_image(module: Any, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    distribution = module.encode(inputs["images"].permute(0, 3, 1, 2)).latent_dist
    return {"mean": distribution.mean.permute(0, 2, 3, 1), "logvar": distribution.logvar.permute(0, 2, 3, 1)}


def _decode(module: Any, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    latents = inputs["latents"].permute(0, 3, 1, 2) / SCALING_FACTOR
    return {"images": module.decode(latents).sample.permute(0, 2, 3, 1)}


_CALLS: Mapping[Network, Callable[[Any, Mapping[str, Any]], Mapping[str, Any]]] = {
    Network.TEXT_ENCODER: _encode_text,
    Network.UNET: _predict,
    Network.VAE_ENCODER: _encode_image,
    Network.VAE_DECODER: _decode,
}


def main() -> None:
    """Writes the outputs."""
    whose, name, checkpoint, inputs_path, outputs_path = sys.argv[1:]
    network, inputs = Network(name), dict(np.load(inputs_path))
    with tempfile.TemporaryDirectory(dir=Path(outputs_path).parent) as folder:
        if whose == "ours":
            outputs = run_ours(network, Path(checkpoint), inputs, Path(folder))
        else:
            outputs = run_theirs(network, Path(checkpoint), inputs, double=whose == "theirs-float64")
    np.savez(outputs_path, **outputs)


if __name__ == "__main__":
    main()
