"""A network of two inputs and two outputs, small enough to be written again in numpy.

Run as a script it compiles itself with an engine, in a process of its own because Keras has one backend a process:
`python -m tests.engines.toy_network ENGINE PRECISIONS CACHE_FOLDER` prints what happened as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych.engines import CompiledNetwork, Engine, NetworkSource, Precision, RowSpec, get_engine
from triptych.engines.exactness import find_exactness

ROWS = {"latents": RowSpec(shape=(4, 4, 2)), "tokens": RowSpec(shape=(6,), dtype="int32")}
BATCH_SIZES = (1, 2, 4)
VOCABULARY, CHANNELS = 500, 3


def weights(*, half: bool = True) -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(7)
    shapes = {"kernel": (3, 3, 2, CHANNELS), "bias": (CHANNELS,), "embeddings": (VOCABULARY, CHANNELS)}
    arrays = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {name: array.astype(np.float16).astype(np.float32) for name, array in arrays.items()} if half else arrays


def toy_inputs(num_rows: int, seed: int = 1) -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(seed)
    latents = generator.standard_normal((num_rows, *ROWS["latents"].shape)).astype(np.float32)
    tokens = generator.integers(0, VOCABULARY, (num_rows, *ROWS["tokens"].shape), np.int32)
    return {"latents": latents, "tokens": tokens}


def expected(inputs: Mapping[str, NDArray[Any]], *, half: bool = True) -> dict[str, NDArray[Any]]:
    """What the network computes, in numpy."""
    values = weights(half=half)
    context = values["embeddings"][inputs["tokens"]]
    padded = np.pad(inputs["latents"], ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    prediction = np.einsum("bhwcij,ijco->bhwo", windows, values["kernel"]) + values["bias"]
    return {"prediction": prediction + context.mean(axis=1)[:, None, None, :], "context": context}


def toy_source(*, half: bool = True, key: str = "toy") -> NetworkSource:
    def build() -> Any:
        import keras
        from keras import layers, ops

        latents = keras.Input(ROWS["latents"].shape, name="latents")
        tokens = keras.Input(ROWS["tokens"].shape, dtype="int32", name="tokens")
        context = layers.Embedding(VOCABULARY, CHANNELS)(tokens)
        image = layers.Conv2D(CHANNELS, 3, padding="same")(latents)
        prediction = image + layers.Reshape((1, 1, CHANNELS))(ops.mean(context, axis=1))
        model = keras.Model({"latents": latents, "tokens": tokens}, {"prediction": prediction, "context": context})
        for variable in model.weights:
            variable.assign(weights(half=half)[variable.name])
        return model

    return NetworkSource(name="toy", build=build, key={"toy": key, "half": half})


def refuse_to_build() -> Any:
    raise AssertionError("the network was built although it is in the cache")


def compile_toy(engine: Engine, cache_folder: Path, precision: str = "float32", **arguments: Any) -> CompiledNetwork:
    source = arguments.pop("source", toy_source())
    batch_sizes = arguments.pop("batch_sizes", BATCH_SIZES)
    return engine.compile(source, ROWS, batch_sizes=batch_sizes, precision=Precision(precision), cache_folder=cache_folder)


def main(name: str, precisions: str, cache_folder: str) -> dict[str, Any]:
    engine = get_engine(name)
    choices = {wanted: engine.choose_precision(wanted) for wanted in ("auto", "float16", "bfloat16", "float32")}
    facts = {"device": engine.device, "version": engine.version, "choices": choices}
    networks = {precision: _try(engine, precision, Path(cache_folder)) for precision in precisions.split(",")}
    return {**facts, **networks, "keras": "keras" in sys.modules}


def _try(engine: Engine, precision: str, cache_folder: Path) -> dict[str, Any]:
    network = compile_toy(engine, cache_folder, precision)
    network.warm_up()
    inputs = toy_inputs(7)
    outputs, wanted = network(inputs), expected(inputs)
    return {
        "from_cache": network.from_cache,
        "outputs": {name: [str(array.dtype), list(array.shape)] for name, array in sorted(outputs.items())},
        "error": max(float(np.abs(outputs[name] - wanted[name]).max()) for name in wanted),
        "exact_batch_sizes": find_exactness(network, toy_inputs(5)).batch_sizes,
    }


if __name__ == "__main__":
    json.dump(main(*sys.argv[1:]), sys.stdout)
