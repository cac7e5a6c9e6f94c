"""OpenVINO: the default on a CPU.

The Keras network is called on OpenVINO's own parameters (Keras' OpenVINO backend), which gives a graph for any number of rows.
On disk: that graph once, and for every batch size what OpenVINO compiled it to on this kind of machine. A start from disk needs
neither Keras nor a compilation.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import io
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset16
from openvino.passes import ConstantFolding, Manager

from triptych.engines import NetworkSource, Precision
from triptych.engines.cache import code_digest, find_or_fill, keep_bytes, kept_bytes
from triptych.engines.compiled import Arrays, CompiledNetwork, RowSpec
from triptych.engines.distributions import installed_version
from triptych.engines.exactness import exactness_file
from triptych.engines.hardware import available_cpus, has_bfloat16, instruction_set
from triptych.engines.keras_backend import import_keras
from triptych.engines.precision import chosen_precision
from triptych.errors import EngineError

_log = logging.getLogger(__name__)

_DEVICE = "CPU"
_HINTS = {Precision.FLOAT32: ov.Type.f32, Precision.BFLOAT16: ov.Type.bf16, Precision.FLOAT16: ov.Type.f16}
_CAPABILITIES = {Precision.FLOAT32: "FP32", Precision.BFLOAT16: "BF16", Precision.FLOAT16: "FP16", Precision.INT8: "INT8"}

# Compiling takes several times the memory of the weights. Networks whose weights take more bytes than this are compiled one batch
# size after the other, and what they are compiled to is not kept: it would be gigabytes for each.
_LARGE = 2**28


class OpenVINOEngine:
    """See `triptych.engines.Engine`."""

    name = "openvino"
    device = "cpu"

    def __init__(self, *, threads: int | None = None) -> None:
        self.threads = threads
        self.version = ov.get_version().partition("-")[0]
        self._core = ov.Core()

    def choose_precision(self, wanted: str) -> Precision:
        offered = self._offered()
        best = Precision.BFLOAT16 if Precision.BFLOAT16 in offered else Precision.FLOAT32
        return chosen_precision(wanted, engine=self.name, known=tuple(Precision), offered=offered, best=best)

    def _offered(self) -> set[Precision]:
        """What the CPU computes in. What OpenVINO only imitates there, more slowly than float32, is not offered."""
        capabilities = self._core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        offered = {precision for precision, capability in _CAPABILITIES.items() if capability in capabilities}
        return offered if has_bfloat16() else offered - {Precision.BFLOAT16}

    def compile(
        self,
        source: NetworkSource,
        rows: Mapping[str, RowSpec],
        *,
        batch_sizes: Sequence[int],
        precision: Precision,
        cache_folder: Path,
    ) -> CompiledNetwork:
        folder, from_cache = self._graph_folder(source, rows, cache_folder)
        network = _NetworkOfFolder(self._core, folder, rows, self._properties(precision))
        network.prepare(batch_sizes)
        path = exactness_file(folder, network.digest, sorted(batch_sizes))
        return CompiledNetwork(
            network.run, rows, batch_sizes, from_cache=from_cache, exactness_file=path, give_back=network.give_back
        )

    def graph_folder(self, source: NetworkSource, rows: Mapping[str, RowSpec], cache_folder: Path) -> Path:
        """Where the network's graph is, `network.xml` and its weights; made where it is missing. Raises as `compile` does."""
        folder, _ = self._graph_folder(source, rows, cache_folder)
        return folder

    def _graph_folder(self, source: NetworkSource, rows: Mapping[str, RowSpec], cache_folder: Path) -> tuple[Path, bool]:
        save = partial(_save_graph, source, rows) if source.graph is None else partial(_copy_graph, source.graph)
        return find_or_fill(cache_folder, f"{source.name}-{self.name}", _key(source, rows), save)

    def _properties(self, precision: Precision) -> dict[str, Any]:
        properties = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            # Stages share machines: pinned threads of two processes would meet on one core while another idles.
            "ENABLE_CPU_PINNING": False,
        }
        return properties if self.threads is None else {**properties, "INFERENCE_NUM_THREADS": self.threads}


class _NetworkOfFolder:
    """The graph of a folder, compiled for this machine or found compiled."""

    def __init__(self, core: ov.Core, folder: Path, rows: Mapping[str, RowSpec], properties: dict[str, Any]) -> None:
        self.core = core
        self.folder = folder
        self.rows = rows
        self.properties = properties
        machine = [core.get_property(_DEVICE, "FULL_DEVICE_NAME"), instruction_set(), available_cpus()]
        content = repr([ov.get_version(), machine, sorted((name, str(value)) for name, value in properties.items())])
        self.digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        self.is_large = (folder / "network.bin").stat().st_size > _LARGE
        self.requests: dict[int, ov.InferRequest] = {}
        self.mapped_files: list[np.ndarray] = []  # OpenVINO takes weights from where they are

    def prepare(self, batch_sizes: Sequence[int]) -> None:
        with ThreadPoolExecutor(max_workers=1 if self.is_large else available_cpus()) as pool:
            networks = pool.map(self._load_or_compile, batch_sizes)
        self.requests = {size: network.create_infer_request() for size, network in zip(batch_sizes, networks, strict=True)}

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        request = self.requests[len(next(iter(inputs.values())))]
        outputs = request.infer(inputs, share_inputs=True)  # outputs are copies
        return {port.get_any_name(): array for port, array in outputs.items()}

    def give_back(self) -> None:
        for request in self.requests.values():
            request.get_compiled_model().release_memory()

    def _load_or_compile(self, batch_size: int) -> ov.CompiledModel:
        path = self.folder / "compiled" / f"{batch_size}-{self.digest}"
        return self._load(path) or self._compile(batch_size, path)

    def _load(self, path: Path) -> ov.CompiledModel | None:
        if (content := kept_bytes(path)) is None:
            return None
        try:
            loaded = self.core.import_model(ov.Tensor(content, shared_memory=True), _DEVICE, self.properties)
        except RuntimeError as error:
            _log.warning("%s cannot be read and is compiled anew: %s", path, error)
            return None
        self.mapped_files.append(content)
        return loaded

    def _compile(self, batch_size: int, path: Path) -> ov.CompiledModel:
        try:
            graph = self.core.read_model(self.folder / "network.xml")
            graph.reshape({name: [batch_size, *row.shape] for name, row in self.rows.items()})
            compiled = self.core.compile_model(graph, _DEVICE, self.properties)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot compile {self.folder.name} for {batch_size} rows: {error}") from error
        if not self.is_large:
            content = io.BytesIO()
            compiled.export_model(content)
            keep_bytes(path, content.getvalue())
        return compiled


def _key(source: NetworkSource, rows: Mapping[str, RowSpec]) -> dict[str, Any]:
    """What decides the graph. Precision, batch sizes and the machine decide only what it is compiled to."""
    return {
        "network": source.key,
        "rows": {name: [list(row.shape), row.dtype] for name, row in rows.items()},
        "code": code_digest(__package__),
        "versions": {name: installed_version(name) for name in ("keras", "openvino")},
    }


def _copy_graph(graph: Path, folder: Path) -> None:
    for name in ("network.xml", "network.bin"):
        shutil.copyfile(graph / name, folder / name)


def _save_graph(source: NetworkSource, rows: Mapping[str, RowSpec], folder: Path) -> None:
    import_keras("openvino")
    graph = _trace(source.build(), rows)
    gc.collect()  # Keras' networks and layers refer to each other, and would hold every weight until the end
    # OpenVINO maps the file into memory and takes weights from where they are, if they are as it wants them: in float32, though
    # most checkpoints are float16, and not in Keras' order of axes. Else it makes copies and holds them: twice the memory.
    _fold_constants(graph)
    ov.save_model(graph, os.fspath(folder / "network.xml"), compress_to_fp16=False)
    del graph
    _give_memory_back()  # the compilation comes next


def _trace(model: Any, rows: Mapping[str, RowSpec]) -> ov.Model:
    """The network as a graph of OpenVINO's operations, for any number of rows."""
    from keras.src.backend.openvino.core import OpenVINOKerasTensor

    parameters = {name: opset16.parameter([-1, *row.shape], np.dtype(row.dtype), name=name) for name, row in rows.items()}
    outputs = model({name: OpenVINOKerasTensor(parameter.output(0)) for name, parameter in parameters.items()})
    for name, parameter in parameters.items():
        parameter.output(0).set_names({name})
    results = []
    for name, tensor in outputs.items():
        result = opset16.result(opset16.convert(tensor.output, "f32"))
        result.output(0).set_names({name})
        results.append(result)
    return ov.Model(results, list(parameters.values()), model.name)


def _fold_constants(graph: ov.Model) -> None:
    """Does now what depends on weights alone: turning the axes of Keras' kernels."""
    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(graph)


def _give_memory_back() -> None:
    """Has the C library return what was freed; glibc keeps it else, gigabytes after a large network."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
