"""JSON as it arrives from strangers: bounded, without surprises; and tensors as JSON lists."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from triptych.errors import InvalidValue, MalformedRequest, TooLarge
from triptych.wire.datatypes import BYTES, DTYPES, Array, bytes_tensor, datatype_of

MAX_JSON_BYTES = 8 * 2**20
"""Parsed JSON takes up to twenty times its size in memory; more than this travels as binary."""

MAX_JSON_VALUES = 2**20
"""The largest tensor that is answered as JSON."""

_PYTHON_TYPES: dict[str, tuple[set[type], str]] = {
    "b": ({bool}, "booleans"),
    "u": ({int}, "integers"),
    "i": ({int}, "integers"),
    "f": ({int, float}, "numbers"),
}


def parse_object(text: memoryview, *, what: str) -> dict[str, Any]:
    """The JSON object in some bytes.

    Args:
        what: What the text is, for the sentence of the error.

    Raises:
        TooLarge: There is more of it than `MAX_JSON_BYTES`.
        MalformedRequest: It is not UTF-8, not JSON, nested absurdly, no object, or names a key twice.
    """
    if len(text) > MAX_JSON_BYTES:
        raise TooLarge(f"{what} has {len(text)} bytes of JSON, at most {MAX_JSON_BYTES} are read: send tensors as binary data")
    try:
        value = json.loads(str(text, "utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise MalformedRequest(f"{what} is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise MalformedRequest(f"{what} is not valid JSON: {error.msg} (character {error.pos})") from None
    except RecursionError:
        raise MalformedRequest(f"{what} is JSON nested too deeply") from None
    except ValueError:
        # The one other complaint of the parser: an integer of thousands of digits.
        raise MalformedRequest(f"{what} has a number that is too long") from None
    if not isinstance(value, dict):
        raise MalformedRequest(f"{what} must be a JSON object")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise MalformedRequest("a JSON object names a key twice")
    return mapping


def _refuse_constant(constant: str) -> NoReturn:
    raise MalformedRequest(f"{constant} is not JSON")


def to_list(array: Array, *, name: str) -> list[Any]:
    """A tensor as a flat JSON list, row-major.

    Raises:
        InvalidValue: This tensor does not travel as JSON.
    """
    if array.size > MAX_JSON_VALUES:
        raise InvalidValue(f"{name} has {array.size} values: ask for it with binary_data true")
    if array.dtype == np.float16:
        raise InvalidValue(f"{name} is FP16, which has no JSON form: ask for it with binary_data true")
    values: list[Any] = array.ravel().tolist()
    if datatype_of(array) != BYTES:
        return values
    try:
        return [element.decode("utf-8") for element in values]
    except UnicodeDecodeError:
        raise InvalidValue(f"{name} is not text: ask for it with binary_data true") from None


def from_list(datatype: str, shape: Sequence[int], data: Any, *, name: str) -> Array:
    """The tensor in a JSON value, flat or nested as its shape is.

    Raises:
        MalformedRequest: The value is not such a tensor.
    """
    if datatype == "FP16":
        raise MalformedRequest(f"{name} is FP16, which has no JSON form: send it as binary data")
    values = _flatten(data, shape, name)
    if datatype == BYTES:
        return bytes_tensor(_encode_texts(values, name), shape)
    dtype = DTYPES[datatype]
    accepted, what = _PYTHON_TYPES[dtype.kind]
    if not set(map(type, values)) <= accepted:
        raise MalformedRequest(f"{name} is {datatype}: its data must be {what}")
    try:
        # A number that its type cannot hold becomes infinite, which the check of the values refuses.
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=dtype).reshape(shape)
    except OverflowError:
        raise MalformedRequest(f"{name} has a number that {datatype} cannot hold") from None
    array.flags.writeable = False
    return array


def _flatten(data: Any, shape: Sequence[int], name: str) -> list[Any]:
    if not isinstance(data, list):
        raise MalformedRequest(f"the data of {name} must be a list")
    values = data
    if any(isinstance(value, list) for value in data):
        for size in shape[1:]:
            if not all(isinstance(value, list) and len(value) == size for value in values):
                raise MalformedRequest(f"the lists of {name} are not nested as its shape {list(shape)} says")
            values = list(itertools.chain.from_iterable(values))
    if len(values) != math.prod(shape):
        raise MalformedRequest(f"{name} has {len(values)} values, its shape {list(shape)} takes {math.prod(shape)}")
    return values


def _encode_texts(values: list[Any], name: str) -> list[bytes]:
    if not all(isinstance(value, str) for value in values):
        raise MalformedRequest(f"{name} is BYTES: its data must be strings")
    try:
        return [value.encode("utf-8") for value in values]
    except UnicodeEncodeError:
        raise MalformedRequest(f"{name} has a string that is not valid Unicode") from None
