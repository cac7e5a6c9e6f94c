"""Tensors on disk to and from the variables of Keras networks.

A layer's name is the module path of the file, so that no table stands between: `conv_in` has `conv_in.weight` and
`conv_in.bias`. Only the order of a kernel's axes differs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from triptych.errors import CheckpointError

if TYPE_CHECKING:
    import keras

# What a Keras layer calls its variables, and what the files do
_SUFFIX = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "embeddings": "weight"}


class Tensors(Protocol):
    """Tensors by name, each read when it is asked for."""

    @property
    def origin(self) -> str:
        """Where they are from, for sentences."""

    def names(self) -> Collection[str]:
        """Diffusers' and transformers' 4 names of them, without those that belong elsewhere."""

    def read(self, name: str) -> NDArray[Any]:
        """One tensor, as its file has it, of half or single precision.

        Raises:
            CheckpointError: It is damaged or of another type.
        """


class TensorFile:
    """See `Tensors`: those of one safetensors file, which is mapped into memory."""

    def __init__(self, file: Any, path: Path, name_of: Callable[[str], str | None]) -> None:
        self.origin = str(path)
        self._file = file
        self._key_of = {name: key for key in file.keys() if (name := name_of(key)) is not None}  # noqa: SIM118 - is no mapping

    def names(self) -> Collection[str]:
        return self._key_of.keys()

    def read(self, name: str) -> NDArray[Any]:
        key = self._key_of[name]
        dtype = self._file.get_slice(key).get_dtype()
        if dtype not in ("F16", "F32"):
            raise CheckpointError(f"{self.origin}: {key} is of type {dtype}; only F16 and F32 are read")
        return self._file.get_tensor(key)


@contextmanager
def tensor_file(path: Path, name_of: Callable[[str], str | None]) -> Iterator[TensorFile]:
    """The tensors of a file while it is open.

    Args:
        path: The safetensors file.
        name_of: From a key of the file to our name of it, or None for what belongs elsewhere.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            yield TensorFile(file, path, name_of)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def fill(model: keras.Model, tensors: Tensors) -> None:
    """Fills a network with tensors.

    Raises:
        CheckpointError: They are not those of the network, or damaged.
    """
    variables = _variables(model)
    _refuse_other_names(tensors, variables.keys())
    for name, variable in variables.items():
        array = _in_keras_order(tensors.read(name), variable)
        if array.shape != tuple(variable.shape):
            shape = tuple(variable.shape)
            raise CheckpointError(f"{tensors.origin}: {name} has shape {array.shape} in Keras' order, not {shape}")
        variable.assign(array.astype(np.float32))


def half_precision_file(models: Iterable[keras.Model]) -> bytes:
    """A safetensors file of the networks' weights in half precision. The same weights give the same bytes.

    Raises:
        CheckpointError: A weight is too large for half precision, or not a number.
    """
    tensors = {name: _for_disk(variable) for model in models for name, variable in _variables(model).items()}
    if bad := [name for name, array in tensors.items() if not np.isfinite(array).all()]:
        raise CheckpointError(f"half precision cannot hold {first_names(bad)}; not saved")
    return save(tensors, metadata={"format": "pt"})


def first_names(names: Iterable[str], count: int = 5) -> str:
    """The first names in order, and how many more there are."""
    names = sorted(names)
    rest = len(names) - count
    return ", ".join(names[:count]) + (f" and {rest} more" if rest > 0 else "")


def _variables(model: keras.Model) -> dict[str, Any]:
    return {f"{layer.name}.{_SUFFIX[variable.name]}": variable for layer in model.layers for variable in layer.weights}


def _in_keras_order(array: NDArray[Any], variable: Any) -> NDArray[Any]:
    if variable.name != "kernel":
        return array
    if array.ndim == 4 and len(variable.shape) == 2 and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]  # old files have 1x1 convolutions where we have dense layers
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _for_disk(variable: Any) -> NDArray[np.float16]:
    from keras import ops

    array = ops.convert_to_numpy(variable).astype(np.float32)
    if variable.name == "kernel":
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    with np.errstate(over="ignore"):  # the caller looks for infinities
        return np.ascontiguousarray(array, dtype=np.float16)


def _refuse_other_names(tensors: Tensors, wanted: Collection[str]) -> None:
    found = set(tensors.names())
    if missing := set(wanted) - found:
        raise CheckpointError(f"{tensors.origin} is not of this architecture: it lacks {first_names(missing)}")
    if surplus := found - set(wanted):
        raise CheckpointError(f"{tensors.origin} is not of this architecture: it has surplus {first_names(surplus)}")
