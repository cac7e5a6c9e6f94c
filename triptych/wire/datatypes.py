"""Datatypes of the Open Inference Protocol, NumPy's names for them, and the bytes of one tensor.

A BYTES tensor is an object array whose elements are `bytes`. BF16 is not a datatype of the protocol.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from triptych.errors import MalformedRequest

Array: TypeAlias = NDArray[Any]
Buffer: TypeAlias = bytes | memoryview

BYTES = "BYTES"

# Little-endian, as the protocol demands, whatever this machine is.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
DATATYPES = (*DTYPES, BYTES)

_DATATYPE_OF_DTYPE = {dtype.newbyteorder("="): datatype for datatype, dtype in DTYPES.items()}
_LENGTH = struct.Struct("<I")


def datatype_of(array: Array) -> str:
    """The protocol's name for an array's dtype."""
    return BYTES if array.dtype == object else _DATATYPE_OF_DTYPE[array.dtype.newbyteorder("=")]


def bytes_tensor(elements: Sequence[bytes], shape: Sequence[int] | None = None) -> Array:
    """A BYTES tensor of these elements, in one dimension where no shape is given."""
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array if shape is None else array.reshape(shape)


def pack(array: Array) -> Buffer:
    """The bytes of a tensor: its own buffer where that already is little-endian and row-major."""
    datatype = datatype_of(array)
    if datatype == BYTES:
        return b"".join(part for element in array.flat for part in (_LENGTH.pack(len(element)), element))
    return np.ascontiguousarray(array, dtype=DTYPES[datatype]).data


def unpack(datatype: str, shape: Sequence[int], blob: memoryview, *, name: str) -> Array:
    """The tensor in some bytes: read-only, and sharing them where it can.

    Args:
        name: What the tensor is called in the sentence of the error.

    Raises:
        MalformedRequest: The bytes are not as many as datatype and shape say, or not such elements.
    """
    if datatype == BYTES:
        return bytes_tensor(list(_elements(blob, math.prod(shape), name)), shape)
    dtype = DTYPES[datatype]
    expected = math.prod(shape) * dtype.itemsize
    if len(blob) != expected:
        raise MalformedRequest(f"{name} has {len(blob)} bytes, {datatype} {list(shape)} takes {expected}")
    if datatype == "BOOL" and not set(bytes(blob)) <= {0, 1}:
        raise MalformedRequest(f"{name} is BOOL: each of its bytes is 0 or 1")
    return _aligned(np.frombuffer(blob, dtype=dtype).reshape(shape))


def _elements(blob: memoryview, count: int, name: str) -> Iterator[bytes]:
    offset = 0
    for index in range(count):
        start = offset + _LENGTH.size
        if start > len(blob):
            raise MalformedRequest(f"{name} ends before its element {index} of {count}")
        offset = start + _LENGTH.unpack_from(blob, offset)[0]
        if offset > len(blob):
            raise MalformedRequest(f"{name} ends in the middle of its element {index}")
        yield bytes(blob[start:offset])
    if offset != len(blob):
        raise MalformedRequest(f"{name} has {len(blob) - offset} bytes after its last element")


def _aligned(array: Array) -> Array:
    """Native code may want its numbers where the processor likes them; other people's headers have any length."""
    if array.flags.aligned:
        return array
    copy = array.copy()
    copy.flags.writeable = False
    return copy
