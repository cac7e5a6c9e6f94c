"""Tensors on disk to and from the variables of Keras networks.

A layer's name is the module path of the file, so that no table stands between: `conv_in` has `conv_in.weight` and
`conv_in.bias`. Only the order of a kernel's axes differs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
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
        """One tensor of half or single precision, as its file has it; those in bfloat16 come in single precision.

        Raises:
            CheckpointError: It is damaged or of another type.
        """


class TensorFile:
    """See `Tensors`: those of one safetensors file, which is mapped into memory."""

    def __init__(self, file: Any, path: Path, name_of: Callable[[str], str | None]) -> None:
        self.origin = str(path)
        self._file = file
        self._key_of = _keys_by_name(self.origin, file.keys(), name_of)

    def names(self) -> Collection[str]:
        return self._key_of.keys()

    def read(self, name: str) -> NDArray[Any]:
        return read_tensor(self._file, self._key_of[name], self.origin)


class ShardedTensors:
    """See `Tensors`: those of several safetensors files, each mapped into memory, as an index lists them."""

    def __init__(self, files: Mapping[Path, Any], index: Path, name_of: Callable[[str], str | None]) -> None:
        self.origin = str(index)
        self._place_of = {key: (path, file) for path, file in files.items() for key in file.keys()}  # noqa: SIM118 - no mapping
        self._key_of = _keys_by_name(self.origin, self._place_of, name_of)

    def names(self) -> Collection[str]:
        return self._key_of.keys()

    def read(self, name: str) -> NDArray[Any]:
        key = self._key_of[name]
        path, file = self._place_of[key]
        return read_tensor(file, key, str(path))


@contextmanager
def tensor_file(path: Path, name_of: Callable[[str], str | None]) -> Iterator[TensorFile]:
    """The tensors of a file while it is open.

    Args:
        path: The safetensors file.
        name_of: From a key of the file to our name of it, or None for what belongs elsewhere.

    Raises:
        CheckpointError: The file is damaged.
    """
    with opened(path) as file:
        yield TensorFile(file, path, name_of)


@contextmanager
def sharded_tensors(index: Path, name_of: Callable[[str], str | None]) -> Iterator[ShardedTensors]:
    """The tensors of the shards that an index lists, while they are open.

    Args:
        index: A `*.safetensors.index.json` beside its shards.
        name_of: As of `tensor_file`.

    Raises:
        CheckpointError: A shard is missing or damaged, or holds other tensors than the index says.
    """
    keys_of = read_index(index)
    with ExitStack() as stack:
        files = {path: stack.enter_context(opened(path)) for path in keys_of}
        _refuse_other_keys(index, {path: set(file.keys()) for path, file in files.items()}, keys_of)
        yield ShardedTensors(files, index, name_of)


def read_index(index: Path) -> dict[Path, set[str]]:
    """The keys of each shard that an index lists, in the order of the shards' names.

    Raises:
        CheckpointError: It is no such index, or names a shard that does not lie beside it.
    """
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise CheckpointError(f"{index} lists no shards: it lacks weight_map")
    keys_of: dict[Path, set[str]] = {}
    for key, shard in shard_of.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{index} lists {str(shard)[:64]!r}, which is not the name of a safetensors file beside it")
        keys_of.setdefault(index.parent / shard, set()).add(key)
    return dict(sorted(keys_of.items()))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: There is no such file, or something else in it.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no {path}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return values


def fill(model: keras.Model, tensors: Tensors, *, is_part: bool = False) -> None:
    """Fills a network with tensors.

    Args:
        model: The network.
        tensors: All of its own, and no others.
        is_part: It is a part of the network whose tensors these are: others may be there.

    Raises:
        CheckpointError: They are not those of the network, or damaged.
    """
    variables = _variables(model)
    _refuse_other_names(tensors, variables.keys(), is_part=is_part)
    for name, variable in variables.items():
        _place(variable, tensors, name)


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


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file while it is mapped into memory.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    try:
        mapped = safe_open(path, framework="numpy")
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no {path}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except SafetensorError as error:
        raise CheckpointError(_damaged(path, error)) from error
    with mapped as file:
        yield file


def _damaged(path: Path, error: SafetensorError) -> str:
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            return f"{path} is not the file itself but git-lfs's pointer to it; run `git lfs pull` where it was cloned"
    return f"{path} is damaged, or was not downloaded to its end ({error}); fetch it again"


_LFS_POINTER = b"version https://git-lfs"


def read_tensor(file: Any, key: str, origin: str, rows: slice | None = None) -> NDArray[Any]:
    """A tensor of an open file, or some rows of it and no more. See `Tensors.read`."""
    tensor = file.get_slice(key)
    dtype = tensor.get_dtype()
    if dtype not in ("F16", "F32", "BF16"):
        raise CheckpointError(f"{origin}: {key} is of type {dtype}; only F16, BF16 and F32 are read")
    if dtype == "BF16":
        import ml_dtypes  # noqa: F401 - teaches numpy the type
    try:
        array: NDArray[Any] = file.get_tensor(key) if rows is None else tensor[rows]
    except SafetensorError as error:
        raise CheckpointError(_damaged(Path(origin), error)) from error
    return array.astype(np.float32) if dtype == "BF16" else array  # exact: bfloat16 is the upper half of a float32


def _keys_by_name(origin: str, keys: Iterable[str], name_of: Callable[[str], str | None]) -> dict[str, str]:
    """The keys of a file by our names of them.

    Raises:
        CheckpointError: Two keys have one name.
    """
    by_name: dict[str, str] = {}
    for key in keys:
        if (name := name_of(key)) is None:
            continue
        if name in by_name:
            raise CheckpointError(f"{origin} has {name} twice, as {by_name[name]} and as {key}")
        by_name[name] = key
    return by_name


def _refuse_other_keys(index: Path, found: Mapping[Path, set[str]], listed: Mapping[Path, set[str]]) -> None:
    shard_of: dict[str, Path] = {}
    for path, keys in found.items():
        if twice := keys & shard_of.keys():
            other = shard_of[min(twice)]
            raise CheckpointError(f"{first_names(twice)} is in two shards, {other.name} and {path.name} of {index}")
        shard_of |= dict.fromkeys(keys, path)
    for path, keys in listed.items():
        if missing := keys - found[path]:
            raise CheckpointError(f"{path} lacks {first_names(missing)}, which {index.name} says it holds")
    for path, keys in listed.items():
        if surplus := found[path] - keys:
            raise CheckpointError(f"{path} holds {first_names(surplus)}, of which {index.name} says nothing")


def _variables(model: keras.Model) -> dict[str, Any]:
    return {f"{layer.name}.{_SUFFIX[variable.name]}": variable for layer in model.layers for variable in layer.weights}


def _place(variable: Any, tensors: Tensors, name: str) -> None:
    """Reads one tensor into its variable. On return the array is gone, before the next is read."""
    array = _in_keras_order(tensors.read(name), variable)
    if array.shape != tuple(variable.shape):
        shape = tuple(variable.shape)
        raise CheckpointError(f"{tensors.origin}: {name} has shape {array.shape} in Keras' order, not {shape}")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise CheckpointError(f"{tensors.origin}: {name} holds NaN or infinity, so the file is damaged; fetch it again")
    variable.assign(array)


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


def _refuse_other_names(tensors: Tensors, wanted: Collection[str], *, is_part: bool) -> None:
    found = set(tensors.names())
    if missing := set(wanted) - found:
        raise CheckpointError(f"{tensors.origin} is not of this architecture: it lacks {first_names(missing)}")
    if (surplus := found - set(wanted)) and not is_part:
        raise CheckpointError(f"{tensors.origin} is not of this architecture: it has surplus {first_names(surplus)}")
