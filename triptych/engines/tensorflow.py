"""TensorFlow: graphs of fixed shape, kept as a SavedModel; through XLA on a GPU.

A start from disk builds no Keras network, but importing TensorFlow imports Keras too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it greets on stderr otherwise
import tensorflow as tf

from triptych.engines import NetworkSource, Precision
from triptych.engines.cache import code_digest, find_or_fill
from triptych.engines.compiled import Arrays, CompiledNetwork, RowSpec
from triptych.engines.distributions import installed_version
from triptych.engines.exactness import exactness_file
from triptych.engines.hardware import available_cpus, instruction_set
from triptych.engines.keras_backend import dtype_policy, import_keras
from triptych.engines.precision import chosen_precision, precisions_of_cpu, precisions_of_gpu
from triptych.errors import EngineError


class TensorFlowEngine:
    """See `triptych.engines.Engine`."""

    name = "tensorflow"

    def __init__(self, *, threads: int | None = None) -> None:
        if threads is not None:
            _use_threads(threads)
        self.version = tf.__version__
        self._threads = threads
        self._gpu = next(iter(tf.config.list_physical_devices("GPU")), None)
        self._gpu_facts = tf.config.experimental.get_device_details(self._gpu) if self._gpu else {}
        self.device = self._gpu_facts.get("device_name", "gpu") if self._gpu else "cpu"

    def choose_precision(self, wanted: str) -> Precision:
        if self._gpu is None:
            return chosen_precision(wanted, engine=self.name, offered=precisions_of_cpu(), best=Precision.FLOAT32)
        offered = precisions_of_gpu(self._gpu_facts.get("compute_capability", (None,))[0])
        return chosen_precision(wanted, engine=self.name, offered=offered, best=offered[0])

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
            "gpu": self._gpu is not None,
            "code": code_digest(__package__),
            "versions": {name: installed_version(name) for name in ("keras", "tensorflow", "tensorflow-cpu")},
        }
        save = partial(_save_model, source, rows, batch_sizes, precision, self._gpu is not None)
        folder, from_cache = find_or_fill(cache_folder, f"{source.name}-{self.name}", key, save)
        loaded = tf.saved_model.load(os.fspath(folder))
        path = exactness_file(folder, self.device, instruction_set(), available_cpus(), self._threads)
        return CompiledNetwork(partial(_run, loaded), rows, batch_sizes, from_cache=from_cache, exactness_file=path)


def _use_threads(threads: int) -> None:
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError as error:
        raise EngineError("TensorFlow runs in this process already, its number of threads cannot be changed") from error


def _save_model(
    source: NetworkSource,
    rows: Mapping[str, RowSpec],
    batch_sizes: Sequence[int],
    precision: Precision,
    use_xla: bool,
    folder: Path,
) -> None:
    keras = import_keras("tensorflow")
    with dtype_policy(keras, precision):
        model = source.build()
    archive = keras.export.ExportArchive()
    archive.track(model)
    for size in batch_sizes:
        signature = [{name: tf.TensorSpec([size, *row.shape], row.dtype, name) for name, row in rows.items()}]
        function = tf.function(partial(_float32_outputs, model), input_signature=signature, jit_compile=use_xla or None)
        archive.add_endpoint(_endpoint(size), function)
    archive.write_out(os.fspath(folder), verbose=False)


def _float32_outputs(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tf.cast(tensor, tf.float32) for name, tensor in model(inputs, training=False).items()}


def _endpoint(batch_size: int) -> str:
    return f"rows_{batch_size}"


def _run(loaded: Any, inputs: Arrays) -> dict[str, np.ndarray]:
    function = getattr(loaded, _endpoint(len(next(iter(inputs.values())))))
    outputs = function({name: tf.convert_to_tensor(array) for name, array in inputs.items()})
    return {name: tensor.numpy() for name, tensor in outputs.items()}
