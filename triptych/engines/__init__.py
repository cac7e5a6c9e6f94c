"""Engines: what compiles a Keras network for fixed shapes, runs it, and keeps it on disk.

One engine a process, because Keras has one backend a process. Importing this room imports none of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from triptych.engines.compiled import CompiledNetwork, Exactness, RowSpec
from triptych.engines.distributions import refuse_two_tensorflows
from triptych.engines.keras_backend import choose_backend
from triptych.engines.precision import AUTO, Precision
from triptych.errors import EngineError

if TYPE_CHECKING:
    import keras

__all__ = ["AUTO", "CompiledNetwork", "Engine", "Exactness", "NetworkSource", "Precision", "RowSpec", "get_engine"]


@dataclass(frozen=True, kw_only=True)
class NetworkSource:
    """A network that may have to be built, and what to look it up by where it was built before.

    Attributes:
        name: For people: in file names and sentences.
        build: Returns the Keras model with its weights. Called after the engine has chosen Keras' backend.
        key: Everything that decides what `build` returns, as JSON has it: digest of the weights, configuration, code.
        graph: A folder with the network as OpenVINO has it, which then need not be built; `key` decides what that is.
    """

    name: str
    build: Callable[[], keras.Model]
    key: Mapping[str, Any]
    graph: Path | None = None


class Engine(Protocol):
    """A Keras backend, and the way to compile for it."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str:
        """Of the library that runs the network."""

    @property
    def device(self) -> str:
        """`cpu`, or the name of the accelerator."""

    def choose_precision(self, wanted: str) -> Precision:
        """The precision of a name, or of `auto`: what is fastest here. What this machine lacks gives way to the next best.

        Raises:
            EngineError: The engine knows no such precision.
        """

    def compile(
        self,
        source: NetworkSource,
        rows: Mapping[str, RowSpec],
        *,
        batch_sizes: Sequence[int],
        precision: Precision,
        cache_folder: Path,
    ) -> CompiledNetwork:
        """The network, ready to run for each of the batch sizes. Neither builds it nor imports keras where it is in the cache.

        Args:
            source: The network.
            rows: What one row of each named input looks like.
            batch_sizes: Numbers of rows to compile for.
            precision: As `choose_precision` returned it.
            cache_folder: Made if it is missing; processes may share it.

        Raises:
            EngineError: The network cannot be compiled, or the cache not be written.
            CheckpointError: As `source.build` raised it.
        """


_CLASSES = {"openvino": "OpenVINOEngine", "tensorflow": "TensorFlowEngine", "jax": "JaxEngine"}


def get_engine(name: str, *, threads: int | None = None) -> Engine:
    """The engine of that name.

    Args:
        name: `openvino`, `tensorflow` or `jax`.
        threads: CPU threads that its networks may use; None is all of them.

    Raises:
        EngineError: There is no such engine; it is not installed; two distributions of TensorFlow are; or Keras runs on
            another backend in this process already.
    """
    if name not in _CLASSES:
        raise EngineError(f"there is no engine {name!r}; there are {', '.join(_CLASSES)}")
    refuse_two_tensorflows()
    choose_backend(name)
    try:
        module = importlib.import_module(f"triptych.engines.{name}")
    except ModuleNotFoundError as error:
        raise EngineError(f"the engine {name} needs {error.name}, which is not installed: install the extra {name}") from error
    engine: Engine = getattr(module, _CLASSES[name])(threads=threads)
    return engine
