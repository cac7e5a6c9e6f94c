"""One network on one engine: `python -m benchmarks.engines.contender TASK`.

It is ready when it has run once, and then runs once for every line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.line_processes import Lines
from triptych.checkpoints.checkpoint import Network

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[], Arrays]

MATRIX_SIDE, MATRIX_PRODUCTS = 4096, 4
_LATENCY = {"PERFORMANCE_HINT": "LATENCY"}


def ours(network: Network, checkpoint: Path, inputs: Arrays, task: Mapping[str, Any]) -> tuple[str, Run]:
    """As a stage runs it, at the precision that it chooses by itself."""
    from triptych.checkpoints.checkpoint import load_network
    from triptych.checkpoints.diffusers_folder import DiffusersFolder
    from triptych.engines import AUTO, NetworkSource, RowSpec, get_engine

    engine = get_engine("openvino", threads=task["threads"])
    precision = engine.choose_precision(AUTO)
    compiled = engine.compile(
        NetworkSource(
            name=network, build=partial(load_network, DiffusersFolder(checkpoint), network), key={"benchmark": network}
        ),
        {name: RowSpec(shape=array.shape[1:], dtype=array.dtype.name) for name, array in inputs.items()},
        batch_sizes=[len(next(iter(inputs.values())))],
        precision=precision,
        cache_folder=Path(task["cache"]),
    )
    return precision, partial(compiled, inputs)


def ours_in_int8(network: Network, checkpoint: Path, inputs: Arrays, task: Mapping[str, Any]) -> tuple[str, Run]:
    """As a stage runs it in int8, by what `triptych quantize` has made of it before."""
    from triptych.cli.models import stage_settings
    from triptych.engines import RowSpec
    from triptych.stages.networks import QUANTIZABLE, NetworkLoader

    rows = {name: RowSpec(shape=array.shape[1:], dtype=array.dtype.name) for name, array in inputs.items()}
    options = stage_settings(
        str(checkpoint),
        engine="openvino",
        precision="int8",
        threads=task["threads"],
        batch_sizes=(len(next(iter(inputs.values()))),),
        exact=False,
        cache_folder=Path(task["cache"]),
    )
    loader = NetworkLoader(options, QUANTIZABLE[network])
    compiled = loader.load(network, rows)
    return f"int8 and {loader.numerics.float_precision}", partial(compiled, inputs)


def diffusers_on_openvino(network: Network, checkpoint: Path, inputs: Arrays, task: Mapping[str, Any]) -> tuple[str, Run]:
    """Diffusers' network, converted by OpenVINO, at fixed shapes and OpenVINO's own choice of precision."""
    import openvino as ov
    import torch

    from benchmarks.diffusers_networks import call_peer, load_peer

    module = load_peer(network, checkpoint, torch.float32)
    names = list(inputs)

    class OfTensors(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *tensors: torch.Tensor) -> Any:
            return next(iter(call_peer(network, self.module, dict(zip(names, tensors, strict=True))).values()))

    with torch.inference_mode():
        graph = ov.convert_model(OfTensors(), example_input=tuple(_tensors(inputs, torch.float32).values()))
    graph.reshape({graph.input(place): list(array.shape) for place, array in enumerate(inputs.values())})
    compiled = ov.Core().compile_model(graph, "CPU", {**_LATENCY, "INFERENCE_NUM_THREADS": task["threads"]})
    arrays = [array if array.dtype.kind == "f" else array.astype(np.int64) for array in inputs.values()]
    (output,) = _output_names(network)
    return compiled.get_property("INFERENCE_PRECISION_HINT").to_string(), lambda: {output: compiled(arrays)[0]}


def diffusers(dtype: str, network: Network, checkpoint: Path, inputs: Arrays, task: Mapping[str, Any]) -> tuple[str, Run]:
    """Diffusers' network as torch runs it, channels last."""
    import torch

    from benchmarks.diffusers_networks import call_peer, load_peer

    torch.set_num_threads(task["threads"])
    kind = getattr(torch, dtype)
    module = load_peer(network, checkpoint, kind).to(memory_format=torch.channels_last)
    tensors = _tensors(inputs, kind)

    def run() -> Arrays:
        with torch.inference_mode():
            return {name: tensor.float().numpy() for name, tensor in call_peer(network, module, tensors).items()}

    return dtype, run


def matrix_product(_network: Network, _checkpoint: Path, _inputs: Arrays, task: Mapping[str, Any]) -> tuple[str, Run]:
    """What the machine can do: large products, one after the other, in OpenVINO's own choice of precision.

    The right-hand sides are constants, as weights are: what arrays of float32 take to be brought into another precision, and
    back, falls upon the first of them and the last alone.
    """
    import openvino as ov
    from openvino import opset16

    random = np.random.default_rng(0)
    left = opset16.parameter([MATRIX_SIDE, MATRIX_SIDE], np.float32)
    product = left
    for _ in range(MATRIX_PRODUCTS):
        weights = random.standard_normal((MATRIX_SIDE, MATRIX_SIDE), np.float32) / np.float32(MATRIX_SIDE**0.5)
        product = opset16.matmul(product, opset16.constant(weights), False, False)
    graph = ov.Model([opset16.result(product)], [left])
    compiled = ov.Core().compile_model(graph, "CPU", {**_LATENCY, "INFERENCE_NUM_THREADS": task["threads"]})
    array = random.standard_normal((MATRIX_SIDE, MATRIX_SIDE), np.float32)
    return compiled.get_property("INFERENCE_PRECISION_HINT").to_string(), lambda: {"product": compiled([array])[0]}


CONTENDERS: Mapping[str, Callable[[Network, Path, Arrays, Mapping[str, Any]], tuple[str, Run]]] = {
    "ours": ours,
    "ours-int8": ours_in_int8,
    "diffusers-openvino": diffusers_on_openvino,
    "diffusers-bfloat16": partial(diffusers, "bfloat16"),
    "diffusers-float32": partial(diffusers, "float32"),
    "matrix-product": matrix_product,
}


def _tensors(inputs: Arrays, kind: Any) -> dict[str, Any]:
    import torch

    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    return {name: tensor.to(kind) if tensor.is_floating_point() else tensor.long() for name, tensor in tensors.items()}


def _output_names(network: Network) -> tuple[str, ...]:
    return {Network.UNET: ("prediction",), Network.VAE_DECODER: ("images",), Network.TEXT_ENCODER: ("context",)}[network]


def main() -> None:
    """Writes the outputs of the first run to the file that the task names."""
    lines = Lines()
    task = json.loads(sys.argv[1])
    precision, run = CONTENDERS[task["contender"]](
        Network(task["network"]), Path(task["checkpoint"]), dict(np.load(task["inputs"])), task
    )
    np.savez(task["outputs"], allow_pickle=False, **run())
    lines.say({"precision": precision})

    def once(_: Mapping[str, Any]) -> dict[str, float]:
        started = time.perf_counter()
        run()
        return {"seconds": time.perf_counter() - started}

    lines.answer(once)


if __name__ == "__main__":
    main()
