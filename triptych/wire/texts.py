"""Text in BYTES tensors: UTF-8, one text an element."""

from __future__ import annotations

from collections.abc import Sequence

from triptych.errors import InvalidValue
from triptych.wire.datatypes import Array, bytes_tensor


def encode_texts(name: str, texts: Sequence[str]) -> Array:
    """Raises InvalidValue for half a surrogate pair, which Python's strings and JSON may hold and UTF-8 may not."""
    try:
        return bytes_tensor([text.encode("utf-8") for text in texts])
    except UnicodeEncodeError:
        raise InvalidValue(f"{name} has a text that is not valid Unicode", param=name) from None


def decode_texts(name: str, array: Array) -> tuple[str, ...]:
    """Raises InvalidValue for bytes that are not UTF-8."""
    try:
        return tuple(element.decode("utf-8") for element in array)
    except UnicodeDecodeError:
        raise InvalidValue(f"{name} must be UTF-8 text", param=name) from None
