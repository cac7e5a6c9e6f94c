"""Tensors of a safetensors file to and from the variables of Keras networks.

A layer's name is the module path of the file, so that no table stands between: `conv_in` has `conv_in.weight` and
`conv_in.bias`. Only the order of a kernel's axes differs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from triptych.errors import CheckpointError

if TYPE_CHECKING:
    import keras

# What a Keras layer calls its variables, and what the files do
_SUFFIX = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "embeddings": "weight"}


def fill(model: keras.Model, path: Path, name_of: Callable[[str], str | None]) -> None:
    """Fills a network with the tensors of a file, which is mapped into memory.

    Args:
        model: A network whose layers are named by module paths.
        path: The safetensors file, of half or single precision.
        name_of: From a key of the file to our name of it, or None for what belongs elsewhere.

    Raises:
        CheckpointError: The file is damaged, or its tensors are not those of the network.
    """
    variables = _variables(model)
    try:
        with safe_open(path, framework="numpy") as file:
            keys = file.keys()  # the file is no mapping and cannot be iterated
            key_of = {name: key for key in keys if (name := name_of(key)) is not None}
            _refuse_other_names(path, key_of.keys(), variables.keys())
            for name, variable in variables.items():
                array = _in_keras_order(_read(file, key_of[name], path), variable)
                if array.shape != tuple(variable.shape):
                    raise CheckpointError(f"{path}: {name} has shape {array.shape} in Keras' order, not {tuple(variable.shape)}")
                variable.assign(array.astype(np.float32))
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


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


def _read(file: Any, key: str, path: Path) -> NDArray[Any]:
    dtype = file.get_slice(key).get_dtype()
    if dtype not in ("F16", "F32"):
        raise CheckpointError(f"{path}: {key} is of type {dtype}; only F16 and F32 are read")
    return file.get_tensor(key)


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


def _refuse_other_names(path: Path, found: Collection[str], wanted: Collection[str]) -> None:
    if missing := set(wanted) - set(found):
        raise CheckpointError(f"{path} is not of this architecture: it lacks {first_names(missing)}")
    if surplus := set(found) - set(wanted):
        raise CheckpointError(f"{path} is not of this architecture: it has surplus {first_names(surplus)}")
