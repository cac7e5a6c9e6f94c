"""One network of a checkpoint on given inputs, in a process of its own: ours on our engine, or its peer's on torch.

::

    python -m tests.full.run_network ours|theirs|theirs-float64 NETWORK CHECKPOINT INPUTS.npz OUTPUTS.npz
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.checkpoints.checkpoint import Network, load_network
from triptych.checkpoints.diffusers_folder import DiffusersFolder
from triptych.engines import NetworkSource, Precision, RowSpec, get_engine

Arrays = Mapping[str, NDArray[Any]]


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

    from benchmarks.diffusers_networks import call_peer, load_peer

    dtype = torch.float64 if double else torch.float32
    module = load_peer(network, checkpoint, dtype)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor.long() for name, tensor in tensors.items()}
    with torch.inference_mode():
        outputs = call_peer(network, module, tensors)
    return {name: tensor.numpy() for name, tensor in outputs.items()}


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
