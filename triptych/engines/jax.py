"""JAX: functions of fixed shape, exported as StableHLO and compiled by XLA before the first request.

On disk: the exported functions, the weights, and XLA's own cache of what it compiled for this machine. A start from disk imports
JAX, not Keras.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from triptych.engines import NetworkSource, Precision
from triptych.engines.cache import code_digest, find_or_fill
from triptych.engines.compiled import Arrays, CompiledNetwork, RowSpec
from triptych.engines.distributions import installed_version
from triptych.engines.exactness import exactness_file
from triptych.engines.hardware import available_cpus, instruction_set
from triptych.engines.keras_backend import dtype_policy, import_keras
from triptych.engines.precision import chosen_precision, precisions_of_cpu, precisions_of_gpu
from triptych.errors import EngineError

_WEIGHTS = "weights.npz"


class JaxEngine:
    """See `triptych.engines.Engine`."""

    name = "jax"

    def __init__(self, *, threads: int | None = None) -> None:
        if threads is not None:
            raise EngineError("JAX takes no number of threads; bind the process to as many CPUs instead")
        self.version = jax.__version__
        device = jax.devices()[0]
        self.platform = device.platform
        self.device = "cpu" if device.platform == "cpu" else device.device_kind
        self._generation = _generation_of(getattr(device, "compute_capability", ""))

    def choose_precision(self, wanted: str) -> Precision:
        if self.platform == "cpu":
            # XLA has no attention in float16 for any CPU.
            offered = set(precisions_of_cpu()) - {Precision.FLOAT16}
            return chosen_precision(wanted, engine=self.name, offered=offered, best=Precision.FLOAT32)
        of_gpu = precisions_of_gpu(self._generation)
        return chosen_precision(wanted, engine=self.name, offered=of_gpu, best=of_gpu[0])

    def compile(
        self,
        source: NetworkSource,
        rows: Mapping[str, RowSpec],
        *,
        batch_sizes: Sequence[int],
        precision: Precision,
        cache_folder: Path,
    ) -> CompiledNetwork:
        key = {
            "network": source.key,
            "rows": {name: [list(row.shape), row.dtype] for name, row in rows.items()},
            "batch_sizes": list(batch_sizes),
            "precision": precision,
            "platform": self.platform,
            "code": code_digest(__package__),
            "versions": {name: installed_version(name) for name in ("keras", "jax", "jaxlib")},
        }
        _keep_compilations(cache_folder / "xla")
        save = partial(_export, source, rows, batch_sizes, precision)
        folder, from_cache = find_or_fill(cache_folder, f"{source.name}-{self.name}", key, save)
        with np.load(folder / _WEIGHTS, allow_pickle=False) as file:
            weights = [jax.device_put(file[name]) for name in file.files]
        functions = {size: _load(folder / _function_file(size), weights, rows, size) for size in batch_sizes}
        path = exactness_file(folder, self.device, instruction_set(), available_cpus())
        run = partial(_run, functions, weights)
        return CompiledNetwork(run, rows, batch_sizes, from_cache=from_cache, exactness_file=path)


def _generation_of(compute_capability: str) -> int | None:
    """The first number of what JAX says of an NVIDIA GPU, such as `7.5`; of others it says something else, or nothing."""
    first = compute_capability.partition(".")[0]
    return int(first) if first.isdecimal() else None


def _keep_compilations(folder: Path) -> None:
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _export(
    source: NetworkSource, rows: Mapping[str, RowSpec], batch_sizes: Sequence[int], precision: Precision, folder: Path
) -> None:
    keras = import_keras("jax")
    with dtype_policy(keras, precision):
        model = source.build()
    weights = [np.asarray(variable.value) for variable in model.variables]
    np.savez(folder / _WEIGHTS, *weights)
    function = jax.jit(partial(_evaluate, model))
    for size in batch_sizes:
        exported = jax.export.export(function)(weights, _shapes(rows, size))
        (folder / _function_file(size)).write_bytes(exported.serialize())


def _evaluate(model: Any, weights: list[Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    count = len(model.trainable_variables)
    assert [*model.trainable_variables, *model.non_trainable_variables] == list(model.variables)
    outputs, _ = model.stateless_call(weights[:count], weights[count:], inputs, training=False)
    return {name: array.astype("float32") for name, array in outputs.items()}


def _load(path: Path, weights: list[Any], rows: Mapping[str, RowSpec], batch_size: int) -> Any:
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    return jax.jit(exported.call).lower(weights, _shapes(rows, batch_size)).compile()


def _shapes(rows: Mapping[str, RowSpec], batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct((batch_size, *row.shape), row.dtype) for name, row in rows.items()}


def _function_file(batch_size: int) -> str:
    return f"rows-{batch_size}.stablehlo"


def _run(functions: Mapping[int, Any], weights: list[Any], inputs: Arrays) -> dict[str, np.ndarray]:
    outputs = functions[len(next(iter(inputs.values())))](weights, dict(inputs))
    return {name: np.asarray(array) for name, array in outputs.items()}
